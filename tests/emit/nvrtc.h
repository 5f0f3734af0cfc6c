/* nvrtc.h: NVRTC opened at run time, and a check that kernel text becomes a cubin (no GPU). */
#ifndef TEST_NVRTC_H
#define TEST_NVRTC_H

#include <dlfcn.h>
#include <glob.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base.h"

typedef struct Nvrtc *Handle; /* nvrtcProgram */

static int (*create)(Handle *, const char *, const char *, int, const char *const *,
                     const char *const *);
static int (*compile)(Handle, int, const char *const *);
static int (*log_size)(Handle, size_t *), (*get_log)(Handle, char *);
static int (*cubin_size)(Handle, size_t *), (*get_cubin)(Handle, char *);
static int (*destroy)(Handle *);

static void *open_library(void) {
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    for (size_t i = 0; i < COUNT(names); i++) {
        void *lib = dlopen(names[i], RTLD_NOW);
        if (lib) return lib;
    }
    void *lib = NULL;
    glob_t found;
    if (glob("/usr/local/cuda*/lib*/libnvrtc.so", 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc && !lib; i++)
            lib = dlopen(found.gl_pathv[i], RTLD_NOW);
    globfree(&found);
    return lib;
}

/* False where NVRTC is not installed. */
static bool nvrtc_load(void) {
    void *lib = open_library();
    if (!lib) return false;
    const struct {
        void *slot;
        const char *name;
    } f[] = {{&create, "nvrtcCreateProgram"},       {&compile, "nvrtcCompileProgram"},
             {&log_size, "nvrtcGetProgramLogSize"}, {&get_log, "nvrtcGetProgramLog"},
             {&cubin_size, "nvrtcGetCUBINSize"},    {&get_cubin, "nvrtcGetCUBIN"},
             {&destroy, "nvrtcDestroyProgram"}};
    for (size_t i = 0; i < COUNT(f); i++) {
        void *symbol = dlsym(lib, f[i].name);
        if (!symbol) return false;
        memcpy(f[i].slot, &symbol, sizeof symbol);
    }
    return true;
}

static int number_before(const char *text, const char *word) {
    const char *at = strstr(text, word);
    if (!at) return 0;
    while (at > text && (at[-1] < '0' || at[-1] > '9')) at--;
    while (at > text && at[-1] >= '0' && at[-1] <= '9') at--;
    return atoi(at);
}

/* Compiles text with n kernels of these symbols, called `names` in what is printed; returns how
 * many have no code or spill registers. */
static int nvrtc_check(const char *what, const char *text, int n, const char *const *symbols,
                       const char *const *names, const char *arch) {
    char option[64];
    snprintf(option, sizeof option, "--gpu-architecture=%s", arch);
    const char *const options[] = {option, "--fmad=false", "--ptxas-options=-v"};
    Handle program;
    assert_int_equal(create(&program, text, what, 0, NULL, NULL), 0);
    const int rc = compile(program, COUNT(options), options);
    size_t size;
    assert_int_equal(log_size(program, &size), 0);
    char *log = calloc(size + 1, 1);
    assert_int_equal(get_log(program, log), 0);
    if (rc || strstr(log, "warning") || strstr(log, "error")) {
        printf("%s for %s: %.3000s\n", what, arch, log);
        return 1;
    }
    assert_int_equal(cubin_size(program, &size), 0);
    char *cubin = calloc(size + 1, 1);
    assert_int_equal(get_cubin(program, cubin), 0);
    int bad = 0;
    for (int i = 0; i < n; i++) {
        char entry[128];
        snprintf(entry, sizeof entry, "function '%s'", symbols[i]);
        const char *at = strstr(log, entry);
        if (!at || !memmem(cubin, size, symbols[i], strlen(symbols[i]) + 1)) {
            printf("%s: no kernel for %s\n", names[i], arch);
            bad++;
            continue;
        }
        const char *next = strstr(at + 1, "Compiling entry");
        char part[2000];
        snprintf(part, sizeof part, "%.*s", (int)(next ? next - at : (int)strlen(at)), at);
        const int spills = number_before(part, "bytes spill stores");
        printf("%-14s %s: %3d registers, %d bytes of spills, %d of stack, %d of shared memory\n",
               names[i], arch, number_before(part, "registers"), spills,
               number_before(part, "bytes stack frame"), number_before(part, "bytes smem"));
        bad += spills > 0;
    }
    free(log);
    free(cubin);
    destroy(&program);
    return bad;
}

#endif
