/* remat.c: recompute instead of keep.
 *
 * The backward reads values of the forward; until then they take memory.  A kept value can be
 * dropped: its readers in the backward then read a clone, computed just before the first of them
 * from values that are still kept.  Two rounds decide:
 *   free    elementwise values that only elementwise readers want and whose sources are kept
 *           anyway: fusion computes them where they are read, so dropping them costs no traffic
 *   budget  while more than u->activation_budget is kept, the value with the fewest FLOPs to
 *           recompute per byte goes, unless its recomputation would hold more bytes at once than
 *           are kept
 * Clones are the same ops on the same operands with an inst of their own, so no bit changes.
 * Relies on place.c, cost.c.  Promises: nothing changes without a backward (u->seed).
 */
#include "dpoc.h"

#include <stdlib.h>
#include <string.h>

enum { FREE_DEPTH = 12 };

typedef struct Remat {
    Unit *u;
    const Graph *g;
    Arena *arena;
    bool *early;    /* computed by the forward: metrics, or the loss, need it */
    bool *kept;     /* a stored forward value that the backward reads */
    bool *paid;     /* is computed again for a value already dropped */
    bool *mapped;   /* kept, and all its readers in the backward are elementwise */
    int64_t *bytes; /* of stored values, and of the parts of one that the backward reads */
    int64_t total;  /* bytes kept */
    int *mark;      /* of the walk under way */
    int walk;
} Remat;

static OpKind kind_of(const Graph *g, NodeId id) {
    return op_info[node(g, id)->op].kind;
}

/* ---- what waits for the backward ------------------------------------------------------------- */

void unit_directions(const Unit *u, bool *forward, bool *backward) {
    const Graph *g = u->g;
    if (u->seed) backward[u->seed] = true;
    for (NodeId id = 1; id < g->n; id++)
        for (int i = 0; i < node(g, id)->nin; i++) backward[id] |= backward[node(g, id)->in[i]];
    if (u->loss) forward[u->loss] = true;
    for (int i = 0; i < g->nroot; i++)
        if (!backward[g->root[i]] && node(g, g->root[i])->phase == PHASE_MICRO)
            forward[g->root[i]] = true;
    for (NodeId id = g->n - 1; id > 0; id--)
        for (int i = 0; forward[id] && i < node(g, id)->nin; i++)
            forward[node(g, id)->in[i]] = true;
}

static bool is_map(const Graph *g, NodeId id) {
    return kind_of(g, id) == KIND_MAP || kind_of(g, id) == KIND_REDUCE;
}
static bool is_view(const Graph *g, NodeId id) { /* a further result goes with its node */
    return kind_of(g, id) == KIND_VIEW;
}
static int64_t bytes_of(const Remat *r, NodeId id) {
    const Type *t = node(r->g, id)->type;
    return dim_eval(type_count(t), r->u->bound) * dtype_bytes(t->dtype);
}

/* The readers of `id` outside the forward, looking through views. */
static void find_readers(Remat *r, const Uses *uses, NodeId base, NodeId id) {
    bool read = false;
    for (int k = uses->first[id]; k < uses->first[id + 1]; k++) {
        NodeId user = uses->user[k];
        if (is_view(r->g, user)) find_readers(r, uses, base, user);
        if (is_view(r->g, user) || r->early[user]) continue;
        if (!r->kept[base]) r->kept[base] = r->mapped[base] = true;
        r->mapped[base] &= is_map(r->g, user);
        read = true;
    }
    if (read && node(r->g, id)->op == OP_part) r->bytes[base] += bytes_of(r, id);
}

static void find_kept(Remat *r) {
    Uses uses = uses_of(r->arena, r->g);
    for (NodeId id = 1; id < r->g->n; id++) {
        OpKind kind = kind_of(r->g, id);
        if (!r->early[id] || node(r->g, id)->phase != PHASE_MICRO || kind == KIND_LEAF ||
            kind == KIND_EFFECT || kind == KIND_VIEW)
            continue;
        r->bytes[id] = bytes_of(r, id);
        find_readers(r, &uses, id, id);
        if (r->kept[id]) r->total += r->bytes[id];
    }
}

