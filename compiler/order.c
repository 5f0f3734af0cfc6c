/* order.c: one total order of a unit's groups.
 *
 * Phases follow each other.  Within a phase a group comes after those whose values it reads, and an
 * effect after every group that reads what it overwrites (state is read as it was before the
 * phase). The order of the nodes is taken as it is unless another one needs fewer live bytes at its
 * peak: one that frees as soon as it can, and one that computes as late as it can.
 * Relies on place.c; counts live bytes as plan.c will lay them out, at the extents' bounds.
 */
#include "kern.h"

#include <stdlib.h>
#include <string.h>

typedef struct Edge {
    int to;
    int next; /* of the same source; -1 ends */
} Edge;

typedef struct Use { /* a transient value a group reads or writes */
    int value;
    int next;
} Use;

typedef struct Order {
    Unit *u;
    Arena *arena;
    int n;      /* groups */
    bool off;   /* the pass is switched off: the order as written */
    int *owner; /* node -> group that stores it, -1 */
    int *value; /* node -> value (in-place results share one), -1: not a transient of one phase */
    int64_t *bytes; /* by value */
    int *readers;   /* by value: groups that touch it */
    int nvalues;
    Edge *edge;
    int nedge, capedge;
    int *succ, *npred; /* by group: first edge, number of predecessors */
    int *waits;        /* by group: first edge to a group that only waits for its readers */
    Use *use;
    int nuse, capuse;
    int *uses; /* by group: first use */
} Order;

static Group *group(const Order *o, int i) {
    return &o->u->groups[i];
}
static bool is_effect(const Graph *g, NodeId id) {
    return op_info[node(g, id)->op].kind == KIND_EFFECT;
}

static void edge(Order *o, int from, int to) {
    if (from == to) return;
    for (int e = o->succ[from]; e >= 0; e = o->edge[e].next)
        if (o->edge[e].to == to) return;
    Edge item = {to, o->succ[from]};
    PUSH(o->arena, o->edge, o->nedge, o->capedge, item);
    o->succ[from] = o->nedge - 1;
    o->npred[to]++;
}

/* ---- dependencies ---------------------------------------------------------------------------- */

typedef struct Access { /* a group reads or overwrites elements of a state */
    const char *state;
    int group;
    bool write;
    int64_t begin, end; /* everything, where the range is not constant */
    NodeId id;
} Access;

static Access access_of(const Order *o, int g, NodeId id, bool write) {
    const Graph *graph = o->u->g;
    NodeId view = write ? node(graph, id)->in[0] : id;
    Place place = place_of(graph, view);
    Dim count = type_count(node(graph, view)->type);
    Access a = {.group = g, .write = write, .id = id, .end = INT64_MAX};
    a.state = node(graph, place.base)->attr.name;
    if (!dim_is_const(place.offset) || !dim_is_const(count)) return a;
    int64_t cols = type_cols(node(graph, view)->type);
    a.begin = place.offset.c;
    a.end = a.begin + (count.c / cols - 1) * place.ld + cols;
    return a;
}

static int by_state(const void *a, const void *b) {
    const Access *x = a, *y = b;
    if (x->state != y->state) return strcmp(x->state, y->state);
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->id - y->id;
}

static void order_pair(Order *o, const Access *x, const Access *y) {
    if (!x->write && !y->write) return;
    if (x->end <= y->begin || y->end <= x->begin) return;
    if (x->write && y->write)
        edge(o, (x->id < y->id ? x : y)->group, (x->id < y->id ? y : x)->group);
    else
        edge(o, (x->write ? y : x)->group, (x->write ? x : y)->group);
}

typedef struct Accesses {
    Access *v;
    int n, cap;
} Accesses;

static void add_read(Order *o, Accesses *list, int g, NodeId id) {
    if (id && node(o->u->g, place_of(o->u->g, id).base)->op == OP_state)
        PUSH(o->arena, list->v, list->n, list->cap, access_of(o, g, id, false));
}

/* What a group reads of states, as the views it reads them through. */
static void add_reads(Order *o, Accesses *list, int i) {
    const Group *x = group(o, i);
    if (x->kern) {
        for (int k = 0; k < x->kern->narg; k++)
            if (!is_effect(o->u->g, x->kern->arg[k].node) && !x->kern->arg[k].write)
                add_read(o, list, i, x->kern->arg[k].node);
    } else if (x->kind == GROUP_GEMM) {
        add_read(o, list, i, x->a);
        add_read(o, list, i, x->b);
        add_read(o, list, i, x->bias);
    } else {
        for (int k = 0; k < x->nins; k++) add_read(o, list, i, x->ins[k]);
    }
}

