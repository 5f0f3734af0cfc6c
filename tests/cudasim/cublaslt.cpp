/* cublaslt.cpp: the simulated libcublasLt: matrix products in the memory of the simulated device,
 * in stream order.
 *
 * It refuses what NVIDIA's refuses by its header and documentation: combinations of types, layouts
 * that do not fit each other, operands aligned less than an algorithm needs, a workspace smaller
 * than an algorithm asks for; and what would be an error of the device is one here: operands
 * outside allocations.  Its algorithms differ in the order of their sums, in workspace and in the
 * alignment they need; parts of sums that are split over k lie in the workspace, which is left full
 * of NaNs otherwise.  Speed says nothing.  Relies on sim.h and NVIDIA's cublasLt.h.
 */
#include "cublaslt.h"

#include <atomic>
#include <thread>
#include <vector>

/* ---- descriptors, inside NVIDIA's opaque structs --------------------------------------------- */

template <class Opaque, class Inside> static cublasStatus_t create(Opaque **out, Inside value) {
    if (!out) return CUBLAS_STATUS_INVALID_VALUE;
    *out = new Opaque();
    memcpy(static_cast<void *>(*out), &value, sizeof value);
    return CUBLAS_STATUS_SUCCESS;
}

#define SET(field) set(&(field), sizeof(field), buf, bytes)

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    BEGIN;
    *handle = new cublasLtContext{1};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    BEGIN;
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void) {
    return CUBLAS_VERSION;
}

const char *cublasLtGetStatusName(cublasStatus_t status) {
#define NAME(s)                                                                                    \
    case s:                                                                                        \
        return #s
    switch (status) {
        NAME(CUBLAS_STATUS_SUCCESS);
        NAME(CUBLAS_STATUS_NOT_INITIALIZED);
        NAME(CUBLAS_STATUS_ALLOC_FAILED);
        NAME(CUBLAS_STATUS_INVALID_VALUE);
        NAME(CUBLAS_STATUS_ARCH_MISMATCH);
        NAME(CUBLAS_STATUS_MAPPING_ERROR);
        NAME(CUBLAS_STATUS_EXECUTION_FAILED);
        NAME(CUBLAS_STATUS_INTERNAL_ERROR);
        NAME(CUBLAS_STATUS_NOT_SUPPORTED);
        NAME(CUBLAS_STATUS_LICENSE_ERROR);
    }
    return "unknown";
}

