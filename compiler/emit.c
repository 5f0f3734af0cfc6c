/* emit.c: ordered groups -> steps and kernels of a plan.
 *
 * A group becomes one kernel step (its Kern printed for the target), one GEMM step, or whatever its
 * custom op's lower rule appends.  Kernel text holds no names of this graph, so equal text is one
 * kernel, called by a symbol made of its hash.  Relies on plan.c for buffers (Emit.buf) and on
 * place.c for where values lie.  Promises: steps come in the groups' order; every step carries a
 * label, its place in the source, and its FLOPs and bytes at the bounds.
 */
#include "kern.h"

#include <stdlib.h>
#include <string.h>

void *plan_room(Plan *plan, void *v, size_t size, int n) {
    int cap = n == 0 ? 0 : n < 8 ? 8 : (n & (n - 1)) == 0 ? n : n + 1;
    return arena_grow(plan->arena, v, size, n, &cap);
}

static _Noreturn void bug(const Emit *e, NodeId id, const char *what) {
    char *where = origin_print(e->u->arena, e->u->diags, node(e->u->g, id)->origin);
    fprintf(stderr, "dpoc: bug: plan: %%%d %s (%s): %s\n", id, op_info[node(e->u->g, id)->op].name,
            where ? where : "?", what);
    exit(EXIT_BUG);
}

/* An effect stands for the storage it writes. */
static NodeId storage_of(const Graph *g, NodeId id) {
    return op_info[node(g, id)->op].kind == KIND_EFFECT ? node(g, id)->in[0] : id;
}

Arg emit_arg(Emit *e, NodeId id) {
    if (!id) return (Arg){.buf = -1};
    Place place = place_of(e->u->g, storage_of(e->u->g, id));
    int buf = e->buf[place.base];
    if (buf < 0) bug(e, id, "is read but stored nowhere");
    int bytes = dtype_bytes(node(e->u->g, place.base)->type->dtype);
    return (Arg){.buf = buf, .offset = dim_scale(place.offset, bytes)};
}

NodeId emit_part(Emit *e, NodeId id, int k) {
    for (int i = 0; i < e->group->nouts; i++) {
        NodeId out = e->group->outs[i];
        const Node *n = node(e->u->g, out);
        if (k == 0 ? out == id : n->op == OP_part && n->in[0] == id && n->attr.i0 == k) return out;
    }
    return 0;
}

int emit_kernel(Emit *e, const Kernel *kernel) {
    Plan *plan = e->plan;
    for (int i = 0; i < plan->nkernels; i++)
        if (plan->kernels[i].symbol == kernel->symbol) return i;
    Kernel copy = *kernel;
    copy.text = arena_str(plan->arena, kernel->text);
    copy.kind = intern(kernel->kind);
    PLAN_PUSH(plan, plan->kernels, plan->nkernels, copy);
    return plan->nkernels - 1;
}

/* ---- labels ---------------------------------------------------------------------------------- */

static const char *scope_of(const Node *n) {
    return n->origin && n->origin->scope ? n->origin->scope : "";
}

/* "model.layers.3.self_attn.q_proj.weight#codes" without what every name ends in. */
static const char *short_name(const char *name) {
    size_t len = strcspn(name, "#");
    bool tail = len > 7 && !strncmp(name + len - 7, ".weight", 7);
    return intern_n(name, tail ? len - 7 : len);
}

/* The tensor behind an operand: of the checkpoint, or trained; NULL: neither. */
static const char *tensor_name(const Emit *e, NodeId id) {
    const Graph *g = e->u->g;
    while (id) {
        const Node *n = node(g, id);
        if (n->op == OP_weight) return short_name(n->attr.name);
        for (int i = 0; n->op == OP_slot && i < e->u->ntrained; i++)
            if (e->u->trained[i].offset == n->attr.i0) return short_name(e->u->trained[i].tensor);
        bool same = op_info[n->op].kind == KIND_VIEW || n->op == OP_dequant || n->op == OP_cast;
        id = same && n->nin ? n->in[0] : 0;
    }
    return NULL;
}

/* The distinct ops of a fused group, the last four that say something. */
static void kern_ops(const Emit *e, Text *out) {
    const char *names[4];
    int n = 0;
    for (int i = e->group->nnodes - 1; i >= 0 && n < 4; i--) {
        const Node *x = node(e->u->g, e->group->nodes[i]);
        if (op_info[x->op].kind == KIND_VIEW || op_info[x->op].kind == KIND_LEAF ||
            x->op == OP_bcast || x->op == OP_cast)
            continue;
        bool seen = false;
        for (int j = 0; j < n; j++) seen |= names[j] == op_info[x->op].name;
        if (!seen) names[n++] = op_info[x->op].name;
    }
    if (n == 0) text_add(out, "copy");
    while (n-- > 0) text_add(out, "%s%s", names[n], n ? "+" : "");
}

