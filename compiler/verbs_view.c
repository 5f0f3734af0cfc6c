/* verbs_view.c: view: a unit's graph after its passes as dot, one value's story, one pass alone
 * on a graph in text form, a plan's memory as SVG. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "work.h"

static Unit *training_unit(Work *w) {
    const Target *target = target_by_name(w->options->arch ? w->options->arch : "cpu");
    Unit *u = target ? unit_new(w->arena, w->spec, target, UNIT_TRAIN) : NULL;
    DumpOptions dump = {0};
    bool ok = u && unit_build(u) && unit_run_passes(u, &dump);
    work_diagnostics(w);
    return ok ? u : NULL;
}

/* Opens `path` ("-": stdout), lets `draw` write, closes. */
static int draw_to(Work *w, const char *path, void (*draw)(Work *, FILE *)) {
    bool screen = strcmp(path, "-") == 0;
    FILE *out = screen ? stdout : fopen(path, "w");
    if (out) draw(w, out);
    if (!out || ferror(out) || (!screen && fclose(out) != 0)) {
        fail(&w->err, EXIT_IO, "%s: %s", path, strerror(errno));
        return work_fail(w);
    }
    return EXIT_OK;
}

static void draw_svg(Work *w, FILE *out) {
    view_memory_svg(w->plan, out);
}

static void draw_dot(Work *w, FILE *out) {
    Unit *u = training_unit(w);
    if (u) view_dot(u, out);
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
    Unit *u = training_unit(w);
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
    if (!o->dot && !o->svg && !o->explain && !o->only)
        return work_usage("view needs --dot=FILE, --svg=FILE (`-` is stdout), --explain=%id, or "
                          "--only=PASS with a file.ir");
    Work w;
    work_init(&w, o);
    int code = EXIT_OK;
    if (o->only) {
        code = o->args.n == 1 ? run_only(&w, o->only, o->args.item[0])
                              : work_usage("--only wants one file.ir");
    } else {
        code = work_check(&w, NULL, false);
        if (code == EXIT_OK && o->dot) code = draw_to(&w, o->dot, draw_dot);
        if (code == EXIT_OK && o->explain) code = explain(&w, o->explain);
        static const bool want[NUNIT] = {[UNIT_TRAIN] = true};
        if (code == EXIT_OK && o->svg) code = work_compile(&w, o->arch, want);
        if (code == EXIT_OK && o->svg) code = draw_to(&w, o->svg, draw_svg);
    }
    work_close(&w);
    return code;
}
