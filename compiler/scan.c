/* scan.c: a source's text becomes an array of tokens; words become keywords by their neighbours.
 *
 * Relies on grammar/dpo.l for what a token looks like.  Promises: the array ends with one END
 * token; bytes that are not valid UTF-8, NULs, broken strings and numbers are diagnostics; no
 * keyword is left where the language wants a plain word: before `=`, before and after `.`, after
 * `as`, as a key of config.json.
 */
#include "parse.h"

#include "grammar/dpo.tab.h"

#include <math.h>   /* isfinite */
#include <stdlib.h> /* strtod */
#include <string.h> /* memcmp */

typedef void *yyscan_t;
int dpo_lex_init_extra(Parse *p, yyscan_t *scanner);
int dpo_lex_destroy(yyscan_t scanner);
struct yy_buffer_state *dpo__scan_bytes(const char *text, int n, yyscan_t scanner);

static Loc place(const Parse *p, uint32_t at, size_t n) {
    at += p->origin;
    return (Loc){p->file, at, at + (uint32_t)n};
}

static void push(Parse *p, Token token) {
    uint32_t from = p->n ? p->token[p->n - 1].loc.end : p->origin;
    token.first = !p->n || memchr(p->text + from, '\n', token.loc.begin - from);
    token.after_stray = p->stray;
    p->stray = false;
    PUSH(p->arena, p->token, p->n, p->cap, token);
}

/* ---- called by dpo.l ------------------------------------------------------------------------- */

void scan_open_string(Parse *p, uint32_t at, size_t n) {
    diag(p->diags, DIAG_ERROR, place(p, at, n), "this string has no closing quote");
    push(p, (Token){.kind = T_STRING, .loc = place(p, at, n), .text = intern("")});
}

/* The string's value: quotes off, escapes replaced. */
static const char *unquote(Parse *p, uint32_t at, const char *text, size_t n) {
    char *value = arena_alloc(p->arena, n);
    size_t len = 0;
    for (size_t i = 1; i + 1 < n; i++) {
        char c = text[i];
        if (c == '\\') {
            c = text[++i];
            const char *escape = memchr("nt\"\\", c, 4);
            if (!escape)
                diag(p->diags, DIAG_ERROR, place(p, at + (uint32_t)i - 1, 2),
                     "unknown escape in a string: there are \\n, \\t, \\\" and \\\\");
            else
                c = "\n\t\"\\"[escape - "nt\"\\"];
        }
        value[len++] = c;
    }
    return intern_n(value, len);
}

static Token number(Parse *p, uint32_t at, const char *text, size_t n) {
    Token token = {.kind = T_NUMBER, .loc = place(p, at, n), .text = intern_n(text, n)};
    token.num = strtod(token.text, NULL);
    token.integer = !strpbrk(token.text, ".eE");
    if (!isfinite(token.num)) {
        diag(p->diags, DIAG_ERROR, token.loc, "this number is too large: at most about 1.8e308");
        token.num = 0;
    }
    return token;
}

void scan_token(Parse *p, int kind, uint32_t at, const char *text, size_t n) {
    Token token = {.kind = kind, .loc = place(p, at, n)};
    if (kind == T_NUMBER)
        token = number(p, at, text, n);
    else if (kind == T_STRING)
        token.text = unquote(p, at, text, n);
    else
        token.text = intern_n(text, n);
    push(p, token);
}

void scan_comment(Parse *p, uint32_t at, size_t n) {
    PUSH(p->arena, p->comment, p->ncomment, p->capcomment, place(p, at, n));
}

