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
/* One optimizer step: programs "step", "micro" for each micro-batch, "update" with rate lr.  Where
 * the plan has a program "objective" it stands before "micro", after "score" for each. */
bool run_step(Exec *exec, const Plan *plan, const Pack *pack, uint64_t seed, int64_t step,
              double lr, Err *err);
/* Buffer `name` (f32) becomes the sum of what the processes of the job have in it (ranks.h). */
bool share_sums(Exec *exec, const Plan *plan, const char *name, Err *err);
/* An objective that needs a step to be one micro-batch has that: false, and how to get it. */
bool pack_one_step(const Plan *plan, const Pack *pack, int64_t pairs, Err *err);
/* Sums of plan->metrics over one or several steps' pairs, and what they are divided by. */
#define MAX_METRICS 256
typedef struct MetricSums {
    double sum[MAX_METRICS]; /* of a value that is a step's mean already: times the step's pairs */
    double pairs, chosen, rejected; /* pairs, and tokens of their answers */
} MetricSums;
/* Adds what the programs left in "metrics" for the pairs of `pack`. */
bool add_metrics(Exec *exec, const Plan *plan, const Pack *pack, int64_t pairs, MetricSums *s,
                 Err *err);
void metric_values(const Plan *plan, const MetricSums *s, double *values);
/* The logged values of one step. */
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
/* Scores pairs `which[0..n)` (NULL: all n of `pairs`) with program "eval"; `note` (NULL: none) says
 * how far it is. */
bool evaluate(Exec *exec, const Plan *plan, const Pairs *pairs, const int32_t *which, int64_t n,
              Arena *arena, ProgressNote *note, Evaluation *out, Err *err);
/* CLI.md's document, or a table for people. */
void evaluation_json(const Plan *plan, const Pairs *pairs, const Evaluation *e, FILE *out);
void evaluation_text(const Plan *plan, const Evaluation *e, FILE *out);

/* ---- train.c --------------------------------------------------------------------------------- */
#define RUN_CHOICES "choices.txt" /* in RUN: what the device chose by timing (save_choices) */
typedef struct SamplePrompt {     /* is answered during training */
    const char *text;             /* for people */
    const int32_t *ids;
    int64_t n;
} SamplePrompt;
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
    int64_t log_every; /* 0: about 20 lines a run */
    uint64_t seed;
    const char *spec_path, *spec_text; /* the .dpo file, kept in the run */
    const char *data_hash;             /* of the pairs as tokenized */
    const char *data;                  /* what was read, a JSON object kept in run.json */
    const SamplePrompt *sample; /* run.sample_prompts; the plan then has "prefill" and "decode" */
    int nsample;
    const Tokenizer *tokenizer; /* NULL: answers are written as ids */
    const int32_t *stop;        /* ids that end an answer */
    int nstop;
    bool starts_equal;   /* policy and reference are the same at the start: rewards are 0 */
    const char *command; /* JSON: the files and settings named on the command line, for `export` */
} TrainJob;
int job_train(const TrainJob *job, Err *err);
int64_t job_steps(const TrainJob *job); /* run.steps, or what run.epochs makes of them */
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
    double loss_sum;   /* of all steps' losses, for train_loss */
    int64_t best_step; /* of the best evaluation so far, whose value of run.best is best_value; 0:
                          none */
    double best_value;
    int64_t stale; /* evaluations since then */
    int64_t ranks; /* processes that made the last step: sums are added in their order */
} TrainState;
/* The trained tensors in PEFT form (or as model.safetensors for `train base`) under `dir`. */
bool save_trained(Exec *exec, const Plan *plan, const char *dir, Err *err);
/* RUN/start/NAME: what adapters were that start as singular triplets (PiSSA), so that a run that
 * goes on need not take every weight apart again.  Others leave nothing. */
#define RUN_START "start"
bool save_start(Exec *exec, const Plan *plan, const char *run_dir, Err *err);
/* RUN/checkpoint-N, complete by construction: written as checkpoint-N.tmp, synced, renamed. */
bool save_checkpoint(const TrainJob *job, const TrainState *state, Err *err);
/* Adds what a checkpoint would hold of the device's state to a hash. */
bool hash_state(Exec *exec, const Plan *plan, Hash128 *hash, Err *err);
/* Newest complete checkpoint of RUN, or NULL (arena text). */
const char *newest_checkpoint(Arena *arena, const char *run_dir);
/* Loads flat buffers and state; refuses, naming what differs, when plan or data are not the
 * same. */
