/* test_kern: emitted C and CUDA against a straightforward interpreter (interpret.h): the same
 * bits at 1, 2 and 3 threads, for this processor and for a plain one, and on the simulated
 * device in every order of threads; and the interpreter against itself in double. */
#include <dlfcn.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/emit/interpret.h"

/* ---- compiling ------------------------------------------------------------------------------- */

typedef void Function(void *const *, const int64_t *);

static void *compile(Case *const *c, int n, const char *machine) {
    static const Target cpu = {.name = "cpu"};
    char dir[] = "/tmp/dpoc-kern-XXXXXX", command[600];
    assert_non_null(mkdtemp(dir));
    Text text = {0};
    text_add(&text, "%s", emit_prelude(&cpu));
    for (int i = 0; i < n; i++) {
        char symbol[32];
        snprintf(symbol, sizeof symbol, "k%d", i);
        text_add(&text, "/* %s */\n", c[i]->name);
        emit_kern_c(&c[i]->k, symbol, &text);
    }
    snprintf(command, sizeof command, "%s/k.c", dir);
    FILE *f = fopen(command, "w");
    assert_non_null(f);
    fwrite(text.data, 1, text.len, f);
    fclose(f);
    text_free(&text);
    snprintf(
        command, sizeof command,
        "cc -std=gnu11 -O3 %s -Wall -Wno-unused -Werror -ffp-contract=off -fno-math-errno -fopenmp "
        "-shared -fPIC -o %s/k.so %s/k.c",
        machine, dir, dir);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof command, "%s/k.so", dir);
    void *lib = dlopen(command, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(lib);
    snprintf(command, sizeof command, "rm -r %s", dir);
    if (!getenv("KEEP")) assert_int_equal(system(command), 0);
    return lib;
}

static int check_case(const Case *c, Function *f) {
    void *exact[MAX_ARG], *real[MAX_ARG], *got[MAX_ARG];
    fill(c, exact);
    fill(c, real);
    interpret(c, exact, true);
    interpret(c, real, false);
    int bad = !close_to(c, exact, real);
    for (int threads = 1; threads <= 3; threads++) {
        fill(c, got);
        omp_set_num_threads(threads);
        f(got, &c->rows);
        bad += !same_bits(c, got, exact);
        release(c, got);
    }
    release(c, exact);
    release(c, real);
    return bad;
}

static void check_machine(const char *machine) {
    Case *c[MAX_CASES];
    const int n = all_cases(c);
    void *lib = compile(c, n, machine);
    int bad = 0;
    for (int i = 0; i < n; i++) {
        char symbol[32];
        snprintf(symbol, sizeof symbol, "k%d", i);
        Function *f;
        *(void **)&f = dlsym(lib, symbol);
        assert_non_null(f);
        bad += check_case(c[i], f);
        free(c[i]);
    }
    dlclose(lib);
    assert_int_equal(bad, 0);
}

static void test_native(void **state) {
    (void)state;
    check_machine("-march=native");
}

static void test_plain(void **state) {
    (void)state;
    check_machine("-march=x86-64-v2");
}

/* CUDA text, thread by thread; the same bits as C. */
static int check_cuda(const Case *c, const char *symbol) {
    void *exact[MAX_ARG], *got[MAX_ARG];
    Kernel launch = {0};
    kern_launch(&c->k, &launch);
    fill(c, exact);
    interpret(c, exact, true);
    int bad = 0;
    for (int order = 0; order < (int)COUNT(device_orders); order++) {
        const int64_t blocks = (c->rows + launch.rows_per_block - 1) / launch.rows_per_block;
        const int grid[2] = {blocks > 0 ? (int)blocks : 1, launch.grid_y};
        fill(c, got);
        bad += !device_launch(symbol, got, c->k.narg, &c->rows, 1, grid, launch.threads, order);
        bad += !same_bits(c, got, exact);
        release(c, got);
    }
    release(c, exact);
    return bad;
}

static void test_cuda(void **state) {
    (void)state;
    static const Target cuda = {.name = "sm_80", .cuda = true};
    Case *c[MAX_CASES];
    const int n = all_cases(c);
    Text text = {0};
    text_add(&text, "%s", emit_prelude(&cuda));
    for (int i = 0; i < n; i++) {
        const char *symbol = intern_printf("k%d", i);
        emit_kern_cuda(&c[i]->k, symbol, &text);
    }
    assert_true(device_compile(text.data));
    int bad = 0;
    for (int i = 0; i < n; i++) {
        bad += check_cuda(c[i], intern_printf("k%d", i));
        free(c[i]);
    }
    text_free(&text);
    device_end();
    assert_int_equal(bad, 0);
}

int main(int argc, char **argv) {
    (void)argc;
    const bool device = simulated(argv);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_native), cmocka_unit_test(test_plain),
                                       cmocka_unit_test(test_cuda)};
    const int bad = _cmocka_run_group_tests("kern", tests, COUNT(tests) - !device, NULL, NULL);
    return bad || device ? bad : no_simulator();
}
