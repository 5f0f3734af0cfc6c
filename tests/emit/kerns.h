/* kerns.h: Kerns made by hand, as fuse would make them, with data for their arguments.
 * Used by test_kern.c (their meaning on the CPU) and test_nvrtc.c (that CUDA accepts them). */
#ifndef TEST_KERNS_H
#define TEST_KERNS_H

#include "compiler/kern.h"

#define MAX_ARG 10
#define MAX_VAL 64

typedef struct Case { /* one Kern, its arguments' sizes and what they hold */
    const char *name;
    Kern k;
    KVal val[MAX_VAL];
    KArg arg[MAX_ARG];
    int64_t count[MAX_ARG];    /* elements */
    int64_t integers[MAX_ARG]; /* > 0: i32 values in -1 .. integers-1 */
    int64_t rows;
} Case;

static Case *new_case(const char *name, KernShape shape, int64_t rows, int64_t cols) {
    Case *c = calloc(1, sizeof *c);
    if (!c) abort();
    c->name = name;
    c->rows = rows;
    c->k =
        (Kern){.shape = shape, .rows = dim_extent(X_T), .cols = cols, .val = c->val, .arg = c->arg};
    return c;
}

static int push_val(Case *c, KVal v) {
    if (c->k.nval == MAX_VAL) abort();
    c->val[c->k.nval] = v;
    return c->k.nval++;
}

static int new_arg(Case *c, DType t, int64_t count, int64_t integers) {
    if (c->k.narg == MAX_ARG) abort();
    const int i = c->k.narg++;
    c->arg[i] = (KArg){.node = i + 1, .dtype = t, .align = 16};
    c->count[i] = count;
    c->integers[i] = integers;
    return i;
}

static KVal memory(Case *c, KOp kop, int arg, KLevel level) {
    return (KVal){.kop = kop,
                  .a = -1,
                  .b = -1,
                  .c = -1,
                  .level = level,
                  .dtype = c->arg[arg].dtype,
                  .arg = arg,
                  .index = -1,
                  .rowdiv = 1,
                  .ld = level == LEVEL_ELEM ? c->k.cols : 1};
}

static int load_of(Case *c, int arg, KLevel level) {
    return push_val(c, memory(c, KOP_LOAD, arg, level));
}

/* A fresh argument of the level's full size, loaded. */
static int input(Case *c, DType t, KLevel level) {
    const int64_t n[] = {[LEVEL_SCALAR] = 1,
                         [LEVEL_COL] = c->k.cols,
                         [LEVEL_ROW] = c->rows,
                         [LEVEL_ELEM] = c->rows * c->k.cols};
    return load_of(c, new_arg(c, t, n[level], 0), level);
}

static void store_to(Case *c, int arg, int value, KLevel level, bool accumulate) {
    KVal v = memory(c, KOP_STORE, arg, level);
    v.a = value;
    v.accumulate = accumulate;
    c->arg[arg].write = true;
    push_val(c, v);
}

static void output(Case *c, DType t, int value, KLevel level, bool accumulate) {
    const int64_t n[] = {[LEVEL_SCALAR] = 1,
                         [LEVEL_COL] = c->k.cols,
                         [LEVEL_ROW] = c->rows,
                         [LEVEL_ELEM] = c->rows * c->k.cols};
    store_to(c, new_arg(c, t, n[level], 0), value, level, accumulate);
}

