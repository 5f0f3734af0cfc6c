/* A hand-made training unit through gemm, fuse, order, plan and emit, and on the CPU device.
 *
 * The plan obeys plan_check; gradients agree with the double evaluator within what f32 sums of
 * these lengths allow; a smaller activation budget or another order changes bytes of memory, never
 * a bit of a result. */
#include "mlp.h"
#include "run.h"

#include <math.h>

static float *values(const char *name, int64_t n, double scale) {
    float *v = malloc(sizeof *v * (size_t)n);
    uint32_t state = (uint32_t)strlen(name) * 131 + (uint32_t)name[strlen(name) - 1];
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525 + 1013904223;
        v[i] = (float)(scale * ((double)(state >> 8) / (1 << 24) - 0.5));
    }
    return v;
}

static void tokens_of(int32_t tokens[MLP_T]) {
    for (int i = 0; i < MLP_T; i++) tokens[i] = i * 7 % MLP_V;
}

typedef struct Names { /* every leaf that must be set, with its size */
    const char *name;
    int64_t n;
    double scale;
} Names;

static int leaves(const Unit *u, Names out[MLP_LAYERS + 2]) {
    int n = 0;
    out[n++] = (Names){"embed", MLP_V * MLP_D, 1};
    for (int i = 0; i < mlp_layers; i++)
        out[n++] = (Names){intern_printf("down%d", i), MLP_D * MLP_F, 0.2};
    out[n++] = (Names){"params", u->nparams, 0.2};
    return n;
}

/* ---- the two ways to run it ------------------------------------------------------------------ */

static const double *reference(Eval *e, const Unit *u, int64_t *count) {
    Names leaf[MLP_LAYERS + 2];
    int n = leaves(u, leaf);
    for (int i = 0; i < n; i++) {
        float *f = values(leaf[i].name, leaf[i].n, leaf[i].scale);
        double *d = malloc(sizeof *d * (size_t)leaf[i].n);
        for (int64_t k = 0; k < leaf[i].n; k++) d[k] = (double)f[k];
        bool state = !strcmp(leaf[i].name, "params");
        eval_set(e, state ? leaf[i].name : intern_printf("base/%s", leaf[i].name), d, leaf[i].n);
        free(d);
        free(f);
    }
    int32_t tokens[MLP_T];
    double wide[MLP_T], one = 1;
    tokens_of(tokens);
    for (int i = 0; i < MLP_T; i++) wide[i] = tokens[i];
    eval_set(e, "tokens", wide, MLP_T);
    eval_set(e, "inv_pairs", &one, 1);
    eval_run(e, PHASE_MICRO, false);
    return eval_state(e, "grads", count);
}

static Plan *plan_of(Unit *u, bool order_off) {
    mlp_groups(u);
    return plan_groups(u, order_off);
}

static void write_scalar(Exec *exec, const char *name, float x, Err *err) {
    must(exec_write(exec, name, &x, sizeof x, err), err);
}

static void write_leaf(Exec *exec, const Plan *plan, const Names *leaf, float *f) {
    Err err = {0};
    uint16_t *half = (uint16_t *)f; /* bf16 in place: element i is written after it was read */
    bool bf16 = plan->bufs[plan_buf(plan, leaf->name)].dtype == DT_bf16;
    for (int64_t i = 0; bf16 && i < leaf->n; i++) {
        uint16_t bits = float_to_bf16(f[i]);
        memcpy(half + i, &bits, sizeof bits);
    }
    must(exec_write(exec, leaf->name, f, (bf16 ? 2 : 4) * (size_t)leaf->n, &err), &err);
}

