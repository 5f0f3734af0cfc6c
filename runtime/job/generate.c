/* generate.c: text from program "logits", one token at a time.
 *
 * The whole sequence is one segment and only its last row is scored; without a KV cache each new
 * token
 * recomputes the sequence.  Greedy when the temperature is 0; otherwise nucleus sampling,
 * counter-based
 * by (seed, position), so an answer can be repeated. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "job.h"

typedef struct Logit {
    float value;
    int32_t id;
} Logit;

static int by_value(const void *a, const void *b) {
    const Logit *x = a, *y = b;
    if (x->value != y->value) return x->value < y->value ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int32_t argmax(const float *logits, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

/* A token from the smallest set whose probability reaches top_p, at `temperature`; u in [0, 1). */
static int32_t sample(const float *logits, int64_t n, double temperature, double top_p, double u,
                      Logit *work) {
    for (int64_t i = 0; i < n; i++) work[i] = (Logit){logits[i], (int32_t)i};
    qsort(work, (size_t)n, sizeof *work, by_value);
    double total = 0, kept = 0;
    for (int64_t i = 0; i < n; i++) total += exp((work[i].value - work[0].value) / temperature);
    int64_t last = 0;
    for (; last < n; last++) {
        kept += exp((work[last].value - work[0].value) / temperature);
        if (kept >= top_p * total) break;
    }
    double at = u * kept, sum = 0;
    for (int64_t i = 0; i <= last && i < n; i++) {
        sum += exp((work[i].value - work[0].value) / temperature);
        if (sum > at) return work[i].id;
    }
    return work[last < n ? last : n - 1].id;
}

/* The inputs of one sequence as pack_step would make them for a prompt whose next token is
 * wanted. */
static bool run_logits(const GenerateJob *job, const Ids *ids, float *logits, int64_t vocab,
                       Err *err) {
    const Plan *plan = job->plan;
    int64_t n = ids->n, bucket = plan->bucket, rows = (n + bucket - 1) / bucket * bucket;
    Arena *arena = arena_new();
    int32_t *tokens = NEW_ARRAY(arena, int32_t, rows), *pos = NEW_ARRAY(arena, int32_t, rows);
    int32_t *row = NEW_ARRAY(arena, int32_t, bucket), *none = NEW_ARRAY(arena, int32_t, bucket);
    memcpy(tokens, ids->v, sizeof(int32_t) * (size_t)n);
    for (int64_t i = 0; i < rows; i++) pos[i] = (int32_t)(i < n ? i : i - n);
    for (int64_t i = 0; i < bucket; i++) none[i] = -1;
    row[0] = (int32_t)(n - 1);
    int32_t fill = (int32_t)(rows - n), own = (int32_t)n;
    int32_t segs[12] = {0, own, 0, 0, 0, own, own, fill, 0, 0, own, fill};
    int32_t ranges[8] = {0, own, 0, 1, own, fill, 1, 1};
    int64_t parts = fill > 0 ? 2 : 1;
    Micro micro = {
        .extent = {
            [X_T] = rows, [X_R] = bucket, [X_G] = parts, [X_K] = parts, [X_N] = 1, [X_P] = 1}};
    PackInput inputs[] = {
        {"tokens", tokens, sizeof(int32_t) * (size_t)rows},
        {"pos", pos, sizeof(int32_t) * (size_t)rows},
        {"row", row, sizeof(int32_t) * (size_t)bucket},
        {"target", none, sizeof(int32_t) * (size_t)bucket},
        {"segs", segs, sizeof(int32_t) * 6 * (size_t)parts},
        {"ranges", ranges, sizeof(int32_t) * 4 * (size_t)parts},
    };
    micro.input = inputs;
    micro.ninput = COUNT(inputs);
    bool ok = run_micro(job->exec, plan, "logits", &micro, err) &&
              exec_read(job->exec, "logits", logits, sizeof(float) * (size_t)vocab, err);
    arena_free(arena);
    return ok;
}

static bool is_stop(const GenerateJob *job, int32_t id) {
    for (int i = 0; i < job->nstop; i++)
        if (job->stop[i] == id) return true;
    return false;
}

void answer_text(const Tokenizer *t, const Ids *ids, int64_t begin, Text *out) {
    Text all = {0}, prompt = {0};
    tokenizer_decode(t, ids->v, ids->n, true, &all);
    tokenizer_decode(t, ids->v, begin, true, &prompt);
    if (all.len > prompt.len) text_addn(out, all.data + prompt.len, all.len - prompt.len);
    text_free(&all);
    text_free(&prompt);
}

/* Prints what the newest id adds to the answer; holds back an unfinished character. */
static void stream_new(const GenerateJob *job, const Ids *ids, int64_t begin, size_t *shown) {
    if (!job->stream || !job->tokenizer) return;
    Text text = {0};
    answer_text(job->tokenizer, ids, begin, &text);
    size_t len = text.len;
    if (len >= 3 && memcmp(text.data + len - 3, "\xef\xbf\xbd", 3) == 0) len -= 3;
    if (len > *shown) {
        fwrite(text.data + *shown, 1, len - *shown, job->stream);
        *shown = len;
    }
    fflush(job->stream);
    text_free(&text);
}

bool generate(const GenerateJob *job, Ids *ids, Err *err) {
    int buf = plan_buf(job->plan, "logits");
    if (buf < 0 || ids->n < 1) return fail(err, EXIT_INPUT, "an empty prompt cannot be continued");
    int64_t vocab = job->plan->bufs[buf].shape[1].c, begin = ids->n;
    float *logits = malloc(sizeof(float) * (size_t)vocab);
    Logit *work = malloc(sizeof(Logit) * (size_t)vocab);
    size_t shown = 0;
    bool ok = write_setting_inputs(job->exec, job->plan, err) &&
              write_seed(job->exec, job->plan, 0, 0, err);
    for (int64_t i = 0; ok && i < job->max_tokens && ids->n <= job->plan->bound[X_T]; i++) {
        ok = run_logits(job, ids, logits, vocab, err);
        if (!ok) break;
        double u = (double)(mix64(job->seed, (uint64_t)ids->n, 1) >> 11) / 9007199254740992.0;
        int32_t id = job->temperature > 0
                         ? sample(logits, vocab, job->temperature, job->top_p, u, work)
                         : argmax(logits, vocab);
        ids_push(ids, id);
        if (is_stop(job, id)) break;
        stream_new(job, ids, begin, &shown);
    }
    free(work);
    free(logits);
    return ok;
}
