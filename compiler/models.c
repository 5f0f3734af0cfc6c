/* models.c: what `base`, `policy` and `reference` are: a model over a checkpoint, plus adapters.
 *
 * One Base per (model, directory); policy's is source "base".  `auto` is the model whose `for` is
 * the checkpoint's model_type, from used files, then from the built-in ones.  Relies on config.c,
 * layer.c and runtime/io/checkpoint.h.
 */
#include "front.h"
#include "../runtime/io/packed.h"

#include <string.h>
#include <unistd.h>

static Value error_at(Spec *spec, Loc loc, const char *format, ...) PRINTF(3, 4);
static Value error_at(Spec *spec, Loc loc, const char *format, ...) {
    va_list args;
    va_start(args, format);
    diag(spec->front.diags, DIAG_ERROR, loc, "%s", arena_vprintf(spec->front.arena, format, args));
    va_end(args);
    return value_bad();
}

/* The same about the checkpoint rather than the description. */
static bool file_error(Spec *spec, Loc loc, const char *format, ...) PRINTF(3, 4);
static bool file_error(Spec *spec, Loc loc, const char *format, ...) {
    va_list args;
    va_start(args, format);
    diag_file(spec->front.diags, loc, "%s", arena_vprintf(spec->front.arena, format, args));
    va_end(args);
    return false;
}

/* ---- finding the model ----------------------------------------------------------------------- */

static Ast *model_for(Module *m, const char *type) {
    for (Ast *s = m->ast->list; s; s = s->next)
        if (s->kind == A_MODEL && s->text2 && !strcmp(s->text2, type)) return s;
    return NULL;
}

/* The built-in file that describes a model_type; NULL. */
static Module *builtin_for(Front *f, const char *type, Ast **model) {
    for (int i = 0; i < embedded_count(); i++) {
        const char *name = embedded_name(i);
        if (strncmp(name, "models/", 7) != 0 || strchr(name + 7, '/')) continue;
        Module *m = module_load(f, name, NULL, (Loc){0});
        *model = m ? model_for(m, type) : NULL;
        if (*model) return m;
    }
    return NULL;
}

/* Sets b->module and b->model by config.json's model_type. */
static bool find_auto(Spec *spec, Base *b) {
    Front *f = &spec->front;
    const Value *type = record_get(b->config, "model_type");
    if (!type || type->kind != V_STR)
        return file_error(spec, b->loc, "config.json of %s has no model_type: name the model",
                          b->dir);
    int n = f->nmodules;
    for (int i = 0; i < n && !b->model; i++) {
        b->model = model_for(f->modules[i], type->str);
        b->module = f->modules[i];
    }
    if (!b->model) b->module = builtin_for(f, type->str, &b->model);
    if (b->model) return true;
    error_at(spec, b->loc, "no model is `for \"%s\"`, the checkpoint's model_type", type->str);
    diag(f->diags, DIAG_HELP, b->loc,
         "describe it in a file and `use` it; dpoc's llama3.dpo shows how");
    return false;
}

static int bind_find(const Spec *spec, const char *name) {
    for (int i = 0; i < spec->nstatement; i++)
        if (spec->statement[i]->kind == A_BIND && !strcmp(spec->statement[i]->text, name)) return i;
    return -1;
}

/* The built-in file that describes a model of this name, or NULL. */
static const char *builtin_named(Front *f, const char *name) {
    for (int i = 0; i < embedded_count(); i++) {
        const char *file = embedded_name(i);
        if (strncmp(file, "models/", 7) != 0 || strchr(file + 7, '/')) continue;
        Module *m = module_load(f, file, NULL, (Loc){0});
        for (const Ast *s = m ? m->ast->list : NULL; s; s = s->next)
            if (s->kind == A_MODEL && !strcmp(s->text, name)) return file + 7;
    }
    return NULL;
}

