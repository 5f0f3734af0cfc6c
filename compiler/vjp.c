/* vjp.c: how the adjoint of each op's result becomes adjoints of its operands.
 *
 * One rule per name in ops.def.  dy is f32 of y's shape; so is what is added to an operand.  Rules
 * name only what is wanted; the products behind an unwanted operand are never made, or are dropped
 * as dead. Relies on grad.c and graph.c's short forms.
 */
#include "dpoc.h"

#include <math.h>

#define RULE(name) void vjp_##name(Grad *G, NodeId y)
RULE(reshape);
RULE(rows);
RULE(cols);
RULE(cast);
RULE(bcast);
RULE(neg);
RULE(abs);
RULE(exp);
RULE(log);
RULE(sqrt);
RULE(rsqrt);
RULE(sin);
RULE(cos);
RULE(tanh);
RULE(erf);
RULE(sigmoid);
RULE(log_sigmoid);
RULE(add);
RULE(sub);
RULE(mul);
RULE(div);
RULE(max);
RULE(min);
RULE(pow);
RULE(select);
RULE(rotate_half);
RULE(sum_cols);
RULE(max_cols);
RULE(sum_rows);
RULE(matmul);
RULE(take);
RULE(put);
RULE(sort);
RULE(attend);
RULE(linear_logprob);

static NodeId operand(Grad *G, NodeId y, int k) {
    return grad_graph(G)->node[y].in[k];
}

static NodeId unary(Grad *G, Op op, NodeId a) {
    return g_op(grad_graph(G), op, a, 0, 0);
}

static NodeId binary(Grad *G, Op op, NodeId a, NodeId b) {
    return g_op(grad_graph(G), op, a, b, 0);
}

static NodeId mul(Grad *G, NodeId a, NodeId b) {
    return binary(G, OP_mul, a, b);
}

/* f32 constant of x's shape */
static NodeId constant(Grad *G, double c, NodeId x) {
    Graph *g = grad_graph(G);
    return g_const(g, c, type_with(g->node[x].type, DT_f32));
}

static const Type *shape_of(Grad *G, NodeId x) {
    return type_with(grad_graph(G)->node[x].type, DT_f32);
}

/* ---- views and shapes ------------------------------------------------------------------------ */

RULE(reshape) {
    NodeId x = operand(G, y, 0);
    grad_add(G, x, g_reshape(grad_graph(G), grad_adjoint(G, y), shape_of(G, x)));
}

/* f32 [count, n] that picks columns begin.. of n: a row of it is one at that column. */
static NodeId picker(Graph *g, int64_t begin, int64_t count, int64_t n) {
    float *values = NEW_ARRAY(g->arena, float, count *n);
    for (int64_t i = 0; i < count; i++) values[i * n + begin + i] = 1;
    Attr attr = {.table = table_intern(values, (int)(count * n))};
    const Type *flat = type_vec(DT_f32, dim_const(count * n));
    NodeId table = graph_add(g, OP_table, NULL, 0, &attr, flat, 0, NULL);
    return g_reshape(g, table, type_mat(DT_f32, dim_const(count), dim_const(n)));
}

RULE(rows) {
    Graph *g = grad_graph(G);
    NodeId x = operand(G, y, 0);
    const Node *n = &g->node[y];
    const Type *tx = g->node[x].type;
    Dim begin = n->attr.dim, count = n->attr.dim2;
    if (!dim_is_const(begin) || !dim_is_const(count) || !dim_is_const(type_count(tx))) {
        diag(g->diags, DIAG_ERROR, n->origin ? n->origin->loc : (Loc){0},
             "no gradient through rows of a tensor whose size depends on the batch");
        return;
    }
    int64_t width = tx->dim[0].c ? type_count(tx).c / tx->dim[0].c : 0;
    NodeId pick = picker(g, begin.c, count.c, tx->dim[0].c);
    NodeId dy = g_reshape(g, grad_adjoint(G, y), type_mat(DT_f32, count, dim_const(width)));
    grad_add(G, x, g_reshape(g, g_matmul(g, pick, dy, true, false), shape_of(G, x)));
}

RULE(cols) {
    Graph *g = grad_graph(G);
    NodeId x = operand(G, y, 0);
    const Type *tx = shape_of(G, x), *ty = shape_of(G, y);
    const Attr a = g->node[y].attr;
    NodeId pick = picker(g, a.i0, a.i1, type_cols(tx));
    NodeId dy = g_reshape(g, grad_adjoint(G, y), type_mat(DT_f32, type_rows(ty), dim_const(a.i1)));
    grad_add(G, x, g_reshape(g, g_matmul(g, dy, pick, false, false), tx));
}

