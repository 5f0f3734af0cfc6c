/* gemm.c: every matmul becomes one library call, with what the library does on the way.
 *
 * Operands and result keep their layout (views are leading dimensions).  A call takes in, in this
 * order: a constant factor (alpha), a bias, the sum with another product (beta = 1 in that
 * product's buffer), and what becomes of the result: rounding to bf16, or a store or accumulation
 * into state.  Only nodes that nothing else reads are taken in, so no value is lost and every
 * rounding stays where the graph has it: f32 arithmetic is done in f32.  Relies on place.c.
 * Promises: one group a matmul, also when switched off (then of the matmul alone).
 */
#include "dpoc.h"

typedef struct Gemms {
    Unit *u;
    const Graph *g;
    Uses uses;
    bool *ends;     /* by node id: the last node of a group made so far */
    NodeId *waiter; /* by product: the product that is made right after it */
    int changes;
} Gemms;

typedef struct Chain { /* a call under construction */
    Group group;
    int cap;
    NodeId last;
} Chain;

static void take_in(Gemms *x, Chain *c, NodeId id) {
    PUSH(x->u->arena, c->group.nodes, c->group.nnodes, c->cap, id);
    c->last = id;
    x->changes++;
}

/* The only reader of `id` in its phase, through reshapes; 0: several, or none.  `at`: what it
 * reads. */
static NodeId only_user(const Gemms *x, NodeId id, NodeId *at) {
    for (;;) {
        if (use_count(&x->uses, id) != 1) return 0;
        NodeId user = x->uses.user[x->uses.first[id]];
        *at = id;
        if (node(x->g, user)->phase != node(x->g, id)->phase) return 0;
        if (node(x->g, user)->op != OP_reshape) return user;
        id = user;
    }
}

/* The constant that fills `id`, through broadcasts. */
static bool filled(const Graph *g, NodeId id, double *num) {
    while (node(g, id)->op == OP_bcast || node(g, id)->op == OP_reshape) id = node(g, id)->in[0];
    *num = node(g, id)->attr.num;
    return node(g, id)->op == OP_const;
}

static void fold_alpha(Gemms *x, Chain *c) {
    NodeId at, user;
    while ((user = only_user(x, c->last, &at)) && node(x->g, user)->op == OP_mul) {
        const Node *n = node(x->g, user);
        double num;
        if (n->in[0] == n->in[1] || !filled(x->g, n->in[n->in[0] == at], &num)) return;
        c->group.gemm.alpha *= (float)num;
        take_in(x, c, user);
    }
}

static void fold_bias(Gemms *x, Chain *c) {
    NodeId at, user = only_user(x, c->last, &at);
    if (!user || node(x->g, user)->op != OP_add) return;
    const Node *n = node(x->g, user);
    NodeId spread = n->in[n->in[0] == at];
    const Node *b = node(x->g, spread);
    if (b->op != OP_bcast || b->attr.i0 != 0) return;
    const Type *t = node(x->g, b->in[0])->type;
    double num;
    if (!dim_equal(type_count(t), c->group.n) || filled(x->g, spread, &num)) return;
    if (!place_dense(x->g, b->in[0])) return;
    c->group.bias = b->in[0];
    c->group.gemm.bias = true;
    take_in(x, c, user);
}

static void fold_add(Gemms *x, Chain *c) {
    NodeId at, there, user = only_user(x, c->last, &at);
    if (!user || node(x->g, user)->op != OP_add || c->group.bias) return;
    const Node *n = node(x->g, user);
    NodeId other = place_of(x->g, n->in[n->in[0] == at]).base;
    const Node *o = node(x->g, other);
    if (n->in[0] == n->in[1] || !x->ends[other] || o->type->dtype != DT_f32 ||
        o->phase != n->phase || !dim_equal(type_count(o->type), type_count(n->type)))
        return;
    if (only_user(x, other, &there) != user) {
        unit_refuse(x->u, "gemm", c->last, "not added in place: %%%d is read elsewhere too", other);
        return;
    }
    c->group.inplace = other;
    c->group.gemm.beta = 1;
    take_in(x, c, user);
}

static void fold_result(Gemms *x, Chain *c) {
    NodeId at, user = only_user(x, c->last, &at);
    if (!user || c->group.inplace) return;
    const Node *n = node(x->g, user);
    if (n->op == OP_cast && n->type->dtype == DT_bf16) {
        if (c->group.gemm.a != DT_bf16) return;    /* no library has such a product */
        if (x->u->target->cuda && c->group.bias) { /* cuBLASLt: a bias has the result's type */
            unit_refuse(x->u, "gemm", c->last, "not rounded by the product: its bias is f32");
            return;
        }
        c->group.gemm.c = DT_bf16;
        take_in(x, c, user);
    } else if (op_info[n->op].kind == KIND_EFFECT && n->in[1] == at) {
        Place target = place_of(x->g, n->in[0]);
        bool rows_kept = n->type == node(x->g, c->group.nodes[0])->type;
        if (n->type->dtype != DT_f32 || !(rows_kept || place_dense(x->g, n->in[0]))) return;
        if (rows_kept) c->group.gemm.ldc = target.ld;
        c->group.gemm.beta = n->op == OP_accumulate ? 1.0f : 0.0f;
        take_in(x, c, user);
    }
}

