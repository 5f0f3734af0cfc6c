/* bounds.h: how far a device may be from the evaluator, op by op, and the cases made of them.
 *
 * What rounds, with u = 2^-24 (f32) and U = 2^-8 (bf16, where a value is kept or multiplied in it):
 * a sum of n terms errs by at most (n + 2) u of the sum of magnitudes, whatever its order; exp
 * errs relatively by its argument's error and a few u.  Dot products are exact (case.h).
 */
#ifndef TESTS_GPU_BOUNDS_H
#define TESTS_GPU_BOUNDS_H

#include "tests/gpu/case.h"

/* ---- attention --------------------------------------------------------------------------------
 * s = scale q.k, p = exp(s - lse), dp = dout.v, delta = out.dout, ds = scale p (dp - delta).
 *   e        relative error of p in the forward: the argument is scaled, moved by the maximum
 *            and brought to another base: (6 |s| + 8) u
 *   lse      e + (n + 4) u + 2 u |lse|
 *   out      sum p |v| (2 e + (2 n + 4) u + 2 U) + 2 U |out|        U: p is rounded for its product
 *   p        relative, in the backward: e + lse's error
 *   delta    sum |dout| out's error + (S + 2) u sum |out dout|
 *   ds       scale p (|dp - delta| (p's + 4 u) + delta's) + U |ds|
 *   dq, dk   sum |k| ds's error + (n + 2) u sum |ds k| + 2 U |dq|;  dv alike with p and dout
 * The evaluator rounds its own results once, so what is kept in bf16 may differ by two halves. */

enum { AT_Q, AT_K, AT_V, AT_SEGS, AT_DOUT };
enum { AT_OUT, AT_LSE, AT_DQ, AT_DK, AT_DV };

typedef struct Row { /* one query row of one head */
    Case *c;
    const Check *k;
    int64_t at, head, n; /* first element of q's row; head; keys seen */
    const int64_t *keys;
    double *s;
} Row;

