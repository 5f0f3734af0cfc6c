/* builtin.c: the functions of the layer language that are not layers themselves.
 *
 * Each is a row of one table: name, arguments, what it appends.  Maps and reductions work on values
 * of any shape in f32; linear, embed, attend and rope take their operands in the compute type. 
 * Relies on layer.c.  Everything else (normalisations, activations) is written in .dpo files.
 */
#include "front.h"

#include <math.h>
#include <string.h>

typedef struct Call { /* a call being built */
    Builder *b;
    const Ast *ast;
    const Value *arg; /* by parameter; V_NONE where it was not given */
    const char *name;
    Op op;
} Call;

static Value wrong(const Call *c, const char *text) {
    return builder_error(c->b, c->ast->loc, "%s: %s", c->name, text);
}

static const Type *type(const Call *c, NodeId id) {
    return node(c->b->g, id)->type;
}

static NodeId tensor(const Call *c, int i, DType dtype) {
    NodeId x = value_node(c->b, c->ast, &c->arg[i]);
    builder_at(c->b, c->ast->loc);
    return g_cast(c->b->g, x, dtype);
}

static bool number(const Call *c, int i, double *x) {
    if (c->arg[i].kind == V_NUM) *x = c->arg[i].num;
    return c->arg[i].kind == V_NUM;
}

static bool whole(const Call *c, int i, int64_t min, int64_t *x) {
    double v;
    if (!number(c, i, &v) || v != floor(v) || v < (double)min || v > 1e15) return false;
    *x = (int64_t)v;
    return true;
}

static char *show(const Call *c, NodeId id) {
    return type_print(c->b->front->arena, type(c, id));
}

/* ---- maps and reductions --------------------------------------------------------------------- */

static Value map1(const Call *c) {
    double y;
    if (c->arg[0].kind == V_NUM && number_call(c->name, &c->arg[0].num, 1, &y)) return value_num(y);
    NodeId x = tensor(c, 0, DT_f32);
    return x ? tensor_value(g_op(c->b->g, c->op, x, 0, 0)) : value_bad();
}

static Value map2(const Call *c) {
    double n[2] = {c->arg[0].num, c->arg[1].num}, r;
    if (c->arg[0].kind == V_NUM && c->arg[1].kind == V_NUM && number_call(c->name, n, 2, &r))
        return value_num(r);
    NodeId x, y;
    if (!layer_operands(c->b, c->ast, &c->arg[0], &c->arg[1], &x, &y)) return value_bad();
    return tensor_value(g_op(c->b->g, c->op, x, y, 0));
}

/* pow(x, n) with a small whole n is a product: x may be 0 or below, as OP_pow's may not. */
static Value power(const Call *c) {
    const Value *n_of = &c->arg[1];
    double y = n_of->num;
    bool known = n_of->kind == V_NUM || (n_of->kind == V_TENSOR && n_of->known);
    if (c->arg[0].kind == V_NUM || !known || y != floor(y) || fabs(y) > 64) return map2(c);
    Graph *g = c->b->g;
    NodeId x = tensor(c, 0, DT_f32);
    if (!x) return value_bad();
    NodeId one = g_const(g, 1, type(c, x)), r = one;
    for (int n = (int)fabs(y); n; n >>= 1) {
        if (n & 1) r = g_op(g, OP_mul, r, x, 0);
        if (n > 1) x = g_op(g, OP_mul, x, x, 0);
    }
    return tensor_value(y < 0 ? g_op(g, OP_div, one, r, 0) : r);
}

static Value map_select(const Call *c) {
    return layer_select(&c->b->expr, c->ast, c->arg[0], c->arg[1], c->arg[2]);
}

/* sum, mean, maxof: over the last axis. */
static Value reduce(const Call *c) {
    NodeId x = tensor(c, 0, DT_f32);
    if (!x) return value_bad();
    const Type *t = type(c, x);
    if (!t->rank || !dim_is_const(t->dim[t->rank - 1]))
        return wrong(c,
                     arena_printf(c->b->front->arena, "%s has no features to reduce", show(c, x)));
    NodeId y = g_op(c->b->g, c->op, x, 0, 0);
    if (strcmp(c->name, "mean") != 0) return tensor_value(y);
    NodeId n = g_const(c->b->g, (double)type_cols(t), type(c, y));
    return tensor_value(g_op(c->b->g, OP_div, y, n, 0));
}

/* ---- shapes ---------------------------------------------------------------------------------- */

