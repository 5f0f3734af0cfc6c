/* gemm: what a library call takes in.  Structures are counted; that every call computes what its
 * nodes mean is shown by running the groups (group_run.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "group_run.h"
#include "kernel_graph.h"

static NodeId weight(RandomGraph *r, const char *name, int64_t rows, int64_t cols) {
    Attr attr = {.name = intern(name), .name2 = intern("base")};
    const Type *t = type_mat(DT_f32, dim_const(rows), dim_const(cols));
    return graph_add(r->g, OP_weight, NULL, 0, &attr, t, 0, NULL);
}

static NodeId scaled(Graph *g, NodeId x, double c) {
    return g_op(g, OP_mul, x, g_const(g, c, node(g, x)->type), 0);
}

static Unit compiled_for(const RandomGraph *r, bool on, const char *target) {
    Unit u = rg_unit(r);
    u.target = target_by_name(target);
    Pass layout = {0}, gemm = {.off = !on}, fuse = {0};
    assert_true(pass_layout(&layout, &u) >= 0);
    assert_true(pass_gemm(&gemm, &u) >= 0);
    assert_true(pass_fuse(&fuse, &u) >= 0);
    Eval *truth = eval_new(u.g, EVAL_DOUBLE, r->extent);
    rg_fill(r, truth, u.g);
    GroupRun run = gr_new(&u, truth, r->extent);
    eval_run(truth, PHASE_UPDATE, false);
    gr_leaves(&run);
    gr_all(&run);
    int64_t n;
    const double *flat = eval_state(truth, "flat", &n);
    assert_true(gr_distance(run.value[graph_find(u.g, OP_state, "flat")], flat, n) < 1e-12);
    gr_free(&run);
    eval_free(truth);
    return u;
}

static Unit compiled(const RandomGraph *r, bool on) {
    return compiled_for(r, on, "cpu");
}

static int count(const Unit *u, GroupKind kind) {
    int n = 0;
    for (int i = 0; i < u->ngroups; i++) n += u->groups[i].kind == kind;
    return n;
}

static const Group *gemm_at(const Unit *u, int k) { /* the k-th in order */
    for (int i = 0; i < u->ngroups; i++)
        if (u->groups[i].kind == GROUP_GEMM && k-- == 0) return &u->groups[i];
    return NULL;
}

static void sink(RandomGraph *r, NodeId x) {
    rg_effect(r, g_op(r->g, OP_sum_rows, x, 0, 0));
}

/* y = W x + s B (A x): the large product comes last and adds in the buffer of the small ones. */
static void lora_is_three_products_and_nothing_else(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    NodeId x = graph_find(g, OP_input, "x");
    NodeId y = g_matmul(g, x, weight(&r, "W", RG_F, RG_D), false, true);
    NodeId a = g_matmul(g, x, weight(&r, "A", 2, RG_D), false, true);
    NodeId b = g_matmul(g, a, weight(&r, "B", RG_F, 2), false, true);
    const NodeId side = scaled(g, b, 0.5);
    sink(&r, g_op(g, OP_add, y, side, 0));
    Unit off = compiled(&r, false), on = compiled(&r, true);
    assert_int_equal(count(&off, GROUP_GEMM), 3);
    assert_int_equal(count(&on, GROUP_GEMM), 3);
    assert_int_equal(count(&on, GROUP_KERN), 1); /* the sum over rows that ends the test's graph */
    assert_int_equal(on.groups[on.ngroups - 1].kern->narg, 2);
    assert_int_equal(off.groups[off.ngroups - 1].kern->narg, 3); /* reads both products */
    const Group *small = gemm_at(&on, 1), *last = gemm_at(&on, 2);
    assert_true(small->gemm.alpha == 0.5f && small->gemm.beta == 0);
    assert_int_equal(last->nodes[0], y);
    assert_int_equal(last->inplace, side);
    assert_true(last->gemm.alpha == 1 && last->gemm.beta == 1);
    rg_free(&r);
}

/* Two adapters on one weight: both sums stay in products. */
static void two_sides_are_five_products(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    NodeId x = graph_find(g, OP_input, "x");
    NodeId y = g_matmul(g, x, weight(&r, "W", RG_F, RG_D), false, true);
    for (int i = 0; i < 2; i++) {
        NodeId a = g_matmul(g, x, weight(&r, i ? "A1" : "A0", 2, RG_D), false, true);
        NodeId b = g_matmul(g, a, weight(&r, i ? "B1" : "B0", RG_F, 2), false, true);
        y = g_op(g, OP_add, y, scaled(g, b, 0.5), 0);
    }
    sink(&r, y);
    Unit u = compiled(&r, true);
    assert_int_equal(count(&u, GROUP_GEMM), 5);
    assert_int_equal(count(&u, GROUP_KERN), 1);
    assert_int_equal(u.groups[u.ngroups - 1].kern->narg, 2);
    rg_free(&r);
}

