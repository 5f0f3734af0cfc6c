/* exec.c: walks a plan on a device.
 *
 * Relies on exec.h, device.h, plan.h.  Promises: one arena, allocated by exec_open; nothing is
 * allocated while a program runs but what its sizes need for the first time (GEMM primitives),
 * before its first step.  The host never waits inside a program: it gives work and goes on; who
 * reads a buffer waits for all that was given before.
 *
 * A step that is marked `side` goes to the device's second queue.  What it writes is touched again
 * only behind a join, and the join for the next step comes before side work that follows it is
 * given, so that a step never waits for side work it does not need.
 */
#include "debug.h"
#include "exec_inside.h"

#include <limits.h>
#include <string.h>

enum {
    MAX_ARGS = 64,      /* plan_check's limit */
    MAX_RECORDED = 8192 /* steps kept for replay: each takes about 10 KiB of graph.reserve */
};

/* ---- steps ----------------------------------------------------------------------------------- */

static void *address(const Exec *exec, const Arg *a, const Frame *f) {
    if (a->buf < 0) return NULL;
    int64_t offset = exec->plan->bufs[a->buf].offset + dim_eval(a->offset, f->extent);
    return exec->dev->base + offset + a->chunk_bytes * f->begin;
}

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

static Gemm gemm_of(const Exec *exec, const Step *s) {
    Gemm g = s->gemm;
    g.align = operands_align(exec, s);
    return g;
}

static bool give_step(Exec *exec, const Step *s, const Frame *f, Err *err) {
    const DeviceOps *ops = exec->dev->ops;
    void *p[MAX_ARGS];
    int64_t n[MAX_ARGS];
    for (int i = 0; i < s->nargs; i++) p[i] = address(exec, &s->args[i], f);
    for (int i = 0; i < s->ndims; i++) n[i] = dim_eval(s->dims[i], f->extent);
    exec->dev->step = s;
    switch (s->kind) {
    case STEP_KERNEL:
        return ops->launch(exec->dev, s->kernel, p, s->nargs, n, s->ndims, err);
    case STEP_GEMM: {
        Gemm g = gemm_of(exec, s);
        return ops->gemm(exec->dev, &g, p, n[0], n[1], n[2], err);
    }
    case STEP_ZERO:
        return ops->zero(exec->dev, p[0], n[0], err);
    case STEP_COPY:
        return ops->copy(exec->dev, p[1], p[0], n[0], err);
    case STEP_LOOP:
        break;
    }
    return true;
}

/* One after the other on one queue, where times are taken or bytes watched. */
static bool in_line(const Exec *exec) {
    return exec->profile || exec->wait_each || exec->fence;
}

/* A step at its place in the program. */
static bool exec_step(Exec *exec, int program, int step, const Frame *f, Err *err) {
    const Step *s = &exec->plan->programs[program].steps[step];
    const DeviceOps *ops = exec->dev->ops;
    bool side = s->side && !in_line(exec);
    if (side && !ops->queue(exec->dev, 1, err)) return false;
    bool ok = give_step(exec, s, f, err);
    if (ok && exec->profile) ok = times_step(exec, s, f, err);
    if (ok && exec->wait_each) ok = ops->sync(exec->dev, err);
    if (side) ok = ops->queue(exec->dev, 0, err) && ok;
    return ok && hard_fences(exec, program, step, err);
}

