/* expr.c: values, and expressions over numbers, words and conditions.
 *
 * One evaluator serves config blocks, layers, objectives and settings; what names mean, what can be
 * called and what arithmetic does to tensors is asked of its owner (Expr).  Relies on front.h. 
 * Promises: a diagnostic is given once, then V_BAD silences what depends on it.
 */
#include "front.h"

#include <math.h>
#include <string.h>

Value value_num(double x) {
    return (Value){.kind = V_NUM, .num = x, .side = -1};
}

Value value_bool(bool x) {
    return (Value){.kind = V_BOOL, .num = x, .side = -1};
}

Value value_str(const char *s) {
    return (Value){.kind = V_STR, .str = intern(s), .side = -1};
}

Value value_bad(void) {
    return (Value){.kind = V_BAD, .side = -1};
}

const char *value_kind(const Value *v) {
    static const char *const names[] = {
        [V_BAD] = "an error",       [V_NONE] = "none",     [V_NUM] = "a number",
        [V_BOOL] = "true or false", [V_STR] = "text",      [V_RECORD] = "a record",
        [V_SIDE] = "a side",        [V_MODEL] = "a model", [V_TENSOR] = "a tensor",
        [V_WEIGHT] = "a weight",
    };
    return names[v->kind];
}

char *value_print(Arena *arena, const Value *v) {
    switch (v->known ? V_NUM : v->kind) {
    case V_NUM:
        return arena_printf(arena, "%.10g", v->num);
    case V_BOOL:
        return arena_str(arena, v->num != 0 ? "true" : "false");
    case V_STR:
        return arena_printf(arena, "\"%s\"", v->str);
    default:
        return arena_str(arena, value_kind(v));
    }
}

const Value *record_get(const Record *r, const char *name) {
    for (int i = 0; r && i < r->n; i++)
        if (!strcmp(r->field[i].name, name)) return &r->field[i].value;
    return NULL;
}

void record_set(Arena *arena, Record *r, const char *name, Value value) {
    Field field = {intern(name), value};
    for (int i = 0; i < r->n; i++)
        if (r->field[i].name == field.name) {
            r->field[i] = field;
            return;
        }
    PUSH(arena, r->field, r->n, r->cap, field);
}

bool is_word(const Ast *ast, const char *word) {
    return ast && ast->kind == A_NAME && !strcmp(ast->text, word);
}

void diag_suggest(Front *f, Loc loc, const char *name, const char *const *names, int n) {
    const char *close = closest_name(name, names, n);
    if (close) {
        diag(f->diags, DIAG_HELP, loc, "did you mean '%s'?", close);
    } else if (n > 0 && n <= 8) {
        char *list = arena_str(f->arena, names[0]);
        for (int i = 1; i < n; i++) list = arena_printf(f->arena, "%s, %s", list, names[i]);
        diag(f->diags, DIAG_HELP, loc, "known here: %s", list);
    }
}

void diag_unknown(Front *f, Loc loc, const char *what, const char *name, const char *const *names,
                  int n) {
    diag(f->diags, DIAG_ERROR, loc, "%s '%s' is not known", what, name);
    diag_suggest(f, loc, name, names, n);
}

/* ---- operators ------------------------------------------------------------------------------- */

static Value wrong(Expr *e, const Ast *at, const char *op, const Value *v, const char *wanted) {
    diag(e->front->diags, DIAG_ERROR, at->loc, "'%s' takes %s, not %s", op, wanted, value_kind(v));
    return value_bad();
}

static bool is_tensor(const Value *v) {
    return v->kind == V_TENSOR || v->kind == V_WEIGHT;
}

static Value equality(const Value *a, const Value *b, bool equal) {
    bool same = a->kind == b->kind;
    if (same && a->kind == V_STR) same = !strcmp(a->str, b->str);
    if (same && (a->kind == V_NUM || a->kind == V_BOOL || a->kind == V_SIDE || a->kind == V_MODEL))
        same = a->num == b->num;
    if (same && a->kind == V_RECORD) same = a->record == b->record;
    return value_bool(same == equal);
}

