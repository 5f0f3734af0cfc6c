/* test_losses.c: every objective of models/objectives on random log-probabilities, no model below.
 *
 * Its loss is compared with the formula of the paper or of TRL, written here in C; its gradient by
 * each token's log-probability with central differences of that formula; its rewards with those TRL
 * logs.  One pair, many, long and short answers, other parameters; log-ratios of +-1000 must not
 * become NaN where the formula is a number.
 *
 * Tolerance: both sides are double.  Losses differ by rounding, 1e-10 of the largest term.  Central
 * differences with step h err by h^2 f''' / 6 and by 2^-52 f / h: with h = 1e-4 both are below 1e-7
 * of the scale of f' and f.
 */
#include "losses.h"

/* ---- the graph of an objective alone --------------------------------------------------------- */

typedef struct Built {
    Arena *arena;
    Diags *diags;
    Spec *spec;
    Unit *u;
    NodeId slope; /* d loss / d policy's token log-probs, [R] */
    NodeId *sums;
} Built;

static Built build(const char *name) {
    Built x = {.arena = arena_new()};
    Err err = {0};
    const char *dir = getenv("BUILD") ? getenv("BUILD") : "build";
    const char *path = arena_printf(x.arena, "%s/tests/losses.dpo", dir);
    char *text = arena_printf(x.arena,
                              "use \"objectives/%s.dpo\"\nbase = auto\n"
                              "adapter pref = lora(rank = 4) on all_linear\n"
                              "policy = base + pref\nreference = base\ntrain pref\n",
                              name);
    assert_true(dir_make(arena_printf(x.arena, "%s/tests", dir), &err));
    assert_true(file_write(path, text, strlen(text), &err));
    x.diags = diags_new(x.arena);
    x.spec = check_file(x.arena, x.diags, &(CheckOptions){.file = path});
    if (!x.spec) diags_print(x.diags, 0, stdout, false);
    assert_non_null(x.spec);
    x.u = unit_new(x.arena, x.spec, target_by_name("cpu"), UNIT_EVAL);
    Builder b;
    builder_init(&b, x.spec, x.u);
    Scores s[2] = {{0}, {0}};
    static const char *const names[2] = {"policy", "reference"};
    for (int m = 0; m < 2; m++) {
        s[m].logp = build_input(&b, names[m], DT_f32, 1, dim_extent(X_R), 0);
        s[m].mean_logit = s[m].correct = s[m].logp;
        s[m].entropy = build_input(&b, "entropy", DT_f32, 1, dim_extent(X_R), 0);
        s[m].logsum_p2 = build_input(&b, "p2", DT_f32, 1, dim_extent(X_R), 0);
        for (int side = 0; side < 2; side++) s[m].side[side] = sum_sequences(&b, s[m].logp, side);
    }
    assert_true(objective_build(&b, &s[0], &s[1]));
    grad_of(x.u->g, x.u->loss, x.u->seed, &s[0].logp, 1, &x.slope);
    assert_true(x.slope != 0);
    x.sums = b.sums;
    return x;
}

static void set(Eval *e, const char *name, const double *x, int64_t n) {
    eval_set(e, name, x, n);
}

/* Loss, metrics and slope of one batch; `mode` EVAL_ROUNDING: every node is an fp32. */
static Eval *run(const Built *x, const Data *d, EvalMode mode) {
    int64_t extent[NEXTENT] = {[X_R] = d->r, [X_N] = 2 * d->p, [X_P] = d->p};
    Eval *e = eval_new(x->u->g, mode, extent);
    Sums s = sums_of(d);
    double chosen[PAIRS], rejected[PAIRS], n = s.tokens[0] + s.tokens[1];
    for (int i = 0; i < d->p; i++) {
        chosen[i] = 2 * i;
        rejected[i] = 2 * i + 1;
    }
    set(e, "policy", d->logp[0], d->r);
    set(e, "reference", d->logp[1], d->r);
    set(e, "p2", d->p2, d->r);
    set(e, "seq", d->seq, d->r);
    set(e, "place", d->place, d->r);
    set(e, "len", d->len, 2 * d->p);
    set(e, "chosen", chosen, d->p);
    set(e, "rejected", rejected, d->p);
    set(e, "one", &(double){1}, 1);
    set(e, "inv_pairs", &(double){1.0 / d->p}, 1);
    set(e, "inv_tokens", &(double){1 / n}, 1);
    set(e, "inv_tokens_chosen", &(double){1 / s.tokens[0]}, 1);
    set(e, "inv_tokens_rejected", &(double){1 / s.tokens[1]}, 1);
    for (int i = 0; i < x->spec->nparams; i++) {
        double value = spec_num(x->spec, x->spec->params[i].path) * d->scale;
        set(e, x->spec->params[i].path, &value, 1);
    }
    return e;
}