static Value heads_split(const Call *c) {
    int64_t heads;
    if (!whole(c, 1, 1, &heads))
        return wrong(c, "the number of heads must be a whole number above 0");
    NodeId x = value_node(c->b, c->ast, &c->arg[0]);
    if (!x) return value_bad();
    const Type *t = type(c, x);
    if (t->rank != 2 || !dim_is_const(t->dim[1]) || t->dim[1].c % heads)
        return wrong(c, arena_printf(c->b->front->arena, "%s can't be cut into %lld heads",
                                     show(c, x), (long long)heads));
    Dim dim[3] = {t->dim[0], dim_const(heads), dim_const(t->dim[1].c / heads)};
    return tensor_value(g_reshape(c->b->g, x, type_of(t->dtype, 3, dim)));
}

static Value heads_join(const Call *c) {
    NodeId x = value_node(c->b, c->ast, &c->arg[0]);
    if (!x) return value_bad();
    const Type *t = type(c, x);
    if (t->rank != 3)
        return wrong(c, arena_printf(c->b->front->arena, "%s has no heads", show(c, x)));
    return tensor_value(
        g_reshape(c->b->g, x, type_mat(t->dtype, t->dim[0], dim_mul(t->dim[1], t->dim[2]))));
}

/* columns(x, begin, end): features begin .. end-1. */
static Value columns(const Call *c) {
    int64_t begin, end;
    NodeId x = value_node(c->b, c->ast, &c->arg[0]);
    if (!x) return value_bad();
    if (!whole(c, 1, 0, &begin) || !whole(c, 2, begin + 1, &end))
        return wrong(c, "begin and end must be whole numbers, begin below end");
    Attr attr = {.i0 = begin, .i1 = end - begin};
    return tensor_value(graph_add(c->b->g, OP_cols, &x, 1, &attr, NULL, 0, NULL));
}

/* ---- weights --------------------------------------------------------------------------------- */

static const Weight *weight_arg(const Call *c, int i, int rank) {
    const Weight *w = c->arg[i].kind == V_WEIGHT ? c->arg[i].weight : NULL;
    if (w && w->rank == rank) return w;
    wrong(c, arena_printf(c->b->front->arena, "argument %d must be a weight with %d sizes, not %s",
                          i + 1, rank, w ? "one with another number" : value_kind(&c->arg[i])));
    return NULL;
}

static Value linear(const Call *c) {
    const Weight *w = weight_arg(c, 1, 2);
    NodeId x = w ? tensor(c, 0, c->b->round) : 0;
    if (!x) return value_bad();
    const Type *t = type(c, x);
    if (t->rank != 2 || !dim_equal(t->dim[1], dim_const(w->shape[1])))
        return wrong(c, arena_printf(c->b->front->arena,
                                     "%s meets weight %s [%lld,%lld]: %lld features are needed",
                                     show(c, x), w->tensor, (long long)w->shape[0],
                                     (long long)w->shape[1], (long long)w->shape[1]));
    ((Weight *)w)->linear = true;
    return tensor_value(lora_linear(c->b, c->ast, x, w));
}

static Value embed(const Call *c) {
    const Weight *w = weight_arg(c, 1, 2);
    NodeId index = value_node(c->b, c->ast, &c->arg[0]);
    if (!w || !index) return value_bad();
    if (type(c, index)->dtype != DT_i32)
        return wrong(c, "takes tokens (or positions) and a weight");
    ((Weight *)w)->embedded = true;
    return tensor_value(lora_embed(c->b, c->ast, index, w));
}

