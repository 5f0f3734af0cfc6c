/* emit_cuda.c: prints a Kern as CUDA C++ for NVRTC, with the launch it wants.
 *
 * Full rows move in packs of up to 16 bytes where columns, row distances and addresses allow
 * (Packed, kernels/cuda/lanes.cuh); rows and columns are counted in 32 bits.  Four ways:
 *   elements   no reductions over columns: a thread per pack
 *   block      reductions over long rows: a block per row, whose operands it loads at once and
 *              keeps in registers; what is to be added goes through shared memory to 16 threads
 *   half warp  other reductions: thread l of 16 takes columns l, l+16, ..; each pass reads the row
 *              again, from the cache
 *   sums       KERN_SUM_ROWS: up to 32 columns per block, many blocks of 64 rows at a time, whose
 *              sums are added in order
 * The 16 threads of a row are the lanes of the LAW (kern.h), so sums have the CPU's bits.  Compile
 * with --fmad=false.  Relies on stage.h, emit_text.h.
 */
#include "emit_text.h"

enum {
    THREADS = 256,
    HALF_WARPS = THREADS / 16,
    SUM_THREADS = 512,
    SUM_COLUMNS = 32,
    LONG_ROW = 512,                  /* columns from which a block takes a row */
    PACK_WORDS = 48,                 /* 32-bit registers for a thread's part of a row, */
    MAX_THREADS = 512,               /* or, with so many threads, */
    MAX_WORDS = 80,                  /* so many */
    SHARED_FLOATS = (12 << 10) - 16, /* 48 KiB with the results */
    MAX_GRID_Y = 32768
};

typedef enum Way { WAY_ELEMENTS, WAY_BLOCK, WAY_HALF_WARP, WAY_SUMS } Way;

typedef struct Tiles { /* how a Kern is cut into blocks and threads */
    Way way;
    int pack;    /* elements a thread moves at once: 8, 4, 2 or 1 */
    int threads; /* of a block */
    int per_row; /* ELEMENTS: threads of a block in one row; SUMS: columns of a block */
    int rows;    /* of a block */
    int pieces;  /* of a row, one block each */
    int packs;   /* BLOCK: packs of a thread */
    bool whole;  /* .. each thread has that many */
} Tiles;

/* ---- packs ----------------------------------------------------------------------------------- */

static bool is_multiple(int64_t a, int64_t b) {
    return a % b == 0;
}

/* Whether every full row can be moved `pack` elements at a time. */
static bool can_pack(const Kern *k, int pack) {
    if (!is_multiple(k->cols, pack)) return false;
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (!kval_full(v)) continue;
        const int bytes = dtype_bytes(v->dtype), all = pack * bytes < 16 ? pack * bytes : 16;
        const int align = k->arg[v->arg].align ? k->arg[v->arg].align : bytes;
        if (!is_multiple(align, all) || (v->half && !is_multiple(k->cols / 2, pack))) return false;
        if (v->level == LEVEL_ELEM && !is_multiple(v->ld * bytes, all)) return false;
    }
    return true;
}

/* 16 bytes of the widest type: a warp then moves whole lines. */
static int best_pack(const Kern *k) {
    int widest = 1;
    for (int i = 0; i < k->nval; i++)
        if (kval_full(&k->val[i]) && dtype_bytes(k->val[i].dtype) > widest)
            widest = dtype_bytes(k->val[i].dtype);
    int pack = widest >= 4 ? 4 : 8;
    while (pack > 1 && !can_pack(k, pack)) pack /= 2;
    return pack;
}

/* ---- launches -------------------------------------------------------------------------------- */

static int to_warps(int64_t threads) {
    return (int)((threads + 31) / 32 * 32);
}

