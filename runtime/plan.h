/* plan.h: the finished plan, the only data the compiler and the runtime exchange.
 *
 * A plan is one table of buffers in one arena, binds that fill buffers from files (and write them
 * back), kernels as text, and named programs: flat lists of steps.  The runtime only walks it.
 * As a file it is JSON (plan_read, plan_write), so it can be read and written by hand.
 * Relies on base.h; knows nothing of graphs.
 */
#ifndef DPOC_PLAN_H
#define DPOC_PLAN_H

#include "base.h"

#define PLAN_VERSION 1

/* ---- element types --------------------------------------------------------------------------- */
typedef enum DType {
#define DTYPE(name, bytes, st) DT_##name,
#include "dtypes.def"
#undef DTYPE
    NDTYPE
} DType;
int dtype_bytes(DType t);
const char *dtype_name(DType t);
bool dtype_parse(const char *name, DType *t); /* our name, "f32" */

/* ---- extents: the sizes that change from micro-batch to micro-batch
 * Memory is planned at the bound, work uses the actual count.  A Dim is c + sum x[e] * extent[e].
 * */
typedef enum Extent {
    X_T, /* token rows */
    X_R, /* scored rows */
    X_G, /* query segments */
    X_K, /* key ranges (the inverse table of the segments) */
    X_N, /* sequences (an answer with its prompt) */
    X_P, /* pairs */
    X_H, /* rows of the KV cache */
    X_C, /* rows of the current chunk, inside a STEP_LOOP only */
    NEXTENT
} Extent;
#define EXTENT_LETTERS "TRGKNPHC"

typedef struct Dim {
    int64_t c;
    int32_t x[NEXTENT];
} Dim;
Dim dim_const(int64_t c);
Dim dim_extent(Extent e);
Dim dim_add(Dim a, Dim b);
Dim dim_scale(Dim a, int64_t k);
/* a * b where at least one of them is constant; anything else is a bug and aborts. */
Dim dim_mul(Dim a, Dim b);
bool dim_equal(Dim a, Dim b);
bool dim_is_const(Dim a);
int64_t dim_eval(Dim a, const int64_t extent[NEXTENT]);
char *dim_print(Arena *arena, Dim a);       /* "3", "T", "2*T+1" */
bool dim_parse(const char *text, Dim *out); /* what dim_print writes */

/* ---- buffers --------------------------------------------------------------------------------- */
typedef enum Role {
    ROLE_WEIGHT,     /* frozen weights, also quantized and packed ones */
    ROLE_ADAPTER,    /* fp32 masters of what is trained (full fine-tuning too) */
    ROLE_GRAD,       /* accumulated gradients */
    ROLE_MOMENT,     /* optimizer state */
    ROLE_INPUT,      /* written by the runtime before a program */
    ROLE_OUTPUT,     /* read by the runtime after a program */
    ROLE_ACTIVATION, /* values inside a program */
    ROLE_SCRATCH,    /* library workspace, kernel scratch, dequantized weights */
    ROLE_CACHE,      /* KV cache */
    NROLE
} Role;
extern const char *const role_names[NROLE]; /* "weight", "adapter", ... as in `plan --json` */

typedef struct Shrink { /* after step `step` of its program only the first `bytes` are still live */
    int step;
    int64_t bytes;
} Shrink;

typedef struct Buf {
    const char *name; /* inputs, outputs, state: the agreed name; weights: tensor; others: "%id" */
    Role role;
    DType dtype;
    int rank;
    Dim shape[4];
    int64_t bytes;   /* at the extents' bounds */
    int64_t offset;  /* in the arena, a multiple of the target's alignment */
    bool persistent; /* lives across programs */
    int program;     /* else: index of its program, */
    int first, last; /*       live in steps first..last of it, inclusive */
    Shrink *shrink;
    int nshrink;
    const char *where; /* "llama3.dpo:20:9 policy/model.layers.3.self_attn", or NULL */
} Buf;

/* ---- binds: all weight I/O, in both directions
 * One bind moves one tensor of a source, or one part of a quantized one, into rows of one buffer.
 * */
