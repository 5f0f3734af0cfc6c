/* tfevents.c: see tfevents.h.  Field numbers are those of TensorBoard's event.proto, summary.proto
 * and tensor.proto. */
#include "tfevents.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct TfEvents {
    FILE *file;
    char *path;
    Text summary; /* of the event under way */
    double wall;
    int64_t step;
};

/* ---- checksums ------------------------------------------------------------------------------- */

uint32_t crc32c(const void *data, size_t n) {
    const unsigned char *p = data;
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
    }
    return ~crc;
}

static uint32_t masked(uint32_t crc) {
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

/* ---- protobuf, from the inside out ----------------------------------------------------------- */

enum WireType { VARINT = 0, BITS64 = 1, BYTES = 2, BITS32 = 5 };

static void put_varint(Text *out, uint64_t x) {
    do {
        char byte = (char)((x & 0x7F) | (x > 0x7F ? 0x80 : 0));
        text_addn(out, &byte, 1);
    } while (x >>= 7);
}

static void put_key(Text *out, int field, enum WireType type) {
    put_varint(out, (uint64_t)field << 3 | type);
}

static void put_bytes(Text *out, int field, const char *data, size_t n) {
    put_key(out, field, BYTES);
    put_varint(out, n);
    text_addn(out, data, n);
}

/* The `n` low bytes of x, the lowest first. */
static void put_fixed(Text *out, uint64_t x, int n) {
    for (int i = 0; i < n; i++) text_addn(out, &(char){(char)(x >> 8 * i)}, 1);
}

static void put_double(Text *out, int field, double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    put_key(out, field, BITS64);
    put_fixed(out, bits, 8);
}

/* ---- records --------------------------------------------------------------------------------- */

static bool write_record(TfEvents *t, const Text *payload, Err *err) {
    Text record = {0};
    put_fixed(&record, payload->len, 8);
    put_fixed(&record, masked(crc32c(record.data, 8)), 4);
    text_addn(&record, payload->data, payload->len);
    put_fixed(&record, masked(crc32c(payload->data, payload->len)), 4);
    bool ok = fwrite(record.data, 1, record.len, t->file) == record.len && fflush(t->file) == 0;
    text_free(&record);
    return ok || fail(err, EXIT_IO, "%s: cannot write: %s", t->path, strerror(errno));
}

static bool write_version(TfEvents *t, double wall, Err *err) {
    static const char version[] = "brain.Event:2";
    Text event = {0};
    put_double(&event, 1, wall);
    put_bytes(&event, 3, version, sizeof version - 1);
    bool ok = write_record(t, &event, err);
    text_free(&event);
    return ok;
}

static TfEvents *open_as(const char *path, int flags, double wall, Err *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!file) {
        if (fd >= 0) close(fd);
        fail(err, EXIT_IO, "%s: %s", path, strerror(errno));
        return NULL;
    }
    TfEvents *t = calloc(1, sizeof *t);
    t->file = file;
    t->path = strdup(path);
    if (write_version(t, wall, err)) return t;
    tfevents_close(t, err);
    return NULL;
}

TfEvents *tfevents_create(const char *path, double wall, Err *err) {
    return open_as(path, O_TRUNC, wall, err);
}

TfEvents *tfevents_open(const char *dir, double wall, Err *err) {
    char host[65] = "localhost";
    gethostname(host, sizeof host - 1);
    Arena *arena = arena_new();
    TfEvents *t = NULL;
    for (int n = 0; !t; n++) {
        char *name = arena_printf(arena, "%s/events.out.tfevents.%010lld.%s.%d.%d", dir,
                                  (long long)wall, host, (int)getpid(), n);
        if (!file_exists(name) && !(t = open_as(name, O_EXCL, wall, err))) break;
    }
    arena_free(arena);
    return t;
}

/* ---- events ---------------------------------------------------------------------------------- */

void tfevents_begin(TfEvents *t, double wall, int64_t step) {
    t->summary.len = 0;
    t->wall = wall;
    t->step = step;
}

void tfevents_scalar(TfEvents *t, const char *tag, double value) {
    float x = (float)value;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    Text one = {0};
    put_bytes(&one, 1, tag, strlen(tag));
    put_key(&one, 2, BITS32); /* simple_value */
    put_fixed(&one, bits, 4);
    put_bytes(&t->summary, 1, one.data, one.len);
    text_free(&one);
}

/* A Value with metadata.plugin_data.plugin_name "text" and a tensor of one string. */
void tfevents_text(TfEvents *t, const char *tag, const char *text) {
    enum { DT_STRING = 7 };
    Text one = {0}, plugin = {0}, metadata = {0}, tensor = {0}, dim = {0}, shape = {0};
    put_bytes(&plugin, 1, "text", 4);
    put_bytes(&metadata, 1, plugin.data, plugin.len);
    put_key(&dim, 1, VARINT);
    put_varint(&dim, 1);
    put_bytes(&shape, 2, dim.data, dim.len);
    put_key(&tensor, 1, VARINT);
    put_varint(&tensor, DT_STRING);
    put_bytes(&tensor, 2, shape.data, shape.len);
    put_bytes(&tensor, 8, text, strlen(text));
    put_bytes(&one, 1, tag, strlen(tag));
    put_bytes(&one, 8, tensor.data, tensor.len);
    put_bytes(&one, 9, metadata.data, metadata.len);
    put_bytes(&t->summary, 1, one.data, one.len);
    Text *all[] = {&one, &plugin, &metadata, &tensor, &dim, &shape};
    for (size_t i = 0; i < COUNT(all); i++) text_free(all[i]);
}

bool tfevents_end(TfEvents *t, Err *err) {
    if (t->summary.len == 0) return true;
    Text event = {0};
    put_double(&event, 1, t->wall);
    put_key(&event, 2, VARINT);
    put_varint(&event, (uint64_t)t->step);
    put_bytes(&event, 5, t->summary.data, t->summary.len);
    bool ok = write_record(t, &event, err);
    text_free(&event);
    return ok;
}

bool tfevents_close(TfEvents *t, Err *err) {
    if (!t) return true;
    bool ok = fclose(t->file) == 0 || fail(err, EXIT_IO, "%s: %s", t->path, strerror(errno));
    text_free(&t->summary);
    free(t->path);
    free(t);
    return ok;
}
