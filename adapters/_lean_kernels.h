/* The lean pass for vectors of LANES floats. Included by _lean.c once per kind of processor, with
 * LANES, TARGET (what the compiler may use), NAMED (gives functions names of their own), WIDEN
 * (int8 from memory to a vector of floats), HALVES (the upper ones of the first vector of integers and
 * the lower ones of the second) and SUM (of the lanes of a vector).
 *
 * All threads of a team run `pass`; between its stages they meet.
 */

typedef float NAMED(vector) __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t NAMED(signed) __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t NAMED(bits) __attribute__((vector_size(4 * LANES), aligned(4)));
#define VECTOR NAMED(vector)
#define BITS NAMED(bits)
#define INLINE static inline TARGET __attribute__((always_inline))
#define AT(place) (*(VECTOR *)(place))
#define READ(place) (*(const VECTOR *)(place))

/* ---- products: columns `from` to `to` of outputs += inputs · weight --------------------------- */

/* Vectors that each input is multiplied with once it is loaded: as many as there are registers for. */
#define WIDE (LANES == 16 ? 2 : 1)
/* BLOCK rows of the weight at once: so many streams of memory, and outputs seldom touched. */
#define BLOCK 8

INLINE void NAMED(add_columns)(const float *inputs, int64_t stride, int64_t count,
                               const float *weight, int64_t out, float *outputs, int64_t line,
                               const int rows, const int vectors)
{
    VECTOR held[BLOCK][WIDE];
#pragma GCC unroll 8
    for (int j = 0; j < rows; j++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            held[j][v] = READ(weight + j * out + v * LANES);
            __builtin_prefetch(weight + (j + BLOCK) * out + v * LANES, 0, 3);
        }
    for (int64_t i = 0; i < count; i++) {
        VECTOR sums[WIDE];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sums[v] = READ(outputs + i * line + v * LANES);
#pragma GCC unroll 8
        for (int j = 0; j < rows; j++) {
            float one = inputs[i * stride + j];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sums[v] += held[j][v] * one;
        }
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            AT(outputs + i * line + v * LANES) = sums[v];
    }
}

INLINE void NAMED(add_rows)(const float *inputs, int64_t stride, int64_t count, const float *weight,
                            int64_t out, float *outputs, int64_t from, int64_t to, const int rows)
{
    int64_t n = from, line = padded(out);
    for (; n + WIDE * LANES <= to; n += WIDE * LANES)
        NAMED(add_columns)(inputs, stride, count, weight + n, out, outputs + n, line, rows, WIDE);
    for (; n + LANES <= to; n += LANES)
        NAMED(add_columns)(inputs, stride, count, weight + n, out, outputs + n, line, rows, 1);
    for (; n < to; n++)
        for (int64_t i = 0; i < count; i++)
            for (int j = 0; j < rows; j++)
                outputs[i * line + n] += inputs[i * stride + j] * weight[j * out + n];
}

static TARGET void NAMED(add_dense)(const float *inputs, int64_t count, const struct matrix *matrix,
                                    float *outputs, int64_t from, int64_t to)
{
    int64_t k = 0, in = matrix->in, out = matrix->out, line = padded(in);
    for (; k + BLOCK <= in; k += BLOCK)
        NAMED(add_rows)(inputs + k, line, count, matrix->dense + k * out, out, outputs, from, to,
                        BLOCK);
    for (; k < in; k++)
        NAMED(add_rows)(inputs + k, line, count, matrix->dense + k * out, out, outputs, from, to, 1);
}

/* TOKENS at once against one group of input channels of a panel: those that share their scales. */
#define TOKENS MOST_QUERIES
/* Bytes between the integers in use and those that are fetched into the first and the second cache:
 * evenly, and again whoever waits for them. */
