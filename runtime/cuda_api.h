/* cuda_api.h: the functions of the CUDA driver and of cuBLASLt that dpoc calls, in our own text.
 *
 * Nothing NVIDIA is needed to build: libraries are opened at run time (library.h) and each function
 * is found by name into a table.  Both tables are lists, so that nothing is declared and then not
 * looked up.  Types and constants have names of our own (no CU prefix), so that a test may include
 * NVIDIA's headers beside this one and compare.  Versions: drivers 12.0 and later; where a symbol
 * changed its suffix between 12 and 13, `older` is the name looked for second (same signature).
 */
#ifndef DPOC_CUDA_API_H
#define DPOC_CUDA_API_H

#include "base.h"

/* ---- the driver: libcuda.so.1 ---------------------------------------------------------------- */

typedef int CuResult; /* 0: done */
typedef int CuDevice;
typedef int CuDeviceAttribute, CuFunctionAttribute, CuCaptureMode; /* enums there */
typedef uint64_t CuPointer;                                        /* an address on the device */
typedef struct CuContextOpaque *CuContext;
typedef struct CuModuleOpaque *CuModule;
typedef struct CuFunctionOpaque *CuFunction;
typedef struct CuStreamOpaque *CuStream;
typedef struct CuEventOpaque *CuEvent;
typedef struct CuGraphOpaque *CuGraph;
typedef struct CuGraphExecOpaque *CuGraphExec;

/* FUNCTION(field of CudaApi, symbol, older symbol as text or NULL, parameters); a CuResult each.
 * Signatures name every type, so that tests/cudasim/test_api.c can put NVIDIA's in their place. */
