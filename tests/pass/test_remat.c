/* Remat: fewer bytes wait for the backward, and no bit of any result changes. */
#include "tests/plan/mlp.h"

#include <math.h>
#include <setjmp.h>

#include <cmocka.h>

static void fill(Eval *e, const char *leaf, int64_t n, double scale) {
    double *v = calloc((size_t)n, sizeof *v);
    uint32_t state = (uint32_t)strlen(leaf) * 77 + (uint32_t)leaf[0];
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525 + 1013904223;
        v[i] = scale * ((double)(state >> 8) / (1 << 24) - 0.5);
    }
    eval_set(e, leaf, v, n);
    free(v);
}

/* Gradients after one micro-batch, evaluated with every node rounded to its type. */
static double *gradients(const Unit *u, int64_t *count) {
    Eval *e = eval_new(u->g, EVAL_ROUNDING, u->bound);
    double tokens[MLP_T], one = 1;
    for (int i = 0; i < MLP_T; i++) tokens[i] = i * 7 % MLP_V;
    eval_set(e, "tokens", tokens, MLP_T);
    eval_set(e, "inv_pairs", &one, 1);
    fill(e, "base/embed", MLP_V * MLP_D, 1);
    for (int i = 0; i < mlp_layers; i++)
        fill(e, intern_printf("base/down%d", i), MLP_D * MLP_F, 0.2);
    fill(e, "params", u->nparams, 0.2);
    eval_run(e, PHASE_MICRO, false);
    const double *grads = eval_state(e, "grads", count);
    double *copy = malloc(sizeof *copy * (size_t)*count);
    memcpy(copy, grads, sizeof *copy * (size_t)*count);
    eval_free(e);
    return copy;
}

static void compare(const Unit *a, const Unit *b) {
    int64_t n, m;
    double *x = gradients(a, &n), *y = gradients(b, &m), size = 0;
    assert_int_equal(n, m);
    assert_memory_equal(x, y, sizeof *x * (size_t)n);
    for (int64_t i = 0; i < n; i++) size += fabs(x[i]);
    assert_true(size > 0);
    free(x);
    free(y);
}

static Unit *remat_unit(Arena *arena, DType compute, int64_t budget, int *changes) {
    Unit *u = mlp_unit(arena, compute);
    mlp_grad(u);
    u->activation_budget = budget;
    Pass pass = {0};
    *changes = pass_remat(&pass, u);
    assert_null(graph_verify(u->g, arena));
    return u;
}

static void bits_are_kept(void **unused) {
    for (int compute = DT_f32; compute <= DT_bf16; compute++) {
        Arena *arena = arena_new();
        Unit *plain = mlp_unit(arena, (DType)compute);
        mlp_grad(plain);
        int free_changes, changes;
        Unit *whole = remat_unit(arena, (DType)compute, 0, &free_changes);
        assert_true(free_changes > 0);
        compare(plain, whole);
        Unit *half = remat_unit(arena, (DType)compute, whole->activation_bytes / 2, &changes);
        assert_true(changes > free_changes);
        compare(plain, half);
        Unit *least = remat_unit(arena, (DType)compute, 1, &changes);
        compare(plain, least);
        arena_free(arena);
    }
}

static int64_t arena_bytes(Unit *u) {
    mlp_groups(u);
    Pass pass = {0};
    assert_true(pass_order(&pass, u) >= 0);
    Plan *plan = plan_new();
    memcpy(plan->bound, u->bound, sizeof plan->bound);
    plan_unit(plan, u);
    plan_finish(plan, u->target);
    int64_t bytes = plan->arena_bytes;
    plan_free(plan);
    return bytes;
}

static void memory_falls(void **unused) {
    Arena *arena = arena_new();
    int changes;
    Unit *plain = mlp_unit(arena, DT_f32);
    mlp_grad(plain);
    Unit *whole = remat_unit(arena, DT_f32, 0, &changes);
    int64_t kept = whole->activation_bytes;
    Unit *half = remat_unit(arena, DT_f32, kept / 2, &changes);
    assert_true(half->nrecomputed > whole->nrecomputed);
    /* what half the budget drops leaves the arena, but for what is recomputed at one time */
    int64_t none = arena_bytes(plain), all = arena_bytes(whole), some = arena_bytes(half);
    assert_true(all <= none);
    assert_true(some < all - kept / 4);
    arena_free(arena);
}

/* Bytes of buffers that live from before the loss to after it: what really waits. */
static int64_t waiting_bytes(Unit *u) {
    mlp_groups(u);
    Pass pass = {0};
    assert_true(pass_order(&pass, u) >= 0);
    Plan *plan = plan_new();
    memcpy(plan->bound, u->bound, sizeof plan->bound);
    plan_unit(plan, u);
    plan_finish(plan, u->target);
    int step = -1, loss = -1; /* one step a group here */
    for (int i = 0; i < u->ngroups; i++) {
        if (u->groups[i].phase != PHASE_MICRO) continue;
        step++;
        for (int k = 0; k < u->groups[i].nnodes; k++)
            if (u->groups[i].nodes[k] == u->loss) loss = step;
    }
    assert_int_equal(plan_program(plan, "micro")->nsteps, step + 1);
    int64_t bytes = 0;
    for (int i = 0; i < plan->nbufs; i++) {
        const Buf *b = &plan->bufs[i];
        bool micro = !b->persistent && !strcmp(plan->programs[b->program].name, "micro");
        if (micro && b->first < loss && b->last > loss) bytes += b->bytes;
    }
    plan_free(plan);
    return bytes;
}

/* Neither fusion nor order computes early what remat put into the backward. */
static void what_waits_is_what_was_kept(void **unused) {
    for (int compute = DT_f32; compute <= DT_bf16; compute++) {
        Arena *arena = arena_new();
        int changes;
        int64_t kept = remat_unit(arena, (DType)compute, 0, &changes)->activation_bytes;
        for (int part = 1; part <= 4; part++) {
            Unit *u = remat_unit(arena, (DType)compute, kept * part / 4, &changes);
            int64_t waiting = waiting_bytes(u);
            assert_true(waiting > 0 && waiting <= kept * part / 4);
        }
        arena_free(arena);
    }
}

static void nothing_without_a_backward(void **unused) {
    Arena *arena = arena_new();
    Unit *u = mlp_unit(arena, DT_f32);
    u->loss = u->seed = 0;
    Pass pass = {0};
    assert_int_equal(pass_remat(&pass, u), 0);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_are_kept),
        cmocka_unit_test(memory_falls),
        cmocka_unit_test(what_waits_is_what_was_kept),
        cmocka_unit_test(nothing_without_a_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
