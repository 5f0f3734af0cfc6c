/* emit_c.c: prints a Kern as C with OpenMP, and the text that every CPU kernel begins with.
 *
 * KERN_ROWS: threads share the rows; within a row, one loop over the columns per pass (stage.h), in 16
 * lanes where the pass ends in reductions.  A Kern without rows is one flat loop.  KERN_SUM_ROWS:
 * threads share blocks of 64 rows, whose sums are then added in order.  Each tensor is read from
 * memory once: a second pass over a row finds it in the cache.
 * Relies on stage.h.  Promises: the same bits at any thread count and vector length (LAWS in kern.h).
 */
#include "stage.h"

#include <string.h>

/* Below this many elements a parallel region costs more than it saves. */
enum { PARALLEL_MIN = 16384, SUM_BLOCK = 64, LANES = 16 };

typedef enum Half { HALF_ANY, HALF_FIRST, HALF_SECOND } Half; /* where a loop's columns lie */

typedef struct Out {
    const Stages *s;
    const Kern *k;
    Text *text;
    const char *symbol;
    const char *row, *column; /* names of the loop variables in scope */
    Half half;
    int indent;
} Out;

static void line(Out *o, const char *format, ...) PRINTF(2, 3);
static void line(Out *o, const char *format, ...) {
    va_list args;
    va_start(args, format);
    char buf[1024];
    vsnprintf(buf, sizeof buf, format, args);
    va_end(args);
    if (buf[0] == '#')
        text_add(o->text, "%s\n", buf);
    else
        text_add(o->text, "%*s%s\n", 4 * o->indent, "", buf);
    const size_t n = strlen(buf);
    if (n && buf[n - 1] == '{') o->indent++;
}

static void close_brace(Out *o) {
    o->indent--;
    line(o, "}");
}

/* ---- loads and stores ------------------------------------------------------------------------------- */

static bool is_memory(const KVal *v) {
    return v->kop == KOP_LOAD || v->kop == KOP_STORE;
}

/* "row * 64", "(row / 4) * 64", "(i3 < 0 ? 0 : i3) * 64": where the row of a load or store begins. */
static void row_offset(const Out *o, int i, char *buf, size_t size) {
    const KVal *v = &o->k->val[i];
    if (v->index >= 0)
        snprintf(buf, size, "(i%d < 0 ? 0 : i%d) * (int64_t)%lld", i, i, (long long)v->ld);
    else if (v->rowdiv > 1)
        snprintf(buf, size, "%s / %lld * %lld", o->row, (long long)v->rowdiv, (long long)v->ld);
    else
        snprintf(buf, size, "%s * %lld", o->row, (long long)v->ld);
}

/* The pointer r<i> of a load or store: to its row, or to its only row. */
static void pointer(Out *o, int i) {
    const KVal *v = &o->k->val[i];
    const char *qualifier = o->k->arg[v->arg].write ? "" : "const ";
    const bool by_row = v->level == LEVEL_ROW || v->level == LEVEL_ELEM;
    char offset[96] = "0";
    if (by_row && v->index >= 0) {
        char row[64];
        snprintf(row, sizeof row, v->rowdiv > 1 ? "%s / %lld" : "%s", o->row, (long long)v->rowdiv);
        line(o, "const int64_t i%d = a%d[%s];", i, v->index, row);
    }
    if (by_row && !(o->s->flat && o->k->cols > 1)) row_offset(o, i, offset, sizeof offset);
    line(o, "%s%s *const r%d = a%d + %s;", qualifier, storage_type(v->dtype), i, v->arg, offset);
}

/* The element of load i in the current column. */
static void element(const Out *o, int i, char *buf, size_t size) {
    const KVal *v = &o->k->val[i];
    const char *c = o->s->flat && o->k->cols == 1 ? "0" : o->column;
    const long long h = (long long)o->k->cols / 2;
    if (v->level == LEVEL_SCALAR || v->level == LEVEL_ROW)
        snprintf(buf, size, "r%d[0]", i);
    else if (!v->half)
        snprintf(buf, size, "r%d[%s]", i, c);
    else if (o->half == HALF_FIRST)
        snprintf(buf, size, "r%d[%s + %lld]", i, c, h);
    else if (o->half == HALF_SECOND)
        snprintf(buf, size, "r%d[%s - %lld]", i, c, h);
    else
        snprintf(buf, size, "r%d[%s < %lld ? %s + %lld : %s - %lld]", i, c, h, c, h, c, h);
}

