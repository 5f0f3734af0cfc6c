/* split.c: a text becomes words (bpe.h).
 *
 * In the original's order: added tokens are cut out of the raw text, each piece between them is
 * normalized, added tokens are cut out again (those marked so), and what is left goes through the
 * steps of the pre-tokenizer, each of which sees one piece at a time.
 */
#include "bpe.h"
#include "nfc.h"
#include "utf8.h"

#include <string.h> /* memchr */

typedef struct Encoding { /* one call of split_encode */
    Bpe *b;
    bool special;
    const char *begin; /* of the whole text, for "first"; NULL: it follows another */
    Ids *out;
} Encoding;

/* ---- added tokens ---------------------------------------------------------------------------- */

void trie_add(Arena *arena, Trie *trie, const char *text, size_t len, int32_t added) {
    if (trie->n == 0) PUSH(arena, trie->node, trie->n, trie->cap, ((TrieNode){.added = -1}));
    if (len == 0) return;
    int32_t at = 0;
    for (size_t i = 0; i < len; i++) {
        int32_t child = trie->node[at].child;
        while (child && trie->node[child].byte != (unsigned char)text[i])
            child = trie->node[child].sibling;
        if (!child) {
            child = trie->n;
            TrieNode node = {0, trie->node[at].child, -1, (unsigned char)text[i]};
            PUSH(arena, trie->node, trie->n, trie->cap, node);
            trie->node[at].child = child;
        }
        at = child;
    }
    trie->node[at].added = added;
    trie->first[(unsigned char)text[0]] = true;
}

/* The longest token at the beginning of s, or -1; its bytes in *n. */
static int32_t trie_match(const Trie *trie, const char *s, size_t len, size_t *n) {
    int32_t found = -1, at = 0;
    for (size_t i = 0; i < len; i++) {
        int32_t child = trie->node[at].child;
        while (child && trie->node[child].byte != (unsigned char)s[i])
            child = trie->node[child].sibling;
        if (!child) break;
        at = child;
        if (trie->node[at].added >= 0) found = trie->node[at].added, *n = i + 1;
    }
    return found;
}

static uint32_t char_before(const char *text, size_t at, size_t *n) {
    size_t i = at;
    do i--;
    while (i > 0 && ((unsigned char)text[i] & 0xC0) == 0x80);
    *n = at - i;
    return utf8_decode(text + i, (int)*n);
}
static uint32_t char_at(const char *text, size_t at, size_t len, size_t *n) {
    *n = (size_t)utf8_length(text + at, len - at);
    return *n ? utf8_decode(text + at, (int)*n) : 0;
}

static bool is_word(const Bpe *b, const char *s, size_t n) {
    return pcre2_match(b->word_char, (PCRE2_SPTR)s, n, 0, PCRE2_NO_UTF_CHECK, b->match,
                       b->context) >= 0;
}

/* Whether a match touches a word at one of its ends. */
static bool within_word(const Bpe *b, const char *text, size_t len, size_t begin, size_t end) {
    size_t n;
    if (begin > 0) {
        char_before(text, begin, &n);
        if (is_word(b, text + begin - n, n)) return true;
    }
    if (end == len) return false;
    char_at(text, end, len, &n);
    return is_word(b, text + end, n);
}

/* Applies a token's flags to its match begin..end in text; false when it does not count. */
static bool accept(const Encoding *e, const Added *a, const char *text, size_t len, size_t from,
                   size_t *begin, size_t *end) {
    size_t n;
    if (a->special && !e->special) return false;
    if (a->single_word && within_word(e->b, text, len, *begin, *end)) return false;
    if (a->lstrip)
        while (*begin > from && utf8_is_space(char_before(text, *begin, &n))) *begin -= n;
    if (a->rstrip)
        while (*end < len && utf8_is_space(char_at(text, *end, len, &n))) *end += n;
    return true;
}

typedef void Piece(Encoding *e, const char *text, size_t len);

/* Calls `piece` for the texts between added tokens, and puts out the tokens. */
static void cut_added(Encoding *e, const Trie *trie, const char *text, size_t len, Piece *piece) {
    size_t from = 0;
    for (size_t i = 0; trie->n && i < len;) {
        size_t n = 0;
        int32_t found =
            trie->first[(unsigned char)text[i]] ? trie_match(trie, text + i, len - i, &n) : -1;
        if (found < 0) {
            i++;
            continue;
        }
        size_t begin = i, end = i + n;
        const Added *a = &e->b->added[found];
        i = end;
        if (!accept(e, a, text, len, from, &begin, &end)) continue;
        if (begin > from) piece(e, text + from, begin - from);
        ids_push(e->out, a->id);
        from = end;
    }
    if (from < len) piece(e, text + from, len - from);
}

/* ---- normalizer ------------------------------------------------------------------------------ */

