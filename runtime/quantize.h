/* quantize.h: the quantized weight formats: how numbers become codes, and what the codes mean.
 *
 * A quantized tensor of n elements (row-major, blocks run across rows) is kept as parts, each in a
 * buffer of its own:
 *   codes    u8: nf4, fp4: element 2j in the high nibble of byte j, 2j+1 in the low one; int8: one
 *   byte
 *   absmax   f32 [blocks], the largest magnitude of each block of `block` elements;
 *            u8 [blocks] codes of the dynamic map when double quantized ("nested")
 *   nested only: absmax2 f32 [ceil(blocks/256)], offset f32 [1], map f32 [256]
 * Values: absmax = map[code] * absmax2[block/256] + offset;  nf4, fp4: lut[code] * absmax;
 * int8: (signed code) * (absmax / 127).  All in IEEE fp32, as bitsandbytes does on the host.
 */
#ifndef DPOC_QUANTIZE_H
#define DPOC_QUANTIZE_H

#include "plan.h"

typedef enum QuantFormat { QUANT_NF4, QUANT_FP4, QUANT_INT8, NQUANT } QuantFormat;
typedef enum QuantPiece {
    QUANT_CODES,
    QUANT_ABSMAX,
    QUANT_ABSMAX2,
    QUANT_OFFSET,
    QUANT_MAP,
    NQUANTPIECE
} QuantPiece;
typedef struct QuantPart {
    QuantFormat format;
    QuantPiece piece;
} QuantPart;

#define QUANT_GROUP 256 /* absmax codes per absmax2 */

extern const char *const quant_format_names[NQUANT]; /* "nf4", "fp4", "int8" */
bool quant_format(const char *name, QuantFormat *format);
bool quant_part(const char *transform, QuantPart *part); /* "nf4.absmax" */
DType quant_part_dtype(QuantPart part, bool nested);
/* Elements and bytes of a part of an n-element tensor; 0 when the format has no such part. */
int64_t quant_part_count(QuantPart part, int64_t n, int64_t block, bool nested);
int64_t quant_part_bytes(QuantPart part, int64_t n, int64_t block, bool nested);

const float *quant_lut(QuantFormat format); /* 16 values; NULL for int8 */
/* 256 values of the dynamic map, ascending: signed, from -0.993 to 1, or from 0 to 1. */
const float *quant_map(bool is_signed);

/* n elements, whole blocks but for the tensor's last; codes: quant_part_count bytes; absmax: per
 * block. */
void quant_blocks(QuantFormat format, const float *x, int64_t n, int64_t block, uint8_t *codes,
                  float *absmax);
/* Second quantization of n absmax values, whole groups of 256 but for the tensor's last. */
void quant_nested(const float *absmax, int64_t n, float offset, uint8_t *codes, float *absmax2);

/* Back to numbers: elements begin .. begin+n of a tensor.  `codes` starts with the byte that holds
 * element `begin`, absmax with the tensor's first block. */
void dequant_blocks(QuantFormat format, const uint8_t *codes, const float *absmax, int64_t begin,
                    int64_t n, int64_t block, float *x);
/* The first level's absmax; `map`: 256 values, quant_map's or those that came with a checkpoint. */
void dequant_nested(const uint8_t *codes, const float *absmax2, float offset, const float *map,
                    int64_t n, float *absmax);

#endif
