/* test_objectives.c: loss and gradient norm of every objective in models/objectives, in one
 * training step of the program, against PyTorch's in double precision
 * (tests/peers/make_objectives.py).  Those that cross pairs also where the step takes three
 * micro-batches.
 *
 * Tolerance: what the product promises in fp32 compute, 1e-3 of the figure.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base.h"

#define CASE "tests/num/cases/gqa"

static const char *const crossing[] = {"aot", "aot_unpaired", "bco_shift", "kto_pair"};

static double num(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    assert_true(json_is_number(v));
    return json_number_value(v);
}

/* One step over all six pairs; the step's line of metrics.jsonl. */
static json_t *step_of(const char *name, const char *dir, int tokens, Arena *arena) {
    const char *build = getenv("BUILD") ? getenv("BUILD") : "build";
    Err err = {0};
    char *file = arena_printf(arena, "%s/%s.dpo", dir, name);
    char *text = arena_printf(arena,
                              "use \"objectives/%s.dpo\"\nbase = auto\n"
                              "adapter pref = lora(rank = 4, alpha = 8) on all_linear\n"
                              "policy = base + pref\nreference = base\ntrain pref\n"
                              "run { steps = 1  batch = 6  tokens = %d  shuffle = off }\n"
                              "graph { compute = fp32 }\n",
                              name, tokens);
    assert_true(file_write(file, text, strlen(text), &err));
    char *command = arena_printf(arena,
                                 "%s/dpoc train %s --device=cpu --model " CASE " --data " CASE
                                 "/pairs.jsonl --adapter " CASE
                                 "/adapter -o %s/%s --overwrite --quiet 2> %s/log"
                                 " || { cat %s/log; false; }",
                                 build, file, dir, name, dir, dir);
    if (system(command) != 0) print_error("%s failed\n", command);
    char *lines = file_read(arena_printf(arena, "%s/%s/metrics.jsonl", dir, name), NULL, &err);
    assert_non_null(lines);
    char *line = strstr(lines, "{\"event\":\"step\"");
    if (!line) line = strstr(lines, "{\"event\": \"step\"");
    assert_non_null(line);
    json_t *step = json_loads(line, JSON_DISABLE_EOF_CHECK, NULL);
    assert_non_null(step);
    free(lines);
    return step;
}

static int differs(const char *name, json_t *want, json_t *got) {
    static const char *const keys[] = {"loss", "grad_norm"};
    int wrong = 0;
    for (int k = 0; k < 2; k++) {
        double g = num(got, keys[k]), w = num(want, keys[k]);
        if (fabs(g - w) <= 1e-3 * fabs(w)) continue;
        print_error("%s %s: got %.9g, want %.9g\n", name, keys[k], g, w);
        wrong++;
    }
    json_decref(got);
    return wrong;
}

static void losses_and_gradients_are_pytorchs(void **state) {
    json_t *figures = json_load_file("tests/num/objectives.json", 0, NULL);
    assert_non_null(figures);
    char dir[] = "/tmp/test_objectives_XXXXXX";
    assert_non_null(mkdtemp(dir));
    Arena *arena = arena_new();
    size_t seen = 0;
    int wrong = 0;
    for (int i = 0; i < embedded_count(); i++) {
        static const char folder[] = "models/objectives/";
        if (strncmp(embedded_name(i), folder, strlen(folder)) != 0) continue;
        const char *file = embedded_name(i) + strlen(folder);
        const char *name = arena_strn(arena, file, strlen(file) - strlen(".dpo"));
        wrong += differs(name, json_object_get(figures, name), step_of(name, dir, 2000, arena));
        bool coupled = false;
        for (size_t k = 0; k < COUNT(crossing); k++) coupled |= !strcmp(crossing[k], name);
        if (coupled)
            wrong += differs(name, json_object_get(figures, name), step_of(name, dir, 64, arena));
        seen++;
    }
    assert_int_equal(wrong, 0);
    assert_int_equal(seen, json_object_size(figures));
    assert_int_equal(system(arena_printf(arena, "rm -r %s", dir)), 0);
    json_decref(figures);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(losses_and_gradients_are_pytorchs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
