/* save.c: what a run leaves on disk: trained tensors in PEFT form (or a whole model for `train
 * base`), checkpoints complete by construction, and their way back.
 *
 * The order of writing is what makes a kill harmless: files are written under temporary names and
 * renamed, a checkpoint's directory gets its name last. */
#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../io/safetensors.h"
#include "job.h"

/* ---- trained tensors ------------------------------------------------------------------------- */

/* A buffer of the plan, all of it; malloc. */
static void *read_flat(Exec *exec, const Plan *plan, const char *name, int64_t *bytes, Err *err) {
    int buf = plan_buf(plan, name);
    if (buf < 0) {
        fail(err, EXIT_BUG, "the plan has no buffer \"%s\"", name);
        return NULL;
    }
    *bytes = plan->bufs[buf].bytes;
    void *flat = malloc((size_t)*bytes + 1);
    if (!flat) {
        fail(err, EXIT_MEMORY, "no host memory for %lld bytes of \"%s\"", (long long)*bytes, name);
        return NULL;
    }
    if (exec_read(exec, name, flat, (size_t)*bytes, err)) return flat;
    free(flat);
    return NULL;
}

static bool write_model(const Plan *plan, const char *source, const float *params, const char *dir,
                        Arena *arena, Err *err) {
    SafeTensor *tensors = NEW_ARRAY(arena, SafeTensor, plan->nbinds + 1);
    const float **data = NEW_ARRAY(arena, const float *, plan->nbinds + 1);
    int n = 0;
    for (int i = 0; i < plan->nbinds; i++) {
        const Bind *b = &plan->binds[i];
        if (!b->save || strcmp(b->source, source) != 0) continue;
        tensors[n] = (SafeTensor){.name = b->tensor, .type = SAFE_F32, .rank = b->rank};
        if (b->rank == 2)
            tensors[n].shape[0] = b->rows, tensors[n].shape[1] = b->cols;
        else
            tensors[n].shape[0] = b->rows * b->cols;
        tensors[n].count = b->rows * b->cols;
        data[n++] = params + b->offset / (int64_t)sizeof(float);
    }
    if (!dir_make(dir, err)) return false;
    static const char *const metadata[] = {"format", "pt", NULL};
    SafeWriter *w =
        safe_create(path_join(arena, dir, "model.safetensors"), tensors, n, metadata, err);
    if (!w) return false;
    for (int i = 0; i < n; i++)
        if (!safe_put(w, i, 0, data[i], tensors[i].count * (int64_t)sizeof(float), err)) {
            safe_abort(w);
            return false;
        }
    return safe_commit(w, err);
}

/* What a tensor of a PiSSA adapter was before training: the frozen copy that the plan holds. */
static float *read_start(Exec *exec, const Plan *plan, const Bind *b, Arena *arena, Err *err) {
    const char *source = arena_printf(arena, "%s@start", b->source);
    for (int i = 0; i < plan->nbinds; i++) {
        const Bind *start = &plan->binds[i];
        if (strcmp(start->source, source) != 0 || strcmp(start->tensor, b->tensor) != 0) continue;
        const Buf *buf = &plan->bufs[start->buf];
        int64_t n = b->rows * b->cols;
        float *value = NEW_ARRAY(arena, float, n);
        uint16_t *half = buf->dtype == DT_bf16 ? NEW_ARRAY(arena, uint16_t, n) : NULL;
        if (!exec_read(exec, buf->name, half ? (void *)half : value, (size_t)buf->bytes, err))
            return NULL;
        for (int64_t k = 0; half && k < n; k++) value[k] = bf16_to_float(half[k]);
        return value;
    }
    fail(err, EXIT_BUG, "bug: the plan does not keep the start of \"%s\"", b->tensor);
    return NULL;
}

