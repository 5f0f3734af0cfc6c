/* Our own text of NVIDIA's interfaces (runtime/cuda_api.h) against NVIDIA's headers, and against
 * the real libraries as far as they work without a GPU.
 *
 * The lists of functions are read a second time with NVIDIA's types in the place of ours: a
 * signature that differs does not compile.  This is what a simulated library cannot show, since it
 * could share a wrong prototype.
 */
#include "../../runtime/cuda_api.h"
#include "../../runtime/library.h"

#if defined(__has_include)
#    if __has_include(<cuda.h>) && __has_include(<cublasLt.h>)
#        include <cuda.h>
#    endif
#endif

#if defined(CUDA_VERSION) && CUDA_VERSION >= 13000
#    include <cublasLt.h>
#    include <dlfcn.h>
#    include <glob.h>
#    include <setjmp.h>
#    include <stdarg.h>
#    include <stdlib.h>
#    include <string.h>

#    include <cmocka.h>

/* ---- sizes: what is ours in memory ----------------------------------------------------------- */

#    define SAME_SIZE(ours, theirs)                                                                \
        _Static_assert(sizeof(ours) == sizeof(theirs) && _Alignof(ours) == _Alignof(theirs),       \
                       #ours " is not " #theirs)
#    define SAME_PLACE(ours, field, theirs, member)                                                \
        _Static_assert(offsetof(ours, field) == offsetof(theirs, member),                          \
                       #ours "." #field " is not " #theirs "." #member)
SAME_SIZE(CuResult, CUresult);
SAME_SIZE(CuDevice, CUdevice);
SAME_SIZE(CuPointer, CUdeviceptr);
SAME_SIZE(CuDeviceAttribute, CUdevice_attribute);
SAME_SIZE(CuFunctionAttribute, CUfunction_attribute);
SAME_SIZE(CuCaptureMode, CUstreamCaptureMode);
SAME_SIZE(LtStatus, cublasStatus_t);
SAME_SIZE(LtType, cudaDataType_t);
SAME_SIZE(LtCompute, cublasComputeType_t);
SAME_SIZE(LtDescAttribute, cublasLtMatmulDescAttributes_t);
SAME_SIZE(LtPreferenceAttribute, cublasLtMatmulPreferenceAttributes_t);
SAME_SIZE(LtCapAttribute, cublasLtMatmulAlgoCapAttributes_t);
SAME_SIZE(LtConfigAttribute, cublasLtMatmulAlgoConfigAttributes_t);
SAME_SIZE(LtAlgo, cublasLtMatmulAlgo_t);
SAME_SIZE(LtHeuristic, cublasLtMatmulHeuristicResult_t);
SAME_PLACE(LtHeuristic, workspace, cublasLtMatmulHeuristicResult_t, workspaceSize);
SAME_PLACE(LtHeuristic, state, cublasLtMatmulHeuristicResult_t, state);

/* ---- values ---------------------------------------------------------------------------------- */

#    define SAME(ours, theirs)                                                                     \
        _Static_assert((long)(ours) == (long)(theirs), #ours " is not " #theirs)
SAME(ERROR_INVALID_VALUE, CUDA_ERROR_INVALID_VALUE);
SAME(ERROR_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME(ERROR_NO_DEVICE, CUDA_ERROR_NO_DEVICE);
SAME(ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_NO_BINARY_FOR_GPU);
SAME(ERROR_ECC, CUDA_ERROR_ECC_UNCORRECTABLE);
SAME(ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_HANDLE);
SAME(ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME(ERROR_LAUNCH_OUT_OF_RESOURCES, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
SAME(ERROR_LAUNCH_TIMEOUT, CUDA_ERROR_LAUNCH_TIMEOUT);
SAME(ERROR_SYSTEM_DRIVER_MISMATCH, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
SAME(ERROR_CAPTURE, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
SAME(ERROR_UNKNOWN, CUDA_ERROR_UNKNOWN);
SAME(ATTRIBUTE_MULTIPROCESSORS, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(ATTRIBUTE_PCI_BUS, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
SAME(ATTRIBUTE_PCI_DEVICE, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID);
SAME(ATTRIBUTE_PCI_DOMAIN, CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID);
SAME(ATTRIBUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(ATTRIBUTE_CAPABILITY_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(ATTRIBUTE_SHARED_PER_BLOCK_OPTIN, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
SAME(FUNCTION_MAX_THREADS, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
SAME(FUNCTION_STATIC_SHARED, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
SAME(FUNCTION_MAX_DYNAMIC_SHARED, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME(HOST_PORTABLE, CU_MEMHOSTALLOC_PORTABLE);
SAME(HOST_DEVICEMAP, CU_MEMHOSTALLOC_DEVICEMAP);
SAME(STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME(EVENT_DEFAULT, CU_EVENT_DEFAULT);
SAME(EVENT_DISABLE_TIMING, CU_EVENT_DISABLE_TIMING);
SAME(CAPTURE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
SAME(GRAPH_NODE_PRIORITY, CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY);
SAME(LT_ALLOC_FAILED, CUBLAS_STATUS_ALLOC_FAILED);
SAME(LT_INVALID_VALUE, CUBLAS_STATUS_INVALID_VALUE);
SAME(LT_EXECUTION_FAILED, CUBLAS_STATUS_EXECUTION_FAILED);
SAME(LT_F32, CUDA_R_32F);
SAME(LT_BF16, CUDA_R_16BF);
SAME(LT_COMPUTE_32F, CUBLAS_COMPUTE_32F);
SAME(LT_OP_N, CUBLAS_OP_N);
SAME(LT_OP_T, CUBLAS_OP_T);
SAME(LT_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(LT_DESC_TRANSB, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(LT_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_EPILOGUE);
SAME(LT_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
SAME(LT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_DEFAULT);
SAME(LT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_BIAS);
SAME(LT_PREFERENCE_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(LT_PREFERENCE_REDUCTION_MASK, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(LT_PREFERENCE_ALIGNMENT_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(LT_PREFERENCE_ALIGNMENT_B, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(LT_PREFERENCE_ALIGNMENT_C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(LT_PREFERENCE_ALIGNMENT_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(LT_REDUCTION_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
SAME(LT_CAP_ALIGNMENT_A, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES);
SAME(LT_CAP_ALIGNMENT_B, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_B_BYTES);
SAME(LT_CAP_ALIGNMENT_C, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_C_BYTES);
SAME(LT_CAP_ALIGNMENT_D, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_D_BYTES);
SAME(LT_CONFIG_ID, CUBLASLT_ALGO_CONFIG_ID);
SAME(LT_CONFIG_TILE, CUBLASLT_ALGO_CONFIG_TILE_ID);
SAME(LT_CONFIG_SPLITS, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
SAME(LT_CONFIG_REDUCTION, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
SAME(LT_CONFIG_SWIZZLING, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING);
SAME(LT_CONFIG_CUSTOM, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION);
SAME(LT_CONFIG_STAGES, CUBLASLT_ALGO_CONFIG_STAGES_ID);
SAME(LT_CONFIG_INNER_SHAPE, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID);
SAME(LT_CONFIG_CLUSTER_SHAPE, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID);

/* ---- the real libraries, through our tables -------------------------------------------------- */

/* The toolkit's stub of the driver has every function's name. */
static void test_driver_names(void **state) {
    (void)state;
    glob_t found = {0};
    glob("/usr/local/cuda*/lib*/stubs/libcuda.so", 0, NULL, &found);
    const char *homes[] = {getenv("CUDA_HOME"), getenv("CUDA_PATH")};
    for (size_t i = 0; i < COUNT(homes); i++)
        if (homes[i])
            glob(intern_printf("%s/lib*/stubs/libcuda.so", homes[i]), GLOB_APPEND, NULL, &found);
    if (!found.gl_pathc) skip();
    for (size_t i = 0; i < found.gl_pathc; i++) {
        CudaApi api;
        Err err = {0};
        void *stub = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
        if (!stub) fail_msg("%s", dlerror());
        if (!cuda_api_load(&api, stub, &err)) fail_msg("%s", err.text);
    }
    globfree(&found);
}

#    define OK(call) assert_int_equal((call), 0)

/* Descriptors need no GPU: the library itself checks attributes' numbers and sizes. */
static void test_cublaslt(void **state) {
    (void)state;
    Library nvrtc = {0}, cublaslt = {0};
    LtApi lt;
    Err err = {0};
    if (!library_pair(0, 0, &nvrtc, &cublaslt, &err)) skip();
    if (!lt_api_load(&lt, cublaslt.handle, &err)) fail_msg("%s", err.text);
    assert_int_equal(lt.GetVersion() / 10000, cublaslt.version / 1000);
    assert_string_equal(lt.GetStatusName(LT_ALLOC_FAILED), "CUBLAS_STATUS_ALLOC_FAILED");

    LtDesc desc;
    int32_t op = LT_OP_T;
    uint32_t epilogue = LT_EPILOGUE_BIAS, reductions = LT_REDUCTION_COMPUTE_TYPE, align = 16;
    void *bias = &op;
    OK(lt.DescCreate(&desc, LT_COMPUTE_32F, LT_F32));
    OK(lt.DescSetAttribute(desc, LT_DESC_TRANSA, &op, sizeof op));
    OK(lt.DescSetAttribute(desc, LT_DESC_TRANSB, &op, sizeof op));
    OK(lt.DescSetAttribute(desc, LT_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    OK(lt.DescSetAttribute(desc, LT_DESC_BIAS_POINTER, &bias, sizeof bias));
    assert_int_not_equal(lt.DescSetAttribute(desc, LT_DESC_TRANSA, &op, 2), 0);
    OK(lt.DescDestroy(desc));

    LtLayout layout;
    OK(lt.LayoutCreate(&layout, LT_BF16, 128256, 4096, 128256));
    OK(lt.LayoutDestroy(layout));

    LtPreference pref;
    uint64_t bytes = 32 << 20;
    OK(lt.PreferenceCreate(&pref));
    OK(lt.PreferenceSetAttribute(pref, LT_PREFERENCE_WORKSPACE_BYTES, &bytes, sizeof bytes));
    OK(lt.PreferenceSetAttribute(pref, LT_PREFERENCE_REDUCTION_MASK, &reductions,
                                 sizeof reductions));
    for (int a = LT_PREFERENCE_ALIGNMENT_A; a <= LT_PREFERENCE_ALIGNMENT_D; a++)
        OK(lt.PreferenceSetAttribute(pref, a, &align, sizeof align));
    OK(lt.PreferenceDestroy(pref));
    /* What an algorithm is configured by can be set and read without a GPU, too. */
    LtAlgo algo = {{0}};
    for (int a = LT_CONFIG_TILE; a <= LT_CONFIG_CLUSTER_SHAPE; a++) {
        uint32_t set = 1, got = 0;
        size_t size = a < LT_CONFIG_INNER_SHAPE ? 4 : 2, written = 0;
        OK(lt.AlgoConfigSetAttribute(&algo, a, &set, size));
        OK(lt.AlgoConfigGetAttribute(&algo, a, &got, size, &written));
        assert_int_equal(got, set);
        assert_int_equal(written, size);
        assert_int_not_equal(lt.AlgoConfigSetAttribute(&algo, a, &set, 1), 0);
    }
    /* The libraries stay open: what they keep for good would look lost without them. */
}

/* ---- signatures: NVIDIA's types take the place of ours --------------------------------------- */

#    define CuResult              CUresult
#    define CuDevice              CUdevice
#    define CuDeviceAttribute     CUdevice_attribute
#    define CuFunctionAttribute   CUfunction_attribute
#    define CuCaptureMode         CUstreamCaptureMode
#    define CuPointer             CUdeviceptr
#    define CuContext             CUcontext
#    define CuModule              CUmodule
#    define CuFunction            CUfunction
#    define CuStream              CUstream
#    define CuEvent               CUevent
#    define CuGraph               CUgraph
#    define CuGraphExec           CUgraphExec
#    define LtStatus              cublasStatus_t
#    define LtCompute             cublasComputeType_t
#    define LtType                cudaDataType_t
#    define LtDescAttribute       cublasLtMatmulDescAttributes_t
#    define LtPreferenceAttribute cublasLtMatmulPreferenceAttributes_t
#    define LtCapAttribute        cublasLtMatmulAlgoCapAttributes_t
#    define LtConfigAttribute     cublasLtMatmulAlgoConfigAttributes_t
#    define LtHandle              cublasLtHandle_t
#    define LtDesc                cublasLtMatmulDesc_t
#    define LtLayout              cublasLtMatrixLayout_t
#    define LtPreference          cublasLtMatmulPreference_t
#    define LtAlgo                cublasLtMatmulAlgo_t
#    define LtHeuristic           cublasLtMatmulHeuristicResult_t

#    define SAME_CU(field, symbol, older, parameters)                                              \
        _Static_assert(__builtin_types_compatible_p(CUresult(*) parameters, __typeof__(&symbol)),  \
                       "the signature of " #symbol " is another");
CUDA_FUNCTIONS(SAME_CU)
#    define SAME_LT(result, field, symbol, parameters)                                             \
        _Static_assert(__builtin_types_compatible_p(result(*) parameters, __typeof__(&symbol)),    \
                       "the signature of " #symbol " is another");
LT_FUNCTIONS(SAME_LT)

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_driver_names),
                                       cmocka_unit_test(test_cublaslt)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void) {
    printf("the headers of CUDA 13 are not installed (cuda.h, cublasLt.h)\n");
    return 77;
}

#endif
