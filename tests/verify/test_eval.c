/* test_eval.c: the evaluator itself, against plain formulas written out here.
 *
 * Gradients are checked by tests/grad; here: attention over segments with prefixes and windows
 * against a masked softmax, the head's statistics, dequantization against the runtime's, rounding,
 * phases, effects.
 */
#include "compiler/dpoc.h"
#include "runtime/quantize.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static double sample(int64_t i) {
    return sin(0.7 * (double)i + 0.3 * sin(2.1 * (double)i));
}

static Graph *fresh(Arena **arena) {
    *arena = arena_new();
    return graph_new(*arena, diags_new(*arena));
}

static NodeId input(Graph *g, const char *name, DType t, int rank, const int64_t *size) {
    Dim dim[MAX_RANK];
    for (int i = 0; i < rank; i++) dim[i] = dim_const(size[i]);
    return g_input(g, name, PHASE_MICRO, type_of(t, rank, dim));
}

#define SIZES(...)                                                                                 \
    (const int64_t[]) {                                                                            \
        __VA_ARGS__                                                                                \
    }

static Eval *run(const Graph *g, EvalMode mode, const char *const *names, double *const *values,
                 const int64_t *counts, int n) {
    Eval *e = eval_new(g, mode, (int64_t[NEXTENT]){0});
    for (int i = 0; i < n; i++) eval_set(e, names[i], values[i], counts[i]);
    eval_run(e, PHASE_MICRO, false);
    return e;
}

/* ---- attention ------------------------------------------------------------------------------- */

enum { Q = 9, K = 11, H = 4, HK = 2, S = 3 };

/* Position and visibility as the segments' definition says, for every (query, key). */
static bool sees(const double *seg, int q, int k, int window) {
    int i = q - (int)seg[0];
    if (i < 0 || i >= seg[1]) return false;
    int here = (int)(seg[3] + seg[5] - seg[1]) + i, there = -1; /* positions of query and key */
    if (k >= seg[2] && k < seg[2] + seg[3]) there = k - (int)seg[2];
    if (k >= seg[4] && k < seg[4] + seg[5]) there = (int)seg[3] + k - (int)seg[4];
    return there >= 0 && there <= here && (window == 0 || here - there < window);
}

static void check_attention(int window, double scale) {
    /* a prompt, an answer that sees it, a block of queries at the end of a longer run of keys */
    static double segs[3 * 6] = {0, 4, 0, 0, 0, 4, 4, 3, 0, 4, 4, 3, 7, 2, 0, 0, 7, 4};
    Arena *arena;
    Graph *g = fresh(&arena);
    static double q[Q * H * S], k[K * HK * S], v[K * HK * S];
    for (int i = 0; i < Q * H * S; i++) q[i] = sample(i);
    for (int i = 0; i < K * HK * S; i++) k[i] = sample(i + 1000), v[i] = sample(i + 2000);
    NodeId in[4] = {
        input(g, "q", DT_f32, 3, SIZES(Q, H, S)), input(g, "k", DT_f32, 3, SIZES(K, HK, S)),
        input(g, "v", DT_f32, 3, SIZES(K, HK, S)), input(g, "segs", DT_i32, 2, SIZES(3, 6))};
    NodeId y = graph_add(g, OP_attend, in, 4, &(Attr){.num = scale, .i0 = window}, NULL, 0, NULL);
    NodeId lse = g_part(g, y, 1);
    Eval *e = run(g, EVAL_DOUBLE, (const char *[]){"q", "k", "v", "segs"},
                  (double *[]){q, k, v, segs}, SIZES(Q * H * S, K * HK * S, K * HK * S, 18), 4);
    for (int row = 0; row < Q; row++)
        for (int h = 0; h < H; h++) {
            double sum = 0, out[S] = {0};
            for (int j = 0; j < K; j++) {
                bool seen = false;
                for (int s = 0; s < 3; s++) seen |= sees(segs + 6 * s, row, j, window);
                if (!seen) continue;
                double dot = 0;
                int kv = h / (H / HK);
                for (int c = 0; c < S; c++)
                    dot += q[(row * H + h) * S + c] * k[(j * HK + kv) * S + c];
                sum += exp(scale * dot);
                for (int c = 0; c < S; c++) out[c] += exp(scale * dot) * v[(j * HK + kv) * S + c];
            }
            assert_true(fabs(eval_get(e, lse, NULL)[row * H + h] - log(sum)) < 1e-13);
            for (int c = 0; c < S; c++)
                assert_true(fabs(eval_get(e, y, NULL)[(row * H + h) * S + c] - out[c] / sum) <
                            1e-13);
        }
    eval_free(e);
    arena_free(arena);
}

