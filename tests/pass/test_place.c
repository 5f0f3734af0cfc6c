/* place_of: where a value lies, checked against the evaluator: element (row, column) of a view is
 * element offset + row * ld + column of its base. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "kernel_graph.h"

static void check_place(const RandomGraph *r, Eval *e, NodeId id) {
    const Type *t = node(r->g, id)->type;
    Place p = place_of(r->g, id);
    int64_t rows = dim_eval(type_rows(t), r->extent), cols = type_cols(t), n, m;
    const double *view = eval_get(e, id, &n), *base = eval_get(e, p.base, &m);
    assert_int_equal(rows * cols, n);
    int64_t offset = dim_eval(p.offset, r->extent);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            int64_t at = offset + i * p.ld + j;
            assert_true(at < m);
            assert_true(view[i * cols + j] == base[at]);
        }
}

static void views_lie_where_the_evaluator_reads(void **state) {
    (void)state;
    int views = 0, strided = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        RandomGraph r = rg_new(seed, 60);
        Eval *e = eval_new(r.g, EVAL_DOUBLE, r.extent);
        rg_fill(&r, e, r.g);
        eval_run(e, PHASE_UPDATE, false);
        for (NodeId id = 1; id < r.g->n; id++) {
            if (op_info[node(r.g, id)->op].kind == KIND_EFFECT) continue;
            check_place(&r, e, id);
            views += place_of(r.g, id).base != id;
            strided += !place_dense(r.g, id);
        }
        eval_free(e);
        rg_free(&r);
    }
    assert_true(views > 300);
    assert_true(strided > 30);
}

static void rows_and_columns_of_heads(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    NodeId h = graph_find(r.g, OP_input, "h"); /* [T,2,4] */
    Attr last = {.i0 = 1, .i1 = 2}, from = {.dim = dim_const(2), .dim2 = dim_const(3)};
    NodeId c = graph_add(r.g, OP_cols, &h, 1, &last, NULL, 0, NULL);
    NodeId b = graph_add(r.g, OP_rows, &c, 1, &from, NULL, 0, NULL);
    Place p = place_of(r.g, b);
    assert_int_equal(p.base, h);
    assert_true(dim_equal(p.offset, dim_const(2 * RG_H * RG_S + 1)));
    assert_int_equal(p.ld, RG_S);
    NodeId flat = g_reshape(r.g, b, type_mat(DT_f32, dim_const(3), dim_const(4)));
    assert_int_equal(place_of(r.g, flat).base, flat); /* no single distance between its rows */
    rg_free(&r);
}

static void every_reader_stands_in_uses(void **state) {
    (void)state;
    RandomGraph r = rg_new(7, 60);
    Uses uses = uses_of(r.arena, r.g);
    bool *live = NEW_ARRAY(r.arena, bool, r.g->n);
    graph_live(r.g, live);
    for (NodeId id = 1; id < r.g->n; id++) {
        int n = 0;
        for (NodeId user = 1; user < r.g->n; user++)
            for (int i = 0; live[user] && i < node(r.g, user)->nin; i++) {
                if (node(r.g, user)->in[i] != id) continue;
                assert_int_equal(uses.user[uses.first[id] + n], user);
                n++;
            }
        assert_int_equal(use_count(&uses, id), n);
    }
    rg_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(views_lie_where_the_evaluator_reads),
                                       cmocka_unit_test(rows_and_columns_of_heads),
                                       cmocka_unit_test(every_reader_stands_in_uses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
