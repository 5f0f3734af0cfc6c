/* tokenjson.h: from a tokenizer's files to its tables; used by tokenizer.c only. */
#ifndef DPOC_TOKENJSON_H
#define DPOC_TOKENJSON_H

#include "bpe.h"
#include <jansson.h>

/* A whole JSON file; NULL and err (exit 5, file:line) when it can't be read or parsed. */
json_t *json_file(const char *path, Err *err);
/* Fills t->bpe from a parsed tokenizer.json; sets bos, adds_bos, adds_eos as its post-processor
 * says. */
bool tokenizer_parse(Tokenizer *t, const json_t *root, Err *err);
/* The same from t->path in tiktoken's form: lines "base64 rank", and Llama-3's special tokens. */
bool tiktoken_parse(Tokenizer *t, Err *err);

/* Appends what an entry's name stands for; false when the byte alphabet has no such character (then
 * nothing can ever match it). */
bool entry_bytes(const Bpe *b, const char *name, size_t len, Text *out);
/* Appends a byte as a character of the byte alphabet. */
void alphabet_add(unsigned char byte, Text *out);
/* The byte of "<0xNN>", or -1. */
int byte_token(const char *name);
/* Adds a pre-tokenizer step that isolates the matches of a pattern. */
bool add_regex(Tokenizer *t, const char *pattern, SplitKind kind, bool invert, Err *err);

#endif
