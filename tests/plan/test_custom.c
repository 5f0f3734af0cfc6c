/* Custom ops as steps of a plan: every lower rule, on the CPU device, against the evaluator in
 * rounding mode.
 *
 * Extents are smaller than the bounds the plan was made for.  Tolerance: f32 sums of n terms err by
 * at most n 2^-24 of the sum of magnitudes; n is at most 2 * (64 + 64) here, magnitudes are below
 * 8: 2e-4 absolute. In bf16 each rounded result adds one unit of its last place, 2^-7 of itself at
 * most. */
#include "compiler/kern.h"
#include "runtime/quantize.h"
#include "run.h"

#include <math.h>

enum { T = 40, R = 37, D = 24, V = 83, H = 4, HK = 2, S = 6, P = 9, MOST = 32 };

typedef struct Case {
    Unit u;
    Target target;
    int64_t extent[NEXTENT]; /* actual */
    const char *leaf[MOST];
    const double *value[MOST];
    int64_t count[MOST];
    int nleaf, nout;
} Case;

static uint32_t state;
static double draw(void) {
    state = state * 1664525 + 1013904223;
    return (double)(state >> 8) / (1 << 24) * 2 - 1;
}

static Case *case_new(Arena *arena) {
    Case *c = NEW(arena, Case);
    c->target = *target_by_name("cpu");
    c->target.chunk_rows = 16; /* R rows are three chunks, the last not full */
    c->u =
        (Unit){.kind = UNIT_EVAL, .target = &c->target, .arena = arena, .diags = diags_new(arena)};
    c->u.g = graph_new(arena, c->u.diags);
    c->u.g->intern = true;
    for (int e = 0; e < NEXTENT; e++) c->u.bound[e] = c->extent[e] = 1;
    c->u.bound[X_T] = 64;
    c->u.bound[X_R] = 40;
    c->u.bound[X_P] = 16;
    c->extent[X_T] = T;
    c->extent[X_R] = R;
    c->extent[X_P] = P;
    state = 1;
    return c;
}

/* An input with these values; NULL: random ones, exact in bf16. */
static NodeId input(Case *c, const char *name, const Type *type, const double *values) {
    int64_t n = dim_eval(type_count(type), c->extent);
    double *v = NEW_ARRAY(c->u.arena, double, n);
    for (int64_t i = 0; i < n; i++)
        v[i] = values ? values[i] : (double)bf16_to_float(float_to_bf16((float)draw()));
    c->leaf[c->nleaf] = intern(name);
    c->value[c->nleaf] = v;
    c->count[c->nleaf++] = n;
    return g_input(c->u.g, name, PHASE_MICRO, type);
}

static void output(Case *c, NodeId value) {
    const char *name = intern_printf("out%d", c->nout++);
    NodeId out = g_state(c->u.g, name, PHASE_MICRO, ROLE_OUTPUT, node(c->u.g, value)->type);
    g_effect(c->u.g, OP_assign, out, value);
}

static const Type *vec(DType t, Extent e) {
    return type_vec(t, dim_extent(e));
}
static const Type *mat(DType t, Extent e, int64_t cols) {
    return type_mat(t, dim_extent(e), dim_const(cols));
}
static const Type *heads(DType t, int64_t h) {
    return type_of(t, 3, (Dim[]){dim_extent(X_T), dim_const(h), dim_const(S)});
}

/* ---- both ways, compared --------------------------------------------------------------------- */

static void device_write(Exec *exec, const Plan *plan, const Case *c, int i) {
    Err err = {0};
    int buf = plan_buf(plan, c->leaf[i]);
    if (buf < 0) return;
    DType t = plan->bufs[buf].dtype;
    size_t bytes = (size_t)dtype_bytes(t) * (size_t)c->count[i];
    char *raw = malloc(bytes + 1);
    for (int64_t k = 0; k < c->count[i]; k++) {
        double x = c->value[i][k];
        float f = (float)x;
        int32_t n = (int32_t)x;
        uint16_t h = float_to_bf16(f);
        uint8_t b = (uint8_t)n;
        const void *from = t == DT_f32   ? (void *)&f
                           : t == DT_i32 ? (void *)&n
                           : t == DT_u8  ? (void *)&b
                                         : &h;
        memcpy(raw + k * dtype_bytes(t), from, (size_t)dtype_bytes(t));
    }
    must(exec_write(exec, c->leaf[i], raw, bytes, &err), &err);
    free(raw);
}

