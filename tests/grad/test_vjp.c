/* test_vjp.c: finite differences for every row of ops.def.
 *
 * For each op that has a vjp, its cases build y from random leaves; loss = sum(y * w) for random w.
 *  The derivative that grad_of appends is compared, element by element, with central differences of
 * the evaluator in double.  The backward ops of attention and the head are reached through their
 * forward. A row of the table without a case fails the test, unless it stands among those without a
 * gradient.
 *
 * Tolerance: central differences with step h err by h^2 f'''/6 and by eps |f| / h; at h = 1e-5 and
 * the magnitudes here (|f| < 1e3, |f'''| < 1e3) that is below 1e-7.
 */
#include "compiler/dpoc.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void vjp_none(Grad *G, NodeId y);

enum { MAX_LEAF = 8, SEEDS = 4 };
static const double step = 1e-5, tolerance = 1e-7;

typedef struct Leaf {
    const char *name;
    NodeId id;
    int64_t count;
    double *values;
    bool wanted;
} Leaf;

typedef struct Ctx { /* one case with one seed */
    Arena *arena;
    Graph *g;
    uint64_t random;
    int64_t extent[NEXTENT];
    Leaf leaf[MAX_LEAF];
    int nleaf;
} Ctx;

static double uniform(Ctx *c, double lo, double hi) {
    c->random = c->random * 6364136223846793005u + 1442695040888963407u;
    return lo + (hi - lo) * (double)(c->random >> 11) * 0x1p-53;
}

static int64_t below(Ctx *c, int64_t n) {
    return (int64_t)uniform(c, 0, (double)n);
}

static Leaf *leaf_new(Ctx *c, const Type *type, bool wanted) {
    assert_true(c->nleaf < MAX_LEAF);
    Leaf *l = &c->leaf[c->nleaf];
    l->name = intern_printf("x%d", c->nleaf++);
    l->id = g_input(c->g, l->name, PHASE_MICRO, type);
    l->count = dim_eval(type_count(type), c->extent);
    l->values = NEW_ARRAY(c->arena, double, l->count + 1);
    l->wanted = wanted;
    return l;
}

/* A differentiable leaf with values in lo..hi. */
static NodeId real(Ctx *c, const Type *type, double lo, double hi) {
    Leaf *l = leaf_new(c, type, true);
    for (int64_t i = 0; i < l->count; i++) l->values[i] = uniform(c, lo, hi);
    return l->id;
}

/* Integers from -1 (none) below n, with repeats. */
static NodeId rows_of(Ctx *c, Dim count, int64_t n) {
    Leaf *l = leaf_new(c, type_vec(DT_i32, count), false);
    for (int64_t i = 0; i < l->count; i++) l->values[i] = (double)(below(c, n + 1) - 1);
    return l->id;
}

static NodeId integers(Ctx *c, const Type *type, const int *values) {
    Leaf *l = leaf_new(c, type, false);
    for (int64_t i = 0; i < l->count; i++) l->values[i] = values[i];
    return l->id;
}

static Dim T(void) {
    return dim_extent(X_T);
}

static Dim num(int64_t n) {
    return dim_const(n);
}

static const Type *f32(int rank, Dim a, Dim b, Dim d) {
    return type_of(DT_f32, rank, (Dim[]){a, b, d});
}

/* Any shape that maps take. */
static const Type *some_shape(Ctx *c) {
    switch (below(c, 6)) {
    case 0:
        return type_scalar(DT_f32);
    case 1:
        return type_vec(DT_f32, T());
    case 2:
        return type_vec(DT_f32, num(5));
    case 3:
        return f32(2, T(), num(4), num(0));
    case 4:
        return f32(3, T(), num(2), num(4));
    default:
        return f32(2, dim_add(dim_scale(T(), 2), num(1)), num(3), num(0));
    }
}

/* ---- cases ----------------------------------------------------------------------------------- */

typedef struct Case {
    Op op;
    double lo, hi; /* range of the operands of a map */
    NodeId (*build)(Ctx *c, const struct Case *k);
} Case;