#define CUDA_FUNCTIONS(FUNCTION)                                                                   \
    FUNCTION(Init, cuInit, NULL, (unsigned flags))                                                 \
    FUNCTION(DriverGetVersion, cuDriverGetVersion, NULL, (int *version))                           \
    FUNCTION(GetErrorName, cuGetErrorName, NULL, (CuResult error, const char **name))              \
    FUNCTION(GetErrorString, cuGetErrorString, NULL, (CuResult error, const char **text))          \
    FUNCTION(DeviceGetCount, cuDeviceGetCount, NULL, (int *count))                                 \
    FUNCTION(DeviceGet, cuDeviceGet, NULL, (CuDevice * device, int ordinal))                       \
    FUNCTION(DeviceGetName, cuDeviceGetName, NULL, (char *name, int room, CuDevice device))        \
    FUNCTION(DeviceGetAttribute, cuDeviceGetAttribute, NULL,                                       \
             (int *value, CuDeviceAttribute attribute, CuDevice device))                           \
    FUNCTION(DeviceTotalMem, cuDeviceTotalMem_v2, NULL, (size_t * bytes, CuDevice device))         \
    FUNCTION(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, NULL,                               \
             (CuContext * context, CuDevice device))                                               \
    FUNCTION(DevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, NULL, (CuDevice device))       \
    FUNCTION(CtxSetCurrent, cuCtxSetCurrent, NULL, (CuContext context))                            \
    FUNCTION(MemGetInfo, cuMemGetInfo_v2, NULL, (size_t * available, size_t * total))              \
    FUNCTION(MemAlloc, cuMemAlloc_v2, NULL, (CuPointer * p, size_t bytes))                         \
    FUNCTION(MemFree, cuMemFree_v2, NULL, (CuPointer p))                                           \
    FUNCTION(MemHostAlloc, cuMemHostAlloc, NULL, (void **p, size_t bytes, unsigned flags))         \
    FUNCTION(MemFreeHost, cuMemFreeHost, NULL, (void *p))                                          \
    FUNCTION(MemHostGetDevicePointer, cuMemHostGetDevicePointer_v2, NULL,                          \
             (CuPointer * device, void *host, unsigned flags))                                     \
    FUNCTION(MemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, NULL,                                          \
             (CuPointer to, const void *from, size_t bytes, CuStream stream))                      \
    FUNCTION(MemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, NULL,                                          \
             (void *to, CuPointer from, size_t bytes, CuStream stream))                            \
    FUNCTION(MemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, NULL,                                          \
             (CuPointer to, CuPointer from, size_t bytes, CuStream stream))                        \
    FUNCTION(MemsetD8Async, cuMemsetD8Async, NULL,                                                 \
             (CuPointer to, unsigned char value, size_t bytes, CuStream stream))                   \
    FUNCTION(ModuleLoadData, cuModuleLoadData, NULL, (CuModule * module, const void *image))       \
    FUNCTION(ModuleUnload, cuModuleUnload, NULL, (CuModule module))                                \
    FUNCTION(ModuleGetFunction, cuModuleGetFunction, NULL,                                         \
             (CuFunction * function, CuModule module, const char *name))                           \
    FUNCTION(FuncSetAttribute, cuFuncSetAttribute, NULL,                                           \
             (CuFunction function, CuFunctionAttribute attribute, int value))                      \
    FUNCTION(FuncGetAttribute, cuFuncGetAttribute, NULL,                                           \
             (int *value, CuFunctionAttribute attribute, CuFunction function))                     \
    FUNCTION(LaunchKernel, cuLaunchKernel, NULL,                                                   \
             (CuFunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,             \
              unsigned by, unsigned bz, unsigned shared_bytes, CuStream stream, void **arguments,  \
              void **extra))                                                                       \
    FUNCTION(CtxGetStreamPriorityRange, cuCtxGetStreamPriorityRange, NULL,                         \
             (int *least, int *greatest))                                                          \
    FUNCTION(StreamCreate, cuStreamCreateWithPriority, NULL,                                       \
             (CuStream * stream, unsigned flags, int priority))                                    \
    FUNCTION(StreamDestroy, cuStreamDestroy_v2, NULL, (CuStream stream))                           \
    FUNCTION(StreamSynchronize, cuStreamSynchronize, NULL, (CuStream stream))                      \
    FUNCTION(StreamWaitEvent, cuStreamWaitEvent, NULL,                                             \
             (CuStream stream, CuEvent event, unsigned flags))                                     \
    FUNCTION(StreamWriteValue32, cuStreamWriteValue32_v2, NULL,                                    \
             (CuStream stream, CuPointer to, uint32_t value, unsigned flags))                      \
    FUNCTION(StreamBeginCapture, cuStreamBeginCapture_v2, NULL,                                    \
             (CuStream stream, CuCaptureMode mode))                                                \
    FUNCTION(StreamEndCapture, cuStreamEndCapture, NULL, (CuStream stream, CuGraph * graph))       \
    FUNCTION(EventCreate, cuEventCreate, NULL, (CuEvent * event, unsigned flags))                  \
    FUNCTION(EventDestroy, cuEventDestroy_v2, NULL, (CuEvent event))                               \
    FUNCTION(EventRecord, cuEventRecord, NULL, (CuEvent event, CuStream stream))                   \
    FUNCTION(EventSynchronize, cuEventSynchronize, NULL, (CuEvent event))                          \
    FUNCTION(EventElapsedTime, cuEventElapsedTime_v2, "cuEventElapsedTime",                        \
             (float *milliseconds, CuEvent begin, CuEvent end))                                    \
    FUNCTION(GraphInstantiate, cuGraphInstantiateWithFlags, NULL,                                  \
             (CuGraphExec * exec, CuGraph graph, unsigned long long flags))                        \
    FUNCTION(GraphDestroy, cuGraphDestroy, NULL, (CuGraph graph))                                  \
    FUNCTION(GraphLaunch, cuGraphLaunch, NULL, (CuGraphExec exec, CuStream stream))                \
    FUNCTION(GraphExecDestroy, cuGraphExecDestroy, NULL, (CuGraphExec exec))

typedef struct CudaApi {
#define CUDA_FIELD(field, symbol, older, parameters) CuResult(*field) parameters;
    CUDA_FUNCTIONS(CUDA_FIELD)
#undef CUDA_FIELD
} CudaApi;

enum { /* of CuResult */
       ERROR_INVALID_VALUE = 1,
       ERROR_OUT_OF_MEMORY = 2,
       ERROR_NO_DEVICE = 100,
       ERROR_NO_BINARY_FOR_GPU = 209,
       ERROR_ECC = 214, /* memory that cannot be corrected */
       ERROR_INVALID_HANDLE = 400,
       ERROR_ILLEGAL_ADDRESS = 700, /* from here on failures of kernels, */
       ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
       ERROR_LAUNCH_TIMEOUT = 702,
       ERROR_SYSTEM = 800, /* from here on of the installation, */
       ERROR_SYSTEM_DRIVER_MISMATCH = 803,
       ERROR_CAPTURE = 900, /* from here on of work being recorded */
       ERROR_UNKNOWN = 999
};
enum { /* of DeviceGetAttribute */
       ATTRIBUTE_MULTIPROCESSORS = 16,
       ATTRIBUTE_PCI_BUS = 33,
       ATTRIBUTE_PCI_DEVICE = 34,
       ATTRIBUTE_PCI_DOMAIN = 50,
       ATTRIBUTE_CAPABILITY_MAJOR = 75,
       ATTRIBUTE_CAPABILITY_MINOR = 76,
       ATTRIBUTE_SHARED_PER_BLOCK_OPTIN = 97
};
enum { /* of FuncGetAttribute, FuncSetAttribute */
       FUNCTION_MAX_THREADS = 0,
       FUNCTION_STATIC_SHARED = 1,
       FUNCTION_MAX_DYNAMIC_SHARED = 8
};
enum { /* flags */
       HOST_PORTABLE = 1,
       HOST_DEVICEMAP = 2,
       STREAM_NON_BLOCKING = 1,
       EVENT_DEFAULT = 0,
       EVENT_DISABLE_TIMING = 2,
       CAPTURE_THREAD_LOCAL = 1,
       GRAPH_NODE_PRIORITY = 8 /* a kernel keeps the priority of the stream it was recorded from */
};

