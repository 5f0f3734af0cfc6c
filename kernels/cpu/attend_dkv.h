/* attend_dkv: gradients of attention with respect to keys and values (p and ds as in attend_dq).
 *
 *     dv[j][h'] = sum of p dout[t][h]        dk[j][h'] = sum of ds q[t][h]
 *     over the queries t that see key j and the heads h that share h'
 *
 * arguments  q, k, v T_Q, lse f32 [T,HEADS], dout T_DO, segs i32 [G,6], ranges i32 [K,4],
 *            delta f32 [T,HEADS], [dk T_DK], [dv T_DK]
 * n          M, T, G, K
 * defines    as attend, and T_DO T_DK LD_DO LD_DK LD_DV
 * ranges     key begin, key length, first segment, number of segments that see these keys
 *
 * One task is up to TILE keys of one range and one key-value head: it alone writes them, so there
 * are no atomics, and segments, heads and queries are added in order.  Keys are the vector axis: k
 * and v are transposed once, q and dout are read as they lie, in blocks of TILE queries of one
 * head.  Keys of no range give zeros.
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

typedef struct FN(Task) {
    int64_t key, kv, keys, width; /* first key and head in memory; keys in use, in whole vectors */
    _Alignas(64) float k[HEAD_DIM * TILE], v[HEAD_DIM * TILE], dk[HEAD_DIM * TILE],
        dv[HEAD_DIM * TILE];
    float score[TILE * TILE], dp[TILE * TILE], q[TILE * HEAD_DIM], dout[TILE * HEAD_DIM];
} FN(Task);

static void FN(begin)(FN(Task) * t, void *const *p) {
    t->width = (t->keys + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH;
    for (int64_t r = 0; r < t->width; r++) {
        const int64_t key = t->key + (r < t->keys ? r : 0);
        const STORAGE(T_Q) *const k = (const STORAGE(T_Q) *)p[1] + key * LD_K + t->kv * HEAD_DIM;
        const STORAGE(T_Q) *const v = (const STORAGE(T_Q) *)p[2] + key * LD_V + t->kv * HEAD_DIM;
        for (int64_t d = 0; d < HEAD_DIM; d++) {
            t->k[d * TILE + r] = FROM(T_Q, k[d]);
            t->v[d * TILE + r] = FROM(T_Q, v[d]);
        }
    }
    for (int64_t i = 0; i < HEAD_DIM * TILE; i++) t->dk[i] = t->dv[i] = 0.0f;
}

/* Scores become p, dp becomes ds.  Key r stands at `position` + r, query i at `first` + i.
 * (Loops over 16 lanes: the compiler adds no scalar ends.) */
static void FN(slopes)(FN(Task) * t, int64_t position, int64_t first, int64_t queries,
                       const float *lse, const float *delta) {
    for (int64_t i = 0; i < queries; i++)
        for (int64_t r = 0; r < t->width; r += 16) {
            float *const s = t->score + i * TILE + r, *const dp = t->dp + i * TILE + r;
            const float shift = lse[i * HEADS], d = delta[i * HEADS];
            const int high = (int)(first + i - position - r),
                      low = WINDOW ? high - WINDOW + 1 : -16;
#pragma omp simd
            for (int l = 0; l < 16; l++) {
                const float e = tile_exp(TILE_FMA(s[l], SCALE, -shift));
                s[l] = (l <= high) & (l >= low) ? e : 0.0f;
                dp[l] = SCALE * s[l] * (dp[l] - d);
            }
        }
}

/* Queries begin .. end of a segment, one head: query i lies in row `row` + i - begin at position
 * `first` + i. */
static void FN(queries)(FN(Task) * t, void *const *p, int64_t head, int64_t position, int64_t row,
                        int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; i += TILE) {
        const int64_t m = count - i < TILE ? count - i : TILE, at = row + i;
        const STORAGE(T_Q) *const q = (const STORAGE(T_Q) *)p[0] + at * LD_Q + head * HEAD_DIM;
        const STORAGE(T_DO) *const dout =
            (const STORAGE(T_DO) *)p[4] + at * LD_DO + head * HEAD_DIM;
        TILE_ROWS_OF(T_Q)(q, LD_Q, m, HEAD_DIM, t->q);
        TILE_ROWS_OF(T_DO)(dout, LD_DO, m, HEAD_DIM, t->dout);
        tile_product(t->score, false, t->q, HEAD_DIM, 1, t->k, m, HEAD_DIM, t->width);
        tile_product(t->dp, false, t->dout, HEAD_DIM, 1, t->v, m, HEAD_DIM, t->width);
        FN(slopes)
        (t, position, first + i, m, (const float *)p[3] + at * HEADS + head,
         (const float *)p[7] + at * HEADS + head);
        if (p[9]) tile_product(t->dv, true, t->dout, 1, HEAD_DIM, t->score, HEAD_DIM, m, t->width);
        if (p[8]) tile_product(t->dk, true, t->q, 1, HEAD_DIM, t->dp, HEAD_DIM, m, t->width);
    }
}

