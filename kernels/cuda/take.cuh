/* take: y[r] = x[index[r]], zeros where index[r] < 0; rows of COLS elements, moved as they are.
 *
 * arguments  x T_X [M,COLS], index i32 [R], y T_X [R,COLS]
 * n          R, M
 * defines    T_X COLS LD_X LD_Y ALIGN: x and y begin at multiples of so many bytes
 * grid       one or more rows per block of 128 threads
 */
enum {
    FN(THREADS) = 128,
    FN(PACK) = pack_size(sizeof(STORAGE(T_X)), ALIGN, COLS, LD_X, LD_Y),
    FN(PACKS) = COLS / FN(PACK),                                   /* of a row */
    FN(WIDTH) = FN(PACKS) < FN(THREADS) ? FN(PACKS) : FN(THREADS), /* threads for a row */
    FN(ROWS) = FN(THREADS) / FN(WIDTH)
};

extern "C" __global__ void __launch_bounds__(128, 4)
    SYMBOL(const STORAGE(T_X) * x, const int32_t *index, STORAGE(T_X) * y, int64_t rows, int64_t) {
    typedef Packed<STORAGE(T_X), FN(PACK)> Pack;
    const int place = threadIdx.x / FN(WIDTH);
    if (place >= FN(ROWS)) return;
    for (int r = blockIdx.x * FN(ROWS) + place; r < rows; r += gridDim.x * FN(ROWS)) {
        const int m = index[r];
        const Pack *const from = (const Pack *)(x + (int64_t)(m < 0 ? 0 : m) * LD_X);
        Pack *const to = (Pack *)(y + (int64_t)r * LD_Y);
#pragma unroll 4
        for (int p = threadIdx.x % FN(WIDTH); p < FN(PACKS); p += FN(WIDTH)) {
            Pack moved = {};
            if (m >= 0) moved = from[p];
            to[p] = moved;
        }
    }
}
