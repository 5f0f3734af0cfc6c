/* kern.c: a Kern as text, for dumps and tests.
 *
 * One line a value: `v3 = add v1 v2 : elem`.  Promises: two kernels that compute the same print
 * the same, except for the names of arguments, which are left out.
 */
#include "kern.h"

static const char *const level_names[] = {"scalar", "col", "row", "elem"};

static void print_address(const KVal *v, Text *out) {
    text_add(out, "p%d", v->arg);
    if (v->index >= 0) text_add(out, "[p%d[row]]", v->index);
    if (v->rowdiv != 1) text_add(out, " row/%lld", (long long)v->rowdiv);
    if (v->level == LEVEL_ROW || v->level == LEVEL_ELEM)
        text_add(out, " ld=%lld", (long long)v->ld);
    if (v->half) text_add(out, " half");
    if (v->accumulate) text_add(out, " +=");
}

static void print_value(const Kern *k, int i, Text *out) {
    const KVal *v = &k->val[i];
    const int in[] = {v->a, v->b, v->c};
    text_add(out, "  v%d = ", i);
    switch (v->kop) {
    case KOP_LOAD:
        text_add(out, "load %s ", dtype_name(v->dtype));
        print_address(v, out);
        break;
    case KOP_STORE:
        text_add(out, "store %s ", dtype_name(v->dtype));
        print_address(v, out);
        text_add(out, " v%d", v->a);
        break;
    case KOP_CONST:
        text_add(out, "const %.9g", v->num);
        break;
    case KOP_OP:
        text_add(out, "%s", op_info[v->op].name);
        for (int j = 0; j < 3; j++)
            if (in[j] >= 0) text_add(out, " v%d", in[j]);
        if (v->op == OP_cast) text_add(out, " to %s", dtype_name(v->dtype));
        if (v->op == OP_uniform)
            text_add(out, " stream=%lld cols=%lld", (long long)v->i0, (long long)v->i1);
    }
    text_add(out, " : %s\n", level_names[v->level]);
}

void kern_print(const Kern *k, Text *out) {
    Arena *arena = arena_new();
    text_add(out, "kern %s %s x %lld\n", k->shape == KERN_ROWS ? "rows" : "sum_rows",
             dim_print(arena, k->rows), (long long)k->cols);
    for (int i = 0; i < k->narg; i++)
        text_add(out, "  p%d %s%s\n", i, dtype_name(k->arg[i].dtype),
                 k->arg[i].write ? " write" : "");
    for (int i = 0; i < k->nval; i++) print_value(k, i, out);
    arena_free(arena);
}
