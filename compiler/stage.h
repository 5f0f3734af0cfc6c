/* stage.h: a Kern cut into passes over the columns, and its arithmetic as text.
 *
 * Both generators print the same expressions (kernels/types.h, math.h and random.h are one text for C
 * and CUDA); they differ in the loops around them.  A reduction over columns ends a pass: what uses
 * its result is computed in a later one.  An ELEM value that several passes need is computed again
 * when that is cheap (its loads then come from the cache), else kept in a buffer of one row.
 * Relies on kern.h.  Promises: order and rounding as kern.h's LAWS say, whatever is kept.
 */
#ifndef DPOC_STAGE_H
#define DPOC_STAGE_H

#include "kern.h"

typedef struct Stages {
    const Kern *k;
    Arena *arena;
    KLevel *level; /* of values: the greatest of the operands' levels; reductions give ROW */
    int *depth;    /* first pass in which the value can be computed */
    int *kept;     /* the pass that puts it into a row buffer, or -1 */
    int npass;
    bool *need; /* [npass][nval]: the value is used per column in that pass */
    bool flat;  /* no reductions and no rows: one loop over n[0] * cols elements */
} Stages;

Stages *stages_new(const Kern *k);
void stages_free(Stages *s);

/* Whether pass p uses value v per column, and whether it then computes it (else: reads its buffer). */
bool stage_needs(const Stages *s, int p, int v);
bool stage_computes(const Stages *s, int p, int v);
/* Whether a pass ends in reductions (then its columns run in 16 lanes). */
bool stage_reduces(const Stages *s, int p);
bool kval_reduction(const KVal *v); /* sum_cols, max_cols, sum_rows */
bool kval_per_column(const Stages *s, int v);

/* "v3 + v4": value v (an op or a constant) from its operands; `column` is the text of the column. */
void stage_expression(const Stages *s, int v, const char *column, Text *out);
/* The type of an element in memory: "float", "bf16_t".  Every value is a float: f32, or a bf16 value kept
 * as f32, or an integer below 2^24. */
const char *storage_type(DType t);
/* The value of an element (text), and the element that stores value text of dtype `from`. */
void stage_from_storage(DType t, const char *element, Text *out);
void stage_to_storage(DType t, DType from, const char *value, Text *out);

#endif
