/* adapter.c: what an adapter is, from a plan's JSON and from a PEFT directory (adapter.h).  Writing
 * one is in adapter_write.c. */
#include "adapter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <math.h> /* fabs */
#include <pcre2.h>
#include <stdlib.h> /* free */
#include <string.h> /* strcmp */

static const char *string_at(Arena *arena, const json_t *object, const char *key) {
    const char *s = json_string_value(json_object_get(object, key));
    return s ? arena_str(arena, s) : NULL;
}

static double number_at(const json_t *object, const char *key, double absent) {
    const json_t *v = json_object_get(object, key);
    return json_is_number(v) ? json_number_value(v) : absent;
}

/* A list of strings; false when it holds anything else. */
static bool strings_at(Arena *arena, const json_t *list, const char ***out, int *n) {
    size_t count = json_array_size(list);
    *out = NEW_ARRAY(arena, const char *, count + 1);
    *n = 0;
    for (size_t i = 0; i < count; i++) {
        const char *s = json_string_value(json_array_get(list, i));
        if (!s) return false;
        (*out)[(*n)++] = arena_str(arena, s);
    }
    return true;
}

static bool patterns_at(Arena *arena, const json_t *object, AdapterPattern **out, int *n) {
    *out = NEW_ARRAY(arena, AdapterPattern, json_object_size(object) + 1);
    *n = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (!json_is_number(value)) return false;
        (*out)[(*n)++] = (AdapterPattern){arena_str(arena, key), json_number_value(value)};
    }
    return true;
}

/* ---- the plan's description ------------------------------------------------------------------ */

static bool parse_one(Arena *arena, const json_t *v, Adapter *a) {
    *a = (Adapter){.name = string_at(arena, v, "name"),
                   .r = (int)number_at(v, "r", 0),
                   .alpha = number_at(v, "alpha", 0),
                   .dropout = number_at(v, "dropout", 0),
                   .rslora = json_is_true(json_object_get(v, "rslora")),
                   .dora = json_is_true(json_object_get(v, "dora")),
                   .pissa = json_is_true(json_object_get(v, "pissa")),
                   .init = string_at(arena, v, "init")};
    const json_t *names = json_object_get(v, "short"),
                 *embeddings = json_object_get(v, "embeddings");
    return a->name && a->r > 0 &&
           strings_at(arena, json_object_get(v, "targets"), &a->targets, &a->ntargets) &&
           (!embeddings || strings_at(arena, embeddings, &a->embeddings, &a->nembeddings)) &&
           (!names || strings_at(arena, names, &a->names, &a->nnames)) &&
           patterns_at(arena, json_object_get(v, "rank_pattern"), &a->rank, &a->nrank) &&
           patterns_at(arena, json_object_get(v, "alpha_pattern"), &a->alphas, &a->nalphas);
}

Adapter *adapters_parse(Arena *arena, const char *json, int *n, Err *err) {
    json_error_t e;
    json_t *root = json_loads(json, 0, &e);
    Adapter *a = NEW_ARRAY(arena, Adapter, json_array_size(root) + 1);
    bool ok = json_is_array(root);
    *n = 0;
    for (size_t i = 0; ok && i < json_array_size(root); i++)
        ok = parse_one(arena, json_array_get(root, i), &a[(*n)++]);
    json_decref(root);
    if (ok) return a;
    fail(err, EXIT_INPUT, "the plan's \"adapter_json\" is not a list of adapters");
    return NULL;
}

const char *adapter_suffix(AdapterPart part, bool embedding) {
    static const char *const linear[] = {".lora_A.weight", ".lora_B.weight"};
    static const char *const embed[] = {".lora_embedding_A", ".lora_embedding_B"};
    if (part == ADAPTER_MAGNITUDE) return ".lora_magnitude_vector";
    return embedding ? embed[part] : linear[part];
}

bool adapter_embeds(const Adapter *a, const char *module) {
    for (int i = 0; i < a->nembeddings; i++)
        if (strcmp(a->embeddings[i], module) == 0) return true;
    return false;
}

/* ---- rank and alpha of a module -------------------------------------------------------------- */

