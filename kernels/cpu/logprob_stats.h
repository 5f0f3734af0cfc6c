/* logprob_stats: what the head needs of each row of logits; z = SCALE * logits, p = softmax(z).
 *
 *     lse       = log sum exp z                  logp    = z[target] - lse, 0 where target < 0
 *     mean      = sum z / VOCAB                  entropy = lse - sum p z
 *     logsum_p2 = log sum p^2                    hit     = (first index of the maximum == target)
 *
 * arguments  logits f32 [C,VOCAB], target i32 [C], [logp], [lse], [mean], [entropy], [hit],
 *            [logsum_p2] f32 [C]
 * n          C
 * defines    VOCAB SCALE
 *
 * Two sweeps over a row: the maximum, then the sums of z, e = exp(z - max), e (z - max) and e^2;
 * the second finds even a row of 128k logits in the cache.  Sums are of 16 lanes within blocks of
 * BLOCK columns, and blocks are added in order: over a large vocabulary that keeps errors small.
 */
enum { FN(BLOCK) = 4096 };

typedef struct FN(Sums) {
    float z, e, ez, e2;
} FN(Sums);

static float FN(most)(const float *restrict logits) {
    enum { WHOLE = VOCAB / 16 * 16 };
    float most[16];
    for (int l = 0; l < 16; l++) most[l] = -F32_INF;
    for (int64_t c = 0; c < WHOLE; c += 16)
#pragma omp simd
        for (int l = 0; l < 16; l++) most[l] = f32_max(most[l], SCALE * logits[c + l]);
    for (int l = 0; l < VOCAB - WHOLE; l++) most[l] = f32_max(most[l], SCALE * logits[WHOLE + l]);
    return lanes_max(most);
}

/* One block, `count` columns; only the sum of e unless `all`. */
static inline __attribute__((always_inline)) void
FN(block)(const float *restrict logits, float top, int64_t count, FN(Sums) * sums, const bool all) {
    float z[16], e[16], ez[16], e2[16];
    for (int l = 0; l < 16; l++) z[l] = e[l] = ez[l] = e2[l] = 0.0f;
    for (int64_t c = 0; c + 16 <= count; c += 16)
#pragma omp simd
        for (int l = 0; l < 16; l++) {
            const float y = SCALE * logits[c + l], x = f32_exp(y - top);
            e[l] += x;
            if (all) z[l] += y;
            if (all) ez[l] += x * (y - top);
            if (all) e2[l] += x * x;
        }
    for (int64_t l = 0, c = count / 16 * 16; l < count % 16; l++) {
        const float y = SCALE * logits[c + l], x = f32_exp(y - top);
        e[l] += x;
        if (all) z[l] += y;
        if (all) ez[l] += x * (y - top);
        if (all) e2[l] += x * x;
    }
    sums->e += lanes_sum(e);
    if (all) sums->z += lanes_sum(z);
    if (all) sums->ez += lanes_sum(ez);
    if (all) sums->e2 += lanes_sum(e2);
}

static float FN(hit)(const float *logits, float most, int32_t target) {
    int64_t first = 0;
    while (first < VOCAB - 1 && !(SCALE * logits[first] == most)) first++;
    return first == target ? 1.0f : 0.0f;
}

void SYMBOL(void *const *p, const int64_t *n) {
    const int32_t *const target = p[1];
    float *const logp = p[2], *const lse = p[3], *const mean = p[4], *const entropy = p[5];
    float *const hit = p[6], *const p2 = p[7];
    const bool all = mean || entropy || p2;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n[0]; r++) {
        const float *const logits = (const float *)p[0] + r * VOCAB;
        const float most = FN(most)(logits);
        FN(Sums) s = {0};
        for (int64_t c = 0; c < VOCAB; c += FN(BLOCK)) {
            const int64_t count = VOCAB - c < FN(BLOCK) ? VOCAB - c : FN(BLOCK);
            if (all)
                FN(block)(logits + c, most, count, &s, true);
            else
                FN(block)(logits + c, most, count, &s, false);
        }
        const float log_e = f32_log(s.e);
        const bool scored = target[r] >= 0 && target[r] < VOCAB;
        if (logp) logp[r] = scored ? SCALE * logits[target[r]] - most - log_e : 0.0f;
        if (lse) lse[r] = most + log_e;
        if (mean) mean[r] = s.z / (float)VOCAB;
        if (entropy) entropy[r] = log_e - s.ez / s.e;
        if (hit) hit[r] = FN(hit)(logits, most, target[r]);
        if (p2) p2[r] = f32_log(s.e2) - 2.0f * log_e;
    }
}
