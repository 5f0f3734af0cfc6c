/* head.c: log-probabilities as steps: a loop over chunks of scored rows, in which the logits of one
 * chunk are made by a GEMM, reduced, and, where a gradient is wanted, turned into d(logits) in
 * their own place.
 *
 * Relies on custom.h; what the kernels compute stands in custom.c.
 */
#include "custom.h"

/* ---- the head: logits exist for one chunk of rows at a time ---------------------------------- */

static int64_t head_chunk(const Unit *u) {
    int64_t rows = u->bound[X_R];
    int64_t chunk = u->spec ? (int64_t)spec_num(u->spec, "graph.loss_chunk") : 0;
    if (!chunk) chunk = u->target->chunk_rows;
    return rows < chunk ? rows : chunk;
}
/* The part k of the group's custom node, if it is stored. */
static bool stores_part(const Unit *u, const Group *group, int k) {
    for (int i = 0; i < group->nouts; i++) {
        const Node *n = node(u->g, group->outs[i]);
        if (n->op == OP_part && n->attr.i0 == k) return true;
    }
    return false;
}

enum { PART_LSE = 1, PART_SLOPE = 6 };

static int64_t logits_bytes(const Unit *u, NodeId id) {
    const Node *n = node(u->g, id);
    return head_chunk(u) * node(u->g, n->in[1])->type->dim[0].c * dtype_bytes(DT_f32);
}
/* Logits, and the lse that the slope needs where nothing else wants it. */
int64_t scratch_head(const Unit *u, const Group *group) {
    bool lse = stores_part(u, group, PART_SLOPE) && !stores_part(u, group, PART_LSE);
    return logits_bytes(u, group->nodes[0]) + (lse ? head_chunk(u) * dtype_bytes(DT_f32) : 0);
}

/* The argument for the current chunk of rows of a value [R] or [R,D]. */
static Arg chunk_arg(Emit *e, NodeId id) {
    Arg arg = emit_arg(e, id);
    if (id) arg.chunk_bytes = row_ld(e, id) * dtype_bytes(node(e->u->g, id)->type->dtype);
    return arg;
}

static void head_loop(Emit *e, NodeId id, int body) {
    Step *s = emit_step(e, STEP_LOOP, 0, 1);
    s->dims[0] = operand(e, id, 0)->type->dim[0];
    s->chunk = head_chunk(e->u);
    s->body = body;
}

/* logits [C,V] = h W^T into scratch; `again`: as the forward had them. */
static void head_logits(Emit *e, NodeId id, bool again) {
    const Node *n = node(e->u->g, id);
    const Type *w = operand(e, id, 1)->type;
    Step *s = emit_step(e, STEP_GEMM, 3, 3);
    s->args[0] = chunk_arg(e, n->in[0]);
    s->args[1] = emit_arg(e, n->in[1]);
    s->args[2] = (Arg){.buf = e->scratch};
    s->again = again; /* account() knows how many */
    s->dims[0] = dim_extent(X_C);
    s->dims[1] = w->dim[0];
    s->dims[2] = w->dim[1];
    s->gemm = (Gemm){.a = w->dtype,
                     .b = w->dtype,
                     .c = DT_f32,
                     .tb = true,
                     .lda = row_ld(e, n->in[0]),
                     .ldb = row_ld(e, n->in[1]),
                     .ldc = w->dim[0].c,
                     .alpha = 1};
}

/* d(logits) takes the place of the logits, in the operands' dtype. */
static int64_t dlogits_ld(const Type *w) {
    return w->dim[0].c * dtype_bytes(DT_f32) / dtype_bytes(w->dtype);
}

/* A block takes one row of logits. */
static Instance row_kernel(Emit *e, NodeId id, const char *file) {
    const int64_t vocab = operand(e, id, 1)->type->dim[0].c;
    Instance in = instance(e, file, 1, 1, vocab < 8192 ? 256 : 512);
    define_int(&in, "VOCAB", vocab);
    define(&in, "SCALE", "%.9ef", node(e->u->g, id)->attr.num);
    return in;
}

static int grad_kernel(Emit *e, NodeId id) {
    const Type *w = operand(e, id, 1)->type;
    Instance in = row_kernel(e, id, "logprob_grad");
    define_type(&in, "T_D", w->dtype);
    define_int(&in, "LD_D", dlogits_ld(w));
    return instance_end(&in);
}

/* Bytes of the logits of one chunk, or of that many elements of `t`. */
static double chunk_bytes(const Emit *e, NodeId id, DType t) {
    return (double)head_chunk(e->u) * (double)operand(e, id, 1)->type->dim[0].c * dtype_bytes(t);
}

