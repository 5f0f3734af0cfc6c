/* The CUDA device (runtime/cuda*.c) on the simulated driver: opening and what stands in its way,
 * memory, launches, order within and between queues, times, recorded work. */
#include "on_device.h"

/* ---- opening --------------------------------------------------------------------------------- */

static void opens(void **unused) {
    must(open_named("cuda"));
    assert_int_equal(dev->arch, 80);
    assert_non_null(strstr(dev->description, "cuda: Simulated A100, sm_80, "));
    assert_non_null(strstr(dev->description, " GiB free of 80.0, driver 13.0, NVRTC 13."));
    assert_non_null(strstr(dev->description, ", cuBLASLt 13."));
    int64_t available = 0, total = 0;
    must(ops->memory(dev, &available, &total, &err));
    assert_true(total == INT64_C(80) << 30 && available > 0 && available <= total);
    shut();
    must(open_named("auto"));
    assert_string_equal(ops->name, "cuda");
    shut();
    must(open_named("cuda:0"));
    shut();
}

static void what_stands_in_its_way(void **unused) {
    static const struct {
        const char *set, *to, *name;
        int code;
        const char *text, *also;
    } ways[] = {
        {"CUDASIM_DEVICES", "0", "cuda", EXIT_DEVICE, "the NVIDIA driver sees no GPU",
         "nvidia-smi"},
        {"CUDA_VISIBLE_DEVICES", "-1", "cuda", EXIT_DEVICE,
         "the NVIDIA driver sees no GPU: CUDA_VISIBLE_DEVICES=-1", "--device=cpu"},
        {"CUDASIM_SM", "75", "cuda", EXIT_DEVICE, "Simulated T4 has compute capability 7.5", "8.0"},
        {"CUDASIM_DRIVER", "11080", "cuda", EXIT_DEVICE, "is a driver for CUDA 11.8", "update"},
        {"CUDASIM_DRIVER", "12040", "cuda", EXIT_DEVICE,
         "13.0 is newer than the driver, which is for CUDA 12.4", "nvidia-cuda-nvrtc-cu12"},
        {"CUDASIM_FAIL", "cuInit:1:803", "cuda", EXIT_DEVICE, "of different versions", "restart"},
        {"CUDASIM_FAIL", "cuInit:1:999", "cuda", EXIT_DEVICE, "cuInit: CUDA_ERROR_UNKNOWN (999)",
         "unknown error"},
        {"CUDASIM_SM", "80", "cuda:1", EXIT_DEVICE, "--device=cuda:1: there is 1 GPU", "cuda:0"},
        {"CUDASIM_SM", "80", "cuda:x", EXIT_USAGE, "--device=cuda:x", "cuda:0"},
        {"CUDASIM_SM", "80", "cuda:", EXIT_USAGE, "--device=cuda:", "cuda:0"},
    };
    for (size_t i = 0; i < COUNT(ways); i++) {
        setenv(ways[i].set, ways[i].to, 1);
        bool opened = open_named(ways[i].name);
        unsetenv(ways[i].set);
        assert_false(opened);
        assert_int_equal(err.code, ways[i].code);
        says(ways[i].text);
        says(ways[i].also);
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void memory(void **unused) {
    must(ready());
    char *all = malloc((size_t)ARENA), *back = malloc((size_t)ARENA);
    must(ops->read(dev, 0, all, ARENA, &err));
    for (int64_t i = 0; i < ARENA; i++)
        if (all[i]) fail_msg("byte %lld is not zero", (long long)i);
    assert_false(ops->alloc(dev, 4096, &err)); /* one arena */
    /* More than all slots of pinned memory, in pieces of odd sizes. */
    for (int64_t i = 0; i < ARENA; i++) all[i] = (char)(i * 7 + i / 4099);
    for (int64_t i = 0, n = 1; i < ARENA; i += n, n = n * 3 % 4000037 + 1) {
        if (n > ARENA - i) n = ARENA - i;
        must(ops->write(dev, i, all + i, n, &err));
    }
    must(ops->read(dev, 0, back, ARENA, &err));
    assert_memory_equal(all, back, ARENA);
    must(ops->zero(dev, dev->base + 1000, 5000, &err));
    must(ops->copy(dev, dev->base + 20000, dev->base + 3, 1000, &err));
    must(ops->read(dev, 0, back, 40000, &err));
    memset(all + 1000, 0, 5000);
    memcpy(all + 20000, all + 3, 1000);
    assert_memory_equal(all, back, 40000);
    free(all);
    free(back);
    shut();
}

static void out_of_memory(void **unused) {
    must(open_named("cuda"));
    assert_false(ops->alloc(dev, INT64_C(100) << 30, &err));
    assert_int_equal(err.code, EXIT_MEMORY);
    says("the arena of 100.0 GiB cannot be had on Simulated A100: ");
    says("of 80.0 GiB are free");
    says("--memory=");
    shut();
}

/* ---- launches -------------------------------------------------------------------------------- */

static void launches(void **unused) {
    must(ready());
    must(put(X, 40) && put(Y, 2));
    must(launch2(ADD, X, Y, ROWS)); /* x += y */
    assert_int_equal(get(X), 42);
    must(launch2(ADD, X, -1, ROWS)); /* a null pointer: x += 1 */
    assert_int_equal(get(X), 43);
    int x[ROWS], y[ROWS];
    for (int i = 0; i < ROWS; i++) x[i] = i;
    must(ops->write(dev, X, x, sizeof x, &err));
    must(launch1(REVERSE, X, ROWS)); /* 100 KiB of dynamic shared memory */
    must(ops->read(dev, X, y, sizeof y, &err));
    for (int i = 0; i < ROWS; i++) assert_int_equal(y[i], ROWS - 1 - i);
    /* ceil(130 / 64) x 3 blocks; without rows one block a column all the same */
    static const struct {
        int64_t n;
        int blocks;
    } grids[] = {{130, 9}, {128, 6}, {1, 3}, {0, 3}};
    for (size_t i = 0; i < COUNT(grids); i++) {
        must(ops->zero(dev, at(X), sizeof x, &err) && launch1(OFTEN, X, grids[i].n));
        must(ops->read(dev, X, x, sizeof x, &err));
        for (int j = 0; j < 20; j++)
            assert_int_equal(x[j], j < grids[i].blocks ? grids[i].n + 1 : 0);
    }
    shut();
}

static void loading(void **unused) {
    Plan *other = make_plan();
    must(open_named("cuda"));
    other->device = "sm_90";
    assert_false(ops->load(dev, other, &err));
    assert_int_equal(err.code, EXIT_DEVICE);
    says("the plan was made for sm_90 and cannot run on Simulated A100 (sm_80)");
    shut();
    must(open_named("cuda"));
    other->device = "sm_80";
    other->kernels[REVERSE].shared_bytes = 200 << 10;
    assert_false(ops->load(dev, other, &err));
    assert_int_equal(err.code, EXIT_BUG);
    says("kernel reverse (rows) wants 204800 bytes of shared memory");
    shut();
    setenv("CUDASIM_SM", "90", 1); /* a plan for sm_80 runs on sm_90 */
    must(ready() && put(X, 1) && launch2(ADD, X, -1, ROWS));
    assert_int_equal(get(X), 2);
    shut();
    unsetenv("CUDASIM_SM");
    plan_free(other);
}

/* ---- order ----------------------------------------------------------------------------------- */

static const char *const lazy[] = {"0", "1", "random:1", "random:2", "random:3", "random:4"};

/* Writes keep their order with kernels, though their memory comes back later. */
static void writes_in_order(void **unused) {
    for (size_t i = 0; i < COUNT(lazy); i++) {
        setenv("CUDASIM_LAZY", lazy[i], 1);
        must(ready() && put(X, 0));
        int expect = 0;
        for (int k = 0; k < 20; k++) {
            must(put(Y, k) && launch2(FOLD, X, Y, ROWS));
            expect = (int)(3u * (unsigned)expect + (unsigned)k);
        }
        assert_int_equal(get(X), expect);
        shut();
    }
    unsetenv("CUDASIM_LAZY");
}

static void expect_two_queues(int times) {
    unsigned x = 1, y = 2, z = 3, w = 4;
    for (int i = 0; i < times; i++) {
        x = 3 * x + y, z = 3 * z + x, y = 4 * y;
        w = 3 * w + z, x = 3 * x + w;
    }
    assert_int_equal(get(X), (int)x);
    assert_int_equal(get(Y), (int)y);
    assert_int_equal(get(Z), (int)z);
    assert_int_equal(get(W), (int)w);
}

static void queues(void **unused) {
    for (size_t i = 0; i < COUNT(lazy); i++) {
        setenv("CUDASIM_LAZY", lazy[i], 1);
        must(ready() && put(X, 1) && put(Y, 2) && put(Z, 3) && put(W, 4));
        must(ops->join(dev, &err)); /* nothing to wait for */
        must(two_queues() && two_queues() && two_queues());
        expect_two_queues(3);
        shut();
    }
    unsetenv("CUDASIM_LAZY");
}

static void recorded(void **unused) {
    for (size_t i = 0; i < COUNT(lazy); i++) {
        setenv("CUDASIM_LAZY", lazy[i], 1);
        void *work = NULL;
        must(ready() && put(X, 1) && put(Y, 2) && put(Z, 3) && put(W, 4));
        must(ops->queue(dev, 1, &err) && ops->queue(dev, 0, &err)); /* something to join before */
        must(ops->record(dev, &err) && two_queues() && two_queues());
        Err misuse = {0};
        assert_false(ops->sync(dev, &misuse) || ops->write(dev, 0, "", 1, &misuse) ||
                     ops->stamp(dev, 0, &misuse));
        assert_int_equal(misuse.code, EXIT_BUG);
        must(ops->recorded(dev, &work, &err));
        expect_two_queues(0); /* noted, not done */
        must(ops->replay(dev, work, &err) && ops->replay(dev, work, &err));
        expect_two_queues(4);
        must(two_queues()); /* beside it, as before */
        must(ops->replay(dev, work, &err));
        expect_two_queues(7);
        ops->forget(dev, work);
        shut();
    }
    unsetenv("CUDASIM_LAZY");
}

static void times(void **unused) {
    must(ready());
    double all = -1, part = -1;
    must(ops->stamp(dev, 0, &err) && launch2(ADD, X, -1, ROWS) &&
         ops->stamp(dev, STAMPS - 1, &err));
    must(launch2(ADD, X, -1, ROWS) && ops->stamp(dev, 7, &err) && ops->sync(dev, &err));
    must(ops->seconds(dev, 0, 7, &all, &err) && ops->seconds(dev, 0, STAMPS - 1, &part, &err));
    assert_true(part > 0 && all >= part && all < 10);
    shut();
}

int main(int argc, char **argv) {
    simulate(argv);
    cache = temp_dir();
    plan = make_plan();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens),           cmocka_unit_test(what_stands_in_its_way),
        cmocka_unit_test(memory),          cmocka_unit_test(out_of_memory),
        cmocka_unit_test(launches),        cmocka_unit_test(loading),
        cmocka_unit_test(writes_in_order), cmocka_unit_test(queues),
        cmocka_unit_test(recorded),        cmocka_unit_test(times)};
    int bad = cmocka_run_group_tests(tests, NULL, NULL);
    plan_free(plan);
    remove_dir(cache);
    return bad;
}
