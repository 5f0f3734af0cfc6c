/* train.c: the main job: optimizer steps over an endless, reproducible sequence of pairs.
 *
 * One step: program "step" once, "micro" for each micro-batch, "update" once; then one line of
 * metrics.
 * Everything that decides a step follows from (seed, cursor), so a resumed run is the unbroken one.
 * */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "job.h"
#include "schedule.h"

typedef struct Batch { /* the pairs of one step, packed */
    Arena *arena;
    Pack *pack; /* NULL: they cannot be, as err says */
    Err err;
} Batch;

typedef struct Run { /* a job under way */
    const TrainJob *job;
    const Plan *plan;
    TrainState state;
    Epoch epoch;
    Batch next; /* packed while the device works; arena NULL: not yet */
    Arena *arena;
    MetricsFile *metrics;
    Progress progress;
    double *values;        /* of plan->metrics */
    double *loss, *margin; /* of this process's steps, for the curves at the end */
    int ncurve;
    int64_t steps, batch, ntrain;
} Run;

static int64_t total_steps(const Plan *plan, int64_t ntrain, int64_t batch) {
    int64_t steps = (int64_t)plan_num(plan, "run.steps");
    if (steps > 0) return steps;
    double items = (double)ntrain * plan_num(plan, "run.epochs");
    return (int64_t)ceil(items / (double)batch);
}

static double rate_of(const Run *r, int64_t step) {
    const char *name = plan_str(r->plan, "run.schedule");
    double warmup = plan_num(r->plan, "run.warmup");
    if (warmup < 1) warmup = ceil(warmup * (double)r->steps); /* a share, as warmup_ratio */
    double factor = schedule_factor(name ? name : "constant", step, r->steps, (int64_t)warmup);
    return plan_num(r->plan, "run.lr") * factor;
}

/* The items of the endless sequence from `cursor` on. */
static Batch make_batch(Run *r, int64_t cursor) {
    Batch b = {.arena = arena_new()};
    PackItem *items = NEW_ARRAY(b.arena, PackItem, r->batch);
    for (int64_t i = 0; i < r->batch; i++) {
        int64_t k = cursor + i;
        int64_t place = epoch_item(&r->epoch, k);
        items[i] =
            (PackItem){r->job->train ? r->job->train[place] : place, k % r->ntrain, k / r->ntrain};
    }
    bool sft = r->job->pairs->pair[items[0].pair].rejected == 0;
    PackOptions options = pack_options_of(r->plan, plan_num(r->plan, "graph.prefix") != 0, sft);
    b.pack = pack_step(b.arena, &options, r->job->pairs, items, (int)r->batch);
    if (!pack_one_step(r->plan, b.pack, r->batch, &b.err)) b.pack = NULL;
    return b;
}

static void batch_free(Batch *b) {
    if (b->arena) arena_free(b->arena);
    *b = (Batch){0};
}

static bool guard(const Run *r, int64_t step, double loss, double norm, Err *err) {
    if (!isfinite(loss))
        return fail(err, EXIT_NUMERIC,
                    "step %lld: the loss is %f; the checkpoints before it are intact",
                    (long long)step, loss);
    if (!isfinite(norm))
        return fail(
            err, EXIT_NUMERIC,
            "step %lld: the gradient's norm is %f (loss %g); the checkpoints before it are intact",
            (long long)step, norm, loss);
    /* Equal answers in every pair cancel but for rounding of products in another order (4e-9 was
     * seen); a term of the loss that trains all the same leaves far more than this bound. */
    const Pairs *pairs = r->job->pairs;
    bool cancels = pairs->counts.identical == pairs->n && norm < 1e-4;
    if (norm == 0 || cancels)
        return fail(err, EXIT_NUMERIC,
                    "step %lld: the gradient is exactly zero%s: nothing is being trained. Are "
                    "chosen and rejected the same in every pair, or is the loss saturated (loss "
                    "%g)?",
                    (long long)step, norm == 0 ? "" : " but for rounding", loss);
    return true;
}

