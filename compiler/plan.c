/* plan.c: every byte of a unit: which values get a buffer, where it lies, how long it lives.
 *
 * plan_unit walks the ordered groups: a leaf gets a persistent buffer found by name (so programs
 * and units share it), a stored value one of its own, an effect the storage it writes; then the
 * steps are emitted.  plan_finish reads lifetimes off the emitted steps: a buffer that two programs
 * touch is persistent, any other lives from its first step to its last, whole loops included.
 * Values of phase init are named by what they are, so units compute and keep them once.
 * Relies on emit.c, arrange.c, place.c.  Promises: what plan_check (runtime) checks.
 */
#include "custom.h"

#include <stdlib.h>
#include <string.h>

static int program_index(Plan *plan, const char *name) {
    for (int i = 0; i < plan->nprograms; i++)
        if (!strcmp(plan->programs[i].name, name)) return i;
    PLAN_PUSH(plan, plan->programs, plan->nprograms, (Program){.name = name});
    return plan->nprograms - 1;
}

static const char *program_name(UnitKind kind, Phase phase) {
    return phase == PHASE_INIT || kind == UNIT_TRAIN ? phase_names[phase] : unit_names[kind];
}

static int buf_add(Plan *plan, const char *name, Role role, const Type *type, const char *where) {
    Buf buf = {.name = name,
               .role = role,
               .dtype = type->dtype,
               .rank = type->rank,
               .bytes = dim_eval(type_count(type), plan->bound) * dtype_bytes(type->dtype),
               .program = -1,
               .where = where};
    memcpy(buf.shape, type->dim, sizeof *type->dim * (size_t)type->rank);
    PLAN_PUSH(plan, plan->bufs, plan->nbufs, buf);
    return plan->nbufs - 1;
}

static int buf_named(const Plan *plan, const char *name) { /* interned */
    for (int i = 0; i < plan->nbufs; i++)
        if (plan->bufs[i].name == name) return i;
    return -1;
}

static const char *where_of(const Unit *u, NodeId id) {
    char *where = origin_print(u->arena, u->diags, node(u->g, id)->origin);
    return where && *where ? intern(where) : NULL;
}

/* ---- leaves and their binds ------------------------------------------------------------------ */

static void bind_weight(Plan *plan, Unit *u, const Node *n, int buf) {
    const WeightInfo *w = &u->weights[n->attr.i0];
    const char *part = strchr(n->attr.name, '#');
    Bind bind = {.source = w->source,
                 .tensor = w->tensor,
                 .alias = w->alias,
                 .buf = buf,
                 .rows = w->rows,
                 .cols = w->cols,
                 .ld = w->cols,
                 .rank = w->rank,
                 .transform = part            ? intern_printf("%s.%s", w->format, part + 1)
                              : w->transposed ? "transpose"
                                              : "copy",
                 .num = part ? (double)w->block : 0,
                 .nested = part && w->nested,
                 .init = w->start.init,
                 .init_num = w->start.init_num,
                 .of_source = w->start.of_source,
                 .of = w->start.of,
                 .quantizer = part && u->target->cuda && w->block % 2 == 0
                                  ? 1 + quantize_kernel(plan, u, w->format, w->block)
                                  : 0,
                 .where = w->loc.file ? intern(loc_print(u->arena, u->diags, w->loc)) : NULL};
    PLAN_PUSH(plan, plan->binds, plan->nbinds, bind);
}

static void bind_trained(Plan *plan, const Unit *u, int buf) {
    for (int i = 0; i < u->ntrained; i++) {
        const Trained *t = &u->trained[i];
        Bind bind = {.source = t->source,
                     .tensor = t->tensor,
                     .alias = t->alias,
                     .buf = buf,
                     .offset = t->offset * dtype_bytes(DT_f32),
                     .rows = t->rows,
                     .cols = t->cols,
                     .ld = t->cols,
                     .rank = t->rank,
                     .transform = t->transposed ? "transpose" : "copy",
                     .init = t->start.init,
                     .init_num = t->start.init_num,
                     .of_source = t->start.of_source,
                     .of = t->start.of,
                     .save = true,
                     .where = t->loc.file ? intern(loc_print(u->arena, u->diags, t->loc)) : NULL};
        PLAN_PUSH(plan, plan->binds, plan->nbinds, bind);
    }
}

