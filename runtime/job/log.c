/* log.c: see run.h: everything a run writes down about itself, but for checkpoints. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

double run_value(const Run *r, const double *values, const char *metric) {
    int i = metric_index(r->plan, metric);
    return i < 0 ? NAN : values[i];
}

/* ---- run.json, and where metrics go ---------------------------------------------------------- */

/* Everything the run decided, so that it can be repeated. */
static bool write_run_json(const Run *r, Err *err) {
    const TrainJob *job = r->job;
    Text text = {0};
    text_add(&text, "{\n  \"version\": \"%s\",\n  \"spec\": ", VERSION);
    json_escape(&text, job->spec_path);
    text_add(&text, ",\n  \"base\": ");
    json_escape(&text, r->plan->base_path ? r->plan->base_path : "");
    text_add(&text,
             ",\n  \"plan_hash\": \"%s\",\n  \"data_hash\": \"%s\",\n  \"seed\": %llu,\n  "
             "\"steps\": %lld,\n",
             r->plan->hash ? r->plan->hash : "", job->data_hash, (unsigned long long)job->seed,
             (long long)r->steps);
    text_add(&text, "  \"device\": ");
    json_escape(&text, job->device->description);
    text_add(&text, ",\n  \"parameters\": %.0f,\n  \"trainable\": %.0f,\n  \"peak_bytes\": %lld,\n",
             r->plan->parameters_total, r->plan->parameters_trainable,
             (long long)r->plan->arena_bytes);
    int64_t neval = !job->eval_pairs ? 0 : job->eval ? job->neval : job->eval_pairs->n;
    text_add(&text, "  \"train_pairs\": %lld,\n  \"eval_pairs\": %lld,\n", (long long)r->ntrain,
             (long long)neval);
    text_add(&text, "  \"command\": %s,\n  \"data\": %s,\n  \"settings\": {", job->command,
             job->data);
    for (int i = 0; i < r->plan->nsettings; i++) {
        const Setting *s = &r->plan->settings[i];
        char number[40];
        number_text(number, s->num);
        text_add(&text, "%s\n    \"%s\": ", i ? "," : "", s->path);
        if (s->str)
            json_escape(&text, s->str);
        else
            text_add(&text, "%s", number);
    }
    text_add(&text, "\n  }\n}\n");
    bool ok = file_write(path_join(r->arena, job->run_dir, "run.json"), text.data, text.len, err);
    text_free(&text);
    return ok && file_write(path_join(r->arena, job->run_dir, "model.dpo"), job->spec_text,
                            strlen(job->spec_text), err);
}

static bool open_metrics(Run *r, bool goes_on, Err *err) {
    r->metrics = metrics_open(path_join(r->arena, r->job->run_dir, "metrics.jsonl"),
                              goes_on ? r->state.step : -1, err);
    if (!r->metrics) return false;
    r->events = tfevents_open(r->job->run_dir, metrics_wall(), err);
    if (!r->events) return false;
    metrics_mirror(r->metrics, r->events);
    return true;
}

bool log_open(Run *r, bool resumed, Err *err) {
    bool goes_on = resumed && r->state.step > 0;
    if (!write_run_json(r, err) || !open_metrics(r, goes_on, err)) return false;
    if (!samples_open(r, goes_on, err)) return false;
    if (goes_on) return true; /* the lines go on as if never broken */
    metrics_begin(r->metrics, "start");
    metrics_time(r->metrics);
    metrics_str(r->metrics, "version", VERSION);
    metrics_str(r->metrics, "plan_hash", r->plan->hash ? r->plan->hash : "");
    metrics_str(r->metrics, "data_hash", r->job->data_hash);
    metrics_str(r->metrics, "device", r->job->device->description);
    metrics_int(r->metrics, "seed", (int64_t)r->job->seed);
    metrics_int(r->metrics, "total_steps", r->steps);
    metrics_int(r->metrics, "peak_bytes", r->plan->arena_bytes);
    return metrics_end(r->metrics, err);
}

bool log_close(Run *r, Err *err) {
    bool ok = metrics_close(r->metrics, err) && metrics_close(r->samples, err);
    return tfevents_close(r->events, err) && ok;
}

