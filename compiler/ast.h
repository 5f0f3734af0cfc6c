/* ast.h: the syntax tree of a .dpo file.
 *
 * One fat node for every kind (no unions): the comment after each kind shows the syntax it stands
 * for and, below, the fields it uses.  Built by grammar/dpo.y through parse.h's constructors only;
 * the actions look at nothing but their children.  Names and strings are interned.  Blocks hold
 * only the kinds of statement named here: the parser has refused the others.
 */
#ifndef DPOC_AST_H
#define DPOC_AST_H

#include "dpoc.h"

typedef enum AstKind {
    /* ---- top level statements ---- */
    A_FILE,      /* whole file; list = statements */
    A_USE,       /* use "llama3.dpo"
                    text */
    A_CONFIG,    /* config { dim = hidden_size  if c {..} }
                    list = A_BIND | A_IF | A_REQUIRE */
    A_REQUIRE,   /* require act == "silu" : "message"
                    a = condition, text = message or NULL */
    A_LAYER,     /* layer mlp(x, y) { .. }
                    text, params = A_NAME.., a = A_BLOCK */
    A_MODEL,     /* model llama(tokens) for "llama" { .. }
                    text, params, text2 = model_type or NULL, a = A_BLOCK */
    A_BIND,      /* name = expr: a config key, base, policy, reference, setting, local value
                    text, a = expr */
    A_QUANTIZE,  /* quantize base nf4(block = 64) on SEL, ..
                    text = model value, list = A_CLAUSE */
    A_ADAPTER,   /* adapter pref = lora(..) on SEL, .. | load "d"
                    text, list = A_CLAUSE */
    A_CLAUSE,    /* lora(rank = 16) on SEL
                    a = A_CALL, b = selector (A_NAME all_linear | A_STR)
                    load "dir"
                    a = NULL, text = dir */
    A_TRAIN,     /* train pref, other
                    list = A_NAME */
    A_OBJECTIVE, /* objective dpo(beta = 0.1) { .. }
                    text, params = A_BIND.., list = A_DEF | A_BIND | A_METRIC | A_IF | A_REQUIRE */
    A_DEF,       /* reward(side) = expr
                    text, params = A_NAME.., a = expr */
    A_METRIC,    /* metric length_gap = expr
                    text, a = expr */
    A_DATA,      /* data { train = "x"  eval = 2% }
                    list = A_BIND */
    A_RUN,       /* run { steps = 50 }
                    list = A_BIND */
    A_GRAPH,     /* graph { memory = 40 GiB }
                    list = A_BIND */
    A_TEMPLATE,  /* template mine { message = "{role}: {content}{eos}" }
                    text, list = A_BIND */
    A_VARIANT,   /* variant NAME from OTHER { .. }
                    text, text2 = OTHER or NULL, list = statements */
    /* ---- statements inside layers, models, config, objectives ---- */
    A_BLOCK,  /* { .. }
                    list */
    A_WEIGHT, /* weight q_proj[a, b] bias(c), ..
                    list = A_WDECL */
    A_WDECL,  /* q_proj[dims] bias(c) = path when c
                    text, params = dims, a = bias condition or NULL,
                    b = tied A_NAME | A_PATH | A_INDEX or NULL, c = tie condition or NULL */
    A_FOR,    /* for i in a..b { .. }
                    text = i, a, b, c = A_BLOCK */
    A_IF,     /* if a { .. } else { .. }
                    a, b = A_BLOCK, c = A_BLOCK | A_IF | NULL */
    A_RETURN, /* return expr
                    a */
    /* ---- expressions ---- */
    A_NUM,      /* 16, 1e-5, 40 GiB, 2k, 2%
                    num = value with the unit applied, text = unit or NULL ("GiB" "GB" "k" "%" ..),
                    text2 = spelling of the number; integer = no dot, no exponent, no % */
    A_STR,      /* "text"
                    text */
    A_BOOL,     /* true, false, on, off
                    num = 1 or 0, text = spelling */
    A_NONE,     /* none */
    A_NAME,     /* word
                    text */
    A_PATH,     /* rope_parameters.rope_theta, pair.score
                    a = A_NAME | A_PATH, text = last word (in scopes a may be A_INDEX) */
    A_INDEX,    /* layers[i], in `as` scopes and tie paths
                    a, b = index */
    A_CALL,     /* f(x, key = y)
                    text = f, list = A_ARG */
    A_ARG,      /* x, key = y
                    text = key or NULL, a = expr */
    A_AS,       /* block(x) as layers[i]
                    a = A_CALL, b = A_NAME | A_PATH | A_INDEX */
    A_ALT,      /* a | b, in config: the first that is present
                    a, b */
    A_UNARY,    /* -x, not x
                    op, a */
    A_BINARY,   /* + - * / % == != < <= > >= and or (model sums are + too)
                    op, a, b */
    A_COND,     /* if c then x else y, as a value
                    a = condition, b = x, c = y */
    A_FROM,     /* llama from "dir"
                    a = A_NAME, text = dir */
    A_AT_START, /* policy at start
                    a = A_NAME */
    A_LIST,     /* [a, b, c], also data mixtures
                    list */
    A_WEIGHTED, /* "a.jsonl" weight 0.3, in data.train
                    a = A_STR, b = number */
    A_RECORD    /* { key = value .. } as a value
                    list = A_BIND */
} AstKind;

/* Operators are the token's text, interned: "+", "==", "and", ...; compare with intern("+"). */

struct Ast {
    AstKind kind;
    Loc loc;      /* the whole construct */
    Loc name_loc; /* of `text`, where there is one */
    const char *text, *text2, *op;
    double num;
    bool integer;
    Ast *a, *b, *c;
    Ast *params, *list; /* first element; follow ->next */
    Ast *next;
    Ast *last;             /* of a list's first element: its last */
    int depth, list_depth; /* levels, of the node and of the list it begins: at most AST_DEEPEST */
};

/* Trees are no deeper than this, so walks may recurse. */
enum { AST_DEEPEST = 1000 };

/* ---- ast.c ----------------------------------------------------------------------------------- */
Ast *ast_append(Ast *list, Ast *item);   /* list may be NULL, item too; returns the list's head */
const char *ast_kind_name(AstKind kind); /* "adapter", for messages */
/* The tree as indented text, for tests: one node a line, its fields, then its children by field. */
void ast_dump(const Ast *ast, Text *out);

/* ---- parse.c ------------------------------------------------------------------------------------
 * Parses one source (already added to diags) into an A_FILE.  Syntax errors are diagnostics,
 * several per run; the result is never NULL but holds only what could be understood. */
Ast *parse_text(Arena *arena, Diags *diags, uint32_t file);
#define BUILTIN_PREFIX "built-in:" /* sources that came with the program: built-in:llama3.dpo */
/* Parses "path.to.key=value" of --set: returns A_BIND with text = the dotted path; diagnostics
 * name it `--set #n`.  NULL after an error. */
Ast *parse_set(Arena *arena, Diags *diags, const char *text, int n);

/* ---- fmt.c: canonical formatting that keeps every comment; idempotent ------------------------ */
bool fmt_text(Arena *arena, Diags *diags, uint32_t file, Text *out);

#endif
