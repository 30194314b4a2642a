/* The loop that carries frames between TAP interfaces: carrier.py. See _carrier.h.
 *
 * Functions that Python calls begin with link_; those that can fail return -errno.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "_carrier.h"

#define ABI_VERSION 1 /* compiled.py has the same number; it changes with any struct or function */

#define BATCH_FRAMES 64
#define MAX_FRAME_MEMORY ((size_t)1 << 30)
#define MAX_EVENTS 256
#define MAX_PIPES ((size_t)1 << 20)

/* While at least so many frames per second are read or written, the loop rests between two turns,
 * so that one turn does more than one frame. Frames keep their times, they only come out late. */
#define BUSY_FRAMES_PER_S 6000.0
#define REST_S 0.00015
#define LOAD_WINDOW_S 0.01

/* While there are fewer than so many, it wakes up a little too early and looks at the clock until
 * it is time: waking up alone may take as long. That costs below a tenth of a core. */
#define CALM_FRAMES_PER_S 1000.0
#define EARLY_S 0.00015

#define NS_PER_S 1000000000L
#define LONGEST_WAIT_S 3600.0 /* what epoll and poll surely take */

/* ---- what pipes need ------------------------------------------------------------------------- */

static bool add_block(struct carrier *c)
{
    if (c->memory + sizeof(struct block) > MAX_FRAME_MEMORY)
        return false;
    struct block *block = malloc(sizeof *block);
    if (block == NULL)
        return false;
    block->next = c->blocks;
    c->blocks = block;
    c->memory += sizeof *block;
    for (int i = 0; i < BLOCK_FRAMES; i++) {
        block->frames[i].next = c->free_frames;
        c->free_frames = &block->frames[i];
    }
    return true;
}

struct frame *carrier_frame(struct carrier *c)
{
    if (c->free_frames == NULL && !add_block(c))
        return NULL;
    struct frame *frame = c->free_frames;
    c->free_frames = frame->next;
    return frame;
}

void carrier_release(struct carrier *c, struct frame *frame)
{
    if (frame != NULL) {
        frame->next = c->free_frames;
        c->free_frames = frame;
    }
}

/* Room for one more in an array that doubles; NULL, and the array stays, without memory. */
void *grown(void *array, size_t count, size_t *room, size_t each)
{
    if (count < *room)
        return array;
    size_t wanted = *room ? 2 * *room : 64;
    void *larger = realloc(array, wanted * each);
    if (larger != NULL)
        *room = wanted;
    return larger;
}

struct link_row *carrier_row(struct carrier *c)
{
    void *rows = grown(c->rows, c->row_count, &c->row_room, sizeof *c->rows);
    if (rows == NULL)
        return NULL;
    c->rows = rows;
    return &c->rows[c->row_count++];
}

double carrier_clock_s(const struct carrier *c)
{
    struct timespec now;
    if (c->test_clock_s > 0.0)
        return c->test_clock_s;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)((int64_t)now.tv_sec * NS_PER_S + now.tv_nsec) / 1e9;
}

static void stop_pipe(struct carrier *c, struct pipe *p, enum failure failure)
{
    p->failure = failure;
    c->next_s[p->index] = NEVER_S;
    if (p->source >= 0)
        epoll_ctl(c->epoll, EPOLL_CTL_DEL, p->source, NULL);
}

/* A pipe that has finished carries no more. */
void carrier_silence(struct carrier *c, struct pipe *p)
{
    if (p->failure != NO_FAILURE)
        return;
    stop_pipe(c, p, FINISHED);
    p->is_reported = true;
}

/* Nor does one that failed; the others go on. */
void carrier_fail(struct carrier *c, struct pipe *p, enum failure failure, int why)
{
    if (p->failure != NO_FAILURE)
        return;
    stop_pipe(c, p, failure);
    p->failure_errno = why;
    c->unreported++;
}

/* ---- the loop -------------------------------------------------------------------------------- */

#define IS_PIPE ((uint64_t)1 << 32) /* in what epoll says, with the number; else a descriptor */

static void take_batch(struct carrier *c, struct pipe *p)
{
    int frames = 0;
    while (frames < BATCH_FRAMES) {
        ssize_t length = read(p->source, c->spare->bytes, sizeof c->spare->bytes);
        if (length > 0) {
            c->spare->length = length;
            pipe_admit(c, p, carrier_clock_s(c));
            frames++;
        } else if (length == 0) {
            carrier_fail(c, p, CANNOT_READ, 0);
            return;
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            carrier_fail(c, p, CANNOT_READ, errno);
            return;
        }
    }
    c->handled += frames;
    if (frames == BATCH_FRAMES)
        c->has_more = true;
    pipe_advance(c, p, carrier_clock_s(c));
}

static struct timespec timespec_of(double seconds)
{
    double whole = floor(seconds);
    long rest = (long)((seconds - whole) * 1e9);
    return (struct timespec){.tv_sec = (time_t)whole, .tv_nsec = rest};
}

