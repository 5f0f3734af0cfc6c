/* print.c: a graph as text, one line a node:
 *
 *     %7 = matmul %3 %5 tb=1 : f32[T,64] micro "policy/model.layers.0.mlp" ; llama3.dpo:20:9
 *     root %12
 *
 * Attributes that are zero are left out, inst is written where it is not 0, every scope of a merged
 * node is listed; what follows `;` is for people.  Relies on the attrs column of ops.def.
 * Promises: read.c reads it back to a graph that prints the same.
 */
#include "dpoc.h"

#include <string.h>

static void print_string(const char *s, Text *out) {
    text_add(out, "\"");
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            text_add(out, "\\%c", *s);
        else if ((unsigned char)*s < ' ')
            text_add(out, "\\x%02x", (unsigned)(unsigned char)*s);
        else
            text_addn(out, s, 1);
    }
    text_add(out, "\"");
}

static void print_dim(const char *key, Dim d, Text *out) {
    Arena *arena = arena_new();
    if (!dim_equal(d, dim_const(0))) text_add(out, " %s=%s", key, dim_print(arena, d));
    arena_free(arena);
}

static void print_table(const char *key, const float *table, Text *out) {
    text_add(out, " %s=[", key);
    for (int i = 0; i < table_size(table); i++)
        text_add(out, "%s%.9g", i ? "," : "", (double)table[i]);
    text_add(out, "]");
}

static bool all_bits_zero(double x) {
    return !memcmp(&x, &(double){0}, sizeof x);
}

/* One attribute: slot says which member of Attr holds it. */
static void print_attr(const char *key, const char *slot, const Attr *a, Text *out) {
    int64_t i = !strcmp(slot, "i0") ? a->i0 : !strcmp(slot, "i1") ? a->i1 : a->i2;
    const char *name = !strcmp(slot, "name") ? a->name : a->name2;
    if (!strcmp(slot, "num")) {
        if (!all_bits_zero(a->num)) text_add(out, " %s=%.17g", key, a->num);
    } else if (!strcmp(slot, "dim")) {
        print_dim(key, a->dim, out);
    } else if (!strcmp(slot, "dim2")) {
        print_dim(key, a->dim2, out);
    } else if (!strcmp(slot, "table")) {
        if (a->table) print_table(key, a->table, out);
    } else if (slot[0] == 'n') {
        if (!name) return;
        text_add(out, " %s=", key);
        print_string(name, out);
    } else if (i) {
        text_add(out, " %s=%lld", key, (long long)i);
    }
}

static void print_attrs(const Node *n, Text *out) {
    const char *s = op_info[n->op].attrs;
    while (*s) {
        char key[16] = "", slot[16] = "";
        size_t k = strcspn(s, ":"), v = strcspn(s + k + 1, " ");
        memcpy(key, s, k);
        memcpy(slot, s + k + 1, v);
        print_attr(key, slot, &n->attr, out);
        s += k + 1 + v;
        s += strspn(s, " ");
    }
}

static void print_node(const Graph *g, NodeId id, Arena *arena, Text *out) {
    const Node *n = &g->node[id];
    text_add(out, "%%%d = %s", id, op_info[n->op].name);
    for (int k = 0; k < n->nin; k++) text_add(out, " %%%d", n->in[k]);
    print_attrs(n, out);
    text_add(out, " : %s %s", type_print(arena, n->type), phase_names[n->phase]);
    if (n->inst) text_add(out, " inst=%u", n->inst);
    for (const Origin *o = n->origin; o; o = o->next) {
        if (!o->scope) continue;
        text_add(out, " ");
        print_string(o->scope, out);
    }
    if (n->origin && n->origin->loc.file && g->diags)
        text_add(out, " ; %s", loc_print(arena, g->diags, n->origin->loc));
    text_add(out, "\n");
}

void graph_print(const Graph *g, Text *out) {
    Arena *arena = arena_new();
    for (NodeId id = 1; id < g->n; id++) print_node(g, id, arena, out);
    for (int i = 0; i < g->nroot; i++) text_add(out, "root %%%d\n", g->root[i]);
    arena_free(arena);
}
