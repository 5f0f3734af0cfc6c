/* lora.c: adapters beside the weights they adapt, as PEFT computes them.
 *
 * y = W x + s B A x, s = alpha / r (rslora: alpha / sqrt r), A reading dropout(x).  On rows that
 * are looked up: y = E[t] + s B A[:,t].  On the weight that makes the logits W + s B A is formed
 * instead.
 * PiSSA starts with A0, B0 that are not zero: y = W x + s (B A x - B0 A0 x), so that the base stays
 * what it is for the reference.
 * DoRA scales each output: y = f (W x + s B A x), f = m / n, n = |W + s B A| by rows, which passes
 * no gradient.  Without B A:
 *     n^2 = |W|^2 + rowsum((2 s W A' + s^2 B (A A')) o B)
 * where |W|^2 depends on nothing that is trained (phase init) and the rest is made once a step.
 * Relies on weight.c, graph.c; names of tensors: ../runtime/io/adapter.h.
 */
#include "front.h"
#include "../runtime/io/adapter.h"

#include <math.h>
#include <string.h>

/* ---- the tensors of an adapted weight -------------------------------------------------------- */

int adapter_matrices(const AdapterTarget *t, AdapterMatrix out[3]) {
    static const Start zero = {.init = "zero"};
    const char *name[3];
    for (int i = 0; i < 3; i++)
        name[i] = intern_printf("%s%s", t->tensor, adapter_suffix((AdapterPart)i, t->embedding));
    bool pissa = !strcmp(t->init, "pissa");
    Start start = {.init = t->init};
    if (!strcmp(t->init, "gaussian")) start.init_num = 1 / (double)t->rank;
    if (pissa)
        start = (Start){
            .init = "pissa", .init_num = adapter_scale(t), .of_source = t->source, .of = t->weight};
    out[0] = (AdapterMatrix){
        .tensor = name[0], .rank = 2, .rows = t->rank, .cols = t->cols, .start = start};
    out[1] = (AdapterMatrix){.tensor = name[1],
                             .rank = 2,
                             .rows = t->rows,
                             .cols = t->rank,
                             .start = pissa ? start : zero};
    out[2] = (AdapterMatrix){
        .tensor = name[2], .rank = 1, .rows = 1, .cols = t->rows, .start = {.init = "computed"}};
    if (t->embedding) { /* A's columns are looked up; here B is random and A zero */
        out[0].transposed = true;
        out[0].start = zero;
        out[1].start = (Start){.init = "gaussian", .init_num = 1};
    }
    return t->dora ? 3 : 2;
}

double adapter_scale(const AdapterTarget *t) {
    double r = (double)t->rank;
    return t->alpha / (t->rslora ? sqrt(r) : r);
}

bool adapter_pissa(const AdapterSpec *a, const AdapterTarget *t) {
    return !a->load && !strcmp(t->init, "pissa");
}

static const AdapterTarget *target_of(const AdapterSpec *a, const char *tensor) {
    for (int i = 0; i < a->ntarget; i++)
        if (a->target[i].tensor == tensor) return &a->target[i];
    return NULL;
}

typedef struct Lora { /* one adapter on one weight */
    NodeId a, b;      /* [rank, in] ([in, rank] where rows are looked up), [out, rank] */
    NodeId a0, b0;    /* PiSSA: their values at the start, else 0 */
    NodeId magnitude; /* [out], or 0 */
    bool trained;     /* else as it was at the start, or loaded */
    double scale, dropout;
    const AdapterSpec *adapter;
    const AdapterTarget *target;
} Lora;

static NodeId trained_or_frozen(Builder *b, const Lora *l, const AdapterMatrix *m, bool trained) {
    const AdapterSpec *a = l->adapter;
    if (trained) return trained_leaf(b, a->name, m->tensor);
    WeightInfo info = {.source = a->trained ? intern_printf("%s@start", a->name) : a->name,
                       .tensor = m->tensor,
                       .rank = m->rank,
                       .rows = m->rows,
                       .cols = m->cols,
                       .transposed = m->transposed,
                       .exact = m->rank == 1,
                       .loc = l->target->loc};
    if (l->trained) info.start = m->start; /* it is not in a file: trained from a fresh start */
    return weight_frozen(b, &info);
}

