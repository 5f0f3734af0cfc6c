/* train.c: the main job: optimizer steps over an endless, reproducible sequence of pairs.
 *
 * One step: program "step" once, "micro" for each micro-batch, "update" once; then one line of
 * metrics.  Everything that decides a step follows from (seed, cursor), so a resumed run is the
 * unbroken one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ranks.h"
#include "run.h"
#include "schedule.h"

int64_t job_steps(const TrainJob *job) {
    int64_t steps = (int64_t)plan_num(job->plan, "run.steps");
    if (steps > 0) return steps;
    double items = (double)(job->train ? job->ntrain : job->pairs->n);
    return (int64_t)ceil(items * plan_num(job->plan, "run.epochs") /
                         plan_num(job->plan, "run.batch"));
}

static double rate_of(const Run *r, int64_t step) {
    const char *name = plan_str(r->plan, "run.schedule");
    double warmup = plan_num(r->plan, "run.warmup");
    if (warmup < 1) warmup = ceil(warmup * (double)r->steps); /* a share, as warmup_ratio */
    return schedule_rate(name ? name : "constant", plan_num(r->plan, "run.lr"), step, r->steps,
                         (int64_t)warmup);
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
    options.rank = ranks_rank();
    options.ranks = ranks_size();
    b.pack = pack_step(b.arena, &options, r->job->pairs, items, (int)r->batch);
    if (!pack_one_step(r->plan, b.pack, r->batch, &b.err)) b.pack = NULL;
    return b;
}

static void batch_free(Batch *b) {
    if (b->arena) arena_free(b->arena);
    *b = (Batch){0};
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
         guard_step(r, step, r->values[0], norm, err);
    if (ok) {
        r->state.step = step;
        r->state.cursor += r->batch;
        r->state.tokens += pack->tokens;
        r->state.loss_sum += r->values[0];
        ok = !ranks_first() || log_step(r, pack, lr, norm, now_seconds() - start, err);
        guard_warn(r, lr);
    }
    batch_free(&now);
    return ok;
}

/* ---- evaluation and the best checkpoint ------------------------------------------------------ */

/* Finds the metric that run.best names, with or without "eval_" before it. */
static bool find_best(Run *r, Err *err) {
    const char *name = plan_str(r->plan, "run.best");
    r->best = -1;
    if (!name || !strcmp(name, "none")) return true;
    const char *metric = strncmp(name, "eval_", 5) ? name : name + 5;
    r->best = metric_index(r->plan, metric);
    r->best_is_lower = strstr(metric, "loss") != NULL;
    if (r->best >= 0) return true;
    const char **names = NEW_ARRAY(r->arena, const char *, r->plan->nmetrics + 1);
    Text list = {0};
    for (int i = 0; i < r->plan->nmetrics; i++) {
        names[i] = r->plan->metrics[i].name;
        text_add(&list, "%seval_%s", i ? ", " : "", names[i]);
    }
    const char *close = closest_name(metric, names, r->plan->nmetrics);
    fail(err, EXIT_INPUT, "run.best can't be '%s'; it is none, or one of %s%s%s%s", name, list.data,
         close ? "\nhelp: did you mean 'eval_" : "", close ? close : "", close ? "'?" : "");
    text_free(&list);
    return false;
}

/* Whether this evaluation is the best so far; keeps count. */
static bool note_best(Run *r, const Evaluation *e) {
    if (r->best < 0 || r->state.step == 0) return false;
    double now = e->values[r->best], then = r->state.best_value;
    bool first = r->state.best_step == 0;
    bool better = isfinite(now) && (first || (r->best_is_lower ? now < then : now > then));
    r->state.stale = better ? 0 : r->state.stale + 1;
    if (better) {
        r->state.best_step = r->state.step;
        r->state.best_value = now;
        r->best_eval = r->eval;
    }
    return better;
}