static double value(const Built *x, Eval *e, NodeId id) {
    int64_t n;
    return eval_get(e, id, &n)[0];
}

/* ---- batches --------------------------------------------------------------------------------- */

static uint64_t state;
static double draw(void) { /* splitmix64, in [0,1) */
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* p pairs of answers of up to `longest` tokens, and a row that is nobody's. */
static void random_batch(Data *d, const Spec *spec, int p, int longest, double scale) {
    *d = (Data){.p = p, .spec = spec, .scale = scale};
    for (int q = 0; q < 2 * p; q++) {
        d->len[q] = 1 + (int)(draw() * longest);
        for (int t = 0; t < d->len[q]; t++, d->r++) {
            d->logp[0][d->r] = -4 * draw();
            d->logp[1][d->r] = d->logp[0][d->r] + 2 * (draw() - 0.5);
            d->p2[d->r] = -3 * draw();
            d->seq[d->r] = q;
            d->place[d->r] = t;
        }
    }
    d->seq[d->r++] = -1;
}

/* Every mix of 0 and -1000 as the log-probs of policy and reference, in answers of one token. */
static void extreme_batch(Data *d, const Spec *spec) {
    *d = (Data){.p = 16, .r = 32, .spec = spec, .scale = 1};
    for (int q = 0; q < 32; q++) {
        int mix = q / 2 >> 2 * (q % 2);
        for (int m = 0; m < 2; m++) d->logp[m][q] = mix >> m & 1 ? -1000 : 0;
        d->p2[q] = -1;
        d->seq[q] = q;
        d->len[q] = 1;
    }
}

/* ---- comparing ------------------------------------------------------------------------------- */

static void check_slope(const struct Loss *loss, Data *d, const double *slope) {
    const double h = 1e-4;
    Sums held = sums_of(d);
    double scale = fmax(1, fabs(formula(loss, d, &held)));
    for (int r = 0; r < d->r; r++) {
        double at = d->logp[0][r];
        d->logp[0][r] = at + h;
        double up = formula(loss, d, &held);
        d->logp[0][r] = at - h;
        double down = formula(loss, d, &held);
        d->logp[0][r] = at;
        double want = (up - down) / (2 * h);
        if (fabs(slope[r] - want) <= 1e-6 * fmax(scale, fabs(want))) continue;
        die("%s, %d pairs: slope of token %d is %.12g, not %.12g", loss->name, d->p, r, slope[r],
            want);
    }
}

static double metric(const Built *x, Eval *e, const char *name) {
    for (int i = 0; i < x->u->nmetrics; i++)
        if (!strcmp(x->u->metrics[i].name, name)) return value(x, e, x->sums[i]);
    die("no metric %s", name);
    return NAN;
}

static void check_rewards(const struct Loss *loss, const Built *x, const Data *d, Eval *e) {
    if (loss->reward == NONE) return;
    Sums s = sums_of(d);
    s.held = &s;
    double sum[2] = {0, 0}, right = 0;
    for (int i = 0; i < d->p; i++) {
        double w = reward(loss, &s, 0, i), l = reward(loss, &s, 1, i);
        sum[0] += w;
        sum[1] += l;
        right += w > l;
    }
    const struct {
        const char *name;
        double want;
    } all[] = {{"rewards/chosen", sum[0]},
               {"rewards/rejected", sum[1]},
               {"rewards/margins", sum[0] - sum[1]},
               {"rewards/accuracies", right}};
    for (size_t i = 0; i < COUNT(all); i++) {
        double got = metric(x, e, all[i].name);
        if (fabs(got - all[i].want) > 1e-9 * fmax(1, fabs(all[i].want)))
            die("%s: %s is %.12g, not %.12g", loss->name, all[i].name, got, all[i].want);
    }
}

static void check_batch(const struct Loss *loss, const Built *x, Data *d) {
    Eval *e = run(x, d, EVAL_DOUBLE);
    eval_run(e, PHASE_MICRO, false);
    double got = value(x, e, x->u->loss) * value(x, e, x->u->seed), want = formula(loss, d, NULL);
    if (!(fabs(got - want) <= 1e-10 * fmax(1, fabs(want))))
        die("%s, %d pairs: loss %.15g, not %.15g", loss->name, d->p, got, want);
    int64_t n;
    check_slope(loss, d, eval_get(e, x->slope, &n));
    check_rewards(loss, x, d, e);
    eval_free(e);
}

/* In fp32, as kernels compute it; 2^-24 of log-probs of 1000, doubled by squares, is below 1e-4. */
static void check_extremes(const struct Loss *loss, const Built *x) {
    Data d;
    extreme_batch(&d, x->spec);
    Eval *e = run(x, &d, EVAL_ROUNDING);
    eval_run(e, PHASE_MICRO, false);
    double got = value(x, e, x->u->loss) * value(x, e, x->u->seed), want = formula(loss, &d, NULL);
    assert_true(isfinite(want));
    if (!(fabs(got - want) <= 1e-4 * fmax(1, fabs(want))))
        die("%s at +-1000: loss %.9g, not %.9g", loss->name, got, want);
    int64_t n;
    const double *slope = eval_get(e, x->slope, &n);
    for (int r = 0; r < d.r; r++)
        if (!isfinite(slope[r])) die("%s at +-1000: slope %g", loss->name, slope[r]);
    eval_free(e);
}

static void losses_slopes_and_rewards_are_their_formulas(void **unused) {
    static const struct {
        int pairs, longest;
        double scale;
    } shapes[] = {{1, 1, 1}, {1, 30, 1}, {2, 3, 1.3}, {7, 5, 1}, {24, 4, 0.9}};
    state = 1;
    for (size_t k = 0; k < COUNT(losses); k++) {
        const struct Loss *loss = &losses[k];
        Built x = build(loss->name);
        Data d;
        for (size_t i = 0; i < COUNT(shapes); i++) {
            random_batch(&d, x.spec, shapes[i].pairs, shapes[i].longest, shapes[i].scale);
            check_batch(loss, &x, &d);
        }
        check_extremes(loss, &x);
        assert_int_equal(spec_coupled(x.spec), loss->coupled);
        assert_int_equal(spec_cut(x.spec), loss->coupled);
        assert_int_equal(spec_one_sided(x.spec), loss->reward == NONE);
        arena_free(x.arena);
    }
}

/* A file of models/objectives that stands not in the table was never compared. */
static void every_file_is_compared(void **unused) {
    static const char folder[] = "models/objectives/";
    size_t files = 0;
    for (int i = 0; i < embedded_count(); i++) {
        const char *name = embedded_name(i);
        if (strncmp(name, folder, strlen(folder))) continue;
        const char *base = name + strlen(folder);
        size_t k = 0, n = strlen(base) - strlen(".dpo");
        while (k < COUNT(losses) &&
               (strlen(losses[k].name) != n || strncmp(losses[k].name, base, n)))
            k++;
        if (k == COUNT(losses)) die("%s is not in the table", name);
        files++;
    }
    assert_int_equal(files, COUNT(losses));
}

static void ties_are_not_right(void **unused) {
    Built x = build("dpo");
    Data d;
    random_batch(&d, x.spec, 5, 4, 1);
    memcpy(d.logp[1], d.logp[0], sizeof d.logp[0]);
    Eval *e = run(&x, &d, EVAL_DOUBLE);
    eval_run(e, PHASE_MICRO, false);
    assert_true(metric(&x, e, "rewards/accuracies") == 0);
    assert_true(fabs(value(&x, e, x.u->loss) / 5 - log(2)) < 1e-12);
    eval_free(e);
    arena_free(x.arena);
}

/* TRL 0.9 wrote these two divergences in other words. */
static void old_forms_are_the_same(void **unused) {
    for (double r = -5; r < 5; r += 0.37) {
        double l = 1.3 - r / 2, b = 0.3, a = 0.4; /* alpha of 0.9; now 1 - a */
        double js = ls(r) - ls(l), js_old = r - l - (-ls(-r) + ls(-l));
        double al = (exp(-a * r) - exp(-a * l)) / -a, al_old = (exp(-a * l) - exp(-a * r)) / a;
        assert_true(fabs(ls(b * js) - ls(b * js_old)) < 1e-12);
        assert_true(fabs(ls(b * al) - ls(b * al_old)) < 1e-12);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_slopes_and_rewards_are_their_formulas),
        cmocka_unit_test(every_file_is_compared),
        cmocka_unit_test(ties_are_not_right),
        cmocka_unit_test(old_forms_are_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
