/* build.c: a checked spec -> the graph of one unit.
 *
 *   train, eval   policy and reference unrolled, log-probs of the scored rows, objective, metrics,
 * outputs
 *   score, objective   an objective that crosses pairs, cut from train (coupled.c)
 *   ref           the reference's log-probs alone
 *   prefill       the policy's logits on rows that end a prompt; keys and values go to the cache
 *   decode        the policy's logits on one row a sequence, over the cache
 *   before.*      the same for the policy without what is trained
 *
 * Trained tensors have the same offsets in "params" in every unit: they are laid out from the spec,
 * not from what a unit happens to touch.  Relies on layer.c, weight.c, objective.c.
 */
#include "front.h"

#include <string.h>

const char *const unit_names[NUNIT] = {"train",  "eval",           "ref",
                                       "score",  "objective",      "prefill",
                                       "decode", "before.prefill", "before.decode"};

/* ---- a unit and its bounds ------------------------------------------------------------------- */

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

void unit_bounds(const Spec *spec, const Target *target, UnitKind kind, int64_t tokens,
                 int64_t bound[NEXTENT]) {
    int64_t bucket = target->bucket;
    int64_t pairs = (int64_t)spec_num(spec, "run.batch");
    if (!tokens) tokens = round_up((int64_t)spec_num(spec, "run.tokens"), bucket);
    if (pairs > tokens / 2 && !spec_cut(spec)) pairs = tokens / 2;
    if (pairs < 1) pairs = 1;
    if (unit_generates(kind)) { /* one sequence */
        bound[X_T] = bound[X_H] = tokens;
        bound[X_G] = bound[X_N] = 1;
        return;
    }
    bound[X_T] = bound[X_R] = tokens;
    bound[X_P] = pairs;
    bound[X_N] = 2 * pairs;
    bound[X_G] = bound[X_K] = 3 * pairs + 1;
}

static void add_trained(Unit *u, Trained t) {
    PUSH(u->arena, u->trained, u->ntrained, u->captrained, t);
}

static void add_adapter(Unit *u, const AdapterSpec *a) {
    for (int i = 0; a->trained && i < a->ntarget; i++) {
        AdapterMatrix m[3];
        int n = adapter_matrices(&a->target[i], m);
        for (int k = 0; k < n; k++)
            add_trained(u, (Trained){.source = a->name,
                                     .tensor = m[k].tensor,
                                     .rank = m[k].rank,
                                     .rows = m[k].rows,
                                     .cols = m[k].cols,
                                     .transposed = m[k].transposed,
                                     .start = m[k].start,
                                     .loc = a->target[i].loc});
    }
}

static void add_base(Unit *u, const Base *base) {
    for (int i = 0; i < base->nweight; i++) {
        const Weight *w = base->weight[i];
        if (w->tied) continue;
        int64_t rows = w->rank == 2 ? w->shape[0] : 1, cols = w->shape[w->rank - 1];
        Trained t = {.source = base->source,
                     .tensor = intern_printf("%s.weight", w->tensor),
                     .alias = w->alias ? intern_printf("%s.weight", w->alias) : NULL,
                     .rank = w->rank,
                     .rows = rows,
                     .cols = cols,
                     .loc = w->loc};
        add_trained(u, t);
        if (!w->bias) continue;
        t.tensor = intern_printf("%s.bias", w->tensor);
        t.alias = NULL;
        t.rank = 1;
        t.rows = 1;
        t.cols = w->shape[0];
        add_trained(u, t);
    }
}

/* Gives a tensor its place in the flat state.  With 8-bit moments the small ones, which keep theirs
 * in fp32 as in bitsandbytes, are part 0; the blocks of 256 of part 1 hold one tensor each. */
static void place_trained(Unit *u, Trained *t, bool coded, int part) {
    const int64_t n = t->rows * t->cols;
    if ((coded && n >= 4096) != (part == 1)) return;
    t->offset = u->nparams;
    u->nparams += round_up(n, part ? 256 : 16);
}

