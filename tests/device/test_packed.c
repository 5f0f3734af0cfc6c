/* Checkpoints that bitsandbytes quantized: the numbers its codes mean, bit for bit (crc32 of what
 * it dequantizes itself, tests/peers/make_cases.py); parts taken as they are; what is refused. */
#include "device.h"

#include "../../runtime/quantize.h"

#include <jansson.h>
#include <math.h>
#include <zlib.h>

#define CASES "tests/num/cases/"

/* A plan of persistent buffers, one after the other, and their binds. */
static Plan *plan_of(const Buf *bufs, const Bind *binds, int n) {
    Plan *p = plan_new();
    p->device = "cpu";
    p->hash = p->prelude = "";
    p->bufs = NEW_ARRAY(p->arena, Buf, n);
    p->binds = NEW_ARRAY(p->arena, Bind, n);
    p->nbufs = p->nbinds = n;
    for (int i = 0; i < n; i++) {
        p->bufs[i] = bufs[i];
        p->bufs[i].name = intern_printf("b%d", i);
        p->binds[i] = binds[i];
        p->binds[i].buf = i;
        p->bufs[i].offset = p->arena_bytes;
        p->bufs[i].persistent = true;
        p->arena_bytes += (p->bufs[i].bytes + 63) / 64 * 64;
    }
    return p;
}

/* Binds and copies the arena out; NULL and err when that failed. */
static char *bound(const Plan *plan, const char *dir, Err *err) {
    DeviceOptions options = {.name = "cpu", .threads = 2};
    Device *dev = device_open(&options, err);
    Exec *exec = exec_open(plan, dev, err);
    BindSource source = {.source = "base", .checkpoint = dir};
    bool ok = exec && exec_bind(exec, &source, 1, 1, NULL, err);
    char *out = ok ? malloc((size_t)plan->arena_bytes) : NULL;
    if (out) memcpy(out, dev->base, (size_t)plan->arena_bytes);
    exec_close(exec);
    dev->ops->close(dev);
    return out;
}

static Buf buf_of(DType dtype, int64_t count) {
    return (Buf){.role = ROLE_WEIGHT,
                 .dtype = dtype,
                 .rank = 1,
                 .shape = {dim_const(count)},
                 .bytes = count * dtype_bytes(dtype)};
}

static Bind bind_of(const char *tensor, int64_t rows, int64_t cols, const char *transform) {
    return (Bind){.source = "base",
                  .tensor = tensor,
                  .rows = rows,
                  .cols = cols,
                  .ld = cols,
                  .rank = 2,
                  .transform = transform};
}

/* The whole tensor as f32 numbers; malloc. */
static float *numbers(const char *dir, const char *tensor, int64_t rows, int64_t cols) {
    Err err = {0};
    Buf buf = buf_of(DT_f32, rows * cols);
    Bind bind = bind_of(tensor, rows, cols, "copy");
    Plan *plan = plan_of(&buf, &bind, 1);
    float *x = (float *)(void *)bound(plan, dir, &err);
    if (!x) fail_msg("%s", err.text);
    plan_free(plan);
    return x;
}

/* ---- what bitsandbytes made ------------------------------------------------------------------ */

static void shape_of(const char *dir, const char *tensor, int64_t shape[2]) {
    Err err = {0};
    char path[4200], name[512], text[4096] = {0};
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    SafeFile *f = safe_open(path, &err);
    if (!f) fail_msg("%s", err.text);
    static const char *const kinds[] = {"nf4", "fp4"};
    const SafeTensor *state = NULL;
    for (int i = 0; i < 2 && !state; i++) {
        snprintf(name, sizeof name, "%s.quant_state.bitsandbytes__%s", tensor, kinds[i]);
        state = safe_find(f, name);
    }
    assert_non_null(state);
    assert_true(safe_read(state, 0, state->bytes, text, &err));
    const char *at = strstr(text, "\"shape\": [");
    assert_non_null(at);
    assert_int_equal(sscanf(at, "\"shape\": [%ld, %ld]", &shape[0], &shape[1]), 2);
    safe_close(f);
}

