/* attention.c: attention and its backward as steps: which kernel text, which launch, which scratch.
 *
 * On CUDA bf16 goes to tensor cores (kernels/cuda/attend*_mma.cuh) where sizes and alignment allow;
 * the rest, and everything with --safe, to the plain kernels.  Relies on custom.h; what the kernels
 * compute stands in custom.c.  Promises: the text depends on sizes, dtypes, row distances and the
 * target alone.
 */
#include "custom.h"

enum { ATTEND_TILE = 64 }; /* query or key rows of one block of a plain kernel */

/* ---- whether tensor cores can do it ---------------------------------------------------------- */

/* Rows and heads of an operand begin at multiples of 16 bytes. */
static bool aligned(Emit *e, NodeId id) {
    const Arg arg = emit_arg(e, id);
    return arg.buf < 0 || (emit_align(&arg) == 16 && row_ld(e, id) % 8 == 0);
}

/* Why the plain kernel must do it; NULL: tensor cores can.  `most`: the largest head; `values`: the
 * `nread` operands that hold heads, then such results (0: not wanted). */
static const char *why_plain(Emit *e, NodeId id, int most, const NodeId *values, int n, int nread) {
    const int64_t head = operand(e, id, 0)->type->dim[2].c;
    if (e->u->safe) return "--safe";
    for (int i = 0; i < nread; i++)
        if (node(e->u->g, values[i])->type->dtype != DT_bf16) return "not all operands are bf16";
    if (head % 16 || head > most)
        return arena_printf(e->u->arena, "heads of %lld, not a multiple of 16 up to %d",
                            (long long)head, most);
    if (!(node(e->u->g, id)->attr.num > 0)) return "the scale is not positive";
    for (int i = 0; i < n; i++)
        if (values[i] && !aligned(e, values[i]))
            return "rows do not begin at multiples of 16 bytes";
    return NULL;
}

static bool on_tensor_cores(Emit *e, NodeId id, int most, const NodeId *values, int n, int nread) {
    if (!e->u->target->cuda) return false;
    const char *why = why_plain(e, id, most, values, n, nread);
    if (why) unit_refuse(e->u, "attend", id, "no tensor cores: %s", why);
    return !why;
}

/* ---- how it cuts the work -------------------------------------------------------------------- */

enum { WARPS = 4, FORWARD_MOST = 256, BACKWARD_MOST = 128 };

/* Shared memory of a tensor-core kernel: `fixed` rows of a head, and `streamed` times a tile of
 * `tile` rows, which comes and goes, with `beside` bytes per row. */
typedef struct Tiling {
    int fixed, streamed, beside, tile;
} Tiling;

static int shared_of(const Tiling *t, int64_t head) {
    const int64_t pitch = (head + 63) / 64 * 128; /* TILE_PITCH of kernels/cuda/tile.cuh */
    return (int)((t->fixed + t->streamed * t->tile) * pitch + t->beside * t->tile);
}

/* The largest tile, up to what t->tile is, with which two blocks share an SM; else the smallest. */
static void choose_tile(Tiling *t, const Target *target, int64_t head) {
    const int system = 1024; /* bytes that each block takes besides */
    for (; t->tile > 16; t->tile -= 16)
        if (2 * (shared_of(t, head) + system) <= target->shared_max + system) return;
}

