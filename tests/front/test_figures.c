/* test_figures.c: the graph that build makes, in the evaluator, against PyTorch's figures.
 *
 * tests/num/cases hold small checkpoints, adapters, pairs and double-precision figures (made by
 * tests/peers/make_cases.py).  Here check and build alone are on trial: no pass, no kernel, no
 * runtime. Each case is packed both without and with a shared prompt.
 */
#include "case.h"

static double number(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    assert_true(json_is_number(v));
    return json_number_value(v);
}

/* The figures were made in double, weights are exact in f32: only the rotary frequencies are
 * rounded. */
static void compare(const char *name, Eval *e, const char *state, json_t *pairs) {
    int64_t n;
    const double *got = eval_state(e, state, &n);
    assert_int_equal(n, json_array_size(pairs));
    for (int64_t i = 0; i < n; i++) {
        double want = number(json_array_get(pairs, (size_t)i), state);
        if (!(fabs(got[i] - want) <= 2e-5 * fmax(1, fabs(want))))
            die("%s: %s of pair %d is %.9g, PyTorch says %.9g\n", name, state, (int)i, got[i],
                want);
    }
}

static void run_case(const char *name, bool share) {
    Case c = case_run(name, "models/dpo-lora.dpo", share);
    json_t *figures = json_load_file(arena_printf(c.arena, "%s/figures.json", c.dir), 0, NULL);
    json_t *want = json_object_get(figures, "eval"), *pairs = json_object_get(want, "per_pair");
    compare(name, c.e, "logp_chosen", pairs);
    compare(name, c.e, "logp_rejected", pairs);
    compare(name, c.e, "ref_logp_chosen", pairs);
    compare(name, c.e, "ref_logp_rejected", pairs);
    int64_t n;
    int compared = 0;
    const double *sums = eval_state(c.e, "metrics", &n);
    assert_int_equal(n, c.u->nmetrics);
    for (int i = 0; i < c.u->nmetrics; i++) {
        const Metric *m = &c.u->metrics[i];
        json_t *v = json_object_get(want, m->name);
        if (!v) continue;
        assert_string_equal(m->denominator, "inv_pairs");
        double got = sums[i] / c.b->p, right = json_number_value(v);
        if (!(fabs(got - right) <= 1e-4 * fmax(1, fabs(right))))
            die("%s: %s is %.9g, PyTorch says %.9g\n", name, m->name, got, right);
        compared++;
    }
    assert_int_equal(compared, 2); /* loss and rewards/margins */
    json_decref(figures);
    case_free(&c);
}

static const char *const names[] = {"gqa",         "mha_tied",     "tied_as_head", "head_dim",
                                    "llama3_rope", "bf16_sharded", "f16",          "biases",
                                    "qwen2",       "mistral",      "lengths",      "wide_vocab"};

static void log_probs_match_pytorch(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) run_case(names[i], false);
}

static void a_shared_prompt_changes_nothing(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(names); i++) run_case(names[i], true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(log_probs_match_pytorch),
        cmocka_unit_test(a_shared_prompt_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