typedef struct Bind {
    const char *source; /* "base", an adapter's name, "base:PATH" for another checkpoint */
    const char *tensor; /* checkpoint name, e.g. "model.layers.0.mlp.up_proj.weight" */
    const char *alias;  /* tied weights: the other name it may be stored under, or NULL */
    int buf;            /* destination */
    int64_t offset;     /* bytes into the buffer */
    int64_t rows, cols; /* the tensor's shape as a matrix (vectors: 1 row) */
    int64_t ld;         /* elements between rows in the buffer; == cols when dense */
    int rank;           /* rank in the checkpoint: 1 or 2 */
    /* "copy" (with conversion to the buffer's dtype), "scale", "transpose" (the buffer holds
     * [cols, rows], dense), or a quantized format with the part this buffer holds: "nf4.codes",
     * "nf4.absmax", ... (quantize.h lists formats and parts), or "table": the constants `values` */
    const char *transform;
    double num;    /* transform's number: scale, or quantization block size */
    bool nested;   /* double quantization */
    int quantizer; /* 1 + index of the kernel that quantizes on the device; 0: the host does */
    /* NULL: must be in the source.  Else how a fresh one is made when no file is given: "zero",
     * "kaiming" (uniform +-1/sqrt(cols)), "gaussian", "computed" (program "init" writes it),
     * "pissa": side A [r, in] or B [out, r] of the r leading singular triplets of tensor `of`,
     * which has a bind too: s B A = U S V' with s = init_num */
    const char *init;
    double init_num;            /* gaussian: standard deviation; pissa: s */
    const char *of_source, *of; /* pissa: the tensor it is taken of */
    bool save;                  /* is written back (trained) */
    const float *values; /* transform "table": what stands in the buffer; source is "table" */
    int nvalues;
    const char *where;
} Bind;

/* ---- steps
 * A pointer handed to a kernel is arena + buf.offset + offset(extents) + chunk_begin * chunk_bytes,
 * all
 * in bytes. */
typedef struct Arg {
    int buf; /* -1: a null pointer (an unwanted result) */
    Dim offset;
    int64_t chunk_bytes; /* inside a loop: bytes per row of the loop's extent; else 0 */
} Arg;

typedef enum StepKind {
    STEP_KERNEL, /* kernel(args, dims) */
    STEP_GEMM,   /* args: a, b, c [, bias] */
    STEP_ZERO,   /* fill args[0] with dims[0] zero bytes */
    STEP_COPY,   /* copy dims[0] bytes from args[0] to args[1] */
    STEP_LOOP    /* the next `body` steps run for begin = 0, chunk, 2*chunk ... < dims[0],
                  * with extent X_C = min(chunk, dims[0] - begin); loops do not nest */
} StepKind;
extern const char *const step_kind_names[]; /* "kernel", "gemm", "zero", "copy", "loop" */

/* C[m,n] = alpha * op(A) op(B) + beta * C (+ bias[n]), row-major, accumulated in fp32.
 * op(X) = X, or its transpose when ta / tb: then A is stored [k,m], B is stored [n,k].
 * Sizes m, n, k are the step's dims[0..2]. */
typedef struct Gemm {
    DType a, b, c;
    bool ta, tb;
    int64_t lda, ldb, ldc; /* elements between rows as stored */
    float alpha, beta;     /* beta is 0 or 1 */
    bool bias;             /* args[3], f32 [n] */
    int align; /* of every operand, in bytes: found by the executor; 0: 256, as buffers have */
} Gemm;
/* Bytes of the buffer "gemm.workspace" (scratch, one per plan, live wherever a GEMM is) with which
 * the CPU
 * device multiplies matrices of at most these sizes on up to GEMM_THREADS threads; the largest need
 * of a
 * plan's GEMMs is enough for all of them.  More threads than fit are not used: the bits stay the
 * same. */
#define GEMM_THREADS 8
int64_t gemm_workspace(const Gemm *g, int64_t m, int64_t n, int64_t k);

typedef struct Step {
    StepKind kind;
    int kernel; /* STEP_KERNEL: index into kernels */
    Arg *args;
    int nargs;
    Dim *dims; /* sizes the step takes, in the kernel's order */
    int ndims;
    Gemm gemm;
    int64_t chunk; /* STEP_LOOP */
    int body;
    bool side; /* may run beside the steps that follow, until one that touches what it writes */
    const char *label;   /* what it computes, for profiles and messages: "matmul q_proj" */
    const char *where;   /* "llama3.dpo:20:9 policy/model.layers.3.self_attn" */
    double flops, bytes; /* what it does, at the bounds */
    double again;        /* of flops: beyond the algorithm's, which computes each value once */
} Step;

