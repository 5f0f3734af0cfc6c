/* tile.cuh: tiles of bf16 matrices in shared memory and their products on tensor cores.
 *
 * A tile is rows of `dim` elements (a multiple of 16), each in whole groups of 8 chunks of 16
 * bytes.  Chunk c of row r stands in place c ^ (r % 8): the 8 rows that one matrix load reads at
 * the same c lie in different banks.  A tile begins at a multiple of 128 bytes.
 *
 * Relies on ptx.cuh.  Lanes hold fragments as mma_bf16 says: of a 16 x 8 result, row lane / 4 (and
 * 8 more), columns 2 (lane % 4) + {0, 1}.
 */

extern __shared__ __align__(128) unsigned char tile_room[]; /* all dynamic shared memory */

/* Bytes from row to row. */
#define TILE_PITCH(dim) (((dim) + 63) / 64 * 128)

/* Copies rows first .. first+rows of a sequence to a tile, columns `column` .. of it; zeros from
 * row `end` on.  Rows lie `ld` elements apart: row p is row p + before of the matrix below `fold`,
 * row p - fold + behind from there on.  A thread's copies of a tile that is whole and on one side
 * of the fold differ by constants. */
INLINE void tile_load(shared_t to, const bf16_t *from, const int ld, int column, int first, int end,
                      int fold, int before, int behind, const int rows, const int dim,
                      const int threads) {
    const int chunks = dim / 8, step = threads / chunks, thread = (int)made_anew(threadIdx.x);
    if (threads % chunks == 0 && rows % step == 0 && first + rows <= end &&
        (first >= fold || first + rows <= fold)) {
        const int r = thread / chunks, c = thread % chunks;
        const int row = first + r + (first < fold ? before : behind - fold);
        const bf16_t *const begin = from + (int64_t)row * ld + (column + c * 8);
#pragma unroll
        for (int i = 0; i < rows; i += step)
            cp_async_16(to + (r + i) * TILE_PITCH(dim) + (c ^ ((r + i) & 7)) * 16, begin + i * ld,
                        true);
        return;
    }
#pragma unroll 1
    for (int at = thread; at < rows * chunks; at += threads) {
        const int r = at / chunks, c = at % chunks, p = first + r;
        const int row = p < end ? p + (p < fold ? before : behind - fold) : 0;
        cp_async_16(to + r * TILE_PITCH(dim) + (c ^ (r & 7)) * 16,
                    from + (int64_t)row * ld + (column + c * 8), p < end);
    }
}

/* Which 16 bytes of a tile a lane gives to a matrix load: tile_rows for a (16 rows by 16 columns)
 * and for a transposed b (16 of its depth by 16 columns), tile_columns for b (16 rows of the tile,
 * which are columns of b, by 16 of depth). */
INLINE uint32_t tile_rows(const int dim) {
    const uint32_t lane = made_anew(threadIdx.x) % 32;
    return (lane & 15) * TILE_PITCH(dim) + ((lane >> 4) ^ (lane & 7)) * 16;
}

INLINE uint32_t tile_columns(const int dim) {
    const uint32_t lane = made_anew(threadIdx.x) % 32;
    return ((lane & 7) + (lane >> 4) * 8) * TILE_PITCH(dim) + (((lane >> 3) & 1) ^ (lane & 7)) * 16;
}

/* The same 16 `row` rows and 16 `column` columns further. */
INLINE shared_t tile_at(shared_t tile, uint32_t lane, const int row, const int column,
                        const int dim) {
    return (lane ^ (column % 4 * 32)) + tile + (row * 16 * TILE_PITCH(dim) + column / 4 * 128);
}

template <int ma, int n> INLINE void tile_clear(float (&y)[ma][n][4]) {
#pragma unroll
    for (int m = 0; m < ma; m++)
#pragma unroll
        for (int j = 0; j < n; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) y[m][j][i] = 0.0f;
}

/* The first 16 rows of a tile, to be held in registers. */
template <int dim> INLINE void tile_keep(uint32_t (&a)[dim / 16][4], shared_t tile) {
#pragma unroll
    for (int k = 0; k < dim / 16; k++) ldmatrix_x4(a[k], tile_at(tile, tile_rows(dim), 0, k, dim));
}