static void lay_out_trained(Unit *u) {
    const Spec *spec = u->spec;
    for (int i = 0; i < spec->nadapters; i++) add_adapter(u, &spec->adapters[i]);
    for (int i = 0; i < spec->nbases; i++)
        if (spec->bases[i]->trained) add_base(u, spec->bases[i]);
    const char *optimizer = spec_str(spec, "run.optimizer");
    const bool coded = strstr(optimizer, "8bit") != NULL;
    for (int part = 0; part < 2; part++) {
        int64_t begin = u->nparams;
        for (int i = 0; i < u->ntrained; i++) place_trained(u, &u->trained[i], coded, part);
        u->nparams = round_up(u->nparams, 1024);
        u->coded = u->nparams - begin;
    }
}

Unit *unit_new(Arena *arena, const Spec *spec, const Target *target, UnitKind kind) {
    Unit *u = NEW(arena, Unit);
    u->kind = kind;
    u->spec = spec;
    u->target = target;
    u->arena = arena;
    u->diags = spec->front.diags;
    u->compute = spec->compute;
    u->g = graph_new(arena, u->diags);
    unit_bounds(spec, target, kind, 0, u->bound);
    lay_out_trained(u);
    return u;
}

void builder_init(Builder *b, Spec *spec, Unit *u) {
    *b = (Builder){.spec = spec, .front = &spec->front, .u = u, .g = u->g, .round = u->compute};
    b->training = u->kind == UNIT_TRAIN || u->kind == UNIT_SCORE || u->kind == UNIT_OBJECTIVE;
    bool decodes = u->kind == UNIT_DECODE || u->kind == UNIT_BEFORE_DECODE;
    b->rows = dim_extent(decodes ? X_N : X_T);
    b->expr = (Expr){.front = &spec->front,
                     .self = b,
                     .name = layer_name,
                     .call = layer_call,
                     .tensor = layer_tensor,
                     .select = layer_select,
                     .where = "a layer"};
}

/* ---- log-probs ------------------------------------------------------------------------------- */

static NodeId row_input(Builder *b, const char *name) {
    return build_input(b, name, DT_i32, 1, dim_extent(X_R), 0);
}

/* The model's hidden rows that predict something, and its head. */
static Head scored(Builder *b, const ModelSum *sum, const char *who) {
    Head head = layer_model(b, sum, who);
    b->who = who;
    builder_at(b, sum->base->model->name_loc);
    head.h = g_op(b->g, OP_take, head.h, head.h ? row_input(b, "row") : 0, 0);
    return head;
}

static bool score(Builder *b, const ModelSum *sum, const char *who, Scores *out) {
    Head head = scored(b, sum, who);
    if (!head.h || !head.w) return false;
    NodeId in[3] = {head.h, head.w, row_input(b, "target")};
    out->logp =
        graph_add(b->g, OP_linear_logprob, in, 3, &(Attr){.num = head.scale}, NULL, 0, NULL);
    out->mean_logit = g_part(b->g, out->logp, 2);
    out->entropy = g_part(b->g, out->logp, 3);
    out->correct = g_part(b->g, out->logp, 4);
    out->logsum_p2 = g_part(b->g, out->logp, 5);
    for (int side = 0; side < 2; side++)
        if (!side || !b->spec->one_sided) out->side[side] = sum_sequences(b, out->logp, side);
    return out->logp != 0;
}

static void cached_reference(Builder *b, Scores *out) {
    for (int side = 0; side < 2; side++)
        if (!side || !b->spec->one_sided)
            out->side[side] = builder_answer(
                b, build_input(b, side ? "pair.ref_logp_rejected" : "pair.ref_logp_chosen", DT_f32,
                               1, dim_extent(X_P), 0));
}

/* ---- outputs --------------------------------------------------------------------------------- */

static void output(Builder *b, const char *name, NodeId value) {
    if (!value) return;
    NodeId state = g_state(b->g, name, PHASE_MICRO, ROLE_OUTPUT, node(b->g, value)->type);
    g_effect(b->g, OP_assign, state, value);
}

static void output_pairs(Builder *b, const char *prefix, const Scores *s) {
    output(b, intern_printf("%slogp_chosen", prefix), s->side[0]);
    output(b, intern_printf("%slogp_rejected", prefix), s->side[1]);
}

static void output_metrics(Builder *b) {
    const Type *flat = type_vec(DT_f32, dim_const(b->nsums));
    if (!b->nsums) return;
    NodeId state = g_state(b->g, "metrics", PHASE_MICRO, ROLE_OUTPUT, flat);
    for (int i = 0; i < b->nsums; i++)
        g_effect(b->g, OP_accumulate, g_slot(b->g, state, i, type_scalar(DT_f32)), b->sums[i]);
}

