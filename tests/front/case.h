/* case.h: a case of tests/num/cases as the inputs of a built unit, for the evaluator.
 *
 * Packs pairs by hand (independent of runtime/job/pack.c), reads weights and adapter, sets every
 * leaf.
 */
#ifndef FRONT_CASE_H
#define FRONT_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "compiler/spec.h"
#include "runtime/io/adapter.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#define CASES "tests/num/cases"
enum { MOST = 4096 };
#define die(...) (print_error(__VA_ARGS__), assert_true(false))

typedef struct Batch { /* the inputs of one micro-batch */
    double tokens[MOST], pos[MOST], segs[6 * 64], row[MOST], target[MOST], seq[MOST], place[MOST];
    double len[64], chosen[32], rejected[32];
    int t, r, g, n, p;
} Batch;

static inline int ids_of(json_t *pair, const char *key, int *out) {
    json_t *list = json_object_get(pair, key);
    for (size_t i = 0; i < json_array_size(list); i++)
        out[i] = (int)json_integer_value(json_array_get(list, i));
    return (int)json_array_size(list);
}

static void add_segment(Batch *b, int q, int nq, int prefix, int nprefix) {
    const double seg[6] = {q, nq, prefix, nprefix, q, nq};
    memcpy(&b->segs[6 * b->g++], seg, sizeof seg);
}

/* Rows of n tokens at positions from `at` on; returns the first row. */
static int add_rows(Batch *b, const int *ids, int n, int at) {
    int first = b->t;
    for (int i = 0; i < n; i++) {
        assert_true(b->t < MOST);
        b->tokens[b->t] = ids[i];
        b->pos[b->t++] = at + i;
    }
    return first;
}

/* The answer's tokens are predicted by `before` (the prompt's last row), then by its own rows. */
static void add_scores(Batch *b, const int *answer, int n, int before, int own) {
    for (int i = 0; i < n; i++) {
        b->row[b->r] = i ? own + i - 1 : before;
        b->target[b->r] = answer[i];
        b->seq[b->r] = b->n;
        b->place[b->r++] = i;
    }
    b->len[b->n++] = n;
}

static inline void add_pair(Batch *b, json_t *pair, bool share) {
    int prompt[MOST], answer[MOST], np = ids_of(pair, "prompt_ids", prompt);
    int shared = share ? add_rows(b, prompt, np, 0) : 0;
    if (share) add_segment(b, shared, np, 0, 0);
    b->chosen[b->p] = b->n;
    b->rejected[b->p++] = b->n + 1;
    for (int side = 0; side < 2; side++) {
        int n = ids_of(pair, side ? "rejected_ids" : "chosen_ids", answer);
        int first = share ? shared : add_rows(b, prompt, np, 0);
        int own = add_rows(b, answer, n - 1, np); /* the last token predicts nothing */
        if (share && n > 1)
            add_segment(b, own, n - 1, shared, np);
        else if (!share)
            add_segment(b, first, np + n - 1, 0, 0);
        add_scores(b, answer, n, first + np - 1, own);
    }
}

static inline double *widen(Arena *arena, const SafeTensor *t) {
    Err err = {0};
    float *data = NEW_ARRAY(arena, float, t->count);
    double *out = NEW_ARRAY(arena, double, t->count);
    if (!safe_read_f32(t, 0, t->count, data, &err)) die("%s", err.text);
    for (int64_t i = 0; i < t->count; i++) out[i] = data[i];
    return out;
}

static inline void set_weights(Arena *arena, Eval *e, const Unit *u, const char *dir) {
    Err err = {0};
    Checkpoint *c = checkpoint_open(dir, "model", &err);
    if (!c) die("%s", err.text);
    for (int i = 0; i < u->nweights; i++) {
        const WeightInfo *w = &u->weights[i];
        const SafeTensor *t = checkpoint_find(c, w->tensor, w->alias);
        assert_non_null(t);
        eval_set(e, arena_printf(arena, "%s/%s", w->source, w->tensor), widen(arena, t), t->count);
    }
    checkpoint_close(c);
}

static inline void set_params(Arena *arena, Eval *e, const Unit *u, const char *dir) {
    Err err = {0};
    Checkpoint *c = checkpoint_open(dir, "adapter_model", &err);
    if (!c) die("%s", err.text);
    double *params = NEW_ARRAY(arena, double, u->nparams);
    for (int i = 0; i < u->ntrained; i++) {
        const Trained *p = &u->trained[i];
        const SafeTensor *t =
            checkpoint_find(c, arena_printf(arena, ADAPTER_PREFIX "%s", p->tensor), NULL);
        assert_non_null(t);
        assert_int_equal(t->count, p->rows * p->cols);
        memcpy(params + p->offset, widen(arena, t), sizeof(double) * (size_t)t->count);
    }
    eval_set(e, "params", params, u->nparams);
    checkpoint_close(c);
}

