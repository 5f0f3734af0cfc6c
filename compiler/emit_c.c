/* emit_c.c: prints a Kern as C with OpenMP, and the text that every CPU kernel begins with.
 *
 * KERN_ROWS: threads share the rows; within a row, one loop over the columns per pass (stage.h),
 * in 16 lanes where the pass ends in reductions.  A Kern without rows is one flat loop.
 * KERN_SUM_ROWS: threads share blocks of 64 rows, whose sums are then added in order.  Each
 * tensor is read from memory once: a second pass over a row finds it in the cache.
 * Relies on stage.h.  Promises: the same bits at any thread count and vector length (LAWS in
 * kern.h).
 */
#include "emit_text.h"

#include <string.h>

/* Below this many elements a parallel region costs more than it saves. */
enum { PARALLEL_MIN = 16384, SUM_BLOCK = 64, LANES = 16 };

/* ---- one row --------------------------------------------------------------------------------- */

static const char *fold_name(const KVal *v) {
    return v->op == OP_max_cols ? "lanes_max" : "lanes_sum";
}

/* What a pass does in one column: values, row buffers, stores, and its reductions' partial
 * results. */
static void column_body(Out *o, int pass) {
    const Stages *s = o->s;
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (kval_reduction(v)) {
            if (s->end[i] != pass) continue;
            out_line(o,
                     v->op == OP_max_cols ? "s%d[l] = f32_max(s%d[l], v%d);"
                                          : "s%d[l] = s%d[l] + v%d;",
                     i, i, v->a);
        } else if (v->kop == KOP_STORE) {
            if (s->end[i] == pass) out_store(o, i);
        } else if (stage_needs(s, pass, i)) {
            if (!stage_computes(s, pass, i)) {
                out_fetch(o, i);
                continue;
            }
            out_value(o, i);
            if (s->kept[i] == pass) out_line(o, "b%d[%s] = v%d;", i, o->column, i);
        }
    }
}

/* The columns in 16 lanes; the last columns % 16 of them in a shorter loop of its own. */
static void lane_loops(Out *o, int pass) {
    const long long cols = (long long)o->k->cols, whole = cols / LANES * LANES;
    o->column = "j";
    o->half = HALF_ANY;
    for (int tail = 0; tail < 2; tail++) {
        if (tail ? whole == cols : whole == 0) continue;
        if (!tail) out_line(o, "for (int64_t c = 0; c < %lld; c += %d) {", whole, LANES);
        out_line(o, "#pragma omp simd");
        out_line(o, "for (int l = 0; l < %lld; l++) {", tail ? cols - whole : LANES);
        if (tail)
            out_line(o, "const int64_t j = %lld + l;", whole);
        else
            out_line(o, "const int64_t j = c + l;");
        column_body(o, pass);
        out_close(o);
        if (!tail) out_close(o);
    }
}

static void plain_loop(Out *o, int pass, Half half) {
    const long long cols = (long long)o->k->cols;
    o->column = "j";
    o->half = half;
    out_line(o, "#pragma omp simd");
    out_line(o, "for (int64_t j = %lld; j < %lld; j++) {", half == HALF_SECOND ? cols / 2 : 0,
             half == HALF_FIRST ? cols / 2 : cols);
    column_body(o, pass);
    out_close(o);
}

static bool loads_half(const Out *o, int pass) {
    for (int i = 0; i < o->k->nval; i++)
        if (o->k->val[i].kop == KOP_LOAD && o->k->val[i].half && stage_computes(o->s, pass, i))
            return true;
    return false;
}

static void column_pass(Out *o, int pass) {
    if (!stage_has_columns(o->s, pass)) return;
    if (stage_reduces(o->s, pass)) {
        for (int i = 0; i < o->k->nval; i++)
            if (kval_reduction(&o->k->val[i]) && o->s->end[i] == pass) {
                out_line(o, "float s%d[%d];", i, LANES);
                out_line(o, "for (int l = 0; l < %d; l++) s%d[l] = %s;", LANES, i,
                         o->k->val[i].op == OP_max_cols ? "-F32_INF" : "0.0f");
            }
        lane_loops(o, pass);
    } else if (loads_half(o, pass)) {
        plain_loop(o, pass, HALF_FIRST);
        plain_loop(o, pass, HALF_SECOND);
    } else {
        plain_loop(o, pass, HALF_ANY);
    }
    o->column = "0";
}

