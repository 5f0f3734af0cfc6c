/* test_cases.c: dpoc's `eval` and `train` against the PyTorch figures of tests/num/cases (made by
 * tests/peers/make_cases.py in double precision), through the program as a person runs it.
 *
 * Tolerances are the product's promise in fp32 compute: |dlogp| <= 1e-4 max(1, |logp|); loss and
 * grad_norm
 * within 1e-3 relative; rewards within 1e-3 |reward| + beta 1e-5 (|logp| + |ref|). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CASES "tests/num/cases"

static char *run(const char *command, int *status) {
    FILE *f = popen(command, "r");
    assert_non_null(f);
    size_t cap = 1 << 20, len = 0, n;
    char *text = malloc(cap + 1);
    while ((n = fread(text + len, 1, cap - len, f)) > 0) {
        len += n;
        if (len == cap) text = realloc(text, (cap *= 2) + 1);
    }
    text[len] = 0;
    *status = pclose(f);
    return text;
}

static const char *build(void) {
    const char *b = getenv("BUILD");
    return b ? b : "build";
}

static json_t *figures_of(const char *name) {
    char path[512];
    snprintf(path, sizeof path, CASES "/%s/figures.json", name);
    json_error_t e;
    json_t *j = json_load_file(path, 0, &e);
    if (!j) fail_msg("%s: %s", path, e.text);
    return j;
}

static double num(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) fail_msg("no number '%s'", key);
    return json_number_value(v);
}

static void close_to(const char *what, double got, double want, double tol) {
    if (!(fabs(got - want) <= tol))
        fail_msg("%s: got %.9g, want %.9g, tolerance %.3g", what, got, want, tol);
}

static void check_eval(const char *name, const char *extra) {
    char command[2048], what[256];
    snprintf(command, sizeof command,
             "%s/dpoc eval models/dpo-lora.dpo --device=cpu --model " CASES "/%s --data " CASES
             "/%s/pairs.jsonl --adapter " CASES "/%s/adapter --set pref.rank=4 --set pref.alpha=8 "
             "--set graph.compute=fp32 --json --quiet %s",
             build(), name, name, name, extra);
    int status;
    char *text = run(command, &status);
    if (status != 0) fail_msg("%s: exit status %d", command, status);
    json_error_t e;
    json_t *got = json_loads(text, 0, &e);
    if (!got) fail_msg("%s: not JSON: %s: %.300s", name, e.text, text);
    json_t *figures = figures_of(name), *want = json_object_get(figures, "eval");
    json_t *rows = json_object_get(got, "per_pair"), *refs = json_object_get(want, "per_pair");
    assert_int_equal(json_array_size(rows), json_array_size(refs));
    static const char *const keys[] = {"logp_chosen", "logp_rejected", "ref_logp_chosen",
                                       "ref_logp_rejected"};
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *r = json_array_get(rows, i), *w = json_array_get(refs, i);
        for (int k = 0; k < 4; k++) {
            snprintf(what, sizeof what, "%s pair %zu %s", name, i, keys[k]);
            close_to(what, num(r, keys[k]), num(w, keys[k]), 1e-4 * fmax(1, fabs(num(w, keys[k]))));
        }
        assert_true(num(r, "chosen_tokens") == num(w, "chosen_tokens"));
        assert_true(num(r, "rejected_tokens") == num(w, "rejected_tokens"));
    }
    snprintf(what, sizeof what, "%s loss", name);
    close_to(what, num(got, "loss"), num(want, "loss"), 1e-3 * fabs(num(want, "loss")) + 1e-5);
    json_decref(got);
    json_decref(figures);
    free(text);
}

/* Largest |logp| + |ref| of a case: what the reward tolerance is made of. */
static double reward_scale(json_t *figures) {
    json_t *rows = json_object_get(json_object_get(figures, "eval"), "per_pair");
    double most = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *w = json_array_get(rows, i);
        most = fmax(most, fabs(num(w, "logp_chosen")) + fabs(num(w, "ref_logp_chosen")));
        most = fmax(most, fabs(num(w, "logp_rejected")) + fabs(num(w, "ref_logp_rejected")));
    }
    return most;
}

