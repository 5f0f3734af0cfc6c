/* test_template.c: templates written in a .dpo file: the built-in llama3, chatml and llama2 written
 * out give the built-in ones' ids and texts; carets under control tokens a tokenizer lacks. */
#include "check.h"
#include "compiler/template.h"
#include "tests/fuzz/bytes.h"

static const char own[] =
    "template chat {\n"
    "    begin = \"{bos}\"\n"
    "    message = \"{<|start_header_id|>}{role}{<|end_header_id|>}\\n\\n\" +\n"
    "        \"{content|trim}{<|eot_id|>}\"\n"
    "    generation = \"{<|start_header_id|>}assistant{<|end_header_id|>}\\n\\n\"\n"
    "}\n"
    "template ml {\n"
    "    message = \"{<|im_start|>}{role}\\n{content}{<|im_end|>}\\n\"\n"
    "    generation = \"{<|im_start|>}assistant\\n\"\n"
    "}\n"
    "template inst {\n"
    "    user = \"{bos}[INST] {content|trim} [/INST]\"\n"
    "    assistant = \" {content|trim} {eos}\"\n"
    "    system = \"<<SYS>>\\n{content}\\n<</SYS>>\\n\\n\"\n"
    "    fold_system = on\n"
    "}\n"
    "template dated {\n"
    "    begin = \"{bos}\"\n"
    "    message = "
    "\"{<|start_header_id|>}{role}{<|end_header_id|>}\\n\\n{content|trim}{<|eot_id|>}\"\n"
    "    system = \"{<|start_header_id|>}system{<|end_header_id|>}\\n\\nCutting Knowledge Date: \" "
    "+\n"
    "        \"December 2023\\nToday Date: {date}\\n\\n{content|trim}{<|eot_id|>}\"\n"
    "    default_system = \"\"\n"
    "}\n"
    "data { template = chat }\n";

/* Bytes, bos, eos and the control tokens of all three. */
static Tokenizer *tokenizer(void) {
    static const char *const names[] = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
                                        "<|im_start|>", "<|im_end|>"};
    Err err = {0};
    char *text = file_read(intern_printf("%s/tokenizer.json", bytes_tokenizer()), NULL, &err);
    assert_non_null(text);
    Text out = {0};
    const char *list = strchr(text, '[') + 1;
    text_addn(&out, text, (size_t)(list - text));
    for (size_t i = 0; i < COUNT(names); i++)
        text_add(&out, "{\"id\":%zu,\"content\":\"%s\",\"special\":true,\"normalized\":false},",
                 261 + i, names[i]);
    text_add(&out, "%s", list);
    const char *dir = scratch_file("tokenizer.json", out.data, out.len);
    free(text);
    text_free(&out);
    Tokenizer *t = tokenizer_open(dir, &err);
    if (!t) die("%s\n", err.text);
    return t;
}

#define M(role, text)                                                                              \
    { role, text, sizeof(text) - 1 }
static const Message conversation[] = {M("system", " Be {good}. "), M("user", "Hi <|eot_id|> "),
                                       M("assistant", " yes\n"), M("user", "hel")};

/* Own template `name` against the built-in one, with and without a system message, as a prompt and
 * as a whole. */
static void same_as(Tokenizer *t, const char *name, const char *builtin) {
    Err err = {0};
    const TemplateDef *def;
    Template mine, theirs;
    const char *set = intern_printf("data.template=%s", name);
    Check one = check_ok(own, (CheckOptions){.set = &set, .nset = 1});
    assert_true(spec_template(one.spec, t, &def));
    assert_non_null(def);
    assert_true(template_open(&mine, name, def, "nowhere", t, "1 Jan 2020", &err));
    assert_true(template_open(&theirs, builtin, NULL, "nowhere", t, "1 Jan 2020", &err));
    assert_true(mine.named);
    assert_int_equal(template_stop(&mine), template_stop(&theirs));
    for (int from = 0; from < 2; from++)
        for (int n = 1; from + n <= 4; n++)
            for (int generation = 0; generation < 2; generation++) {
                Ids a = {0}, b = {0};
                Text ta = {0}, tb = {0};
                Err ea = {0}, eb = {0};
                const Message *m = conversation + from;
                bool ok = template_encode(&mine, m, n, generation, &a, &ea);
                assert_int_equal(ok, template_encode(&theirs, m, n, generation, &b, &eb));
                template_text(&mine, m, n, generation, &ta, &ea);
                template_text(&theirs, m, n, generation, &tb, &eb);
                assert_int_equal(a.n, b.n);
                if (a.n) assert_memory_equal(a.v, b.v, sizeof *a.v * (size_t)a.n);
                if (ok) assert_string_equal(ta.data, tb.data);
                ids_free(&a);
                ids_free(&b);
                text_free(&ta);
                text_free(&tb);
            }
    arena_free(one.arena);
}

