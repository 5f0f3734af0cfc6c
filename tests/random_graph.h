/* random_graph.h: random well-formed graphs with random inputs, for fuzzing passes.
 *
 * A graph is grown op by op over values of a few shapes; a few of its values are assigned to states
 * "out0".. so that they are roots.  The same seed gives the same graph.  Values stay within about
 * 1, so that comparisons after many ops are meaningful.  Relies on the compiler's graph.c and
 * eval.c.
 */
#ifndef RANDOM_GRAPH_H
#define RANDOM_GRAPH_H

#include "compiler/dpoc.h"

#include <math.h>
#include <stdlib.h>

enum { RG_LEAVES = 12, RG_MAX = 400, RG_OUTS = 4 };

typedef struct RandomGraph {
    Arena *arena;
    Diags *diags;
    Graph *g;
    uint64_t random;
    int64_t extent[NEXTENT];
    NodeId value[RG_MAX]; /* f32 values made so far */
    int nvalue;
    NodeId index[2]; /* i32 [R] rows of T, i32 [T] rows of R; -1 among them */
    const char *leaf[RG_LEAVES];
    double *data[RG_LEAVES];
    int64_t count[RG_LEAVES];
    int nleaf;
} RandomGraph;

static uint64_t rg_next(RandomGraph *r) {
    r->random = r->random * 6364136223846793005u + 1442695040888963407u;
    return r->random >> 33;
}

static int rg_below(RandomGraph *r, int n) {
    return (int)(rg_next(r) % (uint64_t)n);
}

static double rg_real(RandomGraph *r) {
    return (double)(float)((double)rg_next(r) * 0x1p-30 - 1);
}

static NodeId rg_input(RandomGraph *r, const Type *type, int64_t rows) {
    int k = r->nleaf++;
    r->leaf[k] = intern_printf("in%d", k);
    r->count[k] = dim_eval(type_count(type), r->extent);
    r->data[k] = NEW_ARRAY(r->arena, double, r->count[k] + 1);
    for (int64_t i = 0; i < r->count[k]; i++)
        r->data[k][i] = rows ? (double)(rg_below(r, (int)rows + 1) - 1) : rg_real(r);
    return g_input(r->g, r->leaf[k], rg_below(r, 3) ? PHASE_MICRO : PHASE_STEP, type);
}

/* A value of this shape made so far; 0 if there is none. */
static NodeId rg_of(RandomGraph *r, const Type *type) {
    int first = rg_below(r, r->nvalue);
    for (int i = 0; i < r->nvalue; i++) {
        NodeId id = r->value[(first + i) % r->nvalue];
        if (r->g->node[id].type == type) return id;
    }
    return 0;
}

static NodeId rg_map(RandomGraph *r, NodeId x) {
    static const Op one[] = {OP_neg, OP_abs,     OP_sin,  OP_cos, OP_tanh,
                             OP_erf, OP_sigmoid, OP_stop, OP_neg};
    static const Op two[] = {OP_add, OP_sub, OP_mul, OP_max, OP_min, OP_lt, OP_le, OP_eq, OP_add};
    Graph *g = r->g;
    const Type *type = g->node[x].type;
    NodeId y = rg_of(r, type), half = g_const(g, 0.5, type);
    switch (rg_below(r, 6)) {
    case 0:
    case 1:
        return g_op(g, one[rg_below(r, COUNT(one))], x, 0, 0);
    case 2: /* keeps sums small */
        return g_op(g, OP_mul, half, g_op(g, two[rg_below(r, COUNT(two))], x, y, 0), 0);
    case 3: /* the constants that fold looks for */
        return g_op(g, two[rg_below(r, 3)], x, g_const(g, rg_below(r, 4) - 1.0, type), 0);
    case 4:
        return g_op(g, OP_select, g_op(g, OP_lt, x, y, 0), y, half);
    default:
        return g_op(g, OP_div, x, g_op(g, OP_add, g_op(g, OP_abs, y, 0, 0), g_const(g, 1, type), 0),
                    0);
    }
}

