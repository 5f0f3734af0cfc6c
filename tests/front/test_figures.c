/* test_figures.c: the graph that build makes, in the evaluator, against PyTorch's figures.
 *
 * tests/num/cases hold small checkpoints, adapters, pairs and double-precision figures (made by
 * tests/peers/make_cases.py).  Here check and build alone are on trial: no pass, no kernel, no runtime. Each
 * case is packed both without and with a shared prompt.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compiler/spec.h"
#include "runtime/io/adapter.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#define CASES "tests/num/cases"
enum { MOST = 4096 };
#define die(...) (print_error(__VA_ARGS__), assert_true(false))

typedef struct Batch { /* the inputs of one micro-batch */
    double tokens[MOST], pos[MOST], segs[6 * 64], row[MOST], target[MOST], seq[MOST], place[MOST];
    double len[64], chosen[32], rejected[32];
    int t, r, g, n, p;
} Batch;

static int ids_of(json_t *pair, const char *key, int *out) {
    json_t *list = json_object_get(pair, key);
    for (size_t i = 0; i < json_array_size(list); i++)
        out[i] = (int)json_integer_value(json_array_get(list, i));
    return (int)json_array_size(list);
}

static void add_segment(Batch *b, int q, int nq, int prefix, int nprefix) {
    const double seg[6] = {q, nq, prefix, nprefix, q, nq};
    memcpy(&b->segs[6 * b->g++], seg, sizeof seg);
}

/* Rows of n tokens at positions from `at` on; returns the first row. */
static int add_rows(Batch *b, const int *ids, int n, int at) {
    int first = b->t;
    for (int i = 0; i < n; i++) {
        assert_true(b->t < MOST);
        b->tokens[b->t] = ids[i];
        b->pos[b->t++] = at + i;
    }
    return first;
}

/* The answer's tokens are predicted by `before` (the prompt's last row), then by its own rows. */
static void add_scores(Batch *b, const int *answer, int n, int before, int own) {
    for (int i = 0; i < n; i++) {
        b->row[b->r] = i ? own + i - 1 : before;
        b->target[b->r] = answer[i];
        b->seq[b->r] = b->n;
        b->place[b->r++] = i;
    }
    b->len[b->n++] = n;
}

static void add_pair(Batch *b, json_t *pair, bool share) {
    int prompt[MOST], answer[MOST], np = ids_of(pair, "prompt_ids", prompt);
    int shared = share ? add_rows(b, prompt, np, 0) : 0;
    if (share) add_segment(b, shared, np, 0, 0);
    b->chosen[b->p] = b->n;
    b->rejected[b->p++] = b->n + 1;
    for (int side = 0; side < 2; side++) {
        int n = ids_of(pair, side ? "rejected_ids" : "chosen_ids", answer);
        int first = share ? shared : add_rows(b, prompt, np, 0);
        int own = add_rows(b, answer, n - 1, np); /* the last token predicts nothing */
        if (share && n > 1)
            add_segment(b, own, n - 1, shared, np);
        else if (!share)
            add_segment(b, first, np + n - 1, 0, 0);
        add_scores(b, answer, n, first + np - 1, own);
    }
}

static double *widen(Arena *arena, const SafeTensor *t) {
    Err err = {0};
    float *data = NEW_ARRAY(arena, float, t->count);
    double *out = NEW_ARRAY(arena, double, t->count);
    if (!safe_read_f32(t, 0, t->count, data, &err)) die("%s", err.text);
    for (int64_t i = 0; i < t->count; i++) out[i] = data[i];
    return out;
}

static void set_weights(Arena *arena, Eval *e, const Unit *u, const char *dir) {
    Err err = {0};
    Checkpoint *c = checkpoint_open(dir, "model", &err);
    if (!c) die("%s", err.text);
    for (int i = 0; i < u->nweights; i++) {
        const WeightInfo *w = &u->weights[i];
        const SafeTensor *t = checkpoint_find(c, w->tensor, w->alias);
        assert_non_null(t);
        eval_set(e, arena_printf(arena, "%s/%s", w->source, w->tensor), widen(arena, t), t->count);
    }
    checkpoint_close(c);
}

static void set_params(Arena *arena, Eval *e, const Unit *u, const char *dir) {
    Err err = {0};
    Checkpoint *c = checkpoint_open(dir, "adapter_model", &err);
    if (!c) die("%s", err.text);
    double *params = NEW_ARRAY(arena, double, u->nparams);
    for (int i = 0; i < u->ntrained; i++) {
        const Trained *p = &u->trained[i];
        const SafeTensor *t =
            checkpoint_find(c, arena_printf(arena, ADAPTER_PREFIX "%s", p->tensor), NULL);
        assert_non_null(t);
        assert_int_equal(t->count, p->rows * p->cols);
        memcpy(params + p->offset, widen(arena, t), sizeof(double) * (size_t)t->count);
    }
    eval_set(e, "params", params, u->nparams);
    checkpoint_close(c);
}

