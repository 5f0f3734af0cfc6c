/* fuzz_adapter.c: any bytes as a PEFT directory: adapter_config.json, a zero byte, the tensors: no
 * crash; what is read has all tensors of every module it names, of the rank it says.  Built by
 * clang with -fsanitize=fuzzer (make fuzz). */
#include "runtime/io/adapter.h"
#include "tests/fuzz/bytes.h"

static void check(const Adapter *a, const char *dir) {
    Err err = {0};
    Checkpoint *c = checkpoint_open(dir, "adapter_model", &err);
    if (!c || a->ntargets < 1 || a->r < 1) abort();
    for (int i = 0; i < a->ntargets; i++) {
        const char *module = a->targets[i];
        const SafeTensor *A = adapter_tensor(a, c, module, ADAPTER_A),
                         *B = adapter_tensor(a, c, module, ADAPTER_B);
        if (!A || !B || A->rank != 2 || B->rank != 2) abort();
        if (A->shape[0] != B->shape[1] || A->shape[0] != adapter_rank(a, module)) abort();
        if (!adapter_tensor(a, c, module, ADAPTER_MAGNITUDE) != !a->dora) abort();
        if (!adapter_selects(a, module)) abort();
    }
    checkpoint_close(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *zero = memchr(data, 0, size);
    if (!zero) return 0;
    scratch_file("adapter_config.json", data, (size_t)(zero - data));
    const char *dir =
        scratch_file("adapter_model.safetensors", zero + 1, size - (size_t)(zero - data) - 1);
    Arena *arena = arena_new();
    Err err = {0};
    const Adapter *a = adapter_read(arena, dir, &err);
    if (!a != (err.code != 0)) abort();
    if (a) check(a, dir);
    arena_free(arena);
    return 0;
}
