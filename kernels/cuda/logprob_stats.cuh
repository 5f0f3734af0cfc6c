/* logprob_stats: statistics of each row of logits, as kernels/cpu/logprob_stats.h says.
 *
 * arguments  logits f32 [C,VOCAB], target i32 [C], [logp], [lse], [mean], [entropy], [hit],
 *            [logsum_p2] f32 [C]
 * n          C
 * defines    VOCAB SCALE
 * grid       one row per block of 256 threads
 */
extern "C" __global__ void SYMBOL(const float *logits, const int32_t *target, float *logp,
                                  float *lse, float *mean, float *entropy, float *hit, float *p2,
                                  int64_t rows) {
    __shared__ float room[16];
    __shared__ int first;
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const float *z = logits + r * VOCAB;
        float most = -F32_INF, sum = 0.0f;
        for (int j = threadIdx.x; j < VOCAB; j += 256) {
            most = f32_max(most, SCALE * z[j]);
            sum += SCALE * z[j];
        }
        most = block_max(most, room);
        sum = block_sum(sum, room);
        if (threadIdx.x == 0) first = VOCAB - 1;
        __syncthreads();
        float e = 0.0f, ez = 0.0f, e2 = 0.0f;
        for (int j = threadIdx.x; j < VOCAB; j += 256) {
            const float y = SCALE * z[j], x = f32_exp(y - most);
            e += x;
            ez += x * (y - most);
            e2 += x * x;
            if (y == most) atomicMin(&first, j); /* of integers: order does not matter */
        }
        e = block_sum(e, room);
        ez = block_sum(ez, room);
        e2 = block_sum(e2, room);
        if (threadIdx.x == 0) {
            const int t = target[r];
            const float log_e = f32_log(e);
            if (logp) logp[r] = t >= 0 && t < VOCAB ? SCALE * z[t] - most - log_e : 0.0f;
            if (lse) lse[r] = most + log_e;
            if (mean) mean[r] = sum / (float)VOCAB;
            if (entropy) entropy[r] = log_e - ez / e;
            if (hit) hit[r] = first == t ? 1.0f : 0.0f;
            if (p2) p2[r] = f32_log(e2) - 2.0f * log_e;
        }
        __syncthreads();
    }
}
