/* grad.c: reverse-mode differentiation, and the pass that turns a training graph into a training
 * step.
 *
 * Walks the graph from the loss to its leaves once; each op's vjp rule (vjp.c) reads the adjoint of
 * its node and adds to those of its operands.  Only nodes between a wanted leaf and the loss are
 * visited. Relies on graph.c, vjp.c, update.c.  Promises: adjoints are f32; a leaf used twice has
 * one summed adjoint, added in a fixed order; backward nodes carry the origin of the node they
 * differentiate.
 */
#include "dpoc.h"

struct Grad {
    Graph *g;
    int n; /* nodes that existed before: only these have adjoints */
    bool *wanted;
    NodeId *adjoint;
};

void vjp_none(Grad *G, NodeId y);

void vjp_none(Grad *G, NodeId y) {
    (void)G;
    (void)y;
}

NodeId grad_adjoint(Grad *G, NodeId y) {
    return G->adjoint[y];
}

bool grad_wanted(const Grad *G, NodeId x) {
    return G->wanted[x];
}

void grad_add(Grad *G, NodeId x, NodeId dx) {
    if (!G->wanted[x]) return;
    NodeId sum = G->adjoint[x];
    G->adjoint[x] = sum ? g_op(G->g, OP_add, sum, dx, 0) : dx;
}

Graph *grad_graph(Grad *G) {
    return G->g;
}

/* Operands pass it on through differentiable ops. */
void grad_paths(const Graph *g, const NodeId *leaf, int n, bool *wanted) {
    for (int i = 0; i < n; i++) wanted[leaf[i]] = leaf[i] != 0;
    for (NodeId id = 1; id < g->n; id++) {
        const Node *at = &g->node[id];
        if (op_info[at->op].vjp == vjp_none) continue;
        for (int k = 0; k < at->nin; k++)
            if (wanted[at->in[k]]) wanted[id] = true;
    }
}

void grad_of(Graph *g, NodeId loss, NodeId seed, const NodeId *leaf, int n, NodeId *out) {
    Arena *scratch = arena_new();
    Grad G = {.g = g, .n = g->n};
    G.wanted = NEW_ARRAY(scratch, bool, g->n);
    G.adjoint = NEW_ARRAY(scratch, NodeId, g->n);
    grad_paths(g, leaf, n, G.wanted);
    grad_add(&G, loss, seed);
    const Origin *at = g->at;
    for (NodeId id = loss; id > 0; id--) {
        if (!G.adjoint[id]) continue;
        graph_at(g, g->node[id].origin);
        op_info[g->node[id].op].vjp(&G, id);
    }
    graph_at(g, at);
    for (int i = 0; i < n; i++) out[i] = G.adjoint[leaf[i]];
    arena_free(scratch);
}

/* ---- the pass -------------------------------------------------------------------------------- */

/* Adds each trained tensor's gradient to its place in "grads"; returns how many have one. */
static int accumulate_grads(Unit *u, const NodeId *d) {
    Graph *g = u->g;
    const Type *flat = type_vec(DT_f32, dim_const(u->nparams));
    int found = 0;
    for (int i = 0; i < u->ntrained; i++) {
        const Trained *t = &u->trained[i];
        if (!d[i]) {
            diag_warn(u->diags, "untrained", t->loc, "the loss does not depend on %s of %s",
                      t->tensor, t->source);
            continue;
        }
        graph_at(g, g->node[t->leaf].origin);
        NodeId grads = g_state(g, "grads", PHASE_MICRO, ROLE_GRAD, flat);
        NodeId slot = g_slot(g, grads, t->offset, g->node[d[i]].type);
        g_effect(g, OP_accumulate, slot, d[i]);
        found++;
    }
    graph_at(g, NULL);
    return found;
}

static void zero_state(Graph *g, const char *name, Role role, int64_t n) {
    const Type *type = type_vec(DT_f32, dim_const(n));
    g_effect(g, OP_assign, g_state(g, name, PHASE_STEP, role, type), g_const(g, 0, type));
}

int pass_grad(Pass *pass, Unit *u) {
    (void)pass;
    if (u->kind != UNIT_TRAIN) return 0;
    NodeId *leaf = NEW_ARRAY(u->arena, NodeId, u->ntrained);
    NodeId *d = NEW_ARRAY(u->arena, NodeId, u->ntrained);
    for (int i = 0; i < u->ntrained; i++) leaf[i] = u->trained[i].leaf;
    grad_of(u->g, u->loss, u->seed, leaf, u->ntrained, d);
    int found = accumulate_grads(u, d);
    if (!found) {
        Loc loc = u->ntrained ? u->trained[0].loc : (Loc){0};
        diag(u->diags, DIAG_ERROR, loc, "nothing trains: the loss depends on no trained tensor");
        return -1;
    }
    zero_state(u->g, "grads", ROLE_GRAD, u->nparams);
    if (u->nmetrics) zero_state(u->g, "metrics", ROLE_OUTPUT, u->nmetrics);
    update_build(u);
    NodeId *map = NEW_ARRAY(u->arena, NodeId, u->g->n);
    Graph *clean = graph_clean(u->arena, u->g, false, map);
    unit_replace_graph(u, clean, map);
    return found;
}
