/* cuda_open.c: opening and closing the CUDA device: libraries, the GPU, what a run needs of it.
 *
 * Relies on cuda.h, library.h.  Promises: all pinned memory, streams and events that a run uses are
 * made here.  What is missing is exit 3 with what to do about it.
 */
#include "cuda.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OLDEST_ARCH = 80 }; /* bf16 on tensor cores, asynchronous copies */

/* ---- the driver and its GPUs ----------------------------------------------------------------- */

/* CUDA_VISIBLE_DEVICES asks for none. */
static bool hidden(void) {
    const char *set = getenv("CUDA_VISIBLE_DEVICES");
    return set && (!*set || !strncmp(set, "-1", 2));
}

static bool no_gpu(Err *err) {
    const char *set = getenv("CUDA_VISIBLE_DEVICES");
    return fail(err, EXIT_DEVICE,
                "the NVIDIA driver sees no GPU%s%s\n"
                "help: nvidia-smi must list one; in a container start it with --gpus all; or use "
                "--device=cpu",
                set ? ": CUDA_VISIBLE_DEVICES=" : "", set ? set : "");
}

bool cuda_start(Cuda *c, int *count, Err *err) {
    if (!library_driver(&c->driver, err) || !cuda_api_load(&c->cu, c->driver.handle, err))
        return false;
    if (hidden()) return no_gpu(err);
    /* Drivers before 12.2 would put all of cuBLASLt's kernels on the GPU, not those that run. */
    setenv("CUDA_MODULE_LOADING", "LAZY", 0);
    CuResult result = c->cu.Init(0);
    if (result == ERROR_NO_DEVICE) return no_gpu(err);
    if (result == ERROR_SYSTEM_DRIVER_MISMATCH)
        return fail(err, EXIT_DEVICE,
                    "the NVIDIA driver's library and its kernel module are of different versions\n"
                    "help: restart the machine (or reload the module) after an update");
    if (!cuda_ok(c, result, "cuInit", err)) return false;
    if (!CUDA(c, DeviceGetCount, (count), err)) return false;
    return *count > 0 || no_gpu(err);
}

static bool look_for_gpu(void) {
    Cuda c = {0};
    Err err = {0};
    int count = 0;
    bool works = cuda_start(&c, &count, &err);
    library_close(&c.driver);
    /* A driver's library without a GPU is no GPU; a GPU's file without a working driver is one. */
    return works || (!hidden() && !access("/dev/nvidia0", F_OK));
}

bool cuda_visible(void) {
    static int seen = -1;
    if (seen < 0) seen = look_for_gpu();
    return seen;
}

/* By which other libraries know this GPU; "" where the driver does not say (no error). */
static void find_bus_id(Cuda *c) {
    int domain = 0, bus = 0, device = 0;
    if (!c->cu.DeviceGetAttribute(&domain, ATTRIBUTE_PCI_DOMAIN, c->device) &&
        !c->cu.DeviceGetAttribute(&bus, ATTRIBUTE_PCI_BUS, c->device) &&
        !c->cu.DeviceGetAttribute(&device, ATTRIBUTE_PCI_DEVICE, c->device))
        snprintf(c->dev.bus_id, sizeof c->dev.bus_id, "%08x:%02x:%02x.0", (unsigned)domain,
                 (unsigned)bus & 0xff, (unsigned)device & 0xff);
}

bool cuda_choose(Cuda *c, const char *name, int count, Err *err) {
    const char *colon = name ? strchr(name, ':') : NULL;
    char *end = NULL;
    long ordinal = colon ? strtol(colon + 1, &end, 10) : 0;
    if (colon && (end == colon + 1 || *end || ordinal < 0))
        return fail(err, EXIT_USAGE, "--device=%s: the GPU's number goes behind the colon, cuda:0",
                    name);
    if (ordinal >= count)
        return fail(err, EXIT_DEVICE, "--device=%s: there %s %d GPU%s, counted from cuda:0", name,
                    count == 1 ? "is" : "are", count, count == 1 ? "" : "s");
    int major = 0, minor = 0;
    if (!CUDA(c, DeviceGet, (&c->device, (int)ordinal), err) ||
        !CUDA(c, DeviceGetName, (c->name, sizeof c->name, c->device), err) ||
        !CUDA(c, DeviceGetAttribute, (&major, ATTRIBUTE_CAPABILITY_MAJOR, c->device), err) ||
        !CUDA(c, DeviceGetAttribute, (&minor, ATTRIBUTE_CAPABILITY_MINOR, c->device), err))
        return false;
    c->dev.arch = 10 * major + minor;
    find_bus_id(c);
    if (c->dev.arch >= OLDEST_ARCH) return true;
    return fail(err, EXIT_DEVICE,
                "%s has compute capability %d.%d; 8.0 or later (A100, RTX 30) is needed\n"
                "help: choose another GPU with --device=cuda:N, or use --device=cpu",
                c->name, major, minor);
}

/* ---- what a run needs of it ------------------------------------------------------------------ */

static bool make_slots(Cuda *c, Err *err) {
    for (int i = 0; i < SLOTS; i++) {
        void *host = NULL;
        if (!CUDA(c, MemHostAlloc, (&host, SLOT_BYTES, HOST_PORTABLE), err) ||
            !CUDA(c, EventCreate, (&c->slot[i].read, EVENT_DISABLE_TIMING), err)) {
            if (host) c->cu.MemFreeHost(host);
            return false;
        }
        c->slot[i].host = host;
    }
    return true;
}

/* What runs aside fills what the main stream leaves idle: it has the least priority, so its blocks
 * never stand before those of a product. */
