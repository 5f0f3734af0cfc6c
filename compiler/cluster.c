/* cluster.c: groups of nodes while they grow: which may be one kernel.
 *
 * Two clusters become one when every node of both can run over one space of rows and columns,
 * every value that passes between them is read exactly where it is computed, what the kernel
 * overwrites is read at the same place only, and no third cluster would have to run both after and
 * before the union.  The order of execution is kept all the time (Pearce and Kelly: only the
 * stretch between the two is looked at), so a cycle is found without walking the graph. Relies on
 * access.c.  Promises: `order` is a valid order of execution after every call.
 */
#include "fuse.h"

#include <string.h>

/* ---- storage -------------------------------------------------------------------------------- */

static bool interval(const Graph *g, NodeId id, int64_t *begin, int64_t *end) {
    Place p = place_of(g, id);
    Dim count = type_count(node(g, id)->type);
    if (!dim_is_const(p.offset) || !dim_is_const(count) || !place_dense(g, id)) return false;
    *begin = p.offset.c;
    *end = p.offset.c + count.c;
    return true;
}

bool same_storage(const Graph *g, NodeId a, NodeId b) {
    const Node *x = node(g, place_of(g, a).base), *y = node(g, place_of(g, b).base);
    if (x->op != y->op || x->op != OP_state || x->attr.name != y->attr.name) return false;
    int64_t a0, a1, b0, b1;
    if (!interval(g, a, &a0, &a1) || !interval(g, b, &b0, &b1)) return true;
    return a0 < b1 && b0 < a1;
}

/* ---- whether a node can run in a space ------------------------------------------------------ */

typedef struct Fit { /* the union being judged; b = -1: only a; a = -1: nothing but the node */
    const Clusters *cs;
    const Space *s;
    int a, b;
} Fit;

static bool inside(const Fit *f, NodeId base) {
    int c = f->cs->of[base];
    return c >= 0 && (c == f->a || c == f->b);
}

/* What the kernel itself overwrites must be read where it is written. */
static bool overwritten_elsewhere(const Fit *f, int c, NodeId id, Access at, bool moved) {
    const Graph *g = f->s->g;
    if (c < 0 || !f->cs->c[c].neffects) return false;
    for (int i = 0; i < f->cs->c[c].n; i++) {
        const Node *e = node(g, f->cs->c[c].nodes[i]);
        if (op_info[e->op].kind != KIND_EFFECT || !same_storage(g, e->in[0], id)) continue;
        Access own;
        Place p = place_of(g, id), q = place_of(g, e->in[0]);
        if (moved || p.ld != q.ld || !dim_equal(p.offset, q.offset) ||
            !access_own(f->s, f->cs->c[c].nodes[i], &own) || !access_equal(own, at))
            return true;
    }
    return false;
}

/* The node to store first, or -1. */
static NodeId misfit_load(const Fit *f, NodeId id, Access at, bool half) {
    int64_t ld;
    if (!access_ld(f->s, id, at, &ld)) return -1;
    if (half && !at.col) return -1;
    if (overwritten_elsewhere(f, f->a, id, at, half)) return -1;
    if (overwritten_elsewhere(f, f->b, id, at, half)) return -1;
    return 0;
}

static NodeId misfit_path(const Fit *f, NodeId id, Access at, bool half) {
    const Graph *g = f->s->g;
    Read read = access_read(f->s, id, at);
    if (!read.ok) return read.end;
    NodeId base = place_of(g, read.end).base, own = place_of(g, id).base;
    /* What is spread over the columns has no halves to exchange until it is stored. */
    if (half && !read.at.col && inlined(g, own) && !f->cs->kept[own]) return own;
    if (inlined(g, base) && !f->cs->kept[base]) {
        if (half) return base;
        const Node *n = node(g, base);
        for (int i = 0; i < n->nin; i++) {
            NodeId bad = misfit_path(f, n->in[i], (Access){.div = 1}, false);
            if (bad) return bad;
        }
        return 0;
    }
    if (!inside(f, base)) return misfit_load(f, read.end, read.at, half);
    Access there;
    bool same = !half && only_reshaped(g, read.end, base) && access_own(f->s, base, &there) &&
                access_equal(there, read.at);
    return same ? 0 : -1;
}

