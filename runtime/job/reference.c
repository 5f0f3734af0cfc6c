/* reference.c: see reference.h. */
#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../io/safetensors.h"

#define FORMAT "dpoc reference 1"
enum { AT_ONCE = 64 }; /* pairs packed together, and between two looks at signals */

typedef struct Known { /* one pair's log-probs */
    uint64_t pair;     /* pair_key */
    float logp[2];
} Known;

typedef struct Table { /* sorted by hash */
    Known *v;
    int64_t n;
} Table;

static int by_hash(const void *a, const void *b) {
    const uint64_t x = ((const Known *)a)->pair, y = ((const Known *)b)->pair;
    return x < y ? -1 : x > y;
}

static const Known *find(const Table *t, uint64_t pair) {
    const Known key = {.pair = pair};
    return t->n ? bsearch(&key, t->v, (size_t)t->n, sizeof key, by_hash) : NULL;
}

/* ---- the file -------------------------------------------------------------------------------- */

static bool same_keys(const SafeFile *f, const ReferenceFile *file, Err *err) {
    Text text = {0};
    for (int i = 0; i < REFERENCE_KEYS; i++) {
        const char *then = safe_metadata(f, file->key[i]);
        if (!then || strcmp(then, file->value[i]) != 0)
            text_add(&text, "\n  %s was %s, is %s", file->key[i], then ? then : "absent",
                     file->value[i]);
    }
    bool same = text.len == 0;
    if (!same)
        fail(err, EXIT_INPUT, "%s holds log-probs of another reference:%s\nhelp: name another file",
             file->path, text.data);
    text_free(&text);
    return same;
}

static bool read_table(Arena *arena, const ReferenceFile *file, Table *out, Err *err) {
    SafeFile *f = safe_open(file->path, err);
    if (!f) return false;
    const char *format = safe_metadata(f, "format");
    const SafeTensor *pairs = safe_find(f, "pairs"), *logps = safe_find(f, "logps");
    bool ok = format && !strcmp(format, FORMAT) && pairs && logps && pairs->type == SAFE_I64 &&
              logps->type == SAFE_F32 && pairs->rank == 1 && logps->rank == 2 &&
              logps->shape[1] == 2 && logps->shape[0] == pairs->shape[0];
    if (!ok) fail(err, EXIT_IO, "%s: this is no file of reference log-probs", file->path);
    ok = ok && same_keys(f, file, err);
    int64_t n = ok ? pairs->shape[0] : 0;
    uint64_t *hash = NEW_ARRAY(arena, uint64_t, n + 1);
    float *logp = NEW_ARRAY(arena, float, 2 * n + 1);
    ok = ok && safe_read(pairs, 0, pairs->bytes, hash, err) &&
         safe_read(logps, 0, logps->bytes, logp, err);
    out->v = NEW_ARRAY(arena, Known, n + 1);
    for (int64_t i = 0; ok && i < 2 * n; i++)
        if (!isfinite(logp[i]))
            ok = fail(err, EXIT_IO, "%s: a log-probability is not a number", file->path);
    for (int64_t i = 0; ok && i < n; i++)
        out->v[out->n++] = (Known){hash[i], {logp[2 * i], logp[2 * i + 1]}};
    qsort(out->v, (size_t)out->n, sizeof *out->v, by_hash);
    safe_close(f);
    return ok;
}

static bool write_table(Arena *arena, const ReferenceFile *file, const Table *t, Err *err) {
    const SafeTensor tensors[] = {
        {.name = "pairs", .type = SAFE_I64, .rank = 1, .shape = {t->n}, .count = t->n},
        {.name = "logps", .type = SAFE_F32, .rank = 2, .shape = {t->n, 2}, .count = 2 * t->n}};
    const char *metadata[2 * REFERENCE_KEYS + 3] = {"format", FORMAT};
    for (int i = 0; i < REFERENCE_KEYS; i++) {
        metadata[2 * i + 2] = file->key[i];
        metadata[2 * i + 3] = file->value[i];
    }
    uint64_t *hash = NEW_ARRAY(arena, uint64_t, t->n + 1);
    float *logp = NEW_ARRAY(arena, float, 2 * t->n + 1);
    for (int64_t i = 0; i < t->n; i++) {
        hash[i] = t->v[i].pair;
        memcpy(&logp[2 * i], t->v[i].logp, sizeof t->v[i].logp);
    }
    SafeWriter *w = safe_create(file->path, tensors, COUNT(tensors), metadata, err);
    if (!w) return false;
    if (safe_put(w, 0, 0, hash, t->n * (int64_t)sizeof *hash, err) &&
        safe_put(w, 1, 0, logp, t->n * (int64_t)(2 * sizeof *logp), err))
        return safe_commit(w, err);
    safe_abort(w);
    return false;
}

/* ---- computing what is not known ------------------------------------------------------------- */

