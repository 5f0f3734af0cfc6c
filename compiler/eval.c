/* eval.c: the truth.  Interprets a graph node by node, in double, or rounding every node to its
 * dtype.
 *
 * Slow and obvious: views copy, effects write their leaf's storage after all other nodes of the
 * phase. The ops' meanings are in eval_ops.c and eval_nn.c.  Relies on graph.c.
 * Promises: a leaf's storage lives until eval_free and is shared by all leaves of that name.
 */
#include "eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void eval_const(Eval *e, NodeId id);
void eval_table(Eval *e, NodeId id);
void eval_leaf(Eval *e, NodeId id);
void eval_view(Eval *e, NodeId id);
void eval_part(Eval *e, NodeId id);
void eval_effect(Eval *e, NodeId id);
void eval_append(Eval *e, NodeId id);

static double *zeros(int64_t n) {
    double *x = calloc((size_t)(n > 0 ? n : 1), sizeof *x);
    if (!x) {
        fprintf(stderr, "out of memory\n");
        exit(EXIT_MEMORY);
    }
    return x;
}

int64_t eval_count(const Eval *e, NodeId id) {
    return eval_dim(e, type_count(e->g->node[id].type));
}

double *eval_out(Eval *e, NodeId id) {
    free(e->value[id]);
    return e->value[id] = zeros(eval_count(e, id));
}

double *eval_part_out(Eval *e, NodeId id, int k, int64_t count) {
    free(e->part[id][k]);
    return e->part[id][k] = zeros(count);
}

/* ---- storage --------------------------------------------------------------------------------- */

static EvalStore *find_store(const Eval *e, const char *key) {
    for (int i = 0; i < e->nstores; i++)
        if (!strcmp(e->stores[i].key, key)) return &e->stores[i];
    return NULL;
}

static void store_resize(EvalStore *s, int64_t count) {
    double *values = zeros(count);
    if (s->values) memcpy(values, s->values, sizeof *values * (size_t)s->count);
    free(s->values);
    s->values = values;
    s->count = count;
}

static void add_store(Eval *e, NodeId id) {
    const Node *n = &e->g->node[id];
    const char *key = n->attr.name;
    if (n->op == OP_weight) key = intern_printf("%s/%s", n->attr.name2, n->attr.name);
    EvalStore *s = find_store(e, key);
    if (!s) {
        e->stores = realloc(e->stores, sizeof *e->stores * (size_t)(e->nstores + 1));
        if (!e->stores) abort();
        s = &e->stores[e->nstores++];
        *s = (EvalStore){.key = key};
    }
    int64_t count = eval_count(e, id);
    if (!s->values || s->count < count) store_resize(s, count);
    e->store[id] = (int)(s - e->stores);
}

Eval *eval_new(const Graph *g, EvalMode mode, const int64_t extent[NEXTENT]) {
    Eval *e = calloc(1, sizeof *e);
    if (!e) abort();
    e->g = g;
    e->mode = mode;
    memcpy(e->extent, extent, sizeof e->extent);
    e->value = calloc((size_t)g->n, sizeof *e->value);
    e->part = calloc((size_t)g->n, sizeof *e->part);
    e->store = calloc((size_t)g->n, sizeof *e->store);
    if (!e->value || !e->part || !e->store) abort();
    for (NodeId id = 1; id < g->n; id++) {
        Op op = g->node[id].op;
        e->store[id] = -1;
        if (op == OP_input || op == OP_weight || op == OP_state) add_store(e, id);
    }
    return e;
}

void eval_free(Eval *e) {
    if (!e) return;
    for (NodeId id = 0; id < e->g->n; id++) {
        free(e->value[id]);
        for (int k = 0; k < EVAL_PARTS; k++) free(e->part[id][k]);
    }
    for (int i = 0; i < e->nstores; i++) free(e->stores[i].values);
    free(e->stores);
    free(e->value);
    free(e->part);
    free(e->store);
    free(e);
}

void eval_set(Eval *e, const char *leaf, const double *values, int64_t count) {
    EvalStore *s = find_store(e, leaf);
    if (!s) return; /* the graph does not read it */
    if (count > s->count) count = s->count;
    memset(s->values, 0, sizeof *values * (size_t)s->count);
    if (count > 0) memcpy(s->values, values, sizeof *values * (size_t)count);
}

const double *eval_get(Eval *e, NodeId id, int64_t *count) {
    if (count) *count = eval_count(e, id);
    return e->value[id];
}

const double *eval_state(Eval *e, const char *leaf, int64_t *count) {
    const EvalStore *s = find_store(e, leaf);
    if (count) *count = s ? s->count : 0;
    return s ? s->values : NULL;
}

/* ---- running --------------------------------------------------------------------------------- */

