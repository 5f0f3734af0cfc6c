/* eval.h: what the evaluator's files share.  Private to eval*.c. */
#ifndef DPOC_EVAL_H
#define DPOC_EVAL_H

#include "dpoc.h"

#define EVAL_PARTS 7

typedef struct
    EvalStore {      /* storage of a leaf: states live across phases, inputs until set again */
    const char *key; /* name, or "source/name" for weights */
    double *values;
    int64_t count;
} EvalStore;

struct Eval {
    const Graph *g;
    EvalMode mode;
    int64_t extent[NEXTENT];
    double **value;              /* by node; NULL until computed */
    double *(*part)[EVAL_PARTS]; /* by node: results k >= 1 of custom ops */
    int *store;                  /* by node: index of a leaf's storage, else -1 */
    EvalStore *stores;
    int nstores;
    bool ran[NPHASE];
};

static inline int64_t eval_dim(const Eval *e, Dim d) {
    int64_t n = dim_eval(d, e->extent);
    return n > 0 ? n : 0;
}
int64_t eval_count(const Eval *e, NodeId id);
/* Room for the node's value, or for its part k of `count` elements; all zeros. */
double *eval_out(Eval *e, NodeId id);
double *eval_part_out(Eval *e, NodeId id, int k, int64_t count);

static inline const Node *eval_node(const Eval *e, NodeId id) {
    return &e->g->node[id];
}
static inline const double *eval_in(const Eval *e, NodeId id, int k) {
    return e->value[e->g->node[id].in[k]];
}
static inline const Type *eval_type_in(const Eval *e, NodeId id, int k) {
    return e->g->node[e->g->node[id].in[k]].type;
}
/* Elements per row of the first axis. */
static inline int64_t eval_row(const Eval *e, const Type *t) {
    int64_t n = 1;
    for (int i = 1; i < t->rank; i++) n *= eval_dim(e, t->dim[i]);
    return n;
}
static inline int64_t eval_last(const Eval *e, const Type *t) {
    return t->rank ? eval_dim(e, t->dim[t->rank - 1]) : 1;
}

#endif
