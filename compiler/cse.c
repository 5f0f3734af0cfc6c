/* cse.c: equal nodes become one.
 *
 * Copies the live graph with interning on, operands of commutative ops in one order.  This alone
 * makes policy and reference a single computation up to the first adapter.  Relies on graph.c.
 * Promises: effects and nodes with different inst stay apart; a merged node keeps all its origins.
 */
#include "dpoc.h"

/* Sums and products of two values do not depend on their order, bit for bit. */
static NodeId copy_ordered(Graph *to, const Graph *from, NodeId id, const NodeId *map) {
    const Node *n = &from->node[id];
    bool commutes = n->op == OP_add || n->op == OP_mul || n->op == OP_eq;
    if (!commutes || map[n->in[0]] <= map[n->in[1]]) return graph_copy(to, from, id, map);
    NodeId in[2] = {map[n->in[1]], map[n->in[0]]};
    return graph_add(to, n->op, in, 2, &n->attr, n->type, n->inst, n->origin);
}

int pass_cse(Pass *pass, Unit *u) {
    (void)pass;
    const Graph *from = u->g;
    Graph *to = graph_new(u->arena, from->diags);
    to->intern = true;
    NodeId *map = NEW_ARRAY(u->arena, NodeId, from->n);
    bool *live = NEW_ARRAY(u->arena, bool, from->n);
    graph_live(from, live);
    int before = 0;
    for (NodeId id = 1; id < from->n; id++) {
        if (!live[id]) continue;
        before++;
        map[id] = copy_ordered(to, from, id, map);
    }
    for (int i = 0; i < from->nroot; i++) graph_root(to, map[from->root[i]]);
    int after = to->n - 1; /* replacing may append the seed */
    unit_replace_graph(u, to, map);
    return before - after;
}
