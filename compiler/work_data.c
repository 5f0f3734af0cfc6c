/* work_data.c: what verbs read: template, pairs as tokens, prompts.  See work.h. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/job/job.h"
#include "template.h"
#include "work.h"

const char *work_model_dir(const Work *w) {
    return w->options->model ? w->options->model : spec_base_path(w->spec);
}

int work_template(Work *w, Template *out) {
    *out = (Template){0};
    int code = work_tokenizer(w);
    if (code != EXIT_OK || !w->tokenizer) return code;
    const char *name = spec_str(w->spec, "data.template"), *date = spec_str(w->spec, "data.date");
    const TemplateDef *own;
    bool fits = spec_template(w->spec, w->tokenizer, &own);
    work_diagnostics(w);
    if (!fits) return EXIT_INPUT;
    if (!template_open(out, name, own, work_model_dir(w), w->tokenizer, date, &w->err))
        return work_fail(w);
    return EXIT_OK;
}

/* The place of a setting's word among `names`; what `like` says where it is auto. */
static int rule(const Spec *s, const char *path, const char *const *names, int like) {
    const char *word = spec_str(s, path);
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], word) == 0) return i;
    return like;
}

static int limit(const Spec *s, const char *path, int like) {
    return spec_given(s, path) ? (int)spec_num(s, path) : like;
}

static PairsOptions pairs_options(const Spec *s) {
    const PairsLike *like = pairs_like(spec_str(s, "data.like"));
    PairsOptions o = {
        .sft = spec_one_sided(s),
        .max_prompt = limit(s, "data.max_prompt", like->max_prompt),
        .max_answer = (int)spec_num(s, "data.max_answer"),
        .max_length = limit(s, "data.max_length", like->max_length),
        .dialect = spec_str(s, "data.dialect"),
        .limit = (int64_t)spec_num(s, "data.limit"),
        .prompt_key = spec_str(s, "data.columns.prompt"),
        .chosen_key = spec_str(s, "data.columns.chosen"),
        .rejected_key = spec_str(s, "data.columns.rejected"),
        .system_key = spec_str(s, "data.columns.system"),
    };
    o.bos = (PairsBos)rule(s, "data.bos", pairs_bos_names, like->bos);
    o.eos = (PairsEos)rule(s, "data.eos", pairs_eos_names, like->eos);
    o.boundary = (PairsBoundary)rule(s, "data.boundary", pairs_boundary_names, like->boundary);
    o.truncate = (PairsTruncate)rule(s, "data.truncation", pairs_truncate_names, like->truncate);
    o.columns = spec_columns(s, &o.ncolumns);
    return o;
}

static void print_warnings(const Work *w, const Pairs *p) {
    for (int i = 0; i < p->nwarnings; i++) {
        const PairsWarning *x = &p->warning[i];
        if (diags_silenced(w->diags, x->name)) continue;
        for (int k = 0; k < x->nline; k++)
            fprintf(stderr, "warning: %s [-W%s]\n", x->line[k], x->name);
        if (x->count > x->nline)
            fprintf(stderr, "warning: ... and %lld more like the last [-W%s]\n",
                    (long long)(x->count - x->nline), x->name);
    }
}

typedef struct ReadWatch {
    PairsWatch watch;
    ProgressNote note;
} ReadWatch;

static void show_reading(PairsWatch *watch, const char *path, int64_t records, double bytes,
                         double share) {
    ReadWatch *r = (ReadWatch *)watch;
    double rate = bytes / (now_seconds() - r->note.started);
    progress_say(&r->note, false, "reading %s: %.0f %%, %lld records, %.1f MB/s", path, share * 100,
                 (long long)records, rate * 1e-6);
}

int work_read_pairs(Work *w, const char *const *paths, int n, const Template *template,
                    Pairs **out) {
    PairsOptions options = pairs_options(w->spec);
    ReadWatch watch = {{show_reading}, progress_note()};
    if (!w->options->quiet && !w->options->json) options.watch = &watch.watch;
    *out = pairs_read(paths, n, &options, template, &w->err);
    progress_erase(&watch.note);
    if (!*out && strcmp(w->options->verb, "check") == 0) { /* `check` collects what is wrong */
        diag_file(w->diags, spec_loc(w->spec, "data.train"), "%s", w->err.text);
        work_diagnostics(w);
        return EXIT_INPUT;
    }
    if (!*out) return work_fail(w);
    print_warnings(w, *out);
    return EXIT_OK;
}

