/* sim.h: what the three simulated libraries share: tracing, faults made on purpose, and what
 * libcublasLt needs from libcuda.
 *
 * Every public function of the libraries begins with cudasim_call(__func__, code).  It writes the
 * function's name to the file CUDASIM_TRACE (and a detail: of cuLaunchKernel the kernel, grid,
 * block and bytes of shared memory; of an allocation its bytes), and tells whether CUDASIM_FAIL
 * asks it to fail: CUDASIM_FAIL=function[:n[:code]] makes the n-th call (default: the first) of
 * that function fail with that code (default: the one the function gives).  "_v2" may be left out.
 */
#ifndef CUDASIM_SIM_H
#define CUDASIM_SIM_H

#include <cuda.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* True if a call of `function` is one of those that `name` (up to `len`) means. */
static inline bool cudasim_named(const char *function, const char *name, size_t len) {
    return !strncmp(function, name, len) && (!function[len] || !strncmp(function + len, "_v", 2));
}

/* 0: go on; else the error code to return at once.  Settings are read at every call, so that one
 * process may change them; a changed CUDASIM_FAIL counts from the beginning. */
static inline int cudasim_call(const char *function, int code, const char *detail = "") {
    static char setting[128];
    static int calls;
    if (const char *path = getenv("CUDASIM_TRACE")) {
        const int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
        char line[300];
        const int n =
            snprintf(line, sizeof line, "%s%s%.200s\n", function, *detail ? " " : "", detail);
        if (fd >= 0 && write(fd, line, (size_t)n) != n) perror(path);
        if (fd >= 0) close(fd);
    }
    const char *now = getenv("CUDASIM_FAIL");
    if (!now) now = "";
    if (strcmp(setting, now)) {
        snprintf(setting, sizeof setting, "%s", now);
        __atomic_store_n(&calls, 0, __ATOMIC_RELAXED);
    }
    if (!*now || !cudasim_named(function, now, strcspn(now, ":"))) return 0;
    int nth = 1;
    sscanf(now + strcspn(now, ":"), ":%d:%d", &nth, &code);
    return __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) == nth ? code : 0;
}

extern "C" {
/* Puts fn(copy of args) into a stream as one piece of its work: in order with everything else
 * there, noted in a graph while the stream is being captured, run when its turn comes (with
 * CUDASIM_LAZY=1 that is when it is waited for).  A stream of 0 is the legacy stream.  fn may read
 * and write device memory, and runs on one thread. */
CUresult cudasim_enqueue(CUstream stream, void (*fn)(void *args), const void *args, size_t bytes);

/* The device allocation that an address lies in; false: none (a host pointer, or freed). */
bool cudasim_allocation(CUdeviceptr address, CUdeviceptr *base, size_t *bytes);

/* Says on stderr what work of the device did wrong, and makes `code` the sticky error of the
 * context, as on a real device.  From anywhere, also inside fn. */
void cudasim_fault(CUresult code, const char *format, ...) __attribute__((format(printf, 2, 3)));
}

#endif
