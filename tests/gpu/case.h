/* case.h: one graph of ops under test, run by a device and by the evaluator at several extents.
 *
 * A case declares inputs by the way they are filled, outputs by the value they copy, and checks:
 * functions that bound, element by element, how far a device may be from the evaluator.  An output
 * without a bound must agree exactly.  Numbers are drawn as k/8, -8 <= k <= 8: products of two are
 * multiples of 1/64, so sums of up to 2^17 of them are exact in f32 in any order, in a GEMM and in
 * a dot product alike, and only what follows them rounds.  Relies on tests/plan/run.h.
 */
#ifndef TESTS_GPU_CASE_H
#define TESTS_GPU_CASE_H

#include "tests/gpu/executed.h"
#include "tests/plan/run.h"

#include <math.h>

#define EPS  0x1p-24 /* half a unit in the last place of 1, f32 */
#define HALF 0x1p-8  /* the same, bf16 */

typedef struct Case Case;

typedef enum Fill { FILL_GRID, FILL_INDEX, FILL_SEGS, FILL_RANGES, FILL_BYTES, FILL_REAL } Fill;

typedef struct Leaf {
    const char *name;
    const Type *type;
    Fill fill;
    Extent of;     /* FILL_INDEX: rows are those of this extent; */
    int64_t below; /*             > 0: below this number instead; a few are -1 */
    double *value;
    int64_t count;
} Leaf;

typedef struct Output {
    const char *name;
    double *bound; /* NULL: exact */
    int64_t count;
    const double *want;
} Output;

typedef struct Check { /* one op, what it reads and writes, and how far it may be off */
    void (*bounds)(Case *c, const struct Check *k);
    int leaf[6], out[8];
    int64_t heads, kv, size, window, rows, cols;
    double scale;
    DType t;
} Check;

enum { CASE_LEAVES = 96, CASE_OUTPUTS = 160, CASE_CHECKS = 48 };

struct Case {
    Unit u;
    Target target;
    int64_t extent[NEXTENT];
    uint64_t state; /* of the numbers */
    Leaf leaf[CASE_LEAVES];
    Output out[CASE_OUTPUTS];
    Check check[CASE_CHECKS];
    int nleaf, nout, ncheck;
};

/* ---- numbers --------------------------------------------------------------------------------- */

static inline uint32_t case_next(Case *c) { /* splitmix64 */
    uint64_t z = c->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) >> 32);
}
static inline int64_t case_below(Case *c, int64_t n) {
    return (int64_t)(case_next(c) % (uint32_t)n);
}
static inline double case_grid(Case *c) {
    return (double)(case_below(c, 17) - 8) / 8;
}

/* ---- building -------------------------------------------------------------------------------- */

static inline Case *case_new(Arena *arena, const Target *target, uint64_t seed) {
    Case *c = NEW(arena, Case);
    c->state = seed;
    c->target = *target;
    c->target.chunk_rows = 48; /* the head's loop turns more than once */
    c->u = (Unit){.kind = UNIT_EVAL, .target = &c->target, .arena = arena};
    c->u.diags = diags_new(arena);
    c->u.g = graph_new(arena, c->u.diags);
    c->u.g->intern = true;
    for (int e = 0; e < NEXTENT; e++) c->u.bound[e] = 1;
    return c;
}

static inline NodeId case_input(Case *c, const Type *type, Fill fill, int *at) {
    assert_true(c->nleaf < CASE_LEAVES);
    Leaf *l = &c->leaf[c->nleaf];
    *l = (Leaf){.name = intern_printf("in%d", c->nleaf), .type = type, .fill = fill};
    if (at) *at = c->nleaf;
    c->nleaf++;
    return g_input(c->u.g, l->name, PHASE_MICRO, type);
}
/* Row numbers [e] below an extent, or below a number. */
static inline NodeId case_index(Case *c, Extent e, Extent of, int64_t below, int *at) {
    int leaf;
    NodeId id = case_input(c, type_vec(DT_i32, dim_extent(e)), FILL_INDEX, &leaf);
    c->leaf[leaf].of = of;
    c->leaf[leaf].below = below;
    if (at) *at = leaf;
    return id;
}

