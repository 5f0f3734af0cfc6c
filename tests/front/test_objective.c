/* test_objective.c: objectives of models/objectives on a real batch, against their formulas
 * written here (tests/num/test_losses.c has all of them, without a model).
 *
 * The built graph gives each token's log-prob for policy and reference; sums over answers and the
 * losses of the papers (numerics as in TRL) are computed below from those alone, in double, and
 * compared with the loss the graph computed.
 */
#include "case.h"

#include <stdlib.h>

typedef struct Sums { /* what the formulas need, per pair and side */
    int p;
    double lp[2][32], rf[2][32], len[2][32];
    double trust[2][32];   /* mean of logp - log sum p^2 over the tokens, policy */
    double near[2][2][32]; /* by model: sum over the first min(|w|,|l|) tokens */
    double chosen_tokens;
} Sums;

static double log_sigmoid(double x) {
    return fmin(x, 0) - log1p(exp(-fabs(x)));
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

/* The k-th linear_logprob node: 0 policy, 1 reference; -1 if there is none. */
static const double *token_values(const Case *c, int k, int part, int64_t *n) {
    const Graph *g = c->u->g;
    NodeId head = 0;
    for (NodeId id = 1; id < g->n; id++)
        if (node(g, id)->op == OP_linear_logprob && k-- == 0) head = id;
    for (NodeId id = 1; part && head && id < g->n; id++)
        if (node(g, id)->op == OP_part && node(g, id)->in[0] == head &&
            node(g, id)->attr.i0 == part)
            return eval_get(c->e, id, n);
    return head ? eval_get(c->e, head, n) : NULL;
}

static Sums sums_of(const Case *c) {
    Sums s = {.p = c->b->p};
    int64_t n;
    const double *lp = token_values(c, 0, 0, &n), *rf = token_values(c, 1, 0, &n);
    const double *p2 = token_values(c, 0, 5, &n);
    for (int r = 0; r < c->b->r; r++) {
        int q = (int)c->b->seq[r], pair = q / 2, side = q % 2;
        double shorter = fmin(c->b->len[2 * pair], c->b->len[2 * pair + 1]);
        bool near = c->b->place[r] < shorter;
        s.lp[side][pair] += lp[r];
        s.len[side][pair] = c->b->len[q];
        s.trust[side][pair] += (lp[r] - p2[r]) / c->b->len[q];
        if (near) s.near[0][side][pair] += lp[r];
        if (rf) s.rf[side][pair] += rf[r];
        if (rf && near) s.near[1][side][pair] += rf[r];
        if (side == 0) s.chosen_tokens++;
    }
    return s;
}

/* The mean over pairs of one of the formulas, by file name. */
static double of_pair(const char *name, const Sums *s, int i) {
    double w = s->lp[0][i], l = s->lp[1][i], rw = w - s->rf[0][i], rl = l - s->rf[1][i];
    double nw = s->len[0][i], nl = s->len[1][i], b = 0.1, e = 0.1, u = b * (rw - rl);
    if (!strcmp(name, "dpo")) return -log_sigmoid(u);
    if (!strcmp(name, "hinge")) return fmax(0, 1 - u);
    if (!strcmp(name, "ipo")) return pow(rw / nw - rl / nl - 1 / (2 * b), 2);
    if (!strcmp(name, "nca"))
        return -log_sigmoid(b * rw) - 0.5 * log_sigmoid(-b * rw) - 0.5 * log_sigmoid(-b * rl);
    if (!strcmp(name, "bco")) return -log_sigmoid(b * rw) - log_sigmoid(-b * rl);
    if (!strcmp(name, "sppo")) return pow(rw - 1 / (2 * b), 2) + pow(rl + 1 / (2 * b), 2);
    if (!strcmp(name, "apo_zero")) return 1 - sigmoid(b * rw) + sigmoid(b * rl);
    if (!strcmp(name, "apo_down")) return sigmoid(b * rw) + 1 - sigmoid(u);
    if (!strcmp(name, "sigmoid_norm")) return -log_sigmoid(b * (rw / nw - rl / nl));
    if (!strcmp(name, "exo")) {
        e = 0.001;
        return sigmoid(u) * (log_sigmoid(u) - log(1 - e)) +
               sigmoid(-u) * (log_sigmoid(-u) - log(e));
    }
    if (!strcmp(name, "cdpo")) return -(1 - e) * log_sigmoid(u) - e * log_sigmoid(-u);
    if (!strcmp(name, "robust"))
        return (-(1 - e) * log_sigmoid(u) + e * log_sigmoid(-u)) / (1 - 2 * e);
    if (!strcmp(name, "discopop")) { /* its paper's beta is 0.05 */
        u /= 2;
        double m = sigmoid(u / 0.05);
        return (1 - m) * -log_sigmoid(u) + m * exp(-u);
    }
    if (!strcmp(name, "dpo_forward_kl")) return -log_sigmoid(b * (exp(-rl) - exp(-rw)));
    if (!strcmp(name, "dpo_js")) return -log_sigmoid(b * (log_sigmoid(rw) - log_sigmoid(rl)));
    if (!strcmp(name, "dpop")) return -log_sigmoid(u - b * 5 * fmax(0, -rw));
    if (!strcmp(name, "simpo")) return -log_sigmoid(2 * (w / nw - l / nl) - 1);
    if (!strcmp(name, "wpo")) return -exp(s->trust[0][i] + s->trust[1][i]) * log_sigmoid(u);
    if (!strcmp(name, "ld_dpo")) {
        double r[2];
        for (int k = 0; k < 2; k++) {
            double lp = 0.5 * s->near[0][k][i] + 0.5 * s->lp[k][i];
            r[k] = lp - 0.5 * s->near[1][k][i] - 0.5 * s->rf[k][i];
        }
        return -log_sigmoid(b * (r[0] - r[1]));
    }
    if (!strcmp(name, "orpo")) {
        double pw = w / nw, pl = l / nl;
        return -pw - b * log_sigmoid(pw - log(1 - exp(pw)) - pl + log(1 - exp(pl)));
    }
    return NAN;
}

static double sft(const Sums *s) {
    double sum = 0;
    for (int i = 0; i < s->p; i++) sum -= s->lp[0][i];
    return sum / s->chosen_tokens;
}

static double expected(const char *name, const Sums *s) {
    double sum = 0;
    for (int i = 0; i < s->p; i++) sum += of_pair(name, s, i) / s->p;
    if (!strcmp(name, "sft")) return sft(s);
    if (!strcmp(name, "rpo")) {
        sum = 0;
        for (int i = 0; i < s->p; i++) sum += of_pair("dpo", s, i) / s->p;
        return sum + sft(s);
    }
    return sum;
}

static Case objective_case(const char *objective, const char *extra) {
    const char *build = getenv("BUILD"),
               *path = intern_printf("%s/tests/front.dpo", build ? build : "build");
    Text text = {0};
    text_add(&text, "%s\nbase = auto\nadapter pref = lora(rank = 4, alpha = 8) on all_linear\n",
             objective);
    text_add(&text, "policy = base + pref\nreference = base\ntrain pref\n%s", extra);
    Err err = {0};
    assert_true(dir_make(intern_printf("%s/tests", build ? build : "build"), &err));
    assert_true(file_write(path, text.data, text.len, &err));
    text_free(&text);
    return case_run("gqa", path, true);
}

/* The value of metric k as it would be logged; all pairs are in one micro-batch. */
static double logged(const Case *c, const char *name) {
    int64_t n;
    const double *sums = eval_state(c->e, "metrics", &n);
    double tokens[2] = {0, 0};
    for (int i = 0; i < c->b->n; i++) tokens[i % 2] += c->b->len[i];
    for (int i = 0; i < c->u->nmetrics; i++) {
        const Metric *m = &c->u->metrics[i];
        if (strcmp(m->name, name) != 0) continue;
        double by = !strcmp(m->denominator, "inv_pairs")             ? c->b->p
                    : !strcmp(m->denominator, "inv_tokens_chosen")   ? tokens[0]
                    : !strcmp(m->denominator, "inv_tokens_rejected") ? tokens[1]
                    : !strcmp(m->denominator, "inv_tokens")          ? tokens[0] + tokens[1]
                                                                     : 1;
        return sums[i] / by;
    }
    die("no metric %s\n", name);
    return 0;
}

static const char *const names[] = {
    "dpo",          "hinge",  "ipo",  "nca",    "bco",      "sppo",          "apo_zero", "apo_down",
    "sigmoid_norm", "exo",    "cdpo", "robust", "discopop", "dpo_js",        "dpop",     "simpo",
    "wpo",          "ld_dpo", "orpo", "sft",    "rpo",      "dpo_forward_kl"};

static void losses_are_their_formulas(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) {
        const char *use = intern_printf("use \"objectives/%s.dpo\"", names[i]);
        Case c = objective_case(use, "");
        Sums s = sums_of(&c);
        double got = logged(&c, "loss"), want = expected(names[i], &s);
        if (!(fabs(got - want) <= 1e-9 * fmax(1, fabs(want))))
            die("%s: loss %.12g, not %.12g\n", names[i], got, want);
        bool one_sided = !strcmp(names[i], "sft");
        assert_int_equal(spec_one_sided(c.spec), one_sided);
        case_free(&c);
    }
}

