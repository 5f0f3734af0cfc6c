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

static const float nf4_lut[16] = {NF4_VALUES}, nf4_above[15] = {NF4_ABOVE};
static const float fp4_lut[16] = {FP4_VALUES}, fp4_above[7] = {FP4_ABOVE};
static const uint8_t fp4_order[8] = {FP4_ORDER};

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

/* torch.linspace(0.1, 1, items + 1)[i] in fp32: from the nearer end, with a fused multiply-add as
 * torch has it on every CPU with AVX2 (elsewhere 42 entries of the map differ in the last bit). */
static float edge(int i, int items) {
    float step = (1.0f - 0.1f) / (float)items;
    return i < (items + 1) / 2 ? fmaf(step, (float)i, 0.1f) : fmaf(-step, (float)(items - i), 1.0f);
}

/* bitsandbytes' create_dynamic_map: for i in 0..6 the midpoints of P + 1 edges from 0.1 to 1, times
 * 10^(i-6); P is 2^i and both signs are there, or 2^(i+1); then 0 and 1. */
static void make_map(float map[256], bool is_signed) {
    static const float scale[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    int n = 0;
    for (int i = 0; i < 7; i++)
        for (int j = 0, items = 1 << (i + !is_signed); j < items; j++) {
            float mean = (edge(j, items) + edge(j + 1, items)) / 2.0f;
            map[n++] = scale[i] * mean;
            if (is_signed) map[n++] = -(scale[i] * mean);
        }
    map[n++] = 0;
    map[n++] = 1;
    qsort(map, 256, sizeof *map, by_value);
}

const float *quant_map(bool is_signed) {
    static float map[2][256];
    static bool made[2];
    if (!made[is_signed]) make_map(map[is_signed], is_signed);
    made[is_signed] = true;
    return map[is_signed];
}

/* Number of thresholds below x: NaN compares false with all of them and gives code 0. */
static inline int count_above(float x, const float *above, int n) {
    int code = 0;
    for (int i = 0; i < n; i++) code += x > above[i];
    return code;
}

/* x[i] * unit as int8: to the nearest, ties to even; what is not a number as 0. */
static inline int int8_of(float v) {
    float low = v < -127 ? -127 : v, in = low > 127 ? 127 : low;
    return v == v ? (int)rintf(in) : 0;
}

static float largest(const float *x, int64_t n) {
    float most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

enum { STRIP = 64 }; /* elements coded at a time, whatever the block */

/* Codes of at most STRIP elements of one block. */
static void code_strip(QuantFormat format, const float *x, int n, float absmax, int *code) {
    float unit = (format == QUANT_INT8 ? 127.0f : 1.0f) / absmax;
    if (format == QUANT_NF4) {
#pragma omp simd
        for (int i = 0; i < n; i++) code[i] = count_above(x[i] * unit, nf4_above, 15);
    } else if (format == QUANT_FP4) {
        for (int i = 0; i < n; i++)
            code[i] = fp4_order[count_above(fabsf(x[i] * unit), fp4_above, 7)] |
                      (x[i] * unit < 0 ? 8 : 0);
    } else {
        for (int i = 0; i < n; i++) code[i] = int8_of(x[i] * unit);
    }
}

/* Puts n codes in place, the first of which is element `at` of the tensor. */
static void put_codes(QuantFormat format, const int *code, int n, int64_t at, uint8_t *codes) {
    if (format == QUANT_INT8) {
        for (int i = 0; i < n; i++) codes[at + i] = (uint8_t)code[i];
        return;
    }
    int i = 0;
    if (at % 2 && n) codes[at / 2] |= (uint8_t)code[i++]; /* the block before was odd */
    for (; i + 1 < n; i += 2) codes[(at + i) / 2] = (uint8_t)(code[i] << 4 | code[i + 1]);
    if (i < n) codes[(at + i) / 2] = (uint8_t)(code[i] << 4);
}

static void quant_block(QuantFormat format, const float *x, int64_t begin, int64_t end,
                        uint8_t *codes, float *absmax) {
    int code[STRIP];
    *absmax = largest(x + begin, end - begin);
    for (int64_t at = begin; at < end; at += STRIP) {
        int n = (int)(end - at < STRIP ? end - at : STRIP);
        code_strip(format, x + at, n, *absmax, code);
        put_codes(format, code, n, at, codes);
    }
}

void quant_blocks(QuantFormat format, const float *x, int64_t n, int64_t block, uint8_t *codes,
                  float *absmax) {
    int64_t pair = block % 2 ? 2 : 1; /* odd blocks share a byte: one thread for both */
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < (n + block * pair - 1) / (block * pair); p++)
        for (int64_t b = p * pair; b < (p + 1) * pair && b * block < n; b++) {
            int64_t end = (b + 1) * block < n ? (b + 1) * block : n;
            quant_block(format, x, b * block, end, codes, &absmax[b]);
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
    const float *map = quant_map(true);
#pragma omp parallel for schedule(static) if (n > 1 << 14)
    for (int64_t g = 0; g < (n + QUANT_GROUP - 1) / QUANT_GROUP; g++) {
        int64_t end = (g + 1) * QUANT_GROUP < n ? (g + 1) * QUANT_GROUP : n;
        float most = 0;
        for (int64_t i = g * QUANT_GROUP; i < end; i++)
            most = fmaxf(most, fabsf(absmax[i] - offset));
        absmax2[g] = most;
        for (int64_t i = g * QUANT_GROUP; i < end; i++)
            codes[i] = nearest(map, most > 0 ? (absmax[i] - offset) * (1.0f / most) : 0);
    }
}

void dequant_blocks(QuantFormat format, const uint8_t *codes, const float *absmax, int64_t begin,
                    int64_t n, int64_t block, float *x) {
    const float *lut = quant_lut(format);
    int64_t odd = begin % 2;
    for (int64_t i = 0, end; i < n; i = end) {
        int64_t at = (begin + i) / block, left = (at + 1) * block - begin;
        float scale = format == QUANT_INT8 ? absmax[at] / 127.0f : absmax[at];
        end = left < n ? left : n;
        for (int64_t k = i; k < end; k++) {
            uint8_t byte = codes[format == QUANT_INT8 ? k : (k + odd) / 2];
            x[k] = scale * (format == QUANT_INT8 ? (float)(int8_t)byte
                                                 : lut[(k + odd) % 2 ? byte & 15 : byte >> 4]);
        }
    }
}

void dequant_nested(const uint8_t *codes, const float *absmax2, float offset, const float *map,
                    int64_t n, float *absmax) {
    for (int64_t i = 0; i < n; i++) absmax[i] = map[codes[i]] * absmax2[i / QUANT_GROUP] + offset;
}