static Value arithmetic(Expr *e, const Ast *at, const char *op, double a, double b) {
    switch (op[0]) {
    case '+':
        return value_num(a + b);
    case '-':
        return value_num(a - b);
    case '*':
        return value_num(a * b);
    case '<':
        return value_bool(op[1] ? a <= b : a < b);
    case '>':
        return value_bool(op[1] ? a >= b : a > b);
    default:
        break;
    }
    if (b == 0) {
        diag(e->front->diags, DIAG_ERROR, at->loc, "division by zero");
        return value_bad();
    }
    return value_num(op[0] == '/' ? a / b : fmod(a, b));
}

static Value logic(Expr *e, const Ast *ast) {
    bool a, b, and = !strcmp(ast->op, "and");
    if (!expr_bool(e, ast->a, "an operand of 'and' or 'or'", &a)) return value_bad();
    if (a != and) return value_bool(a);
    if (!expr_bool(e, ast->b, "an operand of 'and' or 'or'", &b)) return value_bad();
    return value_bool(b);
}

static Value binary(Expr *e, const Ast *ast) {
    const char *op = ast->op;
    if (!strcmp(op, "and") || !strcmp(op, "or")) return logic(e, ast);
    Value a = expr_eval(e, ast->a), b = expr_eval(e, ast->b);
    if (a.kind == V_BAD || b.kind == V_BAD) return value_bad();
    if (is_tensor(&a) || is_tensor(&b)) {
        if (e->tensor) return e->tensor(e, ast, op, a, b);
        return wrong(e, ast, op, is_tensor(&a) ? &a : &b, "numbers");
    }
    if (!strcmp(op, "==")) return equality(&a, &b, true);
    if (!strcmp(op, "!=")) return equality(&a, &b, false);
    if (a.kind != V_NUM) return wrong(e, ast->a, op, &a, "numbers");
    if (b.kind != V_NUM) return wrong(e, ast->b, op, &b, "numbers");
    return arithmetic(e, ast, op, a.num, b.num);
}

static Value unary(Expr *e, const Ast *ast) {
    if (!strcmp(ast->op, "not")) {
        bool x;
        if (!expr_bool(e, ast->a, "the operand of 'not'", &x)) return value_bad();
        return value_bool(!x);
    }
    Value x = expr_eval(e, ast->a);
    if (x.kind == V_BAD) return x;
    if (is_tensor(&x) && e->tensor) return e->tensor(e, ast, "neg", x, value_bad());
    if (x.kind != V_NUM) return wrong(e, ast->a, ast->op, &x, "a number");
    return value_num(-x.num);
}

/* if a then b else c */
static Value conditional(Expr *e, const Ast *ast) {
    Value c = expr_eval(e, ast->a);
    if (c.kind == V_BAD) return c;
    if (is_tensor(&c) && e->select)
        return e->select(e, ast, c, expr_eval(e, ast->b), expr_eval(e, ast->c));
    if (c.kind != V_BOOL) {
        diag(e->front->diags, DIAG_ERROR, ast->a->loc, "a condition must be true or false, not %s",
             value_kind(&c));
        return value_bad();
    }
    return expr_eval(e, c.num != 0 ? ast->b : ast->c);
}

static Value record(Expr *e, const Ast *ast) {
    Record *r = NEW(e->front->arena, Record);
    for (const Ast *bind = ast->list; bind; bind = bind->next)
        record_set(e->front->arena, r, bind->text, expr_eval(e, bind->a));
    return (Value){.kind = V_RECORD, .record = r, .side = -1};
}

Value expr_eval(Expr *e, const Ast *ast) {
    if (!ast) return value_bad(); /* a syntax error stood here */
    switch (ast->kind) {
    case A_NUM:
        return value_num(ast->num);
    case A_BOOL:
        return value_bool(ast->num != 0);
    case A_STR:
        return value_str(ast->text);
    case A_NONE:
        return (Value){.kind = V_NONE, .side = -1};
    case A_NAME:
    case A_PATH:
    case A_INDEX:
        return e->name(e, ast);
    case A_UNARY:
        return unary(e, ast);
    case A_BINARY:
        return binary(e, ast);
    case A_COND:
        return conditional(e, ast);
    case A_RECORD:
        return record(e, ast);
    case A_ALT:
        if (e->alternative) return e->alternative(e, ast);
        break;
    case A_CALL:
    case A_AS:
        if (e->call) return e->call(e, ast);
        break;
    default:
        break;
    }
    diag(e->front->diags, DIAG_ERROR, ast->loc, "%s has no meaning in %s", ast_kind_name(ast->kind),
         e->where);
    return value_bad();
}

