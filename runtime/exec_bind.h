/* exec_bind.h: filling a plan's bound buffers, for exec.c alone. */
#ifndef DPOC_EXEC_BIND_H
#define DPOC_EXEC_BIND_H

#include "exec.h"

/* Fills every buffer the plan's binds name, from the sources, streaming (exec_bind's first half).
 * `scratch`: bytes of the arena that belong to no persistent buffer, free while weights come in. */
bool bind_all(const Plan *plan, Device *dev, Span scratch, const BindSource *sources, int n,
              uint64_t seed, LoadWatch *watch, Err *err);

#endif
