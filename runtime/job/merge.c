/* merge.c: which tensors a merged checkpoint has, and their way from file to file (merge.h). */
#include "merge.h"

#include "../bind.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Out { /* one tensor of the result */
    const char *name;
    const SafeTensor *from; /* in the base, or what was trained in its place */
    bool trained, raw;      /* raw: copied as it is */
    const Bind *bind;       /* its bind in the plan, or NULL */
    SafeTensor to;          /* type, rank, shape */
    int file;
} Out;

typedef struct Merger {
    const MergeJob *job;
    Arena *arena;
    MergeReport *report;
    Err *err;
    Checkpoint *base, *trained, **file; /* file: of the adapters */
    Adapter **adapter;
    Binder binder; /* of sources "base" and "trained" */
    Out *out;
    int nout, capout, nfiles;
    double error, exact, adapted_error, change; /* sums of squares so far */
} Merger;

/* ---- names ----------------------------------------------------------------------------------- */

static const char *module_of(Arena *arena, const char *tensor) {
    bool weight = ends_with(tensor, ".weight");
    return weight ? arena_strn(arena, tensor, strlen(tensor) - strlen(".weight")) : NULL;
}

static bool adapts(const Adapter *a, const char *module) {
    for (int i = 0; module && i < a->ntargets; i++)
        if (!strcmp(a->targets[i], module)) return true;
    return false;
}

static bool is_adapted(const Merger *m, const char *tensor) {
    const char *module = module_of(m->arena, tensor);
    for (int i = 0; i < m->job->nadapter; i++)
        if (adapts(m->adapter[i], module)) return true;
    return false;
}

/* The plan's first bind of a tensor of the base, under either name. */
static const Bind *bind_of(const Plan *plan, const char *tensor) {
    for (int i = 0; i < plan->nbinds; i++) {
        const Bind *b = &plan->binds[i];
        if (strcmp(b->source, "base") != 0) continue;
        if (!strcmp(b->tensor, tensor) || (b->alias && !strcmp(b->alias, tensor))) return b;
    }
    return NULL;
}

/* ---- the list -------------------------------------------------------------------------------- */

static bool add_out(Merger *m, const char *name, const SafeTensor *from) {
    name = arena_str(m->arena, name);
    Out o = {.name = name, .from = from, .bind = bind_of(m->job->plan, name), .to = *from};
    if (m->trained) {
        const char *other = o.bind ? o.bind->tensor : NULL;
        const SafeTensor *t = checkpoint_find(m->trained, name, other);
        o.trained = t != NULL;
        if (t) o.from = t, o.to = *t;
    }
    if (!o.trained && packed_is(m->base, from)) {
        Packed p;
        if (!packed_read(m->base, from, &p, m->err)) return false;
        o.to.rank = p.rank;
        memcpy(o.to.shape, p.shape, sizeof p.shape);
    } else {
        SafeType t = o.from->type;
        bool numbers = t == SAFE_F32 || t == SAFE_F16 || t == SAFE_BF16;
        o.raw = !numbers || o.to.rank < 1 || o.to.rank > 2 || o.from->count == 0;
    }
    if (o.raw && is_adapted(m, name))
        return fail(m->err, EXIT_INPUT, "%s: \"%s\" is %s: an adapter can't be merged into it",
                    safe_path(from->file), name, safe_describe(m->arena, from));
    if (!o.raw) o.to.type = safe_type_of(m->job->dtype);
    o.to.name = name;
    PUSH(m->arena, m->out, m->nout, m->capout, o);
    return true;
}

static Out *out_find(const Merger *m, const char *name) {
    for (int i = 0; i < m->nout; i++)
        if (!strcmp(m->out[i].name, name)) return &m->out[i];
    return NULL;
}

