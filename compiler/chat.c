/* chat.c: `generate --chat -`: a conversation, a line of stdin at a time.
 *
 * The KV cache is kept from turn to turn: of the next prompt only what differs from what was put in
 * is computed.  (An answer's own ids need not be those that its text has in the next prompt.)  */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h> /* isatty */

#include "generate.h"

enum { CONTEXT = 4096, LEAST = 256, PIECE = 512 };

int chat_compile(Work *w) {
    const double asked = w->options->context;
    static const bool want[NUNIT] = {[UNIT_PREFILL] = true, [UNIT_DECODE] = true};
    for (int64_t rows = isnan(asked) ? CONTEXT : (int64_t)asked;; rows /= 2) {
        w->generate = (GenerateBounds){PIECE, 1, rows};
        int code = work_compile(w, NULL, want);
        if (code != EXIT_OK || w->plan->fits || !isnan(asked) || rows <= LEAST) return code;
        plan_free(w->plan);
        w->plan = NULL;
    }
}

typedef struct Chat {
    GenerateWatch watch;
    Work *w;
    const Template *template;
    Message *message;
    int n, cap;
    Ids held; /* what the cache holds */
    AnswerText text;
} Chat;

static void show(GenerateWatch *self, const Answer *answer) {
    Chat *c = (Chat *)self;
    const size_t from = answer_text(&c->text, answer, answer->end != ANSWER_OPEN);
    if (c->text.text.len > from)
        fwrite(c->text.text.data + from, 1, c->text.text.len - from, stdout);
    if (answer->end != ANSWER_OPEN) fputc('\n', stdout);
    fflush(stdout);
}

static void say(Chat *c, const char *role, const char *text) {
    Message m = {role, arena_str(c->w->arena, text), strlen(text)};
    PUSH(c->w->arena, c->message, c->n, c->cap, m);
}

/* What the prompt and the cache begin with alike; one row at least is left to be computed. */
static int64_t in_common(const Ids *held, const Ids *prompt) {
    int64_t n = 0;
    while (n < held->n && n + 1 < prompt->n && held->v[n] == prompt->v[n]) n++;
    return n;
}

static void hold(Chat *c, const Answer *a) {
    c->held.n = 0;
    for (int64_t i = 0; i < a->nprompt; i++) ids_push(&c->held, a->prompt[i]);
    for (int64_t i = 0; i + 1 < a->ids.n; i++) ids_push(&c->held, a->ids.v[i]);
}

static bool turn(Chat *c, GenerateJob *job, int number, GenerateStats *stats) {
    Err *err = &c->w->err;
    Ids prompt = {0};
    bool ok = template_encode(c->template, c->message, c->n, true, &prompt, err);
    const int64_t room = c->w->plan->bound[X_H] - prompt.n;
    if (ok && room < 1)
        ok = fail(err, EXIT_IO,
                  "the conversation has %lld tokens; a larger --context than %lld "
                  "holds it",
                  (long long)prompt.n, (long long)c->w->plan->bound[X_H]);
    if (ok) {
        job->max_tokens = generate_max_tokens(c->w);
        if (job->max_tokens > room) job->max_tokens = room;
        Answer a = {.prompt = prompt.v, .nprompt = prompt.n, .key = (uint64_t)number};
        a.cached = in_common(&c->held, &prompt);
        c->text = (AnswerText){.tokenizer = c->w->tokenizer};
        ok = generate(job, &a, 1, stats, err);
        if (ok) say(c, "assistant", c->text.text.data ? c->text.text.data : "");
        hold(c, &a);
        answer_text_free(&c->text);
        ids_free(&a.ids);
    }
    ids_free(&prompt);
    return ok;
}

int chat_run(Work *w, const Template *t) {
    int32_t stop[64];
    GenerateStats stats = {0};
    Chat c = {.watch = {show}, .w = w, .template = t};
    GenerateJob job = {.exec = w->exec,
                       .plan = w->plan,
                       .sampling = generate_sampling(w),
                       .stop = stop,
                       .nstop = generate_stops(w, t, stop, COUNT(stop)),
                       .watch = &c.watch};
    const bool asks = isatty(STDIN_FILENO) && !w->options->quiet;
    char *line = NULL;
    size_t size = 0;
    bool ok = true;
    stop_watch();
    for (int number = 0; ok && !stop_signal();) {
        if (asks) fputs("> ", stderr);
        ssize_t n = getline(&line, &size, stdin);
        if (n < 0) break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (!n) continue;
        say(&c, "user", line);
        ok = turn(&c, &job, number++, &stats);
    }
    if (ok && (asks || stop_signal())) fputc('\n', stdout);
    if (ok) generate_print_stats(w, &stats);
    free(line);
    ids_free(&c.held);
    if (ok && stop_signal()) return 128 + stop_signal();
    return ok ? EXIT_OK : work_fail(w);
}
