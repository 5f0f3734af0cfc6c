/* Merging, against the same sums written out in double precision: rounding, its report, what
 * overflows and vanishes, files and their index, weights as quantization left them, tied weights, a
 * base that was trained.  The formulas of every kind of adapter are held to PEFT's figures by
 * tests/e2e/peft.sh. */
#include "runtime/job/merge.h"
#include "runtime/quantize.h"
#include "tests/io/io.h"

#include <jansson.h>
#include <math.h>

enum { ROWS = 6, COLS = 64, RANK = 2 };
#define N (ROWS * COLS)

static float weight[N], A[RANK * COLS], B[ROWS * RANK];
static float norm[3] = {1, 1e-9f, 70000};

static void fill(void) {
    for (int i = 0; i < N; i++) weight[i] = sinf((float)i * 1.7f) * (i % 7 ? 1 : 0.01f);
    for (int i = 0; i < RANK * COLS; i++) A[i] = cosf((float)i * 0.9f);
    for (int i = 0; i < ROWS * RANK; i++) B[i] = sinf((float)i * 2.1f) * 0.5f;
}

/* alpha 3, rank 2 */
static double merged(int i) {
    double sum = 0;
    for (int k = 0; k < RANK; k++)
        sum += (double)B[i / COLS * RANK + k] * (double)A[k * COLS + i % COLS];
    return 1.5 * sum;
}

typedef struct Given {
    const char *name;
    SafeType type;
    int64_t rows, cols; /* cols 0: a vector */
    const void *data;
} Given;

static void write_tensors(const char *path, const Given *given, int n) {
    static const char *const metadata[] = {"format", "pt", NULL};
    SafeTensor t[8] = {{0}};
    Err err = {0};
    for (int i = 0; i < n; i++)
        t[i] = (SafeTensor){.name = given[i].name,
                            .type = given[i].type,
                            .rank = given[i].cols ? 2 : 1,
                            .shape = {given[i].rows, given[i].cols}};
    SafeWriter *w = safe_create(path, t, n, metadata, &err);
    for (int i = 0; i < n; i++) {
        int64_t count = given[i].rows * (given[i].cols ? given[i].cols : 1);
        assert_true(
            safe_put(w, i, 0, given[i].data, count * safe_type_bits(given[i].type) / 8, &err));
    }
    if (!safe_commit(w, &err)) fail_msg("%s", err.text);
}

static const int64_t ids[2] = {7, -9};
static char *make_base(void) {
    const Given given[] = {{"up.weight", SAFE_F32, ROWS, COLS, weight},
                           {"norm.weight", SAFE_F32, 3, 0, norm},
                           {"ids", SAFE_I64, 2, 0, ids},
                           {"embed.weight", SAFE_F32, ROWS, COLS, weight}};
    char *dir = scratch_dir();
    write_tensors(scratch_printf("%s/model.safetensors", dir), given, COUNT(given));
    return dir;
}

static char *make_adapter(const char *module) {
    char *dir = scratch_dir();
    const Given given[] = {
        {scratch_printf(ADAPTER_PREFIX "%s.lora_A.weight", module), SAFE_F32, RANK, COLS, A},
        {scratch_printf(ADAPTER_PREFIX "%s.lora_B.weight", module), SAFE_F32, ROWS, RANK, B}};
    write_tensors(scratch_printf("%s/adapter_model.safetensors", dir), given, 2);
    char *config = scratch_printf(
        "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":3,\"target_modules\":[\"%s\"]}", module);
    scratch_write(dir, "adapter_config.json", config, strlen(config));
    return dir;
}

static Bind binds[2];
static const Plan plan = {.binds = binds, .nbinds = 2};
static MergeJob the_job(const char *const *adapter) {
    fill();
    binds[0] = (Bind){.source = "base", .tensor = "up.weight", .transform = "copy"};
    binds[1] = (Bind){.source = "base", .tensor = "embed.weight", .transform = "copy"};
    return (MergeJob){.base = make_base(),
                      .adapter = adapter,
                      .nadapter = adapter ? 1 : 0,
                      .plan = &plan,
                      .dtype = DT_f32,
                      .out = scratch_dir(),
                      .shard_bytes = 1 << 30};
}

static Checkpoint *run(const MergeJob *job, MergeReport *report) {
    Err err = {0};
    static Arena *arena;
    if (!arena) arena = arena_new();
    if (!merge_write(job, arena, report, &err)) fail_msg("%s", err.text);
    Checkpoint *c = checkpoint_open(job->out, "model", &err);
    if (!c) fail_msg("%s", err.text);
    return c;
}

static void values(const Checkpoint *c, const char *name, int n, float *out) {
    Err err = {0};
    const SafeTensor *t = checkpoint_find(c, name, NULL);
    assert_non_null(t);
    if (!safe_read_f32(t, 0, n, out, &err)) fail_msg("%s", err.text);
}

