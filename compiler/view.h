/* view.h: `view --html`: a page about one unit on its way through the passes.
 *
 * A page is watched into being: view_page_watch takes a copy of what the unit is after each pass
 * (DumpOptions.watch) and changes nothing; view_page_write prints what was seen. */
#ifndef DPOC_VIEW_H
#define DPOC_VIEW_H

#include "dpoc.h"

typedef struct Snapshot { /* a unit after a pass */
    const char *pass, *sentence;
    Unit u;       /* u.g and u.groups are copies */
    bool grouped; /* every value that is computed lies in a group */
} Snapshot;

typedef struct ViewPage ViewPage;
ViewPage *view_page_new(Arena *arena, const char *title);
/* `pass`: a row of pass_table, or NULL for the unit as built. */
void view_page_watch(void *page, const Unit *u, const Pass *pass);
void view_page_write(ViewPage *page, FILE *out);

/* ---- view_layers.c: which layers are alike ---------------------------------------------------
 * A layer is what stands under the first number of a scope ("model.layers.17").  Two of one prefix
 * are alike when after each pass their nodes have the same ops, types, phases and places in the
 * source, in the same order. */
typedef struct Layer {
    const char *prefix; /* "model.layers." */
    long index;
    Hash128 hash;
    bool shown; /* the first of its kind */
} Layer;
typedef struct Layers {
    Layer *layer; /* by prefix as met, then index as met */
    int n, cap;
} Layers;
void view_layers(Arena *arena, const Snapshot *shot, int n, Layers *out);
/* Whether a scope (NULL: none) is outside of layers, or in one that is shown. */
bool view_scope_shown(const Layers *layers, const char *scope);
/* The same for a node, by the first of its origins that is in a layer. */
bool view_node_shown(const Layers *layers, const Node *n);

/* ---- view_count.c: what a pass is judged by ------------------------------------------------- */
typedef struct ViewCounts {
    int nodes, kernels, products,
        customs;  /* all phases; the last three 0 before there are groups */
    double flops; /* of products and attention in a micro-batch, at the bounds */
    double bytes; /* read and written in it: by every node, or once there are kernels by those */
    double peak;  /* most bytes of its values alive at once; weights and states aside */
} ViewCounts;
ViewCounts view_counts(const Snapshot *shot);

#endif
