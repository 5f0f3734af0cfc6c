/* bind.c: fills a plan's bound buffers from checkpoints, streaming.
 *
 * Relies on exec.h, quantize.h, io/checkpoint.h, kernels/random.h.  Promises: a few MiB of host
 * memory
 * whatever the model's size; a tensor is read once (twice where it is double quantized); fresh
 * values
 * depend on seed, source and tensor name alone, so they are the same under any plan.
 */
#include "exec_bind.h"
#include "io/adapter.h"
#include "io/checkpoint.h"
#include "quantize.h"

#include "../kernels/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PIECE (INT64_C(512) << 10) /* elements moved at a time, about */

typedef struct Binder {
    const Plan *plan;
    Device *dev;
    const BindSource *source;
    int nsource;
    Checkpoint **checkpoint; /* opened ones, by source */
    uint64_t seed;
    float *value; /* PIECE elements */
    char *staged; /* the same, converted */
    Err *err;
    Arena *arena;
} Binder;

typedef enum Fresh { FRESH_FILE, FRESH_ZERO, FRESH_ONE, FRESH_UNIFORM, FRESH_GAUSSIAN } Fresh;

typedef struct Feed { /* where the elements of one tensor come from */
    const SafeTensor *tensor;
    Fresh fresh;
    double num; /* half width, or standard deviation */
    uint32_t key[2];
} Feed;

/* ---- fresh values ---------------------------------------------------------------------------- */

/* Element i: uniform ones and pairs of normal ones (Box, Muller) from the four words of block i
 * / 4. */
static float fresh_value(const Feed *feed, uint64_t seed, int64_t i) {
    uint64_t block = (uint64_t)i / 4;
    uint32_t word[4] = {feed->key[0], feed->key[1], (uint32_t)(block >> 32), (uint32_t)block};
    philox_7(word, (uint32_t)seed, (uint32_t)(seed >> 32));
    int w = (int)(i % 4);
    if (feed->fresh == FRESH_UNIFORM)
        return (float)(((double)(word[w] >> 8) * 0x1p-23 - 1.0) * feed->num);
    double radius = sqrt(-2 * log(((double)word[w & 2] + 0.5) * 0x1p-32));
    double angle = 6.283185307179586 * ((double)word[w | 1] * 0x1p-32);
    return (float)(radius * (w & 1 ? sin(angle) : cos(angle)) * feed->num);
}

/* Values from a file must be numbers: a NaN would be everywhere after one product. */
static bool all_finite(const Binder *b, const Feed *feed, const void *values, DType type,
                       int64_t n) {
    const uint32_t *word = values;
    const uint16_t *half = values;
    uint32_t special = type == DT_f32 ? 0x7f800000 : type == DT_bf16 ? 0x7f80 : 0x7c00, found = 0;
    for (int64_t i = 0; i < n; i++)
        found |= ((type == DT_f32 ? word[i] : half[i]) & special) == special;
    return !found || fail(b->err, EXIT_NUMERIC, "%s: tensor \"%s\" holds NaN or infinity",
                          safe_path(feed->tensor->file), feed->tensor->name);
}

