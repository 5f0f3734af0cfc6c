/* compile_spec on a real file: units share what they can, the budget is kept, the hash says what is
 * computed, and the report adds up. */
#include "compiler/report.h"
#include "compiler/spec.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL "tests/num/cases/gqa"

static Plan *compile(Arena *arena, int64_t budget, const char *const *set, int nset,
                     const char *target) {
    Diags *diags = diags_new(arena);
    CheckOptions check = {.file = "models/dpo-lora.dpo",
                          .model = MODEL,
                          .set = set,
                          .nset = nset,
                          .is_cuda = target[0] == 's',
                          .needs_model = true};
    Spec *spec = check_file(arena, diags, &check);
    if (!spec) diags_print(diags, 0, stderr, false);
    assert_non_null(spec);
    CompileOptions options = {.target = target_by_name(target), .budget = budget};
    for (int k = 0; k < NUNIT; k++) options.want[k] = true;
    Plan *plan = compile_spec(spec, &options);
    if (!plan) diags_print(diags, 0, stderr, false);
    assert_non_null(plan);
    const char *wrong = plan_check(plan, arena);
    if (wrong) fail_msg("%s", wrong);
    return plan;
}

/* Widths of the case's config.json, by hand. */
enum { D = 32, F = 56, LAYERS = 2, KV = 8, VOCAB = 97, RANK = 16 };
static const int base = LAYERS * (2 * D * D + 2 * KV * D + 3 * F * D + 2 * D) + 2 * VOCAB * D + D;
static const int lora = LAYERS * RANK * (2 * (D + D) + 2 * (D + KV) + 3 * (D + F));

/* Four graphs, one set of weights: every tensor is bound once. */
static void units_share_weights(void **unused) {
    Arena *arena = arena_new();
    Plan *plan = compile(arena, 0, NULL, 0, "cpu");
    assert_int_equal((int)plan->parameters_trainable, lora);
    assert_int_equal((int)plan->parameters_total, base + lora);
    for (int i = 0; i < plan->nbinds; i++)
        for (int k = 0; k < i; k++)
            assert_true(strcmp(plan->binds[i].tensor, plan->binds[k].tensor) ||
                        strcmp(plan->binds[i].source, plan->binds[k].source));
    static const char *const programs[] = {"init", "step", "micro",   "update",
                                           "eval", "ref",  "prefill", "decode"};
    for (size_t i = 0; i < COUNT(programs); i++) assert_non_null(plan_program(plan, programs[i]));
    assert_int_equal(plan->vocab, VOCAB);
    plan_free(plan);
    arena_free(arena);
}

/* Samples of a run are no part of what it computes: same hash, same rows, so it can be resumed. */
static void samples_change_nothing(void **unused) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    const char *set[] = {"run.tokens=128", "run.batch=1", "run.sample_every=5"};
    CheckOptions check = {.file = "models/dpo-lora.dpo",
                          .model = MODEL,
                          .set = set,
                          .nset = COUNT(set) - 1,
                          .needs_model = true};
    Spec *spec = check_file(arena, diags, &check);
    assert_non_null(spec);
    CompileOptions options = {.target = target_by_name("cpu"), .want = {[UNIT_TRAIN] = true}};
    Plan *alone = compile_spec(spec, &options);
    check.nset++;
    spec = check_file(arena, diags, &check);
    assert_non_null(spec);
    options.want[UNIT_PREFILL] = options.want[UNIT_DECODE] = true;
    options.generate = (GenerateBounds){.rows = 512, .sequences = 8, .cache = 800};
    Plan *beside = compile_spec(spec, &options);
    assert_non_null(alone);
    assert_non_null(beside);
    assert_string_equal(alone->hash, beside->hash);
    assert_int_equal(beside->bound[X_T], alone->bound[X_T]);
    assert_int_equal(beside->bound[X_N], 8);
    assert_int_equal(beside->bound[X_H], 800);
    const char *wrong = plan_check(beside, arena);
    if (wrong) fail_msg("%s", wrong);
    plan_free(alone);
    plan_free(beside);
    arena_free(arena);
}

static void budget_is_kept(void **unused) {
    Arena *arena = arena_new();
    Plan *whole = compile(arena, 0, NULL, 0, "cpu");
    Plan *hopeless = compile(arena, 1000, NULL, 0, "cpu");
    assert_false(hopeless->fits);
    assert_true(hopeless->smallest_bytes == hopeless->arena_bytes);
    assert_true(hopeless->smallest_bytes < whole->arena_bytes);
    for (int part = 0; part < 4; part++) {
        int64_t least = hopeless->smallest_bytes;
        int64_t budget = least + (whole->arena_bytes - least) * part / 4;
        Plan *plan = compile(arena, budget, NULL, 0, "cpu");
        assert_true(plan->fits && plan->arena_bytes <= budget);
        assert_true(plan->nrecomputed > whole->nrecomputed);
        assert_true(plan->flops_micro >= whole->flops_micro);
        assert_string_equal(plan->hash, whole->hash); /* results are the same */
        plan_free(plan);
    }
    plan_free(whole);
    plan_free(hopeless);
    arena_free(arena);
}