/* Pairs which[0..n), whose log-probs go to `out`, two a pair. */
static bool score(Exec *exec, const Plan *plan, const Pairs *pairs, const int32_t *which, int n,
                  float *out, Err *err) {
    Arena *arena = arena_new();
    PackItem *items = NEW_ARRAY(arena, PackItem, n);
    for (int i = 0; i < n; i++) items[i] = (PackItem){which[i], i, 0};
    PackOptions options = pack_options_of(plan, plan_num(plan, "graph.prefix") != 0, false);
    Pack *pack = pack_step(arena, &options, pairs, items, n);
    static const char *const names[] = {"ref_logp_chosen", "ref_logp_rejected"};
    bool ok = true;
    for (int m = 0; ok && m < pack->nmicro; m++) {
        const Micro *micro = &pack->micro[m];
        int64_t count = micro->extent[X_P];
        float *value = NEW_ARRAY(arena, float, count);
        ok = run_micro(exec, plan, "ref", micro, err);
        for (int side = 0; ok && side < 2; side++) {
            ok = exec_read(exec, names[side], value, sizeof *value * (size_t)count, err);
            for (int64_t p = 0; ok && p < count; p++) out[2 * micro->item[p] + side] = value[p];
        }
    }
    for (int i = 0; ok && i < n; i++)
        if (!isfinite(out[2 * i]) || !isfinite(out[2 * i + 1]))
            ok = fail(err, EXIT_NUMERIC, "%s: the reference's log-probability is not a number",
                      pair_where(arena, pairs, &pairs->pair[which[i]]));
    arena_free(arena);
    return ok;
}

/* Adds the columns; missing pairs stand in `which`. */
static int64_t fill(Pairs *pairs, const Table *known, int32_t *which) {
    int n = pairs->ncolumns;
    const char **names = NEW_ARRAY(pairs->arena, const char *, n + 2);
    float *column = NEW_ARRAY(pairs->arena, float, pairs->n *(n + 2));
    for (int i = 0; i < n; i++) names[i] = pairs->columns[i];
    names[n] = "ref_logp_chosen";
    names[n + 1] = "ref_logp_rejected";
    int64_t missing = 0;
    for (int64_t i = 0; i < pairs->n; i++) {
        float *row = &column[i * (n + 2)];
        if (n) memcpy(row, &pairs->column[i * n], sizeof *row * (size_t)n);
        const Known *k = find(known, pair_key(&pairs->pair[i]));
        if (k)
            memcpy(row + n, k->logp, sizeof k->logp);
        else
            which[missing++] = (int32_t)i;
    }
    pairs->columns = names;
    pairs->column = column;
    pairs->ncolumns = n + 2;
    return missing;
}

static bool compute(Exec *exec, const Plan *plan, Pairs *pairs, const int32_t *which, int64_t n,
                    Table *table, ReferenceWatch *watch, Err *err) {
    for (int64_t i = 0; i < n; i += AT_ONCE) {
        if (stop_signal())
            return fail(err, 128 + stop_signal(),
                        "stopped; the reference's log-probs of %lld of %lld pairs are kept",
                        (long long)i, (long long)n);
        float logp[2 * AT_ONCE];
        int now = n - i < AT_ONCE ? (int)(n - i) : AT_ONCE;
        if (!score(exec, plan, pairs, which + i, now, logp, err)) return false;
        for (int k = 0; k < now; k++) {
            const int64_t at = which[i + k];
            float *row = &pairs->column[(at + 1) * pairs->ncolumns - 2];
            memcpy(row, &logp[2 * k], 2 * sizeof *row);
            table->v[table->n++] = (Known){pair_key(&pairs->pair[at]), {row[0], row[1]}};
        }
        if (watch) watch->scored(watch, i + now, n);
    }
    return true;
}

bool reference_logps(Exec *exec, const Plan *plan, Pairs *pairs, const ReferenceFile *file,
                     ReferenceWatch *watch, ReferenceCounts *counts, Err *err) {
    if (!plan_program(plan, "ref")) return true;
    Arena *arena = arena_new();
    Table old = {0};
    bool ok = !file || !file_exists(file->path) || read_table(arena, file, &old, err);
    int32_t *which = NEW_ARRAY(arena, int32_t, pairs->n + 1);
    int64_t missing = ok ? fill(pairs, &old, which) : 0;
    Table all = {NEW_ARRAY(arena, Known, old.n + missing + 1), old.n};
    if (old.n) memcpy(all.v, old.v, sizeof *old.v * (size_t)old.n);
    ok = ok && write_setting_inputs(exec, plan, err) && write_seed(exec, plan, 0, 0, err) &&
         compute(exec, plan, pairs, which, missing, &all, watch, err);
    Err second = {0};
    bool stopped = !ok && err->code > 128;
    if (file && (ok || stopped) && all.n > old.n &&
        !write_table(arena, file, &all, ok ? err : &second))
        ok = false;
    if (counts) *counts = (ReferenceCounts){pairs->n - missing, missing};
    arena_free(arena);
    return ok;
}