static double rounded(double x, DType t) {
    switch (t) {
    case DT_f32:
        return (double)(float)x;
    case DT_bf16:
        return (double)bf16_to_float(float_to_bf16((float)x));
    case DT_f16:
        return (double)f16_to_float(float_to_f16((float)x));
    default:
        return x;
    }
}

static void round_values(const Eval *e, double *x, int64_t n, DType t) {
    if (e->mode != EVAL_ROUNDING || t == DT_i32 || t == DT_u8) return;
    for (int64_t i = 0; i < n; i++) x[i] = rounded(x[i], t);
}

static void run_phase(Eval *e, Phase phase) {
    const Graph *g = e->g;
    for (NodeId id = 1; id < g->n; id++) {
        const Node *n = &g->node[id];
        if (n->phase != phase || op_info[n->op].kind == KIND_EFFECT) continue;
        op_info[n->op].eval(e, id);
        round_values(e, e->value[id], eval_count(e, id), n->type->dtype);
    }
    for (int i = 0; i < g->nroot; i++) {
        const Node *n = &g->node[g->root[i]];
        if (n->phase == phase && op_info[n->op].kind == KIND_EFFECT)
            op_info[n->op].eval(e, g->root[i]);
    }
    e->ran[phase] = true;
}

void eval_run(Eval *e, Phase phase, bool only) {
    for (int p = PHASE_INIT; p < (int)phase && !only; p++)
        if (!e->ran[p]) run_phase(e, (Phase)p);
    run_phase(e, phase);
}

/* ---- leaves and views ------------------------------------------------------------------------ */

void eval_const(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    for (int64_t i = 0, n = eval_count(e, id); i < n; i++) y[i] = eval_node(e, id)->attr.num;
}

void eval_table(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    for (int64_t i = 0, n = eval_count(e, id); i < n; i++)
        y[i] = (double)eval_node(e, id)->attr.table[i];
}

void eval_leaf(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    memcpy(y, e->stores[e->store[id]].values, sizeof *y * (size_t)eval_count(e, id));
}

/* The place in the operand of each of a view's elements. */
static int64_t view_index(const Eval *e, NodeId id, int64_t i) {
    const Node *n = eval_node(e, id);
    switch (n->op) {
    case OP_rows:
        return eval_dim(e, n->attr.dim) * eval_row(e, n->type) + i;
    case OP_cols:
        return i / n->attr.i1 * eval_last(e, eval_type_in(e, id, 0)) + n->attr.i0 + i % n->attr.i1;
    case OP_slot:
        return n->attr.i0 + i;
    default: /* reshape */
        return i;
    }
}

void eval_view(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    const double *x = eval_in(e, id, 0);
    int64_t all = eval_count(e, eval_node(e, id)->in[0]);
    for (int64_t i = 0, n = eval_count(e, id); i < n; i++) {
        int64_t from = view_index(e, id, i);
        if (from < all) y[i] = x[from];
    }
}

void eval_part(Eval *e, NodeId id) {
    const Node *n = eval_node(e, id);
    double *y = eval_out(e, id);
    const double *x = e->part[n->in[0]][n->attr.i0];
    memcpy(y, x, sizeof *y * (size_t)eval_count(e, id));
}

/* ---- effects --------------------------------------------------------------------------------- */

void eval_effect(Eval *e, NodeId id) {
    const Node *n = eval_node(e, id);
    EvalStore *s = &e->stores[e->store[graph_base(e->g, n->in[0])]];
    const double *x = eval_in(e, id, 1);
    double *y = eval_out(e, id);
    for (int64_t i = 0, count = eval_count(e, id); i < count; i++) {
        int64_t at = i;
        for (NodeId v = n->in[0]; op_info[eval_node(e, v)->op].kind == KIND_VIEW;
             v = eval_node(e, v)->in[0])
            at = view_index(e, v, at);
        if (at >= s->count) continue;
        double sum = n->op == OP_accumulate ? s->values[at] + x[i] : x[i];
        s->values[at] = e->mode == EVAL_ROUNDING ? rounded(sum, n->type->dtype) : sum;
        y[i] = s->values[at];
    }
}

/* The only reader of its state, so it can write it at once. */
void eval_append(Eval *e, NodeId id) {
    EvalStore *s = &e->stores[e->store[eval_node(e, id)->in[0]]];
    const double *x = eval_in(e, id, 1), *index = eval_in(e, id, 2);
    const int64_t rows = eval_dim(e, eval_type_in(e, id, 2)->dim[0]);
    const int64_t cols = eval_row(e, eval_node(e, id)->type), count = eval_count(e, id);
    double *y = eval_out(e, id);
    for (int64_t t = 0; t < rows; t++) {
        const int64_t at = (int64_t)index[t] * cols;
        if (at >= 0 && at + cols <= count)
            memcpy(s->values + at, x + t * cols, sizeof *x * (size_t)cols);
    }
    memcpy(y, s->values, sizeof *y * (size_t)count);
}
