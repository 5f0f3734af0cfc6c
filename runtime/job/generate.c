/* generate.c: answers to prompts, many at once, over the KV cache.
 *
 * The cache is cut into one place for each sequence of the plan.  A prompt waits for a free place;
 * its rows go through program "prefill" in pieces, together with those of other prompts, and the
 * last one's logits give its first token.  From then on program "decode" takes one row of every
 * answer that goes on.  Each answer is one segment of own keys: all rows of its place so far.
 *
 * Numbers of rows are rounded up to powers of two, so that a device prepares few sizes; rows that
 * only fill up are in no segment, and their keys are dropped.
 * Relies on exec.h, sample.c. */
#include <stdlib.h>
#include <string.h>

#include "job.h"

const char *const answer_ends[NANSWER] = {"interrupted", "stop", "length"};

enum { LEAST_ROWS = 16 }; /* of a piece */

typedef struct Place {   /* in the cache */
    Answer *answer;      /* NULL: free */
    int64_t begin, rows; /* of the cache, filled so far */
} Place;

typedef struct Inputs { /* of one run */
    int64_t rows, ends; /* token rows; sequences whose logits are wanted */
    int32_t *token, *pos, *row, *segs, *last;
    Place **at; /* whose logits row i has */
} Inputs;

typedef struct Generation {
    const GenerateJob *job;
    const char *prefill, *decode;
    Answer *answer;
    int64_t n, next; /* answers; the first without a place */
    Place *place;
    int64_t places, room; /* rows of each: as many as the longest answer needs */
    int64_t vocab;
    Inputs in;
    float *logits;
    Logit *work;
    GenerateStats stats;
} Generation;

/* ---- one run --------------------------------------------------------------------------------- */

static int64_t round_up(int64_t n, int64_t least, int64_t most) {
    int64_t to = least;
    while (to < n) to *= 2;
    return to < most ? to : most;
}

static void begin_run(Generation *g) {
    g->in.rows = g->in.ends = 0;
    memset(g->in.segs, 0, sizeof(int32_t) * 6 * (size_t)g->places);
}

static int32_t token_at(const Answer *a, int64_t i) {
    return i < a->nprompt ? a->prompt[i] : a->ids.v[i - a->nprompt];
}

/* The next n rows of a place: segment number `seg` of the run. */
static void add_rows(Generation *g, Place *p, int64_t seg, int64_t n) {
    Inputs *in = &g->in;
    int32_t *s = in->segs + 6 * seg;
    s[0] = (int32_t)in->rows;
    s[1] = (int32_t)n;
    s[4] = (int32_t)p->begin;
    s[5] = (int32_t)(p->rows + n);
    for (int64_t i = 0; i < n; i++, in->rows++) {
        in->token[in->rows] = token_at(p->answer, p->rows + i);
        in->pos[in->rows] = (int32_t)(p->rows + i);
        in->row[in->rows] = (int32_t)(p->begin + p->rows + i);
    }
    p->rows += n;
    if (p->rows < p->answer->nprompt) return;
    in->last[in->ends] = (int32_t)(in->rows - 1);
    in->at[in->ends++] = p;
}

/* Fills up to `rows` rows and `ends` sequences, runs, and reads the logits that are wanted. */
static bool run(Generation *g, bool decode, int64_t rows, int64_t ends, Err *err) {
    Inputs *in = &g->in;
    Exec *exec = g->job->exec;
    for (int64_t i = in->rows; i < rows; i++) {
        in->token[i] = in->pos[i] = 0;
        in->row[i] = -1;
    }
    for (int64_t i = in->ends; i < ends; i++) in->last[i] = 0;
    const size_t size = sizeof(int32_t);
    int64_t extent[NEXTENT] = {[X_N] = ends, [X_G] = decode ? ends : g->places};
    extent[X_H] = g->job->plan->bound[X_H];
    if (!decode) extent[X_T] = rows;
    bool ok = exec_write(exec, "tokens", in->token, size * (size_t)rows, err) &&
              exec_write(exec, "pos", in->pos, size * (size_t)rows, err) &&
              exec_write(exec, "cache.row", in->row, size * (size_t)rows, err) &&
              exec_write(exec, "segs", in->segs, size * 6 * (size_t)extent[X_G], err) &&
              (decode || exec_write(exec, "last", in->last, size * (size_t)ends, err)) &&
              exec_run(exec, decode ? g->decode : g->prefill, extent, err);
    const size_t bytes = sizeof(float) * (size_t)(in->ends * g->vocab);
    return ok && (!bytes || exec_read(exec, "logits", g->logits, bytes, err));
}

