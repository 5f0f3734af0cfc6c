/* report.c: runs read back, and what is worth knowing of them.  See report.h. */
#include "report.h"
#include "metrics.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const run_states[] = {"running", "broken off", "finished", "stopped early"};

/* ---- curves ---------------------------------------------------------------------------------- */

static Curve *curve_of(Arena *arena, RunLog *log, const char *key) {
    for (int i = 0; i < log->ncurve; i++)
        if (strcmp(log->curve[i].key, key) == 0) return &log->curve[i];
    Curve c = {.key = arena_str(arena, key)};
    PUSH(arena, log->curve, log->ncurve, log->capcurve, c);
    return &log->curve[log->ncurve - 1];
}

static void curve_add(Curve *c, double x, double y) {
    if (c->n == c->cap) {
        c->cap = c->cap ? 2 * c->cap : 64;
        c->x = realloc(c->x, sizeof *c->x * (size_t)c->cap);
        c->y = realloc(c->y, sizeof *c->y * (size_t)c->cap);
        if (!c->x || !c->y) exit(EXIT_MEMORY);
    }
    c->x[c->n] = x;
    c->y[c->n++] = y;
}

const Curve *run_curve(const RunLog *log, const char *key) {
    for (int i = 0; i < log->ncurve; i++)
        if (strcmp(log->curve[i].key, key) == 0) return &log->curve[i];
    return NULL;
}

double curve_first(const Curve *c) {
    for (int i = 0; c && i < c->n; i++)
        if (isfinite(c->y[i])) return c->y[i];
    return NAN;
}

double curve_last(const Curve *c) {
    for (int i = c ? c->n - 1 : -1; i >= 0; i--)
        if (isfinite(c->y[i])) return c->y[i];
    return NAN;
}

double curve_best(const Curve *c, bool low) {
    double best = NAN;
    for (int i = 0; c && i < c->n; i++) best = low ? fmin(best, c->y[i]) : fmax(best, c->y[i]);
    return best;
}

static double curve_sum(const Curve *c) {
    double sum = 0;
    for (int i = 0; c && i < c->n; i++)
        if (isfinite(c->y[i])) sum += c->y[i];
    return sum;
}

void curve_smooth(const Curve *c, double *y) {
    double span = fmax(1, c->n / 20.0), weight = 2 / (span + 1), mean = 0, known = 0;
    for (int i = 0; i < c->n; i++) {
        if (isfinite(c->y[i])) {
            mean += weight * (c->y[i] - mean);
            known += weight * (1 - known); /* the share of values in the mean: it began at 0 */
        }
        y[i] = known > 0 ? mean / known : NAN;
    }
}

/* ---- reading --------------------------------------------------------------------------------- */

static void take_numbers(Arena *arena, RunLog *log, json_t *line, double step) {
    const char *key;
    json_t *value;
    json_object_foreach(line, key, value) {
        if (!strcmp(key, "step") || !strcmp(key, "time")) continue;
        if (json_is_number(value) || json_is_null(value))
            curve_add(curve_of(arena, log, key), step,
                      json_is_null(value) ? NAN : json_number_value(value));
    }
}

static void take_line(Arena *arena, RunLog *log, json_t *line) {
    const char *event = json_string_value(json_object_get(line, "event"));
    double step = (double)json_integer_value(json_object_get(line, "step"));
    json_t *total = json_object_get(line, "total_steps");
    if (total) log->total = json_integer_value(total);
    if (!event || !strcmp(event, "start")) return;
    if ((int64_t)step > log->step) log->step = (int64_t)step;
    const char *how = json_string_value(json_object_get(line, "stopped"));
    if (!strcmp(event, "end"))
        log->state = how && !strcmp(how, "early") ? RUN_STOPPED_EARLY : RUN_FINISHED;
    else
        take_numbers(arena, log, line, step);
}

/* Calls `take` for every whole line that is JSON; how many there were. */
static int each_line(Arena *arena, RunLog *log, const char *text,
                     void (*take)(Arena *, RunLog *, json_t *)) {
    int n = 0;
    for (const char *end; (end = strchr(text, '\n')); text = end + 1) {
        json_t *line = json_loadb(text, (size_t)(end - text), 0, NULL);
        if (json_is_object(line)) {
            take(arena, log, line);
            n++;
        }
        json_decref(line);
    }
    return n;
}

static const char *text_of(Arena *arena, json_t *line, const char *key) {
    const char *s = json_string_value(json_object_get(line, key));
    return s ? arena_str(arena, s) : "";
}

