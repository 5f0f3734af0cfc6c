/* verbs_generate.c: `generate`: answers to prompts, with --before also those without the adapter.
 *
 * One plan, made for these prompts: a cache for as many as are answered at once.  One prompt is
 * streamed; of several, each is printed when it and all before it are done. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "generate.h"
#include "prompts.h"

enum { SIDES = 2 }; /* after, before */

typedef struct Printer { /* what is shown while answers grow */
    GenerateWatch watch;
    Work *w;
    const Prompts *prompts;
    Answer *answer[SIDES]; /* [1] NULL: no --before */
    AnswerText stream;     /* of the only answer */
    bool streams;
    int shown;
} Printer;

/* ---- what is printed ------------------------------------------------------------------------- */

static char *text_of(const Printer *p, const Answer *a) {
    AnswerText text = {.tokenizer = p->w->tokenizer};
    answer_text(&text, a, true);
    char *kept = arena_str(p->w->arena, text.text.data ? text.text.data : "");
    answer_text_free(&text);
    return kept;
}

static void add_side(Text *line, const char *prefix, const char *text, const Answer *a) {
    text_add(line, ",\"%s\":", *prefix ? "before" : "answer");
    json_escape(line, text);
    if (!*prefix) text_add(line, ",\"prompt_tokens\":%lld", (long long)a->nprompt);
    text_add(line, ",\"%s%s\":%lld,\"%send\":\"%s\"", prefix, *prefix ? "tokens" : "answer_tokens",
             (long long)a->ids.n, prefix, answer_ends[a->end]);
    text_add(line, ",\"%s\":[", *prefix ? "before_ids" : "answer_ids");
    for (int64_t i = 0; i < a->ids.n; i++)
        text_add(line, i ? ",%lld" : "%lld", (long long)a->ids.v[i]);
    text_add(line, "]");
}

static void print_json(const Printer *p, int i) {
    Text line = {0};
    text_add(&line, "{\"prompt\":");
    json_escape(&line, p->prompts->prompt[i].text);
    add_side(&line, "", text_of(p, &p->answer[0][i]), &p->answer[0][i]);
    if (p->answer[1]) add_side(&line, "before_", text_of(p, &p->answer[1][i]), &p->answer[1][i]);
    text_add(&line, "}\n");
    fputs(line.data, stdout);
    text_free(&line);
}

static void print_text(const Printer *p, int i) {
    if (p->prompts->n > 1 || p->answer[1]) printf("> %s\n", p->prompts->prompt[i].text);
    if (p->answer[1]) printf("before: %s\nafter:  ", text_of(p, &p->answer[1][i]));
    printf("%s\n%s", text_of(p, &p->answer[0][i]), i + 1 < p->prompts->n ? "\n" : "");
}

/* Answers that are done, in order, up to the first that is not. */
static void print_done(Printer *p) {
    for (; p->shown < p->prompts->n; p->shown++) {
        if (p->answer[0][p->shown].end == ANSWER_OPEN) return;
        (p->w->options->json ? print_json : print_text)(p, p->shown);
        fflush(stdout);
    }
}

static void print_token(GenerateWatch *self, const Answer *answer) {
    Printer *p = (Printer *)self;
    if (!p->streams) {
        if (answer->end != ANSWER_OPEN) print_done(p);
        return;
    }
    const size_t from = answer_text(&p->stream, answer, answer->end != ANSWER_OPEN);
    if (p->stream.text.len > from)
        fwrite(p->stream.text.data + from, 1, p->stream.text.len - from, stdout);
    if (answer->end != ANSWER_OPEN) fputc('\n', stdout);
    fflush(stdout);
}

/* ---- the run --------------------------------------------------------------------------------- */

/* Memory for these prompts: a cache for so many at once, prompts in pieces of so many rows. */
static GenerateBounds bounds_of(const Work *w, const Prompts *prompts, int64_t at_once,
                                int64_t piece) {
    int64_t longest = 1, all = 0;
    for (int i = 0; i < prompts->n; i++) {
        const int64_t n = prompts->prompt[i].ids.n;
        longest = n > longest ? n : longest;
        all += n;
    }
    GenerateBounds b = {.sequences = at_once < prompts->n ? at_once : prompts->n, .rows = 16};
    b.cache = b.sequences * generate_rows(longest, generate_max_tokens(w));
    while (b.rows < all && b.rows < piece) b.rows *= 2;
    return b;
}

/* Fewer at once, then shorter pieces, until the plan fits. */
static int compile(Work *w, const Prompts *prompts) {
    const bool cuda = w->device->arch > 0;
    int64_t at_once = isnan(w->options->at_once) ? (cuda ? 32 : 8) : (int64_t)w->options->at_once;
    int64_t piece = cuda ? 2048 : 512;
    bool want[NUNIT] = {[UNIT_PREFILL] = true, [UNIT_DECODE] = true};
    want[UNIT_BEFORE_PREFILL] = want[UNIT_BEFORE_DECODE] = w->options->before;
    for (;;) {
        w->generate = bounds_of(w, prompts, at_once, piece);
        int code = work_compile(w, NULL, want);
        if (code != EXIT_OK || w->plan->fits || (w->generate.sequences == 1 && piece <= 64))
            return code;
        if (w->generate.sequences > 1)
            at_once = w->generate.sequences / 2;
        else
            piece /= 2;
        plan_free(w->plan);
        w->plan = NULL;
    }
}

