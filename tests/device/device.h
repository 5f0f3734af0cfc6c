/* device.h: what the device tests share: a directory of their own, a small checkpoint, an open
 * plan. */
#ifndef TESTS_DEVICE_H
#define TESTS_DEVICE_H

#include "../../runtime/exec.h"
#include "../../runtime/io/safetensors.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define PLAN "tests/device/plan.json"

/* A fresh directory; remove_dir takes it away. */
static inline char *temp_dir(void) {
    char name[] = "/tmp/dpoc-test-XXXXXX";
    assert_non_null(mkdtemp(name));
    return strdup(name);
}

static inline void remove_dir(char *dir) {
    char path[4200];
    DIR *d = opendir(dir);
    chmod(dir, 0700);
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) unlink(path);
    }
    if (d) closedir(d);
    rmdir(dir);
    free(dir);
}

/* Numbers in -1 .. 1 that depend on the tensor's name. */
static inline float weight_value(const char *name, int i) {
    return (float)((i * 37 + name[0] * 11) % 201 - 100) / 100;
}

typedef struct TestTensor {
    const char *name;
    int rows, cols;
} TestTensor;
static const TestTensor test_tensors[] = {{"q_proj.weight", 16, 16},
                                          {"k_proj.weight", 8, 16},
                                          {"v_proj.weight", 8, 16},
                                          {"tied.weight", 16, 16}};

/* DIR/model.safetensors with the tensors of plan.json. */
static inline void write_checkpoint(const char *dir) {
    SafeTensor t[COUNT(test_tensors)];
    char path[4200];
    Err err = {0};
    for (size_t i = 0; i < COUNT(t); i++) {
        const TestTensor *from = &test_tensors[i];
        t[i] = (SafeTensor){
            .name = from->name, .type = SAFE_F32, .rank = 2, .shape = {from->rows, from->cols}};
    }
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    const char *const metadata[] = {"format", "pt", NULL};
    SafeWriter *w = safe_create(path, t, COUNT(t), metadata, &err);
    for (int i = 0; w && i < (int)COUNT(t); i++) {
        float data[256];
        int n = test_tensors[i].rows * test_tensors[i].cols;
        for (int k = 0; k < n; k++) data[k] = weight_value(t[i].name, k);
        assert_true(safe_put(w, i, 0, data, n * 4, &err));
    }
    assert_true(w && safe_commit(w, &err));
}

/* The CPU with this cache and compiler; fails the test when it does not open. */
static inline Device *open_cpu(const char *cache, const char *cc, int threads) {
    Err err = {0};
    DeviceOptions options = {.name = "cpu", .threads = threads, .cache_dir = cache, .cc = cc};
    Device *dev = device_open(&options, &err);
    if (!dev) fail_msg("%s", err.text);
    return dev;
}

#endif
