/* test_check.c: what check makes of good files: settings, variants, models, adapters, sources; and
 * of config.json in all its forms. */
#include "check.h"

/* ---- what a good file comes to --------------------------------------------------------------- */

static void settings_come_from_file_variant_and_options(void **state) {
    (void)state;
    const char *set[] = {"run.clip=0.5", "pref.rank=2", "dpo.beta=0.3", "run.schedule=cosine"};
    Check c = check_ok(good, (CheckOptions){.model = CASES "/gqa",
                                            .variant = "slower",
                                            .set = set,
                                            .nset = 4,
                                            .seed = "7",
                                            .memory = "2GiB",
                                            .is_cuda = true});
    assert_true(spec_num(c.spec, "run.lr") == 1e-7 && spec_num(c.spec, "run.batch") == 2);
    assert_true(spec_num(c.spec, "run.clip") == 0.5 && spec_num(c.spec, "run.beta2") == 0.999);
    assert_true(!spec_on(c.spec, "graph.fuse") && !spec_on(c.spec, "graph.slice") &&
                spec_on(c.spec, "graph.cse"));
    assert_true(spec_num(c.spec, "graph.memory") == 2147483648.0);
    assert_true(spec_num(c.spec, "run.seed") == 7 && spec_num(c.spec, "dpo.beta") == 0.3);
    assert_string_equal(spec_str(c.spec, "run.schedule"), "cosine");
    assert_string_equal(spec_str(c.spec, "graph.compute"), "bf16");
    assert_true(spec_given(c.spec, "run.clip") && !spec_given(c.spec, "run.beta1"));
    int n;
    const AdapterSpec *a = spec_adapters(c.spec, &n);
    assert_int_equal(n, 1);
    assert_int_equal(a->ntarget, 14);
    assert_int_equal(a->target[0].rank, 2);
    assert_true(a->target[0].alpha == 8 && a->trained);
    arena_free(c.arena);
}

static void variants_say_what_differs(void **state) {
    (void)state;
    Check c = check_ok(good, (CheckOptions){.model = CASES "/gqa", .variant = "small"});
    int n;
    const AdapterSpec *a = spec_adapters(c.spec, &n);
    assert_int_equal(a->ntarget, 2);
    assert_string_equal(a->target[1].tensor, "model.layers.1.self_attn.q_proj");
    const VariantSpec *v = spec_variants(c.spec, &n);
    assert_int_equal(n, 3);
    assert_string_equal(v[1].name, "slower");
    assert_int_equal(v[1].ndiffers, 4);
    assert_string_equal(v[1].differs[0], "run.lr = 1e-7");
    assert_string_equal(v[1].differs[3], "graph.slice = off");
    assert_string_equal(v[2].differs[0], "adapter pref");
    assert_false(v[0].same_loss);
    arena_free(c.arena);
}

/* Every argument of lora() is a setting, checked as such, for all clauses at once. */
static void adapters_answer_to_set(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *text = replaced(arena, good, "on all_linear",
                                "on all_linear, lora(rank = 2, alpha = 6) on \"q_proj\"");
    const char *set[] = {"pref.rank=3", "pref.rslora=true", "pref.init=gaussian", "pref.dora=on"};
    Check c = check_ok(text, (CheckOptions){.model = CASES "/gqa", .set = set, .nset = 4});
    int n;
    const AdapterSpec *a = spec_adapters(c.spec, &n);
    for (int i = 0; i < a->ntarget; i++) {
        const AdapterTarget *t = &a->target[i];
        AdapterMatrix m[3];
        assert_int_equal(t->rank, 3);
        assert_true(t->rslora && !strcmp(t->init, "gaussian"));
        assert_int_equal(adapter_matrices(t, m), 3);
        assert_true(m[0].start.init_num == 1.0 / 3); /* PEFT: N(0, 1/r^2) */
        assert_true(fabs(adapter_scale(t) - t->alpha / sqrt(3)) < 1e-15);
    }
    assert_true(spec_num(c.spec, "pref.dora") == 1);
    arena_free(c.arena);
    static const char *const wrong[][2] = {
        {"pref.init=eva", "pref.init can't be 'eva'"},
        {"pref.rank=0", "pref.rank is 0; it must lie between 1"},
        {"pref.rslora=2", "pref.rslora must be on or off"},
    };
    for (size_t i = 0; i < COUNT(wrong); i++) {
        c = check(text, (CheckOptions){.model = CASES "/gqa", .set = &wrong[i][0], .nset = 1});
        char *said = diags_json(c.diags);
        if (c.spec || !strstr(said, wrong[i][1])) die("%s: %s\n", wrong[i][0], said);
        free(said);
        arena_free(c.arena);
    }
    arena_free(arena);
}