static NodeId rg_shape(RandomGraph *r, NodeId x) {
    Graph *g = r->g;
    const Type *t = g->node[x].type;
    const Dim T = dim_extent(X_T);
    switch (rg_below(r, 6)) {
    case 0:
        if (t->rank < 2) return 0;
        return g_op(g, OP_mul, g_op(g, OP_sum_cols, x, 0, 0),
                    g_const(g, 0.125, type_of(DT_f32, t->rank - 1, t->dim)), 0);
    case 1:
        return t->rank < 2 ? 0 : g_op(g, OP_max_cols, x, 0, 0);
    case 2:
        return t->rank == 1
                   ? g_bcast(g, x, type_mat(DT_f32, T, dim_const(8)), !dim_is_const(t->dim[0]))
                   : 0;
    case 3:
        if (t->rank != 2 || type_cols(t) != 8) return 0;
        return g_op(g, OP_rotate_half, x, 0, 0);
    case 4:
        if (t->rank != 2 || dim_is_const(t->dim[0])) return 0;
        return g_reshape(
            g, g_reshape(g, x, type_of(DT_f32, 3, (Dim[]){t->dim[0], dim_const(2), dim_const(4)})),
            t);
    default:
        return g_cast(g, g_cast(g, x, DT_bf16), DT_f32);
    }
}

static NodeId rg_product(RandomGraph *r, NodeId x) {
    Graph *g = r->g;
    const Type *t = g->node[x].type;
    const Type *square = type_mat(DT_f32, dim_const(8), dim_const(8));
    if (t->rank != 2) return 0;
    NodeId w = rg_of(r, square), small = g_const(g, 0.125, t);
    if (rg_below(r, 2)) return g_op(g, OP_mul, g_matmul(g, x, w, false, rg_below(r, 2)), small, 0);
    if (!dim_equal(t->dim[0], dim_extent(X_T))) return 0;
    NodeId rows = g_op(g, OP_take, x, r->index[0], 0);
    NodeId in[2] = {rows, r->index[0]};
    return graph_add(g, OP_put, in, 2, &(Attr){.dim = dim_extent(X_T)}, NULL, 0, NULL);
}

static void rg_outputs(RandomGraph *r) {
    for (int i = 0; i < RG_OUTS; i++) {
        NodeId x = r->value[r->nvalue - 1 - i];
        Attr attr = {.name = intern_printf("out%d", i), .i0 = PHASE_MICRO, .i1 = ROLE_OUTPUT};
        NodeId out = graph_add(r->g, OP_state, NULL, 0, &attr, r->g->node[x].type, 0, NULL);
        g_effect(r->g, OP_assign, out, x);
    }
}

static inline RandomGraph *random_graph(uint64_t seed, int nodes) {
    Arena *arena = arena_new();
    RandomGraph *r = NEW(arena, RandomGraph);
    r->arena = arena;
    r->diags = diags_new(arena);
    r->g = graph_new(arena, r->diags);
    r->random = seed * 0x9e3779b97f4a7c15u + 1;
    for (int x = 0; x < NEXTENT; x++) r->extent[x] = 2 + rg_below(r, 7);
    const Dim T = dim_extent(X_T), R = dim_extent(X_R), D = dim_const(8);
    const Type *shape[] = {type_mat(DT_f32, T, D), type_mat(DT_f32, T, D), type_vec(DT_f32, T),
                           type_vec(DT_f32, D), type_mat(DT_f32, D, D)};
    for (size_t i = 0; i < COUNT(shape); i++) r->value[r->nvalue++] = rg_input(r, shape[i], 0);
    r->index[0] = rg_input(r, type_vec(DT_i32, R), r->extent[X_T]);
    r->index[1] = rg_input(r, type_vec(DT_i32, T), r->extent[X_R]);
    while (r->nvalue < nodes && r->nvalue < RG_MAX) {
        NodeId x = r->value[rg_below(r, r->nvalue)], y = 0;
        int kind = rg_below(r, 10);
        y = kind < 6 ? rg_map(r, x) : kind < 9 ? rg_shape(r, x) : rg_product(r, x);
        if (y) r->value[r->nvalue++] = y;
    }
    rg_outputs(r);
    return r;
}

/* Evaluates a graph with the random inputs; the outputs are read with eval_state. */
static inline Eval *rg_eval(const RandomGraph *r, const Graph *g, EvalMode mode) {
    Eval *e = eval_new(g, mode, r->extent);
    for (int i = 0; i < r->nleaf; i++) eval_set(e, r->leaf[i], r->data[i], r->count[i]);
    eval_run(e, PHASE_MICRO, false);
    return e;
}

/* Largest difference of the outputs of two evaluations; NaN equals NaN, infinity if only one is. */
static inline double rg_difference(Eval *a, Eval *b) {
    double most = 0;
    for (int k = 0; k < RG_OUTS; k++) {
        int64_t n;
        const double *x = eval_state(a, intern_printf("out%d", k), &n);
        const double *y = eval_state(b, intern_printf("out%d", k), &n);
        for (int64_t i = 0; i < n; i++) {
            if (isnan(x[i]) != isnan(y[i])) return INFINITY;
            if (fabs(x[i] - y[i]) > most) most = fabs(x[i] - y[i]);
        }
    }
    return most;
}

#endif
