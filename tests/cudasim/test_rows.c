/* test_rows: hand-written kernels that take whole rows (logprob_stats, logprob_grad, take, put) on
 * the simulated device: odd sizes and distances, every order of threads, the launches that head.c
 * and custom.c ask for; against plain double loops.  Memory that no result lies in must not change.
 *
 * Bounds, with u = 2^-24: exp_near is off by 4 u, and by u for each unit that rounding moved its
 * argument.  A thread adds `chain` numbers one after another and is raised to a new top at most
 * once for each 8 of them; 10 joins follow, which raise too: e = sum exp(y - top) is off by
 *     eps = u (8 (chain / 8 + 12) + chain + 16 + 6 max|y|)
 * of itself.  take moves bits, put adds in an order that is given: both are exact.
 */
#include "../../compiler/dpoc.h"
#include "../device/device.h"
#include "loaded.h"

#include <math.h>

#define U 0x1p-24

/* ---- kernels --------------------------------------------------------------------------------- */

static Plan plan;
static Arena *arena;

static int add_kernel(const char *file, int rows, int grid_y, int threads, const char *defines) {
    const int n = plan.nkernels++;
    Text t = {0}, undefs = {0};
    plan.kernels = realloc(plan.kernels, sizeof *plan.kernels * (size_t)plan.nkernels);
    text_add(&t, "#define SYMBOL k%d\n#define FN(name) k%d_##name\n", n, n);
    for (const char *d = defines; *d; d += strcspn(d, ";") + 1) {
        text_add(&t, "#define %.*s\n", (int)strcspn(d, ";"), d);
        text_add(&undefs, "#undef %.*s\n", (int)strcspn(d, " "), d);
    }
    text_add(&t, "%s%s#undef SYMBOL\n#undef FN\n",
             embedded(arena_printf(arena, "kernels/cuda/%s.cuh", file), NULL), undefs.data);
    plan.kernels[n] = (Kernel){.symbol = intern_printf("k%d", n),
                               .text = arena_str(arena, t.data),
                               .kind = file,
                               .rows_per_block = rows,
                               .grid_y = grid_y,
                               .threads = threads};
    text_free(&t);
    text_free(&undefs);
    return n;
}

static const struct {
    int vocab, rows;
    double scale;
} heads[] = {{1, 5, 1}, {31, 65, 0.5}, {9001, 9, 2}, {8194, 4, 1}, {128256, 3, 1}};
static int stats[COUNT(heads)], grad[COUNT(heads)][2];

static const int counts[] = {1, 63, 64, 65, 1100}; /* rows of x: more than a put looks at at once */
static const struct {
    int cols, gap, align; /* LD = cols + gap; x and y begin `align` bytes behind a multiple of 16 */
} widths[] = {{1, 0, 4},  {1, 3, 16},   {3, 0, 16},    {64, 4, 16},
              {64, 0, 8}, {100, 2, 16}, {4096, 0, 16}, {5000, 0, 16}};
static int takes[COUNT(widths)][2], puts_of[COUNT(widths)];

static int head_threads(int vocab) {
    return vocab < 8192 ? 256 : 512;
}