static void attention(void **state) {
    check_attention(0, 0.57);
    check_attention(1, 1);
    check_attention(2, 0.57);
    check_attention(5, 0.57);
    check_attention(100, 0.1);
}

/* ---- the head -------------------------------------------------------------------------------- */

static void head(void **state) {
    enum { R = 5, V = 7, D = 4 };
    Arena *arena;
    Graph *g = fresh(&arena);
    static double h[R * D], w[V * D], target[R] = {3, -1, 0, 6, 3};
    for (int i = 0; i < R * D; i++) h[i] = 2 * sample(i);
    for (int i = 0; i < V * D; i++) w[i] = 2 * sample(i + 500);
    memcpy(w + 5 * D, w + 3 * D,
           D * sizeof *w); /* words 3 and 5 tie: the lower one is the argmax */
    memcpy(h, w + 3 * D, D * sizeof *h);
    NodeId in[3] = {input(g, "h", DT_f32, 2, SIZES(R, D)), input(g, "w", DT_f32, 2, SIZES(V, D)),
                    input(g, "target", DT_i32, 1, SIZES(R))};
    NodeId y = graph_add(g, OP_linear_logprob, in, 3, &(Attr){.num = 1.25}, NULL, 0, NULL);
    NodeId part[6] = {y};
    for (int k = 1; k < 6; k++) part[k] = g_part(g, y, k);
    Eval *e = run(g, EVAL_DOUBLE, (const char *[]){"h", "w", "target"}, (double *[]){h, w, target},
                  SIZES(R * D, V * D, R), 3);
    for (int r = 0; r < R; r++) {
        double z[V], sum = 0, mean = 0, entropy = 0, p2 = 0;
        int best = 0;
        for (int i = 0; i < V; i++) {
            z[i] = 0;
            for (int c = 0; c < D; c++) z[i] += 1.25 * h[r * D + c] * w[i * D + c];
            sum += exp(z[i]);
            mean += z[i] / V;
            if (z[i] > z[best]) best = i;
        }
        for (int i = 0; i < V; i++) {
            double p = exp(z[i]) / sum;
            entropy -= p * log(p);
            p2 += p * p;
        }
        int t = (int)target[r];
        double want[6] = {t < 0 ? 0 : z[t] - log(sum), log(sum), mean, entropy, best == t, log(p2)};
        for (int k = 0; k < 6; k++)
            if (fabs(eval_get(e, part[k], NULL)[r] - want[k]) > 1e-12)
                fail_msg("row %d, result %d: %.15g, want %.15g", r, k,
                         eval_get(e, part[k], NULL)[r], want[k]);
    }
    assert_true(eval_get(e, part[4], NULL)[0] == 1);
    eval_free(e);
    arena_free(arena);
}

/* ---- quantized weights ----------------------------------------------------------------------- */

enum { WEIGHTS = 1090, BLOCK = 32, BLOCKS = (WEIGHTS + BLOCK - 1) / BLOCK };

