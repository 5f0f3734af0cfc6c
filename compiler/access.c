/* access.c: which element of a value a kernel reads at (row, column) of its space.
 *
 * Relies on place.c.  Promises: a path that is ok can be printed as a load of kern.h, and its
 * index is the one the graph means; where a broadcast, a view or a layout has no such load, the
 * path is refused and names the node that must be stored instead.
 */
#include "fuse.h"

#include <stdlib.h>

bool inlined(const Graph *g, NodeId id) {
    const Node *n = node(g, id);
    switch (n->op) {
    case OP_const:
    case OP_bcast:
        return true;
    case OP_cast:
        return n->type->dtype == DT_f32;
    default:
        return op_info[n->op].kind == KIND_MAP && n->type->rank == 0;
    }
}

bool sums_rows(const Graph *g, NodeId id) {
    const Node *n = node(g, id);
    if (n->op == OP_sum_rows) return true;
    if (n->op != OP_sum_cols) return false;
    const Type *in = node(g, n->in[0])->type;
    return in->rank == 1 && !dim_is_const(in->dim[0]);
}

static bool is_one(Dim d) {
    return dim_is_const(d) && d.c == 1;
}

Space space_of(const Graph *g, NodeId id, const bool *kept) {
    const Node *n = node(g, id);
    const Type *t = n->type;
    Space s = {.g = g, .kept = kept};
    if (op_info[n->op].kind == KIND_REDUCE) t = node(g, n->in[0])->type;
    s.rows = type_rows(t);
    s.cols = type_cols(t);
    if (sums_rows(g, id)) {
        s.shape = KERN_SUM_ROWS;
        if (t->rank == 1) s.rows = t->dim[0], s.cols = 1;
    } else if (n->op == OP_take) {
        s.rows = t->dim[0];
        s.cols = 1;
        for (int i = 1; i < t->rank; i++) s.cols *= t->dim[i].c;
    } else if (n->op == OP_bcast && kept && kept[id]) {
        Dim from = type_count(node(g, n->in[0])->type);
        if (n->attr.i0 == 0 && dim_is_const(from)) { /* [H,S] -> [T,H,S]: rows of H*S */
            s.rows = t->dim[0];
            s.cols = from.c;
            int added = t->rank - node(g, n->in[0])->type->rank;
            for (int i = 1; i < added; i++) s.rows = dim_mul(s.rows, t->dim[i]);
        }
    }
    return s;
}

Access access_elem(const Space *s) {
    return (Access){.row = !is_one(s->rows), .col = s->cols != 1, .div = 1};
}

static Access access_row(const Space *s) {
    return (Access){.row = !is_one(s->rows), .div = 1};
}

bool access_equal(Access a, Access b) {
    return a.row == b.row && a.col == b.col && (!a.row || a.div == b.div);
}

bool access_own(const Space *s, NodeId id, Access *at) {
    const Node *n = node(s->g, id);
    Dim count = type_count(n->type), elems = dim_scale(s->rows, s->cols);
    if (s->shape == KERN_SUM_ROWS && (sums_rows(s->g, id) || op_info[n->op].kind == KIND_EFFECT)) {
        *at = (Access){.col = s->cols != 1, .div = 1};
        Dim in = type_count(node(s->g, n->in[0])->type);
        bool all = op_info[n->op].kind == KIND_EFFECT || dim_equal(in, elems);
        return all && dim_equal(count, dim_const(s->cols));
    }
    if (op_info[n->op].kind == KIND_REDUCE) {
        const Type *in = node(s->g, n->in[0])->type;
        *at = access_row(s);
        return in->rank > 0 && type_cols(in) == s->cols && dim_equal(type_count(in), elems);
    }
    if (dim_equal(count, elems)) {
        *at = access_elem(s);
        return true;
    }
    *at = access_row(s);
    return dim_equal(count, s->rows);
}

/* ---- paths ---------------------------------------------------------------------------------- */

static int64_t product(const Type *t, int begin, int end) { /* 0: depends on the batch */
    int64_t n = 1;
    for (int i = begin; i < end; i++) n *= dim_is_const(t->dim[i]) ? t->dim[i].c : 0;
    return n;
}

