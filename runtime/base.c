/* base.c: arenas, interned strings, errors, growing text, hashes, closest names (base.h).
 *
 * Relies on libc only.  Everything here may be called from any thread as long as each arena and
 * each Text has one user at a time; intern() has a lock of its own.
 */
#include "base.h"

#include <pthread.h> /* pthread_mutex_lock */
#include <stdlib.h>  /* malloc */
#include <string.h>  /* memcpy */

static _Noreturn void out_of_memory(size_t bytes) {
    fprintf(stderr, "dpoc: error: out of host memory (asked for %zu bytes)\n", bytes);
    exit(EXIT_MEMORY);
}

/* ---- arenas ---------------------------------------------------------------------------------- */

typedef struct Block {
    struct Block *next;
    size_t size, used;
} Block;

struct Arena {
    Block *block; /* the newest; allocations are cut from it */
};

enum { BLOCK_HEAD = (sizeof(Block) + 15) / 16 * 16, BLOCK_MIN = 16 << 10, BLOCK_MAX = 4 << 20 };

Arena *arena_new(void) {
    Arena *arena = calloc(1, sizeof *arena);
    if (!arena) out_of_memory(sizeof *arena);
    return arena;
}

void arena_free(Arena *arena) {
    if (!arena) return;
    for (Block *block = arena->block, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    free(arena);
}

#ifdef HARD /* every allocation its own block of just that size: the sanitizer sees each overrun */
static size_t block_size(const Block *last, size_t need) {
    (void)last;
    return need;
}
static size_t granted(size_t bytes) {
    return bytes;
}
#else
static size_t block_size(const Block *last, size_t need) {
    size_t size = !last ? BLOCK_MIN : last->size < BLOCK_MAX ? last->size * 2 : BLOCK_MAX;
    return size > need ? size : need;
}
static size_t granted(size_t bytes) {
    return (bytes + 15) / 16 * 16;
}
#endif

void *arena_alloc(Arena *arena, size_t bytes) {
    if (bytes > SIZE_MAX / 2) out_of_memory(bytes);
    size_t need = granted(bytes);
    Block *block = arena->block;
    if (!block || block->size - block->used < need || block->used % 16) {
        size_t size = block_size(block, need);
        block = calloc(1, BLOCK_HEAD + size);
        if (!block) out_of_memory(bytes);
        block->size = size;
        block->next = arena->block;
        arena->block = block;
    }
    void *result = (char *)block + BLOCK_HEAD + block->used;
    block->used += need;
    return result;
}

char *arena_strn(Arena *arena, const char *s, size_t n) {
    char *copy = arena_alloc(arena, n + 1);
    memcpy(copy, s, n);
    return copy;
}

char *arena_str(Arena *arena, const char *s) {
    return arena_strn(arena, s, strlen(s));
}

char *arena_vprintf(Arena *arena, const char *format, va_list args) {
    Text text = {0};
    text_vadd(&text, format, args);
    char *copy = arena_strn(arena, text.data, text.len);
    text_free(&text);
    return copy;
}

char *arena_printf(Arena *arena, const char *format, ...) {
    va_list args;
    va_start(args, format);
    char *text = arena_vprintf(arena, format, args);
    va_end(args);
    return text;
}

void *arena_grow(Arena *arena, void *v, size_t size, int n, int *cap) {
    if (n < *cap) return v;
    int more = *cap ? *cap * 2 : 8;
    void *bigger = arena_alloc(arena, size * (size_t)more);
    if (n) memcpy(bigger, v, size * (size_t)n);
    *cap = more;
    return bigger;
}

/* ---- hashes -------------------------------------------------------------------------------------
 * MurmurHash3's 128-bit finish and mixing for 64-bit machines, on little-endian words. */

static uint64_t rotate(uint64_t x, int by) {
    return (x << by) | (x >> (64 - by));
}

static uint64_t finish(uint64_t x) {
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdULL;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

Hash128 hash_bytes(const void *data, size_t n, Hash128 seed) {
    static const uint64_t c1 = 0x87c37b91114253d5ULL, c2 = 0x4cf5ad432745937fULL;
    const unsigned char *p = data;
    uint64_t a = seed.lo, b = seed.hi;
    for (size_t i = 0; i < n; i += 16) { /* the tail is filled up with zeros; n is mixed in below */
        uint64_t word[2] = {0, 0};
        memcpy(word, p + i, n - i < 16 ? n - i : 16);
        a = (rotate(a ^ rotate(word[0] * c1, 31) * c2, 27) + b) * 5 + 0x52dce729;
        b = (rotate(b ^ rotate(word[1] * c2, 33) * c1, 31) + a) * 5 + 0x38495ab5;
    }
    a ^= n;
    b ^= n;
    a += b;
    b += a;
    a = finish(a);
    b = finish(b);
    a += b;
    b += a;
    return (Hash128){.hi = b, .lo = a};
}

void hash_hex(Hash128 hash, char hex[33]) {
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long)hash.hi, (unsigned long long)hash.lo);
}