/* What memory is for. */
static void print_start(const Work *w) {
    if (w->options->quiet || w->options->json) return;
    char cache[32], peak[32];
    int64_t bytes = 0;
    for (int i = 0; i < w->plan->nbufs; i++)
        if (w->plan->bufs[i].role == ROLE_CACHE) bytes += w->plan->bufs[i].bytes;
    format_bytes(cache, (double)bytes);
    format_bytes(peak, (double)w->plan->arena_bytes);
    fprintf(stderr, "%s of memory, %s of it a KV cache of %lld rows (%lld at once)\n", peak, cache,
            (long long)w->plan->bound[X_H], (long long)w->generate.sequences);
}

static Answer *answers_new(Work *w, const Prompts *prompts) {
    Answer *a = NEW_ARRAY(w->arena, Answer, prompts->n);
    for (int i = 0; i < prompts->n; i++)
        a[i] = (Answer){.prompt = prompts->prompt[i].ids.v,
                        .nprompt = prompts->prompt[i].ids.n,
                        .key = (uint64_t)i};
    return a;
}

static int answer(Work *w, const Template *t, const Prompts *prompts) {
    const Options *o = w->options;
    int32_t stop[64];
    GenerateStats stats = {0};
    Printer p = {.watch = {print_token}, .w = w, .prompts = prompts};
    p.stream.tokenizer = w->tokenizer;
    p.streams = prompts->n == 1 && !o->json && !o->before;
    GenerateJob job = {.exec = w->exec,
                       .plan = w->plan,
                       .sampling = generate_sampling(w),
                       .max_tokens = generate_max_tokens(w),
                       .stop = stop,
                       .nstop = generate_stops(w, t, stop, COUNT(stop))};
    stop_watch();
    bool ok = true;
    for (int side = SIDES - 1; ok && side >= 0; side--) {
        if (side && !o->before) continue;
        p.answer[side] = answers_new(w, prompts);
        job.before = side;
        job.watch = side ? NULL : &p.watch;
        ok = generate(&job, p.answer[side], prompts->n, &stats, &w->err);
    }
    if (ok && p.streams && stop_signal()) fputc('\n', stdout);
    if (ok) generate_print_stats(w, &stats);
    answer_text_free(&p.stream);
    for (int side = 0; side < SIDES; side++)
        for (int i = 0; p.answer[side] && i < prompts->n; i++) ids_free(&p.answer[side][i].ids);
    if (ok && stop_signal()) return 128 + stop_signal();
    return ok ? EXIT_OK : work_fail(w);
}

static char *read_stdin(void) {
    Text text = {0};
    char block[4096];
    for (size_t n; (n = fread(block, 1, sizeof block, stdin)) > 0;) text_addn(&text, block, n);
    text_addn(&text, "", 0);
    return text.data;
}

static int read_prompts(Work *w, const Template *t, Prompts *prompts) {
    const Options *o = w->options;
    bool ok = true;
    if (o->prompt) {
        char *text = strcmp(o->prompt, "-") ? NULL : read_stdin();
        ok = prompts_text(w, t, text ? text : o->prompt, prompts);
        free(text);
    }
    if (ok && o->chat && strcmp(o->chat, "-")) ok = prompts_file(w, t, o->chat, true, prompts);
    if (ok && o->prompts) ok = prompts_file(w, t, o->prompts, false, prompts);
    return ok ? EXIT_OK : work_fail(w);
}

/* Whether there is anything that --before can leave out. */
static bool adapted(const Work *w) {
    int n;
    const Source *sources = spec_sources(w->spec, &n);
    for (int i = 0; i < n; i++)
        if (sources[i].adapter && sources[i].dir) return true;
    return false;
}

int verb_generate(const Options *o) {
    if (!o->model && !o->spec && !o->args.n) return work_usage("generate needs --model DIR");
    if (!o->prompt && !o->chat && !o->prompts)
        return work_usage("generate needs --prompt TEXT, --prompts FILE or --chat FILE");
    const bool talks = o->chat && !strcmp(o->chat, "-");
    if (talks && (o->prompt || o->prompts || o->json || o->before))
        return work_usage("--chat - is a conversation, and goes with no other prompts");
    Work w;
    work_init(&w, o);
    Template template;
    Prompts prompts = {0};
    int code = work_check(&w, work_model_spec(o), false);
    if (code == EXIT_OK && o->before && !adapted(&w))
        code = work_usage("--before compares with an adapter: name one, --adapter DIR");
    if (code == EXIT_OK) code = work_template(&w, &template);
    if (code == EXIT_OK && !w.tokenizer) code = work_usage("this checkpoint has no tokenizer");
    if (code == EXIT_OK && !generate_config_check(&w)) code = work_fail(&w);
    if (code == EXIT_OK) code = read_prompts(&w, &template, &prompts);
    if (code == EXIT_OK) code = work_device(&w, NULL);
    if (code == EXIT_OK && talks && template.kind == TEMPLATE_NONE)
        code = work_usage("a conversation needs a chat template: --set data.template=NAME");
    if (code == EXIT_OK) code = talks ? chat_compile(&w) : compile(&w, &prompts);
    if (code == EXIT_OK) print_start(&w);
    if (code == EXIT_OK) code = work_open(&w);
    if (code == EXIT_OK && o->prompt && !o->json && prompts.n == 1 && !o->before)
        fputs(prompts.prompt[0].text, stdout);
    if (code == EXIT_OK) code = talks ? chat_run(&w, &template) : answer(&w, &template, &prompts);
    prompts_free(&prompts);
    work_close(&w);
    return code;
}
