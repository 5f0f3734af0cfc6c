/* front.h: what the files of the front end share: modules, values, models, the inside of a Spec.
 *
 * Order of work (check.c): modules are parsed and joined, a variant and --set applied, settings
 * read, models instantiated with their config.json, layers unrolled once without adapters to learn
 * every weight, selectors matched against those, and at last the units built once to find what is
 * wrong with shapes. Nothing here is seen by passes: they include spec.h.
 */
#ifndef DPOC_FRONT_H
#define DPOC_FRONT_H

#include "spec.h"

/* ---- modules: parsed files and what they use (module.c) -------------------------------------- */
typedef struct Module {
    const char *path; /* as it was opened */
    const char *dir;  /* of the file: relative names start here */
    bool embedded;    /* came with the program */
    Ast *ast;
    struct Module **use;
    int nuse, capuse;
} Module;

typedef struct Front { /* one run of check_file */
    Arena *arena;
    Diags *diags;
    Module **modules; /* each file once */
    int nmodules, capmodules;
    Module *prelude;
    Ast **overlay; /* layers, models, config blocks of the variant: found before any file's */
    int noverlay, capoverlay;
    Module **extra; /* files that the variant uses: searched after the file's own */
    int nextra, capextra;
} Front;

/* A file and all it uses; NULL after a diagnostic at `from`.  Looked up beside the module that
 * names it (NULL: from the current directory), then in the embedded models/. */
Module *module_load(Front *f, const char *path, const Module *beside, Loc from);
/* A definition as seen from a module: the variant's, its own, then those of used files in order. */
Ast *module_find(Front *f, Module *from, AstKind kind, const char *name, Module **home);
/* Names of all definitions of a kind visible from a module, for suggestions. */
int module_names(Front *f, Module *from, AstKind kind, const char **out, int max);
/* A path that starts at `dir` (or NULL): "a/./b/../c" is "a/c", so that one file has one name.
 * Interned. */
const char *tidy_path(Arena *arena, const char *dir, const char *path);
/* Whether one statement stands in place of the other: same kind and, where it has one, same name.
 * */
bool same_statement(const Ast *a, const Ast *b);
/* Two definitions of one kind and name in one file are errors. */
void module_duplicates(Front *f, const Module *m);

/* ---- values: what expressions give (expr.c) -------------------------------------------------- */
typedef enum ValueKind {
    V_BAD, /* a diagnostic was given: silent from here on */
    V_NONE,
    V_NUM,
    V_BOOL,
    V_STR,
    V_RECORD,
    V_SIDE,   /* objective: num 0 chosen, 1 rejected */
    V_MODEL,  /* objective: num 0 policy, 1 reference */
    V_TENSOR, /* a node */
    V_WEIGHT  /* a weight of the running layer */
} ValueKind;

typedef enum Batch { /* objective: how a value depends on the other pairs of the step */
                     BATCH_NO,
                     BATCH_SUM, /* a sum over pairs or tokens: adds up over micro-batches */
                     BATCH_YES  /* anything else */
} Batch;

typedef struct Value {
    ValueKind kind;
    double num; /* V_NUM, V_BOOL, V_SIDE, V_MODEL; V_TENSOR with `known`: its number (parameters) */
    bool known;
    const char *str; /* V_STR */
    const struct Record *record;
    NodeId node;
    const struct Weight *weight;
    int side; /* of a per-token value: 0 chosen, 1 rejected, -1 both */
    Batch batch;
} Value;

typedef struct Field {
    const char *name;
    Value value;
} Field;
typedef struct Record {
    Field *field;
    int n, cap;
} Record;
const Value *record_get(const Record *r, const char *name); /* NULL: absent */
void record_set(Arena *arena, Record *r, const char *name, Value value);

Value value_num(double x);
Value value_bool(bool x);
Value value_str(const char *s);
Value value_bad(void);
const char *value_kind(const Value *v); /* "a number", "text", ... */
char *value_print(Arena *arena, const Value *v);

