/* adapter.c: `adapter` and `quantize` statements: which weights they mean, with which numbers.
 *
 * Parameters become settings first (NAME.rank ..), so that --set reaches them; then clauses are
 * matched against the weights the layers declared, the last match wins.  An adapter that only loads
 * a directory takes its targets from the tensors there.  Relies on select.c and
 * runtime/io/adapter.h.
 */
#include "front.h"
#include "../runtime/io/adapter.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- arguments of lora(..), nf4(..) ---------------------------------------------------------- */

static const Key *key_find(const Key *keys, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (!strcmp(keys[i].name, name)) return &keys[i];
    return NULL;
}

static bool argument_fits(Spec *spec, const Ast *arg, const Key *key, const Value *v) {
    Diags *d = spec->front.diags;
    if (v->kind == V_BAD) return false;
    if (v->kind != key->kind) {
        const char *want = key->kind == V_NUM    ? "a number"
                           : key->kind == V_BOOL ? "true or false"
                                                 : "a word";
        diag(d, DIAG_ERROR, arg->loc, "%s must be %s, not %s", key->name, want, value_kind(v));
        return false;
    }
    if (key->kind != V_NUM) return true;
    if (!(v->num >= key->min && v->num <= key->max)) {
        diag(d, DIAG_ERROR, arg->loc, "%s is %.10g; it must lie between %.10g and %.10g", key->name,
             v->num, key->min, key->max);
        return false;
    }
    if (key->whole && v->num != (double)(int64_t)v->num) {
        diag(d, DIAG_ERROR, arg->loc, "%s must be a whole number, not %.10g", key->name, v->num);
        return false;
    }
    return true;
}

bool adapter_arguments(Spec *spec, const Ast *call, const Key *keys, int n, Record *out) {
    const char *names[16];
    for (int i = 0; i < n; i++) names[i] = keys[i].name;
    bool ok = true;
    for (const Ast *arg = call->list; arg; arg = arg->next) {
        if (!arg->text) {
            diag(spec->front.diags, DIAG_ERROR, arg->loc, "write %s(%s = ..)", call->text,
                 keys[0].name);
            return false;
        }
        const Key *key = key_find(keys, n, arg->text);
        if (!key) {
            diag_unknown(&spec->front, arg->name_loc.file ? arg->name_loc : arg->loc,
                         intern_printf("argument of %s()", call->text), arg->text, names, n);
            ok = false;
            continue;
        }
        Value v = expr_const(&spec->front, arg->a);
        if (record_get(out, key->name)) {
            diag(spec->front.diags, DIAG_ERROR, arg->loc, "%s is given twice", key->name);
            ok = false;
        }
        ok &= argument_fits(spec, arg, key, &v);
        record_set(spec->front.arena, out, key->name, v);
    }
    return ok;
}

static double num_of(const Record *r, const char *name, double otherwise) {
    const Value *v = record_get(r, name);
    return v ? v->num : otherwise;
}

/* ---- selectors ------------------------------------------------------------------------------- */

bool selector_ok(Spec *spec, const Ast *selector) {
    if (is_word(selector, "all_linear")) return true;
    if (selector->kind == A_STR) {
        const char *wrong = select_error(selector->text);
        if (wrong) diag(spec->front.diags, DIAG_ERROR, selector->loc, "%s", wrong);
        return !wrong;
    }
    const char *names[] = {"all_linear"};
    diag_unknown(&spec->front, selector->loc, "selector", selector->text, names, 1);
    diag(spec->front.diags, DIAG_HELP, selector->loc, "patterns are quoted: \"*.q_proj\"");
    return false;
}

bool selects(const Ast *selector, const Weight *w) {
    if (selector->kind == A_STR) return select_match(selector->text, w->tensor);
    return w->linear && !w->head && !w->embedded;
}

