/* cuda_gemm.h: matrix products of the CUDA device, by cuBLASLt.
 *
 * Descriptors, layouts and the algorithm of a product are made when it is prepared and kept under
 * all that decides them; a run looks them up and calls the library once.  Row-major products become
 * column-major ones by swapping the operands.  Relies on cuda_api.h (LtApi) and on the device's own
 * stamp, seconds, sync and zero.
 *
 * Promises: the same bits whenever the same algorithm runs (sums split over k are kept in fp32 in
 * the workspace and added in a step of their own, never in the order in which they arrive); which
 * algorithm runs is kept in a file (gemm_choices in the cache directory), keyed by the device, the
 * library's version, sizes, layouts, types, epilogue, workspace and alignment.  Products that
 * differ only in how the result is stored have the same sums wherever the library can run both so.
 */
#ifndef DPOC_CUDA_GEMM_H
#define DPOC_CUDA_GEMM_H

#include "cuda_api.h"
#include "device.h"

typedef struct CudaGemm CudaGemm;

typedef struct CudaGemmOptions {
    Device *dev;           /* stamps STAMPS - 2 and STAMPS - 1 are used while products are timed */
    const LtApi *lt;       /* stays open until cuda_gemm_close */
    CuStream stream;       /* of queue 0; the device's context is current */
    const char *name;      /* of the device, without its ordinal: "NVIDIA A100-SXM4-40GB" */
    const char *cache_dir; /* where gemm_choices is read and, at close, written; NULL: nowhere */
    const char *choices;   /* a file of cuda_gemm_save whose choices come first; or NULL */
} CudaGemmOptions;

/* NULL and err when the library cannot be used.  Damaged files of choices are warnings. */
CudaGemm *cuda_gemm_open(const CudaGemmOptions *options, Err *err);
void cuda_gemm_close(CudaGemm *gemm); /* NULL is allowed */

/* What the library may use while a product runs; before the first prepare. */
void cuda_gemm_workspace(CudaGemm *gemm, void *p, int64_t bytes);
/* Where operands are put while algorithms are timed; without it, or where they do not fit, what was
 * the fastest for the nearest number of rows is taken, else the library's first proposal. */
void cuda_gemm_scratch(CudaGemm *gemm, void *p, int64_t bytes);

/* Chooses an algorithm, timing the best few in at most 5 s for all products of a run. */
bool cuda_gemm_prepare(CudaGemm *gemm, const Gemm *g, int64_t m, int64_t n, int64_t k, Err *err);
/* Enqueues a prepared product; p: a, b, c [, bias].  Sizes of zero are fine: without k,
 * C = beta * C. */
bool cuda_gemm_run(CudaGemm *gemm, const Gemm *g, void *const *p, int64_t m, int64_t n, int64_t k,
                   Err *err);

/* Writes the choices of this run's products, and those it was given, to a file that `choices`
 * reads. */
bool cuda_gemm_save(CudaGemm *gemm, const char *path, Err *err);

#endif
