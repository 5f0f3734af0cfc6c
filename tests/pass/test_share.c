/* share: policy and reference meet each weight together: one dequantization of it serves both
 * forwards, nothing else of the step changes, and no more memory is asked for. */
#include "compiler/spec.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LAYERS = 2, MATRICES = 7 };

static Spec *spec_with(Arena *arena, const char *setting) {
    Diags *diags = diags_new(arena);
    CheckOptions check = {.file = "tests/pass/quantized.dpo",
                          .model = "tests/num/cases/gqa",
                          .set = &setting,
                          .nset = 1,
                          .is_cuda = true,
                          .random_weights = true,
                          .needs_model = true};
    Spec *spec = check_file(arena, diags, &check);
    assert_non_null(spec);
    return spec;
}

/* A unit after the passes up to `last`. */
static Unit *unit_after(Arena *arena, const char *setting, const char *last) {
    Unit *u = unit_new(arena, spec_with(arena, setting), target_by_name("sm_80"), UNIT_TRAIN);
    assert_true(unit_build(u));
    for (int i = 0; pass_table[i].name; i++) {
        Pass pass = pass_table[i];
        if (strcmp(pass.name, "share") || !strcmp(setting, "graph.share=on"))
            assert_true(pass.run(&pass, u) >= 0);
        assert_null(graph_verify(u->g, arena));
        if (!strcmp(pass.name, last)) break;
    }
    return u;
}

static int count(const Unit *u, Op op) {
    int n = 0;
    for (NodeId id = 1; id < u->g->n; id++) n += node(u->g, id)->op == op;
    return n;
}

static void one_dequantization_for_both(void **unused) {
    Arena *arena = arena_new();
    Unit *on = unit_after(arena, "graph.share=on", "quant"),
         *off = unit_after(arena, "graph.share=off", "quant");
    /* The reference has none of its own; the first layer's q, k, v were one computation anyway. */
    assert_int_equal(count(off, OP_dequant) - count(on, OP_dequant), LAYERS * MATRICES - 3);
    for (Op op = 0; op < NOP; op++) /* leaves are made where they are first read */
        if (op != OP_dequant) assert_int_equal(count(on, op), count(off, op));
    arena_free(arena);
}

/* Forward readers of a weight stand between those of the weights before and behind it. */
static void weights_in_turn(void **unused) {
    Arena *arena = arena_new();
    Unit *u = unit_after(arena, "graph.share=on", "share");
    bool *early = NEW_ARRAY(arena, bool, u->g->n), *seen = NEW_ARRAY(arena, bool, u->g->n);
    unit_directions(u, early, NEW_ARRAY(arena, bool, u->g->n));
    NodeId now = 0;
    int weights = 0;
    for (NodeId id = 1; id < u->g->n; id++) {
        const Node *n = node(u->g, id);
        if (!early[id] || n->op != OP_matmul) continue;
        NodeId leaf = n->in[1];
        while (node(u->g, leaf)->op == OP_cast || op_info[node(u->g, leaf)->op].kind == KIND_VIEW)
            leaf = node(u->g, leaf)->in[0];
        if (node(u->g, leaf)->op != OP_weight || leaf == now) continue;
        assert_false(seen[leaf]);
        seen[leaf] = true;
        now = leaf;
        weights++;
    }
    assert_int_equal(weights, LAYERS * MATRICES);
    arena_free(arena);
}

static int64_t peak(const char *setting) {
    Arena *arena = arena_new();
    CompileOptions options = {.target = target_by_name("sm_80")};
    options.want[UNIT_TRAIN] = true;
    Plan *plan = compile_spec(spec_with(arena, setting), &options);
    assert_non_null(plan);
    int64_t bytes = plan->arena_bytes;
    plan_free(plan);
    arena_free(arena);
    return bytes;
}

static void no_more_memory(void **unused) {
    int64_t on = peak("graph.share=on"), off = peak("graph.share=off");
    assert_true(on <= off + off / 100); /* arranging is no exact science */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_dequantization_for_both),
                                       cmocka_unit_test(weights_in_turn),
                                       cmocka_unit_test(no_more_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
