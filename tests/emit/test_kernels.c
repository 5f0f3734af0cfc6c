/* test_kernels: the hand-written kernels against plain double loops over random shapes: on the CPU with the
 * same bits at 1, 2 and 3 threads; the CUDA versions in the simulator (sim.h), on small shapes, with the
 * same bits in every order of threads.  Instances are made as custom.c makes them: defines, file, undefs. */
#include <dlfcn.h>
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "compiler/dpoc.h"
#include "runtime/quantize.h"
#include "tests/emit/sim.h"

/* ---- instances ----------------------------------------------------------------------------------------- */

typedef void Function(void *const *, const int64_t *);

static bool cuda; /* which of the two is tested */
static Text source;
static int instances;
static void *library;

/* How custom.c launches each file on CUDA; np pointers, then nn sizes. */
typedef struct Launch {
    const char *file;
    int np, nn, rows_per_block, threads;
} Launch;
static const Launch launches[] = {{"take", 3, 2, 1, 128},          {"put", 3, 2, 1, 128},
                                  {"sort", 3, 1, 1 << 30, 256},    {"attend", 6, 3, 64, 128},
                                  {"attend_delta", 3, 1, 64, 128}, {"attend_dq", 8, 3, 64, 128},
                                  {"attend_dkv", 10, 4, 64, 128},  {"logprob_stats", 8, 1, 1, 256},
                                  {"logprob_grad", 5, 1, 1, 256},  {"dequant", 3, 2, 8, 256}};

static struct {
    Launch launch;
    int grid_y;
} made[200];

static Launch launch_of(const char *file, const char *defines) {
    size_t i = 0;
    while (i < COUNT(launches) && strcmp(launches[i].file, file)) i++;
    assert_true(i < COUNT(launches));
    Launch l = launches[i];
    if (strstr(defines, "NESTED 1")) l.np = 6;
    return l;
}

/* Adds an instance; defines are "NAME value" separated by ';'.  Returns its number. */
static int add_on(int grid_y, const char *file, const char *defines) {
    char path[64], copy[1024];
    snprintf(path, sizeof path, cuda ? "kernels/cuda/%s.cuh" : "kernels/cpu/%s.h", file);
    size_t len;
    const char *body = embedded(path, &len);
    assert_non_null(body);
    text_add(&source, "#define SYMBOL k%d\n#define FN(name) k%d_##name\n", instances, instances);
    snprintf(copy, sizeof copy, "%s", defines);
    for (char *d = strtok(copy, ";"); d; d = strtok(NULL, ";"))
        text_add(&source, "#define %s\n", d);
    text_addn(&source, body, len);
    snprintf(copy, sizeof copy, "%s", defines);
    for (char *d = strtok(copy, ";"); d; d = strtok(NULL, ";"))
        text_add(&source, "#undef %.*s\n", (int)strcspn(d, " "), d);
    text_add(&source, "#undef SYMBOL\n#undef FN\n");
    made[instances].launch = launch_of(file, defines);
    made[instances].grid_y = grid_y;
    char symbol[32];
    snprintf(symbol, sizeof symbol, "k%d", instances);
    if (cuda) sim_add_call(&source, symbol, made[instances].launch.np);
    return instances++;
}

static int addf(int grid_y, const char *file, const char *format, ...) PRINTF(3, 4);
static int addf(int grid_y, const char *file, const char *format, ...) {
    char defines[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(defines, sizeof defines, format, args);
    va_end(args);
    return add_on(grid_y, file, defines);
}

static void compile_cpu(void) {
    char dir[] = "/tmp/dpoc-kernels-XXXXXX", command[600];
    static const Target cpu = {.name = "cpu"};
    assert_non_null(mkdtemp(dir));
    snprintf(command, sizeof command, "%s/k.c", dir);
    FILE *f = fopen(command, "w");
    assert_non_null(f);
    fprintf(f, "%s%s", emit_prelude(&cpu), source.data);
    fclose(f);
    snprintf(command, sizeof command,
             "cc -std=gnu11 -O3 -march=native -Wall -Wno-unused-function -Werror -ffp-contract=off "
             "-fno-math-errno -fopenmp -shared -fPIC -o %s/k.so %s/k.c",
             dir, dir);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof command, "%s/k.so", dir);
    library = dlopen(command, RTLD_NOW | RTLD_LOCAL);
    snprintf(command, sizeof command, "rm -r %s", dir);
    if (!getenv("KEEP")) assert_int_equal(system(command), 0);
}

