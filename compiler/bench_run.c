/* bench_run.c: variants from file to figures: compiled, loaded, run in rounds, their kernels timed.
 *
 * A round is one optimizer step of every variant, so that drift of the machine meets all alike; who
 * begins changes from round to round, and every other time they go backwards, so that what one
 * leaves in the caches meets all alike, too.  Where memory does not hold all variants together,
 * each is loaded twice, ABBA, and has half of its rounds each time.  Every step is the same: the
 * same pairs, the same seed, rate 0. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LEAST_ROUNDS = 10, VISITS = 2 };
static const double least_seconds = 3; /* of a variant, on average */

/* ---- the step's FLOPs --------------------------------------------------------------------- */

/* Queries times keys that a micro-batch's segments name. */
static double pairs_attended(const Micro *micro) {
    double sum = 0;
    for (int i = 0; i < micro->ninput; i++) {
        if (strcmp(micro->input[i].name, "segs") != 0) continue;
        const int32_t *seg = micro->input[i].data;
        for (int64_t g = 0; g < micro->extent[X_G]; g++, seg += 6)
            sum += (double)seg[1] * seg[3] + 0.5 * (double)seg[1] * (seg[1] + 1);
    }
    return sum;
}

/* Kernels whose work grows with the square of their rows. */
static bool is_attention(const char *kind) {
    return !strncmp(kind, "attend", 6) && strcmp(kind, "attend_delta") != 0;
}

/* FLOPs of a step's products at these extents, without what is computed again; attention: its share
 * of the full square. */
static double step_flops(const Plan *plan, const Step *s, const int64_t *extent, double attended) {
    if (s->kind == STEP_KERNEL && is_attention(plan->kernels[s->kernel].kind))
        return (s->flops - s->again) * attended;
    if (s->kind != STEP_GEMM || !(s->flops > 0)) return 0;
    double flops = 2 * (1 - s->again / s->flops);
    for (int i = 0; i < 3; i++) flops *= (double)dim_eval(s->dims[i], extent);
    return flops;
}

/* Of the steps of one scope, or of all (NULL). */
static double program_flops(const Plan *plan, const char *name, const char *scope,
                            const int64_t *sizes, double attended) {
    const Program *program = plan_program(plan, name);
    int64_t extent[NEXTENT], rows = 0, chunk = 0;
    memcpy(extent, sizes, sizeof extent);
    double flops = 0;
    for (int i = 0, loop_end = -1; program && i < program->nsteps; i++) {
        const Step *s = &program->steps[i];
        bool counts = !scope || (s->where && strstr(s->where, scope));
        if (s->kind == STEP_LOOP) {
            rows = dim_eval(s->dims[0], extent);
            chunk = s->chunk;
            loop_end = i + s->body;
        }
        if (i > loop_end && counts) flops += step_flops(plan, s, extent, attended);
        for (int64_t at = 0; i <= loop_end && at < rows; at += chunk) {
            extent[X_C] = rows - at < chunk ? rows - at : chunk;
            if (counts) flops += step_flops(plan, s, extent, attended);
        }
    }
    return flops;
}

/* Scored rows that are not filling. */
static int64_t rows_scored(const Micro *micro) {
    int64_t n = 0;
    for (int i = 0; i < micro->ninput; i++) {
        const int32_t *target = micro->input[i].data;
        if (strcmp(micro->input[i].name, "target") != 0) continue;
        for (int64_t r = 0; r < micro->extent[X_R]; r++) n += target[r] >= 0;
    }
    return n;
}

/* Of the whole step, at its rows without filling.  Of a coupled objective's program "score" only
 * the reference's part is the algorithm's: "micro" does the policy's again. */
static void count_flops(Entry *e) {
    const Plan *plan = e->w.plan;
    double rows = (double)plan->bound[X_T], square = rows * (rows + 1) / 2, share = 0;
    for (int m = 0; m < e->pack->nmicro; m++) {
        const Micro *micro = &e->pack->micro[m];
        double filling = (double)(micro->extent[X_T] - micro->tokens); /* a segment of its own */
        double attended = pairs_attended(micro), real = attended - filling * (filling + 1) / 2;
        int64_t extent[NEXTENT];
        memcpy(extent, micro->extent, sizeof extent);
        extent[X_T] = micro->tokens;
        extent[X_R] = rows_scored(micro);
        e->flops += program_flops(plan, "micro", NULL, extent, real / square) +
                    program_flops(plan, "score", " reference", extent, real / square);
        e->attended += attended / square;
        share += (double)micro->extent[X_T] / rows;
    }
    e->attended /= share;
}

