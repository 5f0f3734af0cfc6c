/* verbs_run.c: the verbs that run a plan on data: train, eval, generate, tokens.
 *
 * Each joins the two halves: a checked spec and its plan from the compiler, a job of the runtime.
 * */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/job/job.h"
#include "work.h"

/* ---- pairs ----------------------------------------------------------------------------------- */

static const char *model_dir(const Work *w) {
    return w->options->model ? w->options->model : spec_base_path(w->spec);
}

/* The template the settings name; a checkpoint without a tokenizer can only take token ids. */
static int open_template(Work *w, Template *out) {
    *out = (Template){0};
    int code = work_tokenizer(w);
    if (code != EXIT_OK || !w->tokenizer) return code;
    const char *name = spec_str(w->spec, "data.template"), *date = spec_str(w->spec, "data.date");
    if (!template_open(out, name, model_dir(w), w->tokenizer, date, &w->err)) return work_fail(w);
    return EXIT_OK;
}

static int read_pairs(Work *w, const char *const *paths, int n, const Template *template,
                      Pairs **out) {
    const Spec *s = w->spec;
    const char *truncation = spec_str(s, "data.truncation");
    PairsOptions options = {
        .sft = spec_one_sided(s),
        .max_prompt = (int)spec_num(s, "data.max_prompt"),
        .max_length = (int)spec_num(s, "data.max_length"),
        .truncate = truncation && strcmp(truncation, "keep_end") == 0 ? TRUNCATE_KEEP_END
                                                                      : TRUNCATE_KEEP_START,
        .limit = (int64_t)spec_num(s, "data.limit"),
        .prompt_key = spec_str(s, "data.columns.prompt"),
        .chosen_key = spec_str(s, "data.columns.chosen"),
        .rejected_key = spec_str(s, "data.columns.rejected"),
    };
    options.columns = spec_columns(s, &options.ncolumns);
    *out = pairs_read(paths, n, &options, template, &w->err);
    if (!*out) return work_fail(w);
    for (int i = 0; i < (*out)->nwarnings; i++)
        fprintf(stderr, "warning: %s\n", (*out)->warnings[i]);
    return EXIT_OK;
}

static void summarize(const Work *w, const char *what, const Pairs *p) {
    if (w->options->quiet || w->options->json) return;
    int64_t tokens = 0, longest = 0;
    for (int64_t i = 0; i < p->n; i++) {
        const Pair *x = &p->pair[i];
        int64_t chosen = x->prompt + x->chosen,
                rejected = x->rejected ? x->prompt + x->rejected : 0;
        tokens += chosen + rejected;
        longest = longest > chosen ? longest : chosen;
        longest = longest > rejected ? longest : rejected;
    }
    fprintf(stderr, "%s: %lld %s of %lld read, %lld tokens, longest sequence %lld", what,
            (long long)p->n, spec_one_sided(w->spec) ? "examples" : "pairs",
            (long long)p->counts.read, (long long)tokens, (long long)longest);
    if (p->counts.cut) fprintf(stderr, ", %lld cut", (long long)p->counts.cut);
    if (p->counts.too_long)
        fprintf(stderr, ", %lld left out (prompt too long)", (long long)p->counts.too_long);
    if (p->counts.identical)
        fprintf(stderr, ", %lld with equal answers", (long long)p->counts.identical);
    fputc('\n', stderr);
}

/* Training pairs: the files of data.train, one after the other. */
static int read_train_pairs(Work *w, const Template *template, Pairs **out) {
    int n;
    const DataFile *files = spec_data(w->spec, &n);
    const char **paths = NEW_ARRAY(w->arena, const char *, n + 1);
    for (int i = 0; i < n; i++) paths[i] = files[i].path;
    int code = read_pairs(w, paths, n, template, out);
    if (code == EXIT_OK) summarize(w, "pairs", *out);
    return code;
}

int work_pairs(Work *w, Pairs **out) {
    Template template;
    int code = open_template(w, &template);
    return code == EXIT_OK ? read_train_pairs(w, &template, out) : code;
}

