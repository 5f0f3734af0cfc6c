/* bind_quant.c: tensors kept in few bits: quantized as they stream in, or taken as they are from a
 * checkpoint that bitsandbytes wrote.
 *
 * Codes are made on the device where the plan has a kernel for it and its scratch holds a piece,
 * else by the host (quantize.c), with the same bits.  The second quantization of the scales is the
 * host's: all scales of a tensor come together first, since their mean is taken away.
 */
#include "bind.h"

#include <stdlib.h>
#include <string.h>

typedef struct Quant { /* one tensor and the binds of its parts */
    const Bind *part[NQUANTPIECE];
    QuantFormat format;
    int64_t n, block, blocks;
    bool nested;
    float *absmax;  /* of all blocks; on the host */
    int64_t scales; /* the same on the device: bytes into scratch, behind the values of a piece */
} Quant;

/* Whole blocks, an even number of elements. */
int64_t quant_piece(const Bind *bind) {
    int64_t block = (int64_t)bind->num, unit = block % 2 ? 2 * block : block;
    return unit > PIECE ? unit : PIECE / unit * unit;
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
    q->blocks = (q->n + q->block - 1) / q->block;
    q->nested = bind->nested;
    int64_t piece = quant_piece(bind);
    q->scales = ((q->n < piece ? q->n : piece) * 4 + 255) / 256 * 256;
}

/* Where byte `at` of a part lies in the arena. */
static int64_t place(const Binder *b, const Quant *q, QuantPiece piece, int64_t at) {
    const Bind *bind = q->part[piece];
    return b->plan->bufs[bind->buf].offset + bind->offset + at;
}

static bool write_part(Binder *b, const Quant *q, QuantPiece piece, int64_t at, const void *data,
                       int64_t bytes) {
    return !q->part[piece] ||
           b->dev->ops->write(b->dev, place(b, q, piece, at), data, bytes, b->err);
}

static int64_t code_bytes(const Quant *q, int64_t n) {
    return quant_part_bytes((QuantPart){q->format, QUANT_CODES}, n, q->block, false);
}

/* ---- one piece ------------------------------------------------------------------------------- */

/* Whether the plan has a kernel for it and scratch holds a piece's values and, behind them, the
 * scales of the whole tensor, so that nothing waits for the device before the end. */
static bool on_device(const Binder *b, const Quant *q) {
    return q->part[QUANT_CODES]->quantizer && q->scales + q->blocks * 4 <= b->scratch.bytes;
}

/* Elements begin .. begin+n, which stand in b->value, by the plan's kernel. */
static bool device_piece(Binder *b, Quant *q, int64_t begin, int64_t n) {
    const DeviceOps *ops = b->dev->ops;
    int64_t blocks = (n + q->block - 1) / q->block, at = begin / q->block * 4;
    int64_t scales = q->nested ? b->scratch.offset + q->scales + at : place(b, q, QUANT_ABSMAX, at);
    char *base = b->dev->base;
    void *p[3] = {base + b->scratch.offset, base + place(b, q, QUANT_CODES, code_bytes(q, begin)),
                  base + scales};
    int kernel = q->part[QUANT_CODES]->quantizer - 1;
    return ops->write(b->dev, b->scratch.offset, b->value, n * 4, b->err) &&
           ops->launch(b->dev, kernel, p, 3, (int64_t[]){blocks, n}, 2, b->err);
}

static bool host_piece(Binder *b, Quant *q, int64_t begin, int64_t n) {
    int64_t blocks = (n + q->block - 1) / q->block, at = begin / q->block;
    uint8_t *codes = (uint8_t *)b->staged;
    quant_blocks(q->format, b->value, n, q->block, codes, q->absmax + at);
    return write_part(b, q, QUANT_CODES, code_bytes(q, begin), codes, code_bytes(q, n)) &&
           (q->nested || write_part(b, q, QUANT_ABSMAX, at * 4, q->absmax + at, blocks * 4));
}

/* ---- the scales, when all are known ---------------------------------------------------------- */

