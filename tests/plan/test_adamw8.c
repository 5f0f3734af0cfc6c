/* test_adamw8.c: the update with 8-bit moments against bitsandbytes' arithmetic (adamw8.json, made
 * by tests/peers/make_adamw8.py): two tensors, one too small to be coded, one whose last block is
 * not full; on the CPU device and, in double precision, by the evaluator.
 *
 * Both compute in f32 what the evaluator does in double, so a moment within rounding of the middle
 * of two codes may take the other one.  Codes: at most one of 256 apart, few of them.  A step moves
 * a parameter by lr m / sqrt(v), of which a code of m apart changes at most 1/14 (the widest gap of
 * the map, 0.0141, over its least number in that decade, 0.1, halved) and of v half of that; 5
 * steps: 5 lr / 7.  Where codes agree, 5 steps of some ten roundings of numbers up to 1: 1e-5.
 */
#include "run.h"

#include <jansson.h>
#include <math.h>

#include "kernels/dynamic.h"
#include "runtime/quantize.h"
#include "tests/gpu/executed.h"

enum { STEPS = 5, SMALL = 1024, LARGE = 4800, CODED = 5120, ALL = SMALL + CODED };

static float number(int64_t i, int stream) {
    uint32_t h = (uint32_t)i * 2654435761u + (uint32_t)stream * 40503u + 12345u;
    h = (h ^ h >> 15) * 2246822519u;
    h = (h ^ h >> 13) * 3266489917u;
    static const double tenth[] = {1, 0.1, 0.01, 0.001, 0.0001};
    return (float)((double)((int32_t)(h >> 8) - (1 << 23)) / (1 << 23) * tenth[h % 5]);
}

static void fill(float *x, int stream) {
    memset(x, 0, sizeof *x * ALL);
    for (int64_t i = 0; i < SMALL + LARGE; i++) x[i] = number(i, stream);
}

static Unit *update_unit(Arena *arena) {
    Unit *u = NEW(arena, Unit);
    *u = (Unit){.kind = UNIT_TRAIN,
                .target = target_by_name("cpu"),
                .arena = arena,
                .compute = DT_f32,
                .nparams = ALL,
                .coded = CODED};
    u->diags = diags_new(arena);
    u->g = graph_new(arena, u->diags);
    u->g->intern = true;
    for (int e = 0; e < NEXTENT; e++) u->bound[e] = 1;
    update_build(u);
    return u;
}

typedef struct Number {
    const char *name;
    double x;
} Number;

static int numbers(int t, Number out[10]) {
    const Number all[] = {{"lr", 1e-2},
                          {"clip", 0},
                          {"weight_decay", 0.1},
                          {"beta1", 0.9},
                          {"beta2", 0.999},
                          {"adam.rest1", 0.1},
                          {"adam.rest2", 1e-3},
                          {"eps", 1e-8},
                          {"adam.c1", 1 / (1 - pow(0.9, t))},
                          {"adam.c2", 1 / (1 - pow(0.999, t))}};
    memcpy(out, all, sizeof all);
    return COUNT(all);
}

/* ---- what was computed, against the figures -------------------------------------------------- */

typedef struct Got { /* after the last step */
    float params[STEPS][ALL];
    uint8_t m8[CODED], v8[CODED];
    float most[2][CODED / 256];
} Got;

static double figure(json_t *o, const char *key, size_t i) {
    json_t *x = json_array_get(json_object_get(o, key), i);
    assert_true(json_is_number(x));
    return json_number_value(x);
}

static void check_codes(json_t *o, const char *key, const uint8_t *code, size_t every) {
    size_t n = json_array_size(json_object_get(o, key));
    int apart = 0;
    assert_true(n > 100);
    for (size_t i = 0; i < n; i++) {
        int d = abs((int)figure(o, key, i) - code[i * every]);
        assert_true(d <= 1);
        apart += d;
    }
    assert_true(apart * 50 <= (int)n);
}

static void check(const Got *got) {
    json_t *o = json_load_file("tests/plan/adamw8.json", 0, NULL);
    assert_non_null(o);
    size_t every = (size_t)json_integer_value(json_object_get(o, "every"));
    int far = 0, seen = 0;
    for (size_t t = 0; t < STEPS; t++) {
        json_t *want = json_array_get(json_object_get(o, "params"), t);
        for (size_t i = 0; i * every < SMALL + LARGE; i++, seen++) {
            double d = fabs(json_number_value(json_array_get(want, i)) -
                            (double)got->params[t][i * every]);
            assert_true(d <= 5 * 1e-2 / 7);
            far += d > 1e-5;
        }
    }
    assert_int_equal(seen, STEPS * ((SMALL + LARGE + (int)every - 1) / (int)every));
    assert_true(far * 50 <= seen);
    check_codes(o, "m8", got->m8, every);
    check_codes(o, "v8", got->v8, every);
    for (int k = 0; k < 2; k++) {
        const char *key = k ? "v8.absmax" : "m8.absmax";
        for (size_t b = 0; b < json_array_size(json_object_get(o, key)); b++)
            assert_true(fabs(figure(o, key, b) / (double)got->most[k][b] - 1) < 0.01);
    }
    json_decref(o);
}