static Tiles element_tiles(const Kern *k) {
    Tiles t = {.way = WAY_ELEMENTS, .pack = best_pack(k), .rows = 1, .pieces = 1};
    const int64_t packs = k->cols / t.pack;
    if (packs > THREADS) {
        const int64_t pieces = (packs + THREADS - 1) / THREADS;
        t.pieces = pieces < MAX_GRID_Y ? (int)pieces : MAX_GRID_Y;
        t.threads = pieces < MAX_GRID_Y ? to_warps((packs + pieces - 1) / pieces) : THREADS;
        t.per_row = t.threads;
    } else {
        t.rows = (int)(THREADS / packs);
        t.threads = to_warps(t.rows * packs);
        t.per_row = (int)packs;
    }
    return t;
}

static int most_folds(const Stages *s) { /* reductions of one pass */
    int most = 0;
    for (int p = 0; p < s->npass; p++) {
        int n = 0;
        for (int i = 0; i < s->k->nval; i++) n += kval_reduction(&s->k->val[i]) && s->end[i] == p;
        if (n > most) most = n;
    }
    return most;
}

/* A block per row, if the row fits the registers of at most MAX_THREADS threads. */
static bool block_tiles(const Stages *s, Tiles *t) {
    const Kern *k = s->k;
    const int pack = best_pack(k), folds = most_folds(s);
    int64_t words = 0; /* of one pack of each load and kept value */
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (v->kop == KOP_LOAD && kval_full(v)) words += (pack * dtype_bytes(v->dtype) + 3) / 4;
        if (s->kept[i] >= 0) words += pack;
    }
    if (k->cols < LONG_ROW || pack < 4 || folds * k->cols > SHARED_FLOATS) return false;
    const int64_t all = k->cols / pack;
    int64_t packs = (all + THREADS - 1) / THREADS;
    if (packs * words > PACK_WORDS) packs = (all + MAX_THREADS - 1) / MAX_THREADS;
    if (packs * words > MAX_WORDS) return false;
    *t = (Tiles){.way = WAY_BLOCK, .pack = pack, .rows = 1, .pieces = 1, .packs = (int)packs};
    t->threads = to_warps((all + packs - 1) / packs);
    t->whole = t->threads * packs == all;
    return 32 * folds <= t->threads;
}

static Tiles sum_tiles(const Kern *k) {
    Tiles t = {.way = WAY_SUMS, .pack = 1, .threads = SUM_THREADS, .per_row = 1};
    while (t.per_row < SUM_COLUMNS && t.per_row < k->cols) t.per_row *= 2;
    t.rows = 1 << 30;
    t.pieces = (int)((k->cols + t.per_row - 1) / t.per_row);
    return t;
}

/* `s` with kept values; *keeps: the way chosen keeps them. */
static Tiles tiles_of(const Stages *s, bool *keeps) {
    Tiles t;
    *keeps = false;
    if (s->k->shape == KERN_SUM_ROWS) return sum_tiles(s->k);
    if (!s->folds) return element_tiles(s->k);
    *keeps = block_tiles(s, &t);
    if (*keeps) return t;
    return (Tiles){WAY_HALF_WARP, .pack = 1, .threads = THREADS, .rows = HALF_WARPS, .pieces = 1};
}

void kern_launch(const Kern *k, Kernel *out) {
    Stages *s = stages_new(k, true);
    bool keeps;
    const Tiles t = tiles_of(s, &keeps);
    out->threads = t.threads;
    out->rows_per_block = t.rows;
    out->grid_y = t.pieces;
    out->shared_bytes = 0;
    stages_free(s);
}

/* ---- moving packs ---------------------------------------------------------------------------- */

/* "Packed<bf16_t, 8>" */
static const char *pack_type(const Tiles *t, DType dtype, char buf[40]) {
    snprintf(buf, 40, "Packed<%s, %d>", storage_type(dtype), t->pack);
    return buf;
}