/* ---- answers --------------------------------------------------------------------------------- */

static AnswerEnd end_of(const GenerateJob *job, const Answer *a) {
    for (int i = 0; i < job->nstop; i++)
        if (job->stop[i] == a->ids.v[a->ids.n - 1]) return ANSWER_STOP;
    return a->ids.n >= job->max_tokens ? ANSWER_LENGTH : ANSWER_OPEN;
}

/* A token for each row of logits; the places of answers that end are free. */
static bool take_tokens(Generation *g, Err *err) {
    const GenerateJob *job = g->job;
    for (int64_t i = 0; i < g->in.ends; i++) {
        Place *p = g->in.at[i];
        Answer *a = p->answer;
        int32_t id = sample_token(&job->sampling, g->logits + i * g->vocab, g->vocab, a->key,
                                  (uint64_t)a->ids.n, g->work);
        if (id < 0)
            return fail(err, EXIT_NUMERIC, "no logit is a number behind token %lld of prompt %lld",
                        (long long)(p->rows - 1), (long long)(a - g->answer + 1));
        ids_push(&a->ids, id);
        a->end = end_of(job, a);
        if (a->end != ANSWER_OPEN) p->answer = NULL;
        if (job->watch) job->watch->token(job->watch, a);
        g->stats.tokens++;
    }
    return true;
}

static void give_places(Generation *g) {
    for (int64_t i = 0; i < g->places && g->next < g->n; i++) {
        if (g->place[i].answer) continue;
        g->place[i].answer = &g->answer[g->next++];
        g->place[i].rows = g->place[i].answer->cached;
    }
}

/* One piece of the prompts that are not in the cache yet; *more: it was not the last. */
static bool prefill(Generation *g, bool *more, Err *err) {
    const int64_t bound = g->job->plan->bound[X_T];
    const double begin = now_seconds();
    *more = false;
    begin_run(g);
    for (int64_t i = 0; i < g->places; i++) {
        Place *p = &g->place[i];
        if (!p->answer || p->rows >= p->answer->nprompt) continue;
        const int64_t left = p->answer->nprompt - p->rows, free = bound - g->in.rows;
        if (free > 0) add_rows(g, p, i, left < free ? left : free);
        *more |= left > free;
    }
    if (!g->in.rows) return true;
    g->stats.prompt_tokens += g->in.rows;
    bool ok = run(g, false, round_up(g->in.rows, LEAST_ROWS, bound),
                  round_up(g->in.ends, 1, g->places), err) &&
              take_tokens(g, err);
    g->stats.prefill_seconds += now_seconds() - begin;
    return ok;
}

