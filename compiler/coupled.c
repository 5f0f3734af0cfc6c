/* coupled.c: an objective that looks at all pairs of a step at once, cut from the model.
 *
 *   score      each micro-batch: what the objective takes of its pairs, into "scores" [K, batch]
 *   objective  once a step: loss and metrics of all pairs, d loss / d score into "slopes", as large
 *   micro      each micro-batch: the backward of sum over k and its pairs of slope * score
 *
 * The K values of a pair are sums over its answers' tokens (Builder.answer), log-probs before all.
 * As slopes are constants of "micro", its gradients add up over micro-batches to those of the loss
 * (chain rule), also where an answer's value is used in another's: each slope is the derivative of
 * the objective alone.  Pair p of a micro-batch is pair item[p] of the step.
 * Relies on objective.c: no value of a token depends on other pairs, and the values come in the
 * same order in every unit.  Promises: "score" draws the dropout masks that "micro" draws.
 */
#include "front.h"

static int64_t batch_of(const Builder *b) {
    return (int64_t)spec_num(b->spec, "run.batch");
}

static const Type *table_type(const Builder *b) {
    return type_vec(DT_f32, dim_const(b->nanswer * batch_of(b)));
}

static NodeId row_of(Builder *b, NodeId table, int k) {
    return g_slot(b->g, table, k * batch_of(b), type_vec(DT_f32, dim_const(batch_of(b))));
}

/* The pairs that there are of a row. */
static NodeId pairs_of_row(Builder *b, NodeId table, int k) {
    NodeId row = row_of(b, table, k);
    return graph_add(b->g, OP_rows, &row, 1, &(Attr){.dim2 = dim_extent(X_P)}, NULL, 0, NULL);
}

static NodeId items(Builder *b) {
    return build_input(b, "item", DT_i32, 1, dim_extent(X_P), 0);
}

void coupled_scores(Builder *b) {
    NodeId table = g_state(b->g, "scores", PHASE_MICRO, ROLE_OUTPUT, table_type(b));
    Attr rows = {.dim = dim_const(batch_of(b))};
    for (int k = 0; k < b->nanswer; k++) {
        NodeId in[2] = {b->answer[k], items(b)};
        NodeId placed = graph_add(b->g, OP_put, in, 2, &rows, NULL, 0, NULL);
        g_effect(b->g, OP_accumulate, row_of(b, table, k), placed);
    }
}

/* The graph of the objective alone: loss and sums, as far as the answers' values, which become
 * leaves. */
static void cut(Builder *b, NodeId *leaf) {
    Unit *u = b->u;
    const Graph *from = b->g;
    Graph *to = b->g = u->g = graph_new(u->arena, u->diags);
    NodeId *map = NEW_ARRAY(u->arena, NodeId, from->n);
    bool *live = NEW_ARRAY(u->arena, bool, from->n);
    NodeId table = g_input(to, "scores", PHASE_MICRO, table_type(b));
    for (int k = 0; k < b->nanswer; k++) {
        NodeId id = b->answer[k];
        if (!map[id]) map[id] = leaf[k] = g_op(to, OP_stop, pairs_of_row(b, table, k), 0, 0);
    }
    live[u->loss] = live[u->seed] = true;
    for (int i = 0; i < b->nsums; i++) live[b->sums[i]] = true;
    for (NodeId id = from->n - 1; id > 0; id--) {
        const Node *n = node(from, id);
        for (int i = 0; live[id] && !map[id] && i < n->nin; i++) live[n->in[i]] = true;
    }
    for (NodeId id = 1; id < from->n; id++)
        if (live[id] && !map[id]) map[id] = graph_copy(to, from, id, map);
    u->loss = map[u->loss];
    u->seed = map[u->seed];
    for (int i = 0; i < b->nsums; i++) b->sums[i] = map[b->sums[i]];
    for (int i = 0; i < u->ntrained; i++) u->trained[i].leaf = 0;
}

void coupled_objective(Builder *b) {
    Unit *u = b->u;
    const Origin *at = b->g->at;
    NodeId *leaf = NEW_ARRAY(u->arena, NodeId, b->nanswer);
    NodeId *slope = NEW_ARRAY(u->arena, NodeId, b->nanswer);
    cut(b, leaf);
    graph_at(b->g, at);
    grad_of(b->g, u->loss, u->seed, leaf, b->nanswer, slope);
    NodeId table = g_state(b->g, "slopes", PHASE_MICRO, ROLE_OUTPUT, table_type(b));
    NodeId none = g_const(b->g, 0, type_vec(DT_f32, dim_extent(X_P)));
    for (int k = 0; k < b->nanswer; k++)
        g_effect(b->g, OP_assign, pairs_of_row(b, table, k), slope[k] ? slope[k] : none);
}

void coupled_backward(Builder *b) {
    Unit *u = b->u;
    Graph *g = b->g;
    NodeId *leaf = NEW_ARRAY(u->arena, NodeId, u->ntrained + 1);
    for (int i = 0; i < u->ntrained; i++) leaf[i] = u->trained[i].leaf;
    bool *learns = NEW_ARRAY(u->arena, bool, g->n);
    grad_paths(g, leaf, u->ntrained, learns);
    NodeId table = g_input(g, "slopes", PHASE_MICRO, table_type(b)), loss = 0;
    for (int k = 0; k < b->nanswer; k++) {
        NodeId value = b->answer[k];
        if (!learns[value] || !graph_flows(g, value, u->loss)) continue;
        NodeId slope = g_op(g, OP_take, row_of(b, table, k), items(b), 0);
        NodeId term = g_op(g, OP_mul, slope, value, 0);
        loss = loss ? g_op(g, OP_add, loss, term, 0) : term;
    }
    u->loss = loss ? g_op(g, OP_sum_rows, loss, 0, 0) : g_const(g, 0, type_scalar(DT_f32));
    u->seed = build_input(b, "one", DT_f32, 0, dim_const(0), 0);
    const Type *scalar = type_scalar(DT_f32); /* an output, so that passes keep it */
    g_effect(g, OP_assign, g_state(g, "surrogate", PHASE_MICRO, ROLE_OUTPUT, scalar), u->loss);
    NodeId scores = g_state(g, "scores", PHASE_STEP, ROLE_OUTPUT, table_type(b));
    g_effect(g, OP_assign, scores, g_const(g, 0, table_type(b)));
}
