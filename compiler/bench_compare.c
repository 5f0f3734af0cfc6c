/* bench_compare.c: --compare: an earlier `bench --json`, variant by variant. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ENOUGH = 4 }; /* samples on each side for a test of ranks */

/* Slower than --threshold allows, and not by chance as far as samples can tell. */
static void judge(const Bench *b, Entry *e, json_t *variant) {
    const json_t *samples = json_object_get(variant, "samples_ms");
    size_t n = json_array_size(samples);
    e->old = (Old){.median = json_number_value(json_object_get(variant, "median_ms")), .p = NAN};
    if (n >= ENOUGH && b->rounds >= ENOUGH) {
        double *x = malloc(sizeof(double) * n);
        if (!x) abort();
        for (size_t i = 0; i < n; i++) x[i] = json_number_value(json_array_get(samples, i));
        e->old.p = rank_test(x, (int)n, e->ms, b->rounds);
        free(x);
    }
    double limit = 1 + 0.01 * b->options->threshold;
    e->old.regressed = e->old.median > 0 && e->time.median > limit * e->old.median &&
                       !(e->old.p > 0.05); /* false without a threshold, which is NAN */
}

static void warn_other_work(const Entry *e, json_t *variant, const char *path) {
    double flops = json_number_value(json_object_get(variant, "flops"));
    if (flops > 0 && fabs(flops - e->flops) > 1e-6 * e->flops)
        fprintf(stderr, "warning: %s: %s had %.4g FLOPs a step, now it has %.4g\n", path, e->name,
                flops, e->flops);
}

int bench_read_old(Bench *b) {
    const char *path = b->options->compare;
    if (!path) return EXIT_OK;
    json_error_t error;
    b->old = json_load_file(path, 0, &error);
    if (b->old && json_is_array(json_object_get(b->old, "variants"))) return EXIT_OK;
    if (b->old)
        fprintf(stderr, "dpoc: error: %s: this is no result of `bench --json`\n", path);
    else
        fprintf(stderr, "dpoc: error: %s:%d: %s\n", path, error.line, error.text);
    return EXIT_IO;
}

void bench_compare(Bench *b) {
    if (!b->old) return;
    const char *path = b->options->compare;
    const char *device = json_string_value(json_object_get(b->old, "device"));
    if (device && strcmp(device, b->device) != 0)
        fprintf(stderr, "warning: %s was measured on another device: %s\n", path, device);
    size_t k;
    int found = 0;
    json_t *variant;
    json_array_foreach(json_object_get(b->old, "variants"), k, variant) {
        const char *name = json_string_value(json_object_get(variant, "name"));
        for (int i = 0; i < b->n && name; i++) {
            Entry *e = &b->entry[i];
            if (e->idle || strcmp(name, e->name) != 0) continue;
            judge(b, e, variant);
            warn_other_work(e, variant, path);
            found++;
        }
    }
    if (!found) fprintf(stderr, "warning: %s has none of these variants\n", path);
}
