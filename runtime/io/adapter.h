/* adapter.h: LoRA adapters as PEFT directories, in and out.
 *
 * DIR/adapter_config.json, DIR/adapter_model.safetensors, DIR/README.md: what
 * PeftModel.from_pretrained and other tools read.  Tensor names in the file are "base_model.model."
 * + the name a Plan uses: MODULE + adapter_suffix(part, embedding).
 * The compiler describes its adapters to the runtime as Plan.adapter_json, a JSON array of
 *   {"name": "pref", "r": 16, "alpha": 32, "dropout": 0, "rslora": false, "init": "kaiming",
 *    "targets": ["model.layers.0.self_attn.q_proj", ...],  every module, by its full path
 *    "embeddings": ["model.embed_tokens"],   those of them whose rows are taken, not multiplied
 *    "dora": false,              each module has a magnitude [out] beside A and B
 *    "pissa": false,             A and B did not start at zero: see AdapterTensor.start
 *    "short": ["q_proj", ...],   where given: names that select just these modules by their endings
 *    "rank_pattern": {module: r, ..}, "alpha_pattern": {module: alpha, ..}}   where they differ
 * ("embeddings", "dora" and "pissa" may be absent.)
 * Relies on safetensors.h, checkpoint.h and jansson.
 */
#ifndef DPOC_ADAPTER_H
#define DPOC_ADAPTER_H

#include "checkpoint.h"

typedef struct AdapterPattern {
    const char *module;
    double value;
} AdapterPattern;

typedef struct AdapterNames { /* target_modules or exclude_modules: a list, or a pattern */
    const char **name;
    int n;
    const char *pattern; /* a regular expression or "all-linear"; NULL: the list counts */
} AdapterNames;

typedef struct Adapter {
    const char *name;
    int r;
    double alpha, dropout;
    bool rslora, dora, pissa;
    const char *init;
    const char *base; /* base_model_name_or_path, or NULL */
    const char **targets;
    int ntargets;
    const char **embeddings; /* those of the targets that are embeddings */
    int nembeddings;
    AdapterNames chosen, excluded; /* as a file says it; of a plan: its "short" */
    int64_t *layers;               /* layers_to_transform */
    int nlayers;
    const char **layers_pattern; /* names that stand before a layer's number */
    int nlayers_pattern;
    AdapterPattern *rank, *alphas; /* rank_pattern, alpha_pattern */
    int nrank, nalphas;
} Adapter;

#define ADAPTER_PREFIX "base_model.model."

/* What an adapted module has in a file: A [r, in], B [out, r]; with DoRA a magnitude [out].
 * An embedding [V, d] has A [r, V] and B [d, r]. */
typedef enum AdapterPart { ADAPTER_A, ADAPTER_B, ADAPTER_MAGNITUDE, NADAPTERPART } AdapterPart;
const char *adapter_suffix(AdapterPart part, bool embedding); /* ".lora_A.weight", .. */
bool adapter_embeds(const Adapter *a, const char *module);

/* The adapters of Plan.adapter_json; NULL (and err) when malformed. */
Adapter *adapters_parse(Arena *arena, const char *json, int *n, Err *err);
/* r and alpha of one module: the patterns' value where one fits (key equals the path or is its
 * suffix). */
int adapter_rank(const Adapter *a, const char *module);
double adapter_alpha(const Adapter *a, const char *module);
/* What B A is multiplied with: alpha / r, with rslora alpha / sqrt r. */
double adapter_scaling(const Adapter *a, const char *module);

/* Whether PEFT would adapt a module of this name: target_modules, exclude_modules,
 * layers_to_transform. "all-linear" is taken to mean any module. */
bool adapter_selects(const Adapter *a, const char *module);
/* NULL, or what is wrong with the first pattern that is no regular expression (arena text). */
const char *adapter_bad_pattern(Arena *arena, const Adapter *a);

/* The directory that holds adapter_config.json: `dir`, a run's dir/adapter, dir/NAME (where PEFT
 * keeps an adapter that has a name), or the only directory in `dir` that has one; else `dir`. */
const char *adapter_dir(Arena *arena, const char *dir, const char *name);
/* Reads a PEFT directory: its configuration and which modules its tensors are of (`targets`, in
 * the order of their names; each has all its tensors, selected by the configuration, of the rank
 * that it says).  What this program can't do (modules_to_save, bias, other peft_types, ...) is
 * refused by name (exit 5). */
Adapter *adapter_read(Arena *arena, const char *dir, Err *err);
/* A module's tensor in an opened adapter ("adapter_model"), or NULL. */
const SafeTensor *adapter_tensor(const Adapter *a, const Checkpoint *c, const char *module,
                                 AdapterPart part);
/* Whether the directory fits the description: r, alpha, rslora, dora, targets; exit 1 naming key,
 * both values and the setting that would change ours ("pref.rank").  Copies of base weights that
 * PEFT puts beside adapted embeddings must equal those of want->base, where that is given. */
bool adapter_check(const Adapter *want, const char *dir, Err *err);

typedef struct AdapterTensor {
    const char *name; /* as in the plan: "model.layers.0.self_attn.q_proj.lora_A.weight" */
    int rank;         /* 1: a magnitude [cols], rows is 1 */
    int64_t rows, cols;
    const float *data;
    bool transposed; /* data and start lie in memory as [cols, rows] */
    /* PiSSA: its value before training, which the base lost (W - s B0 A0), else NULL.  The file
     * then holds a plain LoRA of rank 2r and the same scale: A over A0, B beside -B0. */
    const float *start;
} AdapterTensor;
/* Writes the three files (each atomically, the directory is made); dtype f32, bf16 or f16.  `card`
 * is README.md's text below its front matter, or NULL. */
bool adapter_write(const char *dir, const Adapter *a, const AdapterTensor *tensors, int n,
                   DType dtype, const char *card, Err *err);

#endif
