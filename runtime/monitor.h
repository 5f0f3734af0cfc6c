/* monitor.h: what a run asks of its machine while it goes on: the GPU's figures, sampled by a
 * thread once a second, or on the CPU this process's own. */
#ifndef DPOC_MONITOR_H
#define DPOC_MONITOR_H

#include "device.h"

typedef struct Figure {
    const char *name; /* "gpu/utilization", "gpu/power_watts", "cpu/memory_used_bytes", .. */
    double value;
} Figure;
#define MAX_FIGURES 10

typedef struct Monitor Monitor;
Monitor *monitor_open(const Device *dev);
/* What is known of the time since the last call, at most MAX_FIGURES; their number.  Means of the
 * samples (of the last one, where no second has passed); "gpu/energy_joules" is what was used
 * since the last call. */
int monitor_take(Monitor *monitor, Figure out[MAX_FIGURES]);
void monitor_close(Monitor *monitor); /* NULL is allowed */

/* Dense bf16 FLOP/s that the maker promises of the GPU with this name, as mfu is counted against;
 * 0: not known. */
double device_promised_flops(const char *description);

#endif
