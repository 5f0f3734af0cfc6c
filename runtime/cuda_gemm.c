/* cuda_gemm.c: matrix products of the CUDA device, by cuBLASLt (cuda_gemm.h).
 *
 * cuBLASLt thinks in columns: a row-major X [r, c] is its column-major [c, r].  So
 * C = op(A) op(B) is computed as C' = op(B)' op(A)': its A is our B, its m is our n, and a bias
 * along its rows is one along our columns.
 *
 * Bits: sums split over k are allowed only where the parts are stored in fp32 and reduced in a step
 * of their own (COMPUTE_TYPE).  INPLACE adds into the output in the output's type, part by part,
 * and OUTPUT_TYPE rounds every part: with a bf16 result both round more than once.
 *
 * Twins: the product with LoRA behind it is added to in f32, the reference's is stored as bf16.
 * These are two products to the library, but with B = 0 they must be the same numbers, or noise
 * that should cancel in log-ratios does not.  So twins run one configuration of one algorithm.
 */
#include "cuda_gemm.h"
#include "gemm_choices.h"

#include <stdlib.h>
#include <string.h>

#define PROPOSALS  8   /* asked of the library */
#define CANDIDATES 5   /* the first of them are timed */
#define REPEATS    3   /* after one that is not timed, */
#define ROUNDS     2   /* as often: clocks rise while the first are timed */
#define SECONDS    5.0 /* for all timing of a run */
#define BUCKETS    256
#define MAX_ALIGN  256 /* the library asks for no more */

typedef struct Key { /* what a product's descriptors depend on; no padding: compared as bytes */
    int64_t m, n, k, lda, ldb, ldc;
    int32_t a, c, ta, tb, bias, pad;
} Key;

typedef struct Product {
    Key key;
    int align;
    LtDesc desc;
    LtLayout a, b, c; /* ours: the library's A is b */
    LtAlgo algo;
    bool timed;       /* it was the fastest */
    bool settled;     /* it has run, or a run's file has it: it stays */
    const char *name; /* all that decides the algorithm, as text */
    struct Product *next, *older;
} Product;

struct CudaGemm {
    Device *dev;
    const LtApi *lt;
    CuStream stream;
    LtHandle handle;
    const char *device, *path; /* of the cache's file, or NULL */
    size_t version;
    char *work, *scratch;
    int64_t work_bytes, scratch_bytes;
    double seconds;            /* left for timing */
    GemmChoices given, cached; /* a run's file, the cache's */
    bool changed;              /* the cache's file is not what it should be */
    Product *bucket[BUCKETS], *newest;
};

/* ---- opening and closing --------------------------------------------------------------------- */

/* Where work given before has failed that is the cause, and the driver knows more of it. */
static bool lt_fail(CudaGemm *gemm, LtStatus status, const char *function, const char *what,
                    Err *err) {
    const Step *s = gemm->dev->step;
    if (status == LT_EXECUTION_FAILED && !gemm->dev->ops->sync(gemm->dev, err)) return false;
    int code = status == LT_ALLOC_FAILED    ? EXIT_MEMORY
               : status == LT_INVALID_VALUE ? EXIT_BUG
                                            : EXIT_DEVICE;
    return fail(err, code, "%s%s: %s%s%s%s%s%s%s", code == EXIT_BUG ? "bug: " : "", function,
                lt_error(gemm->lt, status), *what ? "\n  " : "", what, s && s->label ? "\n  " : "",
                s && s->label ? s->label : "", s && s->where ? ", " : "",
                s && s->where ? s->where : "");
}

/* "NVIDIA A100-SXM4-40GB, cuBLASLt 130100": what every choice of this run begins with. */
static const char *origin(const CudaGemm *gemm) {
    return intern_printf("%s, cuBLASLt %zu", gemm->device, gemm->version);
}

static void read_given(CudaGemm *gemm, const char *path) {
    const char *here = origin(gemm);
    gemm_choices_read(&gemm->given, path);
    if (!gemm->given.n || !strncmp(gemm->given.choice[0].key, here, strlen(here))) return;
    fprintf(stderr,
            "dpoc: warning: the run's algorithms were chosen elsewhere (%.*s), here is %s; results "
            "may differ in their last bits\n",
            (int)strcspn(gemm->given.choice[0].key, ":"), gemm->given.choice[0].key, here);
}