static void add_in(Unit *u, Group *group, NodeId id) {
    if (!id) return;
    NodeId base = place_of(u->g, id).base;
    for (int i = 0; i < group->nins; i++)
        if (group->ins[i] == base) return;
    group->ins[group->nins++] = base;
}

static Group finish(Gemms *x, Chain *c) {
    Unit *u = x->u;
    Group group = c->group;
    const Node *last = node(u->g, c->last);
    bool effect = op_info[last->op].kind == KIND_EFFECT;
    group.c = effect ? last->in[0] : c->last;
    group.phase = last->phase;
    group.ins = NEW_ARRAY(u->arena, NodeId, 4);
    add_in(u, &group, group.a);
    add_in(u, &group, group.b);
    add_in(u, &group, group.bias);
    add_in(u, &group, group.inplace);
    group.outs = NEW(u->arena, NodeId);
    group.outs[0] = c->last;
    group.nouts = 1;
    return group;
}

static Group gemm_group(Gemms *x, NodeId id, bool off) {
    const Graph *g = x->g;
    const Node *n = node(g, id);
    const Node *a = node(g, n->in[0]), *b = node(g, n->in[1]);
    Chain c = {.group = {.kind = GROUP_GEMM,
                         .a = n->in[0],
                         .b = n->in[1],
                         .m = n->type->dim[0],
                         .n = n->type->dim[1],
                         .k = a->type->dim[n->attr.i0 ? 0 : 1]}};
    c.group.gemm = (Gemm){.a = a->type->dtype,
                          .b = b->type->dtype,
                          .c = DT_f32,
                          .ta = n->attr.i0 != 0,
                          .tb = n->attr.i1 != 0,
                          .lda = place_of(g, n->in[0]).ld,
                          .ldb = place_of(g, n->in[1]).ld,
                          .ldc = type_cols(n->type),
                          .alpha = 1};
    take_in(x, &c, id);
    if (!off) {
        fold_alpha(x, &c);
        fold_bias(x, &c);
        fold_add(x, &c);
        fold_result(x, &c);
    }
    x->ends[c.last] = true;
    return finish(x, &c);
}

/* x W + (x A) B: the product that `id` waits for, if it is added to one that is made later and has
 * fewer terms (0: none).  The smaller is bound by memory: it should only write, and the larger,
 * which has time for that, should add in place. */
static NodeId smaller_partner(const Gemms *x, NodeId id) {
    const Graph *g = x->g;
    NodeId at, user = only_user(x, id, &at);
    if (!user || node(g, user)->op != OP_add || node(g, id)->attr.i0) return 0;
    const Node *add = node(g, user);
    NodeId other = place_of(g, add->in[add->in[0] == at]).base;
    double num;
    for (const Node *n = node(g, other); n->op == OP_mul; n = node(g, other)) {
        const bool second = filled(g, n->in[0], &num);
        if (!second && !filled(g, n->in[1], &num)) return 0;
        other = place_of(g, n->in[second]).base;
    }
    const Node *a = node(g, id), *b = node(g, other);
    if (other <= id || b->op != OP_matmul || b->attr.i0 || b->phase != a->phase) return 0;
    const Dim mine = node(g, a->in[0])->type->dim[1], its = node(g, b->in[0])->type->dim[1];
    for (NodeId end = other; end != user;)
        if (!(end = only_user(x, end, &at))) return 0;
    return dim_is_const(mine) && dim_is_const(its) && its.c < mine.c ? other : 0;
}

int pass_gemm(Pass *pass, Unit *u) {
    Arena *arena = arena_new();
    Gemms x = {.u = u, .g = u->g, .uses = uses_of(arena, u->g)};
    bool *live = NEW_ARRAY(arena, bool, u->g->n);
    x.ends = NEW_ARRAY(arena, bool, u->g->n);
    x.waiter = NEW_ARRAY(arena, NodeId, u->g->n);
    graph_live(u->g, live);
    int cap = 0;
    u->groups = NULL;
    u->ngroups = 0;
    for (NodeId id = 1; id < u->g->n; id++) {
        if (!live[id] || node(u->g, id)->op != OP_matmul) continue;
        const NodeId partner = pass->off ? 0 : smaller_partner(&x, id);
        if (partner) x.waiter[partner] = id;
        for (NodeId next = partner ? 0 : id; next; next = x.waiter[next]) {
            Group group = gemm_group(&x, next, pass->off);
            PUSH(u->arena, u->groups, u->ngroups, cap, group);
        }
    }
    arena_free(arena);
    return x.changes;
}
