/* quant.c: dequantization becomes visible nodes.
 *
 * A weight that is kept in a quantized format is not one buffer but several: codes and statistics,
 * leaves named TENSOR#PART.  Each reader gets a dequant node of its own (a fresh inst), in the
 * reader's phase: the numbers exist only while they are used, in scratch memory, and the forward's
 * are not the backward's.  Where weights are resident (Unit.resident) one in "init" serves all.
 * A reader in an init phase (a cast, a view) is copied along for each of its own readers.  Relies
 * on graph.c and the formats of runtime/quantize.h.  Promises: the same values as the format means,
 * no other node changes.
 */
#include "dpoc.h"
#include "../runtime/quantize.h"

typedef struct Quant {
    Unit *u;
    const Graph *from;
    Graph *to;
    NodeId *map;
    bool *packed;  /* quantized leaves, casts and views of them: made where they are read */
    uint32_t inst; /* of the last dequantization that is not resident */
    int made;
    bool *early;          /* needed by the loss or a metric */
    bool forward;         /* the reader at hand is early */
    NodeId last, last_of; /* the forward's last dequantization, and of which weight */
} Quant;

static bool find_packed(Quant *q, const bool *live) {
    bool any = false;
    for (NodeId id = 1; id < q->from->n; id++) {
        const Node *n = node(q->from, id);
        if (!live[id]) continue;
        if (n->op == OP_weight) {
            const WeightInfo *info = &q->u->weights[n->attr.i0];
            q->packed[id] = info->format && type_count(n->type).c == info->rows * info->cols;
            any |= q->packed[id];
        } else if (n->op == OP_cast || (op_info[n->op].kind == KIND_VIEW && n->op != OP_part)) {
            q->packed[id] = q->packed[n->in[0]];
        }
    }
    return any;
}

static NodeId part_leaf(Quant *q, const Node *w, QuantPiece piece, const char *name) {
    const WeightInfo *info = &q->u->weights[w->attr.i0];
    QuantPart part = {.piece = piece};
    quant_format(info->format, &part.format);
    int64_t n = quant_part_count(part, type_count(w->type).c, info->block, info->nested);
    Attr attr = w->attr;
    attr.name = intern_printf("%s#%s", w->attr.name, name);
    const Type *type = type_vec(quant_part_dtype(part, info->nested), dim_const(n));
    return graph_add(q->to, OP_weight, NULL, 0, &attr, type, 0, w->origin);
}

/* Forward readers that follow each other share one: policy and reference, after `share`. */
static NodeId dequant(Quant *q, NodeId weight, Phase phase, const Origin *reader) {
    const Node *w = node(q->from, weight);
    const bool resident = q->u->resident;
    if (resident) phase = PHASE_INIT; /* and all readers' */
    if (q->forward && q->last_of == weight && node(q->to, q->last)->phase == phase) return q->last;
    const WeightInfo *info = &q->u->weights[w->attr.i0];
    NodeId in[5] = {part_leaf(q, w, QUANT_CODES, "codes"), part_leaf(q, w, QUANT_ABSMAX, "absmax")};
    int n = 2;
    if (info->nested) {
        in[n++] = part_leaf(q, w, QUANT_ABSMAX2, "absmax2");
        in[n++] = part_leaf(q, w, QUANT_OFFSET, "offset");
        in[n++] = part_leaf(q, w, QUANT_MAP, "map");
    }
    Attr attr = {.name = intern(info->format), .i0 = info->block, .i1 = info->nested};
    NodeId id =
        graph_add(q->to, OP_dequant, in, n, &attr, w->type, resident ? 0 : ++q->inst, reader);
    if (id) q->to->node[id].phase = phase;
    if (q->forward) q->last = id, q->last_of = weight;
    q->made++;
    return id;
}

/* The value of `id` for one reader. */
static NodeId unpack(Quant *q, NodeId id, const Node *reader) {
    const Node *n = node(q->from, id);
    if (!q->packed[id]) return q->map[id];
    if (n->op == OP_weight) return dequant(q, id, reader->phase, reader->origin);
    NodeId in = unpack(q, n->in[0], reader);
    return graph_add(q->to, n->op, &in, 1, &n->attr, n->type, q->inst, n->origin);
}

static void copy(Quant *q, NodeId id) {
    const Node *n = node(q->from, id);
    NodeId old[MAX_IN];
    bool reads = false;
    q->forward = q->early[id];
    for (int i = 0; i < n->nin; i++) {
        old[i] = q->map[n->in[i]];
        if (!q->packed[n->in[i]]) continue;
        q->map[n->in[i]] = unpack(q, n->in[i], n);
        reads = true;
    }
    q->map[id] = graph_copy(q->to, q->from, id, q->map);
    for (int i = 0; reads && i < n->nin; i++) q->map[n->in[i]] = old[i];
}

int pass_quant(Pass *pass, Unit *u) {
    (void)pass;
    Arena *arena = arena_new();
    int n = u->g->n;
    Quant q = {.u = u, .from = u->g, .map = NEW_ARRAY(arena, NodeId, n)};
    q.packed = NEW_ARRAY(arena, bool, n);
    bool *live = NEW_ARRAY(arena, bool, n);
    graph_live(u->g, live);
    q.early = NEW_ARRAY(arena, bool, n);
    unit_directions(u, q.early, NEW_ARRAY(arena, bool, n));
    if (find_packed(&q, live)) {
        q.to = graph_new(u->arena, u->g->diags);
        q.to->intern = true;
        for (NodeId id = 1; id < n; id++)
            if (live[id] && !q.packed[id]) copy(&q, id);
        for (int i = 0; i < u->g->nroot; i++) graph_root(q.to, q.map[u->g->root[i]]);
        unit_replace_graph(u, q.to, q.map);
    }
    arena_free(arena);
    return q.made;
}
