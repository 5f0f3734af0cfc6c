/* logprob_grad: the gradient of the log-probabilities with respect to the logits, in their place,
 * as kernels/cpu/logprob_grad.h says.
 *
 * arguments  logits f32 [C,VOCAB], target i32 [C], lse f32 [C], [c f32 [C]], d T_D [C,LD_D]
 * n          C
 * defines    VOCAB SCALE T_D LD_D
 * grid       one row per block of up to 512 threads
 *
 * A sweep of packs is read by all threads before any of it is written, and what is written never
 * reaches what is still to be read.
 */
enum {
    FN(PACK) = VOCAB % 4 == 0   ? 4
               : VOCAB % 2 == 0 ? 2
                                : 1,
    FN(PACKS) = VOCAB / FN(PACK), /* of a row */
    FN(AHEAD) = 4                 /* packs a thread reads at once */
};

extern "C" __global__ void __launch_bounds__(512, 2)
    SYMBOL(const float *logits, const int32_t *target, const float *lse, const float *coef,
           STORAGE(T_D) * d, int64_t rows) {
    for (int r = blockIdx.x; r < rows; r += gridDim.x) {
        const Packed<float, FN(PACK)> *const z =
            (const Packed<float, FN(PACK)> *)(logits + (int64_t)r * VOCAB);
        Packed<STORAGE(T_D), FN(PACK)> *const y =
            (Packed<STORAGE(T_D), FN(PACK)> *)(d + (int64_t)r * LD_D);
        const int t = target[r];
        const float k = t >= 0 ? (coef ? coef[r] : 1.0f) * SCALE : 0.0f, shift = -lse[r];
        for (int p0 = threadIdx.x; p0 - (int)threadIdx.x < FN(PACKS);
             p0 += blockDim.x * FN(AHEAD)) {
            Packed<float, FN(PACK)> x[FN(AHEAD)];
#pragma unroll
            for (int i = 0; i < FN(AHEAD); i++) {
                const int p = p0 + i * blockDim.x;
                if (t >= 0 && p < FN(PACKS)) x[i] = z[p];
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < FN(AHEAD); i++) {
                const int p = p0 + i * blockDim.x;
                Packed<STORAGE(T_D), FN(PACK)> out;
                if (p >= FN(PACKS)) continue;
#pragma unroll
                for (int e = 0; e < FN(PACK); e++) {
                    const float hit = p * FN(PACK) + e == t ? 1.0f : 0.0f;
                    const float prob = exp_near(__fmaf_rn(x[i].x[e], SCALE, shift));
                    out.x[e] = TO(T_D, t >= 0 ? k * (hit - prob) : 0.0f);
                }
                y[p] = out;
            }
        }
    }
}