/* PEFT's rule: the key, a regular expression, is the whole path or follows a dot. */
static bool pattern_fits(const char *key, const char *module) {
    Arena *arena = arena_new();
    const char *regex = arena_printf(arena, "^(?:.*\\.)?(?:%s)$", key);
    int code;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, 0, &code, &at, NULL);
    pcre2_match_data *match = re ? pcre2_match_data_create_from_pattern(re, NULL) : NULL;
    bool fits = match && pcre2_match(re, (PCRE2_SPTR)module, strlen(module), 0, 0, match, NULL) > 0;
    pcre2_match_data_free(match);
    pcre2_code_free(re);
    arena_free(arena);
    return fits;
}

static double value_of(const AdapterPattern *pattern, int n, const char *module, double other) {
    for (int i = 0; i < n; i++)
        if (strcmp(pattern[i].module, module) == 0) return pattern[i].value;
    for (int i = 0; i < n; i++)
        if (pattern_fits(pattern[i].module, module)) return pattern[i].value;
    return other;
}

int adapter_rank(const Adapter *a, const char *module) {
    return (int)value_of(a->rank, a->nrank, module, a->r);
}

double adapter_alpha(const Adapter *a, const char *module) {
    return value_of(a->alphas, a->nalphas, module, a->alpha);
}

/* ---- a PEFT directory ------------------------------------------------------------------------ */

/* Whether a key says nothing: absent, null, false, empty. */
static bool idle(const json_t *v) {
    return !v || json_is_null(v) || json_is_false(v) ||
           (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_object(v) && json_object_size(v) == 0);
}

/* What would change the result and is not done here, refused by name. */
static bool refuse(const json_t *root, const char *path, Err *err) {
    static const char *const keys[] = {"use_dora",
                                       "modules_to_save",
                                       "fan_in_fan_out",
                                       "lora_bias",
                                       "layer_replication",
                                       "target_parameters",
                                       "trainable_token_indices",
                                       "eva_config",
                                       "corda_config",
                                       "use_qalora",
                                       "alora_invocation_tokens",
                                       "arrow_config",
                                       "use_bdlora",
                                       "lora_ga_config",
                                       "kasa_config"};
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
    if (init && strcmp(init, "gaussian") != 0 && strcmp(init, "orthogonal") != 0)
        return fail(
            err, EXIT_IO,
            "%s: \"init_lora_weights\" is \"%s\": such an adapter changes the base weights; "
            "save it as a plain LoRA (PEFT: path_initial_model_for_weight_conversion)",
            path, init);
    return true;
}

static bool parse_config(Arena *arena, const json_t *root, const char *path, Adapter *a, Err *err) {
    if (!json_is_object(root)) return fail(err, EXIT_IO, "%s: not a JSON object", path);
    if (!refuse(root, path, err)) return false;
    static const char *const numbers[] = {"r", "lora_alpha", "lora_dropout"};
    for (size_t i = 0; i < COUNT(numbers); i++) {
        const json_t *v = json_object_get(root, numbers[i]);
        if (v && !json_is_null(v) && !json_is_number(v))
            return fail(err, EXIT_IO, "%s: \"%s\" is not a number", path, numbers[i]);
    }
    double r = number_at(root, "r", 8);
    if (!(r >= 1 && r <= 1 << 20) || (double)(int)r != r)
        return fail(err, EXIT_IO, "%s: \"r\" is not a rank", path);
    *a = (Adapter){.r = (int)r,
                   .alpha = number_at(root, "lora_alpha", 8),
                   .dropout = number_at(root, "lora_dropout", 0),
                   .rslora = json_is_true(json_object_get(root, "use_rslora")),
                   .base = string_at(arena, root, "base_model_name_or_path")};
    const json_t *targets = json_object_get(root, "target_modules");
    if (!strings_at(arena, targets, &a->targets, &a->ntargets))
        return fail(err, EXIT_IO, "%s: \"target_modules\" is not a list of names", path);
    if (!patterns_at(arena, json_object_get(root, "rank_pattern"), &a->rank, &a->nrank) ||
        !patterns_at(arena, json_object_get(root, "alpha_pattern"), &a->alphas, &a->nalphas))
        return fail(err, EXIT_IO,
                    "%s: \"rank_pattern\" or \"alpha_pattern\" holds something else than "
                    "numbers",
                    path);
    return true;
}

