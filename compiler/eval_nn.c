/* eval_nn.c: what attention and the head mean, forward and backward, in double.
 *
 * Relies on eval.h.  Query rows that no segment names give zeros.  Definitions stand in ops.def.
 */
#include "eval.h"

#include <math.h>
#include <stdlib.h>

void eval_attend(Eval *e, NodeId id);
void eval_attend_bwd(Eval *e, NodeId id);
void eval_linear_logprob(Eval *e, NodeId id);
void eval_linear_logprob_bwd(Eval *e, NodeId id);

/* ---- attention ------------------------------------------------------------------------------- */

typedef struct Attention { /* sizes and operands that forward and backward share */
    int64_t t, m, h, hk, s, window;
    double scale;
    const double *q, *k, *v;
    const double *segs;
    int64_t g;
} Attention;

static Attention attention(const Eval *e, NodeId id, int segs) {
    const Type *q = eval_type_in(e, id, 0), *k = eval_type_in(e, id, 1);
    const Attr *a = &eval_node(e, id)->attr;
    return (Attention){.t = eval_dim(e, q->dim[0]),
                       .m = eval_dim(e, k->dim[0]),
                       .h = q->dim[1].c,
                       .hk = k->dim[1].c,
                       .s = q->dim[2].c,
                       .window = a->i0,
                       .scale = a->num,
                       .q = eval_in(e, id, 0),
                       .k = eval_in(e, id, 1),
                       .v = eval_in(e, id, 2),
                       .segs = eval_in(e, id, segs),
                       .g = eval_dim(e, eval_type_in(e, id, segs)->dim[0])};
}

/* The keys that query i of a segment sees, in order of position; returns how many. */
static int64_t visible(const Attention *a, const double seg[6], int64_t i, int64_t *keys) {
    int64_t qlen = (int64_t)seg[1], prefix = (int64_t)seg[2], plen = (int64_t)seg[3];
    int64_t own = (int64_t)seg[4], olen = (int64_t)seg[5], last = i + olen - qlen;
    int64_t n = 0;
    for (int64_t pos = 0; pos <= plen + last; pos++) {
        int64_t key = pos < plen ? prefix + pos : own + pos - plen;
        bool far = a->window > 0 && plen + last - pos >= a->window;
        if (!far && key >= 0 && key < a->m) keys[n++] = key;
    }
    return n;
}

