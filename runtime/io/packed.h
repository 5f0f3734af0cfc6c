/* packed.h: tensors that bitsandbytes quantized, as they stand in a checkpoint.
 *
 * Linear4bit writes P.weight (bytes of codes in whatever type), P.weight.absmax, .quant_map,
 * .quant_state.bitsandbytes__nf4 (or fp4: JSON in a u8 tensor) and, double quantized,
 * .nested_absmax and .nested_quant_map; Linear8bitLt writes P.weight (int8) and P.SCB, the largest
 * magnitude of each row.  Both are quantize.h's formats: an int8 row is a block.
 * Relies on checkpoint.h and quantize.h.
 */
#ifndef DPOC_PACKED_H
#define DPOC_PACKED_H

#include "../quantize.h"
#include "checkpoint.h"

typedef struct Packed {
    QuantFormat format;
    int64_t block;
    bool nested;
    int rank; /* of the numbers, not of the tensor that holds the codes */
    int64_t shape[2];
    float offset;
    const SafeTensor *codes, *absmax;
    const SafeTensor *absmax2, *map; /* nested only */
} Packed;

/* Whether the tensor holds codes of numbers. */
bool packed_is(const Checkpoint *c, const SafeTensor *t);
/* Whether a name is that of a part of such a tensor: P.weight.absmax, P.SCB, ..; P.bias is none. */
bool packed_part(const Checkpoint *c, const char *name);
/* What they mean; false and err (exit 5) where a part is missing, does not fit the shape, or has a
 * table that is not ours. */
bool packed_read(const Checkpoint *c, const SafeTensor *t, Packed *out, Err *err);
/* "nf4(block = 64, double = true)", as it is written in a .dpo file. */
char *packed_describe(Arena *arena, QuantFormat format, int64_t block, bool nested);

#endif
