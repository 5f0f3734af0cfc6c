/* layer.c: runs layers: from their text to nodes of the graph.
 *
 * A layer is a function of values over named weights.  Calling one opens a Frame; `as` names the
 * scope its weights live in; loops are unrolled.  Every assignment and every `return` rounds its
 * tensor to the compute type, arithmetic itself is f32.  Relies on expr.c, builtin.c, weight.c. 
 * Promises: what is wrong is reported at the person's line with the scope it happened in, once.
 */
#include "front.h"

#include <string.h>

enum { DEEPEST = 64, MOST_WORK = 500000 };

Value tensor_value(NodeId node) {
    return node ? (Value){.kind = V_TENSOR, .node = node, .side = -1} : value_bad();
}

const char *builder_scope(const Builder *b) {
    const char *scope = b->frame ? b->frame->scope : "";
    if (!b->who) return scope;
    return *scope ? intern_printf("%s/%s", b->who, scope) : b->who;
}

void builder_at(Builder *b, Loc loc) {
    graph_at(b->g, origin_new(b->g->arena, loc, builder_scope(b)));
}

Value builder_error(Builder *b, Loc loc, const char *format, ...) {
    va_list args;
    va_start(args, format);
    diag(b->front->diags, DIAG_ERROR, loc, "%s", arena_vprintf(b->front->arena, format, args));
    va_end(args);
    const char *scope = builder_scope(b);
    if (*scope && b->sum) diag(b->front->diags, DIAG_NOTE, loc, "in %s", scope);
    for (const Frame *f = b->frame; f && f->module == b->front->prelude; f = f->up)
        if (f->call) diag(b->front->diags, DIAG_NOTE, f->call->loc, "called here");
    return value_bad();
}

bool builder_goes_on(Builder *b, Loc loc, int depth) {
    if (b->work > MOST_WORK) return false; /* said before */
    if (depth > DEEPEST)
        builder_error(b, loc, "calls go on without end (%d deep)", DEEPEST);
    else if (++b->work > MOST_WORK)
        builder_error(b, loc, "this unrolls to more than %d calls and rounds", MOST_WORK);
    else
        return true;
    b->work = MOST_WORK + 1;
    return false;
}

/* ---- tensors and numbers in one expression --------------------------------------------------- */

NodeId value_node(Builder *b, const Ast *at, const Value *v) {
    builder_at(b, at->loc);
    switch (v->kind) {
    case V_TENSOR:
        return v->node;
    case V_WEIGHT:
        return weight_node(b, v->weight, false);
    case V_NUM:
        return g_const(b->g, v->num, type_scalar(DT_f32));
    case V_BAD:
        return 0;
    default:
        builder_error(b, at->loc, "a tensor is needed here, not %s", value_kind(v));
        return 0;
    }
}

/* How an f32 node stretches to a shape: g_bcast's lead, or -1. */
static int stretch(const Type *from, const Type *to) {
    if (from->rank > to->rank) return -1;
    bool first = true, last = true;
    for (int k = 0; k < from->rank; k++) {
        first &= dim_equal(from->dim[k], to->dim[k]);
        last &= dim_equal(from->dim[k], to->dim[to->rank - from->rank + k]);
    }
    bool rows = from->rank && !dim_is_const(from->dim[0]);
    if (first && (rows || !last)) return 1;
    return last ? 0 : -1;
}

/* x and y as f32 nodes of one shape; false after a diagnostic. */
static bool align(Builder *b, const Ast *at, NodeId *x, NodeId *y) {
    const Type *tx = node(b->g, *x)->type, *ty = node(b->g, *y)->type;
    if (type_with(tx, ty->dtype) == ty) return true;
    NodeId *small = tx->rank < ty->rank ? x : y;
    const Type *to = tx->rank < ty->rank ? ty : tx;
    int lead = tx->rank == ty->rank ? -1 : stretch(node(b->g, *small)->type, to);
    if (lead < 0) {
        builder_error(b, at->loc, "shapes do not fit: %s and %s", type_print(b->front->arena, tx),
                      type_print(b->front->arena, ty));
        return false;
    }
    *small = g_bcast(b->g, *small, to, lead == 1);
    return true;
}

