/* test_math: kernels/math.h against libm in double over dense and random f32 inputs, and
 * kernels/random.h against the published answers of Philox 4x32-7.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "kernels/math.h"
#include "kernels/random.h"

/* Every STRIDE-th of the 2^32 bit patterns: odd, so all exponents and low bits occur. */
#define STRIDE 2003u

typedef struct Worst {
    double ulp;
    float x;
} Worst;

/* |y - ref| in units of the last place of ref as f32; infinite when one is special and not the
 * other. */
static double ulps(float y, double ref) {
    if (isnan(ref) || isnan(y)) return isnan(ref) && isnan(y) ? 0 : INFINITY;
    const float r = (float)ref;
    if (isinf(r) || isinf(y)) return r == y ? 0 : INFINITY;
    int e;
    frexp(ref, &e);
    return fabs((double)y - ref) / ldexp(1, e < -125 ? -149 : e - 24);
}

static Worst sweep(float (*f)(float), double (*ref)(double), float limit) {
    Worst w = {0, 0};
    for (uint64_t u = 0; u < 1ull << 32; u += STRIDE) {
        const float x = f32_from_bits((uint32_t)u);
        if (fabsf(x) > limit) continue;
        const double e = ulps(f(x), ref((double)x));
        if (e > w.ulp) w = (Worst){e, x};
    }
    return w;
}

static double ref_rsqrt(double x) {
    return 1 / sqrt(x);
}
static double ref_sigmoid(double x) {
    return 1 / (1 + exp(-x));
}
static double ref_log_sigmoid(double x) {
    return (x < 0 ? x : 0) - log1p(exp(-fabs(x)));
}

static void test_accuracy(void **state) {
    (void)state;
    static const struct {
        const char *name;
        float (*f)(float);
        double (*ref)(double);
        double bound; /* ulps */
        float limit;  /* largest |x| */
    } row[] = {
        {"exp", f32_exp, exp, 1, INFINITY},
        {"log", f32_log, log, 1, INFINITY},
        {"sqrt", f32_sqrt, sqrt, 0.5, INFINITY},
        {"rsqrt", f32_rsqrt, ref_rsqrt, 1.5, INFINITY},
        {"sin", f32_sin, sin, 0.51, 2097152},
        {"cos", f32_cos, cos, 0.51, 2097152},
        {"tanh", f32_tanh, tanh, 2, INFINITY},
        {"erf", f32_erf, erf, 2, INFINITY},
        {"sigmoid", f32_sigmoid, ref_sigmoid, 2.5, INFINITY},
        {"log_sigmoid", f32_log_sigmoid, ref_log_sigmoid, 2.5, INFINITY},
    };
    int bad = 0;
    for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++) {
        const Worst w = sweep(row[i].f, row[i].ref, row[i].limit);
        printf("%-12s %.3f ulp at %a (%g)\n", row[i].name, w.ulp, (double)w.x, (double)w.x);
        bad += !(w.ulp <= row[i].bound);
    }
    assert_int_equal(bad, 0);
}

static void test_specials(void **state) {
    (void)state;
    const float inf = INFINITY;
    assert_true(f32_exp(inf) == inf && f32_exp(-inf) == 0 && isnan(f32_exp(NAN)));
    assert_true(f32_log(0.0f) == -inf && f32_log(-0.0f) == -inf && f32_log(inf) == inf);
    assert_true(isnan(f32_log(-1)) && isnan(f32_log(NAN)) && f32_log(1) == 0);
    assert_true(isnan(f32_sin(inf)) && isnan(f32_cos(-inf)) && isnan(f32_sin(NAN)));
    assert_true(f32_sin(-0.0f) == 0 && f32_cos(0) == 1);
    assert_true(f32_tanh(inf) == 1 && f32_tanh(-inf) == -1 && isnan(f32_tanh(NAN)));
    assert_true(f32_erf(inf) == 1 && f32_erf(-inf) == -1 && isnan(f32_erf(NAN)));
    assert_true(f32_sigmoid(inf) == 1 && f32_sigmoid(-inf) == 0 && isnan(f32_sigmoid(NAN)));
    assert_true(f32_log_sigmoid(inf) == 0 && f32_log_sigmoid(-inf) == -inf);
    assert_true(isnan(f32_log_sigmoid(NAN)));
    assert_true(f32_pow(0, 2) == 0 && f32_pow(0, -1) == inf && f32_pow(0, 0) == 1);
    assert_true(f32_pow(inf, 2) == inf && f32_pow(inf, -2) == 0 && isnan(f32_pow(-1, 0.5f)));
    assert_true(isnan(f32_max(NAN, 1)) && isnan(f32_max(1, NAN)) && f32_max(-inf, 3) == 3);
    assert_true(isnan(f32_min(NAN, 1)) && isnan(f32_min(1, NAN)) && f32_min(inf, 3) == 3);
}

