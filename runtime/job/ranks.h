/* ranks.h: the processes of one job (MPI), each with its share of a step's pairs.
 *
 * Started alone, the size is 1, MPI is never initialized and every function below returns at once.
 * Started by mpirun or srun as one of several, they act together: every process calls the same
 * functions in the same order.  Of what is said on stderr only rank 0's part is shown, and that of
 * a process that fails alone.
 * Promises: sums are added in the order of ranks, so they have the same bits in every process and
 * in every run of the same size.
 */
#ifndef DPOC_RANKS_H
#define DPOC_RANKS_H

#include "../base.h"

/* How many processes were started together, by the environment they are given; 1: alone. */
int ranks_started(void);
/* Joins the others.  False (exit 3, said by one of them): built without MPI, or MPI does not know
 * of the others. */
bool ranks_open(Err *err);
/* The end of this process with its exit code, which is returned.  One that fails while others go on
 * says why and ends the job. */
int ranks_close(int code);

int ranks_size(void);
int ranks_rank(void);
bool ranks_first(void);     /* rank 0: the one that writes and prints */
int ranks_local(void);      /* rank among those on this machine */
int ranks_local_size(void); /* how many these are */
/* Each process's share of this machine's cores, or of those it is bound to; 0 where alone: all. */
int ranks_threads(void);
/* "  processes  4, .." on stderr, by rank 0 of several. */
void ranks_print(void);

void ranks_barrier(void);
void ranks_sum(float *x, int64_t n); /* the sum over all, in every process */
int ranks_max(int x);

typedef struct RankFact { /* what must be the same everywhere */
    const char *what;     /* "the training pairs" */
    Hash128 hash;
} RankFact;
/* False (exit 1, in every process): what differs, and where. */
bool ranks_same(const RankFact *facts, int n, Err *err);

#endif
