/* cpu.c: the CPU as a device: one mapped arena, compiled C kernels, oneDNN.
 *
 * Relies on device.h, cpu_compile.h, cpu_gemm.h, OpenMP.  Promises: the same bits at any thread
 * count
 * (kernels and GEMMs are cut by sizes alone).
 */
#include "cpu_compile.h"
#include "cpu_gemm.h"
#include "device.h"

#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PIECE (INT64_C(1) << 20) /* bytes one thread zeroes or copies at a time */

typedef struct Cpu {
    Device dev;
    int64_t bytes;
    int threads;
    const char *cache_dir, *cc;
    CpuCode *code;
    CpuGemm *gemm;
    double stamp[STAMPS];
} Cpu;

static bool cpu_alloc(Device *dev, int64_t bytes, Err *err) {
    Cpu *cpu = (Cpu *)dev;
    size_t size = (size_t)(bytes > 4096 ? bytes : 4096);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        char text[32];
        format_bytes(text, (double)bytes);
        return fail(err, EXIT_MEMORY, "out of memory: the arena of %s cannot be had: %s", text,
                    strerror(errno));
    }
#ifdef MADV_HUGEPAGE
    if (bytes >= INT64_C(8) << 20) madvise(p, size, MADV_HUGEPAGE);
#endif
    dev->base = p;
    cpu->bytes = (int64_t)size;
    return true;
}

static bool cpu_load(Device *dev, const Plan *plan, Err *err) {
    Cpu *cpu = (Cpu *)dev;
    if (strcmp(plan->device, "cpu"))
        return fail(err, EXIT_DEVICE, "the plan was made for %s and cannot run on the CPU",
                    plan->device);
    cpu->code = cpu_compile(plan, cpu->cache_dir, cpu->cc, cpu->threads, err);
    if (cpu->code) cpu_code_threads(cpu->code, cpu->threads);
    return cpu->code != NULL;
}

static bool cpu_prepare(Device *dev, const Gemm *g, int64_t m, int64_t n, int64_t k, Err *err) {
    return cpu_gemm_prepare(((Cpu *)dev)->gemm, g, m, n, k, err);
}

static bool cpu_launch(Device *dev, int kernel, void *const *p, int np, const int64_t *n, int nn,
                       Err *err) {
    (void)np, (void)nn, (void)err;
    cpu_kernel(((Cpu *)dev)->code, kernel)(p, n);
    return true;
}

static bool cpu_multiply(Device *dev, const Gemm *g, void *const *p, int64_t m, int64_t n,
                         int64_t k, Err *err) {
    return cpu_gemm_run(((Cpu *)dev)->gemm, g, p, m, n, k, err);
}

static bool cpu_zero(Device *dev, void *p, int64_t bytes, Err *err) {
    (void)err;
    int threads = ((Cpu *)dev)->threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (bytes > PIECE)
    for (int64_t at = 0; at < bytes; at += PIECE)
        memset((char *)p + at, 0, (size_t)(bytes - at < PIECE ? bytes - at : PIECE));
    return true;
}

static bool cpu_copy(Device *dev, void *to, const void *from, int64_t bytes, Err *err) {
    (void)err;
    int threads = ((Cpu *)dev)->threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (bytes > PIECE)
    for (int64_t at = 0; at < bytes; at += PIECE)
        memcpy((char *)to + at, (const char *)from + at,
               (size_t)(bytes - at < PIECE ? bytes - at : PIECE));
    return true;
}

static bool cpu_write(Device *dev, int64_t offset, const void *host, int64_t bytes, Err *err) {
    (void)err;
    memcpy(dev->base + offset, host, (size_t)bytes);
    return true;
}

static bool cpu_read(Device *dev, int64_t offset, void *host, int64_t bytes, Err *err) {
    (void)err;
    memcpy(host, dev->base + offset, (size_t)bytes);
    return true;
}

static bool cpu_sync(Device *dev, Err *err) {
    (void)dev, (void)err;
    return true;
}

static void cpu_workspace(Device *dev, int64_t offset, int64_t bytes) {
    cpu_gemm_workspace(((Cpu *)dev)->gemm, dev->base + offset, bytes);
}

