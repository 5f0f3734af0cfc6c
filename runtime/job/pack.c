/* pack.c: rows of micro-batches (pack.h).
 *
 * A pair goes into the first micro-batch that has room for it, so the order of the pairs decides
 * the packing and nothing else does.  Then each micro-batch is laid out segment by segment.
 */
#include "pack.h"
#include "epoch.h"

#include <inttypes.h> /* PRId64 */
#include <stdlib.h>   /* qsort */
#include <string.h>   /* memset */

enum { SIDE_CHOSEN, SIDE_REJECTED, SIDE_PROMPT };

/* ---- what one pair takes --------------------------------------------------------------------- */

typedef struct Need { /* of the bounded extents, without the filling */
    int64_t rows, scored, segments, ranges, sequences, pairs;
} Need;

/* Both answers read the same prompt. */
static bool shares_prompt(const PackOptions *o, const Pair *p) {
    return o->prefix && !o->sft && p->prompt > 0;
}

static Need need_of(const PackOptions *o, const Pair *p) {
    bool both = !o->sft;
    Need n = {.pairs = 1, .sequences = both ? 2 : 1};
    int64_t answers = p->chosen - 1 + (both ? p->rejected - 1 : 0); /* rows: all but the last */
    n.scored = pair_scored(p, 0) + (both ? pair_scored(p, 1) : 0);
    if (shares_prompt(o, p)) {
        n.rows = p->prompt + answers;
        n.segments = 1 + (p->chosen > 1) + (p->rejected > 1);
    } else {
        n.rows = n.sequences * p->prompt + answers;
        n.segments = n.sequences;
    }
    n.ranges = n.segments;
    return n;
}

int64_t pack_rows(const PackOptions *o, const Pair *pair) {
    return need_of(o, pair).rows;
}

static Need add(Need a, Need b) {
    return (Need){a.rows + b.rows,     a.scored + b.scored,       a.segments + b.segments,
                  a.ranges + b.ranges, a.sequences + b.sequences, a.pairs + b.pairs};
}

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

/* Whether it fits with its filling: a dummy segment where rows are filled up. */
static bool fits(const PackOptions *o, Need n) {
    int64_t filling = n.rows % o->bucket != 0;
    return round_up(n.rows, o->bucket) <= o->bound[X_T] &&
           round_up(n.scored, o->bucket) <= o->bound[X_R] &&
           n.segments + filling <= o->bound[X_G] && n.ranges + filling <= o->bound[X_K] &&
           n.sequences <= o->bound[X_N] && n.pairs <= o->bound[X_P];
}

bool pack_check(const PackOptions *o, const Pairs *pairs, int64_t vocab, Err *err) {
    Arena *arena = arena_new();
    int64_t most = 0, first = -1, count = 0;
    for (int64_t i = 0; i < pairs->n && !err->code; i++) {
        const Pair *p = &pairs->pair[i];
        Need n = need_of(o, p);
        int64_t total = (int64_t)p->prompt + p->chosen + p->rejected;
        for (int64_t k = 0; vocab && k < total; k++)
            if (p->ids[k] >= vocab) {
                fail(err, EXIT_IO, "%s: token %d is beyond the model's vocabulary of %" PRId64,
                     pair_where(arena, pairs, p), p->ids[k], vocab);
                break;
            }
        if (fits(o, n)) continue;
        int64_t rows = n.rows > n.scored ? n.rows : n.scored;
        if (rows > most) most = rows;
        if (first < 0) first = i;
        count++;
    }
    if (count && !err->code) {
        const Pair *p = &pairs->pair[first];
        fail(err, EXIT_IO,
             "%s: this pair needs %" PRId64
             " rows (prompt %d, chosen %d, rejected %d tokens, prefix "
             "sharing %s), more than run.tokens = %" PRId64 " allows; %" PRId64 " of %" PRId64
             " pairs do: set run.tokens to %" PRId64 " or more, or data.max_length lower",
             pair_where(arena, pairs, p), pack_rows(o, p), p->prompt, p->chosen, p->rejected,
             o->prefix ? "on" : "off", o->bound[X_T], count, pairs->n, round_up(most, o->bucket));
    }
    arena_free(arena);
    return err->code == 0;
}

/* ---- laying rows out ------------------------------------------------------------------------- */

/* The arrays of one micro-batch under construction; t, r, .. count what is laid out so far. */
typedef struct Layout {
    int64_t t, r, g, k, n, p;
    int32_t *tokens, *pos, (*rowkey)[2], (*segs)[6], (*ranges)[4];
    int32_t *row, *target, *seq, *place, *side;
    int32_t *len, *chosen, *rejected;
} Layout;

