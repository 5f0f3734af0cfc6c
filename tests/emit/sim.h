/* sim.h: runs emitted CUDA text on the host, thread by thread, to see what it computes without a
 * GPU.
 *
 * The text is compiled by g++ behind a few definitions and loaded; every CUDA thread is a fiber,
 * switched only at barriers and shuffles, in ascending, descending or random order, so that code
 * which relies on one order shows.  A shuffle waits for all lanes of its mask; a block in which
 * nobody can go on is reported. It says nothing about speed, nor about races between barriers.
 */
#ifndef TEST_SIM_H
#define TEST_SIM_H

#include <dlfcn.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "runtime/base.h"

enum { SIM_THREADS = 1024, SIM_STACK = 32768 };

typedef enum SimOrder { SIM_UP, SIM_DOWN, SIM_RANDOM, NSIMORDER } SimOrder;

typedef struct SimIndex { /* uint3, dim3 */
    unsigned x, y, z;
} SimIndex;

typedef struct SimLane { /* one CUDA thread; its fiber is used again by the next block */
    jmp_buf at;
    bool begun, done;
    int barriers;      /* passed or waited at */
    int shuffles;      /* begun */
    uint32_t value[2]; /* given to the last two of them */
} SimLane;

/* What kernel text sees; the fiber scheduler sets them. */
SimIndex sim_thread, sim_block, sim_block_dim, sim_grid_dim;

static SimLane sim_lane[SIM_THREADS];
static char (*sim_stack)[SIM_STACK];
static int sim_count, sim_current;
static bool sim_moved; /* some fiber went on in this round */
static jmp_buf sim_scheduler;
static void (*sim_call)(void *const *, const long long *);
static void *const *sim_p;
static const long long *sim_n;

/* From a fiber to the scheduler, and back when it is resumed. */
static void sim_yield(void) {
    const int me = sim_current;
    if (_setjmp(sim_lane[me].at) == 0) _longjmp(sim_scheduler, 1);
}

/* __syncthreads: wait until every thread that still runs has come here. */
void sim_sync(void) {
    const int me = sim_current, mine = ++sim_lane[me].barriers;
    for (;;) {
        bool all = true;
        for (int i = 0; i < sim_count; i++) all &= sim_lane[i].barriers >= mine;
        if (all) break;
        sim_yield();
    }
    sim_moved = true;
}

/* Shuffles: the value of lane `source` (of the warp) once all lanes of the mask have given
 * theirs. */
uint32_t sim_shuffle(uint32_t mask, uint32_t value, int source) {
    const int me = sim_current, first = me / 32 * 32, mine = ++sim_lane[me].shuffles;
    sim_lane[me].value[mine & 1] = value;
    for (;;) {
        bool all = mask >> (me % 32) & 1;
        for (int i = 0; i < 32; i++)
            if (mask >> i & 1) all &= first + i < sim_count && sim_lane[first + i].shuffles >= mine;
        if (all) break;
        sim_yield();
    }
    sim_moved = true;
    return sim_lane[first + source].value[mine & 1];
}

static void sim_enter(void) {
    for (;;) {
        sim_call(sim_p, sim_n);
        sim_lane[sim_current].done = true;
        sim_moved = true;
        sim_yield();
    }
}

/* From the scheduler to a fiber, until it yields.  (Contexts only begin fibers: each switch of
 * one is a system call.) */
static __attribute__((noinline)) void sim_resume(int i) {
    sim_current = i;
    sim_thread = (SimIndex){(unsigned)i, 0, 0};
    if (_setjmp(sim_scheduler)) return;
    if (sim_lane[i].begun) _longjmp(sim_lane[i].at, 1);
    sim_lane[i].begun = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = sim_stack[i];
    context.uc_stack.ss_size = SIM_STACK;
    context.uc_link = NULL;
    makecontext(&context, sim_enter, 0);
    setcontext(&context);
}

/* One block; false when no fiber can go on before all are done. */
static bool sim_run_block(SimOrder order, uint64_t *random) {
    int todo[SIM_THREADS];
    for (int i = 0; i < sim_count; i++) {
        SimLane *lane = &sim_lane[i];
        lane->done = false;
        lane->barriers = lane->shuffles = 0;
        todo[i] = order == SIM_DOWN ? sim_count - 1 - i : i;
    }
    for (int left = sim_count; left > 0;) {
        sim_moved = false;
        for (int i = sim_count - 1; order == SIM_RANDOM && i > 0; i--) {
            *random = *random * 6364136223846793005ull + 1442695040888963407ull;
            const int j = (int)((*random >> 33) % (uint64_t)(i + 1)), swap = todo[i];
            todo[i] = todo[j], todo[j] = swap;
        }
        for (int i = 0; i < sim_count; i++) {
            if (sim_lane[todo[i]].done) continue;
            sim_resume(todo[i]);
            left -= sim_lane[todo[i]].done;
        }
        if (!sim_moved && left > 0) return false;
    }
    return true;
}

/* Launches `call` on a grid; false (and a message) when a block hangs. */
static bool sim_launch(void *lib, const char *symbol, void *const *p, const int64_t *n, int nn,
                       const int grid[2], int threads, SimOrder order) {
    char name[128];
    long long sizes[8];
    uint64_t random = 99;
    for (int i = 0; i < nn; i++) sizes[i] = n[i];
    snprintf(name, sizeof name, "call_%s", symbol);
    void *f = dlsym(lib, name);
    if (!f || threads > SIM_THREADS) return false;
    if (!sim_stack) sim_stack = malloc((size_t)SIM_THREADS * SIM_STACK);
    memcpy(&sim_call, &f, sizeof f);
    sim_p = p, sim_n = sizes, sim_count = threads;
    sim_block_dim = (SimIndex){(unsigned)threads, 1, 1};
    sim_grid_dim = (SimIndex){(unsigned)grid[0], (unsigned)grid[1], 1};
    for (int y = 0; y < grid[1]; y++)
        for (int x = 0; x < grid[0]; x++) {
            sim_block = (SimIndex){(unsigned)x, (unsigned)y, 0};
            if (sim_run_block(order, &random)) continue;
            printf("%s: block %d,%d hangs\n", symbol, x, y);
            return false;
        }
    return true;
}

