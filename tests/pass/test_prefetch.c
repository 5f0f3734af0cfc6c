/* prefetch: a dequantization runs beside the product before the one that reads it, the memory plan
 * knows, and the executor joins neither too late nor too early: a device that only writes down what
 * it is given shows which step could run beside which. */
#include "compiler/spec.h"
#include "runtime/exec.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *model_dir(void) {
    const char *build = getenv("BUILD");
    const char *dir = intern_printf("%s/tests/prefetch", build ? build : "build");
    Err err = {0};
    size_t len;
    char *config = file_read("tests/num/cases/gqa/config.json", &len, &err);
    if (!config || !dir_make(dir, &err) ||
        !file_write(intern_printf("%s/config.json", dir), config, len, &err))
        fail_msg("%s", err.text);
    free(config);
    return dir;
}

static Plan *compile(const char *target, const char *setting, int64_t budget) {
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    CheckOptions check = {.file = "tests/pass/quantized.dpo",
                          .model = model_dir(),
                          .set = &setting,
                          .nset = 1,
                          .is_cuda = true,
                          .random_weights = true,
                          .needs_model = true};
    Spec *spec = check_file(arena, diags, &check);
    if (!spec) diags_print(diags, 0, stderr, false);
    assert_non_null(spec);
    CompileOptions options = {.target = target_by_name(target), .budget = budget};
    options.want[UNIT_TRAIN] = true;
    Plan *plan = compile_spec(spec, &options);
    assert_non_null(plan);
    const char *wrong = plan_check(plan, arena);
    if (wrong) fail_msg("%s", wrong);
    arena_free(arena);
    return plan;
}

static int count(const Plan *plan, bool side) {
    int n = 0;
    for (int p = 0; p < plan->nprograms; p++)
        for (int i = 0; i < plan->programs[p].nsteps; i++) {
            const Step *s = &plan->programs[p].steps[i];
            bool dequant =
                s->kind == STEP_KERNEL && !strcmp(plan->kernels[s->kernel].kind, "dequant");
            assert_true(!s->side || dequant);
            n += side ? s->side : dequant;
        }
    return n;
}

static void on_cuda_only(void **unused) {
    Plan *on = compile("sm_80", "graph.prefetch=on", 0),
         *off = compile("sm_80", "graph.prefetch=off", 0),
         *cpu = compile("cpu", "graph.prefetch=on", 0);
    assert_int_equal(count(on, false), count(off, false));
    /* All but the first of the program, which may have no product before it. */
    assert_true(count(on, true) >= count(on, false) - 1);
    assert_int_equal(count(off, true), 0);
    assert_int_equal(count(cpu, true), 0);
    assert_string_equal(on->hash, off->hash);
    plan_free(on);
    plan_free(off);
    plan_free(cpu);
}

/* One dequantized weight more is live: where not even that is to be had, prefetching goes. */
static void memory(void **unused) {
    Plan *on = compile("sm_80", "graph.prefetch=on", 0),
         *least = compile("sm_80", "graph.prefetch=off", 1000);
    assert_false(least->fits);
    Plan *tight = compile("sm_80", "graph.prefetch=on", least->smallest_bytes);
    assert_true(tight->fits);
    assert_int_equal(count(tight, true), 0);
    Plan *roomy = compile("sm_80", "graph.prefetch=on", on->arena_bytes);
    assert_int_equal(count(roomy, true), count(on, true));
    plan_free(on);
    plan_free(least);
    plan_free(tight);
    plan_free(roomy);
}

/* A plan whose side results end before they are waited for is refused. */
static void lifetimes_are_checked(void **unused) {
    Arena *arena = arena_new();
    Plan *plan = compile("sm_80", "graph.prefetch=on", 0);
    for (int p = 0; p < plan->nprograms; p++)
        for (int i = 0; i < plan->programs[p].nsteps; i++) {
            Step *s = &plan->programs[p].steps[i];
            if (!s->side) continue;
            Buf *out = &plan->bufs[s->args[s->nargs - 1].buf];
            assert_false(out->persistent);
            assert_true(plan_side_end(plan, p, i) > i + 1); /* something runs beside it */
            int last = out->last;
            out->last = plan_side_end(plan, p, i) - 1;
            assert_non_null(plan_check(plan, arena));
            out->last = last;
        }
    assert_null(plan_check(plan, arena));
    plan_free(plan);
    arena_free(arena);
}

