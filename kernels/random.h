/* random.h: counter-based random numbers: a value depends on its key alone, never on what was drawn
 * before, so that dropout is the same under any packing, recompute or resume.
 *
 * Philox 4x32 with 7 rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2,
 * 3", SC 2011): counter = (row key 0, row key 1, stream, column), key = (seed, step).  The first of
 * the four output words is used.  One text for C, CUDA and the evaluator.  Relies on types.h.
 */
#ifndef KERNEL_RANDOM_H
#define KERNEL_RANDOM_H

#include "types.h"

/* One round: multiplies two words, exchanges halves, mixes in the key. */
INLINE void philox_round(uint32_t c[4], uint32_t k0, uint32_t k1) {
    const uint64_t a = (uint64_t)0xd2511f53u * c[0];
    const uint64_t b = (uint64_t)0xcd9e8d57u * c[2];
    const uint32_t c1 = c[1], c3 = c[3];
    c[0] = (uint32_t)(b >> 32) ^ c1 ^ k0;
    c[1] = (uint32_t)b;
    c[2] = (uint32_t)(a >> 32) ^ c3 ^ k1;
    c[3] = (uint32_t)a;
}

INLINE void philox_7(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (uint32_t i = 0; i < 7; i++) philox_round(c, k0 + i * 0x9e3779b9u, k1 + i * 0xbb67ae85u);
}

/* Uniform in [0, 1): a multiple of 2^-24. */
INLINE float random_uniform(int32_t row0, int32_t row1, int32_t seed0, int32_t seed1,
                            int64_t stream, int64_t column) {
    uint32_t c[4] = {(uint32_t)row0, (uint32_t)row1, (uint32_t)stream, (uint32_t)column};
    philox_7(c, (uint32_t)seed0, (uint32_t)seed1);
    return (float)(int32_t)(c[0] >> 8) * 0x1p-24f;
}

#endif
