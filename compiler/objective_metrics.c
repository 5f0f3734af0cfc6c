/* objective_metrics.c: what an objective logs: TRL's names on the policy, rewards, and its own.
 *
 * A metric is a sum over the micro-batch and the name of its divisor, as the loss is.  Relies on
 * objective.c for values.  Promises: the order is loss, rewards, TRL's others, the objective's own.
 */
#include "objective.h"

#include <string.h>

void obj_metric_sum(Obj *o, const char *name, NodeId sum, const char *divisor) {
    Unit *u = o->b->u;
    if (sum) {
        Metric m = {intern(name), intern(divisor)};
        PUSH(u->arena, u->metrics, u->nmetrics, u->capmetrics, m);
        PUSH(u->arena, o->b->sums, o->b->nsums, o->b->capsums, sum);
    }
}

/* A name that a step's line of metrics has already: another metric's, or the run's own. */
static bool taken(const Obj *o, const char *name) {
    static const char *const run[] = {
        "event",      "step", "time",   "epoch",        "learning_rate", "grad_norm",
        "num_tokens", "mfu",  "finite", "step_time_ms", "memory_bytes",  "tokens_per_second"};
    for (int i = 0; i < o->b->u->nmetrics; i++)
        if (!strcmp(o->b->u->metrics[i].name, name)) return true;
    for (size_t i = 0; i < COUNT(run); i++)
        if (!strcmp(run[i], name)) return true;
    return false;
}

void obj_metric(Obj *o, const char *name, Value v, const Ast *at) {
    if (v.kind == V_NUM) v = tensor_value(g_const(o->g, v.num, type_scalar(DT_f32)));
    if (v.kind == V_BAD) return;
    if (v.kind != V_TENSOR) {
        builder_error(o->b, at->loc, "a metric is a number, not %s", value_kind(&v));
        return;
    }
    if (taken(o, name)) {
        builder_error(o->b, at->loc, "%s is logged already: choose another name", name);
        return;
    }
    Level l = obj_level(o, &v);
    if (v.batch == BATCH_YES) o->b->spec->coupled = true;
    if (l == LEVEL_ONE && v.batch == BATCH_NO) { /* a constant: the same for every pair */
        v.node = g_bcast(o->g, v.node, type_vec(DT_f32, dim_extent(X_P)), false);
        l = LEVEL_PAIR;
    }
    obj_metric_sum(o, name, obj_total(o, &v),
                   l == LEVEL_ONE    ? "one"
                   : l == LEVEL_PAIR ? "inv_pairs"
                                     : obj_token_divisor(v.side));
}

static Value call_reward(Obj *o, int side) {
    const Ast *def = obj_definition(o, "reward");
    Value arg = {.kind = V_SIDE, .num = side, .side = -1};
    if (def && def->params && !def->params->next) return obj_call_definition(o, def, def, &arg, 1);
    const Scores *p = o->model[0], *r = o->model[1];
    if (def || !r || !r->side[side]) return value_bad();
    /* not defined: the difference of log-probs, times beta if there is one */
    Value v = tensor_value(g_op(o->g, OP_sub, p->side[side], r->side[side], 0));
    Value beta = obj_param(o, "beta");
    return beta.kind == V_BAD ? v : layer_tensor(&o->b->expr, o->ast, "*", v, beta);
}

static void reward_metrics(Obj *o) {
    Value chosen = call_reward(o, 0), rejected = call_reward(o, 1);
    if (chosen.kind != V_TENSOR || rejected.kind != V_TENSOR) return;
    Expr *e = &o->expr;
    obj_metric(o, "rewards/chosen", chosen, o->ast);
    obj_metric(o, "rewards/rejected", rejected, o->ast);
    obj_metric(o, "rewards/accuracies", obj_tensor(e, o->ast, ">", chosen, rejected), o->ast);
    obj_metric(o, "rewards/margins", obj_tensor(e, o->ast, "-", chosen, rejected), o->ast);
}

static void token_metric(Obj *o, const char *name, NodeId rows, int side) {
    Value v = tensor_value(rows);
    v.side = side;
    obj_metric(o, name, v, o->ast);
}

/* TRL's names, on the policy. */
void obj_standard_metrics(Obj *o) {
    const Scores *p = o->model[0];
    bool both = !o->b->spec->one_sided;
    builder_at(o->b, o->ast->loc);
    if (both) reward_metrics(o);
    obj_metric(o, "logps/chosen", tensor_value(p->side[0]), o->ast);
    if (both) obj_metric(o, "logps/rejected", tensor_value(p->side[1]), o->ast);
    token_metric(o, "logits/chosen", p->mean_logit, 0);
    if (both) token_metric(o, "logits/rejected", p->mean_logit, 1);
    token_metric(o, "entropy", p->entropy, both ? -1 : 0);
    token_metric(o, "mean_token_accuracy", p->correct, 0);
}
