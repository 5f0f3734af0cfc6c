/* The tokenizer against ids made by other programs: tiktoken, llama.cpp's vectors,
 * huggingface/tokenizers; decoding; adversarial texts; damaged files. */
#include "runtime/io/tokenizer.h"
#include "tests/io/io.h"

#include <jansson.h>
#include <time.h>

static Tokenizer *open_data(const char *name) {
    Err err = {0};
    Tokenizer *t = tokenizer_open(data_path(name), &err);
    if (!t) fail_msg("%s", err.text);
    return t;
}

static void expect_ids(const char *text, const Ids *got, const json_t *want) {
    bool same = (size_t)got->n == json_array_size(want);
    for (int64_t i = 0; same && i < got->n; i++)
        same = got->v[i] == json_integer_value(json_array_get(want, (size_t)i));
    if (same) return;
    fprintf(stderr, "text \"%s\"\n got ", text);
    for (int64_t i = 0; i < got->n; i++) fprintf(stderr, " %d", got->v[i]);
    char *w = json_dumps(want, JSON_COMPACT);
    fail_msg("want %s", w);
}

/* Every case of a golden file: key of the ids, special tokens parsed or not. */
static int check_cases(Tokenizer *t, const char *file, const char *key, bool special) {
    json_t *root = json_load_file(data_path(file), 0, NULL);
    assert_non_null(root);
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(root, "cases"), i, item) {
        const json_t *text = json_object_get(item, "text");
        Ids ids = {0};
        tokenizer_encode(t, json_string_value(text), json_string_length(text), special, &ids);
        expect_ids(json_string_value(text), &ids, json_object_get(item, key));
        const json_t *decoded = json_object_get(item, "decoded");
        Text out = {0};
        tokenizer_decode(t, ids.v, ids.n, false, &out);
        if (decoded || !special)
            assert_string_equal(out.data ? out.data : "",
                                json_string_value(decoded ? decoded : text));
        text_free(&out);
        ids_free(&ids);
    }
    int n = (int)json_array_size(json_object_get(root, "cases"));
    json_decref(root);
    assert_true(n >= 40);
    return n;
}

static void goldens_llama3(void **state) {
    Tokenizer *t = open_data("llama3_tokenizer");
    check_cases(t, "llama3_tokenizer/GOLDEN_strings.json", "ids_special_as_text", false);
    check_cases(t, "llama3_tokenizer/GOLDEN_strings.json", "ids_special_parsed", true);
    assert_int_equal(t->size, 128256);
    assert_int_equal(t->bos, 128000);
    assert_int_equal(t->eos, 128009);
    assert_true(t->adds_bos);
    assert_false(t->adds_eos);
    assert_int_equal(tokenizer_id(t, "<|end_of_text|>"), 128001);
    assert_int_equal(tokenizer_id(t, "no such token"), -1);
    assert_string_equal(tokenizer_piece(t, 1917), "\xC4\xA0world");
    assert_true(tokenizer_is_special(t, 128009) && !tokenizer_is_special(t, 1917));
    tokenizer_close(t);
}

static void goldens_minimind(void **state) {
    Tokenizer *t = open_data("minimind_tokenizer");
    check_cases(t, "minimind_tokenizer/GOLDEN_strings.json", "ids", true);
    assert_false(t->adds_bos);
    assert_int_equal(t->eos, 2);
    tokenizer_close(t);
}

/* llama.cpp's own vectors: texts between separator lines, one line of ids each. */
static void vectors_llama_cpp(void **state) {
    Tokenizer *t = open_data("llama3_tokenizer");
    Err err = {0};
    size_t n;
    char *inp = file_read(data_path("llama3_vectors/llama-bpe.inp"), &n, &err);
    char *out = file_read(data_path("llama3_vectors/llama-bpe.out"), NULL, &err);
    assert_true(inp && out);
    const char *mark = "\n__ggml_vocab_test__\n";
    int count = 0;
    char *line = out;
    for (char *text = inp, *end; (end = strstr(text, mark)); text = end + strlen(mark), count++) {
        Ids ids = {0};
        tokenizer_encode(t, text, (size_t)(end - text), false, &ids);
        for (int64_t i = 0; i < ids.n; i++) {
            char *after;
            long want = strtol(line, &after, 10);
            assert_ptr_not_equal(after, line);
            assert_int_equal(ids.v[i], want);
            line = after;
        }
        while (*line == ' ') line++;
        assert_int_equal(*line, '\n'); /* no id of this text is left over */
        line++;
        ids_free(&ids);
    }
    assert_int_equal(count, 46);
    free(inp);
    free(out);
    tokenizer_close(t);
}

