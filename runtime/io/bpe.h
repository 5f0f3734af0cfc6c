/* bpe.h: what the files of the tokenizer share; nobody else includes it.
 *
 *   tokenizer.c  opens tokenizer.json, decodes ids
 *   split.c      text -> pieces between added tokens -> normalized -> words
 *   bpe.c        the vocabulary's tables; one word -> ids
 *
 * Vocabulary entries are kept as the bytes they stand for: the printable alphabet of byte-level
 * files never appears at run time.
 */
#ifndef DPOC_BPE_H
#define DPOC_BPE_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer.h"
#include <pcre2.h>

typedef struct Word { /* a slot of the table bytes -> id */
    uint32_t hash;    /* never 0 when used */
    int32_t id;
} Word;

typedef struct Merge { /* a slot of the table (left, right) -> (rank, result) */
    uint64_t pair;     /* left << 32 | right; NO_PAIR: free */
    int32_t rank, id;
} Merge;
#define NO_PAIR UINT64_MAX

typedef struct Entry { /* one id */
    const char *name;  /* as the file spells it; NULL: a hole */
    const char *bytes; /* what it stands for */
    uint32_t len;
    bool special, added;
} Entry;

typedef struct Added { /* an added token, cut out of the text before all else */
    int32_t id;
    bool special, lstrip, rstrip, single_word;
} Added;

/* A word met before, with its ids: text repeats itself, and these slots stay in the processor's
 * cache while the tables above do not. */
enum { RECENT = 32768, RECENT_IDS = 4 }; /* slots, one for each hash; ids a slot can hold */
typedef struct Recent {
    uint64_t key[2];        /* its bytes, at most 15, and their number in the last one */
    int32_t id[RECENT_IDS]; /* -1 behind the last */
} Recent;

/* Patterns of added tokens as a byte trie; node 0 is the root. */
typedef struct TrieNode {
    int32_t child, sibling; /* 0: none */
    int32_t added;          /* index of the token that ends here, or -1 */
    unsigned char byte;
} TrieNode;
typedef struct Trie {
    TrieNode *node;
    int n, cap;
    bool first[256]; /* bytes a token can begin with */
} Trie;

typedef enum NormalKind { NORMAL_PREPEND, NORMAL_REPLACE, NORMAL_NFC } NormalKind;
typedef struct Normal { /* one step of the normalizer */
    NormalKind kind;
    const char *from, *to; /* prepend uses `to` only, NFC none */
} Normal;

typedef enum SplitKind {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_PREFIX_SPACE,
    SPLIT_METASPACE
} SplitKind;
typedef struct Split { /* one step of the pre-tokenizer */
    SplitKind kind;
    pcre2_code *code; /* isolated, removed */
    bool invert;
    const char *space; /* metaspace: the replacement, "▁" */
    enum { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } prepend;
    bool cut; /* metaspace: each word is a piece of its own */
} Split;

typedef struct Bpe {
    Arena *arena;
    Entry *entry; /* [size] */
    int size;
    Word *word; /* words can be looked up by bytes; power of two */
    uint32_t word_mask;
    Merge *merge;
    uint32_t merge_mask;
    bool byte_level, byte_fallback, fuse_unk, ignore_merges;
    int32_t unk;          /* -1: none; unknown characters are dropped */
    int32_t byte_id[256]; /* byte level: its token; byte fallback: <0xNN>; -1: none */
    bool all_bytes;       /* every byte_id is there */
    Added *added;
    pcre2_code *word_char; /* one character of a word, for `single_word`; NULL: none is */
    int nadded, capadded;
    Trie raw, normalized; /* added tokens matched before and after the normalizer */
    Normal *normal;
    int nnormal, capnormal;
    Split *split;
    int nsplit, capsplit;
    const char *space; /* decoding: stands for a space ("▁"), or NULL */
    int strip;         /* decoding: leading spaces removed */
    bool bare_first;   /* decoding: the first token's stand for nothing */
    bool joins_bytes;  /* decoding: runs of byte tokens are text */
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    /* scratch of one call, kept between calls */
    Recent recent[RECENT];
    struct Symbol *symbol;
    uint64_t *heap;
    size_t capsymbol, capheap;
} Bpe;

/* ---- bpe.c ----------------------------------------------------------------------------------- */
void bpe_words(Bpe *b, int n);         /* makes the table for n words; before bpe_add_word */
void bpe_merges(Bpe *b, int n);        /* ... for n merges; before bpe_add_merge and bpe_word */
void bpe_add_word(Bpe *b, int32_t id); /* entry's bytes become findable */
int32_t bpe_find(const Bpe *b, const char *bytes, size_t len); /* -1: none */
/* A later merge of the same pair replaces an earlier one, as in the original. */
void bpe_add_merge(Bpe *b, int32_t left, int32_t right, int32_t rank, int32_t result);
void bpe_word(Bpe *b, const char *word, size_t len, Ids *out);

/* ---- split.c --------------------------------------------------------------------------------- */
void trie_add(Arena *arena, Trie *trie, const char *text, size_t len, int32_t added);
void normalize(const Bpe *b, const char *text, size_t len, Text *out); /* appends */
/* `more`: the text follows another, so it has no first word. */
void split_encode(Bpe *b, const char *text, size_t len, bool special, bool more, Ids *out);

#endif