void nothing_matched(Spec *spec, const Ast *selector, const Base *base, const char *what) {
    Diags *d = spec->front.diags;
    const char *pattern = selector->text, *word = pattern + strlen(pattern);
    while (word > pattern && word[-1] != '.' && word[-1] != ']') word--;
    const char **last = NEW_ARRAY(spec->front.arena, const char *, base->nweight);
    int n = 0;
    const Weight *other = NULL;
    for (int i = 0; i < base->nweight; i++) {
        const Weight *w = base->weight[i];
        if (selects(selector, w)) other = w;
        const char *dot = strrchr(w->tensor, '.');
        last[n++] = dot ? dot + 1 : w->tensor;
    }
    diag(d, DIAG_ERROR, selector->loc, "\"%s\" matches no weight %s", pattern, what);
    if (other) {
        diag(d, DIAG_NOTE, other->loc, "it matches %s, which is no such weight", other->tensor);
        return;
    }
    const char *close = strpbrk(word, "*{[") ? NULL : closest_name(word, last, n);
    if (close && strcmp(close, word) != 0)
        diag(d, DIAG_HELP, selector->loc, "did you mean \"%.*s%s\"?", (int)(word - pattern),
             pattern, close);
    else if (base->nweight)
        diag(d, DIAG_HELP, selector->loc, "names look like %s",
             base->weight[base->nweight / 2]->tensor);
}

/* ---- adapter statements ---------------------------------------------------------------------- */

static const Key lora_keys[] = {
    {"rank", V_NUM, 1, 65536, true},     {"alpha", V_NUM, 0, 1e6, false},
    {"dropout", V_NUM, 0, 0.999, false}, {"shared_dropout", V_BOOL, 0, 1, false},
    {"rslora", V_BOOL, 0, 1, false},     {"dora", V_BOOL, 0, 1, false},
    {"init", V_STR, 0, 0, false},
};

static bool lora_arguments(Spec *spec, const Ast *call, Record *out) {
    static const char *const methods[] = {"lora"};
    if (strcmp(call->text, "lora") != 0) {
        diag_unknown(&spec->front, call->name_loc, "kind of adapter", call->text, methods, 1);
        return false;
    }
    if (!adapter_arguments(spec, call, lora_keys, COUNT(lora_keys), out)) return false;
    if (num_of(out, "dora", 0) != 0) {
        diag(spec->front.diags, DIAG_ERROR, call->loc, "dora is not built yet");
        return false;
    }
    const Value *init = record_get(out, "init");
    if (!init || !strcmp(init->str, "kaiming") || !strcmp(init->str, "gaussian")) return true;
    diag(spec->front.diags, DIAG_ERROR, call->loc,
         "init is \"kaiming\" or \"gaussian\", not \"%s\"", init->str);
    return false;
}

/* Numbers that --set may change; an adapter's clauses share them once they are set. */
static const char *const adapter_params[] = {"rank", "alpha", "dropout"};

static void adapter_settings(Spec *spec, const char *name, const Record *args, Loc loc) {
    for (size_t i = 0; i < COUNT(adapter_params); i++) {
        const char *p = adapter_params[i];
        double x = num_of(args, p, !strcmp(p, "rank") ? 8 : 0);
        if (!strcmp(p, "alpha")) x = num_of(args, p, num_of(args, "rank", 8));
        settings_add(spec->settings, intern_printf("%s.%s", name, p), x, NULL, loc)->given = false;
    }
}

static const char *load_path(const Spec *spec, const Ast *clause, const Module *home) {
    return tidy_path(spec->front.arena, home->dir, clause->text);
}

