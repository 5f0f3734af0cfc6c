/* test_parse.c: trees of right texts: a golden dump of every construct, keywords as words,
 * precedence, places, settings, bytes that are no text.  DPOC_GOLDEN=1 rewrites the dump. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/ast.h"

typedef struct Parsed {
    Arena *arena;
    Diags *diags;
    Ast *ast;
} Parsed;

static Parsed parse_n(const char *text, size_t len) {
    Parsed p = {.arena = arena_new()};
    p.diags = diags_new(p.arena);
    p.ast = parse_text(p.arena, p.diags, source_add(p.diags, "t.dpo", text, len));
    return p;
}

static Parsed parse(const char *text) {
    Parsed p = parse_n(text, strlen(text));
    if (diags_errors(p.diags)) diags_print(p.diags, 0, stderr, false);
    assert_int_equal(diags_errors(p.diags), 0);
    return p;
}

static void every_construct(void **state) {
    Err err = {0};
    size_t len;
    char *text = file_read("tests/parse/language.dpo", &len, &err);
    Parsed p = parse(text);
    Text dump = {0};
    ast_dump(p.ast, &dump);
    if (getenv("DPOC_GOLDEN")) file_write("tests/parse/language.ast", dump.data, dump.len, &err);
    char *golden = file_read("tests/parse/language.ast", NULL, &err);
    assert_string_equal(dump.data, golden);
    text_free(&dump);
    free(golden);
    free(text);
    arena_free(p.arena);
}

/* The model and the run shown in the language's description. */
static void examples_of_the_readme(void **state) {
    Err err = {0};
    char *text = file_read("grammar/README.md", NULL, &err);
    char *block = text;
    for (int i = 0; i < 2; i++) {
        block = strstr(block, "\n```\n") + 5;
        char *end = strstr(block, "\n```\n");
        *end = '\0';
        Parsed p = parse(block);
        assert_non_null(p.ast->list->next->next);
        arena_free(p.arena);
        block = end + 5;
    }
    free(text);
}

/* An expression with every operation in parentheses. */
static void show(const Ast *e, Text *out) {
    switch (e->kind) {
    case A_UNARY:
        text_add(out, "(%s ", e->op);
        show(e->a, out);
        text_add(out, ")");
        break;
    case A_BINARY:
    case A_ALT:
        text_add(out, "(");
        show(e->a, out);
        text_add(out, " %s ", e->kind == A_ALT ? "|" : e->op);
        show(e->b, out);
        text_add(out, ")");
        break;
    case A_COND:
        text_add(out, "(");
        show(e->a, out);
        text_add(out, " ? ");
        show(e->b, out);
        text_add(out, " : ");
        show(e->c, out);
        text_add(out, ")");
        break;
    case A_AS:
        text_add(out, "(%s as ", e->a->text);
        show(e->b, out);
        text_add(out, ")");
        break;
    case A_PATH:
        text_add(out, "(");
        show(e->a, out);
        text_add(out, ".%s)", e->text);
        break;
    case A_INDEX:
        text_add(out, "(");
        show(e->a, out);
        text_add(out, "[");
        show(e->b, out);
        text_add(out, "])");
        break;
    case A_NUM:
        text_add(out, "%g", e->num);
        break;
    default:
        text_add(out, "%s", e->text);
    }
}