CudaGemm *cuda_gemm_open(const CudaGemmOptions *options, Err *err) {
    CudaGemm *gemm = calloc(1, sizeof *gemm);
    if (!gemm) {
        fail(err, EXIT_MEMORY, "out of memory");
        return NULL;
    }
    gemm->dev = options->dev;
    gemm->lt = options->lt;
    gemm->stream = options->stream;
    gemm->device = intern(options->name);
    gemm->seconds = SECONDS;
    gemm->version = gemm->lt->GetVersion();
    LtStatus status = gemm->lt->Create(&gemm->handle);
    if (status) {
        lt_fail(gemm, status, "cublasLtCreate", "", err);
        free(gemm);
        return NULL;
    }
    if (options->choices) read_given(gemm, options->choices);
    if (options->cache_dir) {
        gemm->path = intern_printf("%s/gemm_choices", options->cache_dir);
        gemm_choices_read(&gemm->cached, gemm->path);
    }
    return gemm;
}

static void product_free(CudaGemm *gemm, Product *p) {
    if (p->desc) gemm->lt->DescDestroy(p->desc);
    if (p->a) gemm->lt->LayoutDestroy(p->a);
    if (p->b) gemm->lt->LayoutDestroy(p->b);
    if (p->c) gemm->lt->LayoutDestroy(p->c);
    free(p);
}

/* What other runs added meanwhile is kept. */
static void keep_choices(CudaGemm *gemm) {
    Err err = {0};
    char *end = strrchr(gemm->path, '/');
    const char *dir = intern_n(gemm->path, (size_t)(end - gemm->path));
    gemm_choices_read(&gemm->cached, gemm->path);
    if (!dir_make(dir, &err) || !gemm_choices_write(&gemm->cached, gemm->path, &err))
        fprintf(stderr, "dpoc: warning: %s; algorithms are chosen again in the next run\n",
                err.text);
}

void cuda_gemm_close(CudaGemm *gemm) {
    if (!gemm) return;
    if (gemm->changed && gemm->path) keep_choices(gemm);
    for (Product *p = gemm->newest, *older; p; p = older) {
        older = p->older;
        product_free(gemm, p);
    }
    gemm_choices_free(&gemm->given);
    gemm_choices_free(&gemm->cached);
    gemm->lt->Destroy(gemm->handle);
    free(gemm);
}

void cuda_gemm_workspace(CudaGemm *gemm, void *p, int64_t bytes) {
    gemm->work = p;
    gemm->work_bytes = bytes;
}

void cuda_gemm_scratch(CudaGemm *gemm, void *p, int64_t bytes) {
    int64_t skip = -(intptr_t)p & (MAX_ALIGN - 1);
    gemm->scratch = (char *)p + skip;
    gemm->scratch_bytes = bytes - skip;
}

bool cuda_gemm_save(CudaGemm *gemm, const char *path, Err *err) {
    for (Product *p = gemm->newest; p; p = p->older)
        gemm_choices_put(&gemm->given, p->name, p->algo.data);
    return gemm_choices_write(&gemm->given, path, err);
}

/* ---- the table of products ------------------------------------------------------------------- */

static Key key_of(const Gemm *g, int64_t m, int64_t n, int64_t k) {
    return (Key){m,     n,     k,       g->lda, g->ldb, g->ldc, (int32_t)g->a, (int32_t)g->c,
                 g->ta, g->tb, g->bias, 0};
}

static Product **bucket_of(CudaGemm *gemm, const Key *key) {
    return &gemm->bucket[hash_bytes(key, sizeof *key, (Hash128){0, 0}).lo % BUCKETS];
}

/* The one prepared for the most aligned operands among those that may be less aligned than `align`;
 * `exact`: for this alignment only. */
static Product *find(CudaGemm *gemm, const Key *key, int align, bool exact) {
    Product *best = NULL;
    for (Product *p = *bucket_of(gemm, key); p; p = p->next)
        if (!memcmp(&p->key, key, sizeof *key) && p->align <= align &&
            (!best || p->align > best->align))
            best = p;
    return best && (!exact || best->align == align) ? best : NULL;
}

/* "128 x 4096 x 4096, A bf16 ld 4096, B bf16 ld 4096 transposed, C f32 ld 4096" */
static const char *describe(const Key *key) {
    const char *type = dtype_name((DType)key->a);
    return intern_printf("%lld x %lld x %lld, A %s ld %lld%s, B %s ld %lld%s, C %s ld %lld%s",
                         (long long)key->m, (long long)key->n, (long long)key->k, type,
                         (long long)key->lda, key->ta ? " transposed" : "", type,
                         (long long)key->ldb, key->tb ? " transposed" : "",
                         dtype_name((DType)key->c), (long long)key->ldc, key->bias ? ", bias" : "");
}