/* Element i of the result is element i / n of the operand. */
static bool access_divide(const Space *s, Access *at, int64_t n) {
    if (!n) return false;
    if (at->row && at->col) {
        if (n % s->cols) return false;
        at->div *= n / s->cols;
    } else if (at->row) {
        at->div *= n;
    } else if (at->col && n % s->cols) {
        return false;
    }
    at->col = false;
    return true;
}

/* Element i of the result is element i % n of the operand. */
static bool access_modulo(const Space *s, Access *at, int64_t n) {
    if (n == 1) *at = (Access){.div = 1};
    if (!at->col) return !at->row;
    at->row = at->row && n != s->cols;
    return n == s->cols;
}

/* Element (a * middle + b) * tail + c of the result is element a * tail + c of the operand. */
static bool access_skip(const Space *s, Access *at, int64_t middle, int64_t tail) {
    if (!middle || tail != (at->col ? s->cols : 1)) return false;
    if (at->row) at->div *= middle;
    return at->row;
}

bool access_bcast(const Space *s, NodeId bcast, Access *at) {
    const Node *b = node(s->g, bcast);
    const Type *from = node(s->g, b->in[0])->type, *to = b->type;
    int added = to->rank - from->rank;
    if (is_one(type_count(from)) || (!at->row && !at->col)) {
        *at = (Access){.div = 1};
        return true;
    }
    if (dim_equal(type_count(from), type_count(to))) return true;
    if (b->attr.i0 == 1) return access_divide(s, at, product(to, from->rank, to->rank));
    if (b->attr.i0 == 2)
        return access_skip(s, at, product(to, 1, 1 + added), product(from, 1, from->rank));
    return access_modulo(s, at, product(from, 0, from->rank));
}

static bool is_kept(const Space *s, NodeId id) {
    if (s->kept) return s->kept[id];
    for (int i = 0; s->group && i < s->group->nins; i++)
        if (s->group->ins[i] == id) return true;
    return false;
}

Read access_read(const Space *s, NodeId id, Access at) {
    for (;;) {
        const Node *n = node(s->g, id);
        NodeId base = place_of(s->g, id).base;
        if (is_kept(s, base) || !inlined(s->g, base)) return (Read){id, at, true};
        if (n->op == OP_reshape || n->op == OP_cast) {
            id = n->in[0];
        } else if (n->op == OP_bcast) {
            if (!access_bcast(s, id, &at)) return (Read){id, at, false};
            id = n->in[0];
        } else { /* a constant or a scalar, unless it is a part cut out of something not stored */
            return (Read){base, at, id == base};
        }
    }
}

bool only_reshaped(const Graph *g, NodeId id, NodeId base) {
    while (id != base && node(g, id)->op == OP_reshape) id = node(g, id)->in[0];
    return id == base;
}

/* ---- loads and stores ----------------------------------------------------------------------- */

bool access_ld(const Space *s, NodeId id, Access at, int64_t *ld) {
    const Type *t = node(s->g, id)->type;
    bool dense = place_dense(s->g, id);
    *ld = place_of(s->g, id).ld;
    if (at.row && at.col) {
        if (dense) *ld = s->cols;
        return dense || type_cols(t) == s->cols;
    }
    if (at.row) {
        if (dense) *ld = 1;
        return dense || type_cols(t) == 1;
    }
    *ld = 0;
    return !at.col || dense;
}

bool access_take(const Space *s, NodeId take, int64_t *ld) {
    const Node *n = node(s->g, take);
    const Type *x = node(s->g, n->in[0])->type;
    Access at;
    if (!access_own(s, take, &at) || !dim_equal(n->type->dim[0], s->rows)) return false;
    *ld = place_of(s->g, n->in[0]).ld;
    if (x->rank == 1) {
        if (type_cols(x) != 1) *ld = 1;
        return s->cols == 1 || !at.col;
    }
    if (x->rank == 2) return at.col ? type_cols(x) == s->cols : type_cols(x) == 1;
    *ld = product(x, 1, x->rank);
    return at.col && place_dense(s->g, n->in[0]);
}
