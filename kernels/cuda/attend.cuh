/* attend: attention of each query over the keys it sees, as kernels/cpu/attend.h says.
 *
 * arguments  q T_Q [T,HEADS,HEAD_DIM], k, v T_Q [M,KV_HEADS,HEAD_DIM], segs i32 [G,6], out T_Q,
 *            [lse f32 [T,HEADS]]
 * n          T, M, G
 * defines    T_Q HEADS KV_HEADS HEAD_DIM SCALE WINDOW LD_Q LD_K LD_V LD_O
 * grid       x blocks of 64 queries, y heads; 4 warps per block
 *
 * The plain version: one warp per query and head, a lane holds every 32nd element of the head; keys
 * in order of position under the running maximum and sum of an online softmax.
 */
enum { FN(PART) = (HEAD_DIM + 31) / 32 };

extern "C" __global__ void SYMBOL(const STORAGE(T_Q) * q, const STORAGE(T_Q) * k,
                                  const STORAGE(T_Q) * v, const int32_t *segs, STORAGE(T_Q) * out,
                                  float *lse, int64_t rows, int64_t, int64_t nsegs) {
    const int64_t head = blockIdx.y, kv = head / (HEADS / KV_HEADS);
    for (int64_t t = (int64_t)blockIdx.x * 64 + threadIdx.x / 32;
         t < rows && t < (int64_t)blockIdx.x * 64 + 64; t += blockDim.x / 32) {
        const int32_t *seg = segs;
        while (seg < segs + 6 * nsegs && (t < seg[0] || t >= seg[0] + seg[1])) seg += 6;
        const bool named = seg < segs + 6 * nsegs;
        const int64_t plen = named ? seg[3] : 0;
        const int64_t last = named ? plen + t - seg[0] + seg[5] - seg[1] : -1;
        const int64_t begin = WINDOW && last - WINDOW + 1 > 0 ? last - WINDOW + 1 : 0;
        float qs[FN(PART)], y[FN(PART)], most = -1e30f, sum = 0.0f;
        for (int i = 0; i < FN(PART); i++) {
            qs[i] = WARP_AT(T_Q, q + t * LD_Q + head * HEAD_DIM, i, HEAD_DIM);
            y[i] = 0.0f;
        }
        for (int64_t pos = begin; pos <= last; pos++) {
            const int64_t key = pos < plen ? seg[2] + pos : seg[4] + pos - plen;
            float s = 0.0f;
            for (int i = 0; i < FN(PART); i++)
                s = __fmaf_rn(qs[i], WARP_AT(T_Q, k + key * LD_K + kv * HEAD_DIM, i, HEAD_DIM), s);
            s = SCALE * warp_sum(s);
            const float next = f32_max(most, s);
            const float shrink = f32_exp(most - next), p = f32_exp(s - next);
            most = next;
            sum = sum * shrink + p;
            for (int i = 0; i < FN(PART); i++)
                y[i] = __fmaf_rn(p, WARP_AT(T_Q, v + key * LD_V + kv * HEAD_DIM, i, HEAD_DIM),
                                 y[i] * shrink);
        }
        for (int i = 0; i < FN(PART); i++) {
            const int d = threadIdx.x % 32 + 32 * i;
            if (d < HEAD_DIM)
                out[t * LD_O + head * HEAD_DIM + d] = TO(T_Q, sum == 0.0f ? 0.0f : y[i] / sum);
        }
        if (lse && threadIdx.x % 32 == 0)
            lse[t * HEADS + head] = sum == 0.0f ? 0.0f : most + f32_log(sum);
    }
}
