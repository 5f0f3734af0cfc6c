/* Finding NVIDIA's libraries: places, the driver's version decides, what is rejected and why.
 *
 * Libraries are made here by the C compiler: each says what the test wants it to say.  Every case
 * is this program started again, in an environment of its own, as `test_library find ARCH`; it
 * prints what library.c found.  Drivers are for CUDA 12 wherever the machine's own toolkit (13)
 * must not matter. */
#include "runtime/library.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char root[] = "/tmp/dpoc-library-XXXXXX";

/* ---- the program that looks ------------------------------------------------------------------ */

static void print_library(const Library *lib) {
    printf("%s: %d %s\n", library_names[lib->kind], lib->version, lib->path ? lib->path : "none");
    for (int i = 0; i < lib->nrejected; i++)
        printf("  %s: %s\n", lib->rejected[i].path, lib->rejected[i].why);
}

static int look(int arch) {
    Library driver, nvrtc, cublaslt;
    Err err = {0};
    bool have = library_driver(&driver, &err);
    print_library(&driver);
    if (!have) printf("driver: exit %d: %s\n", err.code, err.text);
    err = (Err){0};
    if (!library_pair(have ? driver.version : 0, arch, &nvrtc, &cublaslt, &err))
        printf("pair: exit %d: %s\n", err.code, err.text);
    print_library(&nvrtc);
    print_library(&cublaslt);
    return 0;
}

/* What `find ARCH` prints with these variables and no others (but PATH, without a python3). */
static const char *find(int arch, const char *first, const char *second) {
    static char said[16000];
    char self[4096], number[20];
    int pipes[2];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1), all = 0;
    self[n < 0 ? 0 : n] = 0;
    snprintf(number, sizeof number, "%d", arch);
    const char *argv[] = {self, "find", number, NULL};
    const char *envp[] = {"PATH=/nowhere", first, second, NULL};
    if (first && !strncmp(first, "PATH=", 5)) envp[0] = "LANG=C";
    assert_int_equal(pipe(pipes), 0);
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        dup2(pipes[1], 1);
        execve(self, (char **)(uintptr_t)argv, (char **)(uintptr_t)envp);
        _exit(127);
    }
    close(pipes[1]);
    while ((n = read(pipes[0], said + all, sizeof said - 1 - (size_t)all)) > 0) all += n;
    close(pipes[0]);
    said[all] = 0;
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return said;
}

#define has(text, part)                                                                            \
    do {                                                                                           \
        if (!strstr(text, part)) fail_msg("no \"%s\" in:\n%s", part, text);                        \
    } while (0)

/* ---- libraries that say what they are told to ------------------------------------------------ */

static void make_dir(const char *path) {
    Err err = {0};
    if (!dir_make(path, &err)) fail_msg("%s", err.text);
}

