/* vectors.h: the first text of every CPU kernel: whole 512-bit vectors where the processor has them
 * (the compiler prefers half of that).  No result depends on it. */
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#    pragma GCC target("prefer-vector-width=512")
#endif