static void compare(Exec *exec, const Plan *plan, Eval *e, const char *name, double tolerance) {
    Err err = {0};
    int64_t n;
    const double *want = eval_state(e, name, &n);
    DType t = plan->bufs[plan_buf(plan, name)].dtype;
    char *raw = malloc((size_t)dtype_bytes(t) * (size_t)n + 1);
    must(exec_read(exec, name, raw, (size_t)dtype_bytes(t) * (size_t)n, &err), &err);
    for (int64_t i = 0; i < n; i++) {
        double got = t == DT_f32   ? (double)((float *)(void *)raw)[i]
                     : t == DT_i32 ? ((int32_t *)(void *)raw)[i]
                                   : (double)bf16_to_float(((uint16_t *)(void *)raw)[i]);
        double most = tolerance + (t == DT_bf16 ? fabs(want[i]) / 128 : 0);
        if (!(fabs(got - want[i]) <= most))
            fail_msg("%s[%lld]: %.9g, should be %.9g", name, (long long)i, got, want[i]);
    }
    free(raw);
}

static void check(Case *c, double tolerance) {
    Pass pass = {0};
    assert_int_equal(diags_errors(c->u.diags), 0);
    assert_true(pass_gemm(&pass, &c->u) >= 0 && pass_fuse(&pass, &c->u) >= 0);
    Plan *plan = plan_groups(&c->u, false);
    Eval *e = eval_new(c->u.g, EVAL_ROUNDING, c->extent);
    Running r = run_open(plan);
    for (int i = 0; i < c->nleaf; i++) {
        eval_set(e, c->leaf[i], c->value[i], c->count[i]);
        device_write(r.exec, plan, c, i);
    }
    eval_run(e, PHASE_MICRO, false);
    for (int twice = 0; twice < 2; twice++) run_program(&r, "eval", c->extent);
    if (plan_buf(plan, "cache") >= 0) compare(r.exec, plan, e, "cache", 0);
    for (int i = 0; i < c->nout; i++)
        compare(r.exec, plan, e, intern_printf("out%d", i), tolerance);
    run_close(&r);
    eval_free(e);
    plan_free(plan);
}

/* ---- gather, scatter, sort ------------------------------------------------------------------- */

static void take_and_put(void **unused) {
    Arena *arena = arena_new();
    for (int t = DT_f32; t <= DT_bf16; t++) {
        Case *c = case_new(arena);
        Graph *g = c->u.g;
        double index[R];
        for (int i = 0; i < R; i++) index[i] = i % 5 == 3 ? -1 : i * 11 % T;
        NodeId x = input(c, "x", mat((DType)t, X_T, D), NULL);
        NodeId v = input(c, "v", vec(DT_f32, X_T), NULL);
        NodeId i = input(c, "i", vec(DT_i32, X_R), index);
        NodeId rows = g_op(g, OP_take, x, i, 0);
        output(c, rows);
        output(c, g_op(g, OP_take, v, i, 0));
        Attr back = {.dim = dim_extent(X_T)};
        NodeId wide = g_cast(g, rows, DT_f32);
        output(c, graph_add(g, OP_put, (NodeId[]){wide, i}, 2, &back, NULL, 0, NULL));
        check(c, 1e-5);
    }
    arena_free(arena);
}

