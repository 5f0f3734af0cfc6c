/* bench_stats.h: what can be said of timed runs: middle and spread, outliers, paired ratios, and
 * how likely a difference is by chance.  Relies on libm alone.
 *
 * Nothing here supposes that times are normally distributed: they have a long tail to one side. */
#ifndef DPOC_BENCH_STATS_H
#define DPOC_BENCH_STATS_H

#include <stdbool.h>

typedef struct Summary {
    int n;
    double mean, deviation; /* of the sample: n - 1; 0 for one run */
    double median, min, max;
    double mad;      /* median absolute deviation from the median */
    int outliers;    /* runs further than OUTLIER times `mad` from the median */
    bool slow_start; /* the first run is one, on the slow side */
} Summary;
/* Of a normal distribution the MAD is 1 / 1.4826 standard deviations: ten of them, as hyperfine. */
#define OUTLIER 14.826
Summary summary_of(const double *x, int n); /* n > 0, in the order they were run */

typedef struct Ratio { /* b over a, round by round */
    double median;
    double low, high;  /* holds the true median with probability `confidence`, */
    double confidence; /* at least 0.95 from 6 rounds on; with fewer: the least and the greatest */
    double p; /* two-sided sign test: chance of rounds as one-sided as these if none is faster */
} Ratio;
Ratio paired_ratio(const double *a, const double *b, int n); /* n > 0 */

/* Two-sided Mann-Whitney test of two unpaired samples: chance of ranks as far apart if both were
 * drawn alike; normal approximation with corrections for ties and continuity. */
double rank_test(const double *a, int na, const double *b, int nb);

double median_of(const double *x, int n); /* n > 0 */

#endif
