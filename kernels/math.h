/* math.h: our own exp, log, sqrt, sin, cos, tanh, erf, sigmoid, log_sigmoid and pow for f32.
 *
 * One text for C and CUDA, so that both give the same bits: branch-free, no contraction (compile
 * with -ffp-contract=off, --fmad=false), only +, -, *, /, sqrt, comparisons and bit operations,
 * each of which IEEE defines.  Errors measured by tests/emit/test_math.c against double, over the
 * whole range, denormals included: at most 1 ulp for exp, log, sin, cos, pow; 2.5 for the others.
 * Polynomials are minimax fits (Remez) of our own, with coefficients rounded to the working type.
 * Relies on types.h.
 */
#ifndef KERNEL_MATH_H
#define KERNEL_MATH_H

#include "types.h"

#define F32_INF f32_from_bits(0x7f800000u)
#define F32_NAN f32_from_bits(0x7fc00000u)

INLINE float f32_sqrt(float x) {
#ifdef __CUDACC__
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
}

INLINE float f32_rsqrt(float x) {
    return 1.0f / f32_sqrt(x);
}

/* x = n ln 2 + r with |r| <= ln 2 / 2; exp(x) = 2^n exp(r).  Gives exp(r), and n. */
INLINE float f32_exp_part(float x, int32_t *power) {
    const float shifted = x * 0x1.715476p+0f + 0x1.8p23f;
    const float n = shifted - 0x1.8p23f;
    const float hi = x - n * 0x1.62e4p-1f; /* exact: ln 2 in two parts, the first of 15 bits */
    const float lo = n * 0x1.7f7d1cp-20f;
    const float r = hi - lo;
    const float p = 0.166664869f + r * (0.0416655429f + r * (0.00837245397f + r * 0.00140361872f));
    *power = (int32_t)(f32_bits(shifted) - 0x4b400000u);
    return 1.0f + (hi - (lo - r * r * (0.5f + r * p)));
}

/* The power of two is applied in two steps, so that results below the normal range are rounded
 * once. */
INLINE float f32_exp(float x) {
    const float low = x < -104.0f ? -104.0f : x; /* exp is 0 there */
    int32_t k;
    const float e = f32_exp_part(low > 89.0f ? 89.0f : low, &k); /* exp is inf there */
    const int32_t half = k >> 1;
    const float a = f32_from_bits((uint32_t)(half + 127) << 23);
    const float b = f32_from_bits((uint32_t)(k - half + 127) << 23);
    return e * a * b;
}

/* exp(-|x|), the same bits for less: 2^64 times the result is in the normal range. */
INLINE float f32_exp_minus_abs(float x) {
    const float y = -f32_abs(x);
    int32_t k;
    const float e = f32_exp_part(y < -104.0f ? -104.0f : y, &k);
    return e * f32_from_bits((uint32_t)(k + 191) << 23) * 0x1p-64f;
}

/* x = 2^k m, m in [sqrt(1/2), sqrt(2)); log m = f - (f^2/2 - s (f^2/2 + R(s^2))), f = m - 1,
 * s = f / (2 + f), where s (2 + R) is the series of log((1 + s) / (1 - s)). */
INLINE float f32_log(float x) {
    const bool tiny = x < 0x1p-126f;
    const uint32_t u = f32_bits(tiny ? x * 0x1p23f : x);
    const int32_t e = (int32_t)(u - 0x3f3504f3u) >> 23;
    const float k = (float)(e - (tiny ? 23 : 0));
    const float f = f32_from_bits(u - ((uint32_t)e << 23)) - 1.0f;
    const float s = f / (2.0f + f);
    const float z = s * s;
    const float r = z * (0.666666627f + z * (0.400009662f + z * (0.284995526f + z * 0.242574498f)));
    const float h = 0.5f * f * f;
    const float y =
        k * 0x1.62e4p-1f - ((h - (s * (h + r) + k * 0x1.7f7d1cp-20f)) - f); /* ln 2 in two parts */
    const float finite = x == F32_INF ? x : y;
    const float zero = x == 0.0f ? -F32_INF : F32_NAN;
    return x > 0.0f ? finite : zero;
}

/* log(1 + e) for e in [0, 1], accurate for small e. */
INLINE float f32_log1p_unit(float e) {
    const float s = e / (2.0f + e);
    const float z = s * s;
    const float p = 0.220958844f + z * (0.188131556f + z * 0.167623937f);
    return 2.0f * s + s * (z * (0.666666687f + z * (0.399997681f + z * (0.285799563f + z * p))));
}

/* sin(x + quarter * pi/2), in double inside: x = n pi/2 + r with pi/2 in three parts of 31, 31
 * and 53 bits.  Correctly rounded but for rare ties if |x| < 2^21 (positions times frequencies);
 * beyond, the absolute error grows like |x| 2^-53; from 2^40 on x counts as 0, inf and NaN give
 * NaN.  Choices are made on bits: the C compiler would turn conditions into branches here. */
