/* bench_check.c: whether variants compute the same: a faster one that does not has won nothing. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_GRADS = 1 << 28 }; /* compared one by one up to 1 GiB of them */

/* The gradients of the last step, malloc; NULL with *n = 0: none, or too many. */
static float *read_grads(Work *w, int64_t *n, bool *ok) {
    int buf = plan_buf(w->plan, "grads");
    int64_t bytes = buf < 0 ? 0 : w->plan->bufs[buf].bytes;
    *n = 0;
    if (bytes == 0 || bytes / 4 > MOST_GRADS) return NULL;
    float *grads = malloc((size_t)bytes);
    if (!grads) return NULL;
    *n = bytes / 4;
    *ok = exec_read(w->exec, "grads", grads, (size_t)bytes, &w->err);
    return grads;
}

/* |x - y| / |y|, of vectors. */
static double apart(const float *x, const float *y, int64_t n) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)y[i];
        difference += d * d;
        norm += (double)y[i] * (double)y[i];
    }
    if (difference == 0) return 0;
    return norm > 0 ? sqrt(difference / norm) : INFINITY;
}

static double relative(double x, double y) {
    return x == y ? 0 : fabs(x - y) / fabs(y);
}

/* A value on its way through d steps is rounded d times, each time by up to u relative: as
 * roundings are independent, that is u sqrt(d) in the end.  An answer of n tokens sums as many such
 * log-probabilities: u sqrt(d n).  Steps of the whole program stand for d, of which one value sees
 * a part, so gradients, which go through it twice, are covered.  Beyond a hundredth nothing agrees,
 * however coarse the numbers. */
static double tolerance_of(const Entry *e) {
    const char *compute = spec_str(e->w.spec, "graph.compute");
    bool coarse = !strcmp(compute, "bf16") ||
                  (!strcmp(compute, "auto") && !strncmp(e->w.plan->device, "sm_", 3));
    double unit = ldexp(1, coarse ? -9 : -24);
    double steps = plan_program(e->w.plan, "micro")->nsteps;
    double pairs = spec_num(e->w.spec, "run.batch");
    double answer = (double)(e->pack->chosen_tokens + e->pack->rejected_tokens) / pairs;
    return fmin(0.01, unit * sqrt(steps * fmax(1, answer)));
}

int bench_outcome(Entry *e, Entry *first) {
    Work *w = &e->w;
    float norm = 0;
    bool ok = plan_buf(w->plan, "grad_norm") < 0 ||
              exec_read(w->exec, "grad_norm", &norm, sizeof norm, &w->err);
    e->grad_norm = (double)norm;
    e->tolerance = tolerance_of(e);
    int64_t n = 0;
    float *grads = ok ? read_grads(w, &n, &ok) : NULL;
    if (!ok) {
        free(grads);
        return work_fail(w);
    }
    e->loss_apart = relative(e->loss, first->loss);
    e->grad_apart = NAN;
    if (e == first) {
        first->grads = grads;
        first->ngrads = n;
        e->grad_apart = 0;
        return EXIT_OK;
    }
    bool same = w->plan->parameters_trainable == first->w.plan->parameters_trainable;
    if (same && grads && n == first->ngrads)
        e->grad_apart = apart(grads, first->grads, n);
    else if (same)
        e->grad_apart = relative(e->grad_norm, first->grad_norm);
    free(grads);
    return EXIT_OK;
}

void bench_draws(Entry *e, const Entry *first) {
    int n;
    const AdapterSpec *adapter = spec_adapters(e->w.spec, &n);
    bool drops = false;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < adapter[i].ntarget; k++) drops |= adapter[i].target[k].dropout > 0;
    if (drops && spec_on(e->w.spec, "graph.prefix") != spec_on(first->w.spec, "graph.prefix"))
        e->must_agree = false;
}

int bench_agree(const Bench *b) {
    int code = EXIT_OK;
    const Entry *first = &b->entry[0];
    for (int i = 0; i < b->n; i++) {
        const Entry *e = &b->entry[i];
        if (e->idle) continue;
        if (!isfinite(e->loss) || !isfinite(e->grad_norm)) {
            fprintf(stderr, "dpoc: error: %s: loss %g, gradient norm %g\n", e->name, e->loss,
                    e->grad_norm);
            code = EXIT_NUMERIC;
        } else if (e->unsteady) {
            fprintf(stderr, "dpoc: error: %s: the same step on the same weights had another loss\n",
                    e->name);
            code = EXIT_NUMERIC;
        }
        const double most = e->tolerance;
        if (!e->must_agree || (e->loss_apart <= most && !(e->grad_apart > most))) continue;
        fprintf(stderr,
                "dpoc: error: %s must compute what %s does: loss %.9g and %.9g, apart by %.2g; "
                "gradients by %.2g; rounding explains %.2g\n",
                e->name, first->name, e->loss, first->loss, e->loss_apart, e->grad_apart, most);
        code = EXIT_NUMERIC;
    }
    return code;
}
