/* emit_cuda.c: prints a Kern as CUDA C++ for NVRTC, with the launch it wants.
 *
 * KERN_ROWS without reductions: a thread per element.  With reductions: 16 threads (half a warp)
 * per row, 16 rows per block; thread l takes columns l, l+16, ..., which are the lanes of the LAW
 * (kern.h), so sums have the CPU's bits; each pass over a row reads it again, from the cache.
 * KERN_SUM_ROWS: 32 columns per block, 16 blocks of 64 rows at a time, whose sums are added in
 * order. Compile with --fmad=false.  Relies on stage.h, emit_text.h.
 */
#include "emit_text.h"

enum {
    THREADS = 256,
    ROWS = THREADS / 16,
    SUM_COLUMNS = 32,
    SUM_BLOCKS = 16,
    ELEMENTS = 1024,
    MAX_GRID_Y = 32768
};

void kern_launch(const Kern *k, Kernel *out) {
    Stages *s = stages_new(k, false);
    out->threads = THREADS;
    out->grid_y = 1;
    out->shared_bytes = 0;
    if (k->shape == KERN_SUM_ROWS) {
        out->threads = SUM_COLUMNS * SUM_BLOCKS;
        out->rows_per_block = 1 << 30;
        out->grid_y = (int)((k->cols + SUM_COLUMNS - 1) / SUM_COLUMNS);
    } else if (s->folds) {
        out->rows_per_block = ROWS;
    } else if (k->cols > ELEMENTS) {
        out->rows_per_block = 1;
        out->grid_y = k->cols < ELEMENTS * MAX_GRID_Y ? (int)((k->cols + ELEMENTS - 1) / ELEMENTS)
                                                      : MAX_GRID_Y;
    } else {
        out->rows_per_block = (int)(ELEMENTS / k->cols);
    }
    stages_free(s);
}

/* ---- a thread per element -------------------------------------------------------------------- */

static void elements(Out *o) {
    const long long cols = (long long)o->k->cols;
    const bool flat = o->s->flat;
    out_line(o, "const int64_t block = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;");
    out_line(o, "const int64_t step = (int64_t)gridDim.x * gridDim.y * blockDim.x;");
    out_line(o, "for (int64_t at = block * blockDim.x + threadIdx.x; at < n0 * %lld; at += step) {",
             cols);
    o->row = flat ? "at" : "row";
    o->column = flat ? "at" : "j";
    if (!flat) out_line(o, "const int64_t row = at / %lld, j = at %% %lld;", cols, cols);
    out_row_pointers(o);
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop == KOP_STORE && v->level == LEVEL_ROW && !flat) {
            out_line(o, "if (j == 0) {");
            out_store(o, i);
            out_close(o);
        } else if (v->kop == KOP_STORE) {
            if (v->level != LEVEL_SCALAR || o->s->level[v->a] != LEVEL_SCALAR) out_store(o, i);
        } else if (o->s->level[i] != LEVEL_SCALAR) {
            out_value(o, i);
        }
    }
    out_close(o);
}

/* ---- half a warp per row --------------------------------------------------------------------- */

/* What a pass does in one column. */
static void column_body(Out *o, int pass) {
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (kval_reduction(v)) {
            if (o->s->end[i] != pass) continue;
            out_line(o, v->op == OP_max_cols ? "s%d = f32_max(s%d, v%d);" : "s%d = s%d + v%d;", i,
                     i, v->a);
        } else if (v->kop == KOP_STORE) {
            if (o->s->end[i] == pass) out_store(o, i);
        } else if (stage_needs(o->s, pass, i)) {
            out_value(o, i);
        }
    }
}

static void column_pass(Out *o, int pass) {
    if (!stage_has_columns(o->s, pass)) return;
    for (int i = 0; i < o->k->nval; i++)
        if (kval_reduction(&o->k->val[i]) && o->s->end[i] == pass)
            out_line(o, "float s%d = %s;", i, o->k->val[i].op == OP_max_cols ? "-F32_INF" : "0.0f");
    o->column = "j";
    out_line(o, "#pragma unroll 4");
    out_line(o, "for (int64_t j = lane; j < %lld; j += 16) {", (long long)o->k->cols);
    column_body(o, pass);
    out_close(o);
    o->column = "0";
}