/* Values of the row itself that are first known at this pass; reductions hand over their result. */
static void row_values(Out *o, int pass) {
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop == KOP_STORE || o->s->level[i] != LEVEL_ROW || o->s->depth[i] != pass) continue;
        if (kval_reduction(v))
            out_line(o, "const float v%d = %s(s%d);", i, fold_name(v), i);
        else
            out_value(o, i);
    }
}

static void rows_loop(Out *o) {
    const long long cols = (long long)o->k->cols;
    out_line(o, "#pragma omp parallel for schedule(static) if (n[0] * %lld >= %d)", cols,
             PARALLEL_MIN);
    out_line(o, "for (int64_t row = 0; row < n[0]; row++) {");
    o->row = "row";
    out_row_pointers(o);
    for (int i = 0; i < o->k->nval; i++)
        if (o->s->kept[i] >= 0) out_line(o, "float b%d[%lld];", i, cols);
    for (int pass = 0; pass <= stage_last(o->s); pass++) {
        row_values(o, pass);
        if (pass < o->s->npass) column_pass(o, pass);
    }
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop != KOP_STORE || o->s->end[i] >= 0) continue;
        if (v->level == LEVEL_ROW || o->s->level[v->a] != LEVEL_SCALAR) out_store(o, i);
    }
    out_close(o);
}

/* Every element at its own number, or one column: then rows are elements. */
static void flat_loop(Out *o) {
    o->row = o->column = "j";
    out_line(o, "const int64_t count = n[0] * %lld;", (long long)o->k->cols);
    out_line(o, "#pragma omp parallel for simd schedule(simd : static) if (parallel : count >= %d)",
             PARALLEL_MIN);
    out_line(o, "for (int64_t j = 0; j < count; j++) {");
    out_row_pointers(o);
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (o->s->level[v->kop == KOP_STORE ? v->a : i] == LEVEL_SCALAR && v->level == LEVEL_SCALAR)
            continue;
        if (v->kop == KOP_STORE)
            out_store(o, i);
        else
            out_value(o, i);
    }
    out_close(o);
}

/* ---- sums over rows -------------------------------------------------------------------------- */

static int sum_value(const Kern *k) {
    for (int i = 0; i < k->nval; i++)
        if (kval_reduction(&k->val[i])) return i;
    return -1;
}

/* Sums of up to `batch` blocks of 64 rows, each block by one thread. */
static void sum_blocks(Out *o, int sum) {
    const long long cols = (long long)o->k->cols;
    out_line(o, "#pragma omp parallel for schedule(static) if (blocks * %lld >= %d)",
             cols * SUM_BLOCK, PARALLEL_MIN);
    out_line(o, "for (int64_t b = 0; b < blocks; b++) {");
    out_line(o, "float *const s = part + b * %lld;", cols);
    out_line(o, "for (int64_t j = 0; j < %lld; j++) s[j] = 0.0f;", cols);
    out_line(o, "const int64_t begin = (first + b) * %d;", SUM_BLOCK);
    out_line(o, "const int64_t end = begin + %d < n[0] ? begin + %d : n[0];", SUM_BLOCK, SUM_BLOCK);
    out_line(o, "for (int64_t row = begin; row < end; row++) {");
    o->row = "row";
    out_row_pointers(o);
    row_values(o, 0);
    out_line(o, "#pragma omp simd");
    out_line(o, "for (int64_t j = 0; j < %lld; j++) {", cols);
    o->column = "j";
    o->half = HALF_ANY;
    for (int i = 0; i < sum; i++)
        if (stage_needs(o->s, 0, i)) out_value(o, i);
    out_line(o, "s[j] = s[j] + v%d;", o->k->val[sum].a);
    out_close(o);
    out_close(o);
    out_close(o);
}

