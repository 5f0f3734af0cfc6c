/* fuzz_parse.c: any bytes as a .dpo file: no crash; what is formatted stays the same tree, and
 * formatting again changes nothing.  Also as a --set argument.  Built by clang with
 * -fsanitize=fuzzer (make fuzz). */
#include <stdlib.h>
#include <string.h>

#include "compiler/ast.h"

static void require(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static char *dump_of(Arena *arena, const Ast *ast) {
    Text text = {0};
    ast_dump(ast, &text);
    char *copy = arena_str(arena, text.data);
    text_free(&text);
    return copy;
}

static void format_twice(Arena *arena, Diags *diags, const char *tree, uint32_t file) {
    Text once = {0}, twice = {0};
    require(fmt_text(arena, diags, file, &once), "what parses does not format");
    text_addn(&once, "", 0);
    uint32_t again = source_add(diags, "formatted.dpo", once.data, once.len);
    const char *formatted_tree = dump_of(arena, parse_text(arena, diags, again));
    require(diags_errors(diags) == 0, "what was formatted does not parse");
    require(strcmp(tree, formatted_tree) == 0, "formatting changed the tree");
    require(fmt_text(arena, diags, again, &twice), "what was formatted does not format");
    text_addn(&twice, "", 0);
    require(strcmp(once.data, twice.data) == 0, "formatting twice changes the text");
    text_free(&once);
    text_free(&twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    const char *text = arena_strn(arena, (const char *)data, size);
    uint32_t file = source_add(diags, "fuzz.dpo", text, size);
    const char *tree = dump_of(arena, parse_text(arena, diags, file));
    if (diags_errors(diags) == 0) format_twice(arena, diags, tree, file);
    Diags *other = diags_new(arena);
    parse_set(arena, other, text, 1);
    char *printed = NULL;
    size_t len;
    FILE *out = open_memstream(&printed, &len);
    diags_print(diags, 0, out, true);
    fclose(out);
    free(printed);
    free(diags_json(other));
    arena_free(arena);
    return 0;
}
