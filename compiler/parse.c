/* parse.c: from tokens to trees: what the grammar reads next, what it says when it cannot go on,
 * and where it goes on then; parse_text and parse_set of ast.h.
 *
 * Relies on scan.c for tokens.  Promises: one message for one mistake; after it, the rest of the
 * file is read from the next statement on; a forgotten `}` is noticed at the next statement that
 * can only stand outside; nothing nests deeper than the recursion of later phases bears.
 */
#include "parse.h"

#include "grammar/dpo.tab.h"

#include <ctype.h>
#include <string.h> /* strcmp */

int dpo_lex(DPO_STYPE *value, Loc *loc, Parse *p);
void dpo_error(const Loc *loc, Parse *p, const char *message);

/* ---- which brackets are open ----------------------------------------------------------------- */

static int kind_at(const Parse *p, int i) {
    return i >= 0 && i < p->n ? p->token[i].kind : 0;
}

/* variant NAME {, variant NAME from NAME { */
static bool opens_variant(const Parse *p, int brace) {
    return kind_at(p, brace - 2) == T_VARIANT || kind_at(p, brace - 4) == T_VARIANT;
}

/* The innermost open brace, if the token cannot stand between it and its partner; else -1. */
static int brace_too_many(const Parse *p, const Token *t) {
    if (!p->nbrace || !token_begins_top(t->kind)) return -1;
    int brace = p->brace[p->nbrace - 1];
    return opens_variant(p, brace) && t->kind != T_VARIANT ? -1 : brace;
}

/* Counts the token the parser got last, now that it was not in error. */
static void count_last(Parse *p) {
    int kind = p->last;
    p->last = 0;
    if (kind == '{' && p->nbrace < NEST_MAX) p->brace[p->nbrace++] = p->next - 1;
    if (kind == '}' && p->nbrace) p->nbrace--;
    if (kind == '(' || kind == '[') p->nbracket++;
    if ((kind == ')' || kind == ']') && p->nbracket) p->nbracket--;
    if (p->nbrace + p->nbracket < NEST_MAX || p->too_deep) return;
    diag(p->diags, DIAG_ERROR, p->token[p->next - 1].loc,
         "brackets are nested too deeply: at most %d levels", NEST_MAX);
    p->too_deep = true;
}

int dpo_lex(DPO_STYPE *value, Loc *loc, Parse *p) {
    static const Token brace = {.kind = '}', .text = "}"};
    count_last(p);
    const Token *t = &p->token[p->too_deep ? p->n - 1 : p->next];
    *loc = t->loc;
    if (p->closing) { /* made up */
        p->closing--;
        loc->end = loc->begin;
        t = &brace;
    } else if (p->next < p->n)
        p->next++;
    value->token = t;
    return p->last = t->kind;
}

static void say_still_open(Parse *p, const Token *t, int brace) {
    if (t->kind)
        diag(p->diags, DIAG_ERROR, t->loc, "expected `}` before `%s`", t->text);
    else
        diag(p->diags, DIAG_ERROR, t->loc, "expected `}` before the end of the file");
    diag(p->diags, DIAG_NOTE, p->token[brace].loc, "this `{` is still open");
}

/* ---- after an error -------------------------------------------------------------------------- */

/* The partner of the brace at i, or the end of the file. */
static int skip_braces(const Parse *p, int i) {
    int depth = 0;
    for (; p->token[i].kind; i++) {
        depth += (p->token[i].kind == '{') - (p->token[i].kind == '}');
        if (depth == 0) break;
    }
    return i;
}

/* name(a, b) = */
static bool is_definition(const Parse *p, int i) {
    if (kind_at(p, i) != T_NAME || kind_at(p, i + 1) != '(') return false;
    for (i += 2; kind_at(p, i) == T_NAME || kind_at(p, i) == ','; i++) {
    }
    return kind_at(p, i) == ')' && kind_at(p, i + 1) == '=';
}

static bool begins_statement(const Parse *p, int i, int depth) {
    const Token *t = &p->token[i];
    if (token_begins_statement(t->kind))
        return t->first || (depth == 0 && token_begins_top(t->kind));
    return depth == 0 && ((t->kind == T_NAME && kind_at(p, i + 1) == '=') || is_definition(p, i));
}

bool parse_resync(Parse *p) {
    if (p->too_deep || p->closing) return false;
    int i = p->next - 1; /* the token in error; it may begin a statement itself */
    int depth = p->token[i].first ? 0 : p->nbracket;
    if (i <= p->synced) i = p->synced + 1;
    for (; kind_at(p, i); i++) {
        int kind = p->token[i].kind;
        if (kind == '{')
            i = skip_braces(p, i); /* the body of what is skipped */
        else if (kind == '(' || kind == '[')
            depth++;
        else if (kind == ')' || kind == ']')
            depth -= depth > 0;
        else if ((kind == '}' && p->nbrace) || begins_statement(p, i, depth))
            break;
        if (!kind_at(p, i)) break;
    }
    if (i > p->n - 1) i = p->n - 1;
    p->next = p->synced = i;
    p->last = p->nbracket = 0;
    for (int brace; (brace = brace_too_many(p, &p->token[i])) >= 0; p->nbrace--) {
        if (!p->closing++) say_still_open(p, &p->token[i], brace);
    }
    return kind_at(p, i) != 0;
}

