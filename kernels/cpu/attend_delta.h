/* attend_delta: delta[t][h] = sum over d of out[t][h][d] * dout[t][h][d], in 16 lanes.
 *
 * arguments  out T_Q [T,HEADS,HEAD_DIM], dout T_DO, delta f32 [T,HEADS]
 * n          T
 * defines    T_Q T_DO HEADS HEAD_DIM LD_O LD_DO
 */
void SYMBOL(void *const *p, const int64_t *n) {
    enum { WHOLE = HEAD_DIM / 16 * 16 };
    float *const delta = p[2];
#pragma omp parallel for schedule(static) if (n[0] * HEADS * HEAD_DIM >= 16384)
    for (int64_t t = 0; t < n[0]; t++)
        for (int64_t h = 0; h < HEADS; h++) {
            const STORAGE(T_Q) *const out = (const STORAGE(T_Q) *)p[0] + t * LD_O + h * HEAD_DIM;
            const STORAGE(T_DO) *const dout =
                (const STORAGE(T_DO) *)p[1] + t * LD_DO + h * HEAD_DIM;
            float s[16];
            for (int l = 0; l < 16; l++) s[l] = 0.0f;
            for (int64_t c = 0; c < WHOLE; c += 16)
#pragma omp simd
                for (int l = 0; l < 16; l++)
                    s[l] += FROM(T_Q, out[c + l]) * FROM(T_DO, dout[c + l]);
            for (int l = 0; l < HEAD_DIM - WHOLE; l++)
                s[l] += FROM(T_Q, out[WHOLE + l]) * FROM(T_DO, dout[WHOLE + l]);
            delta[t * HEADS + h] = lanes_sum(s);
        }
}
