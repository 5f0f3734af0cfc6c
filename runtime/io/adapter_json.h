/* adapter_json.h: what the files about adapters share: reading their JSON, PEFT's matching. */
#ifndef DPOC_ADAPTER_JSON_H
#define DPOC_ADAPTER_JSON_H

#include "adapter.h"

#include <jansson.h>

const char *adapter_string(Arena *arena, const json_t *object, const char *key); /* or NULL */
double adapter_number(const json_t *object, const char *key, double absent);
/* A list of strings (nothing: none); false when it holds anything else. */
bool adapter_strings(Arena *arena, const json_t *list, const char ***out, int *n);
/* {"key": number, ..}, in the order of the file. */
bool adapter_patterns(Arena *arena, const json_t *object, AdapterPattern **out, int *n);

/* PEFT's rule for the keys of rank_pattern and alpha_pattern: a regular expression that is the
 * whole path or follows a dot. */
bool adapter_key_fits(const char *key, const char *module);

#endif
