/* dpo.y: the rules of .dpo files.  Every action makes one node; meaning is for later (check.c,
 * build.c).
 *
 * Tokens come from parse.c, where words became keywords by their neighbours: a word before `=`,
 * after `.` or after `as` is always a NAME here.  A statement in error is skipped there, too.
 */
%code requires {
#include "compiler/parse.h"
}
%code {
#include <stdlib.h> /* malloc: bison's stacks */

int dpo_lex(union DPO_STYPE *value, Loc *loc, Parse *p);
void dpo_error(const Loc *loc, Parse *p, const char *message);

#define YYMAXDEPTH 20000
#define YYLLOC_DEFAULT(at, rhs, n) \
    ((at) = (n) ? loc_join(YYRHSLOC(rhs, 1), YYRHSLOC(rhs, n)) \
                : (Loc){YYRHSLOC(rhs, 0).file, YYRHSLOC(rhs, 0).end, YYRHSLOC(rhs, 0).end})
/* Reads on at the next statement; errors there are said again. */
#define RESYNC \
    do { \
        yyclearin; \
        if (parse_resync(p)) yyerrok; \
    } while (0)
#define AST(what, ...)   ast_make(p, (Ast){.kind = (what), .loc = __VA_ARGS__}) /* place, fields */
#define NAMED(token, at) .text = (token)->text, .name_loc = (at)
}

%define api.pure full
%define api.prefix {dpo_}
%define api.token.prefix {T_}
%define api.location.type {Loc}
%define parse.error custom
%define parse.lac full
%locations
%param {Parse *p}
%expect 0

%union {
    const Token *token;
    Ast *ast;
}

%token END 0 "the end of the file"
%token <token> NAME "a name" STRING "a string" NUMBER "a number"
%token <token> USE "use" CONFIG "config" REQUIRE "require" LAYER "layer" MODEL "model"
    QUANTIZE "quantize" ADAPTER "adapter" TRAIN "train" OBJECTIVE "objective" METRIC "metric"
    DATA "data" RUN "run" GRAPH "graph" TEMPLATE "template" VARIANT "variant" WEIGHT "weight"
    FOR "for" IN "in" IF "if"
    THEN "then" ELSE "else" RETURN "return" AS "as" FROM "from" WHEN "when" ON "on" LOAD "load"
    BIAS "bias" AT "at" START "start" TRUE "true" FALSE "false" OFF "off" NONE "none"
%token <token> AND "and" OR "or" NOT "not" EQ "==" NE "!=" LE "<=" GE ">=" RANGE ".."
%token <token> '=' '|' '<' '>' '+' '-' '*' '/' '%' '(' ')' '{' '}' '[' ']' ',' '.' ':'
%token SETTING "--set"

%precedence "else"
%left '|'
%left "or"
%left "and"
%precedence "not"
%nonassoc "==" "!=" '<' '>' "<=" ">="
%left '+' '-'
%left '*' '/' '%'
%precedence NEGATIVE

%type <ast> statements statement names list name params paramlist param quants quant clauses clause
    method selector block items item if wdecls wdecl values bias value call args arglist arg path
    scope elements element fields

%start start

%%

start:
    file
  | SETTING path '=' value
        { ast_top(p, AST(A_BIND, @$, .text = ast_dotted(p, $2), .name_loc = @2, .a = $4)); }
  ;

file:
    %empty
  | file statement              { ast_top(p, $2); }
  | file error                  { RESYNC; }
  ;

/* ---- statements of a file, and of a variant -------------------------------------------------- */

statements:
    %empty                      { $$ = NULL; }
  | statements statement        { $$ = ast_append($1, $2); }
  | statements error            { $$ = $1; RESYNC; }
  ;

