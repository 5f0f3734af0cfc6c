/* kern.h: what a fused group computes, in a form both generators only print.
 *
 * A Kern runs over `rows` (an affine count, parallel) times `cols` (a constant).  Its values are a
 * DAG in
 * order; each has a level:
 *   SCALAR one number   COL one per column   ROW one per row   ELEM one per (row, column)
 *
 * KERN_ROWS      for every row: values in order; a reduction (sum_cols, max_cols) turns an ELEM
 * value into
 *                a ROW value that later values may use; stores write ELEM values (a full row) or
 *                ROW values.
 * KERN_SUM_ROWS  for every column: the one sum_rows value adds its ELEM operand over all rows; ELEM
 * values
 *                may use ROW loads but no reductions over columns; the store writes the COL result.
 *
 * LAWS of reductions (so bits never depend on threads, tiles or fusion; both generators obey them):
 *   over n columns: 16 partial sums, lane l adds columns l, l+16, l+32, ... in order; then lanes
 *   fold
 *     8+8, 4+4, 2+2, 1+1 (lane l += lane l+w).  max is the same tree.
 *   over n rows: blocks of 64 rows; within a block in order from 0; block sums are added in order.
 * All arithmetic is f32 without contraction; a cast to bf16 rounds the value and keeps it as f32.
 */
#ifndef DPOC_KERN_H
#define DPOC_KERN_H

#include "dpoc.h"

typedef enum KernShape { KERN_ROWS, KERN_SUM_ROWS } KernShape;
typedef enum KLevel { LEVEL_SCALAR, LEVEL_COL, LEVEL_ROW, LEVEL_ELEM } KLevel;
typedef enum KOp { KOP_LOAD, KOP_STORE, KOP_CONST, KOP_OP } KOp;

typedef struct KVal {
    KOp kop;
    /* KOP_OP: a MAP or REDUCE op (bcast, reshape, stop disappear; rotate_half becomes a load) */
    Op op;
    int a, b, c; /* operand values, -1: none */
    KLevel level;
    /* of the value: a cast rounds to it; loads and stores: the argument's element type */
    DType dtype;
    double num; /* KOP_CONST */
    /* i0: the node's; uniform: stream, cols; a and b are the loads of its keys and seed, of which
     * words 0 and 1 are taken, both i32 */
    int64_t i0, i1;
    /* KOP_LOAD, KOP_STORE: element (row, col) is at
     *     base + (index >= 0 ? args[index][row / rowdiv] : row / rowdiv) * ld + column
     * with column = col for COL and ELEM levels, else 0.  A SCALAR load is base[0], a COL load
     * base[col].
     * With an index, row -1 reads as 0. */
    int arg, index;
    int64_t rowdiv, ld;
    /* load: rotate_half over cols: value(col) = col < cols/2 ? -x[col+cols/2] : x[col-cols/2] */
    bool half;
    bool accumulate; /* store: adds to what is there */
    NodeId origin;
} KVal;

typedef struct KArg {
    NodeId node; /* the stored value or view it points at */
    DType dtype; /* f32, bf16, i32, u8; f16 stands in checkpoints alone: binds convert it */
    bool write;
    int align; /* its address is a multiple of so many bytes (a power of two); 0: of an element */
} KArg;

struct Kern {
    KernShape shape;
    Dim rows;
    int64_t cols;
    KVal *val;
    int nval, capval;
    KArg *arg;
    int narg, caparg;
};

/* Kernel calling convention of generated and hand-written CPU kernels:
 *     void SYMBOL(void *const *p, const int64_t *n)
 * p: arguments in order, n[0] = rows (actual).  CUDA: extern "C" __global__ void SYMBOL(P0 *p0, ..,
 * long long n0, ..).
 * Custom kernels: p = operands in order, then result 0, parts 1.. (NULL if not wanted), then
 * scratch;
 * n = as the lower rule says. */

void kern_print(const Kern *k, Text *out); /* for dumps and tests */

#endif
