/* fmt.c: `dpoc fmt`: the one layout of .dpo files.
 *
 * Lines break where the person broke them; all else is decided here: indentation, spaces between
 * tokens, where braces and `else` stand, blank lines (one at most), units, comments behind code in
 * columns.  A block that holds a line break has its braces at line ends and line beginnings.
 * Works on the tokens, so every comment stays; asks the tree only where statements begin.
 * Promises: formatting twice changes nothing, and the formatted text has the same tree.
 */
#include "parse.h"

#include "grammar/dpo.tab.h"

#include <string.h> /* memchr */

typedef struct Line {
    int indent;
    char *code; /* NULL: only a comment; "" and no comment: a blank line */
    char *comment;
} Line;

typedef struct Fmt {
    Parse *p;
    bool *begins; /* by token: a statement begins here */
    bool *open;   /* by token: this brace's block spans lines */
    Line *line;
    int nline, capline;
    Text code;      /* of the line being made */
    char *comment;  /* behind it */
    int indent;     /* of it */
    int depth;      /* open braces of blocks that span lines */
    bool line_open; /* something stands on it */
} Fmt;

/* ---- where statements begin, which blocks span lines ----------------------------------------- */

static void mark_token(Fmt *f, uint32_t begin) {
    int lo = 0, hi = f->p->n - 1;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (f->p->token[mid].loc.begin < begin)
            lo = mid + 1;
        else
            hi = mid;
    }
    f->begins[lo] = true;
}

static void mark_statements(Fmt *f, const Ast *ast) {
    if (!ast) return;
    bool holds = ast->kind == A_FILE || ast->kind == A_BLOCK || ast->kind == A_CONFIG ||
                 ast->kind == A_OBJECTIVE || ast->kind == A_DATA || ast->kind == A_RUN ||
                 ast->kind == A_GRAPH || ast->kind == A_TEMPLATE || ast->kind == A_VARIANT ||
                 ast->kind == A_RECORD;
    for (const Ast *s = ast->list; s; s = s->next) {
        if (holds) mark_token(f, s->loc.begin);
        mark_statements(f, s);
    }
    for (const Ast *s = ast->params; s; s = s->next) mark_statements(f, s);
    mark_statements(f, ast->a);
    mark_statements(f, ast->b);
    mark_statements(f, ast->c);
}

static void mark_blocks(Fmt *f) {
    int stack[NEST_MAX], n = 0;
    for (int i = 0; i < f->p->n; i++) {
        if (f->p->token[i].kind == '{') stack[n++] = i;
        if (f->p->token[i].kind != '}') continue;
        int from = stack[--n];
        uint32_t begin = f->p->token[from].loc.end, end = f->p->token[i].loc.begin;
        f->open[from] = f->open[i] = memchr(f->p->text + begin, '\n', end - begin) != NULL;
    }
}

/* ---- lines ----------------------------------------------------------------------------------- */

static void end_line(Fmt *f) {
    if (!f->line_open) return;
    Line line = {f->indent, f->code.len ? arena_strn(f->p->arena, f->code.data, f->code.len) : NULL,
                 f->comment};
    PUSH(f->p->arena, f->line, f->nline, f->capline, line);
    f->code.len = 0;
    f->comment = NULL;
    f->line_open = false;
}

static void begin_line(Fmt *f, int indent, bool blank) {
    end_line(f);
    if (blank) PUSH(f->p->arena, f->line, f->nline, f->capline, ((Line){.code = ""}));
    f->indent = indent;
    f->line_open = true;
}

static int characters(const char *s) {
    int n = 0;
    for (; *s; s++) n += (*s & 0xc0) != 0x80;
    return n;
}

/* Comments behind code stand in one column over neighbouring lines. */
static void print_lines(const Fmt *f, Text *out) {
    for (int i = 0, until = 0, column = 0; i < f->nline; i++) {
        const Line *line = &f->line[i];
        if (i >= until) {
            column = 0;
            for (until = i; until < f->nline; until++) {
                const Line *l = &f->line[until];
                if (!l->code || !l->comment) break;
                int width = l->indent + characters(l->code);
                if (width > column) column = width;
            }
            if (until == i) until++;
        }
        int indent = line->code && !*line->code ? 0 : line->indent;
        text_add(out, "%*s%s", indent, "", line->code ? line->code : "");
        int gap = line->code ? column + 2 - line->indent - characters(line->code) : 0;
        if (line->comment) text_add(out, "%*s%s", gap, "", line->comment);
        text_add(out, "\n");
    }
}

/* ---- spaces ---------------------------------------------------------------------------------- */

static bool ends_operand(int kind) {
    switch (kind) {
    case T_NAME:
    case T_NUMBER:
    case T_STRING:
    case T_TRUE:
    case T_FALSE:
    case T_ON:
    case T_OFF:
    case T_NONE:
    case T_START:
    case ')':
    case ']':
    case '}':
        return true;
    default:
        return false;
    }
}

