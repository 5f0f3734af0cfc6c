/* pairs_tokens.h: the tokens of one example, and how too many of them are cut: what PairsOptions
 * say of bos, eos, boundary and truncation.  Used by pairs.c alone. */
#ifndef DPOC_PAIRS_TOKENS_H
#define DPOC_PAIRS_TOKENS_H

#include "dialect.h"

typedef struct Side { /* prompt and answer of one side */
    Ids ids;
    int64_t context; /* the first of them: read, not scored */
} Side;

typedef struct PairTokens {
    const PairsOptions *options;
    const Template *template;
    Side side[2]; /* chosen, rejected */
    int sides;    /* 2; 1 in SFT data */
    /* what was met */
    bool merged;          /* a merge crosses the border of prompt and answer */
    bool second_bos;      /* a text begins with bos and has got another */
    bool cut_prompt, cut; /* by tokens_cut */
    Ids prompt;           /* scratch */
} PairTokens;

/* Fills side[]; false and err (exit 5: the template can't express this conversation). */
bool tokens_encode(PairTokens *t, const Example *e, Err *err);
/* Cuts both sides to the lengths allowed; false when no answer would be left. */
bool tokens_cut(PairTokens *t);
void tokens_free(PairTokens *t);

#endif
