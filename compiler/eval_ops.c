/* eval_ops.c: what maps, reductions, products, gathers and dequantization mean, in double.
 *
 * Relies on eval.h; random numbers come from kernels/random.h, tables of the quantized formats from
 * runtime/quantize.h.  Row numbers outside the operand are treated as -1.
 */
#include "eval.h"

#include "../kernels/random.h"
#include "../runtime/quantize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void eval_cast(Eval *e, NodeId id);
void eval_bcast(Eval *e, NodeId id);
void eval_map(Eval *e, NodeId id);
void eval_rotate_half(Eval *e, NodeId id);
void eval_dynamic(Eval *e, NodeId id);
void eval_uniform(Eval *e, NodeId id);
void eval_sum_cols(Eval *e, NodeId id);
void eval_max_cols(Eval *e, NodeId id);
void eval_sum_rows(Eval *e, NodeId id);
void eval_matmul(Eval *e, NodeId id);
void eval_take(Eval *e, NodeId id);
void eval_put(Eval *e, NodeId id);
void eval_sort(Eval *e, NodeId id);
void eval_dequant(Eval *e, NodeId id);

/* ---- maps ------------------------------------------------------------------------------------ */

void eval_cast(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    memcpy(y, eval_in(e, id, 0), sizeof *y * (size_t)eval_count(e, id));
}

void eval_bcast(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    const double *x = eval_in(e, id, 0);
    int64_t n = eval_count(e, id), m = eval_count(e, eval_node(e, id)->in[0]);
    int64_t times = m ? n / m : 0, lead = eval_node(e, id)->attr.i0;
    /* lead 2: the first axis, then `times` copies of the others */
    int64_t tail = lead == 2 ? eval_row(e, eval_type_in(e, id, 0)) : 1;
    for (int64_t i = 0; i < n; i++)
        y[i] = lead ? x[i / (times * tail) * tail + i % tail] : x[i % m];
}

/* One element; b and c are unused where the op has fewer operands. */
static double map1(Op op, double a, double b, double c) {
    switch (op) {
    case OP_neg:
        return -a;
    case OP_abs:
        return fabs(a);
    case OP_exp:
        return exp(a);
    case OP_log:
        return log(a);
    case OP_sqrt:
        return sqrt(a);
    case OP_rsqrt:
        return 1 / sqrt(a);
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
        return (a < 0 ? a : 0) - log1p(exp(-fabs(a)));
    case OP_add:
        return a + b;
    case OP_sub:
        return a - b;
    case OP_mul:
        return a * b;
    case OP_div:
        return a / b;
    case OP_max:
        return a > b || isnan(a) ? a : b;
    case OP_min:
        return a < b || isnan(a) ? a : b;
    case OP_pow:
        return pow(a, b);
    case OP_lt:
        return a < b;
    case OP_le:
        return a <= b;
    case OP_eq:
        return a == b;
    case OP_select:
        return a != 0 ? b : c;
    default: /* stop */
        return a;
    }
}

void eval_map(Eval *e, NodeId id) {
    const Node *n = eval_node(e, id);
    const double *in[3] = {0};
    for (int k = 0; k < n->nin; k++) in[k] = eval_in(e, id, k);
    double *y = eval_out(e, id);
    for (int64_t i = 0, count = eval_count(e, id); i < count; i++)
        y[i] = map1(n->op, in[0][i], in[1] ? in[1][i] : 0, in[2] ? in[2][i] : 0);
}

void eval_rotate_half(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    const double *x = eval_in(e, id, 0);
    int64_t n = eval_count(e, id), size = eval_last(e, eval_node(e, id)->type), half = size / 2;
    for (int64_t i = 0; i < n; i++) y[i] = i % size < half ? -x[i + half] : x[i - half];
}

/* The entry of the map nearest to x by a walk through all of them: the first on a tie. */
static double nearest_code(const float *map, double x, bool is_signed) {
    int best = is_signed && x >= 0 ? 127 : 0; /* 0 and above; what is below 0 stays there */
    int end = is_signed && x < 0 ? 127 : 256;
    for (int i = best; i < end; i++)
        if (fabs((double)map[i] - x) < fabs((double)map[best] - x)) best = i;
    return best;
}

void eval_dynamic(Eval *e, NodeId id) {
    const Node *n = eval_node(e, id);
    const double *x = eval_in(e, id, 0);
    double *y = eval_out(e, id);
    bool is_signed = n->attr.i0 != 0;
    const float *map = quant_map(is_signed);
    for (int64_t i = 0, count = eval_count(e, id); i < count; i++)
        y[i] = n->op == OP_dynamic_value ? (double)map[(int)x[i] & 255]
                                         : nearest_code(map, x[i], is_signed);
}

void eval_uniform(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    const double *key = eval_in(e, id, 0), *seed = eval_in(e, id, 1);
    const Node *n = eval_node(e, id);
    for (int64_t i = 0, count = eval_count(e, id); i < count; i++) {
        int64_t row = i / n->attr.i1, col = i % n->attr.i1;
        y[i] = (double)random_uniform((int32_t)key[2 * row], (int32_t)key[2 * row + 1],
                                      (int32_t)seed[0], (int32_t)seed[1], n->attr.i0, col);
    }
}

/* ---- reductions ------------------------------------------------------------------------------ */

void eval_sum_cols(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    const double *x = eval_in(e, id, 0);
    int64_t cols = eval_last(e, eval_type_in(e, id, 0));
    for (int64_t r = 0, rows = eval_count(e, id); r < rows; r++)
        for (int64_t c = 0; c < cols; c++) y[r] += x[r * cols + c];
}

