/* test_driver: the simulated driver refuses what the real one refuses, keeps to the order that
 * streams, events and graphs promise and to no other, and fails where it is told to. */
#include "driver.h"

#include <signal.h>
#include <sys/wait.h>

const char kernels[] = K(extern "C" __global__ void set(int *y, int to) { y[threadIdx.x] = to; })
    K(extern "C" __global__ void add(int *y, const int *x, int by) {
        y[threadIdx.x] = x[threadIdx.x] + by;
    }) K(extern "C" __global__ void __launch_bounds__(64, 2) bounded(int *y) { *y = 1; })
        K(extern "C" __global__ void fixed(int *y) {
            __shared__ int room[1024];
            extern __shared__ int more[];
            room[threadIdx.x] = 1;
            more[threadIdx.x] = 2;
            y[threadIdx.x] = room[threadIdx.x] + more[threadIdx.x];
        }) K(extern "C" __global__ void fails(int *y) { y[1 << 24] = 1; });

/* ---- memory ---------------------------------------------------------------------------------- */

static void test_wrong_memory(void **unused) {
    (void)unused;
    int host[64] = {0};
    CuPointer y = memory(sizeof host);
    const CuPointer h = (CuPointer)(uintptr_t)host;
    OK(cu.MemcpyHtoDAsync(y, host, sizeof host, stream));
    assert_int_equal(cu.MemcpyHtoDAsync(h, host, 4, stream), ERROR_INVALID_VALUE);
    assert_int_equal(cu.MemcpyHtoDAsync(y, (void *)(uintptr_t)y, 4, stream), ERROR_INVALID_VALUE);
    assert_int_equal(cu.MemcpyHtoDAsync(y + 4, host, sizeof host, stream), ERROR_INVALID_VALUE);
    assert_int_equal(cu.MemcpyDtoHAsync(host, h, 4, stream), ERROR_INVALID_VALUE);
    assert_int_equal(cu.MemcpyDtoDAsync(y, h, 4, stream), ERROR_INVALID_VALUE);
    assert_int_equal(cu.MemsetD8Async(y + 200, 0, 57, stream), ERROR_INVALID_VALUE);
    assert_int_equal(cu.MemFree(y + 4), ERROR_INVALID_VALUE);
}

static void test_size(void **unused) {
    (void)unused;
    size_t left, total;
    int got[256];
    OK(cu.MemGetInfo(&left, &total));
    assert_int_equal(total, 64 * MIB);
    assert_int_equal(left, total);
    CuPointer a = memory(40 * MIB), b;
    get(a, got, 256);
    for (int i = 0; i < 256; i++) assert_int_equal(got[i], -1); /* poison */
    assert_int_equal(cu.MemAlloc(&b, 24 * MIB + 1), ERROR_OUT_OF_MEMORY);
    b = memory(24 * MIB);
    OK(cu.MemGetInfo(&left, &total));
    assert_int_equal(left, 0);
    OK(cu.MemFree(a));
    assert_int_equal(cu.MemAlloc(&a, 41 * MIB), ERROR_OUT_OF_MEMORY);
    a = memory(40 * MIB);
    OK(cu.MemsetD8Async(a + 5, 0, 2 * MIB, stream));
    get(a, got, 2);
    assert_int_equal(got[0], -1);
    assert_int_equal(got[1], 0xff); /* bytes from 5 on */
}

/* With CUDASIM_HIDE=1 a program that touches the device's memory by itself dies; the child is a
 * process of its own, as the setting is read once. */
static void test_hidden(void **unused) {
    (void)unused;
    int status;
    const pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        setenv("CUDASIM_HIDE", "1", 1);
        execl("/proc/self/exe", "test_driver", "touch", NULL);
        _exit(3);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 4);
}

static void touched(int number) {
    (void)number;
    _exit(4);
}

/* That child: what goes through the driver is well. */
static int touch(void) {
    int x = 5, got = 0;
    CuPointer y = memory(128);
    signal(SIGSEGV, touched);
    if (launch("set", 1, 32, 0, stream, ARGS(&y, &x))) return 1;
    get(y, &got, 1);
    if (got != 5) return 2;
    return *(volatile int *)(uintptr_t)y == 5 ? 3 : 6;
}

