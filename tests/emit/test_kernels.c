/* test_kernels: the hand-written kernels but for attention against plain double loops.  On the CPU
 * the bits are the same at 1, 2 and 3 threads; in the simulator, on small shapes, in every order of
 * threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "runtime/quantize.h"
#include "tests/emit/hand.h"

/* ---- the head -------------------------------------------------------------------------------- */

static const struct {
    int vocab;
    double scale;
} vocabs[] = {{97, 1}, {1024, 0.5}, {1, 1}, {31, 1}, {9001, 2}, {32000, 1}, {128256, 1}};
enum { SIMULATED = 5 };
static int made_stats[COUNT(vocabs)], made_grad[COUNT(vocabs)][2];

static void make_head(void) {
    for (size_t i = 0; i < COUNT(vocabs); i++) {
        made_stats[i] =
            addf(1, "logprob_stats", "VOCAB %d;SCALE %.9ef", vocabs[i].vocab, vocabs[i].scale);
        for (int bf = 0; bf < 2; bf++)
            made_grad[i][bf] =
                addf(1, "logprob_grad", "VOCAB %d;SCALE %.9ef;T_D %s;LD_D %d", vocabs[i].vocab,
                     vocabs[i].scale, bf ? "bf16" : "f32", vocabs[i].vocab * (bf ? 2 : 1));
    }
}

enum { LOGP, LSE, MEAN, ENTROPY, HIT, P2, NSTATS };

static void reference_stats(const double *z, int vocab, double scale, int target, double *y) {
    double most = -INFINITY, sum = 0, mean = 0, pz = 0, p2 = 0;
    int best = 0;
    for (int v = 0; v < vocab; v++)
        if (scale * z[v] > most) most = scale * z[v], best = v;
    for (int v = 0; v < vocab; v++) sum += exp(scale * z[v] - most);
    const double lse = most + log(sum);
    for (int v = 0; v < vocab; v++) {
        const double p = exp(scale * z[v] - lse);
        mean += scale * z[v] / vocab;
        pz += p * scale * z[v];
        p2 += p * p;
    }
    y[LOGP] = target < 0 ? 0 : scale * z[target] - lse;
    y[LSE] = lse, y[MEAN] = mean, y[ENTROPY] = lse - pz, y[HIT] = best == target, y[P2] = log(p2);
}

static int check_head(size_t which, int rows) {
    const int vocab = vocabs[which].vocab;
    const double scale = vocabs[which].scale;
    Tensor z = noise(DT_f32, (int64_t)rows * vocab, 8), c = noise(DT_f32, rows, 1), y[NSTATS];
    int32_t *target = room((size_t)rows * sizeof *target);
    for (int k = 0; k < NSTATS; k++) y[k] = tensor(DT_f32, rows);
    for (int r = 0; r < rows; r++) {
        float *row = (float *)z.data + (int64_t)r * vocab;
        target[r] = r % 5 == 4 ? -1 : below(vocab);
        /* Two equal maxima: the first wins. */
        const int a = below(vocab), b = below(vocab);
        row[a] = row[b] = 30;
        z.x[(int64_t)r * vocab + a] = z.x[(int64_t)r * vocab + b] = 30;
        if (r % 3 == 0) target[r] = a < b ? a : b;
        if (r % 3 == 1) target[r] = a < b ? b : a;
        double stats[NSTATS];
        reference_stats(z.x + (int64_t)r * vocab, vocab, scale, target[r], stats);
        for (int k = 0; k < NSTATS; k++) y[k].x[r] = stats[k];
    }
    int64_t n = rows;
    void *p[] = {z.data,       target,          y[LOGP].data, y[LSE].data,
                 y[MEAN].data, y[ENTROPY].data, y[HIT].data,  y[P2].data};
    int bad = threads_differ("logprob_stats", made_stats[which], p, &n, y, 4);
    bad += differs("logp", &y[LOGP], 16) + differs("lse", &y[LSE], 16);
    bad += differs("mean", &y[MEAN], 4096) + differs("entropy", &y[ENTROPY], 64);
    bad += differs("hit", &y[HIT], 0) + differs("logsum_p2", &y[P2], 64);
    /* Only what is wanted. */
    memset(y[LOGP].data, 0xff, (size_t)rows * 4);
    void *few[] = {z.data, target, y[LOGP].data, NULL, NULL, NULL, NULL, NULL};
    run(made_stats[which], few, &n);
    bad += differs("logp alone", &y[LOGP], 16);
    for (int bf = 0; bf < 2; bf++) {
        Tensor d = noise(DT_f32, (int64_t)rows * vocab, 0);
        memcpy(d.data, z.data, (size_t)rows * (size_t)vocab * 4);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vocab; v++) {
                const int64_t i = (int64_t)r * vocab + v;
                const double e = exp(scale * z.x[i] - y[LSE].x[r]);
                d.x[i] = target[r] < 0 ? 0 : c.x[r] * scale * ((v == target[r]) - e);
            }
        for (int r = 0; r < rows; r++) ((float *)y[LSE].data)[r] = (float)y[LSE].x[r];
        void *g[] = {d.data, target, y[LSE].data, c.data, d.data};
        run_way(made_grad[which][bf], g, &n, bf);
        if (bf) /* rows of bf16 begin where rows of f32 did */
            for (int r = 0; r < rows; r++)
                memmove((uint16_t *)d.data + (int64_t)r * vocab,
                        (uint16_t *)d.data + (int64_t)r * vocab * 2, (size_t)vocab * 2);
        d.t = bf ? DT_bf16 : DT_f32;
        bad += differs("logprob_grad", &d, 64);
        drop(&d);
    }
    if (bad) printf("  in vocabulary %d\n", vocab);
    for (int k = 0; k < NSTATS; k++) drop(&y[k]);
    drop(&z), drop(&c), leave(target);
    return bad;
}

