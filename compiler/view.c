/* view.c: pictures: a unit's groups as a dot graph, a plan's memory as SVG (x = step, y = address).
 *
 * Relies on plan.c's Plan and the passes' Unit; changes neither.  Promises: self-contained output,
 * the same bytes for the same input.
 */
#include "../runtime/svg.h"
#include "dpoc.h"

#include <string.h>

/* ---- dot ------------------------------------------------------------------------------------- */

static void quoted(const char *text, FILE *out) {
    for (; text && *text; text++) {
        if (*text == '"' || *text == '\\') putc('\\', out);
        putc(*text, out);
    }
}

static void dot_group(const Unit *u, int i, Arena *arena, FILE *out) {
    static const char *const shapes[] = {"box", "box3d", "component"}; /* by GroupKind */
    const Group *group = &u->groups[i];
    fprintf(out, "  g%d [shape=%s label=\"", i, shapes[group->kind]);
    for (int k = 0; k < group->nnodes && k < 6; k++)
        fprintf(out, "%s%%%d %s", k ? "\\n" : "", group->nodes[k],
                op_info[node(u->g, group->nodes[k])->op].name);
    if (group->nnodes > 6) fprintf(out, "\\n.. %d nodes", group->nnodes);
    const Node *last = node(u->g, group->nodes[group->nnodes - 1]);
    fprintf(out, "\\n%s\" tooltip=\"", type_print(arena, last->type));
    quoted(origin_print(arena, u->diags, last->origin), out);
    fprintf(out, "\"];\n");
}

void view_dot(const Unit *u, FILE *out) {
    Arena *arena = arena_new();
    const Graph *g = u->g;
    int *owner = NEW_ARRAY(arena, int, g->n);
    for (int i = 0; i < g->n; i++) owner[i] = -1;
    fprintf(out, "digraph unit {\n  rankdir=TB; node [fontname=monospace fontsize=9];\n");
    for (Phase phase = PHASE_INIT; phase < NPHASE; phase++) {
        fprintf(out, "  subgraph cluster_%s { label=\"%s\";\n", phase_names[phase],
                phase_names[phase]);
        for (int i = 0; i < u->ngroups; i++) {
            if (u->groups[i].phase != phase) continue;
            dot_group(u, i, arena, out);
            for (int k = 0; k < u->groups[i].nouts; k++) owner[u->groups[i].outs[k]] = i;
        }
        fprintf(out, "  }\n");
    }
    for (int i = 0; i < u->ngroups; i++)
        for (int k = 0; k < u->groups[i].nins; k++) {
            NodeId base = place_of(g, u->groups[i].ins[k]).base;
            if (owner[base] >= 0) {
                fprintf(out, "  g%d -> g%d;\n", owner[base], i);
            } else if (node(g, base)->attr.name) {
                fprintf(out, "  \"");
                quoted(node(g, base)->attr.name, out);
                fprintf(out, "\" -> g%d;\n", i);
            }
        }
    fprintf(out, "}\n");
    arena_free(arena);
}

/* ---- SVG ------------------------------------------------------------------------------------- */

enum { WIDTH = 1200, HEIGHT = 640, LEFT = 80, TOP = 40 };

static const char *const role_colour[NROLE] = {"#4e79a7", "#59a14f", "#f28e2b",
                                               "#edc948", "#76b7b2", "#9c755f",
                                               "#e15759", "#b07aa1", "#bab0ac"};

static void escaped(const char *text, FILE *out) {
    Text xml = {0};
    if (text) xml_escape(&xml, text);
    fwrite(xml.data, 1, xml.len, out);
    text_free(&xml);
}

/* One buffer during steps first..last of the picture's axis. */
static void svg_block(const Plan *plan, const Buf *b, int64_t bytes, double first, double last,
                      int steps, FILE *out) {
    double x = LEFT + WIDTH * first / steps, w = WIDTH * (last + 1 - first) / steps;
    double scale = (double)HEIGHT / (double)(plan->arena_bytes ? plan->arena_bytes : 1);
    double h = (double)bytes * scale, y = TOP + HEIGHT - (double)b->offset * scale - h;
    char size[32];
    format_bytes(size, (double)bytes);
    fprintf(
        out,
        "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\" stroke=\"#fff\" "
        "stroke-width=\"0.3\"><title>",
        x, y, w, h, role_colour[b->role]);
    escaped(b->name, out);
    fprintf(out, ", %s, %s", role_names[b->role], size);
    if (b->where) fprintf(out, "\n");
    escaped(b->where, out);
    fprintf(out, "</title></rect>\n");
}

static void svg_buf(const Plan *plan, const Buf *b, const int *begin, int steps, FILE *out) {
    if (b->persistent) {
        svg_block(plan, b, b->bytes, 0, steps - 1, steps, out);
        return;
    }
    int first = b->first;
    int64_t bytes = b->bytes;
    for (int i = 0; i <= b->nshrink; i++) {
        int last = i < b->nshrink && b->shrink[i].step < b->last ? b->shrink[i].step : b->last;
        if (last >= first)
            svg_block(plan, b, bytes, begin[b->program] + first, begin[b->program] + last, steps,
                      out);
        if (i < b->nshrink) bytes = b->shrink[i].bytes;
        first = last + 1;
    }
}

static void svg_axes(const Plan *plan, const int *begin, int steps, FILE *out) {
    char size[32];
    for (int i = 0; i <= 4; i++) {
        double y = TOP + HEIGHT - HEIGHT * i / 4.0;
        format_bytes(size, (double)plan->arena_bytes * i / 4);
        fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", LEFT - 6, y + 4,
                size);
    }
    for (int p = 0; p < plan->nprograms; p++) {
        if (!plan->programs[p].nsteps) continue;
        double x = LEFT + (double)WIDTH * begin[p] / steps;
        fprintf(out, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#333\"/>", x, TOP,
                x, TOP + HEIGHT);
        fprintf(out, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", x + 3, TOP - 6,
                plan->programs[p].name);
    }
    int x = LEFT;
    for (int r = 0; r < NROLE; r++, x += 120)
        fprintf(out,
                "<rect x=\"%d\" y=\"%d\" width=\"12\" height=\"12\" fill=\"%s\"/>"
                "<text x=\"%d\" y=\"%d\">%s</text>\n",
                x, TOP + HEIGHT + 16, role_colour[r], x + 16, TOP + HEIGHT + 26, role_names[r]);
}

void view_memory_svg(const Plan *plan, FILE *out) {
    Arena *arena = arena_new();
    int *begin = NEW_ARRAY(arena, int, plan->nprograms + 1), steps = 0;
    for (int p = 0; p < plan->nprograms; p++) {
        begin[p] = steps;
        steps += plan->programs[p].nsteps;
    }
    if (!steps) steps = 1;
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" "
            "font-size=\"11\">\n",
            LEFT + WIDTH + 20, TOP + HEIGHT + 40);
    for (int i = 0; i < plan->nbufs; i++) svg_buf(plan, &plan->bufs[i], begin, steps, out);
    svg_axes(plan, begin, steps, out);
    fprintf(out, "</svg>\n");
    arena_free(arena);
}
