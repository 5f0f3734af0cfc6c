/* emit_text.h: the lines of a kernel that C and CUDA share: pointers, loads, arithmetic, stores.
 *
 * Names in kernel text: a<n> argument, r<i> pointer to the row of load or store i, i<i> its row
 * number where an index gives it, v<i> value, b<i> row buffer, s<i> partial results, x<i> pack of
 * elements.  Every value is a float: f32, or a bf16 value kept as f32, or an integer below 2^24.
 * Arithmetic is calls into kernels/types.h, math.h and random.h, one text for both.  Relies on
 * stage.h.
 */
#ifndef DPOC_EMIT_TEXT_H
#define DPOC_EMIT_TEXT_H

#include "stage.h"

typedef enum Half { HALF_ANY, HALF_FIRST, HALF_SECOND } Half; /* where a loop's columns lie */

typedef struct Out {
    const Stages *s;
    const Kern *k;
    Text *text;
    const char *row, *column; /* names of the loop variables in scope */
    Half half;
    /* The column counts all elements of the Kern, row after row (stages' `flat`). */
    bool flat;
    /* Full rows are moved in packs of elements: "" or an index of packs, "[k]"; element e of the
     * current pack of load or kept value i is x<i>[k].x[e], of store i x<i>.x[e].  NULL: one by
     * one. */
    const char *pack;
    int indent;
} Out;

/* One line; a `{` at its end indents what follows, until out_close. */
void out_line(Out *o, const char *format, ...) PRINTF(2, 3);
void out_close(Out *o);

const char *storage_type(DType t); /* of an element in memory: "float", "bf16_t" */
bool kval_memory(const KVal *v);   /* a load or store */
bool kval_full(const KVal *v);     /* .. of full rows or columns */
void out_pointer(Out *o, int i);   /* const float *const r3 = a0 + (int64_t)row * 64; */
void out_value(Out *o, int i);     /* const float v3 = ...; of a load, constant or op */
void out_fetch(Out *o, int i);     /* const float v3 = b3[j]; */
void out_store(Out *o, int i);     /* r5[j] = v3; */
/* Pointers of loads and stores that move with the row, in this row. */
void out_row_pointers(Out *o);
/* Pointers and values that are the same for every row. */
void out_scalars(Out *o);

#endif
