/* exec.c: walks a plan on a device.
 *
 * Relies on exec.h, device.h, plan.h.  Promises: one arena, allocated by exec_open; nothing is
 * allocated
 * while a program runs but what its sizes need for the first time (GEMM primitives), before its
 * first step.
 * In a HARD build transient buffers hold NaNs before they are written and after they died, and the
 * bytes
 * between buffers are watched.
 */
#include "exec.h"
#include "exec_bind.h"

#include <stdlib.h>
#include <string.h>

typedef struct Seen { /* extents a program was prepared for */
    int program;
    int64_t extent[NEXTENT];
} Seen;

struct Exec {
    const Plan *plan;
    Device *dev;
    Arena *arena;
    Seen *seen;
    int nseen, capseen;
    bool profile;
    StepTime *time; /* one per label and kind */
    int ntime, captime;
    int64_t *fence; /* HARD: bytes behind each buffer that no other buffer uses while it lives */
};

#define MAX_ARGS 64 /* plan_check's limit */

/* ---- addresses ------------------------------------------------------------------------------- */

typedef struct Frame { /* where a program stands */
    int64_t extent[NEXTENT];
    int64_t begin; /* first row of the current chunk */
} Frame;

static void *address(const Exec *exec, const Arg *a, const Frame *f) {
    if (a->buf < 0) return NULL;
    int64_t offset = exec->plan->bufs[a->buf].offset + dim_eval(a->offset, f->extent);
    return exec->dev->base + offset + a->chunk_bytes * f->begin;
}

/* ---- profile --------------------------------------------------------------------------------- */

static const char *step_kind(const Exec *exec, const Step *s) {
    return s->kind == STEP_KERNEL ? exec->plan->kernels[s->kernel].kind : step_kind_names[s->kind];
}

static void note_time(Exec *exec, const Step *s, double seconds) {
    const char *label = s->label ? s->label : "", *kind = step_kind(exec, s);
    int i = 0;
    while (i < exec->ntime &&
           (strcmp(exec->time[i].label, label) || strcmp(exec->time[i].kind, kind)))
        i++;
    if (i == exec->ntime)
        PUSH(exec->arena, exec->time, exec->ntime, exec->captime,
             ((StepTime){.label = label, .kind = kind}));
    StepTime *t = &exec->time[i];
    t->seconds += seconds;
    t->flops += s->flops;
    t->bytes += s->bytes;
    t->calls++;
}

void exec_profile(Exec *exec, bool on) {
    if (on && !exec->profile) exec->ntime = 0;
    exec->profile = on;
}

static int longest_first(const void *a, const void *b) {
    double x = ((const StepTime *)a)->seconds, y = ((const StepTime *)b)->seconds;
    return (x < y) - (x > y);
}

int exec_times(Exec *exec, StepTime *out, int max) {
    StepTime *sorted = NEW_ARRAY(exec->arena, StepTime, exec->ntime + 1);
    if (exec->ntime) memcpy(sorted, exec->time, (size_t)exec->ntime * sizeof *sorted);
    qsort(sorted, (size_t)exec->ntime, sizeof *sorted, longest_first);
    int n = exec->ntime < max ? exec->ntime : max;
    memcpy(out, sorted, (size_t)n * sizeof *out);
    return n;
}

/* ---- steps ----------------------------------------------------------------------------------- */

static bool do_step(Exec *exec, const Step *s, const Frame *f, Err *err) {
    const DeviceOps *ops = exec->dev->ops;
    void *p[MAX_ARGS];
    int64_t n[MAX_ARGS];
    for (int i = 0; i < s->nargs; i++) p[i] = address(exec, &s->args[i], f);
    for (int i = 0; i < s->ndims; i++) n[i] = dim_eval(s->dims[i], f->extent);
    switch (s->kind) {
    case STEP_KERNEL:
        return ops->launch(exec->dev, s->kernel, p, s->nargs, n, s->ndims, err);
    case STEP_GEMM:
        return ops->gemm(exec->dev, &s->gemm, p, n[0], n[1], n[2], err);
    case STEP_ZERO:
        return ops->zero(exec->dev, p[0], n[0], err);
    case STEP_COPY:
        return ops->copy(exec->dev, p[1], p[0], n[0], err);
    case STEP_LOOP:
        break;
    }
    return true;
}

static bool timed_step(Exec *exec, const Step *s, const Frame *f, Err *err) {
    if (!exec->profile) return do_step(exec, s, f, err);
    if (!exec->dev->ops->sync(exec->dev, err)) return false;
    double start = now_seconds();
    if (!do_step(exec, s, f, err) || !exec->dev->ops->sync(exec->dev, err)) return false;
    note_time(exec, s, now_seconds() - start);
    return true;
}

/* ---- HARD builds: what a program must not read or write -------------------------------------- */

#ifdef HARD
#    define POISON 0xff /* a NaN as f32 and as bf16, -1 as i32 */
#    define FENCE  64

