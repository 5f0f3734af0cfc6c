/* attend_dq: gradient of attention with respect to the queries, as kernels/cpu/attend_dq.h says.
 *
 * arguments  q, k, v T_Q, lse f32 [T,HEADS], dout T_DO, segs i32 [G,6], delta f32 [T,HEADS],
 *            dq T_DQ
 * n          T, M, G
 * defines    as attend, and T_DO T_DQ LD_DO LD_DQ
 * grid       x blocks of 64 queries, y heads; 4 warps per block
 *
 * The plain version: one warp per query and head, a lane holds every 32nd element of the head.
 */
enum { FN(PART) = (HEAD_DIM + 31) / 32 };

extern "C" __global__ void SYMBOL(const STORAGE(T_Q) * q, const STORAGE(T_Q) * k,
                                  const STORAGE(T_Q) * v, const float *lse,
                                  const STORAGE(T_DO) * dout, const int32_t *segs,
                                  const float *delta, STORAGE(T_DQ) * dq, int64_t rows, int64_t,
                                  int64_t nsegs) {
    const int64_t head = blockIdx.y, kv = head / (HEADS / KV_HEADS);
    for (int64_t t = (int64_t)blockIdx.x * 64 + threadIdx.x / 32;
         t < rows && t < (int64_t)blockIdx.x * 64 + 64; t += blockDim.x / 32) {
        const int32_t *seg = segs;
        while (seg < segs + 6 * nsegs && (t < seg[0] || t >= seg[0] + seg[1])) seg += 6;
        const bool named = seg < segs + 6 * nsegs;
        const int64_t plen = named ? seg[3] : 0;
        const int64_t last = named ? plen + t - seg[0] + seg[5] - seg[1] : -1;
        const int64_t begin = WINDOW && last - WINDOW + 1 > 0 ? last - WINDOW + 1 : 0;
        const float shift = lse[t * HEADS + head], mean = delta[t * HEADS + head];
        float qs[FN(PART)], ds[FN(PART)], y[FN(PART)];
        for (int i = 0; i < FN(PART); i++) {
            qs[i] = WARP_AT(T_Q, q + t * LD_Q + head * HEAD_DIM, i, HEAD_DIM);
            ds[i] = WARP_AT(T_DO, dout + t * LD_DO + head * HEAD_DIM, i, HEAD_DIM);
            y[i] = 0.0f;
        }
        for (int64_t pos = begin; pos <= last; pos++) {
            const int64_t key = pos < plen ? seg[2] + pos : seg[4] + pos - plen;
            const STORAGE(T_Q) *const kp = k + key * LD_K + kv * HEAD_DIM;
            const STORAGE(T_Q) *const vp = v + key * LD_V + kv * HEAD_DIM;
            float s = 0.0f, dp = 0.0f;
            for (int i = 0; i < FN(PART); i++) {
                s = __fmaf_rn(qs[i], WARP_AT(T_Q, kp, i, HEAD_DIM), s);
                dp = __fmaf_rn(ds[i], WARP_AT(T_Q, vp, i, HEAD_DIM), dp);
            }
            const float p = f32_exp(SCALE * warp_sum(s) - shift);
            const float slope = SCALE * p * (warp_sum(dp) - mean);
            for (int i = 0; i < FN(PART); i++)
                y[i] = __fmaf_rn(slope, WARP_AT(T_Q, kp, i, HEAD_DIM), y[i]);
        }
        for (int i = 0; i < FN(PART); i++) {
            const int d = threadIdx.x % 32 + 32 * i;
            if (d < HEAD_DIM) dq[t * LD_DQ + head * HEAD_DIM + d] = TO(T_DQ, y[i]);
        }
    }
}