/* `better`: it is the best so far. */
static bool evaluate_now(Run *r, bool *better, Err *err) {
    const TrainJob *job = r->job;
    *better = false;
    if (!job->eval_pairs || !plan_program(r->plan, "eval")) return true;
    Arena *arena = arena_new();
    Evaluation e;
    double start = now_seconds();
    int64_t n = job->eval ? job->neval : job->eval_pairs->n;
    ProgressNote note = progress_note();
    bool shows = !job->quiet && ranks_first();
    if (shows) progress_break(&r->progress);
    bool ok = evaluate(job->exec, r->plan, job->eval_pairs, job->eval, n, arena,
                       shows ? &note : NULL, &e, err) &&
              (!ranks_first() || log_eval(r, &e, now_seconds() - start, err));
    *better = ok && note_best(r, &e);
    arena_free(arena);
    return ok;
}

static bool out_of_patience(const Run *r) {
    double patience = plan_num(r->plan, "run.patience");
    return patience > 0 && (double)r->state.stale >= patience;
}

static bool due(double every, int64_t step) {
    return every > 0 && step % (int64_t)every == 0;
}

/* Loads the checkpoint to go on from, if there is one. */
static bool resume(Run *r, Err *err) {
    const TrainJob *job = r->job;
    const char *from = job->resume ? job->resume : newest_checkpoint(r->arena, job->run_dir);
    if (!from) return true; /* killed before its first checkpoint: from the beginning */
    if (!load_checkpoint(job, from, &r->state, err)) return false;
    if (!job->quiet) fprintf(stderr, "going on from %s\n", from);
    if (r->state.ranks != ranks_size())
        fprintf(stderr,
                "note: made by %lld process%s, goes on with %d: the state is the same, later sums "
                "are rounded differently\n",
                (long long)r->state.ranks, r->state.ranks == 1 ? "" : "es", ranks_size());
    return true;
}

/* What the device chose by timing, kept beside the run: going on repeats it bit for bit. */
static bool keep_choices(const Run *r, Err *err) {
    Device *dev = r->job->device;
    const char *path = path_join(r->arena, r->job->run_dir, RUN_CHOICES);
    return !dev->ops->save_choices || dev->ops->save_choices(dev, path, err);
}

static bool save_now(Run *r, Err *err) {
    const TrainJob *job = r->job;
    r->state.ranks = ranks_size();
    if (!ranks_first()) return true;
    if (!keep_choices(r, err) || !save_checkpoint(job, &r->state, err)) return false;
    link_checkpoint(job->run_dir, "latest", r->state.step);
    if (has_checkpoint(job->run_dir, r->state.best_step))
        link_checkpoint(job->run_dir, "best", r->state.best_step);
    prune_checkpoints(job->run_dir, (int64_t)plan_num(r->plan, "run.keep"), r->state.best_step);
    return true;
}

/* Whether a signal came to any process: all end after the same step. */
static bool stops(Run *r) {
    if (!r->stop) r->stop = ranks_max(stop_signal());
    return r->stop != 0;
}

static bool samples_now(Run *r, Err *err) {
    return !ranks_first() || samples_take(r, err);
}

static bool samples_due(const Run *r) {
    int64_t step = r->state.step;
    return step == 0 || step == r->steps || due(plan_num(r->plan, "run.sample_every"), step);
}

/* The steps, with evaluations and checkpoints where they are due, and one at the end, whatever
 * ended them; false when something failed. */
static bool walk(Run *r, Err *err) {
    const Plan *plan = r->plan;
    double save_every = plan_num(plan, "run.save_every"),
           eval_every = plan_num(plan, "run.eval_every");
    bool better, saved = true;
    progress_start(&r->progress, r->state.step, r->steps, r->job->log_every, r->job->quiet);
    bool first = r->state.step == 0 && plan_num(plan, "run.eval_first") != 0;
    if (first && !evaluate_now(r, &better, err)) return false;
    if (samples_due(r) && !samples_now(r, err)) return false;
    r->stopped_early = out_of_patience(r);
    r->total.started = now_seconds();
    while (r->state.step < r->steps && !r->stopped_early && !stops(r)) {
        if (!train_step(r, err)) return false;
        bool last = r->state.step == r->steps;
        better = false;
        if ((due(eval_every, r->state.step) || last) && !evaluate_now(r, &better, err))
            return false;
        r->stopped_early = !last && out_of_patience(r);
        if (samples_due(r) && !samples_now(r, err)) return false;
        saved = due(save_every, r->state.step) || better;
        if (saved && !save_now(r, err)) return false;
    }
    return saved || save_now(r, err);
}