/* ---- compiled, in memory, out of memory ---------------------------------------------------- */

static int prepare(Entry *e) {
    Work *w = &e->w;
    static const bool want[NUNIT] = {[UNIT_TRAIN] = true};
    e->options.quiet = true; /* the table says once what it ran on */
    work_init(w, &e->options);
    w->again = true; /* what is to be said of the file was said */
    int code = work_check(w, NULL, e->options.data.n > 0);
    if (code == EXIT_OK) code = work_device(w, NULL);
    if (code == EXIT_OK) code = work_compile(w, NULL, want);
    if (code == EXIT_OK && plan_program(w->plan, "micro") == NULL) {
        fprintf(stderr, "dpoc: error: %s trains nothing: there is no step to time\n",
                e->options.args.item[0]);
        code = EXIT_INPUT;
    }
    if (code != EXIT_OK) return code;
    if (e->options.data.n > 0) return work_pairs(w, &e->pairs);
    e->pairs = pairs_random(w->plan, (int64_t)spec_num(w->spec, "run.batch"), work_seed(w));
    return EXIT_OK;
}

static int pack_pairs(Entry *e) {
    Work *w = &e->w;
    int64_t batch = (int64_t)spec_num(w->spec, "run.batch");
    PackOptions options =
        pack_options_of(w->plan, spec_on(w->spec, "graph.prefix"), spec_one_sided(w->spec));
    if (!pack_check(&options, e->pairs, w->plan->vocab, &w->err)) return work_fail(w);
    PackItem *items = NEW_ARRAY(w->arena, PackItem, batch);
    for (int64_t i = 0; i < batch; i++) items[i] = (PackItem){i % e->pairs->n, i, i / e->pairs->n};
    e->pack = pack_step(w->arena, &options, e->pairs, items, (int)batch);
    if (!pack_one_step(w->plan, e->pack, batch, &w->err)) return work_fail(w);
    count_flops(e);
    return EXIT_OK;
}

static int load(Entry *e) {
    Work *w = &e->w;
    int code = w->device ? EXIT_OK : work_device(w, NULL);
    if (code == EXIT_OK) code = work_open(w);
    if (code == EXIT_OK && !e->pack) code = work_reference(w, e->pairs, e->options.data.n == 0);
    if (code == EXIT_OK && !e->pack) code = pack_pairs(e);
    if (code != EXIT_OK) return code;
    return write_setting_inputs(w->exec, w->plan, &w->err) ? EXIT_OK : work_fail(w);
}

static void unload(Entry *e) {
    exec_close(e->w.exec);
    e->w.device->ops->close(e->w.device);
    e->w.exec = NULL;
    e->w.device = NULL;
}

/* A switch that changes no number of the plan changes nothing. */
static bool same_plan(const Plan *a, const Plan *b) {
    bool same = a->arena_bytes == b->arena_bytes && a->flops_micro == b->flops_micro &&
                a->flops_again == b->flops_again && a->nkernels == b->nkernels &&
                a->nprograms == b->nprograms;
    for (int i = 0; same && i < a->nprograms; i++) {
        const Program *p = &a->programs[i], *q = &b->programs[i];
        double bytes = 0;
        for (int k = 0; p->nsteps == q->nsteps && k < p->nsteps; k++)
            bytes += fabs(p->steps[k].bytes - q->steps[k].bytes) +
                     fabs(p->steps[k].flops - q->steps[k].flops);
        same = p->nsteps == q->nsteps && bytes == 0;
    }
    return same;
}

/* Whether the arenas of all fit at once into what is free now. */
static int choose_order(Bench *b) {
    Work *w = &b->entry[0].w;
    double sum = 0;
    int64_t available, total;
    snprintf(b->device, sizeof b->device, "%s", w->device->description);
    for (int i = 0; i < b->n; i++)
        if (!b->entry[i].idle) sum += (double)b->entry[i].w.plan->arena_bytes;
    if (!w->device->ops->memory(w->device, &available, &total, &w->err)) return work_fail(w);
    b->in_turn = b->options->in_turn || sum > 0.9 * (double)available;
    if (!b->in_turn || b->options->in_turn || b->n == 1) return EXIT_OK;
    char need[32], have[32];
    format_bytes(need, sum);
    format_bytes(have, (double)available);
    fprintf(stderr,
            "note: all variants together need %s, %s are free: they are loaded one after another, "
            "twice each\n",
            need, have);
    return EXIT_OK;
}

