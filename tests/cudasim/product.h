/* product.h: what tests of matrix products on a CUDA device share, simulated or real: operands,
 * the product itself, what must come out.
 *
 * Bound: k products and sums in fp32 in any order, at most 4 sums of parts, alpha, beta and bias
 * make k + 8 roundings of terms (Higham 3.1): |error| <= g * (|alpha| sum |a||b| + |beta c| +
 * |bias|), g = (k + 8) u / (1 - (k + 8) u), u = 2^-24; a bf16 result adds half a unit in its last
 * place: 2^-8 of the rounded value.  Tensor cores cut instead of rounding, after aligning a block
 * of terms to the largest: u = 2^-23 stands for both.
 *
 * Exact: multiples of 1/64 up to 1/2 have products that are multiples of 2^-12 up to 2^-2, so sums
 * of them need at most 24 bits while they stay below 2^12: any order gives the same, which is
 * rounded once.
 */
#ifndef CUDASIM_PRODUCT_H
#define CUDASIM_PRODUCT_H

#include "../device/device.h"

#include <math.h>

/* The arena: guard, workspace, guard, scratch, operands. */
#define GUARD INT64_C(4096)
typedef struct Room {
    int64_t work, scratch, arena;
} Room;

static inline int64_t room_operands(const Room *r) {
    return 2 * GUARD + r->work + r->scratch;
}

typedef struct Product {
    Gemm g;
    int64_t m, n, k;
    int64_t offset[4], bytes[4]; /* of a, b, c, bias in the arena */
    char *host[4];
    bool exact; /* numbers whose sums are exact in any order */
} Product;

static uint32_t number_state = 1;
static inline void numbers_again(void) {
    number_state = 1;
}

/* In -1 .. 1; exact: multiples of 1/64 in -1/2 .. 1/2. */
static inline float number(bool exact) {
    number_state = number_state * 1664525u + 1013904223u;
    float x = (float)(int32_t)(number_state >> 8) * 0x1p-23f - 1;
    return exact ? rintf(x * 32) * 0x1p-6f : x;
}

static inline double get(const char *p, DType t, int64_t i) {
    if (t == DT_f32) return ((const float *)p)[i];
    return bf16_to_float(((const uint16_t *)p)[i]);
}

static inline void fill(char *p, DType t, int64_t n, bool exact) {
    for (int64_t i = 0; i < n; i++) {
        if (t == DT_f32)
            ((float *)p)[i] = number(exact);
        else
            ((uint16_t *)p)[i] = float_to_bf16(number(exact));
    }
}

/* Operands with `gap` elements between rows, `shift` elements after an aligned address. */
static inline Product make(const Room *room, Gemm g, int64_t m, int64_t n, int64_t k, int gap,
                           int shift, bool exact) {
    Product p = {.g = g, .m = m, .n = n, .k = k, .exact = exact};
    int64_t rows[4] = {g.ta ? k : m, g.tb ? n : k, m, 1},
            cols[4] = {g.ta ? m : k, g.tb ? k : n, n, n};
    DType type[4] = {g.a, g.b, g.c, DT_f32};
    int64_t at = room_operands(room), bits = 256;
    for (int i = 0; i < 4; i++) {
        int64_t ld = i == 3 ? n : cols[i] + gap, size = dtype_bytes(type[i]);
        if (i < 3) (&p.g.lda)[i] = ld;
        p.offset[i] = at + shift * size;
        p.bytes[i] = rows[i] * ld * size;
        p.host[i] = calloc(1, (size_t)p.bytes[i] + 64);
        fill(p.host[i], type[i], rows[i] * ld, exact);
        if (i < 3 || g.bias) bits |= p.offset[i];
        at += (p.bytes[i] + 512 + 255) / 256 * 256;
    }
    assert_true(at <= room->arena);
    p.g.align = (int)(bits & -bits);
    return p;
}

static inline void drop(Product *p) {
    for (int i = 0; i < 4; i++) free(p->host[i]);
}

static inline bool write_operands(Device *dev, const Product *p, Err *err) {
    for (int i = 0; i < 4; i++)
        if (!dev->ops->write(dev, p->offset[i], p->host[i], p->bytes[i], err)) return false;
    return true;
}

static inline bool run(Device *dev, const Product *p, Err *err) {
    void *at[4];
    for (int i = 0; i < 4; i++) at[i] = dev->base + p->offset[i];
    return dev->ops->gemm(dev, &p->g, at, p->m, p->n, p->k, err);
}

static inline bool prepare(Device *dev, const Product *p, Err *err) {
    return dev->ops->gemm_prepare(dev, &p->g, p->m, p->n, p->k, err);
}

/* C as stored, gaps too; malloc. */
static inline char *compute(Device *dev, const Product *p) {
    Err err = {0};
    char *c = malloc((size_t)p->bytes[2]);
    bool ok = write_operands(dev, p, &err) && prepare(dev, p, &err) && run(dev, p, &err) &&
              dev->ops->read(dev, p->offset[2], c, p->bytes[2], &err);
    if (!ok) fail_msg("%s", err.text);
    return c;
}

