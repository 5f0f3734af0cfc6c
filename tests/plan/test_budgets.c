/* The memory budgets that the QLoRA notebook's setting must meet on real cards, with graph.reserve
 * counted: Llama-3-8B, NF4, rank 16 on all linear layers, planned from its config.json alone. */
#include "compiler/report.h"
#include "compiler/spec.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GIB (INT64_C(1) << 30)

static const char llama_8b[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":4096,"
    "\"intermediate_size\":14336,\"num_hidden_layers\":32,\"num_attention_heads\":32,"
    "\"num_key_value_heads\":8,\"vocab_size\":128256,\"rms_norm_eps\":1e-5,\"rope_theta\":500000.0,"
    "\"hidden_act\":\"silu\",\"tie_word_embeddings\":false}";

static const char llama_1b[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":2048,"
    "\"intermediate_size\":8192,\"num_hidden_layers\":16,\"num_attention_heads\":32,"
    "\"num_key_value_heads\":8,\"head_dim\":64,\"vocab_size\":128256,\"rms_norm_eps\":1e-5,"
    "\"rope_theta\":500000.0,\"hidden_act\":\"silu\",\"tie_word_embeddings\":true}";

/* A folder of the build's with this config.json alone. */
static const char *model_dir(const char *config) {
    const char *build = getenv("BUILD"), *name = config == llama_1b ? "llama3-1b" : "llama3-8b";
    const char *dir = intern_printf("%s/tests/%s", build ? build : "build", name);
    Err err = {0};
    if (!dir_make(dir, &err) ||
        !file_write(intern_printf("%s/config.json", dir), config, strlen(config), &err))
        fail_msg("%s", err.text);
    return dir;
}

/* memory 0: as much as wanted. */
static Plan *plan_of(const char *file, const char *config, int tokens, int64_t memory) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    const char *set[] = {intern_printf("run.tokens=%d", tokens)};
    CheckOptions check = {.file = file,
                          .model = model_dir(config),
                          .set = set,
                          .nset = 1,
                          .is_cuda = true,
                          .random_weights = true,
                          .needs_model = true};
    Spec *spec = check_file(arena, diags, &check);
    if (!spec) diags_print(diags, 0, stderr, false);
    assert_non_null(spec);
    const Target *target = target_by_name("sm_80");
    CompileOptions options = {.target = target, .budget = memory ? memory - target->reserve : 0};
    options.want[UNIT_TRAIN] = options.want[UNIT_EVAL] = true; /* the file holds pairs out */
    Plan *plan = compile_spec(spec, &options);
    assert_non_null(plan);
    const char *wrong = plan_check(plan, arena);
    if (wrong) fail_msg("%s", wrong);
    arena_free(arena);
    return plan;
}

static Plan *plan_for(int tokens, int64_t memory) {
    return plan_of("models/llama3-8b-qlora.dpo", llama_8b, tokens, memory);
}

static void fits(const Plan *plan, int64_t memory) {
    assert_true(plan->fits);
    assert_true(plan->arena_bytes + target_by_name("sm_80")->reserve <= memory);
}

static int side_steps(const Plan *plan) {
    int n = 0;
    for (int p = 0; p < plan->nprograms; p++)
        for (int i = 0; i < plan->programs[p].nsteps; i++) n += plan->programs[p].steps[i].side;
    return n;
}

/* Two pairs of 1024 + 1024 tokens: 24 GiB recompute nothing but elementwise values, 16 GiB do. */
static void two_pairs(void **unused) {
    Plan *whole = plan_for(4096, 0), *card24 = plan_for(4096, 24 * GIB),
         *card16 = plan_for(4096, 16 * GIB);
    fits(card24, 24 * GIB);
    fits(card16, 16 * GIB);
    assert_true(fabs(card24->flops_micro / whole->flops_micro - 1) <= 1e-3);
    /* 8 GiB over, of which elementwise values give 5.6; the rest are products of K = 4096, that is
     * 4096 FLOPs a byte: 1.1e13 of 2.05e14.  Twice that is still little; all of the policy's
     * forward again would be a quarter. */
    assert_true(card16->flops_micro > whole->flops_micro);
    assert_true(card16->flops_micro < whole->flops_micro * 1.11);
    assert_string_equal(card16->hash, whole->hash); /* results are the same */
    /* Of 7 weights a layer, forward and backward: nearly every dequantization hides. */
    assert_true(side_steps(whole) > 32 * 7 * 2 - 32);
    assert_true(side_steps(card24) > 32 * 7 * 2 - 32);
    plan_free(whole);
    plan_free(card24);
    plan_free(card16);
}

static void four_pairs(void **unused) {
    Plan *plan = plan_for(8192, 40 * GIB);
    fits(plan, 40 * GIB);
    plan_free(plan);
}

/* More memory never costs more work, but for where the search ends: 1/64 of the 7.2 GiB that may be
 * kept, at most 8192 FLOPs a byte (the longest K).  Near 5 GiB a byte less of activations gains
 * ever less of the peak, down to nothing. */
static void no_cliff(void **unused) {
    const double budget[] = {4.5, 5}, slack = 7.2 / 64 * (double)GIB * 8192;
    double tighter = INFINITY;
    for (int i = 0; i < 2; i++) {
        int64_t memory = (int64_t)(budget[i] * (double)GIB);
        Plan *plan = plan_of("models/dpo-lora.dpo", llama_1b, 4096, memory);
        fits(plan, memory);
        assert_true(plan->flops_micro <= tighter + slack);
        tighter = plan->flops_micro;
        plan_free(plan);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(two_pairs), cmocka_unit_test(four_pairs),
                                       cmocka_unit_test(no_cliff)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
