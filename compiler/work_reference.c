/* work_reference.c: graph.ref = cached: which file the reference's log-probs are kept in, and what
 * it is bound to.  See work.h and runtime/job/reference.h. */
#include "../runtime/io/checkpoint.h"
#include "../runtime/job/reference.h"
#include "work.h"

#include <string.h>

bool work_hash_weights(Work *w, bool reference, Hash128 *out) {
    int n;
    const Source *sources = spec_sources(w->spec, &n);
    *out = (Hash128){0};
    for (int i = 0; i < n; i++) {
        const Source *s = &sources[i];
        if (reference && !spec_in_reference(w->spec, s)) continue;
        *out = hash_bytes(s->name, strlen(s->name), *out);
        uint64_t seed = work_seed(w);
        if (!s->dir) *out = hash_bytes(&seed, sizeof seed, *out);
        if (!s->dir) continue;
        Checkpoint *c = checkpoint_open(s->dir, s->adapter ? "adapter_model" : "model", &w->err);
        bool ok = c && checkpoint_hash(c, out, &w->err);
        checkpoint_close(c);
        if (!ok) return false;
    }
    return true;
}

/* "nf4 64 double" of every way in which its weights are kept; "none" of them coded. */
static const char *quantization(Work *w) {
    Text text = {0};
    for (int i = 0; i < w->plan->nbinds; i++) {
        const Bind *b = &w->plan->binds[i];
        const char *part = strstr(b->transform, ".codes");
        const Source source = {.name = b->source, .dir = ""};
        if (!part || !spec_in_reference(w->spec, &source)) continue;
        const char *one = arena_printf(w->arena, "%.*s %g%s", (int)(part - b->transform),
                                       b->transform, b->num, b->nested ? " double" : "");
        if (!text.data || !strstr(text.data, one))
            text_add(&text, "%s%s", text.len ? ", " : "", one);
    }
    const char *kept = arena_str(w->arena, text.data ? text.data : "none");
    text_free(&text);
    return kept;
}

/* By name, or in the cache directory by the hash of its keys. */
static bool reference_file(Work *w, ReferenceFile *out) {
    const char *compute = spec_str(w->spec, "graph.compute");
    *out = (ReferenceFile){.path = spec_str(w->spec, "graph.ref_file"),
                           .key = {"weights", "quantization", "compute", "model"},
                           .value = {NULL, quantization(w), compute, w->plan->reference}};
    if (!strcmp(compute, "auto")) out->value[2] = w->device->arch ? "bf16" : "fp32";
    Hash128 hash;
    char hex[33];
    if (!work_hash_weights(w, true, &hash)) return false;
    hash_hex(hash, hex);
    out->value[0] = arena_str(w->arena, hex);
    if (out->path) return true;
    hash = (Hash128){0};
    for (int i = 0; i < REFERENCE_KEYS; i++)
        hash = hash_bytes(out->value[i], strlen(out->value[i]) + 1, hash);
    hash_hex(hash, hex);
    const char *cache = w->options->cache_dir ? w->options->cache_dir : cache_dir_default();
    const char *dir = path_join(w->arena, cache, "reference");
    out->path = arena_printf(w->arena, "%s/%s.safetensors", dir, hex);
    return dir_make(cache, &w->err) && dir_make(dir, &w->err);
}

typedef struct Watch {
    ReferenceWatch watch;
    ProgressNote note;
} Watch;

static void show(ReferenceWatch *self, int64_t done, int64_t all) {
    Watch *s = (Watch *)self;
    double spent = now_seconds() - s->note.started;
    progress_say(&s->note, false, "reference: %lld of %lld pairs, %.0f s left", (long long)done,
                 (long long)all, spent / (double)done * (double)(all - done));
}

int work_reference(Work *w, Pairs *pairs, bool random) {
    if (!plan_program(w->plan, "ref")) return EXIT_OK;
    const bool silent = w->options->quiet || w->options->json;
    Watch watch = {{show}, progress_note()};
    ReferenceFile file;
    ReferenceCounts counts;
    if (!random && !reference_file(w, &file)) return work_fail(w);
    stop_watch();
    bool ok = reference_logps(w->exec, w->plan, pairs, random ? NULL : &file,
                              silent ? NULL : &watch.watch, &counts, &w->err);
    progress_erase(&watch.note);
    if (!ok) return work_fail(w);
    if (!silent && !random)
        fprintf(stderr, "reference: %lld pairs known, %lld computed in %.1f s: %s\n",
                (long long)counts.known, (long long)counts.computed,
                now_seconds() - watch.note.started, file.path);
    return EXIT_OK;
}
