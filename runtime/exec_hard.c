/* exec_hard.c: HARD builds: what a program must not read or write.
 *
 * Transient buffers hold NaNs before they are written and after they died, and the bytes between
 * buffers are watched.  Everything goes through the device's own copies, so any device is watched.
 */
#include "exec_inside.h"

#ifdef HARD

#    include <string.h>

#    define POISON 0xff /* a NaN as f32 and as bf16, -1 as i32 */
#    define FENCE  64

void hard_open(Exec *exec) {
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

static bool fill(Exec *exec, int64_t offset, int64_t bytes, Err *err) {
    static unsigned char poison[1 << 16];
    if (!poison[0]) memset(poison, POISON, sizeof poison);
    bool ok = true;
    for (int64_t at = 0, n; ok && at < bytes; at += n) {
        n = bytes - at < (int64_t)sizeof poison ? bytes - at : (int64_t)sizeof poison;
        ok = exec->dev->ops->write(exec->dev, offset + at, poison, n, err);
    }
    return ok;
}

bool hard_poison(Exec *exec, int program, int from, int to, bool begin, Err *err) {
    bool ok = true;
    for (int i = 0; ok && i < exec->plan->nbufs; i++) {
        const Buf *b = &exec->plan->bufs[i];
        int step = begin ? b->first : b->last;
        if (b->persistent || b->program != program || step < from || step >= to) continue;
        int64_t bytes = begin ? b->bytes + exec->fence[i] : buf_live(b, step);
        ok = fill(exec, b->offset, bytes, err);
    }
    return ok;
}

bool hard_fences(Exec *exec, int program, int step, Err *err) {
    const Plan *p = exec->plan;
    for (int i = 0; i < p->nbufs; i++) {
        const Buf *b = &p->bufs[i];
        if (b->persistent || b->program != program || b->last != step || b->nshrink) continue;
        unsigned char fence[FENCE];
        if (exec->fence[i] &&
            !exec->dev->ops->read(exec->dev, b->offset + b->bytes, fence, exec->fence[i], err))
            return false;
        for (int64_t k = 0; k < exec->fence[i]; k++)
            if (fence[k] != POISON)
                return fail(
                    err, EXIT_BUG,
                    "bug: program \"%s\" wrote %lld bytes past buffer \"%s\" (step %d or before)",
                    p->programs[program].name, (long long)k, b->name, step);
    }
    return true;
}

#else

void hard_open(Exec *exec) {
    (void)exec;
}
bool hard_poison(Exec *exec, int program, int from, int to, bool begin, Err *err) {
    (void)exec, (void)program, (void)from, (void)to, (void)begin, (void)err;
    return true;
}
bool hard_fences(Exec *exec, int program, int step, Err *err) {
    (void)exec, (void)program, (void)step, (void)err;
    return true;
}

#endif
