/* stage.c: passes of a Kern over its columns; see stage.h. */
#include "stage.h"

/* Recomputing costs a few cheap operations at most; a kept value costs a store and a load. */
enum { RECOMPUTE_COST = 8, KEEP_COLUMNS = 32768 };

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

static bool overwrites(const Kern *k, const KVal *store) {
    for (int i = 0; i < k->nval; i++)
        if (k->val[i].kop == KOP_LOAD && k->val[i].arg == store->arg) return true;
    return false;
}

/* A reduction's operand is folded in the pass before the reduction's own. */
static void set_ends(Stages *s) {
    s->npass = 1;
    for (int v = 0; v < s->k->nval; v++) {
        const KVal *x = &s->k->val[v];
        const bool columns = x->level == LEVEL_ELEM || x->level == LEVEL_COL;
        const bool stored = x->kop == KOP_STORE && (columns || s->k->shape == KERN_SUM_ROWS);
        s->end[v] = kval_reduction(x) ? s->depth[v] - 1 : stored ? s->depth[v] : -1;
        if (s->end[v] >= s->npass) s->npass = s->end[v] + 1;
    }
    for (int v = 0; v < s->k->nval; v++) {
        const KVal *x = &s->k->val[v];
        if (x->kop == KOP_STORE && s->end[v] >= 0 && overwrites(s->k, x)) s->end[v] = s->npass - 1;
    }
}

static void set_need(Stages *s) {
    const int n = s->k->nval;
    for (int p = 0; p < s->npass; p++) {
        bool *need = s->need + (size_t)p * (size_t)n;
        for (int v = 0; v < n; v++) need[v] = s->kept[v] == p;
        for (int v = n - 1; v >= 0; v--) {
            const bool result = s->end[v] == p;
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
    case OP_dynamic_value:
        return 20;
    case OP_dynamic_code:
        return 200;
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

static int recompute_cost(const Stages *s, int v) {
    const KVal *x = &s->k->val[v];
    if (!kval_per_column(s, v)) return 0;
    int cost = op_cost(x);
    for (int o = 0; o < 3; o++)
        if (operand(x, o) >= 0) cost += recompute_cost(s, operand(x, o));
    return cost > 1000 ? 1000 : cost;
}

/* Passes that use v directly for something that an earlier pass has not computed too. */
static bool used_anew(const Stages *s, int v, int first, int p) {
    const int n = s->k->nval;
    for (int u = v + 1; u < n; u++) {
        const KVal *x = &s->k->val[u];
        if (x->a != v && x->b != v && x->c != v) continue;
        if (s->end[u] == p) return true;
        if (s->need[(size_t)p * (size_t)n + (size_t)u] &&
            !s->need[(size_t)first * (size_t)n + (size_t)u])
            return true;
    }
    return false;
}

/* Keeps what is shared by passes, dear to compute and not itself part of something kept: row
 * buffers. */
static void set_kept(Stages *s) {
    const int n = s->k->nval;
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

Stages *stages_new(const Kern *k, bool keep) {
    Arena *arena = arena_new();
    Stages *s = NEW(arena, Stages);
    const size_t n = (size_t)k->nval;
    *s = (Stages){.k = k, .arena = arena, .npass = 1};
    s->level = NEW_ARRAY(arena, KLevel, n);
    s->depth = NEW_ARRAY(arena, int, n);
    s->kept = NEW_ARRAY(arena, int, n);
    s->end = NEW_ARRAY(arena, int, n);
    set_levels(s);
    set_ends(s);
    s->need = NEW_ARRAY(arena, bool, n *(size_t)s->npass);
    for (int v = 0; v < k->nval; v++) {
        s->kept[v] = -1;
        s->folds |= kval_reduction(&k->val[v]) && k->shape == KERN_ROWS;
    }
    set_need(s);
    if (keep && k->cols <= KEEP_COLUMNS) set_kept(s);
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
        if (kval_reduction(&s->k->val[v]) && s->end[v] == p) return true;
    return false;
}

bool stage_has_columns(const Stages *s, int p) {
    for (int v = 0; v < s->k->nval; v++)
        if (s->end[v] == p) return true;
    return false;
}

int stage_last(const Stages *s) {
    int last = s->npass - 1;
    for (int v = 0; v < s->k->nval; v++)
        if (s->depth[v] > last) last = s->depth[v];
    return last;
}
