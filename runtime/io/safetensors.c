/* safetensors.c: reading (safetensors.h).  The layout: u64 header size, JSON header, data.
 *
 * The header is parsed by jansson, which refuses duplicate keys; everything it says is then checked
 * against the file's length before any of it is believed.
 */
#include "safetensors.h"

#include <errno.h>    /* errno */
#include <fcntl.h>    /* open */
#include <inttypes.h> /* PRId64 */
#include <jansson.h>
#include <stdlib.h>   /* malloc, qsort */
#include <string.h>   /* strcmp */
#include <sys/stat.h> /* fstat */
#include <unistd.h>   /* pread */

#define HEADER_MAX 100000000

struct SafeFile {
    Arena *arena;
    const char *path;
    int fd;
    int64_t data;               /* where the data begins */
    SafeTensor *tensor;         /* by begin */
    const SafeTensor **by_name; /* the same by name */
    int n;
    const char **metadata; /* key, value, ... */
    int nmetadata;
};

static const struct {
    const char *name;
    int bits;
} types[NSAFETYPE] = {
#define SAFE_TYPE(name, bits) {#name, bits},
    SAFE_TYPES(SAFE_TYPE)
#undef SAFE_TYPE
};

const char *safe_type_name(SafeType type) {
    return types[type].name;
}

SafeType safe_type_of(DType type) {
    return type == DT_f32 ? SAFE_F32 : type == DT_bf16 ? SAFE_BF16 : SAFE_F16;
}

int safe_type_bits(SafeType type) {
    return types[type].bits;
}

/* ---- the header ------------------------------------------------------------------------------ */

static bool parse_shape(SafeTensor *t, const json_t *shape, const char *path, Err *err) {
    if (!json_is_array(shape))
        return fail(err, EXIT_IO, "%s: tensor \"%s\": \"shape\" is not a list", path, t->name);
    if (json_array_size(shape) > SAFE_RANK)
        return fail(err, EXIT_IO, "%s: tensor \"%s\" has %zu dimensions, more than %d", path,
                    t->name, json_array_size(shape), SAFE_RANK);
    t->rank = (int)json_array_size(shape);
    t->count = 1;
    for (int i = 0; i < t->rank; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return fail(err, EXIT_IO, "%s: tensor \"%s\": dimension %d is not a size", path,
                        t->name, i);
        t->shape[i] = json_integer_value(dim);
        if (__builtin_mul_overflow(t->count, t->shape[i], &t->count))
            return fail(err, EXIT_IO, "%s: tensor \"%s\": its shape is too large", path, t->name);
    }
    return true;
}

static bool parse_type(SafeTensor *t, const json_t *dtype, const char *path, Err *err) {
    const char *name = json_string_value(dtype);
    if (!name) return fail(err, EXIT_IO, "%s: tensor \"%s\" has no \"dtype\"", path, t->name);
    for (int i = 0; i < NSAFETYPE; i++)
        if (strcmp(name, types[i].name) == 0) return t->type = (SafeType)i, true;
    return fail(err, EXIT_IO, "%s: tensor \"%s\" has the unknown dtype \"%s\"", path, t->name,
                name);
}

static bool parse_tensor(SafeTensor *t, const json_t *entry, const char *path, Err *err) {
    if (!json_is_object(entry))
        return fail(err, EXIT_IO, "%s: tensor \"%s\" is not described by an object", path, t->name);
    if (!parse_type(t, json_object_get(entry, "dtype"), path, err)) return false;
    if (!parse_shape(t, json_object_get(entry, "shape"), path, err)) return false;
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
        return fail(err, EXIT_IO, "%s: tensor \"%s\": \"data_offsets\" is not [begin, end]", path,
                    t->name);
    t->begin = json_integer_value(begin);
    t->bytes = json_integer_value(end) - t->begin;
    int64_t bits;
    if (__builtin_mul_overflow(t->count, (int64_t)types[t->type].bits, &bits) || bits % 8 ||
        bits / 8 != t->bytes)
        return fail(err, EXIT_IO,
                    "%s: tensor \"%s\": %" PRId64 " elements of %s do not take the %" PRId64
                    " bytes that \"data_offsets\" gives",
                    path, t->name, t->count, types[t->type].name, t->bytes);
    return true;
}

