/* lower: the Kern of known groups, line by line, and the patterns that must be one kernel each:
 * RMSNorm with residual, SwiGLU and its backward, rope, AdamW.  What Kerns compute is checked in
 * test_fuse.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "compiler/kern.h"
#include "kernel_graph.h"

#include <string.h>

static Unit fused(const RandomGraph *r) {
    Unit u = rg_unit(r);
    Pass layout = {0}, gemm = {0}, fuse = {0};
    assert_true(pass_layout(&layout, &u) >= 0);
    assert_true(pass_gemm(&gemm, &u) >= 0);
    assert_true(pass_fuse(&fuse, &u) >= 0);
    return u;
}

static void is_one_kernel(const Unit *u, const char *want) {
    assert_int_equal(u->ngroups, 1);
    Text text = {0};
    kern_print(u->groups[0].kern, &text);
    assert_string_equal(text.data, want);
    text_free(&text);
}

static NodeId state_like(const RandomGraph *r, const char *name, const Type *t) {
    return g_state(r->g, name, PHASE_MICRO, ROLE_OUTPUT, t);
}

static void out(const RandomGraph *r, const char *name, NodeId x) {
    g_effect(r->g, OP_assign, state_like(r, name, node(r->g, x)->type), x);
}

/* h = x + y; n = bf16(h * rsqrt(mean(h * h) + eps) * w), w kept in bf16. */
static void rmsnorm_with_residual(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    NodeId x = graph_find(g, OP_input, "x");
    const Type *t = node(g, x)->type, *rows = type_vec(DT_f32, dim_extent(X_T));
    NodeId y = g_input(g, "y", PHASE_MICRO, t);
    NodeId w = g_input(g, "w", PHASE_INIT, type_vec(DT_bf16, dim_const(RG_D)));
    NodeId h = g_op(g, OP_add, x, y, 0);
    NodeId sum = g_op(g, OP_sum_cols, g_op(g, OP_mul, h, h, 0), 0, 0);
    NodeId mean = g_op(g, OP_div, sum, g_const(g, RG_D, rows), 0);
    NodeId scale = g_op(g, OP_rsqrt, g_op(g, OP_add, mean, g_const(g, 1e-5, rows), 0), 0, 0);
    NodeId n = g_op(g, OP_mul, h, g_bcast(g, scale, t, true), 0);
    n = g_op(g, OP_mul, n, g_bcast(g, g_cast(g, w, DT_f32), t, false), 0);
    out(&r, "h", h);
    out(&r, "n", g_cast(g, n, DT_bf16));
    Unit u = fused(&r);
    is_one_kernel(&u, "kern rows T x 8\n"
                      "  p0 f32\n"
                      "  p1 f32\n"
                      "  p2 bf16\n"
                      "  p3 f32 write\n"
                      "  p4 bf16 write\n"
                      "  v0 = load f32 p0 ld=8 : elem\n"
                      "  v1 = load f32 p1 ld=8 : elem\n"
                      "  v2 = add v0 v1 : elem\n"
                      "  v3 = mul v2 v2 : elem\n"
                      "  v4 = sum_cols v3 : row\n"
                      "  v5 = const 8 : scalar\n"
                      "  v6 = div v4 v5 : row\n"
                      "  v7 = const 1e-05 : scalar\n"
                      "  v8 = add v6 v7 : row\n"
                      "  v9 = rsqrt v8 : row\n"
                      "  v10 = mul v2 v9 : elem\n"
                      "  v11 = load bf16 p2 : col\n"
                      "  v12 = mul v10 v11 : elem\n"
                      "  v13 = cast v12 to bf16 : elem\n"
                      "  v14 = store f32 p3 ld=8 v2 : elem\n"
                      "  v15 = store bf16 p4 ld=8 v13 : elem\n");
    rg_free(&r);
}

/* y = x cos + rotate_half(x) sin, with cos and sin [T,S] for all heads, x rows of a matrix
 * [T,H*S]. */
