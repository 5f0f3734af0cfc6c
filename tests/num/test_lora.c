/* test_lora.c: adapters of every kind against PEFT's own figures (tests/num/lora, made by
 * tests/peers/make_lora.py in double precision), through the program as a person runs it: with
 * PEFT's files, with what a .dpo file says, from a fresh start.  Tolerances: case.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "case.h"
#include "runtime/base.h"
#include "runtime/io/safetensors.h"

#define LORA "tests/num/lora"

typedef struct Case {
    char name[64], dir[128], base[64];
} Case;

static Case case_of(const char *name) {
    Case c;
    Err err = {0};
    snprintf(c.name, sizeof c.name, "%s", name);
    snprintf(c.dir, sizeof c.dir, LORA "/%s", name);
    char path[256];
    snprintf(path, sizeof path, "%s/base", c.dir);
    char *base = file_read(path, NULL, &err);
    if (!base) stop("%s", err.text);
    snprintf(c.base, sizeof c.base, "%.*s", (int)strcspn(base, "\n"), base);
    free(base);
    return c;
}

/* Evaluates `spec` on the case's pairs. */
static void check_eval(const Case *c, const char *spec, const char *extra, bool fresh) {
    char command[2048];
    snprintf(command, sizeof command,
             "%s/dpoc eval %s --device=cpu --model " CASES "/%s --data " CASES
             "/%s/pairs.jsonl --set graph.compute=fp32 --json --quiet %s",
             build(), spec, c->base, c->base, extra);
    json_t *figures = figures_of(c->dir);
    json_t *from = fresh ? json_object_get(figures, "fresh") : figures;
    compare_eval(c->name, command, json_object_get(from, "eval"));
    json_decref(figures);
}

/* Trains the case's run.dpo; `run_dir` (300 bytes) receives where. */
static void train(const Case *c, const char *what, int steps, const char *extra, char *run_dir) {
    char command[3000];
    Err err = {0};
    snprintf(run_dir, 300, "%s/tests/runs", build());
    assert_true(dir_make(run_dir, &err));
    snprintf(run_dir, 300, "%s/tests/runs/lora-%s-%s", build(), c->name, what);
    snprintf(command, sizeof command,
             "%s/dpoc train %s/run.dpo --device=cpu --model " CASES "/%s --data " CASES
             "/%s/pairs.jsonl -o %s --overwrite --quiet --set run.steps=%d --set run.warmup=3 "
             "--set run.schedule=cosine --set run.shuffle=off --set run.clip=1 "
             "--set run.weight_decay=0 --set run.lr=1e-2 --set graph.compute=fp32 %s 2> %s.log "
             "|| { cat %s.log; false; }",
             build(), c->dir, c->base, c->base, run_dir, steps, extra, run_dir, run_dir);
    int status = system(command);
    if (status != 0) stop("%s: exit status %d", command, status);
}

static void check_train(const Case *c, const char *what, const char *extra, bool fresh) {
    char dir[300];
    json_t *figures = figures_of(c->dir);
    json_t *want = json_object_get(fresh ? json_object_get(figures, "fresh") : figures, "train");
    assert_non_null(want);
    train(c, what, (int)json_array_size(want), extra, dir);
    compare_steps(c->name, dir, want, reward_scale(figures));
    json_decref(figures);
}

static const char *const names[] = {
    "rslora",      "patterns", "layers",          "embeddings", "tied",        "dora",
    "dora_biases", "dora_fp4", "dora_embeddings", "pissa",      "pissa_rslora"};

static char *adapter_flag(const Case *c) {
    static char flag[256];
    snprintf(flag, sizeof flag, "--adapter %s/adapter", c->dir);
    return flag;
}

static void peft_adapters_give_pefts_log_probs(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Case c = case_of(names[i]);
        char spec[256];
        snprintf(spec, sizeof spec, "%s/run.dpo", c.dir);
        check_eval(&c, spec, adapter_flag(&c), false);
    }
}

/* A program that leaves all to the adapter's directory. */
static char *loading_spec(const Case *c) {
    static char spec[256];
    static const char text[] =
        "use \"objectives/dpo.dpo\"\nbase = auto\nadapter pref = load \"nowhere\"\n"
        "policy = base + pref\nreference = base\ntrain pref\n";
    Err err = {0};
    snprintf(spec, sizeof spec, "%s/tests/lora-%s.dpo", build(), c->name);
    assert_true(file_write(spec, text, strlen(text), &err));
    return spec;
}

/* Their files alone say what they change, with which rank, alpha and kind. */
static void peft_directories_speak_for_themselves(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Case c = case_of(names[i]);
        check_eval(&c, loading_spec(&c), adapter_flag(&c), false);
    }
}

/* From singular vectors, as from PEFT's (whose signs may differ: AdamW does not see them); what is
 * saved is a plain LoRA of twice the rank on the base as it was. */
static void pissa_goes_as_pefts(void **state) {
    (void)state;
    static const char *const some[] = {"pissa", "pissa_rslora"};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        Case c = case_of(some[i]);
        char flag[400];
        check_train(&c, "fresh", "", true);
        snprintf(flag, sizeof flag, "--adapter %s/tests/runs/lora-%s-fresh/adapter", build(),
                 c.name);
        check_eval(&c, loading_spec(&c), flag, true);
    }
}

static void training_goes_as_pefts(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Case c = case_of(names[i]);
        check_train(&c, "train", adapter_flag(&c), false);
    }
}

/* A rate at which nothing is dropped leaves the ways that dropout takes: W x and W dropout(x) of
 * their own. */
