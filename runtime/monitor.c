/* monitor.c: see monitor.h.  Relies on nvml.h, /proc/self/statm and the clocks of POSIX. */
#include "monitor.h"
#include "nvml.h"

#include <ctype.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { NGPU = sizeof(GpuFigures) / sizeof(double) };
static const char *const gpu_names[NGPU] = {/* in the order of GpuFigures */
                                            "gpu/utilization",  "gpu/memory_used_bytes",
                                            "gpu/power_watts",  "gpu/temperature_c",
                                            "gpu/sm_clock_mhz", "gpu/memory_clock_mhz",
                                            "gpu/throttled"};

struct Monitor {
    bool cpu;   /* the run is on the CPU: figures of this process */
    Nvml *nvml; /* NULL: nothing is known */
    pthread_t thread;
    bool running;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t wake;
    bool ends;
    double sum[NGPU], last[NGPU];
    int samples;           /* in sum */
    double energy;         /* joules at the last call */
    double wall, cpu_time; /* seconds at the last call */
};

static void sample(Monitor *m) {
    GpuFigures now;
    nvml_read(m->nvml, &now);
    double x[NGPU];
    memcpy(x, &now, sizeof x);
    pthread_mutex_lock(&m->lock);
    for (int i = 0; i < NGPU; i++) {
        m->sum[i] += x[i];
        m->last[i] = x[i];
    }
    m->samples++;
    pthread_mutex_unlock(&m->lock);
}

static void *watch(void *arg) {
    Monitor *m = arg;
    for (;;) {
        sample(m);
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        pthread_mutex_lock(&m->lock);
        while (!m->ends && pthread_cond_timedwait(&m->wake, &m->lock, &until) == 0) {
        }
        bool ends = m->ends;
        pthread_mutex_unlock(&m->lock);
        if (ends) return NULL;
    }
}

static double cpu_seconds(void) {
    struct timespec t;
    return clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) == 0
               ? (double)t.tv_sec + 1e-9 * (double)t.tv_nsec
               : NAN;
}

Monitor *monitor_open(const Device *dev) {
    Monitor *m = calloc(1, sizeof *m);
    m->cpu = strcmp(dev->ops->name, "cpu") == 0;
    m->wall = now_seconds();
    m->cpu_time = cpu_seconds();
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->wake, NULL);
    if (m->cpu || !(m->nvml = nvml_open(dev->bus_id))) return m;
    m->energy = nvml_energy(m->nvml);
    sample(m); /* so that the first call has one */
    m->running = pthread_create(&m->thread, NULL, watch, m) == 0;
    return m;
}

void monitor_close(Monitor *m) {
    if (!m) return;
    if (m->running) {
        pthread_mutex_lock(&m->lock);
        m->ends = true;
        pthread_cond_signal(&m->wake);
        pthread_mutex_unlock(&m->lock);
        pthread_join(m->thread, NULL);
    }
    nvml_close(m->nvml);
    pthread_cond_destroy(&m->wake);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static void add(Figure out[MAX_FIGURES], int *n, const char *name, double value) {
    if (isfinite(value)) out[(*n)++] = (Figure){name, value};
}

static int take_gpu(Monitor *m, Figure out[MAX_FIGURES]) {
    int n = 0;
    pthread_mutex_lock(&m->lock);
    for (int i = 0; i < NGPU; i++) {
        add(out, &n, gpu_names[i], m->samples ? m->sum[i] / m->samples : m->last[i]);
        m->sum[i] = 0;
    }
    m->samples = 0;
    pthread_mutex_unlock(&m->lock);
    double energy = nvml_energy(m->nvml);
    add(out, &n, "gpu/energy_joules", energy - m->energy);
    m->energy = energy;
    return n;
}

static double resident_bytes(void) {
    long pages = -1;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%*d %ld", &pages) != 1) pages = -1;
    if (f) fclose(f);
    return pages < 0 ? NAN : (double)pages * (double)sysconf(_SC_PAGESIZE);
}

/* Percent of all processors that this process used. */
static int take_cpu(Monitor *m, Figure out[MAX_FIGURES]) {
    int n = 0;
    double wall = now_seconds(), used = cpu_seconds();
    double share = (used - m->cpu_time) / fmax(1e-9, wall - m->wall);
    add(out, &n, "cpu/utilization", 100 * share / (double)sysconf(_SC_NPROCESSORS_ONLN));
    add(out, &n, "cpu/memory_used_bytes", resident_bytes());
    m->wall = wall;
    m->cpu_time = used;
    return n;
}

int monitor_take(Monitor *m, Figure out[MAX_FIGURES]) {
    return m->cpu ? take_cpu(m, out) : m->nvml ? take_gpu(m, out) : 0;
}

double device_promised_flops(const char *description) {
    static const struct {
        const char *name; /* the first that occurs in the description is taken */
        double tera;
    } rates[] = {
        {"B200", 2250},     {"H200", 989},       {"H100 PCIe", 756},    {"H100 NVL", 835},
        {"H100", 989},      {"GH200", 989},      {"H800", 989},         {"A100", 312},
        {"A800", 312},      {"A30", 165},        {"A40", 150},          {"A10G", 70},
        {"A10", 125},       {"RTX A6000", 155},  {"RTX 6000 Ada", 364}, {"L40S", 362},
        {"L40", 181},       {"L4", 121},         {"RTX 5090", 209.5},   {"RTX 4090", 165.2},
        {"RTX 4080", 97.5}, {"RTX 3090 Ti", 80}, {"RTX 3090", 71}};
    for (size_t i = 0; i < COUNT(rates); i++) {
        const char *at = strstr(description, rates[i].name);
        if (at && !isalnum((unsigned char)at[strlen(rates[i].name)])) return rates[i].tera * 1e12;
    }
    return 0;
}
