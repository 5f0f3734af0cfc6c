/* target.c: the devices the compiler can aim at, as constants; nothing here needs the device.
 *
 * Promises: a plan for a target depends on this table only, so `compile --arch` gives the same plan
 * on any machine.  Shared memory is what one block may ask for (CUDA C++ programming guide, table
 * of compute capabilities, less the 1 KiB the system takes).
 */
#include "dpoc.h"

#include <string.h>

#define KIB INT64_C(1024)
#define MIB (1024 * KIB)

#define CUDA_TARGET(number, shared_kib)                                                            \
    {                                                                                              \
        .name = "sm_" #number, .cuda = true, .arch = (number), .align = 256, .bucket = 128,        \
        .chunk_rows = 1024, .gemm_workspace = 32 * MIB, .reserve = 768 * MIB,                      \
        .shared_max = (shared_kib)*1024                                                            \
    }

static const Target targets[] = {
    /* ascending */
    {.name = "cpu", .align = 64, .bucket = 64, .chunk_rows = 1024, .reserve = 64 * MIB},
    CUDA_TARGET(80, 163),
    CUDA_TARGET(86, 99),
    CUDA_TARGET(89, 99),
    CUDA_TARGET(90, 227),
    CUDA_TARGET(100, 227),
    CUDA_TARGET(120, 99),
};

const Target *target_by_name(const char *name) {
    for (size_t i = 0; i < COUNT(targets); i++)
        if (!strcmp(targets[i].name, name)) return &targets[i];
    return NULL;
}

const Target *target_by_arch(int arch) {
    const Target *best = NULL;
    for (size_t i = 0; i < COUNT(targets); i++)
        if (targets[i].cuda == (arch > 0) && targets[i].arch <= arch) best = &targets[i];
    return best;
}

const char *target_names(void) {
    Text text = {0};
    for (size_t i = 0; i < COUNT(targets); i++)
        text_add(&text, "%s%s", i ? ", " : "", targets[i].name);
    const char *names = intern(text.data);
    text_free(&text);
    return names;
}
