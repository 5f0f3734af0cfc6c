/* place.c: where a value lies once its views are looked through, and who reads a value.
 *
 * Relies on types.c and runtime/dim.c.  Promises: place_of follows reshape, rows, cols and slot
 * down to the leaf or stored node whose buffer holds the value, as an offset and one distance
 * between rows; Uses counts only what the roots reach.
 */
#include "dpoc.h"

#include <stdlib.h>

static bool dense(const Type *t, int64_t ld) {
    Dim rows = type_rows(t);
    return ld == type_cols(t) || (dim_is_const(rows) && rows.c <= 1);
}

bool place_dense(const Graph *g, NodeId id) {
    return dense(node(g, id)->type, place_of(g, id).ld);
}

/* Elements from one step of the first axis to the next. */
static int64_t first_stride(const Type *t, int64_t ld) {
    if (t->rank == 1) return type_cols(t) == 1 ? ld : 1;
    for (int i = 1; i < t->rank - 1; i++) ld *= t->dim[i].c;
    return ld;
}

static Place view_place(const Graph *g, NodeId id) {
    const Node *n = node(g, id);
    const Type *from = node(g, n->in[0])->type;
    int64_t cols = type_cols(n->type);
    Place p = place_of(g, n->in[0]);
    switch (n->op) {
    case OP_reshape:
        if (dense(from, p.ld))
            p.ld = cols;
        else if (cols != type_cols(from))
            p = (Place){.base = id, .ld = cols};
        return p;
    case OP_rows: {
        int64_t stride = first_stride(from, p.ld);
        p.offset = dim_add(p.offset, dim_scale(n->attr.dim, stride));
        if (n->type->rank == 1) {
            if (cols != 1 && stride != 1)
                abort(); /* a few rows of a strided vector: none makes it */
            p.ld = cols == 1 ? stride : cols;
        }
        return p;
    }
    case OP_cols:
        p.offset = dim_add(p.offset, dim_const(n->attr.i0));
        return p;
    default: /* OP_slot: its operand is a flat leaf */
        p.offset = dim_add(p.offset, dim_const(n->attr.i0));
        p.ld = cols;
        return p;
    }
}

Place place_of(const Graph *g, NodeId id) {
    const Node *n = node(g, id);
    if (op_info[n->op].kind == KIND_VIEW && n->op != OP_part) return view_place(g, id);
    return (Place){.base = id, .ld = type_cols(n->type)};
}

Uses uses_of(Arena *arena, const Graph *g) {
    bool *live = NEW_ARRAY(arena, bool, g->n);
    int *first = NEW_ARRAY(arena, int, g->n + 1);
    graph_live(g, live);
    for (NodeId id = 1; id < g->n; id++)
        for (int i = 0; live[id] && i < g->node[id].nin; i++) first[g->node[id].in[i] + 1]++;
    for (NodeId id = 0; id < g->n; id++) first[id + 1] += first[id];
    NodeId *user = NEW_ARRAY(arena, NodeId, first[g->n]);
    int *fill = NEW_ARRAY(arena, int, g->n);
    for (NodeId id = 1; id < g->n; id++)
        for (int i = 0; live[id] && i < g->node[id].nin; i++) {
            NodeId in = g->node[id].in[i];
            user[first[in] + fill[in]++] = id;
        }
    return (Uses){first, user};
}