static void replace_all(const char *s, size_t len, const char *from, const char *to, Text *out) {
    size_t n = strlen(from);
    for (const char *end = s + len, *hit; s < end; s = hit + n) {
        hit = memmem(s, (size_t)(end - s), from, n);
        text_addn(out, s, (size_t)((hit ? hit : end) - s));
        if (!hit) break;
        text_addn(out, to, strlen(to));
    }
}

void normalize(const Bpe *b, const char *text, size_t len, Text *out) {
    Text now = {0};
    text_addn(&now, text, len);
    for (int i = 0; i < b->nnormal && now.len; i++) {
        Text next = {0};
        const Normal *step = &b->normal[i];
        if (step->kind == NORMAL_PREPEND) {
            text_addn(&next, step->to, strlen(step->to));
            text_addn(&next, now.data, now.len);
        } else if (step->kind == NORMAL_REPLACE) {
            replace_all(now.data, now.len, step->from, step->to, &next);
        } else {
            nfc(now.data, now.len, &next);
        }
        text_free(&now);
        now = next;
    }
    if (now.len) text_addn(out, now.data, now.len);
    text_free(&now);
}

/* ---- pre-tokenizer --------------------------------------------------------------------------- */

static void split_step(Encoding *e, int step, const char *text, size_t len);

/* A match and the gap before it: isolated pieces; `removed` drops the matches (or, inverted, the
 * gaps). */
static void split_regex(Encoding *e, int step, const char *text, size_t len) {
    Bpe *b = e->b;
    const Split *s = &b->split[step];
    size_t from = 0, at = 0;
    while (at < len) {
        int rc = pcre2_match(s->code, (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK, b->match,
                             b->context);
        if (rc < 0) break;
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(b->match);
        size_t begin = v[0], end = v[1]; /* later steps use the same match data */
        if (end <= begin) {              /* an empty match cuts nothing */
            at = begin + (begin < len ? (size_t)utf8_length(text + begin, len - begin) : 1);
            continue;
        }
        bool gaps = s->kind == SPLIT_ISOLATED || !s->invert;
        bool matches = s->kind == SPLIT_ISOLATED || s->invert;
        if (begin > from && gaps) split_step(e, step + 1, text + from, begin - from);
        if (matches) split_step(e, step + 1, text + begin, end - begin);
        from = at = end;
    }
    if (from < len && (s->kind == SPLIT_ISOLATED || !s->invert))
        split_step(e, step + 1, text + from, len - from);
}

static void split_metaspace(Encoding *e, int step, const char *text, size_t len) {
    const Split *s = &e->b->split[step];
    size_t n = strlen(s->space);
    Text t = {0};
    bool begins = text[0] == ' ' || (len >= n && memcmp(text, s->space, n) == 0);
    if (!begins &&
        (s->prepend == PREPEND_ALWAYS || (s->prepend == PREPEND_FIRST && text == e->begin)))
        text_addn(&t, s->space, n);
    replace_all(text, len, " ", s->space, &t);
    size_t from = 0;
    for (size_t i = n; s->cut && i + n <= t.len; i++)
        if (memcmp(t.data + i, s->space, n) == 0) {
            split_step(e, step + 1, t.data + from, i - from);
            from = i;
        }
    split_step(e, step + 1, t.data + from, t.len - from);
    text_free(&t);
}

static void split_step(Encoding *e, int step, const char *text, size_t len) {
    if (len == 0) return;
    if (step == e->b->nsplit) {
        bpe_word(e->b, text, len, e->out);
        return;
    }
    switch (e->b->split[step].kind) {
    case SPLIT_ISOLATED:
    case SPLIT_REMOVED:
        split_regex(e, step, text, len);
        break;
    case SPLIT_METASPACE:
        split_metaspace(e, step, text, len);
        break;
    case SPLIT_PREFIX_SPACE:
        if (text[0] == ' ') {
            split_step(e, step + 1, text, len);
        } else {
            Text t = {0};
            text_addn(&t, " ", 1);
            text_addn(&t, text, len);
            split_step(e, step + 1, t.data, t.len);
            text_free(&t);
        }
        break;
    }
}

/* ---- all of it ------------------------------------------------------------------------------- */

static void piece_words(Encoding *e, const char *text, size_t len) {
    split_step(e, 0, text, len);
}

static void piece_normalize(Encoding *e, const char *text, size_t len) {
    if (e->b->nnormal == 0) {
        cut_added(e, &e->b->normalized, text, len, piece_words);
        return;
    }
    Text t = {0};
    normalize(e->b, text, len, &t);
    const char *begin = e->begin;
    if (text == begin) e->begin = t.data; /* still the beginning of the text */
    cut_added(e, &e->b->normalized, t.data, t.len, piece_words);
    e->begin = begin;
    text_free(&t);
}

void split_encode(Bpe *b, const char *text, size_t len, bool special, bool more, Ids *out) {
    Encoding e = {b, special, more ? NULL : text, out};
    cut_added(&e, &b->raw, text, len, piece_normalize);
}
