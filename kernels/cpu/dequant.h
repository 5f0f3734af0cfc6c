/* dequant: y[i] = value(code i) * scale of block i / BLOCK, rounded to T_Y.
 *
 *     NF4, FP4: a value of 16, element 2j in the high nibble of byte j      INT8: code / 127
 *     scale = absmax[block], or with NESTED: map[absmax[block]] * absmax2[block / 256] + offset
 *
 * arguments  codes u8, absmax f32, y T_Y
 *            codes u8, absmax u8, absmax2 f32, offset f32 [1], map f32 [256], y T_Y     (NESTED 1)
 * n          blocks, elements
 * defines    T_Y BLOCK NESTED, and one of NF4 FP4 INT8
 */
#if NESTED
enum { FN(result) = 5 };
#else
enum { FN(result) = 2 };
#endif

INLINE float FN(scale)(void *const *p, int64_t block) {
#if NESTED
    const float *const absmax2 = p[2], *const offset = p[3], *const map = p[4];
    return map[((const uint8_t *)p[1])[block]] * absmax2[block / 256] + offset[0];
#else
    return ((const float *)p[1])[block];
#endif
}

#ifdef INT8
static void FN(block)(const uint8_t *codes, float scale, STORAGE(T_Y) * y, int64_t count) {
    const float unit = scale / 127.0f;
    for (int64_t i = 0; i < count; i++) y[i] = TO(T_Y, (float)(int8_t)codes[i] * unit);
}
#else
static const float FN(value)[16] = {
#    ifdef NF4
    NF4_VALUES
#    else
    FP4_VALUES
#    endif
};

static void FN(block)(const uint8_t *codes, float scale, STORAGE(T_Y) * y, int64_t count) {
    STORAGE(T_Y) value[16];
    for (int i = 0; i < 16; i++) value[i] = TO(T_Y, FN(value)[i] * scale);
    for (int64_t i = 0; i < count / 2; i++) {
        y[2 * i] = value[codes[i] >> 4];
        y[2 * i + 1] = value[codes[i] & 15];
    }
    if (count % 2) y[count - 1] = value[codes[count / 2] >> 4];
}
#endif

void SYMBOL(void *const *p, const int64_t *n) {
    const uint8_t *const codes = p[0];
    STORAGE(T_Y) *const y = p[FN(result)];
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < n[0]; b++) {
        const int64_t begin = b * BLOCK;
        const int64_t count = n[1] - begin < BLOCK ? n[1] - begin : BLOCK;
#ifdef INT8
        FN(block)(codes + begin, FN(scale)(p, b), y + begin, count);
#else
        FN(block)(codes + begin / 2, FN(scale)(p, b), y + begin, count);
#endif
    }
}
