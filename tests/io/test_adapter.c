/* PEFT directories: what is written reads back, in PEFT's names and keys; what does not fit the
 * program or is another kind of adapter is refused by name. */
#include "runtime/io/adapter.h"
#include "tests/io/io.h"

#include <jansson.h>
#include <math.h>

#define Q "model.layers.0.self_attn.q_proj"
#define D "model.layers.1.mlp.down_proj"
static const char plan_json[] =
    "[{\"name\":\"pref\",\"r\":2,\"alpha\":4,\"dropout\":0.5,\"rslora\":false,\"init\":\"kaiming\","
    "\"targets\":[\"" Q "\",\"" D "\"],\"rank_pattern\":{\"" D "\":3},\"alpha_pattern\":{\"" D
    "\":7.5}}]";

static Adapter *the_adapter(Arena *arena) {
    Err err = {0};
    int n;
    Adapter *a = adapters_parse(arena, plan_json, &n, &err);
    if (!a) fail_msg("%s", err.text);
    assert_int_equal(n, 1);
    return a;
}

static float value(int i, int64_t k) {
    return (float)(i + 1) * 0.25f + (float)k;
}

/* Writes the adapter of plan_json with known values. */
static char *write_it(Arena *arena, const Adapter *a, DType dtype) {
    static const char *const names[] = {Q ".lora_A.weight", Q ".lora_B.weight", D ".lora_A.weight",
                                        D ".lora_B.weight"};
    static const int64_t shape[4][2] = {{2, 8}, {6, 2}, {3, 5000}, {8, 3}};
    AdapterTensor t[4];
    for (int i = 0; i < 4; i++) {
        int64_t n = shape[i][0] * shape[i][1];
        float *x = NEW_ARRAY(arena, float, n);
        for (int64_t k = 0; k < n; k++) x[k] = value(i, k % 64);
        t[i] = (AdapterTensor){names[i], 2, shape[i][0], shape[i][1], x, false, NULL};
    }
    Err err = {0};
    char *dir = scratch_printf("%s/run/adapter", scratch_dir());
    if (!adapter_write(dir, a, t, 4, dtype, NULL, &err)) fail_msg("%s", err.text);
    return dir;
}

static void round_trip(void **state) {
    Arena *arena = arena_new();
    Adapter *a = the_adapter(arena);
    a->base = "some/model";
    assert_int_equal(adapter_rank(a, Q), 2);
    assert_int_equal(adapter_rank(a, D), 3);
    assert_true(adapter_alpha(a, Q) == 4 && adapter_alpha(a, D) == 7.5);
    static const DType dtypes[] = {DT_f32, DT_bf16, DT_f16};
    for (int k = 0; k < 3; k++) {
        Err err = {0};
        char *dir = write_it(arena, a, dtypes[k]);
        if (!adapter_check(a, dir, &err)) fail_msg("%s", err.text);
        Checkpoint *c = checkpoint_open(dir, "adapter_model", &err);
        const SafeTensor *t = checkpoint_find(c, ADAPTER_PREFIX D ".lora_A.weight", NULL);
        float x[64];
        assert_int_equal(t->shape[1], 5000);
        assert_true(safe_read_f32(t, 64 * 200, 64, x, &err));
        for (int i = 0; i < 64; i++)
            assert_true(x[i] == value(2, i)); /* exact in all three types */
        assert_string_equal(safe_metadata(t->file, "format"), "pt");
        checkpoint_close(c);
        assert_true(file_exists(scratch_printf("%s/README.md", dir)));
        Adapter *b = adapter_read(arena, dir, &err);
        assert_true(b->r == 2 && b->alpha == 4 && b->dropout == 0.5 && !b->rslora);
        assert_string_equal(b->base, "some/model");
        assert_int_equal(b->ntargets, 2);
        assert_string_equal(b->targets[1], D);
        assert_int_equal(adapter_rank(b, D), 3);
    }
    arena_free(arena);
}

