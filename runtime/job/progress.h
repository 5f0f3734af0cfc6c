/* progress.h: what a person sees while a run goes on (stderr): one redrawn line on a terminal,
 * plain lines into a pipe, notes about other long work, and small curves at the end. */
#ifndef DPOC_PROGRESS_H
#define DPOC_PROGRESS_H

#include "../exec.h"

typedef struct Progress {
    int64_t total; /* steps */
    int64_t first; /* step the run starts after (resume) */
    int64_t every; /* plain lines every so many steps; 0: about 20 over the run */
    bool quiet, tty;
    double started; /* now_seconds at the first step */
    double drawn;   /* when the line was last drawn on a terminal */
} Progress;

typedef struct ProgressLine {
    int64_t step;
    double loss, margin, accuracy, lr, grad_norm, tokens_per_second;
    double mfu, memory; /* share, NAN: not known; bytes */
    bool has_rewards;
} ProgressLine;

void progress_start(Progress *p, int64_t first, int64_t total, int64_t every, bool quiet);
void progress_step(Progress *p, const ProgressLine *line);
/* "352", "16.4k", "8.03B" */
void format_count(char out[32], double n);
/* "12:04", "1:02:03" */
void format_duration(char out[32], double seconds);
/* Leaves the redrawn line, so that other text can be written. */
void progress_break(const Progress *p);
/* A line about work that may take long: none in its first two seconds; then redrawn twice a second
 * on a terminal, or a new one every ten seconds into a pipe. */
typedef struct ProgressNote {
    double started; /* now_seconds */
    double said;
    bool tty;
} ProgressNote;
ProgressNote progress_note(void);
/* Writes the line where it is due; `last`: this one stays, and is due in any case. */
void progress_say(ProgressNote *note, bool last, const char *format, ...) PRINTF(3, 4);
void progress_erase(const ProgressNote *note); /* the line on a terminal, if there is one */
/* For exec_bind: bytes read and rate while weights are loaded. */
typedef struct LoadProgress {
    LoadWatch watch;
    const char *what; /* "loading weights" */
    ProgressNote note;
} LoadProgress;
LoadProgress progress_load(void);
/* A curve of n values, `height` rows high, at most 64 wide (values are averaged into columns). */
void progress_curve(FILE *out, const char *title, const double *y, int n, int height);

#endif