/* ---- what recomputing costs ------------------------------------------------------------------ */

typedef struct Chain { /* what has to be computed again for a value */
    double flops;
    int64_t bytes; /* of results that have to be stored */
    int nodes;
    bool only_maps;
} Chain;

/* With `pay`, marks what is walked as computed again. */
static void walk_chain(Remat *r, NodeId id, Chain *chain, bool pay) {
    const Node *n = node(r->g, id);
    if (r->mark[id] == r->walk || n->phase != PHASE_MICRO || kind_of(r->g, id) == KIND_LEAF) return;
    r->mark[id] = r->walk;
    if (r->kept[id]) return;
    if (!is_view(r->g, id)) {
        if (!r->paid[id]) chain->flops += node_flops(r->g, id, r->u->bound);
        if (!is_map(r->g, id)) chain->bytes += r->bytes[id];
        chain->only_maps &= kind_of(r->g, id) == KIND_MAP;
        chain->nodes++;
        r->paid[id] |= pay;
    }
    for (int i = 0; i < n->nin; i++) walk_chain(r, n->in[i], chain, pay);
}

static Chain chain_of(Remat *r, NodeId id, bool pay) {
    Chain chain = {.only_maps = true};
    r->walk++;
    r->kept[id] = false;
    walk_chain(r, id, &chain, pay);
    r->kept[id] = !pay;
    return chain;
}

static void drop(Remat *r, NodeId id) {
    chain_of(r, id, true);
    r->total -= r->bytes[id];
}

static void say(Remat *r, const char *format, ...) PRINTF(2, 3);
static void say(Remat *r, const char *format, ...) {
    Unit *u = r->u;
    va_list args;
    va_start(args, format);
    const char *line = arena_vprintf(u->arena, format, args);
    va_end(args);
    PUSH(u->arena, u->recomputed, u->nrecomputed, u->caprecomputed, line);
}

/* ---- the two rounds -------------------------------------------------------------------------- */

static int drop_free(Remat *r) {
    int n = 0;
    int64_t before = r->total;
    for (NodeId id = 1; id < r->g->n; id++) {
        if (!r->kept[id] || !r->mapped[id] || kind_of(r->g, id) != KIND_MAP) continue;
        Chain chain = chain_of(r, id, false);
        if (!chain.only_maps || chain.nodes > FREE_DEPTH) continue;
        drop(r, id);
        n++;
    }
    char size[32];
    format_bytes(size, (double)(before - r->total));
    if (n) say(r, "%d elementwise values (%s) where they are read", n, size);
    return n;
}

/* The kept value with the fewest FLOPs per byte to recompute; 0 if none may go. */
static NodeId cheapest(Remat *r, double *price, const bool *stuck) {
    NodeId best = 0;
    for (NodeId id = 1; id < r->g->n; id++)
        if (r->kept[id] && !stuck[id] && r->bytes[id] && (!best || price[id] < price[best]))
            best = id;
    return best;
}

static void say_dropped(Remat *r, NodeId id, double flops) {
    char size[32];
    format_bytes(size, (double)r->bytes[id]);
    say(r, "%s %s: %s for %.3g MFLOP", op_info[node(r->g, id)->op].name,
        origin_print(r->u->arena, r->u->diags, node(r->g, id)->origin), size, flops / 1e6);
}