RULE(cast) {
    Graph *g = grad_graph(G);
    NodeId x = operand(G, y, 0), dy = grad_adjoint(G, y);
    DType to = g->node[y].type->dtype;
    /* An activation's adjoint is rounded as the value was; a weight's master takes it whole. */
    if (to != DT_f32 && g->node[x].phase >= PHASE_MICRO) dy = g_cast(g, g_cast(g, dy, to), DT_f32);
    grad_add(G, x, dy);
}

/* Sum of everything. */
static NodeId total(Graph *g, NodeId x) {
    const Type *t = g->node[x].type;
    if (!t->rank) return x;
    if (t->rank > 1) {
        Dim rows = type_rows(t), cols = dim_const(type_cols(t));
        x = g_op(g, OP_sum_cols, g_reshape(g, x, type_mat(DT_f32, rows, cols)), 0, 0);
        t = g->node[x].type;
    }
    return g_op(g, dim_is_const(t->dim[0]) ? OP_sum_cols : OP_sum_rows, x, 0, 0);
}

static Dim product(const Type *t, int from, int to) {
    Dim n = dim_const(1);
    for (int i = from; i < to; i++) n = dim_mul(n, t->dim[i]);
    return n;
}

/* [T,H,S] -> [T,S]: the heads' columns, one after the other. */
static NodeId sum_middle(Graph *g, NodeId dy, Dim rows, int64_t times, int64_t cols) {
    NodeId flat = g_reshape(g, dy, type_mat(DT_f32, rows, dim_const(times * cols))), sum = 0;
    for (int64_t i = 0; i < times; i++) {
        Attr attr = {.i0 = i * cols, .i1 = cols};
        NodeId part = graph_add(g, OP_cols, &flat, 1, &attr, NULL, 0, NULL);
        sum = sum ? g_op(g, OP_add, sum, part, 0) : part;
    }
    return sum;
}

RULE(bcast) {
    Graph *g = grad_graph(G);
    NodeId x = operand(G, y, 0), dy = grad_adjoint(G, y), sum;
    const Type *tx = g->node[x].type, *ty = g->node[y].type;
    int64_t lead = g->node[y].attr.i0;
    int added = ty->rank - tx->rank;
    if (!tx->rank) {
        sum = total(g, dy);
    } else if (lead == 2) {
        Dim times = product(ty, 1, 1 + added), inner = product(tx, 1, tx->rank);
        sum = sum_middle(g, dy, tx->dim[0], times.c, inner.c);
    } else {
        int at = lead ? tx->rank : added;
        const Type *matrix = type_mat(DT_f32, product(ty, 0, at), product(ty, at, ty->rank));
        sum = g_op(g, lead ? OP_sum_cols : OP_sum_rows, g_reshape(g, dy, matrix), 0, 0);
    }
    grad_add(G, x, g_reshape(g, sum, tx));
}

RULE(rotate_half) {
    grad_add(G, operand(G, y, 0), unary(G, OP_neg, unary(G, OP_rotate_half, grad_adjoint(G, y))));
}

/* ---- maps of one operand --------------------------------------------------------------------- */

RULE(neg) {
    grad_add(G, operand(G, y, 0), unary(G, OP_neg, grad_adjoint(G, y)));
}

RULE(abs) {
    NodeId x = operand(G, y, 0), dy = grad_adjoint(G, y), zero = constant(G, 0, x);
    Graph *g = grad_graph(G);
    NodeId left = g_op(g, OP_select, binary(G, OP_lt, x, zero), unary(G, OP_neg, dy), zero);
    grad_add(G, x, g_op(g, OP_select, binary(G, OP_lt, zero, x), dy, left));
}

RULE(exp) {
    grad_add(G, operand(G, y, 0), mul(G, grad_adjoint(G, y), y));
}

RULE(log) {
    NodeId x = operand(G, y, 0);
    grad_add(G, x, binary(G, OP_div, grad_adjoint(G, y), x));
}

RULE(sqrt) {
    NodeId slope = binary(G, OP_div, constant(G, 0.5, y), y);
    grad_add(G, operand(G, y, 0), mul(G, grad_adjoint(G, y), slope));
}

RULE(rsqrt) {
    NodeId cube = mul(G, mul(G, y, y), y);
    NodeId slope = mul(G, constant(G, -0.5, y), cube);
    grad_add(G, operand(G, y, 0), mul(G, grad_adjoint(G, y), slope));
}

