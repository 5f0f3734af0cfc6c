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
    NF4_VALUES
#    else
    FP4_VALUES
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
