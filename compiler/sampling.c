/* sampling.c: how answers are drawn and where they end, from flags and generation_config.json. */
#include <jansson.h>
#include <math.h>

#include "generate.h"

int64_t generate_max_tokens(const Work *w) {
    return isnan(w->options->max_tokens) ? 128 : (int64_t)w->options->max_tokens;
}

static json_t *generation_config(const Work *w) {
    const char *dir = work_model_dir(w);
    return dir ? json_load_file(path_join(w->arena, dir, "generation_config.json"), 0, NULL) : NULL;
}

static void add_stop(int32_t *stop, int *n, int max, int64_t id) {
    if (id >= 0 && id <= INT32_MAX && *n < max) stop[(*n)++] = (int32_t)id;
}

int generate_stops(const Work *w, const Template *t, int32_t *stop, int max) {
    int n = 0;
    add_stop(stop, &n, max, w->tokenizer->eos);
    if (t->kind == TEMPLATE_CHAT) add_stop(stop, &n, max, template_stop(t));
    json_t *config = generation_config(w), *eos = json_object_get(config, "eos_token_id");
    if (json_is_integer(eos)) add_stop(stop, &n, max, json_integer_value(eos));
    for (size_t i = 0; i < json_array_size(eos); i++) {
        const json_t *id = json_array_get(eos, i);
        if (json_is_integer(id)) add_stop(stop, &n, max, json_integer_value(id));
    }
    json_decref(config);
    return n;
}

/* A flag, else what generation_config.json says where that was asked for, else `value`. */
static double number(double flag, const json_t *config, const char *key, double value) {
    const json_t *its = json_object_get(config, key);
    if (!isnan(flag)) return flag;
    return json_is_number(its) ? json_number_value(its) : value;
}

Sampling generate_sampling(const Work *w) {
    const Options *o = w->options;
    json_t *config = o->model_sampling ? generation_config(w) : NULL;
    bool greedy = !config || json_is_false(json_object_get(config, "do_sample"));
    Sampling s = {.temperature = number(o->temperature, config, "temperature", greedy ? 0 : 1),
                  .top_k = (int64_t)number(o->top_k, config, "top_k", 0),
                  .top_p = number(o->top_p, config, "top_p", 1),
                  .seed = work_seed(w)};
    if (greedy && isnan(o->temperature)) s.temperature = 0;
    if (o->model_sampling && !o->quiet) {
        fprintf(stderr, "sampling: temperature %g, top-p %g, top-k ", s.temperature, s.top_p);
        fprintf(stderr, s.top_k ? "%lld\n" : "off\n", (long long)s.top_k);
    }
    json_decref(config);
    return s;
}
