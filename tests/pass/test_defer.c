/* defer: the head's backward becomes a multiplication, with the same gradient; not where dW is
 * wanted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "kernel_graph.h"

/* logp and its backward with coefficients c = tanh(logp); `dw`: the weight's gradient is wanted
 * too. */
static void head(RandomGraph *r, bool dw) {
    Graph *g = r->g;
    NodeId h = graph_find(g, OP_input, "r"); /* [R,D] */
    NodeId target = g_input(g, "target", PHASE_MICRO, type_vec(DT_i32, dim_extent(X_R)));
    NodeId w = g_input(g, "W", PHASE_INIT, type_mat(DT_f32, dim_const(11), dim_const(RG_D)));
    Attr attr = {.num = 0.5};
    NodeId y = graph_add(g, OP_linear_logprob, (NodeId[]){h, w, target}, 3, &attr, NULL, 0, NULL);
    NodeId in[] = {h, w, target, g_part(g, y, 1), g_op(g, OP_tanh, y, 0, 0)};
    NodeId dh = graph_add(g, OP_linear_logprob_bwd, in, 5, &attr, NULL, 0, NULL);
    rg_effect(r, g_op(g, OP_sum_rows, y, 0, 0));
    rg_effect(r, g_op(g, OP_sum_rows, dh, 0, 0));
    if (dw) rg_effect(r, g_op(g, OP_sum_rows, g_part(g, dh, 1), 0, 0));
}

static void the_backward_is_a_multiplication(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    head(&r, false);
    Unit u = rg_unit(&r);
    Pass pass = {0};
    assert_int_equal(pass_defer(&pass, &u), 1);
    assert_null(graph_verify(u.g, r.arena));
    assert_int_equal(rg_count(u.g, OP_linear_logprob_bwd), 0);
    assert_int_equal(rg_count(u.g, OP_linear_logprob), 1);
    assert_true(rg_compare(&r, r.g, u.g, EVAL_DOUBLE) < 1e-14);
    rg_free(&r);
}

static void not_where_the_weight_is_trained(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    head(&r, true);
    Unit u = rg_unit(&r);
    Pass pass = {0};
    assert_int_equal(pass_defer(&pass, &u), 0);
    assert_ptr_equal(u.g, r.g);
    assert_int_equal(u.nrefused, 1);
    rg_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_backward_is_a_multiplication),
                                       cmocka_unit_test(not_where_the_weight_is_trained)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
