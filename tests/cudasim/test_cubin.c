/* Cubins of a plan through the cache, with the real NVRTC (needs no GPU): compiled once, found
 * again whatever else the plan holds, damage noticed, keyed by architecture and build of NVRTC. */
#include "../device/device.h"

#include "runtime/cache.h"
#include "runtime/cubin.h"

enum { KERNELS = 12 };

static Nvrtc *nvrtc;

/* A kernel that scales by i, with a table in shared memory to tell it by. */
static void make_kernel(Plan *plan, int i) {
    Kernel *k = &plan->kernels[i];
    k->symbol = arena_printf(plan->arena, "k_%d", i);
    k->kind = "map";
    k->text = arena_printf(plan->arena,
                           "extern \"C\" __global__ void k_%d(float *x, long long n) {\n"
                           "    __shared__ float t[%d];\n"
                           "    t[threadIdx.x] = x[threadIdx.x] * %d.0f;\n"
                           "    __syncthreads();\n"
                           "    if (threadIdx.x < n) x[threadIdx.x] = t[n - 1 - threadIdx.x];\n"
                           "}\n",
                           i, 64 + i, i);
}

static Plan *make_plan(void) {
    Plan *plan = plan_new();
    plan->device = "sm_80";
    plan->prelude = "/* nothing */\n";
    plan->kernels = NEW_ARRAY(plan->arena, Kernel, KERNELS);
    plan->nkernels = KERNELS;
    for (int i = 0; i < KERNELS; i++) make_kernel(plan, i);
    return plan;
}

static Cubins *make(const Plan *plan, const char *arch, const char *dir, int jobs) {
    Err err = {0};
    Cubins *cubins = cubins_make(plan, nvrtc, arch, dir, jobs, false, &err);
    if (!cubins) fail_msg("%s", err.text);
    return cubins;
}

/* Kernels that had to be compiled; each kernel must be in its module, with its figures. */
static int compiled(const Plan *plan, const char *arch, const char *dir) {
    Cubins *c = make(plan, arch, dir, 2);
    int n = c->compiled;
    for (int i = 0; i < plan->nkernels; i++) {
        const CubinModule *m = &c->module[c->module_of[i]];
        assert_memory_equal(m->data, "\177ELF", 4);
        assert_non_null(
            memmem(m->data, m->size, plan->kernels[i].symbol, strlen(plan->kernels[i].symbol) + 1));
        assert_true(c->figures[i].registers >= 4 && c->figures[i].registers < 64);
        assert_int_equal(c->figures[i].spill_bytes, 0);
        /* 4 bytes an element; newer architectures keep 1 KiB for themselves */
        if (!strcmp(arch, "sm_80")) assert_int_equal(c->figures[i].shared_bytes, 4 * (64 + i));
    }
    cubins_free(c);
    return n;
}

static int count_files(const char *dir, const char *end) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        size_t len = strlen(e->d_name);
        n += len > strlen(end) && !strcmp(e->d_name + len - strlen(end), end);
    }
    if (d) closedir(d);
    return n;
}

static void compiled_once(void **unused) {
    char *dir = temp_dir();
    Plan *plan = make_plan();
    assert_int_equal(compiled(plan, "sm_80", dir), KERNELS);
    assert_int_equal(count_files(dir, ".key"), KERNELS);
    assert_int_equal(count_files(dir, ".cubin"), 2); /* two jobs */
    assert_int_equal(count_files(dir, ".tmp"), 0);
    assert_int_equal(compiled(plan, "sm_80", dir), 0);
    /* One kernel changes, another goes: the rest is found where it is. */
    make_kernel(plan, 3);
    plan->kernels[3].text = arena_printf(plan->arena, "%s// other\n", plan->kernels[3].text);
    plan->nkernels--;
    assert_int_equal(compiled(plan, "sm_80", dir), 1);
    plan->prelude = "/* another */\n";
    assert_int_equal(compiled(plan, "sm_80", dir), KERNELS - 1);
    plan_free(plan);
    remove_dir(dir);
}

static void keyed(void **unused) {
    char *dir = temp_dir();
    Plan *plan = make_plan();
    assert_int_equal(compiled(plan, "sm_80", dir), KERNELS);
    assert_int_equal(compiled(plan, "sm_90", dir), KERNELS);
    Err err = {0};
    Library lib;
    assert_true(library_pair(0, 0, &lib, NULL, &err));
    lib.version += 10; /* as another minor version would */
    Nvrtc *mine = nvrtc;
    nvrtc = nvrtc_take(&lib, &err);
    assert_non_null(nvrtc);
    assert_int_equal(compiled(plan, "sm_80", dir), KERNELS);
    nvrtc_close(nvrtc);
    nvrtc = mine;
    assert_int_equal(compiled(plan, "sm_80", dir), 0);
    plan_free(plan);
    remove_dir(dir);
}

/* The same bytes for the same kernels, however many compile at once. */
static void the_same_bytes(void **unused) {
    char *first = temp_dir(), *second = temp_dir();
    Plan *plan = make_plan();
    Cubins *a = make(plan, "sm_80", first, 3), *b = make(plan, "sm_80", second, 3);
    assert_int_equal(a->nmodules, 3);
    for (int i = 0; i < a->nmodules; i++) {
        int j = 0;
        while (j < b->nmodules && strcmp(a->module[i].name, b->module[j].name)) j++;
        assert_true(j < b->nmodules && a->module[i].size == b->module[j].size);
        assert_memory_equal(a->module[i].data, b->module[j].data, a->module[i].size);
    }
    cubins_free(a);
    cubins_free(b);
    plan_free(plan);
    remove_dir(first);
    remove_dir(second);
}

