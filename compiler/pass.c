/* pass.c: the compiler is this table.
 *
 * Every row is run, verified, timed and, where asked, dumped; its name is the name of its file,
 * its switch in `graph`, its dump and its test.  Relies on every pass and on graph_verify.
 * Promises: looking never changes anything, and what a pass breaks is reported under its name.
 */
#include "kern.h"
#include "spec.h"

#include <stdlib.h>
#include <string.h>

/* name, file's function, whether it runs even when switched off, sentence */
#define PASSES(ROW)                                                                                \
    ROW(fold, fold, false, "constants and identities")                                             \
    ROW(cse, cse, false, "equal nodes become one")                                                 \
    ROW(slice, slice, false, "last layer after attention and the head only for scored rows")       \
    ROW(grad, grad, true, "backward and update nodes, along paths from what is trained")           \
    ROW(fold2, fold, false, "constants and identities, over both directions")                      \
    ROW(cse2, cse, false, "equal nodes become one, over both directions")                          \
    ROW(defer, defer, false, "the head's gradient in its forward sweep")                           \
    ROW(share, share, false, "policy and reference meet each weight together")                     \
    ROW(quant, quant, false, "dequantization becomes visible nodes")                               \
    ROW(remat, remat, false, "recompute instead of keep, by FLOPs per byte saved")                 \
    ROW(layout, layout, true, "strided views that a reader can't address become copies")           \
    ROW(gemm, gemm, true, "matmuls become library calls with layout, factor, bias, sum")           \
    ROW(fuse, fuse, true, "everything else becomes kernels")                                       \
    ROW(order, order, true, "one total order of groups that lowers the peak")                      \
    ROW(prefetch, prefetch, false, "dequantizations run beside the product before (CUDA)")

const Pass pass_table[] = {
#define ROW(name, function, needed, sentence) {#name, pass_##function, sentence, needed, false},
    PASSES(ROW)
#undef ROW
        {0}};

const OrderPair order_pairs[] = {
    {"fold", "cse", "identities hide equal values from each other"},
    {"cse", "slice", "policy and reference must be one where they are equal before rows part"},
    {"slice", "grad", "the backward of sliced rows then follows by itself"},
    {"cse", "grad", "what policy and reference share below the first adapter has one backward"},
    {"grad", "fold2", "vjp rules write plain products and sums, zeros and ones among them"},
    {"fold2", "cse2", "as before: identities hide equal values"},
    {"cse2", "defer", "the backward finds its forward by having the same operands"},
    {"defer", "share", "the head moves with what is left of it"},
    {"share", "quant", "readers that stand side by side get one dequantization"},
    {"defer", "quant", "afterwards the two would read dequantizations of their own"},
    {"defer", "remat", "the gradient left behind is a value to keep or not"},
    {"cse2", "quant", "each use of a quantized weight gets its own dequantization, and keeps it"},
    {"quant", "remat", "a dequantized weight is never kept for the backward"},
    {"fold2", "layout", "a copy is an identity to fold"},
    {"remat", "layout", "a clone may read a view"},
    {"layout", "gemm", "groups hold node ids, so the graph must be final; products read places"},
    {"gemm", "fuse", "what a library call does on the way must not become a kernel"},
    {"fuse", "order", "groups are what is ordered"},
    {"order", "prefetch", "what runs beside what follows from the final order"},
    {0}};

void unit_refuse(Unit *u, const char *pass, NodeId id, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const char *why = arena_vprintf(u->arena, format, args);
    va_end(args);
    const char *line =
        arena_printf(u->arena, "%s: %%%d %s: %s", pass, id, op_info[node(u->g, id)->op].name, why);
    PUSH(u->arena, u->refused, u->nrefused, u->caprefused, line);
}

/* `graph.NAME = off`, without the number of a row that stands in the table twice. */
static bool switched_off(const Unit *u, const Pass *pass) {
    if (!u->spec || !strcmp(pass->name, "grad")) return false;
    size_t n = strcspn(pass->name, "23456789");
    return !spec_on(u->spec, intern_printf("graph.%.*s", (int)n, pass->name));
}

/* ---- dumps ---------------------------------------------------------------------------------- */

static void print_ids(const char *what, const NodeId *id, int n, Text *out) {
    if (n) text_add(out, " %s", what);
    for (int i = 0; i < n; i++) text_add(out, " %%%d", id[i]);
}