static int op3(Case *c, Op op, int a, int b, int d) {
    KVal v = {.kop = KOP_OP, .op = op, .a = a, .b = b, .c = d, .arg = -1, .index = -1, .rowdiv = 1};
    const int in[] = {a, b, d};
    bool seen[LEVEL_ELEM + 1] = {false};
    for (int i = 0; i < 3; i++) {
        if (in[i] < 0) continue;
        seen[c->val[in[i]].level] = true;
        if (c->val[in[i]].level > v.level) v.level = c->val[in[i]].level;
    }
    if (seen[LEVEL_ROW] && seen[LEVEL_COL]) v.level = LEVEL_ELEM;
    if (op == OP_sum_cols || op == OP_max_cols) v.level = LEVEL_ROW;
    if (op == OP_sum_rows) v.level = LEVEL_COL;
    return push_val(c, v);
}
static int op2(Case *c, Op op, int a, int b) {
    return op3(c, op, a, b, -1);
}
static int op1(Case *c, Op op, int a) {
    return op3(c, op, a, -1, -1);
}
static int number(Case *c, double x) {
    return push_val(
        c, (KVal){.kop = KOP_CONST, .a = -1, .b = -1, .c = -1, .num = x, .arg = -1, .index = -1});
}
static int round_to(Case *c, DType t, int a) {
    if (t == DT_f32) return a;
    const int i = op1(c, OP_cast, a);
    c->val[i].dtype = t;
    return i;
}

/* ---- the cases ------------------------------------------------------------------------------- */

/* r = rsqrt(mean(x x) + eps) */
static int norm_factor(Case *c, int x) {
    const int sum = op1(c, OP_sum_cols, op2(c, OP_mul, x, x));
    const int mean = op2(c, OP_mul, sum, number(c, 1.0 / (double)c->k.cols));
    return op1(c, OP_rsqrt, op2(c, OP_add, mean, number(c, 1e-5)));
}

/* The sum of two streams, stored, then normalised: y = x rsqrt(mean(x x) + eps) w */
static Case *case_rmsnorm(DType t, int64_t rows, int64_t cols) {
    Case *c = new_case("rmsnorm", KERN_ROWS, rows, cols);
    const int sum = op2(c, OP_add, input(c, t, LEVEL_ELEM), input(c, t, LEVEL_ELEM));
    const int x = round_to(c, t, sum), w = input(c, t, LEVEL_COL);
    const int y = op2(c, OP_mul, op2(c, OP_mul, x, norm_factor(c, x)), w);
    output(c, t, x, LEVEL_ELEM, false);
    output(c, t, round_to(c, t, y), LEVEL_ELEM, false);
    return c;
}

/* dx = dy w r - x r^3 sum(dy w x) / cols + dres */
static Case *case_rmsnorm_bwd(DType t, int64_t rows, int64_t cols) {
    Case *c = new_case("rmsnorm_bwd", KERN_ROWS, rows, cols);
    const int x = input(c, t, LEVEL_ELEM), w = input(c, t, LEVEL_COL), dy = input(c, t, LEVEL_ELEM);
    const int r = norm_factor(c, x), g = op2(c, OP_mul, dy, w);
    const int dot = op1(c, OP_sum_cols, op2(c, OP_mul, g, x));
    const int r3 = op2(c, OP_mul, r, op2(c, OP_mul, r, r));
    const int k = op2(c, OP_div, op2(c, OP_mul, dot, r3), number(c, (double)cols));
    const int dx = op2(c, OP_sub, op2(c, OP_mul, g, r), op2(c, OP_mul, x, k));
    output(c, t, round_to(c, t, op2(c, OP_add, dx, input(c, t, LEVEL_ELEM))), LEVEL_ELEM, false);
    return c;
}

static Case *case_swiglu(DType t, int64_t rows, int64_t cols) {
    Case *c = new_case("swiglu", KERN_ROWS, rows, cols);
    const int g = input(c, t, LEVEL_ELEM), u = input(c, t, LEVEL_ELEM);
    const int silu = round_to(c, t, op2(c, OP_mul, g, op1(c, OP_sigmoid, g)));
    output(c, t, round_to(c, t, op2(c, OP_mul, silu, u)), LEVEL_ELEM, false);
    return c;
}

