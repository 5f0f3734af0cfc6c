/* update.c: gradient clipping and AdamW over the flat state, as nodes of phase update.
 *
 * All trained tensors lie in "params", their gradients in "grads", the moments in "m" and "v", each
 * one flat f32 [nparams], seen here as a matrix.  The arithmetic is torch's:
 *   g *= min(1, clip / (|g| + 1e-6)) if clip > 0;  p *= 1 - lr wd;  m = b1 m + (1 - b1) g;
 *   v = b2 v + (1 - b2) g g;  p -= lr (m c1) / (sqrt(v c2) + eps)   with c = 1 / (1 - b^t), inputs,
 * as 1 - b is one: taken from a b2 of 0.999 in f32 it would be off by 1e-5, and every step with it.
 * The moments of the last Unit.coded elements are kept as bitsandbytes' 8-bit AdamW keeps them:
 * a code of the dynamic map (signed for m) and the largest magnitude of its block of 256, 2.03
 * bytes a parameter instead of 8; the step itself uses the moments before they are coded.
 * Padding between tensors is zero in all of them and stays so.  Relies on graph.c.
 */
#include "dpoc.h"

enum { COLUMNS = 1024, BLOCK = 256 };

typedef struct Update {
    Graph *g;
    int64_t n; /* elements of params */
    const Type *scalar;
    /* of the part that is worked on: elements begin.., as a matrix */
    int64_t begin;
    const Type *matrix;
} Update;