/* ---- lines ----------------------------------------------------------------------------------- */

static void begin(Run *r, const char *event) {
    metrics_begin(r->metrics, event);
    metrics_int(r->metrics, "step", r->state.step);
    metrics_time(r->metrics);
    metrics_num(r->metrics, "epoch", (double)r->state.cursor / (double)r->ntrain);
}

/* FLOPs of the step: those of a full micro-batch, by the rows that were filled; what is computed
 * again to save memory is no progress. */
static double step_flops(const Run *r, const Pack *pack) {
    double rows = 0;
    for (int i = 0; i < pack->nmicro; i++) rows += (double)pack->micro[i].tokens;
    return (r->plan->flops_micro - r->plan->flops_again) * rows / (double)r->plan->bound[X_T];
}

static void log_machine(Run *r) {
    Figure figure[MAX_FIGURES];
    int n = monitor_take(r->monitor, figure);
    for (int i = 0; i < n; i++) {
        metrics_num(r->metrics, figure[i].name, figure[i].value);
        if (strcmp(figure[i].name, "gpu/energy_joules") == 0) r->total.energy += figure[i].value;
        if (strstr(figure[i].name, "/memory_used_bytes"))
            r->total.device_memory = fmax(r->total.device_memory, figure[i].value);
    }
}

static void show_step(Run *r, const Pack *pack, double lr, double norm, double seconds,
                      double mfu) {
    double margin = run_value(r, r->values, "rewards/margins"),
           accuracy = run_value(r, r->values, "rewards/accuracies");
    ProgressLine line = {.step = r->state.step,
                         .loss = r->values[0],
                         .margin = margin,
                         .accuracy = accuracy,
                         .lr = lr,
                         .grad_norm = norm,
                         .tokens_per_second = (double)pack->tokens / seconds,
                         .mfu = mfu,
                         .memory = (double)r->plan->arena_bytes,
                         .has_rewards = isfinite(margin) && isfinite(accuracy)};
    progress_step(&r->progress, &line);
    r->loss[r->ncurve] = line.loss;
    r->margin[r->ncurve++] = line.has_rewards ? margin : 0;
}

bool log_step(Run *r, const Pack *pack, double lr, double norm, double seconds, Err *err) {
    MetricsFile *m = r->metrics;
    const Plan *plan = r->plan;
    double mfu = r->promised > 0 ? step_flops(r, pack) / seconds / r->promised : NAN;
    begin(r, "step");
    metrics_num(m, "learning_rate", lr);
    metrics_num(m, "grad_norm", norm);
    for (int i = 0; i < plan->nmetrics; i++) metrics_num(m, plan->metrics[i].name, r->values[i]);
    metrics_int(m, "num_tokens", r->state.tokens);
    metrics_num(m, "tokens_per_second", (double)pack->tokens / seconds);
    metrics_num(m, "step_time_ms", seconds * 1e3);
    metrics_int(m, "memory_bytes", plan->arena_bytes);
    if (isfinite(mfu)) metrics_num(m, "mfu", mfu);
    log_machine(r);
    if (!metrics_end(m, err)) return false;
    Totals *t = &r->total;
    if (t->steps++ == 0) t->first_loss = r->values[0];
    t->loss = r->values[0];
    t->tokens += pack->tokens;
    t->pairs += r->batch;
    show_step(r, pack, lr, norm, seconds, mfu);
    return true;
}

/* Of the mean of n zeros and ones: sqrt(p (1 - p) / (n - 1)). */
static double standard_error(double share, int64_t n) {
    return n > 1 ? sqrt(share * (1 - share) / (double)(n - 1)) : NAN;
}

