/* objective.h: what the files of the objective share.  Private to objective*.c. */
#ifndef DPOC_OBJECTIVE_H
#define DPOC_OBJECTIVE_H

#include "front.h"

typedef enum Level { LEVEL_ONE, LEVEL_PAIR, LEVEL_TOKEN } Level;

typedef struct Obj { /* an objective being built */
    Builder *b;
    Graph *g;
    const Ast *ast;
    Module *home;
    const Scores *model[2]; /* policy, reference (logp 0: none) */
    Record names;           /* locals and, in a call, parameters */
    int depth;
    Expr expr;
    Value loss;
    Loc loss_loc;
} Obj;

Level obj_level(const Obj *o, const Value *v);
/* Sum over everything a value has: a scalar. */
NodeId obj_total(Obj *o, const Value *v);
/* The input that holds 1 / tokens of a side, -1: both. */
const char *obj_token_divisor(int side);
/* Arithmetic on values; what the Expr of an objective calls. */
Value obj_tensor(Expr *e, const Ast *at, const char *op, Value x, Value y);
/* A parameter as an input; V_BAD: there is none of this name. */
Value obj_param(Obj *o, const char *name);
/* `name(..) = ..` of the objective, or NULL; its value with parameters bound. */
const Ast *obj_definition(const Obj *o, const char *name);
Value obj_call_definition(Obj *o, const Ast *def, const Ast *call, const Value *args, int n);

/* ---- objective_metrics.c --------------------------------------------------------------------- */
void obj_metric_sum(Obj *o, const char *name, NodeId sum, const char *divisor);
/* A value as a metric: averaged over what it has one of. */
void obj_metric(Obj *o, const char *name, Value v, const Ast *at);
void obj_standard_metrics(Obj *o);

#endif
