/* weight.c: weights as leaves of the graph.
 *
 * A frozen tensor is a `weight` leaf in the compute type, made once per unit; a trained one is a
 * `slot` of the flat f32 state "params", cast where it is used.  Adapters beside them: lora.c. 
 * Relies on graph.c.
 */
#include "front.h"

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

bool build_once(Builder *b, const char *what, const char *name) {
    Slot *s = slot_of(b, intern(what), name);
    bool first = !s->node;
    s->node = -1;
    return first;
}

static const Type *matrix_type(DType dtype, int rank, int64_t rows, int64_t cols, bool transposed) {
    Dim dim[2] = {dim_const(rank == 2 && !transposed ? rows : cols),
                  dim_const(transposed ? rows : cols)};
    return type_of(dtype, rank, dim);
}

NodeId weight_frozen(Builder *b, const WeightInfo *info) {
    Slot *s = slot_of(b, info->source, info->tensor);
    if (s->node) return s->node;
    Unit *u = b->u;
    PUSH(u->arena, u->weights, u->nweights, u->capweights, *info);
    Attr attr = {.name = info->tensor, .name2 = info->source, .i0 = u->nweights - 1};
    const Type *t = matrix_type(info->exact ? DT_f32 : u->compute, info->rank, info->rows,
                                info->cols, info->transposed);
    return s->node = graph_add(b->g, OP_weight, NULL, 0, &attr, t, 0, NULL);
}

/* The master copy of a trained tensor: a view of "params". */
NodeId trained_leaf(Builder *b, const char *source, const char *tensor) {
    Unit *u = b->u;
    for (int i = 0; i < u->ntrained; i++) {
        Trained *t = &u->trained[i];
        if (t->source != source || t->tensor != tensor) continue;
        if (!b->params)
            b->params = g_state(b->g, "params", u->still ? PHASE_INIT : PHASE_STEP, ROLE_ADAPTER,
                                type_vec(DT_f32, dim_const(u->nparams)));
        if (!t->leaf)
            t->leaf = g_slot(b->g, b->params, t->offset,
                             matrix_type(DT_f32, t->rank, t->rows, t->cols, t->transposed));
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
    return weight_frozen(b, &info);
}

NodeId weight_rows(Builder *b, const Weight *w) {
    if (!is_trained(b)) return weight_node(b, w, false);
    return trained_leaf(b, b->sum->base->source, tensor_name(root_of(w), false));
}