/* Readers of a state before what overwrites it in the same phase. */
static void order_effects(Order *o, Phase phase) {
    Accesses list = {0};
    for (int i = 0; i < o->n; i++) {
        const Group *x = group(o, i);
        if (x->phase != phase) continue;
        add_reads(o, &list, i);
        for (int k = 0; k < x->nouts; k++)
            if (is_effect(o->u->g, x->outs[k]))
                PUSH(o->arena, list.v, list.n, list.cap, access_of(o, i, x->outs[k], true));
    }
    if (list.n) qsort(list.v, (size_t)list.n, sizeof *list.v, by_state);
    for (int i = 0; i < list.n; i++)
        for (int k = i + 1; k < list.n && !strcmp(list.v[k].state, list.v[i].state); k++) {
            if (list.v[k].begin >= list.v[i].end) break;
            order_pair(o, &list.v[i], &list.v[k]);
        }
}

static void order_values(Order *o) {
    const Graph *g = o->u->g;
    for (int i = 0; i < o->n; i++)
        for (int k = 0; k < group(o, i)->nouts; k++) o->owner[group(o, i)->outs[k]] = i;
    for (int i = 0; i < o->n; i++) {
        const Group *x = group(o, i);
        for (int k = 0; k < x->nins; k++) {
            int from = o->owner[place_of(g, x->ins[k]).base];
            if (from >= 0 && group(o, from)->phase == x->phase) edge(o, from, i);
        }
    }
}

/* A result written over an operand comes after the operand's other readers. */
static void order_in_place(Order *o) {
    const Graph *g = o->u->g;
    int *over = NEW_ARRAY(o->arena, int, g->n); /* by value: 1 + the group that writes over it */
    for (int i = 0; i < o->n; i++)
        if (group(o, i)->inplace) over[place_of(g, group(o, i)->inplace).base] = 1 + i;
    for (int r = 0; r < o->n; r++)
        for (int k = 0; k < group(o, r)->nins; k++) {
            int writer = over[place_of(g, group(o, r)->ins[k]).base];
            if (writer) edge(o, r, writer - 1);
        }
}

/* ---- values and their bytes ------------------------------------------------------------------ */

static void use_add(Order *o, int g, int value) {
    for (int k = o->uses[g]; k >= 0; k = o->use[k].next)
        if (o->use[k].value == value) return;
    Use item = {value, o->uses[g]};
    PUSH(o->arena, o->use, o->nuse, o->capuse, item);
    o->uses[g] = o->nuse - 1;
    o->readers[value]++;
}

/* The node whose storage a result takes: itself, or the operand a GEMM writes over. */
static NodeId stored_in(const Order *o, const Group *x, NodeId out) {
    return x->inplace ? place_of(o->u->g, x->inplace).base : out;
}

/* Every value that is stored in one phase and read in it only. */
static void find_values(Order *o) {
    const Graph *g = o->u->g;
    bool *crosses = NEW_ARRAY(o->arena, bool, g->n);
    for (int i = 0; i < o->n; i++)
        for (int k = 0; k < group(o, i)->nins; k++) {
            NodeId base = place_of(g, group(o, i)->ins[k]).base;
            int from = o->owner[base];
            if (from >= 0 && group(o, from)->phase != group(o, i)->phase) crosses[base] = true;
        }
    for (int i = 0; i < o->n; i++)
        for (int k = 0; k < group(o, i)->nouts; k++) {
            NodeId out = group(o, i)->outs[k];
            if (is_effect(g, out) || crosses[out] || node(g, out)->op == OP_append) continue;
            NodeId base = stored_in(o, group(o, i), out);
            if (base != out) {
                o->value[out] = o->value[base];
                continue;
            }
            const Type *t = node(g, out)->type;
            o->value[out] = o->nvalues;
            o->bytes[o->nvalues++] = dim_eval(type_count(t), o->u->bound) * dtype_bytes(t->dtype);
        }
    for (int i = 0; i < o->n; i++) {
        const Group *x = group(o, i);
        for (int k = 0; k < x->nins + x->nouts; k++) {
            NodeId id = k < x->nins ? place_of(g, x->ins[k]).base : x->outs[k - x->nins];
            if (!is_effect(g, id) && o->value[id] >= 0) use_add(o, i, o->value[id]);
        }
    }
}