static void bind_table(Plan *plan, const Node *n, int buf) {
    int count = table_size(n->attr.table);
    Bind bind = {.source = "table",
                 .tensor = plan->bufs[buf].name,
                 .buf = buf,
                 .rows = 1,
                 .cols = count,
                 .ld = count,
                 .rank = 1,
                 .transform = "table",
                 .values = n->attr.table,
                 .nvalues = count};
    PLAN_PUSH(plan, plan->binds, plan->nbinds, bind);
}

const char *plan_leaf_name(const Node *n) {
    char hex[33];
    if (n->op == OP_table) {
        size_t bytes = sizeof(float) * (size_t)table_size(n->attr.table);
        hash_hex(hash_bytes(n->attr.table, bytes, (Hash128){0, 0}), hex);
        return intern_printf("table.%.12s", hex);
    }
    if (n->op == OP_weight && strcmp(n->attr.name2, "base"))
        return intern_printf("%s/%s", n->attr.name2, n->attr.name);
    return intern(n->attr.name);
}

/* The persistent buffer of a leaf, shared with every program and unit that has a leaf of this
 * name. */
static int leaf_buf(Plan *plan, Unit *u, NodeId id) {
    const Node *n = node(u->g, id);
    const char *name = plan_leaf_name(n);
    int buf = buf_named(plan, name);
    if (buf >= 0) return buf;
    Role role = n->op == OP_input ? ROLE_INPUT : n->op == OP_state ? (Role)n->attr.i1 : ROLE_WEIGHT;
    buf = buf_add(plan, name, role, n->type, where_of(u, id));
    plan->bufs[buf].persistent = true;
    if (n->op == OP_weight) bind_weight(plan, u, n, buf);
    if (n->op == OP_table) bind_table(plan, n, buf);
    if (n->op == OP_state && !strcmp(n->attr.name, "params")) bind_trained(plan, u, buf);
    return buf;
}

/* ---- values ---------------------------------------------------------------------------------- */

static Hash128 hash_text(const char *text, Hash128 seed) {
    return text ? hash_bytes(text, strlen(text), seed) : seed;
}

/* What an init value is: the same hash in every unit that computes it.  Memory of the unit:
 * `memo`. */
static Hash128 value_hash(const Unit *u, NodeId id, Hash128 *memo) {
    if (memo[id].hi || memo[id].lo) return memo[id];
    const Node *n = node(u->g, id);
    Hash128 h = hash_text(op_info[n->op].name, (Hash128){n->inst, 0});
    h = hash_text(type_print(u->arena, n->type), h);
    h = hash_bytes(&n->attr.num, sizeof n->attr.num, h);
    if (n->op != OP_weight) h = hash_bytes(&n->attr.i0, sizeof n->attr.i0, h);
    h = hash_bytes(&n->attr.i1, 2 * sizeof n->attr.i1, h);
    h = hash_bytes(&n->attr.dim, sizeof n->attr.dim, h);
    h = hash_bytes(&n->attr.dim2, sizeof n->attr.dim2, h);
    h = hash_text(n->attr.name2, hash_text(n->attr.name, h));
    if (n->attr.table)
        h = hash_bytes(n->attr.table, sizeof(float) * (size_t)table_size(n->attr.table), h);
    for (int i = 0; i < n->nin; i++) {
        Hash128 in = value_hash(u, n->in[i], memo);
        h = hash_bytes(&in, sizeof in, h);
    }
    return memo[id] = h;
}

static Role value_role(const Node *n) {
    if (n->phase == PHASE_INIT) return ROLE_WEIGHT;
    return n->phase == PHASE_STEP || n->op == OP_dequant ? ROLE_SCRATCH : ROLE_ACTIVATION;
}

typedef struct Planner {
    Emit e;
    Hash128 *hash; /* of init values, by node */
    NodeId *over;  /* by result: the value it is written over, or 0 */
    int old;       /* buffers below this number belong to earlier units */
} Planner;