static bool unknown_value(Spec *spec, const Ast *ast) {
    const char *names[128], *file = builtin_named(&spec->front, ast->text);
    int n = 0;
    if (file) {
        error_at(spec, ast->loc, "model '%s' is not known here", ast->text);
        diag(spec->front.diags, DIAG_HELP, ast->loc, "write `use \"%s\"`", file);
        return false;
    }
    names[n++] = "auto";
    for (int i = 0; i < spec->nstatement && n < 60; i++)
        if (spec->statement[i]->kind == A_BIND) names[n++] = spec->statement[i]->text;
    for (int i = 0; i < spec->nadapters && n < 100; i++) names[n++] = spec->adapters[i].name;
    if (spec->module) n += module_names(&spec->front, spec->module, A_MODEL, names + n, 20);
    diag_unknown(&spec->front, ast->loc, "model or adapter", ast->text, names, n);
    return false;
}

static bool find_named(Spec *spec, Base *b, const Ast *name, Module *home) {
    b->model = module_find(&spec->front, home, A_MODEL, name->text, &b->module);
    return b->model || unknown_value(spec, name);
}

/* The base of a model word (`auto`, a model's name) over a directory (NULL: none named). */
static Base *base_get(Spec *spec, const Ast *name, const char *dir, Module *home) {
    Front *f = &spec->front;
    Base *b = NEW(f->arena, Base);
    b->dir = dir;
    b->loc = name->loc;
    bool option = dir && spec->options.model && !strcmp(dir, spec->options.model);
    if (dir) b->config = config_read(f, dir, option ? (Loc){0} : name->loc);
    if (dir && !b->config) return NULL;
    bool is_auto = is_word(name, "auto");
    if (is_auto && dir && !find_auto(spec, b)) return NULL;
    if (!is_auto && !find_named(spec, b, name, home)) return NULL;
    for (int i = 0; i < spec->nbases; i++) {
        Base *other = spec->bases[i];
        bool same_dir = dir && other->dir ? !strcmp(dir, other->dir) : dir == other->dir;
        if (same_dir && other->model == b->model) return other;
    }
    b->source = spec->nbases ? intern_printf("base:%s", dir ? dir : name->text) : "base";
    b->source = intern(b->source);
    PUSH(f->arena, spec->bases, spec->nbases, spec->capbases, b);
    return b;
}

/* ---- sums ------------------------------------------------------------------------------------ */

static int adapter_find(const Spec *spec, const char *name) {
    for (int i = 0; i < spec->nadapters; i++)
        if (!strcmp(spec->adapters[i].name, name)) return i;
    return -1;
}

/* A model value under evaluation; `main`: the bind whose checkpoint --model replaces. */
typedef struct Sum {
    Spec *spec;
    Module *home;
    bool main;
    int depth;
} Sum;

static bool sum_of(Sum s, const Ast *ast, ModelSum *out);

static bool sum_name(Sum s, const Ast *ast, ModelSum *out) {
    Spec *spec = s.spec;
    int bind = bind_find(spec, ast->text);
    if (bind >= 0) {
        if (s.depth > 32) {
            error_at(spec, ast->loc, "%s is made of itself", ast->text);
            return false;
        }
        Sum inner = {spec, spec->home[bind], !strcmp(ast->text, "base"), s.depth + 1};
        return sum_of(inner, spec->statement[bind]->a, out);
    }
    int adapter = adapter_find(spec, ast->text);
    if (adapter >= 0) {
        AdapterUse use = {adapter, false};
        PUSH(spec->front.arena, out->use, out->nuse, out->capuse, use);
        return true;
    }
    Module *home;
    bool model =
        is_word(ast, "auto") || module_find(&spec->front, s.home, A_MODEL, ast->text, &home);
    if (!model) return unknown_value(spec, ast);
    out->base =
        base_get(spec, ast, spec->options.model ? intern(spec->options.model) : NULL, s.home);
    return out->base != NULL;
}

static bool sum_from(Sum s, const Ast *ast, ModelSum *out) {
    Spec *spec = s.spec;
    const char *dir = tidy_path(spec->front.arena, s.home->dir, ast->text);
    bool given = s.main && spec->options.model;
    if (given) dir = spec->options.model;
    if (!given && !spec->options.needs_model && access(dir, F_OK) != 0) {
        diag_warn(spec->front.diags, "model", ast->loc,
                  "there is no %s here: nothing is checked against it", dir);
        dir = NULL;
    }
    out->base = base_get(spec, ast->a, intern(dir), s.home);
    return out->base != NULL;
}

