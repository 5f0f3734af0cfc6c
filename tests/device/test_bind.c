/* Weights on their way into the arena: conversions, strides, adapters, fresh tensors, quantized
 * parts, errors. */
#include "device.h"

#include "../../runtime/quantize.h"

#include <math.h>

#define ROWS 96
#define COLS 72

/* A checkpoint (stem "model" or "adapter_model") with tensors "w" [96,72] and "v" [72] of one
 * type. */
static void write_one(const char *dir, const char *stem, const char *prefix, SafeType type) {
    char path[4200], names[2][100];
    Err err = {0};
    snprintf(path, sizeof path, "%s/%s.safetensors", dir, stem);
    for (int i = 0; i < 2; i++) snprintf(names[i], 100, "%s%s", prefix, i ? "v" : "w");
    SafeTensor t[2] = {{.name = names[0], .type = type, .rank = 2, .shape = {ROWS, COLS}},
                       {.name = names[1], .type = type, .rank = 1, .shape = {COLS}}};
    SafeWriter *w = safe_create(path, t, 2, NULL, &err);
    assert_non_null(w);
    for (int i = 0; i < 2; i++) {
        int n = i ? COLS : ROWS * COLS;
        float f[ROWS * COLS];
        uint16_t h[ROWS * COLS];
        for (int k = 0; k < n; k++) {
            f[k] = weight_value(i ? "v" : "w", k);
            h[k] = type == SAFE_F16 ? float_to_f16(f[k]) : float_to_bf16(f[k]);
        }
        const void *data = type == SAFE_F32 ? (const void *)f : h;
        assert_true(safe_put(w, i, 0, data, n * safe_type_bits(type) / 8, &err));
    }
    assert_true(safe_commit(w, &err));
}

/* A plan of persistent buffers, one after the other, and binds. */
static Plan *plan_of(const Buf *bufs, int nbufs, const Bind *binds, int nbinds) {
    Plan *p = plan_new();
    p->device = "cpu";
    p->hash = "";
    p->prelude = "";
    p->bufs = NEW_ARRAY(p->arena, Buf, nbufs);
    p->binds = NEW_ARRAY(p->arena, Bind, nbinds);
    memcpy(p->bufs, bufs, (size_t)nbufs * sizeof *bufs);
    memcpy(p->binds, binds, (size_t)nbinds * sizeof *binds);
    p->nbufs = nbufs;
    p->nbinds = nbinds;
    for (int i = 0; i < nbufs; i++) {
        p->bufs[i].offset = p->arena_bytes;
        p->bufs[i].persistent = true;
        p->arena_bytes += (p->bufs[i].bytes + 63) / 64 * 64;
    }
    return p;
}

static Buf buf_of(const char *name, DType dtype, int64_t count) {
    return (Buf){.name = name,
                 .role = ROLE_WEIGHT,
                 .dtype = dtype,
                 .rank = 1,
                 .shape = {dim_const(count)},
                 .bytes = count * dtype_bytes(dtype)};
}

static Bind bind_of(const char *tensor, int buf, const char *transform) {
    bool vector = !strcmp(tensor, "v");
    return (Bind){.source = "base",
                  .tensor = tensor,
                  .buf = buf,
                  .rows = vector ? 1 : ROWS,
                  .cols = COLS,
                  .ld = COLS,
                  .rank = vector ? 1 : 2,
                  .transform = transform};
}

/* Binds and copies the whole arena out; NULL and err when that failed. */
static char *bound(const Plan *plan, const BindSource *source, uint64_t seed, Err *err) {
    Device *dev = open_cpu(NULL, NULL, 2);
    Exec *exec = exec_open(plan, dev, err);
    char *out = exec && exec_bind(exec, source, 1, seed, NULL, err)
                    ? malloc((size_t)plan->arena_bytes)
                    : NULL;
    if (out) memcpy(out, dev->base, (size_t)plan->arena_bytes);
    exec_close(exec);
    dev->ops->close(dev);
    return out;
}

static float value_as(DType t, const void *p, int i) {
    const uint16_t *h = p;
    return t == DT_f32    ? ((const float *)p)[i]
           : t == DT_bf16 ? bf16_to_float(h[i])
                          : f16_to_float(h[i]);
}

static float rounded(float x, SafeType file, DType buf) {
    if (file == SAFE_F16) x = f16_to_float(float_to_f16(x));
    if (file == SAFE_BF16) x = bf16_to_float(float_to_bf16(x));
    if (buf == DT_f16) x = f16_to_float(float_to_f16(x));
    if (buf == DT_bf16) x = bf16_to_float(float_to_bf16(x));
    return x;
}