/* "matmul model.layers.3.self_attn.q_proj", "exp+mul policy/model.layers.3.mlp" */
static const char *group_label(const Emit *e) {
    const Group *group = e->group;
    const Node *first = node(e->u->g, group->nodes[0]);
    const char *where = NULL;
    Text text = {0};
    if (group->kind == GROUP_KERN) {
        kern_ops(e, &text);
    } else if (group->kind == GROUP_GEMM) {
        text_add(&text, "matmul");
        if (!(where = tensor_name(e, group->b))) where = tensor_name(e, group->a);
        if (!where && (where = tensor_name(e, group->c))) text_add(&text, " gradient");
    } else {
        text_add(&text, "%s", op_info[first->op].name);
    }
    if (!where) where = scope_of(first);
    if (*where) text_add(&text, " %s", where);
    const char *label = intern(text.data);
    text_free(&text);
    return label;
}

Step *emit_step(Emit *e, StepKind kind, int nargs, int ndims) {
    NodeId first = e->group->nodes[0];
    Step step = {.kind = kind,
                 .args = NEW_ARRAY(e->plan->arena, Arg, nargs ? nargs : 1),
                 .nargs = nargs,
                 .dims = NEW_ARRAY(e->plan->arena, Dim, ndims ? ndims : 1),
                 .ndims = ndims,
                 .label = group_label(e)};
    char *where = origin_print(e->u->arena, e->u->diags, node(e->u->g, first)->origin);
    step.where = where && *where ? intern(where) : NULL;
    for (int i = 0; i < nargs; i++) step.args[i].buf = -1;
    PLAN_PUSH(e->plan, e->program->steps, e->program->nsteps, step);
    return &e->program->steps[e->program->nsteps - 1];
}

/* ---- groups ---------------------------------------------------------------------------------- */

static void emit_text(const Emit *e, const char *symbol, Text *out) {
    if (e->u->target->cuda)
        emit_kern_cuda(e->group->kern, symbol, out);
    else
        emit_kern_c(e->group->kern, symbol, out);
}

/* Bytes, a power of two up to 16, of which an argument's address is a multiple whatever the
 * extents: buffers begin at multiples of the target's alignment. */
int emit_align(const Arg *arg) {
    uint64_t bits = 16;
    for (int i = 0; i < NEXTENT; i++) bits |= (uint64_t)arg->offset.x[i];
    bits |= (uint64_t)arg->offset.c | (uint64_t)arg->chunk_bytes;
    return (int)(bits & -bits);
}

static void emit_kern(Emit *e) {
    Kern *kern = e->group->kern;
    Text text = {0};
    for (int i = 0; i < kern->narg; i++) {
        const Arg arg = emit_arg(e, kern->arg[i].node);
        kern->arg[i].align = emit_align(&arg);
    }
    emit_text(e, "SYMBOL", &text);
    char hex[33];
    hash_hex(hash_bytes(text.data, text.len, (Hash128){0, 0}), hex);
    Kernel kernel = {.symbol = intern_printf("k_%.12s", hex),
                     .kind = kern->shape == KERN_ROWS ? "rows" : "sum_rows"};
    kern_launch(kern, &kernel);
    text_free(&text);
    emit_text(e, kernel.symbol, &text);
    kernel.text = text.data;
    int index = emit_kernel(e, &kernel);
    text_free(&text);
    Step *s = emit_step(e, STEP_KERNEL, kern->narg, 1);
    s->kernel = index;
    for (int i = 0; i < kern->narg; i++) s->args[i] = emit_arg(e, kern->arg[i].node);
    s->dims[0] = kern->rows;
}

static void emit_gemm(Emit *e) {
    const Group *group = e->group;
    Step *s = emit_step(e, STEP_GEMM, group->bias ? 4 : 3, 3);
    s->gemm = group->gemm;
    s->args[0] = emit_arg(e, group->a);
    s->args[1] = emit_arg(e, group->b);
    s->args[2] = emit_arg(e, group->c);
    if (group->bias) s->args[3] = emit_arg(e, group->bias);
    s->dims[0] = group->m;
    s->dims[1] = group->n;
    s->dims[2] = group->k;
}

/* FLOPs and bytes of one GEMM step. */
static void account_gemm(Step *s, const int64_t extent[NEXTENT]) {
    double m = (double)dim_eval(s->dims[0], extent), n = (double)dim_eval(s->dims[1], extent),
           k = (double)dim_eval(s->dims[2], extent);
    s->flops = 2 * m * n * k;
    s->bytes = m * k * dtype_bytes(s->gemm.a) + k * n * dtype_bytes(s->gemm.b) +
               m * n * dtype_bytes(s->gemm.c) * (s->gemm.beta == 0 ? 1 : 2);
}

