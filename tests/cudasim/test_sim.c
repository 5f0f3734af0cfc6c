/* test_sim: kernels that break a rule are caught, in every order of threads where that is promised,
 * with words that say where; right ones beside them give what they must. */
#include "driver.h"

const char kernels[] = K(typedef long long i64;)
    /* one after another: what a thread reads, its neighbour wrote */
    K(extern "C" __global__ void neighbours(int *y) {
        __shared__ int room[256];
        room[threadIdx.x] = threadIdx.x;
        __syncthreads();
        y[blockIdx.x * 256 + threadIdx.x] = room[255 - threadIdx.x];
    }) K(extern "C" __global__ void no_barrier(int *y) {
        __shared__ int room[256];
        room[threadIdx.x] = threadIdx.x;
        y[threadIdx.x] = room[255 - threadIdx.x];
    }) "extern \"C\" __global__ void two_barriers(int *y) {\n"
       "    if (threadIdx.x < 32) __syncthreads();\n"
       "    else __syncthreads();\n    y[threadIdx.x] = 1;\n}\n" K(
           extern "C" __global__ void leaves_early(int *y) {
               if (threadIdx.x == 5) return;
               __syncthreads();
               y[threadIdx.x] = 1;
           }) K(extern "C" __global__ void half_a_barrier(int *y) {
           if (threadIdx.x < 32)
               __syncthreads();
           else
               __syncwarp(0xffffffffu >> (threadIdx.x == 40 ? 1 : 0));
           y[threadIdx.x] = 1;
       }) K(extern "C" __global__ void absent_lane(int *y) {
           int v = threadIdx.x;
           if (threadIdx.x % 32 != 7) v = __shfl_xor_sync(0xffffffffu, v, 1);
           y[threadIdx.x] = v;
       }) K(extern "C" __global__ void unnamed_lane(int *y) {
           int v = threadIdx.x;
           if (threadIdx.x % 32 < 16) v = __shfl_sync(0xffffu, v, 20);
           y[threadIdx.x] = v;
       }) K(extern "C" __global__ void writes_at(int *y, i64 at) {
           if (blockIdx.x == 1 && threadIdx.x == 3) y[at] = 1;
       }) K(extern "C" __global__ void reads_shared(int *y, int at) {
           extern __shared__ int room[];
           if (threadIdx.x == 9) y[0] = room[at];
       }) K(extern "C" __global__ void reads_array(int *y, int at) {
           __shared__ int room[16];
           __shared__ int other[64];
           room[threadIdx.x % 16] = 0;
           other[threadIdx.x % 64] = 0;
           y[threadIdx.x] = room[at];
       }) K(extern "C" __global__ void pair_at(const char *x, float *y) {
           float4 v = *(const float4 *)x;
           *y = v.x;
       }) K(extern "C" __global__ void leave_shared(int *y) {
           __shared__ int room[32];
           extern __shared__ int more[];
           room[threadIdx.x] = more[threadIdx.x] = 1;
           __syncwarp();
           y[threadIdx.x] = room[31 - threadIdx.x] + more[31 - threadIdx.x];
       }) K(extern "C" __global__ void stale_shared(int *y) {
           __shared__ int room[32];
           extern __shared__ int more[];
           y[threadIdx.x] = room[threadIdx.x] & more[threadIdx.x];
           room[threadIdx.x] = more[threadIdx.x] = 1;
       }) "extern \"C\" __global__ void late(const int *x, int *y, int commit, int left) {\n"
          "    __shared__ __align__(16) int room[32 * 4];\n"
          "    room[threadIdx.x * 4] = 77;\n"
          "    cp_async_16(shared_address(room + threadIdx.x * 4), x + threadIdx.x * 4, true);\n"
          "    if (commit) cp_async_commit();\n"
          "    if (left == 0) { cp_async_wait(0); }\n    if (left == 1) { cp_async_wait(1); }\n"
          "    __syncthreads();\n"
          "    y[threadIdx.x] = room[(31 - threadIdx.x) * 4];\n}\n" K(
              extern "C" __global__ void __launch_bounds__(64, 2) bounded(int *y) { *y = 1; })
              K(__device__ __noinline__ int deep(int n, volatile int *p) {
                  volatile int here[256];
                  here[n % 256] = *p;
                  return n > 0 ? deep(n - 1, p) + here[n % 256] : 0;
              }) K(extern "C" __global__ void stack(int *y, int n) { y[threadIdx.x] = deep(n, y); })
                  K(extern "C" __global__ void divides(int *y, int by) { *y = 7 / by; })
                      K(extern "C" __global__ void warps(int *y) {
                          const int t = threadIdx.x;
                          int *z = y + t * 8;
                          const unsigned all = 0xffffffffu;
                          z[0] = __shfl_sync(all, t, 3, 8);
                          z[1] = __shfl_xor_sync(all, t, 5);
                          z[2] = __shfl_down_sync(all, t, 3, 16);
                          z[3] = __shfl_up_sync(all, t, 2);
                          z[4] = (int)__ballot_sync(all, t % 3 == 0);
                          z[5] = __any_sync(all, t == 40);
                          z[6] = __all_sync(all, t != 40);
                          z[7] = (int)(__shfl_xor_sync(0xffffu << (t & 16), (i64)t << 33, 1) >> 33);
                      });

