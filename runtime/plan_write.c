/* plan_write.c: a plan as a JSON file, one row of a table per line, so that it can be read,
 * compared and
 * written by hand.
 *
 * Sizes that depend on extents are strings ("2*T+1"), constant ones numbers.  An argument is a
 * buffer's
 * index, or [buffer, offset, chunk bytes]; null is an unwanted result.  Texts are arrays of lines.
 * Relies on plan.h and jansson.  Promises: plan_read.c reads it back equal.
 */
#include "plan.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static json_t *from_dim(Dim d) {
    if (dim_is_const(d)) return json_integer(d.c);
    Arena *arena = arena_new();
    json_t *text = json_string(dim_print(arena, d));
    arena_free(arena);
    return text;
}

static json_t *from_dims(const Dim *d, int n) {
    json_t *array = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(array, from_dim(d[i]));
    return array;
}

static json_t *from_lines(const char *text) {
    json_t *array = json_array();
    while (text && *text) {
        size_t n = strcspn(text, "\n");
        json_array_append_new(array, json_stringn(text, n));
        text += n;
        if (*text == '\n' && *++text == 0) json_array_append_new(array, json_string(""));
    }
    return array;
}

static json_t *from_strings(const char *const *s, int n) {
    json_t *array = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(array, json_string(s[i]));
    return array;
}

/* Optional keys are left out where they hold their default. */
static void set_str(json_t *o, const char *key, const char *s) {
    if (s) json_object_set_new(o, key, json_string(s));
}

static void set_int(json_t *o, const char *key, int64_t x) {
    if (x) json_object_set_new(o, key, json_integer(x));
}

static void set_num(json_t *o, const char *key, double x) {
    if (x != 0) json_object_set_new(o, key, json_real(x));
}

static void set_bool(json_t *o, const char *key, bool x) {
    if (x) json_object_set_new(o, key, json_true());
}

static json_t *from_buf(const Buf *b) {
    json_t *o = json_object();
    set_str(o, "name", b->name);
    set_str(o, "role", role_names[b->role]);
    set_str(o, "dtype", dtype_name(b->dtype));
    json_object_set_new(o, "shape", from_dims(b->shape, b->rank));
    json_object_set_new(o, "bytes", json_integer(b->bytes));
    json_object_set_new(o, "offset", json_integer(b->offset));
    if (!b->persistent)
        json_object_set_new(o, "life", json_pack("[iii]", b->program, b->first, b->last));
    if (b->nshrink) {
        json_t *list = json_array();
        for (int i = 0; i < b->nshrink; i++)
            json_array_append_new(
                list, json_pack("[iI]", b->shrink[i].step, (json_int_t)b->shrink[i].bytes));
        json_object_set_new(o, "shrink", list);
    }
    set_str(o, "where", b->where);
    return o;
}

static json_t *from_bind(const Bind *b) {
    json_t *o = json_object();
    set_str(o, "source", b->source);
    set_str(o, "tensor", b->tensor);
    set_str(o, "alias", b->alias);
    json_object_set_new(o, "buf", json_integer(b->buf));
    set_int(o, "offset", b->offset);
    json_object_set_new(o, "rows", json_integer(b->rows));
    json_object_set_new(o, "cols", json_integer(b->cols));
    json_object_set_new(o, "ld", json_integer(b->ld));
    json_object_set_new(o, "rank", json_integer(b->rank));
    set_str(o, "transform", b->transform);
    set_num(o, "num", b->num);
    set_bool(o, "nested", b->nested);
    set_int(o, "quantizer", b->quantizer);
    set_str(o, "init", b->init);
    set_num(o, "init_num", b->init_num);
    set_str(o, "of_source", b->of_source);
    set_str(o, "of", b->of);
    set_bool(o, "save", b->save);
    if (b->values) {
        json_t *values = json_array();
        for (int i = 0; i < b->nvalues; i++)
            json_array_append_new(values, json_real((double)b->values[i]));
        json_object_set_new(o, "values", values);
    }
    set_str(o, "where", b->where);
    return o;
}

static json_t *from_arg(const Arg *a) {
    if (a->buf < 0) return json_null();
    bool plain = dim_is_const(a->offset) && !a->offset.c && !a->chunk_bytes;
    if (plain) return json_integer(a->buf);
    json_t *array = json_array();
    json_array_append_new(array, json_integer(a->buf));
    json_array_append_new(array, from_dim(a->offset));
    if (a->chunk_bytes) json_array_append_new(array, json_integer(a->chunk_bytes));
    return array;
}

static json_t *from_gemm(const Gemm *g) {
    json_t *o = json_object();
    set_str(o, "a", dtype_name(g->a));
    set_str(o, "b", dtype_name(g->b));
    set_str(o, "c", dtype_name(g->c));
    set_bool(o, "ta", g->ta);
    set_bool(o, "tb", g->tb);
    json_object_set_new(o, "lda", json_integer(g->lda));
    json_object_set_new(o, "ldb", json_integer(g->ldb));
    json_object_set_new(o, "ldc", json_integer(g->ldc));
    json_object_set_new(o, "alpha", json_real((double)g->alpha));
    set_num(o, "beta", (double)g->beta);
    set_bool(o, "bias", g->bias);
    return o;
}

