/* cuda.c: the CUDA device: what a plan's steps become on a stream (device.h).
 *
 * Relies on cuda.h.  Two streams are the two queues; events order them.  Promises: after alloc
 * nothing is allocated on the device or pinned; write() returns when the host's bytes may change
 * (they were copied into pinned memory) and keeps its order with kernels.
 */
#include "cuda.h"

#include <stdlib.h>
#include <string.h>

#define MAX_ARGUMENTS 128 /* pointers and sizes of one kernel: twice plan_check's limit */

static CuPointer address(const void *p) {
    return (CuPointer)(uintptr_t)p;
}

static CuStream stream(const Cuda *c) {
    return c->stream[c->queue];
}

/* ---- memory ---------------------------------------------------------------------------------- */

static bool cuda_memory(Device *dev, int64_t *available, int64_t *total, Err *err) {
    Cuda *c = (Cuda *)dev;
    size_t unused = 0, all = 0;
    if (!CUDA(c, MemGetInfo, (&unused, &all), err)) return false;
    *available = (int64_t)unused;
    *total = (int64_t)all;
    return true;
}

static bool out_of_memory(Cuda *c, int64_t bytes, Err *err) {
    int64_t available = 0, total = 0;
    char want[32], have[32], all[32];
    Err quiet = {0};
    cuda_memory(&c->dev, &available, &total, &quiet);
    format_bytes(want, (double)bytes);
    format_bytes(have, (double)available);
    format_bytes(all, (double)total);
    return fail(err, EXIT_MEMORY,
                "out of memory: the arena of %s cannot be had on %s: %s of %s are free\n"
                "help: end other programs that use the GPU (nvidia-smi lists them), or plan for "
                "less: --memory=%lldMiB, a smaller run.tokens",
                want, c->name, have, all, (long long)(available - available / 32) >> 20);
}

static bool cuda_alloc(Device *dev, int64_t bytes, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (c->arena) return fail(err, EXIT_BUG, "bug: the arena is allocated twice");
    size_t size = (size_t)(bytes > 4096 ? bytes : 4096);
    CuResult result = c->cu.MemAlloc(&c->arena, size);
    if (result == ERROR_OUT_OF_MEMORY) return out_of_memory(c, bytes, err);
    if (!cuda_ok(c, result, "cuMemAlloc", err)) return false;
    dev->base = (char *)(uintptr_t)c->arena; /* 512-aligned at least; blocks this large: to 2 MiB */
    return CUDA(c, MemsetD8Async, (c->arena, 0, size, c->stream[0]), err);
}

static void cuda_workspace(Device *dev, int64_t offset, int64_t bytes) {
    cuda_gemm_workspace(((Cuda *)dev)->gemm, dev->base + offset, bytes);
}

static void cuda_scratch(Device *dev, int64_t offset, int64_t bytes) {
    cuda_gemm_scratch(((Cuda *)dev)->gemm, dev->base + offset, bytes);
}

/* ---- queues ---------------------------------------------------------------------------------- */

/* All that stream `after` gets from now on waits for what `before` has now. */
static bool order(Cuda *c, CuEvent event, int before, int after, Err *err) {
    return CUDA(c, EventRecord, (event, c->stream[before]), err) &&
           CUDA(c, StreamWaitEvent, (c->stream[after], event, 0), err);
}

static bool cuda_queue(Device *dev, int queue, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (queue == 1 && !order(c, c->fork, 0, 1, err)) return false;
    if (queue == 1) c->aside = true;
    c->queue = queue;
    return true;
}

static bool cuda_join(Device *dev, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (!c->aside) return true;
    c->aside = false;
    return order(c, c->joined, 1, 0, err);
}

