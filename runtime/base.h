/* base.h: what every file of both halves uses: arenas, interned strings, errors, hashes, files.
 *
 * It stands in runtime/ because the runtime never includes a compiler header while both halves
 * need these few things.  Nothing here knows about graphs, plans or models.
 */
#ifndef DPOC_BASE_H
#define DPOC_BASE_H

#include <stdarg.h>  /* va_list */
#include <stdbool.h> /* bool */
#include <stddef.h>  /* size_t */
#include <stdint.h>  /* int64_t ... */
#include <stdio.h>   /* FILE */

/* Exit codes (HOUSE.md).  An Err carries one of them. */
enum {
    EXIT_OK = 0,
    EXIT_INPUT = 1,   /* the input is wrong: diagnostics were printed */
    EXIT_USAGE = 2,   /* wrong usage */
    EXIT_DEVICE = 3,  /* no suitable device */
    EXIT_MEMORY = 4,  /* out of memory, or the plan does not fit */
    EXIT_IO = 5,      /* I/O error or bad data file */
    EXIT_NUMERIC = 6, /* numerical failure */
    EXIT_BUG = 70     /* our bug */
};

#if defined(__GNUC__)
#    define PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#    define PRINTF(f, a)
#endif

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- arenas: memory that dies together -------------------------------------------------------
 * Allocation aborts the process with exit 4 when the host is out of memory: no caller checks NULL.
 */
typedef struct Arena Arena;
Arena *arena_new(void);
void arena_free(Arena *arena);                           /* NULL is allowed */
void *arena_alloc(Arena *arena, size_t bytes);           /* zeroed, 16-byte aligned */
char *arena_strn(Arena *arena, const char *s, size_t n); /* copy of n bytes, NUL-terminated */
char *arena_str(Arena *arena, const char *s);
char *arena_printf(Arena *arena, const char *format, ...) PRINTF(2, 3);
char *arena_vprintf(Arena *arena, const char *format, va_list args) PRINTF(2, 0);

#define NEW(arena, T)          ((T *)arena_alloc((arena), sizeof(T)))
#define NEW_ARRAY(arena, T, n) ((T *)arena_alloc((arena), sizeof(T) * (size_t)(n)))

/* Room for one more element at the end of a growable arena array of elements of `size` bytes.
 * Use through PUSH: the array is `v`, its length `n`, its capacity `cap` (start all at zero). */
void *arena_grow(Arena *arena, void *v, size_t size, int n, int *cap);
#define PUSH(arena, v, n, cap, item)                                                               \
    ((v) = arena_grow((arena), (v), sizeof(*(v)), (n), &(cap)), (v)[(n)++] = (item))

/* Interned strings: live forever, equal text is the same pointer.  NULL gives NULL. */
const char *intern(const char *s);
const char *intern_n(const char *s, size_t n);
const char *intern_printf(const char *format, ...) PRINTF(1, 2);

/* ---- errors of the runtime: the first one is kept -------------------------------------------- */
typedef struct Err {
    int code; /* 0: none; else an exit code above */
    char text[2000];
} Err;
#undef fail /* cmocka has a macro of this name */
/* Records the first error (later ones are consequences); always returns false. */
bool fail(Err *err, int code, const char *format, ...) PRINTF(3, 4);

/* ---- text that grows ------------------------------------------------------------------------- */
typedef struct Text {
    char *data; /* always NUL-terminated once something was added; owned, text_free */
    size_t len, cap;
} Text;
void text_add(Text *text, const char *format, ...) PRINTF(2, 3);
void text_vadd(Text *text, const char *format, va_list args) PRINTF(2, 0);
void text_addn(Text *text, const char *data, size_t n);
void text_free(Text *text);

/* ---- hashes, names, files -------------------------------------------------------------------- */
typedef struct Hash128 {
    uint64_t hi, lo;
} Hash128;
Hash128 hash_bytes(const void *data, size_t n, Hash128 seed); /* stable forever */
void hash_hex(Hash128 hash, char hex[33]);

bool ends_with(const char *s, const char *end);

/* Damerau-Levenshtein distance, for suggestions. */
int edit_distance(const char *a, const char *b);
/* The candidate closest to `name` within max(1, len/3) edits, or NULL. */
const char *closest_name(const char *name, const char *const *candidates, int n);

/* Whole file into memory (NUL-terminated, malloc); NULL and err when that fails.  Refuses
 * directories. */
char *file_read(const char *path, size_t *len, Err *err);
/* Writes to a temporary name beside `path`, syncs, renames: readers see the old or the new file. */
bool file_write(const char *path, const void *data, size_t len, Err *err);
bool file_exists(const char *path);
void remove_tree(const char *path); /* a directory with all in it, or a file; absent is fine */
bool dir_make(const char *path, Err *err); /* with parents; existing is fine */
char *path_join(Arena *arena, const char *dir, const char *name); /* absolute: name */

/* Files compiled into the binary (models/, kernels/): text by repository path, or NULL. */
const char *embedded(const char *path, size_t *len);
int embedded_count(void);
const char *embedded_name(int i);

/* A unit's factor: B KiB MiB GiB TiB (powers of 1024), kB KB MB GB TB k (powers of 1000). */
bool unit_scale(const char *unit, size_t n, double *scale);
/* "8", "40GiB", "40 GiB", "1.5GB", "2k" -> a number of bytes or units; false when malformed. */
bool parse_size(const char *text, double *value);
void format_bytes(char out[32], double bytes); /* "12.3 MiB" */
double now_seconds(void);                      /* monotonic */

/* bf16 and f16 bit patterns <-> float, round to nearest even. */
float bf16_to_float(uint16_t bits);
uint16_t float_to_bf16(float x);
float f16_to_float(uint16_t bits);
uint16_t float_to_f16(float x);
/* The same for n of them. */
void floats_from_bf16(float *out, const uint16_t *bits, int64_t n);
void floats_from_f16(float *out, const uint16_t *bits, int64_t n);
void floats_to_bf16(uint16_t *out, const float *x, int64_t n);

#endif
