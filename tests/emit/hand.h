/* hand.h: instances of hand-written kernels, on the CPU and on the simulated device, random data
 * for them, and comparisons.  Instances are made as custom.c makes them: defines, file, undefs. */
#ifndef TEST_HAND_H
#define TEST_HAND_H

#include <dlfcn.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compiler/dpoc.h"
#include "tests/emit/device.h"

/* ---- instances ------------------------------------------------------------------------------- */

typedef void Function(void *const *, const int64_t *);

static bool cuda; /* which of the two is tested */
static Text source;
static int instances;
static void *library;

/* How custom.c launches each file on CUDA; np pointers, then nn sizes. */
typedef struct Launch {
    const char *file;
    int np, nn, rows_per_block, threads;
} Launch;
static const Launch launches[] = {{"take", 3, 2, 1, 128},          {"put", 3, 2, 1, 128},
                                  {"sort", 3, 1, 1 << 30, 256},    {"attend", 6, 3, 64, 128},
                                  {"attend_delta", 3, 1, 64, 128}, {"attend_dq", 8, 3, 64, 128},
                                  {"attend_dkv", 10, 4, 64, 128},  {"logprob_stats", 8, 1, 1, 256},
                                  {"logprob_grad", 5, 1, 1, 256},  {"dequant", 3, 2, 8, 256}};

static struct {
    Launch launch;
    int grid_y;
} made[200];

static Launch launch_of(const char *file, const char *defines) {
    size_t i = 0;
    while (i < COUNT(launches) && strcmp(launches[i].file, file)) i++;
    assert_true(i < COUNT(launches));
    Launch l = launches[i];
    if (strstr(defines, "NESTED 1")) l.np = 6;
    return l;
}

/* Adds an instance; defines are "NAME value" separated by ';'.  Returns its number. */
static int add_on(int grid_y, const char *file, const char *defines) {
    char path[64], copy[1024];
    snprintf(path, sizeof path, cuda ? "kernels/cuda/%s.cuh" : "kernels/cpu/%s.h", file);
    size_t len;
    const char *body = embedded(path, &len);
    assert_non_null(body);
    text_add(&source, "#define SYMBOL k%d\n#define FN(name) k%d_##name\n", instances, instances);
    snprintf(copy, sizeof copy, "%s", defines);
    for (char *d = strtok(copy, ";"); d; d = strtok(NULL, ";"))
        text_add(&source, "#define %s\n", d);
    text_addn(&source, body, len);
    snprintf(copy, sizeof copy, "%s", defines);
    for (char *d = strtok(copy, ";"); d; d = strtok(NULL, ";"))
        text_add(&source, "#undef %.*s\n", (int)strcspn(d, " "), d);
    text_add(&source, "#undef SYMBOL\n#undef FN\n");
    made[instances].launch = launch_of(file, defines);
    made[instances].grid_y = grid_y;
    return instances++;
}

static int addf(int grid_y, const char *file, const char *format, ...) PRINTF(3, 4);
static int addf(int grid_y, const char *file, const char *format, ...) {
    char defines[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(defines, sizeof defines, format, args);
    va_end(args);
    return add_on(grid_y, file, defines);
}

static void compile_cpu(void) {
    char dir[] = "/tmp/dpoc-kernels-XXXXXX", command[600];
    static const Target cpu = {.name = "cpu"};
    assert_non_null(mkdtemp(dir));
    snprintf(command, sizeof command, "%s/k.c", dir);
    FILE *f = fopen(command, "w");
    assert_non_null(f);
    fprintf(f, "%s%s", emit_prelude(&cpu), source.data);
    fclose(f);
    snprintf(command, sizeof command,
             "cc -std=gnu11 -O3 -march=native -Wall -Wno-unused-function -Werror -ffp-contract=off "
             "-fno-math-errno -fopenmp -shared -fPIC -o %s/k.so %s/k.c",
             dir, dir);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof command, "%s/k.so", dir);
    library = dlopen(command, RTLD_NOW | RTLD_LOCAL);
    snprintf(command, sizeof command, "rm -r %s", dir);
    if (!getenv("KEEP")) assert_int_equal(system(command), 0);
}

static void compile_cuda(void) {
    static const Target sm_80 = {.name = "sm_80", .cuda = true};
    Text text = {0};
    text_add(&text, "%s%s", emit_prelude(&sm_80), source.data);
    assert_true(device_compile(text.data));
    text_free(&text);
}

/* `way`: number of threads, less one; or the order of the device's. */
static void run_way(int instance, void *const *p, const int64_t *n, int way) {
    char symbol[32];
    snprintf(symbol, sizeof symbol, "k%d", instance);
    if (cuda) {
        const Launch *l = &made[instance].launch;
        const int64_t blocks = (n[0] + l->rows_per_block - 1) / l->rows_per_block;
        const int grid[2] = {(int)blocks, made[instance].grid_y};
        if (blocks > 0)
            assert_true(device_launch(symbol, p, l->np, n, l->nn, grid, l->threads, way));
        return;
    }
    Function *f;
    *(void **)&f = dlsym(library, symbol);
    assert_non_null(f);
    omp_set_num_threads(way + 1);
    f(p, n);
}