/* ---- cuBLASLt: libcublasLt.so.12, .13 -------------------------------------------------------- */

typedef int LtStatus;                                                  /* 0: done */
typedef int LtCompute, LtType, LtDescAttribute, LtPreferenceAttribute; /* enums there */
typedef int LtCapAttribute, LtConfigAttribute;
typedef struct LtHandleOpaque *LtHandle;
typedef struct LtDescOpaque *LtDesc;             /* cublasLtMatmulDesc_t */
typedef struct LtLayoutOpaque *LtLayout;         /* cublasLtMatrixLayout_t */
typedef struct LtPreferenceOpaque *LtPreference; /* cublasLtMatmulPreference_t */
typedef struct LtAlgo {                          /* cublasLtMatmulAlgo_t */
    uint64_t data[8];
} LtAlgo;
typedef struct LtHeuristic { /* cublasLtMatmulHeuristicResult_t */
    LtAlgo algo;
    size_t workspace;
    LtStatus state;
    float waves;
    int reserved[4];
} LtHeuristic;

/* FUNCTION(result, field of LtApi, symbol, parameters) */
#define LT_FUNCTIONS(FUNCTION)                                                                     \
    FUNCTION(size_t, GetVersion, cublasLtGetVersion, (void))                                       \
    FUNCTION(const char *, GetStatusName, cublasLtGetStatusName, (LtStatus status))                \
    FUNCTION(const char *, GetStatusString, cublasLtGetStatusString, (LtStatus status))            \
    FUNCTION(LtStatus, Create, cublasLtCreate, (LtHandle * handle))                                \
    FUNCTION(LtStatus, Destroy, cublasLtDestroy, (LtHandle handle))                                \
    FUNCTION(LtStatus, DescCreate, cublasLtMatmulDescCreate,                                       \
             (LtDesc * desc, LtCompute compute_type, LtType scale_type))                           \
    FUNCTION(LtStatus, DescDestroy, cublasLtMatmulDescDestroy, (LtDesc desc))                      \
    FUNCTION(LtStatus, DescSetAttribute, cublasLtMatmulDescSetAttribute,                           \
             (LtDesc desc, LtDescAttribute attribute, const void *value, size_t bytes))            \
    FUNCTION(LtStatus, LayoutCreate, cublasLtMatrixLayoutCreate,                                   \
             (LtLayout * layout, LtType type, uint64_t rows, uint64_t cols, int64_t ld))           \
    FUNCTION(LtStatus, LayoutDestroy, cublasLtMatrixLayoutDestroy, (LtLayout layout))              \
    FUNCTION(LtStatus, PreferenceCreate, cublasLtMatmulPreferenceCreate,                           \
             (LtPreference * preference))                                                          \
    FUNCTION(LtStatus, PreferenceDestroy, cublasLtMatmulPreferenceDestroy,                         \
             (LtPreference preference))                                                            \
    FUNCTION(LtStatus, PreferenceSetAttribute, cublasLtMatmulPreferenceSetAttribute,               \
             (LtPreference preference, LtPreferenceAttribute attribute, const void *value,         \
              size_t bytes))                                                                       \
    FUNCTION(LtStatus, AlgoGetHeuristic, cublasLtMatmulAlgoGetHeuristic,                           \
             (LtHandle handle, LtDesc desc, LtLayout a, LtLayout b, LtLayout c, LtLayout d,        \
              LtPreference preference, int wanted, LtHeuristic *results, int *found))              \
    FUNCTION(LtStatus, AlgoCheck, cublasLtMatmulAlgoCheck,                                         \
             (LtHandle handle, LtDesc desc, LtLayout a, LtLayout b, LtLayout c, LtLayout d,        \
              const LtAlgo *algo, LtHeuristic *result))                                            \
    FUNCTION(LtStatus, AlgoInit, cublasLtMatmulAlgoInit,                                           \
             (LtHandle handle, LtCompute compute_type, LtType scale_type, LtType a, LtType b,      \
              LtType c, LtType d, int id, LtAlgo *algo))                                           \
    FUNCTION(LtStatus, AlgoCapGetAttribute, cublasLtMatmulAlgoCapGetAttribute,                     \
             (const LtAlgo *algo, LtCapAttribute attribute, void *value, size_t bytes,             \
              size_t *written))                                                                    \
    FUNCTION(LtStatus, AlgoConfigGetAttribute, cublasLtMatmulAlgoConfigGetAttribute,               \
             (const LtAlgo *algo, LtConfigAttribute attribute, void *value, size_t bytes,          \
              size_t *written))                                                                    \
    FUNCTION(LtStatus, AlgoConfigSetAttribute, cublasLtMatmulAlgoConfigSetAttribute,               \
             (LtAlgo * algo, LtConfigAttribute attribute, const void *value, size_t bytes))        \
    FUNCTION(LtStatus, Matmul, cublasLtMatmul,                                                     \
             (LtHandle handle, LtDesc desc, const void *alpha, const void *a, LtLayout la,         \
              const void *b, LtLayout lb, const void *beta, const void *c, LtLayout lc, void *d,   \
              LtLayout ld, const LtAlgo *algo, void *workspace, size_t bytes, CuStream stream))

