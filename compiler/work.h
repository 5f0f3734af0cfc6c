/* work.h: what the verbs share: from the command line to a checked spec, a plan, a running device.
 *
 * Each function takes the one before it as done.  All return an exit code (0: fine) after printing
 * what is wrong to stderr; work_close frees everything in any state. */
#ifndef DPOC_WORK_H
#define DPOC_WORK_H

#include "options.h"
#include "spec.h"
#include "../runtime/exec.h"
#include "../runtime/io/pairs.h"

typedef struct Work {
    const Options *options;
    Arena *arena;
    Diags *diags;
    int said; /* diagnostics printed already */
    Spec *spec;
    Plan *plan;
    Device *device;
    Exec *exec;
    Tokenizer *tokenizer;    /* NULL where the checkpoint has none */
    GenerateBounds generate; /* of plans that generate: before work_compile */
    bool again;              /* what is wrong with the file was said before: errors only */
    bool bare;               /* CheckOptions.bare: before work_check */
    Err err;
} Work;

void work_init(Work *w, const Options *options);
/* Checks options->args[0] (or `file`); `needs_data`: pairs must be named. */
int work_check(Work *w, const char *file, bool needs_data);
/* Opens the device that --device names; `choices`: an earlier run's (DeviceOptions), or NULL. */
int work_device(Work *w, const char *choices);
/* The same for a verb that can do without: a GPU that cannot be opened is planned for all the
 * same. */
void work_device_if_any(Work *w);
/* Compiles for `arch`, else for the open device, else for what --device names; budget from
 * --memory or graph.memory, else what the open device has. */
int work_compile(Work *w, const char *arch, const bool want[NUNIT]);
/* Says that no target is known for `arch`, or (NULL) for the open device; its exit code. */
int work_no_target(const Work *w, const char *arch);
/* Allocates the arena on the open device, loads weights and adapters. */
int work_open(Work *w);
int work_tokenizer(Work *w); /* a checkpoint without one is no error: token ids may be given */

/* ---- work_data.c: what verbs read ------------------------------------------------------------ */
const char *work_model_dir(const Work *w); /* of the base checkpoint, or NULL */
/* The template the settings name; a checkpoint without a tokenizer can only take token ids. */
int work_template(Work *w, Template *out);
/* Files one after the other, as the settings of `data` ask; warnings are printed. */
int work_read_pairs(Work *w, const char *const *paths, int n, const Template *template,
                    Pairs **out);
/* What was read and by which rules, on stderr; the same as a JSON object (arena text), `eval` or
 * NULL. */
void work_summary(const Work *w, const char *what, const Pairs *p);
char *work_data_json(const Work *w, const Pairs *train, const Pairs *eval);
/* The files of data.train, with their summary; work_pairs opens the template itself. */
int work_train_pairs(Work *w, const Template *template, Pairs **out);
int work_pairs(Work *w, Pairs **out);
/* Gives pairs the reference's log-probs where graph.ref = cached asks for them (work_reference.c);
 * after work_open.  Random pairs: none are kept in a file. */
int work_reference(Work *w, Pairs *pairs, bool random);
/* Weights of all sources, or of those the reference is made of; random ones follow from the
 * seed. */
bool work_hash_weights(Work *w, bool reference, Hash128 *out);
/* Which of train[0..n) (NULL: all n of `pairs`) equal no pair of eval[0..neval) of `held` (NULL:
 * all of them); *left: how many. */
int32_t *work_unlike(Work *w, const Pairs *pairs, const int32_t *train, int64_t n,
                     const Pairs *held, const int32_t *eval, int64_t neval, int64_t *left);
int work_fit(Work *w, const Pairs *pairs); /* every pair fits a micro-batch of the plan */
/* Ids of a prompt: a user's message through the template (`chat`), or text after bos where the
 * tokenizer adds one.  False and err (exit 5) without a tokenizer. */
bool work_prompt(Work *w, const Template *t, const char *text, bool chat, Ids *ids);
/* The file that describes the model, for verbs that need none: --spec, or one of models/ by its
 * model_type. */
const char *work_model_spec(const Options *o);

void work_close(Work *w);

int work_fail(Work *w);           /* prints w->err; its code */
void work_diagnostics(Work *w);   /* prints what was collected since last time */
int work_usage(const char *text); /* prints it; EXIT_USAGE */
uint64_t work_seed(const Work *w);

/* The verbs; each takes the options and returns the exit code. */
int verb_init(const Options *), verb_check(const Options *), verb_fmt(const Options *);
int verb_plan(const Options *), verb_compile(const Options *), verb_view(const Options *);
int verb_train(const Options *), verb_eval(const Options *), verb_generate(const Options *);
int verb_bench(const Options *), verb_verify(const Options *), verb_tokens(const Options *);
int verb_export(const Options *);
int verb_report(const Options *);
int verb_passes(const Options *), verb_ops(const Options *), verb_settings(const Options *);
int verb_doctor(const Options *), verb_cache(const Options *);
int verb_completion(const Options *);

#endif