/* s[m][n] += what 16 columns (k of the tile) of a, at hand, and of 8 nb rows of tile b give. */
template <int ma, int nb>
INLINE void tile_step(float (&s)[ma][nb][4], const uint32_t (&a)[ma][4], shared_t b, const int k,
                      const int dim) {
#pragma unroll
    for (int n = 0; n < nb; n += 2) {
        uint32_t bf[4];
        ldmatrix_x4(bf, tile_at(b, tile_columns(dim), n / 2, k, dim));
#pragma unroll
        for (int m = 0; m < ma; m++) {
            mma_bf16(s[m][n], a[m], bf[0], bf[1]);
            mma_bf16(s[m][n + 1], a[m], bf[2], bf[3]);
        }
    }
}

/* s = a b': 16 ma rows of tile a, 8 nb rows of tile b. */
template <int ma, int nb, int dim>
INLINE void tile_scores(float (&s)[ma][nb][4], shared_t a, shared_t b) {
    tile_clear(s);
#pragma unroll
    for (int k = 0; k < dim / 16; k++) {
        uint32_t af[ma][4];
#pragma unroll
        for (int m = 0; m < ma; m++) ldmatrix_x4(af[m], tile_at(a, tile_rows(dim), m, k, dim));
        tile_step<ma, nb>(s, af, b, k, dim);
    }
}

/* The same, a held in registers (tile_keep). */
template <int nb, int dim>
INLINE void tile_scores_kept(float (&s)[1][nb][4], const uint32_t (&a)[dim / 16][4], shared_t b) {
    tile_clear(s);
#pragma unroll
    for (int k = 0; k < dim / 16; k++) {
        const uint32_t af[1][4] = {{a[k][0], a[k][1], a[k][2], a[k][3]}};
        tile_step<1, nb>(s, af, b, k, dim);
    }
}

/* y[m][n] += p[m] x, x a tile of 8 np rows by dim columns; p is rounded to bf16. */
template <int ma, int np, int dim>
INLINE void tile_add(float (&y)[ma][dim / 8][4], const float (&p)[ma][np][4], shared_t x) {
#pragma unroll
    for (int k = 0; k < np; k += 2) {
        uint32_t pf[ma][4];
#pragma unroll
        for (int m = 0; m < ma; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                pf[m][i] = pack_bf16(p[m][k + i / 2][i % 2 * 2], p[m][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < dim / 8; n += 2) {
            uint32_t xf[4];
            ldmatrix_x4_trans(xf, tile_at(x, tile_rows(dim), k / 2, n / 2, dim));
#pragma unroll
            for (int m = 0; m < ma; m++) {
                mma_bf16(y[m][n], pf[m], xf[0], xf[1]);
                mma_bf16(y[m][n + 1], pf[m], xf[2], xf[3]);
            }
        }
    }
}

INLINE void store_pair(bf16_t *to, float a, float b) {
    *(uint32_t *)to = pack_bf16(a, b);
}
INLINE void store_pair(float *to, float a, float b) {
    *(float2 *)to = make_float2(a, b);
}

/* A warp's 16 rows of results times `scale`, from `row` on below `end`, to columns `column` .. */
template <int dim, class T>
INLINE void tile_store(T *to, const int ld, int column, int row, int end,
                       const float (&y)[dim / 8][4], float scale) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int t = row + 8 * h + lane / 4;
        T *const at = to + (int64_t)t * ld + (column + lane % 4 * 2);
#pragma unroll
        for (int n = 0; n < dim / 8; n++)
            if (t < end) store_pair(at + 8 * n, y[n][2 * h] * scale, y[n][2 * h + 1] * scale);
    }
}

/* ---- who sees whom --------------------------------------------------------------------------- */

/* The next row of a table (n rows of `width` words, begin and length first) from row g on that
 * meets begin .. end; n: none.  A whole warp calls, and all lanes get it. */
INLINE int next_meeting(const int32_t *table, const int width, int n, int g, int begin, int end) {
    for (; g < n; g = (g | 31) + 1) {
        const int mine = (g & ~31) + (int)(threadIdx.x % 32);
        bool meets = mine >= g && mine < n;
        if (meets) {
            const int from = table[width * mine], length = table[width * mine + 1];
            meets = length > 0 && from < end && from + length > begin;
        }
        const unsigned found = __ballot_sync(0xffffffffu, meets);
        if (found) return (g & ~31) + __ffs((int)found) - 1;
    }
    return n;
}

