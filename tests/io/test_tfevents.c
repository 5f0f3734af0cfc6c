/* TensorBoard event files: the bytes of two records that protoc decoded against TensorBoard's own
 * .proto, the published vector of crc32c, names that never meet. */
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/io/tfevents.h"

static char dir[] = "/tmp/dpoc-tfevents-XXXXXX";

static int make_dir(void **state) {
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
    glob_t found;
    char pattern[128];
    snprintf(pattern, sizeof pattern, "%s/*", dir);
    if (glob(pattern, 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++) unlink(found.gl_pathv[i]);
    globfree(&found);
    return rmdir(dir);
}

static void check_crc(void **state) {
    assert_int_equal(crc32c("123456789", 9), 0xE3069283u);
    assert_int_equal(crc32c("", 0), 0);
    unsigned char zeros[32] = {0}; /* RFC 3720, B.4 */
    assert_int_equal(crc32c(zeros, sizeof zeros), 0x8A9136AAu);
}

static void expect_file(const char *path, const unsigned char *want, size_t n) {
    Err err = {0};
    size_t len;
    char *got = file_read(path, &len, &err);
    assert_non_null(got);
    assert_int_equal(len, n);
    assert_memory_equal(got, want, n);
    free(got);
}

static void write_golden(const char *path) {
    Err err = {0};
    TfEvents *t = tfevents_create(path, 1700000000.5, &err);
    assert_non_null(t);
    tfevents_begin(t, 1700000000.5, 2);
    assert_true(tfevents_end(t, &err)); /* no value: nothing is written */
    tfevents_begin(t, 1700000000.5, 3);
    tfevents_scalar(t, "train/loss", 0.6931472);
    tfevents_scalar(t, "train/rewards/margins", 0.25);
    assert_true(tfevents_end(t, &err));
    assert_true(tfevents_close(t, &err));
}

static void check_bytes(void **state) {
    static const unsigned char want[] =
        "\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22\x09\0\0\x20\x40\xfc\x54\xd9\x41\x1a\x0d"
        "brain.Event:2\x2b\x35\x31\x10"
        "\x3e\0\0\0\0\0\0\0\xd9\xd2\x40\xe7\x09\0\0\x20\x40\xfc\x54\xd9\x41\x10\x03\x2a\x31\x0a\x11"
        "\x0a\x0atrain/loss\x15\x18\x72\x31\x3f\x0a\x1c\x0a\x15train/rewards/"
        "margins\x15\0\0\x80\x3e"
        "\x9a\x93\x0c\xff";
    char path[128];
    snprintf(path, sizeof path, "%s/golden", dir);
    write_golden(path);
    expect_file(path, want, sizeof want - 1);
}

#define GOLDEN "../shared/data/tfevents_golden/events.out.tfevents.1700000000.host"
static void check_golden(void **state) {
    if (!file_exists(GOLDEN)) return; /* main says so */
    Err err = {0};
    size_t len;
    char *want = file_read(GOLDEN, &len, &err), path[128];
    snprintf(path, sizeof path, "%s/golden", dir);
    write_golden(path);
    expect_file(path, (const unsigned char *)want, len);
    free(want);
}

/* Two runs in one second, one directory: two files, the second behind the first in order. */
static void check_names(void **state) {
    Err err = {0};
    for (int i = 0; i < 2; i++) {
        TfEvents *t = tfevents_open(dir, 1700000001.25, &err);
        assert_non_null(t);
        assert_true(tfevents_close(t, &err));
    }
    char pattern[128];
    snprintf(pattern, sizeof pattern, "%s/events.out.tfevents.1700000001.*.[01]", dir);
    glob_t found;
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 2);
    globfree(&found);
    assert_null(tfevents_open("/no/such/directory", 1, &err));
    assert_int_equal(err.code, EXIT_IO);
}

/* Text as TensorBoard has it: Value{tag, tensor{DT_STRING, [1], text}, plugin "text"}. */
static void check_text(void **state) {
    static const unsigned char want[] = "\x0a\x01t\x42\x0b\x08\x07\x12\x04\x12\x02\x08\x01\x42\x01x"
                                        "\x4a\x08\x0a\x06\x0a\x04text";
    Err err = {0};
    char path[128];
    snprintf(path, sizeof path, "%s/text", dir);
    TfEvents *t = tfevents_create(path, 1, &err);
    assert_non_null(t);
    tfevents_begin(t, 1, 300);
    tfevents_text(t, "t", "x");
    assert_true(tfevents_end(t, &err));
    assert_true(tfevents_close(t, &err));
    size_t len, n = sizeof want - 1;
    char *got = file_read(path, &len, &err);
    assert_non_null(got);
    assert_true(len > n + 4);
    assert_memory_equal(got + len - 4 - n, want, n);
    free(got);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_crc),    cmocka_unit_test(check_bytes),
        cmocka_unit_test(check_golden), cmocka_unit_test(check_names),
        cmocka_unit_test(check_text),
    };
    int failed = cmocka_run_group_tests(tests, make_dir, drop_dir);
    if (failed || file_exists(GOLDEN)) return failed;
    puts("no " GOLDEN);
    return 77;
}
