/* compile.c: a checked spec -> a plan: one unit for each wanted graph, all passes, memory, kernels.
 *
 * When the plan exceeds the budget, the training unit is compiled again with fewer bytes of kept
 * activations, in a short search for the most that still fits (recompute costs time, so no more of
 * it than needed); at last without prefetching.
 * Relies on spec.h, the pass table, plan.c.  Promises: the hash covers everything that decides
 * results (graphs as built, settings, bounds), not how they are computed; so a budget does not
 * change it.
 */
#include "spec.h"

#include <string.h>

static const char *keep(Plan *plan, const char *text) {
    return text ? arena_str(plan->arena, text) : NULL;
}

static void keep_lines(Plan *plan, const char ***to, int *n, const char **from, int count) {
    const char **all = NEW_ARRAY(plan->arena, const char *, *n + count);
    if (*n) memcpy(all, *to, sizeof *all * (size_t)*n);
    for (int i = 0; i < count; i++) all[*n + i] = keep(plan, from[i]);
    *to = all;
    *n += count;
}

static void keep_settings(Plan *plan, const Spec *spec) {
    const Setting *from = spec_settings(spec, &plan->nsettings);
    plan->settings = NEW_ARRAY(plan->arena, Setting, plan->nsettings);
    for (int i = 0; i < plan->nsettings; i++)
        plan->settings[i] =
            (Setting){keep(plan, from[i].path), from[i].num, keep(plan, from[i].str)};
    plan->base_path = keep(plan, spec_base_path(spec));
    plan->adapter_json = keep(plan, spec_adapter_json(spec));
}

/* ---- the hash: of what is computed, not of how ----------------------------------------------- */

/* Settings that change memory, speed, reporting or what is kept of a run, never what its steps
 * compute.  (Which of them may differ where a run goes on: save.c.) */
static const char *const harmless[] = {
    "graph.memory",   "graph.reserve",    "graph.share",        "graph.remat",
    "graph.fuse",     "graph.order",      "graph.cse",          "graph.fold",
    "graph.gemm",     "graph.prefetch",   "graph.capture",      "graph.ref_file",
    "run.steps",      "run.log_every",    "run.save_every",     "run.eval_every",
    "run.eval_first", "run.keep",         "run.best",           "run.load_best",
    "run.patience",   "run.sample_every", "run.sample_prompts", "run.sample_tokens",
    "data.train",     "data.eval"};

static bool decides(const char *path) {
    for (size_t i = 0; i < COUNT(harmless); i++)
        if (!strcmp(harmless[i], path)) return false;
    return true;
}

static Hash128 hash_unit(const Unit *u, const int64_t bound[NEXTENT], Hash128 seed) {
    Text text = {0};
    text_add(&text, "%s\n", unit_names[u->kind]);
    graph_print(u->g, &text);
    Hash128 hash = hash_bytes(text.data, text.len, seed);
    text_free(&text);
    return hash_bytes(bound, sizeof *bound * NEXTENT, hash);
}

static Hash128 hash_settings(const Plan *plan, Hash128 seed) {
    Text text = {0};
    text_add(&text, "version %d\n", PLAN_VERSION);
    for (int i = 0; i < plan->nsettings; i++) {
        const Setting *s = &plan->settings[i];
        if (!decides(s->path)) continue;
        text_add(&text, "%s=%.17g %s\n", s->path, s->num, s->str ? s->str : "");
    }
    Hash128 hash = hash_bytes(text.data, text.len, seed);
    text_free(&text);
    return hash;
}

/* The reference's log-probs as a graph, with how its weights are kept. */
static void keep_reference(Plan *plan, const Unit *u) {
    Text text = {0};
    graph_print(u->g, &text);
    for (int i = 0; i < u->nweights; i++) {
        const WeightInfo *w = &u->weights[i];
        text_add(&text, "%s %s %s %lld %d\n", w->source, w->tensor, w->format ? w->format : "plain",
                 (long long)w->block, w->nested);
    }
    char hex[33];
    hash_hex(hash_bytes(text.data, text.len, (Hash128){0, 0}), hex);
    plan->reference = keep(plan, hex);
    text_free(&text);
}

/* ---- one compilation ------------------------------------------------------------------------- */

/* Rows of what the tokens select from; the fewest, where policy and reference differ. */
static int64_t vocabulary(const Graph *g) {
    int64_t least = 0;
    for (NodeId id = 1; id < g->n; id++) {
        const Node *n = node(g, id);
        if (n->op != OP_take || node(g, n->in[1])->op != OP_input ||
            strcmp(node(g, n->in[1])->attr.name, "tokens"))
            continue;
        int64_t rows = node(g, n->in[0])->type->dim[0].c;
        if (!least || rows < least) least = rows;
    }
    return least;
}

