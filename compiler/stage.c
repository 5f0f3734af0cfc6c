/* stage.c: passes of a Kern and the text of its arithmetic; see stage.h. */
#include "stage.h"

#include <math.h>
#include <stdlib.h>

/* Recomputing costs a few cheap operations at most; a kept value costs a store and a load. */
enum { RECOMPUTE_COST = 8, FORCED = 1 << 20 };

static _Noreturn void bug(const char *what, const char *name) {
    fprintf(stderr, "dpoc: bug: emit: %s %s\n", what, name);
    exit(EXIT_BUG);
}

bool kval_reduction(const KVal *v) {
    return v->kop == KOP_OP && op_info[v->op].kind == KIND_REDUCE;
}

bool kval_per_column(const Stages *s, int v) {
    return s->level[v] == LEVEL_ELEM || s->level[v] == LEVEL_COL;
}

static int operand(const KVal *v, int i) {
    return i == 0 ? v->a : i == 1 ? v->b : v->c;
}

static void set_levels(Stages *s) {
    for (int i = 0; i < s->k->nval; i++) {
        const KVal *v = &s->k->val[i];
        s->level[i] = v->kop == KOP_CONST ? LEVEL_SCALAR : v->level;
        if (v->kop == KOP_OP) s->level[i] = LEVEL_SCALAR;
        for (int o = 0; o < 3; o++) {
            const int a = operand(v, o);
            if (a < 0) continue;
            const KLevel l = s->level[a], now = s->level[i];
            const bool both =
                (l == LEVEL_ROW && now == LEVEL_COL) || (l == LEVEL_COL && now == LEVEL_ROW);
            if (v->kop == KOP_OP) s->level[i] = both ? LEVEL_ELEM : l > now ? l : now;
            if (s->depth[a] > s->depth[i]) s->depth[i] = s->depth[a];
        }
        if (kval_reduction(v)) {
            s->level[i] = v->op == OP_sum_rows ? LEVEL_COL : LEVEL_ROW;
            s->depth[i]++;
        }
        if (v->kop == KOP_OP && v->op == OP_uniform) s->level[i] = LEVEL_ELEM;
    }
}

/* The pass whose column loop value v belongs to, if it is a result: a reduction's operand is folded in
 * the pass before the reduction's own. */
static int result_pass(const Stages *s, int v) {
    const KVal *x = &s->k->val[v];
    if (kval_reduction(x)) return s->depth[v] - 1;
    const bool columns = x->level == LEVEL_ELEM || x->level == LEVEL_COL;
    const bool stored = x->kop == KOP_STORE && (columns || s->k->shape == KERN_SUM_ROWS);
    return stored ? s->depth[v] : -1;
}

static void set_need(Stages *s) {
    const int n = s->k->nval;
    for (int p = 0; p < s->npass; p++) {
        bool *need = s->need + (size_t)p * (size_t)n;
        for (int v = 0; v < n; v++) need[v] = s->kept[v] == p;
        for (int v = n - 1; v >= 0; v--) {
            const bool result = result_pass(s, v) == p;
            const bool buffered = s->kept[v] >= 0 && s->kept[v] < p;
            if (!result && (!need[v] || buffered)) continue;
            if (kval_reduction(&s->k->val[v]) && !result) continue;
            for (int o = 0; o < 3; o++) {
                const int a = operand(&s->k->val[v], o);
                if (a >= 0 && kval_per_column(s, a)) need[a] = true;
            }
        }
    }
}

static int op_cost(const KVal *v) {
    if (v->kop == KOP_LOAD) return v->dtype == DT_bf16 ? 2 : 1;
    if (v->kop != KOP_OP) return 0;
    switch (v->op) {
    case OP_div:
    case OP_sqrt:
        return 8;
    case OP_uniform:
        return 60;
    case OP_rsqrt:
    case OP_exp:
    case OP_log:
    case OP_sin:
    case OP_cos:
    case OP_tanh:
    case OP_erf:
    case OP_sigmoid:
    case OP_log_sigmoid:
    case OP_pow:
        return 20;
    case OP_cast:
        return v->dtype == DT_bf16 ? 4 : 1;
    default:
        return 1;
    }
}

/* A value read again after its storage was overwritten in an earlier pass would not be the same. */
static bool overwritten(const Kern *k, const KVal *load) {
    for (int i = 0; i < k->nval; i++)
        if (k->val[i].kop == KOP_STORE && k->arg[k->val[i].arg].node == k->arg[load->arg].node)
            return true;
    return false;
}

static int recompute_cost(const Stages *s, int v) {
    const KVal *x = &s->k->val[v];
    if (!kval_per_column(s, v)) return 0;
    if (x->kop == KOP_LOAD && overwritten(s->k, x)) return FORCED;
    int cost = op_cost(x);
    for (int o = 0; o < 3; o++)
        if (operand(x, o) >= 0) cost += recompute_cost(s, operand(x, o));
    return cost > FORCED ? FORCED : cost;
}