/* oneDNN's products are not timed: nothing to write over. */
static void cpu_scratch(Device *dev, int64_t offset, int64_t bytes) {
    (void)dev, (void)offset, (void)bytes;
}

static bool cpu_memory(Device *dev, int64_t *available, int64_t *total, Err *err) {
    (void)dev;
    FILE *f = fopen("/proc/meminfo", "r");
    char line[200];
    long long all = 0, kib = 0;
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "MemTotal: %lld kB", &all) == 1) continue;
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) break;
    }
    if (f) fclose(f);
    *available = (int64_t)kib * 1024;
    *total = (int64_t)all * 1024;
    return kib || fail(err, EXIT_DEVICE, "/proc/meminfo does not say how much memory is free");
}

/* Kernels use all threads already: the second queue is the first. */
static bool cpu_queue(Device *dev, int queue, Err *err) {
    (void)dev, (void)queue, (void)err;
    return true;
}

static bool cpu_join(Device *dev, Err *err) {
    (void)dev, (void)err;
    return true;
}

static bool cpu_stamp(Device *dev, int number, Err *err) {
    (void)err;
    ((Cpu *)dev)->stamp[number] = now_seconds();
    return true;
}

static bool cpu_seconds(Device *dev, int a, int b, double *seconds, Err *err) {
    (void)err;
    *seconds = ((Cpu *)dev)->stamp[b] - ((Cpu *)dev)->stamp[a];
    return true;
}

/* What oneDNN does follows from sizes alone. */
static bool cpu_save_choices(Device *dev, const char *path, Err *err) {
    (void)dev, (void)path, (void)err;
    return true;
}

static void cpu_close(Device *dev) {
    Cpu *cpu = (Cpu *)dev;
    cpu_gemm_close(cpu->gemm);
    cpu_code_free(cpu->code);
    if (dev->base) munmap(dev->base, (size_t)cpu->bytes);
    free(cpu);
}

static const DeviceOps cpu_ops = {
    .name = "cpu",
    .alloc = cpu_alloc,
    .load = cpu_load,
    .gemm_prepare = cpu_prepare,
    .launch = cpu_launch,
    .gemm = cpu_multiply,
    .zero = cpu_zero,
    .copy = cpu_copy,
    .write = cpu_write,
    .read = cpu_read,
    .sync = cpu_sync,
    .workspace = cpu_workspace,
    .scratch = cpu_scratch,
    .memory = cpu_memory,
    .queue = cpu_queue,
    .join = cpu_join,
    .stamp = cpu_stamp,
    .seconds = cpu_seconds,
    .save_choices = cpu_save_choices,
    .close = cpu_close,
};

/* "AMD EPYC 9654 96-Core Processor", or "" where the system does not say. */
static void cpu_model(char name[80]) {
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];
    name[0] = 0;
    while (f && !name[0] && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, "model name", 10)) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(name, 80, "%.79s", colon + 2);
    }
    if (f) fclose(f);
}

Device *cpu_open(const DeviceOptions *options, Err *err) {
    Cpu *cpu = calloc(1, sizeof *cpu);
    char model[80], library[80], compiler[120] = "";
    if (!cpu) {
        fail(err, EXIT_MEMORY, "out of memory");
        return NULL;
    }
    const char *cc = getenv("DPOC_CC");
    cpu->dev.ops = &cpu_ops;
    cpu->threads = options->threads > 0 ? options->threads : omp_get_max_threads();
    cpu->cache_dir = options->cache_dir ? options->cache_dir : cache_dir_default();
    cpu->cc = options->cc ? options->cc : cc && *cc ? cc : "cc";
    omp_set_num_threads(cpu->threads);
    bool ok = cpu_compiler(cpu->cc, compiler, err) &&
              (cpu->gemm = cpu_gemm_open(cpu->threads, err)) != NULL;
    if (!ok) {
        cpu_close(&cpu->dev);
        return NULL;
    }
    cpu_model(model);
    cpu_gemm_describe(cpu->gemm, library);
    snprintf(cpu->dev.description, sizeof cpu->dev.description, "cpu: %s, %d thread%s, %s, %.50s",
             *model ? model : "unknown", cpu->threads, cpu->threads == 1 ? "" : "s", library,
             compiler);
    return &cpu->dev;
}
