/* dpoc.h: the compiler on one page: its data in the order it flows, then every file's functions.
 *
 *   text -> AST -> Spec -> Graph -> (passes) -> Groups of Kerns, GEMMs, custom kernels -> Plan
 *
 * Open this before any .c file.  Laws, phases and identity: README.md beside this file.
 * Relies on runtime/base.h and runtime/plan.h (types shared with the runtime), never on its other
 * headers
 * except runtime/io (config.json, safetensors headers).
 */
#ifndef DPOC_H
#define DPOC_H

#include "../runtime/plan.h" /* DType, Dim, Extent, Role, Plan; base.h: Arena, Text, Err */

typedef struct Ast Ast;   /* ast.h */
typedef struct Spec Spec; /* spec.h */
typedef struct Kern Kern; /* kern.h */
typedef struct Eval Eval; /* eval.c */

/* =================================== places in the source: diag.c ============================= */

typedef struct Loc { /* bytes begin..end of a source; file 0: nowhere */
    uint32_t file, begin, end;
} Loc;

typedef enum Severity { DIAG_ERROR, DIAG_WARNING, DIAG_NOTE, DIAG_HELP } Severity;

/* Sources and the diagnostics about them.  Notes and helps belong to the diagnostic before them. */
typedef struct Diags Diags;
Diags *diags_new(Arena *arena);
/* Adds a source text (kept, not copied); returns its file number >= 1. */
uint32_t source_add(Diags *diags, const char *name, const char *text, size_t len);
const char *source_name(const Diags *diags, uint32_t file);
const char *source_text(const Diags *diags, uint32_t file, size_t *len);
void loc_line_col(const Diags *diags, Loc loc, int *line, int *col); /* from 1; col in characters */
char *loc_print(Arena *arena, const Diags *diags, Loc loc);          /* "llama3.dpo:20:9" */
Loc loc_join(Loc a, Loc b);
void diag(Diags *diags, Severity severity, Loc loc, const char *format, ...) PRINTF(4, 5);
/* A warning with a name that -W can silence: "truncated". */
void diag_warn(Diags *diags, const char *name, Loc loc, const char *format, ...) PRINTF(4, 5);
/* Warnings of that name are not recorded from now on; whether that is so. */
void diags_silence(Diags *diags, const char *name);
bool diags_silenced(const Diags *diags, const char *name);
/* An error in a file that is read (data, config.json, checkpoint, adapter), not in what was
 * written. */
void diag_file(Diags *diags, Loc loc, const char *format, ...) PRINTF(3, 4);
int diags_errors(const Diags *diags);
/* the errors after the first `errors` are a file's */
void diags_blame_file(Diags *diags, int errors);
int diags_exit(const Diags *diags); /* after errors: EXIT_IO if all are in files, else EXIT_INPUT */
/* Puts the diagnostics about one file, which end the list, into the order of their places. */
void diags_sort(Diags *diags, uint32_t file);
/* file:line:col: error: .. / source line / ^~~~ / notes, in the order they came; at most 20 errors.
 * `from`: leaves out what was said before (diags_count then), 0 for all. */
void diags_print(const Diags *diags, int from, FILE *out, bool color);
int diags_count(const Diags *diags);
char *diags_json(const Diags *diags); /* malloc: array of {severity,file,line,col,message,notes} */

/* =================================== types: types.c =========================================== */

#define MAX_RANK 4
typedef struct Type { /* interned: equality is pointer equality */
    DType dtype;
    int rank; /* 0: a scalar */
    Dim dim[MAX_RANK];
} Type;
const Type *type_of(DType dtype, int rank, const Dim *dim);
const Type *type_scalar(DType dtype);
const Type *type_vec(DType dtype, Dim n);
const Type *type_mat(DType dtype, Dim rows, Dim cols);
const Type *type_with(const Type *t, DType dtype); /* other element type */
Dim type_count(const Type *t);                     /* elements */
/* A type as a matrix, type_rows x type_cols == type_count: columns are the last axis when it is
 * constant,
 * else 1 ([D] is one row, [T] is T rows, a scalar one row of one). */
Dim type_rows(const Type *t);
int64_t type_cols(const Type *t);
char *type_print(Arena *arena, const Type *t); /* "bf16[2*T,64]" */
bool type_parse(const char *text, const Type **out);

