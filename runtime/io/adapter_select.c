/* adapter_select.c: which modules PEFT's names and patterns mean (adapter.h).
 *
 * target_modules and exclude_modules: a list of whole paths and endings that follow a dot, or one
 * regular expression for the whole path.  Python's expressions are read by PCRE2: what people write
 * here means the same in both.
 */
#include "adapter_json.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#define MOST ((int64_t)1 << 40) /* of a layer's number */

/* ---- regular expressions --------------------------------------------------------------------- */

/* Where `regex` first matches at the beginning of `text`: the number that its first group holds (at
 * most MOST), or 0 where it has none; -1: it does not match. */
static int64_t match_at_start(const char *regex, const char *text) {
    int code;
    PCRE2_SIZE at;
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED, &code, &at, NULL);
    pcre2_match_data *match = re ? pcre2_match_data_create_from_pattern(re, NULL) : NULL;
    int groups = match ? pcre2_match(re, (PCRE2_SPTR)text, strlen(text), 0, 0, match, NULL) : -1;
    int64_t found = groups > 0 ? 0 : -1;
    const PCRE2_SIZE *range = groups > 1 ? pcre2_get_ovector_pointer(match) : NULL;
    for (PCRE2_SIZE i = range ? range[2] : 0; range && i < range[3] && found < MOST; i++)
        found = found * 10 + (text[i] - '0');
    pcre2_match_data_free(match);
    pcre2_code_free(re);
    return found;
}

static bool matches(Arena *arena, const char *prefix, const char *regex, const char *text) {
    return match_at_start(arena_printf(arena, "%s(?:%s)\\z", prefix, regex), text) >= 0;
}

static const char *wrong_with(Arena *arena, const char *regex) {
    int code;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, 0, &code, &at, NULL);
    pcre2_code_free(re);
    if (re) return NULL;
    PCRE2_UCHAR text[200];
    pcre2_get_error_message(code, text, sizeof text);
    return arena_printf(arena, "\"%s\": %s at character %d", regex, (const char *)text,
                        (int)at + 1);
}

static bool all_linear(const AdapterNames *names) {
    return names->pattern && strcmp(names->pattern, "all-linear") == 0;
}

static const char *wrong_keys(Arena *arena, const AdapterPattern *p, int n) {
    const char *wrong = NULL;
    for (int i = 0; !wrong && i < n; i++) wrong = wrong_with(arena, p[i].module);
    return wrong;
}

const char *adapter_bad_pattern(Arena *arena, const Adapter *a) {
    const char *wrong = wrong_keys(arena, a->rank, a->nrank);
    if (!wrong) wrong = wrong_keys(arena, a->alphas, a->nalphas);
    for (int i = 0; !wrong && i < a->nlayers_pattern; i++)
        wrong = wrong_with(arena, a->layers_pattern[i]);
    const AdapterNames *names[] = {&a->chosen, &a->excluded};
    for (size_t i = 0; !wrong && i < COUNT(names); i++)
        if (names[i]->pattern && !all_linear(names[i]))
            wrong = wrong_with(arena, names[i]->pattern);
    return wrong;
}

/* ---- names ----------------------------------------------------------------------------------- */

/* The part of `text` that `name` could be: all of it, or an ending of that length behind a dot. */
static const char *ending(const char *text, size_t n) {
    size_t len = strlen(text);
    if (n > len || (n < len && text[len - n - 1] != '.')) return NULL;
    return text + len - n;
}

/* A key without operators but the dot, which stands for any character. */
static bool plain_fits(const char *key, const char *module) {
    const char *end = ending(module, strlen(key));
    for (; end && *key; key++, end++)
        if (*key != '.' && *key != *end) return false;
    return end != NULL;
}

bool adapter_key_fits(const char *key, const char *module) {
    if (!strpbrk(key, "\\^$|?*+()[]{}")) return plain_fits(key, module);
    Arena *arena = arena_new();
    bool fits = matches(arena, "(?:.*\\.)?", key, module);
    arena_free(arena);
    return fits;
}

static bool listed(const AdapterNames *names, const char *module) {
    for (int i = 0; i < names->n; i++) {
        const char *end = ending(module, strlen(names->name[i]));
        if (end && strcmp(end, names->name[i]) == 0) return true;
    }
    return false;
}

/* The number behind the name of the list of layers; -1: there is none. */
static int64_t layer_of(Arena *arena, const Adapter *a, const char *module) {
    if (a->nlayers_pattern == 0) return match_at_start(".*?\\.[^.]*\\.(\\d+)\\.", module);
    int64_t layer = -1;
    for (int i = 0; layer < 0 && i < a->nlayers_pattern; i++)
        layer = match_at_start(
            arena_printf(arena, "(?:|.*?\\.)(?:%s)\\.(\\d+)\\.", a->layers_pattern[i]), module);
    return layer;
}

static bool in_layers(Arena *arena, const Adapter *a, const char *module) {
    int64_t layer = a->nlayers ? layer_of(arena, a, module) : 0;
    for (int i = 0; i < a->nlayers; i++)
        if (a->layers[i] == layer) return true;
    return a->nlayers == 0;
}

bool adapter_selects(const Adapter *a, const char *module) {
    Arena *arena = arena_new();
    bool excluded = a->excluded.pattern ? matches(arena, "", a->excluded.pattern, module)
                                        : listed(&a->excluded, module);
    bool chosen = false;
    if (all_linear(&a->chosen))
        chosen = true;
    else if (a->chosen.pattern)
        chosen = matches(arena, "", a->chosen.pattern, module);
    else
        for (int i = 0; i < a->chosen.n && !chosen; i++)
            chosen = strcmp(a->chosen.name[i], module) == 0;
    if (!chosen && !a->chosen.pattern)
        chosen = listed(&a->chosen, module) && in_layers(arena, a, module);
    arena_free(arena);
    return chosen && !excluded;
}
