/* attend_dq: gradient of attention with respect to the queries.
 *
 *     p_j       = exp(SCALE q[t][h] . k[j][h'] - lse[t][h])
 *     ds_j      = SCALE p_j (dout[t][h] . v[j][h'] - delta[t][h])
 *     dq[t][h]  = sum over the keys j that query t sees of ds_j k[j][h']
 *
 * arguments  q, k, v T_Q, lse f32 [T,HEADS], dout T_DO, segs i32 [G,6], delta f32 [T,HEADS],
 *            dq T_DQ
 * n          T, M, G
 * defines    as attend, and T_DO T_DQ LD_DO LD_DQ
 *
 * Tasks, rows and key blocks are those of attend; everything is transposed, [..][TILE].
 */
enum {
    FN(SHARE) = HEADS / KV_HEADS <= TILE ? HEADS / KV_HEADS : 1, /* heads of a task */
    FN(QUERIES) = TILE / FN(SHARE)
};

/* One task while it runs.  Row r is query r / SHARE, head r % SHARE. */
typedef struct FN(Task) {
    int64_t query, head;           /* the first ones, in memory */
    int64_t plen, prefix, own;     /* position p is key prefix + p, from plen on own + p - plen */
    int64_t first, last;           /* positions of the first and the last query */
    int64_t rows, width;           /* rows in use; rounded up to whole vectors */
    int32_t high[TILE], low[TILE]; /* positions that a row sees, inclusive */
    float lse[TILE], delta[TILE];
    _Alignas(64) float q[HEAD_DIM * TILE], dout[HEAD_DIM * TILE], dq[HEAD_DIM * TILE];
    float score[TILE * TILE], dp[TILE * TILE], room[TILE * HEAD_DIM];
} FN(Task);

/* Row r of the task: its limits, statistics, and q and dout as a column. */
static void FN(row)(FN(Task) * t, void *const *p, int64_t r) {
    const int64_t i = r / FN(SHARE), query = t->query + i, head = t->head + r % FN(SHARE);
    const bool used = r < t->rows;
    const STORAGE(T_Q) *const q = (const STORAGE(T_Q) *)p[0] + query * LD_Q + head * HEAD_DIM;
    const STORAGE(T_DO) *const dout = (const STORAGE(T_DO) *)p[4] + query * LD_DO + head * HEAD_DIM;
    t->high[r] = (int32_t)(t->first + i);
    t->low[r] = WINDOW ? t->high[r] - WINDOW + 1 : 0;
    t->lse[r] = used ? ((const float *)p[3])[query * HEADS + head] : 0.0f;
    t->delta[r] = used ? ((const float *)p[6])[query * HEADS + head] : 0.0f;
    for (int64_t d = 0; d < HEAD_DIM; d++) {
        t->q[d * TILE + r] = used ? FROM(T_Q, q[d]) : 0.0f;
        t->dout[d * TILE + r] = used ? FROM(T_DO, dout[d]) : 0.0f;
    }
}

