/* bind.c: fills a plan's bound buffers from checkpoints, streaming.
 *
 * Relies on bind.h (feed.c, bind_quant.c).  Promises: a few MiB of host memory whatever the model's
 * size, and the scales of one quantized tensor; every tensor is read once.
 */
#include "bind.h"

#include <stdlib.h>
#include <string.h>

/* Elements begin .. begin+n of the tensor to one place in the arena. */
static bool move_piece(Binder *b, const Bind *bind, const Feed *feed, DType to, int64_t begin,
                       int64_t n, int64_t offset) {
    double scale = strcmp(bind->transform, "scale") ? 1 : bind->num;
    return feed_read(b, feed, begin, n, scale, to, b->staged) &&
           b->dev->ops->write(b->dev, offset, b->staged, n * dtype_bytes(to), b->err);
}

static bool copy_rows(Binder *b, const Bind *bind, const Feed *feed) {
    const Buf *buf = &b->plan->bufs[bind->buf];
    bool dense = bind->ld == bind->cols;
    int64_t rows = dense ? 1 : bind->rows, cols = dense ? bind->rows * bind->cols : bind->cols;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t at = 0; at < cols; at += PIECE) {
            int64_t n = cols - at < PIECE ? cols - at : PIECE;
            int64_t offset =
                buf->offset + bind->offset + (r * bind->ld + at) * dtype_bytes(buf->dtype);
            if (!move_piece(b, bind, feed, buf->dtype, r * cols + at, n, offset)) return false;
        }
    return true;
}

/* Element i of a column, of f32, bf16 or f16. */
static void put_element(char *to, int64_t at, const char *from, int64_t i, int size) {
    memcpy(to + at * size, from + i * size, (size_t)size);
}

/* The buffer holds [cols, rows]: panels of columns, each turned here. */
static bool copy_transposed(Binder *b, const Bind *bind, const Feed *feed) {
    const Buf *buf = &b->plan->bufs[bind->buf];
    int size = dtype_bytes(buf->dtype);
    int64_t width = b->piece / bind->rows > 0 ? b->piece / bind->rows : 1;
    char *panel = malloc((size_t)(width * bind->rows * size));
    char *row = malloc((size_t)(width * size));
    bool ok = (panel && row) || fail(b->err, EXIT_MEMORY, "out of memory");
    for (int64_t at = 0; ok && at < bind->cols; at += width) {
        int64_t n = bind->cols - at < width ? bind->cols - at : width;
        for (int64_t r = 0; ok && r < bind->rows; r++) {
            ok = feed_read(b, feed, r * bind->cols + at, n, 1, buf->dtype, row);
            for (int64_t c = 0; ok && c < n; c++)
                put_element(panel, c * bind->rows + r, row, c, size);
        }
        ok = ok && b->dev->ops->write(b->dev, buf->offset + bind->offset + at * bind->rows * size,
                                      panel, n * bind->rows * size, b->err);
    }
    free(panel);
    free(row);
    return ok;
}

static bool bind_copy(Binder *b, const Bind *bind) {
    DType to = b->plan->bufs[bind->buf].dtype;
    Feed feed;
    if (to != DT_f32 && to != DT_bf16 && to != DT_f16)
        return fail(b->err, EXIT_BUG, "bug: \"%s\" is bound to a %s buffer", bind->tensor,
                    dtype_name(to));
    bool turned = !strcmp(bind->transform, "transpose");
    bool ok = feed_open(b, bind, &feed) &&
              (turned ? copy_transposed(b, bind, &feed) : copy_rows(b, bind, &feed));
    feed_close(&feed);
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

static bool bind_one(Binder *b, int i) {
    const Bind *bind = &b->plan->binds[i];
    QuantPart part;
    if (!strcmp(bind->transform, "table"))
        return b->dev->ops->write(b->dev, b->plan->bufs[bind->buf].offset + bind->offset,
                                  bind->values, (int64_t)bind->nvalues * 4, b->err);
    if (starts_pissa(b, bind)) return bind_pissa(b, i);
    if (quant_part(bind->transform, &part)) return filled(b->plan, i) || bind_quantized(b, i);
    return bind_copy(b, bind);
}

/* What the pieces need, and how much there is to read. */
static void measure(Binder *b) {
    for (int i = 0; i < b->plan->nbinds; i++) {
        const Bind *bind = &b->plan->binds[i];
        QuantPart part;
        if (!strcmp(bind->transform, "table")) continue;
        if (starts_pissa(b, bind)) {
            b->of_all += pissa_elements(b, i);
            continue;
        }
        bool few = quant_part(bind->transform, &part);
        int64_t n = bind->rows * bind->cols, piece = few ? quant_piece(bind) : PIECE;
        if (n < piece) piece = n;
        if (piece > b->piece) b->piece = piece;
        if (!few || part.piece == QUANT_CODES) b->of_all += (double)bind->rows * (double)bind->cols;
    }
}

bool bind_all(const Plan *plan, Device *dev, Span scratch, const BindSource *sources, int n,
              uint64_t seed, LoadWatch *watch, Err *err) {
    Arena *arena = arena_new();
    Binder b = {.plan = plan,
                .dev = dev,
                .scratch = scratch,
                .source = sources,
                .nsource = n,
                .seed = seed,
                .watch = watch,
                .err = err,
                .arena = arena,
                .checkpoint = NEW_ARRAY(arena, Checkpoint *, n + 1)};
    measure(&b);
    b.value = malloc((size_t)b.piece * sizeof *b.value);
    b.staged = malloc((size_t)b.piece * sizeof *b.value);
    bool ok = (b.value && b.staged) || fail(err, EXIT_MEMORY, "out of memory");
    for (int i = 0; ok && i < plan->nbinds; i++) ok = bind_one(&b, i);
    for (int i = 0; i < n; i++) checkpoint_close(b.checkpoint[i]);
    free(b.value);
    free(b.staged);
    arena_free(arena);
    return ok;
}
