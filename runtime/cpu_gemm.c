/* cpu_gemm.c: matrix products of the CPU device, by oneDNN.
 *
 * C is cut into tiles; each tile is one call of a oneDNN primitive made for a single thread, and
 * tiles run side by side.  The cut depends on sizes and strides alone, so bits do not depend on
 * the number of threads.  A few rows are multiplied by cpu_rows.c.  oneDNN 2.x has its fast path
 * (and a scratchpad we can place) only for operands without gaps between rows: a tile that has gaps
 * is packed first, and then k is cut too and the parts are added in order.  A product with few rows
 * is computed transposed.
 *
 *   direct   the tile of C has no gaps and nothing is left to do with it: the primitive writes C
 *   merged   the tile is computed in fp32 in the workspace; alpha, bias, beta and rounding are
 *            ours, each operation rounded to fp32 in that order, so a fused epilogue has the bits
 *            of a separate one
 *
 * Relies on plan.h, cpu_gemm.h, oneDNN, OpenMP.
 */
#include "cpu_gemm.h"

#include <dnnl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define TILE_COLS  512  /* columns of a tile of a wide C */
#define WIDE_COLS  2048 /* not yet wide, where B cannot be cut by columns without packing */
#define PART_K     256  /* of a packed tile */
#define FEW_ROWS   128  /* fewer rows of C than this are computed as columns */
#define MAX_THREAD 1024

/* ---- the cut: a function of sizes and strides alone ------------------------------------------ */

typedef struct Operand { /* op(X) as stored: rows x cols, or its transpose when t */
    const char *p;
    int64_t ld;
    bool t;
} Operand;

typedef struct Cut {
    bool swap;       /* C^T = op(B)^T op(A)^T */
    int64_t m, n, k; /* after the swap */
    bool ta, tb;
    int64_t lda, ldb;
    int64_t tm, tn, kc;
    bool pack_a, pack_b, direct;
    DType type;    /* the primitive's operands */
    int64_t bytes; /* of workspace a thread needs besides the library's scratch */
} Cut;

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

/* `native`: operands may be handed to the library as they are; else bf16 is packed to fp32. */
static Cut cut_of(const Gemm *g, int64_t m, int64_t n, int64_t k, bool native) {
    Cut c = {.m = m, .n = n, .k = k, .ta = g->ta, .tb = g->tb, .lda = g->lda, .ldb = g->ldb};
    c.type = native ? g->a : DT_f32;
    /* Few rows of C are better its columns; but of a weight gradient, X^T Y with a narrow one, the
     * wide matrix is better B, which the library reads as it stands. */
    bool narrow = g->ta && !g->tb && (m < FEW_ROWS || n < FEW_ROWS);
    c.swap = narrow ? m > n : m < FEW_ROWS && n > m;
    if (c.swap)
        c = (Cut){.swap = true,
                  .m = n,
                  .n = m,
                  .k = k,
                  .ta = !g->tb,
                  .tb = !g->ta,
                  .lda = g->ldb,
                  .ldb = g->lda,
                  .type = c.type};
    c.tm = c.m < 1024 && !(c.tb && c.n > 2 * TILE_COLS) ? 128 : 256; /* tiles for every thread */
    bool convert = c.type != g->a;
    bool dense_a = !convert && (c.ta ? c.lda == c.m && c.m <= c.tm : c.lda == k);
    bool dense_b = !convert && (c.tb ? c.ldb == k : c.ldb == c.n);
    bool whole_k = dense_a && dense_b && (c.tb || c.n <= WIDE_COLS);
    c.tn = whole_k && c.n <= (c.tb ? 2 * TILE_COLS : WIDE_COLS) ? c.n : least(c.n, TILE_COLS);
    c.kc = whole_k ? k : least(k, PART_K);
    /* Which of the two writes C makes no difference to the cut, so none to the bits. */
    bool plain =
        !c.swap && g->c == DT_f32 && g->alpha == 1 && g->beta == 0 && !g->bias && g->ldc == n;
    c.direct = plain && whole_k && c.tn == n;
    /* A cut operand keeps no gaps only where whole stored rows are taken. */
    c.pack_a = !dense_a || (!c.ta && c.kc < k);
    c.pack_b = convert || (c.tb ? c.ldb != c.kc : c.ldb != c.tn);
    int64_t size = dtype_bytes(c.type), rows = least(c.tm, c.m);
    if (c.pack_a) c.bytes += round_up(rows * c.kc * size, 64);
    if (c.pack_b) c.bytes += round_up(c.tn * c.kc * size, 64);
    if (!c.direct) c.bytes += round_up(rows * c.tn * 4, 64);
    return c;
}

