/* Ids and masks against TRL's own code, of four versions (tests/peers/make_pairs.py): records of
 * our own token by token, the real data sets by a checksum of each record. */
#include "runtime/io/pairs.h"
#include "tests/io/io.h"
#include "tests/io/tokenizers.h"

#include <jansson.h>
#include <zlib.h>

static const char *text_of(const json_t *o, const char *key) {
    return json_string_value(json_object_get(o, key));
}

/* What a case's settings say, over the version's own rules; no limit where TRL was given none. */
static PairsOptions options_of(const char *version, const json_t *c) {
    bool count = strcmp(version, "trl_1_count") == 0; /* 1.0: all else is 1.16's */
    const PairsLike *like = pairs_like(count ? "trl_1" : version);
    const json_t *s = json_object_get(c, "settings");
    const char *truncation = text_of(s, "truncation");
    PairsOptions o = {.bos = like->bos, .eos = like->eos, .boundary = like->boundary};
    o.truncate = like->truncate;
    if (count) o.boundary = BOUNDARY_COUNT;
    for (int i = 0; truncation && pairs_truncate_names[i]; i++)
        if (strcmp(pairs_truncate_names[i], truncation) == 0) o.truncate = (PairsTruncate)i;
    o.max_prompt = (int)json_integer_value(json_object_get(s, "max_prompt"));
    o.max_answer = (int)json_integer_value(json_object_get(s, "max_answer"));
    o.max_length = (int)json_integer_value(json_object_get(s, "max_length"));
    o.dialect = text_of(c, "dialect");
    if (o.dialect) o.limit = (int64_t)json_array_size(json_object_get(c, "rows"));
    return o;
}

static Pairs *read_case(const char *version, const json_t *c, const char *path) {
    Err err = {0};
    const char *name = text_of(c, "tokenizer");
    Template template;
    if (!template_open(&template, text_of(c, "template"), NULL, data_path(name), tokenizer_of(name),
                       NULL, &err))
        fail_msg("%s", err.text);
    template.named = false; /* strings stay strings */
    PairsOptions o = options_of(version, c);
    Pairs *p = pairs_read(&path, 1, &o, &template, &err);
    if (!p) fail_msg("%s", err.text);
    return p;
}

/* Prompt and answer of a side, and where scoring begins. */
static int32_t side_of(Arena *arena, const Pair *p, int side, int32_t **ids, int32_t *first) {
    int32_t n = p->prompt + (side ? p->rejected : p->chosen);
    const int32_t *own = side ? pair_rejected(p) : pair_chosen(p);
    *ids = NEW_ARRAY(arena, int32_t, n + 1);
    memcpy(*ids, p->ids, sizeof **ids * (size_t)p->prompt);
    memcpy(*ids + p->prompt, own, sizeof **ids * (size_t)(n - p->prompt));
    *first = p->prompt + p->context[side];
    return n;
}

static void same_side(const char *what, const Pair *p, int side, const json_t *row) {
    Arena *arena = arena_new();
    const json_t *want = json_array_get(row, (size_t)(1 + 2 * side));
    int32_t *ids, first, n = side_of(arena, p, side, &ids, &first);
    bool same = n == (int32_t)json_array_size(want) &&
                first == json_integer_value(json_array_get(row, (size_t)(2 + 2 * side)));
    for (int32_t i = 0; same && i < n; i++)
        same = ids[i] == json_integer_value(json_array_get(want, (size_t)i));
    if (!same) {
        fprintf(stderr, "%s, line %d, side %d: scored from %d of", what, p->line, side, first);
        for (int32_t i = 0; i < n; i++) fprintf(stderr, " %d", ids[i]);
        fail_msg("TRL: %s", json_dumps(row, JSON_COMPACT));
    }
    arena_free(arena);
}

static uint32_t checksum(const Pair *p) {
    Arena *arena = arena_new();
    uLong crc = crc32(0, NULL, 0);
    for (int side = 0; side < 2; side++) {
        int32_t *ids, first, n = side_of(arena, p, side, &ids, &first), head[] = {n, first};
        crc = crc32(crc, (const Bytef *)head, sizeof head);
        crc = crc32(crc, (const Bytef *)ids, (uInt)(sizeof *ids * (size_t)n));
    }
    arena_free(arena);
    return (uint32_t)crc;
}

/* Pairs in file order against rows [line, ..]: the same lines, and what is theirs. */
static void compare(const char *what, const Pairs *p, const json_t *rows) {
    size_t at = 0;
    for (int64_t i = 0; i < p->n; i++, at++) {
        const Pair *x = &p->pair[i];
        const json_t *row = json_array_get(rows, at);
        if (x->line != json_integer_value(json_array_get(row, 0)))
            fail_msg("%s: line %d is kept; TRL's next is %lld", what, x->line,
                     (long long)json_integer_value(json_array_get(row, 0)));
        if (json_array_size(row) > 2) {
            for (int side = 0; side < 2; side++) same_side(what, x, side, row);
        } else if (checksum(x) != (uint32_t)json_integer_value(json_array_get(row, 1))) {
            fail_msg("%s: line %d has other ids or another mask", what, x->line);
        }
    }
    if (at != json_array_size(rows))
        fail_msg("%s: %zu pairs, TRL keeps %zu", what, at, json_array_size(rows));
}

static json_t *root;

static void own_records(void **state) {
    const char *version;
    json_t *part, *c, *record;
    size_t i, k, cases = 0;
    json_object_foreach(root, version, part)
        json_array_foreach(json_object_get(part, "own"), i, c) {
        Text lines = {0};
        json_array_foreach(json_object_get(c, "records"), k, record) {
            char *text = json_dumps(record, JSON_COMPACT);
            text_add(&lines, "%s\n", text);
            free(text);
        }
        const char *path = scratch_write(scratch_dir(), "own.jsonl", lines.data, lines.len);
        Pairs *p = read_case(version, c, path);
        char *settings = json_dumps(json_object_get(c, "settings"), JSON_COMPACT);
        compare(scratch_printf("%s %s %s %s", version, text_of(c, "tokenizer"), text_of(c, "what"),
                               settings),
                p, json_object_get(c, "rows"));
        cases++;
        free(settings);
        pairs_free(p);
        text_free(&lines);
    }
    assert_true(cases >= 40);
}

static void real_sets(void **state) {
    const char *version;
    json_t *part, *c;
    size_t i, cases = 0;
    json_object_foreach(root, version, part)
        json_array_foreach(json_object_get(part, "shared"), i, c) {
        Pairs *p = read_case(version, c, data_path(text_of(c, "file")));
        compare(scratch_printf("%s %s %s", version, text_of(c, "tokenizer"), text_of(c, "file")), p,
                json_object_get(c, "rows"));
        cases++;
        pairs_free(p);
    }
    assert_true(cases >= 40);
}

int main(void) {
    if (!have_data("llama3_tokenizer/tokenizer.json")) return 77;
    root = json_load_file("tests/io/golden/trl_pairs.json", 0, NULL);
    const struct CMUnitTest tests[] = {cmocka_unit_test(own_records), cmocka_unit_test(real_sets)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(root);
    return failed;
}
