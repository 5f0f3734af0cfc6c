/* svd.c: leading singular triplets by blocked power iteration.
 *
 * Q [cols, k], k = 2 rank + 8 columns of random numbers from a fixed seed, is replaced by an
 * orthonormal basis of A'A Q until the squares of the leading singular values (of Q'A'A Q:
 * Rayleigh, Ritz) stand still; then A Q = U S W' gives the triplets, V = Q W (Halko, Martinsson,
 * Tropp, "Finding structure with randomness", SIAM Review 2011).  A is passed once an iteration, in
 * chunks of rows that threads take; A's products are f32 sums of few terms, added up in double, the
 * rest is double.  Relies on kernels/random.h.
 */
#include "svd.h"

#include "../kernels/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNKS = 8, BLOCK = 32, RUN = 256, WIDE = 16, MOST_ROUNDS = 24 };
/* Relative change of squares, half a unit of f32: vectors are within its root over the gap.  A flat
 * spectrum gets no nearer to its leading vectors in all the rounds there are. */
#define STILL 3e-8

/* The same operations in the same order on any of these: nothing is contracted. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(HARD)
#    define FAST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#    define FAST
#endif

typedef struct Svd {
    const float *a;
    int64_t rows, cols;
    int k, wide;   /* columns of Q, and those rounded up to WIDE */
    double *q;     /* [k][cols]: columns of Q */
    float *flat;   /* [cols][wide]: Q as the products read it */
    double *part;  /* [CHUNKS][cols][wide]: A'A Q of a chunk of rows */
    double *image; /* [rows][wide]: A Q, once it is asked for */
    double *small; /* [3][k][k]: Q'A'A Q and the vectors that turn it */
    double *value; /* [k]: squares of singular values */
} Svd;

/* ---- products with A ------------------------------------------------------------------------- */

typedef float Lanes __attribute__((vector_size(WIDE * sizeof(float))));

typedef float Loose
    __attribute__((vector_size(WIDE * sizeof(float)), aligned(sizeof(float)), may_alias));

/* y [n <= BLOCK, WIDE] = rows of A times WIDE columns of Q, RUN rows of it at a time: those stay
 * near.  Four rows of A are four chains of sums; a missing one is the last again. */
FAST static void rows_times(const float *a, int64_t n, int64_t cols, const float *q, int wide,
                            double y[BLOCK][WIDE]) {
    memset(y, 0, BLOCK * sizeof *y);
    for (int64_t from = 0; from < cols; from += RUN) {
        int64_t to = from + RUN < cols ? from + RUN : cols;
        for (int64_t r = 0; r < n; r += 4) {
            const float *r0 = a + r * cols, *r1 = r + 1 < n ? r0 + cols : r0,
                        *r2 = r + 2 < n ? r1 + cols : r1, *r3 = r + 3 < n ? r2 + cols : r2;
            Lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
            for (int64_t j = from; j < to; j++) {
                Lanes x = *(const Loose *)(q + j * wide);
                s0 += r0[j] * x;
                s1 += r1[j] * x;
                s2 += r2[j] * x;
                s3 += r3[j] * x;
            }
            for (int i = 0; i < WIDE; i++) {
                y[r][i] += (double)s0[i];
                y[r + 1][i] += (double)s1[i];
                y[r + 2][i] += (double)s2[i];
                y[r + 3][i] += (double)s3[i];
            }
        }
    }
}

/* z [cols, WIDE of wide] += A' y over n <= BLOCK rows, y [n, WIDE]; two columns at a time. */
FAST static void add_back(const float *a, int64_t n, int64_t cols, const float *y, int wide,
                          double *z) {
    for (int64_t j = 0; j < cols; j += 2) {
        int64_t next = j + 1 < cols ? j + 1 : j;
        Lanes s0 = {0}, s1 = {0};
        for (int64_t r = 0; r < n; r++) {
            Lanes x = *(const Loose *)(y + r * WIDE);
            s0 += a[r * cols + j] * x;
            s1 += a[r * cols + next] * x;
        }
        for (int i = 0; i < WIDE; i++) z[j * wide + i] += (double)s0[i];
        for (int i = 0; i < WIDE && next > j; i++) z[next * wide + i] += (double)s1[i];
    }
}

