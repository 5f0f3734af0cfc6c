/* infer.c: the type of a node from its operands and attributes, or what is wrong with them.
 *
 * One rule per name in ops.def.  Relies on types.c.  Promises: a rule sets either result or
 * message; at most one axis of a result depends on the extents, so counts stay affine.
 */
#include "dpoc.h"

void infer_given(Infer *i);
void infer_rows(Infer *i);
void infer_cols(Infer *i);
void infer_part(Infer *i);
void infer_cast(Infer *i);
void infer_bcast(Infer *i);
void infer_same(Infer *i);
void infer_uniform(Infer *i);
void infer_reduce_cols(Infer *i);
void infer_reduce_rows(Infer *i);
void infer_matmul(Infer *i);
void infer_take(Infer *i);
void infer_put(Infer *i);
void infer_sort(Infer *i);
void infer_append(Infer *i);
void infer_attend(Infer *i);
void infer_attend_bwd(Infer *i);
void infer_linear_logprob(Infer *i);
void infer_linear_logprob_bwd(Infer *i);
void infer_effect(Infer *i);

PRINTF(2, 3) static void wrong(Infer *i, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (!i->message) i->message = arena_vprintf(i->arena, format, args);
    va_end(args);
}

static const char *show(Infer *i, Dim d) {
    return dim_print(i->arena, d);
}

static bool is_float(const Type *t) {
    return t->dtype == DT_f32 || t->dtype == DT_bf16 || t->dtype == DT_f16;
}

static bool same_dims(const Type *a, const Type *b) {
    return type_with(a, b->dtype) == b;
}

/* Operand k must have this dtype and rank (-1: any). */
static bool want(Infer *i, int k, DType dtype, int rank) {
    const Type *t = i->in[k];
    if (t->dtype != dtype)
        wrong(i, "operand %d must be %s, not %s", k + 1, dtype_name(dtype), dtype_name(t->dtype));
    else if (rank >= 0 && t->rank != rank)
        wrong(i, "operand %d must have %d axes, not %d", k + 1, rank, t->rank);
    return !i->message;
}

static bool want_type(Infer *i, int k, const Type *type) {
    if (i->in[k] != type)
        wrong(i, "operand %d must be %s, not %s", k + 1, type_print(i->arena, type),
              type_print(i->arena, i->in[k]));
    return !i->message;
}

/* Sets the result after the check every type goes through. */
static void result(Infer *i, DType dtype, int rank, const Dim *dim) {
    if (i->message) return;
    int varying = 0;
    for (int k = 0; k < rank; k++) {
        varying += !dim_is_const(dim[k]);
        if (dim_is_const(dim[k]) && dim[k].c < 0)
            wrong(i, "an axis would have size %s", show(i, dim[k]));
    }
    if (varying > 1) wrong(i, "two axes would depend on the size of the batch");
    if (!i->message) i->result = type_of(dtype, rank, dim);
}

/* ---- leaves, views --------------------------------------------------------------------------- */

static void given_leaf(Infer *i) {
    const Attr *a = i->attr;
    switch (i->op) {
    case OP_const:
        if (i->given->dtype != DT_f32) wrong(i, "a constant must be f32");
        break;
    case OP_table:
        if (!a->table || i->given->dtype != DT_f32 || i->given->rank != 1 ||
            !dim_equal(i->given->dim[0], dim_const(table_size(a->table))))
            wrong(i, "a table must be f32 [its size]");
        break;
    case OP_input:
    case OP_state:
        if (!a->name) wrong(i, "a leaf needs a name");
        if (a->i0 < 0 || a->i0 >= NPHASE) wrong(i, "no such phase: %lld", (long long)a->i0);
        if (i->op == OP_state && (a->i1 < 0 || a->i1 >= NROLE))
            wrong(i, "no such role: %lld", (long long)a->i1);
        break;
    default:
        if (!a->name) wrong(i, "a leaf needs a name");
    }
}

static void given_slot(Infer *i) {
    if (!want(i, 0, DT_f32, 1)) return;
    Dim n = type_count(i->given), all = i->in[0]->dim[0];
    if (i->given->dtype != DT_f32) wrong(i, "a slot must be f32");
    if (!dim_is_const(n) || !dim_is_const(all) || i->attr->i0 < 0 || i->attr->i0 > all.c - n.c)
        wrong(i, "elements %lld.. of %s do not hold %s", (long long)i->attr->i0, show(i, all),
              type_print(i->arena, i->given));
}