/* The library's scratch for one tile: copies of B, of A, and sums, as measured with 2.6 over
 * thousands of shapes (never above this).  A version that asks for more gets a block outside the
 * arena. */
static int64_t scratch_of(const Cut *c) {
    int64_t rows = round_up(least(c->tm, c->m), 32), k = round_up(c->kc, 64);
    return 16384 + least(k, 4096) * 256 + rows * least(k, 1024) * 4 + least(c->tn + 15, 512) * 256;
}

int64_t gemm_workspace(const Gemm *g, int64_t m, int64_t n, int64_t k) {
    int64_t most = 0;
    /* Fewer rows or columns than the bound may be cut another way. */
    int64_t rows[] = {m, least(m, FEW_ROWS - 1), least(m, 1023)};
    int64_t cols[] = {n, least(n, FEW_ROWS - 1), least(n, 1023)};
    for (int i = 0; i < 3 * 3 * 2; i++) {
        Cut c = cut_of(g, rows[i / 6], cols[i / 2 % 3], k, i % 2);
        int64_t bytes = c.bytes + scratch_of(&c);
        if (bytes > most) most = bytes;
    }
    return GEMM_THREADS * round_up(most + 1, 4096);
}

/* ---- primitives ------------------------------------------------------------------------------ */

typedef struct Key {
    int64_t m, n, k;
    int32_t type;
    uint8_t ta, tb, add, pad;
} Key;

typedef struct Prim {
    Key key;
    dnnl_primitive_t prim;
    int64_t scratch;
    dnnl_memory_t *mem; /* 4 per thread: a, b, c, scratch */
} Prim;

struct CpuGemm {
    int threads;
    bool bf16; /* multiplied by instructions of its own */
    dnnl_engine_t engine;
    dnnl_stream_t *stream; /* one per thread */
    Prim *prim;
    int nprim, capprim;
    char *work;
    int64_t work_bytes;
    char *extra; /* where the library asks for more scratch than gemm_workspace foresees */
};

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t Desc;
#    define DESC(d) (d)
static bool desc_make(Desc *d, int64_t rows, int64_t cols, bool t, DType type) {
    dnnl_dims_t dims = {rows, cols}, strides = {t ? 1 : cols, t ? rows : 1};
    return !dnnl_memory_desc_create_with_strides(d, 2, dims, type == DT_f32 ? dnnl_f32 : dnnl_bf16,
                                                 strides);
}
static void desc_free(Desc *d) {
    if (*d) dnnl_memory_desc_destroy(*d);
}
static bool pd_make(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, Desc d[3],
                    dnnl_primitive_attr_t attr) {
    return !dnnl_matmul_primitive_desc_create(pd, engine, d[0], d[1], NULL, d[2], attr);
}
static void append_sum(dnnl_post_ops_t ops) {
    dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef);
}
#else
typedef dnnl_memory_desc_t Desc;
#    define DESC(d) (&(d))
static bool desc_make(Desc *d, int64_t rows, int64_t cols, bool t, DType type) {
    dnnl_dims_t dims = {rows, cols}, strides = {t ? 1 : cols, t ? rows : 1};
    return !dnnl_memory_desc_init_by_strides(d, 2, dims, type == DT_f32 ? dnnl_f32 : dnnl_bf16,
                                             strides);
}
static void desc_free(Desc *d) {
    (void)d;
}
static bool pd_make(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, Desc d[3],
                    dnnl_primitive_attr_t attr) {
    dnnl_matmul_desc_t desc;
    return !dnnl_matmul_desc_init(&desc, &d[0], &d[1], NULL, &d[2]) &&
           !dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL);
}
static void append_sum(dnnl_post_ops_t ops) {
    dnnl_post_ops_append_sum(ops, 1);
}
#endif

