/* custom.c: how each CUSTOM op becomes steps: hand-written kernels and, for the head, GEMMs in a
 * loop.
 *
 * A custom kernel's text is a few #defines followed by a file of kernels/ and the #undefs.  On the
 * CPU the file is kernels/cpu/NAME.h, on CUDA kernels/cuda/NAME.cuh.  Every file may use
 *     SYMBOL     the function's name:  void SYMBOL(void *const *p, const int64_t *n)
 *     FN(name)   a name for helpers of this instance: SYMBOL_name (instances share a module)
 * and the defines below.  T_* is one word: f32 bf16 i32 u8 (the prelude knows these types).
 * LD_* is the number of elements between rows (first-axis steps) of an operand.
 * Arguments p in the order given; [x] may be NULL (not wanted).  n[0] is the parallel count.
 *
 *   take           p: x, index, y                      n: R, M
 *       defines T_X COLS LD_X LD_Y
 *       y[r] = index[r] < 0 ? 0 : x[index[r]], rows of COLS elements, any type (bits are moved)
 *   put            p: x, index, y                      n: M, R
 *       defines COLS LD_X LD_Y
 *       y[m] = sum of x[r] with index[r] == m, r ascending, starting from 0 (f32)
 *   sort           p: x, [y], [source i32]             n: P
 *       ascending, stable, NaN last; y[i] = x[source[i]]
 *   attend         p: q, k, v, segs, out, [lse]        n: T, M, G
 *       defines T_Q HEADS KV_HEADS HEAD_DIM SCALE WINDOW (0: none) LD_Q LD_K LD_V LD_O
 *       lse f32 [T,HEADS]; out rounded to T_Q
 *   attend_delta   p: out, dout, delta                 n: T
 *       defines T_Q T_DO HEADS HEAD_DIM LD_O LD_DO
 *       delta f32 [T,HEADS] = sum over the head of out * dout
 *   attend_dq      p: q, k, v, lse, dout, segs, delta, dq      n: T, M, G
 *       defines as attend, and T_DO T_DQ LD_DO LD_DQ
 *   attend_dkv     p: q, k, v, lse, dout, segs, ranges, delta, [dk], [dv]      n: M, T, G, K
 *       defines as attend, and T_DO T_DK LD_DO LD_DK LD_DV
 *   logprob_stats  p: logits, target, [logp], [lse], [mean], [entropy], [hit], [logsum_p2]   n: C
 *       defines VOCAB SCALE
 *       logits f32 [C,VOCAB] before SCALE; all results f32 [C] (ops.def, linear_logprob)
 *   logprob_grad   p: logits, target, lse, c, d        n: C
 *       defines VOCAB SCALE T_D LD_D
 *       d[r][j] = c[r] * SCALE * ((j == target[r]) - exp(SCALE * logits[r][j] - lse[r])), 0 where
 *       target is -1, rounded to T_D.  d lies in the same memory as logits (row r begins at the
 *       same byte: LD_D = VOCAB * 4 / sizeof(T_D)): read element j before writing any element >= j.
 *   dequant        p: codes, absmax, y                            n: blocks, elements
 *              or  p: codes, absmax u8, absmax2, offset, map, y   (NESTED 1)
 *       defines T_Y BLOCK NESTED, and one of NF4 FP4 INT8
 *       elements count row-major over the whole matrix; element 2j stands in the high nibble
 *
 * Relies on plan.c/emit.c (Emit) and embedded kernel files.  Promises: no instance's text depends
 * on node ids or layers, so equal shapes share one kernel.
 */
#include "spec.h"

#include <stdlib.h>
#include <string.h>

/* ---- one instance of a kernel file ----------------------------------------------------------- */

typedef struct Instance {
    Emit *e;
    const char *file; /* "attend": kernels/cpu/attend.h or kernels/cuda/attend.cuh */
    Text defines, undefs;
    int rows_per_block, grid_y, threads;
} Instance;

static Instance instance(Emit *e, const char *file, int rows_per_block, int grid_y, int threads) {
    return (Instance){.e = e,
                      .file = file,
                      .rows_per_block = rows_per_block,
                      .grid_y = grid_y,
                      .threads = threads};
}

static void define(Instance *in, const char *name, const char *format, ...) PRINTF(3, 4);
static void define(Instance *in, const char *name, const char *format, ...) {
    va_list args;
    va_start(args, format);
    text_add(&in->defines, "#define %s %s\n", name, arena_vprintf(in->e->u->arena, format, args));
    va_end(args);
    text_add(&in->undefs, "#undef %s\n", name);
}
static void define_int(Instance *in, const char *name, int64_t value) {
    define(in, name, "%lld", (long long)value);
}
static void define_type(Instance *in, const char *name, DType t) {
    define(in, name, "%s", dtype_name(t));
}