/* Two operands of a map, one of which may be a plain number. */
bool layer_operands(Builder *b, const Ast *at, const Value *vx, const Value *vy, NodeId *x,
                    NodeId *y) {
    bool number = vy->kind == V_NUM, first = vx->kind == V_NUM && !number;
    const Value *tensor = first ? vy : vx;
    NodeId t = g_cast(b->g, value_node(b, at, tensor), DT_f32);
    if (!t) return false;
    NodeId other = 0;
    if (number || first)
        other = g_const(b->g, first ? vx->num : vy->num, node(b->g, t)->type);
    else
        other = g_cast(b->g, value_node(b, at, vy), DT_f32);
    if (!other) return false;
    *x = first ? other : t;
    *y = first ? t : other;
    return align(b, at, x, y);
}

static NodeId op2(Builder *b, Op op, NodeId x, NodeId y) {
    return g_op(b->g, op, x, y, 0);
}

Value layer_tensor(Expr *e, const Ast *at, const char *op, Value a, Value v) {
    Builder *b = e->self;
    if (!strcmp(op, "neg")) {
        NodeId x = g_cast(b->g, value_node(b, at, &a), DT_f32);
        return tensor_value(g_op(b->g, OP_neg, x, 0, 0));
    }
    NodeId x, y;
    if (!layer_operands(b, at, &a, &v, &x, &y)) return value_bad();
    builder_at(b, at->loc);
    switch (op[0]) {
    case '+':
        return tensor_value(op2(b, OP_add, x, y));
    case '-':
        return tensor_value(op2(b, OP_sub, x, y));
    case '*':
        return tensor_value(op2(b, OP_mul, x, y));
    case '/':
        return tensor_value(op2(b, OP_div, x, y));
    case '<':
        return tensor_value(op2(b, op[1] ? OP_le : OP_lt, x, y));
    case '>':
        return tensor_value(op2(b, op[1] ? OP_le : OP_lt, y, x));
    case '=':
        return tensor_value(op2(b, OP_eq, x, y));
    case '!': {
        NodeId one = g_const(b->g, 1, node(b->g, x)->type);
        return tensor_value(op2(b, OP_sub, one, op2(b, OP_eq, x, y)));
    }
    default:
        return builder_error(b, at->loc, "'%s' has no meaning for tensors", op);
    }
}

Value layer_select(Expr *e, const Ast *at, Value c, Value x, Value y) {
    Builder *b = e->self;
    if (x.kind == V_NUM && y.kind == V_NUM) { /* two numbers: the condition has the shape */
        NodeId cond = g_cast(b->g, value_node(b, at, &c), DT_f32);
        if (!cond) return value_bad();
        x = tensor_value(g_const(b->g, x.num, node(b->g, cond)->type));
    }
    NodeId nx, ny, nc;
    if (!layer_operands(b, at, &x, &y, &nx, &ny)) return value_bad();
    Value shape = tensor_value(nx);
    if (!layer_operands(b, at, &c, &shape, &nc, &nx) || !align(b, at, &nx, &ny)) return value_bad();
    return tensor_value(g_op(b->g, OP_select, nc, nx, ny));
}

/* Rounds to the compute type: what every assignment and `return` does. */
static Value rounded(Builder *b, Loc loc, Value v) {
    if (v.kind != V_TENSOR || node(b->g, v.node)->type->dtype == DT_i32) return v;
    builder_at(b, loc);
    v.node = g_cast(b->g, v.node, b->round);
    return v;
}

/* ---- scopes ---------------------------------------------------------------------------------- */

static const char *scope_join(const char *outer, const char *inner) {
    return *outer ? intern_printf("%s.%s", outer, inner) : intern(inner);
}

