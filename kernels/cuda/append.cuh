/* append: cache[index[t]] = x[t]; rows of COLS elements, moved as they are.
 *
 * arguments  x T_X [T,COLS], index i32 [T], cache T_X [M,COLS]
 * n          T, M
 * defines    T_X COLS LD_X ALIGN: x and cache begin at multiples of so many bytes
 * grid       one or more rows per block of 128 threads
 *
 * Row numbers outside 0 .. M-1 are dropped; no two rows have the same.
 */
enum {
    FN(THREADS) = 128,
    FN(PACK) = pack_size(sizeof(STORAGE(T_X)), ALIGN, COLS, LD_X, COLS),
    FN(PACKS) = COLS / FN(PACK),                                   /* of a row */
    FN(WIDTH) = FN(PACKS) < FN(THREADS) ? FN(PACKS) : FN(THREADS), /* threads for a row */
    FN(ROWS) = FN(THREADS) / FN(WIDTH)
};

extern "C" __global__ void __launch_bounds__(128, 4)
    SYMBOL(const STORAGE(T_X) * x, const int32_t *index, STORAGE(T_X) * cache, int64_t rows,
           int64_t held) {
    typedef Packed<STORAGE(T_X), FN(PACK)> Pack;
    const int place = threadIdx.x / FN(WIDTH);
    if (place >= FN(ROWS)) return;
    for (int t = blockIdx.x * FN(ROWS) + place; t < rows; t += gridDim.x * FN(ROWS)) {
        const int m = index[t];
        if (m < 0 || m >= held) continue;
        const Pack *const from = (const Pack *)(x + (int64_t)t * LD_X);
        Pack *const to = (Pack *)(cache + (int64_t)m * COLS);
        for (int p = threadIdx.x % FN(WIDTH); p < FN(PACKS); p += FN(WIDTH)) to[p] = from[p];
    }
}