static json_t *from_step(const Step *s) {
    json_t *o = json_object(), *args = json_array();
    set_str(o, "do", step_kind_names[s->kind]);
    if (s->kind == STEP_KERNEL) json_object_set_new(o, "kernel", json_integer(s->kernel));
    for (int i = 0; i < s->nargs; i++) json_array_append_new(args, from_arg(&s->args[i]));
    json_object_set_new(o, "args", args);
    json_object_set_new(o, "dims", from_dims(s->dims, s->ndims));
    if (s->kind == STEP_GEMM) json_object_set_new(o, "gemm", from_gemm(&s->gemm));
    if (s->kind == STEP_LOOP) {
        json_object_set_new(o, "chunk", json_integer(s->chunk));
        json_object_set_new(o, "body", json_integer(s->body));
    }
    set_bool(o, "side", s->side);
    set_str(o, "label", s->label);
    set_str(o, "where", s->where);
    set_num(o, "flops", s->flops);
    set_num(o, "bytes", s->bytes);
    set_num(o, "again", s->again);
    return o;
}

static json_t *from_kernel(const Kernel *k) {
    json_t *o = json_object();
    set_str(o, "symbol", k->symbol);
    set_str(o, "kind", k->kind);
    set_int(o, "rows_per_block", k->rows_per_block);
    set_int(o, "grid_y", k->grid_y);
    set_int(o, "threads", k->threads);
    set_int(o, "shared_bytes", k->shared_bytes);
    json_object_set_new(o, "text", from_lines(k->text));
    return o;
}

static json_t *from_setting(const Setting *s) {
    json_t *o = json_object();
    set_str(o, "path", s->path);
    set_num(o, "num", s->num);
    set_str(o, "str", s->str);
    return o;
}

/* Adds `"key": value,` to the document; value is consumed. */
static void add(Text *out, const char *key, json_t *value) {
    char *s = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    text_add(out, " \"%s\": %s,\n", key, s ? s : "null");
    free(s);
    json_decref(value);
}

/* One row of a table on a line of its own. */
static void add_row(Text *out, json_t *row, bool last) {
    char *s = json_dumps(row, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    text_add(out, "  %s%s\n", s ? s : "null", last ? "" : ",");
    free(s);
    json_decref(row);
}

static void add_programs(Text *out, const Plan *p) {
    text_add(out, " \"programs\": [\n");
    for (int i = 0; i < p->nprograms; i++) {
        const Program *prog = &p->programs[i];
        json_t *name = json_string(prog->name);
        char *quoted = json_dumps(name, JSON_ENCODE_ANY);
        text_add(out, " {\"name\": %s, \"steps\": [\n", quoted);
        free(quoted);
        json_decref(name);
        for (int j = 0; j < prog->nsteps; j++)
            add_row(out, from_step(&prog->steps[j]), j + 1 == prog->nsteps);
        text_add(out, " ]}%s\n", i + 1 < p->nprograms ? "," : "");
    }
    text_add(out, " ],\n");
}

#define ADD_TABLE(out, key, items, n, from)                                                        \
    do {                                                                                           \
        text_add((out), " \"" key "\": [\n");                                                      \
        for (int row = 0; row < (n); row++) add_row((out), from(&(items)[row]), row + 1 == (n));   \
        text_add((out), " ],\n");                                                                  \
    } while (0)

static json_t *from_metric(const Metric *m) {
    return json_pack("[ss]", m->name, m->denominator);
}

char *plan_to_json(const Plan *p) {
    Text out = {0};
    text_add(&out, "{\n");
    add(&out, "dpoc_plan", json_integer(PLAN_VERSION));
    add(&out, "device", json_string(p->device));
    add(&out, "hash", json_string(p->hash));
    json_t *bound = json_object();
    for (int e = 0; e < NEXTENT; e++)
        json_object_set_new(bound, (char[2]){EXTENT_LETTERS[e], 0}, json_integer(p->bound[e]));
    add(&out, "bound", bound);
    add(&out, "bucket", json_integer(p->bucket));
    add(&out, "arena_bytes", json_integer(p->arena_bytes));
    add(&out, "budget_bytes", json_integer(p->budget_bytes));
    add(&out, "fits", json_boolean(p->fits));
    if (p->coupled) add(&out, "coupled", json_true());
    add(&out, "parameters_total", json_real(p->parameters_total));
    add(&out, "parameters_trainable", json_real(p->parameters_trainable));
    add(&out, "flops_micro", json_real(p->flops_micro));
    if (p->flops_again > 0) add(&out, "flops_again", json_real(p->flops_again));
    if (p->base_path) add(&out, "base_path", json_string(p->base_path));
    if (p->adapter_json) add(&out, "adapter_json", json_string(p->adapter_json));
    ADD_TABLE(&out, "bufs", p->bufs, p->nbufs, from_buf);
    ADD_TABLE(&out, "binds", p->binds, p->nbinds, from_bind);
    add_programs(&out, p);
    ADD_TABLE(&out, "settings", p->settings, p->nsettings, from_setting);
    ADD_TABLE(&out, "metrics", p->metrics, p->nmetrics, from_metric);
    add(&out, "recomputed", from_strings(p->recomputed, p->nrecomputed));
    add(&out, "refused", from_strings(p->refused, p->nrefused));
    ADD_TABLE(&out, "kernels", p->kernels, p->nkernels, from_kernel);
    json_t *lines = from_lines(p->prelude);
    char *prelude = json_dumps(lines, JSON_INDENT(2));
    text_add(&out, " \"prelude\": %s\n}\n", prelude);
    free(prelude);
    json_decref(lines);
    return out.data;
}

bool plan_write(const Plan *plan, const char *path, Err *err) {
    char *text = plan_to_json(plan);
    bool ok = file_write(path, text, strlen(text), err);
    free(text);
    return ok;
}
