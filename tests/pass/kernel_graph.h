/* kernel_graph.h: random typed graphs of what kernels must get right, and their leaves' values.
 *
 * Values [T,D], [T,H,S] (D = H*S), [T], [R,..], [D], scalars; maps, broadcasts of every kind,
 * reductions both ways, reshapes, views, casts, products, gathers, scatters, effects into slots of
 * one flat state. Everything depends on the seed alone.  Relies on cmocka.h, included before.
 */
#ifndef KERNEL_GRAPH_H
#define KERNEL_GRAPH_H

#include "compiler/dpoc.h"

#include <math.h>
#include <stdlib.h>

enum { RG_H = 2, RG_S = 4, RG_D = 8, RG_F = 6, RG_STATE = 4096, RG_MAX = 400 };

typedef struct RandomGraph {
    Arena *arena;
    Diags *diags;
    Graph *g;
    int64_t extent[NEXTENT];
    uint64_t state;
    NodeId pool[RG_MAX];
    int n;
    NodeId row, flat;
    int64_t used; /* elements of the flat state given out */
} RandomGraph;

static inline uint32_t rg_next(RandomGraph *r) { /* splitmix64 */
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) >> 32);
}
static inline int rg_below(RandomGraph *r, int n) {
    return (int)(rg_next(r) % (uint32_t)n);
}
static inline double rg_real(RandomGraph *r) { /* a float in -1 .. 1 */
    return (double)(float)((double)rg_next(r) / 2147483648.0 - 1);
}
static inline void rg_push(RandomGraph *r, NodeId id) {
    assert_true(id != 0);
    if (r->n < RG_MAX) r->pool[r->n++] = id;
}

static inline const Type *rg_type(int rank, Extent e, int64_t a, int64_t b) {
    return type_of(DT_f32, rank, (Dim[]){dim_extent(e), dim_const(a), dim_const(b)});
}

/* A random f32 member of the pool whose type passes `wanted` (NULL: any); 0 after many misses. */
static inline NodeId rg_pick(RandomGraph *r, bool (*wanted)(const Type *)) {
    for (int tries = 0; tries < 60; tries++) {
        NodeId id = r->pool[rg_below(r, r->n)];
        const Type *t = node(r->g, id)->type;
        if (t->dtype == DT_f32 && (!wanted || wanted(t))) return id;
    }
    return 0;
}
static inline bool rg_matrix(const Type *t) {
    return t->rank == 2 && !dim_is_const(t->dim[0]);
}
static inline bool rg_ranked(const Type *t) {
    return t->rank >= 1;
}
static inline bool rg_cols(const Type *t) {
    return t->rank >= 2;
}
static inline bool rg_even(const Type *t) {
    return t->rank >= 2 && type_cols(t) % 2 == 0;
}
static inline bool rg_tokens(const Type *t) {
    return t->rank >= 1 && dim_equal(t->dim[0], dim_extent(X_T));
}
static inline bool rg_scored(const Type *t) {
    return t->rank >= 1 && dim_equal(t->dim[0], dim_extent(X_R));
}
static inline bool rg_fixed(const Type *t) {
    return dim_is_const(type_count(t)) && type_count(t).c > 0 && type_count(t).c < 100;
}

static inline NodeId rg_unary(RandomGraph *r) {
    static const Op ops[] = {OP_neg, OP_abs, OP_tanh,        OP_sigmoid, OP_sin,
                             OP_cos, OP_erf, OP_log_sigmoid, OP_stop};
    NodeId x = rg_pick(r, NULL);
    return x ? g_op(r->g, ops[rg_below(r, COUNT(ops))], x, 0, 0) : 0;
}

static inline NodeId rg_binary(RandomGraph *r) {
    static const Op ops[] = {OP_add, OP_sub, OP_mul, OP_max, OP_min, OP_lt, OP_mul, OP_add};
    NodeId a = rg_pick(r, NULL), b = 0;
    for (int tries = 0; a && tries < 40 && !b; tries++) {
        b = rg_pick(r, NULL);
        if (b && node(r->g, b)->type != node(r->g, a)->type) b = 0;
    }
    if (!a || !b) return 0;
    Op op = ops[rg_below(r, COUNT(ops))];
    if (op == OP_mul) b = g_op(r->g, OP_tanh, b, 0, 0); /* keep magnitudes down */
    return g_op(r->g, op, a, b, 0);
}