#ifndef HARD /* there everything runs on one queue */
/* ---- a device that writes down --------------------------------------------------------------- */

typedef struct Given { /* one piece of work */
    const Step *step;
    int queue, joins, forks; /* how many joins, and turns to queue 1, came before */
} Given;

typedef struct Recorder {
    Device dev;
    Given given[20000];
    int n, queue, joins, forks, records, replays, forgotten;
} Recorder;

static bool note(Device *dev) {
    Recorder *r = (Recorder *)dev;
    assert_true(r->n < (int)COUNT(r->given));
    r->given[r->n++] = (Given){dev->step, r->queue, r->joins, r->forks};
    return true;
}
static bool r_alloc(Device *dev, int64_t bytes, Err *err) {
    return true;
}
static bool r_load(Device *dev, const Plan *plan, Err *err) {
    return true;
}
static bool r_prepare(Device *d, const Gemm *g, int64_t m, int64_t n, int64_t k, Err *err) {
    return true;
}
static bool r_launch(Device *dev, int kernel, void *const *p, int np, const int64_t *n, int nn,
                     Err *err) {
    return note(dev);
}
static bool r_gemm(Device *dev, const Gemm *g, void *const *p, int64_t m, int64_t n, int64_t k,
                   Err *err) {
    return note(dev);
}
static bool r_zero(Device *dev, void *p, int64_t bytes, Err *err) {
    return note(dev);
}
static bool r_copy(Device *dev, void *to, const void *from, int64_t bytes, Err *err) {
    return note(dev);
}
static bool r_write(Device *dev, int64_t offset, const void *host, int64_t bytes, Err *err) {
    return true;
}
static bool r_read(Device *dev, int64_t offset, void *host, int64_t bytes, Err *err) {
    memset(host, 0xff, (size_t)bytes); /* HARD: fences hold */
    return true;
}
static bool r_sync(Device *dev, Err *err) {
    return true;
}
static void r_span(Device *dev, int64_t offset, int64_t bytes) {}
static bool r_queue(Device *dev, int queue, Err *err) {
    Recorder *r = (Recorder *)dev;
    r->forks += queue == 1;
    r->queue = queue;
    return true;
}
static bool r_join(Device *dev, Err *err) {
    Recorder *r = (Recorder *)dev;
    assert_int_equal(r->queue, 0);
    r->joins++;
    return true;
}
static bool r_record(Device *dev, Err *err) {
    ((Recorder *)dev)->records++;
    return true;
}
static bool r_recorded(Device *dev, void **work, Err *err) {
    *work = dev;
    return true;
}
static bool r_replay(Device *dev, void *work, Err *err) {
    ((Recorder *)dev)->replays++;
    return true;
}
static void r_forget(Device *dev, void *work) {
    ((Recorder *)dev)->forgotten++;
}

static const DeviceOps recorder_ops = {
    .name = "recorder",
    .alloc = r_alloc,
    .load = r_load,
    .gemm_prepare = r_prepare,
    .launch = r_launch,
    .gemm = r_gemm,
    .zero = r_zero,
    .copy = r_copy,
    .write = r_write,
    .read = r_read,
    .sync = r_sync,
    .workspace = r_span,
    .scratch = r_span,
    .queue = r_queue,
    .join = r_join,
    .record = r_record,
    .recorded = r_recorded,
    .replay = r_replay,
    .forget = r_forget,
};

static bool shares(const Plan *plan, const Step *a, const Step *b) {
    for (int i = 0; i < a->nargs; i++)
        for (int k = 0; k < b->nargs; k++) {
            const Arg *x = &a->args[i], *y = &b->args[k];
            if (x->buf < 0 || y->buf < 0) continue;
            const Buf *p = &plan->bufs[x->buf], *q = &plan->bufs[y->buf];
            if (p->persistent || q->persistent) continue;
            if (p->offset < q->offset + q->bytes && q->offset < p->offset + p->bytes) return true;
        }
    return false;
}

