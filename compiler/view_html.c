/* view_html.c: `dpoc view --html`: one self-contained page: the source, the counters of every pass,
 * and a column per pass; what is picked is coloured wherever its origins are (view_page.js).
 *
 * Ids of the page: s2-27 (line 27 of source 2), p3 (column of pass 3), n3-17 (%17 after pass 3), o9
 * (origin 9); a line's data-o lists its origins.  Relies on view_layers.c, view_count.c and on what
 * graph_print writes: node %i is its line i.  Promises: well-formed XML, the same bytes for the
 * same input, nothing fetched from elsewhere.
 */
#include "../runtime/svg.h"
#include "view.h"

#include <stdlib.h>
#include <string.h>

enum { WIDEST = 160 }; /* characters of a node's line */

struct ViewPage {
    Arena *arena;
    const char *title;
    Snapshot *shot; /* 0: as built */
    int n, cap;
    Layers layers;
    const Origin **origin; /* number k is origin[k - 1] */
    int norigin, caporigin;
};

ViewPage *view_page_new(Arena *arena, const char *title) {
    ViewPage *page = NEW(arena, ViewPage);
    page->arena = arena;
    page->title = title;
    return page;
}

void view_page_watch(void *watcher, const Unit *u, const Pass *pass) {
    ViewPage *page = watcher;
    bool grouped = page->n && page->shot[page->n - 1].grouped;
    Snapshot s = {pass ? pass->name : "build", pass ? pass->sentence : "the forward graph", *u,
                  grouped || (pass && strcmp(pass->name, "fuse") == 0)};
    s.u.g = NEW(page->arena, Graph);
    *s.u.g = *u->g;
    s.u.g->node = NEW_ARRAY(page->arena, Node, u->g->n);
    memcpy(s.u.g->node, u->g->node, sizeof(Node) * (size_t)u->g->n);
    s.u.groups = NEW_ARRAY(page->arena, Group, u->ngroups);
    if (u->ngroups) memcpy(s.u.groups, u->groups, sizeof(Group) * (size_t)u->ngroups);
    PUSH(page->arena, page->shot, page->n, page->cap, s);
}

/* ---- text ------------------------------------------------------------------------------------ */

static void put_text(const char *text, size_t n, FILE *out) {
    char *copy = strndup(text, n);
    Text escaped = {0};
    xml_escape(&escaped, copy);
    if (escaped.len) fwrite(escaped.data, 1, escaped.len, out);
    text_free(&escaped);
    free(copy);
}

static void put(const char *text, FILE *out) {
    put_text(text, strlen(text), out);
}

/* The number of an origin: equal place and scope, equal number. */
static int origin_number(ViewPage *page, const Origin *o) {
    for (int i = 0; i < page->norigin; i++) {
        const Origin *x = page->origin[i];
        if (x->scope == o->scope && !memcmp(&x->loc, &o->loc, sizeof o->loc)) return i + 1;
    }
    PUSH(page->arena, page->origin, page->norigin, page->caporigin, o);
    return page->norigin;
}

static void put_origins(ViewPage *page, const Node *n, FILE *out) {
    bool first = true;
    for (const Origin *o = n->origin; o; o = o->next) {
        if (!o->loc.file || !view_scope_shown(&page->layers, o->scope)) continue;
        fprintf(out, "%s%d", first ? " data-o=\"" : " ", origin_number(page, o));
        first = false;
    }
    if (!first) putc('"', out);
}

/* ---- columns --------------------------------------------------------------------------------- */

/* Lines of a text by number from 1, the ends of which are those of line i + 1 less one. */
static const char **lines_of(Arena *arena, const char *text, int n) {
    const char **line = NEW_ARRAY(arena, const char *, n + 2);
    for (int i = 1; i <= n + 1 && text; i++) {
        line[i] = text;
        text = strchr(text, '\n');
        if (text) text++;
    }
    return line;
}

