/* bench_table.c: what `bench` found, for people: as text and as Markdown. */
#include "bench.h"

#include <math.h>
#include <string.h>

enum { SHOWN_KERNELS = 24 };

double entry_tokens(const Entry *e) {
    return 1e3 * (double)e->pack->tokens / e->time.median;
}

double entry_share(const Bench *b, const Entry *e) {
    return b->rates.flops > 0 ? e->flops / (1e-3 * e->time.median) / b->rates.flops : 0;
}

static double bytes_a_call(const StepTime *k) {
    return k->bytes / (double)(k->calls > 0 ? k->calls : 1);
}

double kernel_share(const Bench *b, const StepTime *k) {
    double ceiling = rates_ceiling(&b->rates, bytes_a_call(k));
    double compute = b->rates.flops > 0 ? k->flops / b->rates.flops : 0;
    double memory = ceiling > 0 ? k->bytes / ceiling : 0;
    return k->seconds > 0 ? fmax(compute, memory) / k->seconds : 0;
}

bool kernel_in_cache(const Bench *b, const StepTime *k) {
    return rates_ceiling(&b->rates, bytes_a_call(k)) > 1.2 * rates_ceiling(&b->rates, INFINITY);
}

/* ---- text ---------------------------------------------------------------------------------- */

static const char *figure_value(const Context *c, const char *name, char out[40]) {
    for (int i = 0; i < c->nfigures; i++)
        if (!strcmp(c->figure[i].name, name)) {
            snprintf(out, 40, "%.4g", c->figure[i].value);
            return out;
        }
    return NULL;
}

static void print_context(const Bench *b, FILE *out) {
    const Context *c = &b->context;
    char x[40];
    fprintf(out, "dpoc " VERSION ", %s, load %.2f on %ld processors", c->system, c->load[0],
            c->cpus);
    if (isfinite(c->mhz)) fprintf(out, ", %.0f MHz", c->mhz);
    if (figure_value(c, "gpu/sm_clock_mhz", x)) fprintf(out, "; GPU %s MHz", x);
    if (figure_value(c, "gpu/memory_clock_mhz", x)) fprintf(out, ", memory %s MHz", x);
    if (figure_value(c, "gpu/power_watts", x)) fprintf(out, ", %s W", x);
    if (figure_value(c, "gpu/temperature_c", x)) fprintf(out, ", %s C", x);
    fprintf(out,
            "\nin this run: matrix product (%lld cubed) %.1f GFLOP/s, copy in memory %.1f GB/s",
            (long long)b->rates.side, b->rates.flops * 1e-9, b->rates.bandwidth * 1e-9);
    if (b->rates.nlevels)
        fprintf(out, ", in cache up to %.1f GB/s", 1e-9 * rates_ceiling(&b->rates, 0));
    fprintf(out, "\n%d rounds, %s", b->rounds,
            b->in_turn ? "each variant loaded twice for half of them" : "interleaved");
    for (int i = 0; i < b->n; i++)
        if (b->entry[i].cached && !b->entry[i].idle)
            fprintf(out, "\n%s: the reference is cached: a step from the second epoch or run on",
                    b->entry[i].name);
    fputs("\n\n", out);
}

static const char *bytes_text(char out[32], double bytes) {
    format_bytes(out, bytes);
    return out;
}

static void print_agreement(const Bench *b, FILE *out) {
    const Entry *first = &b->entry[0];
    double loss = 0, grads = 0;
    int n = 0;
    for (int i = 1; i < b->n; i++) {
        const Entry *e = &b->entry[i];
        if (e->idle || !e->must_agree) continue;
        loss = fmax(loss, e->loss_apart);
        if (!isnan(e->grad_apart)) grads = fmax(grads, e->grad_apart);
        n++;
    }
    fprintf(out, "%s: loss %.7f, gradient norm %.6g\n", first->name, first->loss, first->grad_norm);
    if (n)
        fprintf(out,
                "%d that must compute the same: losses apart by at most %.2g, gradients by %.2g "
                "(rounding explains %.2g)\n",
                n, loss, grads, first->tolerance);
    for (int i = 1; i < b->n; i++) {
        const Entry *e = &b->entry[i];
        if (e->idle || e->must_agree) continue;
        fprintf(out, "%s computes something else: loss %.7f, gradient norm %.6g\n", e->name,
                e->loss, e->grad_norm);
    }
    fputc('\n', out);
}

