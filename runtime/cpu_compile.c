/* cpu_compile.c: kernel text to code: the system's C compiler, a cache of modules, dlopen.
 *
 * A kernel's hash in the cache covers its text, the prelude, flags, the compiler's version and the
 * CPU's features; modules are HASH.so, each holding several kernels.
 *
 * Relies on cpu_compile.h, cache.h, POSIX, a C compiler at run time.  Promises: prints nothing but
 * warnings.
 */
#include "cpu_compile.h"

#include "cache.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* No contraction, no -ffast-math: rounding happens where the graph says.  The rest changes no
 * value. */
#define FLAGS                                                                                      \
    "-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno",                  \
        "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared", "-w"
#define NFLAGS     10
#define UNIT_BYTES 24576 /* of kernel text in a module, about */
#define LOG_BYTES  600
#define FULL_BYTES                                                                                 \
    (4 << 20) /* a disk with less room is full: the modules of a plan take about 1 MiB */
#define THREADS_FUN "dpoc_set_threads"

struct CpuCode {
    Arena *arena;
    void **module;
    const char **name; /* of each module's file */
    int nmodule, capmodule, capname;
    CpuKernel *kernel;
    int nkernels;
};

typedef struct Compile {
    const Plan *plan;
    CpuCode *code;
    Arena *arena;
    const char *cc, *dir;
    bool private; /* dir is ours alone and goes away */
    bool noexec;  /* the module was whole and could not be mapped */
    Hash128 seed; /* of what all kernels share */
    int jobs;
    Err *err;
} Compile;

/* ---- what decides the code ------------------------------------------------------------------- */

/* Runs argv with its output in the file `log`; its exit status, or -1 with errno. */
static pid_t start(const char *const *argv, const char *log) {
    posix_spawn_file_actions_t files;
    pid_t pid = -1;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    errno = posix_spawnp(&pid, argv[0], &files, NULL, (char **)(uintptr_t)argv, environ);
    posix_spawn_file_actions_destroy(&files);
    return errno ? -1 : pid;
}

