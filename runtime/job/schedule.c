/* schedule.c: see schedule.h.  k = updates made, w = warm-up steps, n = all steps. */
#include "schedule.h"

#include <math.h>
#include <string.h>

static const double pi = 3.14159265358979323846;

/* Of the highest rate; all of them but `polynomial` are multiples of it. */
static double factor(const char *name, double k, double w, double n) {
    if (strcmp(name, "constant") == 0) return 1.0;
    if (k < w) return k / fmax(1.0, w);
    if (strcmp(name, "constant_with_warmup") == 0) return 1.0;
    double left = fmax(1.0, n - w), progress = (k - w) / left;
    if (strcmp(name, "linear") == 0) return fmax(0.0, (n - k) / left);
    if (strcmp(name, "cosine") == 0) return fmax(0.0, 0.5 * (1.0 + cos(pi * 2.0 * 0.5 * progress)));
    if (strcmp(name, "cosine_with_restarts") == 0) /* one cycle, the default of num_cycles */
        return progress >= 1.0 ? 0.0 : fmax(0.0, 0.5 * (1.0 + cos(pi * fmod(progress, 1.0))));
    if (strcmp(name, "inverse_sqrt") == 0) {
        double scale = w > 0 ? w : 10000.0;
        return 1.0 / sqrt((k + scale - w) / scale);
    }
    return NAN;
}

double schedule_rate(const char *name, double peak, int64_t step, int64_t total, int64_t warmup) {
    double k = (double)(step - 1), w = (double)warmup, n = (double)total;
    if (strcmp(name, "polynomial") != 0 || k < w) return peak * factor(name, k, w, n);
    double end = fmin(1e-7, peak); /* lr_end, of power 1 */
    return k > n ? end : end + (peak - end) * (1.0 - (k - w) / fmax(1.0, n - w));
}
