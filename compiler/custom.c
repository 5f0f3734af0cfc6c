/* custom.c: how CUSTOM ops become steps: instances of hand-written kernels; the table of all ops.
 * Attention stands in attention.c, the head in head.c, quantized weights in quantized.c.
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
 *       defines T_X COLS LD_X LD_Y, on CUDA ALIGN: bytes of which x and y are multiples
 *       y[r] = index[r] < 0 ? 0 : x[index[r]], rows of COLS elements, any type (bits are moved)
 *   put            p: x, index, y                      n: M, R
 *       defines COLS LD_X LD_Y, on CUDA ALIGN
 *       y[m] = sum of x[r] with index[r] == m, r ascending, starting from 0 (f32)
 *   append         p: x, index, cache                  n: T, M
 *       defines T_X COLS LD_X, on CUDA ALIGN
 *       cache[index[t]] = x[t] where index[t] is one of the M rows; any type (bits are moved)
 *   sort           p: x, [y], [source i32]             n: P
 *       ascending, stable, NaN last; y[i] = x[source[i]]
 *   attend         p: q, k, v, segs, out, [lse]        n: T, M, G
 *       defines T_Q HEADS KV_HEADS HEAD_DIM SCALE WINDOW (0: none) LD_Q LD_K LD_V LD_O
 *       lse f32 [T,HEADS]; out rounded to T_Q
 *   attend_delta   p: out, dout, delta                 n: T
 *       defines T_Q T_DO HEADS HEAD_DIM LD_O LD_DO, on CUDA ALIGN: bytes both are multiples of
 *       delta f32 [T,HEADS] = sum over the head of out * dout
 *   attend_dq      p: q, k, v, lse, dout, segs, delta, dq      n: T, M, G
 *       defines as attend, and T_DO T_DQ LD_DO LD_DQ
 *   attend_dkv     p: q, k, v, lse, dout, segs, ranges, delta, [dk], [dv]      n: M, T, G, K
 *       defines as attend, and T_DO T_DK LD_DO LD_DK LD_DV
 *   attend_mma, attend_dq_mma, attend_dkv_mma: the same on tensor cores, bf16; their files name
 *       what they need besides
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
 *   quantize       p: x f32, codes, absmax                        n: blocks, elements
 *       defines BLOCK, and one of NF4 FP4 INT8; CUDA alone, while weights are read
 *
 * Relies on plan.c/emit.c (Emit) and embedded kernel files.  Promises: no instance's text depends
 * on node ids or layers, so equal shapes share one kernel.
 */
#include "custom.h"

#include <stdlib.h>
#include <string.h>

/* ---- one instance of a kernel file ----------------------------------------------------------- */

Instance instance(Emit *e, const char *file, int rows_per_block, int grid_y, int threads) {
    return (Instance){.e = e,
                      .file = file,
                      .rows_per_block = rows_per_block,
                      .grid_y = grid_y,
                      .threads = threads};
}

void define(Instance *in, const char *name, const char *format, ...) {
    va_list args;
    va_start(args, format);
    text_add(&in->defines, "#define %s %s\n", name, arena_vprintf(in->e->u->arena, format, args));
    va_end(args);
    text_add(&in->undefs, "#undef %s\n", name);
}
void define_int(Instance *in, const char *name, int64_t value) {
    define(in, name, "%lld", (long long)value);
}
void define_type(Instance *in, const char *name, DType t) {
    define(in, name, "%s", dtype_name(t));
}

/* Elements from one step of the first axis to the next. */
int64_t row_ld(const Emit *e, NodeId id) {
    const Type *t = node(e->u->g, id)->type;
    if (t->rank <= 1) return type_cols(t) == 1 ? place_of(e->u->g, id).ld : 1;
    int64_t ld = place_of(e->u->g, id).ld;
    for (int i = 1; i < t->rank - 1; i++) ld *= t->dim[i].c;
    return ld;
}
void define_ld(Instance *in, const char *name, NodeId id) {
    if (id) define_int(in, name, row_ld(in->e, id));
}