static int value_buf(Planner *p, NodeId id) {
    Plan *plan = p->e.plan;
    const Unit *u = p->e.u;
    const Node *n = node(u->g, id);
    const char *name;
    if (n->phase == PHASE_INIT) {
        char hex[33];
        hash_hex(value_hash(u, id, p->hash), hex);
        name = intern_printf("init.%.16s", hex);
        int buf = buf_named(plan, name);
        if (buf >= 0) return buf;
    } else {
        name = intern_printf("%s%%%d", unit_names[u->kind], id);
    }
    return buf_add(plan, name, value_role(n), n->type, where_of(u, id));
}

static void give_leaf(Planner *p, NodeId id) {
    const Graph *g = p->e.u->g;
    if (op_info[node(g, id)->op].kind == KIND_EFFECT) id = node(g, id)->in[0];
    NodeId base = place_of(g, id).base;
    if (p->e.buf[base] >= 0 || op_info[node(g, base)->op].kind != KIND_LEAF) return;
    if (node(g, base)->op != OP_const) p->e.buf[base] = leaf_buf(p->e.plan, p->e.u, base);
}

/* Buffers of what the group reads from leaves and of what it stores; false when an earlier unit has
 * computed all of it already. */
static bool give_bufs(Planner *p, const Group *group) {
    const Graph *g = p->e.u->g;
    bool news = false;
    for (int i = 0; i < group->nins; i++) give_leaf(p, group->ins[i]);
    for (int i = 0; i < group->nouts; i++) {
        NodeId out = group->outs[i];
        if (op_info[node(g, out)->op].kind == KIND_EFFECT) {
            give_leaf(p, out);
            news = true;
            continue;
        }
        NodeId over = group->inplace ? place_of(g, group->inplace).base : p->over[out];
        p->e.buf[out] = over ? p->e.buf[over] : value_buf(p, out);
        news |= p->e.buf[out] >= p->old;
    }
    return news || group->phase != PHASE_INIT;
}

static int scratch_buf(Planner *p, const Group *group) {
    if (!group->scratch) return -1;
    const Type *type = type_vec(DT_u8, dim_const(group->scratch));
    const char *name =
        intern_printf("scratch %s", op_info[node(p->e.u->g, group->nodes[0])->op].name);
    return buf_add(p->e.plan, name, ROLE_SCRATCH, type, where_of(p->e.u, group->nodes[0]));
}

void plan_unit(Plan *plan, Unit *u) {
    Planner p = {.e = {.plan = plan, .u = u}, .old = plan->nbufs};
    p.e.buf = NEW_ARRAY(u->arena, int, u->g->n);
    p.hash = NEW_ARRAY(u->arena, Hash128, u->g->n);
    p.over = NEW_ARRAY(u->arena, NodeId, u->g->n);
    reuse_storage(u, p.over);
    for (int i = 0; i < u->g->n; i++) p.e.buf[i] = -1;
    for (Phase phase = PHASE_INIT; phase < NPHASE; phase++)
        program_index(plan, program_name(u->kind, phase));
    for (int i = 0; i < u->ngroups; i++) {
        const Group *group = &u->groups[i];
        if (!give_bufs(&p, group)) continue;
        p.e.group = group;
        p.e.program = &plan->programs[program_index(plan, program_name(u->kind, group->phase))];
        p.e.scratch = scratch_buf(&p, group);
        emit_group(&p.e);
    }
}

/* ---- lifetimes and offsets ------------------------------------------------------------------- */

static void touch(Buf *buf, int program, int first, int last) {
    if (buf->persistent) return;
    if (buf->program < 0) {
        buf->program = program;
        buf->first = first;
        buf->last = last;
    } else if (buf->program != program) {
        buf->persistent = true;
    }
    if (first < buf->first) buf->first = first;
    if (last > buf->last) buf->last = last;
}

/* What a side step touches lives until the step that waits for it: those between run beside it. */
static void touch_side(Plan *plan, int program, int step) {
    const Step *s = &plan->programs[program].steps[step];
    int end = plan_side_end(plan, program, step), last = plan->programs[program].nsteps - 1;
    for (int a = 0; a < s->nargs; a++)
        if (s->args[a].buf >= 0)
            touch(&plan->bufs[s->args[a].buf], program, step, end < last ? end : last);
}