/* RUN/adapter: of the last step, or of the best checkpoint. */
static bool save_result(Run *r, Err *err) {
    const TrainJob *job = r->job;
    int64_t best = r->state.best_step;
    if (plan_num(r->plan, "run.load_best") != 0 && !r->stop && has_checkpoint(job->run_dir, best)) {
        if (best != r->state.step && !load_trained(job, best, err)) return false;
        r->best_loaded = true;
    }
    return save_trained(job->exec, r->plan, job->run_dir, err);
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
    progress_break(&r->progress);
    progress_curve(stderr, "loss", r->loss, r->ncurve, 6);
    if (metric_index(r->plan, "rewards/margins") >= 0)
        progress_curve(stderr, "reward margin", r->margin, r->ncurve, 6);
}

/* What follows from plan and job alone. */
static void prepare(Run *r) {
    const TrainJob *job = r->job;
    r->batch = (int64_t)plan_num(job->plan, "run.batch");
    r->ntrain = job->train ? job->ntrain : job->pairs->n;
    r->steps = job_steps(job);
    r->values = NEW_ARRAY(r->arena, double, job->plan->nmetrics + 1);
    r->state.seed = job->seed;
    r->eval = r->best_eval = (LastEval){.step = -1};
    r->promised = device_promised_flops(job->device->description);
    const char *order = plan_str(job->plan, "run.shuffle");
    bool shuffle = order ? strcmp(order, "off") != 0 : plan_num(job->plan, "run.shuffle") != 0;
    epoch_start(&r->epoch, r->arena, r->ntrain, job->seed, shuffle);
}

/* Processes that train together start from one state. */
static bool starts_together(const Run *r, Err *err) {
    if (ranks_size() == 1) return true;
    Hash128 state = hash_bytes(&r->state.step, sizeof r->state.step, (Hash128){0, 0});
    if (!hash_state(r->job->exec, r->plan, &state, err)) return false;
    return ranks_same(&(RankFact){"what is trained, or the checkpoint", state}, 1, err);
}

/* What only one of several processes does: all that is written. */
static bool open_run_files(Run *r, Err *err) {
    const TrainJob *job = r->job;
    if (!ranks_first()) return true;
    r->monitor = monitor_open(job->device);
    return log_open(r, job->resumes, err) && save_start(job->exec, r->plan, job->run_dir, err);
}

/* The whole run but for what is closed after it. */
static bool go(Run *r, Err *err) {
    if (!starts_together(r, err) || !open_run_files(r, err)) return false;
    stop_watch();
    r->loss = NEW_ARRAY(r->arena, double, r->steps - r->state.step + 1);
    r->margin = NEW_ARRAY(r->arena, double, r->steps - r->state.step + 1);
    bool ok = walk(r, err);
    print_curves(r);
    if (!ok || !ranks_first()) return ok;
    if (!save_result(r, err)) return false;
    if (r->stop) return true;
    if (!log_end(r, err)) return false;
    summary_print(r);
    return true;
}

int job_train(const TrainJob *job, Err *err) {
    Run r = {.job = job, .plan = job->plan, .arena = arena_new()};
    prepare(&r);
    bool ok = find_best(&r, err) && (!job->resumes || resume(&r, err)) &&
              write_setting_inputs(job->exec, job->plan, err);
    ok = ok && (job->dry_run || go(&r, err));
    monitor_close(r.monitor);
    Err closing = {0};
    if (!log_close(&r, ok ? err : &closing)) ok = false;
    if (!ok) say_resume(&r, err);
    batch_free(&r.next);
    arena_free(r.arena);
    if (!ok) return err->code ? err->code : EXIT_BUG;
    return r.stop ? 128 + r.stop : EXIT_OK;
}
