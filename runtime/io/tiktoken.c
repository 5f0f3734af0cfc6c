/* tiktoken.c: Llama-3's original tokenizer.model (tokenjson.h): 128000 lines "base64 rank".
 *
 * The rank of a pair is the id of the concatenation, so the merges are all splits of every entry
 * into two entries.  The special tokens are not in the file; these are the ones of Llama 3.1 and
 * later.
 */
#include "tokenjson.h"

#include <stdlib.h> /* free */
#include <string.h> /* memchr */

#define LLAMA3_PATTERN                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"                      \
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SPECIALS 256

static int digit(char c) { /* of base64, or -1 */
    const char *alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *hit = c ? strchr(alphabet, c) : NULL;
    return hit ? (int)(hit - alphabet) : -1;
}

/* One line "base64 rank"; false when it is anything else. */
static bool parse_line(const char *line, size_t len, Text *bytes, long *rank) {
    const char *space = memchr(line, ' ', len);
    if (!space) return false;
    uint32_t bits = 0;
    int n = 0;
    bytes->len = 0;
    for (const char *p = line; p < space && *p != '='; p++) {
        int d = digit(*p);
        if (d < 0) return false;
        bits = bits << 6 | (uint32_t)d;
        if ((n += 6) >= 8) {
            char c = (char)(bits >> (n -= 8));
            text_addn(bytes, &c, 1);
        }
    }
    char *end;
    *rank = strtol(space + 1, &end, 10);
    return bytes->len > 0 && end > space + 1 && end <= line + len;
}

static bool parse_lines(Tokenizer *t, const char *text, size_t len, Err *err) {
    Bpe *b = t->bpe;
    Text bytes = {0}, name = {0};
    long number = 0;
    bool ok = true;
    for (const char *p = text, *end = text + len, *next; ok && p < end; p = next, number++) {
        const char *stop = memchr(p, '\n', (size_t)(end - p));
        next = stop ? stop + 1 : end;
        long rank;
        ok = parse_line(p, (size_t)((stop ? stop : end) - p), &bytes, &rank) && rank == number;
        if (!ok) {
            fail(err, EXIT_IO, "%s:%ld: expected a base64 token and the rank %ld", t->path,
                 number + 1, number);
            break;
        }
        Entry *e = &b->entry[rank];
        name.len = 0;
        for (size_t i = 0; i < bytes.len; i++) alphabet_add((unsigned char)bytes.data[i], &name);
        e->name = arena_strn(b->arena, name.data, name.len);
        e->bytes = arena_strn(b->arena, bytes.data, bytes.len);
        e->len = (uint32_t)bytes.len;
        bpe_add_word(b, (int32_t)rank);
    }
    text_free(&bytes);
    text_free(&name);
    return ok;
}

/* Every split of every entry into two entries: counts them, or adds them. */
static int merges(Bpe *b, int n, bool add) {
    int count = 0;
    for (int32_t id = 0; id < n; id++) {
        const Entry *e = &b->entry[id];
        for (uint32_t k = 1; k < e->len; k++) {
            int32_t left = bpe_find(b, e->bytes, k);
            int32_t right = left < 0 ? -1 : bpe_find(b, e->bytes + k, e->len - k);
            if (right < 0) continue;
            if (add) bpe_add_merge(b, left, right, id, id);
            count++;
        }
    }
    return count;
}

static void add_specials(Bpe *b, int n) {
    static const char *const names[] = {"<|begin_of_text|>",
                                        "<|end_of_text|>",
                                        "<|reserved_special_token_0|>",
                                        "<|reserved_special_token_1|>",
                                        "<|finetune_right_pad_id|>",
                                        "<|reserved_special_token_2|>",
                                        "<|start_header_id|>",
                                        "<|end_header_id|>",
                                        "<|eom_id|>",
                                        "<|eot_id|>",
                                        "<|python_tag|>"};
    for (int i = 0; i < SPECIALS; i++) {
        Entry *e = &b->entry[n + i];
        e->name = i < (int)COUNT(names)
                      ? names[i]
                      : arena_printf(b->arena, "<|reserved_special_token_%d|>", i - 8);
        e->bytes = e->name;
        e->len = (uint32_t)strlen(e->name);
        e->special = e->added = true;
        trie_add(b->arena, &b->raw, e->name, e->len, b->nadded);
        PUSH(b->arena, b->added, b->nadded, b->capadded, ((Added){.id = n + i, .special = true}));
    }
}

bool tiktoken_parse(Tokenizer *t, Err *err) {
    Bpe *b = t->bpe;
    size_t len;
    char *text = file_read(t->path, &len, err);
    if (!text) return false;
    int n = 0;
    for (size_t i = 0; i < len; i++) n += text[i] == '\n' || i + 1 == len;
    if (len == 0 || text[0] == '\n' || digit(text[0]) < 0) {
        free(text);
        return fail(err, EXIT_IO,
                    "%s: a sentencepiece model; convert it to tokenizer.json with transformers: "
                    "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
                    t->path);
    }
    b->byte_level = b->ignore_merges = true;
    b->unk = -1;
    b->size = n + SPECIALS;
    b->entry = NEW_ARRAY(b->arena, Entry, b->size);
    bpe_words(b, n);
    bool ok = parse_lines(t, text, len, err);
    free(text);
    if (!ok) return false;
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        b->byte_id[byte] = bpe_find(b, &c, 1);
    }
    bpe_merges(b, merges(b, n, false));
    merges(b, n, true);
    add_specials(b, n);
    t->bos = n;
    t->adds_bos = true;
    return add_regex(t, LLAMA3_PATTERN, SPLIT_ISOLATED, false, err);
}