/* What a step inside a loop touches lives as long as the loop. */
static void lifetimes(Plan *plan) {
    for (int i = 0; i < plan->nprograms; i++) {
        const Program *program = &plan->programs[i];
        int loop = 0, loop_end = -1;
        for (int k = 0; k < program->nsteps; k++) {
            const Step *s = &program->steps[k];
            if (s->kind == STEP_LOOP) {
                loop = k;
                loop_end = k + s->body;
            }
            bool inside = k <= loop_end;
            for (int a = 0; a < s->nargs; a++)
                if (s->args[a].buf >= 0)
                    touch(&plan->bufs[s->args[a].buf], i, inside ? loop : k, inside ? loop_end : k);
        }
    }
    /* Which buffers are transient is known by now. */
    for (int i = 0; i < plan->nprograms; i++)
        for (int k = 0; k < plan->programs[i].nsteps; k++)
            if (plan->programs[i].steps[k].side) touch_side(plan, i, k);
}

#ifdef HARD
enum { GAP = 64 }; /* exec.c sees whether anything is written past a buffer */
#else
enum { GAP = 0 };
#endif

typedef struct Blocks { /* the transient buffers of a program */
    Block *block;
    int *buf, n;
} Blocks;

static Blocks blocks_of(const Plan *plan, int program, Arena *arena) {
    Blocks b = {.block = NEW_ARRAY(arena, Block, plan->nbufs + 1),
                .buf = NEW_ARRAY(arena, int, plan->nbufs + 1)};
    for (int i = 0; i < plan->nbufs; i++) {
        const Buf *buf = &plan->bufs[i];
        if (buf->persistent || buf->program != program) continue;
        b.buf[b.n] = i;
        b.block[b.n++] =
            (Block){buf->bytes + GAP, buf->first, buf->last, buf->shrink, buf->nshrink, 0};
    }
    return b;
}

/* Gives transient buffers their offsets from `base` on; returns the height of the highest program.
 * The others need not be lower than that one must be. */
static int64_t arrange_programs(Plan *plan, int64_t base, int64_t align) {
    Arena *arena = arena_new();
    int64_t most = 0;
    for (int i = 0; i < plan->nprograms; i++) {
        Blocks b = blocks_of(plan, i, arena);
        int64_t least = arrange_bound(b.block, b.n, align);
        if (least > most) most = least;
    }
    for (int i = 0; i < plan->nprograms; i++) {
        Blocks b = blocks_of(plan, i, arena);
        int64_t height = arrange(b.block, b.n, align, most);
        for (int k = 0; k < b.n; k++) plan->bufs[b.buf[k]].offset = base + b.block[k].offset;
        if (height > most) most = height;
    }
    arena_free(arena);
    return most;
}

/* What the target's library needs beside operands while it multiplies: the greatest of all
 * GEMMs. */
static void add_workspace(Plan *plan, const Target *target) {
    int64_t most = 0;
    for (int i = 0; i < plan->nprograms; i++) {
        int64_t extent[NEXTENT];
        memcpy(extent, plan->bound, sizeof extent);
        for (int k = 0; k < plan->programs[i].nsteps; k++) {
            const Step *s = &plan->programs[i].steps[k];
            if (s->kind == STEP_LOOP) extent[X_C] = s->chunk;
            if (s->kind != STEP_GEMM) continue;
            int64_t need = target->gemm_workspace;
            if (!target->cuda)
                need = gemm_workspace(&s->gemm, dim_eval(s->dims[0], extent),
                                      dim_eval(s->dims[1], extent), dim_eval(s->dims[2], extent));
            if (need > most) most = need;
        }
    }
    if (!most) return;
    int buf = buf_add(plan, intern("gemm.workspace"), ROLE_SCRATCH,
                      type_vec(DT_u8, dim_const(most)), NULL);
    plan->bufs[buf].persistent = true;
}

bool plan_finish(Plan *plan, const Target *target) {
    add_workspace(plan, target);
    lifetimes(plan);
    int64_t align = target->align, top = 0;
    for (int i = 0; i < plan->nbufs; i++) {
        Buf *b = &plan->bufs[i];
        if (b->program < 0) b->persistent = true; /* no step touches it: the runtime may */
        if (!b->persistent) continue;
        b->program = -1;
        b->offset = top;
        top = (top + b->bytes + GAP + align - 1) / align * align;
    }
    plan->arena_bytes = top + arrange_programs(plan, top, align);
    plan->fits = !plan->budget_bytes || plan->arena_bytes <= plan->budget_bytes;
    return plan->fits;
}
