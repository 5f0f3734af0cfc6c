/* losses.h: the losses of models/objectives as formulas in C, from the papers and TRL's code, over
 * the summed log-probabilities of a batch; never from the .dpo files. */
#ifndef NUM_LOSSES_H
#define NUM_LOSSES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compiler/front.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define die(...) (print_error(__VA_ARGS__), print_error("\n"), _fail(__FILE__, __LINE__))

enum { PAIRS = 24, TOKENS = 1200 };

typedef struct Data { /* the tokens of all answers */
    int p, r;
    double logp[2][TOKENS], p2[TOKENS]; /* by model; log sum p^2 of the policy */
    double seq[TOKENS], place[TOKENS], len[2 * PAIRS];
    const Spec *spec;
    double scale; /* of the parameters */
} Data;

typedef struct Sums { /* what the formulas are made of, by side and pair */
    double lp[2][PAIRS], rf[2][PAIRS], len[2][PAIRS];
    double trust[2][PAIRS];   /* mean of logp - log sum p^2, policy */
    double near[2][2][PAIRS]; /* by model: the first min(|w|,|l|) tokens */
    double tokens[2];         /* of all answers of a side */
    int p;
    const Data *d;
    const struct Sums *held; /* what `stop` takes its values from */
} Sums;

static Sums sums_of(const Data *d) {
    Sums s = {.p = d->p, .d = d};
    for (int r = 0; r < d->r; r++) {
        int q = (int)d->seq[r], i = q / 2, side = q % 2;
        if (q < 0) continue;
        bool near = d->place[r] < fmin(d->len[2 * i], d->len[2 * i + 1]);
        s.len[side][i]++;
        s.tokens[side]++;
        s.lp[side][i] += d->logp[0][r];
        s.rf[side][i] += d->logp[1][r];
        s.trust[side][i] += (d->logp[0][r] - d->p2[r]) / d->len[q];
        for (int m = 0; m < 2; m++) s.near[m][side][i] += near ? d->logp[m][r] : 0;
    }
    return s;
}

static double par(const Sums *s, const char *name) {
    const Spec *spec = s->d->spec;
    for (int i = 0; i < spec->nparams; i++)
        if (!strcmp(spec->params[i].name, name))
            return spec_num(spec, spec->params[i].path) * s->d->scale;
    die("no parameter %s", name);
    return NAN;
}

/* ---- the formulas ---------------------------------------------------------------------------- */

static double ls(double x) { /* log sigmoid */
    return fmin(x, 0) - log1p(exp(-fabs(x)));
}
static double sg(double x) {
    return x > 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}
static double smooth(double u, double e) {
    return -(1 - e) * ls(u) - e * ls(-u);
}
static double square(double x) {
    return x * x;
}

typedef struct One { /* a pair: log-ratios, policy alone, lengths, beta */
    const Sums *s;
    double rw, rl, w, l, nw, nl, b;
    double u; /* b (rw - rl) */
    int i;
} One;

