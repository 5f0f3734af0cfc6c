/* device.c: choosing a device.  Relies on device.h.
 *
 * Promises: `auto` takes the CPU only where no NVIDIA GPU is visible; one that is visible and
 * cannot be used
 * is an error with the reason, never a silent fall-back.
 */
#include "device.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *cache_dir_default(void) {
    const char *own = getenv("DPOC_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"),
               *home = getenv("HOME");
    if (own && *own) return intern(own);
    if (xdg && *xdg) return intern_printf("%s/dpoc", xdg);
    if (home && *home) return intern_printf("%s/.cache/dpoc", home);
    return intern_printf("/tmp/dpoc-cache-%ld", (long)getuid());
}

/* What shows an NVIDIA GPU to be there: its device file, or a driver library that loads. */
static const char *visible_gpu(void) {
    const char *hidden = getenv("CUDA_VISIBLE_DEVICES");
    if (hidden && (!*hidden || !strcmp(hidden, "-1"))) return NULL;
    if (!access("/dev/nvidia0", F_OK)) return "/dev/nvidia0";
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver) return NULL;
    dlclose(driver);
    return "libcuda.so.1";
}

bool device_is_cuda(const char *name) {
    if (!name || !strcmp(name, "auto")) return visible_gpu() != NULL;
    return !strncmp(name, "cuda", 4);
}

Device *device_open(const DeviceOptions *options, Err *err) {
    const char *name = options->name ? options->name : "auto", *gpu;
    if (!strcmp(name, "cpu")) return cpu_open(options, err);
    if (!strcmp(name, "auto")) {
        if (!(gpu = visible_gpu())) return cpu_open(options, err);
        fail(err, EXIT_DEVICE,
             "an NVIDIA GPU is visible (%s) but this version of dpoc cannot use it; "
             "say --device=cpu to run on the CPU",
             gpu);
        return NULL;
    }
    if (!strncmp(name, "cuda", 4) && (!name[4] || name[4] == ':')) {
        gpu = visible_gpu();
        fail(err, EXIT_DEVICE, "--device=%s: %s", name,
             gpu ? "this version of dpoc compiles for CUDA but cannot run on it yet; use "
                   "--device=cpu"
                 : "no NVIDIA GPU is visible (no /dev/nvidia0, no libcuda.so.1); use --device=cpu");
        return NULL;
    }
    fail(err, EXIT_USAGE, "unknown device \"%s\": auto, cpu, cuda or cuda:N", name);
    return NULL;
}
