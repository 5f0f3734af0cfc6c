/* interpret.h: a straightforward interpreter of Kerns, data for their arguments, and comparisons.
 *
 * It knows nothing of passes, lanes in vectors or kept rows: value after value, row after row, in
 * the order the LAWS of kern.h fix.  `exact` rounds every value to f32 and takes our functions:
 * emitted code must agree with that to the bit.  Else it works in double with libm.
 */
#ifndef TEST_INTERPRET_H
#define TEST_INTERPRET_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/math.h"
#include "runtime/quantize.h"
#include "kernels/random.h"
#include "tests/emit/device.h"
#include "tests/emit/kerns.h"

/* ---- the interpreter ------------------------------------------------------------------------- */

typedef struct Run {
    const Case *c;
    void **p;             /* arguments */
    bool exact;           /* every value rounded to f32, our functions; else double and libm */
    double *val[MAX_VAL]; /* [cols] */
} Run;

static double get(const Run *r, int arg, int64_t i) {
    switch (r->c->arg[arg].dtype) {
    case DT_f32:
        return (double)((const float *)r->p[arg])[i];
    case DT_bf16:
        return (double)f32_from_bf16(((const uint16_t *)r->p[arg])[i]);
    case DT_u8:
        return ((const uint8_t *)r->p[arg])[i];
    default:
        return ((const int32_t *)r->p[arg])[i];
    }
}

static void set(const Run *r, int arg, int64_t i, double x) {
    if (r->c->arg[arg].dtype == DT_f32)
        ((float *)r->p[arg])[i] = (float)x;
    else if (r->c->arg[arg].dtype == DT_u8)
        ((uint8_t *)r->p[arg])[i] = (uint8_t)x;
    else
        ((uint16_t *)r->p[arg])[i] = bf16_from_f32((float)x);
}

/* Where (row, column) of a load or store is; -1: nowhere, reads as 0. */
static int64_t place(const Run *r, const KVal *v, int64_t row, int64_t col) {
    if (v->level == LEVEL_SCALAR) return 0;
    if (v->level == LEVEL_COL) return col;
    int64_t at = row / v->rowdiv;
    if (v->index >= 0) at = (int64_t)get(r, v->index, at);
    if (at < 0) return -1;
    return at * v->ld + (v->level == LEVEL_ELEM ? col : 0);
}

static double load_value(const Run *r, const KVal *v, int64_t row, int64_t col) {
    const int64_t half = r->c->k.cols / 2;
    const int64_t from = !v->half ? col : col < half ? col + half : col - half;
    const int64_t at = place(r, v, row, from);
    const double x = at < 0 ? 0 : get(r, v->arg, at);
    return v->half && col < half ? -x : x;
}

static double exact_function(Op op, float a, float b) {
    switch (op) {
    case OP_exp:
        return (double)f32_exp(a);
    case OP_log:
        return (double)f32_log(a);
    case OP_sin:
        return (double)f32_sin(a);
    case OP_cos:
        return (double)f32_cos(a);
    case OP_tanh:
        return (double)f32_tanh(a);
    case OP_erf:
        return (double)f32_erf(a);
    case OP_sigmoid:
        return (double)f32_sigmoid(a);
    case OP_log_sigmoid:
        return (double)f32_log_sigmoid(a);
    case OP_pow:
        return (double)f32_pow(a, b);
    case OP_rsqrt:
        return (double)(1.0f / sqrtf(a));
    default:
        return NAN;
    }
}

static double function(Op op, double a, double b) {
    switch (op) {
    case OP_exp:
        return exp(a);
    case OP_log:
        return log(a);
    case OP_sin:
        return sin(a);
    case OP_cos:
        return cos(a);
    case OP_tanh:
        return tanh(a);
    case OP_erf:
        return erf(a);
    case OP_sigmoid:
        return 1 / (1 + exp(-a));
    case OP_log_sigmoid:
        return -log1p(exp(-a));
    case OP_pow:
        return pow(a, b);
    case OP_rsqrt:
        return 1 / sqrt(a);
    default:
        return NAN;
    }
}

/* By looking through bitsandbytes' table; a negative number is never the code of 0. */
static double dynamic(const KVal *v, double x) {
    const float *map = quant_map(v->i0);
    if (v->op == OP_dynamic_value) return (double)map[(int)x];
    const int end = v->i0 && x < 0 ? 127 : 256;
    int best = 0;
    for (int i = 1; i < end; i++)
        if (fabs((double)map[i] - x) < fabs((double)map[best] - x)) best = i;
    return best;
}

