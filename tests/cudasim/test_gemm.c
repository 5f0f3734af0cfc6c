/* Matrix products of the CUDA device on the simulated cuBLASLt: against sums in double precision,
 * the file of chosen algorithms, the workspace, what happens when a function fails.
 *
 * Bound: k products and sums in fp32 in any order, at most 4 sums of parts, alpha, beta and bias
 * make k + 8 roundings of terms (Higham 3.1): |error| <= g * (|alpha| sum |a||b| + |beta c| +
 * |bias|), g = (k + 8) u / (1 - (k + 8) u), u = 2^-24; a bf16 result adds half a unit in its last
 * place: 2^-8 of the rounded value.
 */
#include "../../runtime/gemm_choices.h"
#include "../device/device.h"
#include "simulated.h"

#include <math.h>
#include <sys/wait.h>

#define WORK    (INT64_C(8) << 20)
#define SCRATCH (INT64_C(8) << 20)
#define ARENA   (INT64_C(32) << 20)
/* The arena: guard, workspace, guard, scratch, operands. */
#define GUARD    INT64_C(4096)
#define OPERANDS (2 * GUARD + WORK + SCRATCH)

/* ---- products -------------------------------------------------------------------------------- */

typedef struct Product {
    Gemm g;
    int64_t m, n, k;
    int64_t offset[4], bytes[4]; /* of a, b, c, bias in the arena */
    char *host[4];
} Product;

static uint32_t seed = 1;
static float number(void) { /* in -1 .. 1 */
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)(seed >> 8) * 0x1p-23f - 1;
}

static double get(const char *p, DType t, int64_t i) {
    if (t == DT_f32) return ((const float *)p)[i];
    return bf16_to_float(((const uint16_t *)p)[i]);
}

static void fill(char *p, DType t, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (t == DT_f32)
            ((float *)p)[i] = number();
        else
            ((uint16_t *)p)[i] = float_to_bf16(number());
    }
}

/* Operands with `gap` elements between rows, `shift` elements after an aligned address. */
static Product make(Gemm g, int64_t m, int64_t n, int64_t k, int gap, int shift) {
    Product p = {.g = g, .m = m, .n = n, .k = k};
    int64_t rows[4] = {g.ta ? k : m, g.tb ? n : k, m, 1},
            cols[4] = {g.ta ? m : k, g.tb ? k : n, n, n};
    DType type[4] = {g.a, g.b, g.c, DT_f32};
    int64_t at = OPERANDS, bits = 256;
    for (int i = 0; i < 4; i++) {
        int64_t ld = i == 3 ? n : cols[i] + gap, size = dtype_bytes(type[i]);
        if (i < 3) (&p.g.lda)[i] = ld;
        p.offset[i] = at + shift * size;
        p.bytes[i] = rows[i] * ld * size;
        p.host[i] = calloc(1, (size_t)p.bytes[i] + 64);
        fill(p.host[i], type[i], rows[i] * ld);
        if (i < 3 || g.bias) bits |= p.offset[i];
        at += (p.bytes[i] + 512 + 255) / 256 * 256;
    }
    assert_true(at <= ARENA);
    p.g.align = (int)(bits & -bits);
    return p;
}

static void drop(Product *p) {
    for (int i = 0; i < 4; i++) free(p->host[i]);
}

static bool write_operands(Device *dev, const Product *p, Err *err) {
    for (int i = 0; i < 4; i++)
        if (!dev->ops->write(dev, p->offset[i], p->host[i], p->bytes[i], err)) return false;
    return true;
}

static bool run(Device *dev, const Product *p, Err *err) {
    void *at[4];
    for (int i = 0; i < 4; i++) at[i] = dev->base + p->offset[i];
    return dev->ops->gemm(dev, &p->g, at, p->m, p->n, p->k, err);
}

static bool prepare(Device *dev, const Product *p, Err *err) {
    return dev->ops->gemm_prepare(dev, &p->g, p->m, p->n, p->k, err);
}

