/* shim.h: CUDA's words for the host's C++ compiler.  libnvrtc (nvrtc.cpp) puts abi.h and this
 * before the text of a program, and after it a table of its kernels; like the real one it offers
 * no header.  Relies on abi.h.
 *
 * A CUDA thread runs until it meets __syncthreads or something a warp does together; both call the
 * scheduler.  threadIdx and the like are variables that it sets.
 */
#define __CUDACC__           1
#define __CUDACC_RTC__       1
#define __device__
#define __host__
#define __constant__
#define __forceinline__      inline __attribute__((always_inline))
#define __noinline__         __attribute__((noinline))
#define __restrict__         __restrict
#define __align__(n)         __attribute__((aligned(n)))
#define __grid_constant__
#define __global__           CUDASIM_GLOBAL /* these three are words for nvrtc.cpp */
#define __shared__           CUDASIM_SHARED
#define __launch_bounds__(...) CUDASIM_BOUNDS(__VA_ARGS__)

typedef unsigned long size_t;
typedef CudasimIndex uint3;

extern "C" {
__attribute__((visibility("hidden"))) CudasimState cudasim_state;
int printf(const char *format, ...);
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
float sqrtf(float), fabsf(float), fmaxf(float, float), fminf(float, float), floorf(float);
float ceilf(float), truncf(float), rintf(float), roundf(float), fmaf(float, float, float);
float expf(float), exp2f(float), logf(float), log2f(float), sinf(float), cosf(float);
float tanhf(float), powf(float, float), copysignf(float, float), ldexpf(float, int);
double sqrt(double), fabs(double), floor(double), ceil(double), rint(double), exp(double);
double log(double), pow(double, double), fma(double, double, double);
}

#define threadIdx (*(const CudasimIndex *)&cudasim_state.thread)
#define blockIdx  (*(const CudasimIndex *)&cudasim_state.block)
#define blockDim  (*(const CudasimIndex *)&cudasim_state.block_dim)
#define gridDim   (*(const CudasimIndex *)&cudasim_state.grid_dim)
#define warpSize  32

/* ---- for this file and ptx.h ----------------------------------------------------------------- */

static inline unsigned cudasim_thread() {
    return cudasim_state.number;
}
static inline unsigned cudasim_lane() {
    return cudasim_thread() % 32;
}
/* All lanes of the mask bring *mine; `together` is called once with all of it. */
static inline void cudasim_warp(unsigned mask, CudasimTogether *together, void *mine) {
    cudasim_state.services->warp(cudasim_state.worker, mask, together, mine);
}
static inline void cudasim_copy_later(void *to, const void *from, unsigned bytes, unsigned room) {
    cudasim_state.services->copy_later(cudasim_state.worker, to, from, bytes, room);
}
static inline void cudasim_copy_commit() {
    cudasim_state.services->copy_commit(cudasim_state.worker);
}
static inline void cudasim_copy_wait(int groups) {
    cudasim_state.services->copy_wait(cudasim_state.worker, groups);
}
/* Whether these bytes are all in the block's shared memory. */
static inline bool cudasim_is_shared(const void *p, unsigned bytes) {
    return cudasim_state.services->is_shared(cudasim_state.worker, p, bytes);
}
/* Ends the launch with CUDA error `code` (716: misaligned, 719: failed). */
[[noreturn]] static inline void cudasim_fault(int code, const char *text) {
    cudasim_state.services->fault(cudasim_state.worker, code, text);
    __builtin_unreachable();
}

/* What -fsanitize=alignment,bounds calls. */
struct CudasimPlace {
    const char *file;
    unsigned line, column;
};
extern "C" {
int snprintf(char *to, size_t n, const char *format, ...);
#define CUDASIM_TRAP(name, code, what)                                                             \
    __attribute__((visibility("hidden"), noinline, cold)) void name(void *data, void *value) {     \
        const CudasimPlace *place = (const CudasimPlace *)data;                                    \
        char text[200];                                                                            \
        snprintf(text, sizeof text, what, place->file, place->line, value);                        \
        cudasim_fault(code, text);                                                                 \
    }
CUDASIM_TRAP(__ubsan_handle_type_mismatch_v1, 716, "%s:%u: misaligned address %p")
CUDASIM_TRAP(__ubsan_handle_out_of_bounds, 700, "%s:%u: index %ld is outside the array")
}
#undef CUDASIM_TRAP

