/* GGUF adapters, byte by byte: the header as the format's page says, tensors from the next multiple
 * of 32 on, B of q and k with rows reordered for Llama and not for Qwen2, one alpha for modules of
 * other scales; what llama.cpp does not take
 * is refused.  (The same files were read back by the Python package `gguf` and by hand.) */
#include "runtime/io/gguf.h"
#include "tests/io/io.h"

#include <math.h>

#define Q "model.layers.1.self_attn.q_proj"
#define U "model.layers.0.mlp.up_proj"

static float a_value(int64_t i) {
    return (float)i * 0.5f - 2;
}
static float b_value(int64_t i) {
    return 1 + (float)i;
}

/* q [8, 3]: two heads of size 4, rank 1; up [2, 3], rank 2. */
static char *make_adapter(const char *config) {
    char *dir = scratch_printf("%s/adapter", scratch_dir());
    static const char *const names[] = {Q ".lora_A.weight", Q ".lora_B.weight", U ".lora_A.weight",
                                        U ".lora_B.weight"};
    static const int64_t shape[4][2] = {{1, 3}, {8, 1}, {2, 3}, {2, 2}};
    static float a[6], b[8];
    for (int i = 0; i < 6; i++) a[i] = a_value(i);
    for (int i = 0; i < 8; i++) b[i] = b_value(i);
    AdapterTensor t[4];
    for (int i = 0; i < 4; i++)
        t[i] = (AdapterTensor){.name = names[i],
                               .rank = 2,
                               .rows = shape[i][0],
                               .cols = shape[i][1],
                               .data = i % 2 ? b : a};
    const Adapter any = {.name = "x", .r = 1, .alpha = 1};
    Err err = {0};
    if (!adapter_write(dir, &any, t, 4, DT_f32, NULL, &err)) fail_msg("%s", err.text);
    scratch_write(dir, "adapter_config.json", config, strlen(config));
    return dir;
}

static char *make_base(const char *type, const char *more) {
    char *dir = scratch_dir();
    char *config = scratch_printf(
        "{\"model_type\":\"%s\",\"num_attention_heads\":2,\"num_key_value_heads\":1%s}", type,
        more);
    scratch_write(dir, "config.json", config, strlen(config));
    return dir;
}

#define PLAIN                                                                                      \
    "{\"peft_type\":\"LORA\",\"r\":1,\"lora_alpha\":3,\"target_modules\":[\"q_proj\",\"up_proj\"]" \
    ","                                                                                            \
    "\"rank_pattern\":{\"up_proj\":2}}"

/* ---- what is expected, written down by the format's rules --------------------------------- */
static unsigned char want[4096];
static size_t nwant;
static void put(const void *data, size_t n) {
    memcpy(want + nwant, data, n);
    nwant += n;
}
static void put32(uint32_t x) {
    put(&x, 4); /* little-endian hosts, as all we build on */
}
static void put64(uint64_t x) {
    put(&x, 8);
}
static void put_text(const char *s) {
    put64(strlen(s));
    put(s, strlen(s));
}
static void put_key(const char *key, const char *value) {
    put_text(key);
    put32(8);
    put_text(value);
}
static void align(void) {
    while (nwant % 32) want[nwant++] = 0;
}
static void put_info(const char *name, uint64_t fastest, uint64_t rows, uint32_t type,
                     uint64_t at) {
    put_text(name);
    put32(2);
    put64(fastest);
    put64(rows);
    put32(type);
    put64(at);
}

static void head(const char *architecture, float alpha, uint32_t type) {
    nwant = 0;
    memset(want, 0, sizeof want);
    put("GGUF", 4);
    put32(3);
    put64(4);
    put64(4);
    put_key("general.architecture", architecture);
    put_key("general.type", "adapter");
    put_key("adapter.type", "lora");
    put_text("adapter.lora.alpha");
    put32(6);
    put(&alpha, 4);
    /* each tensor fits 32 bytes */
    put_info("blk.0.ffn_up.weight.lora_a", 3, 2, type, 0);
    put_info("blk.0.ffn_up.weight.lora_b", 2, 2, type, 32);
    put_info("blk.1.attn_q.weight.lora_a", 3, 1, type, 64);
    put_info("blk.1.attn_q.weight.lora_b", 1, 8, type, 96);
    align();
}

static void check_file(const char *adapter, const char *base, DType dtype) {
    Err err = {0};
    char *path = scratch_printf("%s/a.gguf", scratch_dir());
    if (!gguf_lora_write(adapter, base, path, dtype, &err)) fail_msg("%s", err.text);
    size_t n;
    unsigned char *got = (unsigned char *)file_read(path, &n, &err);
    assert_int_equal(n, nwant);
    assert_memory_equal(got, want, n);
    free(got);
}

/* Rows of a head of four pair i with i + 2 here and with its neighbour there: 0 2 1 3. */
static const int order[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 2, 1, 3, 4, 6, 5, 7}};