typedef struct Live { /* a schedule being walked */
    int *left;        /* by value: groups that have yet to touch it */
    bool *live;       /* by value */
    int64_t now, peak;
} Live;

static Live live_new(const Order *o) {
    Live l = {.left = NEW_ARRAY(o->arena, int, o->nvalues + 1),
              .live = NEW_ARRAY(o->arena, bool, o->nvalues + 1)};
    memcpy(l.left, o->readers, sizeof *l.left * (size_t)o->nvalues);
    return l;
}

/* By how much the live bytes would change if group g ran next. */
static int64_t live_change(const Order *o, const Live *l, int g) {
    int64_t change = 0;
    for (int k = o->uses[g]; k >= 0; k = o->use[k].next) {
        int v = o->use[k].value;
        if (!l->live[v]) change += o->bytes[v];
        if (l->left[v] == 1) change -= o->bytes[v];
    }
    return change;
}

static void live_step(const Order *o, Live *l, int g) {
    for (int k = o->uses[g]; k >= 0; k = o->use[k].next) {
        int v = o->use[k].value;
        if (!l->live[v]) l->now += o->bytes[v];
        l->live[v] = true;
    }
    if (l->now + group(o, g)->scratch > l->peak) l->peak = l->now + group(o, g)->scratch;
    for (int k = o->uses[g]; k >= 0; k = o->use[k].next)
        if (--l->left[o->use[k].value] == 0) l->now -= o->bytes[o->use[k].value];
}

static int64_t peak_of(const Order *o, const int *order, int n) {
    Live l = live_new(o);
    for (int i = 0; i < n; i++) live_step(o, &l, order[i]);
    return l.peak;
}

/* ---- schedules ------------------------------------------------------------------------------- */

/* Where the graph would compute a group: at its first result.  (What only the backward asked for,
 * such as attention's lse, stands far behind.)  Effects stand at the end and say nothing. */
static NodeId written_at(const Order *o, int g) {
    const Group *x = group(o, g);
    int k = x->nnodes - 1;
    while (k > 0 && is_effect(o->u->g, x->nodes[k])) k--;
    NodeId at = x->nodes[k];
    for (int i = 0; i < x->nouts; i++)
        if (!is_effect(o->u->g, x->outs[i]) && x->outs[i] < at) at = x->outs[i];
    return at;
}

typedef enum Rule { AS_WRITTEN, FREE_FIRST, LEAST_GROWTH } Rule;

/* Whether group a goes before b, both being ready. */
static bool better(const Order *o, const Live *l, Rule rule, int a, int b) {
    if (rule != AS_WRITTEN) {
        int64_t change_a = live_change(o, l, a), change_b = live_change(o, l, b);
        if (rule == LEAST_GROWTH && change_a != change_b) return change_a < change_b;
        if ((change_a <= 0) != (change_b <= 0)) return change_a <= 0;
    }
    return written_at(o, a) < written_at(o, b);
}

/* A group that reads nothing but leaves can wait for the first that needs it. */
static bool can_wait(const Order *o, int g) {
    return o->npred[g] == 0 && o->succ[g] >= 0;
}

static void find_waits(Order *o, Phase phase) {
    for (int i = 0; i < o->n; i++) {
        if (group(o, i)->phase != phase || !can_wait(o, i)) continue;
        for (int e = o->succ[i]; e >= 0; e = o->edge[e].next) {
            int to = o->edge[e].to;
            Edge item = {i, o->waits[to]};
            PUSH(o->arena, o->edge, o->nedge, o->capedge, item);
            o->waits[to] = o->nedge - 1;
        }
    }
}

typedef struct Schedule { /* under construction */
    const Order *o;
    Live live;
    int *left;    /* by group: predecessors not yet placed */
    bool *placed; /* by group */
    int *ready, nready;
    int *out, n;
} Schedule;

static void place(Schedule *s, int g) {
    const Order *o = s->o;
    s->placed[g] = true;
    live_step(o, &s->live, g);
    s->out[s->n++] = g;
    for (int e = o->succ[g]; e >= 0; e = o->edge[e].next)
        if (--s->left[o->edge[e].to] == 0 && !s->placed[o->edge[e].to])
            s->ready[s->nready++] = o->edge[e].to;
}

/* Its successors do not count it among what they wait for. */
static void place_waiting(Schedule *s, int g) {
    s->placed[g] = true;
    live_step(s->o, &s->live, g);
    s->out[s->n++] = g;
}

