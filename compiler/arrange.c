/* arrange.c: offsets for blocks that live for a while, so that no two live ones overlap.
 *
 * Blocks are placed one by one at the lowest gap that holds them for their whole life.  The order
 * decides how good the result is, so several orders are tried, and then the blocks that reach the
 * top are moved to the front, as long as that helps and time allows.  A shrinking block is a
 * staircase: several pieces in time at one offset.  Depends on nothing but its input; the same
 * input gives the same offsets.
 */
#include "dpoc.h"

#include <stdlib.h>
#include <string.h>

typedef struct Piece { /* a block holds `bytes` during first..last */
    int first, last;
    int64_t bytes;
} Piece;

typedef struct Span { /* offsets begin < x < end are taken */
    int64_t begin, end;
} Span;

typedef struct Work {
    const Block *block;
    int n;
    int64_t align;
    Piece *piece; /* of all blocks, block i's are piece[start[i] .. start[i + 1]) */
    int *start;
    int *order;      /* blocks in the order they are placed */
    int64_t *offset; /* of the arrangement under construction */
    Span *span;
} Work;

static int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

static int pieces_of(const Block *b, int64_t align, Piece *out) {
    int n = 0, first = b->first;
    int64_t bytes = b->bytes;
    for (int i = 0; i < b->nshrink && b->shrink[i].step < b->last; i++) {
        if (b->shrink[i].step >= first)
            out[n++] = (Piece){first, b->shrink[i].step, round_up(bytes, align)};
        first = b->shrink[i].step >= first ? b->shrink[i].step + 1 : first;
        bytes = b->shrink[i].bytes;
    }
    out[n++] = (Piece){first, b->last, round_up(bytes, align)};
    return n;
}

/* ---- the bound ------------------------------------------------------------------------------- */

typedef struct Event {
    int step;
    int64_t change;
} Event;
static int by_step(const void *a, const void *b) {
    const Event *x = a, *y = b;
    if (x->step != y->step) return x->step < y->step ? -1 : 1;
    return (x->change > y->change) - (x->change < y->change); /* ends before beginnings */
}

int64_t arrange_bound(const Block *block, int n, int64_t align) {
    int total = 0;
    for (int i = 0; i < n; i++) total += block[i].nshrink + 1;
    Arena *arena = arena_new();
    Event *event = NEW_ARRAY(arena, Event, 2 * total + 1);
    Piece *piece = NEW_ARRAY(arena, Piece, total + 1);
    int count = 0;
    for (int i = 0; i < n; i++) {
        int np = pieces_of(&block[i], align, piece);
        for (int k = 0; k < np; k++) {
            event[count++] = (Event){piece[k].first, piece[k].bytes};
            event[count++] = (Event){piece[k].last + 1, -piece[k].bytes};
        }
    }
    qsort(event, (size_t)count, sizeof *event, by_step);
    int64_t live = 0, most = 0;
    for (int i = 0; i < count; i++) {
        live += event[i].change;
        if (live > most) most = live;
    }
    arena_free(arena);
    return most;
}

/* ---- one arrangement ------------------------------------------------------------------------- */

