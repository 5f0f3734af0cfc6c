/* bench_context.c: what else the machine did, so that a figure can be doubted. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

void context_begin(Context *c) {
    if (getloadavg(c->load, 3) != 3) c->load[0] = c->load[1] = c->load[2] = NAN;
    c->cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct utsname u;
    if (uname(&u) == 0)
        snprintf(c->system, sizeof c->system, "%.40s %.60s %.30s", u.sysname, u.release, u.machine);
    time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc)) strftime(c->time, sizeof c->time, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

/* Mean of what the kernel says of each processor. */
static double clock_mhz(void) {
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[4096];
    double sum = 0, mhz;
    int n = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "cpu MHz : %lf", &mhz) == 1) {
            sum += mhz;
            n++;
        }
    if (f) fclose(f);
    return n ? sum / n : NAN;
}

void context_end(Context *c, Monitor *monitor) {
    c->mhz = clock_mhz();
    c->nfigures = monitor_take(monitor, c->figure);
}
