/* stage.h: a Kern cut into passes over the columns.
 *
 * A reduction over columns ends a pass; what uses its result is computed in a later one.  An ELEM
 * value that several passes need is computed again when that is cheap (its loads then come from
 * the cache) or when nothing may be kept, else it is kept in a buffer of one row.  What is stored
 * where the Kern also reads is stored in the last pass, so that a later pass never reads a value
 * already overwritten. Relies on kern.h.  Promises: order and rounding as kern.h's LAWS say,
 * whatever is kept.
 */
#ifndef DPOC_STAGE_H
#define DPOC_STAGE_H

#include "kern.h"

typedef struct Stages {
    const Kern *k;
    Arena *arena;
    KLevel *level; /* of values: the greatest of the operands' levels; reductions give ROW */
    int *depth;    /* first pass in which the value can be computed */
    int *end;  /* the pass whose loop over columns folds this reduction or does this store, or -1 */
    int *kept; /* the pass that puts this value into a row buffer, or -1 */
    int npass;
    bool *need; /* [npass][nval]: the value is used per column in that pass */
    bool flat;  /* no reductions and no rows: one loop over n[0] * cols elements */
    bool folds; /* has reductions over columns */
} Stages;

Stages *stages_new(const Kern *k, bool keep);
void stages_free(Stages *s);

/* Whether pass p uses value v per column, and whether it then computes it (else: reads its
 * buffer). */
bool stage_needs(const Stages *s, int p, int v);
bool stage_computes(const Stages *s, int p, int v);
bool stage_reduces(const Stages *s, int p);     /* the pass ends in reductions */
bool stage_has_columns(const Stages *s, int p); /* the pass has a loop over columns at all */
int stage_last(const Stages *s);                /* the last depth at which something is known */
bool kval_reduction(const KVal *v);             /* sum_cols, max_cols, sum_rows */
bool kval_per_column(const Stages *s, int v);

#endif
