/* plan_read.c: a plan from the JSON file that plan_write.c describes.
 *
 * Relies on plan.h and jansson.  Promises: a file with an unknown, missing or mistyped key, or that
 * breaks
 * a rule of plan_check, is refused with the place named: "p.json: programs[0].steps[3].kernel:
 * ...".
 */
#include "plan.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

typedef struct Reader {
    Plan *plan;
    const char *file;
    Err *err;
} Reader;

/* An object being read.  Every key asked for is counted, so that what is left over is unknown. */
typedef struct Obj {
    Reader *r;
    json_t *json;
    const char *at; /* "bufs[3]" */
    const char *seen[24];
    int nseen;
} Obj;

static bool refuse(Reader *r, const char *at, const char *what) {
    return fail(r->err, EXIT_IO, "%s: %s%s%s", r->file, at, *at ? ": " : "", what);
}

static bool refuse_key(Obj *o, const char *key, const char *what) {
    Reader *r = o->r;
    return fail(r->err, EXIT_IO, "%s: %s%s%s: %s", r->file, o->at, *o->at ? "." : "", key, what);
}

static bool object_begin(Obj *o, Reader *r, json_t *json, const char *at) {
    *o = (Obj){.r = r, .json = json, .at = at};
    return json_is_object(json) || refuse(r, at, "must be an object");
}

static bool object_end(Obj *o) {
    const char *key;
    json_t *value;
    if ((int)json_object_size(o->json) == o->nseen) return true;
    json_object_foreach(o->json, key, value) {
        bool known = false;
        for (int i = 0; i < o->nseen; i++) known |= !strcmp(key, o->seen[i]);
        if (!known) return refuse_key(o, key, "unknown key");
    }
    return true;
}

/* The value of a key, or NULL. */
static json_t *take(Obj *o, const char *key) {
    json_t *value = json_object_get(o->json, key);
    if (value && o->nseen < (int)COUNT(o->seen)) o->seen[o->nseen++] = key;
    return value;
}

/* The value of a key that must be there. */
static json_t *need(Obj *o, const char *key) {
    json_t *value = take(o, key);
    if (!value) refuse_key(o, key, "is missing");
    return value;
}

static bool to_int(Obj *o, const char *key, json_t *value, int64_t lo, int64_t hi, int64_t *out) {
    if (!json_is_integer(value)) return refuse_key(o, key, "must be an integer");
    *out = json_integer_value(value);
    return (*out >= lo && *out <= hi) || refuse_key(o, key, "is out of range");
}

static bool get_i64(Obj *o, const char *key, int64_t *out) { /* 0 .. 2^60 */
    json_t *value = need(o, key);
    return value && to_int(o, key, value, 0, INT64_C(1) << 60, out);
}

static bool get_int(Obj *o, const char *key, int *out) { /* 0 .. 2^31 - 1 */
    int64_t x;
    json_t *value = need(o, key);
    if (!value || !to_int(o, key, value, 0, INT32_MAX, &x)) return false;
    *out = (int)x;
    return true;
}

static bool opt_i64(Obj *o, const char *key, int64_t *out) {
    json_t *value = take(o, key);
    return !value || to_int(o, key, value, 0, INT64_C(1) << 60, out);
}

static bool opt_int(Obj *o, const char *key, int *out) {
    int64_t x = 0;
    json_t *value = take(o, key);
    if (value && !to_int(o, key, value, 0, INT32_MAX, &x)) return false;
    *out = (int)x;
    return true;
}

static bool opt_num(Obj *o, const char *key, double *out) {
    json_t *value = take(o, key);
    if (!value) return true;
    if (!json_is_number(value)) return refuse_key(o, key, "must be a number");
    *out = json_number_value(value);
    return true;
}

static bool opt_bool(Obj *o, const char *key, bool *out) {
    json_t *value = take(o, key);
    if (!value) return true;
    if (!json_is_boolean(value)) return refuse_key(o, key, "must be true or false");
    *out = json_is_true(value);
    return true;
}

