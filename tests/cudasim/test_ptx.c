/* What kernels/cuda/ptx.cuh promises, on the simulated device (with --real: on the machine's GPU):
 * which lane holds which element of the fragments of mma.m16n8k16, what ldmatrix gives to whom, and
 * what asynchronous copies leave.
 *
 * The figures of the PTX ISA show matrices and in each cell the thread and element that hold it;
 * place_a, place_b, place_c say the same.  Lanes give raw registers and store raw registers.
 */
#include "../../compiler/dpoc.h"
#include "../../runtime/quantize.h"
#include "../device/device.h"
#include "loaded.h"

#include <math.h>

static const char multiply_text[] =
    "extern \"C\" __global__ void multiply(const uint32_t *a, const uint32_t *b, float *c,\n"
    "                                    int64_t blocks) {\n"
    "    const int64_t at = (int64_t)blockIdx.x * 32 + threadIdx.x;\n"
    "    mma_bf16(c + 4 * at, a + 4 * at, b[2 * at], b[2 * at + 1]);\n"
    "}\n";
static const char load_text[] =
    "extern \"C\" __global__ void load(const uint16_t *x, const int32_t *row, uint32_t *r,\n"
    "                                int64_t blocks) {\n"
    "    for (int i = threadIdx.x; i < 8 * 64; i += 32) ((uint16_t *)tile_room)[i] = x[i];\n"
    "    __syncthreads();\n"
    "    const shared_t at = shared_address(tile_room) + row[threadIdx.x] * 16;\n"
    "    if (blockIdx.x == 0) ldmatrix_x4(r + 4 * threadIdx.x, at);\n"
    "    if (blockIdx.x == 1) ldmatrix_x4_trans(r + 128 + 4 * threadIdx.x, at);\n"
    "}\n";
static const char copy_text[] =
    "extern \"C\" __global__ void copy(const uint32_t *x, uint32_t *y, int64_t blocks) {\n"
    "    const shared_t to = shared_address(tile_room);\n"
    "    const int t = threadIdx.x;\n"
    "    cp_async_16(to + 16 * t, x + 4 * t, t % 3 != 0);\n"
    "    cp_async_commit();\n"
    "    cp_async_4(to + 512 + 4 * t, x + 128 + t, t % 2 != 0);\n"
    "    cp_async_commit();\n"
    "    cp_async_wait(1);\n"
    "    __syncthreads();\n"
    "    for (int i = t; i < 128; i += 32) y[i] = ((const uint32_t *)tile_room)[i];\n"
    "    cp_async_wait(0);\n"
    "    __syncthreads();\n"
    "    y[128 + t] = ((const uint32_t *)tile_room)[128 + 31 - t];\n"
    "}\n";
static const char numbers_text[] =
    "extern \"C\" __global__ void numbers(const float *x, float *y, uint32_t *z, int64_t n) {\n"
    "    for (int64_t i = threadIdx.x; i < n; i += 32) {\n"
    "        y[i] = exp2_fast(x[i]);\n"
    "        z[i] = pack_bf16(x[i], -x[i]);\n"
    "    }\n"
    "}\n";

enum { MULTIPLY, LOAD, COPY, NUMBERS, ROOM = 1 << 20 };
static Kernel kernels[] = {
    {.symbol = "multiply",
     .text = multiply_text,
     .kind = "multiply",
     .rows_per_block = 1,
     .grid_y = 1,
     .threads = 32},
    {.symbol = "load",
     .text = load_text,
     .kind = "load",
     .rows_per_block = 1,
     .grid_y = 1,
     .threads = 32},
    {.symbol = "copy",
     .text = copy_text,
     .kind = "copy",
     .rows_per_block = 1,
     .grid_y = 1,
     .threads = 32},
    {.symbol = "numbers",
     .text = numbers_text,
     .kind = "numbers",
     .rows_per_block = 1 << 20,
     .grid_y = 1,
     .threads = 32},
};
static Plan plan = {.device = "sm_80", .kernels = kernels, .nkernels = COUNT(kernels)};

/* Runs a kernel on inputs of these bytes, one after the other at multiples of 256; the last `nout`
 * of n are read back. */
static void run(int kernel, void **data, const size_t *bytes, int n, int nout, int64_t size) {
    Err err = {0};
    void *p[8];
    int64_t at[8], end = 0;
    bool ok = true;
    for (int i = 0; i < n; i++) {
        at[i] = end;
        p[i] = dev->base + end;
        end += (int64_t)(bytes[i] + 255) / 256 * 256;
        ok = ok && dev->ops->write(dev, at[i], data[i], (int64_t)bytes[i], &err);
    }
    assert_true(end <= ROOM);
    ok = ok && dev->ops->launch(dev, kernel, p, n, &size, 1, &err) && dev->ops->sync(dev, &err);
    for (int i = n - nout; i < n; i++)
        ok = ok && dev->ops->read(dev, at[i], data[i], (int64_t)bytes[i], &err);
    if (!ok) fail_msg("%s", err.text);
}

/* ---- fragments ------------------------------------------------------------------------------- */

typedef struct Placed { /* thread and element (a0 .., b0 .., c0 ..) of a cell */
    int thread, element;
} Placed;