/* ---- barriers and warps ---------------------------------------------------------------------- */

#define __syncthreads() cudasim_state.services->barrier(cudasim_state.worker, __LINE__)

static void cudasim_nothing(void *const *, unsigned) {
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    cudasim_warp(mask, cudasim_nothing, 0);
}

template <class T> struct CudasimShuffle {
    T value, result;
    int from; /* lane of the warp */
};
template <class T>
__attribute__((no_sanitize("undefined"))) static void cudasim_shuffle_all(void *const *lane,
                                                                          unsigned mask) {
    auto *const *all = (CudasimShuffle<T> *const *)lane;
    if (mask == 0xffffffffu) /* as usual, with less to do */
        for (int l = 0; l < 32; l++) all[l]->result = all[all[l]->from]->value;
    else
        for (unsigned left = mask; left; left &= left - 1) {
            auto *mine = all[__builtin_ctz(left)];
            if (!(mask >> mine->from & 1))
                cudasim_fault(719, "a shuffle reads a lane that is not in its mask");
            mine->result = all[mine->from]->value;
        }
}
template <class T> static inline T cudasim_shuffle(unsigned mask, T value, int from) {
    CudasimShuffle<T> mine = {value, value, from};
    cudasim_warp(mask, cudasim_shuffle_all<T>, &mine);
    return mine.result;
}
template <class T> static inline T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
    const int lane = cudasim_lane();
    return cudasim_shuffle(mask, v, (lane & -width) + (from & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32) {
    const int lane = cudasim_lane(), from = lane ^ by;
    return cudasim_shuffle(mask, v, from < (lane & -width) + width ? from : lane);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = cudasim_lane();
    return cudasim_shuffle(mask, v, (lane & (width - 1)) + (int)by < width ? lane + by : lane);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = cudasim_lane();
    return cudasim_shuffle(mask, v, (lane & (width - 1)) >= (int)by ? lane - (int)by : lane);
}

struct CudasimVote {
    unsigned yes, result;
};
static void cudasim_vote_all(void *const *lane, unsigned mask) {
    unsigned votes = 0;
    for (unsigned left = mask; left; left &= left - 1) {
        const int l = __builtin_ctz(left);
        votes |= (unsigned)((CudasimVote *)lane[l])->yes << l;
    }
    for (unsigned left = mask; left; left &= left - 1)
        ((CudasimVote *)lane[__builtin_ctz(left)])->result = votes;
}
static inline unsigned __ballot_sync(unsigned mask, int yes) {
    CudasimVote mine = {yes != 0, 0};
    cudasim_warp(mask, cudasim_vote_all, &mine);
    return mine.result;
}
static inline int __any_sync(unsigned mask, int yes) {
    return __ballot_sync(mask, yes) != 0;
}
static inline int __all_sync(unsigned mask, int yes) {
    return __ballot_sync(mask, yes) == mask;
}
static inline unsigned __activemask() {
    return cudasim_state.services->active(cudasim_state.worker);
}
#define __syncthreads_or(yes)    cudasim_block_vote(yes, 0, __LINE__)
#define __syncthreads_and(yes)   (cudasim_block_vote(!(yes), 0, __LINE__) == 0)
#define __threadfence()          __sync_synchronize()
#define __threadfence_block()    __sync_synchronize()
__shared__ int cudasim_votes __attribute__((used)); /* keeps the section there */
static inline int cudasim_block_vote(int yes, int, int line) {
    const CudasimServices *s = cudasim_state.services;
    if (cudasim_thread() == 0) cudasim_votes = 0;
    s->barrier(cudasim_state.worker, line);
    if (yes) cudasim_votes = 1;
    s->barrier(cudasim_state.worker, line);
    const int any = cudasim_votes;
    s->barrier(cudasim_state.worker, line);
    return any;
}

/* ---- atomics of integers, as blocks run on several threads of the host ----------------------- */

template <class T, class U> static inline T atomicAdd(T *p, U v) {
    static_assert((T)0.5 == (T)0, "no float atomics: their order would show");
    return __atomic_fetch_add(p, (T)v, __ATOMIC_RELAXED);
}
template <class T, class U> static inline T atomicExch(T *p, U v) {
    return __atomic_exchange_n(p, (T)v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicCAS(T *p, T expected, T v) {
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <class T, class U> static inline T atomicMin(T *p, U v) {
    T old = *p;
    while ((T)v < old && !__atomic_compare_exchange_n(p, &old, (T)v, false, 0, 0)) {}
    return old;
}
template <class T, class U> static inline T atomicMax(T *p, U v) {
    T old = *p;
    while (old < (T)v && !__atomic_compare_exchange_n(p, &old, (T)v, false, 0, 0)) {}
    return old;
}
template <class T, class U> static inline T atomicOr(T *p, U v) {
    return __atomic_fetch_or(p, (T)v, __ATOMIC_RELAXED);
}
template <class T, class U> static inline T atomicAnd(T *p, U v) {
    return __atomic_fetch_and(p, (T)v, __ATOMIC_RELAXED);
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

template <class T> static inline T __ldg(const T *p) {
    return *p;
}
#define CUDASIM_BITS(name, To, From)                                                               \
    static inline To name(From x) {                                                                \
        To y;                                                                                      \
        memcpy(&y, &x, sizeof y);                                                                  \
        return y;                                                                                  \
    }
CUDASIM_BITS(__float_as_uint, unsigned, float)
CUDASIM_BITS(__float_as_int, int, float)
CUDASIM_BITS(__uint_as_float, float, unsigned)
CUDASIM_BITS(__int_as_float, float, int)
CUDASIM_BITS(__double_as_longlong, long long, double)
CUDASIM_BITS(__longlong_as_double, double, long long)
#undef CUDASIM_BITS

static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
static inline float __frsqrt_rn(float a) { return (float)(1.0 / __builtin_sqrt((double)a)); }
static inline float rsqrtf(float a) { return 1.0f / __builtin_sqrtf(a); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __expf(float a) { return expf(a); }
static inline float __logf(float a) { return logf(a); }
static inline int __float2int_rn(float a) { return (int)__builtin_rintf(a); }
static inline int __popc(unsigned a) { return __builtin_popcount(a); }
static inline int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }
static inline int __ffs(int a) { return __builtin_ffs(a); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
static inline float min(float a, float b) { return __builtin_fminf(a, b); }
static inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
static inline long long min(long long a, int b) { return a < b ? a : b; }
static inline long long min(int a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, int b) { return a > b ? a : b; }
static inline long long max(int a, long long b) { return a > b ? a : b; }

#define CUDASIM_VECTOR(T, name)                                                                    \
    struct alignas(2 * sizeof(T)) name##2 {                                                        \
        T x, y;                                                                                    \
    };                                                                                             \
    struct alignas(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) name##4 {                                   \
        T x, y, z, w;                                                                              \
    };                                                                                             \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                              \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDASIM_VECTOR(signed char, char)
CUDASIM_VECTOR(unsigned char, uchar)
CUDASIM_VECTOR(short, short)
CUDASIM_VECTOR(unsigned short, ushort)
CUDASIM_VECTOR(int, int)
CUDASIM_VECTOR(unsigned, uint)
CUDASIM_VECTOR(long long, longlong)
CUDASIM_VECTOR(float, float)
CUDASIM_VECTOR(double, double)
#undef CUDASIM_VECTOR
struct dim3 {
    unsigned x, y, z;
};

/* ---- the table of kernels -------------------------------------------------------------------- */

template <class T> struct CudasimPointer {
    static const bool is = false;
};
template <class T> struct CudasimPointer<T *> {
    static const bool is = true;
};
template <class T> struct CudasimPointer<T *__restrict> {
    static const bool is = true;
};
template <auto f> struct CudasimEntry;
template <class... T, void (*f)(T...)> struct CudasimEntry<f> {
    static inline const int bytes[sizeof...(T) + 1] = {(int)sizeof(T)..., 0};
    static inline const bool pointer[sizeof...(T) + 1] = {CudasimPointer<T>::is..., false};
    static const int count = sizeof...(T);
    template <class U> static U take(const char *&at) {
        at = (const char *)(((size_t)at + alignof(U) - 1) & -alignof(U));
        U u;
        memcpy(&u, at, sizeof u);
        at += sizeof u;
        return u;
    }
    template <int... I> struct List {};
    struct Call { /* braces evaluate from left to right */
        Call(T... a) {
            f(a...);
        }
    };
    static void call(const char *at) {
        Call{take<T>(at)...};
    }
};
template <auto f> static constexpr CudasimKernel cudasim_kernel(const char *name, int max_threads) {
    typedef CudasimEntry<f> Entry;
    return {name, Entry::call, Entry::bytes, Entry::pointer, Entry::count, max_threads};
}
