/* export_check.c: is the merged model what was trained?  Both score the same random tokens.
 *
 * In fp32 they differ by the rounding of the merged weights (unit u of the type) and by the order
 * of sums (u32 sqrt K, K the longest).  How far rounding moves a log-probability is measured: base
 * and adapter once more in bf16, where weights, inputs and outputs of every product are rounded
 * with u16 = 2^-8.  Rounding errors are independent and act linearly as long as they are small, so
 *     bound = 6 e (u + u32 sqrt K) / u16 n + u32 sqrt n |logp|
 * for n tokens; e: root mean square over the answers, per token; the last term is the sum itself.
 * Six times: e is an estimate from a few answers, of a normal variable.
 */
#include "export.h"

#include "../runtime/job/job.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAIRS = 4, SIGMAS = 6 };

typedef struct Score { /* of one answer */
    double value, base;
    int tokens;
} Score;

static int answers_of(const Pairs *pairs) {
    int n = 0;
    for (int64_t i = 0; i < pairs->n; i++) n += pairs->pair[i].rejected ? 2 : 1;
    return n;
}

/* The pairs' answers, in order: their log-probability by the policy and the reference. */
static void scores_of(const Pairs *pairs, const Evaluation *e, Score *out) {
    for (int64_t i = 0; i < e->pairs; i++) {
        const PairScore *s = &e->score[i];
        const Pair *p = &pairs->pair[i];
        *out++ = (Score){(double)s->logp_chosen, (double)s->ref_logp_chosen, p->chosen};
        if (p->rejected)
            *out++ = (Score){(double)s->logp_rejected, (double)s->ref_logp_rejected, p->rejected};
    }
}

/* Scores the pairs with a compiled Work; an exit code. */
static int score(Export *e, Work *w, const char *what, const Pairs *pairs, Score *out) {
    Evaluation result;
    if (!e->options->quiet) fprintf(stderr, "checking: %s\n", what);
    int code = work_open(w);
    if (code != EXIT_OK) return code;
    if (!evaluate(w->exec, w->plan, pairs, NULL, pairs->n, w->arena, NULL, &result, &w->err))
        return work_fail(w);
    scores_of(pairs, &result, out);
    return EXIT_OK;
}

/* The same with another setting, or over a directory that holds all. */
static int score_again(Export *e, const char *bare, const char *set, const Pairs *pairs,
                       const char *what, Score *out) {
    static const bool want[NUNIT] = {[UNIT_EVAL] = true};
    Work w;
    int code = export_work(e, &w, bare, set);
    if (code == EXIT_OK) code = work_device(&w, NULL);
    if (code == EXIT_OK) code = work_compile(&w, NULL, want);
    if (code == EXIT_OK) code = score(e, &w, what, pairs, out);
    work_close(&w);
    return code;
}

/* A directory with the base's configuration and the weights that were trained (`train base`). */
static const char *trained_model(Export *e, const char *base) {
    const char *dir = path_join(e->arena, e->part, "trained");
    const char *from[] = {path_join(e->arena, base, "config.json"),
                          path_join(e->arena, e->trained, "model.safetensors")};
    const char *name[] = {"config.json", "model.safetensors"};
    if (!dir_make(dir, &e->err)) return NULL;
    for (int i = 0; i < 2; i++) {
        char *real = realpath(from[i], NULL);
        bool ok = real && symlink(real, path_join(e->arena, dir, name[i])) == 0;
        if (!ok) fail(&e->err, EXIT_IO, "%s: cannot be linked: %s", from[i], strerror(errno));
        free(real);
        if (!ok) return NULL;
    }
    return dir;
}

static double unit_of(DType t) {
    return t == DT_f16 ? 0x1p-11 : t == DT_bf16 ? 0x1p-8 : 0x1p-24;
}

/* The longest sum of a product. */
static int64_t longest_sum(const Plan *plan) {
    int64_t k = 1;
    for (int i = 0; i < plan->nbinds; i++) k = plan->binds[i].cols > k ? plan->binds[i].cols : k;
    return k;
}

