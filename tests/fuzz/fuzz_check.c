/* fuzz_check.c: any bytes as a .dpo file, checked without a checkpoint and against a small one: no
 * crash. Built by clang with -fsanitize=fuzzer (make fuzz). */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compiler/spec.h"

static const char config[] =
    "{\"model_type\": \"llama\", \"hidden_size\": 32, \"intermediate_size\": 56,"
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 8, \"num_key_value_heads\": 2,"
    "\"vocab_size\": 97, \"tie_word_embeddings\": true, \"rms_norm_eps\": 1e-5}";

static char dir[] = "/tmp/fuzz_check_XXXXXX", file[64];

static void leave(void) {
    char path[64];
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    unlink(file);
    rmdir(dir);
}

static void write_text(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) exit(EXIT_IO);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    if (!mkdtemp(dir)) exit(EXIT_IO);
    snprintf(file, sizeof file, "%s/config.json", dir);
    write_text(file, config, strlen(config));
    snprintf(file, sizeof file, "%s/fuzz.dpo", dir);
    atexit(leave);
    return 0;
}

static void check(const char *model) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    CheckOptions options = {.file = file, .model = model};
    const Spec *spec = check_file(arena, diags, &options);
    if (!spec && !diags_errors(diags)) abort(); /* refused without a word */
    arena_free(arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    write_text(file, data, size);
    check(NULL);
    check(dir);
    return 0;
}
