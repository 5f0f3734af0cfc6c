/* verbs_plan.c: the verbs that say what would run: check, plan, compile. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../runtime/cubin.h"
#include "../runtime/device.h"
#include "report.h"
#include "work.h"

/* Reads what `data` names, where the checkpoint that it is read for is named too: a summary, and as
 * JSON. */
static int check_data(Work *w, const Template *template, const char **json) {
    int n;
    Pairs *train = NULL, *eval = NULL;
    spec_data(w->spec, &n);
    if (n == 0 || !work_model_dir(w)) return EXIT_OK;
    const char *path = spec_str(w->spec, "data.eval");
    int code = work_train_pairs(w, template, &train);
    if (code == EXIT_OK && path) code = work_read_pairs(w, &path, 1, template, &eval);
    if (eval) work_summary(w, "eval pairs", eval);
    if (code == EXIT_OK) *json = work_data_json(w, train, eval);
    pairs_free(train);
    pairs_free(eval);
    return code;
}

/* The diagnostics as a list; what was read of data is one more, a note with its summary. */
static char *check_json(const Diags *diags, const char *data) {
    char *text = diags_json(diags);
    if (!data) return text;
    json_t *all = json_loads(text, 0, NULL);
    free(text);
    json_array_append_new(all, json_pack("{s:s, s:s, s:s, s:[], s:o}", "severity", "note", "name",
                                         "data", "message", "what was read", "notes", "data",
                                         json_loads(data, 0, NULL)));
    text = json_dumps(all, JSON_INDENT(1));
    json_decref(all);
    return text;
}

int verb_check(const Options *o) {
    Work w;
    work_init(&w, o);
    int code = work_check(&w, NULL, o->data.n > 0);
    Template template;
    if (code == EXIT_OK) code = work_template(&w, &template); /* are its control tokens there? */
    const char *data = NULL;
    if (code == EXIT_OK) code = check_data(&w, &template, &data);
    if (o->json) {
        char *json = check_json(w.diags, data);
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
    if (code == EXIT_OK && !o->quiet && spec_num(w.spec, "run.sample_every") > 0)
        fprintf(stderr, "note: answers during training (run.sample_every) need a KV cache besides, "
                        "as long as their prompts: train --dry-run says how much\n");
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

/* What each kernel takes of a multiprocessor; one that spills is named on stderr too. */
static void kernel_table(const Plan *p, const Cubins *cubins, Text *table) {
    text_add(table, "%-16s %-24s %9s %6s %6s %7s %8s  %s\n", "kernel", "kind", "registers", "stack",
             "spills", "shared", "dynamic", "module");
    for (int i = 0; i < p->nkernels; i++) {
        const Kernel *k = &p->kernels[i];
        const KernelFigures *f = &cubins->figures[i];
        text_add(table, "%-16s %-24s %9d %6d %6d %7d %8d  %s\n", k->symbol, k->kind, f->registers,
                 f->stack_bytes, f->spill_bytes, f->shared_bytes, k->shared_bytes,
                 cubins->module[cubins->module_of[i]].name);
        if (f->spill_bytes)
            fprintf(stderr, "dpoc: warning: kernel %s (%s) spills %d bytes of registers\n",
                    k->symbol, k->kind, f->spill_bytes);
    }
}

/* The kernels as machine code, and a table of them. */
static bool write_cubins(Work *w, const char *dir) {
    const Options *o = w->options;
    const char *cache = o->cache_dir ? o->cache_dir : cache_dir_default();
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    Text table = {0};
    Nvrtc *n = nvrtc_open(&w->err);
    Cubins *cubins =
        n ? cubins_make(w->plan, n, w->plan->device, cache,
                        o->threads > 0 ? (int)o->threads : (int)cpus, !o->quiet, &w->err)
          : NULL;
    bool ok = cubins != NULL;
    for (int i = 0; ok && i < cubins->nmodules; i++) {
        const CubinModule *m = &cubins->module[i];
        ok = file_write(path_join(w->arena, dir, m->name), m->data, m->size, &w->err);
    }
    if (ok) kernel_table(w->plan, cubins, &table);
    ok = ok && file_write(path_join(w->arena, dir, "kernels.txt"), table.data, table.len, &w->err);
    cubins_free(cubins);
    nvrtc_close(n);
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
    if (cuda && !write_cubins(&w, o->out)) code = work_fail(&w);
    if (code == EXIT_OK && !o->quiet)
        fprintf(stderr, "%s: plan.json and %d kernels for %s\n", o->out, w.plan->nkernels,
                w.plan->device);
    work_close(&w);
    return code;
}