/* Rows for n tokens of a part of a pair, at positions from `at` on. */
static void add_rows(Layout *l, const PackItem *item, int side, const int32_t *ids, int64_t n,
                     int64_t at) {
    uint64_t key = mix64((uint64_t)item->place, (uint64_t)item->epoch, (uint64_t)side);
    for (int64_t i = 0; i < n; i++, l->t++) {
        l->tokens[l->t] = ids[i];
        l->pos[l->t] = (int32_t)(at + i);
        l->rowkey[l->t][0] = (int32_t)(uint32_t)key;
        l->rowkey[l->t][1] = (int32_t)(at + i);
    }
}

/* A query segment over the rows begin .. begin+n, which are their own keys, behind a prefix. */
static void add_segment(Layout *l, int64_t begin, int64_t n, int64_t prefix, int64_t nprefix) {
    int32_t *s = l->segs[l->g++];
    s[0] = s[4] = (int32_t)begin;
    s[1] = s[5] = (int32_t)n;
    s[2] = (int32_t)prefix;
    s[3] = (int32_t)nprefix;
}

/* Keys begin .. begin+n are seen by `count` segments from number `first` on. */
static void add_range(Layout *l, int64_t begin, int64_t n, int64_t first, int64_t count) {
    int32_t *r = l->ranges[l->k++];
    r[0] = (int32_t)begin;
    r[1] = (int32_t)n;
    r[2] = (int32_t)first;
    r[3] = (int32_t)count;
}

/* A sequence whose n scored tokens are predicted by row `before`, then by rows from `rows` on. */
static void add_scored(Layout *l, int side, const int32_t *ids, int64_t n, int64_t before,
                       int64_t rows) {
    for (int64_t i = 0; i < n; i++, l->r++) {
        l->row[l->r] = (int32_t)(i ? rows + i - 1 : before);
        l->target[l->r] = ids[i];
        l->seq[l->r] = (int32_t)l->n;
        l->place[l->r] = (int32_t)i;
        l->side[l->r] = side;
    }
    l->len[l->n++] = (int32_t)n;
}

/* Prompt and answer as one segment; the answer's first `context` tokens are not scored. */
static void lay_sequence(Layout *l, const Pair *p, const PackItem *item, int side,
                         const int32_t *ids, int64_t n) {
    int64_t begin = l->t, rows = p->prompt + n - 1, context = p->context[side];
    int64_t first = begin + p->prompt + context; /* the first answer's row, if it is one */
    add_rows(l, item, SIDE_PROMPT, p->ids, p->prompt, 0);
    add_rows(l, item, side, ids, n - 1, p->prompt);
    add_range(l, begin, rows, l->g, 1);
    add_segment(l, begin, rows, 0, 0);
    add_scored(l, side, ids + context, n - context, first - 1, first);
}

/* An answer behind a prompt that is there already. */
static void lay_answer(Layout *l, const Pair *p, const PackItem *item, int side, const int32_t *ids,
                       int64_t n, int64_t prompt) {
    int64_t begin = l->t, context = p->context[side];
    add_rows(l, item, side, ids, n - 1, p->prompt);
    if (n > 1) {
        add_range(l, begin, n - 1, l->g, 1);
        add_segment(l, begin, n - 1, prompt, p->prompt);
    }
    int64_t before = context ? begin + context - 1 : prompt + p->prompt - 1;
    add_scored(l, side, ids + context, n - context, before, begin + context);
}

static void lay_pair(Layout *l, const PackOptions *o, const Pair *p, const PackItem *item) {
    l->chosen[l->p] = (int32_t)l->n;
    l->rejected[l->p++] = o->sft ? -1 : (int32_t)l->n + 1;
    if (!shares_prompt(o, p)) {
        lay_sequence(l, p, item, SIDE_CHOSEN, pair_chosen(p), p->chosen);
        if (!o->sft) lay_sequence(l, p, item, SIDE_REJECTED, pair_rejected(p), p->rejected);
        return;
    }
    int64_t begin = l->t;
    add_rows(l, item, SIDE_PROMPT, p->ids, p->prompt, 0);
    add_range(l, begin, p->prompt, l->g, 1 + (p->chosen > 1) + (p->rejected > 1));
    add_segment(l, begin, p->prompt, 0, 0);
    lay_answer(l, p, item, SIDE_CHOSEN, pair_chosen(p), p->chosen, begin);
    lay_answer(l, p, item, SIDE_REJECTED, pair_rejected(p), p->rejected, begin);
}

