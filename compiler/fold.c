/* fold.c: constants and identities.
 *
 * Copies the live graph, putting something simpler in place of a node where that gives the same
 * bits: so x + 0 stays (-0 + 0 is +0) while x - 0 and x + -0 go, and only operations that IEEE
 * defines are computed here, in f32.  Powers of two move past products.  Runs before and after
 * grad; `stop` goes once nothing will be differentiated. Relies on graph.c.
 */
#include "dpoc.h"

#include <math.h>
#include <string.h>

typedef struct Fold {
    Graph *g;         /* the new graph */
    bool final;       /* nothing will be differentiated any more */
    const Node *n;    /* the node in the old graph, */
    const NodeId *in; /*    its operands in the new one */
} Fold;

static const Node *in_node(const Fold *f, int k) {
    return &f->g->node[f->in[k]];
}

static bool is_const(const Fold *f, int k) {
    return in_node(f, k)->op == OP_const;
}

static bool const_is(const Fold *f, int k, float x) {
    float c = (float)in_node(f, k)->attr.num;
    return is_const(f, k) && !memcmp(&c, &x, sizeof c);
}

/* Operand j of operand k, if that is an `op`. */
static NodeId inner(const Fold *f, int k, Op op, int j) {
    return in_node(f, k)->op == op ? in_node(f, k)->in[j] : 0;
}

/* ---- arithmetic on constants: what IEEE defines, in f32 -------------------------------------- */

static bool compute(Op op, float a, float b, float c, float *y) {
    switch (op) {
    case OP_neg:
        *y = -a;
        break;
    case OP_abs:
        *y = fabsf(a);
        break;
    case OP_sqrt:
        *y = sqrtf(a);
        break;
    case OP_rsqrt:
        *y = 1.0f / sqrtf(a);
        break;
    case OP_add:
        *y = a + b;
        break;
    case OP_sub:
        *y = a - b;
        break;
    case OP_mul:
        *y = a * b;
        break;
    case OP_div:
        *y = a / b;
        break;
    case OP_max:
        *y = a > b || isnan(a) ? a : b;
        break;
    case OP_min:
        *y = a < b || isnan(a) ? a : b;
        break;
    case OP_lt:
        *y = a < b;
        break;
    case OP_le:
        *y = a <= b;
        break;
    case OP_eq:
        *y = a == b;
        break;
    case OP_select:
        *y = a != 0 ? b : c;
        break;
    default:
        return false;
    }
    return true;
}

static NodeId fold_const(const Fold *f) {
    float x[3] = {0}, y;
    if (!f->n->nin || f->n->nin > 3) return 0;
    for (int k = 0; k < f->n->nin; k++) {
        if (!is_const(f, k)) return 0;
        x[k] = (float)in_node(f, k)->attr.num;
    }
    if (f->n->op == OP_bcast || f->n->op == OP_reshape)
        return g_const(f->g, in_node(f, 0)->attr.num, f->n->type);
    if (!compute(f->n->op, x[0], x[1], x[2], &y)) return 0;
    return g_const(f->g, (double)y, f->n->type);
}

/* ---- identities ------------------------------------------------------------------------------ */

static bool exact_cast(DType from, DType to) {
    return from == to || (to == DT_f32 && (from == DT_bf16 || from == DT_f16));
}

/* A cast of `id` to this type without a node more than it needs: cast(cast(x)) where the inner one
 * loses nothing, also with reshapes between them; 0: it needs a cast of its own. */
static NodeId simple_cast(Graph *g, NodeId id, const Type *type) {
    const Node *in = &g->node[id];
    if (type == in->type) return id;
    while (in->op == OP_reshape) in = &g->node[in->in[0]];
    if (in->op != OP_cast) return 0;
    NodeId x = in->in[0];
    const DType from = g->node[x].type->dtype;
    if (!exact_cast(from, in->type->dtype)) return 0;
    return g_cast(g, g_reshape(g, x, type_with(type, from)), type->dtype);
}

static NodeId fold_cast(const Fold *f) {
    return simple_cast(f->g, f->in[0], f->n->type);
}

