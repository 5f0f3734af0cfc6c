/* verbs_train.c: `train`: from a checked file to a job of the runtime. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/job/ranks.h"
#include "generate.h"
#include "prompts.h"
#include "report.h"

static Hash128 hash_pairs(const Pairs *p) {
    Hash128 h = {0};
    for (int64_t i = 0; i < p->n; i++) {
        uint64_t key = pair_key(&p->pair[i]);
        h = hash_bytes(&key, sizeof key, h);
    }
    if (p->ncolumns) h = hash_bytes(p->column, sizeof(float) * (size_t)(p->n * p->ncolumns), h);
    return h;
}

static char *hex_of(Arena *arena, Hash128 hash) {
    char hex[33];
    hash_hex(hash, hex);
    return arena_str(arena, hex);
}

/* Fills the job's evaluation set from data.eval: a file, a share or a number of pairs. */
static int open_eval_set(Work *w, const Template *template, Pairs *pairs, Pairs **extra,
                         TrainJob *job) {
    const char *path = spec_str(w->spec, "data.eval");
    double share = path ? 0 : spec_num(w->spec, "data.eval");
    if (path) {
        int code = work_read_pairs(w, &path, 1, template, extra);
        if (code != EXIT_OK) return code;
        work_summary(w, "eval pairs", *extra);
        job->eval_pairs = *extra;
        int64_t left;
        work_unlike(w, pairs, NULL, pairs->n, *extra, NULL, (*extra)->n, &left);
        if (left < pairs->n && !diags_silenced(w->diags, "leak"))
            fprintf(stderr, "warning: %lld of the pairs trained on are eval pairs, too [-Wleak]\n",
                    (long long)(pairs->n - left));
    } else if (share >= (double)pairs->n || (share > 0 && pairs->n < 2)) {
        fail(&w->err, EXIT_INPUT, "data.eval asks for %g pairs of %lld: none is left to train on",
             share, (long long)pairs->n);
        return work_fail(w);
    } else if (share > 0) {
        int32_t *train, *eval;
        double fraction = share < 1 ? share : share / (double)pairs->n;
        epoch_split(w->arena, pairs->n, fraction, job->seed, &train, &job->ntrain, &eval,
                    &job->neval);
        int64_t n = job->ntrain;
        job->train = work_unlike(w, pairs, train, n, pairs, eval, job->neval, &job->ntrain);
        job->eval = eval;
        job->eval_pairs = pairs;
        const char *equal = "";
        if (n > job->ntrain)
            equal =
                arena_printf(w->arena, ", as are %lld equal ones", (long long)(n - job->ntrain));
        if (!w->options->quiet)
            fprintf(stderr, "eval pairs: %lld of these, never trained on%s\n",
                    (long long)job->neval, equal);
    }
    if (job->train && job->ntrain == 0) {
        fail(&w->err, EXIT_INPUT, "every pair is also an eval pair: none is left to train on");
        return work_fail(w);
    }
    return EXIT_OK;
}

/* Each file's part of an epoch. */
static void print_mixture(const DataFile *files, int n, const int32_t *item, int64_t total,
                          const int32_t *file) {
    fprintf(stderr, "an epoch: %lld pairs", (long long)total);
    for (int f = 0; f < n; f++) {
        int64_t count = 0;
        for (int64_t i = 0; i < total; i++) count += file[item[i]] == f;
        fprintf(stderr, "%s %.1f %% of %s (weight %g)", f ? "," : ":",
                100 * (double)count / (double)total, files[f].path, files[f].weight);
    }
    fputc('\n', stderr);
}

/* Files with weights: their pairs appear more or less often in an epoch. */
static void mix_files(Work *w, const Pairs *pairs, TrainJob *job) {
    int n, mixed = 0;
    const DataFile *files = spec_data(w->spec, &n);
    double *weight = NEW_ARRAY(w->arena, double, n + 1);
    for (int i = 0; i < n; i++) mixed += (weight[i] = files[i].weight) != 1;
    if (!mixed && n < 2) return;
    int32_t *file = NEW_ARRAY(w->arena, int32_t, pairs->n), *out;
    for (int64_t i = 0; i < pairs->n; i++) file[i] = pairs->pair[i].file;
    int64_t all = job->train ? job->ntrain : pairs->n;
    int64_t total = epoch_mix(w->arena, job->train, all, file, weight, job->seed, &out);
    if (!w->options->quiet) print_mixture(files, n, out, total, file);
    if (!mixed) return;
    job->ntrain = total;
    job->train = out;
    Hash128 hash = hash_bytes(weight, sizeof *weight * (size_t)n, (Hash128){0, 0});
    char hex[33];
    hash_hex(hash, hex);
    job->data_hash = arena_printf(w->arena, "%s-%.8s", job->data_hash, hex);
}

