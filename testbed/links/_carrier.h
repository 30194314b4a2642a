/* What the two halves of the carrier share: _pipe.c is one direction of a link, _carrier.c the loop
 * and what Python calls. They are carrier.py, pipe.py, capacity.py, active_queues.py and draws.py
 * once more, faster, with the same decisions.
 *
 * Every double comes from the same operations in the same order as in Python, so compile without
 * -ffast-math and with -ffp-contract=off. What a function does and why is said there; the names
 * are the same. Plain C for ctypes, without Python.h.
 */

#ifndef CARRIER_H
#define CARRIER_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_BYTES 2048
#define BLOCK_FRAMES 256 /* allocated at once */
#define MAX_SAMPLES 1024
#define NORMAL_STEPS 4096
#define NEVER_S ((double)INFINITY)

enum queue_kind { DROPTAIL, CODEL, PIE };
enum capacity_kind { NO_BOTTLENECK, CONSTANT, TRACE, OPPORTUNITIES };
enum failure { NO_FAILURE, CANNOT_READ, CANNOT_DELIVER, FINISHED };

/* ---- what Python and C hand to each other; compiled.py has the same -------------------------- */

/* All members have eight bytes: there are no gaps. */
struct link_settings {
    double delay_s, jitter_s, loss_good, loss_bad, to_bad, to_good, duplicate, mean_bits_per_s;
    double start_s, duration_s, target_s, interval_s;
    int64_t is_normal, may_reorder, has_bottleneck, queue, limit_packets, limit_bytes, ecn;
    uint64_t loss_key, burst_key, jitter_key, duplicate_key, pie_key;
};

struct link_arrays {
    const double *edges_s, *cumulative_bits, *speeds, *opportunities_s;
    uint64_t steps, opportunities; /* one edge more than steps */
};

struct link_row {
    double begin_s, end_s, late_s, delay_p50_s, delay_p95_s, delay_p99_s;
    int64_t delivered_bytes, delivered_packets, saturated, backlog_packets, backlog_bytes;
    int64_t drops, losses, aqm_drops, marks, duplicates, pipe;
};

/* Takes what a pipe for tests delivers: when that was due, and the frame. */
typedef void link_sink(double due_s, const uint8_t *bytes, uint64_t length);

/* ---- what there is inside -------------------------------------------------------------------- */

struct frame {
    struct frame *next; /* in whatever list it is */
    double entered_s, arrives_s;
    int64_t length;                 /* Ethernet header included */
    uint8_t bytes[FRAME_BYTES + 1]; /* one more shows which frames were longer */
};

struct list {
    struct frame *head, *tail;
    int64_t count;
};

struct heap_entry {
    double arrives_s;
    uint64_t order;
    struct frame *frame;
};

struct heap {
    struct heap_entry *entries;
    size_t count, room;
};

struct capacity {
    enum capacity_kind kind;
    double bits_per_s;
    const double *edges_s, *cumulative_bits, *speeds, *times_s;
    size_t steps, times;
    double origin_s, duration_s, total_bits;
    double pass, left_bytes;
    size_t next;
};

struct codel {
    double first_above_s, drop_next_s;
    int64_t count, last_count;
    bool is_dropping;
};

struct pie {
    uint64_t number;
    double probability, delay_s, old_delay_s, burst_s, update_at_s;
};

struct counters {
    int64_t packets, size_bytes, drops, losses, aqm_drops, marks, duplicates;
};

struct pipe {
    struct link_settings settings;
    double *edges_s, *cumulative_bits, *speeds, *opportunities_s;
    size_t steps, opportunities;
    int source, sink;
    int64_t index;
    enum failure failure;
    int failure_errno; /* 0: there was nothing more to read */
    bool is_reported;
    link_sink *test_sink;

    double delay_s, to_bad, loss_good;
    bool is_bad;
    int64_t number;
    uint64_t order;
    double last_arrival_s;

    struct heap heap; /* who is on the way to the queue: here with reordering, */
    struct list line; /* here without */
    struct list fifo;
    struct frame *sending;
    double leaves_s;
    struct capacity capacity;
    struct codel codel;
    struct pie pie;
    int64_t waiting_bytes, delivered;

    double border_s, begin_s, delivered_s, late_s;
    struct counters counters;
    bool was_idle;
    int64_t most_packets, most_bytes;
    double delays_s[MAX_SAMPLES];
    int64_t samples, skip, stride;
};

struct block {
    struct block *next;
    struct frame frames[BLOCK_FRAMES];
};

struct carrier {
    struct pipe **pipes;
    double *next_s; /* of each pipe, when the next thing is due */
    size_t count;
    struct link_row *rows;
    size_t row_count, row_room;
    size_t unreported; /* pipes that failed since someone asked */
    int epoll;
    struct block *blocks;
    struct frame *free_frames, *spare; /* frames are read into the spare one */
    size_t memory;
    double quantiles[NORMAL_STEPS];
    double test_clock_s; /* instead of the real one while it is above 0 */
    double busy_since_s, rested_s;
    int64_t handled;
    bool is_busy, is_calm, has_more;
};

/* ---- what the halves call of each other ------------------------------------------------------ */

static inline double max_of(double a, double b) { return b > a ? b : a; }
static inline double min_of(double a, double b) { return b < a ? b : a; }

/* _carrier.c; what returns a pointer returns NULL without memory. */
struct frame *carrier_frame(struct carrier *c);
void carrier_release(struct carrier *c, struct frame *frame);
struct link_row *carrier_row(struct carrier *c);
double carrier_clock_s(const struct carrier *c);
void carrier_silence(struct carrier *c, struct pipe *p);
void carrier_fail(struct carrier *c, struct pipe *p, enum failure failure, int why);
void *grown(void *array, size_t count, size_t *room, size_t each);

/* _pipe.c */
struct pipe *pipe_new(const struct link_settings *settings, const struct link_arrays *arrays);
void pipe_free(struct carrier *c, struct pipe *p);
void pipe_start(struct carrier *c, struct pipe *p, double now_s);
void pipe_change(
    struct carrier *c, struct pipe *p, double now_s, double bits_per_s, double delay_s,
    double loss);
int64_t pipe_finish(struct carrier *c, struct pipe *p, double now_s);
void pipe_admit(struct carrier *c, struct pipe *p, double now_s); /* the spare frame */
void pipe_advance(struct carrier *c, struct pipe *p, double now_s);

#endif
