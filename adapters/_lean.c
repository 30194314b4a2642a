/* The lean pass of adapters/passes.py for a few tokens, in one call: see adapters/compiled.py.
 *
 * A handful of tokens costs what reading the weights costs. So these are read once, in the order in
 * which they lie, and everything else is kept short: one team of threads for the whole pass.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define ABI_VERSION 5 /* compiled.py has the same number; it changes with any struct or function */

enum activation { RELU, SILU, GELU, GELU_TANH };

#define MOST_QUERIES 8 /* that are worked on at once, with KEYS keys each */
#define KEYS 4
#define LINE 16 /* floats of a cache line */
#define MOST_LANES 16
#define PANEL 32 /* outputs */

/* A weight: floats (in, out) row by row; or integers with a scale per output and group of input
 * channels, in panels of outputs. Of 8 bits these are (panels, in, PANEL). Of 20 bits they are words of
 * 32, (panels, in / INPUTS, 1 + INPUTS, LINE): for every INPUTS inputs a line with the lower four bits
 * of all, then a line for each with its upper 16. A word has two outputs that are LINE apart, the first
 * in its lower half; of the lower bits, those of the first input stand highest in their half.
 */
#define INPUTS 4
struct matrix {
    const float *dense;
    const uint8_t *panels;
    const float *scales; /* (panels, groups, PANEL) */
    const float *bias;
    int64_t in, out, group, bits;
};

struct norm {
    const float *weight; /* NULL: no norm here */
    const float *bias;   /* NULL: of the root of the mean square */
    double eps;
};

struct layer {
    struct matrix qkv, out, up, down, gate; /* gate.out is 0 where there is none */
    struct norm before_attention, after_attention, before_feed, after_feed;
};

struct model {
    const struct layer *layers;
    const float *places; /* position embeddings, or NULL */
    struct norm enter, leave;
    int64_t layers_count, places_count, size, heads, key_heads, head_size, activation;
    double scale;
};

struct row {
    float *memory; /* (layers, 2, key_heads, places, head_size) */
    int64_t places, known, fresh;
};

struct question {
    const float *tokens; /* (tokens_count, size) */
    const int64_t *positions;
    const float *cosines, *sines; /* (tokens_count, head_size), or NULL */
    const struct row *rows;
    int64_t tokens_count, rows_count, longest;
};

struct scratch {
    float *hidden, *entered, *qkv, *mixed, *fed, *gated, *attention;
};

struct share {
    int64_t index, of;
};

/* What of `count` things, in lots of `lot`, falls to one thread. */
static void part(int64_t count, int64_t lot, struct share share, int64_t *from, int64_t *to)
{
    int64_t lots = (count + lot - 1) / lot;
    *from = lots * share.index / share.of * lot;
    *to = lots * (share.index + 1) / share.of * lot;
    *from = *from < count ? *from : count;
    *to = *to < count ? *to : count;
}

static void meet(void)
{
#ifdef _OPENMP
#pragma omp barrier
#endif
}

static int64_t whole_panels(int64_t width) { return (width + PANEL - 1) / PANEL * PANEL; }

/* Floats from one token to the next: an odd number of cache lines, so that the same place of
 * several tokens does not fall on the same place of the cache. */
static int64_t padded(int64_t width) { return whole_panels(width) + 16; }

/* Floats that one thread needs to let queries look: themselves and their scores, lane by lane. */
static int64_t attention_room(const struct model *model, const struct question *question)
{
    return MOST_LANES * (model->head_size + question->longest);
}

/* Moves the last token of each row to the front. */
static void keep_ends(const struct question *question, int64_t size, float *hidden)
{
    for (int64_t b = 0, end = -1; b < question->rows_count; b++) {
        end += question->rows[b].fresh;
        if (end != b)
            memcpy(hidden + b * padded(size), hidden + end * padded(size), sizeof(float) * size);
    }
}

