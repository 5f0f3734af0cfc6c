/* safewrite.c: writing a safetensors file (safetensors.h).
 *
 * Order and padding are Hugging Face's, so the bytes of a file that holds the same tensors are the
 * same. The file grows under PATH.tmp and gets its name when it is complete and synced.
 */
#include "safetensors.h"

#include <errno.h>    /* errno */
#include <fcntl.h>    /* open */
#include <inttypes.h> /* PRId64 */
#include <jansson.h>
#include <stdlib.h> /* qsort */
#include <string.h> /* strcmp */
#include <unistd.h> /* pwrite, fsync */

struct SafeWriter {
    Arena *arena;
    const char *path, *temporary;
    int fd;
    SafeTensor *tensor; /* as given; begin is now in the file */
    int n;
    int64_t missing; /* bytes not put yet */
};

static int wide_first(const void *a, const void *b) {
    const SafeTensor *x = *(const SafeTensor *const *)a, *y = *(const SafeTensor *const *)b;
    if (x->type != y->type) return x->type > y->type ? -1 : 1;
    return strcmp(x->name, y->name);
}

static void add_string(Text *out, const char *s) {
    json_t *string = json_string(s);
    char *quoted = string ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    text_add(out, "%s", quoted ? quoted : "\"\""); /* only invalid UTF-8 can't be quoted */
    free(quoted);
    json_decref(string);
}

/* Lays the tensors out and prints the header. */
static void make_header(SafeWriter *w, const char *const *metadata, Text *out) {
    SafeTensor **order = NEW_ARRAY(w->arena, SafeTensor *, w->n + 1);
    for (int i = 0; i < w->n; i++) order[i] = &w->tensor[i];
    qsort(order, (size_t)w->n, sizeof *order, wide_first);
    text_add(out, "{");
    const char *comma = "";
    for (int i = 0; metadata && metadata[i]; i += 2, comma = ",") {
        text_add(out, "%s", i ? "," : "\"__metadata__\":{");
        add_string(out, metadata[i]);
        text_add(out, ":");
        add_string(out, metadata[i + 1]);
        if (!metadata[i + 2]) text_add(out, "}");
    }
    int64_t at = 0;
    for (int k = 0; k < w->n; k++, comma = ",") {
        SafeTensor *t = order[k];
        t->begin = at;
        at += t->bytes;
        text_add(out, "%s", comma);
        add_string(out, t->name);
        text_add(out, ":{\"dtype\":\"%s\",\"shape\":[", safe_type_name(t->type));
        for (int i = 0; i < t->rank; i++) text_add(out, "%s%" PRId64, i ? "," : "", t->shape[i]);
        text_add(out, "],\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", t->begin, at);
    }
    text_add(out, "}");
    while (out->len % 8) text_add(out, " ");
    w->missing = at;
}

static bool write_at(const SafeWriter *w, int64_t at, const void *data, int64_t n, Err *err) {
    for (const char *p = data; n > 0;) {
        ssize_t put = pwrite(w->fd, p, (size_t)(n < 1 << 30 ? n : 1 << 30), at);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0)
            return fail(err, EXIT_IO, "%s: cannot be written: %s", w->temporary, strerror(errno));
        p += put, at += put, n -= put;
    }
    return true;
}

SafeWriter *safe_create(const char *path, const SafeTensor *tensors, int n,
                        const char *const *metadata, Err *err) {
    Arena *arena = arena_new();
    SafeWriter *w = NEW(arena, SafeWriter);
    *w = (SafeWriter){.arena = arena, .n = n, .path = arena_str(arena, path)};
    w->temporary = arena_printf(arena, "%s.tmp", path);
    w->tensor = NEW_ARRAY(arena, SafeTensor, n + 1);
    for (int i = 0; i < n; i++) {
        SafeTensor *t = &w->tensor[i];
        *t = tensors[i];
        t->count = 1;
        for (int d = 0; d < t->rank; d++) t->count *= t->shape[d];
        t->bytes = t->count * safe_type_bits(t->type) / 8;
    }
    Text header = {0};
    make_header(w, metadata, &header);
    char size[8];
    for (int i = 0; i < 8; i++) size[i] = (char)(header.len >> (8 * i));
    w->fd = open(w->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool ok = w->fd >= 0;
    if (!ok) fail(err, EXIT_IO, "%s: cannot be created: %s", w->temporary, strerror(errno));
    ok =
        ok && write_at(w, 0, size, 8, err) && write_at(w, 8, header.data, (int64_t)header.len, err);
    for (int i = 0; i < n; i++) w->tensor[i].begin += 8 + (int64_t)header.len;
    text_free(&header);
    if (ok) return w;
    safe_abort(w);
    return NULL;
}

bool safe_put(SafeWriter *w, int i, int64_t begin, const void *data, int64_t bytes, Err *err) {
    const SafeTensor *t = &w->tensor[i];
    if (i < 0 || i >= w->n || begin < 0 || bytes < 0 || begin > t->bytes ||
        bytes > t->bytes - begin)
        return fail(err, EXIT_BUG, "%s: bytes outside tensor %d are put", w->path, i);
    w->missing -= bytes;
    return write_at(w, t->begin + begin, data, bytes, err);
}

bool safe_commit(SafeWriter *w, Err *err) {
    bool ok = w->missing == 0;
    if (!ok)
        fail(err, EXIT_BUG, "%s: %" PRId64 " bytes were not put", w->path, w->missing);
    else if (fsync(w->fd) != 0 || rename(w->temporary, w->path) != 0)
        ok = fail(err, EXIT_IO, "%s: cannot be written: %s", w->path, strerror(errno));
    if (!ok) {
        safe_abort(w);
        return false;
    }
    close(w->fd);
    arena_free(w->arena);
    return true;
}

void safe_abort(SafeWriter *w) {
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->temporary);
    }
    arena_free(w->arena);
}
