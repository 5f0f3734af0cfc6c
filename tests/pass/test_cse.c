/* test_cse.c: equal nodes become one; policy and reference are one computation below the first
 * adapter, and that trunk has no backward (grad).
 *
 * The model is a stack of layers h = h + tanh(h W_i); the policy adds (h A_i) B_i from layer
 * `first` on.
 */
#include "tests/random_graph.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { LAYERS = 6, DIM = 8, RANK = 2, PARAMS = 1024 };

static int count(const Graph *g, Op op, Phase phase) {
    int n = 0;
    bool *live = NEW_ARRAY(g->arena, bool, g->n);
    graph_live(g, live);
    for (NodeId id = 1; id < g->n; id++)
        n += live[id] && g->node[id].op == op && g->node[id].phase == phase;
    return n;
}

static int count_all(const Graph *g) {
    int n = 0;
    bool *live = NEW_ARRAY(g->arena, bool, g->n);
    graph_live(g, live);
    for (NodeId id = 1; id < g->n; id++) n += live[id];
    return n;
}

static void random_graphs(void **state) {
    int merged = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        RandomGraph *r = random_graph(seed, 80);
        Eval *before = rg_eval(r, r->g, EVAL_ROUNDING);
        int nodes = count_all(r->g);
        Unit u = {.kind = UNIT_EVAL, .arena = r->arena, .diags = r->diags, .g = r->g};
        int n = pass_cse(NULL, &u);
        assert_int_equal(n, nodes - count_all(u.g));
        merged += n;
        const char *broken = graph_verify(u.g, r->arena);
        if (broken) fail_msg("seed %d: %s", (int)seed, broken);
        Eval *after = rg_eval(r, u.g, EVAL_ROUNDING);
        assert_true(rg_difference(before, after) == 0);
        assert_int_equal(pass_cse(NULL, &u), 0);
        eval_free(before);
        eval_free(after);
        arena_free(r->arena);
    }
    assert_true(merged > 200);
}

/* Same op, operands and attributes, but told apart by inst; and two equal effects. */
static void identity(void **state) {
    static const char text[] = "%1 = input name=\"x\" phase=2 : f32[4] micro \"a\"\n"
                               "%2 = exp %1 : f32[4] micro \"policy/a\"\n"
                               "%3 = exp %1 : f32[4] micro \"reference/a\"\n"
                               "%4 = exp %1 : f32[4] micro inst=1\n"
                               "%5 = add %2 %4 : f32[4] micro\n"
                               "%6 = add %4 %3 : f32[4] micro\n"
                               "%7 = state name=\"s\" phase=2 role=5 : f32[4] micro\n"
                               "%8 = accumulate %7 %5 : f32[4] micro\n"
                               "%9 = accumulate %7 %6 : f32[4] micro\n"
                               "root %8\nroot %9\n";
    static const char want[] = "%1 = input name=\"x\" phase=2 : f32[4] micro \"a\"\n"
                               "%2 = exp %1 : f32[4] micro \"policy/a\" \"reference/a\"\n"
                               "%3 = exp %1 : f32[4] micro inst=1\n"
                               "%4 = add %2 %3 : f32[4] micro\n"
                               "%5 = state name=\"s\" phase=2 role=5 : f32[4] micro\n"
                               "%6 = accumulate %5 %4 : f32[4] micro\n"
                               "%7 = accumulate %5 %4 : f32[4] micro\n"
                               "root %6\nroot %7\n";
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    Graph *g = graph_read(arena, diags, source_add(diags, "a.ir", text, sizeof text - 1));
    assert_non_null(g);
    Unit u = {.kind = UNIT_EVAL, .arena = arena, .diags = diags, .g = g};
    assert_int_equal(pass_cse(NULL, &u), 2);
    u.g->diags = NULL; /* no places in the text */
    Text out = {0};
    graph_print(u.g, &out);
    assert_string_equal(out.data, want);
    text_free(&out);
    arena_free(arena);
}

/* ---- policy and reference -------------------------------------------------------------------- */

static NodeId weight(Graph *g, int layer) {
    Attr attr = {
        .name = intern_printf("layers.%d.weight", layer), .name2 = intern("base"), .i0 = layer};
    const Type *type = type_mat(DT_f32, dim_const(DIM), dim_const(DIM));
    return graph_add(g, OP_weight, NULL, 0, &attr, type, 0, NULL);
}

