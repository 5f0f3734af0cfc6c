/* Matrix products against sums in double precision, and bit for bit between thread counts. */
#include "../../runtime/cpu_gemm.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct Shape {
    int m, n, k;
    bool ta, tb;
    int gap_a, gap_b, gap_c; /* elements between rows beyond the dense number */
} Shape;

static const Shape shapes[] = {
    {1, 1, 1, 0, 0, 0, 0, 0},         {1, 300, 70, 0, 1, 0, 0, 0},
    {1, 700, 64, 0, 0, 0, 0, 0},      {300, 1, 64, 0, 1, 0, 0, 0},
    {7, 13, 1, 0, 0, 0, 0, 0},        {64, 97, 33, 0, 1, 0, 0, 0},
    {130, 70, 65, 0, 0, 0, 0, 0},     {130, 70, 65, 0, 1, 3, 5, 7},
    {130, 70, 65, 1, 0, 3, 5, 7},     {130, 70, 65, 1, 1, 3, 5, 7},
    {8, 600, 1100, 1, 0, 0, 0, 0},    {600, 8, 1100, 1, 0, 0, 0, 0},
    {320, 600, 128, 0, 1, 0, 0, 0},   {320, 600, 128, 0, 0, 0, 0, 0},
    {260, 1030, 520, 0, 1, 0, 0, 30}, {260, 1030, 520, 0, 0, 40, 0, 0},
    {64, 256, 96, 0, 0, 0, 0, 0},     {1100, 64, 16, 0, 1, 0, 0, 0},
    {7, 530, 77, 0, 1, 3, 5, 7},      {8, 161, 1100, 0, 1, 0, 0, 0},
    {140, 2100, 200, 0, 1, 0, 0, 0},  {140, 2100, 300, 0, 0, 0, 0, 0},
};

typedef struct Case {
    Gemm g;
    int64_t m, n, k;
    size_t rows_a, rows_b;
    float *a, *b, *c, *bias; /* values, already rounded to the operand's type */
} Case;

static uint32_t state = 1;
static float next(DType t) { /* in -1 .. 1 */
    state = state * 1664525u + 1013904223u;
    float x = (float)(int32_t)(state >> 8) * 0x1p-23f - 1;
    return t == DT_bf16 ? bf16_to_float(float_to_bf16(x)) : x;
}

static float *values(size_t n, DType t) {
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = next(t);
    return x;
}

/* The values as the operand's type stores them. */
static void *stored(const float *x, size_t n, DType t) {
    if (t == DT_f32) return memcpy(malloc(n * 4 + 64), x, n * 4);
    uint16_t *h = malloc(n * 2 + 64);
    for (size_t i = 0; i < n; i++) h[i] = float_to_bf16(x[i]);
    return h;
}

static Case make(const Shape *s, DType operands, DType result, float alpha, float beta, bool bias) {
    Case c = {.m = s->m, .n = s->n, .k = s->k};
    c.g = (Gemm){.a = operands,
                 .b = operands,
                 .c = result,
                 .ta = s->ta,
                 .tb = s->tb,
                 .lda = (s->ta ? s->m : s->k) + s->gap_a,
                 .ldb = (s->tb ? s->k : s->n) + s->gap_b,
                 .ldc = s->n + s->gap_c,
                 .alpha = alpha,
                 .beta = beta,
                 .bias = bias};
    c.rows_a = (size_t)(s->ta ? s->k : s->m);
    c.rows_b = (size_t)(s->tb ? s->n : s->k);
    c.a = values(c.rows_a * (size_t)c.g.lda, operands);
    c.b = values(c.rows_b * (size_t)c.g.ldb, operands);
    c.c = values((size_t)(c.m * c.g.ldc), result);
    c.bias = values((size_t)c.n, DT_f32);
    return c;
}

static void done(Case *c) {
    free(c->a);
    free(c->b);
    free(c->c);
    free(c->bias);
}

/* The product on the device; its C as stored. */
static void *run(CpuGemm *gemm, const Case *c) {
    Err err = {0};
    void *a = stored(c->a, c->rows_a * (size_t)c->g.lda, c->g.a);
    void *b = stored(c->b, c->rows_b * (size_t)c->g.ldb, c->g.b);
    void *out = stored(c->c, (size_t)(c->m * c->g.ldc), c->g.c);
    void *p[4] = {a, b, out, c->bias};
    if (!cpu_gemm_run(gemm, &c->g, p, c->m, c->n, c->k, &err)) fail_msg("%s", err.text);
    free(a);
    free(b);
    return out;
}

/* Every element within the bound of a sum of k products of fp32 (any order), plus the result's
 * rounding. */
static void check(const Case *c, const void *out, const Shape *s) {
    for (int64_t i = 0; i < c->m; i++)
        for (int64_t j = 0; j < c->n; j++) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < c->k; k++) {
                double x = (double)c->a[s->ta ? k * c->g.lda + i : i * c->g.lda + k];
                double y = (double)c->b[s->tb ? j * c->g.ldb + k : k * c->g.ldb + j];
                sum += x * y;
                size += fabs(x * y);
            }
            double old = (double)c->c[i * c->g.ldc + j], want = (double)c->g.alpha * sum;
            if (c->g.bias) want += (double)c->bias[j];
            if (c->g.beta != 0) want += old;
            const float *f = out;
            const uint16_t *h = out;
            int64_t at = i * c->g.ldc + j;
            double got = (double)(c->g.c == DT_f32 ? f[at] : bf16_to_float(h[at]));
            double bound = ((double)c->k * size + 4 * (fabs(want) + fabs(old) + 1)) * 0x1p-24;
            if (c->g.c == DT_bf16) bound += fabs(want) * 0x1p-8;
            if (fabs(got - want) > bound)
                fail_msg("%lld x %lld x %lld ta %d tb %d: [%lld,%lld] is %.9g, not %.9g",
                         (long long)c->m, (long long)c->n, (long long)c->k, s->ta, s->tb,
                         (long long)i, (long long)j, got, want);
        }
}

