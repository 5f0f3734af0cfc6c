/* ast.c: making, listing and printing syntax trees (ast.h, parse.h).
 *
 * Relies on the grammar calling it bottom up.  Promises: no tree is deeper than AST_DEEPEST, so
 * whoever walks one may recurse; a block holds only statements that belong there.
 */
#include "parse.h"

static const char *const kind_names[] = {
    [A_FILE] = "file",
    [A_USE] = "use",
    [A_CONFIG] = "config",
    [A_REQUIRE] = "require",
    [A_LAYER] = "layer",
    [A_MODEL] = "model",
    [A_BIND] = "setting",
    [A_QUANTIZE] = "quantize",
    [A_ADAPTER] = "adapter",
    [A_CLAUSE] = "clause",
    [A_TRAIN] = "train",
    [A_OBJECTIVE] = "objective",
    [A_DEF] = "definition",
    [A_METRIC] = "metric",
    [A_DATA] = "data",
    [A_RUN] = "run",
    [A_GRAPH] = "graph",
    [A_TEMPLATE] = "template",
    [A_VARIANT] = "variant",
    [A_BLOCK] = "block",
    [A_WEIGHT] = "weight",
    [A_WDECL] = "weight tensor",
    [A_FOR] = "for",
    [A_IF] = "if",
    [A_RETURN] = "return",
    [A_NUM] = "number",
    [A_STR] = "string",
    [A_BOOL] = "switch",
    [A_NONE] = "none",
    [A_NAME] = "name",
    [A_PATH] = "path",
    [A_INDEX] = "index",
    [A_CALL] = "call",
    [A_ARG] = "argument",
    [A_AS] = "as",
    [A_ALT] = "alternative",
    [A_UNARY] = "unary",
    [A_BINARY] = "binary",
    [A_COND] = "conditional",
    [A_FROM] = "from",
    [A_AT_START] = "at start",
    [A_LIST] = "list",
    [A_WEIGHTED] = "weighted",
    [A_RECORD] = "record",
};

const char *ast_kind_name(AstKind kind) {
    return kind_names[kind];
}

/* ---- making ---------------------------------------------------------------------------------- */

static int deeper(int depth, const Ast *child, bool list) {
    int below = !child ? 0 : list ? child->list_depth : child->depth;
    return below > depth ? below : depth;
}

Ast *ast_make(Parse *p, Ast fields) {
    int depth = deeper(0, fields.a, false);
    depth = deeper(depth, fields.b, false);
    depth = deeper(depth, fields.c, false);
    depth = deeper(depth, fields.params, true);
    depth = deeper(depth, fields.list, true);
    Ast *ast = NEW(p->arena, Ast);
    if (depth >= AST_DEEPEST) { /* an empty leaf in its place; the file is in error anyhow */
        if (!p->too_deep)
            diag(p->diags, DIAG_ERROR, fields.loc,
                 "this %s is nested too deeply: at most %d levels", ast_kind_name(fields.kind),
                 AST_DEEPEST);
        p->too_deep = true;
        fields = (Ast){.kind = A_NONE, .loc = fields.loc};
        depth = 0;
    }
    *ast = fields;
    ast->depth = depth + 1;
    ast->last = ast;
    ast->list_depth = ast->depth;
    return ast;
}

Ast *ast_append(Ast *list, Ast *item) {
    if (!list || !item) return list ? list : item;
    list->last->next = item;
    list->last = item;
    if (item->depth > list->list_depth) list->list_depth = item->depth;
    return list;
}

void ast_top(Parse *p, Ast *statement) {
    if (p->setting)
        p->top = statement;
    else
        p->top->list = ast_append(p->top->list, statement);
}

static void add_dotted(const Ast *path, Text *out) {
    if (path->a) add_dotted(path->a, out);
    text_add(out, path->a ? ".%s" : "%s", path->text);
}

