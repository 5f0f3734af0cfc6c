/* device.h: what a device must be able to do.  Two real ones: cpu.c and cuda.c.
 *
 * The executor (exec.c) evaluates extents and addresses; a device only allocates one arena, turns
 * kernel text into code, launches it, multiplies matrices and moves bytes.  All functions return
 * false and fill err when they fail.  Work of one queue is in order; read() and sync() wait for
 * all of it.  A failure of the device may be reported by any later call.
 */
#ifndef DPOC_DEVICE_H
#define DPOC_DEVICE_H

#include "plan.h"

typedef struct Device Device;

typedef struct DeviceOps {
    const char *name; /* "cpu", "cuda" */
    /* The one arena of a run, `bytes` long, aligned to 256 at least; zeroed.  Called once. */
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
    /* Bytes of the arena that hold nothing between programs: gemm_prepare may write there to time
     * products, and so may whoever fills buffers. */
    void (*scratch)(Device *dev, int64_t offset, int64_t bytes);
    /* Bytes that are free for an arena now, and all the device has. */
    bool (*memory)(Device *dev, int64_t *free, int64_t *total, Err *err);

    /* Two queues: `queue` says which one takes the launches that follow; turning to queue 1 makes
     * it wait for all that queue 0 was given so far.  `join` makes queue 0 wait for queue 1. */
    bool (*queue)(Device *dev, int queue, Err *err);
    bool (*join)(Device *dev, Err *err);

    /* Times: `stamp` notes the moment when queue 0 gets there, under a number below STAMPS; after
     * a sync, `seconds` says how long it took from stamp a to stamp b. */
    bool (*stamp)(Device *dev, int number, Err *err);
    bool (*seconds)(Device *dev, int a, int b, double *seconds, Err *err);

    /* Work recorded once and replayed as a whole; all NULL where a device cannot.  Between record
     * and recorded launches and gemms are noted, not done (arguments by value). */
    bool (*record)(Device *dev, Err *err);
    bool (*recorded)(Device *dev, void **work, Err *err);
    bool (*replay)(Device *dev, void *work, Err *err);
    void (*forget)(Device *dev, void *work);

    /* What was chosen by timing on this machine (GEMM algorithms), as a file that
     * DeviceOptions.choices reads back, so that a resumed run has the same bits. */
    bool (*save_choices)(Device *dev, const char *path, Err *err);
    void (*close)(Device *dev);
} DeviceOps;

struct Device { /* first member of each device's own struct */
    const DeviceOps *ops;
    char description[320]; /* "cpu: AMD EPYC ..., 2 threads, oneDNN 2.6, gcc 12.2" */
    char *base;            /* address of the arena as kernels see it */
    int arch;              /* CUDA: 10 * compute capability (80, 90); else 0 */
    char bus_id[20];       /* CUDA: where the GPU stands on PCI, "00000000:3b:00.0"; else "" */
    const Step *step;      /* whose work is being given to the device, for its messages; or NULL */
};
#define STAMPS 4096

typedef struct DeviceOptions {
    const char *name;      /* "auto", "cpu", "cuda", "cuda:1" */
    int threads;           /* 0: all */
    int local_rank;        /* among this machine's processes: its GPU where `name` has no number */
    const char *cache_dir; /* NULL: the default */
    const char *cc;        /* the C compiler of CPU kernels; NULL: DPOC_CC, or "cc" */
    const char *choices;   /* a file of save_choices whose choices are taken; NULL: none */
} DeviceOptions;
Device *device_open(const DeviceOptions *options, Err *err); /* NULL on failure (exit 3) */
/* Whether device_open takes a GPU (or fails) under this name: "cuda..", or "auto" (NULL) where one
 * is visible. */
bool device_is_cuda(const char *name);
Device *cpu_open(const DeviceOptions *options, Err *err);
Device *cuda_open(const DeviceOptions *options, Err *err);
bool cuda_visible(void);     /* whether an NVIDIA GPU is there, usable or not; looked for once */
void cuda_doctor(FILE *out); /* lines of what was found, rejected (why), is missing (what to get) */

/* The default kernel cache directory (DPOC_CACHE_DIR, XDG_CACHE_HOME/dpoc, ~/.cache/dpoc). */
const char *cache_dir_default(void);

#endif
