/* plan_check.c: the rules every plan obeys.
 *
 * Relies on plan.h and quantize.h.  Promises: a plan that plan_check accepts can be executed
 * without
 * touching a byte outside its buffers, whatever the extents within the bounds (kernels are trusted
 * to
 * stay inside the shapes they are given).
 */
#include "plan.h"
#include "quantize.h"

#include <ctype.h>
#include <string.h>

typedef struct Check {
    const Plan *plan;
    Arena *arena;
    const char *message; /* the first thing found */
    const char *what;    /* what is being looked at: "bufs", "programs[1].steps" ... */
    int index;
} Check;

static void bad(Check *c, const char *format, ...) PRINTF(2, 3);
static void bad(Check *c, const char *format, ...) {
    if (c->message) return;
    va_list args;
    va_start(args, format);
    const char *text = arena_vprintf(c->arena, format, args);
    va_end(args);
    c->message = c->what ? arena_printf(c->arena, "%s[%d]: %s", c->what, c->index, text) : text;
}

/* dim_eval that survives any numbers a file may hold: false where the sum leaves 0 .. 2^60. */
static bool size_at(Dim d, const int64_t *extent, int64_t *out) {
    int64_t sum = d.c, term;
    for (int e = 0; e < NEXTENT; e++)
        if (__builtin_mul_overflow((int64_t)d.x[e], extent[e], &term) ||
            __builtin_add_overflow(sum, term, &sum))
            return false;
    *out = sum;
    return sum >= 0 && sum < (INT64_C(1) << 60);
}

/* Bytes of a rows x cols matrix with `ld` elements between rows; false on overflow. */
static bool matrix_bytes(int64_t rows, int64_t cols, int64_t ld, int64_t size, int64_t *bytes) {
    int64_t n = 0;
    if (rows > 0 && cols > 0 &&
        (__builtin_mul_overflow(rows - 1, ld, &n) || __builtin_add_overflow(n, cols, &n) ||
         __builtin_mul_overflow(n, size, &n)))
        return false;
    *bytes = n;
    return true;
}

static void check_shape(Check *c, const Buf *b) {
    int64_t count = dtype_bytes(b->dtype), n;
    if (b->rank < 0 || b->rank > 4) {
        bad(c, "rank %d is not 0..4", b->rank);
        return;
    }
    for (int i = 0; i < b->rank; i++) {
        if (!size_at(b->shape[i], c->plan->bound, &n) || __builtin_mul_overflow(count, n, &count)) {
            bad(c, "shape[%d] is out of range", i);
            return;
        }
    }
    if (count > b->bytes)
        bad(c, "\"%s\" has %lld bytes but its shape needs %lld", b->name, (long long)b->bytes,
            (long long)count);
}

static void check_buf(Check *c, const Buf *b) {
    const Plan *p = c->plan;
    if (!b->name || !*b->name) bad(c, "no name");
    if ((unsigned)b->role >= NROLE || (unsigned)b->dtype >= NDTYPE) {
        bad(c, "unknown role or dtype");
        return;
    }
    if (b->bytes < 0 || b->offset < 0 || b->offset > p->arena_bytes ||
        b->bytes > p->arena_bytes - b->offset)
        bad(c, "\"%s\": bytes %lld at offset %lld leave the arena of %lld", b->name,
            (long long)b->bytes, (long long)b->offset, (long long)p->arena_bytes);
    if (b->offset % 16) bad(c, "\"%s\": offset %lld is not aligned", b->name, (long long)b->offset);
    check_shape(c, b);
    if (b->persistent) return;
    if (b->program < 0 || b->program >= p->nprograms) {
        bad(c, "\"%s\": program %d does not exist", b->name, b->program);
        return;
    }
    if (b->first < 0 || b->last < b->first || b->last >= p->programs[b->program].nsteps)
        bad(c, "\"%s\": life %d..%d is not within the steps of program \"%s\"", b->name, b->first,
            b->last, p->programs[b->program].name);
    int step = b->first - 1;
    int64_t bytes = b->bytes;
    for (int i = 0; i < b->nshrink; i++) {
        const Shrink *s = &b->shrink[i];
        if (s->step <= step || s->step > b->last || s->bytes < 0 || s->bytes > bytes)
            bad(c, "\"%s\": shrink[%d] does not get smaller and later", b->name, i);
        step = s->step;
        bytes = s->bytes;
    }
}

/* Whether two transient buffers of one program ever hold a common byte.  What is live changes only
 * where a life begins or right after a shrink. */
