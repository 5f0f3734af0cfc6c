/* dynamic.h: the 8-bit codes in which the optimizer's moments are kept (`adamw8bit`).
 *
 * bitsandbytes' dynamic map: decades of numbers in (0, 1], each with twice as many as the one
 * below; number k of the P in decade e is the midpoint of two of P + 1 edges from 0.1 to 1, times
 * 10^(e - top), and 1 ends them.  Signed (first moment): codes 0..255 are -0.993 .. 0 (code 127) ..
 * 1, P = 1 .. 64.  Unsigned (second moment): 0 .. 1, P = 2 .. 128.  Edges are torch.linspace's, a
 * fused multiply-add from the nearer end, so the values are those of its tables.
 * One text for C and CUDA.  Relies on types.h.
 */
#ifndef KERNEL_DYNAMIC_H
#define KERNEL_DYNAMIC_H

#include "types.h"

INLINE float dynamic_fma(float a, float b, float c) {
#ifdef __CUDACC__
    return __fmaf_rn(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}

/* Edge i of the items + 1 from 0.1 to 1; items is a power of two. */
INLINE float dynamic_edge(int32_t i, int32_t items) {
    const float step = (1.0f - 0.1f) / (float)items;
    const float up = dynamic_fma(step, (float)i, 0.1f);
    const float down = dynamic_fma(-step, (float)(items - i), 1.0f);
    return i < (items + 1) / 2 ? up : down;
}

/* The numbers of the map in ascending order, from 0 at t = 0: 128 more of them in the signed one,
 * 255 in the unsigned one. */
INLINE float dynamic_step(int32_t t, int32_t is_signed) {
    const int32_t u = is_signed ? t : t + 1, top = is_signed ? 7 : 8;
    const int32_t e = (int32_t)(f32_bits((float)(u > 0 ? u : 1)) >> 23) - 127;
    const int32_t items = 1 << e, k = u - items, below = top - 1 - e;
    const float scale = below <= 0   ? 1.0f
                        : below == 1 ? 1e-1f
                        : below == 2 ? 1e-2f
                        : below == 3 ? 1e-3f
                        : below == 4 ? 1e-4f
                        : below == 5 ? 1e-5f
                                     : 1e-6f;
    const float mean = (dynamic_edge(k, items) + dynamic_edge(k + 1, items)) / 2.0f;
    return t == 0 ? 0.0f : e == top ? 1.0f : scale * mean;
}

/* The number that a code stands for. */
INLINE float dynamic_value(float code, int32_t is_signed) {
    const int32_t t = (int32_t)code - (is_signed ? 127 : 0);
    const float x = dynamic_step(t < 0 ? -t : t, is_signed);
    return t < 0 ? -x : x;
}

/* The code of the nearest number to x, the lower magnitude on a tie; 0 and NaN have 0's.  A
 * negative x keeps its sign: it is never 0, as in bitsandbytes. */
INLINE float dynamic_code(float x, int32_t is_signed) {
    const float y = f32_abs(x);
    const int32_t most = !is_signed ? 255 : x < 0.0f ? 127 : 128;
    int32_t t = 0;
    for (int32_t width = 128; width > 0; width >>= 1) {
        const int32_t next = t + width;
        const float middle =
            (dynamic_step(next - 1, is_signed) + dynamic_step(next, is_signed)) * 0.5f;
        t = (next <= most) & (y > middle) ? next : t;
    }
    t = is_signed & (x < 0.0f) & (t == 0) ? 1 : t;
    return (float)(!is_signed ? t : x < 0.0f ? 127 - t : 127 + t);
}

#endif