bool number_call(const char *name, const double *x, int n, double *out) {
    static const struct {
        const char *name;
        double (*one)(double);
        double (*two)(double, double);
    } functions[] = {
        {"sqrt", sqrt, NULL},   {"exp", exp, NULL},   {"log", log, NULL},   {"abs", fabs, NULL},
        {"sin", sin, NULL},     {"cos", cos, NULL},   {"tanh", tanh, NULL}, {"erf", erf, NULL},
        {"floor", floor, NULL}, {"ceil", ceil, NULL}, {"min", NULL, fmin},  {"max", NULL, fmax},
        {"pow", NULL, pow},
    };
    for (size_t i = 0; i < COUNT(functions); i++) {
        if (strcmp(functions[i].name, name) != 0 || n != (functions[i].one ? 1 : 2)) continue;
        *out = n == 1 ? functions[i].one(x[0]) : functions[i].two(x[0], x[1]);
        return true;
    }
    if (strcmp(name, "rsqrt") != 0 || n != 1) return false;
    *out = 1 / sqrt(x[0]);
    return true;
}

/* ---- with the kind that is wanted ------------------------------------------------------------ */

bool expr_num(Expr *e, const Ast *ast, const char *what, double *out) {
    Value v = expr_eval(e, ast);
    if (v.kind == V_BAD) return false;
    if (v.kind != V_NUM) {
        diag(e->front->diags, DIAG_ERROR, ast->loc, "%s must be a number, not %s", what,
             value_kind(&v));
        return false;
    }
    *out = v.num;
    return true;
}

bool expr_int(Expr *e, const Ast *ast, const char *what, int64_t min, int64_t *out) {
    double x;
    if (!expr_num(e, ast, what, &x)) return false;
    if (!(x == floor(x)) || x > INT32_MAX) { /* so that the product of two sizes is an int64_t */
        diag(e->front->diags, DIAG_ERROR, ast->loc, "%s must be a whole number%s, not %.10g", what,
             x > INT32_MAX ? " below 2147483648" : "", x);
        return false;
    }
    if (x < (double)min) {
        diag(e->front->diags, DIAG_ERROR, ast->loc, "%s must be at least %lld, not %.10g", what,
             (long long)min, x);
        return false;
    }
    *out = (int64_t)x;
    return true;
}

bool expr_bool(Expr *e, const Ast *ast, const char *what, bool *out) {
    Value v = expr_eval(e, ast);
    if (v.kind == V_BAD) return false;
    bool known = v.kind == V_BOOL || (v.kind == V_TENSOR && v.known);
    if (!known) {
        diag(e->front->diags, DIAG_ERROR, ast->loc, "%s must be true or false, not %s", what,
             value_kind(&v));
        return false;
    }
    *out = v.num != 0;
    return true;
}

static Value const_name(Expr *e, const Ast *ast) {
    if (ast->kind == A_NAME) return value_str(ast->text);
    diag(e->front->diags, DIAG_ERROR, ast->loc, "a plain value is expected here; quote text");
    return value_bad();
}

Value expr_const(Front *f, const Ast *ast) {
    Expr e = {.front = f, .name = const_name, .where = "a setting"};
    return expr_eval(&e, ast);
}

bool expr_require(Expr *e, const Ast *require) {
    bool holds;
    if (!expr_bool(e, require->a, "a requirement", &holds)) return false;
    if (holds) return true;
    Diags *d = e->front->diags;
    if (require->text)
        diag(d, DIAG_ERROR, require->loc, "%s", require->text);
    else
        diag(d, DIAG_ERROR, require->loc, "this requirement does not hold");
    const Ast *c = require->a;
    if (c->kind != A_BINARY || !strcmp(c->op, "and") || !strcmp(c->op, "or")) return false;
    Value a = expr_eval(e, c->a), b = expr_eval(e, c->b);
    diag(d, DIAG_NOTE, c->loc, "it is %s %s %s here", value_print(e->front->arena, &a), c->op,
         value_print(e->front->arena, &b));
    return false;
}
