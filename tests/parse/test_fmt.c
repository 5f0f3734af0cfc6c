/* test_fmt.c: the one layout: models/ are in it already; however a text is broken into lines and
 * commented, formatting keeps tree and comments and gives a text that formatting leaves alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/ast.h"

static char *format(Arena *arena, const char *text) {
    Diags *diags = diags_new(arena);
    Text out = {0};
    bool ok = fmt_text(arena, diags, source_add(diags, "t.dpo", text, strlen(text)), &out);
    if (!ok) diags_print(diags, 0, stderr, false);
    assert_true(ok);
    text_addn(&out, "", 0);
    char *copy = arena_str(arena, out.data);
    text_free(&out);
    return copy;
}

static char *tree(Arena *arena, const char *text) {
    Diags *diags = diags_new(arena);
    Text out = {0};
    ast_dump(parse_text(arena, diags, source_add(diags, "t.dpo", text, strlen(text))), &out);
    char *copy = arena_str(arena, out.data);
    text_free(&out);
    return copy;
}

static void becomes(const char *from, const char *to) {
    Arena *arena = arena_new();
    assert_string_equal(format(arena, from), to);
    assert_string_equal(format(arena, to), to);
    arena_free(arena);
}

static void spaces_and_lines(void **state) {
    becomes("", "");
    becomes("\n\n# c \n\n\n\nx=1", "# c\n\nx = 1\n");
    becomes("x=-1+ - a*( b-c )/f( - 2,k=- 3 )", "x = -1 + -a * (b - c) / f(-2, k = -3)\n");
    becomes("run{steps=2k memory=40GiB eval=2%}",
            "run { steps = 2k  memory = 40 GiB  eval = 2% }\n");
    becomes("run{steps=2\nlr=1}", "run {\n    steps = 2\n    lr = 1\n}\n");
    becomes("run\n{\n\nsteps=2\n\n\n}", "run {\n    steps = 2\n}\n");
    becomes("layer f(x){}", "layer f(x) {}\n");
    becomes("weight_decay = 1\nlayer f(x) { weight a [ 1,2 ] bias ( true ),\nb[3]=m . c[ 0 ] when "
            "not t\n}",
            "weight_decay = 1\nlayer f(x) {\n    weight a[1, 2] bias(true),\n        b[3] = m.c[0] "
            "when not t\n}\n");
    becomes("config { if a{x=1}\nelse\n{ y=2 } }",
            "config {\n    if a { x = 1 } else { y = 2 }\n}\n");
    becomes("layer f(x) { for i in 0 .. 4 { x=g(x)as l [ i ] . m } return x }",
            "layer f(x) { for i in 0..4 { x = g(x) as l[i].m }  return x }\n");
    becomes("x = f(\n1,\n2\n)\ny = 1", "x = f(\n    1,\n    2\n)\ny = 1\n");
    becomes("data { train=[ \"a\" weight 2,\n\"b\"]\ncolumns={prompt=\"q\"\nchosen=\"c\"} }",
            "data {\n    train = [\"a\" weight 2,\n        \"b\"]\n    columns = {\n        prompt "
            "= \"q\"\n"
            "        chosen = \"c\"\n    }\n}\n");
    becomes("x = 1 y = 2", "x = 1  y = 2\n");
}

static void comments_stay(void **state) {
    becomes("x=1# a\nyyy=2    # b  \n# c\nz=3 # d",
            "x = 1    # a\nyyy = 2  # b\n# c\nz = 3  # d\n");
    becomes("run { # a\n# b\nsteps=1 # c\n# d\n}\n# e",
            "run {  # a\n    # b\n    steps = 1  # c\n    # d\n}\n# e\n");
    becomes("x = f(a, # one\n# two\nb)", "x = f(a,  # one\n    # two\n    b)\n");
    becomes("run # why\n{ steps=1 }", "run  # why\n    { steps = 1 }\n");
}

static void shipped_files_are_formatted(void **state) {
    int seen = 0;
    for (int i = 0; i < embedded_count(); i++) {
        const char *name = embedded_name(i);
        if (!strstr(name, ".dpo")) continue;
        Arena *arena = arena_new();
        const char *text = embedded(name, NULL);
        assert_string_equal(format(arena, text), text);
        arena_free(arena);
        seen++;
    }
    assert_true(seen >= 30);
}

static uint32_t random_state = 1;
static uint32_t below(uint32_t n) {
    random_state = random_state * 1664525 + 1013904223;
    return (random_state >> 8) % n;
}

/* The text with its spaces (but `40 GiB`) replaced by other white space and comments, at random. */
static char *shaken(Arena *arena, const char *text, int *comments) {
    static const char *const spaces[] = {"\n",        "\n\n\n",       "  ", "\t",
                                         " # note\n", "\n# note\n  ", " ",  " "};
    Text out = {0};
    bool string = false, comment = false;
    for (const char *p = text; *p; p++) {
        if (*p == '"' && !comment) string = !string;
        if (*p == '#' && !string) comment = true;
        if (*p == '\n') comment = false;
        if (!isspace((unsigned char)*p) || string || comment || !strncmp(p + 1, "GiB", 3) ||
            below(2)) {
            text_addn(&out, p, 1);
            continue;
        }
        const char *other = spaces[below(COUNT(spaces))];
        if (*p == '\n' && !strchr(other, '\n')) other = "\n"; /* a comment may end here */
        text_add(&out, "%s", other);
        *comments += strchr(other, '#') != NULL;
    }
    char *copy = arena_str(arena, out.data);
    text_free(&out);
    return copy;
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, what)); p += strlen(what)) n++;
    return n;
}

static void any_layout_is_mended(void **state) {
    Err err = {0};
    char *all = file_read("tests/parse/language.dpo", NULL, &err);
    for (int i = -1; i < embedded_count(); i++) {
        const char *text = i < 0 ? all : embedded(embedded_name(i), NULL);
        if (i >= 0 && !strstr(embedded_name(i), ".dpo")) continue;
        for (int round = 0; round < 10; round++) {
            Arena *arena = arena_new();
            int comments = count(text, "# note");
            const char *other = shaken(arena, text, &comments);
            const char *formatted = format(arena, other);
            assert_string_equal(tree(arena, formatted), tree(arena, text));
            assert_string_equal(format(arena, formatted), formatted);
            assert_int_equal(count(formatted, "# note"), comments);
            arena_free(arena);
        }
    }
    free(all);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spaces_and_lines),
        cmocka_unit_test(comments_stay),
        cmocka_unit_test(shipped_files_are_formatted),
        cmocka_unit_test(any_layout_is_mended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