/* How text became tokens, where it was text. */
static void print_rules(const Work *w) {
    PairsOptions o = pairs_options(w->spec);
    fprintf(stderr, "  as %s: bos %s, eos %s, boundary %s, %s", spec_str(w->spec, "data.like"),
            pairs_bos_names[o.bos], pairs_eos_names[o.eos], pairs_boundary_names[o.boundary],
            pairs_truncate_names[o.truncate]);
    if (o.max_prompt) fprintf(stderr, ", max_prompt %d", o.max_prompt);
    if (o.max_answer) fprintf(stderr, ", max_answer %d", o.max_answer);
    if (o.max_length) fprintf(stderr, ", max_length %d", o.max_length);
    fputc('\n', stderr);
}

void work_summary(const Work *w, const char *what, const Pairs *p) {
    if (w->options->quiet || w->options->json) return;
    pairs_summary_text(p, what, stderr);
    print_rules(w);
}

char *work_data_json(const Work *w, const Pairs *train, const Pairs *eval) {
    PairsOptions o = pairs_options(w->spec);
    json_t *root = json_pack("{s:{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i}, s:o}", "rules", "like",
                             spec_str(w->spec, "data.like"), "bos", pairs_bos_names[o.bos], "eos",
                             pairs_eos_names[o.eos], "boundary", pairs_boundary_names[o.boundary],
                             "truncation", pairs_truncate_names[o.truncate], "max_prompt",
                             o.max_prompt, "max_answer", o.max_answer, "max_length", o.max_length,
                             "train", pairs_summary_json(train));
    if (eval) json_object_set_new(root, "eval", pairs_summary_json(eval));
    char *text = json_dumps(root, JSON_INDENT(1)), *copy = arena_str(w->arena, text ? text : "{}");
    free(text);
    json_decref(root);
    return copy;
}

int work_train_pairs(Work *w, const Template *template, Pairs **out) {
    int n;
    const DataFile *files = spec_data(w->spec, &n);
    const char **paths = NEW_ARRAY(w->arena, const char *, n + 1);
    for (int i = 0; i < n; i++) paths[i] = files[i].path;
    int code = work_read_pairs(w, paths, n, template, out);
    if (code == EXIT_OK) work_summary(w, "pairs", *out);
    return code;
}

int work_pairs(Work *w, Pairs **out) {
    Template template;
    int code = work_template(w, &template);
    return code == EXIT_OK ? work_train_pairs(w, &template, out) : code;
}

static int by_key(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int32_t *work_unlike(Work *w, const Pairs *pairs, const int32_t *train, int64_t n,
                     const Pairs *held, const int32_t *eval, int64_t neval, int64_t *left) {
    int32_t *out = NEW_ARRAY(w->arena, int32_t, n + 1);
    uint64_t *key = NEW_ARRAY(w->arena, uint64_t, neval + 1);
    for (int64_t i = 0; i < neval; i++) key[i] = pair_key(&held->pair[eval ? eval[i] : i]);
    qsort(key, (size_t)neval, sizeof *key, by_key);
    *left = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t item = train ? train[i] : (int32_t)i;
        uint64_t mine = pair_key(&pairs->pair[item]);
        if (!bsearch(&mine, key, (size_t)neval, sizeof *key, by_key)) out[(*left)++] = item;
    }
    return out;
}

int work_fit(Work *w, const Pairs *pairs) {
    PackOptions pack =
        pack_options_of(w->plan, spec_on(w->spec, "graph.prefix"), spec_one_sided(w->spec));
    return pack_check(&pack, pairs, w->plan->vocab, &w->err) ? EXIT_OK : work_fail(w);
}

bool work_prompt(Work *w, const Template *t, const char *text, bool chat, Ids *ids) {
    Message message = {"user", text, strlen(text)};
    if (!w->tokenizer)
        return fail(&w->err, EXIT_IO,
                    "%s: text needs a tokenizer, and there is neither "
                    "tokenizer.json nor tokenizer.model",
                    work_model_dir(w) ? work_model_dir(w) : "the model");
    if (chat) return template_encode(t, &message, 1, true, ids, &w->err);
    if (w->tokenizer->adds_bos && w->tokenizer->bos >= 0) ids_push(ids, w->tokenizer->bos);
    tokenizer_encode(w->tokenizer, text, strlen(text), false, ids);
    return true;
}

const char *work_model_spec(const Options *o) {
    if (o->spec) return o->spec;
    return o->args.n ? o->args.item[0] : "llama3.dpo";
}
