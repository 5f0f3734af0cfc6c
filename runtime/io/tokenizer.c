/* tokenizer.c: opening tokenizer.json, and decoding (tokenizer.h).
 *
 * Every kind of normalizer, pre-tokenizer, model and decoder that is understood is a few lines
 * here; any other is refused by its name, since a tokenizer that is nearly right trains a wrong
 * model.
 */
#include "bpe.h"
#include "tokenjson.h"
#include "utf8.h"

#include <stdlib.h> /* realloc */
#include <string.h> /* strcmp */

/* ---- ids ------------------------------------------------------------------------------------- */

void ids_push(Ids *ids, int32_t id) {
    if (ids->n == ids->cap) {
        int64_t cap = ids->cap ? 2 * ids->cap : 256;
        int32_t *v = realloc(ids->v, sizeof *v * (size_t)cap);
        if (!v) {
            fprintf(stderr, "dpoc: out of host memory for token ids\n");
            exit(EXIT_MEMORY);
        }
        ids->v = v;
        ids->cap = cap;
    }
    ids->v[ids->n++] = id;
}

void ids_free(Ids *ids) {
    free(ids->v);
    *ids = (Ids){0};
}

/* ---- opening --------------------------------------------------------------------------------- */

/* The name of a bos or eos token: a string, or an object with "content". */
static int32_t token_of(const Tokenizer *t, const json_t *config, const char *key) {
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v)) v = json_object_get(v, "content");
    return json_is_string(v) ? tokenizer_id(t, json_string_value(v)) : -1;
}

static int32_t number_of(const json_t *config, const char *key, int size) {
    const json_t *v = json_object_get(config, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    return id >= 0 && id < size ? (int32_t)id : -1;
}

/* An optional companion file; NULL when it is not there.  Broken JSON in it is an error. */
static json_t *companion(Arena *arena, const char *dir, const char *name, Err *err) {
    char *path = path_join(arena, dir, name);
    return file_exists(path) ? json_file(path, err) : NULL;
}

/* bos, eos, and whether bos is added, from the files beside tokenizer.json. */
static bool companions(Tokenizer *t, Arena *arena, const char *dir, Err *err) {
    json_t *config = companion(arena, dir, "tokenizer_config.json", err);
    json_t *map = companion(arena, dir, "special_tokens_map.json", err);
    json_t *model = companion(arena, dir, "config.json", err);
    int32_t post_bos = t->bos; /* set when the post-processor adds one */
    t->bos = token_of(t, config, "bos_token");
    if (t->bos < 0) t->bos = token_of(t, map, "bos_token");
    if (t->bos < 0) t->bos = post_bos;
    if (t->bos < 0) t->bos = number_of(model, "bos_token_id", t->size);
    t->eos = token_of(t, config, "eos_token");
    if (t->eos < 0) t->eos = token_of(t, map, "eos_token");
    if (t->eos < 0) t->eos = number_of(model, "eos_token_id", t->size);
    if (post_bos >= 0) t->bos = post_bos;
    /* Llama's own tokenizer class makes its post-processor from these two, whatever the file says.
     * */
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    if (class && strncmp(class, "LlamaTokenizer", 14) == 0) {
        const json_t *bos = json_object_get(config, "add_bos_token");
        t->adds_bos = bos ? json_is_true(bos) : true;
        t->adds_eos = json_is_true(json_object_get(config, "add_eos_token"));
    }
    t->adds_bos = t->adds_bos && t->bos >= 0;
    t->adds_eos = t->adds_eos && t->eos >= 0;
    json_decref(config);
    json_decref(map);
    json_decref(model);
    return err->code == 0;
}

static bool prepare_matching(Bpe *b, Err *err) {
    b->match = pcre2_match_data_create(1, NULL);
    b->context = pcre2_match_context_create(NULL);
    b->stack = pcre2_jit_stack_create(32 << 10, 1 << 20, NULL);
    if (!b->match || !b->context || !b->stack)
        return fail(err, EXIT_MEMORY, "no memory for the tokenizer's patterns");
    pcre2_jit_stack_assign(b->context, NULL, b->stack);
    return true;
}

Tokenizer *tokenizer_open(const char *dir, Err *err) {
    Arena *arena = arena_new();
    Tokenizer *t = NEW(arena, Tokenizer);
    Bpe *b = NEW(arena, Bpe);
    b->arena = arena;
    t->bpe = b;
    t->bos = t->eos = -1;
    char *path = path_join(arena, dir, "tokenizer.json");
    char *model = path_join(arena, dir, "tokenizer.model");
    t->path = path;
    bool ok = prepare_matching(b, err);
    if (ok && file_exists(path)) {
        json_t *root = json_file(path, err);
        ok = root && tokenizer_parse(t, root, err);
        json_decref(root);
    } else if (ok && file_exists(model)) {
        t->path = model;
        ok = tiktoken_parse(t, err);
    } else if (ok) {
        ok = fail(err, EXIT_IO, "%s: neither tokenizer.json nor tokenizer.model is there", dir);
    }
    t->size = b->size;
    if (ok && companions(t, arena, dir, err)) return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(Tokenizer *t) {
    if (!t) return;
    Bpe *b = t->bpe;
    for (int i = 0; i < b->nsplit; i++) pcre2_code_free(b->split[i].code);
    pcre2_code_free(b->word_char);
    pcre2_match_data_free(b->match);
    pcre2_match_context_free(b->context);
    pcre2_jit_stack_free(b->stack);
    free(b->symbol);
    free(b->heap);
    arena_free(b->arena);
}

/* ---- encoding -------------------------------------------------------------------------------- */

static void encode(Tokenizer *t, const char *text, size_t len, bool special, bool more, Ids *out) {
    if (utf8_valid(text, len) == len) {
        split_encode(t->bpe, text, len, special, more, out);
        return;
    }
    Text good = {0};
    utf8_repair(text, len, &good);
    split_encode(t->bpe, good.data, good.len, special, more, out);
    text_free(&good);
}

void tokenizer_encode(Tokenizer *t, const char *text, size_t len, bool special, Ids *out) {
    encode(t, text, len, special, false, out);
}

void tokenizer_encode_more(Tokenizer *t, const char *text, size_t len, Ids *out) {
    encode(t, text, len, false, true, out);
}

/* ---- decoding -------------------------------------------------------------------------------- */

/* Bytes that byte tokens stand for are text only when the whole run is valid; else one U+FFFD each.
 * */
static void flush_bytes(Text *run, Text *out) {
    if (run->len && utf8_valid(run->data, run->len) == run->len)
        text_addn(out, run->data, run->len);
    else
        for (size_t i = 0; i < run->len; i++) text_addn(out, "\xEF\xBF\xBD", 3);
    run->len = 0;
}

static void add_spaced(const Bpe *b, const Entry *e, bool first, Text *out) {
    size_t n = strlen(b->space);
    for (const char *s = e->bytes, *end = s + e->len, *hit; s < end; s = hit + n) {
        hit = memmem(s, (size_t)(end - s), b->space, n);
        text_addn(out, s, (size_t)((hit ? hit : end) - s));
        if (!hit) break;
        if (!(first && b->bare_first)) text_addn(out, " ", 1);
    }
}

static void decode_spaced(const Bpe *b, const int32_t *ids, int64_t n, bool skip, Text *out) {
    Text all = {0}, run = {0};
    bool first = true;
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= b->size || !b->entry[ids[i]].name) continue;
        const Entry *e = &b->entry[ids[i]];
        if (e->special && skip) continue;
        int byte = b->joins_bytes ? byte_token(e->name) : -1;
        if (byte >= 0) {
            char c = (char)byte;
            text_addn(&run, &c, 1);
        } else {
            flush_bytes(&run, &all);
            add_spaced(b, e, first, &all);
        }
        first = false;
    }
    flush_bytes(&run, &all);
    size_t from = 0;
    while (from < all.len && from < (size_t)b->strip && all.data[from] == ' ') from++;
    if (all.len) text_addn(out, all.data + from, all.len - from);
    text_free(&all);
    text_free(&run);
}

