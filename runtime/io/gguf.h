/* gguf.h: LoRA adapters as llama.cpp reads them, a GGUF file (version 3).
 *
 * Relies on adapter.h and model_files.h; knows llama.cpp's names of a model's tensors.
 */
#ifndef DPOC_GGUF_H
#define DPOC_GGUF_H

#include "adapter.h"

/* Writes the adapter of a PEFT directory; `base` is the model's directory, whose config.json names
 * the architecture and the heads.  dtype f32, f16 or bf16.  What llama.cpp cannot do (DoRA, adapted
 * embeddings, other architectures) is refused by name. */
bool gguf_lora_write(const char *adapter, const char *base, const char *path, DType dtype,
                     Err *err);

#endif