/* A node as graph_print has it, without scopes and place, which its origins say. */
static void put_node_line(const char *line, size_t n, FILE *out) {
    const char *type = memmem(line, n, " : ", 3);
    const char *scope = type ? memmem(type, n - (size_t)(type - line), " \"", 2) : NULL;
    const char *place = type ? memmem(type, n - (size_t)(type - line), " ; ", 3) : NULL;
    if (place) n = (size_t)(place - line);
    if (scope && (size_t)(scope - line) < n) n = (size_t)(scope - line);
    size_t keep = n > WIDEST && type ? WIDEST / 2 : n;
    while (keep && keep < n && ((unsigned char)line[keep] & 0xc0) == 0x80) keep--;
    if (keep > (size_t)(type ? type - line : 0)) keep = n;
    put_text(line, keep, out);
    if (keep == n) return;
    fputs(" ..", out);
    put_text(type, n - (size_t)(type - line), out);
}

typedef struct Column { /* being printed */
    ViewPage *page;
    const Snapshot *shot;
    int number;
    const char **line; /* of its nodes */
    bool *done;        /* by node: its id is taken */
} Column;

static void put_node(Column *c, NodeId id, FILE *out) {
    const Node *n = node(c->shot->u.g, id);
    if (!view_node_shown(&c->page->layers, n)) return;
    fputs("<li", out);
    if (!c->done[id]) fprintf(out, " id=\"n%d-%d\"", c->number, id);
    c->done[id] = true;
    put_origins(c->page, n, out);
    putc('>', out);
    put_node_line(c->line[id], (size_t)(c->line[id + 1] - c->line[id]) - 1, out);
    fputs("</li>\n", out);
}

static void put_group(Column *c, int i, FILE *out) {
    static const char *const kinds[] = {"kernel", "product", "custom"}; /* by GroupKind */
    const Group *group = &c->shot->u.groups[i];
    bool shown = false;
    for (int k = 0; k < group->nnodes; k++)
        shown |= view_node_shown(&c->page->layers, node(c->shot->u.g, group->nodes[k]));
    if (!shown) return;
    fprintf(out, "<li class=\"group\">group %d: %s, %s</li>\n", i, kinds[group->kind],
            phase_names[group->phase]);
    for (int k = 0; k < group->nnodes; k++) put_node(c, group->nodes[k], out);
}

