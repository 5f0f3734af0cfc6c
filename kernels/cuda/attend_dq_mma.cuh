/* attend_dq_mma: gradient of attention with respect to the queries, on tensor cores; the formulas
 * are in kernels/cpu/attend_dq.h.
 *
 * arguments  q, k, v bf16, lse f32 [T,HEADS], dout bf16, segs i32 [G,6], delta f32 [T,HEADS],
 *            dq T_DQ
 * n          T, M, G
 * defines    as attend_mma without TILES, and T_DQ LD_DO LD_DQ
 * grid       x blocks of WARPS * 16 queries, y heads, renumbered; WARPS warps
 * shared     two times KEYS keys and KEYS values; at first the queries and their dout, which then
 *            stay in registers (WARPS * 16 <= 2 KEYS)
 *
 * Segments and tiles of keys are walked as in attend_mma, but the next keys and values come while a
 * whole tile is worked on.  ds is rounded to bf16 for its product with the keys; SCALE is applied
 * to the sum.
 */
enum {
    FN(ROWS) = WARPS * 16,
    FN(TILE) = KEYS * TILE_PITCH(HEAD_DIM), /* bytes of one tile; keys at 0, 1, values at 2, 3 */
    FN(DOUT_AT) = FN(ROWS) * TILE_PITCH(HEAD_DIM)
};

static_assert(FN(ROWS) <= 2 * KEYS, "queries and dout begin in the place of keys and values");

typedef float FN(Scores)[1][KEYS / 8][4];
typedef struct FN(State) { /* of one lane; rows lane / 4 and 8 more of its warp */
    uint32_t q[HEAD_DIM / 16][4], dout[HEAD_DIM / 16][4];
    float dq[1][HEAD_DIM / 8][4], lse[2], delta[2]; /* lse in units of log 2 */
} FN(State);

/* Queries, dout and what the forward knows of them; all loads are over at the end. */
INLINE void FN(begin)(FN(State) * y, shared_t room, const bf16_t *q, const bf16_t *dout,
                      const float *lse, const float *delta, int first, int end, int head) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    tile_load(room, q, LD_Q, head * HEAD_DIM, first, end, 0, 0, 0, FN(ROWS), HEAD_DIM, WARPS * 32);
    tile_load(room + FN(DOUT_AT), dout, LD_DO, head * HEAD_DIM, first, end, 0, 0, 0, FN(ROWS),
              HEAD_DIM, WARPS * 32);
    cp_async_commit();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int t = first + warp * 16 + 8 * h + lane / 4;
        y->lse[h] = t < end ? lse[(int64_t)t * HEADS + head] * 1.44269504f : 0.0f;
        y->delta[h] = t < end ? delta[(int64_t)t * HEADS + head] : 0.0f;
    }
    cp_async_wait(0);
    __syncthreads();
    const shared_t rows = room + warp * 16 * TILE_PITCH(HEAD_DIM);
    tile_keep<HEAD_DIM>(y->q, rows);
    tile_keep<HEAD_DIM>(y->dout, rows + FN(DOUT_AT));
    tile_clear(y->dq);
}

/* Scores and dp become ds / SCALE, which takes the scores' place; 0 where a row does not see a
 * key. */
INLINE void FN(slopes)(const FN(State) * y, FN(Scores) & s, const FN(Scores) & dp, bool covered,
                       const Span *span, int row, int at) {
    const int first = row + threadIdx.x % 32 / 4, column = at + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float p = exp2_fast(__fmaf_rn(s[0][n][i], SCALE * 1.44269504f, -y->lse[i / 2]));
            s[0][n][i] = p * (dp[0][n][i] - y->delta[i / 2]);
        }
    if (covered) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int t = first + i / 2 * 8;
        const bool named = t >= span->begin && t < span->end;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            if (!named || !sees(t + span->shift, column + 8 * n + i % 2, WINDOW)) s[0][n][i] = 0.0f;
    }
}

INLINE void FN(load)(shared_t room, const bf16_t *k, const bf16_t *v, int stage, const Span *span,
                     int at, int column) {
    const int end = span->end + span->shift;
    tile_load(room + stage * FN(TILE), k, LD_K, column, at, end, span->fold, span->prefix,
              span->own, KEYS, HEAD_DIM, WARPS * 32);
    tile_load(room + (2 + stage) * FN(TILE), v, LD_V, column, at, end, span->fold, span->prefix,
              span->own, KEYS, HEAD_DIM, WARPS * 32);
    cp_async_commit();
}

/* The block's queries of one segment. */
INLINE void FN(segment)(FN(State) * y, shared_t room, const bf16_t *k, const bf16_t *v,
                        const Span *span, int row, int column) {
    const int end = span->end + span->shift;
    int at = span_first_key(span, WINDOW), stage = 0;
    __syncthreads(); /* nobody reads shared memory any more */
    FN(load)(room, k, v, 0, span, at, column);
    for (; at < end; at += KEYS, stage ^= 1) {
        cp_async_wait(0);
        __syncthreads(); /* this tile is here, and nobody reads the one before any more */
        if (at + KEYS < end) FN(load)(room, k, v, stage ^ 1, span, at + KEYS, column);
        if (!span_touches(span, row, at, 16, KEYS, WINDOW)) continue;
        const shared_t keys = room + stage * FN(TILE), values = room + (2 + stage) * FN(TILE);
        FN(Scores) s, dp;
        tile_scores_kept<KEYS / 8, HEAD_DIM>(s, y->q, keys);
        tile_scores_kept<KEYS / 8, HEAD_DIM>(dp, y->dout, values);
        FN(slopes)(y, s, dp, span_covers(span, row, at, 16, KEYS, WINDOW), span, row, at);
        tile_add<1, KEYS / 8, HEAD_DIM>(y->dq, s, keys);
    }
    cp_async_wait(0);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
    SYMBOL(const bf16_t *q, const bf16_t *k, const bf16_t *v, const float *lse, const bf16_t *dout,
           const int32_t *segs, const float *delta, STORAGE(T_DQ) * dq, int64_t rows, int64_t,
           int64_t nsegs) {
    const int head = block_number() % HEADS, kv = head / (HEADS / KV_HEADS);
    const int first =
        FN(ROWS) * queries_of_rank(segs, (int)nsegs, (int)rows, block_number() / HEADS, FN(ROWS),
                                   KEYS, WINDOW, WARPS * 32);
    const int end = min(first + FN(ROWS), (int)rows), row = first + (int)threadIdx.x / 32 * 16;
    const shared_t room = shared_address(tile_room);
    FN(State) y;
    FN(begin)(&y, room, q, dout, lse, delta, first, end, head);
    for (int g = next_meeting(segs, 6, (int)nsegs, 0, first, end); g < nsegs;
         g = next_meeting(segs, 6, (int)nsegs, g + 1, first, end)) {
        const Span span = segment_span(segs + 6 * g, first, end);
        FN(segment)(&y, room, k, v, &span, row, kv * HEAD_DIM);
    }
    tile_store<HEAD_DIM>(dq, LD_DQ, block_number() % HEADS * HEAD_DIM, row, end, y.dq[0], SCALE);
}
