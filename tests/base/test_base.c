/* test_base.c: runtime/base.h against values known from elsewhere (IEEE tables, hand-counted
 * edits). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base.h"

static void arenas_are_zeroed_aligned_and_apart(void **state) {
    Arena *arena = arena_new();
    unsigned char *p[200];
    for (int i = 0; i < 200; i++) {
        size_t n = (size_t)i * 37 + 1;
        p[i] = arena_alloc(arena, n);
        assert_int_equal((uintptr_t)p[i] % 16, 0);
        for (size_t j = 0; j < n; j++) assert_int_equal(p[i][j], 0);
        memset(p[i], i, n);
    }
    for (int i = 0; i < 200; i++)
        for (size_t j = 0; j < (size_t)i * 37 + 1; j++) assert_int_equal(p[i][j], (unsigned char)i);
    int *v = NULL, n = 0, cap = 0;
    for (int i = 0; i < 1000; i++) PUSH(arena, v, n, cap, i * i);
    for (int i = 0; i < 1000; i++) assert_int_equal(v[i], i * i);
    assert_string_equal(arena_printf(arena, "%s-%d", "layer", 17), "layer-17");
    arena_free(arena);
    arena_free(NULL);
}

static void equal_names_are_one_pointer(void **state) {
    char buf[32];
    const char *first[3000];
    for (int i = 0; i < 3000; i++) {
        snprintf(buf, sizeof buf, "name%d", i);
        first[i] = intern(buf);
    }
    for (int i = 0; i < 3000; i++) {
        assert_ptr_equal(first[i], intern_printf("name%d", i));
        assert_int_equal(strtol(first[i] + 4, NULL, 10), i);
    }
    assert_ptr_equal(intern_n("name12 and more", 6), intern("name12"));
    assert_null(intern(NULL));
}

static void first_error_is_kept(void **state) {
    Err err = {0};
    assert_false(fail(&err, EXIT_IO, "one %d", 1));
    assert_false(fail(&err, EXIT_BUG, "two"));
    assert_int_equal(err.code, EXIT_IO);
    assert_string_equal(err.text, "one 1");
}

static void text_grows(void **state) {
    Text t = {0};
    for (int i = 0; i < 2000; i++) text_add(&t, "%04d,", i);
    assert_int_equal(t.len, 10000);
    assert_memory_equal(t.data + 5 * 1234, "1234,", 5);
    assert_int_equal(strlen(t.data), t.len);
    text_free(&t);
    text_addn(&t, "", 0);
    assert_string_equal(t.data, "");
    text_free(&t);
}

static void hashes_are_stable_and_spread(void **state) {
    char hex[33], other[33];
    hash_hex(hash_bytes("", 0, (Hash128){0, 0}), hex);
    assert_string_equal(hex, "00000000000000000000000000000000");
    char data[64] = {0};
    hash_hex(hash_bytes(data, 16, (Hash128){0, 0}), hex);
    hash_hex(hash_bytes(data, 17, (Hash128){0, 0}), other);
    assert_string_not_equal(hex, other);
    for (int bit = 0; bit < 8 * 40;
         bit++) { /* each bit of the input changes about half of the output */
        memset(data, 7, sizeof data);
        Hash128 a = hash_bytes(data, 40, (Hash128){1, 2});
        data[bit / 8] = (char)(data[bit / 8] ^ (1 << bit % 8));
        Hash128 b = hash_bytes(data, 40, (Hash128){1, 2});
        int flips = __builtin_popcountll(a.hi ^ b.hi) + __builtin_popcountll(a.lo ^ b.lo);
        assert_in_range(flips, 30, 98);
    }
}

static void edits_are_counted(void **state) {
    assert_int_equal(edit_distance("", ""), 0);
    assert_int_equal(edit_distance("abc", ""), 3);
    assert_int_equal(edit_distance("kitten", "sitting"), 3);
    assert_int_equal(edit_distance("adpater", "adapter"), 1);
    const char *const words[] = {"objective", "adapter", "quantize", "train"};
    assert_string_equal(closest_name("adaptor", words, 4), "adapter");
    assert_string_equal(closest_name("trian", words, 4), "train");
    assert_null(closest_name("model", words, 4));
}

static void files_come_back(void **state) {
    char dir[] = "/tmp/test_base_XXXXXX";
    assert_non_null(mkdtemp(dir));
    Arena *arena = arena_new();
    Err err = {0};
    char *deep = path_join(arena, dir, "a/b//c");
    assert_true(dir_make(deep, &err));
    assert_true(dir_make(deep, &err));
    char *path = path_join(arena, deep, "x.bin");
    assert_true(file_write(path, "a\0b\n", 4, &err));
    assert_true(file_write(path, "second", 6, &err));
    size_t len = 0;
    char *back = file_read(path, &len, &err);
    assert_int_equal(len, 6);
    assert_string_equal(back, "second");
    free(back);
    assert_true(file_exists(path));
    assert_int_equal(err.code, 0);
    assert_null(file_read(deep, &len, &err));
    assert_non_null(strstr(err.text, "directory"));
    err.code = 0;
    assert_null(file_read(path_join(arena, dir, "none"), NULL, &err));
    assert_non_null(strstr(err.text, "No such file"));
    err.code = 0;
    assert_false(dir_make(path_join(arena, path, "below"), &err));
    assert_non_null(strstr(err.text, "Not a directory"));
    err.code = 0;
    assert_true(file_write("/dev/null", "x", 1, &err));
    struct stat st;
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    char *command =
        arena_printf(arena, "test -z \"$(find %s -name '*.tmp')\" && rm -r %s", dir, dir);
    assert_int_equal(system(command), 0);
    assert_string_equal(path_join(arena, "d", "/abs"), "/abs");
    assert_string_equal(path_join(arena, "", "x"), "x");
    arena_free(arena);
}