/* The pack of load or store i in the current columns. */
static void pack_address(const Out *o, int i, const Tiles *t, char *buf, size_t size) {
    const KVal *v = &o->k->val[i];
    const long long h = (long long)o->k->cols / 2;
    char type[40], shift[80] = "";
    if (v->half) snprintf(shift, sizeof shift, " + (j < %lld ? %lld : -%lld)", h, h, h);
    snprintf(buf, size, "*(%s%s *)(r%d + j%s)", v->kop == KOP_LOAD ? "const " : "",
             pack_type(t, v->dtype, type), i, shift);
}

static void load_pack(Out *o, int i, const Tiles *t, bool declare) {
    char at[160], type[40];
    pack_address(o, i, t, at, sizeof at);
    out_line(o, "%s%sx%d%s = %s;", declare ? pack_type(t, o->k->val[i].dtype, type) : "",
             declare ? " " : "", i, o->pack, at);
}

/* A store's pack begins as what is there if it adds to that. */
static void begin_store(Out *o, int i, const Tiles *t) {
    char type[40];
    if (o->k->val[i].accumulate)
        load_pack(o, i, t, true);
    else
        out_line(o, "%s x%d;", pack_type(t, o->k->val[i].dtype, type), i);
}

static void end_store(Out *o, int i, const Tiles *t) {
    char at[160];
    pack_address(o, i, t, at, sizeof at);
    out_line(o, "%s = x%d;", at, i);
}

static void each_element(Out *o, const Tiles *t) {
    out_line(o, "#pragma unroll");
    out_line(o, "for (int e = 0; e < %d; e++) {", t->pack);
}

/* ---- a thread per pack ----------------------------------------------------------------------- */

/* A store of one value per row. */
static void store_once(Out *o, int i) {
    out_line(o, kval_per_column(o->s, o->k->val[i].a) ? "if (j + e == 0) {" : "if (j == 0) {");
    out_store(o, i);
    out_close(o);
}

static void pack_body(Out *o, const Tiles *t) {
    const Kern *k = o->k;
    const KLevel *level = o->s->level;
    for (int i = 0; i < k->nval; i++) {
        if (!kval_full(&k->val[i])) continue;
        if (k->val[i].kop == KOP_LOAD)
            load_pack(o, i, t, true);
        else
            begin_store(o, i, t);
    }
    for (int i = 0; i < k->nval; i++)
        if (k->val[i].kop != KOP_STORE && level[i] == LEVEL_ROW) out_value(o, i);
    each_element(o, t);
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (v->kop != KOP_STORE && kval_per_column(o->s, i))
            out_value(o, i);
        else if (v->kop == KOP_STORE && kval_full(v))
            out_store(o, i);
        else if (v->kop == KOP_STORE && kval_per_column(o->s, v->a))
            store_once(o, i);
    }
    out_close(o);
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (v->kop != KOP_STORE || kval_per_column(o->s, v->a)) continue;
        if (!kval_full(v) && (v->level == LEVEL_ROW || level[v->a] != LEVEL_SCALAR))
            store_once(o, i);
    }
    for (int i = 0; i < k->nval; i++)
        if (k->val[i].kop == KOP_STORE && kval_full(&k->val[i])) end_store(o, i, t);
}

static void elements(Out *o, const Tiles *t) {
    const long long cols = (long long)o->k->cols;
    o->row = "row";
    o->column = "j + e";
    o->pack = "";
    if (t->per_row == t->threads && t->rows == 1) {
        const char *type = cols < 1 << 30 ? "int" : "int64_t";
        out_line(o, "const int row = blockIdx.x;");
        out_row_pointers(o);
        out_line(o, "if (row < n0)");
        out_line(o, "for (%s j = ((%s)blockIdx.y * %d + threadIdx.x) * %d; j < %lld; j += %s%d) {",
                 type, type, t->threads, t->pack, cols, t->pieces > 1 ? "gridDim.y * " : "",
                 t->threads * t->pack);
    } else {
        out_line(o, "const int place = threadIdx.x / %d, j = threadIdx.x %% %d * %d;", t->per_row,
                 t->per_row, t->pack);
        out_line(o, "const int row = blockIdx.x * %d + place;", t->rows);
        out_line(o,
                 t->rows * t->per_row < t->threads ? "if (row < n0 && place < %d) {"
                                                   : "if (row < n0) {",
                 t->rows);
        out_row_pointers(o);
    }
    pack_body(o, t);
    out_close(o);
}

