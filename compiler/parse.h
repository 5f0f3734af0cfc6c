/* parse.h: what scanner, grammar, parse.c and fmt.c share.  Nobody else includes it.
 *
 * A file is scanned whole into an array of tokens; keywords are told from names by their
 * neighbours; the grammar then reads the array.  Having all tokens at hand makes the contextual
 * keywords, the recovery from errors and the formatter simple.
 */
#ifndef DPOC_PARSE_H
#define DPOC_PARSE_H

#include "ast.h"

typedef struct Token {
    int kind; /* of dpo.tab.h; 0 at the end of the file */
    Loc loc;
    const char *text; /* interned: a name, a keyword, a string's value, a number's spelling */
    const char *unit; /* of a number, or NULL */
    double num;       /* its value, the unit applied */
    bool integer;     /* a number without dot and exponent */
    bool first;       /* first on its line */
    bool after_stray; /* something before it was no token: what follows from that is not said */
} Token;

enum { NEST_MAX = 200 }; /* open brackets and braces */

typedef struct Parse {
    Arena *arena;
    Diags *diags;
    uint32_t file;
    const char *text;
    size_t len;
    uint32_t origin; /* where scanning began: behind a byte order mark */
    Token *token;    /* the last one is the end of the file */
    int n, cap;
    Loc *comment;
    int ncomment, capcomment;
    /* where the grammar is */
    int next;            /* index of the token it gets next */
    int last;            /* kind of the one it got last, not yet counted below; 0: none */
    int brace[NEST_MAX]; /* the open braces' tokens */
    int nbrace, nbracket;
    int synced;    /* the last token at which an error ended */
    int closing;   /* missing `}` still to be made up */
    bool too_deep; /* said once; the rest of the file is not read */
    bool stray;    /* while scanning: bytes were left out before the next token */
    bool setting;  /* the text is one path=value */
    Ast *top;      /* A_FILE, or the A_BIND of a setting; grows statement by statement */
} Parse;

/* ---- scan.c ---------------------------------------------------------------------------------- */
void scan_source(Parse *p); /* fills token and comment */
/* Whether a keyword can only begin a statement (or is `if`, `for`); one that stands outside of
 * blocks, except in a variant. */
bool token_begins_statement(int kind);
bool token_begins_top(int kind);
/* The statement's keyword that a misspelt word may mean, or NULL. */
const char *statement_keyword_near(const char *word);

/* For dpo.l: each keeps one token, or says what is wrong there.  `at` counts from origin. */
int dpo_scan(void *scanner);
void scan_token(Parse *p, int kind, uint32_t at, const char *text, size_t n);
void scan_comment(Parse *p, uint32_t at, size_t n);
/* A number with a unit, perhaps; returns how many bytes belong to it. */
size_t scan_unit(Parse *p, uint32_t at, const char *text, size_t n);
void scan_open_string(Parse *p, uint32_t at, size_t n);
void scan_stray(Parse *p, uint32_t at, const char *text, size_t n);

/* ---- for dpo.y ------------------------------------------------------------------------------- */
/* Says what is wrong at the token got last; expected: what could stand there, in dpo.y's names. */
void parse_error(Parse *p, const char *const *expected, int n);
/* Makes the next token the first of a statement; false where none is left. */
bool parse_resync(Parse *p);
/* A copy of `fields` in the arena. */
Ast *ast_make(Parse *p, Ast fields);
void ast_top(Parse *p, Ast *statement);
/* An A_NAME or A_PATH as one dotted word. */
const char *ast_dotted(Parse *p, const Ast *path);
/* The block without the statements that a `where` cannot hold, which are errors. */
Ast *ast_only(Parse *p, AstKind where, Ast *block);

/* ---- for fmt.c: parse_text, and what it saw -------------------------------------------------- */
Parse *parse_tokens(Arena *arena, Diags *diags, uint32_t file);

#endif
