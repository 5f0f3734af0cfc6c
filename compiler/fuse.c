/* fuse.c: everything the gemm pass left becomes kernels: maps, reductions and stores as Kerns,
 * CUSTOM ops alone with their parts.
 *
 * First it is decided which inlined nodes must be stored after all (something reads them that
 * can't recompute them).  Then every node is a cluster of its own, and in order of ids each is
 * merged with the clusters of what it reads, where cluster.c allows; what it does not allow is
 * recorded.  Effects come last, after every reader of what they overwrite.  A value is stored only
 * if another group reads it. Relies on cluster.c, lower.c, custom.c.  Promises: every live node
 * that computes belongs to exactly one group or is inlined where it is read; u->groups are in a
 * valid order of execution.
 */
#include "fuse.h"

typedef struct Fuse {
    Unit *u;
    const Graph *g;
    Arena *arena; /* of this pass */
    bool *live, *kept;
    Clusters cs;
    int merged;
} Fuse;

static OpKind kind_of(const Graph *g, NodeId id) {
    return op_info[node(g, id)->op].kind;
}

static bool is_view(const Graph *g, NodeId id) {
    return kind_of(g, id) == KIND_VIEW && node(g, id)->op != OP_part;
}

/* take of numbers is an indexed load wherever its operands are laid out for one; other takes (row
 * numbers, dropout keys) are kernels of their own. */
static bool is_kern(const Fuse *f, NodeId id) {
    const Node *n = node(f->g, id);
    if (n->op == OP_take) {
        Space s = space_of(f->g, id, f->kept);
        return n->type->dtype != DT_i32 && n->type->dtype != DT_u8 &&
               !cluster_misfit(&f->cs, &s, id);
    }
    return kind_of(f->g, id) != KIND_CUSTOM && n->op != OP_part;
}

/* Whether the node is computed by some group (as opposed to a leaf, a view, or inlined where
 * read). */
static bool computes(const Fuse *f, NodeId id) {
    if (!f->live[id]) return false;
    if (f->kept[id]) return true;
    return kind_of(f->g, id) != KIND_LEAF && !is_view(f->g, id) && !inlined(f->g, id);
}

/* ---- what must be stored although it could be inlined --------------------------------------- */

static bool keep(Fuse *f, NodeId operand) {
    if (!operand) return false;
    NodeId base = place_of(f->g, operand).base;
    if (f->kept[base] || !inlined(f->g, base)) return false;
    f->kept[base] = true;
    return true;
}

static bool keep_operands(Fuse *f, NodeId id) {
    const Node *n = node(f->g, id);
    bool changed = false;
    for (int i = 0; i < n->nin; i++) changed |= keep(f, n->in[i]);
    return changed;
}

/* Stores what node `id` can't read otherwise; whether that changed anything. */
static bool keep_for(Fuse *f, NodeId id) {
    Op op = node(f->g, id)->op;
    if (kind_of(f->g, id) == KIND_CUSTOM || op == OP_uniform) /* takes too */
        return keep_operands(f, id);
    bool changed = false;
    for (;;) {
        Space s = space_fitting(&f->cs, id);
        NodeId bad = cluster_misfit(&f->cs, &s, id);
        if (bad <= 0) return changed;
        if (bad == id && op == OP_bcast) bad = node(f->g, id)->in[0];
        if (!keep(f, bad)) return changed;
        changed = true;
    }
}

static void find_kept(Fuse *f) {
    for (int i = 0; i < f->u->ngroups; i++) {
        const Group *group = &f->u->groups[i];
        const NodeId in[] = {group->a, group->b, group->bias};
        for (int k = 0; k < 3; k++) keep(f, in[k]);
    }
    bool changed = true;
    while (changed) {
        changed = false;
        for (NodeId id = 1; id < f->g->n; id++)
            if (computes(f, id) && kind_of(f->g, id) != KIND_GEMM && node(f->g, id)->op != OP_part)
                changed |= keep_for(f, id);
    }
}

/* ---- who reads what ------------------------------------------------------------------------- */