/* Every value is the exact one, rounded once: off by at most a unit u of it. */
static void rounding(void **state) {
    static const DType types[] = {DT_f32, DT_bf16, DT_f16};
    static const double unit[] = {0x1p-24, 0x1p-8, 0x1p-11};
    for (int k = 0; k < 3; k++) {
        const char *adapter[] = {NULL};
        MergeJob job = the_job(adapter);
        adapter[0] = make_adapter("up");
        job.dtype = types[k];
        MergeReport r;
        Checkpoint *c = run(&job, &r);
        assert_int_equal(checkpoint_count(c), 4);
        float up[N], rest[3];
        values(c, "up.weight", N, up);
        double error = 0, exact = 0, change = 0, largest = 0;
        for (int i = 0; i < N; i++) {
            double want = (double)weight[i] + merged(i), off = fabs((double)up[i] - want);
            /* bf16 and f16 are rounded from f32: 2^-24 more; f16 below 2^-14 has steps of 2^-24 */
            assert_true(off <=
                        fabs(want) * (unit[k] + 0x1p-24) + (types[k] == DT_f16 ? 0x1p-25 : 0));
            error += off * off;
            exact += want * want;
            change += merged(i) * merged(i);
            if (fabs(want) >= 0x1p-14) largest = fmax(largest, off / fabs(want));
        }
        assert_true(fabs(r.change - sqrt(change / error)) <= 1e-6 * r.change);
        if (r.worst.tensor && !strcmp(r.worst.tensor, "up.weight")) {
            assert_true(fabs(r.worst.rms - sqrt(error / exact)) <= 1e-6 * r.worst.rms);
            assert_true(types[k] != DT_f16 || fabs(r.worst.largest - largest) <= 1e-6 * largest);
        }
        values(c, "norm.weight", 3, rest);
        int f16 = types[k] == DT_f16;
        assert_true(rest[0] == 1);
        assert_true(f16 ? rest[1] == 0 && rest[2] == 65504
                        : fabs((double)rest[2] / 70000 - 1) < 0x1p-8);
        assert_int_equal(r.overflow.elements, f16);
        assert_int_equal(r.underflow.elements, f16);
        if (f16) assert_string_equal(r.overflow.tensor[0], "norm.weight");
        const SafeTensor *t = checkpoint_find(c, "ids", NULL); /* as it was */
        int64_t same[2];
        Err err = {0};
        assert_true(t->type == SAFE_I64 && safe_read(t, 0, 16, same, &err) && same[0] == 7 &&
                    same[1] == -9);
        assert_true(r.adapted == 1 && r.tensors == 4 && r.files == 1 && !r.untied);
        checkpoint_close(c);
    }
}

/* As many files as the largest size asks for, and the index that Hugging Face's loaders read. */
static void files(void **state) {
    MergeJob job = the_job(NULL);
    job.shard_bytes = N * 4 + 30; /* embed + ids; norm; up */
    MergeReport r;
    Checkpoint *c = run(&job, &r);
    assert_int_equal(r.files, 2);
    assert_int_equal(r.bytes, 2 * N * 4 + 3 * 4 + 16);
    json_t *index =
        json_load_file(scratch_printf("%s/model.safetensors.index.json", job.out), 0, NULL);
    json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")),
        r.bytes);
    assert_int_equal(json_object_size(map), 4);
    assert_string_equal(json_string_value(json_object_get(map, "embed.weight")),
                        "model-00001-of-00002.safetensors");
    assert_string_equal(json_string_value(json_object_get(map, "up.weight")),
                        "model-00002-of-00002.safetensors");
    json_decref(index);
    checkpoint_close(c);
}

/* A weight that was quantized for training is merged as the codes have it, unless the original is
 * asked for. */
static void quantized(void **state) {
    for (int original = 0; original < 2; original++) {
        const char *adapter[] = {NULL};
        MergeJob job = the_job(adapter);
        adapter[0] = make_adapter("up");
        binds[0].transform = "nf4.codes";
        binds[0].num = 64;
        job.original = original;
        MergeReport r;
        Checkpoint *c = run(&job, &r);
        uint8_t codes[N / 2];
        float absmax[ROWS], seen[N], up[N];
        quant_blocks(QUANT_NF4, weight, N, 64, codes, absmax);
        dequant_blocks(QUANT_NF4, codes, absmax, 0, N, 64, seen);
        values(c, "up.weight", N, up);
        int differ = 0;
        for (int i = 0; i < N; i++) {
            double base = (double)(original ? weight[i] : seen[i]), want = base + merged(i);
            assert_true(fabs((double)up[i] - want) <= fabs(want) * 0x1p-24);
            differ += seen[i] != weight[i];
        }
        assert_true(differ > N / 2);
        checkpoint_close(c);
    }
}

