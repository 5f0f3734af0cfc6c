/* batch.c: runs one micro-batch, and reads the sums it left. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "job.h"
#include "ranks.h"

PackOptions pack_options_of(const Plan *plan, bool prefix, bool sft) {
    PackOptions options = {.bucket = plan->bucket, .prefix = prefix, .sft = sft};
    memcpy(options.bound, plan->bound, sizeof options.bound);
    return options;
}

bool run_micro(Exec *exec, const Plan *plan, const char *program, const Micro *micro, Err *err) {
    for (int i = 0; i < micro->ninput; i++) {
        const PackInput *in = &micro->input[i];
        if (plan_buf(plan, in->name) >= 0 && !exec_write(exec, in->name, in->data, in->bytes, err))
            return false;
    }
    return exec_run(exec, program, micro->extent, err);
}

bool write_scalar(Exec *exec, const Plan *plan, const char *name, double value, Err *err) {
    float x = (float)value;
    return plan_buf(plan, name) < 0 || exec_write(exec, name, &x, sizeof x, err);
}

bool write_setting_inputs(Exec *exec, const Plan *plan, Err *err) {
    for (int i = 0; i < plan->nsettings; i++) {
        const Setting *s = &plan->settings[i];
        if (!s->str && !write_scalar(exec, plan, s->path, s->num, err)) return false;
    }
    return true;
}

bool write_seed(Exec *exec, const Plan *plan, uint64_t seed, int64_t step, Err *err) {
    int32_t words[2] = {(int32_t)(uint32_t)(seed ^ seed >> 32), (int32_t)step};
    return plan_buf(plan, "seed") < 0 || exec_write(exec, "seed", words, sizeof words, err);
}

int metric_index(const Plan *plan, const char *name) {
    for (int i = 0; i < plan->nmetrics; i++)
        if (strcmp(plan->metrics[i].name, name) == 0) return i;
    return -1;
}

bool add_metrics(Exec *exec, const Plan *plan, const Pack *pack, int64_t pairs, MetricSums *s,
                 Err *err) {
    float now[MAX_METRICS];
    int n = plan->nmetrics;
    if (n > MAX_METRICS) return fail(err, EXIT_INPUT, "more than %d metrics", MAX_METRICS);
    if (n > 0 && !exec_read(exec, "metrics", now, sizeof(float) * (size_t)n, err)) return false;
    if (!plan_program(plan, "objective")) ranks_sum(now, n); /* which sees all pairs everywhere */
    for (int i = 0; i < n; i++) {
        bool mean = strcmp(plan->metrics[i].denominator, "one") == 0;
        s->sum[i] += (double)now[i] * (mean ? (double)pairs : 1);
    }
    s->pairs += (double)pairs;
    s->chosen += (double)pack->chosen_tokens;
    s->rejected += (double)pack->rejected_tokens;
    return true;
}

void metric_values(const Plan *plan, const MetricSums *s, double *values) {
    const struct {
        const char *name;
        double divisor;
    } known[] = {{"inv_tokens_chosen", s->chosen},
                 {"inv_tokens_rejected", fmax(1.0, s->rejected)},
                 {"inv_tokens", s->chosen + s->rejected}};
    for (int i = 0; i < plan->nmetrics; i++) {
        double divisor = s->pairs;
        for (size_t k = 0; k < COUNT(known); k++)
            if (strcmp(plan->metrics[i].denominator, known[k].name) == 0)
                divisor = known[k].divisor;
        values[i] = s->sum[i] / divisor;
    }
}

bool read_metrics(Exec *exec, const Plan *plan, const Pack *pack, int pairs, double *values,
                  Err *err) {
    MetricSums sums = {0};
    if (!add_metrics(exec, plan, pack, pairs, &sums, err)) return false;
    metric_values(plan, &sums, values);
    return true;
}

bool pack_one_step(const Plan *plan, const Pack *pack, int64_t pairs, Err *err) {
    if (!plan->coupled || plan_program(plan, "objective")) return true;
    if (ranks_size() > 1)
        return fail(err, EXIT_INPUT,
                    "a token's value in this objective depends on all pairs of the step, which "
                    "%d processes would share: train it with one",
                    ranks_size());
    if (pack->nmicro == 1) return true;
    return fail(err, EXIT_INPUT,
                "a token's value in this objective depends on all pairs of the step, which must "
                "then be one micro-batch, but %lld pairs need %d: raise run.tokens or lower "
                "run.batch",
                (long long)pairs, pack->nmicro);
}

