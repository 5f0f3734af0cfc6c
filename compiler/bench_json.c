/* bench_json.c: what `bench` found, for programs: the document of CLI.md, with every sample. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>

static json_t *number(double x) { /* null: not known */
    return isfinite(x) ? json_real(x) : json_null();
}

static void put(json_t *o, const char *key, double x) {
    json_object_set_new(o, key, number(x));
}

static void put_int(json_t *o, const char *key, int64_t x) {
    json_object_set_new(o, key, json_integer(x));
}

static json_t *numbers(const double *x, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, number(x[i]));
    return list;
}

/* flops and bytes of one step, as ms is; flops_again is a part of flops. */
static json_t *kernel_json(const Bench *b, const StepTime *k) {
    double per = k->seconds > 0 ? 1 / k->seconds : 0;
    json_t *o = json_pack("{s:s, s:s}", "label", k->label, "kind", k->kind);
    put(o, "ms", 1e3 * k->seconds);
    put_int(o, "calls", k->calls);
    put(o, "flops", k->flops);
    put(o, "flops_again", k->again);
    put(o, "bytes", k->bytes);
    put(o, "tflops_per_second", 1e-12 * k->flops * per);
    put(o, "gb_per_second", 1e-9 * k->bytes * per);
    put(o, "roofline", kernel_share(b, k));
    json_object_set_new(o, "in_cache", json_boolean(kernel_in_cache(b, k)));
    return o;
}

static void put_times(const Bench *b, const Entry *e, json_t *o) {
    const Summary *t = &e->time;
    put(o, "median_ms", t->median);
    put(o, "min_ms", t->min);
    put(o, "max_ms", t->max);
    put(o, "mean_ms", t->mean);
    put(o, "deviation_ms", t->deviation);
    put_int(o, "runs", t->n);
    put_int(o, "outliers", t->outliers);
    json_object_set_new(o, "samples_ms", numbers(e->ms, b->rounds));
    if (e != &b->entry[0]) {
        put(o, "ratio", e->ratio.median);
        put(o, "ratio_low", e->ratio.low);
        put(o, "ratio_high", e->ratio.high);
        put(o, "ratio_confidence", e->ratio.confidence);
        put(o, "p", e->ratio.p);
    }
    if (!(e->old.median > 0)) return;
    put(o, "of_old", t->median / e->old.median);
    put(o, "p_old", e->old.p);
    json_object_set_new(o, "regression", json_boolean(e->old.regressed));
}

static json_t *entry_json(const Bench *b, const Entry *e) {
    json_t *o = json_object(), *list = json_array();
    json_object_set_new(o, "name", json_string(e->name));
    for (int i = 0; i < e->ndiffers; i++) json_array_append_new(list, json_string(e->differs[i]));
    json_object_set_new(o, "differs", list);
    const char *step = e->cached ? "from the second epoch or run" : "every";
    json_object_set_new(o, "step", json_string(step));
    put_times(b, e, o);
    put(o, "tokens_per_second", entry_tokens(e));
    put_int(o, "peak_bytes", e->w.plan->arena_bytes);
    put(o, "flops", e->flops);
    put(o, "flops_executed", e->all.flops);
    put(o, "bytes", e->all.bytes);
    put_int(o, "launches", e->all.launches);
    put_int(o, "unique_kernels", e->w.plan->nkernels);
    put(o, "roofline", entry_share(b, e));
    put(o, "loss", e->loss);
    put(o, "grad_norm", e->grad_norm);
    put(o, "loss_apart", e->loss_apart);
    put(o, "grad_apart", e->grad_apart);
    put(o, "tolerance", e->tolerance);
    json_object_set_new(o, "must_agree", json_boolean(e->must_agree));
    json_object_set_new(o, "kernels", list = json_array());
    for (int i = 0; i < e->nkernels; i++)
        json_array_append_new(list, kernel_json(b, &e->kernel[i]));
    return o;
}

static json_t *context_json(const Context *c) {
    json_t *o = json_pack("{s:s, s:s, s:s, s:I}", "version", VERSION, "system", c->system, "time",
                          c->time, "processors", (json_int_t)c->cpus);
    json_object_set_new(o, "load_average", numbers(c->load, 3));
    put(o, "mhz", c->mhz);
    for (int i = 0; i < c->nfigures; i++) put(o, c->figure[i].name, c->figure[i].value);
    return o;
}

void bench_json(const Bench *b, FILE *out) {
    const Rates *r = &b->rates;
    json_t *o = json_object(), *list = json_array(), *same = json_array();
    json_object_set_new(o, "device", json_string(b->device));
    json_object_set_new(o, "context", context_json(&b->context));
    put(o, "gemm_rate", r->flops);
    put_int(o, "gemm_side", r->side);
    put(o, "bandwidth", r->bandwidth);
    put(o, "beaten", b->beaten);
    json_object_set_new(o, "ceilings", list);
    for (int i = 0; i < r->nlevels; i++)
        json_array_append_new(list,
                              json_pack("{s:I, s:f}", "bytes", (json_int_t)r->level[i].bytes,
                                        "bandwidth", rates_ceiling(r, (double)r->level[i].bytes)));
    json_object_set_new(o, "interleaved", json_boolean(!b->in_turn));
    json_object_set_new(o, "variants", list = json_array());
    for (int i = 0; i < b->n; i++)
        if (b->entry[i].idle)
            json_array_append_new(same, json_string(b->entry[i].differs[0]));
        else
            json_array_append_new(list, entry_json(b, &b->entry[i]));
    if (b->effects)
        json_object_set_new(o, "no_effect", same);
    else
        json_decref(same);
    json_dumpf(o, out, JSON_COMPACT | JSON_REAL_PRECISION(9));
    fputc('\n', out);
    json_decref(o);
}