/* Every pair must fit a micro-batch of this plan. */
static int check_fit(Work *w, const Pairs *pairs) {
    PackOptions pack =
        pack_options_of(w->plan, spec_on(w->spec, "graph.prefix"), spec_one_sided(w->spec));
    return pack_check(&pack, pairs, w->plan->vocab, &w->err) ? EXIT_OK : work_fail(w);
}

static char *hash_pairs(Arena *arena, const Pairs *p) {
    Hash128 h = {0};
    for (int64_t i = 0; i < p->n; i++) {
        const Pair *x = &p->pair[i];
        int32_t sizes[3] = {x->prompt, x->chosen, x->rejected};
        h = hash_bytes(sizes, sizeof sizes, h);
        h = hash_bytes(x->ids, sizeof(int32_t) * (size_t)(x->prompt + x->chosen + x->rejected), h);
    }
    if (p->ncolumns) h = hash_bytes(p->column, sizeof(float) * (size_t)(p->n * p->ncolumns), h);
    char hex[33];
    hash_hex(h, hex);
    return arena_str(arena, hex);
}

/* ---- train ----------------------------------------------------------------------------------- */

/* Fills the job's evaluation set from data.eval: a file, a share or a number of pairs. */
static int open_eval_set(Work *w, const Template *template, Pairs *pairs, Pairs **extra,
                         TrainJob *job) {
    const char *path = spec_str(w->spec, "data.eval");
    double share = path ? 0 : spec_num(w->spec, "data.eval");
    if (path) {
        int code = read_pairs(w, &path, 1, template, extra);
        if (code != EXIT_OK) return code;
        summarize(w, "eval pairs", *extra);
        job->eval_pairs = *extra;
    } else if (share > 0 && pairs->n > 1) {
        int32_t *train, *eval;
        double fraction = share < 1 ? share : share / (double)pairs->n;
        epoch_split(w->arena, pairs->n, fraction, job->seed, &train, &job->ntrain, &eval,
                    &job->neval);
        job->train = train;
        job->eval = eval;
        job->eval_pairs = pairs;
    }
    return EXIT_OK;
}

/* Files with weights: their pairs appear more or less often in an epoch. */
static void mix_files(Work *w, const Pairs *pairs, TrainJob *job) {
    int n, mixed = 0;
    const DataFile *files = spec_data(w->spec, &n);
    double *weight = NEW_ARRAY(w->arena, double, n + 1);
    for (int i = 0; i < n; i++) mixed += (weight[i] = files[i].weight) != 1;
    if (!mixed) return;
    int32_t *file = NEW_ARRAY(w->arena, int32_t, pairs->n), *out;
    for (int64_t i = 0; i < pairs->n; i++) file[i] = pairs->pair[i].file;
    int64_t all = job->train ? job->ntrain : pairs->n;
    job->ntrain = epoch_mix(w->arena, job->train, all, file, weight, job->seed, &out);
    job->train = out;
    Hash128 hash = hash_bytes(weight, sizeof *weight * (size_t)n, (Hash128){0, 0});
    char hex[33];
    hash_hex(hash, hex);
    job->data_hash = arena_printf(w->arena, "%s-%.8s", job->data_hash, hex);
}

static void print_start(const Work *w) {
    const Plan *p = w->plan;
    if (w->options->quiet) return;
    char peak[32];
    format_bytes(peak, (double)p->arena_bytes);
    fprintf(stderr,
            "parameters: %.4g, trainable %.4g (%.2f %%); memory: %s, known before the run\n",
            p->parameters_total, p->parameters_trainable,
            100 * p->parameters_trainable / fmax(1, p->parameters_total), peak);
}

