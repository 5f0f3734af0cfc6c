/* The pass table: every pair "a before b" holds, every pass after the first is in a pair, every
 * row but those that are always needed has a switch in `graph`. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "compiler/dpoc.h"

#include <stdlib.h>
#include <string.h>

static int row_of(const char *name) {
    for (int i = 0; pass_table[i].name; i++)
        if (!strcmp(pass_table[i].name, name)) return i;
    return -1;
}

static void pairs_hold(void **state) {
    (void)state;
    for (int i = 0; order_pairs[i].before; i++) {
        int before = row_of(order_pairs[i].before), after = row_of(order_pairs[i].after);
        assert_true(before >= 0 && after >= 0);
        assert_true(before < after);
        assert_true(strlen(order_pairs[i].because) > 10);
    }
}

static void every_pass_stands_where_it_does_for_a_reason(void **state) {
    (void)state;
    for (int row = 0; pass_table[row].name; row++) {
        bool told = false;
        for (int i = 0; order_pairs[i].before; i++)
            told |= row_of(order_pairs[i].before) == row || row_of(order_pairs[i].after) == row;
        assert_true(told);
        assert_true(row_of(pass_table[row].name) == row); /* names are unique */
    }
}

/* The printed table of settings has `graph.NAME` for what can be switched off. */
static void switches_exist(void **state) {
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    settings_print(out, false);
    fclose(out);
    for (int row = 0; pass_table[row].name; row++) {
        char path[64];
        size_t n = strcspn(pass_table[row].name, "23456789");
        snprintf(path, sizeof path, "graph.%.*s", (int)n, pass_table[row].name);
        assert_true(pass_table[row].needed || strstr(text, path));
    }
    free(text);
}

static void the_table_prints(void **state) {
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    passes_print(out);
    fclose(out);
    for (int row = 0; pass_table[row].name; row++)
        assert_non_null(strstr(text, pass_table[row].sentence));
    for (int i = 0; order_pairs[i].before; i++)
        assert_non_null(strstr(text, order_pairs[i].because));
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pairs_hold),
        cmocka_unit_test(every_pass_stands_where_it_does_for_a_reason),
        cmocka_unit_test(switches_exist), cmocka_unit_test(the_table_prints)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
