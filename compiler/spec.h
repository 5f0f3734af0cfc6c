/* spec.h: a checked .dpo file, all names resolved: what build, the passes and the jobs read.
 *
 * check_file reads the file, what it uses, the checkpoint's config.json and headers, applies a
 * variant and --set, and returns a Spec without open questions: models, adapters with every target
 * tensor, settings with their values.  Relies on ast.h and runtime/io; promises that a Spec which
 * exists can be built.
 */
#ifndef DPOC_SPEC_H
#define DPOC_SPEC_H

#include "ast.h"

typedef struct CheckOptions {
    const char *file;  /* the .dpo file; also looked up in the embedded models/ */
    const char *model; /* --model: checkpoint directory of `base`, instead of its `from`; or NULL */
    const char *const *data; /* --data: instead of data.train */
    int ndata;
    const char *eval_data;  /* --eval-data: instead of data.eval; or NULL */
    const char *const *set; /* --set path=value, in order */
    int nset;
    const char *variant;        /* or NULL: the file as it stands */
    const char *const *adapter; /* --adapter [NAME=]DIR; without NAME: the one trained adapter */
    int nadapter;
    const char *memory;  /* --memory: instead of graph.memory; or NULL */
    const char *seed;    /* --seed: instead of run.seed; or NULL */
    bool is_cuda;        /* decides graph.compute = auto: bf16 there, else fp32 */
    bool random_weights; /* weights are not looked for in the checkpoint */
    bool trains;         /* it will be trained: warnings about how it begins */
    bool needs_data;     /* data.train must be named and exist */
    bool bare; /* the checkpoint holds what adapters and quantization made: both are left out */
    bool needs_model; /* a checkpoint must be named (else only what needs none is checked) */
} CheckOptions;

/* DIR of --adapter [NAME=]DIR: it is a name if its `=` comes before any `/`. */
const char *adapter_option_dir(const char *option);
/* Diagnostics go to `diags`; NULL after errors.  `arena` owns the result. */
Spec *check_file(Arena *arena, Diags *diags, const CheckOptions *options);

/* ---- settings: data, run, graph (settings.def), `ADAPTER.rank` .., `OBJECTIVE.PARAM` --------- */
double spec_num(const Spec *spec, const char *path); /* numbers; booleans 1 or 0; sizes in bytes */
const char *spec_str(const Spec *spec, const char *path); /* words and strings; NULL for numbers */
bool spec_on(const Spec *spec, const char *path);         /* spec_num(..) != 0 */
bool spec_given(const Spec *spec, const char *path);      /* by the person, not by default */
/* All of them, in the table's order: Plan.settings. */
const Setting *spec_settings(const Spec *spec, int *n);
Loc spec_loc(const Spec *spec, const char *path); /* where it was set; file 0 by default */

typedef struct DataFile { /* data.train, in order; paths as they can be opened */
    const char *path;
    double weight; /* 1 without `weight` */
} DataFile;
const DataFile *spec_data(const Spec *spec, int *n);
/* data.eval is a path (spec_str), or a share (number < 1) or a number of pairs (>= 1) taken from
 * train. */
/* Columns named `pair.NAME` in the objective: the packer fills inputs "pair.NAME" f32 [P] from
 * them. */
const char *const *spec_columns(const Spec *spec, int *n);

/* ---- models and adapters --------------------------------------------------------------------- */
typedef struct Source { /* one place that weights come from: Bind.source, BindSource */
    /* "base", "base:PATH", an adapter's name, or "NAME@start": as it was at the start */
    const char *name;
    const char *dir; /* checkpoint or PEFT directory; NULL: fresh adapter, or random weights */
    bool adapter;
} Source;
const Source *spec_sources(const Spec *spec, int *n);
bool spec_in_reference(const Spec *spec, const Source *source); /* the reference has parts of it */
const char *spec_text(const Spec *spec);      /* of the main file, wherever it was found */
const char *spec_base_path(const Spec *spec); /* directory of `base`; NULL when none was named */

typedef struct AdapterTarget { /* one adapted weight */
    const char *tensor;        /* "model.layers.0.self_attn.q_proj" */
    int64_t rows, cols;        /* of B A: out, in (an embedding: features, vocabulary) */
    int64_t rank;
    double alpha, dropout;
    bool rslora, shared_dropout, dora;
    bool embedding;              /* its rows are looked up, not multiplied */
    const char *init;            /* "kaiming", "gaussian" or "pissa" */
    const char *source, *weight; /* the adapted tensor: "base", "....q_proj.weight" */
    Loc loc;                     /* the clause */
} AdapterTarget;

typedef struct AdapterSpec {
    const char *name, *load; /* load: PEFT directory to start from, or NULL */
    bool trained;            /* named by `train` */
    AdapterTarget *target;
    int ntarget, captarget;
    Loc loc;
} AdapterSpec;
typedef struct AdapterMatrix { /* one tensor of an adapted weight */
    const char *tensor;        /* "....q_proj.lora_A.weight" */
    int rank;
    int64_t rows, cols; /* as PEFT's files have it */
    bool transposed;    /* lies in memory as [cols, rows] */
    Start start;        /* of a fresh one */
} AdapterMatrix;
/* A [rank, in], B [out, rank] and, with dora, the magnitude [out]; returns how many. */
int adapter_matrices(const AdapterTarget *t, AdapterMatrix out[3]);
/* Whether it starts from singular vectors, and so is counted from there. */
bool adapter_pissa(const AdapterSpec *a, const AdapterTarget *t);
double adapter_scale(const AdapterTarget *t); /* alpha / rank; rslora: alpha / sqrt rank */

const AdapterSpec *spec_adapters(const Spec *spec, int *n);
/* Directories of the adapters that the policy adds to its base, in order; NULL for fresh ones. */
const char *const *spec_policy_adapters(const Spec *spec, int *n);
const char *spec_adapter_json(const Spec *spec); /* Plan.adapter_json */
bool spec_trains_base(const Spec *spec);

/* ---- what the objective asks for ------------------------------------------------------------- */
/* false: `reference = none`, or the objective never asks for it */
bool spec_has_reference(const Spec *spec);
/* Policy and reference compute the same at the start: what the policy alone has are fresh adapters,
 * which add nothing yet. */
bool spec_starts_equal(const Spec *spec);
bool spec_one_sided(const Spec *spec); /* SFT: no rejected answers (N = P, rejected = -1) */
/* Values cross pairs: a sort, a non-linear use of a batch mean. */
bool spec_coupled(const Spec *spec);
/* They do, but no value of a token depends on other pairs: the objective is cut from the model
 * (coupled.c) and sees the whole step, however many micro-batches it takes. */
bool spec_cut(const Spec *spec);
/* With graph.ref = cached units that compute a loss take the reference's log-probs from inputs
 * "pair.ref_logp_chosen" and "pair.ref_logp_rejected" f32 [P] of program "ref". */
bool spec_ref_cached(const Spec *spec);

/* ---- variants, for bench --------------------------------------------------------------------- */
typedef struct VariantSpec {
    const char *name, *from;
    /* "graph.fuse = off", "adapter pref", ..: what it changes, `from` included */
    const char **differs;
    int ndiffers, capdiffers;
    bool same_loss; /* only graph keys that keep results differ */
    Loc loc;
} VariantSpec;
const VariantSpec *spec_variants(const Spec *spec, int *n);

#endif