/* The tiktoken file gives the same ids as tokenizer.json. */
static void tiktoken_file(void **state) {
    Err err = {0};
    char *dir = scratch_dir();
    char *link = scratch_printf("%s/tokenizer.model", dir);
    char real[4096];
    assert_non_null(realpath(data_path("llama3_tokenizer/tokenizer.model"), real));
    assert_int_equal(symlink(real, link), 0);
    Tokenizer *t = tokenizer_open(dir, &err);
    if (!t) fail_msg("%s", err.text);
    assert_int_equal(t->size, 128256);
    check_cases(t, "llama3_tokenizer/GOLDEN_strings.json", "ids_special_as_text", false);
    check_cases(t, "llama3_tokenizer/GOLDEN_strings.json", "ids_special_parsed", true);
    tokenizer_close(t);
}

static void expect_decoded(const char *name, const Tokenizer *t, const Ids *ids, bool skip,
                           const json_t *want) {
    if (!json_is_string(want)) return;
    Text out = {0};
    tokenizer_decode(t, ids->v, ids->n, skip, &out);
    if (out.len != json_string_length(want) ||
        (out.len && memcmp(out.data, json_string_value(want), out.len) != 0))
        fail_msg("%s: decoded \"%s\", expected \"%s\"", name, out.data ? out.data : "",
                 json_string_value(want));
    text_free(&out);
}

/* Small tokenizers of every kind against huggingface/tokenizers' own ids (golden/make.py). */
static void goldens_kinds(void **state) {
    json_t *root = json_load_file("tests/io/golden/tokenizers.json", JSON_ALLOW_NUL, NULL);
    assert_non_null(root);
    size_t k, i;
    json_t *kind, *item;
    json_array_foreach(json_object_get(root, "tokenizers"), k, kind) {
        Err err = {0};
        char *dir = scratch_dir(), *text = json_dumps(json_object_get(kind, "tokenizer"), 0);
        const char *name = json_string_value(json_object_get(kind, "name"));
        scratch_write(dir, "tokenizer.json", text, strlen(text));
        free(text);
        Tokenizer *t = tokenizer_open(dir, &err);
        if (!t) fail_msg("%s: %s", name, err.text);
        json_array_foreach(json_object_get(kind, "cases"), i, item) {
            const json_t *s = json_object_get(item, "text");
            Ids ids = {0};
            char *what = scratch_printf("%s: %s", name, json_string_value(s));
            tokenizer_encode(t, json_string_value(s), json_string_length(s), false, &ids);
            expect_ids(what, &ids, json_object_get(item, "as_text"));
            ids.n = 0;
            tokenizer_encode(t, json_string_value(s), json_string_length(s), true, &ids);
            expect_ids(what, &ids, json_object_get(item, "ids"));
            expect_decoded(what, t, &ids, false, json_object_get(item, "decoded"));
            expect_decoded(what, t, &ids, true, json_object_get(item, "skipped"));
            ids_free(&ids);
        }
        tokenizer_close(t);
    }
    assert_int_equal(k, 21);
    json_decref(root);
}

/* A directory with the tokenizer.json of one of those kinds. */
static const char *kind_dir(const char *name) {
    json_t *root = json_load_file("tests/io/golden/tokenizers.json", JSON_ALLOW_NUL, NULL);
    size_t k;
    json_t *kind;
    char *dir = scratch_dir();
    json_array_foreach(json_object_get(root, "tokenizers"), k, kind) {
        if (strcmp(json_string_value(json_object_get(kind, "name")), name) != 0) continue;
        char *text = json_dumps(json_object_get(kind, "tokenizer"), 0);
        scratch_write(dir, "tokenizer.json", text, strlen(text));
        free(text);
    }
    json_decref(root);
    return dir;
}

/* The companions decide about bos and eos. */
static void companions(void **state) {
    Tokenizer *t = open_data("stories260k");
    assert_int_equal(t->bos, 1);
    assert_int_equal(t->eos, 2);
    assert_true(t->adds_bos);
    assert_false(t->adds_eos);
    tokenizer_close(t);
}

