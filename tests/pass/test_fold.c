/* test_fold.c: constants and identities: each rule, what must stay, and random graphs before and
 * after.
 *
 * In rounding mode the evaluator gives the same bits before and after, because every rule is exact.
 */
#include "tests/random_graph.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void random_graphs(void **state) {
    int changes = 0;
    for (uint64_t seed = 0; seed < 300; seed++) {
        RandomGraph *r = random_graph(seed, 60);
        Eval *before = rg_eval(r, r->g, EVAL_ROUNDING);
        Unit u = {.kind = UNIT_EVAL, .arena = r->arena, .diags = r->diags, .g = r->g};
        int n = pass_fold(NULL, &u);
        assert_true(n >= 0);
        changes += n;
        const char *broken = graph_verify(u.g, r->arena);
        if (broken) fail_msg("seed %d: %s", (int)seed, broken);
        Eval *after = rg_eval(r, u.g, EVAL_ROUNDING);
        if (rg_difference(before, after) != 0)
            fail_msg("seed %d: differs by %g", (int)seed, rg_difference(before, after));
        eval_free(before);
        eval_free(after);
        arena_free(r->arena);
    }
    assert_true(changes > 300);
}

/* The text of a one-output graph before and what its output must be computed by afterwards: the op
 * of the assigned value and the number of nodes left. */
typedef struct Rule {
    const char *text;
    Op op;
    int nodes; /* with the leaf it goes to and the assign */
} Rule;

static const Rule rules[] = {
    {"%2 = const num=1 : f32[4] init\n%3 = mul %1 %2 : f32[4] micro", OP_input, 3},
    {"%2 = const num=1 : f32[4] init\n%3 = mul %2 %1 : f32[4] micro", OP_input, 3},
    {"%2 = const num=-1 : f32[4] init\n%3 = mul %2 %1 : f32[4] micro", OP_neg, 4},
    {"%2 = const num=1 : f32[4] init\n%3 = div %1 %2 : f32[4] micro", OP_input, 3},
    {"%2 = const : f32[4] init\n%3 = sub %1 %2 : f32[4] micro", OP_input, 3},
    {"%2 = const num=-0 : f32[4] init\n%3 = add %1 %2 : f32[4] micro", OP_input, 3},
    /* -0 + 0 is +0, and 0 * NaN is NaN: these stay */
    {"%2 = const : f32[4] init\n%3 = add %1 %2 : f32[4] micro", OP_add, 5},
    {"%2 = const : f32[4] init\n%3 = mul %1 %2 : f32[4] micro", OP_mul, 5},
    {"%2 = neg %1 : f32[4] micro\n%3 = neg %2 : f32[4] micro", OP_input, 3},
    {"%2 = neg %1 : f32[4] micro\n%3 = add %1 %2 : f32[4] micro", OP_sub, 4},
    {"%2 = neg %1 : f32[4] micro\n%3 = sub %1 %2 : f32[4] micro", OP_add, 4},
    {"%2 = max %1 %1 : f32[4] micro\n%3 = select %2 %2 %2 : f32[4] micro", OP_input, 3},
    {"%2 = reshape %1 : f32[2,2] micro\n%3 = reshape %2 : f32[4] micro", OP_input, 3},
    {"%2 = cols %1 begin=0 count=4 : f32[4] micro\n%3 = rows %2 count=4 : f32[4] micro", OP_input,
     3},
    {"%2 = stop %1 : f32[4] micro\n%3 = stop %2 : f32[4] micro", OP_input, 3},
    /* bf16 -> f32 -> bf16 loses nothing; f32 -> bf16 -> f32 does */
    {"%2 = cast %1 to=1 : bf16[4] micro\n%3 = cast %2 : f32[4] micro\n%4 = cast %3 to=1 : bf16[4] "
     "micro\n"
     "%5 = cast %4 : f32[4] micro",
     OP_cast, 5},
    {"%2 = cast %1 to=1 : bf16[4] micro\n%3 = cast %2 : f32[4] micro\n%4 = reshape %3 : f32[2,2] "
     "micro\n"
     "%5 = cast %4 to=1 : bf16[2,2] micro\n%6 = cast %5 : f32[2,2] micro\n%7 = reshape %6 : f32[4] "
     "micro",
     OP_reshape, 7},
    {"%2 = const num=2 : f32[] init\n%3 = const num=0.1 : f32[] init\n%4 = mul %2 %3 : f32[] init\n"
     "%5 = sqrt %4 : f32[] init\n%6 = bcast %5 : f32[4] init",
     OP_const, 3},
    {"%2 = const num=3 : f32[] init\n%3 = bcast %2 : f32[2] init\n%4 = bcast %3 : f32[2,2] init\n"
     "%5 = reshape %4 : f32[4] init",
     OP_const, 3},
    {"%2 = const num=1 : f32[4] init\n%3 = select %2 %1 %2 : f32[4] micro", OP_input, 3},
    {"%2 = const num=2 : f32[4] init\n%3 = exp %2 : f32[4] init", OP_exp,
     4}, /* not IEEE's to define */
    {"%2 = sum_cols %1 : f32[] micro\n%3 = bcast %2 : f32[2] micro\n%4 = bcast %3 lead=1 : "
     "f32[2,2] micro\n"
     "%5 = reshape %4 : f32[4] micro",
     OP_reshape, 6},
    /* powers of two move past products, other factors and products of products stay */
    {"%2 = const num=0.5 : f32[4] init\n%3 = mul %1 %2 : f32[4] micro\n%4 = reshape %3 : f32[2,2] "
     "micro\n"
     "%5 = matmul %4 %4 : f32[2,2] micro\n%6 = reshape %5 : f32[4] micro",
     OP_reshape, 9},
    {"%2 = const num=0.3 : f32[4] init\n%3 = mul %1 %2 : f32[4] micro\n%4 = reshape %3 : f32[2,2] "
     "micro\n"
     "%5 = matmul %4 %4 : f32[2,2] micro\n%6 = reshape %5 : f32[4] micro",
     OP_reshape, 8},
    /* rotate_half passes a factor whose halves are equal */
    {"%2 = sum_cols %1 : f32[] micro\n%3 = bcast %2 : f32[4] micro\n%4 = mul %1 %3 : f32[4] micro\n"
     "%5 = rotate_half %4 : f32[4] micro",
     OP_mul, 7},
    {"%2 = sin %1 : f32[4] micro\n%3 = mul %1 %2 : f32[4] micro\n%4 = rotate_half %3 : f32[4] "
     "micro",
     OP_rotate_half, 6},
};