statement:
    USE STRING                  { $$ = AST(A_USE, @$, NAMED($2, @2)); }
  | CONFIG block                { $$ = AST(A_CONFIG, @$, .list = ast_only(p, A_CONFIG, $2)->list); }
  | REQUIRE value               { $$ = AST(A_REQUIRE, @$, .a = $2); }
  | REQUIRE value ':' STRING    { $$ = AST(A_REQUIRE, @$, .a = $2, NAMED($4, @4)); }
  | LAYER NAME '(' names ')' block
        { $$ = AST(A_LAYER, @$, NAMED($2, @2), .params = $4, .a = ast_only(p, A_LAYER, $6)); }
  | MODEL NAME '(' names ')' block
        { $$ = AST(A_MODEL, @$, NAMED($2, @2), .params = $4, .a = ast_only(p, A_MODEL, $6)); }
  | MODEL NAME '(' names ')' FOR STRING block
        { $$ = AST(A_MODEL, @$, NAMED($2, @2), .params = $4, .text2 = $7->text,
                   .a = ast_only(p, A_MODEL, $8)); }
  | NAME '=' value              { $$ = AST(A_BIND, @$, NAMED($1, @1), .a = $3); }
  | QUANTIZE NAME quants        { $$ = AST(A_QUANTIZE, @$, NAMED($2, @2), .list = $3); }
  | ADAPTER NAME '=' clauses    { $$ = AST(A_ADAPTER, @$, NAMED($2, @2), .list = $4); }
  | TRAIN list                  { $$ = AST(A_TRAIN, @$, .list = $2); }
  | OBJECTIVE NAME block
        { $$ = AST(A_OBJECTIVE, @$, NAMED($2, @2), .list = ast_only(p, A_OBJECTIVE, $3)->list); }
  | OBJECTIVE NAME '(' params ')' block
        { $$ = AST(A_OBJECTIVE, @$, NAMED($2, @2), .params = $4,
                   .list = ast_only(p, A_OBJECTIVE, $6)->list); }
  | DATA block                  { $$ = AST(A_DATA, @$, .list = ast_only(p, A_DATA, $2)->list); }
  | RUN block                   { $$ = AST(A_RUN, @$, .list = ast_only(p, A_RUN, $2)->list); }
  | GRAPH block                 { $$ = AST(A_GRAPH, @$, .list = ast_only(p, A_GRAPH, $2)->list); }
  | TEMPLATE NAME block
        { $$ = AST(A_TEMPLATE, @$, NAMED($2, @2), .list = ast_only(p, A_TEMPLATE, $3)->list); }
  | VARIANT NAME '{' statements '}'
        { $$ = AST(A_VARIANT, @$, NAMED($2, @2), .list = $4); }
  | VARIANT NAME FROM NAME '{' statements '}'
        { $$ = AST(A_VARIANT, @$, NAMED($2, @2), .text2 = $4->text, .list = $6); }
  ;

names:
    %empty                      { $$ = NULL; }
  | list                        { $$ = $1; }
  ;

list:
    name                        { $$ = ast_append(NULL, $1); }
  | list ',' name               { $$ = ast_append($1, $3); }
  ;

name:
    NAME                        { $$ = AST(A_NAME, @$, NAMED($1, @1)); }
  ;

params:
    %empty                      { $$ = NULL; }
  | paramlist                   { $$ = $1; }
  ;

paramlist:
    param                       { $$ = ast_append(NULL, $1); }
  | paramlist ',' param         { $$ = ast_append($1, $3); }
  ;

param:
    NAME '=' value              { $$ = AST(A_BIND, @$, NAMED($1, @1), .a = $3); }
  ;

quants:
    quant                       { $$ = ast_append(NULL, $1); }
  | quants ',' quant            { $$ = ast_append($1, $3); }
  ;

quant:
    method ON selector          { $$ = AST(A_CLAUSE, @$, .a = $1, .b = $3); }
  ;

clauses:
    clause                      { $$ = ast_append(NULL, $1); }
  | clauses ',' clause          { $$ = ast_append($1, $3); }
  ;

