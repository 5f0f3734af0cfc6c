/* The hand-written plan: its file reads back equal, runs, and agrees with the evaluator. */
#include "device.h"

#include "../../compiler/dpoc.h"

#include <math.h>

enum { T = 64, R = 11, G = 4 };

/* A prompt, two answers that see it as their prefix, and the dummy segment that fills the
 * bucket. */
static const int32_t segs[G * 6] = {0,  20, 0, 0,  0,  20, 20, 10, 0,  20, 20, 10,
                                    30, 14, 0, 20, 30, 14, 44, 20, 44, 0,  44, 20};
/* The last prompt row predicts both first answers; -1 fills up. */
static const int32_t rows[R] = {19, 20, 25, 28, 19, 30, 31, 42, 20, 0, -1};

typedef struct Result {
    float y[R * 16], s[16];
} Result;

static void inputs(float *x) {
    for (int i = 0; i < T * 16; i++) x[i] = sinf((float)i * 0.7f);
}

static Result run_plan(const Plan *plan, const char *dir, int threads) {
    Err err = {0};
    float x[T * 16];
    Result r;
    Device *dev = open_cpu(dir, NULL, threads);
    Exec *exec = exec_open(plan, dev, &err);
    BindSource base = {.source = "base", .checkpoint = dir};
    int64_t extent[NEXTENT] = {[X_T] = T, [X_R] = R, [X_G] = G};
    inputs(x);
    bool ok = exec && exec_bind(exec, &base, 1, 1, NULL, &err) &&
              exec_write(exec, "x", x, sizeof x, &err) &&
              exec_write(exec, "segs", segs, sizeof segs, &err) &&
              exec_write(exec, "row", rows, sizeof rows, &err);
    for (int i = 0; ok && i < 2; i++) ok = exec_run(exec, "micro", extent, &err);
    ok = ok && exec_read(exec, "y", r.y, sizeof r.y, &err) &&
         exec_read(exec, "s", r.s, sizeof r.s, &err);
    if (!ok) fail_msg("%s", err.text);
    exec_close(exec);
    dev->ops->close(dev);
    return r;
}

static void set(Eval *e, const char *leaf, const float *f, const int32_t *i, int n) {
    double *d = malloc((size_t)n * sizeof *d);
    for (int k = 0; k < n; k++) d[k] = f ? (double)f[k] : i[k];
    eval_set(e, intern(leaf), d, n);
    free(d);
}

/* The graph the plan was made from, in double. */
static Eval *truth(Arena *arena) {
    Err err = {0};
    size_t len;
    char *text = file_read("tests/device/plan.ir", &len, &err);
    assert_non_null(text);
    Diags *diags = diags_new(arena);
    Graph *g = graph_read(arena, diags, source_add(diags, "plan.ir", arena_str(arena, text), len));
    free(text);
    diags_print(diags, 0, stderr, false);
    assert_non_null(g);
    int64_t extent[NEXTENT] = {[X_T] = T, [X_R] = R, [X_G] = G};
    Eval *e = eval_new(g, EVAL_DOUBLE, extent);
    for (size_t i = 0; i < COUNT(test_tensors); i++) {
        float data[256];
        const TestTensor *t = &test_tensors[i];
        for (int k = 0; k < t->rows * t->cols; k++) data[k] = weight_value(t->name, k);
        bool tied = !strcmp(t->name, "tied.weight");
        set(e, intern_printf("base/%s", tied ? "o_proj.weight" : t->name), data, NULL,
            t->rows * t->cols);
    }
    float x[T * 16];
    inputs(x);
    set(e, "x", x, NULL, T * 16);
    set(e, "segs", NULL, segs, G * 6);
    set(e, "row", NULL, rows, R);
    eval_run(e, PHASE_MICRO, false);
    return e;
}

static void close_to(const float *got, const double *want, int n, double bound) {
    for (int i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= bound))
            fail_msg("[%d] is %.9g, not %.9g", i, (double)got[i], want[i]);
}

static void agrees_with_evaluator(void **unused) {
    Err err = {0};
    char *dir = temp_dir();
    write_checkpoint(dir);
    Plan *plan = plan_read(PLAN, &err);
    if (!plan) fail_msg("%s", err.text);
    Result one = run_plan(plan, dir, 1), two = run_plan(plan, dir, 2);
    assert_memory_equal(&one, &two, sizeof one);
    Arena *arena = arena_new();
    Eval *e = truth(arena);
    int64_t n;
    /* values of size about 10 after three products of 16 terms and one softmax */
    close_to(one.y, eval_state(e, intern("y"), &n), R * 16, 1e-4);
    close_to(one.s, eval_state(e, intern("s"), &n), 16, 1e-4);
    assert_memory_equal(&one.y[0], &one.y[4 * 16], 64); /* the repeated scored row */
    eval_free(e);
    arena_free(arena);
    plan_free(plan);
    remove_dir(dir);
}