static void compile_cuda(void) {
    static const Target sm_80 = {.name = "sm_80", .cuda = true};
    Text text = {0};
    text_add(&text, "%s%s", emit_prelude(&sm_80), source.data);
    library = sim_compile(text.data);
    text_free(&text);
}

/* `way`: number of threads, less one; or the simulator's order of threads. */
static void run_way(int instance, void *const *p, const int64_t *n, int way) {
    char symbol[32];
    snprintf(symbol, sizeof symbol, "k%d", instance);
    if (cuda) {
        const Launch *l = &made[instance].launch;
        const int64_t blocks = (n[0] + l->rows_per_block - 1) / l->rows_per_block;
        const int grid[2] = {(int)blocks, made[instance].grid_y};
        assert_true(sim_launch(library, symbol, p, n, l->nn, grid, l->threads, (SimOrder)way));
        return;
    }
    Function *f;
    *(void **)&f = dlsym(library, symbol);
    assert_non_null(f);
    omp_set_num_threads(way + 1);
    f(p, n);
}

static void run(int instance, void *const *p, const int64_t *n) {
    run_way(instance, p, n, 1);
}

/* ---- data ------------------------------------------------------------------------------------------------ */

static uint64_t state = 1;
static uint32_t next(void) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 32);
}
static int below(int n) {
    return (int)(next() % (uint32_t)n);
}

typedef struct Tensor { /* in memory of type t, and its values */
    DType t;
    int64_t n;
    void *data;
    double *x;
} Tensor;

static Tensor tensor(DType t, int64_t n) {
    Tensor y = {t, n, calloc((size_t)n + 16, 4), calloc((size_t)n + 1, sizeof(double))};
    if (!y.data || !y.x) abort();
    return y;
}

static Tensor noise(DType t, int64_t n, double scale) {
    Tensor y = tensor(t, n);
    for (int64_t i = 0; i < n; i++) {
        const double sum = (double)next() + (double)next() + (double)next() - 1.5 * 0x1p32;
        const float x = (float)(sum * 0x1p-31 * scale);
        if (t == DT_bf16)
            ((uint16_t *)y.data)[i] = float_to_bf16(x);
        else
            ((float *)y.data)[i] = x;
        y.x[i] = (double)(t == DT_bf16 ? bf16_to_float(float_to_bf16(x)) : x);
    }
    return y;
}

static double at(const Tensor *y, int64_t i) {
    return (double)(y->t == DT_bf16  ? bf16_to_float(((uint16_t *)y->data)[i])
                    : y->t == DT_f32 ? ((float *)y->data)[i]
                                     : (float)((int32_t *)y->data)[i]);
}

static void drop(Tensor *y) {
    free(y->data);
    free(y->x);
}

/* y.data against y.x: within `ulps` units of f32 at the largest value (or at `most`, the size of terms that
 * may cancel), and storage's rounding. */
static int differs_at(const char *what, const Tensor *y, double ulps, double most) {
    double worst = 0;
    for (int64_t i = 0; i < y->n; i++) most = fmax(most, fabs(y->x[i]));
    for (int64_t i = 0; i < y->n; i++) worst = fmax(worst, fabs(at(y, i) - y->x[i]));
    bool nan = false;
    for (int64_t i = 0; i < y->n; i++) nan |= isnan(at(y, i));
    const double bound = most * (ulps * 0x1p-24 + (y->t == DT_bf16 ? 0x1p-8 : 0));
    if (worst <= bound && !nan) return 0;
    printf("%s: off by %g, allowed %g%s\n", what, worst, bound, nan ? ", NaN" : "");
    return 1;
}

static int differs(const char *what, const Tensor *y, double ulps) {
    return differs_at(what, y, ulps, 0);
}