const char *ast_dotted(Parse *p, const Ast *path) {
    Text text = {0};
    (void)p;
    add_dotted(path, &text);
    const char *word = intern(text.data);
    text_free(&text);
    return word;
}

/* ---- what may stand where -------------------------------------------------------------------- */

static uint64_t bit(AstKind kind) {
    return (uint64_t)1 << kind;
}

static uint64_t allowed(AstKind where) {
    uint64_t common = bit(A_BIND) | bit(A_IF) | bit(A_REQUIRE);
    switch (where) {
    case A_CONFIG:
        return common;
    case A_LAYER:
    case A_MODEL:
        return common | bit(A_WEIGHT) | bit(A_FOR) | bit(A_RETURN);
    case A_OBJECTIVE:
        return common | bit(A_DEF) | bit(A_METRIC);
    default:
        return bit(A_BIND);
    }
}

static void refuse(Parse *p, AstKind where, const Ast *s) {
    const char *what =
        s->kind == A_DEF ? "a definition" : arena_printf(p->arena, "`%s`", ast_kind_name(s->kind));
    diag(p->diags, DIAG_ERROR, s->loc, "%s cannot stand in `%s`", what, ast_kind_name(where));
    if (allowed(A_LAYER) & bit(s->kind) && !(allowed(A_CONFIG) & bit(s->kind)))
        diag(p->diags, DIAG_HELP, (Loc){0, 0, 0}, "it belongs in a `layer` or `model`");
    else if (allowed(A_OBJECTIVE) & bit(s->kind) && !(allowed(A_CONFIG) & bit(s->kind)))
        diag(p->diags, DIAG_HELP, (Loc){0, 0, 0}, "it belongs in an `objective`");
}

Ast *ast_only(Parse *p, AstKind where, Ast *block) {
    Ast *kept = NULL;
    for (Ast *s = block->list, *next; s; s = next) {
        next = s->next;
        s->next = NULL;
        s->last = s;
        s->list_depth = s->depth;
        if (!(allowed(where) & bit(s->kind))) {
            refuse(p, where, s);
            continue;
        }
        if (s->kind == A_IF) {
            ast_only(p, where, s->b);
            if (s->c && s->c->kind == A_BLOCK)
                ast_only(p, where, s->c);
            else if (s->c)
                ast_only(p, where, &(Ast){.list = s->c});
        } else if (s->kind == A_FOR)
            ast_only(p, where, s->c);
        kept = ast_append(kept, s);
    }
    block->list = kept;
    return block;
}

/* ---- printing -------------------------------------------------------------------------------- */

static void dump(const Ast *ast, const char *field, int indent, Text *out);

static void dump_list(const Ast *list, const char *field, int indent, Text *out) {
    for (; list; list = list->next) dump(list, field, indent, out);
}

static void dump(const Ast *ast, const char *field, int indent, Text *out) {
    if (!ast) return;
    text_add(out, "%*s%s%s", 2 * indent, "", field, ast_kind_name(ast->kind));
    if (ast->op) text_add(out, " %s", ast->op);
    if (ast->kind == A_NUM) {
        text_add(out, " %.17g%s%s%s", ast->num, ast->integer ? " integer" : "",
                 ast->text ? " " : "", ast->text ? ast->text : "");
    } else {
        if (ast->text) text_add(out, " \"%s\"", ast->text);
        if (ast->text2) text_add(out, " \"%s\"", ast->text2);
        if (ast->kind == A_BOOL) text_add(out, " %g", ast->num);
    }
    text_add(out, "\n");
    dump_list(ast->params, "param ", indent + 1, out);
    dump(ast->a, "a ", indent + 1, out);
    dump(ast->b, "b ", indent + 1, out);
    dump(ast->c, "c ", indent + 1, out);
    dump_list(ast->list, "", indent + 1, out);
}

void ast_dump(const Ast *ast, Text *out) {
    dump(ast, "", 0, out);
}
