/* test_attend: attention, forward and backward, against plain double loops: grouped heads,
 * prefixes, windows, odd head sizes, rows that lie apart.  On the CPU the bits are the same at 1, 2
 * and 3 threads; in the simulator, on small shapes, in every order of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/emit/hand.h"

typedef struct Shape {
    int heads, kv, dim, window;
    DType q, dout, dq;
    int made[4]; /* attend, delta, dq, dkv */
} Shape;

static Shape shapes[] = {
    {4, 4, 64, 0, DT_f32, DT_f32, DT_f32, {0}},    {8, 2, 8, 0, DT_f32, DT_f32, DT_f32, {0}},
    {7, 1, 48, 0, DT_f32, DT_f32, DT_f32, {0}},    {14, 2, 64, 100, DT_f32, DT_f32, DT_f32, {0}},
    {2, 2, 128, 17, DT_bf16, DT_f32, DT_f32, {0}}, {8, 2, 64, 0, DT_bf16, DT_bf16, DT_bf16, {0}},
    {3, 3, 33, 1, DT_f32, DT_f32, DT_f32, {0}},
};

static void make_instances(void) {
    for (size_t i = 0; i < COUNT(shapes); i++) {
        Shape *s = &shapes[i];
        char base[512];
        const int gap = 3; /* rows lie apart, as columns of a merged projection do */
        snprintf(
            base, sizeof base,
            "T_Q %s;HEADS %d;KV_HEADS %d;HEAD_DIM %d;SCALE %.9ef;WINDOW %d;LD_Q %d;LD_K %d;LD_V %d",
            dtype_name(s->q), s->heads, s->kv, s->dim, 1 / sqrt(s->dim), s->window,
            s->heads * s->dim + gap, s->kv * s->dim + gap, s->kv * s->dim);
        const int ldo = s->heads * s->dim, ldk = s->kv * s->dim;
        s->made[0] = addf(s->heads, "attend", "%s;LD_O %d", base, ldo);
        s->made[1] =
            addf(1, "attend_delta", "T_Q %s;T_DO %s;HEADS %d;HEAD_DIM %d;LD_O %d;LD_DO %d;ALIGN 16",
                 dtype_name(s->q), dtype_name(s->dout), s->heads, s->dim, ldo, ldo);
        s->made[2] = addf(s->heads, "attend_dq", "%s;T_DO %s;T_DQ %s;LD_DO %d;LD_DQ %d", base,
                          dtype_name(s->dout), dtype_name(s->dq), ldo, ldo);
        s->made[3] = addf(s->kv, "attend_dkv", "%s;T_DO %s;T_DK %s;LD_DO %d;LD_DK %d;LD_DV %d",
                          base, dtype_name(s->dout), dtype_name(s->dq), ldo, ldk, ldk);
    }
}

typedef struct Layout { /* segments over rows; keys and queries are numbered apart */
    int32_t segs[32][6], ranges[32][4];
    int64_t nsegs, nranges, rows, keys;
} Layout;

static void add_range(Layout *l, int begin, int length, int first, int count) {
    const int32_t r[4] = {begin, length, first, count};
    memcpy(l->ranges[l->nranges++], r, sizeof r);
}

static void add_segment(Layout *l, int queries, int prefix, int plen, int own) {
    const int32_t s[6] = {(int32_t)l->rows, queries, prefix, plen, (int32_t)l->keys, own};
    memcpy(l->segs[l->nsegs++], s, sizeof s);
    l->rows += queries;
    l->keys += own;
}

/* One sequence by itself. */
static void add_alone(Layout *l, int length) {
    add_range(l, (int)l->keys, length, (int)l->nsegs, 1);
    add_segment(l, length, 0, 0, length);
}

/* A prompt and two answers that see it. */
static void add_pair(Layout *l, int prompt, int chosen, int rejected) {
    const int begin = (int)l->keys, seg = (int)l->nsegs;
    add_range(l, begin, prompt, seg, 3);
    add_segment(l, prompt, 0, 0, prompt);
    add_range(l, (int)l->keys, chosen, seg + 1, 1);
    add_segment(l, chosen, begin, prompt, chosen);
    add_range(l, (int)l->keys, rejected, seg + 2, 1);
    add_segment(l, rejected, begin, prompt, rejected);
}