/* "layers[3]" or "a.b" relative to the running scope; NULL after a diagnostic. */
static const char *scope_text(Builder *b, const Ast *ast) {
    if (ast->kind == A_NAME) return ast->text;
    const char *outer = scope_text(b, ast->a);
    if (!outer) return NULL;
    if (ast->kind == A_PATH) return intern_printf("%s.%s", outer, ast->text);
    int64_t index;
    if (!expr_int(&b->expr, ast->b, "an index", 0, &index)) return NULL;
    return intern_printf("%s.%lld", outer, (long long)index);
}

/* ---- names ----------------------------------------------------------------------------------- */

static Value unknown_name(Builder *b, const Ast *ast) {
    const char *names[256];
    int n = 0;
    for (int i = 0; i < b->frame->names.n; i++)
        if (n < (int)COUNT(names)) names[n++] = b->frame->names.field[i].name;
    if (b->sum)
        n += config_names(b->front, b->sum->base, b->frame->module, names + n,
                          (int)COUNT(names) - n);
    diag_unknown(b->front, ast->loc, "name", ast->text, names, n);
    return value_bad();
}

Value layer_name(Expr *e, const Ast *ast) {
    Builder *b = e->self;
    if (ast->kind == A_INDEX) return builder_error(b, ast->loc, "an index has no meaning here");
    if (ast->kind == A_PATH) {
        Value outer = expr_eval(e, ast->a);
        if (outer.kind == V_BAD) return outer;
        const Value *v = outer.kind == V_RECORD ? record_get(outer.record, ast->text) : NULL;
        return v ? *v
                 : builder_error(b, ast->loc, "%s has no field '%s'", value_kind(&outer),
                                 ast->text);
    }
    const Value *v = record_get(&b->frame->names, ast->text);
    if (!v && b->sum) v = config_name(b->front, b->sum->base, b->frame->module, ast->text);
    if (v) return *v;
    if (!strcmp(ast->text, "positions") && b->sum)
        return tensor_value(build_input(b, "pos", DT_i32, 1, b->rows, 0));
    return unknown_name(b, ast);
}

/* ---- weights --------------------------------------------------------------------------------- */

static Weight *weight_find(const Base *base, const char *tensor) {
    for (int i = 0; i < base->nweight; i++)
        if (base->weight[i]->tensor == tensor) return base->weight[i];
    return NULL;
}

static Weight *weight_tie(Builder *b, const Ast *decl, const Weight *w) {
    const char *path = scope_text(b, decl->b);
    if (!path) return NULL;
    Base *base = b->sum->base;
    Weight *to = weight_find(base, scope_join(b->frame->scope, path));
    if (!to) to = weight_find(base, intern(path));
    if (!to) {
        const char **names = NEW_ARRAY(b->front->arena, const char *, base->nweight);
        for (int i = 0; i < base->nweight; i++) names[i] = base->weight[i]->tensor;
        diag_unknown(b->front, decl->b->loc, "weight", path, names, base->nweight);
        return NULL;
    }
    while (to->tied) to = (Weight *)to->tied;
    if (to->rank == w->rank && to->shape[0] == w->shape[0] && to->shape[1] == w->shape[1])
        return to;
    builder_error(b, decl->b->loc, "%s is [%lld,%lld], %s is [%lld,%lld]: they can't be tied",
                  w->tensor, (long long)w->shape[0], (long long)w->shape[1], to->tensor,
                  (long long)to->shape[0], (long long)to->shape[1]);
    return NULL;
}

static bool weight_shape(Builder *b, const Ast *decl, Weight *w) {
    for (const Ast *d = decl->params; d; d = d->next) {
        if (w->rank == 2) {
            builder_error(b, d->loc, "a weight has one or two sizes");
            return false;
        }
        if (!expr_int(&b->expr, d, "a size", 1, &w->shape[w->rank++])) return false;
    }
    return true;
}

/* Declares a weight in the running scope; a second time (other models, other units) it is found
 * again. */