static Case *case_swiglu_bwd(DType t, int64_t rows, int64_t cols) {
    Case *c = new_case("swiglu_bwd", KERN_ROWS, rows, cols);
    const int g = input(c, t, LEVEL_ELEM), u = input(c, t, LEVEL_ELEM), d = input(c, t, LEVEL_ELEM);
    const int s = op1(c, OP_sigmoid, g), one = number(c, 1);
    const int slope = op2(c, OP_mul, g, op2(c, OP_sub, one, s));
    const int ds = op2(c, OP_mul, s, op2(c, OP_add, one, slope));
    output(c, t, round_to(c, t, op2(c, OP_mul, op2(c, OP_mul, d, u), ds)), LEVEL_ELEM, false);
    output(c, t, round_to(c, t, op2(c, OP_mul, d, op2(c, OP_mul, g, s))), LEVEL_ELEM, false);
    return c;
}

/* Three passes; the exponentials are kept between the second and the third. */
static Case *case_softmax(int64_t rows, int64_t cols) {
    Case *c = new_case("softmax", KERN_ROWS, rows, cols);
    const int x = input(c, DT_f32, LEVEL_ELEM), m = op1(c, OP_max_cols, x);
    const int e = op1(c, OP_exp, op2(c, OP_sub, x, m)), sum = op1(c, OP_sum_cols, e);
    output(c, DT_f32, op2(c, OP_div, e, sum), LEVEL_ELEM, false);
    output(c, DT_f32, op2(c, OP_add, m, op1(c, OP_log, sum)), LEVEL_ROW, false);
    return c;
}

static Case *case_adamw(int64_t rows, int64_t cols) {
    Case *c = new_case("adamw", KERN_ROWS, rows, cols);
    int in[4], s[5];
    for (int i = 0; i < 4; i++) in[i] = input(c, DT_f32, LEVEL_ELEM);
    for (int i = 0; i < 5; i++) s[i] = input(c, DT_f32, LEVEL_SCALAR); /* lr decay b1 b2 eps */
    const int g = in[3], one = number(c, 1);
    const int m1 = op2(c, OP_sub, one, s[2]), v1 = op2(c, OP_sub, one, s[3]);
    const int m = op2(c, OP_add, op2(c, OP_mul, s[2], in[1]), op2(c, OP_mul, m1, g));
    const int v = op2(c, OP_add, op2(c, OP_mul, s[3], op1(c, OP_abs, in[2])),
                      op2(c, OP_mul, v1, op2(c, OP_mul, g, g)));
    const int root = op2(c, OP_add, op1(c, OP_sqrt, op1(c, OP_abs, v)), op1(c, OP_abs, s[4]));
    const int step = op2(c, OP_div, op2(c, OP_mul, s[0], m), root);
    store_to(c, 0, op2(c, OP_sub, op2(c, OP_mul, in[0], s[1]), step), LEVEL_ELEM, false);
    store_to(c, 1, m, LEVEL_ELEM, false);
    store_to(c, 2, v, LEVEL_ELEM, false);
    return c;
}

/* dw += sum over rows of dy x r, r per row */
static Case *case_sum_rows(DType t, int64_t rows, int64_t cols) {
    Case *c = new_case("sum_rows", KERN_SUM_ROWS, rows, cols);
    const int x = input(c, t, LEVEL_ELEM), dy = input(c, t, LEVEL_ELEM),
              r = input(c, DT_f32, LEVEL_ROW);
    const int r2 = op1(c, OP_exp, op2(c, OP_mul, r, number(c, 0.1)));
    const int sum = op1(c, OP_sum_rows, op2(c, OP_mul, op2(c, OP_mul, dy, x), r2));
    output(c, DT_f32, op2(c, OP_mul, sum, number(c, 0.5)), LEVEL_COL, true);
    return c;
}

/* y[r] = x[index[r]] - half of another row, zeros for -1 */
static Case *case_take(int64_t rows, int64_t cols) {
    Case *c = new_case("take", KERN_ROWS, rows, cols);
    const int x = new_arg(c, DT_bf16, 50 * cols, 0), index = new_arg(c, DT_i32, rows, 50);
    KVal v = memory(c, KOP_LOAD, x, LEVEL_ELEM);
    v.index = index;
    const int taken = push_val(c, v);
    const int other = op2(c, OP_mul, input(c, DT_f32, LEVEL_ELEM), number(c, 0.5));
    output(c, DT_f32, op2(c, OP_sub, taken, other), LEVEL_ELEM, false);
    return c;
}