static bool collide(const Buf *a, const Buf *b) {
    int from = a->first > b->first ? a->first : b->first;
    int to = a->last < b->last ? a->last : b->last;
    for (int step = from; step <= to; step++) {
        if (a->offset < b->offset + buf_live(b, step) && b->offset < a->offset + buf_live(a, step))
            return true;
        if (!a->nshrink && !b->nshrink) return false;
    }
    return false;
}

static void check_overlap(Check *c) {
    const Plan *p = c->plan;
    for (int i = 0; i < p->nbufs && !c->message; i++) {
        const Buf *a = &p->bufs[i];
        for (int j = i + 1; j < p->nbufs; j++) {
            const Buf *b = &p->bufs[j];
            if (a->offset >= b->offset + b->bytes || b->offset >= a->offset + a->bytes) continue;
            if (!a->persistent && !b->persistent) {
                if (a->program != b->program || !collide(a, b)) continue;
            }
            c->index = i;
            bad(c, "\"%s\" and bufs[%d] \"%s\" are live at once in the same bytes", a->name, j,
                b->name);
        }
    }
}

static bool bind_quantized(const Bind *b) {
    return strcmp(b->transform, "copy") && strcmp(b->transform, "scale") &&
           strcmp(b->transform, "transpose") && strcmp(b->transform, "table");
}

/* Bytes a bind fills, counted from its offset. */
static int64_t bind_bytes(Check *c, const Bind *b, DType dtype) {
    int64_t bytes = 0, block = 0;
    QuantPart part;
    if (!bind_quantized(b)) {
        if (!matrix_bytes(b->rows, b->cols, b->ld, dtype_bytes(dtype), &bytes))
            bad(c, "\"%s\" is too large", b->tensor);
        return bytes;
    }
    if (!quant_part(b->transform, &part)) {
        bad(c, "\"%s\": unknown transform \"%s\"", b->tensor, b->transform);
        return 0;
    }
    if (b->num >= 1 && b->num <= 1 << 20) block = (int64_t)b->num;
    if (!block || b->num != (double)block) bad(c, "\"%s\": block size %g", b->tensor, b->num);
    if (b->nested && block > 4096)
        bad(c, "\"%s\": double quantization of blocks of %lld", b->tensor, (long long)block);
    if (b->ld != b->cols) bad(c, "\"%s\": a quantized tensor must be dense", b->tensor);
    if (quant_part_dtype(part, b->nested) != dtype)
        bad(c, "\"%s\": %s does not go into a %s buffer", b->tensor, b->transform,
            dtype_name(dtype));
    if (__builtin_mul_overflow(b->rows, b->cols, &bytes) || bytes > INT64_C(1) << 48)
        bad(c, "\"%s\" is too large", b->tensor);
    if (c->message) return 0;
    bytes = quant_part_bytes(part, bytes, block, b->nested);
    if (!bytes) bad(c, "\"%s\": %s has no such part", b->tensor, b->transform);
    return bytes;
}

/* A kernel quantizes for a quantized bind alone, whose blocks end with whole bytes. */
static void check_quantizer(Check *c, const Bind *b) {
    if (!b->quantizer) return;
    if (b->quantizer < 0 || b->quantizer > c->plan->nkernels)
        bad(c, "\"%s\": quantizer %d does not exist", b->tensor, b->quantizer);
    else if (!bind_quantized(b) || (int64_t)b->num % 2)
        bad(c, "\"%s\": \"%s\" in blocks of %lld has no quantizer", b->tensor, b->transform,
            (long long)b->num);
}

static void check_init(Check *c, const Bind *b) {
    static const char *const inits[] = {"zero", "kaiming", "gaussian", "computed", "pissa"};
    size_t i = 0;
    while (i < COUNT(inits) && strcmp(b->init, inits[i])) i++;
    if (i == COUNT(inits)) bad(c, "\"%s\": unknown init \"%s\"", b->tensor, b->init);
    if (strcmp(b->init, "pissa")) return;
    const Bind *of = NULL;
    for (int k = 0; k < c->plan->nbinds && b->of && b->of_source && !of; k++) {
        const Bind *other = &c->plan->binds[k];
        if (other->tensor && other->source && !strcmp(other->tensor, b->of) &&
            !strcmp(other->source, b->of_source))
            of = other;
    }
    if (!of || of->rank != 2 || b->rank != 2 || !(b->init_num > 0) ||
        (b->cols != of->cols && b->rows != of->rows))
        bad(c, "\"%s\": is no side of a product that fits \"%s\"", b->tensor, b->of ? b->of : "");
}

