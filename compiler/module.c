/* module.c: files and what they use: found, parsed once, searched in order.
 *
 * `use "x.dpo"` looks beside the file, then in the models/ compiled into the program.  A name is
 * looked up in the file that mentions it, then in the files it uses, in their order, at last in the
 * prelude; so two used files may define the same layer without meeting.  Relies on parse.c.  Cycles
 * are fine.
 */
#include "front.h"

#include <stdlib.h>
#include <string.h>

static const char *dir_of(Arena *arena, const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? arena_strn(arena, path, (size_t)(slash - path)) : ".";
}

const char *tidy_path(Arena *arena, const char *dir, const char *path) {
    if (dir) path = path_join(arena, dir, path);
    char *out = arena_str(arena, path), *to = out;
    const char *from = path;
    if (*from == '/') *to++ = *from++;
    char *start = to;
    while (*from) {
        size_t n = strcspn(from, "/");
        bool up = n == 2 && !strncmp(from, "..", 2);
        char *last = to > start ? to - 1 : to; /* the last name kept begins after its slash */
        while (last > start && last[-1] != '/') last--;
        if (up && to > start && strncmp(last, "../", 3) != 0) {
            to = last;
        } else if (n && !(n == 1 && *from == '.')) {
            memmove(to, from, n);
            to += n;
            *to++ = '/';
        }
        from += n;
        while (*from == '/') from++;
    }
    if (to > start) to--;
    *to = 0;
    return intern(*out ? out : ".");
}

static Module *module_new(Front *f, const char *path, bool is_embedded, const char *text,
                          size_t len) {
    Module *m = NEW(f->arena, Module);
    m->path = path;
    m->dir = dir_of(f->arena, path);
    m->embedded = is_embedded;
    PUSH(f->arena, f->modules, f->nmodules, f->capmodules,
         m);                 /* before its uses: cycles end here */
    const char *name = path; /* in messages */
    if (is_embedded && !strncmp(path, "models/", 7))
        name = intern_printf(BUILTIN_PREFIX "%s", path + 7);
    m->ast = parse_text(f->arena, f->diags, source_add(f->diags, name, text, len));
    for (Ast *s = m->ast->list; s; s = s->next) {
        if (s->kind != A_USE) continue;
        Module *used = module_load(f, s->text, m, s->loc);
        if (used) PUSH(f->arena, m->use, m->nuse, m->capuse, used);
    }
    module_duplicates(f, m);
    return m;
}

static Module *known(const Front *f, const char *path, bool is_embedded) {
    for (int i = 0; i < f->nmodules; i++)
        if (f->modules[i]->path == path && f->modules[i]->embedded == is_embedded)
            return f->modules[i];
    return NULL;
}

static Module *from_disk(Front *f, const char *path, Loc from) {
    Module *m = known(f, path, false);
    if (m) return m;
    Err err = {0};
    size_t len = 0;
    char *text = file_read(path, &len, &err);
    if (!text) {
        diag_file(f->diags, from, "%s", err.text);
        return NULL;
    }
    char *kept = arena_strn(f->arena, text, len);
    free(text);
    return module_new(f, path, false, kept, len);
}

static Module *from_program(Front *f, const char *path) {
    Module *m = known(f, path, true);
    if (m) return m;
    size_t len = 0;
    const char *text = embedded(path, &len);
    return text ? module_new(f, path, true, text, len) : NULL;
}

Module *module_load(Front *f, const char *path, const Module *beside, Loc from) {
    const char *dir = beside ? beside->dir : NULL;
    const char *full = tidy_path(f->arena, dir, path);
    bool disk = !beside || !beside->embedded;
    if (disk && file_exists(full)) return from_disk(f, full, from);
    Module *m = from_program(f, full);
    if (!m) m = from_program(f, tidy_path(f->arena, "models", path));
    if (m) return m;
    if (!beside) return from_disk(f, full, from); /* says why it can't be read */
    diag(f->diags, DIAG_ERROR, from, "can't find \"%s\" beside %s or among the built-in models",
         path, beside->path);
    const char *names[64];
    int n = 0;
    for (int i = 0; i < embedded_count() && n < (int)COUNT(names); i++)
        if (!strncmp(embedded_name(i), "models/", 7)) names[n++] = embedded_name(i) + 7;
    const char *close = closest_name(path, names, n);
    if (close) diag(f->diags, DIAG_HELP, from, "did you mean \"%s\"?", close);
    return NULL;
}