static bool finish(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return false;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool no_compiler(const char *cc, const char *why, Err *err) {
    return fail(err, EXIT_DEVICE,
                "no C compiler: `%s` %s\n"
                "the CPU device compiles its kernels with it; install one (Debian, Ubuntu: "
                "apt-get install gcc) or name one with --cc or DPOC_CC",
                cc, why);
}

bool cpu_compiler(const char *cc, char version[120], Err *err) {
    const char *argv[] = {cc, "--version", NULL};
    char log[] = "/tmp/dpoc-XXXXXX", text[120] = "";
    int fd = mkstemp(log);
    if (fd < 0) return fail(err, EXIT_IO, "%s: %s", log, strerror(errno));
    pid_t pid = start(argv, log);
    int reason = errno;
    bool ok = pid > 0 && finish(pid);
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    unlink(log);
    if (!ok) return no_compiler(cc, pid < 0 ? strerror(reason) : "does not answer --version", err);
    text[n < 0 ? 0 : n] = 0;
    text[strcspn(text, "\n")] = 0;
    snprintf(version, 120, "%s", text);
    return true;
}

/* -march=native means other things on other machines: model and features of the first CPU. */
static Hash128 hash_cpu(Hash128 hash) {
    FILE *f = fopen("/proc/cpuinfo", "r");
    char *line = NULL;
    size_t cap = 0;
    while (f && getline(&line, &cap, f) > 1) /* an empty line ends the first CPU */
        if (!strncmp(line, "flags", 5) || !strncmp(line, "model", 5) || !strncmp(line, "Feat", 4))
            hash = hash_bytes(line, strlen(line), hash);
    free(line);
    if (f) fclose(f);
    return hash;
}

static Hash128 hash_shared(const Plan *plan, const char *version) {
    static const char *const flags[NFLAGS] = {FLAGS};
    Hash128 hash = hash_cpu((Hash128){0, 0});
    for (int i = 0; i < NFLAGS; i++) hash = hash_bytes(flags[i], strlen(flags[i]) + 1, hash);
    hash = hash_bytes(version, strlen(version), hash);
    return hash_bytes(plan->prelude, strlen(plan->prelude), hash);
}

static const char *kernel_key(const Compile *c, int kernel) {
    const char *text = c->plan->kernels[kernel].text;
    char hex[33];
    hash_hex(hash_bytes(text, strlen(text), c->seed), hex);
    return arena_str(c->arena, hex);
}

/* ---- files of the cache ---------------------------------------------------------------------- */

static char *in_dir(const Compile *c, const char *name) {
    return path_join(c->arena, c->dir, name);
}

/* The key's module if it is loaded or can be. */
static void *find_module(Compile *c, const CacheKey *key) {
    CpuCode *code = c->code;
    for (int i = 0; i < code->nmodule; i++)
        if (!strcmp(code->name[i], key->module)) return code->module[i];
    char *data = cache_module(c->dir, key);
    if (!data) return NULL;
    free(data);
    void *module = dlopen(in_dir(c, key->module), RTLD_NOW | RTLD_LOCAL);
    if (!module) {
        c->noexec = true;
        return NULL;
    }
    int n = code->nmodule;
    PUSH(code->arena, code->module, code->nmodule, code->capmodule, module);
    PUSH(code->arena, code->name, n, code->capname, arena_str(code->arena, key->module));
    return module;
}

static bool find_kernel(Compile *c, int kernel) {
    CacheKey key;
    bool found = cache_find(c->dir, kernel_key(c, kernel), &key);
    void *module = found ? find_module(c, &key) : NULL;
    void *symbol = module ? dlsym(module, c->plan->kernels[kernel].symbol) : NULL;
    memcpy(&c->code->kernel[kernel], &symbol, sizeof symbol);
    return symbol != NULL;
}

/* ---- compiling ------------------------------------------------------------------------------- */

typedef struct Unit { /* kernels compiled into one module */
    int *kernel;
    int n, cap;
    pid_t pid;
    const char *name, *source, *object, *log;
} Unit;

static bool write_source(Compile *c, Unit *u) {
    Text text = {0};
    Hash128 hash = c->seed;
    text_add(&text, "%s\n", c->plan->prelude);
    for (int i = 0; i < u->n; i++) {
        const Kernel *k = &c->plan->kernels[u->kernel[i]];
        text_add(&text, "%s\n", k->text);
        hash = hash_bytes(k->text, strlen(k->text), hash);
    }
    text_add(&text, "void omp_set_num_threads(int);\nvoid " THREADS_FUN
                    "(int n) { omp_set_num_threads(n); }\n");
    char hex[33];
    hash_hex(hash, hex);
    u->name = arena_printf(c->arena, "%s.so", hex);
    u->source = in_dir(c, arena_printf(c->arena, "%s.%d.c", hex, (int)getpid()));
    u->object = in_dir(c, arena_printf(c->arena, "%s.%d.o", hex, (int)getpid()));
    u->log = in_dir(c, arena_printf(c->arena, "%s.%d.log", hex, (int)getpid()));
    FILE *f = fopen(u->source, "w");
    bool ok = f && fwrite(text.data, 1, text.len, f) == text.len;
    if (f && fclose(f)) ok = false;
    text_free(&text);
    return ok || fail(c->err, EXIT_IO, "%s: cannot be written: %s", u->source, strerror(errno));
}

static pid_t start_unit(const Compile *c, const Unit *u) {
    static const char *const flags[NFLAGS] = {FLAGS};
    const char *argv[NFLAGS + 6] = {c->cc};
    memcpy(argv + 1, flags, sizeof flags);
    argv[NFLAGS + 1] = "-o";
    argv[NFLAGS + 2] = u->object;
    argv[NFLAGS + 3] = u->source;
    return start(argv, u->log);
}

static void remove_temps(const Unit *u) {
    unlink(u->source);
    unlink(u->object);
    unlink(u->log);
}

/* Beginning of what the compiler said. */
static const char *said(const Compile *c, const char *log) {
    Err quiet = {0};
    size_t len = 0;
    char *text = file_read(log, &len, &quiet);
    const char *copy = arena_strn(c->arena, text ? text : "", len < LOG_BYTES ? len : LOG_BYTES);
    free(text);
    return copy;
}

static bool disk_full(const Compile *c) {
    struct statvfs s;
    return statvfs(c->dir, &s) == 0 && (double)s.f_bavail * (double)s.f_frsize < FULL_BYTES;
}

/* The compiler failed: is there no room, is it our text, or can it not make OpenMP modules at all?
 */
static bool blame(Compile *c, const Unit *u) {
    if (disk_full(c)) {
        remove_temps(u);
        return fail(c->err, EXIT_IO, "%s: kernels cannot be compiled: %s", c->dir,
                    strerror(ENOSPC));
    }
    Unit probe = {.source = in_dir(c, "probe.c"),
                  .object = in_dir(c, "probe.o"),
                  .log = in_dir(c, "probe.log")};
    const char *text = "void omp_set_num_threads(int);\nvoid f(void) {\n#pragma omp parallel\n"
                       "    omp_set_num_threads(1);\n}\n";
    cache_put(c->dir, "probe.c", text, strlen(text));
    pid_t pid = start_unit(c, &probe);
    bool works = pid > 0 && finish(pid);
    const char *what = said(c, works ? u->log : probe.log);
    remove_temps(&probe);
    if (!works) {
        remove_temps(u);
        return fail(
            c->err, EXIT_DEVICE,
            "`%s` cannot build a module with OpenMP; install gcc (or libomp-dev beside clang), "
            "or name another compiler with --cc or DPOC_CC:\n%s",
            c->cc, what);
    }
    c->private = false; /* the text stays where the message says */
    return fail(c->err, EXIT_BUG,
                "bug: the C compiler rejects a kernel; the text is kept in %s:\n%s", u->source,
                what);
}

/* The finished module gets its name, and its kernels their keys. */
static bool adopt(Compile *c, const Unit *u) {
    size_t len;
    char *data = file_read(u->object, &len, c->err);
    bool ok = data && (!rename(u->object, in_dir(c, u->name)) ||
                       fail(c->err, EXIT_IO, "%s: %s", u->object, strerror(errno)));
    if (ok) remove_temps(u);
    for (int i = 0; i < u->n && ok; i++)
        cache_put_key(c->dir, kernel_key(c, u->kernel[i]), u->name, data, len,
                      c->plan->kernels[u->kernel[i]].symbol);
    free(data);
    return ok;
}

/* Waits for the first of `n` running units that is not done. */
static bool wait_unit(Compile *c, Unit *u) {
    bool ok = finish(u->pid);
    u->pid = 0;
    return ok ? adopt(c, u) : blame(c, u);
}

static bool compile_units(Compile *c, Unit *unit, int n) {
    bool ok = true;
    int begun = 0;
    for (int done = 0; done < n && (ok || done < begun); done++) {
        for (; ok && begun < n && begun - done < c->jobs; begun++) {
            ok = write_source(c, &unit[begun]);
            unit[begun].pid = ok ? start_unit(c, &unit[begun]) : -1;
            if (ok && unit[begun].pid < 0) ok = no_compiler(c->cc, strerror(errno), c->err);
        }
        if (done < begun && unit[done].pid > 0)
            ok = wait_unit(c, &unit[done]) && ok;
        else if (done < begun)
            remove_temps(&unit[done]);
    }
    return ok;
}

static bool compile_missing(Compile *c, const int *missing, int n) {
    int *group = NEW_ARRAY(c->arena, int, n);
    int units = cache_spread(c->plan, missing, n, UNIT_BYTES, c->jobs, group);
    Unit *unit = NEW_ARRAY(c->arena, Unit, units);
    for (int i = 0; i < n; i++) {
        Unit *u = &unit[group[i]];
        PUSH(c->arena, u->kernel, u->n, u->cap, missing[i]);
    }
    return compile_units(c, unit, units);
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* Kernels that are not loaded after a look into the cache. */
static int find_all(Compile *c, int *missing) {
    int n = 0;
    for (int i = 0; i < c->plan->nkernels; i++)
        if (!c->code->kernel[i] && !find_kernel(c, i)) missing[n++] = i;
    return n;
}

/* From now on a directory of our own, removed when everything is loaded. */
static bool go_private(Compile *c, const char *why) {
    const char *base = getenv("TMPDIR");
    fprintf(stderr, "dpoc: warning: kernel cache %s %s; kernels are compiled for this run only\n",
            c->dir, why);
    char *dir = arena_printf(c->arena, "%s/dpoc-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(dir)) return fail(c->err, EXIT_IO, "%s: %s", dir, strerror(errno));
    c->dir = dir;
    c->private = true;
    c->noexec = false;
    return true;
}

static void remove_private(Compile *c, int n) {
    for (int i = 0; i < n; i++)
        unlink(in_dir(c, arena_printf(c->arena, "%s.key", kernel_key(c, i))));
    for (int i = 0; i < c->code->nmodule; i++) unlink(in_dir(c, c->code->name[i]));
    rmdir(c->dir);
}

static bool load_all(Compile *c, int *missing) {
    int n = find_all(c, missing);
    if (!n) return true;
    if (c->noexec && !go_private(c, "cannot hold programs (mounted noexec?)")) return false;
    if (!c->private && !cache_usable(c->dir) && !go_private(c, "cannot be written")) return false;
    bool ok = compile_missing(c, missing, n);
    if (ok && !(n = find_all(c, missing))) return true;
    const char *flaw = c->noexec      ? "cannot hold programs (mounted noexec?)"
                       : disk_full(c) ? "is on a full disk"
                                      : NULL;
    if (!c->private && flaw) { /* found out only now */
        *c->err = (Err){0};
        if (!go_private(c, flaw)) return false;
        ok = compile_missing(c, missing, find_all(c, missing));
        if (ok && !(n = find_all(c, missing))) return true;
    }
    if (!ok) return false;
    const char *why = dlerror();
    return fail(c->err, EXIT_DEVICE, "compiled kernels cannot be loaded from %s: %s%s", c->dir,
                why ? why : "the module lacks a kernel",
                c->noexec ? "\nname a directory that may hold programs with TMPDIR" : "");
}

CpuCode *cpu_compile(const Plan *plan, const char *dir, const char *cc, int jobs, Err *err) {
    Arena *own = arena_new(), *arena = arena_new();
    CpuCode *code = NEW(own, CpuCode);
    code->arena = own;
    code->nkernels = plan->nkernels;
    code->kernel = NEW_ARRAY(own, CpuKernel, plan->nkernels + 1);
    Compile c = {
        .plan = plan, .code = code, .arena = arena, .cc = cc, .dir = dir, .err = err, .jobs = jobs};
    char version[120];
    bool ok = !plan->nkernels || cpu_compiler(cc, version, err);
    if (ok && plan->nkernels) {
        c.seed = hash_shared(plan, version);
        ok = load_all(&c, NEW_ARRAY(arena, int, plan->nkernels));
        if (c.private) remove_private(&c, plan->nkernels);
    }
    arena_free(arena);
    if (ok) return code;
    cpu_code_free(code);
    return NULL;
}

CpuKernel cpu_kernel(const CpuCode *code, int kernel) {
    return code->kernel[kernel];
}

void cpu_code_threads(CpuCode *code, int threads) {
    for (int i = 0; i < code->nmodule; i++) {
        void (*set)(int) = NULL;
        void *symbol = dlsym(code->module[i], THREADS_FUN);
        memcpy(&set, &symbol, sizeof symbol);
        if (set) set(threads);
    }
}

void cpu_code_free(CpuCode *code) {
    if (!code) return;
    for (int i = 0; i < code->nmodule; i++) dlclose(code->module[i]);
    arena_free(code->arena);
}