/* ---- the kinds of units ---------------------------------------------------------------------- */

static bool build_loss_unit(Builder *b) {
    Spec *spec = b->spec;
    Scores policy = {0}, reference = {0};
    if (!score(b, &spec->policy, "policy", &policy)) return false;
    bool has = spec_has_reference(spec), cached = spec_ref_cached(spec);
    bool learns = b->u->kind == UNIT_TRAIN;
    if (has && cached) cached_reference(b, &reference);
    b->training = false; /* the reference has no dropout */
    if (has && !cached && !score(b, &spec->reference, "reference", &reference)) return false;
    if (learns)
        for (int i = 0; i < b->u->ntrained; i++)
            trained_leaf(b, b->u->trained[i].source, b->u->trained[i].tensor);
    if (!objective_build(b, &policy, has ? &reference : NULL)) return false;
    graph_at(b->g, origin_new(b->g->arena, spec->objective->loc, "outputs"));
    bool cut = spec_cut(spec), alone = b->u->kind == UNIT_OBJECTIVE;
    if (!alone) output_pairs(b, "", &policy);
    if (!alone && has && !(cut && learns)) output_pairs(b, "ref_", &reference);
    if (alone) coupled_objective(b);
    if (!cut || alone)
        output_metrics(b);
    else if (learns)
        coupled_backward(b);
    else
        coupled_scores(b);
    return true;
}

static bool build_ref_unit(Builder *b) {
    Scores reference = {0};
    if (!spec_has_reference(b->spec)) return true;
    if (!score(b, &b->spec->reference, "reference", &reference)) return false;
    output_pairs(b, "ref_", &reference);
    return true;
}

/* The policy as it was before training: without adapters that are trained; where none is, it may
 * have been loaded to see what it does, so without any. */
static ModelSum before_training(Builder *b) {
    const Spec *spec = b->spec;
    ModelSum sum = spec->policy;
    bool trains = false;
    for (int i = 0; i < sum.nuse; i++) trains |= spec->adapters[sum.use[i].adapter].trained;
    sum.use = NEW_ARRAY(b->g->arena, AdapterUse, sum.nuse);
    sum.nuse = sum.capuse = 0;
    for (int i = 0; i < spec->policy.nuse; i++) {
        AdapterUse use = spec->policy.use[i];
        if (trains && !spec->adapters[use.adapter].trained) sum.use[sum.nuse++] = use;
    }
    sum.start = sum.base->trained;
    return sum;
}

/* Logits [N,V]: of the rows that "last" names, or of all, where each is one sequence's. */
static bool build_generating_unit(Builder *b) {
    UnitKind kind = b->u->kind;
    bool before = kind >= UNIT_BEFORE_PREFILL;
    ModelSum sum = before ? before_training(b) : b->spec->policy;
    Head head = layer_model(b, &sum, before ? "before" : "policy");
    if (!head.h || !head.w) return false;
    builder_at(b, sum.base->model->name_loc);
    if (kind == UNIT_PREFILL || kind == UNIT_BEFORE_PREFILL)
        head.h =
            g_op(b->g, OP_take, head.h, build_input(b, "last", DT_i32, 1, dim_extent(X_N), 0), 0);
    NodeId logits = g_matmul(b->g, head.h, head.w, false, true);
    if (head.scale != 1)
        logits = g_op(b->g, OP_mul, logits, g_const(b->g, head.scale, node(b->g, logits)->type), 0);
    output(b, "logits", logits);
    return true;
}

bool unit_build(Unit *u) {
    Builder b;
    bool known = u->spec->policy.base != NULL;
    for (int i = 0; i < u->spec->nbases; i++) known &= u->spec->bases[i]->config != NULL;
    if (!known) {
        diag(u->diags, DIAG_ERROR, (Loc){0}, "no checkpoint is named: nothing can be built");
        return false;
    }
    builder_init(&b, (Spec *)u->spec, u);
    int errors = diags_errors(u->diags);
    bool ok = u->kind == UNIT_REF       ? build_ref_unit(&b)
              : unit_generates(u->kind) ? build_generating_unit(&b)
                                        : build_loss_unit(&b);
    graph_at(u->g, NULL);
    return ok && diags_errors(u->diags) == errors;
}