/* The description of one tile's product, made for one thread.  NULL if the library has none. */
static dnnl_primitive_desc_t describe(CpuGemm *gemm, const Key *key) {
    Desc d[3] = {0};
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    DType type = (DType)key->type;
    bool ok = desc_make(&d[0], key->m, key->k, key->ta, type) &&
              desc_make(&d[1], key->k, key->n, key->tb, type) &&
              desc_make(&d[2], key->m, key->n, false, DT_f32) &&
              !dnnl_primitive_attr_create(&attr) &&
              !dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (ok && key->add) {
        ok = !dnnl_post_ops_create(&ops);
        if (ok) append_sum(ops);
        ok = ok && !dnnl_primitive_attr_set_post_ops(attr, ops);
    }
    if (ok && !pd_make(&pd, gemm->engine, d, attr)) pd = NULL;
    if (ops) dnnl_post_ops_destroy(ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
    for (int i = 0; i < 3; i++) desc_free(&d[i]);
    return pd;
}

static bool make_memory(CpuGemm *gemm, dnnl_primitive_desc_t pd, Prim *p) {
    static const dnnl_query_t what[4] = {dnnl_query_src_md, dnnl_query_weights_md,
                                         dnnl_query_dst_md, dnnl_query_scratchpad_md};
    p->mem = calloc((size_t)gemm->threads * 4, sizeof *p->mem);
    if (!p->mem) return false;
    for (int i = 0; i < gemm->threads * 4; i++)
        if (dnnl_memory_create(&p->mem[i], dnnl_primitive_desc_query_md(pd, what[i % 4], 0),
                               gemm->engine, DNNL_MEMORY_NONE))
            return false;
    p->scratch = (int64_t)dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(pd, what[3], 0));
    return true;
}

static void prim_free(CpuGemm *gemm, Prim *p) {
    for (int i = 0; p->mem && i < gemm->threads * 4; i++)
        if (p->mem[i]) dnnl_memory_destroy(p->mem[i]);
    free(p->mem);
    if (p->prim) dnnl_primitive_destroy(p->prim);
}

static bool prim_make(CpuGemm *gemm, const Key *key, Prim *p) {
    *p = (Prim){.key = *key};
    int threads = omp_get_max_threads();
    omp_set_num_threads(1); /* the library cuts for as many threads as it sees now */
    dnnl_primitive_desc_t pd = describe(gemm, key);
    bool ok = pd && !dnnl_primitive_create(&p->prim, pd) && make_memory(gemm, pd, p);
    omp_set_num_threads(threads);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (!ok) prim_free(gemm, p);
    return ok;
}

/* Index of the primitive of one tile, made if there is none; -1 and err. */
static int prim_find(CpuGemm *gemm, const Key *key, Err *err) {
    for (int i = 0; i < gemm->nprim; i++)
        if (!memcmp(&gemm->prim[i].key, key, sizeof *key)) return i;
    if (gemm->nprim == gemm->capprim) {
        int cap = gemm->capprim ? gemm->capprim * 2 : 64;
        Prim *grown = realloc(gemm->prim, (size_t)cap * sizeof *grown);
        if (!grown) {
            fail(err, EXIT_MEMORY, "out of memory");
            return -1;
        }
        gemm->prim = grown;
        gemm->capprim = cap;
    }
    if (!prim_make(gemm, key, &gemm->prim[gemm->nprim])) {
        fail(err, EXIT_DEVICE, "oneDNN has no matrix product of %lld x %lld x %lld %s",
             (long long)key->m, (long long)key->n, (long long)key->k, dtype_name((DType)key->type));
        return -1;
    }
    return gemm->nprim++;
}

/* The primitives of a cut: tiles differ only at the last row, the last column and the last part of
 * k. Where k is cut they add to sums that begin at zero: half as many primitives as a first one
 * and adding ones, and each is some hundred KiB of generated code. */
