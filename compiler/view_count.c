/* view_count.c: nodes, kernels, FLOPs, bytes and peak of a unit after a pass (view.h).
 *
 * Relies on cost.c and place.c.  The peak is that of the order at hand, before the planner packs
 * buffers: values that a kernel keeps in registers count until `fuse` has made it.
 */
#include "view.h"

static double value_bytes(const Unit *u, NodeId id) {
    const Type *t = node(u->g, id)->type;
    return (double)dim_eval(type_count(t), u->bound) * dtype_bytes(t->dtype);
}

static OpKind kind_of(const Graph *g, NodeId id) {
    return op_info[node(g, id)->op].kind;
}

typedef struct Lives { /* of the values of a micro-batch, by place in the order */
    const Unit *u;
    int *born, *dies; /* by node; born 0: not one of these values, dies 0: never read */
} Lives;

static void reads(Lives *l, NodeId id, int at) {
    NodeId base = place_of(l->u->g, id).base;
    if (l->born[base]) l->dies[base] = at;
}

static int order_nodes(Lives *l) {
    const Graph *g = l->u->g;
    for (NodeId id = 1; id < g->n; id++) {
        OpKind kind = kind_of(g, id);
        if (node(g, id)->phase == PHASE_MICRO && kind != KIND_LEAF && kind != KIND_EFFECT)
            l->born[id] = id;
        if (kind == KIND_VIEW) continue;
        for (int k = 0; k < node(g, id)->nin; k++) reads(l, node(g, id)->in[k], id);
    }
    return g->n;
}

static int order_groups(Lives *l) {
    const Unit *u = l->u;
    for (int i = 0; i < u->ngroups; i++) {
        const Group *group = &u->groups[i];
        for (int k = 0; k < group->nins; k++) reads(l, group->ins[k], i + 1);
        for (int k = 0; k < group->nouts && group->phase == PHASE_MICRO; k++)
            if (kind_of(u->g, group->outs[k]) != KIND_EFFECT) l->born[group->outs[k]] = i + 1;
    }
    return u->ngroups + 1;
}

static double peak_of(const Snapshot *shot) {
    const Unit *u = &shot->u;
    Arena *arena = arena_new();
    Lives l = {u, NEW_ARRAY(arena, int, u->g->n), NEW_ARRAY(arena, int, u->g->n)};
    int n = shot->grouped ? order_groups(&l) : order_nodes(&l);
    double *more = NEW_ARRAY(arena, double, n + 1), alive = 0, peak = 0;
    for (NodeId id = 1; id < u->g->n; id++) {
        if (!l.dies[id]) continue;
        more[l.born[id]] += value_bytes(u, id);
        more[l.dies[id] + 1] -= value_bytes(u, id);
    }
    for (int i = 0; i <= n; i++) {
        alive += more[i];
        if (alive > peak) peak = alive;
    }
    arena_free(arena);
    return peak;
}

static double bytes_of(const Snapshot *shot) {
    const Unit *u = &shot->u;
    double bytes = 0;
    for (NodeId id = 1; id < u->g->n && !shot->grouped; id++)
        if (node(u->g, id)->phase == PHASE_MICRO) bytes += node_bytes(u->g, id, u->bound);
    for (int i = 0; i < u->ngroups && shot->grouped; i++) {
        const Group *group = &u->groups[i];
        if (group->phase != PHASE_MICRO) continue;
        for (int k = 0; k < group->nins; k++) bytes += value_bytes(u, group->ins[k]);
        for (int k = 0; k < group->nouts; k++) bytes += value_bytes(u, group->outs[k]);
    }
    return bytes;
}

ViewCounts view_counts(const Snapshot *shot) {
    const Unit *u = &shot->u;
    ViewCounts c = {.nodes = u->g->n - 1};
    for (int i = 0; i < u->ngroups; i++) {
        c.kernels += u->groups[i].kind == GROUP_KERN;
        c.products += u->groups[i].kind == GROUP_GEMM;
        c.customs += u->groups[i].kind == GROUP_CUSTOM;
    }
    c.flops = graph_flops(u->g, PHASE_MICRO, u->bound);
    c.bytes = bytes_of(shot);
    c.peak = peak_of(shot);
    return c;
}