/* =================================== ops ====================================================== */

typedef enum OpKind {
    KIND_LEAF,
    KIND_VIEW,
    KIND_MAP,
    KIND_REDUCE,
    KIND_GEMM,
    KIND_CUSTOM,
    KIND_EFFECT
} OpKind;
typedef enum Op {
#define OP(name, kind, lo, hi, infer, vjp, eval, attrs) OP_##name,
#include "ops.def"
#undef OP
    NOP
} Op;

typedef enum Phase { PHASE_INIT, PHASE_STEP, PHASE_MICRO, PHASE_UPDATE, NPHASE } Phase;
extern const char *const phase_names[NPHASE]; /* "init", "step", "micro", "update" */

typedef struct Attr { /* slots; which ones an op uses stands in its row */
    double num;
    int64_t i0, i1, i2;
    Dim dim, dim2;
    const char *name, *name2; /* interned */
    const float *table;       /* forever-lived; identity is the pointer (table_intern) */
} Attr;

typedef int NodeId; /* 0: none */

typedef struct Origin { /* where a node comes from; merged nodes have several */
    Loc loc;
    const char *scope; /* "policy/model.layers.17.self_attn" */
    const struct Origin *next;
} Origin;

#define MAX_IN 8
typedef struct Node {
    Op op;
    Phase phase;
    int nin;
    NodeId in[MAX_IN]; /* each smaller than the node's own id */
    const Type *type;
    Attr attr;
    uint32_t inst; /* 0, except for recompute clones, duplicated dequantizations and effects */
    const Origin *origin;
} Node;

typedef struct Graph { /* append-only and ordered; node 0 is not used */
    Arena *arena;
    Node *node;
    int n, cap;   /* ids are 1 .. n-1 */
    NodeId *root; /* effects; what is not reached from them is dead */
    int nroot, caproot;
    bool intern; /* equal nodes are returned instead of appended */
    struct InternTable *table;
    const Origin *at; /* of the nodes appended from now on (graph_at) */
    Diags *diags;
} Graph;

typedef struct Infer { /* what an infer rule sees; sets result or message */
    const Graph *g;
    Op op;
    const Attr *attr;
    const Type *const *in;
    const NodeId *id; /* the operands themselves: a part's type depends on the op it is a part of */
    int nin;
    const Type *given; /* type the caller asked for (ops with infer `given`), else NULL */
    const Type *result;
    const char *message; /* what is wrong, with numbers; arena text */
    Arena *arena;        /* for messages */
} Infer;

typedef struct Grad Grad; /* grad.c: adjoints under construction */

typedef struct OpInfo {
    const char *name;
    OpKind kind;
    int lo, hi;
    void (*infer)(Infer *);
    void (*vjp)(Grad *, NodeId); /* NULL never: vjp_none */
    void (*eval)(Eval *, NodeId);
    const char *attrs;
} OpInfo;
extern const OpInfo op_info[NOP];
bool op_by_name(const char *name, Op *op);

/* ---- graph.c --------------------------------------------------------------------------------- */
Graph *graph_new(Arena *arena, Diags *diags);
/* Appends a node (or returns the equal one when g->intern).  The type is inferred; `given` only for
 * ops
 * whose type cannot be.  A shape that does not fit is a diagnostic at the origin's loc with the
 * operands'
 * types; then the result is 0 and any op on 0 gives 0 without a further message. */
NodeId graph_add(Graph *g, Op op, const NodeId *in, int nin, const Attr *attr, const Type *given,
                 uint32_t inst, const Origin *origin);
/* The phase that follows from a node's operands; what depends on the batch is micro or later. */
Phase phase_of(const Graph *g, const Node *n);
void graph_root(Graph *g, NodeId id);
/* Copies one node into another graph with mapped operands; keeps attr, inst, origins, type, and a
 * phase
 * that was put later than the operands ask for (dequantizations). */
NodeId graph_copy(Graph *to, const Graph *from, NodeId id, const NodeId *map);
/* Copies all that is reachable from the roots; the whole of dead-code elimination.  map (size
 * from->n,
 * or NULL) receives the new ids, 0 for what died. */