/* epoll_wait(2) with nanoseconds; kernels before 5.11 take two calls for it. */
static int wait_for(int epoll, struct epoll_event *events, double timeout_s)
{
    struct timespec timeout = timespec_of(min_of(max_of(timeout_s, 0.0), LONGEST_WAIT_S));
#ifdef SYS_epoll_pwait2
    long count = syscall(SYS_epoll_pwait2, epoll, events, MAX_EVENTS, &timeout, NULL, 0);
    if (count >= 0 || (errno != ENOSYS && errno != EPERM))
        return (int)count;
#endif
    struct pollfd one = {.fd = epoll, .events = POLLIN};
    int ready = ppoll(&one, 1, &timeout, NULL);
    return ready <= 0 ? ready : epoll_wait(epoll, events, MAX_EVENTS, 0);
}

/* Looks how much there is to do, and while that is much, lets some of it come together. */
static void rest(struct carrier *c)
{
    double now_s = carrier_clock_s(c), window_s = now_s - c->busy_since_s;
    if (window_s >= LOAD_WINDOW_S) {
        c->is_busy = (double)c->handled >= BUSY_FRAMES_PER_S * window_s;
        c->is_calm = (double)c->handled < CALM_FRAMES_PER_S * window_s;
        c->handled = 0;
        c->busy_since_s = now_s;
    }
    double pause_s = c->rested_s + REST_S - now_s;
    if (c->is_busy && !c->has_more && pause_s > 0.0) {
        struct timespec pause = timespec_of(min_of(pause_s, REST_S));
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        now_s = carrier_clock_s(c);
    }
    c->rested_s = now_s;
    c->has_more = false;
}

/* Does what is due; returns when the next thing is. */
static double advance_all(struct carrier *c, double now_s)
{
    double next_s = NEVER_S;
    for (size_t i = 0; i < c->count; i++) {
        if (c->next_s[i] <= now_s)
            pipe_advance(c, c->pipes[i], now_s);
        next_s = min_of(next_s, c->next_s[i]);
    }
    return next_s;
}

/* Until a time, a row, a failure or a watched descriptor; returns how many of these are ready. */
int link_run(struct carrier *c, double until_s, int32_t *ready, int32_t room)
{
    struct epoll_event events[MAX_EVENTS];
    for (;;) {
        double now_s = carrier_clock_s(c);
        double next_s = min_of(advance_all(c, now_s), until_s);
        if (now_s >= until_s || c->row_count || c->unreported)
            return 0;
        rest(c);
        double wait_s = next_s - carrier_clock_s(c) - (c->is_calm ? EARLY_S : 0.0);
        int count = wait_for(c->epoll, events, wait_s), watched = 0;
        if (count < 0)
            return -errno; /* EINTR as well: Python's signal handlers want to run */
        for (int i = 0; i < count; i++) {
            uint64_t data = events[i].data.u64;
            struct pipe *p = data >= IS_PIPE ? c->pipes[data - IS_PIPE] : NULL;
            if (p != NULL)
                take_batch(c, p);
            else if (data < IS_PIPE && watched < room)
                ready[watched++] = (int32_t)data;
        }
        if (watched)
            return watched;
    }
}

/* ---- control --------------------------------------------------------------------------------- */

int link_abi(void) { return ABI_VERSION; }

static struct pipe *pipe_of(const struct carrier *c, int64_t pipe)
{
    return pipe >= 0 && (uint64_t)pipe < c->count ? c->pipes[pipe] : NULL;
}

void link_free(struct carrier *c);

struct carrier *link_new(const double *quantiles)
{
    struct carrier *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    memcpy(c->quantiles, quantiles, sizeof c->quantiles);
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    c->spare = carrier_frame(c);
    if (c->epoll < 0 || c->spare == NULL) {
        link_free(c);
        return NULL;
    }
    return c;
}

/* Room for one more pipe than there ever were at once. */
static int add_place(struct carrier *c)
{
    if (c->count == MAX_PIPES)
        return ENOSPC;
    struct pipe **pipes = realloc(c->pipes, (c->count + 1) * sizeof *pipes);
    if (pipes == NULL)
        return ENOMEM;
    c->pipes = pipes;
    double *next_s = realloc(c->next_s, (c->count + 1) * sizeof *next_s);
    if (next_s == NULL)
        return ENOMEM;
    c->next_s = next_s;
    c->pipes[c->count] = NULL;
    c->next_s[c->count++] = NEVER_S;
    return 0;
}

static int add_pipe(struct carrier *c, struct pipe *p)
{
    size_t place = 0;
    while (place < c->count && c->pipes[place] != NULL)
        place++;
    int problem = place == c->count ? add_place(c) : 0;
    if (problem)
        return problem;
    struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = IS_PIPE + place}};
    if (p->source >= 0 && epoll_ctl(c->epoll, EPOLL_CTL_ADD, p->source, &event) < 0)
        return errno;
    p->index = (int64_t)place;
    c->pipes[place] = p;
    return 0;
}

