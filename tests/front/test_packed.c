/* test_packed.c: a checkpoint that bitsandbytes quantized, seen by the front end: formats come from
 * the file, or from config.json where that is all there is; a `quantize` line must agree. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "check.h"

#define LINEAR "model.layers[*].**.*_proj"

static const WeightInfo *weight_of(const Unit *u, const char *tensor) {
    for (int i = 0; i < u->nweights; i++)
        if (!strcmp(u->weights[i].tensor, tensor)) return &u->weights[i];
    die("no weight %s\n", tensor);
    return NULL;
}

static char *quantized(Arena *arena, const char *lines) {
    return replaced(arena, good, "train pref", arena_printf(arena, "train pref\n%s", lines));
}

/* Checks `lines` on a case; its q_proj, gate_proj and head have these formats (NULL: plain). */
static const char *set; /* --set, or NULL */
static void has(const char *model, const char *lines, const char *q, int64_t block, bool nested,
                const char *head) {
    Arena *arena = arena_new();
    CheckOptions o = {.model = model, .needs_model = true, .set = &set, .nset = set != NULL};
    Check c = check_ok(quantized(arena, lines), o);
    Unit *u = unit_new(c.arena, c.spec, target_by_name("sm_80"), UNIT_TRAIN);
    assert_true(unit_build(u));
    static const char *const names[] = {"model.layers.0.self_attn.q_proj.weight",
                                        "model.layers.0.mlp.gate_proj.weight"};
    for (int i = 0; i < 2; i++) {
        const WeightInfo *w = weight_of(u, names[i]);
        if (!w->format != !q || (q && (strcmp(w->format, q) || w->nested != nested ||
                                       w->block != (block ? block : w->cols))))
            die("%s of %s is %s(%lld, %d)\n", names[i], model, w->format ? w->format : "plain",
                (long long)w->block, w->nested);
    }
    const char *format = weight_of(u, "lm_head.weight")->format;
    assert_true(!format == !head && (!head || !strcmp(format, head)));
    assert_null(weight_of(u, "model.embed_tokens.weight")->format);
    arena_free(c.arena);
    arena_free(arena);
}

static void formats_come_from_the_file(void **state) {
    (void)state;
    has(CASES "/bnb_nf4", "", "nf4", 64, true, NULL);
    has(CASES "/bnb_fp4", "", "fp4", 64, false, NULL);
    has(CASES "/bnb_int8", "", "int8", 0, false, NULL);
    has(CASES "/bnb_nf4", "quantize base nf4(block = 64, double = true) on \"" LINEAR "\"", "nf4",
        64, true, NULL);
    has(CASES "/bnb_nf4", "quantize base int8(block = 20) on \"lm_head\"", "nf4", 64, true, "int8");
    has(CASES "/bnb_nf4", "quantize base bf16 on \"" LINEAR "\"", NULL, 0, false, NULL);
    has(CASES "/bnb_nf4",
        "quantize base bf16 on \"" LINEAR "\", nf4(block = 64, double = true) on \"" LINEAR "\"",
        "nf4", 64, true, NULL);
    set = "graph.quant=off";
    has(CASES "/bnb_nf4", "", NULL, 0, false, NULL);
    set = NULL;
}

static void refused(const char *model, const char *text, const char *says, const char *help) {
    Check c = check(text, (CheckOptions){.model = model, .needs_model = true});
    char *said = diags_json(c.diags);
    if (c.spec || !strstr(said, says) || !strstr(said, help)) die("%s\n", said);
    free(said);
    arena_free(c.arena);
}

static void lines_must_agree(void **state) {
    (void)state;
    static const char *const asked[] = {"nf4(block = 64)", "nf4(block = 32, double = true)",
                                        "fp4(block = 64, double = true)", "int8(block = 64)"};
    Arena *arena = arena_new();
    for (size_t i = 0; i < COUNT(asked); i++)
        refused(
            CASES "/bnb_nf4",
            quantized(arena, arena_printf(arena, "quantize base %s on \"" LINEAR "\"", asked[i])),
            "q_proj is quantized already, as nf4(block = 64, double = true)", "leave the line out");
    refused(CASES "/gqa", quantized(arena, "quantize base nf4(block = 63) on \"" LINEAR "\""),
            "block must be even", "");
    const char *full = replaced(arena, good, "train pref", "train base");
    full = replaced(arena, full, "adapter pref = lora(rank = 4, alpha = 8) on all_linear\n", "");
    full = replaced(arena, full, "base + pref", "base");
    full = replaced(arena, full, "reference = base", "reference = policy at start");
    refused(CASES "/bnb_nf4", full, "_proj.weight is quantized in",
            "take the unquantized checkpoint");
    arena_free(arena);
}

/* A directory with config.json alone. */
static const char *config_dir(const char *quantization) {
    static int n;
    Err err = {0};
    const char *dir = intern_printf("%s/packed%d", build_dir(), n++);
    const char *config = intern_printf(
        "{\"model_type\": \"llama\", \"hidden_size\": 8, \"intermediate_size\": 16, "
        "\"vocab_size\": "
        "11, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"rms_norm_eps\": 1e-5, "
        "\"rope_theta\": 1e4, \"quantization_config\": %s}",
        quantization);
    assert_true(dir_make(dir, &err));
    assert_true(file_write(intern_printf("%s/config.json", dir), config, strlen(config), &err));
    return dir;
}

static void formats_by_config_alone(void **state) {
    (void)state;
    static const struct {
        const char *config, *q, *gate;
        int64_t block;
        bool nested;
    } rows[] = {
        {"{\"load_in_4bit\": true}", "fp4", "fp4", 64, false},
        {"{\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true, \"bnb_4bit_quant_type\": "
         "\"nf4\", \"bnb_4bit_use_double_quant\": true}",
         "nf4", "nf4", 64, true},
        {"{\"load_in_4bit\": true, \"llm_int8_skip_modules\": [\"mlp\", \"lm_head\"]}", "fp4", NULL,
         64, false},
        {"{\"load_in_8bit\": true, \"load_in_4bit\": false}", "int8", "int8", 8, false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Check c = check_ok(good, (CheckOptions){.model = config_dir(rows[i].config)});
        Unit *u = unit_new(c.arena, c.spec, target_by_name("sm_80"), UNIT_TRAIN);
        assert_true(unit_build(u));
        const WeightInfo *q = weight_of(u, "model.layers.0.self_attn.q_proj.weight");
        const WeightInfo *gate = weight_of(u, "model.layers.0.mlp.gate_proj.weight");
        assert_non_null(q->format);
        assert_string_equal(q->format, rows[i].q);
        assert_int_equal(q->block, rows[i].block);
        assert_int_equal(q->nested, rows[i].nested);
        assert_true(!gate->format == !rows[i].gate);
        assert_null(weight_of(u, "lm_head.weight")->format);
        assert_null(weight_of(u, "model.embed_tokens.weight")->format);
        arena_free(c.arena);
    }
    refused(config_dir("{\"quant_method\": \"awq\", \"bits\": 4}"), good,
            "already quantized by awq", "only bitsandbytes");
    refused(config_dir("7"), good, "already quantized", "only bitsandbytes");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(formats_come_from_the_file),
                                       cmocka_unit_test(lines_must_agree),
                                       cmocka_unit_test(formats_by_config_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