static void take_sample(Arena *arena, RunLog *log, json_t *line) {
    int64_t step = json_integer_value(json_object_get(line, "step"));
    const char *prompt = text_of(arena, line, "prompt"), *answer = text_of(arena, line, "answer");
    for (int i = 0; i < log->nsample; i++) {
        if (strcmp(log->sample[i].prompt, prompt) != 0) continue;
        log->sample[i].last = step;
        log->sample[i].after = answer;
        return;
    }
    SampleText s = {prompt, step, step, answer, answer};
    PUSH(arena, log->sample, log->nsample, log->capsample, s);
}

static bool read_one(Arena *arena, const char *dir, RunLog *log, Err *err) {
    *log = (RunLog){.dir = dir, .name = dir, .state = RUN_BROKEN_OFF};
    const char *path = path_join(arena, dir, "metrics.jsonl");
    if (!file_exists(path))
        return fail(err, EXIT_IO, "%s: no such file: %s is not the directory of a run", path, dir);
    size_t len;
    char *text = file_read(path, &len, err);
    if (!text) return false;
    int n = each_line(arena, log, text, take_line);
    free(text);
    if (n == 0) return fail(err, EXIT_IO, "%s: no line of a run in it", path);
    if (log->state == RUN_BROKEN_OFF && metrics_in_use(path)) log->state = RUN_GOING_ON;
    log->config = json_load_file(path_join(arena, dir, "run.json"), 0, NULL);
    path = path_join(arena, dir, "samples.jsonl");
    if (file_exists(path) && (text = file_read(path, &len, err))) {
        each_line(arena, log, text, take_sample);
        free(text);
    }
    log->seconds = 1e-3 * curve_sum(run_curve(log, "step_time_ms")) +
                   curve_sum(run_curve(log, "eval_runtime"));
    log->tokens = curve_last(run_curve(log, "num_tokens"));
    log->energy = curve_sum(run_curve(log, "gpu/energy_joules"));
    return true;
}

/* The last part of the path, where no other run has the same. */
static void name_runs(Arena *arena, RunLog *logs, int n) {
    const char **last = NEW_ARRAY(arena, const char *, n);
    for (int i = 0; i < n; i++) {
        char *dir = arena_str(arena, logs[i].dir);
        for (size_t k = strlen(dir); k > 1 && dir[k - 1] == '/'; k--) dir[k - 1] = 0;
        const char *slash = strrchr(dir, '/');
        last[i] = slash && slash[1] ? slash + 1 : dir;
    }
    for (int i = 0; i < n; i++) {
        bool alone = true;
        for (int k = 0; k < n; k++) alone = alone && (k == i || strcmp(last[i], last[k]) != 0);
        if (alone) logs[i].name = last[i];
    }
}

bool run_logs_read(Arena *arena, const char *const *dirs, int n, RunLog *out, Err *err) {
    memset(out, 0, sizeof *out * (size_t)n);
    for (int i = 0; i < n; i++)
        if (!read_one(arena, dirs[i], &out[i], err)) return false;
    name_runs(arena, out, n);
    return true;
}

void run_logs_free(RunLog *logs, int n) {
    for (int i = 0; i < n; i++) {
        json_decref(logs[i].config);
        for (int k = 0; k < logs[i].ncurve; k++) {
            free(logs[i].curve[k].x);
            free(logs[i].curve[k].y);
        }
    }
}

/* ---- the summary ----------------------------------------------------------------------------- */

static const char *value_text(Arena *arena, json_t *value) {
    if (json_is_string(value)) return arena_str(arena, json_string_value(value));
    if (!json_is_number(value)) return NULL;
    char number[40];
    number_text(number, json_number_value(value));
    return arena_str(arena, number);
}

const char *run_setting(Arena *arena, const RunLog *log, const char *path) {
    return value_text(arena, json_object_get(json_object_get(log->config, "settings"), path));
}

static const char *of_config(Arena *arena, const RunLog *log, const char *key) {
    const char *text = value_text(arena, json_object_get(log->config, key));
    return text ? text : "";
}

static const char *row_state(Arena *a, const RunLog *l) {
    return arena_printf(a, "%s, step %lld of %lld", run_states[l->state], (long long)l->step,
                        (long long)l->total);
}
static const char *row_model(Arena *a, const RunLog *l) {
    return of_config(a, l, "base");
}
static const char *row_spec(Arena *a, const RunLog *l) {
    return of_config(a, l, "spec");
}
static const char *row_device(Arena *a, const RunLog *l) {
    return of_config(a, l, "device");
}