/* The number of a new pipe; source and sink may be -1 for tests: nothing is read, or written. */
int64_t link_add(
    struct carrier *c, int32_t source, int32_t sink, const struct link_settings *settings,
    const struct link_arrays *arrays)
{
    struct pipe *p = pipe_new(settings, arrays);
    if (p == NULL)
        return -ENOMEM;
    p->source = source;
    p->sink = sink;
    int problem = add_pipe(c, p);
    if (problem) {
        pipe_free(c, p);
        return -problem;
    }
    return p->index;
}

int link_start(struct carrier *c, int64_t pipe, double now_s)
{
    struct pipe *p = pipe_of(c, pipe);
    if (p == NULL)
        return -ENOENT;
    pipe_start(c, p, now_s);
    return 0;
}

/* What is NaN stays as it is. */
int link_change(
    struct carrier *c, int64_t pipe, double now_s, double bits_per_s, double delay_s, double loss)
{
    struct pipe *p = pipe_of(c, pipe);
    if (p == NULL)
        return -ENOENT;
    pipe_change(c, p, now_s, bits_per_s, delay_s, loss);
    return 0;
}

int64_t link_finish(struct carrier *c, int64_t pipe, double now_s)
{
    struct pipe *p = pipe_of(c, pipe);
    return p == NULL ? -ENOENT : pipe_finish(c, p, now_s);
}

static void forget_rows(struct carrier *c, int64_t pipe)
{
    size_t kept = 0;
    for (size_t i = 0; i < c->row_count; i++)
        if (c->rows[i].pipe != pipe)
            c->rows[kept++] = c->rows[i];
    c->row_count = kept;
}

int link_remove(struct carrier *c, int64_t pipe)
{
    struct pipe *p = pipe_of(c, pipe);
    if (p == NULL)
        return -ENOENT;
    if (p->failure != NO_FAILURE)
        c->unreported -= !p->is_reported;
    else if (p->source >= 0)
        epoll_ctl(c->epoll, EPOLL_CTL_DEL, p->source, NULL);
    forget_rows(c, pipe);
    c->pipes[pipe] = NULL;
    c->next_s[pipe] = NEVER_S;
    pipe_free(c, p);
    return 0;
}

int link_watch(struct carrier *c, int32_t descriptor, int32_t is_on)
{
    struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = (uint32_t)descriptor}};
    int operation = is_on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL;
    return epoll_ctl(c->epoll, operation, descriptor, &event) < 0 ? -errno : 0;
}

/* Hands over the rows, and how many there are, until the next call of anything. */
const struct link_row *link_take_rows(struct carrier *c, uint64_t *count)
{
    *count = c->row_count;
    c->row_count = 0;
    return c->rows;
}

/* The number of a pipe that failed since the last call, and how; -1: no more. */
int64_t link_take_broken(struct carrier *c, int32_t *is_reading, int32_t *why)
{
    for (size_t i = 0; i < c->count && c->unreported; i++) {
        struct pipe *p = c->pipes[i];
        if (p == NULL || p->failure == NO_FAILURE || p->is_reported)
            continue;
        p->is_reported = true;
        c->unreported--;
        *is_reading = p->failure == CANNOT_READ;
        *why = p->failure_errno;
        return p->index;
    }
    return -1;
}

void link_free(struct carrier *c)
{
    for (size_t i = 0; i < c->count; i++)
        if (c->pipes[i] != NULL)
            pipe_free(c, c->pipes[i]);
    while (c->blocks != NULL) {
        struct block *block = c->blocks;
        c->blocks = block->next;
        free(block);
    }
    if (c->epoll >= 0)
        close(c->epoll);
    free(c->pipes);
    free(c->next_s);
    free(c->rows);
    free(c);
}

/* ---- for tests: a clock and packets by hand -------------------------------------------------- */

/* From now on the clock says this, and what comes out of a pipe goes there. */
int link_test(struct carrier *c, int64_t pipe, double clock_is_s, link_sink *sink)
{
    struct pipe *p = pipe_of(c, pipe);
    if (p == NULL)
        return -ENOENT;
    c->test_clock_s = clock_is_s;
    p->test_sink = sink;
    return 0;
}

int link_test_admit(
    struct carrier *c, int64_t pipe, const uint8_t *bytes, uint64_t length, double now_s)
{
    struct pipe *p = pipe_of(c, pipe);
    if (p == NULL)
        return -ENOENT;
    uint64_t fits = sizeof c->spare->bytes;
    c->spare->length = (int64_t)(length < fits ? length : fits);
    memcpy(c->spare->bytes, bytes, (size_t)c->spare->length);
    pipe_admit(c, p, now_s);
    return 0;
}

/* When the next thing is due, having done what is due now. */
double link_test_advance(struct carrier *c, int64_t pipe, double now_s)
{
    struct pipe *p = pipe_of(c, pipe);
    if (p == NULL)
        return NEVER_S;
    pipe_advance(c, p, now_s);
    return c->next_s[pipe];
}
