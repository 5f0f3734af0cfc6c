/* summary.c: see run.h: what a person wants to know when a run has ended. */
#include <errno.h> /* program_invocation_name */
#include <math.h>
#include <string.h>

#include "run.h"

static void print_eval(const LastEval *e) {
    fprintf(stderr, "  eval      loss %.4f", e->loss);
    if (isfinite(e->margin)) fprintf(stderr, "  margin %+.3f", e->margin);
    if (isfinite(e->accuracy)) fprintf(stderr, "  acc %.3f", e->accuracy);
    if (isfinite(e->stderror)) fprintf(stderr, " ± %.3f", e->stderror);
    fprintf(stderr, "  (step %lld)\n", (long long)e->step);
}

/* The best checkpoint; of an evaluation before this process only the one figure is known. */
static void print_best(const Run *r) {
    const LastEval *e = &r->best_eval;
    if (r->best < 0 || !has_checkpoint(r->job->run_dir, r->state.best_step)) return;
    fprintf(stderr, "  best      %s/checkpoint-%lld (eval_%s %.4f", r->job->run_dir,
            (long long)r->state.best_step, r->plan->metrics[r->best].name, r->state.best_value);
    if (e->step == r->state.best_step && e->step != r->eval.step) {
        if (r->best != 0) fprintf(stderr, ", loss %.4f", e->loss);
        if (isfinite(e->margin)) fprintf(stderr, ", margin %+.3f", e->margin);
        if (isfinite(e->accuracy)) fprintf(stderr, ", acc %.3f", e->accuracy);
    }
    fprintf(stderr, ")\n");
}

static void print_memory(const Run *r) {
    char a[32], b[32];
    format_bytes(a, (double)r->plan->arena_bytes);
    fprintf(stderr, "  memory    %s planned", a);
    if (r->total.device_memory > 0) {
        format_bytes(b, r->total.device_memory);
        fprintf(stderr, ", %s at most in use %s", b,
                strcmp(r->job->device->ops->name, "cpu") ? "on the device" : "by the process");
    }
    fputc('\n', stderr);
}

static void print_next(const Run *r) {
    const char *run = r->job->run_dir, *model = r->plan->base_path;
    const char *dpoc = program_invocation_name; /* as it was called, to be called again */
    bool adapter = file_exists(path_join(r->arena, run, "adapter"));
    fprintf(stderr, "  %-10s%s/%s", adapter ? "adapter" : "model", run,
            adapter ? "adapter" : "model");
    if (r->best_loaded) fprintf(stderr, " (of step %lld, the best)", (long long)r->state.best_step);
    fprintf(stderr, "\n  next      %s report %s -o %s/report.html\n", dpoc, run, run);
    if (model && adapter)
        fprintf(stderr, "            %s generate --model %s --adapter %s/adapter --prompt \"..\"\n",
                dpoc, model, run);
}

void summary_print(const Run *r) {
    const Totals *t = &r->total;
    if (r->job->quiet) return;
    double seconds = now_seconds() - t->started;
    char spent[32], tokens[32], rate[32];
    format_duration(spent, seconds);
    format_count(tokens, (double)t->tokens);
    format_count(rate, (double)t->tokens / seconds);
    fprintf(stderr, "%s: %lld steps in %s, %s tokens (%s a second), %.3g pairs a second\n",
            r->stopped_early ? "stopped early" : "done", (long long)t->steps, spent, tokens, rate,
            (double)t->pairs / seconds);
    if (t->steps > 0) fprintf(stderr, "  loss      %.4f -> %.4f\n", t->first_loss, t->loss);
    if (r->eval.step >= 0) print_eval(&r->eval);
    print_best(r);
    print_memory(r);
    if (t->energy > 0)
        fprintf(stderr, "  energy    %.4g kJ (%.3g Wh)\n", t->energy / 1e3, t->energy / 3600);
    print_next(r);
}
