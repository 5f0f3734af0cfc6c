/* library.c: see library.h.
 *
 * A candidate is a file name; `try_file` opens it, reads its version and says what is wrong with
 * it.  Everything else is the order in which candidates come.
 */
#include "library.h"

#include <dlfcn.h>
#include <glob.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const library_names[NLIBRARY] = {"libcuda", "libnvrtc", "libcublasLt"};

enum { OLDEST = 12, NEWEST = 13 }; /* majors of CUDA */

typedef struct Search {
    Library *lib;
    int major;  /* wanted */
    int driver; /* its version; 0: none */
    int arch;   /* 0: any */
    const char *seen[64];
    int nseen;
} Search;

static void reject(Library *lib, const char *path, const char *why) {
    for (int i = 0; i < lib->nrejected; i++)
        if (lib->rejected[i].path == path && lib->rejected[i].why == why) return;
    if (lib->nrejected < MAX_REJECTED) lib->rejected[lib->nrejected++] = (Rejected){path, why};
}

static const char *version_text(int version) {
    return intern_printf("%d.%d", version / 1000, version % 1000 / 10);
}

/* The file behind a handle. */
static const char *path_of(void *handle, const char *name) {
    struct link_map *map = NULL;
    if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || !map->l_name[0]) return intern(name);
    return intern(map->l_name);
}

/* ---- what a library says of itself ----------------------------------------------------------- */

static void *symbol(void *handle, const char *name, void *slot) {
    void *found = dlsym(handle, name);
    memcpy(slot, &found, sizeof found);
    return found;
}

/* 0 where it does not say. */
static int version_of(LibraryKind kind, void *handle) {
    int (*nvrtc)(int *, int *), (*driver)(int *), major = 0, minor = 0;
    size_t (*cublaslt)(void);
    if (kind == LIBRARY_DRIVER && symbol(handle, "cuDriverGetVersion", &driver))
        return driver(&major) == 0 ? major : 0; /* counts as we do */
    if (kind == LIBRARY_NVRTC && symbol(handle, "nvrtcVersion", &nvrtc))
        return nvrtc(&major, &minor) == 0 ? 1000 * major + 10 * minor : 0;
    if (kind == LIBRARY_CUBLASLT && symbol(handle, "cublasLtGetVersion", &cublaslt)) {
        int version = (int)cublaslt(); /* 120405: 12.4.5 */
        return 1000 * (version / 10000) + 10 * (version / 100 % 100);
    }
    return 0;
}

int library_arch(const Library *nvrtc, int arch) {
    int (*count)(int *), (*list)(int *), n = 0, archs[64], best = 0;
    if (!symbol(nvrtc->handle, "nvrtcGetNumSupportedArchs", &count) ||
        !symbol(nvrtc->handle, "nvrtcGetSupportedArchs", &list))
        return 0;
    if (count(&n) != 0 || n < 1 || n > (int)COUNT(archs) || list(archs) != 0) return 0;
    for (int i = 0; i < n; i++)
        if (archs[i] / 10 == arch / 10 && archs[i] <= arch && archs[i] > best) best = archs[i];
    return best;
}

/* What is wrong with an open library; NULL: nothing. */
static const char *wrong_with(const Search *s, void *handle, int version) {
    if (!version)
        return s->lib->kind == LIBRARY_DRIVER ? "is a stub: cuDriverGetVersion fails"
                                              : "does not say which version it is";
    const char *text = version_text(version);
    if (s->lib->kind == LIBRARY_DRIVER)
        return version / 1000 >= OLDEST
                   ? NULL
                   : intern_printf("is a driver for CUDA %s; 12.0 or later is needed", text);
    if (s->driver && version / 1000 > s->driver / 1000)
        return intern_printf("%s is newer than the driver, which is for CUDA %s", text,
                             version_text(s->driver));
    if (version / 1000 != s->major) return intern_printf("says that it is %s", text);
    if (s->arch && s->lib->kind == LIBRARY_NVRTC &&
        !library_arch(&(Library){.handle = handle}, s->arch))
        return intern_printf("%s makes no code for sm_%d", text, s->arch);
    return NULL;
}

