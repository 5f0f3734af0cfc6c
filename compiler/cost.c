/* cost.c: what nodes cost, counted from shapes: FLOPs and bytes at given extents.
 *
 * A multiply-add is two FLOPs.  Attention is counted as the causal half of a full square of its
 * query rows; its backward as two and a half times that.  Elementwise ops count one FLOP per
 * element, or a rough price for functions; they matter to remat, not to the totals.
 */
#include "dpoc.h"

static double count_of(const Type *t, const int64_t extent[NEXTENT]) {
    return (double)dim_eval(type_count(t), extent);
}

static double map_price(Op op) {
    switch (op) {
    case OP_exp:
    case OP_log:
    case OP_sin:
    case OP_cos:
    case OP_tanh:
    case OP_erf:
    case OP_sigmoid:
    case OP_log_sigmoid:
    case OP_uniform:
        return 20;
    case OP_pow:
        return 40;
    case OP_dynamic_value:
        return 20;
    case OP_dynamic_code:
        return 200;
    case OP_sqrt:
    case OP_rsqrt:
    case OP_div:
        return 5;
    case OP_bcast:
    case OP_stop:
        return 0;
    default:
        return 1;
    }
}

static double matmul_flops(const Graph *g, const Node *n, const int64_t extent[NEXTENT]) {
    const Type *a = node(g, n->in[0])->type;
    double k = (double)dim_eval(a->dim[n->attr.i0 ? 0 : 1], extent);
    return 2 * k * count_of(n->type, extent);
}

/* Scores of a causal square times 2 products of 2 FLOPs. */
static double attend_flops(const Graph *g, const Node *n, const int64_t extent[NEXTENT]) {
    const Type *q = node(g, n->in[0])->type;
    double rows = (double)dim_eval(q->dim[0], extent);
    return 4 * (double)(q->dim[1].c * q->dim[2].c) * rows * (rows + 1) / 2;
}

static double head_flops(const Graph *g, const Node *n, const int64_t extent[NEXTENT]) {
    const Type *h = node(g, n->in[0])->type;
    return 2 * count_of(h, extent) * (double)node(g, n->in[1])->type->dim[0].c;
}

/* FLOPs of matrix products and attention; 0 for all else. */
static double product_flops(const Graph *g, const Node *n, const int64_t extent[NEXTENT]) {
    switch (n->op) {
    case OP_matmul:
        return matmul_flops(g, n, extent);
    case OP_attend:
        return attend_flops(g, n, extent);
    case OP_attend_bwd:
        return 2.5 * attend_flops(g, n, extent);
    case OP_linear_logprob:
        return head_flops(g, n, extent);
    case OP_linear_logprob_bwd:
        return 2 * head_flops(g, n, extent); /* logits again, dh */
    case OP_part: {
        const Node *of = node(g, n->in[0]);
        bool product = of->op == OP_linear_logprob_bwd ||                /* dW */
                       (of->op == OP_linear_logprob && n->attr.i0 == 6); /* d logp / d h */
        return product ? head_flops(g, of, extent) : 0;
    }
    default:
        return 0;
    }
}

double node_flops(const Graph *g, NodeId id, const int64_t extent[NEXTENT]) {
    const Node *n = node(g, id);
    double flops = product_flops(g, n, extent);
    switch (op_info[n->op].kind) {
    case KIND_MAP:
        return map_price(n->op) * count_of(n->type, extent);
    case KIND_REDUCE:
        return count_of(node(g, n->in[0])->type, extent);
    case KIND_EFFECT:
        return n->op == OP_accumulate ? count_of(node(g, n->in[1])->type, extent) : 0;
    case KIND_CUSTOM:
        break;
    default:
        return flops;
    }
    if (n->op == OP_linear_logprob || n->op == OP_linear_logprob_bwd)
        flops += 25 * head_flops(g, n, extent) / (2 * (double)node(g, n->in[0])->type->dim[1].c);
    if (n->op == OP_dequant) flops += 2 * count_of(n->type, extent);
    return flops;
}

double node_bytes(const Graph *g, NodeId id, const int64_t extent[NEXTENT]) {
    const Node *n = node(g, id);
    OpKind kind = op_info[n->op].kind;
    if (kind == KIND_LEAF || (kind == KIND_VIEW && n->op != OP_part)) return 0;
    double bytes = count_of(n->type, extent) * dtype_bytes(n->type->dtype);
    if (n->op == OP_part) return bytes;
    if (n->op == OP_append) { /* rows read and written, not the cache */
        const Type *x = node(g, n->in[1])->type;
        return 2 * count_of(x, extent) * dtype_bytes(x->dtype);
    }
    for (int i = 0; i < n->nin; i++) {
        const Type *t = node(g, n->in[i])->type;
        bytes += count_of(t, extent) * dtype_bytes(t->dtype);
    }
    return bytes;
}

double graph_flops_again(const Graph *g, Phase phase, const int64_t extent[NEXTENT]) {
    double flops = 0;
    for (NodeId id = 1; id < g->n; id++)
        if (node(g, id)->phase == phase && node(g, id)->inst >= CLONE_INST)
            flops += product_flops(g, node(g, id), extent);
    return flops;
}

double graph_flops(const Graph *g, Phase phase, const int64_t extent[NEXTENT]) {
    double flops = 0;
    for (NodeId id = 1; id < g->n; id++)
        if (node(g, id)->phase == phase) flops += product_flops(g, node(g, id), extent);
    return flops;
}
