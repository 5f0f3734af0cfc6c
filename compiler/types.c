/* types.c: tensor types, interned forever.
 *
 * Relies on runtime/base.h and dim.c.  Promises: equal types are the same pointer; type_parse reads
 * what type_print writes; type_rows x type_cols is always the number of elements.
 */
#include "dpoc.h"

#include <stdlib.h>
#include <string.h>

static struct {
    Arena *arena;
    const Type **slot; /* open addressing; cap is a power of two */
    int n, cap;
} pool;

static uint64_t type_hash(const Type *t) {
    uint64_t h = (uint64_t)t->dtype * 31 + (uint64_t)t->rank;
    for (int i = 0; i < t->rank; i++) {
        h = (h ^ (uint64_t)t->dim[i].c) * 0x9e3779b97f4a7c15u;
        for (int e = 0; e < NEXTENT; e++)
            h = (h ^ (uint64_t)(uint32_t)t->dim[i].x[e]) * 0x9e3779b97f4a7c15u;
    }
    return h ^ h >> 29;
}

static bool type_equal(const Type *a, const Type *b) {
    if (a->dtype != b->dtype || a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (!dim_equal(a->dim[i], b->dim[i])) return false;
    return true;
}

/* Where `t` stands or would stand. */
static const Type **pool_find(const Type *t) {
    uint64_t i = type_hash(t);
    for (;; i++) {
        const Type **slot = &pool.slot[i & (uint64_t)(pool.cap - 1)];
        if (!*slot || type_equal(*slot, t)) return slot;
    }
}

static void pool_grow(void) {
    const Type **old = pool.slot;
    int cap = pool.cap;
    pool.cap = cap ? cap * 2 : 256;
    pool.slot = NEW_ARRAY(pool.arena, const Type *, pool.cap);
    for (int i = 0; i < cap; i++)
        if (old[i]) *pool_find(old[i]) = old[i];
}

const Type *type_of(DType dtype, int rank, const Dim *dim) {
    if (!pool.arena) pool.arena = arena_new();
    if (pool.n * 2 >= pool.cap) pool_grow();
    Type t = {.dtype = dtype, .rank = rank};
    for (int i = 0; i < rank; i++) t.dim[i] = dim[i];
    const Type **slot = pool_find(&t);
    if (!*slot) {
        Type *copy = NEW(pool.arena, Type);
        *copy = t;
        *slot = copy;
        pool.n++;
    }
    return *slot;
}

const Type *type_scalar(DType dtype) {
    return type_of(dtype, 0, NULL);
}

const Type *type_vec(DType dtype, Dim n) {
    return type_of(dtype, 1, &n);
}

const Type *type_mat(DType dtype, Dim rows, Dim cols) {
    return type_of(dtype, 2, (Dim[]){rows, cols});
}

const Type *type_with(const Type *t, DType dtype) {
    return type_of(dtype, t->rank, t->dim);
}

Dim type_count(const Type *t) {
    Dim n = dim_const(1);
    for (int i = 0; i < t->rank; i++) n = dim_mul(n, t->dim[i]);
    return n;
}

int64_t type_cols(const Type *t) {
    if (!t->rank || !dim_is_const(t->dim[t->rank - 1])) return 1;
    return t->dim[t->rank - 1].c;
}

Dim type_rows(const Type *t) {
    bool whole = t->rank && !dim_is_const(t->dim[t->rank - 1]);
    Dim n = dim_const(1);
    for (int i = 0; i < t->rank - !whole; i++) n = dim_mul(n, t->dim[i]);
    return n;
}

char *type_print(Arena *arena, const Type *t) {
    char *text = arena_printf(arena, "%s[", dtype_name(t->dtype));
    for (int i = 0; i < t->rank; i++)
        text = arena_printf(arena, "%s%s%s", text, i ? "," : "", dim_print(arena, t->dim[i]));
    return arena_printf(arena, "%s]", text);
}

bool type_parse(const char *text, const Type **out) {
    const char *open = strchr(text, '[');
    size_t len = strlen(text);
    if (!open || len > 400 || text[len - 1] != ']') return false;
    char word[8] = "";
    if ((size_t)(open - text) >= sizeof word) return false;
    memcpy(word, text, (size_t)(open - text));
    DType dtype;
    if (!dtype_parse(word, &dtype)) return false;
    Dim dim[MAX_RANK];
    int rank = 0, varying = 0;
    double count = 1;
    const char *s = open + 1, *end = text + len - 1;
    while (s < end) {
        char size[128] = "";
        size_t n = strcspn(s, ",]");
        if (rank == MAX_RANK || n >= sizeof size) return false;
        memcpy(size, s, n);
        if (!dim_parse(size, &dim[rank])) return false;
        bool fixed = dim_is_const(dim[rank]);
        if (fixed && dim[rank].c < 0) return false;
        varying += !fixed;
        for (int e = 0; e < NEXTENT; e++) count *= abs(dim[rank].x[e]) + 1.0;
        count *= (double)llabs(dim[rank].c) + 1;
        rank++;
        s += n;
        if (s < end && (*s++ != ',' || s == end)) return false;
    }
    /* Counts must stay affine in the extents, and far from overflow. */
    if (varying > 1 || count > 1e15) return false;
    *out = type_of(dtype, rank, dim);
    return true;
}
