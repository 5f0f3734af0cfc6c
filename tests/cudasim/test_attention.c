/* Attention on tensor cores (kernels/cuda/attend*_mma.cuh) on the simulated device, forward and
 * backward, against plain double loops.
 *
 * Everything that nothing may be read from holds NaNs: rows and keys of no segment, gaps between
 * rows.  What nothing may be written to must not change.
 *
 * Two kinds of data.  With q = 0, or k = 0, all scores are 0: probabilities are whole, lse and
 * delta are given as small integers, the others are -1, 0, 1 and SCALE is a power of two.  Then
 * every sum is an integer below 2^24 and every factor one of at most 8 bits: the backward must be
 * exact, and a key too many or too few shows.
 *
 * With random data, per element (u = 2^-23 bounds one addition on tensor cores, which may cut off;
 * products of bf16 are exact; r = 2^-8 is half a unit of bf16):
 *     score      |ds|   <= D u sum |q k|;  its multiple of log2 e in exp2: 3 u |SCALE s|, u |lse|;
 *     exp2       2 units, so p is off by at most e p,
 *                e = SCALE |ds| + 4 u |SCALE s| + 2 u |lse| + 3 u
 *     out        sum p v / sum p: (2 e + r + (n + tiles) u) sum p |v| / sum p, rounded: r |out|
 *     dp         |ddp| <= D u sum |dout v|
 *     ds         |dds| <= p (e |dp - delta| + |ddp| + 2 u (|dp| + |delta|)) + r |ds|
 *     dv         sum (e + r + n u) p |dout|;  dq: SCALE sum (|dds| + n u |ds|) |k|;  dk: .. |q|
 * each result rounded to its type.  The largest e of a row stands for all of the row's.
 */
#include "../../compiler/dpoc.h"
#include "../../runtime/quantize.h"
#include "../device/device.h"
#include "loaded.h"

#include <math.h>

/* ---- instances ------------------------------------------------------------------------------- */

typedef struct Shape {
    int heads, kv, dim, window;
    int tiles, keys, queries; /* how the kernels cut the work */
    DType result;             /* of dq, dk, dv */
    float scale;
    int forward, dq, dkv, delta; /* kernels; -1: none */
} Shape;

enum { WARPS = 4, GAP = 8 };

static Shape shapes[] = {
    {6, 3, 64, 0, 2, 64, 64, DT_f32, 0.125f, 0, 0, 0, 0},
    {4, 1, 128, 0, 2, 48, 32, DT_bf16, 0.0625f, 0, 0, 0, 0},
    {7, 1, 128, 100, 1, 64, 16, DT_f32, 0.0625f, 0, 0, 0, 0},
    {2, 1, 80, 17, 2, 32, 32, DT_f32, 0.125f, 0, 0, 0, 0},
    {2, 2, 32, 1, 2, 64, 64, DT_bf16, 0.25f, 0, 0, 0, 0},
    {2, 2, 256, 0, 1, 16, 0, DT_f32, 0.0625f, 0, 0, 0, 0},
};

static Plan plan;
static Arena *arena;

static int pitch(const Shape *s) {
    return (s->dim + 63) / 64 * 128;
}

