/* verify.c: rules of a well-formed graph, checked after every pass.
 *
 * Operands before users, types as inferred, phases as they follow (a dequantization may be later,
 * its user's), leaves of one name agree, effects are roots and no two of one phase fight over the
 * same elements.  Relies on infer rules.  Promises: looks, never changes; the first broken rule is
 * returned.
 */
#include "dpoc.h"

#include <string.h>

static const char *check_type(const Graph *g, NodeId id, Arena *arena) {
    const Node *n = &g->node[id];
    const Type *in[MAX_IN];
    for (int k = 0; k < n->nin; k++) in[k] = g->node[n->in[k]].type;
    Infer infer = {.g = g,
                   .op = n->op,
                   .attr = &n->attr,
                   .in = in,
                   .id = n->in,
                   .nin = n->nin,
                   .given = n->type,
                   .arena = arena};
    op_info[n->op].infer(&infer);
    if (infer.message) return infer.message;
    if (infer.result == n->type) return NULL;
    return arena_printf(arena, "has type %s where %s follows", type_print(arena, n->type),
                        type_print(arena, infer.result));
}

static const char *check_phase(const Graph *g, NodeId id, Arena *arena) {
    const Node *n = &g->node[id];
    Phase phase = phase_of(g, n);
    if (n->phase == phase || (n->op == OP_dequant && n->phase > phase)) return NULL;
    return arena_printf(arena, "is in phase %s where %s follows", phase_names[n->phase],
                        phase_names[phase]);
}

static const char *check_node(const Graph *g, NodeId id, Arena *arena) {
    const Node *n = &g->node[id];
    if (n->op >= NOP || n->phase >= NPHASE || !n->type) return "is not a node";
    const OpInfo *info = &op_info[n->op];
    if (n->nin < info->lo || n->nin > info->hi)
        return arena_printf(arena, "has %d operands", n->nin);
    for (int k = 0; k < n->nin; k++) {
        if (n->in[k] < 1 || n->in[k] >= id)
            return arena_printf(arena, "uses %%%d, which does not come before it", n->in[k]);
        if (op_info[g->node[n->in[k]].op].kind == KIND_EFFECT)
            return arena_printf(arena, "uses the effect %%%d", n->in[k]);
    }
    const char *message = check_type(g, id, arena);
    return message ? message : check_phase(g, id, arena);
}

/* ---- leaves of one name ---------------------------------------------------------------------- */

/* States of one name share storage, inputs of one name are one array; weights go by source too. */
static const char *check_leaves(const Graph *g, Arena *arena) {
    NodeId *leaf = NEW_ARRAY(arena, NodeId, g->n);
    int count = 0;
    for (NodeId id = 1; id < g->n; id++) {
        const Node *n = &g->node[id];
        if (n->op != OP_input && n->op != OP_state) continue;
        for (int i = 0; i < count; i++) {
            const Node *other = &g->node[leaf[i]];
            if (strcmp(other->attr.name, n->attr.name)) continue;
            bool agree =
                n->op == other->op && n->type == other->type && n->attr.i1 == other->attr.i1;
            if (!agree)
                return arena_printf(arena, "%%%d and %%%d are both '%s' but differ", leaf[i], id,
                                    n->attr.name);
        }
        leaf[count++] = id;
    }
    return NULL;
}

/* A cache is written while others of its phase run, so an append alone may read it, and once. */
static const char *check_caches(const Graph *g, Arena *arena) {
    NodeId *append = NEW_ARRAY(arena, NodeId, g->n);
    for (NodeId id = 1; id < g->n; id++)
        for (int k = 0; k < g->node[id].nin; k++) {
            NodeId in = g->node[id].in[k];
            if (g->node[in].op != OP_state || g->node[in].attr.i1 != ROLE_CACHE) continue;
            if (g->node[id].op != OP_append || append[in])
                return arena_printf(arena, "%%%d reads the cache '%s' beside what appends to it",
                                    id, g->node[in].attr.name);
            append[in] = id;
        }
    return NULL;
}

/* ---- effects --------------------------------------------------------------------------------- */

typedef struct Written { /* elements begin .. begin+count of a state */
    const char *name;
    int64_t begin, count; /* count -1: all of it */
} Written;

static Written written(const Graph *g, NodeId effect) {
    NodeId id = g->node[effect].in[0];
    Written w = {.count = -1};
    for (; op_info[g->node[id].op].kind == KIND_VIEW; id = g->node[id].in[0]) {
        const Node *n = &g->node[id];
        if (n->op != OP_slot) continue;
        w.begin = n->attr.i0;
        w.count = type_count(n->type).c;
    }
    w.name = g->node[id].attr.name;
    return w;
}

static bool overlap(Written a, Written b) {
    if (strcmp(a.name, b.name)) return false;
    if (a.count < 0 || b.count < 0) return true;
    return a.begin < b.begin + b.count && b.begin < a.begin + a.count;
}

static const char *check_effects(const Graph *g, Arena *arena) {
    bool *root = NEW_ARRAY(arena, bool, g->n);
    for (int i = 0; i < g->nroot; i++) {
        NodeId id = g->root[i];
        if (id < 1 || id >= g->n) return arena_printf(arena, "root %%%d does not exist", id);
        if (root[id]) return arena_printf(arena, "%%%d is a root twice", id);
        root[id] = true;
    }
    Written *w = NEW_ARRAY(arena, Written, g->nroot);
    for (int i = 0; i < g->nroot; i++) {
        const Node *n = &g->node[g->root[i]];
        if (op_info[n->op].kind != KIND_EFFECT)
            return arena_printf(arena, "root %%%d is not an effect", g->root[i]);
        w[i] = written(g, g->root[i]);
        for (int j = 0; j < i; j++) {
            const Node *m = &g->node[g->root[j]];
            bool commute = n->op == OP_accumulate && m->op == OP_accumulate;
            if (n->phase == m->phase && !commute && overlap(w[i], w[j]))
                return arena_printf(arena, "%%%d and %%%d both write '%s' in phase %s", g->root[j],
                                    g->root[i], w[i].name, phase_names[n->phase]);
        }
    }
    for (NodeId id = 1; id < g->n; id++)
        if (op_info[g->node[id].op].kind == KIND_EFFECT && !root[id])
            return arena_printf(arena, "the effect %%%d is not a root", id);
    return NULL;
}

const char *graph_verify(const Graph *g, Arena *arena) {
    for (NodeId id = 1; id < g->n; id++) {
        const char *message = check_node(g, id, arena);
        if (message)
            return arena_printf(arena, "%%%d %s: %s", id,
                                g->node[id].op < NOP ? op_info[g->node[id].op].name : "?", message);
    }
    const char *message = check_leaves(g, arena);
    if (!message) message = check_caches(g, arena);
    return message ? message : check_effects(g, arena);
}
