/* verbs_bench.c: bench: whole optimizer steps of several variants, interleaved, against each other
 * and against what the machine's own matrix product and memory reach in the same run.
 *
 * Every variant is compiled and loaded first; then each round runs one step of each, so that drift
 * of the machine meets all alike.  Reported: median, minimum, maximum.  Per-kernel times come from
 * steps of their own behind the timed ones, one kernel after the other. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/job/job.h"
#include "../runtime/job/rates.h"
#include "work.h"

enum { MAX_VARIANTS = 16, MAX_KERNELS = 256, WARMUP = 2, PROFILED = 2 };

typedef struct Entry {
    const char *name;
    const VariantSpec *variant; /* NULL: the file as it stands */
    Options options;
    Work w;
    Pairs *pairs;
    Pack *pack;
    double *ms;
    double old_ms; /* median of the variant of this name in --compare; 0: none */
    double loss;
    double flops, attended; /* of the step; share of attention's full square that it asks for */
    StepTime kernel[MAX_KERNELS];
    int nkernels;
} Entry;

/* Queries times keys that a micro-batch's segments name. */
static double pairs_attended(const Micro *micro) {
    double sum = 0;
    for (int i = 0; i < micro->ninput; i++) {
        if (strcmp(micro->input[i].name, "segs") != 0) continue;
        const int32_t *seg = micro->input[i].data;
        for (int64_t g = 0; g < micro->extent[X_G]; g++, seg += 6)
            sum += (double)seg[1] * seg[3] + 0.5 * (double)seg[1] * (seg[1] + 1);
    }
    return sum;
}

/* FLOPs of a step's products at these extents; attention: its share of the full square. */
static double step_flops(const Plan *plan, const Step *s, const int64_t *extent, double attended) {
    if (s->kind == STEP_KERNEL && !strncmp(plan->kernels[s->kernel].kind, "attend", 6))
        return s->flops * attended;
    if (s->kind != STEP_GEMM) return 0;
    double flops = 2;
    for (int i = 0; i < 3; i++) flops *= (double)dim_eval(s->dims[i], extent);
    return flops;
}

/* Of one micro-batch, at its own sizes. */
static double micro_flops(const Plan *plan, const int64_t *sizes, double attended) {
    const Program *micro = plan_program(plan, "micro");
    int64_t extent[NEXTENT], rows = 0, chunk = 0;
    memcpy(extent, sizes, sizeof extent);
    double flops = 0;
    for (int i = 0, loop_end = -1; i < micro->nsteps; i++) {
        const Step *s = &micro->steps[i];
        if (s->kind == STEP_LOOP) {
            rows = dim_eval(s->dims[0], extent);
            chunk = s->chunk;
            loop_end = i + s->body;
        }
        if (i > loop_end) flops += step_flops(plan, s, extent, attended);
        for (int64_t at = 0; i <= loop_end && at < rows; at += chunk) {
            extent[X_C] = rows - at < chunk ? rows - at : chunk;
            flops += step_flops(plan, s, extent, attended);
        }
    }
    return flops;
}

static void count_flops(Entry *e) {
    const Plan *plan = e->w.plan;
    double rows = (double)plan->bound[X_T], share = 0;
    for (int m = 0; m < e->pack->nmicro; m++) {
        double attended = pairs_attended(&e->pack->micro[m]) / (rows * (rows + 1) / 2);
        e->flops += micro_flops(plan, e->pack->micro[m].extent, attended);
        e->attended += attended;
        share += (double)e->pack->micro[m].extent[X_T] / rows;
    }
    e->attended /= share;
}

static int entry_open(Entry *e) {
    Work *w = &e->w;
    static const bool want[NUNIT] = {[UNIT_TRAIN] = true};
    e->options.quiet = true; /* print_table says it once */
    work_init(w, &e->options);
    int code = work_check(w, NULL, e->options.data.n > 0);
    if (code == EXIT_OK) code = work_device(w, NULL);
    if (code == EXIT_OK) code = work_compile(w, NULL, want);
    if (code == EXIT_OK) code = work_open(w);
    if (code == EXIT_MEMORY)
        fprintf(stderr, "help: bench holds all its variants at once: --variants names fewer\n");
    if (code != EXIT_OK) return code;
    int64_t batch = (int64_t)spec_num(w->spec, "run.batch");
    if (e->options.data.n > 0)
        code = work_pairs(w, &e->pairs);
    else
        e->pairs = pairs_random(w->plan, batch, work_seed(w));
    if (code == EXIT_OK) code = work_reference(w, e->pairs, e->options.data.n == 0);
    if (code != EXIT_OK) return code;
    PackOptions options =
        pack_options_of(w->plan, spec_on(w->spec, "graph.prefix"), spec_one_sided(w->spec));
    if (!pack_check(&options, e->pairs, w->plan->vocab, &w->err)) return work_fail(w);
    PackItem *items = NEW_ARRAY(w->arena, PackItem, batch);
    for (int64_t i = 0; i < batch; i++) items[i] = (PackItem){i % e->pairs->n, i, 0};
    e->pack = pack_step(w->arena, &options, e->pairs, items, (int)batch);
    count_flops(e);
    return write_setting_inputs(w->exec, w->plan, &w->err) ? EXIT_OK : work_fail(w);
}