/* PEFT has one use_rslora: where clauses differ, files have plain alphas of the same scales. */
static void mixed_scales_are_plain_alphas(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *text =
        replaced(arena, good, "on all_linear",
                 "on all_linear, lora(rank = 4, alpha = 6, rslora = true) on \"q_proj\"");
    Check c = check_ok(text, (CheckOptions){.model = CASES "/gqa"});
    json_t *all = json_loads(spec_adapter_json(c.spec), 0, NULL), *json = json_array_get(all, 0);
    assert_false(json_is_true(json_object_get(json, "rslora")));
    json_t *alphas = json_object_get(json, "alpha_pattern"), *value;
    const char *key;
    double first = json_number_value(json_object_get(json, "alpha"));
    int rs = 0;
    for (int i = 0; i < 2; i++) {
        key = i ? "model.layers.1.self_attn.q_proj" : "model.layers.0.self_attn.q_proj";
        value = json_object_get(alphas, key);
        rs += fabs((value ? json_number_value(value) : first) - 12) < 1e-12; /* 4 * 6 / sqrt 4 */
    }
    assert_int_equal(rs, 2);
    json_decref(all);
    arena_free(c.arena);
    arena_free(arena);
}

static void last_clause_wins(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *text =
        replaced(arena, good, "on all_linear",
                 "on all_linear, lora(rank = 2, alpha = 6) on \"layers[1].**.{q,k}_proj\"");
    Check c = check_ok(text, (CheckOptions){.model = CASES "/gqa"});
    int n, small = 0;
    const AdapterSpec *a = spec_adapters(c.spec, &n);
    for (int i = 0; i < a->ntarget; i++) {
        const AdapterTarget *t = &a->target[i];
        bool inner = !strcmp(t->tensor, "model.layers.1.self_attn.q_proj") ||
                     !strcmp(t->tensor, "model.layers.1.self_attn.k_proj");
        assert_int_equal(t->rank, inner ? 2 : 4);
        assert_true(t->alpha == (inner ? 6 : 8));
        small += inner;
    }
    assert_int_equal(small, 2);
    json_t *json = json_loads(spec_adapter_json(c.spec), 0, NULL);
    json_t *ranks = json_object_get(json_array_get(json, 0), "rank_pattern");
    assert_int_equal(json_object_size(ranks), 2);
    json_decref(json);
    arena_free(c.arena);
    arena_free(arena);
}

static void sources_of_weights(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *text = replaced(arena, good, "reference = base", "reference = policy at start");
    const char *adapter[] = {"pref=" CASES "/gqa/adapter"};
    Check c =
        check_ok(text, (CheckOptions){.model = CASES "/gqa", .adapter = adapter, .nadapter = 1});
    int n;
    const Source *s = spec_sources(c.spec, &n);
    assert_int_equal(n, 3);
    assert_string_equal(s[0].name, "base");
    assert_string_equal(s[1].name, "pref");
    assert_string_equal(s[2].name, "pref@start");
    assert_string_equal(s[2].dir, CASES "/gqa/adapter");
    assert_true(s[2].adapter && !s[0].adapter);
    arena_free(c.arena);
    text = replaced(arena, good, "reference = base", "reference = llama from \"" CASES "/biases\"");
    c = check(text,
              (CheckOptions){.model = CASES "/gqa",
                             .needs_model = true}); /* beside the file there is no such directory */
    assert_null(c.spec);
    arena_free(c.arena);
    arena_free(arena);
}

static void an_adapter_must_fit_its_directory(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *adapter[] = {CASES "/gqa/adapter"};
    const char *text = replaced(arena, good, "rank = 4", "rank = 8");
    Check c = check(text, (CheckOptions){.model = CASES "/gqa", .adapter = adapter, .nadapter = 1});
    assert_null(c.spec);
    arena_free(c.arena);
    text = replaced(arena, good, "lora(rank = 4, alpha = 8) on all_linear", "load \"x\"");
    c = check_ok(text, (CheckOptions){.model = CASES "/gqa", .adapter = adapter, .nadapter = 1});
    int n;
    const AdapterSpec *a = spec_adapters(c.spec, &n);
    assert_int_equal(a->ntarget, 14);
    assert_int_equal(a->target[0].rank, 4);
    assert_true(spec_num(c.spec, "pref.alpha") == 8);
    arena_free(c.arena);
    arena_free(arena);
}

