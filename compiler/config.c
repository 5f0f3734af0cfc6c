/* config.c: config.json, and what a `config` block makes of it.
 *
 * In `name = a | b.c | d | 3` the first word is a key of config.json and so is every dotted word;
 * another is a name bound above or else a key, too.  null counts as absent; the first alternative
 * that is present is taken.  Objects (rope_scaling) are values with fields.  No key is known to
 * this file but quantization_config, which must not go unnoticed (packed.c).  Relies on expr.c and
 * jansson.
 */
#include "front.h"

#include <jansson.h>
#include <string.h>

/* ---- config.json as a record ----------------------------------------------------------------- */

static Value from_json(Arena *arena, json_t *j) {
    if (json_is_boolean(j)) return value_bool(json_is_true(j));
    if (json_is_number(j)) return value_num(json_number_value(j));
    if (json_is_string(j)) return value_str(json_string_value(j));
    Record *r = NEW(arena, Record);
    const char *key;
    json_t *item;
    size_t i;
    json_object_foreach(j, key, item) {
        if (!json_is_null(item)) record_set(arena, r, key, from_json(arena, item));
    }
    json_array_foreach(j, i, item) {
        if (!json_is_null(item))
            record_set(arena, r, arena_printf(arena, "%zu", i), from_json(arena, item));
    }
    return (Value){.kind = V_RECORD, .record = r, .side = -1};
}

static void no_model(Front *f, const char *dir, Loc loc) {
    if (file_exists(dir)) {
        diag_file(f->diags, loc, "%s holds no config.json: not a model directory", dir);
        return;
    }
    diag_file(f->diags, loc, "there is no directory %s", dir);
    const char *slash = strchr(dir, '/');
    bool hub = slash && slash != dir && *dir != '.' && slash[1] && !strchr(slash + 1, '/');
    if (hub) /* ORGANISATION/NAME */
        diag(f->diags, DIAG_HELP, loc,
             "nothing is downloaded: `hf download %s --local-dir %s` does, then --model %s", dir,
             slash + 1, slash + 1);
}

Record *config_read(Front *f, const char *dir, Loc loc) {
    char *path = path_join(f->arena, dir, "config.json");
    if (!file_exists(path)) {
        no_model(f, dir, loc);
        return NULL;
    }
    json_error_t error;
    json_t *j = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(j)) {
        if (j)
            diag_file(f->diags, loc, "%s: not a JSON object", path);
        else
            diag_file(f->diags, loc, "%s:%d:%d: %s", path, error.line, error.column, error.text);
        json_decref(j);
        return NULL;
    }
    Record *r = (Record *)from_json(f->arena, j).record;
    json_decref(j);
    return packed_known(f, dir, r, loc) ? r : NULL;
}

/* ---- a config block -------------------------------------------------------------------------- */

typedef struct Config { /* one block while it is evaluated */
    Front *f;
    Base *base;
    Module *module;
    Record *names;
    const Ast *first; /* the first word of the bind at hand: a key */
    int quiet; /* > 0: an absent key is no error but the reason to take the next alternative */
    bool absent;
} Config;

static const Ast *first_word(const Ast *ast) {
    while (ast && (ast->kind == A_ALT || ast->kind == A_BINARY || ast->kind == A_COND))
        ast = ast->a;
    return ast && ast->kind == A_NAME ? ast : NULL;
}

/* The value below a dotted word; NULL: absent. */
static const Value *key_get(const Record *r, const Ast *path) {
    if (path->kind == A_NAME) return record_get(r, path->text);
    const Value *outer = path->a ? key_get(r, path->a) : NULL;
    return outer && outer->kind == V_RECORD ? record_get(outer->record, path->text) : NULL;
}

static const char *key_text(Arena *arena, const Ast *path) {
    if (path->kind == A_NAME) return path->text;
    return arena_printf(arena, "%s.%s", key_text(arena, path->a), path->text);
}

static Value absent_key(Config *c, const Ast *ast) {
    c->absent = true;
    if (c->quiet) return value_bad();
    const char *key = key_text(c->f->arena, ast);
    diag_file(c->f->diags, ast->loc, "config.json of %s has no '%s'", c->base->dir, key);
    const Record *all = c->base->config;
    const char **names = NEW_ARRAY(c->f->arena, const char *, all->n);
    for (int i = 0; i < all->n; i++) names[i] = all->field[i].name;
    const char *close = closest_name(key, names, all->n);
    if (close)
        diag(c->f->diags, DIAG_HELP, ast->loc, "did you mean '%s'?", close);
    else
        diag(c->f->diags, DIAG_HELP, ast->loc, "say what stands for it: `%s | VALUE`", key);
    return value_bad();
}