Graph *graph_clean(Arena *arena, const Graph *from, bool intern, NodeId *map);
/* Whether `id` takes something of `what` on a way that gradients take too. */
bool graph_flows(const Graph *g, NodeId what, NodeId id);
/* live[id] for what the roots reach; `live` has g->n elements. */
void graph_live(const Graph *g, bool *live);
static inline const Node *node(const Graph *g, NodeId id) {
    return &g->node[id];
}
/* forever-lived copy; equal values, equal pointer */
const float *table_intern(const float *values, int n);
int table_size(const float *table);
const Origin *origin_new(Arena *arena, Loc loc, const char *scope);
/* "llama3.dpo:20:9 policy/..." */
char *origin_print(Arena *arena, const Diags *diags, const Origin *o);
/* The leaf below a chain of views, and whether `id` is such a chain over storage. */
NodeId graph_base(const Graph *g, NodeId id);

/* Short forms used by build and vjp rules; origin is g's current one (graph_at). */
void graph_at(Graph *g, const Origin *origin); /* origin of the nodes appended from now on */
NodeId g_op(Graph *g, Op op, NodeId a, NodeId b, NodeId c); /* unused operands 0 */
NodeId g_const(Graph *g, double x, const Type *type);
NodeId g_cast(Graph *g, NodeId x, DType to); /* x itself when it has that dtype */
/* f32, to shape's dims; x itself if same */
NodeId g_bcast(Graph *g, NodeId x, const Type *shape, int lead);
NodeId g_reshape(Graph *g, NodeId x, const Type *shape); /* x itself if same */
NodeId g_matmul(Graph *g, NodeId a, NodeId b, bool ta, bool tb);
NodeId g_part(Graph *g, NodeId x, int k);
NodeId g_input(Graph *g, const char *name, Phase phase, const Type *type);
NodeId g_state(Graph *g, const char *name, Phase phase, Role role, const Type *type);
/* a tensor of a flat state */
NodeId g_slot(Graph *g, NodeId flat, int64_t begin, const Type *shape);
/* assign, accumulate: a root */
NodeId g_effect(Graph *g, Op op, NodeId target, NodeId x);
NodeId graph_find(const Graph *g, Op leaf, const char *name); /* first such leaf, or 0 */

/* ---- infer.c, verify.c, print.c, read.c ------------------------------------------------------ */
/* Rules of a well-formed graph: operands before users, types as inferred, phases, one effect order.
 * Returns NULL or a message naming the node (a bug of the pass that made it). */
const char *graph_verify(const Graph *g, Arena *arena);
/* One line a node: `%7 = matmul %3 %5 tb=1 : f32[T,64] micro "scope"`; roots at the end
 * (print.c). */
void graph_print(const Graph *g, Text *out);
/* what graph_print writes; NULL after errors */
Graph *graph_read(Arena *arena, Diags *diags, uint32_t file);

/* ---- eval.c: the truth ----------------------------------------------------------------------- */
/* rounding: every node to its dtype */
typedef enum EvalMode { EVAL_DOUBLE, EVAL_ROUNDING } EvalMode;

Eval *eval_new(const Graph *g, EvalMode mode, const int64_t extent[NEXTENT]);
void eval_free(Eval *e);
/* Values are row-major doubles (i32 and u8 too), count = type_count at the extents. State and
 * inputs are
 * set by name, weights by "source/name"; unset ones are zero. */
void eval_set(Eval *e, const char *leaf, const double *values, int64_t count);
/* Runs the nodes of one phase, effects included (all phases up to `phase` that have not run yet
 * when
 * `only` is false). */
void eval_run(Eval *e, Phase phase, bool only);
/* value of a node after a run */
const double *eval_get(Eval *e, NodeId id, int64_t *count);
const double *eval_state(Eval *e, const char *leaf, int64_t *count); /* a leaf's current storage */

/* ---- grad.c
 * Adjoints are f32.  vjp_<rule>(G, y) reads the adjoint of node y and adds to those of its operands
 * that
 * lie on a path from a trainable leaf. */
NodeId grad_adjoint(Grad *G, NodeId y); /* f32, y's shape */
bool grad_wanted(const Grad *G, NodeId x);
void grad_add(Grad *G, NodeId x, NodeId dx); /* adjoint(x) += dx */
Graph *grad_graph(Grad *G);
/* d(loss)/d(leaf) for each leaf, loss being a scalar weighted by `seed` (a scalar node, e.g.
 * 1/pairs).
 * out[i] = 0 where no path exists. */