static inline NodeId rg_bcast(RandomGraph *r) {
    NodeId x = rg_pick(r, NULL);
    if (!x) return 0;
    const Type *t = node(r->g, x)->type, *to = NULL;
    Extent e = t->rank && dim_equal(t->dim[0], dim_extent(X_R)) ? X_R : X_T;
    int64_t lead = 0;
    bool rows = t->rank && !dim_is_const(t->dim[0]);
    if (!rows) {
        int64_t cols = t->rank ? type_cols(t) : 0;
        if (t->rank == 1 && cols == RG_S) to = rg_type(3, e, RG_H, RG_S);
        if (t->rank == 1 && cols != RG_S) to = rg_type(2, e, cols, 0);
        if (t->rank == 2) to = rg_type(3, e, t->dim[0].c, t->dim[1].c);
        if (t->rank == 0) to = rg_below(r, 2) ? rg_type(2, e, RG_D, 0) : rg_type(1, e, 0, 0);
    } else if (t->rank == 1) {
        lead = 1;
        to = rg_below(r, 2) ? rg_type(3, e, RG_H, RG_S) : rg_type(2, e, RG_D, 0);
    } else if (t->rank == 2) {
        lead = type_cols(t) == RG_H ? 1 : 2;
        to = rg_type(3, e, RG_H, lead == 1 ? RG_S : type_cols(t));
    }
    if (!to) return 0;
    return graph_add(r->g, OP_bcast, &x, 1, &(Attr){.i0 = lead}, to, 0, NULL);
}

static inline NodeId rg_reduce(RandomGraph *r) {
    int kind = rg_below(r, 4);
    NodeId x = rg_pick(r, kind < 2 ? rg_cols : rg_ranked);
    if (!x) return 0;
    NodeId y = g_op(r->g, kind == 0 ? OP_max_cols : kind == 1 ? OP_sum_cols : OP_sum_rows, x, 0, 0);
    return g_op(r->g, OP_tanh, y, 0, 0);
}

static inline NodeId rg_view(RandomGraph *r) {
    NodeId x = rg_pick(r, rg_cols);
    if (!x) return 0;
    const Type *t = node(r->g, x)->type;
    Extent e = rg_scored(t) ? X_R : X_T;
    if (rg_below(r, 3) == 0 && type_cols(t) >= 4) {
        Attr attr = {.i0 = rg_below(r, 2) * 2, .i1 = type_cols(t) / 2};
        return graph_add(r->g, OP_cols, &x, 1, &attr, NULL, 0, NULL);
    }
    if (dim_is_const(t->dim[0])) return 0;
    if (t->rank == 3) return g_reshape(r->g, x, rg_type(2, e, t->dim[1].c * t->dim[2].c, 0));
    if (type_cols(t) % RG_H) return 0;
    return g_reshape(r->g, x, rg_type(3, e, RG_H, type_cols(t) / RG_H));
}

static inline NodeId rg_matmul(RandomGraph *r) {
    NodeId a = rg_pick(r, rg_matrix);
    if (!a) return 0;
    const Type *t = node(r->g, a)->type;
    if (rg_below(r, 3) == 0) { /* dW = a^T b */
        NodeId b = rg_pick(r, rg_scored(t) ? rg_scored : rg_tokens);
        if (!b || node(r->g, b)->type->rank != 2) return 0;
        return g_op(r->g, OP_tanh, g_matmul(r->g, a, b, true, false), 0, 0);
    }
    int64_t n = rg_below(r, 2) ? RG_D : RG_F, k = type_cols(t);
    char name[32];
    snprintf(name, sizeof name, "w%d", rg_below(r, 4));
    Attr attr = {.name = intern(name), .name2 = intern(n == RG_D ? "d" : "f"), .i0 = 0};
    if (k != RG_D) attr.name2 = intern_printf("%s%d", attr.name2, (int)k);
    const Type *wt = type_mat(DT_f32, dim_const(n), dim_const(k));
    NodeId w = graph_add(r->g, OP_weight, NULL, 0, &attr, wt, 0, NULL);
    NodeId y = g_matmul(r->g, a, w, false, true);
    if (rg_below(r, 2)) {
        NodeId s = g_const(r->g, 0.25 * (1 + rg_below(r, 4)), node(r->g, y)->type);
        y = g_op(r->g, OP_mul, y, s, 0);
    }
    return y;
}

