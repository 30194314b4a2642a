/* The simulated cluster without losses and second attempts: machine.py, stages.py, pools.py, the
 * draws of durations.py and the queue of simulated.py, with the same results to the last bit.
 *
 * Python makes the arrays of the workload, calls cluster_advance() with each decision, and reads the
 * numbers of the stages where they lie. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ABI_VERSION 1
#define NOWHERE (-1)
#define COMMON 0 /* pool of those at no job, and where promises to leave executors idle point */
#define LEVELS 8
#define WAVES 3

enum wave { FRESH, FIRST, REST };
enum kind { TASK_FINISHED, EXECUTOR_ARRIVED };
enum answer { FINISHED = 0, ASKS = 1, STUCK = -1, INVALID = -2 };

static const int32_t LEVEL[LEVELS] = {5, 10, 20, 40, 50, 60, 80, 100};

struct setup { /* compiled.py has the same; arrays belong to Python */
    int64_t jobs, stages, executors;
    double moving_delay_ms;
    const double *arrived_ms;      /* per job */
    const int32_t *first_stage;    /* per job, and one beyond */
    const int32_t *tasks;          /* per stage */
    const int32_t *first_child;    /* per stage, and one beyond */
    const int32_t *children;       /* numbers of stages */
    const uint64_t *keys;          /* per stage, of its draws */
    const int32_t *table;          /* per stage: which durations */
    const int64_t *first_choice;   /* per table, wave and level, and one beyond */
    const double *choices_ms;
    /* Written here, read by Python. */
    int32_t *remaining, *running, *coming, *schedulable, *done; /* per stage */
    int32_t *supply;                                            /* per job */
    double *finished_ms;                                        /* per job */
    int32_t *changed_stages, *changed_jobs;
};

struct state { /* likewise */
    double now_ms;
    int64_t events, arrived, finished, committable, source_job, changed_stages, changed_jobs;
};

struct promise {
    int32_t pool, count; /* to the pool of a stage, or COMMON */
    struct promise *next;
};

struct pool {
    int32_t members, promised;
    struct promise *oldest, *youngest;
};

struct event {
    double at_ms;
    int64_t number;
    int32_t executor, kind;
};

struct cluster {
    struct setup in;
    struct state out;
    struct pool *pools; /* common, of jobs, of stages */
    struct promise *promises, *free_promise;
    struct event *queue;
    int64_t queued, numbered;
    int32_t *at, *moving_to, *doing, *last_stage;                      /* per executor */
    int32_t *unfinished, *open_parents, *unsaturated_parents, *job_of; /* per stage */
    uint8_t *saturated, *chosen, *stage_changed;
    int32_t *next_task;
    int32_t *stages_left, *local, *unsaturated, *choices, *before, *after; /* per job */
    uint8_t *job_changed;
    int32_t first_active, last_active;
    int32_t *round; /* stages chosen in this round */
    int64_t round_size;
    int32_t source; /* pool, or NOWHERE */
    void *block;
};

/* ---- draws ----------------------------------------------------------------------------------- */

