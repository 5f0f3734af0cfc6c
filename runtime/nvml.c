/* nvml.c: see nvml.h.  Relies on dlopen only; every function but three may be missing. */
#include "nvml.h"

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct NvmlDeviceOpaque *NvmlDevice;
typedef struct NvmlUtilization {
    unsigned gpu, memory; /* percent */
} NvmlUtilization;
typedef struct NvmlMemory {
    unsigned long long total, free, used; /* bytes */
} NvmlMemory;
enum { SENSOR_GPU = 0, CLOCK_SM = 1, CLOCK_MEMORY = 2 };
/* Reasons of GetCurrentClocksThrottleReasons that are not the owner's wish: slowdown by hardware,
 * by heat (software, hardware), by the power supply. */
enum { THROTTLED = 0x8 | 0x20 | 0x40 | 0x80 };

/* FUNCTION(field, symbol, parameters); each returns 0 when it worked. */
#define NVML_FUNCTIONS(FUNCTION)                                                                   \
    FUNCTION(Init, nvmlInit_v2, (void))                                                            \
    FUNCTION(Shutdown, nvmlShutdown, (void))                                                       \
    FUNCTION(ByBusId, nvmlDeviceGetHandleByPciBusId_v2, (const char *id, NvmlDevice *device))      \
    FUNCTION(Utilization, nvmlDeviceGetUtilizationRates, (NvmlDevice d, NvmlUtilization * out))    \
    FUNCTION(Memory, nvmlDeviceGetMemoryInfo, (NvmlDevice d, NvmlMemory * out))                    \
    FUNCTION(Power, nvmlDeviceGetPowerUsage, (NvmlDevice d, unsigned *milliwatts))                 \
    FUNCTION(Temperature, nvmlDeviceGetTemperature, (NvmlDevice d, int sensor, unsigned *out))     \
    FUNCTION(Clock, nvmlDeviceGetClockInfo, (NvmlDevice d, int clock, unsigned *mhz))              \
    FUNCTION(Energy, nvmlDeviceGetTotalEnergyConsumption,                                          \
             (NvmlDevice d, unsigned long long *millijoules))                                      \
    FUNCTION(Throttle, nvmlDeviceGetCurrentClocksThrottleReasons,                                  \
             (NvmlDevice d, unsigned long long *reasons))

struct Nvml {
    void *library;
    NvmlDevice device;
#define NVML_FIELD(field, symbol, parameters) int(*field) parameters;
    NVML_FUNCTIONS(NVML_FIELD)
#undef NVML_FIELD
};

static void look_up(void *library, const char *symbol, void *slot) {
    void *found = dlsym(library, symbol);
    memcpy(slot, &found, sizeof found);
}

Nvml *nvml_open(const char *bus_id) {
    void *library = *bus_id ? dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library) return NULL;
    Nvml *n = calloc(1, sizeof *n);
    if (!n) {
        dlclose(library);
        return NULL;
    }
    n->library = library;
#define LOOK_UP(field, symbol, parameters) look_up(library, #symbol, &n->field);
    NVML_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    if (!n->Init || !n->Shutdown || !n->ByBusId || n->Init() != 0) {
        dlclose(library);
        free(n);
        return NULL;
    }
    if (n->ByBusId(bus_id, &n->device) == 0) return n;
    nvml_close(n);
    return NULL;
}

void nvml_close(Nvml *n) {
    if (!n) return;
    n->Shutdown();
    dlclose(n->library);
    free(n);
}

void nvml_read(Nvml *n, GpuFigures *out) {
    *out = (GpuFigures){NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    NvmlUtilization use;
    NvmlMemory memory;
    unsigned x;
    unsigned long long reasons;
    NvmlDevice d = n->device;
    if (n->Utilization && n->Utilization(d, &use) == 0) out->utilization = use.gpu;
    if (n->Memory && n->Memory(d, &memory) == 0) out->memory_used = (double)memory.used;
    if (n->Power && n->Power(d, &x) == 0) out->power = x / 1000.0;
    if (n->Temperature && n->Temperature(d, SENSOR_GPU, &x) == 0) out->temperature = x;
    if (n->Clock && n->Clock(d, CLOCK_SM, &x) == 0) out->sm_clock = x;
    if (n->Clock && n->Clock(d, CLOCK_MEMORY, &x) == 0) out->memory_clock = x;
    if (n->Throttle && n->Throttle(d, &reasons) == 0) out->throttled = (reasons & THROTTLED) != 0;
}

double nvml_energy(Nvml *n) {
    unsigned long long millijoules;
    bool known = n->Energy && n->Energy(n->device, &millijoules) == 0;
    return known ? (double)millijoules / 1000.0 : NAN;
}