/* Rotary embedding: x cos + rotate_half(x) sin over [tokens * heads, head_dim]. */
static Case *case_rope(DType t, int64_t tokens, int64_t heads, int64_t head_dim) {
    Case *c = new_case("rope", KERN_ROWS, tokens * heads, head_dim);
    const int x = input(c, t, LEVEL_ELEM);
    KVal half = memory(c, KOP_LOAD, 0, LEVEL_ELEM);
    half.half = true;
    const int turned = push_val(c, half);
    int table[2];
    for (int i = 0; i < 2; i++) {
        KVal v = memory(c, KOP_LOAD, new_arg(c, DT_f32, tokens * head_dim, 0), LEVEL_ELEM);
        v.rowdiv = heads;
        table[i] = push_val(c, v);
    }
    const int y = op2(c, OP_add, op2(c, OP_mul, x, table[0]), op2(c, OP_mul, turned, table[1]));
    output(c, t, round_to(c, t, y), LEVEL_ELEM, false);
    return c;
}

/* cos and sin of position times frequency */
static Case *case_angles(int64_t rows, int64_t cols) {
    Case *c = new_case("angles", KERN_ROWS, rows, cols);
    const int pos = load_of(c, new_arg(c, DT_i32, rows, 60), LEVEL_ROW);
    const int angle = op2(c, OP_mul, pos, input(c, DT_f32, LEVEL_COL));
    output(c, DT_f32, op1(c, OP_cos, angle), LEVEL_ELEM, false);
    output(c, DT_f32, op1(c, OP_sin, angle), LEVEL_ELEM, false);
    return c;
}

/* One value per pair: the DPO loss, gathered log-probabilities, and a strided column written. */
static Case *case_pairs(int64_t rows) {
    Case *c = new_case("pairs", KERN_ROWS, rows, 1);
    int logp[4];
    for (int i = 0; i < 4; i++) {
        KVal v = memory(c, KOP_LOAD, new_arg(c, DT_f32, 2 * rows, 0), LEVEL_ROW);
        if (i < 2) v.index = new_arg(c, DT_i32, rows, 2 * rows);
        if (i == 2) v.ld = 2;
        if (i == 3) v.rowdiv = 2;
        logp[i] = push_val(c, v);
    }
    const int beta = input(c, DT_f32, LEVEL_SCALAR);
    const int margin =
        op2(c, OP_sub, op2(c, OP_sub, logp[0], logp[1]), op2(c, OP_sub, logp[2], logp[3]));
    const int loss = op1(c, OP_neg, op1(c, OP_log_sigmoid, op2(c, OP_mul, beta, margin)));
    output(c, DT_f32, loss, LEVEL_ROW, false);
    const int y = new_arg(c, DT_f32, 3 * rows, 0);
    store_to(c, y, op2(c, OP_lt, number(c, 0), margin), LEVEL_ROW, false);
    c->val[c->k.nval - 1].ld = 3;
    return c;
}

/* Dropout over heads: rows of keys[tokens], a row of the random numbers in `heads` pieces. */
static Case *case_dropout(int64_t tokens, int64_t heads, int64_t cols) {
    Case *c = new_case("dropout", KERN_ROWS, tokens * heads, cols);
    KVal keys = memory(c, KOP_LOAD, new_arg(c, DT_i32, tokens * 2, 1000), LEVEL_ROW);
    keys.ld = 2;
    keys.rowdiv = heads;
    const int key = push_val(c, keys), seed = load_of(c, new_arg(c, DT_i32, 2, 1000), LEVEL_SCALAR);
    const int u = op2(c, OP_uniform, key, seed);
    c->val[u].level = LEVEL_ELEM;
    c->val[u].i0 = 3;
    c->val[u].i1 = heads * cols;
    const int keep = op2(c, OP_le, number(c, 0.25), u), x = input(c, DT_f32, LEVEL_ELEM);
    const int y = op3(c, OP_select, keep, op2(c, OP_mul, x, number(c, 4.0 / 3)), number(c, 0));
    output(c, DT_f32, y, LEVEL_ELEM, false);
    return c;
}