static NodeId map_case(Ctx *c, const Case *k) {
    const Type *shape = some_shape(c);
    NodeId in[3] = {0};
    for (int i = 0; i < op_info[k->op].lo; i++) in[i] = real(c, shape, k->lo, k->hi);
    return g_op(c->g, k->op, in[0], in[1], in[2]);
}

/* x op x: one leaf, two paths */
static NodeId twice_case(Ctx *c, const Case *k) {
    NodeId x = real(c, some_shape(c), k->lo, k->hi);
    return g_op(c->g, k->op, x, x, 0);
}

static NodeId select_case(Ctx *c, const Case *k) {
    const Type *shape = some_shape(c);
    NodeId a = real(c, shape, k->lo, k->hi), b = real(c, shape, k->lo, k->hi);
    NodeId p = real(c, shape, k->lo, k->hi), q = real(c, shape, k->lo, k->hi);
    return g_op(c->g, OP_select, g_op(c->g, OP_lt, p, q, 0), a, b);
}

static NodeId cast_case(Ctx *c, const Case *k) {
    NodeId x = real(c, some_shape(c), k->lo, k->hi);
    return g_cast(c->g, g_cast(c->g, x, DT_bf16), DT_f32);
}

static NodeId reshape_case(Ctx *c, const Case *k) {
    NodeId x = real(c, f32(2, T(), num(6), num(0)), k->lo, k->hi);
    return g_reshape(c->g, x, f32(3, T(), num(3), num(2)));
}

static NodeId rows_case(Ctx *c, const Case *k) {
    bool flat = below(c, 2);
    NodeId x = real(c, f32(flat ? 1 : 3, num(7), num(2), num(3)), k->lo, k->hi);
    Attr attr = {.dim = num(2), .dim2 = num(4)};
    return graph_add(c->g, OP_rows, &x, 1, &attr, NULL, 0, NULL);
}

static NodeId cols_case(Ctx *c, const Case *k) {
    const Type *shape = below(c, 2) ? f32(3, T(), num(2), num(6)) : type_vec(DT_f32, num(6));
    NodeId x = real(c, shape, k->lo, k->hi);
    return graph_add(c->g, OP_cols, &x, 1, &(Attr){.i0 = 1, .i1 = 3}, NULL, 0, NULL);
}

static NodeId bcast_case(Ctx *c, const Case *k) {
    const Type *to[4] = {type_vec(DT_f32, T()), type_vec(DT_f32, num(4)),
                         f32(2, T(), num(4), num(0)), f32(3, T(), num(2), num(4))};
    const Type *shape = to[below(c, 4)];
    int rank = (int)below(c, shape->rank + 1);
    bool lead = below(c, 2);
    const Dim *from = shape->dim + (lead ? 0 : shape->rank - rank);
    return g_bcast(c->g, real(c, type_of(DT_f32, rank, from), k->lo, k->hi), shape, lead);
}

static NodeId middle_case(Ctx *c, const Case *k) {
    bool deep = below(c, 2);
    NodeId x = real(c, f32(2, T(), num(4), num(0)), k->lo, k->hi);
    const Type *shape = deep ? type_of(DT_f32, 4, (Dim[]){T(), num(2), num(3), num(4)})
                             : f32(3, T(), num(3), num(4));
    return g_bcast(c->g, x, shape, 2);
}

static NodeId rotate_case(Ctx *c, const Case *k) {
    NodeId x = real(c, f32(3, T(), num(2), num(6)), k->lo, k->hi);
    return g_op(c->g, OP_rotate_half, x, 0, 0);
}

static NodeId reduce_case(Ctx *c, const Case *k) {
    const Type *shape = some_shape(c);
    while (!shape->rank) shape = some_shape(c);
    return g_op(c->g, k->op, real(c, shape, k->lo, k->hi), 0, 0);
}

static NodeId matmul_case(Ctx *c, const Case *k) {
    bool ta = below(c, 2), tb = below(c, 2);
    /* The batch is the rows of A, or the summed axis of a weight's gradient. */
    bool inner = below(c, 2);
    Dim m = inner ? num(3) : T(), n = num(4), p = inner ? T() : num(5);
    NodeId a = real(c, ta ? f32(2, p, m, num(0)) : f32(2, m, p, num(0)), k->lo, k->hi);
    NodeId b = real(c, tb ? f32(2, n, p, num(0)) : f32(2, p, n, num(0)), k->lo, k->hi);
    if (below(c, 2)) a = g_cast(c->g, a, DT_bf16), b = g_cast(c->g, b, DT_bf16);
    return g_matmul(c->g, a, b, ta, tb);
}

