/* run.h: a training job under way, and what its parts do: train.c walks the steps, log.c writes
 * what happened, guard.c says what looks wrong, summary.c what a person sees at the end. */
#ifndef DPOC_RUN_H
#define DPOC_RUN_H

#include "../monitor.h"
#include "job.h"

typedef struct Batch { /* the pairs of one step, packed */
    Arena *arena;
    Pack *pack; /* NULL: they cannot be, as err says */
    Err err;
} Batch;

typedef struct Totals { /* of this process's part of the run */
    double started;     /* now_seconds at the first step */
    int64_t steps, tokens, pairs;
    double energy;           /* joules; 0: not known */
    double device_memory;    /* most bytes in use, of the GPU or of this process; 0: not known */
    double first_loss, loss; /* of the first and the last step */
} Totals;

typedef struct LastEval {
    int64_t step;                            /* -1: none yet */
    double loss, margin, accuracy, stderror; /* NAN: the plan has no such metric */
} LastEval;

typedef struct Run {
    const TrainJob *job;
    const Plan *plan;
    TrainState state;
    Epoch epoch;
    Batch next; /* packed while the device works; arena NULL: not yet */
    Arena *arena;
    MetricsFile *metrics, *samples; /* samples: NULL where none are asked for */
    TfEvents *events;
    Monitor *monitor;
    Progress progress;
    double *values;        /* of plan->metrics */
    double *loss, *margin; /* of this process's steps, for the curves at the end */
    int ncurve;
    int64_t steps, batch, ntrain;
    int best;                 /* the metric of plan->metrics that run.best names; -1: none */
    bool best_is_lower;       /* a lower value of it is better */
    bool best_loaded;         /* RUN/adapter is the best checkpoint's */
    LastEval eval, best_eval; /* best_eval: of this process */
    double promised;          /* FLOP/s of the device, for mfu; 0: not known */
    bool stopped_early;
    int stop; /* the signal that ends the run, as all its processes know it; 0: none yet */
    Totals total;
    int64_t silent_steps; /* steps from the first on in which no reward moved; -1: one did */
} Run;

/* ---- log.c: run.json, metrics.jsonl, TensorBoard, trainer_state.json ------------------------- */
bool log_open(Run *r, bool resumed, Err *err);
bool log_step(Run *r, const Pack *pack, double lr, double norm, double seconds, Err *err);
bool log_eval(Run *r, const Evaluation *e, double seconds, Err *err);
bool log_end(Run *r, Err *err);
bool log_close(Run *r, Err *err);
double run_value(const Run *r, const double *values, const char *metric); /* NAN: no such metric */

/* ---- samples.c: greedy answers of the policy as it is ---------------------------------------- */
bool samples_open(Run *r, bool goes_on, Err *err);
/* Answers all prompts, into RUN/samples.jsonl and TensorBoard, unless that was done at this step
 * before the run was broken off.  A signal ends it without a line: going on makes up for it. */
bool samples_take(Run *r, Err *err);

/* ---- guard.c --------------------------------------------------------------------------------- */
/* False: the step's numbers are no basis to go on from (exit 6). */
bool guard_step(const Run *r, int64_t step, double loss, double norm, Err *err);
/* Warns, once each, of a first loss that shows a reference that is not the policy, and of rewards
 * that stay 0. */
void guard_warn(Run *r, double lr);

/* ---- summary.c ------------------------------------------------------------------------------- */
void summary_print(const Run *r);

#endif