static void sorted(void **unused) {
    Arena *arena = arena_new();
    Case *c = case_new(arena);
    double values[P] = {3, -1, 3, 7, -8, 0, -1, 2, 3};
    NodeId s = g_op(c->u.g, OP_sort, input(c, "x", vec(DT_f32, X_P), values), 0, 0);
    output(c, s);
    NodeId y = input(c, "y", vec(DT_f32, X_P), NULL);
    output(c, g_op(c->u.g, OP_take, y, g_part(c->u.g, s, 1), 0));
    check(c, 0);
    arena_free(arena);
}

/* Rows into a cache that holds others; who reads the result reads all of them, in its place. */
static void appended(void **unused) {
    enum { HELD = 61 }; /* a prime: i * 7 never names a row twice */
    Arena *arena = arena_new();
    for (int t = DT_f32; t <= DT_bf16; t++) {
        Case *c = case_new(arena);
        Graph *g = c->u.g;
        c->u.bound[X_H] = 64;
        c->extent[X_H] = HELD;
        double index[T], back[R];
        for (int i = 0; i < T; i++) index[i] = i % 6 == 1 ? -1 : i * 7 % HELD;
        for (int i = 0; i < R; i++) back[i] = i * 5 % HELD;
        const Type *type =
            type_of((DType)t, 3, (Dim[]){dim_extent(X_H), dim_const(HK), dim_const(S)});
        input(c, "cache", type, NULL); /* its values; the state is the leaf */
        NodeId cache = g_state(g, "cache", PHASE_MICRO, ROLE_CACHE, type);
        NodeId x = input(c, "x", heads((DType)t, HK), NULL);
        NodeId y = g_op(g, OP_append, cache, x, input(c, "at", vec(DT_i32, X_T), index));
        output(c, g_op(g, OP_take, y, input(c, "back", vec(DT_i32, X_R), back), 0));
        NodeId s = input(c, "segs", mat(DT_i32, X_G, 6), (double[]){0, T, 0, 0, 10, T + 5});
        NodeId q = input(c, "q", heads((DType)t, H), NULL);
        Attr attr = {.num = 0.4};
        output(c, graph_add(g, OP_attend, (NodeId[]){q, y, y, s}, 4, &attr, NULL, 0, NULL));
        check(c, 2e-4);
    }
    arena_free(arena);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* A pair with a shared prompt: prompt 0..10, answers 10..17 and 17..30; then one sequence of its
 * own. */
static const double segs[4][6] = {
    {0, 10, 0, 0, 0, 10}, {10, 7, 0, 10, 10, 7}, {17, 13, 0, 10, 17, 13}, {30, 10, 30, 0, 30, 10}};
static const double ranges[4][4] = {{0, 10, 0, 3}, {10, 7, 1, 1}, {17, 13, 2, 1}, {30, 10, 3, 1}};

static void attend_case(DType t, int64_t window) {
    Arena *arena = arena_new();
    Case *c = case_new(arena);
    Graph *g = c->u.g;
    c->u.bound[X_G] = c->u.bound[X_K] = 6;
    c->extent[X_G] = c->extent[X_K] = 4;
    NodeId q = input(c, "q", heads(t, H), NULL), k = input(c, "k", heads(t, HK), NULL);
    NodeId v = input(c, "v", heads(t, HK), NULL);
    NodeId s = input(c, "segs", mat(DT_i32, X_G, 6), &segs[0][0]);
    NodeId r = input(c, "ranges", mat(DT_i32, X_K, 4), &ranges[0][0]);
    Attr attr = {.num = 0.4, .i0 = window};
    NodeId y = graph_add(g, OP_attend, (NodeId[]){q, k, v, s}, 4, &attr, NULL, 0, NULL);
    NodeId lse = g_part(g, y, 1);
    output(c, y);
    output(c, lse);
    NodeId dout = g_cast(g, input(c, "dout", heads(DT_f32, H), NULL), t);
    NodeId in[] = {q, k, v, y, lse, dout, s, r};
    NodeId back = graph_add(g, OP_attend_bwd, in, 8, &attr, NULL, 0, NULL);
    output(c, back);
    output(c, g_part(g, back, 1));
    output(c, g_part(g, back, 2));
    check(c, 2e-4);
    arena_free(arena);
}

static void attention(void **unused) {
    attend_case(DT_f32, 0);
    attend_case(DT_f32, 5);
    attend_case(DT_bf16, 0);
}

/* ---- the head -------------------------------------------------------------------------------- */

static void head_case(DType t, bool parts, bool dw, bool back) {
    Arena *arena = arena_new();
    Case *c = case_new(arena);
    Graph *g = c->u.g;
    double target[R];
    for (int i = 0; i < R; i++) target[i] = i % 7 == 2 ? -1 : i * 31 % V;
    NodeId h = input(c, "h", mat(t, X_R, D), NULL);
    NodeId w = input(c, "w", type_mat(t, dim_const(V), dim_const(D)), NULL);
    NodeId y = input(c, "target", vec(DT_i32, X_R), target);
    Attr attr = {.num = 0.5};
    NodeId logp = graph_add(g, OP_linear_logprob, (NodeId[]){h, w, y}, 3, &attr, NULL, 0, NULL);
    NodeId lse = g_part(g, logp, 1);
    output(c, logp);
    for (int k = 2; parts && k <= 5; k++) output(c, g_part(g, logp, k));
    if (back) {
        NodeId in[] = {h, w, y, lse, input(c, "c", vec(DT_f32, X_R), NULL)};
        NodeId dh = graph_add(g, OP_linear_logprob_bwd, in, 5, &attr, NULL, 0, NULL);
        output(c, dh);
        if (dw) output(c, g_part(g, dh, 1));
    } else { /* in the forward's sweep */
        output(c, g_part(g, logp, 6));
        if (dw) output(c, lse);
    }
    /* bf16: d(logits), at most |c| times the scale in each of R rows, is rounded on the device
     * only */
    check(c, t == DT_f32 ? 2e-4 : R * 0.5 / 512);
    arena_free(arena);
}

static void head(void **unused) {
    head_case(DT_f32, true, true, true);
    head_case(DT_f32, false, false, true);
    head_case(DT_bf16, false, true, true);
    head_case(DT_f32, true, true, false);
    head_case(DT_f32, false, false, false);
    head_case(DT_bf16, false, false, false);
}

/* ---- quantized weights ----------------------------------------------------------------------- */

static void quantized(void **unused) {
    enum { ROWS = 6, COLS = 50, N = ROWS * COLS, BLOCK = 64, BLOCKS = (N + BLOCK - 1) / BLOCK };
    for (QuantFormat format = 0; format < NQUANT; format++) {
        Arena *arena = arena_new();
        Case *c = case_new(arena);
        float x[N], absmax[BLOCKS];
        uint8_t codes[N];
        double wide[N], most[BLOCKS];
        for (int i = 0; i < N; i++) x[i] = (float)draw();
        quant_blocks(format, x, N, BLOCK, codes, absmax);
        int bytes = (int)quant_part_count((QuantPart){format, QUANT_CODES}, N, BLOCK, false);
        for (int i = 0; i < bytes; i++) wide[i] = codes[i];
        for (int i = 0; i < BLOCKS; i++) most[i] = (double)absmax[i];
        NodeId q = input(c, "codes", type_vec(DT_u8, dim_const(bytes)), wide);
        NodeId a = input(c, "absmax", type_vec(DT_f32, dim_const(BLOCKS)), most);
        Attr attr = {.name = intern(quant_format_names[format]), .i0 = BLOCK};
        const Type *type = type_mat(DT_f32, dim_const(ROWS), dim_const(COLS));
        output(c, graph_add(c->u.g, OP_dequant, (NodeId[]){q, a}, 2, &attr, type, 0, NULL));
        check(c, 1e-6);
        arena_free(arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(take_and_put), cmocka_unit_test(sorted),    cmocka_unit_test(attention),
        cmocka_unit_test(head),         cmocka_unit_test(quantized), cmocka_unit_test(appended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
