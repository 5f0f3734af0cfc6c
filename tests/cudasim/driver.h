/* driver.h: a program of the test's own on the simulated device, through the driver's functions as
 * the runtime finds them.  A test defines `kernels` and calls start(argv) first in main.
 */
#ifndef TEST_DRIVER_H
#define TEST_DRIVER_H

#include <dlfcn.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "../../runtime/cuda_api.h"
#include "../../runtime/nvrtc.h"
#include "simulated.h"

#define MIB (1u << 20)
/* Kernel text, in one line. */
#define K(...) #__VA_ARGS__ "\n"
extern const char kernels[];

static CudaApi cu;
static Nvrtc *nvrtc;
static Cubin image;
static CuContext context;
static CuModule module;
static CuStream stream, second;
static char said_path[] = "/tmp/dpoc-heard-XXXXXX";
static void *driver; /* the library */

#define OK(call) assert_int_equal(call, 0)

/* ---- the device ------------------------------------------------------------------------------ */

static inline void begin(void) {
    CuDevice device;
    OK(cu.DeviceGet(&device, 0));
    OK(cu.DevicePrimaryCtxRetain(&context, device));
    OK(cu.CtxSetCurrent(context));
    OK(cu.ModuleLoadData(&module, image.data));
    OK(cu.StreamCreate(&stream, STREAM_NON_BLOCKING, 0));
    OK(cu.StreamCreate(&second, STREAM_NON_BLOCKING, 0));
}

/* A new context, after a fault; also what a test's settings end with. */
static inline int again(void **unused) {
    (void)unused;
    unsetenv("CUDASIM_ORDER"), unsetenv("CUDASIM_LAZY"), unsetenv("CUDASIM_FAIL");
    cu.ModuleUnload(module);
    cu.DevicePrimaryCtxRelease(0);
    begin();
    return 0;
}

static inline CuPointer memory(size_t bytes) {
    CuPointer p;
    OK(cu.MemAlloc(&p, bytes));
    return p;
}

static inline CuFunction function(const char *name) {
    CuFunction f;
    OK(cu.ModuleGetFunction(&f, module, name));
    return f;
}

static inline CuResult launch(const char *name, unsigned grid, unsigned threads, unsigned shared,
                              CuStream to, void **args) {
    return cu.LaunchKernel(function(name), grid, 1, 1, threads, 1, 1, shared, to, args, NULL);
}
#define ARGS(...) ((void *[]){__VA_ARGS__})

static inline void get(CuPointer from, int *to, size_t n) {
    OK(cu.MemcpyDtoHAsync(to, from, 4 * n, stream));
    OK(cu.StreamSynchronize(stream));
}

/* Between these two, stderr goes to a file; `words` must be in it. */
static int saved, file;
static inline void listen(void) {
    fflush(stderr);
    saved = dup(2);
    file = open(said_path, O_RDWR | O_TRUNC);
    assert_int_equal(dup2(file, 2), 2);
}
static inline void heard(const char *words) {
    char text[2000];
    fflush(stderr);
    dup2(saved, 2);
    const ssize_t n = pread(file, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    close(saved);
    close(file);
    if (!strstr(text, words)) print_error("\"%s\" is not in: %s", words, text);
    assert_non_null(strstr(text, words));
}

/* The launch must fault with `code` and say `words`. */
static inline void faults(CuResult code, const char *words, const char *name, unsigned grid,
                          unsigned threads, unsigned shared, void **args) {
    listen();
    OK(launch(name, grid, threads, shared, stream, args));
    const CuResult first = cu.StreamSynchronize(stream), next = cu.StreamSynchronize(stream);
    heard(words);
    assert_int_equal(first, code);
    assert_int_equal(next, code); /* it sticks */
    again(NULL);
}

static const char *const orders[] = {"forward", "reverse", "random:1", "random:2"};

/* ---- beginning ------------------------------------------------------------------------------- */

static inline void start(char **argv) {
    Err err = {0};
    setenv("CUDASIM_MEMORY", "64MiB", 1);
    simulate(argv);
    const int fd = mkstemp(said_path);
    if (fd >= 0) close(fd);
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    nvrtc = nvrtc_open(&err);
    if (!driver || !nvrtc || !cuda_api_load(&cu, driver, &err) ||
        !nvrtc_compile(nvrtc, "test", kernels, "sm_80", &image, &err) || cu.Init(0)) {
        printf("%s\n", err.text);
        exit(1);
    }
    begin();
}

static inline int finish(int failed) {
    unlink(said_path);
    cubin_free(&image);
    cu.ModuleUnload(module);
    cu.DevicePrimaryCtxRelease(0);
    nvrtc_close(nvrtc);
    return failed;
}

#endif
