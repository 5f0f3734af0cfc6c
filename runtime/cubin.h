/* cubin.h: the kernels of a plan as machine code of one architecture, through the cache.
 *
 * Kernels that the cache does not have are grouped into modules of like size and compiled in
 * parallel.  Relies on nvrtc.h, cache.h.  Promises: an entry is found whatever else its plan holds;
 * a damaged one is compiled again; a cache that cannot be written is a warning on stderr.
 */
#ifndef DPOC_CUBIN_H
#define DPOC_CUBIN_H

#include "nvrtc.h"
#include "plan.h"

typedef struct CubinModule {
    const char *name; /* "HASH.cubin", as in the cache */
    const void *data;
    size_t size;
} CubinModule;

typedef struct Cubins {
    Arena *arena; /* owns all */
    CubinModule *module;
    int nmodules;
    int *module_of;         /* by kernel of the plan */
    KernelFigures *figures; /* by kernel */
    int compiled;           /* kernels that the cache did not have */
} Cubins;

/* All kernels of the plan for "sm_80", ..; `dir`: the cache; `jobs`: compilations at once.  Work
 * of more than a second or so says on stderr how far it is, if `progress`.  NULL and err: exit 70
 * when NVRTC rejects a kernel. */
Cubins *cubins_make(const Plan *plan, const Nvrtc *nvrtc, const char *arch, const char *dir,
                    int jobs, bool progress, Err *err);
void cubins_free(Cubins *cubins); /* NULL is allowed */

#endif
