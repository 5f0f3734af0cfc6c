/* quantize.c: nf4, fp4 and int8 codes and the double quantization of their scales (quantize.h).
 *
 * Tables and thresholds are bitsandbytes' (functional.py, csrc/kernels.cu).  Its CUDA build
 * multiplies by an approximate reciprocal; here the reciprocal is IEEE, so a value on a threshold
 * may differ by one code from a file it wrote.
 */
#include "quantize.h"

#include "../kernels/tables.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const quant_format_names[NQUANT] = {"nf4", "fp4", "int8"};
static const char *const piece_names[NQUANTPIECE] = {"codes", "absmax", "absmax2", "offset", "map"};

static const float nf4_lut[16] = {NF4_VALUES};
static const float nf4_above[15] = {
    /* x greater than entry k moves up to code k + 1 */
    -0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
    -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
    0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
    0.5016634166240692f,   0.6427869200706482f,   0.8614784181118011f,
};
static const float fp4_lut[16] = {FP4_VALUES};
static const float fp4_above[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f,
                                   0.4166667f,  0.583333f,  0.8333333f};
static const uint8_t fp4_order[8] = {0, 1, 6, 7, 4, 5, 2, 3}; /* codes by magnitude */

bool quant_format(const char *name, QuantFormat *format) {
    for (int i = 0; i < NQUANT; i++)
        if (!strcmp(name, quant_format_names[i])) {
            *format = (QuantFormat)i;
            return true;
        }
    return false;
}

bool quant_part(const char *transform, QuantPart *part) {
    for (int f = 0; f < NQUANT; f++) {
        size_t n = strlen(quant_format_names[f]);
        if (strncmp(transform, quant_format_names[f], n) || transform[n] != '.') continue;
        for (int p = 0; p < NQUANTPIECE; p++)
            if (!strcmp(transform + n + 1, piece_names[p])) {
                *part = (QuantPart){(QuantFormat)f, (QuantPiece)p};
                return true;
            }
    }
    return false;
}

DType quant_part_dtype(QuantPart part, bool nested) {
    if (part.piece == QUANT_CODES || (part.piece == QUANT_ABSMAX && nested)) return DT_u8;
    return DT_f32;
}

int64_t quant_part_count(QuantPart part, int64_t n, int64_t block, bool nested) {
    int64_t blocks = n / block + (n % block != 0);
    switch (part.piece) {
    case QUANT_CODES:
        return part.format == QUANT_INT8 ? n : n / 2 + n % 2;
    case QUANT_ABSMAX:
        return blocks;
    case QUANT_ABSMAX2:
        return nested ? blocks / QUANT_GROUP + (blocks % QUANT_GROUP != 0) : 0;
    case QUANT_OFFSET:
        return nested ? 1 : 0;
    case QUANT_MAP:
        return nested ? 256 : 0;
    default:
        return 0;
    }
}

int64_t quant_part_bytes(QuantPart part, int64_t n, int64_t block, bool nested) {
    return quant_part_count(part, n, block, nested) * dtype_bytes(quant_part_dtype(part, nested));
}

