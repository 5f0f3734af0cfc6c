/* The kernel cache: compiled once, found again, damage noticed, no place to write or to run
 * from. */
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

/* Files in `dir` whose name ends so. */
static int count(const char *dir, const char *end) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        size_t len = strlen(e->d_name);
        n += len > strlen(end) && !strcmp(e->d_name + len - strlen(end), end);
    }
    if (d) closedir(d);
    return n;
}

/* The sum of the modification times (in ns) of all modules: changes when one is made again. */
static int64_t stamp(const char *dir) {
    DIR *d = opendir(dir);
    int64_t sum = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[4200];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (strstr(e->d_name, ".so") && !stat(path, &st))
            sum += st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec;
    }
    if (d) closedir(d);
    return sum;
}

/* Loads the plan's kernels; true when that worked. */
static bool load(const char *cache, const Plan *plan, Err *err) {
    Device *dev = open_cpu(cache, NULL, 2);
    Exec *exec = exec_open(plan, dev, err);
    exec_close(exec);
    dev->ops->close(dev);
    return exec != NULL;
}

/* What load prints on stderr, and whether it worked. */
static bool load_says(const char *cache, const Plan *plan, char *said, size_t size) {
    int pipes[2];
    Err err = {0};
    assert_int_equal(pipe(pipes), 0);
    fflush(stderr);
    int saved = dup(2);
    dup2(pipes[1], 2);
    bool ok = load(cache, plan, &err);
    dup2(saved, 2);
    close(saved);
    close(pipes[1]);
    ssize_t n = read(pipes[0], said, size - 1);
    close(pipes[0]);
    said[n < 0 ? 0 : n] = 0;
    return ok;
}

static Plan *read_plan(void) {
    Err err = {0};
    Plan *plan = plan_read(PLAN, &err);
    if (!plan) fail_msg("%s", err.text);
    return plan;
}

static void compiled_once(void **unused) {
    Err err = {0};
    char *dir = temp_dir();
    Plan *plan = read_plan();
    assert_true(load(dir, plan, &err));
    int64_t first = stamp(dir);
    assert_int_equal(count(dir, ".key"), plan->nkernels);
    assert_int_equal(count(dir, ".so"), 2); /* two jobs */
    assert_int_equal(count(dir, ".c") + count(dir, ".o") + count(dir, ".log") + count(dir, ".tmp"),
                     0);
    assert_true(load(dir, plan, &err));
    assert_true(stamp(dir) == first);
    /* One kernel changes: the others are found where they are. */
    plan->kernels[0].text = "void k_half(void *const *p, const int64_t *n) { (void)p, (void)n; }";
    assert_true(load(dir, plan, &err));
    assert_int_equal(count(dir, ".key"), plan->nkernels + 1);
    assert_int_equal(count(dir, ".so"), 3);
    plan_free(plan);
    remove_dir(dir);
}

/* Overwrites every file that ends so with `n` bytes. */
static void damage(const char *dir, const char *end, const char *bytes, size_t n) {
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[4200];
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        size_t len = strlen(e->d_name);
        if (len < strlen(end) || strcmp(e->d_name + len - strlen(end), end)) continue;
        FILE *f = fopen(path, "r+");
        assert_non_null(f);
        if (bytes)
            fwrite(bytes, 1, n, f);
        else
            assert_int_equal(ftruncate(fileno(f), (off_t)n), 0);
        fclose(f);
    }
    if (d) closedir(d);
}

static void damage_is_noticed(void **unused) {
    static const struct {
        const char *end, *bytes;
        size_t n;
    } harm[] = {{".so", NULL, 0},      {".so", NULL, 2000},
                {".so", "garbage", 7}, {".key", "../../x 1 0", 11},
                {".key", NULL, 0},     {".key", NULL, 20}};
    Plan *plan = read_plan();
    for (size_t i = 0; i < COUNT(harm); i++) {
        Err err = {0};
        char *dir = temp_dir(), said[500];
        assert_true(load(dir, plan, &err));
        damage(dir, harm[i].end, harm[i].bytes, harm[i].n);
        assert_true(load_says(dir, plan, said, sizeof said));
        assert_string_equal(said, "");
        int64_t again = stamp(dir); /* and now it is whole */
        assert_true(load(dir, plan, &err));
        assert_true(stamp(dir) == again);
        remove_dir(dir);
    }
    plan_free(plan);
}