static NodeId take_case(Ctx *c, const Case *k) {
    bool weight = below(c, 2);
    const Type *shape =
        weight ? f32(2, num(9), num(4), num(0)) : f32((int)below(c, 3) + 1, T(), num(2), num(3));
    NodeId x = real(c, shape, k->lo, k->hi);
    return g_op(c->g, OP_take, x, rows_of(c, dim_extent(X_R), weight ? 9 : c->extent[X_T]), 0);
}

static NodeId put_case(Ctx *c, const Case *k) {
    const Type *shape = f32((int)below(c, 3) + 1, dim_extent(X_R), num(2), num(3));
    NodeId in[2] = {real(c, shape, k->lo, k->hi), rows_of(c, dim_extent(X_R), c->extent[X_N])};
    return graph_add(c->g, OP_put, in, 2, &(Attr){.dim = dim_extent(X_N)}, NULL, 0, NULL);
}

static NodeId sort_case(Ctx *c, const Case *k) {
    return g_op(c->g, OP_sort, real(c, type_vec(DT_f32, dim_extent(X_P)), k->lo, k->hi), 0, 0);
}

/* A prompt of 4 with two answers that see it, a lone sequence, a query block over a longer cache,
 * and a row that no segment names; keys are more than queries. */
static NodeId attend_case(Ctx *c, const Case *k) {
    static const int segs[] = {0, 4, 0, 0, 0, 4, 4, 3, 0, 4,  4, 3, 7, 2,  0,
                               4, 7, 2, 9, 3, 0, 0, 9, 3, 12, 2, 2, 2, 12, 5};
    c->extent[X_T] = 15, c->extent[X_H] = 18, c->extent[X_G] = 5;
    Dim heads = num(below(c, 2) ? 4 : 2), kv = num(2), size = num(3);
    NodeId q = real(c, f32(3, T(), heads, size), k->lo, k->hi);
    NodeId key = real(c, f32(3, dim_extent(X_H), kv, size), k->lo, k->hi);
    NodeId v = real(c, f32(3, dim_extent(X_H), kv, size), k->lo, k->hi);
    NodeId table = integers(c, type_mat(DT_i32, dim_extent(X_G), num(6)), segs);
    static const int64_t windows[] = {0, 1, 3, 100};
    Attr attr = {.num = uniform(c, 0.3, 1.5), .i0 = windows[below(c, 4)]};
    if (below(c, 2)) {
        q = g_cast(c->g, q, DT_bf16);
        key = g_cast(c->g, key, DT_bf16);
        v = g_cast(c->g, v, DT_bf16);
    }
    NodeId y = graph_add(c->g, OP_attend, (NodeId[]){q, key, v, table}, 4, &attr, NULL, 0, NULL);
    return g_cast(c->g, y, DT_f32);
}

/* One leaf as q, k and v: three adjoints add up. */
static NodeId self_attend_case(Ctx *c, const Case *k) {
    static const int segs[] = {0, 3, 0, 0, 0, 3, 3, 3, 0, 3, 3, 3};
    c->extent[X_T] = 6, c->extent[X_G] = 2;
    NodeId x = real(c, f32(3, T(), num(2), num(4)), k->lo, k->hi);
    NodeId table = integers(c, type_mat(DT_i32, dim_extent(X_G), num(6)), segs);
    NodeId in[4] = {x, x, x, table};
    return graph_add(c->g, OP_attend, in, 4, &(Attr){.num = 0.5}, NULL, 0, NULL);
}

static NodeId head_case(Ctx *c, const Case *k) {
    NodeId h = real(c, f32(2, dim_extent(X_R), num(4), num(0)), k->lo, k->hi);
    NodeId w = real(c, f32(2, num(7), num(4), num(0)), k->lo, k->hi);
    NodeId in[3] = {h, w, rows_of(c, dim_extent(X_R), 7)};
    Attr attr = {.num = uniform(c, 0.5, 2)};
    return graph_add(c->g, OP_linear_logprob, in, 3, &attr, NULL, 0, NULL);
}

