/* cubin.c: see cubin.h. */
#include "cubin.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache.h"

enum { UNIT_BYTES = 16384 }; /* of kernel text in a module, about */

typedef struct Unit { /* kernels that are compiled together */
    int *kernel, n;
    char name[64]; /* of the module in the cache */
    Cubin cubin;
} Unit;

typedef struct Compile {
    const Plan *plan;
    const Nvrtc *nvrtc;
    const char *arch, *dir;
    Cubins *out;
    char (*key)[33]; /* by kernel */
    bool kept;       /* the cache takes what is compiled; that it does not is said once */
    bool progress;
    Unit *unit;
    int nunits, next, done, jobs;
    pthread_mutex_t lock; /* of next, done, err, kept */
    Err *err;
} Compile;

/* ---- what decides the code ------------------------------------------------------------------- */

static void make_keys(Compile *c) {
    Text shared = {0};
    text_add(&shared, "%s %s %s %s", c->arch, nvrtc_build(c->nvrtc), nvrtc_options,
             c->plan->prelude ? c->plan->prelude : "");
    Hash128 seed = hash_bytes(shared.data, shared.len, (Hash128){0, 0});
    text_free(&shared);
    for (int i = 0; i < c->plan->nkernels; i++) {
        const char *text = c->plan->kernels[i].text;
        hash_hex(hash_bytes(text, strlen(text), seed), c->key[i]);
    }
}

static int add_module(Cubins *out, const char *name, const void *data, size_t size) {
    out->module[out->nmodules] = (CubinModule){arena_str(out->arena, name), data, size};
    return out->nmodules++;
}

/* ---- the cache ------------------------------------------------------------------------------- */

/* The module of that key, read once. */
static int find_module(Compile *c, const CacheKey *key) {
    for (int i = 0; i < c->out->nmodules; i++)
        if (!strcmp(c->out->module[i].name, key->module)) return i;
    char *data = cache_module(c->dir, key);
    if (!data) return -1;
    void *copy = arena_strn(c->out->arena, data, key->bytes);
    free(data);
    return add_module(c->out, key->module, copy, key->bytes);
}

static bool find_kernel(Compile *c, int kernel) {
    CacheKey key;
    KernelFigures *f = &c->out->figures[kernel];
    if (!cache_find(c->dir, c->key[kernel], &key)) return false;
    if (sscanf(key.rest, "%d %d %d %d", &f->registers, &f->stack_bytes, &f->spill_bytes,
               &f->shared_bytes) != 4)
        return false;
    return (c->out->module_of[kernel] = find_module(c, &key)) >= 0;
}

static void not_kept(Compile *c) {
    c->kept = false;
    fprintf(stderr,
            "dpoc: warning: kernel cache %s cannot be written; kernels are compiled for this run "
            "only\n",
            c->dir);
}

/* A unit's kernels go into the cache. */
static void keep(Compile *c, const Unit *u) {
    bool ok = cache_put(c->dir, u->name, u->cubin.data, u->cubin.size);
    for (int i = 0; i < u->n && ok; i++) {
        const KernelFigures *f = &c->out->figures[u->kernel[i]];
        char rest[100];
        snprintf(rest, sizeof rest, "%d %d %d %d", f->registers, f->stack_bytes, f->spill_bytes,
                 f->shared_bytes);
        ok = cache_put_key(c->dir, c->key[u->kernel[i]], u->name, u->cubin.data, u->cubin.size,
                           rest);
    }
    if (!ok) not_kept(c);
}

/* ---- compiling ------------------------------------------------------------------------------- */

static bool compile_unit(Compile *c, Unit *u, Err *err) {
    Text text = {0};
    text_add(&text, "%s", c->plan->prelude ? c->plan->prelude : "");
    for (int i = 0; i < u->n; i++) text_add(&text, "\n%s", c->plan->kernels[u->kernel[i]].text);
    bool ok = nvrtc_compile(c->nvrtc, "plan.cu", text.data, c->arch, &u->cubin, err);
    text_free(&text);
    for (int i = 0; i < u->n && ok; i++)
        cubin_figures(&u->cubin, c->plan->kernels[u->kernel[i]].symbol,
                      &c->out->figures[u->kernel[i]]);
    return ok;
}

