/* run.h: what tests need to plan a unit and run it on a device. */
#ifndef TESTS_RUN_H
#define TESTS_RUN_H

#include "compiler/dpoc.h"
#include "runtime/exec.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline void must(bool ok, const Err *err) {
    if (!ok) fail_msg("%s", err->text);
}

/* Orders the unit's groups and plans them; the plan obeys plan_check. */
static inline Plan *plan_groups(Unit *u, bool order_off) {
    Pass pass = {.off = order_off};
    assert_true(pass_order(&pass, u) >= 0);
    Plan *plan = plan_new();
    plan->device = u->target->name;
    plan->hash = "test";
    plan->bucket = 1;
    plan->prelude = emit_prelude(u->target);
    memcpy(plan->bound, u->bound, sizeof plan->bound);
    plan_unit(plan, u);
    plan_finish(plan, u->target);
    const char *wrong = plan_check(plan, u->arena);
    if (wrong) fail_msg("%s", wrong);
    return plan;
}

typedef struct Running {
    const Plan *plan;
    Device *dev;
    Exec *exec;
} Running;

static inline const char *run_cache(void) {
    const char *build = getenv("BUILD");
    return intern_printf("%s/tests/cache", build ? build : "build");
}

static inline Running run_open_on(const Plan *plan, const char *device) {
    Err err = {0};
    Running r = {.plan = plan};
    r.dev =
        device_open(&(DeviceOptions){.name = device, .threads = 2, .cache_dir = run_cache()}, &err);
    must(r.dev != NULL, &err);
    r.exec = exec_open(plan, r.dev, &err);
    must(r.exec != NULL, &err);
    return r;
}
static inline Running run_open(const Plan *plan) {
    return run_open_on(plan, "cpu");
}

static inline void run_close(Running *r) {
    exec_close(r->exec);
    r->dev->ops->close(r->dev);
}

/* Every byte outside persistent buffers becomes a NaN: no program may read what it has not
 * written. */
static inline void run_poison(const Running *r) {
    Err err = {0};
    int64_t begin = 0;
    for (int i = 0; i < r->plan->nbufs; i++) {
        const Buf *b = &r->plan->bufs[i];
        if (b->persistent && b->offset + b->bytes > begin) begin = b->offset + b->bytes;
    }
    size_t bytes = (size_t)(r->plan->arena_bytes - begin);
    void *nan = malloc(bytes + 1);
    memset(nan, 0xff, bytes);
    must(r->dev->ops->write(r->dev, begin, nan, (int64_t)bytes, &err), &err);
    free(nan);
}

static inline void run_program(const Running *r, const char *name, const int64_t extent[NEXTENT]) {
    Err err = {0};
    run_poison(r);
    must(exec_run(r->exec, name, extent, &err), &err);
}

#endif