/* Queries begin .. end (rows) of one segment: row t stands at position t + shift.  A key at
 * position p lies as tile_load says: in the prefix below `fold`. */
typedef struct Span {
    int begin, end, shift;
    int fold, prefix, own;
} Span;

INLINE Span segment_span(const int32_t *seg, int begin, int end) {
    Span s;
    s.begin = max(begin, seg[0]);
    s.end = min(end, seg[0] + seg[1]);
    s.shift = seg[3] + seg[5] - seg[1] - seg[0];
    s.fold = seg[3], s.prefix = seg[2], s.own = seg[4];
    return s;
}

/* Positions of keys that rows of the span see begin here. */
INLINE int span_first_key(const Span *s, const int window) {
    return window ? max(0, s->begin + s->shift - window + 1) : 0;
}

/* A query at position q sees a key at position p; of queries and keys at these positions, some do,
 * all do. */
INLINE bool sees(int q, int p, const int window) {
    return p <= q && (!window || p > q - window);
}

INLINE bool some_see(int q_low, int q_high, int p_low, int p_high, const int window) {
    return p_low <= q_high && (!window || p_high > q_low - window);
}

INLINE bool all_see(int q_low, int q_high, int p_low, int p_high, const int window) {
    return p_high <= q_low && (!window || p_low > q_high - window);
}

/* How `rows` of a warp, from row `first` on, meet keys at positions at .. at + keys. */
INLINE bool span_touches(const Span *s, int first, int at, const int rows, const int keys,
                         const int window) {
    const int low = max(first, s->begin), high = min(first + rows, s->end) - 1;
    return low <= high && some_see(low + s->shift, high + s->shift, at, at + keys - 1, window);
}

INLINE bool span_covers(const Span *s, int first, int at, const int rows, const int keys,
                        const int window) {
    const int low = first + s->shift;
    return first >= s->begin && first + rows <= s->end &&
           all_see(low, low + rows - 1, at, at + keys - 1, window);
}

/* ---- the heaviest first ---------------------------------------------------------------------- */

/* Blocks begin in the order of their numbers, and a heavy one that begins late is waited for.  So
 * numbers are ranks: all heads of the heaviest tile of rows, then of the next.  Ranking costs each
 * block as much as a small part of a tile; many segments, or many tiles, are even enough as they
 * come. */
enum { RANKED_TILES = 128, RANKED_SEGMENTS = 16 };

INLINE int block_number() {
    return (int)made_anew(blockIdx.y * gridDim.x + blockIdx.x);
}

/* Which of n tiles, whose weights lie in tile_room, is so heavy that `rank` are heavier; the whole
 * block calls, and tile_room is free again. */
INLINE int tile_of_rank(int n, int rank, const int threads) {
    int *const weight = (int *)tile_room;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += threads) {
        int before = 0;
        for (int j = 0; j < n; j++)
            before += weight[j] > weight[i] || (weight[j] == weight[i] && j < i);
        if (before == rank) weight[n] = i;
    }
    __syncthreads();
    const int tile = weight[n];
    __syncthreads();
    return tile;
}

/* The same for tiles of `rows` queries: a key that is seen is a unit, and a segment `more`. */
INLINE int queries_of_rank(const int32_t *segs, int nsegs, int total, int rank, const int rows,
                           const int more, const int window, const int threads) {
    const int n = gridDim.x;
    if (n > RANKED_TILES || nsegs > RANKED_SEGMENTS) return n - 1 - rank; /* late rows see more */
    for (int i = threadIdx.x; i < n; i += threads) {
        int weight = 0;
        for (int g = 0; g < nsegs; g++) {
            const Span s = segment_span(segs + 6 * g, i * rows, min(i * rows + rows, total));
            if (s.begin < s.end) weight += s.end + s.shift - span_first_key(&s, window) + more;
        }
        ((int *)tile_room)[i] = weight;
    }
    return tile_of_rank(n, rank, threads);
}
