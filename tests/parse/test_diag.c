/* test_diag.c: how messages look: carets under the right columns, whatever stands before them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/dpoc.h"

typedef struct Fixture {
    Arena *arena;
    Diags *diags;
    uint32_t file;
} Fixture;

static Fixture with(const char *text, size_t len) {
    Fixture f = {.arena = arena_new()};
    f.diags = diags_new(f.arena);
    f.file = source_add(f.diags, "a.dpo", text, len);
    return f;
}

static Loc place(Fixture f, const char *text, const char *what) {
    uint32_t at = (uint32_t)(strstr(text, what) - text);
    return (Loc){f.file, at, at + (uint32_t)strlen(what)};
}

static void expect(Fixture f, const char *printed) {
    char *got = NULL;
    size_t len;
    FILE *out = open_memstream(&got, &len);
    diags_print(f.diags, 0, out, false);
    fclose(out);
    assert_string_equal(got, printed);
    free(got);
    arena_free(f.arena);
}

static void one_error_with_note_and_help(void **state) {
    const char *text = "config {\n    dim = hiden_size\n}\n";
    Fixture f = with(text, strlen(text));
    diag(f.diags, DIAG_ERROR, place(f, text, "hiden_size"), "no key `%s`", "hiden_size");
    diag(f.diags, DIAG_NOTE, place(f, text, "config"), "in this block");
    diag(f.diags, DIAG_HELP, (Loc){0, 0, 0}, "did you mean `hidden_size`?");
    diag(f.diags, DIAG_HELP, place(f, text, "hiden_size"), "keys are words");
    assert_int_equal(diags_errors(f.diags), 1);
    expect(f, "a.dpo:2:11: error: no key `hiden_size`\n"
              "    2 |     dim = hiden_size\n"
              "      |           ^~~~~~~~~~\n"
              "a.dpo:1:1: note: in this block\n"
              "    1 | config {\n"
              "      | ^~~~~~\n"
              "help: did you mean `hidden_size`?\n"
              "help: keys are words\n");
}

static void tabs_wide_and_combining_characters(void **state) {
    const char *text = "\tx = y\n\"日本\" bad\n\"e\xcc\x81\" bad";
    Fixture f = with(text, strlen(text));
    diag(f.diags, DIAG_ERROR, place(f, text, "y"), "tab");
    uint32_t at = (uint32_t)(strstr(text, "bad") - text);
    diag(f.diags, DIAG_ERROR, (Loc){f.file, at, at + 3}, "wide");
    at = (uint32_t)strlen(text) - 3;
    diag(f.diags, DIAG_ERROR, (Loc){f.file, at, at + 3}, "combining");
    expect(f, "a.dpo:1:6: error: tab\n"
              "    1 |         x = y\n"
              "      |             ^\n"
              "a.dpo:2:6: error: wide\n"
              "    2 | \"日本\" bad\n"
              "      |        ^~~\n"
              "a.dpo:3:6: error: combining\n"
              "    3 | \"e\xcc\x81\" bad\n"
              "      |     ^~~\n");
}

static void end_of_file_crlf_and_many_lines(void **state) {
    const char *text = "a\r\nb {\r\n";
    Fixture f = with(text, strlen(text));
    diag(f.diags, DIAG_ERROR, (Loc){f.file, 6, 6}, "expected `}`");
    diag(f.diags, DIAG_ERROR, (Loc){f.file, 0, 6}, "from here on");
    diag(f.diags, DIAG_ERROR, (Loc){f.file, 400, 500}, "outside");
    expect(f, "a.dpo:2:4: error: expected `}`\n"
              "    2 | b {\n"
              "      |    ^\n"
              "a.dpo:1:1: error: from here on\n"
              "    1 | a\n"
              "      | ^\n"
              "a.dpo:3:1: error: outside\n"
              "    3 | \n"
              "      | ^\n");
}

static void bytes_that_are_no_text(void **state) {
    const char *text = "x\x1b[31m \xff\xc3 y";
    Fixture f = with(text, strlen(text));
    diag(f.diags, DIAG_ERROR, place(f, text, "y"), "after \x1b\xff");
    expect(f, "a.dpo:1:11: error: after \xef\xbf\xbd\xef\xbf\xbd\n"
              "    1 | x\xef\xbf\xbd[31m \xef\xbf\xbd\xef\xbf\xbd y\n"
              "      |           ^\n");
}

static void a_long_line_is_cut_around_the_caret(void **state) {
    char text[3001];
    memset(text, '1', 3000);
    text[2000] = 'x';
    text[3000] = '\0';
    Fixture f = with(text, 3000);
    diag(f.diags, DIAG_ERROR, (Loc){f.file, 2000, 2001}, "here");
    char *got = NULL;
    size_t len;
    FILE *out = open_memstream(&got, &len);
    diags_print(f.diags, 0, out, false);
    fclose(out);
    assert_in_range(len, 200, 400);
    const char *line = strchr(got, '\n') + 1, *carets = strchr(line, '\n') + 1;
    assert_int_equal(strchr(line, 'x') - line, strchr(carets, '^') - carets);
    free(got);
    arena_free(f.arena);
}

static void said_once_and_at_most_twenty(void **state) {
    const char *text = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";
    Fixture f = with(text, strlen(text));
    for (uint32_t twice = 0; twice < 2; twice++)
        for (uint32_t i = 0; i < 30; i++) {
            diag(f.diags, DIAG_ERROR, (Loc){f.file, i, i + 1}, "wrong");
            diag(f.diags, DIAG_NOTE, (Loc){0, 0, 0}, "note of %d", (int)i);
        }
    assert_int_equal(diags_errors(f.diags), 30);
    char *got = NULL;
    size_t len;
    FILE *out = open_memstream(&got, &len);
    diags_print(f.diags, 0, out, true);
    fclose(out);
    assert_non_null(strstr(got, "note of 19\n"));
    assert_null(strstr(got, "note of 20\n"));
    assert_non_null(strstr(got, "10 more errors are not shown"));
    assert_non_null(strstr(got, "\33[1;31merror:\33[0m wrong"));
    free(got);
    arena_free(f.arena);
}

static void json_form(void **state) {
    const char *text = "é bad";
    Fixture f = with(text, strlen(text));
    diag_warn(f.diags, "truncated", place(f, text, "bad"), "say \"%s\"", "no");
    diag(f.diags, DIAG_NOTE, (Loc){0, 0, 0}, "why");
    char *json = diags_json(f.diags);
    assert_non_null(strstr(json, "\"severity\": \"warning\""));
    assert_non_null(strstr(json, "\"col\": 3"));
    assert_non_null(strstr(json, "\"message\": \"say \\\"no\\\"\""));
    assert_non_null(strstr(json, "\"name\": \"truncated\""));
    assert_int_equal(json[0], '[');
    free(json);
    expect(f, "a.dpo:1:3: warning: say \"no\" [-Wtruncated]\n"
              "    1 | é bad\n"
              "      |   ^~~\n"
              "note: why\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_error_with_note_and_help),
        cmocka_unit_test(tabs_wide_and_combining_characters),
        cmocka_unit_test(end_of_file_crlf_and_many_lines),
        cmocka_unit_test(bytes_that_are_no_text),
        cmocka_unit_test(a_long_line_is_cut_around_the_caret),
        cmocka_unit_test(said_once_and_at_most_twenty),
        cmocka_unit_test(json_form),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
