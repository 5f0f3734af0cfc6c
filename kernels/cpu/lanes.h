/* lanes.h: the law of reductions over columns, on the CPU (see kern.h): 16 partial results, lane
 * l of columns l, l+16, l+32, ..., folded 8+8, 4+4, 2+2, 1+1.  Emitted loops run over the 16
 * lanes, which the compiler turns into vectors.  Relies on types.h.
 */
INLINE float lanes_sum(float s[16]) {
    for (int l = 0; l < 8; l++) s[l] += s[l + 8];
    for (int l = 0; l < 4; l++) s[l] += s[l + 4];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

INLINE float lanes_max(float s[16]) {
    for (int l = 0; l < 8; l++) s[l] = f32_max(s[l], s[l + 8]);
    for (int l = 0; l < 4; l++) s[l] = f32_max(s[l], s[l + 4]);
    return f32_max(f32_max(s[0], s[2]), f32_max(s[1], s[3]));
}