static int add_kernel(const Shape *s, const char *file, int rows, int grid_y, int shared) {
    const int n = plan.nkernels++;
    Text t = {0};
    plan.kernels = realloc(plan.kernels, sizeof *plan.kernels * (size_t)plan.nkernels);
    text_add(&t, "#define SYMBOL k%d\n#define FN(name) k%d_##name\n", n, n);
    const int q = s->heads * s->dim + GAP, k = 2 * s->kv * s->dim + GAP;
    const struct {
        const char *name;
        int value;
    } d[] = {{"HEADS", s->heads},
             {"KV_HEADS", s->kv},
             {"HEAD_DIM", s->dim},
             {"WINDOW", s->window},
             {"LD_Q", q},
             {"LD_K", k},
             {"LD_V", k},
             {"LD_O", q},
             {"LD_DO", q},
             {"LD_DQ", q},
             {"LD_DK", k},
             {"LD_DV", k},
             {"ALIGN", 16},
             {"TILES", s->tiles},
             {"KEYS", s->keys},
             {"WARPS", WARPS},
             {"QUERIES", s->queries}};
    text_add(&t, "#define SCALE %.9ef\n#define T_Q bf16\n#define T_DO bf16\n", (double)s->scale);
    text_add(&t, "#define T_DQ %s\n#define T_DK %s\n", dtype_name(s->result),
             dtype_name(s->result));
    for (size_t i = 0; i < COUNT(d); i++) text_add(&t, "#define %s %d\n", d[i].name, d[i].value);
    char *path = arena_printf(arena, "kernels/cuda/%s.cuh", file);
    text_add(&t, "%s", embedded(path, NULL));
    for (size_t i = 0; i < COUNT(d); i++) text_add(&t, "#undef %s\n", d[i].name);
    text_add(&t, "#undef SCALE\n#undef T_Q\n#undef T_DO\n#undef T_DQ\n#undef T_DK\n#undef SYMBOL\n"
                 "#undef FN\n");
    plan.kernels[n] = (Kernel){.symbol = intern_printf("k%d", n),
                               .text = arena_str(arena, t.data),
                               .kind = file,
                               .rows_per_block = rows,
                               .grid_y = grid_y,
                               .threads = 32 * WARPS,
                               .shared_bytes = shared};
    text_free(&t);
    return n;
}

static void make_plan(void) {
    static const Target target = {.name = "sm_80", .cuda = true};
    arena = arena_new();
    plan.device = "sm_80";
    plan.prelude = emit_prelude(&target);
    for (size_t i = 0; i < COUNT(shapes); i++) {
        Shape *s = &shapes[i];
        const int rows = 16 * WARPS, all = rows * s->tiles, p = pitch(s);
        s->forward = add_kernel(s, "attend_mma", all, s->heads, (all + 2 * s->keys) * p);
        s->dq = s->dkv = s->delta = -1;
        if (s->dim > 128) continue;
        s->dq = add_kernel(s, "attend_dq_mma", rows, s->heads, 4 * s->keys * p);
        s->dkv = add_kernel(s, "attend_dkv_mma", rows, s->kv,
                            (2 * rows + 4 * s->queries) * p + 16 * s->queries);
        s->delta = add_kernel(s, "attend_delta", rows, 1, 0);
    }
}

/* ---- who sees whom --------------------------------------------------------------------------- */

typedef struct Layout { /* segments over rows; keys and queries are numbered apart */
    int32_t segs[96][6], ranges[96][4];
    int nsegs, nranges, rows, keys;
} Layout;

static void add_range(Layout *l, int begin, int length, int first, int count) {
    const int32_t r[4] = {begin, length, first, count};
    memcpy(l->ranges[l->nranges++], r, sizeof r);
}

static void add_segment(Layout *l, int queries, int prefix, int plen, int own) {
    const int32_t s[6] = {l->rows, queries, prefix, plen, l->keys, own};
    memcpy(l->segs[l->nsegs++], s, sizeof s);
    l->rows += queries;
    l->keys += own;
}

/* A sequence by itself; its last `queries` tokens alone (what a cache of keys gives). */
static void add_alone(Layout *l, int queries, int length) {
    add_range(l, l->keys, length, l->nsegs, 1);
    add_segment(l, queries, 0, 0, length);
}

/* A prompt and two answers that see it. */
static void add_pair(Layout *l, int prompt, int chosen, int rejected) {
    const int begin = l->keys, seg = l->nsegs;
    add_range(l, begin, prompt, seg, 3);
    add_segment(l, prompt, 0, 0, prompt);
    add_range(l, l->keys, chosen, seg + 1, 1);
    add_segment(l, chosen, begin, prompt, chosen);
    add_range(l, l->keys, rejected, seg + 2, 1);
    add_segment(l, rejected, begin, prompt, rejected);
}

enum { MIXED, LONG, MANY, LAYOUTS };

