/* Loading a checkpoint of Llama-3-8B's true shapes (four shards, sparse: holes read as zeros) into
 * a device that keeps nothing: how much anonymous memory the host takes, beside the files' cached
 * pages.  One of its layers, DPOC_TEST_LAYERS for more: 32 is the whole model. */
#include "device.h"

#include "../../compiler/spec.h"

#include <fcntl.h>
#include <math.h>

enum { SHARDS = 4, VOCAB = 128256, DIM = 4096, KV = 1024, FFN = 14336 };

/* ---- the checkpoint -------------------------------------------------------------------------- */

typedef struct Shard {
    Text header;
    int64_t bytes;
} Shard;

static Text map; /* index.json's weight_map */

static void add_tensor(Shard *s, int shard, const char *name, int64_t rows, int64_t cols) {
    int64_t bytes = rows * cols * 2;
    bool vector = rows == 1;
    text_add(&s->header, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[", s->bytes ? "," : "{", name);
    text_add(&s->header, vector ? "%ld" : "%ld,%ld", vector ? cols : rows, cols);
    text_add(&s->header, "],\"data_offsets\":[%ld,%ld]}", s->bytes, s->bytes + bytes);
    text_add(&map, "%s\"%s\":\"model-%05d-of-%05d.safetensors\"", map.len ? "," : "", name,
             shard + 1, SHARDS);
    s->bytes += bytes;
}

static void add_layer(Shard *s, int shard, int layer) {
    static const struct {
        const char *name;
        int64_t rows, cols;
    } all[] = {{"self_attn.q_proj", DIM, DIM},      {"self_attn.k_proj", KV, DIM},
               {"self_attn.v_proj", KV, DIM},       {"self_attn.o_proj", DIM, DIM},
               {"mlp.gate_proj", FFN, DIM},         {"mlp.up_proj", FFN, DIM},
               {"mlp.down_proj", DIM, FFN},         {"input_layernorm", 1, DIM},
               {"post_attention_layernorm", 1, DIM}};
    char name[100];
    for (size_t i = 0; i < COUNT(all); i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, all[i].name);
        add_tensor(s, shard, name, all[i].rows, all[i].cols);
    }
}

static void write_sparse(const char *path, const Shard *s) {
    uint64_t size = s->header.len + 1;
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0 && write(fd, &size, 8) == 8);
    assert_int_equal(write(fd, s->header.data, s->header.len), s->header.len);
    assert_int_equal(write(fd, "}", 1), 1);
    assert_int_equal(ftruncate(fd, 8 + (int64_t)size + s->bytes), 0);
    close(fd);
}

static void write_model(const char *dir, int layers) {
    Shard shard[SHARDS] = {{{0}, 0}};
    char path[4200];
    Err err = {0};
    add_tensor(&shard[0], 0, "model.embed_tokens.weight", VOCAB, DIM);
    for (int i = 0; i < layers; i++) add_layer(&shard[i * SHARDS / layers], i * SHARDS / layers, i);
    add_tensor(&shard[1], 1, "model.norm.weight", 1, DIM);
    add_tensor(&shard[SHARDS - 1], SHARDS - 1, "lm_head.weight", VOCAB, DIM);
    if (layers < SHARDS) add_tensor(&shard[2], 2, "unused", 1, 1);
    for (int i = 0; i < SHARDS; i++) {
        snprintf(path, sizeof path, "%s/model-%05d-of-%05d.safetensors", dir, i + 1, SHARDS);
        write_sparse(path, &shard[i]);
        text_free(&shard[i].header);
    }
    Text index = {0}, config = {0};
    text_add(&index, "{\"weight_map\":{%s}}", map.data);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    assert_true(file_write(path, index.data, index.len, &err));
    text_add(&config,
             "{\"model_type\":\"llama\",\"hidden_size\":%d,\"intermediate_size\":%d,"
             "\"num_hidden_layers\":%d,\"num_attention_heads\":32,\"num_key_value_heads\":8,"
             "\"vocab_size\":%d,\"rms_norm_eps\":1e-5,\"rope_theta\":500000.0,"
             "\"hidden_act\":\"silu\",\"tie_word_embeddings\":false}",
             DIM, FFN, layers, VOCAB);
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_true(file_write(path, config.data, config.len, &err));
    text_free(&index);
    text_free(&config);
    text_free(&map);
}

/* ---- a device that keeps nothing ------------------------------------------------------------- */

static double written;
static int launches;

static bool do_alloc(Device *dev, int64_t bytes, Err *err) {
    (void)bytes, (void)err;
    dev->base = (char *)4096; /* an address that nobody follows */
    return true;
}
static bool do_load(Device *dev, const Plan *plan, Err *err) {
    (void)dev, (void)plan, (void)err;
    return true;
}
static bool do_launch(Device *dev, int kernel, void *const *p, int np, const int64_t *n, int nn,
                      Err *err) {
    (void)dev, (void)kernel, (void)p, (void)np, (void)n, (void)nn, (void)err;
    launches++;
    return true;
}
static bool do_prepare(Device *dev, const Gemm *g, int64_t m, int64_t n, int64_t k, Err *err) {
    (void)dev, (void)g, (void)m, (void)n, (void)k, (void)err;
    return true;
}
static bool do_gemm(Device *dev, const Gemm *g, void *const *p, int64_t m, int64_t n, int64_t k,
                    Err *err) {
    (void)p;
    return do_prepare(dev, g, m, n, k, err);
}
static bool do_zero(Device *dev, void *p, int64_t bytes, Err *err) {
    (void)dev, (void)p, (void)bytes, (void)err;
    return true;
}
static bool do_copy(Device *dev, void *to, const void *from, int64_t bytes, Err *err) {
    (void)from;
    return do_zero(dev, to, bytes, err);
}
static bool do_write(Device *dev, int64_t offset, const void *host, int64_t bytes, Err *err) {
    (void)dev, (void)offset, (void)host, (void)err;
    written += (double)bytes;
    return true;
}
static bool do_read(Device *dev, int64_t offset, void *host, int64_t bytes, Err *err) {
    (void)dev, (void)offset, (void)err;
    memset(host, 0, (size_t)bytes);
    return true;
}
static bool do_nothing(Device *dev, Err *err) {
    (void)dev, (void)err;
    return true;
}
static bool do_number(Device *dev, int number, Err *err) {
    (void)dev, (void)number, (void)err;
    return true;
}
static void do_span(Device *dev, int64_t offset, int64_t bytes) {
    (void)dev, (void)offset, (void)bytes;
}

static const DeviceOps nowhere = {.name = "cuda",
                                  .alloc = do_alloc,
                                  .load = do_load,
                                  .gemm_prepare = do_prepare,
                                  .launch = do_launch,
                                  .gemm = do_gemm,
                                  .zero = do_zero,
                                  .copy = do_copy,
                                  .write = do_write,
                                  .read = do_read,
                                  .sync = do_nothing,
                                  .workspace = do_span,
                                  .scratch = do_span,
                                  .queue = do_number,
                                  .join = do_nothing,
                                  .stamp = do_number};

/* ---- memory ---------------------------------------------------------------------------------- */

static int64_t anonymous(void) { /* bytes of this process that no file backs */
    char line[200];
    long kib = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %ld", &kib) == 1) break;
    if (f) fclose(f);
    return (int64_t)kib * 1024;
}

typedef struct Peak {
    LoadWatch watch;
    int64_t bytes;
    double read, share;
    int calls;
} Peak;

static void look(LoadWatch *watch, double bytes, double share) {
    Peak *p = (Peak *)watch;
    int64_t now = p->calls++ % 16 ? 0 : anonymous();
    if (now > p->bytes) p->bytes = now;
    assert_true(share >= p->share && share <= 1);
    p->read = bytes;
    p->share = share;
}

/* ---- the test -------------------------------------------------------------------------------- */

static Plan *plan_of(Arena *arena, const char *dir) {
    CheckOptions o = {
        .file = "models/llama3-8b-qlora.dpo", .model = dir, .is_cuda = true, .needs_model = true};
    Diags *diags = diags_new(arena);
    Spec *spec = check_file(arena, diags, &o);
    if (!spec) diags_print(diags, 0, stdout, false);
    assert_non_null(spec);
    CompileOptions compile = {.target = target_by_name("sm_80")};
    compile.want[UNIT_TRAIN] = true;
    Plan *plan = compile_spec(spec, &compile);
    assert_non_null(plan);
    return plan;
}

static void an_8b_checkpoint(void **unused) {
    const char *more = getenv("DPOC_TEST_LAYERS");
    int layers = more ? atoi(more) : 1;
    Arena *arena = arena_new();
    char *dir = temp_dir();
    Err err = {0};
    write_model(dir, layers);
    Plan *plan = plan_of(arena, dir);
    Device dev = {.ops = &nowhere, .arch = 80};
    Exec *exec = exec_open(plan, &dev, &err);
    if (!exec) fail_msg("%s", err.text);
    BindSource sources[] = {{.source = "base", .checkpoint = dir}, {.source = "pref"}};
    int64_t before = anonymous();
    Peak peak = {{look}, 0, 0, 0, 0};
    double start = now_seconds();
    if (!exec_bind(exec, sources, 2, 1, &peak.watch, &err)) fail_msg("%s", err.text);
    double seconds = now_seconds() - start;
    printf("%d layers: %.2f GB in %.1f s, %.2f GB/s; %.0f MB of anonymous memory more than before "
           "(%.0f MB)\n",
           layers, peak.read * 1e-9, seconds, peak.read * 1e-9 / seconds,
           (double)(peak.bytes - before) * 1e-6, (double)before * 1e-6);
    double linear = 2.0 * DIM * DIM + 2.0 * KV * DIM + 3.0 * DIM * FFN;
    double values = 2.0 * VOCAB * DIM + DIM + layers * (linear + 2 * DIM);
    assert_true(peak.read == 2 * values && fabs(peak.share - 1) < 1e-9);
    assert_true(launches > layers * 7); /* linear layers were quantized on the device */
    /* Two pieces of 2 MiB, the scales of one tensor (0.9 M of f32), stacks of the threads. */
    assert_true(peak.bytes - before < 64 << 20);
    assert_true(peak.bytes < INT64_C(2) << 30);
    exec_close(exec);
    plan_free(plan);
    remove_dir(dir);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_8b_checkpoint)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