/* ---- barriers, warps, shared memory ---------------------------------------------------------- */

static void test_barriers(void **unused) {
    (void)unused;
    int got[1024], wrong = 0;
    for (size_t o = 0; o < COUNT(orders); o++) {
        setenv("CUDASIM_ORDER", orders[o], 1);
        CuPointer y = memory(sizeof got);
        OK(launch("neighbours", 4, 256, 0, stream, ARGS(&y)));
        get(y, got, 1024);
        for (int i = 0; i < 1024; i++) assert_int_equal(got[i], 255 - i % 256);
        OK(launch("no_barrier", 1, 256, 0, stream, ARGS(&y)));
        get(y, got, 256);
        for (int i = 0; i < 256; i++) wrong += got[i] != 255 - i;
        faults(719, "two_barriers, block (0,0,0), thread (", "two_barriers", 1, 64, 0, ARGS(&y));
    }
    assert_true(wrong > 0);
}

static void test_threads_missing(void **unused) {
    (void)unused;
    const struct {
        const char *name, *words;
        unsigned threads;
    } cases[] = {{"leaves_early", "__syncthreads", 64},
                 {"half_a_barrier", "half_a_barrier, block (0,0,0), thread (", 64},
                 {"absent_lane", "absent_lane, block (0,0,0), thread (", 64},
                 {"unnamed_lane", "a lane that is not in its mask", 64},
                 {"warps", "of its warp 0000ffff are there", 16}};
    for (size_t o = 0; o < COUNT(orders); o++)
        for (size_t i = 0; i < COUNT(cases); i++) {
            setenv("CUDASIM_ORDER", orders[o], 1);
            CuPointer y = memory(4096);
            faults(719, cases[i].words, cases[i].name, 1, cases[i].threads, 0, ARGS(&y));
        }
}

static void test_warps(void **unused) {
    (void)unused;
    int got[64 * 8];
    for (size_t o = 0; o < COUNT(orders); o++) {
        setenv("CUDASIM_ORDER", orders[o], 1);
        CuPointer y = memory(sizeof got);
        OK(launch("warps", 1, 64, 0, stream, ARGS(&y)));
        get(y, got, COUNT(got));
        for (int t = 0; t < 64; t++) {
            unsigned ballot = 0;
            for (int l = 0; l < 32; l++) ballot |= (unsigned)((t / 32 * 32 + l) % 3 == 0) << l;
            const int want[8] = {t / 8 * 8 + 3,
                                 t ^ 5,
                                 t % 16 + 3 < 16 ? t + 3 : t,
                                 t % 32 >= 2 ? t - 2 : t,
                                 (int)ballot,
                                 t >= 32,
                                 t < 32,
                                 t ^ 1};
            assert_memory_equal(&got[t * 8], want, sizeof want);
        }
    }
}

static void test_shared(void **unused) {
    (void)unused;
    int got[32], at = 256;
    CuPointer y = memory(4096);
    faults(700, "reads byte 1024 of dynamic shared memory, which has 1024", "reads_shared", 1, 32,
           1024, ARGS(&y, &at));
    y = memory(4096), at = 16;
    faults(700, "index 16 is outside the array", "reads_array", 1, 64, 0, ARGS(&y, &at));
    y = memory(4096);
    for (int i = 0; i < 2; i++) { /* the second finds nothing that the first left */
        OK(launch("leave_shared", 3, 32, 128, stream, ARGS(&y)));
        OK(launch("stale_shared", 3, 32, 128, stream, ARGS(&y)));
        get(y, got, 32);
        for (int t = 0; t < 32; t++) assert_int_equal(got[t], -1);
    }
}

