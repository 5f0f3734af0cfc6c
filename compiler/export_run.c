/* export_run.c: which run it is, and its model read again as the run had it (export.h).
 *
 * run.json keeps the command: the file, the settings and adapters of the command line.  What was
 * trained is handed back as --adapter.  A directory that PEFT wrote gets a small program of its
 * own.
 */
#include "export.h"

#include "../runtime/job/job.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int export_fail(Export *e) {
    fprintf(stderr, "dpoc: error: %s\n", e->err.text);
    return e->err.code ? e->err.code : EXIT_BUG;
}

/* ---- which run ------------------------------------------------------------------------------- */

static const char *text_at(Arena *arena, const json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    return s ? arena_str(arena, s) : NULL;
}

/* Appends the texts of a JSON list to a list of flags. */
static void add_flags(Export *e, const json_t *list, OptionList *out) {
    for (size_t i = 0; i < json_array_size(list) && out->n < MAX_LIST; i++) {
        const char *s = json_string_value(json_array_get(list, i));
        if (s) out->item[out->n++] = arena_str(e->arena, s);
    }
}

/* The adapters it was given; one to start from may be gone by now. */
static void add_adapters(Export *e, const json_t *list) {
    OptionList all = {.n = 0};
    add_flags(e, list, &all);
    for (int i = 0; i < all.n && e->as_run.adapter.n < MAX_LIST; i++) {
        const char *dir = adapter_option_dir(all.item[i]);
        if (file_exists(dir))
            e->as_run.adapter.item[e->as_run.adapter.n++] = all.item[i];
        else
            fprintf(stderr, "warning: %s, which the run was given, is gone\n", dir);
    }
}

/* The .dpo file as the run had it: where it was, if it still says the same, else the run's copy. */
static const char *spec_of_run(Export *e, const char *run, const char *path) {
    const char *copy = path_join(e->arena, run, "model.dpo");
    Err ignored = {0};
    size_t n, m;
    char *now = path && file_exists(path) ? file_read(path, &n, &ignored) : NULL;
    char *then = file_exists(copy) ? file_read(copy, &m, &ignored) : NULL;
    bool same = !now || !then || (n == m && memcmp(now, then, n) == 0);
    bool there = now || !then; /* a built-in file is no file */
    free(now);
    free(then);
    return path && same && there ? path : copy;
}

/* What run.json says of the command, overridden by this one's flags. */
static bool read_run(Export *e, const char *run) {
    const Options *o = e->options;
    const char *path = path_join(e->arena, run, "run.json");
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root) return fail(&e->err, EXIT_IO, "%s:%d: %s", path, error.line, error.text);
    const json_t *command = json_object_get(root, "command");
    const char *spec = text_at(e->arena, command, "spec");
    if (!command || !spec) {
        json_decref(root);
        return fail(&e->err, EXIT_IO,
                    "%s: there is no \"command\": the run was made by an older "
                    "version; export its adapter: %s/adapter --model DIR",
                    path, run);
    }
    e->as_run = *o;
    e->as_run.set.n = 0;
    add_flags(e, json_object_get(command, "set"), &e->as_run.set);
    add_adapters(e, json_object_get(command, "adapter"));
    e->from_run = true;
    for (int i = 0; i < o->set.n && e->as_run.set.n < MAX_LIST; i++)
        e->as_run.set.item[e->as_run.set.n++] = o->set.item[i];
    if (!o->model) e->as_run.model = text_at(e->arena, command, "model");
    if (!o->variant) e->as_run.variant = text_at(e->arena, command, "variant");
    e->spec = o->spec ? o->spec : spec_of_run(e, run, spec);
    json_decref(root);
    return true;
}

/* The run's end, or one of its checkpoints. */
static const char *state_of_run(Export *e, const char *run) {
    if (isnan(e->options->checkpoint)) return run;
    const char *dir =
        arena_printf(e->arena, "%s/checkpoint-%lld", run, (long long)e->options->checkpoint);
    struct stat st;
    if (stat(dir, &st) == 0) return dir;
    const char *newest = newest_checkpoint(e->arena, run);
    fail(&e->err, EXIT_USAGE, "there is no %s%s%s", dir, newest ? "; the newest is " : "",
         newest ? newest : "");
    return NULL;
}

/* The run that a directory is, or that it is a checkpoint of; NULL. */
static const char *run_of(Export *e, const char *dir) {
    char *real = realpath(dir, NULL);
    const char *parent = arena_printf(e->arena, "%s/..", real ? real : dir);
    free(real);
    if (file_exists(path_join(e->arena, dir, "run.json"))) return dir;
    return file_exists(path_join(e->arena, parent, "run.json")) ? parent : NULL;
}