static bool cuda_sync(Device *dev, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (c->recording) return fail(err, EXIT_BUG, "bug: a sync while work is being recorded");
    return CUDA(c, StreamSynchronize, (c->stream[0]), err) &&
           CUDA(c, StreamSynchronize, (c->stream[1]), err);
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* After each step: remembers it and marks how far the device is. */
static bool note_step(Cuda *c, Err *err) {
    c->step[c->given++ % GIVEN] = c->dev.step;
    if (!c->mark_device || c->recording || c->queue || c->given % MARK_EVERY) return true;
    return CUDA(c, StreamWriteValue32, (c->stream[0], c->mark_device, c->given, 0), err);
}

static bool cuda_launch(Device *dev, int kernel, void *const *p, int np, const int64_t *n, int nn,
                        Err *err) {
    Cuda *c = (Cuda *)dev;
    const Kernel *k = &c->plan->kernels[kernel];
    void *arguments[MAX_ARGUMENTS];
    for (int i = 0; i < np; i++) arguments[i] = (void *)(uintptr_t)&p[i];
    for (int i = 0; i < nn; i++) arguments[np + i] = (void *)(uintptr_t)&n[i];
    /* A kernel without rows runs all the same: a sum over none is 0. */
    int64_t blocks = (n[0] + k->rows_per_block - 1) / k->rows_per_block;
    unsigned gx = blocks > 0 ? (unsigned)blocks : 1;
    const Step *step = dev->step;
    if (!step) dev->step = &c->bare[kernel];
    bool ok = CUDA(c, LaunchKernel,
                   (c->function[kernel], gx, (unsigned)k->grid_y, 1, (unsigned)k->threads, 1, 1,
                    (unsigned)k->shared_bytes, stream(c), arguments, NULL),
                   err) &&
              note_step(c, err);
    dev->step = step;
    return ok;
}

static bool cuda_prepare(Device *dev, const Gemm *g, int64_t m, int64_t n, int64_t k, Err *err) {
    return cuda_gemm_prepare(((Cuda *)dev)->gemm, g, m, n, k, err);
}

static bool cuda_multiply(Device *dev, const Gemm *g, void *const *p, int64_t m, int64_t n,
                          int64_t k, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (c->queue) return fail(err, EXIT_BUG, "bug: a product in the second queue");
    return cuda_gemm_run(c->gemm, g, p, m, n, k, err) && note_step(c, err);
}

static bool cuda_zero(Device *dev, void *p, int64_t bytes, Err *err) {
    Cuda *c = (Cuda *)dev;
    return !bytes || (CUDA(c, MemsetD8Async, (address(p), 0, (size_t)bytes, stream(c)), err) &&
                      note_step(c, err));
}

static bool cuda_copy(Device *dev, void *to, const void *from, int64_t bytes, Err *err) {
    Cuda *c = (Cuda *)dev;
    return !bytes ||
           (CUDA(c, MemcpyDtoDAsync, (address(to), address(from), (size_t)bytes, stream(c)), err) &&
            note_step(c, err));
}

/* ---- bytes to and from the host -------------------------------------------------------------- */

/* The next slot of pinned memory, once the device has read what was in it. */
static bool next_slot(Cuda *c, Err *err) {
    Slot *full = &c->slot[c->current];
    if (!CUDA(c, EventRecord, (full->read, c->stream[0]), err)) return false;
    full->pending = true;
    c->current = (c->current + 1) % SLOTS;
    c->used = 0;
    Slot *next = &c->slot[c->current];
    if (next->pending && !CUDA(c, EventSynchronize, (next->read), err)) return false;
    next->pending = false;
    return true;
}

/* One core copies slower than the bus takes. */
static void copy_in(const Cuda *c, char *to, const char *from, size_t bytes) {
    const size_t piece = SLOT_BYTES / 8;
    const int n = (int)((bytes + piece - 1) / piece), threads = c->jobs < 4 ? c->jobs : 4;
#pragma omp parallel for schedule(static) num_threads(threads) if (n > 4)
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)i * piece;
        memcpy(to + at, from + at, bytes - at < piece ? bytes - at : piece);
    }
}