/* Rows of one chunk: A Q into `image` if there is one, else A'A Q into its part. */
static void pass_chunk(const Svd *s, int chunk) {
    int64_t begin = s->rows * chunk / CHUNKS, end = s->rows * (chunk + 1) / CHUNKS;
    double *z = s->part + (size_t)chunk * (size_t)s->cols * (size_t)s->wide, y[BLOCK][WIDE];
    float few[BLOCK * WIDE];
    if (!s->image) memset(z, 0, sizeof *z * (size_t)s->cols * (size_t)s->wide);
    for (int64_t from = begin; from < end; from += BLOCK) {
        int64_t n = end - from < BLOCK ? end - from : BLOCK;
        const float *a = s->a + from * s->cols;
        for (int at = 0; at < s->wide; at += WIDE) {
            rows_times(a, n, s->cols, s->flat + at, s->wide, y);
            for (int64_t r = 0; r < n; r++) {
                if (s->image) memcpy(s->image + (from + r) * s->wide + at, y[r], sizeof *y);
                for (int i = 0; i < WIDE; i++) few[r * WIDE + i] = (float)y[r][i];
            }
            if (!s->image) add_back(a, n, s->cols, few, s->wide, z + at);
        }
    }
}

static void pass(const Svd *s) {
    for (int64_t j = 0; j < s->cols; j++)
        for (int c = 0; c < s->wide; c++)
            s->flat[j * s->wide + c] = c < s->k ? (float)s->q[c * s->cols + j] : 0;
#pragma omp parallel for schedule(dynamic)
    for (int chunk = 0; chunk < CHUNKS; chunk++) pass_chunk(s, chunk);
}

/* ---- small matrices -------------------------------------------------------------------------- */

static double dot(const double *x, const double *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* Columns of Q orthonormal, each against those before it; twice is enough. */
static void orthonormalize(const Svd *s) {
    for (int c = 0; c < s->k; c++) {
        double *x = s->q + c * s->cols;
        double before = sqrt(dot(x, x, s->cols));
        for (int twice = 0; twice < 2; twice++)
            for (int d = 0; d < c; d++) {
                const double *y = s->q + d * s->cols;
                double part = dot(x, y, s->cols);
                for (int64_t i = 0; i < s->cols; i++) x[i] -= part * y[i];
            }
        double norm = sqrt(dot(x, x, s->cols));
        bool gone = !(norm > 1e-13 * before); /* A has no more directions */
        for (int64_t i = 0; i < s->cols; i++) x[i] = gone ? 0 : x[i] / norm;
    }
}

/* One plane rotation that makes m[p][q] zero; `turn` follows. */
static void rotate(double *m, double *turn, int k, int p, int q) {
    double off = m[p * k + q];
    if (off == 0) return;
    double theta = (m[q * k + q] - m[p * k + p]) / (2 * off);
    double t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(theta * theta + 1));
    double c = 1 / sqrt(t * t + 1), s = t * c;
    for (int i = 0; i < k; i++) {
        double x = m[i * k + p], y = m[i * k + q];
        m[i * k + p] = c * x - s * y;
        m[i * k + q] = s * x + c * y;
        x = turn[i * k + p], y = turn[i * k + q];
        turn[i * k + p] = c * x - s * y;
        turn[i * k + q] = s * x + c * y;
    }
    for (int i = 0; i < k; i++) {
        double x = m[p * k + i], y = m[q * k + i];
        m[p * k + i] = c * x - s * y;
        m[q * k + i] = s * x + c * y;
    }
}

/* Eigenvalues of the symmetric m [k,k], falling, and the vectors as columns of `turn` (Jacobi). */
static void eigen(double *m, double *turn, double *value, int k) {
    for (int i = 0; i < k * k; i++) turn[i] = i % (k + 1) == 0;
    for (int sweep = 0; sweep < 30; sweep++) {
        double off = 0, all = 0;
        for (int i = 0; i < k * k; i++) {
            all += m[i] * m[i];
            off += i % (k + 1) ? m[i] * m[i] : 0;
        }
        if (off <= 1e-30 * all) break;
        for (int p = 0; p < k; p++)
            for (int q = p + 1; q < k; q++) rotate(m, turn, k, p, q);
    }
    for (int i = 0; i < k; i++) value[i] = m[i * k + i];
    for (int i = 0; i < k; i++) {
        int best = i;
        for (int j = i + 1; j < k; j++)
            if (value[j] > value[best]) best = j;
        double x = value[i];
        value[i] = value[best];
        value[best] = x;
        for (int j = 0; j < k && best != i; j++) {
            x = turn[j * k + i];
            turn[j * k + i] = turn[j * k + best];
            turn[j * k + best] = x;
        }
    }
}

/* ---- iterations ------------------------------------------------------------------------------ */

static void start(const Svd *s) {
    for (int c = 0; c < s->k; c++)
        for (int64_t j = 0; j < s->cols; j++)
            s->q[c * s->cols + j] = (double)random_uniform(c, 1, 2, 3, j >> 31, j) - 0.5;
    orthonormalize(s);
}