Adapter *adapter_read(Arena *arena, const char *dir, Err *err) {
    char *path = path_join(arena, dir, "adapter_config.json");
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
    return ok ? a : NULL;
}

/* ---- does a directory fit? ------------------------------------------------------------------- */

/* "base_model.model.M.lora_A.weight" -> M; false for other names. */
static bool module_of(Arena *arena, const char *tensor, const char **module) {
    static const char *const ends[] = {".lora_A.weight", ".lora_B.weight"};
    size_t n = strlen(tensor), start = strlen(ADAPTER_PREFIX), m = strlen(ends[0]);
    if (n <= start + m || strncmp(tensor, ADAPTER_PREFIX, start) != 0) return false;
    for (size_t i = 0; i < COUNT(ends); i++)
        if (strcmp(tensor + n - m, ends[i]) == 0)
            return *module = arena_strn(arena, tensor + start, n - start - m), true;
    return false;
}

static bool check_module(const Adapter *want, const Adapter *have, const char *module,
                         const Checkpoint *c, Err *err) {
    const char *dir = checkpoint_dir(c);
    for (int k = 0; k < 2; k++) {
        char name[512];
        snprintf(name, sizeof name, ADAPTER_PREFIX "%s.lora_%c.weight", module, "AB"[k]);
        const SafeTensor *t = checkpoint_find(c, name, NULL);
        if (!t) return checkpoint_missing(c, name, err);
        if (t->rank != 2) return fail(err, EXIT_IO, "%s: tensor \"%s\" is not a matrix", dir, name);
        if (t->shape[k] != adapter_rank(want, module))
            return fail(err, EXIT_INPUT,
                        "%s: the adapter has rank %lld at %s, the program %d: set %s.rank=%lld",
                        dir, (long long)t->shape[k], module, adapter_rank(want, module), want->name,
                        (long long)t->shape[k]);
    }
    double ours = adapter_alpha(want, module), theirs = adapter_alpha(have, module);
    if (fabs(ours - theirs) > 1e-9 * fabs(theirs))
        return fail(err, EXIT_INPUT,
                    "%s: the adapter has alpha %g at %s, the program %g: set %s.alpha=%g", dir,
                    theirs, module, ours, want->name, theirs);
    return true;
}

static bool is_target(const Adapter *a, const char *module) {
    for (int i = 0; i < a->ntargets; i++)
        if (strcmp(a->targets[i], module) == 0) return true;
    return false;
}

static bool check_tensors(Arena *arena, const Adapter *want, const Checkpoint *c, Err *err) {
    for (int i = 0; i < checkpoint_count(c); i++) {
        const char *name = checkpoint_tensor(c, i)->name, *module;
        if (!module_of(arena, name, &module))
            return fail(err, EXIT_IO, "%s: tensor \"%s\" is not part of a LoRA adapter",
                        checkpoint_dir(c), name);
        if (!is_target(want, module))
            return fail(err, EXIT_INPUT,
                        "%s: the adapter changes %s, which adapter `%s` of the program does not",
                        checkpoint_dir(c), module, want->name);
    }
    return true;
}

bool adapter_check(const Adapter *want, const char *dir, Err *err) {
    Arena *arena = arena_new();
    Adapter *have = adapter_read(arena, dir, err);
    Checkpoint *c = have ? checkpoint_open(dir, "adapter_model", err) : NULL;
    if (c && have->rslora != want->rslora)
        fail(err, EXIT_INPUT, "%s: the adapter has use_rslora %s, the program %s: set %s.rslora",
             dir, have->rslora ? "true" : "false", want->rslora ? "true" : "false", want->name);
    bool ok = c && have->rslora == want->rslora;
    for (int i = 0; ok && i < want->ntargets; i++)
        ok = check_module(want, have, want->targets[i], c, err);
    ok = ok && check_tensors(arena, want, c, err);
    checkpoint_close(c);
    arena_free(arena);
    return ok;
}