static bool cuda_write(Device *dev, int64_t offset, const void *host, int64_t bytes, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (c->recording) return fail(err, EXIT_BUG, "bug: a write while work is being recorded");
    const char *from = host;
    for (size_t left = (size_t)bytes, n; left; left -= n, from += n, offset += (int64_t)n) {
        if (c->used == SLOT_BYTES && !next_slot(c, err)) return false;
        n = SLOT_BYTES - c->used < left ? SLOT_BYTES - c->used : left;
        char *pinned = c->slot[c->current].host + c->used;
        copy_in(c, pinned, from, n);
        if (!CUDA(c, MemcpyHtoDAsync, (c->arena + (CuPointer)offset, pinned, n, c->stream[0]), err))
            return false;
        c->used += n;
    }
    return true;
}

static bool cuda_read(Device *dev, int64_t offset, void *host, int64_t bytes, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (!cuda_sync(dev, err)) return false;
    return !bytes ||
           (CUDA(c, MemcpyDtoHAsync,
                 (host, c->arena + (CuPointer)offset, (size_t)bytes, c->stream[0]), err) &&
            cuda_sync(dev, err));
}

/* ---- times ----------------------------------------------------------------------------------- */

static bool cuda_stamp(Device *dev, int number, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (c->recording) return fail(err, EXIT_BUG, "bug: a stamp while work is being recorded");
    return CUDA(c, EventRecord, (c->stamp[number], c->stream[0]), err);
}

static bool cuda_seconds(Device *dev, int a, int b, double *seconds, Err *err) {
    Cuda *c = (Cuda *)dev;
    float milliseconds = 0;
    if (!CUDA(c, EventElapsedTime, (&milliseconds, c->stamp[a], c->stamp[b]), err)) return false;
    *seconds = (double)milliseconds / 1000;
    return true;
}

/* ---- recorded work: stream capture into a graph ---------------------------------------------- */

static bool cuda_record(Device *dev, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (!cuda_join(dev, err)) return false; /* waiting for work outside would not be recorded */
    c->queue = 0;
    c->recording = CUDA(c, StreamBeginCapture, (c->stream[0], CAPTURE_THREAD_LOCAL), err);
    return c->recording;
}

static bool cuda_recorded(Device *dev, void **work, Err *err) {
    Cuda *c = (Cuda *)dev;
    CuGraph graph = NULL;
    CuGraphExec exec = NULL;
    bool ok = cuda_join(dev, err);
    c->queue = 0;
    c->recording = false;
    ok = CUDA(c, StreamEndCapture, (c->stream[0], &graph), err) && ok;
    ok = ok && CUDA(c, GraphInstantiate, (&exec, graph, GRAPH_NODE_PRIORITY), err);
    if (graph) ok = CUDA(c, GraphDestroy, (graph), err) && ok;
    *work = exec;
    return ok;
}

static bool cuda_replay(Device *dev, void *work, Err *err) {
    Cuda *c = (Cuda *)dev;
    return CUDA(c, GraphLaunch, ((CuGraphExec)work, c->stream[0]), err) && note_step(c, err);
}

static void cuda_forget(Device *dev, void *work) {
    Cuda *c = (Cuda *)dev;
    if (work) c->cu.GraphExecDestroy(work);
}

static bool cuda_save_choices(Device *dev, const char *path, Err *err) {
    return cuda_gemm_save(((Cuda *)dev)->gemm, path, err);
}

const DeviceOps cuda_ops = {
    .name = "cuda",
    .alloc = cuda_alloc,
    .load = cuda_load,
    .gemm_prepare = cuda_prepare,
    .launch = cuda_launch,
    .gemm = cuda_multiply,
    .zero = cuda_zero,
    .copy = cuda_copy,
    .write = cuda_write,
    .read = cuda_read,
    .sync = cuda_sync,
    .workspace = cuda_workspace,
    .scratch = cuda_scratch,
    .memory = cuda_memory,
    .queue = cuda_queue,
    .join = cuda_join,
    .stamp = cuda_stamp,
    .seconds = cuda_seconds,
    .record = cuda_record,
    .recorded = cuda_recorded,
    .replay = cuda_replay,
    .forget = cuda_forget,
    .save_choices = cuda_save_choices,
    .close = cuda_close,
};