static NodeId misfit_take(const Fit *f, NodeId id) {
    const Graph *g = f->s->g;
    const Node *n = node(g, id);
    NodeId x = place_of(g, n->in[0]).base, index = place_of(g, n->in[1]).base;
    const Type *t = node(g, n->in[1])->type;
    int64_t ld;
    if (!access_take(f->s, id, &ld) || inside(f, x) || inside(f, index)) return -1;
    if (type_cols(t) == 1 && place_of(g, n->in[1]).ld != 1) return -1;
    const Access at = {.row = true};
    if (overwritten_elsewhere(f, f->a, n->in[0], at, true)) return -1;
    return overwritten_elsewhere(f, f->b, n->in[0], at, true) ? -1 : 0;
}

static NodeId misfit_effect(const Fit *f, NodeId id, Access at) {
    const Graph *g = f->s->g;
    const Node *n = node(g, id);
    int64_t ld;
    if (!access_ld(f->s, n->in[0], at, &ld)) return -1;
    return misfit_path(f, n->in[1], at, false);
}

static NodeId misfit(const Fit *f, NodeId id) {
    const Node *n = node(f->s->g, id);
    const Type *t = n->type;
    Access at;
    if (!access_own(f->s, id, &at)) return -1;
    switch (n->op) {
    case OP_const:
        return 0;
    case OP_bcast:
        return access_bcast(f->s, id, &at) ? misfit_path(f, n->in[0], at, false) : id;
    case OP_take:
        return misfit_take(f, id);
    case OP_assign:
    case OP_accumulate:
        return misfit_effect(f, id, at);
    case OP_rotate_half:
        if (type_cols(t) != f->s->cols || !at.col) return -1;
        return misfit_path(f, n->in[0], at, true);
    case OP_uniform:
        if (!dim_equal(t->dim[0], f->s->rows) || type_cols(t) != f->s->cols) return -1;
        return inside(f, n->in[0]) || inside(f, n->in[1]) ? -1 : 0;
    default:
        break;
    }
    if (sums_rows(f->s->g, id) != (f->s->shape == KERN_SUM_ROWS) &&
        op_info[n->op].kind == KIND_REDUCE)
        return -1;
    if (op_info[n->op].kind == KIND_REDUCE) at = access_elem(f->s);
    for (int i = 0; i < n->nin; i++) {
        NodeId bad = misfit_path(f, n->in[i], at, false);
        if (bad) return bad;
    }
    return 0;
}

NodeId cluster_misfit(const Clusters *cs, const Space *space, NodeId id) {
    return misfit(&(Fit){.cs = cs, .s = space, .a = -1, .b = -1}, id);
}

Space space_fitting(const Clusters *cs, NodeId id) {
    Space own = space_of(cs->g, id, cs->kept), s = own;
    const Type *t = node(cs->g, id)->type;
    if (op_info[node(cs->g, id)->op].kind != KIND_MAP || cluster_misfit(cs, &s, id) <= 0)
        return own;
    for (int i = t->rank - 2; i >= 0 && dim_is_const(t->dim[i]); i--) {
        s.cols *= t->dim[i].c;
        s.rows = i ? t->dim[0] : dim_const(1);
        for (int k = 1; k < i; k++) s.rows = dim_mul(s.rows, t->dim[k]);
        if (!cluster_misfit(cs, &s, id)) return s;
    }
    return own;
}

static bool all_fit(const Fit *f, int c) {
    for (int i = 0; i < f->cs->c[c].n; i++)
        if (misfit(f, f->cs->c[c].nodes[i])) return false;
    return true;
}

bool cluster_fits(const Clusters *cs, int a, const Space *space) {
    return all_fit(&(Fit){.cs = cs, .s = space, .a = a, .b = -1}, a);
}

/* ---- the order of execution ----------------------------------------------------------------- */