static void sizes_have_units(void **state) {
    double v;
    assert_true(parse_size("8", &v) && v == 8);
    assert_true(parse_size("40GiB", &v) && v == 40.0 * 1073741824);
    assert_true(parse_size("40 GiB", &v) && v == 40.0 * 1073741824);
    assert_true(parse_size("1.5GB", &v) && v == 1.5e9);
    assert_true(parse_size("2k", &v) && v == 2000);
    const char *const wrong[] = {"",      "2 k",  "x",  "-1",  "40 Gib",
                                 "1e999", "0x10", "8 ", "nan", "inf"};
    for (size_t i = 0; i < COUNT(wrong); i++) assert_false(parse_size(wrong[i], &v));
    char out[32];
    format_bytes(out, 812);
    assert_string_equal(out, "812 B");
    format_bytes(out, 12.3 * 1048576);
    assert_string_equal(out, "12.3 MiB");
    format_bytes(out, 1048575);
    assert_string_equal(out, "1.0 MiB");
}

/* The nearest of all finite 16-bit values, by search in double; ties to the even pattern. */
static uint16_t nearest(float x, float (*value)(uint16_t), uint16_t largest) {
    int lo = 0, hi = largest;
    double target = fabs((double)x);
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if ((double)value((uint16_t)mid) <= target)
            lo = mid;
        else
            hi = mid;
    }
    double down = target - (double)value((uint16_t)lo), up = (double)value((uint16_t)hi) - target;
    int best = down < up || (down == up && lo % 2 == 0) ? lo : hi;
    return (uint16_t)(best | (signbit(x) ? 0x8000 : 0));
}

static void halves_round_to_nearest_even(void **state) {
    assert_true(f16_to_float(0x3555) == 0x1.554p-2f && f16_to_float(0x7bff) == 65504);
    assert_true(f16_to_float(0x0001) == 0x1p-24f && f16_to_float(0x8400) == -0x1p-14f);
    assert_true(bf16_to_float(0x3f80) == 1 && bf16_to_float(0x0001) == 0x1p-133f);
    assert_int_equal(float_to_f16(65519), 0x7bff);
    assert_int_equal(float_to_f16(65520), 0x7c00);
    assert_int_equal(float_to_bf16(INFINITY), 0x7f80);
    assert_int_equal(float_to_bf16(3.4e38f), 0x7f80);
    assert_true(isnan(bf16_to_float(float_to_bf16(NAN))) && isnan(f16_to_float(float_to_f16(NAN))));
    for (int i = 0; i < 0x7c00; i++) assert_int_equal(float_to_f16(f16_to_float((uint16_t)i)), i);
    for (int i = 0; i < 0x7f80; i++) assert_int_equal(float_to_bf16(bf16_to_float((uint16_t)i)), i);
    for (int i = 0; i < 1 << 16; i++) { /* many at once: the same bits */
        uint16_t half = (uint16_t)i, back;
        float one = bf16_to_float(half), many, between = one * 1.003f;
        floats_from_bf16(&many, &half, 1);
        assert_memory_equal(&one, &many, 4);
        floats_to_bf16(&back, &between, 1);
        assert_int_equal(back, float_to_bf16(between));
        one = f16_to_float(half);
        floats_from_f16(&many, &half, 1);
        assert_memory_equal(&one, &many, 4);
    }
    uint32_t bits = 12345;
    for (int i = 0; i < 200000; i++) {
        bits = bits * 1664525 + 1013904223;
        float x;
        memcpy(&x, &bits, 4);
        if (fabsf(x) < 65504) assert_int_equal(float_to_f16(x), nearest(x, f16_to_float, 0x7bff));
        if (fabsf(x) < 3.38e38f)
            assert_int_equal(float_to_bf16(x), nearest(x, bf16_to_float, 0x7f7f));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arenas_are_zeroed_aligned_and_apart),
        cmocka_unit_test(equal_names_are_one_pointer),
        cmocka_unit_test(first_error_is_kept),
        cmocka_unit_test(text_grows),
        cmocka_unit_test(hashes_are_stable_and_spread),
        cmocka_unit_test(edits_are_counted),
        cmocka_unit_test(files_come_back),
        cmocka_unit_test(sizes_have_units),
        cmocka_unit_test(halves_round_to_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