/* Two names of one weight are two weights once an adapter changed one of them. */
static bool untie(Merger *m) {
    for (int i = 0; i < m->job->plan->nbinds; i++) {
        const Bind *b = &m->job->plan->binds[i];
        if (strcmp(b->source, "base") != 0 || !b->alias) continue;
        if (!is_adapted(m, b->tensor) && !is_adapted(m, b->alias)) continue;
        m->report->untied = true;
        const char *name[] = {b->tensor, b->alias};
        const SafeTensor *t = checkpoint_find(m->base, b->tensor, b->alias);
        for (int k = 0; t && k < 2; k++)
            if (!out_find(m, name[k]) && !add_out(m, name[k], t)) return false;
    }
    return true;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const Out *)a)->name, ((const Out *)b)->name);
}

static bool list_tensors(Merger *m) {
    for (int i = 0; i < checkpoint_count(m->base); i++) {
        const SafeTensor *t = checkpoint_tensor(m->base, i);
        if (!packed_part(m->base, t->name) && !add_out(m, t->name, t)) return false;
    }
    if (!untie(m)) return false;
    qsort(m->out, (size_t)m->nout, sizeof *m->out, by_name);
    for (int i = 0; i < m->job->nadapter; i++)
        for (int k = 0; k < m->adapter[i]->ntargets; k++) {
            const char *module = m->adapter[i]->targets[k];
            if (out_find(m, arena_printf(m->arena, "%s.weight", module))) continue;
            return fail(m->err, EXIT_INPUT, "%s: the adapter changes %s, of which %s has no weight",
                        m->job->adapter[i], module, m->job->base);
        }
    return true;
}

/* Files of at most shard_bytes, in the order of the names. */
static void share_out(Merger *m) {
    int64_t room = 0;
    for (int i = 0; i < m->nout; i++) {
        SafeTensor *t = &m->out[i].to;
        t->count = 1;
        for (int d = 0; d < t->rank; d++) t->count *= t->shape[d];
        t->bytes = t->count * safe_type_bits(t->type) / 8;
        if (m->nfiles == 0 || t->bytes > room) m->nfiles++, room = m->job->shard_bytes;
        room -= t->bytes;
        m->out[i].file = m->nfiles - 1;
        m->report->bytes += t->bytes;
    }
    m->report->files = m->nfiles;
    m->report->tensors = m->nout;
}

static const char *file_name(const Merger *m, int file) {
    if (m->nfiles == 1) return "model.safetensors";
    return arena_printf(m->arena, "model-%05d-of-%05d.safetensors", file + 1, m->nfiles);
}

/* ---- one matrix ------------------------------------------------------------------------------ */

typedef struct Matrix { /* a tensor on its way */
    const Out *out;
    Feed feed;
    int64_t rows, cols, piece; /* piece: rows at a time, whole blocks of a quantized weight */
    bool quantized;            /* for training, from numbers: seen through its codes */
    QuantPart part;
    int64_t block;
    float *absmax; /* of all blocks, as training had them */
    Delta *delta;
    int ndelta;
    float *in;
    uint8_t *codes;
    void *rounded;
    RowRounding *row;
} Matrix;

static int64_t greatest_divisor(int64_t a, int64_t b) {
    return b ? greatest_divisor(b, a % b) : a;
}

static bool matrix_open(Merger *m, const Out *out, Matrix *x) {
    *x = (Matrix){.out = out, .rows = out->to.rank == 2 ? out->to.shape[0] : 1};
    x->cols = out->to.shape[out->to.rank - 1];
    Bind bind = {.source = out->trained ? "trained" : "base",
                 .tensor = out->from->name,
                 .rows = x->rows,
                 .cols = x->cols,
                 .rank = out->to.rank,
                 .transform = "copy"};
    if (!feed_open(&m->binder, &bind, &x->feed)) return false;
    x->quantized = !m->job->original && !out->trained && !x->feed.packed && out->bind &&
                   quant_part(out->bind->transform, &x->part);
    x->block = x->quantized ? (int64_t)out->bind->num : 1;
    int64_t unit = x->block / greatest_divisor(x->block, x->cols);
    if (unit * x->cols % 2) unit *= 2; /* codes come in pairs */
    x->piece = PIECE / x->cols / unit * unit;
    if (x->piece < unit) x->piece = unit;
    if (x->piece > x->rows) x->piece = x->rows;
    int64_t n = x->piece * x->cols;
    x->in = malloc((size_t)n * 4);
    x->codes = malloc((size_t)n);
    x->rounded = malloc((size_t)n * 4);
    x->row = malloc((size_t)x->piece * sizeof *x->row);
    return (x->in && x->codes && x->rounded && x->row) ||
           fail(m->err, EXIT_MEMORY, "no memory to merge \"%s\"", out->name);
}