static void keep_unit(Plan *plan, const Unit *u) {
    int64_t vocab = vocabulary(u->g);
    if (vocab && (!plan->vocab || vocab < plan->vocab)) plan->vocab = vocab;
    keep_lines(plan, &plan->refused, &plan->nrefused, u->refused, u->nrefused);
    keep_lines(plan, &plan->recomputed, &plan->nrecomputed, u->recomputed, u->nrecomputed);
    if (!plan->nmetrics) {
        plan->nmetrics = u->nmetrics;
        plan->metrics = NEW_ARRAY(plan->arena, Metric, u->nmetrics);
        for (int i = 0; i < u->nmetrics; i++)
            plan->metrics[i] =
                (Metric){intern(u->metrics[i].name), intern(u->metrics[i].denominator)};
    }
    if (u->kind == UNIT_TRAIN) plan->flops_again = graph_flops_again(u->g, PHASE_MICRO, u->bound);
    if (u->kind == UNIT_TRAIN || !plan->flops_micro)
        plan->flops_micro = graph_flops(u->g, PHASE_MICRO, u->bound);
    else if (u->kind == UNIT_SCORE)
        plan->flops_micro += graph_flops(u->g, PHASE_MICRO, u->bound);
}

static void count_parameters(Plan *plan) {
    for (int i = 0; i < plan->nbinds; i++) {
        const Bind *b = &plan->binds[i];
        const char *part = strchr(b->transform, '.');
        if (!strcmp(b->transform, "table") || (part && strcmp(part, ".codes"))) continue;
        plan->parameters_total += (double)b->rows * (double)b->cols;
        if (b->save) plan->parameters_trainable += (double)b->rows * (double)b->cols;
    }
}

typedef struct Attempt { /* one compilation of everything */
    const Spec *spec;
    const CompileOptions *options;
    DumpOptions dump;
    int64_t tokens; /* bound of a micro-batch; 0: run.tokens */
    int64_t keep;   /* bytes of activations that may be kept; 0: all */
    int64_t kept;   /* the answer */
    bool no_prefetch;
    bool still, resident; /* of Unit */
    /* of the units that train: what generates beside them changes nothing */
    int64_t bound[NEXTENT];
    Hash128 hash;
} Attempt;

/* What was asked for in the place of what unit_bounds has.  The rows of a decode are the first of
 * a prefill's, so there are at least as many. */
static void generate_bounds(const GenerateBounds *asked, int64_t bound[NEXTENT]) {
    if (asked->rows) bound[X_T] = asked->rows;
    if (asked->cache) bound[X_H] = asked->cache;
    if (asked->sequences) bound[X_N] = bound[X_G] = asked->sequences;
    if (bound[X_T] < bound[X_N]) bound[X_T] = bound[X_N];
}

/* What is asked for, and what it takes: an objective that is cut off has programs of its own. */
static bool wanted(const Attempt *a, UnitKind kind) {
    const bool *want = a->options->want;
    bool cut = spec_cut(a->spec), cached = spec_ref_cached(a->spec);
    return want[kind] || (cached && kind == UNIT_REF && (want[UNIT_TRAIN] || want[UNIT_EVAL])) ||
           (cut && kind == UNIT_SCORE && want[UNIT_TRAIN]) ||
           (cut && kind == UNIT_OBJECTIVE && (want[UNIT_TRAIN] || want[UNIT_EVAL]));
}

/* Units of one plan share buffers, so they share bounds: the greatest. */
static void common_bounds(const Attempt *a, bool generating, int64_t bound[NEXTENT]) {
    for (UnitKind kind = UNIT_TRAIN; kind < NUNIT; kind++) {
        int64_t one[NEXTENT] = {0};
        if (!wanted(a, kind) || (unit_generates(kind) && !generating)) continue;
        unit_bounds(a->spec, a->options->target, kind, a->tokens, one);
        if (unit_generates(kind)) generate_bounds(&a->options->generate, one);
        /* The rows of a micro-batch say how pairs are packed: samples take no more. */
        if (unit_generates(kind) && !a->still && bound[X_T] >= one[X_N]) one[X_T] = bound[X_T];
        for (int e = 0; e < NEXTENT; e++)
            if (one[e] > bound[e]) bound[e] = one[e];
    }
}

/* One unit into the plan; false after diagnostics. */
static bool compile_unit(Attempt *a, Plan *plan, UnitKind kind) {
    Arena *arena = arena_new();
    Unit *u = unit_new(arena, a->spec, a->options->target, kind);
    memcpy(u->bound, plan->bound, sizeof u->bound);
    u->safe = a->options->safe;
    u->no_prefetch = a->no_prefetch;
    u->still = a->still;
    u->resident = a->resident;
    u->activation_budget = kind == UNIT_TRAIN ? a->keep : 0;
    bool ok = unit_build(u);
    if (ok && (a->still || !unit_generates(kind))) a->hash = hash_unit(u, a->bound, a->hash);
    if (ok && kind == UNIT_REF) keep_reference(plan, u);
    ok = ok && unit_run_passes(u, &a->dump);
    if (ok) {
        plan_unit(plan, u);
        keep_unit(plan, u);
        if (kind == UNIT_TRAIN) a->kept = u->activation_bytes;
    }
    arena_free(arena);
    return ok;
}