static Value weight_declare(Builder *b, const Ast *decl) {
    Weight w = {.tensor = scope_join(b->frame->scope, decl->text), .loc = decl->name_loc};
    if (!weight_shape(b, decl, &w)) return value_bad();
    bool bias = false, tied = decl->b != NULL;
    if (decl->a && !expr_bool(&b->expr, decl->a, "bias()", &bias)) return value_bad();
    if (decl->c && !expr_bool(&b->expr, decl->c, "a condition", &tied)) return value_bad();
    w.bias = bias;
    Weight *to = tied ? weight_tie(b, decl, &w) : NULL;
    if (tied && !to) return value_bad();
    Base *base = b->sum->base;
    Weight *known = weight_find(base, w.tensor);
    if (!known) {
        known = NEW(b->front->arena, Weight);
        *known = w;
        known->tied = to;
        if (to) to->alias = w.tensor;
        PUSH(b->front->arena, base->weight, base->nweight, base->capweight, known);
    } else if (known->rank != w.rank || known->shape[0] != w.shape[0] ||
               known->shape[1] != w.shape[1]) {
        builder_error(b, decl->name_loc, "weight %s has another shape here", w.tensor);
        diag(b->front->diags, DIAG_NOTE, known->loc, "first declared here");
        return value_bad();
    }
    return (Value){.kind = V_WEIGHT, .weight = known, .side = -1};
}

/* ---- statements ------------------------------------------------------------------------------ */

static void run_block(Builder *b, const Ast *list);

enum { MOST_ROUNDS = 10000 };

static void run_for(Builder *b, const Ast *s) {
    int64_t from, to;
    Frame *f = b->frame;
    if (!expr_int(&b->expr, s->a, "the beginning of a range", INT32_MIN, &from)) return;
    if (!expr_int(&b->expr, s->b, "the end of a range", INT32_MIN, &to)) return;
    if (to - from > MOST_ROUNDS) {
        builder_error(b, s->loc, "a loop of %lld rounds; at most %d", (long long)(to - from),
                      MOST_ROUNDS);
        return;
    }
    int errors = diags_errors(b->front->diags);
    for (int64_t i = from; i < to && !f->returned; i++) {
        if (!builder_goes_on(b, s->loc, 0)) return;
        record_set(b->front->arena, &f->names, s->text, value_num((double)i));
        run_block(b, s->c->list);
        if (diags_errors(b->front->diags) > errors) return; /* the next rounds would say it again */
    }
}

static void run_if(Builder *b, const Ast *s) {
    bool holds;
    if (!expr_bool(&b->expr, s->a, "a condition", &holds)) return;
    const Ast *branch = holds ? s->b : s->c;
    if (!branch) return;
    if (branch->kind == A_IF)
        run_if(b, branch);
    else
        run_block(b, branch->list);
}

static void run_return(Builder *b, const Ast *s) {
    Frame *f = b->frame;
    if (f->model)
        f->head = s->a;
    else
        f->result = rounded(b, s->loc, expr_eval(&b->expr, s->a));
    f->returned = true;
    if (s->next) builder_error(b, s->next->loc, "nothing after `return` is ever reached");
}

