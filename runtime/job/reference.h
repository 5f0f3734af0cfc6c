/* reference.h: the reference's log-probs of pairs, computed once and kept in a file (graph.ref =
 * cached).
 *
 * What the reference says of a pair depends on its weights, on how they are quantized and computed
 * with, and on the pair's tokens; so a file is bound to the first by its metadata, and holds its
 * log-probs by the tokens' hash.  Pairs that it lacks are computed and added: a file serves runs
 * on other mixtures, splits and orders of the same data.  A safetensors file:
 *   pairs I64 [n], pair_key; logps F32 [n,2], chosen and rejected; metadata "format", keys.
 * Relies on job.h and safetensors.h.
 */
#ifndef DPOC_REFERENCE_H
#define DPOC_REFERENCE_H

#include "job.h"

enum { REFERENCE_KEYS = 4 };
typedef struct ReferenceFile {
    const char *path;
    const char *key[REFERENCE_KEYS]; /* "weights", .. */
    const char *value[REFERENCE_KEYS];
} ReferenceFile;

/* Told after every few pairs. */
typedef struct ReferenceWatch {
    void (*scored)(struct ReferenceWatch *self, int64_t done, int64_t all);
} ReferenceWatch;

typedef struct ReferenceCounts {
    int64_t known, computed;
} ReferenceCounts;

/* Gives `pairs` the columns ref_logp_chosen and ref_logp_rejected, from the file and from program
 * "ref" of the plan (nothing is done where it has none).  `file` NULL: all are computed, nothing is
 * kept; `watch` and `counts` may be NULL.  A file made with other keys is refused with what
 * differs (exit 1).  Stopped by a signal it keeps what it has (exit 128 + signal). */
bool reference_logps(Exec *exec, const Plan *plan, Pairs *pairs, const ReferenceFile *file,
                     ReferenceWatch *watch, ReferenceCounts *counts, Err *err);

#endif