void adapters_declare(Spec *spec) {
    static const char *const reserved[] = {"run",    "data",      "graph", "base",
                                           "policy", "reference", "none"};
    for (int i = 0; i < spec->nstatement; i++) {
        const Ast *s = spec->statement[i];
        if (s->kind != A_ADAPTER) continue;
        for (size_t k = 0; k < COUNT(reserved); k++)
            if (!strcmp(s->text, reserved[k]))
                diag(spec->front.diags, DIAG_ERROR, s->name_loc, "an adapter can't be called '%s'",
                     s->text);
        AdapterSpec a = {.name = s->text, .loc = s->name_loc};
        Record first = {0};
        bool any = false;
        for (const Ast *c = s->list; c; c = c->next) {
            Record args = {0};
            if (!c->a) a.load = load_path(spec, c, spec->home[i]);
            if (!c->a || !lora_arguments(spec, c->a, &args) || !selector_ok(spec, c->b)) continue;
            if (!any) first = args;
            any = true;
        }
        adapter_settings(spec, s->text, &first, s->loc);
        PUSH(spec->front.arena, spec->adapters, spec->nadapters, spec->capadapters, a);
    }
}

static const Ast *adapter_statement(const Spec *spec, const char *name) {
    for (int i = 0; i < spec->nstatement; i++)
        if (spec->statement[i]->kind == A_ADAPTER && spec->statement[i]->text == name)
            return spec->statement[i];
    return NULL;
}

/* A clause's number, or the one that was --set for the whole adapter. */
static double param(const Spec *spec, const AdapterSpec *a, const Record *args, const char *name,
                    double otherwise) {
    const char *path = intern_printf("%s.%s", a->name, name);
    return spec_given(spec, path) ? spec_num(spec, path) : num_of(args, name, otherwise);
}

static AdapterTarget target_of(const Spec *spec, const AdapterSpec *a, const Ast *clause,
                               const Weight *w) {
    Record args = {0};
    lora_arguments((Spec *)spec, clause->a, &args);
    double rank = param(spec, a, &args, "rank", 8);
    const Value *init = record_get(&args, "init");
    return (AdapterTarget){.tensor = w->tensor,
                           .rows = w->shape[0],
                           .cols = w->shape[1],
                           .rank = (int64_t)rank,
                           .alpha = param(spec, a, &args, "alpha", rank),
                           .dropout = param(spec, a, &args, "dropout", 0),
                           .rslora = param(spec, a, &args, "rslora", 0) != 0,
                           .shared_dropout = param(spec, a, &args, "shared_dropout", 0) != 0,
                           .init = init ? init->str : "kaiming",
                           .init_num = 0.02,
                           .loc = clause->loc};
}

static void params_in_range(Spec *spec, const AdapterSpec *a) {
    for (size_t i = 0; i < COUNT(lora_keys); i++) {
        const Key *k = &lora_keys[i];
        const char *path = intern_printf("%s.%s", a->name, k->name);
        if (!spec_given(spec, path)) continue;
        double x = spec_num(spec, path);
        if (x >= k->min && x <= k->max && (!k->whole || x == (double)(int64_t)x)) continue;
        diag(spec->front.diags, DIAG_ERROR, spec_loc(spec, path),
             "%s is %.10g; it must be %s between %.10g and %.10g", path, x,
             k->whole ? "a whole number" : "a number", k->min, k->max);
    }
}

void adapters_range(Spec *spec) {
    for (int i = 0; i < spec->nadapters; i++) params_in_range(spec, &spec->adapters[i]);
}

static void select_targets(Spec *spec, AdapterSpec *a, const Ast *statement, const Base *base) {
    bool *used = NEW_ARRAY(spec->front.arena, bool, 256);
    for (int i = 0; i < base->nweight; i++) {
        const Weight *w = base->weight[i];
        const Ast *last = NULL;
        int k = 0;
        for (const Ast *c = statement->list; c; c = c->next, k++) {
            if (!c->a || !w->linear || !selects(c->b, w)) continue;
            last = c;
            if (k < 256) used[k] = true;
        }
        if (!last) continue;
        AdapterTarget t = target_of(spec, a, last, w);
        PUSH(spec->front.arena, a->target, a->ntarget, a->captarget, t);
    }
    int k = 0;
    for (const Ast *c = statement->list; c; c = c->next, k++)
        if (c->a && k < 256 && !used[k]) nothing_matched(spec, c->b, base, "that linear() uses");
}

