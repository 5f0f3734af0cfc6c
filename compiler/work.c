/* work.c: see work.h. */
#include "work.h"

#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void work_init(Work *w, const Options *options) {
    *w = (Work){.options = options};
    w->arena = arena_new();
    w->diags = diags_new(w->arena);
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
    if (w->options->json && strcmp(w->options->verb, "check") == 0)
        return; /* verb_check prints JSON */
    diags_print(w->diags, w->said, stderr, options_color(w->options, stderr));
    w->said = diags_count(w->diags);
}

uint64_t work_seed(const Work *w) {
    return (uint64_t)spec_num(w->spec, "run.seed");
}

/* Whether this run meets a GPU: decides `graph.compute = auto` before a device is opened. */
static bool runs_on_cuda(const Work *w, const char *arch) {
    if (arch) return strncmp(arch, "sm_", 3) == 0;
    return w->options->device && strncmp(w->options->device, "cuda", 4) == 0;
}

int work_check(Work *w, const char *file, bool needs_data) {
    const Options *o = w->options;
    if (!file) file = o->args.n > 0 ? o->args.item[0] : NULL;
    if (!file) return work_usage("name the .dpo file");
    CheckOptions check = {
        .file = file,
        .model = o->model,
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
        .is_cuda = runs_on_cuda(w, o->arch),
        .random_weights = o->random_weights || strcmp(o->verb, "compile") == 0 ||
                          strcmp(o->verb, "plan") == 0 || strcmp(o->verb, "view") == 0,
        .trains = strcmp(o->verb, "train") == 0,
        .needs_data = needs_data,
        .needs_model = strcmp(o->verb, "check") != 0,
    };
    w->spec = check_file(w->arena, w->diags, &check);
    work_diagnostics(w);
    if (w->spec) return EXIT_OK;
    return check.needs_model ? diags_exit(w->diags) : EXIT_INPUT;
}

/* Bytes the host could give: MemAvailable less a tenth; 0 if it cannot be known. */
static int64_t host_budget(void) {
    FILE *f = fopen("/proc/meminfo", "r");
    char line[200];
    long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) break;
    if (f) fclose(f);
    return (int64_t)kib * 1024 / 10 * 9;
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

int work_compile(Work *w, const char *arch, const bool want[NUNIT]) {
    const Target *target = target_by_name(arch ? arch : "cpu");
    if (!target) {
        fprintf(stderr, "dpoc: unknown architecture '%s'; known: %s\n", arch, target_names());
        return EXIT_USAGE;
    }
    const Options *o = w->options;
    if (o->dump_after && !pass_known(o->dump_after)) return EXIT_USAGE;
    double memory = spec_num(w->spec, "graph.memory");
    int64_t budget = memory > 0 ? (int64_t)memory : target->cuda ? 0 : host_budget();
    if (target->cuda && budget > 0) {
        double reserve = spec_given(w->spec, "graph.reserve") ? spec_num(w->spec, "graph.reserve")
                                                              : (double)target->reserve;
        budget -= (int64_t)reserve;
        if (budget <= 0) return work_usage("--memory is smaller than graph.reserve");
    }
    CompileOptions compile = {
        .target = target, .budget = budget, .dump = {o->dump_after, o->dump_dir, false}};
    memcpy(compile.want, want, sizeof compile.want);
    w->plan = compile_spec(w->spec, &compile);
    work_diagnostics(w);
    return w->plan ? EXIT_OK : diags_exit(w->diags);
}

int work_open(Work *w) {
    const Options *o = w->options;
    if (!w->plan->fits) {
        report_does_not_fit(w->plan, stderr);
        return EXIT_MEMORY;
    }
    DeviceOptions options = {.name = o->device ? o->device : "auto",
                             .threads = isnan(o->threads) ? 0 : (int)o->threads,
                             .cache_dir = o->cache_dir};
    if (!(w->device = device_open(&options, &w->err))) return work_fail(w);
    if (!o->quiet && !o->json) fprintf(stderr, "%s\n", w->device->description);
    if (!(w->exec = exec_open(w->plan, w->device, &w->err))) return work_fail(w);
    int n;
    const Source *sources = spec_sources(w->spec, &n);
    BindSource *bind = NEW_ARRAY(w->arena, BindSource, n);
    for (int i = 0; i < n; i++)
        bind[i] = (BindSource){sources[i].name, sources[i].dir, sources[i].adapter,
                               o->random_weights && !sources[i].adapter};
    if (!exec_bind(w->exec, bind, n, work_seed(w), &w->err)) return work_fail(w);
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
