/* dialect.h: one JSON record of preference data, whatever its dialect, as one Example. */
#ifndef DPOC_DIALECT_H
#define DPOC_DIALECT_H

#include "pairs.h"
#include <jansson.h>

typedef struct Turns {
    Message *m;
    int n;
} Turns;

typedef struct TextSpan {
    const char *s;
    size_t len;
} TextSpan;

/* Finer than the words that name one: what the summary of a file says. */
typedef enum Dialect {
    DIALECT_IDS,
    DIALECT_TRL,
    DIALECT_TRL_IMPLICIT,
    DIALECT_TRL_CHAT,
    DIALECT_TRL_CHAT_IMPLICIT,
    DIALECT_TRL_MIXED,
    DIALECT_ORCA,
    DIALECT_ALPACA,
    DIALECT_HH,
    DIALECT_SHAREGPT,
    DIALECT_V1,
    DIALECT_OPENAI,
    DIALECT_COMPLETION,
    DIALECT_MESSAGES,
    DIALECT_TEXT,
    NDIALECT
} Dialect;
extern const char *const dialect_names[NDIALECT]; /* for people */

typedef enum ExampleKind { EXAMPLE_IDS, EXAMPLE_TEXT, EXAMPLE_CHAT } ExampleKind;
enum { PROMPT, CHOSEN, REJECTED, NPART };

/* What a record holds.  A part that is not there (rejected in SFT data) is empty: json NULL, s
 * NULL, n 0. */
typedef struct Example {
    ExampleKind kind;
    Dialect dialect;
    bool unread;              /* a column that changes what TRL makes of it: "tools" */
    const json_t *ids[NPART]; /* EXAMPLE_IDS */
    TextSpan text[NPART];     /* EXAMPLE_TEXT */
    Turns turns[NPART];       /* EXAMPLE_CHAT */
} Example;

typedef enum Verdict {
    GOOD,
    MALFORMED, /* the record is not of any dialect: an error */
    EMPTY,     /* an answer is empty: the pair is left out */
    DIFFERING  /* the two sides have different prompts: left out */
} Verdict;

/* Texts point into `record` or `arena`.  With a verdict other than GOOD *why is a message in arena:
 * "\"rejected\" is missing". */
Verdict dialect_read(Arena *arena, const json_t *record, const PairsOptions *options,
                     const Template *template, Example *out, const char **why);

#endif