static void hash_is_of_results(void **unused) {
    Arena *arena = arena_new();
    const char *rank[] = {"pref.rank=8"}, *lr[] = {"run.lr=1e-3"},
               *memory[] = {"graph.memory=1GiB"};
    Plan *a = compile(arena, 0, NULL, 0, "cpu"), *b = compile(arena, 0, NULL, 0, "cpu");
    Plan *r = compile(arena, 0, rank, 1, "cpu"), *l = compile(arena, 0, lr, 1, "cpu");
    Plan *m = compile(arena, 0, memory, 1, "cpu");
    assert_string_equal(a->hash, b->hash);
    assert_string_equal(a->hash, m->hash);
    assert_string_not_equal(a->hash, r->hash);
    assert_string_not_equal(a->hash, l->hash);
    Plan *all[] = {a, b, r, l, m};
    for (size_t i = 0; i < COUNT(all); i++) plan_free(all[i]);
    arena_free(arena);
}

/* Roles and padding add up to the peak, which is the arena; no arrangement could be far better. */
static void report_adds_up(void **unused) {
    Arena *arena = arena_new();
    Plan *plan = compile(arena, 0, NULL, 0, "cpu");
    char *text = report_json(plan);
    json_t *o = json_loads(text, 0, NULL);
    assert_non_null(o);
    json_t *roles = json_object_get(o, "bytes_by_role"), *value;
    const char *key;
    json_int_t sum = 0, padding = json_integer_value(json_object_get(roles, "padding"));
    json_object_foreach(roles, key, value) sum += json_integer_value(value);
    assert_int_equal(sum, plan->arena_bytes);
    assert_int_equal(json_integer_value(json_object_get(o, "peak_bytes")), plan->arena_bytes);
    assert_true(padding >= 0 && (padding < plan->arena_bytes / 50 || padding < 1 << 20));
    assert_true(json_array_size(json_object_get(o, "largest")) > 3);
    json_decref(o);
    free(text);
    plan_free(plan);
    arena_free(arena);
}

/* What the message says would fit does, and it names tensors with their lines. */
static void advice_is_true(void **unused) {
    Arena *arena = arena_new();
    Plan *whole = compile(arena, 0, NULL, 0, "cpu");
    int refused = 0;
    for (int part = 3; part <= 5; part++) {
        Plan *plan = compile(arena, whole->arena_bytes / part, NULL, 0, "cpu");
        if (plan->fits) {
            plan_free(plan);
            continue;
        }
        refused++;
        char *text = NULL;
        size_t size;
        FILE *out = open_memstream(&text, &size);
        report_does_not_fit(plan, out);
        fclose(out);
        assert_non_null(strstr(text, "llama3.dpo:"));
        const char *tokens = strstr(text, "run.tokens=");
        const char *memory = strstr(text, "--memory=");
        assert_true(tokens && memory);
        const char *set = arena_strn(arena, tokens, strcspn(tokens, "`"));
        Plan *smaller = compile(arena, plan->budget_bytes, &set, 1, "cpu");
        assert_true(smaller->fits);
        Plan *larger = compile(arena, (int64_t)atoi(memory + 9) << 20, NULL, 0, "cpu");
        assert_true(larger->fits);
        plan_free(smaller);
        plan_free(larger);
        plan_free(plan);
        free(text);
    }
    assert_true(refused > 0);
    plan_free(whole);
    arena_free(arena);
}

/* What is written as a file is what was planned. */
static void plan_reads_back(void **unused) {
    Arena *arena = arena_new();
    Plan *plan = compile(arena, 0, NULL, 0, "cpu");
    char *text = plan_to_json(plan);
    Err err = {0};
    Plan *again = plan_from_json(text, "again", &err);
    if (!again) fail_msg("%s", err.text);
    char *twice = plan_to_json(again);
    assert_string_equal(text, twice);
    free(text);
    free(twice);
    plan_free(plan);
    plan_free(again);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(units_share_weights), cmocka_unit_test(samples_change_nothing),
        cmocka_unit_test(budget_is_kept),      cmocka_unit_test(hash_is_of_results),
        cmocka_unit_test(report_adds_up),      cmocka_unit_test(advice_is_true),
        cmocka_unit_test(plan_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