static void load(Out *o, int i) {
    const KVal *v = &o->k->val[i];
    char at[128];
    Text x = {0};
    element(o, i, at, sizeof at);
    stage_from_storage(v->dtype, at, &x);
    if (v->half && o->half == HALF_ANY)
        text_add(&x, " * (%s < %lld ? -1.0f : 1.0f)", o->column, (long long)o->k->cols / 2);
    const char *sign = v->half && o->half == HALF_FIRST ? "-" : "";
    if (v->index >= 0)
        line(o, "const float v%d = i%d < 0 ? 0.0f : %s%s;", i, i, sign, x.data);
    else
        line(o, "const float v%d = %s%s;", i, sign, x.data);
    text_free(&x);
}

static void store(Out *o, int i) {
    const KVal *v = &o->k->val[i];
    char at[128];
    Text sum = {0}, y = {0};
    element(o, i, at, sizeof at);
    if (v->accumulate) {
        stage_from_storage(v->dtype, at, &sum);
        text_add(&sum, " + ");
    }
    text_add(&sum, "v%d", v->a);
    stage_to_storage(v->dtype, v->accumulate ? DT_f32 : o->k->val[v->a].dtype, sum.data, &y);
    line(o, "%s = %s;", at, y.data);
    text_free(&sum);
    text_free(&y);
}

static void op(Out *o, int i) {
    Text x = {0};
    stage_expression(o->s, i, o->column, &x);
    line(o, "const float v%d = %s;", i, x.data);
    text_free(&x);
}

static void value(Out *o, int i) {
    if (o->k->val[i].kop == KOP_LOAD)
        load(o, i);
    else
        op(o, i);
}

static void fetch(Out *o, int i) {
    line(o, "const float v%d = b%d[%s];", i, i, o->column);
}

/* ---- one row ------------------------------------------------------------------------------------------ */

static const char *fold_name(const KVal *v) {
    return v->op == OP_max_cols ? "lanes_max" : "lanes_sum";
}

static bool ends_here(const Out *o, int i, int pass) {
    return kval_reduction(&o->k->val[i]) && o->s->depth[i] == pass + 1;
}

/* What a pass does in one column: values, row buffers, stores, and its reductions' partial results. */
static void column_body(Out *o, int pass) {
    const Stages *s = o->s;
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (kval_reduction(v)) {
            if (ends_here(o, i, pass) && v->op == OP_max_cols)
                line(o, "s%d[l] = f32_max(s%d[l], v%d);", i, i, v->a);
            else if (ends_here(o, i, pass))
                line(o, "s%d[l] = s%d[l] + v%d;", i, i, v->a);
        } else if (v->kop == KOP_STORE) {
            if (v->level == LEVEL_ELEM && s->depth[i] == pass) store(o, i);
        } else if (stage_needs(s, pass, i)) {
            if (!stage_computes(s, pass, i)) {
                fetch(o, i);
                continue;
            }
            value(o, i);
            if (s->kept[i] == pass) line(o, "b%d[%s] = v%d;", i, o->column, i);
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
        if (!tail) line(o, "for (int64_t c = 0; c < %lld; c += %d) {", whole, LANES);
        line(o, "#pragma omp simd");
        line(o, "for (int l = 0; l < %lld; l++) {", tail ? cols - whole : LANES);
        if (tail)
            line(o, "const int64_t j = %lld + l;", whole);
        else
            line(o, "const int64_t j = c + l;");
        column_body(o, pass);
        close_brace(o);
        if (!tail) close_brace(o);
    }
}