/* A single row: a norm and a scalar made of it, with a scalar operand. */
static Case *case_norm(int64_t cols) {
    Case *c = new_case("norm", KERN_ROWS, 1, cols);
    c->k.rows = dim_const(1);
    const int x = input(c, DT_f32, LEVEL_ELEM), clip = input(c, DT_f32, LEVEL_SCALAR);
    const int norm = op1(c, OP_sqrt, op1(c, OP_sum_cols, op2(c, OP_mul, x, x)));
    output(c, DT_f32, norm, LEVEL_ROW, false);
    const int factor = op2(c, OP_min, number(c, 1), op2(c, OP_div, op1(c, OP_abs, clip), norm));
    output(c, DT_f32, op2(c, OP_mul, x, factor), LEVEL_ELEM, false);
    return c;
}

/* Reads and writes one place; the row is needed again after it was overwritten. */
static Case *case_in_place(int64_t rows, int64_t cols) {
    Case *c = new_case("in_place", KERN_ROWS, rows, cols);
    const int x = input(c, DT_f32, LEVEL_ELEM);
    const int twice = op2(c, OP_add, x, x), sum = op1(c, OP_sum_cols, twice);
    const int next = op1(c, OP_max_cols, op2(c, OP_mul, x, sum));
    store_to(c, 0, twice, LEVEL_ELEM, false);
    output(c, DT_f32, op2(c, OP_sub, x, next), LEVEL_ELEM, false);
    return c;
}

/* A moment kept in 8 bits: decoded, moved towards x, coded again in its place. */
static Case *case_coded(int64_t rows, bool is_signed) {
    Case *c = new_case("coded", KERN_ROWS, rows, 256);
    const int code = input(c, DT_u8, LEVEL_ELEM), most = input(c, DT_f32, LEVEL_ROW);
    const int unit = op1(c, OP_dynamic_value, code), x = input(c, DT_f32, LEVEL_ELEM);
    const int old = op2(c, OP_mul, op2(c, OP_mul, unit, most), number(c, 0.9));
    int next = op2(c, OP_add, old, op2(c, OP_mul, x, number(c, 0.1)));
    if (!is_signed) next = op1(c, OP_abs, next);
    const int top = op1(c, OP_max_cols, op1(c, OP_abs, next));
    const int again = op1(c, OP_dynamic_code, op2(c, OP_div, next, top));
    c->val[unit].i0 = c->val[again].i0 = is_signed;
    store_to(c, 0, again, LEVEL_ELEM, false);
    store_to(c, 1, top, LEVEL_ROW, false);
    return c;
}

/* Every function of one or two operands, summed with weights into one value. */
static Case *case_all_ops(int64_t rows, int64_t cols) {
    static const Op one[] = {OP_neg,  OP_exp, OP_sin,     OP_cos,
                             OP_tanh, OP_erf, OP_sigmoid, OP_log_sigmoid};
    static const Op two[] = {OP_add, OP_sub, OP_mul, OP_div, OP_max, OP_min, OP_lt, OP_le, OP_eq};
    Case *c = new_case("all_ops", KERN_ROWS, rows, cols);
    const int x = input(c, DT_f32, LEVEL_ELEM), y = input(c, DT_bf16, LEVEL_ELEM);
    int sum = op1(c, OP_abs, x);
    sum = op2(c, OP_add, sum, op1(c, OP_sqrt, op1(c, OP_abs, x)));
    sum = op2(c, OP_add, sum, op1(c, OP_log, op2(c, OP_add, op1(c, OP_abs, x), number(c, 0.01))));
    sum = op2(c, OP_add, sum, op2(c, OP_pow, op1(c, OP_abs, x), y));
    for (size_t i = 0; i < COUNT(one); i++) sum = op2(c, OP_add, sum, op1(c, one[i], x));
    for (size_t i = 0; i < COUNT(two); i++) sum = op2(c, OP_add, sum, op2(c, two[i], x, y));
    output(c, DT_f32, sum, LEVEL_ELEM, true);
    return c;
}