static void test_head(void **unused) {
    (void)unused;
    int bad = 0;
    for (size_t i = 0; i < (cuda ? SIMULATED : COUNT(vocabs)); i++)
        bad += check_head(i, i < 4 ? 37 : 6);
    assert_int_equal(bad, 0);
}

/* ---- gather, scatter, sort ------------------------------------------------------------------- */

static const int widths[] = {1, 64, 100, 4096};
static int made_take[COUNT(widths)][2], made_put[COUNT(widths)], made_take_i32, made_sort;

static void make_rows(void) {
    for (size_t i = 0; i < COUNT(widths); i++) {
        for (int bf = 0; bf < 2; bf++)
            made_take[i][bf] = addf(1, "take", "T_X %s;COLS %d;LD_X %d;LD_Y %d;ALIGN 16",
                                    bf ? "bf16" : "f32", widths[i], widths[i] + 2, widths[i]);
        made_put[i] =
            addf(1, "put", "COLS %d;LD_X %d;LD_Y %d;ALIGN 16", widths[i], widths[i], widths[i]);
    }
    made_take_i32 = add_on(1, "take", "T_X i32;COLS 2;LD_X 2;LD_Y 2;ALIGN 4");
    made_sort = add_on(1, "sort", "");
}

static int32_t *indices(int n, int limit) {
    int32_t *index = room((size_t)n * sizeof *index);
    for (int i = 0; i < n; i++) index[i] = below(limit + 1) - 1;
    return index;
}

static void test_take_put(void **unused) {
    (void)unused;
    int bad = 0;
    for (size_t i = 0; i < COUNT(widths); i++)
        for (int bf = 0; bf < 2; bf++) {
            const int w = widths[i], m = 50, r = 333;
            int32_t *index = indices(r, m);
            Tensor x = noise(bf ? DT_bf16 : DT_f32, m * (w + 2), 1);
            Tensor y = tensor(x.t, (int64_t)r * w), z = tensor(DT_f32, (int64_t)m * w);
            for (int a = 0; a < r; a++)
                for (int j = 0; j < w; j++)
                    y.x[a * w + j] = index[a] < 0 ? 0 : x.x[index[a] * (w + 2) + j];
            void *p[] = {x.data, index, y.data};
            bad += threads_differ("take", made_take[i][bf], p, (int64_t[]){r, m}, &y, 1);
            bad += differs("take", &y, 0);
            Tensor s = noise(DT_f32, (int64_t)r * w, 1); /* exact: a float sum in order */
            for (int a = 0; a < r; a++)
                for (int j = 0; j < w && index[a] >= 0; j++)
                    z.x[index[a] * w + j] =
                        (double)((float)z.x[index[a] * w + j] + (float)s.x[a * w + j]);
            void *q[] = {s.data, index, z.data};
            bad += threads_differ("put", made_put[i], q, (int64_t[]){m, r}, &z, 1);
            bad += differs("put", &z, 0);
            drop(&x), drop(&y), drop(&z), drop(&s), leave(index);
        }
    const int32_t x[] = {1, 2, 3, 4, 1 << 30, -7}, index[] = {2, -1, 0};
    int32_t *data = room(sizeof x), *at = room(sizeof index), *y = room(sizeof x);
    memcpy(data, x, sizeof x), memcpy(at, index, sizeof index);
    run(made_take_i32, (void *[]){data, at, y}, (int64_t[]){3, 3});
    assert_memory_equal(y, ((int32_t[]){1 << 30, -7, 0, 0, 1, 2}), sizeof x);
    leave(data), leave(at), leave(y);
    assert_int_equal(bad, 0);
}

