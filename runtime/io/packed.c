/* packed.c: bitsandbytes' tensors (packed.h). */
#include "packed.h"

#include <jansson.h>
#include <stdlib.h> /* malloc */
#include <string.h> /* strlen */

#define STATE "quant_state.bitsandbytes__"

/* The tensor NAME.part, or NULL. */
static const SafeTensor *sibling(const Checkpoint *c, const char *name, const char *part) {
    char full[1024];
    int n = snprintf(full, sizeof full, "%s.%s", name, part);
    return n < (int)sizeof full ? checkpoint_find(c, full, NULL) : NULL;
}

static const SafeTensor *state_of(const Checkpoint *c, const SafeTensor *t, QuantFormat *format) {
    static const char *const part[] = {[QUANT_NF4] = STATE "nf4", [QUANT_FP4] = STATE "fp4"};
    for (int f = QUANT_NF4; f <= QUANT_FP4; f++) {
        const SafeTensor *state = sibling(c, t->name, part[f]);
        if (state) return *format = (QuantFormat)f, state;
    }
    return NULL;
}

/* The row maxima of an int8 P.weight: P.SCB. */
static const SafeTensor *rows_of(const Checkpoint *c, const SafeTensor *t) {
    char name[1024];
    size_t n = strlen(t->name), tail = strlen(".weight");
    if (t->type != SAFE_I8 || n < tail || n >= sizeof name || strcmp(t->name + n - tail, ".weight"))
        return NULL;
    memcpy(name, t->name, n - tail);
    name[n - tail] = 0;
    return sibling(c, name, "SCB");
}

bool packed_is(const Checkpoint *c, const SafeTensor *t) {
    QuantFormat format;
    return state_of(c, t, &format) || rows_of(c, t);
}

bool packed_part(const Checkpoint *c, const char *name) {
    static const char *const rows[] = {".SCB", ".weight_format"};
    char owner[1024];
    size_t n = strlen(name);
    if (n + strlen(".weight") >= sizeof owner) return false;
    memcpy(owner, name, n + 1);
    for (char *dot; (dot = strrchr(owner, '.'));) { /* the state's own name has a dot */
        *dot = 0;
        const SafeTensor *t = checkpoint_find(c, owner, NULL);
        if (t && packed_is(c, t)) return true;
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t tail = strlen(rows[i]);
        if (n < tail || strcmp(name + n - tail, rows[i]) != 0) continue;
        strcpy(strcpy(owner, name) + n - tail, ".weight");
        const SafeTensor *t = checkpoint_find(c, owner, NULL);
        if (t && packed_is(c, t)) return true;
    }
    return false;
}

static bool wrong(const SafeTensor *t, Err *err, const char *format, ...) PRINTF(3, 4);
static bool wrong(const SafeTensor *t, Err *err, const char *format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return fail(err, EXIT_IO, "%s: quantized tensor \"%s\": %s", safe_path(t->file), t->name, text);
}

/* ---- 4 bits ---------------------------------------------------------------------------------- */

/* A whole number in least .. most under a key of the state. */
static bool whole(const SafeTensor *t, const json_t *state, const char *key, int64_t least,
                  int64_t most, int64_t *out, Err *err) {
    const json_t *v = json_object_get(state, key);
    *out = json_is_integer(v) ? json_integer_value(v) : -1;
    if (json_is_integer(v) && *out >= least && *out <= most) return true;
    return wrong(t, err, "\"%s\" of its quant_state is not a number in %lld .. %lld", key,
                 (long long)least, (long long)most);
}

static bool read_shape(const SafeTensor *t, const json_t *state, Packed *p, Err *err) {
    const json_t *shape = json_object_get(state, "shape");
    int64_t n = 1;
    p->rank = (int)json_array_size(shape);
    bool good = p->rank == 1 || p->rank == 2;
    for (int i = 0; good && i < p->rank; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        p->shape[i] = json_is_integer(dim) ? json_integer_value(dim) : 0;
        good = p->shape[i] > 0 && !__builtin_mul_overflow(n, p->shape[i], &n);
    }
    if (!good) return wrong(t, err, "\"shape\" of its quant_state is not [rows, columns]");
    int64_t bytes = n / 2 + n % 2;
    return t->bytes == bytes || wrong(t, err, "it has %lld bytes; codes of %lld numbers take %lld",
                                      (long long)t->bytes, (long long)n, (long long)bytes);
}