/* What its directory says: broken files, or settings that do not agree with them. */
static void adapter_error(Spec *spec, const AdapterSpec *a, const Err *err) {
    if (err->code == EXIT_IO)
        diag_file(spec->front.diags, a->loc, "%s", err->text);
    else
        diag(spec->front.diags, DIAG_ERROR, a->loc, "%s", err->text);
}

/* Targets of an adapter that is all in its directory. */
static void loaded_targets(Spec *spec, AdapterSpec *a, const Base *base) {
    Err err = {0};
    Adapter *peft = adapter_read(spec->front.arena, a->load, &err);
    Checkpoint *c = peft ? checkpoint_open(a->load, "adapter_model", &err) : NULL;
    if (!c) {
        adapter_error(spec, a, &err);
        return;
    }
    for (int i = 0; i < base->nweight; i++) {
        const Weight *w = base->weight[i];
        if (!w->linear ||
            !checkpoint_find(c, intern_printf(ADAPTER_PREFIX "%s.lora_A.weight", w->tensor), NULL))
            continue;
        AdapterTarget t = {.tensor = w->tensor,
                           .rows = w->shape[0],
                           .cols = w->shape[1],
                           .rank = adapter_rank(peft, w->tensor),
                           .alpha = adapter_alpha(peft, w->tensor),
                           .dropout = peft->dropout,
                           .rslora = peft->rslora,
                           .init = "kaiming",
                           .loc = a->loc};
        PUSH(spec->front.arena, a->target, a->ntarget, a->captarget, t);
    }
    checkpoint_close(c);
    if (!a->ntarget)
        diag_file(spec->front.diags, a->loc, "%s adapts no weight of this model", a->load);
}

/* --adapter [NAME=]DIR: the directory an adapter starts from. */
static void option_adapter(Spec *spec, const char *option) {
    const char *equal = strchr(option, '='), *slash = strchr(option, '/');
    bool named = equal && (!slash || equal < slash);
    const char *dir = intern(named ? equal + 1 : option);
    AdapterSpec *only = NULL;
    int candidates = 0;
    for (int i = 0; i < spec->nadapters; i++) {
        AdapterSpec *a = &spec->adapters[i];
        bool fits = named ? strlen(a->name) == (size_t)(equal - option) &&
                                !strncmp(a->name, option, (size_t)(equal - option))
                          : a->trained || spec->nadapters == 1;
        if (!fits) continue;
        only = a;
        candidates++;
    }
    if (candidates == 1) {
        only->load = dir;
        return;
    }
    Diags *d = spec->front.diags;
    if (named)
        diag(d, DIAG_ERROR, (Loc){0}, "--adapter %s: no adapter of that name is in the file",
             option);
    else
        diag(d, DIAG_ERROR, (Loc){0},
             "--adapter %s: %d adapters could be meant; write --adapter NAME=DIR", option,
             candidates);
}

/* The directory's rank, alpha, targets and shapes agree with ours. */
static void check_loaded(Spec *spec, const AdapterSpec *a) {
    Err err = {0};
    int n = 0;
    Adapter *all = adapters_parse(spec->front.arena, adapters_json(spec), &n, &err);
    for (int i = 0; all && i < n; i++)
        if (!strcmp(all[i].name, a->name)) adapter_check(&all[i], a->load, &err);
    if (err.code) adapter_error(spec, a, &err);
}

void adapters_options(Spec *spec) {
    for (int i = 0; i < spec->options.nadapter; i++) option_adapter(spec, spec->options.adapter[i]);
}

/* The settings say what the adapter came out as: `alpha` follows `rank`, a loaded one follows its
 * file. */
static void settings_follow(Spec *spec, const AdapterSpec *a) {
    if (!a->ntarget) return;
    const double value[] = {(double)a->target->rank, a->target->alpha, a->target->dropout};
    for (size_t i = 0; i < COUNT(adapter_params); i++) {
        SettingValue *v =
            settings_find(spec->settings, intern_printf("%s.%s", a->name, adapter_params[i]));
        if (v) v->s.num = value[i];
    }
}