typedef struct Prims {
    int at[2][2][2]; /* [last row][last column][last part]; -1 where there is none */
    int64_t scratch;
} Prims;

static bool prims_of(CpuGemm *gemm, const Cut *c, Prims *out, Err *err) {
    out->scratch = 0;
    for (int i = 0; i < 8; i++) {
        int row = i >> 2, col = i >> 1 & 1, part = i & 1;
        int64_t m = row ? (c->m - 1) % c->tm + 1 : c->tm, n = col ? (c->n - 1) % c->tn + 1 : c->tn,
                k = part ? (c->k - 1) % c->kc + 1 : c->kc;
        int *at = &out->at[row][col][part];
        *at = -1;
        if ((!row && c->m <= c->tm) || (!col && c->n <= c->tn) || (!part && c->k <= c->kc))
            continue;
        Key key = {.m = m,
                   .n = n,
                   .k = k,
                   .type = (int32_t)c->type,
                   .ta = c->ta,
                   .tb = c->tb,
                   .add = c->k > c->kc};
        if ((*at = prim_find(gemm, &key, err)) < 0) return false;
        if (gemm->prim[*at].scratch > out->scratch) out->scratch = gemm->prim[*at].scratch;
    }
    return true;
}

/* ---- one tile -------------------------------------------------------------------------------- */

/* Stored rows r .. r+nr, columns c .. c+nc of X, without gaps; bf16 is widened when `to` is f32. */
static void pack(char *out, const Operand *x, DType from, DType to, int64_t r, int64_t nr,
                 int64_t c, int64_t nc) {
    size_t size = (size_t)dtype_bytes(from);
    for (int64_t i = 0; i < nr; i++) {
        const char *row = x->p + ((r + i) * x->ld + c) * (int64_t)size;
        if (from == to) {
            memcpy(out + (size_t)(i * nc) * size, row, (size_t)nc * size);
            continue;
        }
        const uint16_t *h = (const uint16_t *)(const void *)row;
        uint32_t *f = (uint32_t *)(void *)(out + i * nc * 4);
#pragma omp simd
        for (int64_t j = 0; j < nc; j++) f[j] = (uint32_t)h[j] << 16;
    }
}

/* The tile of an operand that covers rows i.. of op(X)'s first axis and j.. of its second. */
static const char *operand(char *room, const Operand *x, DType from, DType to, bool packed,
                           int64_t i, int64_t ni, int64_t j, int64_t nj) {
    int64_t r = x->t ? j : i, nr = x->t ? nj : ni, c = x->t ? i : j, nc = x->t ? ni : nj;
    if (!packed) return x->p + (r * x->ld + c) * dtype_bytes(from);
    pack(room, x, from, to, r, nr, c, nc);
    return room;
}

CPU_WIDE void cpu_gemm_finish(const Gemm *g, float *x, const float *bias, void *c, int64_t n) {
    float *f = c, alpha = g->alpha;
    uint16_t *h = c;
    if (alpha != 1) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) x[j] *= alpha;
    }
    if (bias) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) x[j] += bias[j];
    }
    if (g->c == DT_f32) {
        bool add = g->beta != 0;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) f[j] = add ? x[j] + f[j] : x[j];
        return;
    }
    if (g->beta != 0)
        for (int64_t j = 0; j < n; j++) x[j] += bf16_to_float(h[j]);
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        uint32_t bits;
        memcpy(&bits, &x[j], 4);
        uint32_t even = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40u;
        h[j] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : even);
    }
}

typedef struct Run {
    CpuGemm *gemm;
    const Gemm *g;
    const Cut *cut;
    const Prims *prims;
    Operand a, b;
    char *c;
    const float *bias;
    int64_t per_thread;
} Run;