static NodeId fold_view(const Fold *f) {
    const Type *x = in_node(f, 0)->type;
    if (f->n->op != OP_slot && f->n->op != OP_part && f->n->type == x) return f->in[0];
    NodeId y = inner(f, 0, OP_reshape, 0);
    return f->n->op == OP_reshape && y ? g_reshape(f->g, y, f->n->type) : 0;
}

/* Stretched twice the same way; a scalar stretches any way. */
static NodeId fold_bcast(const Fold *f) {
    NodeId x = inner(f, 0, OP_bcast, 0);
    if (f->n->type == in_node(f, 0)->type) return f->in[0];
    if (!x) return 0;
    bool scalar = f->g->node[x].type->rank == 0;
    if (!scalar && f->n->attr.i0 != in_node(f, 0)->attr.i0) return 0;
    return graph_add(f->g, OP_bcast, &x, 1, &f->n->attr, f->n->type, 0, NULL);
}

static NodeId fold_add(const Fold *f) {
    NodeId minus;
    if (const_is(f, 0, -0.0f)) return f->in[1];
    if (const_is(f, 1, -0.0f)) return f->in[0];
    if ((minus = inner(f, 1, OP_neg, 0))) return g_op(f->g, OP_sub, f->in[0], minus, 0);
    if ((minus = inner(f, 0, OP_neg, 0))) return g_op(f->g, OP_sub, f->in[1], minus, 0);
    return 0;
}

static NodeId fold_mul(const Fold *f) {
    for (int k = 0; k < 2; k++) {
        if (const_is(f, k, 1)) return f->in[!k];
        if (const_is(f, k, -1)) return g_op(f->g, OP_neg, f->in[!k], 0, 0);
    }
    return 0;
}

/* ---- what moves past products and rotations
 * ----------------------------------------------------- */

/* The node below reshapes and roundings. */
static NodeId below(const Graph *g, NodeId id) {
    while (g->node[id].op == OP_reshape || g->node[id].op == OP_cast) id = g->node[id].in[0];
    return id;
}

/* x * 2^k, or 2^k * x: the place of the constant; -1: something else, or x is a product, whose
 * call takes the factor in. */
static int power_of_two(const Graph *g, NodeId id) {
    const Node *n = &g->node[id];
    if (n->op != OP_mul) return -1;
    for (int k = 0; k < 2; k++) {
        const Node *c = &g->node[n->in[k]];
        int exponent;
        if (c->op != OP_const || fabs(frexp(c->attr.num, &exponent)) != 0.5) continue;
        return g->node[below(g, n->in[!k])].op == OP_matmul ? -1 : k;
    }
    return -1;
}

/* `id` with `x` in place of the node `at` below it. */
static NodeId rebuilt(const Fold *f, NodeId id, NodeId at, NodeId x) {
    if (id == at) return x;
    NodeId in = rebuilt(f, f->g->node[id].in[0], at, x);
    Node n = f->g->node[id];
    NodeId simple = n.op == OP_cast ? simple_cast(f->g, in, n.type) : 0;
    if (simple) return simple;
    return graph_add(f->g, n.op, &in, 1, &n.attr, n.type, n.inst, n.origin);
}

/* (2^k x) y = 2^k (x y): the factor costs nothing in a library call, while 2^k x would be another
 * copy of a gradient.  Every bit is the same but where a number underflows. */
static NodeId fold_matmul(const Fold *f) {
    NodeId in[2] = {f->in[0], f->in[1]};
    double num = 1;
    for (int k = 0; f->final && k < 2; k++) {
        NodeId at = below(f->g, in[k]);
        int c = power_of_two(f->g, at);
        if (c < 0) continue;
        num *= f->g->node[f->g->node[at].in[c]].attr.num;
        in[k] = rebuilt(f, in[k], at, f->g->node[at].in[!c]);
    }
    if (in[0] == f->in[0] && in[1] == f->in[1]) return 0;
    NodeId y = graph_add(f->g, OP_matmul, in, 2, &f->n->attr, NULL, 0, f->n->origin);
    return g_op(f->g, OP_mul, y, g_const(f->g, num, f->n->type), 0);
}

