/* report.h: a plan in numbers, for `plan`, `train --dry-run` and the message that it does not
 * fit. */
#ifndef DPOC_REPORT_H
#define DPOC_REPORT_H

#include "../runtime/plan.h"

char *report_json(
    const Plan *plan); /* malloc; the document of CLI.md, and "largest": buffers at the peak */
void report_text(const Plan *plan, FILE *out);
/* After the device had no room for the arena: the largest buffers, what to change. */
void report_largest(const Plan *plan, FILE *out);
/* Why the plan exceeds its budget: the largest tensors with their lines, and what would fit. */
void report_does_not_fit(const Plan *plan, FILE *out);

typedef struct Peak {  /* the moment of the most live bytes */
    int program, step; /* -1: persistent buffers alone */
    /* live then, persistent ones included; the rest of arena_bytes is padding */
    int64_t role[NROLE];
    int *buf, nbuf; /* live then, largest first; malloc */
} Peak;
Peak report_peak(const Plan *plan);

#endif
