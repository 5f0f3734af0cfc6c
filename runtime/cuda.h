/* cuda.h: the inside of the CUDA device, shared by cuda_open.c, cuda_load.c, cuda.c, cuda_fail.c.
 * device.h and cuda_gemm.h are its outside.  Relies on cuda_api.h. */
#ifndef DPOC_CUDA_H
#define DPOC_CUDA_H

#include "cuda_api.h"
#include "cuda_gemm.h"
#include "device.h"
#include "library.h"
#include "nvrtc.h"

enum {
    SLOTS = 8,            /* of pinned memory that writes go through, */
    SLOT_BYTES = 1 << 21, /* each of so many bytes */
    MARK_EVERY = 32,      /* steps between two marks of progress */
    GIVEN = 1024          /* steps that are remembered for messages */
};

typedef struct Slot {
    char *host;
    CuEvent read; /* the device has read it */
    bool pending; /* `read` was recorded */
} Slot;

typedef struct Cuda {
    Device dev;
    Library driver, cublaslt;
    CudaApi cu;
    LtApi lt;
    Nvrtc *nvrtc;
    char name[80]; /* of the GPU */
    CuDevice device;
    CuContext context; /* the primary one: cuBLASLt uses it too */
    const char *cache_dir, *choices;
    int jobs; /* compilations at once */
    CudaGemm *gemm;

    const Plan *plan;
    CuModule *module;
    int nmodules;
    CuFunction *function; /* by kernel of the plan */
    CuPointer arena;

    CuStream stream[2];
    int queue;
    bool aside; /* queue 1 has work that queue 0 has not waited for */
    bool recording;
    CuEvent fork, joined;
    CuEvent *stamp; /* STAMPS */

    Slot slot[SLOTS];
    int current;
    size_t used; /* of the current slot */

    /* Progress: every MARK_EVERY steps queue 0 writes their count into pinned memory, so that a
     * failure found later can say between which steps it happened. */
    volatile uint32_t *mark;
    CuPointer mark_device; /* 0: the device cannot */
    uint32_t given;        /* steps given so far */
    const Step *step[GIVEN];
    Step *bare; /* by kernel: for launches that belong to no step of a program */
} Cuda;

/* Calls a driver function; false and err (its name, the error's, the step it was for) on failure:
 *   CUDA(c, MemFree, (p), err) */
#define CUDA(c, function, arguments, err)                                                          \
    cuda_ok((c), (c)->cu.function arguments, "cu" #function, (err))
bool cuda_ok(Cuda *c, CuResult result, const char *function, Err *err);

/* cuda_open.c: opens the driver and counts its GPUs, of which there must be one; */
bool cuda_start(Cuda *c, int *count, Err *err);
/* takes "auto", "cuda" (the first) or "cuda:n", if it can do what we need */
bool cuda_choose(Cuda *c, const char *name, int count, Err *err);
bool cuda_load(Device *dev, const Plan *plan, Err *err); /* cuda_load.c */
void cuda_unload(Cuda *c);
void cuda_close(Device *dev);    /* cuda_open.c */
extern const DeviceOps cuda_ops; /* cuda.c */

#endif
