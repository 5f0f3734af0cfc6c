/* cublaslt.h: what the files of the simulated libcublasLt share: descriptors inside NVIDIA's opaque
 * structs, the problem they make, and the methods that solve it.  Relies on sim.h and NVIDIA's
 * cublasLt.h. */
#ifndef CUDASIM_CUBLASLT_H
#define CUDASIM_CUBLASLT_H

#include "sim.h"

#include <cublasLt.h>
#include <stdint.h>

#define BEGIN                                                                                      \
    if (const int code = cudasim_call(__func__, CUBLAS_STATUS_INTERNAL_ERROR))                     \
    return (cublasStatus_t)code

struct cublasLtContext {
    int alive;
};

struct Layout {
    int32_t type, order, batch;
    uint64_t rows, cols;
    int64_t ld;
};
struct Operation {
    int32_t compute, scale, ta, tb, bias_type;
    uint32_t epilogue;
    const void *bias;
};
struct Preference {
    uint64_t workspace;
    uint32_t reductions, align[4];
};
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "");
static_assert(sizeof(Operation) <= sizeof(cublasLtMatmulDescOpaque_t), "");
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "");

template <class Inside, class Opaque> static Inside *in(Opaque *p) {
    return reinterpret_cast<Inside *>(p);
}

static inline cublasStatus_t set(void *field, size_t size, const void *value, size_t bytes) {
    if (!value || bytes != size) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

struct Config { /* the attributes of an algorithm; nothing is said of most but that they must fit */
    int32_t id;
    uint32_t tile;
    int32_t splits;
    uint32_t reduction, swizzling, custom, stages;
    uint16_t inner, cluster;
};
struct Method {
    Config config; /* parts of k are summed apart where it is split; custom: the last block first */
    int block;     /* k is summed in blocks */
    uint32_t align;
    uint64_t workspace; /* besides the parts */
    int32_t out;        /* the only type of the result, or -1 */
};
static inline int type_bytes(int32_t type) {
    return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 0;
}

struct Problem { /* D = alpha op(A) op(B) + beta C + bias, D being m x n */
    const Operation *op;
    const Layout *a, *b, *c, *d;
    uint64_t m, n, k;
};

/* The problem that descriptors make, or why there is none. */
cublasStatus_t problem_of(Problem *p, cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                          cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                          cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d);

/* The method an algorithm is configured to, or NULL; NULL: the library's own choice. */
const Method *method_of(const cublasLtMatmulAlgo_t *algo);
uint64_t workspace_of(const Method *m, const Problem *p);
bool suits(const Method *m, const Problem *p);

#endif
