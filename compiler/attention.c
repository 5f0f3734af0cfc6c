/* attention.c: attention and its backward as steps: which kernel text, which launch, which scratch.
 *
 * Relies on custom.h; what the kernels compute stands in custom.c.  Promises: the text depends on
 * sizes, dtypes and row distances alone.
 */
#include "custom.h"

/* ---- attention ------------------------------------------------------------------------------- */

enum { ATTEND_TILE = 64 }; /* query or key rows of one CUDA block */

static Instance attend_instance(Emit *e, const char *file, NodeId id, int grid_y) {
    const Node *n = node(e->u->g, id);
    const Type *q = operand(e, id, 0)->type;
    Instance in = instance(e, file, ATTEND_TILE, grid_y, 128);
    define_type(&in, "T_Q", q->dtype);
    define_int(&in, "HEADS", q->dim[1].c);
    define_int(&in, "KV_HEADS", operand(e, id, 1)->type->dim[1].c);
    define_int(&in, "HEAD_DIM", q->dim[2].c);
    define(&in, "SCALE", "%.9ef", n->attr.num);
    define_int(&in, "WINDOW", n->attr.i0);
    define_ld(&in, "LD_Q", n->in[0]);
    define_ld(&in, "LD_K", n->in[1]);
    define_ld(&in, "LD_V", n->in[2]);
    return in;
}

void lower_attend(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    Instance in = attend_instance(e, "attend", id, (int)n->type->dim[1].c);
    define_ld(&in, "LD_O", id);
    Step *s = kernel_step(e, instance_end(&in), 6, 3);
    for (int i = 0; i < 4; i++) s->args[i] = emit_arg(e, n->in[i]);
    s->args[4] = emit_arg(e, emit_part(e, id, 0));
    s->args[5] = emit_arg(e, emit_part(e, id, 1));
    s->dims[0] = n->type->dim[0];
    s->dims[1] = operand(e, id, 1)->type->dim[0];
    s->dims[2] = operand(e, id, 3)->type->dim[0];
}

enum { Q, K, V, OUT, LSE, DOUT, SEGS, RANGES }; /* operands of attend_bwd */

int64_t scratch_attend_bwd(const Unit *u, const Group *group) {
    const Type *lse = node(u->g, node(u->g, group->nodes[0])->in[LSE])->type;
    return dim_eval(type_count(lse), u->bound) * dtype_bytes(DT_f32);
}

static void attend_delta(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    const Type *q = operand(e, id, Q)->type;
    Instance in = instance(e, "attend_delta", ATTEND_TILE, 1, 128);
    define_type(&in, "T_Q", q->dtype);
    define_type(&in, "T_DO", operand(e, id, DOUT)->type->dtype);
    define_int(&in, "HEADS", q->dim[1].c);
    define_int(&in, "HEAD_DIM", q->dim[2].c);
    define_ld(&in, "LD_O", n->in[OUT]);
    define_ld(&in, "LD_DO", n->in[DOUT]);
    Step *s = kernel_step(e, instance_end(&in), 3, 1);
    s->args[0] = emit_arg(e, n->in[OUT]);
    s->args[1] = emit_arg(e, n->in[DOUT]);
    s->args[2] = (Arg){.buf = e->scratch};
    s->dims[0] = q->dim[0];
}

static void attend_dq(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    const Type *q = operand(e, id, Q)->type;
    Instance in = attend_instance(e, "attend_dq", id, (int)q->dim[1].c);
    define_type(&in, "T_DO", operand(e, id, DOUT)->type->dtype);
    define_type(&in, "T_DQ", n->type->dtype);
    define_ld(&in, "LD_DO", n->in[DOUT]);
    define_ld(&in, "LD_DQ", id);
    Step *s = kernel_step(e, instance_end(&in), 8, 3);
    static const int order[] = {Q, K, V, LSE, DOUT, SEGS};
    for (int i = 0; i < 6; i++) s->args[i] = emit_arg(e, n->in[order[i]]);
    s->args[6] = (Arg){.buf = e->scratch};
    s->args[7] = emit_arg(e, id);
    s->dims[0] = q->dim[0];
    s->dims[1] = operand(e, id, K)->type->dim[0];
    s->dims[2] = operand(e, id, SEGS)->type->dim[0];
}

static void attend_dkv(Emit *e, NodeId id, NodeId dk, NodeId dv) {
    const Node *n = node(e->u->g, id);
    const Type *k = operand(e, id, K)->type;
    Instance in = attend_instance(e, "attend_dkv", id, (int)k->dim[1].c);
    define_type(&in, "T_DO", operand(e, id, DOUT)->type->dtype);
    define_type(&in, "T_DK", node(e->u->g, dk ? dk : dv)->type->dtype);
    define_ld(&in, "LD_DO", n->in[DOUT]);
    define_ld(&in, "LD_DK", dk);
    define_ld(&in, "LD_DV", dv);
    Step *s = kernel_step(e, instance_end(&in), 10, 4);
    static const int order[] = {Q, K, V, LSE, DOUT, SEGS, RANGES};
    for (int i = 0; i < 7; i++) s->args[i] = emit_arg(e, n->in[order[i]]);
    s->args[7] = (Arg){.buf = e->scratch};
    s->args[8] = emit_arg(e, dk);
    s->args[9] = emit_arg(e, dv);
    s->dims[0] = k->dim[0];
    s->dims[1] = operand(e, id, Q)->type->dim[0];
    s->dims[2] = operand(e, id, SEGS)->type->dim[0];
    s->dims[3] = operand(e, id, RANGES)->type->dim[0];
}

void lower_attend_bwd(Emit *e, NodeId id) {
    NodeId dk = emit_part(e, id, 1), dv = emit_part(e, id, 2);
    attend_delta(e, id);
    if (emit_part(e, id, 0)) attend_dq(e, id);
    if (dk || dv) attend_dkv(e, id, dk, dv);
}