typedef struct List {
    NodeId *id;
    int n, cap;
} List;

static void reads_below(const Fuse *f, NodeId id, List *out) {
    const Graph *g = f->g;
    const Node *n = node(g, id);
    NodeId base = place_of(g, id).base;
    if (f->kept[base] || !inlined(g, base)) {
        for (int i = 0; i < out->n; i++)
            if (out->id[i] == id) return;
        PUSH(f->arena, out->id, out->n, out->cap, id);
        return;
    }
    for (int i = 0; i < n->nin; i++) reads_below(f, n->in[i], out);
}

static List reads_of(const Fuse *f, NodeId id) {
    const Node *n = node(f->g, id);
    List list = {0};
    int first = kind_of(f->g, id) == KIND_EFFECT; /* the target is written */
    for (int i = first; i < n->nin; i++) reads_below(f, n->in[i], &list);
    return list;
}

static Reads reads_pack(Arena *arena, const List *lists, int n) {
    int *first = NEW_ARRAY(arena, int, n + 1);
    for (int i = 0; i < n; i++) first[i + 1] = first[i] + lists[i].n;
    NodeId *id = NEW_ARRAY(arena, NodeId, first[n] + 1);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < lists[i].n; k++) id[first[i] + k] = lists[i].id[k];
    return (Reads){first, id};
}

static bool touches_state(const Fuse *f, NodeId id, const List *reads) {
    if (!computes(f, id)) return false;
    if (kind_of(f->g, id) == KIND_EFFECT) return true;
    for (int i = 0; i < reads->n; i++)
        if (node(f->g, place_of(f->g, reads->id[i]).base)->op == OP_state) return true;
    return false;
}

/* Effects wait for the readers of what they overwrite in the same program, and for earlier
 * effects. */
static void find_after(Fuse *f, const List *reads, List *after) {
    const Graph *g = f->g;
    List touch = {0};
    for (NodeId id = 1; id < g->n; id++)
        if (touches_state(f, id, &reads[id])) PUSH(f->arena, touch.id, touch.n, touch.cap, id);
    for (int k = 0; k < touch.n; k++) {
        NodeId e = touch.id[k];
        if (kind_of(g, e) != KIND_EFFECT) continue;
        NodeId target = node(g, e)->in[0];
        for (int j = 0; j < touch.n; j++) {
            NodeId id = touch.id[j];
            if (id == e || node(g, id)->phase != node(g, e)->phase) continue;
            bool wait = id < e && kind_of(g, id) == KIND_EFFECT &&
                        same_storage(g, node(g, id)->in[0], target);
            for (int i = 0; i < reads[id].n && !wait; i++)
                wait = same_storage(g, reads[id].id[i], target);
            if (wait) PUSH(f->arena, after[e].id, after[e].n, after[e].cap, id);
        }
    }
}

static void find_reads(Fuse *f) {
    int n = f->g->n;
    List *reads = NEW_ARRAY(f->arena, List, n), *readers = NEW_ARRAY(f->arena, List, n),
         *after = NEW_ARRAY(f->arena, List, n);
    for (NodeId id = 1; id < n; id++) {
        if (!computes(f, id)) continue;
        reads[id] = reads_of(f, id);
        for (int i = 0; i < reads[id].n; i++) {
            List *r = &readers[place_of(f->g, reads[id].id[i]).base];
            PUSH(f->arena, r->id, r->n, r->cap, id);
        }
    }
    find_after(f, reads, after);
    f->cs.reads = reads_pack(f->arena, reads, n);
    f->cs.readers = reads_pack(f->arena, readers, n);
    f->cs.after = reads_pack(f->arena, after, n);
}

/* ---- clusters ------------------------------------------------------------------------------- */