/* CUDA's words for the host's compiler.  Shared memory is static: blocks run one after another. */
static const char sim_prelude[] =
    "#define __CUDACC__ 1\n"
    "#define __global__\n#define __device__\n#define __constant__\n#define __shared__ static\n"
    "#define __forceinline__ inline\n#define __restrict__ __restrict\n"
    "#define __launch_bounds__(...)\n"
    "struct sim_index { unsigned x, y, z; };\n"
    "extern \"C\" { extern sim_index sim_thread, sim_block, sim_block_dim, sim_grid_dim;\n"
    "void sim_sync(); unsigned sim_shuffle(unsigned mask, unsigned value, int source); }\n"
    "#define threadIdx sim_thread\n#define blockIdx sim_block\n"
    "#define blockDim sim_block_dim\n#define gridDim sim_grid_dim\n#define __syncthreads sim_sync\n"
    "static inline float sim_shuffle_f(unsigned mask, float v, int source) {\n"
    "    unsigned u; __builtin_memcpy(&u, &v, 4); u = sim_shuffle(mask, u, source);\n"
    "    __builtin_memcpy(&v, &u, 4); return v; }\n"
    "static inline float __shfl_sync(unsigned m, float v, int from, int width = 32) {\n"
    "    const int l = sim_thread.x % 32; return sim_shuffle_f(m, v, l / width * width + from); }\n"
    "static inline float __shfl_down_sync(unsigned m, float v, int by, int width = 32) {\n"
    "    const int l = sim_thread.x % 32; return sim_shuffle_f(m, v, l % width + by < width ? l + "
    "by : l); }\n"
    "static inline float __shfl_xor_sync(unsigned m, float v, int by) {\n"
    "    return sim_shuffle_f(m, v, (sim_thread.x % 32) ^ by); }\n"
    "static inline unsigned sim_bf16(float x) { unsigned u; __builtin_memcpy(&u, &x, 4);\n"
    "    return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16; }\n"
    "static inline unsigned pack_bf16(float low, float high) {\n"
    "    return sim_bf16(low) | sim_bf16(high) << 16; }\n"
    "static inline unsigned __ballot_sync(unsigned m, int yes) { unsigned votes = 0;\n"
    "    for (int l = 0; l < 32; l++) votes |= (sim_shuffle(m, yes != 0, l) & 1) << l;\n"
    "    return votes; }\n"
    "static inline int __shfl_xor_sync(unsigned m, int v, int by) {\n"
    "    return (int)sim_shuffle(m, (unsigned)v, (sim_thread.x % 32) ^ by); }\n"
    "static inline int __ffs(int a) { return __builtin_ffs(a); }\n"
    "static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }\n"
    "static inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }\n"
    "static inline int atomicMin(int *p, int v) { int old = *p; if (v < old) *p = v; return old; "
    "}\n"
    "struct sim_any { void *p; long long n; template <class T> operator T *() const { return (T "
    "*)p; }\n"
    "    operator long long() const { return n; } };\n"
    "template <int... I> struct sim_list {};\n"
    "template <class... T, int... I> static void sim_apply(void (*f)(T...), sim_list<I...>, int "
    "np,\n"
    "    void *const *p, const long long *n) {\n"
    "    f(sim_any{I < np ? p[I] : 0, I < np ? 0 : n[I - np]}...); }\n"
    "template <class... T> static void sim_spread(void (*f)(T...), int np, void *const *p,\n"
    "    const long long *n) { sim_apply(f, sim_list<__integer_pack(sizeof...(T))...>(), np, p, "
    "n); }\n";

/* The line that lets a kernel with np pointers be called with arrays. */
static void sim_add_call(Text *text, const char *symbol, int np) {
    text_add(text,
             "extern \"C\" void call_%s(void *const *p, const long long *n) {\n"
             "    sim_spread(%s, %d, p, n);\n}\n",
             symbol, symbol, np);
}

/* NULL where g++ is missing or refuses the text. */
static void *sim_compile(const char *text) {
    char dir[] = "/tmp/dpoc-sim-XXXXXX", command[600];
    if (!mkdtemp(dir)) return NULL;
    snprintf(command, sizeof command, "%s/k.cc", dir);
    FILE *f = fopen(command, "w");
    if (!f) return NULL;
    fprintf(f, "%s%s", sim_prelude, text);
    fclose(f);
    snprintf(command, sizeof command,
             "g++ -std=gnu++17 -DCUDASIM -O2 -w -ffp-contract=off -shared -fPIC -o %s/k.so %s/k.cc",
             dir, dir);
    void *lib = NULL;
    if (system(command) == 0) {
        snprintf(command, sizeof command, "%s/k.so", dir);
        lib = dlopen(command, RTLD_NOW | RTLD_LOCAL);
        if (!lib) printf("%s\n", dlerror());
    }
    snprintf(command, sizeof command, "rm -r %s", dir);
    if (!getenv("KEEP") && system(command) != 0) return NULL;
    return lib;
}

#endif
