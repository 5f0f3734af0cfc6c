/* objective.c: the objective language as graph: loss and metrics of pairs.
 *
 * A value is a scalar, one number per pair [P], or one per scored token [R] of one side; a scalar
 * stretches to pairs, a pair's value to its tokens.  A loss per pair is averaged over the pairs of
 * the optimizer step, one per token over its side's tokens: the node is the micro-batch's sum, the
 * divisor an input.  A scalar loss (sums of batch_mean) carries its divisors itself.  Relies on
 * layer.c for arithmetic. Promises: values that cross pairs other than by such sums set
 * Spec.coupled, and Spec.coupled_tokens where they reach a token.
 */
#include "objective.h"

#include <string.h>

static Obj *obj(Expr *e) {
    return e->self;
}

Level obj_level(const Obj *o, const Value *v) {
    if (v->kind != V_TENSOR) return LEVEL_ONE;
    const Type *t = node(o->g, v->node)->type;
    if (!t->rank) return LEVEL_ONE;
    return dim_equal(t->dim[0], dim_extent(X_P)) ? LEVEL_PAIR : LEVEL_TOKEN;
}

static Value error_at(Obj *o, const Ast *at, const char *text) {
    return builder_error(o->b, at->loc, "%s", text);
}

/* ---- sums and gathers between rows, sequences and pairs -------------------------------------- */

static NodeId pairs_of(Builder *b, int side) {
    return build_input(b, side ? "rejected" : "chosen", DT_i32, 1, dim_extent(X_P), 0);
}

static NodeId sequences(Builder *b) {
    return build_input(b, "seq", DT_i32, 1, dim_extent(X_R), 0);
}

static NodeId put(Builder *b, NodeId x, NodeId index) {
    Attr attr = {.dim = dim_extent(X_N)};
    return graph_add(b->g, OP_put, (NodeId[]){x, index}, 2, &attr, NULL, 0, NULL);
}

NodeId builder_answer(Builder *b, NodeId pairs) {
    if (pairs) PUSH(b->u->arena, b->answer, b->nanswer, b->capanswer, pairs);
    return pairs;
}

NodeId sum_sequences(Builder *b, NodeId rows, int side) {
    NodeId each = put(b, rows, sequences(b));
    return builder_answer(b, g_op(b->g, OP_take, each, pairs_of(b, side), 0));
}

/* [P] -> [R]: each row gets its pair's value, rows of the other side 0. */
static NodeId spread(Builder *b, NodeId pairs, int side) {
    NodeId n = 0;
    if (side < 0)
        n = g_op(b->g, OP_add, put(b, pairs, pairs_of(b, 0)), put(b, pairs, pairs_of(b, 1)), 0);
    else
        n = put(b, pairs, pairs_of(b, side));
    return g_op(b->g, OP_take, n, sequences(b), 0);
}

static NodeId scalar_input(Builder *b, const char *name) {
    return build_input(b, name, DT_f32, 0, dim_const(0), 0);
}

const char *obj_token_divisor(int side) {
    return side < 0 ? "inv_tokens" : side ? "inv_tokens_rejected" : "inv_tokens_chosen";
}

