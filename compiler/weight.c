/* weight.c: weights as leaves of the graph, and LoRA beside them.
 *
 * A frozen tensor is a `weight` leaf in the compute type, made once per unit; a trained one is a
 * `slot` of the flat f32 state "params", cast where it is used.  y = W x + s B A dropout(x), s =
 * alpha / r (rslora: alpha / sqrt r); on the weight that makes the logits W + s B A is formed
 * instead.  Relies on graph.c.
 */
#include "front.h"

#include <math.h>
#include <string.h>

/* ---- leaves, once per unit ------------------------------------------------------------------- */

static Slot *slot_of(Builder *b, const char *source, const char *tensor) {
    Hash128 h = hash_bytes(tensor, strlen(tensor), (Hash128){0, 0});
    Slot **bucket = &b->slots[h.lo % COUNT(b->slots)];
    for (Slot *s = *bucket; s; s = s->next)
        if (s->source == source && s->tensor == tensor) return s;
    Slot *s = NEW(b->g->arena, Slot);
    *s = (Slot){source, tensor, 0, *bucket};
    return *bucket = s;
}

NodeId build_input(Builder *b, const char *name, DType dtype, int rank, Dim rows, int64_t cols) {
    Slot *s = slot_of(b, intern("input"), intern(name));
    Dim dim[2] = {rows, dim_const(cols)};
    if (!s->node) s->node = g_input(b->g, name, PHASE_MICRO, type_of(dtype, rank, dim));
    return s->node;
}

static const Type *matrix_type(DType dtype, int rank, int64_t rows, int64_t cols) {
    Dim dim[2] = {dim_const(rank == 2 ? rows : cols), dim_const(cols)};
    return type_of(dtype, rank, dim);
}

/* A tensor of a checkpoint: info's source, tensor, shape; quantization as there. */
static NodeId frozen(Builder *b, const WeightInfo *info) {
    Slot *s = slot_of(b, info->source, info->tensor);
    if (s->node) return s->node;
    Unit *u = b->u;
    PUSH(u->arena, u->weights, u->nweights, u->capweights, *info);
    Attr attr = {.name = info->tensor, .name2 = info->source, .i0 = u->nweights - 1};
    const Type *t = matrix_type(u->compute, info->rank, info->rows, info->cols);
    return s->node = graph_add(b->g, OP_weight, NULL, 0, &attr, t, 0, NULL);
}

/* The master copy of a trained tensor: a view of "params". */
NodeId trained_leaf(Builder *b, const char *source, const char *tensor) {
    Unit *u = b->u;
    for (int i = 0; i < u->ntrained; i++) {
        Trained *t = &u->trained[i];
        if (t->source != source || t->tensor != tensor) continue;
        if (!b->params)
            b->params = g_state(b->g, "params", PHASE_STEP, ROLE_ADAPTER,
                                type_vec(DT_f32, dim_const(u->nparams)));
        if (!t->leaf)
            t->leaf =
                g_slot(b->g, b->params, t->offset, matrix_type(DT_f32, t->rank, t->rows, t->cols));
        return t->leaf;
    }
    return 0;
}

static const Weight *root_of(const Weight *w) {
    while (w->tied) w = w->tied;
    return w;
}

static bool is_trained(const Builder *b) {
    return b->sum->base->trained && !b->sum->start;
}

static const char *tensor_name(const Weight *w, bool bias) {
    return intern_printf("%s.%s", w->tensor, bias ? "bias" : "weight");
}

/* Where a base's tensors come from: "base", or "base@start" for the copy that training leaves
 * alone. */
static const char *base_source(const Builder *b) {
    const Base *base = b->sum->base;
    return base->trained && b->sum->start ? intern_printf("%s@start", base->source) : base->source;
}

NodeId weight_node(Builder *b, const Weight *weight, bool bias) {
    const Weight *w = root_of(weight);
    const char *tensor = tensor_name(w, bias);
    if (is_trained(b)) return g_cast(b->g, trained_leaf(b, b->sum->base->source, tensor), b->round);
    bool one = bias || w->rank == 1;
    WeightInfo info = {.source = base_source(b),
                       .tensor = tensor,
                       .alias = w->alias && !bias ? intern_printf("%s.weight", w->alias) : NULL,
                       .rank = one ? 1 : 2,
                       .rows = one ? 1 : w->shape[0],
                       .cols = one ? w->shape[0] : w->shape[1],
                       .loc = w->loc};
    if (!bias && w->format && !b->collect && spec_on(b->spec, "graph.quant")) {
        info.format = w->format;
        info.block = w->block;
        info.nested = w->nested;
    }
    return frozen(b, &info);
}

