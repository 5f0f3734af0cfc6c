/* sample.c: the next token of a row of logits: greedy, or from its most probable tokens.
 *
 * p_i = exp(x_i / temperature) / sum; the top_k most probable stay, then of these the fewest whose
 * share reaches top_p, and one of them is drawn in proportion.  Candidates leave a heap one by one,
 * so that a vocabulary is never sorted.  Relies on base.h alone.  Promises: equal logits go by the
 * lower id; the draw depends on (seed, key, position) only. */
#include <math.h>

#include "job.h"

static bool before(const Logit *a, const Logit *b) {
    return a->value > b->value || (a->value == b->value && a->id < b->id);
}

static void sift(Logit *heap, int64_t n, int64_t i) {
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &heap[i])) return;
        Logit swap = heap[i];
        heap[i] = heap[child];
        heap[child] = swap;
    }
}

static int32_t argmax(const float *logits, int64_t n) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(logits[i]) && (best < 0 || logits[i] > logits[best])) best = i;
    return (int32_t)best;
}

static double weight(const Sampling *s, const Logit *x, double most) {
    return exp((x->value - most) / s->temperature);
}

/* Moves the candidates to the end of work, the most probable last; their number, and the sum of
 * their weights.  All of them stay as they are. */
static int64_t candidates(const Sampling *s, int64_t n, Logit *work, double most, double *total) {
    const int64_t keep = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    const bool cut = s->top_p > 0 && s->top_p < 1;
    const bool some = keep < n || cut;
    for (int64_t i = some ? n / 2 : 0; i-- > 0;) sift(work, n, i);
    double all = 0, part = 0;
    for (int64_t i = 0; i < n; i++) all += weight(s, &work[i], most);
    *total = all;
    if (!some) return n;
    int64_t count = 0;
    while (count < keep && (keep < n || part < s->top_p * all)) {
        const int64_t last = n - 1 - count++;
        Logit top = work[0];
        work[0] = work[last];
        work[last] = top;
        sift(work, last, 0);
        part += weight(s, &top, most);
    }
    if (keep < n && cut) { /* of the top_k, what reaches top_p of them */
        const double share = s->top_p * part;
        int64_t i = 0;
        for (part = 0; i < count && part < share; i++) part += weight(s, &work[n - 1 - i], most);
        count = i;
    }
    *total = part;
    return count;
}

int32_t sample_token(const Sampling *s, const float *logits, int64_t n, uint64_t key,
                     uint64_t position, Logit *work) {
    if (s->temperature <= 0) return argmax(logits, n);
    int64_t m = 0;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(logits[i])) work[m++] = (Logit){logits[i], (int32_t)i};
    if (!m) return -1;
    double total = 0, sum = 0;
    const double most = logits[argmax(logits, n)];
    const int64_t count = candidates(s, m, work, most, &total);
    const Logit *top = work + m - count; /* least probable first, where they were sorted */
    const double u = (double)(mix64(s->seed, key, position) >> 11) / 9007199254740992.0;
    for (int64_t i = count; i-- > 0;) {
        sum += weight(s, &top[i], most);
        if (sum > u * total) return top[i].id;
    }
    return top[0].id;
}