static bool feed_read(const Binder *b, const Feed *feed, int64_t begin, int64_t n, float *out) {
    if (feed->fresh == FRESH_FILE)
        return safe_read_f32(feed->tensor, begin, n, out, b->err) &&
               all_finite(b, feed, out, DT_f32, n);
    if (feed->fresh <= FRESH_ONE) {
        for (int64_t i = 0; i < n; i++) out[i] = feed->fresh == FRESH_ONE;
        return true;
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = fresh_value(feed, b->seed, begin + i);
    return true;
}

/* "pref@start" is "pref" as it was at the start: the same fresh values. */
static void feed_key(const Bind *bind, uint32_t key[2]) {
    size_t n = strcspn(bind->source, "@");
    Hash128 hash = hash_bytes(bind->source, n, (Hash128){0, 0});
    hash = hash_bytes(bind->tensor, strlen(bind->tensor), hash);
    key[0] = (uint32_t)hash.lo;
    key[1] = (uint32_t)(hash.lo >> 32);
}

/* ---- finding a tensor ------------------------------------------------------------------------ */

static const char *needed_by(const Binder *b, const Bind *bind) {
    return bind->where ? arena_printf(b->arena, " (declared at %s)", bind->where) : "";
}

static bool shape_fits(const Binder *b, const Bind *bind, const SafeTensor *t) {
    bool vector = bind->rank == 1;
    if (t->rank == bind->rank && t->shape[0] == (vector ? bind->cols : bind->rows) &&
        (vector || t->shape[1] == bind->cols))
        return true;
    char *want = vector ? arena_printf(b->arena, "[%lld]", (long long)bind->cols)
                        : arena_printf(b->arena, "[%lld, %lld]", (long long)bind->rows,
                                       (long long)bind->cols);
    return fail(b->err, EXIT_INPUT, "%s: tensor \"%s\" is %s; expected %s%s", safe_path(t->file),
                t->name, safe_describe(b->arena, t), want, needed_by(b, bind));
}

static bool feed_file(Binder *b, int s, const Bind *bind, Feed *feed) {
    const BindSource *source = &b->source[s];
    if (!b->checkpoint[s])
        b->checkpoint[s] = checkpoint_open(source->checkpoint,
                                           source->adapter ? "adapter_model" : "model", b->err);
    if (!b->checkpoint[s]) return false;
    const char *prefix = source->adapter ? ADAPTER_PREFIX : "";
    const char *name = arena_printf(b->arena, "%s%s", prefix, bind->tensor);
    const char *alias = bind->alias ? arena_printf(b->arena, "%s%s", prefix, bind->alias) : NULL;
    feed->tensor = checkpoint_find(b->checkpoint[s], name, alias);
    if (!feed->tensor) return checkpoint_missing(b->checkpoint[s], name, b->err);
    return shape_fits(b, bind, feed->tensor);
}

static bool feed_fresh(const Binder *b, int s, const Bind *bind, Feed *feed) {
    size_t n = strlen(bind->tensor);
    bool bias = n > 5 && !strcmp(bind->tensor + n - 5, ".bias");
    feed_key(bind, feed->key);
    if (bind->init) {
        bool zero = !strcmp(bind->init, "zero"), gaussian = !strcmp(bind->init, "gaussian");
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

static bool feed_of(Binder *b, const Bind *bind, Feed *feed) {
    *feed = (Feed){.fresh = FRESH_FILE};
    int s = 0;
    while (s < b->nsource && strcmp(b->source[s].source, bind->source)) s++;
    if (s == b->nsource)
        return fail(b->err, EXIT_BUG, "bug: no source \"%s\" for \"%s\"", bind->source,
                    bind->tensor);
    return b->source[s].checkpoint ? feed_file(b, s, bind, feed) : feed_fresh(b, s, bind, feed);
}

/* ---- copying --------------------------------------------------------------------------------- */

static void convert(const float *x, int64_t n, DType to, char *out) {
    uint16_t *h = (uint16_t *)(void *)out;
    if (to == DT_f32) memcpy(out, x, (size_t)n * 4);
#pragma omp parallel for schedule(static) if (to != DT_f32)
    for (int64_t i = 0; i < n; i++)
        if (to == DT_bf16)
            h[i] = float_to_bf16(x[i]);
        else if (to == DT_f16)
            h[i] = float_to_f16(x[i]);
}

/* Elements begin .. begin+n of the tensor to one place in the arena. */
static bool move_piece(Binder *b, const Bind *bind, const Feed *feed, DType to, int64_t begin,
                       int64_t n, int64_t offset) {
    static const SafeType same[NDTYPE] = {
        [DT_f32] = SAFE_F32, [DT_bf16] = SAFE_BF16, [DT_f16] = SAFE_F16};
    bool scale = !strcmp(bind->transform, "scale");
    int64_t size = dtype_bytes(to);
    if (feed->tensor && !scale && feed->tensor->type == same[to]) {
        if (!safe_read(feed->tensor, begin * size, n * size, b->staged, b->err) ||
            !all_finite(b, feed, b->staged, to, n))
            return false;
    } else {
        if (!feed_read(b, feed, begin, n, b->value)) return false;
        for (int64_t i = 0; scale && i < n; i++) b->value[i] *= (float)bind->num;
        convert(b->value, n, to, b->staged);
    }
    return b->dev->ops->write(b->dev, offset, b->staged, n * size, b->err);
}

static bool bind_copy(Binder *b, const Bind *bind) {
    const Buf *buf = &b->plan->bufs[bind->buf];
    Feed feed;
    if (buf->dtype != DT_f32 && buf->dtype != DT_bf16 && buf->dtype != DT_f16)
        return fail(b->err, EXIT_BUG, "bug: \"%s\" is bound to a %s buffer", bind->tensor,
                    dtype_name(buf->dtype));
    if (!feed_of(b, bind, &feed)) return false;
    bool dense = bind->ld == bind->cols;
    int64_t rows = dense ? 1 : bind->rows, cols = dense ? bind->rows * bind->cols : bind->cols;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t at = 0; at < cols; at += PIECE) {
            int64_t n = cols - at < PIECE ? cols - at : PIECE;
            int64_t offset =
                buf->offset + bind->offset + (r * bind->ld + at) * dtype_bytes(buf->dtype);
            if (!move_piece(b, bind, &feed, buf->dtype, r * cols + at, n, offset)) return false;
        }
    return true;
}

/* ---- quantizing ------------------------------------------------------------------------------ */

typedef struct Quant { /* one tensor and the binds of its parts */
    const Bind *part[NQUANTPIECE];
    QuantFormat format;
    int64_t n, block;
    int64_t piece; /* elements at a time: whole blocks, whole groups when nested, an even number */
    bool nested;
    float offset;
    uint8_t *codes, *absmax_codes;
    float *absmax, *absmax2;
} Quant;

static bool write_part(Binder *b, const Quant *q, QuantPiece piece, int64_t at, const void *data,
                       int64_t bytes) {
    const Bind *bind = q->part[piece];
    if (!bind) return true;
    return b->dev->ops->write(b->dev, b->plan->bufs[bind->buf].offset + bind->offset + at, data,
                              bytes, b->err);
}

/* The parts of elements begin .. begin+n, which stand in b->value. */
static bool quant_piece(Binder *b, Quant *q, int64_t begin, int64_t n) {
    int64_t blocks = (n + q->block - 1) / q->block, at = begin / q->block;
    int64_t bytes = quant_part_bytes((QuantPart){q->format, QUANT_CODES}, n, q->block, false);
    quant_blocks(q->format, b->value, n, q->block, q->codes, q->absmax);
    if (!write_part(b, q, QUANT_CODES, q->format == QUANT_INT8 ? begin : begin / 2, q->codes,
                    bytes))
        return false;
    if (!q->nested) return write_part(b, q, QUANT_ABSMAX, at * 4, q->absmax, blocks * 4);
    quant_nested(q->absmax, blocks, q->offset, q->absmax_codes, q->absmax2);
    int64_t groups = (blocks + QUANT_GROUP - 1) / QUANT_GROUP;
    return write_part(b, q, QUANT_ABSMAX, at, q->absmax_codes, blocks) &&
           write_part(b, q, QUANT_ABSMAX2, at / QUANT_GROUP * 4, q->absmax2, groups * 4);
}

/* The mean of all absmax, which double quantization takes away first. */
static bool find_offset(Binder *b, Quant *q, const Feed *feed) {
    double sum = 0;
    int64_t blocks = (q->n + q->block - 1) / q->block;
    for (int64_t at = 0; at < q->n; at += q->piece) {
        int64_t n = q->n - at < q->piece ? q->n - at : q->piece;
        if (!feed_read(b, feed, at, n, b->value)) return false;
        quant_blocks(q->format, b->value, n, q->block, q->codes, q->absmax);
        for (int64_t i = 0; i * q->block < n; i++) sum += (double)q->absmax[i];
    }
    q->offset = (float)(sum / (double)blocks);
    return write_part(b, q, QUANT_OFFSET, 0, &q->offset, 4) &&
           write_part(b, q, QUANT_MAP, 0, quant_map(), 256 * 4);
}

static void find_parts(const Plan *plan, int first, Quant *q) {
    const Bind *bind = &plan->binds[first];
    QuantPart part;
    for (int i = first; i < plan->nbinds; i++) {
        const Bind *other = &plan->binds[i];
        if (quant_part(other->transform, &part) && !strcmp(other->tensor, bind->tensor) &&
            !strcmp(other->source, bind->source)) {
            q->part[part.piece] = other;
            q->format = part.format;
        }
    }
    q->n = bind->rows * bind->cols;
    q->block = (int64_t)bind->num;
    q->nested = bind->nested;
    int64_t unit = q->block * (q->nested ? QUANT_GROUP : 1) * (q->block % 2 ? 2 : 1);
    q->piece = unit > PIECE ? unit : PIECE / unit * unit;
}

/* All parts of the tensor that bind `first` is the first part of. */
static bool bind_quantized(Binder *b, int first) {
    Quant q = {.n = 0};
    Feed feed;
    find_parts(b->plan, first, &q);
    if (!feed_of(b, &b->plan->binds[first], &feed)) return false;
    int64_t blocks = q.piece / q.block + 1;
    float *grown = q.piece > PIECE ? realloc(b->value, (size_t)q.piece * sizeof *grown) : b->value;
    char *room = malloc((size_t)(q.piece + 9 * blocks + 64));
    bool ok = grown && room;
    if (grown) b->value = grown;
    if (!ok) fail(b->err, EXIT_MEMORY, "out of memory");
    q.absmax = (float *)(void *)room;
    q.absmax2 = q.absmax + blocks;
    q.absmax_codes = (uint8_t *)(q.absmax2 + blocks);
    q.codes = q.absmax_codes + blocks;
    if (ok && q.nested) ok = find_offset(b, &q, &feed);
    for (int64_t at = 0; ok && at < q.n; at += q.piece) {
        int64_t n = q.n - at < q.piece ? q.n - at : q.piece;
        ok = feed_read(b, &feed, at, n, b->value) && quant_piece(b, &q, at, n);
    }
    free(room);
    return ok;
}

/* Whether an earlier bind holds another part of the same tensor (and so filled this one too). */
static bool filled(const Plan *plan, int bind) {
    QuantPart part;
    const Bind *b = &plan->binds[bind];
    for (int i = 0; i < bind; i++)
        if (quant_part(plan->binds[i].transform, &part) &&
            !strcmp(plan->binds[i].tensor, b->tensor) && !strcmp(plan->binds[i].source, b->source))
            return true;
    return false;
}

/* ---- all binds ------------------------------------------------------------------------------- */

static bool bind_one(Binder *b, int i) {
    const Bind *bind = &b->plan->binds[i];
    QuantPart part;
    if (!strcmp(bind->transform, "table"))
        return b->dev->ops->write(b->dev, b->plan->bufs[bind->buf].offset + bind->offset,
                                  bind->values, (int64_t)bind->nvalues * 4, b->err);
    if (quant_part(bind->transform, &part)) return filled(b->plan, i) || bind_quantized(b, i);
    return bind_copy(b, bind);
}

bool bind_all(const Plan *plan, Device *dev, Span scratch, const BindSource *sources, int n,
              uint64_t seed, Err *err) {
    (void)scratch;
    Arena *arena = arena_new();
    Binder b = {.plan = plan,
                .dev = dev,
                .source = sources,
                .nsource = n,
                .seed = seed,
                .err = err,
                .arena = arena,
                .checkpoint = NEW_ARRAY(arena, Checkpoint *, n + 1)};
    b.value = malloc(PIECE * sizeof *b.value);
    b.staged = malloc(PIECE * sizeof *b.value);
    bool ok = (b.value && b.staged) || fail(err, EXIT_MEMORY, "out of memory");
    for (int i = 0; ok && i < plan->nbinds; i++) ok = bind_one(&b, i);
    for (int i = 0; i < n; i++) checkpoint_close(b.checkpoint[i]);
    free(b.value);
    free(b.staged);
    arena_free(arena);
    return ok;
}
