/* share.c: policy and reference go through the model together, weight by weight.
 *
 * The two forwards read the same frozen weights.  As built, one comes after the other; here their
 * nodes are sorted by the weights they have reached, so that what both do with a weight stands side
 * by side: then one dequantization serves both (quant), and neither waits for the other.  The time
 * of a node is the greatest of its operands' and of the place of the weights it reads, in the order
 * of their first readers; equal times keep their order.  Nothing is computed differently.
 * Relies on unit_directions.  Promises: only values that the loss or a metric needs move; slopes
 * that only the backward reads stay behind them.
 */
#include "dpoc.h"

typedef struct Share {
    Unit *u;
    const Graph *g;
    bool *early;  /* computed by the forward of a micro-batch */
    NodeId *leaf; /* of a weight and of views and casts of it: the weight; else 0 */
    int *place;   /* of a weight, from 1 */
    int *time;
    int last; /* the greatest */
} Share;

static void find_times(Share *s) {
    int weights = 0;
    for (NodeId id = 1; id < s->g->n; id++) {
        const Node *n = node(s->g, id);
        bool passes = n->op == OP_cast || op_info[n->op].kind == KIND_VIEW;
        s->leaf[id] = n->op == OP_weight ? id : passes ? s->leaf[n->in[0]] : 0;
        if (!s->early[id]) continue;
        for (int i = 0; i < n->nin; i++) {
            NodeId leaf = s->leaf[n->in[i]];
            if (leaf && !s->place[leaf]) s->place[leaf] = ++weights;
            int time = leaf ? s->place[leaf] : s->time[n->in[i]];
            if (time > s->time[id]) s->time[id] = time;
        }
        if (s->time[id] > s->last) s->last = s->time[id];
    }
}

/* The nodes in their new order: before the micro-batch, its forward by time, all else. */
static int sort(Share *s, const bool *live, Arena *arena, NodeId *out) {
    int n = 0, *next = NEW_ARRAY(arena, int, s->last + 2); /* by time: where the next goes */
    for (NodeId id = 1; id < s->g->n; id++) {
        if (!live[id]) continue;
        if (node(s->g, id)->phase < PHASE_MICRO) out[n++] = id;
        if (s->early[id]) next[s->time[id] + 1]++;
    }
    next[0] = n;
    for (int t = 0; t <= s->last; t++) next[t + 1] += next[t];
    n = next[s->last + 1];
    for (NodeId id = 1; id < s->g->n; id++) {
        if (!live[id]) continue;
        if (s->early[id])
            out[next[s->time[id]]++] = id;
        else if (node(s->g, id)->phase >= PHASE_MICRO)
            out[n++] = id;
    }
    return n;
}

int pass_share(Pass *pass, Unit *u) {
    (void)pass;
    Arena *arena = arena_new();
    const Graph *g = u->g;
    Share s = {.u = u, .g = g};
    s.early = NEW_ARRAY(arena, bool, g->n);
    s.leaf = NEW_ARRAY(arena, NodeId, g->n);
    s.place = NEW_ARRAY(arena, int, g->n);
    s.time = NEW_ARRAY(arena, int, g->n);
    bool *live = NEW_ARRAY(arena, bool, g->n);
    graph_live(g, live);
    unit_directions(u, s.early, NEW_ARRAY(arena, bool, g->n));
    for (NodeId id = 1; id < g->n; id++)
        s.early[id] &= live[id] && node(g, id)->phase == PHASE_MICRO;
    find_times(&s);
    NodeId *order = NEW_ARRAY(arena, NodeId, g->n), *map = NEW_ARRAY(arena, NodeId, g->n);
    int n = sort(&s, live, arena, order), moved = 0;
    for (int i = 1; i < n; i++)
        moved += s.early[order[i]] && s.early[order[i - 1]] && order[i] < order[i - 1];
    if (moved) {
        Graph *to = graph_new(u->arena, g->diags);
        to->intern = g->intern;
        for (int i = 0; i < n; i++) map[order[i]] = graph_copy(to, g, order[i], map);
        for (int i = 0; i < g->nroot; i++) graph_root(to, map[g->root[i]]);
        unit_replace_graph(u, to, map);
    }
    arena_free(arena);
    return moved;
}
