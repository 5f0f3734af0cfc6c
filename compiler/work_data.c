/* work_data.c: what verbs read: template, pairs as tokens, prompts.  See work.h. */
#include <math.h>
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

int work_read_pairs(Work *w, const char *const *paths, int n, const Template *template,
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

void work_summary(const Work *w, const char *what, const Pairs *p) {
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

int work_fit(Work *w, const Pairs *pairs) {
    PackOptions pack =
        pack_options_of(w->plan, spec_on(w->spec, "graph.prefix"), spec_one_sided(w->spec));
    return pack_check(&pack, pairs, w->plan->vocab, &w->err) ? EXIT_OK : work_fail(w);
}

bool work_prompt(Work *w, const Template *t, const char *text, bool chat, Ids *ids) {
    Message message = {"user", text, strlen(text)};
    if (chat) return template_encode(t, &message, 1, true, ids, &w->err);
    if (w->tokenizer->adds_bos && w->tokenizer->bos >= 0) ids_push(ids, w->tokenizer->bos);
    tokenizer_encode(w->tokenizer, text, strlen(text), false, ids);
    return true;
}

const char *work_model_spec(const Options *o) {
    if (o->spec) return o->spec;
    return o->args.n ? o->args.item[0] : "llama3.dpo";
}
