/* Matrix products of the CUDA device on the simulated cuBLASLt: against sums in double precision,
 * the file of chosen algorithms, the workspace, what happens when a function fails. */
#include "../../runtime/gemm_choices.h"
#include "product.h"
#include "simulated.h"

#include <sys/wait.h>

#define WORK     (INT64_C(8) << 20)
#define SCRATCH  (INT64_C(8) << 20)
#define ARENA    (INT64_C(32) << 20)
#define OPERANDS (2 * GUARD + WORK + SCRATCH)
#define U        0x1p-24

static const Room room = {WORK, SCRATCH, ARENA};

static Device *open_device(const char *cache) {
    return open_in(&room, cache, NULL);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_products(void **state) {
    (void)state;
    char *dir = temp_dir();
    Device *dev = open_device(dir);
    check_grid(dev, &room, false, U);
    check_grid(dev, &room, true, U);
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
        Product p = make(&room, g, 5, 7, 3, 2, 0, false);
        p.k = 0;
        char *c = compute(dev, &p);
        check(&p, c, U);
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
    Device *dev = open_in(&room, cache, choices);
    char *c = compute(dev, p);
    dev->ops->close(dev);
    return c;
}

/* What the library proposes first: for operands that are not aligned, the algorithm for these. */
static GemmChoice proposal(const Product *p) {
    char *dir = temp_dir();
    Device *dev = open_in(&(Room){WORK, 0, ARENA}, dir, NULL);
    free(compute(dev, p));
    dev->ops->close(dev);
    GemmChoice c = only_choice(intern_printf("%s/gemm_choices", dir));
    remove_dir(dir);
    return c;
}

/* Which algorithm runs decides the bits; the run's file comes before the cache's. */
static void test_choices(void **state) {
    (void)state;
    char *dir = temp_dir(), path[4200], mine[4200];
    snprintf(path, sizeof path, "%s/gemm_choices", dir);
    snprintf(mine, sizeof mine, "%s/mine", dir);
    Product p = make(&room, plain(DT_bf16, DT_f32, false, true), 24, 40, 1024, 0, 0, false);
    free(once(dir, NULL, &p));
    GemmChoice kept = only_choice(path);
    assert_non_null(strstr(kept.key, "24 x 40 x 1024"));

    /* Two algorithms with different orders of sums. */
    Product odd = make(&room, p.g, p.m, p.n, p.k, 0, 1, false);
    GemmChoice first = proposal(&p), last = proposal(&odd);
    drop(&odd);
    write_choice(path, kept.key, &first);
    char *c0 = once(dir, NULL, &p), *again = once(dir, NULL, &p);
    assert_memory_equal(c0, again, (size_t)p.bytes[2]);
    write_choice(mine, kept.key, &last);
    char *c5 = once(dir, mine, &p);
    check(&p, c0, U);
    check(&p, c5, U);
    assert_memory_not_equal(c0, c5, (size_t)p.bytes[2]);
    kept = only_choice(path); /* the cache keeps its own */
    assert_memory_equal(kept.word, first.word, sizeof kept.word);

    /* What a run saves is what it used. */
    Err err = {0};
    Device *dev = open_in(&room, dir, mine);
    free(compute(dev, &p));
    char saved[4200];
    snprintf(saved, sizeof saved, "%s/saved", dir);
    assert_true(dev->ops->save_choices(dev, saved, &err));
    dev->ops->close(dev);
    GemmChoice used = only_choice(saved);
    assert_memory_equal(used.word, last.word, sizeof used.word);

    /* A run that went on and did not multiply this yet still keeps it. */
    Product q = make(&room, plain(DT_bf16, DT_f32, false, true), 8, 8, 64, 0, 0, false);
    dev = open_in(&room, dir, mine);
    free(compute(dev, &q));
    assert_true(dev->ops->save_choices(dev, saved, &err));
    dev->ops->close(dev);
    GemmChoices both = {0};
    gemm_choices_read(&both, saved);
    assert_int_equal(both.n, 2);
    assert_memory_equal(gemm_choices_find(&both, kept.key)->word, last.word, sizeof last.word);
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
    Product p = make(&room, plain(DT_bf16, DT_bf16, false, true), 24, 40, 256, 0, 0, false);
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
    check(&p, c, U);
    free(c);

    GemmChoice wrong = kept;
    wrong.word[0] = 12345;
    write_choice(mine, kept.key, &wrong);
    c = once(dir, mine, &p);
    check(&p, c, U);
    free(c);

    write_choice(path, "another device, cuBLASLt 130000: 1 x 1 x 1", &kept);
    c = once(dir, NULL, &p);
    check(&p, c, U);
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
        Device *dev = open_in(&(Room){works[i], 0, ARENA}, dir, NULL);
        memset(all, 0x5a, OPERANDS);
        assert_true(dev->ops->write(dev, 0, all, OPERANDS, &err));
        Product p = make(&room, plain(DT_f32, DT_f32, false, false), 24, 40, 300, 0, 0, false);
        char *c = compute(dev, &p);
        check(&p, c, U);
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

/* ---- twins ----------------------------------------------------------------------------------- */

/* The same numbers multiplied into f32 and into bf16. */
typedef struct Twins {
    Product of[2];
} Twins;

/* The second half of k takes away what the first half adds: what is left are the roundings, which
 * no other order of sums has. */
static Twins make_twins(int64_t n) {
    Twins t;
    const int64_t k = 1024, half = k / 2;
    for (int i = 0; i < 2; i++) {
        DType result = i ? DT_bf16 : DT_f32;
        numbers_again();
        t.of[i] = make(&room, plain(DT_bf16, result, false, true), 24, n, k, 0, 0, false);
        uint16_t *a = (uint16_t *)t.of[i].host[0], *b = (uint16_t *)t.of[i].host[1];
        for (int64_t at = 0; at < 24 * k; at += k)
            memcpy(&a[at + half], &a[at], (size_t)half * sizeof *a);
        for (int64_t at = 0; at < n * k; at += k)
            for (int64_t j = at; j < at + half; j++) b[j + half] = b[j] ^ 0x8000;
    }
    return t;
}

static void drop_twins(Twins *t) {
    drop(&t->of[0]);
    drop(&t->of[1]);
}

/* Prepared in this order, then computed; whether the f32 sums round to the bf16 ones. */
static bool equal_sums(Device *dev, const Twins *t, int first) {
    Err err = {0};
    if (!prepare(dev, &t->of[first], &err) || !prepare(dev, &t->of[!first], &err))
        fail_msg("%s", err.text);
    char *c[2];
    for (int i = 0; i < 2; i++) {
        c[i] = compute(dev, &t->of[i]);
        check(&t->of[i], c[i], U);
    }
    bool equal = true;
    for (int64_t i = 0; i < t->of[0].m * t->of[0].n; i++)
        equal = equal && float_to_bf16(((float *)c[0])[i]) == ((uint16_t *)c[1])[i];
    free(c[0]);
    free(c[1]);
    return equal;
}

/* One after the other in any order, timed or not.  Into bf16 the library proposes first what it has
 * for bf16 alone; with 172 columns rows of f32 are aligned to 16 bytes, rows of bf16 are not. */
static void test_twins(void **state) {
    (void)state;
    static const int64_t columns[] = {40, 172};
    for (int i = 0; i < 8; i++) {
        char *dir = temp_dir();
        Device *dev = open_in(&(Room){WORK, i & 1 ? SCRATCH : 0, ARENA}, dir, NULL);
        Twins t = make_twins(columns[i >> 2]);
        assert_true(equal_sums(dev, &t, i >> 1 & 1));
        dev->ops->close(dev);
        drop_twins(&t);
        remove_dir(dir);
    }
}

/* What has run stays: a twin that cannot follow it gets an algorithm of its own. */
static void test_settled(void **state) {
    (void)state;
    char *dir = temp_dir();
    Device *dev = open_in(&(Room){WORK, 0, ARENA}, dir, NULL);
    Twins t = make_twins(172);
    char *before = compute(dev, &t.of[0]);
    assert_false(equal_sums(dev, &t, 1));
    char *after = compute(dev, &t.of[0]);
    assert_memory_equal(before, after, (size_t)t.of[0].bytes[2]);
    free(before);
    free(after);
    dev->ops->close(dev);
    drop_twins(&t);
    remove_dir(dir);
}

/* Files keep twins equal; a cache that has them apart is mended, a run's file is followed. */
static void test_twins_kept(void **state) {
    (void)state;
    static const int64_t columns[] = {40, 172};
    char *dir = temp_dir(), path[4200], apart[4200], saved[4200], trace[4200];
    snprintf(path, sizeof path, "%s/gemm_choices", dir);
    snprintf(apart, sizeof apart, "%s/apart", dir);
    snprintf(saved, sizeof saved, "%s/saved", dir);
    snprintf(trace, sizeof trace, "%s/trace", dir);
    for (int i = 0; i < 4; i++) {
        Err err = {0};
        Twins t = make_twins(columns[i >> 1]);
        GemmChoices alone = {0};
        for (int k = 0; k < 2; k++) {
            GemmChoice c = proposal(&t.of[k]);
            gemm_choices_put(&alone, c.key, c.word);
        }
        assert_true(gemm_choices_write(&alone, path, &err));
        assert_true(gemm_choices_write(&alone, apart, &err));
        gemm_choices_free(&alone);
        Device *dev = open_device(dir);
        assert_true(equal_sums(dev, &t, i & 1));
        assert_true(dev->ops->save_choices(dev, saved, &err));
        dev->ops->close(dev);
        for (int given = 0; given < 2; given++) {
            setenv("CUDASIM_TRACE", trace, 1);
            dev = open_in(&room, given ? NULL : dir, given ? saved : NULL);
            assert_true(equal_sums(dev, &t, !(i & 1)));
            dev->ops->close(dev);
            unsetenv("CUDASIM_TRACE");
            assert_int_equal(calls(trace, "cublasLtMatmulAlgoGetHeuristic"), 0);
            unlink(trace);
        }
        dev = open_in(&room, dir, apart);
        assert_false(equal_sums(dev, &t, i & 1));
        dev->ops->close(dev);
        drop_twins(&t);
    }
    remove_dir(dir);
}

/* What the library refuses while a configuration is copied is no error. */
static void test_twin_failures(void **state) {
    (void)state;
    static const char *const functions[] = {
        "cublasLtMatmulAlgoInit", "cublasLtMatmulAlgoConfigGetAttribute",
        "cublasLtMatmulAlgoConfigSetAttribute", "cublasLtMatmulAlgoCapGetAttribute",
        "cublasLtMatmulAlgoCheck"};
    for (size_t i = 0; i < COUNT(functions); i++) {
        char *dir = temp_dir(), trace[4200];
        snprintf(trace, sizeof trace, "%s/trace", dir);
        Device *dev = open_in(&(Room){WORK, 0, ARENA}, dir, NULL);
        Twins t = make_twins(40);
        setenv("CUDASIM_FAIL", functions[i], 1);
        setenv("CUDASIM_TRACE", trace, 1);
        equal_sums(dev, &t, 0); /* each is right; they may differ */
        assert_true(calls(trace, functions[i]) > 0);
        assert_int_equal(calls(trace, "cublasLtMatmulAlgoGetHeuristic"), 2);
        unsetenv("CUDASIM_FAIL");
        unsetenv("CUDASIM_TRACE");
        dev->ops->close(dev);
        drop_twins(&t);
        remove_dir(dir);
    }
}

/* What cannot be timed takes what was the fastest for the nearest number of rows. */
static void test_nearest(void **state) {
    (void)state;
    char *dir = temp_dir();
    Device *dev = open_in(&(Room){WORK, 64 << 10, ARENA}, dir, NULL);
    for (int i = 0; i < 2; i++) { /* the second does not fit where operands are timed */
        Product p =
            make(&room, plain(DT_bf16, DT_f32, false, true), i ? 600 : 24, 40, 64, 0, 0, false);
        char *c = compute(dev, &p);
        check(&p, c, U);
        free(c);
        drop(&p);
    }
    dev->ops->close(dev);
    GemmChoices found = {0};
    gemm_choices_read(&found, intern_printf("%s/gemm_choices", dir));
    assert_int_equal(found.n, 2);
    assert_memory_equal(found.choice[0].word, found.choice[1].word, sizeof found.choice[0].word);
    gemm_choices_free(&found);
    remove_dir(dir);
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* All descriptors are made by prepare; without room for operands nothing is timed; a twin asks for
 * no proposals: all attributes of the first one's algorithm were copied, or it would be refused. */
static void test_calls(void **state) {
    (void)state;
    Err err = {0};
    Product p = make(&room, plain(DT_bf16, DT_bf16, false, true), 24, 40, 64, 0, 0, false);
    Product wide = p;
    wide.g.ldc += 8;
    for (int timed = 0; timed < 2; timed++) {
        char *dir = temp_dir(), trace[4200];
        snprintf(trace, sizeof trace, "%s/trace", dir);
        Device *dev = open_in(&(Room){WORK, timed ? SCRATCH : 0, ARENA}, dir, NULL);
        assert_true(write_operands(dev, &p, &err));
        setenv("CUDASIM_TRACE", trace, 1);
        assert_true(prepare(dev, &p, &err) && prepare(dev, &p, &err) && prepare(dev, &wide, &err));
        assert_int_equal(calls(trace, "cublasLtMatmulAlgoGetHeuristic"), 1);
        assert_int_equal(calls(trace, "cublasLtMatmulDescCreate"), 2);
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
    Device *dev = open_in(&(Room){WORK, 0, ARENA}, dir, NULL);
    for (size_t i = 0; i < COUNT(functions); i++) {
        Product p =
            make(&room, plain(DT_bf16, DT_f32, false, true), 8, 16, 24 + (int64_t)i, 0, 0, false);
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
        check(&p, c, U);
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

/* A kept algorithm that cannot be checked is chosen anew; one that cannot be timed is left out. */
static void test_failures_mended(void **state) {
    (void)state;
    char *dir = temp_dir();
    Product p = make(&room, plain(DT_bf16, DT_f32, false, true), 24, 40, 128, 0, 0, false);
    setenv("CUDASIM_FAIL", "cublasLtMatmul", 1);
    char *c = once(dir, NULL, &p);
    check(&p, c, U);
    free(c);
    setenv("CUDASIM_FAIL", "cublasLtMatmulAlgoCheck", 1);
    c = once(dir, NULL, &p);
    check(&p, c, U);
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
    Product p = make(&room, g, 24, 40, 64, 0, 0, false),
            other = make(&room, g, 24, 40, 64, 0, 64, false);
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
        check(x, c, U);
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
    Product p = make(&room, plain(DT_f32, DT_f32, false, false), 8, 8, 8, 0, 0, false);
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
    Product p = make(&room, plain(DT_f32, DT_f32, false, false), 4, 8, 12, 0, 0, false);
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
        cmocka_unit_test(test_recorded),        cmocka_unit_test(test_twins),
        cmocka_unit_test(test_settled),         cmocka_unit_test(test_twins_kept),
        cmocka_unit_test(test_twin_failures),   cmocka_unit_test(test_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