/* ---- interned strings ------------------------------------------------------------------------ */

static struct {
    pthread_mutex_t lock;
    Arena *arena;
    const char **slot; /* open addressing, a power of two, at most half full */
    size_t size, used;
} names = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* The slot where `s` is, or the empty one where it belongs. */
static size_t intern_slot(const char **slot, size_t size, const char *s, size_t n) {
    size_t i = (size_t)hash_bytes(s, n, (Hash128){0, 0}).lo & (size - 1);
    while (slot[i] && (strncmp(slot[i], s, n) != 0 || slot[i][n])) i = (i + 1) & (size - 1);
    return i;
}

static void intern_grow(void) {
    size_t size = names.size ? names.size * 2 : 1024;
    const char **slot = calloc(size, sizeof *slot);
    if (!slot) out_of_memory(size * sizeof *slot);
    for (size_t i = 0; i < names.size; i++) {
        const char *s = names.slot[i];
        if (s) slot[intern_slot(slot, size, s, strlen(s))] = s;
    }
    free(names.slot);
    names.slot = slot;
    names.size = size;
}

const char *intern_n(const char *s, size_t n) {
    if (!s) return NULL;
    n = strnlen(s, n);
    pthread_mutex_lock(&names.lock);
    if (!names.arena) names.arena = arena_new();
    if (2 * (names.used + 1) > names.size) intern_grow();
    size_t i = intern_slot(names.slot, names.size, s, n);
    if (!names.slot[i]) {
        names.slot[i] = arena_strn(names.arena, s, n);
        names.used++;
    }
    const char *found = names.slot[i];
    pthread_mutex_unlock(&names.lock);
    return found;
}

const char *intern(const char *s) {
    return s ? intern_n(s, strlen(s)) : NULL;
}

const char *intern_printf(const char *format, ...) {
    Text text = {0};
    va_list args;
    va_start(args, format);
    text_vadd(&text, format, args);
    va_end(args);
    const char *result = intern(text.data);
    text_free(&text);
    return result;
}

/* ---- errors ---------------------------------------------------------------------------------- */

bool fail(Err *err, int code, const char *format, ...) {
    if (err && !err->code) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        err->code = code;
    }
    return false;
}

/* ---- text that grows ------------------------------------------------------------------------- */

static void text_room(Text *text, size_t n) {
    if (text->cap - text->len > n) return;
    size_t cap = text->cap ? text->cap : 256;
    while (cap - text->len <= n) cap *= 2;
    char *data = realloc(text->data, cap);
    if (!data) out_of_memory(cap);
    text->data = data;
    text->cap = cap;
}

void text_addn(Text *text, const char *data, size_t n) {
    text_room(text, n);
    if (n) memcpy(text->data + text->len, data, n);
    text->len += n;
    text->data[text->len] = '\0';
}

void text_vadd(Text *text, const char *format, va_list args) {
    va_list again;
    va_copy(again, args);
    text_room(text, 120);
    size_t room = text->cap - text->len;
    int n = vsnprintf(text->data + text->len, room, format, args);
    if (n >= 0 && (size_t)n >= room) {
        text_room(text, (size_t)n);
        vsnprintf(text->data + text->len, (size_t)n + 1, format, again);
    }
    va_end(again);
    if (n > 0) text->len += (size_t)n;
}

void text_add(Text *text, const char *format, ...) {
    va_list args;
    va_start(args, format);
    text_vadd(text, format, args);
    va_end(args);
}

void text_free(Text *text) {
    free(text->data);
    *text = (Text){0};
}

/* ---- names ----------------------------------------------------------------------------------- */

enum { LONGEST_NAME = 64 }; /* longer ones are never suggested */

static int smaller(int a, int b) {
    return a < b ? a : b;
}

bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

int edit_distance(const char *a, const char *b) {
    int na = (int)strlen(a), nb = (int)strlen(b);
    if (na > LONGEST_NAME || nb > LONGEST_NAME) return strcmp(a, b) ? LONGEST_NAME : 0;
    int row[3][LONGEST_NAME + 1]; /* rows i-2, i-1 and i of the table, i modulo 3 */
    for (int j = 0; j <= nb; j++) row[0][j] = j;
    for (int i = 1; i <= na; i++) {
        const int *before = row[(i + 1) % 3], *last = row[(i + 2) % 3];
        int *now = row[i % 3];
        now[0] = i;
        for (int j = 1; j <= nb; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            best = smaller(best, smaller(last[j], now[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = smaller(best, before[j - 2] + 1);
            now[j] = best;
        }
    }
    return row[na % 3][nb];
}

const char *closest_name(const char *name, const char *const *candidates, int n) {
    int allowed = (int)strlen(name) / 3, least = LONGEST_NAME;
    if (allowed < 1) allowed = 1;
    const char *best = NULL;
    for (int i = 0; i < n; i++) {
        int distance = edit_distance(name, candidates[i]);
        if (distance <= allowed && distance < least) {
            least = distance;
            best = candidates[i];
        }
    }
    return best;
}