static void check_bind(Check *c, const Bind *b) {
    const Plan *p = c->plan;
    if (!b->source || !b->tensor || !b->transform) {
        bad(c, "no source, tensor or transform");
        return;
    }
    if (b->buf < 0 || b->buf >= p->nbufs) {
        bad(c, "buf %d does not exist", b->buf);
        return;
    }
    const Buf *buf = &p->bufs[b->buf];
    int64_t most = INT64_C(1) << 40;
    if (!buf->persistent) bad(c, "\"%s\" is not persistent", buf->name);
    if (!strcmp(b->transform, "table") &&
        (!b->values || b->nvalues != b->cols || b->rows != 1 || buf->dtype != DT_f32))
        bad(c, "\"%s\": a table is %lld f32 values", b->tensor, (long long)b->cols);
    if (b->rows < 1 || b->cols < 1 || b->ld < b->cols || b->rows > most || b->ld > most ||
        (b->rank != 1 && b->rank != 2) || (b->rank == 1 && b->rows != 1)) {
        bad(c, "\"%s\": bad shape %lld x %lld, ld %lld, rank %d", b->tensor, (long long)b->rows,
            (long long)b->cols, (long long)b->ld, b->rank);
        return;
    }
    int64_t bytes = bind_bytes(c, b, buf->dtype);
    if (c->message) return;
    if (b->offset < 0 || b->offset > buf->bytes || bytes > buf->bytes - b->offset)
        bad(c, "\"%s\" does not fit into \"%s\" at offset %lld", b->tensor, buf->name,
            (long long)b->offset);
    if (b->init) check_init(c, b);
    if ((b->save || b->init) && bind_quantized(b))
        bad(c, "\"%s\": a quantized tensor is neither trained nor fresh", b->tensor);
    check_quantizer(c, b);
}

static void check_kernel(Check *c, const Kernel *k) {
    if (!k->symbol || !k->text || !k->kind) {
        bad(c, "no symbol, text or kind");
        return;
    }
    for (const char *s = k->symbol; s == k->symbol || *s; s++)
        if (!(isalpha((unsigned char)*s) || *s == '_' ||
              (s > k->symbol && isdigit((unsigned char)*s)))) {
            bad(c, "symbol \"%s\" is not a C name", k->symbol);
            return;
        }
    if (!strstr(k->text, k->symbol)) bad(c, "the text does not define \"%s\"", k->symbol);
    for (int i = 0; i < c->index; i++)
        if (!strcmp(c->plan->kernels[i].symbol, k->symbol))
            bad(c, "symbol \"%s\" stands twice", k->symbol);
    if (k->rows_per_block < 0 || k->grid_y < 0 || k->threads < 0 || k->shared_bytes < 0)
        bad(c, "\"%s\": negative launch size", k->symbol);
}

typedef struct Site { /* where a step stands */
    int program, step;
    const Step *loop; /* the loop it is in, or NULL */
    int64_t extent[NEXTENT];
    int64_t begin; /* first row of the chunk looked at */
} Site;

/* The bytes of argument k from its pointer to the end of what its buffer has in this step. */
static bool check_arg(Check *c, const Site *at, const Step *s, int k, int64_t *room) {
    const Arg *a = &s->args[k];
    const Plan *p = c->plan;
    int64_t offset, chunk;
    *room = 0;
    if (a->buf == -1) return true;
    if (a->buf < 0 || a->buf >= p->nbufs) {
        bad(c, "args[%d]: buf %d does not exist", k, a->buf);
        return false;
    }
    const Buf *b = &p->bufs[a->buf];
    if (!b->persistent &&
        (b->program != at->program || at->step < b->first || at->step > b->last)) {
        bad(c, "args[%d]: \"%s\" is not live here", k, b->name);
        return false;
    }
    int64_t bytes = b->persistent ? b->bytes : buf_live(b, at->step);
    if (a->chunk_bytes < 0 || (a->chunk_bytes && !at->loop)) {
        bad(c, "args[%d]: chunk bytes outside a loop", k);
        return false;
    }
    if (!size_at(a->offset, at->extent, &offset) ||
        __builtin_mul_overflow(a->chunk_bytes, at->begin, &chunk) ||
        __builtin_add_overflow(offset, chunk, &offset) || offset > bytes) {
        bad(c, "args[%d]: offset leaves \"%s\"", k, b->name);
        return false;
    }
    *room = bytes - offset;
    return true;
}

