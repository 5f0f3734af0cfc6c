/* verify_run.c: verify: one optimizer step on a device against the evaluator.
 *
 * The same graph after all passes is walked twice from the same weights and pairs: by the device,
 * and by
 * eval.c rounding every node to its type.  Compared are the loss, every gradient and the
 * optimizer's
 * moments.  Sums in another order may differ, and such a difference may flip a later rounding, so
 * the
 * bound is, relative to the largest value of each compared tensor,
 *     4 (u sqrt(path) + 2^-24 sqrt(path k))
 * u: unit roundoff of the compute type, path: longest chain of nodes that sum or round, k: longest
 * sum. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/job/job.h"
#include "work.h"

/* ---- device buffers as doubles --------------------------------------------------------------- */

static double *read_buffer(Work *w, const char *name, int64_t *count) {
    int buf = plan_buf(w->plan, name);
    if (buf < 0) {
        fail(&w->err, EXIT_BUG, "the plan has no buffer \"%s\"", name);
        return NULL;
    }
    const Buf *b = &w->plan->bufs[buf];
    int size = dtype_bytes(b->dtype);
    *count = b->bytes / size;
    char *raw = malloc((size_t)b->bytes + 1);
    double *out = malloc(sizeof(double) * (size_t)(*count + 1));
    bool ok = exec_read(w->exec, name, raw, (size_t)b->bytes, &w->err);
    for (int64_t i = 0; ok && i < *count; i++) {
        uint16_t half;
        memcpy(&half, raw + i * size, size < 2 ? 1 : 2);
        switch (b->dtype) {
        case DT_f32:
            out[i] = ((float *)(void *)raw)[i];
            break;
        case DT_bf16:
            out[i] = bf16_to_float(half);
            break;
        case DT_f16:
            out[i] = f16_to_float(half);
            break;
        case DT_i32:
            out[i] = ((int32_t *)(void *)raw)[i];
            break;
        default:
            out[i] = ((unsigned char *)raw)[i];
            break;
        }
    }
    free(raw);
    if (ok) return out;
    free(out);
    return NULL;
}

/* The evaluator's name of a leaf (dpoc.h: eval_set). */
static const char *eval_name(const Node *n) {
    return n->op == OP_weight ? intern_printf("%s/%s", n->attr.name2, n->attr.name) : n->attr.name;
}

/* Copies what the device holds in every leaf of the graph; leaves larger than the actual extents
 * give
 * their first elements. */
static bool copy_leaves(Work *w, const Unit *u, const int64_t *extent, Eval *e, Op only) {
    for (NodeId id = 1; id < u->g->n; id++) {
        const Node *n = node(u->g, id);
        if (n->op != only || plan_buf(w->plan, plan_leaf_name(n)) < 0) continue;
        int64_t count, need = dim_eval(type_count(n->type), extent);
        double *values = read_buffer(w, plan_leaf_name(n), &count);
        if (!values) return false;
        eval_set(e, eval_name(n), values, need < count ? need : count);
        free(values);
    }
    return true;
}

/* ---- the bound ------------------------------------------------------------------------------- */

static double tolerance(const Unit *u, const int64_t *extent) {
    int *depth = calloc((size_t)u->g->n, sizeof *depth), path = 1;
    double longest = 1;
    for (NodeId id = 1; id < u->g->n; id++) {
        const Node *n = node(u->g, id);
        for (int i = 0; i < n->nin; i++)
            if (depth[n->in[i]] > depth[id]) depth[id] = depth[n->in[i]];
        bool rounds = n->op == OP_matmul || n->op == OP_cast || op_info[n->op].kind == KIND_CUSTOM;
        if (rounds && ++depth[id] > path) path = depth[id];
        if (n->op != OP_matmul) continue;
        const Type *a = node(u->g, n->in[0])->type;
        longest = fmax(longest, (double)dim_eval(a->dim[n->attr.i0 ? 0 : 1], extent));
    }
    free(depth);
    double roundoff = u->compute == DT_bf16 ? 0x1p-9 : 0x1p-24;
    return 4 * (roundoff * sqrt(path) + 0x1p-24 * sqrt((double)path * longest));
}

/* ---- comparing ------------------------------------------------------------------------------- */

typedef struct Verdict {
    int compared, failed;
    double worst;
} Verdict;

