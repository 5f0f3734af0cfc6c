/* cpu_rows.c: X W^T of a few rows on the CPU, as a token of an answer takes it: one pass over W.
 *
 * A block of W's rows is multiplied by all rows of X while it is in registers, 16 columns at a
 * time; a sum is 16 lanes, each over every sixteenth column in order, then halves added to halves.
 * So a result depends on its own row of X and on k alone: not on threads, nor on the other rows.
 * Relies on cpu_gemm.h. */
#include "cpu_gemm.h"

#include <string.h>

enum { LANES = 16, TASK = 32, FEW = 8 }; /* TASK: rows of W at a time; FEW: rows of X */

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

#if defined(__clang__)
#    define UNROLL _Pragma("unroll")
#else
#    define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

/* Elements j .. j+16 of a row, zeros from `left` on. */
INLINE void load(const char *row, bool bf16, int64_t j, int64_t left, Lanes *out) {
    if (bf16) {
        Halves h = {0};
        memcpy(&h, row + 2 * j, left >= LANES ? sizeof h : 2 * (size_t)left);
        const Words w = __builtin_convertvector(h, Words) << 16;
        memcpy(out, &w, sizeof w);
        return;
    }
    Lanes f = {0};
    memcpy(&f, row + 4 * j, left >= LANES ? sizeof f : 4 * (size_t)left);
    *out = f;
}

INLINE void step(const int m, const int r, const bool bf16, const char *x, int64_t ldx,
                 const char *w, int64_t ldw, int64_t j, int64_t left, Lanes *sum) {
    UNROLL for (int b = 0; b < r; b++) {
        Lanes wb;
        load(w + b * ldw, bf16, j, left, &wb);
        UNROLL for (int a = 0; a < m; a++) {
            Lanes xa;
            load(x + a * ldx, bf16, j, left, &xa);
            sum[a * r + b] += xa * wb;
        }
    }
}

/* out[a][b] = x[a] . w[b] for m rows of X and r of W; ldx, ldw in bytes. */
INLINE void block(const int m, const int r, const bool bf16, const char *x, int64_t ldx,
                  const char *w, int64_t ldw, int64_t k, float *out) {
    Lanes sum[16] = {{0}};
    const int64_t whole = k / LANES * LANES;
    for (int64_t j = 0; j < whole; j += LANES) step(m, r, bf16, x, ldx, w, ldw, j, LANES, sum);
    if (whole < k) step(m, r, bf16, x, ldx, w, ldw, whole, k - whole, sum);
    for (int a = 0; a < m; a++)
        for (int b = 0; b < r; b++) {
            float lane[LANES];
            memcpy(lane, &sum[a * r + b], sizeof lane);
            for (int half = LANES / 2; half; half /= 2)
                for (int l = 0; l < half; l++) lane[l] += lane[l + half];
            out[a * TASK + b] = lane[0];
        }
}

INLINE void blocks(const int m, const int r, const bool bf16, const char *x, int64_t ldx,
                   const char *w, int64_t ldw, int64_t rows, int64_t k, float *out) {
    int64_t b = 0;
    for (; b + r <= rows; b += r) block(m, r, bf16, x, ldx, w + b * ldw, ldw, k, out + b);
    for (; b < rows; b++) block(m, 1, bf16, x, ldx, w + b * ldw, ldw, k, out + b);
}

/* Up to TASK rows of W against m of X, a power of two; returns m. */
#define MULTIPLY(name, bf16)                                                                       \
    CPU_WIDE static int name(int64_t m, const char *x, int64_t ldx, const char *w, int64_t ldw,    \
                             int64_t rows, int64_t k, float *out) {                                \
        if (m >= 8) return blocks(8, 2, bf16, x, ldx, w, ldw, rows, k, out), 8;                    \
        if (m >= 4) return blocks(4, 4, bf16, x, ldx, w, ldw, rows, k, out), 4;                    \
        if (m >= 2) return blocks(2, 4, bf16, x, ldx, w, ldw, rows, k, out), 2;                    \
        return blocks(1, 4, bf16, x, ldx, w, ldw, rows, k, out), 1;                                \
    }
MULTIPLY(multiply_f32, false)
MULTIPLY(multiply_bf16, true)

bool cpu_rows_fit(const Gemm *g, int64_t m) {
    return m <= FEW && g->tb && !g->ta;
}

void cpu_rows_run(const Gemm *g, void *const *p, int64_t m, int64_t n, int64_t k, int threads) {
    const int64_t size = dtype_bytes(g->a), ldx = g->lda * size, ldw = g->ldb * size;
    const char *const x = p[0], *const w = p[1];
    const float *const bias = g->bias ? p[3] : NULL;
    char *const c = p[2];
    const int64_t tasks = (n + TASK - 1) / TASK;
#pragma omp parallel for schedule(static) num_threads(threads) if (n * k >= 65536)
    for (int64_t t = 0; t < tasks; t++) {
        const int64_t first = t * TASK, rows = n - first < TASK ? n - first : TASK;
        float out[FEW * TASK];
        for (int64_t i = 0; i < m;)
            i += (g->a == DT_bf16 ? multiply_bf16 : multiply_f32)(
                m - i, x + i * ldx, ldx, w + first * ldw, ldw, rows, k, out + i * TASK);
        for (int64_t i = 0; i < m; i++)
            cpu_gemm_finish(g, out + i * TASK, bias ? bias + first : NULL,
                            c + (i * g->ldc + first) * dtype_bytes(g->c), rows);
    }
}