static int train_on(Work *w, Pairs *pairs, const Template *template) {
    const Options *o = w->options;
    TrainJob job = {
        .plan = w->plan,
        .pairs = pairs,
        .run_dir = o->out,
        .resume = o->resume,
        .resumes = o->resumes,
        .dry_run = o->dry_run,
        .quiet = o->quiet,
        .coupled = spec_coupled(w->spec),
        .log_every = isnan(o->log_every) ? 0 : (int64_t)o->log_every,
        .seed = work_seed(w),
        .spec_path = o->args.item[0],
        .spec_text = spec_text(w->spec),
        .data_hash = hash_pairs(w->arena, pairs),
    };
    Pairs *extra = NULL;
    int code = open_eval_set(w, template, pairs, &extra, &job);
    mix_files(w, pairs, &job);
    if (code == EXIT_OK && extra) code = check_fit(w, extra);
    if (code == EXIT_OK)
        code = run_dir_open(o->out, o->resumes, o->overwrite, &w->err) == EXIT_OK ? EXIT_OK
                                                                                  : work_fail(w);
    if (code == EXIT_OK) code = work_open(w);
    if (code == EXIT_OK) {
        if (o->overwrite && !o->dry_run) run_dir_clear(o->out);
        job.exec = w->exec;
        job.device = w->device;
        print_start(w);
        code = job_train(&job, &w->err);
        if (code != EXIT_OK && code < 128) work_fail(w);
    }
    pairs_free(extra);
    return code;
}

/* A run that goes on multiplies as it did before (train.c keeps the device's choices). */
static const char *run_choices(const Work *w) {
    const char *path = path_join(w->arena, w->options->out, RUN_CHOICES);
    return w->options->resumes && file_exists(path) ? path : NULL;
}

int verb_train(const Options *o) {
    if (!o->out) return work_usage("train needs -o RUN, the directory the run is written to");
    Work w;
    work_init(&w, o);
    Template template;
    Pairs *pairs = NULL;
    int code = work_check(&w, NULL, true);
    bool want[NUNIT] = {[UNIT_TRAIN] = true};
    if (code == EXIT_OK) code = open_template(&w, &template);
    if (code == EXIT_OK) code = read_train_pairs(&w, &template, &pairs);
    if (code == EXIT_OK) {
        want[UNIT_EVAL] = spec_str(w.spec, "data.eval") || spec_num(w.spec, "data.eval") > 0;
        code = work_device(&w, run_choices(&w));
    }
    if (code == EXIT_OK) code = work_compile(&w, NULL, want);
    if (code == EXIT_OK) code = check_fit(&w, pairs);
    if (code == EXIT_OK) code = train_on(&w, pairs, &template);
    pairs_free(pairs);
    work_close(&w);
    return code;
}

/* ---- eval ------------------------------------------------------------------------------------ */

int verb_eval(const Options *o) {
    Work w;
    work_init(&w, o);
    Template template;
    Pairs *pairs = NULL;
    static const bool want[NUNIT] = {[UNIT_EVAL] = true};
    int code = work_check(&w, NULL, true);
    if (code == EXIT_OK) code = open_template(&w, &template);
    if (code == EXIT_OK) code = read_train_pairs(&w, &template, &pairs);
    if (code == EXIT_OK) code = work_device(&w, NULL);
    if (code == EXIT_OK) code = work_compile(&w, NULL, want);
    if (code == EXIT_OK) code = check_fit(&w, pairs);
    if (code == EXIT_OK) code = work_open(&w);
    if (code == EXIT_OK) {
        Evaluation e;
        if (!evaluate(w.exec, w.plan, pairs, NULL, pairs->n, w.arena, &e, &w.err))
            code = work_fail(&w);
        else if (o->json)
            evaluation_json(w.plan, pairs, &e, stdout);
        else
            evaluation_text(w.plan, &e, stdout);
    }
    pairs_free(pairs);
    work_close(&w);
    return code;
}

/* ---- generate -------------------------------------------------------------------------------- */

static void add_stop(int32_t *stop, int *n, int max, int32_t id) {
    if (id >= 0 && *n < max) stop[(*n)++] = id;
}

/* eos of the tokenizer and of generation_config.json (a number or a list). */
static int stop_tokens(const Work *w, int32_t *stop, int max) {
    int n = 0;
    add_stop(stop, &n, max, w->tokenizer->eos);
    json_t *config =
        json_load_file(path_join(w->arena, model_dir(w), "generation_config.json"), 0, NULL);
    json_t *eos = json_object_get(config, "eos_token_id");
    if (json_is_integer(eos)) add_stop(stop, &n, max, (int32_t)json_integer_value(eos));
    for (size_t i = 0; json_is_array(eos) && i < json_array_size(eos); i++)
        add_stop(stop, &n, max, (int32_t)json_integer_value(json_array_get(eos, i)));
    json_decref(config);
    return n;
}