/* An adapter as it is now, or without `params` as it was at the start. */
static bool write_adapter(Exec *exec, const Plan *plan, const Adapter *a, const float *params,
                          const char *dir, const char *card, Arena *arena, Err *err) {
    AdapterTensor *tensors = NEW_ARRAY(arena, AdapterTensor, plan->nbinds + 1);
    int n = 0;
    for (int i = 0; i < plan->nbinds; i++) {
        const Bind *b = &plan->binds[i];
        if (!b->save || strcmp(b->source, a->name) != 0) continue;
        tensors[n] = (AdapterTensor){.name = b->tensor,
                                     .rank = b->rank,
                                     .rows = b->rows,
                                     .cols = b->cols,
                                     .transposed = !strcmp(b->transform, "transpose")};
        AdapterTensor *t = &tensors[n++];
        float *start = NULL;
        if ((a->pissa || !params) && !(start = read_start(exec, plan, b, arena, err))) return false;
        t->data = params ? params + b->offset / (int64_t)sizeof(float) : start;
        if (params) t->start = start;
    }
    return n == 0 || adapter_write(dir, a, tensors, n, DT_f32, card, err);
}

bool save_trained(Exec *exec, const Plan *plan, const char *dir, Err *err) {
    int64_t bytes;
    float *params = read_flat(exec, plan, "params", &bytes, err);
    if (!params) return false;
    Arena *arena = arena_new();
    int nadapters = 0, written = 0;
    Adapter *adapters =
        adapters_parse(arena, plan->adapter_json ? plan->adapter_json : "[]", &nadapters, err);
    bool ok = err->code == 0, base = false;
    for (int i = 0; i < plan->nbinds; i++)
        base = base || (plan->binds[i].save && strcmp(plan->binds[i].source, "base") == 0);
    if (ok && base)
        ok = write_model(plan, "base", params, path_join(arena, dir, "model"), arena, err);
    for (int k = 0; k < nadapters && ok; k++) {
        bool trained = false;
        for (int i = 0; i < plan->nbinds; i++)
            trained = trained ||
                      (plan->binds[i].save && strcmp(plan->binds[i].source, adapters[k].name) == 0);
        if (!trained) continue;
        char *path = path_join(arena, dir, "adapter");
        if (written++ > 0) path = path_join(arena, path, adapters[k].name);
        adapters[k].base = plan->base_path;
        ok = write_adapter(exec, plan, &adapters[k], params, path, NULL, arena, err);
    }
    arena_free(arena);
    free(params);
    return ok;
}

bool save_start(Exec *exec, const Plan *plan, const char *run_dir, Err *err) {
    static const char card[] = "# Start of an adapter\n\nThe singular triplets of the base that "
                               "the adapter of this run was "
                               "before training (PiSSA); the base has not lost them. A run that "
                               "goes on reads them here.\n";
    Arena *arena = arena_new();
    int n = 0;
    Adapter *a = adapters_parse(arena, plan->adapter_json ? plan->adapter_json : "[]", &n, err);
    bool ok = err->code == 0;
    for (int k = 0; k < n && ok; k++) {
        if (!a[k].pissa) continue;
        a[k].pissa = false; /* written as it stands */
        a[k].base = plan->base_path;
        char *dir = path_join(arena, path_join(arena, run_dir, RUN_START), a[k].name);
        ok = write_adapter(exec, plan, &a[k], NULL, dir, card, arena, err);
    }
    arena_free(arena);
    return ok;
}

/* ---- directories ----------------------------------------------------------------------------- */

static int64_t checkpoint_step(const char *name) {
    static const char prefix[] = "checkpoint-";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return -1;
    char *end;
    long long step = strtoll(name + sizeof prefix - 1, &end, 10);
    return *end == 0 && step >= 0 ? step : -1;
}

/* Steps of the complete checkpoints, ascending (malloc). */
static int list_checkpoints(const char *run_dir, int64_t **steps) {
    DIR *d = opendir(run_dir);
    int n = 0, cap = 0;
    *steps = NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        int64_t step = checkpoint_step(e->d_name);
        if (step < 0) continue;
        if (n == cap)
            *steps = realloc(*steps, sizeof(int64_t) * (size_t)(cap = cap ? 2 * cap : 16));
        int at = n++;
        for (; at > 0 && (*steps)[at - 1] > step; at--) (*steps)[at] = (*steps)[at - 1];
        (*steps)[at] = step;
    }
    if (d) closedir(d);
    return n;
}

static char *checkpoint_path(Arena *arena, const char *run_dir, int64_t step) {
    return arena_printf(arena, "%s/checkpoint-%lld", run_dir, (long long)step);
}

const char *newest_checkpoint(Arena *arena, const char *run_dir) {
    int64_t *steps;
    int n = list_checkpoints(run_dir, &steps);
    const char *path = n ? checkpoint_path(arena, run_dir, steps[n - 1]) : NULL;
    free(steps);
    return path;
}