static bool opt_str(Obj *o, const char *key, const char **out) {
    json_t *value = take(o, key);
    if (!value) return true;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return refuse_key(o, key, "must be a string");
    *out = arena_str(o->r->plan->arena, json_string_value(value));
    return true;
}

static bool get_str(Obj *o, const char *key, const char **out) {
    *out = NULL;
    return opt_str(o, key, out) && (*out || refuse_key(o, key, "is missing"));
}

static bool get_dtype(Obj *o, const char *key, DType *out) {
    const char *name;
    return get_str(o, key, &name) &&
           (dtype_parse(name, out) || refuse_key(o, key, "unknown dtype"));
}

static bool to_dim(Obj *o, const char *key, json_t *value, Dim *out) {
    int64_t c = 0;
    if (json_is_string(value))
        return dim_parse(json_string_value(value), out) || refuse_key(o, key, "not a size");
    if (!to_int(o, key, value, -(INT64_C(1) << 60), INT64_C(1) << 60, &c)) return false;
    *out = dim_const(c);
    return true;
}

/* An array that must be there; n elements. */
static bool get_array(Obj *o, const char *key, json_t **array, int *n) {
    *array = need(o, key);
    if (!*array) return false;
    if (!json_is_array(*array) || json_array_size(*array) > INT32_MAX / 2)
        return refuse_key(o, key, "must be an array");
    *n = (int)json_array_size(*array);
    return true;
}

static bool get_dims(Obj *o, const char *key, Dim **out, int *n) {
    json_t *array;
    if (!get_array(o, key, &array, n)) return false;
    *out = NEW_ARRAY(o->r->plan->arena, Dim, *n);
    for (int i = 0; i < *n; i++)
        if (!to_dim(o, key, json_array_get(array, (size_t)i), &(*out)[i])) return false;
    return true;
}

static bool get_lines(Obj *o, const char *key, const char **out) {
    json_t *array;
    int n;
    if (!get_array(o, key, &array, &n)) return false;
    Text text = {0};
    text_addn(&text, "", 0);
    for (int i = 0; i < n; i++) {
        json_t *line = json_array_get(array, (size_t)i);
        if (!json_is_string(line)) {
            text_free(&text);
            return refuse_key(o, key, "must be an array of lines");
        }
        text_add(&text, "%s%s", i ? "\n" : "", json_string_value(line));
    }
    *out = arena_strn(o->r->plan->arena, text.data ? text.data : "", text.len);
    text_free(&text);
    return true;
}

static bool get_strings(Obj *o, const char *key, const char ***out, int *n) {
    json_t *array;
    if (!get_array(o, key, &array, n)) return false;
    *out = NEW_ARRAY(o->r->plan->arena, const char *, *n);
    for (int i = 0; i < *n; i++) {
        json_t *s = json_array_get(array, (size_t)i);
        if (!json_is_string(s)) return refuse_key(o, key, "must be an array of strings");
        (*out)[i] = arena_str(o->r->plan->arena, json_string_value(s));
    }
    return true;
}

/* ---- the tables ------------------------------------------------------------------------------ */

/* A fixed number of integers: [a, b, c]. */
static bool ints(Obj *o, const char *key, json_t *array, int n, int64_t *out) {
    if (!json_is_array(array) || (int)json_array_size(array) != n)
        return refuse_key(o, key, "must be an array of integers");
    for (int i = 0; i < n; i++)
        if (!to_int(o, key, json_array_get(array, (size_t)i), 0, INT64_C(1) << 60, &out[i]))
            return false;
    return true;
}

static bool read_shrink(Obj *o, Buf *b) {
    json_t *list = take(o, "shrink");
    if (!list) return true;
    if (!json_is_array(list)) return refuse_key(o, "shrink", "must be an array");
    b->nshrink = (int)json_array_size(list);
    b->shrink = NEW_ARRAY(o->r->plan->arena, Shrink, b->nshrink);
    for (int i = 0; i < b->nshrink; i++) {
        int64_t x[2];
        if (!ints(o, "shrink", json_array_get(list, (size_t)i), 2, x)) return false;
        if (x[0] > INT32_MAX) return refuse_key(o, "shrink", "is out of range");
        b->shrink[i] = (Shrink){(int)x[0], x[1]};
    }
    return true;
}