const char *cublasLtGetStatusString(cublasStatus_t status) {
    return status ? "the simulated library refused" : "success";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    BEGIN;
    return create(desc, Operation{compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, -1,
                                  CUBLASLT_EPILOGUE_DEFAULT, nullptr});
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    BEGIN;
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attr, const void *buf,
                                              size_t bytes) {
    BEGIN;
    if (!desc) return CUBLAS_STATUS_INVALID_VALUE;
    Operation *o = in<Operation>(desc);
    switch (attr) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return SET(o->ta);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return SET(o->tb);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return SET(o->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return SET(o->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return SET(o->bias_type);
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    BEGIN;
    return create(layout, Layout{type, CUBLASLT_ORDER_COL, 1, rows, cols, ld});
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    BEGIN;
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *pref) {
    BEGIN;
    return create(pref, Preference{0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}});
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref) {
    BEGIN;
    delete pref;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                                    cublasLtMatmulPreferenceAttributes_t attr,
                                                    const void *buf, size_t bytes) {
    BEGIN;
    if (!pref) return CUBLAS_STATUS_INVALID_VALUE;
    Preference *p = in<Preference>(pref);
    switch (attr) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return SET(p->workspace);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return SET(p->reductions);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return SET(p->align[0]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return SET(p->align[1]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return SET(p->align[2]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return SET(p->align[3]);
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
}

} /* extern "C" */

/* ---- products -------------------------------------------------------------------------------- */

struct Matrix { /* as stored, column-major */
    char *p;
    int64_t ld, rows, cols;
    int32_t type;
    bool t;
};
struct Call {
    Matrix a, b, c, d;
    const char *bias;
    int64_t m, n, k;
    float alpha, beta;
    Method method;
    char *work;
    uint64_t work_bytes;
};

static inline float load(const char *p, int32_t type, int64_t at) {
    if (type == CUDA_R_32F) return reinterpret_cast<const float *>(p)[at];
    const uint32_t bits = (uint32_t) reinterpret_cast<const uint16_t *>(p)[at] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline void store(char *p, int32_t type, int64_t at, float x) {
    if (type == CUDA_R_32F) {
        reinterpret_cast<float *>(p)[at] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1); /* to even */
    reinterpret_cast<uint16_t *>(p)[at] = (uint16_t)(bits >> 16);
}

#define ROWS 32 /* of D: two vectors; columns in registers beside them: */
#define COLS 6
typedef float Vec __attribute__((vector_size(64)));
static const int lanes = sizeof(Vec) / sizeof(float);

/* Element (i, k) of op(X). */
static inline float element(const Matrix &x, int64_t i, int64_t k) {
    return load(x.p, x.type, x.t ? k + i * x.ld : i + k * x.ld);
}

/* Rows i0 .. of op(A), k0 .. of it, as to[k][row]; zeros past the end. */
static void pack_rows(const Call &x, int64_t i0, int64_t k0, int64_t nk, float *to) {
    const int64_t rows = x.m - i0 < ROWS ? x.m - i0 : ROWS;
    memset(to, 0, (size_t)nk * ROWS * sizeof *to);
    if (x.a.t)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t k = 0; k < nk; k++) to[k * ROWS + i] = element(x.a, i0 + i, k0 + k);
    else
        for (int64_t k = 0; k < nk; k++)
            for (int64_t i = 0; i < rows; i++) to[k * ROWS + i] = element(x.a, i0 + i, k0 + k);
}

/* All of op(B) as groups of COLS columns: [group][k][column]; zeros past the end. */
static std::vector<float> pack_cols(const Call &x) {
    const int64_t groups = (x.n + COLS - 1) / COLS;
    std::vector<float> to((size_t)(groups * x.k * COLS));
    for (int64_t j = 0; j < x.n; j++) {
        float *at = &to[(size_t)(j / COLS * x.k * COLS + j % COLS)];
        for (int64_t k = 0; k < x.k; k++)
            at[k * COLS] = load(x.b.p, x.b.type, x.b.t ? j + k * x.b.ld : k + j * x.b.ld);
    }
    return to;
}

static void block_sum(const float *a, const float *b, int64_t nk, float *sum) {
    Vec low[COLS] = {}, high[COLS] = {};
    for (int64_t k = 0; k < nk; k++) {
        const Vec *row = reinterpret_cast<const Vec *>(a + k * ROWS);
#pragma GCC unroll 6
        for (int j = 0; j < COLS; j++) {
            low[j] += row[0] * b[k * COLS + j];
            high[j] += row[1] * b[k * COLS + j];
        }
    }
    for (int j = 0; j < COLS; j++) {
        *reinterpret_cast<Vec *>(sum + j * ROWS) += low[j];
        *reinterpret_cast<Vec *>(sum + j * ROWS + lanes) += high[j];
    }
}

static void finish(const Call &x, int64_t i0, int64_t j, int64_t rows, const float *sum) {
    for (int64_t i = i0; i < i0 + rows; i++) {
        float y = x.alpha * sum[i - i0];
        if (x.beta != 0) y += x.beta * load(x.c.p, x.c.type, i + j * x.c.ld);
        if (x.bias) y += load(x.bias, x.d.type, i);
        store(x.d.p, x.d.type, i + j * x.d.ld, y);
    }
}

/* Rows i0 .. i0 + ROWS of D: sums of blocks of k, added in order; then parts of k, in order. */
static void panel(const Call &x, int64_t i0, const std::vector<float> &b) {
    const int64_t groups = (x.n + COLS - 1) / COLS, rows = x.m - i0 < ROWS ? x.m - i0 : ROWS;
    const int64_t block = x.method.block, splits = x.method.config.splits;
    const size_t size = (size_t)(groups * COLS * ROWS);
    float *pack = static_cast<float *>(aligned_alloc(128, (size_t)block * ROWS * sizeof(float)));
    float *sum = static_cast<float *>(aligned_alloc(128, size * sizeof(float)));
    float *total = static_cast<float *>(aligned_alloc(128, size * sizeof(float)));
    for (int64_t s = 0; s < splits; s++) {
        const int64_t begin = x.k * s / splits, end = x.k * (s + 1) / splits;
        memset(sum, 0, size * sizeof(float));
        const int64_t blocks = (end - begin + block - 1) / block;
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t k = begin + (x.method.config.custom ? blocks - 1 - i : i) * block;
            const int64_t nk = end - k < block ? end - k : block;
            pack_rows(x, i0, k, nk, pack);
            for (int64_t g = 0; g < groups; g++)
                block_sum(pack, &b[(size_t)((g * x.k + k) * COLS)], nk, sum + g * COLS * ROWS);
        }
        if (splits > 1 && x.work_bytes) { /* through the workspace, as the real ones go */
            float *part = reinterpret_cast<float *>(x.work) + s * x.m * x.n;
            for (int64_t j = 0; j < x.n; j++)
                memcpy(part + j * x.m + i0, sum + j * ROWS, (size_t)rows * sizeof(float));
            for (int64_t j = 0; j < x.n; j++)
                memcpy(sum + j * ROWS, part + j * x.m + i0, (size_t)rows * sizeof(float));
        }
        for (size_t i = 0; i < size; i++) total[i] = s ? total[i] + sum[i] : sum[i];
    }
    for (int64_t j = 0; j < x.n; j++) finish(x, i0, j, rows, total + j * ROWS);
    free(pack);
    free(sum);
    free(total);
}

static bool inside(const char *what, const void *p, int64_t bytes) {
    CUdeviceptr base, at = (CUdeviceptr)(uintptr_t)p;
    size_t size;
    if (cudasim_allocation(at, &base, &size) && at + (size_t)bytes <= base + size) return true;
    cudasim_fault(CUDA_ERROR_ILLEGAL_ADDRESS,
                  "cublasLtMatmul: %lld bytes of %s at %p lie outside the device's allocations",
                  (long long)bytes, what, p);
    return false;
}

static bool operand_inside(const char *what, const Matrix &x) {
    return inside(what, x.p, ((x.cols - 1) * x.ld + x.rows) * type_bytes(x.type));
}

static void run(void *args) {
    const Call &x = *static_cast<const Call *>(args);
    if (!operand_inside("A", x.a) || !operand_inside("B", x.b) || !operand_inside("D", x.d) ||
        (x.beta != 0 && !operand_inside("C", x.c)) ||
        (x.bias && !inside("the bias", x.bias, x.m * type_bytes(x.d.type))) ||
        (x.work_bytes && !inside("the workspace", x.work, (int64_t)x.work_bytes)))
        return;
    if (x.work_bytes) memset(x.work, 0xff, x.work_bytes);
    const std::vector<float> b = pack_cols(x);
    const char *setting = getenv("CUDASIM_WORKERS");
    const int workers = setting && atoi(setting) > 0 ? atoi(setting) : 2;
    const bool large = (double)x.m * (double)x.n * (double)x.k > 1e7;
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t i; (i = next.fetch_add(ROWS)) < x.m;) panel(x, i, b);
    };
    std::vector<std::thread> others;
    for (int i = 1; large && i < workers; i++) others.emplace_back(work);
    work();
    for (std::thread &t : others) t.join();
}