/* What is made of the sum of a column. */
static void sum_results(Out *o, int sum) {
    out_line(o, "for (int64_t j = 0; j < %lld; j++) {", (long long)o->k->cols);
    out_line(o, "const float v%d = total[j];", sum);
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop == KOP_STORE)
            out_store(o, i);
        else if (i != sum && kval_per_column(o->s, i) && stage_needs(o->s, 1, i))
            out_value(o, i);
    }
    out_close(o);
}

static void sum_rows(Out *o) {
    const long long cols = (long long)o->k->cols;
    const long long batch = cols * SUM_BLOCK < 65536 ? 65536 / cols : SUM_BLOCK;
    const int sum = sum_value(o->k);
    out_line(o, "static float part[%lld];", batch * cols);
    out_line(o, "float total[%lld];", cols);
    out_line(o, "for (int64_t j = 0; j < %lld; j++) total[j] = 0.0f;", cols);
    out_line(o, "const int64_t every = (n[0] + %d) / %d;", SUM_BLOCK - 1, SUM_BLOCK);
    out_line(o, "for (int64_t first = 0; first < every; first += %lld) {", batch);
    out_line(o, "const int64_t blocks = every - first < %lld ? every - first : %lld;", batch,
             batch);
    sum_blocks(o, sum);
    out_line(o, "for (int64_t b = 0; b < blocks; b++) {");
    out_line(o, "#pragma omp simd");
    out_line(o, "for (int64_t j = 0; j < %lld; j++) total[j] += part[b * %lld + j];", cols, cols);
    out_close(o);
    out_close(o);
    sum_results(o, sum);
}

/* ---- the whole ------------------------------------------------------------------------------- */

void emit_kern_c(const Kern *k, const char *symbol, Text *out) {
    Stages *s = stages_new(k, true);
    Out o = {.s = s, .k = k, .text = out, .flat = s->flat};
    out_line(&o, "void %s(void *const *p, const int64_t *n) {", symbol);
    for (int i = 0; i < k->narg; i++) {
        const char *qualifier = k->arg[i].write ? "" : "const ";
        out_line(&o, "%s%s *const a%d = p[%d];", qualifier, storage_type(k->arg[i].dtype), i, i);
    }
    out_scalars(&o);
    if (k->shape == KERN_SUM_ROWS)
        sum_rows(&o);
    else if (s->flat)
        flat_loop(&o);
    else
        rows_loop(&o);
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (k->shape == KERN_ROWS && v->kop == KOP_STORE && v->level == LEVEL_SCALAR &&
            s->level[v->a] == LEVEL_SCALAR)
            out_store(&o, i);
    }
    out_close(&o);
    stages_free(s);
}

const char *emit_prelude(const Target *target) {
    static const char *const cpu[] = {
        "kernels/cpu/vectors.h", "kernels/types.h",   "kernels/math.h",      "kernels/random.h",
        "kernels/tables.h",      "kernels/dynamic.h", "kernels/cpu/lanes.h", "kernels/cpu/tiles.h"};
    static const char *const cuda[] = {"kernels/types.h",      "kernels/math.h",
                                       "kernels/random.h",     "kernels/tables.h",
                                       "kernels/dynamic.h",    "kernels/cuda/lanes.cuh",
                                       "kernels/cuda/ptx.cuh", "kernels/cuda/tile.cuh"};
    const char *const *parts = target->cuda ? cuda : cpu;
    const size_t nparts = target->cuda ? COUNT(cuda) : COUNT(cpu);
    static const char *text[2]; /* made once for each */
    const char **made = &text[target->cuda];
    if (*made) return *made;
    Text all = {0};
    for (size_t i = 0; i < nparts; i++) {
        size_t len;
        const char *body = embedded(parts[i], &len);
        for (const char *at = body; at && *at;) { /* no quoted includes: all parts are here */
            const size_t n = strcspn(at, "\n") + 1;
            if (strncmp(at, "#include \"", 10)) text_addn(&all, at, n);
            at += n;
        }
    }
    *made = intern_n(all.data, all.len);
    text_free(&all);
    return *made;
}