void tokenizer_decode(const Tokenizer *t, const int32_t *ids, int64_t n, bool skip_special,
                      Text *out) {
    const Bpe *b = t->bpe;
    if (b->space) {
        decode_spaced(b, ids, n, skip_special, out);
        return;
    }
    Text all = {0};
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= b->size || !b->entry[ids[i]].name) continue;
        const Entry *e = &b->entry[ids[i]];
        if (!(e->special && skip_special)) text_addn(&all, e->bytes, e->len);
    }
    if (all.len) utf8_repair(all.data, all.len, out);
    text_free(&all);
}

/* ---- single tokens --------------------------------------------------------------------------- */

int32_t tokenizer_added(const Tokenizer *t, const char *name) {
    const Bpe *b = t->bpe;
    for (int i = 0; i < b->nadded; i++)
        if (strcmp(b->entry[b->added[i].id].name, name) == 0) return b->added[i].id;
    return -1;
}

int tokenizer_added_names(const Tokenizer *t, const char **out, int max) {
    const Bpe *b = t->bpe;
    int n = 0;
    for (; n < b->nadded && n < max; n++) out[n] = b->entry[b->added[n].id].name;
    return n;
}

int32_t tokenizer_special_at(const Tokenizer *t, const char *text, size_t len, size_t *n) {
    const Bpe *b = t->bpe;
    int32_t found = -1;
    for (int i = 0; i < b->nadded; i++) {
        const char *name = b->entry[b->added[i].id].name;
        size_t length = strlen(name);
        if (!b->added[i].special || length > len || memcmp(name, text, length) != 0) continue;
        if (found < 0 || length > *n) *n = length, found = b->added[i].id;
    }
    return found;
}

void tokenizer_strips(const Tokenizer *t, int32_t id, bool *left, bool *right) {
    const Bpe *b = t->bpe;
    *left = *right = false;
    for (int i = 0; i < b->nadded; i++)
        if (b->added[i].id == id) *left = b->added[i].lstrip, *right = b->added[i].rstrip;
}

int32_t tokenizer_id(const Tokenizer *t, const char *token) {
    const Bpe *b = t->bpe;
    int32_t id = tokenizer_added(t, token);
    if (id >= 0) return id;
    Text text = {0}; /* a vocabulary entry: look it up by what it stands for */
    bool known = entry_bytes(b, token, strlen(token), &text);
    id = known ? bpe_find(b, text.data ? text.data : "", text.len) : -1;
    text_free(&text);
    return id;
}

const char *tokenizer_piece(const Tokenizer *t, int32_t id) {
    return id >= 0 && id < t->size ? t->bpe->entry[id].name : NULL;
}

const char *tokenizer_bytes(const Tokenizer *t, int32_t id, size_t *len) {
    const Entry *e = id >= 0 && id < t->size ? &t->bpe->entry[id] : &(Entry){0};
    *len = e->len;
    return e->bytes;
}

bool tokenizer_is_special(const Tokenizer *t, int32_t id) {
    return id >= 0 && id < t->size && t->bpe->entry[id].special;
}