static void row_values(Out *o, int pass) {
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop == KOP_STORE || o->s->level[i] != LEVEL_ROW || o->s->depth[i] != pass) continue;
        if (kval_reduction(v))
            out_line(o, "const float v%d = %s(s%d);", i,
                     v->op == OP_max_cols ? "lanes_max" : "lanes_sum", i);
        else
            out_value(o, i);
    }
}

static void rows(Out *o) {
    out_line(o, "const int64_t lane = threadIdx.x %% 16;");
    out_line(o,
             "for (int64_t row = (int64_t)blockIdx.x * %d + threadIdx.x / 16; row < n0; "
             "row += (int64_t)gridDim.x * %d) {",
             ROWS, ROWS);
    o->row = "row";
    out_row_pointers(o);
    for (int pass = 0; pass <= stage_last(o->s); pass++) {
        row_values(o, pass);
        if (pass < o->s->npass) column_pass(o, pass);
    }
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop != KOP_STORE || o->s->end[i] >= 0) continue;
        if (v->level != LEVEL_ROW && o->s->level[v->a] == LEVEL_SCALAR) continue;
        out_line(o, "if (lane == 0) {");
        out_store(o, i);
        out_close(o);
    }
    out_close(o);
}

/* ---- sums over rows -------------------------------------------------------------------------- */

/* The sum of one block of 64 rows in this thread's column. */
static void sum_block(Out *o, int sum) {
    out_line(o, "float s = 0.0f;");
    out_line(o, "const int64_t end = (b + 1) * 64 < n0 ? (b + 1) * 64 : n0;");
    out_line(o, "for (int64_t row = b * 64; row < end && j < %lld; row++) {",
             (long long)o->k->cols);
    o->row = "row";
    o->column = "j";
    out_row_pointers(o);
    for (int i = 0; i < sum; i++)
        if (o->s->level[i] == LEVEL_ROW || stage_needs(o->s, 0, i)) out_value(o, i);
    out_line(o, "s = s + v%d;", o->k->val[sum].a);
    out_close(o);
}

static void sum_rows(Out *o) {
    int sum = 0;
    while (!kval_reduction(&o->k->val[sum])) sum++;
    out_line(o, "__shared__ float part[%d][%d];", SUM_BLOCKS, SUM_COLUMNS);
    out_line(o, "const int64_t lane = threadIdx.x %% %d, group = threadIdx.x / %d;", SUM_COLUMNS,
             SUM_COLUMNS);
    out_line(o, "const int64_t j = (int64_t)blockIdx.y * %d + lane;", SUM_COLUMNS);
    out_line(o, "float total = 0.0f;");
    out_line(o, "for (int64_t first = 0; first * 64 < n0; first += %d) {", SUM_BLOCKS);
    out_line(o, "const int64_t b = first + group;");
    sum_block(o, sum);
    out_line(o, "part[group][lane] = s;");
    out_line(o, "__syncthreads();");
    out_line(o, "for (int64_t i = 0; i < %d && (first + i) * 64 < n0; i++) total += part[i][lane];",
             SUM_BLOCKS);
    out_line(o, "__syncthreads();");
    out_close(o);
    out_line(o, "if (group == 0 && j < %lld) {", (long long)o->k->cols);
    out_line(o, "const float v%d = total;", sum);
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop == KOP_STORE)
            out_store(o, i);
        else if (i != sum && kval_per_column(o->s, i) && stage_needs(o->s, 1, i))
            out_value(o, i);
    }
    out_close(o);
}

/* ---- the whole ------------------------------------------------------------------------------- */

void emit_kern_cuda(const Kern *k, const char *symbol, Text *out) {
    Stages *s = stages_new(k, false);
    Out o = {.s = s, .k = k, .text = out};
    text_add(out, "extern \"C\" __global__ void %s(", symbol);
    for (int i = 0; i < k->narg; i++)
        text_add(out, "%s%s *__restrict__ a%d, ", k->arg[i].write ? "" : "const ",
                 storage_type(k->arg[i].dtype), i);
    out_line(&o, "int64_t n0) {");
    out_scalars(&o);
    if (k->shape == KERN_SUM_ROWS)
        sum_rows(&o);
    else if (s->folds)
        rows(&o);
    else
        elements(&o);
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (k->shape == KERN_SUM_ROWS || v->kop != KOP_STORE || v->level != LEVEL_SCALAR) continue;
        if (s->level[v->a] == LEVEL_SCALAR) out_store(&o, i);
    }
    out_close(&o);
    stages_free(s);
}
