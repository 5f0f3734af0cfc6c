/* append: cache[index[t]] = x[t]; rows of COLS elements, moved as they are.
 *
 * arguments  x T_X [T,COLS], index i32 [T], cache T_X [M,COLS]
 * n          T, M
 * defines    T_X COLS LD_X
 *
 * Row numbers outside 0 .. M-1 are dropped; no two rows have the same.
 */
void SYMBOL(void *const *p, const int64_t *n) {
    const STORAGE(T_X) *const x = p[0];
    const int32_t *const index = p[1];
    STORAGE(T_X) *const cache = p[2];
#pragma omp parallel for schedule(static) if (n[0] * COLS >= 16384)
    for (int64_t t = 0; t < n[0]; t++) {
        if (index[t] < 0 || index[t] >= n[1]) continue;
        STORAGE(T_X) *const to = cache + (int64_t)index[t] * COLS;
        const STORAGE(T_X) *const from = x + t * LD_X;
        for (int64_t j = 0; j < COLS; j++) to[j] = from[j];
    }
}