/* Evaluates expressions.  Numbers, words and conditions are its own; names, calls and arithmetic
 * with tensors are asked of its owner. */
typedef struct Expr {
    Front *front;
    void *self;                                /* the owner */
    Value (*name)(struct Expr *, const Ast *); /* A_NAME, A_PATH, A_INDEX */
    Value (*call)(struct Expr *, const Ast *); /* A_CALL, A_AS; NULL: not here */
    Value (*tensor)(struct Expr *, const Ast *, const char *op, Value,
                    Value); /* b unused for "neg" */
    Value (*select)(struct Expr *, const Ast *, Value c, Value a, Value b);
    Value (*alternative)(struct Expr *, const Ast *); /* A_ALT; NULL: not here */
    const char *where;                                /* "config", "a layer", ..: for messages */
} Expr;
Value expr_eval(Expr *e, const Ast *ast);
/* The same, with the kind that is wanted; false after a diagnostic.  `what` names it in the
 * message. */
bool expr_num(Expr *e, const Ast *ast, const char *what, double *out);
bool expr_int(Expr *e, const Ast *ast, const char *what, int64_t min, int64_t *out);
bool expr_bool(Expr *e, const Ast *ast, const char *what, bool *out);
/* Constants only: no names (settings, arguments of lora()).  A bare word is V_STR. */
Value expr_const(Front *f, const Ast *ast);
/* max, sqrt, .. of plain numbers; false: no such function of so many numbers. */
bool number_call(const char *name, const double *x, int n, double *out);
/* A `require` statement: false and the person's message if it does not hold. */
bool expr_require(Expr *e, const Ast *require);
bool is_word(const Ast *ast, const char *word);
/* "`x` is not known" with the closest of `names` as help. */
void diag_unknown(Front *f, Loc loc, const char *what, const char *name, const char *const *names,
                  int n);
/* Its help alone: the closest of `names`, or all of them where they are few. */
void diag_suggest(Front *f, Loc loc, const char *name, const char *const *names, int n);
/* Help where `name` (also BLOCK.name) is what TRL, PEFT or transformers call a setting: the one of
 * `known` that it is here, or what to do instead.  False, and nothing said, for other names. */
bool diag_elsewhere(Front *f, Loc loc, const char *name, const char *const *known, int n);

/* ---- models over checkpoints (config.c, layer.c) --------------------------------------------- */
typedef struct Weight { /* one named tensor of a model */
    const char *tensor; /* "model.layers.0.self_attn.q_proj" */
    int rank;
    int64_t shape[2]; /* [out, in], or [n] */
    bool bias;
    const struct Weight *tied;   /* the one it shares storage with, or NULL */
    const char *alias;           /* name of a weight tied to this one, or NULL */
    bool linear, embedded, head; /* how layers use it; head: it makes the logits */
    const char *format;          /* quantized: "nf4" .., else NULL */
    int64_t block;
    bool nested;
    const struct Weight *held; /* with the format in which the checkpoint holds it; NULL: plain */
    Loc loc;
} Weight;

typedef struct Env { /* the names a config block binds */
    Module *module;
    Record names;
} Env;

typedef struct Base {   /* a model description over one checkpoint */
    const char *source; /* "base" or "base:PATH" */
    const char *dir;    /* NULL: none named */
    Module *module;     /* where the model is defined */
    Ast *model;
    Record *config; /* config.json */
    Env **env;
    int nenv, capenv;
    Weight **weight; /* in the order the layers declare them */
    int nweight, capweight;
    bool trained;
    Loc loc;
} Base;

/* config.json as a record; NULL after a diagnostic at `loc`. */
Record *config_read(Front *f, const char *dir, Loc loc);
/* The names visible in a module's layers: its config block evaluated against config.json (once). */
const Record *config_env(Front *f, Base *base, Module *m);
/* A name as seen from a module: its own config block's, then those of used files. */
const Value *config_name(Front *f, Base *base, Module *m, const char *name);
int config_names(Front *f, Base *base, Module *m, const char **out, int max);

