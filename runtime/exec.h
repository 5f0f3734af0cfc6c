/* exec.h: walks a plan on a device.
 *
 * exec_open allocates the plan's arena and loads its kernels; exec_bind fills weights from files
 * and
 * runs program "init"; then any program may be run as often as wanted with the actual extents.
 */
#ifndef DPOC_EXEC_H
#define DPOC_EXEC_H

#include "device.h"

typedef struct Exec Exec;

Exec *exec_open(const Plan *plan, Device *dev, Err *err);
void exec_close(Exec *exec);

/* Where the tensors of one source come from.  `checkpoint` is a directory with safetensors files,
 * or
 * NULL: then binds with an init make a fresh tensor (keyed by seed, source and tensor name), and
 * binds
 * without one are filled with random weights if `random` is set (std 0.02; norm-like vectors ones).
 * */
typedef struct BindSource {
    const char *source;     /* as in Bind.source */
    const char *checkpoint; /* directory, or NULL */
    bool adapter;           /* names in the file are PEFT's: "base_model.model." + name */
    bool random;
} BindSource;
/* Told, many times, how far loading has come: bytes read from files, the share of all elements. */
typedef struct LoadWatch {
    void (*loaded)(struct LoadWatch *self, double bytes, double share);
} LoadWatch;
/* Fills every bound buffer, streaming, with at most a few MiB of host memory; then runs "init".
 * `watch` may be NULL. */
bool exec_bind(Exec *exec, const BindSource *sources, int n, uint64_t seed, LoadWatch *watch,
               Err *err);

/* Gives the program's work to the device and returns; a read waits for it, and a failure of the
 * device may be reported by any later call. */
bool exec_run(Exec *exec, const char *program, const int64_t extent[NEXTENT], Err *err);
bool exec_write(Exec *exec, const char *buf, const void *data, size_t bytes, Err *err);
bool exec_read(Exec *exec, const char *buf, void *data, size_t bytes, Err *err);

typedef struct Span { /* of the arena */
    int64_t offset, bytes;
} Span;
/* The bytes that hold nothing between programs. */
Span exec_scratch(const Exec *exec);

/* Per-kernel time of the runs since exec_profile(exec, true), for bench: by the device's clock, one
 * step after the other on one queue. */
typedef struct StepTime {
    const char *label;            /* numbers in it are '*': one row for all layers */
    const char *kind;             /* of the kernel, or of the step */
    double seconds, flops, bytes; /* of all calls, at the extents they had */
    double again;                 /* of flops: Step.again */
    int64_t calls;
} StepTime;
void exec_profile(Exec *exec, bool on);
int exec_times(Exec *exec, StepTime *out, int max); /* longest first */

#endif