/* Elements in the gaps between rows of C are not touched. */
static void check_gaps(const Case *c, const void *out) {
    size_t size = (size_t)dtype_bytes(c->g.c);
    char *before = stored(c->c, (size_t)(c->m * c->g.ldc), c->g.c);
    for (int64_t i = 0; i < c->m; i++) {
        size_t at = (size_t)(i * c->g.ldc + c->n) * size, n = (size_t)(c->g.ldc - c->n) * size;
        assert_memory_equal(before + at, (const char *)out + at, n);
    }
    free(before);
}

static void all_shapes(CpuGemm **gemm, int ngemm, DType operands, DType result, float alpha,
                       float beta, bool bias) {
    for (size_t i = 0; i < COUNT(shapes); i++) {
        Case c = make(&shapes[i], operands, result, alpha, beta, bias);
        void *first = run(gemm[0], &c);
        check(&c, first, &shapes[i]);
        check_gaps(&c, first);
        for (int t = 1; t < ngemm; t++) {
            void *other = run(gemm[t], &c);
            assert_memory_equal(first, other, (size_t)(c.m * c.g.ldc * dtype_bytes(result)));
            free(other);
        }
        free(first);
        done(&c);
    }
}

static void products(void **unused) {
    CpuGemm *gemm[4];
    void *work[4];
    Err err = {0};
    for (int t = 0; t < 4; t++) { /* each thread count, and a workspace that holds two threads */
        gemm[t] = cpu_gemm_open(t + 1, &err);
        assert_non_null(gemm[t]);
        work[t] = aligned_alloc(4096, 8 << 20);
        if (t != 2) cpu_gemm_workspace(gemm[t], work[t], 8 << 20);
    }
    all_shapes(gemm, 4, DT_f32, DT_f32, 1, 0, false);
    all_shapes(gemm, 4, DT_f32, DT_f32, 1, 1, false);
    all_shapes(gemm, 4, DT_f32, DT_f32, 0.5f, 1, true);
    all_shapes(gemm, 4, DT_bf16, DT_f32, 1, 0, false);
    all_shapes(gemm, 4, DT_bf16, DT_bf16, 1, 0, true);
    all_shapes(gemm, 4, DT_bf16, DT_bf16, 2, 1, false);
    for (int t = 0; t < 4; t++) {
        cpu_gemm_close(gemm[t]);
        free(work[t]);
    }
}

/* alpha, bias, beta and rounding inside the product give the bits of doing them one after the
 * other. */
static void fused_is_separate(void **unused) {
    Err err = {0};
    CpuGemm *gemm = cpu_gemm_open(2, &err);
    for (size_t i = 0; i < COUNT(shapes) * 2; i++) {
        const Shape *s = &shapes[i / 2];
        Case c = make(s, i % 2 ? DT_bf16 : DT_f32, i % 2 ? DT_bf16 : DT_f32, 0.3f, 1, true);
        void *fused = run(gemm, &c);
        Case plain = c;
        plain.g.c = DT_f32;
        plain.g.alpha = 1;
        plain.g.beta = 0;
        plain.g.bias = false;
        float *x = run(gemm, &plain);
        for (int64_t k = 0; k < c.m * c.g.ldc; k++) {
            if (k % c.g.ldc >= c.n) continue;
            float want = x[k] * 0.3f;
            want += c.bias[k % c.g.ldc];
            want += c.c[k];
            float got = i % 2 ? bf16_to_float(((uint16_t *)fused)[k]) : ((float *)fused)[k];
            if (i % 2) want = bf16_to_float(float_to_bf16(want));
            if (got != want)
                fail_msg("%d x %d x %d: %.9g fused, %.9g apart", s->m, s->n, s->k, (double)got,
                         (double)want);
        }
        free(fused);
        free(x);
        done(&c);
    }
    cpu_gemm_close(gemm);
}

/* What the planner sets aside holds what a product of at most these sizes takes on one thread;
 * rows as stored may be fewer, their length is fixed. */
static void workspace(void **unused) {
    Err err = {0};
    CpuGemm *gemm = cpu_gemm_open(1, &err);
    for (size_t i = 0; i < COUNT(shapes) * 2; i++) {
        Case c = make(&shapes[i / 2], i % 2 ? DT_bf16 : DT_f32, DT_f32, 1, 1, false);
        int64_t most = gemm_workspace(&c.g, c.m, c.n, c.k) / GEMM_THREADS;
        for (int64_t less = 0; less < (c.g.ta ? c.k : c.m); less += 61) {
            int64_t m = c.g.ta ? c.m : c.m - less, k = c.g.ta ? c.k - less : c.k;
            int64_t need = cpu_gemm_need(gemm, &c.g, m, c.n, k);
            if (need < 0 || need > most)
                fail_msg("%lld x %lld x %lld: %lld, foreseen %lld", (long long)m, (long long)c.n,
                         (long long)k, (long long)need, (long long)most);
        }
        done(&c);
    }
    cpu_gemm_close(gemm);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(products),
                                       cmocka_unit_test(fused_is_separate),
                                       cmocka_unit_test(workspace)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