static void head_dlogits(Emit *e, NodeId id, int kernel, Arg lse, Arg coefficient) {
    Step *s = kernel_step(e, kernel, 5, 1);
    s->args[0] = (Arg){.buf = e->scratch};
    s->args[1] = chunk_arg(e, node(e->u->g, id)->in[2]);
    s->args[2] = lse;
    s->args[3] = coefficient;
    s->args[4] = (Arg){.buf = e->scratch};
    s->dims[0] = dim_extent(X_C);
    s->bytes = chunk_bytes(e, id, DT_f32) + chunk_bytes(e, id, operand(e, id, 1)->type->dtype);
}

static void head_dh(Emit *e, NodeId id, NodeId dh) { /* dh = dlogits W */
    const Node *n = node(e->u->g, id);
    const Type *w = operand(e, id, 1)->type;
    Step *s = emit_step(e, STEP_GEMM, 3, 3);
    s->args[0] = (Arg){.buf = e->scratch};
    s->args[1] = emit_arg(e, n->in[1]);
    s->args[2] = chunk_arg(e, dh);
    s->dims[0] = dim_extent(X_C);
    s->dims[1] = w->dim[1];
    s->dims[2] = w->dim[0];
    s->gemm = (Gemm){.a = w->dtype,
                     .b = w->dtype,
                     .c = DT_f32,
                     .lda = dlogits_ld(w),
                     .ldb = row_ld(e, n->in[1]),
                     .ldc = row_ld(e, dh),
                     .alpha = 1};
}

void lower_linear_logprob(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    NodeId slope = emit_part(e, id, PART_SLOPE);
    Instance in = row_kernel(e, id, "logprob_stats");
    int stats = instance_end(&in), grad = slope ? grad_kernel(e, id) : -1;
    Arg lse = chunk_arg(e, emit_part(e, id, PART_LSE));
    if (slope && lse.buf < 0)
        lse = (Arg){.buf = e->scratch, .offset = dim_const(logits_bytes(e->u, id))};
    head_loop(e, id, slope ? 4 : 2);
    head_logits(e, id, false);
    Step *s = kernel_step(e, stats, 8, 1);
    s->args[0] = (Arg){.buf = e->scratch};
    s->args[1] = chunk_arg(e, n->in[2]);
    for (int k = 0; k <= 5; k++) s->args[2 + k] = chunk_arg(e, emit_part(e, id, k));
    s->args[2 + PART_LSE] = lse;
    s->dims[0] = dim_extent(X_C);
    s->bytes = chunk_bytes(e, id, DT_f32);
    if (!slope) return;
    head_dlogits(e, id, grad, lse, (Arg){.buf = -1});
    head_dh(e, id, slope);
}

static void head_dw(Emit *e, NodeId id, NodeId dw) { /* dW += dlogits^T h */
    const Node *n = node(e->u->g, id);
    const Type *w = operand(e, id, 1)->type;
    Step *s = emit_step(e, STEP_GEMM, 3, 3);
    s->args[0] = (Arg){.buf = e->scratch};
    s->args[1] = chunk_arg(e, n->in[0]);
    s->args[2] = emit_arg(e, dw);
    s->dims[0] = w->dim[0];
    s->dims[1] = w->dim[1];
    s->dims[2] = dim_extent(X_C);
    s->gemm = (Gemm){.a = w->dtype,
                     .b = w->dtype,
                     .c = DT_f32,
                     .ta = true,
                     .lda = dlogits_ld(w),
                     .ldb = row_ld(e, n->in[0]),
                     .ldc = row_ld(e, dw),
                     .alpha = 1,
                     .beta = 1};
}

void lower_linear_logprob_bwd(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    NodeId dh = emit_part(e, id, 0), dw = emit_part(e, id, 1);
    int kernel = grad_kernel(e, id);
    if (dw) {
        Step *zero = emit_step(e, STEP_ZERO, 1, 1);
        zero->args[0] = emit_arg(e, dw);
        zero->dims[0] = dim_scale(type_count(node(e->u->g, dw)->type), dtype_bytes(DT_f32));
    }
    head_loop(e, id, 2 + (dh != 0) + (dw != 0));
    head_logits(e, id, true);
    head_dlogits(e, id, kernel, chunk_arg(e, n->in[3]), chunk_arg(e, n->in[4]));
    if (dh) head_dh(e, id, dh);
    if (dw) head_dw(e, id, dw);
}
