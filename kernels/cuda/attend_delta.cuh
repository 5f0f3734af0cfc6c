/* attend_delta: delta[t][h] = sum over d of out[t][h][d] * dout[t][h][d].
 *
 * arguments  out T_Q [T,HEADS,HEAD_DIM], dout T_DO, delta f32 [T,HEADS]
 * n          T
 * defines    T_Q T_DO HEADS HEAD_DIM LD_O LD_DO ALIGN: out and dout begin at multiples of so many
 *            bytes
 * grid       any; half a warp per row and head, a lane has every 16th pack of up to 16 bytes
 */
enum {
    FN(BYTES) =
        sizeof(STORAGE(T_Q)) < sizeof(STORAGE(T_DO)) ? sizeof(STORAGE(T_Q)) : sizeof(STORAGE(T_DO)),
    FN(PACK) = pack_size(FN(BYTES), ALIGN, HEAD_DIM, LD_O, LD_DO)
};

extern "C" __global__ void SYMBOL(const STORAGE(T_Q) * out, const STORAGE(T_DO) * dout,
                                  float *delta, int64_t rows) {
    const int64_t first = threadIdx.x / 16, step = blockDim.x / 16;
    for (int64_t i = blockIdx.x * step + first; i < rows * HEADS; i += gridDim.x * step) {
        const int64_t t = i / HEADS, h = i % HEADS;
        const STORAGE(T_Q) *const x = out + t * LD_O + h * HEAD_DIM;
        const STORAGE(T_DO) *const dx = dout + t * LD_DO + h * HEAD_DIM;
        float s = 0.0f;
        for (int p = threadIdx.x % 16; p < HEAD_DIM / FN(PACK); p += 16) {
            const auto a = ((const Packed<STORAGE(T_Q), FN(PACK)> *)x)[p];
            const auto b = ((const Packed<STORAGE(T_DO), FN(PACK)> *)dx)[p];
#pragma unroll
            for (int j = 0; j < FN(PACK); j++)
                s = __fmaf_rn(FROM(T_Q, a.x[j]), FROM(T_DO, b.x[j]), s);
        }
        s = lanes_sum(s);
        if (threadIdx.x % 16 == 0) delta[i] = s;
    }
}
