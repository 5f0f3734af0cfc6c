/* test_nvrtc: NVRTC makes cubins of everything that is emitted for CUDA, for sm_80 and sm_90,
 * without a GPU: all hand-made Kerns and an instance of every file in kernels/cuda.  Prints
 * registers, spills and shared memory; none may spill.  Skipped where NVRTC is not installed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/emit/kerns.h"
#include "tests/emit/nvrtc.h"

static const Target cuda = {.name = "sm_80", .cuda = true};
static const char *const archs[] = {"sm_80", "sm_90"};

static void test_kerns(void **state) {
    (void)state;
    Case *c[MAX_CASES];
    const char *names[MAX_CASES], *symbols[MAX_CASES];
    const int n = all_cases(c);
    Text text = {0};
    text_add(&text, "%s", emit_prelude(&cuda));
    for (int i = 0; i < n; i++) {
        names[i] = c[i]->name;
        symbols[i] = intern_printf("k%d", i);
        emit_kern_cuda(&c[i]->k, symbols[i], &text);
        Kernel kernel = {0};
        kern_launch(&c[i]->k, &kernel);
        assert_in_range(kernel.threads, 32, 1024);
        assert_in_range(kernel.grid_y, 1, 65535);
        assert_true(kernel.rows_per_block > 0);
    }
    int bad = 0;
    for (size_t a = 0; a < COUNT(archs); a++)
        bad += nvrtc_check("kerns.cu", text.data, n, symbols, names, archs[a]);
    text_free(&text);
    for (int i = 0; i < n; i++) free(c[i]);
    assert_int_equal(bad, 0);
}

#define ATTEND                                                                                     \
    "#define HEADS 32\n#define KV_HEADS 8\n#define HEAD_DIM 128\n#define SCALE 8.8e-2f\n"          \
    "#define LD_Q 4096\n#define LD_O 4096\n#define LD_DO 4096\n#define LD_DQ 4096\n#define LD_K "  \
    "1024\n"                                                                                       \
    "#define LD_V 1024\n#define LD_DK 1024\n#define LD_DV 1024\n"

static void test_files(void **state) {
    (void)state;
    static const char *const types[] = {"f32", "bf16"};
    static const char *const formats[] = {"NF4", "FP4", "INT8"};
    const char *names[200], *symbols[200];
    int n = 0;
    Text text = {0};
    text_add(&text, "%s", emit_prelude(&cuda));
    for (int i = 0; i < embedded_count(); i++) {
        const char *path = embedded_name(i);
        if (strncmp(path, "kernels/cuda/", 13)) continue;
        if (!strstr(embedded(path, NULL), "SYMBOL")) continue; /* a part of the prelude */
        if (strstr(path, "_mma")) continue; /* bf16 alone: tests/cudasim/test_attention.c */
        for (int variant = 0; variant < 4; variant++) {
            const char *t = types[variant % 2];
            names[n] = path + 13;
            symbols[n] = intern_printf("k%d", n);
            text_add(&text, "#define SYMBOL k%d\n#define FN(name) k%d_##name\n" ATTEND, n, n);
            text_add(&text, "#define T_X %s\n#define T_Y %s\n#define T_Q %s\n#define T_DO %s\n", t,
                     t, t, t);
            text_add(&text, "#define T_DQ %s\n#define T_DK %s\n#define T_D %s\n#define WINDOW %d\n",
                     t, t, t, variant / 2 * 100);
            text_add(&text,
                     "#define COLS 100\n#define LD_X 100\n#define LD_Y 100\n#define ALIGN 16\n"
                     "#define VOCAB 128256\n"
                     "#define LD_D 128256\n#define BLOCK 64\n#define NESTED %d\n#define %s 1\n",
                     variant / 2, formats[variant % 3]);
            text_add(&text, "%s", embedded(path, NULL));
            static const char *const defined[] = {
                "SYMBOL", "FN",    "HEADS", "KV_HEADS", "HEAD_DIM", "SCALE", "LD_Q",
                "LD_O",   "LD_DO", "LD_DQ", "LD_K",     "LD_V",     "LD_DK", "LD_DV",
                "T_X",    "T_Y",   "T_Q",   "T_DO",     "T_DQ",     "T_DK",  "T_D",
                "WINDOW", "COLS",  "LD_X",  "LD_Y",     "VOCAB",    "LD_D",  "BLOCK",
                "NESTED", "NF4",   "FP4",   "INT8",     "ALIGN"};
            for (size_t d = 0; d < COUNT(defined); d++) text_add(&text, "#undef %s\n", defined[d]);
            n++;
        }
    }
    int bad = 0;
    for (size_t a = 0; a < COUNT(archs); a++)
        bad += nvrtc_check("files.cu", text.data, n, symbols, names, archs[a]);
    text_free(&text);
    assert_true(n >= 4 * 9);
    assert_int_equal(bad, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kerns), cmocka_unit_test(test_files)};
    if (!nvrtc_load()) {
        puts("libnvrtc is not installed");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
