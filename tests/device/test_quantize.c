/* Quantized formats: codes are the nearest values, parts have the published layout and tables. */
#include "../../runtime/quantize.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include <cmocka.h>

static uint32_t state = 7;
static float next(void) { /* in -1 .. 1, more often small */
    state = state * 1664525u + 1013904223u;
    float x = (float)(int32_t)(state >> 8) * 0x1p-23f - 1;
    return x * fabsf(x);
}

/* Half the widest gap between neighbouring values of a sorted copy of the table. */
static double half_gap(const float *table, int n) {
    double widest = 0;
    for (int i = 0; i < n; i++) {
        double above = 2;
        for (int k = 0; k < n; k++)
            if (table[k] > table[i] && (double)(table[k] - table[i]) < above)
                above = (double)(table[k] - table[i]);
        if (above < 2 && above > widest) widest = above;
    }
    return widest / 2;
}

static unsigned code_at(QuantFormat format, const uint8_t *codes, int i) {
    if (format == QUANT_INT8) return codes[i];
    return i % 2 ? codes[i / 2] & 15u : codes[i / 2] >> 4u; /* even elements in the high half */
}

/* Every code stands for the nearest value of the table (thresholds are published to about 1e-7). */
static void nearest_value(void **unused) {
    enum { N = 4096, BLOCK = 64 };
    float x[N], absmax[N / BLOCK];
    uint8_t codes[N / 2];
    for (int f = QUANT_NF4; f <= QUANT_FP4; f++) {
        const float *lut = quant_lut((QuantFormat)f);
        for (int i = 0; i < N; i++) x[i] = next() * 3;
        quant_blocks((QuantFormat)f, x, N, BLOCK, codes, absmax);
        for (int i = 0; i < N; i++) {
            double scaled = (double)x[i] / (double)absmax[i / BLOCK];
            double off = fabs(scaled - (double)lut[code_at((QuantFormat)f, codes, i)]);
            for (int k = 0; k < 16; k++) assert_true(off <= fabs(scaled - (double)lut[k]) + 1e-6);
        }
    }
}

static void round_trip(void **unused) {
    static const int sizes[] = {1, 2, 63, 64, 65, 1000, 4097};
    static const int blocks[] = {32, 64, 100, 4096};
    float x[4097], back[4097], absmax[200];
    uint8_t codes[4097];
    for (int f = 0; f < NQUANT; f++)
        for (size_t s = 0; s < COUNT(sizes); s++)
            for (size_t b = 0; b < COUNT(blocks); b++) {
                int n = sizes[s], block = blocks[b];
                double widest =
                    f == QUANT_INT8 ? 0.5 / 127 : half_gap(quant_lut((QuantFormat)f), 16);
                for (int i = 0; i < n; i++) x[i] = next();
                quant_blocks((QuantFormat)f, x, n, block, codes, absmax);
                dequant_blocks((QuantFormat)f, codes, absmax, 0, n, block, back);
                for (int i = 0; i < n; i++) {
                    double most = (double)absmax[i / block];
                    assert_true(fabs((double)(x[i] - back[i])) <= most * (widest + 1e-6));
                    if (fabsf(x[i]) == absmax[i / block] && f != QUANT_FP4)
                        assert_true(fabsf(back[i]) > 0.999999f * absmax[i / block]);
                }
            }
}

/* Blocks of zeros and of one value; what is not a number does not spread to other blocks. */
static void odd_blocks(void **unused) {
    float x[192] = {0}, absmax[3], back[192];
    uint8_t codes[96];
    for (int i = 64; i < 128; i++) x[i] = -0.5f;
    x[130] = NAN;
    x[131] = 2;
    quant_blocks(QUANT_NF4, x, 192, 64, codes, absmax);
    assert_int_equal(codes[0], 0); /* bitsandbytes: 0 * inf is below every threshold */
    assert_int_equal(codes[130 / 2] >> 4, 0);
    dequant_blocks(QUANT_NF4, codes, absmax, 0, 192, 64, back);
    for (int i = 0; i < 64; i++) assert_true(back[i] == 0);
    for (int i = 64; i < 128; i++) assert_true(back[i] == -0.5f);
    assert_true(back[131] == 2);
}

/* Values bitsandbytes documents for its signed dynamic map. */
static void dynamic_map(void **unused) {
    const float *map = quant_map(true);
    assert_true(fabs((double)map[0] + 0.99296875) < 1e-7);
    assert_true(map[127] == 0 && map[255] == 1);
    assert_true(fabs((double)map[128] - 5.5e-7) < 1e-12 && fabs((double)map[126] + 5.5e-7) < 1e-12);
    assert_true(fabs((double)map[254] - 0.99296875) < 1e-7);
    for (int i = 1; i < 256; i++) assert_true(map[i] > map[i - 1]);
    for (int i = 1; i < 127; i++) assert_true(map[127 - i] == -map[127 + i]);
    /* zlib.crc32(bitsandbytes.functional.create_dynamic_map().numpy()), 0.50.2 with torch 2 */
    assert_int_equal(crc32(0, (const Bytef *)map, 256 * 4), 0x1b137aeb);
}

static void nested_absmax(void **unused) {
    enum { N = 700 };
    float absmax[N], absmax2[3], back[N];
    uint8_t codes[N];
    double sum = 0, widest = half_gap(quant_map(true), 256);
    for (int i = 0; i < N; i++) sum += (double)(absmax[i] = fabsf(next()) * 0.1f);
    float offset = (float)(sum / N);
    quant_nested(absmax, N, offset, codes, absmax2);
    dequant_nested(codes, absmax2, offset, quant_map(true), N, back);
    for (int i = 0; i < N; i++) {
        double most = (double)absmax2[i / 256];
        assert_true(fabs((double)(absmax[i] - back[i])) <= most * (widest + 1e-6));
    }
    float same[3] = {0.25f, 0.25f, 0.25f};
    quant_nested(same, 3, 0.25f, codes, absmax2);
    dequant_nested(codes, absmax2, 0.25f, quant_map(true), 3, back);
    for (int i = 0; i < 3; i++) assert_true(back[i] == 0.25f);
}

static void parts(void **unused) {
    QuantPart p;
    assert_true(quant_part("nf4.codes", &p) && p.format == QUANT_NF4 && p.piece == QUANT_CODES);
    assert_int_equal(quant_part_bytes(p, 1001, 64, true), 501);
    assert_true(quant_part("nf4.absmax", &p));
    assert_int_equal(quant_part_bytes(p, 1001, 64, false), 16 * 4);
    assert_int_equal(quant_part_bytes(p, 1001, 64, true), 16);
    assert_true(quant_part("fp4.absmax2", &p) && p.format == QUANT_FP4);
    assert_int_equal(quant_part_bytes(p, 64 * 257, 64, true), 8);
    assert_int_equal(quant_part_bytes(p, 64 * 257, 64, false), 0);
    assert_true(quant_part("int8.codes", &p));
    assert_int_equal(quant_part_bytes(p, 1001, 64, false), 1001);
    assert_false(quant_part("nf4", &p) || quant_part("nf4.", &p) || quant_part("nf5.codes", &p) ||
                 quant_part("nf4.codes ", &p));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nearest_value), cmocka_unit_test(round_trip),
        cmocka_unit_test(odd_blocks),    cmocka_unit_test(dynamic_map),
        cmocka_unit_test(nested_absmax), cmocka_unit_test(parts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