const float *quant_lut(QuantFormat format) {
    return format == QUANT_NF4 ? nf4_lut : format == QUANT_FP4 ? fp4_lut : NULL;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* torch.linspace(0.1, 1, items + 1)[i] in fp32: from the nearer end. */
static float edge(int i, int items) {
    float step = (1.0f - 0.1f) / (float)items;
    return i < (items + 1) / 2 ? 0.1f + step * (float)i : 1.0f - step * (float)(items - i);
}

/* bitsandbytes' create_dynamic_map(signed, 7 exponent bits): for i in 0..6 the midpoints of 2^i + 1
 * edges from 0.1 to 1, times 10^(i-6), with both signs; then 0 and 1. */
static void make_map(float map[256]) {
    static const float scale[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    int n = 0;
    for (int i = 0; i < 7; i++)
        for (int j = 0; j < 1 << i; j++) {
            float mean = (edge(j, 1 << i) + edge(j + 1, 1 << i)) / 2.0f;
            map[n++] = scale[i] * mean;
            map[n++] = -(scale[i] * mean);
        }
    map[n++] = 0;
    map[n++] = 1;
    qsort(map, 256, sizeof *map, by_value);
}

const float *quant_map(void) {
    static float map[256];
    static bool made;
    if (!made) make_map(map);
    made = true;
    return map;
}

/* Number of thresholds below x: NaN compares false with all of them and gives code 0. */
static unsigned count_above(float x, const float *above, int n) {
    unsigned code = 0;
    for (int i = 0; i < n; i++) code += x > above[i];
    return code;
}

static uint8_t code_of(QuantFormat format, float x) {
    if (format == QUANT_NF4) return (uint8_t)count_above(x, nf4_above, 15);
    unsigned code = fp4_order[count_above(fabsf(x), fp4_above, 7)];
    return (uint8_t)(code | (x < 0 ? 8u : 0u));
}

static uint8_t int8_of(float x, float absmax) {
    return (uint8_t)(int8_t)(absmax > 0 ? lrintf(x * (127.0f / absmax)) : 0);
}

void quant_blocks(QuantFormat format, const float *x, int64_t n, int64_t block, uint8_t *codes,
                  float *absmax) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < (n + block - 1) / block; b++) {
        int64_t end = (b + 1) * block < n ? (b + 1) * block : n;
        float most = 0;
        for (int64_t i = b * block; i < end; i++) most = fmaxf(most, fabsf(x[i]));
        absmax[b] = most;
    }
    int64_t bytes = quant_part_count((QuantPart){format, QUANT_CODES}, n, block, false);
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < bytes; j++) {
        if (format == QUANT_INT8) {
            codes[j] = int8_of(x[j], absmax[j / block]);
            continue;
        }
        int64_t i = 2 * j;
        unsigned high = code_of(format, x[i] * (1.0f / absmax[i / block]));
        unsigned low = i + 1 < n ? code_of(format, x[i + 1] * (1.0f / absmax[(i + 1) / block])) : 0;
        codes[j] = (uint8_t)(high << 4 | low);
    }
}

/* The nearest entry of the map; on a tie the one a binary search stands on (the lower). */
static uint8_t nearest(const float map[256], float x) {
    int low = 0, high = 255;
    while (high - low > 1) {
        int mid = (low + high) / 2;
        if (map[mid] <= x)
            low = mid;
        else
            high = mid;
    }
    return (uint8_t)(x > (map[low] + map[high]) * 0.5f ? high : low);
}

void quant_nested(const float *absmax, int64_t n, float offset, uint8_t *codes, float *absmax2) {
    const float *map = quant_map();
    for (int64_t g = 0; g * QUANT_GROUP < n; g++) {
        int64_t end = (g + 1) * QUANT_GROUP < n ? (g + 1) * QUANT_GROUP : n;
        float most = 0;
        for (int64_t i = g * QUANT_GROUP; i < end; i++)
            most = fmaxf(most, fabsf(absmax[i] - offset));
        absmax2[g] = most;
        for (int64_t i = g * QUANT_GROUP; i < end; i++)
            codes[i] = nearest(map, most > 0 ? (absmax[i] - offset) * (1.0f / most) : 0);
    }
}

void dequant_blocks(QuantFormat format, const uint8_t *codes, const float *absmax, int64_t n,
                    int64_t block, float *x) {
    const float *lut = quant_lut(format);
    for (int64_t i = 0; i < n; i++) {
        float scale = absmax[i / block];
        if (format == QUANT_INT8)
            x[i] = (float)(int8_t)codes[i] * (scale / 127.0f);
        else
            x[i] = lut[i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4] * scale;
    }
}

void dequant_nested(const uint8_t *codes, const float *absmax2, float offset, int64_t n,
                    float *absmax) {
    const float *map = quant_map();
    for (int64_t i = 0; i < n; i++) absmax[i] = map[codes[i]] * absmax2[i / QUANT_GROUP] + offset;
}
