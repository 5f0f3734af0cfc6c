/* number.c: sizes with units, clocks, and the two 16-bit float formats (base.h).  Relies on libc
 * only. */
#include "base.h"

#include <ctype.h>  /* isdigit */
#include <math.h>   /* isfinite */
#include <stdlib.h> /* strtod */
#include <string.h> /* memcpy */
#include <time.h>   /* clock_gettime */

/* ---- sizes ----------------------------------------------------------------------------------- */

bool unit_scale(const char *unit, size_t n, double *scale) {
    static const struct {
        const char *name;
        double scale;
    } units[] = {{"B", 1},
                 {"KiB", 1024},
                 {"MiB", 1048576},
                 {"GiB", 1073741824.0},
                 {"TiB", 1099511627776.0},
                 {"kB", 1e3},
                 {"KB", 1e3},
                 {"MB", 1e6},
                 {"GB", 1e9},
                 {"TB", 1e12},
                 {"k", 1e3}};
    for (size_t i = 0; i < COUNT(units); i++) {
        if (strlen(units[i].name) != n || strncmp(units[i].name, unit, n) != 0) continue;
        *scale = units[i].scale;
        return true;
    }
    return false;
}

bool parse_size(const char *text, double *value) {
    if (!isdigit((unsigned char)text[0]) || (text[0] == '0' && (text[1] | 32) == 'x')) return false;
    char *end;
    double number = strtod(text, &end), scale = 1;
    const char *unit = end + strspn(end, " ");
    if (*unit && !unit_scale(unit, strlen(unit), &scale)) return false;
    if (*unit == 'k' && unit[1] == '\0' && unit != end) return false; /* k only joined: 2k */
    if (*end && !*unit) return false;
    if (!isfinite(number * scale)) return false;
    *value = number * scale;
    return true;
}

void format_bytes(char out[32], double bytes) {
    static const char *const unit[] = {"KiB", "MiB", "GiB", "TiB"};
    if (fabs(bytes) < 1024) {
        snprintf(out, 32, "%.0f B", bytes);
        return;
    }
    size_t u = 0;
    for (bytes /= 1024; fabs(bytes) >= 1023.95 && u + 1 < COUNT(unit); u++) bytes /= 1024;
    snprintf(out, 32, "%.1f %s", bytes, unit[u]);
}

double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- 16-bit floats: round to nearest even; NaN stays a quiet NaN ----------------------------- */

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

float bf16_to_float(uint16_t bits) {
    return float_of((uint32_t)bits << 16);
}

uint16_t float_to_bf16(float x) {
    uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float f16_to_float(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, part = bits & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000 | (part ? 0x400000 : 0) | part << 13);
    if (exponent) return float_of(sign | (exponent + 112) << 23 | part << 13);
    float tiny = (float)part * 0x1p-24f; /* subnormal or zero: exact */
    return sign ? -tiny : tiny;
}

uint16_t float_to_f16(float x) {
    uint32_t bits = bits_of(x), size = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (size >> 13 & 0x3ff));
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and more round to infinity */
    if (size < 0x38800000) { /* below the smallest normal: adding 0.5 rounds at 2^-24 */
        uint32_t rounded = bits_of(float_of(size) + 0.5f);
        return (uint16_t)(sign | (rounded - 0x3f000000));
    }
    return (uint16_t)(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}

/* Loops without branches, which the compiler makes into vectors. */

void floats_from_bf16(float *out, const uint16_t *bits, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = float_of((uint32_t)bits[i] << 16);
}

void floats_from_f16(float *out, const uint16_t *bits, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint32_t size = bits[i] & 0x7fff, part = size & 1023;
        uint32_t number = bits_of(float_of(size << 13) * 0x1p112f); /* subnormal ones too */
        uint32_t special = 0x7f800000 | (part ? 0x400000 : 0) | part << 13;
        number = size < 0x7c00 ? number : special;
        out[i] = float_of(number | (uint32_t)(bits[i] & 0x8000) << 16);
    }
}

void floats_to_bf16(uint16_t *out, const float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = bits_of(x[i]), nan = (bits & 0x7fffffff) > 0x7f800000;
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        out[i] = (uint16_t)(nan ? bits >> 16 | 0x40 : rounded);
    }
}
