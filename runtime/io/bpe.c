/* bpe.c: byte-pair encoding of one word, and the tables it looks things up in (bpe.h).
 *
 * Merge the adjacent pair of lowest rank, leftmost on ties, until none is left.  Short words keep
 * the ranks in an array and scan it; long ones use a heap over a linked list, so a word of a
 * million letters takes n log n.
 */
#include "bpe.h"
#include "utf8.h"

#include <stdlib.h> /* realloc */
#include <string.h> /* memcmp */

#define SHORT 32

typedef struct Symbol {
    int32_t id, prev, next; /* -1: none; id -1: merged away */
} Symbol;

/* ---- tables ---------------------------------------------------------------------------------- */

static uint32_t hash_word(const char *bytes, size_t len) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ len;
    for (; len >= 8; bytes += 8, len -= 8) {
        uint64_t w;
        memcpy(&w, bytes, 8);
        h = (h ^ w) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    uint64_t w = 0;
    for (size_t i = 0; i < len; i++) w |= (uint64_t)(unsigned char)bytes[i] << (8 * i);
    h = (h ^ w) * 0xD6E8FEB86659FD93u;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    return (uint32_t)(h >> 32) | 1; /* 0 marks a free slot */
}

static uint32_t hash_pair(uint64_t pair) {
    pair = (pair ^ pair >> 29) * 0xBF58476D1CE4E5B9u;
    return (uint32_t)(pair >> 32);
}

static uint32_t table_mask(int n) { /* at most half full */
    uint32_t size = 16;
    while (size < 2 * (uint32_t)n) size *= 2;
    return size - 1;
}

void bpe_words(Bpe *b, int n) {
    b->word_mask = table_mask(n);
    b->word = NEW_ARRAY(b->arena, Word, b->word_mask + 1);
}

void bpe_merges(Bpe *b, int n) {
    b->merge_mask = table_mask(n);
    b->merge = NEW_ARRAY(b->arena, Merge, b->merge_mask + 1);
    for (uint32_t i = 0; i <= b->merge_mask; i++) b->merge[i].pair = NO_PAIR;
}

/* The slot of a word, or the free one where it would be. */
static Word *word_slot(const Bpe *b, uint32_t hash, const char *bytes, size_t len) {
    for (uint32_t i = hash >> 1;; i++) {
        Word *w = &b->word[i & b->word_mask];
        if (w->hash == 0) return w;
        if (w->hash != hash) continue;
        const Entry *e = &b->entry[w->id];
        if (e->len == len && memcmp(e->bytes, bytes, len) == 0) return w;
    }
}

void bpe_add_word(Bpe *b, int32_t id) {
    const Entry *e = &b->entry[id];
    uint32_t hash = hash_word(e->bytes, e->len);
    *word_slot(b, hash, e->bytes, e->len) = (Word){hash, id};
}

int32_t bpe_find(const Bpe *b, const char *bytes, size_t len) {
    const Word *w = word_slot(b, hash_word(bytes, len), bytes, len);
    return w->hash ? w->id : -1;
}

static Merge *merge_slot(const Bpe *b, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint32_t i = hash_pair(pair);; i++) {
        Merge *m = &b->merge[i & b->merge_mask];
        if (m->pair == pair || m->pair == NO_PAIR) return m;
    }
}

void bpe_add_merge(Bpe *b, int32_t left, int32_t right, int32_t rank, int32_t result) {
    *merge_slot(b, left, right) =
        (Merge){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank, result};
}

static const Merge *find_merge(const Bpe *b, int32_t left, int32_t right) {
    const Merge *m = merge_slot(b, left, right);
    return m->pair == NO_PAIR ? NULL : m;
}

/* ---- short words: an array of ids and one of the ranks of their pairs ------------------------ */

static int32_t rank_of(const Bpe *b, int32_t left, int32_t right) {
    const Merge *m = find_merge(b, left, right);
    return m ? m->rank : INT32_MAX;
}

static void merge_short(const Bpe *b, const Symbol *symbol, int n, Ids *out) {
    int32_t id[SHORT], rank[SHORT]; /* rank[i]: of the pair (i, i + 1) */
    for (int i = 0; i < n; i++) id[i] = symbol[i].id;
    for (int i = 0; i + 1 < n; i++) rank[i] = rank_of(b, id[i], id[i + 1]);
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == INT32_MAX) break;
        id[best] = find_merge(b, id[best], id[best + 1])->id;
        n--;
        memmove(id + best + 1, id + best + 2, sizeof *id * (size_t)(n - best - 1));
        if (best + 1 < n) {
            memmove(rank + best + 1, rank + best + 2, sizeof *rank * (size_t)(n - best - 2));
            rank[best] = rank_of(b, id[best], id[best + 1]);
        }
        if (best > 0) rank[best - 1] = rank_of(b, id[best - 1], id[best]);
    }
    for (int i = 0; i < n; i++) ids_push(out, id[i]);
}

/* ---- long words: a heap of (rank, position), stale entries are found when they come up ------- */

static void *grown(void *v, size_t size, size_t need, size_t *cap) {
    if (need <= *cap) return v;
    size_t more = need + need / 2 + 64;
    void *bigger = realloc(v, more * size);
    if (!bigger) {
        fprintf(stderr, "dpoc: out of host memory in the tokenizer\n");
        exit(EXIT_MEMORY);
    }
    *cap = more;
    return bigger;
}