static Layout layout(int which) {
    Layout l = {.nsegs = 0};
    if (which == MIXED) {
        add_pair(&l, 65, 63, 1);
        add_alone(&l, 64, 64);
        add_alone(&l, 1, 1);
        add_pair(&l, 33, 40, 70);
        add_alone(&l, 5, 90);
        l.rows += 3, l.keys += 2; /* of no segment */
    } else if (which == LONG) {
        add_alone(&l, 700, 700);
    } else {
        for (int i = 0; i < 23; i++) /* more than are ranked */
            add_pair(&l, 1 + i % 13, 1 + i * i % 7, 1 + i * 5 % 11);
        l.rows += 140, l.keys += 70;
    }
    return l;
}

/* ---- memory ---------------------------------------------------------------------------------- */

enum { IMAGE = 12 << 20 };

static char image[IMAGE]; /* what device memory should be */
static char found[IMAGE];
static int64_t used;

typedef struct Field { /* a matrix in device memory; x, bound: [rows][cols] */
    DType type;
    int rows, cols;
    int64_t at, ld;
    double *x, *bound;
} Field;

static Field column_field(const Field *beside, int cols, int first) {
    Field f = *beside;
    f.cols = cols;
    f.at += first * dtype_bytes(f.type);
    f.x = NEW_ARRAY(arena, double, (int64_t)f.rows *cols);
    f.bound = NEW_ARRAY(arena, double, (int64_t)f.rows *cols);
    return f;
}

static Field field(DType type, int rows, int cols, int gap) {
    Field f = {.type = type, .rows = rows, .at = used, .ld = cols + gap};
    used += (rows * f.ld * dtype_bytes(type) + 255) / 256 * 256;
    assert_true(used <= IMAGE - 4096);
    return column_field(&f, cols, 0);
}

static char *element(char *in, const Field *f, int row, int column) {
    return in + f->at + (row * f->ld + column) * dtype_bytes(f->type);
}

static double get(const Field *f, int row, int column) {
    const char *p = element(found, f, row, column);
    return f->type == DT_f32 ? (double)*(const float *)p
                             : (double)bf16_to_float(*(const uint16_t *)p);
}

/* A value, rounded to the field's type. */
static void set(Field *f, int row, int column, double x) {
    char *p = element(image, f, row, column);
    if (f->type == DT_f32)
        *(float *)p = (float)x;
    else
        *(uint16_t *)p = float_to_bf16((float)x);
    f->x[row * f->cols + column] =
        f->type == DT_f32 ? (double)(float)x : (double)bf16_to_float(*(uint16_t *)p);
}

static void write_image(void) {
    Err err = {0};
    if (!dev->ops->write(dev, 0, image, used + 4096, &err)) fail_msg("%s", err.text);
}

static void launch(int kernel, void *const *p, int np, const int64_t *n, int nn) {
    Err err = {0};
    if (!dev->ops->launch(dev, kernel, p, np, n, nn, &err) || !dev->ops->sync(dev, &err) ||
        !dev->ops->read(dev, 0, found, used + 4096, &err))
        fail_msg("%s", err.text);
}

static void *address(const Field *f) {
    return dev->base + f->at;
}

/* How many elements are off by more than their bound (negative: anything goes); afterwards they are
 * as found. */
static int differences(const char *what, const Field *f) {
    int bad = 0;
    for (int r = 0; r < f->rows; r++)
        for (int c = 0; c < f->cols; c++) {
            const double x = f->x[r * f->cols + c], b = f->bound[r * f->cols + c];
            const double y = get(f, r, c);
            memcpy(element(image, f, r, c), element(found, f, r, c), (size_t)dtype_bytes(f->type));
            if (b < 0 || fabs(y - x) <= b) continue;
            if (bad++ < 3)
                printf("%s[%d][%d] is %.9g, should be %.9g, at most %.3g off\n", what, r, c, y, x,
                       b);
        }
    return bad;
}

static int untouched(const char *what) {
    if (!memcmp(image, found, (size_t)used + 4096)) return 0;
    printf("%s: something else was written\n", what);
    return 1;
}

/* ---- data ------------------------------------------------------------------------------------ */

typedef enum Kind { NO_Q, NO_K, RANDOM, BIG } Kind;

typedef struct Attention {
    const Shape *s;
    const Layout *l;
    Kind kind;
    Field q, k, v, out, lse, dout, delta, dq, dk, dv, segs, ranges;
    bool named[1024]; /* queries that stand in a segment */
} Attention;