static void check_operand(Check *c, const char *name, const Buf *buf, DType dtype, int64_t rows,
                          int64_t cols, int64_t ld, int64_t room) {
    int64_t bytes;
    if (ld < cols || ld > INT64_C(1) << 40)
        bad(c, "%s: ld %lld for %lld columns", name, (long long)ld, (long long)cols);
    else if (!matrix_bytes(rows, cols, ld, dtype_bytes(dtype), &bytes) || bytes > room)
        bad(c, "%s: %lld x %lld does not fit into \"%s\"", name, (long long)rows, (long long)cols,
            buf->name);
}

static void check_gemm(Check *c, const Step *s, const int64_t *n, const int64_t *room) {
    const Gemm *g = &s->gemm;
    const Buf *bufs = c->plan->bufs;
    if (s->nargs != (g->bias ? 4 : 3) || s->ndims != 3) {
        bad(c, "gemm takes a, b, c [, bias] and m, n, k");
        return;
    }
    for (int i = 0; i < s->nargs; i++)
        if (s->args[i].buf < 0) {
            bad(c, "args[%d]: gemm needs it", i);
            return;
        }
    if ((g->a != DT_f32 && g->a != DT_bf16) || g->a != g->b ||
        (g->c != DT_f32 && g->c != DT_bf16) || (g->c == DT_bf16 && g->a == DT_f32))
        bad(c, "gemm of %s and %s to %s", dtype_name(g->a), dtype_name(g->b), dtype_name(g->c));
    if (g->beta != 0 && g->beta != 1) bad(c, "beta %g is not 0 or 1", (double)g->beta);
    int64_t m = n[0], w = n[1], k = n[2];
    check_operand(c, "a", &bufs[s->args[0].buf], g->a, g->ta ? k : m, g->ta ? m : k, g->lda,
                  room[0]);
    check_operand(c, "b", &bufs[s->args[1].buf], g->b, g->tb ? w : k, g->tb ? k : w, g->ldb,
                  room[1]);
    check_operand(c, "c", &bufs[s->args[2].buf], g->c, m, w, g->ldc, room[2]);
    if (g->bias) check_operand(c, "bias", &bufs[s->args[3].buf], DT_f32, 1, w, w, room[3]);
}

#define MAX_ARGS 64

/* One step at one set of extents. */
static void check_step_at(Check *c, const Site *at, const Step *s) {
    int64_t n[MAX_ARGS], room[MAX_ARGS];
    for (int i = 0; i < s->ndims; i++)
        if (!size_at(s->dims[i], at->extent, &n[i])) {
            bad(c, "dims[%d] is out of range", i);
            return;
        }
    for (int i = 0; i < s->nargs; i++)
        if (!check_arg(c, at, s, i, &room[i])) return;
    switch (s->kind) {
    case STEP_KERNEL:
        if (s->kernel < 0 || s->kernel >= c->plan->nkernels)
            bad(c, "kernel %d does not exist", s->kernel);
        break;
    case STEP_GEMM:
        check_gemm(c, s, n, room);
        break;
    case STEP_ZERO:
    case STEP_COPY: {
        int want = s->kind == STEP_ZERO ? 1 : 2;
        if (s->nargs != want || s->ndims != 1) {
            bad(c, "takes %d args and the number of bytes", want);
            return;
        }
        for (int i = 0; i < want; i++)
            if (s->args[i].buf < 0 || n[0] > room[i])
                bad(c, "args[%d]: %lld bytes do not fit", i, (long long)n[0]);
        break;
    }
    case STEP_LOOP:
        if (s->ndims != 1 || s->nargs || s->chunk < 1 || s->body < 1)
            bad(c, "a loop takes one count, a chunk and a body");
        break;
    default:
        bad(c, "unknown kind %d", (int)s->kind);
    }
}