/* ---- launches -------------------------------------------------------------------------------- */

static void test_launches(void **unused) {
    (void)unused;
    int to = 1, value;
    CuPointer y = memory(8192);
    CuFunction f = function("fixed");
    assert_int_equal(launch("set", 1, 1025, 0, stream, ARGS(&y, &to)), ERROR_INVALID_VALUE);
    assert_int_equal(launch("set", 0, 32, 0, stream, ARGS(&y, &to)), ERROR_INVALID_VALUE);
    assert_int_equal(launch("set", 1, 0, 0, stream, ARGS(&y, &to)), ERROR_INVALID_VALUE);
    assert_int_equal(cu.LaunchKernel(f, 1, 65536, 1, 32, 1, 1, 0, stream, ARGS(&y), NULL),
                     ERROR_INVALID_VALUE);
    assert_int_equal(launch("bounded", 1, 65, 0, stream, ARGS(&y)), ERROR_INVALID_VALUE);
    OK(launch("bounded", 1, 64, 0, stream, ARGS(&y)));
    OK(cu.FuncGetAttribute(&value, FUNCTION_MAX_THREADS, function("bounded")));
    assert_int_equal(value, 64);
    OK(cu.FuncGetAttribute(&value, FUNCTION_STATIC_SHARED, f));
    assert_int_equal(value, 4096);
    OK(launch("fixed", 1, 32, (48 << 10) - 4096, stream, ARGS(&y)));
    assert_int_equal(launch("fixed", 1, 32, 48 << 10, stream, ARGS(&y)), ERROR_INVALID_VALUE);
    const int most = (163 << 10) - 4096; /* sm_80 */
    assert_int_equal(cu.FuncSetAttribute(f, FUNCTION_MAX_DYNAMIC_SHARED, most + 1),
                     ERROR_INVALID_VALUE);
    OK(cu.FuncSetAttribute(f, FUNCTION_MAX_DYNAMIC_SHARED, most));
    OK(launch("fixed", 1, 32, (unsigned)most, stream, ARGS(&y)));
    OK(cu.StreamSynchronize(stream));
    assert_int_equal(cu.ModuleGetFunction(&f, module, "none"), 500);
}

static bool compiles(const char *text, const char *arch, const char *words) {
    Cubin cubin;
    Err err = {0};
    const bool ok = nvrtc_compile(nvrtc, "other", text, arch, &cubin, &err);
    if (!ok && !strstr(err.text, words)) print_error("\"%s\" is not in: %s", words, err.text);
    assert_true(ok || strstr(err.text, words));
    CuModule m;
    if (ok && cu.ModuleLoadData(&m, cubin.data)) assert_string_equal(words, "not loaded");
    if (ok) cubin_free(&cubin);
    return ok;
}

static void test_compiling(void **unused) {
    (void)unused;
    const char *const simple = "extern \"C\" __global__ void k(int *y) { *y = 1; }\n";
    assert_true(compiles(simple, "sm_80", ""));
    assert_true(compiles(simple, "sm_90", "not loaded"));
    assert_false(compiles(simple, "sm_81", "NVRTC_ERROR_INVALID_OPTION"));
    assert_false(compiles("#include <stdint.h>\n", "sm_80", "stdint.h"));
    assert_false(compiles("int f() {\n  return x;\n}\n", "sm_80", "other:2"));
    KernelFigures figures;
    assert_true(cubin_figures(&image, "fixed", &figures));
    assert_int_equal(figures.shared_bytes, 4096);
    assert_int_equal(figures.spill_bytes, 0);
}

/* ---- streams --------------------------------------------------------------------------------- */

/* One stream makes what the other reads: with and without the wait between them. */
static int handed_over(bool waits) {
    int one = 1, by = 10, got[32];
    CuPointer x = memory(128), y = memory(128);
    CuEvent made;
    OK(cu.EventCreate(&made, EVENT_DISABLE_TIMING));
    OK(launch("set", 1, 32, 0, stream, ARGS(&x, &one)));
    OK(cu.EventRecord(made, stream));
    if (waits) OK(cu.StreamWaitEvent(second, made, 0));
    OK(launch("add", 1, 32, 0, second, ARGS(&y, &x, &by)));
    OK(cu.StreamSynchronize(second));
    OK(cu.StreamSynchronize(stream));
    OK(cu.EventDestroy(made));
    get(y, got, 32);
    return got[0];
}

