/* group_run.h: runs a unit's groups the slow way: Kerns by the semantics of kern.h, GEMMs as three
 * loops, CUSTOM ops by copying the evaluator's result.
 *
 * Values live in one array per stored base, filled with NaN until written, so a wrong order, a
 * wrong place or a value that nobody stored shows.  With `isolated`, every group reads the
 * evaluator's values instead, and arithmetic is rounded to f32 as kernels do: then kernels without
 * reductions must agree with EVAL_ROUNDING to the bit.
 */
#ifndef GROUP_RUN_H
#define GROUP_RUN_H

#include "compiler/kern.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct GroupRun {
    const Unit *u;
    const Graph *g;
    Eval *truth;    /* of the same graph, run through all phases */
    double **value; /* by base node */
    const int64_t *extent;
    bool rounds;
} GroupRun;

static inline NodeId gr_state(const GroupRun *r, NodeId base) { /* the first leaf of that name */
    const Node *n = node(r->g, base);
    return n->op == OP_state ? graph_find(r->g, OP_state, n->attr.name) : base;
}

static inline double *gr_at(const GroupRun *r, NodeId view) {
    Place p = place_of(r->g, view);
    double *v = r->value[gr_state(r, p.base)];
    assert_non_null(v);
    return v + dim_eval(p.offset, r->extent);
}

static inline double *gr_nans(const GroupRun *r, NodeId id) {
    int64_t n = dim_eval(type_count(node(r->g, id)->type), r->extent);
    double *v = malloc(sizeof *v * (size_t)(n + 1));
    for (int64_t i = 0; i < n; i++) v[i] = NAN;
    return v;
}

static inline double gr_round(const GroupRun *r, double x, DType t) {
    if (!r->rounds) return x;
    return t == DT_bf16 ? (double)bf16_to_float(float_to_bf16((float)x)) : (double)(float)x;
}

static inline double gr_op(Op op, double a, double b, double c) {
    switch (op) {
    case OP_cast:
        return a;
    case OP_neg:
        return -a;
    case OP_abs:
        return fabs(a);
    case OP_exp:
        return exp(a);
    case OP_log:
        return log(a);
    case OP_sqrt:
        return sqrt(a);
    case OP_rsqrt:
        return 1 / sqrt(a);
    case OP_sin:
        return sin(a);
    case OP_cos:
        return cos(a);
    case OP_tanh:
        return tanh(a);
    case OP_erf:
        return erf(a);
    case OP_sigmoid:
        return 1 / (1 + exp(-a));
    case OP_log_sigmoid:
        return fmin(a, 0) - log1p(exp(-fabs(a)));
    case OP_add:
        return a + b;
    case OP_sub:
        return a - b;
    case OP_mul:
        return a * b;
    case OP_div:
        return a / b;
    case OP_max:
        return a > b ? a : b;
    case OP_min:
        return a < b ? a : b;
    case OP_pow:
        return pow(a, b);
    case OP_lt:
        return a < b;
    case OP_le:
        return a <= b;
    case OP_eq:
        return a == b;
    case OP_select:
        return a != 0 ? b : c;
    default:
        print_error("op %s in a kernel\n", op_info[op].name);
        abort();
    }
}

/* Element (row, col) of value i; reductions come from `reduced`. */
typedef struct KernRun {
    const GroupRun *r;
    const Kern *k;
    double **cell; /* [nval][cols] of the current row; columns of sums */
} KernRun;

static inline int64_t gr_address(const KernRun *x, const KVal *v, int64_t row, int64_t col,
                                 bool *none) {
    int64_t at = row / v->rowdiv;
    *none = false;
    if (v->level == LEVEL_SCALAR) return 0;
    if (v->level == LEVEL_COL) return col;
    if (v->index >= 0) {
        at = (int64_t)gr_at(x->r, x->k->arg[v->index].node)[at];
        *none = at < 0;
    }
    return at * v->ld + (v->level == LEVEL_ELEM ? col : 0);
}

static inline NodeId gr_storage(const KernRun *x, int arg) {
    return x->k->arg[arg].node;
}

static inline double gr_load(const KernRun *x, const KVal *v, int64_t row, int64_t col) {
    bool none;
    int64_t half = x->k->cols / 2, from = v->half ? (col < half ? col + half : col - half) : col;
    int64_t at = gr_address(x, v, row, from, &none);
    double y = none ? 0 : gr_at(x->r, gr_storage(x, v->arg))[at];
    return v->half && col < half ? -y : y;
}

static inline void gr_row(const KernRun *x, int64_t row) {
    const Kern *k = x->k;
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        double *y = x->cell[i], **c = x->cell;
        bool sums = v->kop == KOP_OP && (v->op == OP_sum_cols || v->op == OP_max_cols);
        if (v->kop == KOP_STORE || (v->kop == KOP_OP && v->op == OP_sum_rows && row == 0)) {
            for (int64_t j = 0; v->kop == KOP_OP && j < k->cols; j++) y[j] = c[v->a][j];
            continue;
        }
        double total = sums && v->op == OP_max_cols ? -INFINITY : 0;
        for (int64_t j = 0; j < k->cols; j++) {
            if (v->kop == KOP_LOAD)
                y[j] = gr_load(x, v, row, j);
            else if (v->kop == KOP_CONST)
                y[j] = gr_round(x->r, v->num, DT_f32);
            else if (v->op == OP_sum_rows)
                y[j] += c[v->a][j];
            else if (sums)
                total = v->op == OP_sum_cols ? total + c[v->a][j] : fmax(total, c[v->a][j]);
            else
                y[j] = gr_round(
                    x->r,
                    gr_op(v->op, c[v->a][j], v->b < 0 ? 0 : c[v->b][j], v->c < 0 ? 0 : c[v->c][j]),
                    v->op == OP_cast ? v->dtype : DT_f32);
        }
        for (int64_t j = 0; sums && j < k->cols; j++) y[j] = total;
    }
}