/* root/DIR/NAME from C text. */
static void make_library(const char *dir, const char *name, const char *text) {
    char path[500], command[1200];
    snprintf(path, sizeof path, "%s/%s", root, dir);
    make_dir(path);
    snprintf(path, sizeof path, "%s/%s/%s.c", root, dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    snprintf(command, sizeof command, "cc -shared -fPIC -w -o '%s/%s/%s' '%s'", root, dir, name,
             path);
    assert_int_equal(system(command), 0);
    unlink(path);
}

static void make_driver(const char *dir, int version, int result) {
    make_library(
        dir, "libcuda.so.1",
        intern_printf("int cuDriverGetVersion(int *v) { *v = %d; return %d; }", version, result));
}

/* `archs`: "80, 90" */
static void make_nvrtc(const char *dir, int named, int major, int minor, const char *archs) {
    make_library(dir, intern_printf("libnvrtc.so.%d", named),
                 intern_printf("static int archs[] = {%s};\n"
                               "int nvrtcVersion(int *a, int *b) { *a = %d; *b = %d; return 0; }\n"
                               "int nvrtcGetNumSupportedArchs(int *n) "
                               "{ *n = sizeof archs / sizeof *archs; return 0; }\n"
                               "int nvrtcGetSupportedArchs(int *out) "
                               "{ __builtin_memcpy(out, archs, sizeof archs); return 0; }\n",
                               archs, major, minor));
}

static void make_cublaslt(const char *dir, int named, int version) {
    make_library(dir, intern_printf("libcublasLt.so.%d", named),
                 intern_printf("unsigned long cublasLtGetVersion(void) { return %d; }", version));
}

static const char *at(const char *variable, const char *dirs) {
    return intern_printf("%s=%s/%s", variable, root, dirs);
}

/* ---- cases ----------------------------------------------------------------------------------- */

static void drivers(void **unused) {
    make_driver("stub", 0, 34);
    make_driver("old", 11080, 0);
    make_driver("d12", 12040, 0);
    const char *said = find(0, at("LD_LIBRARY_PATH", "stub"), NULL);
    has(said, "libcuda.so.1: is a stub: cuDriverGetVersion fails");
    has(said, "driver: exit 3: ");
    said = find(0, at("LD_LIBRARY_PATH", "old"), NULL);
    has(said, "is a driver for CUDA 11.8; 12.0 or later is needed");
    has(said, "driver: exit 3: ");
    said = find(0, at("LD_LIBRARY_PATH", "d12"), NULL);
    has(said, intern_printf("libcuda: 12040 %s/d12/libcuda.so.1", root));
}

static void no_driver(void **unused) {
    const char *said = find(0, NULL, NULL);
    if (!strstr(said, "libcuda: 0 none")) skip(); /* the machine has one */
    has(said, "driver: exit 3: there is no NVIDIA driver (libcuda.so.1)");
    has(said, "--device=cpu");
}

/* A driver for 12.4 runs no 13 and takes the 12 that lies in a toolkit's directory. */
static void the_driver_decides(void **unused) {
    make_driver("a", 12040, 0);
    make_nvrtc("a", 13, 13, 0, "80, 90");
    make_cublaslt("a", 13, 130100);
    make_nvrtc("toolkit/lib64", 12, 12, 9, "80, 90"); /* a later minor is fine */
    make_cublaslt("toolkit/lib64", 12, 120405);
    static const char *const homes[] = {"CUDA_HOME", "CUDA_PATH"};
    for (size_t i = 0; i < COUNT(homes); i++) {
        const char *said = find(80, at("LD_LIBRARY_PATH", "a"), at(homes[i], "toolkit"));
        has(said, intern_printf("%s/a/libnvrtc.so.13: 13.0 is newer than the driver, which is for "
                                "CUDA 12.4",
                                root));
        has(said, intern_printf("%s/a/libcublasLt.so.13: 13.1 is newer than the driver", root));
        has(said, intern_printf("libnvrtc: 12090 %s/toolkit/lib64/libnvrtc.so.12", root));
        has(said, intern_printf("libcublasLt: 12040 %s/toolkit/lib64/libcublasLt.so.12", root));
    }
}

static void driver_too_old_for_all(void **unused) {
    const char *said = find(80, at("LD_LIBRARY_PATH", "a"), NULL);
    if (strstr(said, "libnvrtc: 12")) skip(); /* the machine has a toolkit 12 */
    has(said,
        "pair: exit 3: no NVRTC and cuBLASLt of one version that this driver runs (CUDA 12.4)");
    has(said, "`pip install nvidia-cuda-nvrtc-cu12`");
    has(said, "`pip install nvidia-cublas-cu12`");
}

/* A driver for 13 takes 13 before 12, wherever they lie; both of one major. */
static void newest_first(void **unused) {
    make_driver("b", 13000, 0);
    make_nvrtc("b", 12, 12, 4, "80");
    make_cublaslt("b", 12, 120405);
    make_nvrtc("b", 13, 13, 0, "80");
    make_cublaslt("b", 13, 130100);
    const char *said = find(80, at("LD_LIBRARY_PATH", "b"), NULL);
    has(said, intern_printf("libnvrtc: 13000 %s/b/libnvrtc.so.13", root));
    has(said, intern_printf("libcublasLt: 13010 %s/b/libcublasLt.so.13", root));
}

/* An NVRTC without a cuBLASLt of its major is of no use. */
static void a_pair_or_none(void **unused) {
    make_driver("c", 12040, 0);
    make_nvrtc("c", 12, 12, 4, "80");
    const char *said = find(80, at("LD_LIBRARY_PATH", "c"), NULL);
    if (strstr(said, "libcublasLt: 12")) skip();
    has(said,
        intern_printf("%s/c/libnvrtc.so.12: there is no libcublasLt.so.12 to go with it", root));
    has(said, "pair: exit 3");
}

/* sm_87 runs code for sm_80; sm_90 does not. */
static void architectures(void **unused) {
    make_driver("d", 12040, 0);
    make_nvrtc("d", 12, 12, 0, "75, 80");
    make_cublaslt("d", 12, 120405);
    make_nvrtc("toolkit2/lib", 12, 12, 4, "80, 90");
    const char *said = find(87, at("LD_LIBRARY_PATH", "d"), at("CUDA_HOME", "toolkit2"));
    has(said, intern_printf("libnvrtc: 12000 %s/d/libnvrtc.so.12", root));
    said = find(90, at("LD_LIBRARY_PATH", "d"), at("CUDA_HOME", "toolkit2"));
    has(said, intern_printf("%s/d/libnvrtc.so.12: 12.0 makes no code for sm_90", root));
    has(said, intern_printf("libnvrtc: 12040 %s/toolkit2/lib/libnvrtc.so.12", root));
}

static void wheels(void **unused) {
    const char *site = "venv/lib/python3.11/site-packages/nvidia";
    make_driver("e", 12040, 0);
    make_nvrtc(intern_printf("%s/cuda_nvrtc/lib", site), 12, 12, 4, "80");
    make_cublaslt(intern_printf("%s/cublas/lib", site), 12, 120405);
    make_library("venv/bin", "python3", "int x;"); /* executable: enough to be found */
    static const char *const variables[] = {"VIRTUAL_ENV=%s/venv", "CONDA_PREFIX=%s/venv",
                                            "PATH=/nowhere:%s/venv/bin"};
    for (size_t i = 0; i < COUNT(variables); i++) {
        const char *before = strstr(variables[i], "%s");
        const char *variable =
            intern_printf("%.*s%s%s", (int)(before - variables[i]), variables[i], root, before + 2);
        const char *said = find(80, variable, at("LD_LIBRARY_PATH", "e"));
        if (strstr(said, "libnvrtc: 12040 /usr")) skip(); /* a toolkit 12 comes first */
        has(said, "libnvrtc: 12040 ");
        has(said, "nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
        has(said, "nvidia/cublas/lib/libcublasLt.so.12");
    }
}

static void odd_files(void **unused) {
    make_driver("f", 12040, 0);
    make_nvrtc("f", 12, 11, 8, "80"); /* named 12, says 11.8 */
    make_dir(intern_printf("%s/f", root));
    FILE *f = fopen(intern_printf("%s/f/libcublasLt.so.12", root), "w");
    fputs("not a library", f);
    fclose(f);
    const char *said = find(80, at("LD_LIBRARY_PATH", "f"), NULL);
    has(said, intern_printf("%s/f/libnvrtc.so.12: says that it is 11.8", root));
    has(said, "libcublasLt.so.12: ");
    has(said, "file too short");
}

static int tidy(void **unused) {
    return system(intern_printf("rm -rf '%s'", root));
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "find")) return look(atoi(argv[2]));
    if (!mkdtemp(root)) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(drivers),
                                       cmocka_unit_test(no_driver),
                                       cmocka_unit_test(the_driver_decides),
                                       cmocka_unit_test(driver_too_old_for_all),
                                       cmocka_unit_test(newest_first),
                                       cmocka_unit_test(a_pair_or_none),
                                       cmocka_unit_test(architectures),
                                       cmocka_unit_test(wheels),
                                       cmocka_unit_test(odd_files)};
    return cmocka_run_group_tests(tests, NULL, tidy);
}