/* The kernel's index in the plan; the instance is used up. */
int instance_end(Instance *in) {
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
                     .threads = in->threads,
                     .shared_bytes = in->shared_bytes};
    int index = emit_kernel(e, &kernel);
    text_free(&text);
    text_free(&in->defines);
    text_free(&in->undefs);
    return index;
}

Step *kernel_step(Emit *e, int kernel, int nargs, int ndims) {
    Step *s = emit_step(e, STEP_KERNEL, nargs, ndims);
    const char *scope = strchr(s->label, ' ');
    s->kernel = kernel;
    s->label = intern_printf("%s%s", e->plan->kernels[kernel].kind, scope ? scope : "");
    return s;
}

const Node *operand(const Emit *e, NodeId id, int i) {
    return node(e->u->g, node(e->u->g, id)->in[i]);
}
/* ---- gather, scatter, sort ------------------------------------------------------------------- */

static int64_t row_elements(const Type *t) { /* of one step of the first axis */
    int64_t n = 1;
    for (int i = 1; i < t->rank; i++) n *= t->dim[i].c;
    return n;
}

enum { ROW_THREADS = 128, PUT_COLUMNS = 4096 }; /* kernels/cuda/take.cuh, put.cuh */

static void lower_rows(Emit *e, NodeId id, const char *file) {
    const Node *n = node(e->u->g, id);
    const Node *x = operand(e, id, 0);
    const int64_t cols = row_elements(x->type);
    const Arg from = emit_arg(e, n->in[0]), to = emit_arg(e, id);
    const bool take = n->op == OP_take;
    const int rows = take && cols < ROW_THREADS ? (int)(ROW_THREADS / cols) : 1;
    const int64_t pieces = take ? 1 : (cols + PUT_COLUMNS - 1) / PUT_COLUMNS;
    Instance in = instance(e, file, rows, pieces < 32768 ? (int)pieces : 32768, ROW_THREADS);
    if (take) define_type(&in, "T_X", x->type->dtype);
    define_int(&in, "COLS", cols);
    define_ld(&in, "LD_X", n->in[0]);
    define_ld(&in, "LD_Y", id);
    if (e->u->target->cuda)
        define_int(&in, "ALIGN",
                   emit_align(&from) < emit_align(&to) ? emit_align(&from) : emit_align(&to));
    Step *s = kernel_step(e, instance_end(&in), 3, 2);
    s->args[0] = from;
    s->args[1] = emit_arg(e, n->in[1]);
    s->args[2] = to;
    s->dims[0] = n->type->dim[0]; /* take: R, put: M */
    s->dims[1] = x->type->dim[0]; /* take: M, put: R */
}
static void lower_take(Emit *e, NodeId id) {
    lower_rows(e, id, "take");
}
static void lower_put(Emit *e, NodeId id) {
    lower_rows(e, id, "put");
}

static void lower_append(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    const Node *x = operand(e, id, 1);
    const int64_t cols = row_elements(x->type);
    const Arg from = emit_arg(e, n->in[1]), to = emit_arg(e, id);
    Instance in =
        instance(e, "append", cols < ROW_THREADS ? (int)(ROW_THREADS / cols) : 1, 1, ROW_THREADS);
    define_type(&in, "T_X", x->type->dtype);
    define_int(&in, "COLS", cols);
    define_ld(&in, "LD_X", n->in[1]);
    if (e->u->target->cuda)
        define_int(&in, "ALIGN",
                   emit_align(&from) < emit_align(&to) ? emit_align(&from) : emit_align(&to));
    Step *s = kernel_step(e, instance_end(&in), 3, 2);
    s->args[0] = from;
    s->args[1] = emit_arg(e, n->in[2]);
    s->args[2] = to;
    s->dims[0] = x->type->dim[0];
    s->dims[1] = n->type->dim[0];
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

/* ---- the table ------------------------------------------------------------------------------- */

static int64_t scratch_none(const Unit *u, const Group *group) {
    (void)u;
    (void)group;
    return 0;
}

const CustomInfo *custom_info(Op op) {
    static const CustomInfo take = {scratch_none, lower_take}, put = {scratch_none, lower_put},
                            sort = {scratch_none, lower_sort},
                            append = {scratch_none, lower_append},
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
    case OP_append:
        return &append;
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