bool log_eval(Run *r, const Evaluation *e, double seconds, Err *err) {
    MetricsFile *m = r->metrics;
    Arena *arena = arena_new();
    double accuracy = run_value(r, e->values, "rewards/accuracies");
    r->eval = (LastEval){.step = r->state.step,
                         .loss = e->values[0],
                         .margin = run_value(r, e->values, "rewards/margins"),
                         .accuracy = accuracy,
                         .stderror = standard_error(accuracy, e->pairs)};
    begin(r, "eval");
    for (int i = 0; i < r->plan->nmetrics; i++)
        metrics_num(m, arena_printf(arena, "eval_%s", r->plan->metrics[i].name), e->values[i]);
    if (isfinite(r->eval.stderror))
        metrics_num(m, "eval_rewards/accuracies_stderr", r->eval.stderror);
    metrics_num(m, "eval_runtime", seconds);
    metrics_num(m, "eval_samples_per_second", (double)e->pairs / seconds);
    bool ok = metrics_end(m, err);
    arena_free(arena);
    if (r->job->quiet) return ok;
    progress_break(&r->progress);
    fprintf(stderr, "eval at step %lld: loss %.4f", (long long)r->eval.step, r->eval.loss);
    if (isfinite(r->eval.margin)) fprintf(stderr, "  margin %+.3f", r->eval.margin);
    if (isfinite(accuracy)) fprintf(stderr, "  acc %.3f", accuracy);
    if (isfinite(r->eval.stderror)) fprintf(stderr, " ± %.3f", r->eval.stderror);
    fprintf(stderr, "  (%lld pair%s)\n", (long long)e->pairs, e->pairs == 1 ? "" : "s");
    return ok;
}

/* ---- the end --------------------------------------------------------------------------------- */

/* metrics.jsonl as Hugging Face's log_history; NULL where it cannot be read. */
static json_t *history(const Run *r) {
    FILE *f = fopen(path_join(r->arena, r->job->run_dir, "metrics.jsonl"), "r");
    json_t *list = f ? json_array() : NULL, *line;
    while (f && (line = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL))) {
        const char *event = json_string_value(json_object_get(line, "event"));
        bool start = !event || !strcmp(event, "start");
        json_object_del(line, "event");
        json_object_del(line, "time");
        if (!start) json_array_append(list, line);
        json_decref(line);
    }
    if (f) fclose(f);
    return list;
}

/* RUN/trainer_state.json, which scripts for Hugging Face's trainer read. */
static bool write_history(const Run *r, Err *err) {
    json_t *list = history(r), *best = json_null(), *dir = json_null();
    if (!list) return true;
    if (r->state.best_step > 0) {
        best = json_real(r->state.best_value);
        dir = json_sprintf("%s/checkpoint-%lld", r->job->run_dir, (long long)r->state.best_step);
    }
    json_t *o =
        json_pack("{s:o, s:o, s:I, s:f, s:I, s:I, s:f, s:I, s:b, s:b, s:o}", "best_metric", best,
                  "best_model_checkpoint", dir, "best_global_step", (json_int_t)r->state.best_step,
                  "epoch", (double)r->state.cursor / (double)r->ntrain, "global_step",
                  (json_int_t)r->state.step, "max_steps", (json_int_t)r->steps, "num_train_epochs",
                  ceil((double)(r->steps * r->batch) / (double)r->ntrain), "train_batch_size",
                  (json_int_t)r->batch, "is_local_process_zero", 1, "is_world_process_zero", 1,
                  "log_history", list);
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS);
    bool ok = file_write(path_join(r->arena, r->job->run_dir, "trainer_state.json"), text,
                         strlen(text), err);
    free(text);
    json_decref(o);
    return ok;
}

bool log_end(Run *r, Err *err) {
    MetricsFile *m = r->metrics;
    const Totals *t = &r->total;
    double seconds = now_seconds() - t->started;
    begin(r, "end");
    metrics_num(m, "train_runtime", seconds);
    metrics_num(m, "train_samples_per_second", (double)t->pairs / seconds);
    metrics_num(m, "train_steps_per_second", (double)t->steps / seconds);
    metrics_num(m, "train_loss", r->state.loss_sum / fmax(1, (double)r->state.step));
    metrics_int(m, "num_tokens", r->state.tokens);
    if (t->energy > 0) metrics_num(m, "gpu/energy_joules_total", t->energy);
    if (r->best >= 0 && r->state.best_step > 0) {
        metrics_str(m, "best", plan_str(r->plan, "run.best"));
        metrics_int(m, "best_step", r->state.best_step);
        metrics_num(m, "best_metric", r->state.best_value);
    }
    metrics_str(m, "stopped", r->stopped_early ? "early" : "end");
    return metrics_end(m, err) && write_history(r, err);
}
