/* take: y[r] = x[index[r]], zeros where index[r] < 0; rows of COLS elements, moved as they are.
 *
 * arguments  x T_X [M,COLS], index i32 [R], y T_X [R,COLS]
 * n          R, M
 * defines    T_X COLS LD_X LD_Y
 * grid       one row per block
 */
extern "C" __global__ void SYMBOL(const STORAGE(T_X) * x, const int32_t *index, STORAGE(T_X) * y,
                                  int64_t rows, int64_t) {
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const int64_t m = index[r];
        for (int64_t j = threadIdx.x; j < COLS; j += blockDim.x)
            y[r * LD_Y + j] = m < 0 ? STORAGE(T_X)(0) : x[m * LD_X + j];
    }
}