/* NAME.part with `count` elements of a type. */
static bool read_part(const Checkpoint *c, const SafeTensor *t, const char *part, SafeType type,
                      int64_t count, const SafeTensor **out, Err *err) {
    *out = sibling(c, t->name, part);
    if (!*out) return wrong(t, err, "there is no \"%s.%s\"", t->name, part);
    if ((*out)->type == type && (*out)->count == count) return true;
    return wrong(t, err, "its \"%s\" is %s of %lld elements; expected %s of %lld", part,
                 safe_type_name((*out)->type), (long long)(*out)->count, safe_type_name(type),
                 (long long)count);
}

/* Codes mean what our kernels take them for. */
static bool check_codes(const Checkpoint *c, const SafeTensor *t, QuantFormat format, Err *err) {
    const SafeTensor *map;
    float value[16];
    if (!read_part(c, t, "quant_map", SAFE_F32, 16, &map, err) ||
        !safe_read(map, 0, sizeof value, value, err))
        return false;
    for (int i = 0; i < 16; i++)
        if (value[i] != quant_lut(format)[i])
            return wrong(t, err, "its quant_map has %.9g for code %d; %s means %.9g",
                         (double)value[i], i, quant_format_names[format],
                         (double)quant_lut(format)[i]);
    return true;
}

static bool read_nested(const Checkpoint *c, const SafeTensor *t, const json_t *state, Packed *p,
                        int64_t blocks, Err *err) {
    int64_t group;
    const json_t *offset = json_object_get(state, "nested_offset");
    if (!whole(t, state, "nested_blocksize", QUANT_GROUP, QUANT_GROUP, &group, err)) return false;
    if (!json_is_number(offset))
        return wrong(t, err, "\"nested_offset\" of its quant_state is not a number");
    p->nested = true;
    p->offset = (float)json_number_value(offset);
    return read_part(c, t, "absmax", SAFE_U8, blocks, &p->absmax, err) &&
           read_part(c, t, "nested_absmax", SAFE_F32, (blocks + group - 1) / group, &p->absmax2,
                     err) &&
           read_part(c, t, "nested_quant_map", SAFE_F32, 256, &p->map, err);
}

static bool read_state(const Checkpoint *c, const SafeTensor *t, const json_t *state, Packed *p,
                       Err *err) {
    const char *type = json_string_value(json_object_get(state, "quant_type"));
    if (!type || strcmp(type, quant_format_names[p->format]) != 0)
        return wrong(t, err, "\"quant_type\" of its quant_state is not \"%s\"",
                     quant_format_names[p->format]);
    if (!whole(t, state, "blocksize", 16, 65536, &p->block, err)) return false;
    if (!read_shape(t, state, p, err) || !check_codes(c, t, p->format, err)) return false;
    int64_t n = p->shape[0] * (p->rank == 2 ? p->shape[1] : 1);
    int64_t blocks = (n + p->block - 1) / p->block;
    if (sibling(c, t->name, "nested_absmax")) return read_nested(c, t, state, p, blocks, err);
    return read_part(c, t, "absmax", SAFE_F32, blocks, &p->absmax, err);
}

static bool read_4bit(const Checkpoint *c, const SafeTensor *t, const SafeTensor *state, Packed *p,
                      Err *err) {
    if (state->bytes > 1 << 16) return wrong(t, err, "its quant_state is no JSON text");
    char *text = malloc((size_t)state->bytes + 1);
    if (!text) return fail(err, EXIT_MEMORY, "out of memory");
    json_error_t e;
    json_t *j = NULL;
    bool ok = safe_read(state, 0, state->bytes, text, err);
    if (ok) {
        j = json_loadb(text, (size_t)state->bytes, 0, &e);
        ok = json_is_object(j) ? read_state(c, t, j, p, err)
                               : wrong(t, err, "its quant_state is no JSON object");
    }
    json_decref(j);
    free(text);
    return ok;
}

/* ---- both ------------------------------------------------------------------------------------ */

static bool read_int8(const SafeTensor *t, const SafeTensor *rows, Packed *p, Err *err) {
    if (t->rank != 2 || rows->type != SAFE_F32 || rows->count != t->shape[0])
        return wrong(t, err, "its SCB is not one F32 for each row");
    p->format = QUANT_INT8;
    p->block = t->shape[1];
    p->rank = 2;
    memcpy(p->shape, t->shape, sizeof p->shape);
    p->absmax = rows;
    return true;
}

bool packed_read(const Checkpoint *c, const SafeTensor *t, Packed *out, Err *err) {
    *out = (Packed){.codes = t};
    const SafeTensor *state = state_of(c, t, &out->format);
    if (state) return read_4bit(c, t, state, out, err);
    return read_int8(t, rows_of(c, t), out, err);
}

char *packed_describe(Arena *arena, QuantFormat format, int64_t block, bool nested) {
    return arena_printf(arena, "%s(block = %lld%s)", quant_format_names[format], (long long)block,
                        nested ? ", double = true" : "");
}
