/* The kernels of the sparse runtime: an interpreter of kernel steps over float32 buffers.

   A buffer stores a block of V examples as [channel][row][column][V] with a border of zeros. Then a convolution with
   any kernel size is, for each output channel, a sum of weights times contiguous rows of inputs at fixed offsets, and a
   linear layer is the same with one pixel. All shapes are data (see lowering.py): nothing here is compiled for one
   network.

   A step may write one buffer of the arena or one tensor, and read others, its tables, and up to a vector behind the
   last float of a buffer (arena.py leaves room there). bounds.py proves this for every step before it runs: an op that
   touches other memory needs another proof there. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(SIMD_WIDTH) /* given to the compiler: GCC builds vectors of any width on any processor */
#elif defined(__AVX512F__)
#define SIMD_WIDTH 16
#elif defined(__AVX__)
#define SIMD_WIDTH 8
#else
#define SIMD_WIDTH 4
#endif

typedef int64_t i64;
typedef float vec __attribute__((vector_size(4 * SIMD_WIDTH), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * SIMD_WIDTH), aligned(4), may_alias));

enum { SUM, MAX, GATHER, MEAN, NORM, COPY };
enum { NONE, CLAMP, LEAKY, ELU, GELU, GELU_TANH, SILU, SIGMOID, TANH, HARDSIGMOID, HARDSWISH };

/* FIELDS in arena.py lists the same fields. All are 64-bit integers, so that Python can fill them as one array.
   Offsets and strides count floats. */
typedef struct {
    i64 op, act;
    float low, high;               /* CLAMP: limits; LEAKY, ELU: low is the factor; NORM: epsilon, 1 or 0 */
    i64 in, out, residual;         /* offsets in the arena; residual < 0: none */
    i64 in_tensor, in_example;     /* COPY: from this tensor (< 0: the arena); floats of an example */
    i64 out_tensor, out_example;   /* COPY: to this tensor (< 0: the arena); floats of an example */
    i64 channels, out_channel, residual_channel, gate; /* gate: multiply the sum by the residual, instead of adding */
    i64 runs, in_run, out_run, residual_run, length; /* a channel consists of runs of `length` floats */
    i64 in_step, out_step, parts;  /* floats between vectors of a run; runs of a row, which start a vector apart */
    i64 chain;                     /* number of following steps that add to the sums of this one, tile by tile */
    i64 slice, group;              /* channels of a slice; slices of a group, which one thread sums */
    i64 gaps, row, pitch;          /* image in one run: borders between rows, floats of a row, floats between rows */
    i64 in_channel, pixels, block; /* MEAN; block: examples of a block */
    i64 row_starts, offsets, values, bias, order; /* addresses */
    i64 size[5], in_stride[5], out_stride[5], split; /* COPY: five loops, the last two over pixels and examples */
} step;

i64 swamp_simd_width(void) { return SIMD_WIDTH; }
i64 swamp_fields(void) { return sizeof(step) / sizeof(i64); }

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }

/* The numbers at SIMD_WIDTH offsets. gcc 12 makes single loads of the plain loop. */
static inline vec gathered(const float *in, const int32_t *at) {
#if SIMD_WIDTH == 16 && defined(__AVX512F__)
    return (vec)_mm512_i32gather_ps(_mm512_loadu_si512(at), in, 4);
#elif SIMD_WIDTH == 8 && defined(__AVX2__)
    return (vec)_mm256_i32gather_ps(in, _mm256_loadu_si256((const __m256i *)at), 4);
#else
    vec v;
    for (int j = 0; j < SIMD_WIDTH; j++) v[j] = in[at[j]];
    return v;
#endif
}

static inline vec blend(ivec which, vec yes, vec no) { return (vec)((which & (ivec)yes) | (~which & (ivec)no)); }

static inline vec clamped(vec v, float low, float high) {
    vec zero = {0};
    v = blend(v < zero + low, zero + low, v); /* passes NaN on */
    return blend(v > zero + high, zero + high, v);
}

/* exp(x) - 1 and exp(x) of numbers below 0: 2^n times a polynomial. Without the subtraction of 1, which would leave
   little of numbers near 0. */