static int drop_for_budget(Remat *r) {
    double *price = NEW_ARRAY(r->arena, double, r->g->n); /* what is paid since only lowers it */
    bool *stuck = NEW_ARRAY(r->arena, bool, r->g->n);
    int n = 0;
    for (NodeId id = 1; id < r->g->n; id++)
        if (r->kept[id] && r->bytes[id])
            price[id] = chain_of(r, id, false).flops / (double)r->bytes[id];
    while (r->u->activation_budget && r->total > r->u->activation_budget) {
        NodeId id = cheapest(r, price, stuck);
        if (!id) break;
        Chain chain = chain_of(r, id, false);
        if (chain.bytes > r->total - r->bytes[id]) {
            stuck[id] = true;
            continue;
        }
        drop(r, id);
        say_dropped(r, id, chain.flops);
        n++;
    }
    return n;
}

/* ---- the new graph --------------------------------------------------------------------------- */

typedef struct Rewrite {
    Remat *r;
    Graph *to;
    NodeId *map;   /* of every node */
    NodeId *clone; /* of recomputed ones and views of them */
} Rewrite;

/* Whether the backward has to read a clone of this value. */
static bool needs_clone(const Remat *r, NodeId id) {
    while (is_view(r->g, id)) id = node(r->g, id)->in[0];
    return r->early[id] && !r->kept[id] && node(r->g, id)->phase == PHASE_MICRO &&
           kind_of(r->g, id) != KIND_LEAF;
}

/* `id` as the backward reads it.  A dequantization has its user's phase, not its operands'. */
static NodeId late_copy(Rewrite *w, NodeId id) {
    const Node *n = node(w->r->g, id);
    if (!w->r->early[id] || !needs_clone(w->r, id)) return w->map[id];
    if (w->clone[id]) return w->clone[id];
    NodeId in[MAX_IN];
    for (int i = 0; i < n->nin; i++) in[i] = late_copy(w, n->in[i]);
    uint32_t inst = n->inst + (is_view(w->r->g, id) ? 0 : CLONE_INST);
    NodeId clone = graph_add(w->to, n->op, in, n->nin, &n->attr, n->type, inst, n->origin);
    w->to->node[clone].phase = n->phase;
    return w->clone[id] = clone;
}

static void rewrite(Remat *r) {
    const Graph *g = r->g;
    bool *live = NEW_ARRAY(r->arena, bool, g->n);
    graph_live(g, live);
    Rewrite w = {.r = r,
                 .to = graph_new(r->u->arena, g->diags),
                 .map = NEW_ARRAY(r->arena, NodeId, g->n),
                 .clone = NEW_ARRAY(r->arena, NodeId, g->n)};
    w.to->intern = g->intern;
    NodeId *late = NEW_ARRAY(r->arena, NodeId, g->n); /* map as the backward sees it */
    for (NodeId id = 1; id < g->n; id++) {
        if (!live[id]) continue;
        const Node *n = node(g, id);
        for (int i = 0; i < n->nin; i++)
            late[n->in[i]] = r->early[id] ? w.map[n->in[i]] : late_copy(&w, n->in[i]);
        w.map[id] = graph_copy(w.to, g, id, late);
    }
    for (int i = 0; i < g->nroot; i++) graph_root(w.to, w.map[g->root[i]]);
    unit_replace_graph(r->u, w.to, w.map);
}

int pass_remat(Pass *pass, Unit *u) {
    (void)pass;
    if (!u->seed || !u->loss) return 0;
    Arena *arena = arena_new();
    int n = u->g->n;
    Remat r = {.u = u, .g = u->g, .arena = arena};
    r.early = NEW_ARRAY(arena, bool, n);
    r.kept = NEW_ARRAY(arena, bool, n);
    r.paid = NEW_ARRAY(arena, bool, n);
    r.mapped = NEW_ARRAY(arena, bool, n);
    r.bytes = NEW_ARRAY(arena, int64_t, n);
    r.mark = NEW_ARRAY(arena, int, n);
    unit_directions(u, r.early, NEW_ARRAY(arena, bool, n));
    find_kept(&r);
    int changes = drop_free(&r);
    u->activation_bytes = r.total;
    changes += drop_for_budget(&r);
    if (changes) rewrite(&r);
    arena_free(arena);
    return changes;
}