static double seconds_for(Tokenizer *t, const char *text, size_t n, Ids *ids) {
    clock_t start = clock(); /* processor time: the machine may be busy */
    ids->n = 0;
    tokenizer_encode(t, text, n, true, ids);
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}

/* Half a megabyte of one thing takes time as a text does.  Against 32 times 16 KiB a linear
 * algorithm takes 32 times as long, with a heap's logarithm 32 * 19 / 14 = 43, once the work no
 * longer fits the caches a few times that; a quadratic one takes 1024. */
static void no_quadratic_case(void **state) {
    static const char *const units[] = {"a",
                                        "aab",
                                        " ",
                                        "\n",
                                        "\r\n",
                                        "1",
                                        "!",
                                        "\xF0\x9F\x98\x80",
                                        "<|",
                                        "<s",
                                        " <s",
                                        "\xCC\x81",
                                        "\xCC\x81\xCC\xA3" /* marks out of order */,
                                        "\xE2\x96\x81",
                                        "\xFF"};
    const char *dirs[] = {data_path("llama3_tokenizer"), data_path("minimind_tokenizer"),
                          data_path("stories260k"), kind_dir("nfc")};
    enum { SMALL = 16 << 10, LARGE = 512 << 10 };
    char *text = malloc(LARGE);
    for (size_t k = 0; k < COUNT(dirs); k++) {
        Err err = {0};
        Tokenizer *t = tokenizer_open(dirs[k], &err);
        if (!t) fail_msg("%s", err.text);
        for (size_t u = 0; u < COUNT(units); u++) {
            Ids ids = {0};
            Text out = {0};
            double small = 0;
            for (size_t i = 0, n = strlen(units[u]); i < LARGE; i++) text[i] = units[u][i % n];
            for (int i = 0; i < 4; i++) small += seconds_for(t, text, SMALL, &ids) / 4;
            double large = seconds_for(t, text, LARGE, &ids);
            if (u == 0) large = seconds_for(t, text, LARGE, &ids); /* the first made room */
            if (large > 300 * (small + 1e-5))                      /* the clock's grain */
                fail_msg("%s, \"%s\": %g s for 16 KiB, %g s for 512 KiB", dirs[k], units[u], small,
                         large);
            tokenizer_decode(t, ids.v, ids.n, false, &out);
            bool whole = LARGE % strlen(units[u]) == 0 && (unsigned char)*units[u] < 0x80;
            if (whole && k < 3 && (out.len != LARGE || memcmp(out.data, text, LARGE) != 0))
                fail_msg("%s, \"%s\": decoded to something else", dirs[k], units[u]);
            text_free(&out);
            ids_free(&ids);
        }
        tokenizer_close(t);
    }
    free(text);
}

static void invalid_utf8(void **state) {
    Tokenizer *t = open_data("llama3_tokenizer");
    Ids a = {0}, b = {0};
    const char *bad = "ab\xff"
                      "cd\xe2\x82",
               *good = "ab\xEF\xBF\xBD"
                       "cd\xEF\xBF\xBD";
    tokenizer_encode(t, bad, strlen(bad), true, &a);
    tokenizer_encode(t, good, strlen(good), true, &b);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.v, b.v, sizeof *a.v * (size_t)a.n);
    ids_free(&a);
    ids_free(&b);
    int32_t half[] = {-1, 128255, 1 << 30}; /* ids nobody has are skipped */
    Text out = {0};
    tokenizer_decode(t, half, 3, true, &out);
    assert_int_equal(out.len, 0);
    tokenizer_close(t);
}

