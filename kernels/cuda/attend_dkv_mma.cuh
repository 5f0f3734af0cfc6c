/* attend_dkv_mma: gradients of attention with respect to keys and values, on tensor cores; the
 * formulas are in kernels/cpu/attend_dkv.h.
 *
 * arguments  q, k, v bf16, lse f32 [T,HEADS], dout bf16, segs i32 [G,6], ranges i32 [K,4],
 *            delta f32 [T,HEADS], [dk T_DK], [dv T_DK]
 * n          M, T, G, K
 * defines    as attend_mma without TILES and KEYS, and QUERIES (a multiple of 16), T_DK LD_DO LD_DK
 *            LD_DV
 * grid       x blocks of WARPS * 16 keys, y key-value heads, renumbered; WARPS warps
 * shared     the block's keys and values; two times QUERIES queries and their dout; two times their
 *            lse and delta
 *
 * Everything is transposed: keys are rows, queries columns, so that probabilities and ds lie as the
 * products with dout and q want them.  A block alone writes its keys; it adds ranges, segments,
 * heads and queries in order.  p and ds are rounded to bf16 for their products; SCALE is applied to
 * the sum.
 */
/* Only what is wanted has a distance between rows. */
#ifdef LD_DK
enum { FN(LDK) = LD_DK };
#else
enum { FN(LDK) = 0 };
#endif
#ifdef LD_DV
enum { FN(LDV) = LD_DV };
#else
enum { FN(LDV) = 0 };
#endif

enum {
    FN(ROWS) = WARPS * 16,
    FN(SHARE) = HEADS / KV_HEADS,
    FN(PITCH) = TILE_PITCH(HEAD_DIM),
    FN(K_AT) = 0,
    FN(V_AT) = FN(ROWS) * FN(PITCH),
    FN(Q_AT) = 2 * FN(V_AT),
    FN(TILE) = QUERIES * FN(PITCH),        /* bytes of one tile */
    FN(STATS_AT) = FN(Q_AT) + 4 * FN(TILE) /* two times lse, delta */
};

typedef float FN(Scores)[1][QUERIES / 8][4];
typedef struct FN(State) { /* of one lane; keys lane / 4 and 8 more of its warp */
    float dk[1][HEAD_DIM / 8][4], dv[1][HEAD_DIM / 8][4];
} FN(State);

/* Keys of a block in one range, and the queries of a segment that see them.  Key m is at position
 * m + key_shift, query t at t + shift. */
typedef struct FN(View) {
    int key_begin, key_end, key_shift, begin, end, shift;
} FN(View);

INLINE FN(View) FN(view)(const int32_t *range, const int32_t *seg, int first, int last) {
    FN(View) w;
    w.key_begin = max(first, range[0]);
    w.key_end = min(last, range[0] + range[1]);
    const bool prefix = w.key_begin >= seg[2] && w.key_begin < seg[2] + seg[3];
    const bool own = w.key_begin >= seg[4] && w.key_begin < seg[4] + seg[5];
    w.key_shift = prefix ? -seg[2] : seg[3] - seg[4];
    w.shift = seg[3] + seg[5] - seg[1] - seg[0];
    w.begin = max(seg[0], w.key_begin + w.key_shift - w.shift);
    w.end = prefix || own ? seg[0] + seg[1] : w.begin;
    if (WINDOW) w.end = min(w.end, w.key_end - 1 + w.key_shift + WINDOW - w.shift);
    return w;
}

/* The tile of keys of a rank: a query that sees some of them is a unit, and a segment QUERIES. */
INLINE int FN(keys_of_rank)(const int32_t *segs, const int32_t *ranges, int nranges, int keys,
                            int rank) {
    const int n = gridDim.x;
    if (n > RANKED_TILES || nranges > RANKED_SEGMENTS) return rank; /* early keys are seen more */
    for (int i = threadIdx.x; i < n; i += WARPS * 32) {
        const int first = i * FN(ROWS), last = min(first + FN(ROWS), keys);
        int weight = 0;
        for (const int32_t *r = ranges; r < ranges + 4 * nranges; r += 4)
            for (int g = r[2]; r[0] < last && r[0] + r[1] > first && g < r[2] + r[3]; g++) {
                const FN(View) w = FN(view)(r, segs + 6 * g, first, last);
                if (w.begin < w.end) weight += w.end - w.begin + QUERIES;
            }
        ((int *)tile_room)[i] = weight;
    }
    return tile_of_rank(n, rank, WARPS * 32);
}

/* p and ds / SCALE out of scores and dp, in their place; 0 where a query does not see a key.
 * `stats`: lse and delta of the tile's queries. */
INLINE void FN(slopes)(FN(Scores) & s, FN(Scores) & dp, const float *stats, bool covered,
                       const FN(View) * w, int row, int t) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
        const int column = 8 * n + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float lse = stats[column + i % 2] * 1.44269504f;
            const float delta = stats[QUERIES + column + i % 2];
            s[0][n][i] = exp2_fast(__fmaf_rn(s[0][n][i], SCALE * 1.44269504f, -lse));
            dp[0][n][i] = s[0][n][i] * (dp[0][n][i] - delta);
        }
    }
    if (covered) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int key = row + lane / 4 + i / 2 * 8;
        const bool named = key >= w->key_begin && key < w->key_end;
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++) {
            const int query = t + 8 * n + lane % 4 * 2 + i % 2;
            if (named && query < w->end && sees(query + w->shift, key + w->key_shift, WINDOW))
                continue;
            s[0][n][i] = dp[0][n][i] = 0.0f;
        }
    }
}