static const Case cases[] = {
    {OP_reshape, -1, 1, reshape_case},
    {OP_rows, -1, 1, rows_case},
    {OP_cols, -1, 1, cols_case},
    {OP_cast, -1, 1, cast_case},
    {OP_bcast, -1, 1, bcast_case},
    {OP_bcast, -1, 1, middle_case},
    {OP_neg, -1, 1, map_case},
    {OP_abs, -1, 1, map_case},
    {OP_exp, -2, 2, map_case},
    {OP_log, 0.3, 3, map_case},
    {OP_sqrt, 0.3, 3, map_case},
    {OP_rsqrt, 0.3, 3, map_case},
    {OP_sin, -3, 3, map_case},
    {OP_cos, -3, 3, map_case},
    {OP_tanh, -2, 2, map_case},
    {OP_erf, -2, 2, map_case},
    {OP_sigmoid, -3, 3, map_case},
    {OP_log_sigmoid, -3, 3, map_case},
    {OP_add, -1, 1, map_case},
    {OP_add, -1, 1, twice_case},
    {OP_sub, -1, 1, map_case},
    {OP_sub, -1, 1, twice_case},
    {OP_mul, -1, 1, map_case},
    {OP_mul, -1, 1, twice_case},
    {OP_div, 0.4, 2, map_case},
    {OP_div, 0.4, 2, twice_case},
    {OP_max, -1, 1, map_case},
    {OP_min, -1, 1, map_case},
    {OP_pow, 0.5, 2, map_case},
    {OP_pow, 0.5, 2, twice_case},
    {OP_select, -1, 1, select_case},
    {OP_rotate_half, -1, 1, rotate_case},
    {OP_sum_cols, -1, 1, reduce_case},
    {OP_max_cols, -1, 1, reduce_case},
    {OP_sum_rows, -1, 1, reduce_case},
    {OP_matmul, -1, 1, matmul_case},
    {OP_take, -1, 1, take_case},
    {OP_put, -1, 1, put_case},
    {OP_sort, -1, 1, sort_case},
    {OP_attend, -1, 1, attend_case},
    {OP_attend, -1, 1, self_attend_case},
    {OP_linear_logprob, -1, 1, head_case},
};

static const struct {
    Op op;
    const char *why;
} without[] = {
    {OP_const, "no operands"},
    {OP_table, "no operands"},
    {OP_input, "no operands"},
    {OP_weight, "no operands"},
    {OP_state, "no operands"},
    {OP_slot, "storage: a trained tensor's adjoint ends at its slot"},
    {OP_part, "statistics, integers and results of backward ops"},
    {OP_lt, "piecewise constant"},
    {OP_le, "piecewise constant"},
    {OP_eq, "piecewise constant"},
    {OP_stop, "stops the gradient: that is its meaning"},
    {OP_dynamic_value, "of a code, which is a whole number"},
    {OP_dynamic_code, "piecewise constant"},
    {OP_uniform, "depends on integers only"},
    {OP_attend_bwd, "no second derivatives"},
    {OP_linear_logprob_bwd, "no second derivatives"},
    {OP_dequant, "quantized weights are frozen"},
    {OP_append, "a cache is there for generating, which has no gradient"},
    {OP_assign, "an effect"},
    {OP_accumulate, "an effect"},
};

/* ---- the check ------------------------------------------------------------------------------- */

/* sum(y * w) for a random w */
static NodeId weighted_sum(Ctx *c, NodeId y) {
    const Type *t = c->g->node[y].type;
    Leaf *w = leaf_new(c, t, false);
    for (int64_t i = 0; i < w->count; i++) w->values[i] = uniform(c, -1, 1);
    NodeId p = g_op(c->g, OP_mul, y, w->id, 0);
    while (c->g->node[p].type->rank) p = g_op(c->g, OP_sum_cols, p, 0, 0);
    return p;
}

static double evaluate(Ctx *c, NodeId loss) {
    Eval *e = eval_new(c->g, EVAL_DOUBLE, c->extent);
    for (int i = 0; i < c->nleaf; i++)
        eval_set(e, c->leaf[i].name, c->leaf[i].values, c->leaf[i].count);
    eval_run(e, PHASE_MICRO, false);
    double y = eval_get(e, loss, NULL)[0];
    eval_free(e);
    return y;
}

