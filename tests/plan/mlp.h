/* mlp.h: a small training unit made by hand: embedding, normalized blocks of two products with
 * residual sums, half of the weights trained; for tests of what stands behind build. */
#ifndef TESTS_MLP_H
#define TESTS_MLP_H

#include "compiler/kern.h"

#include <stdlib.h>
#include <string.h>

enum { MLP_T = 96, MLP_D = 64, MLP_F = 160, MLP_V = 50, MLP_LAYERS = 5 };

static int mlp_layers = MLP_LAYERS; /* at most MLP_LAYERS */

static inline NodeId mlp_weight(Unit *u, const char *name, int64_t rows, int64_t cols) {
    WeightInfo w = {
        .source = intern("base"), .tensor = intern(name), .rank = 2, .rows = rows, .cols = cols};
    PUSH(u->arena, u->weights, u->nweights, u->capweights, w);
    Attr attr = {.name = intern(name), .name2 = w.source, .i0 = u->nweights - 1};
    const Type *type = type_mat(u->compute, dim_const(rows), dim_const(cols));
    return graph_add(u->g, OP_weight, NULL, 0, &attr, type, 0, NULL);
}

/* A trained f32 master, as the step phase casts it. */
static inline NodeId mlp_trained(Unit *u, NodeId params, const char *name, int64_t rows,
                                 int64_t cols) {
    Trained t = {
        .source = intern("pref"), .tensor = intern(name), .rank = 2, .rows = rows, .cols = cols};
    t.offset = u->nparams;
    t.leaf = g_slot(u->g, params, t.offset, type_mat(DT_f32, dim_const(rows), dim_const(cols)));
    t.start.init = "kaiming";
    u->nparams += rows * cols;
    PUSH(u->arena, u->trained, u->ntrained, u->captrained, t);
    return g_cast(u->g, t.leaf, u->compute);
}

static inline NodeId mlp_norm(Unit *u, NodeId x) {
    Graph *g = u->g;
    NodeId f = g_cast(g, x, DT_f32);
    const Type *rows = type_vec(DT_f32, dim_extent(X_T));
    NodeId mean = g_op(g, OP_mul, g_op(g, OP_sum_cols, g_op(g, OP_mul, f, f, 0), 0, 0),
                       g_bcast(g, g_const(g, 1.0 / MLP_D, type_scalar(DT_f32)), rows, false), 0);
    NodeId eps = g_bcast(g, g_const(g, 1e-5, type_scalar(DT_f32)), rows, false);
    NodeId r = g_op(g, OP_rsqrt, g_op(g, OP_add, mean, eps, 0), 0, 0);
    NodeId y = g_op(g, OP_mul, f, g_bcast(g, r, type_with(node(g, x)->type, DT_f32), true), 0);
    return g_cast(g, y, u->compute);
}

static inline NodeId mlp_silu(Unit *u, NodeId x) {
    NodeId f = g_cast(u->g, x, DT_f32);
    NodeId y = g_op(u->g, OP_mul, f, g_op(u->g, OP_sigmoid, f, 0, 0), 0);
    return g_cast(u->g, y, u->compute);
}

/* The forward graph: sum over rows and columns of the last residual, squared. */
static inline void mlp_forward(Unit *u) {
    Graph *g = u->g;
    int64_t flat = (int64_t)mlp_layers * MLP_F * MLP_D; /* a multiple of 1024 */
    NodeId params =
        g_state(g, "params", PHASE_STEP, ROLE_ADAPTER, type_vec(DT_f32, dim_const(flat)));
    NodeId tokens = g_input(g, "tokens", PHASE_MICRO, type_vec(DT_i32, dim_extent(X_T)));
    NodeId x = g_op(g, OP_take, mlp_weight(u, "embed", MLP_V, MLP_D), tokens, 0);
    for (int i = 0; i < mlp_layers; i++) {
        graph_at(g, origin_new(u->arena, (Loc){0}, intern_printf("layers.%d", i)));
        NodeId up = mlp_trained(u, params, intern_printf("up%d", i), MLP_F, MLP_D);
        NodeId down = mlp_weight(u, intern_printf("down%d", i), MLP_D, MLP_F);
        NodeId a = g_cast(g, g_matmul(g, mlp_norm(u, x), up, false, true), u->compute);
        NodeId b = g_cast(g, g_matmul(g, mlp_silu(u, a), down, false, true), u->compute);
        NodeId sum = g_op(g, OP_add, g_cast(g, x, DT_f32), g_cast(g, b, DT_f32), 0);
        x = g_cast(g, sum, u->compute);
    }
    NodeId f = g_cast(g, x, DT_f32);
    NodeId rows = g_op(g, OP_sum_cols, g_op(g, OP_mul, f, f, 0), 0, 0);
    u->loss = g_op(g, OP_sum_rows, rows, 0, 0);
    u->seed = g_input(g, "inv_pairs", PHASE_MICRO, type_scalar(DT_f32));
    NodeId metrics =
        g_state(g, "metrics", PHASE_MICRO, ROLE_OUTPUT, type_vec(DT_f32, dim_const(1)));
    g_effect(g, OP_accumulate, metrics, g_reshape(g, u->loss, type_vec(DT_f32, dim_const(1))));
    PUSH(u->arena, u->metrics, u->nmetrics, u->capmetrics, ((Metric){"loss", "inv_pairs"}));
}

static inline Unit *mlp_unit(Arena *arena, DType compute) {
    Unit *u = NEW(arena, Unit);
    *u = (Unit){
        .kind = UNIT_TRAIN, .target = target_by_name("cpu"), .arena = arena, .compute = compute};
    u->diags = diags_new(arena);
    u->g = graph_new(arena, u->diags);
    u->g->intern = true;
    for (int e = 0; e < NEXTENT; e++) u->bound[e] = 1;
    u->bound[X_T] = MLP_T;
    mlp_forward(u);
    return u;
}

/* Forward and backward, one node for equal ones. */
static inline void mlp_grad(Unit *u) {
    Pass pass = {0};
    if (pass_grad(&pass, u) < 0) abort();
    NodeId *map = NEW_ARRAY(u->arena, NodeId, u->g->n);
    Graph *clean = graph_clean(u->arena, u->g, true, map);
    unit_replace_graph(u, clean, map);
}

static inline void mlp_groups(Unit *u) {
    Pass pass = {0};
    if (pass_gemm(&pass, u) < 0 || pass_fuse(&pass, u) < 0) abort();
}

#endif