static uint32_t state = 1;
static double uniform(void) { /* -1 .. 1 */
    state = state * 1664525u + 1013904223u;
    return (double)(int32_t)state * 0x1p-31;
}
static double sparse(void) { /* -1, 0, 1 */
    const double x = uniform();
    return x > 0.75 ? 1 : x < -0.75 ? -1 : 0;
}

static void fill(Field *f, const bool *named, double size) {
    for (int r = 0; r < f->rows; r++)
        for (int c = 0; named[r] && c < f->cols; c++)
            set(f, r, c, size < 0 ? sparse() : size * uniform());
}

static void fill_all(Attention *a) {
    bool key[1024] = {false}, *const query = a->named;
    assert_true(a->l->rows <= 1024 && a->l->keys <= 1024);
    for (int g = 0; g < a->l->nsegs; g++)
        for (int i = 0; i < a->l->segs[g][1]; i++) query[a->l->segs[g][0] + i] = true;
    for (int k = 0; k < a->l->nranges; k++)
        for (int i = 0; i < a->l->ranges[k][1]; i++) key[a->l->ranges[k][0] + i] = true;
    const bool exact = a->kind <= NO_K;
    fill(&a->q, query, a->kind == NO_Q ? 0 : exact ? -1 : a->kind == BIG ? 60 : 1);
    fill(&a->k, key, a->kind == NO_K ? 0 : exact ? -1 : 2);
    fill(&a->v, key, exact ? -1 : 1);
    fill(&a->dout, query, exact ? -1 : 1);
    memcpy(image + a->segs.at, a->l->segs, sizeof *a->l->segs * (size_t)a->l->nsegs);
    memcpy(image + a->ranges.at, a->l->ranges, sizeof *a->l->ranges * (size_t)a->l->nranges);
}

static Attention make(const Shape *s, const Layout *l, Kind kind) {
    Attention a = {.s = s, .l = l, .kind = kind};
    const int t = l->rows, m = l->keys, q = s->heads * s->dim, k = s->kv * s->dim;
    used = 0;
    memset(image, 0xff, sizeof image);
    a.q = field(DT_bf16, t, q, GAP), a.dout = field(DT_bf16, t, q, GAP);
    a.out = field(DT_bf16, t, q, GAP), a.dq = field(s->result, t, q, GAP);
    a.lse = field(DT_f32, t, s->heads, 0), a.delta = field(DT_f32, t, s->heads, 0);
    const Field keys = field(DT_bf16, m, 2 * k, GAP), slopes = field(s->result, m, 2 * k, GAP);
    a.k = column_field(&keys, k, 0), a.v = column_field(&keys, k, k);
    a.dk = column_field(&slopes, k, 0), a.dv = column_field(&slopes, k, k);
    a.segs = field(DT_i32, l->nsegs, 6, 0), a.ranges = field(DT_i32, l->nranges, 4, 0);
    fill_all(&a);
    return a;
}

/* ---- the truth ------------------------------------------------------------------------------- */

#define U 0x1p-23
#define R 0x1p-8

static double dot(const double *x, const double *y, int n, double *size) {
    double sum = 0;
    *size = 0;
    for (int i = 0; i < n; i++) sum += x[i] * y[i], *size += fabs(x[i] * y[i]);
    return sum;
}

/* What query i of a segment sees, as key numbers. */
static int visible(const Attention *a, const int32_t *seg, int i, int *keys) {
    const int at = seg[3] + i + seg[5] - seg[1];
    int n = 0;
    for (int pos = 0; pos <= at; pos++)
        if (!a->s->window || at - pos < a->s->window)
            keys[n++] = pos < seg[3] ? seg[2] + pos : seg[4] + pos - seg[3];
    return n;
}

/* One row and head: result, lse, its given lse and delta, and what it adds to the gradients.
 * Bounds are collected without the rounding of results. */