clause:
    method ON selector          { $$ = AST(A_CLAUSE, @$, .a = $1, .b = $3); }
  | LOAD STRING                 { $$ = AST(A_CLAUSE, @$, NAMED($2, @2)); }
  ;

method:
    NAME                        { $$ = AST(A_CALL, @$, NAMED($1, @1)); }
  | call                        { $$ = $1; }
  ;

selector:
    name                        { $$ = $1; }
  | STRING                      { $$ = AST(A_STR, @$, NAMED($1, @1)); }
  ;

/* ---- statements of blocks; which block may hold which is ast_only's business ----------------- */

block:
    '{' items '}'               { $$ = AST(A_BLOCK, @$, .list = $2); }
  ;

items:
    %empty                      { $$ = NULL; }
  | items item                  { $$ = ast_append($1, $2); }
  | items error                 { $$ = $1; RESYNC; }
  ;

item:
    NAME '=' value              { $$ = AST(A_BIND, @$, NAMED($1, @1), .a = $3); }
  | NAME '(' names ')' '=' value
        { $$ = AST(A_DEF, @$, NAMED($1, @1), .params = $3, .a = $6); }
  | METRIC NAME '=' value       { $$ = AST(A_METRIC, @$, NAMED($2, @2), .a = $4); }
  | WEIGHT wdecls               { $$ = AST(A_WEIGHT, @$, .list = $2); }
  | FOR NAME IN value RANGE value block
        { $$ = AST(A_FOR, @$, NAMED($2, @2), .a = $4, .b = $6, .c = $7); }
  | if                          { $$ = $1; }
  | RETURN value                { $$ = AST(A_RETURN, @$, .a = $2); }
  | REQUIRE value               { $$ = AST(A_REQUIRE, @$, .a = $2); }
  | REQUIRE value ':' STRING    { $$ = AST(A_REQUIRE, @$, .a = $2, NAMED($4, @4)); }
  ;

if:
    IF value block              { $$ = AST(A_IF, @$, .a = $2, .b = $3); }
  | IF value block ELSE block   { $$ = AST(A_IF, @$, .a = $2, .b = $3, .c = $5); }
  | IF value block ELSE if      { $$ = AST(A_IF, @$, .a = $2, .b = $3, .c = $5); }
  ;

wdecls:
    wdecl                       { $$ = ast_append(NULL, $1); }
  | wdecls ',' wdecl            { $$ = ast_append($1, $3); }
  ;

wdecl:
    NAME '[' values ']' bias
        { $$ = AST(A_WDECL, @$, NAMED($1, @1), .params = $3, .a = $5); }
  | NAME '[' values ']' bias '=' scope
        { $$ = AST(A_WDECL, @$, NAMED($1, @1), .params = $3, .a = $5, .b = $7); }
  | NAME '[' values ']' bias '=' scope WHEN value
        { $$ = AST(A_WDECL, @$, NAMED($1, @1), .params = $3, .a = $5, .b = $7, .c = $9); }
  ;

values:
    value                       { $$ = ast_append(NULL, $1); }
  | values ',' value            { $$ = ast_append($1, $3); }
  ;

bias:
    %empty                      { $$ = NULL; }
  | BIAS '(' value ')'          { $$ = $3; }
  ;

/* ---- values ---------------------------------------------------------------------------------- */

