/* verbs_plan.c: the verbs that say what would run: check, plan, compile. */
#include <stdlib.h>
#include <string.h>

#include "../runtime/nvrtc.h"
#include "report.h"
#include "work.h"

int verb_check(const Options *o) {
    Work w;
    work_init(&w, o);
    int code = work_check(&w, NULL, o->data.n > 0);
    if (o->json) {
        char *json = diags_json(w.diags);
        printf("%s\n", json);
        free(json);
    } else if (code == EXIT_OK && !o->quiet) {
        fprintf(stderr, "%s: fine\n", o->args.item[0]);
    }
    work_close(&w);
    return code;
}

static const bool training[NUNIT] = {[UNIT_TRAIN] = true};

int verb_plan(const Options *o) {
    Work w;
    work_init(&w, o);
    int code = work_check(&w, NULL, false);
    if (code == EXIT_OK && !o->arch) work_device_if_any(&w);
    if (code == EXIT_OK) code = work_compile(&w, o->arch, training);
    if (code == EXIT_OK && o->json) {
        char *json = report_json(w.plan);
        printf("%s\n", json);
        free(json);
    } else if (code == EXIT_OK) {
        report_text(w.plan, stdout);
    }
    if (code == EXIT_OK && !w.plan->fits) {
        if (!o->json) report_does_not_fit(w.plan, stderr);
        code = EXIT_MEMORY;
    }
    work_close(&w);
    return code;
}

/* plan.json and one file of source per kernel. */
static bool write_sources(Work *w, const char *dir) {
    const Plan *p = w->plan;
    const char *suffix = strncmp(p->device, "sm_", 3) == 0 ? "cu" : "c";
    Arena *arena = arena_new();
    bool ok = dir_make(dir, &w->err) && plan_write(p, path_join(arena, dir, "plan.json"), &w->err);
    for (int i = 0; i < p->nkernels && ok; i++) {
        Text text = {0};
        text_add(&text, "%s\n%s", p->prelude ? p->prelude : "", p->kernels[i].text);
        char *path = arena_printf(arena, "%s/%s.%s", dir, p->kernels[i].symbol, suffix);
        ok = file_write(path, text.data, text.len, &w->err);
        text_free(&text);
    }
    arena_free(arena);
    return ok;
}

/* All kernels as one module, beside a table of what each takes of a multiprocessor. */
static bool write_cubin(Work *w, const char *dir) {
    const Plan *p = w->plan;
    Text text = {0}, table = {0};
    text_add(&text, "%s", p->prelude ? p->prelude : "");
    for (int i = 0; i < p->nkernels; i++) text_add(&text, "\n%s", p->kernels[i].text);
    Nvrtc *n = nvrtc_open(&w->err);
    Cubin cubin = {0};
    bool ok = n && nvrtc_compile(n, "plan.cu", text.data, p->device, &cubin, &w->err);
    text_add(&table, "%-16s %-24s %9s %6s %6s %7s\n", "kernel", "kind", "registers", "stack",
             "spills", "shared");
    for (int i = 0; ok && i < p->nkernels; i++) {
        KernelFigures f = {0};
        cubin_figures(&cubin, p->kernels[i].symbol, &f);
        text_add(&table, "%-16s %-24s %9d %6d %6d %7d\n", p->kernels[i].symbol, p->kernels[i].kind,
                 f.registers, f.stack_bytes, f.spill_bytes, f.shared_bytes);
    }
    ok = ok &&
         file_write(path_join(w->arena, dir, "kernels.cubin"), cubin.data, cubin.size, &w->err) &&
         file_write(path_join(w->arena, dir, "kernels.txt"), table.data, table.len, &w->err);
    cubin_free(&cubin);
    nvrtc_close(n);
    text_free(&text);
    text_free(&table);
    return ok;
}

int verb_compile(const Options *o) {
    if (!o->out) return work_usage("compile needs -o DIR");
    Work w;
    work_init(&w, o);
    int code = work_check(&w, NULL, false);
    if (code == EXIT_OK) code = work_compile(&w, o->arch, training);
    if (code == EXIT_OK && !write_sources(&w, o->out)) code = work_fail(&w);
    bool cuda = code == EXIT_OK && strncmp(w.plan->device, "sm_", 3) == 0;
    if (cuda && !write_cubin(&w, o->out)) code = work_fail(&w);
    if (code == EXIT_OK && !o->quiet)
        fprintf(stderr, "%s: plan.json and %d kernels for %s\n", o->out, w.plan->nkernels,
                w.plan->device);
    work_close(&w);
    return code;
}