static void a_product_read_twice_keeps_its_buffer(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    NodeId x = graph_find(g, OP_input, "x");
    NodeId y = g_matmul(g, x, weight(&r, "W", RG_F, RG_D), false, true);
    NodeId b = g_matmul(g, x, weight(&r, "B", RG_F, RG_D), false, true);
    sink(&r, g_op(g, OP_add, y, b, 0));
    sink(&r, y);
    Unit u = compiled(&r, true);
    assert_int_equal(gemm_at(&u, 0)->inplace, 0);
    assert_int_equal(gemm_at(&u, 1)->inplace, 0);
    bool told = false;
    for (int i = 0; i < u.nrefused; i++) told |= strstr(u.refused[i], "read elsewhere") != NULL;
    assert_true(told);
    rg_free(&r);
}

/* Gradients go straight into their slots, in a layout of the slot's own. */
static void a_gradient_is_accumulated_by_its_product(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    NodeId x = graph_find(g, OP_input, "x");
    NodeId dw = scaled(g, g_matmul(g, x, x, true, false), 2);
    const Type *t = node(g, dw)->type;
    g_effect(g, OP_accumulate, g_slot(g, r.flat, 0, t), dw);
    NodeId other = g_reshape(g, g_matmul(g, x, g_op(g, OP_tanh, x, 0, 0), true, false),
                             type_vec(DT_f32, dim_const(RG_D * RG_D)));
    g_effect(g, OP_assign, g_slot(g, r.flat, 64, node(g, other)->type), other);
    Unit off = compiled(&r, false), on = compiled(&r, true);
    assert_int_equal(count(&off, GROUP_KERN), 3);
    assert_int_equal(count(&on, GROUP_KERN), 1);
    assert_true(gemm_at(&on, 0)->gemm.beta == 1 && gemm_at(&on, 0)->gemm.alpha == 2);
    assert_true(gemm_at(&on, 1)->gemm.beta == 0);
    rg_free(&r);
}

/* z = x W' + d, rounded to bf16. */
static Unit rounded_sum(RandomGraph *r, DType operands, const char *target) {
    *r = rg_leaves();
    Graph *g = r->g;
    NodeId x = g_cast(g, graph_find(g, OP_input, "x"), operands);
    NodeId w = g_cast(g, weight(r, "W", RG_D, RG_D), operands), d = graph_find(g, OP_input, "d");
    NodeId y = g_matmul(g, x, w, false, true);
    NodeId z = g_op(g, OP_add, y, g_bcast(g, d, node(g, y)->type, false), 0);
    sink(r, g_cast(g, g_cast(g, z, DT_bf16), DT_f32));
    return compiled_for(r, true, target);
}

static void rounding_and_bias_ride_along(void **state) {
    (void)state;
    RandomGraph r;
    Unit u = rounded_sum(&r, DT_bf16, "cpu");
    const Group *group = gemm_at(&u, 0);
    assert_true(group->gemm.bias && group->gemm.c == DT_bf16);
    assert_int_equal(group->bias, graph_find(r.g, OP_input, "d"));
    assert_int_equal(group->nnodes, 3);
    rg_free(&r);
    /* cuBLASLt's bias has the result's type, ours is f32: the rounding is left to a kernel. */
    u = rounded_sum(&r, DT_bf16, "sm_80");
    assert_true(gemm_at(&u, 0)->gemm.bias && gemm_at(&u, 0)->gemm.c == DT_f32);
    rg_free(&r);
    /* No library rounds a product of f32 matrices to bf16. */
    u = rounded_sum(&r, DT_f32, "cpu");
    assert_true(gemm_at(&u, 0)->gemm.bias && gemm_at(&u, 0)->gemm.c == DT_f32);
    rg_free(&r);
}

static void columns_are_a_leading_dimension(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    NodeId x = graph_find(g, OP_input, "x"), w = weight(&r, "W", RG_F, RG_D);
    Attr half = {.i0 = 4, .i1 = 4};
    NodeId xs = graph_add(g, OP_cols, &x, 1, &half, NULL, 0, NULL);
    NodeId ws = graph_add(g, OP_cols, &w, 1, &half, NULL, 0, NULL);
    sink(&r, g_matmul(g, xs, ws, false, true));
    Unit u = compiled(&r, true);
    assert_int_equal(gemm_at(&u, 0)->gemm.lda, RG_D);
    assert_int_equal(gemm_at(&u, 0)->gemm.ldb, RG_D);
    rg_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(lora_is_three_products_and_nothing_else),
                                       cmocka_unit_test(two_sides_are_five_products),
                                       cmocka_unit_test(a_product_read_twice_keeps_its_buffer),
                                       cmocka_unit_test(a_gradient_is_accumulated_by_its_product),
                                       cmocka_unit_test(rounding_and_bias_ride_along),
                                       cmocka_unit_test(columns_are_a_leading_dimension)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