static NodeId matrix(Builder *b, const Lora *l, const AdapterMatrix *m) {
    return trained_or_frozen(b, l, m, l->trained);
}

/* What the k-th adapter of the running model does with w; NULL: nothing, as a fresh one at the
 * start. */
static const AdapterTarget *adapting(const Builder *b, const Weight *w, int k) {
    const AdapterUse *use = &b->sum->use[k];
    const AdapterSpec *a = &b->spec->adapters[use->adapter];
    return use->start && !a->load ? NULL : target_of(a, w->tensor);
}

static bool lora_of(Builder *b, const Weight *w, int k, Lora *out) {
    const AdapterUse *use = &b->sum->use[k];
    const AdapterSpec *a = &b->spec->adapters[use->adapter];
    const AdapterTarget *t = adapting(b, w, k);
    if (!t) return false;
    AdapterMatrix m[3];
    int n = adapter_matrices(t, m);
    *out = (Lora){
        .trained = a->trained && !use->start, .scale = adapter_scale(t), .adapter = a, .target = t};
    out->a = matrix(b, out, &m[0]);
    out->b = g_cast(b->g, matrix(b, out, &m[1]), b->round);
    if (!t->embedding) out->a = g_cast(b->g, out->a, b->round);
    if (out->trained && adapter_pissa(a, t)) {
        out->a0 = trained_or_frozen(b, out, &m[0], false);
        out->b0 = trained_or_frozen(b, out, &m[1], false);
    }
    if (n == 3) out->magnitude = g_cast(b->g, matrix(b, out, &m[2]), DT_f32);
    if (b->training && out->trained && !t->embedding) out->dropout = t->dropout;
    return true;
}

static NodeId times(Graph *g, double scale, NodeId x) {
    return g_op(g, OP_mul, x, g_const(g, scale, node(g, x)->type), 0);
}

/* x with every column k times f[k]. */
static NodeId columns_times(Graph *g, NodeId x, NodeId f) {
    return g_op(g, OP_mul, x, g_bcast(g, f, node(g, x)->type, 0), 0);
}

/* ---- DoRA ------------------------------------------------------------------------------------ */

/* sqrt, where a weight's row of zeros stays above zero: its factor is then 0, not 0 / 0. */
static NodeId norm_of(Graph *g, NodeId squares) {
    NodeId least = g_const(g, 1e-30, node(g, squares)->type);
    return g_op(g, OP_sqrt, g_op(g, OP_max, squares, least, 0), 0, 0);
}

/* A fresh magnitude is |W|: program "init" writes it, once in a unit. */
static void start_magnitude(Builder *b, const Lora *l, NodeId norm) {
    if (!build_once(b, "magnitude", l->target->tensor)) return;
    Unit *u = b->u;
    AdapterMatrix m[3];
    adapter_matrices(l->target, m);
    for (int i = 0; i < u->ntrained; i++) {
        const Trained *t = &u->trained[i];
        if (t->source != l->adapter->name || t->tensor != m[2].tensor) continue;
        NodeId flat = g_state(b->g, "params", PHASE_INIT, ROLE_ADAPTER,
                              type_vec(DT_f32, dim_const(u->nparams)));
        g_effect(b->g, OP_assign, g_slot(b->g, flat, t->offset, node(b->g, norm)->type), norm);
    }
}