RULE(sin) {
    NodeId x = operand(G, y, 0);
    grad_add(G, x, mul(G, grad_adjoint(G, y), unary(G, OP_cos, x)));
}

RULE(cos) {
    NodeId x = operand(G, y, 0);
    grad_add(G, x, unary(G, OP_neg, mul(G, grad_adjoint(G, y), unary(G, OP_sin, x))));
}

RULE(tanh) {
    NodeId slope = binary(G, OP_sub, constant(G, 1, y), mul(G, y, y));
    grad_add(G, operand(G, y, 0), mul(G, grad_adjoint(G, y), slope));
}

RULE(erf) {
    NodeId x = operand(G, y, 0);
    NodeId bell = unary(G, OP_exp, unary(G, OP_neg, mul(G, x, x)));
    NodeId slope = mul(G, constant(G, 2 / sqrt(acos(-1.0)), x), bell);
    grad_add(G, x, mul(G, grad_adjoint(G, y), slope));
}

RULE(sigmoid) {
    NodeId slope = mul(G, y, binary(G, OP_sub, constant(G, 1, y), y));
    grad_add(G, operand(G, y, 0), mul(G, grad_adjoint(G, y), slope));
}

RULE(log_sigmoid) {
    NodeId x = operand(G, y, 0);
    NodeId slope = unary(G, OP_sigmoid, unary(G, OP_neg, x));
    grad_add(G, x, mul(G, grad_adjoint(G, y), slope));
}

/* ---- maps of several operands ---------------------------------------------------------------- */

RULE(add) {
    grad_add(G, operand(G, y, 0), grad_adjoint(G, y));
    grad_add(G, operand(G, y, 1), grad_adjoint(G, y));
}

RULE(sub) {
    NodeId b = operand(G, y, 1);
    grad_add(G, operand(G, y, 0), grad_adjoint(G, y));
    if (grad_wanted(G, b)) grad_add(G, b, unary(G, OP_neg, grad_adjoint(G, y)));
}

RULE(mul) {
    NodeId a = operand(G, y, 0), b = operand(G, y, 1), dy = grad_adjoint(G, y);
    if (grad_wanted(G, a)) grad_add(G, a, mul(G, dy, b));
    if (grad_wanted(G, b)) grad_add(G, b, mul(G, dy, a));
}

RULE(div) {
    NodeId a = operand(G, y, 0), b = operand(G, y, 1);
    NodeId da = binary(G, OP_div, grad_adjoint(G, y), b);
    grad_add(G, a, da);
    if (grad_wanted(G, b)) grad_add(G, b, unary(G, OP_neg, mul(G, da, y)));
}

/* Of max and min: all to the operand that won, half each on a tie. */
static void add_winner(Grad *G, NodeId y, NodeId a_wins) {
    NodeId a = operand(G, y, 0), b = operand(G, y, 1), dy = grad_adjoint(G, y);
    NodeId half = constant(G, 0.5, y), one = constant(G, 1, y);
    NodeId share = g_op(grad_graph(G), OP_select, binary(G, OP_eq, a, b), half, a_wins);
    if (grad_wanted(G, a)) grad_add(G, a, mul(G, dy, share));
    if (grad_wanted(G, b)) grad_add(G, b, mul(G, dy, binary(G, OP_sub, one, share)));
}

RULE(max) {
    add_winner(G, y, binary(G, OP_lt, operand(G, y, 1), operand(G, y, 0)));
}

RULE(min) {
    add_winner(G, y, binary(G, OP_lt, operand(G, y, 0), operand(G, y, 1)));
}

RULE(pow) {
    NodeId a = operand(G, y, 0), b = operand(G, y, 1), dy = grad_adjoint(G, y);
    if (grad_wanted(G, a)) {
        NodeId lower = binary(G, OP_sub, b, constant(G, 1, b));
        grad_add(G, a, mul(G, dy, mul(G, b, binary(G, OP_pow, a, lower))));
    }
    if (grad_wanted(G, b)) grad_add(G, b, mul(G, dy, mul(G, y, unary(G, OP_log, a))));
}

RULE(select) {
    NodeId c = operand(G, y, 0), dy = grad_adjoint(G, y), zero = constant(G, 0, y);
    Graph *g = grad_graph(G);
    NodeId a = operand(G, y, 1), b = operand(G, y, 2);
    if (grad_wanted(G, a)) grad_add(G, a, g_op(g, OP_select, c, dy, zero));
    if (grad_wanted(G, b)) grad_add(G, b, g_op(g, OP_select, c, zero, dy));
}

