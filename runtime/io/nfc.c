/* nfc.c: decompose, order the marks, compose (nfc.h; Unicode Standard Annex 15).
 *
 * A run from one starter (combining class 0) to the next is all that is looked at together, but for
 * a starter that composes with the one before it.
 */
#include "nfc.h"
#include "utf8.h"

#include <stdlib.h> /* bsearch, realloc */
#include <string.h> /* memmove */

typedef struct Decomposition {
    uint32_t code, first, second;
} Decomposition;
typedef struct Composition {
    uint32_t first, second, code;
} Composition;
typedef struct Class {
    uint32_t from, to;
    int class;
} Class;

static const Decomposition decompositions[] = {
#define D(code, first, second) {code, first, second},
#include "nfc_decompose.def"
#undef D
};
static const Composition compositions[] = {
#define C(first, second, code) {first, second, code},
#include "nfc_compose.def"
#undef C
};
static const Class classes[] = {
#define K(from, to, class) {from, to, class},
#include "nfc_class.def"
#undef K
};

/* Hangul syllables are computed: L x V x T letters. */
enum { S0 = 0xAC00, L0 = 0x1100, V0 = 0x1161, T0 = 0x11A7, NL = 19, NV = 21, NT = 28 };

static int by_code(const void *key, const void *item) {
    uint32_t a = *(const uint32_t *)key, b = ((const Decomposition *)item)->code;
    return a < b ? -1 : a > b;
}
static int by_pair(const void *key, const void *item) {
    const Composition *a = key, *b = item;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    return a->second < b->second ? -1 : a->second > b->second;
}
static int in_range(const void *key, const void *item) {
    uint32_t c = *(const uint32_t *)key;
    const Class *r = item;
    return c < r->from ? -1 : c > r->to;
}

static int class_of(uint32_t c) {
    if (c < 0x300) return 0;
    const Class *r = bsearch(&c, classes, COUNT(classes), sizeof *classes, in_range);
    return r ? r->class : 0;
}

/* The character that two become, or 0. */
static uint32_t compose(uint32_t a, uint32_t b) {
    if (a >= L0 && a < L0 + NL && b >= V0 && b < V0 + NV)
        return S0 + ((a - L0) * NV + (b - V0)) * NT;
    if (a >= S0 && a < S0 + NL * NV * NT && (a - S0) % NT == 0 && b > T0 && b < T0 + NT)
        return a + (b - T0);
    const Composition key = {a, b, 0};
    const Composition *c = bsearch(&key, compositions, COUNT(compositions), sizeof key, by_pair);
    return c ? c->code : 0;
}

/* ---- characters under work ------------------------------------------------------------------- */

typedef struct Run {
    uint32_t *c;
    size_t n, cap;
} Run;

static void push(Run *r, uint32_t c) {
    if (r->n == r->cap) {
        r->cap = 2 * r->cap + 256;
        uint32_t *more = realloc(r->c, r->cap * sizeof *more);
        if (!more) {
            fprintf(stderr, "dpoc: out of host memory in the tokenizer\n");
            exit(EXIT_MEMORY);
        }
        r->c = more;
    }
    r->c[r->n++] = c;
}

/* Adds a character's full decomposition. */
static void decompose(Run *r, uint32_t c) {
    if (c >= S0 && c < S0 + NL * NV * NT) {
        uint32_t s = c - S0;
        push(r, L0 + s / (NV * NT));
        push(r, V0 + s % (NV * NT) / NT);
        if (s % NT) push(r, T0 + s % NT);
        return;
    }
    const Decomposition *d = c < 0xC0 ? NULL
                                      : bsearch(&c, decompositions, COUNT(decompositions),
                                                sizeof *decompositions, by_code);
    if (!d) {
        push(r, c);
        return;
    }
    decompose(r, d->first);
    if (d->second) decompose(r, d->second);
}

/* Marks between two starters, by class; equal ones keep their order (insertion sort would be
 * quadratic on a hostile run, so equal classes are counted). */
static void order_marks(Run *r, Run *scratch) {
    for (size_t i = 0; i < r->n;) {
        if (class_of(r->c[i]) == 0) {
            i++;
            continue;
        }
        size_t end = i, count[256] = {0};
        while (end < r->n && class_of(r->c[end])) count[class_of(r->c[end++])]++;
        for (size_t k = 1, at = 0, n; k < 256; k++, at += n) n = count[k], count[k] = at;
        scratch->n = 0;
        for (size_t k = i; k < end; k++) push(scratch, 0);
        for (size_t k = i; k < end; k++) scratch->c[count[class_of(r->c[k])]++] = r->c[k];
        memcpy(r->c + i, scratch->c, (end - i) * sizeof *r->c);
        i = end;
    }
}

/* Composes in place: each character with the last starter, unless one of its class stands between.
 * */
static void compose_all(Run *r) {
    size_t n = 0, starter = SIZE_MAX;
    int last = -1; /* class of what stands between; -1: nothing */
    for (size_t i = 0; i < r->n; i++) {
        uint32_t c = r->c[i];
        int class = class_of(c);
        uint32_t both = starter != SIZE_MAX && (last == -1 || (last < class && last > 0))
                            ? compose(r->c[starter], c)
                            : 0;
        if (both) {
            r->c[starter] = both;
            continue;
        }
        if (class == 0) {
            starter = n;
            last = -1;
        } else {
            last = class;
        }
        r->c[n++] = c;
    }
    r->n = n;
}

void nfc(const char *s, size_t len, Text *out) {
    size_t plain = 0; /* below U+0300 everything is in this form already */
    while (plain < len && (unsigned char)s[plain] < 0xCC) plain++;
    if (plain == len) {
        text_addn(out, s, len);
        return;
    }
    Run r = {0}, scratch = {0};
    for (size_t i = 0; i < len;) {
        int n = utf8_length(s + i, len - i);
        if (n == 0) n = 1; /* callers repair their text: this only guards */
        decompose(&r, utf8_decode(s + i, n));
        i += (size_t)n;
    }
    order_marks(&r, &scratch);
    compose_all(&r);
    for (size_t i = 0; i < r.n; i++) {
        char bytes[4];
        text_addn(out, bytes, (size_t)utf8_encode(r.c[i], bytes));
    }
    free(r.c);
    free(scratch.c);
}