static void plain_loop(Out *o, int pass, Half half) {
    const long long cols = (long long)o->k->cols;
    o->column = "j";
    o->half = half;
    line(o, "#pragma omp simd");
    line(o, "for (int64_t j = %lld; j < %lld; j++) {", half == HALF_SECOND ? cols / 2 : 0,
         half == HALF_FIRST ? cols / 2 : cols);
    column_body(o, pass);
    close_brace(o);
}

static bool loads_half(const Out *o, int pass) {
    for (int i = 0; i < o->k->nval; i++)
        if (o->k->val[i].kop == KOP_LOAD && o->k->val[i].half && stage_computes(o->s, pass, i))
            return true;
    return false;
}

static bool has_columns(const Out *o, int pass) {
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (ends_here(o, i, pass)) return true;
        if (v->kop == KOP_STORE && v->level == LEVEL_ELEM && o->s->depth[i] == pass) return true;
    }
    return false;
}

static void column_pass(Out *o, int pass) {
    if (!has_columns(o, pass)) return;
    if (stage_reduces(o->s, pass)) {
        for (int i = 0; i < o->k->nval; i++)
            if (ends_here(o, i, pass)) {
                line(o, "float s%d[%d];", i, LANES);
                line(o, "for (int l = 0; l < %d; l++) s%d[l] = %s;", LANES, i,
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
            line(o, "const float v%d = %s(s%d);", i, fold_name(v), i);
        else
            value(o, i);
    }
}

static void row_pointers(Out *o) {
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (is_memory(v) && (v->level == LEVEL_ROW || v->level == LEVEL_ELEM)) pointer(o, i);
    }
}

static int last_pass(const Out *o) {
    int last = o->s->npass - 1;
    for (int i = 0; i < o->k->nval; i++)
        if (o->s->depth[i] > last) last = o->s->depth[i];
    return last;
}

static void rows_loop(Out *o) {
    const long long cols = (long long)o->k->cols;
    line(o, "#pragma omp parallel for schedule(static) if (n[0] * %lld >= %d)", cols, PARALLEL_MIN);
    line(o, "for (int64_t row = 0; row < n[0]; row++) {");
    o->row = "row";
    row_pointers(o);
    for (int i = 0; i < o->k->nval; i++)
        if (o->s->kept[i] >= 0) line(o, "float b%d[%lld];", i, cols);
    for (int pass = 0; pass <= last_pass(o); pass++) {
        row_values(o, pass);
        if (pass < o->s->npass) column_pass(o, pass);
    }
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        const bool once = v->level == LEVEL_SCALAR && o->s->level[v->a] != LEVEL_SCALAR;
        if (v->kop == KOP_STORE && (v->level == LEVEL_ROW || once)) store(o, i);
    }
    close_brace(o);
}

/* Every element at its own number, or one column: then rows are elements. */
static void flat_loop(Out *o) {
    o->row = o->column = "j";
    line(o, "const int64_t count = n[0] * %lld;", (long long)o->k->cols);
    line(o, "#pragma omp parallel for simd schedule(simd : static) if (parallel : count >= %d)",
         PARALLEL_MIN);
    line(o, "for (int64_t j = 0; j < count; j++) {");
    row_pointers(o);
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop == KOP_STORE ? v->level != LEVEL_SCALAR : o->s->level[i] != LEVEL_SCALAR) {
            if (v->kop == KOP_STORE)
                store(o, i);
            else
                value(o, i);
        }
    }
    close_brace(o);
}

/* ---- sums over rows ------------------------------------------------------------------------------------- */

static int sum_value(const Kern *k) {
    for (int i = 0; i < k->nval; i++)
        if (kval_reduction(&k->val[i])) return i;
    return -1;
}