static inline void gr_store(const KernRun *x, int64_t row) {
    for (int i = 0; i < x->k->nval; i++) {
        const KVal *v = &x->k->val[i];
        if (v->kop != KOP_STORE) continue;
        assert_true(x->k->arg[v->arg].write);
        NodeId target = gr_storage(x, v->arg);
        bool none;
        int64_t n = v->level == LEVEL_ELEM || v->level == LEVEL_COL ? x->k->cols : 1;
        for (int64_t j = 0; j < n; j++) {
            double *y = gr_at(x->r, target) + gr_address(x, v, row, j, &none);
            double new = x->cell[v->a][j];
            *y = gr_round(x->r, v->accumulate ? *y + new : new, DT_f32);
        }
    }
}

static inline void gr_kern(const GroupRun *r, const Kern *k) {
    KernRun x = {.r = r, .k = k, .cell = calloc((size_t)k->nval, sizeof(double *))};
    for (int i = 0; i < k->nval; i++) x.cell[i] = calloc((size_t)k->cols + 1, sizeof(double));
    int64_t rows = dim_eval(k->rows, r->extent);
    for (int64_t row = 0; row < rows; row++) {
        gr_row(&x, row);
        if (k->shape == KERN_ROWS) gr_store(&x, row);
    }
    if (k->shape == KERN_SUM_ROWS) gr_store(&x, 0);
    for (int i = 0; i < k->nval; i++) free(x.cell[i]);
    free(x.cell);
}

static inline void gr_gemm(const GroupRun *r, const Group *group) {
    const Gemm *p = &group->gemm;
    int64_t m = dim_eval(group->m, r->extent), n = dim_eval(group->n, r->extent),
            k = dim_eval(group->k, r->extent);
    const double *a = gr_at(r, group->a), *b = gr_at(r, group->b);
    const double *bias = group->bias ? gr_at(r, group->bias) : NULL;
    double *c = gr_at(r, group->c);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += a[p->ta ? l * p->lda + i : i * p->lda + l] *
                       b[p->tb ? j * p->ldb + l : l * p->ldb + j];
            double old = p->beta != 0 ? (double)p->beta * c[i * p->ldc + j] : 0;
            c[i * p->ldc + j] = (double)p->alpha * sum + old + (bias ? bias[j] : 0);
        }
}

static inline void gr_copy(const GroupRun *r, NodeId id) {
    int64_t n;
    const double *v = eval_get(r->truth, id, &n);
    if (!r->value[id]) r->value[id] = gr_nans(r, id);
    memcpy(r->value[id], v, sizeof *v * (size_t)n);
}

static inline void gr_group(const GroupRun *r, const Group *group) {
    const Graph *g = r->g;
    for (int i = 0; i < group->nouts; i++) {
        NodeId id = group->outs[i];
        if (op_info[node(g, id)->op].kind == KIND_EFFECT || r->value[id]) continue;
        r->value[id] = group->inplace ? r->value[group->inplace] : gr_nans(r, id);
        if (group->inplace) r->value[group->inplace] = NULL; /* gone: reading it is a bug */
    }
    if (group->kind == GROUP_KERN) gr_kern(r, group->kern);
    if (group->kind == GROUP_GEMM) gr_gemm(r, group);
    for (int i = 0; group->kind == GROUP_CUSTOM && i < group->nouts; i++)
        gr_copy(r, group->outs[i]);
}

/* Leaves as they are before everything; `truth` must not have run yet. */
static inline GroupRun gr_new(const Unit *u, Eval *truth, const int64_t *extent) {
    GroupRun r = {.u = u, .g = u->g, .truth = truth, .extent = extent};
    r.value = calloc((size_t)u->g->n, sizeof *r.value);
    for (NodeId id = 1; id < u->g->n; id++) {
        const Node *n = node(u->g, id);
        int64_t count;
        if (n->op != OP_state || gr_state(&r, id) != id) continue;
        r.value[id] = gr_nans(&r, id);
        const double *v = eval_state(truth, n->attr.name, &count);
        memcpy(r.value[id], v, sizeof *v * (size_t)count);
    }
    return r;
}

static inline void gr_leaves(GroupRun *r) { /* after `truth` ran */
    for (NodeId id = 1; id < r->g->n; id++) {
        Op op = node(r->g, id)->op;
        if (op == OP_input || op == OP_weight || op == OP_table) gr_copy(r, id);
    }
}

static inline void gr_all(const GroupRun *r) {
    for (int phase = 0; phase < NPHASE; phase++)
        for (int i = 0; i < r->u->ngroups; i++)
            if ((int)r->u->groups[i].phase == phase) gr_group(r, &r->u->groups[i]);
}

static inline void gr_free(GroupRun *r) {
    for (NodeId id = 0; id < r->g->n; id++) free(r->value[id]);
    free(r->value);
}

/* The largest |x - y| / (1 + |y|); infinite for a NaN. */
static inline double gr_distance(const double *x, const double *y, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs(x[i] - y[i]) / (1 + fabs(y[i]));
        if (isnan(d)) d = INFINITY;
        if (d > worst) worst = d;
    }
    return worst;
}

#endif
