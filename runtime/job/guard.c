/* guard.c: see run.h: numbers that are no basis to go on from, and those that look wrong. */
#include <math.h>

#include "run.h"

bool guard_step(const Run *r, int64_t step, double loss, double norm, Err *err) {
    if (!isfinite(loss))
        return fail(err, EXIT_NUMERIC,
                    "step %lld: the loss is %f; the checkpoints before it are intact",
                    (long long)step, loss);
    if (!isfinite(norm))
        return fail(
            err, EXIT_NUMERIC,
            "step %lld: the gradient's norm is %f (loss %g); the checkpoints before it are intact",
            (long long)step, norm, loss);
    /* Equal answers in every pair cancel but for rounding of products in another order (4e-9 was
     * seen); a term of the loss that trains all the same leaves far more than this bound. */
    const Pairs *pairs = r->job->pairs;
    bool cancels = pairs->counts.identical == pairs->n && norm < 1e-4;
    if (norm == 0 || cancels)
        return fail(err, EXIT_NUMERIC,
                    "step %lld: the gradient is exactly zero%s: nothing is being trained. Are "
                    "chosen and rejected the same in every pair, or is the loss saturated (loss "
                    "%g)?",
                    (long long)step, norm == 0 ? "" : " but for rounding", loss);
    return true;
}

/* Rewards are beta times a difference of two sums of some hundred log-probs: rounded to bf16 on
 * the way, equal models may differ by about beta * 2^-8 * sqrt(1000) = 0.01 in them; a wrong
 * reference or a dropout that was forgotten moves them by far more. */
enum { SILENT_STEPS = 10 };
static const double equal_within = 0.02, silent = 1e-7;

static void warn_first(const Run *r, double loss, double chosen, double rejected) {
    if (fabs(chosen) <= equal_within && fabs(rejected) <= equal_within) return;
    progress_break(&r->progress);
    fprintf(stderr,
            "warning: policy and reference should be the same model at the first step, but rewards "
            "are %.4f (chosen) and %.4f (rejected), the loss %.4f (sigmoid DPO begins at ln 2 = "
            "0.6931)\n"
            "note: is something else than the trained adapter different in them: a checkpoint, how "
            "it is quantized, a layer that draws at random?\n",
            chosen, rejected, loss);
}

void guard_warn(Run *r, double lr) {
    double chosen = run_value(r, r->values, "rewards/chosen"),
           rejected = run_value(r, r->values, "rewards/rejected");
    if (r->job->quiet || !(isfinite(chosen) && isfinite(rejected))) return;
    if (r->state.step == 1 && r->job->starts_equal) warn_first(r, r->values[0], chosen, rejected);
    bool moved = fabs(chosen) > silent || fabs(rejected) > silent;
    if (moved) r->silent_steps = -1;
    /* A step sees the updates before it, so one at the rate 0 says nothing. */
    if (r->silent_steps < 0 || lr == 0 || ++r->silent_steps < SILENT_STEPS) return;
    r->silent_steps = -1;
    progress_break(&r->progress);
    fprintf(stderr,
            "warning: rewards are still 0 after %lld steps: is the trained adapter part of "
            "`policy`, and is run.lr (%g now) large enough to move it?\n",
            (long long)r->state.step, lr);
}