/* The queries of one segment that see some of the task's keys. */
static void FN(segment)(FN(Task) * t, void *const *p, const int32_t *seg) {
    enum { SHARE = HEADS / KV_HEADS };
    const int64_t in_prefix = t->key - seg[2], in_own = t->key - seg[4];
    const bool prefix = in_prefix >= 0 && in_prefix < seg[3];
    if (!prefix && (in_own < 0 || in_own >= seg[5])) return;
    const int64_t position = prefix ? in_prefix : seg[3] + in_own;
    const int64_t first = (int64_t)seg[3] + seg[5] - seg[1]; /* position of query 0 */
    int64_t begin = position - first, end = seg[1];
    if (begin < 0) begin = 0;
    if (WINDOW && position + t->keys - 1 + WINDOW - first < end)
        end = position + t->keys - 1 + WINDOW - first;
    for (int64_t h = 0; h < SHARE && begin < end; h++)
        FN(queries)(t, p, t->kv * SHARE + h, position, seg[0] + begin, first + begin, end - begin);
}

static void FN(store)(const FN(Task) * t, const float *from, STORAGE(T_DK) * to, int64_t ld) {
    for (int64_t r = 0; to && r < t->keys; r++)
        for (int64_t d = 0; d < HEAD_DIM; d++)
            to[(t->key + r) * ld + t->kv * HEAD_DIM + d] = TO(T_DK, from[d * TILE + r]);
}

static void FN(clear)(STORAGE(T_DK) * to, int64_t ld, int64_t keys) {
    for (int64_t j = 0; to && j < keys; j++)
        for (int64_t i = 0; i < KV_HEADS * HEAD_DIM; i++) to[j * ld + i] = 0;
}

static void FN(task)(void *const *p, const int32_t *range, int64_t block, int64_t kv) {
    FN(Task) t;
    t.key = range[0] + block * TILE, t.kv = kv;
    t.keys = range[1] - block * TILE < TILE ? range[1] - block * TILE : TILE;
    FN(begin)(&t, p);
    for (int64_t g = 0; g < range[3]; g++)
        FN(segment)(&t, p, (const int32_t *)p[5] + 6 * (range[2] + g));
    FN(store)(&t, t.dk, p[8], FN(LDK));
    FN(store)(&t, t.dv, p[9], FN(LDV));
}

void SYMBOL(void *const *p, const int64_t *n) {
    const int32_t *const ranges = p[6];
    int64_t tasks = 0, named = 0;
    for (int64_t k = 0; k < n[3]; k++) {
        tasks += (ranges[4 * k + 1] + TILE - 1) / TILE;
        named += ranges[4 * k + 1];
    }
    if (named != n[0]) {
        FN(clear)(p[8], FN(LDK), n[0]);
        FN(clear)(p[9], FN(LDV), n[0]);
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tasks * KV_HEADS; i++) {
        const int32_t *range = ranges;
        int64_t block = i / KV_HEADS;
        for (; block >= (range[1] + TILE - 1) / TILE; range += 4)
            block -= (range[1] + TILE - 1) / TILE;
        FN(task)(p, range, block, i % KV_HEADS);
    }
}