/* The part's elements of a flat state that holds all parameters. */
static NodeId state(const Update *w, const char *name, Role role) {
    NodeId flat = g_state(w->g, name, PHASE_UPDATE, role, type_vec(DT_f32, dim_const(w->n)));
    return g_slot(w->g, flat, w->begin, w->matrix);
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

/* What clipping multiplies gradients by; their norm before it becomes output "grad_norm". */
static NodeId clip_factor(const Update *w) {
    NodeId grad = state(w, "grads", ROLE_GRAD);
    NodeId rows = op(w, OP_sum_cols, op(w, OP_mul, grad, grad), 0);
    NodeId norm = op(w, OP_sqrt, op(w, OP_sum_rows, rows, 0), 0);
    NodeId clip = number(w, "clip"), one = g_const(w->g, 1, w->scalar);
    NodeId room = op(w, OP_add, norm, g_const(w->g, 1e-6, w->scalar));
    NodeId factor = op(w, OP_min, one, op(w, OP_div, clip, room));
    NodeId on = op(w, OP_lt, g_const(w->g, 0, w->scalar), clip);
    NodeId out = g_state(w->g, "grad_norm", PHASE_UPDATE, ROLE_OUTPUT, w->scalar);
    g_effect(w->g, OP_assign, out, norm);
    return g_op(w->g, OP_select, on, factor, one);
}

/* decay * x + (1 - decay) * y */
static NodeId blend(const Update *w, const char *decay, const char *rest, NodeId x, NodeId y) {
    return op(w, OP_add, op(w, OP_mul, all(w, number(w, decay)), x),
              op(w, OP_mul, all(w, number(w, rest)), y));
}

/* p after one step, given the clipped gradient and both moments as they are now. */
static NodeId stepped(const Update *w, NodeId p, NodeId m, NodeId v) {
    NodeId lr = number(w, "lr"), one = g_const(w->g, 1, w->scalar);
    NodeId keep = op(w, OP_sub, one, op(w, OP_mul, lr, number(w, "weight_decay")));
    NodeId mean = op(w, OP_mul, m, all(w, number(w, "adam.c1")));
    NodeId var = op(w, OP_mul, v, all(w, number(w, "adam.c2")));
    NodeId root = op(w, OP_add, op(w, OP_sqrt, var, 0), all(w, number(w, "eps")));
    NodeId step = op(w, OP_div, op(w, OP_mul, all(w, lr), mean), root);
    return op(w, OP_sub, op(w, OP_mul, p, all(w, keep)), step);
}

/* A moment at rest: elements of a flat f32 state, or codes with a magnitude for each block. */
typedef struct Moment {
    NodeId value, codes, absmax; /* codes 0: an f32 state, whose view `value` is */
    bool is_signed;
} Moment;

static Moment moment(const Update *w, const char *name, bool is_signed, bool coded) {
    const int64_t rows = w->matrix->dim[0].c, n = rows * w->matrix->dim[1].c;
    if (!coded) {
        const Type *flat = type_vec(DT_f32, dim_const(n));
        NodeId all_of = g_state(w->g, name, PHASE_UPDATE, ROLE_MOMENT, flat);
        return (Moment){g_reshape(w->g, all_of, w->matrix), 0, 0, is_signed};
    }
    const char *codes = intern_printf("%s8", name), *absmax = intern_printf("%s8.absmax", name);
    Moment m = {.is_signed = is_signed};
    m.codes = g_state(w->g, codes, PHASE_UPDATE, ROLE_MOMENT, type_with(w->matrix, DT_u8));
    m.absmax = g_state(w->g, absmax, PHASE_UPDATE, ROLE_MOMENT, type_vec(DT_f32, dim_const(rows)));
    NodeId code = g_cast(w->g, m.codes, DT_f32);
    NodeId unit =
        graph_add(w->g, OP_dynamic_value, &code, 1, &(Attr){.i0 = is_signed}, NULL, 0, NULL);
    m.value = op(w, OP_mul, unit, g_bcast(w->g, m.absmax, w->matrix, true));
    return m;
}

static void keep_moment(const Update *w, const Moment *m, NodeId value) {
    if (!m->codes) {
        g_effect(w->g, OP_assign, m->value, value);
        return;
    }
    NodeId most = op(w, OP_max_cols, op(w, OP_abs, value, 0), 0);
    /* a block of zeros has magnitude 0 and any codes */
    NodeId over = op(w, OP_max, most, g_const(w->g, 1e-38, node(w->g, most)->type));
    NodeId unit = op(w, OP_div, value, g_bcast(w->g, over, w->matrix, true));
    NodeId code =
        graph_add(w->g, OP_dynamic_code, &unit, 1, &(Attr){.i0 = m->is_signed}, NULL, 0, NULL);
    g_effect(w->g, OP_assign, m->codes, g_cast(w->g, code, DT_u8));
    g_effect(w->g, OP_assign, m->absmax, most);
}

/* Elements begin .. end of the flat state, in rows of `columns`. */
static void update_part(Update *w, int64_t begin, int64_t end, int64_t columns, NodeId factor) {
    const bool coded = columns == BLOCK;
    w->begin = begin;
    w->matrix = type_mat(DT_f32, dim_const((end - begin) / columns), dim_const(columns));
    NodeId params = state(w, "params", ROLE_ADAPTER);
    NodeId grad = op(w, OP_mul, state(w, "grads", ROLE_GRAD), all(w, factor));
    Moment m = moment(w, "m", true, coded), v = moment(w, "v", false, coded);
    NodeId m1 = blend(w, "beta1", "adam.rest1", m.value, grad);
    NodeId v1 = blend(w, "beta2", "adam.rest2", v.value, op(w, OP_mul, grad, grad));
    g_effect(w->g, OP_assign, params, stepped(w, params, m1, v1));
    keep_moment(w, &m, m1);
    keep_moment(w, &v, v1);
}

void update_build(Unit *u) {
    Update w = {.g = u->g, .n = u->nparams, .scalar = type_scalar(DT_f32)};
    w.matrix = type_mat(DT_f32, dim_const(u->nparams / COLUMNS), dim_const(COLUMNS));
    NodeId factor = clip_factor(&w);
    const int64_t plain = u->nparams - u->coded;
    if (plain) update_part(&w, 0, plain, COLUMNS, factor);
    if (u->coded) update_part(&w, plain, u->nparams, BLOCK, factor);
}