/* Nodes that no group computes come first, then groups in their order. */
static void put_nodes(Column *c, FILE *out) {
    const Unit *u = &c->shot->u;
    Arena *arena = arena_new();
    bool *in = NEW_ARRAY(arena, bool, u->g->n);
    c->done = NEW_ARRAY(arena, bool, u->g->n);
    for (int i = 0; i < u->ngroups; i++)
        for (int k = 0; k < u->groups[i].nnodes; k++) in[u->groups[i].nodes[k]] = true;
    for (NodeId id = 1; id < u->g->n; id++)
        if (!in[id]) put_node(c, id, out);
    for (int i = 0; i < u->ngroups; i++) put_group(c, i, out);
    arena_free(arena);
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* What this pass refused: "fuse: %12 mul: why", counted without the value's number. */
static void put_refused(Column *c, FILE *out) {
    const Unit *u = &c->shot->u;
    int from = c->number ? c->shot[-1].u.nrefused : 0, n = u->nrefused - from;
    if (n <= 0) return;
    const char **why = NEW_ARRAY(c->page->arena, const char *, n);
    for (int i = 0; i < n; i++) {
        const char *line = u->refused[from + i], *value = strstr(line, ": %");
        why[i] = value ? value + 3 + strspn(value + 3, "0123456789") : line;
        why[i] += strspn(why[i], " ");
    }
    qsort(why, (size_t)n, sizeof *why, by_text);
    fprintf(out, "<details><summary>%d refused</summary><ul>\n", n);
    for (int i = 0, times = 1; i < n; i++, times++) {
        if (i + 1 < n && !strcmp(why[i], why[i + 1])) continue;
        fprintf(out, "<li>%d × ", times);
        put(why[i], out);
        fputs("</li>\n", out);
        times = 0;
    }
    fputs("</ul></details>\n", out);
}

static void print_unit(const Unit *u, Text *out) {
    graph_print(u->g, out);
    unit_print_groups(u, out);
}

static void put_columns(ViewPage *page, FILE *out) {
    Text before = {0};
    for (int i = 0; i < page->n; i++) {
        Text text = {0};
        Column c = {.page = page, .shot = &page->shot[i], .number = i};
        print_unit(&c.shot->u, &text);
        fprintf(out,
                "<section id=\"p%d\" aria-labelledby=\"h%d\"><h2 id=\"h%d\">%s</h2><p>%s</p>\n", i,
                i, i, c.shot->pass, c.shot->sentence);
        put_refused(&c, out);
        if (i && text.len == before.len && !memcmp(text.data, before.data, text.len)) {
            fputs("<p>Nothing changes here.</p>\n", out);
        } else {
            c.line = lines_of(page->arena, text.data, c.shot->u.g->n - 1);
            fprintf(out, "<ol class=\"lines\" tabindex=\"0\" aria-labelledby=\"h%d\">\n", i);
            put_nodes(&c, out);
            fputs("</ol>\n", out);
        }
        fputs("</section>\n", out);
        text_free(&before);
        before = text;
    }
    text_free(&before);
}

/* ---- the rest of the page ------------------------------------------------------------------- */

static void put_source(const ViewPage *page, uint32_t file, FILE *out) {
    const Diags *diags = page->shot[0].u.diags;
    size_t len;
    const char *text = source_text(diags, file, &len), *end = text + len;
    fputs("<h3>", out);
    put(source_name(diags, file), out);
    fputs("</h3>\n<ol class=\"lines source\" tabindex=\"0\">\n", out);
    for (int line = 1; text < end; line++) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        fprintf(out, "<li id=\"s%u-%d\">", file, line);
        put_text(text, (size_t)((stop ? stop : end) - text), out);
        fputs("</li>\n", out);
        text = stop ? stop + 1 : end;
    }
    fputs("</ol>\n", out);
}

/* The files that a value comes from. */
static void put_sources(const ViewPage *page, FILE *out) {
    uint32_t last = 0;
    for (int i = 0; i < page->norigin; i++)
        if (page->origin[i]->loc.file > last) last = page->origin[i]->loc.file;
    fputs("<section id=\"source\" aria-labelledby=\"hs\"><h2 id=\"hs\">source</h2>\n", out);
    for (uint32_t file = 1; file <= last; file++) {
        bool used = false;
        for (int i = 0; i < page->norigin && !used; i++) used = page->origin[i]->loc.file == file;
        if (used) put_source(page, file, out);
    }
    fputs("</section>\n", out);
}

static void put_origin_list(const ViewPage *page, FILE *out) {
    const Diags *diags = page->shot[0].u.diags;
    fputs("<ol id=\"origins\" hidden=\"hidden\">\n", out);
    for (int i = 0; i < page->norigin; i++) {
        const Origin *o = page->origin[i];
        int line, col;
        loc_line_col(diags, o->loc, &line, &col);
        fprintf(out, "<li id=\"o%d\" data-s=\"s%u-%d\">", i + 1, o->loc.file, line);
        put(origin_print(page->arena, diags, o), out);
        fputs("</li>\n", out);
    }
    fputs("</ol>\n", out);
}

static void put_cell(const char *text, bool changed, FILE *out) {
    fprintf(out, changed ? "<td><b>%s</b></td>" : "<td>%s</td>", text);
}