/* One stream overwrites what the other still reads. */
static int overwritten(bool waits) {
    int one = 1, two = 2, by = 10, got[32];
    CuPointer x = memory(128), y = memory(128);
    CuEvent made, used;
    OK(cu.EventCreate(&made, EVENT_DISABLE_TIMING));
    OK(cu.EventCreate(&used, EVENT_DISABLE_TIMING));
    OK(launch("set", 1, 32, 0, stream, ARGS(&x, &one)));
    OK(cu.EventRecord(made, stream));
    OK(cu.StreamWaitEvent(second, made, 0));
    OK(launch("add", 1, 32, 0, second, ARGS(&y, &x, &by)));
    OK(cu.EventRecord(used, second));
    if (waits) OK(cu.StreamWaitEvent(stream, used, 0));
    OK(launch("set", 1, 32, 0, stream, ARGS(&x, &two)));
    OK(cu.StreamSynchronize(stream));
    OK(cu.StreamSynchronize(second));
    get(y, got, 32);
    return got[0];
}

static void test_lazy(void **unused) {
    (void)unused;
    assert_int_equal(handed_over(false), 11); /* at once: the mistake does not show */
    setenv("CUDASIM_LAZY", "1", 1);
    assert_int_equal(handed_over(true), 11);
    assert_int_equal(handed_over(false), 9); /* -1, the poison, and 10 */
    assert_int_equal(overwritten(true), 11);
    assert_int_equal(overwritten(false), 12);
    int wrong = 0;
    for (int seed = 0; seed < 8; seed++) {
        char lazy[32];
        snprintf(lazy, sizeof lazy, "random:%d", seed);
        setenv("CUDASIM_LAZY", lazy, 1);
        assert_int_equal(handed_over(true), 11);
        assert_int_equal(overwritten(true), 11);
        wrong += handed_over(false) != 11;
        wrong += overwritten(false) != 11;
    }
    assert_true(wrong > 0);
}

static void test_lazy_copies(void **unused) {
    (void)unused;
    int host[4] = {1, 2, 3, 4}, got[4], *staging;
    CuPointer y = memory(16), z = memory(16);
    OK(cu.MemHostAlloc((void **)&staging, 16, HOST_PORTABLE));
    setenv("CUDASIM_LAZY", "1", 1);
    memcpy(staging, host, 16);
    OK(cu.MemcpyHtoDAsync(y, staging, 16, stream)); /* done when its turn comes */
    OK(cu.MemcpyHtoDAsync(z, host, 16, stream));    /* copied at once, as the driver does */
    staging[0] = host[0] = 9;
    OK(cu.StreamSynchronize(stream));
    get(y, got, 4);
    assert_int_equal(got[0], 9);
    get(z, got, 4);
    assert_int_equal(got[0], 1);
    int by = 5;
    OK(launch("set", 1, 4, 0, stream, ARGS(&y, &by))); /* by value */
    by = 6;
    get(y, got, 4);
    assert_int_equal(got[0], 5);
    OK(cu.MemFreeHost(staging));
}

static void test_events(void **unused) {
    (void)unused;
    CuEvent a, b, untimed;
    float ms;
    OK(cu.EventCreate(&a, EVENT_DEFAULT));
    OK(cu.EventCreate(&b, EVENT_DEFAULT));
    OK(cu.EventCreate(&untimed, EVENT_DISABLE_TIMING));
    setenv("CUDASIM_LAZY", "1", 1);
    OK(cu.EventRecord(a, stream));
    OK(cu.EventRecord(untimed, stream));
    OK(cu.EventRecord(b, stream));
    assert_int_equal(cu.EventElapsedTime(&ms, a, b), 600);
    OK(cu.EventSynchronize(b));
    OK(cu.EventElapsedTime(&ms, a, b));
    assert_true(ms >= 0);
    assert_int_equal(cu.EventElapsedTime(&ms, a, untimed), ERROR_INVALID_HANDLE);
    CuPointer y = memory(16);
    int got[2];
    OK(cu.StreamWriteValue32(stream, y + 4, 77, 0));
    get(y, got, 2);
    assert_int_equal(got[1], 77);
    assert_int_equal(cu.StreamWriteValue32(stream, y + 2, 77, 0), ERROR_INVALID_VALUE);
}