size_t scan_unit(Parse *p, uint32_t at, const char *text, size_t n) {
    size_t digits = strspn(text, "0123456789");
    if (text[digits] == '.') digits += 1 + strspn(text + digits + 1, "0123456789");
    size_t sign = digits + 1 + (text[digits + 1] == '-' || text[digits + 1] == '+');
    if ((text[digits] == 'e' || text[digits] == 'E') && text[sign] >= '0' && text[sign] <= '9')
        digits = sign + strspn(text + sign, "0123456789");
    Token token = number(p, at, text, digits);
    size_t begin = digits + strspn(text + digits, " \t"), end = n;
    double scale = 1;
    if (text[begin] == '%') {
        token.num /= 100;
        token.integer = false;
        end = begin + 1;
    } else if (!unit_scale(text + begin, n - begin, &scale)) {
        if (begin > digits)
            end = begin = digits; /* a word of its own */
        else {
            diag(p->diags, DIAG_ERROR, place(p, at + (uint32_t)begin, n - begin),
                 "unknown unit `%.*s`", (int)(n - begin), text + begin);
            diag(p->diags, DIAG_HELP, (Loc){0, 0, 0},
                 "units are KiB MiB GiB TiB, kB MB GB TB, %% and k (2k is 2000)");
        }
    }
    if (end > begin) token.unit = intern_n(text + begin, end - begin);
    token.num *= scale;
    token.loc.end = token.loc.begin + (uint32_t)end;
    push(p, token);
    return end;
}

void scan_stray(Parse *p, uint32_t at, const char *text, size_t n) {
    const char *help = *text == '\''  ? "strings stand in double quotes"
                       : *text == ';' ? "statements need no `;`"
                       : *text == '&' ? "write `and`"
                       : *text == '!' ? "write `not`"
                                      : NULL;
    size_t shown = n; /* whole characters */
    while (shown > 24 || (shown < n && (text[shown] & 0xc0) == 0x80)) shown--;
    diag(p->diags, DIAG_ERROR, place(p, at, n), "unexpected character `%.*s`", (int)shown, text);
    if (help) diag(p->diags, DIAG_HELP, (Loc){0, 0, 0}, "%s", help);
    p->stray = true;
}

/* ---- keywords -------------------------------------------------------------------------------- */

static const struct Keyword {
    const char *name;
    int kind;
} keywords[] = {
    {"use", T_USE},
    {"config", T_CONFIG},
    {"require", T_REQUIRE},
    {"layer", T_LAYER},
    {"model", T_MODEL},
    {"quantize", T_QUANTIZE},
    {"adapter", T_ADAPTER},
    {"train", T_TRAIN},
    {"data", T_DATA},
    {"objective", T_OBJECTIVE},
    {"metric", T_METRIC},
    {"run", T_RUN},
    {"graph", T_GRAPH},
    {"variant", T_VARIANT},
    {"template", T_TEMPLATE},
    {"weight", T_WEIGHT},
    {"for", T_FOR},
    {"in", T_IN},
    {"if", T_IF},
    {"then", T_THEN},
    {"else", T_ELSE},
    {"return", T_RETURN},
    {"as", T_AS},
    {"from", T_FROM},
    {"when", T_WHEN},
    {"on", T_ON},
    {"off", T_OFF},
    {"true", T_TRUE},
    {"false", T_FALSE},
    {"none", T_NONE},
    {"and", T_AND},
    {"or", T_OR},
    {"not", T_NOT},
    {"load", T_LOAD},
    {"bias", T_BIAS},
    {"at", T_AT},
    {"start", T_START},
};

const char *statement_keyword_near(const char *word) {
    const char *names[COUNT(keywords)];
    int n = 0;
    for (size_t i = 0; i < COUNT(keywords); i++)
        if (token_begins_statement(keywords[i].kind)) names[n++] = keywords[i].name;
    return closest_name(word, names, n);
}

bool token_begins_statement(int kind) {
    return token_begins_top(kind) || kind == T_METRIC || kind == T_WEIGHT || kind == T_FOR ||
           kind == T_IF || kind == T_RETURN || kind == T_REQUIRE;
}

bool token_begins_top(int kind) {
    switch (kind) {
    case T_USE:
    case T_CONFIG:
    case T_LAYER:
    case T_MODEL:
    case T_QUANTIZE:
    case T_ADAPTER:
    case T_TRAIN:
    case T_OBJECTIVE:
    case T_DATA:
    case T_RUN:
    case T_GRAPH:
    case T_TEMPLATE:
    case T_VARIANT:
        return true;
    default:
        return false;
    }
}

static int keyword_kind(const char *word) {
    for (size_t i = 0; i < COUNT(keywords); i++)
        if (strcmp(keywords[i].name, word) == 0) return keywords[i].kind;
    return T_NAME;
}

/* Kinds that begin a value, so that they keep their meaning where config expects a key. */
static bool value_word(int kind) {
    return kind == T_ON || kind == T_OFF || kind == T_TRUE || kind == T_FALSE || kind == T_NONE ||
           kind == T_NOT || kind == T_IF;
}

