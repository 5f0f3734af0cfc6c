/* bind_start.c: adapters that start as the leading singular triplets of the weight they adapt
 * (PiSSA): s B A = U S V', A = sqrt(S / s) V', B = U sqrt(S / s).
 *
 * Relies on bind.h, feed.c, svd.c.  Promises: a weight is taken apart once, whatever the number of
 * binds that want a side of it; one whole weight in f32 and svd.c's own memory are held meanwhile.
 */
#include "bind.h"
#include "io/adapter.h"
#include "svd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool same_start(const Bind *a, const Bind *b) {
    return b->init && !strcmp(b->init, "pissa") && !strcmp(a->of, b->of) &&
           !strcmp(a->of_source, b->of_source) && a->init_num == b->init_num;
}

static bool is_a(const Bind *side) {
    return ends_with(side->tensor, adapter_suffix(ADAPTER_A, false));
}

static const Bind *weight_of(const Plan *plan, const Bind *side) {
    for (int i = 0; i < plan->nbinds; i++)
        if (!strcmp(plan->binds[i].tensor, side->of) &&
            !strcmp(plan->binds[i].source, side->of_source))
            return &plan->binds[i];
    return NULL; /* plan_check has seen it */
}

static float *read_weight(Binder *b, const Bind *w) {
    Feed feed;
    int64_t n = w->rows * w->cols;
    float *a = malloc((size_t)n * sizeof *a);
    if (!a) {
        fail(b->err, EXIT_MEMORY, "out of memory for the singular values of \"%s\"", w->tensor);
        return NULL;
    }
    bool ok = feed_open(b, w, &feed);
    for (int64_t at = 0; ok && at < n; at += PIECE)
        ok = feed_read(b, &feed, at, n - at < PIECE ? n - at : PIECE, 1, DT_f32, a + at);
    feed_close(&feed);
    if (ok) return a;
    free(a);
    return NULL;
}

/* Values in f32 to where the bind wants them, in its buffer's type. */
static bool put_side(Binder *b, const Bind *bind, const float *value) {
    const Buf *buf = &b->plan->bufs[bind->buf];
    int64_t n = bind->rows * bind->cols, size = dtype_bytes(buf->dtype);
    uint16_t *half = malloc((size_t)n * sizeof *half);
    if (!half) return fail(b->err, EXIT_MEMORY, "out of memory");
    if (buf->dtype == DT_bf16) floats_to_bf16(half, value, n);
    bool ok =
        b->dev->ops->write(b->dev, buf->offset + bind->offset,
                           buf->dtype == DT_f32 ? (const void *)value : half, n * size, b->err);
    free(half);
    return ok;
}

/* Scales u and v to B and A, and gives them to all that want a side. */
static bool put_sides(Binder *b, int first, const Bind *w, int rank, float *u, const float *s,
                      float *v) {
    const Bind *bind = &b->plan->binds[first];
    for (int i = 0; i < rank; i++) {
        float root = (float)sqrt((double)s[i] / bind->init_num);
        for (int64_t r = 0; r < w->rows; r++) u[r * rank + i] *= root;
        for (int64_t c = 0; c < w->cols; c++) v[i * w->cols + c] *= root;
    }
    for (int i = first; i < b->plan->nbinds; i++) {
        const Bind *side = &b->plan->binds[i];
        if (same_start(bind, side) && !put_side(b, side, is_a(side) ? v : u)) return false;
    }
    return true;
}

bool starts_pissa(Binder *b, const Bind *bind) {
    int s = bind->init && !strcmp(bind->init, "pissa") ? feed_source(b, bind) : -1;
    return s >= 0 && !b->source[s].checkpoint;
}

/* Whether an earlier bind has brought this one's values. */
static bool served(const Binder *b, int i) {
    for (int k = 0; k < i; k++)
        if (same_start(&b->plan->binds[i], &b->plan->binds[k])) return true;
    return false;
}

double pissa_elements(Binder *b, int i) {
    const Bind *w = weight_of(b->plan, &b->plan->binds[i]);
    return served(b, i) ? 0 : (double)w->rows * (double)w->cols;
}

bool bind_pissa(Binder *b, int i) {
    const Bind *bind = &b->plan->binds[i], *w = weight_of(b->plan, bind);
    if (served(b, i)) return true;
    int rank = (int)(bind->rows < bind->cols ? bind->rows : bind->cols);
    float *a = read_weight(b, w);
    float *u = malloc((size_t)(w->rows * rank) * sizeof *u), *s = malloc((size_t)rank * sizeof *s);
    float *v = malloc((size_t)(w->cols * rank) * sizeof *v);
    bool ok = a && ((u && s && v) || fail(b->err, EXIT_MEMORY, "out of memory"));
    ok = ok && svd_leading(a, w->rows, w->cols, rank, u, s, v, b->err) &&
         put_sides(b, i, w, rank, u, s, v);
    free(a);
    free(u);
    free(s);
    free(v);
    return ok;
}
