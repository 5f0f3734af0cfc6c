/* rates.h: what a device reaches on this machine, now: the two ceilings of a roofline. */
#ifndef DPOC_RATES_H
#define DPOC_RATES_H

#include "../exec.h"

typedef struct Rates {
    double flops;     /* per second, of a product of three `side` x `side` matrices, f32 result */
    double bandwidth; /* bytes read plus written per second, of a copy of `copied` bytes */
    int64_t side, copied;
} Rates;

/* Best of five of each, by the device's own clock, in memory of the arena that holds nothing
 * between programs (on the CPU: in memory of its own, so that small plans can be measured too).
 * Rates are 0 where the room is too small. */
bool measure_rates(Exec *exec, Device *dev, DType type, Rates *out, Err *err);

#endif