static void matrix_close(Matrix *x) {
    feed_close(&x->feed);
    for (int i = 0; i < x->ndelta; i++) delta_free(&x->delta[i]);
    free(x->absmax);
    free(x->in);
    free(x->codes);
    free(x->rounded);
    free(x->row);
}

/* What every adapter adds to it. */
static bool read_deltas(Merger *m, Matrix *x) {
    const char *module = module_of(m->arena, x->out->name);
    x->delta = NEW_ARRAY(m->arena, Delta, m->job->nadapter + 1);
    for (int i = 0; i < m->job->nadapter; i++) {
        if (!adapts(m->adapter[i], module)) continue;
        if (!delta_read(m->adapter[i], m->file[i], module, x->rows, x->cols, &x->delta[x->ndelta],
                        m->err))
            return false;
        x->ndelta++;
    }
    m->report->adapted += x->ndelta > 0;
    return true;
}

/* The scales of a weight's blocks as training had them: with a second quantization, after it. */
static bool read_scales(Merger *m, Matrix *x) {
    int64_t n = x->rows * x->cols, blocks = (n + x->block - 1) / x->block;
    int64_t groups = (blocks + QUANT_GROUP - 1) / QUANT_GROUP, size = x->piece * x->cols;
    x->absmax = malloc((size_t)blocks * 4);
    float *absmax2 = malloc((size_t)groups * 4);
    uint8_t *codes = malloc((size_t)blocks);
    bool ok = (x->absmax && absmax2 && codes) || fail(m->err, EXIT_MEMORY, "out of memory");
    for (int64_t at = 0; ok && at < n; at += size) {
        int64_t count = n - at < size ? n - at : size;
        ok = feed_read(&m->binder, &x->feed, at, count, 1, DT_f32, x->in);
        if (ok)
            quant_blocks(x->part.format, x->in, count, x->block, x->codes,
                         x->absmax + at / x->block);
    }
    if (ok && x->out->bind->nested) {
        double sum = 0;
        for (int64_t i = 0; i < blocks; i++) sum += (double)x->absmax[i];
        float offset = (float)(sum / (double)blocks);
        quant_nested(x->absmax, blocks, offset, codes, absmax2);
        dequant_nested(codes, absmax2, offset, quant_map(true), blocks, x->absmax);
    }
    free(absmax2);
    free(codes);
    return ok;
}

/* Rows begin .. begin+n of the base as training saw them, into x->in. */
static bool read_rows(Merger *m, Matrix *x, int64_t begin, int64_t n) {
    int64_t at = begin * x->cols, count = n * x->cols, block = at / x->block;
    if (!feed_read(&m->binder, &x->feed, at, count, 1, DT_f32, x->in)) return false;
    if (!x->quantized) return true;
    float *fresh = malloc((size_t)(count / x->block + 1) * 4);
    if (!fresh) return fail(m->err, EXIT_MEMORY, "out of memory");
    quant_blocks(x->part.format, x->in, count, x->block, x->codes, fresh);
    dequant_blocks(x->part.format, x->codes, x->absmax + block, 0, count, x->block, x->in);
    free(fresh);
    return true;
}

/* DoRA on an embedding: the lengths of its columns, before anything is merged. */
static bool measure_columns(Merger *m, Matrix *x) {
    double *scratch = malloc((size_t)x->cols * sizeof *scratch);
    bool ok = scratch || fail(m->err, EXIT_MEMORY, "out of memory");
    for (int k = 0; ok && k < x->ndelta; k++)
        for (int64_t row = 0; ok && x->delta[k].squares && row < x->rows; row += x->piece) {
            int64_t n = x->rows - row < x->piece ? x->rows - row : x->piece;
            ok = read_rows(m, x, row, n);
            for (int64_t i = 0; ok && i < n; i++)
                delta_measure(&x->delta[k], x->in + i * x->cols, row + i, x->cols, scratch);
        }
    free(scratch);
    return ok;
}

