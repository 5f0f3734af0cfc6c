/* verbs_view.c: view: a unit on its way through the passes as a page; after them as dot; one
 * value's story; one pass alone on a graph in text form; a plan's memory as SVG. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "view.h"
#include "work.h"

/* The unit that trains, after its passes; `page` (or NULL) sees it after each. */
static Unit *training_unit(Work *w, ViewPage *page) {
    const Target *target = target_by_name(w->options->arch ? w->options->arch : "cpu");
    Unit *u = target ? unit_new(w->arena, w->spec, target, UNIT_TRAIN) : NULL;
    DumpOptions dump = {.watch = page ? view_page_watch : NULL, .watcher = page};
    bool ok = u && unit_build(u);
    if (ok && page) view_page_watch(page, u, NULL);
    ok = ok && unit_run_passes(u, &dump);
    work_diagnostics(w);
    return ok ? u : NULL;
}

/* Writes what `draw` draws to `path` ("-": stdout); false from draw: nothing is written. */
static int draw_to(Work *w, const char *path, bool (*draw)(Work *, FILE *)) {
    char *text;
    size_t len;
    FILE *memory = open_memstream(&text, &len);
    bool drawn = draw(w, memory);
    fclose(memory);
    if (drawn && strcmp(path, "-") == 0)
        fwrite(text, 1, len, stdout);
    else if (drawn)
        file_write(path, text, len, &w->err);
    free(text);
    if (!drawn) return EXIT_INPUT;
    return w->err.code ? work_fail(w) : EXIT_OK;
}

static bool draw_svg(Work *w, FILE *out) {
    view_memory_svg(w->plan, out);
    return true;
}

static bool draw_dot(Work *w, FILE *out) {
    Unit *u = training_unit(w, NULL);
    if (u) view_dot(u, out);
    return u != NULL;
}

static bool draw_html(Work *w, FILE *out) {
    const Options *o = w->options;
    const char *title =
        arena_printf(w->arena, "%s on %s", o->args.item[0], o->arch ? o->arch : "cpu");
    ViewPage *page = view_page_new(w->arena, title);
    if (!training_unit(w, page)) return false;
    view_page_write(page, out);
    return true;
}

/* ---- --explain=%id: everything recorded about one value -------------------------------------- */

/* Whether a line speaks of %id: the number ends where a name of it ends. */
static bool speaks_of(const char *line, int id) {
    char name[32];
    size_t n = (size_t)snprintf(name, sizeof name, "%%%d", id);
    for (const char *at = line; (at = strstr(at, name)) != NULL; at += n)
        if (at[n] < '0' || at[n] > '9') return true;
    return false;
}

static void print_lines(const char *text, int id) {
    for (const char *line = text; line && *line;) {
        const char *end = strchr(line, '\n');
        size_t n = end ? (size_t)(end - line) : strlen(line);
        char *copy = strndup(line, n);
        if (speaks_of(copy, id)) printf("%s\n", copy);
        free(copy);
        line = end ? end + 1 : NULL;
    }
}

static int explain(Work *w, const char *what) {
    char *end;
    long id = strtol(what + (*what == '%'), &end, 10);
    Unit *u = training_unit(w, NULL);
    if (!u) return EXIT_INPUT;
    if (*end || id < 1 || id >= u->g->n) {
        fprintf(stderr, "dpoc: --explain wants a value %%1 .. %%%d of the graph after all passes\n",
                u->g->n - 1);
        return EXIT_USAGE;
    }
    Text text = {0};
    graph_print(u->g, &text);
    unit_print_groups(u, &text);
    print_lines(text.data, (int)id);
    for (int i = 0; i < u->nrefused; i++)
        if (speaks_of(u->refused[i], (int)id)) printf("refused: %s\n", u->refused[i]);
    for (int i = 0; i < u->nrecomputed; i++)
        if (speaks_of(u->recomputed[i], (int)id)) printf("recomputed: %s\n", u->recomputed[i]);
    text_free(&text);
    return EXIT_OK;
}

/* ---- --only=PASS file.ir --------------------------------------------------------------------- */

static int run_only(Work *w, const char *pass, const char *path) {
    size_t len;
    char *read = file_read(path, &len, &w->err);
    if (!read) return work_fail(w);
    char *text = arena_strn(w->arena, read, len); /* diagnostics point into it */
    free(read);
    Graph *g = graph_read(w->arena, w->diags, source_add(w->diags, path, text, len));
    Unit u = {.kind = UNIT_EVAL,
              .target = target_by_name("cpu"),
              .arena = w->arena,
              .diags = w->diags,
              .g = g,
              .compute = DT_f32};
    bool ok = g && unit_run_only(&u, pass);
    work_diagnostics(w);
    if (!ok) return EXIT_INPUT;
    Text out = {0};
    graph_print(u.g, &out);
    unit_print_groups(&u, &out);
    fwrite(out.data, 1, out.len, stdout);
    text_free(&out);
    return EXIT_OK;
}

int verb_view(const Options *o) {
    if (!o->dot && !o->html && !o->svg && !o->explain && !o->only)
        return work_usage(
            "view needs --html=FILE, --svg=FILE, --dot=FILE (`-` is stdout), --explain=%id, or "
            "--only=PASS with a file.ir");
    Work w;
    work_init(&w, o);
    int code = EXIT_OK;
    if (o->only) {
        code = o->args.n == 1 ? run_only(&w, o->only, o->args.item[0])
                              : work_usage("--only wants one file.ir");
    } else {
        bool known = !o->arch || target_by_name(o->arch);
        code = known ? work_check(&w, NULL, false) : work_no_target(&w, o->arch);
        if (code == EXIT_OK && o->dot) code = draw_to(&w, o->dot, draw_dot);
        if (code == EXIT_OK && o->html) code = draw_to(&w, o->html, draw_html);
        if (code == EXIT_OK && o->explain) code = explain(&w, o->explain);
        static const bool want[NUNIT] = {[UNIT_TRAIN] = true};
        if (code == EXIT_OK && o->svg) code = work_compile(&w, o->arch, want);
        if (code == EXIT_OK && o->svg) code = draw_to(&w, o->svg, draw_svg);
    }
    work_close(&w);
    return code;
}
