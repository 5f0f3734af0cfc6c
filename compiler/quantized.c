/* quantized.c: kernels of weights kept in few bits: back to numbers as steps of programs, and into
 * codes while weights are read (Bind.quantizer).
 *
 * Relies on custom.h; kernels/cpu/dequant.h and kernels/cuda/{dequant,quantize}.cuh say what the
 * defines mean.  Promises: one dequant kernel per format, block, nesting and result type, and one
 * quantize kernel per format and block.
 */
#include "custom.h"

#include <string.h>

enum { TURN = 8192, WARPS = 8 }; /* elements, and blocks of a weight, per CUDA block */

static void define_format(Instance *in, const char *format, int64_t block) {
    static const char *const names[][2] = {{"nf4", "NF4"}, {"fp4", "FP4"}, {"int8", "INT8"}};
    define_int(in, "BLOCK", block);
    for (size_t i = 0; i < COUNT(names); i++)
        if (!strcmp(format, names[i][0])) define_int(in, names[i][1], 1);
}

void lower_dequant(Emit *e, NodeId id) {
    const Node *n = node(e->u->g, id);
    int64_t elements = type_count(n->type).c, block = n->attr.i0;
    Instance in = instance(e, "dequant", block < TURN ? (int)(TURN / block) : 1, 1, 256);
    define_type(&in, "T_Y", n->type->dtype);
    define_int(&in, "NESTED", n->attr.i1);
    define_format(&in, n->attr.name, block);
    if (e->u->safe) define_int(&in, "SAFE", 1);
    Step *s = kernel_step(e, instance_end(&in), n->nin + 1, 2);
    for (int i = 0; i < n->nin; i++) s->args[i] = emit_arg(e, n->in[i]);
    s->args[n->nin] = emit_arg(e, id);
    s->dims[0] = dim_const((elements + block - 1) / block);
    s->dims[1] = dim_const(elements);
}

int quantize_kernel(Plan *plan, Unit *u, const char *format, int64_t block) {
    Emit e = {.plan = plan, .u = u};
    Instance in = instance(&e, "quantize", WARPS, 1, 32 * WARPS);
    define_format(&in, format, block);
    return instance_end(&in);
}
