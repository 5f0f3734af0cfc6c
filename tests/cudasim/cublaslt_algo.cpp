/* cublaslt_algo.cpp: the algorithms of the simulated libcublasLt: which there are, how they are
 * proposed, configured and checked.
 *
 * An algorithm is an id and attributes; it accepts certain types, and only the configurations in
 * the table run.  They differ in the order of their sums, in workspace and in the alignment they
 * need.  Relies on cublaslt.h. */
#include "cublaslt.h"

struct Algo { /* inside NVIDIA's opaque struct */
    uint64_t mark;
    Config config;
    int32_t in, out; /* types */
};
static_assert(sizeof(Algo) <= sizeof(cublasLtMatmulAlgo_t), "");
static const uint64_t algo_mark = 0x746c736164756321; /* so that other bytes are no algorithm */

#define NONE    CUBLASLT_REDUCTION_SCHEME_NONE
#define TILE(t) CUBLASLT_MATMUL_TILE_##t
#define K(k)    CUBLASLT_MATMUL_STAGES_##k##x1, 0, 0 /* inner shape and cluster as they come */
/* The best first, as a heuristic would have it. */
static const Method methods[] = {
    {{24, TILE(128x128), 1, NONE, 1, 1, CUBLASLT_MATMUL_STAGES_128x3,
      CUBLASLT_MATMUL_INNER_SHAPE_MMA16816, CUBLASLT_CLUSTER_SHAPE_2x1x1},
     128,
     16,
     0,
     CUDA_R_16BF},
    {{21, TILE(128x128), 1, NONE, 0, 0, K(128)}, 128, 16, 256 << 10, -1},
    {{6, TILE(64x64), 3, CUBLASLT_REDUCTION_SCHEME_INPLACE, 0, 0, K(64)}, 64, 16, 0, -1},
    {{6, TILE(64x64), 2, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, 0, 0, K(64)}, 64, 16, 0, -1},
    {{6, TILE(64x64), 4, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE, 0, 0, K(64)}, 64, 16, 0, -1},
    {{21, TILE(64x64), 1, NONE, 1, 1, CUBLASLT_MATMUL_STAGES_64x3,
      CUBLASLT_MATMUL_INNER_SHAPE_MMA16816, CUBLASLT_CLUSTER_SHAPE_2x1x1},
     64,
     16,
     0,
     -1},
    {{6, TILE(64x64), 1, NONE, 0, 0, K(64)}, 64, 16, 0, -1},
    {{1, TILE(32x32), 1, NONE, 0, 0, K(32)}, 32, 1, 0, -1},
};
static const int nmethods = sizeof methods / sizeof *methods;

static const Algo *algo_of(const cublasLtMatmulAlgo_t *algo) {
    const Algo *a = in<const Algo>(algo);
    return a && a->mark == algo_mark ? a : nullptr;
}

/* An algorithm is one of the methods where all its attributes fit. */
const Method *method_of(const cublasLtMatmulAlgo_t *algo) {
    if (!algo) return &methods[nmethods - 1];
    const Algo *a = algo_of(algo);
    for (const Method &m : methods)
        if (a && !memcmp(&a->config, &m.config, sizeof m.config)) return &m;
    return nullptr;
}

/* The types the documentation's table has for compute type 32F, as far as dpoc may ask. */
static bool types_exist(const Problem *p) {
    const Operation *o = p->op;
    if (o->compute != CUBLAS_COMPUTE_32F || o->scale != CUDA_R_32F) return false;
    if (p->a->type != p->b->type || p->c->type != p->d->type) return false;
    const int32_t bias = o->bias_type < 0 ? p->d->type : o->bias_type;
    if (o->epilogue == CUBLASLT_EPILOGUE_BIAS && bias != p->d->type) return false;
    if (o->epilogue != CUBLASLT_EPILOGUE_BIAS && o->epilogue != CUBLASLT_EPILOGUE_DEFAULT)
        return false;
    return p->a->type == CUDA_R_16BF ? p->d->type == CUDA_R_16BF || p->d->type == CUDA_R_32F
                                     : p->a->type == CUDA_R_32F && p->d->type == CUDA_R_32F;
}