/* ---- graphs ---------------------------------------------------------------------------------- */

static CuResult capture_end(void) {
    CuGraph graph;
    const CuResult result = cu.StreamEndCapture(stream, &graph);
    if (!result) OK(cu.GraphDestroy(graph));
    return result;
}

static void test_graph(void **unused) {
    (void)unused;
    int to = 3, by = 10, got[32];
    CuPointer x = memory(128), y = memory(128);
    CuEvent fork, join;
    CuGraph graph;
    CuGraphExec exec;
    OK(cu.EventCreate(&fork, EVENT_DISABLE_TIMING));
    OK(cu.EventCreate(&join, EVENT_DISABLE_TIMING));
    OK(cu.StreamBeginCapture(stream, CAPTURE_THREAD_LOCAL));
    OK(launch("set", 1, 32, 0, stream, ARGS(&x, &to)));
    OK(cu.EventRecord(fork, stream));
    OK(cu.StreamWaitEvent(second, fork, 0));
    OK(launch("add", 1, 32, 0, second, ARGS(&y, &x, &by)));
    OK(cu.EventRecord(join, second));
    OK(cu.StreamWaitEvent(stream, join, 0));
    OK(launch("add", 1, 32, 0, stream, ARGS(&x, &y, &by)));
    to = by = 1000; /* captured by value */
    OK(cu.StreamEndCapture(stream, &graph));
    OK(cu.GraphInstantiate(&exec, graph, 0));
    OK(cu.GraphDestroy(graph));
    get(x, got, 32);
    assert_int_equal(got[0], -1); /* nothing ran */
    for (int lazy = 0; lazy < 2; lazy++) {
        setenv("CUDASIM_LAZY", lazy ? "1" : "0", 1);
        OK(cu.MemsetD8Async(x, 0, 128, stream));
        OK(cu.GraphLaunch(exec, stream));
        get(x, got, 32);
        assert_int_equal(got[31], 23);
    }
    OK(cu.GraphExecDestroy(exec));
}

static void test_capture_refuses(void **unused) {
    (void)unused;
    int to = 1, host;
    CuPointer x = memory(128), p;
    CuEvent event;
    CuStream blocking;
    OK(cu.EventCreate(&event, EVENT_DISABLE_TIMING));
    OK(cu.StreamBeginCapture(stream, CAPTURE_THREAD_LOCAL));
    assert_int_equal(cu.StreamSynchronize(stream), ERROR_CAPTURE);
    assert_int_equal(launch("set", 1, 32, 0, stream, ARGS(&x, &to)), 901); /* invalidated */
    assert_int_equal(capture_end(), 901);
    OK(cu.StreamBeginCapture(stream, CAPTURE_THREAD_LOCAL));
    assert_int_equal(cu.MemAlloc(&p, 16), ERROR_CAPTURE);
    assert_int_equal(capture_end(), 901);
    OK(cu.StreamBeginCapture(stream, CAPTURE_THREAD_LOCAL));
    assert_int_equal(cu.MemcpyDtoHAsync(&host, x, 4, stream), ERROR_CAPTURE); /* it would wait */
    assert_int_equal(capture_end(), 901);
    OK(cu.StreamBeginCapture(stream, CAPTURE_THREAD_LOCAL));
    OK(cu.EventRecord(event, stream));
    OK(cu.StreamWaitEvent(second, event, 0));
    OK(launch("set", 1, 32, 0, second, ARGS(&x, &to)));
    assert_int_equal(capture_end(), 904); /* the second stream never came back */
    OK(cu.EventRecord(event, second));
    OK(cu.StreamBeginCapture(stream, CAPTURE_THREAD_LOCAL));
    assert_int_equal(cu.StreamWaitEvent(stream, event, 0), 905); /* work outside */
    assert_int_equal(capture_end(), 901);
    OK(cu.StreamCreate(&blocking, 0, 0));
    OK(cu.StreamBeginCapture(blocking, CAPTURE_THREAD_LOCAL));
    assert_int_equal(launch("set", 1, 32, 0, NULL, ARGS(&x, &to)), 906);
    CuGraph graph;
    assert_int_equal(cu.StreamEndCapture(blocking, &graph), 901);
    OK(cu.StreamDestroy(blocking));
    OK(launch("set", 1, 32, 0, stream, ARGS(&x, &to)));
    OK(cu.StreamSynchronize(stream));
}

