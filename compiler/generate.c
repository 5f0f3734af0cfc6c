/* generate.c: how answers are drawn and where they end, from flags and generation_config.json; what
 * is said of them (generate.h). */
#include <jansson.h>
#include <math.h>

#include "generate.h"

int64_t generate_max_tokens(const Work *w) {
    return isnan(w->options->max_tokens) ? 128 : (int64_t)w->options->max_tokens;
}

static const char *config_path(const Work *w) { /* NULL: there is none */
    const char *dir = work_model_dir(w);
    const char *path = dir ? path_join(w->arena, dir, "generation_config.json") : NULL;
    return path && file_exists(path) ? path : NULL;
}

static json_t *generation_config(const Work *w) {
    const char *path = config_path(w);
    return path ? json_load_file(path, 0, NULL) : NULL;
}

static bool is_id(const json_t *x) {
    return json_is_integer(x) && json_integer_value(x) >= 0;
}

/* Nothing, a token id, or a list of them. */
static bool are_ids(const json_t *x) {
    for (size_t i = 0; i < json_array_size(x); i++)
        if (!is_id(json_array_get(x, i))) return false;
    return !x || json_is_null(x) || json_is_array(x) || is_id(x);
}

static bool in_range(const json_t *x, double min, double max) {
    return !x || json_is_null(x) ||
           (json_is_number(x) && json_number_value(x) >= min && json_number_value(x) <= max);
}

bool generate_config_check(Work *w) {
    const char *path = config_path(w);
    if (!path) return true;
    json_error_t e;
    json_t *o = json_load_file(path, 0, &e);
    if (!o) return fail(&w->err, EXIT_IO, "%s:%d:%d: %s", path, e.line, e.column, e.text);
    const bool draws = w->options->model_sampling;
    const char *flaw = NULL;
    if (!json_is_object(o))
        flaw = "not a JSON object";
    else if (!are_ids(json_object_get(o, "eos_token_id")))
        flaw = "\"eos_token_id\" is neither a token id nor a list of them";
    else if (draws && !in_range(json_object_get(o, "temperature"), 0, 1e30))
        flaw = "\"temperature\" is no number from 0 on";
    else if (draws && !in_range(json_object_get(o, "top_p"), 0, 1))
        flaw = "\"top_p\" is no number from 0 to 1";
    else if (draws && !in_range(json_object_get(o, "top_k"), 0, INT32_MAX))
        flaw = "\"top_k\" is no number from 0 on";
    json_decref(o);
    return !flaw || fail(&w->err, EXIT_IO, "%s: %s", path, flaw);
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
    bool greedy = !json_is_true(json_object_get(config, "do_sample")); /* theirs: false if absent */
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

void generate_print_stats(const Work *w, const GenerateStats *s) {
    if (w->options->quiet) return;
    const double decoded = (double)s->tokens;
    fprintf(stderr, "%lld prompt tokens, %.0f a second; %lld new ones, %.1f a second",
            (long long)s->prompt_tokens, (double)s->prompt_tokens / fmax(s->prefill_seconds, 1e-9),
            (long long)s->tokens, decoded / fmax(s->prefill_seconds + s->decode_seconds, 1e-9));
    if (s->runs) fprintf(stderr, " (%.1f ms a step)", 1e3 * s->decode_seconds / (double)s->runs);
    fputc('\n', stderr);
}