static void check_leaf(Ctx *c, Graph *forward, NodeId loss, Leaf *l, const double *d,
                       const char *op) {
    Graph *g = c->g;
    c->g = forward;
    for (int64_t i = 0; i < l->count; i++) {
        double x = l->values[i];
        l->values[i] = x + step;
        double up = evaluate(c, loss);
        l->values[i] = x - step;
        double down = evaluate(c, loss);
        l->values[i] = x;
        double want = 0.75 * (up - down) / (2 * step);
        if (fabs(d[i] - want) > tolerance * (1 + fabs(want)))
            fail_msg("%s: d/d%s[%lld] is %.12g, differences give %.12g", op, l->name, (long long)i,
                     d[i], want);
    }
    c->g = g;
}

static void check_case(const Case *k, uint64_t seed) {
    static const int64_t extents[SEEDS][2] = {{1, 1}, {5, 7}, {8, 3}, {3, 12}};
    Ctx c = {.arena = arena_new(), .random = seed * 7919 + (uint64_t)k->op * 104729 + 1};
    Diags *diags = diags_new(c.arena);
    c.g = graph_new(c.arena, diags);
    for (int x = 0; x < NEXTENT; x++) c.extent[x] = 3;
    c.extent[X_T] = extents[seed % SEEDS][0], c.extent[X_R] = extents[seed % SEEDS][1];
    NodeId loss = weighted_sum(&c, k->build(&c, k));
    NodeId seed_node = g_const(c.g, 0.75, type_scalar(DT_f32)), leaf[MAX_LEAF], d[MAX_LEAF];
    for (int i = 0; i < c.nleaf; i++) leaf[i] = c.leaf[i].wanted ? c.leaf[i].id : 0;
    Graph forward = *c.g;
    grad_of(c.g, loss, seed_node, leaf, c.nleaf, d);
    diags_print(diags, 0, stderr, false);
    assert_int_equal(diags_errors(diags), 0);
    const char *broken = graph_verify(c.g, c.arena);
    if (broken) fail_msg("%s: %s", op_info[k->op].name, broken);
    Eval *e = eval_new(c.g, EVAL_DOUBLE, c.extent);
    for (int i = 0; i < c.nleaf; i++)
        eval_set(e, c.leaf[i].name, c.leaf[i].values, c.leaf[i].count);
    eval_run(e, PHASE_MICRO, false);
    for (int i = 0; i < c.nleaf; i++) {
        if (!c.leaf[i].wanted) continue;
        const double *got =
            d[i] ? eval_get(e, d[i], NULL) : NEW_ARRAY(c.arena, double, c.leaf[i].count + 1);
        if (d[i])
            assert_ptr_equal(c.g->node[d[i]].type, type_with(c.g->node[leaf[i]].type, DT_f32));
        check_leaf(&c, &forward, loss, &c.leaf[i], got, op_info[k->op].name);
    }
    eval_free(e);
    arena_free(c.arena);
}

static void every_row(void **state) {
    int checked[NOP] = {0};
    for (size_t k = 0; k < COUNT(cases); k++) {
        for (uint64_t seed = 0; seed < 4 * SEEDS; seed++) check_case(&cases[k], seed);
        checked[cases[k].op]++;
    }
    for (size_t i = 0; i < COUNT(without); i++) {
        if (op_info[without[i].op].vjp != vjp_none)
            fail_msg("%s has a gradient: '%s'", op_info[without[i].op].name, without[i].why);
        checked[without[i].op]++;
    }
    for (int op = 0; op < NOP; op++) {
        if (!checked[op]) fail_msg("op %s has neither a case nor a reason", op_info[op].name);
        if (op_info[op].vjp == vjp_none)
            for (size_t k = 0; k < COUNT(cases); k++) assert_int_not_equal(cases[k].op, op);
    }
}

/* ---- what differences can't see -------------------------------------------------------------- */

static Ctx fresh(void) {
    Ctx c = {.arena = arena_new(), .random = 1};
    c.g = graph_new(c.arena, diags_new(c.arena));
    for (int x = 0; x < NEXTENT; x++) c.extent[x] = 4;
    return c;
}