static void operators_bind(void **state) {
    static const char *const cases[][2] = {
        {"a + b * c - d", "((a + (b * c)) - d)"},
        {"a - b - c", "((a - b) - c)"},
        {"-a * b", "((- a) * b)"},
        {"- - a", "(- (- a))"},
        {"a / b % c", "((a / b) % c)"},
        {"a | b / c | d", "((a | (b / c)) | d)"},
        {"not a == b and c or d", "(((not (a == b)) and c) or d)"},
        {"a or b and c", "(a or (b and c))"},
        {"a < b + 1", "(a < (b + 1))"},
        {"(a + b) * c", "((a + b) * c)"},
        {"x + f(y) as s[i].m * 2", "(x + ((f as ((s[i]).m)) * 2))"},
        {"if a < 0 then -a else a + 1", "((a < 0) ? (- a) : (a + 1))"},
        {"if a then b else if c then d else e", "(a ? b : (c ? d : e))"},
        {"a.b.c + 1.5", "(((a.b).c) + 1.5)"},
        {"10 % 3", "(10 % 3)"},
        {"10% + 3", "(0.1 + 3)"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        Arena *arena = arena_new();
        Parsed p = parse(arena_printf(arena, "x = %s", cases[i][0]));
        Text out = {0};
        show(p.ast->list->a, &out);
        assert_string_equal(out.data, cases[i][1]);
        text_free(&out);
        arena_free(p.arena);
        arena_free(arena);
    }
}

/* Every keyword is a plain word before `=`, around `.`, after `as`, and as a key of config.json. */
static void keywords_are_words(void **state) {
    static const char *const words[] = {
        "use",       "config", "require", "layer", "model",   "quantize", "adapter", "train",
        "objective", "data",   "metric",  "run",   "graph",   "weight",   "variant", "for",
        "in",        "if",     "then",    "else",  "return",  "as",       "from",    "when",
        "on",        "off",    "true",    "false", "none",    "and",      "or",      "not",
        "load",      "bias",   "at",      "start", "template"};
    for (size_t i = 0; i < COUNT(words); i++) {
        Arena *arena = arena_new();
        const char *w = words[i];
        Parsed p = parse(arena_printf(arena, "run { %s = 1 } x = f(%s = a.%s) as %s.%s[2] y = %s.z",
                                      w, w, w, w, w, w));
        assert_string_equal(p.ast->list->list->text, w);
        const Ast *x = p.ast->list->next->a;
        assert_string_equal(x->a->list->text, w);
        assert_string_equal(x->a->list->a->text, w);
        assert_string_equal(x->b->a->a->text, w);
        arena_free(p.arena);
        if (strcmp(w, "if") && strcmp(w, "not") && strcmp(w, "on") && strcmp(w, "off") &&
            strcmp(w, "true") && strcmp(w, "false") && strcmp(w, "none")) {
            p = parse(arena_printf(arena, "config { a = %s | %s  b = 2 }", w, w));
            const Ast *a = p.ast->list->list->a;
            assert_int_equal(a->kind, A_ALT);
            assert_string_equal(a->a->text, w);
            assert_string_equal(a->b->text, w);
            arena_free(p.arena);
        }
        arena_free(arena);
    }
}

static void numbers_and_units(void **state) {
    static const struct {
        const char *text, *unit;
        double value;
        bool integer;
    } cases[] = {{"16", NULL, 16, true},         {"1e-5", NULL, 1e-5, false},
                 {"1.50", NULL, 1.5, false},     {"40 GiB", "GiB", 0xap32, true},
                 {"40GiB", "GiB", 0xap32, true}, {"2k", "k", 2000, true},
                 {"2%", "%", 0.02, false},       {"1.5GB", "GB", 1.5e9, false},
                 {"1E3", NULL, 1000, false}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        Arena *arena = arena_new();
        Parsed p = parse(arena_printf(arena, "run { x = %s  y = 1 }", cases[i].text));
        const Ast *x = p.ast->list->list->a;
        assert_true(x->num == cases[i].value);
        assert_int_equal(x->integer, cases[i].integer);
        if (cases[i].unit)
            assert_string_equal(x->text, cases[i].unit);
        else
            assert_null(x->text);
        arena_free(p.arena);
        arena_free(arena);
    }
}

static void places_are_exact(void **state) {
    const char *text = "# c\nlayer mlp(x) {\n  return x + f(x) as a.b\n}\n";
    Parsed p = parse(text);
    const Ast *layer = p.ast->list, *ret = layer->a->list;
    assert_int_equal(layer->loc.begin, 4);
    assert_int_equal(layer->loc.end, strlen(text) - 1);
    assert_memory_equal(text + layer->name_loc.begin, "mlp(", 4);
    assert_int_equal(ret->a->loc.begin, strstr(text, "x + f") - text);
    assert_int_equal(ret->a->b->loc.end, strstr(text, "\n}") - text);
    assert_string_equal(loc_print(p.arena, p.diags, ret->a->b->b->loc), "t.dpo:3:22");
    arena_free(p.arena);
}

static void settings_from_the_command_line(void **state) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    const Ast *set = parse_set(arena, diags, "data.train=\"a.jsonl\"", 1);
    assert_string_equal(set->text, "data.train");
    assert_string_equal(set->a->text, "a.jsonl");
    set = parse_set(arena, diags, "graph.memory = 40 GiB", 2);
    assert_true(set->a->num == 0xap32);
    assert_string_equal(parse_set(arena, diags, "adapter=3", 2)->text, "adapter");
    assert_int_equal(diags_errors(diags), 0);
    static const char *const wrong[] = {"",          "run.steps", "run.steps=", "=3",
                                        "a.b=1 c=2", "a=1)",      "a.=1"};
    for (int i = 0; i < (int)COUNT(wrong); i++) {
        assert_null(parse_set(arena, diags, wrong[i], 3 + i));
        assert_int_equal(diags_errors(diags), i + 1);
    }
    char *json = diags_json(diags);
    assert_non_null(strstr(json, "\"--set #4\""));
    free(json);
    arena_free(arena);
}

