/* adapter.c: what an adapter is, from a plan's JSON; rank and alpha of a module (adapter.h).  PEFT
 * directories: adapter_read.c, adapter_write.c; what their names select: adapter_select.c. */
#include "adapter.h"

#include "adapter_json.h"

#include <math.h>   /* sqrt */
#include <string.h> /* strcmp */

const char *adapter_string(Arena *arena, const json_t *object, const char *key) {
    const char *s = json_string_value(json_object_get(object, key));
    return s ? arena_str(arena, s) : NULL;
}

double adapter_number(const json_t *object, const char *key, double absent) {
    const json_t *v = json_object_get(object, key);
    return json_is_number(v) ? json_number_value(v) : absent;
}

bool adapter_strings(Arena *arena, const json_t *list, const char ***out, int *n) {
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

bool adapter_patterns(Arena *arena, const json_t *object, AdapterPattern **out, int *n) {
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
    *a = (Adapter){.name = adapter_string(arena, v, "name"),
                   .r = (int)adapter_number(v, "r", 0),
                   .alpha = adapter_number(v, "alpha", 0),
                   .dropout = adapter_number(v, "dropout", 0),
                   .rslora = json_is_true(json_object_get(v, "rslora")),
                   .dora = json_is_true(json_object_get(v, "dora")),
                   .pissa = json_is_true(json_object_get(v, "pissa")),
                   .init = adapter_string(arena, v, "init")};
    const json_t *names = json_object_get(v, "short"),
                 *embeddings = json_object_get(v, "embeddings");
    return a->name && a->r > 0 &&
           adapter_strings(arena, json_object_get(v, "targets"), &a->targets, &a->ntargets) &&
           (!embeddings || adapter_strings(arena, embeddings, &a->embeddings, &a->nembeddings)) &&
           (!names || adapter_strings(arena, names, &a->chosen.name, &a->chosen.n)) &&
           adapter_patterns(arena, json_object_get(v, "rank_pattern"), &a->rank, &a->nrank) &&
           adapter_patterns(arena, json_object_get(v, "alpha_pattern"), &a->alphas, &a->nalphas);
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

static double value_of(const AdapterPattern *pattern, int n, const char *module, double other) {
    for (int i = 0; i < n; i++)
        if (adapter_key_fits(pattern[i].module, module)) return pattern[i].value;
    return other;
}

int adapter_rank(const Adapter *a, const char *module) {
    return (int)value_of(a->rank, a->nrank, module, a->r);
}

double adapter_alpha(const Adapter *a, const char *module) {
    return value_of(a->alphas, a->nalphas, module, a->alpha);
}

double adapter_scaling(const Adapter *a, const char *module) {
    double r = adapter_rank(a, module);
    return adapter_alpha(a, module) / (a->rslora ? sqrt(r) : r);
}