static bool make_streams(Cuda *c, Err *err) {
    int priority[2] = {0, 0}; /* greatest, least */
    if (!CUDA(c, CtxGetStreamPriorityRange, (&priority[1], &priority[0]), err)) return false;
    for (int i = 0; i < 2; i++)
        if (!CUDA(c, StreamCreate, (&c->stream[i], STREAM_NON_BLOCKING, priority[i]), err))
            return false;
    if (!CUDA(c, EventCreate, (&c->fork, EVENT_DISABLE_TIMING), err) ||
        !CUDA(c, EventCreate, (&c->joined, EVENT_DISABLE_TIMING), err))
        return false;
    c->stamp = calloc(STAMPS, sizeof *c->stamp);
    for (int i = 0; i < STAMPS; i++)
        if (!CUDA(c, EventCreate, (&c->stamp[i], EVENT_DEFAULT), err)) return false;
    return true;
}

/* Marks of progress are an extra: without them messages are less exact. */
static bool make_mark(Cuda *c, Err *err) {
    void *host = NULL;
    if (!CUDA(c, MemHostAlloc, (&host, sizeof *c->mark, HOST_PORTABLE | HOST_DEVICEMAP), err))
        return false;
    c->mark = host;
    *c->mark = 0;
    if (c->cu.MemHostGetDevicePointer(&c->mark_device, host, 0) ||
        c->cu.StreamWriteValue32(c->stream[0], c->mark_device, 0, 0))
        c->mark_device = 0;
    return true;
}

static bool open_gemm(Cuda *c, Err *err) {
    if (!lt_api_load(&c->lt, c->cublaslt.handle, err)) return false;
    CudaGemmOptions options = {.dev = &c->dev,
                               .lt = &c->lt,
                               .stream = c->stream[0],
                               .name = c->name,
                               .cache_dir = c->cache_dir,
                               .choices = c->choices};
    c->gemm = cuda_gemm_open(&options, err);
    return c->gemm != NULL;
}

static bool describe(Cuda *c, Err *err) {
    int64_t available, total;
    if (!c->dev.ops->memory(&c->dev, &available, &total, err)) return false;
    int minor = 0, major = nvrtc_version(c->nvrtc, &minor);
    snprintf(c->dev.description, sizeof c->dev.description,
             "cuda: %s, sm_%d, %.1f GiB free of %.1f, driver %d.%d, NVRTC %d.%d, cuBLASLt %d.%d",
             c->name, c->dev.arch, (double)available / (1 << 30), (double)total / (1 << 30),
             c->driver.version / 1000, c->driver.version % 1000 / 10, major, minor,
             c->cublaslt.version / 1000, c->cublaslt.version % 1000 / 10);
    return true;
}

/* One GPU per process of a job, in turn where there are fewer. */
static bool choose_own(Cuda *c, const DeviceOptions *options, int count, Err *err) {
    char own[32];
    const char *name = options->name;
    snprintf(own, sizeof own, "cuda:%d", options->local_rank % count);
    return cuda_choose(c, name && strchr(name, ':') ? name : own, count, err);
}

static bool open_all(Cuda *c, const DeviceOptions *options, Err *err) {
    Library nvrtc = {0};
    int count = 0;
    if (!cuda_start(c, &count, err) || !choose_own(c, options, count, err)) return false;
    if (!library_pair(c->driver.version, c->dev.arch, &nvrtc, &c->cublaslt, err)) return false;
    c->nvrtc = nvrtc_take(&nvrtc, err);
    if (!c->nvrtc || !CUDA(c, DevicePrimaryCtxRetain, (&c->context, c->device), err)) return false;
    return CUDA(c, CtxSetCurrent, (c->context), err) && make_streams(c, err) &&
           make_slots(c, err) && make_mark(c, err) && open_gemm(c, err) && describe(c, err);
}

Device *cuda_open(const DeviceOptions *options, Err *err) {
    Cuda *c = calloc(1, sizeof *c);
    if (!c) {
        fail(err, EXIT_MEMORY, "out of memory");
        return NULL;
    }
    c->dev.ops = &cuda_ops;
    c->cache_dir = options->cache_dir ? options->cache_dir : cache_dir_default();
    c->choices = options->choices;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    c->jobs = options->threads > 0 ? options->threads : cpus > 0 ? (int)cpus : 1;
    if (open_all(c, options, err)) return &c->dev;
    cuda_close(&c->dev);
    return NULL;
}

/* ---- closing: whatever was made; failures are no news any more ------------------------------- */

static void drop_event(Cuda *c, CuEvent event) {
    if (event) c->cu.EventDestroy(event);
}

static void drop_all(Cuda *c) {
    for (int i = 0; i < 2; i++)
        if (c->stream[i]) c->cu.StreamSynchronize(c->stream[i]);
    cuda_gemm_close(c->gemm);
    cuda_unload(c);
    if (c->arena) c->cu.MemFree(c->arena);
    for (int i = 0; i < SLOTS; i++) {
        drop_event(c, c->slot[i].read);
        if (c->slot[i].host) c->cu.MemFreeHost(c->slot[i].host);
    }
    if (c->mark) c->cu.MemFreeHost((void *)(uintptr_t)c->mark);
    for (int i = 0; c->stamp && i < STAMPS; i++) drop_event(c, c->stamp[i]);
    drop_event(c, c->fork);
    drop_event(c, c->joined);
    for (int i = 0; i < 2; i++)
        if (c->stream[i]) c->cu.StreamDestroy(c->stream[i]);
    c->cu.DevicePrimaryCtxRelease(c->device);
}

void cuda_close(Device *dev) {
    Cuda *c = (Cuda *)dev;
    if (c->context) drop_all(c);
    free(c->stamp);
    nvrtc_close(c->nvrtc);
    library_close(&c->cublaslt);
    library_close(&c->driver);
    free(c);
}