static double apply(const Run *r, const KVal *v, double a, double b, double c) {
    switch (v->op) {
    case OP_neg:
        return -a;
    case OP_abs:
        return fabs(a);
    case OP_sqrt:
        return sqrt(a);
    case OP_add:
        return a + b;
    case OP_sub:
        return a - b;
    case OP_mul:
        return a * b;
    case OP_div:
        return a / b;
    case OP_max:
        return a > b ? a : b;
    case OP_min:
        return a < b ? a : b;
    case OP_lt:
        return a < b;
    case OP_le:
        return a <= b;
    case OP_eq:
        return a == b;
    case OP_select:
        return a != 0 ? b : c;
    case OP_dynamic_value:
    case OP_dynamic_code:
        return dynamic(v, a);
    case OP_cast:
        return v->dtype == DT_bf16 ? (double)f32_round_bf16((float)a) : a;
    default:
        return r->exact ? exact_function(v->op, (float)a, (float)b) : function(v->op, a, b);
    }
}

static double rounded(const Run *r, double x) {
    return r->exact ? (double)(float)x : x;
}

static double uniform(const Run *r, const KVal *v, int64_t row, int64_t col) {
    const KVal *key = &r->c->val[v->a];
    const int64_t at = row / key->rowdiv * key->ld, pieces = v->i1 / r->c->k.cols;
    const int seed = r->c->val[v->b].arg;
    return (double)random_uniform((int32_t)get(r, key->arg, at), (int32_t)get(r, key->arg, at + 1),
                                  (int32_t)get(r, seed, 0), (int32_t)get(r, seed, 1), v->i0,
                                  row % pieces * r->c->k.cols + col);
}

/* The law: 16 lanes, then folded. */
static double reduce(const Run *r, Op op, const double *x) {
    double lane[16];
    for (int l = 0; l < 16; l++) lane[l] = op == OP_sum_cols ? 0 : -INFINITY;
    for (int64_t j = 0; j < r->c->k.cols; j++) {
        double *s = &lane[j % 16];
        *s = op == OP_sum_cols ? rounded(r, *s + x[j]) : fmax(*s, x[j]);
    }
    for (int w = 8; w; w /= 2)
        for (int l = 0; l < w; l++)
            lane[l] =
                op == OP_sum_cols ? rounded(r, lane[l] + lane[l + w]) : fmax(lane[l], lane[l + w]);
    return lane[0];
}

static void row_value(const Run *r, int i, int64_t row) {
    const KVal *v = &r->c->val[i];
    const int64_t cols = r->c->k.cols;
    double *const *val = r->val;
    if (v->kop == KOP_OP && (v->op == OP_sum_cols || v->op == OP_max_cols)) {
        const double x = reduce(r, v->op, val[v->a]);
        for (int64_t j = 0; j < cols; j++) val[i][j] = x;
        return;
    }
    for (int64_t j = 0; j < cols; j++) {
        if (v->kop == KOP_LOAD)
            val[i][j] = load_value(r, v, row, j);
        else if (v->kop == KOP_CONST)
            val[i][j] = rounded(r, v->num);
        else if (v->op == OP_uniform)
            val[i][j] = uniform(r, v, row, j);
        else
            val[i][j] = rounded(r, apply(r, v, val[v->a][j], v->b < 0 ? 0 : val[v->b][j],
                                         v->c < 0 ? 0 : val[v->c][j]));
    }
}

static void row_store(const Run *r, const KVal *v, int64_t row) {
    const int64_t cols = v->level == LEVEL_ELEM || v->level == LEVEL_COL ? r->c->k.cols : 1;
    for (int64_t j = 0; j < cols; j++) {
        const int64_t at = place(r, v, row, j);
        const double old = v->accumulate ? get(r, v->arg, at) : 0;
        set(r, v->arg, at, v->accumulate ? rounded(r, old + r->val[v->a][j]) : r->val[v->a][j]);
    }
}

static void interpret_rows(const Run *r) {
    for (int64_t row = 0; row < r->c->rows; row++) {
        for (int i = 0; i < r->c->k.nval; i++)
            if (r->c->val[i].kop != KOP_STORE) row_value(r, i, row);
        for (int i = 0; i < r->c->k.nval; i++)
            if (r->c->val[i].kop == KOP_STORE) row_store(r, &r->c->val[i], row);
    }
}

