/* merge.h: a base and what was trained on it as one checkpoint, streamed tensor by tensor.
 *
 * W' = W + sum over adapters of what each adds to W:
 *
 *   LoRA  s B A, where s = alpha / r (rslora: alpha / sqrt r)
 *
 *   DoRA  (m / |W + s B A|) (W + s B A) - W, where | | is of each output, m its magnitude
 *
 * An embedding [V, d] gets s (B A)^T; its outputs are columns.  Sums are made in double precision
 * and rounded once.  Relies on bind.h (reading), quantize.h, io/.  Host memory: one module's part
 * of the adapters and a few MiB.
 */
#ifndef DPOC_MERGE_H
#define DPOC_MERGE_H

#include "../exec.h"
#include "../io/adapter.h"

typedef struct MergeJob {
    const char *base;    /* checkpoint directory */
    const char *trained; /* directory with a model.safetensors that takes the place of base tensors
                          * (full fine-tuning), or NULL */
    const char *const *adapter; /* PEFT directories, in the order in which they are added */
    int nadapter;
    /* its binds of source "base" say which weights are one and how they are kept */
    const Plan *plan;
    bool original;       /* the base as it stands in the file, not as quantized for training */
    DType dtype;         /* of the result: f32, bf16, f16 */
    const char *out;     /* directory, which exists: model*.safetensors are written */
    int64_t shard_bytes; /* at most so many a file, unless one tensor is larger */
    LoadWatch *watch;    /* or NULL */
} MergeJob;

/* Rounding of one tensor to the result's type, relative to what was rounded. */
typedef struct MergeRounding {
    const char *tensor; /* NULL: none yet */
    double rms;         /* |rounded - exact| / |exact| over the whole tensor */
    double largest;     /* of one element, of those that are normal numbers in the type */
} MergeRounding;

#define MERGE_NAMED 5 /* tensors that are named in a count */
typedef struct MergeCount {
    int64_t elements;
    int tensors;
    const char *tensor[MERGE_NAMED];
} MergeCount;

typedef struct MergeReport {
    int tensors, adapted, files;
    int64_t bytes;
    bool untied;          /* an adapter changed one of two tied weights: both are written */
    MergeRounding worst;  /* by rms */
    double rms;           /* over all elements */
    double change;        /* |W' - W| / |rounding| over the adapted tensors; INFINITY: none lost */
    MergeCount overflow;  /* beyond the type's largest number: set to it */
    MergeCount underflow; /* not zero, but rounded to it */
} MergeReport;

/* Names are the arena's.  Also writes model.safetensors.index.json where there are several
 * files. */
bool merge_write(const MergeJob *job, Arena *arena, MergeReport *report, Err *err);

/* ---- merge_row.c: the arithmetic ------------------------------------------------------------- */
typedef struct Delta {   /* what one adapter adds to one matrix [rows, cols] */
    float *left, *right; /* [rows, r], [r, cols]; owned */
    float *magnitude;    /* [rows], of an embedding [cols]; or NULL */
    double *squares;     /* of an embedding with magnitudes: sums over its rows, else NULL */
    int64_t r;
    double scale;
} Delta;
/* Reads what adapter `a`, opened as `c`, adds to a module's matrix [rows, cols]. */
bool delta_read(const Adapter *a, const Checkpoint *c, const char *module, int64_t rows,
                int64_t cols, Delta *out, Err *err);
void delta_free(Delta *d);
/* Adds a row of W + s B A to the squares; every row before the first merge_row. */
void delta_measure(Delta *d, const float *w, int64_t row, int64_t cols, double *scratch);
/* out[cols] = row number `row`, which is w[cols] in the base; scratch[cols]. */
void merge_row(const float *w, int64_t row, int64_t cols, const Delta *d, int n, double *scratch,
               double *out);

typedef struct RowRounding {     /* sums over the elements of a row */
    double error, exact, change; /* squares of rounded - exact, exact, exact - base */
    double largest;
    int64_t overflow, underflow;
} RowRounding;
/* Rounds x[n] to a type; w: the same of the base. */
RowRounding round_row(const double *x, const float *w, int64_t n, DType type, void *out);

#endif
