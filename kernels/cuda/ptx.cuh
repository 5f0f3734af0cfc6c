/* ptx.cuh: the instructions that CUDA C++ has no word for: tensor cores, matrix loads from shared
 * memory, asynchronous copies.  No other file holds PTX.
 *
 * Relies on types.h and sm_80.  Names of the PTX ISA's sections stand beside each.  A simulated
 * device defines CUDASIM and brings its own version of each name, read from the PTX ISA by itself.
 *
 * Shared memory is named by a shared_t, the address inside the block's window: 32 bits, so that
 * addresses cost one register.
 */
#ifndef CUDASIM
typedef uint32_t shared_t;

INLINE shared_t shared_address(const void *p) {
    return (shared_t)__cvta_generic_to_shared(p);
}

/* c += a b.  a: 16 x 16, b: 16 x 8, c: 16 x 8; lane l is row l / 4 ("group") and column pair l % 4:
 *     a[0], a[2]  row group, columns 2 (l%4) + {0, 1} and 8 more;  a[1], a[3]  row group + 8
 *     b0, b1      column group, rows 2 (l%4) + {0, 1} and 8 more
 *     c[0], c[1]  row group, columns 2 (l%4) + {0, 1};  c[2], c[3]  row group + 8
 * (Matrix Fragments for mma.m16n8k16 with floating point type; the lower half of a word is the
 * element with the smaller column (a) or row (b)). */
INLINE void mma_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8
 * (16 bytes, aligned); r[i] gets, of matrix i, row l / 4, elements 2 (l%4) + {0, 1}.  `trans`: of
 * the transposed matrix.  (Warp-level matrix load instruction: ldmatrix) */
INLINE void ldmatrix_x4(uint32_t r[4], shared_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

INLINE void ldmatrix_x4_trans(uint32_t r[4], shared_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

/* 16 bytes from global to shared memory, both aligned, some time before the wait for their group;
 * zeros where not `wanted`: `from` is not read then.  (cp.async, with src-size) */
INLINE void cp_async_16(shared_t to, const void *from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(wanted ? 16 : 0)
                 : "memory");
}

/* The same for 4 bytes. */
INLINE void cp_async_4(shared_t to, const void *from, bool wanted) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
                 "r"(wanted ? 4 : 0)
                 : "memory");
}

/* What this thread has begun to copy since the last call becomes one group. */
INLINE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most the n (a constant) latest groups of this thread are under way. */
#    define cp_async_wait(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")

/* x, as a value that the compiler cannot know: what is made of it is made anew where it is needed,
 * instead of waiting in registers. */
INLINE uint32_t made_anew(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

/* 2^x to 2 units in the last place; 0 for what is below the normal numbers.  (ex2) */
INLINE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Both rounded to nearest even; `low` in the lower half.  (cvt) */
INLINE uint32_t pack_bf16(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
#endif