static bool read_buf(Obj *o, void *row) {
    Buf *b = row;
    const char *role;
    Dim *shape;
    int64_t life[3] = {0};
    if (!get_str(o, "name", &b->name) || !get_str(o, "role", &role) ||
        !get_dtype(o, "dtype", &b->dtype) || !get_dims(o, "shape", &shape, &b->rank) ||
        !get_i64(o, "bytes", &b->bytes) || !get_i64(o, "offset", &b->offset) ||
        !read_shrink(o, b) || !opt_str(o, "where", &b->where))
        return false;
    if (b->rank > 4) return refuse_key(o, "shape", "has more than 4 axes");
    memcpy(b->shape, shape, (size_t)b->rank * sizeof *shape);
    int r = 0;
    while (r < NROLE && strcmp(role, role_names[r])) r++;
    if (r == NROLE) return refuse_key(o, "role", "unknown role");
    b->role = (Role)r;
    json_t *value = take(o, "life");
    b->persistent = !value;
    if (value && !ints(o, "life", value, 3, life)) return false;
    for (int i = 0; i < 3; i++)
        if (life[i] > INT32_MAX) return refuse_key(o, "life", "is out of range");
    b->program = (int)life[0];
    b->first = (int)life[1];
    b->last = (int)life[2];
    return true;
}

static bool read_values(Obj *o, Bind *b) {
    json_t *array = take(o, "values");
    if (!array) return true;
    if (!json_is_array(array) || json_array_size(array) > INT32_MAX / 4)
        return refuse_key(o, "values", "must be an array");
    b->nvalues = (int)json_array_size(array);
    float *values = NEW_ARRAY(o->r->plan->arena, float, b->nvalues + 1);
    b->values = values;
    for (int i = 0; i < b->nvalues; i++) {
        json_t *x = json_array_get(array, (size_t)i);
        if (!json_is_number(x)) return refuse_key(o, "values", "must be numbers");
        values[i] = (float)json_number_value(x);
    }
    return true;
}

static bool read_bind(Obj *o, void *row) {
    Bind *b = row;
    return get_str(o, "source", &b->source) && get_str(o, "tensor", &b->tensor) &&
           opt_str(o, "alias", &b->alias) && get_int(o, "buf", &b->buf) &&
           opt_i64(o, "offset", &b->offset) && get_i64(o, "rows", &b->rows) &&
           get_i64(o, "cols", &b->cols) && get_i64(o, "ld", &b->ld) &&
           get_int(o, "rank", &b->rank) && get_str(o, "transform", &b->transform) &&
           opt_num(o, "num", &b->num) && opt_bool(o, "nested", &b->nested) &&
           opt_int(o, "quantizer", &b->quantizer) && opt_str(o, "init", &b->init) &&
           opt_num(o, "init_num", &b->init_num) && opt_str(o, "of_source", &b->of_source) &&
           opt_str(o, "of", &b->of) && opt_bool(o, "save", &b->save) && read_values(o, b) &&
           opt_str(o, "where", &b->where);
}

static bool read_kernel(Obj *o, void *row) {
    Kernel *k = row;
    return get_str(o, "symbol", &k->symbol) && get_str(o, "kind", &k->kind) &&
           opt_int(o, "rows_per_block", &k->rows_per_block) && opt_int(o, "grid_y", &k->grid_y) &&
           opt_int(o, "threads", &k->threads) && opt_int(o, "shared_bytes", &k->shared_bytes) &&
           get_lines(o, "text", &k->text);
}

static bool read_setting(Obj *o, void *row) {
    Setting *s = row;
    return get_str(o, "path", &s->path) && opt_num(o, "num", &s->num) && opt_str(o, "str", &s->str);
}