static bool sum_plus(Sum s, const Ast *ast, ModelSum *out) {
    Spec *spec = s.spec;
    ModelSum right = {0};
    if (!sum_of(s, ast->a, out) || !sum_of(s, ast->b, &right)) return false;
    if (right.base || !right.nuse) {
        error_at(spec, ast->b->loc, "only adapters can be added to a model");
        return false;
    }
    for (int i = 0; i < right.nuse; i++) {
        for (int k = 0; k < out->nuse; k++)
            if (out->use[k].adapter == right.use[i].adapter) {
                error_at(spec, ast->b->loc, "%s is added twice",
                         spec->adapters[right.use[i].adapter].name);
                return false;
            }
        PUSH(spec->front.arena, out->use, out->nuse, out->capuse, right.use[i]);
    }
    return true;
}

static bool sum_of(Sum s, const Ast *ast, ModelSum *out) {
    if (!ast) return false;
    switch (ast->kind) {
    case A_NONE:
        return true;
    case A_NAME:
        return sum_name(s, ast, out);
    case A_FROM:
        return sum_from(s, ast, out);
    case A_BINARY:
        if (!strcmp(ast->op, "+")) return sum_plus(s, ast, out);
        break;
    case A_AT_START:
        if (!sum_of(s, ast->a, out)) return false;
        out->start = true;
        for (int i = 0; i < out->nuse; i++) out->use[i].start = true;
        return true;
    default:
        break;
    }
    error_at(s.spec, ast->loc,
             "a model is base, base + adapter, policy at start, NAME from \"DIR\", or none");
    return false;
}

bool model_value(Spec *spec, const char *name, Loc loc, ModelSum *out) {
    Ast word = {.kind = A_NAME, .text = intern(name), .loc = loc, .name_loc = loc};
    out->loc = loc;
    return sum_name((Sum){spec, spec->module, false, 0}, &word, out);
}

/* ---- policy, reference, what is trained ------------------------------------------------------ */

static bool uses(const ModelSum *sum, int adapter) {
    for (int i = 0; i < sum->nuse; i++)
        if (sum->use[i].adapter == adapter) return true;
    return false;
}

static void train_name(Spec *spec, const Ast *name) {
    int adapter = adapter_find(spec, name->text);
    if (adapter >= 0) {
        spec->adapters[adapter].trained = true;
        if (!uses(&spec->policy, adapter))
            error_at(spec, name->loc, "%s is trained, but no part of the policy", name->text);
        return;
    }
    ModelSum sum = {0};
    if (bind_find(spec, name->text) < 0) {
        unknown_value(spec, name);
        return;
    }
    if (!model_value(spec, name->text, name->loc, &sum)) return;
    if (!sum.base || sum.nuse || sum.start) {
        error_at(spec, name->loc, "train names adapters, or `base` for full fine-tuning");
        return;
    }
    if (sum.base == spec->policy.base)
        sum.base->trained = true;
    else
        error_at(spec, name->loc, "%s is trained, but no part of the policy", name->text);
}

static void resolve_train(Spec *spec) {
    bool any = false;
    for (int i = 0; i < spec->nstatement; i++)
        if (spec->statement[i]->kind == A_TRAIN)
            for (const Ast *n = spec->statement[i]->list; n; n = n->next) {
                train_name(spec, n);
                any = true;
            }
    adapters_options(spec);
    for (int i = 0; i < spec->nadapters; i++) {
        const AdapterSpec *a = &spec->adapters[i];
        if (a->trained || a->load || !(uses(&spec->policy, i) || uses(&spec->reference, i)))
            continue;
        error_at(spec, a->loc, "adapter %s is neither trained nor loaded: it adds nothing",
                 a->name);
        diag(spec->front.diags, DIAG_HELP, a->loc, "add `train %s`, or `load \"DIR\"`", a->name);
    }
    if (!any && spec->objective)
        diag_warn(spec->front.diags, "train", spec->objective->name_loc,
                  "nothing is trained: there is no `train`");
}

