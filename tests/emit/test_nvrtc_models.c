/* test_nvrtc_models: NVRTC makes cubins of every kernel of every run that models/ and
 * models/objectives can make, for a small config.json of each family.  Skipped where NVRTC is not
 * installed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>

#include "compiler/spec.h"
#include <stdlib.h>

#include "tests/emit/nvrtc.h"

static char work[] = "/tmp/dpoc-models-XXXXXX";

static const char *write_file(Arena *arena, const char *name, const char *text) {
    char *path = arena_printf(arena, "%s/%s", work, name);
    Err err = {0};
    assert_true(file_write(path, text, strlen(text), &err));
    return path;
}

/* A directory with a config.json of this family: three query heads per key. */
static const char *write_config(Arena *arena, const char *family, int hidden, int heads) {
    Err err = {0};
    char *dir = arena_printf(arena, "%s/%s-%d", work, family, hidden);
    assert_true(dir_make(dir, &err));
    write_file(
        arena, arena_printf(arena, "%s-%d/config.json", family, hidden),
        arena_printf(arena,
                     "{\"model_type\":\"%s\",\"hidden_size\":%d,\"num_hidden_layers\":2,"
                     "\"intermediate_size\":768,\"vocab_size\":1000,\"num_attention_heads\":%d,"
                     "\"num_key_value_heads\":%d,\"rms_norm_eps\":1e-5,\"rope_theta\":500000.0,"
                     "\"max_position_embeddings\":2048,\"tie_word_embeddings\":%s,"
                     "\"sliding_window\":%s,\"hidden_act\":\"silu\"}",
                     family, hidden, heads, heads / 3, !strcmp(family, "qwen2") ? "true" : "false",
                     !strcmp(family, "mistral") ? "64" : "null"));
    return dir;
}

/* Kernels of all plans, each once. */
typedef struct Kernels {
    Arena *arena;
    const char **symbol, **text;
    int n, cap, cap_text;
} Kernels;

static void collect(Kernels *all, const char *file, const char *model, const char *target) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    CheckOptions check = {
        .file = file, .model = model, .is_cuda = true, .random_weights = true, .needs_model = true};
    Spec *spec = check_file(arena, diags, &check);
    if (!spec) diags_print(diags, 0, stderr, false);
    assert_non_null(spec);
    CompileOptions options = {.target = target_by_name(target)};
    for (int k = 0; k < NUNIT; k++) options.want[k] = true;
    Plan *plan = compile_spec(spec, &options);
    if (!plan) diags_print(diags, 0, stderr, false);
    assert_non_null(plan);
    int fresh = 0;
    for (int i = 0; i < plan->nkernels; i++) {
        int k = 0;
        while (k < all->n && strcmp(all->symbol[k], plan->kernels[i].symbol)) k++;
        if (k < all->n) continue;
        PUSH(all->arena, all->text, all->n, all->cap_text,
             arena_str(all->arena, plan->kernels[i].text));
        all->n--;
        PUSH(all->arena, all->symbol, all->n, all->cap, intern(plan->kernels[i].symbol));
        fresh++;
    }
    printf("%s with %s for %s: %d kernels, %d of them new\n", file, model, target, plan->nkernels,
           fresh);
    plan_free(plan);
    arena_free(arena);
}

static int compile_all(const Kernels *all, const char *arch) {
    Text text = {0};
    text_add(&text, "%s", emit_prelude(target_by_name(arch)));
    for (int i = 0; i < all->n; i++) text_add(&text, "%s\n", all->text[i]);
    const int bad = nvrtc_check("plan.cu", text.data, all->n, all->symbol, all->symbol, arch);
    text_free(&text);
    return bad;
}

static void test_families(void **state) {
    (void)state;
    static const char *const families[] = {"llama", "mistral", "qwen2"};
    static const char *const files[] = {"models/dpo-lora.dpo", "models/llama3-8b-qlora.dpo",
                                        "models/tiny.dpo"};
    static const char *const archs[] = {"sm_80", "sm_90"};
    int bad = 0;
    for (size_t a = 0; a < COUNT(archs); a++) {
        Kernels all = {.arena = arena_new()};
        for (size_t f = 0; f < COUNT(files); f++)
            for (size_t m = 0; m < (f == 0 ? COUNT(families) : 1); m++)
                collect(&all, files[f], write_config(all.arena, families[m], 288, 6), archs[a]);
        bad += compile_all(&all, archs[a]);
        arena_free(all.arena);
    }
    assert_int_equal(bad, 0);
}

/* Rows that a block keeps in registers; adapters, and every weight trained. */
static void test_wide(void **state) {
    (void)state;
    Kernels all = {.arena = arena_new()};
    collect(&all, "models/dpo-lora.dpo", write_config(all.arena, "llama", 3072, 24), "sm_80");
    collect(&all, "tests/num/full.dpo", write_config(all.arena, "llama", 6144, 48), "sm_80");
    const int bad = compile_all(&all, "sm_80");
    arena_free(all.arena);
    assert_int_equal(bad, 0);
}

static void test_objectives(void **state) {
    (void)state;
    Kernels all = {.arena = arena_new()};
    const char *model = write_config(all.arena, "llama", 288, 6);
    int n = 0;
    for (int i = 0; i < embedded_count(); i++) {
        const char *path = embedded_name(i);
        if (strncmp(path, "models/objectives/", 18)) continue;
        const char *file =
            write_file(all.arena, path + 18,
                       arena_printf(all.arena,
                                    "use \"%s\"\nbase = auto\n"
                                    "adapter pref = lora(rank = 4) on all_linear\n"
                                    "policy = base + pref\nreference = base\ntrain pref\n",
                                    path + 7));
        collect(&all, file, model, "sm_80");
        n++;
    }
    assert_true(n > 20);
    const int bad = compile_all(&all, "sm_80");
    arena_free(all.arena);
    assert_int_equal(bad, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_families), cmocka_unit_test(test_wide),
                                       cmocka_unit_test(test_objectives)};
    if (!nvrtc_load()) {
        puts("libnvrtc is not installed");
        return 77;
    }
    if (!mkdtemp(work)) return 1;
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    char command[100];
    snprintf(command, sizeof command, "rm -r %s", work);
    return system(command) == 0 ? rc : 1;
}