static void reads_back_equal(void **unused) {
    Err err = {0};
    Plan *plan = plan_read(PLAN, &err);
    assert_non_null(plan);
    char *first = plan_to_json(plan);
    Plan *again = plan_from_json(first, "again", &err);
    if (!again) fail_msg("%s", err.text);
    char *second = plan_to_json(again);
    assert_string_equal(first, second);
    assert_string_equal(plan->kernels[1].text, again->kernels[1].text);
    assert_string_equal(plan->prelude, again->prelude);
    assert_int_equal(plan->bufs[10].shrink[0].bytes, again->bufs[10].shrink[0].bytes);
    assert_int_equal(plan_num(again, "run.lr") * 1e6, 1000);
    assert_string_equal(plan_str(again, "run.optimizer"), "adamw");
    free(first);
    free(second);
    plan_free(plan);
    plan_free(again);
}

/* The file with the first `from` replaced must be refused, and the message must say `says`. */
typedef struct Bad {
    const char *from, *to, *says;
} Bad;
static const Bad bad[] = {
    {"\"dpoc_plan\": 1", "\"dpoc_plan\": 9", "version 9"},
    {"\"bucket\": 8", "\"bucket\": 0", "bucket"},
    {"\"bucket\": 8", "\"bukket\": 8", "bucket: is missing"},
    {"\"fits\": true", "\"fit\": true", "fit: unknown key"},
    {"\"fits\": true", "\"fits\": 1", "fits: must be true or false"},
    {"\"T\": 64", "\"T\": 99999999999", "bound T"},
    {"\"T\": 64", "\"T\": 65", "its shape needs"},
    {"\"arena_bytes\": 284928", "\"arena_bytes\": 284000", "leave the arena"},
    {"\"role\": \"input\"", "\"role\": \"imput\"", "bufs[0].role: unknown role"},
    {"\"dtype\": \"f32\"", "\"dtype\": \"f33\"", "bufs[0].dtype: unknown dtype"},
    {"[\"T\", 16]", "[\"T*T\", 16]", "shape: not a size"},
    {"[\"T\", 16]", "[\"T\", 1.5]", "must be an integer"},
    {"[\"T\", 16]", "[\"T\", 1, 1, 1, 1]", "more than 4 axes"},
    {"\"offset\": 4096", "\"offset\": 4032", "live at once in the same bytes"},
    {"\"offset\": 4096", "\"offset\": 4097", "not aligned"},
    {"\"offset\": 4096", "\"offset\": -1", "offset: is out of range"},
    {"\"name\": \"segs\"", "\"name\": \"x\"", "stands twice"},
    {"[1, 0, 1]", "[2, 0, 1]", "program 2 does not exist"},
    {"[1, 0, 1]", "[1, 0, 9]", "is not within the steps"},
    {"[1, 0, 1]", "[1, 1, 1]", "\"%qkv\" is not live here"},
    {"[[2, 2048]]", "[[2, 9999]]", "does not get smaller"},
    {"[[2, 2048]]", "[[2, 2049]]", "live at once in the same bytes"},
    {"\"buf\": 3, \"rows\"", "\"buf\": 99, \"rows\"", "binds[0]: buf 99"},
    {"\"buf\": 3, \"offset\": 1536", "\"buf\": 3, \"offset\": 1540", "does not fit into \"qkv\""},
    {"\"buf\": 3, \"rows\"", "\"buf\": 9, \"rows\"", "is not persistent"},
    {"\"transform\": \"copy\"", "\"transform\": \"nf5.codes\"", "unknown transform"},
    {"\"transform\": \"copy\"", "\"transform\": \"nf4.codes\", \"num\": 64",
     "does not go into a f32"},
    {"\"transform\": \"copy\"", "\"transform\": \"nf4.absmax\", \"num\": 64, \"quantizer\": 9",
     "quantizer 9 does not exist"},
    {"\"transform\": \"copy\"", "\"transform\": \"nf4.absmax\", \"num\": 63, \"quantizer\": 1",
     "in blocks of 63 has no quantizer"},
    {"\"transform\": \"copy\"", "\"transform\": \"copy\", \"quantizer\": 1", "has no quantizer"},
    {"\"kernel\": 0", "\"kernel\": 44", "kernel 44 does not exist"},
    {"[4, 5], \"dims\"", "[4, 55], \"dims\"", "buf 55 does not exist"},
    {"[9, 96]", "[9, 8200]", "offset leaves \"%qkv\""},
    {"[9, 96]", "[9, \"-T\"]", "offset leaves \"%qkv\""},
    {"[9, 96]", "[9, 96, 4]", "chunk bytes outside a loop"},
    {"[\"T\", 32, 16]", "[\"T\", 33, 16]", "b: 33 x 16 does not fit into \"qkv\""},
    {"[\"T\", 32, 16]", "[\"2*T\", 32, 16]", "does not fit into \"x\""},
    {"\"ldb\": 16", "\"ldb\": 15", "b: ld 15"},
    {"\"a\": \"f32\"", "\"a\": \"u8\"", "gemm of u8"},
    {"\"do\": \"loop\"", "\"do\": \"loup\"", "unknown kind of step"},
    {"\"chunk\": 6, \"body\": 1", "\"chunk\": 6, \"body\": 2", "body of 2"},
    {"\"chunk\": 6, \"body\": 1", "\"chunk\": 0, \"body\": 1", "a chunk and a body"},
    {"\"args\": [0, 3, 9]", "\"side\": true, \"args\": [0, 3, 9]", "only a kernel"},
    {"\"args\": [10, 2, 11]", "\"side\": true, \"args\": [10, 2, 11]", "\"%attn\" ends or shrinks"},
    {"\"args\": [9, [9, 64]", "\"side\": true, \"args\": [1, [9, 64]", "runs aside with \"segs\""},
    {"\"symbol\": \"k_half\"", "\"symbol\": \"k-half\"", "is not a C name"},
    {"\"symbol\": \"k_half\"", "\"symbol\": \"k_halv\"", "does not define"},
    {"[\"loss\", \"inv_pairs\"]", "[\"loss\"]", "metrics"},
    {"[\"#include", "[1, \"#include", "array of lines"},
    {"\"hash\"", "\"device\"", "not valid JSON"},
    {"\"settings\": [", "\"settings\": [[", "not valid JSON"},
};