static void patterns(void **state) {
    (void)state;
    /* through the public face: which q, k, v, o of two layers a pattern selects */
    const struct {
        const char *pattern;
        int count;
    } rows[] = {{"q_proj", 2},
                {"*_proj", 14},
                {"self_attn.*", 8},
                {"{q,v}_proj", 4},
                {"layers[0].**", 7},
                {"layers[0..1].**", 7},
                {"layers[*].mlp.*", 6},
                {"layers.0.mlp.up_proj", 1},
                {"**.up_proj", 2},
                {"model.**.o_proj", 2},
                {"model.layers[*].**.*_proj", 14},
                {"mlp.{up,down}_*", 4},
                {"lm_head", 1},
                {"lm_*", 1},
                {"layers[1].*.{q,k,v}_proj", 3}};
    Arena *arena = arena_new();
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *text =
            replaced(arena, good, "all_linear", arena_printf(arena, "\"%s\"", rows[i].pattern));
        Check c = check_ok(text, (CheckOptions){.model = CASES "/gqa"});
        int n;
        const AdapterSpec *a = spec_adapters(c.spec, &n);
        if (a->ntarget != rows[i].count)
            die("%s selects %d, not %d\n", rows[i].pattern, a->ntarget, rows[i].count);
        arena_free(c.arena);
    }
    arena_free(arena);
}

static void quantized_weights(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *text = replaced(arena, good, "train pref",
                                "train pref\nquantize base nf4(block = 64, double = true) on "
                                "all_linear, int8(block = 32) on \"o_proj\"");
    Check c = check_ok(text, (CheckOptions){.model = CASES "/gqa"});
    Unit *u = unit_new(c.arena, c.spec, target_by_name("cpu"), UNIT_TRAIN);
    assert_true(unit_build(u));
    int nf4 = 0, int8 = 0;
    for (int i = 0; i < u->nweights; i++) {
        const WeightInfo *w = &u->weights[i];
        if (!w->format) continue;
        bool four = !strcmp(w->format, "nf4");
        assert_int_equal(w->block, four ? 64 : 32);
        assert_int_equal(w->nested, four);
        nf4 += four;
        int8 += !four;
    }
    assert_int_equal(nf4, 12);
    assert_int_equal(int8, 2);
    arena_free(c.arena);
    arena_free(arena);
}

static void full_fine_tuning(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *text = replaced(arena, good, "policy = base + pref", "policy = base");
    text = replaced(arena, text, "reference = base", "reference = policy at start");
    text = replaced(arena, text, "train pref", "train base");
    Check c = check_ok(text, (CheckOptions){.model = CASES "/mha_tied"});
    assert_true(spec_trains_base(c.spec));
    Unit *u = unit_new(c.arena, c.spec, target_by_name("cpu"), UNIT_TRAIN);
    assert_true(unit_build(u));
    int64_t numbers = 0;
    for (int i = 0; i < u->ntrained; i++) numbers += u->trained[i].rows * u->trained[i].cols;
    for (int i = 0; i < u->nweights; i++) assert_string_equal(u->weights[i].source, "base@start");
    assert_int_equal(u->ntrained, u->nweights); /* the tied head is one leaf in both */
    int64_t frozen = 0;
    for (int i = 0; i < u->nweights; i++) frozen += u->weights[i].rows * u->weights[i].cols;
    assert_int_equal(numbers, frozen);
    arena_free(c.arena);
    arena_free(arena);
}

static void a_file_of_layers_is_a_policy(void **state) {
    (void)state;
    const char *adapter[] = {CASES "/gqa/adapter"};
    CheckOptions o = {.file = "models/llama3.dpo",
                      .model = CASES "/gqa",
                      .adapter = adapter,
                      .nadapter = 1,
                      .needs_model = true};
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    Spec *spec = check_file(arena, diags, &o);
    assert_non_null(spec);
    Unit *u = unit_new(arena, spec, target_by_name("cpu"), UNIT_PREFILL);
    assert_true(unit_build(u));
    assert_int_equal(u->nweights, 21 + 28);
    assert_int_equal(u->ntrained, 0);
    arena_free(arena);
}

/* A model directory with this config.json alone. */
static const char *config_dir(const char *name, const char *config) {
    Err err = {0};
    const char *dir = intern_printf("%s/%s", build_dir(), name);
    assert_true(dir_make(dir, &err));
    assert_true(file_write(intern_printf("%s/config.json", dir), config, strlen(config), &err));
    return dir;
}

static const char small_config[] =
    "\"model_type\": \"llama\", \"hidden_size\": 8, \"intermediate_size\": 16, \"vocab_size\": 11,"
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"num_key_value_heads\": null, "
    "\"head_dim\": null";