#define NEAR 1152
#define FAR 8192
/* Floats between the scales in use and those that are fetched. */
#define SCALES_AHEAD (16 * PANEL)
/* Calls a function for at most TOKENS tokens with their number as a constant. */
#define EACH(tokens, function, ...)                                                                \
    switch (tokens) {                                                                              \
    case 1: NAMED(function)(__VA_ARGS__, 1); break;                                                \
    case 2: NAMED(function)(__VA_ARGS__, 2); break;                                                \
    case 3: NAMED(function)(__VA_ARGS__, 3); break;                                                \
    case 4: NAMED(function)(__VA_ARGS__, 4); break;                                                \
    case 5: NAMED(function)(__VA_ARGS__, 5); break;                                                \
    case 6: NAMED(function)(__VA_ARGS__, 6); break;                                                \
    case 7: NAMED(function)(__VA_ARGS__, 7); break;                                                \
    default: NAMED(function)(__VA_ARGS__, TOKENS);                                                 \
    }

/* Fetches what comes after a place of a panel, once for all its outputs. */
INLINE void NAMED(fetch)(const uint8_t *place, const int64_t n)
{
    if (n == 0) {
        __builtin_prefetch(place + NEAR, 0, 3);
        __builtin_prefetch(place + FAR, 0, 2);
    }
}

/* 2^12 times integers of 20 bits: those of a line from output n on, with their lower four at the
 * top of a half. What stands below these is of other inputs; the integers were rounded so that it is
 * part of their value. */
INLINE VECTOR NAMED(unpack)(const uint8_t *line, BITS low, const int64_t n)
{
    BITS pairs = *(const BITS *)(line + n % LINE * sizeof(float));
    BITS both = n >= LINE ? HALVES(pairs, low) : HALVES(low, pairs);
    both = n >= LINE ? both : both << 16 | both >> 16;
    return __builtin_convertvector((NAMED(signed))both, VECTOR);
}