/* Passes that use v directly for something that an earlier pass has not computed too. */
static bool used_anew(const Stages *s, int v, int first, int p) {
    const int n = s->k->nval;
    for (int u = v + 1; u < n; u++) {
        const KVal *x = &s->k->val[u];
        if (x->a != v && x->b != v && x->c != v) continue;
        if (result_pass(s, u) == p) return true;
        if (s->need[(size_t)p * (size_t)n + (size_t)u] &&
            !s->need[(size_t)first * (size_t)n + (size_t)u])
            return true;
    }
    return false;
}

static void set_kept(Stages *s) {
    const int n = s->k->nval;
    set_need(s);
    for (int v = 0; v < n; v++) {
        if (s->level[v] != LEVEL_ELEM || kval_reduction(&s->k->val[v])) continue;
        int first = -1;
        for (int p = 0; p < s->npass; p++) {
            if (!stage_needs(s, p, v)) continue;
            if (first < 0) first = p;
            if (p > first && used_anew(s, v, first, p) && recompute_cost(s, v) > RECOMPUTE_COST)
                s->kept[v] = first;
        }
    }
    set_need(s);
}

/* One loop over all elements will do: no reductions, and every element stands at its own number. */
static bool is_flat(const Stages *s) {
    const Kern *k = s->k;
    const bool one_row = dim_is_const(k->rows) && k->rows.c == 1;
    if (k->shape != KERN_ROWS) return false;
    for (int i = 0; i < k->nval; i++) {
        const KVal *v = &k->val[i];
        if (kval_reduction(v) || (v->kop == KOP_OP && v->op == OP_uniform)) return false;
        if (v->kop != KOP_LOAD && v->kop != KOP_STORE) continue;
        if (v->level == LEVEL_SCALAR || k->cols == 1) continue;
        const bool every = v->level == LEVEL_ELEM || (v->level == LEVEL_COL && one_row);
        const bool dense = v->ld == k->cols || one_row;
        if (!every || !dense || v->half || v->index >= 0 || v->rowdiv > 1) return false;
    }
    return true;
}

Stages *stages_new(const Kern *k) {
    Arena *arena = arena_new();
    Stages *s = NEW(arena, Stages);
    const size_t n = (size_t)k->nval;
    *s = (Stages){.k = k, .arena = arena, .npass = 1};
    s->level = NEW_ARRAY(arena, KLevel, n);
    s->depth = NEW_ARRAY(arena, int, n);
    s->kept = NEW_ARRAY(arena, int, n);
    set_levels(s);
    for (int v = 0; v < k->nval; v++) {
        s->kept[v] = -1;
        if (result_pass(s, v) >= s->npass) s->npass = result_pass(s, v) + 1;
    }
    s->need = NEW_ARRAY(arena, bool, n *(size_t)s->npass);
    set_kept(s);
    s->flat = is_flat(s);
    return s;
}

void stages_free(Stages *s) {
    arena_free(s->arena);
}

bool stage_needs(const Stages *s, int p, int v) {
    return s->need[(size_t)p * (size_t)s->k->nval + (size_t)v];
}

bool stage_computes(const Stages *s, int p, int v) {
    return stage_needs(s, p, v) && (s->kept[v] < 0 || s->kept[v] == p);
}

bool stage_reduces(const Stages *s, int p) {
    for (int v = 0; v < s->k->nval; v++)
        if (kval_reduction(&s->k->val[v]) && result_pass(s, v) == p) return true;
    return false;
}

/* ---- text ------------------------------------------------------------------------------------------- */

const char *storage_type(DType t) {
    static const char *const names[NDTYPE] = {
        [DT_f32] = "float", [DT_bf16] = "bf16_t", [DT_i32] = "int32_t", [DT_u8] = "uint8_t"};
    if (!names[t]) bug("no kernel reads or writes", dtype_name(t));
    return names[t];
}

void stage_from_storage(DType t, const char *element, Text *out) {
    text_add(out, t == DT_bf16 ? "f32_from_bf16(%s)" : t == DT_f32 ? "%s" : "(float)%s", element);
}

void stage_to_storage(DType t, DType from, const char *value, Text *out) {
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
static void uniform_text(const Stages *s, const KVal *v, const char *column, Text *out) {
    const int64_t pieces = v->i1 > s->k->cols ? v->i1 / s->k->cols : 1;
    text_add(out, "random_uniform(r%d[0], r%d[1], r%d[0], r%d[1], %lld, ", v->a, v->a, v->b, v->b,
             (long long)v->i0);
    if (pieces > 1)
        text_add(out, "row %% %lld * %lld + %s)", (long long)pieces, (long long)s->k->cols, column);
    else
        text_add(out, "%s)", column);
}

void stage_expression(const Stages *s, int i, const char *column, Text *out) {
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
    const KVal *v = &s->k->val[i];
    if (v->kop == KOP_CONST)
        number(v->num, out);
    else if (v->op == OP_cast)
        text_add(out, v->dtype == DT_bf16 ? "f32_round_bf16(v%d)" : "v%d", v->a);
    else if (v->op == OP_uniform)
        uniform_text(s, v, column, out);
    else if (!format[v->op])
        bug("no expression for", op_info[v->op].name);
    else
        text_add(out, format[v->op], v->a, v->b, v->c);
}