/* ---- passes over a row ----------------------------------------------------------------------- */

/* Takes a value into a reduction: a pack of what shall be folded, or the lane's partial result. */
static void take_in(Out *o, int i) {
    const KVal *v = &o->k->val[i];
    if (o->pack)
        out_line(o, "s%d.x[e] = v%d;", i, v->a);
    else if (v->op == OP_max_cols)
        out_line(o, "s%d = f32_max(s%d, v%d);", i, i, v->a);
    else
        out_line(o, "s%d = s%d + v%d;", i, i, v->a);
}

/* What a pass does in one column. */
static void column_body(Out *o, int pass) {
    const Stages *s = o->s;
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (kval_reduction(v)) {
            if (s->end[i] == pass) take_in(o, i);
        } else if (v->kop == KOP_STORE) {
            if (s->end[i] == pass) out_store(o, i);
        } else if (stage_needs(s, pass, i)) {
            if (!stage_computes(s, pass, i)) {
                out_fetch(o, i);
                continue;
            }
            out_value(o, i);
            if (s->kept[i] == pass) out_line(o, "x%d%s.x[e] = v%d;", i, o->pack, i);
        }
    }
}

/* Values of the row that are first known at this pass. */
static void row_values(Out *o, int pass) {
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop == KOP_STORE || o->s->level[i] != LEVEL_ROW || o->s->depth[i] != pass) continue;
        if (!kval_reduction(v))
            out_value(o, i);
        else if (o->pack) /* folded already */
            out_line(o, "const float v%d = s%d;", i, i);
        else
            out_line(o, "const float v%d = lanes_%s(s%d);", i, v->op == OP_max_cols ? "max" : "sum",
                     i);
    }
}

/* Stores of one value per row. */
static void row_stores(Out *o, const char *one) {
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop != KOP_STORE || o->s->end[i] >= 0) continue;
        if (v->level != LEVEL_ROW && o->s->level[v->a] == LEVEL_SCALAR) continue;
        out_line(o, "if (%s == 0) {", one);
        out_store(o, i);
        out_close(o);
    }
}

/* ---- half a warp per row --------------------------------------------------------------------- */

static void half_warp_pass(Out *o, int pass) {
    if (!stage_has_columns(o->s, pass)) return;
    for (int i = 0; i < o->k->nval; i++)
        if (kval_reduction(&o->k->val[i]) && o->s->end[i] == pass)
            out_line(o, "float s%d = %s;", i, o->k->val[i].op == OP_max_cols ? "-F32_INF" : "0.0f");
    o->column = "j";
    out_line(o, "#pragma unroll 8");
    out_line(o, "for (int j = lane; j < %lld; j += 16) {", (long long)o->k->cols);
    column_body(o, pass);
    out_close(o);
    o->column = "0";
}

static void half_warps(Out *o) {
    out_line(o, "const int lane = threadIdx.x %% 16;");
    out_line(
        o, "for (int row = blockIdx.x * %d + threadIdx.x / 16; row < n0; row += gridDim.x * %d) {",
        HALF_WARPS, HALF_WARPS);
    o->row = "row";
    out_row_pointers(o);
    for (int pass = 0; pass <= stage_last(o->s); pass++) {
        row_values(o, pass);
        if (pass < o->s->npass) half_warp_pass(o, pass);
    }
    row_stores(o, "lane");
    out_close(o);
}

/* ---- a block per row ------------------------------------------------------------------------- */

