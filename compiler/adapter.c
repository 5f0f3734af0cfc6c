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
#include <math.h>
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
            Loc loc = arg->name_loc.file ? arg->name_loc : arg->loc;
            diag(spec->front.diags, DIAG_ERROR, loc, "argument of %s() '%s' is not known",
                 call->text, arg->text);
            if (!diag_elsewhere(&spec->front, loc, arg->text, names, n))
                diag_suggest(&spec->front, loc, arg->text, names, n);
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

/* A matrix that linear() multiplies with, or whose rows embed() takes. */
static bool adaptable(const Weight *w) {
    return w->linear || w->embedded;
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
    {"init", V_STR, 0, 0, false},        {"bias", V_STR, 0, 0, false},
};
static const char lora_inits[] = "kaiming gaussian pissa";

static bool lora_arguments(Spec *spec, const Ast *call, Record *out) {
    static const char *const methods[] = {"lora"};
    Diags *d = spec->front.diags;
    if (strcmp(call->text, "lora") != 0) {
        diag_unknown(&spec->front, call->name_loc, "kind of adapter", call->text, methods, 1);
        return false;
    }
    if (!adapter_arguments(spec, call, lora_keys, COUNT(lora_keys), out)) return false;
    const Value *init = record_get(out, "init"), *bias = record_get(out, "bias");
    if (bias && strcmp(bias->str, "none") != 0) {
        diag(d, DIAG_ERROR, call->loc,
             "bias = \"%s\" is not built: an adapter changes matrices only", bias->str);
        diag(d, DIAG_HELP, call->loc,
             "trained biases change the base itself, so the reference would need its own copy; "
             "leave `bias` out");
        return false;
    }
    if (!init || word_in(lora_inits, init->str)) return true;
    diag(d, DIAG_ERROR, call->loc, "init is \"kaiming\", \"gaussian\" or \"pissa\", not \"%s\"",
         init->str);
    return false;
}

/* What --set may change; an adapter's clauses share it once it is set.  `alpha` follows `rank`. */
static const SettingDef adapter_params[] = {
    {"rank", SET_INT, 8, NULL, 1, 65536, NULL, NULL},
    {"alpha", SET_NUM, 8, NULL, 0, 1e6, NULL, NULL},
    {"dropout", SET_NUM, 0, NULL, 0, 0.999, NULL, NULL},
    {"rslora", SET_BOOL, 0, NULL, 0, 1, NULL, NULL},
    {"dora", SET_BOOL, 0, NULL, 0, 1, NULL, NULL},
    {"shared_dropout", SET_BOOL, 0, NULL, 0, 1, NULL, NULL},
    {"init", SET_WORD, 0, "kaiming", 0, 0, lora_inits, NULL},
};

static void adapter_settings(Spec *spec, const char *name, const Record *args, Loc loc) {
    for (size_t i = 0; i < COUNT(adapter_params); i++) {
        SettingDef *def = NEW(spec->front.arena, SettingDef);
        *def = adapter_params[i];
        double otherwise = !strcmp(def->path, "alpha") ? num_of(args, "rank", def->num) : def->num;
        double x = num_of(args, def->path, otherwise);
        const Value *word = def->str ? record_get(args, def->path) : NULL;
        def->path = intern_printf("%s.%s", name, def->path);
        SettingValue *v =
            settings_add(spec->settings, def->path, x, word ? word->str : def->str, loc);
        v->def = def;
        v->given = false;
    }
}

