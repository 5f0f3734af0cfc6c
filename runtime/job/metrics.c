/* metrics.c: see metrics.h. */
#include "metrics.h"
#include "../io/utf8.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

struct MetricsFile {
    FILE *file;
    char *path;
    Text line;
    bool finite;
    double wall;      /* of the event under way, seconds since 1970 */
    TfEvents *events; /* or NULL */
    bool mirrors;     /* the event has a step */
    int64_t kept;     /* see metrics_kept_step */
};

void number_text(char out[40], double x) {
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, 40, "%.*g", digits, x);
        if (strtod(out, NULL) != x) continue;
        if (fabs(x) < 1e15 && x == floor(x)) snprintf(out, 40, "%.0f", x); /* 30, not 3e+01 */
        return;
    }
}

void json_escape(Text *out, const char *s) {
    Text valid = {0};
    utf8_repair(s, strlen(s), &valid);
    text_add(out, "\"");
    for (s = valid.len ? valid.data : ""; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            text_add(out, "\\%c", c);
        else if (c == '\n')
            text_add(out, "\\n");
        else if (c < 0x20)
            text_add(out, "\\u%04x", c);
        else
            text_add(out, "%c", c);
    }
    text_add(out, "\"");
    text_free(&valid);
}

/* Length of the part of `text` that holds whole lines of steps <= keep (other events count as
 * belonging to the step before them; an "end" is none for a run that goes on); the step of its last
 * line that has one, or -1. */
static size_t kept_length(const char *text, size_t len, int64_t keep, int64_t *last) {
    size_t at = 0;
    *last = -1;
    while (keep >= 0 && at < len) {
        const char *end = memchr(text + at, '\n', len - at);
        if (!end) break;
        json_t *line = json_loadb(text + at, (size_t)(end - text) - at, 0, NULL);
        if (!line) break;
        json_t *step = json_object_get(line, "step");
        const char *event = json_string_value(json_object_get(line, "event"));
        bool past = step && (json_integer_value(step) > keep || (event && !strcmp(event, "end")));
        if (step && !past) *last = json_integer_value(step);
        json_decref(line);
        if (past) break;
        at = (size_t)(end - text) + 1;
    }
    return at;
}

/* Two processes in one run would spoil it; where the file system has no locks there is none. */
static bool lock(FILE *file, const char *path, Err *err) {
    if (flock(fileno(file), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return true;
    return fail(err, EXIT_USAGE, "%s: another process is writing this run", path);
}

bool metrics_in_use(const char *path) {
    FILE *file = fopen(path, "r");
    bool used = file && flock(fileno(file), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (file) fclose(file);
    return used;
}

static bool cut(const char *path, int64_t keep_steps, int64_t *last, Err *err) {
    size_t len;
    char *text = file_read(path, &len, err);
    if (!text) return false;
    size_t keep = kept_length(text, len, keep_steps, last);
    free(text);
    return keep == len || truncate(path, (off_t)keep) == 0 ||
           fail(err, EXIT_IO, "%s: cannot cut to the checkpoint: %s", path, strerror(errno));
}

MetricsFile *metrics_open(const char *path, int64_t keep_steps, Err *err) {
    FILE *file = fopen(path, "a");
    if (!file) {
        fail(err, EXIT_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    int64_t kept;
    bool ok = lock(file, path, err) && cut(path, keep_steps, &kept, err);
    if (!ok) {
        fclose(file);
        return NULL;
    }
    MetricsFile *m = calloc(1, sizeof *m);
    m->file = file;
    m->path = strdup(path);
    m->kept = kept;
    return m;
}

int64_t metrics_kept_step(const MetricsFile *m) {
    return m->kept;
}

static void key_of(MetricsFile *m, const char *key) {
    if (m->line.len > 1) text_add(&m->line, ",");
    json_escape(&m->line, key);
    text_add(&m->line, ":");
}

void metrics_mirror(MetricsFile *m, TfEvents *events) {
    m->events = events;
}

/* The tag that TensorBoard users expect: slashes instead of a prefix. */
static void mirror(MetricsFile *m, const char *key, double value) {
    char tag[256];
    if (strncmp(key, "gpu/", 4) == 0 || strncmp(key, "cpu/", 4) == 0)
        snprintf(tag, sizeof tag, "%s", key);
    else if (strncmp(key, "eval_", 5) == 0)
        snprintf(tag, sizeof tag, "eval/%s", key + 5);
    else
        snprintf(tag, sizeof tag, "train/%s", key);
    tfevents_scalar(m->events, tag, value);
}

double metrics_wall(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)(now.tv_nsec / 1000000) * 1e-3;
}

void metrics_begin(MetricsFile *m, const char *event) {
    m->wall = metrics_wall();
    m->line.len = 0;
    m->finite = true;
    m->mirrors = false;
    text_add(&m->line, "{");
    metrics_str(m, "event", event);
}

void metrics_int(MetricsFile *m, const char *key, int64_t value) {
    key_of(m, key);
    text_add(&m->line, "%lld", (long long)value);
    if (m->mirrors) mirror(m, key, (double)value);
    if (m->events && strcmp(key, "step") == 0) {
        tfevents_begin(m->events, m->wall, value);
        m->mirrors = true;
    }
}

void metrics_time(MetricsFile *m) {
    key_of(m, "time");
    text_add(&m->line, "%.3f", m->wall);
}

void metrics_num(MetricsFile *m, const char *key, double value) {
    key_of(m, key);
    if (isfinite(value)) {
        char number[40];
        number_text(number, value);
        text_add(&m->line, "%s", number);
    } else {
        m->finite = false;
        text_add(&m->line, "null");
    }
    if (m->mirrors) mirror(m, key, value);
}

void metrics_str(MetricsFile *m, const char *key, const char *value) {
    key_of(m, key);
    json_escape(&m->line, value);
}

void metrics_raw(MetricsFile *m, const char *key, const char *json) {
    key_of(m, key);
    text_add(&m->line, "%s", json);
}

bool metrics_end(MetricsFile *m, Err *err) {
    if (!m->finite) text_add(&m->line, ",\"finite\":false");
    text_add(&m->line, "}\n");
    if (fwrite(m->line.data, 1, m->line.len, m->file) != m->line.len || fflush(m->file) != 0)
        return fail(err, EXIT_IO, "%s: cannot write: %s", m->path, strerror(errno));
    return !m->mirrors || tfevents_end(m->events, err);
}

bool metrics_close(MetricsFile *m, Err *err) {
    if (!m) return true;
    bool ok = fclose(m->file) == 0 || fail(err, EXIT_IO, "%s: %s", m->path, strerror(errno));
    text_free(&m->line);
    free(m->path);
    free(m);
    return ok;
}