/* The reference must stand still while the policy moves. */
static void check_reference(Spec *spec) {
    const ModelSum *r = &spec->reference;
    for (int i = 0; i < r->nuse; i++) {
        const AdapterSpec *a = &spec->adapters[r->use[i].adapter];
        if (!a->trained || r->use[i].start) continue;
        error_at(spec, r->loc, "the reference would move: %s is trained", a->name);
        diag(spec->front.diags, DIAG_HELP, r->loc, "write `reference = policy at start`");
    }
    if (r->base && r->base->trained && !r->start) {
        error_at(spec, r->loc, "the reference would move: its base is trained");
        diag(spec->front.diags, DIAG_HELP, r->loc, "write `reference = policy at start`");
    }
    for (int i = 0; r->base && spec->options.trains && i < spec->policy.nuse; i++) {
        int k = spec->policy.use[i].adapter;
        const AdapterSpec *a = &spec->adapters[k];
        if (!a->trained || !a->load || uses(r, k)) continue;
        diag_warn(
            spec->front.diags, "reference", a->loc,
            "%s continues from %s, but the reference omits it; `policy at start` would keep it",
            a->name, a->load);
    }
}

static bool adds_nothing(const AdapterSpec *a) {
    if (a->load) return false;
    for (int i = 0; i < a->ntarget; i++)
        if (!strcmp(a->target[i].init, "pissa")) return false; /* B does not start at zero */
    return true;
}

static bool drops(const AdapterSpec *a) {
    for (int i = 0; i < a->ntarget; i++)
        if (a->target[i].dropout > 0) return true;
    return false;
}

bool spec_starts_equal(const Spec *spec) {
    const ModelSum *p = &spec->policy, *r = &spec->reference;
    if (!spec_has_reference(spec) || p->base != r->base) return false;
    for (int i = 0; i < p->nuse; i++) {
        int k = p->use[i].adapter;
        if (adds_nothing(&spec->adapters[k])) continue;
        if (!uses(r, k) || drops(&spec->adapters[k])) return false;
    }
    for (int i = 0; i < r->nuse; i++)
        if (!uses(p, r->use[i].adapter)) return false;
    return true;
}

static void resolve_one(Spec *spec, const char *name, ModelSum *out) {
    int i = bind_find(spec, name);
    if (i < 0) return;
    const Ast *s = spec->statement[i];
    if (!model_value(spec, name, s->name_loc, out)) *out = (ModelSum){.loc = s->name_loc};
}

const char *const *spec_policy_adapters(const Spec *spec, int *n) {
    *n = spec->policy.nuse;
    const char **dir = NEW_ARRAY(spec->front.arena, const char *, *n + 1);
    for (int i = 0; i < *n; i++) dir[i] = spec->adapters[spec->policy.use[i].adapter].load;
    return dir;
}

/* The checkpoint holds what was trained: models are their bases. */
static void leave_bare(Spec *spec) {
    ModelSum *sums[] = {&spec->policy, &spec->reference};
    for (size_t i = 0; i < COUNT(sums); i++) {
        sums[i]->nuse = 0;
        sums[i]->start = false;
        if (sums[i]->base) sums[i]->base->trained = false;
    }
    spec->nadapters = 0;
}

void models_resolve(Spec *spec) {
    resolve_one(spec, "policy", &spec->policy);
    resolve_one(spec, "reference", &spec->reference);
    if (!spec->policy.base) return; /* said why, or a file of layers only */
    resolve_train(spec);
    check_reference(spec);
    if (spec->options.bare) leave_bare(spec);
}

/* ---- the weights ----------------------------------------------------------------------------- */

static char *shape_text(Arena *arena, int rank, const int64_t *shape) {
    char *text = arena_str(arena, "[");
    for (int i = 0; i < rank; i++)
        text = arena_printf(arena, "%s%s%lld", text, i ? "," : "", (long long)shape[i]);
    return arena_printf(arena, "%s]", text);
}