/* Whatever can run beside a side step touches none of its transient bytes. */
static int check_given(const Plan *plan, const Recorder *r) {
    int beside = 0;
    for (int i = 0; i < r->n; i++) {
        const Given *side = &r->given[i];
        if (side->queue != 1) continue;
        assert_true(side->step->side);
        for (int k = i + 1; k < r->n && r->given[k].joins == side->joins; k++) {
            assert_int_equal(r->given[k].queue, 0); /* one ahead, never two */
            assert_false(shares(plan, side->step, r->given[k].step));
            beside += r->given[k].step->kind == STEP_GEMM;
        }
    }
    return beside;
}

static void joins_in_time(void **unused) {
    static Recorder r;
    Plan *plan = compile("sm_80", "graph.prefetch=on", 0);
    Err err = {0};
    r.dev.ops = &recorder_ops;
    Exec *exec = exec_open(plan, &r.dev, &err);
    if (!exec) fail_msg("%s", err.text);
    static const char *const programs[] = {"step", "micro", "update"};
    for (size_t i = 0; i < COUNT(programs); i++) {
        r.n = r.joins = r.forks = 0;
        if (!exec_run(exec, programs[i], plan->bound, &err)) fail_msg("%s", err.text);
        int sides = 0;
        for (int k = 0; k < r.n; k++) sides += r.given[k].queue;
        /* At least one product beside each, and no side work is left when the program ends. */
        assert_true(check_given(plan, &r) >= sides);
        assert_int_equal(r.forks, sides);
        assert_int_equal(r.joins, sides);
        assert_int_equal(r.queue, 0);
        if (!strcmp(programs[i], "micro")) assert_int_equal(sides, count(plan, true));
    }
    exec_close(exec);
    plan_free(plan);
}

/* Recorded at the second run at the same extents, replayed from then on, in both kinds of order. */
static void records_once(void **unused) {
    static Recorder r;
    Plan *plan = compile("sm_80", "graph.capture=on", 0);
    Err err = {0};
    r.dev.ops = &recorder_ops;
    Exec *exec = exec_open(plan, &r.dev, &err);
    if (!exec) fail_msg("%s", err.text);
    int given = 0;
    for (int run = 1; run <= 4; run++) {
        if (!exec_run(exec, "micro", plan->bound, &err)) fail_msg("%s", err.text);
        if (run == 1) given = r.n;
        assert_int_equal(r.n, run == 1 ? given : 2 * given);
        assert_int_equal(r.records, run > 1);
        assert_int_equal(r.replays, run - 1);
    }
    int64_t fewer[NEXTENT];
    memcpy(fewer, plan->bound, sizeof fewer);
    fewer[X_T] = fewer[X_R] = plan->bucket;
    if (!exec_run(exec, "micro", fewer, &err)) fail_msg("%s", err.text);
    assert_int_equal(r.records, 1); /* other extents are another recording */
    assert_int_equal(r.replays, 3);
    exec_close(exec);
    plan_free(plan);
}

/* A step that is recorded takes about 10 KiB of the device: 8192 are kept, the latest ones. */
static void keeps_so_many_steps(void **unused) {
    static Recorder r;
    Plan *plan = compile("sm_80", "graph.capture=on", 0);
    Err err = {0};
    int64_t now[NEXTENT];
    memcpy(now, plan->bound, sizeof now);
    r.dev.ops = &recorder_ops;
    Exec *exec = exec_open(plan, &r.dev, &err);
    if (!exec) fail_msg("%s", err.text);
    for (int i = 0, last = 1; i < last; i++, now[X_T]--) {
        for (int run = 1; run <= 2; run++) {
            r.n = 0;
            if (!exec_run(exec, "micro", now, &err)) fail_msg("%s", err.text);
        }
        const int most = 8192 / r.n, records = i + 1;
        last = most + 5;
        assert_int_equal(r.records, records);
        assert_int_equal(records - r.forgotten, records < most ? records : most);
    }
    now[X_T]++;
    r.n = 0;
    if (!exec_run(exec, "micro", now, &err)) fail_msg("%s", err.text);
    assert_int_equal(r.n, 0); /* the last one is kept */
    exec_close(exec);
    plan_free(plan);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(on_cuda_only),          cmocka_unit_test(memory),
        cmocka_unit_test(lifetimes_are_checked),
#ifndef HARD
        cmocka_unit_test(joins_in_time),         cmocka_unit_test(records_once),
        cmocka_unit_test(keeps_so_many_steps),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