#define LANES 4
#define TARGET
#define NAMED(name) plain_##name
#define SUM(vector) ((vector)[0] + (vector)[1] + (vector)[2] + (vector)[3])
#define HALVES(upper, lower) (((upper) & 0xffff0000) | ((lower) & 0x0000ffff))
#define WIDEN(place) ((plain_vector){(place)[0], (place)[1], (place)[2], (place)[3]})
#include "_lean_kernels.h"

#ifdef __x86_64__
static inline __attribute__((target("avx2"), always_inline)) float sum_of_8(__m256 vector)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps(vector, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAMED(name) avx2_##name
#define SUM(vector) sum_of_8((__m256)(vector))
#define WIDEN(place)                                                                               \
    ((avx2_vector)_mm256_cvtepi32_ps(                                                              \
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(place)))))
#define HALVES(upper, lower)                                                                       \
    ((avx2_bits)_mm256_blend_epi16((__m256i)(lower), (__m256i)(upper), 0xaa))
#include "_lean_kernels.h"

#define LANES 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define NAMED(name) avx512_##name
#define SUM(vector) _mm512_reduce_add_ps((__m512)(vector))
#define WIDEN(place)                                                                               \
    ((avx512_vector)_mm512_cvtepi32_ps(                                                            \
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(place)))))
#define HALVES(upper, lower) /* by bits of the first: those of the second, or else of the third */ \
    ((avx512_bits)_mm512_ternarylogic_epi32(_mm512_set1_epi32(-1 << 16), (__m512i)(upper),         \
                                            (__m512i)(lower), 0xca))
#include "_lean_kernels.h"
#endif

typedef void pass(const struct model *, const struct question *, const struct scratch *, float *,
                  struct share);

/* Of at most so many lanes; for tests. */
static pass *choose(int64_t lanes)
{
#ifdef __x86_64__
    __builtin_cpu_init();
    if (lanes >= 16 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl"))
        return avx512_pass;
    if (lanes >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return avx2_pass;
#endif
    (void)lanes;
    return plain_pass;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

int lean_abi(void) { return ABI_VERSION; }

static int has_places(const struct model *model, const struct question *question)
{
    for (int64_t b = 0; b < question->rows_count; b++)
        if (question->rows[b].known + question->rows[b].fresh > question->rows[b].places)
            return 0;
    for (int64_t i = 0; model->places != NULL && i < question->tokens_count; i++)
        if (question->positions[i] < 0 || question->positions[i] >= model->places_count)
            return 0;
    return 1;
}

/* Writes (rows_count, size) hidden states; 0, or -1: memory is short, -2: a token has no place. */
int lean_run(const struct model *model, const struct question *question, float *answers,
             int64_t threads, int64_t lanes)
{
    int64_t count = question->tokens_count, inner = 0, gated = 0;
    int64_t queries = model->heads * model->head_size;
    int64_t qkv = queries + 2 * model->key_heads * model->head_size;
    if (!has_places(model, question))
        return -2;
    for (int64_t index = 0; index < model->layers_count; index++) {
        inner = larger(inner, model->layers[index].up.out);
        gated = larger(gated, model->layers[index].gate.out);
    }
    int64_t hidden = count * padded(model->size), mixed = count * padded(queries);
    int64_t floats = 2 * hidden + count * padded(qkv) + mixed + count * (padded(inner) + padded(gated));
    float *memory = aligned_alloc(64, sizeof(float) * (floats + threads * attention_room(model, question)));
    if (memory == NULL)
        return -1;
    struct scratch scratch = {.hidden = memory, .entered = memory + hidden};
    scratch.mixed = scratch.entered + hidden;
    scratch.qkv = scratch.mixed + mixed;
    scratch.fed = scratch.qkv + count * padded(qkv);
    scratch.gated = scratch.fed + count * padded(inner);
    scratch.attention = scratch.gated + count * padded(gated);
    pass *run = choose(lanes);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    run(model, question, &scratch, answers,
        (struct share){omp_get_thread_num(), omp_get_num_threads()});
#else
    run(model, question, &scratch, answers, (struct share){0, 1});
#endif
    free(memory);
    return 0;
}