static bool check_tensor(Spec *spec, const Base *base, const Checkpoint *c, Weight *w, bool bias) {
    Arena *arena = spec->front.arena;
    const char *name = intern_printf("%s.%s", w->tensor, bias ? "bias" : "weight");
    const char *alias = w->alias && !bias ? intern_printf("%s.weight", w->alias) : NULL;
    const SafeTensor *t = checkpoint_find(c, name, alias);
    if (!t) {
        Err err = {0};
        checkpoint_missing(c, name, &err);
        return file_error(spec, w->loc, "%s", err.text);
    }
    if (!bias && packed_is(c, t)) return packed_weight(spec, base, c, t, w);
    int rank = bias ? 1 : w->rank;
    bool same =
        t->rank == rank && t->shape[0] == w->shape[0] && (rank == 1 || t->shape[1] == w->shape[1]);
    bool kind = t->type == SAFE_F32 || t->type == SAFE_F16 || t->type == SAFE_BF16;
    if (!same)
        file_error(spec, w->loc, "%s is %s here, but %s in %s", name,
                   shape_text(arena, rank, w->shape), shape_text(arena, t->rank, t->shape),
                   base->dir);
    else if (!kind)
        file_error(spec, w->loc, "%s is %s in %s; F32, F16 and BF16 can be read", name,
                   safe_type_name(t->type), base->dir);
    return same && kind;
}

static void check_checkpoint(Spec *spec, const Base *base) {
    Arena *arena = spec->front.arena;
    bool weights = file_exists(path_join(arena, base->dir, "model.safetensors")) ||
                   file_exists(path_join(arena, base->dir, "model.safetensors.index.json"));
    if (spec->options.random_weights || (!weights && !spec->options.needs_model)) {
        packed_by_config(arena, base); /* config.json alone will do */
        return;
    }
    Err err = {0};
    Checkpoint *c = checkpoint_open(base->dir, "model", &err);
    if (!c) {
        file_error(spec, base->loc, "%s", err.text);
        return;
    }
    int wrong = 0;
    for (int i = 0; i < base->nweight && wrong < 5; i++) {
        Weight *w = base->weight[i];
        if (w->tied) continue;
        wrong += !check_tensor(spec, base, c, w, false);
        if (w->bias) wrong += !check_tensor(spec, base, c, w, true);
    }
    const char *odd = checkpoint_warning(c);
    if (odd) diag_warn(spec->front.diags, "checkpoint", base->loc, "%s", odd);
    checkpoint_close(c);
}

/* A description of ours that can't be built: config.json says what it can't. */
static void blame_config(Spec *spec, const Base *base, int errors) {
    diag(spec->front.diags, DIAG_NOTE, (Loc){0}, "names in `config` stand for values of %s",
         path_join(spec->front.arena, base->dir ? base->dir : "", "config.json"));
    diags_blame_file(spec->front.diags, errors);
}

static int64_t vocabulary(const Base *base) { /* 0: not known */
    for (int i = 0; base && i < base->nweight; i++)
        if (base->weight[i]->embedded) return base->weight[i]->shape[0];
    return 0;
}

/* Checkpoints of one tokenizer may be padded to different sizes; data that goes beyond the smaller
 * one is refused when it is read. */
static void check_vocabularies(Spec *spec) {
    int64_t p = vocabulary(spec->policy.base), r = vocabulary(spec->reference.base);
    if (p && r && p != r)
        diag_warn(spec->front.diags, "vocabulary", spec->reference.loc,
                  "the reference's vocabulary has %lld tokens, the policy's %lld: is it the same "
                  "tokenizer?",
                  (long long)r, (long long)p);
}

void models_weights(Spec *spec) {
    for (int i = 0; i < spec->nbases; i++) {
        Base *base = spec->bases[i];
        if (!base->config) continue;
        int errors = diags_errors(spec->front.diags);
        Arena *arena = arena_new();
        Unit *u = unit_new(arena, spec, target_by_name("cpu"), UNIT_PREFILL);
        Builder b;
        builder_init(&b, spec, u);
        b.collect = true;
        ModelSum alone = {.base = base, .start = base->trained, .loc = base->loc};
        layer_model(&b, &alone, NULL);
        arena_free(arena);
        bool ok = diags_errors(spec->front.diags) == errors;
        size_t len;
        bool ours = embedded(base->module->path, &len) != NULL;
        if (!ok && ours) blame_config(spec, base, errors);
        if (ok && base->dir) check_checkpoint(spec, base);
    }
    check_vocabularies(spec);
}
