/* pairs.h: preference pairs (or SFT examples) from JSON and JSON Lines files, tokenized.
 *
 * Dialects are told apart by their keys, record by record, unless options name one (dialect.h):
 *   ids           {"prompt_ids", "chosen_ids", "rejected_ids"}: as they are, nothing added or cut
 *   trl           {"prompt", "chosen", "rejected"}: strings or messages; prompt may be missing
 *   orca          {"system", "question", "chosen", "rejected"}
 *   alpaca        {"instruction", "input", "chosen", "rejected"}
 *   hh            {"chosen", "rejected"} transcripts "\n\nHuman: ..\n\nAssistant: .."
 *   sharegpt      {"conversations": [{from, value}], "chosen": {from, value}, "rejected": {..}}
 *   v1            {"chosen_messages", "rejected_messages"} with typed content parts
 *   openai        {"input": {"messages"}, "preferred_output", "non_preferred_output"}
 *   SFT           {"prompt", "completion"}, {"messages"}, {"text"}: chosen only
 *
 * How text becomes tokens is in PairsOptions; all zero is TRL 1.x's way, but for a bos that is
 * never put twice.  Conversations: prompt = template with the generation prompt, answer = template
 * of the whole behind it.  Strings: prompt and prompt + answer are tokenized; with a template asked
 * for by name strings are a user's and an assistant's message.  Relies on template.h, jansson and
 * zlib.
 */
#ifndef DPOC_PAIRS_H
#define DPOC_PAIRS_H

#include "template.h"

/* Each side is read as prompt + its own tokens; the first `context` of these belong to the prompt:
 * they are read and not scored.  That is how two sides differ in their prompts (one was cut
 * further, or its last token merged with the answer).  prompt + context >= 1 on both sides. */
typedef struct Pair {
    const int32_t *ids;               /* prompt, chosen, rejected one after the other */
    int32_t prompt, chosen, rejected; /* their lengths; rejected 0 in SFT data */
    int32_t context[2];               /* of chosen, of rejected */
    int32_t file, line;               /* Pairs.file index, line from 1, for messages */
} Pair;

/* ---- how text becomes tokens ----------------------------------------------------------------- */

/* bos before strings (a chat template writes its own; `always` looks at its result, too). */
typedef enum PairsBos {
    BOS_ONCE,      /* where the tokenizer adds one, unless the text begins with it */
    BOS_TOKENIZER, /* where the tokenizer adds one, again if the text begins with it (TRL 1.x) */
    BOS_ALWAYS,    /* unless the text begins with it, whatever the tokenizer does (TRL 0.9) */
    BOS_NONE       /* none (TRL 0.24) */
} PairsBos;

typedef enum PairsEos {
    EOS_STRINGS, /* behind strings that do not end with it; a template's end is its own (TRL 1.x) */
    EOS_MISSING, /* behind every answer whose last token it is not (TRL 0.9) */
    EOS_ALWAYS,  /* behind every answer (TRL 0.24) */
    EOS_NONE
} PairsEos;

/* Where an answer begins in the tokens of prompt + answer when a merge crosses the border. */
typedef enum PairsBoundary {
    BOUNDARY_COMMON, /* where they leave the prompt's own tokens, on either side (TRL 1.16) */
    BOUNDARY_COUNT,  /* after as many as the prompt has; the prompt's own stand before (TRL 1.0) */
    BOUNDARY_REPAIR, /* as many as the prompt has, or one less where they differ (TRL 0.9) */
    BOUNDARY_APART   /* strings: prompt and answer are tokenized each by itself (TRL 0.24) */
} PairsBoundary;

/* What is kept of prompt + answer longer than max_length.  keep_start: its first tokens; a prompt
 * without room for an answer is left out.  keep_end: its last ones, each side by itself.
 * keep_answers: the prompt loses its beginning, equally for both; then the answers their ends.
 * prompt_first: the last max_prompt of the prompt, then the first max_length - max_prompt of the
 * answer (TRL 0.9). */
typedef enum PairsTruncate {
    TRUNCATE_KEEP_START,
    TRUNCATE_KEEP_END,
    TRUNCATE_KEEP_ANSWERS,
    TRUNCATE_PROMPT_FIRST
} PairsTruncate;

/* By value, NULL at the end: the words of data's settings. */
extern const char *const pairs_bos_names[];
extern const char *const pairs_eos_names[];
extern const char *const pairs_boundary_names[];
extern const char *const pairs_truncate_names[];

/* Rules that go together, and the lengths that were their defaults: what data.like names. */
typedef struct PairsLike {
    const char *name;
    PairsBos bos;
    PairsEos eos;
    PairsBoundary boundary;
    PairsTruncate truncate;
    int max_prompt, max_length;
} PairsLike;
const PairsLike *pairs_like(const char *name); /* dpoc, trl_1, trl_0_24, trl_0_9; NULL: unknown */