static void compare(Verdict *v, const char *name, const double *got, const double *want, int64_t n,
                    double bound, bool show) {
    double scale = 0, off = 0;
    for (int64_t i = 0; i < n; i++) {
        scale = fmax(scale, fabs(want[i]));
        double d = fabs(got[i] - want[i]);
        off = d <= off ? off : d; /* a NaN stays */
    }
    double relative = scale > 0 ? off / scale : off;
    bool ok = relative <= bound;
    v->compared++;
    v->failed += !ok;
    v->worst = fmax(v->worst, relative);
    if (show || !ok)
        printf("%-60s %10.3g  largest %9.3g  %s\n", name, relative, scale, ok ? "ok" : "FAILED");
}

/* A flat state, tensor by tensor. */
static bool compare_flat(Work *w, const Unit *u, Eval *e, const char *state, double bound,
                         Verdict *v) {
    int64_t n, m;
    if (!graph_find(u->g, OP_state, state)) return true; /* moments in 8 bits */
    double *got = read_buffer(w, state, &n);
    const double *want = eval_state(e, state, &m);
    if (!got) return false;
    for (int i = 0; i < u->ntrained; i++) {
        const Trained *t = &u->trained[i];
        if (t->offset >= n) continue; /* .. of which this one is */
        char name[400];
        snprintf(name, sizeof name, "%s %s", state, t->tensor);
        compare(v, name, got + t->offset, want + t->offset, t->rows * t->cols, bound,
                !w->options->quiet);
    }
    free(got);
    return true;
}

/* The scalars "update" reads stand on the device after run_step. */
static bool walk_both(Work *w, const Unit *u, const Pack *pack, Verdict *v) {
    const int64_t *extent = pack->micro[0].extent;
    Eval *e = eval_new(u->g, EVAL_ROUNDING, extent);
    bool ok =
        copy_leaves(w, u, extent, e, OP_weight) && copy_leaves(w, u, extent, e, OP_state) &&
        run_step(w->exec, w->plan, pack, work_seed(w), 1, spec_num(w->spec, "run.lr"), &w->err) &&
        copy_leaves(w, u, extent, e, OP_input);
    if (ok) {
        eval_run(e, PHASE_UPDATE, false);
        double bound = tolerance(u, extent);
        int64_t n, m;
        /* an objective that is cut off leaves "micro" a sum of its slopes */
        const char *loss = plan_program(w->plan, "objective") ? "surrogate" : "metrics";
        double *sums = read_buffer(w, loss, &n);
        const double *want = eval_state(e, loss, &m);
        if (sums) compare(v, "loss", sums, want, 1, bound, true);
        /* Not params: AdamW's first step divides g by its own size, so where |g| is near eps any
         * rounding of it moves the parameter by a whole lr.  v is made of squares: twice the bound.
         * */
        ok = sums && compare_flat(w, u, e, "grads", bound, v) &&
             compare_flat(w, u, e, "m", bound, v) && compare_flat(w, u, e, "v", 2 * bound, v);
        free(sums);
        printf("%d compared, %d failed, worst %.3g of the largest value, bound %.3g\n", v->compared,
               v->failed, v->worst, bound);
    }
    eval_free(e);
    return ok;
}

int verb_verify(const Options *o) {
    Work w;
    work_init(&w, o);
    static const bool want[NUNIT] = {[UNIT_TRAIN] = true};
    Pairs *pairs = NULL;
    int code = work_check(&w, NULL, o->data.n > 0);
    if (code == EXIT_OK) code = work_device(&w, NULL);
    if (code == EXIT_OK) code = work_compile(&w, NULL, want);
    if (code == EXIT_OK) code = work_open(&w);
    if (code == EXIT_OK && o->data.n > 0)
        code = work_pairs(&w, &pairs);
    else if (code == EXIT_OK)
        pairs = pairs_random(w.plan, 2, work_seed(&w));
    if (code == EXIT_OK) code = work_reference(&w, pairs, true);
    if (code == EXIT_OK) {
        Unit *u = unit_new(w.arena, w.spec, target_by_name(w.plan->device), UNIT_TRAIN);
        DumpOptions dump = {0};
        PackOptions options =
            pack_options_of(w.plan, spec_on(w.spec, "graph.prefix"), spec_one_sided(w.spec));
        PackItem item = {0, 0, 0};
        Verdict verdict = {0};
        bool ok = unit_build(u) && unit_run_passes(u, &dump) &&
                  pack_check(&options, pairs, w.plan->vocab, &w.err) &&
                  write_setting_inputs(w.exec, w.plan, &w.err);
        ok = ok && walk_both(&w, u, pack_step(w.arena, &options, pairs, &item, 1), &verdict);
        code = !ok ? work_fail(&w) : verdict.failed ? EXIT_NUMERIC : EXIT_OK;
    }
    pairs_free(pairs);
    work_close(&w);
    return code;
}