/* Elements that one load or store touches, each counted once. */
static double touches(const Kern *k, const KVal *v, double rows) {
    const bool by_row = v->level == LEVEL_ROW || v->level == LEVEL_ELEM;
    const bool by_col = v->level == LEVEL_COL || v->level == LEVEL_ELEM;
    return (by_row ? rows / (double)v->rowdiv : 1) * (by_col ? (double)k->cols : 1);
}

/* Bytes that a Kern moves if it reads every place once and writes every place once. */
static double kern_bytes(const Kern *k, const int64_t extent[NEXTENT]) {
    const double rows = (double)dim_eval(k->rows, extent);
    double bytes = 0;
    for (int a = 0; a < k->narg; a++) {
        double in = 0, out = 0;
        for (int i = 0; i < k->nval; i++) {
            const KVal *v = &k->val[i];
            if (v->kop != KOP_LOAD && v->kop != KOP_STORE) continue;
            const double n = touches(k, v, rows);
            if (v->arg == a && (v->kop == KOP_LOAD || v->accumulate) && n > in) in = n;
            if (v->arg == a && v->kop == KOP_STORE && n > out) out = n;
            if (v->index == a && in == 0) in = rows / (double)v->rowdiv;
        }
        bytes += (in + out) * dtype_bytes(k->arg[a].dtype);
    }
    return bytes;
}

/* Bytes of all that a group reads and writes. */
static double group_bytes(const Emit *e) {
    const Graph *g = e->u->g;
    const Group *group = e->group;
    double bytes = 0;
    for (int i = 0; i < group->nins + group->nouts; i++) {
        NodeId id = i < group->nins ? group->ins[i] : group->outs[i - group->nins];
        const Type *t = node(g, storage_of(g, id))->type;
        bytes += (double)dim_eval(type_count(t), e->u->bound) * dtype_bytes(t->dtype);
    }
    return bytes;
}

/* What of a group's FLOPs is beyond the algorithm: clones compute what was there before. */
static double cloned_share(const Emit *e) {
    const Graph *g = e->u->g;
    double all = 0, cloned = 0;
    for (int i = 0; i < e->group->nnodes; i++) {
        const NodeId id = e->group->nodes[i];
        const double flops = node_flops(g, id, e->u->bound);
        all += flops;
        if (node(g, id)->inst >= CLONE_INST) cloned += flops;
    }
    return all > 0 ? cloned / all : 0;
}

/* A GEMM step knows its own work, and so do kernels whose lower rule said it; the others have the
 * group's counts where it has no GEMM.  Inside a loop all are of a whole chunk. */
static void account(Emit *e, int begin) {
    const Graph *g = e->u->g;
    const Group *group = e->group;
    double flops = 0;
    for (int i = 0; i < group->nnodes; i++) flops += node_flops(g, group->nodes[i], e->u->bound);
    const double bytes = group->kern ? kern_bytes(group->kern, e->u->bound) : group_bytes(e);
    int kernels = 0, gemms = 0;
    double part = 1; /* of the group's rows that one call of a kernel in the loop has */
    int64_t extent[NEXTENT];
    memcpy(extent, e->u->bound, sizeof extent);
    for (int i = begin; i < e->program->nsteps; i++) {
        Step *s = &e->program->steps[i];
        if (s->kind == STEP_LOOP) {
            extent[X_C] = s->chunk;
            part = (double)s->chunk / (double)dim_eval(s->dims[0], extent);
        }
        if (s->kind == STEP_GEMM) account_gemm(s, extent);
        kernels += s->kind == STEP_KERNEL;
        gemms += s->kind == STEP_GEMM;
        s->side = group->side;
    }
    const double cloned = cloned_share(e);
    for (int i = begin; i < e->program->nsteps; i++) {
        Step *s = &e->program->steps[i];
        if (s->kind == STEP_KERNEL && !(s->bytes > 0)) {
            s->flops = gemms ? 0 : part * flops / kernels;
            s->bytes = part * bytes / kernels;
        }
        if (cloned > 0) s->again = cloned * s->flops;
        if (s->kind == STEP_GEMM && s->again > 0) s->again = s->flops; /* it repeats another */
    }
}

void emit_group(Emit *e) {
    int begin = e->program->nsteps;
    switch (e->group->kind) {
    case GROUP_KERN:
        emit_kern(e);
        break;
    case GROUP_GEMM:
        emit_gemm(e);
        break;
    case GROUP_CUSTOM: {
        NodeId id = e->group->nodes[0];
        custom_info(node(e->u->g, id)->op)->lower(e, id);
        break;
    }
    }
    account(e, begin);
}
