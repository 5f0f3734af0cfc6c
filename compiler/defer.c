/* defer.c: the head's gradient in its forward sweep.
 *
 * The adjoint of h is c[r] * d logp[r] / d h[r]: the coefficient c comes from the loss, the rest
 * is known as soon as the logits are.  So linear_logprob can leave d logp / d h [R,D] behind (part
 * 6) while the logits of a chunk exist, and the backward is one multiplication instead of
 * computing all logits again. Legal when nothing wants dW, which would need c inside the sum over
 * rows.  Statistics other than logp have no gradient.  Relies on graph.c.  Promises: the same
 * gradient but for where c is multiplied.
 */
#include "dpoc.h"

typedef struct Defer {
    Unit *u;
    const Graph *from;
    Graph *to;
    NodeId *map;
    int changes;
} Defer;

enum { H, W, TARGET, LSE, C, PART_LSE = 1, PART_DW = 1, PART_SLOPE = 6 };

/* The forward whose logits the backward would compute again; 0: there is none. */
static NodeId forward_of(const Graph *g, const Node *bwd) {
    const Node *lse = node(g, bwd->in[LSE]);
    if (lse->op != OP_part || lse->attr.i0 != PART_LSE) return 0;
    const Node *f = node(g, lse->in[0]);
    bool same = f->op == OP_linear_logprob && f->in[H] == bwd->in[H] && f->in[W] == bwd->in[W] &&
                f->in[TARGET] == bwd->in[TARGET];
    return same ? lse->in[0] : 0;
}

static bool wants_dw(const Graph *g, const bool *live, NodeId bwd) {
    for (NodeId id = bwd + 1; id < g->n; id++)
        if (live[id] && node(g, id)->op == OP_part && node(g, id)->in[0] == bwd) return true;
    return false;
}

static NodeId deferred(Defer *d, NodeId id, NodeId forward) {
    const Node *n = node(d->from, id);
    NodeId slope = g_part(d->to, d->map[forward], PART_SLOPE);
    NodeId c = g_bcast(d->to, d->map[n->in[C]], n->type, true);
    d->changes++;
    return g_op(d->to, OP_mul, slope, c, 0);
}

static NodeId rewritten(Defer *d, const bool *live, NodeId id) {
    const Node *n = node(d->from, id);
    if (n->op != OP_linear_logprob_bwd) return 0;
    NodeId forward = forward_of(d->from, n);
    bool dw = wants_dw(d->from, live, id);
    if (forward && !dw) return deferred(d, id, forward);
    unit_refuse(d->u, "defer", id, dw ? "the weight has a gradient too" : "no forward beside it");
    return 0;
}

int pass_defer(Pass *pass, Unit *u) {
    (void)pass;
    Arena *arena = arena_new();
    int n = u->g->n;
    bool *live = NEW_ARRAY(arena, bool, n);
    Defer d = {.u = u, .from = u->g, .to = graph_new(u->arena, u->g->diags)};
    d.map = NEW_ARRAY(arena, NodeId, n);
    d.to->intern = true;
    graph_live(u->g, live);
    for (NodeId id = 1; id < n; id++) {
        if (!live[id]) continue;
        graph_at(d.to, node(u->g, id)->origin);
        d.map[id] = rewritten(&d, live, id);
        if (!d.map[id]) d.map[id] = graph_copy(d.to, u->g, id, d.map);
    }
    for (int i = 0; i < u->g->nroot; i++) graph_root(d.to, d.map[u->g->root[i]]);
    if (d.changes) unit_replace_graph(u, d.to, d.map);
    arena_free(arena);
    return d.changes;
}
