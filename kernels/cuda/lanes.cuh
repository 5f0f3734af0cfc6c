/* lanes.cuh: packs of elements, and the law of reductions over columns on CUDA (see kern.h): the 16
 * partial results of a row are in 16 neighbouring threads (a half-warp), thread l having added
 * columns l, l+16, l+32, ...  All 16 get the result of lane 0, which folds 8+8, 4+4, 2+2, 1+1.
 * Relies on types.h.
 */

/* N elements that lie together and are moved as one where they take 16 bytes or less; their address
 * is a multiple of their size, or of 16. */
template <typename T, int N> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Packed {
    T x[N];
};

/* The most elements of `bytes`, up to 16 bytes together, such that these row lengths and distances
 * and an address that is a multiple of `align` bytes are multiples of them. */
static __device__ constexpr int pack_size(int bytes, int align, int64_t a, int64_t b, int64_t c) {
    int n = 16 / bytes;
    while (n > 1 && (align % (n * bytes) || a % n || b % n || c % n)) n /= 2;
    return n;
}

INLINE uint32_t lanes_mask() {
    return 0xffffu << (threadIdx.x & 16);
}

INLINE float lanes_sum(float s) {
    const uint32_t mask = lanes_mask();
    for (int w = 8; w > 0; w /= 2) s = s + __shfl_down_sync(mask, s, w, 16);
    return __shfl_sync(mask, s, 0, 16);
}

INLINE float lanes_max(float s) {
    const uint32_t mask = lanes_mask();
    for (int w = 8; w > 0; w /= 2) s = f32_max(s, __shfl_down_sync(mask, s, w, 16));
    return __shfl_sync(mask, s, 0, 16);
}

/* A row of n numbers in shared memory, folded by 16 threads. */
INLINE void fold_sum(float *result, const float *row, int n) {
    float s = 0.0f;
#pragma unroll 16
    for (int j = threadIdx.x % 16; j < n; j += 16) s = s + row[j];
    s = lanes_sum(s);
    if (threadIdx.x % 16 == 0) *result = s;
}

INLINE void fold_max(float *result, const float *row, int n) {
    float s = -F32_INF;
#pragma unroll 16
    for (int j = threadIdx.x % 16; j < n; j += 16) s = f32_max(s, row[j]);
    s = lanes_max(s);
    if (threadIdx.x % 16 == 0) *result = s;
}

/* Over all 32 threads of a warp, which all get the sum. */
INLINE float warp_sum(float s) {
    for (int w = 16; w > 0; w /= 2) s += __shfl_xor_sync(0xffffffffu, s, w);
    return s;
}

/* A warp holds a vector of n elements of type T from `from` on: thread l has elements l, l+32,
 * ...; this is its i-th, 0 beyond the end. */
#define WARP_AT(T, from, i, n)                                                                     \
    (threadIdx.x % 32 + 32 * (i) < (n) ? FROM(T, (from)[threadIdx.x % 32 + 32 * (i)]) : 0.0f)

/* exp(x) for hand-written kernels, within 2 ulp for -87 <= x <= 88, 1 at 0; below that 0, beyond
 * useless.
 * x = (n + r) ln 2 with |r| <= 1/2: 1 / ln 2 is taken in two parts, and the polynomial is 2^r
 * (minimax, relative error 2^-23.4). */
INLINE float exp_near(float x) {
    const float shifted = __fmaf_rn(x, 0x1.715476p+0f, 0x1.8p23f);
    const float n = shifted - 0x1.8p23f;
    const float r = __fmaf_rn(x, 0x1.4ae0cp-26f, __fmaf_rn(x, 0x1.715476p+0f, -n));
    float p = __fmaf_rn(r, 0x1.5bba18p-10f, 0x1.3cea88p-7f);
    p = __fmaf_rn(r, p, 0x1.c6b752p-5f);
    p = __fmaf_rn(r, p, 0x1.ebf9bcp-3f);
    p = __fmaf_rn(r, p, 0x1.62e42ap-1f);
    p = __fmaf_rn(r, p, 1.0f);
    const float y = p * f32_from_bits((f32_bits(shifted) << 23) + 0x3f800000u); /* 2^n */
    return x < -87.0f ? 0.0f : y;
}