/* One element: what it must be and how far it may be from that. */
static inline void check_one(const Product *p, const char *c, int64_t i, int64_t j, double u) {
    const Gemm *g = &p->g;
    double ku = (double)(p->k + 8) * u, gamma = ku / (1 - ku), sum = 0, size = 0;
    for (int64_t k = 0; k < p->k; k++) {
        double a = get(p->host[0], g->a, g->ta ? k * g->lda + i : i * g->lda + k);
        double b = get(p->host[1], g->b, g->tb ? j * g->ldb + k : k * g->ldb + j);
        sum += a * b;
        size += fabs(a * b);
    }
    double old = get(p->host[2], g->c, i * g->ldc + j), y = get(c, g->c, i * g->ldc + j);
    double bias = g->bias ? get(p->host[3], DT_f32, j) : 0;
    double want = g->alpha * sum + g->beta * old + bias;
    double bound = gamma * (fabs(g->alpha) * size + fabs(g->beta * old) + fabs(bias));
    if (g->c == DT_bf16) bound += 0x1p-8 * (fabs(want) + bound);
    if (p->exact) {
        if (g->c == DT_bf16) want = bf16_to_float(float_to_bf16((float)want));
        bound = 0;
    }
    if (!(fabs(y - want) <= bound))
        fail_msg("%lld x %lld x %lld ta %d tb %d: c[%lld][%lld] = %.9g, expected %.9g +- %g",
                 (long long)p->m, (long long)p->n, (long long)p->k, g->ta, g->tb, (long long)i,
                 (long long)j, y, want, bound);
}

/* Every element, and that nothing was written between rows. */
static inline void check(const Product *p, const char *c, double u) {
    const Gemm *g = &p->g;
    int64_t last = p->bytes[2] / dtype_bytes(g->c);
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < g->ldc && i * g->ldc + j < last; j++) {
            int64_t at = i * g->ldc + j;
            if (j < p->n)
                check_one(p, c, i, j, u);
            else
                assert_true(get(p->host[2], g->c, at) == get(c, g->c, at));
        }
}

/* ---- the device ------------------------------------------------------------------------------ */

static inline Device *open_in(const Room *room, const char *cache, const char *choices) {
    Err err = {0};
    DeviceOptions options = {.name = "cuda", .cache_dir = cache, .choices = choices};
    Device *dev = device_open(&options, &err);
    if (!dev || !dev->ops->alloc(dev, room->arena, &err)) fail_msg("%s", err.text);
    dev->ops->workspace(dev, GUARD, room->work);
    dev->ops->scratch(dev, 2 * GUARD + room->work, room->scratch);
    return dev;
}

static inline Gemm plain(DType operands, DType result, bool ta, bool tb) {
    return (Gemm){.a = operands, .b = operands, .c = result, .ta = ta, .tb = tb, .alpha = 1};
}

/* ---- small products -------------------------------------------------------------------------- */

/* All transposes of small and odd sizes, types, factors, gaps and alignments. */
static inline void check_grid(Device *dev, const Room *room, bool exact, double u) {
    static const int sizes[][3] = {{1, 1, 1},     {3, 5, 7},      {33, 65, 129}, {128, 64, 96},
                                   {70, 16, 700}, {16, 70, 512},  {1, 300, 64},  {200, 8, 33},
                                   {64, 96, 16},  {40, 1030, 24}, {100, 1, 260}};
    static const struct {
        DType a, c;
        float alpha, beta;
        bool bias;
        int gap, shift;
    } kinds[] = {{DT_f32, DT_f32, 1, 0, 0, 0, 0},    {DT_f32, DT_f32, -0.5f, 1, 0, 3, 1},
                 {DT_f32, DT_f32, 2, 0, 1, 8, 0},    {DT_bf16, DT_f32, 1, 0, 0, 0, 0},
                 {DT_bf16, DT_f32, 16, 1, 0, 8, 64}, {DT_bf16, DT_f32, 1, 1, 1, 5, 3},
                 {DT_bf16, DT_bf16, 1, 0, 0, 0, 0},  {DT_bf16, DT_bf16, 0.25f, 0, 0, 1, 8},
                 {DT_bf16, DT_bf16, 1, 1, 0, 16, 0}};
    for (size_t s = 0; s < COUNT(sizes); s++)
        for (size_t i = 0; i < COUNT(kinds); i++)
            for (int t = 0; t < 4; t++) {
                Gemm g = plain(kinds[i].a, kinds[i].c, t & 1, t >> 1);
                g.alpha = kinds[i].alpha;
                g.beta = kinds[i].beta;
                g.bias = kinds[i].bias;
                Product p = make(room, g, sizes[s][0], sizes[s][1], sizes[s][2], kinds[i].gap,
                                 kinds[i].shift, exact);
                char *c = compute(dev, &p);
                check(&p, c, u);
                free(c);
                drop(&p);
            }
}

#endif
