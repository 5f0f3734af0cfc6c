/* fuse.h: what fuse.c and lower.c share: which element of a value a kernel reads at (row, column).
 *
 * A fused kernel runs over a space of rows x cols.  From one of its nodes, a path leads down each
 * operand through nodes that are never stored for it (constants, broadcasts, widening casts,
 * scalar arithmetic, reshapes: "inlined") to an end: a constant, a node of the same kernel, or a
 * stored value to load. access.c follows such paths.
 */
#ifndef DPOC_FUSE_H
#define DPOC_FUSE_H

#include "kern.h"

/* Element (row ? row / div : 0) * (col ? space's cols : 1) + (col ? column : 0) of a value, in the
 * value's row-major order.  An axis of size 1 is never used. */
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
    NodeId end; /* const, inlined scalar (follow its operands), or a value or view that is stored */
    Access at;
    bool ok; /* false: a kernel of this space can't read it unless `end` is stored */
} Read;

bool inlined(const Graph *g, NodeId id);
/* Sums over rows: sum_rows, and sum_cols of a vector whose size varies. */
bool sums_rows(const Graph *g, NodeId id);
/* The space a node asks for by itself. */
Space space_of(const Graph *g, NodeId id, const bool *kept);
Access access_elem(const Space *s);
/* Where a node of the space's kernel has its own value; false: it does not belong there. */
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

/* ---- cluster.c: groups while they grow ------------------------------------------------------ */

typedef struct
    Reads { /* by node that is computed somewhere: what its paths end in, stored or not */
    const int *first;
    const NodeId *id; /* values and views; id[first[n]] .. id[first[n + 1] - 1] */
} Reads;

typedef struct Cluster {
    GroupKind kind;
    Phase phase;
    NodeId *nodes; /* ascending */
    int n, cap;
    Space space;  /* GROUP_KERN */
    bool reduces; /* has a reduction over columns */
    NodeId sum;   /* its one sum over rows, or 0 */
    int neffects;
    bool forward, backward, slope; /* what it has: see unit_directions; slope: neither */
    int pos;                       /* in the order of execution found so far */
    const Group *gemm;             /* GROUP_GEMM: made by the gemm pass */
} Cluster;

typedef struct Clusters {
    Arena *arena;
    const Graph *g;
    const bool *kept, *forward, *backward;
    Reads reads;   /* operands */
    Reads readers; /* the other way: nodes that read a base */
    /* by effect: nodes that must run before it, because they read what it overwrites */
    Reads after;
    Cluster *c;
    int n, cap;
    int *of;    /* by node id: its cluster, -1: none */
    int *order; /* clusters by position; -1: merged away */
    int norder, caporder;
    bool *mark; /* by position, while looking for cycles */
    int capmark;
} Clusters;

/* A cluster of these nodes, ordered after all there are. */
int cluster_add(Clusters *cs, GroupKind kind, const NodeId *nodes, int n, const Group *gemm);
/* The node that must be stored before `id` can be a kernel of its own in `space`; 0: none; -1: no
 * way. */
NodeId cluster_misfit(const Clusters *cs, const Space *space, NodeId id);
/* The space a node asks for by itself, or one with longer rows where only that lets it read its
 * operands. */
Space space_fitting(const Clusters *cs, NodeId id);
/* Whether all nodes of cluster a can run in this space. */
bool cluster_fits(const Clusters *cs, int a, const Space *space);
/* Makes one kernel of a and b, called a from then on; NULL, or why not. */
const char *cluster_merge(Clusters *cs, int a, int b);
/* Whether two leaves or views of leaves are the same storage, at least in part. */
bool same_storage(const Graph *g, NodeId a, NodeId b);

#endif
