/* pack.h: the pairs of one optimizer step as micro-batches of rows, without padding.
 *
 * A micro-batch is what programs "micro", "eval", "score" and "ref" read: extents and the input
 * arrays, by name. A row is a token that predicts something: the last token of an answer is a
 * target and no row. Without prefix sharing each sequence (prompt + answer) is one segment; with it
 * the prompt's rows are there once, and both answers have them as prefix.  T and R are filled to a
 * multiple of the bucket with one dummy segment and unscored rows.  Denominators are those of the
 * whole step.
 * Relies on pairs.h and plan.h.
 */
#ifndef DPOC_PACK_H
#define DPOC_PACK_H

#include "../io/pairs.h"
#include "../plan.h"

typedef struct PackOptions {
    int64_t bound[NEXTENT]; /* Plan.bound */
    int64_t bucket;         /* Plan.bucket */
    bool prefix;            /* share the prompt's rows */
    bool sft;               /* chosen side only */
    int rank, ranks;        /* of several processes (ranks > 1): the share of this one */
} PackOptions;

typedef struct PackItem {
    int64_t pair;  /* index into Pairs.pair */
    int64_t place; /* in its epoch */
    int64_t epoch;
} PackItem;

typedef struct PackInput { /* one input buffer of the plan: exec_write(name, data, bytes) */
    const char *name;
    const void *data;
    size_t bytes;
} PackInput;

typedef struct Micro {
    int64_t extent[NEXTENT];
    PackInput *input;
    int ninput;
    int32_t *item;  /* [P]: which of the step's items pair p is */
    int64_t tokens; /* rows that are not filling */
} Micro;

typedef struct Pack {
    Micro *micro;
    int nmicro;
    int64_t tokens; /* of all sequences, prompts counted per side, as TRL counts */
    int64_t chosen_tokens, rejected_tokens; /* answers: what the denominators are made of */
    Micro whole; /* all pairs of the step in order, without rows: what "objective" reads */
} Pack;

/* Micro-batches of n items (first fit, in order); everything lives in the arena.  The pairs must
 * have passed pack_check.  With several processes `micro` has the pairs dealt to this one, perhaps
 * none; counts, denominators and `whole` are those of all n. */
Pack *pack_step(Arena *arena, const PackOptions *options, const Pairs *pairs, const PackItem *items,
                int n);

/* Whether every pair fits into one micro-batch and no token is beyond the vocabulary (0: not
 * checked). False and err (exit 5) with file, line, the rows needed and the run.tokens that would
 * do for all. */
bool pack_check(const PackOptions *options, const Pairs *pairs, int64_t vocab, Err *err);
/* Rows one pair needs. */
int64_t pack_rows(const PackOptions *options, const Pair *pair);

#endif