/* f = m / |W + s B A| by outputs: [out].  W is [out, in], rows that are looked up [in, out]. */
static NodeId magnitude_factor(Builder *b, const Lora *l, NodeId weight) {
    Graph *g = b->g;
    bool rows = l->target->embedding; /* W and A lie transposed */
    NodeId w = g_cast(g, weight, DT_f32), w2 = g_op(g, OP_mul, w, w, 0);
    NodeId squares = g_op(g, rows ? OP_sum_rows : OP_sum_cols, w2, 0, 0);
    NodeId m = l->magnitude;
    bool fresh = l->trained && !l->adapter->load;
    if (fresh && b->u->still)
        m = norm_of(g, squares); /* nothing moves it from there */
    else if (fresh)
        start_magnitude(b, l, norm_of(g, squares));
    NodeId a = g_cast(g, l->a, b->round), side = g_cast(g, l->b, DT_f32);
    NodeId wa = g_matmul(g, g_cast(g, weight, b->round), a, rows, !rows);
    NodeId baa = g_matmul(g, side, g_matmul(g, a, a, rows, !rows), false, false);
    NodeId sum = g_op(g, OP_add, times(g, 2 * l->scale, wa), times(g, l->scale * l->scale, baa), 0);
    NodeId grown = g_op(g, OP_sum_cols, g_op(g, OP_mul, sum, side, 0), 0, 0);
    NodeId n = norm_of(g, g_op(g, OP_add, squares, grown, 0));
    return g_op(g, OP_div, m, g_op(g, OP_stop, n, 0, 0), 0);
}

/* ---- dropout --------------------------------------------------------------------------------- */

/* A stable number for a stream of random values. */
static int64_t stream_of(Builder *b, const Lora *l, NodeId x, const char *scope) {
    const char *key = intern_printf("%s:%s", l->adapter->name, l->target->tensor);
    if (l->target->shared_dropout) { /* one mask per input of the layer */
        Frame *f = b->frame;
        int k = 0;
        while (k < f->nmasked && f->masked[k] != x) k++;
        if (k == f->nmasked) PUSH(b->front->arena, f->masked, f->nmasked, f->capmasked, x);
        key = intern_printf("%s:%s#%d", l->adapter->name, scope, k);
    }
    return (int64_t)(hash_bytes(key, strlen(key), (Hash128){0, 0}).lo & 0x7fffffff);
}

/* x / (1 - p) where a random number is at least p, else 0. */
static NodeId dropout(Builder *b, const Lora *l, NodeId x) {
    Graph *g = b->g;
    NodeId keys[2] = {build_input(b, "rowkey", DT_i32, 2, dim_extent(X_T), 2),
                      build_input(b, "seed", DT_i32, 1, dim_const(2), 0)};
    const Type *t = node(g, x)->type;
    Attr attr = {.i0 = stream_of(b, l, x, b->frame->scope), .i1 = type_cols(t)};
    NodeId u = graph_add(g, OP_uniform, keys, 2, &attr, NULL, 0, NULL);
    const Type *f32 = type_with(t, DT_f32);
    NodeId keep = g_op(g, OP_le, g_const(g, l->dropout, f32), u, 0);
    NodeId kept = g_op(g, OP_mul, g_cast(g, x, DT_f32), keep, 0);
    return g_cast(g, times(g, 1 / (1 - l->dropout), kept), b->round);
}

/* ---- y = W x + .. ---------------------------------------------------------------------------- */

static NodeId product(Builder *b, NodeId x, NodeId a, NodeId side) {
    NodeId low = g_cast(b->g, g_matmul(b->g, x, a, false, true), b->round);
    return g_matmul(b->g, low, side, false, true);
}

/* s B A x, or its growth since the start; x has passed dropout */
static NodeId low_rank(Builder *b, const Lora *l, NodeId x) {
    NodeId y = product(b, x, l->a, l->b);
    if (l->a0) y = g_op(b->g, OP_sub, y, product(b, x, l->a0, l->b0), 0);
    return times(b->g, l->scale, y);
}

/* y + (f - 1) W x' + f s B A x' with x' = dropout(x).  Let z = W x' + s B A x', rounded, as it
 * waits for the backward.  Without dropout y is W x, and the result y + s B A x + (f - 1) z; with
 * it, y + (f z - W x'), W x' rounded.  Either way it is y where f is 1 and B is 0. */