static void merge_reads(Fuse *f, NodeId id) {
    Clusters *cs = &f->cs;
    for (int i = cs->reads.first[id]; i < cs->reads.first[id + 1]; i++) {
        NodeId base = place_of(f->g, cs->reads.id[i]).base;
        int mine = cs->of[id], other = cs->of[base];
        if (other < 0 || other == mine || cs->c[other].kind != GROUP_KERN) continue;
        const char *why = cluster_merge(cs, other, mine);
        if (why)
            unit_refuse(f->u, "fuse", id, "not with %s %%%d: %s",
                        op_info[node(f->g, base)->op].name, base, why);
        else
            f->merged++;
    }
}

static void add_custom(Fuse *f, NodeId id) {
    NodeId nodes[MAX_IN] = {id};
    int n = 1;
    for (NodeId part = id + 1; part < f->g->n && n < MAX_IN; part++)
        if (f->live[part] && node(f->g, part)->op == OP_part && node(f->g, part)->in[0] == id)
            nodes[n++] = part;
    cluster_add(&f->cs, GROUP_CUSTOM, nodes, n, NULL);
}

/* The gemm pass's groups by their last node; `inner` marks the others of their nodes. */
static const Group **gemms_by_end(const Fuse *f, bool *inner) {
    const Group **end = NEW_ARRAY(f->arena, const Group *, f->g->n);
    for (int i = 0; i < f->u->ngroups; i++) {
        const Group *group = &f->u->groups[i];
        end[group->nodes[group->nnodes - 1]] = group;
        for (int k = 0; k + 1 < group->nnodes; k++) inner[group->nodes[k]] = true;
    }
    return end;
}

static void cluster_all(Fuse *f, bool merge) {
    bool *inner = NEW_ARRAY(f->arena, bool, f->g->n);
    const Group **gemm = gemms_by_end(f, inner);
    for (int effects = 0; effects < 2; effects++)
        for (NodeId id = 1; id < f->g->n; id++) {
            if (!computes(f, id) || inner[id] || node(f->g, id)->op == OP_part) continue;
            if ((kind_of(f->g, id) == KIND_EFFECT) != effects) continue;
            if (gemm[id]) {
                cluster_add(&f->cs, GROUP_GEMM, gemm[id]->nodes, gemm[id]->nnodes, gemm[id]);
            } else if (!is_kern(f, id)) {
                add_custom(f, id);
            } else {
                cluster_add(&f->cs, GROUP_KERN, &id, 1, NULL);
                if (merge) merge_reads(f, id);
            }
        }
}

/* A long vector is one row; cut into rows of up to 1024 it is work for all threads. */
static void spread_rows(Fuse *f, int c) {
    Cluster *x = &f->cs.c[c];
    if (!dim_is_const(x->space.rows) || x->space.rows.c != 1 || x->space.cols < 2048) return;
    for (int64_t cols = 1024; cols >= 64; cols /= 2) {
        Space s = x->space;
        s.rows = dim_const(x->space.cols / cols);
        s.cols = cols;
        if (x->space.cols % cols || !cluster_fits(&f->cs, c, &s)) continue;
        x->space = s;
        return;
    }
}

/* ---- groups --------------------------------------------------------------------------------- */

static void add_once(Arena *arena, List *list, NodeId id) {
    for (int i = 0; i < list->n; i++)
        if (list->id[i] == id) return;
    PUSH(arena, list->id, list->n, list->cap, id);
}

static void find_ins(Fuse *f, int c, Group *group) {
    List ins = {0};
    for (int i = 0; i < group->nnodes; i++) {
        const Reads *r = &f->cs.reads;
        for (int k = r->first[group->nodes[i]]; k < r->first[group->nodes[i] + 1]; k++) {
            NodeId base = place_of(f->g, r->id[k]).base;
            if (f->cs.of[base] != c) add_once(f->u->arena, &ins, base);
        }
    }
    group->ins = ins.id;
    group->nins = ins.n;
}

static void find_outs(Fuse *f, int c, Group *group) {
    List outs = {0};
    for (int i = 0; i < group->nnodes; i++) {
        NodeId id = group->nodes[i];
        bool out = kind_of(f->g, id) == KIND_EFFECT;
        const Reads *r = &f->cs.readers;
        for (int k = r->first[id]; k < r->first[id + 1]; k++) out |= f->cs.of[r->id[k]] != c;
        if (out) add_once(f->u->arena, &outs, id);
    }
    group->outs = outs.id;
    group->nouts = outs.n;
}

