/* target.c: the devices the compiler can aim at, as constants; nothing here needs the device.
 *
 * Promises: a plan for a target depends on this table only, so `compile --arch` gives the same plan
 * on any machine.
 */
#include "dpoc.h"

#include <string.h>

#define KIB INT64_C(1024)
#define MIB (1024 * KIB)

static const Target targets[] = {
    {.name = "cpu", .align = 64, .bucket = 64, .chunk_rows = 1024, .reserve = 64 * MIB},
    {.name = "sm_80",
     .cuda = true,
     .align = 256,
     .bucket = 128,
     .chunk_rows = 1024,
     .gemm_workspace = 32 * MIB,
     .reserve = 768 * MIB,
     .shared_max = 163 * 1024},
    {.name = "sm_90",
     .cuda = true,
     .align = 256,
     .bucket = 128,
     .chunk_rows = 1024,
     .gemm_workspace = 32 * MIB,
     .reserve = 768 * MIB,
     .shared_max = 227 * 1024},
};

const Target *target_by_name(const char *name) {
    for (size_t i = 0; i < COUNT(targets); i++)
        if (!strcmp(targets[i].name, name)) return &targets[i];
    return NULL;
}
