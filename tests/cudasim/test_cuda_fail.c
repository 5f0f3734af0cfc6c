/* When the CUDA device fails (runtime/cuda_fail.c): every function once; what a kernel that writes
 * where nothing is makes it say; that nothing is allocated once a run has begun, and all is given
 * back at its end. */
#include "on_device.h"

#include "runtime/cuda_api.h"

/* What a context with a failure in it still held goes with it; a real driver's goes too.  That a
 * run without one gives everything back is tested by counting. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libcuda.so.1";
}

/* All that a run does, once. */
static bool everything(void) {
    void *work = NULL;
    double seconds;
    int x[ROWS];
    if (!ready() || !put(X, 1) || !put(Y, 1)) return false;
    for (int64_t i = 0; i < 9; i++) { /* around all slots */
        static char big[2 << 20];
        if (!ops->write(dev, 4 << 20, big, sizeof big, &err)) return false;
    }
    for (int i = 0; i < 40; i++)
        if (!launch2(ADD, X, Y, ROWS)) return false;
    return ops->stamp(dev, 0, &err) && launch1(REVERSE, X, ROWS) && ops->stamp(dev, 1, &err) &&
           ops->zero(dev, at(Z), 100, &err) && ops->copy(dev, at(W), at(Z), 100, &err) &&
           ops->sync(dev, &err) && ops->seconds(dev, 0, 1, &seconds, &err) &&
           ops->record(dev, &err) && two_queues() && ops->recorded(dev, &work, &err) &&
           ops->replay(dev, work, &err) && ops->read(dev, X, x, sizeof x, &err) &&
           (ops->forget(dev, work), true);
}

static const struct {
    const char *name, *symbol;
} functions[] = {
#define ROW(field, symbol, older, parameters) {"cu" #field, #symbol},
    CUDA_FUNCTIONS(ROW)
#undef ROW
};

/* Every driver function fails once: a clean message that names it, and the next run works. */
static void every_function_fails_once(void **unused) {
    int found = 0;
    for (size_t i = 0; i < COUNT(functions); i++) {
        const char *function = functions[i].name;
        if (strstr(function, "CtxRelease")) continue; /* the context would stay for good */
        setenv("CUDASIM_FAIL", functions[i].symbol, 1);
        bool done = everything();
        shut();
        unsetenv("CUDASIM_FAIL");
        found += !done;
        /* Not called in a run, called at its end only, or done without. */
        static const char *const none[] = {"GetError",         "Release",    "MemFree",
                                           "ModuleUnload",     "Destroy",    "WriteValue",
                                           "GetDevicePointer", "DeviceTotal"};
        bool without = false;
        for (size_t k = 0; k < COUNT(none); k++) without |= strstr(function, none[k]) != NULL;
        if (strstr(function, "GraphDestroy")) without = false;
        if (done != without)
            fail_msg("%s fails: %s", function, done ? "and nobody minds" : err.text);
        if (done) continue;
        if (err.code != EXIT_DEVICE && err.code != EXIT_MEMORY && err.code != EXIT_BUG)
            fail_msg("%s fails: exit %d", function, err.code);
        if (!strstr(err.text, function) && !strstr(err.text, "out of memory") &&
            !strstr(err.text, "is a stub"))
            fail_msg("%s is not named: %s", function, err.text);
    }
    assert_true(found > 30);
    must(everything());
    int64_t available = 0, total = 0;
    must(ops->memory(dev, &available, &total, &err));
    assert_true(total - available < 2 * ARENA); /* what failed gave back what it had */
    shut();
}

/* NVRTC's functions and cuBLASLt's, at opening and loading; the cache knows no kernel.  (Those that
 * say versions are test_library.c's: a library that says none is passed over for the machine's.) */
static void every_library_function_fails_once(void **unused) {
    static const char *const names[] = {
        "nvrtcCreateProgram", "nvrtcCompileProgram", "nvrtcGetProgramLogSize", "nvrtcGetProgramLog",
        "nvrtcGetCUBINSize",  "nvrtcGetCUBIN",       "cublasLtCreate",         "cublasLtDestroy",
    };
    char *usual = cache;
    for (size_t i = 0; i < COUNT(names); i++) {
        cache = temp_dir();
        setenv("CUDASIM_FAIL", names[i], 1);
        bool done = ready();
        unsetenv("CUDASIM_FAIL");
        shut();
        if (done != (strstr(names[i], "Destroy") != NULL))
            fail_msg("%s fails: %s", names[i], done ? "and nobody minds" : err.text);
        if (!done && err.code != EXIT_DEVICE) fail_msg("%s: exit %d", names[i], err.code);
        if (!done && !strstr(err.text, "nvrtc") && !strstr(err.text, "cublasLt"))
            fail_msg("%s is not named: %s", names[i], err.text);
        must(everything());
        shut();
        remove_dir(cache);
    }
    cache = usual;
}

static const Step steps[] = {
    {.kind = STEP_KERNEL, .kernel = ADD, .label = "bias", .where = "a.dpo:3:1 x"},
    {.kind = STEP_KERNEL, .kernel = WILD, .label = "attention", .where = "a.dpo:7:5 layers.2"},
    {.kind = STEP_KERNEL, .kernel = FOLD, .label = "later", .where = "a.dpo:9:9 y"},
};

/* A kernel that writes where nothing is: which one is found only at the sync; the message names the
 * steps it can have been, and no others. */
