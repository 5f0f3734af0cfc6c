/* cuda_load.c: a plan's kernels on the GPU: cubins, modules, functions.
 *
 * Relies on cuda.h, cubin.h.  Promises: every function is on the device when load returns (drivers
 * load lazily otherwise, into memory that the arena was to have), and what it asks of a block is
 * what the GPU has; if not, the message names the kernel.
 */
#include "cubin.h"
#include "cuda.h"

#include <stdlib.h>
#include <string.h>

static bool load_modules(Cuda *c, const Cubins *cubins, Err *err) {
    c->module = calloc((size_t)cubins->nmodules + 1, sizeof *c->module);
    for (; c->nmodules < cubins->nmodules; c->nmodules++)
        if (!CUDA(c, ModuleLoadData, (&c->module[c->nmodules], cubins->module[c->nmodules].data),
                  err))
            return false;
    return true;
}

static bool too_much(const Cuda *c, const Kernel *k, const char *what, int wants, int has,
                     Err *err) {
    return fail(err, EXIT_BUG,
                "bug: kernel %s (%s) wants %d %s in a block and %s gives it %d\n"
                "help: --safe replaces hand-written kernels by plain ones",
                k->symbol, k->kind, wants, what, c->name, has);
}

static bool load_function(Cuda *c, const Cubins *cubins, int i, int most_shared, Err *err) {
    const Kernel *k = &c->plan->kernels[i];
    CuFunction *f = &c->function[i];
    int threads = 0, fixed = 0;
    CuResult result = c->cu.ModuleGetFunction(f, c->module[cubins->module_of[i]], k->symbol);
    if (result)
        return fail(err, EXIT_BUG, "bug: cuModuleGetFunction: kernel %s (%s) of %s: %s", k->symbol,
                    k->kind, cubins->module[cubins->module_of[i]].name, cuda_error(&c->cu, result));
    if (!CUDA(c, FuncGetAttribute, (&threads, FUNCTION_MAX_THREADS, *f), err) ||
        !CUDA(c, FuncGetAttribute, (&fixed, FUNCTION_STATIC_SHARED, *f), err))
        return false;
    if (k->threads > threads) return too_much(c, k, "threads", k->threads, threads, err);
    if (fixed + k->shared_bytes > most_shared)
        return too_much(c, k, "bytes of shared memory", fixed + k->shared_bytes, most_shared, err);
    return !k->shared_bytes ||
           CUDA(c, FuncSetAttribute, (*f, FUNCTION_MAX_DYNAMIC_SHARED, k->shared_bytes), err);
}

bool cuda_load(Device *dev, const Plan *plan, Err *err) {
    Cuda *c = (Cuda *)dev;
    if (strncmp(plan->device, "sm_", 3) || atoi(plan->device + 3) > dev->arch)
        return fail(err, EXIT_DEVICE, "the plan was made for %s and cannot run on %s (sm_%d)",
                    plan->device, c->name, dev->arch);
    int most_shared = 0;
    c->plan = plan;
    const char *arch = intern_printf("sm_%d", nvrtc_arch(c->nvrtc, dev->arch));
    Cubins *cubins = cubins_make(plan, c->nvrtc, arch, c->cache_dir, c->jobs, true, err);
    bool ok = cubins && load_modules(c, cubins, err) &&
              CUDA(c, DeviceGetAttribute,
                   (&most_shared, ATTRIBUTE_SHARED_PER_BLOCK_OPTIN, c->device), err);
    c->function = calloc((size_t)plan->nkernels + 1, sizeof *c->function);
    c->bare = calloc((size_t)plan->nkernels + 1, sizeof *c->bare);
    for (int i = 0; i < plan->nkernels; i++) c->bare[i] = (Step){.kind = STEP_KERNEL, .kernel = i};
    for (int i = 0; i < plan->nkernels && ok; i++)
        ok = load_function(c, cubins, i, most_shared, err);
    cubins_free(cubins);
    return ok;
}

void cuda_unload(Cuda *c) {
    for (int i = 0; i < c->nmodules; i++) c->cu.ModuleUnload(c->module[i]);
    free(c->module);
    free(c->function);
    free(c->bare);
}