static bool round_rows(const Merger *m, const Matrix *x, int64_t begin, int64_t n) {
    int64_t size = dtype_bytes(m->job->dtype);
    bool ok = true;
#pragma omp parallel reduction(&& : ok)
    {
        double *scratch = malloc((size_t)x->cols * 16);
        ok = scratch != NULL;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            if (!scratch) continue;
            double *merged = scratch + x->cols;
            const float *w = x->in + i * x->cols;
            merge_row(w, begin + i, x->cols, x->delta, x->ndelta, scratch, merged);
            x->row[i] = round_row(merged, w, x->cols, m->job->dtype,
                                  (char *)x->rounded + i * x->cols * size);
        }
        free(scratch);
    }
    return ok || fail(m->err, EXIT_MEMORY, "out of memory");
}

/* ---- what rounding did ----------------------------------------------------------------------- */

static void count(MergeCount *c, const char *tensor, int64_t n) {
    if (!n) return;
    if (c->tensors < MERGE_NAMED) c->tensor[c->tensors] = tensor;
    c->tensors++;
    c->elements += n;
}

static void note_rounding(Merger *m, const Matrix *x, const RowRounding *sum) {
    double rms = sum->exact > 0 ? sqrt(sum->error / sum->exact) : 0;
    MergeRounding *worst = &m->report->worst;
    if (!worst->tensor || rms > worst->rms)
        *worst = (MergeRounding){x->out->name, rms, sum->largest};
    m->error += sum->error;
    m->exact += sum->exact;
    if (x->ndelta) m->adapted_error += sum->error, m->change += sum->change;
    count(&m->report->overflow, x->out->name, sum->overflow);
    count(&m->report->underflow, x->out->name, sum->underflow);
}

static void add_row(RowRounding *sum, const RowRounding *row) {
    sum->error += row->error;
    sum->exact += row->exact;
    sum->change += row->change;
    sum->largest = fmax(sum->largest, row->largest);
    sum->overflow += row->overflow;
    sum->underflow += row->underflow;
}

/* ---- writing --------------------------------------------------------------------------------- */

static bool put_matrix(Merger *m, const Out *out, SafeWriter *w, int index) {
    Matrix x;
    RowRounding sum = {0};
    int64_t size = dtype_bytes(m->job->dtype);
    bool ok = matrix_open(m, out, &x) && read_deltas(m, &x) &&
              (!x.quantized || read_scales(m, &x)) && measure_columns(m, &x);
    for (int64_t row = 0; ok && row < x.rows; row += x.piece) {
        int64_t n = x.rows - row < x.piece ? x.rows - row : x.piece;
        ok = read_rows(m, &x, row, n) && round_rows(m, &x, row, n);
        for (int64_t i = 0; ok && i < n; i++) add_row(&sum, &x.row[i]);
        ok = ok && safe_put(w, index, row * x.cols * size, x.rounded, n * x.cols * size, m->err);
    }
    if (ok) note_rounding(m, &x, &sum);
    matrix_close(&x);
    return ok;
}

static bool put_raw(Merger *m, const Out *out, SafeWriter *w, int index) {
    char piece[1 << 16];
    for (int64_t at = 0; at < out->from->bytes; at += (int64_t)sizeof piece) {
        int64_t n = out->from->bytes - at;
        if (n > (int64_t)sizeof piece) n = (int64_t)sizeof piece;
        if (!safe_read(out->from, at, n, piece, m->err) ||
            !safe_put(w, index, at, piece, n, m->err))
            return false;
    }
    return true;
}