static void what_was_understood_is_kept(void **state) {
    const char *text = "a = 1\nb = = 2\nlayer f(x) { y = ) z = 3 return x }\nc = 3\nlayer g(x) {";
    Parsed p = parse_n(text, strlen(text));
    assert_int_equal(diags_errors(p.diags), 3);
    const Ast *s = p.ast->list;
    assert_string_equal(s->text, "a");
    assert_string_equal(s->next->text, "f");
    assert_string_equal(s->next->a->list->text, "z");
    assert_int_equal(s->next->a->list->next->kind, A_RETURN);
    assert_string_equal(s->next->next->text, "c");
    arena_free(p.arena);
}

static void bytes_that_are_no_text(void **state) {
    static const struct {
        const char *text;
        size_t len;
        int errors;
    } cases[] = {{"\xef\xbb\xbfx = 1", 8, 0},  {"x = \"\xc3\xa9\"", 8, 0}, {"x = \0", 5, 1},
                 {"x = \"\xff\"", 7, 1},       {"# \xc0\x80", 4, 1},       {"# \xed\xa0\x80", 5, 1},
                 {"# \xf4\x90\x80\x80", 6, 1}, {"# \xe2\x82", 4, 1},       {"", 0, 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        Parsed p = parse_n(cases[i].text, cases[i].len);
        assert_int_equal(diags_errors(p.diags), cases[i].errors);
        arena_free(p.arena);
    }
    Parsed p = parse("\xef\xbb\xbfx = yes");
    assert_int_equal(p.ast->list->a->loc.begin, 7);
    arena_free(p.arena);
}

/* Nothing nests so deeply that a walk overflows the stack; wide texts are fine. */
static void deep_is_an_error_and_wide_is_not(void **state) {
    static const struct {
        const char *begin, *repeat, *end;
        int n, errors;
    } cases[] = {
        {"x = ", "(", "", 100000, 1},       {"x = ", "-", "1", 100000, 1},
        {"x = a", " + a", "", 100000, 1},   {"x = ", "[", "", 300, 1},
        {"x = ", "(", "", 150, 1}, /* only unfinished */
        {"x = a", " + a", "", 900, 0},      {"config { ", "if a {} else ", "{} }", 50000, 1},
        {"", "layer f() {\n", "", 300, 20}, {"", "x = 1 ", "", 50000, 0},
        {"x = [1", ", 1", "]", 100000, 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        Text text = {0};
        text_add(&text, "%s", cases[i].begin);
        for (int k = 0; k < cases[i].n; k++) text_add(&text, "%s", cases[i].repeat);
        text_add(&text, "%s", cases[i].end);
        Parsed p = parse_n(text.data, text.len);
        if (cases[i].errors == 20)
            assert_true(diags_errors(p.diags) >= 20);
        else
            assert_int_equal(diags_errors(p.diags), cases[i].errors);
        arena_free(p.arena);
        text_free(&text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_construct),
        cmocka_unit_test(examples_of_the_readme),
        cmocka_unit_test(operators_bind),
        cmocka_unit_test(keywords_are_words),
        cmocka_unit_test(numbers_and_units),
        cmocka_unit_test(places_are_exact),
        cmocka_unit_test(settings_from_the_command_line),
        cmocka_unit_test(what_was_understood_is_kept),
        cmocka_unit_test(bytes_that_are_no_text),
        cmocka_unit_test(deep_is_an_error_and_wide_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