static bool log_step(Run *r, const Pack *pack, double lr, float norm, double seconds, Err *err) {
    MetricsFile *m = r->metrics;
    const Plan *plan = r->plan;
    metrics_begin(m, "step");
    metrics_int(m, "step", r->state.step);
    metrics_num(m, "epoch", (double)r->state.cursor / (double)r->ntrain);
    metrics_num(m, "learning_rate", lr);
    metrics_num(m, "grad_norm", norm);
    for (int i = 0; i < plan->nmetrics; i++) metrics_num(m, plan->metrics[i].name, r->values[i]);
    metrics_int(m, "num_tokens", r->state.tokens);
    metrics_num(m, "tokens_per_second", (double)pack->tokens / seconds);
    metrics_num(m, "step_time_ms", seconds * 1e3);
    metrics_int(m, "memory_bytes", plan->arena_bytes);
    if (!metrics_end(m, err)) return false;
    int margin = metric_index(plan, "rewards/margins"),
        accuracy = metric_index(plan, "rewards/accuracies");
    ProgressLine line = {.step = r->state.step,
                         .loss = r->values[0],
                         .lr = lr,
                         .grad_norm = norm,
                         .tokens_per_second = (double)pack->tokens / seconds,
                         .has_rewards = margin >= 0 && accuracy >= 0};
    if (line.has_rewards) line.margin = r->values[margin], line.accuracy = r->values[accuracy];
    progress_step(&r->progress, &line);
    r->loss[r->ncurve] = line.loss;
    r->margin[r->ncurve++] = line.margin;
    return true;
}

/* The device works on this step while the host packs the next. */
static bool train_step(Run *r, Err *err) {
    Exec *exec = r->job->exec;
    int64_t step = r->state.step + 1;
    double lr = rate_of(r, step), start = now_seconds();
    Batch now = r->next.arena ? r->next : make_batch(r, r->state.cursor);
    r->next = (Batch){0};
    Pack *pack = now.pack;
    if (!pack) *err = now.err;
    bool ok = pack && run_step(exec, r->plan, pack, r->job->seed, step, lr, err);
    if (ok && step < r->steps) r->next = make_batch(r, r->state.cursor + r->batch);
    float norm = 0;
    ok = ok && exec_read(exec, "grad_norm", &norm, sizeof norm, err) &&
         read_metrics(exec, r->plan, pack, (int)r->batch, r->values, err) &&
         guard(r, step, r->values[0], norm, err);
    if (ok) {
        r->state.step = step;
        r->state.cursor += r->batch;
        r->state.tokens += pack->tokens;
        ok = log_step(r, pack, lr, norm, now_seconds() - start, err);
    }
    batch_free(&now);
    return ok;
}

static bool evaluate_now(Run *r, Err *err) {
    const TrainJob *job = r->job;
    if (!job->eval_pairs || !plan_program(r->plan, "eval")) return true;
    Arena *arena = arena_new();
    Evaluation e;
    double start = now_seconds();
    int64_t n = job->eval ? job->neval : job->eval_pairs->n;
    bool ok = evaluate(job->exec, r->plan, job->eval_pairs, job->eval, n, arena, &e, err);
    if (ok) {
        metrics_begin(r->metrics, "eval");
        metrics_int(r->metrics, "step", r->state.step);
        for (int i = 0; i < r->plan->nmetrics; i++)
            metrics_num(r->metrics, arena_printf(arena, "eval_%s", r->plan->metrics[i].name),
                        e.values[i]);
        metrics_num(r->metrics, "eval_runtime", now_seconds() - start);
        ok = metrics_end(r->metrics, err);
        if (!job->quiet) {
            progress_break(&r->progress);
            fprintf(stderr, "eval at step %lld: loss %.4f\n", (long long)r->state.step,
                    e.values[0]);
        }
    }
    arena_free(arena);
    return ok;
}

static bool due(double every, int64_t step) {
    return every > 0 && step % (int64_t)every == 0;
}

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

static bool open_metrics(Run *r, bool resumed, Err *err) {
    r->metrics = metrics_open(path_join(r->arena, r->job->run_dir, "metrics.jsonl"),
                              resumed && r->state.step > 0 ? r->state.step : -1, err);
    if (!r->metrics) return false;
    if (resumed && r->state.step > 0) return true; /* the lines go on as if never broken */
    metrics_begin(r->metrics, "start");
    metrics_str(r->metrics, "version", VERSION);
    metrics_str(r->metrics, "plan_hash", r->plan->hash ? r->plan->hash : "");
    metrics_str(r->metrics, "data_hash", r->job->data_hash);
    metrics_int(r->metrics, "seed", (int64_t)r->job->seed);
    metrics_int(r->metrics, "total_steps", r->steps);
    metrics_int(r->metrics, "peak_bytes", r->plan->arena_bytes);
    return metrics_end(r->metrics, err);
}

