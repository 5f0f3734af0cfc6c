/* fuzz_tokenizer.c: the input up to its first zero byte is a tokenizer.json, the rest a text: no
 * crash; encoding gives ids of the vocabulary, and the same ones again.  With a text alone, a plain
 * byte-level tokenizer decodes what it encoded to the same bytes (repaired, where they were not
 * UTF-8). Built by clang with -fsanitize=fuzzer (make fuzz). */
#include <stdlib.h>
#include <string.h>

#include "runtime/io/tokenizer.h"
#include "runtime/io/utf8.h"
#include "tests/fuzz/bytes.h"

static void check(Tokenizer *t, const char *text, size_t len, bool lossless) {
    Ids ids = {0}, again = {0};
    Text back = {0}, repaired = {0};
    tokenizer_encode(t, text, len, true, &ids);
    tokenizer_encode(t, text, len, true, &again);
    if (ids.n != again.n || (ids.n && memcmp(ids.v, again.v, sizeof *ids.v * (size_t)ids.n)))
        abort();
    for (int64_t i = 0; i < ids.n; i++)
        if (ids.v[i] < 0 || ids.v[i] >= t->size || !tokenizer_piece(t, ids.v[i])) abort();
    tokenizer_decode(t, ids.v, ids.n, false, &back);
    utf8_repair(text, len, &repaired);
    if (lossless &&
        (back.len != repaired.len || (back.len && memcmp(back.data, repaired.data, back.len))))
        abort();
    ids_free(&ids);
    ids_free(&again);
    text_free(&back);
    text_free(&repaired);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Tokenizer *plain;
    Err err = {0};
    if (!plain) plain = tokenizer_open(bytes_tokenizer(), &err);
    if (!plain) abort();
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    if (!zero) {
        check(plain, (const char *)data, size, true);
        return 0;
    }
    const char *dir = scratch_file("tokenizer.json", data, (size_t)(zero - data));
    Tokenizer *t = tokenizer_open(dir, &err);
    if (!t != (err.code != 0)) abort();
    if (t) check(t, (const char *)zero + 1, size - (size_t)(zero - data) - 1, false);
    tokenizer_close(t);
    return 0;
}
