/* custom.c: how each CUSTOM op becomes steps: hand-written kernels and, for the head, GEMMs in a loop.
 *
 * A custom kernel's text is a few #defines followed by a file of kernels/ and the #undefs.  On the
 * CPU the file is kernels/cpu/NAME.h, on CUDA kernels/cuda/NAME.cuh.  Every file may use
 *     SYMBOL     the function's name:  void SYMBOL(void *const *p, const int64_t *n)
 *     FN(name)   a name for helpers of this instance: SYMBOL_name (several instances share a module)
 * and the defines below.  T_* is one word: f32 bf16 i32 u8 (the prelude knows these types).
 * LD_* is the number of elements between rows (first-axis steps) of an operand.
 * Arguments p in the order given; [x] may be NULL (not wanted).  n[0] is the parallel count.
 *
 *   file          p                                        n            defines
 *   take          x, index, y                              R, M         T_X COLS LD_X LD_Y
 *       y[r] = index[r] < 0 ? 0 : x[index[r]], rows of COLS elements, any type (bits are moved)
 *   put           x, index, y                              M, R         COLS LD_X LD_Y
 *       y[m] = sum of x[r] with index[r] == m, r ascending, starting from 0 (f32)
 *   sort          x, [y], [source i32]                     P
 *       ascending, stable, NaN last; y[i] = x[source[i]]
 *   attend        q, k, v, segs, out, [lse]                T, M, G      T_Q HEADS KV_HEADS HEAD_DIM SCALE
 *       lse f32 [T,HEADS]; out rounded to T_Q                           WINDOW (0: none) LD_Q LD_K LD_V LD_O
 *   attend_delta  out, dout, delta                         T            T_Q T_DO HEADS HEAD_DIM LD_O LD_DO
 *       delta f32 [T,HEADS] = sum over the head of out * dout
 *   attend_dq     q, k, v, lse, dout, segs, delta, dq      T, M, G      as attend, and T_DO T_DQ LD_DO LD_DQ
 *   attend_dkv    q, k, v, lse, dout, segs, ranges, delta, [dk], [dv]
 *                                                          M, T, G, K   as attend, and T_DO T_DK LD_DO LD_DK LD_DV
 *   logprob_stats logits, target, [logp], [lse], [mean], [entropy], [hit], [logsum_p2]
 *                                                          C            VOCAB SCALE
 *       logits f32 [C,VOCAB] before SCALE; all results f32 [C] (ops.def, linear_logprob)
 *   logprob_grad  logits, target, lse, c, d                C            VOCAB SCALE T_D LD_D
 *       d[r][j] = c[r] * SCALE * ((j == target[r]) - exp(SCALE * logits[r][j] - lse[r])), 0 where
 *       target is -1, rounded to T_D.  d lies in the same memory as logits (row r begins at the same
 *       byte: LD_D = VOCAB * 4 / sizeof(T_D)): read element j before writing any element >= j.
 *   dequant       codes, absmax, y                         blocks, elements    T_Y BLOCK NESTED, and one of
 *                 codes, absmax u8, absmax2, offset, map, y     (NESTED 1)     NF4 FP4 INT8
 *       elements count row-major over the whole matrix; element 2j stands in the high nibble
 *
 * Relies on plan.c/emit.c (Emit) and embedded kernel files.  Promises: no instance's text depends on
 * node ids or layers, so equal shapes share one kernel.
 */
#include "dpoc.h"