NodeId obj_total(Obj *o, const Value *v) {
    Level l = obj_level(o, v);
    NodeId x = v->node;
    if (l == LEVEL_ONE) return x;
    if (l == LEVEL_TOKEN) {
        if (v->batch != BATCH_NO) o->b->spec->coupled_tokens = true;
        NodeId all = sum_sequences(o->b, x, v->side == 1);
        if (v->side < 0 && !o->b->spec->one_sided)
            all = g_op(o->g, OP_add, all, sum_sequences(o->b, x, 1), 0);
        x = all;
    }
    return g_op(o->g, OP_sum_rows, x, 0, 0);
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

/* One of the values has fewer axes: brings both to one level; false after a diagnostic. */
static bool lift(Obj *o, const Ast *at, Value *x, Value *y) {
    Level lx = obj_level(o, x), ly = obj_level(o, y);
    if (lx == LEVEL_TOKEN && ly == LEVEL_TOKEN && x->side >= 0 && y->side >= 0 &&
        x->side != y->side) {
        error_at(o, at, "tokens of the chosen and of the rejected answer can't meet");
        diag(o->b->front->diags, DIAG_HELP, at->loc, "take sum() or mean() of each first");
        return false;
    }
    Value *pair = lx == LEVEL_PAIR && ly == LEVEL_TOKEN   ? x
                  : ly == LEVEL_PAIR && lx == LEVEL_TOKEN ? y
                                                          : NULL;
    if (pair) {
        const Value *token = pair == x ? y : x;
        builder_at(o->b, at->loc);
        pair->node = spread(o->b, pair->node, token->side);
        pair->side = token->side;
    }
    return true;
}

static Batch most(Batch a, Batch b) {
    return a > b ? a : b;
}

/* What crosses pairs in op(x, y): sums of the batch stay sums under what is linear in them. */
static Batch batch_of(Obj *o, const char *op, const Value *x, const Value *y) {
    Batch worst = most(x->batch, y->batch);
    if (worst != BATCH_SUM) return worst;
    if (!strcmp(op, "neg")) return BATCH_SUM;
    bool both = x->batch == BATCH_SUM && y->batch == BATCH_SUM;
    const Value *other = x->batch == BATCH_SUM ? y : x;
    bool scalar = obj_level(o, other) == LEVEL_ONE;
    if ((op[0] == '+' || op[0] == '-') && both) return BATCH_SUM;
    if (op[0] == '*' && !both && scalar) return BATCH_SUM;
    if (op[0] == '/' && !both && scalar && other == y) return BATCH_SUM;
    return BATCH_YES;
}

/* Numbers of scalars that are known now: what `if` and `require` look at. */
static bool known(const Value *v, double *x) {
    *x = v->num;
    return v->kind == V_NUM || (v->kind == V_TENSOR && v->known);
}

static double compute(const char *op, double a, double b) {
    switch (op[0]) {
    case '+':
        return a + b;
    case '-':
        return a - b;
    case '*':
        return a * b;
    case '/':
        return a / b;
    case '<':
        return op[1] ? a <= b : a < b;
    case '>':
        return op[1] ? a >= b : a > b;
    case '=':
        return a == b;
    case '!':
        return a != b;
    default:
        return -a; /* neg */
    }
}

Value obj_tensor(Expr *e, const Ast *at, const char *op, Value x, Value y) {
    Obj *o = obj(e);
    bool one = !strcmp(op, "neg");
    if (!one && !lift(o, at, &x, &y)) return value_bad();
    Value v = layer_tensor(&o->b->expr, at, op, x, y);
    if (v.kind == V_BAD) return v;
    double a, b = 0;
    v.known = known(&x, &a) && (one || known(&y, &b));
    if (v.known) v.num = compute(op, a, b);
    v.side = x.side >= 0 ? x.side : one ? -1 : y.side;
    v.batch = one ? x.batch : batch_of(o, op, &x, &y);
    return v;
}

/* The sides and batches of several values joined into a result's. */
static Value joined(Value v, const Value *args, int n) {
    for (int i = 0; i < n; i++) {
        if (args[i].kind != V_TENSOR) continue;
        if (args[i].side >= 0) v.side = args[i].side;
        Batch b = args[i].batch == BATCH_SUM ? BATCH_YES : args[i].batch; /* not linear here */
        v.batch = most(v.batch, b);
    }
    return v;
}

static Value obj_select(Expr *e, const Ast *at, Value c, Value x, Value y) {
    Obj *o = obj(e);
    double holds;
    if (known(&c, &holds)) return holds != 0 ? x : y;
    if (x.kind == V_BAD || y.kind == V_BAD) return value_bad();
    if (!lift(o, at, &x, &y) || !lift(o, at, &c, &x) || !lift(o, at, &c, &y)) return value_bad();
    Value args[3] = {c, x, y};
    return joined(layer_select(&o->b->expr, at, c, x, y), args, 3);
}

/* ---- names ----------------------------------------------------------------------------------- */

static Value pair_column(Obj *o, const Ast *ast) {
    const char *name = intern_printf("pair.%s", ast->text);
    return tensor_value(build_input(o->b, name, DT_f32, 1, dim_extent(X_P), 0));
}

static int visible_names(const Obj *o, const char **names, int max) {
    static const char *const words[] = {"chosen", "rejected", "policy", "reference", "place"};
    int n = 0;
    for (size_t i = 0; i < COUNT(words); i++) names[n++] = words[i];
    for (const Ast *p = o->ast->params; p && n < max; p = p->next) names[n++] = p->text;
    for (int i = 0; i < o->names.n && n < max; i++) names[n++] = o->names.field[i].name;
    return n;
}

Value obj_param(Obj *o, const char *name) {
    const Spec *s = o->b->spec;
    for (int i = 0; i < s->nparams; i++) {
        if (strcmp(s->params[i].name, name) != 0) continue;
        Value v = tensor_value(scalar_input(o->b, s->params[i].path));
        v.known = true;
        v.num = spec_num(s, s->params[i].path);
        return v;
    }
    return value_bad();
}

static Value obj_name(Expr *e, const Ast *ast) {
    Obj *o = obj(e);
    builder_at(o->b, ast->loc);
    if (ast->kind == A_PATH && is_word(ast->a, "pair")) return pair_column(o, ast);
    if (ast->kind != A_NAME)
        return error_at(o, ast, "this path has no meaning in an objective; pair.NAME has");
    const Value *local = record_get(&o->names, ast->text);
    if (local) return *local;
    static const char *const words[] = {"chosen", "rejected", "policy", "reference"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(ast->text, words[i]))
            return (Value){.kind = i < 2 ? V_SIDE : V_MODEL, .num = i % 2, .side = -1};
    if (!strcmp(ast->text, "place"))
        return tensor_value(
            g_cast(o->g, build_input(o->b, "place", DT_i32, 1, dim_extent(X_R), 0), DT_f32));
    Value v = obj_param(o, ast->text);
    if (v.kind != V_BAD) return v;
    const char *names[128];
    diag_unknown(o->b->front, ast->loc, "name", ast->text, names,
                 visible_names(o, names, COUNT(names)));
    return v;
}

/* ---- functions ------------------------------------------------------------------------------- */

typedef struct Fun { /* a call of one of the functions below */
    Obj *o;
    const Ast *ast;
    const Value *arg;
    const char *name;
} Fun;

static Value usage(const Fun *f, const char *text) {
    return builder_error(f->o->b, f->ast->loc, "%s: %s", f->name, text);
}

/* logp, token_logp, ..: (policy or reference, chosen or rejected). */
static Value of_model(const Fun *f) {
    Obj *o = f->o;
    if (f->arg[0].kind != V_MODEL || f->arg[1].kind != V_SIDE)
        return usage(f, "takes (policy or reference, chosen or rejected)");
    int side = f->arg[1].num != 0;
    const Scores *s = o->model[f->arg[0].num != 0];
    bool whole = !strcmp(f->name, "logp");
    if (whole && s && s->side[side]) return tensor_value(s->side[side]);
    if (!s || !s->logp)
        return usage(f, s && s->side[0]
                            ? "with graph.ref = cached the reference is known per answer only"
                            : "there is no reference");
    NodeId rows = !strcmp(f->name, "token_entropy")     ? s->entropy
                  : !strcmp(f->name, "token_logsum_p2") ? s->logsum_p2
                                                        : s->logp;
    Value v = tensor_value(rows);
    v.side = side;
    return v;
}

static Value lengths(Obj *o, int side) {
    NodeId len = build_input(o->b, "len", DT_i32, 1, dim_extent(X_N), 0);
    return tensor_value(g_op(o->g, OP_take, g_cast(o->g, len, DT_f32), pairs_of(o->b, side), 0));
}

static Value length(const Fun *f) {
    if (f->arg[0].kind != V_SIDE) return usage(f, "takes chosen or rejected");
    return lengths(f->o, f->arg[0].num != 0);
}

/* sum, mean: of an answer's tokens. */
static Value over_tokens(const Fun *f) {
    Obj *o = f->o;
    const Value *x = &f->arg[0];
    if (obj_level(o, x) != LEVEL_TOKEN)
        return usage(f, "takes a value per token; batch_sum and batch_mean go over pairs");
    if (x->side < 0) return usage(f, "it is not clear which answer's tokens are meant");
    if (x->batch != BATCH_NO) o->b->spec->coupled_tokens = true;
    Value v = tensor_value(sum_sequences(o->b, x->node, x->side));
    if (!strcmp(f->name, "mean"))
        v = tensor_value(g_op(o->g, OP_div, v.node, lengths(o, x->side).node, 0));
    v.batch = x->batch;
    return v;
}

/* batch_sum, batch_mean: over the pairs, or tokens, of the whole step. */
static Value over_batch(const Fun *f) {
    Obj *o = f->o;
    const Value *x = &f->arg[0];
    Level l = obj_level(o, x);
    if (l == LEVEL_ONE) return usage(f, "takes a value per pair or per token");
    NodeId sum = obj_total(o, x);
    if (!strcmp(f->name, "batch_mean")) {
        const char *divisor = l == LEVEL_PAIR ? "inv_pairs" : obj_token_divisor(x->side);
        sum = g_op(o->g, OP_mul, sum, scalar_input(o->b, divisor), 0);
    }
    Value v = tensor_value(sum);
    v.batch = x->batch == BATCH_NO ? BATCH_SUM : BATCH_YES;
    return v;
}

static Value sorted(const Fun *f) {
    if (obj_level(f->o, &f->arg[0]) != LEVEL_PAIR) return usage(f, "takes a value per pair");
    Value v = tensor_value(g_op(f->o->g, OP_sort, f->arg[0].node, 0, 0));
    v.batch = BATCH_YES;
    return v;
}

static const struct ObjFunction {
    const char *name;
    int nargs;
    Value (*build)(const Fun *);
} functions[] = {
    {"logp", 2, of_model},
    {"token_logp", 2, of_model},
    {"token_entropy", 2, of_model},
    {"token_logsum_p2", 2, of_model},
    {"len", 1, length},
    {"sum", 1, over_tokens},
    {"mean", 1, over_tokens},
    {"batch_sum", 1, over_batch},
    {"batch_mean", 1, over_batch},
    {"sort", 1, sorted},
};

const Ast *obj_definition(const Obj *o, const char *name) {
    for (const Ast *s = o->ast->list; s; s = s->next)
        if (s->kind == A_DEF && !strcmp(s->text, name)) return s;
    return NULL;
}

Value obj_call_definition(Obj *o, const Ast *def, const Ast *call, const Value *args, int n) {
    int want = 0;
    for (const Ast *p = def->params; p; p = p->next) want++;
    if (n != want) {
        builder_error(o->b, call->loc, "%s takes %d argument%s, not %d", def->text, want,
                      want == 1 ? "" : "s", n);
        diag(o->b->front->diags, DIAG_NOTE, def->name_loc, "defined here");
        return value_bad();
    }
    if (!builder_goes_on(o->b, call->loc, o->depth)) return value_bad();
    Record outer = o->names, inner = {0};
    for (int i = 0; i < outer.n; i++)
        record_set(o->b->front->arena, &inner, outer.field[i].name, outer.field[i].value);
    for (const Ast *p = def->params; p; p = p->next)
        record_set(o->b->front->arena, &inner, p->text, *args++);
    o->names = inner;
    o->depth++;
    Value v = expr_eval(&o->expr, def->a);
    o->depth--;
    o->names = outer;
    return v;
}

static Value unknown(Obj *o, const Ast *call) {
    const char *names[256];
    int n = 0;
    for (size_t i = 0; i < COUNT(functions); i++) names[n++] = functions[i].name;
    for (const Ast *s = o->ast->list; s && n < 64; s = s->next)
        if (s->kind == A_DEF) names[n++] = s->text;
    n += builtin_names(names + n, (int)COUNT(names) - n);
    n += module_names(o->b->front, o->home, A_LAYER, names + n, (int)COUNT(names) - n);
    diag_unknown(o->b->front, call->name_loc, "function", call->text, names, n);
    return value_bad();
}

/* exp, max, .. and layers without weights (softplus): on values brought to one level. */
static Value call_shared(Obj *o, const Ast *call, Value *args, const char **keys, int n) {
    for (int i = 1; i < n; i++) /* each with the first, the first with each */
        if (!lift(o, call, &args[0], &args[i])) return value_bad();
    for (int i = 1; i < n; i++)
        if (!lift(o, call, &args[0], &args[i])) return value_bad();
    Module *home = NULL;
    const Ast *layer = module_find(o->b->front, o->home, A_LAYER, call->text, &home);
    Value v;
    if (layer)
        v = layer_function(o->b, layer, home, call, args, keys, n);
    else if (!builtin_call(o->b, call, args, keys, n, &v))
        return unknown(o, call);
    return v.kind == V_BAD ? v : joined(v, args, n);
}

static Value obj_call(Expr *e, const Ast *ast) {
    Obj *o = obj(e);
    if (ast->kind == A_AS) return error_at(o, ast, "`as` has no meaning in an objective");
    Value args[8];
    const char *keys[8];
    int n = 0;
    bool bad = false;
    for (const Ast *a = ast->list; a; a = a->next) {
        if (n == (int)COUNT(args)) return error_at(o, ast, "too many arguments");
        keys[n] = a->text;
        args[n] = expr_eval(e, a->a);
        bad |= args[n++].kind == V_BAD;
    }
    if (bad) return value_bad();
    builder_at(o->b, ast->loc);
    const Ast *def = obj_definition(o, ast->text);
    if (def) return obj_call_definition(o, def, ast, args, n);
    for (size_t i = 0; i < COUNT(functions); i++) {
        const struct ObjFunction *f = &functions[i];
        if (strcmp(f->name, ast->text) != 0) continue;
        if (n != f->nargs)
            return builder_error(o->b, ast->loc, "%s takes %d argument%s, not %d", f->name,
                                 f->nargs, f->nargs == 1 ? "" : "s", n);
        return f->build(&(Fun){o, ast, args, f->name});
    }
    return call_shared(o, ast, args, keys, n);
}

/* ---- statements ------------------------------------------------------------------------------ */

static void obj_statements(Obj *o, const Ast *list, bool metrics);

static void obj_if(Obj *o, const Ast *s, bool metrics) {
    bool holds;
    if (!expr_bool(&o->expr, s->a, "a condition", &holds)) return;
    const Ast *branch = holds ? s->b : s->c;
    if (branch && branch->kind == A_IF) obj_if(o, branch, metrics);
    if (branch && branch->kind == A_BLOCK) obj_statements(o, branch->list, metrics);
}

/* Twice: values and the loss first, then the metrics, which stand after the standard ones. */
static void obj_statements(Obj *o, const Ast *list, bool metrics) {
    for (const Ast *s = list; s; s = s->next) {
        if (s->kind == A_IF) obj_if(o, s, metrics);
        if (s->kind == A_REQUIRE && !metrics) expr_require(&o->expr, s);
        if (s->kind == A_METRIC && metrics) obj_metric(o, s->text, expr_eval(&o->expr, s->a), s);
        if (s->kind != A_BIND || metrics) continue;
        Value v = expr_eval(&o->expr, s->a);
        record_set(o->b->front->arena, &o->names, s->text, v);
        if (strcmp(s->text, "loss") != 0) continue;
        o->loss = v;
        o->loss_loc = s->loc;
    }
}

static void build_loss(Obj *o) {
    Unit *u = o->b->u;
    Value *v = &o->loss;
    if (v->kind == V_BAD) return;
    if (v->kind != V_TENSOR && v->kind != V_NUM) {
        builder_error(o->b, o->loss_loc, "the loss is %s, not a number", value_kind(v));
        return;
    }
    if (v->kind == V_NUM || (obj_level(o, v) == LEVEL_ONE && v->batch == BATCH_NO)) {
        builder_error(o->b, o->loss_loc, "the loss does not depend on the pairs");
        return;
    }
    builder_at(o->b, o->loss_loc);
    Level l = obj_level(o, v);
    if (v->batch == BATCH_YES) o->b->spec->coupled = true;
    const char *divisor = l == LEVEL_ONE    ? "one"
                          : l == LEVEL_PAIR ? "inv_pairs"
                                            : obj_token_divisor(v->side);
    u->loss = obj_total(o, v);
    u->seed =
        scalar_input(o->b, divisor); /* an input also where it is 1: the backward hangs on it */
    obj_metric_sum(o, "loss", u->loss, divisor);
}

/* Statistics have no gradient: constants of a loss. */
static void refuse_statistics(Obj *o) {
    const Scores *s = o->model[0];
    static const char *const names[] = {"token_entropy", "token_logsum_p2"};
    for (int i = 0; s && o->b->u->loss && i < 2; i++) {
        NodeId what = i ? s->logsum_p2 : s->entropy;
        if (what && graph_flows(o->g, what, o->b->u->loss))
            builder_error(o->b, o->loss_loc, "%s has no gradient: in a loss write stop(%s(..))",
                          names[i], names[i]);
    }
}

/* The loss must move with the policy's log-probabilities. */
static void refuse_constant(Obj *o) {
    NodeId loss = o->b->u->loss, leaf = o->model[0]->logp;
    if (!loss || !leaf) return;
    Arena *scratch = arena_new();
    bool *wanted = NEW_ARRAY(scratch, bool, o->g->n);
    grad_paths(o->g, &leaf, 1, wanted);
    if (!wanted[loss]) {
        builder_error(o->b, o->loss_loc, "nothing would be trained: the loss has no gradient");
        diag(o->b->front->diags, DIAG_HELP, o->loss_loc,
             "it must take logp(policy, ..) or token_logp(policy, ..) outside of stop() and "
             "comparisons");
    }
    arena_free(scratch);
}

bool objective_build(Builder *b, const Scores *policy, const Scores *reference) {
    Obj o = {.b = b,
             .g = b->g,
             .ast = b->spec->objective,
             .home = b->spec->objective_home,
             .model = {policy, reference},
             .loss = value_bad()};
    o.expr = (Expr){.front = b->front,
                    .self = &o,
                    .name = obj_name,
                    .call = obj_call,
                    .tensor = obj_tensor,
                    .select = obj_select,
                    .where = "an objective"};
    int errors = diags_errors(b->front->diags);
    DType round = b->round;
    b->round = DT_f32; /* objectives are f32 */
    b->sum = NULL;
    b->who = "objective";
    obj_statements(&o, o.ast->list, false);
    if (!o.loss_loc.file && diags_errors(b->front->diags) == errors)
        builder_error(b, o.ast->name_loc, "objective %s has no `loss = ..`", o.ast->text);
    build_loss(&o);
    if (diags_errors(b->front->diags) == errors) refuse_statistics(&o);
    if (diags_errors(b->front->diags) == errors) refuse_constant(&o);
    if (diags_errors(b->front->diags) == errors) {
        obj_standard_metrics(&o);
        obj_statements(&o, o.ast->list, true);
    }
    b->who = NULL;
    b->round = round;
    return diags_errors(b->front->diags) == errors;
}