static void damage_is_noticed(void **unused) {
    static const struct {
        const char *end, *bytes; /* NULL: the file is cut to n bytes */
        size_t n;
    } harm[] = {{".cubin", NULL, 0},  {".cubin", NULL, 2000},        {".cubin", "garbage", 7},
                {".key", NULL, 0},    {".key", "../../x 1 0 1", 13}, {".key", NULL, 20},
                {".key", "\n\n\n", 3}};
    Plan *plan = make_plan();
    for (size_t i = 0; i < COUNT(harm); i++) {
        char *dir = temp_dir();
        assert_int_equal(compiled(plan, "sm_80", dir), KERNELS);
        DIR *d = opendir(dir);
        for (struct dirent *e; (e = readdir(d));) {
            if (!strstr(e->d_name, harm[i].end)) continue;
            FILE *f = fopen(path_join(plan->arena, dir, e->d_name), "r+");
            if (harm[i].bytes)
                fwrite(harm[i].bytes, 1, harm[i].n, f);
            else
                assert_int_equal(ftruncate(fileno(f), (off_t)harm[i].n), 0);
            fclose(f);
        }
        closedir(d);
        assert_int_equal(compiled(plan, "sm_80", dir), KERNELS);
        assert_int_equal(compiled(plan, "sm_80", dir), 0); /* whole again */
        remove_dir(dir);
    }
    plan_free(plan);
}

/* What is printed on stderr while a plan is compiled. */
static void says(const Plan *plan, const char *dir, char *said, size_t size) {
    int pipes[2], saved = dup(2);
    assert_int_equal(pipe(pipes), 0);
    fflush(stderr);
    dup2(pipes[1], 2);
    Err err = {0};
    Cubins *c = cubins_make(plan, nvrtc, "sm_80", dir, 2, true, &err);
    dup2(saved, 2);
    close(saved);
    close(pipes[1]);
    ssize_t n = read(pipes[0], said, size - 1);
    said[n < 0 ? 0 : n] = 0;
    close(pipes[0]);
    assert_non_null(c);
    assert_int_equal(c->compiled, KERNELS);
    cubins_free(c);
}

static void cannot_be_written(void **unused) {
    char said[1000];
    Plan *plan = make_plan();
    says(plan, "/proc/dpoc-cache", said, sizeof said);
    char *warning = strstr(said, "warning: kernel cache /proc/dpoc-cache cannot be written");
    assert_non_null(warning);
    assert_null(strstr(warning + 1, "warning")); /* said once */
    plan_free(plan);
}

static void a_rejected_kernel_is_our_bug(void **unused) {
    char *dir = temp_dir();
    Plan *plan = make_plan();
    Err err = {0};
    plan->kernels[5].text = "extern \"C\" __global__ void k_5() { nonsense; }\n";
    assert_null(cubins_make(plan, nvrtc, "sm_80", dir, 2, false, &err));
    assert_int_equal(err.code, EXIT_BUG);
    assert_non_null(strstr(err.text, "nonsense"));
    plan_free(plan);
    remove_dir(dir);
}

/* Compute capability 19.9 is none. */
static void an_unknown_arch_is_named(void **unused) {
    char *dir = temp_dir();
    Plan *plan = make_plan();
    Err err = {0};
    assert_null(cubins_make(plan, nvrtc, "sm_199", dir, 2, false, &err));
    assert_int_equal(err.code, EXIT_DEVICE);
    assert_non_null(strstr(err.text, "makes no code for sm_199"));
    assert_non_null(strstr(err.text, "help: a later version may: `pip install"));
    plan_free(plan);
    remove_dir(dir);
}

static void spread(void **unused) {
    Plan *plan = make_plan();
    int kernel[KERNELS], group[KERNELS], in[KERNELS] = {0};
    for (int i = 0; i < KERNELS; i++) kernel[i] = i;
    assert_int_equal(cache_spread(plan, kernel, KERNELS, 1 << 20, 1, group), 1);
    assert_int_equal(cache_spread(plan, kernel, KERNELS, 1 << 20, 4, group), 4);
    for (int i = 0; i < KERNELS; i++) in[group[i]]++;
    for (int i = 0; i < 4; i++) assert_int_equal(in[i], KERNELS / 4);
    assert_int_equal(cache_spread(plan, kernel, 2, 1 << 20, 4, group), 2);
    assert_true(cache_spread(plan, kernel, KERNELS, 500, 1, group) > 4);
    plan_free(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(compiled_once),
                                       cmocka_unit_test(keyed),
                                       cmocka_unit_test(the_same_bytes),
                                       cmocka_unit_test(damage_is_noticed),
                                       cmocka_unit_test(cannot_be_written),
                                       cmocka_unit_test(a_rejected_kernel_is_our_bug),
                                       cmocka_unit_test(an_unknown_arch_is_named),
                                       cmocka_unit_test(spread)};
    Err err = {0};
    if (!(nvrtc = nvrtc_open(&err))) {
        puts(err.text);
        return 77;
    }
    int bad = cmocka_run_group_tests(tests, NULL, NULL);
    nvrtc_close(nvrtc);
    return bad;
}