static void print_gemm(const Group *group, Text *out) {
    const Gemm *g = &group->gemm;
    Arena *arena = arena_new();
    text_add(out, "  %%%d%s %%%d%s -> %%%d %s  %s x %s x %s", group->a, g->ta ? "^T" : "", group->b,
             g->tb ? "^T" : "", group->c, dtype_name(g->c), dim_print(arena, group->m),
             dim_print(arena, group->n), dim_print(arena, group->k));
    if (g->alpha != 1) text_add(out, " alpha=%g", (double)g->alpha);
    if (g->bias) text_add(out, " bias=%%%d", group->bias);
    if (g->beta != 0) text_add(out, " beta=%g", (double)g->beta);
    if (group->inplace) text_add(out, " in place of %%%d", group->inplace);
    text_add(out, "\n");
    arena_free(arena);
}

void unit_print_groups(const Unit *u, Text *out) {
    static const char *const kinds[] = {"kern", "gemm", "custom"};
    for (int i = 0; i < u->ngroups; i++) {
        const Group *group = &u->groups[i];
        text_add(out, "group %d %s %s", i, phase_names[group->phase], kinds[group->kind]);
        print_ids("nodes", group->nodes, group->nnodes, out);
        print_ids("in", group->ins, group->nins, out);
        print_ids("out", group->outs, group->nouts, out);
        text_add(out, "\n");
        if (group->kind == GROUP_GEMM) print_gemm(group, out);
        if (group->kern) kern_print(group->kern, out);
    }
}

/* To DIR/UNIT.NN-PASS.ir, or standard output. */
static bool dump_after(const Unit *u, int row, const DumpOptions *dump) {
    Text text = {0};
    graph_print(u->g, &text);
    unit_print_groups(u, &text);
    const char *name = pass_table[row].name;
    bool ok = true;
    if (dump->dir) {
        Err err = {0};
        const char *file =
            arena_printf(u->arena, "%s.%02d-%s.ir", unit_names[u->kind], row + 1, name);
        ok = dir_make(dump->dir, &err) &&
             file_write(path_join(u->arena, dump->dir, file), text.data, text.len, &err);
        if (!ok) diag_file(u->diags, (Loc){0}, "%s", err.text);
    } else {
        printf("# %s after %s\n%s", unit_names[u->kind], name, text.data);
    }
    text_free(&text);
    return ok;
}

/* ---- the runner ----------------------------------------------------------------------------- */

static bool run_row(Unit *u, int row, const DumpOptions *dump) {
    Pass pass = pass_table[row];
    pass.off = switched_off(u, &pass);
    double begin = now_seconds();
    int changes = pass.off && !pass.needed ? 0 : pass.run(&pass, u);
    if (changes < 0) {
        if (!diags_errors(u->diags))
            diag(u->diags, DIAG_ERROR, (Loc){0}, "bug: pass %s failed", pass.name);
        return false;
    }
    const char *broken = graph_verify(u->g, u->arena);
    if (broken) {
        diag(u->diags, DIAG_ERROR, (Loc){0}, "bug: after pass %s: %s", pass.name, broken);
        return false;
    }
    if (dump && dump->time)
        fprintf(stderr, "pass %-6s %8.2f ms  %6d changes  %6d nodes  %5d groups\n", pass.name,
                1e3 * (now_seconds() - begin), changes, u->g->n - 1, u->ngroups);
    if (dump && dump->watch) dump->watch(dump->watcher, u, &pass_table[row]);
    if (dump && dump->after && (!strcmp(dump->after, "all") || !strcmp(dump->after, pass.name)))
        return dump_after(u, row, dump);
    return true;
}

bool unit_run_only(Unit *u, const char *name) {
    for (int row = 0; pass_table[row].name; row++)
        if (!strcmp(pass_table[row].name, name)) return run_row(u, row, NULL);
    diag(u->diags, DIAG_ERROR, (Loc){0}, "there is no pass '%s': `dpoc passes` lists them", name);
    return false;
}

bool unit_run_passes(Unit *u, const DumpOptions *dump) {
    for (int row = 0; pass_table[row].name; row++)
        if (!run_row(u, row, dump)) return false;
    return true;
}

void passes_print(FILE *out) {
    for (int i = 0; pass_table[i].name; i++)
        fprintf(out, "%2d  %-6s  %s%s\n", i + 1, pass_table[i].name, pass_table[i].sentence,
                pass_table[i].needed ? "" : "  (can be switched off)");
    fprintf(out, "\n");
    for (int i = 0; order_pairs[i].before; i++)
        fprintf(out, "%-6s before %-6s  %s\n", order_pairs[i].before, order_pairs[i].after,
                order_pairs[i].because);
}
