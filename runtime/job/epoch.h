/* epoch.h: in which order pairs are visited, and which of them are held out.
 *
 * The training order is one endless sequence: item k is pair number (k mod n) of epoch (k / n)'s
 * order.  All of it follows from seed, so a run resumes from the number of items it has used.
 */
#ifndef DPOC_EPOCH_H
#define DPOC_EPOCH_H

#include "../base.h"

typedef struct Epoch { /* the order of the epoch asked for last */
    int64_t n;
    uint64_t seed;
    bool shuffle; /* false: file order, wrapping around */
    int64_t epoch;
    int32_t *order; /* [n] */
} Epoch;
void epoch_start(Epoch *e, Arena *arena, int64_t n, uint64_t seed, bool shuffle);
/* The pair that item k of the endless sequence is; its epoch is k / n, its place in it k % n. */
int32_t epoch_item(Epoch *e, int64_t k);

/* Splits 0..n-1 into a training and a held-out part, each in ascending order: round(n * fraction)
 * are held out, at least one and never all when fraction > 0.  Which ones depends on n and seed
 * only. */
void epoch_split(Arena *arena, int64_t n, double fraction, uint64_t seed, int32_t **train,
                 int64_t *ntrain, int32_t **eval, int64_t *neval);

/* A mixture: of items 0..n-1 (or item[0..n-1] where item is not NULL), item i belongs to file[i],
 * and weight[file] says how often it appears: its whole part, and once more with the chance of its
 * fraction.  In ascending order; at least one item remains. */
int64_t epoch_mix(Arena *arena, const int32_t *item, int64_t n, const int32_t *file,
                  const double *weight, uint64_t seed, int32_t **out);

/* A 64-bit value that depends on all of a, b, c: the source of every order above (splitmix64
 * steps). */
uint64_t mix64(uint64_t a, uint64_t b, uint64_t c);

#endif