static void metrics_are_trls(void **state) {
    (void)state;
    Case c = objective_case("use \"objectives/dpo.dpo\"", "");
    Sums s = sums_of(&c);
    double rewards[2] = {0, 0}, logps[2] = {0, 0}, right = 0, logits[2] = {0, 0}, entropy = 0,
           hit = 0;
    for (int i = 0; i < s.p; i++) {
        double r[2];
        for (int k = 0; k < 2; k++) {
            r[k] = 0.1 * (s.lp[k][i] - s.rf[k][i]);
            rewards[k] += r[k] / s.p;
            logps[k] += s.lp[k][i] / s.p;
        }
        right += (r[0] > r[1]) / (double)s.p;
    }
    int64_t n;
    double tokens[2] = {0, 0};
    for (int i = 0; i < c.b->n; i++) tokens[i % 2] += c.b->len[i];
    const double *mean = token_values(&c, 0, 2, &n), *h = token_values(&c, 0, 3, &n),
                 *ok = token_values(&c, 0, 4, &n);
    for (int r = 0; r < c.b->r; r++) {
        int side = (int)c.b->seq[r] % 2;
        logits[side] += mean[r] / tokens[side];
        entropy += h[r] / (tokens[0] + tokens[1]);
        if (side == 0) hit += ok[r] / tokens[0];
    }
    const struct {
        const char *name;
        double want;
    } metrics[] = {{"rewards/chosen", rewards[0]}, {"rewards/rejected", rewards[1]},
                   {"rewards/accuracies", right},  {"rewards/margins", rewards[0] - rewards[1]},
                   {"logps/chosen", logps[0]},     {"logps/rejected", logps[1]},
                   {"logits/chosen", logits[0]},   {"logits/rejected", logits[1]},
                   {"entropy", entropy},           {"mean_token_accuracy", hit}};
    for (size_t i = 0; i < COUNT(metrics); i++) {
        double got = logged(&c, metrics[i].name);
        if (!(fabs(got - metrics[i].want) <= 1e-9 * fmax(1, fabs(got))))
            die("%s is %.12g, not %.12g\n", metrics[i].name, got, metrics[i].want);
    }
    assert_string_equal(c.u->metrics[0].name, "loss");
    assert_true(right > 0 && right < 1 && hit < 1 &&
                entropy > 0); /* a case that can tell them apart */
    case_free(&c);
}

