/* evaluate.c: pairs through program "eval" in file order.
 *
 * An objective that crosses pairs sees them in batches of run.batch, as in training (the last may
 * be smaller): its loss is the batches' mean, weighted by their pairs. */
#include <math.h>
#include <string.h>

#include "job.h"
#include "ranks.h"

/* The per-pair outputs of one micro-batch, put where their pairs belong. */
static bool read_scores(Exec *exec, const Plan *plan, const Micro *micro, PairScore *score,
                        Arena *arena, Err *err) {
    static const char *const names[] = {"logp_chosen", "logp_rejected", "ref_logp_chosen",
                                        "ref_logp_rejected"};
    int64_t pairs = micro->extent[X_P];
    float *column = NEW_ARRAY(arena, float, pairs);
    for (int k = 0; k < 4; k++) {
        bool there = plan_buf(plan, names[k]) >= 0;
        if (there && !exec_read(exec, names[k], column, sizeof(float) * (size_t)pairs, err))
            return false;
        for (int64_t p = 0; p < pairs; p++) {
            PairScore *s = &score[micro->item[p]];
            float *at[] = {&s->logp_chosen, &s->logp_rejected, &s->ref_logp_chosen,
                           &s->ref_logp_rejected};
            *at[k] = there ? column[p] : NAN;
        }
    }
    return true;
}

/* Numbers, or the reason to stop. */
static bool all_finite(const Pairs *pairs, const int32_t *which, const Evaluation *e, Arena *arena,
                       Err *err) {
    for (int64_t i = 0; i < e->pairs; i++) {
        const Pair *p = &pairs->pair[which ? which[i] : i];
        const PairScore *s = &e->score[i];
        if (isfinite(s->logp_chosen) && (!p->rejected || isfinite(s->logp_rejected))) continue;
        return fail(err, EXIT_NUMERIC, "%s: the log-probability of an answer is not a number",
                    pair_where(arena, pairs, p));
    }
    return true;
}

static bool zero(Exec *exec, const Plan *plan, const char *buf, Arena *arena, Err *err) {
    int i = plan_buf(plan, buf);
    if (i < 0) return true;
    size_t bytes = (size_t)plan->bufs[i].bytes;
    return exec_write(exec, buf, arena_alloc(arena, bytes), bytes, err);
}

typedef struct Part { /* pairs at .. at + n of all, which go through the programs together */
    int64_t at, n, all;
    ProgressNote *note; /* or NULL */
} Part;

/* `done` of all pairs are scored; with several processes those of this one stand for all. */
static void show_done(ProgressNote *note, double done, int64_t all) {
    if (!note || done <= 0) return;
    double spent = now_seconds() - note->started;
    progress_say(note, false, "evaluating: %.0f of %lld pairs, %.0f s left", done, (long long)all,
                 spent / done * ((double)all - done));
}

/* Pairs through program "eval", then all of them through the objective where it is one of its own;
 * their sums are left in "metrics". */
static bool score_batch(Exec *exec, const Plan *plan, const Pack *pack, const Part *part,
                        PairScore *score, Arena *arena, Err *err) {
    if (!zero(exec, plan, "metrics", arena, err) || !zero(exec, plan, "scores", arena, err))
        return false;
    for (int m = 0; m < pack->nmicro; m++) {
        if (!run_micro(exec, plan, "eval", &pack->micro[m], err) ||
            !read_scores(exec, plan, &pack->micro[m], score, arena, err))
            return false;
        double share = (m + 1.0) / pack->nmicro;
        show_done(part->note, (double)part->at + share * (double)part->n, part->all);
    }
    return !plan_program(plan, "objective") ||
           (share_sums(exec, plan, "scores", err) &&
            run_micro(exec, plan, "objective", &pack->whole, err));
}

bool evaluate(Exec *exec, const Plan *plan, const Pairs *pairs, const int32_t *which, int64_t n,
              Arena *arena, ProgressNote *note, Evaluation *out, Err *err) {
    int64_t batch = plan->coupled ? (int64_t)plan_num(plan, "run.batch") : n;
    bool sft = n > 0 && pairs->pair[which ? which[0] : 0].rejected == 0;
    PackOptions options = pack_options_of(plan, plan_num(plan, "graph.prefix") != 0, sft);
    options.rank = ranks_rank();
    options.ranks = ranks_size();
    *out = (Evaluation){.pairs = n};
    out->values = NEW_ARRAY(arena, double, plan->nmetrics);
    out->score = NEW_ARRAY(arena, PairScore, n);
    MetricSums sums = {0};
    bool ok = write_setting_inputs(exec, plan, err) && write_seed(exec, plan, 0, 0, err);
    for (int64_t at = 0; at < n && ok; at += batch) {
        Arena *scratch = arena_new();
        int count = (int)(n - at < batch ? n - at : batch);
        PackItem *items = NEW_ARRAY(scratch, PackItem, count);
        for (int64_t i = 0; i < count; i++)
            items[i] = (PackItem){which ? which[at + i] : at + i, at + i, 0};
        Pack *pack = pack_step(scratch, &options, pairs, items, count);
        out->tokens += pack->tokens;
        Part part = {at, count, n, note};
        ok = pack_one_step(plan, pack, count, err) &&
             score_batch(exec, plan, pack, &part, out->score + at, scratch, err) &&
             add_metrics(exec, plan, pack, count, &sums, err);
        arena_free(scratch);
    }
    if (note) progress_erase(note);
    if (ok) metric_values(plan, &sums, out->values);
    if (ok) ranks_sum((float *)out->score, n * (int64_t)(sizeof *out->score / sizeof(float)));
    return ok && all_finite(pairs, which, out, arena, err);
}

static void put_number(FILE *out, const char *key, double x) {
    char text[40] = "null";
    if (isfinite(x)) number_text(text, x);
    fprintf(out, "\"%s\":%s", key, text);
}

void evaluation_json(const Plan *plan, const Pairs *pairs, const Evaluation *e, FILE *out) {
    fprintf(out, "{\"pairs\":%lld", (long long)e->pairs);
    for (int i = 0; i < plan->nmetrics; i++) {
        fputc(',', out);
        put_number(out, plan->metrics[i].name, e->values[i]);
    }
    fputs(",\"per_pair\":[", out);
    for (int64_t i = 0; i < e->pairs; i++) {
        const PairScore *s = &e->score[i];
        fputs(i ? ",{" : "{", out);
        put_number(out, "logp_chosen", s->logp_chosen);
        fputc(',', out);
        put_number(out, "logp_rejected", s->logp_rejected);
        fputc(',', out);
        put_number(out, "ref_logp_chosen", s->ref_logp_chosen);
        fputc(',', out);
        put_number(out, "ref_logp_rejected", s->ref_logp_rejected);
        fprintf(out, ",\"chosen_tokens\":%d,\"rejected_tokens\":%d}",
                pair_scored(&pairs->pair[i], 0), pair_scored(&pairs->pair[i], 1));
    }
    fputs("]}\n", out);
}

void evaluation_text(const Plan *plan, const Evaluation *e, FILE *out) {
    fprintf(out, "%-22s %lld\n", "pairs", (long long)e->pairs);
    for (int i = 0; i < plan->nmetrics; i++)
        fprintf(out, "%-22s %.6g\n", plan->metrics[i].name, e->values[i]);
}
