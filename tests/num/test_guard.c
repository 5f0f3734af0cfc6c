/* Numbers of a step that end the run, and those that are warned of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/job/run.h"

static Metric metrics[] = {
    {"loss", "inv_pairs"}, {"rewards/chosen", "inv_pairs"}, {"rewards/rejected", "inv_pairs"}};
static Plan plan = {.metrics = metrics, .nmetrics = 3};
static Pairs pairs = {.n = 4};
static double values[3];

static Run run_of(const TrainJob *job) {
    return (Run){.job = job, .plan = &plan, .values = values};
}

/* What guard_warn says to stderr, in `said`. */
static void warn(Run *r, double lr, char said[2000]) {
    FILE *file = tmpfile();
    int old = dup(STDERR_FILENO);
    fflush(stderr);
    dup2(fileno(file), STDERR_FILENO);
    guard_warn(r, lr);
    fflush(stderr);
    dup2(old, STDERR_FILENO);
    close(old);
    rewind(file);
    said[fread(said, 1, 1999, file)] = 0;
    fclose(file);
}

static void check_numbers(void **state) {
    TrainJob job = {.pairs = &pairs};
    Run r = run_of(&job);
    static const double bad[][2] = {{NAN, 1}, {INFINITY, 1}, {0.5, NAN}, {0.5, INFINITY}, {0.5, 0}};
    for (size_t i = 0; i < COUNT(bad); i++) {
        Err err = {0};
        assert_false(guard_step(&r, 7, bad[i][0], bad[i][1], &err));
        assert_int_equal(err.code, EXIT_NUMERIC);
        assert_non_null(strstr(err.text, "step 7"));
    }
    Err err = {0};
    assert_true(guard_step(&r, 7, 0.5, 1e-5, &err));
    pairs.counts.identical = 4; /* equal answers everywhere: what is left is rounding */
    assert_false(guard_step(&r, 7, 0.5, 1e-5, &err));
    pairs.counts.identical = 0;
}

/* The first step: rewards that are not 0 where both models are the same. */
static void check_first(void **state) {
    TrainJob job = {.pairs = &pairs, .starts_equal = true};
    char said[2000];
    Run r = run_of(&job);
    r.state.step = 1;
    values[0] = 0.81, values[1] = 0.25, values[2] = -0.1;
    warn(&r, 1e-3, said);
    assert_non_null(strstr(said, "should be the same model"));
    assert_non_null(strstr(said, "0.2500"));
    assert_non_null(strstr(said, "0.8100"));
    values[0] = 0.6931, values[1] = 1e-3, values[2] = -1e-3; /* rounding */
    warn(&r, 1e-3, said);
    assert_string_equal(said, "");
    values[1] = 0.25;
    r.state.step = 2; /* training has begun */
    warn(&r, 1e-3, said);
    assert_string_equal(said, "");
    r.state.step = 1;
    job.starts_equal = false; /* an adapter was loaded */
    warn(&r, 1e-3, said);
    assert_string_equal(said, "");
}

/* Ten steps whose rates are not 0, and no reward: said once. */
static void check_silent(void **state) {
    TrainJob job = {.pairs = &pairs};
    char said[2000];
    Run r = run_of(&job);
    values[1] = values[2] = 0;
    int times = 0;
    for (r.state.step = 1; r.state.step < 40; r.state.step++) {
        warn(&r, r.state.step <= 5 ? 0 : 1e-3, said);
        if (*said) assert_int_equal(r.state.step, 15);
        times += *said != 0;
    }
    assert_int_equal(times, 1);
    r = run_of(&job);
    for (r.state.step = 1; r.state.step < 40; r.state.step++) {
        values[1] = r.state.step == 3 ? 1e-3 : 0; /* it moved once */
        warn(&r, 1e-3, said);
        assert_string_equal(said, "");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_numbers),
        cmocka_unit_test(check_first),
        cmocka_unit_test(check_silent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