/* Loads the checkpoint to go on from, if there is one. */
static bool resume(Run *r, Err *err) {
    const TrainJob *job = r->job;
    const char *from = job->resume ? job->resume : newest_checkpoint(r->arena, job->run_dir);
    if (!from) return true; /* killed before its first checkpoint: from the beginning */
    if (!load_checkpoint(job, from, &r->state, err)) return false;
    if (!job->quiet) fprintf(stderr, "going on from %s\n", from);
    return true;
}

/* What the device chose by timing, kept beside the run: going on repeats it bit for bit. */
static bool keep_choices(const Run *r, Err *err) {
    Device *dev = r->job->device;
    const char *path = path_join(r->arena, r->job->run_dir, RUN_CHOICES);
    return !dev->ops->save_choices || dev->ops->save_choices(dev, path, err);
}

/* The steps, with evaluations and checkpoints where they are due; false when something failed. */
static bool walk(Run *r, Err *err) {
    const Plan *plan = r->plan;
    double save_every = plan_num(plan, "run.save_every"),
           eval_every = plan_num(plan, "run.eval_every");
    progress_start(&r->progress, r->state.step, r->steps, r->job->log_every, r->job->quiet);
    while (r->state.step < r->steps && !stop_signal()) {
        if (!train_step(r, err)) return false;
        bool last = r->state.step == r->steps;
        if ((due(eval_every, r->state.step) || last) && !evaluate_now(r, err)) return false;
        if (due(save_every, r->state.step) || last || stop_signal()) {
            if (!keep_choices(r, err) || !save_checkpoint(r->job, &r->state, err)) return false;
            prune_checkpoints(r->job->run_dir, (int64_t)plan_num(plan, "run.keep"));
        }
    }
    return true;
}

/* A failure that is not the run's own leaves the checkpoints as they are. */
static void say_resume(const Run *r, Err *err) {
    bool own = err->code == EXIT_NUMERIC || err->code == EXIT_INPUT;
    const char *newest = own ? NULL : newest_checkpoint(r->arena, r->job->run_dir);
    if (!newest) return;
    const Err first = *err;
    err->code = 0;
    fail(err, first.code, "%.1500s\nhelp: %s is intact: --resume goes on from it", first.text,
         newest);
}

static void print_curves(const Run *r) {
    if (r->job->quiet || r->ncurve < 2) return;
    progress_curve(stderr, "loss", r->loss, r->ncurve, 6);
    if (metric_index(r->plan, "rewards/margins") >= 0)
        progress_curve(stderr, "reward margin", r->margin, r->ncurve, 6);
}

int job_train(const TrainJob *job, Err *err) {
    Run r = {.job = job, .plan = job->plan, .arena = arena_new()};
    r.batch = (int64_t)plan_num(job->plan, "run.batch");
    r.ntrain = job->train ? job->ntrain : job->pairs->n;
    r.steps = total_steps(job->plan, r.ntrain, r.batch);
    r.values = NEW_ARRAY(r.arena, double, job->plan->nmetrics + 1);
    r.state.seed = job->seed;
    const char *order = plan_str(job->plan, "run.shuffle");
    bool shuffle = order ? strcmp(order, "off") != 0 : plan_num(job->plan, "run.shuffle") != 0;
    epoch_start(&r.epoch, r.arena, r.ntrain, job->seed, shuffle);
    bool ok = (!job->resumes || resume(&r, err)) && write_setting_inputs(job->exec, job->plan, err);
    if (ok && !job->dry_run) ok = write_run_json(&r, err) && open_metrics(&r, job->resumes, err);
    if (ok && !job->dry_run) {
        stop_watch();
        r.loss = NEW_ARRAY(r.arena, double, r.steps - r.state.step + 1);
        r.margin = NEW_ARRAY(r.arena, double, r.steps - r.state.step + 1);
        ok = walk(&r, err);
        print_curves(&r);
    }
    ok = ok && (job->dry_run || save_trained(job->exec, job->plan, job->run_dir, err));
    Err closing = {0};
    if (r.metrics && !metrics_close(r.metrics, ok ? err : &closing)) ok = false;
    if (!ok) say_resume(&r, err);
    batch_free(&r.next);
    arena_free(r.arena);
    if (!ok) return err->code ? err->code : EXIT_BUG;
    return stop_signal() ? 128 + stop_signal() : EXIT_OK;
}
