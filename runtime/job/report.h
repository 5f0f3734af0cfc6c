/* report.h: what a run wrote, read back: curves, settings, samples; as text and as one page.
 *
 * Reads runs that are still going on or were broken off: a torn last line is left out.  Relies on
 * metrics.jsonl, run.json and samples.jsonl alone, so a run may come from another machine.
 */
#ifndef DPOC_JOB_REPORT_H
#define DPOC_JOB_REPORT_H

#include <jansson.h>

#include "../base.h"

typedef struct Curve { /* one number over the steps; NAN where it was not finite */
    const char *key;   /* "loss", "eval_rewards/margins", .. */
    double *x, *y;
    int n, cap;
} Curve;

typedef struct SampleText { /* one prompt's answers */
    const char *prompt;
    int64_t first, last; /* steps */
    const char *before, *after;
} SampleText;

typedef enum RunState { RUN_GOING_ON, RUN_BROKEN_OFF, RUN_FINISHED, RUN_STOPPED_EARLY } RunState;
extern const char *const run_states[]; /* "running", "broken off", "finished", "stopped early" */

typedef struct RunLog {
    const char *dir, *name; /* name: the shortest that tells the runs apart */
    json_t *config;         /* run.json, or NULL */
    RunState state;
    int64_t step, total;            /* steps made, wanted */
    double seconds, tokens, energy; /* of steps and evaluations; energy 0: not known */
    Curve *curve;
    int ncurve, capcurve;
    SampleText *sample;
    int nsample, capsample;
} RunLog;

/* Reads n runs; false (exit 5) where one has no metrics.jsonl, or nothing in it.  run_logs_free. */
bool run_logs_read(Arena *arena, const char *const *dirs, int n, RunLog *out, Err *err);
void run_logs_free(RunLog *logs, int n);
const Curve *run_curve(const RunLog *log, const char *key); /* NULL: none */
double curve_first(const Curve *c), curve_last(const Curve *c),
    curve_best(const Curve *c, bool low);
/* Mean of the last values, weighted 2 / (span + 1) each, corrected at the start; y[c->n]. */
void curve_smooth(const Curve *c, double *y);
/* "run.lr" and the like from run.json as text; NULL: not there (arena). */
const char *run_setting(Arena *arena, const RunLog *log, const char *path);

/* One row of the summary: a name and each run's text ("" where it does not know). */
typedef struct ReportRow {
    const char *name;
    const char **text; /* [n] */
} ReportRow;
/* What is worth knowing of each run, then the settings in which they differ. */
ReportRow *report_rows(Arena *arena, const RunLog *logs, int n, int *nrows);

void report_text_of(const RunLog *logs, int n, FILE *out);
void report_html(const RunLog *logs, int n, Text *out); /* one page, nothing from elsewhere */
void report_svg(const RunLog *logs, int n, Text *out);  /* the charts alone */

#endif