/* WIDE vectors of outputs of a panel, from output n on. */
INLINE void NAMED(add_group)(const float *inputs, int64_t stride, const uint8_t *panel,
                             const int bits, const float *scales, float *outputs, int64_t line,
                             int64_t channels, const int64_t n, const int count)
{
    const int64_t row = bits == 8 ? PANEL : LINE * sizeof(float);
    VECTOR sums[TOKENS][WIDE];
#pragma GCC unroll 8
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int v = 0; v < WIDE; v++)
            sums[i][v] = (VECTOR){0};
    for (int64_t k = 0; k < channels; k += INPUTS) {
        int64_t few = channels - k < INPUTS ? channels - k : INPUTS;
        BITS low = {0};
        if (bits != 8) {
            NAMED(fetch)(panel, n);
            low = *(const BITS *)(panel + n % LINE * sizeof(float));
            panel += row;
        }
        for (int64_t j = 0; j < few; j++, low <<= 4, panel += row) {
            VECTOR held[WIDE];
            NAMED(fetch)(panel, n);
#pragma GCC unroll 2
            for (int v = 0; v < WIDE; v++)
                held[v] = bits == 8 ? WIDEN((const int8_t *)panel + n + v * LANES)
                                    : NAMED(unpack)(panel, low, n + v * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < count; i++) {
                float one = inputs[i * stride + k + j];
#pragma GCC unroll 2
                for (int v = 0; v < WIDE; v++)
                    sums[i][v] += held[v] * one;
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int v = 0; v < WIDE; v++)
            AT(outputs + i * line + v * LANES) += sums[i][v] * READ(scales + v * LANES);
}

INLINE void NAMED(add_panels)(const float *inputs, int64_t count, const struct matrix *matrix,
                              float *outputs, int64_t from, int64_t to, const int bits)
{
    int64_t in = matrix->in, line = padded(matrix->out), stride = padded(in);
    int64_t groups = (in + matrix->group - 1) / matrix->group;
    int64_t whole = bits == 8 ? in : (in + INPUTS - 1) / INPUTS * INPUTS;
    for (int64_t panel = from; panel < to; panel += PANEL)
        for (int64_t k = 0; k < in; k += matrix->group) {
            int64_t channels = in - k < matrix->group ? in - k : matrix->group;
            const uint8_t *group = matrix->panels + (panel * whole + k * PANEL) * bits / 8;
            const float *scales = matrix->scales + panel * groups + k / matrix->group * PANEL;
            for (int64_t n = 0; n < PANEL; n += LINE)
                __builtin_prefetch(scales + SCALES_AHEAD + n, 0, 2);
            for (int64_t i = 0; i < count; i += TOKENS)
                for (int64_t n = 0; n < PANEL; n += WIDE * LANES) {
                    const float *its = inputs + i * stride + k;
                    float *sums = outputs + i * line + panel + n;
                    EACH(count - i, add_group, its, stride, group, bits, scales + n, sums, line,
                         channels, n)
                }
        }
}

static TARGET void NAMED(add_integers)(const float *inputs, int64_t count,
                                       const struct matrix *matrix, float *outputs, int64_t from,
                                       int64_t to)
{
    NAMED(add_panels)(inputs, count, matrix, outputs, from, to, 20);
}

static TARGET void NAMED(add_bytes)(const float *inputs, int64_t count, const struct matrix *matrix,
                                    float *outputs, int64_t from, int64_t to)
{
    NAMED(add_panels)(inputs, count, matrix, outputs, from, to, 8);
}

/* The columns of one thread: whole panels. */
INLINE void NAMED(multiply)(const float *inputs, int64_t count, const struct matrix *matrix,
                            float *outputs, int is_sum, struct share share)
{
    int64_t from, to, line = padded(matrix->out);
    part(matrix->out, PANEL, share, &from, &to);
    for (int64_t i = 0; i < count; i++)
        for (int64_t n = from; n < to; n++) {
            float start = matrix->bias == NULL ? 0 : matrix->bias[n];
            outputs[i * line + n] = is_sum ? outputs[i * line + n] + start : start;
        }
    if (matrix->dense != NULL)
        NAMED(add_dense)(inputs, count, matrix, outputs, from, to);
    else if (matrix->bits == 8)
        NAMED(add_bytes)(inputs, count, matrix, outputs, from, to);
    else
        NAMED(add_integers)(inputs, count, matrix, outputs, from, to);
}

/* ---- functions of single values ----------------------------------------------------------------*/

/* e^x to about 1e-7 of its value, from 2^n e^f with |f| <= ln 2 / 2. */
INLINE float NAMED(exponential)(float x)
{
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f;
    int32_t n = (int32_t)(shifted < 0 ? shifted - 0.5f : shifted + 0.5f);
    float f = x - (float)n * 0.693359375f + (float)n * 2.12194440e-4f;
    float series = 1.9875691500e-4f;
    series = series * f + 1.3981999507e-3f;
    series = series * f + 8.3334519073e-3f;
    series = series * f + 4.1665795894e-2f;
    series = series * f + 1.6666665459e-1f;
    series = series * f + 5.0000001201e-1f;
    series = series * f * f + f + 1.0f;
    union {
        int32_t integer;
        float real;
    } power = {(n + 127) * (1 << 23)};
    return series * power.real;
}

/* The error function to 1.5e-7: Abramowitz and Stegun, 7.1.26. */
INLINE float NAMED(error_function)(float x)
{
    float size = x < 0 ? -x : x;
    float t = 1.0f / (1.0f + 0.3275911f * size);
    float series = 1.061405429f;
    series = series * t - 1.453152027f;
    series = series * t + 1.421413741f;
    series = series * t - 0.284496736f;
    series = series * t + 0.254829592f;
    float found = 1.0f - series * t * NAMED(exponential)(-size * size);
    return x < 0 ? -found : found;
}

INLINE void NAMED(activate)(float *values, int64_t from, int64_t to, enum activation activation)
{
    switch (activation) {
    case RELU:
        for (int64_t n = from; n < to; n++)
            values[n] = values[n] < 0 ? 0 : values[n];
        break;
    case SILU:
        for (int64_t n = from; n < to; n++)
            values[n] /= 1.0f + NAMED(exponential)(-values[n]);
        break;
    case GELU:
        for (int64_t n = from; n < to; n++) {
            float x = values[n];
            values[n] = 0.5f * x * (1.0f + NAMED(error_function)(x * 0.70710678f));
        }
        break;
    case GELU_TANH: /* x (1 + tanh u) / 2 = x / (1 + e^(-2u)) */
        for (int64_t n = from; n < to; n++) {
            float x = values[n];
            float u = 0.79788456f * (x + 0.044715f * x * x * x);
            values[n] = x / (1.0f + NAMED(exponential)(-2.0f * u));
        }
    }
}

/* ---- norms, rotation, attention ----------------------------------------------------------------*/

static TARGET void NAMED(normalise)(const float *inputs, int64_t count, int64_t size,
                                    const struct norm *norm, float *outputs, struct share share)
{
    int64_t from, to, line = padded(size);
    part(count, 1, share, &from, &to);
    for (int64_t i = from; i < to; i++) {
        const float *row = inputs + i * line;
        VECTOR sums = {0}, squares = {0};
        float mean = 0, square = 0;
        int64_t n = 0;
        if (norm->bias != NULL) { /* else the norm is of the root of the mean square */
            for (; n + LANES <= size; n += LANES)
                sums += READ(row + n);
            mean = SUM(sums);
            for (; n < size; n++)
                mean += row[n];
            mean /= (float)size;
        }
        for (n = 0; n + LANES <= size; n += LANES)
            squares += (READ(row + n) - mean) * (READ(row + n) - mean);
        square = SUM(squares);
        for (; n < size; n++)
            square += (row[n] - mean) * (row[n] - mean);
        float scale = 1.0f / sqrtf(square / (float)size + norm->eps);
        for (n = 0; n < size; n++)
            outputs[i * line + n] = (row[n] - mean) * scale * norm->weight[n]
                                    + (norm->bias == NULL ? 0 : norm->bias[n]);
    }
}

INLINE void NAMED(turn)(float *vector, const float *cosines, const float *sines, int64_t size)
{
    for (int64_t i = 0, half = size / 2; i < half; i++) {
        float first = vector[i], second = vector[i + half];
        vector[i] = first * cosines[i] - second * sines[i];
        vector[i + half] = second * cosines[i + half] + first * sines[i + half];
    }
}

/* Queries that are worked on at once: one per lane. */
#define QUERIES (LANES < MOST_QUERIES ? LANES : MOST_QUERIES)

/* How well some keys fit the queries, (size, LANES), of which each takes one lane. */
INLINE void NAMED(fit)(const float *queries, const float *keys, int64_t size, float *scores,
                       const int count)
{
    VECTOR sums[KEYS];
#pragma GCC unroll 4
    for (int j = 0; j < count; j++)
        sums[j] = (VECTOR){0};
    for (int64_t n = 0; n < size; n++) {
        VECTOR held = READ(queries + n * LANES);
#pragma GCC unroll 4
        for (int j = 0; j < count; j++)
            sums[j] += held * keys[j * size + n];
    }
#pragma GCC unroll 4
    for (int j = 0; j < count; j++)
        AT(scores + j * LANES) = sums[j];
}

/* Scores (keys, LANES) of the first `seen` keys, of each lane one more, to weights that sum to 1; 0
 * for the rest up to `most`. */
INLINE void NAMED(weigh)(float *scores, int64_t seen, int64_t most)
{
    float largest[LANES], totals[LANES];
    for (int i = 0; i < LANES; i++) {
        for (int64_t t = seen + i; t < most; t++)
            scores[t * LANES + i] = -INFINITY;
        largest[i] = -INFINITY;
        totals[i] = 0;
    }
    for (int64_t t = 0; t < most; t++)
        for (int i = 0; i < LANES; i++)
            largest[i] = scores[t * LANES + i] > largest[i] ? scores[t * LANES + i] : largest[i];
    for (int64_t t = 0; t < most; t++)
        for (int i = 0; i < LANES; i++) {
            float weight = NAMED(exponential)(scores[t * LANES + i] - largest[i]);
            weight = t < seen + i ? weight : 0;
            scores[t * LANES + i] = weight;
            totals[i] += weight;
        }
    for (int64_t t = 0; t < most; t++)
        for (int i = 0; i < LANES; i++)
            scores[t * LANES + i] /= totals[i];
}

/* Values mixed by weights (keys, LANES): of a few queries at once. */
INLINE void NAMED(mix)(const float *weights, const float *values, int64_t seen, int64_t size,
                       float *mixed, int64_t line, const int count)
{
    int64_t n = 0;
    for (; n + LANES <= size; n += LANES) {
        VECTOR sums[TOKENS];
#pragma GCC unroll 8
        for (int i = 0; i < count; i++)
            sums[i] = (VECTOR){0};
        for (int64_t t = 0; t < seen; t++) {
            VECTOR held = READ(values + t * size + n);
#pragma GCC unroll 8
            for (int i = 0; i < count; i++)
                sums[i] += held * weights[t * LANES + i];
        }
#pragma GCC unroll 8
        for (int i = 0; i < count; i++)
            AT(mixed + i * line + n) = sums[i];
    }
    for (; n < size; n++)
        for (int i = 0; i < count; i++) {
            float sum = 0;
            for (int64_t t = 0; t < seen; t++)
                sum += weights[t * LANES + i] * values[t * size + n];
            mixed[i * line + n] = sum;
        }
}

/* What at most QUERIES queries of a head see, the first of them `seen` keys, each one more; with room
 * for (size + most, LANES) floats. */
INLINE void NAMED(attend)(const float *queries, int64_t stride, int64_t count, const float *keys,
                          const float *values, int64_t seen, int64_t size, float scale, float *room,
                          float *mixed, int64_t line)
{
    int64_t most = seen + count - 1, t = 0;
    float *scores = room + size * LANES;
    for (int64_t n = 0; n < size; n++)
        for (int i = 0; i < LANES; i++)
            room[n * LANES + i] = i < count ? scale * queries[i * stride + n] : 0;
    for (; t + KEYS <= most; t += KEYS) {
        for (int64_t n = 0; n < KEYS * size; n += LINE)
            __builtin_prefetch(values + t * size + n, 0, 3);
        NAMED(fit)(room, keys + t * size, size, scores + t * LANES, KEYS);
    }
    for (; t < most; t++)
        NAMED(fit)(room, keys + t * size, size, scores + t * LANES, 1);
    NAMED(weigh)(scores, seen, most);
    EACH(count, mix, scores, values, most, size, mixed, line)
}

/* Keeps the new keys and values, and lets the queries look: all, or only the last of each row. */
static TARGET void NAMED(look)(const struct model *model, const struct question *question,
                               int64_t index, float *qkv, float *room, float *mixed,
                               int only_ends, struct share share)
{
    int64_t size = model->head_size, heads = model->heads, groups = model->key_heads;
    int64_t line = padded((heads + 2 * groups) * size), wide = padded(heads * size);
    int64_t each = heads / groups, from, to, asked = 0;
    part(groups, 1, share, &from, &to);
    for (int64_t b = 0, begin = 0; b < question->rows_count; b++) {
        const struct row *row = question->rows + b;
        int64_t plane = groups * row->places * size, first = only_ends ? row->fresh - 1 : 0;
        float *kept = row->memory + 2 * index * plane;
        for (int64_t g = from; g < to; g++) {
            float *keys = kept + g * row->places * size, *values = keys + plane;
            for (int64_t i = 0; i < row->fresh; i++) {
                float *token = qkv + (begin + i) * line;
                const float *cosines = question->cosines + (begin + i) * size;
                const float *sines = question->sines + (begin + i) * size;
                if (question->cosines != NULL) {
                    for (int64_t h = g * each; h < (g + 1) * each; h++)
                        NAMED(turn)(token + h * size, cosines, sines, size);
                    NAMED(turn)(token + (heads + g) * size, cosines, sines, size);
                }
                int64_t place = (row->known + i) * size;
                memcpy(keys + place, token + (heads + g) * size, sizeof(float) * size);
                memcpy(values + place, token + (heads + groups + g) * size, sizeof(float) * size);
            }
            for (int64_t h = g * each; h < (g + 1) * each; h++)
                for (int64_t i = first; i < row->fresh; i += QUERIES) {
                    int64_t few = row->fresh - i < QUERIES ? row->fresh - i : QUERIES;
                    NAMED(attend)(qkv + (begin + i) * line + h * size, line, few, keys, values,
                                  row->known + i + 1, size, model->scale, room,
                                  mixed + (asked + i - first) * wide + h * size, wide);
                }
        }
        begin += row->fresh;
        asked += row->fresh - first;
    }
}

/* ---- the pass ----------------------------------------------------------------------------------*/

static TARGET void NAMED(pass)(const struct model *model, const struct question *question,
                               const struct scratch *scratch, float *answers, struct share share)
{
    int64_t size = model->size, line = padded(size), count = question->tokens_count, from, to;
    float *hidden = scratch->hidden, *entered, *room = scratch->attention;
    room += share.index * attention_room(model, question);
    part(count, 1, share, &from, &to);
    for (int64_t i = from; i < to; i++)
        for (int64_t n = 0; n < size; n++)
            hidden[i * line + n] =
                question->tokens[i * size + n]
                + (model->places == NULL ? 0 : model->places[question->positions[i] * size + n]);
    if (model->enter.weight != NULL)
        NAMED(normalise)(hidden, count, size, &model->enter, hidden, share);
    for (int64_t index = 0; index < model->layers_count; index++) {
        const struct layer *layer = model->layers + index;
        int is_last = index == model->layers_count - 1;
        entered = hidden;
        if (layer->before_attention.weight != NULL) {
            entered = scratch->entered;
            NAMED(normalise)(hidden, count, size, &layer->before_attention, entered, share);
        }
        meet();
        NAMED(multiply)(entered, count, &layer->qkv, scratch->qkv, 0, share);
        meet();
        NAMED(look)(model, question, index, scratch->qkv, room, scratch->mixed, is_last, share);
        if (is_last) { /* of whose outputs only one per row is read */
            if (share.index == 0)
                keep_ends(question, size, hidden);
            count = question->rows_count;
        }
        meet();
        NAMED(multiply)(scratch->mixed, count, &layer->out, hidden, 1, share);
        meet();
        if (layer->after_attention.weight != NULL)
            NAMED(normalise)(hidden, count, size, &layer->after_attention, hidden, share);
        entered = hidden;
        if (layer->before_feed.weight != NULL) {
            entered = scratch->entered;
            NAMED(normalise)(hidden, count, size, &layer->before_feed, entered, share);
        }
        meet();
        int64_t inner = layer->up.out, step = padded(inner);
        part(inner, PANEL, share, &from, &to);
        NAMED(multiply)(entered, count, &layer->up, scratch->fed, 0, share);
        if (layer->gate.out) {
            NAMED(multiply)(entered, count, &layer->gate, scratch->gated, 0, share);
            for (int64_t i = 0; i < count; i++) {
                NAMED(activate)(scratch->gated + i * step, from, to, model->activation);
                for (int64_t n = from; n < to; n++)
                    scratch->fed[i * step + n] *= scratch->gated[i * step + n];
            }
        } else
            for (int64_t i = 0; i < count; i++)
                NAMED(activate)(scratch->fed + i * step, from, to, model->activation);
        meet();
        NAMED(multiply)(scratch->fed, count, &layer->down, hidden, 1, share);
        meet();
        if (layer->after_feed.weight != NULL)
            NAMED(normalise)(hidden, count, size, &layer->after_feed, hidden, share);
    }
    if (model->leave.weight != NULL)
        NAMED(normalise)(hidden, count, size, &model->leave, hidden, share);
    part(count, 1, share, &from, &to); /* of the same rows as the norm */
    for (int64_t i = from; i < to; i++)
        memcpy(answers + i * size, hidden + i * line, sizeof(float) * size);
}

#undef LANES
#undef TARGET
#undef NAMED
#undef WIDEN
#undef HALVES
#undef SUM
#undef VECTOR
#undef BITS
#undef INLINE
#undef AT
#undef READ
#undef BLOCK
#undef WIDE
#undef TOKENS
#undef QUERIES
#undef NEAR
#undef FAR
#undef SCALES_AHEAD
#undef EACH