static void row_truth(Attention *a, int row, int h, const int *keys, int n, double *p) {
    const int dim = a->s->dim, hk = h / (a->s->heads / a->s->kv), heads = a->s->heads;
    const bool exact = a->kind <= NO_K;
    const double scale = (double)a->s->scale, *q = a->q.x + (row * heads + h) * dim;
    const double *dout = a->dout.x + (row * heads + h) * dim;
    double most = -INFINITY, sum = 0, e = 0, size;
    for (int j = 0; j < n; j++) {
        p[j] = scale * dot(q, a->k.x + (keys[j] * a->s->kv + hk) * dim, dim, &size);
        most = fmax(most, p[j]);
        e = fmax(e, scale * dim * U * size + 4 * U * fabs(p[j]));
    }
    for (int j = 0; j < n; j++) sum += exp(p[j] - most);
    const double lse = most + log(sum);
    e = exact ? 0 : e + 2 * U * fabs(lse) + 3 * U;
    a->lse.x[row * heads + h] = lse;
    a->lse.bound[row * heads + h] = e + (n + 8) * U + 4 * U * fabs(lse);
    double *out = a->out.x + (row * heads + h) * dim, *off = a->out.bound + (row * heads + h) * dim;
    for (int j = 0; j < n; j++) {
        const double pj = exp(p[j] - lse), part = exact ? 4 * U : 2 * e + R + 2 * n * U;
        for (int d = 0; d < dim; d++) {
            const double y = pj * a->v.x[(keys[j] * a->s->kv + hk) * dim + d];
            out[d] += y;
            off[d] += fabs(y) * part;
        }
    }
    double given = exact ? 0 : (double)(float)lse, delta = dot(out, dout, dim, &size);
    delta = exact ? floor(4 * uniform()) : (double)(float)delta;
    *(float *)element(image, &a->lse, row, h) = (float)given;
    *(float *)element(image, &a->delta, row, h) = (float)delta;
    if (a->s->dq < 0) return;
    for (int j = 0; j < n; j++) {
        const int64_t key = (keys[j] * a->s->kv + hk) * dim;
        const double pj = exp(p[j] - given), dp = dot(dout, a->v.x + key, dim, &size);
        const double ds = pj * (dp - delta);
        const double dds =
            exact
                ? 0
                : pj * (e * fabs(dp - delta) + dim * U * size + 2 * U * (fabs(dp) + fabs(delta))) +
                      R * fabs(ds);
        const double n_u = exact ? 0 : 1024 * U, n_p = exact ? 0 : e + R;
        for (int d = 0; d < dim; d++) {
            const int64_t at = (row * heads + h) * dim + d;
            a->dv.x[key + d] += pj * dout[d];
            a->dv.bound[key + d] += (n_p + n_u) * pj * fabs(dout[d]);
            a->dk.x[key + d] += scale * ds * q[d];
            a->dk.bound[key + d] += scale * (dds + n_u * fabs(ds)) * fabs(q[d]);
            a->dq.x[at] += scale * ds * a->k.x[key + d];
            a->dq.bound[at] += scale * (dds + n_u * fabs(ds)) * fabs(a->k.x[key + d]);
        }
    }
}

static void round_bounds(Field *f) {
    for (int64_t i = 0; i < (int64_t)f->rows * f->cols; i++)
        f->bound[i] += (f->type == DT_bf16 ? R : 0x1p-24) * (fabs(f->x[i]) + f->bound[i]);
}

static void truth(Attention *a) {
    int *keys = NEW_ARRAY(arena, int, a->l->keys + 1);
    double *p = NEW_ARRAY(arena, double, a->l->keys + 1);
    for (int g = 0; g < a->l->nsegs; g++)
        for (int i = 0; i < a->l->segs[g][1]; i++) {
            const int n = visible(a, a->l->segs[g], i, keys);
            for (int h = 0; h < a->s->heads; h++) row_truth(a, a->l->segs[g][0] + i, h, keys, n, p);
        }
    round_bounds(&a->out);
    if (a->kind <= NO_K && a->s->result == DT_f32) return; /* exact */
    round_bounds(&a->dq), round_bounds(&a->dk), round_bounds(&a->dv);
}

/* ---- runs ------------------------------------------------------------------------------------ */

static int check_forward(Attention *a) {
    void *p[] = {address(&a->q),    address(&a->k),   address(&a->v),
                 address(&a->segs), address(&a->out), address(&a->lse)};
    const int64_t n[] = {a->l->rows, a->l->keys, a->l->nsegs};
    launch(a->s->forward, p, 6, n, 3);
    return differences("out", &a->out) + differences("lse", &a->lse) + untouched("forward");
}