static void dropout_beside_magnitudes(void **state) {
    (void)state;
    static const char *const some[] = {"dora", "dora_biases"};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        Case c = case_of(some[i]);
        char extra[400];
        snprintf(extra, sizeof extra, "%s --set pref.dropout=1e-9", adapter_flag(&c));
        check_train(&c, "dropout", extra, false);
    }
}

/* A fresh magnitude is |W| by rows, of a quantized weight what it stands for: sums of n <= 56
 * squares in f32 on both sides, so n^1/2 2^-24 each, halved by the root: within 1e-6. */
static void magnitudes_start_as_pefts(void **state) {
    (void)state;
    static const char *const some[] = {"dora", "dora_fp4", "dora_embeddings"};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        Case c = case_of(some[i]);
        char dir[300], path[400], name[256];
        Err err = {0};
        train(&c, "fresh", 1, "--set run.lr=0", dir);
        json_t *figures = figures_of(c.dir), *value;
        json_t *want = json_object_get(json_object_get(figures, "fresh"), "magnitudes");
        snprintf(path, sizeof path, "%s/adapter/adapter_model.safetensors", dir);
        SafeFile *file = safe_open(path, &err);
        if (!file) stop("%s", err.text);
        const char *key;
        assert_true(json_object_size(want) > 2);
        json_object_foreach(want, key, value) {
            size_t stem = strlen(key) - strlen(".weight");
            snprintf(name, sizeof name, "base_model.model.%.*s", (int)stem, key);
            const SafeTensor *t = safe_find(file, name);
            if (!t) stop("%s: no tensor %s", path, name);
            assert_int_equal(t->rank, 1);
            assert_int_equal(t->count, json_array_size(value));
            float got[512];
            assert_true(t->count <= 512 && safe_read_f32(t, 0, t->count, got, &err));
            for (int64_t k = 0; k < t->count; k++) {
                double w = json_number_value(json_array_get(value, (size_t)k));
                close_to(name, got[k], w, 1e-6 * w);
            }
        }
        safe_close(file);
        json_decref(figures);
    }
}

/* Before it is trained an adapter of any kind changes no bit. */
static void a_fresh_adapter_is_the_base(void **state) {
    (void)state;
    static const char *const some[] = {"embeddings", "dora_embeddings", "dora_fp4", "pissa_rslora"};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        Case c = case_of(some[i]);
        char command[1024];
        int status;
        snprintf(command, sizeof command,
                 "%s/dpoc eval %s/run.dpo --device=cpu --model " CASES "/%s --data " CASES
                 "/%s/pairs.jsonl --set graph.compute=bf16 --json --quiet",
                 build(), c.dir, c.base, c.base);
        char *text = run(command, &status);
        json_t *got = json_loads(text, 0, NULL), *row;
        size_t k;
        if (status != 0 || !got) stop("%s: %.300s", command, text);
        json_array_foreach(json_object_get(got, "per_pair"), k, row) {
            assert_true(num(row, "logp_chosen") == num(row, "ref_logp_chosen"));
            assert_true(num(row, "logp_rejected") == num(row, "ref_logp_rejected"));
        }
        assert_int_equal(k, 6);
        json_decref(got);
        free(text);
    }
}

/* `base + sft` as the reference: PEFT's log-probs with that adapter, frozen here; the policy, which
 * adds a fresh one to it, is the same at the start. */
static void frozen_adapters_in_the_reference(void **state) {
    (void)state;
    static const char *const some[] = {"embeddings", "dora_fp4", "dora_embeddings"};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        Case c = case_of(some[i]);
        Err err = {0};
        char text[2048], spec[300], command[1024], dir[256], *root = realpath(".", NULL);
        snprintf(dir, sizeof dir, "%s/tests", build());
        assert_true(root && dir_make(dir, &err));
        snprintf(spec, sizeof spec, "%s/lora-frozen.dpo", dir);
        snprintf(
            text, sizeof text,
            "use \"objectives/dpo.dpo\"\nbase = auto\nadapter sft = load \"%.1000s/%s/adapter\"\n"
            "adapter pref = lora(rank = 2, dora = true) on all_linear\n"
            "policy = base + sft + pref\nreference = base + sft\ntrain pref\n",
            root, c.dir);
        free(root);
        assert_true(file_write(spec, text, strlen(text), &err));
        snprintf(command, sizeof command,
                 "%s/dpoc eval %s --device=cpu --model " CASES "/%s --data " CASES
                 "/%s/pairs.jsonl --set graph.compute=fp32 --json --quiet",
                 build(), spec, c.base, c.base);
        int status;
        char *said = run(command, &status);
        json_t *figures = figures_of(c.dir), *got = json_loads(said, 0, NULL), *row;
        if (status != 0 || !got) stop("%s: %.300s", command, said);
        json_t *want = json_object_get(json_object_get(figures, "eval"), "per_pair");
        size_t k;
        json_array_foreach(json_object_get(got, "per_pair"), k, row) {
            double ref = num(row, "ref_logp_chosen");
            double peft = num(json_array_get(want, k), "logp_chosen");
            close_to(c.name, ref, peft, 1e-4 * fmax(1, fabs(peft)));
            assert_true(num(row, "logp_chosen") == ref);
        }
        assert_int_equal(k, json_array_size(want));
        json_decref(got);
        json_decref(figures);
        free(said);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peft_adapters_give_pefts_log_probs),
        cmocka_unit_test(peft_directories_speak_for_themselves),
        cmocka_unit_test(training_goes_as_pefts),
        cmocka_unit_test(pissa_goes_as_pefts),
        cmocka_unit_test(dropout_beside_magnitudes),
        cmocka_unit_test(magnitudes_start_as_pefts),
        cmocka_unit_test(a_fresh_adapter_is_the_base),
        cmocka_unit_test(frozen_adapters_in_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