static void cannot_be_written(void **unused) {
    char said[500];
    Plan *plan = read_plan();
    assert_true(load_says("/proc/dpoc-cache", plan, said, sizeof said));
    assert_non_null(strstr(said, "warning: kernel cache /proc/dpoc-cache cannot be written"));
    assert_null(strstr(strchr(said, '\n') + 1, "warning")); /* said once */
    plan_free(plan);
}

/* A cache on a file system of its own; needs the right to mount, in a name space of its own.
 * Loading works, and `word` is said, both times. */
static void mounted(unsigned long flags, const char *options, const char *word) {
    char *dir = temp_dir(), said[500];
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
            mount("none", dir, "tmpfs", flags, options))
            _exit(77);
        Plan *plan = read_plan();
        bool ok = load_says(dir, plan, said, sizeof said) && strstr(said, word) &&
                  load_says(dir, plan, said, sizeof said) && strstr(said, word) &&
                  count(dir, ".c") + count(dir, ".log") + count(dir, ".o") == 0;
        if (!ok) fprintf(stderr, "%s", said);
        _exit(ok ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    remove_dir(dir);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) skip();
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void cannot_be_run_from(void **unused) {
    mounted(MS_NOEXEC, NULL, "noexec");
}

static void is_full(void **unused) {
    mounted(0, "size=4k", "is on a full disk");
    mounted(0, "size=16k", "is on a full disk");
}

static void no_compiler(void **unused) {
    Err err = {0};
    DeviceOptions options = {.name = "cpu", .cc = "no-such-compiler"};
    assert_null(device_open(&options, &err));
    assert_int_equal(err.code, EXIT_DEVICE);
    assert_non_null(strstr(err.text, "no C compiler: `no-such-compiler`"));
    assert_non_null(strstr(err.text, "apt-get install gcc"));
}

/* A compiler that answers --version and cannot compile is the machine's fault, not ours. */
static void useless_compiler(void **unused) {
    Err err = {0};
    char *dir = temp_dir(), cc[4200];
    snprintf(cc, sizeof cc, "%s/cc.sh", dir);
    FILE *f = fopen(cc, "w");
    fprintf(f, "#!/bin/sh\n[ \"$1\" = --version ] && { echo useless 1.0; exit; }\n"
               "echo cannot find -lgomp; exit 1\n");
    fclose(f);
    chmod(cc, 0700);
    Plan *plan = read_plan();
    Device *dev = open_cpu(dir, cc, 2);
    assert_null(exec_open(plan, dev, &err));
    assert_int_equal(err.code, EXIT_DEVICE);
    assert_non_null(strstr(err.text, "cannot find -lgomp"));
    assert_int_equal(count(dir, ".c") + count(dir, ".log"), 0);
    dev->ops->close(dev);
    plan_free(plan);
    remove_dir(dir);
}

static void rejected_kernel_is_our_bug(void **unused) {
    Err err = {0};
    char *dir = temp_dir();
    Plan *plan = read_plan();
    plan->kernels[2].text = "void k_take(void *const *p, const int64_t *n) { nonsense; }";
    assert_false(load(dir, plan, &err));
    assert_int_equal(err.code, EXIT_BUG);
    assert_non_null(strstr(err.text, "nonsense"));
    assert_true(count(dir, ".c") >= 1); /* kept for the report */
    plan_free(plan);
    remove_dir(dir);
}

static void devices_by_name(void **unused) {
    DeviceOptions cuda = {.name = "cuda"}, odd = {.name = "gpu"};
    Err e1 = {0}, e2 = {0};
    if (!cuda_visible()) {
        assert_null(device_open(&cuda, &e1));
        assert_int_equal(e1.code, EXIT_DEVICE);
    }
    assert_null(device_open(&odd, &e2));
    assert_int_equal(e2.code, EXIT_USAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compiled_once),     cmocka_unit_test(damage_is_noticed),
        cmocka_unit_test(cannot_be_written), cmocka_unit_test(cannot_be_run_from),
        cmocka_unit_test(is_full),           cmocka_unit_test(no_compiler),
        cmocka_unit_test(useless_compiler),  cmocka_unit_test(rejected_kernel_is_our_bug),
        cmocka_unit_test(devices_by_name)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