static uint64_t mixed(uint64_t value) {
    uint64_t z = value + 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

static int level_for(int32_t executors, uint64_t low_bits) {
    int right = 0;
    while (right < LEVELS && LEVEL[right] < executors) right++;
    if (right == LEVELS) return right - 1;
    if (right == 0 || LEVEL[right] == executors) return right;
    int left = right - 1;
    uint64_t place = low_bits * (uint64_t)(LEVEL[right] - LEVEL[left]) >> 32;
    return place < (uint64_t)(executors - LEVEL[left]) ? left : right;
}

static double draw_ms(struct cluster *c, int32_t stage, int32_t task, int wave, int32_t local) {
    uint64_t bits = mixed(c->in.keys[stage] ^ (uint64_t)task);
    int level = level_for(local, bits & 0xFFFFFFFFULL);
    int64_t row = ((int64_t)c->in.table[stage] * WAVES + wave) * LEVELS + level;
    int64_t first = c->in.first_choice[row];
    uint64_t count = (uint64_t)(c->in.first_choice[row + 1] - first);
    return c->in.choices_ms[first + (int64_t)((bits >> 32) * count >> 32)];
}

/* ---- queue: a heap by time, then by number ---------------------------------------------------- */

static int is_before(const struct event *a, const struct event *b) {
    return a->at_ms < b->at_ms || (a->at_ms == b->at_ms && a->number < b->number);
}

static void push(struct cluster *c, double at_ms, int32_t executor, int32_t kind) {
    struct event event = {at_ms, c->numbered++, executor, kind};
    int64_t place = c->queued++;
    while (place > 0) {
        int64_t parent = (place - 1) / 2;
        if (!is_before(&event, &c->queue[parent])) break;
        c->queue[place] = c->queue[parent];
        place = parent;
    }
    c->queue[place] = event;
}

static struct event pop(struct cluster *c) {
    struct event top = c->queue[0], last = c->queue[--c->queued];
    int64_t place = 0;
    for (;;) {
        int64_t child = 2 * place + 1;
        if (child >= c->queued) break;
        if (child + 1 < c->queued && is_before(&c->queue[child + 1], &c->queue[child])) child++;
        if (!is_before(&c->queue[child], &last)) break;
        c->queue[place] = c->queue[child];
        place = child;
    }
    c->queue[place] = last;
    return top;
}

/* ---- stages ----------------------------------------------------------------------------------- */

static void stage_changes(struct cluster *c, int32_t stage) {
    if (!c->stage_changed[stage]) {
        c->stage_changed[stage] = 1;
        c->in.changed_stages[c->out.changed_stages++] = stage;
    }
}

static void job_changes(struct cluster *c, int32_t job) {
    if (!c->job_changed[job]) {
        c->job_changed[job] = 1;
        c->in.changed_jobs[c->out.changed_jobs++] = job;
    }
}

static int32_t demand(const struct cluster *c, int32_t stage) {
    return c->in.remaining[stage] - c->in.coming[stage];
}

static void refresh(struct cluster *c, int32_t stage) {
    stage_changes(c, stage);
    uint8_t saturated = demand(c, stage) <= 0;
    int32_t job = c->job_of[stage];
    if (saturated != c->saturated[stage]) {
        c->saturated[stage] = saturated;
        int step = saturated ? -1 : 1;
        c->unsaturated[job] += step;
        for (int32_t n = c->in.first_child[stage]; n < c->in.first_child[stage + 1]; n++) {
            c->unsaturated_parents[c->in.children[n]] += step;
            refresh(c, c->in.children[n]);
        }
    }
    int32_t schedulable = !(saturated || c->unsaturated_parents[stage] || c->chosen[stage]);
    if (schedulable != c->in.schedulable[stage]) {
        c->in.schedulable[stage] = schedulable;
        c->choices[job] += schedulable ? 1 : -1;
    }
}

static void come(struct cluster *c, int32_t stage, int32_t executors) {
    c->in.coming[stage] += executors;
    refresh(c, stage);
}

static void add_supply(struct cluster *c, int32_t job, int32_t executors) {
    c->in.supply[job] += executors;
    job_changes(c, job);
}

static int may_take(const struct cluster *c, int32_t job, int32_t source_job) {
    return c->choices[job] > 0 && (job == source_job || c->in.supply[job] < c->in.executors);
}

static int can_schedule(const struct cluster *c, int32_t source_job) {
    for (int32_t job = c->first_active; job != NOWHERE; job = c->after[job])
        if (may_take(c, job, source_job)) return 1;
    return 0;
}

static int32_t best_of(const struct cluster *c, int32_t job) {
    int32_t best = NOWHERE;
    int best_open = 0;
    for (int32_t stage = c->in.first_stage[job]; stage < c->in.first_stage[job + 1]; stage++) {
        if (!c->in.schedulable[stage]) continue;
        int open = c->open_parents[stage] == 0;
        if (best == NOWHERE || open > best_open ||
            (open == best_open && demand(c, stage) > demand(c, best))) {
            best = stage;
            best_open = open;
        }
    }
    return best;
}

static int32_t other_work(const struct cluster *c, int32_t job) {
    if (job != NOWHERE && c->choices[job] > 0) return best_of(c, job);
    for (int32_t one = c->first_active; one != NOWHERE; one = c->after[one])
        if (may_take(c, one, job)) return best_of(c, one);
    return NOWHERE;
}

/* ---- pools ------------------------------------------------------------------------------------ */

static int32_t pool_of_job(int32_t job) { return 1 + job; }

static int32_t pool_of_stage(const struct cluster *c, int32_t stage) {
    return 1 + (int32_t)c->in.jobs + stage;
}

static int32_t stage_of_pool(const struct cluster *c, int32_t pool) {
    return pool - 1 - (int32_t)c->in.jobs;
}

static int32_t job_of_pool(const struct cluster *c, int32_t pool) {
    if (pool == COMMON) return NOWHERE;
    return pool <= c->in.jobs ? pool - 1 : c->job_of[stage_of_pool(c, pool)];
}

static int32_t committable(const struct cluster *c, int32_t pool) {
    return c->pools[pool].members - c->pools[pool].promised;
}

static void put(struct cluster *c, int32_t executor, int32_t pool) {
    if (c->at[executor] == pool) return;
    if (c->at[executor] != NOWHERE) c->pools[c->at[executor]].members--;
    if (pool != NOWHERE) c->pools[pool].members++;
    c->at[executor] = pool;
}

static void promise(struct cluster *c, int32_t source, int32_t target, int32_t count) {
    struct pool *pool = &c->pools[source];
    pool->promised += count;
    for (struct promise *one = pool->oldest; one; one = one->next) {
        if (one->pool == target) {
            one->count += count;
            return;
        }
    }
    struct promise *made = c->free_promise;
    c->free_promise = made->next;
    *made = (struct promise){target, count, NULL};
    if (pool->youngest)
        pool->youngest->next = made;
    else
        pool->oldest = made;
    pool->youngest = made;
}

static int32_t take_promise(struct cluster *c, int32_t source) {
    struct pool *pool = &c->pools[source];
    struct promise *taken = pool->oldest;
    int32_t target = taken->pool;
    pool->promised--;
    if (--taken->count == 0) {
        pool->oldest = taken->next;
        if (!pool->oldest) pool->youngest = NULL;
        taken->next = c->free_promise;
        c->free_promise = taken;
    }
    return target;
}

static void add_promised(struct cluster *c, int32_t source, int32_t stage, int32_t count) {
    int32_t job = c->job_of[stage];
    if (job_of_pool(c, source) != job) add_supply(c, job, count);
}

/* ---- executors -------------------------------------------------------------------------------- */

static void start(struct cluster *c, int32_t executor, int32_t stage) {
    int32_t task = c->next_task[stage]++, last = c->last_stage[executor];
    c->in.running[stage]++;
    if (--c->in.remaining[stage] == c->in.coming[stage])
        refresh(c, stage);
    else
        stage_changes(c, stage);
    int wave = last == stage ? REST : last == NOWHERE ? FRESH : FIRST;
    c->doing[executor] = c->last_stage[executor] = stage;
    double took_ms = draw_ms(c, stage, task, wave, c->local[c->job_of[stage]]);
    push(c, c->out.now_ms + took_ms, executor, TASK_FINISHED);
}

static void rest(struct cluster *c, int32_t executor) {
    int32_t job = job_of_pool(c, c->at[executor]);
    if (job == NOWHERE) return;
    if (c->unsaturated[job] > 0) {
        put(c, executor, pool_of_job(job));
        return;
    }
    c->local[job]--;
    add_supply(c, job, -1);
    put(c, executor, COMMON);
}

static void cool_down(struct cluster *c, int32_t executor) {
    c->last_stage[executor] = NOWHERE;
    rest(c, executor);
}

static void send_executor(struct cluster *c, int32_t executor, int32_t stage) {
    int32_t here = job_of_pool(c, c->at[executor]);
    while (c->in.remaining[stage] == 0) { /* its stage needs it no longer */
        stage = other_work(c, here);
        if (stage == NOWHERE) {
            cool_down(c, executor);
            return;
        }
    }
    int32_t job = c->job_of[stage];
    if (job == here) {
        if (c->open_parents[stage]) {
            cool_down(c, executor);
        } else {
            put(c, executor, pool_of_stage(c, stage));
            start(c, executor, stage);
        }
        return;
    }
    if (here != NOWHERE) {
        c->local[here]--;
        add_supply(c, here, -1);
    }
    add_supply(c, job, 1);
    come(c, stage, 1);
    put(c, executor, NOWHERE);
    c->moving_to[executor] = stage;
    c->last_stage[executor] = NOWHERE;
    push(c, c->out.now_ms + c->in.moving_delay_ms, executor, EXECUTOR_ARRIVED);
}

static void keep_promise(struct cluster *c, int32_t executor, int32_t source) {
    int32_t target = take_promise(c, source);
    if (target == COMMON) {
        rest(c, executor);
        return;
    }
    int32_t stage = stage_of_pool(c, target);
    add_promised(c, source, stage, -1);
    come(c, stage, -1);
    send_executor(c, executor, stage);
}

static int is_idle_at(const struct cluster *c, int32_t executor, int32_t pool) {
    return c->at[executor] == pool && c->doing[executor] == NOWHERE;
}

static void cool_down_all(struct cluster *c, int32_t pool) {
    if (pool == COMMON || c->pools[pool].members == 0) return;
    for (int32_t executor = 0; executor < c->in.executors; executor++)
        if (is_idle_at(c, executor, pool)) cool_down(c, executor);
}

/* ---- rounds of decisions ---------------------------------------------------------------------- */

static int32_t source_job(const struct cluster *c) {
    int32_t job = job_of_pool(c, c->source);
    return job == NOWHERE || c->stages_left[job] == 0 ? NOWHERE : job;
}

static int ask(struct cluster *c) {
    c->out.committable = committable(c, c->source);
    c->out.source_job = source_job(c);
    return ASKS;
}

static int offer(struct cluster *c, int32_t pool) {
    if (committable(c, pool) <= 0) return 0;
    c->source = pool;
    if (can_schedule(c, source_job(c))) return ask(c);
    /* In the common pool executors are idle for good, but their next task is that of fresh ones. */
    cool_down_all(c, pool);
    c->source = NOWHERE;
    return 0;
}

static void end_round(struct cluster *c) {
    int32_t source = c->source, left = committable(c, source);
    for (int64_t n = 0; n < c->round_size; n++) {
        c->chosen[c->round[n]] = 0;
        refresh(c, c->round[n]);
    }
    c->round_size = 0;
    if (left > 0 && source != COMMON) promise(c, source, COMMON, left);
    uint8_t *idle = (uint8_t *)(c->round + c->in.stages); /* those idle before any is sent */
    for (int32_t executor = 0; executor < c->in.executors; executor++)
        idle[executor] = (uint8_t)is_idle_at(c, executor, source);
    for (int32_t executor = 0; executor < c->in.executors && c->pools[source].oldest; executor++)
        if (idle[executor]) keep_promise(c, executor, source);
    c->source = NOWHERE;
}

static int decide(struct cluster *c, int64_t job, int64_t index, int64_t asked) {
    if (job != NOWHERE) {
        if (job < 0 || job >= c->out.arrived || index < 0 || asked < 1) return INVALID;
        int64_t number = c->in.first_stage[job] + index;
        if (number >= c->in.first_stage[job + 1]) return INVALID;
        int32_t stage = (int32_t)number, from = source_job(c);
        if (!c->in.schedulable[stage] || !may_take(c, (int32_t)job, from)) return INVALID;
        int32_t count = committable(c, c->source);
        if (demand(c, stage) < count) count = demand(c, stage);
        if (asked < count) count = (int32_t)asked;
        add_promised(c, c->source, stage, count);
        promise(c, c->source, pool_of_stage(c, stage), count);
        come(c, stage, count);
        c->chosen[stage] = 1;
        refresh(c, stage);
        c->round[c->round_size++] = stage;
        if (committable(c, c->source) > 0 && can_schedule(c, from)) return ask(c);
    }
    end_round(c);
    return 0;
}

/* ---- events ----------------------------------------------------------------------------------- */

static int add_job(struct cluster *c) {
    int32_t job = (int32_t)c->out.arrived++;
    c->before[job] = c->last_active;
    c->after[job] = NOWHERE;
    if (c->last_active == NOWHERE)
        c->first_active = job;
    else
        c->after[c->last_active] = job;
    c->last_active = job;
    for (int32_t stage = c->in.first_stage[job]; stage < c->in.first_stage[job + 1]; stage++)
        refresh(c, stage);
    job_changes(c, job);
    return offer(c, COMMON);
}

static void arrive(struct cluster *c, int32_t executor) {
    int32_t stage = c->moving_to[executor];
    c->moving_to[executor] = NOWHERE;
    come(c, stage, -1);
    c->local[c->job_of[stage]]++;
    put(c, executor, pool_of_stage(c, stage));
    if (c->in.remaining[stage] > 0 && c->open_parents[stage])
        cool_down(c, executor);
    else if (c->in.remaining[stage] > 0)
        start(c, executor, stage);
    else
        send_executor(c, executor, stage);
}

static int finish_stage(struct cluster *c, int32_t executor, int32_t stage) {
    int32_t job = c->job_of[stage], pool = pool_of_stage(c, stage);
    int unlocked = 0;
    c->in.done[stage] = 1;
    for (int32_t n = c->in.first_child[stage]; n < c->in.first_child[stage + 1]; n++)
        unlocked |= --c->open_parents[c->in.children[n]] == 0;
    if (--c->stages_left[job] == 0) {
        int32_t before = c->before[job], after = c->after[job];
        if (before == NOWHERE) c->first_active = after; else c->after[before] = after;
        if (after == NOWHERE) c->last_active = before; else c->before[after] = before;
        c->in.finished_ms[job] = c->out.now_ms;
        c->out.finished++;
        cool_down_all(c, pool_of_job(job));
    }
    c->doing[executor] = NOWHERE;
    if (c->pools[pool].oldest) {
        keep_promise(c, executor, pool);
        return unlocked ? offer(c, pool_of_job(job)) : 0;
    }
    if (unlocked) {
        rest(c, executor);
        return offer(c, pool_of_job(job));
    }
    c->last_stage[executor] = NOWHERE;
    return offer(c, pool);
}

static int finish_task(struct cluster *c, int32_t executor) {
    int32_t stage = c->doing[executor], pool = pool_of_stage(c, stage);
    c->in.running[stage]--;
    stage_changes(c, stage);
    if (--c->unfinished[stage] == 0) return finish_stage(c, executor, stage);
    if (c->in.remaining[stage] > 0) {
        start(c, executor, stage);
        return 0;
    }
    c->doing[executor] = NOWHERE;
    if (c->pools[pool].oldest) {
        keep_promise(c, executor, pool);
        return 0;
    }
    c->last_stage[executor] = NOWHERE;
    return offer(c, pool);
}

/* What happens while a decision is made is noticed when it has been made. */
static void pass_time(struct cluster *c, double at_ms) {
    if (at_ms > c->out.now_ms) c->out.now_ms = at_ms;
}

static int run(struct cluster *c) {
    int asks = 0;
    while (!asks && c->out.finished < c->in.jobs) {
        int64_t next = c->out.arrived;
        if (next < c->in.jobs && (c->queued == 0 || c->in.arrived_ms[next] <= c->queue[0].at_ms)) {
            pass_time(c, c->in.arrived_ms[next]);
            asks = add_job(c);
        } else if (c->queued == 0) {
            return STUCK;
        } else {
            struct event event = pop(c);
            pass_time(c, event.at_ms);
            if (event.kind == TASK_FINISHED)
                asks = finish_task(c, event.executor);
            else
                arrive(c, event.executor);
        }
        c->out.events++;
    }
    return asks ? ASKS : FINISHED;
}

/* ---- for Python ------------------------------------------------------------------------------- */

int cluster_abi(void) { return ABI_VERSION; }

void cluster_free(struct cluster *c) {
    if (c) free(c->block);
    free(c);
}

struct cluster *cluster_new(const struct setup *setup) {
    struct cluster *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->in = *setup;
    size_t jobs = (size_t)setup->jobs, stages = (size_t)setup->stages;
    size_t executors = (size_t)setup->executors, pools = 1 + jobs + stages;
    size_t promises = executors + 2;
    size_t ints = 4 * executors + 6 * stages + 6 * jobs, bytes = 3 * stages + jobs + executors;
    size_t size = pools * sizeof *c->pools + promises * sizeof *c->promises +
                  (executors + 1) * sizeof *c->queue + ints * sizeof(int32_t) + bytes;
    char *at = c->block = calloc(1, size);
    if (!at) {
        free(c);
        return NULL;
    }
#define TAKE(name, count) (c->name = (void *)at, at += (count) * sizeof *c->name)
    TAKE(pools, pools);
    TAKE(promises, promises);
    TAKE(queue, executors + 1);
    TAKE(at, executors);
    TAKE(moving_to, executors);
    TAKE(doing, executors);
    TAKE(last_stage, executors);
    TAKE(unfinished, stages);
    TAKE(open_parents, stages);
    TAKE(unsaturated_parents, stages);
    TAKE(job_of, stages);
    TAKE(next_task, stages);
    TAKE(stages_left, jobs);
    TAKE(local, jobs);
    TAKE(unsaturated, jobs);
    TAKE(choices, jobs);
    TAKE(before, jobs);
    TAKE(after, jobs);
    TAKE(round, stages); /* and behind it a byte per executor: see end_round() */
    at += executors;
    TAKE(saturated, stages);
    TAKE(chosen, stages);
    TAKE(stage_changed, stages);
    TAKE(job_changed, jobs);
#undef TAKE
    for (size_t n = 0; n + 1 < promises; n++) c->promises[n].next = &c->promises[n + 1];
    c->free_promise = c->promises;
    for (size_t job = 0; job < jobs; job++) {
        int32_t first = setup->first_stage[job], end = setup->first_stage[job + 1];
        c->stages_left[job] = c->unsaturated[job] = end - first;
        for (int32_t stage = first; stage < end; stage++) c->job_of[stage] = (int32_t)job;
    }
    for (size_t stage = 0; stage < stages; stage++) {
        setup->remaining[stage] = c->unfinished[stage] = setup->tasks[stage];
        for (int32_t n = setup->first_child[stage]; n < setup->first_child[stage + 1]; n++) {
            c->open_parents[setup->children[n]]++;
            c->unsaturated_parents[setup->children[n]]++;
        }
    }
    for (size_t executor = 0; executor < executors; executor++) {
        c->at[executor] = COMMON;
        c->moving_to[executor] = c->doing[executor] = c->last_stage[executor] = NOWHERE;
    }
    c->pools[COMMON].members = (int32_t)executors;
    c->first_active = c->last_active = c->source = NOWHERE;
    return c;
}

const struct state *cluster_state(const struct cluster *c) { return &c->out; }

/* Runs to the first question. */
int cluster_begin(struct cluster *c) { return run(c); }

/* Takes a decision (job NOWHERE: leave them idle) that took so long; runs to the next question. */
int cluster_advance(struct cluster *c, int64_t job, int64_t stage, int64_t executors,
                    double decision_ms) {
    if (c->source == NOWHERE) return INVALID;
    for (int64_t n = 0; n < c->out.changed_stages; n++)
        c->stage_changed[c->in.changed_stages[n]] = 0;
    for (int64_t n = 0; n < c->out.changed_jobs; n++) c->job_changed[c->in.changed_jobs[n]] = 0;
    c->out.changed_stages = c->out.changed_jobs = 0;
    c->out.now_ms += decision_ms;
    int result = decide(c, job, stage, executors);
    return result ? result : run(c);
}