/* What is wrong with a tokenizer.json is said by key. */
static void damaged(void **state) {
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"", "tokenizer.json:"},
        {"[]", "not a JSON object"},
        {"{\"model\": 3}", "\"model\" is not an object"},
        {"{}", "\"model\" is not an object"},
        {"{\"model\": {\"type\": \"Unigram\", \"vocab\": []}}", "Unigram"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": []}}", "model.vocab"},
        {"{\"model\": {\"vocab\": {\"a\": -1}, \"merges\": []}}", "\"a\""},
        {"{\"model\": {\"vocab\": {\"a\": 99999999}, \"merges\": []}}", "\"a\""},
        {"{\"model\": {\"vocab\": {\"a\": \"x\"}, \"merges\": []}}", "\"a\""},
        {"{\"model\": {\"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []}}", "the same id"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": {}}}", "model.merges"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [\"a\"]}}", "model.merges[0]"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [[\"a\", 1]]}}", "model.merges[0]"},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [\"a b\"]}}", "\"a\" + \"b\""},
        {"{\"model\": {\"vocab\": {}}}", "model.vocab is empty"},
        {"{\"normalizer\": {\"type\": \"NFKC\"}, \"model\": {\"vocab\": {\"a\": 0}}}", "NFKC"},
        {"{\"normalizer\": 5, \"model\": {\"vocab\": {\"a\": 0}}}", "normalizer"},
        {"{\"pre_tokenizer\": {\"type\": \"Odd\"}, \"model\": {\"vocab\": {\"a\": 0}}}", "\"Odd\""},
        {"{\"pre_tokenizer\": {\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": "
         "{\"Regex\": \"(\"}}, \"model\": {\"vocab\": {\"a\": 0}}}",
         "does not compile"},
        {"{\"decoder\": {\"type\": \"WordPiece\"}, \"model\": {\"vocab\": {\"a\": 0}}}",
         "WordPiece"},
        {"{\"added_tokens\": [{\"id\": 0}], \"model\": {\"vocab\": {\"a\": 0}}}",
         "added_tokens[0]"},
        {"{\"added_tokens\": [{\"content\": \"x\"}], \"model\": {\"vocab\": {\"a\": 0}}}",
         "added_tokens[0]"},
        {"{\"added_tokens\": 1, \"model\": {\"vocab\": {\"a\": 0}}}", "added_tokens"},
    };
    char *dir = scratch_dir();
    for (size_t i = 0; i < COUNT(cases); i++) {
        Err err = {0};
        scratch_write(dir, "tokenizer.json", cases[i].text, strlen(cases[i].text));
        Tokenizer *t = tokenizer_open(dir, &err);
        assert_null(t);
        assert_int_equal(err.code, EXIT_IO);
        if (!strstr(err.text, cases[i].said))
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.text, cases[i].said);
    }
    Err err = {0};
    assert_null(tokenizer_open("/nonexistent", &err));
    assert_int_equal(err.code, EXIT_IO);
    char *empty = scratch_dir();
    scratch_write(empty, "tokenizer.model", "\x0a\x0e", 2);
    err = (Err){0};
    assert_null(tokenizer_open(empty, &err));
    assert_non_null(strstr(err.text, "sentencepiece"));
}

static void speed(void **state) {
    Tokenizer *t = open_data("llama3_tokenizer");
    Err err = {0};
    size_t n;
    char *text = file_read(data_path("ultrafeedback_1k/train_clean.jsonl"), &n, &err);
    assert_non_null(text);
    double best = 1e9;
    Ids ids = {0};
    for (int i = 0; i < 3; i++) {
        clock_t start = clock(); /* processor time: the machine may be busy */
        ids.n = 0;
        tokenizer_encode(t, text, n, true, &ids);
        double took = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (took < best) best = took;
    }
    printf("tokenizer: %.1f MB/s, %.2f M tokens/s\n", (double)n / best / 1e6,
           (double)ids.n / best / 1e6);
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__)
    assert_true((double)n / best >= 20e6); /* what is promised, where the build is a real one */
#endif
    ids_free(&ids);
    free(text);
    tokenizer_close(t);
}

int main(void) {
    const struct CMUnitTest always[] = {cmocka_unit_test(goldens_kinds), cmocka_unit_test(damaged)};
    int failed = cmocka_run_group_tests(always, NULL, NULL);
    if (failed || !have_data("llama3_tokenizer/tokenizer.json")) return failed ? 1 : 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(goldens_llama3),
                                       cmocka_unit_test(goldens_minimind),
                                       cmocka_unit_test(vectors_llama_cpp),
                                       cmocka_unit_test(tiktoken_file),
                                       cmocka_unit_test(companions),
                                       cmocka_unit_test(no_quadratic_case),
                                       cmocka_unit_test(invalid_utf8),
                                       cmocka_unit_test(damaged),
                                       cmocka_unit_test(speed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
