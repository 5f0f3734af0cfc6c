/* test_references.c: every kind of reference, through the program as a person runs it, against
 * PyTorch's figures in double precision (references.json, made by tests/peers/make_references.py):
 * log-probs of all pairs, and three training steps.  Tolerances: case.h.
 *
 * And of the plan: a frozen copy of what is trained is there once, and only where it is asked for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "case.h"
#include "compiler/spec.h"

#define GQA CASES "/gqa"

static const char dpo[] = "use \"objectives/dpo.dpo\"\n";
static const char free_dpo[] = "use \"objectives/dpo_reference_free.dpo\"\n";
static const char pref[] = "adapter pref = lora(rank = 4, alpha = 8) on all_linear\ntrain pref\n";
static const char sft[] = "adapter sft = load \"%s/" CASES "/tied_as_head/adapter\"\n";

static const struct Run {
    const char *name; /* in references.json */
    const char *objective, *trained;
    bool other_adapter;
    const char *models; /* %s: where the tests run */
} runs[] = {
    {"base", dpo, pref, false, "policy = base + pref\nreference = base\n"},
    {"base_and_other", dpo, pref, true, "policy = base + pref\nreference = base + sft\n"},
    {"stacked", dpo, pref, true, "policy = base + sft + pref\nreference = base + sft\n"},
    {"start", dpo, pref, false, "policy = base + pref\nreference = policy at start\n"},
    {"stacked_start", dpo, pref, true, "policy = base + sft + pref\nreference = policy at start\n"},
    {"other", dpo, pref, false,
     "policy = base + pref\nreference = llama from \"%s/" CASES "/head_dim\"\n"},
    {"none", free_dpo, pref, false, "policy = base + pref\nreference = none\n"},
    {"full_start", dpo, "train base\n", false, "policy = base\nreference = policy at start\n"},
    {"full_other", dpo, "train base\n", false,
     "policy = base\nreference = llama from \"%s/" CASES "/head_dim\"\n"},
};

static const char *directory(void) {
    return intern_printf("%s/tests/references", build());
}

/* The run's file: its path. */
static const char *written(const struct Run *r, const char *more) {
    char *here = realpath(".", NULL);
    const char *path = intern_printf("%s/%s.dpo", directory(), r->name);
    Text text = {0};
    Err err = {0};
    text_add(&text, "use \"llama3.dpo\"\n%sbase = auto\n%s", r->objective, r->trained);
    if (r->other_adapter) text_add(&text, sft, here);
    const char *at = strstr(r->models, "%s");
    text_add(&text, "%.*s", at ? (int)(at - r->models) : (int)strlen(r->models), r->models);
    if (at) text_add(&text, "%s%s", here, at + 2);
    text_add(&text,
             "run { steps = 3  batch = 4  lr = 1e-2  warmup = 0  schedule = constant  clip = 1"
             "  weight_decay = 0  shuffle = off }\ngraph { compute = fp32 }\n%s",
             more);
    assert_true(dir_make(directory(), &err));
    assert_true(file_write(path, text.data, text.len, &err));
    text_free(&text);
    free(here);
    return path;
}

static const char *flags(const struct Run *r) {
    return intern_printf("--device=cpu --model " GQA " --data " GQA "/pairs.jsonl --quiet%s",
                         r->trained == pref ? " --adapter pref=" GQA "/adapter" : "");
}

static double score(json_t *rows) {
    double most = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *w = json_array_get(rows, i);
        most = fmax(most, 2 * fabs(num(w, "logp_chosen")) + 2 * fabs(num(w, "logp_rejected")));
    }
    return most;
}

/* Log-probs as `eval` prints them; where there is no reference it prints null. */
static void compare_rows(const struct Run *r, const char *file, json_t *want) {
    static const char *const keys[] = {"logp_chosen", "logp_rejected", "ref_logp_chosen",
                                       "ref_logp_rejected"};
    int status;
    char *text =
        run(intern_printf("%s/dpoc eval %s %s --json 2> %s.log", build(), file, flags(r), file),
            &status);
    if (status) stop("%s: eval: exit status %d, see %s.log", r->name, status, file);
    json_t *got = json_loads(text, 0, NULL), *rows = json_object_get(got, "per_pair");
    assert_int_equal(json_array_size(rows), json_array_size(want));
    for (size_t i = 0; i < json_array_size(want); i++)
        for (int k = 0; k < 4; k++) {
            json_t *w = json_object_get(json_array_get(want, i), keys[k]);
            json_t *g = json_object_get(json_array_get(rows, i), keys[k]);
            if (!w) assert_true(json_is_null(g));
            if (w)
                close_to(intern_printf("%s pair %zu %s", r->name, i, keys[k]), json_number_value(g),
                         json_number_value(w), 1e-4 * fmax(1, fabs(json_number_value(w))));
        }
    json_decref(got);
    free(text);
}

static const char *trained(const struct Run *r, const char *file, const char *more) {
    const char *out = intern_printf("%s/%s", directory(), r->name);
    const char *command = intern_printf("%s/dpoc train %s %s %s -o %s --overwrite 2> %s.log",
                                        build(), file, flags(r), more, out, file);
    if (system(command)) stop("%s failed, see %s.log", command, file);
    return out;
}