/* ---- failures -------------------------------------------------------------------------------- */

static void test_asked_to_fail(void **unused) {
    (void)unused;
    CuPointer p;
    int to = 1;
    p = memory(128);
    setenv("CUDASIM_FAIL", "cuMemAlloc:2", 1);
    OK(cu.MemAlloc(&p, 128));
    assert_int_equal(cu.MemAlloc(&p, 128), ERROR_OUT_OF_MEMORY);
    OK(cu.MemAlloc(&p, 128));
    setenv("CUDASIM_FAIL", "cuLaunchKernel:1:719", 1);
    assert_int_equal(launch("set", 1, 32, 0, stream, ARGS(&p, &to)), 719);
    OK(launch("set", 1, 32, 0, stream, ARGS(&p, &to)));
    setenv("CUDASIM_FAIL", "nvrtcCompileProgram", 1);
    assert_false(compiles("extern \"C\" __global__ void k() {}\n", "sm_80", ""));
    char trace[] = "/tmp/dpoc-trace-XXXXXX", text[300];
    const int fd = mkstemp(trace);
    setenv("CUDASIM_TRACE", trace, 1);
    OK(launch("set", 2, 32, 64, stream, ARGS(&p, &to)));
    unsetenv("CUDASIM_TRACE");
    const ssize_t n = read(fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    assert_string_equal(text, "cuModuleGetFunction set\n"
                              "cuLaunchKernel set grid 2x1x1 block 32x1x1 shared 64\n");
    unlink(trace);
    close(fd);
}

/* Work that comes after a fault is not done, and every call says so. */
static void test_fault_sticks(void **unused) {
    (void)unused;
    int to = 1;
    CuPointer p = memory(128), more;
    CuEvent event;
    OK(cu.EventCreate(&event, EVENT_DISABLE_TIMING));
    setenv("CUDASIM_LAZY", "1", 1);
    listen();
    OK(launch("fails", 1, 1, 0, stream, ARGS(&p)));
    OK(launch("set", 1, 32, 0, stream, ARGS(&p, &to)));
    const CuResult result = cu.StreamSynchronize(stream);
    heard("kernel fails, block (0,0,0), thread (0,0,0): writes to address");
    assert_int_equal(result, ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.MemAlloc(&more, 16), ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.MemFree(p), ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.EventRecord(event, stream), ERROR_ILLEGAL_ADDRESS);
    assert_int_equal(cu.MemsetD8Async(p, 0, 128, stream), ERROR_ILLEGAL_ADDRESS);
}

int main(int argc, char **argv) {
    start(argv);
    if (argc > 1) return touch();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_wrong_memory, again),
        cmocka_unit_test_teardown(test_size, again),
        cmocka_unit_test_teardown(test_hidden, again),
        cmocka_unit_test_teardown(test_launches, again),
        cmocka_unit_test_teardown(test_compiling, again),
        cmocka_unit_test_teardown(test_lazy, again),
        cmocka_unit_test_teardown(test_lazy_copies, again),
        cmocka_unit_test_teardown(test_events, again),
        cmocka_unit_test_teardown(test_graph, again),
        cmocka_unit_test_teardown(test_capture_refuses, again),
        cmocka_unit_test_teardown(test_asked_to_fail, again),
        cmocka_unit_test_teardown(test_fault_sticks, again),
    };
    return finish(cmocka_run_group_tests(tests, NULL, NULL));
}
