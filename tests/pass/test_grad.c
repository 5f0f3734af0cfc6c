/* test_grad.c: the training step that grad makes: gradients accumulate in their slots over
 * micro-batches, clipping and AdamW follow torch, what does not train is said.
 *
 * The optimizer is compared with a plain loop in double over several steps; the evaluator runs in
 * double too, so agreement is to rounding of double (relative 1e-12 over the few hundred operations
 * of a step).
 */
#include "compiler/dpoc.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 2048, ROWS = 5 };

typedef struct Rates { /* what the runtime writes before `update` */
    double lr, beta1, beta2, eps, weight_decay, clip;
} Rates;

/* loss = sum over rows of sin(x_row . a) + (x_row . b)^2 with a [3] at 0, b [3] at 1024, c [3]
 * unused. */
static Unit make_unit(bool with_c) {
    Arena *arena = arena_new();
    Unit u = {
        .kind = UNIT_TRAIN, .arena = arena, .diags = diags_new(arena), .nparams = N, .nmetrics = 1};
    Graph *g = u.g = graph_new(arena, u.diags);
    const Type *three = type_vec(DT_f32, dim_const(3));
    const Type *table = type_mat(DT_f32, dim_extent(X_R), dim_const(3));
    NodeId params = g_state(g, "params", PHASE_STEP, ROLE_ADAPTER, type_vec(DT_f32, dim_const(N)));
    int64_t offsets[3] = {0, 1024, 512};
    for (int i = 0; i < 3; i++) {
        Trained t = {.source = "pref", .tensor = "t", .offset = offsets[i]};
        t.leaf = g_slot(g, params, t.offset, three);
        PUSH(arena, u.trained, u.ntrained, u.captrained, t);
    }
    NodeId x = g_input(g, "x", PHASE_MICRO, table), y[3];
    for (int i = 0; i < 3; i++)
        y[i] = g_op(g, OP_sum_cols,
                    g_op(g, OP_mul, x, g_bcast(g, u.trained[i].leaf, table, false), 0), 0, 0);
    NodeId each = g_op(g, OP_add, g_op(g, OP_sin, y[0], 0, 0), g_op(g, OP_mul, y[1], y[1], 0), 0);
    if (with_c) each = g_op(g, OP_add, each, y[2], 0);
    u.loss = g_op(g, OP_sum_rows, each, 0, 0);
    u.seed = g_input(g, "inv_pairs", PHASE_MICRO, type_scalar(DT_f32));
    const Type *sums = type_vec(DT_f32, dim_const(1));
    NodeId metrics = g_state(g, "metrics", PHASE_MICRO, ROLE_OUTPUT, sums);
    g_effect(g, OP_accumulate, metrics, g_reshape(g, u.loss, sums));
    return u;
}

static double sample(int i, int j) {
    return sin(1.7 * i + 0.9 * j + 0.3 * i * j);
}

/* The optimizer step as torch.optim.AdamW and clip_grad_norm_ do it; returns the norm before
 * clipping. */
static double reference_step(double *p, double *m, double *v, const double *grad, int t, Rates s) {
    double norm = 0;
    for (int i = 0; i < N; i++) norm += grad[i] * grad[i];
    norm = sqrt(norm);
    double factor = s.clip > 0 && s.clip / (norm + 1e-6) < 1 ? s.clip / (norm + 1e-6) : 1;
    for (int i = 0; i < N; i++) {
        double g = grad[i] * factor;
        p[i] *= 1 - s.lr * s.weight_decay;
        m[i] = s.beta1 * m[i] + (1 - s.beta1) * g;
        v[i] = s.beta2 * v[i] + (1 - s.beta2) * g * g;
        double mean = m[i] / (1 - pow(s.beta1, t)), var = v[i] / (1 - pow(s.beta2, t));
        p[i] -= s.lr * mean / (sqrt(var) + s.eps);
    }
    return norm;
}

/* The gradient of the loss above over one micro-batch, by hand. */
static void add_gradient(const double *p, double x[ROWS][3], double weight, double *grad) {
    for (int r = 0; r < ROWS; r++) {
        double a = 0, b = 0;
        for (int j = 0; j < 3; j++) a += x[r][j] * p[j], b += x[r][j] * p[1024 + j];
        for (int j = 0; j < 3; j++) {
            grad[j] += weight * cos(a) * x[r][j];
            grad[1024 + j] += weight * 2 * b * x[r][j];
        }
    }
}

static void set(Eval *e, const char *name, double x) {
    eval_set(e, name, &x, 1);
}

static void set_step(Eval *e, Rates s, int t) {
    set(e, "lr", s.lr);
    set(e, "beta1", s.beta1);
    set(e, "beta2", s.beta2);
    set(e, "adam.rest1", 1 - s.beta1);
    set(e, "adam.rest2", 1 - s.beta2);
    set(e, "eps", s.eps);
    set(e, "weight_decay", s.weight_decay);
    set(e, "clip", s.clip);
    set(e, "adam.c1", 1 / (1 - pow(s.beta1, t)));
    set(e, "adam.c2", 1 / (1 - pow(s.beta2, t)));
}

