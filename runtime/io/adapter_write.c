/* adapter_write.c: an adapter as PEFT writes it (adapter.h): the set of configuration keys that all
 * of its versions know, tensors under "base_model.model.", a README.md. */
#include "adapter.h"

#include <jansson.h>
#include <math.h>   /* floor sqrt */
#include <stdlib.h> /* free */
#include <string.h> /* strlen */

static json_t *number(double x) { /* integers without a point, as Python writes ints */
    return x == floor(x) && x < 1e15 ? json_integer((json_int_t)x) : json_real(x);
}

static json_t *pattern(const AdapterPattern *p, int n, double scale) {
    json_t *object = json_object();
    for (int i = 0; i < n; i++)
        json_object_set_new(object, p[i].module, number(p[i].value * scale));
    return object;
}

static json_t *strings(const char *const *s, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_string(s[i]));
    return list;
}

static json_t *names(const AdapterNames *names) {
    return names->pattern ? json_string(names->pattern) : strings(names->name, names->n);
}

/* layers_to_transform and layers_pattern of an adapter that was read. */
static void add_layers(json_t *c, const Adapter *a) {
    json_t *layers = a->nlayers ? json_array() : json_null();
    for (int i = 0; i < a->nlayers; i++) json_array_append_new(layers, json_integer(a->layers[i]));
    json_object_set_new(c, "layers_to_transform", layers);
    json_object_set_new(c, "layers_pattern",
                        a->nlayers_pattern ? strings(a->layers_pattern, a->nlayers_pattern)
                                           : json_null());
}

static json_t *config(const Adapter *a) {
    /* PiSSA doubles the rank; alpha / r, or alpha / sqrt r, stays what it was */
    double rank = a->pissa ? 2 : 1, alpha = a->pissa && a->rslora ? sqrt(2) : rank;
    const AdapterNames whole = {.name = a->targets, .n = a->ntargets};
    json_t *c = json_object();
    static const char *const nulls[] = {"auto_mapping", "revision", "modules_to_save",
                                        "megatron_config", "layer_replication"};
    for (size_t i = 0; i < COUNT(nulls); i++) json_object_set_new(c, nulls[i], json_null());
    add_layers(c, a);
    if (a->excluded.n || a->excluded.pattern)
        json_object_set_new(c, "exclude_modules", names(&a->excluded));
    json_object_set_new(c, "base_model_name_or_path", a->base ? json_string(a->base) : json_null());
    json_object_set_new(c, "peft_type", json_string("LORA"));
    json_object_set_new(c, "task_type", json_string("CAUSAL_LM"));
    json_object_set_new(c, "inference_mode", json_true());
    json_object_set_new(c, "r", number(a->r * rank));
    json_object_set_new(c, "lora_alpha", number(a->alpha * alpha));
    json_object_set_new(c, "lora_dropout", json_real(a->dropout));
    json_object_set_new(c, "target_modules",
                        names(a->chosen.n || a->chosen.pattern ? &a->chosen : &whole));
    json_object_set_new(c, "fan_in_fan_out", json_false());
    json_object_set_new(c, "bias", json_string("none"));
    json_object_set_new(c, "init_lora_weights", json_true());
    json_object_set_new(c, "rank_pattern", pattern(a->rank, a->nrank, rank));
    json_object_set_new(c, "alpha_pattern", pattern(a->alphas, a->nalphas, alpha));
    json_object_set_new(c, "use_rslora", json_boolean(a->rslora));
    json_object_set_new(c, "use_dora", json_boolean(a->dora));
    json_object_set_new(c, "loftq_config", json_object());
    json_object_set_new(c, "megatron_core", json_string("megatron.core"));
    return c;
}

