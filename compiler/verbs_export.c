/* verbs_export.c: `export`: what was trained, for other tools: an adapter for PEFT, a merged model,
 * an adapter for llama.cpp.
 *
 * RUN is a run's directory, or one that PEFT wrote (then --model names the base).  Everything is
 * written to OUT.part, which gets its name when it is complete and checked.
 */
#include "export.h"

#include "../runtime/io/gguf.h"
#include "../runtime/io/model_files.h"
#include "../runtime/job/job.h"
#include "../runtime/job/progress.h"

#include <errno.h>
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
        const char *equal = strchr(all.item[i], '=');
        struct stat st;
        if (stat(equal ? equal + 1 : all.item[i], &st) == 0)
            e->as_run.adapter.item[e->as_run.adapter.n++] = all.item[i];
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

static bool find_run(Export *e) {
    const char *run = e->options->args.item[0];
    if (file_exists(path_join(e->arena, run, "run.json"))) {
        const char *place = read_run(e, run) ? state_of_run(e, run) : NULL;
        if (!place) return false;
        const char *adapter = path_join(e->arena, place, "adapter");
        const char *model = path_join(e->arena, place, "model");
        if (file_exists(path_join(e->arena, adapter, "adapter_config.json"))) e->adapter = adapter;
        if (file_exists(path_join(e->arena, model, "model.safetensors"))) e->trained = model;
        return e->adapter || e->trained ||
               fail(&e->err, EXIT_IO,
                    "%s: neither adapter/ nor model/ is there: nothing was "
                    "trained, or the run did not finish",
                    place);
    }
    const char *dir = adapter_dir(e->arena, run, NULL);
    if (!file_exists(path_join(e->arena, dir, "adapter_config.json")))
        return fail(&e->err, EXIT_IO,
                    "%s: neither run.json nor adapter_config.json is there: "
                    "give a run's directory, or a PEFT adapter with --model",
                    run);
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
    const char *sets[] = {"run.tokens=1024", set}; /* enough for the check's answers */
    for (int i = 0; i < 2; i++)
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
static int name_trained(Export *e) {
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

/* ---- formats --------------------------------------------------------------------------------- */

static bool export_peft(Export *e) {
    Adapter *a = adapter_read(e->arena, e->adapter, &e->err);
    Checkpoint *c = a ? checkpoint_open(e->adapter, "adapter_model", &e->err) : NULL;
    if (!c) return false;
    if (e->as_run.model) a->base = e->as_run.model;
    AdapterTensor *t = NEW_ARRAY(e->arena, AdapterTensor, checkpoint_count(c));
    int n = 0;
    bool ok = true;
    for (int i = 0; ok && i < a->ntargets; i++)
        for (int p = 0; ok && p < NADAPTERPART; p++) {
            const SafeTensor *s = adapter_tensor(a, c, a->targets[i], (AdapterPart)p);
            if (!s) continue;
            float *x = NEW_ARRAY(e->arena, float, s->count);
            t[n++] = (AdapterTensor){.name = s->name + strlen(ADAPTER_PREFIX),
                                     .rank = s->rank,
                                     .rows = s->rank == 1 ? 1 : s->shape[0],
                                     .cols = s->shape[s->rank - 1],
                                     .data = x};
            ok = safe_read_f32(s, 0, s->count, x, &e->err);
        }
    ok = ok && adapter_write(e->part, a, t, n, e->dtype, NULL, &e->err);
    checkpoint_close(c);
    return ok;
}

static void print_count(const char *what, const MergeCount *c, const char *why) {
    if (!c->elements) return;
    fprintf(stderr, "%s: %lld values in %d tensors %s:", what, (long long)c->elements, c->tensors,
            why);
    for (int i = 0; i < c->tensors && i < MERGE_NAMED; i++) fprintf(stderr, " %s", c->tensor[i]);
    fprintf(stderr, "%s\n", c->tensors > MERGE_NAMED ? " .." : "");
}

static void print_report(const Export *e, const MergeReport *r) {
    static const char *const names[NDTYPE] = {
        [DT_f32] = "fp32", [DT_bf16] = "bf16", [DT_f16] = "fp16"};
    char bytes[32];
    format_bytes(bytes, (double)r->bytes);
    fprintf(stderr, "merged: %d of %d tensors changed by the adapter; %s in %d file%s, %s\n",
            r->adapted, r->tensors, bytes, r->files, r->files == 1 ? "" : "s", names[e->dtype]);
    if (r->untied)
        fprintf(stderr, "note: embedding and output are two weights now (tie_word_embeddings is "
                        "false): the adapter changes one of them\n");
    if (r->rms == 0)
        fprintf(stderr, "rounding: none, every value is exact\n");
    else if (r->worst.tensor)
        fprintf(stderr,
                "rounding: %.2e of the weights (root mean square); worst %s: %.2e, at most %.2e of "
                "a value\n",
                r->rms, r->worst.tensor, r->worst.rms, r->worst.largest);
    if (isfinite(r->change))
        fprintf(stderr, "rounding: what the adapters changed is %.3g times what rounding did%s\n",
                r->change, r->change < 4 ? "; --dtype=fp32 would keep it" : "");
    print_count("warning: overflow", &r->overflow,
                "lie beyond the type and were cut to its largest");
    print_count("underflow", &r->underflow, "were rounded to zero");
}

static int merge_now(Export *e, Work *w, MergeReport *report) {
    int n;
    const char *const *adapters = spec_policy_adapters(w->spec, &n);
    LoadProgress progress = progress_load();
    progress.what = "merging";
    MergeJob job = {.base = work_model_dir(w),
                    .trained = e->trained,
                    .adapter = adapters,
                    .nadapter = n,
                    .plan = w->plan,
                    .original = e->options->base && !strcmp(e->options->base, "original"),
                    .dtype = e->dtype,
                    .out = e->part,
                    .shard_bytes = 5000000000,
                    .watch = e->options->quiet ? NULL : &progress.watch};
    if (!job.base) return work_usage("name the base with --model DIR");
    for (int i = 0; i < n; i++)
        if (!adapters[i]) return work_usage("an adapter of the policy has no directory");
    if (!merge_write(&job, e->arena, report, &e->err) ||
        !model_files_copy(job.base, e->part, e->dtype, report->untied, &e->err))
        return export_fail(e);
    if (!e->options->quiet) print_report(e, report);
    return EXIT_OK;
}

static int export_merged(Export *e) {
    static const bool want[NUNIT] = {[UNIT_EVAL] = true};
    MergeReport report;
    Work w;
    int code = name_trained(e);
    if (code != EXIT_OK) return code;
    code = export_work(e, &w, NULL, "graph.compute=fp32");
    if (code == EXIT_OK && !e->options->no_check) code = work_device(&w, NULL);
    if (code == EXIT_OK) code = work_compile(&w, NULL, want);
    if (code == EXIT_OK) code = merge_now(e, &w, &report);
    if (code == EXIT_OK && !e->options->no_check) code = export_check(e, &w, &report);
    work_close(&w);
    return code;
}

static bool export_gguf(Export *e) {
    const char *base = e->as_run.model;
    return (base || fail(&e->err, EXIT_USAGE,
                         "name the base with --model DIR: its config.json "
                         "says how rows are ordered")) &&
           gguf_lora_write(e->adapter, base, path_join(e->arena, e->part, "adapter.gguf"), e->dtype,
                           &e->err);
}

/* ---- the verb -------------------------------------------------------------------------------- */

typedef struct Format {
    const char *name;
    DType dtype; /* default */
} Format;
static const Format formats[] = {{"peft", DT_f32}, {"merged", DT_bf16}, {"gguf-lora", DT_f32}};

static int format_of(const Options *o) {
    for (int i = 0; o->format && i < (int)COUNT(formats); i++)
        if (!strcmp(o->format, formats[i].name)) return i;
    return -1;
}

static bool dtype_of(const Options *o, DType *out) {
    static const char *const names[] = {"fp32", "bf16", "fp16"};
    static const DType types[] = {DT_f32, DT_bf16, DT_f16};
    for (size_t i = 0; o->dtype && i < COUNT(names); i++)
        if (!strcmp(o->dtype, names[i])) return *out = types[i], true;
    return !o->dtype;
}

static int check_flags(const Options *o) {
    DType any;
    if (o->args.n == 0) return work_usage("name the run: export RUN --format=merged -o OUT");
    if (format_of(o) < 0) return work_usage("--format is peft, merged or gguf-lora");
    if (!o->out) return work_usage("export needs -o OUT");
    if (!dtype_of(o, &any)) return work_usage("--dtype is bf16, fp16 or fp32");
    if (o->base && strcmp(o->base, "dequantized") != 0 && strcmp(o->base, "original") != 0)
        return work_usage("--base is dequantized or original");
    return EXIT_OK;
}

/* Puts the result under its name; a directory in use only with --overwrite. */
static bool finish(Export *e, bool is_file) {
    const char *out = e->options->out;
    const char *from = is_file ? path_join(e->arena, e->part, "adapter.gguf") : e->part;
    remove(path_join(e->arena, e->part, "export.dpo"));
    if (!is_file && e->options->overwrite) remove_tree(out);
    if (rename(from, out) != 0)
        return fail(&e->err, EXIT_IO, "%s: cannot be renamed to %s: %s", from, out,
                    strerror(errno));
    if (is_file) remove_tree(e->part);
    return true;
}

int verb_export(const Options *o) {
    int code = check_flags(o);
    if (code != EXIT_OK) return code;
    int format = format_of(o);
    bool gguf = format == 2;
    Export e = {.options = o, .arena = arena_new(), .dtype = formats[format].dtype};
    dtype_of(o, &e.dtype);
    e.part = arena_printf(e.arena, "%s.part", o->out);
    struct stat st;
    if (stat(o->out, &st) == 0 && !o->overwrite && !(S_ISDIR(st.st_mode) && remove(o->out) == 0))
        code = (fail(&e.err, EXIT_USAGE, "%s is there already: --overwrite replaces it", o->out),
                export_fail(&e));
    if (code == EXIT_OK) {
        remove_tree(e.part);
        if (!dir_make(e.part, &e.err) || !find_run(&e)) code = export_fail(&e);
    }
    if (code == EXIT_OK && format != 1 && !e.adapter)
        code = work_usage("the run trained the base itself: --format=merged");
    if (code == EXIT_OK && format == 1) code = export_merged(&e);
    if (code == EXIT_OK && format != 1 && !(gguf ? export_gguf(&e) : export_peft(&e)))
        code = export_fail(&e);
    if (code == EXIT_OK && !finish(&e, gguf)) code = export_fail(&e);
    if (code == EXIT_OK && !o->quiet) fprintf(stderr, "written: %s\n", o->out);
    if (code != EXIT_OK && code != EXIT_NUMERIC) remove_tree(e.part);
    arena_free(e.arena);
    return code;
}
