/* sort: y = x ascending, NaN last; equal values keep their order; y[i] = x[source[i]].
 *
 * arguments  x f32 [P], [y f32 [P]], [source i32 [P]]
 * n          P
 * grid       any
 *
 * An element's place is the number of elements that go before it: no order of work matters.
 */
INLINE bool FN(before)(float a, int64_t i, float b, int64_t j) {
    if (a != a || b != b) return (a == a) || (b != b && a != a && i < j);
    return a < b || (a == b && i < j);
}

extern "C" __global__ void SYMBOL(const float *x, float *y, int32_t *source, int64_t n) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        int64_t at = 0;
        for (int64_t j = 0; j < n; j++) at += FN(before)(x[j], j, x[i], i);
        if (y) y[at] = x[i];
        if (source) source[at] = (int32_t)i;
    }
}
