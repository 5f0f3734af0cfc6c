/* feed.c: the values of one tensor: from a checkpoint (plain, or bitsandbytes' codes) or fresh.
 *
 * Relies on bind.h, quantize.h, io/, kernels/random.h.  Promises: a file is read in stretches by
 * all threads at once, each converting its own, and the next ones are asked for ahead; a value of a
 * file that is NaN or infinite is an error; fresh values depend on seed, source and tensor name
 * alone, so they are the same under any plan.
 */
#include "bind.h"
#include "io/adapter.h"

#include "../kernels/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STRETCH = 1 << 14 }; /* elements that a thread converts at a time, on its stack */

/* ---- finding a tensor ------------------------------------------------------------------------ */

static const char *needed_by(const Binder *b, const Bind *bind) {
    return bind->where ? arena_printf(b->arena, " (declared at %s)", bind->where) : "";
}

static bool shape_fits(const Binder *b, const Bind *bind, const Feed *feed) {
    const SafeTensor *t = feed->tensor;
    const int64_t *shape = feed->packed ? feed->codes.shape : t->shape;
    int rank = feed->packed ? feed->codes.rank : t->rank;
    bool vector = bind->rank == 1;
    if (rank == bind->rank && shape[0] == (vector ? bind->cols : bind->rows) &&
        (vector || shape[1] == bind->cols))
        return true;
    char *want = vector ? arena_printf(b->arena, "[%lld]", (long long)bind->cols)
                        : arena_printf(b->arena, "[%lld, %lld]", (long long)bind->rows,
                                       (long long)bind->cols);
    return fail(b->err, EXIT_INPUT, "%s: tensor \"%s\" is %s; expected %s%s", safe_path(t->file),
                t->name, safe_describe(b->arena, t), want, needed_by(b, bind));
}

/* The scales of a packed tensor's blocks, as numbers. */
static bool read_absmax(Binder *b, Feed *feed) {
    const Packed *p = &feed->codes;
    int64_t blocks = p->absmax->count;
    feed->absmax = malloc((size_t)blocks * 4);
    if (!feed->absmax) return fail(b->err, EXIT_MEMORY, "out of memory");
    if (!p->nested) return feed_part(b, p->absmax, false, 0, blocks * 4, feed->absmax);
    float map[256], *absmax2 = malloc((size_t)p->absmax2->bytes);
    uint8_t *codes = malloc((size_t)blocks);
    bool ok = (codes && absmax2) || fail(b->err, EXIT_MEMORY, "out of memory");
    ok = ok && feed_part(b, p->map, false, 0, sizeof map, map) &&
         feed_part(b, p->absmax2, false, 0, p->absmax2->bytes, absmax2) &&
         feed_part(b, p->absmax, false, 0, blocks, codes);
    if (ok) dequant_nested(codes, absmax2, p->offset, map, blocks, feed->absmax);
    free(codes);
    free(absmax2);
    return ok;
}

static bool feed_file(Binder *b, int s, const Bind *bind, Feed *feed) {
    const BindSource *source = &b->source[s];
    if (!b->checkpoint[s])
        b->checkpoint[s] = checkpoint_open(source->checkpoint,
                                           source->adapter ? "adapter_model" : "model", b->err);
    const Checkpoint *c = b->checkpoint[s];
    if (!c) return false;
    const char *prefix = source->adapter ? ADAPTER_PREFIX : "";
    const char *name = arena_printf(b->arena, "%s%s", prefix, bind->tensor);
    const char *alias = bind->alias ? arena_printf(b->arena, "%s%s", prefix, bind->alias) : NULL;
    feed->tensor = checkpoint_find(c, name, alias);
    if (!feed->tensor) return checkpoint_missing(c, name, b->err);
    feed->packed = packed_is(c, feed->tensor);
    if (feed->packed && !packed_read(c, feed->tensor, &feed->codes, b->err)) return false;
    QuantPart part; /* of a bind that takes codes as they are */
    bool numbers = !quant_part(bind->transform, &part);
    return shape_fits(b, bind, feed) && (!feed->packed || !numbers || read_absmax(b, feed));
}

/* "pref@start" is "pref" as it was at the start: the same fresh values. */
static void feed_key(const Bind *bind, uint32_t key[2]) {
    size_t n = strcspn(bind->source, "@");
    Hash128 hash = hash_bytes(bind->source, n, (Hash128){0, 0});
    hash = hash_bytes(bind->tensor, strlen(bind->tensor), hash);
    key[0] = (uint32_t)hash.lo;
    key[1] = (uint32_t)(hash.lo >> 32);
}

