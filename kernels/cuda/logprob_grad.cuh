/* logprob_grad: the gradient of the log-probabilities with respect to the logits, in their place,
 * as kernels/cpu/logprob_grad.h says.
 *
 * arguments  logits f32 [C,VOCAB], target i32 [C], lse f32 [C], [c f32 [C]], d T_D [C,LD_D]
 * n          C
 * defines    VOCAB SCALE T_D LD_D
 * grid       one row per block of 256 threads
 *
 * 256 elements are read before any of them is written, and what is written never reaches elements
 * still to be read.
 */
extern "C" __global__ void SYMBOL(const float *logits, const int32_t *target, const float *lse,
                                  const float *coef, STORAGE(T_D) * d, int64_t rows) {
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const int t = target[r];
        const float k = t >= 0 ? (coef ? coef[r] : 1.0f) * SCALE : 0.0f, shift = lse[r];
        for (int j0 = 0; j0 < VOCAB; j0 += 256) {
            const int j = j0 + threadIdx.x;
            const float z = j < VOCAB ? logits[r * VOCAB + j] : 0.0f;
            __syncthreads();
            const float e = f32_exp(SCALE * z - shift);
            const float y = t >= 0 ? k * ((j == t ? 1.0f : 0.0f) - e) : 0.0f;
            if (j < VOCAB) d[r * LD_D + j] = TO(T_D, y);
        }
    }
}
