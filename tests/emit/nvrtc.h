/* nvrtc.h: a check that kernel text becomes a cubin (no GPU), with what each kernel takes
 * printed. */
#ifndef TEST_NVRTC_H
#define TEST_NVRTC_H

#include <string.h>

#include "runtime/nvrtc.h"

static Nvrtc *nvrtc;

/* False where NVRTC is not installed. */
static bool nvrtc_load(void) {
    Err err = {0};
    nvrtc = nvrtc_open(&err);
    return nvrtc != NULL;
}

/* Compiles text with n kernels of these symbols, called `names` in what is printed; returns how
 * many have no code or spill registers. */
static int nvrtc_check(const char *what, const char *text, int n, const char *const *symbols,
                       const char *const *names, const char *arch) {
    Err err = {0};
    Cubin cubin;
    if (!nvrtc_compile(nvrtc, what, text, arch, &cubin, &err)) {
        printf("%s\n", err.text);
        return 1;
    }
    int bad = strstr(cubin.log, "warning") != NULL;
    if (bad) printf("%s for %s: %.3000s\n", what, arch, cubin.log);
    for (int i = 0; i < n; i++) {
        KernelFigures f;
        if (!cubin_figures(&cubin, symbols[i], &f) ||
            !memmem(cubin.data, cubin.size, symbols[i], strlen(symbols[i]) + 1)) {
            printf("%s: no kernel for %s\n", names[i], arch);
            bad++;
            continue;
        }
        printf("%-14s %s: %3d registers, %d bytes of spills, %d of stack, %d of shared memory\n",
               names[i], arch, f.registers, f.spill_bytes, f.stack_bytes, f.shared_bytes);
        bad += f.spill_bytes > 0;
    }
    cubin_free(&cubin);
    return bad;
}

#endif
