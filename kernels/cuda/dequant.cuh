/* dequant: y[i] = value(code i) * scale of block i / BLOCK, rounded to T_Y.
 *
 *     NF4, FP4: a value of 16, element 2j in the high nibble of byte j      INT8: code / 127
 *     scale = absmax[block], or with NESTED: map[absmax[block]] * absmax2[block / 256] + offset
 *
 * arguments  codes u8, absmax f32, y T_Y
 *            codes u8, absmax u8, absmax2 f32, offset f32 [1], map f32 [256], y T_Y     (NESTED 1)
 * n          blocks, elements
 * defines    T_Y BLOCK NESTED, and one of NF4 FP4 INT8
 * grid       any
 */
#ifndef INT8
static __constant__ const float FN(value)[16] = {
#    ifdef NF4
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f
#    else
    0.0f,         0.005208333333f, 0.66666667f,  1.0f,  0.33333333f,
    0.5f,         0.16666667f,     0.25f,        -0.0f, -0.005208333333f,
    -0.66666667f, -1.0f,           -0.33333333f, -0.5f, -0.16666667f,
    -0.25f
#    endif
};
#endif

#if NESTED
extern "C" __global__ void SYMBOL(const uint8_t *codes, const uint8_t *absmax, const float *absmax2,
                                  const float *offset, const float *map, STORAGE(T_Y) * y, int64_t,
                                  int64_t elements) {
#else
extern "C" __global__ void SYMBOL(const uint8_t *codes, const float *absmax, STORAGE(T_Y) * y,
                                  int64_t, int64_t elements) {
#endif
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += step) {
        const int64_t block = i / BLOCK;
#if NESTED
        const float scale = map[absmax[block]] * absmax2[block / 256] + offset[0];
#else
        const float scale = absmax[block];
#endif
#ifdef INT8
        y[i] = TO(T_Y, (float)(int8_t)codes[i] * (scale / 127.0f));
#else
        const uint32_t byte = codes[i / 2];
        y[i] = TO(T_Y, FN(value)[i % 2 ? byte & 15 : byte >> 4] * scale);
#endif
    }
}