static int check_dq(Attention *a) {
    void *p[] = {address(&a->q),    address(&a->k),    address(&a->v),     address(&a->lse),
                 address(&a->dout), address(&a->segs), address(&a->delta), address(&a->dq)};
    const int64_t n[] = {a->l->rows, a->l->keys, a->l->nsegs};
    launch(a->s->dq, p, 8, n, 3);
    return differences("dq", &a->dq) + untouched("dq");
}

static int check_dkv(Attention *a, bool dk, bool dv) {
    void *p[] = {address(&a->q),
                 address(&a->k),
                 address(&a->v),
                 address(&a->lse),
                 address(&a->dout),
                 address(&a->segs),
                 address(&a->ranges),
                 address(&a->delta),
                 dk ? address(&a->dk) : NULL,
                 dv ? address(&a->dv) : NULL};
    const int64_t n[] = {a->l->keys, a->l->rows, a->l->nsegs, a->l->nranges};
    launch(a->s->dkv, p, 10, n, 4);
    return (dk ? differences("dk", &a->dk) : 0) + (dv ? differences("dv", &a->dv) : 0) +
           untouched("dkv");
}

/* Of what the forward gave: found. */
static int check_delta(Attention *a) {
    void *p[] = {address(&a->out), address(&a->dout), address(&a->delta)};
    const int64_t n = a->l->rows;
    const int dim = a->s->dim, heads = a->s->heads;
    for (int i = 0; i < a->l->rows * heads; i++) {
        double x[256], size;
        for (int d = 0; d < dim; d++) x[d] = get(&a->out, i / heads, i % heads * dim + d);
        a->delta.x[i] = dot(x, a->dout.x + (int64_t)i * dim, dim, &size);
        a->delta.bound[i] = a->named[i / heads] ? dim * U * size : -1;
    }
    launch(a->s->delta, p, 3, &n, 1);
    return differences("delta", &a->delta) + untouched("delta");
}

/* All kernels of a shape; the backward reads exact lse and delta, so that errors are its own. */
static int check(const Shape *s, const Layout *l, Kind kind) {
    Arena *outer = arena;
    arena = arena_new();
    Attention a = make(s, l, kind);
    truth(&a);
    write_image();
    char *given = memcpy(arena_alloc(arena, (size_t)used), image, (size_t)used);
    int bad = 0;
    if (s->dq >= 0) bad += check_dq(&a) + check_dkv(&a, true, true);
    memcpy(image, given, (size_t)used);
    write_image();
    if (s->dq >= 0 && kind == NO_Q) bad += check_dkv(&a, false, true);
    bad += check_forward(&a);
    if (s->delta >= 0) bad += check_delta(&a);
    if (bad)
        printf("heads %d/%d of %d, window %d, %d rows, data %d\n", s->heads, s->kv, s->dim,
               s->window, l->rows, kind);
    arena_free(arena);
    arena = outer;
    return bad;
}

static void test_exact(void **unused) {
    (void)unused;
    int bad = 0;
    for (int which = 0; which < LAYOUTS; which++)
        for (size_t i = 0; i < COUNT(shapes); i++) {
            const Layout l = layout(which);
            if (which == LONG && i != 0) continue;
            static const char *const orders[] = {"forward", "reverse", "random:7"};
            setenv("CUDASIM_ORDER", orders[(i + (size_t)which) % 3], 1);
            bad += check(&shapes[i], &l, NO_Q) + check(&shapes[i], &l, NO_K);
        }
    assert_int_equal(bad, 0);
}

static void test_random(void **unused) {
    (void)unused;
    int bad = 0;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        const Layout l = layout(i == 1 ? LONG : MIXED);
        bad += check(&shapes[i], &l, i == 2 ? BIG : RANDOM);
    }
    assert_int_equal(bad, 0);
}

static int open_device(void **unused) {
    (void)unused;
    make_plan();
    load_on_device(&plan, IMAGE);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "--real")) simulate(argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exact), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, open_device, close_device);
}