/* C as stored, gaps too; malloc. */
static char *compute(Device *dev, const Product *p) {
    Err err = {0};
    char *c = malloc((size_t)p->bytes[2]);
    bool ok = write_operands(dev, p, &err) && prepare(dev, p, &err) && run(dev, p, &err) &&
              dev->ops->read(dev, p->offset[2], c, p->bytes[2], &err);
    if (!ok) fail_msg("%s", err.text);
    return c;
}

static void check(const Product *p, const char *c) {
    const Gemm *g = &p->g;
    double u = 0x1p-24, ku = (double)(p->k + 8) * u, gamma = ku / (1 - ku);
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < g->ldc && i * g->ldc + j < p->bytes[2] / dtype_bytes(g->c); j++) {
            double old = get(p->host[2], g->c, i * g->ldc + j), y = get(c, g->c, i * g->ldc + j);
            if (j >= p->n) { /* between rows: as it was */
                assert_true(y == old);
                continue;
            }
            double sum = 0, size = 0;
            for (int64_t k = 0; k < p->k; k++) {
                double a = get(p->host[0], g->a, g->ta ? k * g->lda + i : i * g->lda + k);
                double b = get(p->host[1], g->b, g->tb ? j * g->ldb + k : k * g->ldb + j);
                sum += a * b;
                size += fabs(a * b);
            }
            double bias = g->bias ? get(p->host[3], DT_f32, j) : 0;
            double want = g->alpha * sum + g->beta * old + bias;
            double bound = gamma * (fabs(g->alpha) * size + fabs(g->beta * old) + fabs(bias));
            if (g->c == DT_bf16) bound += 0x1p-8 * (fabs(want) + bound);
            if (!(fabs(y - want) <= bound))
                fail_msg(
                    "%lld x %lld x %lld ta %d tb %d: c[%lld][%lld] = %.9g, expected %.9g +- %g",
                    (long long)p->m, (long long)p->n, (long long)p->k, g->ta, g->tb, (long long)i,
                    (long long)j, y, want, bound);
        }
}

/* ---- the device ------------------------------------------------------------------------------ */

static Device *open_with(const char *cache, const char *choices, int64_t work, int64_t scratch) {
    Err err = {0};
    DeviceOptions options = {.name = "cuda", .cache_dir = cache, .choices = choices};
    Device *dev = device_open(&options, &err);
    if (!dev || !dev->ops->alloc(dev, ARENA, &err)) fail_msg("%s", err.text);
    dev->ops->workspace(dev, GUARD, work);
    dev->ops->scratch(dev, 2 * GUARD + WORK, scratch);
    return dev;
}

static Device *open_device(const char *cache) {
    return open_with(cache, NULL, WORK, SCRATCH);
}

