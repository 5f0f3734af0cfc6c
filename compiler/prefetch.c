/* prefetch.c: a dequantization runs beside the product before the one that reads it.
 *
 * A dequantization only moves bytes, a matrix product mostly computes: on a GPU the one can hide
 * behind the other.  Each dequantization moves up over products before it until those leave it
 * enough idle bandwidth, and is marked `side`: it may run beside them, until the first that touches
 * its result.  Its operands are frozen leaves, so nothing it reads can change meanwhile.
 * Costs: its result lives longer, so two dequantized weights are live where there was one (in
 * Llama-3-8B at most 112 MiB more); compile_spec does without where that breaks the budget.
 * Relies on the order being final, and on cost.c.  Promises: one dequantization ahead, never two;
 * only on CUDA, where there is a second queue.
 */
#include "dpoc.h"

/* FLOPs per byte of memory traffic at which a GPU is busy with both: 312 TFLOP/s and 1.6 TB/s
 * (A100), 990 and 4.8 (H200): both about 200. */
enum { FLOPS_PER_BYTE = 200 };

static bool is_dequant(const Unit *u, const Group *group) {
    return group->kind == GROUP_CUSTOM && node(u->g, group->nodes[0])->op == OP_dequant;
}

static double traffic(const Unit *u, const Group *group) {
    double bytes = 0;
    for (int i = 0; i < group->nins + group->nouts; i++) {
        NodeId id = i < group->nins ? group->ins[i] : group->outs[i - group->nins];
        const Type *t = node(u->g, id)->type;
        bytes += (double)dim_eval(type_count(t), u->bound) * dtype_bytes(t->dtype);
    }
    return bytes;
}

/* Bytes that memory could move while the group computes, beside its own. */
static double idle_bytes(const Unit *u, const Group *group) {
    double flops = 0;
    for (int i = 0; i < group->nnodes; i++) flops += node_flops(u->g, group->nodes[i], u->bound);
    double idle = flops / FLOPS_PER_BYTE - traffic(u, group);
    return group->kind != GROUP_KERN && idle > 0 ? idle : 0;
}

/* Whether all the group reads stands in the plan before any program runs. */
static bool reads_leaves_only(const Unit *u, const Group *group) {
    for (int i = 0; i < group->nins; i++)
        if (node(u->g, place_of(u->g, group->ins[i]).base)->op != OP_weight) return false;
    return true;
}

static bool reads_result_of(const Unit *u, const Group *reader, const Group *group) {
    for (int i = 0; i < reader->nins; i++)
        for (int k = 0; k < group->nouts; k++)
            if (place_of(u->g, reader->ins[i]).base == group->outs[k]) return true;
    return false;
}

/* Where group i goes: before enough work to hide behind, but not before the group that reads the
 * dequantization before it, and never out of its phase. */
static int place_for(const Unit *u, int i, int last) {
    const Group *group = &u->groups[i];
    double wanted = traffic(u, group), idle = 0;
    int best = i;
    for (int k = i - 1; k > last && u->groups[k].phase == group->phase && idle < wanted; k--) {
        const Group *over = &u->groups[k];
        double more = idle_bytes(u, over);
        idle += more;
        if (more > 0 || over->kind == GROUP_GEMM) best = k;
        if (last >= 0 && reads_result_of(u, over, &u->groups[last])) break;
    }
    return best;
}

int pass_prefetch(Pass *pass, Unit *u) {
    (void)pass;
    if (!u->target->cuda || u->no_prefetch) return 0;
    int moved = 0, last = -1; /* the dequantization before */
    for (int i = 0; i < u->ngroups; i++) {
        if (!is_dequant(u, &u->groups[i])) continue;
        int to = i;
        if (reads_leaves_only(u, &u->groups[i])) to = place_for(u, i, last);
        Group group = u->groups[i];
        for (int k = i; k > to; k--) u->groups[k] = u->groups[k - 1];
        group.side = to < i;
        u->groups[to] = group;
        moved += to < i;
        last = to;
    }
    return moved;
}