/* The keys that all PEFT versions know, and nothing else. */
static void config_keys(void **state) {
    static const char *const keys[] = {"alpha_pattern",
                                       "auto_mapping",
                                       "base_model_name_or_path",
                                       "bias",
                                       "fan_in_fan_out",
                                       "inference_mode",
                                       "init_lora_weights",
                                       "layer_replication",
                                       "layers_pattern",
                                       "layers_to_transform",
                                       "loftq_config",
                                       "lora_alpha",
                                       "lora_dropout",
                                       "megatron_config",
                                       "megatron_core",
                                       "modules_to_save",
                                       "peft_type",
                                       "r",
                                       "rank_pattern",
                                       "revision",
                                       "target_modules",
                                       "task_type",
                                       "use_dora",
                                       "use_rslora"};
    Arena *arena = arena_new();
    Adapter *a = the_adapter(arena);
    a->chosen = (AdapterNames){.name = (const char *[]){"q_proj", "down_proj"}, .n = 2};
    json_t *root = json_load_file(
        scratch_printf("%s/adapter_config.json", write_it(arena, a, DT_f32)), 0, NULL);
    assert_int_equal(json_object_size(root), COUNT(keys));
    for (size_t i = 0; i < COUNT(keys); i++) assert_non_null(json_object_get(root, keys[i]));
    assert_true(json_is_null(json_object_get(root, "base_model_name_or_path")));
    assert_true(json_is_true(json_object_get(root, "inference_mode")));
    assert_string_equal(
        json_string_value(json_array_get(json_object_get(root, "target_modules"), 0)), "q_proj");
    json_decref(root);
    arena_free(arena);
}

/* PEFT's rule for the patterns' keys. */
static void patterns(void **state) {
    AdapterPattern p[] = {{"q_proj", 4}, {"layers\\.[01]\\..*k_proj", 5}, {"(", 6}};
    Adapter a = {.r = 8, .rank = p, .nrank = 3};
    assert_int_equal(adapter_rank(&a, "model.layers.0.self_attn.q_proj"), 4);
    assert_int_equal(adapter_rank(&a, "model.layers.0.self_attn.xq_proj"), 8);
    assert_int_equal(adapter_rank(&a, "model.layers.1.self_attn.k_proj"), 5);
    assert_int_equal(adapter_rank(&a, "model.layers.2.self_attn.k_proj"), 8);
}

/* What training holds otherwise than PEFT's files: transposed matrices; PiSSA, whose B A less the
 * B0 A0 that the base lost is a plain LoRA of twice the rank and the same scale. */
static void held_otherwise(void **state) {
    static const float a[6] = {1, 2, 3, 4, 5, 6}, a0[6] = {-1, 7, 2, -3, 5, 9}; /* [2, 3] */
    static const float bt[4] = {10, 20, 30, 40}, bt0[4] = {1, 2, 3, 4}; /* [2, 2], transposed */
    static const char json[] =
        "[{\"name\":\"p\",\"r\":2,\"alpha\":6,\"rslora\":true,\"pissa\":true,\"targets\":[\"x\"],"
        "\"rank_pattern\":{},\"alpha_pattern\":{}}]";
    Arena *arena = arena_new();
    Err err = {0};
    int n;
    Adapter *p = adapters_parse(arena, json, &n, &err);
    AdapterTensor t[2] = {{"x.lora_A.weight", 2, 2, 3, a, false, a0},
                          {"x.lora_B.weight", 2, 2, 2, bt, true, bt0}};
    char *dir = scratch_dir();
    assert_true(adapter_write(dir, p, t, 2, DT_f32, NULL, &err));
    Adapter *q = adapter_read(arena, dir, &err);
    if (!q) fail_msg("%s", err.text);
    assert_int_equal(q->r, 4);
    assert_true(q->rslora && fabs(q->alpha / sqrt(4) - 6 / sqrt(2)) < 1e-14);
    Checkpoint *c = checkpoint_open(dir, "adapter_model", &err);
    float A[12], B[8];
    assert_true(safe_read_f32(adapter_tensor(q, c, "x", ADAPTER_A), 0, 12, A, &err));
    assert_true(safe_read_f32(adapter_tensor(q, c, "x", ADAPTER_B), 0, 8, B, &err));
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++) {
            float want = 0, got = 0;
            for (int k = 0; k < 2; k++) want += bt[2 * k + i] * a[3 * k + j];
            for (int k = 0; k < 2; k++) want -= bt0[2 * k + i] * a0[3 * k + j];
            for (int k = 0; k < 4; k++) got += B[4 * i + k] * A[3 * k + j];
            assert_true(want == got); /* whole numbers: exact */
        }
    checkpoint_close(c);
    arena_free(arena);
}

