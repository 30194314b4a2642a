/* One direction of a link: draws.py, capacity.py, active_queues.py and pipe.py. See _carrier.h. */

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "_carrier.h"

#define BITS_PER_BYTE 8.0
#define OPPORTUNITY_BYTES 1504.0
#define TUN_HEADER_BYTES 4
#define ETHERNET_BYTES 14
#define GROUP_ADDRESS 0x01
#define BIN_S 1.0
#define SHORTEST_BIN_S 0.02
#define ARRIVAL_DEADLINE_S 0.5
#define LARGEST_PACKET_BYTES 1500

/* ---- lists, and a heap like heapq ------------------------------------------------------------ */

static void append(struct list *list, struct frame *frame)
{
    frame->next = NULL;
    if (list->head == NULL)
        list->head = frame;
    else
        list->tail->next = frame;
    list->tail = frame;
    list->count++;
}

static struct frame *take_first(struct list *list)
{
    struct frame *frame = list->head;
    if (frame != NULL) {
        list->head = frame->next;
        list->count--;
    }
    return frame;
}

static bool is_before(const struct heap_entry *a, const struct heap_entry *b)
{
    return a->arrives_s < b->arrives_s || (a->arrives_s == b->arrives_s && a->order < b->order);
}

static bool heap_push(struct heap *heap, struct heap_entry entry)
{
    void *entries = grown(heap->entries, heap->count, &heap->room, sizeof entry);
    if (entries == NULL)
        return false;
    heap->entries = entries;
    size_t at = heap->count++;
    while (at > 0 && is_before(&entry, &heap->entries[(at - 1) / 2])) {
        heap->entries[at] = heap->entries[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap->entries[at] = entry;
    return true;
}

static struct frame *heap_pop(struct heap *heap)
{
    struct frame *first = heap->entries[0].frame;
    struct heap_entry last = heap->entries[--heap->count];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < heap->count) {
        if (child + 1 < heap->count &&
            is_before(&heap->entries[child + 1], &heap->entries[child]))
            child++;
        if (!is_before(&heap->entries[child], &last))
            break;
        heap->entries[at] = heap->entries[child];
        at = child;
    }
    heap->entries[at] = last;
    return first;
}

/* ---- draws.py -------------------------------------------------------------------------------- */

static double draw(uint64_t key, uint64_t number)
{
    uint64_t z = key + (number + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* ---- what Python has and C has not ----------------------------------------------------------- */

/* divmod() of two floats, as Objects/floatobject.c does it; the divisor is positive. */
static double python_divmod(double a, double b, double *rest)
{
    double mod = fmod(a, b);
    double div = (a - mod) / b;
    if (mod < 0.0) {
        mod += b;
        div -= 1.0;
    } else if (mod == 0.0) {
        mod = 0.0; /* not -0.0 */
    }
    *rest = mod;
    double floored = floor(div);
    return div - floored > 0.5 ? floored + 1.0 : floored;
}

static size_t bisect_left(const double *sorted, size_t count, double value)
{
    size_t low = 0;
    while (low < count) {
        size_t middle = (low + count) / 2;
        if (sorted[middle] < value)
            low = middle + 1;
        else
            count = middle;
    }
    return low;
}

static size_t bisect_right(const double *sorted, size_t count, double value)
{
    size_t low = 0;
    while (low < count) {
        size_t middle = (low + count) / 2;
        if (value < sorted[middle])
            count = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* ---- capacity.py ----------------------------------------------------------------------------- */

static size_t step_at(const struct capacity *k, double within_s)
{
    size_t step = bisect_right(k->edges_s, k->steps + 1, within_s);
    if (step > k->steps)
        step = k->steps;
    return step > 0 ? step - 1 : 0;
}

static double trace_resume(const struct capacity *k, double bits, double begins_s)
{
    double within_s, rest;
    python_divmod(begins_s - k->origin_s, k->duration_s, &within_s);
    size_t step = step_at(k, within_s);
    double have = k->cumulative_bits[step] + (within_s - k->edges_s[step]) * k->speeds[step] + bits;
    double passes = python_divmod(have, k->total_bits, &rest);
    if (rest == 0.0 && passes > 0.0) {
        passes = passes - 1.0;
        rest = k->total_bits;
    }
    size_t left = bisect_left(k->cumulative_bits, k->steps + 1, rest);
    left = left > 0 ? left - 1 : 0;
    double missing = rest - k->cumulative_bits[left];
    double ends_s = k->edges_s[left] + (missing > 0.0 ? missing / k->speeds[left] : 0.0);
    double took_s = passes * k->duration_s + ends_s - within_s;
    return begins_s + (took_s > 0.0 ? took_s : 0.0);
}

static double opportunity_at(const struct capacity *k)
{
    return k->origin_s + (k->pass * k->duration_s + k->times_s[k->next]);
}

static void next_opportunity(struct capacity *k)
{
    k->next++;
    if (k->next == k->times) {
        k->next = 0;
        k->pass += 1.0;
    }
    k->left_bytes = OPPORTUNITY_BYTES;
}

static void seek_opportunity(struct capacity *k, double begins_s)
{
    double within_s;
    k->pass = python_divmod(begins_s - k->origin_s, k->duration_s, &within_s);
    k->next = bisect_left(k->times_s, k->times, within_s);
    k->left_bytes = OPPORTUNITY_BYTES;
    if (k->next == k->times) {
        k->next = 0;
        k->pass += 1.0;
    }
    if (opportunity_at(k) < begins_s) /* rounding */
        next_opportunity(k);
}

static double take_opportunities(struct capacity *k, double size_bytes, double begins_s)
{
    if (opportunity_at(k) < begins_s)
        seek_opportunity(k, begins_s);
    while (size_bytes > k->left_bytes) {
        size_bytes -= k->left_bytes;
        next_opportunity(k);
    }
    k->left_bytes -= size_bytes;
    return opportunity_at(k);
}

static double constant_resume(const struct capacity *k, double bits, double begins_s)
{
    return k->bits_per_s > 0.0 ? begins_s + bits / k->bits_per_s : NEVER_S;
}

static double capacity_finish(struct capacity *k, int64_t size_bytes, double begins_s)
{
    if (k->kind == OPPORTUNITIES)
        return take_opportunities(k, (double)(size_bytes + TUN_HEADER_BYTES), begins_s);
    double bits = (double)size_bytes * BITS_PER_BYTE;
    return k->kind == TRACE ? trace_resume(k, bits, begins_s) : constant_resume(k, bits, begins_s);
}

static double bits_until(const struct capacity *k, double at_s)
{
    if (k->kind == CONSTANT)
        return at_s * k->bits_per_s;
    double within_s;
    double passes = python_divmod(at_s - k->origin_s, k->duration_s, &within_s);
    if (k->kind == OPPORTUNITIES) {
        size_t within = bisect_right(k->times_s, k->times, within_s);
        double count = passes * (double)k->times + (double)within;
        return count * (OPPORTUNITY_BYTES * BITS_PER_BYTE);
    }
    size_t step = step_at(k, within_s);
    double have = k->cumulative_bits[step] + (within_s - k->edges_s[step]) * k->speeds[step];
    return passes * k->total_bits + have;
}

/* ---- active_queues.py ------------------------------------------------------------------------ */

static int64_t size_of(const struct frame *frame) { return frame->length - ETHERNET_BYTES; }

/* "Congestion experienced" (RFC 3168, section 5), with the checksum of IPv4 after RFC 1624. */
static bool mark_frame(struct frame *frame)
{
    uint8_t *ip = frame->bytes + ETHERNET_BYTES;
    const uint8_t *kind = ip - 2;
    if (frame->length < ETHERNET_BYTES + 20)
        return false;
    if (kind[0] == 0x08 && kind[1] == 0x00) {
        unsigned ecn = ip[1] & 3u;
        if (ecn == 0)
            return false;
        ip[1] |= 3u;
        unsigned total = 0xFFFFu - ((unsigned)ip[10] << 8 | ip[11]) + (3u - ecn);
        total = 0xFFFFu - ((total & 0xFFFFu) + (total >> 16));
        ip[10] = (uint8_t)(total >> 8);
        ip[11] = (uint8_t)total;
        return true;
    }
    if (kind[0] == 0x86 && kind[1] == 0xDD && (ip[1] >> 4 & 3) != 0) {
        ip[1] |= 3u << 4;
        return true;
    }
    return false;
}

static bool mark(struct pipe *p, struct frame *frame)
{
    if (!p->settings.ecn || !mark_frame(frame))
        return false;
    p->counters.marks++;
    return true;
}

static struct frame *pop(struct pipe *p)
{
    struct frame *frame = take_first(&p->fifo);
    if (frame != NULL)
        p->waiting_bytes -= size_of(frame);
    return frame;
}

static void discard(struct carrier *c, struct pipe *p, struct frame *frame)
{
    p->counters.aqm_drops++;
    carrier_release(c, frame);
}

/* CoDel: RFC 8289, section 5. */
static struct frame *codel_pop(struct pipe *p, double now_s, bool *is_late)
{
    struct codel *codel = &p->codel;
    struct frame *frame = pop(p);
    *is_late = false;
    if (frame == NULL || now_s - frame->arrives_s < p->settings.target_s ||
        p->waiting_bytes <= LARGEST_PACKET_BYTES)
        codel->first_above_s = 0.0;
    else if (codel->first_above_s == 0.0)
        codel->first_above_s = now_s + p->settings.interval_s;
    else
        *is_late = now_s >= codel->first_above_s;
    return frame;
}

static double codel_after(const struct pipe *p, double at_s)
{
    return at_s + p->settings.interval_s / sqrt((double)p->codel.count);
}

static void codel_begin_dropping(struct pipe *p, double now_s)
{
    struct codel *codel = &p->codel;
    codel->is_dropping = true;
    int64_t recent = codel->count - codel->last_count;
    bool is_recent = now_s - codel->drop_next_s < 16.0 * p->settings.interval_s;
    codel->count = recent > 1 && is_recent ? recent : 1;
    codel->last_count = codel->count;
    codel->drop_next_s = codel_after(p, now_s);
}

static struct frame *codel_take(struct carrier *c, struct pipe *p, double now_s)
{
    struct codel *codel = &p->codel;
    bool is_late;
    struct frame *frame = codel_pop(p, now_s, &is_late);
    if (!codel->is_dropping) {
        if (!is_late)
            return frame;
        if (!mark(p, frame)) {
            discard(c, p, frame);
            frame = codel_pop(p, now_s, &is_late);
        }
        codel_begin_dropping(p, now_s);
        return frame;
    }
    codel->is_dropping = is_late;
    while (codel->is_dropping && frame != NULL && now_s >= codel->drop_next_s) {
        codel->count++;
        if (mark(p, frame)) {
            codel->drop_next_s = codel_after(p, codel->drop_next_s);
            break;
        }
        discard(c, p, frame);
        frame = codel_pop(p, now_s, &is_late);
        if (is_late)
            codel->drop_next_s = codel_after(p, codel->drop_next_s);
        else
            codel->is_dropping = false;
    }
    return frame;
}

/* PIE: RFC 8033, sections 4.2 (damping), 4.3 (burst) and 5.1 (ECN). */
static const double PIE_DAMPING[][2] = {
    {1e-6, 2048.0}, {1e-5, 512.0}, {1e-4, 128.0}, {1e-3, 32.0}, {1e-2, 8.0}, {0.1, 2.0},
};
static const double PIE_BURST_S = 0.150, PIE_MARK_BELOW = 0.1;

static void pie_step(struct pie *pie, double target_s, double update_s)
{
    double delay_s = pie->delay_s, old_s = pie->old_delay_s, probability = pie->probability;
    double step = 0.125 * (delay_s - target_s) + 1.25 * (delay_s - old_s);
    for (size_t i = 0; i < sizeof PIE_DAMPING / sizeof *PIE_DAMPING; i++)
        if (probability < PIE_DAMPING[i][0]) {
            step /= PIE_DAMPING[i][1];
            break;
        }
    if (probability >= PIE_MARK_BELOW && step > 0.02)
        step = 0.02;
    probability += step;
    if (delay_s == 0.0 && old_s == 0.0)
        probability *= 0.98;
    pie->probability = min_of(max_of(probability, 0.0), 1.0);
    pie->old_delay_s = delay_s;
    pie->burst_s = max_of(pie->burst_s - update_s, 0.0);
    double half_s = target_s / 2.0;
    if (pie->probability == 0.0 && delay_s < half_s && old_s < half_s)
        pie->burst_s = PIE_BURST_S;
}

static bool pie_strikes(struct pipe *p, double now_s)
{
    const struct link_settings *s = &p->settings;
    struct pie *pie = &p->pie;
    if (pie->update_at_s == 0.0)
        pie->update_at_s = now_s + s->interval_s;
    if (p->waiting_bytes == 0)
        pie->delay_s = 0.0;
    while (pie->update_at_s <= now_s) {
        pie->update_at_s += s->interval_s;
        pie_step(pie, s->target_s, s->interval_s);
    }
    uint64_t number = pie->number++;
    if (pie->burst_s > 0.0)
        return false;
    bool is_calm = pie->old_delay_s < s->target_s / 2.0;
    if ((is_calm && pie->probability < 0.2) || p->waiting_bytes <= 2 * LARGEST_PACKET_BYTES)
        return false;
    return draw(s->pie_key, number) < pie->probability;
}

/* ---- pipe.py: bins --------------------------------------------------------------------------- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const double *ordered, int64_t count, double share)
{
    return count ? ordered[(int64_t)ceil(share * (double)count) - 1] : -1.0;
}

static void begin_bin(struct pipe *p)
{
    bool is_sending = p->sending != NULL;
    p->counters = (struct counters){0};
    p->was_idle = !is_sending;
    p->most_packets = p->fifo.count + is_sending;
    p->most_bytes = p->waiting_bytes + (is_sending ? size_of(p->sending) : 0);
    p->late_s = 0.0;
    p->samples = p->skip = 0;
    p->stride = 1;
}

static void add_row(struct carrier *c, struct pipe *p, double now_s)
{
    const struct counters *n = &p->counters;
    struct link_row *row = carrier_row(c);
    if (row == NULL) {
        carrier_fail(c, p, CANNOT_DELIVER, ENOMEM);
        return;
    }
    qsort(p->delays_s, (size_t)p->samples, sizeof *p->delays_s, compare_doubles);
    *row = (struct link_row){
        .begin_s = p->begin_s,
        .end_s = now_s,
        .late_s = p->late_s,
        .delay_p50_s = percentile(p->delays_s, p->samples, 0.50),
        .delay_p95_s = percentile(p->delays_s, p->samples, 0.95),
        .delay_p99_s = percentile(p->delays_s, p->samples, 0.99),
        .delivered_bytes = n->size_bytes,
        .delivered_packets = n->packets,
        .saturated = !p->was_idle,
        .backlog_packets = p->most_packets,
        .backlog_bytes = p->most_bytes,
        .drops = n->drops,
        .losses = n->losses,
        .aqm_drops = n->aqm_drops,
        .marks = n->marks,
        .duplicates = n->duplicates,
        .pipe = p->index,
    };
}

static void close_bin(struct carrier *c, struct pipe *p, double now_s)
{
    add_row(c, p, now_s);
    p->begin_s = now_s;
    while (p->border_s <= now_s)
        p->border_s += BIN_S;
    begin_bin(p);
}

static void sample(struct pipe *p, double delay_s)
{
    if (p->skip) {
        p->skip--;
        return;
    }
    p->skip = p->stride - 1;
    p->delays_s[p->samples++] = delay_s;
    if (p->samples == MAX_SAMPLES) {
        for (int i = 0; i < MAX_SAMPLES / 2; i++)
            p->delays_s[i] = p->delays_s[2 * i];
        p->samples = MAX_SAMPLES / 2;
        p->stride *= 2;
    }
}

/* ---- pipe.py: packets ------------------------------------------------------------------------ */

/* 0, or why the frame was not written. */
static int write_frame(const struct pipe *p, const struct frame *frame, double due_s)
{
    if (p->test_sink != NULL) {
        p->test_sink(due_s, frame->bytes, (uint64_t)frame->length);
        return 0;
    }
    while (p->sink >= 0 && write(p->sink, frame->bytes, (size_t)frame->length) < 0)
        if (errno != EINTR)
            return errno;
    return 0;
}

static bool deliver(struct carrier *c, struct pipe *p, const struct frame *frame, double due_s)
{
    int why = write_frame(p, frame, due_s);
    if (why == EIO) { /* the interface is down */
        p->counters.drops++;
        return true;
    }
    if (why) {
        carrier_fail(c, p, CANNOT_DELIVER, why);
        return false;
    }
    double now_s = carrier_clock_s(c);
    p->counters.packets++;
    p->counters.size_bytes += size_of(frame);
    p->delivered++;
    c->handled++;
    p->late_s = max_of(p->late_s, now_s - due_s);
    p->delivered_s = now_s;
    sample(p, now_s - frame->entered_s);
    if (now_s >= p->border_s)
        close_bin(c, p, now_s);
    return p->failure == NO_FAILURE;
}

static void send_next(struct carrier *c, struct pipe *p, double now_s)
{
    struct frame *frame = p->settings.queue == CODEL ? codel_take(c, p, now_s) : pop(p);
    p->sending = frame;
    if (frame == NULL) {
        p->leaves_s = NEVER_S;
        p->was_idle = true;
        return;
    }
    if (p->settings.queue == PIE)
        p->pie.delay_s = now_s - frame->arrives_s;
    p->leaves_s = capacity_finish(&p->capacity, size_of(frame), now_s);
}

static void enqueue(struct carrier *c, struct pipe *p, struct frame *frame)
{
    const struct link_settings *s = &p->settings;
    bool is_sending = p->sending != NULL;
    int64_t packets = p->fifo.count + is_sending;
    int64_t size_bytes = p->waiting_bytes + (is_sending ? size_of(p->sending) : 0);
    size_bytes += size_of(frame);
    if (packets >= s->limit_packets || (s->limit_bytes && size_bytes > s->limit_bytes)) {
        p->counters.drops++;
        carrier_release(c, frame);
        return;
    }
    if (s->queue == PIE && pie_strikes(p, frame->arrives_s) &&
        !(p->pie.probability < PIE_MARK_BELOW && mark(p, frame))) {
        discard(c, p, frame);
        return;
    }
    append(&p->fifo, frame);
    p->waiting_bytes += size_of(frame);
    if (packets + 1 > p->most_packets)
        p->most_packets = packets + 1;
    if (size_bytes > p->most_bytes)
        p->most_bytes = size_bytes;
    if (!is_sending)
        send_next(c, p, frame->arrives_s);
}

static double next_arrival_s(const struct pipe *p)
{
    if (p->settings.may_reorder)
        return p->heap.count ? p->heap.entries[0].arrives_s : NEVER_S;
    return p->line.head != NULL ? p->line.head->arrives_s : NEVER_S;
}

static void arrive(struct carrier *c, struct pipe *p)
{
    struct frame *frame = p->settings.may_reorder ? heap_pop(&p->heap) : take_first(&p->line);
    if (p->capacity.kind != NO_BOTTLENECK) {
        enqueue(c, p, frame);
        return;
    }
    deliver(c, p, frame, frame->arrives_s);
    carrier_release(c, frame);
}

static void leave(struct carrier *c, struct pipe *p)
{
    struct frame *frame = p->sending;
    double at_s = p->leaves_s;
    if (!deliver(c, p, frame, at_s))
        return; /* it stays the one being sent until the pipe is removed */
    send_next(c, p, at_s);
    carrier_release(c, frame);
}

void pipe_advance(struct carrier *c, struct pipe *p, double now_s)
{
    double arrives_s;
    for (;;) {
        if (p->failure != NO_FAILURE)
            return;
        arrives_s = next_arrival_s(p);
        if (min_of(p->leaves_s, arrives_s) > now_s)
            break;
        if (p->leaves_s <= arrives_s)
            leave(c, p);
        else
            arrive(c, p);
    }
    bool is_sending = p->sending != NULL;
    double check_s = p->border_s + (is_sending ? ARRIVAL_DEADLINE_S : 0.0);
    if (now_s >= check_s) {
        close_bin(c, p, now_s);
        check_s = p->border_s;
    }
    if (p->failure == NO_FAILURE)
        c->next_s[p->index] = min_of(is_sending ? p->leaves_s : arrives_s, check_s);
}

static bool is_lost(struct pipe *p, uint64_t number)
{
    const struct link_settings *s = &p->settings;
    if (p->to_bad != 0.0) {
        double turn = draw(s->burst_key, number);
        p->is_bad = p->is_bad ? turn >= s->to_good : turn < p->to_bad;
    }
    double share = p->is_bad ? s->loss_bad : p->loss_good;
    return share > 0.0 && draw(s->loss_key, number) < share;
}

static double deviation_s(const struct carrier *c, const struct pipe *p, uint64_t number)
{
    double chance = draw(p->settings.jitter_key, number);
    if (p->settings.is_normal)
        return c->quantiles[(size_t)(chance * NORMAL_STEPS)] * p->settings.jitter_s;
    return (2.0 * chance - 1.0) * p->settings.jitter_s;
}

/* Puts the spare frame or, if it is needed once more, a copy of it on its way. */
static void set_off(struct carrier *c, struct pipe *p, bool is_copy)
{
    struct frame *fresh = carrier_frame(c), *frame = is_copy ? fresh : c->spare;
    if (fresh == NULL) {
        p->counters.drops++;
        return;
    }
    if (is_copy) {
        size_t used = offsetof(struct frame, bytes) + (size_t)c->spare->length;
        memcpy(frame, c->spare, used);
    }
    p->order++;
    if (!p->settings.may_reorder) {
        append(&p->line, frame);
    } else if (!heap_push(&p->heap, (struct heap_entry){frame->arrives_s, p->order, frame})) {
        p->counters.drops++;
        carrier_release(c, fresh);
        return;
    }
    if (!is_copy)
        c->spare = fresh;
}

/* Takes in the spare frame, which was read now. */
void pipe_admit(struct carrier *c, struct pipe *p, double now_s)
{
    const struct link_settings *s = &p->settings;
    struct frame *frame = c->spare;
    double deviation = 0.0;
    bool is_doubled = false;
    if (frame->length <= ETHERNET_BYTES)
        return;
    if (frame->length > FRAME_BYTES) {
        p->counters.drops++;
        return;
    }
    if (p->number >= 0 && !(frame->bytes[0] & GROUP_ADDRESS)) {
        uint64_t number = (uint64_t)p->number++;
        if (is_lost(p, number)) {
            p->counters.losses++;
            return;
        }
        is_doubled = s->duplicate != 0.0 && draw(s->duplicate_key, number) < s->duplicate;
        p->counters.duplicates += is_doubled;
        if (s->jitter_s != 0.0)
            deviation = deviation_s(c, p, number);
    }
    frame->entered_s = now_s;
    frame->arrives_s = now_s + max_of(p->delay_s + deviation, 0.0);
    if (!s->may_reorder) {
        frame->arrives_s = max_of(frame->arrives_s, p->last_arrival_s);
        p->last_arrival_s = frame->arrives_s;
    }
    if (is_doubled)
        set_off(c, p, true);
    set_off(c, p, false);
}

/* ---- pipe.py: control ------------------------------------------------------------------------ */

static double *copy_of(const double *values, size_t count)
{
    double *copy = malloc((count ? count : 1) * sizeof *copy);
    if (copy != NULL && count)
        memcpy(copy, values, count * sizeof *copy);
    return copy;
}

void pipe_free(struct carrier *c, struct pipe *p)
{
    struct frame *frame;
    while ((frame = take_first(&p->line)) != NULL || (frame = take_first(&p->fifo)) != NULL)
        carrier_release(c, frame);
    for (size_t i = 0; i < p->heap.count; i++)
        carrier_release(c, p->heap.entries[i].frame);
    carrier_release(c, p->sending);
    free(p->heap.entries);
    free(p->edges_s);
    free(p->cumulative_bits);
    free(p->speeds);
    free(p->opportunities_s);
    free(p);
}

struct pipe *pipe_new(const struct link_settings *settings, const struct link_arrays *arrays)
{
    struct pipe *p = calloc(1, sizeof *p);
    if (p == NULL)
        return NULL;
    p->settings = *settings;
    p->steps = arrays->steps;
    p->opportunities = arrays->opportunities;
    size_t edges = p->steps ? p->steps + 1 : 0;
    p->edges_s = copy_of(arrays->edges_s, edges);
    p->cumulative_bits = copy_of(arrays->cumulative_bits, edges);
    p->speeds = copy_of(arrays->speeds, p->steps);
    p->opportunities_s = copy_of(arrays->opportunities_s, p->opportunities);
    if (!p->edges_s || !p->cumulative_bits || !p->speeds || !p->opportunities_s) {
        pipe_free(NULL, p);
        return NULL;
    }
    p->delay_s = settings->delay_s;
    p->to_bad = settings->to_bad;
    p->loss_good = settings->loss_good;
    p->number = -1;
    p->last_arrival_s = -NEVER_S;
    p->leaves_s = p->border_s = p->begin_s = p->delivered_s = NEVER_S;
    p->capacity.kind = settings->has_bottleneck ? CONSTANT : NO_BOTTLENECK;
    p->capacity.bits_per_s = settings->mean_bits_per_s;
    p->pie.burst_s = PIE_BURST_S;
    p->was_idle = true;
    p->stride = 1;
    return p;
}

static struct capacity started_capacity(const struct pipe *p, double origin_s)
{
    struct capacity k = p->capacity;
    k.origin_s = origin_s;
    if (p->opportunities) {
        k.kind = OPPORTUNITIES;
        k.times_s = p->opportunities_s;
        k.times = p->opportunities;
        k.duration_s = p->settings.duration_s;
        k.left_bytes = OPPORTUNITY_BYTES;
    } else if (p->steps) {
        k.kind = TRACE;
        k.edges_s = p->edges_s;
        k.cumulative_bits = p->cumulative_bits;
        k.speeds = p->speeds;
        k.steps = p->steps;
        k.duration_s = p->edges_s[p->steps];
        k.total_bits = p->cumulative_bits[p->steps];
    }
    return k;
}

void pipe_start(struct carrier *c, struct pipe *p, double now_s)
{
    pipe_advance(c, p, now_s);
    p->capacity = started_capacity(p, now_s - p->settings.start_s);
    p->number = 0;
    p->begin_s = p->delivered_s = now_s;
    p->border_s = now_s + BIN_S;
    begin_bin(p);
    pipe_advance(c, p, now_s);
}

static void change_rate(struct pipe *p, double now_s, double bits_per_s)
{
    struct capacity before = p->capacity;
    p->capacity = (struct capacity){.kind = CONSTANT, .bits_per_s = bits_per_s};
    if (p->sending == NULL)
        return;
    double left = (double)size_of(p->sending) * BITS_PER_BYTE;
    if (p->leaves_s < NEVER_S) {
        double unsent = bits_until(&before, p->leaves_s) - bits_until(&before, now_s);
        left = min_of(max_of(unsent, 0.0), left);
    }
    p->leaves_s = constant_resume(&p->capacity, left, now_s);
}

/* What is NaN stays as it is. */
void pipe_change(
    struct carrier *c, struct pipe *p, double now_s, double bits_per_s, double delay_s,
    double loss)
{
    pipe_advance(c, p, now_s);
    if (!isnan(delay_s))
        p->delay_s = delay_s;
    if (!isnan(loss)) {
        p->to_bad = 0.0;
        p->is_bad = false;
        p->loss_good = loss;
    }
    if (!isnan(bits_per_s) && p->capacity.kind != NO_BOTTLENECK)
        change_rate(p, now_s, bits_per_s);
    pipe_advance(c, p, now_s);
}

/* Returns how many packets came out from the beginning on. */
int64_t pipe_finish(struct carrier *c, struct pipe *p, double now_s)
{
    pipe_advance(c, p, now_s);
    double end_s = p->sending == NULL ? now_s : max_of(p->delivered_s, p->begin_s);
    if (end_s - p->begin_s >= SHORTEST_BIN_S)
        close_bin(c, p, end_s);
    p->border_s = NEVER_S;
    carrier_silence(c, p);
    return p->delivered;
}