/* What is seen of a long reading: called about twice a second. */
typedef struct PairsWatch PairsWatch;
struct PairsWatch {
    void (*show)(PairsWatch *watch, const char *path, int64_t records, double bytes, double share);
};

typedef struct PairsOptions {
    bool sft;                               /* only the chosen side is wanted; pairs are accepted */
    int max_prompt, max_answer, max_length; /* 0: no limit */
    PairsBos bos;
    PairsEos eos;
    PairsBoundary boundary;
    PairsTruncate truncate;
    const char *dialect;        /* a dialect's word above; NULL or "auto": by the keys */
    int64_t limit;              /* keep at most this many; 0: all */
    const char *const *columns; /* numeric columns wanted: pair.NAME; each line must have them */
    int ncolumns;
    /* column map: other keys for these, also dotted paths (`input.text`); NULL: as they are */
    const char *prompt_key, *chosen_key, *rejected_key, *system_key;
    PairsWatch *watch; /* or NULL */
} PairsOptions;

/* ---- what was read --------------------------------------------------------------------------- */

typedef struct PairsCounts {
    int64_t read, kept;       /* records in the file; pairs made of them */
    int64_t cut_prompt, cut;  /* kept, but prompt or answers lost tokens */
    int64_t too_long;         /* left out: the prompt leaves no room */
    int64_t empty, differing; /* left out: an empty answer; two different prompts */
    int64_t identical;        /* kept: chosen and rejected are the same */
    int64_t repeated;         /* kept: the same as an earlier pair */
    int64_t repaired;         /* records with invalid UTF-8, read with U+FFFD */
    int64_t boundary;         /* a merge crosses the border of prompt and answer */
    int64_t longest;          /* tokens of prompt + answer before cutting */
} PairsCounts;

enum { PAIRS_DIALECTS = 16, PAIRS_SHOWN = 5 };

typedef struct PairsFile {
    const char *path;
    int64_t dialect[PAIRS_DIALECTS]; /* records of each (dialect_names) */
    PairsCounts counts;
    double seconds, bytes; /* reading took; of text, decompressed */
} PairsFile;

typedef struct PairsWarning {
    const char *name; /* "identical": [-Widentical] */
    int64_t count;
    const char *line[PAIRS_SHOWN]; /* the first: "train.jsonl:117: \"rejected\" is empty" */
    int nline;
} PairsWarning;

typedef struct Pairs {
    Arena *arena; /* owns everything */
    Pair *pair;
    int64_t n;
    PairsFile *file;
    int nfiles;
    const char **columns;
    int ncolumns;
    float *column;      /* [n][ncolumns] */
    PairsCounts counts; /* of all files */
    PairsWarning *warning;
    int nwarnings;
} Pairs;

static inline const int32_t *pair_chosen(const Pair *p) {
    return p->ids + p->prompt;
}
static inline const int32_t *pair_rejected(const Pair *p) {
    return p->ids + p->prompt + p->chosen;
}
/* Scored tokens of a side (0 chosen, 1 rejected). */
static inline int32_t pair_scored(const Pair *p, int side) {
    return (side ? p->rejected : p->chosen) - p->context[side];
}

/* Reads files one after the other (`template`'s tokenizer may be NULL when all are ids).  NULL and
 * err (exit 5: file, line, key; the first five of several and their number) when a file can't be
 * read, a record is malformed, or nothing usable is left. */
Pairs *pairs_read(const char *const *paths, int npaths, const PairsOptions *options,
                  const Template *template, Err *err);
void pairs_free(Pairs *pairs); /* NULL is allowed */
/* Of its tokens and what of them is scored: equal pairs have equal keys. */
uint64_t pair_key(const Pair *pair);
/* "train.jsonl:117" */
char *pair_where(Arena *arena, const Pairs *pairs, const Pair *pair);

/* ---- pairs_summary.c ------------------------------------------------------------------------- */

typedef struct PairsLengths { /* of one part of the kept pairs, after cutting */
    int64_t median, p95, max;
} PairsLengths;
/* part: 0 prompt, 1 chosen, 2 rejected; file -1: of all. */
PairsLengths pairs_lengths(const Pairs *pairs, int file, int part);
/* "TRL strings", or "1000 TRL strings, 2 ShareGPT" */
char *pairs_dialects(Arena *arena, const PairsFile *file);
/* For people, a few lines for each file, and as a JSON object (jansson; the caller's). */
void pairs_summary_text(const Pairs *pairs, const char *what, FILE *out);
struct json_t *pairs_summary_json(const Pairs *pairs);

#endif
