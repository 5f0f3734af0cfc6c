/* slice: the same values from fewer rows.  Random graphs before and after; and a last layer in
 * small, whose products run over scored rows only while what all rows need still runs over all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "kernel_graph.h"

static Unit sliced(const RandomGraph *r, int *moved) {
    Unit u = rg_unit(r);
    Pass pass = {0};
    *moved = pass_slice(&pass, &u);
    assert_null(graph_verify(u.g, r->arena));
    return u;
}

static void random_graphs_keep_their_values(void **state) {
    (void)state;
    int changed = 0;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        RandomGraph r = rg_new(seed, 30 + (int)(seed % 40));
        int moved;
        Unit u = sliced(&r, &moved);
        changed += moved > 0;
        assert_true(rg_compare(&r, r.g, u.g, EVAL_DOUBLE) < 1e-12);
        rg_free(&r);
    }
    assert_true(changed > 50);
}

static NodeId weight(RandomGraph *r, const char *name, int64_t rows, int64_t cols) {
    Attr attr = {.name = intern(name), .name2 = intern("base")};
    const Type *t = type_mat(DT_f32, dim_const(rows), dim_const(cols));
    return graph_add(r->g, OP_weight, NULL, 0, &attr, t, 0, NULL);
}

/* h = x + mlp(norm(x)); the head reads norm(h) at scored rows.  `keep`: something reads h at all
 * rows. */
static void last_layer(RandomGraph *r, bool keep) {
    Graph *g = r->g;
    NodeId x = graph_find(g, OP_input, "x"), up = weight(r, "up", RG_F, RG_D),
           down = weight(r, "down", RG_D, RG_F);
    const Type *t = node(g, x)->type;
    NodeId square = g_op(g, OP_sum_cols, g_op(g, OP_mul, x, x, 0), 0, 0);
    NodeId one = g_const(g, 1, node(g, square)->type);
    NodeId scale = g_op(g, OP_rsqrt, g_op(g, OP_add, square, one, 0), 0, 0);
    NodeId norm = g_op(g, OP_mul, x, g_bcast(g, scale, t, true), 0);
    NodeId mlp =
        g_matmul(g, g_op(g, OP_tanh, g_matmul(g, norm, up, false, true), 0, 0), down, false, true);
    NodeId h = g_op(g, OP_add, x, mlp, 0);
    NodeId hs = g_op(g, OP_take, h, r->row, 0);
    rg_effect(r, g_op(g, OP_sum_rows, hs, 0, 0));
    if (keep) rg_effect(r, g_op(g, OP_sum_rows, h, 0, 0));
}

static int products_over(const Graph *g, Extent e) {
    int n = 0;
    for (NodeId id = 1; id < g->n; id++)
        n += node(g, id)->op == OP_matmul && dim_equal(node(g, id)->type->dim[0], dim_extent(e));
    return n;
}

static void the_last_layer_runs_over_scored_rows(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    last_layer(&r, false);
    int moved;
    Unit u = sliced(&r, &moved);
    assert_int_equal(products_over(r.g, X_T), 2);
    assert_int_equal(products_over(u.g, X_T), 0);
    assert_int_equal(products_over(u.g, X_R), 2);
    assert_int_equal(rg_count(u.g, OP_take), 1);
    assert_true(rg_compare(&r, r.g, u.g, EVAL_ROUNDING) == 0);
    rg_free(&r);
}

static void what_all_rows_need_stays(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    last_layer(&r, true);
    int moved;
    sliced(&r, &moved);
    assert_int_equal(moved, 0);
    rg_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_graphs_keep_their_values),
                                       cmocka_unit_test(the_last_layer_runs_over_scored_rows),
                                       cmocka_unit_test(what_all_rows_need_stays)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