/* Elements from one step of the first axis to the next. */
static int64_t row_ld(const Emit *e, NodeId id) {
    const Type *t = node(e->u->g, id)->type;
    if (t->rank <= 1) return type_cols(t) == 1 ? place_of(e->u->g, id).ld : 1;
    int64_t ld = place_of(e->u->g, id).ld;
    for (int i = 1; i < t->rank - 1; i++) ld *= t->dim[i].c;
    return ld;
}
static void define_ld(Instance *in, const char *name, NodeId id) {
    if (id) define_int(in, name, row_ld(in->e, id));
}

/* The kernel's index in the plan; the instance is used up. */
static int instance_end(Instance *in) {
    Emit *e = in->e;
    const char *path = arena_printf(
        e->u->arena, e->u->target->cuda ? "kernels/cuda/%s.cuh" : "kernels/cpu/%s.h", in->file);
    size_t len = 0;
    const char *body = embedded(path, &len);
    if (!body) {
        fprintf(stderr, "dpoc: bug: %s is not part of this program\n", path);
        exit(EXIT_BUG);
    }
    Hash128 hash = hash_bytes(body, len, (Hash128){0, 0});
    hash = hash_bytes(in->defines.data, in->defines.len, hash);
    char hex[33];
    hash_hex(hash, hex);
    Text text = {0};
    text_add(&text, "#define SYMBOL k_%.12s\n#define FN(name) k_%.12s_##name\n", hex, hex);
    text_addn(&text, in->defines.data, in->defines.len);
    text_addn(&text, body, len);
    text_addn(&text, in->undefs.data, in->undefs.len);
    text_add(&text, "#undef SYMBOL\n#undef FN\n");
    Kernel kernel = {.symbol = intern_printf("k_%.12s", hex),
                     .text = text.data,
                     .kind = in->file,
                     .rows_per_block = in->rows_per_block,
                     .grid_y = in->grid_y,
                     .threads = in->threads};
    int index = emit_kernel(e, &kernel);
    text_free(&text);
    text_free(&in->defines);
    text_free(&in->undefs);
    return index;
}

static Step *kernel_step(Emit *e, int kernel, int nargs, int ndims) {
    Step *s = emit_step(e, STEP_KERNEL, nargs, ndims);
    const char *scope = strchr(s->label, ' ');
    s->kernel = kernel;
    s->label = intern_printf("%s%s", e->plan->kernels[kernel].kind, scope ? scope : "");
    return s;
}

/* ---- gather, scatter, sort ------------------------------------------------------------------- */

static const Node *operand(const Emit *e, NodeId id, int i) {
    return node(e->u->g, node(e->u->g, id)->in[i]);
}
static int64_t row_elements(const Type *t) { /* of one step of the first axis */
    int64_t n = 1;
    for (int i = 1; i < t->rank; i++) n *= t->dim[i].c;
    return n;
}

static void lower_rows(Emit *e, NodeId id, const char *file) {
    const Node *n = node(e->u->g, id);
    const Node *x = operand(e, id, 0);
    Instance in = instance(e, file, 1, 1, 128);
    if (n->op == OP_take) define_type(&in, "T_X", x->type->dtype);
    define_int(&in, "COLS", row_elements(x->type));
    define_ld(&in, "LD_X", n->in[0]);
    define_ld(&in, "LD_Y", id);
    Step *s = kernel_step(e, instance_end(&in), 3, 2);
    s->args[0] = emit_arg(e, n->in[0]);
    s->args[1] = emit_arg(e, n->in[1]);
    s->args[2] = emit_arg(e, id);
    s->dims[0] = n->type->dim[0]; /* take: R, put: M */
    s->dims[1] = x->type->dim[0]; /* take: M, put: R */
}
static void lower_take(Emit *e, NodeId id) {
    lower_rows(e, id, "take");
}
static void lower_put(Emit *e, NodeId id) {
    lower_rows(e, id, "put");
}

static void lower_sort(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    Instance in = instance(e, "sort", 1 << 30, 1, 256);
    Step *s = kernel_step(e, instance_end(&in), 3, 1);
    s->args[0] = emit_arg(e, n->in[0]);
    s->args[1] = emit_arg(e, emit_part(e, id, 0));
    s->args[2] = emit_arg(e, emit_part(e, id, 1));
    s->dims[0] = n->type->dim[0];
}

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