static void find_fences(Exec *exec) {
    const Plan *p = exec->plan;
    exec->fence = NEW_ARRAY(exec->arena, int64_t, p->nbufs);
    for (int i = 0; i < p->nbufs; i++) {
        const Buf *a = &p->bufs[i];
        int64_t end = a->offset + a->bytes, room = p->arena_bytes - end;
        if (room > FENCE) room = FENCE;
        for (int j = 0; j < p->nbufs; j++) {
            const Buf *b = &p->bufs[j];
            bool apart = !b->persistent && (a->persistent || a->program != b->program ||
                                            b->first > a->last || b->last < a->first);
            if (i == j || (apart && !a->persistent)) continue;
            if (b->offset < end + room && b->offset + b->bytes > end)
                room = b->offset > end ? b->offset - end : 0;
        }
        exec->fence[i] = a->persistent ? 0 : room;
    }
}

/* Buffers whose life begins (or ends) in steps from .. to-1. */
static void poison(Exec *exec, int program, int from, int to, bool begin) {
    for (int i = 0; i < exec->plan->nbufs; i++) {
        const Buf *b = &exec->plan->bufs[i];
        int step = begin ? b->first : b->last;
        if (b->persistent || b->program != program || step < from || step >= to) continue;
        int64_t bytes = begin ? b->bytes + exec->fence[i] : buf_live(b, step);
        memset(exec->dev->base + b->offset, POISON, (size_t)bytes);
    }
}

static bool fences_hold(Exec *exec, int program, int step, Err *err) {
    const Plan *p = exec->plan;
    for (int i = 0; i < p->nbufs; i++) {
        const Buf *b = &p->bufs[i];
        if (b->persistent || b->program != program || b->last != step) continue;
        const unsigned char *fence = (unsigned char *)exec->dev->base + b->offset + b->bytes;
        for (int64_t k = 0; k < exec->fence[i]; k++)
            if (!b->nshrink && fence[k] != POISON)
                return fail(
                    err, EXIT_BUG,
                    "bug: program \"%s\" wrote %lld bytes past buffer \"%s\" (step %d or before)",
                    p->programs[program].name, (long long)k, b->name, step);
    }
    return true;
}
#else
static void find_fences(Exec *exec) {
    (void)exec;
}
static void poison(Exec *exec, int program, int from, int to, bool begin) {
    (void)exec, (void)program, (void)from, (void)to, (void)begin;
}
static bool fences_hold(Exec *exec, int program, int step, Err *err) {
    (void)exec, (void)program, (void)step, (void)err;
    return true;
}
#endif

/* A step at its place in the program. */
static bool exec_step(Exec *exec, int program, int step, const Frame *f, Err *err) {
    const Step *s = &exec->plan->programs[program].steps[step];
    return timed_step(exec, s, f, err) && fences_hold(exec, program, step, err);
}

static bool exec_loop(Exec *exec, int program, int step, Frame *f, Err *err) {
    const Step *s = &exec->plan->programs[program].steps[step];
    int64_t rows = dim_eval(s->dims[0], f->extent);
    for (f->begin = 0; f->begin < rows; f->begin += s->chunk) {
        f->extent[X_C] = rows - f->begin < s->chunk ? rows - f->begin : s->chunk;
        for (int i = 1; i <= s->body; i++)
            if (!exec_step(exec, program, step + i, f, err)) return false;
    }
    f->begin = 0;
    f->extent[X_C] = 0;
    return true;
}

/* ---- getting ready --------------------------------------------------------------------------- */

/* The greatest power of two, at most 256, that divides every address the step's operands can have
 * (the arena itself is aligned to more). */
static int operands_align(const Exec *exec, const Step *s) {
    int64_t bits = 256;
    for (int i = 0; i < s->nargs; i++) {
        const Arg *a = &s->args[i];
        bits |= exec->plan->bufs[a->buf].offset | a->offset.c | a->chunk_bytes;
        for (int e = 0; e < NEXTENT; e++) bits |= a->offset.x[e];
    }
    return (int)(bits & -bits);
}

static bool prepare_gemm(Exec *exec, const Step *s, const int64_t *extent, Err *err) {
    int64_t n[3];
    for (int i = 0; i < 3; i++) n[i] = dim_eval(s->dims[i], extent);
    Gemm g = s->gemm;
    g.align = operands_align(exec, s);
    return exec->dev->ops->gemm_prepare(exec->dev, &g, n[0], n[1], n[2], err);
}