/* bitsandbytes' int8: the parts of a packed weight go, its neighbours (a bias) stay. */
static void packed(void **state) {
    int8_t codes[N];
    float scb[ROWS], up[N], bias[ROWS];
    for (int i = 0; i < N; i++) codes[i] = (int8_t)(i * 37 % 255 - 127);
    for (int i = 0; i < ROWS; i++) scb[i] = 0.5f + (float)i;
    const Given given[] = {{"up.weight", SAFE_I8, ROWS, COLS, codes},
                           {"up.SCB", SAFE_F32, ROWS, 0, scb},
                           {"up.weight_format", SAFE_U8, 1, 0, codes},
                           {"up.bias", SAFE_F32, ROWS, 0, weight}};
    const char *adapter[] = {NULL};
    MergeJob job = the_job(adapter);
    adapter[0] = make_adapter("up");
    write_tensors(scratch_printf("%s/model.safetensors", job.base), given, COUNT(given));
    MergeReport r;
    Checkpoint *c = run(&job, &r);
    assert_int_equal(checkpoint_count(c), 2);
    values(c, "up.bias", ROWS, bias);
    assert_memory_equal(bias, weight, sizeof bias);
    values(c, "up.weight", N, up);
    for (int i = 0; i < N; i++) {
        double base = codes[i] * (double)scb[i / COLS] / 127;
        /* the base is rounded to f32 (twice: scale, product), the sum once more */
        double bound = 2 * fabs(base) * 0x1p-24 + fabs(base + merged(i)) * 0x1p-24;
        assert_true(fabs((double)up[i] - base - merged(i)) <= bound);
    }
    checkpoint_close(c);
}

/* An adapter on one of two names of a weight makes two weights of it. */
static void tied(void **state) {
    for (int k = 0; k < 3; k++) {
        const char *adapter[] = {NULL};
        MergeJob job = the_job(adapter);
        adapter[0] = make_adapter(k == 0 ? "up" : k == 1 ? "head" : "embed");
        binds[1].alias = "head.weight";
        MergeReport r;
        Checkpoint *c = run(&job, &r);
        assert_int_equal(r.untied, k > 0);
        assert_int_equal(checkpoint_count(c), k ? 5 : 4);
        float embed[N], head[N];
        values(c, "embed.weight", N, embed);
        if (k) values(c, "head.weight", N, head);
        for (int i = 0; i < N; i++) {
            double add = merged(i), w = (double)weight[i];
            assert_true(fabs((double)embed[i] - (k == 2 ? w + add : w)) <= 1e-6);
            if (k) assert_true(fabs((double)head[i] - (k == 1 ? w + add : w)) <= 1e-6);
        }
        checkpoint_close(c);
    }
}

/* Full fine-tuning: tensors of the run take the base's place. */
static void trained(void **state) {
    MergeJob job = the_job(NULL);
    const Given given[] = {{"up.weight", SAFE_F32, RANK, COLS, A},
                           {"embed.weight", SAFE_F32, ROWS, COLS, weight}};
    char *dir = scratch_dir();
    write_tensors(scratch_printf("%s/model.safetensors", dir), given, 2);
    job.trained = dir;
    MergeReport r;
    Checkpoint *c = run(&job, &r);
    float up[RANK * COLS];
    values(c, "up.weight", RANK * COLS, up);
    assert_memory_equal(up, A, sizeof up);
    assert_int_equal(checkpoint_count(c), 4);
    checkpoint_close(c);
}

/* A tensor without elements is there, and none. */
static void empty(void **state) {
    MergeJob job = the_job(NULL);
    const Given given[] = {{"up.weight", SAFE_F32, ROWS, COLS, weight},
                           {"none.weight", SAFE_F32, 0, 0, weight}};
    write_tensors(scratch_printf("%s/model.safetensors", job.base), given, COUNT(given));
    job.dtype = DT_bf16;
    MergeReport r;
    Checkpoint *c = run(&job, &r);
    const SafeTensor *t = checkpoint_find(c, "none.weight", NULL);
    assert_true(t && t->rank == 1 && t->count == 0 && r.tensors == 2);
    checkpoint_close(c);
}

static void refused(void **state) {
    static const char *const modules[] = {"down", "norm"}, *const said[] = {"down", "[2, 64]"};
    Arena *arena = arena_new();
    for (int k = 0; k < 2; k++) {
        const char *adapter[] = {NULL};
        MergeJob job = the_job(adapter);
        adapter[0] = make_adapter(modules[k]);
        MergeReport r;
        Err err = {0};
        assert_false(merge_write(&job, arena, &r, &err));
        assert_int_equal(err.code, EXIT_INPUT);
        assert_non_null(strstr(err.text, said[k]));
        assert_false(file_exists(scratch_printf("%s/model.safetensors", job.out)));
    }
    const char *adapter[] = {"/nonexistent"};
    MergeJob job = the_job(adapter);
    MergeReport r;
    Err err = {0};
    assert_false(merge_write(&job, arena, &r, &err));
    assert_int_equal(err.code, EXIT_IO);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rounding),  cmocka_unit_test(files),
                                       cmocka_unit_test(quantized), cmocka_unit_test(tied),
                                       cmocka_unit_test(trained),   cmocka_unit_test(empty),
                                       cmocka_unit_test(refused),   cmocka_unit_test(packed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
