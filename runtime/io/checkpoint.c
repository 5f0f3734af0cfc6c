/* checkpoint.c: model directories (checkpoint.h). */
#include "checkpoint.h"

#include <dirent.h> /* opendir */
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h> /* qsort, bsearch */
#include <string.h> /* strcmp */

struct Checkpoint {
    Arena *arena;
    const char *dir, *index; /* index: its path, NULL for a single file */
    SafeFile **shard;
    int nshards, capshards;
    const SafeTensor **tensor; /* of all shards, by name */
    int n;
    const char *warning;
};

static int by_name(const void *a, const void *b) {
    return strcmp((*(const SafeTensor *const *)a)->name, (*(const SafeTensor *const *)b)->name);
}

/* ---- what is there --------------------------------------------------------------------------- */

static const char *advice(const char *file) {
    size_t n = strlen(file);
    if (strstr(file, "pytorch_model"))
        return "convert pytorch_model.bin with transformers: "
               "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)";
    if (n > 4 && strcmp(file + n - 4, ".pth") == 0)
        return "these are Meta's own files: convert them with transformers' "
               "convert_llama_weights_to_hf.py, or take the Hugging Face files of the model";
    if (n > 5 && strcmp(file + n - 5, ".gguf") == 0)
        return "GGUF files can't be trained from: take the model's safetensors files";
    return NULL;
}

/* "no model.safetensors in DIR": with the files seen there, and what to do about them. */
static void explain_absence(Arena *arena, const char *dir, const char *stem, Err *err) {
    DIR *d = opendir(dir);
    if (!d) {
        fail(err, EXIT_IO, "%s: no such directory", dir);
        return;
    }
    const char *seen = "", *help = NULL;
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        if (n++ < 12) seen = arena_printf(arena, "%s%s%s", seen, *seen ? ", " : "", e->d_name);
        if (!help) help = advice(arena_str(arena, e->d_name));
        if (!help && strcmp(e->d_name, "original") == 0)
            help = "only Meta's original/ files seem to be there: get the *.safetensors files too";
    }
    closedir(d);
    fail(err, EXIT_IO,
         "%s: neither %s.safetensors nor %s.safetensors.index.json is there; seen: "
         "%s%s%s%s",
         dir, stem, stem, n ? seen : "nothing", n > 12 ? ", ..." : "", help ? "; help: " : "",
         help ? help : "");
}

/* ---- opening --------------------------------------------------------------------------------- */

static SafeFile *open_shard(Checkpoint *c, const char *name, Err *err) {
    const char *path = path_join(c->arena, c->dir, name);
    for (int i = 0; i < c->nshards; i++)
        if (strcmp(safe_path(c->shard[i]), path) == 0) return c->shard[i];
    SafeFile *f = safe_open(path, err);
    if (f) PUSH(c->arena, c->shard, c->nshards, c->capshards, f);
    return f;
}

/* Opens the shards the index names; every tensor it lists must be where it says. */
static bool open_index(Checkpoint *c, const json_t *root, Err *err) {
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map))
        return fail(err, EXIT_IO, "%s: \"weight_map\" is not an object", c->index);
    const char *name;
    json_t *file;
    json_object_foreach(map, name, file) {
        const char *f = json_string_value(file);
        if (!f || !*f || strchr(f, '/') || strcmp(f, "..") == 0)
            return fail(err, EXIT_IO, "%s: \"weight_map\": the entry of \"%s\" is not a file name",
                        c->index, name);
        SafeFile *shard = open_shard(c, f, err);
        if (!shard) return false;
        if (!safe_find(shard, name))
            return fail(err, EXIT_IO, "%s: tensor \"%s\" is not in %s, where %s says it is", c->dir,
                        name, f, c->index);
    }
    return true;
}

/* One table of all tensors, by name. */
static bool collect(Checkpoint *c, const json_t *map, Err *err) {
    int all = 0, unlisted = 0;
    for (int i = 0; i < c->nshards; i++) all += safe_count(c->shard[i]);
    c->tensor = NEW_ARRAY(c->arena, const SafeTensor *, all + 1);
    for (int i = 0; i < c->nshards; i++)
        for (int k = 0; k < safe_count(c->shard[i]); k++) {
            const SafeTensor *t = safe_tensor(c->shard[i], k);
            const char *file = json_string_value(json_object_get(map, t->name));
            if (map && !file) unlisted++;
            /* a tensor another shard owns by the index */
            if (file && strcmp(path_join(c->arena, c->dir, file), safe_path(c->shard[i])) != 0)
                continue;
            c->tensor[c->n++] = t;
        }
    qsort(c->tensor, (size_t)c->n, sizeof *c->tensor, by_name);
    for (int i = 1; i < c->n; i++)
        if (strcmp(c->tensor[i]->name, c->tensor[i - 1]->name) == 0)
            return fail(err, EXIT_IO, "%s: tensor \"%s\" is in two shards and the index names none",
                        c->dir, c->tensor[i]->name);
    if (unlisted)
        c->warning = arena_printf(c->arena, "%s: the shards hold %d tensors that the index lacks",
                                  c->index, unlisted);
    return true;
}