/* Runs in three ways with poisoned results; 0 if all bits agree. */
static int threads_differ(const char *what, int instance, void *const *p, const int64_t *n,
                          const Tensor *results, int nresults) {
    void *first[4] = {0};
    int bad = 0;
    for (int way = 0; way < 3; way++) {
        for (int i = 0; i < nresults; i++)
            memset(results[i].data, 0xff, (size_t)results[i].n * (size_t)dtype_bytes(results[i].t));
        run_way(instance, p, n, way);
        for (int i = 0; i < nresults; i++) {
            const size_t bytes = (size_t)results[i].n * (size_t)dtype_bytes(results[i].t);
            if (way == 0) {
                first[i] = malloc(bytes + 1);
                memcpy(first[i], results[i].data, bytes);
            } else if (memcmp(first[i], results[i].data, bytes)) {
                printf("%s: result %d depends on the order of work\n", what, i);
                bad++;
            }
        }
    }
    for (int i = 0; i < nresults; i++) free(first[i]);
    return bad;
}

/* ---- attention --------------------------------------------------------------------------------------------- */

typedef struct Shape {
    int heads, kv, dim, window;
    DType q, dout, dq;
    int made[4]; /* attend, delta, dq, dkv */
} Shape;

static Shape shapes[] = {
    {4, 4, 64, 0, DT_f32, DT_f32, DT_f32, {0}},    {8, 2, 8, 0, DT_f32, DT_f32, DT_f32, {0}},
    {7, 1, 48, 0, DT_f32, DT_f32, DT_f32, {0}},    {14, 2, 64, 100, DT_f32, DT_f32, DT_f32, {0}},
    {2, 2, 128, 17, DT_bf16, DT_f32, DT_f32, {0}}, {8, 2, 64, 0, DT_bf16, DT_bf16, DT_bf16, {0}},
    {3, 3, 33, 1, DT_f32, DT_f32, DT_f32, {0}},
};

static void make_attention(void) {
    for (size_t i = 0; i < COUNT(shapes); i++) {
        Shape *s = &shapes[i];
        char base[512];
        const int gap = 3; /* rows lie apart, as columns of a merged projection do */
        snprintf(
            base, sizeof base,
            "T_Q %s;HEADS %d;KV_HEADS %d;HEAD_DIM %d;SCALE %.9ef;WINDOW %d;LD_Q %d;LD_K %d;LD_V %d",
            dtype_name(s->q), s->heads, s->kv, s->dim, 1 / sqrt(s->dim), s->window,
            s->heads * s->dim + gap, s->kv * s->dim + gap, s->kv * s->dim);
        const int ldo = s->heads * s->dim, ldk = s->kv * s->dim;
        s->made[0] = addf(s->heads, "attend", "%s;LD_O %d", base, ldo);
        s->made[1] = addf(1, "attend_delta", "T_Q %s;T_DO %s;HEADS %d;HEAD_DIM %d;LD_O %d;LD_DO %d",
                          dtype_name(s->q), dtype_name(s->dout), s->heads, s->dim, ldo, ldo);
        s->made[2] = addf(s->heads, "attend_dq", "%s;T_DO %s;T_DQ %s;LD_DO %d;LD_DQ %d", base,
                          dtype_name(s->dout), dtype_name(s->dq), ldo, ldo);
        s->made[3] = addf(s->kv, "attend_dkv", "%s;T_DO %s;T_DK %s;LD_DO %d;LD_DK %d;LD_DV %d",
                          base, dtype_name(s->dout), dtype_name(s->dq), ldo, ldk, ldk);
    }
}

typedef struct Layout { /* segments over rows; keys and queries are numbered apart */
    int32_t segs[32][6], ranges[32][4];
    int64_t nsegs, nranges, rows, keys;
} Layout;

static void add_range(Layout *l, int begin, int length, int first, int count) {
    const int32_t r[4] = {begin, length, first, count};
    memcpy(l->ranges[l->nranges++], r, sizeof r);
}

static void add_segment(Layout *l, int queries, int prefix, int plen, int own) {
    const int32_t s[6] = {(int32_t)l->rows, queries, prefix, plen, (int32_t)l->keys, own};
    memcpy(l->segs[l->nsegs++], s, sizeof s);
    l->rows += queries;
    l->keys += own;
}

/* One sequence by itself. */
static void add_alone(Layout *l, int length) {
    add_range(l, (int)l->keys, length, (int)l->nsegs, 1);
    add_segment(l, length, 0, 0, length);
}

/* A prompt and two answers that see it. */
static void add_pair(Layout *l, int prompt, int chosen, int rejected) {
    const int begin = (int)l->keys, seg = (int)l->nsegs;
    add_range(l, begin, prompt, seg, 3);
    add_segment(l, prompt, 0, 0, prompt);
    add_range(l, (int)l->keys, chosen, seg + 1, 1);
    add_segment(l, chosen, begin, prompt, chosen);
    add_range(l, (int)l->keys, rejected, seg + 2, 1);
    add_segment(l, rejected, begin, prompt, rejected);
}

