/* svd.h: the leading singular triplets of a matrix. */
#ifndef DPOC_SVD_H
#define DPOC_SVD_H

#include "base.h"

/* A [rows, cols] ~ sum of s[i] u[:, i] v[i, :] over its `rank` greatest singular values, which come
 * in falling order; u [rows, rank], s [rank], v [rank, cols], rank <= rows and cols.  The signs of
 * u's columns and v's rows are arbitrary but fixed; equal values give equal bits on any number of
 * threads.  Memory: about 16 (2 rank + 8) (8 cols + rows) bytes beside A. */
bool svd_leading(const float *a, int64_t rows, int64_t cols, int rank, float *u, float *s, float *v,
                 Err *err);

#endif
