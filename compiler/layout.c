/* layout.c: strided views that a reader can't address become copies.
 *
 * Columns of a matrix are a view whose rows are further apart than they are long.  Maps,
 * reductions, products and gathers read such rows where they are; a reshape that changes the rows,
 * a broadcast, and kernels that take heads [T,H,S] need them dense.  Only for those a copy is
 * written.  Relies on place.c.  Promises: after it every view has a place, and no value changes.
 */
#include "dpoc.h"

/* Whether the operand is a strided view, perhaps seen through widening casts. */
static bool strided(const Graph *g, NodeId id) {
    while (node(g, id)->op == OP_cast && node(g, id)->type->dtype == DT_f32)
        id = node(g, id)->in[0];
    return op_info[node(g, id)->op].kind == KIND_VIEW && !place_dense(g, id);
}

static bool needs_dense(const Graph *g, const Node *user, int k) {
    const Type *t = node(g, user->in[k])->type;
    if (!strided(g, user->in[k])) return false;
    if (op_info[user->op].kind == KIND_CUSTOM) return t->rank > 2;
    if (user->op == OP_reshape) return type_cols(user->type) != type_cols(t);
    return user->op == OP_bcast;
}

/* A map that changes nothing: its value has storage of its own. */
static NodeId dense_copy(Graph *g, NodeId id) {
    DType t = node(g, id)->type->dtype;
    if (t == DT_f32) return g_op(g, OP_stop, id, 0, 0);
    return g_cast(g, g_cast(g, id, DT_f32), t);
}

int pass_layout(Pass *pass, Unit *u) {
    (void)pass;
    Arena *arena = arena_new();
    const Graph *from = u->g;
    Graph *to = graph_new(u->arena, from->diags);
    NodeId *map = NEW_ARRAY(arena, NodeId, from->n);
    bool *live = NEW_ARRAY(arena, bool, from->n);
    graph_live(from, live);
    to->intern = true;
    int copies = 0;
    for (NodeId id = 1; id < from->n; id++) {
        const Node *n = node(from, id);
        NodeId whole[MAX_IN];
        if (!live[id]) continue;
        graph_at(to, n->origin);
        for (int i = 0; i < n->nin; i++) {
            whole[i] = map[n->in[i]];
            if (!needs_dense(from, n, i)) continue;
            map[n->in[i]] = dense_copy(to, map[n->in[i]]);
            copies++;
        }
        map[id] = graph_copy(to, from, id, map);
        for (int i = n->nin - 1; i >= 0; i--) map[n->in[i]] = whole[i];
    }
    for (int i = 0; i < from->nroot; i++) graph_root(to, map[from->root[i]]);
    if (copies) unit_replace_graph(u, to, map);
    arena_free(arena);
    return copies;
}