static void given_dequant(Infer *i) {
    const char *name = i->attr->name;
    bool nf4 = name == intern("nf4") || name == intern("fp4"), int8 = name == intern("int8");
    if (!nf4 && !int8) {
        wrong(i, "unknown format '%s'", name ? name : "");
        return;
    }
    int64_t block = i->attr->i0;
    bool nested = i->attr->i1 != 0;
    Dim n = type_count(i->given);
    if (!is_float(i->given) || !dim_is_const(n)) wrong(i, "a weight has a fixed size");
    if (block <= 0) wrong(i, "block must be positive, not %lld", (long long)block);
    if (i->nin != (nested ? 5 : 2)) wrong(i, "takes %d operands", nested ? 5 : 2);
    if (i->message) return;
    int64_t blocks = n.c / block + (n.c % block != 0);
    want_type(i, 0, type_vec(DT_u8, dim_const(nf4 ? (n.c + 1) / 2 : n.c)));
    want_type(i, 1, type_vec(nested ? DT_u8 : DT_f32, dim_const(blocks)));
    if (!nested) return;
    want_type(i, 2, type_vec(DT_f32, dim_const((blocks + 255) / 256)));
    want_type(i, 3, type_vec(DT_f32, dim_const(1)));
    want_type(i, 4, type_vec(DT_f32, dim_const(256)));
}

void infer_given(Infer *i) {
    if (!i->given) {
        wrong(i, "needs a type");
        return;
    }
    if (i->op == OP_reshape) {
        if (i->given->dtype != i->in[0]->dtype ||
            !dim_equal(type_count(i->given), type_count(i->in[0])))
            wrong(i, "can't become %s", type_print(i->arena, i->given));
    } else if (i->op == OP_slot) {
        given_slot(i);
    } else if (i->op == OP_dequant) {
        given_dequant(i);
    } else {
        given_leaf(i);
    }
    result(i, i->given->dtype, i->given->rank, i->given->dim);
}

void infer_rows(Infer *i) {
    const Type *x = i->in[0];
    if (!x->rank) {
        wrong(i, "a scalar has no rows");
        return;
    }
    Dim end = dim_add(i->attr->dim, i->attr->dim2), all = x->dim[0];
    bool fixed = dim_is_const(end) && dim_is_const(all);
    if (fixed && (i->attr->dim.c < 0 || i->attr->dim2.c < 0 || end.c > all.c))
        wrong(i, "rows %s..%s of %s", show(i, i->attr->dim), show(i, end), show(i, all));
    Dim dim[MAX_RANK];
    for (int k = 0; k < x->rank; k++) dim[k] = k ? x->dim[k] : i->attr->dim2;
    result(i, x->dtype, x->rank, dim);
}

void infer_cols(Infer *i) {
    const Type *x = i->in[0];
    if (!x->rank || !dim_is_const(x->dim[x->rank - 1])) {
        wrong(i, "has no columns");
        return;
    }
    int64_t begin = i->attr->i0, count = i->attr->i1, all = type_cols(x);
    if (begin < 0 || count < 0 || begin > all - count)
        wrong(i, "columns %lld.. (%lld of them) of %lld", (long long)begin, (long long)count,
              (long long)all);
    Dim dim[MAX_RANK];
    for (int k = 0; k < x->rank; k++) dim[k] = x->dim[k];
    dim[x->rank - 1] = dim_const(count);
    result(i, x->dtype, x->rank, dim);
}

void infer_part(Infer *i) {
    const Node *of = &i->g->node[i->id[0]];
    const Type *in[MAX_IN] = {0};
    for (int k = 0; k < of->nin; k++) in[k] = i->g->node[of->in[k]].type;
    int64_t k = i->attr->i0;
    const Type *t = NULL;
    if (of->op == OP_sort && k == 1)
        t = type_with(of->type, DT_i32);
    else if (of->op == OP_attend && k == 1)
        t = type_mat(DT_f32, of->type->dim[0], of->type->dim[1]);
    else if (of->op == OP_attend_bwd && (k == 1 || k == 2))
        t = in[k];
    else if (of->op == OP_linear_logprob && k >= 1 && k <= 5)
        t = of->type;
    else if (of->op == OP_linear_logprob && k == 6)
        t = type_with(in[0], DT_f32);
    else if (of->op == OP_linear_logprob_bwd && k == 1)
        t = type_with(in[1], DT_f32);
    if (!t)
        wrong(i, "%s has no part %lld", op_info[of->op].name, (long long)k);
    else
        result(i, t->dtype, t->rank, t->dim);
}

/* ---- maps, reductions ------------------------------------------------------------------------ */