bool has_checkpoint(const char *run_dir, int64_t step) {
    Arena *arena = arena_new();
    bool there = step > 0 && file_exists(checkpoint_path(arena, run_dir, step));
    arena_free(arena);
    return there;
}

void link_checkpoint(const char *run_dir, const char *name, int64_t step) {
    Arena *arena = arena_new();
    char *link = path_join(arena, run_dir, name), *tmp = arena_printf(arena, "%s.tmp", link);
    unlink(tmp);
    if (symlink(arena_printf(arena, "checkpoint-%lld", (long long)step), tmp) == 0 &&
        rename(tmp, link) != 0)
        unlink(tmp);
    arena_free(arena);
}

void prune_checkpoints(const char *run_dir, int64_t keep, int64_t best) {
    int64_t *steps;
    int n = list_checkpoints(run_dir, &steps);
    Arena *arena = arena_new();
    for (int i = 0; keep > 0 && i < n - keep; i++)
        if (steps[i] != best) remove_tree(checkpoint_path(arena, run_dir, steps[i]));
    arena_free(arena);
    free(steps);
}

static bool is_empty(const char *dir) {
    DIR *d = opendir(dir);
    bool empty = true;
    for (struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) empty = false;
    if (d) closedir(d);
    return empty;
}

int run_dir_open(const char *dir, bool resumes, bool overwrite, Err *err) {
    if (!is_empty(dir) && !resumes && !overwrite) {
        fail(err, EXIT_USAGE,
             "%s is not empty: --resume goes on from its newest checkpoint, --overwrite starts "
             "again",
             dir);
        return EXIT_USAGE;
    }
    Arena *arena = arena_new();
    bool used = metrics_in_use(path_join(arena, dir, "metrics.jsonl"));
    arena_free(arena);
    if (used) fail(err, EXIT_USAGE, "%s: another process is training into it", dir);
    return !used && dir_make(dir, err) ? EXIT_OK : err->code;
}

void run_dir_clear(const char *dir) {
    Arena *arena = arena_new();
    int64_t *steps;
    int n = list_checkpoints(dir, &steps);
    for (int i = 0; i < n; i++) remove_tree(checkpoint_path(arena, dir, steps[i]));
    free(steps);
    static const char *const ours[] = {"adapter",
                                       RUN_START,
                                       "model",
                                       "best",
                                       "latest",
                                       "run.json",
                                       "metrics.jsonl",
                                       "samples.jsonl",
                                       "trainer_state.json",
                                       "events.out.tfevents.*"};
    for (size_t i = 0; i < COUNT(ours); i++) {
        glob_t found;
        if (glob(path_join(arena, dir, ours[i]), 0, NULL, &found) == 0)
            for (size_t k = 0; k < found.gl_pathc; k++) remove_tree(found.gl_pathv[k]);
        globfree(&found);
    }
    arena_free(arena);
}

/* ---- checkpoints ----------------------------------------------------------------------------- */

/* What a checkpoint holds of the device's state; a plan has those that its optimizer needs. */
static const char *const flat_names[] = {"params", "m", "v", "m8", "v8", "m8.absmax", "v8.absmax"};

static bool write_flat(Exec *exec, const Plan *plan, const char *path, Err *err) {
    SafeTensor tensors[COUNT(flat_names)];
    int count = 0;
    for (size_t i = 0; i < COUNT(flat_names); i++) {
        int b = plan_buf(plan, flat_names[i]);
        if (b < 0) continue;
        const SafeType type = plan->bufs[b].dtype == DT_u8 ? SAFE_U8 : SAFE_F32;
        const int64_t n = plan->bufs[b].bytes / dtype_bytes(plan->bufs[b].dtype);
        tensors[count++] =
            (SafeTensor){.name = flat_names[i], .type = type, .rank = 1, .shape = {n}, .count = n};
    }
    static const char *const metadata[] = {"format", "pt", NULL};
    SafeWriter *w = safe_create(path, tensors, count, metadata, err);
    for (int i = 0; w && i < count; i++) {
        int64_t bytes;
        void *flat = read_flat(exec, plan, tensors[i].name, &bytes, err);
        bool ok = flat && safe_put(w, i, 0, flat, bytes, err);
        free(flat);
        if (!ok) {
            safe_abort(w);
            return false;
        }
    }
    return w && safe_commit(w, err);
}