value:
    value '|' value             { $$ = AST(A_ALT, @$, .a = $1, .b = $3); }
  | value "or" value            { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value "and" value           { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value "==" value            { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value "!=" value            { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value "<=" value            { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value ">=" value            { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value '<' value             { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value '>' value             { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value '+' value             { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value '-' value             { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value '*' value             { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value '/' value             { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | value '%' value             { $$ = AST(A_BINARY, @$, .op = $2->text, .a = $1, .b = $3); }
  | '-' value %prec NEGATIVE    { $$ = AST(A_UNARY, @$, .op = $1->text, .a = $2); }
  | "not" value                 { $$ = AST(A_UNARY, @$, .op = $1->text, .a = $2); }
  | IF value THEN value ELSE value
        { $$ = AST(A_COND, @$, .a = $2, .b = $4, .c = $6); }
  | NUMBER
        { $$ = AST(A_NUM, @$, .num = $1->num, .integer = $1->integer, .text = $1->unit,
                   .text2 = $1->text); }
  | STRING                      { $$ = AST(A_STR, @$, NAMED($1, @1)); }
  | TRUE                        { $$ = AST(A_BOOL, @$, NAMED($1, @1), .num = 1); }
  | ON                          { $$ = AST(A_BOOL, @$, NAMED($1, @1), .num = 1); }
  | FALSE                       { $$ = AST(A_BOOL, @$, NAMED($1, @1)); }
  | OFF                         { $$ = AST(A_BOOL, @$, NAMED($1, @1)); }
  | NONE                        { $$ = AST(A_NONE, @$); }
  | path                        { $$ = $1; }
  | call                        { $$ = $1; }
  | call AS scope               { $$ = AST(A_AS, @$, .a = $1, .b = $3); }
  | name FROM STRING            { $$ = AST(A_FROM, @$, .a = $1, NAMED($3, @3)); }
  | name AT START               { $$ = AST(A_AT_START, @$, .a = $1); }
  | '(' value ')'               { $$ = $2; }
  | '[' ']'                     { $$ = AST(A_LIST, @$); }
  | '[' elements ']'            { $$ = AST(A_LIST, @$, .list = $2); }
  | '{' fields '}'              { $$ = AST(A_RECORD, @$, .list = $2); }
  ;

call:
    NAME '(' args ')'           { $$ = AST(A_CALL, @$, NAMED($1, @1), .list = $3); }
  ;

args:
    %empty                      { $$ = NULL; }
  | arglist                     { $$ = $1; }
  ;

arglist:
    arg                         { $$ = ast_append(NULL, $1); }
  | arglist ',' arg             { $$ = ast_append($1, $3); }
  ;

arg:
    value                       { $$ = AST(A_ARG, @$, .a = $1); }
  | NAME '=' value              { $$ = AST(A_ARG, @$, NAMED($1, @1), .a = $3); }
  ;

path:
    name                        { $$ = $1; }
  | path '.' NAME               { $$ = AST(A_PATH, @$, .a = $1, NAMED($3, @3)); }
  | path '.' NUMBER             { $$ = AST(A_PATH, @$, .a = $1, NAMED($3, @3)); } /* llama3.1 */
  ;

scope:
    name                        { $$ = $1; }
  | scope '.' NAME              { $$ = AST(A_PATH, @$, .a = $1, NAMED($3, @3)); }
  | scope '[' value ']'         { $$ = AST(A_INDEX, @$, .a = $1, .b = $3); }
  ;

elements:
    element                     { $$ = ast_append(NULL, $1); }
  | elements ',' element        { $$ = ast_append($1, $3); }
  ;

element:
    value                       { $$ = $1; }
  | STRING WEIGHT value
        { $$ = AST(A_WEIGHTED, @$, .a = AST(A_STR, @1, NAMED($1, @1)), .b = $3); }
  ;

fields:
    %empty                      { $$ = NULL; }
  | fields param                { $$ = ast_append($1, $2); }
  ;

%%

static int yyreport_syntax_error(const yypcontext_t *context, Parse *p) {
    yysymbol_kind_t kinds[YYNTOKENS];
    const char *names[YYNTOKENS];
    int n = yypcontext_expected_tokens(context, kinds, YYNTOKENS);
    for (int i = 0; i < n; i++) names[i] = yysymbol_name(kinds[i]);
    parse_error(p, names, n < 0 ? 0 : n);
    return n < 0 ? n : 0;
}