static Group group_of(Fuse *f, int c) {
    const Cluster *x = &f->cs.c[c];
    Group group = x->gemm ? *x->gemm : (Group){.kind = x->kind, .phase = x->phase};
    if (x->gemm) return group;
    group.nnodes = x->n;
    group.nodes = NEW_ARRAY(f->u->arena, NodeId, x->n);
    for (int i = 0; i < x->n; i++) group.nodes[i] = x->nodes[i];
    find_ins(f, c, &group);
    find_outs(f, c, &group);
    if (x->kind == GROUP_CUSTOM) {
        group.scratch = custom_info(node(f->g, group.nodes[0])->op)->scratch(f->u, &group);
    } else {
        group.m = x->space.rows;
        group.n = dim_const(x->space.cols);
        group.kern = lower_kern(f->u, &group);
    }
    return group;
}

/* Nothing but leaves is needed: a dequantization, a table of angles. */
static bool floats(const Fuse *f, int c) {
    const Cluster *x = &f->cs.c[c];
    if (x->neffects) return false;
    for (int i = 0; i < x->n; i++)
        for (int k = f->cs.reads.first[x->nodes[i]]; k < f->cs.reads.first[x->nodes[i] + 1]; k++)
            if (f->cs.of[place_of(f->g, f->cs.reads.id[k]).base] != c &&
                f->cs.of[place_of(f->g, f->cs.reads.id[k]).base] >= 0)
                return false;
    return true;
}

/* In the order found; but what needs only leaves just before its first reader, so that it does not
 * take memory earlier. */
static void place_group(Fuse *f, int c, bool *done, int *cap) {
    if (done[c]) return;
    done[c] = true;
    const Cluster *x = &f->cs.c[c];
    for (int i = 0; i < x->n; i++)
        for (int k = f->cs.reads.first[x->nodes[i]]; k < f->cs.reads.first[x->nodes[i] + 1]; k++) {
            int other = f->cs.of[place_of(f->g, f->cs.reads.id[k]).base];
            if (other >= 0) place_group(f, other, done, cap);
        }
    Group group = group_of(f, c);
    PUSH(f->u->arena, f->u->groups, f->u->ngroups, *cap, group);
}

static void make_groups(Fuse *f) {
    bool *done = NEW_ARRAY(f->arena, bool, f->cs.n);
    int cap = 0;
    f->u->groups = NULL;
    f->u->ngroups = 0;
    for (int p = 0; p < f->cs.norder; p++)
        if (f->cs.order[p] >= 0 && !floats(f, f->cs.order[p]))
            place_group(f, f->cs.order[p], done, &cap);
}

int pass_fuse(Pass *pass, Unit *u) {
    Fuse f = {.u = u, .g = u->g, .arena = arena_new()};
    int n = u->g->n;
    f.live = NEW_ARRAY(f.arena, bool, n);
    f.kept = NEW_ARRAY(f.arena, bool, n);
    f.cs =
        (Clusters){.arena = f.arena, .g = u->g, .kept = f.kept, .of = NEW_ARRAY(f.arena, int, n)};
    for (NodeId id = 0; id < n; id++) f.cs.of[id] = -1;
    graph_live(u->g, f.live);
    bool *forward = NEW_ARRAY(f.arena, bool, n), *backward = NEW_ARRAY(f.arena, bool, n);
    unit_directions(u, forward, backward);
    f.cs.forward = forward;
    f.cs.backward = backward;
    find_kept(&f);
    find_reads(&f);
    cluster_all(&f, !pass->off);
    for (int c = 0; c < f.cs.n; c++)
        if (f.cs.c[c].kind == GROUP_KERN && f.cs.c[c].n) spread_rows(&f, c);
    make_groups(&f);
    arena_free(f.arena);
    return f.merged;
}