static double dot(const double *x, const double *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* One query row's heads: softmax over its keys. */
static void attend_row(const Attention *a, int64_t row, const int64_t *keys, int64_t n, double *p,
                       double *out, double *lse) {
    for (int64_t h = 0; h < a->h; h++) {
        int64_t hk = h / (a->h / a->hk);
        const double *q = a->q + (row * a->h + h) * a->s;
        double most = -INFINITY, sum = 0;
        for (int64_t j = 0; j < n; j++) {
            p[j] = a->scale * dot(q, a->k + (keys[j] * a->hk + hk) * a->s, a->s);
            if (p[j] > most) most = p[j];
        }
        for (int64_t j = 0; j < n; j++) sum += exp(p[j] - most);
        double *y = out + (row * a->h + h) * a->s;
        for (int64_t j = 0; j < n; j++) {
            double w = exp(p[j] - most) / sum;
            const double *v = a->v + (keys[j] * a->hk + hk) * a->s;
            for (int64_t c = 0; c < a->s; c++) y[c] += w * v[c];
        }
        lse[row * a->h + h] = n ? most + log(sum) : 0;
    }
}

void eval_attend(Eval *e, NodeId id) {
    Attention a = attention(e, id, 3);
    double *out = eval_out(e, id), *lse = eval_part_out(e, id, 1, a.t * a.h);
    int64_t *keys = malloc(sizeof *keys * (size_t)(2 * a.m + 1));
    double *p = malloc(sizeof *p * (size_t)(2 * a.m + 1));
    if (!keys || !p) abort();
    for (int64_t g = 0; g < a.g; g++) {
        const double *seg = a.segs + g * 6;
        for (int64_t i = 0; i < (int64_t)seg[1]; i++) {
            int64_t row = (int64_t)seg[0] + i;
            if (row < 0 || row >= a.t) continue;
            int64_t n = visible(&a, seg, i, keys);
            attend_row(&a, row, keys, n, p, out, lse);
        }
    }
    free(keys);
    free(p);
}

typedef struct AttentionGrad {
    const double *out, *lse, *dout;
    double *dq, *dk, *dv;
} AttentionGrad;

static void attend_row_bwd(const Attention *a, int64_t row, const int64_t *keys, int64_t n,
                           const AttentionGrad *d) {
    for (int64_t h = 0; h < a->h; h++) {
        int64_t at = (row * a->h + h) * a->s, hk = h / (a->h / a->hk);
        const double *q = a->q + at, *dout = d->dout + at;
        double delta = dot(dout, d->out + at, a->s);
        for (int64_t j = 0; j < n; j++) {
            int64_t key = (keys[j] * a->hk + hk) * a->s;
            const double *k = a->k + key, *v = a->v + key;
            double p = exp(a->scale * dot(q, k, a->s) - d->lse[row * a->h + h]);
            double ds = a->scale * p * (dot(dout, v, a->s) - delta);
            for (int64_t c = 0; c < a->s; c++) {
                d->dv[key + c] += p * dout[c];
                d->dk[key + c] += ds * q[c];
                d->dq[at + c] += ds * k[c];
            }
        }
    }
}

void eval_attend_bwd(Eval *e, NodeId id) {
    Attention a = attention(e, id, 6);
    AttentionGrad d = {
        .out = eval_in(e, id, 3), .lse = eval_in(e, id, 4), .dout = eval_in(e, id, 5)};
    d.dq = eval_out(e, id);
    d.dk = eval_part_out(e, id, 1, a.m * a.hk * a.s);
    d.dv = eval_part_out(e, id, 2, a.m * a.hk * a.s);
    int64_t *keys = malloc(sizeof *keys * (size_t)(2 * a.m + 1));
    if (!keys) abort();
    for (int64_t g = 0; g < a.g; g++) {
        const double *seg = a.segs + g * 6;
        for (int64_t i = 0; i < (int64_t)seg[1]; i++) {
            int64_t row = (int64_t)seg[0] + i;
            if (row < 0 || row >= a.t) continue;
            int64_t n = visible(&a, seg, i, keys);
            attend_row_bwd(&a, row, keys, n, &d);
        }
    }
    free(keys);
}

/* ---- the head -------------------------------------------------------------------------------- */

enum { HEAD_LSE = 1, HEAD_MEAN, HEAD_ENTROPY, HEAD_HIT, HEAD_P2, HEAD_DH };

static bool part_wanted(const Eval *e, NodeId id, int64_t k) {
    for (NodeId p = id + 1; p < e->g->n; p++)
        if (e->g->node[p].op == OP_part && e->g->node[p].in[0] == id && e->g->node[p].attr.i0 == k)
            return true;
    return false;
}

/* d logp / d h of one row: scale * (W[target] - sum of p W). */
static void logprob_slope(double *dh, const double *z, double lse, const double *w, int64_t target,
                          int64_t vocab, int64_t width, double scale) {
    for (int64_t v = 0; v < vocab; v++) {
        double dz = scale * ((v == target) - exp(z[v] - lse));
        for (int64_t i = 0; i < width; i++) dh[i] += dz * w[v * width + i];
    }
}

void eval_linear_logprob(Eval *e, NodeId id) {
    const Type *tw = eval_type_in(e, id, 1);
    int64_t rows = eval_count(e, id), vocab = eval_dim(e, tw->dim[0]),
            width = eval_dim(e, tw->dim[1]);
    const double *h = eval_in(e, id, 0), *w = eval_in(e, id, 1), *target = eval_in(e, id, 2);
    double scale = eval_node(e, id)->attr.num, *part[EVAL_PARTS], *y = eval_out(e, id);
    for (int k = 1; k <= HEAD_P2; k++) part[k] = eval_part_out(e, id, k, rows);
    double *dh = part_wanted(e, id, HEAD_DH) ? eval_part_out(e, id, HEAD_DH, rows * width) : NULL;
    double *z = malloc(sizeof *z * (size_t)(vocab + 1));
    if (!z) abort();
    for (int64_t r = 0; r < rows; r++) {
        double most = -INFINITY, sum = 0, mean = 0, pz = 0, p2 = 0;
        int64_t best = 0, t = (int64_t)target[r];
        for (int64_t v = 0; v < vocab; v++) {
            z[v] = scale * dot(h + r * width, w + v * width, width);
            if (z[v] > most) best = v, most = z[v];
        }
        for (int64_t v = 0; v < vocab; v++) sum += exp(z[v] - most);
        double lse = most + log(sum);
        for (int64_t v = 0; v < vocab; v++) {
            double p = exp(z[v] - lse);
            mean += z[v] / (double)vocab;
            pz += p * z[v];
            p2 += p * p;
        }
        y[r] = t >= 0 && t < vocab ? z[t] - lse : 0;
        part[HEAD_LSE][r] = lse;
        part[HEAD_MEAN][r] = mean;
        part[HEAD_ENTROPY][r] = lse - pz;
        part[HEAD_HIT][r] = best == t;
        part[HEAD_P2][r] = log(p2);
        if (dh && t >= 0 && t < vocab)
            logprob_slope(dh + r * width, z, lse, w, t, vocab, width, scale);
    }
    free(z);
}

void eval_linear_logprob_bwd(Eval *e, NodeId id) {
    const Type *tw = eval_type_in(e, id, 1);
    int64_t vocab = eval_dim(e, tw->dim[0]), width = eval_dim(e, tw->dim[1]);
    int64_t rows = eval_count(e, eval_node(e, id)->in[2]);
    const double *h = eval_in(e, id, 0), *w = eval_in(e, id, 1), *target = eval_in(e, id, 2);
    const double *lse = eval_in(e, id, 3), *c = eval_in(e, id, 4);
    double scale = eval_node(e, id)->attr.num;
    double *dh = eval_out(e, id), *dw = eval_part_out(e, id, 1, vocab * width);
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = (int64_t)target[r];
        if (t < 0 || t >= vocab) continue;
        const double *x = h + r * width;
        for (int64_t v = 0; v < vocab; v++) {
            double p = exp(scale * dot(x, w + v * width, width) - lse[r]);
            double dz = c[r] * scale * ((v == t) - p);
            for (int64_t i = 0; i < width; i++) {
                dh[r * width + i] += dz * w[v * width + i];
                dw[v * width + i] += dz * x[i];
            }
        }
    }
}