/* ---- what is wrong --------------------------------------------------------------------------- */

/* The grammar's name of a token as messages show it: a name, `(`, `adapter`. */
static void add_name(Text *out, const char *name) {
    size_t n = strlen(name);
    if (name[0] == '\'' && n > 2)
        text_add(out, "`%.*s`", (int)(n - 2), name + 1);
    else if (strchr(name, ' '))
        text_add(out, "%s", name);
    else
        text_add(out, "`%s`", name);
}

static bool among(const char *name, const char *const *names, int n) {
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0) return true;
    return false;
}

/* Whole families of tokens have one name, or none: an operator could stand nearly anywhere. */
static const char *const operators[] = {
    "'|'", "or",  "and", "==",  "!=",  "<=", ">=",   "'<'", "'>'", "'+'",
    "'-'", "'*'", "'/'", "'%'", "'.'", "as", "from", "at",  "'('"};
static const char *const values[] = {"a name", "a string", "a number", "if",  "not",
                                     "true",   "false",    "on",       "off", "none",
                                     "'-'",    "'('",      "'['",      "'{'"};
static const char *const statements[] = {
    "use",    "config",  "require",   "layer", "model",  "quantize", "train",
    "data",   "adapter", "objective", "run",   "graph",  "template", "variant",
    "metric", "weight",  "for",       "if",    "return", "a name",   "the end of the file"};

/* "an expression, `)` or `,`" */
static void add_expected(Text *out, const char *const *expected, int n) {
    bool operator= among("'*'", expected, n), value = among("a number", expected, n);
    bool statement = among("return", expected, n) || among("adapter", expected, n);
    const char *said[64];
    int count = 0;
    if (value) said[count++] = "a value";
    for (int i = 0; i < n && count < 64; i++) {
        if (strcmp(expected[i], "--set") == 0) continue; /* a text is a setting or it is not */
        if (operator&& among(expected[i], operators, COUNT(operators))) continue;
        if (value && among(expected[i], values, COUNT(values))) continue;
        if (statement && among(expected[i], statements, COUNT(statements))) continue;
        said[count++] = expected[i];
    }
    if (statement && operator&& !count) said[count++] = "an operator";
    if (statement) said[count++] = "a statement";
    for (int i = 0; i < count; i++) {
        text_add(out, "%s", i == 0 ? "expected " : i == count - 1 ? " or " : ", ");
        add_name(out, said[i]);
    }
}

static void add_seen(Text *out, const Token *t) {
    if (!t->kind)
        text_add(out, "the end of the file");
    else if (t->kind == T_NAME)
        text_add(out, "the name `%s`", t->text);
    else if (t->kind == T_NUMBER)
        text_add(out, "the number %s", t->text);
    else if (t->kind == T_STRING)
        text_add(out, "a string");
    else
        text_add(out, "`%s`", t->text);
}

/* A word that was taken for the beginning of a statement, because no `=` follows, is the mistake: a
 * misspelt keyword or unit, or too much. */
static bool wrong_word(Parse *p, const Token *word, const char *const *expected, int n) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB", "TB"};
    if (word->kind != T_NAME || p->nbracket || !among("'='", expected, n)) return false;
    bool unit = word > p->token && word[-1].kind == T_NUMBER && !word->first;
    const char *meant =
        unit ? closest_name(word->text, units, COUNT(units)) : statement_keyword_near(word->text);
    if (!meant && word->first) return false;
    if (!meant) {
        diag(p->diags, DIAG_ERROR, word->loc,
             "expected an operator or a statement, saw the name `%s`", word->text);
        return true;
    }
    diag(p->diags, DIAG_ERROR, word->loc, "unknown %s `%s`", unit ? "unit" : "statement",
         word->text);
    diag(p->diags, DIAG_HELP, (Loc){0, 0, 0}, "did you mean `%s`?", meant);
    if (!unit) p->synced = (int)(word + 1 - p->token); /* all of it is skipped */
    return true;
}

/* A key of a setting without its `=`, which looks like a statement. */
static bool bare_key(Parse *p, const Token *t) {
    if (!p->nbrace || !token_begins_top(t->kind) || t->kind == T_USE) return false;
    int block = kind_at(p, p->brace[p->nbrace - 1] - 1), after = t[1].kind;
    if (block != T_DATA && block != T_RUN && block != T_GRAPH && block != T_CONFIG) return false;
    if (t->first && after != T_STRING && after != T_NUMBER) return false;
    diag(p->diags, DIAG_ERROR, t[1].loc, "expected `=` after `%s`", t->text);
    p->synced = (int)(t - p->token);
    return true;
}

