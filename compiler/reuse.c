/* reuse.c: an elementwise result takes the place of an operand that nobody reads afterwards.
 *
 * In a kernel over rows a stored value may lie where a loaded one lay, if the kernel is the last
 * reader and reads every element exactly where it writes: no gather, no half rotation, no other
 * view of it.  Then load and store share one argument, so the generators see that it is
 * overwritten.  An append lies where its cache does.  Relies on the order of groups being final and
 * on place.c.  Promises: no result changes a bit.
 */
#include "kern.h"

typedef struct Reuse {
    Unit *u;
    int *last;  /* by node: the last group that reads it, -1: none */
    int *owner; /* by node: the group that stores it, -1: none */
} Reuse;

/* Argument `arg` is a whole value, loaded only element by element, `ld` apart. */
static bool plain_loads(const Kern *k, int arg, const KVal *store) {
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (v->kop != KOP_LOAD && v->kop != KOP_STORE) continue;
        if (v->index == arg) return false;
        if (v->arg != arg) continue;
        if (v->kop == KOP_STORE || v->level != LEVEL_ELEM || v->index >= 0 || v->rowdiv > 1 ||
            v->half || v->ld != store->ld)
            return false;
    }
    return true;
}

/* Whether the value behind `arg` ends its life in group i and can give its place to `out`. */
static bool can_give(const Reuse *r, int i, int arg, NodeId out, const KVal *store) {
    const Graph *g = r->u->g;
    const Kern *k = r->u->groups[i].kern;
    Place place = place_of(g, k->arg[arg].node);
    const Type *from = node(g, place.base)->type, *to = node(g, out)->type;
    int owner = r->owner[place.base];
    if (k->arg[arg].write || owner < 0 || r->last[place.base] != i) return false;
    if (r->u->groups[owner].phase != r->u->groups[i].phase) return false;
    if (from->dtype != to->dtype || !dim_equal(type_count(from), type_count(to))) return false;
    for (int a = 0; a < k->narg; a++)
        if (a != arg && place_of(g, k->arg[a].node).base == place.base) return false;
    return dim_is_const(place.offset) && place.offset.c == 0 && plain_loads(k, arg, store);
}

/* The stores to argument `old` go to `arg`; `old` is no argument any more. */
static void share_argument(Kern *k, int old, int arg) {
    for (int i = 0; i < k->nval; i++) {
        KVal *v = &k->val[i];
        if (v->kop != KOP_LOAD && v->kop != KOP_STORE) continue;
        if (v->arg == old) v->arg = arg;
        if (v->arg > old) v->arg--;
        if (v->index > old) v->index--;
    }
    k->arg[arg].write = true;
    for (int a = old; a + 1 < k->narg; a++) k->arg[a] = k->arg[a + 1];
    k->narg--;
}

static const KVal *only_store(const Kern *k, int arg) {
    const KVal *store = NULL;
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (v->kop != KOP_STORE || v->arg != arg) continue;
        if (store) return NULL;
        store = v;
    }
    bool plain = store && store->level == LEVEL_ELEM && store->index < 0 && store->rowdiv <= 1;
    return plain && !store->accumulate ? store : NULL;
}

static void reuse_in(Reuse *r, int i, NodeId *over) {
    const Graph *g = r->u->g;
    Kern *k = r->u->groups[i].kern;
    for (int a = 0; a < k->narg; a++) {
        NodeId out = k->arg[a].node;
        const KVal *store = k->arg[a].write && r->owner[out] == i ? only_store(k, a) : NULL;
        for (int arg = 0; store && arg < k->narg; arg++) {
            if (!can_give(r, i, arg, out, store)) continue;
            over[out] = place_of(g, k->arg[arg].node).base;
            share_argument(k, a, arg);
            a--;
            break;
        }
    }
}

void reuse_storage(Unit *u, NodeId *over) {
    const Graph *g = u->g;
    Arena *arena = arena_new();
    Reuse r = {.u = u, .last = NEW_ARRAY(arena, int, g->n), .owner = NEW_ARRAY(arena, int, g->n)};
    for (int i = 0; i < g->n; i++) r.last[i] = r.owner[i] = -1;
    for (int i = 0; i < u->ngroups; i++) {
        const Group *group = &u->groups[i];
        const Node *first = node(g, group->nodes[0]);
        if (first->op == OP_append) over[group->nodes[0]] = place_of(g, first->in[0]).base;
        for (int k = 0; k < group->nins; k++) r.last[place_of(g, group->ins[k]).base] = i;
        for (int k = 0; k < group->nouts; k++) r.owner[group->outs[k]] = i;
    }
    for (int i = 0; i < u->ngroups; i++) {
        const Group *group = &u->groups[i];
        if (group->kind == GROUP_KERN && group->phase != PHASE_INIT &&
            group->kern->shape == KERN_ROWS)
            reuse_in(&r, i, over);
    }
    arena_free(arena);
}
