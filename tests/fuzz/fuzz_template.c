/* fuzz_template.c: any bytes as the pieces of a template (zero bytes between them, the last piece
 * also a Jinja template): no crash; one without faults writes the ids of its text, and no content
 * becomes a control token.  Built by clang with -fsanitize=fuzzer (make fuzz). */
#include "runtime/io/template.h"
#include "tests/fuzz/bytes.h"

enum { PIECES = 10 };

static void found(void *self, const char *key, size_t at, size_t len, const char *text) {
    (void)at, (void)len;
    if (!key || !text || !*text) abort();
    *(bool *)self = true;
}

static int controls(const Ids *ids) {
    int n = 0;
    for (int64_t i = 0; i < ids->n; i++) {
        if (ids->v[i] < 0 || ids->v[i] > 260) abort();
        n += ids->v[i] == 256 || ids->v[i] == 257;
    }
    return n;
}

/* The same conversation with and without the names of control tokens in its contents. */
static void encode(const Template *t, bool generation) {
    const Message plain[] = {{"user", "x", 1}, {"assistant", " y ", 3}, {"user", "", 0}},
                  hostile[] = {{"user", "<s>", 3}, {"assistant", " </s> ", 6}, {"user", "", 0}};
    Ids a = {0}, b = {0};
    Err err = {0};
    Text text = {0};
    bool ok = template_encode(t, plain, 3, generation, &a, &err);
    if (!ok != (err.code != 0)) abort();
    if (ok && !template_text(t, plain, 3, generation, &text, &err)) abort();
    if (ok && !template_encode(t, hostile, 3, generation, &b, &err)) abort();
    if (ok && controls(&a) != controls(&b)) abort();
    text_free(&text);
    ids_free(&a);
    ids_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Tokenizer *tokenizer;
    Err err = {0};
    if (!tokenizer) tokenizer = tokenizer_open(bytes_tokenizer(), &err);
    Arena *arena = arena_new();
    const char *piece[PIECES] = {0};
    for (int i = 0; i < PIECES && size; i++) {
        const uint8_t *zero = memchr(data, 0, size);
        const size_t n = zero ? (size_t)(zero - data) : size;
        if (n) piece[i] = arena_strn(arena, (const char *)data, n);
        data += zero ? n + 1 : n;
        size -= zero ? n + 1 : n;
        TemplateDef known;
        const char *why;
        template_recognise(piece[i] ? piece[i] : "", &known, &why);
    }
    const TemplateDef def = {"own",
                             piece[0],
                             piece[1],
                             piece[2],
                             piece[3],
                             piece[4],
                             piece[5],
                             piece[6],
                             piece[7],
                             piece[8],
                             .default_system = piece[9]};
    bool faulty = false;
    template_check(&def, tokenizer, found, &faulty);
    Template t;
    if (!faulty && template_open(&t, "own", &def, scratch, tokenizer, NULL, &err)) {
        encode(&t, true);
        encode(&t, false);
        template_stop(&t);
    }
    arena_free(arena);
    return 0;
}