/* ---- candidates ------------------------------------------------------------------------------ */

static bool first_sight(Search *s, const char *name) {
    char *real = realpath(name, NULL);
    const char *path = intern(real ? real : name);
    free(real);
    for (int i = 0; i < s->nseen; i++)
        if (s->seen[i] == path) return false;
    if (s->nseen < (int)COUNT(s->seen)) s->seen[s->nseen++] = path;
    return true;
}

/* Opens one file and takes it if nothing is wrong with it. */
static bool try_file(Search *s, const char *name) {
    /* NVIDIA's libraries are not made to be unloaded once they have run. */
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle) {
        const char *why = dlerror(), *absent = "cannot open shared object file";
        size_t n = strlen(name);
        bool itself = !strncmp(why, name, n); /* not what it needs */
        if ((!itself || !strstr(why, absent)) && first_sight(s, name))
            reject(s->lib, intern(name), intern(itself && why[n] ? why + n + 2 : why));
        return false;
    }
    const char *path = path_of(handle, name);
    bool fresh = first_sight(s, path);
    int version = fresh ? version_of(s->lib->kind, handle) : 0;
    const char *why = fresh ? wrong_with(s, handle, version) : NULL;
    if (why) reject(s->lib, path, why);
    if (!fresh || why) {
        dlclose(handle);
        return false;
    }
    s->lib->handle = handle;
    s->lib->path = path;
    s->lib->version = version;
    return true;
}

static bool try_pattern(Search *s, const char *root, const char *places, const char *name) {
    if (!root || !*root) return false;
    char *pattern = NULL;
    glob_t found;
    bool taken = false;
    if (asprintf(&pattern, "%s/%s/%s", root, places, name) < 0) return false;
    if (glob(pattern, GLOB_BRACE, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc && !taken; i++)
            taken = try_file(s, found.gl_pathv[i]);
        globfree(&found);
    }
    free(pattern);
    return taken;
}

/* The directory above the one where the PATH's python3 lies ("/opt/venv"), or NULL. */
static const char *python_root(void) {
    const char *path = getenv("PATH");
    while (path && *path) {
        size_t n = strcspn(path, ":");
        const char *file = intern_printf("%.*s/python3", (int)n, path);
        if (n && access(file, X_OK) == 0) return intern_printf("%.*s/..", (int)n, path);
        path += n + (path[n] == ':');
    }
    return NULL;
}

#define TOOLKIT "{lib64,lib,targets/*-linux/lib}"
#define WHEELS                                                                                     \
    "lib/python3*/{site,dist}-packages/nvidia/{cuda_nvrtc/lib,cublas/lib,cu13/lib,cu12/lib}"

static bool search(Search *s) {
    const char *name = intern_printf("%s.so.%d", library_names[s->lib->kind], s->major);
    if (try_file(s, name)) return true;
    static const char *const toolkits[] = {"CUDA_HOME", "CUDA_PATH"};
    for (size_t i = 0; i < COUNT(toolkits); i++)
        if (try_pattern(s, getenv(toolkits[i]), TOOLKIT, name)) return true;
    if (try_pattern(s, "/usr/local", "cuda*/" TOOLKIT, name)) return true;
    const char *home = getenv("HOME"), *conda = getenv("CONDA_PREFIX");
    const char *roots[] = {
        getenv("VIRTUAL_ENV"), conda,  python_root(),
        "/usr/local",          "/usr", home && *home ? intern_printf("%s/.local", home) : NULL};
    for (size_t i = 0; i < COUNT(roots); i++)
        if (try_pattern(s, roots[i], WHEELS, name)) return true;
    return try_pattern(s, conda, TOOLKIT, name);
}