static void every_conversion(void **unused) {
    static const SafeType files[] = {SAFE_F32, SAFE_BF16, SAFE_F16};
    static const DType types[] = {DT_f32, DT_bf16, DT_f16};
    for (int i = 0; i < 9; i++) {
        Err err = {0};
        char *dir = temp_dir();
        DType t = types[i % 3];
        write_one(dir, "model", "", files[i / 3]);
        Buf bufs[] = {buf_of("w", t, ROWS * (COLS + 8)), buf_of("v", t, COLS)};
        Bind binds[] = {bind_of("w", 0, "copy"), bind_of("v", 1, "scale")};
        binds[0].ld = COLS + 8; /* rows with gaps */
        binds[1].num = 0.5;
        Plan *plan = plan_of(bufs, 2, binds, 2);
        BindSource source = {.source = "base", .checkpoint = dir};
        char *got = bound(plan, &source, 1, &err);
        if (!got) fail_msg("%s", err.text);
        for (int k = 0; k < ROWS * (COLS + 8); k++) {
            int c = k % (COLS + 8), at = k / (COLS + 8) * COLS + c;
            float want = c < COLS ? rounded(weight_value("w", at), files[i / 3], t) : 0;
            assert_true(value_as(t, got, k) == want);
        }
        for (int k = 0; k < COLS; k++) {
            float want =
                rounded(0.5f * rounded(weight_value("v", k), files[i / 3], DT_f32), SAFE_F32, t);
            assert_true(value_as(t, got + plan->bufs[1].offset, k) == want);
        }
        free(got);
        plan_free(plan);
        remove_dir(dir);
    }
}

/* Names in a PEFT file carry a prefix; a tied weight may stand under its other name. */
static void names(void **unused) {
    Err err = {0};
    char *dir = temp_dir();
    write_one(dir, "adapter_model", "base_model.model.", SAFE_F32);
    Buf bufs[] = {buf_of("w", DT_f32, ROWS * COLS)};
    Bind binds[] = {bind_of("other", 0, "copy")};
    binds[0].alias = "w";
    binds[0].source = "pref";
    Plan *plan = plan_of(bufs, 1, binds, 1);
    BindSource source = {.source = "pref", .checkpoint = dir, .adapter = true};
    char *got = bound(plan, &source, 1, &err);
    if (!got) fail_msg("%s", err.text);
    for (int k = 0; k < ROWS * COLS; k++)
        assert_true(value_as(DT_f32, got, k) == weight_value("w", k));
    free(got);
    plan_free(plan);
    remove_dir(dir);
}

/* Streaming in pieces gives what quantizing the whole tensor at once gives. */
static void quantized_parts(void **unused) {
    enum { N = ROWS * COLS, BLOCK = 64, BLOCKS = N / BLOCK };
    static float x[N], absmax[BLOCKS], absmax2[1];
    static uint8_t codes[N / 2], nested[BLOCKS];
    Err err = {0};
    char *dir = temp_dir();
    write_one(dir, "model", "", SAFE_F32);
    Buf bufs[] = {buf_of("c", DT_u8, N / 2), buf_of("a", DT_u8, BLOCKS), buf_of("a2", DT_f32, 1),
                  buf_of("o", DT_f32, 1), buf_of("m", DT_f32, 256)};
    static const char *const part[] = {"nf4.codes", "nf4.absmax", "nf4.absmax2", "nf4.offset",
                                       "nf4.map"};
    Bind binds[5];
    for (int i = 0; i < 5; i++) {
        binds[i] = bind_of("w", i, part[i]);
        binds[i].num = BLOCK;
        binds[i].nested = true;
    }
    Plan *plan = plan_of(bufs, 5, binds, 5);
    BindSource source = {.source = "base", .checkpoint = dir};
    char *got = bound(plan, &source, 1, &err);
    if (!got) fail_msg("%s", err.text);
    double sum = 0;
    for (int k = 0; k < N; k++) x[k] = weight_value("w", k);
    quant_blocks(QUANT_NF4, x, N, BLOCK, codes, absmax);
    for (int k = 0; k < BLOCKS; k++) sum += (double)absmax[k];
    float offset = (float)(sum / BLOCKS);
    quant_nested(absmax, BLOCKS, offset, nested, absmax2);
    const void *want[] = {codes, nested, absmax2, &offset, quant_map(true)};
    for (int i = 0; i < 5; i++)
        assert_memory_equal(got + plan->bufs[i].offset, want[i], (size_t)plan->bufs[i].bytes);
    free(got);
    plan_free(plan);
    remove_dir(dir);
}

