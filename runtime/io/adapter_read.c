/* adapter_read.c: an adapter from a PEFT directory, and whether it is the one a program describes
 * (adapter.h).
 *
 * What an adapter changes is what its tensors say; the configuration must agree with them: it
 * selects their modules and has their ranks.  Unknown keys are ignored, keys of what is not done
 * here are refused by name.
 */
#include "adapter_json.h"

#include <dirent.h>
#include <math.h>   /* fabs */
#include <stdlib.h> /* free */
#include <string.h> /* strcmp */

#define PEFT_CONFIG "adapter_config.json"

/* ---- the directory --------------------------------------------------------------------------- */

static bool has_config(Arena *arena, const char *dir) {
    return file_exists(path_join(arena, dir, PEFT_CONFIG));
}

/* The only directory in `dir` that has a configuration, or NULL. */
static const char *only_inside(Arena *arena, const char *dir) {
    const char *found = NULL;
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        const char *inside = path_join(arena, dir, arena_str(arena, e->d_name));
        if (has_config(arena, inside)) found = inside, n++;
    }
    if (d) closedir(d);
    return n == 1 ? found : NULL;
}

const char *adapter_dir(Arena *arena, const char *dir, const char *name) {
    if (has_config(arena, dir)) return dir;
    const char *places[] = {"adapter", name};
    for (size_t i = 0; i < COUNT(places); i++) {
        const char *inside = places[i] ? path_join(arena, dir, places[i]) : dir;
        if (has_config(arena, inside)) return inside;
    }
    const char *only = only_inside(arena, dir);
    return only ? only : dir;
}

/* ---- its configuration ----------------------------------------------------------------------- */

/* Whether a key says nothing: absent, null, false, empty. */
static bool idle(const json_t *v) {
    return !v || json_is_null(v) || json_is_false(v) ||
           (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_object(v) && json_object_size(v) == 0);
}

/* Ways to begin that leave the base as it is: true, false and these. */
static bool init_is_harmless(const char *init) {
    static const char *const known[] = {"gaussian", "orthogonal", "eva"};
    for (size_t i = 0; i < COUNT(known); i++)
        if (strcmp(init, known[i]) == 0) return true;
    return false;
}

/* What would change the result and is not done here, refused by name. */
static bool refuse(const json_t *root, const char *path, Err *err) {
    static const char *const keys[] = {
        "modules_to_save",   "fan_in_fan_out",          "lora_bias",
        "layer_replication", "target_parameters",       "use_qalora",
        "use_bdlora",        "alora_invocation_tokens", "trainable_token_indices",
        "arrow_config",      "monteclora_config",       "kasa_config",
        "velora_config"};
    for (size_t i = 0; i < COUNT(keys); i++)
        if (!idle(json_object_get(root, keys[i])))
            return fail(err, EXIT_IO, "%s: \"%s\" is set; this kind of adapter is not supported",
                        path, keys[i]);
    const char *type = json_string_value(json_object_get(root, "peft_type"));
    if (!type || strcmp(type, "LORA") != 0)
        return fail(err, EXIT_IO, "%s: \"peft_type\" is %s%s%s; only LORA is supported", path,
                    type ? "\"" : "", type ? type : "missing", type ? "\"" : "");
    const char *bias = json_string_value(json_object_get(root, "bias"));
    if (bias && strcmp(bias, "none") != 0)
        return fail(err, EXIT_IO, "%s: \"bias\" is \"%s\"; only \"none\" is supported", path, bias);
    const char *init = json_string_value(json_object_get(root, "init_lora_weights"));
    if (init && !init_is_harmless(init))
        return fail(
            err, EXIT_IO,
            "%s: \"init_lora_weights\" is \"%s\": such an adapter changes the base weights; "
            "save it as a plain LoRA (PEFT: path_initial_model_for_weight_conversion)",
            path, init);
    return true;
}

/* A list of names, one pattern, or nothing. */
static bool read_names(Arena *arena, const json_t *v, AdapterNames *out) {
    if (json_is_string(v)) {
        out->pattern = arena_str(arena, json_string_value(v));
        return true;
    }
    return (!v || json_is_null(v) || json_is_array(v)) &&
           adapter_strings(arena, v, &out->name, &out->n);
}

/* target_modules; absent in old files: what PEFT takes for Llama. */
static bool read_chosen(Arena *arena, const json_t *root, Adapter *a) {
    static const char *const usual[] = {"q_proj", "v_proj"};
    if (!read_names(arena, json_object_get(root, "target_modules"), &a->chosen)) return false;
    AdapterNames *c = &a->chosen;
    if (c->pattern && strcasecmp(c->pattern, "all-linear") == 0) c->pattern = "all-linear";
    if (c->pattern || c->n) return true;
    c->name = NEW_ARRAY(arena, const char *, COUNT(usual));
    while (c->n < (int)COUNT(usual)) c->name[c->n] = usual[c->n], c->n++;
    return true;
}