static void log_probs_and_steps_are_pytorchs(void **state) {
    json_t *figures = json_load_file("tests/num/references.json", 0, NULL);
    assert_non_null(figures);
    assert_int_equal(json_object_size(figures), COUNT(runs));
    for (size_t i = 0; i < COUNT(runs); i++) {
        const struct Run *r = &runs[i];
        json_t *want = json_object_get(figures, r->name), *rows = json_object_get(want, "per_pair");
        const char *file = written(r, "");
        compare_rows(r, file, rows);
        compare_steps(r->name, trained(r, file, ""), json_object_get(want, "train"), score(rows));
    }
    json_decref(figures);
}

/* A step's numbers without times. */
static char *losses(const char *out) {
    int status;
    char *text = run(intern_printf("grep '\"step\",' %s/metrics.jsonl | sed -E "
                                   "'s/\"time\":[0-9.]+,//; s/\"tokens_per_second\".*//'",
                                   out),
                     &status);
    assert_int_equal(status, 0);
    return text;
}

/* A fresh adapter adds nothing at the start, so its reference is the base: bit for bit. */
static void a_fresh_policy_at_start_is_the_base(void **state) {
    struct Run fresh = {"fresh", dpo, "adapter pref = lora(rank = 4) on all_linear\n train pref\n",
                        false, "policy = base + pref\nreference = policy at start\n"};
    char *a = losses(trained(&fresh, written(&fresh, ""), ""));
    fresh.models = "policy = base + pref\nreference = base\n";
    char *b = losses(trained(&fresh, written(&fresh, ""), ""));
    assert_true(strlen(a) > 100);
    assert_string_equal(a, b);
    free(a);
    free(b);
}

/* A warning, once; and no token is looked up beyond the smaller vocabulary (f16's has 131). */
static void another_vocabulary_is_said(void **state) {
    struct Run r = runs[5];
    r.name = "vocabulary";
    const char *file = written(&r, "");
    int status;
    char *text = run(intern_printf("%s/dpoc eval %s --set graph.compute=fp32 --model " CASES
                                   "/f16 --data " CASES "/f16/pairs.jsonl --device=cpu 2>&1",
                                   build(), file),
                     &status);
    assert_int_equal(WEXITSTATUS(status), EXIT_IO);
    char *said = strstr(text, "[-Wvocabulary]");
    assert_non_null(said);
    assert_null(strstr(said + 1, "[-Wvocabulary]"));
    assert_non_null(strstr(text, "beyond the model's vocabulary of 97"));
    free(text);
}

/* ---- memory ---------------------------------------------------------------------------------- */

typedef struct Sources { /* elements by source, and how many tensors are bound more than once */
    double base, start, other, pref;
    int twice;
} Sources;

static Sources sources_of(const struct Run *r) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    const char *adapter = "pref=" GQA "/adapter";
    CheckOptions o = {.file = written(r, ""),
                      .model = GQA,
                      .adapter = &adapter,
                      .nadapter = r->trained == pref,
                      .needs_model = true};
    Spec *spec = check_file(arena, diags, &o);
    assert_non_null(spec);
    CompileOptions options = {.target = target_by_name("cpu")};
    options.want[UNIT_TRAIN] = options.want[UNIT_EVAL] = true;
    Plan *plan = compile_spec(spec, &options);
    assert_non_null(plan);
    Sources s = {0};
    for (int i = 0; i < plan->nbinds; i++) {
        const Bind *b = &plan->binds[i];
        if (!strcmp(b->transform, "table")) continue;
        double *to = strstr(b->source, "@start")       ? &s.start
                     : !strncmp(b->source, "base:", 5) ? &s.other
                     : !strcmp(b->source, "base")      ? &s.base
                                                       : &s.pref;
        *to += (double)b->rows * (double)b->cols;
        for (int k = 0; k < i; k++)
            s.twice += !strcmp(plan->binds[k].source, b->source) &&
                       !strcmp(plan->binds[k].tensor, b->tensor);
    }
    plan_free(plan);
    arena_free(arena);
    return s;
}

static void a_frozen_copy_is_there_once(void **state) {
    Sources s[COUNT(runs)];
    for (size_t i = 0; i < COUNT(runs); i++) {
        s[i] = sources_of(&runs[i]);
        assert_int_equal(s[i].twice, 0);
        bool start = strstr(runs[i].models, "at start"), other = strstr(runs[i].models, "from");
        assert_true((s[i].start > 0) == start);
        assert_true((s[i].other > 0) == other);
        if (start && runs[i].trained == pref) assert_true(s[i].start == s[3].pref);
        if (start && runs[i].trained != pref) assert_true(s[i].start == s[i].base);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(log_probs_and_steps_are_pytorchs),
        cmocka_unit_test(a_fresh_policy_at_start_is_the_base),
        cmocka_unit_test(another_vocabulary_is_said),
        cmocka_unit_test(a_frozen_copy_is_there_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