static int by_begin(const void *a, const void *b) {
    const Span *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

/* Adds the offsets of block i that a placed block j forbids. */
static int forbid(const Work *w, int i, int j, int n) {
    if (w->block[i].last < w->block[j].first || w->block[j].last < w->block[i].first) return n;
    for (int p = w->start[i]; p < w->start[i + 1]; p++)
        for (int q = w->start[j]; q < w->start[j + 1]; q++) {
            const Piece *a = &w->piece[p], *b = &w->piece[q];
            if (a->last < b->first || b->last < a->first || !a->bytes || !b->bytes) continue;
            w->span[n++] = (Span){w->offset[j] - a->bytes, w->offset[j] + b->bytes};
        }
    return n;
}

/* Places the blocks in w->order, each at the lowest offset nothing forbids; returns the height. */
static int64_t place_all(Work *w) {
    int64_t height = 0;
    for (int k = 0; k < w->n; k++) {
        int i = w->order[k], n = 0;
        for (int l = 0; l < k; l++) n = forbid(w, i, w->order[l], n);
        qsort(w->span, (size_t)n, sizeof *w->span, by_begin);
        int64_t at = 0;
        for (int s = 0; s < n && w->span[s].begin < at; s++)
            if (w->span[s].end > at) at = w->span[s].end;
        w->offset[i] = at;
        int64_t top = at + w->piece[w->start[i]].bytes;
        if (top > height) height = top;
    }
    return height;
}

/* ---- orders ---------------------------------------------------------------------------------- */

typedef struct Key {
    double major, minor;
    int block;
} Key;
static int by_key(const void *a, const void *b) { /* greatest first; then as given */
    const Key *x = a, *y = b;
    if (x->major != y->major) return x->major > y->major ? -1 : 1;
    if (x->minor != y->minor) return x->minor > y->minor ? -1 : 1;
    return x->block - y->block;
}

enum { BY_BYTES, BY_AREA, BY_LIFE, BY_BEGIN, BY_END, NORDER };

static void set_order(Work *w, Key *key, int kind) {
    for (int i = 0; i < w->n; i++) {
        const Block *b = &w->block[i];
        double bytes = (double)b->bytes, life = b->last - b->first + 1;
        key[i].block = i;
        key[i].major = kind == BY_BYTES   ? bytes
                       : kind == BY_AREA  ? bytes * life
                       : kind == BY_LIFE  ? life
                       : kind == BY_BEGIN ? -b->first
                                          : b->last;
        key[i].minor = kind == BY_BYTES ? life : bytes;
    }
    qsort(key, (size_t)w->n, sizeof *key, by_key);
    for (int i = 0; i < w->n; i++) w->order[i] = key[i].block;
}

/* Moves the blocks that reach `height` to the front of the order; false if they are there
 * already. */
static bool raise_top(Work *w, int64_t height, int *room) {
    int front = 0, rest = 0;
    bool moved = false;
    for (int k = 0; k < w->n; k++) {
        int i = w->order[k];
        bool top = w->offset[i] + w->piece[w->start[i]].bytes == height;
        moved |= top && front != k;
        if (top)
            w->order[front++] = i;
        else
            room[rest++] = i;
    }
    memcpy(w->order + front, room, sizeof *room * (size_t)rest);
    return moved;
}

static Work work_new(Arena *arena, const Block *block, int n, int64_t align) {
    int total = 0;
    for (int i = 0; i < n; i++) total += block[i].nshrink + 1;
    Work w = {.block = block, .n = n, .align = align};
    w.piece = NEW_ARRAY(arena, Piece, total + 1);
    w.start = NEW_ARRAY(arena, int, n + 1);
    w.order = NEW_ARRAY(arena, int, n + 1);
    w.offset = NEW_ARRAY(arena, int64_t, n + 1);
    int most = 1;
    for (int i = 0; i < n; i++) {
        int count = pieces_of(&block[i], align, w.piece + w.start[i]);
        w.start[i + 1] = w.start[i] + count;
        if (count > most) most = count;
    }
    w.span = NEW_ARRAY(arena, Span, (int64_t)total * most + 1);
    return w;
}

int64_t arrange(Block *block, int n, int64_t align, int64_t floor) {
    Arena *arena = arena_new();
    Work w = work_new(arena, block, n, align);
    Key *key = NEW_ARRAY(arena, Key, n + 1);
    int *room = NEW_ARRAY(arena, int, n + 1);
    int64_t bound = arrange_bound(block, n, align), enough = bound + bound / 200, best = INT64_MAX;
    if (enough < floor) enough = floor < INT64_MAX ? floor : INT64_MAX - 1;
    double pairs = 0; /* work done so far; a few tenths of a second are enough */
    for (int kind = 0; kind < NORDER && best > enough; kind++) {
        set_order(&w, key, kind);
        for (int round = 0; round < 40 && best > enough && (best == INT64_MAX || pairs < 4e7);
             round++) {
            int64_t height = place_all(&w);
            pairs += 0.5 * n * n;
            if (height < best) {
                best = height;
                for (int i = 0; i < n; i++) block[i].offset = w.offset[i];
            }
            if (!raise_top(&w, height, room)) break;
        }
    }
    arena_free(arena);
    return n ? best : 0;
}