/* PEFT's rules for target_modules and what goes with it (check_target_module_exists). */
static void selection(void **state) {
    static const struct {
        const char *config, *module;
        bool selected;
    } cases[] = {
        {"\"target_modules\":[\"q_proj\"]", "model.layers.0.self_attn.q_proj", true},
        {"\"target_modules\":[\"q_proj\"]", "model.layers.0.self_attn.xq_proj", false},
        {"\"target_modules\":[\"self_attn.q_proj\"]", "model.layers.0.self_attn.q_proj", true},
        {"\"target_modules\":[\"attn.q_proj\"]", "model.layers.0.self_attn.q_proj", false},
        {"\"target_modules\":[\"lm_head\"]", "lm_head", true},
        {"\"target_modules\":\".*layers\\\\.[01]\\\\..*(q|v)_proj\"", "model.layers.1.a.v_proj",
         true},
        {"\"target_modules\":\".*layers\\\\.[01]\\\\..*(q|v)_proj\"", "model.layers.1.a.v_projx",
         false},
        {"\"target_modules\":\".*layers\\\\.[01]\\\\..*(q|v)_proj\"", "model.layers.2.a.v_proj",
         false},
        {"\"target_modules\":\"q|.*q_proj\"", "model.layers.2.a.q_proj", true},
        {"\"target_modules\":\"ALL-linear\"", "model.layers.2.a.v_proj", true},
        {"\"target_modules\":null", "model.layers.2.self_attn.v_proj", true},
        {"\"target_modules\":null", "model.layers.2.self_attn.k_proj", false},
        {"\"target_modules\":[\"q\"],\"layers_to_transform\":2", "model.layers.2.q", true},
        {"\"target_modules\":[\"q\"],\"layers_to_transform\":[1,12]", "model.layers.2.q", false},
        {"\"target_modules\":[\"q\"],\"layers_to_transform\":[1,12]", "model.layers.12.x.3.q",
         true},
        {"\"target_modules\":[\"q\"],\"layers_to_transform\":[3]", "model.layers.12.x.3.q", false},
        {"\"target_modules\":[\"q\"],\"layers_to_transform\":[3],\"layers_pattern\":\"x\"",
         "model.layers.12.x.3.q", true},
        {"\"target_modules\":[\"q\"],\"layers_to_transform\":[3],\"layers_pattern\":[\"h\","
         "\"layers\"]",
         "layers.3.q", true},
        {"\"target_modules\":[\"q\"],\"layers_to_transform\":[2]",
         "model.layers.99999999999999999999.q", false},
        {"\"target_modules\":[\"q\"],\"layers_to_transform\":[0]", "lm.q", false},
        {"\"target_modules\":[\"lm.q\"],\"layers_to_transform\":[0]", "lm.q", true},
        {"\"target_modules\":[\"q\"],\"layers_to_transform\":[]", "lm.q", true},
        {"\"target_modules\":[\"q\"],\"exclude_modules\":[\"0.q\"]", "model.layers.0.q", false},
        {"\"target_modules\":[\"q\"],\"exclude_modules\":\".*0.*\"", "model.layers.0.q", false},
        {"\"target_modules\":[\"q\"],\"exclude_modules\":\".*0\"", "model.layers.0.q", true},
    };
    Arena *arena = arena_new();
    Adapter *a = the_adapter(arena);
    for (size_t i = 0; i < COUNT(cases); i++) {
        /* one module of that name, rank 2; whether it is read says whether it is selected */
        Err err = {0};
        float x[4] = {1, 2, 3, 4};
        AdapterTensor t[2] = {
            {scratch_printf("%s.lora_A.weight", cases[i].module), 2, 2, 2, x, false, NULL},
            {scratch_printf("%s.lora_B.weight", cases[i].module), 2, 2, 2, x, false, NULL}};
        char *dir = scratch_printf("%s/one", scratch_dir());
        assert_true(adapter_write(dir, a, t, 2, DT_f32, NULL, &err));
        char *config = scratch_printf("{\"peft_type\":\"LORA\",\"r\":2,%s}", cases[i].config);
        scratch_write(dir, "adapter_config.json", config, strlen(config));
        Adapter *b = adapter_read(arena, dir, &err);
        if ((b != NULL) != cases[i].selected)
            fail_msg("%s of %s: %s", cases[i].module, config, err.text);
        if (!b) assert_non_null(strstr(err.text, "does not select"));
    }
    arena_free(arena);
}

