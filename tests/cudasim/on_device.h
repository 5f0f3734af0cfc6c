/* on_device.h: what the tests of the CUDA device share: a plan of small kernels, a device on the
 * simulated driver with an arena, short names for what is done with it.  One test program each. */
#ifndef CUDASIM_ON_DEVICE_H
#define CUDASIM_ON_DEVICE_H

#include "../device/device.h"
#include "simulated.h"

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

static inline Plan *make_plan(void) {
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

static inline bool open_named(const char *name) {
    DeviceOptions options = {.name = name, .cache_dir = cache};
    err = (Err){0};
    dev = device_open(&options, &err);
    ops = dev ? dev->ops : NULL;
    return dev != NULL;
}

static inline void shut(void) {
    if (dev) ops->close(dev);
    dev = NULL;
}

static inline bool ready(void) {
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

static inline int *at(int64_t offset) {
    return (int *)(dev->base + offset);
}

static inline bool launch2(int kernel, int64_t x, int64_t y, int64_t n) {
    void *p[2] = {at(x), y < 0 ? NULL : at(y)};
    return ops->launch(dev, kernel, p, 2, &n, 1, &err);
}

static inline bool launch1(int kernel, int64_t x, int64_t n) {
    void *p[1] = {at(x)};
    return ops->launch(dev, kernel, p, 1, &n, 1, &err);
}

static inline bool put(int64_t offset, int value) { /* ROWS of it */
    int x[ROWS];
    for (int i = 0; i < ROWS; i++) x[i] = value;
    return ops->write(dev, offset, x, sizeof x, &err);
}

/* The value that all ROWS have. */
static inline int get(int64_t offset) {
    int x[ROWS];
    must(ops->read(dev, offset, x, sizeof x, &err));
    for (int i = 1; i < ROWS; i++) assert_int_equal(x[i], x[0]);
    return x[0];
}

/* Places in the arena. */
enum { X = 0, Y = 1 << 16, Z = 2 << 16, W = 3 << 16 };

/* x = 3 x + y beside z = 3 z + x; the join makes w = 3 w + z wait for both.  false: failed */
static inline bool two_queues(void) {
    return launch2(FOLD, X, Y, ROWS) && ops->queue(dev, 1, &err) && launch2(FOLD, Z, X, ROWS) &&
           ops->queue(dev, 0, &err) && launch2(FOLD, Y, Y, ROWS) && ops->join(dev, &err) &&
           launch2(FOLD, W, Z, ROWS) && launch2(FOLD, X, W, ROWS);
}

#endif