static double f_dpo(const One *o) {
    return -ls(o->u);
}
static double f_cdpo(const One *o) {
    return smooth(o->u, par(o->s, "smoothing"));
}
static double f_robust(const One *o) {
    double e = par(o->s, "smoothing");
    return (-(1 - e) * ls(o->u) + e * ls(-o->u)) / (1 - 2 * e);
}
static double f_hinge(const One *o) {
    return fmax(0, 1 - o->u);
}
static double f_ipo(const One *o) {
    return square(o->rw / o->nw - o->rl / o->nl - 1 / (2 * o->b));
}
static double f_exo(const One *o) {
    double e = par(o->s, "smoothing");
    return sg(o->u) * (ls(o->u) - log1p(-e)) + sg(-o->u) * (ls(-o->u) - log(e));
}
static double f_nca(const One *o) {
    return -ls(o->b * o->rw) - 0.5 * ls(-o->b * o->rw) - 0.5 * ls(-o->b * o->rl);
}
static double f_bco(const One *o) {
    return -ls(o->b * o->rw) - ls(-o->b * o->rl);
}
static double f_sppo(const One *o) {
    return square(o->rw - 1 / (2 * o->b)) + square(o->rl + 1 / (2 * o->b));
}
static double f_apo_zero(const One *o) {
    return 1 - sg(o->b * o->rw) + sg(o->b * o->rl);
}
static double f_apo_down(const One *o) {
    return sg(o->b * o->rw) + 1 - sg(o->u);
}
static double f_discopop(const One *o) {
    double m = sg(o->u / par(o->s, "tau"));
    return (1 - m) * -ls(o->u) + (m > 0 ? m * exp(-o->u) : 0);
}
static double f_norm(const One *o) {
    return -ls(o->b * (o->rw / o->nw - o->rl / o->nl));
}
static double f_forward_kl(const One *o) { /* TRL's has no bound: it is infinite there */
    return -ls(o->b * (-exp(fmin(-o->rw, 80)) + exp(fmin(-o->rl, 80))));
}
static double f_js(const One *o) {
    return -ls(o->b * (ls(o->rw) - ls(o->rl)));
}
static double f_alpha(const One *o) {
    double a = par(o->s, "alpha");
    double sw = exp(fmin((a - 1) * o->rw, 80)) / (a - 1);
    double sl = exp(fmin((a - 1) * o->rl, 80)) / (a - 1);
    return -ls(o->b * (sw - sl));
}
static double f_reference_free(const One *o) {
    return -ls(o->b * (o->w - o->l));
}
static double f_dpop(const One *o) {
    return -ls(o->u - o->b * par(o->s, "lambda") * fmax(0, -o->rw));
}
static double f_rdpo(const One *o) {
    return -ls(o->u - par(o->s, "alpha") * (o->nw - o->nl));
}
static double f_simpo(const One *o) {
    return -ls(o->b * (o->w / o->nw - o->l / o->nl) - par(o->s, "gamma"));
}
static double f_alphapo(const One *o) {
    double a = par(o->s, "alpha");
    double w = (1 - exp(fmin(-a * o->w / o->nw, 80))) / a;
    double l = (1 - exp(fmin(-a * o->l / o->nl, 80))) / a;
    return -ls(o->b * (w - l) - par(o->s, "gamma"));
}
static double f_orpo(const One *o) {
    double w = fmin(o->w / o->nw, -1e-6), l = fmin(o->l / o->nl, -1e-6);
    return -o->w / o->nw - o->b * ls(w - l - log1p(-exp(w)) + log1p(-exp(l)));
}
static double f_cpo_hinge(const One *o) {
    return fmax(0, 1 - o->b * (o->w - o->l));
}
static double f_cpo_ipo(const One *o) {
    return square(o->w / o->nw - o->l / o->nl - 1 / (2 * o->b));
}
static double f_slic(const One *o) {
    return fmax(0, par(o->s, "delta") - o->w + o->l);
}
static double f_ld(const One *o) {
    double r[2], a = par(o->s, "alpha");
    for (int k = 0; k < 2; k++)
        r[k] = a * (o->s->lp[k][o->i] - o->s->rf[k][o->i]) +
               (1 - a) * (o->s->near[0][k][o->i] - o->s->near[1][k][o->i]);
    return -ls(o->b * (r[0] - r[1]));
}
static double f_mpo(const One *o) {
    return par(o->s, "preference") * f_dpo(o) + par(o->s, "quality") * f_bco(o);
}

/* ---- those that cross pairs ------------------------------------------------------------------ */

static One one(const Sums *s, int i) {
    bool has = s->d->spec->nparams && strcmp(s->d->spec->params[0].name, "delta");
    One o = {.s = s, .i = i, .b = has ? par(s, "beta") : 1};
    o.w = s->lp[0][i];
    o.l = s->lp[1][i];
    o.rw = o.w - s->rf[0][i];
    o.rl = o.l - s->rf[1][i];
    o.nw = s->len[0][i];
    o.nl = s->len[1][i];
    o.u = o.b * (o.rw - o.rl);
    return o;
}