static void assert_close(const double *got, const double *want, const char *what) {
    for (int i = 0; i < N; i++)
        if (fabs(got[i] - want[i]) > 1e-12 * (1 + fabs(want[i])))
            fail_msg("%s[%d] is %.17g, want %.17g", what, i, got[i], want[i]);
}

static void check_training(Rates s) {
    Unit u = make_unit(false);
    assert_int_equal(pass_grad(NULL, &u), 2);
    assert_null(graph_verify(u.g, u.arena));
    static double p[N], m[N], v[N], grad[N];
    memset(m, 0, sizeof m);
    memset(v, 0, sizeof v);
    memset(p, 0, sizeof p);
    for (int j = 0; j < 3; j++) p[j] = 0.3 * j - 0.4, p[1024 + j] = 0.2 - 0.1 * j;
    int64_t extent[NEXTENT] = {[X_R] = ROWS};
    Eval *e = eval_new(u.g, EVAL_DOUBLE, extent);
    eval_set(e, "params", p, N);
    for (int t = 1; t <= 6; t++) {
        memset(grad, 0, sizeof grad);
        eval_run(e, PHASE_STEP, t > 1); /* zeroes gradients and metrics */
        for (int micro = 0; micro < 3; micro++) {
            double x[ROWS][3];
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < 3; j++) x[r][j] = 2 * sample(r + 10 * micro + 100 * t, j);
            eval_set(e, "x", x[0], ROWS * 3);
            set(e, "inv_pairs", 0.125);
            eval_run(e, PHASE_MICRO, true);
            add_gradient(p, x, 0.125, grad);
        }
        assert_close(eval_state(e, "grads", NULL), grad, "grads");
        set_step(e, s, t);
        eval_run(e, PHASE_UPDATE, true);
        double norm = reference_step(p, m, v, grad, t, s);
        assert_true(fabs(eval_state(e, "grad_norm", NULL)[0] - norm) < 1e-12 * (1 + norm));
        assert_close(eval_state(e, "params", NULL), p, "params");
        assert_close(eval_state(e, "m", NULL), m, "m");
        assert_close(eval_state(e, "v", NULL), v, "v");
        for (int i = 3; i < 1024; i++) assert_true(eval_state(e, "params", NULL)[i] == 0);
    }
    eval_free(e);
    arena_free(u.arena);
}

static void adamw(void **state) {
    check_training((Rates){1e-2, 0.9, 0.999, 1e-8, 0, 0});
    check_training((Rates){5e-2, 0.8, 0.95, 1e-6, 0.1, 0});
}

static void clipping(void **state) {
    check_training((Rates){1e-2, 0.9, 0.999, 1e-8, 0.01, 0.05}); /* always */
    check_training((Rates){1e-2, 0.9, 0.999, 1e-8, 0.01, 1e6});  /* never */
    check_training((Rates){1e-2, 0.9, 0.999, 1e-8, 0.01, 2});    /* sometimes */
}

/* A rate of zero (the first step of a warm-up) moves the moments and nothing else. */
static void zero_rate(void **state) {
    check_training((Rates){0, 0.9, 0.999, 1e-8, 0.1, 1});
}

static void untrained(void **state) {
    Unit u = make_unit(false);
    assert_int_equal(pass_grad(NULL, &u), 2);
    char *said = diags_json(u.diags);
    assert_non_null(strstr(said, "the loss does not depend on t of pref"));
    assert_int_equal(diags_errors(u.diags), 0);
    free(said);
    arena_free(u.arena);
    u = make_unit(true);
    assert_int_equal(pass_grad(NULL, &u), 3);
    said = diags_json(u.diags);
    assert_null(strstr(said, "does not depend"));
    free(said);
    arena_free(u.arena);
}

static void nothing_trains(void **state) {
    Unit u = make_unit(false);
    u.loss = g_op(u.g, OP_stop, u.loss, 0, 0);
    assert_true(pass_grad(NULL, &u) < 0);
    assert_int_equal(diags_errors(u.diags), 1);
    arena_free(u.arena);
}

static void other_units(void **state) {
    for (int kind = 0; kind < NUNIT; kind++) {
        if (kind == UNIT_TRAIN) continue;
        Unit u = make_unit(false);
        int before = u.g->n;
        u.kind = (UnitKind)kind;
        assert_int_equal(pass_grad(NULL, &u), 0);
        assert_int_equal(u.g->n, before);
        arena_free(u.arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adamw),          cmocka_unit_test(clipping),
        cmocka_unit_test(zero_rate),      cmocka_unit_test(untrained),
        cmocka_unit_test(nothing_trains), cmocka_unit_test(other_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
