/* records.c: data files, value by value (records.h). */
#include "records.h"
#include "records_foreign.h"

#include <errno.h>    /* errno */
#include <fcntl.h>    /* open */
#include <stdlib.h>   /* malloc */
#include <string.h>   /* memmove */
#include <sys/stat.h> /* fstat */
#include <unistd.h>   /* close */
#include <zlib.h>

#define RECORD_MAX ((size_t)1 << 30)

struct Records {
    const char *path; /* interned */
    gzFile file;
    char *data; /* a window of the decompressed text */
    size_t begin, end, cap;
    int line;          /* of data[begin], from 1 */
    bool array, ended; /* ended: nothing is left to decompress */
    bool done;         /* the array's bracket was seen */
    off_t size;        /* of the file */
};

Records *records_open(const char *path, Err *err) {
    if (!records_no_directory(path, err)) return NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        fail(err, EXIT_IO, "%s: cannot be opened: %s", path, strerror(errno));
        return NULL;
    }
    Records *r = calloc(1, sizeof *r);
    gzFile file = r ? gzdopen(fd, "rb") : NULL;
    if (!file) {
        fail(err, EXIT_MEMORY, "%s: no memory to read it", path);
        close(fd);
        free(r);
        return NULL;
    }
    gzbuffer(file, 128 << 10);
    struct stat st;
    *r = (Records){.path = intern(path), .file = file, .line = 1};
    if (fstat(fd, &st) == 0) r->size = st.st_size;
    return r;
}

double records_share(const Records *r) {
    z_off_t at = gzoffset(r->file); /* in the file as it lies there, compressed or not */
    return r->size > 0 && at > 0 ? (double)at / (double)r->size : 0;
}

void records_close(Records *r) {
    if (!r) return;
    gzclose(r->file);
    free(r->data);
    free(r);
}

/* More text behind data[end]; false at the end of the file or when reading failed. */
static bool more(Records *r, Err *err) {
    if (r->ended) return false;
    if (r->begin) {
        memmove(r->data, r->data + r->begin, r->end - r->begin);
        r->end -= r->begin;
        r->begin = 0;
    }
    if (r->end > RECORD_MAX)
        return fail(err, EXIT_IO, "%s:%d: one record is over 1 GiB", r->path, r->line);
    if (r->cap - r->end < (64 << 10)) {
        size_t cap = 2 * r->cap + (256 << 10);
        char *data = realloc(r->data, cap);
        if (!data) return fail(err, EXIT_MEMORY, "%s:%d: no memory for a record", r->path, r->line);
        r->data = data;
        r->cap = cap;
    }
    int got = gzread(r->file, r->data + r->end,
                     (unsigned)(r->cap - r->end > 1 << 28 ? 1 << 28 : r->cap - r->end));
    int code;
    const char *what = gzerror(r->file, &code);
    if (got < 0 || code == Z_BUF_ERROR)
        return fail(err, EXIT_IO, "%s: cannot be read: %s", r->path,
                    code == Z_ERRNO       ? strerror(errno)
                    : code == Z_BUF_ERROR ? "the compressed data is cut off"
                                          : what);
    r->ended = got == 0;
    r->end += (size_t)got;
    return got > 0;
}

/* The character at the window's begin + at, or -1 at the end. */
static int peek(Records *r, size_t at, Err *err) {
    while (r->begin + at >= r->end)
        if (!more(r, err)) return -1;
    return (unsigned char)r->data[r->begin + at];
}

static void advance(Records *r, size_t n) {
    for (size_t i = 0; i < n; i++) r->line += r->data[r->begin + i] == '\n';
    r->begin += n;
}

static int skip_space(Records *r, Err *err) {
    int c;
    while ((c = peek(r, 0, err)) == ' ' || c == '\n' || c == '\r' || c == '\t') advance(r, 1);
    return c;
}

/* Length of the line at the window's begin, without its newline. */
static size_t line_length(Records *r, Err *err) {
    for (size_t n = 0;;) {
        char *stop = memchr(r->data + r->begin + n, '\n', r->end - r->begin - n);
        if (stop) return (size_t)(stop - (r->data + r->begin));
        n = r->end - r->begin;
        if (!more(r, err)) return n;
    }
}

/* Length of the array element at the window's begin: up to a comma or bracket outside of strings
 * and nested values. */
static size_t element_length(Records *r, Err *err) {
    int depth = 0;
    bool string = false;
    for (size_t n = 0;; n++) {
        int c = peek(r, n, err);
        if (c < 0) return n;
        if (string) {
            if (c == '\\') n++;
            string = c != '"';
        } else if (c == '"') {
            string = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (depth == 0 && (c == ',' || c == ']')) {
            return n;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
}

/* Between elements: a comma, or the end of the array. */
static bool next_element(Records *r, bool first, Err *err) {
    int c = skip_space(r, err);
    if (c == ']') {
        advance(r, 1);
        if (skip_space(r, err) >= 0)
            fail(err, EXIT_IO, "%s:%d: text behind the array", r->path, r->line);
        r->done = true;
        return false;
    }
    if (!first && c >= 0) { /* an element ends at a comma or bracket, so this is a comma */
        advance(r, 1);
        c = skip_space(r, err);
    }
    if (c < 0) fail(err, EXIT_IO, "%s:%d: the array is cut off", r->path, r->line);
    return c >= 0;
}

/* Looks at the beginning of the file: a byte order mark, an array, a format that is not ours. */
static void begin(Records *r, Err *err) {
    while (r->end < 4096 && more(r, err)) continue;
    if (err->code) return;
    if (r->end >= 3 && memcmp(r->data, "\xEF\xBB\xBF", 3) == 0) r->begin = 3;
    if (!records_ours(r->path, r->data + r->begin, r->end - r->begin, err)) return;
    r->array = skip_space(r, err) == '[';
    if (r->array) advance(r, 1);
}

bool records_next(Records *r, Record *out, Err *err) {
    bool first = !r->data;
    if (first) begin(r, err);
    if (err->code || r->done) return false;
    if (r->array ? !next_element(r, first, err) : skip_space(r, err) < 0) return false;
    out->line = r->line;
    out->len = r->array ? element_length(r, err) : line_length(r, err);
    out->text = r->data + r->begin;
    advance(r, out->len);
    return err->code == 0;
}