static const char *load_path(const Spec *spec, const Ast *clause, const Module *home) {
    return adapter_dir(spec->front.arena, tidy_path(spec->front.arena, home->dir, clause->text),
                       NULL);
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

/* What a clause says, or what was --set for the whole adapter. */
static double param(const Spec *spec, const AdapterSpec *a, const Record *args, const char *name,
                    double otherwise) {
    const char *path = intern_printf("%s.%s", a->name, name);
    return spec_given(spec, path) ? spec_num(spec, path) : num_of(args, name, otherwise);
}

static const char *init_of(const Spec *spec, const AdapterSpec *a, const Record *args) {
    const char *path = intern_printf("%s.init", a->name);
    const Value *init = record_get(args, "init");
    if (spec_given(spec, path)) return spec_str(spec, path);
    return init ? init->str : "kaiming";
}

/* An embedding's rows are looked up: B A is transposed, and nothing is dropped of an index. */
static AdapterTarget target_at(const Base *base, const Weight *w, Loc loc) {
    bool rows = w->embedded && !w->linear;
    const Weight *root = w;
    while (root->tied) root = root->tied;
    return (AdapterTarget){.tensor = w->tensor,
                           .rows = w->shape[rows],
                           .cols = w->shape[!rows],
                           .embedding = rows,
                           .init = "kaiming",
                           .source = base->source,
                           .weight = intern_printf("%s.weight", root->tensor),
                           .loc = loc};
}

static AdapterTarget target_of(const Spec *spec, const AdapterSpec *a, const Ast *clause,
                               const Base *base, const Weight *w) {
    Record args = {0};
    lora_arguments((Spec *)spec, clause->a, &args);
    AdapterTarget t = target_at(base, w, clause->loc);
    double rank = param(spec, a, &args, "rank", 8);
    t.rank = (int64_t)rank;
    t.alpha = param(spec, a, &args, "alpha", rank);
    t.dropout = param(spec, a, &args, "dropout", 0);
    t.rslora = param(spec, a, &args, "rslora", 0) != 0;
    t.dora = param(spec, a, &args, "dora", 0) != 0;
    t.shared_dropout = param(spec, a, &args, "shared_dropout", 0) != 0;
    t.init = init_of(spec, a, &args);
    return t;
}

/* PEFT has one switch for all weights of an adapter. */
static void one_kind(Spec *spec, const AdapterSpec *a) {
    Diags *d = spec->front.diags;
    for (int i = 1; i < a->ntarget; i++) {
        const AdapterTarget *t = &a->target[i], *first = a->target;
        bool pissa = !strcmp(t->init, "pissa") != !strcmp(first->init, "pissa");
        if (t->dora == first->dora && !pissa) continue;
        diag(d, DIAG_ERROR, t->loc, "%s is the same for all clauses of an adapter",
             pissa ? "init = \"pissa\"" : "dora");
        diag(d, DIAG_HELP, t->loc, "make two adapters of them: policy = base + one + other");
        return;
    }
}

static void select_targets(Spec *spec, AdapterSpec *a, const Ast *statement, const Base *base) {
    bool *used = NEW_ARRAY(spec->front.arena, bool, 256);
    for (int i = 0; i < base->nweight; i++) {
        const Weight *w = base->weight[i];
        const Ast *last = NULL;
        int k = 0;
        for (const Ast *c = statement->list; c; c = c->next, k++) {
            if (!c->a || !adaptable(w) || !selects(c->b, w)) continue;
            last = c;
            if (k < 256) used[k] = true;
        }
        if (!last) continue;
        AdapterTarget t = target_of(spec, a, last, base, w);
        PUSH(spec->front.arena, a->target, a->ntarget, a->captarget, t);
    }
    int k = 0;
    for (const Ast *c = statement->list; c; c = c->next, k++)
        if (c->a && k < 256 && !used[k])
            nothing_matched(spec, c->b, base, "that linear() or embed() uses");
    one_kind(spec, a);
}

/* What its directory says: broken files, or settings that do not agree with them. */
static void adapter_error(Spec *spec, const AdapterSpec *a, const Err *err) {
    if (err->code == EXIT_IO)
        diag_file(spec->front.diags, a->loc, "%s", err->text);
    else
        diag(spec->front.diags, DIAG_ERROR, a->loc, "%s", err->text);
}

/* All that the directory changes is in this model. */
static void check_all_found(Spec *spec, const AdapterSpec *a, const Adapter *peft) {
    for (int i = 0; i < peft->ntargets; i++) {
        int k = 0;
        while (k < a->ntarget && strcmp(a->target[k].tensor, peft->targets[i]) != 0) k++;
        if (k < a->ntarget) continue;
        diag_file(spec->front.diags, a->loc, "%s changes %s, which this model does not have",
                  a->load, peft->targets[i]);
        return;
    }
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
        if (!adaptable(w)) continue;
        AdapterTarget t = target_at(base, w, a->loc);
        t.rank = adapter_rank(peft, w->tensor);
        t.alpha = adapter_alpha(peft, w->tensor);
        t.dropout = peft->dropout;
        t.rslora = peft->rslora;
        t.dora = peft->dora;
        AdapterMatrix m[3];
        adapter_matrices(&t, m);
        if (!checkpoint_find(c, intern_printf(ADAPTER_PREFIX "%s", m[0].tensor), NULL)) continue;
        PUSH(spec->front.arena, a->target, a->ntarget, a->captarget, t);
    }
    checkpoint_close(c);
    check_all_found(spec, a, peft);
}

/* What PiSSA trained is saved as a plain LoRA of twice the rank and the same scale: read back, it
 * is one. */
static void follow_pissa(Spec *spec, AdapterSpec *a) {
    Err err = {0};
    Adapter *peft = NULL;
    for (int i = 0; i < a->ntarget; i++) {
        AdapterTarget *t = &a->target[i];
        if (strcmp(t->init, "pissa") != 0) continue;
        if (!peft && !(peft = adapter_read(spec->front.arena, a->load, &err))) return;
        if (adapter_rank(peft, t->tensor) != 2 * t->rank) continue;
        t->rank *= 2;
        t->alpha *= t->rslora ? sqrt(2) : 2;
    }
}

const char *adapter_option_dir(const char *option) {
    const char *equal = strchr(option, '='), *slash = strchr(option, '/');
    return equal && (!slash || equal < slash) ? equal + 1 : option;
}