/* Topological order of one phase; the number of groups placed (fewer than there are: a cycle). */
static int schedule(const Order *o, Phase phase, Rule rule, int *out) {
    Schedule s = {.o = o, .live = live_new(o), .out = out};
    s.left = NEW_ARRAY(o->arena, int, o->n);
    s.placed = NEW_ARRAY(o->arena, bool, o->n);
    s.ready = NEW_ARRAY(o->arena, int, o->n);
    memcpy(s.left, o->npred, sizeof *s.left * (size_t)o->n);
    for (int i = 0; i < o->n; i++) {
        if (group(o, i)->phase != phase || o->npred[i]) continue;
        if (!can_wait(o, i)) s.ready[s.nready++] = i;
        for (int e = o->succ[i]; can_wait(o, i) && e >= 0; e = o->edge[e].next)
            if (--s.left[o->edge[e].to] == 0) s.ready[s.nready++] = o->edge[e].to;
    }
    while (s.nready) {
        int best = 0;
        for (int k = 1; k < s.nready; k++)
            if (better(o, &s.live, rule, s.ready[k], s.ready[best])) best = k;
        int g = s.ready[best];
        s.ready[best] = s.ready[--s.nready];
        for (int e = o->waits[g]; e >= 0; e = o->edge[e].next)
            if (!s.placed[o->edge[e].to]) place_waiting(&s, o->edge[e].to);
        place(&s, g);
    }
    return s.n;
}

/* The phase's groups from out[0] on; the number of groups that moved, < 0: they wait for each
 * other. */
static int order_phase(Order *o, Phase phase, int *out, int *count) {
    int n = 0;
    for (int i = 0; i < o->n; i++) n += group(o, i)->phase == phase;
    *count = n;
    order_effects(o, phase);
    find_waits(o, phase);
    if (schedule(o, phase, AS_WRITTEN, out) < n) return -1;
    int64_t peak = peak_of(o, out, n);
    int *other = NEW_ARRAY(o->arena, int, n + 1);
    int moved = 0;
    for (Rule rule = FREE_FIRST; !o->off && rule <= LEAST_GROWTH; rule++) {
        schedule(o, phase, rule, other);
        int64_t lower = peak_of(o, other, n);
        if (lower >= peak) continue;
        peak = lower;
        moved = 0;
        for (int i = 0; i < n; i++) moved += out[i] != other[i];
        memcpy(out, other, sizeof *out * (size_t)n);
    }
    return moved;
}

static Order order_new(Unit *u, Arena *arena) {
    Order o = {.u = u, .arena = arena, .n = u->ngroups};
    int outs = 0;
    for (int i = 0; i < o.n; i++) outs += u->groups[i].nouts;
    o.owner = NEW_ARRAY(arena, int, u->g->n);
    o.value = NEW_ARRAY(arena, int, u->g->n);
    o.bytes = NEW_ARRAY(arena, int64_t, outs + 1);
    o.readers = NEW_ARRAY(arena, int, outs + 1);
    o.succ = NEW_ARRAY(arena, int, o.n + 1);
    o.npred = NEW_ARRAY(arena, int, o.n + 1);
    o.waits = NEW_ARRAY(arena, int, o.n + 1);
    o.uses = NEW_ARRAY(arena, int, o.n + 1);
    for (int i = 0; i < u->g->n; i++) o.owner[i] = o.value[i] = -1;
    for (int i = 0; i < o.n; i++) o.succ[i] = o.waits[i] = o.uses[i] = -1;
    return o;
}

int pass_order(Pass *pass, Unit *u) {
    Arena *arena = arena_new();
    Order o = order_new(u, arena);
    o.off = pass->off;
    order_values(&o);
    order_in_place(&o);
    find_values(&o);
    int *out = NEW_ARRAY(arena, int, o.n + 1), n = 0, moved = 0;
    for (Phase phase = PHASE_INIT; phase < NPHASE && moved >= 0; phase++) {
        int count, change = order_phase(&o, phase, out + n, &count);
        if (change < 0)
            diag(u->diags, DIAG_ERROR, (Loc){0}, "bug: groups of phase %s wait for each other",
                 phase_names[phase]);
        n += count;
        moved = change < 0 ? -1 : moved + change;
    }
    if (moved >= 0) {
        Group *sorted = NEW_ARRAY(u->arena, Group, o.n + 1);
        for (int i = 0; i < n; i++) sorted[i] = u->groups[out[i]];
        u->groups = sorted;
    }
    arena_free(arena);
    return moved;
}
