/* schedule.h: learning-rate schedules with Hugging Face's formulas
 * (transformers/optimization.py). */
#ifndef DPOC_SCHEDULE_H
#define DPOC_SCHEDULE_H

#include "../base.h"

/* The rate of optimizer step `step` (from 1) of `total`, with `warmup` steps up to `peak`.
 * Hugging Face's lambda(k) for k = step - 1 updates already made, so with warm-up the first is 0.
 * Names: constant constant_with_warmup linear cosine cosine_with_restarts polynomial inverse_sqrt.
 * An unknown name gives NaN. */
double schedule_rate(const char *name, double peak, int64_t step, int64_t total, int64_t warmup);

#endif