static void run_block(Builder *b, const Ast *list) {
    Frame *f = b->frame;
    for (const Ast *s = list; s && !f->returned; s = s->next) {
        switch (s->kind) {
        case A_WEIGHT:
            if (!b->sum) {
                builder_error(b, s->loc, "a layer with weights can't be called here");
                break;
            }
            for (const Ast *d = s->list; d; d = d->next)
                record_set(b->front->arena, &f->names, d->text, weight_declare(b, d));
            break;
        case A_BIND: {
            Value v = rounded(b, s->loc, expr_eval(&b->expr, s->a));
            record_set(b->front->arena, &f->names, s->text, v);
            break;
        }
        case A_FOR:
            run_for(b, s);
            break;
        case A_IF:
            run_if(b, s);
            break;
        case A_REQUIRE:
            expr_require(&b->expr, s);
            break;
        case A_RETURN:
            run_return(b, s);
            break;
        default:
            builder_error(b, s->loc, "%s has no meaning in a layer", ast_kind_name(s->kind));
        }
    }
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* Gives each parameter its argument, by key or by place. */
static bool bind_arguments(Builder *b, Frame *f, const Ast *call, const Value *args,
                           const char **keys, int nargs) {
    int nparams = 0;
    for (const Ast *p = f->layer->params; p; p = p->next) nparams++;
    bool ok = nargs == nparams;
    for (int i = 0; ok && i < nargs; i++) {
        const Ast *p = f->layer->params;
        for (int k = 0; k < i && !keys[i]; k++) p = p->next;
        while (keys[i] && p && p->text != keys[i]) p = p->next;
        ok = p && !record_get(&f->names, p->text);
        if (ok) record_set(b->front->arena, &f->names, p->text, args[i]);
    }
    if (ok) return true;
    char *want = arena_str(b->front->arena, "");
    for (const Ast *p = f->layer->params; p; p = p->next)
        want = arena_printf(b->front->arena, "%s%s%s", want, p->text, p->next ? ", " : "");
    builder_error(b, call->loc, "%s takes (%s), %d argument%s given", f->layer->text, want, nargs,
                  nargs == 1 ? " is" : "s are");
    diag(b->front->diags, DIAG_NOTE, f->layer->name_loc, "defined here");
    return false;
}

static Value layer_run(Builder *b, const Ast *layer, Module *home, const Ast *call,
                       const Value *args, const char **keys, int nargs, const char *scope) {
    Frame f = {.call = call,
               .module = home,
               .layer = layer,
               .scope = scope,
               .up = b->frame,
               .result = value_bad()};
    f.depth = b->frame ? b->frame->depth + 1 : 0;
    if (!builder_goes_on(b, call->loc, f.depth)) return value_bad();
    if (!bind_arguments(b, &f, call, args, keys, nargs)) return value_bad();
    int errors = diags_errors(b->front->diags);
    b->frame = &f;
    run_block(b, layer->a ? layer->a->list : NULL);
    b->frame = f.up;
    if (!f.returned && diags_errors(b->front->diags) == errors) {
        builder_error(b, call->loc, "%s returns nothing", layer->text);
        diag(b->front->diags, DIAG_NOTE, layer->name_loc, "defined here");
    }
    return f.result;
}

static Value unknown_function(Builder *b, const Ast *call) {
    const char *names[256];
    int n = builtin_names(names, COUNT(names));
    n += module_names(b->front, b->frame->module, A_LAYER, names + n, (int)COUNT(names) - n);
    diag_unknown(b->front, call->name_loc.file ? call->name_loc : call->loc, "layer or function",
                 call->text, names, n);
    return value_bad();
}

Value layer_call(Expr *e, const Ast *ast) {
    Builder *b = e->self;
    const Ast *call = ast->kind == A_AS ? ast->a : ast;
    Value args[16];
    const char *keys[16];
    int n = 0;
    bool bad = false;
    for (const Ast *a = call->list; a; a = a->next) {
        if (n == (int)COUNT(args)) return builder_error(b, a->loc, "too many arguments");
        keys[n] = a->text;
        args[n] = expr_eval(e, a->a);
        bad |= args[n++].kind == V_BAD;
    }
    Module *home = NULL;
    const Ast *layer = module_find(b->front, b->frame->module, A_LAYER, call->text, &home);
    if (!layer) {
        Value out;
        if (ast->kind == A_AS)
            return builder_error(b, ast->loc, "`as` names the scope of a layer; %s has no weights",
                                 call->text);
        bool known = bad ? builtin_known(call->text) : builtin_call(b, call, args, keys, n, &out);
        if (!known) return unknown_function(b, call);
        return bad ? value_bad() : out;
    }
    const char *scope = ast->kind == A_AS ? scope_text(b, ast->b) : b->frame->scope;
    if (bad || !scope) return value_bad();
    if (ast->kind == A_AS) scope = scope_join(b->frame->scope, scope);
    return layer_run(b, layer, home, call, args, keys, n, scope);
}

/* ---- models ---------------------------------------------------------------------------------- */

/* A constant factor of the logits; false: not one. */
static bool head_factor(Builder *b, const Ast *ast, double *x) {
    if (ast->kind == A_CALL) return false;
    return expr_num(&b->expr, ast, "a factor of the logits", x);
}

/* linear(h, W), `c * linear(h, W)`, `linear(h, W) / c`. */
static void model_head(Builder *b, const Ast *ast, Head *head) {
    if (ast->kind == A_BINARY && (ast->op[0] == '*' || ast->op[0] == '/')) {
        bool left = ast->op[0] == '*' && ast->b->kind == A_CALL;
        double x;
        if (!head_factor(b, left ? ast->a : ast->b, &x)) return;
        head->scale = ast->op[0] == '*' ? head->scale * x : head->scale / x;
        model_head(b, left ? ast->b : ast->a, head);
        return;
    }
    const Ast *h = ast->kind == A_CALL && ast->list ? ast->list : NULL;
    if (!h || strcmp(ast->text, "linear") != 0 || !h->next || h->next->next) {
        builder_error(b, ast->loc, "a model returns linear(h, W), optionally times a constant");
        return;
    }
    Value x = expr_eval(&b->expr, h->a), w = expr_eval(&b->expr, h->next->a);
    if (x.kind == V_BAD || w.kind == V_BAD) return;
    if (w.kind != V_WEIGHT) {
        builder_error(b, h->next->loc, "the logits are made by a weight, not by %s",
                      value_kind(&w));
        return;
    }
    if (w.weight->bias) {
        builder_error(b, h->next->loc, "the weight that makes the logits can't have a bias");
        return;
    }
    ((Weight *)w.weight)->head = ((Weight *)w.weight)->linear = true;
    head->w = lora_head(b, ast, w.weight);
    head->h = g_cast(b->g, value_node(b, h->a, &x), b->round);
    const Type *t = head->h ? node(b->g, head->h)->type : NULL;
    if (!t || (t->rank == 2 && dim_equal(t->dim[1], dim_const(w.weight->shape[1])))) return;
    builder_error(b, ast->loc, "logits of %s need %lld columns", type_print(b->front->arena, t),
                  (long long)w.weight->shape[1]);
    head->h = 0;
}

Head layer_model(Builder *b, const ModelSum *sum, const char *who) {
    Head head = {.scale = 1};
    const Ast *model = sum->base->model;
    Frame f = {.module = sum->base->module,
               .layer = model,
               .scope = "",
               .model = true,
               .result = value_bad()};
    b->sum = sum;
    b->who = who;
    b->frame = &f;
    if (!model->params || model->params->next) {
        builder_error(b, model->name_loc, "a model takes one argument, the tokens");
        return head;
    }
    builder_at(b, model->loc);
    Value tokens = tensor_value(build_input(b, "tokens", DT_i32, 1, b->rows, 0));
    record_set(b->front->arena, &f.names, model->params->text, tokens);
    int errors = diags_errors(b->front->diags);
    run_block(b, model->a ? model->a->list : NULL);
    if (f.head)
        model_head(b, f.head, &head);
    else if (diags_errors(b->front->diags) == errors)
        builder_error(b, model->name_loc, "model %s returns nothing", model->text);
    b->frame = NULL;
    b->who = NULL;
    if (diags_errors(b->front->diags) > errors) head.h = 0;
    return head;
}

/* ---- functions of objectives ----------------------------------------------------------------- */

Value layer_function(Builder *b, const Ast *layer, Module *home, const Ast *call, const Value *args,
                     const char **keys, int nargs) {
    return layer_run(b, layer, home, call, args, keys, nargs, b->frame ? b->frame->scope : "");
}
