/* fuse.h: what fuse.c and lower.c share: which element of a value a kernel reads at (row, column).
 *
 * A fused kernel runs over a space of rows x cols.  From one of its nodes, a path leads down each operand
 * through nodes that are never stored for it (constants, broadcasts, widening casts, scalar arithmetic,
 * reshapes: "inlined") to an end: a constant, a node of the same kernel, or a stored value to load.
 * access.c follows such paths.
 */
#ifndef DPOC_FUSE_H
#define DPOC_FUSE_H

#include "kern.h"

/* Element (row ? row / div : 0) * (col ? space's cols : 1) + (col ? column : 0) of a value, in the value's
 * row-major order.  An axis of size 1 is never used. */
typedef struct Access {
    bool row, col;
    int64_t div;
} Access;

typedef struct Space {
    const Graph *g;
    KernShape shape;
    Dim rows;
    int64_t cols;
    const bool *kept;   /* by node id: paths end there although it could be inlined; or NULL: */
    const Group *group; /* the same as those in group->ins */
} Space;

typedef struct Read { /* where a path ends */
    NodeId end;       /* const, inlined scalar (follow its operands), or a value or view that is stored */
    Access at;
    bool ok; /* false: a kernel of this space can't read it unless `end` is stored */
} Read;

bool inlined(const Graph *g, NodeId id);
/* Sums over rows: sum_rows, and sum_cols of a vector whose size varies. */
bool sums_rows(const Graph *g, NodeId id);
/* The space a node asks for by itself. */
Space space_of(const Graph *g, NodeId id, const bool *kept);
Access access_elem(const Space *s);
/* Where a node of the space's kernel has its own value; false: it does not belong into this space. */
bool access_own(const Space *s, NodeId id, Access *at);
bool access_equal(Access a, Access b);
Read access_read(const Space *s, NodeId operand, Access at);
/* One broadcast: the operand's element from the result's. */
bool access_bcast(const Space *s, NodeId bcast, Access *at);
/* The distance between rows with which a stored value or view is read at `at`; false: none is. */
bool access_ld(const Space *s, NodeId id, Access at, int64_t *ld);
/* take(x, index) as an indexed load. */
bool access_take(const Space *s, NodeId take, int64_t *ld);
/* Whether `id` is nothing but reshapes of `base`. */
bool only_reshaped(const Graph *g, NodeId id, NodeId base);

#endif
