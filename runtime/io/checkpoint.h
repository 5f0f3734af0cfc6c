/* checkpoint.h: the tensors of a model or adapter directory, in one file or in shards.
 *
 * Relies on safetensors.h.  Knows how directories are laid out (STEM.safetensors, or
 * STEM.safetensors.index.json and its shards), nothing of models.
 */
#ifndef DPOC_CHECKPOINT_H
#define DPOC_CHECKPOINT_H

#include "safetensors.h"

typedef struct Checkpoint Checkpoint;

/* `stem` is "model", or "adapter_model" for a PEFT directory.  Headers are read and checked, no
 * data. NULL and err (exit 5) when nothing usable is there; the message says which files were seen
 * and what to do about them. */
Checkpoint *checkpoint_open(const char *dir, const char *stem, Err *err);
void checkpoint_close(Checkpoint *c); /* NULL is allowed */
const char *checkpoint_dir(const Checkpoint *c);

/* The tensor of that name, or of its alias (tied weights are stored under either name; alias may be
 * NULL).  NULL when neither is there. Its bytes: safe_read, safe_read_f32. */
const SafeTensor *checkpoint_find(const Checkpoint *c, const char *name, const char *alias);
/* What a person is told about a missing tensor: the directory, the file(s) looked at, the closest
 * name. */
bool checkpoint_missing(const Checkpoint *c, const char *name, Err *err);

/* What tells one set of weights from another without reading all of it: names, types and shapes of
 * all tensors, and 4 KiB from the beginning, middle and end of each. */
bool checkpoint_hash(const Checkpoint *c, Hash128 *hash, Err *err);

int checkpoint_count(const Checkpoint *c);
const SafeTensor *checkpoint_tensor(const Checkpoint *c, int i); /* all shards, sorted by name */
/* Something odd but harmless about the directory ("shard .. holds 3 tensors the index lacks"), or
 * NULL. */
const char *checkpoint_warning(const Checkpoint *c);

#endif
