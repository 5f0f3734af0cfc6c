/* logprob_stats: statistics of each row of logits, as kernels/cpu/logprob_stats.h says, in one
 * sweep.
 *
 * arguments  logits f32 [C,VOCAB], target i32 [C], [logp], [lse], [mean], [entropy], [hit],
 *            [logsum_p2] f32 [C]
 * n          C
 * defines    VOCAB SCALE
 * grid       one row per block of up to 512 threads
 *
 * Each thread keeps sums relative to the greatest y = SCALE * logits it has met,
 *     e = sum exp(y - top)    ez = sum exp(y - top) (y - top)    e2 = sum exp(y - top)^2
 * and brings them to a new top when it meets one; then threads are joined two and two in the same
 * way, in an order that depends on VOCAB alone.
 */
enum {
    FN(PACK) = VOCAB % 4 == 0   ? 4
               : VOCAB % 2 == 0 ? 2
                                : 1,
    FN(PACKS) = VOCAB / FN(PACK), /* of a row */
    FN(AHEAD) = 2                 /* packs a thread reads at once */
};

struct FN(Stats) {
    float top, sum, e, ez, e2;
    int at; /* the first index of top */
};

/* Sums relative to s.top become relative to `top`, which is not less. */
INLINE void FN(raise)(struct FN(Stats) * s, float top) {
    const float down = s->top - top, f = exp_near(down);
    s->ez = f * __fmaf_rn(down, s->e, s->ez);
    s->e *= f;
    s->e2 *= f * f;
    s->top = top;
}

/* The packs with numbers p, p + step, .. of a row; `full`: all of them are there. */
template <bool all, bool full>
INLINE void FN(take_in)(struct FN(Stats) * s, const float *z, int p, int step) {
    Packed<float, FN(PACK)> x[FN(AHEAD)];
    float top = -F32_INF;
#pragma unroll
    for (int i = 0; i < FN(AHEAD); i++)
        if (full || p + i * step < FN(PACKS))
            x[i] = ((const Packed<float, FN(PACK)> *)z)[p + i * step];
#pragma unroll
    for (int i = 0; i < FN(AHEAD) * FN(PACK); i++) {
        float *const y = &x[i / FN(PACK)].x[i % FN(PACK)];
        const bool there = full || p + i / FN(PACK) * step < FN(PACKS);
        *y = there ? *y * SCALE : -F32_INF;
        top = *y > top ? *y : top;
    }
    if (top > s->top) { /* rare after the first packs */
#pragma unroll
        for (int i = FN(AHEAD) * FN(PACK) - 1; i >= 0; i--)
            if (x[i / FN(PACK)].x[i % FN(PACK)] == top)
                s->at = (p + i / FN(PACK) * step) * FN(PACK) + i % FN(PACK);
        FN(raise)(s, top);
    }
#pragma unroll
    for (int i = 0; i < FN(AHEAD) * FN(PACK); i++) {
        const float y = x[i / FN(PACK)].x[i % FN(PACK)];
        const bool there = full || p + i / FN(PACK) * step < FN(PACKS);
        const float e = exp_near(y - s->top);
        s->e += e;
        if (all) s->sum += there ? y : 0.0f;
        if (all) s->ez = __fmaf_rn(e, there ? y - s->top : 0.0f, s->ez);
        if (all) s->e2 = __fmaf_rn(e, e, s->e2);
    }
}

/* s and what the thread `by` lanes away has; both end with the same. */
INLINE void FN(join)(struct FN(Stats) * s, int by) {
    struct FN(Stats) t;
    t.top = __shfl_xor_sync(0xffffffffu, s->top, by);
    t.sum = __shfl_xor_sync(0xffffffffu, s->sum, by);
    t.e = __shfl_xor_sync(0xffffffffu, s->e, by);
    t.ez = __shfl_xor_sync(0xffffffffu, s->ez, by);
    t.e2 = __shfl_xor_sync(0xffffffffu, s->e2, by);
    t.at = __shfl_xor_sync(0xffffffffu, s->at, by);
    s->at = s->top > t.top ? s->at : t.top > s->top || t.at < s->at ? t.at : s->at;
    const float top = f32_max(s->top, t.top);
    FN(raise)(s, top);
    FN(raise)(&t, top);
    s->sum += t.sum;
    s->e += t.e;
    s->ez += t.ez;
    s->e2 += t.e2;
}

/* The whole row's, in every thread of the first warp.  `room`: a place for each warp. */
template <bool all> INLINE struct FN(Stats) FN(row)(const float *z, struct FN(Stats) * room) {
    struct FN(Stats) s = {-3e38f, 0.0f, 0.0f, 0.0f, 0.0f, VOCAB - 1};
    const int threads = blockDim.x;
    int p = threadIdx.x;
    for (; p + threads * (FN(AHEAD) - 1) < FN(PACKS); p += threads * FN(AHEAD))
        FN(take_in)<all, true>(&s, z, p, threads);
    FN(take_in)<all, false>(&s, z, p, threads);
    for (int by = 16; by > 0; by /= 2) FN(join)(&s, by);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x < 32) {
        if (threadIdx.x < threads / 32)
            s = room[threadIdx.x];
        else
            s = {-3e38f, 0.0f, 0.0f, 0.0f, 0.0f, VOCAB - 1};
        for (int by = 16; by > 0; by /= 2) FN(join)(&s, by);
    }
    __syncthreads();
    return s;
}

extern "C" __global__ void __launch_bounds__(512, 2)
    SYMBOL(const float *logits, const int32_t *target, float *logp, float *lse, float *mean,
           float *entropy, float *hit, float *p2, int64_t rows) {
    __shared__ struct FN(Stats) room[32];
    const bool all = mean || entropy || p2;
    for (int r = blockIdx.x; r < rows; r += gridDim.x) {
        const float *const z = logits + (int64_t)r * VOCAB;
        const struct FN(Stats) s = all ? FN(row)<true>(z, room) : FN(row)<false>(z, room);
        if (threadIdx.x > 0) continue;
        const int t = target[r];
        const float log_e = f32_log(s.e);
        if (logp) logp[r] = t >= 0 && t < VOCAB ? SCALE * z[t] - s.top - log_e : 0.0f;
        if (lse) lse[r] = s.top + log_e;
        if (mean) mean[r] = s.sum / (float)VOCAB;
        if (entropy) entropy[r] = log_e - s.ez / s.e;
        if (hit) hit[r] = s.at == t ? 1.0f : 0.0f;
        if (p2) p2[r] = f32_log(s.e2) - 2.0f * log_e;
    }
}