static bool parse_metadata(SafeFile *f, json_t *object, Err *err) {
    if (!json_is_object(object))
        return fail(err, EXIT_IO, "%s: \"__metadata__\" is not an object", f->path);
    f->metadata = NEW_ARRAY(f->arena, const char *, 2 * json_object_size(object));
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        if (!json_is_string(value))
            return fail(err, EXIT_IO, "%s: metadata \"%s\" is not a string", f->path, key);
        f->metadata[f->nmetadata++] = arena_str(f->arena, key);
        f->metadata[f->nmetadata++] = arena_str(f->arena, json_string_value(value));
    }
    return true;
}

static int by_begin(const void *a, const void *b) {
    const SafeTensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* empty ones first */
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const SafeTensor *const *)a)->name, (*(const SafeTensor *const *)b)->name);
}

/* The tensors, sorted by begin, must tile exactly `bytes` of data. */
static bool check_tiling(const SafeFile *f, int64_t bytes, Err *err) {
    int64_t end = 0;
    for (int i = 0; i < f->n; i++) {
        const SafeTensor *t = &f->tensor[i];
        if (t->begin != end)
            return fail(err, EXIT_IO,
                        "%s: tensor \"%s\" begins at %" PRId64 " of the data, but the one before "
                        "it ends at %" PRId64,
                        f->path, t->name, t->begin, end);
        end = t->begin + t->bytes; /* both come from `end - begin` of checked numbers */
    }
    if (end == bytes) return true;
    return fail(err, EXIT_IO,
                "%s: the header describes %" PRId64 " bytes of data, the file has %" PRId64 "%s",
                f->path, end, bytes, end > bytes ? ": it is cut off" : "");
}

static bool parse_header(SafeFile *f, json_t *root, Err *err) {
    if (!json_is_object(root))
        return fail(err, EXIT_IO, "%s: the header is not a JSON object", f->path);
    f->tensor = NEW_ARRAY(f->arena, SafeTensor, json_object_size(root) + 1);
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            if (!parse_metadata(f, value, err)) return false;
            continue;
        }
        SafeTensor *t = &f->tensor[f->n++];
        t->name = arena_str(f->arena, key);
        t->file = f;
        if (!parse_tensor(t, value, f->path, err)) return false;
    }
    qsort(f->tensor, (size_t)f->n, sizeof *f->tensor, by_begin);
    f->by_name = NEW_ARRAY(f->arena, const SafeTensor *, f->n + 1);
    for (int i = 0; i < f->n; i++) f->by_name[i] = &f->tensor[i];
    qsort(f->by_name, (size_t)f->n, sizeof *f->by_name, by_name);
    return true;
}

/* ---- files ----------------------------------------------------------------------------------- */