static void say_progress(const Compile *c) {
    if (c->progress && isatty(2))
        fprintf(stderr, "\rcompiling %d kernels for %s: %d of %d modules%s", c->out->compiled,
                c->arch, c->done, c->nunits, c->done == c->nunits ? "\n" : "");
}

static void *work(void *compile) {
    Compile *c = compile;
    pthread_mutex_lock(&c->lock);
    while (c->next < c->nunits && !c->err->code) {
        Unit *u = &c->unit[c->next++];
        Err err = {0};
        pthread_mutex_unlock(&c->lock);
        bool ok = compile_unit(c, u, &err);
        pthread_mutex_lock(&c->lock);
        c->done++;
        if (!ok) fail(c->err, err.code, "%s", err.text);
        if (ok && c->kept) keep(c, u);
        say_progress(c);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static void run_workers(Compile *c) {
    pthread_t thread[64];
    int n = 0, more = c->jobs < c->nunits ? c->jobs - 1 : c->nunits - 1;
    if (more > (int)COUNT(thread)) more = COUNT(thread);
    while (n < more && !pthread_create(&thread[n], NULL, work, c)) n++;
    work(c);
    for (int i = 0; i < n; i++) pthread_join(thread[i], NULL);
}

/* The module's name follows from its kernels. */
static void name_unit(const Compile *c, Unit *u) {
    Hash128 hash = {0, 0};
    char hex[33];
    for (int i = 0; i < u->n; i++) hash = hash_bytes(c->key[u->kernel[i]], 32, hash);
    hash_hex(hash, hex);
    snprintf(u->name, sizeof u->name, "%s.cubin", hex);
}

static void make_units(Compile *c, Arena *arena, const int *missing, int n) {
    int *group = NEW_ARRAY(arena, int, n);
    c->nunits = cache_spread(c->plan, missing, n, UNIT_BYTES, c->jobs, group);
    c->unit = NEW_ARRAY(arena, Unit, c->nunits);
    for (int i = 0; i < n; i++) {
        Unit *u = &c->unit[group[i]];
        if (!u->kernel) u->kernel = NEW_ARRAY(arena, int, n);
        u->kernel[u->n++] = missing[i];
    }
    for (int i = 0; i < c->nunits; i++) name_unit(c, &c->unit[i]);
}

static bool compile_missing(Compile *c, const int *missing, int n) {
    Arena *arena = arena_new();
    c->out->compiled = n;
    c->kept = true;
    if (!cache_usable(c->dir)) not_kept(c);
    make_units(c, arena, missing, n);
    run_workers(c);
    for (int i = 0; i < c->nunits; i++) {
        Unit *u = &c->unit[i];
        if (!c->err->code) {
            void *copy = arena_strn(c->out->arena, u->cubin.data, u->cubin.size);
            int module = add_module(c->out, u->name, copy, u->cubin.size);
            for (int k = 0; k < u->n; k++) c->out->module_of[u->kernel[k]] = module;
        }
        cubin_free(&u->cubin);
    }
    arena_free(arena);
    return !c->err->code;
}

Cubins *cubins_make(const Plan *plan, const Nvrtc *nvrtc, const char *arch, const char *dir,
                    int jobs, bool progress, Err *err) {
    Arena *arena = arena_new();
    Cubins *out = NEW(arena, Cubins);
    const int n = plan->nkernels;
    *out = (Cubins){.arena = arena,
                    .module = NEW_ARRAY(arena, CubinModule, n + 1),
                    .module_of = NEW_ARRAY(arena, int, n + 1),
                    .figures = NEW_ARRAY(arena, KernelFigures, n + 1)};
    Compile c = {.plan = plan,
                 .nvrtc = nvrtc,
                 .arch = arch,
                 .dir = dir,
                 .out = out,
                 .key = arena_alloc(arena, 33 * (size_t)(n + 1)),
                 .progress = progress,
                 .jobs = jobs > 0 ? jobs : 1,
                 .lock = PTHREAD_MUTEX_INITIALIZER,
                 .err = err};
    int *missing = NEW_ARRAY(arena, int, n + 1), nmissing = 0;
    make_keys(&c);
    for (int i = 0; i < n; i++)
        if (!find_kernel(&c, i)) missing[nmissing++] = i;
    if (!nmissing || compile_missing(&c, missing, nmissing)) return out;
    cubins_free(out);
    return NULL;
}

void cubins_free(Cubins *cubins) {
    if (cubins) arena_free(cubins->arena);
}