static void check_format(const char *name, bool nested) {
    QuantFormat format;
    assert_true(quant_format(name, &format));
    static float x[WEIGHTS], absmax[BLOCKS], back[WEIGHTS], absmax2[1];
    static uint8_t codes[WEIGHTS], scales[BLOCKS];
    for (int i = 0; i < WEIGHTS; i++) x[i] = (float)(sample(i) * (1 + i / 300));
    quant_blocks(format, x, WEIGHTS, BLOCK, codes, absmax);
    float offset = 0.75f;
    if (nested) {
        quant_nested(absmax, BLOCKS, offset, scales, absmax2);
        dequant_nested(scales, absmax2, offset, quant_map(true), BLOCKS, absmax);
    }
    dequant_blocks(format, codes, absmax, 0, WEIGHTS, BLOCK, back);
    int64_t bytes = quant_part_count((QuantPart){format, QUANT_CODES}, WEIGHTS, BLOCK, nested);
    static double d[5][WEIGHTS];
    for (int i = 0; i < bytes; i++) d[0][i] = codes[i];
    for (int i = 0; i < BLOCKS; i++) d[1][i] = nested ? (double)scales[i] : (double)absmax[i];
    d[2][0] = (double)absmax2[0], d[3][0] = (double)offset;
    for (int i = 0; i < 256; i++) d[4][i] = (double)quant_map(true)[i];
    Arena *arena;
    Graph *g = fresh(&arena);
    NodeId in[5] = {input(g, "0", DT_u8, 1, SIZES(bytes)),
                    input(g, "1", nested ? DT_u8 : DT_f32, 1, SIZES(BLOCKS)),
                    input(g, "2", DT_f32, 1, SIZES(1)), input(g, "3", DT_f32, 1, SIZES(1)),
                    input(g, "4", DT_f32, 1, SIZES(256))};
    Attr attr = {.name = intern(name), .i0 = BLOCK, .i1 = nested};
    const Type *type = type_mat(DT_f32, dim_const(WEIGHTS / 10), dim_const(10));
    NodeId y = graph_add(g, OP_dequant, in, nested ? 5 : 2, &attr, type, 0, NULL);
    Eval *e = run(g, EVAL_ROUNDING, (const char *[]){"0", "1", "2", "3", "4"},
                  (double *[]){d[0], d[1], d[2], d[3], d[4]}, SIZES(bytes, BLOCKS, 1, 1, 256), 5);
    /* The runtime rounds after each of at most three operations of f32. */
    for (int i = 0; i < WEIGHTS; i++) {
        double want = (double)back[i], got = eval_get(e, y, NULL)[i];
        if (fabs(got - want) > 3 * 0x1p-24 * (fabs(want) + (double)absmax[i / BLOCK]))
            fail_msg("%s[%d]: %.9g, want %.9g", name, i, got, want);
    }
    eval_free(e);
    arena_free(arena);
}

static void quantized(void **state) {
    for (int f = 0; f < NQUANT; f++)
        for (int nested = 0; nested < 2; nested++) check_format(quant_format_names[f], nested);
}

/* ---- rounding, phases, effects --------------------------------------------------------------- */

static void rounding(void **state) {
    Arena *arena;
    Graph *g = fresh(&arena);
    NodeId x = input(g, "x", DT_f32, 1, SIZES(3));
    NodeId y = g_op(g, OP_add, x, g_const(g, 1, g->node[x].type), 0), half = g_cast(g, y, DT_bf16);
    static double values[3] = {0x1p-24, 0x1.8p-24, 0x1.01p-7};
    for (int mode = 0; mode < 2; mode++) {
        Eval *e = run(g, (EvalMode)mode, (const char *[]){"x"}, (double *[]){values}, SIZES(3), 1);
        static const double exact[3] = {1 + 0x1p-24, 1 + 0x1.8p-24, 1 + 0x1.01p-7};
        static const double f32[3] = {1, 1 + 0x1p-23, 1 + 0x1.01p-7}, bf16[3] = {1, 1, 1 + 0x1p-7};
        for (int i = 0; i < 3; i++) {
            assert_true(eval_get(e, y, NULL)[i] == (mode == EVAL_ROUNDING ? f32 : exact)[i]);
            assert_true(eval_get(e, half, NULL)[i] == (mode == EVAL_ROUNDING ? bf16 : exact)[i]);
        }
        eval_free(e);
    }
    arena_free(arena);
}