INLINE float f32_sin_quarter(float x, uint64_t quarter) {
    const double d = (double)(f32_abs(x) < 0x1p40f ? x : x - x);
    const double shifted = d * 0x1.45f306dc9c883p-1 + 0x1.8p52;
    const double n = shifted - 0x1.8p52;
    const uint64_t q = f64_bits(shifted) + quarter;
    const double r = ((d - n * 0x1.921fb544p+0) - n * 0x1.0b4611a4p-34) - n * 0x1.13198a2e03707p-65;
    const double z = r * r;
    const double ps = 0x1.71d776af56222p-19 + z * -0x1.a9648ecee862ep-26;
    const double s =
        -0x1.5555555552386p-3 + z * (0x1.1111110c9a3a7p-7 + z * (-0x1.a019f94efb531p-13 + z * ps));
    const double pc = -0x1.27e0259eba986p-22 + z * 0x1.1bc62a55b5009p-29;
    const double c =
        0x1.55555555530b6p-5 + z * (-0x1.6c16c16762181p-10 + z * (0x1.a019fa9fb3f57p-16 + z * pc));
    const double sine = r + r * (z * s);
    const double cosine = 1.0 - (0.5 * z - z * (z * c));
    const uint64_t odd = 0 - (q & 1);
    const uint64_t y = (f64_bits(cosine) & odd) | (f64_bits(sine) & ~odd);
    return (float)f64_from_bits(y ^ ((q & 2) << 62));
}

INLINE float f32_sin(float x) {
    return f32_sin_quarter(x, 0);
}

INLINE float f32_cos(float x) {
    return f32_sin_quarter(x, 1);
}

INLINE float f32_tanh(float x) {
    const float t = f32_abs(x);
    const float z = x * x;
    const float p = 0.021706894f + z * (-0.00819001347f + z * 0.00215268438f);
    const float small =
        x + x * (z * (-0.333333313f + z * (0.133332208f + z * (-0.0539481789f + z * p))));
    const float large = 1.0f - 2.0f / (f32_exp(2.0f * t) + 1.0f);
    return t < 0.625f ? small : f32_sign_of(large, x);
}

/* x (1 + P(x^2)) near 0, else 1 - exp(Q(|x|)) with Q = log(erfc). */
INLINE float f32_erf(float x) {
    const float a = f32_abs(x);
    const float t = a > 4.0f ? 4.0f : a;
    const float z = t * t;
    const float p =
        -0.0268557314f + z * (0.00519240508f + z * (-0.000804976968f + z * 7.99664922e-05f));
    const float small = x + x * (0.128379166f + z * (-0.376126289f + z * (0.112836257f + z * p)));
    const float q =
        0.0237620473f + t * (-0.00364246778f + t * (0.000322815235f + t * -1.12340731e-05f));
    const float e = t * (-0.12864849f + t * (-0.635151327f + t * (-0.106236853f + t * q))) - t;
    return t < 0.92f ? small : f32_sign_of(1.0f - f32_exp(e), x);
}

INLINE float f32_sigmoid(float x) {
    const float e = f32_exp_minus_abs(x);
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* min(x, 0) - log(1 + exp(-|x|)) */
INLINE float f32_log_sigmoid(float x) {
    const float low = x > 0.0f ? 0.0f : x;
    return low - f32_log1p_unit(f32_exp_minus_abs(x));
}

/* log2 x for finite x > 0, in double. */
INLINE double f64_log2(double x) {
    const uint64_t u = f64_bits(x);
    const uint64_t e = (uint64_t)((int64_t)(u - 0x3fe6a09e667f3bcdu) >> 52);
    const double f = f64_from_bits(u - (e << 52)) - 1.0;
    const double s = f / (2.0 + f);
    const double z = s * s;
    const double p6 = 0x1.0f4a485a50c83p-3 + z * 0x1.100a8ef16c9c5p-3;
    const double p4 = 0x1.745cd95cc8aedp-3 + z * (0x1.3b217e913ad02p-3 + z * p6);
    const double p2 = 0x1.249249241df77p-2 + z * (0x1.c71c7268905d0p-3 + z * p4);
    const double p = 0x1.5555555555555p-1 + z * (0x1.9999999999eaap-2 + z * p2);
    const double k = f64_from_bits(0x4338000000000000u + e) - 0x1.8p52; /* e as a double */
    return k + (2.0 * s + s * (z * p)) * 0x1.71547652b82fep+0;
}

/* 2^x for |x| < 1000, in double, relative error 2^-38. */
INLINE double f64_exp2(double x) {
    const double shifted = x + 0x1.8p52;
    const double r = x - (shifted - 0x1.8p52);
    const double p7 = 0x1.639652560bd1bp-20 + r * 0x1.864e4af88ab63p-22;
    const double p5 = 0x1.4308d8cb83e7bp-13 + r * (0x1.fad5f77452f8cp-17 + r * p7);
    const double p3 = 0x1.3b2ab705a8a26p-7 + r * (0x1.5d89dcfba724dp-10 + r * p5);
    const double p1 = 0x1.ebfbdff82b24ap-3 + r * (0x1.c6b08c6529928p-5 + r * p3);
    const double p = 1.0 + r * (0x1.62e42feff4266p-1 + r * p1);
    return p * f64_from_bits((f64_bits(shifted) + 1023u) << 52);
}

/* x^y for x >= 0 as 2^(y log2 x), in double inside; x^0 = 1; x < 0 gives NaN.  For objectives:
 * loops over it do not vectorize. */
INLINE float f32_pow(float x, float y) {
    const float low = x == 0.0f ? -F32_INF : F32_NAN;
    const float special = x == F32_INF ? x : low; /* log2 x where x is not a finite number > 0 */
    const bool finite = (x > 0.0f) & (x < F32_INF);
    const double w = (double)y * (finite ? f64_log2((double)x) : (double)special);
    const double above = w < -200.0 ? -200.0 : w;
    const double z = f64_exp2(above > 200.0 ? 200.0 : above);
    return y == 0.0f ? 1.0f : (float)z;
}

#endif