static void bytes(void **state) {
    static const struct {
        const char *type, *architecture;
        int reordered;
    } families[] = {{"llama", "llama", 1},
                    {"mistral", "llama", 1},
                    {"qwen2", "qwen2", 0},
                    {"qwen3", "qwen3", 0}};
    char *adapter = make_adapter(PLAIN);
    for (size_t f = 0; f < COUNT(families); f++) {
        /* up comes first, with rank 2 and alpha 3, which is the file's; q's is 3 too: no factor */
        head(families[f].architecture, 3, 0);
        for (int i = 0; i < 6; i++) put(&(float){a_value(i)}, 4);
        align();
        for (int i = 0; i < 4; i++) put(&(float){b_value(i)}, 4);
        align();
        for (int i = 0; i < 3; i++) put(&(float){a_value(i)}, 4);
        align();
        for (int i = 0; i < 8; i++) put(&(float){b_value(order[families[f].reordered][i])}, 4);
        align();
        check_file(adapter, make_base(families[f].type, ""), DT_f32);
    }
    for (int k = 0; k < 2; k++) { /* exact in both types of two bytes */
        head("llama", 3, k ? 30 : 1);
        for (int part = 0; part < 4; part++) {
            static const int count[] = {6, 4, 3, 8};
            for (int i = 0; i < count[part]; i++) {
                float x = part % 2 ? b_value(part == 3 ? order[1][i] : i) : a_value(i);
                uint16_t half = k ? float_to_bf16(x) : float_to_f16(x);
                put(&half, 2);
            }
            align();
        }
        check_file(adapter, make_base("llama", ""), k ? DT_bf16 : DT_f16);
    }
}

/* llama.cpp multiplies with alpha / r.  rslora: 3 / sqrt 2 at up = (3 sqrt 2) / 2, so alpha is
 * 3 sqrt 2; q's 3 / sqrt 1 is
 * that alpha over 1 times 1 / sqrt 2, which its B takes. */
static void one_alpha(void **state) {
    char *adapter = make_adapter(
        "{\"peft_type\":\"LORA\",\"r\":1,\"lora_alpha\":3,\"use_rslora\":true,"
        "\"target_modules\":[\"q_proj\",\"up_proj\"],\"rank_pattern\":{\"up_proj\":2}}");
    head("qwen2", (float)(3 * sqrt(2)), 0);
    for (int i = 0; i < 6; i++) put(&(float){a_value(i)}, 4);
    align();
    for (int i = 0; i < 4; i++) put(&(float){b_value(i)}, 4);
    align();
    for (int i = 0; i < 3; i++) put(&(float){a_value(i)}, 4);
    align();
    Err err = {0};
    char *path = scratch_printf("%s/a.gguf", scratch_dir());
    assert_true(gguf_lora_write(adapter, make_base("qwen2", ""), path, DT_f32, &err));
    size_t n;
    char *got = file_read(path, &n, &err);
    assert_int_equal(n, nwant + 32);
    assert_memory_equal(got, want, nwant);
    for (int i = 0; i < 8; i++) {
        float x;
        memcpy(&x, got + nwant + 4 * i, 4);
        assert_true(fabs((double)x - (double)b_value(i) / sqrt(2)) <= 0x1p-23 * (double)b_value(i));
    }
    free(got);
}

static void refused(void **state) {
    static const struct {
        const char *type, *more, *config, *said;
    } cases[] = {
        {"gemma2", "", PLAIN, "gemma2"},
        {"llama", ",\"num_attention_heads\":3", PLAIN, "heads of even size"},
        {"llama", "",
         "{\"peft_type\":\"LORA\",\"r\":3,\"target_modules\":[\"q_proj\",\"up_proj\"]}", "rank 3"},
        {"llama", "", "{\"peft_type\":\"LORA\",\"r\":1,\"use_dora\":true}",
         "lora_magnitude_vector"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        Err err = {0};
        char *path = scratch_printf("%s/a.gguf", scratch_dir());
        assert_false(gguf_lora_write(make_adapter(cases[i].config),
                                     make_base(cases[i].type, cases[i].more), path, DT_f32, &err));
        if (!strstr(err.text, cases[i].said)) fail_msg("%zu: %s", i, err.text);
        assert_false(file_exists(path));
    }
    static const struct {
        const char *dir, *more, *said;
    } peft[] = {{"dora", "", "DoRA"},
                {"embeddings", "", "embedding"},
                {"ours", ",\"tie_word_embeddings\":true", "ties"}};
    for (size_t i = 0; i < COUNT(peft); i++) {
        Err err = {0};
        char *path = scratch_printf("%s/a.gguf", scratch_dir());
        assert_false(gguf_lora_write(scratch_printf("tests/io/peft/%s", peft[i].dir),
                                     make_base("llama", peft[i].more), path, DT_f32, &err));
        if (!strstr(err.text, peft[i].said)) fail_msg("%s: %s", peft[i].dir, err.text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bytes), cmocka_unit_test(one_alpha),
                                       cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
