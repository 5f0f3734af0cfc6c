/* file.c: whole files in and out, directories, and the files compiled into the binary (base.h).
 *
 * Relies on POSIX and on embed_table, which the Makefile generates.  Messages name the path and the
 * system's reason; every failure is EXIT_IO.
 */
#include "base.h"

#include <errno.h>    /* errno */
#include <fcntl.h>    /* open */
#include <ftw.h>      /* nftw */
#include <stdlib.h>   /* realpath */
#include <string.h>   /* strerror */
#include <sys/stat.h> /* stat, mkdir */
#include <unistd.h>   /* read, write, fsync */

static bool read_all(int fd, char **data, size_t *len) {
    size_t cap = 64 << 10;
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) cap = (size_t)st.st_size + 1;
    char *buf = malloc(cap);
    for (size_t n = 0; buf;) {
        if (n + 1 >= cap) { /* also where a file grows while it is read */
            char *bigger = realloc(buf, cap = 2 * cap + 16);
            if (!bigger) break;
            buf = bigger;
        }
        ssize_t got = read(fd, buf + n, cap - 1 - n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) break;
        n += (size_t)got;
        if (got == 0) {
            buf[n] = '\0';
            *data = buf;
            *len = n;
            return true;
        }
    }
    free(buf);
    return false;
}

char *file_read(const char *path, size_t *len, Err *err) {
    size_t n = 0;
    char *data = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode))
        fail(err, EXIT_IO, "%s: is a directory, expected a file", path);
    else if (fd < 0 || !read_all(fd, &data, &n))
        fail(err, EXIT_IO, "%s: cannot be read: %s", path, strerror(errno));
    if (fd >= 0) close(fd);
    if (data && len) *len = n;
    return data;
}

static bool write_all(int fd, const char *data, size_t len) {
    while (len) {
        ssize_t put = write(fd, data, len);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return false;
        data += put;
        len -= (size_t)put;
    }
    return true;
}

/* The directory entry reaches the disk too; systems that cannot sync a directory are forgiven. */
static void sync_directory_of(const char *path) {
    const char *slash = strrchr(path, '/');
    Text dir = {0};
    text_addn(&dir, slash ? path : ".", slash ? (size_t)(slash - path) + 1 : 1);
    int fd = open(dir.data, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    text_free(&dir);
}

bool file_write(const char *path, const void *data, size_t len, Err *err) {
    static int serial;
    struct stat st;
    char *real = realpath(path, NULL); /* a link stays one: the file it names is replaced */
    const char *to = real ? real : path;
    bool special = stat(to, &st) == 0 && !S_ISREG(st.st_mode); /* a pipe, /dev/null */
    Text temporary = {0};
    text_add(&temporary, "%s.%ld-%d.tmp", to, (long)getpid(),
             __atomic_add_fetch(&serial, 1, __ATOMIC_RELAXED));
    int fd = special ? open(to, O_WRONLY | O_CLOEXEC)
                     : open(temporary.data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    bool ok = fd >= 0 && write_all(fd, data, len) && (special || fsync(fd) == 0);
    int reason = errno;
    if (fd >= 0 && close(fd) != 0 && ok) {
        ok = false;
        reason = errno;
    }
    if (ok && !special && rename(temporary.data, to) != 0) {
        ok = false;
        reason = errno;
    }
    if (ok && !special) sync_directory_of(to);
    if (!ok) {
        if (fd >= 0 && !special) unlink(temporary.data);
        fail(err, EXIT_IO, "%s: cannot be written: %s", path, strerror(reason));
    }
    text_free(&temporary);
    free(real);
    return ok;
}

bool file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *where) {
    (void)st, (void)kind, (void)where;
    return remove(path);
}

void remove_tree(const char *path) {
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

bool dir_make(const char *path, Err *err) {
    Text part = {0};
    bool ok = true;
    for (const char *p = path; ok && *p;) {
        size_t n = strcspn(p + 1, "/") + 1; /* up to the next slash */
        text_addn(&part, p, n);
        p += n;
        if (mkdir(part.data, 0777) == 0) continue;
        int reason = errno == EEXIST ? ENOTDIR : errno; /* fine where it is a directory */
        struct stat st;
        if (stat(part.data, &st) != 0 || !S_ISDIR(st.st_mode))
            ok = fail(err, EXIT_IO, "%s: the directory cannot be made: %s", part.data,
                      strerror(reason));
    }
    text_free(&part);
    return ok;
}

char *path_join(Arena *arena, const char *dir, const char *name) {
    if (name[0] == '/' || !dir || !dir[0]) return arena_str(arena, name);
    return arena_printf(arena, "%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", name);
}

/* ---- the files in the binary ----------------------------------------------------------------- */

extern const struct Embedded { /* ends with a row of zeros */
    const char *name, *data;   /* data is NUL-terminated */
    uint64_t len;
} embed_table[];

const char *embedded(const char *path, size_t *len) {
    for (const struct Embedded *e = embed_table; e->name; e++) {
        if (strcmp(e->name, path) != 0) continue;
        if (len) *len = (size_t)e->len;
        return e->data;
    }
    return NULL;
}

int embedded_count(void) {
    int n = 0;
    while (embed_table[n].name) n++;
    return n;
}

const char *embedded_name(int i) {
    return embed_table[i].name;
}