static void print_variants(const Bench *b, FILE *out) {
    fprintf(out, "%-18s %10s %21s %19s %10s %10s %8s\n", "variant", "median ms", "min .. max",
            "mean +- deviation", "tokens/s", "peak", "roofline");
    for (int i = 0; i < b->n; i++) {
        const Entry *e = &b->entry[i];
        if (e->idle) continue;
        const Summary *t = &e->time;
        char peak[32], range[40], mean[40];
        snprintf(range, sizeof range, "%.2f .. %.2f", t->min, t->max);
        snprintf(mean, sizeof mean, "%.2f +- %.2f", t->mean, t->deviation);
        fprintf(out, "%-18s %10.2f %21s %19s %10.0f %10s %7.1f%%\n", e->name, t->median, range,
                mean, entry_tokens(e), bytes_text(peak, (double)e->w.plan->arena_bytes),
                100 * entry_share(b, e));
    }
    fputc('\n', out);
}

static void chance_text(double p, char out[24]) {
    if (p < 0.001)
        snprintf(out, 24, "p < 0.001");
    else
        snprintf(out, 24, "p = %.2g", p);
}

static void print_ratios(const Bench *b, FILE *out) {
    for (int i = 1; i < b->n && !b->effects; i++) { /* effects have a table of them */
        const Entry *e = &b->entry[i];
        const Ratio *r = &e->ratio;
        char p[24];
        chance_text(r->p, p);
        fprintf(out, "%s ran in %.3f of %s's time (%.3f .. %.3f, %.0f %% sure): ", e->name,
                r->median, b->entry[0].name, r->low, r->high, 100 * r->confidence);
        if (r->p > 0.05)
            fprintf(out, "no difference shown, %s\n", p);
        else
            fprintf(out, "%s, %s\n", r->median < 1 ? "faster" : "slower", p);
    }
    for (int i = 0; i < b->n; i++) {
        const Entry *e = &b->entry[i];
        if (e->idle || !(e->old.median > 0)) continue;
        fprintf(out, "%s ran in %.3f of its earlier time, %.2f ms", e->name,
                e->time.median / e->old.median, e->old.median);
        char p[24];
        chance_text(e->old.p, p);
        if (!isnan(e->old.p)) fprintf(out, ", %s", p);
        fprintf(out, "%s\n", e->old.regressed ? ": a regression" : "");
    }
}

static double part(double x, double of) {
    return of > 0 ? x / of : 1;
}

static void print_effects(const Bench *b, FILE *out) {
    const Entry *first = &b->entry[0];
    char all[32];
    fprintf(out, "\neffects: what one pass less costs, as a multiple of all on\n");
    fprintf(out, "%-18s %21s %8s %8s %8s %8s %8s %10s %10s\n", "", "time", "FLOPs", "executed",
            "bytes", "launches", "peak", "loss", "gradients");
    for (int i = 1; i < b->n; i++) {
        const Entry *e = &b->entry[i];
        if (e->idle) continue;
        char time[40];
        snprintf(time, sizeof time, "%.2f (%.2f .. %.2f)", e->ratio.median, e->ratio.low,
                 e->ratio.high);
        fprintf(out, "%-18s %21s %8.3f %8.3f %8.3f %8.3f %8.3f %10.1g %10.1g\n", e->name, time,
                part(e->flops, first->flops), part(e->all.flops, first->all.flops),
                part(e->all.bytes, first->all.bytes),
                part((double)e->all.launches, (double)first->all.launches),
                part((double)e->w.plan->arena_bytes, (double)first->w.plan->arena_bytes),
                e->loss_apart, e->grad_apart);
    }
    fprintf(out, "%s: %.2f ms, %.4g GFLOP of the algorithm, %.4g executed, %s, %lld launches\n",
            first->name, first->time.median, 1e-9 * first->flops, 1e-9 * first->all.flops,
            bytes_text(all, first->all.bytes), (long long)first->all.launches);
    for (int i = 1; i < b->n; i++)
        if (b->entry[i].idle) fprintf(out, "%s: the same plan, not run\n", b->entry[i].name);
}