static inline vec exp_minus_1(vec x, vec *whole) {
    x = blend(x < (vec){0} - 87.0f, (vec){0} - 87.0f, x);
    vec scaled = x * 1.44269504f - 0.5f;
    ivec n = __builtin_convertvector(scaled, ivec);
    vec r = x - __builtin_convertvector(n, vec) * 0.69314718f;
    vec p = r * (1.0f + r * (0.5f + r * (1.6666667e-1f + r * (4.1666667e-2f +
                                        r * (8.3333333e-3f + r * 1.3888889e-3f)))));
    vec power = (vec)((n + 127) << 23);
    *whole = (1.0f + p) * power;
    return p * power + (power - 1.0f);
}

static inline vec exp_negative(vec x) {
    vec whole;
    exp_minus_1(x, &whole);
    return whole;
}

static inline vec absolute(vec x) { return blend(x < (vec){0}, -x, x); }

static inline vec sigmoid(vec x) {
    vec e = exp_negative(-absolute(x));
    return blend(x < (vec){0}, e, (vec){0} + 1.0f) / (1.0f + e);
}

/* Phi(x), with erf from Abramowitz and Stegun, formula 7.1.26 (error below 2e-7). */
static inline vec normal_cdf(vec x) {
    vec a = absolute(x) * 0.70710678f;
    a = blend(a > (vec){0} + 9.0f, (vec){0} + 9.0f, a);
    vec t = 1.0f / (1.0f + 0.3275911f * a);
    vec tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    tail *= 0.5f * exp_negative(-a * a);
    return blend(x < (vec){0}, tail, 1.0f - tail);
}

/* x * part, where part becomes 0 towards -inf: there the product is 0, not -inf times a small number. */
static inline vec gated(vec x, vec part) { return blend(x < (vec){0} - 80.0f, (vec){0}, x * part); }

static __attribute__((noinline)) vec curved(const step *s, vec v) {
    vec zero = {0}, whole, small;
    switch (s->act) {
    case LEAKY: return blend(v < zero, v * s->low, v);
    case ELU: return blend(v < zero, s->low * exp_minus_1(v, &whole), v);
    case GELU: return gated(v, normal_cdf(v));
    case GELU_TANH: return gated(v, sigmoid(1.5957691f * (v + 0.044715f * v * v * v)));
    case SILU: return gated(v, sigmoid(v));
    case SIGMOID: return sigmoid(v);
    case TANH:
        small = exp_minus_1(-2.0f * absolute(v), &whole);
        small = small / (1.0f + whole);
        return blend(v < zero, small, -small);
    case HARDSIGMOID: return clamped(v + 3.0f, 0, 6) / 6.0f;
    default: return v * clamped(v + 3.0f, 0, 6) / 6.0f; /* HARDSWISH */
    }
}

/* The last part of a sum: add or multiply the residual, if any, and apply the activation. */
static inline vec finished(const step *s, vec sum, const float *residual) {
    if (residual) sum = s->gate ? sum * load(residual) : sum + load(residual);
    if (s->act == NONE) return sum;
    return s->act == CLAMP ? clamped(sum, s->low, s->high) : curved(s, sum);
}