/* What the word between `before` and `after` is. */
static int word_kind(const Token *before, const Token *word, const Token *after, bool in_config) {
    int kind = keyword_kind(word->text);
    if (kind == T_NAME || after->kind == '=' || after->kind == '.') return T_NAME;
    if (before->kind == '.' || before->kind == T_AS) return T_NAME;
    if (in_config && (before->kind == '=' || before->kind == '|') && !value_word(kind))
        return T_NAME;
    if (kind == T_LOAD && after->kind != T_STRING) return T_NAME;
    if (kind == T_BIAS && (before->kind != ']' || after->kind != '(')) return T_NAME;
    if (kind == T_AT &&
        (before->kind != T_NAME || after->kind != T_NAME || after->text != intern("start")))
        return T_NAME;
    if (kind == T_START && before->kind != T_AT) return T_NAME;
    return kind;
}

static void find_keywords(Parse *p) {
    static const Token none = {0};
    int depth = 0, config = 0; /* open braces; the depth inside config's, or 0 */
    for (int i = 0; i + 1 < p->n; i++) {
        const Token *before = i ? &p->token[i - 1] : &none;
        Token *t = &p->token[i];
        if (t->kind == T_NAME) t->kind = word_kind(before, t, &p->token[i + 1], config > 0);
        if (t->kind == '{' && ++depth && before->kind == T_CONFIG && !config) config = depth;
        if (t->kind == '}' && depth > 0 && depth-- == config) config = 0;
    }
}

/* ---- the whole source ------------------------------------------------------------------------ */

/* Where the text stops being UTF-8 without NULs; its length if it does not. */
static size_t valid_utf8(const char *text, size_t len) {
    const unsigned char *s = (const unsigned char *)text;
    for (size_t i = 0; i < len;) {
        size_t n = s[i] == 0         ? 0
                   : s[i] < 0x80     ? 1
                   : s[i] >> 5 == 6  ? 2
                   : s[i] >> 4 == 14 ? 3
                   : s[i] >> 3 == 30 ? 4
                                     : 0;
        if (!n || n > len - i) return i;
        for (size_t k = 1; k < n; k++)
            if ((s[i + k] & 0xc0) != 0x80) return i;
        bool overlong = (n == 2 && s[i] < 0xc2) || (n == 3 && s[i] == 0xe0 && s[i + 1] < 0xa0) ||
                        (n == 4 && s[i] == 0xf0 && s[i + 1] < 0x90);
        bool surrogate = n == 3 && s[i] == 0xed && s[i + 1] >= 0xa0;
        bool beyond = n == 4 && (s[i] > 0xf4 || (s[i] == 0xf4 && s[i + 1] >= 0x90));
        if (overlong || surrogate || beyond) return i;
        i += n;
    }
    return len;
}

enum { LARGEST = 1 << 20 };

static bool readable(Parse *p) {
    if (p->len > LARGEST) {
        diag(p->diags, DIAG_ERROR, place(p, 0, 0), "the file is too large: %zu bytes, at most %d",
             p->len, LARGEST);
        return false;
    }
    size_t bad = valid_utf8(p->text, p->len);
    if (bad == p->len) return true;
    diag(p->diags, DIAG_ERROR, place(p, (uint32_t)bad, 1),
         "byte 0x%02x is not text: files are UTF-8 without NULs", (unsigned char)p->text[bad]);
    return false;
}

void scan_source(Parse *p) {
    if (p->setting) push(p, (Token){.kind = T_SETTING, .loc = place(p, 0, 0)});
    yyscan_t scanner;
    if (readable(p) && dpo_lex_init_extra(p, &scanner) == 0) {
        size_t mark = p->len >= 3 && memcmp(p->text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
        p->origin = (uint32_t)mark; /* a byte order mark is skipped */
        dpo__scan_bytes(p->text + mark, (int)(p->len - mark), scanner);
        dpo_scan(scanner);
        dpo_lex_destroy(scanner);
    }
    uint32_t end = p->n ? p->token[p->n - 1].loc.end : 0;
    push(p, (Token){.loc = {p->file, end, end}, .text = intern("")});
    find_keywords(p);
}
