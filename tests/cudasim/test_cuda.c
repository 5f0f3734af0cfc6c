/* The CUDA device (runtime/cuda*.c) on the simulated driver: opening and what stands in its way,
 * memory, launches, order within and between queues, times, recorded work, what failures say. */
#include "../device/device.h"
#include "simulated.h"

#include "runtime/cuda_api.h"

enum { ROWS = 1000, SHARED = 100 << 10 };

/* ---- kernels --------------------------------------------------------------------------------- */

enum { ADD, FOLD, REVERSE, OFTEN, WILD, NKERNELS };

static Kernel kernels[NKERNELS] = {
    [ADD] = {.symbol = "add",
             .kind = "map",
             .text = "extern \"C\" __global__ void add(int *x, const int *y, long long n) {\n"
                     "    long long i = blockIdx.x * 64ll + threadIdx.x;\n"
                     "    if (i < n) x[i] += y ? y[i] : 1;\n}\n"},
    /* shows in which order it ran: x = 3 x + y */
    [FOLD] = {.symbol = "fold",
              .kind = "map",
              .text = "extern \"C\" __global__ void fold(int *x, const int *y, long long n) {\n"
                      "    long long i = blockIdx.x * 64ll + threadIdx.x;\n"
                      "    if (i < n) x[i] = 3 * x[i] + y[i];\n}\n"},
    /* one block, through dynamic shared memory */
    [REVERSE] = {.symbol = "reverse",
                 .kind = "rows",
                 .text = "extern \"C\" __global__ void reverse(int *x, long long n) {\n"
                         "    extern __shared__ int all[];\n"
                         "    for (long long i = threadIdx.x; i < n; i += 64) all[i] = x[i];\n"
                         "    __syncthreads();\n"
                         "    for (long long i = threadIdx.x; i < n; i += 64)\n"
                         "        x[i] = all[n - 1 - i];\n}\n",
                 .rows_per_block = 1 << 30,
                 .shared_bytes = SHARED},
    /* counts the blocks that ran */
    [OFTEN] = {.symbol = "often",
               .kind = "sum_rows",
               .text = "extern \"C\" __global__ void often(int *x, long long n) {\n"
                       "    if (!threadIdx.x) x[blockIdx.y * gridDim.x + blockIdx.x] = n + 1;\n}\n",
               .grid_y = 3},
    [WILD] = {.symbol = "wild",
              .kind = "attend",
              .text = "extern \"C\" __global__ void wild(int *x, long long n) {\n"
                      "    if (!threadIdx.x) x[(1ll << 38) + n] = 1;\n}\n"},
};

static Plan *make_plan(void) {
    Plan *plan = plan_new();
    plan->device = "sm_80";
    plan->prelude = "";
    plan->kernels = NEW_ARRAY(plan->arena, Kernel, NKERNELS);
    plan->nkernels = NKERNELS;
    for (int i = 0; i < NKERNELS; i++) {
        Kernel *k = &plan->kernels[i];
        *k = kernels[i];
        k->threads = 64;
        if (!k->rows_per_block) k->rows_per_block = 64;
        if (!k->grid_y) k->grid_y = 1;
    }
    return plan;
}

/* ---- a device with its plan and an arena ----------------------------------------------------- */

#define ARENA (INT64_C(32) << 20)

static char *cache;
static Plan *plan;
static Device *dev;
static const DeviceOps *ops;
static Err err;

static bool open_named(const char *name) {
    DeviceOptions options = {.name = name, .cache_dir = cache};
    err = (Err){0};
    dev = device_open(&options, &err);
    ops = dev ? dev->ops : NULL;
    return dev != NULL;
}

static void shut(void) {
    if (dev) ops->close(dev);
    dev = NULL;
}

static bool ready(void) {
    return open_named("cuda") && ops->load(dev, plan, &err) && ops->alloc(dev, ARENA, &err);
}

