/* plan.c: a plan as data: making one and looking things up.  Relies on plan.h. */
#include "plan.h"

#include <string.h>

const char *const role_names[NROLE] = {"weight", "adapter",    "grad",    "moment", "input",
                                       "output", "activation", "scratch", "cache"};
const char *const step_kind_names[] = {"kernel", "gemm", "zero", "copy", "loop"};

Plan *plan_new(void) {
    Arena *arena = arena_new();
    Plan *plan = NEW(arena, Plan);
    plan->arena = arena;
    plan->bucket = 1;
    return plan;
}

void plan_free(Plan *plan) {
    if (plan) arena_free(plan->arena);
}

int64_t buf_live(const Buf *b, int step) {
    int64_t bytes = b->bytes;
    for (int i = 0; i < b->nshrink && b->shrink[i].step < step; i++) bytes = b->shrink[i].bytes;
    return bytes;
}

static bool share_buffer(const Plan *plan, const Step *a, const Step *b) {
    for (int i = 0; i < a->nargs; i++)
        for (int k = 0; k < b->nargs; k++)
            if (a->args[i].buf >= 0 && a->args[i].buf == b->args[k].buf &&
                !plan->bufs[a->args[i].buf].persistent)
                return true;
    return false;
}

int plan_side_end(const Plan *plan, int program, int step) {
    const Program *prog = &plan->programs[program];
    int loop = 0, loop_end = -1;
    for (int i = step + 1; i < prog->nsteps; i++) {
        if (prog->steps[i].kind == STEP_LOOP) {
            loop = i;
            loop_end = i + prog->steps[i].body;
        }
        if (share_buffer(plan, &prog->steps[step], &prog->steps[i]))
            return i <= loop_end ? loop : i;
    }
    return prog->nsteps;
}

int plan_buf(const Plan *plan, const char *name) {
    for (int i = 0; i < plan->nbufs; i++)
        if (!strcmp(plan->bufs[i].name, name)) return i;
    return -1;
}

const Program *plan_program(const Plan *plan, const char *name) {
    for (int i = 0; i < plan->nprograms; i++)
        if (!strcmp(plan->programs[i].name, name)) return &plan->programs[i];
    return NULL;
}

static const Setting *setting(const Plan *plan, const char *path) {
    for (int i = 0; i < plan->nsettings; i++)
        if (!strcmp(plan->settings[i].path, path)) return &plan->settings[i];
    return NULL;
}

double plan_num(const Plan *plan, const char *path) {
    const Setting *s = setting(plan, path);
    return s ? s->num : 0;
}

const char *plan_str(const Plan *plan, const char *path) {
    const Setting *s = setting(plan, path);
    return s ? s->str : NULL;
}