/* The last queries of a longer sequence: what a KV cache gives. */
static void add_cached(Layout *l, int queries, int length) {
    add_range(l, (int)l->keys, length, (int)l->nsegs, 1);
    add_segment(l, queries, 0, 0, length);
}

static Layout layout(int which) {
    Layout l = {.nsegs = 0};
    if (cuda) { /* small, but more than one block of rows */
        add_pair(&l, 11, 7, 1);
        add_cached(&l, 3, 9);
        add_alone(&l, 2);
        add_alone(&l, 44);
        l.rows += 3; /* rows and keys that no segment names */
        l.keys += 2;
    } else if (which == 0) {
        add_pair(&l, 65, 63, 1);
        add_alone(&l, 64);
        add_pair(&l, 1, 64, 65);
        add_alone(&l, 1);
        add_cached(&l, 5, 70);
        add_alone(&l, 63);
    } else if (which == 1) {
        add_alone(&l, 700);
    } else {
        for (int i = 0; i < 4; i++) add_pair(&l, 1 + below(90), 1 + below(40), 1 + below(40));
        add_cached(&l, 1, 1 + below(200));
        l.rows += 3; /* rows and keys that no segment names */
        l.keys += 2;
    }
    return l;
}

typedef struct Attention {
    const Shape *s;
    const Layout *l;
    Tensor q, k, v, out, lse, dout, delta, dq, dk, dv;
    int64_t ldq, ldk, ldv;
} Attention;

