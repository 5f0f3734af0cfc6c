/* FLOPs and bytes against counts done by hand. */
#include "compiler/dpoc.h"

#include <setjmp.h>

#include <cmocka.h>

static const int64_t extent[NEXTENT] = {[X_T] = 10, [X_R] = 7, [X_G] = 2, [X_N] = 1};

static Graph *graph(Arena *arena) {
    return graph_new(arena, diags_new(arena));
}

static NodeId input(Graph *g, const char *name, DType t, int rank, const Dim *dim) {
    return g_input(g, name, PHASE_MICRO, type_of(t, rank, dim));
}

static void products(void **unused) {
    Arena *arena = arena_new();
    Graph *g = graph(arena);
    Dim t = dim_extent(X_T);
    NodeId x = input(g, "x", DT_bf16, 2, (Dim[]){t, dim_const(6)});
    NodeId w = input(g, "w", DT_bf16, 2, (Dim[]){dim_const(5), dim_const(6)});
    NodeId y = g_matmul(g, x, w, false, true);
    assert_true(node_flops(g, y, extent) == 2 * 10 * 5 * 6);
    assert_true(node_bytes(g, y, extent) == 10 * 6 * 2 + 5 * 6 * 2 + 10 * 5 * 4);
    NodeId dw = g_matmul(g, y, g_cast(g, x, DT_f32), true, false); /* [5,T] [T,6] */
    assert_true(node_flops(g, dw, extent) == 2 * 10 * 5 * 6);
    assert_true(graph_flops(g, PHASE_MICRO, extent) == 2 * 2 * 10 * 5 * 6);
    assert_true(graph_flops(g, PHASE_UPDATE, extent) == 0);
    arena_free(arena);
}

/* A causal square of 10 rows has 55 scores a head; each costs a dot product and a scaled row. */
static void attention(void **unused) {
    Arena *arena = arena_new();
    Graph *g = graph(arena);
    Dim t = dim_extent(X_T);
    NodeId q = input(g, "q", DT_f32, 3, (Dim[]){t, dim_const(4), dim_const(8)});
    NodeId k = input(g, "k", DT_f32, 3, (Dim[]){t, dim_const(2), dim_const(8)});
    NodeId s = input(g, "s", DT_i32, 2, (Dim[]){dim_extent(X_G), dim_const(6)});
    Attr attr = {.num = 1};
    NodeId y = graph_add(g, OP_attend, (NodeId[]){q, k, k, s}, 4, &attr, NULL, 0, NULL);
    assert_true(node_flops(g, y, extent) == 55 * 4 * (2 * 8 + 2 * 8));
    arena_free(arena);
}

/* logits, and in the backward logits again, dh, and dW where it is asked for. */
static void head(void **unused) {
    enum { D = 6, V = 50, R = 7 };
    Arena *arena = arena_new();
    Graph *g = graph(arena);
    Dim r = dim_extent(X_R);
    NodeId h = input(g, "h", DT_f32, 2, (Dim[]){r, dim_const(D)});
    NodeId w = input(g, "w", DT_f32, 2, (Dim[]){dim_const(V), dim_const(D)});
    NodeId target = input(g, "target", DT_i32, 1, &r), c = input(g, "c", DT_f32, 1, &r);
    Attr attr = {.num = 1};
    NodeId logp =
        graph_add(g, OP_linear_logprob, (NodeId[]){h, w, target}, 3, &attr, NULL, 0, NULL);
    double one = 2.0 * R * D * V;
    assert_true(graph_flops(g, PHASE_MICRO, extent) == one);
    NodeId in[] = {h, w, target, g_part(g, logp, 1), c};
    NodeId back = graph_add(g, OP_linear_logprob_bwd, in, 5, &attr, NULL, 0, NULL);
    assert_true(graph_flops(g, PHASE_MICRO, extent) == 3 * one);
    g_part(g, back, 1);
    assert_true(graph_flops(g, PHASE_MICRO, extent) == 4 * one);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products),
        cmocka_unit_test(attention),
        cmocka_unit_test(head),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
