/* model_files.h: what stands beside the weights in a Hugging Face model directory: config.json,
 * generation_config.json, the tokenizer's files, the chat template, licences.
 *
 * Knows which files those are and the few keys of config.json that a model with other weights must
 * change; relies on base.h and plan.h (DType).
 */
#ifndef DPOC_MODEL_FILES_H
#define DPOC_MODEL_FILES_H

#include "../plan.h"

/* Copies them from one directory to another.  config.json: its dtype is `dtype`,
 * quantization_config is dropped (the weights are plain numbers now), and with `untied` embedding
 * and output are two weights. */
bool model_files_copy(const char *from, const char *to, DType dtype, bool untied, Err *err);
/* "model_type" of DIR/config.json (arena text), and a whole number of it (0: absent). */
const char *model_type(Arena *arena, const char *dir, Err *err);
int64_t model_number(const char *dir, const char *key);
bool model_flag(const char *dir, const char *key);

#endif