void grad_of(Graph *g, NodeId loss, NodeId seed, const NodeId *leaf, int n, NodeId *out);
/* Marks what lies on a path from a leaf that gradients take; `wanted` has g->n elements. */
void grad_paths(const Graph *g, const NodeId *leaf, int n, bool *wanted);

/* =================================== the unit: what passes read and extend ==================== */

typedef enum UnitKind {
    UNIT_TRAIN,
    UNIT_EVAL,
    UNIT_REF,
    UNIT_SCORE,          /* of an objective that is cut off (coupled.c): what it takes of pairs */
    UNIT_OBJECTIVE,      /* the objective itself, on all pairs of a step */
    UNIT_PREFILL,        /* the policy over pieces of prompts, into the KV cache */
    UNIT_DECODE,         /* the policy over one row a sequence */
    UNIT_BEFORE_PREFILL, /* the same for the policy without what is trained */
    UNIT_BEFORE_DECODE,
    NUNIT
} UnitKind;
/* Programs they fill: train -> init step micro update; the others -> init, and the one of their
 * name. */
extern const char *const unit_names[NUNIT]; /* "train", "eval", .. "before.decode": build.c */
static inline bool unit_generates(UnitKind kind) {
    return kind >= UNIT_PREFILL;
}

typedef struct Start { /* how a fresh tensor is made: Bind's keys of these names */
    const char *init;
    double init_num;
    const char *of_source, *of;
} Start;

typedef struct WeightInfo { /* a frozen tensor of a checkpoint */
    const char *source, *tensor, *alias;
    int rank;
    int64_t rows, cols;
    bool transposed;    /* lies in memory as [cols, rows] */
    bool exact;         /* in f32 whatever the compute type */
    Start start;        /* of a fresh one; init NULL: it must be in the source */
    const char *format; /* NULL, or "nf4" "fp4" "int8": how it is kept */
    int64_t block;
    bool nested;
    Loc loc;
} WeightInfo;

/* A trained tensor: elements offset.. of the flat "params", "grads", and of the moments "m", "v"
 * or, the last Unit.coded elements, "m8", "v8". */
typedef struct Trained {
    /* tensor: PEFT's name without "base_model.model.", "....q_proj.lora_A.weight" */
    const char *source, *tensor;
    const char *alias;
    int rank;
    int64_t rows, cols, offset;
    bool transposed; /* lies in memory as [cols, rows] */
    Start start;     /* init NULL: it must be in the source */
    NodeId leaf;     /* the step-phase slot node in the unit's graph as built */
    Loc loc;
} Trained;

typedef struct Target { /* all that passes ask of a device; constant, available without it */
    const char *name;   /* "cpu", "sm_80", "sm_90" */
    bool cuda;
    int arch;               /* CUDA: 10 * compute capability; else 0 */
    int64_t align;          /* of buffers, bytes */
    int64_t bucket;         /* T and R are multiples of it */
    int64_t chunk_rows;     /* of the head */
    int64_t gemm_workspace; /* bytes, one buffer of the plan */
    int64_t reserve;        /* default graph.reserve */
    int shared_max;         /* bytes of shared memory a block may use */
} Target;
const Target *target_by_name(const char *name); /* target.c; NULL if unknown */
/* The target for a device: the newest row that is not newer than it; arch 0: the CPU; NULL: the
 * device is older than all. */
const Target *target_by_arch(int arch);
const char *target_names(void); /* "cpu, sm_80, .." */

typedef enum GroupKind { GROUP_KERN, GROUP_GEMM, GROUP_CUSTOM } GroupKind;

typedef struct Group { /* nodes computed by one kernel or library call */
    GroupKind kind;
    NodeId *nodes; /* ascending */
    int nnodes;
    /* stored values read: nodes outside whose value (after views) comes from a buffer */
    NodeId *ins;
    int nins;
    NodeId *outs; /* nodes of the group whose value must be stored (effects: the effect node) */
    int nouts;
    int64_t scratch; /* bytes needed while it runs, at the bounds */
    Kern *kern;      /* GROUP_KERN */
    Gemm gemm;       /* GROUP_GEMM; operands below are stored values or views of them */
    /* c: the node whose storage is written (beta 1: an accumulate's target) */
    NodeId a, b, bias, c;
    /* GROUP_GEMM, or 0: the stored value whose buffer becomes c's (beta 1: C holds it, and nothing
     * reads it afterwards) */
    NodeId inplace;
    Dim m, n, k; /* GROUP_KERN: it runs over m rows of n columns */
    Phase phase;
    bool side; /* its steps may run beside the groups that follow (prefetch.c) */
} Group;