/* Braces and words out of place have messages of their own. */
static bool special_error(Parse *p, const Token *t, const char *const *expected, int n) {
    if (bare_key(p, t)) return true;
    int brace = t->kind ? brace_too_many(p, t) : p->nbrace ? p->brace[p->nbrace - 1] : -1;
    if (brace >= 0 && among("'}'", expected, n)) {
        say_still_open(p, t, brace);
        return true;
    }
    if (t->kind == '}' && !p->nbrace) {
        diag(p->diags, DIAG_ERROR, t->loc, "this `}` closes nothing");
        return true;
    }
    return t > p->token && wrong_word(p, t - 1, expected, n);
}

/* What to write instead, for habits of other languages; or NULL. */
static const char *usual_slip(const Parse *p, const Token *t, const char *const *expected, int n) {
    bool digits = t->kind && t[1].kind == T_NUMBER && t[1].loc.begin == t->loc.end;
    if (t->kind == '.' && digits)
        return arena_printf(p->arena, "a number begins with a digit: 0.%s", t[1].text);
    int block = p->nbrace ? kind_at(p, p->brace[p->nbrace - 1] - 1) : 0;
    if (t->kind == ',' && (block == T_DATA || block == T_RUN || block == T_GRAPH))
        return "settings stand beside or below each other, without commas";
    bool list = t->kind == '[' && kind_at(p, (int)(t - p->token) - 1) == T_ON;
    if (list || (t->kind == T_STRING && among("load", expected, n)))
        return "several are one pattern: `on \"{q,v}_proj\"`";
    if (n == 1 && !strcmp(expected[0], "on"))
        return "say which weights: `on all_linear`, `on \"{q,v}_proj\"`";
    return NULL;
}

void parse_error(Parse *p, const char *const *expected, int n) {
    const Token *t = &p->token[p->next - 1];
    bool said = t->after_stray || (t > p->token && t[-1].after_stray);
    if (p->too_deep || said || special_error(p, t, expected, n)) return;
    Text text = {0};
    add_expected(&text, expected, n);
    text_add(&text, ", saw ");
    add_seen(&text, t);
    diag(p->diags, DIAG_ERROR, t->loc, "%s", text.data);
    text_free(&text);
    const char *meant = t->kind == T_NAME ? closest_name(t->text, expected, n) : NULL;
    const char *slip = meant ? NULL : usual_slip(p, t, expected, n);
    if (meant && strcmp(meant, t->text) != 0)
        diag(p->diags, DIAG_HELP, (Loc){0, 0, 0}, "did you mean `%s`?", meant);
    if (slip) diag(p->diags, DIAG_HELP, (Loc){0, 0, 0}, "%s", slip);
}

/* Bison's own trouble: its stack is full. */
void dpo_error(const Loc *loc, Parse *p, const char *message) {
    (void)message;
    if (!p->too_deep) diag(p->diags, DIAG_ERROR, *loc, "the file is nested too deeply here");
    p->too_deep = true;
}

/* ---- whole texts ----------------------------------------------------------------------------- */

static Parse *parse(Arena *arena, Diags *diags, uint32_t file, bool setting) {
    Parse *p = NEW(arena, Parse);
    *p = (Parse){.arena = arena, .diags = diags, .file = file, .setting = setting, .synced = -1};
    p->text = source_text(diags, file, &p->len);
    if (!setting) p->top = ast_make(p, (Ast){.kind = A_FILE, .loc = {file, 0, (uint32_t)p->len}});
    int errors = diags_errors(diags);
    scan_source(p);
    if (!setting || diags_errors(diags) == errors) dpo_parse(p);
    diags_sort(diags, file);
    return p;
}

Parse *parse_tokens(Arena *arena, Diags *diags, uint32_t file) {
    return parse(arena, diags, file, false);
}

Ast *parse_text(Arena *arena, Diags *diags, uint32_t file) {
    return parse_tokens(arena, diags, file)->top;
}

/* path=VALUE where VALUE can only be a file's path, which a shell leaves without its quotes. */
static const char *quote_path(Arena *arena, const char *text) {
    const char *value = strchr(text, '=');
    if (!value || strpbrk(value, "\"[({ ")) return text;
    value++;
    bool path = *value == '/' || *value == '.' || *value == '~' ||
                (isalpha((unsigned char)*value) && strchr(value, '/'));
    return path ? arena_printf(arena, "%.*s\"%s\"", (int)(value - text), text, value) : text;
}

Ast *parse_set(Arena *arena, Diags *diags, const char *text, int n) {
    const char *name = arena_printf(arena, "--set #%d", n);
    text = quote_path(arena, text);
    int errors = diags_errors(diags);
    uint32_t file = source_add(diags, name, text, strlen(text));
    Ast *top = parse(arena, diags, file, true)->top;
    if (diags_errors(diags) == errors) return top;
    diag(diags, DIAG_HELP, (Loc){0, 0, 0},
         "settings look like run.lr=5e-6 or data.train='\"pairs.jsonl\"'");
    return NULL;
}