static bool exec_loop(Exec *exec, int program, int step, Frame *f, Err *err) {
    const Step *s = &exec->plan->programs[program].steps[step];
    int64_t rows = dim_eval(s->dims[0], f->extent);
    f->chunk = s->chunk;
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

static bool prepare_gemm(Exec *exec, const Step *s, const int64_t *extent, Err *err) {
    int64_t n[3];
    for (int i = 0; i < 3; i++) n[i] = dim_eval(s->dims[i], extent);
    Gemm g = gemm_of(exec, s);
    exec->dev->step = s;
    return exec->dev->ops->gemm_prepare(exec->dev, &g, n[0], n[1], n[2], err);
}

/* Everything the GEMMs of a program need at these extents, once; NULL on failure. */
static Seen *prepare(Exec *exec, int program, const int64_t *extent, Err *err) {
    for (int i = 0; i < exec->nseen; i++)
        if (exec->seen[i].program == program &&
            !memcmp(exec->seen[i].extent, extent, sizeof exec->seen[i].extent))
            return &exec->seen[i];
    const Program *prog = &exec->plan->programs[program];
    for (int i = 0; i < prog->nsteps; i++) {
        const Step *s = &prog->steps[i];
        int64_t now[NEXTENT];
        memcpy(now, extent, sizeof now);
        if (s->kind == STEP_GEMM && !prepare_gemm(exec, s, now, err)) return NULL;
        if (s->kind != STEP_LOOP) continue;
        int64_t rows = dim_eval(s->dims[0], extent);
        int64_t sizes[2] = {rows < s->chunk ? rows : s->chunk, rows % s->chunk};
        for (int k = 0; k < 2; k++) {
            now[X_C] = sizes[k];
            for (int j = i + 1; sizes[k] > 0 && j <= i + s->body; j++)
                if (prog->steps[j].kind == STEP_GEMM &&
                    !prepare_gemm(exec, &prog->steps[j], now, err))
                    return NULL;
        }
        i += s->body;
    }
    Seen seen = {.program = program};
    memcpy(seen.extent, extent, sizeof seen.extent);
    PUSH(exec->arena, exec->seen, exec->nseen, exec->capseen, seen);
    return &exec->seen[exec->nseen - 1];
}

static bool check_extents(const Plan *plan, const char *program, const int64_t *extent, Err *err) {
    for (int e = 0; e < NEXTENT; e++)
        if (e != X_C && (extent[e] < 0 || extent[e] > plan->bound[e]))
            return fail(err, EXIT_BUG,
                        "bug: program \"%s\" with %c = %lld; planned for at most %lld", program,
                        EXTENT_LETTERS[e], (long long)extent[e], (long long)plan->bound[e]);
    return true;
}

/* ---- a program ------------------------------------------------------------------------------- */

/* Joins side work that is due before `step`, or before the next one on queue 0. */
static bool join_for(Exec *exec, const Program *prog, int step, int *due, Err *err) {
    while (step < prog->nsteps && prog->steps[step].side) step++;
    if (*due > step) return true;
    *due = INT_MAX;
    return exec->dev->ops->join(exec->dev, err);
}

/* Gives all steps of a program to the device. */
static bool walk(Exec *exec, int program, const int64_t *extent, Err *err) {
    const Program *prog = &exec->plan->programs[program];
    Frame f = {.begin = 0};
    memcpy(f.extent, extent, sizeof f.extent);
    int due = INT_MAX; /* the first step that must not begin before the side work is done */
    bool beside = !in_line(exec), ok = !exec->profile || times_begin(exec, err);
    for (int i = 0, next; ok && i < prog->nsteps; i = next) {
        const Step *s = &prog->steps[i];
        bool loop = s->kind == STEP_LOOP;
        next = i + 1 + (loop ? s->body : 0);
        ok = hard_poison(exec, program, i, next, true, err) &&
             (!beside || join_for(exec, prog, i, &due, err)) &&
             (loop ? exec_loop(exec, program, i, &f, err) : exec_step(exec, program, i, &f, err)) &&
             hard_poison(exec, program, i, next, false, err);
        if (s->side && beside && exec->until[program][i] < due) due = exec->until[program][i];
    }
    if (ok && due < INT_MAX) ok = exec->dev->ops->join(exec->dev, err);
    if (ok && exec->profile) ok = times_end(exec, err);
    exec->dev->step = NULL;
    return ok;
}

/* How many steps a program gives to the device. */
static int64_t count_steps(const Program *prog, const int64_t *extent) {
    int64_t n = 0;
    for (int i = 0; i < prog->nsteps; i++) {
        const Step *s = &prog->steps[i];
        if (s->kind != STEP_LOOP) {
            n++;
            continue;
        }
        n += (dim_eval(s->dims[0], extent) + s->chunk - 1) / s->chunk * s->body;
        i += s->body;
    }
    return n;
}

/* The recorded program used longest ago makes room. */
static void forget_oldest(Exec *exec) {
    Seen *old = NULL;
    for (int i = 0; i < exec->nseen; i++) {
        Seen *s = &exec->seen[i];
        if (s->work && (!old || s->used < old->used)) old = s;
    }
    exec->dev->ops->forget(exec->dev, old->work);
    old->work = NULL;
    exec->recorded -= old->steps;
}

/* From the second run at the same extents on, a program is recorded once and replayed as a whole:
 * the first one has loaded whatever the device loads late. */
static bool replay(Exec *exec, Seen *seen, Err *err) {
    const DeviceOps *ops = exec->dev->ops;
    if (!seen->work) {
        seen->steps = count_steps(&exec->plan->programs[seen->program], seen->extent);
        while (exec->recorded && exec->recorded + seen->steps > MAX_RECORDED) forget_oldest(exec);
        if (!ops->record(exec->dev, err)) return false;
        bool ok = walk(exec, seen->program, seen->extent, err);
        Err ended = {0}; /* recording ends in any case; what failed first is what is said */
        if (!ops->recorded(exec->dev, &seen->work, ok ? err : &ended) || !ok) return false;
        exec->recorded += seen->steps;
    }
    seen->used = ++exec->clock;
    return ops->replay(exec->dev, seen->work, err);
}

bool exec_run(Exec *exec, const char *program, const int64_t extent[NEXTENT], Err *err) {
    const Program *prog = plan_program(exec->plan, program);
    if (!prog) return fail(err, EXIT_BUG, "bug: the plan has no program \"%s\"", program);
    int64_t now[NEXTENT];
    memcpy(now, extent, sizeof now);
    now[X_C] = 0;
    if (!check_extents(exec->plan, program, now, err)) return false;
    Seen *seen = prepare(exec, (int)(prog - exec->plan->programs), now, err);
    if (!seen) return false;
    bool again = seen->ran;
    seen->ran = true;
    if (again && exec->capture && !in_line(exec)) return replay(exec, seen, err);
    return walk(exec, seen->program, now, err);
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

Span exec_scratch(const Exec *exec) {
    return exec->scratch;
}

bool exec_bind(Exec *exec, const BindSource *sources, int n, uint64_t seed, LoadWatch *watch,
               Err *err) {
    int64_t nothing[NEXTENT] = {0};
    return bind_all(exec->plan, exec->dev, exec->scratch, sources, n, seed, watch, err) &&
           (!plan_program(exec->plan, "init") || exec_run(exec, "init", nothing, err));
}

/* ---- opening --------------------------------------------------------------------------------- */

/* Of every side step: the first step that touches what it touches. */
static void find_joins(Exec *exec) {
    const Plan *plan = exec->plan;
    exec->until = NEW_ARRAY(exec->arena, int *, plan->nprograms);
    for (int p = 0; p < plan->nprograms; p++) {
        int n = plan->programs[p].nsteps;
        exec->until[p] = NEW_ARRAY(exec->arena, int, n);
        for (int i = 0; i < n; i++)
            if (plan->programs[p].steps[i].side) exec->until[p][i] = plan_side_end(plan, p, i);
    }
}

static Span find_scratch(const Plan *plan) {
    Span s = {0};
    for (int i = 0; i < plan->nbufs; i++) {
        const Buf *b = &plan->bufs[i];
        if (b->persistent && b->offset + b->bytes > s.offset) s.offset = b->offset + b->bytes;
    }
    s.offset = (s.offset + 255) & ~INT64_C(255);
    if (s.offset < plan->arena_bytes) s.bytes = plan->arena_bytes - s.offset;
    return s;
}

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
    exec->scratch = find_scratch(plan);
    dev->ops->scratch(dev, exec->scratch.offset, exec->scratch.bytes);
    exec->capture = dev->ops->record && plan_num(plan, "graph.capture") != 0;
    exec->wait_each = debug_level("sync") > 0;
    find_joins(exec);
    hard_open(exec);
    return exec;
}

void exec_close(Exec *exec) {
    if (!exec) return;
    for (int i = 0; i < exec->nseen; i++)
        if (exec->seen[i].work) exec->dev->ops->forget(exec->dev, exec->seen[i].work);
    arena_free(exec->arena);
}