static double dot(const double *x, const double *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* What query i of segment g sees, as key numbers. */
static int visible(const Attention *a, const int32_t *seg, int i, int *keys) {
    const int at = seg[3] + i + seg[5] - seg[1];
    int n = 0;
    for (int pos = 0; pos <= at; pos++)
        if (!a->s->window || at - pos < a->s->window)
            keys[n++] = pos < seg[3] ? seg[2] + pos : seg[4] + pos - seg[3];
    return n;
}

static void reference_row(Attention *a, int64_t row, int h, const int *keys, int n, double *p) {
    const int dim = a->s->dim, hk = h / (a->s->heads / a->s->kv);
    const double scale = (double)(float)(1 / sqrt(dim)), *q = a->q.x + row * a->ldq + h * dim;
    double most = -INFINITY, sum = 0;
    for (int j = 0; j < n; j++) {
        p[j] = scale * dot(q, a->k.x + keys[j] * a->ldk + hk * dim, dim);
        most = fmax(most, p[j]);
    }
    for (int j = 0; j < n; j++) sum += exp(p[j] - most);
    const double lse = a->lse.x[row * a->s->heads + h] = most + log(sum);
    double *out = a->out.x + (row * a->s->heads + h) * dim;
    const double *dout = a->dout.x + (row * a->s->heads + h) * dim;
    for (int j = 0; j < n; j++)
        for (int d = 0; d < dim; d++)
            out[d] += exp(p[j] - lse) * a->v.x[keys[j] * a->ldv + hk * dim + d];
    const double delta = a->delta.x[row * a->s->heads + h] = dot(out, dout, dim);
    for (int j = 0; j < n; j++) {
        const double pj = exp(p[j] - lse);
        const double ds =
            scale * pj * (dot(dout, a->v.x + keys[j] * a->ldv + hk * dim, dim) - delta);
        const int64_t key = (keys[j] * a->s->kv + hk) * dim;
        for (int d = 0; d < dim; d++) {
            a->dv.x[key + d] += pj * dout[d];
            a->dk.x[key + d] += ds * q[d];
            a->dq.x[(row * a->s->heads + h) * dim + d] +=
                ds * a->k.x[keys[j] * a->ldk + hk * dim + d];
        }
    }
}

static void reference(Attention *a) {
    int *keys = calloc((size_t)a->l->keys + 1, sizeof *keys);
    double *p = calloc((size_t)a->l->keys + 1, sizeof *p);
    for (int64_t g = 0; g < a->l->nsegs; g++) {
        const int32_t *seg = a->l->segs[g];
        for (int i = 0; i < seg[1]; i++) {
            const int n = visible(a, seg, i, keys);
            for (int h = 0; h < a->s->heads; h++) reference_row(a, seg[0] + i, h, keys, n, p);
        }
    }
    free(keys);
    free(p);
}

static int check_attention(const Shape *s, const Layout *l) {
    const int64_t t = l->rows, m = l->keys, q = s->heads * s->dim, k = s->kv * s->dim;
    Attention a = {.s = s, .l = l, .ldq = q + 3, .ldk = k + 3, .ldv = k};
    a.q = noise(s->q, t * a.ldq, 2), a.k = noise(s->q, m * a.ldk, 2), a.v = noise(s->q, m * k, 1);
    a.dout = noise(s->dout, t * q, 1);
    a.out = tensor(s->q, t * q), a.lse = tensor(DT_f32, t * s->heads);
    a.delta = tensor(DT_f32, t * s->heads), a.dq = tensor(s->dq, t * q);
    a.dk = tensor(s->dq, m * k), a.dv = tensor(s->dq, m * k);
    reference(&a);
    char what[64];
    snprintf(what, sizeof what, "heads %d/%d dim %d window %d", s->heads, s->kv, s->dim, s->window);
    void *fwd[] = {a.q.data, a.k.data, a.v.data, (void *)l->segs, a.out.data, a.lse.data};
    int bad = threads_differ(what, s->made[0], fwd, (int64_t[]){t, m, l->nsegs},
                             (Tensor[]){a.out, a.lse}, 2);
    bad += differs("out", &a.out, 64) + differs("lse", &a.lse, 64);
    /* The backward reads the exact forward, so that errors are its own. */
    for (int64_t i = 0; i < a.lse.n; i++) ((float *)a.lse.data)[i] = (float)a.lse.x[i];
    void *delta[] = {a.out.data, a.dout.data, a.delta.data};
    bad += threads_differ(what, s->made[1], delta, &t, &a.delta, 1);
    if (s->q == DT_f32) bad += differs("delta", &a.delta, 256);
    for (int64_t i = 0; i < a.delta.n; i++) ((float *)a.delta.data)[i] = (float)a.delta.x[i];
    void *dq[] = {a.q.data,    a.k.data,        a.v.data,     a.lse.data,
                  a.dout.data, (void *)l->segs, a.delta.data, a.dq.data};
    bad += threads_differ(what, s->made[2], dq, (int64_t[]){t, m, l->nsegs}, &a.dq, 1);
    void *dkv[] = {a.q.data,        a.k.data,          a.v.data,     a.lse.data, a.dout.data,
                   (void *)l->segs, (void *)l->ranges, a.delta.data, a.dk.data,  a.dv.data};
    bad += threads_differ(what, s->made[3], dkv, (int64_t[]){m, t, l->nsegs, l->nranges},
                          (Tensor[]){a.dk, a.dv}, 2);
    bad += differs_at("dq", &a.dq, 256, 1) + differs_at("dk", &a.dk, 256, 1);
    bad += differs("dv", &a.dv, 256);
    if (bad) printf("  in %s, %lld rows\n", what, (long long)t);
    Tensor *all[] = {&a.q, &a.k, &a.v, &a.out, &a.lse, &a.dout, &a.delta, &a.dq, &a.dk, &a.dv};
    for (size_t i = 0; i < COUNT(all); i++) drop(all[i]);
    return bad;
}

static void test_attention(void **unused) {
    (void)unused;
    int bad = 0;
    for (int which = 0; which < (cuda ? 1 : 4); which++) {
        const Layout l = layout(which);
        for (size_t i = 0; i < COUNT(shapes); i++)
            if (cuda ? i % 2 == 0 : which != 1 || i < 4) bad += check_attention(&shapes[i], &l);
    }
    assert_int_equal(bad, 0);
}

/* ---- the head ------------------------------------------------------------------------------------------------ */

static const struct {
    int vocab;
    double scale;
} vocabs[] = {{97, 1}, {1024, 0.5}, {32000, 1}, {128256, 1}};
static int made_stats[COUNT(vocabs)], made_grad[COUNT(vocabs)][2];

static void make_head(void) {
    for (size_t i = 0; i < COUNT(vocabs); i++) {
        made_stats[i] =
            addf(1, "logprob_stats", "VOCAB %d;SCALE %.9ef", vocabs[i].vocab, vocabs[i].scale);
        for (int bf = 0; bf < 2; bf++)
            made_grad[i][bf] =
                addf(1, "logprob_grad", "VOCAB %d;SCALE %.9ef;T_D %s;LD_D %d", vocabs[i].vocab,
                     vocabs[i].scale, bf ? "bf16" : "f32", vocabs[i].vocab * (bf ? 2 : 1));
    }
}

enum { LOGP, LSE, MEAN, ENTROPY, HIT, P2, NSTATS };

static void reference_stats(const double *z, int vocab, double scale, int target, double *y) {
    double most = -INFINITY, sum = 0, mean = 0, pz = 0, p2 = 0;
    int best = 0;
    for (int v = 0; v < vocab; v++)
        if (scale * z[v] > most) most = scale * z[v], best = v;
    for (int v = 0; v < vocab; v++) sum += exp(scale * z[v] - most);
    const double lse = most + log(sum);
    for (int v = 0; v < vocab; v++) {
        const double p = exp(scale * z[v] - lse);
        mean += scale * z[v] / vocab;
        pz += p * scale * z[v];
        p2 += p * p;
    }
    y[LOGP] = target < 0 ? 0 : scale * z[target] - lse;
    y[LSE] = lse, y[MEAN] = mean, y[ENTROPY] = lse - pz, y[HIT] = best == target, y[P2] = log(p2);
}

static int check_head(size_t which, int rows) {
    const int vocab = vocabs[which].vocab;
    const double scale = vocabs[which].scale;
    Tensor z = noise(DT_f32, (int64_t)rows * vocab, 8), c = noise(DT_f32, rows, 1), y[NSTATS];
    int32_t *target = calloc((size_t)rows, sizeof *target);
    for (int k = 0; k < NSTATS; k++) y[k] = tensor(DT_f32, rows);
    for (int r = 0; r < rows; r++) {
        float *row = (float *)z.data + (int64_t)r * vocab;
        target[r] = r % 5 == 4 ? -1 : below(vocab);
        /* Two equal maxima: the first wins. */
        const int a = below(vocab), b = below(vocab);
        row[a] = row[b] = 30;
        z.x[(int64_t)r * vocab + a] = z.x[(int64_t)r * vocab + b] = 30;
        if (r % 3 == 0) target[r] = a < b ? a : b;
        if (r % 3 == 1) target[r] = a < b ? b : a;
        double stats[NSTATS];
        reference_stats(z.x + (int64_t)r * vocab, vocab, scale, target[r], stats);
        for (int k = 0; k < NSTATS; k++) y[k].x[r] = stats[k];
    }
    int64_t n = rows;
    void *p[] = {z.data,       target,          y[LOGP].data, y[LSE].data,
                 y[MEAN].data, y[ENTROPY].data, y[HIT].data,  y[P2].data};
    int bad = threads_differ("logprob_stats", made_stats[which], p, &n, y, 4);
    bad += differs("logp", &y[LOGP], 16) + differs("lse", &y[LSE], 16);
    bad += differs("mean", &y[MEAN], 4096) + differs("entropy", &y[ENTROPY], 64);
    bad += differs("hit", &y[HIT], 0) + differs("logsum_p2", &y[P2], 64);
    /* Only what is wanted. */
    memset(y[LOGP].data, 0xff, (size_t)rows * 4);
    void *few[] = {z.data, target, y[LOGP].data, NULL, NULL, NULL, NULL, NULL};
    run(made_stats[which], few, &n);
    bad += differs("logp alone", &y[LOGP], 16);
    for (int bf = 0; bf < 2; bf++) {
        Tensor d = noise(DT_f32, (int64_t)rows * vocab, 0);
        memcpy(d.data, z.data, (size_t)rows * (size_t)vocab * 4);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vocab; v++) {
                const int64_t i = (int64_t)r * vocab + v;
                const double e = exp(scale * z.x[i] - y[LSE].x[r]);
                d.x[i] = target[r] < 0 ? 0 : c.x[r] * scale * ((v == target[r]) - e);
            }
        for (int r = 0; r < rows; r++) ((float *)y[LSE].data)[r] = (float)y[LSE].x[r];
        void *g[] = {d.data, target, y[LSE].data, c.data, d.data};
        run_way(made_grad[which][bf], g, &n, bf);
        if (bf) /* rows of bf16 begin where rows of f32 did */
            for (int r = 0; r < rows; r++)
                memmove((uint16_t *)d.data + (int64_t)r * vocab,
                        (uint16_t *)d.data + (int64_t)r * vocab * 2, (size_t)vocab * 2);
        d.t = bf ? DT_bf16 : DT_f32;
        bad += differs("logprob_grad", &d, 64);
        drop(&d);
    }
    if (bad) printf("  in vocabulary %d\n", vocab);
    for (int k = 0; k < NSTATS; k++) drop(&y[k]);
    drop(&z), drop(&c), free(target);
    return bad;
}