/* The scalars that program "update" reads; adam.rest1 = 1 - beta1, adam.c1 = 1 / (1 - beta1^t), and
 * so for beta2. */
static bool write_update_inputs(Exec *exec, const Plan *plan, int64_t step, double lr, Err *err) {
    double b1 = plan_num(plan, "run.beta1"), b2 = plan_num(plan, "run.beta2");
    const struct {
        const char *name;
        double value;
    } scalars[] = {{"lr", lr},
                   {"beta1", b1},
                   {"beta2", b2},
                   {"adam.rest1", 1.0 - b1},
                   {"adam.rest2", 1.0 - b2},
                   {"eps", plan_num(plan, "run.eps")},
                   {"clip", plan_num(plan, "run.clip")},
                   {"weight_decay", plan_num(plan, "run.weight_decay")},
                   {"adam.c1", 1.0 / (1.0 - pow(b1, (double)step))},
                   {"adam.c2", 1.0 / (1.0 - pow(b2, (double)step))}};
    for (size_t i = 0; i < COUNT(scalars); i++)
        if (!write_scalar(exec, plan, scalars[i].name, scalars[i].value, err)) return false;
    return true;
}

bool share_sums(Exec *exec, const Plan *plan, const char *name, Err *err) {
    int buf = plan_buf(plan, name);
    if (ranks_size() == 1 || buf < 0) return true;
    size_t bytes = (size_t)plan->bufs[buf].bytes;
    float *sums = malloc(bytes + 1);
    bool ok = sums || fail(err, EXIT_MEMORY, "no host memory for %zu bytes of \"%s\"", bytes, name);
    ok = ok && exec_read(exec, name, sums, bytes, err);
    if (ok) ranks_sum(sums, (int64_t)(bytes / sizeof *sums));
    ok = ok && exec_write(exec, name, sums, bytes, err);
    free(sums);
    return ok;
}

bool run_step(Exec *exec, const Plan *plan, const Pack *pack, uint64_t seed, int64_t step,
              double lr, Err *err) {
    static const int64_t nothing[NEXTENT];
    if (!write_seed(exec, plan, seed, step, err) || !exec_run(exec, "step", nothing, err))
        return false;
    for (int m = 0; m < pack->nmicro && plan_program(plan, "objective"); m++)
        if (!run_micro(exec, plan, "score", &pack->micro[m], err)) return false;
    if (plan_program(plan, "objective") && (!share_sums(exec, plan, "scores", err) ||
                                            !run_micro(exec, plan, "objective", &pack->whole, err)))
        return false;
    for (int m = 0; m < pack->nmicro; m++)
        if (!run_micro(exec, plan, "micro", &pack->micro[m], err)) return false;
    return share_sums(exec, plan, "grads", err) && write_update_inputs(exec, plan, step, lr, err) &&
           exec_run(exec, "update", nothing, err);
}

Pairs *pairs_random(const Plan *plan, int64_t n, uint64_t seed) {
    Arena *arena = arena_new();
    Pairs *p = NEW(arena, Pairs);
    p->arena = arena;
    p->n = n;
    p->pair = NEW_ARRAY(arena, Pair, n);
    p->file = NEW(arena, PairsFile);
    p->file->path = "random";
    p->nfiles = 1;
    int64_t room = plan->bound[X_T] / 4 < 512 ? plan->bound[X_T] / 4 : 512;
    int64_t vocab = plan->vocab > 1 ? plan->vocab : 2;
    for (int64_t i = 0; i < n; i++) {
        int32_t part[3];
        for (int k = 0; k < 3; k++)
            part[k] = (int32_t)(room / 4 + (int64_t)(mix64(seed, (uint64_t)i, (uint64_t)k) %
                                                     (uint64_t)(room / 2)));
        int32_t total = part[0] + part[1] + part[2];
        int32_t *ids = NEW_ARRAY(arena, int32_t, total);
        for (int32_t t = 0; t < total; t++)
            ids[t] = (int32_t)(mix64(seed + 1, (uint64_t)i, (uint64_t)t) % (uint64_t)vocab);
        p->pair[i] = (Pair){.ids = ids,
                            .prompt = part[0],
                            .chosen = part[1],
                            .rejected = part[2],
                            .line = (int32_t)i + 1};
    }
    return p;
}