/* The last queries of a longer sequence: what a KV cache gives. */
static void add_cached(Layout *l, int queries, int length) {
    add_range(l, (int)l->keys, length, (int)l->nsegs, 1);
    add_segment(l, queries, 0, 0, length);
}

static Layout layout(int which) {
    Layout l = {.nsegs = 0};
    if (cuda) { /* small, but more than one block of rows */
        add_pair(&l, 11, 7, 1);
        add_cached(&l, 3, 9);
        add_alone(&l, 2);
        add_alone(&l, 44);
        l.rows += 3; /* rows and keys that no segment names */
        l.keys += 2;
    } else if (which == 0) {
        add_pair(&l, 65, 63, 1);
        add_alone(&l, 64);
        add_pair(&l, 1, 64, 65);
        add_alone(&l, 1);
        add_cached(&l, 5, 70);
        add_alone(&l, 63);
    } else if (which == 1) {
        add_alone(&l, 700);
    } else {
        for (int i = 0; i < 4; i++) add_pair(&l, 1 + below(90), 1 + below(40), 1 + below(40));
        add_cached(&l, 1, 1 + below(200));
        l.rows += 3; /* rows and keys that no segment names */
        l.keys += 2;
    }
    return l;
}

typedef struct Attention {
    const Shape *s;
    const Layout *l;
    Tensor q, k, v, out, lse, dout, delta, dq, dk, dv;
    int64_t ldq, ldk, ldv;
} Attention;