static void rope(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    NodeId x = graph_find(g, OP_input, "x"), a = graph_find(g, OP_input, "ts");
    const Type *t = rg_type(3, X_T, RG_H, RG_S);
    NodeId h = g_reshape(g, x, t);
    NodeId b = graph_add(g, OP_bcast, &a, 1, &(Attr){.i0 = 2}, t, 0, NULL);
    NodeId straight = g_op(g, OP_mul, h, b, 0);
    NodeId crossed = g_op(g, OP_mul, g_op(g, OP_rotate_half, h, 0, 0), b, 0);
    out(&r, "y", g_op(g, OP_add, straight, crossed, 0));
    Unit u = fused(&r);
    is_one_kernel(&u, "kern rows 2*T x 4\n"
                      "  p0 f32\n"
                      "  p1 f32\n"
                      "  p2 f32 write\n"
                      "  v0 = load f32 p0 ld=4 : elem\n"
                      "  v1 = load f32 p1 row/2 ld=4 : elem\n"
                      "  v2 = mul v0 v1 : elem\n"
                      "  v3 = load f32 p0 ld=4 half : elem\n"
                      "  v4 = mul v3 v1 : elem\n"
                      "  v5 = add v2 v4 : elem\n"
                      "  v6 = store f32 p2 ld=4 v5 : elem\n");
    rg_free(&r);
}

/* Embedding: rows of a bf16 table, picked by token, as numbers. */
static void gather(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    const Type *t = type_mat(DT_bf16, dim_const(97), dim_const(RG_D));
    NodeId table = g_input(g, "table", PHASE_INIT, t);
    NodeId rows = g_op(g, OP_take, table, r.row, 0);
    out(&r, "y", g_op(g, OP_neg, g_cast(g, rows, DT_f32), 0, 0));
    Unit u = fused(&r);
    is_one_kernel(&u, "kern rows R x 8\n"
                      "  p0 bf16\n"
                      "  p1 i32\n"
                      "  p2 f32 write\n"
                      "  v0 = load bf16 p0[p1[row]] ld=8 : elem\n"
                      "  v1 = neg v0 : elem\n"
                      "  v2 = store f32 p2 ld=8 v1 : elem\n");
    rg_free(&r);
}

/* AdamW over a flat state: three stores in place, rows of 1024. */
static void adamw(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    const Type *t = type_vec(DT_f32, dim_const(8192));
    static const char *const names[] = {"p", "g", "m", "v"};
    NodeId s[4];
    for (int i = 0; i < 4; i++) s[i] = state_like(&r, names[i], t);
    NodeId b1 = g_bcast(g, graph_find(g, OP_input, "a"), t, false);
    NodeId m = g_op(g, OP_add, g_op(g, OP_mul, s[2], b1, 0), s[1], 0);
    NodeId v = g_op(g, OP_add, g_op(g, OP_mul, s[3], b1, 0), g_op(g, OP_mul, s[1], s[1], 0), 0);
    NodeId step = g_op(g, OP_div, m, g_op(g, OP_sqrt, v, 0, 0), 0);
    g_effect(g, OP_assign, s[2], m);
    g_effect(g, OP_assign, s[3], v);
    g_effect(g, OP_assign, s[0], g_op(g, OP_sub, s[0], step, 0));
    Unit u = fused(&r);
    assert_int_equal(u.ngroups, 1);
    const Kern *k = u.groups[0].kern;
    assert_true(dim_equal(k->rows, dim_const(8)) && k->cols == 1024);
    assert_int_equal(k->narg, 5); /* p, m, v are read and written through one argument each */
    int writes = 0;
    for (int i = 0; i < k->narg; i++) writes += k->arg[i].write;
    assert_int_equal(writes, 3);
    rg_free(&r);
}

/* SwiGLU forward, and backward from stored gate and up. */
static void swiglu(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    NodeId gate = graph_find(g, OP_input, "x"), up, dy;
    const Type *t = node(g, gate)->type;
    up = g_input(g, "up", PHASE_MICRO, t);
    dy = g_input(g, "dy", PHASE_MICRO, t);
    NodeId sig = g_op(g, OP_sigmoid, gate, 0, 0), silu = g_op(g, OP_mul, gate, sig, 0);
    NodeId slope =
        g_op(g, OP_mul, sig,
             g_op(g, OP_add, g_const(g, 1, t),
                  g_op(g, OP_mul, gate, g_op(g, OP_sub, g_const(g, 1, t), sig, 0), 0), 0),
             0);
    NodeId dsilu = g_op(g, OP_mul, dy, up, 0);
    out(&r, "dgate", g_op(g, OP_mul, dsilu, slope, 0));
    out(&r, "dup", g_op(g, OP_mul, dy, silu, 0));
    Unit u = fused(&r);
    assert_int_equal(u.ngroups, 1);
    assert_int_equal(u.groups[0].kern->narg, 5);
    rg_free(&r);
}