/* Opens the loop over this thread's packs. */
static void each_pack(Out *o, const Tiles *t) {
    out_line(o, "#pragma unroll");
    out_line(o, "for (int k = 0; k < %d; k++) {", t->packs);
    out_line(o, "const int j = (k * %d + threadIdx.x) * %d;", t->threads, t->pack);
    if (!t->whole) out_line(o, "if (j < %lld) {", (long long)o->k->cols);
}

static void end_packs(Out *o, const Tiles *t) {
    if (!t->whole) out_close(o);
    out_close(o);
}

static bool is_row_load(const Stages *s, int i) {
    bool needed = false;
    for (int p = 0; p < s->npass; p++) needed |= stage_needs(s, p, i);
    return needed && s->k->val[i].kop == KOP_LOAD && kval_full(&s->k->val[i]);
}

/* Everything the row reads, at once. */
static void load_row(Out *o, const Tiles *t) {
    char type[40];
    bool any = false;
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        const bool load = is_row_load(o->s, i);
        if (load || o->s->kept[i] >= 0)
            out_line(o, "%s x%d[%d];", pack_type(t, load ? v->dtype : DT_f32, type), i, t->packs);
        any |= load;
    }
    if (!any) return;
    each_pack(o, t);
    for (int i = 0; i < o->k->nval; i++)
        if (is_row_load(o->s, i)) load_pack(o, i, t, false);
    end_packs(o, t);
}

/* What is to be added or compared goes to shared memory, `part`; then each reduction is folded by
 * half of a warp of its own. */
static void fold_parts(Out *o, int pass) {
    int n = 0;
    out_line(o, "__syncthreads();");
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (!kval_reduction(v) || o->s->end[i] != pass) continue;
        out_line(o, "if (threadIdx.x / 16 == %d) fold_%s(&room[%d], part + %lld, %lld);", 2 * n,
                 v->op == OP_max_cols ? "max" : "sum", n, (long long)(n * o->k->cols),
                 (long long)o->k->cols);
        n++;
    }
    out_line(o, "__syncthreads();");
    n = 0;
    for (int i = 0; i < o->k->nval; i++)
        if (kval_reduction(&o->k->val[i]) && o->s->end[i] == pass)
            out_line(o, "const float s%d = room[%d];", i, n++);
}

static void block_pass(Out *o, int pass, const Tiles *t) {
    const Kern *k = o->k;
    if (!stage_has_columns(o->s, pass)) return;
    each_pack(o, t);
    for (int i = 0; i < k->nval; i++) {
        if (o->s->end[i] != pass) continue;
        o->pack = "";
        if (k->val[i].kop == KOP_STORE) begin_store(o, i, t);
        if (kval_reduction(&k->val[i])) out_line(o, "Packed<float, %d> s%d;", t->pack, i);
        o->pack = "[k]";
    }
    each_element(o, t);
    o->column = "j + e";
    column_body(o, pass);
    o->column = "0";
    out_close(o);
    int n = 0;
    for (int i = 0; i < k->nval; i++) {
        if (o->s->end[i] != pass) continue;
        if (k->val[i].kop == KOP_STORE) end_store(o, i, t);
        if (kval_reduction(&k->val[i]))
            out_line(o, "*(Packed<float, %d> *)(part + %lld + j) = s%d;", t->pack,
                     (long long)(n++ * k->cols), i);
    }
    end_packs(o, t);
    if (n) fold_parts(o, pass);
}

static void block_rows(Out *o, const Tiles *t) {
    const int folds = most_folds(o->s);
    out_line(o, "alignas(16) __shared__ float part[%lld];", (long long)(folds * o->k->cols));
    out_line(o, "__shared__ float room[%d];", folds);
    out_line(o, "for (int row = blockIdx.x; row < n0; row += gridDim.x) {");
    o->row = "row";
    o->pack = "[k]";
    out_row_pointers(o);
    load_row(o, t);
    for (int pass = 0; pass <= stage_last(o->s); pass++) {
        row_values(o, pass);
        if (pass < o->s->npass) block_pass(o, pass, t);
    }
    o->pack = NULL;
    row_stores(o, "threadIdx.x");
    out_close(o);
}