static bool read_gemm(Reader *r, json_t *json, const char *at, Gemm *g) {
    Obj o;
    double alpha = 1, beta = 0;
    if (!object_begin(&o, r, json, at) || !get_dtype(&o, "a", &g->a) ||
        !get_dtype(&o, "b", &g->b) || !get_dtype(&o, "c", &g->c) || !opt_bool(&o, "ta", &g->ta) ||
        !opt_bool(&o, "tb", &g->tb) || !get_i64(&o, "lda", &g->lda) ||
        !get_i64(&o, "ldb", &g->ldb) || !get_i64(&o, "ldc", &g->ldc) ||
        !opt_num(&o, "alpha", &alpha) || !opt_num(&o, "beta", &beta) ||
        !opt_bool(&o, "bias", &g->bias))
        return false;
    g->alpha = (float)alpha;
    g->beta = (float)beta;
    return object_end(&o);
}

static bool read_arg(Obj *o, json_t *value, Arg *a) {
    int64_t buf;
    *a = (Arg){.buf = -1};
    if (json_is_null(value)) return true;
    json_t *index = json_is_array(value) ? json_array_get(value, 0) : value;
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (n < 1 || n > 3) return refuse_key(o, "args", "must be buffer, offset, chunk bytes");
    if (!to_int(o, "args", index, 0, INT32_MAX, &buf)) return false;
    a->buf = (int)buf;
    if (n > 1 && !to_dim(o, "args", json_array_get(value, 1), &a->offset)) return false;
    return n < 3 ||
           to_int(o, "args", json_array_get(value, 2), 0, INT64_C(1) << 60, &a->chunk_bytes);
}

static bool read_step(Obj *o, void *row) {
    Step *s = row;
    const char *kind;
    json_t *args;
    if (!get_str(o, "do", &kind) || !get_array(o, "args", &args, &s->nargs) ||
        !get_dims(o, "dims", &s->dims, &s->ndims) || !opt_bool(o, "side", &s->side) ||
        !opt_str(o, "label", &s->label) || !opt_str(o, "where", &s->where) ||
        !opt_num(o, "flops", &s->flops) || !opt_num(o, "bytes", &s->bytes) ||
        !opt_num(o, "again", &s->again))
        return false;
    s->args = NEW_ARRAY(o->r->plan->arena, Arg, s->nargs);
    for (int i = 0; i < s->nargs; i++)
        if (!read_arg(o, json_array_get(args, (size_t)i), &s->args[i])) return false;
    int k = 0;
    while (k <= STEP_LOOP && strcmp(kind, step_kind_names[k])) k++;
    if (k > STEP_LOOP) return refuse_key(o, "do", "unknown kind of step");
    s->kind = (StepKind)k;
    if (s->kind == STEP_KERNEL) return get_int(o, "kernel", &s->kernel);
    if (s->kind == STEP_LOOP) return get_i64(o, "chunk", &s->chunk) && get_int(o, "body", &s->body);
    if (s->kind != STEP_GEMM) return true;
    json_t *gemm = need(o, "gemm");
    return gemm &&
           read_gemm(o->r, gemm, arena_printf(o->r->plan->arena, "%s.gemm", o->at), &s->gemm);
}

/* The rows of a table, one of `size` bytes for each object of an array; NULL after an error. */
static void *read_rows(Obj *o, const char *key, size_t size, bool (*read)(Obj *, void *), int *n) {
    json_t *array;
    Arena *arena = o->r->plan->arena;
    if (!get_array(o, key, &array, n)) return NULL;
    char *rows = arena_alloc(arena, size * (size_t)*n + 1);
    for (int i = 0; i < *n; i++) {
        Obj row;
        const char *at = arena_printf(arena, "%s%s%s[%d]", o->at, *o->at ? "." : "", key, i);
        if (!object_begin(&row, o->r, json_array_get(array, (size_t)i), at) ||
            !read(&row, rows + size * (size_t)i) || !object_end(&row))
            return NULL;
    }
    return rows;
}
#define READ_ROWS(o, key, rows, read, n)                                                           \
    (((rows) = read_rows((o), (key), sizeof *(rows), (read), (n))) != NULL)