static void FN(begin)(FN(Task) * t, void *const *p, const int32_t *seg, int64_t block,
                      int64_t head) {
    const int64_t i0 = block * FN(QUERIES), left = seg[1] - i0;
    const int64_t queries = left < FN(QUERIES) ? left : FN(QUERIES);
    t->query = seg[0] + i0, t->head = head;
    t->prefix = seg[2], t->plen = seg[3], t->own = seg[4];
    t->first = t->plen + i0 + seg[5] - seg[1];
    t->last = t->first + queries - 1;
    t->rows = queries * FN(SHARE);
    t->width = (t->rows + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH;
    for (int64_t r = 0; r < t->width; r++) FN(row)(t, p, r);
    for (int64_t i = 0; i < HEAD_DIM * TILE; i++) t->dq[i] = 0.0f;
}

/* Scores and dp become ds.  (Loops over 16 lanes: the compiler adds no scalar ends.) */
static void FN(slopes)(FN(Task) * t, int64_t position, int64_t keys) {
    for (int64_t j = 0; j < keys; j++)
        for (int64_t r = 0; r < t->width; r += 16) {
            float *const s = t->score + j * TILE + r;
            const float *const dp = t->dp + j * TILE + r;
            const int32_t at = (int32_t)(position + j);
#pragma omp simd
            for (int l = 0; l < 16; l++) {
                const float e = SCALE * tile_exp(TILE_FMA(s[l], SCALE, -t->lse[r + l]));
                const bool seen = (at <= t->high[r + l]) & (!WINDOW || at >= t->low[r + l]);
                s[l] = seen ? e * (dp[l] - t->delta[r + l]) : 0.0f;
            }
        }
}

/* Keys at positions begin .. end, which lie in memory from key number `from` on. */
static void FN(keys)(FN(Task) * t, void *const *p, int64_t begin, int64_t end, int64_t from) {
    const int64_t kv = t->head / (HEADS / KV_HEADS);
    for (int64_t at = begin; at < end; at += TILE) {
        const int64_t count = end - at < TILE ? end - at : TILE, key = from + at - begin;
        const STORAGE(T_Q) *const k = (const STORAGE(T_Q) *)p[1] + key * LD_K + kv * HEAD_DIM;
        const STORAGE(T_Q) *const v = (const STORAGE(T_Q) *)p[2] + key * LD_V + kv * HEAD_DIM;
        TILE_ROWS_OF(T_Q)(v, LD_V, count, HEAD_DIM, t->room);
        tile_product(t->dp, false, t->room, HEAD_DIM, 1, t->dout, count, HEAD_DIM, t->width);
        TILE_ROWS_OF(T_Q)(k, LD_K, count, HEAD_DIM, t->room);
        tile_product(t->score, false, t->room, HEAD_DIM, 1, t->q, count, HEAD_DIM, t->width);
        FN(slopes)(t, at, count);
        tile_product(t->dq, true, t->room, 1, HEAD_DIM, t->score, HEAD_DIM, count, t->width);
    }
}

static void FN(task)(void *const *p, const int32_t *seg, int64_t block, int64_t head) {
    FN(Task) t;
    FN(begin)(&t, p, seg, block, head);
    const int64_t low = WINDOW && t.low[0] > 0 ? t.low[0] : 0;
    const int64_t own = low > t.plen ? low : t.plen;
    if (low < t.plen) FN(keys)(&t, p, low, t.plen, t.prefix + low);
    FN(keys)(&t, p, own, t.last + 1, t.own + own - t.plen);
    for (int64_t r = 0; r < t.rows; r++) {
        STORAGE(T_DQ) *const to = (STORAGE(T_DQ) *)p[7] + (t.query + r / FN(SHARE)) * LD_DQ +
                                  (t.head + r % FN(SHARE)) * HEAD_DIM;
        for (int64_t d = 0; d < HEAD_DIM; d++) to[d] = TO(T_DQ, t.dq[d * TILE + r]);
    }
}

void SYMBOL(void *const *p, const int64_t *n) {
    enum { GROUPS = HEADS / FN(SHARE) };
    const int32_t *const segs = p[5];
    int64_t tasks = 0, named = 0;
    for (int64_t g = 0; g < n[2]; g++) {
        tasks += (segs[6 * g + 1] + FN(QUERIES) - 1) / FN(QUERIES);
        named += segs[6 * g + 1];
    }
    if (named != n[0]) /* rows exist that no segment names */
        for (int64_t t = 0; t < n[0]; t++)
            for (int64_t j = 0; j < HEADS * HEAD_DIM; j++)
                ((STORAGE(T_DQ) *)p[7])[t * LD_DQ + j] = 0;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tasks * GROUPS; i++) {
        const int32_t *seg = segs;
        int64_t block = i / GROUPS;
        for (; block >= (seg[1] + FN(QUERIES) - 1) / FN(QUERIES); seg += 6)
            block -= (seg[1] + FN(QUERIES) - 1) / FN(QUERIES);
        FN(task)(p, seg, block, i % GROUPS * FN(SHARE));
    }
}