static void test_head(void **unused) {
    (void)unused;
    int bad = 0;
    for (size_t i = 0; i < (cuda ? 2 : COUNT(vocabs)); i++) bad += check_head(i, i < 2 ? 37 : 6);
    assert_int_equal(bad, 0);
}

/* ---- gather, scatter, sort ------------------------------------------------------------------------------------ */

static const int widths[] = {1, 64, 100, 4096};
static int made_take[COUNT(widths)][2], made_put[COUNT(widths)], made_take_i32, made_sort;

static void make_rows(void) {
    for (size_t i = 0; i < COUNT(widths); i++) {
        for (int bf = 0; bf < 2; bf++)
            made_take[i][bf] = addf(1, "take", "T_X %s;COLS %d;LD_X %d;LD_Y %d",
                                    bf ? "bf16" : "f32", widths[i], widths[i] + 2, widths[i]);
        made_put[i] = addf(1, "put", "COLS %d;LD_X %d;LD_Y %d", widths[i], widths[i], widths[i]);
    }
    made_take_i32 = add_on(1, "take", "T_X i32;COLS 2;LD_X 2;LD_Y 2");
    made_sort = add_on(1, "sort", "");
}

static int32_t *indices(int n, int limit) {
    int32_t *index = calloc((size_t)n + 1, sizeof *index);
    for (int i = 0; i < n; i++) index[i] = below(limit + 1) - 1;
    return index;
}

