/* dim.c: sizes that are affine in the extents, and the element types' names and widths.
 *
 * Relies on plan.h.  Promises: dim_parse reads exactly what dim_print writes, in either order of
 * terms, and refuses everything else.
 */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int bytes;
} dtypes[NDTYPE] = {
#define DTYPE(name, bytes, st) {#name, bytes},
#include "dtypes.def"
#undef DTYPE
};

int dtype_bytes(DType t) {
    return dtypes[t].bytes;
}

const char *dtype_name(DType t) {
    return dtypes[t].name;
}

bool dtype_parse(const char *name, DType *t) {
    for (int i = 0; i < NDTYPE; i++)
        if (!strcmp(name, dtypes[i].name)) {
            *t = (DType)i;
            return true;
        }
    return false;
}

Dim dim_const(int64_t c) {
    return (Dim){.c = c};
}

Dim dim_extent(Extent e) {
    Dim d = {0};
    d.x[e] = 1;
    return d;
}

Dim dim_add(Dim a, Dim b) {
    a.c += b.c;
    for (int e = 0; e < NEXTENT; e++) a.x[e] += b.x[e];
    return a;
}

Dim dim_scale(Dim a, int64_t k) {
    a.c *= k;
    for (int e = 0; e < NEXTENT; e++) a.x[e] = (int32_t)(a.x[e] * k);
    return a;
}

Dim dim_mul(Dim a, Dim b) {
    if (dim_is_const(b)) return dim_scale(a, b.c);
    if (dim_is_const(a)) return dim_scale(b, a.c);
    fprintf(stderr, "bug: product of two sizes that both depend on extents\n");
    abort();
}

bool dim_equal(Dim a, Dim b) {
    return a.c == b.c && !memcmp(a.x, b.x, sizeof a.x);
}

bool dim_is_const(Dim a) {
    for (int e = 0; e < NEXTENT; e++)
        if (a.x[e]) return false;
    return true;
}

int64_t dim_eval(Dim a, const int64_t extent[NEXTENT]) {
    int64_t sum = a.c;
    for (int e = 0; e < NEXTENT; e++)
        if (a.x[e]) sum += a.x[e] * extent[e];
    return sum;
}

char *dim_print(Arena *arena, Dim a) {
    char text[NEXTENT * 16 + 24];
    size_t n = 0;
    for (int e = 0; e < NEXTENT; e++) {
        int32_t k = a.x[e];
        if (!k) continue;
        if (n && k > 0) text[n++] = '+';
        if (k == -1) text[n++] = '-';
        if (k != 1 && k != -1) n += (size_t)snprintf(text + n, sizeof text - n, "%d*", k);
        text[n++] = EXTENT_LETTERS[e];
    }
    text[n] = 0;
    if (!n)
        snprintf(text, sizeof text, "%lld", (long long)a.c);
    else if (a.c)
        snprintf(text + n, sizeof text - n, "%+lld", (long long)a.c);
    return arena_str(arena, text);
}

/* One signed term of a sum; returns where it ends, or NULL. */
static const char *parse_term(const char *s, Dim *out) {
    int64_t sign = 1, k = 1;
    if (*s == '+' || *s == '-') sign = *s++ == '-' ? -1 : 1;
    bool number = *s >= '0' && *s <= '9';
    if (number) {
        k = 0;
        while (*s >= '0' && *s <= '9') {
            if (k > INT64_MAX / 1000) return NULL;
            k = k * 10 + (*s++ - '0');
        }
        if (*s != '*') {
            out->c += sign * k;
            return s;
        }
        s++;
    }
    const char *letter = *s ? strchr(EXTENT_LETTERS, *s) : NULL;
    if (!letter || k > INT32_MAX) return NULL;
    int32_t *x = &out->x[letter - EXTENT_LETTERS];
    if (*x) return NULL; /* each extent once */
    *x = (int32_t)(sign * k);
    return s + 1;
}

bool dim_parse(const char *text, Dim *out) {
    Dim d = {0};
    const char *s = text;
    int terms = 0;
    do {
        if (terms && *s != '+' && *s != '-') return false;
        if (++terms > 2 * NEXTENT + 2) return false;
        s = parse_term(s, &d);
        if (!s) return false;
    } while (*s);
    *out = d;
    return true;
}