typedef struct Unit {
    UnitKind kind;
    const Spec *spec;
    const Target *target;
    bool safe;    /* plain kernels only: no tensor-core instructions, no inline PTX */
    Arena *arena; /* of this unit */
    Diags *diags;
    Graph *g;
    int64_t bound[NEXTENT];
    DType compute; /* f32 or bf16 */
    WeightInfo *weights;
    int nweights, capweights;
    Trained *trained;
    int ntrained, captrained;
    int64_t nparams; /* elements of the flat state, a multiple of 1024 */
    int64_t coded;   /* so many of them, at the end, keep their moments in 8 bits */
    NodeId loss;     /* scalar: sum over the micro-batch; 0 in those without one */
    NodeId seed;     /* scalar input: 1 / denominator of the loss */
    Metric *metrics;
    int nmetrics, capmetrics;
    Group *groups; /* in execution order after `order` */
    int ngroups;
    const char **refused; /* "fuse: %12 mul: reason" */
    int nrefused, caprefused;
    const char **recomputed;
    int nrecomputed, caprecomputed;
    int64_t activation_budget; /* bytes remat may keep; 0: all of it */
    bool still;                /* the plan trains nothing: "params" are as they were bound */
    bool resident;             /* quantized weights are dequantized once, in "init" */
    bool no_prefetch;          /* memory for two dequantized weights at once is not there */
    int64_t activation_bytes;  /* remat's answer: bytes of activations that wait for the backward */
} Unit;
/* forward[id]: the loss or a metric needs the node; backward[id]: it depends on the loss's seed.
 * Neither:
 * a slope that only the backward reads.  Arrays of g->n, cleared. */
void unit_directions(const Unit *u, bool *forward, bool *backward);
/* Puts a rewritten graph in place of u->g: every id the unit holds (trained leaves, loss, seed)
 * goes
 * through `map`, which graph_clean or the pass's own copy filled. */
void unit_replace_graph(Unit *u, Graph *g, const NodeId *map);
/* Records "pass: what: why" for plan, view and --explain. */
void unit_refuse(Unit *u, const char *pass, NodeId id, const char *format, ...) PRINTF(4, 5);

/* =================================== the passes: pass.c ======================================= */

typedef struct Pass {
    const char *name; /* also its file, its switch in `graph`, its dump and its test */
    int (*run)(struct Pass *, Unit *); /* number of changes; < 0: failed, diagnostics were given */
    const char *sentence;
    bool needed; /* runs even when switched off, doing only what later rows need */
    bool off;    /* switched off for this unit */
} Pass;
extern const Pass pass_table[]; /* ends with a row without a name */
typedef struct OrderPair {      /* row `before` stands above row `after` in the table, because .. */
    const char *before, *after, *because;
} OrderPair;
extern const OrderPair order_pairs[]; /* ends with a row without names */
int pass_fold(Pass *, Unit *);        /* fold.c: constants and identities */
int pass_cse(Pass *, Unit *);         /* cse.c: equal nodes become one */
int pass_grad(Pass *, Unit *);        /* grad.c: backward and update nodes */
int pass_slice(Pass *, Unit *);       /* slice.c: row gathers move up past row-wise ops */
int pass_defer(Pass *, Unit *);       /* defer.c: the head's gradient in its forward sweep */
int pass_share(Pass *, Unit *);       /* share.c: policy and reference weight by weight */
int pass_quant(Pass *, Unit *);       /* quant.c: dequantization becomes visible */
int pass_remat(Pass *, Unit *);       /* remat.c: recompute instead of keep */
/* layout.c: strided views that a reader can't address become copies */
int pass_layout(Pass *, Unit *);
int pass_gemm(Pass *, Unit *);  /* gemm.c: matmuls become library calls (groups) */
int pass_fuse(Pass *, Unit *);  /* fuse.c: all other nodes become Kerns and custom groups */
int pass_order(Pass *, Unit *); /* order.c: one total order */
/* prefetch.c: dequantizations beside the product before */
int pass_prefetch(Pass *, Unit *);

