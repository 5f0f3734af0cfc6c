/* test_cases.c: dpoc's `eval` and `train` against the PyTorch figures of tests/num/cases (made by
 * tests/peers/make_cases.py in double precision), through the program as a person runs it.
 * Tolerances: case.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "case.h"

static void check_eval(const char *name, const char *extra) {
    char command[2048], dir[256];
    snprintf(dir, sizeof dir, CASES "/%s", name);
    snprintf(command, sizeof command,
             "%s/dpoc eval models/dpo-lora.dpo --device=cpu --model " CASES "/%s --data " CASES
             "/%s/pairs.jsonl --adapter " CASES "/%s/adapter --set pref.rank=4 --set pref.alpha=8 "
             "--set graph.compute=fp32 --json --quiet %s",
             build(), name, name, name, extra);
    json_t *figures = figures_of(dir);
    compare_eval(name, command, json_object_get(figures, "eval"));
    json_decref(figures);
}

/* Trains `spec` for the figures' 20 steps. */
static void check_train(const char *name, const char *key, const char *spec, const char *extra) {
    char dir[600], command[3000];
    snprintf(dir, sizeof dir, CASES "/%s", name);
    json_t *figures = figures_of(dir), *want = json_object_get(figures, key);
    if (!want) {
        json_decref(figures);
        return;
    }
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
    if (status != 0) stop("%s: exit status %d", command, status);
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