static bool feed_fresh(const Binder *b, int s, const Bind *bind, Feed *feed) {
    size_t n = strlen(bind->tensor);
    bool bias = n > 5 && !strcmp(bind->tensor + n - 5, ".bias");
    feed_key(bind, feed->key);
    if (bind->init) {
        bool zero = !strcmp(bind->init, "zero") || !strcmp(bind->init, "computed");
        bool gaussian = !strcmp(bind->init, "gaussian");
        feed->fresh = zero ? FRESH_ZERO : gaussian ? FRESH_GAUSSIAN : FRESH_UNIFORM;
        feed->num = gaussian ? bind->init_num : 1 / sqrt((double)bind->cols);
        return true;
    }
    if (!b->source[s].random)
        return fail(b->err, EXIT_USAGE, "\"%s\" needs weights for \"%s\"%s: name a model directory",
                    bind->source, bind->tensor, needed_by(b, bind));
    feed->fresh = bias ? FRESH_ZERO : bind->rank == 1 ? FRESH_ONE : FRESH_UNIFORM;
    feed->num = 0.02 * sqrt(3.0); /* standard deviation 0.02 */
    return true;
}

int feed_source(Binder *b, const Bind *bind) {
    for (int s = 0; s < b->nsource; s++)
        if (!strcmp(b->source[s].source, bind->source)) return s;
    fail(b->err, EXIT_BUG, "bug: no source \"%s\" for \"%s\"", bind->source, bind->tensor);
    return -1;
}

bool feed_open(Binder *b, const Bind *bind, Feed *feed) {
    *feed = (Feed){.fresh = FRESH_FILE};
    int s = feed_source(b, bind);
    if (s < 0) return false;
    return b->source[s].checkpoint ? feed_file(b, s, bind, feed) : feed_fresh(b, s, bind, feed);
}

void feed_close(Feed *feed) {
    free(feed->absmax);
}

/* ---- one stretch of values ------------------------------------------------------------------- */

static void fresh_block(const Feed *feed, uint64_t seed, uint64_t block, uint32_t word[4]) {
    word[0] = feed->key[0];
    word[1] = feed->key[1];
    word[2] = (uint32_t)(block >> 32);
    word[3] = (uint32_t)block;
    philox_7(word, (uint32_t)seed, (uint32_t)(seed >> 32));
}

/* Elements begin .. begin+n: four uniform ones, or two pairs of normal ones (Box, Muller), from the
 * words of a block. */
static void fresh_values(const Feed *feed, uint64_t seed, int64_t begin, int64_t n, float *out) {
    uint32_t word[4] = {0};
    for (int64_t i = begin; i < begin + n; i++) {
        int w = (int)(i % 4);
        if (w == 0 || i == begin) fresh_block(feed, seed, (uint64_t)i / 4, word);
        double x = (double)(word[w] >> 8) * 0x1p-23 - 1.0;
        if (feed->fresh == FRESH_GAUSSIAN) {
            double radius = sqrt(-2 * log(((double)word[w & 2] + 0.5) * 0x1p-32));
            double angle = 6.283185307179586 * ((double)word[w | 1] * 0x1p-32);
            x = radius * (w & 1 ? sin(angle) : cos(angle));
        }
        out[i - begin] = (float)(x * feed->num);
    }
}

static bool all_finite_32(const uint32_t *x, int64_t n) {
    uint32_t found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t i = 0; i < n; i++) found |= (x[i] & 0x7f800000) == 0x7f800000;
    return !found;
}

static bool all_finite_16(const uint16_t *x, uint16_t exponent, int64_t n) {
    uint16_t found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t i = 0; i < n; i++) found |= (x[i] & exponent) == exponent;
    return !found;
}

/* Values from a file must be numbers: a NaN would be everywhere after one product. */
static bool all_finite(const SafeTensor *t, const void *values, DType type, int64_t n, Err *err) {
    bool good = type == DT_f32 ? all_finite_32(values, n)
                               : all_finite_16(values, type == DT_bf16 ? 0x7f80 : 0x7c00, n);
    return good || fail(err, EXIT_NUMERIC, "%s: tensor \"%s\" holds NaN or infinity",
                        safe_path(t->file), t->name);
}

