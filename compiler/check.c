/* check.c: a file, its variant and the command line -> a Spec without open questions.
 *
 * check_file is the order of work; each part has its file.  Relies on module.c, settings.c,
 * models.c, adapter.c, quantize.c, objective.c, build.c.  Promises: a Spec that is returned builds.
 */
#include "front.h"
#include "template.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- statements: the file's, those of used files, the variant's ------------------------------ */

static bool is_block(const Ast *s) {
    return s->kind == A_DATA || s->kind == A_RUN || s->kind == A_GRAPH;
}

static bool counts(const Ast *s) {
    return s->kind == A_BIND || s->kind == A_ADAPTER || s->kind == A_QUANTIZE ||
           s->kind == A_TRAIN || s->kind == A_OBJECTIVE || s->kind == A_TEMPLATE || is_block(s);
}

/* Puts a statement in place of the same one, or after all.  Blocks are kept: keys replace keys. */
static void put_statement(Spec *spec, Ast *s, Module *home) {
    int i = 0;
    while (i < spec->nstatement && (is_block(s) || !same_statement(spec->statement[i], s))) i++;
    if (i < spec->nstatement) {
        spec->statement[i] = s;
        spec->home[i] = home;
        return;
    }
    PUSH(spec->front.arena, spec->statement, spec->nstatement, spec->capstatement, s);
    PUSH(spec->front.arena, spec->home, i, spec->caphome, home);
}

/* Used files first, so that the file itself has the last word. */
static void put_module(Spec *spec, Module *m, bool *seen) {
    Front *f = &spec->front;
    for (int i = 0; i < f->nmodules; i++) {
        if (f->modules[i] != m) continue;
        if (seen[i]) return;
        seen[i] = true;
    }
    for (int i = 0; i < m->nuse; i++) put_module(spec, m->use[i], seen);
    for (Ast *s = m->ast->list; s; s = s->next)
        if (counts(s)) put_statement(spec, s, m);
}

static Ast *variant_find(const Spec *spec, const char *name) {
    for (Ast *s = spec->module->ast->list; s; s = s->next)
        if (s->kind == A_VARIANT && !strcmp(s->text, name)) return s;
    return NULL;
}

static void unknown_variant(Spec *spec, Loc loc, const char *name) {
    const char *names[64];
    int n = 0;
    for (Ast *s = spec->module->ast->list; s && n < (int)COUNT(names); s = s->next)
        if (s->kind == A_VARIANT) names[n++] = s->text;
    diag_unknown(&spec->front, loc, "variant", name, names, n);
}

/* A variant's statements, those of the one it is from first. */
static bool put_variant(Spec *spec, const Ast *v, int depth) {
    Front *f = &spec->front;
    if (depth > 32) {
        diag(f->diags, DIAG_ERROR, v->name_loc, "variant %s is made from itself", v->text);
        return false;
    }
    if (v->text2) {
        const Ast *from = variant_find(spec, v->text2);
        if (!from) unknown_variant(spec, v->name_loc, v->text2);
        if (!from || !put_variant(spec, from, depth + 1)) return false;
    }
    for (Ast *s = v->list; s; s = s->next) {
        if (counts(s)) {
            put_statement(spec, s, spec->module);
        } else if (s->kind == A_USE) {
            Module *m = module_load(f, s->text, spec->module, s->loc);
            if (!m) return false;
            PUSH(f->arena, f->extra, f->nextra, f->capextra, m);
            put_module(spec, m, NEW_ARRAY(f->arena, bool, f->nmodules));
        } else if (s->kind == A_VARIANT) {
            diag(f->diags, DIAG_ERROR, s->loc, "a variant can't hold a variant");
        } else {
            PUSH(f->arena, f->overlay, f->noverlay, f->capoverlay, s);
        }
    }
    return true;
}

/* ---- what variants differ in, for bench ------------------------------------------------------ */

static bool keeps_results(const Ast *s) {
    static const char *const changing[] = {"compute", "quant"};
    if (s->kind != A_GRAPH) return false;
    for (const Ast *b = s->list; b; b = b->next)
        for (size_t i = 0; i < COUNT(changing); i++)
            if (!strcmp(b->text, changing[i])) return false;
    return true;
}