/* The figure for A: rows 0-7 are T0 T0 T1 T1 T2 T2 T3 T3 {a0,a1}, then the same threads again with
 * {a4,a5}; the next row T4 ..; rows 8-15 the same with {a2,a3} and {a6,a7}. */
static Placed place_a(int row, int col) {
    return (Placed){row % 8 * 4 + col % 8 / 2, col % 2 + (row >= 8 ? 2 : 0) + (col >= 8 ? 4 : 0)};
}
/* B: column 0 is T0 T0 T1 T1 T2 T2 T3 T3 {b0,b1} downwards, then again with {b2,b3}; the next
 * column T4 .. */
static Placed place_b(int row, int col) {
    return (Placed){col * 4 + row % 8 / 2, row % 2 + (row >= 8 ? 2 : 0)};
}
/* C: rows 0-7 are T0 T0 T1 T1 T2 T2 T3 T3 {c0,c1}, the next T4 ..; rows 8-15 with {c2,c3}. */
static Placed place_c(int row, int col) {
    return (Placed){row % 8 * 4 + col / 2, col % 2 + (row >= 8 ? 2 : 0)};
}

static void fragments(void **unused) {
    (void)unused;
    enum { CASES = 256 }; /* each has one element of A, and all of B and C */
    static uint16_t a[CASES][32][8], b[CASES][32][4];
    static float c[CASES][32][4];
    for (int e = 0; e < CASES; e++) {
        const Placed one = place_a(e / 16, e % 16);
        a[e][one.thread][one.element] = float_to_bf16(1);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                const Placed pb = place_b(i, j), pc = place_c(i, j);
                b[e][pb.thread][pb.element] = float_to_bf16((float)(1 + 8 * i + j));
                c[e][pc.thread][pc.element] = (float)(1000 * i + 200 * j);
            }
    }
    run(MULTIPLY, (void *[]){a, b, c}, (size_t[]){sizeof a, sizeof b, sizeof c}, 3, 1, CASES);
    for (int e = 0; e < CASES; e++)
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                const Placed p = place_c(i, j);
                const int before = 1000 * i + 200 * j, row = e / 16, k = e % 16;
                const float want = (float)(before + (i == row ? 1 + 8 * k + j : 0));
                if (c[e][p.thread][p.element] != want)
                    fail_msg("a[%d][%d] = 1: c[%d][%d] is %g, should be %g", row, k, i, j,
                             (double)c[e][p.thread][p.element], (double)want);
            }
}

/* ---- loads and copies ------------------------------------------------------------------------ */

static void matrices(void **unused) {
    (void)unused;
    static uint16_t x[64][8];
    static uint32_t r[2][32][4];
    int32_t row[32];
    for (int i = 0; i < 64 * 8; i++) x[i / 8][i % 8] = (uint16_t)(1 + 127 * i);
    for (int l = 0; l < 32; l++) row[l] = (l * 11 + 5) % 64; /* anywhere */
    run(LOAD, (void *[]){x, row, r}, (size_t[]){sizeof x, sizeof row, sizeof r}, 3, 1, 2);
    for (int t = 0; t < 32; t++)
        for (int m = 0; m < 4; m++)
            for (int half = 0; half < 2; half++) {
                const int i = t / 4, j = t % 4 * 2 + half;
                assert_int_equal(r[0][t][m] >> (16 * half) & 0xffff, x[row[8 * m + i]][j]);
                assert_int_equal(r[1][t][m] >> (16 * half) & 0xffff, x[row[8 * m + j]][i]);
            }
}

static void copies(void **unused) {
    (void)unused;
    uint32_t x[160], y[160] = {0};
    for (uint32_t i = 0; i < 160; i++) x[i] = 7 + 3 * i;
    run(COPY, (void *[]){x, y}, (size_t[]){sizeof x, sizeof y}, 2, 1, 1);
    for (uint32_t i = 0; i < 128; i++) assert_int_equal(y[i], i / 4 % 3 ? x[i] : 0);
    for (uint32_t i = 0; i < 32; i++) assert_int_equal(y[128 + i], (31 - i) % 2 ? x[159 - i] : 0);
}

static void functions(void **unused) {
    (void)unused;
    enum { N = 2000 };
    static float x[N], y[N];
    static uint32_t z[N];
    for (int i = 0; i < N; i++) x[i] = (float)(i - 1500) * 0.1f;
    run(NUMBERS, (void *[]){x, y, z}, (size_t[]){sizeof x, sizeof y, sizeof z}, 3, 2, N);
    for (int i = 0; i < N; i++) {
        const double want = x[i] < -126 ? 0 : exp2((double)x[i]);
        assert_true(fabs((double)y[i] - want) <= 0x1p-22 * want);
        assert_int_equal(z[i] & 0xffff, float_to_bf16(x[i]));
        assert_int_equal(z[i] >> 16, float_to_bf16(-x[i]));
    }
}

static int open_device(void **unused) {
    (void)unused;
    static const Target target = {.name = "sm_80", .cuda = true};
    plan.prelude = emit_prelude(&target);
    for (size_t i = 0; i < COUNT(kernels); i++) kernels[i].shared_bytes = 1024;
    load_on_device(&plan, ROOM);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "--real")) simulate(argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(fragments), cmocka_unit_test(matrices),
                                       cmocka_unit_test(copies), cmocka_unit_test(functions)};
    return cmocka_run_group_tests(tests, open_device, close_device);
}
