/* tokenizer.h: Hugging Face's tokenizer.json: byte-level BPE and byte-fallback BPE.
 *
 * The file is followed as it stands.  transformers 5 does otherwise for a Llama-2 style file whose
 * class is LlamaTokenizer with "legacy": false: no "▁" before text that follows a special token.
 *
 * Relies on jansson (JSON) and PCRE2 (the split patterns).  Same ids as the original implementation
 * on valid UTF-8; invalid bytes count as U+FFFD.  After opening nothing allocates but the result,
 * and time is linear in the text but for one logarithm (a heap), whatever the text.
 */
#ifndef DPOC_TOKENIZER_H
#define DPOC_TOKENIZER_H

#include "../base.h"

typedef struct Ids { /* token ids that grow; start as {0} */
    int32_t *v;
    int64_t n, cap;
} Ids;
void ids_push(Ids *ids, int32_t id);
void ids_free(Ids *ids);

typedef struct Tokenizer {
    int size;         /* ids are 0 .. size-1; a model may have more rows */
    int32_t bos, eos; /* of tokenizer_config.json or its older companions; -1: none */
    bool adds_bos;    /* the file's post-processor puts bos before a text */
    bool adds_eos;    /* ... and eos behind it */
    const char *path; /* of the tokenizer.json */
    struct Bpe *bpe;  /* private */
} Tokenizer;

/* Reads DIR/tokenizer.json and DIR/tokenizer_config.json (special_tokens_map.json, config.json for
 * what it lacks).  NULL and err (exit 5, with the key that is wrong) when missing, malformed or of
 * a kind not understood. */
Tokenizer *tokenizer_open(const char *dir, Err *err);
void tokenizer_close(Tokenizer *t); /* NULL is allowed */

/* Appends the ids of a text, without bos or eos.  With `special` the names of special tokens in the
 * text stand for those tokens; without, they are text like any other (what a user wrote must not
 * become control tokens).  Added tokens that are not special are matched either way.
 * One Tokenizer may be used by one thread at a time. */
void tokenizer_encode(Tokenizer *t, const char *text, size_t len, bool special, Ids *out);

/* The same, special tokens off, for a text that follows something: what a tokenizer puts before the
 * first word of a text (Metaspace, prepend_scheme first) is left out. */
void tokenizer_encode_more(Tokenizer *t, const char *text, size_t len, Ids *out);

/* Appends the text of ids.  Invalid UTF-8 becomes U+FFFD; ids out of range are skipped, and so are
 * special tokens if `skip_special`. */
void tokenizer_decode(const Tokenizer *t, const int32_t *ids, int64_t n, bool skip_special,
                      Text *out);
/* The id of a vocabulary entry or added token by its exact text ("<|eot_id|>"), or -1. */
int32_t tokenizer_id(const Tokenizer *t, const char *token);
/* One token's name as the file spells it: "Ġhello", "<|eot_id|>"; NULL when the id has none. */
const char *tokenizer_piece(const Tokenizer *t, int32_t id);
/* What it stands for, `len` bytes (of a character perhaps only some); NULL when the id has none. */
const char *tokenizer_bytes(const Tokenizer *t, int32_t id, size_t *len);
bool tokenizer_is_special(const Tokenizer *t, int32_t id);
/* The id of an added token by its exact text, or -1. */
int32_t tokenizer_added(const Tokenizer *t, const char *name);
/* Names of added tokens, at most `max`; returns how many. */
int tokenizer_added_names(const Tokenizer *t, const char **out, int max);
/* The special token whose name is at the beginning of a text, and its length; or -1. */
int32_t tokenizer_special_at(const Tokenizer *t, const char *text, size_t len, size_t *n);
/* Whether an added token takes the white space before or behind it. */
void tokenizer_strips(const Tokenizer *t, int32_t id, bool *left, bool *right);

#endif
