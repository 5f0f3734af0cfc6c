/* cpu_compile.h: kernel text to code: the system's C compiler, a cache of modules, dlopen. */
#ifndef DPOC_CPU_COMPILE_H
#define DPOC_CPU_COMPILE_H

#include "plan.h"

typedef void (*CpuKernel)(void *const *p, const int64_t *n);

typedef struct CpuCode CpuCode; /* loaded modules */

/* Loads every kernel of the plan: from the cache `dir` where it is known there, else compiled by
 * `cc` in
 * at most `jobs` processes at once.  A cache that cannot be written, or executed from, is a warning
 * on
 * stderr and a private directory.  NULL and err: exit 3 without a working compiler, 70 if it
 * rejects a
 * kernel (the text is kept and named). */
CpuCode *cpu_compile(const Plan *plan, const char *dir, const char *cc, int jobs, Err *err);
CpuKernel cpu_kernel(const CpuCode *code, int kernel);
/* Tells the modules' OpenMP runtime how many threads to use. */
void cpu_code_threads(CpuCode *code, int threads);
void cpu_code_free(CpuCode *code);
/* First line of `cc --version`; false and err (exit 3, with the package to install) when it does
 * not run. */
bool cpu_compiler(const char *cc, char version[120], Err *err);

#endif