/* One dummy segment, and scored rows that are nobody's. */
static void fill_up(Layout *l, int64_t bucket) {
    int64_t n = round_up(l->t, bucket) - l->t;
    if (n) {
        add_range(l, l->t, n, l->g, 1);
        add_segment(l, l->t, n, 0, 0);
        for (int64_t i = 0; i < n; i++) l->pos[l->t++] = (int32_t)i; /* tokens and keys are 0 */
    }
    for (n = round_up(l->r, bucket); l->r < n; l->r++) l->target[l->r] = l->seq[l->r] = -1;
}

/* ---- micro-batches --------------------------------------------------------------------------- */

static float inverse(int64_t n) {
    return n ? (float)(1.0 / (double)n) : 0;
}

#define NINPUT 19 /* names below and denominators, without columns */

static void add_input(Micro *m, const char *name, const void *data, int64_t count) {
    m->input[m->ninput++] = (PackInput){name, data, (size_t)count * 4};
}

/* Values of the data's columns, by pair. */
static void add_columns(Arena *arena, Micro *m, const Pairs *pairs, const PackItem *items) {
    m->input = NEW_ARRAY(arena, PackInput, NINPUT + pairs->ncolumns);
    for (int c = 0; c < pairs->ncolumns; c++) {
        int64_t n = m->extent[X_P];
        float *value = NEW_ARRAY(arena, float, n);
        for (int64_t i = 0; i < n; i++)
            value[i] = pairs->column[items[m->item[i]].pair * pairs->ncolumns + c];
        add_input(m, arena_printf(arena, "pair.%s", pairs->columns[c]), value, n);
    }
}

static void name_inputs(Micro *m, const Layout *l) {
    add_input(m, "tokens", l->tokens, l->t);
    add_input(m, "pos", l->pos, l->t);
    add_input(m, "rowkey", l->rowkey, 2 * l->t);
    add_input(m, "segs", l->segs, 6 * l->g);
    add_input(m, "ranges", l->ranges, 4 * l->k);
    add_input(m, "row", l->row, l->r);
    add_input(m, "target", l->target, l->r);
    add_input(m, "seq", l->seq, l->r);
    add_input(m, "place", l->place, l->r);
    add_input(m, "side", l->side, l->r);
    add_input(m, "len", l->len, l->n);
    add_input(m, "chosen", l->chosen, l->p);
    add_input(m, "rejected", l->rejected, l->p);
    add_input(m, "item", m->item, l->p);
}

/* Room for what `need` says and its filling. */
static Layout layout_new(Arena *a, const PackOptions *o, Need n) {
    int64_t rows = round_up(n.rows, o->bucket), scored = round_up(n.scored, o->bucket);
    Layout l = {0};
    l.tokens = NEW_ARRAY(a, int32_t, rows);
    l.pos = NEW_ARRAY(a, int32_t, rows);
    l.rowkey = arena_alloc(a, sizeof *l.rowkey * (size_t)rows);
    l.segs = arena_alloc(a, sizeof *l.segs * (size_t)(n.segments + 1));
    l.ranges = arena_alloc(a, sizeof *l.ranges * (size_t)(n.ranges + 1));
    int32_t **scored_arrays[] = {&l.row, &l.target, &l.seq, &l.place, &l.side};
    for (size_t i = 0; i < COUNT(scored_arrays); i++)
        *scored_arrays[i] = NEW_ARRAY(a, int32_t, scored);
    l.len = NEW_ARRAY(a, int32_t, n.sequences);
    l.chosen = NEW_ARRAY(a, int32_t, n.pairs);
    l.rejected = NEW_ARRAY(a, int32_t, n.pairs);
    return l;
}

static void build(Arena *arena, const PackOptions *o, const Pairs *pairs, const PackItem *items,
                  Need need, Micro *m) {
    Layout l = layout_new(arena, o, need);
    for (int64_t i = 0; i < need.pairs; i++) {
        const PackItem *item = &items[m->item[i]];
        lay_pair(&l, o, &pairs->pair[item->pair], item);
    }
    m->tokens = l.t;
    fill_up(&l, o->bucket);
    m->extent[X_T] = l.t;
    m->extent[X_R] = l.r;
    m->extent[X_G] = l.g;
    m->extent[X_K] = l.k;
    m->extent[X_N] = l.n;
    m->extent[X_P] = l.p;
    add_columns(arena, m, pairs, items);
    name_inputs(m, &l);
}