/* Params and gradients after `steps` optimizer steps of two micro-batches each. */
static float *run(const Plan *plan, const Unit *u, int steps, float *grads) {
    Err err = {0};
    Running r = run_open(plan);
    Exec *exec = r.exec;
    Names leaf[MLP_LAYERS + 2];
    int n = leaves(u, leaf);
    for (int i = 0; i < n; i++) {
        float *f = values(leaf[i].name, leaf[i].n, leaf[i].scale);
        write_leaf(exec, plan, &leaf[i], f);
        free(f);
    }
    int32_t tokens[MLP_T];
    tokens_of(tokens);
    must(exec_write(exec, "tokens", tokens, sizeof tokens, &err), &err);
    write_scalar(exec, "inv_pairs", 1, &err);
    static const struct {
        const char *name;
        float x;
    } numbers[] = {{"lr", 1e-3f},         {"beta1", 0.9f},         {"adam.rest1", 0.1f},
                   {"beta2", 0.999f},     {"eps", 1e-8f},          {"clip", 1},
                   {"adam.rest2", 1e-3f}, {"weight_decay", 0.01f}, {"adam.c1", 10},
                   {"adam.c2", 1000}};
    for (size_t i = 0; i < COUNT(numbers); i++)
        write_scalar(exec, numbers[i].name, numbers[i].x, &err);
    run_program(&r, "init", plan->bound);
    for (int s = 0; s < steps; s++) {
        run_program(&r, "step", plan->bound);
        run_program(&r, "micro", plan->bound);
        if (grads && s == 0)
            must(exec_read(exec, "grads", grads, sizeof *grads * (size_t)u->nparams, &err), &err);
        run_program(&r, "micro", plan->bound);
        run_program(&r, "update", plan->bound);
    }
    float *params = malloc(sizeof *params * (size_t)u->nparams);
    must(exec_read(exec, "params", params, sizeof *params * (size_t)u->nparams, &err), &err);
    run_close(&r);
    return params;
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* f32 sums of n products err by at most about n 2^-24 of the sum of magnitudes; the chain of layers
 * has sums over 64, 160 and 96 elements in each of 5 layers, forward and backward: 3200 2^-24 =
 * 2e-4 of the largest gradient.  Errors are far smaller in practice. */
static void gradients_agree(void **unused) {
    Arena *arena = arena_new();
    Unit *u = mlp_unit(arena, DT_f32);
    mlp_grad(u);
    Eval *e = eval_new(u->g, EVAL_DOUBLE, u->bound);
    int64_t n;
    const double *want = reference(e, u, &n);
    assert_int_equal(n, u->nparams);
    float *got = malloc(sizeof *got * (size_t)n);
    Plan *plan = plan_of(u, false);
    free(run(plan, u, 1, got));
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(want[i]));
    assert_true(most > 1e-3);
    for (int64_t i = 0; i < n; i++) assert_true(fabs(want[i] - (double)got[i]) <= 2e-4 * most);
    free(got);
    eval_free(e);
    plan_free(plan);
    arena_free(arena);
}

static Plan *plan_with(Arena *arena, DType compute, int64_t budget, bool order_off, Unit **unit) {
    Unit *u = *unit = mlp_unit(arena, compute);
    mlp_grad(u);
    Pass pass = {0};
    u->activation_budget = budget;
    if (budget) assert_true(pass_remat(&pass, u) > 0);
    return plan_of(u, order_off);
}

static void memory_never_changes_bits(void **unused) {
    for (int compute = DT_f32; compute <= DT_bf16; compute++) {
        Arena *arena = arena_new();
        Unit *u;
        Plan *plain = plan_with(arena, (DType)compute, 0, false, &u);
        float *want = run(plain, u, 2, NULL);
        size_t bytes = sizeof *want * (size_t)u->nparams;
        struct {
            int64_t budget;
            bool order_off;
        } other[] = {{0, true}, {1 << 18, false}, {1, false}};
        for (size_t i = 0; i < COUNT(other); i++) {
            Plan *plan = plan_with(arena, (DType)compute, other[i].budget, other[i].order_off, &u);
            if (other[i].budget)
                assert_true(plan->arena_bytes < plain->arena_bytes);
            else
                assert_true(plan->arena_bytes >= plain->arena_bytes);
            float *got = run(plan, u, 2, NULL);
            assert_memory_equal(got, want, bytes);
            free(got);
            plan_free(plan);
        }
        free(want);
        plan_free(plain);
        arena_free(arena);
    }
}

/* The same block once more needs no new kernel: text knows neither layers nor nodes. */
static void equal_text_is_one_kernel(void **unused) {
    Arena *arena = arena_new();
    int kernels[2], steps[2];
    for (int more = 0; more < 2; more++) {
        mlp_layers = MLP_LAYERS - 1 + more;
        Unit *u;
        Plan *plan = plan_with(arena, DT_f32, 0, false, &u);
        kernels[more] = plan->nkernels;
        steps[more] = plan_program(plan, "micro")->nsteps;
        for (int i = 0; i < plan->nkernels; i++)
            for (int k = 0; k < i; k++)
                assert_string_not_equal(plan->kernels[i].text, plan->kernels[k].text);
        plan_free(plan);
    }
    assert_int_equal(kernels[0], kernels[1]);
    assert_true(steps[0] < steps[1]);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_agree),
        cmocka_unit_test(memory_never_changes_bits),
        cmocka_unit_test(equal_text_is_one_kernel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
