/* test_nvrtc: NVRTC makes cubins of everything that is emitted for CUDA, for sm_80 and sm_90, without a
 * GPU: all hand-made Kerns and an instance of every file in kernels/cuda.  Prints registers, spills and
 * shared memory; Kerns must not spill.  Skipped where NVRTC is not installed. */
#include <dlfcn.h>
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/emit/kerns.h"

/* ---- the library ---------------------------------------------------------------------------------------- */

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

static bool load(void) {
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

/* ---- compiling ---------------------------------------------------------------------------------------------- */

static int number_before(const char *text, const char *word) {
    const char *at = strstr(text, word);
    if (!at) return 0;
    while (at > text && (at[-1] < '0' || at[-1] > '9')) at--;
    while (at > text && at[-1] >= '0' && at[-1] <= '9') at--;
    return atoi(at);
}

/* Compiles text whose kernels are named k0 .. k<n-1>; `may_spill` is for the plain versions of big kernels. */
static int check(const char *what, const char *text, int n, const char *const *names,
                 const char *arch, bool may_spill) {
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
        char symbol[64];
        snprintf(symbol, sizeof symbol, "function 'k%d'", i);
        const char *at = strstr(log, symbol);
        if (!at || !memmem(cubin, size, symbol + 10, strlen(symbol) - 11)) {
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
        bad += spills > 0 && !may_spill;
    }
    free(log);
    free(cubin);
    destroy(&program);
    return bad;
}

static const Target cuda = {.name = "sm_80", .cuda = true};
static const char *const archs[] = {"sm_80", "sm_90"};

static void test_kerns(void **state) {
    (void)state;
    Case *c[MAX_CASES];
    const char *names[MAX_CASES];
    const int n = all_cases(c);
    Text text = {0};
    text_add(&text, "%s", emit_prelude(&cuda));
    for (int i = 0; i < n; i++) {
        char symbol[32];
        names[i] = c[i]->name;
        snprintf(symbol, sizeof symbol, "k%d", i);
        emit_kern_cuda(&c[i]->k, symbol, &text);
        Kernel kernel = {0};
        kern_launch(&c[i]->k, &kernel);
        assert_in_range(kernel.threads, 32, 1024);
        assert_in_range(kernel.grid_y, 1, 65535);
        assert_true(kernel.rows_per_block > 0);
    }
    int bad = 0;
    for (size_t a = 0; a < COUNT(archs); a++)
        bad += check("kerns.cu", text.data, n, names, archs[a], false);
    text_free(&text);
    for (int i = 0; i < n; i++) free(c[i]);
    assert_int_equal(bad, 0);
}

#define ATTEND                                                                                     \
    "#define HEADS 32\n#define KV_HEADS 8\n#define HEAD_DIM 128\n#define SCALE 8.8e-2f\n"          \
    "#define LD_Q 4096\n#define LD_O 4096\n#define LD_DO 4096\n#define LD_DQ 4096\n#define LD_K "  \
    "1024\n"                                                                                       \
    "#define LD_V 1024\n#define LD_DK 1024\n#define LD_DV 1024\n"

static void test_files(void **state) {
    (void)state;
    static const char *const types[] = {"f32", "bf16"};
    static const char *const formats[] = {"NF4", "FP4", "INT8"};
    const char *names[200];
    int n = 0;
    Text text = {0};
    text_add(&text, "%s", emit_prelude(&cuda));
    for (int i = 0; i < embedded_count(); i++) {
        const char *path = embedded_name(i);
        if (strncmp(path, "kernels/cuda/", 13) || !strcmp(path, "kernels/cuda/lanes.cuh")) continue;
        for (int variant = 0; variant < 4; variant++) {
            const char *t = types[variant % 2];
            names[n] = path + 13;
            text_add(&text, "#define SYMBOL k%d\n#define FN(name) k%d_##name\n" ATTEND, n, n);
            text_add(&text, "#define T_X %s\n#define T_Y %s\n#define T_Q %s\n#define T_DO %s\n", t,
                     t, t, t);
            text_add(&text, "#define T_DQ %s\n#define T_DK %s\n#define T_D %s\n#define WINDOW %d\n",
                     t, t, t, variant / 2 * 100);
            text_add(&text,
                     "#define COLS 100\n#define LD_X 100\n#define LD_Y 100\n#define VOCAB 128256\n"
                     "#define LD_D 128256\n#define BLOCK 64\n#define NESTED %d\n#define %s 1\n",
                     variant / 2, formats[variant % 3]);
            text_add(&text, "%s", embedded(path, NULL));
            static const char *const defined[] = {
                "SYMBOL", "FN",    "HEADS", "KV_HEADS", "HEAD_DIM", "SCALE",  "LD_Q", "LD_O",
                "LD_DO",  "LD_DQ", "LD_K",  "LD_V",     "LD_DK",    "LD_DV",  "T_X",  "T_Y",
                "T_Q",    "T_DO",  "T_DQ",  "T_DK",     "T_D",      "WINDOW", "COLS", "LD_X",
                "LD_Y",   "VOCAB", "LD_D",  "BLOCK",    "NESTED",   "NF4",    "FP4",  "INT8"};
            for (size_t d = 0; d < COUNT(defined); d++) text_add(&text, "#undef %s\n", defined[d]);
            n++;
        }
    }
    int bad = 0;
    for (size_t a = 0; a < COUNT(archs); a++)
        bad += check("files.cu", text.data, n, names, archs[a], true);
    text_free(&text);
    assert_true(n >= 4 * 9);
    assert_int_equal(bad, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kerns), cmocka_unit_test(test_files)};
    if (!load()) {
        puts("libnvrtc is not installed");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