static void merge_tile(const Run *r, float *acc, int64_t i, int64_t ni, int64_t j, int64_t nj) {
    const Gemm *g = r->g;
    int64_t size = dtype_bytes(g->c);
    float row[256];
    if (!r->cut->swap) {
        for (int64_t y = 0; y < ni; y++)
            cpu_gemm_finish(g, acc + y * nj, r->bias ? r->bias + j : NULL,
                            r->c + ((i + y) * g->ldc + j) * size, nj);
        return;
    }
    for (int64_t y = 0; y < nj; y++) {
        for (int64_t x = 0; x < ni; x++) row[x] = acc[x * nj + y];
        cpu_gemm_finish(g, row, r->bias ? r->bias + i : NULL, r->c + ((j + y) * g->ldc + i) * size,
                        ni);
    }
}

static bool multiply(CpuGemm *gemm, Prim *p, int thread, const char *a, const char *b, void *c,
                     void *scratch) {
    static const int names[4] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
    void *data[4] = {(void *)(uintptr_t)a, (void *)(uintptr_t)b, c, scratch};
    dnnl_exec_arg_t args[4];
    for (int i = 0; i < 4; i++) {
        dnnl_memory_t mem = p->mem[thread * 4 + i];
        if (dnnl_memory_set_data_handle(mem, data[i])) return false;
        args[i] = (dnnl_exec_arg_t){names[i], mem};
    }
    return !dnnl_primitive_execute(p->prim, gemm->stream[thread], 4, args);
}

static bool run_tile(const Run *r, int64_t tile, int thread) {
    const Cut *c = r->cut;
    int64_t across = (c->n + c->tn - 1) / c->tn, size = dtype_bytes(c->type);
    int64_t i = tile / across * c->tm, j = tile % across * c->tn;
    int64_t ni = least(c->tm, c->m - i), nj = least(c->tn, c->n - j), rows = least(c->tm, c->m);
    char *room = r->gemm->work + thread * r->per_thread;
    char *room_a = room, *room_b = room_a + (c->pack_a ? round_up(rows * c->kc * size, 64) : 0);
    char *room_c = room_b + (c->pack_b ? round_up(c->tn * c->kc * size, 64) : 0);
    char *scratch = room + c->bytes;
    void *acc = c->direct ? (void *)(r->c + (i * r->g->ldc + j) * 4) : (void *)room_c;
    if (c->kc < c->k) memset(acc, 0, (size_t)(ni * nj) * 4);
    for (int64_t k = 0; k < c->k; k += c->kc) {
        int64_t nk = least(c->kc, c->k - k);
        const char *a = operand(room_a, &r->a, r->g->a, c->type, c->pack_a, i, ni, k, nk);
        const char *b = operand(room_b, &r->b, r->g->b, c->type, c->pack_b, k, nk, j, nj);
        int at = r->prims->at[i + c->tm >= c->m][j + c->tn >= c->n][k + c->kc >= c->k];
        if (!multiply(r->gemm, &r->gemm->prim[at], thread, a, b, acc, scratch)) return false;
    }
    if (!c->direct) merge_tile(r, acc, i, ni, j, nj);
    return true;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static bool native_for(const CpuGemm *gemm, const Gemm *g) {
    return g->a == DT_f32 || gemm->bf16;
}

int64_t cpu_gemm_need(CpuGemm *gemm, const Gemm *g, int64_t m, int64_t n, int64_t k) {
    Err err = {0};
    Cut cut = cut_of(g, m, n, k, native_for(gemm, g));
    Prims prims;
    return prims_of(gemm, &cut, &prims, &err) ? round_up(cut.bytes + prims.scratch + 1, 4096) : -1;
}

bool cpu_gemm_prepare(CpuGemm *gemm, const Gemm *g, int64_t m, int64_t n, int64_t k, Err *err) {
    if (m < 1 || n < 1 || k < 1 || cpu_rows_fit(g, m)) return true;
    Cut cut = cut_of(g, m, n, k, native_for(gemm, g));
    Prims prims;
    if (!prims_of(gemm, &cut, &prims, err)) return false;
    int64_t need = round_up(cut.bytes + prims.scratch + 1, 4096);
    if (need <= gemm->work_bytes) return true;
    free(gemm->extra);
    gemm->extra = gemm->work = aligned_alloc(4096, (size_t)need);
    gemm->work_bytes = gemm->work ? need : 0;
    return gemm->work || fail(err, EXIT_MEMORY, "out of memory");
}

bool cpu_gemm_run(CpuGemm *gemm, const Gemm *g, void *const *p, int64_t m, int64_t n, int64_t k,
                  Err *err) {
    if (m < 1 || n < 1) return true;
    if (cpu_rows_fit(g, m)) {
        cpu_rows_run(g, p, m, n, k, gemm->threads);
        return true;
    }
    if (!cpu_gemm_prepare(gemm, g, m, n, k, err)) return false;
    Cut cut = cut_of(g, m, n, k, native_for(gemm, g));
    Prims prims;
    if (!prims_of(gemm, &cut, &prims, err)) return false;
    Run r = {.gemm = gemm, .g = g, .cut = &cut, .prims = &prims, .c = p[2]};
    r.a = (Operand){cut.swap ? p[1] : p[0], cut.lda, cut.ta};
    r.b = (Operand){cut.swap ? p[0] : p[1], cut.ldb, cut.tb};
    r.bias = g->bias ? p[3] : NULL;
    r.per_thread = round_up(cut.bytes + prims.scratch + 1, 4096);
    int64_t tiles = ((cut.m + cut.tm - 1) / cut.tm) * ((cut.n + cut.tn - 1) / cut.tn);
    int threads = (int)least(least(gemm->threads, tiles), gemm->work_bytes / r.per_thread);
    int failed = 0, before = omp_get_max_threads();
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        omp_set_num_threads(1); /* or a lone tile would be cut by the library for all threads */
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles; t++) failed |= !run_tile(&r, t, omp_get_thread_num());
    }
    omp_set_num_threads(before);
    return !failed || fail(err, EXIT_BUG, "oneDNN failed in a matrix product of %lld x %lld x %lld",
                           (long long)m, (long long)n, (long long)k);
}

