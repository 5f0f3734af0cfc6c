/* test_bench.c: compiler/bench*.h.  Figures of statistics against NumPy 2 and SciPy 1.17:
 *   numpy mean, std(ddof=1), median; scipy.stats.binomtest(less, n).pvalue,
 *   quantile_test(ratio, q=0, p=0.5).confidence_interval(0.95), 1 - 2 binom.cdf(k - 1, n, 0.5),
 *   mannwhitneyu(a, b, method="asymptotic").pvalue
 * Figures agree to 1e-12 relative: sums of a few numbers, and lgamma, exp and erfc of libm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "compiler/bench.h"

enum { N = 12 };
static const double a[N] = {12.5, 11.9,  12.1,  12.0,  12.2, 11.8,
                            12.3, 12.05, 12.15, 11.95, 12.0, 40.0};
static const double b[N] = {10.1, 10.4,  10.0,  12.6,  10.2, 10.3,
                            9.9,  10.15, 10.25, 10.05, 12.9, 10.0};

static void near(double x, double expected) {
    if (!(fabs(x - expected) <= 1e-12 * fabs(expected)))
        print_error("%.17g, expected %.17g\n", x, expected);
    assert_true(fabs(x - expected) <= 1e-12 * fabs(expected));
}

static void middles_and_spreads(void **state) {
    Summary s = summary_of(a, N);
    near(s.mean, 14.4125);
    near(s.deviation, 8.06014676721776);
    near(s.median, 12.075);
    near(s.mad, 0.125);
    assert_true(s.min == 11.8 && s.max == 40.0);
    assert_int_equal(s.outliers, 1);
    assert_false(s.slow_start);
    s = summary_of(b, N);
    near(s.mean, 10.570833333333335);
    near(s.deviation, 1.02944343597829);
    near(s.mad, 0.15);
    assert_int_equal(s.outliers, 2);
    s = summary_of((const double[]){40, 12, 12.1, 11.9, 12.2}, 5);
    assert_true(s.slow_start && s.outliers == 1);
    s = summary_of((const double[]){1, 12, 12.1, 11.9, 12.2}, 5); /* a quick one is not slow */
    assert_true(!s.slow_start && s.outliers == 1);
    s = summary_of((const double[]){7}, 1);
    assert_true(s.mean == 7 && s.deviation == 0 && s.median == 7 && s.outliers == 0);
}

static void ratios_are_paired(void **state) {
    Ratio r = paired_ratio(a, b, N);
    near(r.median, 0.8416639177763503);
    near(r.p, 0.03857421875); /* 10 of 12 */
    near(r.low, 0.808);
    near(r.high, 0.8739495798319328);
    near(r.confidence, 0.96142578125); /* the 3rd and the 10th */
    r = paired_ratio(a, a, N);
    assert_true(r.median == 1 && r.p == 1);
}

/* The k-th least and greatest of 1 .. n over ones. */
static void intervals_hold_the_median(void **state) {
    static const struct {
        int n;
        double low, high, confidence;
    } known[] = {{1, 1, 1, 0},
                 {5, 1, 5, 0.9375},
                 {6, 1, 6, 0.96875},
                 {10, 2, 9, 0.978515625},
                 {25, 8, 18, 0.9567147493362427}};
    double one[25], x[25];
    for (int i = 0; i < 25; i++) {
        one[i] = 1;
        x[i] = i + 1;
    }
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++) {
        Ratio r = paired_ratio(one, x, known[i].n);
        assert_true(r.low == known[i].low && r.high == known[i].high);
        if (known[i].confidence > 0) near(r.confidence, known[i].confidence);
    }
}

static void unpaired_samples(void **state) {
    static const double c[] = {3, 1, 4, 1, 5, 9, 2, 6}, d[] = {2, 7, 1, 8, 2, 8, 1, 8, 2, 8};
    near(rank_test(a, N, b, N), 0.004248084049331968);
    near(rank_test(b, N, a, N), 0.004248084049331968);
    near(rank_test(c, 8, d, 10), 0.7180679342556091); /* ties */
    near(rank_test(d, 4, d + 4, 4), rank_test(d + 4, 4, d, 4));
    near(rank_test((const double[]){1, 2, 3, 4}, 4, (const double[]){5, 6, 7, 8}, 4),
         0.03038282197657749);
    assert_true(rank_test(c, 1, c, 1) == 1);
}

/* Only those that must agree are held to it, and all to numbers. */
static void variants_agree(void **state) {
    Entry entry[3] = {
        {.name = "first", .loss = 0.5, .grad_norm = 2, .tolerance = 1e-5},
        {.name = "same", .must_agree = true, .loss = 0.5, .grad_norm = 2, .tolerance = 1e-5},
        {.name = "other", .loss = 0.7, .grad_norm = 9, .loss_apart = 0.4, .grad_apart = NAN}};
    Bench bench = {.entry = entry, .n = 3};
    assert_int_equal(bench_agree(&bench), EXIT_OK);
    entry[1].loss_apart = 2e-5;
    assert_int_equal(bench_agree(&bench), EXIT_NUMERIC);
    entry[1].idle = true; /* was not run */
    assert_int_equal(bench_agree(&bench), EXIT_OK);
    entry[1].idle = false;
    entry[1].loss_apart = 1e-5;
    entry[1].grad_apart = 2e-5;
    assert_int_equal(bench_agree(&bench), EXIT_NUMERIC);
    entry[1].grad_apart = 0;
    entry[2].loss = NAN;
    assert_int_equal(bench_agree(&bench), EXIT_NUMERIC);
    entry[2].loss = 0.7;
    entry[2].unsteady = true;
    assert_int_equal(bench_agree(&bench), EXIT_NUMERIC);
}

/* A ceiling is that of the largest working set that is no larger, or of one beyond. */
static void ceilings(void **state) {
    Rates r = {.flops = 100,
               .bandwidth = 10,
               .level = {{1000, 50}, {4000, 30}, {16000, 35}, {64000, 10}},
               .nlevels = 4};
    near(rates_ceiling(&r, 100), 50);
    near(rates_ceiling(&r, 3999), 50);
    near(rates_ceiling(&r, 4000), 35);
    near(rates_ceiling(&r, 20000), 35);
    near(rates_ceiling(&r, 1e9), 10);
    rates_raise(&r, 70000, 90, 12);
    near(rates_ceiling(&r, 64000), 12);
    near(r.flops, 100);
    rates_raise(&r, 5000, 120, 60);
    near(rates_ceiling(&r, 4000), 60);
    near(rates_ceiling(&r, 16000), 35);
    near(r.flops, 120);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(middles_and_spreads),
        cmocka_unit_test(ratios_are_paired),
        cmocka_unit_test(intervals_hold_the_median),
        cmocka_unit_test(unpaired_samples),
        cmocka_unit_test(variants_agree),
        cmocka_unit_test(ceilings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
