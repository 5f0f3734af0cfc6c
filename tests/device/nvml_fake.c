/* A libnvidia-ml.so.1 for tests: figures as one GPU would give them, asked for by its bus id only.
 * FAKE_NVML=absent: no such GPU; FAKE_NVML=mig: utilization and energy are not supported. */
#include <stdlib.h>
#include <string.h>

static int started, asked;

static int is(const char *mode) {
    const char *set = getenv("FAKE_NVML");
    return set && !strcmp(set, mode);
}

int nvmlInit_v2(void) {
    started++;
    return 0;
}

int nvmlShutdown(void) {
    return started-- > 0 ? 0 : 1;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) {
    *device = &started;
    return strcmp(id, "00000001:3b:02.0") == 0 && !is("absent") ? 0 : 6; /* NOT_FOUND */
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned out[2]) {
    out[0] = 87;
    out[1] = 42;
    return device != &started || is("mig") ? 3 : 0; /* NOT_SUPPORTED */
}

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long out[3]) {
    out[0] = 80ull << 30;
    out[1] = 60ull << 30;
    out[2] = 20ull << 30;
    return device != &started;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    *milliwatts = 312500;
    return device != &started;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) {
    *degrees = 61;
    return device != &started || sensor != 0;
}

int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *mhz) {
    *mhz = clock == 1 ? 1410 : 1215;
    return device != &started || (clock != 1 && clock != 2);
}

/* A quarter of a kilojoule from one question to the next. */
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    *millijoules = 1000000 + 250000ull * (unsigned)asked++;
    return device != &started || is("mig") ? 3 : 0;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    *reasons = 0x40 | 0x4; /* heat; and the power cap, which is the owner's */
    return device != &started;
}
