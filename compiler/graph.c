/* graph.c: the graph and the op table.
 *
 * A graph is an append-only array of nodes; an operand's id is smaller than its user's.  Relies on
 * types.c and the rules named in ops.def.  Promises: a node's type and phase follow from its
 * operands; with g->intern two nodes that are equal in op, attributes, operands, type and inst are
 * one, with all origins; effects are never merged; copying from the roots is dead-code elimination.
 */
#include "dpoc.h"

#include <stdlib.h>
#include <string.h>

#define OP(name, kind, lo, hi, infer, vjp, eval, attrs)                                            \
    void infer_##infer(Infer *);                                                                   \
    void vjp_##vjp(Grad *, NodeId);                                                                \
    void eval_##eval(Eval *, NodeId);
#include "ops.def"
#undef OP

const OpInfo op_info[NOP] = {
#define OP(name, kind, lo, hi, infer, vjp, eval, attrs)                                            \
    {#name, KIND_##kind, lo, hi, infer_##infer, vjp_##vjp, eval_##eval, attrs},
#include "ops.def"
#undef OP
};

const char *const phase_names[NPHASE] = {"init", "step", "micro", "update"};

bool op_by_name(const char *name, Op *op) {
    for (int i = 0; i < NOP; i++)
        if (!strcmp(name, op_info[i].name)) {
            *op = (Op)i;
            return true;
        }
    return false;
}

/* ---- interning: open addressing over node ids ------------------------------------------------ */

struct InternTable {
    NodeId *slot;
    int n, cap; /* cap is a power of two */
};

static uint64_t mix(uint64_t h, const void *data, size_t n) {
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static uint64_t node_hash(const Node *n) {
    uint64_t h = mix(0xcbf29ce484222325u, &n->attr, sizeof n->attr);
    h = mix(h, n->in, sizeof(NodeId) * (size_t)n->nin);
    h = mix(h, &n->type, sizeof n->type);
    uint32_t rest[2] = {(uint32_t)n->op, n->inst};
    h = mix(h, rest, sizeof rest);
    return h ^ h >> 31;
}

static bool node_equal(const Node *a, const Node *b) {
    return a->op == b->op && a->type == b->type && a->inst == b->inst && a->nin == b->nin &&
           !memcmp(a->in, b->in, sizeof(NodeId) * (size_t)a->nin) &&
           !memcmp(&a->attr, &b->attr, sizeof a->attr);
}

static NodeId *table_find(const Graph *g, const Node *n) {
    const struct InternTable *t = g->table;
    for (uint64_t i = node_hash(n);; i++) {
        NodeId *slot = &t->slot[i & (uint64_t)(t->cap - 1)];
        if (!*slot || node_equal(&g->node[*slot], n)) return slot;
    }
}

static void table_grow(Graph *g) {
    struct InternTable old = g->table ? *g->table : (struct InternTable){0};
    if (!g->table) g->table = NEW(g->arena, struct InternTable);
    g->table->cap = old.cap ? old.cap * 2 : 1024;
    g->table->slot = NEW_ARRAY(g->arena, NodeId, g->table->cap);
    for (int i = 0; i < old.cap; i++)
        if (old.slot[i]) *table_find(g, &g->node[old.slot[i]]) = old.slot[i];
}

/* ---- constant tables ------------------------------------------------------------------------- */

typedef struct FloatTable {
    struct FloatTable *next;
    int n;
    float values[];
} FloatTable;
static FloatTable *tables[256];

const float *table_intern(const float *values, int n) {
    static Arena *arena;
    if (!arena) arena = arena_new();
    size_t bytes = sizeof(float) * (size_t)n;
    uint64_t h = mix((uint64_t)n, values, bytes);
    FloatTable **bucket = &tables[(h ^ h >> 32) % COUNT(tables)];
    for (FloatTable *t = *bucket; t; t = t->next)
        if (t->n == n && (!n || !memcmp(t->values, values, bytes))) return t->values;
    FloatTable *t = arena_alloc(arena, sizeof *t + bytes);
    t->n = n;
    if (n) memcpy(t->values, values, bytes);
    t->next = *bucket;
    *bucket = t;
    return t->values;
}

int table_size(const float *table) {
    return ((const FloatTable *)((const char *)table - offsetof(FloatTable, values)))->n;
}

/* ---- origins --------------------------------------------------------------------------------- */

const Origin *origin_new(Arena *arena, Loc loc, const char *scope) {
    Origin *o = NEW(arena, Origin);
    o->loc = loc;
    o->scope = intern(scope);
    return o;
}

char *origin_print(Arena *arena, const Diags *diags, const Origin *o) {
    if (!o) return arena_str(arena, "");
    const char *place = o->loc.file && diags ? loc_print(arena, diags, o->loc) : "";
    const char *scope = o->scope ? o->scope : "";
    return arena_printf(arena, "%s%s%s", place, *place && *scope ? " " : "", scope);
}

static bool origin_has(const Origin *list, const Origin *o) {
    for (; list; list = list->next)
        if (list == o || (list->scope == o->scope && !memcmp(&list->loc, &o->loc, sizeof o->loc)))
            return true;
    return false;
}

/* A merged node keeps all its origins, the first one first.  Those of a constant say nothing. */
static void origin_merge(Graph *g, Node *n, const Origin *more) {
    if (n->op == OP_const) return;
    for (; more; more = more->next) {
        if (origin_has(n->origin, more)) continue;
        if (!n->origin) {
            n->origin = more;
            return;
        }
        Origin *first = NEW(g->arena, Origin), *added = NEW(g->arena, Origin);
        *first = *n->origin;
        *added = *more;
        added->next = first->next;
        first->next = added;
        n->origin = first;
    }
}

/* ---- appending ------------------------------------------------------------------------------- */

Graph *graph_new(Arena *arena, Diags *diags) {
    Graph *g = NEW(arena, Graph);
    g->arena = arena;
    g->diags = diags;
    PUSH(arena, g->node, g->n, g->cap, (Node){0}); /* node 0 is not used */
    return g;
}

Phase phase_of(const Graph *g, const Node *n) {
    if (n->op == OP_input || n->op == OP_state) return (Phase)n->attr.i0;
    Phase phase = dim_is_const(type_count(n->type)) ? PHASE_INIT : PHASE_MICRO;
    for (int i = 0; i < n->nin; i++)
        if (g->node[n->in[i]].phase > phase) phase = g->node[n->in[i]].phase;
    return phase;
}

static NodeId refuse(Graph *g, const Node *n, const Origin *origin, const char *message) {
    char *types = arena_str(g->arena, "");
    for (int i = 0; i < n->nin; i++)
        types = arena_printf(g->arena, "%s%s%s", types, i ? ", " : "",
                             type_print(g->arena, g->node[n->in[i]].type));
    Loc loc = origin ? origin->loc : (Loc){0};
    diag(g->diags, DIAG_ERROR, loc, "%s(%s): %s", op_info[n->op].name, types, message);
    if (origin && origin->scope) diag(g->diags, DIAG_NOTE, loc, "in %s", origin->scope);
    return 0;
}

static NodeId append(Graph *g, const Node *n) {
    bool unique = op_info[n->op].kind == KIND_EFFECT;
    NodeId *slot = NULL;
    if (g->intern && !unique) {
        if (!g->table || g->table->n * 2 >= g->table->cap) table_grow(g);
        slot = table_find(g, n);
        if (*slot) {
            origin_merge(g, &g->node[*slot], n->origin);
            return *slot;
        }
    }
    PUSH(g->arena, g->node, g->n, g->cap, *n);
    if (slot) {
        *slot = g->n - 1;
        g->table->n++;
    }
    return g->n - 1;
}

NodeId graph_add(Graph *g, Op op, const NodeId *in, int nin, const Attr *attr, const Type *given,
                 uint32_t inst, const Origin *origin) {
    const OpInfo *info = &op_info[op];
    Node n = {.op = op, .nin = nin, .inst = inst, .origin = origin ? origin : g->at};
    const Type *types[MAX_IN];
    if (attr) n.attr = *attr;
    for (int i = 0; i < nin && i < MAX_IN; i++) {
        if (!in[i]) return 0; /* reported where it went wrong */
        n.in[i] = in[i];
        types[i] = g->node[in[i]].type;
    }
    if (nin < info->lo || nin > info->hi) {
        n.nin = 0;
        return refuse(g, &n, n.origin, arena_printf(g->arena, "has %d operands", nin));
    }
    Infer infer = {.g = g,
                   .op = op,
                   .attr = &n.attr,
                   .in = types,
                   .id = n.in,
                   .nin = nin,
                   .given = given,
                   .arena = g->arena};
    info->infer(&infer);
    if (infer.message) return refuse(g, &n, n.origin, infer.message);
    n.type = infer.result;
    n.phase = phase_of(g, &n);
    return append(g, &n);
}

void graph_root(Graph *g, NodeId id) {
    if (id) PUSH(g->arena, g->root, g->nroot, g->caproot, id);
}

void graph_at(Graph *g, const Origin *origin) {
    g->at = origin;
}

NodeId graph_copy(Graph *to, const Graph *from, NodeId id, const NodeId *map) {
    const Node *n = &from->node[id];
    NodeId in[MAX_IN];
    for (int i = 0; i < n->nin; i++) in[i] = map[n->in[i]];
    int before = to->n;
    NodeId copy = graph_add(to, n->op, in, n->nin, &n->attr, n->type, n->inst, n->origin);
    if (copy >= before) {
        Node *c = &to->node[copy];
        c->origin = n->origin;
        if (n->phase > c->phase) c->phase = n->phase;
    }
    return copy;
}

void graph_live(const Graph *g, bool *live) {
    memset(live, 0, (size_t)g->n);
    for (int i = 0; i < g->nroot; i++) live[g->root[i]] = true;
    for (NodeId id = g->n - 1; id > 0; id--)
        if (live[id])
            for (int i = 0; i < g->node[id].nin; i++) live[g->node[id].in[i]] = true;
}

Graph *graph_clean(Arena *arena, const Graph *from, bool intern, NodeId *map) {
    Graph *to = graph_new(arena, from->diags);
    to->intern = intern;
    bool *live = NEW_ARRAY(arena, bool, from->n);
    if (!map) map = NEW_ARRAY(arena, NodeId, from->n);
    graph_live(from, live);
    map[0] = 0;
    for (NodeId id = 1; id < from->n; id++) map[id] = live[id] ? graph_copy(to, from, id, map) : 0;
    for (int i = 0; i < from->nroot; i++) graph_root(to, map[from->root[i]]);
    return to;
}

void unit_replace_graph(Unit *u, Graph *g, const NodeId *map) {
    /* Nothing but `grad` reads the seed, a leaf; so until then no root keeps it alive. */
    bool lost = u->seed && !map[u->seed];
    u->seed = lost ? graph_copy(g, u->g, u->seed, map) : map[u->seed];
    u->loss = map[u->loss];
    u->g = g;
    for (int i = 0; i < u->ntrained; i++) u->trained[i].leaf = map[u->trained[i].leaf];
}

NodeId graph_base(const Graph *g, NodeId id) {
    while (op_info[g->node[id].op].kind == KIND_VIEW && g->node[id].op != OP_part)
        id = g->node[id].in[0];
    return id;
}

NodeId graph_find(const Graph *g, Op leaf, const char *name) {
    for (NodeId id = 1; id < g->n; id++)
        if (g->node[id].op == leaf && g->node[id].attr.name && !strcmp(g->node[id].attr.name, name))
            return id;
    return 0;
}

/* ---- short forms ----------------------------------------------------------------------------- */

NodeId g_op(Graph *g, Op op, NodeId a, NodeId b, NodeId c) {
    return graph_add(g, op, (NodeId[]){a, b, c}, op_info[op].lo, NULL, NULL, 0, NULL);
}

NodeId g_const(Graph *g, double x, const Type *type) {
    return graph_add(g, OP_const, NULL, 0, &(Attr){.num = x}, type, 0, NULL);
}

NodeId g_cast(Graph *g, NodeId x, DType to) {
    if (!x || g->node[x].type->dtype == to) return x;
    return graph_add(g, OP_cast, &x, 1, &(Attr){.i0 = to}, NULL, 0, NULL);
}

NodeId g_bcast(Graph *g, NodeId x, const Type *shape, int lead) {
    const Type *type = type_with(shape, DT_f32);
    if (!x || g->node[x].type == type) return x;
    return graph_add(g, OP_bcast, &x, 1, &(Attr){.i0 = lead}, type, 0, NULL);
}

NodeId g_reshape(Graph *g, NodeId x, const Type *shape) {
    if (!x) return 0;
    const Type *type = type_with(shape, g->node[x].type->dtype);
    if (g->node[x].type == type) return x;
    return graph_add(g, OP_reshape, &x, 1, NULL, type, 0, NULL);
}

NodeId g_matmul(Graph *g, NodeId a, NodeId b, bool ta, bool tb) {
    return graph_add(g, OP_matmul, (NodeId[]){a, b}, 2, &(Attr){.i0 = ta, .i1 = tb}, NULL, 0, NULL);
}

NodeId g_part(Graph *g, NodeId x, int k) {
    return graph_add(g, OP_part, &x, 1, &(Attr){.i0 = k}, NULL, 0, NULL);
}

NodeId g_input(Graph *g, const char *name, Phase phase, const Type *type) {
    Attr attr = {.name = intern(name), .i0 = phase};
    return graph_add(g, OP_input, NULL, 0, &attr, type, 0, NULL);
}

NodeId g_state(Graph *g, const char *name, Phase phase, Role role, const Type *type) {
    Attr attr = {.name = intern(name), .i0 = phase, .i1 = role};
    return graph_add(g, OP_state, NULL, 0, &attr, type, 0, NULL);
}

NodeId g_slot(Graph *g, NodeId flat, int64_t begin, const Type *shape) {
    return graph_add(g, OP_slot, &flat, 1, &(Attr){.i0 = begin}, type_with(shape, DT_f32), 0, NULL);
}

NodeId g_effect(Graph *g, Op op, NodeId target, NodeId x) {
    NodeId id = g_op(g, op, target, x, 0);
    graph_root(g, id);
    return id;
}

bool graph_flows(const Graph *g, NodeId what, NodeId id) {
    Arena *arena = arena_new();
    bool *on = NEW_ARRAY(arena, bool, id + 1);
    on[id] = true;
    for (NodeId i = id; i > what; i--) {
        const Node *n = node(g, i);
        bool stops = n->op == OP_stop || n->op == OP_lt || n->op == OP_le || n->op == OP_eq;
        for (int k = 0; on[i] && !stops && k < n->nin; k++) on[n->in[k]] = true;
    }
    bool found = what <= id && on[what];
    arena_free(arena);
    return found;
}
