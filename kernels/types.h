/* types.h: what every kernel text stands on: integer types, bit casts, storage types, comparisons.
 *
 * One text for C (the emitted CPU kernels, the evaluator, tests) and for CUDA through NVRTC, which
 * has no headers.  INLINE marks a function that is inlined on either side.  Everything is
 * branch-free, so that loops over these functions vectorize.
 */
#ifndef KERNEL_TYPES_H
#define KERNEL_TYPES_H

#ifdef __CUDACC__
#    pragma nv_diag_suppress 177 /* not every kernel uses every function */
#    define INLINE static __device__ __forceinline__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#    include <stdbool.h>
#    include <stddef.h>
#    include <stdint.h>
#    define INLINE static inline
#endif

/* Element types in memory, each a word that instances of hand-written kernels name (T_X = bf16):
 * STORAGE(T) is the C type, FROM(T, x) the f32 value of an element, TO(T, y) the element for a
 * value. A bf16 is stored as the upper half of an f32. */
typedef float f32_t;
typedef uint16_t bf16_t;
typedef int32_t i32_t;
typedef uint8_t u8_t;
#define PASTE_(a, b) a##b
#define PASTE(a, b)  PASTE_(a, b)
#define STORAGE(T)   PASTE(T, _t)
#define FROM(T, x)   PASTE(f32_from_, T)(x)
#define TO(T, y)     PASTE(T, _from_f32)(y)

INLINE uint32_t f32_bits(float x) {
    union {
        float f;
        uint32_t u;
    } v;
    v.f = x;
    return v.u;
}

INLINE float f32_from_bits(uint32_t u) {
    union {
        float f;
        uint32_t u;
    } v;
    v.u = u;
    return v.f;
}

INLINE uint64_t f64_bits(double x) {
    union {
        double f;
        uint64_t u;
    } v;
    v.f = x;
    return v.u;
}

INLINE double f64_from_bits(uint64_t u) {
    union {
        double f;
        uint64_t u;
    } v;
    v.u = u;
    return v.f;
}

INLINE float f32_from_bf16(bf16_t b) {
    return f32_from_bits((uint32_t)b << 16);
}

INLINE float f32_from_f32(float x) {
    return x;
}

/* Round to nearest even; NaN stays NaN (quiet), overflow gives inf. */
INLINE bf16_t bf16_from_f32(float x) {
    const uint32_t u = f32_bits(x);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (bf16_t)(x != x ? (u >> 16) | 0x40u : rounded);
}

/* Storage of a value that is a bf16 value already. */
INLINE bf16_t bf16_exact(float x) {
    return (bf16_t)(f32_bits(x) >> 16);
}

/* The value x has after being stored as bf16. */
INLINE float f32_round_bf16(float x) {
    const uint32_t u = f32_bits(x);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
    return f32_from_bits(x != x ? (u & 0xffff0000u) | 0x400000u : rounded);
}

/* Maximum and minimum in which a NaN wins. */
INLINE float f32_max(float a, float b) {
    return (a > b) | (a != a) ? a : b;
}

INLINE float f32_min(float a, float b) {
    return (a < b) | (a != a) ? a : b;
}

INLINE float f32_abs(float x) {
    return f32_from_bits(f32_bits(x) & 0x7fffffffu);
}

/* Magnitude of x >= 0 with the sign of s. */
INLINE float f32_sign_of(float x, float s) {
    return f32_from_bits(f32_bits(x) | (f32_bits(s) & 0x80000000u));
}

#endif
