/* merge_row.c: one row of a merged matrix, and its rounding (merge.h). */
#include "merge.h"

#include <math.h>
#include <stdlib.h>

/* ---- what an adapter adds -------------------------------------------------------------------- */

static float *read_all(const SafeTensor *t, Err *err) {
    float *x = malloc((size_t)t->count * sizeof *x);
    if (!x) fail(err, EXIT_MEMORY, "no memory for \"%s\"", t->name);
    if (x && safe_read_f32(t, 0, t->count, x, err)) return x;
    free(x);
    return NULL;
}

/* [rows, cols] as [cols, rows]; x is freed. */
static float *transpose(float *x, int64_t rows, int64_t cols, Err *err) {
    float *y = x ? malloc((size_t)(rows * cols) * sizeof *y) : NULL;
    if (x && !y) fail(err, EXIT_MEMORY, "no memory to merge an embedding");
    for (int64_t i = 0; y && i < rows; i++)
        for (int64_t k = 0; k < cols; k++) y[k * rows + i] = x[i * cols + k];
    free(x);
    return y;
}

/* A is [r, in], B [out, r]; a linear weight is [out, in], an embedding [in, out]. */
static bool shapes_fit(const SafeTensor *a, const SafeTensor *b, const SafeTensor *m,
                       const char *module, int64_t rows, int64_t cols, bool embedding, Err *err) {
    int64_t in = embedding ? rows : cols, out = embedding ? cols : rows;
    if (a->shape[1] == in && b->shape[0] == out && (!m || m->count == out)) return true;
    return fail(err, EXIT_INPUT,
                "%s: A and B of %s are [%lld, %lld] and [%lld, %lld]; the weight "
                "is [%lld, %lld]",
                safe_path(a->file), module, (long long)a->shape[0], (long long)a->shape[1],
                (long long)b->shape[0], (long long)b->shape[1], (long long)rows, (long long)cols);
}

bool delta_read(const Adapter *a, const Checkpoint *c, const char *module, int64_t rows,
                int64_t cols, Delta *out, Err *err) {
    const SafeTensor *A = adapter_tensor(a, c, module, ADAPTER_A),
                     *B = adapter_tensor(a, c, module, ADAPTER_B),
                     *m = adapter_tensor(a, c, module, ADAPTER_MAGNITUDE);
    bool embedding = adapter_embeds(a, module);
    *out = (Delta){.r = A->shape[0], .scale = adapter_scaling(a, module)};
    if (!shapes_fit(A, B, m, module, rows, cols, embedding, err)) return false;
    out->right = read_all(embedding ? B : A, err);
    out->left = read_all(embedding ? A : B, err);
    if (embedding) {
        out->right = transpose(out->right, cols, out->r, err);
        out->left = transpose(out->left, out->r, rows, err);
    }
    if (m) out->magnitude = read_all(m, err);
    if (m && embedding) out->squares = calloc((size_t)cols, sizeof *out->squares);
    if (m && embedding && !out->squares) fail(err, EXIT_MEMORY, "no memory to merge %s", module);
    if (err->code == 0) return true;
    delta_free(out);
    return false;
}

void delta_free(Delta *d) {
    free(d->left);
    free(d->right);
    free(d->magnitude);
    free(d->squares);
    *d = (Delta){0};
}

/* ---- a row ----------------------------------------------------------------------------------- */

/* out = w + s * left[row] right */
static void add_product(const float *w, int64_t row, int64_t cols, const Delta *d, double *out) {
    for (int64_t j = 0; j < cols; j++) out[j] = 0;
    for (int64_t k = 0; k < d->r; k++) {
        double c = (double)d->left[row * d->r + k];
        const float *right = d->right + k * cols;
#pragma omp simd
        for (int64_t j = 0; j < cols; j++) out[j] += c * (double)right[j];
    }
    for (int64_t j = 0; j < cols; j++) out[j] = (double)w[j] + d->scale * out[j];
}

static double length(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t j = 0; j < n; j++) sum += x[j] * x[j];
    return sqrt(sum);
}

/* An output that is zero has no direction to be scaled. */
static double scale_to(float magnitude, double size) {
    return size > 0 ? (double)magnitude / size : 1;
}

void delta_measure(Delta *d, const float *w, int64_t row, int64_t cols, double *scratch) {
    add_product(w, row, cols, d, scratch);
    for (int64_t j = 0; j < cols; j++) d->squares[j] += scratch[j] * scratch[j];
}

void merge_row(const float *w, int64_t row, int64_t cols, const Delta *d, int n, double *scratch,
               double *out) {
    for (int64_t j = 0; j < cols; j++) out[j] = (double)w[j];
    for (int i = 0; i < n; i++) {
        const float *m = d[i].magnitude;
        add_product(w, row, cols, &d[i], scratch);
        if (m && !d[i].squares) {
            double scale = scale_to(m[row], length(scratch, cols));
            for (int64_t j = 0; j < cols; j++) scratch[j] *= scale;
        }
        for (int64_t j = 0; m && d[i].squares && j < cols; j++)
            scratch[j] *= scale_to(m[j], sqrt(d[i].squares[j]));
        for (int64_t j = 0; j < cols; j++) out[j] += scratch[j] - (double)w[j];
    }
}

/* ---- rounding -------------------------------------------------------------------------------- */

/* Largest finite and smallest normal number. */
static double largest_of(DType t) {
    return t == DT_f16 ? 65504 : t == DT_bf16 ? 0x1.fep127 : 0x1.fffffep127;
}

static double smallest_of(DType t) {
    return t == DT_f16 ? 0x1p-14 : 0x1p-126;
}

RowRounding round_row(const double *x, const float *w, int64_t n, DType type, void *out) {
    RowRounding r = {0};
    double most = largest_of(type), least = smallest_of(type);
    for (int64_t j = 0; j < n; j++) {
        uint16_t bits = type == DT_bf16 ? float_to_bf16((float)x[j]) : float_to_f16((float)x[j]);
        float y = type == DT_f32    ? (float)x[j]
                  : type == DT_bf16 ? bf16_to_float(bits)
                                    : f16_to_float(bits);
        if (isinf(y)) {
            r.overflow++;
            y = (float)copysign(most, x[j]);
            bits = type == DT_bf16 ? float_to_bf16(y) : float_to_f16(y);
        }
        r.underflow += y == 0 && x[j] != 0;
        double error = (double)y - x[j], change = x[j] - (double)w[j];
        r.error += error * error;
        r.exact += x[j] * x[j];
        r.change += change * change;
        if (fabs(x[j]) >= least && fabs(x[j]) <= most)
            r.largest = fmax(r.largest, fabs(error / x[j]));
        if (type == DT_f32)
            ((float *)out)[j] = y;
        else
            ((uint16_t *)out)[j] = bits;
    }
    return r;
}
