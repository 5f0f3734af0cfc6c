/* tiles.h: small dense products inside hand-written kernels: TILE columns wide, in registers.
 *
 *     c[i][r] (+)= sum over k of x[i * si + k * sk] * b[k][r],   0 <= i < m, 0 <= r < width
 *
 * b and c are dense with TILE columns; x is read one element at a time, so it may be a matrix as
 * it lies in memory or its transpose.  Vectors run over r.  Each element is one chain of fused
 * multiply-adds over k in order, so bits do not depend on the blocking.  Relies on types.h.
 */
enum { TILE = 64 };

#ifdef __AVX512F__
enum { TILE_ROWS = 8, TILE_WIDTH = 32 }; /* 16 of 32 registers hold results */
#else
enum { TILE_ROWS = 6, TILE_WIDTH = 16 }; /* 12 of 16 */
#endif

#if defined(__FMA__) || defined(__FP_FAST_FMAF)
#    define TILE_FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#    define TILE_FMA(a, b, c) ((a) * (b) + (c))
#endif

/* exp for softmax, x <= 0 or little more: about 1 ulp; NaN stays NaN.  0 below -60: such a weight
 * is lost in the sum of all, but its products would be denormal, which processors handle slowly. */
INLINE float tile_exp(float x) {
    const float y = x < -60.0f ? -60.0f : x;
    const float shifted = TILE_FMA(y, 0x1.715476p+0f, 0x1.8p23f);
    const float n = shifted - 0x1.8p23f;
    const float r = TILE_FMA(n, -0x1.7f7d1cp-20f, TILE_FMA(n, -0x1.62e4p-1f, y));
    float p = TILE_FMA(r, 0.00140361872f, 0.00837245397f);
    p = TILE_FMA(r, p, 0.0416655429f);
    p = TILE_FMA(r, p, 0.166664869f);
    p = TILE_FMA(r, p, 0.5f);
    p = TILE_FMA(r * r, p, r) + 1.0f;
    const float power = f32_from_bits((f32_bits(shifted) + 127u) << 23);
    return x < -60.0f ? 0.0f : p * power;
}

/* `rows` is a constant at every call: then the block of results stays in registers. */
static inline __attribute__((always_inline)) void tile_block(float *restrict c, bool add,
                                                             const float *restrict x, int64_t si,
                                                             int64_t sk, const float *restrict b,
                                                             int64_t k, const int rows) {
    float acc[TILE_ROWS][TILE_WIDTH];
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < TILE_WIDTH; r++) acc[i][r] = 0.0f;
    if (add)
        for (int i = 0; i < rows; i++)
            for (int r = 0; r < TILE_WIDTH; r++) acc[i][r] = c[i * TILE + r];
    for (int64_t j = 0; j < k; j++)
        for (int i = 0; i < rows; i++) {
            const float a = x[i * si + j * sk];
#pragma omp simd
            for (int r = 0; r < TILE_WIDTH; r++)
                acc[i][r] = TILE_FMA(a, b[j * TILE + r], acc[i][r]);
        }
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < TILE_WIDTH; r++) c[i * TILE + r] = acc[i][r];
}

/* width: columns wanted; whole TILE_WIDTHs are computed. */
static void tile_product(float *restrict c, bool add, const float *restrict x, int64_t si,
                         int64_t sk, const float *restrict b, int64_t m, int64_t k, int width) {
    for (int r = 0; r < width; r += TILE_WIDTH) {
        int64_t i = 0;
        for (; i + TILE_ROWS <= m; i += TILE_ROWS)
            tile_block(c + i * TILE + r, add, x + i * si, si, sk, b + r, k, TILE_ROWS);
        for (; i + 2 <= m; i += 2)
            tile_block(c + i * TILE + r, add, x + i * si, si, sk, b + r, k, 2);
        if (i < m) tile_block(c + i * TILE + r, add, x + i * si, si, sk, b + r, k, 1);
    }
}

/* Rows of k elements as f32, side by side in `room` [m][k]: apart, as they lie, they would
 * compete for the same places in the cache. */
INLINE void tile_rows_f32(const f32_t *x, int64_t ld, int64_t m, int64_t k, float *room) {
    for (int64_t i = 0; i < m; i++)
#pragma omp simd
        for (int64_t j = 0; j < k; j++) room[i * k + j] = x[i * ld + j];
}

INLINE void tile_rows_bf16(const bf16_t *x, int64_t ld, int64_t m, int64_t k, float *room) {
    for (int64_t i = 0; i < m; i++)
#pragma omp simd
        for (int64_t j = 0; j < k; j++) room[i * k + j] = f32_from_bf16(x[i * ld + j]);
}
#define TILE_ROWS_OF(T) PASTE(tile_rows_, T)
