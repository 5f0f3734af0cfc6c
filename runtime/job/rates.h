/* rates.h: what a device reaches on this machine, now: the ceilings of a roofline. */
#ifndef DPOC_RATES_H
#define DPOC_RATES_H

#include "../exec.h"

enum { MAX_LEVELS = 12 };
typedef struct Level { /* one working set: read, copied or cleared again and again */
    int64_t bytes;
    double rate; /* bytes read plus written per second, of the fastest of these */
} Level;

typedef struct Rates {
    double flops;     /* per second, of a product of three `side` x `side` matrices, f32 result */
    double bandwidth; /* of memory: the rate of a copy of `copied` bytes, read plus written */
    int64_t side, copied;
    Level level[MAX_LEVELS]; /* ascending: the first ones are in cache */
    int nlevels;
} Rates;

/* Best of five of each, by the device's own clock, in memory of the arena that holds nothing
 * between programs (on the CPU: in memory of its own, so that small plans can be measured too).
 * Products of matrices of `type`, and of f32 where that is the faster.  Rates are 0 where the room
 * is too small. */
bool measure_rates(Exec *exec, Device *dev, DType type, Rates *out, Err *err);

/* The most that work which touches `bytes` can move in a second: the best level that is no smaller
 * than the one it fits; 0: not known. */
double rates_ceiling(const Rates *rates, double bytes);
/* A kernel that touched `bytes` and went faster than all that was measured: then that is how fast
 * the machine is. */
void rates_raise(Rates *rates, double bytes, double flops_rate, double bytes_rate);

#endif