static const char *source_of(const Spec *spec, Loc loc) {
    size_t len;
    const char *text = source_text(spec->front.diags, loc.file, &len);
    return text && loc.end <= len ? intern_n(text + loc.begin, loc.end - loc.begin) : "";
}

static void differ(Spec *spec, VariantSpec *v, const Ast *variant, int depth) {
    const Ast *from = variant->text2 && depth < 32 ? variant_find(spec, variant->text2) : NULL;
    if (from) differ(spec, v, from, depth + 1);
    Arena *arena = spec->front.arena;
    for (const Ast *s = variant->list; s; s = s->next) {
        v->same_loss &= keeps_results(s);
        if (!is_block(s)) {
            const char *text =
                intern_printf("%s %s", ast_kind_name(s->kind), s->text ? s->text : "");
            PUSH(arena, v->differs, v->ndiffers, v->capdiffers, text);
            continue;
        }
        for (const Ast *b = s->list; b; b = b->next) {
            const char *text = intern_printf("%s.%s = %s", ast_kind_name(s->kind), b->text,
                                             b->a ? source_of(spec, b->a->loc) : "");
            PUSH(arena, v->differs, v->ndiffers, v->capdiffers, text);
        }
    }
}

static void list_variants(Spec *spec) {
    for (Ast *s = spec->module->ast->list; s; s = s->next) {
        if (s->kind != A_VARIANT) continue;
        VariantSpec v = {.name = s->text, .from = s->text2, .same_loss = true, .loc = s->name_loc};
        differ(spec, &v, s, 0);
        PUSH(spec->front.arena, spec->variants, spec->nvariants, spec->capvariants, v);
        if (s->text2 && !variant_find(spec, s->text2)) unknown_variant(spec, s->name_loc, s->text2);
        Settings *scratch = settings_new(spec->front.arena); /* its keys are right, chosen or not */
        for (const Ast *block = s->list; block; block = block->next)
            if (is_block(block)) settings_block(scratch, &spec->front, block, spec->module->dir);
    }
}

/* ---- settings -------------------------------------------------------------------------------- */

/* A command-line option as if `path = text` had been written: numbers with units, words, or text.
 * */
static void set_option(Spec *spec, const char *flag, const char *path, const char *text,
                       bool quoted) {
    Front *f = &spec->front;
    if (!text) return;
    Loc loc = {source_add(f->diags, flag, text, strlen(text)), 0, (uint32_t)strlen(text)};
    Ast *value = NEW(f->arena, Ast);
    *value =
        (Ast){.kind = quoted ? A_STR : A_NAME, .loc = loc, .name_loc = loc, .text = intern(text)};
    double x;
    if (parse_size(text, &x)) {
        value->kind = A_NUM;
        value->num = x;
        value->text = NULL;
    }
    settings_set(spec->settings, f, path, value, loc, NULL);
}

static void set_data(Spec *spec) {
    const CheckOptions *o = &spec->options;
    Settings *s = spec->settings;
    if (!o->ndata) return;
    s->file = NEW_ARRAY(s->arena, DataFile, o->ndata);
    s->nfile = o->ndata;
    for (int i = 0; i < o->ndata; i++) s->file[i] = (DataFile){intern(o->data[i]), 1};
    SettingValue *v = settings_find(s, "data.train");
    v->s.str = s->file[0].path;
    v->given = true;
    v->loc = (Loc){0};
}

static void read_settings(Spec *spec) {
    Front *f = &spec->front;
    for (int i = 0; i < spec->nstatement; i++)
        if (is_block(spec->statement[i]))
            settings_block(spec->settings, f, spec->statement[i], spec->home[i]->dir);
    set_data(spec);
    set_option(spec, "--eval-data", "data.eval", spec->options.eval_data, true);
    set_option(spec, "--memory", "graph.memory", spec->options.memory, false);
    set_option(spec, "--seed", "run.seed", spec->options.seed, false);
    for (int i = 0; i < spec->options.nset; i++) {
        Ast *bind = parse_set(f->arena, f->diags, spec->options.set[i], i + 1);
        if (bind) settings_set(spec->settings, f, bind->text, bind->a, bind->name_loc, NULL);
    }
    SettingValue *compute = settings_find(spec->settings, "graph.compute");
    if (!strcmp(compute->s.str, "auto"))
        compute->s.str = intern(spec->options.is_cuda ? "bf16" : "fp32");
    spec->compute = !strcmp(compute->s.str, "bf16") ? DT_bf16 : DT_f32;
}

