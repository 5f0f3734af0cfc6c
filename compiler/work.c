/* work.c: see work.h. */
#include "work.h"

#include "report.h"
#include "../runtime/job/job.h"
#include "../runtime/job/ranks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void work_init(Work *w, const Options *options) {
    *w = (Work){.options = options};
    w->arena = arena_new();
    w->diags = diags_new(w->arena);
    for (int i = 0; i < options->warn.n; i++)
        diags_silence(w->diags, options->warn.item[i] + strlen("no-"));
}

void work_close(Work *w) {
    if (w->exec) exec_close(w->exec);
    if (w->device) w->device->ops->close(w->device);
    if (w->plan) plan_free(w->plan);
    if (w->tokenizer) tokenizer_close(w->tokenizer);
    arena_free(w->arena);
}

int work_fail(Work *w) {
    fprintf(stderr, "dpoc: error: %s\n", w->err.text);
    return w->err.code ? w->err.code : EXIT_BUG;
}

int work_usage(const char *text) {
    fprintf(stderr, "dpoc: %s\n", text);
    return EXIT_USAGE;
}

void work_diagnostics(Work *w) {
    if (w->again && diags_errors(w->diags) == 0) return;
    if (w->options->json && strcmp(w->options->verb, "check") == 0)
        return; /* verb_check prints JSON */
    diags_print(w->diags, w->said, stderr, options_color(w->options, stderr));
    w->said = diags_count(w->diags);
}

uint64_t work_seed(const Work *w) {
    return (uint64_t)spec_num(w->spec, "run.seed");
}

int work_check(Work *w, const char *file, bool needs_data) {
    const Options *o = w->options;
    if (!file) file = o->args.n > 0 ? o->args.item[0] : NULL;
    if (!file) return work_usage("name the .dpo file");
    bool text = strcmp(o->verb, "tokens") == 0; /* of the checkpoint only the tokenizer is read */
    CheckOptions check = {
        .file = file,
        .model = text ? NULL : o->model,
        .data = o->data.item,
        .ndata = o->data.n,
        .eval_data = o->eval_data,
        .set = o->set.item,
        .nset = o->set.n,
        .variant = o->variant,
        .adapter = o->adapter.item,
        .nadapter = o->adapter.n,
        .memory = o->memory,
        .seed = o->seed,
        .is_cuda = o->arch ? strncmp(o->arch, "sm_", 3) == 0 : device_is_cuda(o->device),
        .random_weights = o->random_weights || strcmp(o->verb, "compile") == 0 ||
                          strcmp(o->verb, "plan") == 0 || strcmp(o->verb, "view") == 0,
        .trains = strcmp(o->verb, "train") == 0,
        .bare = w->bare,
        .needs_data = needs_data,
        .needs_model = !text && strcmp(o->verb, "check") != 0,
    };
    w->spec = check_file(w->arena, w->diags, &check);
    work_diagnostics(w);
    if (w->spec) return EXIT_OK;
    return check.needs_model ? diags_exit(w->diags) : EXIT_INPUT;
}

/* `all` or the name of a pass; else false after a message. */
static bool pass_known(const char *name) {
    const char *names[64] = {"all"};
    int n = 1;
    for (int i = 0; pass_table[i].name && n < (int)COUNT(names); i++)
        names[n++] = pass_table[i].name;
    const char *close = closest_name(name, names, n);
    if (close && !strcmp(close, name)) return true;
    fprintf(stderr, "dpoc: --dump-after=%s: there is no such pass%s%s%s\n", name,
            close ? "; did you mean '" : "", close ? close : "", close ? "'?" : "");
    return false;
}

static Device *open_device(const Work *w, const char *choices, Err *err) {
    const Options *o = w->options;
    DeviceOptions options = {.name = o->device ? o->device : "auto",
                             .threads = isnan(o->threads) ? ranks_threads() : (int)o->threads,
                             .local_rank = ranks_local(),
                             .cache_dir = o->cache_dir,
                             .cc = o->cc,
                             .choices = choices};
    return device_open(&options, err);
}

int work_device(Work *w, const char *choices) {
    w->device = open_device(w, choices, &w->err);
    return w->device ? EXIT_OK : work_fail(w);
}

void work_device_if_any(Work *w) {
    Err err = {0};
    w->device = open_device(w, NULL, &err);
    if (!w->device && device_is_cuda(w->options->device))
        fprintf(stderr, "note: planned for sm_80 (--arch=NAME for another): %s\n", err.text);
}

/* What the plan is made for: --arch, the open device, or the first GPU of its kind. */
static const Target *target_of(const Work *w, const char *arch) {
    if (arch) return target_by_name(arch);
    if (w->device) return target_by_arch(w->device->arch);
    return target_by_name(device_is_cuda(w->options->device) ? "sm_80" : "cpu");
}

int work_no_target(const Work *w, const char *arch) {
    if (!arch) {
        fprintf(stderr, "dpoc: error: %s: older than all that are known: %s\n",
                w->device->description, target_names());
        return EXIT_DEVICE;
    }
    fprintf(stderr, "dpoc: unknown architecture '%s'; known: %s\n", arch, target_names());
    return EXIT_USAGE;
}