static inline void run(int instance, void *const *p, const int64_t *n) {
    run_way(instance, p, n, 1);
}

/* ---- data ------------------------------------------------------------------------------------ */

static uint64_t state = 1;
static uint32_t next(void) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 32);
}
static int below(int n) {
    return (int)(next() % (uint32_t)n);
}

typedef struct Tensor { /* in memory of type t, and its values */
    DType t;
    int64_t n;
    void *data;
    double *x;
} Tensor;

static Tensor tensor(DType t, int64_t n) {
    Tensor y = {t, n, room((size_t)n * (size_t)dtype_bytes(t)),
                calloc((size_t)n + 1, sizeof(double))};
    if (!y.data || !y.x) abort();
    return y;
}

static Tensor noise(DType t, int64_t n, double scale) {
    Tensor y = tensor(t, n);
    for (int64_t i = 0; i < n; i++) {
        const double sum = (double)next() + (double)next() + (double)next() - 1.5 * 0x1p32;
        const float x = (float)(sum * 0x1p-31 * scale);
        if (t == DT_bf16)
            ((uint16_t *)y.data)[i] = float_to_bf16(x);
        else
            ((float *)y.data)[i] = x;
        y.x[i] = (double)(t == DT_bf16 ? bf16_to_float(float_to_bf16(x)) : x);
    }
    return y;
}

static double at(const Tensor *y, int64_t i) {
    return (double)(y->t == DT_bf16  ? bf16_to_float(((uint16_t *)y->data)[i])
                    : y->t == DT_f32 ? ((float *)y->data)[i]
                                     : (float)((int32_t *)y->data)[i]);
}

static void drop(Tensor *y) {
    leave(y->data);
    free(y->x);
}

/* y.data against y.x: within `ulps` units of f32 at the largest value (or at `most`, the size of
 * terms that may cancel), and storage's rounding. */
static int differs_at(const char *what, const Tensor *y, double ulps, double most) {
    double worst = 0;
    for (int64_t i = 0; i < y->n; i++) most = fmax(most, fabs(y->x[i]));
    for (int64_t i = 0; i < y->n; i++) worst = fmax(worst, fabs(at(y, i) - y->x[i]));
    bool nan = false;
    for (int64_t i = 0; i < y->n; i++) nan |= isnan(at(y, i));
    const double bound = most * (ulps * 0x1p-24 + (y->t == DT_bf16 ? 0x1p-8 : 0));
    if (worst <= bound && !nan) return 0;
    printf("%s: off by %g, allowed %g%s\n", what, worst, bound, nan ? ", NaN" : "");
    return 1;
}

static inline int differs(const char *what, const Tensor *y, double ulps) {
    return differs_at(what, y, ulps, 0);
}

/* Runs in three ways with poisoned results; 0 if all bits agree. */
static int threads_differ(const char *what, int instance, void *const *p, const int64_t *n,
                          const Tensor *results, int nresults) {
    void *first[4] = {0};
    int bad = 0;
    for (int way = 0; way < 3; way++) {
        for (int i = 0; i < nresults; i++)
            memset(results[i].data, 0xff, (size_t)results[i].n * (size_t)dtype_bytes(results[i].t));
        run_way(instance, p, n, way);
        for (int i = 0; i < nresults; i++) {
            const size_t bytes = (size_t)results[i].n * (size_t)dtype_bytes(results[i].t);
            if (way == 0) {
                first[i] = malloc(bytes + 1);
                memcpy(first[i], results[i].data, bytes);
            } else if (memcmp(first[i], results[i].data, bytes)) {
                printf("%s: result %d depends on the order of work\n", what, i);
                bad++;
            }
        }
    }
    for (int i = 0; i < nresults; i++) free(first[i]);
    return bad;
}

/* ---- both ways ------------------------------------------------------------------------------- */

static void make_instances(void); /* of the test that includes this */

static int make(bool on_cuda) {
    cuda = on_cuda;
    text_free(&source);
    source = (Text){0};
    instances = 0;
    make_instances();
    if (cuda)
        compile_cuda();
    else
        compile_cpu();
    return cuda || library ? 0 : 1;
}

static int make_cpu(void **unused) {
    (void)unused;
    return make(false);
}
static int make_cuda(void **unused) {
    (void)unused;
    return make(true);
}
static int end_cuda(void **unused) {
    (void)unused;
    device_end();
    return 0;
}

/* Runs the tests on the CPU, then on the simulated device; the exit status. */
#define RUN_BOTH(argv, tests)                                                                      \
    (!simulated(argv)                                                                              \
         ? (cmocka_run_group_tests_name("cpu", tests, make_cpu, NULL) ? 1 : no_simulator())        \
         : (cmocka_run_group_tests_name("cpu", tests, make_cpu, NULL) +                            \
            cmocka_run_group_tests_name("cuda, simulated", tests, make_cuda, end_cuda)))

#endif