/* What an objective asks for: sides, the reference, columns of the data. */
static void scan(Spec *spec, const Ast *ast) {
    for (; ast; ast = ast->next) {
        if (is_word(ast, "rejected")) spec->one_sided = false;
        if (is_word(ast, "reference")) spec->asks_reference = true;
        if (ast->kind == A_PATH && is_word(ast->a, "pair")) {
            int i = 0;
            while (i < spec->ncolumns && spec->columns[i] != ast->text) i++;
            if (i == spec->ncolumns)
                PUSH(spec->front.arena, spec->columns, spec->ncolumns, spec->capcolumns, ast->text);
        }
        scan(spec, ast->a);
        scan(spec, ast->b);
        scan(spec, ast->c);
        scan(spec, ast->params);
        scan(spec, ast->list);
    }
}

static void objective_scan(Spec *spec) {
    spec->one_sided = true;
    scan(spec, spec->objective->list);
}

static void declare_objective(Spec *spec) {
    Front *f = &spec->front;
    for (int i = 0; i < spec->nstatement; i++)
        if (spec->statement[i]->kind == A_OBJECTIVE) {
            spec->objective = spec->statement[i];
            spec->objective_home = spec->home[i];
        }
    if (!spec->objective) return;
    for (int i = 0; i < spec->nadapters; i++)
        if (spec->adapters[i].name == spec->objective->text)
            diag(f->diags, DIAG_ERROR, spec->objective->name_loc,
                 "an adapter has the same name '%s'", spec->objective->text);
    for (const Ast *p = spec->objective->params; p; p = p->next) {
        Value v = expr_const(f, p->a);
        if (v.kind != V_NUM && v.kind != V_BAD)
            diag(f->diags, DIAG_ERROR, p->loc, "%s must be a number, not %s", p->text,
                 value_kind(&v));
        Param param = {p->text, intern_printf("%s.%s", spec->objective->text, p->text), v.num};
        PUSH(f->arena, spec->params, spec->nparams, spec->capparams, param);
        settings_add(spec->settings, param.path, param.num, NULL, p->loc)->given = false;
    }
    objective_scan(spec);
}

static void check_data(Spec *spec) {
    Diags *d = spec->front.diags;
    if (!spec->options.needs_data) return;
    if (!spec->settings->nfile) {
        diag(d, DIAG_ERROR, (Loc){0}, "no data is named");
        diag(d, DIAG_HELP, (Loc){0},
             "write `data { train = \"pairs.jsonl\" }`, or give --data pairs.jsonl");
    }
    for (int i = 0; i < spec->settings->nfile; i++)
        if (!file_exists(spec->settings->file[i].path))
            diag_file(d, spec_loc(spec, "data.train"), "there is no file %s",
                      spec->settings->file[i].path);
    const char *eval = spec_str(spec, "data.eval");
    if (eval && strcmp(eval, "none") != 0 && !file_exists(eval))
        diag_file(d, spec_loc(spec, "data.eval"), "there is no file %s", eval);
}

/* ---- models, adapters, the objective --------------------------------------------------------- */

static Ast *word(Spec *spec, const char *text) {
    Ast *a = NEW(spec->front.arena, Ast);
    *a = (Ast){.kind = A_NAME, .text = intern(text)};
    return a;
}

/* A file that only describes layers: its policy is the checkpoint itself with the adapters of
 * --adapter. */
