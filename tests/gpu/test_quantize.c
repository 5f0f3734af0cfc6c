/* Weights in few bits on a CUDA device, the simulated one or (--device=cuda) a real one: codes and
 * scales made there while a checkpoint is read, and the numbers made of them, have the bits that
 * runtime/quantize.c gives: every format, odd sizes, part blocks and part groups, zeros, denormals,
 * ties.  The same where there is no room to do it on the device, and on the CPU. */
#include "../../compiler/dpoc.h"
#include "../../runtime/quantize.h"
#include "../device/device.h"
#include "../cudasim/simulated.h"
#include "executed.h"

#include "../../kernels/tables.h"

#include <math.h>

/* ---- what is tried --------------------------------------------------------------------------- */

static const struct {
    QuantFormat format;
    int block;
    bool nested;
    DType y;
} cases[] = {{QUANT_NF4, 64, true, DT_bf16},  {QUANT_NF4, 64, false, DT_f32},
             {QUANT_NF4, 4096, true, DT_f32}, {QUANT_NF4, 36, true, DT_bf16}, /* no multiple of 8 */
             {QUANT_NF4, 16, false, DT_bf16}, {QUANT_FP4, 64, false, DT_bf16},
             {QUANT_FP4, 256, true, DT_f32},  {QUANT_INT8, 64, false, DT_f32},
             {QUANT_INT8, 64, true, DT_bf16}, {QUANT_INT8, 130, false, DT_bf16}};
/* 131 x 130: a part of a block, 267 blocks of 64 in two groups; 1 x 7: less than a load */
static const int64_t shapes[][2] = {{1, 7}, {3, 40}, {131, 130}, {16, 64}, {5, 8192}};
enum { NCASES = COUNT(cases), NSHAPES = COUNT(shapes), MOST = 5 * 8192 };

static float value_at(int64_t i) {
    static const float nf4[] = {NF4_ABOVE}, fp4[] = {FP4_ABOVE};
    uint32_t bits = (uint32_t)i * 2654435761u;
    float noise = (float)(int32_t)(bits ^ bits >> 15) * 0x1p-31f;
    int k = (int)(i % 64);
    switch (i / 64 % 8) {
    case 1:
        return k % 3 ? 0.0f : -0.0f;
    case 2: /* on the thresholds */
        return k == 0 ? 1 : nf4[k % 15];
    case 3:
        return k == 0 ? -1 : k % 2 ? fp4[k / 2 % 7] : -fp4[k / 2 % 7];
    case 4:
        return noise * 0x1p-130f; /* 1 / absmax is infinite */
    case 5:
        return noise * 1e38f;
    case 6: /* halves of int8's steps */
        return k == 0 ? 127 : (float)k - 31.5f;
    default:
        return noise;
    }
}

/* What the host makes of a shape's tensor in a case's format. */
typedef struct Parts {
    uint8_t codes[MOST], nested[MOST];
    float absmax[MOST], absmax2[MOST], offset, y[MOST];
    uint16_t half[MOST];
} Parts;

static void expect(int which, int64_t n, Parts *p) {
    static float x[MOST];
    QuantFormat format = cases[which].format;
    int64_t block = cases[which].block, blocks = (n + block - 1) / block;
    for (int64_t i = 0; i < n; i++) x[i] = value_at(i);
    quant_blocks(format, x, n, block, p->codes, p->absmax);
    if (cases[which].nested) {
        double sum = 0;
        for (int64_t i = 0; i < blocks; i++) sum += (double)p->absmax[i];
        p->offset = (float)(sum / (double)blocks);
        quant_nested(p->absmax, blocks, p->offset, p->nested, p->absmax2);
        dequant_nested(p->nested, p->absmax2, p->offset, quant_map(true), blocks, p->absmax);
    }
    dequant_blocks(format, p->codes, p->absmax, 0, n, block, p->y);
    for (int64_t i = 0; i < n; i++) p->half[i] = float_to_bf16(p->y[i]);
}

/* ---- the plan -------------------------------------------------------------------------------- */

static const char *const part_names[] = {"codes", "absmax", "absmax2", "offset", "map"};
enum { YOUT = NQUANTPIECE, NBUFS = NQUANTPIECE + 1 };

static int buf_index(int which, int shape, int part) {
    return (which * NSHAPES + shape) * NBUFS + part;
}

