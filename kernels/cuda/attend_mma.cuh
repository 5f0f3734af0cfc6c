/* attend_mma: attention of each query over the keys it sees, on tensor cores; what it computes is
 * in kernels/cpu/attend.h.
 *
 * arguments  q bf16 [T,HEADS,HEAD_DIM], k, v bf16 [M,KV_HEADS,HEAD_DIM], segs i32 [G,6], out bf16,
 *            [lse f32 [T,HEADS]]
 * n          T, M, G
 * defines    HEADS KV_HEADS HEAD_DIM SCALE WINDOW LD_Q LD_K LD_V LD_O (multiples of 8),
 *            WARPS, TILES (of 16 queries per warp), KEYS (a multiple of 16)
 * grid       x blocks of WARPS * TILES * 16 queries, y heads, renumbered; WARPS warps
 * shared     tiles of the block's queries, KEYS keys, KEYS values
 *
 * A block holds its queries in shared memory and its results in registers.  For each segment that
 * names some of its queries, keys come KEYS at a time in order of position, prefix and own as one
 * sequence.  While scores of one tile are made its values are on their way, and the next keys while
 * the values are added.  Probabilities are rounded to bf16 for their product with the values; their
 * sum, the maximum and all accumulators are f32.  Scores are in units of log 2.  A warp passes over
 * tiles that none of its queries sees, and masks only those that not all of them see.
 */
enum {
    FN(OWN) = TILES * 16, /* rows of a warp */
    FN(ROWS) = WARPS * FN(OWN),
    FN(K_AT) = FN(ROWS) * TILE_PITCH(HEAD_DIM), /* in shared memory, after the queries */
    FN(V_AT) = FN(K_AT) + KEYS * TILE_PITCH(HEAD_DIM)
};

typedef float FN(Scores)[TILES][KEYS / 8][4];
typedef struct FN(State) { /* of one lane */
    float out[TILES][HEAD_DIM / 8][4], most[TILES][2], sum[TILES][2];
} FN(State);

/* Scores of keys that a row does not see become -inf. */
INLINE void FN(mask)(FN(Scores) & s, const Span *span, int row, int at) {
    const int first = row + threadIdx.x % 32 / 4, column = at + threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int t = first + 16 * m + i / 2 * 8;
            const bool named = t >= span->begin && t < span->end;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
                if (!named || !sees(t + span->shift, column + 8 * n + i % 2, WINDOW))
                    s[m][n][i] = -F32_INF;
        }
}

/* Scores become probabilities under the new maximum; what was summed under the old one shrinks. */
INLINE void FN(softmax)(FN(Scores) & s, FN(State) * y) {
    const float unit = SCALE * 1.44269504f;
    float shrink[TILES][2];
    bool same = true;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = -F32_INF;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
                most = fmaxf(most, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            most = fmaxf(y->most[m][h], most * unit); /* a NaN shows in the sum */
            shrink[m][h] = exp2_fast(y->most[m][h] - most);
            same = same && y->most[m][h] == most;
            y->most[m][h] = most;
            float sum = y->sum[m][h] * shrink[m][h];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++) {
                    s[m][n][i] = exp2_fast(__fmaf_rn(s[m][n][i], unit, -most));
                    sum += s[m][n][i];
                }
            y->sum[m][h] = sum;
        }
    if (__all_sync(0xffffffffu, same)) return;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) y->out[m][n][i] *= shrink[m][i / 2];
}

/* The block's queries of one segment. */
INLINE void FN(segment)(FN(State) * y, shared_t room, const bf16_t *k, const bf16_t *v,
                        const Span *span, int row, int column) {
    const int end = span->end + span->shift;
    int at = span_first_key(span, WINDOW);
    const shared_t queries = room + threadIdx.x / 32 * FN(OWN) * TILE_PITCH(HEAD_DIM);
    if (at < end)
        tile_load(room + FN(K_AT), k, LD_K, column, at, end, span->fold, span->prefix, span->own,
                  KEYS, HEAD_DIM, WARPS * 32);
    cp_async_commit();
    for (; at < end; at += KEYS) {
        const bool touched = span_touches(span, row, at, FN(OWN), KEYS, WINDOW);
        FN(Scores) s;
        cp_async_wait(0);
        __syncthreads(); /* the keys are here, and nobody reads values any more */
        tile_load(room + FN(V_AT), v, LD_V, column, at, end, span->fold, span->prefix, span->own,
                  KEYS, HEAD_DIM, WARPS * 32);
        cp_async_commit();
        if (touched) tile_scores<TILES, KEYS / 8, HEAD_DIM>(s, queries, room + FN(K_AT));
        cp_async_wait(0);
        __syncthreads(); /* the values are here, and nobody reads keys any more */
        if (at + KEYS < end)
            tile_load(room + FN(K_AT), k, LD_K, column, at + KEYS, end, span->fold, span->prefix,
                      span->own, KEYS, HEAD_DIM, WARPS * 32);
        cp_async_commit();
        if (!touched) continue;
        if (!span_covers(span, row, at, FN(OWN), KEYS, WINDOW)) FN(mask)(s, span, row, at);
        FN(softmax)(s, y);
        tile_add<TILES, KEYS / 8, HEAD_DIM>(y->out, s, room + FN(V_AT));
    }
}

INLINE void FN(store)(FN(State) * y, bf16_t *out, float *lse, int row, int rows, int head) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = y->sum[m][h];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            const int t = row + 16 * m + 8 * h + lane / 4;
            if (t >= rows) continue;
            const float part = sum == 0.0f ? 0.0f : 1.0f / sum;
            uint32_t *const to = (uint32_t *)(out + (int64_t)t * LD_O + head * HEAD_DIM) + lane % 4;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++)
                to[4 * n] = pack_bf16(y->out[m][n][2 * h] * part, y->out[m][n][2 * h + 1] * part);
            if (lse && lane % 4 == 0)
                lse[(int64_t)t * HEADS + head] =
                    sum == 0.0f ? 0.0f : y->most[m][h] * 0.693147181f + f32_log(sum);
        }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
    SYMBOL(const bf16_t *q, const bf16_t *k, const bf16_t *v, const int32_t *segs, bf16_t *out,
           float *lse, int64_t rows, int64_t, int64_t nsegs) {
    const int head = block_number() % HEADS, kv = head / (HEADS / KV_HEADS);
    const int first =
        FN(ROWS) * queries_of_rank(segs, (int)nsegs, (int)rows, block_number() / HEADS, FN(ROWS),
                                   KEYS, WINDOW, WARPS * 32);
    const int end = min(first + FN(ROWS), (int)rows), row = first + (int)threadIdx.x / 32 * FN(OWN);
    const shared_t room = shared_address(tile_room);
    tile_load(room, q, LD_Q, head * HEAD_DIM, first, end, 0, 0, 0, FN(ROWS), HEAD_DIM, WARPS * 32);
    FN(State) y;
    tile_clear(y.out);
#pragma unroll
    for (int m = 0; m < TILES; m++) {
        y.most[m][0] = y.most[m][1] = -1e30f;
        y.sum[m][0] = y.sum[m][1] = 0.0f;
    }
    for (int g = next_meeting(segs, 6, (int)nsegs, 0, first, end); g < nsegs;
         g = next_meeting(segs, 6, (int)nsegs, g + 1, first, end)) {
        const Span span = segment_span(segs + 6 * g, first, end);
        FN(segment)(&y, room, k, v, &span, row, kv * HEAD_DIM);
    }
    cp_async_wait(0); /* of queries that no segment names */
    FN(store)(&y, out, lse, row, (int)rows, block_number() % HEADS);
}