static void make_plan(void) {
    static const Target target = {.name = "sm_80", .cuda = true};
    arena = arena_new();
    plan.device = "sm_80";
    plan.prelude = emit_prelude(&target);
    for (size_t i = 0; i < COUNT(heads); i++) {
        const int v = heads[i].vocab, threads = head_threads(v);
        const char *both = arena_printf(arena, "VOCAB %d;SCALE %.9ef;", v, heads[i].scale);
        stats[i] = add_kernel("logprob_stats", 1, 1, threads, both);
        for (int bf = 0; bf < 2; bf++)
            grad[i][bf] = add_kernel("logprob_grad", 1, 1, threads,
                                     arena_printf(arena, "%sT_D %s;LD_D %d;", both,
                                                  bf ? "bf16" : "f32", v * (bf ? 2 : 1)));
    }
    for (size_t i = 0; i < COUNT(widths); i++) {
        const int cols = widths[i].cols, ld = cols + widths[i].gap;
        const char *sizes =
            arena_printf(arena, "COLS %d;LD_X %d;LD_Y %d;ALIGN %d;", cols, ld, ld, widths[i].align);
        for (int bf = 0; bf < 2; bf++)
            takes[i][bf] = add_kernel("take", cols < 128 ? 128 / cols : 1, 1, 128,
                                      arena_printf(arena, "T_X %s;%s", bf ? "bf16" : "f32", sizes));
        puts_of[i] = add_kernel("put", 1, (cols + 4095) / 4096, 128, sizes);
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

enum { IMAGE = 48 << 20 };

static char image[IMAGE]; /* what device memory should be */
static char found[IMAGE];
static int64_t used;

/* Room for some bytes; `shift` bytes behind a multiple of 256.  Gives its place in the image. */
static void *room(int64_t bytes, int shift) {
    char *p = image + used + shift;
    used += (bytes + shift + 511) / 256 * 256;
    assert_true(used <= IMAGE);
    return p;
}

static void *on_device(const void *p) {
    return dev->base + ((const char *)p - image);
}

static const void *result(const void *p) {
    return found + ((const char *)p - image);
}

/* From the image in one order of threads; p: places in the image, or NULL. */
static void run(int kernel, const char *order, void *const *p, int np, const int64_t *n, int nn) {
    Err err = {0};
    void *args[8];
    setenv("CUDASIM_ORDER", order, 1);
    for (int i = 0; i < np; i++) args[i] = p[i] ? on_device(p[i]) : NULL;
    if (!dev->ops->write(dev, 0, image, used, &err) ||
        !dev->ops->launch(dev, kernel, args, np, n, nn, &err) || !dev->ops->sync(dev, &err) ||
        !dev->ops->read(dev, 0, found, used, &err))
        fail_msg("%s", err.text);
}

/* Everything but these bytes is as it was. */
static int untouched(const char *what, const void *y, int64_t bytes) {
    const int64_t at = (const char *)y - image;
    if (!memcmp(image, found, (size_t)at) &&
        !memcmp(image + at + bytes, found + at + bytes, (size_t)(used - at - bytes)))
        return 0;
    printf("%s: something else was written\n", what);
    return 1;
}

static uint32_t state = 1;
static uint32_t next(void) {
    return (state = state * 1664525u + 1013904223u) >> 8;
}
static float uniform(double size) {
    return (float)(((double)next() * 0x1p-23 - 1) * size);
}

static const char *const orders[] = {"forward", "reverse", "random:5"};

/* ---- the head -------------------------------------------------------------------------------- */

enum { LOGP, LSE, MEAN, ENTROPY, HIT, P2, NSTATS };

static const char *const names[] = {"logp", "lse", "mean", "entropy", "hit", "logsum_p2"};

/* The statistics of a row and how far f32 may be off. */
static void row_stats(const float *z, int vocab, double scale, int target, int threads, double *y,
                      double *bound) {
    double top = -INFINITY, most = 0, e = 0, ez = 0, e2 = 0, sum = 0, size = 0;
    int best = 0;
    for (int j = 0; j < vocab; j++) {
        const double x = scale * (double)z[j];
        if (x > top) top = x, best = j;
        most = fmax(most, fabs(x));
    }
    for (int j = 0; j < vocab; j++) {
        const double x = scale * (double)z[j], p = exp(x - top);
        e += p, ez += p * (x - top), e2 += p * p, sum += x, size += fabs(x);
    }
    const double chain = vocab / threads + 8, log_e = log(e), n = vocab;
    const double eps = U * (8 * (chain / 8 + 12) + chain + 16 + 6 * most);
    const double z_target = target < 0 || target >= vocab ? 0 : scale * (double)z[target];
    y[LSE] = top + log_e, y[MEAN] = sum / n, y[ENTROPY] = log_e - ez / e;
    y[LOGP] = target < 0 || target >= vocab ? 0 : z_target - y[LSE];
    y[HIT] = best == target, y[P2] = log(e2) - 2 * log_e;
    bound[LSE] = eps + 4 * U * (fabs(top) + log_e);
    bound[LOGP] = bound[LSE] + 4 * U * fabs(z_target);
    bound[MEAN] = (chain + 14) * U * size / n + 2 * U * most;
    bound[ENTROPY] = eps + 4 * (eps + U) * fabs(ez / e) + 4 * U * log_e;
    bound[P2] = 4 * eps + 4 * U * (fabs(log(e2)) + 2 * log_e);
    bound[HIT] = 0;
}

typedef struct Head {
    float *z, *stat[NSTATS], *c, *before;
    int32_t *target;
    double y[NSTATS][80], bound[NSTATS][80];
} Head;

static void fill_head(Head *h, size_t which) {
    const int vocab = heads[which].vocab, rows = heads[which].rows;
    const int64_t all = (int64_t)vocab * rows;
    used = 0;
    memset(image, 0xff, IMAGE);
    h->z = room(all * 4, 0), h->target = room(rows * 4, 4), h->c = room(rows * 4, 4);
    for (int k = 0; k < NSTATS; k++) h->stat[k] = room(rows * 4, 4 * k);
    for (int64_t i = 0; i < all; i++) h->z[i] = uniform(8);
    for (int r = 0; r < rows; r++) {
        float *z = h->z + (int64_t)r * vocab;
        const int a = (int)(next() % (uint32_t)vocab), b = (int)(next() % (uint32_t)vocab);
        z[a] = z[b] = 20; /* of two equal maxima the first counts */
        const int first = a < b ? a : b, other = a < b ? b : a;
        h->target[r] = r % 5 == 4   ? -1
                       : r % 5 == 3 ? (int)(next() % (uint32_t)vocab)
                       : r % 2      ? other
                                    : first;
        h->c[r] = uniform(1);
        double y[NSTATS], bound[NSTATS];
        row_stats(z, vocab, heads[which].scale, h->target[r], head_threads(vocab), y, bound);
        for (int k = 0; k < NSTATS; k++) h->y[k][r] = y[k], h->bound[k][r] = bound[k];
    }
}

/* wanted: a bit for each statistic that is asked for. */
static int check_stats(Head *h, size_t which, int wanted, const char *order) {
    const int64_t rows = heads[which].rows;
    void *p[8] = {h->z, h->target};
    int bad = 0;
    for (int k = 0; k < NSTATS; k++) p[2 + k] = wanted >> k & 1 ? h->stat[k] : NULL;
    run(stats[which], order, p, 8, &rows, 1);
    for (int k = 0; k < NSTATS; k++) {
        const float *y = result(h->stat[k]);
        for (int r = 0; r < rows && wanted >> k & 1; r++) {
            const double off = fabs((double)y[r] - h->y[k][r]);
            if (off <= h->bound[k][r]) continue;
            printf("%s[%d] of %d is %.9g, should be %.9g, at most %.3g off\n", names[k], r,
                   heads[which].vocab, (double)y[r], h->y[k][r], h->bound[k][r]);
            bad++;
        }
        memcpy(found + ((char *)h->stat[k] - image), h->stat[k],
               wanted >> k & 1 ? (size_t)rows * 4 : 0);
    }
    return bad + untouched("logprob_stats", h->z, 0);
}

static int check_grad(Head *h, size_t which, bool bf, bool one, const char *order) {
    const int vocab = heads[which].vocab;
    const int64_t rows = heads[which].rows;
    const double scale = heads[which].scale;
    int bad = 0;
    for (int r = 0; r < rows; r++) h->stat[LSE][r] = (float)h->y[LSE][r];
    run(grad[which][bf], order, (void *[]){h->z, h->target, h->stat[LSE], one ? NULL : h->c, h->z},
        5, &rows, 1);
    for (int64_t i = 0; i < rows * vocab && bad < 4; i++) {
        const int64_t r = i / vocab, j = i % vocab;
        const char *row = (const char *)result(h->z) + r * vocab * 4;
        const double d = bf ? (double)bf16_to_float(((const uint16_t *)row)[j])
                            : (double)((const float *)row)[j];
        const double x = scale * (double)h->z[i] - (double)h->stat[LSE][r], p = exp(x);
        const double k = h->target[r] < 0 ? 0 : scale * (one ? 1 : (double)h->c[r]);
        const double y = k * ((j == h->target[r]) - p);
        const double bound =
            fabs(k) * p * U * (8 + 2 * fabs(x)) + fabs(y) * (4 * U + (bf ? 0x1p-8 : 0)) + 0x1p-120;
        if (fabs(d - y) <= bound) continue;
        printf("d[%d][%d] of %d is %.9g, should be %.9g\n", (int)r, (int)j, vocab, d, y);
        bad++;
    }
    return bad + untouched("logprob_grad", h->z, rows * vocab * 4);
}

static void test_head(void **unused) {
    (void)unused;
    static Head h;
    int bad = 0;
    for (size_t i = 0; i < COUNT(heads); i++) {
        fill_head(&h, i);
        for (size_t o = 0; o < COUNT(orders); o++) {
            const bool all = i < 3 || o == i % 3; /* the large ones once each */
            if (all) bad += check_stats(&h, i, o == 2 ? 0x3 : 0x3f, orders[o]);
            if (all) bad += check_grad(&h, i, o != 1, o == 2, orders[o]);
        }
    }
    bad += check_stats(&h, COUNT(heads) - 1, 1 << LOGP, "reverse");
    assert_int_equal(bad, 0);
}

/* ---- gather and scatter ---------------------------------------------------------------------- */

static void fill_index(int32_t *index, int n, int limit) {
    for (int i = 0; i < n; i++) index[i] = (int)(next() % (uint32_t)(limit + 1)) - 1;
}

/* m rows of x, n of y. */
static int check_take(size_t w, bool bf, int m, int n, const char *order) {
    const int cols = widths[w].cols, ld = cols + widths[w].gap, size = bf ? 2 : 4;
    const int shift = widths[w].align % 16;
    used = 0;
    memset(image, 0xff, IMAGE);
    char *x = room((int64_t)m * ld * size, shift), *y = room((int64_t)n * ld * size, shift);
    int32_t *index = room(n * 4, 4);
    for (int64_t i = 0; i < (int64_t)m * ld * size; i++) x[i] = (char)next();
    fill_index(index, n, m);
    run(takes[w][bf], order, (void *[]){x, index, y}, 3, (int64_t[]){n, m}, 2);
    for (int r = 0; r < n; r++) {
        char *to = y + (int64_t)r * ld * size;
        memset(to, 0, (size_t)(cols * size));
        if (index[r] >= 0) memcpy(to, x + (int64_t)index[r] * ld * size, (size_t)(cols * size));
    }
    return untouched("take", y, 0);
}

static int check_put(size_t w, int m, int n, const char *order) {
    const int cols = widths[w].cols, ld = cols + widths[w].gap, shift = widths[w].align % 16;
    used = 0;
    memset(image, 0xff, IMAGE);
    float *x = room((int64_t)n * ld * 4, shift), *y = room((int64_t)m * ld * 4, shift);
    int32_t *index = room(n * 4, 4);
    for (int64_t i = 0; i < (int64_t)n * ld; i++) x[i] = uniform(1);
    fill_index(index, n, m);
    run(puts_of[w], order, (void *[]){x, index, y}, 3, (int64_t[]){m, n}, 2);
    for (int i = 0; i < m; i++) memset(y + (int64_t)i * ld, 0, (size_t)cols * 4);
    for (int r = 0; r < n; r++)
        for (int j = 0; j < cols && index[r] >= 0; j++)
            y[(int64_t)index[r] * ld + j] += x[(int64_t)r * ld + j];
    return untouched("put", y, 0);
}

static void test_take_put(void **unused) {
    (void)unused;
    int bad = 0, turn = 0;
    for (size_t w = 0; w < COUNT(widths); w++)
        for (size_t c = 0; c < COUNT(counts); c++) {
            const int n = counts[c], m = n == 64 ? 1 : 17;
            const char *order = orders[turn++ % 3];
            int now =
                check_take(w, turn % 2, m, n, order) + check_take(w, turn % 2 == 0, n, m, order);
            now += check_put(w, m, n, order) + check_put(w, 3, 0, order);
            if (now) printf("  %d columns, %d rows, %s\n", widths[w].cols, n, order);
            bad += now;
        }
    assert_int_equal(bad, 0);
}

static int open_device(void **unused) {
    (void)unused;
    make_plan();
    load_on_device(&plan, IMAGE);
    return 0;
}

int main(int argc, char **argv) {
    (void)argc;
    simulate(argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_head),
                                       cmocka_unit_test(test_take_put)};
    return cmocka_run_group_tests(tests, open_device, close_device);
}