static void print_kernels(const Bench *b, const Entry *e, FILE *out) {
    fprintf(out, "\n%s, by kernel:\n%-44s %6s %9s %9s %9s %9s %9s %9s\n", e->name, "", "calls",
            "ms/step", "GFLOP", "again", "GFLOP/s", "GB/s", "roofline");
    double sum = 0;
    for (int i = 0; i < e->nkernels; i++) sum += e->kernel[i].seconds;
    for (int i = 0; i < e->nkernels && i < SHOWN_KERNELS; i++) {
        const StepTime *k = &e->kernel[i];
        double per = k->seconds > 0 ? 1e-9 / k->seconds : 0;
        fprintf(out, "%-44.44s %6lld %9.3f %9.3g %9.3g %9.1f %9.1f %8.1f%%%s\n", k->label,
                (long long)k->calls, 1e3 * k->seconds, 1e-9 * k->flops, 1e-9 * k->again,
                k->flops * per, k->bytes * per, 100 * kernel_share(b, k),
                kernel_in_cache(b, k) ? " c" : "");
    }
    fprintf(out, "%-44s %6lld %9.3f %9.3g %9.3g\n", "all, one after the other",
            (long long)e->all.launches, 1e3 * sum, 1e-9 * e->all.flops, 1e-9 * e->all.again);
    fputs(
        "again: of GFLOP, what is computed again, beyond the algorithm.  roofline: the least time "
        "over the\ntime taken, where the least is the longer of FLOPs at the rate of products and "
        "bytes at the rate of a\nworking set as large (c: in cache); both are the best seen in "
        "this "
        "run.\n",
        out);
    if (b->beaten > 1)
        fprintf(out, "A kernel was %.0f %% faster than the probes, and is the ceiling itself.\n",
                100 * (b->beaten - 1));
}

void bench_table(const Bench *b, FILE *out) {
    fprintf(out, "%s\n", b->device);
    print_context(b, out);
    print_agreement(b, out);
    print_variants(b, out);
    print_ratios(b, out);
    if (b->effects) print_effects(b, out);
    print_kernels(b, &b->entry[0], out);
}

/* ---- Markdown ------------------------------------------------------------------------------ */

void bench_markdown(const Bench *b, FILE *out) {
    char peak[32], p[24];
    fprintf(out,
            "| variant | median ms | min .. max | mean ± σ | of %s's time | p | FLOPs | executed "
            "| bytes | launches | peak | tokens/s | roofline | loss |\n"
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
            b->entry[0].name);
    for (int i = 0; i < b->n; i++) {
        const Entry *e = &b->entry[i];
        if (e->idle) continue;
        chance_text(e->ratio.p, p);
        fprintf(out, "| %s%s | %.2f | %.2f .. %.2f | %.2f ± %.2f | ", e->name,
                e->cached ? " (from the second epoch or run)" : "", e->time.median, e->time.min,
                e->time.max, e->time.mean, e->time.deviation);
        if (i == 0)
            fputs("1 | ", out);
        else
            fprintf(out, "%.3f (%.3f .. %.3f) | %s", e->ratio.median, e->ratio.low, e->ratio.high,
                    p + 2 + 2 * (p[2] == '='));
        fprintf(out, " | %.4g | %.4g | %.4g | %lld | ", e->flops, e->all.flops, e->all.bytes,
                (long long)e->all.launches);
        fprintf(out, "%s | %.0f | %.1f %% | %.7f |\n",
                bytes_text(peak, (double)e->w.plan->arena_bytes), entry_tokens(e),
                100 * entry_share(b, e), e->loss);
    }
    fprintf(out, "\n%s; %d rounds%s; product %.1f GFLOP/s, copy %.1f GB/s in the same run.\n",
            b->device, b->rounds,
            b->in_turn ? ", variants loaded one after another" : ", interleaved",
            1e-9 * b->rates.flops, 1e-9 * b->rates.bandwidth);
}

/* ---- doubts -------------------------------------------------------------------------------- */

void bench_warn(const Bench *b, FILE *out) {
    const Context *c = &b->context;
    for (int i = 0; i < b->n; i++) {
        const Entry *e = &b->entry[i];
        if (e->idle || e->time.n < 3) continue;
        if (e->time.slow_start)
            fprintf(out, "warning: %s: the first timed run took %.2f ms, the median is %.2f\n",
                    e->name, e->ms[0], e->time.median);
        else if (e->time.outliers)
            fprintf(out,
                    "warning: %s: %d of %d runs are outliers (up to %.2f ms, the median is %.2f): "
                    "other programs?\n",
                    e->name, e->time.outliers, e->time.n, e->time.max, e->time.median);
    }
    if (c->load[0] > 0.5 * (double)c->cpus)
        fprintf(out, "warning: the load average was %.2f on %ld processors before this began\n",
                c->load[0], c->cpus);
    for (int i = 0; i < c->nfigures; i++)
        if (!strcmp(c->figure[i].name, "gpu/throttled") && c->figure[i].value > 0)
            fprintf(out,
                    "warning: the GPU's clocks were held down by heat or power in %.0f %% of "
                    "the samples\n",
                    100 * c->figure[i].value);
    if (b->stopped) fprintf(out, "warning: stopped after %d rounds\n", b->rounds);
}
