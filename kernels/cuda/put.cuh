/* put: y[m] = sum of the rows x[r] with index[r] == m, r ascending, starting from 0.
 *
 * arguments  x f32 [R,COLS], index i32 [R], y f32 [M,COLS]
 * n          M, R
 * defines    COLS LD_X LD_Y ALIGN: x and y begin at multiples of so many bytes
 * grid       one row of y per block of 128 threads; blocks along y share its columns
 *
 * The block looks through the indices together, a tile at a time: bit l of hits[w] says that row
 * 32 w + l of the tile belongs to m.  Each thread then adds those rows in its own columns.
 */
enum {
    FN(THREADS) = 128,
    FN(TILE) = 8 * FN(THREADS), /* indices looked at between barriers */
    FN(PACK) = pack_size(sizeof(float), ALIGN, COLS, LD_X, LD_Y),
    FN(PACKS) = COLS / FN(PACK), /* of a row */
    FN(EACH) = FN(PACKS) < 8 * FN(THREADS) ? (FN(PACKS) + FN(THREADS) - 1) / FN(THREADS) : 8
};

extern "C" __global__ void __launch_bounds__(128, 4)
    SYMBOL(const float *x, const int32_t *index, float *y, int64_t rows, int64_t sources) {
    typedef Packed<float, FN(PACK)> Pack;
    __shared__ uint32_t hits[FN(TILE) / 32];
    __shared__ float tile[COLS == 1 ? FN(TILE) : 1]; /* single numbers are fetched together, too */
    for (int m = blockIdx.x; m < rows; m += gridDim.x)
        for (int p0 = blockIdx.y * FN(THREADS) * FN(EACH); p0 < FN(PACKS);
             p0 += gridDim.y * FN(THREADS) * FN(EACH)) {
            Pack sum[FN(EACH)] = {};
            for (int r0 = 0; r0 < sources; r0 += FN(TILE)) {
#pragma unroll
                for (int i = threadIdx.x; i < FN(TILE); i += FN(THREADS)) {
                    const bool hit = r0 + i < sources && index[r0 + i] == m;
                    const uint32_t word = __ballot_sync(0xffffffffu, hit);
                    if (threadIdx.x % 32 == 0) hits[i / 32] = word;
                    if (COLS == 1 && hit) tile[i] = x[(int64_t)(r0 + i) * LD_X];
                }
                __syncthreads();
                for (int w = 0; w < FN(TILE) / 32; w++)
                    for (uint32_t left = hits[w]; left; left &= left - 1) {
                        const int i = 32 * w + __ffs((int)left) - 1;
                        const Pack *const from = (const Pack *)(x + (int64_t)(r0 + i) * LD_X);
#pragma unroll
                        for (int k = 0; k < FN(EACH); k++) {
                            const int p = p0 + k * FN(THREADS) + threadIdx.x;
                            if (p >= FN(PACKS)) break;
                            Pack more;
                            if (COLS == 1)
                                more.x[0] = tile[i];
                            else
                                more = from[p];
#pragma unroll
                            for (int e = 0; e < FN(PACK); e++) sum[k].x[e] += more.x[e];
                        }
                    }
                __syncthreads();
            }
#pragma unroll
            for (int k = 0; k < FN(EACH); k++) {
                const int p = p0 + k * FN(THREADS) + threadIdx.x;
                if (p < FN(PACKS)) ((Pack *)(y + (int64_t)m * LD_Y))[p] = sum[k];
            }
        }
}