static void check_program(Check *c, int index) {
    const Program *prog = &c->plan->programs[index];
    c->what = arena_printf(c->arena, "programs[%d].steps", index);
    int loop_end = 0;
    const Step *loop = NULL;
    for (int i = 0; i < prog->nsteps && !c->message; i++) {
        const Step *s = &prog->steps[i];
        c->index = i;
        if (s->nargs < 0 || s->ndims < 0 || s->nargs > MAX_ARGS || s->ndims > MAX_ARGS) {
            bad(c, "more than %d args or dims", MAX_ARGS);
            return;
        }
        if (i >= loop_end) loop = NULL;
        if (s->side && (loop || s->kind != STEP_KERNEL))
            bad(c, "only a kernel outside loops runs aside");
        Site at = {.program = index, .step = i, .loop = loop};
        memcpy(at.extent, c->plan->bound, sizeof at.extent);
        at.extent[X_C] = 0;
        if (s->kind == STEP_LOOP) {
            if (loop) bad(c, "loops do not nest");
            if (s->body > prog->nsteps - i - 1) bad(c, "body of %d steps", s->body);
            check_step_at(c, &at, s);
            loop = s;
            loop_end = i + 1 + s->body;
            continue;
        }
        if (loop) { /* first and last chunk at the bounds */
            int64_t rows = dim_eval(loop->dims[0], at.extent);
            if (rows < 1) continue;
            at.extent[X_C] = rows < loop->chunk ? rows : loop->chunk;
            check_step_at(c, &at, s);
            at.begin = (rows - 1) / loop->chunk * loop->chunk;
            at.extent[X_C] = rows - at.begin;
        }
        check_step_at(c, &at, s);
    }
}

/* A side step runs beside those that follow, up to plan_side_end: what it touches is either a
 * weight or lives until then, and nobody else touches it (by the definition of that end). */
static void check_side(Check *c, int program, int step) {
    const Step *s = &c->plan->programs[program].steps[step];
    int end = plan_side_end(c->plan, program, step);
    if (end == c->plan->programs[program].nsteps) end--;
    for (int i = 0; i < s->nargs; i++) {
        if (s->args[i].buf < 0) continue;
        const Buf *b = &c->plan->bufs[s->args[i].buf];
        if (b->persistent && b->role != ROLE_WEIGHT)
            bad(c, "args[%d]: runs aside with \"%s\", which others may write", i, b->name);
        if (!b->persistent && (b->last < end || b->nshrink))
            bad(c, "args[%d]: \"%s\" ends or shrinks before step %d waits for it", i, b->name, end);
    }
}

/* Of a program whose steps name nothing that does not exist. */
static void check_sides(Check *c, int program) {
    const Program *prog = &c->plan->programs[program];
    c->what = arena_printf(c->arena, "programs[%d].steps", program);
    for (c->index = 0; c->index < prog->nsteps && !c->message; c->index++)
        if (prog->steps[c->index].side) check_side(c, program, c->index);
}

static void check_head(Check *c) {
    const Plan *p = c->plan;
    if (!p->device || !p->hash) bad(c, "no device or hash");
    for (int e = 0; e < NEXTENT; e++)
        if (p->bound[e] < 0 || p->bound[e] > INT32_MAX) bad(c, "bound %c", EXTENT_LETTERS[e]);
    if (p->bucket < 1 || p->bucket > INT32_MAX) bad(c, "bucket %lld", (long long)p->bucket);
    if (p->arena_bytes < 0 || p->arena_bytes > INT64_C(1) << 48 || p->budget_bytes < 0)
        bad(c, "arena of %lld bytes", (long long)p->arena_bytes);
    for (int i = 0; i < p->nprograms; i++)
        for (int j = i + 1; j < p->nprograms; j++)
            if (!strcmp(p->programs[i].name, p->programs[j].name))
                bad(c, "program \"%s\" stands twice", p->programs[i].name);
}

/* Persistent buffers are found by name, so their names differ. */
static void check_names(Check *c) {
    const Plan *p = c->plan;
    for (int i = 0; i < p->nbufs; i++) {
        if (!p->bufs[i].persistent) continue;
        c->index = i;
        for (int j = 0; j < i; j++)
            if (p->bufs[j].persistent && !strcmp(p->bufs[i].name, p->bufs[j].name))
                bad(c, "the name \"%s\" stands twice", p->bufs[i].name);
    }
}

const char *plan_check(const Plan *plan, Arena *arena) {
    Check c = {.plan = plan, .arena = arena};
    check_head(&c);
    c.what = "bufs";
    for (c.index = 0; c.index < plan->nbufs && !c.message; c.index++)
        check_buf(&c, &plan->bufs[c.index]);
    if (!c.message) check_names(&c);
    if (!c.message) check_overlap(&c);
    c.what = "binds";
    for (c.index = 0; c.index < plan->nbinds && !c.message; c.index++)
        check_bind(&c, &plan->binds[c.index]);
    c.what = "kernels";
    for (c.index = 0; c.index < plan->nkernels && !c.message; c.index++)
        check_kernel(&c, &plan->kernels[c.index]);
    for (int i = 0; i < plan->nprograms && !c.message; i++) check_program(&c, i);
    for (int i = 0; i < plan->nprograms && !c.message; i++) check_sides(&c, i);
    return c.message;
}