static bool read_codes(const Feed *feed, int64_t begin, int64_t n, float *out, Err *err) {
    const Packed *p = &feed->codes;
    uint8_t codes[STRETCH];
    int64_t first = begin, end = begin + n;
    if (p->format != QUANT_INT8) {
        first = begin / 2;
        end = (end + 1) / 2;
    }
    if (!safe_read(p->codes, first, end - first, codes, err)) return false;
    dequant_blocks(p->format, codes, feed->absmax, begin, n, p->block, out);
    return true;
}

static bool read_stretch(const Binder *b, const Feed *feed, int64_t begin, int64_t n, float *out,
                         Err *err) {
    if (feed->packed) return read_codes(feed, begin, n, out, err);
    if (feed->tensor)
        return safe_read_f32(feed->tensor, begin, n, out, err) &&
               all_finite(feed->tensor, out, DT_f32, n, err);
    if (feed->fresh > FRESH_ONE) fresh_values(feed, b->seed, begin, n, out);
    for (int64_t i = 0; i < n && feed->fresh <= FRESH_ONE; i++) out[i] = feed->fresh == FRESH_ONE;
    return true;
}

static bool convert_stretch(const Binder *b, const Feed *feed, int64_t begin, int64_t n,
                            double scale, DType to, char *out, Err *err) {
    static const SafeType same[NDTYPE] = {
        [DT_f32] = SAFE_F32, [DT_bf16] = SAFE_BF16, [DT_f16] = SAFE_F16};
    int64_t size = dtype_bytes(to);
    if (feed->tensor && scale == 1 && feed->tensor->type == same[to] && !feed->packed)
        return safe_read(feed->tensor, begin * size, n * size, out, err) &&
               all_finite(feed->tensor, out, to, n, err);
    float value[STRETCH];
    uint16_t *half = (uint16_t *)(void *)out;
    if (!read_stretch(b, feed, begin, n, value, err)) return false;
    if (scale != 1)
        for (int64_t i = 0; i < n; i++) value[i] *= (float)scale;
    if (to == DT_f32) memcpy(out, value, (size_t)n * 4);
    if (to == DT_bf16) floats_to_bf16(half, value, n);
    for (int64_t i = 0; i < n && to == DT_f16; i++) half[i] = float_to_f16(value[i]);
    return true;
}

/* ---- all threads at once --------------------------------------------------------------------- */

/* So much has been read; tells the person now and then. */
static void count(Binder *b, double elements, double bytes) {
    b->elements += elements;
    b->bytes += bytes;
    if (b->watch) b->watch->loaded(b->watch, b->bytes, b->elements / b->of_all);
}

/* Bytes that n elements take in the file. */
static int64_t file_bytes(const Feed *feed, int64_t n) {
    if (!feed->tensor) return 0;
    bool pairs = feed->packed && feed->codes.format != QUANT_INT8;
    return pairs ? n / 2 : n * safe_type_bits(feed->tensor->type) / 8;
}

bool feed_read(Binder *b, const Feed *feed, int64_t begin, int64_t n, double scale, DType to,
               void *out) {
    bool ok = true;
    int64_t ahead = begin ? begin + 2 * n : n; /* two pieces: the first call asks for both */
    if (feed->tensor)
        safe_expect(feed->tensor, file_bytes(feed, ahead), (begin ? 1 : 2) * file_bytes(feed, n));
#pragma omp parallel for schedule(dynamic)
    for (int64_t at = 0; at < n; at += STRETCH) {
        int64_t m = n - at < STRETCH ? n - at : STRETCH;
        Err err = {0};
        if (convert_stretch(b, feed, begin + at, m, scale, to, (char *)out + at * dtype_bytes(to),
                            &err))
            continue;
#pragma omp critical
        if (ok) fail(b->err, err.code, "%s", err.text), ok = false;
    }
    count(b, (double)n, (double)file_bytes(feed, n));
    return ok;
}

bool feed_part(Binder *b, const SafeTensor *t, bool codes, int64_t begin, int64_t bytes,
               void *out) {
    if (!safe_read(t, begin, bytes, out, b->err)) return false;
    count(b, 0, (double)bytes);
    return codes || t->type != SAFE_F32 || all_finite(t, out, DT_f32, bytes / 4, b->err);
}
