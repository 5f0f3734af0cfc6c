/* safetensors.h: one safetensors file, read strictly and written as Hugging Face writes it.
 *
 * Reading checks every rule of the format (sizes without overflow, tensors that tile the data, no
 * duplicate names) before any tensor is seen; tensor bytes are read on demand with pread, so a file
 * larger than memory is fine.  Relies on base.h and plan.h (DType); knows nothing of models.
 */
#ifndef DPOC_SAFETENSORS_H
#define DPOC_SAFETENSORS_H

#include "../plan.h"

/* Every element type of the format, in the order of its authors' enum: X(name, bits).  The
 * writer puts later ones first, so that each tensor stays aligned to its own element size. */
#define SAFE_TYPES(X)                                                                              \
    X(BOOL, 8)                                                                                     \
    X(F4, 4)                                                                                       \
    X(F6_E2M3, 6)                                                                                  \
    X(F6_E3M2, 6)                                                                                  \
    X(U8, 8)                                                                                       \
    X(I8, 8)                                                                                       \
    X(F8_E5M2, 8)                                                                                  \
    X(F8_E4M3, 8)                                                                                  \
    X(F8_E5M2FNUZ, 8)                                                                              \
    X(F8_E4M3FNUZ, 8)                                                                              \
    X(F8_E8M0, 8)                                                                                  \
    X(I16, 16)                                                                                     \
    X(U16, 16)                                                                                     \
    X(F16, 16)                                                                                     \
    X(BF16, 16) X(I32, 32) X(U32, 32) X(F32, 32) X(C64, 64) X(F64, 64) X(I64, 64) X(U64, 64)
typedef enum SafeType {
#define SAFE_TYPE(name, bits) SAFE_##name,
    SAFE_TYPES(SAFE_TYPE)
#undef SAFE_TYPE
        NSAFETYPE
} SafeType;
const char *safe_type_name(SafeType type); /* "BF16" */
int safe_type_bits(SafeType type);
SafeType safe_type_of(DType type); /* of f32, bf16, f16 */

#define SAFE_RANK 8
typedef struct SafeFile SafeFile;
typedef struct SafeTensor {
    const char *name;
    SafeType type;
    int rank; /* 0: a scalar */
    int64_t shape[SAFE_RANK];
    int64_t count;        /* elements */
    int64_t begin, bytes; /* in the file's data, that is after the header */
    SafeFile *file;
} SafeTensor;

/* NULL and err (exit 5) when the file can't be read or breaks a rule; the message names file and
 * tensor. */
SafeFile *safe_open(const char *path, Err *err);
void safe_close(SafeFile *file); /* NULL is allowed */
const char *safe_path(const SafeFile *file);
int safe_count(const SafeFile *file);
const SafeTensor *safe_tensor(const SafeFile *file, int i);          /* in the order of the data */
const SafeTensor *safe_find(const SafeFile *file, const char *name); /* NULL: not there */
const char *safe_metadata(const SafeFile *file, const char *key);    /* NULL: not there */

/* Bytes begin .. begin+n of a tensor.  The file may have shrunk since it was opened: then false. */
bool safe_read(const SafeTensor *tensor, int64_t begin, int64_t n, void *out, Err *err);
/* Says that such bytes, as far as they are in the tensor, will be read soon. */
void safe_expect(const SafeTensor *tensor, int64_t begin, int64_t n);
/* Elements begin .. begin+n of an F32, F16 or BF16 tensor as floats; any other type is an error
 * that names tensor and type. */
bool safe_read_f32(const SafeTensor *tensor, int64_t begin, int64_t n, float *out, Err *err);
/* "BF16 [128256, 4096]" for messages. */
char *safe_describe(Arena *arena, const SafeTensor *tensor);

/* ---- writing
 * ------------------------------------------------------------------------------------------
 * safe_create writes the header (tensors ordered by type, widest first, then by name; padded to a
 * multiple of 8) under a temporary name; safe_put fills tensors in any order, in pieces;
 * safe_commit checks that every byte was put, syncs and renames.  `tensors` needs name, type, rank
 * and shape. */
typedef struct SafeWriter SafeWriter;
/* metadata: key, value, key, value, ..., NULL; {"format", "pt", NULL} is what readers expect. */
SafeWriter *safe_create(const char *path, const SafeTensor *tensors, int n,
                        const char *const *metadata, Err *err);
/* Bytes of tensor number `i` (as given to safe_create) from its byte `begin` on. */
bool safe_put(SafeWriter *w, int i, int64_t begin, const void *data, int64_t bytes, Err *err);
bool safe_commit(SafeWriter *w, Err *err); /* frees w, also on failure */
void safe_abort(SafeWriter *w);            /* removes the temporary file and frees w */

#endif