/* One optimizer step with rate 0: the same work each time, on weights that stay. */
static int entry_step(Entry *e, double *ms) {
    Work *w = &e->w;
    double start = now_seconds(), values[256];
    if (!run_step(w->exec, w->plan, e->pack, work_seed(w), 1, 0, &w->err)) return work_fail(w);
    if (!w->device->ops->sync(w->device, &w->err)) return work_fail(w);
    *ms = 1e3 * (now_seconds() - start);
    int64_t batch = (int64_t)spec_num(w->spec, "run.batch");
    if (!read_metrics(w->exec, w->plan, e->pack, (int)batch, values, &w->err)) return work_fail(w);
    e->loss = values[0];
    return EXIT_OK;
}

/* ---- running and reporting ------------------------------------------------------------------- */

static int by_number(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int run_rounds(Entry *entry, int n, int runs) {
    double ignored;
    for (int round = -WARMUP; round < runs + PROFILED; round++)
        for (int i = 0; i < n; i++) {
            Entry *e = &entry[i];
            bool timed = round >= 0 && round < runs;
            if (round == runs) exec_profile(e->w.exec, true);
            int code = entry_step(e, timed ? &e->ms[round] : &ignored);
            if (code != EXIT_OK) return code;
        }
    for (int i = 0; i < n; i++) {
        Entry *e = &entry[i];
        e->nkernels = exec_times(e->w.exec, e->kernel, MAX_KERNELS);
        for (int k = 0; k < e->nkernels; k++) {
            StepTime *t = &e->kernel[k];
            t->seconds /= PROFILED, t->flops /= PROFILED, t->bytes /= PROFILED;
            t->calls /= PROFILED;
            if (!strncmp(t->kind, "attend", 6)) t->flops *= e->attended;
        }
        qsort(e->ms, (size_t)runs, sizeof(double), by_number);
    }
    return EXIT_OK;
}

static double median(const double *sorted, int n) {
    return n % 2 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
}

/* Share of what the machine's product and copy would allow for this kernel. */
static double roofline(const StepTime *k, const Rates *rates) {
    double compute = rates->flops > 0 ? k->flops / rates->flops : 0;
    double memory = rates->bandwidth > 0 ? k->bytes / rates->bandwidth : 0;
    return k->seconds > 0 ? fmax(compute, memory) / k->seconds : 0;
}

static double step_roofline(const Entry *e, double ms, const Rates *rates) {
    return rates->flops > 0 ? e->flops / (ms * 1e-3) / rates->flops : 0;
}

/* flops and bytes of one step, as ms is. */
static void kernel_json(const StepTime *k, const Rates *rates, Text *out) {
    double per = k->seconds > 0 ? 1 / k->seconds : 0;
    text_add(out, "{\"label\":");
    json_escape(out, k->label);
    text_add(out, ",\"kind\":");
    json_escape(out, k->kind);
    text_add(out,
             ",\"ms\":%.6g,\"calls\":%lld,\"flops\":%.6g,\"bytes\":%.6g,\"tflops_per_second\":%.4g,"
             "\"gb_per_second\":%.4g,\"roofline\":%.4g}",
             1e3 * k->seconds, (long long)k->calls, k->flops, k->bytes, 1e-12 * k->flops * per,
             1e-9 * k->bytes * per, roofline(k, rates));
}

static void entry_json(const Entry *e, int runs, const Rates *rates, Text *out) {
    double mid = median(e->ms, runs);
    text_add(out, "{\"name\":");
    json_escape(out, e->name);
    text_add(out, ",\"differs\":[");
    for (int i = 0; e->variant && i < e->variant->ndiffers; i++) {
        if (i) text_add(out, ",");
        json_escape(out, e->variant->differs[i]);
    }
    text_add(out,
             "],\"median_ms\":%.6g,\"min_ms\":%.6g,\"max_ms\":%.6g,\"runs\":%d,\"tokens_per_"
             "second\":%.6g",
             mid, e->ms[0], e->ms[runs - 1], runs, 1e3 * (double)e->pack->tokens / mid);
    if (e->old_ms > 0) text_add(out, ",\"of_old\":%.6g", mid / e->old_ms);
    text_add(out,
             ",\"peak_bytes\":%lld,\"flops\":%.6g,\"roofline\":%.4g,\"loss\":%.9g,\"kernels\":[",
             (long long)e->w.plan->arena_bytes, e->flops, step_roofline(e, mid, rates), e->loss);
    for (int i = 0; i < e->nkernels; i++) {
        if (i) text_add(out, ",");
        kernel_json(&e->kernel[i], rates, out);
    }
    text_add(out, "]}");
}

static void print_json(const Entry *entry, int n, int runs, const Rates *rates) {
    Text out = {0};
    text_add(&out, "{\"device\":");
    json_escape(&out, entry[0].w.device->description);
    text_add(&out, ",\"gemm_rate\":%.6g,\"gemm_side\":%lld,\"bandwidth\":%.6g,\"variants\":[",
             rates->flops, (long long)rates->side, rates->bandwidth);
    for (int i = 0; i < n; i++) {
        if (i) text_add(&out, ",");
        entry_json(&entry[i], runs, rates, &out);
    }
    text_add(&out, "]}\n");
    fputs(out.data, stdout);
    text_free(&out);
}

static void print_kernels(const Entry *e, const Rates *rates) {
    printf("\n%s, by kernel:\n%-44s %8s %10s %10s %10s %9s\n", e->name, "", "calls", "ms/step",
           "GFLOP/s", "GB/s", "roofline");
    double sum = 0;
    for (int i = 0; i < e->nkernels; i++) sum += e->kernel[i].seconds;
    for (int i = 0; i < e->nkernels && i < 24; i++) {
        const StepTime *k = &e->kernel[i];
        double per = k->seconds > 0 ? 1e-9 / k->seconds : 0;
        printf("%-44.44s %8lld %10.3f %10.1f %10.1f %8.1f%%\n", k->label, (long long)k->calls,
               1e3 * k->seconds, k->flops * per, k->bytes * per, 100 * roofline(k, rates));
    }
    printf("%-44s %8s %10.3f\n", "all, one after the other", "", 1e3 * sum);
}

static void print_table(const Entry *entry, int n, int runs, const Rates *rates) {
    printf("%s\n", entry[0].w.device->description);
    printf("in this run: matrix product (%lld cubed) %.1f GFLOP/s, copy %.1f GB/s\n\n",
           (long long)rates->side, rates->flops * 1e-9, rates->bandwidth * 1e-9);
    printf("%-14s %10s %10s %10s %12s %12s %9s %12s\n", "variant", "median ms", "min", "max",
           "tokens/s", "peak", "roofline", "loss");
    for (int i = 0; i < n; i++) {
        const Entry *e = &entry[i];
        double mid = median(e->ms, runs);
        char peak[32];
        format_bytes(peak, (double)e->w.plan->arena_bytes);
        printf("%-14s %10.2f %10.2f %10.2f %12.0f %12s %8.1f%% %12.7f\n", e->name, mid, e->ms[0],
               e->ms[runs - 1], 1e3 * (double)e->pack->tokens / mid, peak,
               100 * step_roofline(e, mid, rates), e->loss);
    }
    for (int i = 1; i < n; i++)
        printf("%s ran in %.2f of %s's time%s\n", entry[i].name,
               median(entry[i].ms, runs) / median(entry[0].ms, runs), entry[0].name,
               entry[i].variant && entry[i].variant->same_loss ? "; their losses must agree" : "");
    for (int i = 0; i < n; i++)
        if (entry[i].old_ms > 0)
            printf("%s ran in %.2f of its earlier time, %.2f ms\n", entry[i].name,
                   median(entry[i].ms, runs) / entry[i].old_ms, entry[i].old_ms);
    print_kernels(&entry[0], rates);
}

/* Medians of an earlier `bench --json`, by name; another device is said. */
static int read_old(Entry *entry, int n, const char *path) {
    json_error_t e;
    json_t *old = json_load_file(path, 0, &e), *variant;
    if (!old) {
        fprintf(stderr, "dpoc: error: %s:%d: %s\n", path, e.line, e.text);
        return EXIT_IO;
    }
    const char *device = json_string_value(json_object_get(old, "device"));
    if (device && strcmp(device, entry[0].w.device->description) != 0)
        fprintf(stderr, "warning: %s was measured on another device: %s\n", path, device);
    size_t k;
    json_array_foreach(json_object_get(old, "variants"), k, variant) {
        const char *name = json_string_value(json_object_get(variant, "name"));
        for (int i = 0; i < n; i++)
            if (name && !strcmp(name, entry[i].name))
                entry[i].old_ms = json_number_value(json_object_get(variant, "median_ms"));
    }
    json_decref(old);
    return EXIT_OK;
}

/* Variants that promise the same loss are held to it: 1e-3 relative. */
static int check_losses(const Entry *entry, int n) {
    int code = EXIT_OK;
    for (int i = 1; i < n; i++) {
        const Entry *e = &entry[i];
        if (!e->variant || !e->variant->same_loss) continue;
        if (fabs(e->loss - entry[0].loss) <= 1e-3 * fabs(entry[0].loss) + 1e-6) continue;
        fprintf(stderr, "dpoc: error: variant %s has loss %.7g, %s has %.7g\n", e->name, e->loss,
                entry[0].name, entry[0].loss);
        code = EXIT_NUMERIC;
    }
    return code;
}

/* Every name of --variants is one of the file's; else false after a message. */
static bool variants_known(const Options *o, const Spec *spec, Arena *arena) {
    int n;
    const VariantSpec *variants = spec_variants(spec, &n);
    const char **names = NEW_ARRAY(arena, const char *, n);
    for (int i = 0; i < n; i++) names[i] = variants[i].name;
    for (const char *at = o->variants; at && *at; at += strcspn(at, ","), at += *at == ',') {
        const char *name = arena_strn(arena, at, strcspn(at, ","));
        const char *close = closest_name(name, names, n);
        if (close && !strcmp(close, name)) continue;
        fprintf(stderr, "dpoc: --variants: %s has no variant '%s'%s%s%s\n", o->args.item[0], name,
                close ? "; did you mean '" : "", close ? close : "", close ? "'?" : "");
        return false;
    }
    return true;
}

/* The file itself first, then its variants (all, or those of --variants). */
static int list_entries(const Options *o, Spec *spec, Entry *entry) {
    int n = 0, nvariants;
    const VariantSpec *variants = spec_variants(spec, &nvariants);
    entry[n++] = (Entry){.name = "as written", .options = *o};
    for (int i = 0; i < nvariants && n < MAX_VARIANTS; i++) {
        const char *at = o->variants ? strstr(o->variants, variants[i].name) : NULL;
        size_t len = strlen(variants[i].name);
        bool named = at && (at == o->variants || at[-1] == ',') && (at[len] == ',' || at[len] == 0);
        if (o->variants && !named) continue;
        entry[n] = (Entry){.name = variants[i].name, .variant = &variants[i], .options = *o};
        entry[n++].options.variant = variants[i].name;
    }
    return n;
}

int verb_bench(const Options *o) {
    Work first;
    work_init(&first, o);
    int code = work_check(&first, NULL, o->data.n > 0), n = 0, opened = 0;
    Entry *entry = NEW_ARRAY(first.arena, Entry, MAX_VARIANTS);
    int runs = isnan(o->runs) ? 10 : (int)fmax(1, o->runs);
    if (code == EXIT_OK && !variants_known(o, first.spec, first.arena)) code = EXIT_INPUT;
    if (code == EXIT_OK) n = list_entries(o, first.spec, entry);
    for (; opened < n && code == EXIT_OK; opened++) {
        entry[opened].ms = NEW_ARRAY(first.arena, double, runs);
        code = entry_open(&entry[opened]);
    }
    if (code == EXIT_OK && o->compare) code = read_old(entry, n, o->compare);
    if (code == EXIT_OK) code = run_rounds(entry, n, runs);
    if (code == EXIT_OK) {
        Work *w = &entry[0].w;
        const char *compute = spec_str(w->spec, "graph.compute");
        DType type = compute && strcmp(compute, "bf16") == 0 ? DT_bf16 : DT_f32;
        Rates rates;
        if (!measure_rates(w->exec, w->device, type, &rates, &w->err))
            code = work_fail(w);
        else if (o->json)
            print_json(entry, n, runs, &rates);
        else
            print_table(entry, n, runs, &rates);
        if (code == EXIT_OK) code = check_losses(entry, n);
    }
    for (int i = 0; i < opened; i++) {
        pairs_free(entry[i].pairs);
        work_close(&entry[i].w);
    }
    work_close(&first);
    return code;
}