/* Queries t .. of one head, their dout and statistics, into a stage. */
INLINE void FN(load)(shared_t room, const bf16_t *q, const bf16_t *dout, const float *lse,
                     const float *delta, int stage, int t, int end, int head) {
    const int i = threadIdx.x % QUERIES, query = t + i < end ? t + i : 0;
    const shared_t stats = room + FN(STATS_AT) + (stage * 2 * QUERIES + i) * 4;
    tile_load(room + FN(Q_AT) + stage * FN(TILE), q, LD_Q, head * HEAD_DIM, t, end, 0, 0, 0,
              QUERIES, HEAD_DIM, WARPS * 32);
    tile_load(room + FN(Q_AT) + (2 + stage) * FN(TILE), dout, LD_DO, head * HEAD_DIM, t, end, 0, 0,
              0, QUERIES, HEAD_DIM, WARPS * 32);
    if (threadIdx.x < QUERIES) {
        cp_async_4(stats, lse + (int64_t)query * HEADS + head, t + i < end);
        cp_async_4(stats + QUERIES * 4, delta + (int64_t)query * HEADS + head, t + i < end);
    }
    cp_async_commit();
}

/* One tile of queries: what it adds to the warp's keys. */
INLINE void FN(tile)(FN(State) * y, shared_t room, int stage, const FN(View) * w, int row, int t,
                     bool dk, bool dv) {
    const int low = row + w->key_shift, first = t + w->shift;
    const bool covered = row >= w->key_begin && row + 16 <= w->key_end && t + QUERIES <= w->end &&
                         all_see(first, first + QUERIES - 1, low, low + 15, WINDOW);
    const shared_t q = room + FN(Q_AT) + stage * FN(TILE), dout = q + 2 * FN(TILE);
    const float *const stats = (const float *)(tile_room + FN(STATS_AT)) + stage * 2 * QUERIES;
    const shared_t keys = room + threadIdx.x / 32 * 16 * FN(PITCH);
    FN(Scores) s, dp;
    tile_scores<1, QUERIES / 8, HEAD_DIM>(s, keys + FN(K_AT), q);
    tile_scores<1, QUERIES / 8, HEAD_DIM>(dp, keys + FN(V_AT), dout);
    FN(slopes)(s, dp, stats, covered, w, row, t);
    if (dv) tile_add<1, QUERIES / 8, HEAD_DIM>(y->dv, s, dout);
    if (dk) tile_add<1, QUERIES / 8, HEAD_DIM>(y->dk, dp, q);
}

/* The heads and queries of one segment. */
INLINE void FN(segment)(FN(State) * y, shared_t room, const bf16_t *q, const bf16_t *dout,
                        const float *lse, const float *delta, const FN(View) * w, int row, int kv,
                        bool dk, bool dv) {
    const int low = max(row, w->key_begin), high = min(row + 16, w->key_end) - 1;
    int t = w->begin, head = kv * FN(SHARE), stage = 0;
    if (t >= w->end) return;
    __syncthreads(); /* nobody reads the stages any more */
    FN(load)(room, q, dout, lse, delta, 0, t, w->end, head);
    while (head < kv * FN(SHARE) + FN(SHARE)) {
        const int now = t, last = min(t + QUERIES, w->end) - 1;
        t += QUERIES;
        if (t >= w->end) t = w->begin, head++;
        cp_async_wait(0);
        __syncthreads(); /* this tile is here, and nobody reads the one before any more */
        if (head < kv * FN(SHARE) + FN(SHARE))
            FN(load)(room, q, dout, lse, delta, stage ^ 1, t, w->end, head);
        if (low <= high && some_see(now + w->shift, last + w->shift, low + w->key_shift,
                                    high + w->key_shift, WINDOW))
            FN(tile)(y, room, stage, w, row, now, dk, dv);
        stage ^= 1;
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
    SYMBOL(const bf16_t *q, const bf16_t *k, const bf16_t *v, const float *lse, const bf16_t *dout,
           const int32_t *segs, const int32_t *ranges, const float *delta, STORAGE(T_DK) * dk,
           STORAGE(T_DK) * dv, int64_t keys, int64_t, int64_t, int64_t nranges) {
    const int kv = block_number() % KV_HEADS;
    const int first = FN(ROWS) * FN(keys_of_rank)(segs, ranges, (int)nranges, (int)keys,
                                                  block_number() / KV_HEADS);
    const int end = min(first + FN(ROWS), (int)keys), row = first + (int)threadIdx.x / 32 * 16;
    const shared_t room = shared_address(tile_room);
    tile_load(room + FN(K_AT), k, LD_K, kv * HEAD_DIM, first, end, 0, 0, 0, FN(ROWS), HEAD_DIM,
              WARPS * 32);
    tile_load(room + FN(V_AT), v, LD_V, kv * HEAD_DIM, first, end, 0, 0, 0, FN(ROWS), HEAD_DIM,
              WARPS * 32);
    cp_async_commit();
    FN(State) y;
    tile_clear(y.dk);
    tile_clear(y.dv);
    for (int r = next_meeting(ranges, 4, (int)nranges, 0, first, end); r < nranges;
         r = next_meeting(ranges, 4, (int)nranges, r + 1, first, end)) {
        const int32_t *const range = ranges + 4 * r;
        for (int g = range[2]; g < range[2] + range[3]; g++) {
            const FN(View) w = FN(view)(range, segs + 6 * g, first, end);
            FN(segment)(&y, room, q, dout, lse, delta, &w, row, kv, dk != 0, dv != 0);
        }
    }
    cp_async_wait(0); /* of keys that no query sees */
    if (dk) tile_store<HEAD_DIM>(dk, FN(LDK), kv * HEAD_DIM, row, end, y.dk[0], SCALE);
    if (dv) tile_store<HEAD_DIM>(dv, FN(LDV), kv * HEAD_DIM, row, end, y.dv[0], 1.0f);
}
