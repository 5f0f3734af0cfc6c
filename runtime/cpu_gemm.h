/* cpu_gemm.h: matrix products of the CPU device, by oneDNN (2.x and 3.x). */
#ifndef DPOC_CPU_GEMM_H
#define DPOC_CPU_GEMM_H

#include "plan.h"

typedef struct CpuGemm CpuGemm;

CpuGemm *cpu_gemm_open(int threads, Err *err);
void cpu_gemm_close(CpuGemm *gemm);
/* Where tiles, packed operands and the library's scratch go: gemm_workspace() bytes suffice. */
void cpu_gemm_workspace(CpuGemm *gemm, void *p, int64_t bytes);
/* Makes the primitives a product of these sizes needs. */
bool cpu_gemm_prepare(CpuGemm *gemm, const Gemm *g, int64_t m, int64_t n, int64_t k, Err *err);
bool cpu_gemm_run(CpuGemm *gemm, const Gemm *g, void *const *p, int64_t m, int64_t n, int64_t k,
                  Err *err);
/* Bytes of workspace one thread needs for it; -1 where the library has no such product. */
int64_t cpu_gemm_need(CpuGemm *gemm, const Gemm *g, int64_t m, int64_t n, int64_t k);
/* One text for several instruction sets, chosen when the program starts. */
#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#    define CPU_WIDE __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#    define CPU_WIDE
#endif
/* c = alpha * x (+ bias) (+ c), each operation rounded to fp32, then to c's type; x is used up. */
void cpu_gemm_finish(const Gemm *g, float *x, const float *bias, void *c, int64_t n);

/* ---- cpu_rows.c: C of a few rows ------------------------------------------------------------- */
bool cpu_rows_fit(const Gemm *g, int64_t m); /* whether it is one of those */
void cpu_rows_run(const Gemm *g, void *const *p, int64_t m, int64_t n, int64_t k, int threads);

/* "oneDNN 2.6, bf16 computed in fp32" */
void cpu_gemm_describe(const CpuGemm *gemm, char text[80]);

#endif