static void its_own_numbers(void **unused) {
    static const char *const dirs[] = {CASES "bnb_nf4", CASES "bnb_fp4"};
    for (int d = 0; d < 2; d++) {
        char path[600];
        snprintf(path, sizeof path, "%s/figures.json", dirs[d]);
        json_t *figures = json_load_file(path, 0, NULL), *want;
        json_t *all = json_object_get(figures, "dequantized_crc32");
        assert_true(json_object_size(all) >= 7);
        const char *tensor;
        json_object_foreach(all, tensor, want) {
            int64_t shape[2];
            shape_of(dirs[d], tensor, shape);
            float *x = numbers(dirs[d], tensor, shape[0], shape[1]);
            for (int64_t i = 0; i < shape[0] * shape[1]; i++) x[i] += 0.0f; /* -0 is 0 there */
            uLong got = crc32(0, (Bytef *)x, (uInt)(shape[0] * shape[1] * 4));
            if ((json_int_t)got != json_integer_value(want))
                fail_msg("%s: %s: other numbers", dirs[d], tensor);
            free(x);
        }
        json_decref(figures);
    }
}

/* ---- tensors made here ----------------------------------------------------------------------- */

typedef struct Made { /* a file with one packed tensor "w.weight" */
    const char *kind;
    int64_t rows, cols, block;
    bool nested;
    const char *state;  /* JSON instead of the right one */
    const char *less;   /* a part that is left out */
    int map_off;        /* quant_map's first value is wrong */
    int64_t absmax_off; /* so many scales too many */
    bool as_f32;        /* codes in a tensor of f32 (bnb_4bit_quant_storage) */
} Made;

static uint8_t byte_at(int64_t i) {
    return (uint8_t)((uint32_t)i * 2654435761u >> 13);
}
static float scale_at(int64_t i) {
    return 0.25f + (float)(i * 37 % 101) / 64;
}
/* The file's own map of 256 values: not ours. */
static float map_at(int64_t i) {
    return (float)(i - 100) / 77;
}

enum { MAXPARTS = 6 };

static void put_part(SafeTensor *t, char (*names)[80], int *n, const Made *m, const char *name,
                     SafeType type, int64_t rows, int64_t cols) {
    if (m->less && !strcmp(m->less, name)) return;
    snprintf(names[*n], 80, *name ? "w.weight.%s" : "w.weight%s", name);
    t[*n] =
        (SafeTensor){.name = names[*n], .type = type, .rank = cols ? 2 : 1, .shape = {rows, cols}};
    ++*n;
}

static void fill_part(const Made *m, const SafeTensor *t, const char *state, char *out) {
    float *x = (float *)(void *)out;
    int64_t n = t->shape[0];
    QuantFormat format = QUANT_NF4;
    quant_format(m->kind, &format);
    if (strstr(t->name, "quant_state")) {
        memcpy(out, state, (size_t)n);
    } else if (strstr(t->name, "nested_quant_map")) {
        for (int64_t i = 0; i < n; i++) x[i] = map_at(i);
    } else if (strstr(t->name, "quant_map")) {
        for (int64_t i = 0; i < n; i++) x[i] = quant_lut(format)[i];
        if (m->map_off) x[0] = 0.5f;
    } else if (t->type == SAFE_F32 && t->rank == 1) {
        for (int64_t i = 0; i < n; i++) x[i] = scale_at(i);
    } else {
        int64_t bytes = n * safe_type_bits(t->type) / 8;
        for (int64_t i = 0; i < bytes; i++) out[i] = (char)byte_at(i + (t->rank == 1 ? 999 : 0));
    }
}