static json_t *absolute(const char *path) {
    char *real = path ? realpath(path, NULL) : NULL;
    json_t *text = real ? json_string(real) : path ? json_string(path) : json_null();
    free(real);
    return text;
}

/* What `export` needs to read the same model again, wherever it is started. */
static const char *command_json(const Work *w) {
    const Options *o = w->options;
    json_t *set = json_array(), *adapters = json_array();
    for (int i = 0; i < o->set.n; i++) json_array_append_new(set, json_string(o->set.item[i]));
    for (int i = 0; i < o->adapter.n; i++) {
        const char *item = o->adapter.item[i], *dir = adapter_option_dir(item);
        char *real = realpath(dir, NULL);
        json_array_append_new(adapters,
                              json_sprintf("%.*s%s", (int)(dir - item), item, real ? real : dir));
        free(real);
    }
    json_t *c = json_pack("{s:o, s:o, s:s?, s:o, s:o}", "spec", absolute(o->args.item[0]), "model",
                          absolute(work_model_dir(w)), "variant", o->variant, "set", set, "adapter",
                          adapters);
    char *text = json_dumps(c, JSON_COMPACT);
    const char *kept = arena_str(w->arena, text ? text : "{}");
    free(text);
    json_decref(c);
    return kept;
}

static void print_steps(const Work *w, const TrainJob *job) {
    const Spec *s = w->spec;
    const char *compute = spec_str(s, "graph.compute");
    if (!strcmp(compute, "auto")) compute = w->device->arch ? "bf16" : "fp32";
    fprintf(stderr, "  %-12s%s\n", "precision", compute);
    fprintf(stderr, "  %-12s%lld of %.0f pairs, micro-batches of at most %.0f tokens\n", "steps",
            (long long)job_steps(job), spec_num(s, "run.batch"), spec_num(s, "run.tokens"));
    fprintf(stderr, "  %-12s%s, lr %g, %s\n", "optimizer", spec_str(s, "run.optimizer"),
            spec_num(s, "run.lr"), spec_str(s, "run.schedule"));
}

static void print_memory(const Plan *p) {
    char size[32];
    format_bytes(size, (double)p->arena_bytes);
    fprintf(stderr, "  %-12s%s, known before the run:", "memory", size);
    Peak peak = report_peak(p);
    for (int i = 0, n = 0; i < NROLE; i++) {
        if (peak.role[i] < p->arena_bytes / 100) continue;
        format_bytes(size, (double)peak.role[i]);
        fprintf(stderr, "%s %s %s", n++ ? "," : "", role_names[i], size);
    }
    free(peak.buf);
    fputc('\n', stderr);
}

/* TRL's trainer switches dropout off unless it is told not to, so a notebook's rate may never have
 * been seen at work. */
static void print_dropout(const Work *w) {
    int n;
    const AdapterSpec *a = spec_adapters(w->spec, &n);
    for (int i = 0; i < n; i++) {
        double most = 0;
        for (int k = 0; a[i].trained && k < a[i].ntarget; k++)
            if (!a[i].target[k].embedding) most = fmax(most, a[i].target[k].dropout);
        if (most > 0)
            fprintf(stderr,
                    "note: dropout %g applies to %s; TRL's default (disable_dropout) would switch "
                    "it off: %s.dropout = 0\n",
                    most, a[i].name, a[i].name);
    }
}

