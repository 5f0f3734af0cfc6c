/* test_svd.c: leading singular triplets of matrices made from known ones, A = U S V' with U and V
 * products of Householder reflections in double: values, vectors up to sign, the same bits on any
 * number of threads.
 *
 * Tolerances: A is rounded to f32, which moves a singular value by at most |E| <= 2^-24 sqrt(rank
 * of A) s[0], and vectors by that over the gap to the next value; A's products add sums of at most
 * 256 f32 terms, 2^-24 sqrt(256) of the largest.  Together 20 * 2^-24 s[0], and a factor 4 for the
 * tail.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/svd.h"

static const double tolerance = 4 * 20 * 0x1p-24;

static double sample(int64_t i, int64_t salt) {
    uint64_t x = (uint64_t)i * 0x9e3779b97f4a7c15u + (uint64_t)salt * 0xd1b54a32d192ed03u + 1;
    x = (x ^ x >> 31) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    return (double)(x >> 12) * 0x1p-51 - 1;
}

/* Columns of an orthogonal matrix: three reflections of the identity's, [n, k]. */
static double *orthogonal(int64_t n, int64_t k, int64_t salt) {
    double *q = calloc((size_t)(n * k), sizeof *q), *h = malloc(sizeof *h * (size_t)n);
    for (int64_t i = 0; i < k; i++) q[i * k + i] = 1;
    for (int round = 0; round < 3; round++) {
        double norm = 0;
        for (int64_t i = 0; i < n; i++) {
            h[i] = sample(i, salt + round);
            norm += h[i] * h[i];
        }
        for (int64_t c = 0; c < k; c++) {
            double along = 0;
            for (int64_t i = 0; i < n; i++) along += h[i] * q[i * k + c];
            for (int64_t i = 0; i < n; i++) q[i * k + c] -= 2 * along / norm * h[i];
        }
    }
    free(h);
    return q;
}

typedef struct Known { /* A = U S V' */
    int64_t rows, cols, n;
    double *u, *v, *s;
    float *a;
} Known;

static Known known(int64_t rows, int64_t cols, double ratio) {
    Known x = {.rows = rows, .cols = cols, .n = rows < cols ? rows : cols};
    x.u = orthogonal(rows, x.n, 1);
    x.v = orthogonal(cols, x.n, 11);
    x.s = malloc(sizeof *x.s * (size_t)x.n);
    x.a = malloc(sizeof *x.a * (size_t)(rows * cols));
    for (int64_t i = 0; i < x.n; i++) x.s[i] = 3 * pow(ratio, (double)i);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            double sum = 0;
            for (int64_t i = 0; i < x.n; i++) sum += x.u[r * x.n + i] * x.s[i] * x.v[c * x.n + i];
            x.a[r * cols + c] = (float)sum;
        }
    return x;
}

static void known_free(Known *x) {
    free(x->u);
    free(x->v);
    free(x->s);
    free(x->a);
}

typedef struct Found {
    float *u, *s, *v;
} Found;

static Found find(const Known *x, int rank) {
    Err err = {0};
    Found f = {malloc(sizeof(float) * (size_t)(x->rows * rank)),
               malloc(sizeof(float) * (size_t)rank),
               malloc(sizeof(float) * (size_t)(x->cols * rank))};
    assert_true(svd_leading(x->a, x->rows, x->cols, rank, f.u, f.s, f.v, &err));
    return f;
}

static void found_free(Found *f) {
    free(f->u);
    free(f->s);
    free(f->v);
}

static void check(int64_t rows, int64_t cols, int rank, double ratio) {
    Known x = known(rows, cols, ratio);
    Found f = find(&x, rank);
    for (int i = 0; i < rank; i++) {
        assert_true(fabs((double)f.s[i] - x.s[i]) <= tolerance * x.s[0]);
        double gap = x.s[i] * (1 - ratio), along = 0;
        for (int64_t r = 0; r < rows; r++) along += (double)f.u[r * rank + i] * x.u[r * x.n + i];
        double sign = along < 0 ? -1 : 1, off = 0;
        for (int64_t r = 0; r < rows; r++)
            off = fmax(off, fabs(sign * (double)f.u[r * rank + i] - x.u[r * x.n + i]));
        for (int64_t c = 0; c < cols; c++)
            off = fmax(off, fabs(sign * (double)f.v[i * cols + c] - x.v[c * x.n + i]));
        assert_true(off <= tolerance * x.s[0] / gap);
    }
    found_free(&f);
    known_free(&x);
}

static void triplets_are_those_it_was_made_of(void **state) {
    (void)state;
    check(40, 40, 4, 0.8);
    check(300, 70, 8, 0.8);
    check(70, 300, 8, 0.8);
    check(513, 129, 1, 0.9);
    check(5, 9, 5, 0.5); /* all there are */
    check(1, 7, 1, 0.5);
}

/* Values beyond A's rank are 0, and nothing is NaN. */
static void few_directions(void **state) {
    (void)state;
    float a[6 * 5], u[6 * 4], s[4], v[4 * 5];
    Err err = {0};
    for (int i = 0; i < 30; i++) a[i] = (float)(i / 5 + 1) * (float)(i % 5 + 1);
    assert_true(svd_leading(a, 6, 5, 4, u, s, v, &err));
    assert_true(fabsf(s[0] - sqrtf(91 * 55)) < 1e-4f && s[1] < 1e-3f && s[3] < 1e-3f);
    for (int i = 0; i < 24; i++) assert_true(isfinite(u[i]));
    memset(a, 0, sizeof a);
    assert_true(svd_leading(a, 6, 5, 4, u, s, v, &err));
    for (int i = 0; i < 4; i++) assert_true(s[i] == 0);
    for (int i = 0; i < 24; i++) assert_true(isfinite(u[i]));
}

static void threads_change_no_bit(void **state) {
    (void)state;
    Known x = known(333, 101, 0.9);
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    Found one = find(&x, 6);
    omp_set_num_threads(3);
    Found three = find(&x, 6);
    omp_set_num_threads(threads);
    assert_memory_equal(one.u, three.u, sizeof(float) * (size_t)(x.rows * 6));
    assert_memory_equal(one.v, three.v, sizeof(float) * (size_t)(x.cols * 6));
    found_free(&one);
    found_free(&three);
    known_free(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(triplets_are_those_it_was_made_of),
        cmocka_unit_test(few_directions),
        cmocka_unit_test(threads_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