/* Numbers of the objective, by path: "dpo.beta". */
static inline void set_parameters(Eval *e, const Spec *spec) {
    int n;
    const Setting *s = spec_settings(spec, &n);
    for (int i = 0; i < n; i++) {
        bool block = !strncmp(s[i].path, "run.", 4) || !strncmp(s[i].path, "data.", 5) ||
                     !strncmp(s[i].path, "graph.", 6);
        if (!block && !s[i].str) eval_set(e, s[i].path, &s[i].num, 1);
    }
}

static inline void set_batch(Eval *e, const Batch *b) {
    double tokens[2] = {0, 0}, inv = 1.0 / b->p;
    for (int i = 0; i < b->p; i++) tokens[0] += b->len[2 * i], tokens[1] += b->len[2 * i + 1];
    double of_chosen = 1 / tokens[0], of_rejected = 1 / tokens[1],
           of_all = 1 / (tokens[0] + tokens[1]);
    eval_set(e, "tokens", b->tokens, b->t);
    eval_set(e, "pos", b->pos, b->t);
    eval_set(e, "segs", b->segs, 6 * b->g);
    eval_set(e, "row", b->row, b->r);
    eval_set(e, "target", b->target, b->r);
    eval_set(e, "seq", b->seq, b->r);
    eval_set(e, "place", b->place, b->r);
    eval_set(e, "len", b->len, b->n);
    eval_set(e, "chosen", b->chosen, b->p);
    eval_set(e, "rejected", b->rejected, b->p);
    eval_set(e, "inv_pairs", &inv, 1);
    eval_set(e, "inv_tokens_chosen", &of_chosen, 1);
    eval_set(e, "inv_tokens_rejected", &of_rejected, 1);
    eval_set(e, "inv_tokens", &of_all, 1);
}

typedef struct Case {
    Arena *arena;
    Spec *spec;
    Unit *u;
    Batch *b;
    Eval *e;
    const char *dir;
} Case;

/* Checks `file` with the case's checkpoint and adapter (rank 4, alpha 8), builds UNIT_EVAL and
 * evaluates it on all pairs in one micro-batch. */
static inline Case case_run(const char *name, const char *file, bool share) {
    Case c = {.arena = arena_new()};
    c.dir = arena_printf(c.arena, CASES "/%s", name);
    const char *adapter = arena_printf(c.arena, "%s/adapter", c.dir);
    Diags *diags = diags_new(c.arena);
    CheckOptions o = {.file = file,
                      .model = c.dir,
                      .set = (const char *[]){"pref.rank=4", "pref.alpha=8"},
                      .nset = 2,
                      .adapter = &adapter,
                      .nadapter = 1,
                      .needs_model = true};
    c.spec = check_file(c.arena, diags, &o);
    if (!c.spec) diags_print(diags, 0, stdout, false);
    assert_non_null(c.spec);
    c.u = unit_new(c.arena, c.spec, target_by_name("cpu"), UNIT_EVAL);
    assert_true(unit_build(c.u));
    assert_null(graph_verify(c.u->g, c.arena));
    FILE *f = fopen(arena_printf(c.arena, "%s/pairs.jsonl", c.dir), "r");
    assert_non_null(f);
    Batch *b = c.b = NEW(c.arena, Batch);
    json_t *pair;
    while ((pair = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL))) {
        add_pair(b, pair, share);
        json_decref(pair);
    }
    fclose(f);
    int64_t extent[NEXTENT] = {
        [X_T] = b->t, [X_R] = b->r, [X_G] = b->g, [X_K] = 1, [X_N] = b->n, [X_P] = b->p};
    c.e = eval_new(c.u->g, EVAL_DOUBLE, extent);
    set_weights(c.arena, c.e, c.u, c.dir);
    set_params(c.arena, c.e, c.u, adapter);
    set_parameters(c.e, c.spec);
    set_batch(c.e, b);
    eval_run(c.e, PHASE_MICRO, false);
    return c;
}

static inline void case_free(Case *c) {
    eval_free(c->e);
    arena_free(c->arena);
}

#endif