static const char *row_parameters(Arena *a, const RunLog *l) {
    double all = json_number_value(json_object_get(l->config, "parameters")),
           trained = json_number_value(json_object_get(l->config, "trainable"));
    char total[32], part[32];
    format_count(total, all);
    format_count(part, trained);
    return all > 0 ? arena_printf(a, "%s, %s trained (%.2f %%)", total, part, 100 * trained / all)
                   : "";
}

/* "60 of 64 kept, cut 3, too_long 4": what was read of the training files, where it is known. */
static const char *row_read(Arena *a, const RunLog *l) {
    json_t *data = json_object_get(l->config, "data"), *train = json_object_get(data, "train"),
           *counts = json_object_get(train, "counts"), *value;
    const char *key, *text = "";
    if (!json_object_get(counts, "kept")) return "";
    text = arena_printf(a, "%lld of %lld kept",
                        (long long)json_integer_value(json_object_get(counts, "kept")),
                        (long long)json_integer_value(json_object_get(counts, "read")));
    json_object_foreach(counts, key, value) {
        bool said = !strcmp(key, "kept") || !strcmp(key, "read") || !strncmp(key, "longest", 7);
        if (!said && json_integer_value(value))
            text = arena_printf(a, "%s, %s %lld", text, key, (long long)json_integer_value(value));
    }
    return text;
}

static const char *row_data(Arena *a, const RunLog *l) {
    double train = json_number_value(json_object_get(l->config, "train_pairs")),
           eval = json_number_value(json_object_get(l->config, "eval_pairs"));
    const char *file = run_setting(a, l, "data.train");
    return train > 0 ? arena_printf(a, "%.0f pairs, %.0f to evaluate%s%s", train, eval,
                                    file ? ", " : "", file ? file : "")
                     : "";
}

static const char *row_step(Arena *a, const RunLog *l) {
    const char *batch = run_setting(a, l, "run.batch"), *lr = run_setting(a, l, "run.lr"),
               *schedule = run_setting(a, l, "run.schedule"),
               *warmup = run_setting(a, l, "run.warmup"),
               *optimizer = run_setting(a, l, "run.optimizer");
    if (!batch || !lr || !schedule || !warmup || !optimizer) return "";
    return arena_printf(a, "%s pairs, %s, lr %s, %s, warm-up %s", batch, optimizer, lr, schedule,
                        warmup);
}

/* "0.6931 -> 0.4102"; "" without the curve. */
static const char *from_to(Arena *a, const RunLog *l, const char *key) {
    const Curve *c = run_curve(l, key);
    if (!isfinite(curve_first(c))) return "";
    return arena_printf(a, "%.4g → %.4g", curve_first(c), curve_last(c));
}
static const char *row_loss(Arena *a, const RunLog *l) {
    return from_to(a, l, "loss");
}
static const char *row_margin(Arena *a, const RunLog *l) {
    return from_to(a, l, "rewards/margins");
}

static const char *eval_text(Arena *a, const RunLog *l, const char *key, bool low) {
    const Curve *c = run_curve(l, key);
    if (!c || !isfinite(curve_last(c))) return "";
    double best = curve_best(c, low), at = 0;
    for (int i = c->n - 1; i >= 0; i--)
        if (c->y[i] == best) at = c->x[i];
    return arena_printf(a, "%.4g; best %.4g at step %.0f", curve_last(c), best, at);
}
static const char *row_eval_loss(Arena *a, const RunLog *l) {
    return eval_text(a, l, "eval_loss", true);
}
static const char *row_eval_margin(Arena *a, const RunLog *l) {
    return eval_text(a, l, "eval_rewards/margins", false);
}
static const char *row_eval_accuracy(Arena *a, const RunLog *l) {
    const char *text = eval_text(a, l, "eval_rewards/accuracies", false);
    double error = curve_last(run_curve(l, "eval_rewards/accuracies_stderr"));
    return *text && isfinite(error) ? arena_printf(a, "%s (± %.2g)", text, error) : text;
}

static const char *row_time(Arena *a, const RunLog *l) {
    char spent[32];
    format_duration(spent, l->seconds);
    return l->step > 0 ? arena_printf(a, "%s", spent) : "";
}

