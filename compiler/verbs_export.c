/* verbs_export.c: `export`: what was trained, for other tools: an adapter for PEFT, a merged model,
 * an adapter for llama.cpp.
 *
 * RUN is a run's directory, or one that PEFT wrote (then --model names the base).  Everything is
 * written to OUT.part, which gets its name when it is complete and checked.
 */
#include "export.h"

#include "../runtime/io/gguf.h"
#include "../runtime/io/model_files.h"
#include "../runtime/job/progress.h"

#include <errno.h>
#include <glob.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
    int code = export_name_trained(e);
    if (code != EXIT_OK) return code;
    code = export_work(e, &w, NULL, "graph.compute=fp32");
    if (code == EXIT_OK && !e->options->no_check) code = work_device(&w, NULL);
    if (code == EXIT_OK) code = work_compile(&w, NULL, want);
    if (code == EXIT_OK) code = merge_now(e, &w, &report);
    if (code == EXIT_OK && !e->options->no_check) code = export_check(e, &w, &report);
    work_close(&w);
    return code;
}

/* A run of several adapters has the others inside the first one's directory. */
static void note_others(const Export *e) {
    glob_t found;
    const char *pattern = path_join(e->arena, e->adapter, "*/adapter_config.json");
    if (glob(pattern, 0, NULL, &found) == 0)
        fprintf(stderr,
                "note: the run trained more than this adapter; export them one by one, or "
                "all with --format=merged: %s\n",
                found.gl_pathv[0]);
    globfree(&found);
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
    const char *out = e->out;
    const char *from = is_file ? path_join(e->arena, e->part, "adapter.gguf") : e->part;
    remove(path_join(e->arena, e->part, "export.dpo"));
    if (e->options->overwrite) remove_tree(out);
    if (rename(from, out) != 0)
        return fail(&e->err, EXIT_IO, "%s: cannot be renamed to %s: %s", from, out,
                    strerror(errno));
    if (is_file) remove_tree(e->part);
    return true;
}

/* Makes OUT.part; a place in use is taken only with --overwrite. */
static bool open_place(Export *e) {
    char *out = arena_str(e->arena, e->options->out);
    for (size_t n = strlen(out); n > 1 && out[n - 1] == '/'; n--) out[n - 1] = 0;
    e->out = out;
    e->part = arena_printf(e->arena, "%s.part", out);
    struct stat st;
    bool used = stat(out, &st) == 0 && !(S_ISDIR(st.st_mode) && rmdir(out) == 0);
    if (used && !e->options->overwrite)
        return fail(&e->err, EXIT_USAGE, "%s is there already: --overwrite replaces it", out);
    remove_tree(e->part);
    return dir_make(e->part, &e->err);
}

/* --overwrite must not remove what is exported. */
static bool spares_input(Export *e) {
    const char *inputs[] = {e->options->args.item[0], e->as_run.model, e->adapter, e->trained};
    char *out = realpath(e->out, NULL);
    bool ok = true;
    for (size_t i = 0; out && ok && i < COUNT(inputs); i++) {
        char *in = inputs[i] ? realpath(inputs[i], NULL) : NULL;
        size_t n = strlen(out);
        if (in && strncmp(in, out, n) == 0 && (in[n] == 0 || in[n] == '/'))
            ok = fail(&e->err, EXIT_USAGE, "-o %s would replace %s, which is read", e->out,
                      inputs[i]);
        free(in);
    }
    free(out);
    return ok;
}

int verb_export(const Options *o) {
    int code = check_flags(o);
    if (code != EXIT_OK) return code;
    int format = format_of(o);
    bool gguf = format == 2;
    Export e = {.options = o, .arena = arena_new(), .dtype = formats[format].dtype};
    dtype_of(o, &e.dtype);
    bool opened = open_place(&e);
    if (!opened || !export_find(&e) || !spares_input(&e)) code = export_fail(&e);
    if (code == EXIT_OK && format != 1 && !e.adapter)
        code = work_usage("the run trained the base itself: --format=merged");
    if (code == EXIT_OK && format == 1) code = export_merged(&e);
    if (code == EXIT_OK && format != 1 && !(gguf ? export_gguf(&e) : export_peft(&e)))
        code = export_fail(&e);
    if (code == EXIT_OK && format != 1 && !o->quiet) note_others(&e);
    if (code == EXIT_OK && !finish(&e, gguf)) code = export_fail(&e);
    if (code == EXIT_OK && !o->quiet) fprintf(stderr, "written: %s\n", e.out);
    if (code != EXIT_OK && opened && !e.keep) remove_tree(e.part);
    arena_free(e.arena);
    return code;
}