/* ---- reductions and products ----------------------------------------------------------------- */

RULE(sum_cols) {
    NodeId x = operand(G, y, 0);
    grad_add(G, x, g_bcast(grad_graph(G), grad_adjoint(G, y), shape_of(G, x), true));
}

RULE(max_cols) {
    Graph *g = grad_graph(G);
    NodeId x = operand(G, y, 0);
    const Type *shape = shape_of(G, x);
    NodeId best = binary(G, OP_eq, x, g_bcast(g, y, shape, true));
    NodeId each = binary(G, OP_div, grad_adjoint(G, y), unary(G, OP_sum_cols, best));
    grad_add(G, x, mul(G, best, g_bcast(g, each, shape, true)));
}

RULE(sum_rows) {
    NodeId x = operand(G, y, 0);
    grad_add(G, x, g_bcast(grad_graph(G), grad_adjoint(G, y), shape_of(G, x), false));
}

RULE(matmul) {
    Graph *g = grad_graph(G);
    NodeId a = operand(G, y, 0), b = operand(G, y, 1);
    bool ta = g->node[y].attr.i0 != 0, tb = g->node[y].attr.i1 != 0;
    NodeId dy = g_cast(g, grad_adjoint(G, y), g->node[a].type->dtype);
    if (grad_wanted(G, a))
        grad_add(G, a, ta ? g_matmul(g, b, dy, tb, true) : g_matmul(g, dy, b, false, !tb));
    if (grad_wanted(G, b))
        grad_add(G, b, tb ? g_matmul(g, dy, a, true, ta) : g_matmul(g, a, dy, !ta, false));
}

/* ---- gather, scatter, sort ------------------------------------------------------------------- */

static NodeId put(Grad *G, NodeId x, NodeId index, Dim rows) {
    return graph_add(grad_graph(G), OP_put, (NodeId[]){x, index}, 2, &(Attr){.dim = rows}, NULL, 0,
                     NULL);
}

RULE(take) {
    NodeId x = operand(G, y, 0);
    grad_add(G, x, put(G, grad_adjoint(G, y), operand(G, y, 1), shape_of(G, x)->dim[0]));
}

RULE(put) {
    grad_add(G, operand(G, y, 0), binary(G, OP_take, grad_adjoint(G, y), operand(G, y, 1)));
}

RULE(sort) {
    NodeId x = operand(G, y, 0), from = g_part(grad_graph(G), y, 1);
    grad_add(G, x, put(G, grad_adjoint(G, y), from, shape_of(G, x)->dim[0]));
}

/* ---- attention, the head --------------------------------------------------------------------- */

RULE(attend) {
    Graph *g = grad_graph(G);
    NodeId q = operand(G, y, 0), k = operand(G, y, 1), v = operand(G, y, 2);
    const Attr attr = g->node[y].attr;
    NodeId ranges = graph_find(g, OP_input, "ranges");
    if (!ranges) {
        const Type *type = type_mat(DT_i32, dim_extent(X_K), dim_const(4));
        ranges = g_input(g, "ranges", PHASE_MICRO, type);
    }
    NodeId dout = g_cast(g, grad_adjoint(G, y), g->node[q].type->dtype);
    NodeId in[8] = {q, k, v, y, g_part(g, y, 1), dout, operand(G, y, 3), ranges};
    NodeId bwd = graph_add(g, OP_attend_bwd, in, 8, &attr, NULL, 0, NULL);
    if (grad_wanted(G, q)) grad_add(G, q, g_cast(g, bwd, DT_f32));
    if (grad_wanted(G, k)) grad_add(G, k, g_cast(g, g_part(g, bwd, 1), DT_f32));
    if (grad_wanted(G, v)) grad_add(G, v, g_cast(g, g_part(g, bwd, 2), DT_f32));
}

RULE(linear_logprob) {
    Graph *g = grad_graph(G);
    NodeId h = operand(G, y, 0), w = operand(G, y, 1), target = operand(G, y, 2);
    const Attr attr = g->node[y].attr;
    NodeId in[5] = {h, w, target, g_part(g, y, 1), grad_adjoint(G, y)};
    NodeId bwd = graph_add(g, OP_linear_logprob_bwd, in, 5, &attr, NULL, 0, NULL);
    grad_add(G, h, bwd);
    if (grad_wanted(G, w)) grad_add(G, w, g_part(g, bwd, 1));
}