static bool write_config(Arena *arena, const char *dir, const Adapter *a, Err *err) {
    json_t *c = config(a);
    char *text = json_dumps(c, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
    json_decref(c);
    if (!text) return fail(err, EXIT_MEMORY, "%s: no memory for adapter_config.json", dir);
    bool ok = file_write(path_join(arena, dir, "adapter_config.json"), text, strlen(text), err);
    free(text);
    return ok;
}

static bool write_card(Arena *arena, const char *dir, const Adapter *a, const char *card,
                       Err *err) {
    const char *head = a->base ? arena_printf(arena, "base_model: %s\n", a->base) : "";
    const char *text = arena_printf(
        arena,
        "---\n%slibrary_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- dpo\n---\n\n%s",
        head,
        card ? card
             : "# LoRA adapter\n\nTrained with dpoc. Load it with PEFT:\n"
               "`PeftModel.from_pretrained(base_model, directory)`.\n");
    return file_write(path_join(arena, dir, "README.md"), text, strlen(text), err);
}

static bool is_b(const char *name) {
    return strstr(name, ".lora_B.") || strstr(name, ".lora_embedding_B");
}

/* Rows and columns in the file: with PiSSA A over A0, B beside -B0. */
static void file_shape(const AdapterTensor *t, int64_t shape[2]) {
    bool b = is_b(t->name);
    shape[0] = t->start && !b ? 2 * t->rows : t->rows;
    shape[1] = t->start && b ? 2 * t->cols : t->cols;
}

static float element(const AdapterTensor *t, int64_t row, int64_t col) {
    const float *x = row < t->rows && col < t->cols ? t->data : t->start;
    float sign = col < t->cols ? 1 : -1;
    row %= t->rows, col %= t->cols;
    return sign * x[t->transposed ? col * t->rows + row : row * t->cols + col];
}

/* Tensor i of the file, converted piece by piece. */
static bool put_tensor(SafeWriter *w, int i, const AdapterTensor *t, DType dtype, Err *err) {
    int64_t shape[2], size = dtype_bytes(dtype);
    file_shape(t, shape);
    int64_t n = shape[0] * shape[1];
    for (int64_t at = 0, m; at < n; at += m) {
        float value[2048];
        uint16_t half[COUNT(value)];
        m = n - at < (int64_t)COUNT(value) ? n - at : (int64_t)COUNT(value);
        for (int64_t k = 0; k < m; k++)
            value[k] = element(t, (at + k) / shape[1], (at + k) % shape[1]);
        for (int64_t k = 0; k < m && size == 2; k++)
            half[k] = dtype == DT_bf16 ? float_to_bf16(value[k]) : float_to_f16(value[k]);
        const void *data = size == 2 ? (const void *)half : value;
        if (!safe_put(w, i, at * size, data, m * size, err)) return false;
    }
    return true;
}

static bool write_tensors(Arena *arena, const char *dir, const AdapterTensor *t, int n, DType dtype,
                          Err *err) {
    static const char *const metadata[] = {"format", "pt", NULL};
    SafeTensor *out = NEW_ARRAY(arena, SafeTensor, n + 1);
    SafeType type = safe_type_of(dtype);
    for (int i = 0; i < n; i++) {
        int64_t shape[2];
        file_shape(&t[i], shape);
        bool vector = t[i].rank == 1;
        out[i] = (SafeTensor){.name = arena_printf(arena, ADAPTER_PREFIX "%s", t[i].name),
                              .type = type,
                              .rank = t[i].rank,
                              .shape = {shape[vector], shape[1]}};
    }
    SafeWriter *w =
        safe_create(path_join(arena, dir, "adapter_model.safetensors"), out, n, metadata, err);
    for (int i = 0; w && i < n; i++) {
        if (put_tensor(w, i, &t[i], dtype, err)) continue;
        safe_abort(w);
        return false;
    }
    return w && safe_commit(w, err);
}

bool adapter_write(const char *dir, const Adapter *a, const AdapterTensor *tensors, int n,
                   DType dtype, const char *card, Err *err) {
    Arena *arena = arena_new();
    bool ok = dir_make(dir, err) && write_tensors(arena, dir, tensors, n, dtype, err) &&
              write_config(arena, dir, a, err) && write_card(arena, dir, a, card, err);
    arena_free(arena);
    return ok;
}