static void run_grad(Ctx *c, NodeId loss, NodeId leaf, const double *want, int n) {
    NodeId d;
    grad_of(c->g, loss, g_const(c->g, 1, type_scalar(DT_f32)), &leaf, 1, &d);
    Eval *e = eval_new(c->g, EVAL_ROUNDING, c->extent);
    for (int i = 0; i < c->nleaf; i++)
        eval_set(e, c->leaf[i].name, c->leaf[i].values, c->leaf[i].count);
    eval_run(e, PHASE_MICRO, false);
    for (int i = 0; i < n; i++) assert_true(eval_get(e, d, NULL)[i] == want[i]);
    eval_free(e);
    arena_free(c->arena);
}

/* max against a tie: half each; abs at 0: nothing; the maximum of a row shared by two. */
static void ties(void **state) {
    Ctx c = fresh();
    Leaf *x = leaf_new(&c, type_vec(DT_f32, num(3)), true);
    memcpy(x->values, (double[]){2, 0, -1}, 3 * sizeof(double));
    NodeId y = g_op(c.g, OP_max, x->id, g_const(c.g, 0, type_vec(DT_f32, num(3))), 0);
    run_grad(&c, g_op(c.g, OP_sum_cols, y, 0, 0), x->id, (double[]){1, 0.5, 0}, 3);
    c = fresh();
    x = leaf_new(&c, type_vec(DT_f32, num(3)), true);
    memcpy(x->values, (double[]){2, 0, -1}, 3 * sizeof(double));
    y = g_op(c.g, OP_sum_cols, g_op(c.g, OP_abs, x->id, 0, 0), 0, 0);
    run_grad(&c, y, x->id, (double[]){1, 0, -1}, 3);
    c = fresh();
    x = leaf_new(&c, type_vec(DT_f32, num(4)), true);
    memcpy(x->values, (double[]){2, 0, 2, -1}, 4 * sizeof(double));
    run_grad(&c, g_op(c.g, OP_max_cols, x->id, 0, 0), x->id, (double[]){0.5, 0, 0.5, 0}, 4);
}

/* An activation's adjoint is rounded where the value was; a weight's, of phase step, is not. */
static void rounding_of_adjoints(void **state) {
    for (int phase = PHASE_STEP; phase <= PHASE_MICRO; phase++) {
        Ctx c = fresh();
        NodeId x = g_input(c.g, "x", (Phase)phase, type_scalar(DT_f32));
        NodeId y = g_cast(c.g, g_cast(c.g, x, DT_bf16), DT_f32);
        double scale = 1 + 0x1p-12; /* needs more than bf16's 8 bits */
        NodeId loss = g_op(c.g, OP_mul, y, g_const(c.g, scale, type_scalar(DT_f32)), 0);
        run_grad(&c, loss, x, (double[]){phase == PHASE_STEP ? scale : 1}, 1);
    }
}

/* Nothing is appended for what no wanted leaf reaches, and `stop` ends a path. */
static void only_wanted_paths(void **state) {
    Ctx c = fresh();
    NodeId x = real(&c, type_scalar(DT_f32), 1, 2), z = real(&c, type_scalar(DT_f32), 1, 2);
    NodeId frozen = g_op(c.g, OP_exp, g_op(c.g, OP_sin, z, 0, 0), 0, 0);
    NodeId stopped = g_op(c.g, OP_stop, g_op(c.g, OP_tanh, x, 0, 0), 0, 0);
    NodeId loss = g_op(c.g, OP_add, g_op(c.g, OP_add, x, frozen, 0), stopped, 0);
    NodeId one = g_const(c.g, 1, type_scalar(DT_f32)), d[2];
    int before = c.g->n;
    grad_of(c.g, loss, one, (NodeId[]){x, 0}, 2, d);
    assert_int_equal(d[0], one);
    assert_int_equal(d[1], 0);
    assert_int_equal(c.g->n, before);
    arena_free(c.arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row),
        cmocka_unit_test(ties),
        cmocka_unit_test(rounding_of_adjoints),
        cmocka_unit_test(only_wanted_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