/* Everything the GEMMs of a program need at these extents, once. */
static bool prepare(Exec *exec, int program, const int64_t *extent, Err *err) {
    for (int i = 0; i < exec->nseen; i++)
        if (exec->seen[i].program == program &&
            !memcmp(exec->seen[i].extent, extent, sizeof exec->seen[i].extent))
            return true;
    const Program *prog = &exec->plan->programs[program];
    for (int i = 0; i < prog->nsteps; i++) {
        const Step *s = &prog->steps[i];
        int64_t now[NEXTENT];
        memcpy(now, extent, sizeof now);
        if (s->kind == STEP_GEMM && !prepare_gemm(exec, s, now, err)) return false;
        if (s->kind != STEP_LOOP) continue;
        int64_t rows = dim_eval(s->dims[0], extent);
        int64_t sizes[2] = {rows < s->chunk ? rows : s->chunk, rows % s->chunk};
        for (int k = 0; k < 2; k++) {
            now[X_C] = sizes[k];
            for (int j = i + 1; sizes[k] > 0 && j <= i + s->body; j++)
                if (prog->steps[j].kind == STEP_GEMM &&
                    !prepare_gemm(exec, &prog->steps[j], now, err))
                    return false;
        }
        i += s->body;
    }
    Seen seen = {.program = program};
    memcpy(seen.extent, extent, sizeof seen.extent);
    PUSH(exec->arena, exec->seen, exec->nseen, exec->capseen, seen);
    return true;
}

static bool check_extents(const Plan *plan, const char *program, const int64_t *extent, Err *err) {
    for (int e = 0; e < NEXTENT; e++)
        if (e != X_C && (extent[e] < 0 || extent[e] > plan->bound[e]))
            return fail(err, EXIT_BUG,
                        "bug: program \"%s\" with %c = %lld; planned for at most %lld", program,
                        EXTENT_LETTERS[e], (long long)extent[e], (long long)plan->bound[e]);
    return true;
}

bool exec_run(Exec *exec, const char *program, const int64_t extent[NEXTENT], Err *err) {
    const Program *prog = plan_program(exec->plan, program);
    if (!prog) return fail(err, EXIT_BUG, "bug: the plan has no program \"%s\"", program);
    int index = (int)(prog - exec->plan->programs);
    Frame f = {.begin = 0};
    memcpy(f.extent, extent, sizeof f.extent);
    f.extent[X_C] = 0;
    if (!check_extents(exec->plan, program, f.extent, err) || !prepare(exec, index, f.extent, err))
        return false;
    for (int i = 0, next; i < prog->nsteps; i = next) {
        bool loop = prog->steps[i].kind == STEP_LOOP;
        next = i + 1 + (loop ? prog->steps[i].body : 0);
        poison(exec, index, i, next, true);
        if (loop ? !exec_loop(exec, index, i, &f, err) : !exec_step(exec, index, i, &f, err))
            return false;
        poison(exec, index, i, next, false);
    }
    return exec->dev->ops->sync(exec->dev, err);
}

/* ---- buffers in and out ---------------------------------------------------------------------- */

static const Buf *named(Exec *exec, const char *name, size_t bytes, Err *err) {
    int i = plan_buf(exec->plan, name);
    if (i < 0) {
        fail(err, EXIT_BUG, "bug: the plan has no buffer \"%s\"", name);
        return NULL;
    }
    const Buf *b = &exec->plan->bufs[i];
    if ((int64_t)bytes <= b->bytes) return b;
    fail(err, EXIT_BUG, "bug: %lld bytes for buffer \"%s\", which has %lld", (long long)bytes, name,
         (long long)b->bytes);
    return NULL;
}

bool exec_write(Exec *exec, const char *buf, const void *data, size_t bytes, Err *err) {
    const Buf *b = named(exec, buf, bytes, err);
    return b && exec->dev->ops->write(exec->dev, b->offset, data, (int64_t)bytes, err);
}

bool exec_read(Exec *exec, const char *buf, void *data, size_t bytes, Err *err) {
    const Buf *b = named(exec, buf, bytes, err);
    return b && exec->dev->ops->read(exec->dev, b->offset, data, (int64_t)bytes, err);
}

bool exec_bind(Exec *exec, const BindSource *sources, int n, uint64_t seed, Err *err) {
    int64_t nothing[NEXTENT] = {0};
    return bind_all(exec->plan, exec->dev, sources, n, seed, err) &&
           (!plan_program(exec->plan, "init") || exec_run(exec, "init", nothing, err));
}

/* ---- opening --------------------------------------------------------------------------------- */

Exec *exec_open(const Plan *plan, Device *dev, Err *err) {
    Arena *arena = arena_new();
    Exec *exec = NEW(arena, Exec);
    exec->arena = arena;
    exec->plan = plan;
    exec->dev = dev;
    const char *wrong = plan_check(plan, arena);
    bool ok = wrong ? fail(err, EXIT_BUG, "bug: the plan breaks a rule: %s", wrong) : true;
    ok = ok && dev->ops->load(dev, plan, err) && dev->ops->alloc(dev, plan->arena_bytes, err);
    if (!ok) {
        exec_close(exec);
        return NULL;
    }
    int workspace = plan_buf(plan, "gemm.workspace");
    if (workspace >= 0)
        dev->ops->workspace(dev, plan->bufs[workspace].offset, plan->bufs[workspace].bytes);
    find_fences(exec);
    return exec;
}

void exec_close(Exec *exec) {
    if (exec) arena_free(exec->arena);
}