void infer_cast(Infer *i) {
    const Type *x = i->in[0];
    DType to = (DType)i->attr->i0;
    if (to != DT_f32 && to != DT_bf16 && to != DT_f16 && to != DT_u8) {
        wrong(i, "can't round to that type");
        return;
    }
    if (x->dtype != DT_f32 && to == DT_u8) wrong(i, "only f32 becomes u8");
    if (x->dtype == DT_u8 && to != DT_f32) wrong(i, "u8 becomes f32 only");
    result(i, to, x->rank, x->dim);
}

void infer_bcast(Infer *i) {
    if (!i->given) {
        wrong(i, "needs a type");
        return;
    }
    const Type *x = i->in[0], *to = i->given;
    if (!want(i, 0, DT_f32, -1)) return;
    bool fits = x->rank <= to->rank && to->dtype == DT_f32;
    int skip = to->rank - x->rank;
    int lead = i->attr->i0 == 1 ? x->rank : i->attr->i0 == 2 ? 1 : 0; /* axes before those added */
    for (int k = 0; fits && k < x->rank; k++)
        fits = dim_equal(x->dim[k], to->dim[k < lead ? k : k + skip]);
    if (!fits) wrong(i, "does not stretch to %s", type_print(i->arena, to));
    result(i, DT_f32, to->rank, to->dim);
}

void infer_same(Infer *i) {
    for (int k = 0; k < i->nin; k++) {
        want(i, k, DT_f32, -1);
        if (i->in[k] != i->in[0]) wrong(i, "shapes differ");
    }
    const Type *x = i->in[0];
    if (i->op == OP_rotate_half &&
        (!x->rank || type_cols(x) % 2 || !dim_is_const(x->dim[x->rank - 1])))
        wrong(i, "the last axis must have an even size");
    result(i, DT_f32, x->rank, x->dim);
}

void infer_uniform(Infer *i) {
    if (!want(i, 0, DT_i32, 2) || !want(i, 1, DT_i32, 1)) return;
    if (!dim_equal(i->in[0]->dim[1], dim_const(2))) wrong(i, "keys must be [rows,2]");
    if (!dim_equal(i->in[1]->dim[0], dim_const(2))) wrong(i, "seed must be [2]");
    result(i, DT_f32, 2, (Dim[]){i->in[0]->dim[0], dim_const(i->attr->i1)});
}

void infer_reduce_cols(Infer *i) {
    if (!want(i, 0, DT_f32, -1)) return;
    if (!i->in[0]->rank) wrong(i, "a scalar has nothing to reduce");
    result(i, DT_f32, i->in[0]->rank - 1, i->in[0]->dim);
}

void infer_reduce_rows(Infer *i) {
    const Type *x = i->in[0];
    if (!want(i, 0, DT_f32, -1)) return;
    if (!x->rank) wrong(i, "a scalar has nothing to reduce");
    if (x->rank == 1)
        result(i, DT_f32, 0, NULL);
    else
        result(i, DT_f32, 1, &x->dim[x->rank - 1]);
}

void infer_matmul(Infer *i) {
    const Type *a = i->in[0], *b = i->in[1];
    if ((a->dtype != DT_f32 && a->dtype != DT_bf16) || b->dtype != a->dtype)
        wrong(i, "both operands must be f32, or both bf16");
    if (a->rank != 2 || b->rank != 2) wrong(i, "both operands must be matrices");
    if (i->message) return;
    bool ta = i->attr->i0 != 0, tb = i->attr->i1 != 0;
    Dim k = a->dim[!ta], kb = b->dim[tb];
    if (!dim_equal(k, kb)) wrong(i, "%s columns against %s rows", show(i, k), show(i, kb));
    result(i, DT_f32, 2, (Dim[]){a->dim[ta], b->dim[!tb]});
}

/* ---- gather, scatter, sort ------------------------------------------------------------------- */

void infer_take(Infer *i) {
    const Type *x = i->in[0];
    if (!want(i, 1, DT_i32, 1)) return;
    if (!x->rank) {
        wrong(i, "a scalar has no rows");
        return;
    }
    Dim dim[MAX_RANK];
    for (int k = 0; k < x->rank; k++) dim[k] = k ? x->dim[k] : i->in[1]->dim[0];
    result(i, x->dtype, x->rank, dim);
}

void infer_put(Infer *i) {
    const Type *x = i->in[0];
    if (!want(i, 0, DT_f32, -1) || !want(i, 1, DT_i32, 1)) return;
    if (!x->rank || !dim_equal(x->dim[0], i->in[1]->dim[0])) {
        wrong(i, "as many rows as row numbers are needed");
        return;
    }
    Dim dim[MAX_RANK];
    for (int k = 0; k < x->rank; k++) dim[k] = k ? x->dim[k] : i->attr->dim;
    result(i, DT_f32, x->rank, dim);
}