static void builtin_templates_written_out(void **state) {
    (void)state;
    Tokenizer *t = tokenizer();
    same_as(t, "chat", "llama3");
    same_as(t, "ml", "chatml");
    same_as(t, "inst", "llama2");
    tokenizer_close(t);
}

/* With the generation prompt left out nothing stands behind a prompt; all else is llama3.1. */
static void dates_and_default_system(void **state) {
    (void)state;
    Tokenizer *t = tokenizer();
    const char *set = "data.template=dated";
    Check c = check_ok(own, (CheckOptions){.set = &set, .nset = 1});
    const TemplateDef *def;
    Template mine, theirs;
    Err err = {0};
    assert_true(spec_template(c.spec, t, &def));
    assert_true(template_open(&mine, "dated", def, "nowhere", t, NULL, &err));
    assert_true(template_open(&theirs, "llama3.1", NULL, "nowhere", t, NULL, &err));
    Text a = {0}, b = {0};
    assert_true(template_text(&mine, conversation + 1, 2, false, &a, &err));
    assert_true(template_text(&theirs, conversation + 1, 2, false, &b, &err));
    assert_string_equal(a.data, b.data);
    assert_non_null(strstr(a.data, "Today Date: 26 Jul 2024\n\n<|eot_id|>"));
    text_free(&a);
    text_free(&b);
    arena_free(c.arena);
    tokenizer_close(t);
}

/* Where the caret of the only error stands, and what is under it. */
static void expect_error(const char *text, Tokenizer *t, const char *said, const char *under) {
    Check c = check_ok(text, (CheckOptions){0});
    const TemplateDef *def;
    assert_false(spec_template(c.spec, t, &def));
    char *json = diags_json(c.diags);
    if (!strstr(json, said)) die("%s\nlacks \"%s\"\n", json, said);
    free(json);
    char *shown = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&shown, &n);
    diags_print(c.diags, 0, f, false);
    fclose(f);
    const char *caret = strchr(shown, '^'), *line = caret;
    while (line[-1] != '\n') line--;
    const char *source = line - 1;
    while (source[-1] != '\n') source--;
    assert_memory_equal(source + (caret - line), under, strlen(under));
    assert_int_equal(strspn(caret, "^~"), strlen(under));
    free(shown);
    arena_free(c.arena);
}

static void tokens_that_are_not_there(void **state) {
    (void)state;
    Tokenizer *t = tokenizer();
    Arena *arena = arena_new();
    char *text = replaced(arena, own, "{content|trim}{<|eot_id|>}", "\\n{content}{<|eot_di|>}");
    expect_error(text, t, "has no token `<|eot_di|>`", "<|eot_di|>");
    expect_error(text, t, "did you mean `{<|eot_id|>}`?", "<|eot_di|>");
    text = replaced(arena, own, "{content|trim}{<|eot_id|>}", "{content}\\n<|im_end|>{<|eot_id|>}");
    expect_error(text, t, "`<|im_end|>` is a control token of", "<|im_end|>");
    arena_free(arena);
    tokenizer_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(builtin_templates_written_out),
                                       cmocka_unit_test(dates_and_default_system),
                                       cmocka_unit_test(tokens_that_are_not_there)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
