/* bench.h: what the files of verb `bench` share.
 *
 * An Entry is one variant: compiled, loaded, run, measured.  bench_run.c opens and runs them,
 * bench_stats.c makes figures of the times, bench_table.c and bench_json.c tell, bench_compare.c
 * reads what was told earlier.  Functions that can fail return an exit code after a message. */
#ifndef DPOC_BENCH_H
#define DPOC_BENCH_H

#include "../runtime/job/job.h"
#include "../runtime/job/rates.h"
#include "../runtime/monitor.h"
#include "bench_stats.h"
#include "work.h"

#include <jansson.h>

enum { MAX_ENTRIES = 24, MAX_KERNELS = 512, MAX_ROUNDS = 10000, WARMUP = 2, PROFILED = 2 };

typedef struct Totals { /* of one step, all its kernels */
    double flops, again, bytes;
    int64_t launches;
} Totals;

typedef struct Old { /* the variant of this name in --compare */
    double median;   /* milliseconds; 0: there is none */
    double p;        /* rank_test against its samples; NAN without */
    bool regressed;  /* --threshold */
} Old;

typedef struct Entry {
    const char *name;
    const char **differs; /* "graph.fuse = off": from the first entry */
    int ndiffers;
    bool must_agree; /* the same loss and gradients as the first entry's, to rounding */
    bool cached;     /* the reference's log-probs are there: a step of the second epoch or run */
    bool idle;       /* an effect whose switch changes nothing in this plan: not run */
    Options options;
    Work w;
    Pairs *pairs;
    Pack *pack;
    double *ms; /* of each round, in order */
    bool known; /* what it computes was taken: */
    double loss, grad_norm;
    float *grads; /* the first entry's, of the first step; NULL: more than is compared */
    int64_t ngrads;
    /* relative difference from the first entry; NAN: no such thing */
    double loss_apart, grad_apart;
    double tolerance; /* of these: what rounding alone explains */
    bool unsteady;    /* its own loss was not the same in every round */
    double flops;     /* of the step's algorithm: without recompute and filling */
    double attended;  /* share of attention's full square that it asks for */
    Summary time;
    Ratio ratio; /* to the first entry, round by round */
    Old old;
    StepTime kernel[MAX_KERNELS];
    int nkernels;
    Totals all;
} Entry;

typedef struct Context { /* what else may decide a figure */
    double load[3];      /* average at the start; NAN: not known */
    double mhz;          /* mean clock of the processors at the end; NAN */
    long cpus;
    char system[160], time[32];
    Figure figure[MAX_FIGURES]; /* of the device while rounds ran (monitor.h) */
    int nfigures;
} Context;

typedef struct Bench {
    const Options *options;
    Arena *arena;
    Entry *entry;
    int n;
    bool effects;        /* entries are passes switched off */
    bool in_turn;        /* they are not in memory together */
    int rounds, stopped; /* the signal that ended them, or 0 */
    Rates rates;
    double beaten; /* the fastest kernel over what was measured before it (rates_raise); 1: none */
    Context context;
    json_t *old;      /* --compare, or NULL */
    char device[320]; /* Device.description */
} Bench;

/* ---- bench_list.c: which entries there are ------------------------------------------------ */
/* The file itself, then its variants, or with --effects its passes; those of --variants. */
int bench_list(Bench *b, Spec *spec);

/* ---- bench_run.c -------------------------------------------------------------------------- */
int bench_prepare(Bench *b); /* compiles all; decides whether memory holds them together */
int bench_run(Bench *b);     /* rounds, then kernels and ceilings */
void bench_close(Bench *b);

/* ---- bench_check.c: do the variants compute the same? -------------------------------------- */
/* Takes loss, gradient norm and gradients of the step just run: of the first, what others are
 * compared with. */
int bench_outcome(Entry *e, Entry *first);
/* Takes back must_agree where the variant draws other random numbers than the first: with dropout,
 * a shared prompt has one mask, two prompts have two. */
void bench_draws(Entry *e, const Entry *first);
int bench_agree(const Bench *b); /* EXIT_NUMERIC where those that must do not, after a message */

/* ---- bench_table.c, bench_json.c ---------------------------------------------------------- */
double entry_tokens(const Entry *e);                    /* tokens a second */
double entry_share(const Bench *b, const Entry *e);     /* of the rate of products */
double kernel_share(const Bench *b, const StepTime *k); /* of the nearer of the two ceilings */
bool kernel_in_cache(const Bench *b, const StepTime *k);
void bench_table(const Bench *b, FILE *out);
void bench_markdown(const Bench *b, FILE *out);
void bench_warn(const Bench *b, FILE *out); /* outliers, slow starts, load, throttling */
void bench_json(const Bench *b, FILE *out);

/* ---- bench_compare.c ---------------------------------------------------------------------- */
int bench_read_old(Bench *b); /* --compare, before the rounds: they must not be for nothing */
void bench_compare(Bench *b); /* after them */

/* ---- bench_context.c ---------------------------------------------------------------------- */
void context_begin(Context *c);
void context_end(Context *c, Monitor *monitor);

#endif
