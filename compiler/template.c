/* template.c: `template NAME { .. }`: its keys become the pieces of a TemplateDef (template.h).
 *
 * What a piece may say is the runtime's business (template_check); here its complaints get a place
 * in the source.  Relies on check.c's statements.
 */
#include "template.h"

#include "front.h"

#include <string.h>

static const struct {
    const char *key;
    size_t offset;
} keys[] = {
#define KEY(name)                                                                                  \
    { #name, offsetof(TemplateDef, name) }
    KEY(begin),   KEY(system), KEY(user),       KEY(assistant),      KEY(tool),       KEY(message),
    KEY(between), KEY(end),    KEY(generation), KEY(default_system), KEY(fold_system)
#undef KEY
};

static const Ast *value_of(const Ast *template, const char *key) {
    for (const Ast *b = template->list; b; b = b->next)
        if (!strcmp(b->text, key)) return b->a;
    return NULL;
}

/* ---- pieces: strings, joined by + ------------------------------------------------------------ */

static bool is_sum(const Ast *a) {
    return a->kind == A_BINARY && a->op == intern("+");
}

static bool add_text(Front *f, const Ast *a, Text *out) {
    if (!a) return false;
    if (is_sum(a)) return add_text(f, a->a, out) && add_text(f, a->b, out);
    if (a->kind == A_STR) {
        text_add(out, "%s", a->text);
        return true;
    }
    diag(f->diags, DIAG_ERROR, a->loc,
         "a piece of a template is text in quotes, or several with +");
    return false;
}

/* The string literal in which byte *at of the piece lies; *at becomes its place there. */
static const Ast *literal_at(const Ast *a, size_t *at) {
    if (!is_sum(a)) return a;
    const Ast *left = literal_at(a->a, at);
    return left->kind == A_STR && *at < strlen(left->text)
               ? left
               : (*at -= strlen(left->text), literal_at(a->b, at));
}

/* Bytes [at, at + len) of a literal's value, in the source: an escape is two bytes there. */
static Loc place_in(const Front *f, const Ast *literal, size_t at, size_t len) {
    size_t size;
    const char *text = source_text(f->diags, literal->loc.file, &size);
    uint32_t from = literal->loc.begin + 1;
    Loc loc = {literal->loc.file, from, from};
    for (size_t i = 0; i < at + len && loc.end + 1 < literal->loc.end; i++) {
        if (i == at) loc.begin = loc.end;
        loc.end += text[loc.end] == '\\' ? 2 : 1;
    }
    return loc;
}

/* ---- definitions ----------------------------------------------------------------------------- */

static void set_key(Spec *spec, const Ast *b, TemplateDef *def) {
    Front *f = &spec->front;
    const char *names[COUNT(keys)];
    for (size_t i = 0; i < COUNT(keys); i++) {
        names[i] = keys[i].key;
        if (strcmp(b->text, keys[i].key) != 0) continue;
        Text text = {0};
        if (keys[i].offset == offsetof(TemplateDef, fold_system)) {
            Value v = expr_const(f, b->a);
            if (v.kind != V_BOOL && v.kind != V_BAD)
                diag(f->diags, DIAG_ERROR, b->a->loc, "fold_system is on or off");
            def->fold_system = v.kind == V_BOOL && v.num != 0;
        } else if (add_text(f, b->a, &text)) {
            *(const char **)((char *)def + keys[i].offset) = intern(text.data ? text.data : "");
        }
        text_free(&text);
        return;
    }
    diag_unknown(f, b->name_loc, "key of a template", b->text, names, COUNT(keys));
}

static TemplateDef definition(Spec *spec, const Ast *template) {
    TemplateDef def = {.name = template->text};
    for (const Ast *b = template->list; b; b = b->next) {
        if (b->a) set_key(spec, b, &def);
        for (const Ast *other = template->list; other != b; other = other->next)
            if (other->text == b->text) {
                diag(spec->front.diags, DIAG_ERROR, b->name_loc, "'%s' is set twice", b->text);
                diag(spec->front.diags, DIAG_NOTE, other->name_loc, "first here");
            }
    }
    return def;
}

typedef struct Faults {
    Spec *spec;
    const Ast *template;
    const Tokenizer *tokenizer;
} Faults;

static void say(void *self, const char *key, size_t at, size_t len, const char *text) {
    const Faults *c = self;
    Front *f = &c->spec->front;
    const Ast *value = value_of(c->template, key);
    Loc loc = c->template->name_loc;
    bool whole = value && (len == 0 || value->kind != A_STR);
    if (value) loc = value->loc;
    const char *word = NULL;
    if (value && len && (is_sum(value) || value->kind == A_STR)) {
        size_t from = at;
        const Ast *literal = literal_at(value, &from);
        whole = literal == value && from == 0 && len == strlen(literal->text);
        if (!whole) {
            loc = place_in(f, literal, from, len);
            word = strlen(literal->text) >= from + len ? intern_n(literal->text + from, len) : NULL;
        }
    }
    diag(f->diags, DIAG_ERROR, loc, "%s", text);
    const char *names[512];
    int n = word && c->tokenizer ? tokenizer_added_names(c->tokenizer, names, COUNT(names)) : 0;
    const char *close = n ? closest_name(word, names, n) : NULL;
    if (close && strcmp(close, word) != 0)
        diag(f->diags, DIAG_HELP, loc, "did you mean `{%s}`?", close);
}

void templates_check(Spec *spec) {
    Front *f = &spec->front;
    const char *name = spec_str(spec, "data.template"), *names[64] = {"auto", "none"};
    int n = 2;
    bool found = template_builtin(name) || !strcmp(name, "auto") || !strcmp(name, "none");
    for (int i = 0; template_names[i]; i++) names[n++] = template_names[i];
    for (int i = 0; i < spec->nstatement; i++) {
        const Ast *s = spec->statement[i];
        if (s->kind != A_TEMPLATE) continue;
        found |= !strcmp(s->text, name);
        if (n < (int)COUNT(names)) names[n++] = s->text;
        if (template_builtin(s->text) || !strcmp(s->text, "auto") || !strcmp(s->text, "none"))
            diag(f->diags, DIAG_ERROR, s->name_loc,
                 "'%s' is the name of a built-in template: choose another", s->text);
        int errors = diags_errors(f->diags);
        TemplateDef def = definition(spec, s);
        Faults faults = {spec, s, NULL};
        if (diags_errors(f->diags) == errors) template_check(&def, NULL, say, &faults);
    }
    if (found) return;
    Loc loc = spec_loc(spec, "data.template");
    diag(f->diags, DIAG_ERROR, loc, "there is no template '%s'; known are auto, none, %s", name,
         template_choices);
    const char *close = closest_name(name, names, n);
    if (close) diag(f->diags, DIAG_HELP, loc, "did you mean \"%s\"?", close);
}

bool spec_template(Spec *spec, const Tokenizer *tokenizer, const TemplateDef **out) {
    const char *name = spec_str(spec, "data.template");
    *out = NULL;
    for (int i = 0; i < spec->nstatement; i++) {
        const Ast *s = spec->statement[i];
        if (s->kind != A_TEMPLATE || strcmp(s->text, name) != 0) continue;
        int errors = diags_errors(spec->front.diags);
        TemplateDef *def = NEW(spec->front.arena, TemplateDef);
        *def = definition(spec, s);
        Faults faults = {spec, s, tokenizer};
        if (tokenizer) template_check(def, tokenizer, say, &faults);
        *out = def;
        return diags_errors(spec->front.diags) == errors;
    }
    return true;
}