static void library_policy(Spec *spec) {
    static const char *const names[] = {"base", "policy"};
    static const char *const values[] = {"auto", "base"};
    for (int i = 0; i < 2; i++) {
        Ast *bind = word(spec, names[i]);
        bind->kind = A_BIND;
        bind->a = word(spec, values[i]);
        put_statement(spec, bind, spec->module);
    }
    const char **option = NEW_ARRAY(spec->front.arena, const char *, spec->options.nadapter);
    for (int i = 0; i < spec->options.nadapter; i++) {
        const char *given = spec->options.adapter[i], *dir = adapter_option_dir(given);
        const bool named = dir > given;
        AdapterSpec a = {.name = named ? intern_n(given, (size_t)(dir - given) - 1)
                                       : intern_printf("adapter%d", i + 1)};
        option[i] = named ? given : intern_printf("%s=%s", a.name, given);
        PUSH(spec->front.arena, spec->adapters, spec->nadapters, spec->capadapters, a);
        AdapterUse use = {spec->nadapters - 1, false};
        PUSH(spec->front.arena, spec->policy.use, spec->policy.nuse, spec->policy.capuse, use);
    }
    spec->options.adapter = option; /* each finds its adapter by name */
}

static bool has_bind(const Spec *spec, const char *name) {
    for (int i = 0; i < spec->nstatement; i++)
        if (spec->statement[i]->kind == A_BIND && !strcmp(spec->statement[i]->text, name))
            return true;
    return false;
}

static void check_parts(Spec *spec) {
    Diags *d = spec->front.diags;
    Loc here = spec->objective ? spec->objective->name_loc : (Loc){0};
    bool part = !spec->options.needs_model && !has_bind(spec, "base") && !has_bind(spec, "policy");
    if (part) return; /* a file of objectives or layers, for others to use */
    if (spec->objective && !has_bind(spec, "policy")) {
        diag(d, DIAG_ERROR, here, "`policy` is missing");
        diag(d, DIAG_HELP, here, "write `policy = base + ADAPTER`");
    }
    if (spec->objective && spec->asks_reference && !has_bind(spec, "reference")) {
        diag(d, DIAG_ERROR, here, "the objective asks for `reference`, which is missing");
        diag(d, DIAG_HELP, here, "write `reference = base`");
    }
    for (int i = 0; i < spec->nstatement; i++) {
        static const char *const known[] = {"base", "policy", "reference"};
        const Ast *s = spec->statement[i];
        if (s->kind != A_BIND) continue;
        const char *close = closest_name(s->text, known, COUNT(known));
        if (close && strcmp(close, s->text) != 0 && !has_bind(spec, close))
            diag_warn(d, "name", s->name_loc, "'%s' is not used; did you mean '%s'?", s->text,
                      close);
    }
}

static void check_named(Spec *spec) {
    Diags *d = spec->front.diags;
    if (!spec->options.needs_model || spec->options.model) return;
    bool named = spec->policy.base && spec->policy.base->dir;
    if (named || diags_errors(d)) return;
    diag(d, DIAG_ERROR, (Loc){0}, "no checkpoint is named");
    diag(d, DIAG_HELP, (Loc){0}, "give --model DIR, or write `base = llama from \"DIR\"`");
}

/* The objective alone, on log-probs from nowhere: its own mistakes are found without a checkpoint.
 * */
static void check_objective(Spec *spec) {
    if (!spec->objective) return;
    Arena *arena = arena_new();
    Unit *u = unit_new(arena, spec, target_by_name("cpu"), UNIT_EVAL);
    Builder b;
    builder_init(&b, spec, u);
    Scores s[2] = {{0}, {0}};
    for (int i = 0; i < 2; i++) {
        s[i].logp = build_input(&b, i ? "reference" : "policy", DT_f32, 1, dim_extent(X_R), 0);
        s[i].mean_logit = s[i].correct = s[i].logp;
        s[i].entropy = build_input(&b, "entropy", DT_f32, 1, dim_extent(X_R), 0);
        s[i].logsum_p2 = build_input(&b, "logsum_p2", DT_f32, 1, dim_extent(X_R), 0);
        for (int side = 0; side < 2; side++) s[i].side[side] = sum_sequences(&b, s[i].logp, side);
        if (i && spec_ref_cached(spec)) s[i].logp = 0;
    }
    bool none = false;
    for (int i = 0; i < spec->nstatement; i++) {
        const Ast *bind = spec->statement[i];
        none |= bind->kind == A_BIND && !strcmp(bind->text, "reference") && bind->a->kind == A_NONE;
    }
    objective_build(&b, &s[0], none ? NULL : &s[1]);
    arena_free(arena);
}