/* Large angles: the absolute error stays below |x| 2^-52 + 2^-24. */
static void test_sin_large(void **state) {
    (void)state;
    for (float x = 2097152; x < 1e11f; x *= 1.0009765f) {
        const double bound = (double)x * 0x1p-52 + 0x1p-24;
        assert_true(fabs((double)f32_sin(x) - sin((double)x)) <= bound);
        assert_true(fabs((double)f32_cos(-x) - cos((double)x)) <= bound);
    }
}

static uint32_t next(uint64_t *s) {
    *s = *s * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*s >> 32);
}

static void test_pow(void **state) {
    (void)state;
    uint64_t s = 1;
    double worst = 0;
    for (int i = 0; i < 2000000; i++) {
        const float x = f32_from_bits(next(&s) & 0x7fffffffu);
        const float y = ((float)next(&s) * 0x1p-32f - 0.5f) * (i % 2 ? 4.0f : 200.0f);
        if (isnan(x)) continue;
        const double e = ulps(f32_pow(x, y), pow((double)x, (double)y));
        if (e > worst) worst = e;
    }
    printf("pow          %.3f ulp\n", worst);
    assert_true(worst <= 0.51);
}

static void test_bf16(void **state) {
    (void)state;
    for (uint64_t u = 0; u < 1ull << 32; u += STRIDE) {
        const float x = f32_from_bits((uint32_t)u);
        const float y = f32_from_bf16(bf16_from_f32(x));
        assert_true(isnan(x) ? isnan(y) && isnan(f32_round_bf16(x)) : y == f32_round_bf16(x));
        if (isnan(x) || isinf(x) || isinf(y)) continue;
        /* nearest: no neighbour of y is closer, and on a tie y is even */
        const uint32_t b = f32_bits(y) >> 16;
        const double d = fabs((double)x - (double)y);
        const double up = (double)f32_from_bits((b + 1) << 16) - (double)x;
        if (isfinite(up)) assert_true(d < fabs(up) || (d == fabs(up) && b % 2 == 0));
        if ((b & 0x7fff) == 0) continue;
        const double down = (double)f32_from_bits((b - 1) << 16) - (double)x;
        assert_true(d < fabs(down) || (d == fabs(down) && b % 2 == 0));
    }
}

/* exp(-|x|) has the bits of exp, down to where both are 0. */
static void test_exp_minus_abs(void **state) {
    (void)state;
    for (uint32_t u = 0; u < 0x7f800000u; u += u < 0x42d20000u && u > 0x3f000000u ? 997 : 99991) {
        const float x = f32_from_bits(u);
        assert_int_equal(f32_bits(f32_exp_minus_abs(x)), f32_bits(f32_exp(-x)));
        assert_int_equal(f32_bits(f32_exp_minus_abs(-x)), f32_bits(f32_exp(-x)));
    }
    assert_true(f32_exp_minus_abs(F32_INF) == 0 && isnan(f32_exp_minus_abs(F32_NAN)));
}

/* Known answers of the authors' Random123 library (kat_vectors, "philox4x32 7"). */
static void test_philox(void **state) {
    (void)state;
    static const uint32_t kat[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x5207ddc2,
         0x45165e59, 0x4d8ee751, 0x8c52f662},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0x4dfccaba,
         0x190a87f0, 0xc47362ba, 0xb6b5242a},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t c[4] = {kat[i][0], kat[i][1], kat[i][2], kat[i][3]};
        philox_7(c, kat[i][4], kat[i][5]);
        for (int j = 0; j < 4; j++) assert_int_equal(c[j], kat[i][6 + j]);
    }
}

/* Mean, variance and correlation with each neighbour of the key, within 5 standard errors. */
static void test_uniform(void **state) {
    (void)state;
    enum { N = 200000 };
    double sum = 0, square = 0, along[3] = {0};
    for (int i = 0; i < N; i++) {
        const double u = (double)random_uniform(7, i, 42, 1, 3, 5);
        const double v[3] = {(double)random_uniform(7, i, 42, 1, 3, 6),
                             (double)random_uniform(7, i, 42, 2, 3, 5),
                             (double)random_uniform(7, i, 42, 1, 4, 5)};
        assert_true(u >= 0 && u < 1);
        sum += u;
        square += u * u;
        for (int k = 0; k < 3; k++) along[k] += (u - 0.5) * (v[k] - 0.5);
    }
    assert_true(fabs(sum / N - 0.5) < 5 * sqrt(1.0 / 12 / N));
    assert_true(fabs(square / N - 1.0 / 3) < 5 * sqrt(4.0 / 45 / N));
    for (int k = 0; k < 3; k++) assert_true(fabs(along[k] / N) < 5 / 12.0 / sqrt(N));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy),  cmocka_unit_test(test_specials),
        cmocka_unit_test(test_sin_large), cmocka_unit_test(test_pow),
        cmocka_unit_test(test_bf16),      cmocka_unit_test(test_philox),
        cmocka_unit_test(test_uniform),   cmocka_unit_test(test_exp_minus_abs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