/* The mean of a pair's two log-ratios, held still. */
static double held_reward(const Sums *s, int i) {
    const Sums *h = s->held;
    return (h->lp[0][i] - h->rf[0][i] + h->lp[1][i] - h->rf[1][i]) / 2;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double sorted_loss(const Sums *s, double *x, double *y) {
    double sum = 0;
    qsort(x, (size_t)s->p, sizeof *x, ascending);
    qsort(y, (size_t)s->p, sizeof *y, ascending);
    for (int i = 0; i < s->p; i++)
        sum += smooth(par(s, "beta") * (x[i] - y[i]), par(s, "smoothing")) / s->p;
    return sum;
}
static double b_aot(const Sums *s) {
    double x[PAIRS], y[PAIRS];
    for (int i = 0; i < s->p; i++) {
        x[i] = s->lp[0][i] - s->lp[1][i];
        y[i] = s->rf[0][i] - s->rf[1][i];
    }
    return sorted_loss(s, x, y);
}
static double b_aot_unpaired(const Sums *s) {
    double x[PAIRS], y[PAIRS];
    for (int i = 0; i < s->p; i++) {
        x[i] = s->lp[0][i] - s->rf[0][i];
        y[i] = s->lp[1][i] - s->rf[1][i];
    }
    return sorted_loss(s, x, y);
}
static double b_kto_pair(const Sums *s) {
    double kl[2] = {0, 0}, sum = 0;
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < s->p; i++) kl[k] += (s->lp[k][i] - s->rf[k][i]) / s->p;
        kl[k] = fmax(0, kl[k]);
    }
    for (int i = 0; i < s->p; i++) {
        One o = one(s, i);
        sum += 1 - sg(o.b * (o.rw - kl[1])) + 1 - sg(o.b * (kl[0] - o.rl));
    }
    return sum / (2 * s->p);
}
static double b_bco_shift(const Sums *s) {
    double shift = 0, sum = 0;
    for (int i = 0; i < s->p; i++) shift += par(s, "beta") * held_reward(s, i) / s->p;
    for (int i = 0; i < s->p; i++) {
        One o = one(s, i);
        sum += -ls(o.b * o.rw - shift) - ls(-(o.b * o.rl - shift));
    }
    return sum / s->p;
}
static double b_sft(const Sums *s) { /* per token: TRL's nll_loss */
    double sum = 0;
    for (int i = 0; i < s->p; i++) sum -= s->lp[0][i];
    return sum / s->tokens[0];
}

/* What a weight is made of: TRL's before 0.29 stops at 1. */
static double weight_of(const Sums *s, int i, bool old) {
    double w = exp(s->held->trust[0][i] + s->held->trust[1][i]);
    return old ? fmin(w, 1) : w;
}

/* ---- the table ------------------------------------------------------------------------------- */

typedef enum Reward { RATIO, POLICY, MEAN, SCALED, BENT, NONE } Reward;