/* R vectors of each output channel in [from, to). With few vectors, U partial sums hide the latency of additions. */
#define TILE(NAME, R, U, IN, OUT)                                                                                      \
    static void sum##NAME##R(const step *s, const float *in, float *out, const float *residual, i64 from, i64 to) {    \
        const int32_t *starts = (const int32_t *)s->row_starts, *offsets = (const int32_t *)s->offsets;                \
        const float *values = (const float *)s->values, *bias = (const float *)s->bias;                                \
        const i64 in_step = IN, out_step = OUT;                                                                        \
        for (i64 c = from; c < to; c++) {                                                                              \
            vec sums[U][R];                                                                                            \
            float *q = out + c * s->out_channel;                                                                       \
            i64 k = starts[c], end = starts[c + 1];                                                                    \
            for (int u = 0; u < U; u++)                                                                                \
                for (int r = 0; r < R; r++) sums[u][r] = (vec){0} + (u ? 0.0f : bias[c]);                              \
            for (; k + U <= end; k += U)                                                                               \
                _Pragma("GCC unroll 8") for (int u = 0; u < U; u++) {                                                  \
                    const float *p = in + offsets[k + u];                                                              \
                    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                                \
                        sums[u][r] += values[k + u] * load(p + r * in_step);                                           \
                }                                                                                                      \
            for (; k < end; k++) {                                                                                     \
                const float *p = in + offsets[k];                                                                      \
                _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) sums[0][r] += values[k] * load(p + r * in_step);   \
            }                                                                                                          \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                      \
                vec sum = sums[0][r];                                                                                  \
                _Pragma("GCC unroll 8") for (int u = 1; u < U; u++) sum += sums[u][r];                                 \
                store(q + r * out_step,                                                                                \
                      finished(s, sum, residual ? residual + c * s->residual_channel + r * out_step : 0));             \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void max##NAME##R(const step *s, const float *in, float *out, const float *residual, i64 from, i64 to) {    \
        const int32_t *starts = (const int32_t *)s->row_starts, *offsets = (const int32_t *)s->offsets;                \
        const i64 in_step = IN, out_step = OUT;                                                                        \
        for (i64 c = from; c < to; c++) {                                                                              \
            vec best[R];                                                                                               \
            for (int r = 0; r < R; r++) best[r] = load(in + offsets[starts[c]] + r * in_step);                         \
            for (i64 k = starts[c] + 1; k < starts[c + 1]; k++)                                                        \
                _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                  \
                    vec v = load(in + offsets[k] + r * in_step);                                                       \
                    best[r] = blend((v > best[r]) | (v != v), v, best[r]);                                             \
                }                                                                                                      \
            for (int r = 0; r < R; r++) store(out + c * s->out_channel + r * out_step, finished(s, best[r], 0));       \
        }                                                                                                              \
        (void)residual;                                                                                                \
    }
#define TILES(NAME, IN, OUT)                                                                                           \
    TILE(NAME, 1, 6, IN, OUT) TILE(NAME, 2, 2, IN, OUT) TILE(NAME, 3, 3, IN, OUT) TILE(NAME, 4, 2, IN, OUT)            \
    TILE(NAME, 5, 2, IN, OUT) TILE(NAME, 6, 1, IN, OUT) TILE(NAME, 7, 1, IN, OUT) TILE(NAME, 8, 1, IN, OUT)
TILES(near, SIMD_WIDTH, SIMD_WIDTH) /* contiguous vectors */
TILES(far, s->in_step, s->out_step)

typedef void tile(const step *, const float *, float *, const float *, i64, i64);
#define ALL(NAME) {0, NAME##1, NAME##2, NAME##3, NAME##4, NAME##5, NAME##6, NAME##7, NAME##8}
static tile *const tiles_of[2][2][9] = {{ALL(sumnear), ALL(sumfar)}, {ALL(maxnear), ALL(maxfar)}};

/* R vectors of slices of K channels with about equal numbers of weights: the branch at the end of the loop is
   predicted, and K sums hide the latency of additions. */