/* Bytes for the arena; 0: no limit, where neither the file nor a device says one.
 * `auto` is what is free now, less what will be taken beside the arena.  On a GPU that is
 * graph.reserve (modules, library handles, local memory of kernels), which a given size covers as
 * well.  On the CPU it is a tenth: the kernel's MemAvailable is an estimate, and other programs
 * grow; several processes of one job share the rest. */
static int arena_budget(Work *w, const Target *target, int64_t *budget) {
    double memory = spec_num(w->spec, "graph.memory");
    int64_t total;
    *budget = (int64_t)memory;
    if (memory <= 0 && !w->device) return EXIT_OK;
    if (memory <= 0) {
        if (!w->device->ops->memory(w->device, budget, &total, &w->err)) return work_fail(w);
        if (!target->cuda) *budget = *budget / 10 * 9 / ranks_local_size();
    }
    if (!target->cuda) return EXIT_OK;
    int64_t reserve = spec_given(w->spec, "graph.reserve")
                          ? (int64_t)spec_num(w->spec, "graph.reserve")
                          : target->reserve;
    if (*budget > reserve) {
        *budget -= reserve;
        return EXIT_OK;
    }
    char a[32], b[32];
    format_bytes(a, (double)*budget);
    format_bytes(b, (double)reserve);
    fprintf(stderr, "dpoc: error: %s of memory (%s) are not more than graph.reserve, %s\n", a,
            memory > 0 ? "graph.memory" : "free on the device now", b);
    return memory > 0 ? EXIT_USAGE : EXIT_MEMORY;
}

int work_compile(Work *w, const char *arch, const bool want[NUNIT]) {
    const Options *o = w->options;
    const Target *target = target_of(w, arch);
    if (!target) return work_no_target(w, arch);
    if (o->dump_after && !pass_known(o->dump_after)) return EXIT_USAGE;
    CompileOptions compile = {.target = target,
                              .safe = o->safe,
                              .generate = w->generate,
                              .dump = {.after = o->dump_after, .dir = o->dump_dir}};
    int code = arena_budget(w, target, &compile.budget);
    if (code != EXIT_OK) return code;
    memcpy(compile.want, want, sizeof compile.want);
    w->plan = compile_spec(w->spec, &compile);
    work_diagnostics(w);
    return w->plan ? EXIT_OK : diags_exit(w->diags);
}

/* A run that goes on finds there what a fresh adapter was before training (save_start); NULL. */
static const char *kept_start(Work *w, const Source *s) {
    const Options *o = w->options;
    if (!s->adapter || s->dir || !o->resumes || !o->out) return NULL;
    const char *name = arena_strn(w->arena, s->name, strcspn(s->name, "@"));
    const char *dir = path_join(w->arena, path_join(w->arena, o->out, RUN_START), name);
    return file_exists(path_join(w->arena, dir, "adapter_model.safetensors")) ? dir : NULL;
}

/* Of several processes on a machine the first compiles kernels; the others find them in the
 * cache. */
static void open_exec(Work *w) {
    if (ranks_local() > 0) ranks_barrier();
    w->exec = exec_open(w->plan, w->device, &w->err);
    if (ranks_local() == 0) ranks_barrier();
}

int work_open(Work *w) {
    const Options *o = w->options;
    if (!w->plan->fits) {
        report_does_not_fit(w->plan, stderr);
        return EXIT_MEMORY;
    }
    if (!o->quiet && !o->json) fprintf(stderr, "%s\n", w->device->description);
    open_exec(w);
    if (!w->exec) {
        int code = work_fail(w);
        if (code == EXIT_MEMORY) report_largest(w->plan, stderr);
        return code;
    }
    int n;
    const Source *sources = spec_sources(w->spec, &n);
    BindSource *bind = NEW_ARRAY(w->arena, BindSource, n);
    for (int i = 0; i < n; i++) {
        const char *kept = kept_start(w, &sources[i]);
        bind[i] = (BindSource){sources[i].name, kept ? kept : sources[i].dir, sources[i].adapter,
                               o->random_weights && !sources[i].adapter};
    }
    LoadProgress progress = progress_load();
    bool silent = o->quiet || o->json;
    if (!exec_bind(w->exec, bind, n, work_seed(w), silent ? NULL : &progress.watch, &w->err))
        return work_fail(w);
    return EXIT_OK;
}

int work_tokenizer(Work *w) {
    const char *dir = w->options->model ? w->options->model : spec_base_path(w->spec);
    if (!dir) return EXIT_OK;
    static const char *const files[] = {"tokenizer.json", "tokenizer.model"};
    bool there = false;
    for (size_t i = 0; i < COUNT(files); i++)
        there = there || file_exists(path_join(w->arena, dir, files[i]));
    if (!there) return EXIT_OK;
    w->tokenizer = tokenizer_open(dir, &w->err);
    if (w->tokenizer) return EXIT_OK;
    return work_fail(w);
}
