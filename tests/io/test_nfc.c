/* Normalization form C against Python's unicodedata (golden/make_nfc.py), and its cost on hostile
 * text. */
#include "runtime/io/nfc.h"
#include "tests/io/io.h"

#include <jansson.h>

static void goldens(void **state) {
    json_t *root = json_load_file("tests/io/golden/nfc.json", 0, NULL), *pair;
    size_t i;
    assert_non_null(root);
    json_array_foreach(root, i, pair) {
        const json_t *from = json_array_get(pair, 0), *to = json_array_get(pair, 1);
        Text out = {0};
        nfc(json_string_value(from), json_string_length(from), &out);
        if (out.len != json_string_length(to) ||
            (out.len && memcmp(out.data, json_string_value(to), out.len)))
            fail_msg("%zu: \"%s\" became \"%s\", not \"%s\"", i, json_string_value(from), out.data,
                     json_string_value(to));
        text_free(&out);
    }
    assert_true(i > 400);
    json_decref(root);
}

static void many_marks(void **state) {
    size_t n = 1 << 20;
    char *text = malloc(n);
    for (size_t i = 0; i < n; i += 2) memcpy(text + i, i % 4 ? "\xCC\x81" : "\xCC\xA3", 2);
    Text out = {0};
    double start = now_seconds();
    nfc(text, n, &out);
    assert_true(now_seconds() - start < 10);
    assert_int_equal(out.len, n);
    text_free(&out);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(goldens), cmocka_unit_test(many_marks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