/* Sums of up to `batch` blocks of 64 rows, each block by one thread. */
static void sum_blocks(Out *o, int sum) {
    const long long cols = (long long)o->k->cols;
    line(o, "#pragma omp parallel for schedule(static) if (blocks * %lld >= %d)", cols * SUM_BLOCK,
         PARALLEL_MIN);
    line(o, "for (int64_t b = 0; b < blocks; b++) {");
    line(o, "float *const s = part + b * %lld;", cols);
    line(o, "for (int64_t j = 0; j < %lld; j++) s[j] = 0.0f;", cols);
    line(o, "const int64_t begin = (first + b) * %d;", SUM_BLOCK);
    line(o, "const int64_t end = begin + %d < n[0] ? begin + %d : n[0];", SUM_BLOCK, SUM_BLOCK);
    line(o, "for (int64_t row = begin; row < end; row++) {");
    o->row = "row";
    row_pointers(o);
    row_values(o, 0);
    line(o, "#pragma omp simd");
    line(o, "for (int64_t j = 0; j < %lld; j++) {", cols);
    o->column = "j";
    o->half = HALF_ANY;
    for (int i = 0; i < sum; i++)
        if (stage_needs(o->s, 0, i)) value(o, i);
    line(o, "s[j] = s[j] + v%d;", o->k->val[sum].a);
    close_brace(o);
    close_brace(o);
    close_brace(o);
}

/* What is made of the sum of a column. */
static void sum_results(Out *o, int sum) {
    line(o, "for (int64_t j = 0; j < %lld; j++) {", (long long)o->k->cols);
    line(o, "const float v%d = total[j];", sum);
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (v->kop == KOP_STORE)
            store(o, i);
        else if (i != sum && kval_per_column(o->s, i) && stage_needs(o->s, 1, i))
            value(o, i);
    }
    close_brace(o);
}

static void sum_rows(Out *o) {
    const long long cols = (long long)o->k->cols;
    const long long batch = cols * SUM_BLOCK < 65536 ? 65536 / cols : SUM_BLOCK;
    const int sum = sum_value(o->k);
    line(o, "static float part[%lld];", batch * cols);
    line(o, "float total[%lld];", cols);
    line(o, "for (int64_t j = 0; j < %lld; j++) total[j] = 0.0f;", cols);
    line(o, "const int64_t every = (n[0] + %d) / %d;", SUM_BLOCK - 1, SUM_BLOCK);
    line(o, "for (int64_t first = 0; first < every; first += %lld) {", batch);
    line(o, "const int64_t blocks = every - first < %lld ? every - first : %lld;", batch, batch);
    sum_blocks(o, sum);
    line(o, "for (int64_t b = 0; b < blocks; b++) {");
    line(o, "#pragma omp simd");
    line(o, "for (int64_t j = 0; j < %lld; j++) total[j] += part[b * %lld + j];", cols, cols);
    close_brace(o);
    close_brace(o);
    sum_results(o, sum);
}

/* ---- the whole ------------------------------------------------------------------------------------------- */

/* Values and pointers that are the same for every row. */
static void scalars(Out *o) {
    o->row = o->column = "0";
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (is_memory(v) && (v->level == LEVEL_SCALAR || v->level == LEVEL_COL)) pointer(o, i);
        if (v->kop != KOP_STORE && o->s->level[i] == LEVEL_SCALAR) value(o, i);
    }
}

void emit_kern_c(const Kern *k, const char *symbol, Text *out) {
    Stages *s = stages_new(k);
    Out o = {.s = s, .k = k, .text = out, .symbol = symbol};
    line(&o, "void %s(void *const *p, const int64_t *n) {", symbol);
    for (int i = 0; i < k->narg; i++) {
        const char *qualifier = k->arg[i].write ? "" : "const ";
        line(&o, "%s%s *const a%d = p[%d];", qualifier, storage_type(k->arg[i].dtype), i, i);
    }
    scalars(&o);
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
            store(&o, i);
    }
    close_brace(&o);
    stages_free(s);
}

const char *emit_prelude(const Target *target) {
    static const char *const cpu[] = {"kernels/cpu/vectors.h", "kernels/types.h",
                                      "kernels/math.h",        "kernels/random.h",
                                      "kernels/cpu/lanes.h",   "kernels/cpu/tiles.h"};
    static const char *const cuda[] = {"kernels/types.h", "kernels/math.h", "kernels/random.h",
                                       "kernels/cuda/lanes.cuh"};
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
