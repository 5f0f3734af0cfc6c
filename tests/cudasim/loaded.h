/* loaded.h: the CUDA device with one plan's kernels and an arena, for tests of kernel texts. */
#ifndef CUDASIM_LOADED_H
#define CUDASIM_LOADED_H

#include "../../runtime/device.h"
#include "simulated.h"

static Device *dev;

/* Compiled kernels are kept with the build.  Fails the test where there is no such device. */
static inline void load_on_device(const Plan *plan, int64_t bytes) {
    Err err = {0};
    const char *build = getenv("BUILD");
    const char *cache = intern_printf("%s/tests/cache", build ? build : "build");
    dev = device_open(&(DeviceOptions){.name = "cuda", .cache_dir = cache}, &err);
    if (!dev || !dev->ops->alloc(dev, bytes, &err) || !dev->ops->load(dev, plan, &err))
        fail_msg("%s", err.text);
}

static inline int close_device(void **unused) {
    (void)unused;
    dev->ops->close(dev);
    return 0;
}

#endif