static void lower_attend(Emit *e, NodeId id) {
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

static int64_t scratch_attend_bwd(const Unit *u, const Group *group) {
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

static void lower_attend_bwd(Emit *e, NodeId id) {
    NodeId dk = emit_part(e, id, 1), dv = emit_part(e, id, 2);
    attend_delta(e, id);
    if (emit_part(e, id, 0)) attend_dq(e, id);
    if (dk || dv) attend_dkv(e, id, dk, dv);
}

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
static int64_t scratch_head(const Unit *u, const Group *group) {
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

/* logits [C,V] = h W^T into scratch. */
static void head_logits(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    const Type *w = operand(e, id, 1)->type;
    Step *s = emit_step(e, STEP_GEMM, 3, 3);
    s->args[0] = chunk_arg(e, n->in[0]);
    s->args[1] = emit_arg(e, n->in[1]);
    s->args[2] = (Arg){.buf = e->scratch};
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

static int grad_kernel(Emit *e, NodeId id) {
    const Type *w = operand(e, id, 1)->type;
    Instance in = instance(e, "logprob_grad", 1, 1, 256);
    define_int(&in, "VOCAB", w->dim[0].c);
    define(&in, "SCALE", "%.9ef", node(e->u->g, id)->attr.num);
    define_type(&in, "T_D", w->dtype);
    define_int(&in, "LD_D", dlogits_ld(w));
    return instance_end(&in);
}

static void head_dlogits(Emit *e, NodeId id, int kernel, Arg lse, Arg coefficient) {
    Step *s = kernel_step(e, kernel, 5, 1);
    s->args[0] = (Arg){.buf = e->scratch};
    s->args[1] = chunk_arg(e, node(e->u->g, id)->in[2]);
    s->args[2] = lse;
    s->args[3] = coefficient;
    s->args[4] = (Arg){.buf = e->scratch};
    s->dims[0] = dim_extent(X_C);
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

static void lower_linear_logprob(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    NodeId slope = emit_part(e, id, PART_SLOPE);
    Instance in = instance(e, "logprob_stats", 1, 1, 256);
    define_int(&in, "VOCAB", operand(e, id, 1)->type->dim[0].c);
    define(&in, "SCALE", "%.9ef", n->attr.num);
    int stats = instance_end(&in), grad = slope ? grad_kernel(e, id) : -1;
    Arg lse = chunk_arg(e, emit_part(e, id, PART_LSE));
    if (slope && lse.buf < 0)
        lse = (Arg){.buf = e->scratch, .offset = dim_const(logits_bytes(e->u, id))};
    head_loop(e, id, slope ? 4 : 2);
    head_logits(e, id);
    Step *s = kernel_step(e, stats, 8, 1);
    s->args[0] = (Arg){.buf = e->scratch};
    s->args[1] = chunk_arg(e, n->in[2]);
    for (int k = 0; k <= 5; k++) s->args[2 + k] = chunk_arg(e, emit_part(e, id, k));
    s->args[2 + PART_LSE] = lse;
    s->dims[0] = dim_extent(X_C);
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

static void lower_linear_logprob_bwd(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    NodeId dh = emit_part(e, id, 0), dw = emit_part(e, id, 1);
    int kernel = grad_kernel(e, id);
    if (dw) {
        Step *zero = emit_step(e, STEP_ZERO, 1, 1);
        zero->args[0] = emit_arg(e, dw);
        zero->dims[0] = dim_scale(type_count(node(e->u->g, dw)->type), dtype_bytes(DT_f32));
    }
    head_loop(e, id, 2 + (dh != 0) + (dw != 0));
    head_logits(e, id);
    head_dlogits(e, id, kernel, chunk_arg(e, n->in[3]), chunk_arg(e, n->in[4]));
    if (dh) head_dh(e, id, dh);
    if (dw) head_dw(e, id, dw);
}

/* ---- quantized weights ----------------------------------------------------------------------- */

static void lower_dequant(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    Instance in = instance(e, "dequant", 8, 1, 256);
    define_type(&in, "T_Y", n->type->dtype);
    define_int(&in, "BLOCK", n->attr.i0);
    define_int(&in, "NESTED", n->attr.i1);
    define(&in,
           !strcmp(n->attr.name, "nf4")   ? "NF4"
           : !strcmp(n->attr.name, "fp4") ? "FP4"
                                          : "INT8",
           "1");
    int64_t elements = type_count(n->type).c;
    Step *s = kernel_step(e, instance_end(&in), n->nin + 1, 2);
    for (int i = 0; i < n->nin; i++) s->args[i] = emit_arg(e, n->in[i]);
    s->args[n->nin] = emit_arg(e, id);
    s->dims[0] = dim_const((elements + n->attr.i0 - 1) / n->attr.i0);
    s->dims[1] = dim_const(elements);
}

/* ---- the table ------------------------------------------------------------------------------- */

static int64_t scratch_none(const Unit *u, const Group *group) {
    (void)u;
    (void)group;
    return 0;
}

const CustomInfo *custom_info(Op op) {
    static const CustomInfo take = {scratch_none, lower_take}, put = {scratch_none, lower_put},
                            sort = {scratch_none, lower_sort},
                            attend = {scratch_none, lower_attend},
                            attend_bwd = {scratch_attend_bwd, lower_attend_bwd},
                            logprob = {scratch_head, lower_linear_logprob},
                            logprob_bwd = {scratch_head, lower_linear_logprob_bwd},
                            dequant = {scratch_none, lower_dequant};
    switch (op) {
    case OP_take:
        return &take;
    case OP_put:
        return &put;
    case OP_sort:
        return &sort;
    case OP_attend:
        return &attend;
    case OP_attend_bwd:
        return &attend_bwd;
    case OP_linear_logprob:
        return &logprob;
    case OP_linear_logprob_bwd:
        return &logprob_bwd;
    case OP_dequant:
        return &dequant;
    default:
        return NULL;
    }
}
