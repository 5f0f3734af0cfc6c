/* nvrtc.c: see nvrtc.h.  The prototypes are our own text: no NVIDIA header is needed to build. */
#include "nvrtc.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct Program *Handle; /* nvrtcProgram */

struct Nvrtc {
    Library library;
    int (*create)(Handle *, const char *, const char *, int, const char *const *,
                  const char *const *);
    int (*compile)(Handle, int, const char *const *);
    int (*log_size)(Handle, size_t *), (*log)(Handle, char *);
    int (*cubin_size)(Handle, size_t *), (*cubin)(Handle, char *);
    int (*destroy)(Handle *);
    const char *(*error)(int);
};

Nvrtc *nvrtc_take(Library *library, Err *err) {
    Nvrtc *n = calloc(1, sizeof *n);
    n->library = *library;
    library->handle = NULL;
    const struct {
        void *slot;
        const char *name;
    } f[] = {{&n->create, "nvrtcCreateProgram"},       {&n->compile, "nvrtcCompileProgram"},
             {&n->log_size, "nvrtcGetProgramLogSize"}, {&n->log, "nvrtcGetProgramLog"},
             {&n->cubin_size, "nvrtcGetCUBINSize"},    {&n->cubin, "nvrtcGetCUBIN"},
             {&n->destroy, "nvrtcDestroyProgram"},     {&n->error, "nvrtcGetErrorString"}};
    for (size_t i = 0; i < COUNT(f); i++) {
        void *symbol = dlsym(n->library.handle, f[i].name);
        memcpy(f[i].slot, &symbol, sizeof symbol);
        if (symbol) continue;
        fail(err, EXIT_DEVICE, "%s has no %s: NVRTC 12 or 13 is needed", n->library.path,
             f[i].name);
        nvrtc_close(n);
        return NULL;
    }
    return n;
}

Nvrtc *nvrtc_open(Err *err) {
    Library driver, nvrtc;
    Err quiet = {0};
    int version = library_driver(&driver, &quiet) ? driver.version : 0;
    library_close(&driver);
    bool found = version && library_pair(version, 0, &nvrtc, NULL, &quiet);
    if (!found && !library_pair(0, 0, &nvrtc, NULL, err)) return NULL;
    return nvrtc_take(&nvrtc, err);
}

void nvrtc_close(Nvrtc *n) {
    if (n) library_close(&n->library);
    free(n);
}

int nvrtc_version(const Nvrtc *n, int *minor) {
    if (minor) *minor = n->library.version % 1000 / 10;
    return n->library.version / 1000;
}

const char *nvrtc_build(const Nvrtc *n) {
    struct stat st = {0};
    stat(n->library.path, &st);
    return intern_printf("%d %lld %lld", n->library.version, (long long)st.st_size,
                         (long long)st.st_mtime);
}

int nvrtc_arch(const Nvrtc *n, int arch) {
    return library_arch(&n->library, arch);
}

#define NO_CONTRACTION "--fmad=false"
#define FIGURES        "--ptxas-options=-v"
const char nvrtc_options[] = NO_CONTRACTION " " FIGURES;

static int read_log(const Nvrtc *n, Handle program, Cubin *out) {
    size_t size = 0;
    int code = n->log_size(program, &size);
    if (code) return code;
    out->log = calloc(size + 1, 1);
    return n->log(program, out->log);
}

static int read_code(const Nvrtc *n, Handle program, Cubin *out) {
    int code = n->cubin_size(program, &out->size);
    if (code) return code;
    out->data = malloc(out->size + 1);
    return n->cubin(program, out->data);
}

/* A text that it rejects is our bug; anything else is the machine's. */
static bool say(const Nvrtc *n, int code, const char *function, const char *name, const char *arch,
                const char *log, Err *err) {
    enum { NO_OPTION = 5, REJECTED = 6, NO_BUILTINS = 7 };
    if (code == REJECTED)
        return fail(err, EXIT_BUG, "bug: %s does not compile for %s: %.1500s", name, arch,
                    log ? log : "no log");
    int minor, major = nvrtc_version(n, &minor);
    if (code == NO_OPTION && nvrtc_arch(n, atoi(arch + strlen("sm_"))) == 0)
        return fail(err, EXIT_DEVICE,
                    "%s: NVRTC %d.%d makes no code for %s\nhelp: a later version may: %s",
                    n->library.path, major, minor, arch, library_advice(LIBRARY_NVRTC, major));
    return fail(err, EXIT_DEVICE, "%s of %s: %s (%d)%s", function, n->library.path, n->error(code),
                code,
                code == NO_BUILTINS ? "\nhelp: libnvrtc-builtins must lie beside it; install the "
                                      "package again"
                                    : "");
}

bool nvrtc_compile(const Nvrtc *n, const char *name, const char *text, const char *arch, Cubin *out,
                   Err *err) {
    *out = (Cubin){0};
    char option[64];
    snprintf(option, sizeof option, "--gpu-architecture=%s", arch);
    const char *const options[] = {option, NO_CONTRACTION, FIGURES};
    const char *function = "nvrtcCreateProgram";
    Handle program;
    int code = n->create(&program, text, name, 0, NULL, NULL), log;
    if (!code) {
        function = "nvrtcCompileProgram";
        code = n->compile(program, COUNT(options), options);
        log = read_log(n, program, out);
        if (!code && (code = log)) function = "nvrtcGetProgramLog";
        if (!code && (code = read_code(n, program, out))) function = "nvrtcGetCUBIN";
        n->destroy(&program);
    }
    if (!code) return true;
    say(n, code, function, name, arch, out->log, err);
    cubin_free(out);
    return false;
}

void cubin_free(Cubin *cubin) {
    free(cubin->data);
    free(cubin->log);
    *cubin = (Cubin){0};
}

/* The number that stands before a word: "64 bytes spill stores". */
static int number_before(const char *text, const char *end, const char *word) {
    const char *at = strstr(text, word);
    if (!at || at > end) return 0;
    while (at > text && (at[-1] < '0' || at[-1] > '9')) at--;
    while (at > text && at[-1] >= '0' && at[-1] <= '9') at--;
    return atoi(at);
}

bool cubin_figures(const Cubin *cubin, const char *symbol, KernelFigures *out) {
    char entry[200];
    snprintf(entry, sizeof entry, "function '%s'", symbol);
    const char *at = strstr(cubin->log, entry);
    if (!at) return false;
    const char *next = strstr(at, "Compiling entry");
    const char *end = next ? next : at + strlen(at);
    *out = (KernelFigures){
        number_before(at, end, "registers"), number_before(at, end, "bytes stack frame"),
        number_before(at, end, "bytes spill stores"), number_before(at, end, "bytes smem")};
    return true;
}
