/* fuzz_packed.c: any text as the quant_state of a tensor of bitsandbytes': no crash; what is taken
 * fits the parts that lie beside it.  The first byte says whether the scales are double quantized
 * ('N'). */
#include "bytes.h"
#include "runtime/io/packed.h"

typedef struct Part {
    const char *name, *type;
    int64_t count, bytes;
} Part;

/* A file with the parts of a tensor of 480 numbers, and the text. */
static const char *checkpoint_of(bool nested, const uint8_t *text, size_t size) {
    const Part parts[] = {{"", "U8", 240, 240},
                          {".absmax", nested ? "U8" : "F32", 8, nested ? 8 : 32},
                          {".quant_map", "F32", 16, 64},
                          {".quant_state.bitsandbytes__nf4", "U8", (int64_t)size, (int64_t)size},
                          {".nested_absmax", "F32", 1, 4},
                          {".nested_quant_map", "F32", 256, 1024}};
    int n = nested ? 6 : 4;
    Text header = {0}, file = {0};
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        text_add(&header, "%s\"w.weight%s\":{\"dtype\":\"%s\",\"shape\":[%ld],\"data_offsets\":",
                 i ? "," : "{", parts[i].name, parts[i].type, parts[i].count);
        text_add(&header, "[%ld,%ld]}", at, at + parts[i].bytes);
        at += parts[i].bytes;
    }
    text_add(&header, "}");
    uint64_t length = header.len;
    text_addn(&file, (const char *)&length, 8);
    text_addn(&file, header.data, header.len);
    for (int i = 0; i < n; i++) {
        char zeros[1024] = {0};
        if (i == 2)
            text_addn(&file, (const char *)quant_lut(QUANT_NF4), 64);
        else
            text_addn(&file, i == 3 ? (const char *)text : zeros, (size_t)parts[i].bytes);
    }
    const char *dir = scratch_file("model.safetensors", file.data, file.len);
    text_free(&header);
    text_free(&file);
    return dir;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > 4000) return 0;
    bool nested = data[0] == 'N';
    Err err = {0};
    Packed p;
    Checkpoint *c = checkpoint_open(checkpoint_of(nested, data + 1, size - 1), "model", &err);
    if (!c) abort();
    const SafeTensor *t = checkpoint_find(c, "w.weight", NULL);
    if (!packed_is(c, t)) abort();
    if (packed_read(c, t, &p, &err)) {
        int64_t n = p.shape[0] * (p.rank == 2 ? p.shape[1] : 1);
        if ((n + 1) / 2 != 240 || (n + p.block - 1) / p.block != p.absmax->count) abort();
        if (p.nested != nested || (nested && p.map->count != 256)) abort();
    } else if (!err.code) {
        abort();
    }
    checkpoint_close(c);
    return 0;
}