/* The next token of every answer in the cache; *any: there are some. */
static bool decode(Generation *g, bool *any, Err *err) {
    const double begin = now_seconds();
    begin_run(g);
    for (int64_t i = 0; i < g->places; i++)
        if (g->place[i].answer) add_rows(g, &g->place[i], g->in.rows, 1);
    *any = g->in.rows > 0;
    if (!*any) return true;
    const int64_t rows = round_up(g->in.rows, 1, g->places);
    bool ok = run(g, true, rows, rows, err) && take_tokens(g, err);
    g->stats.decode_seconds += now_seconds() - begin;
    g->stats.runs++;
    return ok;
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* Finds the room of a place. */
static bool check(Generation *g, Err *err) {
    const int64_t rows = g->job->plan->bound[X_H];
    for (int64_t i = 0; i < g->n; i++) {
        const Answer *a = &g->answer[i];
        const int64_t need = generate_rows(a->nprompt, g->job->max_tokens);
        if (a->nprompt < 1)
            return fail(err, EXIT_INPUT, "prompt %lld is empty: there is nothing to continue",
                        (long long)i + 1);
        if (need > rows)
            return fail(err, EXIT_IO,
                        "prompt %lld has %lld tokens: with %lld of an answer it needs %lld rows of "
                        "the KV cache, which has %lld",
                        (long long)i + 1, (long long)a->nprompt, (long long)g->job->max_tokens,
                        (long long)need, (long long)rows);
        if (need > g->room) g->room = need;
        for (int64_t k = 0; k < a->nprompt; k++)
            if (a->prompt[k] < 0 || (g->job->plan->vocab && a->prompt[k] >= g->job->plan->vocab))
                return fail(err, EXIT_IO, "prompt %lld: token %d is not one of the model's %lld",
                            (long long)i + 1, a->prompt[k], (long long)g->job->plan->vocab);
    }
    return true;
}

static void set_up(Generation *g, Arena *arena) {
    const Plan *plan = g->job->plan;
    const int64_t *bound = plan->bound, rows = bound[X_T] > bound[X_N] ? bound[X_T] : bound[X_N];
    g->prefill = g->job->before ? "before.prefill" : "prefill";
    g->decode = g->job->before ? "before.decode" : "decode";
    g->places = bound[X_N] < bound[X_G] ? bound[X_N] : bound[X_G];
    if (g->places > bound[X_H] / g->room) g->places = bound[X_H] / g->room;
    g->place = NEW_ARRAY(arena, Place, g->places);
    for (int64_t i = 0; i < g->places; i++) g->place[i].begin = i * g->room;
    g->in.token = NEW_ARRAY(arena, int32_t, rows);
    g->in.pos = NEW_ARRAY(arena, int32_t, rows);
    g->in.row = NEW_ARRAY(arena, int32_t, rows);
    g->in.last = NEW_ARRAY(arena, int32_t, g->places);
    g->in.segs = NEW_ARRAY(arena, int32_t, 6 * g->places);
    g->in.at = NEW_ARRAY(arena, Place *, g->places);
    g->vocab = plan->bufs[plan_buf(plan, "logits")].shape[1].c;
    g->logits = NEW_ARRAY(arena, float, g->places * g->vocab);
    g->work = NEW_ARRAY(arena, Logit, g->vocab);
}

bool generate(const GenerateJob *job, Answer *answer, int64_t n, GenerateStats *stats, Err *err) {
    if (!plan_program(job->plan, job->before ? "before.decode" : "decode"))
        return fail(err, EXIT_BUG, "bug: the plan generates nothing");
    if (n < 1 || job->max_tokens < 1) return true;
    Arena *arena = arena_new();
    Generation g = {.job = job, .answer = answer, .n = n};
    bool ok = check(&g, err), any = ok;
    if (ok) set_up(&g, arena);
    while (ok && any && !stop_signal()) {
        bool more = true;
        give_places(&g);
        while (ok && more && !stop_signal()) ok = prefill(&g, &more, err);
        if (ok && !stop_signal()) ok = decode(&g, &any, err);
        any |= g.next < n;
    }
    if (stats) {
        stats->prompt_tokens += g.stats.prompt_tokens;
        stats->tokens += g.stats.tokens;
        stats->runs += g.stats.runs;
        stats->prefill_seconds += g.stats.prefill_seconds;
        stats->decode_seconds += g.stats.decode_seconds;
    }
    arena_free(arena);
    return ok;
}