int bench_prepare(Bench *b) {
    int code = EXIT_OK;
    for (int i = 0; i < b->n && code == EXIT_OK; i++) {
        Entry *e = &b->entry[i];
        code = prepare(e);
        if (code != EXIT_OK) {
            if (i > 0) fprintf(stderr, "dpoc: %s cannot be run\n", e->name);
            b->n = i + 1;
            return code;
        }
        bench_draws(e, &b->entry[0]);
        e->idle = b->effects && i > 0 && same_plan(e->w.plan, b->entry[0].w.plan) &&
                  strcmp(e->differs[0], "graph.prefix = off") != 0;
        e->cached = plan_program(e->w.plan, "ref") != NULL;
    }
    return choose_order(b);
}

void bench_close(Bench *b) {
    json_decref(b->old);
    for (int i = 0; i < b->n; i++) {
        Entry *e = &b->entry[i];
        free(e->grads);
        free(e->ms);
        if (e->pairs) pairs_free(e->pairs);
        if (e->w.arena) work_close(&e->w);
    }
}

/* ---- rounds -------------------------------------------------------------------------------- */

static int entry_step(Entry *e, double *ms, bool first) {
    Work *w = &e->w;
    double start = now_seconds(), values[MAX_METRICS];
    if (!run_step(w->exec, w->plan, e->pack, work_seed(w), 1, 0, &w->err)) return work_fail(w);
    if (!w->device->ops->sync(w->device, &w->err)) return work_fail(w);
    *ms = 1e3 * (now_seconds() - start);
    int64_t batch = (int64_t)spec_num(w->spec, "run.batch");
    if (!read_metrics(w->exec, w->plan, e->pack, (int)batch, values, &w->err)) return work_fail(w);
    if (first)
        e->loss = values[0];
    else if (values[0] != e->loss)
        e->unsteady = true;
    return EXIT_OK;
}

/* The first of these steps says what this variant computes. */
static int warm_up(Bench *b, Entry *e, double *ms) {
    int code = EXIT_OK;
    const bool first = !e->known;
    e->known = true;
    for (int i = 0; i < WARMUP && code == EXIT_OK; i++) {
        code = entry_step(e, ms, first && i == 0);
        if (code == EXIT_OK && first && i == 0) code = bench_outcome(e, &b->entry[0]);
    }
    return code;
}

/* --runs, or ten and three seconds; `ms`: of one round. */
static void choose_rounds(Bench *b, double ms) {
    int variants = 0;
    for (int i = 0; i < b->n; i++) variants += !b->entry[i].idle;
    double runs = isnan(b->options->runs)
                      ? fmax(LEAST_ROUNDS, ceil(1e3 * least_seconds * variants / ms))
                      : b->options->runs;
    b->rounds = (int)fmin(runs, MAX_ROUNDS);
    for (int i = 0; i < b->n; i++) {
        b->entry[i].ms = calloc((size_t)b->rounds, sizeof(double));
        if (!b->entry[i].ms) abort();
    }
}

static void say_round(const Bench *b, int round) {
    static double said;
    if (b->options->quiet || !isatty(STDERR_FILENO) || now_seconds() - said < 0.5) return;
    said = now_seconds();
    fprintf(stderr, "\r\033[Kround %d of %d", round + 1, b->rounds);
    fflush(stderr);
}

/* Time of kernels, one after the other; on the first entry also what the machine can do. */
static int profile(Bench *b, Entry *e) {
    Work *w = &e->w;
    double ignored;
    int code = EXIT_OK;
    exec_profile(w->exec, true);
    for (int i = 0; i < PROFILED && code == EXIT_OK; i++) code = entry_step(e, &ignored, false);
    if (code != EXIT_OK) return code;
    e->nkernels = exec_times(w->exec, e->kernel, MAX_KERNELS);
    for (int k = 0; k < e->nkernels; k++) {
        StepTime *t = &e->kernel[k];
        double part = is_attention(t->kind) ? e->attended : 1;
        t->seconds /= PROFILED, t->bytes /= PROFILED, t->calls /= PROFILED;
        t->flops *= part / PROFILED, t->again *= part / PROFILED;
        e->all.flops += t->flops;
        e->all.again += t->again;
        e->all.bytes += t->bytes;
        e->all.launches += t->calls;
    }
    if (e != &b->entry[0]) return EXIT_OK;
    const char *compute = spec_str(w->spec, "graph.compute");
    bool half = !strcmp(compute, "bf16") || (!strcmp(compute, "auto") && w->device->arch);
    return measure_rates(w->exec, w->device, half ? DT_bf16 : DT_f32, &b->rates, &w->err)
               ? EXIT_OK
               : work_fail(w);
}