/* layers_to_transform: a number or a list of them; layers_pattern: a name or a list. */
static bool read_layers(Arena *arena, const json_t *root, Adapter *a) {
    const json_t *layers = json_object_get(root, "layers_to_transform");
    AdapterNames pattern = {0};
    if (!read_names(arena, json_object_get(root, "layers_pattern"), &pattern)) return false;
    a->layers_pattern = pattern.name;
    a->nlayers_pattern = pattern.n;
    if (pattern.pattern && *pattern.pattern) {
        a->layers_pattern = NEW_ARRAY(arena, const char *, 1);
        a->layers_pattern[a->nlayers_pattern++] = pattern.pattern;
    }
    a->layers = NEW_ARRAY(arena, int64_t, json_array_size(layers) + 1);
    if (json_is_integer(layers)) a->layers[a->nlayers++] = json_integer_value(layers);
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const json_t *layer = json_array_get(layers, i);
        if (!json_is_integer(layer)) return false;
        a->layers[a->nlayers++] = json_integer_value(layer);
    }
    return !layers || json_is_null(layers) || json_is_integer(layers) || json_is_array(layers);
}

static bool read_numbers(Arena *arena, const json_t *root, const char *path, Adapter *a, Err *err) {
    static const char *const numbers[] = {"r", "lora_alpha", "lora_dropout"};
    for (size_t i = 0; i < COUNT(numbers); i++) {
        const json_t *v = json_object_get(root, numbers[i]);
        if (v && !json_is_null(v) && !json_is_number(v))
            return fail(err, EXIT_IO, "%s: \"%s\" is not a number", path, numbers[i]);
    }
    double r = adapter_number(root, "r", 8);
    if (!(r >= 1 && r <= 1 << 20) || (double)(int)r != r)
        return fail(err, EXIT_IO, "%s: \"r\" is not a rank", path);
    a->r = (int)r;
    a->alpha = adapter_number(root, "lora_alpha", 8);
    a->dropout = adapter_number(root, "lora_dropout", 0);
    if (adapter_patterns(arena, json_object_get(root, "rank_pattern"), &a->rank, &a->nrank) &&
        adapter_patterns(arena, json_object_get(root, "alpha_pattern"), &a->alphas, &a->nalphas))
        return true;
    return fail(err, EXIT_IO,
                "%s: \"rank_pattern\" or \"alpha_pattern\" holds something else than numbers",
                path);
}

static bool parse_config(Arena *arena, const json_t *root, const char *path, Adapter *a, Err *err) {
    if (!json_is_object(root)) return fail(err, EXIT_IO, "%s: not a JSON object", path);
    *a = (Adapter){.rslora = json_is_true(json_object_get(root, "use_rslora")),
                   .dora = json_is_true(json_object_get(root, "use_dora")),
                   .base = adapter_string(arena, root, "base_model_name_or_path")};
    if (!refuse(root, path, err) || !read_numbers(arena, root, path, a, err)) return false;
    if (!read_chosen(arena, root, a))
        return fail(err, EXIT_IO, "%s: \"target_modules\" is neither a list of names nor a pattern",
                    path);
    if (!read_names(arena, json_object_get(root, "exclude_modules"), &a->excluded))
        return fail(err, EXIT_IO,
                    "%s: \"exclude_modules\" is neither a list of names nor a pattern", path);
    if (!read_layers(arena, root, a))
        return fail(err, EXIT_IO,
                    "%s: \"layers_to_transform\" or \"layers_pattern\" is not a list of layers",
                    path);
    const char *wrong = adapter_bad_pattern(arena, a);
    return !wrong || fail(err, EXIT_IO, "%s: %s", path, wrong);
}

/* ---- its tensors ----------------------------------------------------------------------------- */

/* "base_model.model.M.lora_A.weight" -> M and the part; false for other names. */
static bool part_of(Arena *arena, const char *tensor, const char **module, AdapterPart *part,
                    bool *embedding) {
    size_t n = strlen(tensor), start = strlen(ADAPTER_PREFIX);
    if (n <= start || strncmp(tensor, ADAPTER_PREFIX, start) != 0) return false;
    for (int e = 0; e < 2; e++)
        for (int p = 0; p < NADAPTERPART; p++) {
            const char *end = adapter_suffix((AdapterPart)p, e);
            size_t m = strlen(end);
            if (n <= start + m || strcmp(tensor + n - m, end) != 0) continue;
            *module = arena_strn(arena, tensor + start, n - start - m);
            *part = (AdapterPart)p;
            *embedding = e;
            return true;
        }
    return false;
}

