/* Preference data: every dialect against ids by TRL's rules (golden/make_pairs.py), real files
 * against what is known of them, truncation, compression, and what is said about records that are
 * wrong. */
#include "runtime/io/pairs.h"
#include "tests/io/io.h"

#include <jansson.h>
#include <zlib.h>

typedef struct Fixture {
    Tokenizer *tokenizer;
    Template template;
} Fixture;

static Fixture fixture(const char *tokenizer, const char *template) {
    Fixture f;
    Err err = {0};
    f.tokenizer = tokenizer_open(data_path(tokenizer), &err);
    if (!f.tokenizer ||
        !template_open(&f.template, template, data_path(tokenizer), f.tokenizer, NULL, &err))
        fail_msg("%s", err.text);
    return f;
}

static Pairs *read_one(const char *path, const PairsOptions *options, const Fixture *f) {
    Err err = {0};
    Pairs *p = pairs_read(&path, 1, options, &f->template, &err);
    if (!p) fail_msg("%s", err.text);
    return p;
}

static void expect_part(const char *what, const int32_t *got, int n, const json_t *want) {
    bool same = (size_t)n == json_array_size(want);
    for (int i = 0; same && i < n; i++)
        same = got[i] == json_integer_value(json_array_get(want, (size_t)i));
    if (same) return;
    fprintf(stderr, "got");
    for (int i = 0; i < n; i++) fprintf(stderr, " %d", got[i]);
    fail_msg("%s: want %s", what, json_dumps(want, JSON_COMPACT));
}

static void check_group(const json_t *group, const char *path) {
    const char *name = json_string_value(json_object_get(group, "name"));
    Fixture f = fixture(json_string_value(json_object_get(group, "tokenizer")),
                        json_string_value(json_object_get(group, "template")));
    PairsOptions options = {.sft = json_is_true(json_object_get(group, "sft"))};
    Pairs *p = read_one(path, &options, &f);
    const json_t *ids = json_object_get(group, "ids");
    if (p->n != (int64_t)json_array_size(ids)) fail_msg("%s: %lld pairs", name, (long long)p->n);
    for (int64_t i = 0; i < p->n; i++) {
        const json_t *want = json_array_get(ids, (size_t)i);
        const Pair *pair = &p->pair[i];
        expect_part(name, pair->ids, pair->prompt, json_array_get(want, 0));
        expect_part(name, pair_chosen(pair), pair->chosen, json_array_get(want, 1));
        expect_part(name, pair_rejected(pair), pair->rejected, json_array_get(want, 2));
    }
    pairs_free(p);
    tokenizer_close(f.tokenizer);
}

/* Each group as JSON Lines, as an array, and as a compressed array. */
static void dialects(void **state) {
    json_t *root = json_load_file("tests/io/golden/pairs.json", 0, NULL), *group, *line;
    assert_non_null(root);
    size_t g, i;
    json_array_foreach(json_object_get(root, "groups"), g, group) {
        char *dir = scratch_dir();
        Text lines = {0};
        json_array_foreach(json_object_get(group, "lines"), i, line) {
            char *text = json_dumps(line, JSON_COMPACT);
            text_add(&lines, "%s\r\n\n", text);
            free(text);
        }
        check_group(group, scratch_write(dir, "a.jsonl", lines.data, lines.len));
        char *array = json_dumps(json_object_get(group, "lines"), JSON_INDENT(1));
        check_group(group, scratch_write(dir, "a.json", array, strlen(array)));
        gzFile gz = gzopen(scratch_printf("%s/a.json.gz", dir), "wb");
        assert_int_equal(gzwrite(gz, array, (unsigned)strlen(array)), strlen(array));
        assert_int_equal(gzclose(gz), Z_OK);
        check_group(group, scratch_printf("%s/a.json.gz", dir));
        free(array);
        text_free(&lines);
    }
    assert_int_equal(g, 19);
    json_decref(root);
}

/* What is known of the real files: sizes, and the dirt in them. */
static void real_files(void **state) {
    static const struct {
        const char *file;
        int64_t read, kept, empty, differing, identical;
    } files[] = {
        {"ultrafeedback_1k/train_clean.jsonl", 1000, 998, 2, 0, 4},
        {"ultrafeedback_1k/eval_clean.jsonl", 200, 200, 0, 0, 1},
        {"hh_rlhf_harmless_test/test.jsonl.gz", 2312, 2303, 4, 5, 0},
        {"llamafactory_dpo/dpo_en_demo.json", 300, 300, 0, 0, 0},
        {"llamafactory_dpo/v1_dpo_demo.jsonl", 300, 300, 0, 0, 0},
        {"orca_dpo_openai_format/validation.jsonl", 283, 283, 0, 0, 0},
    };
    Fixture f = fixture("llama3_tokenizer", "llama3");
    for (size_t i = 0; i < COUNT(files); i++) {
        Pairs *p = read_one(data_path(files[i].file), &(PairsOptions){0}, &f);
        PairsCounts c = p->counts;
        printf("%s: read %lld kept %lld empty %lld differing %lld identical %lld boundary %lld\n",
               files[i].file, (long long)c.read, (long long)p->n, (long long)c.empty,
               (long long)c.differing, (long long)c.identical, (long long)c.boundary);
        for (int k = 0; k < p->nwarnings && k < 3; k++) printf("  %s\n", p->warnings[k]);
        assert_int_equal(c.read, files[i].read);
        assert_int_equal(p->n, files[i].kept);
        assert_int_equal(c.empty, files[i].empty);
        assert_int_equal(c.differing, files[i].differing);
        assert_int_equal(c.identical, files[i].identical);
        pairs_free(p);
    }
    tokenizer_close(f.tokenizer);
}

int main(void) {
    if (!have_data("llama3_tokenizer/tokenizer.json")) return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(dialects), cmocka_unit_test(real_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
