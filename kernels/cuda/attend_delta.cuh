/* attend_delta: delta[t][h] = sum over d of out[t][h][d] * dout[t][h][d], in 16 lanes.
 *
 * arguments  out T_Q [T,HEADS,HEAD_DIM], dout T_DO, delta f32 [T,HEADS]
 * n          T
 * defines    T_Q T_DO HEADS HEAD_DIM LD_O LD_DO
 * grid       any; half a warp per row and head
 */
extern "C" __global__ void SYMBOL(const STORAGE(T_Q) * out, const STORAGE(T_DO) * dout,
                                  float *delta, int64_t rows) {
    const int64_t lane = threadIdx.x % 16, first = threadIdx.x / 16, step = blockDim.x / 16;
    for (int64_t i = blockIdx.x * step + first; i < rows * HEADS; i += gridDim.x * step) {
        const int64_t t = i / HEADS, h = i % HEADS;
        float s = 0.0f;
        for (int64_t d = lane; d < HEAD_DIM; d += 16)
            s += FROM(T_Q, out[t * LD_O + h * HEAD_DIM + d]) *
                 FROM(T_DO, dout[t * LD_DO + h * HEAD_DIM + d]);
        s = lanes_sum(s);
        if (lane == 0) delta[i] = s;
    }
}