typedef struct DumpOptions {
    const char *after; /* pass name or "all"; NULL: none */
    const char *dir;   /* NULL: stdout */
    bool time;         /* print pass times to stderr */
    /* called after every row, or NULL; may keep copies, changes nothing */
    void (*watch)(void *watcher, const Unit *u, const Pass *pass);
    void *watcher;
} DumpOptions;
/* build's graph through all passes; verifies after each.  false after diagnostics. */
bool unit_run_passes(Unit *u, const DumpOptions *dump);
/* One row of the table on a unit that may have no spec (a graph read from text). */
bool unit_run_only(Unit *u, const char *name);
void passes_print(FILE *out); /* `dpoc passes`: the table and the order pairs with their reasons */
void unit_print_groups(const Unit *u, Text *out); /* what dumps show below the graph */

/* ---- build.c (front end): makes u->g, weights, trained, metrics, bounds from the spec -------- */
Unit *unit_new(Arena *arena, const Spec *spec, const Target *target, UnitKind kind);
/* Bounds for micro-batches of `tokens` rows, a multiple of the bucket (0: run.tokens). */
void unit_bounds(const Spec *spec, const Target *target, UnitKind kind, int64_t tokens,
                 int64_t bound[NEXTENT]);
bool unit_build(Unit *u);

/* ---- update.c: clipping and AdamW over the flat state, appended by grad ---------------------- */
void update_build(Unit *u);

/* ---- place.c: where a value lies, and who reads it ------------------------------------------- */
typedef struct Place { /* a value seen through its views */
    NodeId base;       /* leaf or stored node (part k of a custom node: that part node) */
    Dim offset;        /* elements from base's first */
    int64_t ld;        /* elements between rows (type_rows x type_cols) */
} Place;
/* A reshape of a strided value that no single ld describes is its own base; after layout.c there
 * is none. */
Place place_of(const Graph *g, NodeId id);
bool place_dense(const Graph *g, NodeId id); /* rows follow each other without gaps */

/* Users of every node, for one pass: graphs keep no use lists.  Dead nodes use nothing. */
typedef struct Uses {
    const int *first;   /* users of id: user[first[id]] .. user[first[id + 1] - 1], ascending; */
    const NodeId *user; /* one entry an operand, so a user that reads id twice stands twice */
} Uses;
Uses uses_of(Arena *arena, const Graph *g);
static inline int use_count(const Uses *uses, NodeId id) {
    return uses->first[id + 1] - uses->first[id];
}

/* ---- lower.c: a group's nodes as one Kern (kern.h) ------------------------------------------- */
Kern *lower_kern(Unit *u, const Group *group);

/* ---- plan.c, emit.c: units -> Plan
 * plan_unit gives every stored value of the unit's groups a Buf, adds its binds, and emits its
 * programs'
 * steps.  plan_finish reads lifetimes off the steps (a buffer two programs touch is persistent),
 * assigns
 * offsets so that no two live buffers overlap and sets arena_bytes; false: over plan->budget_bytes.
 *
 * A weight leaf whose name is "TENSOR#PART" is one part of a quantized tensor ("codes", "absmax",
 * "absmax2",
 * "offset", "map"); its WeightInfo (attr.i0) has the format.  Other weights are bound whole. */
void plan_unit(Plan *plan, Unit *u);
/* reuse.c: over[out] = the value whose place `out` takes, for results of kernels that write over an
 * operand;
 * rewrites those kernels.  Called by plan_unit on the ordered groups. */
void reuse_storage(Unit *u, NodeId *over);
bool plan_finish(Plan *plan, const Target *target);
const char *plan_leaf_name(const Node *n); /* name of the buffer that a leaf lies in (interned) */
/* Everything: units of the wanted kinds, passes, remat under the budget, plan, emit.  NULL after
 * diagnostics. */