/* ---- cases at random ------------------------------------------------------------------------- */

static uint32_t draw(uint64_t *s, uint32_t n) {
    *s = *s * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*s >> 33) % n;
}

/* A load of any kind of place that fuse makes. */
static int random_load(Case *c, uint64_t *s) {
    static const KLevel levels[] = {LEVEL_ELEM, LEVEL_ELEM, LEVEL_ELEM,
                                    LEVEL_ROW,  LEVEL_COL,  LEVEL_SCALAR};
    const KLevel level = levels[draw(s, c->k.shape == KERN_ROWS ? 6 : 5)];
    const DType t = draw(s, 3) ? DT_f32 : DT_bf16;
    if (level == LEVEL_SCALAR || level == LEVEL_COL || draw(s, 3)) return input(c, t, level);
    KVal v = memory(c, KOP_LOAD, new_arg(c, t, (c->rows + 1) * (c->k.cols + 5), 0), level);
    v.ld = level == LEVEL_ELEM ? c->k.cols + draw(s, 5) : 1 + draw(s, 3);
    const uint32_t kind = draw(s, 3);
    if (kind == 0) v.rowdiv = 1 + draw(s, 4);
    if (kind == 1 && c->k.narg < MAX_ARG) v.index = new_arg(c, DT_i32, c->rows, c->rows);
    if (kind == 2) v.half = level == LEVEL_ELEM && c->k.cols % 2 == 0;
    return push_val(c, v);
}

static int random_op(Case *c, uint64_t *s, int n) {
    static const Op one[] = {OP_neg, OP_abs, OP_tanh, OP_sigmoid, OP_cast};
    static const Op two[] = {OP_add, OP_sub, OP_mul, OP_max, OP_min, OP_lt};
    const int a = (int)draw(s, (uint32_t)n), b = (int)draw(s, (uint32_t)n);
    const uint32_t kind = draw(s, 8);
    if (kind == 0 && c->k.shape == KERN_ROWS)
        return op1(c, OP_tanh, op1(c, draw(s, 2) ? OP_sum_cols : OP_max_cols, a));
    if (kind == 1) return op1(c, OP_exp, op1(c, OP_tanh, a));
    if (kind == 2) return op3(c, OP_select, a, b, (int)draw(s, (uint32_t)n));
    if (kind > 4) return op2(c, two[draw(s, COUNT(two))], a, b);
    const Op op = one[draw(s, COUNT(one))];
    return op == OP_cast ? round_to(c, DT_bf16, a) : op1(c, op, a);
}

/* Stores in a fresh place, or over a full row that the Kern reads too. */
static void random_store(Case *c, uint64_t *s, int value) {
    const KLevel of = c->val[value].level;
    const bool whole = of == LEVEL_ELEM || of == LEVEL_COL || draw(s, 2);
    const KLevel level = c->k.shape == KERN_SUM_ROWS ? LEVEL_COL : whole ? LEVEL_ELEM : LEVEL_ROW;
    const DType t = draw(s, 3) ? DT_f32 : DT_bf16;
    for (int i = 0; i < c->k.nval && level == LEVEL_ELEM && draw(s, 2); i++) {
        const KVal *v = &c->val[i];
        if (v->kop != KOP_LOAD || v->level != LEVEL_ELEM || v->half || v->index >= 0) continue;
        if (v->rowdiv > 1 || v->ld != c->k.cols || c->arg[v->arg].write) continue;
        store_to(c, v->arg, value, level, false);
        return;
    }
    if (c->k.narg < MAX_ARG) output(c, t, value, level, draw(s, 4) == 0);
}