void infer_append(Infer *i) {
    const Type *cache = i->in[0], *x = i->in[1];
    const Node *leaf = node(i->g, i->id[0]);
    if (leaf->op != OP_state || leaf->attr.i1 != ROLE_CACHE) wrong(i, "operand 1 is no cache");
    if (i->message || !want(i, 2, DT_i32, 1)) return;
    bool fits = x->rank > 0 && x->rank == cache->rank && x->dtype == cache->dtype &&
                dim_equal(x->dim[0], i->in[2]->dim[0]);
    for (int k = 1; k < x->rank && fits; k++) fits = dim_equal(x->dim[k], cache->dim[k]);
    if (!fits) wrong(i, "rows as the cache has them are needed, and a row number for each");
    result(i, cache->dtype, cache->rank, cache->dim);
}

void infer_sort(Infer *i) {
    if (want(i, 0, DT_f32, 1)) result(i, DT_f32, 1, i->in[0]->dim);
}

/* ---- attention, the head --------------------------------------------------------------------- */

static bool attention_operands(Infer *i) {
    const Type *q = i->in[0], *k = i->in[1], *v = i->in[2];
    if (q->dtype != DT_f32 && q->dtype != DT_bf16) wrong(i, "q must be f32 or bf16");
    if (q->rank != 3 || k->rank != 3 || k != v || k->dtype != q->dtype)
        wrong(i, "q must be [rows,heads,size], k and v [rows,kv heads,size] of the same type");
    if (i->message) return false;
    Dim h = q->dim[1], hk = k->dim[1];
    if (!dim_equal(q->dim[2], k->dim[2]))
        wrong(i, "heads of size %s against %s", show(i, q->dim[2]), show(i, k->dim[2]));
    if (!dim_is_const(h) || !dim_is_const(hk) || hk.c < 1 || h.c % hk.c)
        wrong(i, "%s query heads are not a multiple of %s", show(i, h), show(i, hk));
    return !i->message;
}

/* i32 [any, n] */
static void index_table(Infer *i, int k, int64_t n) {
    if (want(i, k, DT_i32, 2) && !dim_equal(i->in[k]->dim[1], dim_const(n)))
        wrong(i, "operand %d must be [rows,%lld]", k + 1, (long long)n);
}

void infer_attend(Infer *i) {
    if (!attention_operands(i)) return;
    index_table(i, 3, 6);
    if (i->attr->i0 < 0) wrong(i, "window must not be negative");
    result(i, i->in[0]->dtype, 3, i->in[0]->dim);
}

void infer_attend_bwd(Infer *i) {
    if (!attention_operands(i)) return;
    const Type *q = i->in[0];
    want_type(i, 3, q);
    want_type(i, 4, type_mat(DT_f32, q->dim[0], q->dim[1]));
    want_type(i, 5, q);
    index_table(i, 6, 6);
    index_table(i, 7, 4);
    result(i, q->dtype, 3, q->dim);
}

static bool head_operands(Infer *i) {
    const Type *h = i->in[0], *w = i->in[1];
    if ((h->dtype != DT_f32 && h->dtype != DT_bf16) || w->dtype != h->dtype)
        wrong(i, "h and W must both be f32, or both bf16");
    if (h->rank != 2 || w->rank != 2) wrong(i, "h and W must be matrices");
    if (i->message || !want(i, 2, DT_i32, 1)) return false;
    if (!dim_equal(h->dim[1], w->dim[1]))
        wrong(i, "rows of %s against %s", show(i, h->dim[1]), show(i, w->dim[1]));
    if (!dim_equal(h->dim[0], i->in[2]->dim[0])) wrong(i, "one target per row is needed");
    return !i->message;
}

void infer_linear_logprob(Infer *i) {
    if (head_operands(i)) result(i, DT_f32, 1, i->in[0]->dim);
}

void infer_linear_logprob_bwd(Infer *i) {
    if (!head_operands(i)) return;
    const Type *row = type_vec(DT_f32, i->in[0]->dim[0]);
    want_type(i, 3, row);
    want_type(i, 4, row);
    result(i, DT_f32, 2, i->in[0]->dim);
}

/* ---- effects --------------------------------------------------------------------------------- */

void infer_effect(Infer *i) {
    const Graph *g = i->g;
    NodeId base = graph_base(g, i->id[0]);
    if (g->node[base].op != OP_state) wrong(i, "writes something that is not a state");
    if (i->in[0] != i->in[1])
        wrong(i, same_dims(i->in[0], i->in[1]) ? "the element types differ" : "the shapes differ");
    if (i->op == OP_accumulate) want(i, 0, DT_f32, -1);
    result(i, i->in[0]->dtype, i->in[0]->rank, i->in[0]->dim);
}
