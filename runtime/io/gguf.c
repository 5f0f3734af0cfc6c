/* gguf.c: see gguf.h.
 *
 * Layout: "GGUF", version, counts, keys, one line a tensor (name, sizes with the fastest first,
 * type, offset), then from the next multiple of 32 on the tensors, each at a multiple of 32.
 * llama.cpp multiplies with alpha / r, r being what the tensors say, so one alpha must do for all
 * modules: where s r is another (rslora, alpha_pattern), B takes the factor.
 * Llama's q and k rotate pairs of neighbours there, (2i, 2i + 1) where ours are (i, i + size / 2):
 * rows of their B are reordered.
 */
#include "gguf.h"
#include "model_files.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 32, GGUF_VERSION = 3, TYPE_F32 = 6, TYPE_STRING = 8 };

typedef struct Family { /* model_type, llama.cpp's name, whether q and k are reordered */
    const char *type, *architecture;
    bool neighbours;
} Family;
static const Family families[] = {
    {"llama", "llama", true},
    {"mistral", "llama", true},
    {"qwen2", "qwen2", false},
    {"qwen3", "qwen3", false},
};

/* ---- names ----------------------------------------------------------------------------------- */

/* "model.layers.3.mlp.up_proj" -> "blk.3.ffn_up"; NULL: llama.cpp has no such matrix. */
static const char *name_there(Arena *arena, const char *module) {
    static const char *const names[][2] = {
        {"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"},
        {"self_attn.v_proj", "attn_v"}, {"self_attn.o_proj", "attn_output"},
        {"mlp.gate_proj", "ffn_gate"},  {"mlp.up_proj", "ffn_up"},
        {"mlp.down_proj", "ffn_down"},
    };
    static const char layers[] = "model.layers.";
    if (strcmp(module, "lm_head") == 0) return "output";
    if (strncmp(module, layers, sizeof layers - 1) != 0) return NULL;
    char *end;
    long layer = strtol(module + sizeof layers - 1, &end, 10);
    for (size_t i = 0; *end == '.' && i < COUNT(names); i++)
        if (strcmp(end + 1, names[i][0]) == 0)
            return arena_printf(arena, "blk.%ld.%s", layer, names[i][1]);
    return NULL;
}

static const Family *family_of(Arena *arena, const char *base, Err *err) {
    const char *type = model_type(arena, base, err);
    for (size_t i = 0; type && i < COUNT(families); i++)
        if (strcmp(type, families[i].type) == 0) return &families[i];
    if (type)
        fail(err, EXIT_INPUT,
             "%s: adapters for a model of type \"%s\" can't be written for llama.cpp; llama, "
             "mistral, qwen2 and qwen3 can: merge it and convert the result",
             base, type);
    return NULL;
}

/* Heads whose rows are reordered in B of a module; 0: none are. */
static int64_t heads_of(const Family *f, const char *base, const char *there) {
    bool q = ends_with(there, ".attn_q"), k = ends_with(there, ".attn_k");
    if (!f->neighbours || !(q || k)) return 0;
    int64_t heads = model_number(base, "num_attention_heads");
    int64_t shared = model_number(base, "num_key_value_heads");
    return k && shared ? shared : heads;
}

/* ---- what can be written --------------------------------------------------------------------- */

static bool check_adapter(Arena *arena, const Adapter *a, const char *dir, const char *base,
                          Err *err) {
    if (a->dora)
        return fail(err, EXIT_INPUT, "%s: llama.cpp knows no DoRA: export --format=merged", dir);
    if (a->nembeddings)
        return fail(err, EXIT_INPUT,
                    "%s: llama.cpp takes no adapter of an embedding (%s): export --format=merged",
                    dir, a->embeddings[0]);
    for (int i = 0; i < a->ntargets; i++) {
        if (!name_there(arena, a->targets[i]))
            return fail(err, EXIT_INPUT, "%s: llama.cpp has no name for %s: export --format=merged",
                        dir, a->targets[i]);
        if (strcmp(a->targets[i], "lm_head") == 0 && model_flag(base, "tie_word_embeddings"))
            return fail(err, EXIT_INPUT,
                        "%s: %s ties lm_head to the embedding, and llama.cpp has no adapter for "
                        "one of the two: export --format=merged",
                        dir, base);
    }
    return true;
}

/* ---- writing --------------------------------------------------------------------------------- */

typedef struct Item { /* one tensor of the file */
    const SafeTensor *from;
    const char *name;
    double factor; /* of its values */
    int64_t heads; /* whose rows are reordered; 0: none */
} Item;

static void add_u32(Text *t, uint32_t x) {
    for (int i = 0; i < 4; i++) text_addn(t, (char[]){(char)(x >> (8 * i))}, 1);
}

static void add_u64(Text *t, uint64_t x) {
    add_u32(t, (uint32_t)x);
    add_u32(t, (uint32_t)(x >> 32));
}

static void add_text(Text *t, const char *s) {
    add_u64(t, strlen(s));
    text_addn(t, s, strlen(s));
}

static void add_key(Text *t, const char *key, const char *value) {
    add_text(t, key);
    add_u32(t, TYPE_STRING);
    add_text(t, value);
}