typedef struct Kernel {
    const char *symbol; /* function name in the text */
    const char *text;   /* complete source of one kernel, without the shared prelude */
    const char *kind;   /* "map", "attend", ...: for tables */
    /* CUDA launch: grid (ceil(dims[0] / rows_per_block), grid_y) of blocks of `threads` */
    int rows_per_block, grid_y, threads, shared_bytes;
} Kernel;

typedef struct Program {
    const char *name; /* "init", "step", "micro", "update", "eval", "ref", "prefill", ... */
    Step *steps;
    int nsteps;
} Program;

/* ---- settings: every key of data, run and graph, plus adapter and objective parameters ------- */
typedef struct Setting {
    const char *path; /* "run.lr", "pref.rank", "dpo.beta" */
    double num;
    const char *str; /* NULL for numbers and booleans */
} Setting;

/* One named sum that micro-batches accumulate: logged value = sum / denominator.  The sums stand in
 * buffer "metrics" f32[n] in this order; the first is the loss. */
typedef struct Metric {
    const char *name;        /* "loss", "rewards/chosen", ... */
    const char *denominator; /* name of the input holding 1 / denominator: "inv_pairs", ... */
} Metric;

typedef struct Plan {
    Arena *arena;       /* owns everything below */
    const char *device; /* "cpu", "sm_80", "sm_90" */
    const char *hash;   /* of everything that decides results */
    /* program "ref": of the reference as described, its weights' numbers apart; else NULL */
    const char *reference;
    int64_t bound[NEXTENT];
    int64_t bucket;       /* T and R are multiples of this */
    int64_t arena_bytes;  /* == plan --json's peak_bytes */
    int64_t budget_bytes; /* 0: none given */
    bool fits;
    /* the objective crosses pairs: a step is programs "score" (each micro-batch), "objective", then
     * "micro"; without a program "objective" it must be one micro-batch */
    bool coupled;
    /* when it does not fit: the arena with everything recomputed that helps, */
    int64_t smallest_bytes;
    int64_t fit_tokens; /* and the largest run.tokens that would fit; 0: none */
    Buf *bufs;
    int nbufs;
    Bind *binds;
    int nbinds;
    const char *prelude; /* shared text put before kernels of one module: types, math, random */
    Kernel *kernels;
    int nkernels;
    Program *programs;
    int nprograms;
    Setting *settings;
    int nsettings;
    Metric *metrics;
    int nmetrics;
    int64_t vocab; /* rows of the embedding: token ids are below; 0: not known */
    double parameters_total, parameters_trainable;
    double flops_micro;      /* forward + backward of one full micro-batch at the bounds */
    double flops_again;      /* of these: what is computed again to save memory */
    const char **recomputed; /* one line each */
    int nrecomputed;
    const char **refused; /* "pass: what: reason" */
    int nrefused;
    const char *base_path;    /* checkpoint directory, or NULL (random weights) */
    const char *adapter_json; /* JSON array of the adapters' PEFT description: see io/adapter.h */
} Plan;

Plan *plan_new(void);
void plan_free(Plan *plan);
bool plan_write(const Plan *plan, const char *path, Err *err);
Plan *plan_read(const char *path, Err *err); /* checks every index, offset and size it reads */
char *plan_to_json(const Plan *plan);        /* malloc */
Plan *plan_from_json(const char *text, const char *name, Err *err);

/* Every rule a plan obeys: indices in range, buffers inside the arena, live ones apart, operands
 * inside
 * their buffers at the bounds.  NULL, or what is wrong ("bufs[3] ...", arena text). */
const char *plan_check(const Plan *plan, Arena *arena);

/* Bytes of a transient buffer that are live in one step of its program. */
int64_t buf_live(const Buf *b, int step);

/* The first step behind side step `step` that touches a transient buffer which that one touches, or
 * the loop around it; the number of steps: none does.  Until then the two may run at once. */
int plan_side_end(const Plan *plan, int program, int step);

int plan_buf(const Plan *plan, const char *name);                /* index or -1 */
const Program *plan_program(const Plan *plan, const char *name); /* or NULL */
double plan_num(const Plan *plan, const char *path);             /* 0 when absent */
const char *plan_str(const Plan *plan, const char *path);        /* NULL when absent */

#endif
