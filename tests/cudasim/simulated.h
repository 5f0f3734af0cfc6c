/* simulated.h: runs a test's program with the simulated device's libraries before all others.
 *
 * Call simulate(argv) first in main.  It starts the program again with LD_LIBRARY_PATH set to the
 * cudasim directory of the build the program lies in, and without GPUs of the machine mattering;
 * where the simulator was not built (no CUDA headers) the test is skipped.  A test that has
 * something to do even so calls simulated(argv) instead, and returns no_simulator() at its end.
 */
#ifndef CUDASIM_SIMULATED_H
#define CUDASIM_SIMULATED_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Says why the test, or what is left of it, is skipped; the exit status. */
static inline int no_simulator(void) {
    printf("no simulated device: it needs CUDA's headers (cuda.h, nvrtc.h, cublasLt.h)\n");
    return 77;
}

/* False where the simulator was not built. */
static inline bool simulated(char **argv) {
    char dir[4000], path[4100];
    const char *now = getenv("LD_LIBRARY_PATH");
    ssize_t n = readlink("/proc/self/exe", dir, sizeof dir - 1);
    dir[n > 0 ? n : 0] = 0;
    for (int up = 0; up < 3; up++) /* BUILD/tests/room/test_name */
        if (strrchr(dir, '/')) *strrchr(dir, '/') = 0;
    strcat(dir, "/cudasim");
    snprintf(path, sizeof path, "%s/libcuda.so.1", dir);
    if (access(path, R_OK)) return false;
    if (now && !strncmp(now, dir, strlen(dir))) return true;
    snprintf(path, sizeof path, "%s%s%s", dir, now ? ":" : "", now ? now : "");
    setenv("LD_LIBRARY_PATH", path, 1);
    execv("/proc/self/exe", argv);
    perror("/proc/self/exe");
    exit(1);
}

static inline void simulate(char **argv) {
    if (!simulated(argv)) exit(no_simulator());
}

#endif