/* What will be trained, on what, with how much memory for what. */
static void print_start(const Work *w, const TrainJob *job) {
    const Plan *p = w->plan;
    if (w->options->quiet) return;
    const char *model = work_model_dir(w), *optimizer = spec_str(w->spec, "run.optimizer");
    fprintf(stderr, "  %-12s%s\n", "model", model ? model : w->options->args.item[0]);
    char total[32], trained[32];
    format_count(total, p->parameters_total);
    format_count(trained, p->parameters_trainable);
    fprintf(stderr, "  %-12s%s, trainable %s (%.2f %%)\n", "parameters", total, trained,
            100 * p->parameters_trainable / fmax(1, p->parameters_total));
    print_steps(w, job);
    print_memory(p);
    ranks_print();
    print_dropout(w);
    if (strstr(optimizer, "paged"))
        fprintf(stderr,
                "note: %s: nothing is paged, since the plan knows the memory before the run\n",
                optimizer);
}

static int64_t log_every(const Work *w) {
    if (!isnan(w->options->log_every)) return (int64_t)w->options->log_every;
    return spec_given(w->spec, "run.log_every") ? (int64_t)spec_num(w->spec, "run.log_every") : 0;
}

/* ---- answers during training ----------------------------------------------------------------- */

/* run.sample_prompts: a file, or how many of the pairs to evaluate on, else to train on. */
static int read_samples(Work *w, const Template *template, const TrainJob *job, Prompts *out) {
    const char *asked = spec_str(w->spec, "run.sample_prompts");
    char *end;
    double number = strtod(asked, &end);
    if (*end) {
        const char *slash = strrchr(w->options->args.item[0], '/'),
                   *file = w->options->args.item[0];
        const char *beside =
            arena_printf(w->arena, "%.*s%s", slash ? (int)(slash + 1 - file) : 0, file, asked);
        if (*asked != '/' && file_exists(beside)) asked = beside;
        return prompts_file(w, template, asked, false, out) ? EXIT_OK : work_fail(w);
    }
    bool eval = job->eval_pairs != NULL;
    const Pairs *pairs = eval ? job->eval_pairs : job->pairs;
    const int32_t *which = eval ? job->eval : job->train;
    int64_t all = !which ? pairs->n : eval ? job->neval : job->ntrain;
    prompts_pairs(w, pairs, which, number < (double)all ? (int64_t)number : all, out);
    return EXIT_OK;
}

/* Prompts for the job, and what the plan needs for their answers. */
static int open_samples(Work *w, const Template *template, Prompts *prompts, TrainJob *job) {
    enum { MAX_STOP = 64, AT_ONCE = 8 };
    if (spec_num(w->spec, "run.sample_every") == 0) return EXIT_OK;
    if (!generate_config_check(w)) return work_fail(w);
    int code = read_samples(w, template, job, prompts);
    if (code != EXIT_OK) return code;
    SamplePrompt *sample = NEW_ARRAY(w->arena, SamplePrompt, prompts->n + 1);
    int64_t longest = 1;
    for (int i = 0; i < prompts->n; i++) {
        const Prompt *p = &prompts->prompt[i];
        sample[i] = (SamplePrompt){p->text, p->ids.v, p->ids.n};
        longest = p->ids.n > longest ? p->ids.n : longest;
    }
    int32_t *stop = NEW_ARRAY(w->arena, int32_t, MAX_STOP);
    job->sample = sample;
    job->nsample = prompts->n;
    job->tokenizer = w->tokenizer;
    job->stop = stop;
    job->nstop = w->tokenizer ? generate_stops(w, template, stop, MAX_STOP) : 0;
    int64_t at_once = prompts->n < AT_ONCE ? prompts->n : AT_ONCE;
    int64_t room = generate_rows(longest, (int64_t)spec_num(w->spec, "run.sample_tokens"));
    w->generate = (GenerateBounds){.rows = 64, .sequences = at_once, .cache = at_once * room};
    return EXIT_OK;
}

/* ---- the run --------------------------------------------------------------------------------- */

static void job_of(const Work *w, const Pairs *pairs, TrainJob *job) {
    const Options *o = w->options;
    *job = (TrainJob){
        .pairs = pairs,
        .run_dir = o->out,
        .resume = o->resume,
        .resumes = o->resumes,
        .dry_run = o->dry_run,
        .quiet = o->quiet,
        .log_every = log_every(w),
        .starts_equal = spec_starts_equal(w->spec),
        .seed = work_seed(w),
        .spec_path = o->args.item[0],
        .spec_text = spec_text(w->spec),
        .data_hash = hex_of(w->arena, hash_pairs(pairs)),
        .command = command_json(w),
    };
}

