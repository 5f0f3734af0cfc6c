/* attend_dkv: gradients of attention with respect to keys and values, as kernels/cpu/attend_dkv.h
 * says.
 *
 * arguments  q, k, v T_Q, lse f32 [T,HEADS], dout T_DO, segs i32 [G,6], ranges i32 [K,4],
 *            delta f32 [T,HEADS], [dk T_DK], [dv T_DK]
 * n          M, T, G, K
 * defines    as attend, and T_DO T_DK LD_DO LD_DK LD_DV
 * grid       x blocks of 64 keys, y key-value heads; 4 warps per block
 *
 * The plain version: one warp per key and key-value head, a lane holds every 32nd element of the
 * head; it adds segments, heads and queries in order, so there are no atomics.
 */
enum { FN(PART) = (HEAD_DIM + 31) / 32 };

/* Only what is wanted has a distance between rows. */
#ifdef LD_DK
enum { FN(LDK) = LD_DK };
#else
enum { FN(LDK) = 0 };
#endif
#ifdef LD_DV
enum { FN(LDV) = LD_DV };
#else
enum { FN(LDV) = 0 };
#endif

/* Position of the key in the segment, -1 where the segment does not see it. */
INLINE int64_t FN(position)(const int32_t *seg, int64_t key) {
    if (key >= seg[2] && key < seg[2] + seg[3]) return key - seg[2];
    if (key >= seg[4] && key < seg[4] + seg[5]) return seg[3] + key - seg[4];
    return -1;
}

extern "C" __global__ void
SYMBOL(const STORAGE(T_Q) * q, const STORAGE(T_Q) * k, const STORAGE(T_Q) * v, const float *lse,
       const STORAGE(T_DO) * dout, const int32_t *segs, const int32_t *ranges, const float *delta,
       STORAGE(T_DK) * dk, STORAGE(T_DK) * dv, int64_t keys, int64_t, int64_t, int64_t nranges) {
    const int64_t kv = blockIdx.y, share = HEADS / KV_HEADS;
    for (int64_t m = (int64_t)blockIdx.x * 64 + threadIdx.x / 32;
         m < keys && m < (int64_t)blockIdx.x * 64 + 64; m += blockDim.x / 32) {
        const int32_t *range = ranges;
        while (range < ranges + 4 * nranges && (m < range[0] || m >= range[0] + range[1]))
            range += 4;
        const int64_t count = range < ranges + 4 * nranges ? range[3] : 0;
        float ks[FN(PART)], vs[FN(PART)], yk[FN(PART)], yv[FN(PART)];
        for (int i = 0; i < FN(PART); i++) {
            ks[i] = WARP_AT(T_Q, k + m * LD_K + kv * HEAD_DIM, i, HEAD_DIM);
            vs[i] = WARP_AT(T_Q, v + m * LD_V + kv * HEAD_DIM, i, HEAD_DIM);
            yk[i] = yv[i] = 0.0f;
        }
        for (int64_t g = 0; g < count; g++) {
            const int32_t *seg = segs + 6 * (range[2] + g);
            const int64_t pos = FN(position)(seg, m), zero = (int64_t)seg[3] + seg[5] - seg[1];
            const int64_t begin = pos > zero ? pos - zero : 0;
            int64_t end = pos < 0 ? 0 : seg[1];
            if (WINDOW && pos + WINDOW - zero < end) end = pos + WINDOW - zero;
            for (int64_t h = kv * share; h < kv * share + share; h++)
                for (int64_t t = seg[0] + begin; t < seg[0] + end; t++) {
                    const STORAGE(T_Q) *const qp = q + t * LD_Q + h * HEAD_DIM;
                    const STORAGE(T_DO) *const dp = dout + t * LD_DO + h * HEAD_DIM;
                    float s = 0.0f, d = 0.0f;
                    for (int i = 0; i < FN(PART); i++) {
                        s = __fmaf_rn(ks[i], WARP_AT(T_Q, qp, i, HEAD_DIM), s);
                        d = __fmaf_rn(vs[i], WARP_AT(T_DO, dp, i, HEAD_DIM), d);
                    }
                    const float p = f32_exp(SCALE * warp_sum(s) - lse[t * HEADS + h]);
                    const float slope = SCALE * p * (warp_sum(d) - delta[t * HEADS + h]);
                    for (int i = 0; i < FN(PART); i++) {
                        yk[i] = __fmaf_rn(slope, WARP_AT(T_Q, qp, i, HEAD_DIM), yk[i]);
                        yv[i] = __fmaf_rn(p, WARP_AT(T_DO, dp, i, HEAD_DIM), yv[i]);
                    }
                }
        }
        for (int i = 0; i < FN(PART); i++) {
            const int d = threadIdx.x % 32 + 32 * i;
            if (d < HEAD_DIM && dk) dk[m * FN(LDK) + kv * HEAD_DIM + d] = TO(T_DK, yk[i]);
            if (d < HEAD_DIM && dv) dv[m * FN(LDV) + kv * HEAD_DIM + d] = TO(T_DK, yv[i]);
        }
    }
}
