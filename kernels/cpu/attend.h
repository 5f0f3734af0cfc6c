/* attend: attention of each query over the keys it sees; never a matrix of all scores.
 *
 *     out[t][h] = sum over j of softmax_j(SCALE q[t][h] . k[j][h']) v[j][h']
 *     lse[t][h] = log sum over j of exp(SCALE q[t][h] . k[j][h'])       h' = h / (HEADS / KV_HEADS)
 *
 * arguments  q T_Q [T,HEADS,HEAD_DIM], k, v T_Q [M,KV_HEADS,HEAD_DIM], segs i32 [G,6], out T_Q,
 *            [lse f32 [T,HEADS]]
 * n          T, M, G
 * defines    T_Q HEADS KV_HEADS HEAD_DIM SCALE WINDOW LD_Q LD_K LD_V LD_O
 * segs       q begin, q length, prefix begin, prefix length, own begin, own length (ops.def)
 *
 * One task is one segment, the heads that share a key-value head, and up to TILE rows (queries
 * times heads).  Rows are the vector axis: q is transposed once, k and v are read as they lie;
 * scores, softmax and result are kept transposed, [..][TILE].  Keys come in blocks of TILE in
 * order of position, under the running maximum and sum of an online softmax.  Rows that no
 * segment names give zeros.
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
    float most[TILE], sum[TILE];
    _Alignas(64) float q[HEAD_DIM * TILE], out[HEAD_DIM * TILE], score[TILE * TILE],
        room[TILE * HEAD_DIM];
} FN(Task);

/* Block `block` of segment `seg`, heads `head` ..: limits, transposed q, empty sums. */
static void FN(begin)(FN(Task) * t, const STORAGE(T_Q) * q, const int32_t *seg, int64_t block,
                      int64_t head) {
    const int64_t i0 = block * FN(QUERIES), left = seg[1] - i0;
    const int64_t queries = left < FN(QUERIES) ? left : FN(QUERIES);
    t->query = seg[0] + i0, t->head = head;
    t->prefix = seg[2], t->plen = seg[3], t->own = seg[4];
    t->first = t->plen + i0 + seg[5] - seg[1];
    t->last = t->first + queries - 1;
    t->rows = queries * FN(SHARE);
    t->width = (t->rows + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH;
    for (int64_t r = 0; r < t->width; r++) {
        const int64_t i = r / FN(SHARE);
        const STORAGE(T_Q) *const from =
            q + (t->query + i) * LD_Q + (head + r % FN(SHARE)) * HEAD_DIM;
        t->high[r] = (int32_t)(t->first + i);
        t->low[r] = WINDOW ? t->high[r] - WINDOW + 1 : 0;
        t->most[r] = -1e30f;
        t->sum[r] = 0.0f;
        for (int64_t d = 0; d < HEAD_DIM; d++)
            t->q[d * TILE + r] = r < t->rows ? FROM(T_Q, from[d]) : 0.0f;
    }
    for (int64_t i = 0; i < HEAD_DIM * TILE; i++) t->out[i] = 0.0f;
}

/* TILE_WIDTH rows from r on: scores become probabilities under the new maximum; what was summed
 * under the old one shrinks.  `clear`: every row sees every key.  (Loops over a constant count of
 * lanes: the compiler adds no scalar ends.) */
static inline __attribute__((always_inline)) void
FN(softmax)(FN(Task) * t, int64_t r, int64_t position, int64_t keys, const bool clear) {
    float *const score = t->score + r, *const out = t->out + r;
    float most[TILE_WIDTH], shrink[TILE_WIDTH], sum[TILE_WIDTH];
    for (int l = 0; l < TILE_WIDTH; l++) most[l] = t->most[r + l];
    for (int64_t j = 0; j < keys; j++) {
        float *const s = score + j * TILE;
        const int32_t at = (int32_t)(position + j);
#pragma omp simd
        for (int l = 0; l < TILE_WIDTH; l++) {
            const bool seen = (at <= t->high[r + l]) & (!WINDOW || at >= t->low[r + l]);
            const float y = clear || seen ? s[l] : -F32_INF;
            if (!clear) s[l] = y;
            most[l] = most[l] > SCALE * y ? most[l] : SCALE * y; /* a NaN shows in the sum */
        }
    }
#pragma omp simd
    for (int l = 0; l < TILE_WIDTH; l++) {
        shrink[l] = tile_exp(t->most[r + l] - most[l]);
        sum[l] = t->sum[r + l] * shrink[l];
        t->most[r + l] = most[l];
    }
    for (int64_t d = 0; d < HEAD_DIM; d++)
#pragma omp simd
        for (int l = 0; l < TILE_WIDTH; l++) out[d * TILE + l] *= shrink[l];
    for (int64_t j = 0; j < keys; j++) {
        float *const s = score + j * TILE;
#pragma omp simd
        for (int l = 0; l < TILE_WIDTH; l++) {
            s[l] = tile_exp(TILE_FMA(s[l], SCALE, -most[l]));
            sum[l] += s[l];
        }
    }
    for (int l = 0; l < TILE_WIDTH; l++) t->sum[r + l] = sum[l];
}

/* Keys at positions begin .. end, which lie at k, v from key number `from` on. */
static void FN(keys)(FN(Task) * t, const STORAGE(T_Q) * k, const STORAGE(T_Q) * v, int64_t begin,
                     int64_t end, int64_t from) {
    const int64_t kv = t->head / (HEADS / KV_HEADS);
    for (int64_t at = begin; at < end; at += TILE) {
        const int64_t count = end - at < TILE ? end - at : TILE, key = from + at - begin;
        TILE_ROWS_OF(T_Q)(k + key * LD_K + kv * HEAD_DIM, LD_K, count, HEAD_DIM, t->room);
        tile_product(t->score, false, t->room, HEAD_DIM, 1, t->q, count, HEAD_DIM, t->width);
        const bool clear = at + count - 1 <= t->first && (!WINDOW || at > t->last - WINDOW);
        for (int64_t r = 0; r < t->width; r += TILE_WIDTH) {
            if (clear)
                FN(softmax)(t, r, at, count, true);
            else
                FN(softmax)(t, r, at, count, false);
        }
        TILE_ROWS_OF(T_Q)(v + key * LD_V + kv * HEAD_DIM, LD_V, count, HEAD_DIM, t->room);
        tile_product(t->out, true, t->room, 1, HEAD_DIM, t->score, HEAD_DIM, count, t->width);
    }
}

static void FN(end)(const FN(Task) * t, STORAGE(T_Q) * out, float *lse) {
    for (int64_t r = 0; r < t->rows; r++) {
        const int64_t query = t->query + r / FN(SHARE), head = t->head + r % FN(SHARE);
        const float part = t->sum[r] == 0.0f ? 0.0f : 1.0f / t->sum[r];
        STORAGE(T_Q) *const to = out + query * LD_O + head * HEAD_DIM;
        for (int64_t d = 0; d < HEAD_DIM; d++) to[d] = TO(T_Q, t->out[d * TILE + r] * part);
        if (lse)
            lse[query * HEADS + head] = t->sum[r] == 0.0f ? 0.0f : t->most[r] + f32_log(t->sum[r]);
    }
}

static void FN(task)(void *const *p, const int32_t *seg, int64_t block, int64_t head) {
    FN(Task) t;
    FN(begin)(&t, p[0], seg, block, head);
    const int64_t low = WINDOW && t.low[0] > 0 ? t.low[0] : 0;
    const int64_t own = low > t.plen ? low : t.plen;
    if (low < t.plen) FN(keys)(&t, p[1], p[2], low, t.plen, t.prefix + low);
    FN(keys)(&t, p[1], p[2], own, t.last + 1, t.own + own - t.plen);
    FN(end)(&t, p[4], p[5]);
}

/* Zeros, in case rows exist that no segment names. */
static void FN(clear)(STORAGE(T_Q) * out, float *lse, int64_t rows) {
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t j = 0; j < HEADS * HEAD_DIM; j++) out[t * LD_O + j] = 0;
        for (int64_t h = 0; lse && h < HEADS; h++) lse[t * HEADS + h] = 0.0f;
    }
}

void SYMBOL(void *const *p, const int64_t *n) {
    enum { GROUPS = HEADS / FN(SHARE) };
    const int32_t *const segs = p[3];
    int64_t tasks = 0, named = 0;
    for (int64_t g = 0; g < n[2]; g++) {
        tasks += (segs[6 * g + 1] + FN(QUERIES) - 1) / FN(QUERIES);
        named += segs[6 * g + 1];
    }
    if (named != n[0]) FN(clear)(p[4], p[5], n[0]);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tasks * GROUPS; i++) {
        const int32_t *seg = segs;
        int64_t block = i / GROUPS;
        for (; block >= (seg[1] + FN(QUERIES) - 1) / FN(QUERIES); seg += 6)
            block -= (seg[1] + FN(QUERIES) - 1) / FN(QUERIES);
        FN(task)(p, seg, block, i % GROUPS * FN(SHARE));
    }
}
