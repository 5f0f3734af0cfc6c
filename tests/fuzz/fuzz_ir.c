/* fuzz_ir.c: any bytes as textual IR: no crash; what is read prints, and the print reads back to
 * itself.
 * Built by clang with -fsanitize=fuzzer (make fuzz). */
#include <stdlib.h>
#include <string.h>

#include "compiler/dpoc.h"

static char *print(Arena *arena, const Graph *g) {
    Text out = {0};
    Graph bare = *g;
    bare.diags = NULL; /* places name the text that was read */
    graph_print(&bare, &out);
    char *copy = arena_str(arena, out.data ? out.data : "");
    text_free(&out);
    return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    const char *text = arena_strn(arena, (const char *)data, size);
    const Graph *g = graph_read(arena, diags, source_add(diags, "fuzz.ir", text, size));
    if (g) {
        const char *once = print(arena, g);
        uint32_t file = source_add(diags, "again.ir", once, strlen(once));
        const Graph *again = graph_read(arena, diags, file);
        if (!again || strcmp(print(arena, again), once)) {
            fprintf(stderr, "what was printed does not read back\n");
            abort();
        }
    }
    arena_free(arena);
    return 0;
}