static inline int case_output(Case *c, NodeId value) {
    assert_true(value != 0 && c->nout < CASE_OUTPUTS);
    c->out[c->nout].name = intern_printf("out%d", c->nout);
    NodeId out =
        g_state(c->u.g, c->out[c->nout].name, PHASE_MICRO, ROLE_OUTPUT, node(c->u.g, value)->type);
    g_effect(c->u.g, OP_assign, out, value);
    return c->nout++;
}

static inline Check *case_check(Case *c, void (*bounds)(Case *, const Check *)) {
    assert_true(c->ncheck < CASE_CHECKS);
    c->check[c->ncheck].bounds = bounds;
    return &c->check[c->ncheck++];
}

/* The bounds of an output, to be filled by its check. */
static inline double *case_bound(Case *c, int out) {
    Output *o = &c->out[out];
    if (!o->bound) o->bound = calloc((size_t)o->count + 1, sizeof *o->bound);
    return o->bound;
}

static inline const Type *case_rows(DType t, Extent e, int64_t cols) {
    return type_mat(t, dim_extent(e), dim_const(cols));
}
static inline const Type *case_vec(DType t, Extent e) {
    return type_vec(t, dim_extent(e));
}
static inline const Type *case_heads(DType t, int64_t h, int64_t s) {
    return type_of(t, 3, (Dim[]){dim_extent(X_T), dim_const(h), dim_const(s)});
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Segments that fill T rows: alone, or a prompt and two answers that see it. */
static inline void fill_segs(Case *c, double *segs, double *ranges) {
    int64_t left = c->extent[X_T], at = 0, g = 0, want = c->extent[X_G];
    while (g < want) {
        bool family = want - g >= 3 && left >= 3 && case_below(c, 3) > 0;
        int n = family ? 3 : 1;
        int64_t share = g + n == want ? left : 1 + case_below(c, left / (want - g) * n + 1);
        if (share > left - (want - g - n)) share = left - (want - g - n);
        if (share < n) share = n;
        int64_t head = n == 1 ? share : 1 + case_below(c, share - 2);
        int64_t first = n == 1 ? 0 : 1 + case_below(c, share - head - 1);
        int64_t len[3] = {head, first, share - head - first}, begin = at;
        for (int i = 0; i < n; i++, g++) {
            const int64_t seg[6] = {at, len[i], i ? begin : at, i ? head : 0, at, len[i]};
            const int64_t range[4] = {at, len[i], g, i == 0 ? n : 1};
            for (int k = 0; k < 6; k++) segs[6 * g + k] = (double)seg[k];
            for (int k = 0; k < 4; k++) ranges[4 * g + k] = (double)range[k];
            at += len[i];
        }
        left -= share;
    }
}

static inline void fill_leaf(Case *c, Leaf *l) {
    l->count = dim_eval(type_count(l->type), c->extent);
    free(l->value);
    l->value = calloc((size_t)l->count + 1, sizeof *l->value);
    int64_t below = l->below ? l->below : c->extent[l->of];
    for (int64_t i = 0; i < l->count; i++) {
        if (l->fill == FILL_GRID) l->value[i] = case_grid(c);
        if (l->fill == FILL_REAL) l->value[i] = (double)((float)case_next(c) * 0x1p-31f - 1);
        if (l->fill == FILL_BYTES) l->value[i] = (double)case_below(c, 256);
        if (l->fill == FILL_INDEX)
            l->value[i] = case_below(c, 7) ? (double)case_below(c, below) : -1;
    }
}

static inline void fill_all(Case *c) {
    Leaf *segs = NULL, *ranges = NULL;
    for (int i = 0; i < c->nleaf; i++) {
        fill_leaf(c, &c->leaf[i]);
        if (c->leaf[i].fill == FILL_SEGS) segs = &c->leaf[i];
        if (c->leaf[i].fill == FILL_RANGES) ranges = &c->leaf[i];
    }
    if (segs && ranges) fill_segs(c, segs->value, ranges->value);
}

/* ---- on the device --------------------------------------------------------------------------- */

static inline void case_write(const Running *r, const Leaf *l) {
    Err err = {0};
    int buf = plan_buf(r->plan, l->name);
    if (buf < 0) return; /* nothing reads it */
    DType t = r->plan->bufs[buf].dtype;
    size_t size = (size_t)dtype_bytes(t);
    char *raw = malloc(size * (size_t)l->count + 1);
    for (int64_t i = 0; i < l->count; i++) {
        float f = (float)l->value[i];
        int32_t n = t == DT_i32 ? (int32_t)l->value[i] : 0;
        uint16_t h = float_to_bf16(f);
        uint8_t b = t == DT_u8 ? (uint8_t)l->value[i] : 0;
        const void *from = t == DT_f32   ? (void *)&f
                           : t == DT_i32 ? (void *)&n
                           : t == DT_u8  ? (void *)&b
                                         : &h;
        memcpy(raw + (size_t)i * size, from, size);
    }
    must(exec_write(r->exec, l->name, raw, size * (size_t)l->count, &err), &err);
    free(raw);
}

static inline double *case_read(const Running *r, const char *name, int64_t count) {
    Err err = {0};
    DType t = r->plan->bufs[plan_buf(r->plan, name)].dtype;
    size_t size = (size_t)dtype_bytes(t);
    char *raw = malloc(size * (size_t)count + 1);
    double *x = malloc(sizeof *x * (size_t)(count + 1));
    must(exec_read(r->exec, name, raw, size * (size_t)count, &err), &err);
    for (int64_t i = 0; i < count; i++)
        x[i] = t == DT_f32   ? (double)((float *)(void *)raw)[i]
               : t == DT_i32 ? ((int32_t *)(void *)raw)[i]
                             : (double)bf16_to_float(((uint16_t *)(void *)raw)[i]);
    free(raw);
    return x;
}

/* How many elements of an output are too far off; says where the first is. */
static inline int case_differs(const Running *r, const Output *o) {
    double *got = case_read(r, o->name, o->count);
    int bad = 0;
    for (int64_t i = 0; i < o->count; i++) {
        double most = o->bound ? o->bound[i] : 0;
        if (fabs(got[i] - o->want[i]) <= most || (isnan(got[i]) && isnan(o->want[i]))) continue;
        if (!bad++)
            printf("  %s[%lld]: %.9g, should be %.9g, bound %.3g\n", o->name, (long long)i, got[i],
                   o->want[i], most);
    }
    if (bad) printf("  %s: %d of %lld differ\n", o->name, bad, (long long)o->count);
    free(got);
    return bad;
}

/* `apart`: every op by itself, as with graph.fuse=off. */
static inline Plan *case_plan(Case *c, bool apart) {
    Pass gemm = {0}, fuse = {.off = apart};
    assert_int_equal(diags_errors(c->u.diags), 0);
    assert_true(pass_gemm(&gemm, &c->u) >= 0 && pass_fuse(&fuse, &c->u) >= 0);
    return plan_groups(&c->u, false);
}

/* One run at c->extent: the number of outputs that are wrong. */
static inline int case_run(Case *c, const Running *r) {
    Eval *e = eval_new(c->u.g, EVAL_ROUNDING, c->extent);
    fill_all(c);
    for (int i = 0; i < c->nleaf; i++) {
        eval_set(e, c->leaf[i].name, c->leaf[i].value, c->leaf[i].count);
        case_write(r, &c->leaf[i]);
    }
    eval_run(e, PHASE_MICRO, false);
    for (int i = 0; i < c->nout; i++)
        c->out[i].want = eval_state(e, c->out[i].name, &c->out[i].count);
    for (int i = 0; i < c->ncheck; i++) c->check[i].bounds(c, &c->check[i]);
    for (int twice = 0; twice < 2; twice++) run_program(r, "eval", c->extent);
    note_executed(r->plan);
    int bad = 0;
    for (int i = 0; i < c->nout; i++) {
        bad += case_differs(r, &c->out[i]) > 0;
        free(c->out[i].bound);
        c->out[i].bound = NULL;
    }
    eval_free(e);
    return bad;
}

static inline void case_free(Case *c) {
    for (int i = 0; i < c->nleaf; i++) free(c->leaf[i].value);
}

#endif