/* Whether both halves of the last axis are equal: rope's cos and sin, what is constant along it. */
static bool halves_equal(const Graph *g, NodeId id, int depth) {
    const Node *n = &g->node[id];
    if (n->op == OP_const) return true;
    if (n->op == OP_table) {
        int half = table_size(n->attr.table) / 2;
        return !memcmp(n->attr.table, n->attr.table + half, sizeof(float) * (size_t)half);
    }
    if (n->op == OP_bcast && (n->attr.i0 == 1 || g->node[n->in[0]].type->rank == 0)) return true;
    if (op_info[n->op].kind != KIND_MAP || n->op == OP_rotate_half || n->op == OP_uniform)
        return false;
    for (int i = 0; i < n->nin; i++)
        if (!depth || !halves_equal(g, n->in[i], depth - 1)) return false;
    return true;
}

/* rotate_half(x y) = rotate_half(x) y where y's halves are equal: then only x is read crosswise,
 * which a kernel can do with what is stored. */
static NodeId fold_rotate(const Fold *f) {
    const Node *x = in_node(f, 0);
    if (x->op != OP_mul) return 0;
    for (int k = 0; k < 2; k++) {
        NodeId plain = x->in[k], other = x->in[!k];
        if (!halves_equal(f->g, plain, 8)) continue;
        NodeId rotated = g_op(f->g, OP_rotate_half, other, 0, 0);
        return k ? g_op(f->g, OP_mul, rotated, plain, 0) : g_op(f->g, OP_mul, plain, rotated, 0);
    }
    return 0;
}

static NodeId fold_identity(const Fold *f) {
    NodeId minus;
    switch (f->n->op) {
    case OP_cast:
        return fold_cast(f);
    case OP_reshape:
    case OP_rows:
    case OP_cols:
        return fold_view(f);
    case OP_bcast:
        return fold_bcast(f);
    case OP_neg:
        return inner(f, 0, OP_neg, 0);
    case OP_add:
        return fold_add(f);
    case OP_sub:
        if ((minus = inner(f, 1, OP_neg, 0))) return g_op(f->g, OP_add, f->in[0], minus, 0);
        return const_is(f, 1, 0.0f) ? f->in[0] : 0;
    case OP_mul:
        return fold_mul(f);
    case OP_div:
        return const_is(f, 1, 1) ? f->in[0] : 0;
    case OP_max:
    case OP_min:
        return f->in[0] == f->in[1] ? f->in[0] : 0;
    case OP_select:
        if (is_const(f, 0)) return f->in[in_node(f, 0)->attr.num != 0 ? 1 : 2];
        return f->in[1] == f->in[2] ? f->in[1] : 0;
    case OP_stop:
        return f->final ? f->in[0] : 0;
    case OP_matmul:
        return fold_matmul(f);
    case OP_rotate_half:
        return fold_rotate(f);
    default:
        return 0;
    }
}

int pass_fold(Pass *pass, Unit *u) {
    (void)pass;
    const Graph *from = u->g;
    Graph *to = graph_new(u->arena, from->diags);
    NodeId *map = NEW_ARRAY(u->arena, NodeId, from->n);
    bool *live = NEW_ARRAY(u->arena, bool, from->n);
    graph_live(from, live);
    bool final = u->kind != UNIT_TRAIN || graph_find(from, OP_state, "grads");
    int changes = 0;
    for (NodeId id = 1; id < from->n; id++) {
        const Node *n = &from->node[id];
        if (!live[id]) continue;
        NodeId in[MAX_IN] = {0};
        for (int k = 0; k < n->nin; k++) in[k] = map[n->in[k]];
        Fold f = {.g = to, .final = final, .n = n, .in = in};
        graph_at(to, n->origin);
        NodeId folded = fold_const(&f);
        if (!folded) folded = fold_identity(&f);
        changes += folded != 0;
        map[id] = folded ? folded : graph_copy(to, from, id, map);
    }
    graph_at(to, NULL);
    for (int i = 0; i < from->nroot; i++) graph_root(to, map[from->root[i]]);
    unit_replace_graph(u, to, map);
    map = NEW_ARRAY(u->arena, NodeId, to->n); /* what was passed over is dead now */
    Graph *clean = graph_clean(u->arena, to, false, map);
    unit_replace_graph(u, clean, map);
    return changes;
}
