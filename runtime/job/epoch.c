/* epoch.c: orders from a seed (epoch.h). */
#include "epoch.h"

#include <math.h> /* llround */

static uint64_t step(uint64_t x) { /* splitmix64's output function */
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

uint64_t mix64(uint64_t a, uint64_t b, uint64_t c) {
    return step(step(step(a) ^ b) ^ c);
}

/* A number below n, each equally likely but for one part in 2^32. */
static int64_t below(int64_t n, uint64_t a, uint64_t b, uint64_t c) {
    return (int64_t)((__uint128_t)mix64(a, b, c) * (uint64_t)n >> 64);
}

/* Fisher and Yates, from the end. */
static void permute(int32_t *order, int64_t n, uint64_t seed, uint64_t which) {
    for (int64_t i = 0; i < n; i++) order[i] = (int32_t)i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = below(i + 1, seed, which, (uint64_t)i);
        int32_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

void epoch_start(Epoch *e, Arena *arena, int64_t n, uint64_t seed, bool shuffle) {
    *e = (Epoch){.n = n, .seed = seed, .shuffle = shuffle, .epoch = -1};
    e->order = NEW_ARRAY(arena, int32_t, n);
}

int32_t epoch_item(Epoch *e, int64_t k) {
    int64_t epoch = k / e->n;
    if (!e->shuffle) return (int32_t)(k % e->n);
    if (epoch != e->epoch) {
        permute(e->order, e->n, e->seed, (uint64_t)epoch);
        e->epoch = epoch;
    }
    return e->order[k % e->n];
}

void epoch_split(Arena *arena, int64_t n, double fraction, uint64_t seed, int32_t **train,
                 int64_t *ntrain, int32_t **eval, int64_t *neval) {
    int64_t held = llround((double)n * fraction);
    if (fraction > 0 && held < 1) held = 1;
    if (held >= n) held = n - 1;
    int32_t *order = NEW_ARRAY(arena, int32_t, n);
    bool *out = NEW_ARRAY(arena, bool, n);
    permute(order, n, seed, UINT64_MAX); /* no epoch has this number */
    for (int64_t i = 0; i < held; i++) out[order[i]] = true;
    *train = NEW_ARRAY(arena, int32_t, n - held);
    *eval = NEW_ARRAY(arena, int32_t, held);
    *ntrain = *neval = 0;
    for (int32_t i = 0; i < n; i++) {
        if (out[i])
            (*eval)[(*neval)++] = i;
        else
            (*train)[(*ntrain)++] = i;
    }
}

/* How often an item appears. */
static int64_t times(double weight, uint64_t seed, int32_t item) {
    double whole = floor(weight);
    double chance = (double)(mix64(seed, UINT64_MAX - 1, (uint64_t)item) >> 11) * 0x1p-53;
    return (int64_t)whole + (chance < weight - whole);
}

int64_t epoch_mix(Arena *arena, const int32_t *item, int64_t n, const int32_t *file,
                  const double *weight, uint64_t seed, int32_t **out) {
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t it = item ? item[i] : (int32_t)i;
        total += times(weight[file[it]], seed, it);
    }
    *out = NEW_ARRAY(arena, int32_t, total + 1);
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t it = item ? item[i] : (int32_t)i;
        for (int64_t k = times(weight[file[it]], seed, it); k > 0; k--) (*out)[at++] = it;
    }
    if (at == 0) (*out)[at++] = item ? item[0] : 0;
    return at;
}
