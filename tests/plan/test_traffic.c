/* test_traffic: how often a layer's values go through memory between its products, counted from the
 * steps of a plan for CUDA in bf16.  Every fused kernel reads each operand once and writes each
 * result once; what that comes to for each token is written down here by hand.
 */
#include "compiler/spec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { D = 256, KV = 128, F = 512, HEAD = 64, LAYER = 1 }; /* the second of four layers */

static Plan *compile(Arena *arena) {
    static const char config[] =
        "{\"model_type\":\"llama\",\"hidden_size\":256,\"num_hidden_layers\":4,"
        "\"intermediate_size\":512,\"vocab_size\":1000,\"num_attention_heads\":4,"
        "\"num_key_value_heads\":2,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,"
        "\"max_position_embeddings\":2048,\"tie_word_embeddings\":false,\"hidden_act\":\"silu\"}";
    static const char *const set[] = {"graph.compute=bf16"};
    char dir[] = "/tmp/dpoc-traffic-XXXXXX", path[60];
    Err err = {0};
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_true(file_write(path, config, strlen(config), &err));
    Diags *diags = diags_new(arena);
    CheckOptions check = {.file = "models/dpo-lora.dpo",
                          .model = dir,
                          .set = set,
                          .nset = COUNT(set),
                          .is_cuda = true,
                          .random_weights = true,
                          .needs_model = true};
    Spec *spec = check_file(arena, diags, &check);
    if (!spec) diags_print(diags, 0, stderr, false);
    assert_non_null(spec);
    unlink(path);
    rmdir(dir);
    CompileOptions options = {.target = target_by_name("sm_80")};
    options.want[UNIT_TRAIN] = true;
    Plan *plan = compile_spec(spec, &options);
    if (!plan) diags_print(diags, 0, stderr, false);
    assert_non_null(plan);
    return plan;
}

/* Bytes a token that generated kernels move in the layer, before or behind the head's gradient. */
static double traffic(const Plan *plan, const char *side, bool backward) {
    const Program *p = plan_program(plan, "micro");
    char scope[60];
    bool behind = false;
    double bytes = 0;
    snprintf(scope, sizeof scope, " %s/model.layers.%d", side, LAYER);
    const size_t n = strlen(scope);
    for (int i = 0; i < p->nsteps; i++) {
        const Step *s = &p->steps[i];
        if (s->kind != STEP_KERNEL) continue;
        const char *kind = plan->kernels[s->kernel].kind;
        const char *at = s->where ? strstr(s->where, scope) : NULL;
        behind |= !strcmp(kind, "logprob_grad");
        if (strcmp(kind, "rows") || behind != backward || !at || (at[n] && at[n] != '.')) continue;
        bytes += s->bytes / (double)plan->bound[X_T];
    }
    return bytes;
}

/* At most `bytes` a token, and the little that is the same for all tokens. */
static void expect(const Plan *plan, const char *side, bool backward, int bytes) {
    const double y = traffic(plan, side, backward);
    if (y < bytes || y > bytes + 1)
        fail_msg("%s, %s: %.1f bytes a token, not %d", side, backward ? "backward" : "forward", y,
                 bytes);
}

/* Products with LoRA end in f32, others in bf16, but for what rope reads.  LoRA's factor, 2 here,
 * is taken in by products. */
static void test_layer(void **unused) {
    (void)unused;
    Arena *arena = arena_new();
    Plan *plan = compile(arena);
    const int tables = 2 * 4 * HEAD; /* cos and sin */
    const int rope = 4 * D + 2 * D + tables + 4 * KV + 2 * KV + tables;
    expect(plan, "reference", false,
           rope + 2 * (4 * 2 * D) /* norms: x, dx to x, y */ + 3 * 2 * F /* gate, up to product */);
    expect(plan, "policy", false,
           rope + 4 * KV + 2 * KV /* v is rounded */ + 2 * (4 * D + 3 * 2 * D + 4) + 2 * 4 * F +
               3 * 2 * F /* gate and up are kept, too */);
    expect(plan, "policy", true,
           4 * D + 2 * D /* of attention's result */ + 4 * D + tables + 4 * KV + tables /* rope */ +
               2 * (4 * D + 3 * 2 * D + 4) /* norms: dy, x, dx to dx */ + 4 * F + 4 * 2 * F);
    plan_free(plan);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