bool hash_state(Exec *exec, const Plan *plan, Hash128 *hash, Err *err) {
    for (size_t i = 0; i < COUNT(flat_names); i++) {
        if (plan_buf(plan, flat_names[i]) < 0) continue;
        int64_t bytes;
        void *flat = read_flat(exec, plan, flat_names[i], &bytes, err);
        if (flat) *hash = hash_bytes(flat, (size_t)bytes, *hash);
        free(flat);
        if (!flat) return false;
    }
    return true;
}

/* Settings that may change between a run and its continuation. */
static bool may_differ(const char *path) {
    static const char *const free_ones[] = {
        "run.log_every",    "run.save_every",     "run.eval_every",    "run.eval_first",
        "run.keep",         "run.best",           "run.load_best",     "run.patience",
        "run.sample_every", "run.sample_prompts", "run.sample_tokens", "graph.memory",
        "graph.reserve",    "graph.prefetch",     "graph.capture",     "graph.share",
        "graph.ref_file"};
    for (size_t i = 0; i < COUNT(free_ones); i++)
        if (strcmp(path, free_ones[i]) == 0) return true;
    return false;
}

static json_t *settings_json(const Plan *plan) {
    json_t *o = json_object();
    for (int i = 0; i < plan->nsettings; i++) {
        const Setting *s = &plan->settings[i];
        json_object_set_new(o, s->path, s->str ? json_string(s->str) : json_real(s->num));
    }
    return o;
}

static bool write_json(const char *path, json_t *o, Err *err) {
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    bool ok = file_write(path, text, strlen(text), err);
    free(text);
    json_decref(o);
    return ok;
}

bool save_checkpoint(const TrainJob *job, const TrainState *state, Err *err) {
    Arena *arena = arena_new();
    char *name = arena_printf(arena, "%s/checkpoint-%lld", job->run_dir, (long long)state->step);
    char *tmp = arena_printf(arena, "%s.tmp", name);
    remove_tree(tmp);
    json_t *o = json_pack("{s:I, s:I, s:I, s:I, s:f, s:I, s:f, s:I, s:I, s:s, s:o}", "step",
                          (json_int_t)state->step, "cursor", (json_int_t)state->cursor,
                          "num_tokens", (json_int_t)state->tokens, "seed", (json_int_t)state->seed,
                          "loss_sum", state->loss_sum, "best_step", (json_int_t)state->best_step,
                          "best_metric", state->best_value, "stale_evals", (json_int_t)state->stale,
                          "ranks", (json_int_t)state->ranks, "data_hash", job->data_hash,
                          "settings", settings_json(job->plan));
    bool ok = dir_make(tmp, err) && save_trained(job->exec, job->plan, tmp, err) &&
              write_flat(job->exec, job->plan, path_join(arena, tmp, "state.safetensors"), err);
    if (ok)
        ok = write_json(path_join(arena, tmp, "trainer_state.json"), o, err);
    else
        json_decref(o);
    if (ok) {
        remove_tree(name);
        if (rename(tmp, name) != 0)
            ok = fail(err, EXIT_IO, "%s: cannot rename: %s", tmp, strerror(errno));
    } else {
        remove_tree(tmp);
    }
    arena_free(arena);
    return ok;
}

/* A setting as a person writes it (malloc); NULL: "absent". */
static char *shown(const json_t *value) {
    char text[40] = "absent";
    if (json_is_number(value)) number_text(text, json_number_value(value));
    return value && !json_is_number(value) ? json_dumps(value, JSON_ENCODE_ANY) : strdup(text);
}

/* Lists what differs between the checkpoint's settings and this run's. */
static bool same_settings(const Plan *plan, json_t *then, const char *dir, Err *err) {
    json_t *now = settings_json(plan);
    Text text = {0};
    const char *key;
    json_t *value;
    json_object_foreach(now, key, value) {
        json_t *old = json_object_get(then, key);
        if (may_differ(key) || (old && json_equal(old, value))) continue;
        char *a = shown(old);
        char *b = shown(value);
        text_add(&text, "\n  %s was %s, is %s", key, a, b);
        free(a);
        free(b);
    }
    bool same = text.len == 0;
    if (!same)
        fail(err, EXIT_INPUT,
             "%s was made with other settings:%s\n"
             "a run goes on as it began; one with other settings begins from it with --adapter DIR "
             "and another -o",
             dir, text.data);
    text_free(&text);
    json_decref(now);
    return same;
}