int cluster_add(Clusters *cs, GroupKind kind, const NodeId *nodes, int n, const Group *gemm) {
    const Graph *g = cs->g;
    Cluster c = {.kind = kind, .pos = cs->norder, .gemm = gemm};
    for (int i = 0; i < n; i++) {
        const Node *x = node(g, nodes[i]);
        PUSH(cs->arena, c.nodes, c.n, c.cap, nodes[i]);
        cs->of[nodes[i]] = cs->n;
        if (x->phase > c.phase) c.phase = x->phase;
        if (sums_rows(g, nodes[i]))
            c.sum = nodes[i];
        else if (op_info[x->op].kind == KIND_REDUCE)
            c.reduces = true;
        c.neffects += op_info[x->op].kind == KIND_EFFECT;
        c.forward |= cs->forward[nodes[i]];
        c.backward |= cs->backward[nodes[i]];
        c.slope |= !cs->forward[nodes[i]] && !cs->backward[nodes[i]];
    }
    if (kind == GROUP_KERN) c.space = space_fitting(cs, nodes[0]);
    PUSH(cs->arena, cs->c, cs->n, cs->cap, c);
    PUSH(cs->arena, cs->order, cs->norder, cs->caporder, cs->n - 1);
    cs->norder--;
    PUSH(cs->arena, cs->mark, cs->norder, cs->capmark, false);
    return cs->n - 1;
}

/* Whether a cluster directly needs a marked one, or the one at position `lo`. */
static bool needs_marked(const Clusters *cs, const Cluster *c, int lo, bool lo_too) {
    for (int i = 0; i < c->n; i++) {
        const Reads *lists[] = {&cs->reads, &cs->after};
        for (int k = 0; k < 2; k++)
            for (int j = lists[k]->first[c->nodes[i]]; j < lists[k]->first[c->nodes[i] + 1]; j++) {
                NodeId id = lists[k]->id[j];
                int other = cs->of[k ? id : place_of(cs->g, id).base];
                if (other < 0) continue;
                int pos = cs->c[other].pos;
                if (pos == lo ? lo_too : pos > lo && cs->mark[pos]) return true;
            }
    }
    return false;
}

/* Moves what stands between lo and hi and needs lo behind hi; false, and nothing moved, when hi
 * needs some of it. */
static bool close_gap(Clusters *cs, int lo, int hi) {
    int later = 0;
    for (int p = lo + 1; p < hi; p++) {
        int c = cs->order[p];
        cs->mark[p] = c >= 0 && needs_marked(cs, &cs->c[c], lo, true);
        later += cs->mark[p];
    }
    cs->mark[hi] = false;
    if (needs_marked(cs, &cs->c[cs->order[hi]], lo, false)) return false;
    if (!later) return true;
    int *moved = NEW_ARRAY(cs->arena, int, later + 1), n = 0, to = lo + 1;
    for (int p = lo + 1; p < hi; p++) {
        if (cs->mark[p])
            moved[n++] = cs->order[p];
        else
            cs->order[to++] = cs->order[p];
    }
    cs->order[to++] = cs->order[hi];
    for (int i = 0; i < n; i++) cs->order[to++] = moved[i];
    for (int p = lo + 1; p <= hi; p++)
        if (cs->order[p] >= 0) cs->c[cs->order[p]].pos = p;
    return true;
}

/* ---- merging -------------------------------------------------------------------------------- */

/* A kernel that sums over rows stores nothing but its sum. */
static bool stores_rows(const Clusters *cs, int c, int a, int b) {
    for (int i = 0; i < cs->c[c].n; i++) {
        NodeId id = cs->c[c].nodes[i];
        const Node *n = node(cs->g, id);
        if (op_info[n->op].kind == KIND_EFFECT && place_of(cs->g, n->in[1]).base != cs->c[a].sum &&
            place_of(cs->g, n->in[1]).base != cs->c[b].sum)
            return true;
        if (id == cs->c[a].sum || id == cs->c[b].sum) continue;
        for (int j = cs->readers.first[id]; j < cs->readers.first[id + 1]; j++) {
            int reader = cs->of[cs->readers.id[j]];
            if (reader != a && reader != b) return true;
        }
    }
    return false;
}