/* Rewrites one key of a written directory's config. */
static void set_key(const char *dir, const char *key, const char *json) {
    char *path = scratch_printf("%s/adapter_config.json", dir);
    json_t *root = json_load_file(path, 0, NULL), *v = json_loads(json, JSON_DECODE_ANY, NULL);
    assert_non_null(v);
    json_object_set_new(root, key, v);
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
}

static const struct {
    const char *key, *json, *said;
    int code;
} refusals[] = {
    {"peft_type", "\"IA3\"", "\"IA3\"", EXIT_IO},
    {"peft_type", "null", "peft_type", EXIT_IO},
    {"use_dora", "true", "lora_magnitude_vector", EXIT_IO},
    {"modules_to_save", "[\"lm_head\"]", "modules_to_save", EXIT_IO},
    {"bias", "\"all\"", "\"bias\"", EXIT_IO},
    {"fan_in_fan_out", "true", "fan_in_fan_out", EXIT_IO},
    {"init_lora_weights", "\"pissa\"", "pissa", EXIT_IO},
    {"layer_replication", "[[0,1]]", "layer_replication", EXIT_IO},
    {"r", "0", "\"r\"", EXIT_IO},
    {"r", "2.5", "\"r\"", EXIT_IO},
    {"target_modules", "[1]", "target_modules", EXIT_IO},
    {"target_modules", "[\"q_proj\"]", "down_proj", EXIT_IO},
    {"target_modules", "\".*(proj\"", "character", EXIT_IO},
    {"exclude_modules", "[\"down_proj\"]", "down_proj", EXIT_IO},
    {"layers_to_transform", "\"all\"", "layers_to_transform", EXIT_IO},
    {"rank_pattern", "{}", "rank 2", EXIT_IO},
    {"rank_pattern", "{\"x\":\"y\"}", "rank_pattern", EXIT_IO},
    {"lora_alpha", "16", "set pref.alpha=16", EXIT_INPUT},
    {"use_rslora", "true", "pref.rslora", EXIT_INPUT},
};

static void refused(void **state) {
    Arena *arena = arena_new();
    Adapter *a = the_adapter(arena);
    for (size_t i = 0; i < COUNT(refusals); i++) {
        Err err = {0};
        char *dir = write_it(arena, a, DT_f32);
        set_key(dir, refusals[i].key, refusals[i].json);
        assert_false(adapter_check(a, dir, &err));
        if (err.code != refusals[i].code || !strstr(err.text, refusals[i].said))
            fail_msg("%zu: %s", i, err.text);
        assert_non_null(strstr(err.text, dir));
    }
    char *dir = write_it(arena, a, DT_f32);
    Err err = {0};
    a->rank[0].value = 4; /* the file has 3 */
    assert_false(adapter_check(a, dir, &err));
    assert_non_null(strstr(err.text, "set pref.rank=3"));
    a->rank[0].value = 3;
    err = (Err){0};
    a->ntargets = 1; /* the file has one more */
    assert_false(adapter_check(a, dir, &err));
    assert_non_null(strstr(err.text, D));
    a->ntargets = 2;
    err = (Err){0};
    a->targets[0] = "model.layers.9.self_attn.q_proj"; /* the file lacks it */
    assert_false(adapter_check(a, dir, &err));
    assert_non_null(strstr(err.text, "layers.9"));
    err = (Err){0};
    assert_false(adapter_check(a, "/nonexistent", &err));
    assert_int_equal(err.code, EXIT_IO);
    err = (Err){0};
    scratch_write(dir, "adapter_config.json", "{\"r\":", 5);
    assert_false(adapter_check(a, dir, &err));
    assert_non_null(strstr(err.text, "adapter_config.json:1"));
    static const char *const bad[] = {"", "{}", "[1]", "[{\"name\":\"x\"}]",
                                      "[{\"name\":\"x\",\"r\":1,\"targets\":[2]}]"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        int n;
        err = (Err){0};
        assert_null(adapters_parse(arena, bad[i], &n, &err));
        assert_int_equal(err.code, EXIT_INPUT);
    }
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),     cmocka_unit_test(config_keys),
        cmocka_unit_test(held_otherwise), cmocka_unit_test(patterns),
        cmocka_unit_test(selection),      cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