static void write_made(const char *dir, const Made *m) {
    char path[4200], names[MAXPARTS][80], kind[64], text[400];
    SafeTensor t[MAXPARTS];
    Err err = {0};
    int64_t n = m->rows * m->cols, blocks = (n + m->block - 1) / m->block;
    int count = 0;
    snprintf(
        text, sizeof text,
        "{\"quant_type\": \"%s\", \"blocksize\": %ld, \"dtype\": \"bfloat16\", \"shape\": [%ld, "
        "%ld], \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": "
        "0.8125}",
        m->kind, m->block, m->rows, m->cols);
    const char *state = m->state ? m->state : text;
    put_part(t, names, &count, m, "", m->as_f32 ? SAFE_F32 : SAFE_U8,
             m->as_f32 ? n / 8 : (n + 1) / 2, 1);
    put_part(t, names, &count, m, "absmax", m->nested ? SAFE_U8 : SAFE_F32, blocks + m->absmax_off,
             0);
    put_part(t, names, &count, m, "quant_map", SAFE_F32, 16, 0);
    snprintf(kind, sizeof kind, "quant_state.bitsandbytes__%s", m->kind);
    put_part(t, names, &count, m, kind, SAFE_U8, (int64_t)strlen(state), 0);
    if (m->nested) {
        put_part(t, names, &count, m, "nested_absmax", SAFE_F32, (blocks + 255) / 256, 0);
        put_part(t, names, &count, m, "nested_quant_map", SAFE_F32, 256, 0);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    SafeWriter *w = safe_create(path, t, count, NULL, &err);
    for (int i = 0; w && i < count; i++) {
        int64_t bytes = t[i].shape[0] * safe_type_bits(t[i].type) / 8;
        char *data = malloc((size_t)bytes + 4);
        fill_part(m, &t[i], state, data);
        assert_true(safe_put(w, i, 0, data, bytes, &err));
        free(data);
    }
    if (!w || !safe_commit(w, &err)) fail_msg("%s", err.text);
}

/* The number of element i by the formulas of bitsandbytes, written out. */
static float meant(const Made *m, int64_t i) {
    QuantFormat format = QUANT_NF4;
    quant_format(m->kind, &format);
    int64_t b = i / m->block;
    uint8_t byte = byte_at(i / 2);
    float scale = scale_at(b);
    if (m->nested) {
        float first = map_at(byte_at(b + 999)) * scale_at(b / 256);
        scale = first + 0.8125f;
    }
    return quant_lut(format)[i % 2 ? byte & 15 : byte >> 4] * scale;
}

static const Made odd[] = {
    {"nf4", 3, 5, 64, true, NULL, NULL, 0, 0, false},      /* an odd count; one block, nested */
    {"nf4", 7, 9, 64, false, NULL, NULL, 0, 0, false},     /* rows that share blocks */
    {"nf4", 130, 131, 64, true, NULL, NULL, 0, 0, false},  /* two groups, the second in part */
    {"nf4", 70, 300, 4096, true, NULL, NULL, 0, 0, false}, /* large blocks */
    {"fp4", 257, 64, 64, true, NULL, NULL, 0, 0, false},   /* one block beyond a group */
    {"fp4", 300, 1024, 512, false, NULL, NULL, 0, 0, true},
};

static void odd_shapes(void **unused) {
    for (size_t k = 0; k < COUNT(odd); k++) {
        const Made *m = &odd[k];
        char *dir = temp_dir();
        write_made(dir, m);
        float *x = numbers(dir, "w.weight", m->rows, m->cols);
        for (int64_t i = 0; i < m->rows * m->cols; i++)
            if (x[i] != meant(m, i))
                fail_msg("%s %ld x %ld: element %ld", m->kind, m->rows, m->cols, i);
        free(x);
        remove_dir(dir);
    }
}

/* Codes may stand in a tensor of floats: they are not looked at as such. */
static void codes_of_any_type(void **unused) {
    const Made *m = &odd[COUNT(odd) - 1];
    enum { N = 300 * 1024, BLOCKS = N / 512 };
    Err err = {0};
    char *dir = temp_dir();
    write_made(dir, m);
    Buf bufs[] = {buf_of(DT_u8, N / 2), buf_of(DT_f32, BLOCKS)};
    Bind binds[] = {bind_of("w.weight", 300, 1024, "fp4.codes"),
                    bind_of("w.weight", 300, 1024, "fp4.absmax")};
    for (int i = 0; i < 2; i++) binds[i].num = 512;
    Plan *plan = plan_of(bufs, binds, 2);
    char *got = bound(plan, dir, &err);
    if (!got) fail_msg("%s", err.text);
    for (int i = 0; i < N / 2; i++) assert_int_equal((uint8_t)got[i], byte_at(i));
    free(got);
    plan_free(plan);
    remove_dir(dir);
}

/* The parts of a bind as they stand in the file, its own map included; with gaps between rows when
 * the numbers are asked for. */
static void parts_as_they_are(void **unused) {
    const Made *m = &odd[2];
    enum { N = 130 * 131, BLOCKS = 267 };
    static const char *const part[] = {"nf4.codes", "nf4.absmax", "nf4.absmax2", "nf4.offset",
                                       "nf4.map"};
    Err err = {0};
    char *dir = temp_dir();
    write_made(dir, m);
    Buf bufs[6] = {buf_of(DT_u8, N / 2), buf_of(DT_u8, BLOCKS), buf_of(DT_f32, 2),
                   buf_of(DT_f32, 1),    buf_of(DT_f32, 256),   buf_of(DT_f32, 130 * 140)};
    Bind binds[6];
    for (int i = 0; i < 5; i++) {
        binds[i] = bind_of("w.weight", 130, 131, part[i]);
        binds[i].num = 64;
        binds[i].nested = true;
    }
    binds[5] = bind_of("w.weight", 130, 131, "copy");
    binds[5].ld = 140;
    Plan *plan = plan_of(bufs, binds, 6);
    char *got = bound(plan, dir, &err);
    if (!got) fail_msg("%s", err.text);
    for (int i = 0; i < N / 2; i++) assert_int_equal((uint8_t)got[i], byte_at(i));
    for (int i = 0; i < BLOCKS; i++)
        assert_int_equal((uint8_t)got[plan->bufs[1].offset + i], byte_at(i + 999));
    const float *map = (const float *)(const void *)(got + plan->bufs[4].offset);
    const float *offset = (const float *)(const void *)(got + plan->bufs[3].offset);
    const float *rows = (const float *)(const void *)(got + plan->bufs[5].offset);
    for (int i = 0; i < 256; i++) assert_true(map[i] == map_at(i));
    assert_true(*offset == 0.8125f);
    for (int i = 0; i < 130 * 140; i++)
        assert_true(rows[i] == (i % 140 < 131 ? meant(m, i / 140 * 131 + i % 140) : 0));
    free(got);
    plan_free(plan);
    remove_dir(dir);
}

static void refused(const Made *m, const char *transform, double block, const char *says) {
    Err err = {0};
    char *dir = temp_dir();
    write_made(dir, m);
    Buf bufs[2] = {buf_of(DT_u8, 480), buf_of(DT_f32, 480)};
    Bind binds[2] = {bind_of("w.weight", 12, 40, transform ? transform : "copy"),
                     bind_of("w.weight", 12, 40, "nf4.absmax")};
    for (int i = 0; i < 2; i++) binds[i].num = block;
    Plan *plan = plan_of(transform ? bufs : bufs + 1, binds, transform ? 2 : 1);
    assert_null(bound(plan, dir, &err));
    if (!strstr(err.text, says) || !strstr(err.text, "w.weight"))
        fail_msg("%s\nexpected: %s", err.text, says);
    plan_free(plan);
    remove_dir(dir);
}

static void what_is_refused(void **unused) {
    static const Made good = {.kind = "nf4", .rows = 12, .cols = 40, .block = 64};
    static const struct {
        const char *state, *says;
    } states[] = {
        {"{", "quant_state is no JSON object"},
        {"[]", "quant_state is no JSON object"},
        {"{}", "\"quant_type\" of its quant_state is not \"nf4\""},
        {"{\"quant_type\": \"fp4\"}", "is not \"nf4\""},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 0}", "\"blocksize\" of its quant_state"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [3]}",
         "codes of 3 numbers take 2"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [4611686018427387904, 4]}",
         "is not [rows, columns]"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [2, 4, 60]}",
         "is not [rows, columns]"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"shape\": [40, 12]}", "expected [12, 40]"},
    };
    for (size_t i = 0; i < COUNT(states); i++) {
        Made m = good;
        m.state = states[i].state;
        refused(&m, NULL, 0, states[i].says);
    }
    static const char *const parts[] = {"absmax", "quant_map"};
    for (int i = 0; i < 2; i++) {
        Made m = good;
        m.less = parts[i];
        char says[100];
        snprintf(says, sizeof says, "there is no \"w.weight.%s\"", parts[i]);
        refused(&m, NULL, 0, says);
    }
    Made m = good;
    m.map_off = 1;
    refused(&m, NULL, 0, "its quant_map has 0.5 for code 0; nf4 means -1");
    m = good;
    m.absmax_off = 1;
    refused(&m, NULL, 0, "its \"absmax\" is F32 of 9 elements; expected F32 of 8");
    m = good;
    m.nested = true;
    m.less = "nested_quant_map";
    refused(&m, NULL, 0, "there is no \"w.weight.nested_quant_map\"");
    refused(&good, "nf4.codes", 32,
            "quantized already, as nf4(block = 64); the plan asks for nf4("
            "block = 32)");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(its_own_numbers), cmocka_unit_test(odd_shapes),
        cmocka_unit_test(codes_of_any_type), cmocka_unit_test(parts_as_they_are),
        cmocka_unit_test(what_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