static NodeId dora_linear(Builder *b, const Lora *l, NodeId y, NodeId x, NodeId weight) {
    Graph *g = b->g;
    bool drops = l->dropout > 0;
    NodeId in = drops ? dropout(b, l, x) : x, own = y;
    if (drops) own = g_cast(g, g_cast(g, g_matmul(g, in, weight, false, true), b->round), DT_f32);
    NodeId sum = g_op(g, OP_add, own, low_rank(b, l, in), 0);
    NodeId z = g_cast(g, g_cast(g, sum, b->round), DT_f32), f = magnitude_factor(b, l, weight);
    if (drops) return g_op(g, OP_add, y, g_op(g, OP_sub, columns_times(g, z, f), own, 0), 0);
    NodeId more = g_op(g, OP_sub, f, g_const(g, 1, node(g, f)->type), 0);
    return g_op(g, OP_add, sum, columns_times(g, z, more), 0);
}

NodeId lora_linear(Builder *b, const Ast *at, NodeId x, const Weight *w) {
    Graph *g = b->g;
    NodeId base = weight_node(b, w, false), bias = 0;
    builder_at(b, at->loc);
    NodeId y = g_matmul(g, x, base, false, true);
    if (w->bias) {
        bias = g_cast(g, weight_node(b, w, true), DT_f32);
        bias = g_bcast(g, bias, node(g, y)->type, false);
    }
    bool dora = false; /* a magnitude scales what stands before the bias */
    for (int k = 0; k < b->sum->nuse; k++) {
        const AdapterTarget *t = adapting(b, w, k);
        dora |= t && t->dora;
    }
    if (bias && !dora) y = g_op(g, OP_add, y, bias, 0);
    for (int k = 0; k < b->sum->nuse; k++) {
        Lora l;
        if (!lora_of(b, w, k, &l)) continue;
        if (l.magnitude)
            y = dora_linear(b, &l, y, x, base);
        else
            y = g_op(g, OP_add, y, low_rank(b, &l, l.dropout > 0 ? dropout(b, &l, x) : x), 0);
    }
    return bias && dora ? g_op(g, OP_add, y, bias, 0) : y;
}

NodeId lora_embed(Builder *b, const Ast *at, NodeId index, const Weight *w) {
    Graph *g = b->g;
    NodeId y = g_cast(g, g_op(g, OP_take, weight_rows(b, w), index, 0), b->round);
    builder_at(b, at->loc);
    for (int k = 0; k < b->sum->nuse; k++) {
        Lora l;
        if (!lora_of(b, w, k, &l)) continue;
        NodeId low = g_cast(g, g_op(g, OP_take, l.a, index, 0), b->round);
        NodeId side = times(g, l.scale, g_matmul(g, low, l.b, false, true));
        y = g_op(g, OP_add, g_cast(g, y, DT_f32), side, 0);
        if (!l.magnitude) continue;
        y = g_cast(g, g_cast(g, y, b->round), DT_f32);
        y = columns_times(g, y, magnitude_factor(b, &l, weight_node(b, w, false)));
    }
    return g_cast(g, y, b->round);
}

NodeId lora_head(Builder *b, const Ast *at, const Weight *w) {
    Graph *g = b->g;
    NodeId sum = weight_node(b, w, false), base = sum;
    builder_at(b, at->loc);
    for (int k = 0; k < b->sum->nuse; k++) {
        Lora l;
        if (!lora_of(b, w, k, &l)) continue;
        if (l.target->dropout > 0 && l.adapter->trained)
            builder_error(b, l.target->loc, "dropout must be 0 on %s, which makes the logits",
                          w->tensor);
        NodeId side = g_matmul(g, l.b, l.a, false, false);
        if (l.a0) side = g_op(g, OP_sub, side, g_matmul(g, l.b0, l.a0, false, false), 0);
        side = times(g, l.scale, side);
        sum = g_op(g, OP_add, g_cast(g, sum, DT_f32), side, 0);
        if (!l.magnitude) continue;
        NodeId f = magnitude_factor(b, &l, base);
        sum = g_op(g, OP_mul, sum, g_bcast(g, f, node(g, sum)->type, 1), 0);
    }
    return g_cast(g, sum, b->round);
}