static void test_sort(void **unused) {
    (void)unused;
    for (int n = 0; n < 700; n += 1 + n) {
        float *x = room((size_t)n * 4), *y = room((size_t)n * 4);
        int32_t *source_of = room((size_t)n * 4);
        for (int i = 0; i < n; i++) x[i] = below(9) == 0 ? NAN : (float)(below(40) - 20);
        run(made_sort, (void *[]){x, y, source_of}, (int64_t[]){n});
        for (int i = 0; i < n; i++) {
            assert_true(y[i] == x[source_of[i]] || (isnan(y[i]) && isnan(x[source_of[i]])));
            if (i == 0) continue;
            assert_true(y[i - 1] <= y[i] || isnan(y[i]));
            if (y[i - 1] == y[i] || isnan(y[i - 1])) assert_true(source_of[i - 1] < source_of[i]);
        }
        leave(x), leave(y), leave(source_of);
    }
}

/* ---- quantized weights ----------------------------------------------------------------------- */

static int made_dequant[NQUANT][2][2];

static void make_dequant(void) {
    for (int f = 0; f < NQUANT; f++)
        for (int nested = 0; nested < 2; nested++)
            for (int bf = 0; bf < 2; bf++)
                made_dequant[f][nested][bf] = addf(1, "dequant", "T_Y %s;BLOCK 64;NESTED %d;%s 1",
                                                   bf ? "bf16" : "f32", nested,
                                                   f == QUANT_NF4   ? "NF4"
                                                   : f == QUANT_FP4 ? "FP4"
                                                                    : "INT8");
}

static int check_dequant(QuantFormat format, int nested, int bf, int64_t n) {
    const int64_t blocks = (n + 63) / 64, groups = (blocks + 255) / 256;
    uint8_t *codes = room((size_t)n), *q = room((size_t)blocks);
    Tensor absmax = noise(DT_f32, blocks, 1), absmax2 = noise(DT_f32, groups, 1);
    Tensor offset = noise(DT_f32, 1, 1), map = noise(DT_f32, 256, 1);
    Tensor y = tensor(bf ? DT_bf16 : DT_f32, n);
    for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)next();
    for (int64_t i = 0; i < blocks; i++) q[i] = (uint8_t)next();
    const float *lut = quant_lut(format);
    for (int64_t i = 0; i < n; i++) {
        const int64_t b = i / 64;
        const double scale = nested ? map.x[q[b]] * absmax2.x[b / 256] + offset.x[0] : absmax.x[b];
        y.x[i] = lut ? (double)lut[i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4] * scale
                     : (double)(int8_t)codes[i] * scale / 127;
    }
    void *plain[] = {codes, absmax.data, y.data};
    void *deep[] = {codes, q, absmax2.data, offset.data, map.data, y.data};
    int bad = threads_differ("dequant", made_dequant[format][nested][bf], nested ? deep : plain,
                             (int64_t[]){blocks, n}, &y, 1);
    bad += differs("dequant", &y, 8);
    drop(&absmax), drop(&absmax2), drop(&offset), drop(&map), drop(&y), leave(codes), leave(q);
    return bad;
}

static void test_dequant(void **unused) {
    (void)unused;
    int bad = 0;
    for (int f = 0; f < NQUANT; f++)
        for (int nested = 0; nested < 2; nested++)
            for (int bf = 0; bf < 2; bf++) {
                bad += check_dequant((QuantFormat)f, nested, bf, 64 * (cuda ? 260 : 700));
                bad += check_dequant((QuantFormat)f, nested, bf, 64 * 3 + 7);
            }
    assert_int_equal(bad, 0);
}

static void make_instances(void) {
    make_head();
    make_rows();
    make_dequant();
}

int main(int argc, char **argv) {
    (void)argc;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_head), cmocka_unit_test(test_take_put),
                                       cmocka_unit_test(test_sort), cmocka_unit_test(test_dequant)};
    return RUN_BOTH(argv, tests);
}