/* Nodes that read the sum itself can only be its stores. */
static bool uses_sum(const Clusters *cs, NodeId sum, int a, int b) {
    for (int j = cs->readers.first[sum]; j < cs->readers.first[sum + 1]; j++) {
        NodeId id = cs->readers.id[j];
        if (cs->of[id] != a && cs->of[id] != b) continue;
        if (op_info[node(cs->g, id)->op].kind != KIND_EFFECT) return true;
    }
    return false;
}

/* Only AdamW-like kernels, which read each element once, write in place. */
static bool rereads(const Clusters *cs, int effects, int reads) {
    if (!cs->c[effects].neffects || !(cs->c[effects].reduces || cs->c[reads].reduces)) return false;
    for (int i = 0; i < cs->c[effects].n; i++) {
        const Node *e = node(cs->g, cs->c[effects].nodes[i]);
        if (op_info[e->op].kind != KIND_EFFECT) continue;
        for (int k = 0; k < cs->c[reads].n; k++) {
            NodeId m = cs->c[reads].nodes[k];
            for (int j = cs->reads.first[m]; j < cs->reads.first[m + 1]; j++)
                if (same_storage(cs->g, e->in[0], cs->reads.id[j])) return true;
        }
    }
    return false;
}

static const char *find_space(const Clusters *cs, int a, int b, Space *space) {
    const Cluster *x = &cs->c[a], *y = &cs->c[b];
    KernShape shape = x->sum || y->sum ? KERN_SUM_ROWS : KERN_ROWS;
    const Space *candidates[] = {&x->space, &y->space};
    for (int i = 0; i < 2; i++) {
        *space = *candidates[i];
        space->shape = shape;
        Fit f = {.cs = cs, .s = space, .a = a, .b = b};
        if (all_fit(&f, a) && all_fit(&f, b)) return NULL;
    }
    return "rows, columns or layouts differ";
}

static void absorb(Clusters *cs, int to, int from) {
    Cluster *x = &cs->c[to], *y = &cs->c[from];
    NodeId *nodes = NULL;
    int n = 0, cap = 0, i = 0, j = 0;
    while (i < x->n || j < y->n) {
        bool first = j == y->n || (i < x->n && x->nodes[i] < y->nodes[j]);
        PUSH(cs->arena, nodes, n, cap, first ? x->nodes[i++] : y->nodes[j++]);
    }
    x->nodes = nodes;
    x->n = n;
    x->cap = cap;
    x->reduces |= y->reduces;
    if (y->sum) x->sum = y->sum;
    x->neffects += y->neffects;
    x->forward |= y->forward;
    x->backward |= y->backward;
    x->slope |= y->slope;
    for (i = 0; i < y->n; i++) cs->of[y->nodes[i]] = to;
    int early = x->pos < y->pos ? x->pos : y->pos, late = x->pos < y->pos ? y->pos : x->pos;
    cs->order[early] = -1;
    cs->order[late] = to;
    x->pos = late;
    y->n = 0;
}

const char *cluster_merge(Clusters *cs, int a, int b) {
    Cluster *x = &cs->c[a], *y = &cs->c[b];
    if (x->kind != GROUP_KERN || y->kind != GROUP_KERN) return "not a generated kernel";
    if (x->phase != y->phase) return "runs in another phase";
    if ((x->forward || y->forward) && (x->slope || y->slope) && !x->backward && !y->backward)
        return "its result would wait for the backward";
    if (x->sum || y->sum) {
        if (x->sum && y->sum) return "two sums over rows";
        if (x->reduces || y->reduces) return "sums over rows and over columns";
        if (stores_rows(cs, a, a, b) || stores_rows(cs, b, a, b))
            return "a kernel that sums over rows stores only its sum";
        if (uses_sum(cs, x->sum ? x->sum : y->sum, a, b)) return "the sum is complete too late";
    }
    if (rereads(cs, a, a) || rereads(cs, a, b) || rereads(cs, b, a) || rereads(cs, b, b))
        return "reads again what it overwrites";
    Space space;
    const char *why = find_space(cs, a, b, &space);
    if (why) return why;
    bool a_first = x->pos < y->pos;
    if (!close_gap(cs, a_first ? x->pos : y->pos, a_first ? y->pos : x->pos))
        return "another kernel must run between them";
    absorb(cs, a, b);
    cs->c[a].space = space;
    return NULL;
}