/* A row a pass; what differs from the row above is bold. */
static void put_counters(const ViewPage *page, FILE *out) {
    fputs("<table><thead><tr><th>after</th><th>nodes</th><th>kernels</th><th>products</th>"
          "<th>custom</th><th>FLOPs</th><th>bytes</th><th>peak</th></tr></thead><tbody>\n",
          out);
    char cell[7][32], above[7][32] = {0};
    for (int i = 0; i < page->n; i++) {
        ViewCounts c = view_counts(&page->shot[i]);
        snprintf(cell[0], 32, "%d", c.nodes);
        snprintf(cell[1], 32, "%d", c.kernels);
        snprintf(cell[2], 32, "%d", c.products);
        snprintf(cell[3], 32, "%d", c.customs);
        snprintf(cell[4], 32, "%.4g", c.flops);
        format_bytes(cell[5], c.bytes);
        format_bytes(cell[6], c.peak);
        fprintf(out, "<tr><th><a href=\"#p%d\">%s</a></th>", i, page->shot[i].pass);
        for (int k = 0; k < 7; k++) put_cell(cell[k], i && strcmp(cell[k], above[k]) != 0, out);
        fputs("</tr>\n", out);
        memcpy(above, cell, sizeof above);
    }
    fputs("</tbody></table>\n<p>FLOPs (products and attention), bytes read and written, and the "
          "most bytes of values alive at once are those of one micro-batch at its bounds, in the "
          "order at hand, with no limit on memory; weights and states are not in the peak. Until "
          "<i>fuse</i> every node counts as stored.</p>\n",
          out);
}

/* Which layers stand for which. */
static void put_layers(const ViewPage *page, FILE *out) {
    const Layers *l = &page->layers;
    int hidden = 0;
    for (int i = 0; i < l->n; i++) hidden += !l->layer[i].shown;
    if (!hidden) return;
    fprintf(out, "<p>Of %d layers %d are shown, one of each kind: ", l->n, l->n - hidden);
    for (int i = 0, said = 0; i < l->n; i++) {
        if (!l->layer[i].shown) continue;
        int alike = 0;
        for (int k = i + 1; k < l->n; k++)
            alike += l->layer[k].prefix == l->layer[i].prefix &&
                     !memcmp(&l->layer[k].hash, &l->layer[i].hash, sizeof l->layer[i].hash);
        fputs(said++ ? ", " : "", out);
        put(l->layer[i].prefix, out);
        fprintf(out, "%ld", l->layer[i].index);
        if (alike) fprintf(out, " (%d more are like it)", alike);
    }
    fputs(". Layers are of a kind when after each pass their nodes have the same ops, types, "
          "phases and places in the source; the first is shown. Counters count all.</p>\n",
          out);
}

static void put_embedded(const char *path, FILE *out) {
    size_t len;
    const char *text = embedded(path, &len);
    fwrite(text, 1, len, out);
}

void view_page_write(ViewPage *page, FILE *out) {
    char *columns;
    size_t len;
    view_layers(page->arena, page->shot, page->n, &page->layers);
    FILE *memory = open_memstream(&columns, &len); /* origins are numbered on the way */
    put_columns(page, memory);
    fclose(memory);
    fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>"
          "<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>",
          out);
    put(page->title, out);
    fputs("</title>\n<style>\n", out);
    put_embedded("compiler/view_page.css", out);
    fputs("</style></head><body>\n<header><h1>", out);
    put(page->title, out);
    fputs("</h1>\n<p>Click a line, or move with the arrow keys: what comes from the same text is "
          "coloured in every column; in its own, what it <span class=\"in\">reads</span> and what "
          "<span class=\"out\">reads it</span>. Left and right: the same value a pass before and "
          "after. Escape: nothing.</p>\n",
          out);
    put_layers(page, out);
    fputs("<details open=\"open\"><summary>Counters</summary>\n", out);
    put_counters(page, out);
    fputs("</details></header>\n<p id=\"picked\" role=\"status\">nothing is picked</p>\n"
          "<main tabindex=\"-1\">\n",
          out);
    put_sources(page, out);
    fwrite(columns, 1, len, out);
    free(columns);
    fputs("</main>\n", out);
    put_origin_list(page, out);
    fputs("<script>//<![CDATA[\n", out);
    put_embedded("compiler/view_page.js", out);
    fputs("//]]></script>\n</body></html>\n", out);
}
