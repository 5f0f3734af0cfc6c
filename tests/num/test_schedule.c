/* test_schedule.c: learning rates against those of transformers' schedules
 * (tests/peers/make_schedules.py), warm-up, the steps behind the last and all.
 *
 * Both are a few operations in double precision: 8 roundings of 1.1e-16, 1e-15 of the rate. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>

#include "runtime/job/schedule.h"

static void rates_are_transformers(void **state) {
    json_t *all = json_load_file("tests/num/schedules.json", 0, NULL);
    assert_non_null(all);
    assert_true(json_array_size(all) >= 21);
    for (size_t i = 0; i < json_array_size(all); i++) {
        json_t *row = json_array_get(all, i), *rates = json_object_get(row, "rates");
        const char *name = json_string_value(json_object_get(row, "name"));
        double peak = json_number_value(json_object_get(row, "peak"));
        int64_t warmup = json_integer_value(json_object_get(row, "warmup"));
        int64_t total = json_integer_value(json_object_get(row, "total"));
        for (size_t k = 0; k < json_array_size(rates); k++) {
            double want = json_number_value(json_array_get(rates, k));
            double got = schedule_rate(name, peak, (int64_t)k + 1, total, warmup);
            if (!(fabs(got - want) <= 1e-15 * peak))
                print_error("%s, warm-up %d of %d, step %zu: %.17g, want %.17g\n", name,
                            (int)warmup, (int)total, k + 1, got, want);
            assert_true(fabs(got - want) <= 1e-15 * peak);
        }
    }
    json_decref(all);
}

static void an_unknown_name_is_no_rate(void **state) {
    assert_true(isnan(schedule_rate("cosin", 1e-4, 9, 10, 2)));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rates_are_transformers),
                                       cmocka_unit_test(an_unknown_name_is_no_rate)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
