/* logprob_grad: the gradient of the log-probabilities with respect to the logits, in their place.
 *
 *     d[r][j] = c[r] * SCALE * ((j == target[r]) - exp(SCALE * logits[r][j] - lse[r]))
 *     zeros where target is -1; rounded to T_D; without c: as if it were 1
 *
 * arguments  logits f32 [C,VOCAB], target i32 [C], lse f32 [C], [c f32 [C]], d T_D [C,LD_D]
 * n          C
 * defines    VOCAB SCALE T_D LD_D
 *
 * d lies in the memory of logits, row on row (LD_D * sizeof(T_D) == VOCAB * 4): blocks go through a
 * buffer, and element j is written after it and all before it were read.
 */
void SYMBOL(void *const *p, const int64_t *n) {
    enum { BLOCK = 256 };
    const int32_t *const target = p[1];
    const float *const lse = p[2], *const coef = p[3];
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n[0]; r++) {
        const char *const from = (const char *)p[0] + r * VOCAB * (int64_t)sizeof(float);
        char *const to = (char *)p[4] + r * LD_D * (int64_t)sizeof(STORAGE(T_D));
        const bool scored = target[r] >= 0;
        const float k = scored ? (coef ? coef[r] : 1.0f) * SCALE : 0.0f;
        for (int64_t j0 = 0; j0 < VOCAB; j0 += BLOCK) {
            const int64_t count = VOCAB - j0 < BLOCK ? VOCAB - j0 : BLOCK;
            float z[BLOCK];
            STORAGE(T_D) d[BLOCK];
            __builtin_memcpy(z, from + j0 * (int64_t)sizeof(float), (size_t)count * sizeof(float));
#pragma omp simd
            for (int64_t j = 0; j < count; j++) {
                const float e = f32_exp(SCALE * z[j] - lse[r]);
                d[j] = TO(T_D, scored ? -k * e : 0.0f);
            }
            const int64_t hit = (int64_t)target[r] - j0;
            if (scored && hit >= 0 && hit < count)
                d[hit] = TO(T_D, k * (1.0f - f32_exp(SCALE * z[hit] - lse[r])));
            __builtin_memcpy(to + j0 * (int64_t)sizeof(d[0]), d, (size_t)count * sizeof(d[0]));
        }
    }
}