static bool read_program(Obj *o, void *row) {
    Program *p = row;
    return get_str(o, "name", &p->name) && READ_ROWS(o, "steps", p->steps, read_step, &p->nsteps);
}

static bool read_metrics(Obj *o, Plan *p) {
    json_t *array;
    if (!get_array(o, "metrics", &array, &p->nmetrics)) return false;
    p->metrics = NEW_ARRAY(p->arena, Metric, p->nmetrics);
    for (int i = 0; i < p->nmetrics; i++) {
        const char *name, *denominator;
        if (json_unpack(json_array_get(array, (size_t)i), "[ss!]", &name, &denominator))
            return refuse_key(o, "metrics", "must be pairs of name and denominator");
        p->metrics[i] = (Metric){arena_str(p->arena, name), arena_str(p->arena, denominator)};
    }
    return true;
}

static bool read_bound(Obj *o, Plan *p) {
    Obj bound;
    json_t *value = need(o, "bound");
    if (!value || !object_begin(&bound, o->r, value, "bound")) return false;
    for (int e = 0; e < NEXTENT; e++) {
        char *letter = arena_strn(p->arena, &EXTENT_LETTERS[e], 1);
        if (!get_i64(&bound, letter, &p->bound[e])) return false;
    }
    return object_end(&bound);
}

static bool read_plan(Reader *r, json_t *json) {
    Plan *p = r->plan;
    Obj o;
    int version;
    if (!object_begin(&o, r, json, "") || !get_int(&o, "dpoc_plan", &version)) return false;
    if (version != PLAN_VERSION)
        return fail(r->err, EXIT_IO, "%s: plan version %d; this program reads %d", r->file, version,
                    PLAN_VERSION);
    return get_str(&o, "device", &p->device) && get_str(&o, "hash", &p->hash) &&
           read_bound(&o, p) && get_i64(&o, "bucket", &p->bucket) &&
           get_i64(&o, "arena_bytes", &p->arena_bytes) &&
           opt_i64(&o, "budget_bytes", &p->budget_bytes) && opt_bool(&o, "fits", &p->fits) &&
           opt_bool(&o, "coupled", &p->coupled) &&
           opt_num(&o, "parameters_total", &p->parameters_total) &&
           opt_num(&o, "parameters_trainable", &p->parameters_trainable) &&
           opt_num(&o, "flops_micro", &p->flops_micro) &&
           opt_num(&o, "flops_again", &p->flops_again) && opt_str(&o, "base_path", &p->base_path) &&
           opt_str(&o, "adapter_json", &p->adapter_json) &&
           READ_ROWS(&o, "bufs", p->bufs, read_buf, &p->nbufs) &&
           READ_ROWS(&o, "binds", p->binds, read_bind, &p->nbinds) &&
           READ_ROWS(&o, "programs", p->programs, read_program, &p->nprograms) &&
           READ_ROWS(&o, "settings", p->settings, read_setting, &p->nsettings) &&
           read_metrics(&o, p) && get_strings(&o, "recomputed", &p->recomputed, &p->nrecomputed) &&
           get_strings(&o, "refused", &p->refused, &p->nrefused) &&
           READ_ROWS(&o, "kernels", p->kernels, read_kernel, &p->nkernels) &&
           get_lines(&o, "prelude", &p->prelude) && object_end(&o);
}

Plan *plan_from_json(const char *text, const char *name, Err *err) {
    json_error_t at;
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, &at);
    if (!json) {
        fail(err, EXIT_IO, "%s:%d: not valid JSON: %s", name, at.line, at.text);
        return NULL;
    }
    Reader r = {plan_new(), name, err};
    bool ok = read_plan(&r, json);
    json_decref(json);
    const char *wrong = ok ? plan_check(r.plan, r.plan->arena) : NULL;
    if (wrong) ok = refuse(&r, "", wrong);
    if (ok) return r.plan;
    plan_free(r.plan);
    return NULL;
}

Plan *plan_read(const char *path, Err *err) {
    char *text = file_read(path, NULL, err);
    if (!text) return NULL;
    Plan *plan = plan_from_json(text, path, err);
    free(text);
    return plan;
}