static void user_metrics_and_columns(void **state) {
    (void)state;
    Case c = objective_case(
        "objective own(gamma = 2) {\n"
        "    gap = len(chosen) - len(rejected)\n"
        "    if gamma > 1 { scaled = gamma * gap } else { scaled = gap }\n"
        "    loss = -log_sigmoid(logp(policy, chosen) - logp(policy, rejected) + 0 * pair.score)\n"
        "    metric gap2 = scaled\n"
        "    metric worst = max(len(chosen), len(rejected))\n"
        "    metric early = batch_mean(if place < 1 then 1 else 0)\n"
        "    metric smooth = softplus(gap)\n"
        "}",
        "");
    double gap = 0, worst = 0, smooth = 0, tokens = 0;
    for (int i = 0; i < c.b->p; i++) {
        double w = c.b->len[2 * i], l = c.b->len[2 * i + 1];
        gap += 2 * (w - l) / c.b->p;
        worst += fmax(w, l) / c.b->p;
        smooth += -log_sigmoid(-(w - l)) / c.b->p;
        tokens += w + l;
    }
    assert_true(fabs(logged(&c, "gap2") - gap) < 1e-9);
    assert_true(fabs(logged(&c, "worst") - worst) < 1e-9);
    assert_true(fabs(logged(&c, "smooth") - smooth) < 1e-9);
    assert_true(fabs(logged(&c, "early") - c.b->n / tokens) < 1e-9);
    int n;
    const char *const *columns = spec_columns(c.spec, &n);
    assert_int_equal(n, 1);
    assert_string_equal(columns[0], "score");
    assert_false(spec_has_reference(c.spec));
    case_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_are_their_formulas),
        cmocka_unit_test(metrics_are_trls),
        cmocka_unit_test(user_metrics_and_columns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