/* Reads n bytes at a place of the file; false and err when there are fewer. */
static bool read_at(const SafeFile *f, int64_t at, int64_t n, void *out, const char *what,
                    Err *err) {
    for (char *p = out; n > 0;) {
        ssize_t got = pread(f->fd, p, (size_t)(n < 1 << 30 ? n : 1 << 30), at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return fail(err, EXIT_IO, "%s: cannot read %s: %s", f->path, what, strerror(errno));
        if (got == 0) return fail(err, EXIT_IO, "%s: the file ends within %s", f->path, what);
        p += got, at += got, n -= got;
    }
    return true;
}

static bool read_header(SafeFile *f, Err *err) {
    struct stat st;
    if (fstat(f->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return fail(err, EXIT_IO, "%s: not a regular file", f->path);
    unsigned char size[8];
    if (!read_at(f, 0, 8, size, "the header's size", err)) return false;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | size[i];
    if (n > HEADER_MAX || (int64_t)n > st.st_size - 8)
        return fail(err, EXIT_IO,
                    "%s: not a safetensors file, or cut off: the header would be %" PRIu64
                    " bytes of a file of %" PRId64,
                    f->path, n, (int64_t)st.st_size);
    char *text = malloc((size_t)n + 1);
    if (!text) return fail(err, EXIT_MEMORY, "%s: no memory for the header", f->path);
    bool ok = read_at(f, 8, (int64_t)n, text, "the header", err);
    if (ok && (n == 0 || text[0] != '{'))
        ok = fail(err, EXIT_IO, "%s: the header does not begin with {", f->path);
    if (ok) {
        json_error_t e;
        json_t *root = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &e);
        f->data = 8 + (int64_t)n;
        ok = root ? parse_header(f, root, err) && check_tiling(f, st.st_size - f->data, err)
                  : fail(err, EXIT_IO, "%s: the header is not valid JSON: %s (byte %d)", f->path,
                         e.text, e.position);
        json_decref(root);
    }
    free(text);
    return ok;
}

SafeFile *safe_open(const char *path, Err *err) {
    Arena *arena = arena_new();
    SafeFile *f = NEW(arena, SafeFile);
    f->arena = arena;
    f->path = arena_str(arena, path);
    f->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0) fail(err, EXIT_IO, "%s: cannot be opened: %s", path, strerror(errno));
    if (f->fd >= 0 && read_header(f, err)) return f;
    safe_close(f);
    return NULL;
}

void safe_close(SafeFile *f) {
    if (!f) return;
    if (f->fd >= 0) close(f->fd);
    arena_free(f->arena);
}

const char *safe_path(const SafeFile *f) {
    return f->path;
}

int safe_count(const SafeFile *f) {
    return f->n;
}

const SafeTensor *safe_tensor(const SafeFile *f, int i) {
    return &f->tensor[i];
}

const SafeTensor *safe_find(const SafeFile *f, const char *name) {
    const SafeTensor key = {.name = name}, *pkey = &key;
    const SafeTensor **hit = bsearch(&pkey, f->by_name, (size_t)f->n, sizeof *f->by_name, by_name);
    return hit ? *hit : NULL;
}

const char *safe_metadata(const SafeFile *f, const char *key) {
    for (int i = 0; i < f->nmetadata; i += 2)
        if (strcmp(f->metadata[i], key) == 0) return f->metadata[i + 1];
    return NULL;
}

/* ---- data ------------------------------------------------------------------------------------ */

bool safe_read(const SafeTensor *t, int64_t begin, int64_t n, void *out, Err *err) {
    if (begin < 0 || n < 0 || begin > t->bytes || n > t->bytes - begin)
        return fail(err, EXIT_BUG, "%s: bytes %" PRId64 "..+%" PRId64 " are not in tensor \"%s\"",
                    t->file->path, begin, n, t->name);
    return read_at(t->file, t->file->data + t->begin + begin, n, out, t->name, err);
}

void safe_expect(const SafeTensor *t, int64_t begin, int64_t n) {
    if (begin + n > t->bytes) n = t->bytes - begin;
    if (n > 0) posix_fadvise(t->file->fd, t->file->data + t->begin + begin, n, POSIX_FADV_WILLNEED);
}

bool safe_read_f32(const SafeTensor *t, int64_t begin, int64_t n, float *out, Err *err) {
    if (t->type == SAFE_F32) return safe_read(t, begin * 4, n * 4, out, err);
    if (t->type != SAFE_BF16 && t->type != SAFE_F16)
        return fail(err, EXIT_IO, "%s: tensor \"%s\" is %s; F32, BF16 or F16 is expected",
                    t->file->path, t->name, types[t->type].name);
    uint16_t piece[16384];
    for (int64_t i = 0; i < n; i += (int64_t)COUNT(piece)) {
        int64_t m = n - i < (int64_t)COUNT(piece) ? n - i : (int64_t)COUNT(piece);
        if (!safe_read(t, (begin + i) * 2, m * 2, piece, err)) return false;
        if (t->type == SAFE_BF16)
            floats_from_bf16(out + i, piece, m);
        else
            floats_from_f16(out + i, piece, m);
    }
    return true;
}

char *safe_describe(Arena *arena, const SafeTensor *t) {
    Text text = {0};
    text_add(&text, "%s [", types[t->type].name);
    for (int i = 0; i < t->rank; i++) text_add(&text, "%s%" PRId64, i ? ", " : "", t->shape[i]);
    text_add(&text, "]");
    char *copy = arena_strn(arena, text.data, text.len);
    text_free(&text);
    return copy;
}