static Gemm plain(DType operands, DType result, bool ta, bool tb) {
    return (Gemm){.a = operands, .b = operands, .c = result, .ta = ta, .tb = tb, .alpha = 1};
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_products(void **state) {
    (void)state;
    static const int sizes[][3] = {{1, 1, 1},     {3, 5, 7},      {33, 65, 129}, {128, 64, 96},
                                   {70, 16, 700}, {16, 70, 512},  {1, 300, 64},  {200, 8, 33},
                                   {64, 96, 16},  {40, 1030, 24}, {100, 1, 260}};
    static const struct {
        DType a, c;
        float alpha, beta;
        bool bias;
        int gap, shift;
    } kinds[] = {{DT_f32, DT_f32, 1, 0, 0, 0, 0},    {DT_f32, DT_f32, -0.5f, 1, 0, 3, 1},
                 {DT_f32, DT_f32, 2, 0, 1, 8, 0},    {DT_bf16, DT_f32, 1, 0, 0, 0, 0},
                 {DT_bf16, DT_f32, 16, 1, 0, 8, 64}, {DT_bf16, DT_f32, 1, 1, 1, 5, 3},
                 {DT_bf16, DT_bf16, 1, 0, 0, 0, 0},  {DT_bf16, DT_bf16, 0.25f, 0, 0, 1, 8},
                 {DT_bf16, DT_bf16, 1, 1, 0, 16, 0}};
    char *dir = temp_dir();
    Device *dev = open_device(dir);
    for (size_t s = 0; s < COUNT(sizes); s++)
        for (size_t i = 0; i < COUNT(kinds); i++)
            for (int t = 0; t < 4; t++) {
                Gemm g = plain(kinds[i].a, kinds[i].c, t & 1, t >> 1);
                g.alpha = kinds[i].alpha;
                g.beta = kinds[i].beta;
                g.bias = kinds[i].bias;
                Product p =
                    make(g, sizes[s][0], sizes[s][1], sizes[s][2], kinds[i].gap, kinds[i].shift);
                char *c = compute(dev, &p);
                check(&p, c);
                free(c);
                drop(&p);
            }
    dev->ops->close(dev);
    remove_dir(dir);
}

/* Without terms: beta C.  Without rows or columns: nothing. */
static void test_zero_sizes(void **state) {
    (void)state;
    char *dir = temp_dir();
    Device *dev = open_device(dir);
    for (int beta = 0; beta < 2; beta++) {
        Gemm g = plain(DT_bf16, DT_f32, true, false);
        g.beta = (float)beta;
        Product p = make(g, 5, 7, 3, 2, 0);
        p.k = 0;
        char *c = compute(dev, &p);
        check(&p, c);
        free(c);
        p.k = 3;
        p.m = 0;
        c = compute(dev, &p);
        assert_memory_equal(c, p.host[2], (size_t)p.bytes[2]);
        free(c);
        drop(&p);
    }
    dev->ops->close(dev);
    remove_dir(dir);
}

/* A file of choices as the test of one product leaves it. */
static GemmChoice only_choice(const char *path) {
    GemmChoices found = {0};
    gemm_choices_read(&found, path);
    assert_int_equal(found.n, 1);
    GemmChoice c = found.choice[0];
    gemm_choices_free(&found);
    return c;
}

static void write_choice(const char *path, const char *key, const GemmChoice *c) {
    GemmChoices one = {0};
    Err err = {0};
    gemm_choices_put(&one, key, c->word);
    assert_true(gemm_choices_write(&one, path, &err));
    gemm_choices_free(&one);
}

/* The bits of a product on a device opened for it alone. */
static char *once(const char *cache, const char *choices, const Product *p) {
    Device *dev = open_with(cache, choices, WORK, SCRATCH);
    char *c = compute(dev, p);
    dev->ops->close(dev);
    return c;
}

/* Which algorithm runs decides the bits; the run's file comes before the cache's. */
static void test_choices(void **state) {
    (void)state;
    char *dir = temp_dir(), path[4200], mine[4200];
    snprintf(path, sizeof path, "%s/gemm_choices", dir);
    snprintf(mine, sizeof mine, "%s/mine", dir);
    Product p = make(plain(DT_bf16, DT_f32, false, true), 24, 40, 1024, 0, 0);
    free(once(dir, NULL, &p));
    GemmChoice kept = only_choice(path);
    assert_non_null(strstr(kept.key, "24 x 40 x 1024"));

    /* The simulated library's algorithms are (mark, index): two with different orders of sums. */
    GemmChoice first = kept, last = kept;
    first.word[1] = 0;
    last.word[1] = 5;
    write_choice(path, kept.key, &first);
    char *c0 = once(dir, NULL, &p), *again = once(dir, NULL, &p);
    assert_memory_equal(c0, again, (size_t)p.bytes[2]);
    write_choice(mine, kept.key, &last);
    char *c5 = once(dir, mine, &p);
    check(&p, c0);
    check(&p, c5);
    assert_memory_not_equal(c0, c5, (size_t)p.bytes[2]);
    assert_int_equal(only_choice(path).word[1], 0); /* the cache keeps its own */

    /* What a run saves is what it used. */
    Err err = {0};
    Device *dev = open_with(dir, mine, WORK, SCRATCH);
    free(compute(dev, &p));
    char saved[4200];
    snprintf(saved, sizeof saved, "%s/saved", dir);
    assert_true(dev->ops->save_choices(dev, saved, &err));
    dev->ops->close(dev);
    assert_int_equal(only_choice(saved).word[1], 5);

    /* A run that went on and did not multiply this yet still keeps it. */
    Product q = make(plain(DT_bf16, DT_f32, false, true), 8, 8, 64, 0, 0);
    dev = open_with(dir, mine, WORK, SCRATCH);
    free(compute(dev, &q));
    assert_true(dev->ops->save_choices(dev, saved, &err));
    dev->ops->close(dev);
    GemmChoices both = {0};
    gemm_choices_read(&both, saved);
    assert_int_equal(both.n, 2);
    assert_int_equal(gemm_choices_find(&both, kept.key)->word[1], 5);
    gemm_choices_free(&both);
    drop(&q);
    free(c0);
    free(c5);
    free(again);
    drop(&p);
    remove_dir(dir);
}

/* Files that cannot be used: damaged, of another device, with what is no algorithm. */
static void test_bad_choices(void **state) {
    (void)state;
    char *dir = temp_dir(), path[4200], mine[4200];
    snprintf(path, sizeof path, "%s/gemm_choices", dir);
    snprintf(mine, sizeof mine, "%s/mine", dir);
    Product p = make(plain(DT_bf16, DT_bf16, false, true), 24, 40, 256, 0, 0);
    free(once(dir, NULL, &p));
    GemmChoice kept = only_choice(path);
    Err err = {0};
    size_t n;
    char *text = file_read(path, &n, &err);
    for (size_t at = 0; at < n; at += 37) { /* any byte; then any length */
        text[at] ^= 1;
        assert_true(file_write(mine, text, n, &err));
        text[at] ^= 1;
        GemmChoices found = {0};
        gemm_choices_read(&found, mine);
        assert_int_equal(found.n, 0);
        assert_true(file_write(mine, text, at, &err));
        gemm_choices_read(&found, mine);
        assert_int_equal(found.n, 0);
        gemm_choices_free(&found);
    }
    free(text);
    char *c = once(dir, mine, &p); /* the damaged file is a warning */
    check(&p, c);
    free(c);

    GemmChoice wrong = kept;
    wrong.word[0] = 12345;
    write_choice(mine, kept.key, &wrong);
    c = once(dir, mine, &p);
    check(&p, c);
    free(c);

    write_choice(path, "another device, cuBLASLt 130000: 1 x 1 x 1", &kept);
    c = once(dir, NULL, &p);
    check(&p, c);
    free(c);
    GemmChoices both = {0};
    gemm_choices_read(&both, path);
    assert_int_equal(both.n, 2); /* what others keep stays */
    gemm_choices_free(&both);
    drop(&p);
    remove_dir(dir);
}

/* Nothing outside the workspace is written, and what does not fit is not chosen. */
static void test_workspace(void **state) {
    (void)state;
    static const int64_t works[] = {0, 4096, 24 * 40 * 4 * 2, WORK};
    char *all = malloc(OPERANDS), *now = malloc(OPERANDS);
    for (size_t i = 0; i < COUNT(works); i++) {
        char *dir = temp_dir();
        Err err = {0};
        Device *dev = open_with(dir, NULL, works[i], SCRATCH);
        memset(all, 0x5a, OPERANDS);
        assert_true(dev->ops->write(dev, 0, all, OPERANDS, &err));
        Product p = make(plain(DT_f32, DT_f32, false, false), 24, 40, 300, 0, 0);
        char *c = compute(dev, &p);
        check(&p, c);
        free(c);
        assert_true(dev->ops->read(dev, 0, now, OPERANDS, &err));
        assert_memory_equal(all, now, GUARD);
        assert_memory_equal(all, now + GUARD + works[i], (size_t)(GUARD + WORK - works[i]));
        dev->ops->close(dev);
        drop(&p);
        remove_dir(dir);
    }
    free(all);
    free(now);
}

/* How often a function was called since the file was made; "name*": all that begin so. */
static int calls(const char *trace, const char *name) {
    Err err = {0};
    int count = 0;
    size_t n = strcspn(name, "*");
    char *text = file_read(trace, NULL, &err);
    assert_non_null(text);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        count += !strncmp(line, name, n) && (name[n] || !line[n]);
    free(text);
    return count;
}

/* All descriptors are made by prepare; without room for operands nothing is timed. */
static void test_calls(void **state) {
    (void)state;
    Err err = {0};
    Product p = make(plain(DT_bf16, DT_f32, false, true), 24, 40, 64, 0, 0);
    for (int timed = 0; timed < 2; timed++) {
        char *dir = temp_dir(), trace[4200];
        snprintf(trace, sizeof trace, "%s/trace", dir);
        Device *dev = open_with(dir, NULL, WORK, timed ? SCRATCH : 0);
        assert_true(write_operands(dev, &p, &err));
        setenv("CUDASIM_TRACE", trace, 1);
        assert_true(prepare(dev, &p, &err) && prepare(dev, &p, &err));
        assert_int_equal(calls(trace, "cublasLtMatmulAlgoGetHeuristic"), 1);
        assert_int_equal(calls(trace, "cublasLtMatmulDescCreate"), 1);
        assert_true(timed == (calls(trace, "cublasLtMatmul") > 0));
        unlink(trace);
        assert_true(run(dev, &p, &err) && run(dev, &p, &err));
        assert_int_equal(calls(trace, "cublasLtMatmul"), 2);
        assert_int_equal(calls(trace, "cublasLt*"), 2); /* and nothing else */
        unsetenv("CUDASIM_TRACE");
        dev->ops->close(dev);
        remove_dir(dir);
    }
    drop(&p);
}

/* Each function fails once: an error that names it and what was multiplied. */
static void test_failures(void **state) {
    (void)state;
    static const char *const functions[] = {"cublasLtMatmulDescCreate",
                                            "cublasLtMatmulDescSetAttribute",
                                            "cublasLtMatrixLayoutCreate",
                                            "cublasLtMatmulPreferenceCreate",
                                            "cublasLtMatmulAlgoGetHeuristic",
                                            "cublasLtMatmulPreferenceSetAttribute",
                                            "cublasLtMatmul"};
    char *dir = temp_dir();
    Err err = {0};
    Device *dev = open_with(dir, NULL, WORK, 0);
    for (size_t i = 0; i < COUNT(functions); i++) {
        Product p = make(plain(DT_bf16, DT_f32, false, true), 8, 16, 24 + (int64_t)i, 0, 0);
        assert_true(write_operands(dev, &p, &err));
        setenv("CUDASIM_FAIL", functions[i], 1);
        Err failed = {0};
        assert_false(prepare(dev, &p, &failed) && run(dev, &p, &failed));
        unsetenv("CUDASIM_FAIL");
        assert_non_null(strstr(failed.text, functions[i]));
        assert_non_null(strstr(failed.text, "CUBLAS_STATUS_INTERNAL_ERROR"));
        assert_non_null(strstr(failed.text, "8 x 16 x"));
        assert_int_equal(failed.code, EXIT_DEVICE);
        char *c = compute(dev, &p); /* and then it works */
        check(&p, c);
        free(c);
        drop(&p);
    }
    dev->ops->close(dev);
    setenv("CUDASIM_FAIL", "cublasLtCreate", 1);
    DeviceOptions options = {.name = "cuda", .cache_dir = dir};
    assert_null(device_open(&options, &err));
    assert_non_null(strstr(err.text, "cublasLtCreate"));
    unsetenv("CUDASIM_FAIL");
    remove_dir(dir);
}

/* A kept algorithm that cannot be checked is chosen anew; one that cannot be timed is passed over. */
static void test_failures_mended(void **state) {
    (void)state;
    char *dir = temp_dir();
    Product p = make(plain(DT_bf16, DT_f32, false, true), 24, 40, 128, 0, 0);
    setenv("CUDASIM_FAIL", "cublasLtMatmul", 1);
    char *c = once(dir, NULL, &p);
    check(&p, c);
    free(c);
    setenv("CUDASIM_FAIL", "cublasLtMatmulAlgoCheck", 1);
    c = once(dir, NULL, &p);
    check(&p, c);
    free(c);
    unsetenv("CUDASIM_FAIL");
    drop(&p);
    remove_dir(dir);
}

/* A recorded product keeps its factors and its bias's place, and reads what is there at replay. */
static void test_recorded(void **state) {
    (void)state;
    char *dir = temp_dir();
    Err err = {0};
    Device *dev = open_device(dir);
    const DeviceOps *ops = dev->ops;
    Gemm g = plain(DT_bf16, DT_f32, false, true);
    g.bias = true;
    Product p = make(g, 24, 40, 64, 0, 0), other = make(g, 24, 40, 64, 0, 64);
    other.g.alpha = 3;
    for (int i = 0; i < 4; i++) other.offset[i] += 1 << 20;
    void *work;
    if (!prepare(dev, &p, &err) || !prepare(dev, &other, &err) || !ops->record(dev, &err) ||
        !run(dev, &p, &err) || !run(dev, &other, &err) || !ops->recorded(dev, &work, &err))
        fail_msg("%s", err.text);
    for (int i = 0; i < 2; i++) {
        Product *x = i ? &other : &p;
        char *c = malloc((size_t)x->bytes[2]);
        if (!write_operands(dev, x, &err) || !ops->replay(dev, work, &err) ||
            !ops->read(dev, x->offset[2], c, x->bytes[2], &err))
            fail_msg("%s", err.text);
        check(x, c);
        free(c);
    }
    ops->forget(dev, work);
    ops->close(dev);
    drop(&p);
    drop(&other);
    remove_dir(dir);
}

/* What the device finds wrong later is found by the next wait.  In a process of its own, and first:
 * an error of the device stays for good. */
static void test_outside(void **state) {
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child) {
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        return;
    }
    char *dir = temp_dir();
    Err err = {0};
    Device *dev = open_device(dir);
    Product p = make(plain(DT_f32, DT_f32, false, false), 8, 8, 8, 0, 0);
    p.offset[0] = ARENA - 8;
    p.g.align = 8;
    bool ok = prepare(dev, &p, &err) && run(dev, &p, &err);
    bool found = ok && !dev->ops->sync(dev, &err) && strstr(err.text, "ILLEGAL_ADDRESS");
    remove_dir(dir);
    _exit(!found);
}