static void each_rule(void **state) {
    for (size_t i = 0; i < COUNT(rules); i++) {
        Arena *arena = arena_new();
        Diags *diags = diags_new(arena);
        const char *last = strrchr(rules[i].text, '%'), *s = rules[i].text;
        int id = 0;
        for (; s && s <= last; s = strchr(s + 1, '\n')) id = atoi(*s == '\n' ? s + 2 : s + 1);
        char *text = arena_printf(arena,
                                  "%%1 = input name=\"x\" phase=2 : f32[4] micro\n%s\n"
                                  "%%90 = state name=\"out\" phase=2 role=5 : f32[4] micro\n"
                                  "%%91 = assign %%90 %%%d : f32[4] micro\nroot %%91\n",
                                  rules[i].text, id);
        Graph *g = graph_read(arena, diags, source_add(diags, "rule.ir", text, strlen(text)));
        diags_print(diags, 0, stderr, false);
        assert_non_null(g);
        Unit u = {.kind = UNIT_EVAL, .arena = arena, .diags = diags, .g = g};
        pass_fold(NULL, &u);
        Op op = u.g->node[u.g->node[u.g->root[0]].in[1]].op;
        if (op != rules[i].op || u.g->n - 1 != rules[i].nodes)
            fail_msg("rule %d: %s and %d nodes", (int)i, op_info[op].name, u.g->n - 1);
        arena_free(arena);
    }
}

/* In a graph that will be differentiated `stop` must survive; the seed and the loss keep their
 * places. */
static void before_grad(void **state) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    Graph *g = graph_new(arena, diags);
    const Type *scalar = type_scalar(DT_f32);
    NodeId seed = g_input(g, "inv_pairs", PHASE_MICRO, scalar);
    NodeId x = g_input(g, "x", PHASE_MICRO, scalar);
    NodeId loss = g_op(g, OP_mul, g_op(g, OP_stop, x, 0, 0), g_const(g, 1, scalar), 0);
    NodeId out = g_state(g, "metrics", PHASE_MICRO, ROLE_OUTPUT, scalar);
    g_effect(g, OP_accumulate, out, loss);
    Unit u = {
        .kind = UNIT_TRAIN, .arena = arena, .diags = diags, .g = g, .loss = loss, .seed = seed};
    assert_int_equal(pass_fold(NULL, &u), 1);
    assert_int_equal(u.g->node[u.loss].op, OP_stop);
    assert_string_equal(u.g->node[u.seed].attr.name, "inv_pairs");
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_graphs),
        cmocka_unit_test(each_rule),
        cmocka_unit_test(before_grad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