/* The directory an adapter starts from. */
static void option_adapter(Spec *spec, const char *option) {
    const char *dir = adapter_option_dir(option);
    const bool named = dir > option;
    const size_t length = named ? (size_t)(dir - option) - 1 : 0;
    AdapterSpec *only = NULL;
    int candidates = 0;
    for (int i = 0; i < spec->nadapters; i++) {
        AdapterSpec *a = &spec->adapters[i];
        bool fits = named ? strlen(a->name) == length && !strncmp(a->name, option, length)
                          : a->trained || spec->nadapters == 1;
        if (!fits) continue;
        only = a;
        candidates++;
    }
    if (candidates == 1) {
        only->load = adapter_dir(spec->front.arena, intern(dir), only->name);
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
    for (int i = 0; all && i < n; i++) {
        if (strcmp(all[i].name, a->name) != 0) continue;
        all[i].base = spec->policy.base ? spec->policy.base->dir : NULL;
        adapter_check(&all[i], a->load, &err);
    }
    if (err.code) adapter_error(spec, a, &err);
}

void adapters_options(Spec *spec) {
    for (int i = 0; i < spec->options.nadapter; i++) option_adapter(spec, spec->options.adapter[i]);
}

/* The settings say what the adapter came out as: `alpha` follows `rank`, a loaded one follows its
 * file. */
static void settings_follow(Spec *spec, const AdapterSpec *a) {
    const AdapterTarget *t = a->target;
    if (!a->ntarget) return;
    const double value[] = {(double)t->rank, t->alpha, t->dropout,
                            t->rslora,       t->dora,  t->shared_dropout};
    for (size_t i = 0; i < COUNT(adapter_params); i++) {
        const char *path = intern_printf("%s.%s", a->name, adapter_params[i].path);
        SettingValue *v = settings_find(spec->settings, path);
        if (!v) continue; /* an adapter that no statement names */
        if (i < COUNT(value))
            v->s.num = value[i];
        else
            v->s.str = t->init;
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
        if (selected && a->load) follow_pissa(spec, a);
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

/* Why singular vectors of this weight can't be an adapter's start; NULL: they can. */
static const char *unfit_for_pissa(const Base *base, const AdapterTarget *t) {
    int64_t least = t->rows < t->cols ? t->rows : t->cols;
    if (t->embedding) return "its rows are looked up";
    if (t->dora) return "dora counts on the weight as it is";
    if (base->trained) return "it is trained itself";
    if (t->rank > least) return "it has fewer rows or columns than the rank";
    for (int i = 0; i < base->nweight; i++) {
        const Weight *w = base->weight[i];
        const char *name = intern_printf("%s.weight", w->tensor);
        if (name == t->weight && w->format) return "it is quantized";
    }
    return NULL;
}

void adapters_start(Spec *spec, const Base *base) {
    for (int i = 0; i < spec->nadapters; i++) {
        const AdapterSpec *a = &spec->adapters[i];
        for (int k = 0; k < a->ntarget; k++) {
            const AdapterTarget *t = &a->target[k];
            const char *why = adapter_pissa(a, t) ? unfit_for_pissa(base, t) : NULL;
            if (!why) continue;
            diag(spec->front.diags, DIAG_ERROR, t->loc, "init = \"pissa\" can't start at %s: %s",
                 t->tensor, why);
            diag(spec->front.diags, DIAG_HELP, t->loc, "leave it out there, or leave `init` out");
            break;
        }
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

/* alpha as files have it: PEFT has one use_rslora for all of an adapter. */
static double file_alpha(const AdapterTarget *t, bool rslora) {
    return rslora == t->rslora ? t->alpha : adapter_scale(t) * (double)t->rank;
}

static json_t *adapter_json(const AdapterSpec *a, const Base *base) {
    const AdapterTarget *first = a->ntarget ? a->target : NULL;
    json_t *targets = json_array(), *ranks = json_object(), *alphas = json_object();
    json_t *embeddings = json_array();
    bool rslora = a->ntarget > 0;
    for (int i = 0; i < a->ntarget; i++) rslora &= a->target[i].rslora;
    double alpha = first ? file_alpha(first, rslora) : 1;
    for (int i = 0; i < a->ntarget; i++) {
        const AdapterTarget *t = &a->target[i];
        json_array_append_new(targets, json_string(t->tensor));
        if (t->embedding) json_array_append_new(embeddings, json_string(t->tensor));
        if (t->rank != first->rank) json_object_set_new(ranks, t->tensor, json_integer(t->rank));
        double other = file_alpha(t, rslora);
        if (other != alpha) json_object_set_new(alphas, t->tensor, json_real(other));
    }
    return json_pack("{s:s, s:I, s:f, s:f, s:b, s:s, s:o, s:o, s:b, s:b, s:o, s:o, s:b, s:o*}",
                     "name", a->name, "r", (json_int_t)(first ? first->rank : 1), "alpha", alpha,
                     "dropout", first ? first->dropout : 0.0, "rslora", rslora, "init",
                     first ? first->init : "kaiming", "targets", targets, "embeddings", embeddings,
                     "dora", first && first->dora, "pissa", first && adapter_pissa(a, first),
                     "rank_pattern", ranks, "alpha_pattern", alphas, "trained", a->trained, "short",
                     short_names(a, base));
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