/* The pairs of the step as the objective sees them: sequences in order, no rows. */
static void build_whole(Arena *arena, const PackOptions *o, const Pairs *pairs,
                        const PackItem *items, int n, Micro *m) {
    int sides = o->sft ? 1 : 2;
    int32_t *len = NEW_ARRAY(arena, int32_t, sides * n);
    int32_t *side[2] = {NEW_ARRAY(arena, int32_t, n), NEW_ARRAY(arena, int32_t, n)};
    m->item = NEW_ARRAY(arena, int32_t, n);
    for (int i = 0; i < n; i++) {
        const Pair *p = &pairs->pair[items[i].pair];
        m->item[i] = i;
        side[0][i] = sides * i;
        side[1][i] = o->sft ? -1 : sides * i + 1;
        len[sides * i] = pair_scored(p, 0);
        if (!o->sft) len[sides * i + 1] = pair_scored(p, 1);
    }
    m->extent[X_P] = n;
    m->extent[X_N] = sides * n;
    add_columns(arena, m, pairs, items);
    add_input(m, "len", len, sides * n);
    add_input(m, "chosen", side[0], n);
    add_input(m, "rejected", side[1], n);
}

/* Denominators of the whole step. */
static void add_denominators(Arena *arena, Pack *pack, int n) {
    float *inv = NEW_ARRAY(arena, float, 5);
    inv[0] = inverse(n);
    inv[1] = inverse(pack->chosen_tokens + pack->rejected_tokens);
    inv[2] = inverse(pack->chosen_tokens);
    inv[3] = inverse(pack->rejected_tokens);
    inv[4] = 1;
    for (int i = 0; i <= pack->nmicro; i++) {
        Micro *m = i < pack->nmicro ? &pack->micro[i] : &pack->whole;
        add_input(m, "inv_pairs", inv, 1);
        add_input(m, "inv_tokens", inv + 1, 1);
        add_input(m, "inv_tokens_chosen", inv + 2, 1);
        add_input(m, "inv_tokens_rejected", inv + 3, 1);
        add_input(m, "one", inv + 4, 1); /* of a loss that has divided by its own */
    }
}

/* ---- shares of several processes ------------------------------------------------------------- */

typedef struct Card {
    int64_t rows;
    int item;
} Card;

static int larger_first(const void *a, const void *b) {
    const Card *x = a, *y = b;
    if (x->rows != y->rows) return x->rows > y->rows ? -1 : 1;
    return x->item - y->item;
}

/* The process of each item: the largest first, each to the one with the fewest rows so far. */
static int *deal(Arena *arena, const PackOptions *o, const Pairs *pairs, const PackItem *items,
                 int n) {
    Card *card = NEW_ARRAY(arena, Card, n);
    int64_t *rows = NEW_ARRAY(arena, int64_t, o->ranks);
    int *owner = NEW_ARRAY(arena, int, n);
    for (int i = 0; i < n; i++) card[i] = (Card){pack_rows(o, &pairs->pair[items[i].pair]), i};
    qsort(card, (size_t)n, sizeof *card, larger_first);
    for (int i = 0; i < n; i++) {
        int least = 0;
        for (int r = 1; r < o->ranks; r++)
            if (rows[r] < rows[least]) least = r;
        owner[card[i].item] = least;
        rows[least] += card[i].rows;
    }
    return owner;
}

Pack *pack_step(Arena *arena, const PackOptions *o, const Pairs *pairs, const PackItem *items,
                int n) {
    Pack *pack = NEW(arena, Pack);
    pack->micro = NEW_ARRAY(arena, Micro, n);
    Need *used = NEW_ARRAY(arena, Need, n);
    const int *owner = o->ranks > 1 ? deal(arena, o, pairs, items, n) : NULL;
    for (int i = 0; i < n; i++) {
        const Pair *p = &pairs->pair[items[i].pair];
        Need need = need_of(o, p);
        pack->chosen_tokens += pair_scored(p, 0);
        pack->rejected_tokens += o->sft ? 0 : pair_scored(p, 1);
        pack->tokens += p->prompt + p->chosen + (o->sft ? 0 : p->prompt + p->rejected);
        if (owner && owner[i] != o->rank) continue;
        int k = 0;
        while (k < pack->nmicro && !fits(o, add(used[k], need))) k++;
        if (k == pack->nmicro) pack->micro[pack->nmicro++].item = NEW_ARRAY(arena, int32_t, n);
        pack->micro[k].item[used[k].pairs] = i;
        used[k] = add(used[k], need);
    }
    for (int k = 0; k < pack->nmicro; k++) build(arena, o, pairs, items, used[k], &pack->micro[k]);
    build_whole(arena, o, pairs, items, n, &pack->whole);
    add_denominators(arena, pack, n);
    return pack;
}