/* NULL after diagnostics. */
static Plan *attempt(Attempt *a) {
    const Target *target = a->options->target;
    Plan *plan = plan_new();
    plan->device = intern(target->name);
    plan->bucket = target->bucket;
    plan->budget_bytes = a->options->budget;
    plan->prelude = keep(plan, emit_prelude(target));
    plan->coupled = spec_coupled(a->spec);
    memset(a->bound, 0, sizeof a->bound);
    common_bounds(a, false, a->bound);
    common_bounds(a, true, plan->bound);
    keep_settings(plan, a->spec);
    a->hash = hash_settings(plan, (Hash128){0, 0});
    for (UnitKind kind = UNIT_TRAIN; kind < NUNIT; kind++)
        if (wanted(a, kind) && !compile_unit(a, plan, kind)) {
            plan_free(plan);
            return NULL;
        }
    char hex[33];
    hash_hex(a->hash, hex);
    plan->hash = keep(plan, hex);
    count_parameters(plan);
    plan_finish(plan, target);
    return plan;
}

/* ---- the budget ------------------------------------------------------------------------------ */

/* One attempt; it takes the place of `best` if it fits. */
static bool try_keep(Attempt *a, int64_t keep, Plan **best, int64_t *over) {
    a->keep = keep;
    Plan *plan = attempt(a);
    if (!plan) return false;
    *over = plan->arena_bytes - plan->budget_bytes;
    Plan *worse = plan->fits ? *best : plan;
    if (plan->fits) *best = plan;
    plan_free(worse);
    return true;
}

/* The plan with the most kept activations that fits, or NULL.  A byte kept less is nearly a byte of
 * the arena, so the first guess is close; then the gap is closed from both sides.  Where the peak
 * lies elsewhere a byte less may gain nothing: six misses in a row, and the gap is halved. */
static Plan *search_keep(Attempt *a, int64_t kept, int64_t over) {
    Plan *best = NULL;
    int64_t low = 0, high = kept, close = kept / 64; /* low fits or is 0, high does not fit */
    int64_t next = kept - over - close / 2;
    if (!kept) return NULL;
    for (int round = 0; round < 10 && high - low > close; round++) {
        bool halve = round >= 6 && !best;
        if (halve || next >= high || next <= low) next = low + (high - low) / 2;
        if (!try_keep(a, next, &best, &over)) return best;
        if (over > 0)
            high = next;
        else
            low = next;
        next = over > 0 ? next - over - close / 2 : next - over - close / 4;
        if (over <= 0 && -over <= close) break;
    }
    if (!best && high > 1) try_keep(a, 1, &best, &over);
    return best;
}

/* Whether a plan for micro-batches of so many tokens fits that keeps as little as possible. */
static bool tokens_fit(Attempt *a, int64_t tokens) {
    a->tokens = tokens;
    a->keep = 1;
    Plan *plan = attempt(a);
    bool fits = plan && plan->fits;
    plan_free(plan);
    return fits;
}

/* The largest number of tokens that fits, in a short search over doublings of the bucket's
 * multiples. */
static int64_t search_tokens(Attempt *a, int64_t tokens) {
    int64_t bucket = a->options->target->bucket, low = 0, high = tokens / bucket;
    for (int round = 0; round < 7 && high - low > 1; round++) {
        int64_t middle = (low + high) / 2;
        if (tokens_fit(a, middle * bucket))
            low = middle;
        else
            high = middle;
    }
    return low * bucket;
}

/* A token of an answer is one pass over the weights, so where nothing is trained they are
 * dequantized once if that fits.  Where something is: recompute costs time, prefetch memory; it
 * hides more time than recomputing a weight's bytes costs, so it goes last. */
Plan *compile_spec(const Spec *spec, const CompileOptions *options) {
    bool trains = options->want[UNIT_TRAIN] || options->want[UNIT_EVAL] || options->want[UNIT_REF];
    Attempt a = {.spec = spec, .options = options, .dump = options->dump};
    a.still = a.resident = !trains;
    Plan *plan = attempt(&a), *fits;
    if (plan && !plan->fits && a.resident) {
        a.resident = false;
        plan_free(plan);
        plan = attempt(&a);
    }
    if (!plan || plan->fits || !trains) return plan;
    a.dump = (DumpOptions){0};
    int64_t kept = a.kept, over = plan->arena_bytes - plan->budget_bytes;
    if (!(fits = search_keep(&a, kept, over)) && options->target->cuda) {
        a.no_prefetch = true;
        if (try_keep(&a, 0, &fits, &over) && !fits) fits = search_keep(&a, kept, over);
    }
    if (fits) {
        plan_free(plan);
        return fits;
    }
    a.keep = 1;
    Plan *tight = kept ? attempt(&a) : NULL;
    bool smaller = tight && tight->arena_bytes < plan->arena_bytes;
    Plan *best = smaller ? tight : plan;
    plan_free(smaller ? plan : tight);
    best->smallest_bytes = best->arena_bytes;
    best->fit_tokens = search_tokens(&a, best->bound[X_T]);
    return best;
}