/* s is read before it is written; a slot of it accumulates; a later phase sees the sum. */
static void phases(void **state) {
    Arena *arena;
    Graph *g = fresh(&arena);
    const Type *eight = type_vec(DT_f32, dim_const(8)),
               *two = type_mat(DT_f32, dim_const(1), dim_const(2));
    NodeId in_step = g_state(g, "s", PHASE_STEP, ROLE_GRAD, eight);
    NodeId in_micro = g_state(g, "s", PHASE_MICRO, ROLE_GRAD, eight);
    NodeId in_update = g_state(g, "s", PHASE_UPDATE, ROLE_GRAD, eight);
    NodeId out = g_state(g, "out", PHASE_UPDATE, ROLE_OUTPUT, eight);
    g_effect(g, OP_assign, in_step, g_const(g, 10, eight));
    g_effect(g, OP_accumulate, g_slot(g, in_micro, 3, two), g_const(g, 2, two));
    NodeId seen = g_op(g, OP_neg, in_micro, 0, 0);
    g_effect(g, OP_assign, out, g_op(g, OP_add, in_update, in_update, 0));
    Eval *e = eval_new(g, EVAL_DOUBLE, (int64_t[NEXTENT]){0});
    eval_run(e, PHASE_MICRO, false);
    assert_true(eval_get(e, seen, NULL)[3] == -10);
    eval_run(e, PHASE_MICRO, true);
    assert_true(eval_get(e, seen, NULL)[3] == -12);
    eval_run(e, PHASE_UPDATE, false);
    static const double want[8] = {20, 20, 20, 28, 28, 20, 20, 20};
    int64_t n;
    assert_memory_equal(eval_state(e, "out", &n), want, sizeof want);
    assert_int_equal(n, 8);
    eval_free(e);
    arena_free(arena);
}

static void gathers(void **state) {
    Arena *arena;
    Graph *g = fresh(&arena);
    static double x[6] = {1, 2, 3, 4, 5, 6}, index[4] = {2, -1, 0, 2};
    NodeId rows = input(g, "x", DT_f32, 2, SIZES(3, 2)), at = input(g, "i", DT_i32, 1, SIZES(4));
    NodeId taken = g_op(g, OP_take, rows, at, 0);
    NodeId in[2] = {taken, at};
    NodeId put = graph_add(g, OP_put, in, 2, &(Attr){.dim = dim_const(3)}, NULL, 0, NULL);
    NodeId flat = g_reshape(g, rows, type_vec(DT_f32, dim_const(6)));
    NodeId sorted = g_op(g, OP_sort, g_op(g, OP_sin, flat, 0, 0), 0, 0),
           from = g_part(g, sorted, 1);
    Eval *e =
        run(g, EVAL_DOUBLE, (const char *[]){"x", "i"}, (double *[]){x, index}, SIZES(6, 4), 2);
    static const double want[8] = {5, 6, 0, 0, 1, 2, 5, 6}, sums[6] = {1, 2, 0, 0, 10, 12};
    assert_memory_equal(eval_get(e, taken, NULL), want, sizeof want);
    assert_memory_equal(eval_get(e, put, NULL), sums, sizeof sums);
    static const double order[6] = {4, 3, 5, 2, 0, 1}; /* sin of 5 4 6 3 1 2 ascends */
    assert_memory_equal(eval_get(e, from, NULL), order, sizeof order);
    for (int i = 0; i < 6; i++) assert_true(eval_get(e, sorted, NULL)[i] == sin(x[(int)order[i]]));
    eval_free(e);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention), cmocka_unit_test(head),   cmocka_unit_test(quantized),
        cmocka_unit_test(rounding),  cmocka_unit_test(phases), cmocka_unit_test(gathers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