void adapters_resolve(Spec *spec, const Base *base) {
    for (int i = 0; i < spec->nadapters; i++) {
        AdapterSpec *a = &spec->adapters[i];
        const Ast *s = adapter_statement(spec, a->name);
        bool selected = false;
        for (const Ast *c = s ? s->list : NULL; c; c = c->next) selected |= c->a != NULL;
        if (selected)
            select_targets(spec, a, s, base);
        else
            loaded_targets(spec, a, base);
        settings_follow(spec, a);
        for (int k = 0; k < a->ntarget && selected; k++)
            if (a->target[k].rank > a->target[k].rows && a->target[k].rank > a->target[k].cols) {
                diag_warn(spec->front.diags, "rank", a->target[k].loc,
                          "rank %lld is more than %s [%lld,%lld] has", (long long)a->target[k].rank,
                          a->target[k].tensor, (long long)a->target[k].rows,
                          (long long)a->target[k].cols);
                break;
            }
        if (selected && a->load && diags_errors(spec->front.diags) == 0) check_loaded(spec, a);
    }
}

/* ---- adapters as JSON: io/adapter.h ---------------------------------------------------------- */

static const char *last_name(const char *module) {
    const char *dot = strrchr(module, '.');
    return dot ? dot + 1 : module;
}

/* Last names that select just the adapted modules, as PEFT's target_modules does; NULL when a
 * module that is not adapted has one of them. */
static json_t *short_names(const AdapterSpec *a, const Base *base) {
    json_t *names = json_object(), *list = json_array(), *targets = json_object();
    const char *name;
    json_t *value;
    for (int i = 0; i < a->ntarget; i++) {
        json_object_set_new(names, last_name(a->target[i].tensor), json_true());
        json_object_set_new(targets, a->target[i].tensor, json_true());
    }
    bool exact = base != NULL;
    for (int i = 0; exact && i < base->nweight; i++) {
        const char *module = base->weight[i]->tensor;
        exact = !json_object_get(names, last_name(module)) || json_object_get(targets, module);
    }
    json_object_foreach(names, name, value) json_array_append_new(list, json_string(name));
    json_decref(names);
    json_decref(targets);
    if (exact) return list;
    json_decref(list);
    return NULL;
}

static json_t *adapter_json(const AdapterSpec *a, const Base *base) {
    const AdapterTarget *first = a->ntarget ? a->target : NULL;
    json_t *targets = json_array(), *ranks = json_object(), *alphas = json_object();
    for (int i = 0; i < a->ntarget; i++) {
        const AdapterTarget *t = &a->target[i];
        json_array_append_new(targets, json_string(t->tensor));
        if (t->rank != first->rank) json_object_set_new(ranks, t->tensor, json_integer(t->rank));
        if (t->alpha != first->alpha) json_object_set_new(alphas, t->tensor, json_real(t->alpha));
    }
    return json_pack("{s:s, s:I, s:f, s:f, s:b, s:s, s:o, s:o, s:o, s:b, s:o*}", "name", a->name,
                     "r", (json_int_t)(first ? first->rank : 1), "alpha",
                     first ? first->alpha : 1.0, "dropout", first ? first->dropout : 0.0, "rslora",
                     first && first->rslora, "init", first ? first->init : "kaiming", "targets",
                     targets, "rank_pattern", ranks, "alpha_pattern", alphas, "trained", a->trained,
                     "short", short_names(a, base));
}

char *adapters_json(const Spec *spec) {
    json_t *list = json_array();
    for (int i = 0; i < spec->nadapters; i++)
        json_array_append_new(list, adapter_json(&spec->adapters[i], spec->policy.base));
    char *text = json_dumps(list, JSON_COMPACT);
    char *kept = arena_str(spec->front.arena, text);
    free(text);
    json_decref(list);
    return kept;
}
