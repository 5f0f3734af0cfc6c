/* io.h: what the tests of runtime/io share: real data, scratch files. */
#ifndef TEST_IO_H
#define TEST_IO_H

#include "runtime/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* Text that lives until the program ends. */
static inline char *scratch_printf(const char *format, ...) PRINTF(1, 2);
static inline char *scratch_printf(const char *format, ...) {
    static Arena *arena;
    if (!arena) arena = arena_new();
    va_list args;
    va_start(args, format);
    char *text = arena_vprintf(arena, format, args);
    va_end(args);
    return text;
}

static inline char *data_path(const char *name) {
    return scratch_printf("../shared/data/%s", name);
}

static inline bool have_data(const char *name) {
    if (file_exists(data_path(name))) return true;
    printf("%s is not there\n", data_path(name));
    return false;
}

/* A new directory, removed when the program ends. */
static char scratch_root[64];
static inline void scratch_remove(void) {
    char *command = scratch_printf("rm -rf %s", scratch_root);
    if (system(command) != 0) fprintf(stderr, "%s failed\n", command);
}
static inline char *scratch_dir(void) {
    static int n;
    if (!scratch_root[0]) {
        strcpy(scratch_root, "/tmp/dpoc-test-XXXXXX");
        assert_non_null(mkdtemp(scratch_root));
        atexit(scratch_remove);
    }
    char *dir = scratch_printf("%s/%d", scratch_root, n++);
    Err err = {0};
    assert_true(dir_make(dir, &err));
    return dir;
}

static inline char *scratch_write(const char *dir, const char *name, const void *data, size_t len) {
    char *path = scratch_printf("%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
    return path;
}

#endif
