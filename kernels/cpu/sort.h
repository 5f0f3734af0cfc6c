/* sort: y = x ascending, NaN last; equal values keep their order; y[i] = x[source[i]].
 *
 * arguments  x f32 [P], [y f32 [P]], [source i32 [P]]
 * n          P
 *
 * An element's place is the number of elements that go before it: no order of work matters.
 */
INLINE bool FN(before)(float a, int64_t i, float b, int64_t j) {
    if (a != a || b != b) return (a == a) || (b != b && a != a && i < j);
    return a < b || (a == b && i < j);
}

void SYMBOL(void *const *p, const int64_t *n) {
    const float *const x = p[0];
    float *const y = p[1];
    int32_t *const source = p[2];
#pragma omp parallel for schedule(static) if (n[0] >= 256)
    for (int64_t i = 0; i < n[0]; i++) {
        int64_t at = 0;
        for (int64_t j = 0; j < n[0]; j++) at += FN(before)(x[j], j, x[i], i);
        if (y) y[at] = x[i];
        if (source) source[at] = (int32_t)i;
    }
}
