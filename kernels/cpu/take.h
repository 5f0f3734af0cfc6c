/* take: y[r] = x[index[r]], zeros where index[r] < 0; rows of COLS elements, moved as they are.
 *
 * arguments  x T_X [M,COLS], index i32 [R], y T_X [R,COLS]
 * n          R, M
 * defines    T_X COLS LD_X LD_Y
 */
void SYMBOL(void *const *p, const int64_t *n) {
    const STORAGE(T_X) *const x = p[0];
    const int32_t *const index = p[1];
    STORAGE(T_X) *const y = p[2];
#pragma omp parallel for schedule(static) if (n[0] * COLS >= 16384)
    for (int64_t r = 0; r < n[0]; r++) {
        STORAGE(T_X) *const to = y + r * LD_Y;
        const STORAGE(T_X) *const from = x + (int64_t)(index[r] < 0 ? 0 : index[r]) * LD_X;
        if (index[r] < 0)
            for (int64_t j = 0; j < COLS; j++) to[j] = 0;
        else
            for (int64_t j = 0; j < COLS; j++) to[j] = from[j];
    }
}