/* Builds the units once: what is wrong with shapes is said now. */
static void check_units(Spec *spec) {
    bool library = !spec->objective;
    for (int kind = 0; kind < NUNIT; kind++) {
        bool wanted = library ? kind == UNIT_PREFILL : kind == UNIT_TRAIN;
        if (!wanted || diags_errors(spec->front.diags)) continue;
        Arena *arena = arena_new();
        Unit *u = unit_new(arena, spec, target_by_name("cpu"), (UnitKind)kind);
        unit_build(u);
        arena_free(arena);
    }
}

static void list_sources(Spec *spec) {
    Arena *arena = spec->front.arena;
    for (int i = 0; i < spec->nbases; i++) {
        const Base *b = spec->bases[i];
        Source s = {b->source, spec->options.random_weights ? NULL : b->dir, false};
        PUSH(arena, spec->sources, spec->nsources, spec->capsources, s);
        if (!b->trained) continue;
        s.name = intern_printf("%s@start", b->source);
        PUSH(arena, spec->sources, spec->nsources, spec->capsources, s);
    }
    for (int i = 0; i < spec->nadapters; i++) {
        const AdapterSpec *a = &spec->adapters[i];
        Source s = {a->name, a->load, true};
        PUSH(arena, spec->sources, spec->nsources, spec->capsources, s);
        bool starts = a->load || (a->ntarget && adapter_pissa(a, a->target));
        if (!a->trained || !starts) continue;
        s.name = intern_printf("%s@start", a->name);
        PUSH(arena, spec->sources, spec->nsources, spec->capsources, s);
    }
}

static void check_model_parts(Spec *spec) {
    Diags *d = spec->front.diags;
    check_parts(spec);
    models_resolve(spec);
    check_named(spec);
    check_objective(spec);
    if (diags_errors(d)) return;
    models_weights(spec);
    if (diags_errors(d)) return;
    bool known = spec->policy.base != NULL;
    for (int i = 0; i < spec->nbases; i++) known &= spec->bases[i]->config != NULL;
    if (known) {
        adapters_resolve(spec, spec->policy.base);
        if (!spec->options.bare) quantize_resolve(spec);
        adapters_start(spec, spec->policy.base);
        check_units(spec);
    }
    list_sources(spec);
    spec->adapter_json = adapters_json(spec);
}

/* ---- the whole ------------------------------------------------------------------------------- */

static bool load_files(Spec *spec) {
    Front *f = &spec->front;
    f->prelude = module_load(f, "models/prelude.dpo", NULL, (Loc){0});
    const char *file = spec->options.file;
    spec->module = module_load(f, file ? file : "models/llama3.dpo", NULL, (Loc){0});
    if (!spec->module || diags_errors(f->diags)) return false;
    put_module(spec, spec->module, NEW_ARRAY(f->arena, bool, f->nmodules));
    list_variants(spec);
    if (!spec->options.variant) return true;
    const Ast *v = variant_find(spec, spec->options.variant);
    if (!v) unknown_variant(spec, (Loc){0}, spec->options.variant);
    return v && put_variant(spec, v, 0) && !diags_errors(f->diags);
}

static void flatten_settings(Spec *spec) {
    const Settings *s = spec->settings;
    spec->flat = NEW_ARRAY(spec->front.arena, Setting, s->n);
    for (int i = 0; i < s->n; i++) spec->flat[spec->nflat++] = s->value[i].s;
}

/* One reading of the file, on what was parsed before. */
static Spec *check_with(const Front *parsed, const CheckOptions *options) {
    Arena *arena = parsed->arena;
    Diags *diags = parsed->diags;
    Spec *spec = NEW(arena, Spec);
    spec->front = (Front){.arena = arena,
                          .diags = diags,
                          .modules = parsed->modules,
                          .nmodules = parsed->nmodules,
                          .capmodules = parsed->capmodules,
                          .prelude = parsed->prelude};
    spec->options = *options;
    spec->settings = settings_new(arena);
    if (!load_files(spec)) return NULL;
    adapters_declare(spec);
    declare_objective(spec);
    bool library = !has_bind(spec, "policy") && !spec->objective;
    if (library && (options->model || options->needs_model)) library_policy(spec);
    read_settings(spec);
    check_data(spec);
    templates_check(spec);
    check_model_parts(spec);
    flatten_settings(spec);
    return diags_errors(diags) ? NULL : spec;
}

