/* nvrtc.h: CUDA text to machine code, through NVRTC opened at run time.  Needs no driver and no
 * GPU.
 *
 * Relies on base.h and, where it is installed, libnvrtc 12 or 13.  Promises cubins that depend on
 * text,
 * options, architecture and NVRTC's version alone. */
#ifndef DPOC_NVRTC_H
#define DPOC_NVRTC_H

#include "library.h"

typedef struct Nvrtc Nvrtc;
/* The NVRTC that a run on this machine would take (library.h); without a driver, or where none goes
 * with it, the newest.  NULL and err (exit 3, with what to install) when there is none. */
Nvrtc *nvrtc_open(Err *err);
/* One that was found already; takes the library over. */
Nvrtc *nvrtc_take(Library *library, Err *err);
void nvrtc_close(Nvrtc *n);                    /* NULL is allowed */
int nvrtc_version(const Nvrtc *n, int *minor); /* major */
/* What tells this build of the library from any other ("13000 52428800 1762300000": version, size
 * and time of the file): updates of one version make other code.  Interned. */
const char *nvrtc_build(const Nvrtc *n);
/* The architecture to compile for so that the code runs on `arch` (80, 90, 121, ..): it, or the
 * nearest earlier one of its family that this NVRTC knows; 0: none. */
int nvrtc_arch(const Nvrtc *n, int arch);
/* The options beside the architecture, as one text. */
extern const char nvrtc_options[];

typedef struct Cubin {
    char *data; /* malloc, as is the log */
    size_t size;
    char *log; /* ptxas's figures, warnings, errors */
} Cubin;
/* Compiles one module for "sm_80", "sm_90"; several threads may.  A text that is rejected is our
 * bug (exit 70; err holds the log), any other failure is NVRTC's (exit 3). */
bool nvrtc_compile(const Nvrtc *n, const char *name, const char *text, const char *arch, Cubin *out,
                   Err *err);
void cubin_free(Cubin *cubin);

typedef struct KernelFigures { /* what ptxas says of one kernel */
    int registers, stack_bytes, spill_bytes, shared_bytes;
} KernelFigures;
/* False when the log does not speak of this kernel. */
bool cubin_figures(const Cubin *cubin, const char *symbol, KernelFigures *out);

#endif