/* ---- definitions ----------------------------------------------------------------------------- */

static bool defines(const Ast *s, AstKind kind, const char *name) {
    return s->kind == kind && (!name || !strcmp(s->text, name));
}

static Ast *find_in(Front *f, Module *m, AstKind kind, const char *name, Module **home,
                    bool *seen) {
    for (int i = 0; i < f->nmodules; i++) {
        if (f->modules[i] != m) continue;
        if (seen[i]) return NULL;
        seen[i] = true;
    }
    for (Ast *s = m->ast->list; s; s = s->next)
        if (defines(s, kind, name)) {
            if (home) *home = m;
            return s;
        }
    Ast *found = NULL;
    for (int i = 0; i < m->nuse && !found; i++)
        found = find_in(f, m->use[i], kind, name, home, seen);
    return found;
}

Ast *module_find(Front *f, Module *from, AstKind kind, const char *name, Module **home) {
    for (int i = 0; i < f->noverlay; i++)
        if (defines(f->overlay[i], kind, name)) {
            if (home) *home = from;
            return f->overlay[i];
        }
    bool *seen = NEW_ARRAY(f->arena, bool, f->nmodules);
    Ast *found = find_in(f, from, kind, name, home, seen);
    for (int i = 0; i < f->nextra && !found; i++)
        found = find_in(f, f->extra[i], kind, name, home, seen);
    return found || !f->prelude ? found : find_in(f, f->prelude, kind, name, home, seen);
}

static int names_in(Front *f, Module *m, AstKind kind, const char **out, int n, int max,
                    bool *seen) {
    for (int i = 0; i < f->nmodules; i++) {
        if (f->modules[i] != m) continue;
        if (seen[i]) return n;
        seen[i] = true;
    }
    for (Ast *s = m->ast->list; s && n < max; s = s->next)
        if (s->kind == kind && s->text) out[n++] = s->text;
    for (int i = 0; i < m->nuse; i++) n = names_in(f, m->use[i], kind, out, n, max, seen);
    return n;
}

int module_names(Front *f, Module *from, AstKind kind, const char **out, int max) {
    bool *seen = NEW_ARRAY(f->arena, bool, f->nmodules);
    int n = names_in(f, from, kind, out, 0, max, seen);
    return f->prelude ? names_in(f, f->prelude, kind, out, n, max, seen) : n;
}

/* What makes two statements of one kind the same: their name; the objective and `train` stand
 * alone. */
bool same_statement(const Ast *a, const Ast *b) {
    if (a->kind != b->kind) return false;
    switch (a->kind) {
    case A_BIND:
    case A_LAYER:
    case A_MODEL:
    case A_ADAPTER:
    case A_QUANTIZE:
    case A_TEMPLATE:
    case A_VARIANT:
        return a->text == b->text;
    case A_CONFIG:
    case A_OBJECTIVE:
    case A_TRAIN:
    case A_DATA:
    case A_RUN:
    case A_GRAPH:
        return true;
    default:
        return false;
    }
}

void module_duplicates(Front *f, const Module *m) {
    for (const Ast *s = m->ast->list; s; s = s->next)
        for (const Ast *first = m->ast->list; first != s; first = first->next) {
            if (!same_statement(first, s)) continue;
            Loc at = s->name_loc.file ? s->name_loc : s->loc;
            diag(f->diags, DIAG_ERROR, at, "%s%s%s is defined twice", ast_kind_name(s->kind),
                 s->text ? " " : "", s->text ? s->text : "");
            diag(f->diags, DIAG_NOTE, first->name_loc.file ? first->name_loc : first->loc,
                 "first here");
            break;
        }
}
