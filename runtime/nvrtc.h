/* nvrtc.h: CUDA text to machine code, through NVRTC opened at run time.  Needs no driver and no
 * GPU.
 *
 * Relies on base.h and, where it is installed, libnvrtc 12 or 13.  Promises cubins that depend on
 * text,
 * options, architecture and NVRTC's version alone. */
#ifndef DPOC_NVRTC_H
#define DPOC_NVRTC_H

#include "base.h"

typedef struct Nvrtc Nvrtc;
/* Looks in the library path, then in toolkit directories.  NULL and err (exit 3, with what to
 * install)
 * when there is none. */
Nvrtc *nvrtc_open(Err *err);
void nvrtc_close(Nvrtc *n);                    /* NULL is allowed */
int nvrtc_version(const Nvrtc *n, int *minor); /* major */

typedef struct Cubin {
    char *data; /* malloc, as is the log */
    size_t size;
    char *log; /* ptxas's figures, warnings, errors */
} Cubin;
/* Compiles one module for "sm_80", "sm_90".  A failure is our bug (exit 70) and err holds the
 * log. */
bool nvrtc_compile(const Nvrtc *n, const char *name, const char *text, const char *arch, Cubin *out,
                   Err *err);
void cubin_free(Cubin *cubin);

typedef struct KernelFigures { /* what ptxas says of one kernel */
    int registers, stack_bytes, spill_bytes, shared_bytes;
} KernelFigures;
/* False when the log does not speak of this kernel. */
bool cubin_figures(const Cubin *cubin, const char *symbol, KernelFigures *out);

#endif
