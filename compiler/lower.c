/* lower.c: a group's nodes as one Kern.
 *
 * Nodes become values in order; operand paths (access.c) become constants, loads or the group's
 * own values; what the group stores is written after everything was read.  Relies on access.c.
 * Promises: arguments in the order they are first used, one argument per place in memory (so a
 * value read and written in place is one argument), no load twice, and nothing in the Kern but
 * `origin` and `KArg.node` that depends on node ids.
 */
#include "fuse.h"

#include <stdlib.h>

typedef struct Lower {
    Unit *u;
    const Graph *g;
    const Group *group;
    Space space;
    Kern *k;
    int *value;      /* by position in group->nodes: its KVal; -1: none yet */
    NodeId *scalar;  /* inlined scalar arithmetic .. */
    int *scalar_val; /* .. and its KVal */
    int nscalar, capscalar, capscalar_val;
} Lower;

static _Noreturn void bug(const Lower *l, NodeId id, const char *what) {
    char *where = origin_print(l->u->arena, l->u->diags, node(l->g, id)->origin);
    fprintf(stderr, "dpoc: bug: lower: %%%d %s: %s (%s)\n", id, op_info[node(l->g, id)->op].name,
            what, where);
    exit(EXIT_BUG);
}

static int push(Lower *l, KVal v, NodeId origin) {
    v.origin = origin;
    PUSH(l->u->arena, l->k->val, l->k->nval, l->k->capval, v);
    return l->k->nval - 1;
}

static KVal blank(KOp kop) {
    return (KVal){.kop = kop, .a = -1, .b = -1, .c = -1, .arg = -1, .index = -1, .rowdiv = 1};
}