/* Which entry is the k-th of a round. */
static int place_in_round(int round, int k, int n) {
    int turn = round % n, at = (k + turn) % n;
    return round / n % 2 ? n - 1 - at : at;
}

static int run_together(Bench *b) {
    int code = EXIT_OK, order[MAX_ENTRIES], n = 0;
    double sum = 0;
    for (int i = 0; i < b->n; i++)
        if (!b->entry[i].idle) order[n++] = i;
    for (int i = 0; i < n && code == EXIT_OK; i++) code = load(&b->entry[order[i]]);
    for (int i = 0; i < n && code == EXIT_OK; i++) {
        double ms = 0;
        code = warm_up(b, &b->entry[order[i]], &ms);
        sum += ms;
    }
    if (code != EXIT_OK) return code;
    choose_rounds(b, sum);
    for (int r = 0; r < b->rounds && code == EXIT_OK; r++) {
        if ((b->stopped = stop_signal()) != 0) {
            b->rounds = r;
            break;
        }
        say_round(b, r);
        for (int k = 0; k < n && code == EXIT_OK; k++) {
            Entry *e = &b->entry[order[place_in_round(r, k, n)]];
            code = entry_step(e, &e->ms[r], false);
        }
    }
    for (int i = 0; i < n && code == EXIT_OK && b->rounds > 0; i++)
        code = profile(b, &b->entry[order[i]]);
    return code;
}

/* One visit: its share of the rounds, and at the last the kernels. */
static int visit(Bench *b, Entry *e, int number) {
    double ms = 0;
    int code = load(e);
    if (code == EXIT_OK) code = warm_up(b, e, &ms);
    if (code == EXIT_OK && !b->rounds) choose_rounds(b, ms * b->n);
    int begin = number * b->rounds / VISITS, end = (number + 1) * b->rounds / VISITS;
    for (int r = begin; r < end && code == EXIT_OK; r++) {
        say_round(b, r);
        code = entry_step(e, &e->ms[r], false);
    }
    if (code == EXIT_OK && number == VISITS - 1) code = profile(b, e);
    if (e->w.exec) unload(e);
    return code;
}

static int run_in_turn(Bench *b) {
    int code = EXIT_OK;
    for (int i = 1; i < b->n; i++) { /* devices hold memory of their own */
        b->entry[i].w.device->ops->close(b->entry[i].w.device);
        b->entry[i].w.device = NULL;
    }
    for (int v = 0; v < VISITS; v++)
        for (int i = 0; i < b->n && code == EXIT_OK; i++) {
            Entry *e = &b->entry[v % 2 ? b->n - 1 - i : i];
            if (stop_signal()) return 128 + stop_signal();
            if (!e->idle) code = visit(b, e, v);
        }
    return code;
}

int bench_run(Bench *b) {
    stop_watch();
    Monitor *monitor = monitor_open(b->entry[0].w.device);
    context_begin(&b->context);
    int code = b->in_turn ? run_in_turn(b) : run_together(b);
    context_end(&b->context, monitor);
    monitor_close(monitor);
    if (!b->options->quiet && isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
    if (code == EXIT_OK && b->stopped && b->rounds == 0) code = 128 + b->stopped;
    if (code != EXIT_OK) return code;
    const Entry *first = &b->entry[0];
    b->beaten = 1;
    for (int i = 0; i < b->n; i++) {
        Entry *e = &b->entry[i];
        if (e->idle) continue;
        e->time = summary_of(e->ms, b->rounds);
        e->ratio = paired_ratio(first->ms, e->ms, b->rounds);
        for (int k = 0; k < e->nkernels; k++) {
            const StepTime *t = &e->kernel[k];
            if (!(t->seconds > 0) || t->calls == 0) continue;
            b->beaten = fmax(b->beaten, kernel_share(b, t));
            rates_raise(&b->rates, t->bytes / (double)t->calls, t->flops / t->seconds,
                        t->bytes / t->seconds);
        }
    }
    return code;
}