/* ---- the driver, and a pair that goes with it ------------------------------------------------ */

bool library_driver(Library *out, Err *err) {
    *out = (Library){.kind = LIBRARY_DRIVER};
    Search s = {.lib = out, .major = 1};
    if (try_file(&s, "libcuda.so.1") || try_file(&s, "/usr/lib/wsl/lib/libcuda.so.1")) return true;
    if (out->nrejected)
        return fail(err, EXIT_DEVICE, "the NVIDIA driver cannot be used: %s\nhelp: %s",
                    library_rejected(out), library_advice(LIBRARY_DRIVER, NEWEST));
    return fail(err, EXIT_DEVICE, "there is no NVIDIA driver (libcuda.so.1)\nhelp: %s",
                library_advice(LIBRARY_DRIVER, NEWEST));
}

static bool find(Library *lib, int major, int driver, int arch) {
    Search s = {.lib = lib, .major = major, .driver = driver, .arch = arch};
    return search(&s);
}

/* Gives back what was taken, with the reason. */
static void put_back(Library *lib, const char *why) {
    reject(lib, lib->path, why);
    dlclose(lib->handle);
    lib->handle = NULL;
    lib->path = NULL;
    lib->version = 0;
}

bool library_pair(int driver, int arch, Library *nvrtc, Library *cublaslt, Err *err) {
    *nvrtc = (Library){.kind = LIBRARY_NVRTC};
    if (cublaslt) *cublaslt = (Library){.kind = LIBRARY_CUBLASLT};
    for (int major = NEWEST; major >= OLDEST; major--) {
        bool have = find(nvrtc, major, driver, arch);
        bool both = !cublaslt || find(cublaslt, major, driver, 0);
        if (have && both) return true;
        const char *alone =
            intern_printf("there is no %s.so.%d to go with it",
                          library_names[have ? LIBRARY_CUBLASLT : LIBRARY_NVRTC], major);
        if (have) put_back(nvrtc, alone);
        if (cublaslt && both) put_back(cublaslt, alone);
    }
    int major = driver && driver / 1000 < NEWEST ? OLDEST : NEWEST;
    if (!cublaslt)
        return fail(err, EXIT_DEVICE, "no NVRTC can be used: %s\nhelp: %s", library_rejected(nvrtc),
                    library_advice(LIBRARY_NVRTC, major));
    return fail(err, EXIT_DEVICE,
                "no NVRTC and cuBLASLt of one version that this driver runs (CUDA %s)\n"
                "  NVRTC: %s\n  cuBLASLt: %s\nhelp: %s\nhelp: %s",
                driver ? version_text(driver) : "12 or 13", library_rejected(nvrtc),
                library_rejected(cublaslt), library_advice(LIBRARY_NVRTC, major),
                library_advice(LIBRARY_CUBLASLT, major));
}

void library_close(Library *library) {
    if (library->handle) dlclose(library->handle);
    library->handle = NULL;
}

/* ---- texts ----------------------------------------------------------------------------------- */

const char *library_advice(LibraryKind kind, int major) {
    if (kind == LIBRARY_DRIVER)
        return "install or update NVIDIA's driver (Debian, Ubuntu: apt-get install nvidia-driver); "
               "in a container start it with --gpus all; or use --device=cpu";
    const char *package = kind == LIBRARY_NVRTC ? "nvidia-cuda-nvrtc" : "nvidia-cublas";
    return intern_printf("`pip install %s%s`, or the CUDA toolkit %d", package,
                         major == OLDEST ? "-cu12" : "", major);
}

const char *library_rejected(const Library *library) {
    Text text = {0};
    for (int i = 0; i < library->nrejected; i++)
        text_add(&text, "%s%s: %s", i ? "; " : "", library->rejected[i].path,
                 library->rejected[i].why);
    const char *all = intern(text.data ? text.data : "nothing was found");
    text_free(&text);
    return all;
}