/* Prompt ids: a conversation through the template, or text after bos where the tokenizer adds
 * one. */
static bool prompt_ids(Work *w, const Template *t, const char *text, bool chat, Ids *ids) {
    Message message = {"user", text, strlen(text)};
    if (chat) return template_encode(t, &message, 1, true, ids, &w->err);
    if (w->tokenizer->adds_bos && w->tokenizer->bos >= 0) ids_push(ids, w->tokenizer->bos);
    tokenizer_encode(w->tokenizer, text, strlen(text), false, ids);
    return true;
}

/* Continues `ids`, which stand for `text`. */
static bool answer_ids(Work *w, const char *text, Ids *ids) {
    const Options *o = w->options;
    int32_t stop[64];
    int64_t prompt = ids->n;
    GenerateJob job = {.exec = w->exec,
                       .plan = w->plan,
                       .tokenizer = w->tokenizer,
                       .max_tokens = isnan(o->max_tokens) ? 128 : (int64_t)o->max_tokens,
                       .temperature = isnan(o->temperature) ? 0 : o->temperature,
                       .top_p = isnan(o->top_p) ? 1 : o->top_p,
                       .seed = work_seed(w),
                       .stop = stop,
                       .nstop = stop_tokens(w, stop, COUNT(stop)),
                       .stream = o->json ? NULL : stdout};
    bool ok = generate(&job, ids, &w->err);
    if (ok && o->json) {
        Text out = {0}, line = {0};
        tokenizer_decode(w->tokenizer, ids->v + prompt, ids->n - prompt, true, &out);
        text_add(&line, "{\"prompt\":");
        json_escape(&line, text);
        text_add(&line, ",\"answer\":");
        json_escape(&line, out.data ? out.data : "");
        text_add(&line, ",\"prompt_tokens\":%lld,\"answer_tokens\":%lld}\n", (long long)prompt,
                 (long long)(ids->n - prompt));
        fputs(line.data, stdout);
        text_free(&out);
        text_free(&line);
    } else if (ok) {
        fputc('\n', stdout);
    }
    return ok;
}

static int answer(Work *w, const Template *t, const char *text, bool chat, bool echo) {
    Ids ids = {0};
    if (echo && !w->options->json) fputs(text, stdout);
    bool ok = prompt_ids(w, t, text, chat, &ids) && answer_ids(w, text, &ids);
    ids_free(&ids);
    return ok ? EXIT_OK : work_fail(w);
}

/* A conversation: [{"role": .., "content": ..}, ..]. */
static bool answer_messages(Work *w, const Template *t, const char *path, const json_t *list) {
    int n = (int)json_array_size(list);
    if (t->kind == TEMPLATE_NONE)
        return fail(&w->err, EXIT_USAGE, "%s is a conversation: name a data.template", path);
    if (n == 0) return fail(&w->err, EXIT_IO, "%s: no message", path);
    Message *m = NEW_ARRAY(w->arena, Message, n);
    for (int i = 0; i < n; i++) {
        const json_t *one = json_array_get(list, (size_t)i);
        m[i].role = json_string_value(json_object_get(one, "role"));
        m[i].content = json_string_value(json_object_get(one, "content"));
        if (!m[i].role || !m[i].content)
            return fail(&w->err, EXIT_IO, "%s: message %d wants \"role\" and \"content\"", path,
                        i + 1);
        m[i].len = strlen(m[i].content);
    }
    Ids ids = {0};
    bool ok =
        template_encode(t, m, n, true, &ids, &w->err) && answer_ids(w, m[n - 1].content, &ids);
    ids_free(&ids);
    return ok;
}

/* One line of a file of prompts: text, or {"prompt": ..}. */
static int answer_line(Work *w, const Template *t, const char *path, int number, const char *line,
                       bool chat) {
    json_error_t e;
    json_t *o = *line == '{' ? json_loads(line, 0, &e) : NULL;
    const char *prompt = *line == '{' ? json_string_value(json_object_get(o, "prompt")) : line;
    int code = EXIT_OK;
    if (prompt) {
        code = answer(w, t, prompt, chat, false);
    } else {
        fail(&w->err, EXIT_IO, "%s:%d: %s", path, number, o ? "no text \"prompt\"" : e.text);
        code = work_fail(w);
    }
    json_decref(o);
    return code;
}

