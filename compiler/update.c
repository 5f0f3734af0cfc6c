/* update.c: gradient clipping and AdamW over the flat state, as nodes of phase update.
 *
 * All trained tensors lie in "params", their gradients in "grads", the moments in "m" and "v", each
 * one flat f32 [nparams], seen here as a matrix of 1024 columns.  The arithmetic is torch's:
 *   g *= min(1, clip / (|g| + 1e-6)) if clip > 0;  p *= 1 - lr wd;  m = b1 m + (1 - b1) g;
 *   v = b2 v + (1 - b2) g g;  p -= lr (m c1) / (sqrt(v c2) + eps)   with c = 1 / (1 - b^t), inputs,
 * as 1 - b is one: taken from a b2 of 0.999 in f32 it would be off by 1e-5, and every step with it.
 * Padding between tensors is zero in all of them and stays so.  Relies on graph.c.
 */
#include "dpoc.h"

enum { COLUMNS = 1024 };

typedef struct Update {
    Graph *g;
    const Type *flat, *matrix, *scalar;
} Update;

static NodeId state(const Update *w, const char *name, Role role) {
    return g_reshape(w->g, g_state(w->g, name, PHASE_UPDATE, role, w->flat), w->matrix);
}

static NodeId number(const Update *w, const char *name) {
    return g_input(w->g, name, PHASE_UPDATE, w->scalar);
}

static NodeId all(const Update *w, NodeId scalar) {
    return g_bcast(w->g, scalar, w->matrix, false);
}

static NodeId op(const Update *w, Op o, NodeId a, NodeId b) {
    return g_op(w->g, o, a, b, 0);
}

/* The clipped gradient; its norm before clipping becomes output "grad_norm". */
static NodeId clipped(const Update *w, NodeId grad) {
    NodeId rows = op(w, OP_sum_cols, op(w, OP_mul, grad, grad), 0);
    NodeId norm = op(w, OP_sqrt, op(w, OP_sum_rows, rows, 0), 0);
    NodeId clip = number(w, "clip"), one = g_const(w->g, 1, w->scalar);
    NodeId room = op(w, OP_add, norm, g_const(w->g, 1e-6, w->scalar));
    NodeId factor = op(w, OP_min, one, op(w, OP_div, clip, room));
    NodeId on = op(w, OP_lt, g_const(w->g, 0, w->scalar), clip);
    NodeId out = g_state(w->g, "grad_norm", PHASE_UPDATE, ROLE_OUTPUT, w->scalar);
    g_effect(w->g, OP_assign, out, norm);
    return op(w, OP_mul, grad, all(w, g_op(w->g, OP_select, on, factor, one)));
}

/* decay * x + (1 - decay) * y */
static NodeId blend(const Update *w, const char *decay, const char *rest, NodeId x, NodeId y) {
    return op(w, OP_add, op(w, OP_mul, all(w, number(w, decay)), x),
              op(w, OP_mul, all(w, number(w, rest)), y));
}

void update_build(Unit *u) {
    Update w = {.g = u->g,
                .flat = type_vec(DT_f32, dim_const(u->nparams)),
                .matrix = type_mat(DT_f32, dim_const(u->nparams / COLUMNS), dim_const(COLUMNS)),
                .scalar = type_scalar(DT_f32)};
    NodeId params = state(&w, "params", ROLE_ADAPTER);
    NodeId m = state(&w, "m", ROLE_MOMENT), v = state(&w, "v", ROLE_MOMENT);
    NodeId grad = clipped(&w, state(&w, "grads", ROLE_GRAD));
    NodeId lr = number(&w, "lr");
    NodeId keep =
        op(&w, OP_sub, g_const(u->g, 1, w.scalar), op(&w, OP_mul, lr, number(&w, "weight_decay")));
    NodeId m1 = blend(&w, "beta1", "adam.rest1", m, grad);
    NodeId v1 = blend(&w, "beta2", "adam.rest2", v, op(&w, OP_mul, grad, grad));
    NodeId mean = op(&w, OP_mul, m1, all(&w, number(&w, "adam.c1")));
    NodeId var = op(&w, OP_mul, v1, all(&w, number(&w, "adam.c2")));
    NodeId root = op(&w, OP_add, op(&w, OP_sqrt, var, 0), all(&w, number(&w, "eps")));
    NodeId step = op(&w, OP_div, op(&w, OP_mul, all(&w, lr), mean), root);
    NodeId kept = op(&w, OP_mul, params, all(&w, keep));
    g_effect(u->g, OP_assign, params, op(&w, OP_sub, kept, step));
    g_effect(u->g, OP_assign, m, m1);
    g_effect(u->g, OP_assign, v, v1);
}
