/* device.h: what a device must be able to do.  Two real ones: cpu.c and (later) cuda.c.
 *
 * The executor (exec.c) evaluates extents and addresses; a device only allocates one arena, turns
 * kernel text into code, launches it, multiplies matrices and moves bytes.  All functions return
 * false and fill err when they fail.  Work is in order; read() waits for it.
 */
#ifndef DPOC_DEVICE_H
#define DPOC_DEVICE_H

#include "plan.h"

typedef struct Device Device;

typedef struct DeviceOps {
    const char *name; /* "cpu", "cuda" */
    /* The one arena of a run, `bytes` long, aligned to 4096; zeroed.  Called once. */
    bool (*alloc)(Device *dev, int64_t bytes, Err *err);
    /* Compiles (or finds in the cache) and loads every kernel of the plan. */
    bool (*load)(Device *dev, const Plan *plan, Err *err);
    /* Gets ready whatever GEMMs of these sizes need, before the first step that uses them. */
    bool (*gemm_prepare)(Device *dev, const Gemm *g, int64_t m, int64_t n, int64_t k, Err *err);
    /* p: resolved pointers in the step's order, n: evaluated dims. */
    bool (*launch)(Device *dev, int kernel, void *const *p, int np, const int64_t *n, int nn,
                   Err *err);
    bool (*gemm)(Device *dev, const Gemm *g, void *const *p, int64_t m, int64_t n, int64_t k,
                 Err *err);
    bool (*zero)(Device *dev, void *p, int64_t bytes, Err *err);
    bool (*copy)(Device *dev, void *to, const void *from, int64_t bytes, Err *err);
    bool (*write)(Device *dev, int64_t offset, const void *host, int64_t bytes, Err *err);
    bool (*read)(Device *dev, int64_t offset, void *host, int64_t bytes, Err *err);
    bool (*sync)(Device *dev, Err *err);
    /* Bytes of the arena the device's libraries may use while a GEMM runs. */
    void (*workspace)(Device *dev, int64_t offset, int64_t bytes);
    void (*close)(Device *dev);
} DeviceOps;

struct Device { /* first member of each device's own struct */
    const DeviceOps *ops;
    char description[320]; /* "cpu: AMD EPYC ..., 2 threads, oneDNN 2.6, gcc 12.2" */
    char *base;            /* address of the arena as kernels see it */
};

typedef struct DeviceOptions {
    const char *name;      /* "auto", "cpu", "cuda", "cuda:1" */
    int threads;           /* 0: all */
    const char *cache_dir; /* NULL: the default */
    const char *cc;        /* the C compiler of CPU kernels; NULL: DPOC_CC, or "cc" */
} DeviceOptions;
Device *device_open(const DeviceOptions *options, Err *err); /* NULL on failure (exit 3) */
Device *cpu_open(const DeviceOptions *options, Err *err);

/* The default kernel cache directory (DPOC_CACHE_DIR, XDG_CACHE_HOME/dpoc, ~/.cache/dpoc). */
const char *cache_dir_default(void);

#endif
