/* bench_stats.c: see bench_stats.h. */
#include "bench_stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_number(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double *sorted_of(const double *x, int n) {
    double *out = malloc(sizeof(double) * (size_t)(n + 1));
    if (!out) abort();
    memcpy(out, x, sizeof(double) * (size_t)n);
    qsort(out, (size_t)n, sizeof(double), by_number);
    return out;
}

static double middle(const double *sorted, int n) {
    return n % 2 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
}

double median_of(const double *x, int n) {
    double *sorted = sorted_of(x, n), m = middle(sorted, n);
    free(sorted);
    return m;
}

Summary summary_of(const double *x, int n) {
    double *work = sorted_of(x, n), sum = 0, squares = 0;
    Summary s = {.n = n, .median = middle(work, n), .min = work[0], .max = work[n - 1]};
    for (int i = 0; i < n; i++) sum += x[i];
    s.mean = sum / n;
    for (int i = 0; i < n; i++) {
        squares += (x[i] - s.mean) * (x[i] - s.mean);
        work[i] = fabs(x[i] - s.median);
    }
    if (n > 1) s.deviation = sqrt(squares / (n - 1));
    s.mad = median_of(work, n);
    for (int i = 0; i < n; i++) s.outliers += work[i] > OUTLIER * s.mad;
    s.slow_start = x[0] - s.median > OUTLIER * s.mad;
    free(work);
    return s;
}

/* Chance of k heads in n fair throws. */
static double heads(int k, int n) {
    return exp(lgamma(n + 1.0) - lgamma(k + 1.0) - lgamma(n - k + 1.0) - n * log(2.0));
}

/* Of at most k. */
static double heads_at_most(int k, int n) {
    double sum = 0;
    for (int i = 0; i <= k; i++) sum += heads(i, n);
    return fmin(1, sum);
}

/* How many fall below the median is a throw of n coins, so the k-th least and the k-th greatest of
 * n hold it with all but twice the chance of at most k - 1 heads, whatever the distribution. */
static void interval(const double *sorted, int n, Ratio *r) {
    int k = 1;
    double outside = heads(0, n), next;
    while (2 * k < n && 2 * (next = outside + heads(k, n)) <= 0.05) {
        outside = next;
        k++;
    }
    r->low = sorted[k - 1];
    r->high = sorted[n - k];
    r->confidence = fmax(0, 1 - 2 * outside);
}

Ratio paired_ratio(const double *a, const double *b, int n) {
    double *ratio = malloc(sizeof(double) * (size_t)n);
    if (!ratio) abort();
    int less = 0, more = 0;
    for (int i = 0; i < n; i++) {
        ratio[i] = b[i] / a[i];
        less += ratio[i] < 1;
        more += ratio[i] > 1;
    }
    qsort(ratio, (size_t)n, sizeof(double), by_number);
    Ratio r = {.median = middle(ratio, n)};
    interval(ratio, n, &r);
    r.p = fmin(1, 2 * heads_at_most(less < more ? less : more, less + more));
    free(ratio);
    return r;
}

double rank_test(const double *a, int na, const double *b, int nb) {
    const int n = na + nb;
    double *all = malloc(sizeof(double) * (size_t)n), ties = 0, u = 0;
    if (!all) abort();
    memcpy(all, a, sizeof(double) * (size_t)na);
    memcpy(all + na, b, sizeof(double) * (size_t)nb);
    qsort(all, (size_t)n, sizeof(double), by_number);
    for (int i = 0, end; i < n; i = end) {
        for (end = i; end < n && all[end] <= all[i]; end++) continue;
        const double t = end - i;
        ties += t * t * t - t;
        /* U counts pairs (a, b) with a > b, a tie as one half; of this value: those of `a` times
         * what of `b` is less, and half of what is the same */
        double mine = 0, less = 0;
        for (int k = 0; k < na; k++) mine += a[k] >= all[i] && a[k] <= all[i];
        for (int k = 0; k < nb; k++) less += b[k] < all[i];
        u += mine * (less + 0.5 * (t - mine));
    }
    free(all);
    const double product = (double)na * nb,
                 variance = product / 12 * (n + 1 - ties / ((double)n * fmax(1, n - 1)));
    if (!(variance > 0)) return 1; /* all are the same */
    const double away = fmax(0, fabs(u - 0.5 * product) - 0.5);
    return erfc(away / sqrt(2 * variance));
}