typedef struct LtApi {
#define LT_FIELD(result, field, symbol, parameters) result(*field) parameters;
    LT_FUNCTIONS(LT_FIELD)
#undef LT_FIELD
} LtApi;

enum { /* of LtStatus */
       LT_ALLOC_FAILED = 3,
       LT_INVALID_VALUE = 7,
       LT_EXECUTION_FAILED = 13
};
enum { /* element, compute and scale types; operations */
       LT_F32 = 0,
       LT_BF16 = 14,
       LT_COMPUTE_32F = 68,
       LT_OP_N = 0,
       LT_OP_T = 1
};
enum { /* of DescSetAttribute */
       LT_DESC_TRANSA = 3,
       LT_DESC_TRANSB = 4,
       LT_DESC_EPILOGUE = 7,
       LT_DESC_BIAS_POINTER = 8
};
enum { /* of LT_DESC_EPILOGUE */
       LT_EPILOGUE_DEFAULT = 1,
       LT_EPILOGUE_BIAS = 4
};
enum { /* of PreferenceSetAttribute */
       LT_PREFERENCE_WORKSPACE_BYTES = 1,
       LT_PREFERENCE_REDUCTION_MASK = 3,
       LT_PREFERENCE_ALIGNMENT_A = 5,
       LT_PREFERENCE_ALIGNMENT_B = 6,
       LT_PREFERENCE_ALIGNMENT_C = 7,
       LT_PREFERENCE_ALIGNMENT_D = 8
};
enum { /* of LT_PREFERENCE_REDUCTION_MASK */
       LT_REDUCTION_COMPUTE_TYPE = 2
};
enum { /* of AlgoCapGetAttribute: bytes, uint32_t */
       LT_CAP_ALIGNMENT_A = 16,
       LT_CAP_ALIGNMENT_B = 17,
       LT_CAP_ALIGNMENT_C = 18,
       LT_CAP_ALIGNMENT_D = 19
};
enum { /* of AlgoConfigGetAttribute and AlgoConfigSetAttribute: 4 bytes, the last two 2 */
       LT_CONFIG_ID = 0, /* cannot be set */
       LT_CONFIG_TILE = 1,
       LT_CONFIG_SPLITS = 2,
       LT_CONFIG_REDUCTION = 3,
       LT_CONFIG_SWIZZLING = 4,
       LT_CONFIG_CUSTOM = 5,
       LT_CONFIG_STAGES = 6,
       LT_CONFIG_INNER_SHAPE = 7,
       LT_CONFIG_CLUSTER_SHAPE = 8
};

/* ---- tables ---------------------------------------------------------------------------------- */

/* Looks every function up in an open library; false and err (exit 3) name the first that it lacks.
 * cuda_api.c */
bool cuda_api_load(CudaApi *api, void *library, Err *err);
bool lt_api_load(LtApi *api, void *library, Err *err);

/* "CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered", interned. */
const char *cuda_error(const CudaApi *api, CuResult error);
const char *lt_error(const LtApi *api, LtStatus status);

#endif