void eval_max_cols(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    const double *x = eval_in(e, id, 0);
    int64_t cols = eval_last(e, eval_type_in(e, id, 0));
    for (int64_t r = 0, rows = eval_count(e, id); r < rows; r++) {
        y[r] = -INFINITY;
        for (int64_t c = 0; c < cols; c++) y[r] = map1(OP_max, x[r * cols + c], y[r], 0);
    }
}

void eval_sum_rows(Eval *e, NodeId id) {
    double *y = eval_out(e, id);
    const double *x = eval_in(e, id, 0);
    int64_t n = eval_count(e, eval_node(e, id)->in[0]), cols = eval_count(e, id);
    for (int64_t i = 0; i < n; i++) y[i % cols] += x[i];
}

/* ---- matrix product -------------------------------------------------------------------------- */

/* The operand as a dense [rows, cols] array, transposed if asked. */
static double *dense(const double *x, int64_t rows, int64_t cols, bool transpose) {
    double *d = malloc(sizeof *d * (size_t)(rows * cols + 1));
    if (!d) abort();
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            d[r * cols + c] = transpose ? x[c * rows + r] : x[r * cols + c];
    return d;
}

void eval_matmul(Eval *e, NodeId id) {
    const Node *node = eval_node(e, id);
    const Type *ta = eval_type_in(e, id, 0);
    int64_t m = eval_dim(e, node->type->dim[0]), n = eval_dim(e, node->type->dim[1]);
    int64_t k = eval_dim(e, ta->dim[!node->attr.i0]);
    double *y = eval_out(e, id);
    double *a = dense(eval_in(e, id, 0), m, k, node->attr.i0 != 0);
    double *b = dense(eval_in(e, id, 1), k, n, node->attr.i1 != 0);
    for (int64_t i = 0; i < m; i++)
        for (int64_t p = 0; p < k; p++) {
            double f = a[i * k + p];
            for (int64_t j = 0; j < n; j++) y[i * n + j] += f * b[p * n + j];
        }
    free(a);
    free(b);
}

/* ---- gather, scatter, sort ------------------------------------------------------------------- */

void eval_take(Eval *e, NodeId id) {
    const Type *tx = eval_type_in(e, id, 0);
    const double *x = eval_in(e, id, 0), *index = eval_in(e, id, 1);
    int64_t width = eval_row(e, tx), rows = eval_dim(e, tx->dim[0]);
    int64_t n = eval_count(e, eval_node(e, id)->in[1]);
    double *y = eval_out(e, id);
    for (int64_t r = 0; r < n; r++) {
        int64_t from = (int64_t)index[r];
        if (from < 0 || from >= rows) continue;
        memcpy(y + r * width, x + from * width, sizeof *y * (size_t)width);
    }
}

void eval_put(Eval *e, NodeId id) {
    const Type *ty = eval_node(e, id)->type;
    const double *x = eval_in(e, id, 0), *index = eval_in(e, id, 1);
    int64_t width = eval_row(e, ty), rows = eval_dim(e, ty->dim[0]);
    int64_t n = eval_count(e, eval_node(e, id)->in[1]);
    double *y = eval_out(e, id);
    for (int64_t r = 0; r < n; r++) {
        int64_t to = (int64_t)index[r];
        if (to < 0 || to >= rows) continue;
        for (int64_t c = 0; c < width; c++) y[to * width + c] += x[r * width + c];
    }
}

typedef struct Ranked {
    double x;
    int64_t from;
} Ranked;

static int by_value(const void *a, const void *b) {
    const Ranked *p = a, *q = b;
    if (p->x != q->x) return p->x < q->x ? -1 : 1;
    return (p->from > q->from) - (p->from < q->from);
}

void eval_sort(Eval *e, NodeId id) {
    const double *x = eval_in(e, id, 0);
    int64_t n = eval_count(e, id);
    double *y = eval_out(e, id), *from = eval_part_out(e, id, 1, n);
    Ranked *r = malloc(sizeof *r * (size_t)(n + 1));
    if (!r) abort();
    for (int64_t i = 0; i < n; i++) r[i] = (Ranked){x[i], i};
    qsort(r, (size_t)n, sizeof *r, by_value);
    for (int64_t i = 0; i < n; i++) {
        y[i] = r[i].x;
        from[i] = (double)r[i].from;
    }
    free(r);
}

/* ---- quantized weights ----------------------------------------------------------------------- */

void eval_dequant(Eval *e, NodeId id) {
    const Node *n = eval_node(e, id);
    const double *codes = eval_in(e, id, 0), *absmax = eval_in(e, id, 1);
    QuantFormat format;
    if (!quant_format(n->attr.name, &format)) return;
    const float *lut = quant_lut(format);
    double *y = eval_out(e, id);
    for (int64_t i = 0, count = eval_count(e, id); i < count; i++) {
        int64_t block = i / n->attr.i0;
        double scale = absmax[block];
        if (n->attr.i1) {
            const double *absmax2 = eval_in(e, id, 2), *offset = eval_in(e, id, 3);
            scale = eval_in(e, id, 4)[(int)scale] * absmax2[block / QUANT_GROUP] + offset[0];
        }
        if (!lut) {
            y[i] = (double)(int8_t)(uint8_t)codes[i] * (scale / 127);
            continue;
        }
        int byte = (int)codes[i / 2];
        y[i] = (double)lut[i % 2 ? byte & 15 : byte >> 4 & 15] * scale;
    }
}
