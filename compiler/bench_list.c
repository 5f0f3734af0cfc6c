/* bench_list.c: the entries of a run of `bench`: the file as it stands, then its variants, or (with
 * --effects) the file with one pass switched off, each in turn.  Relies on pass_table. */
#include "bench.h"
#include "dpoc.h"

#include <stdlib.h>
#include <string.h>

/* Whether `name` is in the list a,b,..; without a list all are. */
static bool is_named(const char *list, const char *name) {
    const size_t len = strlen(name);
    for (const char *at = list; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == len && !strncmp(at, name, len)) return true;
    return !list;
}

/* Every name of --variants is one of `names`; else false after a message. */
static bool all_known(const Bench *b, const char *const *names, int n) {
    const Options *o = b->options;
    for (const char *at = o->variants; at && *at; at += strcspn(at, ","), at += *at == ',') {
        const char *name = arena_strn(b->arena, at, strcspn(at, ","));
        const char *close = closest_name(name, names, n);
        if (close && !strcmp(close, name)) continue;
        fprintf(stderr, "dpoc: --variants: %s has no %s '%s'%s%s%s\n", o->args.item[0],
                b->effects ? "pass that can be switched off named" : "variant", name,
                close ? "; did you mean '" : "", close ? close : "", close ? "'?" : "");
        return false;
    }
    return true;
}

static int list_variants(Bench *b, Spec *spec) {
    int n;
    const VariantSpec *v = spec_variants(spec, &n);
    const char **names = NEW_ARRAY(b->arena, const char *, n);
    for (int i = 0; i < n; i++) names[i] = v[i].name;
    if (!all_known(b, names, n)) return EXIT_INPUT;
    for (int i = 0; i < n; i++) {
        if (!is_named(b->options->variants, v[i].name)) continue;
        if (b->n == MAX_ENTRIES) {
            fprintf(stderr, "dpoc: error: more than %d variants: --variants names fewer\n",
                    MAX_ENTRIES - 1);
            return EXIT_INPUT;
        }
        Entry *e = &b->entry[b->n++];
        *e = (Entry){.name = v[i].name,
                     .differs = v[i].differs,
                     .ndiffers = v[i].ndiffers,
                     .must_agree = v[i].same_loss,
                     .options = *b->options};
        e->options.variant = v[i].name;
    }
    return EXIT_OK;
}

/* Names of passes with a switch that is on, and of the packing that shares prompts. */
static int switches(const Bench *b, const Spec *spec, const char **names) {
    int n = 0, nsettings;
    const Setting *settings = spec_settings(spec, &nsettings);
    for (int i = 0; pass_table[i].name && n + 2 < MAX_ENTRIES; i++) {
        const char *name = pass_table[i].name;
        if (name[strcspn(name, "23456789")]) continue; /* a row that stands there twice */
        const char *path = arena_printf(b->arena, "graph.%s", name);
        for (int k = 0; k < nsettings; k++)
            if (!strcmp(settings[k].path, path) && settings[k].num != 0) names[n++] = name;
    }
    if (spec_on(spec, "graph.prefix")) names[n++] = "prefix";
    return n;
}

static int list_effects(Bench *b, const Spec *spec) {
    const char *names[MAX_ENTRIES];
    int n = switches(b, spec, names);
    if (!all_known(b, names, n)) return EXIT_INPUT;
    for (int i = 0; i < n; i++) {
        if (!is_named(b->options->variants, names[i])) continue;
        Entry *e = &b->entry[b->n++];
        *e = (Entry){.name = arena_printf(b->arena, "without %s", names[i]),
                     .differs = NEW_ARRAY(b->arena, const char *, 1),
                     .ndiffers = 1,
                     .must_agree = strcmp(names[i], "quant") != 0, /* then they are other weights */
                     .options = *b->options};
        e->differs[0] = arena_printf(b->arena, "graph.%s = off", names[i]);
        OptionList *set = &e->options.set;
        if (set->n == MAX_LIST) {
            fprintf(stderr, "dpoc: --effects sets one more: at most %d times --set\n",
                    MAX_LIST - 1);
            return EXIT_USAGE;
        }
        set->item[set->n++] = arena_printf(b->arena, "graph.%s=off", names[i]);
    }
    return EXIT_OK;
}

int bench_list(Bench *b, Spec *spec) {
    b->entry = NEW_ARRAY(b->arena, Entry, MAX_ENTRIES);
    b->entry[b->n++] = (Entry){.name = b->options->variant ? b->options->variant : "as written",
                               .options = *b->options};
    return b->effects ? list_effects(b, spec) : list_variants(b, spec);
}
