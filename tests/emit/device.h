/* device.h: emitted CUDA text on the simulated device (tests/cudasim), through the driver's
 * functions: compiled by its NVRTC, launched with threads in ascending, descending and random
 * order.  Data is memory of the host that the device reaches, so that a test looks at it as on the
 * CPU; what lies after it cannot be touched.
 */
#ifndef TEST_EMIT_DEVICE_H
#define TEST_EMIT_DEVICE_H

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cuda_api.h"
#include "runtime/nvrtc.h"
#include "tests/cudasim/simulated.h"

static const char *const device_orders[] = {"forward", "reverse", "random:99"};
static CudaApi device_api;
static CuModule device_module;
static bool on_device; /* data is for the device from now on */

/* Compiles the text; nothing is left of one before.  False and a message: it does not compile. */
static inline bool device_compile(const char *text) {
    static void *driver;
    CuContext context;
    Cubin cubin;
    Err err = {0};
    if (!driver && !(driver = dlopen("libcuda.so.1", RTLD_NOW))) return false;
    Nvrtc *nvrtc = nvrtc_open(&err);
    bool ok = nvrtc && cuda_api_load(&device_api, driver, &err) &&
              nvrtc_compile(nvrtc, "test", text, "sm_80", &cubin, &err);
    nvrtc_close(nvrtc);
    if (!ok) printf("%s\n", err.text);
    if (!ok) return false;
    ok = !device_api.Init(0) && !device_api.DevicePrimaryCtxRetain(&context, 0) &&
         !device_api.CtxSetCurrent(context) &&
         !device_api.ModuleLoadData(&device_module, cubin.data);
    cubin_free(&cubin);
    on_device = ok;
    return ok;
}

static inline void device_end(void) {
    if (on_device) {
        device_api.ModuleUnload(device_module);
        device_api.DevicePrimaryCtxRelease(0);
    }
    on_device = false;
}

/* A kernel with np pointers, then nn sizes; false (the simulator says why) when it fails. */
static inline bool device_launch(const char *symbol, void *const *p, int np, const int64_t *n,
                                 int nn, const int grid[2], int threads, int order) {
    void *args[24];
    CuFunction f;
    for (int i = 0; i < np; i++) args[i] = (void *)&p[i];
    for (int i = 0; i < nn; i++) args[np + i] = (void *)&n[i];
    setenv("CUDASIM_ORDER", device_orders[order], 1);
    return !device_api.ModuleGetFunction(&f, device_module, symbol) &&
           !device_api.LaunchKernel(f, (unsigned)grid[0], (unsigned)grid[1], 1, (unsigned)threads,
                                    1, 1, 0, NULL, args, NULL) &&
           !device_api.StreamSynchronize(NULL);
}

/* Zeroed memory for a kernel's data. */
static inline void *room(size_t bytes) {
    void *p = NULL;
    if (!on_device) return calloc(1, bytes + 64);
    if (device_api.MemHostAlloc(&p, bytes + !bytes, 0)) abort();
    return memset(p, 0, bytes);
}
static inline void leave(void *p) {
    if (!on_device)
        free(p);
    else if (p)
        device_api.MemFreeHost(p);
}

#endif
