/* custom.h: what the files that lower CUSTOM ops share: instances of hand-written kernel texts.
 *
 * Relies on dpoc.h (Emit).  custom.c says what a kernel text may use and which arguments it gets.
 */
#ifndef DPOC_CUSTOM_H
#define DPOC_CUSTOM_H

#include "spec.h"

/* One instance of a kernel file: #defines, the file, #undefs. */
typedef struct Instance {
    Emit *e;
    const char *file; /* "attend": kernels/cpu/attend.h or kernels/cuda/attend.cuh */
    Text defines, undefs;
    int rows_per_block, grid_y, threads, shared_bytes;
} Instance;
Instance instance(Emit *e, const char *file, int rows_per_block, int grid_y, int threads);
void define(Instance *in, const char *name, const char *format, ...) PRINTF(3, 4);
void define_int(Instance *in, const char *name, int64_t value);
void define_type(Instance *in, const char *name, DType t);
void define_ld(Instance *in, const char *name, NodeId id); /* row_ld of a value; nothing for 0 */
int instance_end(Instance *in); /* the kernel's index in the plan; the instance is used up */

Step *kernel_step(Emit *e, int kernel, int nargs, int ndims); /* appended, labelled by its kind */
const Node *operand(const Emit *e, NodeId id, int i);
int64_t row_ld(const Emit *e, NodeId id); /* elements from one step of the first axis to the next */

/* attention.c */
int64_t scratch_attend_bwd(const Unit *u, const Group *group);
void lower_attend(Emit *e, NodeId id);
void lower_attend_bwd(Emit *e, NodeId id);
/* head.c */
int64_t scratch_head(const Unit *u, const Group *group);
void lower_linear_logprob(Emit *e, NodeId id);
void lower_linear_logprob_bwd(Emit *e, NodeId id);
/* quantized.c */
void lower_dequant(Emit *e, NodeId id);
/* The kernel that quantizes f32 values in blocks on the device; its index in the plan. */
int quantize_kernel(Plan *plan, Unit *u, const char *format, int64_t block);

#endif