static inline NodeId rg_gather(RandomGraph *r) {
    bool back = rg_below(r, 3) == 0;
    NodeId x = rg_pick(r, back ? rg_scored : rg_tokens);
    if (!x) return 0;
    Attr attr = {.dim = back ? dim_extent(X_T) : (Dim){0}};
    return graph_add(r->g, back ? OP_put : OP_take, (NodeId[]){x, r->row}, 2, &attr, NULL, 0, NULL);
}

static inline NodeId rg_rounded(RandomGraph *r) {
    NodeId x = rg_pick(r, NULL);
    return x ? g_cast(r->g, g_cast(r->g, x, DT_bf16), DT_f32) : 0;
}

static inline NodeId rg_half(RandomGraph *r) {
    NodeId x = rg_pick(r, rg_even);
    return x ? g_op(r->g, OP_rotate_half, x, 0, 0) : 0;
}

/* state slot op= x, or state slot = f(state slot): an optimizer in small. */
static inline void rg_effect(RandomGraph *r, NodeId x) {
    const Type *t = node(r->g, x)->type;
    int64_t count = type_count(t).c;
    if (r->used + count > RG_STATE) return;
    NodeId slot = g_slot(r->g, r->flat, r->used, t);
    r->used += count;
    int kind = rg_below(r, 3);
    if (kind == 2) x = g_op(r->g, OP_add, g_op(r->g, OP_tanh, slot, 0, 0), x, 0);
    g_effect(r->g, kind == 0 ? OP_accumulate : OP_assign, slot, x);
}

static inline NodeId rg_step(RandomGraph *r) {
    switch (rg_below(r, 14)) {
    case 0:
    case 1:
    case 2:
        return rg_unary(r);
    case 3:
    case 4:
    case 5:
    case 6:
        return rg_binary(r);
    case 7:
        return rg_bcast(r);
    case 8:
        return rg_reduce(r);
    case 9:
        return rg_view(r);
    case 10:
        return rg_matmul(r);
    case 11:
        return rg_gather(r);
    case 12:
        return rg_rounded(r);
    default:
        return rg_half(r);
    }
}

static inline RandomGraph rg_new(uint64_t seed, int steps) {
    RandomGraph r = {.arena = arena_new(), .state = seed};
    r.diags = diags_new(r.arena);
    r.g = graph_new(r.arena, r.diags);
    r.g->intern = true;
    r.extent[X_T] = 7;
    r.extent[X_R] = 5;
    r.row = g_input(r.g, "row", PHASE_MICRO, type_vec(DT_i32, dim_extent(X_R)));
    r.flat = g_state(r.g, "flat", PHASE_MICRO, ROLE_GRAD, type_vec(DT_f32, dim_const(RG_STATE)));
    rg_push(&r, g_input(r.g, "x", PHASE_MICRO, rg_type(2, X_T, RG_D, 0)));
    rg_push(&r, g_input(r.g, "h", PHASE_MICRO, rg_type(3, X_T, RG_H, RG_S)));
    rg_push(&r, g_input(r.g, "t", PHASE_MICRO, rg_type(1, X_T, 0, 0)));
    rg_push(&r, g_input(r.g, "r", PHASE_MICRO, rg_type(2, X_R, RG_D, 0)));
    rg_push(&r, g_input(r.g, "a", PHASE_MICRO, type_scalar(DT_f32)));
    rg_push(&r, g_input(r.g, "d", PHASE_MICRO, type_vec(DT_f32, dim_const(RG_D))));
    rg_push(&r, g_input(r.g, "s", PHASE_MICRO, type_vec(DT_f32, dim_const(RG_S))));
    rg_push(&r,
            g_input(r.g, "hs", PHASE_MICRO, type_mat(DT_f32, dim_const(RG_H), dim_const(RG_S))));
    rg_push(&r, g_input(r.g, "ts", PHASE_MICRO, rg_type(2, X_T, RG_S, 0)));
    for (int i = 0; i < steps; i++) {
        NodeId id = rg_step(&r);
        if (id) rg_push(&r, id);
    }
    for (int i = 9; i < r.n; i++) { /* what has no reader yet goes into the state */
        NodeId id = r.pool[i];
        const Type *t = node(r.g, id)->type;
        if (rg_below(&r, 3) && i + 8 < r.n) continue;
        if (t->dtype != DT_f32) continue;
        if (!rg_fixed(t)) id = g_op(r.g, OP_sum_rows, id, 0, 0);
        if (rg_fixed(node(r.g, id)->type)) rg_effect(&r, id);
    }
    return r;
}