static NodeId adapter(Unit *u, int64_t offset, Dim rows, Dim cols) {
    NodeId params =
        g_state(u->g, "params", PHASE_STEP, ROLE_ADAPTER, type_vec(DT_f32, dim_const(PARAMS)));
    Trained t = {.source = "pref",
                 .tensor = "lora",
                 .offset = offset,
                 .leaf = g_slot(u->g, params, offset, type_mat(DT_f32, rows, cols))};
    PUSH(u->arena, u->trained, u->ntrained, u->captrained, t);
    return t.leaf;
}

static NodeId stack(Unit *u, bool policy, int first) {
    Graph *g = u->g;
    NodeId h = g_input(g, "x", PHASE_MICRO, type_mat(DT_f32, dim_extent(X_T), dim_const(DIM)));
    for (int i = 0; i < LAYERS; i++) {
        NodeId y = g_matmul(g, h, weight(g, i), false, true);
        if (policy && i >= first) {
            NodeId a = adapter(u, i * 64, dim_const(RANK), dim_const(DIM));
            NodeId b = adapter(u, i * 64 + 32, dim_const(DIM), dim_const(RANK));
            y = g_op(g, OP_add, y, g_matmul(g, g_matmul(g, h, a, false, true), b, false, true), 0);
        }
        h = g_op(g, OP_add, h, g_op(g, OP_tanh, y, 0, 0), 0);
    }
    return h;
}

static Unit train_unit(int first) {
    Arena *arena = arena_new();
    Unit u = {.kind = UNIT_TRAIN,
              .arena = arena,
              .diags = diags_new(arena),
              .nparams = PARAMS,
              .nmetrics = 1};
    u.g = graph_new(arena, u.diags);
    NodeId policy = stack(&u, true, first), reference = stack(&u, false, first);
    NodeId difference = g_op(u.g, OP_sub, policy, reference, 0);
    u.loss = g_op(u.g, OP_sum_cols, g_op(u.g, OP_mul, difference, difference, 0), 0, 0);
    u.loss = g_op(u.g, OP_sum_rows, u.loss, 0, 0);
    u.seed = g_input(u.g, "inv_pairs", PHASE_MICRO, type_scalar(DT_f32));
    const Type *sums = type_vec(DT_f32, dim_const(1));
    NodeId metrics = g_state(u.g, "metrics", PHASE_MICRO, ROLE_OUTPUT, sums);
    g_effect(u.g, OP_accumulate, metrics, g_reshape(u.g, u.loss, sums));
    return u;
}

static void trunk_is_shared(void **state) {
    for (int first = 0; first < LAYERS; first++) {
        int adapted = LAYERS - first;
        Unit u = train_unit(first);
        assert_int_equal(count(u.g, OP_matmul, PHASE_MICRO), 2 * LAYERS + 2 * adapted);
        pass_cse(NULL, &u);
        /* the trunk once, then both sides from `first` on; at `first` both multiply one input */
        int forward = first + 1 + 2 * (adapted - 1) + 2 * adapted;
        assert_int_equal(count(u.g, OP_matmul, PHASE_MICRO), forward);
        assert_int_equal(count(u.g, OP_tanh, PHASE_MICRO), first + 2 * adapted);
        assert_int_equal(pass_grad(NULL, &u), 2 * adapted);
        pass_fold(NULL, &u);
        pass_cse(NULL, &u);
        assert_null(graph_verify(u.g, u.arena));
        /* each adapted layer: dA, dB and the way through B; all but the first: through W and A */
        int backward = 3 * adapted + 2 * (adapted - 1);
        assert_int_equal(count(u.g, OP_matmul, PHASE_MICRO), forward + backward);
        assert_int_equal(count(u.g, OP_accumulate, PHASE_MICRO), 2 * adapted + 1);
        assert_int_equal(count(u.g, OP_assign, PHASE_STEP), 2);
        assert_int_equal(count(u.g, OP_assign, PHASE_UPDATE), 4);
        assert_string_equal(u.g->node[u.seed].attr.name, "inv_pairs");
        arena_free(u.arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_graphs),
        cmocka_unit_test(identity),
        cmocka_unit_test(trunk_is_shared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
