/* quant: a quantized weight's numbers are what its codes mean; forward and backward read
 * dequantizations of their own, in their own phase; other weights stay as they are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "kernel_graph.h"
#include "runtime/quantize.h"

#include <string.h>

enum { OUT = 12, BLOCK = 16 };

static NodeId weight(RandomGraph *r, const char *name, int info, int64_t rows, int64_t cols) {
    Attr attr = {.name = intern(name), .name2 = intern("base"), .i0 = info};
    const Type *t = type_mat(DT_f32, dim_const(rows), dim_const(cols));
    return graph_add(r->g, OP_weight, NULL, 0, &attr, t, 0, NULL);
}

/* y = x W^T is read twice: summed, and sent back through W.  V is not quantized.  Returns what the
 * way back begins with. */
static NodeId model(RandomGraph *r) {
    Graph *g = r->g;
    NodeId x = graph_find(g, OP_input, "x");
    NodeId w = weight(r, "W", 0, OUT, RG_D), v = weight(r, "V", 1, OUT, RG_D);
    NodeId y = g_matmul(g, x, w, false, true), z = g_matmul(g, x, v, false, true);
    NodeId begin = g_op(g, OP_tanh, y, 0, 0), back = g_matmul(g, begin, w, false, false);
    NodeId sum[] = {g_op(g, OP_sum_rows, g_op(g, OP_add, y, z, 0), 0, 0),
                    g_op(g, OP_sum_rows, back, 0, 0)};
    const Type *t = node(g, sum[0])->type;
    g_effect(g, OP_assign, g_slot(g, r->flat, 0, t), sum[0]);
    g_effect(g, OP_assign, g_slot(g, r->flat, 64, node(g, sum[1])->type), sum[1]);
    return begin;
}

typedef struct Packed {
    uint8_t codes[OUT * RG_D], nested[OUT * RG_D / BLOCK];
    float absmax[OUT * RG_D / BLOCK], absmax2[1], offset, values[OUT * RG_D];
} Packed;

static Packed pack(QuantFormat format, bool nested) {
    Packed p = {0};
    float x[OUT * RG_D];
    const int n = OUT * RG_D, blocks = n / BLOCK;
    for (int i = 0; i < n; i++) x[i] = (float)((i * 37 % 101) - 50) / 40.0f;
    quant_blocks(format, x, n, BLOCK, p.codes, p.absmax);
    p.offset = 0.7f;
    quant_nested(p.absmax, blocks, p.offset, p.nested, p.absmax2);
    if (nested) dequant_nested(p.nested, p.absmax2, p.offset, quant_map(true), blocks, p.absmax);
    dequant_blocks(format, p.codes, p.absmax, 0, n, BLOCK, p.values);
    return p;
}

static void set_bytes(Eval *e, const char *leaf, const uint8_t *x, int n) {
    double v[256];
    for (int i = 0; i < n; i++) v[i] = x[i];
    eval_set(e, leaf, v, n);
}
static void set_floats(Eval *e, const char *leaf, const float *x, int n) {
    double v[256];
    for (int i = 0; i < n; i++) v[i] = (double)x[i];
    eval_set(e, leaf, v, n);
}

/* `apart`: forward and backward get dequantizations of their own; two forward readers in a row
 * share one. */
static void check(const char *name, bool nested, bool apart) {
    QuantFormat format;
    assert_true(quant_format(name, &format));
    RandomGraph r = rg_leaves();
    NodeId begin = model(&r);
    Unit u = rg_unit(&r);
    if (apart) u.seed = begin;
    WeightInfo info[] = {{.source = "base",
                          .tensor = "W",
                          .rank = 2,
                          .rows = OUT,
                          .cols = RG_D,
                          .format = name,
                          .block = BLOCK,
                          .nested = nested},
                         {.source = "base", .tensor = "V", .rank = 2, .rows = OUT, .cols = RG_D}};
    u.weights = info;
    u.nweights = 2;
    Pass pass = {0};
    assert_int_equal(pass_quant(&pass, &u), apart ? 2 : 1);
    assert_null(graph_verify(u.g, r.arena));
    assert_int_equal(rg_count(u.g, OP_dequant), apart ? 2 : 1);
    assert_int_equal(rg_count(u.g, OP_weight), nested ? 6 : 3);
    for (NodeId id = 1; id < u.g->n; id++)
        if (node(u.g, id)->op == OP_dequant) assert_int_equal(node(u.g, id)->phase, PHASE_MICRO);
    Packed p = pack(format, nested);
    Eval *want = eval_new(r.g, EVAL_DOUBLE, r.extent), *got = eval_new(u.g, EVAL_DOUBLE, r.extent);
    rg_fill(&r, want, r.g);
    rg_fill(&r, got, u.g);
    set_floats(want, "base/W", p.values, OUT * RG_D);
    set_bytes(got, "base/W#codes", p.codes, format == QUANT_INT8 ? OUT * RG_D : OUT * RG_D / 2);
    if (nested) {
        set_bytes(got, "base/W#absmax", p.nested, OUT * RG_D / BLOCK);
        set_floats(got, "base/W#absmax2", p.absmax2, 1);
        set_floats(got, "base/W#offset", &p.offset, 1);
        set_floats(got, "base/W#map", quant_map(true), 256);
    } else {
        set_floats(got, "base/W#absmax", p.absmax, OUT * RG_D / BLOCK);
    }
    eval_run(want, PHASE_MICRO, false);
    eval_run(got, PHASE_MICRO, false);
    int64_t n;
    const double *a = eval_state(want, "flat", &n), *b = eval_state(got, "flat", &n);
    /* The host multiplies in f32 (2 roundings, 2^-23 each); a value of `flat` sums 7 x 12 x 8
     * products of numbers below 1.3. */
    for (int64_t i = 0; i < n; i++) assert_true(fabs(a[i] - b[i]) < 7 * 12 * 8 * 1.3 * 0x1p-22);
    eval_free(want);
    eval_free(got);
    rg_free(&r);
}

static void formats(void **state) {
    (void)state;
    static const char *const names[] = {"nf4", "fp4", "int8"};
    for (int i = 0; i < 3; i++)
        for (int nested = 0; nested < 2; nested++) {
            check(names[i], nested, false);
            check(names[i], nested, true);
        }
}

static void nothing_to_do(void **state) {
    (void)state;
    RandomGraph r = rg_leaves();
    model(&r);
    Unit u = rg_unit(&r);
    WeightInfo info[] = {{.rank = 2, .rows = OUT, .cols = RG_D},
                         {.rank = 2, .rows = OUT, .cols = RG_D}};
    u.weights = info;
    u.nweights = 2;
    Pass pass = {0};
    assert_int_equal(pass_quant(&pass, &u), 0);
    assert_ptr_equal(u.g, r.g);
    rg_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(formats), cmocka_unit_test(nothing_to_do)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
