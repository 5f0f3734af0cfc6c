/* settings.c: settings.def as a table: defaults, types, ranges, printing.
 *
 * A value comes from a block of the file, a variant, or --set, and is checked the same way each
 * time. Relies on expr.c.  Promises: after settings_set succeeded the value has the row's type and
 * range.
 */
#include "front.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const SettingDef setting_defs[] = {
#define SETTING(path, type, num, text, min, max, words, doc)                                       \
    {path, SET_##type, num, text, min, max, words, doc},
#include "settings.def"
#undef SETTING
};
const int setting_count = COUNT(setting_defs);

/* What a --memory or graph.memory of that name means: the card's memory in bytes. */
static const struct {
    const char *name;
    double gib;
} cards[] = {{"a100_40g", 39.4}, {"a100_80g", 79.1}, {"h100_80g", 79.1}, {"h200_141g", 139.8}};

Settings *settings_new(Arena *arena) {
    Settings *s = NEW(arena, Settings);
    s->arena = arena;
    for (int i = 0; i < setting_count; i++) {
        const SettingDef *d = &setting_defs[i];
        SettingValue *v = settings_add(s, d->path, d->num, d->str, (Loc){0});
        v->def = d;
        v->given = false;
    }
    return s;
}

SettingValue *settings_find(const Settings *s, const char *path) {
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->value[i].s.path, path)) return &s->value[i];
    return NULL;
}

SettingValue *settings_add(Settings *s, const char *path, double num, const char *str, Loc loc) {
    SettingValue v = {.s = {intern(path), num, intern(str)}, .given = true, .loc = loc};
    PUSH(s->arena, s->value, s->n, s->cap, v);
    return &s->value[s->n - 1];
}

/* ---- checking a value ------------------------------------------------------------------------ */

bool word_in(const char *words, const char *word) {
    size_t n = strlen(word);
    for (const char *w = words; w && *w; w += strcspn(w, " "), w += *w == ' ')
        if (strcspn(w, " ") == n && !strncmp(w, word, n)) return true;
    return false;
}

static int word_list(Arena *arena, const char *words, const char **out, int max) {
    int n = 0;
    for (const char *w = words; w && *w && n < max; w += strcspn(w, " "), w += *w == ' ')
        out[n++] = arena_strn(arena, w, strcspn(w, " "));
    return n;
}

static bool refuse_kind(Front *f, const SettingDef *d, const Ast *value, const Value *v,
                        const char *wanted) {
    diag(f->diags, DIAG_ERROR, value->loc, "%s must be %s, not %s", d->path, wanted, value_kind(v));
    char *end;
    double x = v->kind == V_STR && *v->str ? strtod(v->str, &end) : NAN;
    if (isfinite(x) && !*end) /* .1 */
        diag(f->diags, DIAG_HELP, value->loc, "write %.10g", x);
    return false;
}

static bool set_word(Front *f, const SettingDef *d, const Ast *value, const Value *v,
                     SettingValue *out) {
    const char *words[32];
    int n = word_list(f->arena, d->words, words, COUNT(words));
    char *list = arena_str(f->arena, "");
    for (int i = 0; i < n; i++)
        list = arena_printf(f->arena, "%s%s%s", list, i ? ", " : "", words[i]);
    const char *text = v->kind == V_NONE ? "none" : v->str;
    if (v->kind != V_STR && v->kind != V_NONE) {
        refuse_kind(f, d, value, v, arena_printf(f->arena, "one of %s", list));
        return false;
    }
    if (!word_in(d->words, text)) {
        diag(f->diags, DIAG_ERROR, value->loc, "%s can't be '%s'; it is one of %s%s", d->path, text,
             list, d->type == SET_SIZE ? ", or a size such as 40GiB" : "");
        const char *close = closest_name(text, words, n);
        if (close) diag(f->diags, DIAG_HELP, value->loc, "did you mean '%s'?", close);
        return false;
    }
    out->s.str = intern(text);
    out->s.num = 0;
    for (size_t i = 0; i < COUNT(cards); i++)
        if (!strcmp(cards[i].name, text)) out->s.num = floor(cards[i].gib * 1073741824.0);
    return true;
}