static int lt_type(int32_t type) {
    return type == DT_bf16 ? LT_BF16 : LT_F32;
}

/* A row-major matrix of `rows` x `cols`, transposed as stored when t. */
static LtStatus layout(CudaGemm *gemm, LtLayout *out, int32_t type, int64_t rows, int64_t cols,
                       bool t, int64_t ld) {
    return gemm->lt->LayoutCreate(out, lt_type(type), (uint64_t)(t ? rows : cols),
                                  (uint64_t)(t ? cols : rows), ld);
}

/* Operation and layouts of a product. */
static bool make_descriptors(CudaGemm *gemm, Product *p, Err *err) {
    const LtApi *lt = gemm->lt;
    const Key *k = &p->key;
    int32_t op_a = k->tb ? LT_OP_T : LT_OP_N, op_b = k->ta ? LT_OP_T : LT_OP_N;
    uint32_t epilogue = k->bias ? LT_EPILOGUE_BIAS : LT_EPILOGUE_DEFAULT;
    /* Where the bias will lie is not known yet; the library reads from it how it is aligned. */
    void *bias = (void *)(uintptr_t)p->align;
    const char *function = "cublasLtMatmulDescCreate";
    LtStatus status = lt->DescCreate(&p->desc, LT_COMPUTE_32F, LT_F32);
    if (!status) {
        function = "cublasLtMatmulDescSetAttribute";
        status = lt->DescSetAttribute(p->desc, LT_DESC_TRANSA, &op_a, sizeof op_a);
    }
    if (!status) status = lt->DescSetAttribute(p->desc, LT_DESC_TRANSB, &op_b, sizeof op_b);
    if (!status)
        status = lt->DescSetAttribute(p->desc, LT_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (!status && k->bias)
        status = lt->DescSetAttribute(p->desc, LT_DESC_BIAS_POINTER, &bias, sizeof bias);
    if (!status) {
        function = "cublasLtMatrixLayoutCreate";
        status = layout(gemm, &p->a, k->a, k->m, k->k, k->ta, k->lda);
    }
    if (!status) status = layout(gemm, &p->b, k->a, k->k, k->n, k->tb, k->ldb);
    if (!status) status = layout(gemm, &p->c, k->c, k->m, k->n, false, k->ldc);
    return !status || lt_fail(gemm, status, function, describe(k), err);
}

/* ---- one call -------------------------------------------------------------------------------- */

/* p: a, b, c [, bias]. */
static LtStatus multiply(CudaGemm *gemm, const Product *x, const LtAlgo *algo, float alpha,
                         float beta, void *const *p) {
    if (x->key.bias) {
        LtStatus status =
            gemm->lt->DescSetAttribute(x->desc, LT_DESC_BIAS_POINTER, &p[3], sizeof p[3]);
        if (status) return status;
    }
    return gemm->lt->Matmul(gemm->handle, x->desc, &alpha, p[1], x->b, p[0], x->a, &beta, p[2],
                            x->c, p[2], x->c, algo, gemm->work, (size_t)gemm->work_bytes,
                            gemm->stream);
}

/* ---- choosing an algorithm ------------------------------------------------------------------- */

static bool set_preference(CudaGemm *gemm, const Product *p, LtPreference pref, Err *err) {
    uint64_t room = (uint64_t)gemm->work_bytes;
    uint32_t reductions = LT_REDUCTION_COMPUTE_TYPE, align = (uint32_t)p->align;
    const struct {
        int attribute;
        const void *value;
        size_t bytes;
    } set[] = {{LT_PREFERENCE_WORKSPACE_BYTES, &room, sizeof room},
               {LT_PREFERENCE_REDUCTION_MASK, &reductions, sizeof reductions},
               {LT_PREFERENCE_ALIGNMENT_A, &align, sizeof align},
               {LT_PREFERENCE_ALIGNMENT_B, &align, sizeof align},
               {LT_PREFERENCE_ALIGNMENT_C, &align, sizeof align},
               {LT_PREFERENCE_ALIGNMENT_D, &align, sizeof align}};
    for (size_t i = 0; i < COUNT(set); i++) {
        LtStatus status =
            gemm->lt->PreferenceSetAttribute(pref, set[i].attribute, set[i].value, set[i].bytes);
        if (status)
            return lt_fail(gemm, status, "cublasLtMatmulPreferenceSetAttribute", p->name, err);
    }
    return true;
}

/* What the library proposes, the best first; at least one. */
static bool propose(CudaGemm *gemm, const Product *p, LtAlgo out[PROPOSALS], int *n, Err *err) {
    LtPreference pref = NULL;
    LtHeuristic found[PROPOSALS];
    int nfound = 0;
    LtStatus status = gemm->lt->PreferenceCreate(&pref);
    if (status) return lt_fail(gemm, status, "cublasLtMatmulPreferenceCreate", p->name, err);
    bool ok = set_preference(gemm, p, pref, err);
    if (ok) {
        status = gemm->lt->AlgoGetHeuristic(gemm->handle, p->desc, p->b, p->a, p->c, p->c, pref,
                                            PROPOSALS, found, &nfound);
        ok = !status || lt_fail(gemm, status, "cublasLtMatmulAlgoGetHeuristic", p->name, err);
    }
    gemm->lt->PreferenceDestroy(pref);
    *n = 0;
    for (int i = 0; ok && i < nfound; i++)
        if (!found[i].state && found[i].workspace <= (size_t)gemm->work_bytes)
            out[(*n)++] = found[i].algo;
    if (ok && !*n)
        return fail(err, EXIT_DEVICE, "cuBLASLt %zu has no algorithm for %s", gemm->version,
                    p->name);
    return ok;
}

/* A choice made before, if the library still takes it. */
static bool recall(CudaGemm *gemm, Product *p, const GemmChoices *from, const char *whose) {
    const GemmChoice *kept = gemm_choices_find(from, p->name);
    if (!kept) return false;
    LtHeuristic result;
    memcpy(p->algo.data, kept->word, sizeof p->algo.data);
    LtStatus status =
        gemm->lt->AlgoCheck(gemm->handle, p->desc, p->b, p->a, p->c, p->c, &p->algo, &result);
    if (!status && result.workspace <= (size_t)gemm->work_bytes) return true;
    fprintf(stderr,
            "dpoc: warning: the algorithm kept in the %s for %s is not one of this library's%s%s; "
            "it is chosen anew, so results may differ in their last bits\n",
            whose, p->name, status ? ": " : "", status ? lt_error(gemm->lt, status) : "");
    return false;
}

static int64_t place(int64_t *at, int64_t rows, int64_t cols, int64_t ld, int32_t type) {
    int64_t begin = *at, bytes = ((rows - 1) * ld + cols) * dtype_bytes((DType)type);
    *at += (bytes + MAX_ALIGN - 1) / MAX_ALIGN * MAX_ALIGN;
    return begin;
}

/* Puts operands into the scratch memory; false: they do not fit. */
static bool place_operands(CudaGemm *gemm, const Key *k, void *p[4]) {
    int64_t at = 0, offset[4];
    offset[0] = place(&at, k->ta ? k->k : k->m, k->ta ? k->m : k->k, k->lda, k->a);
    offset[1] = place(&at, k->tb ? k->n : k->k, k->tb ? k->k : k->n, k->ldb, k->a);
    offset[2] = place(&at, k->m, k->n, k->ldc, k->c);
    offset[3] = place(&at, 1, k->n, k->n, DT_f32);
    for (int i = 0; i < 4; i++) p[i] = gemm->scratch + offset[i];
    return at <= gemm->scratch_bytes;
}

/* Seconds of REPEATS calls; *ran is false where the library refuses to. */
static bool time_one(CudaGemm *gemm, const Product *x, const LtAlgo *algo, void *const *p,
                     bool *ran, double *seconds, Err *err) {
    const DeviceOps *ops = gemm->dev->ops;
    bool ok = true;
    *ran = !multiply(gemm, x, algo, 1, 0, p);
    if (*ran) ok = ops->stamp(gemm->dev, STAMPS - 2, err);
    for (int i = 0; ok && *ran && i < REPEATS; i++) *ran = !multiply(gemm, x, algo, 1, 0, p);
    if (!ok || !*ran) return ok;
    return ops->stamp(gemm->dev, STAMPS - 1, err) && ops->sync(gemm->dev, err) &&
           ops->seconds(gemm->dev, STAMPS - 2, STAMPS - 1, seconds, err);
}

/* Which of n algorithms is the fastest; 0 where none can be timed. */
static bool fastest(CudaGemm *gemm, Product *x, const LtAlgo *algo, int n, int *best, Err *err) {
    void *p[4];
    double least = 0, begin = now_seconds();
    *best = 0;
    if (n < 2 || gemm->seconds <= 0 || !place_operands(gemm, &x->key, p)) return true;
    if (n > CANDIDATES) n = CANDIDATES;
    for (int i = 0; i < ROUNDS * n && now_seconds() - begin < gemm->seconds; i++) {
        bool ran;
        double seconds;
        if (!time_one(gemm, x, &algo[i % n], p, &ran, &seconds, err)) return false;
        if (!ran || (least > 0 && seconds >= least)) continue;
        least = seconds;
        *best = i % n;
    }
    gemm->seconds -= now_seconds() - begin;
    x->timed = least > 0;
    return true;
}

/* ---- relatives ------------------------------------------------------------------------------- */

/* Sums of the same terms: everything is equal but how the result is stored. */
static bool twins(const Key *x, const Key *y) {
    return x->m == y->m && x->n == y->n && x->k == y->k && x->a == y->a && x->ta == y->ta &&
           x->tb == y->tb && x->lda == y->lda && x->ldb == y->ldb;
}

/* The product chosen by timing that differs from p in its rows alone, by the fewest; or NULL. */
static const Product *nearest(const CudaGemm *gemm, const Product *p) {
    const Product *best = NULL;
    for (const Product *q = gemm->newest; q; q = q->older) {
        Key key = q->key;
        key.m = p->key.m;
        if (q->timed && q->align == p->align && !memcmp(&key, &p->key, sizeof key) &&
            (!best || llabs(q->key.m - key.m) < llabs(best->key.m - key.m)))
            best = q;
    }
    return best;
}

/* The configuration of another product's algorithm as an algorithm for p; false: the library has
 * none such, or it needs more workspace or alignment than there is. */
static bool transplant(CudaGemm *gemm, const Product *p, const LtAlgo *from, LtAlgo *to) {
    const LtApi *lt = gemm->lt;
    int type = lt_type(p->key.a), result = lt_type(p->key.c);
    int32_t id;
    uint32_t value;
    size_t size;
    LtHeuristic found;
    if (lt->AlgoConfigGetAttribute(from, LT_CONFIG_ID, &id, sizeof id, &size) ||
        lt->AlgoInit(gemm->handle, LT_COMPUTE_32F, LT_F32, type, type, result, result, id, to))
        return false;
    for (int i = LT_CONFIG_TILE; i <= LT_CONFIG_CLUSTER_SHAPE; i++) {
        size_t bytes = i < LT_CONFIG_INNER_SHAPE ? sizeof(uint32_t) : sizeof(uint16_t);
        if (lt->AlgoConfigGetAttribute(from, i, &value, bytes, &size) ||
            lt->AlgoConfigSetAttribute(to, i, &value, bytes))
            return false;
    }
    for (int i = LT_CAP_ALIGNMENT_A; i <= LT_CAP_ALIGNMENT_D; i++)
        if (lt->AlgoCapGetAttribute(to, i, &value, sizeof value, &size) ||
            value > (uint32_t)p->align)
            return false;
    return !lt->AlgoCheck(gemm->handle, p->desc, p->b, p->a, p->c, p->c, to, &found) &&
           found.workspace <= (size_t)gemm->work_bytes;
}

static void take(CudaGemm *gemm, Product *p, const LtAlgo *algo) {
    p->algo = *algo;
    gemm_choices_put(&gemm->cached, p->name, p->algo.data);
    gemm->changed = true;
}

/* Takes the configuration of a twin. */
static bool follow_twin(CudaGemm *gemm, Product *p) {
    LtAlgo algo;
    for (const Product *q = gemm->newest; q; q = q->older)
        if (twins(&p->key, &q->key) && transplant(gemm, p, &q->algo, &algo)) {
            take(gemm, p, &algo);
            return true;
        }
    return false;
}

/* Whether all twins of p can run this algorithm of p's in the place of theirs, which p refused;
 * `give`: they do from now on. */
static bool twins_follow(CudaGemm *gemm, const Product *p, const LtAlgo *algo, bool give) {
    LtAlgo theirs;
    for (Product *q = gemm->newest; q; q = q->older) {
        if (!twins(&p->key, &q->key)) continue;
        if (q->settled || !transplant(gemm, q, algo, &theirs)) return false;
        if (give) take(gemm, q, &theirs);
    }
    return true;
}

/* A new choice: among proposals that twins can run too, where there are any, the fastest; where
 * there is no time left to find it, what was the fastest for another number of rows. */
static bool choose_anew(CudaGemm *gemm, Product *p, Err *err) {
    LtAlgo algo[PROPOSALS];
    int n = 0, common = 0, best = 0;
    if (!propose(gemm, p, algo, &n, err)) return false;
    for (int i = 0; i < n; i++)
        if (twins_follow(gemm, p, &algo[i], false)) algo[common++] = algo[i];
    if (common) n = common;
    if (!fastest(gemm, p, algo, n, &best, err)) return false;
    const Product *near = p->timed ? NULL : nearest(gemm, p);
    LtAlgo same;
    bool copy = near && n > 1 && transplant(gemm, p, &near->algo, &same) &&
                (!common || twins_follow(gemm, p, &same, false));
    take(gemm, p, copy ? &same : &algo[best]);
    return true;
}

/* The run's file comes first, so that going on changes no bits; twins come before the cache's,
 * which may have been chosen one by one. */
static bool choose(CudaGemm *gemm, Product *p, Err *err) {
    p->settled = recall(gemm, p, &gemm->given, "run's gemm_choices");
    if (p->settled || follow_twin(gemm, p)) return true;
    if (!recall(gemm, p, &gemm->cached, "cache's gemm_choices") && !choose_anew(gemm, p, err))
        return false;
    if (twins_follow(gemm, p, &p->algo, false)) twins_follow(gemm, p, &p->algo, true);
    return true;
}

/* ---- products -------------------------------------------------------------------------------- */

bool cuda_gemm_prepare(CudaGemm *gemm, const Gemm *g, int64_t m, int64_t n, int64_t k, Err *err) {
    int align = g->align > 0 && g->align < MAX_ALIGN ? g->align : MAX_ALIGN;
    Key key = key_of(g, m, n, k);
    if (!m || !n || !k || find(gemm, &key, align, true)) return true;
    if (g->bias && g->c != DT_f32)
        return fail(err, EXIT_BUG, "bug: cuBLASLt adds no f32 bias to a %s result: %s",
                    dtype_name(g->c), describe(&key));
    Product *p = calloc(1, sizeof *p);
    if (!p) return fail(err, EXIT_MEMORY, "out of memory");
    p->key = key;
    p->align = align;
    p->name = intern_printf("%s: %s, workspace %lld, aligned to %d", origin(gemm), describe(&key),
                            (long long)gemm->work_bytes, align);
    if (!make_descriptors(gemm, p, err) || !choose(gemm, p, err)) {
        product_free(gemm, p);
        return false;
    }
    Product **bucket = bucket_of(gemm, &key);
    p->next = *bucket;
    *bucket = p;
    p->older = gemm->newest;
    gemm->newest = p;
    return true;
}

/* C = beta * C: what is left of a product without k. */
static bool scale(CudaGemm *gemm, const Gemm *g, void *const *p, int64_t m, int64_t n, Err *err) {
    int64_t size = dtype_bytes(g->c);
    if (g->bias) return fail(err, EXIT_BUG, "bug: a product of no terms with a bias");
    if (g->beta != 0) return true;
    bool ok = true;
    for (int64_t i = 0; ok && i < m; i++)
        ok = gemm->dev->ops->zero(gemm->dev, (char *)p[2] + i * g->ldc * size, n * size, err);
    return ok;
}

bool cuda_gemm_run(CudaGemm *gemm, const Gemm *g, void *const *p, int64_t m, int64_t n, int64_t k,
                   Err *err) {
    if (!m || !n) return true;
    if (!k) return scale(gemm, g, p, m, n, err);
    uintptr_t bits = MAX_ALIGN | (uintptr_t)p[0] | (uintptr_t)p[1] | (uintptr_t)p[2];
    if (g->bias) bits |= (uintptr_t)p[3];
    Key key = key_of(g, m, n, k);
    Product *x = find(gemm, &key, (int)(bits & -bits), false);
    if (!x)
        return fail(err, EXIT_BUG, "bug: a product was not prepared: %s, aligned to %d",
                    describe(&key), (int)(bits & -bits));
    x->settled = true;
    LtStatus status = multiply(gemm, x, &x->algo, g->alpha, g->beta, p);
    return !status || lt_fail(gemm, status, "cublasLtMatmul", x->name, err);
}