/* A product that nobody prepared, or prepared for better aligned operands, is a bug with a name. */
static void test_unprepared(void **state) {
    (void)state;
    char *dir = temp_dir();
    Device *dev = open_device(dir);
    Product p = make(plain(DT_f32, DT_f32, false, false), 4, 8, 12, 0, 0);
    for (int step = 0; step < 2; step++) {
        Err err = {0};
        assert_false(run(dev, &p, &err));
        assert_int_equal(err.code, EXIT_BUG);
        assert_non_null(strstr(err.text, "4 x 8 x 12"));
        Err none = {0};
        assert_true(prepare(dev, &p, &none));
        assert_true(run(dev, &p, &none));
        p.offset[1] += 4;
        p.g.align = 4;
    }
    drop(&p);
    dev->ops->close(dev);
    remove_dir(dir);
}

int main(int argc, char **argv) {
    (void)argc;
    simulate(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outside),         cmocka_unit_test(test_products),
        cmocka_unit_test(test_zero_sizes),      cmocka_unit_test(test_choices),
        cmocka_unit_test(test_bad_choices),     cmocka_unit_test(test_workspace),
        cmocka_unit_test(test_calls),           cmocka_unit_test(test_failures),
        cmocka_unit_test(test_failures_mended), cmocka_unit_test(test_unprepared),
        cmocka_unit_test(test_recorded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