static bool write_file(Merger *m, int file) {
    static const char *const metadata[] = {"format", "pt", NULL};
    SafeTensor *tensor = NEW_ARRAY(m->arena, SafeTensor, m->nout);
    const Out **out = NEW_ARRAY(m->arena, const Out *, m->nout);
    int n = 0;
    for (int i = 0; i < m->nout; i++)
        if (m->out[i].file == file) tensor[n] = m->out[i].to, out[n++] = &m->out[i];
    SafeWriter *w = safe_create(path_join(m->arena, m->job->out, file_name(m, file)), tensor, n,
                                metadata, m->err);
    for (int i = 0; w && i < n; i++)
        if (!(out[i]->raw ? put_raw(m, out[i], w, i) : put_matrix(m, out[i], w, i))) {
            safe_abort(w);
            return false;
        }
    return w && safe_commit(w, m->err);
}

static bool write_index(const Merger *m) {
    if (m->nfiles == 1) return true;
    json_t *map = json_object();
    for (int i = 0; i < m->nout; i++)
        json_object_set_new(map, m->out[i].name, json_string(file_name(m, m->out[i].file)));
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size",
                             (json_int_t)m->report->bytes, "weight_map", map);
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    const char *path = path_join(m->arena, m->job->out, "model.safetensors.index.json");
    bool ok = text ? file_write(path, text, strlen(text), m->err)
                   : fail(m->err, EXIT_MEMORY, "no memory for %s", path);
    free(text);
    return ok;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static bool open_all(Merger *m) {
    const MergeJob *job = m->job;
    m->base = checkpoint_open(job->base, "model", m->err);
    if (m->base && job->trained) m->trained = checkpoint_open(job->trained, "model", m->err);
    m->adapter = NEW_ARRAY(m->arena, Adapter *, job->nadapter + 1);
    m->file = NEW_ARRAY(m->arena, Checkpoint *, job->nadapter + 1);
    for (int i = 0; i < job->nadapter && !m->err->code; i++) {
        m->adapter[i] = adapter_read(m->arena, job->adapter[i], m->err);
        if (m->adapter[i]) m->file[i] = checkpoint_open(job->adapter[i], "adapter_model", m->err);
    }
    BindSource *source = NEW_ARRAY(m->arena, BindSource, 2);
    source[0] = (BindSource){.source = "base", .checkpoint = job->base};
    source[1] = (BindSource){.source = "trained", .checkpoint = job->trained};
    m->binder = (Binder){.plan = job->plan,
                         .source = source,
                         .nsource = 2,
                         .checkpoint = NEW_ARRAY(m->arena, Checkpoint *, 2),
                         .watch = job->watch,
                         .err = m->err,
                         .arena = m->arena};
    m->binder.checkpoint[0] = m->base;
    m->binder.checkpoint[1] = m->trained;
    return m->err->code == 0;
}

/* Elements that will be read, for progress: those seen through their codes come twice. */
static double elements(const Merger *m) {
    double n = 1;
    QuantPart part;
    for (int i = 0; i < m->nout; i++) {
        const Out *o = &m->out[i];
        bool twice = !m->job->original && o->bind && quant_part(o->bind->transform, &part) &&
                     !packed_is(m->base, o->from);
        if (!o->raw) n += (double)o->to.count * (twice ? 2 : 1);
    }
    return n;
}

bool merge_write(const MergeJob *job, Arena *arena, MergeReport *report, Err *err) {
    *report = (MergeReport){0};
    Merger m = {.job = job, .arena = arena, .report = report, .err = err};
    bool ok = open_all(&m) && list_tensors(&m);
    if (ok) {
        share_out(&m);
        m.binder.of_all = elements(&m);
    }
    for (int i = 0; ok && i < m.nfiles; i++) ok = write_file(&m, i);
    ok = ok && write_index(&m);
    report->rms = m.exact > 0 ? sqrt(m.error / m.exact) : 0;
    report->change = m.adapted_error > 0 ? sqrt(m.change / m.adapted_error) : INFINITY;
    checkpoint_close(m.base);
    checkpoint_close(m.trained);
    for (int i = 0; i < job->nadapter; i++) checkpoint_close(m.file[i]);
    return ok;
}
