/* dequant: y[i] = value(code i) * scale of block i / BLOCK, rounded to T_Y.
 *
 *     NF4, FP4: a value of 16, element 2j in the high nibble of byte j      INT8: code / 127
 *     scale = absmax[block], or with NESTED: map[absmax[block]] * absmax2[block / 256] + offset
 *
 * arguments  codes u8, absmax f32, y T_Y
 *            codes u8, absmax u8, absmax2 f32, offset f32 [1], map f32 [256], y T_Y     (NESTED 1)
 * n          blocks, elements (fewer than 2^34)
 * defines    T_Y BLOCK NESTED, one of NF4 FP4 INT8; SAFE 1: no PTX
 * grid       any; 8192 elements a block and turn are meant
 *
 * A thread takes 8 codes at a time, four times 4 bytes (INT8: 8) one block of threads apart, so
 * that a warp reads 128 bytes in a row and writes 512 (bf16): loads and stores are whole sectors.
 * The 16 values stand in shared memory once per lane (bank = lane), so looking up any codes takes
 * one turn: shift, mask, load, multiply and half a pack an element, with an eighth of a scale.
 */
struct alignas(16) FN(quad) {
    uint32_t w[4];
};
struct alignas(8) FN(two) {
    uint32_t w[2];
};

struct FN(scales) {
#if NESTED
    const uint8_t *absmax;
    const float *absmax2, *offset, *map;
#else
    const float *absmax;
#endif
};

/* What a code's value is multiplied with. */
INLINE float FN(scale)(const struct FN(scales) & s, int64_t block) {
#if NESTED
    const float scale = s.map[s.absmax[block]] * s.absmax2[block / 256] + s.offset[0];
#else
    const float scale = s.absmax[block];
#endif
#ifdef INT8
    return scale / 127.0f;
#else
    return scale;
#endif
}

#ifndef INT8
static __constant__ const float FN(value)[16] = {
#    ifdef NF4
    NF4_VALUES
#    else
    FP4_VALUES
#    endif
};
#endif

/* Code number i as a number. */
INLINE float FN(number)(const uint8_t *codes, int64_t i) {
#ifdef INT8
    return (float)(int8_t)codes[i];
#else
    const uint32_t byte = codes[i / 2];
    return FN(value)[i % 2 ? byte & 15 : byte >> 4];
#endif
}

#if BLOCK % 8 == 0
INLINE uint32_t FN(pair)(float a, float b) {
#    ifdef SAFE
    return (uint32_t)bf16_from_f32(a) | (uint32_t)bf16_from_f32(b) << 16;
#    else
    return pack_bf16(a, b);
#    endif
}

INLINE void FN(store)(uint16_t *y, const float v[8]) {
    const struct FN(quad) q = {FN(pair)(v[0], v[1]), FN(pair)(v[2], v[3]), FN(pair)(v[4], v[5]),
                               FN(pair)(v[6], v[7])};
    *(struct FN(quad) *)y = q;
}

INLINE void FN(store)(float *y, const float v[8]) {
    for (int i = 0; i < 8; i += 4) {
        const struct FN(quad)
            q = {f32_bits(v[i]), f32_bits(v[i + 1]), f32_bits(v[i + 2]), f32_bits(v[i + 3])};
        *(struct FN(quad) *)(y + i) = q;
    }
}

#    ifdef INT8
typedef struct FN(two) FN(codes8);

INLINE void FN(decode)(const FN(codes8) & c, float scale, const float *, uint32_t, float v[8]) {
#        pragma unroll
    for (int i = 0; i < 8; i++) v[i] = (float)(int8_t)(c.w[i / 4] >> (i % 4 * 8)) * scale;
}
#    else
typedef uint32_t FN(codes8);

/* Element i's code is the nibble at bit 8 (i / 2) + 4 (1 - i % 2); its value, for this lane, lies
 * at byte 128 code + 4 lane of the table. */
INLINE void FN(decode)(FN(codes8) c, float scale, const float *table, uint32_t lane, float v[8]) {
#        pragma unroll
    for (int i = 0; i < 8; i++) {
        const int bit = i / 2 * 8 + (i % 2 ? 0 : 4);
        const uint32_t at = (bit >= 7 ? c >> (bit - 7) : c << (7 - bit)) & 0x780u;
        v[i] = *(const float *)((const char *)table + (at | lane * 4)) * scale;
    }
}
#    endif

/* All whole groups of 8 elements. */
INLINE void FN(groups)(const uint8_t *codes, const struct FN(scales) & s, STORAGE(T_Y) * y,
                       const float *table, uint32_t groups) {
    const FN(codes8) *const code = (const FN(codes8) *)codes;
    const uint32_t turn = 4 * blockDim.x;
    for (uint32_t at = blockIdx.x * turn + threadIdx.x; at < groups; at += gridDim.x * turn) {
        FN(codes8) c[4];
        float scale[4], v[8];
#    pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            const uint32_t g = at + k * blockDim.x, known = g < groups ? g : at;
            c[k] = code[known];
            scale[k] = FN(scale)(s, known / (BLOCK / 8));
        }
#    pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            const uint32_t g = at + k * blockDim.x;
            if (g >= groups) break;
            FN(decode)(c[k], scale[k], table, threadIdx.x % 32, v);
            FN(store)(y + (int64_t)g * 8, v);
        }
    }
}
#endif

#if NESTED
extern "C" __global__ void SYMBOL(const uint8_t *__restrict__ codes,
                                  const uint8_t *__restrict__ absmax,
                                  const float *__restrict__ absmax2,
                                  const float *__restrict__ offset, const float *__restrict__ map,
                                  STORAGE(T_Y) *__restrict__ y, int64_t, int64_t elements) {
    const struct FN(scales) s = {absmax, absmax2, offset, map};
#else
extern "C" __global__ void SYMBOL(const uint8_t *__restrict__ codes,
                                  const float *__restrict__ absmax, STORAGE(T_Y) *__restrict__ y,
                                  int64_t, int64_t elements) {
    const struct FN(scales) s = {absmax};
#endif
    int64_t done = 0;
#if BLOCK % 8 == 0
#    ifdef INT8
    const float *const table = 0;
#    else
    __shared__ float table[16 * 32];
    for (uint32_t i = threadIdx.x; i < 16 * 32; i += blockDim.x) table[i] = FN(value)[i / 32];
    __syncthreads();
#    endif
    FN(groups)(codes, s, y, table, (uint32_t)(elements / 8));
    done = elements / 8 * 8;
#endif
    /* the last few, or all where blocks are no multiple of 8 */
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
#pragma unroll 1
    for (int64_t i = done + (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < elements; i += step)
        y[i] = TO(T_Y, FN(number)(codes, i) * FN(scale)(s, i / BLOCK));
}