static Matrix matrix(const void *p, const Layout *l, bool t) {
    return {static_cast<char *>(const_cast<void *>(p)),
            l->ld,
            (int64_t)l->rows,
            (int64_t)l->cols,
            l->type,
            t};
}

static bool aligned(const void *p, uint64_t to) {
    return (uintptr_t)p % to == 0;
}

extern "C" cublasStatus_t
cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
               cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb,
               const void *beta, const void *c, cublasLtMatrixLayout_t lc, void *d,
               cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algo, void *workspace,
               size_t workspace_bytes, cudaStream_t stream) {
    BEGIN;
    Problem p;
    if (const cublasStatus_t status = problem_of(&p, handle, desc, la, lb, lc, ld)) return status;
    const bool has_bias = p.op->epilogue == CUBLASLT_EPILOGUE_BIAS;
    if (!alpha || !beta || !a || !b || !c || !d || (has_bias && !p.op->bias))
        return CUBLAS_STATUS_INVALID_VALUE;
    const Method *m = method_of(algo);
    if (!m) return CUBLAS_STATUS_INVALID_VALUE;
    if (!suits(m, &p) || p.k < (uint64_t)m->config.splits) return CUBLAS_STATUS_NOT_SUPPORTED;
    const uint64_t need = workspace_of(m, &p);
    if (need > workspace_bytes || (need && (!workspace || !aligned(workspace, 256))))
        return CUBLAS_STATUS_INVALID_VALUE;
    const uint64_t size = (uint64_t)type_bytes(p.a->type), out = (uint64_t)type_bytes(p.d->type);
    for (const void *x : {a, b})
        if (!aligned(x, m->align > size ? m->align : size)) return CUBLAS_STATUS_INVALID_VALUE;
    for (const void *x : {c, static_cast<const void *>(d)})
        if (!aligned(x, m->align > out ? m->align : out)) return CUBLAS_STATUS_INVALID_VALUE;
    if (has_bias && !aligned(p.op->bias, out)) return CUBLAS_STATUS_INVALID_VALUE;
    Call x = {matrix(a, p.a, p.op->ta != CUBLAS_OP_N),
              matrix(b, p.b, p.op->tb != CUBLAS_OP_N),
              matrix(c, p.c, false),
              matrix(d, p.d, false),
              has_bias ? static_cast<const char *>(p.op->bias) : nullptr,
              (int64_t)p.m,
              (int64_t)p.n,
              (int64_t)p.k,
              0,
              0,
              *m,
              static_cast<char *>(workspace),
              need};
    memcpy(&x.alpha, alpha, sizeof x.alpha);
    memcpy(&x.beta, beta, sizeof x.beta);
    return cudasim_enqueue(stream, run, &x, sizeof x) ? CUBLAS_STATUS_EXECUTION_FAILED
                                                      : CUBLAS_STATUS_SUCCESS;
}
