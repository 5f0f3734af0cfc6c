/* exec_inside.h: what the files of the executor share: exec.c walks, exec_time.c takes times,
 * exec_hard.c watches memory in HARD builds.
 */
#ifndef DPOC_EXEC_INSIDE_H
#define DPOC_EXEC_INSIDE_H

#include "exec.h"
#include "exec_bind.h"

typedef struct Seen { /* extents a program was prepared for */
    int program;
    int64_t extent[NEXTENT];
    bool ran;
    void *work;    /* recorded, or NULL */
    int64_t steps; /* that it gives to the device */
    int64_t used;  /* Exec.clock when it was last replayed */
} Seen;

typedef struct Times { /* one StepTime for each label and kind, and the stamps not yet read */
    StepTime *time;
    int ntime, captime;
    const Step *step[STAMPS]; /* [i]: between stamps i and i + 1 */
    double flops[STAMPS], bytes[STAMPS], again[STAMPS];
    int nstep;
} Times;

struct Exec {
    const Plan *plan;
    Device *dev;
    Arena *arena;
    Span scratch; /* bytes that no persistent buffer has */
    Seen *seen;
    int nseen, capseen;
    int **until; /* by program and side step: the step that waits for it (plan_side_end) */
    bool capture, wait_each;
    int64_t recorded; /* steps of all recorded programs */
    int64_t clock;    /* of replays */
    bool profile;
    Times times;
    int64_t *fence; /* HARD: bytes behind each buffer that no other buffer uses while it lives */
};

typedef struct Frame { /* where a program stands */
    int64_t extent[NEXTENT];
    int64_t begin; /* first row of the current chunk, */
    int64_t chunk; /* which has at most so many */
} Frame;

/* exec_time.c */
bool times_begin(Exec *exec, Err *err);                               /* before a program's steps */
bool times_step(Exec *exec, const Step *s, const Frame *f, Err *err); /* after each of them */
bool times_end(Exec *exec, Err *err);                                 /* after its last */

/* exec_hard.c; nothing happens in other builds. */
void hard_open(Exec *exec);
/* Fills buffers whose life begins (or ends) in steps from .. to-1 with NaNs. */
bool hard_poison(Exec *exec, int program, int from, int to, bool begin, Err *err);
/* Whether nothing was written past the buffers that end with this step. */
bool hard_fences(Exec *exec, int program, int step, Err *err);

#endif