typedef struct AdapterUse {
    int adapter; /* index into Spec.adapters */
    bool start;  /* as it was at the start: a frozen copy */
} AdapterUse;
typedef struct ModelSum { /* base + adapters: a value of `policy` or `reference` */
    Base *base;           /* NULL: none */
    bool start;           /* the base's weights as they were at the start */
    AdapterUse *use;
    int nuse, capuse;
    Loc loc;
} ModelSum;

/* ---- settings (settings.c) ------------------------------------------------------------------- */
typedef enum SettingType {
    SET_INT,
    SET_NUM,
    SET_BOOL,
    SET_SIZE,
    SET_WORD,
    SET_TEXT,
    SET_FILES,
    SET_EVAL
} SettingType;
typedef struct SettingDef {
    const char *path;
    SettingType type;
    double num;
    const char *str;
    double min, max;
    const char *words, *doc;
} SettingDef;
extern const SettingDef setting_defs[];
extern const int setting_count;

typedef struct SettingValue {
    Setting s;
    const SettingDef *def; /* its row; NULL: any number (an objective's parameter) */
    bool given;
    Loc loc;
} SettingValue;
typedef struct Settings {
    Arena *arena;
    SettingValue *value;
    int n, cap;
    DataFile *file; /* data.train */
    int nfile;
} Settings;
Settings *settings_new(Arena *arena); /* all keys at their defaults */
SettingValue *settings_find(const Settings *s, const char *path);
/* A key that is no row of the table: adapter and objective parameters. */
SettingValue *settings_add(Settings *s, const char *path, double num, const char *str, Loc loc);
/* Sets `path` to an expression's value after checking it against the table; paths of files start at
 * `dir`. */
bool settings_set(Settings *s, Front *f, const char *path, const Ast *value, Loc key,
                  const char *dir);
bool word_in(const char *words, const char *word); /* one of words, separated by spaces */
/* A block `data { .. }`: every bind under the prefix "data". */
void settings_block(Settings *s, Front *f, const Ast *block, const char *dir);

/* ---- the spec -------------------------------------------------------------------------------- */
typedef struct Param { /* a number of the objective that the runtime hands in */
    const char *name, *path;
    double num;
} Param;

struct Spec {
    Front front;
    CheckOptions options;
    Module *module; /* the main file; NULL when none was named */
    /* what counts: kind and name once, variant applied; data, run and graph apart */
    Ast **statement;
    Module **home; /* the file of each */
    int nstatement, capstatement, caphome;
    Settings *settings;
    Setting *flat; /* Plan.settings */
    int nflat;
    Base **bases;
    int nbases, capbases;
    AdapterSpec *adapters;
    int nadapters, capadapters;
    ModelSum policy, reference;
    Ast *objective;
    Module *objective_home;
    Param *params;
    int nparams, capparams;
    const char **columns;
    int ncolumns, capcolumns;
    bool one_sided, asks_reference;
    bool coupled, coupled_tokens; /* a value of a pair, of a token, depends on other pairs */
    DType compute;
    Source *sources;
    int nsources, capsources;
    const char *adapter_json;
    VariantSpec *variants;
    int nvariants, capvariants;
};

/* ---- adapters and quantization: adapter.c, quantize.c, select.c ------------------------------ */
void adapters_declare(Spec *spec); /* names, and their numbers as settings: before --set */
void adapters_options(Spec *spec); /* --adapter, once it is known what is trained */
void adapters_resolve(Spec *spec, const Base *base); /* targets, once the weights are known */
void adapters_start(Spec *spec, const Base *base);   /* can they start so? formats are known */
char *adapters_json(const Spec *spec);
void quantize_resolve(Spec *spec);

