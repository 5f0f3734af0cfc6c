/* case.h: what tests that compare the program with kept figures share: running it as a person does,
 * its JSON beside the figures.
 *
 * Tolerances are the product's promise in fp32 compute: |dlogp| <= 1e-4 max(1, |logp|); loss and
 * grad_norm within 1e-3 relative; rewards within 1e-3 |reward| + beta 1e-5 (|logp| + |ref|).
 * Relies on cmocka.h being included before it.
 */
#ifndef TESTS_NUM_CASE_H
#define TESTS_NUM_CASE_H

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CASES     "tests/num/cases"
#define stop(...) (print_error(__VA_ARGS__), print_error("\n"), assert_true(false))

static inline char *run(const char *command, int *status) {
    FILE *f = popen(command, "r");
    assert_non_null(f);
    size_t cap = 1 << 20, len = 0, n;
    char *text = malloc(cap + 1);
    while ((n = fread(text + len, 1, cap - len, f)) > 0) {
        len += n;
        if (len == cap) text = realloc(text, (cap *= 2) + 1);
    }
    text[len] = 0;
    *status = pclose(f);
    return text;
}

static inline const char *build(void) {
    const char *b = getenv("BUILD");
    return b ? b : "build";
}

static inline json_t *figures_of(const char *dir) {
    char path[512];
    snprintf(path, sizeof path, "%s/figures.json", dir);
    json_error_t e;
    json_t *j = json_load_file(path, 0, &e);
    if (!j) stop("%s: %s", path, e.text);
    return j;
}

static inline double num(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) stop("no number '%s'", key);
    return json_number_value(v);
}

static inline void close_to(const char *what, double got, double want, double tol) {
    if (!(fabs(got - want) <= tol))
        stop("%s: got %.9g, want %.9g, tolerance %.3g", what, got, want, tol);
}

/* The per-pair log-probs and the loss that an eval command prints as JSON. */
static inline void compare_eval(const char *name, const char *command, json_t *want) {
    char what[256];
    int status;
    char *text = run(command, &status);
    if (status != 0) stop("%s: exit status %d", command, status);
    json_error_t e;
    json_t *got = json_loads(text, 0, &e);
    if (!got) stop("%s: not JSON: %s: %.300s", name, e.text, text);
    json_t *rows = json_object_get(got, "per_pair"), *refs = json_object_get(want, "per_pair");
    assert_int_equal(json_array_size(rows), json_array_size(refs));
    static const char *const keys[] = {"logp_chosen", "logp_rejected", "ref_logp_chosen",
                                       "ref_logp_rejected"};
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *r = json_array_get(rows, i), *w = json_array_get(refs, i);
        for (int k = 0; k < 4; k++) {
            snprintf(what, sizeof what, "%s pair %zu %s", name, i, keys[k]);
            close_to(what, num(r, keys[k]), num(w, keys[k]), 1e-4 * fmax(1, fabs(num(w, keys[k]))));
        }
        assert_true(num(r, "chosen_tokens") == num(w, "chosen_tokens"));
        assert_true(num(r, "rejected_tokens") == num(w, "rejected_tokens"));
    }
    snprintf(what, sizeof what, "%s loss", name);
    close_to(what, num(got, "loss"), num(want, "loss"), 1e-3 * fabs(num(want, "loss")) + 1e-5);
    json_decref(got);
    free(text);
}

/* Largest |logp| + |ref| of a case: what the reward tolerance is made of. */
static inline double reward_scale(json_t *figures) {
    json_t *rows = json_object_get(json_object_get(figures, "eval"), "per_pair");
    double most = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *w = json_array_get(rows, i);
        most = fmax(most, fabs(num(w, "logp_chosen")) + fabs(num(w, "ref_logp_chosen")));
        most = fmax(most, fabs(num(w, "logp_rejected")) + fabs(num(w, "ref_logp_rejected")));
    }
    return most;
}

static inline void compare_steps(const char *name, const char *run_dir, json_t *want,
                                 double scale) {
    char path[600], line[8192], what[256];
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    FILE *f = fopen(path, "r");
    if (!f) stop("%s is missing", path);
    size_t at = 0;
    while (fgets(line, sizeof line, f)) {
        json_t *got = json_loads(line, 0, NULL);
        assert_non_null(got);
        const char *event = json_string_value(json_object_get(got, "event"));
        if (event && strcmp(event, "step") == 0) {
            json_t *w = json_array_get(want, at);
            assert_non_null(w);
            static const char *const tight[] = {"loss", "grad_norm"};
            for (int k = 0; k < 2; k++) {
                snprintf(what, sizeof what, "%s step %zu %s", name, at + 1, tight[k]);
                close_to(what, num(got, tight[k]), num(w, tight[k]),
                         1e-3 * fabs(num(w, tight[k])) + 1e-7);
            }
            static const char *const rewards[] = {"rewards/chosen", "rewards/rejected"};
            for (int k = 0; k < 2; k++) {
                snprintf(what, sizeof what, "%s step %zu %s", name, at + 1, rewards[k]);
                close_to(what, num(got, rewards[k]), num(w, rewards[k]),
                         1e-3 * fabs(num(w, rewards[k])) + 0.1 * 1e-5 * scale);
            }
            close_to("learning_rate", num(got, "learning_rate"), num(w, "learning_rate"), 1e-9);
            at++;
        }
        json_decref(got);
    }
    fclose(f);
    assert_int_equal(at, json_array_size(want));
}

#endif