static double rms_per_token(const Score *a, const Score *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double d = (a[i].value - b[i].value) / a[i].tokens;
        sum += d * d / n;
    }
    return sqrt(sum);
}

/* One line an answer; false if one is further apart than its bound. */
static bool compare(const Score *trained, const Score *merged, int n, double per_token,
                    bool quiet) {
    double worst = 0, effect = 0;
    if (!quiet)
        fprintf(stderr,
                "check, log-probability of %d random answers:\n"
                "       trained        merged   difference        bound\n",
                n);
    for (int i = 0; i < n; i++) {
        const Score *t = &trained[i];
        double sum = unit_of(DT_f32) * sqrt((double)t->tokens) * fabs(t->value);
        double d = merged[i].value - t->value, bound = per_token * t->tokens + sum;
        worst = fmax(worst, fabs(d) / bound);
        effect = fmax(effect, fabs(t->value - t->base));
        if (!quiet)
            fprintf(stderr, "%14.6f%14.6f%13.2e%13.2e\n", t->value, merged[i].value, d, bound);
    }
    if (!quiet && isfinite(effect) && effect > 0)
        fprintf(stderr, "the adapter moves them by up to %.3g\n", effect);
    return worst <= 1;
}

/* Gives back its memory: the next model takes as much. */
static void close_device(Work *w) {
    if (w->exec) exec_close(w->exec);
    w->device->ops->close(w->device);
    w->exec = NULL;
    w->device = NULL;
}

/* All three scores, then their comparison; `full`: what was trained is this directory. */
static int check_pairs(Export *e, Work *base, const char *full, const Pairs *pairs) {
    Score trained[2 * PAIRS], rounded[2 * PAIRS], merged[2 * PAIRS];
    int n = answers_of(pairs);
    int code = full
                   ? score_again(e, full, "graph.compute=fp32", pairs, "the trained model", trained)
                   : score(e, base, "base and adapter", pairs, trained);
    close_device(base);
    if (code == EXIT_OK)
        code = score_again(e, full, "graph.compute=bf16", pairs, "the same in bf16", rounded);
    if (code == EXIT_OK)
        code = score_again(e, e->part, "graph.compute=fp32", pairs, "the merged model", merged);
    if (code != EXIT_OK) {
        fprintf(stderr,
                "the merged model could not be checked; it is left in %s (--no-check "
                "leaves the check out)\n",
                e->part);
        return code;
    }
    double sums = unit_of(DT_f32) * sqrt((double)longest_sum(base->plan));
    double units = (unit_of(e->dtype) + sums) / unit_of(DT_bf16);
    double bound = SIGMAS * rms_per_token(trained, rounded, n) * units;
    if (compare(trained, merged, n, bound, e->options->quiet)) return EXIT_OK;
    fail(&e->err, EXIT_NUMERIC, "the merged model does not give what %s; it is left in %s",
         full ? "the trained one gives" : "base and adapter give", e->part);
    return export_fail(e);
}

int export_check(Export *e, Work *base, const MergeReport *report) {
    if (!base->plan->fits) {
        char need[32];
        format_bytes(need, (double)base->plan->smallest_bytes);
        fprintf(stderr, "warning: not checked: evaluating the model takes %s here\n", need);
        return EXIT_OK;
    }
    if (report->overflow.elements) {
        fprintf(stderr, "warning: not checked: values were cut, so the models differ\n");
        return EXIT_OK;
    }
    const char *full = e->trained ? trained_model(e, work_model_dir(base)) : NULL;
    if (e->trained && !full) return export_fail(e);
    Pairs *pairs = pairs_random(base->plan, PAIRS, 1);
    for (int i = 0; i < PAIRS && spec_one_sided(base->spec); i++) pairs->pair[i].rejected = 0;
    int code = check_pairs(e, base, full, pairs);
    e->keep = code != EXIT_OK;
    if (full) remove_tree(full);
    pairs_free(pairs);
    return code;
}