static void refuses_bad_files(void **unused) {
    Err err = {0};
    char *good = file_read(PLAN, NULL, &err);
    assert_non_null(good);
    for (size_t i = 0; i < COUNT(bad); i++) {
        char *at = strstr(good, bad[i].from);
        if (!at) fail_msg("\"%s\" is not in the file", bad[i].from);
        Text text = {0};
        text_add(&text, "%.*s%s%s", (int)(at - good), good, bad[i].to, at + strlen(bad[i].from));
        Err wrong = {0};
        Plan *plan = plan_from_json(text.data, "p.json", &wrong);
        text_free(&text);
        if (plan) fail_msg("accepted: %s", bad[i].to);
        assert_int_equal(wrong.code, EXIT_IO);
        if (!strstr(wrong.text, bad[i].says) || strncmp(wrong.text, "p.json:", 7))
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].to, wrong.text, bad[i].says);
    }
    free(good);
}

/* Cut anywhere, it is refused and nothing else happens. */
static void refuses_cut_files(void **unused) {
    Err err = {0};
    size_t len;
    char *good = file_read(PLAN, &len, &err);
    for (size_t n = 0; n + 2 < len; n += 13) {
        Err wrong = {0};
        char *cut = strndup(good, n);
        assert_null(plan_from_json(cut, "p.json", &wrong));
        assert_int_equal(wrong.code, EXIT_IO);
        free(cut);
    }
    free(good);
}

static void wrong_use_is_named(void **unused) {
    Err err = {0};
    char *dir = temp_dir();
    Plan *plan = plan_read(PLAN, &err);
    Device *dev = open_cpu(dir, NULL, 1);
    Exec *exec = exec_open(plan, dev, &err);
    assert_non_null(exec);
    int64_t extent[NEXTENT] = {[X_T] = 65};
    char big[5000] = {0};
    Err e1 = {0}, e2 = {0}, e3 = {0}, e4 = {0};
    assert_false(exec_write(exec, "nosuch", big, 4, &e1));
    assert_non_null(strstr(e1.text, "no buffer \"nosuch\""));
    assert_false(exec_read(exec, "x", big, sizeof big, &e2));
    assert_non_null(strstr(e2.text, "5000 bytes for buffer \"x\""));
    assert_false(exec_run(exec, "macro", extent, &e3));
    assert_non_null(strstr(e3.text, "no program \"macro\""));
    assert_false(exec_run(exec, "micro", extent, &e4));
    assert_non_null(strstr(e4.text, "T = 65"));
    exec_close(exec);
    dev->ops->close(dev);
    plan_free(plan);
    remove_dir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_evaluator), cmocka_unit_test(reads_back_equal),
        cmocka_unit_test(refuses_bad_files), cmocka_unit_test(refuses_cut_files),
        cmocka_unit_test(wrong_use_is_named)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