#define must(call)                                                                                 \
    do {                                                                                           \
        if (!(call)) fail_msg("%s: exit %d: %s", #call, err.code, err.text);                       \
    } while (0)
#define says(part)                                                                                 \
    do {                                                                                           \
        if (!strstr(err.text, part)) fail_msg("no \"%s\" in: %s", part, err.text);                 \
    } while (0)

static int *at(int64_t offset) {
    return (int *)(dev->base + offset);
}

static bool launch2(int kernel, int64_t x, int64_t y, int64_t n) {
    void *p[2] = {at(x), y < 0 ? NULL : at(y)};
    return ops->launch(dev, kernel, p, 2, &n, 1, &err);
}

static bool launch1(int kernel, int64_t x, int64_t n) {
    void *p[1] = {at(x)};
    return ops->launch(dev, kernel, p, 1, &n, 1, &err);
}

static bool put(int64_t offset, int value) { /* ROWS of it */
    int x[ROWS];
    for (int i = 0; i < ROWS; i++) x[i] = value;
    return ops->write(dev, offset, x, sizeof x, &err);
}

/* The value that all ROWS have. */
static int get(int64_t offset) {
    int x[ROWS];
    must(ops->read(dev, offset, x, sizeof x, &err));
    for (int i = 1; i < ROWS; i++) assert_int_equal(x[i], x[0]);
    return x[0];
}

/* Places in the arena. */
enum { X = 0, Y = 1 << 16, Z = 2 << 16, W = 3 << 16 };

/* ---- opening --------------------------------------------------------------------------------- */

static void opens(void **unused) {
    must(open_named("cuda"));
    assert_int_equal(dev->arch, 80);
    assert_non_null(strstr(dev->description, "cuda: Simulated A100, sm_80, "));
    assert_non_null(strstr(dev->description, " GiB free of 80.0, driver 13.0, NVRTC 13."));
    assert_non_null(strstr(dev->description, ", cuBLASLt 13."));
    int64_t available = 0, total = 0;
    must(ops->memory(dev, &available, &total, &err));
    assert_true(total == INT64_C(80) << 30 && available > 0 && available <= total);
    shut();
    must(open_named("auto"));
    assert_string_equal(ops->name, "cuda");
    shut();
    must(open_named("cuda:0"));
    shut();
}

static void what_stands_in_its_way(void **unused) {
    static const struct {
        const char *set, *to, *name;
        int code;
        const char *text, *also;
    } ways[] = {
        {"CUDASIM_DEVICES", "0", "cuda", EXIT_DEVICE, "the NVIDIA driver sees no GPU",
         "nvidia-smi"},
        {"CUDA_VISIBLE_DEVICES", "-1", "cuda", EXIT_DEVICE,
         "the NVIDIA driver sees no GPU: CUDA_VISIBLE_DEVICES=-1", "--device=cpu"},
        {"CUDASIM_SM", "75", "cuda", EXIT_DEVICE, "Simulated T4 has compute capability 7.5", "8.0"},
        {"CUDASIM_DRIVER", "11080", "cuda", EXIT_DEVICE, "is a driver for CUDA 11.8", "update"},
        {"CUDASIM_DRIVER", "12040", "cuda", EXIT_DEVICE,
         "13.0 is newer than the driver, which is for CUDA 12.4", "nvidia-cuda-nvrtc-cu12"},
        {"CUDASIM_FAIL", "cuInit:1:803", "cuda", EXIT_DEVICE, "of different versions", "restart"},
        {"CUDASIM_FAIL", "cuInit:1:999", "cuda", EXIT_DEVICE, "cuInit: CUDA_ERROR_UNKNOWN (999)",
         "unknown error"},
        {"CUDASIM_SM", "80", "cuda:1", EXIT_DEVICE, "--device=cuda:1: there is 1 GPU", "cuda:0"},
        {"CUDASIM_SM", "80", "cuda:x", EXIT_USAGE, "--device=cuda:x", "cuda:0"},
        {"CUDASIM_SM", "80", "cuda:", EXIT_USAGE, "--device=cuda:", "cuda:0"},
    };
    for (size_t i = 0; i < COUNT(ways); i++) {
        setenv(ways[i].set, ways[i].to, 1);
        bool opened = open_named(ways[i].name);
        unsetenv(ways[i].set);
        assert_false(opened);
        assert_int_equal(err.code, ways[i].code);
        says(ways[i].text);
        says(ways[i].also);
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void memory(void **unused) {
    must(ready());
    char *all = malloc((size_t)ARENA), *back = malloc((size_t)ARENA);
    must(ops->read(dev, 0, all, ARENA, &err));
    for (int64_t i = 0; i < ARENA; i++)
        if (all[i]) fail_msg("byte %lld is not zero", (long long)i);
    assert_false(ops->alloc(dev, 4096, &err)); /* one arena */
    /* More than all slots of pinned memory, in pieces of odd sizes. */
    for (int64_t i = 0; i < ARENA; i++) all[i] = (char)(i * 7 + i / 4099);
    for (int64_t i = 0, n = 1; i < ARENA; i += n, n = n * 3 % 4000037 + 1) {
        if (n > ARENA - i) n = ARENA - i;
        must(ops->write(dev, i, all + i, n, &err));
    }
    must(ops->read(dev, 0, back, ARENA, &err));
    assert_memory_equal(all, back, ARENA);
    must(ops->zero(dev, dev->base + 1000, 5000, &err));
    must(ops->copy(dev, dev->base + 20000, dev->base + 3, 1000, &err));
    must(ops->read(dev, 0, back, 40000, &err));
    memset(all + 1000, 0, 5000);
    memcpy(all + 20000, all + 3, 1000);
    assert_memory_equal(all, back, 40000);
    free(all);
    free(back);
    shut();
}

static void out_of_memory(void **unused) {
    must(open_named("cuda"));
    assert_false(ops->alloc(dev, INT64_C(100) << 30, &err));
    assert_int_equal(err.code, EXIT_MEMORY);
    says("the arena of 100.0 GiB cannot be had on Simulated A100: ");
    says("of 80.0 GiB are free");
    says("--memory=");
    shut();
}

/* ---- launches -------------------------------------------------------------------------------- */

static void launches(void **unused) {
    must(ready());
    must(put(X, 40) && put(Y, 2));
    must(launch2(ADD, X, Y, ROWS)); /* x += y */
    assert_int_equal(get(X), 42);
    must(launch2(ADD, X, -1, ROWS)); /* a null pointer: x += 1 */
    assert_int_equal(get(X), 43);
    int x[ROWS], y[ROWS];
    for (int i = 0; i < ROWS; i++) x[i] = i;
    must(ops->write(dev, X, x, sizeof x, &err));
    must(launch1(REVERSE, X, ROWS)); /* 100 KiB of dynamic shared memory */
    must(ops->read(dev, X, y, sizeof y, &err));
    for (int i = 0; i < ROWS; i++) assert_int_equal(y[i], ROWS - 1 - i);
    /* ceil(130 / 64) x 3 blocks; without rows one block a column all the same */
    static const struct {
        int64_t n;
        int blocks;
    } grids[] = {{130, 9}, {128, 6}, {1, 3}, {0, 3}};
    for (size_t i = 0; i < COUNT(grids); i++) {
        must(ops->zero(dev, at(X), sizeof x, &err) && launch1(OFTEN, X, grids[i].n));
        must(ops->read(dev, X, x, sizeof x, &err));
        for (int j = 0; j < 20; j++)
            assert_int_equal(x[j], j < grids[i].blocks ? grids[i].n + 1 : 0);
    }
    shut();
}

static void loading(void **unused) {
    Plan *other = make_plan();
    must(open_named("cuda"));
    other->device = "sm_90";
    assert_false(ops->load(dev, other, &err));
    assert_int_equal(err.code, EXIT_DEVICE);
    says("the plan was made for sm_90 and cannot run on Simulated A100 (sm_80)");
    shut();
    must(open_named("cuda"));
    other->device = "sm_80";
    other->kernels[REVERSE].shared_bytes = 200 << 10;
    assert_false(ops->load(dev, other, &err));
    assert_int_equal(err.code, EXIT_BUG);
    says("kernel reverse (rows) wants 204800 bytes of shared memory");
    shut();
    setenv("CUDASIM_SM", "90", 1); /* a plan for sm_80 runs on sm_90 */
    must(ready() && put(X, 1) && launch2(ADD, X, -1, ROWS));
    assert_int_equal(get(X), 2);
    shut();
    unsetenv("CUDASIM_SM");
    plan_free(other);
}

/* ---- order ----------------------------------------------------------------------------------- */

static const char *const lazy[] = {"0", "1", "random:1", "random:2", "random:3", "random:4"};

/* Writes keep their order with kernels, though their memory comes back later. */
static void writes_in_order(void **unused) {
    for (size_t i = 0; i < COUNT(lazy); i++) {
        setenv("CUDASIM_LAZY", lazy[i], 1);
        must(ready() && put(X, 0));
        int expect = 0;
        for (int k = 0; k < 20; k++) {
            must(put(Y, k) && launch2(FOLD, X, Y, ROWS));
            expect = (int)(3u * (unsigned)expect + (unsigned)k);
        }
        assert_int_equal(get(X), expect);
        shut();
    }
    unsetenv("CUDASIM_LAZY");
}

/* x = 3 x + y beside z = 3 z + x; the join makes w = 3 w + z wait for both.  false: failed */
static bool two_queues(void) {
    return launch2(FOLD, X, Y, ROWS) && ops->queue(dev, 1, &err) && launch2(FOLD, Z, X, ROWS) &&
           ops->queue(dev, 0, &err) && launch2(FOLD, Y, Y, ROWS) && ops->join(dev, &err) &&
           launch2(FOLD, W, Z, ROWS) && launch2(FOLD, X, W, ROWS);
}

static void expect_two_queues(int times) {
    unsigned x = 1, y = 2, z = 3, w = 4;
    for (int i = 0; i < times; i++) {
        x = 3 * x + y, z = 3 * z + x, y = 4 * y;
        w = 3 * w + z, x = 3 * x + w;
    }
    assert_int_equal(get(X), (int)x);
    assert_int_equal(get(Y), (int)y);
    assert_int_equal(get(Z), (int)z);
    assert_int_equal(get(W), (int)w);
}

static void queues(void **unused) {
    for (size_t i = 0; i < COUNT(lazy); i++) {
        setenv("CUDASIM_LAZY", lazy[i], 1);
        must(ready() && put(X, 1) && put(Y, 2) && put(Z, 3) && put(W, 4));
        must(ops->join(dev, &err)); /* nothing to wait for */
        must(two_queues() && two_queues() && two_queues());
        expect_two_queues(3);
        shut();
    }
    unsetenv("CUDASIM_LAZY");
}

static void recorded(void **unused) {
    for (size_t i = 0; i < COUNT(lazy); i++) {
        setenv("CUDASIM_LAZY", lazy[i], 1);
        void *work = NULL;
        must(ready() && put(X, 1) && put(Y, 2) && put(Z, 3) && put(W, 4));
        must(ops->queue(dev, 1, &err) && ops->queue(dev, 0, &err)); /* something to join before */
        must(ops->record(dev, &err) && two_queues() && two_queues());
        Err misuse = {0};
        assert_false(ops->sync(dev, &misuse) || ops->write(dev, 0, "", 1, &misuse) ||
                     ops->stamp(dev, 0, &misuse));
        assert_int_equal(misuse.code, EXIT_BUG);
        must(ops->recorded(dev, &work, &err));
        expect_two_queues(0); /* noted, not done */
        must(ops->replay(dev, work, &err) && ops->replay(dev, work, &err));
        expect_two_queues(4);
        must(two_queues()); /* beside it, as before */
        must(ops->replay(dev, work, &err));
        expect_two_queues(7);
        ops->forget(dev, work);
        shut();
    }
    unsetenv("CUDASIM_LAZY");
}

static void times(void **unused) {
    must(ready());
    double all = -1, part = -1;
    must(ops->stamp(dev, 0, &err) && launch2(ADD, X, -1, ROWS) &&
         ops->stamp(dev, STAMPS - 1, &err));
    must(launch2(ADD, X, -1, ROWS) && ops->stamp(dev, 7, &err) && ops->sync(dev, &err));
    must(ops->seconds(dev, 0, 7, &all, &err) && ops->seconds(dev, 0, STAMPS - 1, &part, &err));
    assert_true(part > 0 && all >= part && all < 10);
    shut();
}

/* ---- failures -------------------------------------------------------------------------------- */

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
        "nvrtcCreateProgram",  "nvrtcCompileProgram", "nvrtcGetProgramLogSize",
        "nvrtcGetProgramLog",  "nvrtcGetCUBINSize",   "nvrtcGetCUBIN",
        "nvrtcDestroyProgram", "cublasLtCreate",      "cublasLtDestroy",
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(opens),
                                       cmocka_unit_test(what_stands_in_its_way),
                                       cmocka_unit_test(memory),
                                       cmocka_unit_test(out_of_memory),
                                       cmocka_unit_test(launches),
                                       cmocka_unit_test(loading),
                                       cmocka_unit_test(writes_in_order),
                                       cmocka_unit_test(queues),
                                       cmocka_unit_test(recorded),
                                       cmocka_unit_test(times),
                                       cmocka_unit_test(every_function_fails_once),
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