/* bias(w): the bias declared beside a weight, 0 without one. */
static Value bias(const Call *c) {
    const Weight *w = c->arg[0].kind == V_WEIGHT ? c->arg[0].weight : NULL;
    if (!w) return wrong(c, "takes a weight");
    return w->bias ? tensor_value(weight_node(c->b, w, true)) : value_num(0);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* Keys or values of all rows so far: those of this run are appended to state `name`. */
static NodeId cached(const Call *c, const char *name, NodeId x) {
    Builder *b = c->b;
    Type t = *type(c, x);
    t.dim[0] = dim_extent(X_H);
    NodeId state = g_state(b->g, name, PHASE_MICRO, ROLE_CACHE, type_of(t.dtype, t.rank, t.dim));
    return g_op(b->g, OP_append, state, x, build_input(b, "cache.row", DT_i32, 1, b->rows, 0));
}

/* Puts the KV cache of this call in the place of its k and v.  Every unit of a plan unrolls the
 * same layers, so the same numbers are the same buffers. */
static bool cache(const Call *c, NodeId *k, NodeId *v) {
    int number = c->b->caches++;
    if (type(c, *k)->rank == 3 && type(c, *k) == type(c, *v)) { /* else attend says what is wrong */
        *k = cached(c, intern_printf("cache.%d.k", number), *k);
        *v = cached(c, intern_printf("cache.%d.v", number), *v);
    }
    return *k && *v;
}

static Value attend(const Call *c) {
    Builder *b = c->b;
    NodeId in[4] = {tensor(c, 0, b->round), tensor(c, 1, b->round), tensor(c, 2, b->round)};
    if (!in[0] || !in[1] || !in[2]) return value_bad();
    if (type(c, in[0])->rank != 3)
        return wrong(c, "q, k and v must have heads: split() them first");
    Attr attr = {.num = 1 / sqrt((double)type_cols(type(c, in[0])))};
    if (c->arg[3].kind != V_NONE && !number(c, 3, &attr.num))
        return wrong(c, "scale must be a number");
    if (c->arg[4].kind != V_NONE && !whole(c, 4, 0, &attr.i0))
        return wrong(c, "window must be a whole number or none");
    in[3] = build_input(b, "segs", DT_i32, 2, dim_extent(X_G), 6);
    if (unit_generates(b->u->kind) && !cache(c, &in[1], &in[2])) return value_bad();
    return tensor_value(graph_add(b->g, OP_attend, in, 4, &attr, NULL, 0, NULL));
}

static bool field(const Call *c, const Record *r, const char *name, double *out) {
    const Value *v = record_get(r, name);
    if (v && v->kind == V_NUM) {
        *out = v->num;
        return true;
    }
    wrong(c, arena_printf(c->b->front->arena, "the scaling record has no number '%s'", name));
    return false;
}

/* Meta's smooth scaling: long wavelengths are divided, short ones kept. */
static bool scale_llama3(const Call *c, const Record *r, double *freq, int n) {
    double factor, low, high, original;
    if (!field(c, r, "factor", &factor) || !field(c, r, "low_freq_factor", &low) ||
        !field(c, r, "high_freq_factor", &high) ||
        !field(c, r, "original_max_position_embeddings", &original))
        return false;
    for (int i = 0; i < n; i++) {
        double wave = 2 * 3.14159265358979323846 / freq[i];
        if (wave < original / high) continue;
        double smooth = wave > original / low ? 0 : (original / wave - low) / (high - low);
        freq[i] = (1 - smooth) * freq[i] / factor + smooth * freq[i];
    }
    return true;
}

static bool scale_freq(const Call *c, const Record *r, double *freq, int n) {
    const Value *v = record_get(r, "rope_type");
    if (!v) v = record_get(r, "type");
    const char *name = v && v->kind == V_STR ? v->str : "default";
    double factor;
    if (!strcmp(name, "default")) return true;
    if (!strcmp(name, "llama3")) return scale_llama3(c, r, freq, n);
    if (!strcmp(name, "linear")) {
        if (!field(c, r, "factor", &factor)) return false;
        for (int i = 0; i < n; i++) freq[i] /= factor;
        return true;
    }
    wrong(c, arena_printf(c->b->front->arena,
                          "scaling '%s' is not built; known: default, linear, llama3", name));
    return false;
}

/* 1 / theta^(2i/S), scaled, twice: [S]. */
static NodeId frequencies(const Call *c, int64_t size) {
    double theta, freq[512];
    int n = (int)(size / 2);
    if (size % 2 || n < 1 || n > (int)COUNT(freq)) {
        wrong(c, arena_printf(c->b->front->arena, "heads of size %lld can't be rotated",
                              (long long)size));
        return 0;
    }
    if (!number(c, 1, &theta) || !(theta > 0)) {
        wrong(c, "theta must be a number above 0");
        return 0;
    }
    for (int i = 0; i < n; i++) freq[i] = pow(theta, -2.0 * i / (double)size);
    const Value *scaling = &c->arg[2];
    if (scaling->kind != V_NONE && scaling->kind != V_RECORD) {
        wrong(c, "scaling must be a record or none");
        return 0;
    }
    if (scaling->kind == V_RECORD && !scale_freq(c, scaling->record, freq, n)) return 0;
    float values[COUNT(freq) * 2];
    for (int i = 0; i < 2 * n; i++) values[i] = (float)freq[i % n];
    Attr attr = {.table = table_intern(values, 2 * n)};
    return graph_add(c->b->g, OP_table, NULL, 0, &attr, type_vec(DT_f32, dim_const(size)), 0, NULL);
}

/* x cos + rotate_half(x) sin; the angles [T,S] are the same for all heads and layers. */
static Value rope(const Call *c) {
    Graph *g = c->b->g;
    NodeId x = tensor(c, 0, DT_f32);
    if (!x) return value_bad();
    const Type *t = type(c, x);
    if (t->rank != 3) return wrong(c, "x must have heads: split() it first");
    const Type *angles = type_mat(DT_f32, t->dim[0], t->dim[2]);
    NodeId freq = frequencies(c, type_cols(t)), side[2];
    if (!freq) return value_bad();
    NodeId pos = g_cast(g, build_input(c->b, "pos", DT_i32, 1, c->b->rows, 0), DT_f32);
    NodeId angle =
        g_op(g, OP_mul, g_bcast(g, pos, angles, true), g_bcast(g, freq, angles, false), 0);
    double scale = 1;
    if (c->arg[3].kind != V_NONE && !number(c, 3, &scale))
        return wrong(c, "scale must be a number");
    for (int i = 0; i < 2; i++) {
        side[i] = g_op(g, i ? OP_sin : OP_cos, angle, 0, 0);
        if (scale != 1) side[i] = g_op(g, OP_mul, side[i], g_const(g, scale, angles), 0);
        side[i] = graph_add(g, OP_bcast, &side[i], 1, &(Attr){.i0 = 2}, t, 0, NULL);
    }
    NodeId turned = g_op(g, OP_rotate_half, x, 0, 0);
    NodeId a = g_op(g, OP_mul, x, side[0], 0), d = g_op(g, OP_mul, turned, side[1], 0);
    return tensor_value(g_op(g, OP_add, a, d, 0));
}

/* ---- the table ------------------------------------------------------------------------------- */

static const struct Builtin {
    const char *name;
    const char *params; /* optional ones after `|` */
    Value (*build)(const Call *);
    Op op;
} builtins[] = {
    {"exp", "x", map1, OP_exp},
    {"log", "x", map1, OP_log},
    {"sqrt", "x", map1, OP_sqrt},
    {"rsqrt", "x", map1, OP_rsqrt},
    {"sin", "x", map1, OP_sin},
    {"cos", "x", map1, OP_cos},
    {"tanh", "x", map1, OP_tanh},
    {"erf", "x", map1, OP_erf},
    {"sigmoid", "x", map1, OP_sigmoid},
    {"log_sigmoid", "x", map1, OP_log_sigmoid},
    {"abs", "x", map1, OP_abs},
    {"stop", "x", map1, OP_stop},
    {"max", "x y", map2, OP_max},
    {"min", "x y", map2, OP_min},
    {"pow", "x y", power, OP_pow},
    {"select", "c x y", map_select, OP_select},
    {"sum", "x", reduce, OP_sum_cols},
    {"mean", "x", reduce, OP_sum_cols},
    {"maxof", "x", reduce, OP_max_cols},
    {"linear", "x w", linear, OP_matmul},
    {"embed", "tokens w", embed, OP_take},
    {"bias", "w", bias, OP_const},
    {"split", "x heads", heads_split, OP_reshape},
    {"join", "x", heads_join, OP_reshape},
    {"columns", "x begin end", columns, OP_cols},
    {"rope", "x theta|scaling scale", rope, OP_cos},
    {"attend", "q k v|scale window", attend, OP_attend},
};

static const struct Builtin *builtin_find(const char *name) {
    for (size_t i = 0; i < COUNT(builtins); i++)
        if (!strcmp(builtins[i].name, name)) return &builtins[i];
    return NULL;
}

bool builtin_known(const char *name) {
    return builtin_find(name) != NULL;
}

int builtin_names(const char **out, int max) {
    int n = 0;
    for (size_t i = 0; i < COUNT(builtins) && n < max; i++) out[n++] = builtins[i].name;
    return n;
}

/* The place of parameter `key` in "a b|c"; -1: none.  *required and *all count parameters. */
static int param_place(const char *params, const char *key, int *required, int *all) {
    int place = -1, n = 0;
    *required = -1;
    for (const char *p = params; *p; n++) {
        size_t len = strcspn(p, " |");
        if (key && strlen(key) == len && !strncmp(key, p, len)) place = n;
        p += len;
        if (*p == '|') *required = n + 1;
        if (*p) p++;
    }
    *all = n;
    if (*required < 0) *required = n;
    return place;
}

bool builtin_call(Builder *b, const Ast *call, const Value *args, const char **keys, int nargs,
                  Value *out) {
    const struct Builtin *f = builtin_find(call->text);
    if (!f) return false;
    Value arg[5];
    bool have[5] = {false}, ok = true;
    int required, all;
    param_place(f->params, NULL, &required, &all);
    for (int i = 0; i < 5; i++) arg[i] = (Value){.kind = V_NONE, .side = -1};
    for (int i = 0; i < nargs && ok; i++) {
        int place = keys[i] ? param_place(f->params, keys[i], &required, &all) : i;
        ok = place >= 0 && place < all && !have[place];
        if (!ok) break;
        have[place] = true;
        arg[place] = args[i];
    }
    for (int i = 0; i < required; i++) ok &= have[i];
    if (!ok) {
        *out = builder_error(b, call->loc, "%s takes (%s)%s", f->name, f->params,
                             strchr(f->params, '|') ? ", those after | may be left out" : "");
        return true;
    }
    builder_at(b, call->loc);
    *out = f->build(&(Call){b, call, arg, f->name, f->op});
    return true;
}