static void test_take_put(void **unused) {
    (void)unused;
    int bad = 0;
    for (size_t i = 0; i < COUNT(widths); i++)
        for (int bf = 0; bf < 2; bf++) {
            const int w = widths[i], m = 50, r = 333;
            int32_t *index = indices(r, m);
            Tensor x = noise(bf ? DT_bf16 : DT_f32, m * (w + 2), 1);
            Tensor y = tensor(x.t, (int64_t)r * w), z = tensor(DT_f32, (int64_t)m * w);
            for (int a = 0; a < r; a++)
                for (int j = 0; j < w; j++)
                    y.x[a * w + j] = index[a] < 0 ? 0 : x.x[index[a] * (w + 2) + j];
            void *p[] = {x.data, index, y.data};
            bad += threads_differ("take", made_take[i][bf], p, (int64_t[]){r, m}, &y, 1);
            bad += differs("take", &y, 0);
            Tensor s = noise(DT_f32, (int64_t)r * w, 1); /* exact: a float sum in order */
            for (int a = 0; a < r; a++)
                for (int j = 0; j < w && index[a] >= 0; j++)
                    z.x[index[a] * w + j] =
                        (double)((float)z.x[index[a] * w + j] + (float)s.x[a * w + j]);
            void *q[] = {s.data, index, z.data};
            bad += threads_differ("put", made_put[i], q, (int64_t[]){m, r}, &z, 1);
            bad += differs("put", &z, 0);
            drop(&x), drop(&y), drop(&z), drop(&s), free(index);
        }
    const int32_t x[] = {1, 2, 3, 4, 1 << 30, -7}, index[] = {2, -1, 0};
    int32_t y[6];
    run(made_take_i32, (void *[]){(void *)x, (void *)index, y}, (int64_t[]){3, 3});
    assert_memory_equal(y, ((int32_t[]){1 << 30, -7, 0, 0, 1, 2}), sizeof y);
    assert_int_equal(bad, 0);
}