static void a_fault_is_found_later(void **unused) {
    setenv("CUDASIM_LAZY", "1", 1);
    must(ready());
    dev->step = &steps[2];
    for (int i = 0; i < 200; i++) must(launch2(FOLD, X, Y, ROWS));
    must(ops->sync(dev, &err)); /* all of these are done */
    dev->step = &steps[0];
    for (int i = 0; i < 56; i++) must(launch2(ADD, X, Y, ROWS)); /* a mark stands at 256 */
    dev->step = &steps[1];
    must(launch1(WILD, X, 0));
    dev->step = NULL;
    assert_false(ops->sync(dev, &err));
    assert_int_equal(err.code, EXIT_BUG);
    says("CUDA_ERROR_ILLEGAL_ADDRESS (700)");
    says("kernel wild (attend), attention, a.dpo:7:5 layers.2");
    says("--safe");
    assert_null(strstr(err.text, "later"));
    assert_null(strstr(err.text, "bias"));
    shut();
    unsetenv("CUDASIM_LAZY");
    must(ready()); /* a new context works; a launch outside of programs is named too */
    assert_false(launch1(WILD, X, 0) && ops->sync(dev, &err));
    says("in this step:\n  kernel wild (attend)");
    shut();
    must(everything());
    shut();
}

/* Who waits after every step (exec.c does) is told of one step. */
static void a_fault_with_sync(void **unused) {
    setenv("DPOC_DEBUG", "sync", 1);
    must(ready());
    for (int i = 0; i < 5; i++) {
        dev->step = &steps[0];
        must(launch2(ADD, X, Y, ROWS) && ops->sync(dev, &err));
    }
    dev->step = &steps[1];
    assert_false(launch1(WILD, X, 0) && ops->sync(dev, &err));
    says("in this step:\n  kernel wild (attend), attention, a.dpo:7:5 layers.2");
    assert_null(strstr(err.text, "bias"));
    shut();
    unsetenv("DPOC_DEBUG");
}

static void a_fault_at_once(void **unused) {
    must(ready());
    dev->step = &steps[1];
    setenv("CUDASIM_FAIL", "cuLaunchKernel:1:701", 1);
    assert_false(launch1(WILD, X, 0));
    unsetenv("CUDASIM_FAIL");
    says("cuLaunchKernel: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (701)");
    says("kernel wild (attend), attention, a.dpo:7:5 layers.2");
    says("--safe");
    shut();
}

/* Calls of the driver while `what` runs: the trace, a function a line (malloc). */
static char *trace(void (*what)(void)) {
    char path[] = "/tmp/dpoc-trace-XXXXXX";
    close(mkstemp(path));
    setenv("CUDASIM_TRACE", path, 1);
    what();
    unsetenv("CUDASIM_TRACE");
    char *calls = file_read(path, NULL, &err);
    unlink(path);
    assert_non_null(calls);
    return calls;
}

static int count(const char *calls, const char *function) {
    int n = 0;
    size_t len = strlen(function);
    for (const char *at = calls; (at = strstr(at, function)); at += len)
        n += (at == calls || at[-1] == '\n') && strchr("\n _", at[len]);
    return n;
}

static void steps_and_writes(void) {
    static char big[9 << 20];
    for (int i = 0; i < 5; i++) must(two_queues() && ops->write(dev, 0, big, sizeof big, &err));
    must(ops->read(dev, 0, big, sizeof big, &err));
}

/* No device or pinned memory once the arena is there. */
static void nothing_is_allocated_later(void **unused) {
    must(ready() && put(X, 1) && put(Y, 1));
    char *calls = trace(steps_and_writes);
    assert_int_equal(count(calls, "cuLaunchKernel"), 25);
    assert_null(strstr(calls, "Alloc"));
    assert_null(strstr(calls, "Create"));
    free(calls);
    shut();
}

static void open_to_close(void) {
    must(everything());
    shut();
}

static void all_is_given_back(void **unused) {
    static const char *const pairs[][2] = {
        {"cuMemAlloc", "cuMemFree"},
        {"cuMemHostAlloc", "cuMemFreeHost"},
        {"cuModuleLoadData", "cuModuleUnload"},
        {"cuStreamCreateWithPriority", "cuStreamDestroy"},
        {"cuEventCreate", "cuEventDestroy"},
        {"cuStreamEndCapture", "cuGraphDestroy"},
        {"cuGraphInstantiateWithFlags", "cuGraphExecDestroy"},
        {"cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"},
        {"cublasLtCreate", "cublasLtDestroy"},
    };
    char *calls = trace(open_to_close);
    for (size_t i = 0; i < COUNT(pairs); i++) {
        assert_true(count(calls, pairs[i][0]) > 0);
        assert_int_equal(count(calls, pairs[i][0]), count(calls, pairs[i][1]));
    }
    free(calls);
}

int main(int argc, char **argv) {
    simulate(argv);
    cache = temp_dir();
    plan = make_plan();
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_function_fails_once),
                                       cmocka_unit_test(every_library_function_fails_once),
                                       cmocka_unit_test(a_fault_is_found_later),
                                       cmocka_unit_test(a_fault_with_sync),
                                       cmocka_unit_test(a_fault_at_once),
                                       cmocka_unit_test(nothing_is_allocated_later),
                                       cmocka_unit_test(all_is_given_back)};
    int bad = cmocka_run_group_tests(tests, NULL, NULL);
    plan_free(plan);
    remove_dir(cache);
    return bad;
}
