/* schedule.h: learning-rate schedules with Hugging Face's formulas
 * (transformers/optimization.py). */
#ifndef DPOC_SCHEDULE_H
#define DPOC_SCHEDULE_H

#include "../base.h"

/* Factor on the base rate used in optimizer step `step` (from 1) of `total`, with `warmup` steps.
 * Hugging Face's lambda(k) for k = step - 1 updates already made, so with warm-up the first is 0.
 * Names: constant constant_with_warmup linear cosine cosine_with_restarts polynomial inverse_sqrt.
 * An unknown name gives NaN. */
double schedule_factor(const char *name, int64_t step, int64_t total, int64_t warmup);

#endif
