/* cuda_api.c: see cuda_api.h. */
#include "cuda_api.h"

#include <dlfcn.h>
#include <string.h>

/* Puts the function's address where the table has a pointer of its type. */
static bool look_up(void *library, const char *symbol, const char *older, void *slot) {
    void *found = dlsym(library, symbol);
    if (!found && older) found = dlsym(library, older);
    memcpy(slot, &found, sizeof found);
    return found != NULL;
}

bool cuda_api_load(CudaApi *api, void *library, Err *err) {
#define LOOK_UP(field, symbol, older, parameters)                                                  \
    if (!look_up(library, #symbol, older, &api->field))                                            \
        return fail(err, EXIT_DEVICE,                                                              \
                    "the NVIDIA driver has no " #symbol ": a driver for CUDA 12.0 or later is "    \
                    "needed");
    CUDA_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    return true;
}

bool lt_api_load(LtApi *api, void *library, Err *err) {
#define LOOK_UP(result, field, symbol, parameters)                                                 \
    if (!look_up(library, #symbol, NULL, &api->field))                                             \
        return fail(err, EXIT_DEVICE, "libcublasLt has no " #symbol ": version 12 or 13 is needed");
    LT_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    return true;
}

const char *cuda_error(const CudaApi *api, CuResult error) {
    const char *name = NULL, *text = NULL;
    if (api->GetErrorName(error, &name) || !name) return intern_printf("error %d", error);
    if (api->GetErrorString(error, &text) || !text) text = "no text";
    return intern_printf("%s (%d): %s", name, error, text);
}

const char *lt_error(const LtApi *api, LtStatus status) {
    const char *name = api->GetStatusName(status);
    return intern_printf("%s (%d)", name ? name : "status", status);
}