static int open_run(Work *w) {
    const Options *o = w->options;
    int code = EXIT_OK;
    if (ranks_first() && run_dir_open(o->out, o->resumes, o->overwrite, &w->err) != EXIT_OK)
        code = work_fail(w);
    code = ranks_max(code);
    return code == EXIT_OK ? work_open(w) : code;
}

static int train_on(Work *w, TrainJob *job) {
    if (ranks_first() && w->options->overwrite && !w->options->dry_run)
        run_dir_clear(w->options->out);
    job->plan = w->plan;
    job->exec = w->exec;
    job->device = w->device;
    print_start(w, job);
    int code = job_train(job, &w->err);
    if (code != EXIT_OK && code < 128) work_fail(w);
    return code;
}

/* A run that goes on multiplies as it did before (train.c keeps the device's choices). */
static const char *run_choices(const Work *w) {
    const char *path = path_join(w->arena, w->options->out, RUN_CHOICES);
    return w->options->resumes && file_exists(path) ? path : NULL;
}

/* Log-probs of the reference; the first of several processes puts them into the file that the
 * others then read. */
static int open_reference(Work *w, Pairs *pairs, Pairs *extra) {
    if (!ranks_first()) ranks_barrier();
    int code = work_reference(w, pairs, false);
    if (code == EXIT_OK && extra) code = work_reference(w, extra, false);
    if (ranks_first()) ranks_barrier();
    return code;
}

/* Several processes, perhaps on machines with other files: one model, one set of pairs. */
static int check_ranks(Work *w, const Pairs *pairs, const Pairs *extra) {
    if (ranks_size() == 1) return EXIT_OK;
    const char *plan = w->plan->hash ? w->plan->hash : "";
    Hash128 weights, none = {0};
    if (!work_hash_weights(w, false, &weights)) return work_fail(w);
    RankFact facts[] = {{"model and settings", hash_bytes(plan, strlen(plan), none)},
                        {"weights", weights},
                        {"pairs to train on", hash_pairs(pairs)},
                        {"pairs to evaluate on", extra ? hash_pairs(extra) : none}};
    return ranks_same(facts, COUNT(facts), &w->err) ? EXIT_OK : work_fail(w);
}

/* From read pairs to the end of the run; `extra`: the evaluation's, where they are a file's. */
static int train_pairs(Work *w, const Template *template, Pairs *pairs, Pairs **extra,
                       Prompts *prompts) {
    TrainJob job;
    job_of(w, pairs, &job);
    int code = open_eval_set(w, template, pairs, extra, &job);
    if (code != EXIT_OK) return code;
    mix_files(w, pairs, &job);
    job.data = work_data_json(w, pairs, *extra);
    code = open_samples(w, template, prompts, &job);
    if (code == EXIT_OK) code = work_device(w, run_choices(w));
    bool want[NUNIT] = {[UNIT_TRAIN] = true, [UNIT_EVAL] = job.eval_pairs != NULL};
    want[UNIT_PREFILL] = want[UNIT_DECODE] = job.nsample > 0;
    if (code == EXIT_OK) code = work_compile(w, NULL, want);
    if (code == EXIT_OK) code = work_fit(w, pairs);
    if (code == EXIT_OK && *extra) code = work_fit(w, *extra);
    if (code == EXIT_OK) code = check_ranks(w, pairs, *extra);
    if (code == EXIT_OK) code = open_run(w);
    if (code == EXIT_OK && !w->options->dry_run) code = open_reference(w, pairs, *extra);
    return code == EXIT_OK ? train_on(w, &job) : code;
}

int verb_train(const Options *o) {
    if (!o->out) return work_usage("train needs -o RUN, the directory the run is written to");
    Work w;
    work_init(&w, o);
    Template template;
    Pairs *pairs = NULL, *extra = NULL;
    Prompts prompts = {0};
    int code = work_check(&w, NULL, true);
    if (code == EXIT_OK) code = work_template(&w, &template);
    if (code == EXIT_OK) code = work_train_pairs(&w, &template, &pairs);
    if (code == EXIT_OK) code = train_pairs(&w, &template, pairs, &extra, &prompts);
    prompts_free(&prompts);
    pairs_free(extra);
    pairs_free(pairs);
    work_close(&w);
    return code;
}
