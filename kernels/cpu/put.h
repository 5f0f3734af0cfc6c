/* put: y[m] = sum of the rows x[r] with index[r] == m, r ascending, starting from 0.
 *
 * arguments  x f32 [R,COLS], index i32 [R], y f32 [M,COLS]
 * n          M, R
 * defines    COLS LD_X LD_Y
 *
 * Every thread walks all rows in order and adds those of its own range of m (narrow rows) or its
 * own range of columns (wide ones), so the order of additions is that of r whatever the threads.
 */
enum { FN(chunk) = 256, FN(chunks) = (COLS + FN(chunk) - 1) / FN(chunk) };

/* Columns begin .. end of the rows of y in first .. last. */
static void FN(range)(const float *x, const int32_t *index, float *y, int64_t rows, int64_t first,
                      int64_t last, int64_t begin, int64_t end) {
    for (int64_t m = first; m < last; m++)
        for (int64_t j = begin; j < end; j++) y[m * LD_Y + j] = 0.0f;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t m = index[r];
        if (m < first || m >= last) continue;
        const float *const from = x + r * LD_X;
        float *const to = y + m * LD_Y;
#pragma omp simd
        for (int64_t j = begin; j < end; j++) to[j] += from[j];
    }
}

void SYMBOL(void *const *p, const int64_t *n) {
    const bool wide = FN(chunks) >= 8;
    const int64_t parts = wide ? FN(chunks) : n[0] < 16 ? n[0] : 16;
    const int64_t step = wide || parts == 0 ? n[0] : (n[0] + parts - 1) / parts;
#pragma omp parallel for schedule(static) if (n[1] * COLS >= 16384)
    for (int64_t i = 0; i < parts; i++) {
        const int64_t first = wide ? 0 : i * step, begin = wide ? i * FN(chunk) : 0;
        const int64_t last = first + step < n[0] ? first + step : n[0];
        const int64_t end = wide && begin + FN(chunk) < COLS ? begin + FN(chunk) : COLS;
        FN(range)(p[0], p[1], p[2], n[1], first, last, begin, end);
    }
}