static void compare_steps(const char *name, const char *run_dir, json_t *want, double scale) {
    char path[600], line[8192], what[256];
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("%s is missing", path);
    size_t at = 0;
    while (fgets(line, sizeof line, f)) {
        json_t *got = json_loads(line, 0, NULL);
        assert_non_null(got);
        const char *event = json_string_value(json_object_get(got, "event"));
        if (event && strcmp(event, "step") == 0) {
            json_t *w = json_array_get(want, at);
            assert_non_null(w);
            static const char *const tight[] = {"loss", "grad_norm"};
            for (int k = 0; k < 2; k++) {
                snprintf(what, sizeof what, "%s step %zu %s", name, at + 1, tight[k]);
                close_to(what, num(got, tight[k]), num(w, tight[k]),
                         1e-3 * fabs(num(w, tight[k])) + 1e-7);
            }
            static const char *const rewards[] = {"rewards/chosen", "rewards/rejected"};
            for (int k = 0; k < 2; k++) {
                snprintf(what, sizeof what, "%s step %zu %s", name, at + 1, rewards[k]);
                close_to(what, num(got, rewards[k]), num(w, rewards[k]),
                         1e-3 * fabs(num(w, rewards[k])) + 0.1 * 1e-5 * scale);
            }
            close_to("learning_rate", num(got, "learning_rate"), num(w, "learning_rate"), 1e-9);
            at++;
        }
        json_decref(got);
    }
    fclose(f);
    assert_int_equal(at, json_array_size(want));
}

/* Trains `spec` for the figures' 20 steps. */
static void check_train(const char *name, const char *key, const char *spec, const char *extra) {
    json_t *figures = figures_of(name), *want = json_object_get(figures, key);
    if (!want) {
        json_decref(figures);
        return;
    }
    char dir[600], command[3000];
    snprintf(dir, sizeof dir, "%s/tests/runs/%s-%s", build(), name, key);
    snprintf(command, sizeof command,
             "%s/dpoc train %s --device=cpu --model " CASES "/%s --data " CASES
             "/%s/pairs.jsonl -o %s "
             "--overwrite --quiet --set run.steps=20 --set run.batch=4 --set run.warmup=3 --set "
             "run.schedule=cosine "
             "--set run.shuffle=off --set run.clip=1 --set run.weight_decay=0 --set "
             "graph.compute=fp32 %s",
             build(), spec, name, name, dir, extra);
    int status = system(command);
    if (status != 0) fail_msg("%s: exit status %d", command, status);
    compare_steps(name, dir, want, reward_scale(figures));
    json_decref(figures);
}

static const char *const names[] = {"gqa",         "mha_tied",     "tied_as_head", "head_dim",
                                    "llama3_rope", "bf16_sharded", "f16",          "biases",
                                    "qwen2",       "mistral",      "lengths",      "wide_vocab",
                                    "bnb_nf4",     "bnb_fp4",      "bnb_int8"};

static void eval_matches_pytorch(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_eval(names[i], "");
}

static void eval_is_the_same_with_passes_off(void **state) {
    (void)state;
    check_eval("gqa", "--set graph.fuse=off");
    check_eval("gqa", "--set graph.prefix=on");
    check_eval("lengths", "--set graph.prefix=on");
    check_eval(
        "gqa",
        "--set graph.cse=off --set graph.fold=off --set graph.slice=off --set graph.gemm=off");
}

static void lora_training_matches_pytorch(void **state) {
    (void)state;
    char extra[512];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(extra, sizeof extra,
                 "--adapter " CASES
                 "/%s/adapter --set pref.rank=4 --set pref.alpha=8 --set run.lr=1e-2",
                 names[i]);
        check_train(names[i], "train", "models/dpo-lora.dpo", extra);
    }
}

static void small_micro_batches_change_nothing(void **state) {
    (void)state;
    check_train(
        "gqa", "train", "models/dpo-lora.dpo",
        "--adapter " CASES
        "/gqa/adapter --set pref.rank=4 --set pref.alpha=8 --set run.lr=1e-2 --set run.tokens=80");
}

static void full_training_matches_pytorch(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_train(names[i], "full", "tests/num/full.dpo", "--set run.lr=1e-3");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eval_matches_pytorch),
        cmocka_unit_test(eval_is_the_same_with_passes_off),
        cmocka_unit_test(lora_training_matches_pytorch),
        cmocka_unit_test(small_micro_batches_change_nothing),
        cmocka_unit_test(full_training_matches_pytorch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
