/* exec_time.c: per-kernel times, by the device's own clock.
 *
 * A stamp before the first step and one after each: the device notes the moment when it gets there,
 * so nothing waits between steps and the times are the device's, not the host's.  They are read
 * when a program ends or the stamps are used up.
 */
#include "exec_inside.h"

#include <stdlib.h>
#include <string.h>

/* "matmul model.layers.*.mlp": layers do the same. */
static const char *label_of(const Step *s, char out[200]) {
    size_t n = 0;
    for (const char *p = s->label ? s->label : ""; *p && n + 1 < 200; p++) {
        bool number = p[0] >= '0' && p[0] <= '9' && n && (out[n - 1] == '.' || out[n - 1] == '*');
        if (!number)
            out[n++] = *p;
        else if (out[n - 1] == '.')
            out[n++] = '*';
    }
    out[n] = 0;
    return out;
}

static StepTime *time_of(Exec *exec, const Step *s) {
    char room[200];
    const char *label = label_of(s, room);
    const char *kind =
        s->kind == STEP_KERNEL ? exec->plan->kernels[s->kernel].kind : step_kind_names[s->kind];
    Times *t = &exec->times;
    for (int i = 0; i < t->ntime; i++)
        if (!strcmp(t->time[i].label, label) && !strcmp(t->time[i].kind, kind)) return &t->time[i];
    PUSH(exec->arena, t->time, t->ntime, t->captime,
         ((StepTime){.label = intern(label), .kind = kind}));
    return &t->time[t->ntime - 1];
}

bool times_begin(Exec *exec, Err *err) {
    exec->times.nstep = 0;
    return exec->dev->ops->stamp(exec->dev, 0, err);
}

bool times_end(Exec *exec, Err *err) {
    Times *t = &exec->times;
    bool ok = exec->dev->ops->sync(exec->dev, err);
    for (int i = 0; ok && i < t->nstep; i++) {
        double seconds = 0;
        ok = exec->dev->ops->seconds(exec->dev, i, i + 1, &seconds, err);
        StepTime *one = time_of(exec, t->step[i]);
        one->seconds += seconds;
        one->flops += t->flops[i];
        one->bytes += t->bytes[i];
        one->again += t->again[i];
        one->calls++;
    }
    t->nstep = 0;
    return ok;
}

/* The share of a step's planned work that these extents ask for: its figures are of the bounds. */
static double share(const Exec *exec, const Step *s, const Frame *f) {
    int64_t bound[NEXTENT];
    memcpy(bound, exec->plan->bound, sizeof bound);
    bound[X_C] = f->chunk;
    double most = 1, now = 1;
    for (int i = 0; i < (s->kind == STEP_GEMM ? 3 : 1) && i < s->ndims; i++) {
        most *= (double)dim_eval(s->dims[i], bound);
        now *= (double)dim_eval(s->dims[i], f->extent);
    }
    return most > 0 ? now / most : 0;
}

bool times_step(Exec *exec, const Step *s, const Frame *f, Err *err) {
    Times *t = &exec->times;
    double part = share(exec, s, f);
    t->step[t->nstep] = s;
    t->flops[t->nstep] = s->flops * part;
    t->bytes[t->nstep] = s->bytes * part;
    t->again[t->nstep] = s->again * part;
    if (!exec->dev->ops->stamp(exec->dev, ++t->nstep, err)) return false;
    return t->nstep + 1 < STAMPS || (times_end(exec, err) && times_begin(exec, err));
}

void exec_profile(Exec *exec, bool on) {
    if (on && !exec->profile) exec->times.ntime = 0;
    exec->profile = on;
}

static int longest_first(const void *a, const void *b) {
    double x = ((const StepTime *)a)->seconds, y = ((const StepTime *)b)->seconds;
    return (x < y) - (x > y);
}

int exec_times(Exec *exec, StepTime *out, int max) {
    const Times *t = &exec->times;
    StepTime *sorted = NEW_ARRAY(exec->arena, StepTime, t->ntime + 1);
    if (t->ntime) memcpy(sorted, t->time, (size_t)t->ntime * sizeof *sorted);
    qsort(sorted, (size_t)t->ntime, sizeof *sorted, longest_first);
    int n = t->ntime < max ? t->ntime : max;
    memcpy(out, sorted, (size_t)n * sizeof *out);
    return n;
}
