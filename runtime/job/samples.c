/* samples.c: see run.h: what the policy answers while it is trained. */
#include <string.h>

#include "run.h"

bool samples_open(Run *r, bool goes_on, Err *err) {
    if (!r->job->nsample) return true;
    r->samples = metrics_open(path_join(r->arena, r->job->run_dir, "samples.jsonl"),
                              goes_on ? r->state.step : -1, err);
    return r->samples != NULL;
}

/* Text, or ids where there is no tokenizer. */
static void text_of_answer(const Run *r, const Answer *a, Text *out) {
    text_addn(out, "", 0);
    if (r->job->tokenizer) {
        AnswerText text = {.tokenizer = r->job->tokenizer};
        answer_text(&text, a, true);
        if (text.text.len) text_addn(out, text.text.data, text.text.len);
        answer_text_free(&text);
    }
    for (int64_t i = 0; !r->job->tokenizer && i < a->ids.n; i++)
        text_add(out, "%s%d", i ? " " : "", a->ids.v[i]);
}

static bool log_answer(Run *r, int i, const Answer *a, const char *text, Err *err) {
    MetricsFile *m = r->samples;
    metrics_begin(m, "sample");
    metrics_int(m, "step", r->state.step);
    metrics_time(m);
    metrics_int(m, "index", i);
    metrics_str(m, "prompt", r->job->sample[i].text);
    metrics_str(m, "answer", text);
    metrics_int(m, "tokens", a->ids.n);
    metrics_str(m, "end", answer_ends[a->end]);
    return metrics_end(m, err);
}

/* The first answer's beginning, on one line. */
static void show(const Run *r, const char *text) {
    if (r->job->quiet) return;
    progress_break(&r->progress);
    fprintf(stderr, "sample at step %lld: ", (long long)r->state.step);
    for (int n = 0; *text && n < 100; text++) {
        bool begins = ((unsigned char)*text & 0xC0) != 0x80; /* of a character */
        n += begins;
        if (n < 100) fputc((unsigned char)*text < 0x20 ? ' ' : *text, stderr);
    }
    fputs(*text ? "..\n" : "\n", stderr);
}

static bool log_answers(Run *r, const Answer *answer, Err *err) {
    bool ok = true;
    tfevents_begin(r->events, metrics_wall(), r->state.step);
    for (int i = 0; i < r->job->nsample && ok; i++) {
        Text text = {0};
        text_of_answer(r, &answer[i], &text);
        if (i == 0) show(r, text.data);
        ok = log_answer(r, i, &answer[i], text.data, err);
        char tag[32];
        snprintf(tag, sizeof tag, "samples/%d", i);
        tfevents_text(r->events, tag,
                      arena_printf(r->arena, "**%s**\n\n%s", r->job->sample[i].text, text.data));
        text_free(&text);
    }
    return ok && tfevents_end(r->events, err);
}

bool samples_take(Run *r, Err *err) {
    const TrainJob *job = r->job;
    if (!job->nsample || metrics_kept_step(r->samples) == r->state.step) return true;
    Arena *arena = arena_new();
    Answer *answer = NEW_ARRAY(arena, Answer, job->nsample);
    for (int i = 0; i < job->nsample; i++)
        answer[i] = (Answer){.prompt = job->sample[i].ids, .nprompt = job->sample[i].n};
    GenerateJob generation = {.exec = job->exec,
                              .plan = r->plan,
                              .max_tokens = (int64_t)plan_num(r->plan, "run.sample_tokens"),
                              .stop = job->stop,
                              .nstop = job->nstop};
    bool ok = generate(&generation, answer, job->nsample, NULL, err);
    if (ok && !stop_signal()) ok = log_answers(r, answer, err);
    for (int i = 0; i < job->nsample; i++) ids_free(&answer[i].ids);
    arena_free(arena);
    return ok;
}