Spec *check_file(Arena *arena, Diags *diags, const CheckOptions *options) {
    Front front = {.arena = arena, .diags = diags};
    Spec *spec = check_with(&front, options);
    /* `check` means the file with all that it can become; it is parsed once: nothing is said twice
     * */
    bool every = !options->needs_model && !options->variant && !options->nadapter;
    for (int i = 0; spec && every && i < spec->nvariants; i++) {
        CheckOptions variant = *options;
        variant.variant = spec->variants[i].name;
        check_with(&spec->front, &variant);
    }
    return diags_errors(diags) ? NULL : spec;
}

/* ---- accessors ------------------------------------------------------------------------------- */

double spec_num(const Spec *spec, const char *path) {
    const SettingValue *v = settings_find(spec->settings, path);
    return v ? v->s.num : 0;
}

const char *spec_str(const Spec *spec, const char *path) {
    const SettingValue *v = settings_find(spec->settings, path);
    return v ? v->s.str : NULL;
}

bool spec_on(const Spec *spec, const char *path) {
    return spec_num(spec, path) != 0;
}

bool spec_given(const Spec *spec, const char *path) {
    const SettingValue *v = settings_find(spec->settings, path);
    return v && v->given;
}

Loc spec_loc(const Spec *spec, const char *path) {
    const SettingValue *v = settings_find(spec->settings, path);
    return v ? v->loc : (Loc){0};
}

const Setting *spec_settings(const Spec *spec, int *n) {
    *n = spec->nflat;
    return spec->flat;
}

const DataFile *spec_data(const Spec *spec, int *n) {
    *n = spec->settings->nfile;
    return spec->settings->file;
}

const char *const *spec_columns(const Spec *spec, int *n) {
    *n = spec->ncolumns;
    return spec->columns;
}

const Source *spec_sources(const Spec *spec, int *n) {
    *n = spec->nsources;
    return spec->sources;
}

/* Whether a source is the one of that name, or that one as it was at the start. */
static bool is_source(const Source *source, const char *name) {
    size_t n = strlen(name);
    return !strncmp(source->name, name, n) &&
           (!source->name[n] || !strcmp(source->name + n, "@start"));
}

bool spec_in_reference(const Spec *spec, const Source *source) {
    const ModelSum *m = &spec->reference;
    if (m->base && !source->adapter) return is_source(source, m->base->source);
    for (int i = 0; m->base && i < m->nuse; i++)
        if (is_source(source, spec->adapters[m->use[i].adapter].name)) return source->dir != NULL;
    return false;
}

const char *spec_text(const Spec *spec) {
    size_t len;
    return source_text(spec->front.diags, spec->module->ast->loc.file, &len);
}

const char *spec_base_path(const Spec *spec) {
    return spec->policy.base ? spec->policy.base->dir : NULL;
}

const AdapterSpec *spec_adapters(const Spec *spec, int *n) {
    *n = spec->nadapters;
    return spec->adapters;
}

const char *spec_adapter_json(const Spec *spec) {
    return spec->adapter_json;
}

bool spec_trains_base(const Spec *spec) {
    return spec->policy.base && spec->policy.base->trained;
}

bool spec_has_reference(const Spec *spec) {
    return spec->asks_reference && spec->reference.base;
}

bool spec_one_sided(const Spec *spec) {
    return spec->one_sided;
}

bool spec_coupled(const Spec *spec) {
    return spec->coupled;
}

bool spec_cut(const Spec *spec) {
    return spec->coupled && !spec->coupled_tokens;
}

bool spec_ref_cached(const Spec *spec) {
    const char *ref = spec_str(spec, "graph.ref");
    return spec_has_reference(spec) && ref && !strcmp(ref, "cached");
}

const VariantSpec *spec_variants(const Spec *spec, int *n) {
    *n = spec->nvariants;
    return spec->variants;
}