/* The first `n` of flat_names. */
static bool load_flat(Exec *exec, const Plan *plan, const char *path, size_t n, Err *err) {
    SafeFile *file = safe_open(path, err);
    bool ok = file != NULL;
    for (size_t i = 0; i < n && ok; i++) {
        int buf = plan_buf(plan, flat_names[i]);
        if (buf < 0) continue;
        const SafeTensor *t = safe_find(file, flat_names[i]);
        int64_t bytes = plan->bufs[buf].bytes;
        if (!t || t->bytes != bytes) {
            ok = fail(err, EXIT_IO, "%s: \"%s\" is missing or has another size", path,
                      flat_names[i]);
            break;
        }
        void *data = malloc((size_t)bytes + 1);
        ok = (data || fail(err, EXIT_MEMORY, "no host memory for %lld bytes of \"%s\"",
                           (long long)bytes, flat_names[i])) &&
             safe_read(t, 0, bytes, data, err) &&
             exec_write(exec, flat_names[i], data, (size_t)bytes, err);
        free(data);
    }
    safe_close(file);
    return ok;
}

/* No run makes as many steps, or sees as many tokens. */
#define MAX_COUNT ((json_int_t)1 << 53)

bool load_checkpoint(const TrainJob *job, const char *dir, TrainState *state, Err *err) {
    Arena *arena = arena_new();
    char *path = path_join(arena, dir, "trainer_state.json");
    json_error_t e;
    json_t *o = json_load_file(path, JSON_REJECT_DUPLICATES, &e);
    bool ok = o || (e.line < 0 ? fail(err, EXIT_IO, "%s: no checkpoint: %s", dir, e.text)
                               : fail(err, EXIT_IO, "%s:%d: %s", path, e.line, e.text));
    json_int_t step = 0, cursor = 0, tokens = 0, seed = 0, best = 0, stale = 0, ranks = 1;
    double loss_sum = 0, best_value = 0;
    const char *hash = NULL;
    json_t *settings = NULL;
    if (ok &&
        json_unpack_ex(o, &e, 0, "{s:I, s:I, s:I, s:I, s?F, s?I, s?F, s?I, s?I, s:s, s:o}", "step",
                       &step, "cursor", &cursor, "num_tokens", &tokens, "seed", &seed, "loss_sum",
                       &loss_sum, "best_step", &best, "best_metric", &best_value, "stale_evals",
                       &stale, "ranks", &ranks, "data_hash", &hash, "settings", &settings) != 0)
        ok = fail(err, EXIT_IO, "%s: %s", path, e.text);
    const json_int_t counts[] = {step, cursor, tokens, best, stale};
    for (size_t i = 0; ok && i < COUNT(counts); i++)
        if (counts[i] < 0 || counts[i] > MAX_COUNT)
            ok = fail(err, EXIT_IO, "%s: %lld is no number of steps, pairs or tokens", path,
                      (long long)counts[i]);
    ok = ok && same_settings(job->plan, settings, dir, err);
    if (ok && strcmp(hash, job->data_hash) != 0)
        ok = fail(err, EXIT_INPUT, "%s was made from other pairs (%s then, %s now)", dir, hash,
                  job->data_hash);
    if (ok && (uint64_t)seed != job->seed)
        ok = fail(err, EXIT_INPUT, "%s was made with seed %lld", dir, (long long)seed);
    path = path_join(arena, dir, "state.safetensors");
    ok = ok && load_flat(job->exec, job->plan, path, COUNT(flat_names), err);
    *state =
        (TrainState){step, cursor, tokens, job->seed, loss_sum, best, best_value, stale, ranks};
    json_decref(o);
    arena_free(arena);
    return ok;
}

bool load_trained(const TrainJob *job, int64_t step, Err *err) {
    Arena *arena = arena_new();
    const char *dir = checkpoint_path(arena, job->run_dir, step);
    const char *path = path_join(arena, dir, "state.safetensors");
    bool ok = load_flat(job->exec, job->plan, path, 1, err); /* "params" alone */
    arena_free(arena);
    return ok;
}