typedef struct Key { /* one argument a method such as lora() knows */
    const char *name;
    ValueKind kind;
    double min, max;
    bool whole;
} Key;
/* Arguments by name into a record; false after a diagnostic. */
bool adapter_arguments(Spec *spec, const Ast *call, const Key *keys, int n, Record *out);
bool selector_ok(Spec *spec, const Ast *selector);
bool selects(const Ast *selector, const Weight *w);
/* Says that nothing was matched, and which name is close or what the match is not. */
void nothing_matched(Spec *spec, const Ast *selector, const Base *base, const char *what);
/* Whether a weight's name fits a pattern. */
bool select_match(const char *pattern, const char *name);
/* NULL if a pattern is well formed, else what is wrong with it. */
const char *select_error(const char *pattern);

/* ---- checkpoints that are quantized already: packed.c ---------------------------------------- */
struct Checkpoint;
struct SafeTensor;
/* Whether a config.json's quantization_config, if it has one, is of a kind that can be read. */
bool packed_known(Front *f, const char *dir, const Record *config, Loc loc);
/* A weight of which tensor t holds the codes: its format; false after a diagnostic. */
bool packed_weight(Spec *spec, const Base *base, const struct Checkpoint *c,
                   const struct SafeTensor *t, Weight *w);
/* The formats of all weights, where config.json is all there is. */
void packed_by_config(Arena *arena, const Base *base);

/* ---- model values: models.c ------------------------------------------------------------------ */
/* What a name stands for: `base`, `policy`, ..; false after a diagnostic. */
bool model_value(Spec *spec, const char *name, Loc loc, ModelSum *out);
/* `policy`, `reference` and what is trained. */
void models_resolve(Spec *spec);
/* Unrolls every model once: what weights there are; compares them with the checkpoint. */
void models_weights(Spec *spec);

/* ---- building (layer.c, builtin.c, lora.c, build.c, objective.c) ----------------------------- */
typedef struct Frame { /* one running layer */
    const Ast *call;   /* NULL: a model */
    Module *module;
    const Ast *layer;
    const char *scope; /* "model.layers.3.self_attn" */
    Record names;      /* parameters, weights, locals */
    NodeId *masked;    /* inputs that dropout has seen: keys of shared masks */
    int nmasked, capmasked;
    bool model; /* its `return` is the head, kept in `head` */
    const Ast *head;
    bool returned;
    Value result;
    int depth;
    struct Frame *up;
} Frame;

typedef struct Slot {            /* a leaf made once per unit */
    const char *source, *tensor; /* interned */
    NodeId node;
    struct Slot *next;
} Slot;

typedef struct Builder { /* a unit under construction */
    Spec *spec;
    Front *front;
    Unit *u;
    Graph *g;
    const ModelSum *sum; /* the model value being unrolled; NULL in an objective */
    const char *who;     /* "policy", "reference": first part of scopes */
    bool collect;        /* learning the weights: adapters and formats unknown yet */
    bool training;       /* dropout is on */
    DType round;         /* every assignment rounds to it */
    Dim rows;            /* of tokens */
    int caches;          /* KV caches made so far: a pair for every call of attend */
    Expr expr;           /* of layers */
    Frame *frame;
    Slot *slots[64];
    int64_t work;  /* calls and rounds so far; once too many, nothing more is run */
    NodeId params; /* the flat state */
    NodeId *sums;  /* by metric: the micro-batch's sum */
    int nsums, capsums;
    NodeId *answer; /* [P]: what the objective takes of each pair's answers */
    int nanswer, capanswer;
} Builder;

void builder_init(Builder *b, Spec *spec, Unit *u);
void builder_at(Builder *b, Loc loc); /* origin of the nodes appended from now on */
/* Counts one call or round, `depth` deep; false, and a diagnostic once, when it is too much. */
bool builder_goes_on(Builder *b, Loc loc, int depth);
/* A diagnostic with the running scope; gives V_BAD. */
Value builder_error(Builder *b, Loc loc, const char *format, ...) PRINTF(3, 4);