static void set_batch(Eval *e, const Batch *b) {
    double inv = 1.0 / b->p, beta = 0.1;
    eval_set(e, "tokens", b->tokens, b->t);
    eval_set(e, "pos", b->pos, b->t);
    eval_set(e, "segs", b->segs, 6 * b->g);
    eval_set(e, "row", b->row, b->r);
    eval_set(e, "target", b->target, b->r);
    eval_set(e, "seq", b->seq, b->r);
    eval_set(e, "place", b->place, b->r);
    eval_set(e, "len", b->len, b->n);
    eval_set(e, "chosen", b->chosen, b->p);
    eval_set(e, "rejected", b->rejected, b->p);
    eval_set(e, "inv_pairs", &inv, 1);
    eval_set(e, "dpo.beta", &beta, 1);
}

static Spec *check_case(Arena *arena, const char *name) {
    Diags *diags = diags_new(arena);
    char model[256], adapter[256];
    snprintf(model, sizeof model, CASES "/%s", name);
    snprintf(adapter, sizeof adapter, CASES "/%s/adapter", name);
    CheckOptions o = {.file = "models/dpo-lora.dpo",
                      .model = intern(model),
                      .set = (const char *[]){"pref.rank=4", "pref.alpha=8"},
                      .nset = 2,
                      .adapter = (const char *[]){intern(adapter)},
                      .nadapter = 1,
                      .needs_model = true};
    Spec *spec = check_file(arena, diags, &o);
    if (!spec) diags_print(diags, stdout, false);
    assert_non_null(spec);
    return spec;
}

static double number(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    assert_true(json_is_number(v));
    return json_number_value(v);
}

/* The figures were made in double, weights are exact in f32: only the rotary frequencies are rounded. */
static void compare(const char *name, Eval *e, const char *state, json_t *pairs) {
    int64_t n;
    const double *got = eval_state(e, state, &n);
    assert_int_equal(n, json_array_size(pairs));
    for (int64_t i = 0; i < n; i++) {
        double want = number(json_array_get(pairs, (size_t)i), state);
        if (!(fabs(got[i] - want) <= 2e-5 * fmax(1, fabs(want))))
            die("%s: %s of pair %d is %.9g, PyTorch says %.9g", name, state, (int)i, got[i], want);
    }
}

static void run_case(const char *name, bool share) {
    Arena *arena = arena_new();
    Spec *spec = check_case(arena, name);
    Unit *u = unit_new(arena, spec, target_by_name("cpu"), UNIT_EVAL);
    assert_true(unit_build(u));
    assert_null(graph_verify(u->g, arena));
    char path[256];
    snprintf(path, sizeof path, CASES "/%s/pairs.jsonl", name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    Batch *b = NEW(arena, Batch);
    json_t *pair;
    while ((pair = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL))) {
        add_pair(b, pair, share);
        json_decref(pair);
    }
    fclose(f);
    int64_t extent[NEXTENT] = {
        [X_T] = b->t, [X_R] = b->r, [X_G] = b->g, [X_K] = 1, [X_N] = b->n, [X_P] = b->p};
    Eval *e = eval_new(u->g, EVAL_DOUBLE, extent);
    set_weights(arena, e, u, arena_printf(arena, CASES "/%s", name));
    set_params(arena, e, u, arena_printf(arena, CASES "/%s/adapter", name));
    set_batch(e, b);
    eval_run(e, PHASE_MICRO, false);
    json_t *figures = json_load_file(arena_printf(arena, CASES "/%s/figures.json", name), 0, NULL);
    json_t *want = json_object_get(figures, "eval"), *pairs = json_object_get(want, "per_pair");
    compare(name, e, "logp_chosen", pairs);
    compare(name, e, "logp_rejected", pairs);
    compare(name, e, "ref_logp_chosen", pairs);
    compare(name, e, "ref_logp_rejected", pairs);
    int64_t n;
    const double *sums = eval_state(e, "metrics", &n);
    assert_int_equal(n, u->nmetrics);
    for (int i = 0; i < u->nmetrics; i++) {
        json_t *v = json_object_get(want, u->metrics[i].name);
        if (!v) continue;
        assert_string_equal(u->metrics[i].denominator, "inv_pairs");
        double got = sums[i] / b->p, right = json_number_value(v);
        if (!(fabs(got - right) <= 1e-4 * fmax(1, fabs(right))))
            die("%s: %s is %.9g, PyTorch says %.9g", name, u->metrics[i].name, got, right);
    }
    json_decref(figures);
    eval_free(e);
    arena_free(arena);
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