bool load_checkpoint(const TrainJob *job, const char *dir, TrainState *state, Err *err);
/* Keeps the newest `keep` checkpoints (0: all) and the one of step `best`. */
void prune_checkpoints(const char *run_dir, int64_t keep, int64_t best);
/* Makes RUN/name a link to checkpoint-STEP ("best", "latest"); where the file system has no links
 * there is none. */
void link_checkpoint(const char *run_dir, const char *name, int64_t step);
bool has_checkpoint(const char *run_dir, int64_t step);
/* The trained tensors of checkpoint-STEP instead of those in memory; the moments stay. */
bool load_trained(const TrainJob *job, int64_t step, Err *err);

/* ---- sample.c: the next token of a row of logits --------------------------------------------- */
typedef struct Sampling {
    double temperature; /* 0: greedy, the lowest of equal ids; the rest is not looked at */
    int64_t top_k;      /* the most probable only; 0: all */
    double top_p;       /* of these, the fewest whose share reaches it; 0 or 1: all */
    uint64_t seed;
} Sampling;
typedef struct Logit {
    float value;
    int32_t id;
} Logit;
/* -1: no logit is a number.  A draw is keyed by (seed, key, position) alone, so an answer can be
 * repeated whatever is generated beside it.  `work`: room for n. */
int32_t sample_token(const Sampling *s, const float *logits, int64_t n, uint64_t key,
                     uint64_t position, Logit *work);

/* ---- generate.c: answers to prompts, many at once, over the KV cache ------------------------- */
typedef enum AnswerEnd {
    ANSWER_OPEN,   /* it goes on; at the end: interrupted by a signal */
    ANSWER_STOP,   /* a stop token: the last of ids */
    ANSWER_LENGTH, /* max_tokens */
    NANSWER
} AnswerEnd;
extern const char *const answer_ends[NANSWER]; /* "interrupted", "stop", "length" */

typedef struct Answer {
    const int32_t *prompt; /* at least one id */
    int64_t nprompt;
    int64_t cached; /* its first rows, which the only answer before left in the cache (n is 1) */
    uint64_t key;   /* of its draws: the number of the prompt */
    Ids ids;        /* the answer's; ids_free is the caller's */
    AnswerEnd end;
} Answer;

typedef struct GenerateWatch { /* told after each token of any answer; end says whether the last */
    void (*token)(struct GenerateWatch *self, const Answer *answer);
} GenerateWatch;

typedef struct GenerateJob {
    Exec *exec;
    const Plan *plan; /* with programs "prefill" and "decode", in generating or training plans */
    bool before;      /* programs "before.prefill" and "before.decode" instead */
    Sampling sampling;
    int64_t max_tokens;
    const int32_t *stop; /* token ids that end an answer */
    int nstop;
    GenerateWatch *watch; /* or NULL */
} GenerateJob;

typedef struct GenerateStats {           /* added to */
    int64_t prompt_tokens, tokens, runs; /* runs of "decode" */
    double prefill_seconds, decode_seconds;
} GenerateStats;

/* Rows of the KV cache that one sequence needs. */
static inline int64_t generate_rows(int64_t prompt, int64_t max_tokens) {
    return prompt + max_tokens;
}
/* Answers all of answer[0..n): as many at once as the plan has sequences (bound N) and the cache
 * has room for, each with as many of its rows (bound H) as the longest needs (exit 5, with the
 * numbers, where that is more than there are).  Prompts go through the cache in pieces of up to
 * bound T rows.  What one answer is does not depend on the others, but for rounding.  Stops early,
 * with answers left open, at a signal (stop.c).  `stats` may be NULL. */
bool generate(const GenerateJob *job, Answer *answer, int64_t n, GenerateStats *stats, Err *err);

/* ---- answer.c: an answer as text, while it grows --------------------------------------------- */
typedef struct AnswerText {
    const Tokenizer *tokenizer;
    Text text;    /* what is certain so far: never the beginning of a character alone */
    int64_t done; /* ids, those of the prompt counted, that are in the text or before it */
} AnswerText;
/* Takes in what is new; returns the new text's place in a->text (its length: nothing new).  A
 * decoder may treat the beginning of a text in its own way, so the last of the prompt is decoded
 * along.  `last`: nothing follows, unfinished characters become U+FFFD. */
size_t answer_text(AnswerText *a, const Answer *answer, bool last);
void answer_text_free(AnswerText *a);

/* ---- stop.c: Ctrl-C ends after the current step ---------------------------------------------- */
void stop_watch(void); /* installs handlers for SIGINT and SIGTERM; a second signal ends at once */
int stop_signal(void); /* 0, or the signal that came */

#endif