static inline double *at_bound(const Row *r, int out) {
    return r->c->out[r->k->out[out]].bound;
}
static inline const double *at_value(const Row *r, int leaf) {
    return r->c->leaf[r->k->leaf[leaf]].value;
}
static inline int64_t at_key(const Row *r, int64_t j) {
    return (r->keys[j] * r->k->kv + r->head / (r->k->heads / r->k->kv)) * r->k->size;
}
static inline double at_dot(const double *x, const double *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

static inline void row_forward(const Row *r) {
    const Check *k = r->k;
    int64_t size = k->size, lse_at = r->at / size;
    const double *q = at_value(r, AT_Q) + r->at, *key = at_value(r, AT_K), *v = at_value(r, AT_V);
    double most = 0, lse = r->c->out[k->out[AT_LSE]].want[lse_at],
           half = k->t == DT_bf16 ? HALF : 0;
    for (int64_t j = 0; j < r->n; j++) {
        r->s[j] = k->scale * at_dot(q, key + at_key(r, j), size);
        most = fmax(most, fabs(r->s[j]));
    }
    double e = (6 * most + 8) * EPS, *out = at_bound(r, AT_OUT) + r->at;
    at_bound(r, AT_LSE)[lse_at] = e + (double)(r->n + 4) * EPS + 2 * EPS * fabs(lse);
    double relative = 2 * e + (double)(2 * r->n + 4) * EPS + 2 * half;
    for (int64_t j = 0; j < r->n; j++) {
        double p = exp(r->s[j] - lse) * relative;
        for (int64_t i = 0; i < size; i++) out[i] += p * fabs(v[at_key(r, j) + i]);
    }
    const double *want = r->c->out[k->out[AT_OUT]].want + r->at;
    for (int64_t i = 0; i < size; i++) out[i] += 2 * fmax(half, EPS) * fabs(want[i]);
}

/* After row_forward of the same row. */
static inline void row_backward(const Row *r) {
    const Check *k = r->k;
    int64_t size = k->size, lse_at = r->at / size;
    const double *q = at_value(r, AT_Q) + r->at, *key = at_value(r, AT_K), *v = at_value(r, AT_V);
    const double *dout = at_value(r, AT_DOUT) + r->at,
                 *out = r->c->out[k->out[AT_OUT]].want + r->at;
    double *dq = at_bound(r, AT_DQ) + r->at, *dk = at_bound(r, AT_DK), *dv = at_bound(r, AT_DV);
    double lse = r->c->out[k->out[AT_LSE]].want[lse_at], half = k->t == DT_bf16 ? HALF : 0;
    double most = 0, off = 0, n = (double)(r->n + k->heads * r->c->extent[X_T] + 2) * EPS;
    for (int64_t j = 0; j < r->n; j++) most = fmax(most, fabs(r->s[j]));
    double e = (6 * most + 8) * EPS + at_bound(r, AT_LSE)[lse_at];
    double delta = at_dot(dout, out, size);
    for (int64_t i = 0; i < size; i++)
        off += fabs(dout[i]) *
               (at_bound(r, AT_OUT)[r->at + i] + (double)(size + 2) * EPS * fabs(out[i]));
    for (int64_t j = 0; j < r->n; j++) {
        int64_t a = at_key(r, j);
        double p = exp(r->s[j] - lse), distance = fabs(at_dot(dout, v + a, size) - delta);
        double ds = k->scale * p * distance * (e + 4 * EPS + half + n) + k->scale * p * off;
        for (int64_t i = 0; i < size; i++) {
            dq[i] += ds * fabs(key[a + i]);
            dk[a + i] += ds * fabs(q[i]);
            dv[a + i] += p * fabs(dout[i]) * (e + half + n);
        }
    }
}

/* The keys query i of a segment sees (ops.def, attend). */
static inline int64_t seen_keys(const Check *k, const double seg[6], int64_t i, int64_t *keys) {
    int64_t plen = (int64_t)seg[3], last = plen + i + (int64_t)(seg[5] - seg[1]), n = 0;
    for (int64_t pos = 0; pos <= last; pos++)
        if (!k->window || last - pos < k->window)
            keys[n++] =
                (int64_t)(pos < plen ? seg[2] + (double)pos : seg[4] + (double)(pos - plen));
    return n;
}

static inline void round_bound(Case *c, const Check *k, int out) { /* a result kept in k->t */
    Output *o = &c->out[k->out[out]];
    double half = k->t == DT_bf16 ? 2 * HALF : 2 * EPS;
    for (int64_t i = 0; i < o->count; i++) o->bound[i] += half * fabs(o->want[i]);
}

static inline void attend_bounds(Case *c, const Check *k) {
    int64_t t = c->extent[X_T], *keys = malloc(sizeof *keys * (size_t)(t + 1));
    Row r = {.c = c, .k = k, .keys = keys, .s = malloc(sizeof(double) * (size_t)(t + 1))};
    for (int i = AT_OUT; i <= AT_DV; i++) case_bound(c, k->out[i]);
    const double *segs = c->leaf[k->leaf[AT_SEGS]].value;
    for (int64_t g = 0; g < c->extent[X_G]; g++)
        for (int64_t i = 0; i < (int64_t)segs[6 * g + 1]; i++)
            for (r.head = 0; r.head < k->heads; r.head++) {
                r.n = seen_keys(k, segs + 6 * g, i, keys);
                r.at = (((int64_t)segs[6 * g] + i) * k->heads + r.head) * k->size;
                row_forward(&r);
                row_backward(&r);
            }
    for (int i = AT_DQ; i <= AT_DV; i++) round_bound(c, k, i);
    free(keys);
    free(r.s);
}

/* ---- the head ---------------------------------------------------------------------------------
 * z = scale h.W, exact; p = exp(z - lse).  A row's sums run over V terms in at least 16 partial
 * sums: depth V/16 + 16.  With Z the largest |z|:
 *   e        relative error of an exponential: (4 Z + 8) u
 *   lse      e + (V/16 + 16) u + 2 u (|lse| + Z);  logp the same, and 2 u (|lse| + Z)
 *   mean     (V/16 + 16) u Z
 *   entropy  lse's (1 + Z) + (e + (V/16 + 16) u) Z;  log sum p^2: 2 e + 2 lse's + (V/16 + 16) u
 *   dz       |dz| (e + U) + scale |c| p lse's;  dh, dW: dz's times |W|, |h|, and sums */

enum { HD_H, HD_W, HD_TARGET, HD_C };
enum { HD_LOGP, HD_LSE, HD_MEAN, HD_ENTROPY, HD_HIT, HD_P2, HD_SLOPE };
enum { HD_DH = HD_SLOPE + 0, HD_DW = HD_SLOPE + 1 };

static inline double head_row(Case *c, const Check *k, int64_t r, const double *z) {
    double most = 0, depth = ((double)k->rows / 16 + 16) * EPS;
    for (int64_t v = 0; v < k->rows; v++) most = fmax(most, fabs(z[v]));
    double want = fabs(c->out[k->out[HD_LSE]].want[r]), e = (4 * most + 8) * EPS;
    double last = 2 * EPS * (want + most), lse = e + depth + last;
    const double bound[] = {[HD_LOGP] = lse + last,
                            [HD_LSE] = lse,
                            [HD_MEAN] = depth * most,
                            [HD_ENTROPY] = lse * (1 + most) + (e + depth) * most,
                            [HD_HIT] = 0,
                            [HD_P2] = 2 * e + 2 * lse + depth + last};
    for (int i = HD_LOGP; i <= HD_P2; i++)
        if (k->out[i] >= 0) case_bound(c, k->out[i])[r] = bound[i];
    return lse + e;
}

/* d logp / d h of one row, or dh and dW with its coefficient. */
static inline void head_back(Case *c, const Check *k, int64_t r, const double *z, double e) {
    const double *h = c->leaf[k->leaf[HD_H]].value + r * k->cols;
    const double *w = c->leaf[k->leaf[HD_W]].value;
    int64_t target = (int64_t)c->leaf[k->leaf[HD_TARGET]].value[r];
    if (target < 0) return;
    double lse = c->out[k->out[HD_LSE]].want[r], half = k->t == DT_bf16 ? HALF : 0;
    double scale = k->scale * (k->leaf[HD_C] < 0 ? 1 : fabs(c->leaf[k->leaf[HD_C]].value[r]));
    double *dh = case_bound(c, k->out[HD_DH]) + r * k->cols;
    double *dw = k->out[HD_DW] < 0 ? NULL : case_bound(c, k->out[HD_DW]);
    double sums = (double)(k->rows + c->extent[X_R] + 4) * EPS;
    for (int64_t v = 0; v < k->rows; v++) {
        double p = exp(z[v] - lse), dz = scale * fabs((v == target) - p);
        double off = dz * (half + sums) + scale * p * (e + 2 * EPS);
        for (int64_t i = 0; i < k->cols; i++) {
            dh[i] += off * fabs(w[v * k->cols + i]);
            if (dw) dw[v * k->cols + i] += off * fabs(h[i]);
        }
    }
}

static inline void head_bounds(Case *c, const Check *k) {
    const double *h = c->leaf[k->leaf[HD_H]].value, *w = c->leaf[k->leaf[HD_W]].value;
    double *z = malloc(sizeof *z * (size_t)k->rows);
    for (int64_t r = 0; r < c->extent[X_R]; r++) {
        for (int64_t v = 0; v < k->rows; v++)
            z[v] = k->scale * at_dot(h + r * k->cols, w + v * k->cols, k->cols);
        double e = head_row(c, k, r, z);
        if (k->out[HD_DH] >= 0) head_back(c, k, r, z, e);
    }
    free(z);
}

/* ---- scatter, dequantization ----------------------------------------------------------------- */

/* A sum of n numbers of at most 1 errs by (n + 2) u n; n: the rows with this index. */
static inline void put_bounds(Case *c, const Check *k) {
    const Leaf *index = &c->leaf[k->leaf[1]];
    double *bound = case_bound(c, k->out[0]);
    int64_t m = c->out[k->out[0]].count / k->cols;
    double *n = calloc((size_t)m + 1, sizeof *n);
    for (int64_t r = 0; r < index->count; r++)
        if (index->value[r] >= 0) n[(int64_t)index->value[r]]++;
    for (int64_t i = 0; i < m * k->cols; i++)
        bound[i] = (n[i / k->cols] + 2) * n[i / k->cols] * EPS;
    free(n);
}

/* code times scale (nested: times map value, plus offset), a few roundings, then one to bf16. */
static inline void dequant_bounds(Case *c, const Check *k) {
    const Output *o = &c->out[k->out[0]];
    double *bound = case_bound(c, k->out[0]);
    for (int64_t i = 0; i < o->count; i++)
        bound[i] = fabs(o->want[i]) * (k->t == DT_bf16 ? 2 * HALF : 0) + 4 * EPS * 2;
}

#endif