/* How many spaces stand before token i, which follows another on its line. */
static int spaces(const Fmt *f, int i) {
    const Token *t = &f->p->token[i];
    int a = t[-1].kind, b = t->kind;
    if (a == '{' && b == '}') return 0;
    if (f->begins[i] && a != '{') return 2;
    if (a == '(' || a == '[' || a == '.' || a == T_RANGE) return 0;
    if (b == ')' || b == ']' || b == ',' || b == '.' || b == T_RANGE) return 0;
    if (b == '(' && (a == T_NAME || a == T_BIAS)) return 0;
    if (b == '[' && (a == T_NAME || a == ']')) return 0;
    if (a == '-' && !(i >= 2 && ends_operand(t[-2].kind))) return 0;
    return 1;
}

static void add_token(Fmt *f, int i) {
    const Token *t = &f->p->token[i];
    if (f->code.len) text_add(&f->code, "%*s", spaces(f, i), "");
    bool joined = t->unit && (*t->unit == '%' || strcmp(t->unit, "k") == 0);
    if (t->unit)
        text_add(&f->code, "%s%s%s", t->text, joined ? "" : " ", t->unit);
    else
        text_addn(&f->code, f->p->text + t->loc.begin, t->loc.end - t->loc.begin);
}

/* ---- the walk -------------------------------------------------------------------------------- */

/* Line breaks in the source between two places; comments are not in between. */
static int breaks(const Fmt *f, uint32_t from, uint32_t to) {
    int n = 0;
    for (uint32_t at = from; at < to; at++) n += f->p->text[at] == '\n';
    return n;
}

/* Indentation of a line that begins with token i, or with a comment before it. */
static int indent_of(const Fmt *f, int i, bool comment) {
    int kind = f->p->token[i].kind;
    if (kind == '}') return 4 * (f->depth - !comment);
    bool flush = !kind || f->begins[i] || ((kind == ')' || kind == ']') && !comment);
    return 4 * f->depth + (flush ? 0 : 4);
}

static void put_comment(Fmt *f, Loc at, int next, int broken, bool after_brace) {
    size_t n = at.end - at.begin;
    while (n > 1 && strchr(" \t\r", f->p->text[at.begin + n - 1])) n--;
    if (broken || !f->line_open)
        begin_line(f, indent_of(f, next, true),
                   broken > 1 && f->nline + f->line_open && !after_brace);
    f->comment = arena_strn(f->p->arena, f->p->text + at.begin, n);
}

static void put_token(Fmt *f, int i, int broken, bool after_comment) {
    const Token *t = &f->p->token[i];
    int before = i ? t[-1].kind : 0;
    bool blank = broken > 1;
    if (f->open[i] && t->kind == '}') {
        broken = 1;
        blank = false;
    }
    if (i && before == '{' && f->open[i - 1]) {
        broken = 1;
        blank = blank && after_comment;
    }
    if (i && before == '}' && f->open[i - 1] && f->begins[i] && !broken) broken = 1;
    if ((t->kind == '{' && !f->begins[i] && before != '=' && before != ',') || t->kind == T_ELSE)
        broken = 0; /* headers and their braces share a line */
    if (broken || after_comment || !f->line_open)
        begin_line(f, indent_of(f, i, false), blank && f->nline + f->line_open);
    add_token(f, i);
    if (f->open[i]) f->depth += t->kind == '{' ? 1 : -1;
}

static void walk(Fmt *f) {
    uint32_t at = f->p->origin; /* what lies before it has been put */
    int c = 0;
    bool after_comment = false, after_brace = false;
    for (int i = 0; i < f->p->n; i++) {
        const Token *t = &f->p->token[i];
        uint32_t begin = t->kind ? t->loc.begin : (uint32_t)f->p->len;
        for (; c < f->p->ncomment && f->p->comment[c].begin < begin; c++) {
            Loc comment = f->p->comment[c];
            put_comment(f, comment, i, breaks(f, at, comment.begin), after_brace);
            at = comment.end;
            after_comment = true;
            after_brace = false;
        }
        if (!t->kind) break;
        put_token(f, i, breaks(f, at, begin), after_comment);
        at = t->loc.end;
        after_comment = false;
        after_brace = t->kind == '{';
    }
    end_line(f);
}

bool fmt_text(Arena *arena, Diags *diags, uint32_t file, Text *out) {
    int errors = diags_errors(diags);
    Fmt f = {.p = parse_tokens(arena, diags, file)};
    if (diags_errors(diags) != errors) return false;
    f.begins = NEW_ARRAY(arena, bool, f.p->n);
    f.open = NEW_ARRAY(arena, bool, f.p->n);
    mark_statements(&f, f.p->top);
    mark_blocks(&f);
    walk(&f);
    print_lines(&f, out);
    text_free(&f.code);
    return true;
}