static void config_json_may_be_odd(void **state) {
    (void)state;
    const struct {
        const char *config, *message; /* NULL: accepted */
    } rows[] = {
        {"{%s}", NULL}, /* null counts as absent */
        {"{%s, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}}", NULL},
        {"{%s, \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 2.0}}",
         "scaling 'yarn' is not built"},
        {"{%s, \"rope_scaling\": {\"rope_type\": \"llama3\"}}", "has no number 'factor'"},
        {"{%s, \"rope_scaling\": 3}", "scaling must be a record or none"},
        {"{%s, \"rope_theta\": \"x\"}", "theta must be a number"},
        {"{%s, \"hidden_act\": \"gelu\"}", "knows the activation silu only"},
        {"{%s, \"attention_bias\": 1}", "must be true or false, not a number"},
        {"{%s, \"hidden_size\": 9}", "duplicate"},
        {"{%s, \"quantization_config\": {\"quant_method\": \"gptq\"}}",
         "already quantized by gptq"},
        {"{\"x\": [%s}", "config.json:1"},
        {"[1]", "not a JSON object"},
        {"{}", "has no model_type"},
        {"{\"model_type\": \"gpt9\"}", "no model is `for"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Text config = {0};
        const char *at = strstr(rows[i].config, "%s");
        size_t before = at ? (size_t)(at - rows[i].config) : strlen(rows[i].config);
        text_addn(&config, rows[i].config, before);
        if (at) text_add(&config, "%s%s", small_config, at + 2);
        Check c = check(
            good, (CheckOptions){.model = config_dir("config", config.data), .variant = "slow"});
        char *said = diags_json(c.diags);
        if (!rows[i].message && !c.spec) die("%s: %s\n", config.data, said);
        if (rows[i].message && (c.spec || !strstr(said, rows[i].message)))
            die("%s: %s\n", config.data, said);
        free(said);
        text_free(&config);
        arena_free(c.arena);
    }
}

static void a_variant_may_use_files(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *text = arena_printf(arena, "%svariant ipo { use \"objectives/ipo.dpo\" }\n", good);
    Check c = check_ok(text, (CheckOptions){.model = CASES "/gqa", .variant = "ipo"});
    assert_true(spec_num(c.spec, "ipo.beta") == 0.1);
    arena_free(c.arena);
    c = check_ok(text, (CheckOptions){.model = CASES "/gqa"}); /* the file itself stays as it is */
    assert_true(spec_num(c.spec, "dpo.beta") == 0.1 && spec_num(c.spec, "ipo.beta") == 0);
    arena_free(c.arena);
    arena_free(arena);
}

static void the_reference_may_be_another_checkpoint(void **state) {
    (void)state;
    Arena *arena = arena_new();
    char *here = realpath(CASES "/llama3_rope", NULL);
    const char *text = replaced(arena, good, "reference = base",
                                arena_printf(arena, "reference = llama from \"%s\"", here));
    Check c = check_ok(text, (CheckOptions){.model = CASES "/gqa"});
    int n;
    const Source *s = spec_sources(c.spec, &n);
    assert_int_equal(n, 3);
    assert_string_equal(s[1].name, arena_printf(arena, "base:%s", here));
    assert_string_equal(s[1].dir, here);
    Unit *u = unit_new(c.arena, c.spec, target_by_name("cpu"), UNIT_TRAIN);
    assert_true(unit_build(u));
    int other = 0;
    for (int i = 0; i < u->nweights; i++) other += !strcmp(u->weights[i].source, s[1].name);
    assert_int_equal(other, 21);
    assert_int_equal(u->nweights, 42);
    free(here);
    arena_free(c.arena);
    arena_free(arena);
}

static void settings_can_be_printed(void **state) {
    (void)state;
    for (int json = 0; json < 2; json++) {
        char *text = NULL;
        size_t len;
        FILE *f = open_memstream(&text, &len);
        settings_print(f, json);
        fclose(f);
        assert_non_null(strstr(text, "graph.prefix"));
        json_t *list = json ? json_loads(text, 0, NULL) : NULL;
        assert_true(!json || json_array_size(list) > 40);
        json_decref(list);
        free(text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(settings_come_from_file_variant_and_options),
        cmocka_unit_test(variants_say_what_differs),
        cmocka_unit_test(last_clause_wins),
        cmocka_unit_test(adapters_answer_to_set),
        cmocka_unit_test(mixed_scales_are_plain_alphas),
        cmocka_unit_test(sources_of_weights),
        cmocka_unit_test(an_adapter_must_fit_its_directory),
        cmocka_unit_test(patterns),
        cmocka_unit_test(quantized_weights),
        cmocka_unit_test(full_fine_tuning),
        cmocka_unit_test(a_file_of_layers_is_a_policy),
        cmocka_unit_test(config_json_may_be_odd),
        cmocka_unit_test(a_variant_may_use_files),
        cmocka_unit_test(the_reference_may_be_another_checkpoint),
        cmocka_unit_test(settings_can_be_printed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