static const struct Loss {
    const char *name;
    double (*pair)(const One *);   /* a loss per pair, */
    double (*batch)(const Sums *); /* or of all */
    /* factors of the pairs' mean and of the chosen tokens' nll; NAN: the parameter alpha, slic's
     * lambda, mpo's generation */
    double dpo, nll;
    Reward reward;
    bool coupled;
} losses[] = {
    {"alphapo", f_alphapo, NULL, 1, 0, BENT, false},
    {"aot", NULL, b_aot, 1, 0, RATIO, true},
    {"aot_unpaired", NULL, b_aot_unpaired, 1, 0, RATIO, true},
    {"apo_down", f_apo_down, NULL, 1, 0, RATIO, false},
    {"apo_zero", f_apo_zero, NULL, 1, 0, RATIO, false},
    {"bco", f_bco, NULL, 1, 0, RATIO, false},
    {"bco_shift", NULL, b_bco_shift, 1, 0, RATIO, true},
    {"cdpo", f_cdpo, NULL, 1, 0, RATIO, false},
    {"cpo", f_reference_free, NULL, 1, NAN, POLICY, false},
    {"cpo_hinge", f_cpo_hinge, NULL, 1, NAN, POLICY, false},
    {"cpo_ipo", f_cpo_ipo, NULL, 1, NAN, MEAN, false},
    {"cpo_simpo", f_simpo, NULL, 1, NAN, MEAN, false},
    {"discopop", f_discopop, NULL, 1, 0, RATIO, false},
    {"dpo", f_dpo, NULL, 1, 0, RATIO, false},
    {"dpo_alpha", f_alpha, NULL, 1, 0, RATIO, false},
    {"dpo_forward_kl", f_forward_kl, NULL, 1, 0, RATIO, false},
    {"dpo_js", f_js, NULL, 1, 0, RATIO, false},
    {"dpo_reference_free", f_reference_free, NULL, 1, 0, POLICY, false},
    {"dpop", f_dpop, NULL, 1, 0, RATIO, false},
    {"exo", f_exo, NULL, 1, 0, RATIO, false},
    {"hinge", f_hinge, NULL, 1, 0, RATIO, false},
    {"ipo", f_ipo, NULL, 1, 0, RATIO, false},
    {"kto_pair", NULL, b_kto_pair, 1, 0, RATIO, true},
    {"ld_dpo", f_ld, NULL, 1, 0, SCALED, false},
    {"mpo", f_mpo, NULL, 1, NAN, RATIO, false},
    {"nca", f_nca, NULL, 1, 0, RATIO, false},
    {"orpo", f_orpo, NULL, 1, 0, MEAN, false},
    {"rdpo", f_rdpo, NULL, 1, 0, RATIO, false},
    {"robust", f_robust, NULL, 1, 0, RATIO, false},
    {"rpo", f_dpo, NULL, 1, NAN, RATIO, false},
    {"rpo_old", f_dpo, NULL, NAN, 1, RATIO, false},
    {"sft", NULL, b_sft, 1, 0, NONE, false},
    {"sigmoid_norm", f_norm, NULL, 1, 0, RATIO, false},
    {"simpo", f_simpo, NULL, 1, 0, MEAN, false},
    {"slic", f_slic, NULL, 1, NAN, POLICY, false},
    {"sppo", f_sppo, NULL, 1, 0, RATIO, false},
    {"wpo", f_dpo, NULL, 1, 0, RATIO, false},
    {"wpo_old", f_dpo, NULL, 1, 0, RATIO, false},
};

static double factor(const Sums *s, const struct Loss *loss, double x) {
    if (!isnan(x)) return x;
    return par(s, !strcmp(loss->name, "slic")  ? "lambda"
                  : !strcmp(loss->name, "mpo") ? "generation"
                                               : "alpha");
}

static double formula(const struct Loss *loss, const Data *d, const Sums *held) {
    Sums s = sums_of(d);
    s.held = held ? held : &s;
    if (loss->batch) return loss->batch(&s);
    bool weighted = !strncmp(loss->name, "wpo", 3);
    double sum = 0, nll = factor(&s, loss, loss->nll);
    for (int i = 0; i < s.p; i++) {
        One o = one(&s, i);
        sum += loss->pair(&o) * (weighted ? weight_of(&s, i, loss->name[3]) : 1) / s.p;
    }
    return factor(&s, loss, loss->dpo) * sum + (nll != 0 ? nll * b_sft(&s) : 0);
}

static double reward(const struct Loss *loss, const Sums *s, int side, int i) {
    One o = one(s, i);
    double lp = side ? o.l : o.w, n = side ? o.nl : o.nw, ratio = side ? o.rl : o.rw, a;
    switch (loss->reward) {
    case POLICY:
        return o.b * lp;
    case MEAN:
        return o.b * lp / n;
    case BENT:
        a = par(s, "alpha");
        return o.b * (1 - exp(fmin(-a * lp / n, 80))) / a;
    case SCALED:
        a = par(s, "alpha");
        return o.b * (a * ratio + (1 - a) * (s->near[0][side][i] - s->near[1][side][i]));
    default:
        return o.b * ratio;
    }
}

#endif
