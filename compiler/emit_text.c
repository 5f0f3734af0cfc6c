/* emit_text.c: the lines of a kernel that C and CUDA share; see emit_text.h. */
#include "emit_text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static _Noreturn void bug(const char *what, const char *name) {
    fprintf(stderr, "dpoc: bug: emit: %s %s\n", what, name);
    exit(EXIT_BUG);
}

void out_line(Out *o, const char *format, ...) {
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

void out_close(Out *o) {
    o->indent--;
    out_line(o, "}");
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

const char *storage_type(DType t) {
    static const char *const names[NDTYPE] = {
        [DT_f32] = "float", [DT_bf16] = "bf16_t", [DT_i32] = "int32_t", [DT_u8] = "uint8_t"};
    if (!names[t]) bug("no kernel reads or writes", dtype_name(t));
    return names[t];
}

static void from_storage(DType t, const char *element, Text *out) {
    text_add(out, t == DT_bf16 ? "f32_from_bf16(%s)" : t == DT_f32 ? "%s" : "(float)%s", element);
}

static void to_storage(DType t, DType from, const char *value, Text *out) {
    if (t == DT_bf16)
        text_add(out, from == DT_bf16 ? "bf16_exact(%s)" : "bf16_from_f32(%s)", value);
    else
        text_add(out, t == DT_f32 ? "%s" : "(%s)%s", t == DT_f32 ? value : storage_type(t), value);
}

static void number(double x, Text *out) {
    const double y = (double)(float)x;
    if (isnan(y))
        text_add(out, "F32_NAN");
    else if (isinf(y))
        text_add(out, y > 0 ? "F32_INF" : "(-F32_INF)");
    else if (y == floor(y) && fabs(y) < 1e6)
        text_add(out, y < 0 || signbit(y) ? "(%.1ff)" : "%.1ff", y);
    else
        text_add(out, y < 0 ? "(%.8ef)" : "%.8ef", y);
}

/* The number of the random column: kernels over heads see a row of `i1` columns in pieces. */
static void uniform_text(const Out *o, const KVal *v, Text *out) {
    const int64_t pieces = v->i1 > o->k->cols ? v->i1 / o->k->cols : 1;
    text_add(out, "random_uniform(r%d[0], r%d[1], r%d[0], r%d[1], %lld, ", v->a, v->a, v->b, v->b,
             (long long)v->i0);
    if (pieces > 1)
        text_add(out, "row %% %lld * %lld + %s)", (long long)pieces, (long long)o->k->cols,
                 o->column);
    else
        text_add(out, "%s)", o->column);
}

static void expression(const Out *o, int i, Text *out) {
    static const char *const format[NOP] = {
        [OP_neg] = "-v%d",
        [OP_abs] = "f32_abs(v%d)",
        [OP_exp] = "f32_exp(v%d)",
        [OP_log] = "f32_log(v%d)",
        [OP_sqrt] = "f32_sqrt(v%d)",
        [OP_rsqrt] = "f32_rsqrt(v%d)",
        [OP_sin] = "f32_sin(v%d)",
        [OP_cos] = "f32_cos(v%d)",
        [OP_tanh] = "f32_tanh(v%d)",
        [OP_erf] = "f32_erf(v%d)",
        [OP_sigmoid] = "f32_sigmoid(v%d)",
        [OP_log_sigmoid] = "f32_log_sigmoid(v%d)",
        [OP_add] = "v%d + v%d",
        [OP_sub] = "v%d - v%d",
        [OP_mul] = "v%d * v%d",
        [OP_div] = "v%d / v%d",
        [OP_max] = "f32_max(v%d, v%d)",
        [OP_min] = "f32_min(v%d, v%d)",
        [OP_pow] = "f32_pow(v%d, v%d)",
        [OP_lt] = "v%d < v%d ? 1.0f : 0.0f",
        [OP_le] = "v%d <= v%d ? 1.0f : 0.0f",
        [OP_eq] = "v%d == v%d ? 1.0f : 0.0f",
        [OP_select] = "v%d != 0.0f ? v%d : v%d",
        [OP_bcast] = "v%d",
        [OP_stop] = "v%d",
    };
    const KVal *v = &o->k->val[i];
    if (v->kop == KOP_CONST)
        number(v->num, out);
    else if (v->op == OP_cast)
        text_add(out, v->dtype == DT_bf16 ? "f32_round_bf16(v%d)" : "v%d", v->a);
    else if (v->op == OP_uniform)
        uniform_text(o, v, out);
    else if (v->op == OP_dynamic_value || v->op == OP_dynamic_code)
        text_add(out, "%s(v%d, %lld)", op_info[v->op].name, v->a, (long long)v->i0);
    else if (!format[v->op])
        bug("no expression for", op_info[v->op].name);
    else
        text_add(out, format[v->op], v->a, v->b, v->c);
}

/* ---- loads and stores ------------------------------------------------------------------------ */

bool kval_memory(const KVal *v) {
    return v->kop == KOP_LOAD || v->kop == KOP_STORE;
}

bool kval_full(const KVal *v) {
    return kval_memory(v) && (v->level == LEVEL_ELEM || v->level == LEVEL_COL);
}

/* "(int64_t)row * 64", "(int64_t)(row / 4) * 64", "(i3 < 0 ? 0 : i3) * 64": where the row of a load
 * or store begins. */
static void row_offset(const Out *o, int i, char *buf, size_t size) {
    const KVal *v = &o->k->val[i];
    if (v->index >= 0)
        snprintf(buf, size, "(i%d < 0 ? 0 : i%d) * (int64_t)%lld", i, i, (long long)v->ld);
    else if (v->rowdiv > 1)
        snprintf(buf, size, "(int64_t)(%s / %lld) * %lld", o->row, (long long)v->rowdiv,
                 (long long)v->ld);
    else
        snprintf(buf, size, "(int64_t)%s * %lld", o->row, (long long)v->ld);
}

/* The pointer r<i> of a load or store: to its row, or to its only row. */
void out_pointer(Out *o, int i) {
    const KVal *v = &o->k->val[i];
    const char *qualifier = o->k->arg[v->arg].write ? "" : "const ";
    const bool by_row = v->level == LEVEL_ROW || v->level == LEVEL_ELEM;
    char offset[96] = "0";
    if (by_row && v->index >= 0) {
        char row[64];
        snprintf(row, sizeof row, v->rowdiv > 1 ? "%s / %lld" : "%s", o->row, (long long)v->rowdiv);
        out_line(o, "const int64_t i%d = a%d[%s];", i, v->index, row);
    }
    if (by_row && !(o->flat && o->k->cols > 1)) row_offset(o, i, offset, sizeof offset);
    out_line(o, "%s%s *const r%d = a%d + %s;", qualifier, storage_type(v->dtype), i, v->arg,
             offset);
}

/* The element of load i in the current column. */
static void element(const Out *o, int i, char *buf, size_t size) {
    const KVal *v = &o->k->val[i];
    const char *c = o->flat && o->k->cols == 1 ? "0" : o->column;
    const long long h = (long long)o->k->cols / 2;
    if (o->pack && kval_full(v))
        snprintf(buf, size, "x%d%s.x[e]", i, v->kop == KOP_LOAD ? o->pack : "");
    else if (v->level == LEVEL_SCALAR || v->level == LEVEL_ROW)
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
    from_storage(v->dtype, at, &x);
    if (v->half && o->half == HALF_ANY)
        text_add(&x, " * (%s < %lld ? -1.0f : 1.0f)", o->pack ? "j" : o->column,
                 (long long)o->k->cols / 2);
    const char *sign = v->half && o->half == HALF_FIRST ? "-" : "";
    if (v->index >= 0)
        out_line(o, "const float v%d = i%d < 0 ? 0.0f : %s%s;", i, i, sign, x.data);
    else
        out_line(o, "const float v%d = %s%s;", i, sign, x.data);
    text_free(&x);
}

void out_store(Out *o, int i) {
    const KVal *v = &o->k->val[i];
    char at[128];
    Text sum = {0}, y = {0};
    element(o, i, at, sizeof at);
    if (v->accumulate) {
        from_storage(v->dtype, at, &sum);
        text_add(&sum, " + ");
    }
    text_add(&sum, "v%d", v->a);
    to_storage(v->dtype, v->accumulate ? DT_f32 : o->k->val[v->a].dtype, sum.data, &y);
    out_line(o, "%s = %s;", at, y.data);
    text_free(&sum);
    text_free(&y);
}

static void op(Out *o, int i) {
    Text x = {0};
    expression(o, i, &x);
    out_line(o, "const float v%d = %s;", i, x.data);
    text_free(&x);
}

void out_value(Out *o, int i) {
    if (o->k->val[i].kop == KOP_LOAD)
        load(o, i);
    else
        op(o, i);
}

void out_fetch(Out *o, int i) {
    if (o->pack)
        out_line(o, "const float v%d = x%d%s.x[e];", i, i, o->pack);
    else
        out_line(o, "const float v%d = b%d[%s];", i, i, o->column);
}

void out_row_pointers(Out *o) {
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (kval_memory(v) && (v->level == LEVEL_ROW || v->level == LEVEL_ELEM)) out_pointer(o, i);
    }
}

void out_scalars(Out *o) {
    o->row = o->column = "0";
    for (int i = 0; i < o->k->nval; i++) {
        const KVal *v = &o->k->val[i];
        if (kval_memory(v) && (v->level == LEVEL_SCALAR || v->level == LEVEL_COL))
            out_pointer(o, i);
        if (v->kop != KOP_STORE && o->s->level[i] == LEVEL_SCALAR) out_value(o, i);
    }
}
