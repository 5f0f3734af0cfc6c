/* job.h: what a person runs: training, evaluation, generation, over an opened Exec.
 *
 * Relies on exec.h (a plan whose weights are loaded), pack.h and the io readers; knows no graph.
 * Every function returns an exit code; `err` says what happened when it is not 0.
 */
#ifndef DPOC_JOB_H
#define DPOC_JOB_H

#include "../exec.h"
#include "../io/adapter.h"
#include "epoch.h"
#include "metrics.h"
#include "pack.h"
#include "progress.h"

/* ---- batch.c: one micro-batch, one set of sums ----------------------------------------------- */
PackOptions pack_options_of(const Plan *plan, bool prefix, bool sft);
/* Writes the inputs this plan has (others are skipped) and runs the program. */
bool run_micro(Exec *exec, const Plan *plan, const char *program, const Micro *micro, Err *err);
/* Objective parameters ("dpo.beta") and other settings that are inputs, by name. */
bool write_setting_inputs(Exec *exec, const Plan *plan, Err *err);
bool write_scalar(Exec *exec, const Plan *plan, const char *name, double value,
                  Err *err); /* f32, if there */
bool write_seed(Exec *exec, const Plan *plan, uint64_t seed, int64_t step, Err *err);
/* One optimizer step: programs "step", "micro" for each micro-batch, "update" with rate lr. */
bool run_step(Exec *exec, const Plan *plan, const Pack *pack, uint64_t seed, int64_t step,
              double lr, Err *err);
/* The logged value of each of plan->metrics: sum times its denominator's input as `pack` defines
 * it. */
bool read_metrics(Exec *exec, const Plan *plan, const Pack *pack, int pairs, double *values,
                  Err *err);
/* n pairs of random ids and unequal lengths that fit the plan, for bench and verify; pairs_free. */
Pairs *pairs_random(const Plan *plan, int64_t n, uint64_t seed);
int metric_index(const Plan *plan, const char *name); /* -1: none */

/* ---- evaluate.c ------------------------------------------------------------------------------ */
typedef struct PairScore {
    float logp_chosen, logp_rejected, ref_logp_chosen, ref_logp_rejected;
} PairScore;
typedef struct Evaluation {
    int64_t pairs, tokens;
    double *values;   /* of plan->metrics */
    PairScore *score; /* per pair, in the order given; NAN where the plan has no such output */
} Evaluation;
/* Scores pairs `which[0..n)` (NULL: all n of `pairs`) with program "eval". */
bool evaluate(Exec *exec, const Plan *plan, const Pairs *pairs, const int32_t *which, int64_t n,
              Arena *arena, Evaluation *out, Err *err);
/* CLI.md's document, or a table for people. */
void evaluation_json(const Plan *plan, const Pairs *pairs, const Evaluation *e, FILE *out);
void evaluation_text(const Plan *plan, const Evaluation *e, FILE *out);

/* ---- train.c --------------------------------------------------------------------------------- */
#define RUN_CHOICES "choices.txt" /* in RUN: what the device chose by timing (save_choices) */
typedef struct TrainJob {
    Exec *exec;
    Device *device;
    const Plan *plan;
    const Pairs *pairs;
    const int32_t *train; /* indices into pairs, ntrain of them; NULL: all */
    int64_t ntrain;
    const Pairs *eval_pairs; /* NULL: no evaluation */
    const int32_t *eval;     /* indices into eval_pairs; NULL: all */
    int64_t neval;
    const char *run_dir;
    const char *resume; /* checkpoint to go on from; NULL: newest if `resumes` */
    bool resumes, dry_run, quiet;
    bool coupled;      /* the objective crosses pairs: a step must be one micro-batch */
    int64_t log_every; /* 0: about 20 lines a run */
    uint64_t seed;
    const char *spec_path, *spec_text; /* the .dpo file, kept in the run */
    const char *data_hash;             /* of the pairs as tokenized */
    const char *command; /* JSON: the files and settings named on the command line, for `export` */
} TrainJob;
int job_train(const TrainJob *job, Err *err);
/* Makes or checks the output directory: exit 2 when it is in use and neither flag is given. */
int run_dir_open(const char *dir, bool resumes, bool overwrite, Err *err);
void run_dir_clear(
    const char *dir); /* removes what an earlier run left; called once the new one can start */

/* ---- save.c: adapters and checkpoints -------------------------------------------------------- */
typedef struct TrainState { /* all that a run needs to go on, beside the flat buffers */
    int64_t step;           /* steps made */
    int64_t cursor;         /* items of the endless sequence used */
    int64_t tokens;         /* num_tokens so far */
    uint64_t seed;
} TrainState;
/* The trained tensors in PEFT form (or as model.safetensors for `train base`) under `dir`. */
bool save_trained(Exec *exec, const Plan *plan, const char *dir, Err *err);
/* RUN/checkpoint-N, complete by construction: written as checkpoint-N.tmp, synced, renamed. */
bool save_checkpoint(const TrainJob *job, const TrainState *state, Err *err);
/* Newest complete checkpoint of RUN, or NULL (arena text). */
const char *newest_checkpoint(Arena *arena, const char *run_dir);
/* Loads flat buffers and state; refuses, naming what differs, when plan or data are not the
 * same. */
bool load_checkpoint(const TrainJob *job, const char *dir, TrainState *state, Err *err);
/* Keeps the newest `keep` checkpoints (0: all). */
void prune_checkpoints(const char *run_dir, int64_t keep);

/* ---- generate.c ------------------------------------------------------------------------------ */
typedef struct GenerateJob {
    Exec *exec;
    const Plan *plan; /* with program "logits" */
    Tokenizer *tokenizer;
    int64_t max_tokens;
    double temperature, top_p;
    uint64_t seed;
    const int32_t *stop; /* token ids that end an answer */
    int nstop;
    FILE *stream; /* pieces as they come; NULL: none */
} GenerateJob;
/* Appends new ids to `ids` (the prompt); the last one may be a stop token. */
bool generate(const GenerateJob *job, Ids *ids, Err *err);
/* The text that ids from `begin` on add to what stands before them (a decoder may treat the
 * beginning of a text in its own way, so the answer alone would lose its first space). */
void answer_text(const Tokenizer *t, const Ids *ids, int64_t begin, Text *out);

/* ---- stop.c: Ctrl-C ends after the current step ---------------------------------------------- */
void stop_watch(void); /* installs handlers for SIGINT and SIGTERM; a second signal ends at once */
int stop_signal(void); /* 0, or the signal that came */

#endif