cublasStatus_t problem_of(Problem *p, cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                          cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                          cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    if (!handle || !handle->alive) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!desc || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
    *p = {in<Operation>(desc), in<Layout>(a), in<Layout>(b), in<Layout>(c), in<Layout>(d), 0, 0, 0};
    const bool ta = p->op->ta != CUBLAS_OP_N, tb = p->op->tb != CUBLAS_OP_N;
    p->m = ta ? p->a->cols : p->a->rows;
    p->k = ta ? p->a->rows : p->a->cols;
    p->n = tb ? p->b->rows : p->b->cols;
    const uint64_t kb = tb ? p->b->cols : p->b->rows;
    if (!p->m || !p->n || !p->k || kb != p->k) return CUBLAS_STATUS_INVALID_VALUE;
    for (const Layout *x : {p->c, p->d})
        if (x->rows != p->m || x->cols != p->n) return CUBLAS_STATUS_INVALID_VALUE;
    for (const Layout *x : {p->a, p->b, p->c, p->d})
        if (x->ld < (int64_t)x->rows) return CUBLAS_STATUS_INVALID_VALUE;
    return types_exist(p) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

uint64_t workspace_of(const Method *m, const Problem *p) {
    const bool stored =
        m->config.splits > 1 && m->config.reduction != CUBLASLT_REDUCTION_SCHEME_INPLACE;
    return m->workspace + (stored ? (uint64_t)m->config.splits * p->m * p->n * sizeof(float) : 0);
}

/* The result's type, and rows of all operands begin where the method can read and write them. */
bool suits(const Method *m, const Problem *p) {
    if (m->out >= 0 && m->out != p->d->type) return false;
    for (const Layout *x : {p->a, p->b, p->c, p->d})
        if (x->ld * type_bytes(x->type) % m->align) return false;
    return true;
}

extern "C" {

/* A large product gets one proposal, so that nobody spends time on comparing here. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results,
                                              int *found) {
    BEGIN;
    Problem p;
    if (!preference || !results || !found || wanted <= 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (const cublasStatus_t status = problem_of(&p, handle, desc, a, b, c, d)) return status;
    const Preference *pref = in<Preference>(preference);
    if ((double)p.m * (double)p.n * (double)p.k > 5e6) wanted = 1;
    *found = 0;
    for (int i = 0; i < nmethods && *found < wanted; i++) {
        const Method *m = &methods[i];
        bool fits = workspace_of(m, &p) <= pref->workspace && suits(m, &p) &&
                    (m->config.splits == 1 || (m->config.reduction & pref->reductions)) &&
                    p.k >= (uint64_t)m->config.splits;
        for (uint32_t align : pref->align) fits = fits && align >= m->align;
        if (!fits) continue;
        cublasLtMatmulHeuristicResult_t *r = &results[(*found)++];
        *r = {};
        const Algo algo = {algo_mark, m->config, p.a->type, p.d->type};
        memcpy(static_cast<void *>(&r->algo), &algo, sizeof algo);
        r->workspaceSize = workspace_of(m, &p);
        r->wavesCount = 1;
    }
    return *found ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result) {
    BEGIN;
    Problem p;
    if (!algo || !result) return CUBLAS_STATUS_INVALID_VALUE;
    if (const cublasStatus_t status = problem_of(&p, handle, desc, a, b, c, d)) return status;
    if (!algo_of(algo)) return CUBLAS_STATUS_INVALID_VALUE;
    const Method *m = method_of(algo);
    if (!m || algo_of(algo)->in != p.a->type || algo_of(algo)->out != p.d->type)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!suits(m, &p) || p.k < (uint64_t)m->config.splits) return CUBLAS_STATUS_NOT_SUPPORTED;
    result->workspaceSize = workspace_of(m, &p);
    result->state = CUBLAS_STATUS_SUCCESS;
    result->wavesCount = 1;
    return CUBLAS_STATUS_SUCCESS;
}

/* The default configuration, which fits nothing yet. */
cublasStatus_t cublasLtMatmulAlgoInit(cublasLtHandle_t handle, cublasComputeType_t compute,
                                      cudaDataType_t scale, cudaDataType_t a, cudaDataType_t b,
                                      cudaDataType_t c, cudaDataType_t d, int id,
                                      cublasLtMatmulAlgo_t *algo) {
    BEGIN;
    if (!handle || !algo) return CUBLAS_STATUS_INVALID_VALUE;
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F || a != b || c != d)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (const Method &m : methods) {
        if (m.config.id != id || (m.out >= 0 && m.out != (int32_t)d)) continue;
        const Algo begin = {algo_mark, {id, 0, 1, NONE, 0, 0, 0, 0, 0}, a, d};
        *algo = {};
        memcpy(static_cast<void *>(algo), &begin, sizeof begin);
        return CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

/* Only what operands must be aligned to: the same for all methods of an algorithm. */
cublasStatus_t cublasLtMatmulAlgoCapGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                 cublasLtMatmulAlgoCapAttributes_t attr, void *buf,
                                                 size_t bytes, size_t *written) {
    BEGIN;
    const Algo *a = algo_of(algo);
    if (!a || !buf || bytes != sizeof(uint32_t) || attr < CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES ||
        attr > CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_D_BYTES)
        return CUBLAS_STATUS_INVALID_VALUE;
    for (const Method &m : methods)
        if (m.config.id == a->config.id) memcpy(buf, &m.align, bytes);
    if (written) *written = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t config_field(Config *c, int attr, void **field, size_t *bytes) {
    const struct {
        void *field;
        size_t bytes;
    } fields[] = {{&c->id, 4},        {&c->tile, 4},      {&c->splits, 4},
                  {&c->reduction, 4}, {&c->swizzling, 4}, {&c->custom, 4},
                  {&c->stages, 4},    {&c->inner, 2},     {&c->cluster, 2}};
    if (attr < 0 || attr > CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID)
        return CUBLAS_STATUS_INVALID_VALUE;
    *field = fields[attr].field;
    *bytes = fields[attr].bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attr,
                                                    const void *buf, size_t bytes) {
    BEGIN;
    void *field;
    size_t size;
    if (!algo_of(algo) || attr == CUBLASLT_ALGO_CONFIG_ID ||
        config_field(&in<Algo>(algo)->config, attr, &field, &size))
        return CUBLAS_STATUS_INVALID_VALUE;
    return set(field, size, buf, bytes);
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attr,
                                                    void *buf, size_t bytes, size_t *written) {
    BEGIN;
    void *field;
    size_t size;
    if (!algo_of(algo)) return CUBLAS_STATUS_INVALID_VALUE;
    Config config = algo_of(algo)->config;
    if (config_field(&config, attr, &field, &size) || !buf || bytes != size)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(buf, field, size);
    if (written) *written = size;
    return CUBLAS_STATUS_SUCCESS;
}

} /* extern "C" */