static double mean_square(const float *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum / n;
}

/* Fresh tensors have the distribution asked for, and depend on seed and names, not on the plan. */
static void fresh_tensors(void **unused) {
    enum { N = ROWS * COLS };
    Err err = {0};
    Buf bufs[] = {buf_of("params", DT_f32, 3 * N), buf_of("base", DT_f32, N)};
    Bind binds[] = {bind_of("a", 0, "copy"), bind_of("g", 0, "copy"), bind_of("z", 0, "copy"),
                    bind_of("r", 1, "copy")};
    static const char *const init[] = {"kaiming", "gaussian", "zero", NULL};
    for (int i = 0; i < 4; i++) {
        binds[i].init = init[i];
        binds[i].offset = i % 3 * N * 4;
    }
    binds[1].init_num = 0.25;
    Plan *plan = plan_of(bufs, 2, binds, 4);
    BindSource source = {.source = "base", .random = true};
    char *got = bound(plan, &source, 42, &err), *again = bound(plan, &source, 42, &err);
    char *other = bound(plan, &source, 43, &err);
    if (!got || !again || !other) fail_msg("%s", err.text);
    const float *x = (const float *)(const void *)got;
    double bound_a = 1 / sqrt(COLS), most = 0;
    for (int k = 0; k < N; k++) most = fmax(most, fabs((double)x[k]));
    assert_true(most <= bound_a && most > 0.99 * bound_a);
    /* the variance of n values is off by 1/sqrt(n) of it or so; 6 of that is certain */
    assert_true(fabs(mean_square(x, N) / (bound_a * bound_a / 3) - 1) < 6 / sqrt(N));
    assert_true(fabs(mean_square(x + N, N) / 0.0625 - 1) < 6 * sqrt(2.0 / N));
    assert_true(mean_square(x + 2 * N, N) == 0);
    assert_true(fabs(mean_square(x + 3 * N, N) / 0.0004 - 1) < 6 / sqrt(N));
    assert_memory_equal(got, again, (size_t)plan->arena_bytes);
    assert_memory_not_equal(got, other, N * 4);
    /* another place, another plan, "@start": the same values */
    Buf moved[] = {buf_of("x", DT_f32, 100), buf_of("a", DT_f32, N)};
    Bind start[] = {binds[0]};
    start[0].buf = 1;
    start[0].source = "base@start";
    Plan *second = plan_of(moved, 2, start, 1);
    BindSource at_start = {.source = "base@start"};
    char *same = bound(second, &at_start, 42, &err);
    if (!same) fail_msg("%s", err.text);
    assert_memory_equal(got, same + second->bufs[1].offset, N * 4);
    free(got);
    free(again);
    free(other);
    free(same);
    plan_free(plan);
    plan_free(second);
}

/* One bind of `tensor` from `dir`, as f32; what the refusal says. */
static void refused(const char *dir, Bind bind, bool random, int code, const char *says) {
    Err err = {0};
    Buf bufs[] = {buf_of("w", DT_f32, 2 * ROWS * COLS)};
    Plan *plan = plan_of(bufs, 1, &bind, 1);
    BindSource source = {.source = "base", .checkpoint = dir, .random = random};
    assert_null(bound(plan, &source, 1, &err));
    if (err.code != code || !strstr(err.text, says)) fail_msg("%d %s", err.code, err.text);
    plan_free(plan);
}

static void errors(void **unused) {
    char *dir = temp_dir();
    Bind w = bind_of("w", 0, "copy"), tall = w, missing = w, unknown = w;
    tall.rows++;
    tall.where = "llama3.dpo:20:9";
    missing.tensor = "ww";
    unknown.source = "bose";
    refused(dir, w, false, EXIT_IO, dir);
    write_one(dir, "model", "", SAFE_F32);
    refused(dir, tall, false, EXIT_INPUT,
            "\"w\" is F32 [96, 72]; expected [97, 72] (declared at llama3.dpo");
    refused(dir, missing, false, EXIT_INPUT, "ww");
    refused(dir, unknown, false, EXIT_BUG, "no source \"bose\"");
    refused(NULL, w, false, EXIT_USAGE, "name a model directory");
    char path[4200];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(truncate(path, 5000), 0);
    refused(dir, w, false, EXIT_IO, "model.safetensors");
    remove_dir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_conversion), cmocka_unit_test(names),
                                       cmocka_unit_test(quantized_parts),
                                       cmocka_unit_test(fresh_tensors), cmocka_unit_test(errors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