static bool second_level(Binder *b, Quant *q) {
    int64_t groups = (q->blocks + QUANT_GROUP - 1) / QUANT_GROUP;
    double sum = 0;
    for (int64_t i = 0; i < q->blocks; i++) sum += (double)q->absmax[i];
    float offset = (float)(sum / (double)q->blocks);
    uint8_t *codes = malloc((size_t)q->blocks);
    float *absmax2 = malloc((size_t)groups * 4);
    bool ok = (codes && absmax2) || fail(b->err, EXIT_MEMORY, "out of memory");
    if (ok) quant_nested(q->absmax, q->blocks, offset, codes, absmax2);
    ok = ok && write_part(b, q, QUANT_ABSMAX, 0, codes, q->blocks) &&
         write_part(b, q, QUANT_ABSMAX2, 0, absmax2, groups * 4) &&
         write_part(b, q, QUANT_OFFSET, 0, &offset, 4) &&
         write_part(b, q, QUANT_MAP, 0, quant_map(true), 256 * 4);
    free(codes);
    free(absmax2);
    return ok;
}

static bool quantize_all(Binder *b, Quant *q, const Feed *feed) {
    int64_t piece = quant_piece(q->part[QUANT_CODES]);
    bool device = on_device(b, q);
    q->absmax = malloc((size_t)q->blocks * 4);
    bool ok = q->absmax || fail(b->err, EXIT_MEMORY, "out of memory");
    for (int64_t at = 0; ok && at < q->n; at += piece) {
        int64_t n = q->n - at < piece ? q->n - at : piece;
        ok = feed_read(b, feed, at, n, 1, DT_f32, b->value) &&
             (device ? device_piece(b, q, at, n) : host_piece(b, q, at, n));
    }
    if (ok && q->nested && device)
        ok = b->dev->ops->read(b->dev, b->scratch.offset + q->scales, q->absmax, q->blocks * 4,
                               b->err);
    if (ok && q->nested) ok = second_level(b, q);
    free(q->absmax);
    return ok;
}

/* ---- quantized already ----------------------------------------------------------------------- */

static bool same_format(const Binder *b, const Quant *q, const Packed *p) {
    if (p->format == q->format && p->block == q->block && p->nested == q->nested) return true;
    return fail(b->err, EXIT_INPUT, "%s: \"%s\" is quantized already, as %s; the plan asks for %s",
                safe_path(p->codes->file), p->codes->name,
                packed_describe(b->arena, p->format, p->block, p->nested),
                packed_describe(b->arena, q->format, q->block, q->nested));
}

static bool copy_part(Binder *b, const Quant *q, QuantPiece piece, const SafeTensor *t) {
    int64_t room = b->piece * (int64_t)sizeof *b->value;
    for (int64_t at = 0; at < t->bytes; at += room) {
        int64_t bytes = t->bytes - at < room ? t->bytes - at : room;
        if (!feed_part(b, t, piece == QUANT_CODES, at, bytes, b->staged) ||
            !write_part(b, q, piece, at, b->staged, bytes))
            return false;
    }
    return true;
}

static bool copy_parts(Binder *b, const Quant *q, const Packed *p) {
    if (!same_format(b, q, p)) return false;
    b->elements += (double)q->n;
    if (!copy_part(b, q, QUANT_CODES, p->codes) || !copy_part(b, q, QUANT_ABSMAX, p->absmax))
        return false;
    return !p->nested ||
           (copy_part(b, q, QUANT_ABSMAX2, p->absmax2) && copy_part(b, q, QUANT_MAP, p->map) &&
            write_part(b, q, QUANT_OFFSET, 0, &p->offset, 4));
}

bool bind_quantized(Binder *b, int first) {
    Quant q = {.n = 0};
    Feed feed;
    find_parts(b->plan, first, &q);
    if (!q.part[QUANT_CODES] || !q.part[QUANT_ABSMAX])
        return fail(b->err, EXIT_BUG, "bug: \"%s\" has no bind of its codes or scales",
                    b->plan->binds[first].tensor);
    bool ok = feed_open(b, &b->plan->binds[first], &feed) &&
              (feed.packed ? copy_parts(b, &q, &feed.codes) : quantize_all(b, &q, &feed));
    feed_close(&feed);
    return ok;
}