/* An instance of a kernel file as compiler/quantized.c makes it. */
static Kernel kernel_of(Plan *plan, bool cuda, int which, const char *file) {
    static const char *const words[] = {"NF4", "FP4", "INT8"};
    const char *symbol = intern_printf("%s%d", file, which);
    const char *path = intern_printf(cuda ? "kernels/cuda/%s.cuh" : "kernels/cpu/%s.h", file);
    const char *body = embedded(path, NULL);
    const char *word = words[cases[which].format];
    assert_non_null(body);
    bool dequant = !strcmp(file, "dequant");
    char *text = arena_printf(
        plan->arena,
        "#define SYMBOL %s\n#define FN(name) %s_##name\n#define T_Y %s\n#define BLOCK %d\n"
        "#define NESTED %d\n#define %s 1\n%s%s\n%s#undef SYMBOL\n#undef FN\n#undef T_Y\n"
        "#undef BLOCK\n#undef NESTED\n#undef %s\n",
        symbol, symbol, dtype_name(cases[which].y), cases[which].block, cases[which].nested, word,
        which % 2 ? "#define SAFE 1\n" : "", body, which % 2 ? "#undef SAFE\n" : "", word);
    int block = cases[which].block;
    return (Kernel){.symbol = symbol,
                    .text = text,
                    .kind = file,
                    .rows_per_block = dequant ? (8192 + block - 1) / block : 8,
                    .grid_y = 1,
                    .threads = 256};
}

static void add_tensor(Plan *p, bool cuda, int which, int shape) {
    int64_t rows = shapes[shape][0], cols = shapes[shape][1], block = cases[which].block;
    Step *s = &p->programs[0].steps[which * NSHAPES + shape];
    s->kind = STEP_KERNEL;
    s->kernel = which;
    s->args = NEW_ARRAY(p->arena, Arg, NBUFS);
    s->dims = NEW_ARRAY(p->arena, Dim, 2);
    s->ndims = 2;
    s->dims[0] = dim_const((rows * cols + block - 1) / block);
    s->dims[1] = dim_const(rows * cols);
    s->label = s->where = "dequant";
    for (int part = 0; part < NBUFS; part++) {
        QuantPart q = {cases[which].format, (QuantPiece)part};
        int64_t count = part == YOUT ? rows * cols
                                     : quant_part_count(q, rows * cols, block, cases[which].nested);
        DType type = part == YOUT ? cases[which].y : quant_part_dtype(q, cases[which].nested);
        int at = buf_index(which, shape, part);
        p->bufs[at] = (Buf){.name = intern_printf("b%d", at),
                            .role = ROLE_WEIGHT,
                            .dtype = type,
                            .rank = 1,
                            .shape = {dim_const(count ? count : 1)},
                            .bytes = (count ? count : 1) * dtype_bytes(type),
                            .offset = p->arena_bytes,
                            .program = -1,
                            .persistent = true};
        p->arena_bytes += (p->bufs[at].bytes + 511) / 256 * 256;
        if (count) s->args[s->nargs++] = (Arg){.buf = at};
        if (part == YOUT || !count) continue;
        p->binds[p->nbinds++] = (Bind){
            .source = intern_printf("base:%d", which),
            .tensor = intern_printf("s%d", shape),
            .buf = at,
            .rows = rows,
            .cols = cols,
            .ld = cols,
            .rank = 2,
            .transform = intern_printf("%s.%s", quant_format_names[q.format], part_names[part]),
            .num = (double)block,
            .nested = cases[which].nested,
            .quantizer = cuda ? 1 + NCASES + which : 0};
    }
}

/* `scratch`: bytes that no buffer has. */
static Plan *make_plan(const Target *target, int64_t scratch) {
    Plan *p = plan_new();
    p->device = target->name;
    p->hash = "test";
    p->bucket = 1;
    p->prelude = emit_prelude(target);
    p->bufs = NEW_ARRAY(p->arena, Buf, NCASES * NSHAPES * NBUFS + 1);
    p->binds = NEW_ARRAY(p->arena, Bind, NCASES * NSHAPES * NQUANTPIECE);
    p->kernels = NEW_ARRAY(p->arena, Kernel, 2 * NCASES);
    p->programs = NEW_ARRAY(p->arena, Program, 1);
    p->nbufs = NCASES * NSHAPES * NBUFS;
    p->nkernels = target->cuda ? 2 * NCASES : NCASES;
    p->nprograms = 1;
    p->programs[0] = (Program){.name = "init", .nsteps = NCASES * NSHAPES};
    p->programs[0].steps = NEW_ARRAY(p->arena, Step, NCASES * NSHAPES);
    for (int c = 0; c < NCASES; c++) {
        p->kernels[c] = kernel_of(p, target->cuda, c, "dequant");
        if (target->cuda) p->kernels[NCASES + c] = kernel_of(p, true, c, "quantize");
        for (int s = 0; s < NSHAPES; s++) add_tensor(p, target->cuda, c, s);
    }
    p->arena_bytes += scratch;
    return p;
}

/* ---- running it ------------------------------------------------------------------------------ */

static const DeviceOps *real;
static DeviceOps counting;
static int quantized; /* launches of kernels that quantize */

static bool count_launch(Device *dev, int kernel, void *const *p, int np, const int64_t *n, int nn,
                         Err *err) {
    quantized += kernel >= NCASES;
    return real->launch(dev, kernel, p, np, n, nn, err);
}