/* The same values for every graph made of `r`'s leaves. */
static inline void rg_fill(const RandomGraph *r, Eval *e, const Graph *g) {
    for (NodeId id = 1; id < g->n; id++) {
        const Node *n = node(g, id);
        if (n->op != OP_input && n->op != OP_weight && n->op != OP_state) continue;
        int64_t count = dim_eval(type_count(n->type), r->extent);
        double *v = malloc(sizeof *v * (size_t)count);
        const char *key = n->attr.name;
        if (n->op == OP_weight) key = intern_printf("%s/%s", n->attr.name2, n->attr.name);
        RandomGraph draw = {0};
        for (const char *c = key; *c; c++) draw.state = draw.state * 131 + (uint64_t)*c;
        for (int64_t i = 0; i < count; i++)
            v[i] = n->type->dtype == DT_i32 ? rg_below(&draw, (int)r->extent[X_T]) : rg_real(&draw);
        eval_set(e, key, v, count);
        free(v);
    }
}

static inline void rg_free(RandomGraph *r) {
    arena_free(r->arena);
}

/* Without random steps: the leaves alone, for graphs made by hand. */
static inline RandomGraph rg_leaves(void) {
    RandomGraph r = rg_new(1, 0);
    r.g->nroot = 0;
    return r;
}

static inline Unit rg_unit(const RandomGraph *r) {
    Unit u = {.kind = UNIT_EVAL, .arena = r->arena, .diags = r->diags, .g = r->g};
    for (int i = 0; i < NEXTENT; i++) u.bound[i] = r->extent[i];
    u.target = target_by_name("cpu");
    return u;
}

static inline int rg_count(const Graph *g, Op op) { /* live nodes */
    bool *live = calloc((size_t)g->n, sizeof *live);
    int n = 0;
    graph_live(g, live);
    for (NodeId id = 1; id < g->n; id++) n += live[id] && node(g, id)->op == op;
    free(live);
    return n;
}

/* The largest difference of the flat state after both graphs ran; infinite for NaN against a
 * number. */
static inline double rg_compare(const RandomGraph *r, const Graph *a, const Graph *b,
                                EvalMode mode) {
    Eval *x = eval_new(a, mode, r->extent), *y = eval_new(b, mode, r->extent);
    rg_fill(r, x, a);
    rg_fill(r, y, b);
    eval_run(x, PHASE_UPDATE, false);
    eval_run(y, PHASE_UPDATE, false);
    int64_t n = 0, m = 0;
    const double *u = eval_state(x, "flat", &n), *v = eval_state(y, "flat", &m);
    double most = n == m ? 0 : INFINITY;
    for (int64_t i = 0; n == m && i < n; i++) {
        if (isnan(u[i]) != isnan(v[i])) most = INFINITY;
        if (fabs(u[i] - v[i]) / (1 + fabs(u[i])) > most)
            most = fabs(u[i] - v[i]) / (1 + fabs(u[i]));
    }
    eval_free(x);
    eval_free(y);
    return most;
}

#endif