static bool set_number(Front *f, const SettingDef *d, const Ast *value, const Value *v,
                       SettingValue *out) {
    const char *wanted = d->type == SET_SIZE  ? "a size such as 40GiB"
                         : d->type == SET_INT ? "a whole number"
                                              : "a number";
    if (v->kind != V_NUM) return refuse_kind(f, d, value, v, wanted);
    bool bytes = value->kind == A_NUM && value->text && strchr(value->text, 'B');
    if (bytes && d->type != SET_SIZE) {
        diag(f->diags, DIAG_ERROR, value->loc, "%s is no size in bytes", d->path);
        return false;
    }
    if (value->kind == A_NUM && value->text && !strcmp(value->text, "%") && d->type != SET_NUM &&
        d->type != SET_EVAL) {
        diag(f->diags, DIAG_ERROR, value->loc, "%s is no share: '%%' has no meaning here", d->path);
        return false;
    }
    bool whole = d->type == SET_INT || (d->type == SET_EVAL && v->num >= 1);
    if (whole && v->num != floor(v->num)) {
        diag(f->diags, DIAG_ERROR, value->loc, "%s must be a whole number, not %.10g", d->path,
             v->num);
        return false;
    }
    if (!(v->num >= d->min && v->num <= d->max)) {
        diag(f->diags, DIAG_ERROR, value->loc, "%s is %.10g; it must lie between %.10g and %.10g",
             d->path, v->num, d->min, d->max);
        if (d->type == SET_SIZE) diag(f->diags, DIAG_HELP, value->loc, "with its unit: 24GiB");
        return false;
    }
    out->s.num = v->num;
    out->s.str = NULL;
    return true;
}

static const char *as_written(Front *f, const Ast *value) {
    size_t len;
    const char *text = source_text(f->diags, value->loc.file, &len);
    if (!text || value->loc.end > len) return NULL;
    return intern_n(text + value->loc.begin, value->loc.end - value->loc.begin);
}

/* The text of a path or free text: a string, or words as they stand (--set data.train=a/b.jsonl).
 * */
static const char *free_text(Front *f, const Ast *value) {
    if (value->kind == A_STR || value->kind == A_NAME) return value->text;
    return value->kind == A_PATH || value->kind == A_BINARY ? as_written(f, value) : NULL;
}

static bool set_files(Settings *s, Front *f, const SettingDef *d, const Ast *value, const char *dir,
                      SettingValue *out) {
    const Ast *first = value->kind == A_LIST ? value->list : value;
    int n = 0;
    for (const Ast *a = first; a; a = value->kind == A_LIST ? a->next : NULL) n++;
    s->file = NEW_ARRAY(s->arena, DataFile, n);
    s->nfile = 0;
    for (const Ast *a = first; a; a = value->kind == A_LIST ? a->next : NULL) {
        double weight = 1;
        const Ast *path = a;
        if (a->kind == A_WEIGHTED) {
            Value w = expr_const(f, a->b);
            if (w.kind != V_NUM || !(w.num > 0)) {
                diag(f->diags, DIAG_ERROR, a->loc, "a weight must be a positive number");
                return false;
            }
            weight = w.num;
            path = a->a;
        }
        const char *text = free_text(f, path);
        if (!text) {
            diag(f->diags, DIAG_ERROR, a->loc, "%s must be a path in quotes, or a list of them",
                 d->path);
            return false;
        }
        s->file[s->nfile++] = (DataFile){tidy_path(s->arena, dir, text), weight};
    }
    if (!n) {
        diag(f->diags, DIAG_ERROR, value->loc, "%s names no file", d->path);
        return false;
    }
    out->s.str = s->file[0].path;
    return true;
}

static bool set_text(Settings *s, Front *f, const SettingDef *d, const Ast *value, const char *dir,
                     SettingValue *out) {
    const char *text = free_text(f, value);
    if (d->type == SET_TEXT && (value->kind == A_NUM || value->kind == A_NONE))
        text = as_written(f, value);
    if (!text) {
        diag(f->diags, DIAG_ERROR, value->loc, "%s must be text in quotes", d->path);
        return false;
    }
    out->s.str = d->type == SET_EVAL ? tidy_path(s->arena, dir, text) : intern(text);
    out->s.num = 0;
    return true;
}

static bool set_value(Settings *s, Front *f, const SettingDef *d, const Ast *value, const char *dir,
                      SettingValue *out) {
    if (d->type == SET_FILES) return set_files(s, f, d, value, dir, out);
    bool number = value->kind == A_NUM || value->kind == A_UNARY;
    if (d->type == SET_TEXT || (d->type == SET_EVAL && !number && value->kind != A_NONE))
        return set_text(s, f, d, value, dir, out);
    Value v = expr_const(f, value);
    if (v.kind == V_BAD) return false;
    if (d->type == SET_EVAL && v.kind == V_NONE) {
        out->s.num = 0;
        out->s.str = NULL;
        return true;
    }
    if (d->type == SET_BOOL) {
        if (v.kind != V_BOOL) return refuse_kind(f, d, value, &v, "on or off");
        out->s.num = v.num;
        return true;
    }
    bool word = v.kind == V_STR || v.kind == V_NONE;
    if (d->type == SET_WORD || (d->words && word)) return set_word(f, d, value, &v, out);
    return set_number(f, d, value, &v, out);
}

