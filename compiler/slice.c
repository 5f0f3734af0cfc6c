/* slice.c: the last layer after attention, and the head, only for scored rows.
 *
 * take(f(x), row) is f(take(x, row)) when row r of f needs only row r of its operands.  So the
 * gather of scored rows moves up through maps, reductions over columns, products (left operand),
 * broadcasts and reshapes that keep rows, as long as nothing else reads the values it passes; it
 * stops at attention, where rows meet, and at values that all rows need.  Only the inputs "row" and
 * "last" (rows that a prompt ends in) are moved: their numbers are never -1, for which take gives
 * zeros while f of zeros need not be zero.
 * Relies on graph.c.  Promises: the same values, fewer rows.
 */
#include "dpoc.h"

#include <string.h>

typedef struct Slice {
    Unit *u;
    const Graph *from;
    Graph *to;
    Dim rows;       /* of the values before the gather */
    NodeId index;   /* "row" or "last" in `from` */
    bool *seed;     /* take(.., row) */
    bool *sliced;   /* computed for scored rows only */
    NodeId *map;    /* whole values in `to` */
    NodeId *scored; /* their scored rows */
    int moved;
} Slice;

/* Whether rows of the value are token rows. */
static bool by_row(const Slice *s, NodeId id) {
    const Type *t = node(s->from, id)->type;
    return t->rank > 0 && dim_equal(t->dim[0], s->rows);
}

/* Whether row r of the value needs only row r of those operands that have rows. */
static bool row_wise(const Slice *s, NodeId id) {
    const Node *n = node(s->from, id);
    if (!by_row(s, id)) return false;
    switch (n->op) {
    case OP_sum_cols:
    case OP_max_cols:
    case OP_cols:
        return true;
    case OP_reshape:
        return by_row(s, n->in[0]);
    case OP_matmul:
        return !n->attr.i0;
    case OP_take:
        return by_row(s, n->in[1]) && !by_row(s, n->in[0]);
    default:
        return op_info[n->op].kind == KIND_MAP;
    }
}

/* Made anew for scored rows wherever they are needed. */
static bool spread(const Slice *s, NodeId id) {
    Op op = node(s->from, id)->op;
    return by_row(s, id) && (op == OP_const || op == OP_bcast);
}

static bool find_seeds(Slice *s, const bool *live) {
    for (NodeId id = 1; id < s->from->n && !s->index; id++) {
        const Node *n = node(s->from, id);
        bool row =
            n->op == OP_input && (!strcmp(n->attr.name, "row") || !strcmp(n->attr.name, "last"));
        if (live[id] && row) s->index = id;
    }
    bool any = false;
    for (NodeId id = 1; id < s->from->n && s->index; id++) {
        const Node *n = node(s->from, id);
        if (!live[id] || n->op != OP_take || n->in[1] != s->index) continue;
        Dim rows = node(s->from, n->in[0])->type->dim[0];
        if (dim_is_const(rows) || (any && !dim_equal(rows, s->rows))) continue;
        s->rows = rows;
        s->seed[id] = any = true;
    }
    return any;
}

/* From the last node up: a value is sliced when all its readers are, or are the gathers
 * themselves. */
static void find_sliced(Slice *s, const Uses *uses) {
    for (NodeId id = s->from->n - 1; id > 0; id--) {
        if (!use_count(uses, id) || !row_wise(s, id)) continue;
        bool all = true;
        for (int i = uses->first[id]; i < uses->first[id + 1]; i++)
            all &= s->seed[uses->user[i]] || s->sliced[uses->user[i]];
        s->sliced[id] = all;
        s->moved += all;
    }
}

/* Node `id` on scored rows, of operands that have theirs already. */
static NodeId rebuild(Slice *s, NodeId id, const NodeId *in) {
    const Node *n = node(s->from, id);
    Type t = *n->type;
    t.dim[0] = node(s->from, s->index)->type->dim[0];
    const Type *given = type_of(t.dtype, t.rank, t.dim);
    return graph_add(s->to, n->op, in, n->nin, &n->attr, given, n->inst, n->origin);
}

static NodeId scored_rows(Slice *s, NodeId id) {
    const Node *n = node(s->from, id);
    if (s->scored[id]) return s->scored[id];
    if (s->sliced[id] || spread(s, id)) {
        NodeId in[MAX_IN];
        for (int i = 0; i < n->nin; i++)
            in[i] = by_row(s, n->in[i]) ? scored_rows(s, n->in[i]) : s->map[n->in[i]];
        s->scored[id] = rebuild(s, id, in);
    } else {
        NodeId in[] = {s->map[id], s->map[s->index]};
        s->scored[id] = graph_add(s->to, OP_take, in, 2, NULL, NULL, 0, n->origin);
    }
    return s->scored[id];
}

static void copy(Slice *s, NodeId id) {
    const Node *n = node(s->from, id);
    if (s->map[id]) return;
    if (s->seed[id])
        s->map[id] = scored_rows(s, n->in[0]);
    else if (s->sliced[id])
        scored_rows(s, id);
    else
        s->map[id] = graph_copy(s->to, s->from, id, s->map);
}

int pass_slice(Pass *pass, Unit *u) {
    (void)pass;
    Arena *arena = arena_new();
    int n = u->g->n;
    bool *live = NEW_ARRAY(arena, bool, n);
    Slice s = {.u = u, .from = u->g};
    s.seed = NEW_ARRAY(arena, bool, n);
    s.sliced = NEW_ARRAY(arena, bool, n);
    s.map = NEW_ARRAY(arena, NodeId, n);
    s.scored = NEW_ARRAY(arena, NodeId, n);
    graph_live(u->g, live);
    if (find_seeds(&s, live)) {
        Uses uses = uses_of(arena, u->g);
        find_sliced(&s, &uses);
    }
    if (s.moved) {
        s.to = graph_new(u->arena, u->g->diags);
        s.to->intern = true;
        s.map[s.index] = graph_copy(s.to, u->g, s.index, s.map);
        for (NodeId id = 1; id < n; id++)
            if (live[id]) copy(&s, id);
        for (int i = 0; i < u->g->nroot; i++) graph_root(s.to, s.map[u->g->root[i]]);
        unit_replace_graph(u, s.to, s.map);
    }
    arena_free(arena);
    return s.moved;
}