/* The law: blocks of 64 rows in order, block sums added in order. */
static void interpret_sum(const Run *r) {
    const int64_t cols = r->c->k.cols;
    double *total = calloc((size_t)cols, sizeof *total),
           *block = calloc((size_t)cols, sizeof *block);
    int sum = 0;
    while (r->c->val[sum].kop != KOP_OP || r->c->val[sum].op != OP_sum_rows) sum++;
    for (int64_t row = 0; row < r->c->rows; row++) {
        for (int i = 0; i < sum; i++) row_value(r, i, row);
        for (int64_t j = 0; j < cols; j++) {
            block[j] = rounded(r, block[j] + r->val[r->c->val[sum].a][j]);
            if (row % 64 < 63 && row + 1 < r->c->rows) continue;
            total[j] = rounded(r, total[j] + block[j]);
            block[j] = 0;
        }
    }
    memcpy(r->val[sum], total, (size_t)cols * sizeof *total);
    for (int i = sum + 1; i < r->c->k.nval; i++) {
        if (r->c->val[i].kop == KOP_STORE)
            row_store(r, &r->c->val[i], 0);
        else
            row_value(r, i, 0);
    }
    free(total);
    free(block);
}

static void interpret(const Case *c, void **p, bool exact) {
    Run r = {.c = c, .p = p, .exact = exact};
    for (int i = 0; i < c->k.nval; i++) r.val[i] = calloc((size_t)c->k.cols, sizeof(double));
    if (c->k.shape == KERN_ROWS)
        interpret_rows(&r);
    else
        interpret_sum(&r);
    for (int i = 0; i < c->k.nval; i++) free(r.val[i]);
}

/* ---- data ------------------------------------------------------------------------------------ */

static uint32_t next(uint64_t *s) {
    *s = *s * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*s >> 32);
}

static void fill(const Case *c, void **p) {
    uint64_t s = 12345;
    for (int a = 0; a < c->k.narg; a++) {
        const size_t n = (size_t)c->count[a];
        p[a] = room(n * (size_t)dtype_bytes(c->arg[a].dtype));
        for (size_t i = 0; i < n; i++) {
            const float x = (float)(int32_t)next(&s) * 0x1p-30f;
            if (c->integers[a])
                ((int32_t *)p[a])[i] = (int32_t)(next(&s) % (uint32_t)(c->integers[a] + 1)) - 1;
            else if (c->arg[a].dtype == DT_bf16)
                ((uint16_t *)p[a])[i] = bf16_from_f32(x);
            else if (c->arg[a].dtype == DT_u8)
                ((uint8_t *)p[a])[i] = (uint8_t)(next(&s) >> 24);
            else
                ((float *)p[a])[i] = x;
        }
    }
}

static void release(const Case *c, void **p) {
    for (int a = 0; a < c->k.narg; a++) leave(p[a]);
}

static double element(const Case *c, void *const *p, int arg, int64_t i) {
    Run r = {.c = c, .p = (void **)p};
    return get(&r, arg, i);
}

static bool same_bits(const Case *c, void *const *p, void *const *q) {
    for (int a = 0; a < c->k.narg; a++)
        for (int64_t i = 0; i < c->count[a]; i++) {
            const double x = element(c, p, a, i), y = element(c, q, a, i);
            if (x == y || (isnan(x) && isnan(y))) continue;
            printf("%s: argument %d, element %lld: %a, expected %a\n", c->name, a, (long long)i, x,
                   y);
            return false;
        }
    return true;
}

/* Within 2^-17 (bf16: 2^-7) of the largest value: far above rounding, far below a wrong formula.  A
 * sum over n columns has chains of n / 16 additions, each off by 2^-24 of sums that may be some
 * times larger than what is left of them. */
static bool close_to(const Case *c, void *const *p, void *const *q) {
    const double chain = (double)c->k.cols / 16 * 0x1p-22;
    for (int a = 0; a < c->k.narg; a++) {
        double most = 0;
        for (int64_t i = 0; i < c->count[a]; i++) most = fmax(most, fabs(element(c, q, a, i)));
        const double bound = most * ((c->arg[a].dtype == DT_bf16 ? 0x1p-7 : 0x1p-17) + chain);
        for (int64_t i = 0; i < c->count[a]; i++) {
            const double x = element(c, p, a, i), y = element(c, q, a, i);
            if (fabs(x - y) <= bound) continue;
            printf("%s: argument %d, element %lld: %g, in double %g\n", c->name, a, (long long)i, x,
                   y);
            return false;
        }
    }
    return true;
}

#endif
