/* device.c: choosing a device.  Relies on device.h.
 *
 * Promises: `auto` takes the CPU only where no NVIDIA GPU is visible; one that is visible and
 * cannot be used
 * is an error with the reason, never a silent fall-back.
 */
#include "device.h"

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

bool device_is_cuda(const char *name) {
    if (!name || !strcmp(name, "auto")) return cuda_visible();
    return !strcmp(name, "cuda") || !strncmp(name, "cuda:", 5);
}

Device *device_open(const DeviceOptions *options, Err *err) {
    const char *name = options->name ? options->name : "auto";
    if (device_is_cuda(name)) return cuda_open(options, err);
    if (!strcmp(name, "cpu") || !strcmp(name, "auto")) return cpu_open(options, err);
    fail(err, EXIT_USAGE, "unknown device \"%s\": auto, cpu, cuda or cuda:N", name);
    return NULL;
}