static Case *case_random(uint64_t seed) {
    static const int cols[] = {1, 2, 8, 15, 16, 48, 100, 256, 600, 1030, 1536};
    uint64_t s = seed * 0x9e3779b97f4a7c15ull + 1;
    const KernShape shape = draw(&s, 4) ? KERN_ROWS : KERN_SUM_ROWS;
    Case *c = new_case("random", shape, 1 + draw(&s, 90), cols[draw(&s, COUNT(cols))]);
    number(c, 0.75);
    for (uint32_t i = 0, n = 1 + draw(&s, 4); i < n; i++) random_load(c, &s);
    for (uint32_t i = 0, n = 3 + draw(&s, 14); i < n && c->k.nval < MAX_VAL - 12; i++) {
        if (draw(&s, 6) == 0 && c->k.narg < MAX_ARG - 4)
            random_load(c, &s);
        else
            random_op(c, &s, c->k.nval);
    }
    int value = c->k.nval - 1;
    if (shape == KERN_SUM_ROWS) value = op1(c, OP_tanh, op1(c, OP_sum_rows, value));
    const int last = c->k.nval;
    random_store(c, &s, value);
    for (uint32_t i = 0, n = draw(&s, 3); i < n && shape == KERN_ROWS; i++)
        random_store(c, &s, (int)draw(&s, (uint32_t)last));
    if (draw(&s, 2)) c->arg[draw(&s, (uint32_t)c->k.narg)].align = 4 << draw(&s, 2);
    return c;
}

enum { RANDOM_CASES = 60, MAX_CASES = 58 + RANDOM_CASES };
static int all_cases(Case **c) {
    int n = 0;
    for (int bf = 0; bf < 2; bf++) {
        const DType t = bf ? DT_bf16 : DT_f32;
        c[n++] = case_rmsnorm(t, 37, 2048);
        c[n++] = case_rmsnorm(t, 5, 100);
        c[n++] = case_rmsnorm_bwd(t, 37, 2048);
        c[n++] = case_rmsnorm_bwd(t, 3, 8);
        c[n++] = case_swiglu(t, 9, 5632);
        c[n++] = case_swiglu_bwd(t, 9, 5632);
        c[n++] = case_rope(t, 11, 4, 64);
        c[n++] = case_rope(t, 11, 3, 6);
        c[n++] = case_sum_rows(t, 1000, 100);
        c[n++] = case_sum_rows(t, 70, 2048);
    }
    c[n++] = case_sum_rows(DT_f32, 5000, 1);
    c[n++] = case_sum_rows(DT_f32, 0, 16);
    c[n++] = case_sum_rows(DT_f32, 300, 3);
    c[n++] = case_swiglu(DT_bf16, 0, 5632);
    c[n++] = case_rmsnorm(DT_bf16, 0, 2048);
    c[n++] = case_rmsnorm(DT_bf16, 2, 12272);
    c[n++] = case_rmsnorm(DT_bf16, 2, 12288);
    c[n++] = case_rmsnorm_bwd(DT_bf16, 3, 8192);
    c[n++] = case_adamw(3, 2304);
    c[n++] = case_softmax(13, 1000);
    c[n++] = case_softmax(2, 12000);
    c[n++] = case_softmax(40, 3);
    c[n++] = case_adamw(24, 1024);
    c[n++] = case_take(21, 96);
    c[n++] = case_angles(50, 64);
    c[n++] = case_pairs(40);
    c[n++] = case_pairs(20000);
    c[n++] = case_dropout(60, 4, 32);
    c[n++] = case_dropout(60, 1, 512);
    c[n++] = case_norm(4096);
    c[n++] = case_in_place(30, 640);
    c[n++] = case_coded(70, true);
    c[n++] = case_coded(3, false);
    c[n++] = case_all_ops(30, 70);
    for (int i = 0; i < RANDOM_CASES; i++) c[n++] = case_random((uint64_t)i);
    return n;
}

#endif
