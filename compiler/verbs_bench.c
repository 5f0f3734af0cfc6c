/* verbs_bench.c: bench: whole optimizer steps of several variants, interleaved, against each other
 * and
 * against what the machine's own matrix product and memory reach in the same run.
 *
 * Every variant is compiled and loaded first; then each round runs one step of each, so that drift
 * of the
 * machine meets all alike.  Reported: median, minimum, maximum. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/job/job.h"
#include "work.h"

enum { MAX_VARIANTS = 16, MAX_KERNELS = 64, WARMUP = 2 };

typedef struct Entry {
    const char *name;
    const VariantSpec *variant; /* NULL: the file as it stands */
    Options options;
    Work w;
    Pairs *pairs;
    Pack *pack;
    double *ms;
    double loss, flops;
    StepTime kernel[MAX_KERNELS];
    int nkernels;
} Entry;

static int entry_open(Entry *e) {
    Work *w = &e->w;
    static const bool want[NUNIT] = {[UNIT_TRAIN] = true};
    e->options.quiet = true; /* print_table says it once */
    work_init(w, &e->options);
    int code = work_check(w, NULL, e->options.data.n > 0);
    if (code == EXIT_OK) code = work_device(w, NULL);
    if (code == EXIT_OK) code = work_compile(w, NULL, want);
    if (code == EXIT_OK) code = work_open(w);
    if (code != EXIT_OK) return code;
    int64_t batch = (int64_t)spec_num(w->spec, "run.batch");
    if (e->options.data.n > 0)
        code = work_pairs(w, &e->pairs);
    else
        e->pairs = pairs_random(w->plan, batch, work_seed(w));
    if (code != EXIT_OK) return code;
    PackOptions options =
        pack_options_of(w->plan, spec_on(w->spec, "graph.prefix"), spec_one_sided(w->spec));
    if (!pack_check(&options, e->pairs, w->plan->vocab, &w->err)) return work_fail(w);
    PackItem *items = NEW_ARRAY(w->arena, PackItem, batch);
    for (int64_t i = 0; i < batch; i++) items[i] = (PackItem){i % e->pairs->n, i, 0};
    e->pack = pack_step(w->arena, &options, e->pairs, items, (int)batch);
    for (int m = 0; m < e->pack->nmicro; m++)
        e->flops += w->plan->flops_micro * (double)e->pack->micro[m].extent[X_T] /
                    (double)w->plan->bound[X_T];
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

/* ---- the machine's own rates ----------------------------------------------------------------- */

/* FLOP/s of one 1024-cubed product in the compute type, best of five; 0 where it cannot be
 * measured. */
static double measure_gemm(Work *w, DType type) {
    enum { N = 1024 };
    if (strcmp(w->device->ops->name, "cpu") != 0) return 0;
    int size = dtype_bytes(type);
    char *a = calloc((size_t)N * N, (size_t)size), *b = calloc((size_t)N * N, (size_t)size);
    float *c = calloc((size_t)N * N, sizeof *c);
    for (int i = 0; i < N * N; i++) { /* zeros would flatter */
        float x = (float)(mix64(3, (uint64_t)i, 0) % 2001) / 1000.0f - 1.0f;
        uint16_t half = float_to_bf16(x);
        memcpy(a + (size_t)i * (size_t)size, type == DT_bf16 ? (void *)&half : (void *)&x,
               (size_t)size);
        memcpy(b + (size_t)i * (size_t)size, type == DT_bf16 ? (void *)&half : (void *)&x,
               (size_t)size);
    }
    Gemm g = {
        .a = type, .b = type, .c = DT_f32, .tb = true, .lda = N, .ldb = N, .ldc = N, .alpha = 1};
    void *p[] = {a, b, c};
    double best = 0;
    const DeviceOps *ops = w->device->ops;
    bool ok = ops->gemm_prepare(w->device, &g, N, N, N, &w->err);
    for (int i = 0; i < 5 && ok; i++) {
        double start = now_seconds();
        ok = ops->gemm(w->device, &g, p, N, N, N, &w->err) && ops->sync(w->device, &w->err);
        best = fmax(best, 2.0 * N * N * N / (now_seconds() - start));
    }
    free(a);
    free(b);
    free(c);
    return ok ? best : 0;
}

/* Bytes read plus written per second by a copy of 64 MiB, best of five. */
static double measure_bandwidth(Work *w) {
    const int64_t n = 64 << 20;
    if (strcmp(w->device->ops->name, "cpu") != 0) return 0;
    char *a = malloc((size_t)n), *b = malloc((size_t)n);
    memset(a, 1, (size_t)n);
    memset(b, 2, (size_t)n);
    double best = 0;
    for (int i = 0; i < 5; i++) {
        double start = now_seconds();
        if (!w->device->ops->copy(w->device, b, a, n, &w->err) ||
            !w->device->ops->sync(w->device, &w->err))
            break;
        best = fmax(best, 2.0 * (double)n / (now_seconds() - start));
    }
    free(a);
    free(b);
    return best;
}

/* ---- running and reporting ------------------------------------------------------------------- */

static int by_number(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int run_rounds(Entry *entry, int n, int runs) {
    double ignored;
    for (int round = -WARMUP; round < runs; round++)
        for (int i = 0; i < n; i++) {
            Entry *e = &entry[i];
            if (round == 0) exec_profile(e->w.exec, true);
            int code = entry_step(e, round < 0 ? &ignored : &e->ms[round]);
            if (code != EXIT_OK) return code;
        }
    for (int i = 0; i < n; i++) {
        entry[i].nkernels = exec_times(entry[i].w.exec, entry[i].kernel, MAX_KERNELS);
        qsort(entry[i].ms, (size_t)runs, sizeof(double), by_number);
    }
    return EXIT_OK;
}

static double median(const double *sorted, int n) {
    return n % 2 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
}

static void entry_json(const Entry *e, int runs, double gemm_rate, Text *out) {
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
    text_add(out,
             ",\"peak_bytes\":%lld,\"flops\":%.6g,\"roofline\":%.4g,\"loss\":%.9g,\"kernels\":[",
             (long long)e->w.plan->arena_bytes, e->flops,
             gemm_rate > 0 ? e->flops / (mid * 1e-3) / gemm_rate : 0, e->loss);
    for (int i = 0; i < e->nkernels; i++) {
        const StepTime *k = &e->kernel[i];
        text_add(out, "%s{\"label\":", i ? "," : "");
        json_escape(out, k->label ? k->label : "");
        text_add(out, ",\"ms\":%.6g,\"calls\":%lld,\"flops\":%.6g,\"bytes\":%.6g}",
                 1e3 * k->seconds / runs, (long long)(k->calls / runs), k->flops, k->bytes);
    }
    text_add(out, "]}");
}

static void print_json(const Entry *entry, int n, int runs, double gemm_rate, double bandwidth) {
    Text out = {0};
    text_add(&out, "{\"device\":");
    json_escape(&out, entry[0].w.device->description);
    text_add(&out, ",\"gemm_rate\":%.6g,\"bandwidth\":%.6g,\"variants\":[", gemm_rate, bandwidth);
    for (int i = 0; i < n; i++) {
        if (i) text_add(&out, ",");
        entry_json(&entry[i], runs, gemm_rate, &out);
    }
    text_add(&out, "]}\n");
    fputs(out.data, stdout);
    text_free(&out);
}

static void print_table(const Entry *entry, int n, int runs, double gemm_rate, double bandwidth) {
    printf("%s\n", entry[0].w.device->description);
    printf("in this run: matrix product %.1f GFLOP/s, copy %.1f GB/s\n\n", gemm_rate * 1e-9,
           bandwidth * 1e-9);
    printf("%-14s %10s %10s %10s %12s %12s %9s %12s\n", "variant", "median ms", "min", "max",
           "tokens/s", "peak", "roofline", "loss");
    for (int i = 0; i < n; i++) {
        const Entry *e = &entry[i];
        double mid = median(e->ms, runs);
        char peak[32];
        format_bytes(peak, (double)e->w.plan->arena_bytes);
        printf("%-14s %10.2f %10.2f %10.2f %12.0f %12s %8.1f%% %12.7f\n", e->name, mid, e->ms[0],
               e->ms[runs - 1], 1e3 * (double)e->pack->tokens / mid, peak,
               gemm_rate > 0 ? 100 * e->flops / (mid * 1e-3) / gemm_rate : 0, e->loss);
    }
    for (int i = 1; i < n; i++)
        printf("%s ran in %.2f of %s's time%s\n", entry[i].name,
               median(entry[i].ms, runs) / median(entry[0].ms, runs), entry[0].name,
               entry[i].variant && entry[i].variant->same_loss ? "; their losses must agree" : "");
    const Entry *e = &entry[0];
    printf("\n%s, by kernel:\n%-44s %8s %10s %10s %10s\n", e->name, "", "calls", "ms/step",
           "GFLOP/s", "GB/s");
    for (int i = 0; i < e->nkernels && i < 20; i++) {
        const StepTime *k = &e->kernel[i];
        printf("%-44.44s %8lld %10.3f %10.1f %10.1f\n", k->label ? k->label : "",
               (long long)(k->calls / runs), 1e3 * k->seconds / runs, 1e-9 * k->flops / k->seconds,
               1e-9 * k->bytes / k->seconds);
    }
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
    if (code == EXIT_OK) code = run_rounds(entry, n, runs);
    if (code == EXIT_OK) {
        Work *w = &entry[0].w;
        const char *compute = spec_str(w->spec, "graph.compute");
        double rate = measure_gemm(w, compute && strcmp(compute, "bf16") == 0 ? DT_bf16 : DT_f32);
        double bandwidth = measure_bandwidth(w);
        if (o->json)
            print_json(entry, n, runs, rate, bandwidth);
        else
            print_table(entry, n, runs, rate, bandwidth);
        code = check_losses(entry, n);
    }
    for (int i = 0; i < opened; i++) {
        pairs_free(entry[i].pairs);
        work_close(&entry[i].w);
    }
    work_close(&first);
    return code;
}