static void unknown_key(const Settings *s, Front *f, const char *path, Loc loc) {
    const char **names = NEW_ARRAY(f->arena, const char *, s->n);
    for (int i = 0; i < s->n; i++) names[i] = s->value[i].s.path;
    diag(f->diags, DIAG_ERROR, loc, "there is no setting '%s'", path);
    if (diag_elsewhere(f, loc, path, names, s->n)) return;
    const char *close = NULL, *dot = strrchr(path, '.'), *key = dot ? dot + 1 : path;
    for (int i = 0; !close && i < s->n; i++) /* right key, wrong block or none */
        if (!strcmp(strrchr(names[i], '.') + 1, key)) close = names[i];
    if (!close) close = closest_name(path, names, s->n);
    if (close)
        diag(f->diags, DIAG_HELP, loc, "did you mean '%s'?", close);
    else
        diag(f->diags, DIAG_HELP, loc, "`dpoc settings` lists those of data, run and graph");
}

bool settings_set(Settings *s, Front *f, const char *path, const Ast *value, Loc key,
                  const char *dir) {
    if (!value) return false; /* a syntax error stood here */
    if (value->kind == A_RECORD) {
        bool ok = true;
        for (const Ast *b = value->list; b; b = b->next)
            ok &= settings_set(s, f, arena_printf(f->arena, "%s.%s", path, b->text), b->a,
                               b->name_loc, dir);
        return ok;
    }
    SettingValue *v = settings_find(s, path);
    if (!v) {
        unknown_key(s, f, path, key);
        return false;
    }
    SettingDef param = {v->s.path, SET_NUM, 0, NULL, -1e300, 1e300, NULL, NULL};
    SettingValue set = *v;
    if (!set_value(s, f, v->def ? v->def : &param, value, dir, &set)) return false;
    set.given = true;
    set.loc = value->loc;
    *v = set;
    return true;
}

void settings_block(Settings *s, Front *f, const Ast *block, const char *dir) {
    const char *prefix = block->kind == A_DATA ? "data" : block->kind == A_RUN ? "run" : "graph";
    for (const Ast *b = block->list; b; b = b->next) {
        for (const Ast *other = block->list; other != b; other = other->next)
            if (other->text == b->text) {
                diag(f->diags, DIAG_ERROR, b->name_loc, "'%s' is set twice", b->text);
                diag(f->diags, DIAG_NOTE, other->name_loc, "first here");
            }
        settings_set(s, f, arena_printf(f->arena, "%s.%s", prefix, b->text), b->a, b->name_loc,
                     dir);
    }
}

/* ---- printing -------------------------------------------------------------------------------- */

static const char *const type_names[] = {
    [SET_INT] = "int",     [SET_NUM] = "number",
    [SET_BOOL] = "on|off", [SET_SIZE] = "size",
    [SET_WORD] = "word",   [SET_TEXT] = "text",
    [SET_FILES] = "files", [SET_EVAL] = "file|share|count",
};

static void default_text(char out[40], const SettingDef *d) {
    if (d->str)
        snprintf(out, 40, "%s", d->str);
    else if (d->type == SET_BOOL)
        snprintf(out, 40, "%s", d->num != 0 ? "on" : "off");
    else if (d->type == SET_SIZE)
        snprintf(out, 40, "auto");
    else if (d->type == SET_TEXT || d->type == SET_FILES || d->type == SET_EVAL)
        snprintf(out, 40, "none");
    else
        snprintf(out, 40, "%.10g", d->num);
}

static json_t *def_json(const SettingDef *d) {
    char text[40];
    default_text(text, d);
    json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "path", d->path, "type", type_names[d->type],
                          "default", text, "doc", d->doc);
    bool number = d->type == SET_INT || d->type == SET_NUM || d->type == SET_SIZE;
    if (number) json_object_set_new(o, "min", json_real(d->min));
    if (number) json_object_set_new(o, "max", json_real(d->max));
    if (d->words) json_object_set_new(o, "words", json_string(d->words));
    return o;
}

void settings_print(FILE *out, bool json) {
    if (json) {
        json_t *list = json_array();
        for (int i = 0; i < setting_count; i++)
            json_array_append_new(list, def_json(&setting_defs[i]));
        char *text = json_dumps(list, JSON_INDENT(1));
        fprintf(out, "%s\n", text);
        free(text);
        json_decref(list);
        return;
    }
    for (int i = 0; i < setting_count; i++) {
        const SettingDef *d = &setting_defs[i];
        char text[40];
        default_text(text, d);
        fprintf(out, "%-22s %-18s %-12s %s\n", d->path, type_names[d->type], text, d->doc);
        bool range = (d->type == SET_INT || d->type == SET_NUM) && (d->min != 0 || d->max < 1e12);
        if (d->words) fprintf(out, "%-22s %s\n", "", d->words);
        if (range) fprintf(out, "%-22s %.10g .. %.10g\n", "", d->min, d->max);
    }
}