static void add_float(Text *t, const char *key, double value) {
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    add_text(t, key);
    add_u32(t, TYPE_F32);
    add_u32(t, bits);
}

static void pad(Text *t) {
    while (t->len % ALIGN) text_addn(t, "", 1);
}

static uint32_t type_number(DType t) { /* ggml_type */
    return t == DT_f32 ? 0 : t == DT_f16 ? 1 : 30;
}

static int64_t padded(int64_t n) {
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

static void add_header(Text *t, const Family *f, double alpha, Item *items, int n, DType dtype) {
    text_addn(t, "GGUF", 4);
    add_u32(t, GGUF_VERSION);
    add_u64(t, (uint64_t)n);
    add_u64(t, 4);
    add_key(t, "general.architecture", f->architecture);
    add_key(t, "general.type", "adapter");
    add_key(t, "adapter.type", "lora");
    add_float(t, "adapter.lora.alpha", alpha);
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        const SafeTensor *s = items[i].from;
        add_text(t, items[i].name);
        add_u32(t, 2);
        add_u64(t, (uint64_t)s->shape[1]);
        add_u64(t, (uint64_t)s->shape[0]);
        add_u32(t, type_number(dtype));
        add_u64(t, (uint64_t)at);
        at = padded(at + s->count * dtype_bytes(dtype));
    }
    pad(t);
}

/* Which of our rows stands in a row there: 2 i + b of a head is i + b size / 2. */
static int64_t row_here(const Item *item, int64_t row) {
    if (!item->heads) return row;
    int64_t size = item->from->shape[0] / item->heads, in = row % size;
    return row - in + in / 2 + in % 2 * (size / 2);
}

static bool add_tensor(Text *t, const Item *item, DType dtype, Err *err) {
    int64_t rows = item->from->shape[0], cols = item->from->shape[1];
    if (item->heads && (rows % item->heads || rows / item->heads % 2))
        return fail(err, EXIT_INPUT, "%s: %lld rows of \"%s\" are not %lld heads of even size",
                    safe_path(item->from->file), (long long)rows, item->from->name,
                    (long long)item->heads);
    float *x = malloc((size_t)cols * sizeof *x);
    bool ok = x || fail(err, EXIT_MEMORY, "no memory for \"%s\"", item->name);
    for (int64_t row = 0; ok && row < rows; row++) {
        ok = safe_read_f32(item->from, row_here(item, row) * cols, cols, x, err);
        for (int64_t i = 0; ok && i < cols; i++) {
            float value = (float)(item->factor * (double)x[i]);
            uint16_t half = dtype == DT_bf16 ? float_to_bf16(value) : float_to_f16(value);
            if (dtype == DT_f32)
                text_addn(t, (const char *)&value, sizeof value);
            else
                text_addn(t, (const char *)&half, sizeof half);
        }
    }
    free(x);
    pad(t); /* the header ends at a multiple too */
    return ok;
}

/* A and B of every module; returns the alpha that goes with them. */
static double list_items(Arena *arena, const Adapter *a, const Checkpoint *c, const Family *f,
                         const char *base, Item *items) {
    double alpha = adapter_scaling(a, a->targets[0]) * adapter_rank(a, a->targets[0]);
    if (alpha == 0) alpha = 1; /* llama.cpp takes 0 for "none said" */
    for (int i = 0; i < a->ntargets; i++) {
        const char *module = a->targets[i], *there = name_there(arena, module);
        double factor = adapter_scaling(a, module) * adapter_rank(a, module) / alpha;
        items[2 * i] = (Item){.from = adapter_tensor(a, c, module, ADAPTER_A),
                              .name = arena_printf(arena, "%s.weight.lora_a", there),
                              .factor = 1};
        items[2 * i + 1] = (Item){.from = adapter_tensor(a, c, module, ADAPTER_B),
                                  .name = arena_printf(arena, "%s.weight.lora_b", there),
                                  .factor = factor,
                                  .heads = heads_of(f, base, there)};
    }
    return alpha;
}

bool gguf_lora_write(const char *adapter, const char *base, const char *path, DType dtype,
                     Err *err) {
    Arena *arena = arena_new();
    Text text = {0};
    const Family *f = family_of(arena, base, err);
    Adapter *a = f ? adapter_read(arena, adapter, err) : NULL;
    Checkpoint *c = a && check_adapter(arena, a, adapter, base, err)
                        ? checkpoint_open(adapter, "adapter_model", err)
                        : NULL;
    bool ok = c != NULL;
    if (ok && f->neighbours && model_number(base, "num_attention_heads") < 1)
        ok = fail(err, EXIT_INPUT, "%s: config.json has no \"num_attention_heads\"", base);
    if (ok) {
        int n = 2 * a->ntargets;
        Item *items = NEW_ARRAY(arena, Item, n);
        double alpha = list_items(arena, a, c, f, base, items);
        add_header(&text, f, alpha, items, n, dtype);
        for (int i = 0; ok && i < n; i++) ok = add_tensor(&text, &items[i], dtype, err);
    }
    ok = ok && file_write(path, text.data, text.len, err);
    text_free(&text);
    checkpoint_close(c);
    arena_free(arena);
    return ok;
}