/* ---- layer.c --------------------------------------------------------------------------------- */
typedef struct Head { /* what a model returns: logits = scale * h W^T, never formed */
    NodeId h, w;
    double scale;
} Head;
/* Unrolls a model over input "tokens"; h = 0 after diagnostics. */
Head layer_model(Builder *b, const ModelSum *sum, const char *who);
/* A layer without weights as a function of values (from an objective). */
Value layer_function(Builder *b, const Ast *layer, Module *home, const Ast *call, const Value *args,
                     const char **keys, int nargs);
/* The hooks of a layer's Expr; e->self is the Builder. */
Value layer_name(Expr *e, const Ast *ast);
Value layer_call(Expr *e, const Ast *ast);
Value layer_tensor(Expr *e, const Ast *at, const char *op, Value a, Value v);
Value layer_select(Expr *e, const Ast *at, Value c, Value x, Value y);
Value tensor_value(NodeId node); /* V_BAD for 0 */
/* A value as a node: numbers become scalars, weights leaves; 0 after a diagnostic. */
NodeId value_node(Builder *b, const Ast *at, const Value *v);
/* Two operands of a map as f32 nodes of one shape; one of them may be a number. */
bool layer_operands(Builder *b, const Ast *at, const Value *vx, const Value *vy, NodeId *x,
                    NodeId *y);

/* ---- builtin.c ------------------------------------------------------------------------------- */
/* Calls a built-in function; false: there is none of that name. */
bool builtin_call(Builder *b, const Ast *call, const Value *args, const char **keys, int nargs,
                  Value *out);
bool builtin_known(const char *name);
int builtin_names(const char **out, int max);

/* ---- weight.c -------------------------------------------------------------------------------- */
NodeId build_input(Builder *b, const char *name, DType dtype, int rank, Dim rows, int64_t cols);
NodeId weight_node(Builder *b, const Weight *w, bool bias); /* in the compute type */
NodeId weight_rows(Builder *b, const Weight *w);            /* to take rows of: f32 if trained */
NodeId trained_leaf(Builder *b, const char *source, const char *tensor);
/* A tensor of a checkpoint: info's source, tensor, shape; quantization as there. */
NodeId weight_frozen(Builder *b, const WeightInfo *info);
/* Whether this is the first time that `what` is asked of (interned) `name` in this unit. */
bool build_once(Builder *b, const char *what, const char *name);

/* ---- lora.c ---------------------------------------------------------------------------------- */
NodeId lora_linear(Builder *b, const Ast *at, NodeId x, const Weight *w); /* [T,out], f32 */
/* Rows `index` of an embedding: [T,features] in the compute type. */
NodeId lora_embed(Builder *b, const Ast *at, NodeId index, const Weight *w);
NodeId lora_head(Builder *b, const Ast *at, const Weight *w); /* [vocabulary,in], compute type */

/* ---- objective.c ----------------------------------------------------------------------------- */
typedef struct Scores {                                   /* of one model on the scored rows */
    NodeId logp, mean_logit, entropy, correct, logsum_p2; /* [R] */
    NodeId side[2];                                       /* summed log-probs [P] by side */
} Scores;
/* Builds loss and metrics of the unit; false after diagnostics. `reference` may be empty. */
bool objective_build(Builder *b, const Scores *policy, const Scores *reference);
/* Sum over each sequence's rows, then the sequences of one side: [R] -> [P]; an `answer`. */
NodeId sum_sequences(Builder *b, NodeId rows, int side);
/* Notes a value [P] that comes from the model: in the same order in every unit. */
NodeId builder_answer(Builder *b, NodeId pairs);

/* ---- coupled.c: the parts of an objective that is cut off ------------------------------------ */
void coupled_scores(Builder *b);    /* program "score", and "eval": leaves `answer` in "scores" */
void coupled_objective(Builder *b); /* program "objective": "scores" -> metrics, "slopes" */
void coupled_backward(Builder *b);  /* programs "step" and "micro": a loss made of "slopes" */

#endif
