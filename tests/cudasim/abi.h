/* abi.h: what a compiled module (shim.h around kernel text) and the scheduler in libcuda
 * (fiber.cpp) know of each other.  It is put before shim.h in the text of every module, which has
 * no headers: plain C++ types only.
 */
#ifndef CUDASIM_ABI_H
#define CUDASIM_ABI_H

#define CUDASIM_ABI 2 /* counts changes: an image of another number is refused */

struct CudasimIndex { /* uint3 */
    unsigned x, y, z;
};

/* What a warp does together: called once, by the last lane to come, with what each lane of the
 * mask brought (the address given to `warp`); it writes each lane's result there. */
typedef void CudasimTogether(void *const *lane, unsigned mask);

/* Services of the scheduler.  They may switch to another thread before they return. */
struct CudasimServices {
    void (*barrier)(void *worker, int line);
    void (*warp)(void *worker, unsigned mask, CudasimTogether *together, void *mine);
    /* Notes a copy of `bytes` (then zeros up to `room`) that is made at its wait. */
    void (*copy_later)(void *worker, void *to, const void *from, unsigned bytes, unsigned room);
    void (*copy_commit)(void *worker);
    void (*copy_wait)(void *worker, int groups); /* until at most that many groups are under way */
    bool (*is_shared)(void *worker, const void *p, unsigned bytes); /* all of it */
    unsigned (*active)(void *worker);                               /* lanes still there */
    void (*fault)(void *worker, int code, const char *text);        /* does not return */
};

/* One per copy of a module, written by the scheduler: each worker has its own copy. */
struct CudasimState {
    CudasimIndex thread;
    unsigned number; /* of the thread in its block */
    CudasimIndex block, block_dim, grid_dim;
    char *dynamic; /* extern __shared__ */
    void *worker;
    const CudasimServices *services;
};

struct CudasimKernel {
    const char *name;
    void (*call)(const char *arguments); /* at the offsets that C's struct of them would have */
    const int *bytes;                    /* of each parameter */
    const bool *pointer;                 /* which are pointers */
    int parameters;
    int max_threads; /* of __launch_bounds__; 0: not given */
};

struct CudasimModule { /* exported as cudasim_module */
    int abi;
    CudasimState *state;
    char *shared_begin, *shared_end; /* static shared memory of all kernels */
    CudasimKernel *kernels;
    int count;
};

#endif