static Instance attend_instance(Emit *e, const char *file, NodeId id, int64_t grid_y) {
    const Node *n = node(e->u->g, id);
    const Type *q = operand(e, id, 0)->type;
    Instance in = instance(e, file, ATTEND_TILE, (int)grid_y, 32 * WARPS);
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

/* The rest of a tensor-core instance: `rows` of a block, `name`: of its streamed tile. */
static void define_tiles(Instance *in, Emit *e, NodeId id, int rows, const char *name, Tiling t) {
    const int64_t head = operand(e, id, 0)->type->dim[2].c;
    choose_tile(&t, e->u->target, head);
    define_int(in, "WARPS", WARPS);
    define_int(in, name, t.tile);
    in->rows_per_block = rows;
    in->shared_bytes = shared_of(&t, head);
}

/* Keys of a tile for which there are registers (tests/cudasim/test_figures.c: none is spilled). */
static int forward_keys(const Target *target, int64_t head) {
    if (head <= 64 || head > 128) return 64;
    return (head <= 96 ? 64 : 48) - (target->arch >= 100 ? 16 : 0);
}

/* ---- forward --------------------------------------------------------------------------------- */

void lower_attend(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    const NodeId out = emit_part(e, id, 0), values[] = {n->in[0], n->in[1], n->in[2], out};
    const bool mma = on_tensor_cores(e, id, FORWARD_MOST, values, COUNT(values), 3);
    Instance in = attend_instance(e, mma ? "attend_mma" : "attend", id, n->type->dim[1].c);
    define_ld(&in, "LD_O", id);
    if (mma) {
        const int64_t head = n->type->dim[2].c;
        const int tiles = head <= 128 ? 2 : 1, rows = 16 * WARPS * tiles;
        const int most = forward_keys(e->u->target, head);
        define_int(&in, "TILES", tiles);
        define_tiles(&in, e, id, rows, "KEYS", (Tiling){rows, 2, 0, most});
    }
    Step *s = kernel_step(e, instance_end(&in), 6, 3);
    for (int i = 0; i < 4; i++) s->args[i] = emit_arg(e, n->in[i]);
    s->args[4] = emit_arg(e, out);
    s->args[5] = emit_arg(e, emit_part(e, id, 1));
    s->dims[0] = n->type->dim[0];
    s->dims[1] = operand(e, id, 1)->type->dim[0];
    s->dims[2] = operand(e, id, 3)->type->dim[0];
}

/* ---- backward -------------------------------------------------------------------------------- */

enum { Q, K, V, OUT, LSE, DOUT, SEGS, RANGES }; /* operands of attend_bwd */

int64_t scratch_attend_bwd(const Unit *u, const Group *group) {
    const Type *lse = node(u->g, node(u->g, group->nodes[0])->in[LSE])->type;
    return dim_eval(type_count(lse), u->bound) * dtype_bytes(DT_f32);
}

/* Bytes of a value at the bounds; 0 of none. */
static double value_bytes(const Emit *e, NodeId id) {
    const Type *t = id ? node(e->u->g, id)->type : NULL;
    return t ? (double)dim_eval(type_count(t), e->u->bound) * dtype_bytes(t->dtype) : 0;
}

/* `products` of queries by keys or values, counted on the causal half; each operand and result is
 * moved once. */
static void attend_work(const Emit *e, NodeId id, Step *s, double products, NodeId out,
                        NodeId out2) {
    const Node *n = node(e->u->g, id);
    static const int read[] = {Q, K, V, LSE, DOUT};
    const double rows = (double)dim_eval(operand(e, id, Q)->type->dim[0], e->u->bound);
    const Type *q = operand(e, id, Q)->type;
    s->flops = products * (double)(q->dim[1].c * q->dim[2].c) * rows * (rows + 1);
    s->bytes = value_bytes(e, n->in[LSE]); /* delta is as large */
    for (size_t i = 0; i < COUNT(read); i++) s->bytes += value_bytes(e, n->in[read[i]]);
    s->bytes += value_bytes(e, out) + value_bytes(e, out2);
}

static void attend_delta(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    const Type *q = operand(e, id, Q)->type;
    const Arg out = emit_arg(e, n->in[OUT]), dout = emit_arg(e, n->in[DOUT]);
    const int align = emit_align(&out) | emit_align(&dout);
    Instance in = instance(e, "attend_delta", 4, 1, 256);
    define_type(&in, "T_Q", q->dtype);
    define_type(&in, "T_DO", operand(e, id, DOUT)->type->dtype);
    define_int(&in, "HEADS", q->dim[1].c);
    define_int(&in, "HEAD_DIM", q->dim[2].c);
    define_ld(&in, "LD_O", n->in[OUT]);
    define_ld(&in, "LD_DO", n->in[DOUT]);
    if (e->u->target->cuda) define_int(&in, "ALIGN", align & -align);
    Step *s = kernel_step(e, instance_end(&in), 3, 1);
    s->args[0] = out;
    s->args[1] = dout;
    s->args[2] = (Arg){.buf = e->scratch};
    s->dims[0] = q->dim[0];
    s->flops = 2 * (double)dim_eval(type_count(q), e->u->bound);
    s->bytes =
        value_bytes(e, n->in[OUT]) + value_bytes(e, n->in[DOUT]) + value_bytes(e, n->in[LSE]);
}

static void attend_dq(Emit *e, NodeId id, bool mma) {
    const Node *n = node(e->u->g, id);
    const Type *q = operand(e, id, Q)->type;
    Instance in = attend_instance(e, mma ? "attend_dq_mma" : "attend_dq", id, q->dim[1].c);
    define_type(&in, "T_DO", operand(e, id, DOUT)->type->dtype);
    define_type(&in, "T_DQ", n->type->dtype);
    define_ld(&in, "LD_DO", n->in[DOUT]);
    define_ld(&in, "LD_DQ", id);
    if (mma) define_tiles(&in, e, id, 16 * WARPS, "KEYS", (Tiling){0, 4, 0, 64});
    Step *s = kernel_step(e, instance_end(&in), 8, 3);
    static const int order[] = {Q, K, V, LSE, DOUT, SEGS};
    for (int i = 0; i < 6; i++) s->args[i] = emit_arg(e, n->in[order[i]]);
    s->args[6] = (Arg){.buf = e->scratch};
    s->args[7] = emit_arg(e, id);
    s->dims[0] = q->dim[0];
    s->dims[1] = operand(e, id, K)->type->dim[0];
    s->dims[2] = operand(e, id, SEGS)->type->dim[0];
    attend_work(e, id, s, 3, id, 0); /* scores, d probabilities, dq */
}

static void attend_dkv(Emit *e, NodeId id, NodeId dk, NodeId dv, bool mma) {
    const Node *n = node(e->u->g, id);
    const Type *k = operand(e, id, K)->type;
    const int rows = 16 * WARPS, most = k->dim[2].c > 64 ? 32 : 64;
    Instance in = attend_instance(e, mma ? "attend_dkv_mma" : "attend_dkv", id, k->dim[1].c);
    define_type(&in, "T_DO", operand(e, id, DOUT)->type->dtype);
    define_type(&in, "T_DK", node(e->u->g, dk ? dk : dv)->type->dtype);
    define_ld(&in, "LD_DO", n->in[DOUT]);
    define_ld(&in, "LD_DK", dk);
    define_ld(&in, "LD_DV", dv);
    if (mma) /* keys and values; two stages of q, dout, lse, delta */
        define_tiles(&in, e, id, rows, "QUERIES", (Tiling){2 * rows, 4, 16, most});
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
    attend_work(e, id, s, 4, dk, dv);                 /* scores, d probabilities, dk, dv */
    if (emit_part(e, id, 0)) s->again = s->flops / 2; /* the first two, which dq has as well */
}

void lower_attend_bwd(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    const NodeId dq = emit_part(e, id, 0), dk = emit_part(e, id, 1), dv = emit_part(e, id, 2);
    const NodeId values[] = {n->in[Q], n->in[K], n->in[V], n->in[DOUT], dq, dk, dv};
    const bool mma = on_tensor_cores(e, id, BACKWARD_MOST, values, COUNT(values), 4);
    attend_delta(e, id);
    if (dq) attend_dq(e, id, mma);
    if (dk || dv) attend_dkv(e, id, dk, dv, mma);
}
