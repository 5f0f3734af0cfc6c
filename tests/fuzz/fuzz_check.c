/* fuzz_check.c: any bytes as a .dpo file, checked without a checkpoint and against a small one: no crash.
 * Built by clang with -fsanitize=fuzzer (make fuzz). */
#include <string.h>

#include "compiler/spec.h"

static void check(const char *path, const char *model) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    CheckOptions options = {.file = path, .model = model};
    const Spec *spec = check_file(arena, diags, &options);
    if (!spec && !diags_errors(diags)) __builtin_trap(); /* refused without a word */
    arena_free(arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char path[] = "/tmp/fuzz_check.dpo";
    FILE *f = fopen(path, "wb");
    if (!f) return 0;
    fwrite(data, 1, size, f);
    fclose(f);
    check(path, NULL);
    check(path, "tests/num/cases/gqa");
    return 0;
}