/* ---- two ways to run it ---------------------------------------------------------------------- */

static void the_device_is_bitsandbytes(void **unused) {
    Arena *arena = arena_new();
    Unit *u = update_unit(arena);
    Pass pass = {0};
    assert_true(pass_fuse(&pass, u) >= 0);
    Plan *plan = plan_groups(u, false);
    Running r = run_open(plan);
    Err err = {0};
    Got *got = NEW(arena, Got);
    float *x = NEW_ARRAY(arena, float, ALL);
    fill(x, 0);
    must(exec_write(r.exec, "params", x, sizeof *x * ALL, &err), &err);
    for (int t = 1; t <= STEPS; t++) {
        Number n[10];
        for (int i = 0, count = numbers(t, n); i < count; i++) {
            float f = (float)n[i].x;
            must(exec_write(r.exec, n[i].name, &f, sizeof f, &err), &err);
        }
        fill(x, t);
        must(exec_write(r.exec, "grads", x, sizeof *x * ALL, &err), &err);
        run_program(&r, "update", plan->bound);
        must(exec_read(r.exec, "params", got->params[t - 1], sizeof *x * ALL, &err), &err);
    }
    must(exec_read(r.exec, "m8", got->m8, sizeof got->m8, &err), &err);
    must(exec_read(r.exec, "v8", got->v8, sizeof got->v8, &err), &err);
    must(exec_read(r.exec, "m8.absmax", got->most[0], sizeof got->most[0], &err), &err);
    must(exec_read(r.exec, "v8.absmax", got->most[1], sizeof got->most[1], &err), &err);
    check(got);
    run_close(&r);
    note_executed(plan);
    plan_free(plan);
    arena_free(arena);
}

static void read_state(Eval *e, const char *name, float *f, uint8_t *c) {
    int64_t n;
    const double *x = eval_state(e, name, &n);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++)
        if (f)
            f[i] = (float)x[i];
        else
            c[i] = (uint8_t)x[i];
}

static void the_evaluator_is_bitsandbytes(void **unused) {
    Arena *arena = arena_new();
    Unit *u = update_unit(arena);
    Got *got = NEW(arena, Got);
    float *x = NEW_ARRAY(arena, float, ALL);
    double *d = NEW_ARRAY(arena, double, ALL);
    Eval *e = eval_new(u->g, EVAL_DOUBLE, u->bound);
    fill(x, 0);
    for (int i = 0; i < ALL; i++) d[i] = (double)x[i];
    eval_set(e, "params", d, ALL);
    eval_run(e, PHASE_MICRO, false); /* constants */
    for (int t = 1; t <= STEPS; t++) {
        Number n[10];
        for (int i = 0, count = numbers(t, n); i < count; i++) eval_set(e, n[i].name, &n[i].x, 1);
        fill(x, t);
        for (int i = 0; i < ALL; i++) d[i] = (double)x[i];
        eval_set(e, "grads", d, ALL);
        eval_run(e, PHASE_UPDATE, true);
        read_state(e, "params", got->params[t - 1], NULL);
    }
    read_state(e, "m8", NULL, got->m8);
    read_state(e, "v8", NULL, got->v8);
    read_state(e, "m8.absmax", got->most[0], NULL);
    read_state(e, "v8.absmax", got->most[1], NULL);
    check(got);
    eval_free(e);
    arena_free(arena);
}

/* ---- the codes themselves -------------------------------------------------------------------- */

/* Values are torch's tables (quant_map is tested against them); every one is its own code; a number
 * has the code of the nearest, but a negative one is never 0. */
static void codes_are_the_nearest(void **unused) {
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        const float *map = quant_map(is_signed);
        for (int c = 0; c < 256; c++) {
            assert_true(dynamic_value((float)c, is_signed) == map[c]);
            assert_true(dynamic_code(map[c], is_signed) == (float)c);
        }
        for (int i = 0; i < 20000; i++) {
            float x = ldexpf(number(i, 7), -(i % 24));
            if (!is_signed) x = fabsf(x);
            int code = (int)dynamic_code(x, is_signed);
            double got = fabs((double)map[code] - (double)x), best = 1;
            for (int c = 0; c < 256; c++)
                if (!is_signed || x >= 0 || c < 127)
                    best = fmin(best, fabs((double)map[c] - (double)x));
            assert_true(got <= best * (1 + 1e-6)); /* the middle of two is rounded to f32 */
            assert_true(!is_signed || x >= 0 || code < 127);
        }
        assert_true(dynamic_code(0, is_signed) == (is_signed ? 127 : 0));
        assert_true(dynamic_code(NAN, is_signed) == (is_signed ? 127 : 0));
    }
    assert_true(quant_map(false)[0] == 0 && quant_map(false)[255] == 1);
    assert_true(quant_map(false)[1] == 3.2500003044333425e-07f); /* torch's */
    assert_true(quant_map(false)[254] == 0.9964843988418579f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_the_nearest),
        cmocka_unit_test(the_device_is_bitsandbytes),
        cmocka_unit_test(the_evaluator_is_bitsandbytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