/* ---- sums over rows -------------------------------------------------------------------------- */

/* The sum of one block of 64 rows in this thread's column. */
static void sum_block(Out *o, int sum) {
    out_line(o, "float s = 0.0f;");
    out_line(o, "const int end = (b + 1) * 64 < n0 ? (b + 1) * 64 : (int)n0;");
    out_line(o, "#pragma unroll 8");
    out_line(o, "for (int row = j < %lld ? b * 64 : end; row < end; row++) {",
             (long long)o->k->cols);
    o->row = "row";
    o->column = "j";
    out_row_pointers(o);
    for (int i = 0; i < sum; i++)
        if (o->s->level[i] == LEVEL_ROW || stage_needs(o->s, 0, i)) out_value(o, i);
    out_line(o, "s = s + v%d;", o->k->val[sum].a);
    out_close(o);
}

static void sum_rows(Out *o, const Tiles *t) {
    const int groups = t->threads / t->per_row;
    int sum = 0;
    while (!kval_reduction(&o->k->val[sum])) sum++;
    out_line(o, "__shared__ float part[%d][%d];", groups, t->per_row);
    out_line(o, "const int lane = threadIdx.x %% %d, group = threadIdx.x / %d;", t->per_row,
             t->per_row);
    out_line(o, "const int j = blockIdx.y * %d + lane;", t->per_row);
    out_line(o, "const int blocks = (n0 + 63) / 64;");
    out_line(o, "float total = 0.0f;");
    out_line(o, "for (int first = 0; first < blocks; first += %d) {", groups);
    out_line(o, "const int b = first + group;");
    sum_block(o, sum);
    out_line(o, "part[group][lane] = s;");
    out_line(o, "__syncthreads();");
    out_line(o, "const int count = blocks - first < %d ? blocks - first : %d;", groups, groups);
    out_line(o, "for (int i = 0; group == 0 && i < count; i++) total += part[i][lane];");
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

/* Up to 80 registers a thread, 128 where it keeps part of a row; without a number of blocks ptxas
 * would rather spill than take some. */
static void header(Out *o, const char *symbol, const Tiles *t) {
    const Kern *k = o->k;
    const int threads = t->way == WAY_BLOCK ? 512 : 768; /* at once, of 65536 registers */
    text_add(o->text, "extern \"C\" __global__ void __launch_bounds__(%d, %d) %s(", t->threads,
             t->threads < threads ? threads / t->threads : 1, symbol);
    for (int i = 0; i < k->narg; i++)
        text_add(o->text, "%s%s *__restrict__ a%d, ", k->arg[i].write ? "" : "const ",
                 storage_type(k->arg[i].dtype), i);
    out_line(o, "int64_t n0) {");
}

void emit_kern_cuda(const Kern *k, const char *symbol, Text *out) {
    Stages *s = stages_new(k, true);
    bool keeps;
    const Tiles t = tiles_of(s, &keeps);
    if (!keeps) {
        stages_free(s);
        s = stages_new(k, false);
    }
    Out o = {.s = s, .k = k, .text = out};
    header(&o, symbol, &t);
    out_scalars(&o);
    switch (t.way) {
    case WAY_ELEMENTS:
        elements(&o, &t);
        break;
    case WAY_BLOCK:
        block_rows(&o, &t);
        break;
    case WAY_HALF_WARP:
        half_warps(&o);
        break;
    case WAY_SUMS:
        sum_rows(&o, &t);
        break;
    }
    o.pack = NULL;
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (k->shape == KERN_SUM_ROWS || v->kop != KOP_STORE || v->level != LEVEL_SCALAR) continue;
        if (s->level[v->a] == LEVEL_SCALAR) out_store(&o, i);
    }
    out_close(&o);
    stages_free(s);
}