static int position(const Group *group, NodeId id) {
    int lo = 0, hi = group->nnodes;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (group->nodes[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < group->nnodes && group->nodes[lo] == id ? lo : -1;
}

static KLevel level_of(Access at) {
    return at.row && at.col ? LEVEL_ELEM : at.row ? LEVEL_ROW : at.col ? LEVEL_COL : LEVEL_SCALAR;
}

/* ---- arguments, loads ----------------------------------------------------------------------- */

static int argument(Lower *l, NodeId id, bool write) {
    Place place = place_of(l->g, id);
    for (int i = 0; i < l->k->narg; i++) {
        Place other = place_of(l->g, l->k->arg[i].node);
        if (other.base == place.base && dim_equal(other.offset, place.offset)) {
            l->k->arg[i].write |= write;
            return i;
        }
    }
    KArg arg = {.node = id, .dtype = node(l->g, id)->type->dtype, .write = write};
    PUSH(l->u->arena, l->k->arg, l->k->narg, l->k->caparg, arg);
    return l->k->narg - 1;
}

static int load(Lower *l, KVal v, NodeId origin) {
    v.kop = KOP_LOAD;
    v.dtype = l->k->arg[v.arg].dtype;
    for (int i = 0; i < l->k->nval; i++) {
        const KVal *o = &l->k->val[i];
        if (o->kop == KOP_LOAD && o->arg == v.arg && o->index == v.index && o->level == v.level &&
            o->rowdiv == v.rowdiv && o->ld == v.ld && o->half == v.half)
            return i;
    }
    return push(l, v, origin);
}

static int load_at(Lower *l, NodeId id, Access at, bool half) {
    KVal v = blank(KOP_LOAD);
    if (!access_ld(&l->space, id, at, &v.ld)) bug(l, id, "is laid out as no load can read it");
    v.arg = argument(l, id, false);
    v.level = level_of(at);
    v.rowdiv = at.row ? at.div : 1;
    v.half = half;
    return load(l, v, id);
}

/* Integers become numbers where the graph casts them; bf16 and f16 are numbers once loaded. */
static int as_float(Lower *l, int val, DType wanted) {
    const KVal *x = &l->k->val[val];
    if (wanted != DT_f32 || (x->dtype != DT_i32 && x->dtype != DT_u8)) return val;
    for (int i = 0; i < l->k->nval; i++)
        if (l->k->val[i].kop == KOP_OP && l->k->val[i].op == OP_cast && l->k->val[i].a == val &&
            l->k->val[i].dtype == DT_f32)
            return i;
    KVal v = blank(KOP_OP);
    v.op = OP_cast;
    v.a = val;
    v.level = x->level;
    return push(l, v, x->origin);
}

/* ---- operands ------------------------------------------------------------------------------- */

static int operand(Lower *l, NodeId id, Access at, bool half);

static KLevel highest(const Lower *l, const KVal *v) {
    KLevel level = LEVEL_SCALAR;
    const int in[] = {v->a, v->b, v->c};
    for (int i = 0; i < 3; i++) {
        if (in[i] < 0 || l->k->val[in[i]].level <= level) continue;
        level = l->k->val[in[i]].level;
    }
    return level;
}

static int scalar(Lower *l, NodeId id) {
    for (int i = 0; i < l->nscalar; i++)
        if (l->scalar[i] == id) return l->scalar_val[i];
    const Node *n = node(l->g, id);
    if (n->op == OP_stop) return operand(l, n->in[0], (Access){.div = 1}, false);
    KVal v = blank(n->op == OP_const ? KOP_CONST : KOP_OP);
    v.op = n->op;
    v.num = n->attr.num;
    int in[3] = {-1, -1, -1};
    for (int i = 0; i < n->nin; i++) in[i] = operand(l, n->in[i], (Access){.div = 1}, false);
    v.a = in[0], v.b = in[1], v.c = in[2];
    v.level = highest(l, &v);
    int val = push(l, v, id);
    PUSH(l->u->arena, l->scalar, l->nscalar, l->capscalar, id);
    l->nscalar--;
    PUSH(l->u->arena, l->scalar_val, l->nscalar, l->capscalar_val, val);
    return val;
}

static int operand(Lower *l, NodeId id, Access at, bool half) {
    Read read = access_read(&l->space, id, at);
    if (!read.ok) bug(l, id, "can't be read here");
    NodeId base = place_of(l->g, read.end).base;
    bool in_ins = false;
    for (int i = 0; i < l->group->nins; i++) in_ins |= l->group->ins[i] == base;
    if (in_ins)
        return as_float(l, load_at(l, read.end, read.at, half), node(l->g, id)->type->dtype);
    if (inlined(l->g, read.end)) return scalar(l, read.end);
    int pos = position(l->group, base);
    if (pos < 0 || l->value[pos] < 0 || half) bug(l, id, "is not at hand");
    return l->value[pos];
}

/* ---- nodes ---------------------------------------------------------------------------------- */

/* Where node `id` has its own value, as a level: full rows, one per row, or one per column. */
static KLevel own_level(const Lower *l, NodeId id, Access *at) {
    if (!access_own(&l->space, id, at))
        bug(l, id, "does not fit the rows and columns of its group");
    const Node *n = node(l->g, id);
    if (l->space.shape == KERN_SUM_ROWS &&
        (sums_rows(l->g, id) || op_info[n->op].kind == KIND_EFFECT))
        return LEVEL_COL;
    if (op_info[n->op].kind == KIND_REDUCE) return LEVEL_ROW;
    Dim elems = dim_scale(l->space.rows, l->space.cols);
    return dim_equal(type_count(n->type), elems) ? LEVEL_ELEM : LEVEL_ROW;
}

static int lower_take(Lower *l, NodeId id, KLevel level) {
    const Node *n = node(l->g, id);
    KVal v = blank(KOP_LOAD);
    if (!access_take(&l->space, id, &v.ld)) bug(l, id, "is no indexed load here");
    v.arg = argument(l, n->in[0], false);
    v.index = argument(l, n->in[1], false);
    v.level = level;
    return load(l, v, id);
}

static int lower_uniform(Lower *l, NodeId id) {
    const Node *n = node(l->g, id);
    KVal keys = blank(KOP_LOAD), seed = blank(KOP_LOAD), v = blank(KOP_OP);
    keys.arg = argument(l, n->in[0], false);
    keys.level = LEVEL_ROW;
    keys.ld = place_of(l->g, n->in[0]).ld;
    seed.arg = argument(l, n->in[1], false);
    v.op = OP_uniform;
    v.level = LEVEL_ELEM;
    v.i0 = n->attr.i0;
    v.i1 = n->attr.i1;
    v.a = load(l, keys, n->in[0]);
    v.b = load(l, seed, n->in[1]);
    return push(l, v, id);
}

static int lower_op(Lower *l, NodeId id, Access at, KLevel level) {
    const Node *n = node(l->g, id);
    if (op_info[n->op].kind == KIND_REDUCE) at = access_elem(&l->space);
    KVal v = blank(KOP_OP);
    v.op = sums_rows(l->g, id) ? OP_sum_rows : n->op;
    v.dtype = n->type->dtype;
    v.level = level;
    v.i0 = n->attr.i0;
    int in[3] = {-1, -1, -1};
    for (int i = 0; i < n->nin; i++) in[i] = operand(l, n->in[i], at, false);
    v.a = in[0], v.b = in[1], v.c = in[2];
    return push(l, v, id);
}

static int lower_node(Lower *l, NodeId id) {
    const Node *n = node(l->g, id);
    Access at;
    KLevel level = own_level(l, id, &at);
    switch (n->op) {
    case OP_const:
        return scalar(l, id);
    case OP_bcast:
        if (!access_bcast(&l->space, id, &at)) bug(l, id, "can't be spread here");
        return operand(l, n->in[0], at, false);
    case OP_stop:
        return operand(l, n->in[0], at, false);
    case OP_cast:
        if (n->type->dtype == DT_f32) return operand(l, n->in[0], at, false);
        return lower_op(l, id, at, level);
    case OP_assign:
    case OP_accumulate:
        return operand(l, n->in[1], at, false);
    case OP_take:
        return lower_take(l, id, level);
    case OP_uniform:
        return lower_uniform(l, id);
    case OP_rotate_half:
        return operand(l, n->in[0], at, true);
    default:
        return lower_op(l, id, at, level);
    }
}

static void store(Lower *l, NodeId id, int value) {
    const Node *n = node(l->g, id);
    bool effect = op_info[n->op].kind == KIND_EFFECT;
    NodeId target = effect ? n->in[0] : id;
    Access at;
    KVal v = blank(KOP_STORE);
    v.level = own_level(l, id, &at);
    if (!access_ld(&l->space, target, at, &v.ld)) bug(l, id, "can't be stored there");
    v.a = value;
    v.arg = argument(l, target, true);
    v.dtype = l->k->arg[v.arg].dtype;
    v.accumulate = n->op == OP_accumulate;
    push(l, v, id);
}

Kern *lower_kern(Unit *u, const Group *group) {
    Lower l = {.u = u, .g = u->g, .group = group, .k = NEW(u->arena, Kern)};
    l.space = (Space){.g = u->g, .rows = group->m, .cols = group->n.c, .group = group};
    for (int i = 0; i < group->nnodes; i++)
        if (sums_rows(u->g, group->nodes[i])) l.space.shape = KERN_SUM_ROWS;
    l.k->shape = l.space.shape;
    l.k->rows = group->m;
    l.k->cols = group->n.c;
    l.value = NEW_ARRAY(u->arena, int, group->nnodes);
    for (int i = 0; i < group->nnodes; i++) l.value[i] = -1;
    for (int i = 0; i < group->nnodes; i++) l.value[i] = lower_node(&l, group->nodes[i]);
    for (int i = 0; i < group->nouts; i++)
        store(&l, group->outs[i], l.value[position(group, group->outs[i])]);
    return l.k;
}