NodeId weight_rows(Builder *b, const Weight *w) {
    if (!is_trained(b)) return weight_node(b, w, false);
    return trained_leaf(b, b->sum->base->source, tensor_name(root_of(w), false));
}

/* ---- LoRA ------------------------------------------------------------------------------------ */

static const AdapterTarget *target_of(const AdapterSpec *a, const char *tensor) {
    for (int i = 0; i < a->ntarget; i++)
        if (a->target[i].tensor == tensor) return &a->target[i];
    return NULL;
}

typedef struct Lora { /* one adapter on one weight */
    NodeId a, b;      /* [rank, in], [out, rank], compute type */
    double scale, dropout;
    const AdapterSpec *adapter;
    const AdapterTarget *target;
} Lora;

/* The k-th adapter of the running model, if it adapts w. */
static bool lora_of(Builder *b, const Weight *w, int k, Lora *out) {
    const AdapterUse *use = &b->sum->use[k];
    const AdapterSpec *a = &b->spec->adapters[use->adapter];
    const AdapterTarget *t = target_of(a, w->tensor);
    if (!t || (use->start && !a->load))
        return false; /* at the start a fresh adapter adds nothing */
    const char *names[2] = {intern_printf("%s.lora_A.weight", t->tensor),
                            intern_printf("%s.lora_B.weight", t->tensor)};
    NodeId side[2];
    for (int i = 0; i < 2; i++) {
        int64_t rows = i ? t->rows : t->rank, cols = i ? t->rank : t->cols;
        const char *source =
            use->start && a->trained ? intern_printf("%s@start", a->name) : a->name;
        WeightInfo info = {.source = source,
                           .tensor = names[i],
                           .rank = 2,
                           .rows = rows,
                           .cols = cols,
                           .loc = t->loc};
        side[i] = a->trained && !use->start
                      ? g_cast(b->g, trained_leaf(b, a->name, names[i]), b->round)
                      : frozen(b, &info);
    }
    double r = (double)t->rank;
    *out = (Lora){side[0], side[1], t->alpha / (t->rslora ? sqrt(r) : r), 0, a, t};
    if (b->training && a->trained && !use->start) out->dropout = t->dropout;
    return true;
}

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
    return g_cast(g, g_op(g, OP_mul, kept, g_const(g, 1 / (1 - l->dropout), f32), 0), b->round);
}

NodeId lora_linear(Builder *b, const Ast *at, NodeId x, const Weight *w) {
    Graph *g = b->g;
    NodeId base = weight_node(b, w, false);
    builder_at(b, at->loc);
    NodeId y = g_matmul(g, x, base, false, true);
    if (w->bias) {
        NodeId bias = g_cast(g, weight_node(b, w, true), DT_f32);
        y = g_op(g, OP_add, y, g_bcast(g, bias, node(g, y)->type, false), 0);
    }
    for (int k = 0; k < b->sum->nuse; k++) {
        Lora l;
        if (!lora_of(b, w, k, &l)) continue;
        NodeId in = l.dropout > 0 ? dropout(b, &l, x) : x;
        NodeId low = g_cast(g, g_matmul(g, in, l.a, false, true), b->round);
        NodeId side = g_matmul(g, low, l.b, false, true);
        NodeId scale = g_const(g, l.scale, node(g, side)->type);
        y = g_op(g, OP_add, y, g_op(g, OP_mul, side, scale, 0), 0);
    }
    return y;
}

NodeId lora_head(Builder *b, const Ast *at, const Weight *w) {
    Graph *g = b->g;
    NodeId sum = weight_node(b, w, false);
    builder_at(b, at->loc);
    for (int k = 0; k < b->sum->nuse; k++) {
        Lora l;
        if (!lora_of(b, w, k, &l)) continue;
        if (l.target->dropout > 0 && l.adapter->trained)
            builder_error(b, l.target->loc, "dropout must be 0 on %s, which makes the logits",
                          w->tensor);
        NodeId side = g_matmul(g, l.b, l.a, false, false);
        NodeId scale = g_const(g, l.scale, node(g, side)->type);
        sum = g_op(g, OP_add, g_cast(g, sum, DT_f32), g_op(g, OP_mul, side, scale, 0), 0);
    }
    return g_cast(g, sum, b->round);
}