/* The base's own weights, which PEFT puts beside adapted embeddings: their module, or NULL. */
static const char *copy_of(Arena *arena, const char *tensor) {
    static const char end[] = ".base_layer.weight";
    size_t n = strlen(tensor), start = strlen(ADAPTER_PREFIX), m = strlen(end);
    if (n <= start + m || strncmp(tensor, ADAPTER_PREFIX, start) != 0) return NULL;
    return strcmp(tensor + n - m, end) == 0 ? arena_strn(arena, tensor + start, n - start - m)
                                            : NULL;
}

static bool is_target(const Adapter *a, const char *module) {
    for (int i = 0; i < a->ntargets; i++)
        if (strcmp(a->targets[i], module) == 0) return true;
    return false;
}

const SafeTensor *adapter_tensor(const Adapter *a, const Checkpoint *c, const char *module,
                                 AdapterPart part) {
    char name[1024];
    snprintf(name, sizeof name, ADAPTER_PREFIX "%s%s", module,
             adapter_suffix(part, adapter_embeds(a, module)));
    return checkpoint_find(c, name, NULL);
}

/* A module has all its parts, of the rank that the configuration says. */
static bool check_parts(const Adapter *a, const Checkpoint *c, const char *module, Err *err) {
    const char *dir = checkpoint_dir(c);
    const SafeTensor *t[NADAPTERPART];
    for (int p = 0; p < NADAPTERPART; p++) {
        const char *end = adapter_suffix((AdapterPart)p, adapter_embeds(a, module));
        t[p] = adapter_tensor(a, c, module, (AdapterPart)p);
        bool wanted = p != ADAPTER_MAGNITUDE || a->dora;
        if (!t[p] != !wanted)
            return fail(err, EXIT_IO, "%s: %s has %s\"%s\"%s", dir, module, t[p] ? "a " : "no ",
                        end + 1, t[p] ? ", but \"use_dora\" is not set" : "");
        if (t[p] && t[p]->rank != (p == ADAPTER_MAGNITUDE ? 1 : 2))
            return fail(err, EXIT_IO, "%s: \"%s\" is %s a matrix", dir, t[p]->name,
                        p == ADAPTER_MAGNITUDE ? "" : "not");
    }
    if (!adapter_selects(a, module))
        return fail(err, EXIT_IO,
                    "%s: there are tensors of %s, which \"target_modules\" does not select", dir,
                    module);
    int64_t rank = adapter_rank(a, module);
    if (t[ADAPTER_A]->shape[0] == rank && t[ADAPTER_B]->shape[1] == rank) return true;
    return fail(
        err, EXIT_IO,
        "%s: A and B of %s are [%lld, %lld] and [%lld, %lld]; " PEFT_CONFIG " says rank %lld", dir,
        module, (long long)t[ADAPTER_A]->shape[0], (long long)t[ADAPTER_A]->shape[1],
        (long long)t[ADAPTER_B]->shape[0], (long long)t[ADAPTER_B]->shape[1], (long long)rank);
}

/* The modules that the tensors are of. */
static bool read_targets(Arena *arena, const Checkpoint *c, Adapter *a, Err *err) {
    int cap = 0, capembeddings = 0;
    for (int i = 0; i < checkpoint_count(c); i++) {
        const SafeTensor *t = checkpoint_tensor(c, i);
        const char *module;
        AdapterPart part;
        bool embedding;
        if (copy_of(arena, t->name)) continue;
        if (!part_of(arena, t->name, &module, &part, &embedding))
            return fail(err, EXIT_IO, "%s: tensor \"%s\" is not part of a LoRA adapter",
                        checkpoint_dir(c), t->name);
        if (part != ADAPTER_A || is_target(a, module)) continue;
        PUSH(arena, a->targets, a->ntargets, cap, module);
        if (embedding) PUSH(arena, a->embeddings, a->nembeddings, capembeddings, module);
    }
    for (int i = 0; i < checkpoint_count(c); i++) { /* a B or a magnitude alone */
        const char *name = checkpoint_tensor(c, i)->name, *module;
        AdapterPart part;
        bool embedding;
        if (part_of(arena, name, &module, &part, &embedding) && !is_target(a, module))
            return fail(err, EXIT_IO, "%s: there is \"%s\", but no lora_A of %s", checkpoint_dir(c),
                        name, module);
    }
    for (int i = 0; i < a->ntargets; i++)
        if (!check_parts(a, c, a->targets[i], err)) return false;
    return a->ntargets > 0 || fail(err, EXIT_IO, "%s: there is no tensor", checkpoint_dir(c));
}