/* What was trained, as a run left it in a directory. */
static bool find_trained(Export *e, const char *place, const char *run) {
    const char *adapter = path_join(e->arena, place, "adapter");
    const char *model = path_join(e->arena, place, "model");
    if (file_exists(path_join(e->arena, adapter, "adapter_config.json"))) e->adapter = adapter;
    if (file_exists(path_join(e->arena, model, "model.safetensors"))) e->trained = model;
    if (e->adapter || e->trained) return true;
    const char *newest = newest_checkpoint(e->arena, run);
    return fail(&e->err, EXIT_IO, "%s: neither adapter/ nor model/ is there: %s%s", place,
                newest ? "the run did not finish; its newest state is " : "the run saved nothing",
                newest ? newest : "");
}

/* A PEFT directory over --model: a program that loads it. */
static bool describe_adapter(Export *e, const char *dir) {
    const char *use = e->options->spec ? e->options->spec : NULL;
    e->as_run = *e->options;
    e->again = true; /* the program is ours */
    e->adapter = dir;
    char *real = use ? realpath(use, NULL) : NULL;
    const char *text = arena_printf(e->arena,
                                    "%s%s%suse \"objectives/dpo.dpo\"\nbase = auto\n"
                                    "adapter trained = load \"%s\"\n"
                                    "policy = base + trained\nreference = base\n",
                                    use ? "use \"" : "",
                                    real  ? real
                                    : use ? use
                                          : "",
                                    use ? "\"\n" : "", dir);
    free(real);
    e->spec = path_join(e->arena, e->part, "export.dpo");
    return file_write(e->spec, text, strlen(text), &e->err);
}

bool export_find(Export *e) {
    const char *given = e->options->args.item[0], *run = run_of(e, given);
    if (run && !read_run(e, run)) return false;
    if (run) {
        const char *place = file_exists(path_join(e->arena, given, "run.json"))
                                ? state_of_run(e, given)
                                : given; /* RUN/checkpoint-N, RUN/best */
        const char *adapter = path_join(e->arena, given, "adapter_config.json");
        if (file_exists(adapter)) return e->adapter = given, true; /* RUN/adapter */
        return place && find_trained(e, place, run);
    }
    const char *dir = adapter_dir(e->arena, given, NULL);
    if (!file_exists(path_join(e->arena, dir, "adapter_config.json")))
        return fail(&e->err, EXIT_IO,
                    "%s: neither run.json nor adapter_config.json is there: "
                    "give a run's directory, or a PEFT adapter with --model",
                    given);
    char *real = realpath(dir, NULL);
    const char *full = arena_str(e->arena, real ? real : dir);
    free(real);
    return describe_adapter(e, full);
}

/* ---- the model it is about ------------------------------------------------------------------- */

int export_work(Export *e, Work *w, const char *bare, const char *set) {
    Options *o = NEW(e->arena, Options);
    *o = e->as_run;
    o->quiet = true;
    /* what is merged into is what the check must score: the numbers of the file, not the 4 bits */
    bool original = e->options->base && !strcmp(e->options->base, "original");
    const char *sets[] = {"run.tokens=1024", /* enough for the check's answers */
                          original ? "graph.quant=off" : NULL, set};
    for (size_t i = 0; i < COUNT(sets); i++)
        if (sets[i] && o->set.n < MAX_LIST) o->set.item[o->set.n++] = sets[i];
    if (bare) {
        o->model = bare;
        o->adapter.n = 0;
    }
    work_init(w, o);
    w->bare = bare != NULL;
    w->again = e->again;
    return work_check(w, e->spec, false);
}

/* Names what was trained as --adapter NAME=DIR: the first one's directory is RUN/adapter, others
 * are inside it, under their names. */
int export_name_trained(Export *e) {
    Work w;
    int n = 0, code = e->from_run ? export_work(e, &w, NULL, NULL) : EXIT_OK;
    if (!e->from_run) return EXIT_OK;
    const AdapterSpec *a = code == EXIT_OK ? spec_adapters(w.spec, &n) : NULL;
    OptionList *list = &e->as_run.adapter;
    bool first = true;
    for (int i = 0; i < n && e->adapter && list->n < MAX_LIST; i++) {
        if (!a[i].trained) continue;
        const char *dir = first ? e->adapter : path_join(e->arena, e->adapter, a[i].name);
        list->item[list->n++] = arena_printf(e->arena, "%s=%s", a[i].name, dir);
        first = false;
    }
    work_close(&w);
    e->again = true;
    return code;
}