/* --chat FILE: a conversation, or one prompt a line. */
static int answer_file(Work *w, const Template *t, const char *path, bool chat) {
    size_t len;
    char *text = file_read(path, &len, &w->err);
    if (!text) return work_fail(w);
    int code = EXIT_OK, number = 1;
    json_error_t e;
    json_t *list = text[strspn(text, " \t\r\n")] == '[' ? json_loads(text, 0, &e) : NULL;
    if (list) {
        if (!answer_messages(w, t, path, list)) code = work_fail(w);
    } else {
        for (char *line = text, *end; *line && code == EXIT_OK; line = end, number++) {
            end = line + strcspn(line, "\n");
            if (*end) *end++ = 0;
            if (*line) code = answer_line(w, t, path, number, line, chat);
        }
    }
    json_decref(list);
    free(text);
    return code;
}

/* The file that describes the model: by default any of models/, whose `base = auto` then picks the
 * model by its model_type. */
static const char *model_spec(const Options *o) {
    if (o->spec) return o->spec;
    return o->args.n ? o->args.item[0] : "llama3.dpo";
}

int verb_generate(const Options *o) {
    if (!o->model && !o->spec) return work_usage("generate needs --model DIR");
    if (!o->prompt && !o->chat) return work_usage("generate needs --prompt TEXT or --chat FILE");
    Work w;
    work_init(&w, o);
    Template template;
    static const bool want[NUNIT] = {[UNIT_LOGITS] = true};
    int code = work_check(&w, model_spec(o), false);
    if (code == EXIT_OK) code = open_template(&w, &template);
    if (code == EXIT_OK && !w.tokenizer) code = work_usage("this checkpoint has no tokenizer");
    if (code == EXIT_OK) code = work_device(&w, NULL);
    if (code == EXIT_OK) code = work_compile(&w, NULL, want);
    if (code == EXIT_OK) code = work_open(&w);
    bool chat =
        code == EXIT_OK && template.kind != TEMPLATE_NONE && template.kind != TEMPLATE_PLAIN;
    if (code == EXIT_OK && o->prompt) code = answer(&w, &template, o->prompt, false, true);
    if (code == EXIT_OK && o->chat) code = answer_file(&w, &template, o->chat, chat);
    work_close(&w);
    return code;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static void print_ids(const Work *w, const char *what, const int32_t *ids, int n, bool scored) {
    for (int i = 0; i < n; i++) {
        const char *piece = w->tokenizer ? tokenizer_piece(w->tokenizer, ids[i]) : NULL;
        printf("%-8s %6d  %c  %s\n", what, ids[i], scored ? '1' : '0', piece ? piece : "");
    }
}

int verb_tokens(const Options *o) {
    if (!o->model) return work_usage("tokens needs --model DIR");
    if (!o->text && o->data.n == 0) return work_usage("tokens needs --text S or --data PAIRS");
    Work w;
    work_init(&w, o);
    Template template;
    Pairs *pairs = NULL;
    int code = work_check(&w, model_spec(o), false);
    if (code == EXIT_OK) code = open_template(&w, &template);
    if (code == EXIT_OK && o->text) {
        Ids ids = {0};
        if (!w.tokenizer)
            code = work_usage("this checkpoint has no tokenizer");
        else if (!prompt_ids(&w, &template, o->text, false, &ids))
            code = work_fail(&w);
        print_ids(&w, "text", ids.v, (int)ids.n, false);
        ids_free(&ids);
    }
    if (code == EXIT_OK && o->data.n)
        code = read_pairs(&w, o->data.item, o->data.n, &template, &pairs);
    for (int64_t i = 0; pairs && i < pairs->n; i++) {
        const Pair *p = &pairs->pair[i];
        printf("# %s\n", pair_where(w.arena, pairs, p));
        print_ids(&w, "prompt", p->ids, p->prompt, false);
        print_ids(&w, "chosen", pair_chosen(p), p->chosen, true);
        print_ids(&w, "rejected", pair_rejected(p), p->rejected, true);
    }
    pairs_free(pairs);
    work_close(&w);
    return code;
}
