/* put: y[m] = sum of the rows x[r] with index[r] == m, r ascending, starting from 0.
 *
 * arguments  x f32 [R,COLS], index i32 [R], y f32 [M,COLS]
 * n          M, R
 * defines    COLS LD_X LD_Y
 * grid       one row of y per block: it walks all indices in order, each thread in its own columns
 */
extern "C" __global__ void SYMBOL(const float *x, const int32_t *index, float *y, int64_t rows,
                                  int64_t sources) {
    for (int64_t m = blockIdx.x; m < rows; m += gridDim.x)
        for (int64_t j = threadIdx.x; j < COLS; j += blockDim.x) {
            float sum = 0.0f;
            for (int64_t r = 0; r < sources; r++)
                if (index[r] == m) sum += x[r * LD_X + j];
            y[m * LD_Y + j] = sum;
        }
}
