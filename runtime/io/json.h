/* json.h: JSON of others' files, whose integers may be larger than 64 bits. */
#ifndef DPOC_RUNTIME_IO_JSON_H
#define DPOC_RUNTIME_IO_JSON_H

#include <jansson.h>

/* As json_loadb, but an integer beyond 64 bits is no error: it becomes a real.  (In such a text 1.0
 * is an integer, too.)  Transformers writes 1000000000000000019884624838656 for "no limit" into
 * every other tokenizer_config.json, Llama-3's too; data sets have ids up to 2^64. */
json_t *json_parse(const char *text, size_t len, size_t flags, json_error_t *e);

#endif