#define SLICES(R, K)                                                                                                   \
    static void sliced##R(const step *s, const float *in, float *out, const float *residual, i64 from, i64 to) {       \
        const int32_t *starts = (const int32_t *)s->row_starts;                                                        \
        const int32_t *offsets = (const int32_t *)s->offsets + (i64)starts[from] * K;                                  \
        const int32_t *order = (const int32_t *)s->order;                                                              \
        const float *values = (const float *)s->values + (i64)starts[from] * K, *bias = (const float *)s->bias;        \
        for (i64 slice = from; slice < to; slice++) {                                                                  \
            vec sums[K][R];                                                                                            \
            _Pragma("GCC unroll 8") for (int u = 0; u < K; u++)                                                        \
                _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) sums[u][r] = (vec){0} + bias[slice * K + u];       \
            for (i64 k = starts[slice + 1] - starts[slice]; k > 0; k--, offsets += K, values += K)                     \
                _Pragma("GCC unroll 8") for (int u = 0; u < K; u++) {                                                  \
                    const float *p = in + offsets[u];                                                                  \
                    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)                                                \
                        sums[u][r] += values[u] * load(p + r * SIMD_WIDTH);                                            \
                }                                                                                                      \
            _Pragma("GCC unroll 8") for (int u = 0; u < K; u++) {                                                      \
                i64 c = order[slice * K + u];                                                                          \
                if (c < 0) break; /* the last slice may have fewer channels */                                         \
                _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                  \
                    const float *more = residual ? residual + c * s->residual_channel + r * SIMD_WIDTH : 0;            \
                    store(out + c * s->out_channel + r * SIMD_WIDTH, finished(s, sums[u][r], more));                   \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
SLICES(1, 4) SLICES(2, 4) SLICES(3, 2) SLICES(4, 2)
static tile *const slices_of[] = {0, sliced1, sliced2, sliced3, sliced4};

/* Work before slice n in all steps of a chain: its weights, and a constant for each slice. */
static i64 weights_before(const step *s, i64 n) {
    i64 found = 4 * n;
    for (const step *t = s; t <= s + s->chain; t++) found += ((const int32_t *)t->row_starts)[n];
    return found;
}

/* The slices [*from, *to) of a thread: whole groups with an equal share of the weights. */
static void by_weight(const step *s, i64 thread, i64 threads, i64 *from, i64 *to) {
    i64 slices = (s->channels + s->slice - 1) / s->slice, bounds[2];
    for (int side = 0; side < 2; side++) {
        i64 want = weights_before(s, slices) * (thread + side) / threads;
        i64 low = 0, high = (slices + s->group - 1) / s->group;
        while (low < high) {
            i64 middle = (low + high) / 2;
            if (weights_before(s, middle * s->group) < want) low = middle + 1; else high = middle;
        }
        bounds[side] = low * s->group < slices ? low * s->group : slices;
    }
    *from = bounds[0], *to = bounds[1];
}

static void accumulate(const step *s, float *arena, i64 thread, i64 threads) {
    i64 vectors = (s->length + SIMD_WIDTH - 1) / SIMD_WIDTH, tiles = (vectors + 7) / 8, all = s->runs * tiles;
    i64 first = 0, last = all, from = 0, to = (s->channels + s->slice - 1) / s->slice;
    if (all >= 4 * threads) first = all * thread / threads, last = all * (thread + 1) / threads;
    else by_weight(s, thread, threads, &from, &to);
    for (i64 item = first; item < last; item++) {
        i64 row = item / tiles / s->parts, part = item / tiles % s->parts, number = item % tiles;
        i64 begin = vectors * number / tiles, count = vectors * (number + 1) / tiles - begin;
        for (const step *t = s; t <= s + s->chain; t++) {
            i64 far = t->in_step != SIMD_WIDTH || t->out_step != SIMD_WIDTH;
            i64 at = part * SIMD_WIDTH + begin * t->out_step;
            (t->slice > 1 ? slices_of[count] : tiles_of[t->op != SUM][far][count])(
                t, arena + t->in + row * t->in_run + part * SIMD_WIDTH + begin * t->in_step,
                arena + t->out + row * t->out_run + at,
                t->residual < 0 ? 0 : arena + t->residual + row * t->residual_run + at, from, to);
        }
    }
}

/* Zero what a single run over an image has written to the borders between its rows and behind its end. */
static void clear(const step *s, float *arena, i64 thread, i64 threads) {
    i64 end = (s->length + SIMD_WIDTH - 1) / SIMD_WIDTH * SIMD_WIDTH;
    for (i64 c = s->channels * thread / threads; c < s->channels * (thread + 1) / threads; c++) {
        float *plane = arena + s->out + c * s->out_channel;
        for (i64 y = 0; y < s->gaps; y++)
            for (i64 i = y * s->pitch + s->row; i < (y + 1) * s->pitch; i++) plane[i] = 0;
        for (i64 i = s->length; i < end; i++) plane[i] = 0;
    }
}

/* One example: SIMD_WIDTH output channels at once, with about equal numbers of weights, each with its own inputs. */
static void gather(const step *s, float *arena, i64 thread, i64 threads) {
    const int32_t *starts = (const int32_t *)s->row_starts, *offsets = (const int32_t *)s->offsets;
    const int32_t *order = (const int32_t *)s->order;
    const float *values = (const float *)s->values, *bias = (const float *)s->bias, *in = arena + s->in;
    i64 from, to;
    by_weight(s, thread, threads, &from, &to);
    for (i64 slice = from; slice < to; slice++) {
        float total[SIMD_WIDTH], residual[SIMD_WIDTH] = {0};
        const int32_t *at = offsets + (i64)starts[slice] * SIMD_WIDTH;
        const float *weight = values + (i64)starts[slice] * SIMD_WIDTH;
        i64 channels = s->channels - slice * SIMD_WIDTH < SIMD_WIDTH ? s->channels - slice * SIMD_WIDTH : SIMD_WIDTH;
        memcpy(total, bias + slice * SIMD_WIDTH, sizeof total);
        if (s->residual >= 0)
            for (i64 j = 0; j < channels; j++)
                residual[j] = arena[s->residual + order[slice * SIMD_WIDTH + j] * s->residual_channel];
        vec sum = load(total);
        for (i64 k = starts[slice]; k < starts[slice + 1]; k++, at += SIMD_WIDTH, weight += SIMD_WIDTH)
            sum += load(weight) * gathered(in, at);
        store(total, finished(s, sum, s->residual >= 0 ? residual : 0));
        for (i64 j = 0; j < channels; j++) arena[s->out + order[slice * SIMD_WIDTH + j] * s->out_channel] = total[j];
    }
}

/* LayerNorm over channels, SIMD_WIDTH examples at once: mean and variance in two passes, with four partial sums.
   If `high` is 0, no mean is subtracted: RMSNorm. */
static void norm(const step *s, float *arena, i64 thread, i64 threads) {
    const float *gain = (const float *)s->values, *shift = (const float *)s->bias;
    i64 vectors = (s->length + SIMD_WIDTH - 1) / SIMD_WIDTH, channels = s->channels, quads = channels / 4 * 4;
    for (i64 v = vectors * thread / threads; v < vectors * (thread + 1) / threads; v++) {
        const float *in = arena + s->in + v * SIMD_WIDTH;
        float *out = arena + s->out + v * SIMD_WIDTH;
        vec part[4] = {0}, mean = {0}, scale = {0};
        for (i64 c = 0; c < quads; c += 4)
            for (int u = 0; u < 4; u++) part[u] += load(in + (c + u) * s->in_channel);
        for (i64 c = quads; c < channels; c++) mean += load(in + c * s->in_channel);
        mean = (mean + part[0] + part[1] + part[2] + part[3]) / (float)channels;
        if (!s->high) mean = (vec){0};
        for (int u = 0; u < 4; u++) part[u] = scale;
        for (i64 c = 0; c < quads; c += 4)
            for (int u = 0; u < 4; u++) {
                vec d = load(in + (c + u) * s->in_channel) - mean;
                part[u] += d * d;
            }
        for (i64 c = quads; c < channels; c++) {
            vec d = load(in + c * s->in_channel) - mean;
            scale += d * d;
        }
        scale = (scale + part[0] + part[1] + part[2] + part[3]) / (float)channels + s->low;
        for (int j = 0; j < SIMD_WIDTH; j++) scale[j] = 1.0f / sqrtf(scale[j]);
        for (i64 c = 0; c < channels; c++) {
            vec normal = (load(in + c * s->in_channel) - mean) * scale;
            store(out + c * s->out_channel, finished(s, normal * gain[c] + shift[c], 0));
        }
    }
}

static void mean(const step *s, float *arena, i64 thread, i64 threads) {
    i64 examples = s->block;
    float scale = 1.0f / (float)s->pixels;
    for (i64 c = s->channels * thread / threads; c < s->channels * (thread + 1) / threads; c++) {
        const float *in = arena + s->in + c * s->in_channel;
        float *out = arena + s->out + c * s->out_channel;
        if (examples == 1) {
            vec sum = {0};
            float rest = 0;
            for (i64 run = 0; run < s->runs; run++) {
                const float *row = in + run * s->in_run;
                i64 x = 0;
                for (; x + SIMD_WIDTH <= s->length; x += SIMD_WIDTH) sum += load(row + x);
                for (; x < s->length; x++) rest += row[x];
            }
            for (int j = 0; j < SIMD_WIDTH; j++) rest += sum[j];
            out[0] = rest * scale;
            continue;
        }
        for (i64 v = 0; v < examples; v++) out[v] = 0;
        for (i64 run = 0; run < s->runs; run++)
            for (i64 x = 0; x < s->length; x += examples)
                for (i64 v = 0; v < examples; v++) out[v] += in[run * s->in_run + x + v];
        for (i64 v = 0; v < examples; v++) out[v] *= scale;
    }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLE
#endif
#endif

#ifdef HAS_SHUFFLE
#if SIMD_WIDTH == 16
#define SHUFFLE(A, B, F)                                                                                               \
    __builtin_shufflevector(A, B, F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7), F(8), F(9), F(10), F(11), F(12),     \
                            F(13), F(14), F(15))
#elif SIMD_WIDTH == 8
#define SHUFFLE(A, B, F) __builtin_shufflevector(A, B, F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7))
#else
#define SHUFFLE(A, B, F) __builtin_shufflevector(A, B, F(0), F(1), F(2), F(3))
#endif
/* Exchange elements of two rows that are H apart; H is a power of two. */
#define LEFT(I) ((I) & H ? SIMD_WIDTH + (I) - H : (I))
#define RIGHT(I) ((I) & H ? SIMD_WIDTH + (I) : (I) + H)
#define EXCHANGE                                                                                                       \
    _Pragma("GCC unroll 16") for (int i = 0; i < SIMD_WIDTH; i++) if (!(i & H)) {                                      \
        vec a = v[i], b = v[i + H];                                                                                    \
        v[i] = SHUFFLE(a, b, LEFT), v[i + H] = SHUFFLE(a, b, RIGHT);                                                   \
    }

/* Transpose a square of SIMD_WIDTH rows. */
static inline void transpose_tile(const float *p, i64 from, float *q, i64 to) {
    vec v[SIMD_WIDTH];
    _Pragma("GCC unroll 16") for (int i = 0; i < SIMD_WIDTH; i++) v[i] = load(p + i * from);
#define H 1
    EXCHANGE
#undef H
#define H 2
    EXCHANGE
#undef H
#if SIMD_WIDTH > 4
#define H 4
    EXCHANGE
#undef H
#endif
#if SIMD_WIDTH > 8
#define H 8
    EXCHANGE
#undef H
#endif
    _Pragma("GCC unroll 16") for (int i = 0; i < SIMD_WIDTH; i++) store(q + i * to, v[i]);
}
#endif

/* Transpose pixels by examples. in_pixel, out_pixel: floats between pixels. A tile of SIMD_WIDTH pixels fits into the
   first-level cache. */
static void transpose(const float *p, float *q, i64 pixels, i64 in_pixel, i64 out_pixel, i64 examples, i64 in_example,
                      i64 out_example) {
    for (i64 x = 0; x < pixels; x += SIMD_WIDTH) {
        i64 rows = pixels - x < SIMD_WIDTH ? pixels - x : SIMD_WIDTH, v = 0;
        const float *from = p + x * in_pixel;
        float *to = q + x * out_pixel;
#ifdef HAS_SHUFFLE
        if (rows == SIMD_WIDTH && in_pixel == 1 && out_example == 1)
            for (; v + SIMD_WIDTH <= examples; v += SIMD_WIDTH)
                transpose_tile(from + v * in_example, in_example, to + v, out_pixel);
        else if (rows == SIMD_WIDTH && out_pixel == 1 && in_example == 1)
            for (; v + SIMD_WIDTH <= examples; v += SIMD_WIDTH)
                transpose_tile(from + v, in_pixel, to + v * out_example, out_example);
#endif
        for (; v < examples; v++)
            for (i64 i = 0; i < rows; i++) to[i * out_pixel + v * out_example] = from[i * in_pixel + v * in_example];
    }
}

static void copy(const step *s, const float *in, float *out, i64 examples, i64 thread, i64 threads) {
    i64 from[5] = {0}, to[5];
    memcpy(to, s->size, sizeof to);
    to[4] = examples;
    from[s->split] = s->size[s->split] * thread / threads, to[s->split] = s->size[s->split] * (thread + 1) / threads;
    const i64 *is = s->in_stride, *os = s->out_stride;
    i64 pixels = to[3] - from[3];
    int plain = is[4] == 1 && os[4] == 1;
    int whole = plain && is[3] == examples && os[3] == examples;
    for (i64 a = from[0]; a < to[0]; a++)
        for (i64 b = from[1]; b < to[1]; b++)
            for (i64 c = from[2]; c < to[2]; c++) {
                const float *p = in + a * is[0] + b * is[1] + c * is[2] + from[3] * is[3];
                float *q = out + a * os[0] + b * os[1] + c * os[2] + from[3] * os[3];
                if (whole || (examples == 1 && is[3] == 1 && os[3] == 1)) memcpy(q, p, pixels * examples * 4);
                else if (examples == 1)
                    for (i64 x = 0; x < pixels; x++) q[x * os[3]] = p[x * is[3]];
                else if (plain)
                    for (i64 x = 0; x < pixels; x++) memcpy(q + x * os[3], p + x * is[3], examples * 4);
                else transpose(p, q, pixels, is[3], os[3], examples, is[4], os[4]);
            }
}

/* Wait for the other threads that run this block. */
static inline void barrier(i64 threads) {
    if (threads > 1) {
#ifdef _OPENMP
#pragma omp barrier
#endif
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Run all steps on one block of examples. */
static void run_block(const step *steps, i64 count, float *arena, float *const *tensors, i64 first, i64 examples,
                      i64 thread, i64 threads, double *times) {
    for (i64 n = 0; n < count; n++) {
        const step *s = steps + n;
        double began = times ? now() : 0;
        if (s->op == COPY) {
            const float *in = s->in_tensor < 0 ? arena + s->in : tensors[s->in_tensor] + s->in + first * s->in_example;
            float *out = s->out_tensor < 0 ? arena + s->out : tensors[s->out_tensor] + s->out + first * s->out_example;
            copy(s, in, out, examples, thread, threads);
        } else if (s->op == GATHER) gather(s, arena, thread, threads);
        else if (s->op == MEAN) mean(s, arena, thread, threads);
        else if (s->op == NORM) norm(s, arena, thread, threads);
        else {
            accumulate(s, arena, thread, threads);
            if (s->row) {
                barrier(threads);
                clear(s, arena, thread, threads);
            }
        }
        barrier(threads);
        if (times) times[n] += now() - began;
        n += s->chain;
    }
}

/* Run the steps on `batch` examples in blocks of `block`. Each thread has `arena_size` floats of `arena`, which are
   zero before the first call. Threads share the blocks if there are at least as many blocks as threads, else the
   channels of each layer. */
void swamp_run(const step *steps, i64 count, float *arena, i64 arena_size, float *const *tensors, i64 batch, i64 block,
               i64 threads, double *times) {
    i64 blocks = (batch + block - 1) / block;
    int shared = blocks >= threads;
    (void)arena_size;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#else
    threads = 1;
#endif
    {
        i64 thread = 0, all = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num(), all = omp_get_num_threads();
#endif
        float *own_arena = arena + (shared ? thread * arena_size : 0);
        double *own_times = thread ? 0 : times;
        if (shared) {
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
            for (i64 b = 0; b < blocks; b++)
                run_block(steps, count, own_arena, tensors, b * block,
                          batch - b * block < block ? batch - b * block : block, 0, 1, own_times);
        } else
            for (i64 b = 0; b < blocks; b++)
                run_block(steps, count, own_arena, tensors, b * block,
                          batch - b * block < block ? batch - b * block : block, thread, all, own_times);
    }
}
