/* quantize: x in blocks of BLOCK elements: the largest magnitude of each, and a code for every
 * x / absmax.
 *
 *     absmax[b] = max |x|;  NF4, FP4: the table's code (tables.h) of x * (1 / absmax), element 2j
 *     in the high nibble of byte j;  INT8: round(x * (127 / absmax)) to even, in -127 .. 127
 *     All in IEEE f32; what is not a number gets the code of no threshold passed (INT8: 0), and so
 *     does a block of zeros.  The bits of runtime/quantize.c.
 *
 * arguments  x f32, codes u8, absmax f32
 * n          blocks, elements
 * defines    BLOCK (even), one of NF4 FP4 INT8
 * grid       ceil(blocks / 8) blocks of 8 warps; a warp takes a block
 */
#ifdef INT8
INLINE uint32_t FN(code)(float v) {
    const float low = v < -127.0f ? -127.0f : v, in = low > 127.0f ? 127.0f : low;
    return v != v ? 0 : f32_bits(in + 12582912.0f) & 255; /* 1.5 * 2^23: the sum's last bit is 1 */
}
#elif defined NF4
static __constant__ const float FN(above)[15] = {NF4_ABOVE};

INLINE uint32_t FN(code)(float v) {
    uint32_t code = 0;
#    pragma unroll
    for (int i = 0; i < 15; i++) code += v > FN(above)[i];
    return code;
}
#else
static __constant__ const float FN(above)[7] = {FP4_ABOVE};
static __constant__ const uint8_t FN(order)[8] = {FP4_ORDER};

INLINE uint32_t FN(code)(float v) {
    uint32_t rank = 0;
#    pragma unroll
    for (int i = 0; i < 7; i++) rank += f32_abs(v) > FN(above)[i];
    return FN(order)[rank] | (v < 0 ? 8u : 0u);
}
#endif

extern "C" __global__ void SYMBOL(const float *__restrict__ x, uint8_t *__restrict__ codes,
                                  float *__restrict__ absmax, int64_t blocks, int64_t elements) {
    const int lane = threadIdx.x % 32;
    const int64_t block = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (block >= blocks) return; /* whole warps */
    const int64_t begin = block * BLOCK;
    const int count = (int)(elements - begin < BLOCK ? elements - begin : BLOCK);
    float most = 0;
    for (int i = lane; i < count; i += 32) {
        const float m = f32_abs(x[begin + i]);
        most = m > most ? m : most;
    }
    for (int by = 16; by > 0; by /= 2) {
        const float m = __shfl_xor_sync(0xffffffffu, most, by);
        most = m > most ? m : most;
    }
    if (lane == 0) absmax[block] = most;
#ifdef INT8
    const float unit = 127.0f / most;
    for (int i = lane; i < count; i += 32)
        codes[begin + i] = (uint8_t)FN(code)(x[begin + i] * unit);
#else
    const float unit = 1.0f / most;
    for (int j = lane; 2 * j < count; j += 32) {
        const uint32_t high = FN(code)(x[begin + 2 * j] * unit);
        const uint32_t low = 2 * j + 1 < count ? FN(code)(x[begin + 2 * j + 1] * unit) : 0;
        codes[begin / 2 + j] = (uint8_t)(high << 4 | low);
    }
#endif
}