static void test_sort(void **unused) {
    (void)unused;
    for (int n = 0; n < 700; n += 1 + n) {
        float *x = calloc((size_t)n + 1, 4), *y = calloc((size_t)n + 1, 4);
        int32_t *source_of = calloc((size_t)n + 1, 4);
        for (int i = 0; i < n; i++) x[i] = below(9) == 0 ? NAN : (float)(below(40) - 20);
        run(made_sort, (void *[]){x, y, source_of}, (int64_t[]){n});
        for (int i = 0; i < n; i++) {
            assert_true(y[i] == x[source_of[i]] || (isnan(y[i]) && isnan(x[source_of[i]])));
            if (i == 0) continue;
            assert_true(y[i - 1] <= y[i] || isnan(y[i]));
            if (y[i - 1] == y[i] || isnan(y[i - 1])) assert_true(source_of[i - 1] < source_of[i]);
        }
        free(x), free(y), free(source_of);
    }
}

/* ---- quantized weights ------------------------------------------------------------------------------------------ */

static int made_dequant[NQUANT][2][2];

static void make_dequant(void) {
    for (int f = 0; f < NQUANT; f++)
        for (int nested = 0; nested < 2; nested++)
            for (int bf = 0; bf < 2; bf++)
                made_dequant[f][nested][bf] = addf(1, "dequant", "T_Y %s;BLOCK 64;NESTED %d;%s 1",
                                                   bf ? "bf16" : "f32", nested,
                                                   f == QUANT_NF4   ? "NF4"
                                                   : f == QUANT_FP4 ? "FP4"
                                                                    : "INT8");
}

static int check_dequant(QuantFormat format, int nested, int bf, int64_t n) {
    const int64_t blocks = (n + 63) / 64, groups = (blocks + 255) / 256;
    uint8_t *codes = calloc((size_t)n + 1, 1), *q = calloc((size_t)blocks, 1);
    Tensor absmax = noise(DT_f32, blocks, 1), absmax2 = noise(DT_f32, groups, 1);
    Tensor offset = noise(DT_f32, 1, 1), map = noise(DT_f32, 256, 1);
    Tensor y = tensor(bf ? DT_bf16 : DT_f32, n);
    for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)next();
    for (int64_t i = 0; i < blocks; i++) q[i] = (uint8_t)next();
    const float *lut = quant_lut(format);
    for (int64_t i = 0; i < n; i++) {
        const int64_t b = i / 64;
        const double scale = nested ? map.x[q[b]] * absmax2.x[b / 256] + offset.x[0] : absmax.x[b];
        y.x[i] = lut ? (double)lut[i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4] * scale
                     : (double)(int8_t)codes[i] * scale / 127;
    }
    void *plain[] = {codes, absmax.data, y.data};
    void *deep[] = {codes, q, absmax2.data, offset.data, map.data, y.data};
    int bad = threads_differ("dequant", made_dequant[format][nested][bf], nested ? deep : plain,
                             (int64_t[]){blocks, n}, &y, 1);
    bad += differs("dequant", &y, 8);
    drop(&absmax), drop(&absmax2), drop(&offset), drop(&map), drop(&y), free(codes), free(q);
    return bad;
}

static void test_dequant(void **unused) {
    (void)unused;
    int bad = 0;
    for (int f = 0; f < NQUANT; f++)
        for (int nested = 0; nested < 2; nested++)
            for (int bf = 0; bf < 2; bf++) {
                bad += check_dequant((QuantFormat)f, nested, bf, 64 * (cuda ? 260 : 700));
                bad += check_dequant((QuantFormat)f, nested, bf, 64 * 3 + 7);
            }
    assert_int_equal(bad, 0);
}

/* Makes all instances for the CPU or for CUDA. */
static int make(bool on_cuda) {
    cuda = on_cuda;
    text_free(&source);
    source = (Text){0};
    instances = 0;
    make_attention();
    make_head();
    make_rows();
    make_dequant();
    if (cuda)
        compile_cuda();
    else
        compile_cpu();
    return library ? 0 : 1;
}

static int make_cpu(void **unused) {
    (void)unused;
    return make(false);
}
static int make_cuda(void **unused) {
    (void)unused;
    return make(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention),
                                       cmocka_unit_test(test_head), cmocka_unit_test(test_take_put),
                                       cmocka_unit_test(test_sort), cmocka_unit_test(test_dequant)};
    const int cpu_failed = cmocka_run_group_tests_name("cpu", tests, make_cpu, NULL);
#ifdef HARD /* the sanitizers do not follow fibers */
    (void)make_cuda;
    return cpu_failed;
#else
    return cpu_failed + cmocka_run_group_tests_name("cuda, simulated", tests, make_cuda, NULL);
#endif
}