static const char *row_tokens(Arena *a, const RunLog *l) {
    double seconds = 1e-3 * curve_sum(run_curve(l, "step_time_ms"));
    if (!isfinite(l->tokens)) return "";
    char tokens[32], rate[32];
    format_count(tokens, l->tokens);
    format_count(rate, l->tokens / fmax(1e-9, seconds));
    return arena_printf(a, "%s, %s a second", tokens, rate);
}

static const char *row_memory(Arena *a, const RunLog *l) {
    char planned[32], used[32];
    double most = curve_best(run_curve(l, "gpu/memory_used_bytes"), false);
    if (!isfinite(most)) most = curve_best(run_curve(l, "cpu/memory_used_bytes"), false);
    format_bytes(planned, curve_last(run_curve(l, "memory_bytes")));
    if (!run_curve(l, "memory_bytes")) return "";
    if (!isfinite(most)) return arena_printf(a, "%s planned", planned);
    format_bytes(used, most);
    return arena_printf(a, "%s planned, %s at most in use", planned, used);
}

static const char *row_energy(Arena *a, const RunLog *l) {
    return l->energy > 0 ? arena_printf(a, "%.4g kJ (%.3g Wh)", l->energy / 1e3, l->energy / 3600)
                         : "";
}

static const struct {
    const char *name;
    const char *(*text)(Arena *, const RunLog *);
} facts[] = {{"state", row_state},
             {"file", row_spec},
             {"model", row_model},
             {"parameters", row_parameters},
             {"data", row_data},
             {"read", row_read},
             {"step", row_step},
             {"loss", row_loss},
             {"margin", row_margin},
             {"eval loss", row_eval_loss},
             {"eval margin", row_eval_margin},
             {"eval accuracy", row_eval_accuracy},
             {"time", row_time},
             {"tokens", row_tokens},
             {"memory", row_memory},
             {"energy", row_energy},
             {"device", row_device}};

/* Settings whose text is not the same in all runs that say it. */
static void add_differences(Arena *arena, const RunLog *logs, int n, ReportRow **rows, int *nrows,
                            int *cap) {
    const char *path;
    json_t *value, *settings = NULL;
    for (int i = 0; i < n && !settings; i++) settings = json_object_get(logs[i].config, "settings");
    json_object_foreach(settings, path, value) {
        ReportRow row = {arena_str(arena, path), NEW_ARRAY(arena, const char *, n)};
        const char *said = NULL;
        bool differs = false;
        for (int i = 0; i < n; i++) {
            const char *text = run_setting(arena, &logs[i], path);
            row.text[i] = text ? text : "";
            differs = differs || (said && text && strcmp(said, text) != 0);
            if (text) said = text;
        }
        if (differs) PUSH(arena, *rows, *nrows, *cap, row);
    }
}

ReportRow *report_rows(Arena *arena, const RunLog *logs, int n, int *nrows) {
    ReportRow *rows = NULL;
    int cap = 0;
    *nrows = 0;
    for (size_t f = 0; f < COUNT(facts); f++) {
        ReportRow row = {facts[f].name, NEW_ARRAY(arena, const char *, n)};
        bool any = false;
        for (int i = 0; i < n; i++) {
            row.text[i] = facts[f].text(arena, &logs[i]);
            any = any || *row.text[i];
        }
        if (any) PUSH(arena, rows, *nrows, cap, row);
    }
    add_differences(arena, logs, n, &rows, nrows, &cap);
    return rows;
}

void report_text_of(const RunLog *logs, int n, FILE *out) {
    Arena *arena = arena_new();
    int nrows;
    ReportRow *rows = report_rows(arena, logs, n, &nrows);
    int width = 14;
    for (int k = 0; k < nrows; k++)
        if ((int)strlen(rows[k].name) > width) width = (int)strlen(rows[k].name);
    for (int i = 0; i < n; i++) {
        fprintf(out, "%s%s\n", i ? "\n" : "", logs[i].dir);
        for (int k = 0; k < nrows; k++)
            if (*rows[k].text[i]) fprintf(out, "  %-*s %s\n", width, rows[k].name, rows[k].text[i]);
    }
    const Curve *loss = run_curve(&logs[0], "loss"),
                *margin = run_curve(&logs[0], "rewards/margins");
    if (n == 1 && loss && loss->n > 1) progress_curve(out, "loss", loss->y, loss->n, 8);
    if (n == 1 && margin && margin->n > 1)
        progress_curve(out, "reward margin", margin->y, margin->n, 8);
    arena_free(arena);
}