/* z = (x sigmoid(x)) W, loss = sum z^2 / 2: the slope of the activation depends on x alone, but is
 * computed where the backward reads it, not by the forward's kernel. */
static void slopes_are_computed_by_the_backward(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    NodeId x = graph_find(g, OP_input, "x"), seed = graph_find(g, OP_input, "a");
    const Type *t = node(g, x)->type;
    NodeId w = g_input(g, "W", PHASE_INIT, type_mat(DT_f32, dim_const(RG_D), dim_const(RG_D)));
    NodeId sig = g_op(g, OP_sigmoid, x, 0, 0);
    NodeId z = g_matmul(g, g_op(g, OP_mul, x, sig, 0), w, false, true);
    NodeId loss = g_op(g, OP_sum_rows, g_op(g, OP_sum_cols, g_op(g, OP_mul, z, z, 0), 0, 0), 0, 0);
    out(&r, "loss", loss);
    NodeId dz = g_op(g, OP_mul, z, g_bcast(g, seed, t, false), 0);
    NodeId slope = g_op(g, OP_mul, sig, g_op(g, OP_sub, g_const(g, 1, t), sig, 0), 0);
    out(&r, "dx", g_op(g, OP_mul, g_matmul(g, dz, w, false, false), slope, 0));
    Unit u = rg_unit(&r);
    u.kind = UNIT_TRAIN;
    u.loss = loss;
    u.seed = seed;
    Pass gemm = {0}, fuse = {0};
    assert_true(pass_gemm(&gemm, &u) >= 0 && pass_fuse(&fuse, &u) >= 0);
    int with_slope = -1, with_sigmoid = -1;
    for (int i = 0; i < u.ngroups; i++)
        for (int k = 0; k < u.groups[i].nnodes; k++) {
            if (u.groups[i].nodes[k] == slope) with_slope = i;
            if (u.groups[i].nodes[k] == sig) with_sigmoid = i;
        }
    assert_true(with_slope > with_sigmoid);
    assert_int_equal(u.groups[with_sigmoid].nouts, 2); /* the product's operand, sigmoid(x) */
    rg_free(&r);
}

/* Equal computations on different nodes print the same: no ids are in a Kern's text. */
static void equal_kernels_print_the_same(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    const Type *t = node(g, graph_find(g, OP_input, "x"))->type;
    static const char *const in[] = {"in0", "in1"}, *const to[] = {"to0", "to1"};
    for (int i = 0; i < 2; i++) {
        NodeId x = g_input(g, in[i], PHASE_MICRO, t);
        NodeId mean = g_bcast(g, g_op(g, OP_sum_cols, x, 0, 0), t, true);
        out(&r, to[i], g_op(g, OP_sub, x, mean, 0));
    }
    Unit u = fused(&r);
    assert_int_equal(u.ngroups, 2);
    Text a = {0}, b = {0};
    kern_print(u.groups[0].kern, &a);
    kern_print(u.groups[1].kern, &b);
    assert_string_equal(a.data, b.data);
    text_free(&a);
    text_free(&b);
    rg_free(&r);
}

/* What is spread over the columns is stored before its halves change places. */
static void spread_then_rotated(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    Graph *g = r.g;
    const Type *t = node(g, graph_find(g, OP_input, "x"))->type;
    NodeId row = g_input(g, "row", PHASE_MICRO, type_vec(DT_f32, dim_extent(X_T)));
    out(&r, "y", g_op(g, OP_rotate_half, g_bcast(g, row, t, true), 0, 0));
    Unit u = fused(&r);
    assert_int_equal(u.ngroups, 2);
    Text text = {0};
    kern_print(u.groups[1].kern, &text);
    assert_non_null(strstr(text.data, "p0 ld=8 half : elem"));
    text_free(&text);
    rg_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rmsnorm_with_residual),
                                       cmocka_unit_test(rope),
                                       cmocka_unit_test(spread_then_rotated),
                                       cmocka_unit_test(gather),
                                       cmocka_unit_test(adamw),
                                       cmocka_unit_test(swiglu),
                                       cmocka_unit_test(slopes_are_computed_by_the_backward),
                                       cmocka_unit_test(equal_kernels_print_the_same)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
