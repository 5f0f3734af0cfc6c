/* fiber.h: runs the blocks of a launch, each CUDA thread a fiber.  Relies on abi.h. */
#ifndef CUDASIM_FIBER_H
#define CUDASIM_FIBER_H

#include <cuda.h>
#include <string>
#include <vector>

#include "abi.h"

enum { MAX_WORKERS = 64, MAX_THREADS = 1024 };

/* A module loaded once for each worker (cuda_module.cpp). */
struct Module;
CudasimModule *module_copy(Module *module, int worker); /* NULL: it cannot be loaded */

struct Launch {
    Module *module;
    int kernel; /* its number in the module */
    unsigned grid[3], block[3], shared;
    std::vector<char> arguments;
};

struct Fault {
    CUresult code = CUDA_SUCCESS;
    std::string text; /* what, and where: kernel, block, thread */
};

/* Runs all blocks on CUDASIM_WORKERS threads (2), in the order CUDASIM_ORDER says:
 * forward (threads one after another, every thread begins before any goes on), reverse (from the
 * last, a thread goes on as soon as it can), random:SEED.  All shared memory is poisoned before
 * each block.  A SIGSEGV, SIGBUS or SIGFPE of a kernel becomes a Fault; `where` describes an
 * address.  One launch at a time. */
Fault fiber_run(const Launch &launch, std::string (*where)(const void *address));

#endif