void cpu_gemm_workspace(CpuGemm *gemm, void *p, int64_t bytes) {
    gemm->work = p;
    gemm->work_bytes = bytes;
}

/* Whether bf16 is multiplied by instructions made for it; emulation is slower than fp32. */
static bool has_bf16(CpuGemm *gemm) {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx512bf16")) return false;
#endif
    dnnl_primitive_desc_t pd = describe(gemm, &(Key){.m = 64, .n = 64, .k = 64, .type = DT_bf16});
    if (pd) dnnl_primitive_desc_destroy(pd);
    return pd != NULL;
}

CpuGemm *cpu_gemm_open(int threads, Err *err) {
    CpuGemm *gemm = calloc(1, sizeof *gemm);
    if (!gemm) return NULL;
    gemm->threads = threads < MAX_THREAD ? threads : MAX_THREAD;
    gemm->stream = calloc((size_t)gemm->threads, sizeof *gemm->stream);
    bool ok = gemm->stream && !dnnl_engine_create(&gemm->engine, dnnl_cpu, 0);
    for (int i = 0; ok && i < gemm->threads; i++)
        ok = !dnnl_stream_create(&gemm->stream[i], gemm->engine, dnnl_stream_default_flags);
    if (!ok) {
        fail(err, EXIT_DEVICE, "oneDNN does not start on this machine");
        cpu_gemm_close(gemm);
        return NULL;
    }
    dnnl_set_primitive_cache_capacity(0); /* the table here is the cache */
    gemm->bf16 = has_bf16(gemm);
    return gemm;
}

void cpu_gemm_close(CpuGemm *gemm) {
    if (!gemm) return;
    for (int i = 0; i < gemm->nprim; i++) prim_free(gemm, &gemm->prim[i]);
    for (int i = 0; gemm->stream && i < gemm->threads; i++)
        if (gemm->stream[i]) dnnl_stream_destroy(gemm->stream[i]);
    if (gemm->engine) dnnl_engine_destroy(gemm->engine);
    free(gemm->prim);
    free(gemm->stream);
    free(gemm->extra);
    free(gemm);
}

void cpu_gemm_describe(const CpuGemm *gemm, char text[80]) {
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, 80, "oneDNN %d.%d%s", v->major, v->minor,
             gemm->bf16 ? "" : ", bf16 computed in fp32");
}
