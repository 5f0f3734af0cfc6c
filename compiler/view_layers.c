/* view_layers.c: layers that went through the passes alike, of which a page shows one (view.h).
 *
 * Promises: what is shown follows from the graphs alone, not from addresses or time.
 */
#include "view.h"

#include <stdlib.h>
#include <string.h>

/* The bytes of "policy/model.layers.17.mlp" up to its first number; 0: there is none. */
static size_t prefix_of(const char *scope, const char **begin, long *index) {
    const char *slash = scope ? strrchr(scope, '/') : NULL;
    *begin = slash ? slash + 1 : scope;
    for (const char *at = *begin; at; at = strchr(at, '.')) {
        at += *at == '.';
        size_t digits = strspn(at, "0123456789");
        if (!digits || digits > 9 || (at[digits] && at[digits] != '.')) continue;
        *index = strtol(at, NULL, 10);
        return (size_t)(at - *begin);
    }
    return 0;
}

static Layer *layer_of(const Layers *layers, const char *scope) {
    const char *begin;
    long index;
    size_t n = prefix_of(scope, &begin, &index);
    for (int i = 0; n && i < layers->n; i++) {
        Layer *l = &layers->layer[i];
        if (l->index == index && !strncmp(l->prefix, begin, n) && !l->prefix[n]) return l;
    }
    return NULL;
}

static Layer *layer_met(Arena *arena, Layers *layers, const char *scope) {
    Layer *known = layer_of(layers, scope);
    const char *begin;
    Layer fresh = {0};
    size_t n = known ? 0 : prefix_of(scope, &begin, &fresh.index);
    if (!n) return known;
    fresh.prefix = intern_n(begin, n);
    PUSH(arena, layers->layer, layers->n, layers->cap, fresh);
    return &layers->layer[layers->n - 1];
}

static Layer *layer_of_node(Arena *arena, Layers *layers, const Node *n) {
    Layer *layer = NULL;
    for (const Origin *o = n->origin; o && !layer; o = o->next)
        layer = layer_met(arena, layers, o->scope);
    return layer;
}

void view_layers(Arena *arena, const Snapshot *shot, int n, Layers *out) {
    for (int s = 0; s < n; s++)
        for (NodeId id = 1; id < shot[s].u.g->n; id++) {
            const Node *x = node(shot[s].u.g, id);
            Layer *layer = layer_of_node(arena, out, x);
            if (!layer) continue;
            Loc loc = x->origin ? x->origin->loc : (Loc){0};
            int64_t what[] = {s,        x->op,     x->phase, (int64_t)(intptr_t)x->type,
                              loc.file, loc.begin, loc.end,  x->inst >= CLONE_INST};
            layer->hash = hash_bytes(what, sizeof what, layer->hash);
        }
    for (int i = 0; i < out->n; i++) {
        Layer *l = &out->layer[i];
        l->shown = true;
        for (int k = 0; k < i && l->shown; k++)
            l->shown = out->layer[k].prefix != l->prefix ||
                       memcmp(&out->layer[k].hash, &l->hash, sizeof l->hash) != 0;
    }
}

bool view_scope_shown(const Layers *layers, const char *scope) {
    const Layer *layer = layer_of(layers, scope);
    return !layer || layer->shown;
}

bool view_node_shown(const Layers *layers, const Node *n) {
    for (const Origin *o = n->origin; o; o = o->next) {
        const Layer *layer = layer_of(layers, o->scope);
        if (layer) return layer->shown;
    }
    return true;
}