static bool open_sharded(Checkpoint *c, Err *err) {
    size_t len;
    char *text = file_read(c->index, &len, err);
    if (!text) return false;
    json_error_t e;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    free(text);
    bool ok = root
                  ? open_index(c, root, err) && collect(c, json_object_get(root, "weight_map"), err)
                  : fail(err, EXIT_IO, "%s:%d: %s", c->index, e.line, e.text);
    json_decref(root);
    return ok;
}

Checkpoint *checkpoint_open(const char *dir, const char *stem, Err *err) {
    Arena *arena = arena_new();
    Checkpoint *c = NEW(arena, Checkpoint);
    *c = (Checkpoint){.arena = arena, .dir = arena_str(arena, dir)};
    char *single = path_join(arena, dir, arena_printf(arena, "%s.safetensors", stem));
    char *index = path_join(arena, dir, arena_printf(arena, "%s.safetensors.index.json", stem));
    bool ok = false;
    if (file_exists(single)) {
        ok = open_shard(c, arena_printf(arena, "%s.safetensors", stem), err) &&
             collect(c, NULL, err);
    } else if (file_exists(index)) {
        c->index = index;
        ok = open_sharded(c, err);
    } else {
        explain_absence(arena, dir, stem, err);
    }
    if (ok) return c;
    checkpoint_close(c);
    return NULL;
}

void checkpoint_close(Checkpoint *c) {
    if (!c) return;
    for (int i = 0; i < c->nshards; i++) safe_close(c->shard[i]);
    arena_free(c->arena);
}

/* ---- looking things up ----------------------------------------------------------------------- */

const char *checkpoint_dir(const Checkpoint *c) {
    return c->dir;
}

static const SafeTensor *find(const Checkpoint *c, const char *name) {
    const SafeTensor key = {.name = name}, *pkey = &key;
    const SafeTensor **hit = bsearch(&pkey, c->tensor, (size_t)c->n, sizeof *c->tensor, by_name);
    return hit ? *hit : NULL;
}

const SafeTensor *checkpoint_find(const Checkpoint *c, const char *name, const char *alias) {
    const SafeTensor *t = find(c, name);
    return t || !alias ? t : find(c, alias);
}

bool checkpoint_missing(const Checkpoint *c, const char *name, Err *err) {
    const char **names = malloc(sizeof *names * (size_t)(c->n + 1));
    const char *close = NULL;
    for (int i = 0; names && i < c->n; i++) names[i] = c->tensor[i]->name;
    if (names) close = closest_name(name, names, c->n);
    fail(err, EXIT_INPUT, "%s: there is no tensor \"%s\" among its %d in %d file%s%s%s%s", c->dir,
         name, c->n, c->nshards, c->nshards == 1 ? "" : "s", close ? "; the closest is \"" : "",
         close ? close : "", close ? "\"" : "");
    free(names);
    return false;
}

bool checkpoint_hash(const Checkpoint *c, Hash128 *hash, Err *err) {
    enum { SAMPLE = 4096 };
    for (int i = 0; i < c->n; i++) {
        const SafeTensor *t = c->tensor[i];
        *hash = hash_bytes(t->name, strlen(t->name) + 1, *hash);
        *hash = hash_bytes(&t->type, sizeof t->type, *hash);
        *hash = hash_bytes(t->shape, sizeof *t->shape * (size_t)t->rank, *hash);
        for (int k = 0; k < 3; k++) {
            char data[SAMPLE];
            int64_t n = t->bytes < SAMPLE ? t->bytes : SAMPLE, begin = (t->bytes - n) * k / 2;
            if (!safe_read(t, begin, n, data, err)) return false;
            *hash = hash_bytes(data, (size_t)n, *hash);
        }
    }
    return true;
}

int checkpoint_count(const Checkpoint *c) {
    return c->n;
}

const SafeTensor *checkpoint_tensor(const Checkpoint *c, int i) {
    return c->tensor[i];
}

const char *checkpoint_warning(const Checkpoint *c) {
    return c->warning;
}