static Value config_word(Expr *e, const Ast *ast) {
    Config *c = e->self;
    if (ast->kind == A_INDEX) {
        diag(c->f->diags, DIAG_ERROR, ast->loc, "an index has no meaning in config");
        return value_bad();
    }
    const Value *key = key_get(c->base->config, ast);
    const Value *bound =
        ast->kind == A_NAME ? config_name(c->f, c->base, c->module, ast->text) : NULL;
    if (ast->kind == A_PATH || ast == c->first) {
        if (key) return *key;
        if (bound && !c->quiet) return *bound; /* `half = dim / 2`: no such key, but bound above */
        return absent_key(c, ast);
    }
    if (bound) return *bound;
    if (key) return *key;
    if (c->quiet) return absent_key(c, ast);
    const char *names[128];
    int n = config_names(c->f, c->base, c->module, names, COUNT(names));
    diag_unknown(c->f, ast->loc, "name", ast->text, names, n);
    return value_bad();
}

static Value config_alternative(Expr *e, const Ast *ast) {
    Config *c = e->self;
    c->quiet++;
    c->absent = false;
    Value v = expr_eval(e, ast->a);
    c->quiet--;
    if (v.kind != V_BAD || !c->absent) return v;
    c->absent = false;
    return expr_eval(e, ast->b);
}

static Value config_call(Expr *e, const Ast *ast) {
    Config *c = e->self;
    double x[2], y;
    int n = 0;
    for (const Ast *arg = ast->kind == A_CALL ? ast->list : NULL; arg; arg = arg->next) {
        if (n < 2 && !expr_num(e, arg->a, "an argument", &x[n])) return value_bad();
        n++;
    }
    if (ast->kind == A_CALL && n <= 2 && number_call(ast->text, x, n, &y)) return value_num(y);
    diag(c->f->diags, DIAG_ERROR, ast->loc, "there is no such function of numbers");
    return value_bad();
}

static void config_statements(Expr *e, const Ast *list);

static void config_if(Expr *e, const Ast *ast) {
    bool holds;
    if (!expr_bool(e, ast->a, "a condition", &holds)) return;
    const Ast *branch = holds ? ast->b : ast->c;
    if (!branch) return;
    if (branch->kind == A_IF)
        config_if(e, branch);
    else
        config_statements(e, branch->list);
}

static void config_statements(Expr *e, const Ast *list) {
    Config *c = e->self;
    for (const Ast *s = list; s; s = s->next) {
        c->first = NULL;
        if (s->kind == A_IF) config_if(e, s);
        if (s->kind == A_REQUIRE) expr_require(e, s);
        if (s->kind != A_BIND) continue;
        c->first = first_word(s->a);
        record_set(c->f->arena, c->names, s->text, expr_eval(e, s->a));
    }
}

/* The block of a file: the variant's in its place, if the main file has one. */
static const Ast *config_block(const Front *f, const Module *m) {
    const Ast *own = NULL;
    for (const Ast *s = m->ast->list; s; s = s->next)
        if (s->kind == A_CONFIG) own = s;
    for (int i = 0; own && i < f->noverlay; i++)
        if (f->overlay[i]->kind == A_CONFIG) own = f->overlay[i];
    return own;
}

const Record *config_env(Front *f, Base *base, Module *m) {
    for (int i = 0; i < base->nenv; i++)
        if (base->env[i]->module == m) return &base->env[i]->names;
    Env *env = NEW(f->arena, Env);
    env->module = m;
    PUSH(f->arena, base->env, base->nenv, base->capenv, env);
    Config c = {.f = f, .base = base, .module = m, .names = &env->names};
    Expr e = {.front = f,
              .self = &c,
              .name = config_word,
              .call = config_call,
              .alternative = config_alternative,
              .where = "config"};
    const Ast *block = config_block(f, m);
    if (block) config_statements(&e, block->list);
    c.first = NULL;
    for (const Ast *s = m->ast->list; s; s = s->next)
        if (s->kind == A_REQUIRE) expr_require(&e, s);
    return &env->names;
}

/* ---- names as layers see them ---------------------------------------------------------------- */

static const Value *name_in(Front *f, Base *base, Module *m, const char *name, bool *seen) {
    for (int i = 0; i < f->nmodules; i++) {
        if (f->modules[i] != m) continue;
        if (seen[i]) return NULL;
        seen[i] = true;
    }
    const Value *v = record_get(config_env(f, base, m), name);
    for (int i = 0; i < m->nuse && !v; i++) v = name_in(f, base, m->use[i], name, seen);
    return v;
}

const Value *config_name(Front *f, Base *base, Module *m, const char *name) {
    bool *seen = NEW_ARRAY(f->arena, bool, f->nmodules);
    return name_in(f, base, m, name, seen);
}

int config_names(Front *f, Base *base, Module *m, const char **out, int max) {
    int n = 0;
    const Record *own = config_env(f, base, m);
    for (int i = 0; i < own->n && n < max; i++) out[n++] = own->field[i].name;
    for (int u = 0; u < m->nuse; u++) {
        const Record *r = config_env(f, base, m->use[u]);
        for (int i = 0; i < r->n && n < max; i++) out[n++] = r->field[i].name;
    }
    return n;
}
