/* The monitor against a libnvidia-ml.so.1 that is built here and found as the driver's is, by the
 * loader: this program starts itself once more with LD_LIBRARY_PATH.  And on the CPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/monitor.h"
#include "runtime/nvml.h"

static const char *bus_id = "00000001:3b:02.0";

static double figure(const Figure *f, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (strcmp(f[i].name, name) == 0) return f[i].value;
    return NAN;
}

static void check_figures(void **state) {
    unsetenv("FAKE_NVML");
    DeviceOps ops = {.name = "cuda"};
    Device dev = {.ops = &ops};
    snprintf(dev.bus_id, sizeof dev.bus_id, "%s", bus_id);
    Monitor *m = monitor_open(&dev);
    Figure f[MAX_FIGURES];
    for (int turn = 0; turn < 2; turn++) { /* the second time no second has passed: the last ones */
        int n = monitor_take(m, f);
        assert_true(figure(f, n, "gpu/utilization") == 87);
        assert_true(figure(f, n, "gpu/memory_used_bytes") == 20.0 * (1 << 30));
        assert_true(figure(f, n, "gpu/power_watts") == 312.5);
        assert_true(figure(f, n, "gpu/temperature_c") == 61);
        assert_true(figure(f, n, "gpu/sm_clock_mhz") == 1410);
        assert_true(figure(f, n, "gpu/memory_clock_mhz") == 1215);
        assert_true(figure(f, n, "gpu/throttled") == 1);
        assert_true(figure(f, n, "gpu/energy_joules") == 250);
    }
    monitor_close(m);
}

/* What a MIG device does not have is left out; a GPU that is not NVML's gives nothing. */
static void check_absent(void **state) {
    DeviceOps ops = {.name = "cuda"};
    Device dev = {.ops = &ops};
    Figure f[MAX_FIGURES];
    Monitor *m = monitor_open(&dev); /* no bus id */
    assert_int_equal(monitor_take(m, f), 0);
    monitor_close(m);
    snprintf(dev.bus_id, sizeof dev.bus_id, "%s", bus_id);
    setenv("FAKE_NVML", "mig", 1);
    m = monitor_open(&dev);
    int n = monitor_take(m, f);
    assert_true(isnan(figure(f, n, "gpu/utilization")));
    assert_true(isnan(figure(f, n, "gpu/energy_joules")));
    assert_true(figure(f, n, "gpu/power_watts") == 312.5);
    monitor_close(m);
    setenv("FAKE_NVML", "absent", 1);
    m = monitor_open(&dev);
    assert_int_equal(monitor_take(m, f), 0);
    monitor_close(m);
}

static volatile double sink;

static void check_cpu(void **state) {
    DeviceOps ops = {.name = "cpu"};
    Device dev = {.ops = &ops};
    Monitor *m = monitor_open(&dev);
    size_t bytes = (size_t)64 << 20;
    char *block = malloc(bytes);
    assert_non_null(block);
    memset(block, 1, bytes);
    double until = now_seconds() + 0.1;
    while (now_seconds() < until) sink = sink + block[(size_t)sink % bytes];
    Figure f[MAX_FIGURES];
    int n = monitor_take(m, f);
    double use = figure(f, n, "cpu/utilization"), memory = figure(f, n, "cpu/memory_used_bytes");
    assert_true(use > 0 && use <= 101); /* one clock is not the other */
    assert_true(memory > (double)bytes && memory < 1e12);
    monitor_close(m);
    free(block);
}

static void check_promised(void **state) {
    assert_true(device_promised_flops("cuda: NVIDIA A100-SXM4-80GB, sm_80") == 312e12);
    assert_true(device_promised_flops("cuda: NVIDIA H100 PCIe, sm_90") == 756e12);
    assert_true(device_promised_flops("cuda: NVIDIA RTX A4000, sm_86") == 0);
    assert_true(device_promised_flops("cpu: AMD EPYC") == 0);
}

/* Builds the library beside this program and starts it again where the loader finds it. */
static int start_with_fake(char **argv) {
    char dir[256], command[1024];
    snprintf(dir, sizeof dir, "%s.libs", argv[0]);
    snprintf(command, sizeof command,
             "mkdir -p '%s' && ${CC:-cc} -shared -fPIC -o '%s/libnvidia-ml.so.1' "
             "tests/device/nvml_fake.c",
             dir, dir);
    if (system(command) != 0) return 1;
    setenv("LD_LIBRARY_PATH", dir, 1);
    setenv("DPOC_TEST_FAKE", "1", 1);
    execv("/proc/self/exe", argv);
    return 1;
}

int main(int argc, char **argv) {
    if (!getenv("DPOC_TEST_FAKE")) return start_with_fake(argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_figures),
        cmocka_unit_test(check_absent),
        cmocka_unit_test(check_cpu),
        cmocka_unit_test(check_promised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