typedef struct GenerateBounds { /* of the units that generate; 0: as unit_bounds has it */
    int64_t rows;               /* of one run of "prefill" */
    int64_t sequences;          /* answered at once */
    int64_t cache;              /* rows of the KV cache, for all sequences together */
} GenerateBounds;
typedef struct CompileOptions {
    const Target *target;
    int64_t budget; /* bytes for the arena; 0: no limit */
    bool safe;      /* plain kernels only */
    bool want[NUNIT];
    GenerateBounds generate;
    DumpOptions dump;
} CompileOptions;
Plan *compile_spec(const Spec *spec, const CompileOptions *options);

/* What lower rules of custom ops (custom.c) use to append steps. */
typedef struct Emit {
    Plan *plan;
    Unit *u;
    const Group *group;
    Program *program;
    int scratch; /* buffer of group->scratch bytes, or -1 */
    int *buf;    /* by node id: the buffer of a stored value or leaf, -1: none */
} Emit;
/* Appends to one of the plan's arrays (bufs, binds, steps, ...), whose capacity follows from n. */
#define PLAN_PUSH(plan, v, n, item)                                                                \
    ((v) = plan_room((plan), (v), sizeof(*(v)), (n)), (v)[(n)++] = (item))
void *plan_room(Plan *plan, void *v, size_t size, int n);
Arg emit_arg(Emit *e, NodeId id); /* stored value or view; buf -1 for id 0 */
int emit_align(const Arg *arg);   /* bytes, up to 16, of which its address is a multiple */
int emit_kernel(Emit *e, const Kernel *kernel);                /* index; equal text is one kernel */
Step *emit_step(Emit *e, StepKind kind, int nargs, int ndims); /* label and where are filled in */
/* result k's node if it is stored in this group, else 0 */
NodeId emit_part(Emit *e, NodeId id, int k);
void emit_group(Emit *e); /* the steps of e->group */

/* ---- arrange.c: offsets for blocks that live for a while ------------------------------------- */
typedef struct Block {
    int64_t bytes;
    int first, last;      /* live in steps first..last, inclusive */
    const Shrink *shrink; /* ascending steps, descending bytes */
    int nshrink;
    int64_t offset; /* the answer: a multiple of the alignment */
} Block;
/* Gives every block an offset so that no two live ones overlap; returns the height of it all, which
 * need not be lower than `floor`. */
int64_t arrange(Block *block, int n, int64_t align, int64_t floor);
/* No arrangement can be lower: the greatest sum of live (aligned) bytes. */
int64_t arrange_bound(const Block *block, int n, int64_t align);

/* ---- custom.c: one row of functions per CUSTOM op -------------------------------------------- */
typedef struct CustomInfo {
    int64_t (*scratch)(const Unit *u, const Group *group); /* bytes at the bounds */
    void (*lower)(Emit *e, NodeId id);                     /* appends the steps that compute it */
} CustomInfo;
const CustomInfo *custom_info(Op op); /* never NULL for CUSTOM ops */

/* ---- emit_c.c, emit_cuda.c: print a Kern ----------------------------------------------------- */
void emit_kern_c(const Kern *k, const char *symbol, Text *out);
void emit_kern_cuda(const Kern *k, const char *symbol, Text *out);
/* CUDA launch of a Kern: fills threads, rows_per_block, grid_y, shared_bytes. */
void kern_launch(const Kern *k, Kernel *out);
/* The shared text put before kernels of one module (types, math), per target. */
const char *emit_prelude(const Target *target);

/* ---- cost.c ---------------------------------------------------------------------------------- */
double node_flops(const Graph *g, NodeId id, const int64_t extent[NEXTENT]);
/* read + written, unfused */
double node_bytes(const Graph *g, NodeId id, const int64_t extent[NEXTENT]);
/* Matmul and attention FLOPs of a phase at these extents (attention: full causal square of T). */
double graph_flops(const Graph *g, Phase phase, const int64_t extent[NEXTENT]);
enum { CLONE_INST = 1 << 16 }; /* inst of a node that remat computes again: from here on */
/* What of it is computed again to save memory. */
double graph_flops_again(const Graph *g, Phase phase, const int64_t extent[NEXTENT]);

/* ---- view.c ---------------------------------------------------------------------------------- */
void view_dot(const Unit *u, FILE *out);
void view_memory_svg(const Plan *plan, FILE *out); /* x = step, y = address */

/* ---- settings.c: settings.def as a table ----------------------------------------------------- */
void settings_print(FILE *out, bool json); /* `dpoc settings` */

#endif