static void write_tensors(const char *dir) {
    static float x[MOST];
    SafeTensor t[NSHAPES];
    Err err = {0};
    for (int s = 0; s < NSHAPES; s++)
        t[s] = (SafeTensor){.name = intern_printf("s%d", s),
                            .type = SAFE_F32,
                            .rank = 2,
                            .shape = {shapes[s][0], shapes[s][1]}};
    for (int64_t i = 0; i < MOST; i++) x[i] = value_at(i);
    SafeWriter *w = safe_create(intern_printf("%s/model.safetensors", dir), t, NSHAPES, NULL, &err);
    for (int s = 0; s < NSHAPES && w; s++)
        assert_true(safe_put(w, s, 0, x, shapes[s][0] * shapes[s][1] * 4, &err));
    if (!w || !safe_commit(w, &err)) fail_msg("%s", err.text);
}

static void same(Device *dev, const Plan *plan, int which, int shape, int part, const void *want) {
    static char got[MOST * 4];
    Err err = {0};
    const Buf *b = &plan->bufs[buf_index(which, shape, part)];
    if (!dev->ops->read(dev, b->offset, got, b->bytes, &err)) fail_msg("%s", err.text);
    for (int64_t i = 0; i < b->bytes; i++)
        if (got[i] != ((const char *)want)[i])
            fail_msg("%s of %d in %s, %lld x %lld: byte %lld differs",
                     part == YOUT ? "numbers" : part_names[part], cases[which].block,
                     quant_format_names[cases[which].format], (long long)shapes[shape][0],
                     (long long)shapes[shape][1], (long long)i);
}

static void check_all(Device *dev, const Plan *plan) {
    static Parts p;
    for (int c = 0; c < NCASES; c++)
        for (int s = 0; s < NSHAPES; s++) {
            bool nested = cases[c].nested;
            expect(c, shapes[s][0] * shapes[s][1], &p);
            same(dev, plan, c, s, QUANT_CODES, p.codes);
            same(dev, plan, c, s, QUANT_ABSMAX, nested ? (void *)p.nested : p.absmax);
            if (nested) {
                same(dev, plan, c, s, QUANT_ABSMAX2, p.absmax2);
                same(dev, plan, c, s, QUANT_OFFSET, &p.offset);
                same(dev, plan, c, s, QUANT_MAP, quant_map(true));
            }
            same(dev, plan, c, s, YOUT, cases[c].y == DT_f32 ? (void *)p.y : p.half);
        }
}

static void run(const char *device, int64_t scratch, int launches) {
    Err err = {0};
    char *dir = temp_dir();
    write_tensors(dir);
    Plan *plan = make_plan(target_by_name(strcmp(device, "cpu") ? "sm_80" : "cpu"), scratch);
    const char *build = getenv("BUILD");
    DeviceOptions options = {
        .name = device, .cache_dir = intern_printf("%s/cudasim/cache", build ? build : "build")};
    Device *dev = device_open(&options, &err);
    if (!dev) fail_msg("%s", err.text);
    real = dev->ops;
    counting = *real;
    counting.launch = count_launch;
    dev->ops = &counting;
    quantized = 0;
    BindSource source[NCASES];
    for (int c = 0; c < NCASES; c++)
        source[c] = (BindSource){.source = intern_printf("base:%d", c), .checkpoint = dir};
    Exec *exec = exec_open(plan, dev, &err);
    if (!exec || !exec_bind(exec, source, NCASES, 1, NULL, &err)) fail_msg("%s", err.text);
    assert_int_equal(quantized, launches);
    check_all(dev, plan);
    note_executed(plan);
    exec_close(exec);
    dev->ops->close(dev);
    plan_free(plan);
    remove_dir(dir);
}

static void on_the_device(void **unused) {
    static const char *const orders[] = {"forward", "reverse", "random:7"}; /* if simulated */
    for (size_t i = 0; i < COUNT(orders); i++) {
        setenv("CUDASIM_ORDER", orders[i], 1);
        run("cuda", 4 << 20, NCASES * NSHAPES);
    }
}

/* Without scratch the host does all of it; with a little, what is too large. */
static void without_room(void **unused) {
    int fit = 0;
    for (int c = 0; c < NCASES; c++)
        for (int s = 0; s < NSHAPES; s++) {
            int64_t n = shapes[s][0] * shapes[s][1],
                    blocks = (n + cases[c].block - 1) / cases[c].block;
            fit += (n * 4 + 255) / 256 * 256 + blocks * 4 <= 8192;
        }
    assert_true(fit > 0 && fit < NCASES * NSHAPES);
    run("cuda", 8192, fit);
    run("cuda", 0, 0);
}

static void on_the_cpu(void **unused) {
    run("cpu", 0, 0);
}

int main(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "--device=cuda")) simulate(argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(on_the_device),
                                       cmocka_unit_test(without_room),
                                       cmocka_unit_test(on_the_cpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
