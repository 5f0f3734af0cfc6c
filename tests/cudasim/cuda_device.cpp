/* cuda_device.cpp: the simulated driver's beginning, device, context and errors.
 *
 * CUDASIM_SM (80), CUDASIM_DRIVER (13000), CUDASIM_DEVICES (1) say what it pretends to be.
 */
#include <cstdarg>

#include "state.h"

std::recursive_mutex &the_lock = *new std::recursive_mutex;
CUresult sticky = CUDA_SUCCESS;

namespace {

bool initialised;
int retained;              /* times the primary context is */
thread_local bool current; /* this thread has it */
int context_tag;           /* the context is its address */

int setting(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

struct Arch {
    int number, processors, shared, shared_processor, threads;
    const char *name;
};
const Arch archs[] = {{75, 40, 64 << 10, 64 << 10, 1024, "Simulated T4"},
                      {80, 108, 163 << 10, 164 << 10, 2048, "Simulated A100"},
                      {86, 84, 99 << 10, 100 << 10, 1536, "Simulated A40"},
                      {89, 128, 99 << 10, 100 << 10, 1536, "Simulated RTX 4090"},
                      {90, 132, 227 << 10, 228 << 10, 2048, "Simulated H200"},
                      {100, 148, 227 << 10, 228 << 10, 2048, "Simulated B200"},
                      {120, 170, 99 << 10, 100 << 10, 1536, "Simulated RTX 5090"}};

const Arch &arch() {
    const int number = setting("CUDASIM_SM", 80);
    for (const Arch &a : archs)
        if (a.number == number) return a;
    return archs[1];
}

} // namespace

CUresult enter(const char *function, Need need, const std::string &detail) {
    const bool memory = strstr(function, "Alloc");
    const int other = memory ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_UNKNOWN;
    if (int code = cudasim_call(function, other, detail.c_str())) return (CUresult)code;
    if (need != Need::NOTHING && !initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (need == Need::CONTEXT && (!retained || !current)) return CUDA_ERROR_INVALID_CONTEXT;
    return need == Need::CONTEXT ? sticky : CUDA_SUCCESS;
}

size_t read_bytes(const char *text, size_t otherwise) {
    if (!text || !*text) return otherwise;
    char *end;
    const double n = strtod(text, &end);
    const char *const units[] = {"KiB", "MiB", "GiB"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(end, units[i])) return (size_t)(n * (double)(1ull << 10 * (i + 1)));
    return (size_t)n;
}

void cudasim_fault(CUresult code, const char *format, ...) {
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "cudasim: %s\n", text);
    std::lock_guard<std::recursive_mutex> held(the_lock);
    if (!sticky) sticky = code;
}

/* What `arch` has to do with launches. */
int device_shared_limit() {
    return arch().shared;
}
int device_number() {
    return arch().number;
}

/* ---- errors ---------------------------------------------------------------------------------- */

static const struct {
    CUresult code;
    const char *name, *text;
} errors[] = {
#define E(code, text)                                                                              \
    { code, #code, text }
    E(CUDA_SUCCESS, "no error"),
    E(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    E(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    E(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    E(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    E(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    E(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    E(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    E(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    E(CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered"),
    E(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    E(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    E(CUDA_ERROR_NOT_READY, "device not ready"),
    E(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    E(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    E(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"),
    E(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    E(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    E(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    E(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
      "operation failed due to a previous error during capture"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture was not initiated in this stream"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    E(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
      "dependency created on uncaptured work in another stream"),
    E(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
      "operation would make the legacy stream depend on a capturing blocking stream"),
    E(CUDA_ERROR_CAPTURED_EVENT,
      "operation not permitted on an event last recorded in a capturing stream"),
    E(CUDA_ERROR_UNKNOWN, "unknown error"),
#undef E
};

extern "C" {

CUresult cuGetErrorName(CUresult error, const char **name) {
    for (const auto &e : errors)
        if (e.code == error) return *name = e.name, CUDA_SUCCESS;
    *name = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    for (const auto &e : errors)
        if (e.code == error) return *text = e.text, CUDA_SUCCESS;
    *text = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

/* ---- the device ------------------------------------------------------------------------------ */

CUresult cuInit(unsigned flags) {
    ENTER(Need::NOTHING);
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (setting("CUDASIM_DEVICES", 1) == 0) return CUDA_ERROR_NO_DEVICE;
    initialised = true;
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    ENTER(Need::NOTHING);
    *version = setting("CUDASIM_DRIVER", 13000);
    return CUDA_SUCCESS;
}

/* NVIDIA's libraries ask the driver for tables of their own; without them the real NVRTC compiles
 * beside this one. */
extern "C" CUresult cuGetExportTable(const void **table, const CUuuid *) {
    *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}

CUresult cuDeviceGetCount(int *count) {
    ENTER(Need::INIT);
    *count = setting("CUDASIM_DEVICES", 1);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(Need::INIT);
    if (ordinal < 0 || ordinal >= setting("CUDASIM_DEVICES", 1)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int room, CUdevice) {
    ENTER(Need::INIT);
    snprintf(name, (size_t)room, "%s", arch().name);
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice) {
    ENTER(Need::INIT);
    *bytes = memory_total();
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
    ENTER(Need::INIT);
    const std::map<int, int> values = {
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
        {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
        {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 0x7fffffff},
        {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
        {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 << 10},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, arch().shared},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, arch().shared_processor},
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, arch().threads},
        {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
        {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, arch().processors},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, arch().number / 10},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, arch().number % 10},
        {CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, 1},
        {CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, 0x3b},
        {CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, 2},
        {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1410000},
        {CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 1215000},
        {CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 5120},
        {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 40 << 20},
        {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
        {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
        {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
        {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 3},
    };
    const auto found = values.find(attribute);
    if (found == values.end()) return CUDA_ERROR_INVALID_VALUE;
    *value = found->second;
    return CUDA_SUCCESS;
}

/* ---- the context ----------------------------------------------------------------------------- */

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
    ENTER(Need::INIT);
    retained++;
    *context = (CUcontext)&context_tag;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) {
    ENTER(Need::INIT);
    if (!retained) return CUDA_ERROR_INVALID_CONTEXT;
    if (--retained > 0) return CUDA_SUCCESS;
    streams_forget();
    modules_forget();
    memory_forget();
    sticky = CUDA_SUCCESS;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    ENTER(Need::INIT);
    if (context && (context != (CUcontext)&context_tag || !retained))
        return CUDA_ERROR_INVALID_CONTEXT;
    current = context != nullptr;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    ENTER(Need::INIT);
    *context = current ? (CUcontext)&context_tag : nullptr;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
    ENTER(Need::CONTEXT);
    return drain();
}
}