/* Q becomes a basis of A'A Q; the squares of singular values that the old one had stand in
 * `value`. */
static void iterate(const Svd *s) {
    int k = s->k;
    pass(s);
    size_t part = (size_t)s->cols * (size_t)s->wide;
#pragma omp parallel for
    for (int64_t j = 0; j < s->cols; j++)
        for (int c = 0; c < s->wide; c++)
            for (size_t p = 1; p < CHUNKS; p++)
                s->part[(size_t)(j * s->wide + c)] += s->part[p * part + (size_t)(j * s->wide + c)];
    memset(s->small, 0, sizeof *s->small * (size_t)(k * k));
    for (int64_t j = 0; j < s->cols; j++)
        for (int c = 0; c < k; c++) {
            double x = s->q[c * s->cols + j], *to = s->small + c * k;
            for (int d = 0; d < k; d++) to[d] += x * s->part[j * s->wide + d];
        }
    for (int c = 0; c < k; c++)
        for (int d = 0; d < c; d++)
            s->small[c * k + d] = s->small[d * k + c] =
                (s->small[c * k + d] + s->small[d * k + c]) / 2;
    eigen(s->small, s->small + k * k, s->value, k);
    for (int c = 0; c < k; c++)
        for (int64_t j = 0; j < s->cols; j++) s->q[c * s->cols + j] = s->part[j * s->wide + c];
    orthonormalize(s);
}

/* (A Q)'(A Q) turned to its axes: U S = A Q W, V = Q W. */
static void triplets(Svd *s, int rank, float *u, float *sigma, float *v) {
    int k = s->k, wide = s->wide;
    double *turn = s->small + k * k;
    memset(s->small, 0, sizeof *s->small * (size_t)(k * k));
    for (int64_t r = 0; r < s->rows; r++)
        for (int c = 0; c < k; c++)
            for (int d = 0; d < k; d++)
                s->small[c * k + d] += s->image[r * wide + c] * s->image[r * wide + d];
    eigen(s->small, turn, s->value, k);
    for (int i = 0; i < rank; i++) sigma[i] = (float)sqrt(s->value[i] > 0 ? s->value[i] : 0);
    for (int64_t r = 0; r < s->rows; r++)
        for (int i = 0; i < rank; i++) {
            double x = 0;
            for (int c = 0; c < k; c++) x += s->image[r * wide + c] * turn[c * k + i];
            u[r * rank + i] = sigma[i] > 0 ? (float)(x / sqrt(s->value[i])) : 0;
        }
    for (int i = 0; i < rank; i++)
        for (int64_t j = 0; j < s->cols; j++) {
            double x = 0;
            for (int c = 0; c < k; c++) x += s->q[c * s->cols + j] * turn[c * k + i];
            v[i * s->cols + j] = (float)x;
        }
}

static bool stands(const double *now, double *before, int rank) {
    bool still = true;
    for (int i = 0; i < rank; i++) {
        still &= fabs(now[i] - before[i]) <= STILL * now[0];
        before[i] = now[i];
    }
    return still;
}

bool svd_leading(const float *a, int64_t rows, int64_t cols, int rank, float *u, float *s, float *v,
                 Err *err) {
    int64_t least = rows < cols ? rows : cols, k = 2 * (int64_t)rank + 8;
    if (k > least) k = least;
    Svd w = {.a = a, .rows = rows, .cols = cols, .k = (int)k};
    w.wide = (w.k + WIDE - 1) / WIDE * WIDE;
    size_t part = (size_t)cols * (size_t)w.wide;
    w.q = calloc((size_t)cols * (size_t)k, sizeof *w.q);
    w.flat = calloc(part, sizeof *w.flat);
    w.part = calloc(CHUNKS * part, sizeof *w.part);
    w.small = calloc((size_t)(2 * k * k), sizeof *w.small);
    w.value = calloc((size_t)(2 * k), sizeof *w.value);
    double *image = calloc((size_t)rows * (size_t)w.wide, sizeof *image);
    bool ok = w.q && w.flat && w.part && w.small && w.value && image;
    if (ok) {
        start(&w);
        for (int round = 0; round < MOST_ROUNDS; round++) {
            iterate(&w);
            if (stands(w.value, w.value + k, rank)) break;
        }
        w.image = image;
        pass(&w);
        triplets(&w, rank, u, s, v);
    }
    free(w.q);
    free(w.flat);
    free(w.part);
    free(w.small);
    free(w.value);
    free(image);
    return ok || fail(err, EXIT_MEMORY, "out of memory for singular values of [%lld, %lld]",
                      (long long)rows, (long long)cols);
}