static double dot(const double *x, const double *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* What query i of segment g sees, as key numbers. */
static int visible(const Attention *a, const int32_t *seg, int i, int *keys) {
    const int at = seg[3] + i + seg[5] - seg[1];
    int n = 0;
    for (int pos = 0; pos <= at; pos++)
        if (!a->s->window || at - pos < a->s->window)
            keys[n++] = pos < seg[3] ? seg[2] + pos : seg[4] + pos - seg[3];
    return n;
}

static void reference_row(Attention *a, int64_t row, int h, const int *keys, int n, double *p) {
    const int dim = a->s->dim, hk = h / (a->s->heads / a->s->kv);
    const double scale = (double)(float)(1 / sqrt(dim)), *q = a->q.x + row * a->ldq + h * dim;
    double most = -INFINITY, sum = 0;
    for (int j = 0; j < n; j++) {
        p[j] = scale * dot(q, a->k.x + keys[j] * a->ldk + hk * dim, dim);
        most = fmax(most, p[j]);
    }
    for (int j = 0; j < n; j++) sum += exp(p[j] - most);
    const double lse = a->lse.x[row * a->s->heads + h] = most + log(sum);
    double *out = a->out.x + (row * a->s->heads + h) * dim;
    const double *dout = a->dout.x + (row * a->s->heads + h) * dim;
    for (int j = 0; j < n; j++)
        for (int d = 0; d < dim; d++)
            out[d] += exp(p[j] - lse) * a->v.x[keys[j] * a->ldv + hk * dim + d];
    const double delta = a->delta.x[row * a->s->heads + h] = dot(out, dout, dim);
    for (int j = 0; j < n; j++) {
        const double pj = exp(p[j] - lse);
        const double ds =
            scale * pj * (dot(dout, a->v.x + keys[j] * a->ldv + hk * dim, dim) - delta);
        const int64_t key = (keys[j] * a->s->kv + hk) * dim;
        for (int d = 0; d < dim; d++) {
            a->dv.x[key + d] += pj * dout[d];
            a->dk.x[key + d] += ds * q[d];
            a->dq.x[(row * a->s->heads + h) * dim + d] +=
                ds * a->k.x[keys[j] * a->ldk + hk * dim + d];
        }
    }
}

static void reference(Attention *a) {
    int *keys = calloc((size_t)a->l->keys + 1, sizeof *keys);
    double *p = calloc((size_t)a->l->keys + 1, sizeof *p);
    for (int64_t g = 0; g < a->l->nsegs; g++) {
        const int32_t *seg = a->l->segs[g];
        for (int i = 0; i < seg[1]; i++) {
            const int n = visible(a, seg, i, keys);
            for (int h = 0; h < a->s->heads; h++) reference_row(a, seg[0] + i, h, keys, n, p);
        }
    }
    free(keys);
    free(p);
}

static int check_attention(const Shape *s, const Layout *l) {
    const int64_t t = l->rows, m = l->keys, q = s->heads * s->dim, k = s->kv * s->dim;
    Attention a = {.s = s, .l = l, .ldq = q + 3, .ldk = k + 3, .ldv = k};
    a.q = noise(s->q, t * a.ldq, 2), a.k = noise(s->q, m * a.ldk, 2), a.v = noise(s->q, m * k, 1);
    a.dout = noise(s->dout, t * q, 1);
    a.out = tensor(s->q, t * q), a.lse = tensor(DT_f32, t * s->heads);
    a.delta = tensor(DT_f32, t * s->heads), a.dq = tensor(s->dq, t * q);
    a.dk = tensor(s->dq, m * k), a.dv = tensor(s->dq, m * k);
    reference(&a);
    char what[64];
    snprintf(what, sizeof what, "heads %d/%d dim %d window %d", s->heads, s->kv, s->dim, s->window);
    void *fwd[] = {a.q.data, a.k.data, a.v.data, (void *)l->segs, a.out.data, a.lse.data};
    int bad = threads_differ(what, s->made[0], fwd, (int64_t[]){t, m, l->nsegs},
                             (Tensor[]){a.out, a.lse}, 2);
    bad += differs("out", &a.out, 64) + differs("lse", &a.lse, 64);
    /* The backward reads the exact forward, so that errors are its own. */
    for (int64_t i = 0; i < a.lse.n; i++) ((float *)a.lse.data)[i] = (float)a.lse.x[i];
    void *delta[] = {a.out.data, a.dout.data, a.delta.data};
    bad += threads_differ(what, s->made[1], delta, &t, &a.delta, 1);
    if (s->q == DT_f32) bad += differs("delta", &a.delta, 256);
    for (int64_t i = 0; i < a.delta.n; i++) ((float *)a.delta.data)[i] = (float)a.delta.x[i];
    void *dq[] = {a.q.data,    a.k.data,        a.v.data,     a.lse.data,
                  a.dout.data, (void *)l->segs, a.delta.data, a.dq.data};
    bad += threads_differ(what, s->made[2], dq, (int64_t[]){t, m, l->nsegs}, &a.dq, 1);
    void *dkv[] = {a.q.data,        a.k.data,          a.v.data,     a.lse.data, a.dout.data,
                   (void *)l->segs, (void *)l->ranges, a.delta.data, a.dk.data,  a.dv.data};
    bad += threads_differ(what, s->made[3], dkv, (int64_t[]){m, t, l->nsegs, l->nranges},
                          (Tensor[]){a.dk, a.dv}, 2);
    bad += differs_at("dq", &a.dq, 256, 1) + differs_at("dk", &a.dk, 256, 1);
    bad += differs("dv", &a.dv, 256);
    if (bad) printf("  in %s, %lld rows\n", what, (long long)t);
    Tensor *all[] = {&a.q, &a.k, &a.v, &a.out, &a.lse, &a.dout, &a.delta, &a.dq, &a.dk, &a.dv};
    for (size_t i = 0; i < COUNT(all); i++) drop(all[i]);
    return bad;
}

static void test_attention(void **unused) {
    (void)unused;
    int bad = 0;
    for (int which = 0; which < (cuda ? 1 : 4); which++) {
        Layout *l = room(sizeof *l); /* kernels read its tables */
        *l = layout(which);
        for (size_t i = 0; i < COUNT(shapes); i++)
            if (cuda ? i % 2 == 0 : which != 1 || i < 4) bad += check_attention(&shapes[i], l);
        leave(l);
    }
    assert_int_equal(bad, 0);
}

int main(int argc, char **argv) {
    (void)argc;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention)};
    return RUN_BOTH(argv, tests);
}
