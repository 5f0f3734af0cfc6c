/* model_files.c: see model_files.h. */
#include "model_files.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- config.json ----------------------------------------------------------------------------- */

static json_t *config_open(Arena *arena, const char *dir, Err *err) {
    const char *path = path_join(arena, dir, "config.json");
    json_error_t e;
    json_t *root = json_load_file(path, 0, &e);
    if (root && json_is_object(root)) return root;
    fail(err, EXIT_IO, "%s:%d: %s", path, e.line, root ? "not a JSON object" : e.text);
    json_decref(root);
    return NULL;
}

/* The name of the type under whichever key the file has: "dtype", or "torch_dtype" as written by
 * older versions and read by all. */
static void set_dtype(json_t *config, DType dtype) {
    const char *name = dtype == DT_f32 ? "float32" : dtype == DT_bf16 ? "bfloat16" : "float16";
    bool modern = json_object_get(config, "dtype") != NULL;
    bool old = json_object_get(config, "torch_dtype") != NULL;
    if (modern) json_object_set_new(config, "dtype", json_string(name));
    if (old || !modern) json_object_set_new(config, "torch_dtype", json_string(name));
}

static bool write_config(Arena *arena, const char *from, const char *to, DType dtype, bool untied,
                         Err *err) {
    json_t *config = config_open(arena, from, err);
    if (!config) return false;
    set_dtype(config, dtype);
    json_object_del(config, "quantization_config");
    if (untied) json_object_set_new(config, "tie_word_embeddings", json_false());
    char *text = json_dumps(config, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    json_decref(config);
    if (!text) return fail(err, EXIT_MEMORY, "%s: no memory for config.json", to);
    bool ok = file_write(path_join(arena, to, "config.json"), text, strlen(text), err);
    free(text);
    return ok;
}

const char *model_type(Arena *arena, const char *dir, Err *err) {
    json_t *config = config_open(arena, dir, err);
    const char *type = json_string_value(json_object_get(config, "model_type"));
    if (config && !type) fail(err, EXIT_IO, "%s/config.json: there is no \"model_type\"", dir);
    type = type ? arena_str(arena, type) : NULL;
    json_decref(config);
    return type;
}

/* A key of DIR/config.json; json_decref. */
static json_t *value_of(const char *dir, const char *key) {
    Arena *arena = arena_new();
    Err err = {0};
    json_t *config = config_open(arena, dir, &err);
    json_t *value = json_incref(json_object_get(config, key));
    json_decref(config);
    arena_free(arena);
    return value;
}

int64_t model_number(const char *dir, const char *key) {
    json_t *value = value_of(dir, key);
    int64_t n = json_integer_value(value);
    json_decref(value);
    return n;
}

bool model_flag(const char *dir, const char *key) {
    json_t *value = value_of(dir, key);
    bool on = json_is_true(value);
    json_decref(value);
    return on;
}

/* ---- the others, as they are ----------------------------------------------------------------- */

static bool starts_with(const char *name, const char *start) {
    return strncmp(name, start, strlen(start)) == 0;
}

/* Tokenizers, templates, settings, the model's own Python, licences; no weights, no adapters, no
 * traces of a training. */
static bool belongs_to_model(const char *name) {
    static const char *const ends[] = {".json", ".jinja", ".txt", ".py", "tokenizer.model"};
    static const char *const starts[] = {"LICENSE", "USE_POLICY", "NOTICE"};
    static const char *const others[] = {".", "config.json", "adapter_", "trainer_state"};
    if (ends_with(name, ".index.json") || ends_with(name, "_results.json")) return false;
    bool belongs = false;
    for (size_t i = 0; i < COUNT(ends); i++) belongs |= ends_with(name, ends[i]);
    for (size_t i = 0; i < COUNT(starts); i++) belongs |= starts_with(name, starts[i]);
    for (size_t i = 0; i < COUNT(others); i++) belongs &= !starts_with(name, others[i]);
    return belongs;
}

static bool copy_file(Arena *arena, const char *from, const char *to, const char *name, Err *err) {
    const char *path = path_join(arena, from, name);
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) return true;
    size_t len;
    char *text = file_read(path, &len, err);
    bool ok = text && file_write(path_join(arena, to, name), text, len, err);
    free(text);
    return ok;
}

bool model_files_copy(const char *from, const char *to, DType dtype, bool untied, Err *err) {
    Arena *arena = arena_new();
    bool ok = write_config(arena, from, to, dtype, untied, err);
    DIR *d = ok ? opendir(from) : NULL;
    if (ok && !d) ok = fail(err, EXIT_IO, "%s: %s", from, strerror(errno));
    for (struct dirent *e; ok && d && (e = readdir(d));)
        if (belongs_to_model(e->d_name))
            ok = copy_file(arena, from, to, arena_str(arena, e->d_name), err);
    if (d) closedir(d);
    arena_free(arena);
    return ok;
}