static void heap_push(Bpe *b, size_t *n, uint64_t key) {
    b->heap = grown(b->heap, sizeof *b->heap, *n + 1, &b->capheap);
    size_t i = (*n)++;
    for (; i && b->heap[(i - 1) / 2] > key; i = (i - 1) / 2) b->heap[i] = b->heap[(i - 1) / 2];
    b->heap[i] = key;
}

static uint64_t heap_pop(Bpe *b, size_t *n) {
    uint64_t top = b->heap[0], last = b->heap[--*n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && b->heap[child + 1] < b->heap[child]) child++;
        if (b->heap[child] >= last) break;
        b->heap[i] = b->heap[child];
    }
    b->heap[i] = last;
    return top;
}

/* Offers the pair that begins at symbol `at`. */
static void offer(Bpe *b, size_t *n, int32_t at) {
    const Symbol *s = b->symbol;
    if (at < 0 || s[at].next < 0) return;
    const Merge *m = find_merge(b, s[at].id, s[s[at].next].id);
    if (m) heap_push(b, n, (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)at);
}

static void merge_long(Bpe *b, int32_t n, Ids *out) {
    Symbol *s = b->symbol;
    size_t heap = 0;
    for (int32_t i = 0; i < n; i++) {
        s[i].prev = i - 1;
        s[i].next = i + 1 < n ? i + 1 : -1;
    }
    for (int32_t i = 0; i + 1 < n; i++) offer(b, &heap, i);
    while (heap) {
        uint64_t top = heap_pop(b, &heap);
        int32_t at = (int32_t)(top & UINT32_MAX), right = s[at].id < 0 ? -1 : s[at].next;
        const Merge *m = right < 0 ? NULL : find_merge(b, s[at].id, s[right].id);
        if (!m || (uint64_t)m->rank != top >> 32) continue; /* stale */
        s[at].id = m->id;
        s[at].next = s[right].next;
        if (s[at].next >= 0) s[s[at].next].prev = at;
        s[right].id = -1;
        offer(b, &heap, s[at].prev);
        offer(b, &heap, at);
    }
    for (int32_t i = 0; i >= 0; i = s[i].next) ids_push(out, s[i].id);
}

/* ---- a word ---------------------------------------------------------------------------------- */

static void add_symbol(Bpe *b, size_t *n, int32_t id) {
    b->symbol = grown(b->symbol, sizeof *b->symbol, *n + 1, &b->capsymbol);
    b->symbol[(*n)++] = (Symbol){id, -1, -1};
}

/* The characters of a byte-fallback vocabulary; what it lacks becomes bytes, or the unknown token.
 * */
static size_t characters(Bpe *b, const char *word, size_t len) {
    size_t n = 0;
    bool after_unk = false;
    for (size_t i = 0; i < len;) {
        int k = utf8_length(word + i, len - i);
        if (k == 0) k = 1; /* callers repair their text: this only guards */
        int32_t id = bpe_find(b, word + i, (size_t)k);
        bool unk = id < 0 && !(b->byte_fallback && b->all_bytes);
        if (id >= 0)
            add_symbol(b, &n, id);
        else if (!unk)
            for (int j = 0; j < k; j++) add_symbol(b, &n, b->byte_id[(unsigned char)word[i + j]]);
        else if (b->unk >= 0 && !(b->fuse_unk && after_unk))
            add_symbol(b, &n, b->unk);
        after_unk = unk;
        i += (size_t)k;
    }
    return n;
}

static size_t bytes(Bpe *b, const char *word, size_t len) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        int32_t id = b->byte_id[(unsigned char)word[i]];
        if (id < 0) id = b->unk;
        if (id >= 0) add_symbol(b, &n, id);
    }
    return n;
}

static void encode_word(Bpe *b, const char *word, size_t len, Ids *out) {
    if (b->ignore_merges) {
        int32_t whole = bpe_find(b, word, len);
        if (whole >= 0) {
            ids_push(out, whole);
            return;
        }
    }
    size_t n = b->byte_level ? bytes(b, word, len) : characters(b, word, len);
    if (n == 0) return;
    if (n <= SHORT)
        merge_short(b, b->symbol, (int)n, out);
    else
        merge_long(b, (int32_t)n, out);
}

/* The slot for a word of 1 to 15 bytes; its key is set as that of the word. */
static Recent *recent_slot(Bpe *b, const char *word, size_t len, uint64_t key[2]) {
    char bytes[16] = {0};
    memcpy(bytes, word, len);
    bytes[15] = (char)len;
    memcpy(key, bytes, sizeof bytes);
    uint64_t h = (key[0] ^ key[1] * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
    return &b->recent[(h >> 40) % RECENT];
}

void bpe_word(Bpe *b, const char *word, size_t len, Ids *out) {
    if (len > 15 || len == 0) {
        encode_word(b, word, len, out);
        return;
    }
    uint64_t key[2];
    Recent *r = recent_slot(b, word, len, key);
    if (r->key[0] == key[0] && r->key[1] == key[1]) {
        for (int i = 0; i < RECENT_IDS && r->id[i] >= 0; i++) ids_push(out, r->id[i]);
        return;
    }
    int64_t begin = out->n;
    encode_word(b, word, len, out);
    if (out->n - begin > RECENT_IDS) return;
    memcpy(r->key, key, sizeof key);
    for (int i = 0; i < RECENT_IDS; i++) r->id[i] = begin + i < out->n ? out->v[begin + i] : -1;
}