static void test_copies_later(void **unused) {
    (void)unused;
    int from[128], got[32];
    for (int i = 0; i < 128; i++) from[i] = i;
    for (int commit = 0; commit < 2; commit++)
        for (int left = 0; left < 3; left++) {
            CuPointer x = memory(sizeof from), y = memory(sizeof got);
            OK(cu.MemcpyHtoDAsync(x, from, sizeof from, stream));
            OK(launch("late", 1, 32, 0, stream, ARGS(&x, &y, &commit, &left)));
            get(y, got, 32);
            const bool there = commit && left == 0; /* else neither the old value nor the new */
            for (int t = 0; t < 32; t++) assert_int_equal(got[t], there ? (31 - t) * 4 : -1);
        }
    CuPointer x = memory(1024), y = memory(1024), odd = x + 4;
    int commit = 1, left = 0;
    faults(716, "misaligned", "late", 1, 32, 0, ARGS(&odd, &y, &commit, &left));
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void test_global(void **unused) {
    (void)unused;
    int64_t at = 1000;
    CuPointer y = memory(4000), x;
    faults(700, "writes_at, block (1,0,0), thread (3,0,0): writes to", "writes_at", 2, 32, 0,
           ARGS(&y, &(int64_t){1024}));
    y = memory(4000);
    faults(700, "96 bytes after the end of the allocation of 4000", "writes_at", 2, 32, 0,
           ARGS(&y, &(int64_t){1024}));
    y = memory(3 * MIB);
    faults(700, "the allocation of 3145728 bytes", "writes_at", 2, 32, 0,
           ARGS(&y, &(int64_t){3 * MIB / 4}));
    y = memory(4096);
    faults(700, "writes to", "writes_at", 2, 32, 0, ARGS(&y, &(int64_t){-1}));
    y = memory(4000);
    OK(cu.MemFree(y));
    faults(700, "writes to", "writes_at", 2, 32, 0, ARGS(&y, &(int64_t){0}));
    y = 0;
    faults(700, "a null pointer", "writes_at", 2, 32, 0, ARGS(&y, &(int64_t){0}));
    int host = 0, *p = &host;
    faults(700, "argument 0 is a pointer to memory of the host", "writes_at", 2, 32, 0,
           ARGS(&p, &at));
    x = memory(4096), y = memory(4096), x += 4;
    faults(716, "misaligned address", "pair_at", 1, 1, 0, ARGS(&x, &y));
}

static void test_threads(void **unused) {
    (void)unused;
    int got[1024], n = 30, zero = 0;
    CuPointer y = memory(sizeof got);
    OK(launch("stack", 1, 1024, 0, stream, ARGS(&y, &n))); /* 30 KiB each */
    get(y, got, 1024);
    assert_int_not_equal(got[1023], -1);
    n = 80;
    faults(700, "more than 64 KiB of stack", "stack", 1, 64, 0, ARGS(&y, &n));
    y = memory(4096);
    faults(719, "divided by zero", "divides", 1, 1, 0, ARGS(&y, &zero));
}

/* Many blocks on several workers: each block once, each with shared memory of its own. */
static void test_workers(void **unused) {
    (void)unused;
    const char *const workers[] = {"1", "2", "5"};
    static int got[300 * 256];
    for (size_t w = 0; w < COUNT(workers); w++)
        for (size_t o = 0; o < COUNT(orders); o++) {
            setenv("CUDASIM_WORKERS", workers[w], 1);
            setenv("CUDASIM_ORDER", orders[o], 1);
            CuPointer y = memory(sizeof got);
            OK(launch("neighbours", 300, 256, 0, stream, ARGS(&y)));
            get(y, got, COUNT(got));
            for (size_t i = 0; i < COUNT(got); i++) assert_int_equal(got[i], 255 - i % 256);
            OK(cu.MemFree(y));
        }
    unsetenv("CUDASIM_WORKERS");
}

int main(int argc, char **argv) {
    (void)argc;
    start(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_barriers, again),
        cmocka_unit_test_teardown(test_threads_missing, again),
        cmocka_unit_test_teardown(test_warps, again),
        cmocka_unit_test_teardown(test_shared, again),
        cmocka_unit_test_teardown(test_copies_later, again),
        cmocka_unit_test_teardown(test_global, again),
        cmocka_unit_test_teardown(test_threads, again),
        cmocka_unit_test_teardown(test_workers, again),
    };
    return finish(cmocka_run_group_tests(tests, NULL, NULL));
}