Adapter *adapter_read(Arena *arena, const char *dir, Err *err) {
    char *path = path_join(arena, dir, PEFT_CONFIG);
    size_t len;
    json_error_t e;
    Adapter *a = NEW(arena, Adapter);
    char *text = file_read(path, &len, err);
    if (!text) return NULL;
    json_t *root = json_loadb(text, len, 0, &e);
    free(text);
    if (!root) fail(err, EXIT_IO, "%s:%d:%d: %s", path, e.line, e.column, e.text);
    bool ok = root && parse_config(arena, root, path, a, err);
    json_decref(root);
    Checkpoint *c = ok ? checkpoint_open(dir, "adapter_model", err) : NULL;
    ok = c && read_targets(arena, c, a, err);
    checkpoint_close(c);
    return ok ? a : NULL;
}

/* ---- does a directory fit? ------------------------------------------------------------------- */

static bool check_module(const Adapter *want, const Adapter *have, const char *module,
                         const char *dir, Err *err) {
    if (!is_target(have, module))
        return fail(err, EXIT_INPUT,
                    "%s: the adapter does not change %s, which adapter `%s` of the program does",
                    dir, module, want->name);
    int ours = adapter_rank(want, module), theirs = adapter_rank(have, module);
    if (ours != theirs)
        return fail(err, EXIT_INPUT,
                    "%s: the adapter has rank %d at %s, the program %d: set %s.rank=%d", dir,
                    theirs, module, ours, want->name, theirs);
    double alpha = adapter_alpha(want, module), file = adapter_alpha(have, module);
    if (fabs(alpha - file) > 1e-9 * fabs(file))
        return fail(err, EXIT_INPUT,
                    "%s: the adapter has alpha %g at %s, the program %g: set %s.alpha=%g", dir,
                    file, module, alpha, want->name, file);
    return true;
}

static bool check_switch(const Adapter *want, const char *dir, const char *key, bool ours,
                         bool theirs, Err *err) {
    return ours == theirs ||
           fail(err, EXIT_INPUT, "%s: the adapter has use_%s %s, the program %s: set %s.%s", dir,
                key, theirs ? "true" : "false", ours ? "true" : "false", want->name, key);
}

/* Whether tensors of one shape hold the same numbers in the narrower one's type. */
static bool same_numbers(const SafeTensor *copy, const SafeTensor *base, Err *err) {
    float x[4096], y[COUNT(x)];
    bool same = copy->count == base->count;
    for (int64_t at = 0; same && at < copy->count; at += (int64_t)COUNT(x)) {
        int64_t n = copy->count - at < (int64_t)COUNT(x) ? copy->count - at : (int64_t)COUNT(x);
        if (!safe_read_f32(copy, at, n, x, err) || !safe_read_f32(base, at, n, y, err))
            return false;
        for (int64_t i = 0; i < n && copy->type == SAFE_BF16; i++)
            y[i] = bf16_to_float(float_to_bf16(y[i]));
        for (int64_t i = 0; i < n && copy->type == SAFE_F16; i++)
            y[i] = f16_to_float(float_to_f16(y[i]));
        same = memcmp(x, y, sizeof *x * (size_t)n) == 0;
    }
    return same;
}

/* PEFT's copies of embeddings are the base's, unless they were trained or the vocabulary grew. */
static bool check_copies(Arena *arena, const Adapter *want, const Checkpoint *c, Err *err) {
    Checkpoint *base = NULL;
    bool ok = true;
    for (int i = 0; ok && want->base && i < checkpoint_count(c); i++) {
        const SafeTensor *t = checkpoint_tensor(c, i);
        const char *module = copy_of(arena, t->name);
        if (!module) continue;
        if (!base && !(base = checkpoint_open(want->base, "model", err))) return false;
        const SafeTensor *own =
            checkpoint_find(base, arena_printf(arena, "%s.weight", module), NULL);
        ok = !own || same_numbers(t, own, err) ||
             fail(err, EXIT_IO,
                  "%s: \"%s\" differs from %s's: trained or resized embeddings beside a LoRA are "
                  "not supported; merge the adapter with PEFT first",
                  checkpoint_dir(c), t->name, want->base);
    }
    checkpoint_close(base);
    return ok;
}

bool adapter_check(const Adapter *want, const char *dir, Err *err) {
    Arena *arena = arena_new();
    Adapter *have = adapter_read(arena, dir, err);
    bool ok = have && check_switch(want, dir, "rslora", want->rslora, have->rslora, err) &&
              check_switch(want, dir, "dora", want->dora, have->dora, err);
    for (int i = 0; ok && i < want->ntargets; i++)
        ok = check_module(want, have, want->targets[i], dir, err);
    for (int i = 0; ok && i < have->ntargets; i++)
        if (!is_target(want, have->targets[i]))
            ok = fail(err, EXIT_INPUT,
                      "%s: the adapter changes %s, which adapter `%s` of the program does not", dir,
                      have->targets[i], want->name);
    Checkpoint *c = ok ? checkpoint_open(dir, "adapter_model", err) : NULL;
    ok = c && check_copies(arena, want, c, err);
    checkpoint_close(c);
    arena_free(arena);
    return ok;
}
