/* pairs.h: preference pairs (or SFT examples) from JSON and JSON Lines files, tokenized.
 *
 * Dialects are told apart by their keys, line by line:
 *   ids           {"prompt_ids", "chosen_ids", "rejected_ids"}: as they are, nothing added or cut
 *   TRL           {"prompt", "chosen", "rejected"}: strings or messages; prompt may be missing
 *   orca          {"system", "question", "chosen", "rejected"}
 *   hh            {"chosen", "rejected"} transcripts "\n\nHuman: ..\n\nAssistant: .."
 *   ShareGPT      {"conversations": [{from, value}], "chosen": {from, value}, "rejected": {..}}
 *   v1            {"chosen_messages", "rejected_messages"} with typed content parts
 *   OpenAI        {"input": {"messages"}, "preferred_output", "non_preferred_output"}
 *   SFT           {"prompt", "completion"}, {"messages"}, {"text"}: chosen only
 *
 * Tokens follow TRL 1.x.  Conversations: prompt = template with the generation prompt, answer =
 * template of the whole, cut at the prompt's length.  Strings: eos is appended if missing, prompt
 * and prompt + answer are tokenized (bos once), cut at the prompt's length; with a template asked
 * for by name strings are a user's and an assistant's message.  Relies on template.h, jansson and
 * zlib.
 */
#ifndef DPOC_PAIRS_H
#define DPOC_PAIRS_H

#include "template.h"

typedef struct Pair {
    const int32_t *ids;               /* prompt, chosen, rejected one after the other */
    int32_t prompt, chosen, rejected; /* their lengths; rejected 0 in SFT data */
    int32_t file, line;               /* Pairs.files index, line from 1, for messages */
} Pair;

/* keep_start: the first max_length tokens of prompt + answer; a pair whose prompt leaves no room
 * for an answer is dropped (TRL).  keep_end: the prompt first loses its beginning, equally for both
 * answers; then as above. */
typedef enum Truncate { TRUNCATE_KEEP_START, TRUNCATE_KEEP_END } Truncate;

typedef struct PairsOptions {
    bool sft;                   /* only the chosen side is wanted; pairs are accepted as well */
    int max_prompt, max_length; /* 0: no limit */
    Truncate truncate;
    int64_t limit;              /* keep at most this many; 0: all */
    const char *const *columns; /* numeric columns wanted: pair.NAME; each line must have them */
    int ncolumns;
    /* column map: other names for these keys; NULL: as they are */
    const char *prompt_key, *chosen_key, *rejected_key;
} PairsOptions;

typedef struct PairsCounts {
    int64_t read;             /* records in the files */
    int64_t cut_prompt, cut;  /* prompts that lost their beginning; pairs that lost their end */
    int64_t too_long;         /* left out: the prompt leaves no room */
    int64_t empty, differing; /* left out: an empty answer; two different prompts */
    int64_t identical;        /* kept: chosen and rejected are the same */
    int64_t repaired;         /* records with invalid UTF-8, read with U+FFFD */
    int64_t boundary;         /* the prompt's tokens are not a prefix of prompt + answer's */
} PairsCounts;

typedef struct Pairs {
    Arena *arena; /* owns everything */
    Pair *pair;
    int64_t n;
    const char **files;
    int nfiles;
    const char **columns;
    int ncolumns;
    float *column; /* [n][ncolumns] */
    PairsCounts counts;
    /* Finished lines: "train.jsonl:117: \"rejected\" is empty: pair left out"; at most five of a
     * kind, then "... and 12 more". */
    const char **warnings;
    int nwarnings;
} Pairs;

static inline const int32_t *pair_chosen(const Pair *p) {
    return p->ids + p->prompt;
}
static inline const int32_t *pair_rejected(const Pair *p) {
    return p->ids + p->prompt + p->chosen;
}

/* Reads files one after the other (`template`'s tokenizer may be NULL when all are ids).  NULL and
 * err (exit 5: file, line, key; the first five of several and their number) when a file can't be
 * read, a record is malformed, or nothing usable is left. */
Pairs *pairs_read(const char *const *paths, int npaths, const PairsOptions *options,
                  const Template *template, Err *err);
void pairs_free(Pairs *pairs); /* NULL is allowed */
/* "train.jsonl:117" */
char *pair_where(Arena *arena, const Pairs *pairs, const Pair *pair);

#endif
