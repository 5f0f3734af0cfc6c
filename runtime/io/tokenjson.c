/* tokenjson.c: what tokenizer.json says, as tables (tokenjson.h). */
#include "tokenjson.h"
#include "json.h"
#include "utf8.h"

#include <stdlib.h> /* strtol */
#include <string.h> /* strcmp */

#define MAX_ID (1 << 24) /* larger ids are a damaged file, not a vocabulary */

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* What a `single_word` token must not touch: \w of Rust's regex, which is not Oniguruma's. */
#define WORD_CHARACTER                                                                             \
    "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200C}\\x{200D}\\x{24B6}-\\x{24E9}"                      \
    "\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}]"

json_t *json_file(const char *path, Err *err) {
    size_t len;
    char *text = file_read(path, &len, err);
    if (!text) return NULL;
    json_error_t e;
    json_t *root = json_parse(text, len, JSON_ALLOW_NUL, &e);
    free(text);
    if (root && json_is_object(root)) return root;
    if (root)
        fail(err, EXIT_IO, "%s: not a JSON object", path);
    else
        fail(err, EXIT_IO, "%s:%d:%d: %s", path, e.line, e.column, e.text);
    json_decref(root);
    return NULL;
}

static const char *string_at(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}
static bool flag_at(const json_t *object, const char *key, bool absent) {
    const json_t *v = json_object_get(object, key);
    return json_is_boolean(v) ? json_is_true(v) : absent;
}
static const char *type_of_step(const json_t *object) {
    const char *type = string_at(object, "type");
    return type ? type : "without a type";
}

/* ---- entries --------------------------------------------------------------------------------- */

/* The byte a character of the alphabet stands for, or -1: printable ones for themselves, the other
 * 68 in ascending order are U+0100, U+0101, ... */
static int alphabet_byte(uint32_t code) {
    if (code >= 256 + 68) return -1;
    int other = (int)code - 256;
    if (other >= 0) return other < 33 ? other : other < 67 ? 0x7F + other - 33 : 0xAD;
    return (code >= 0x21 && code <= 0x7E) || (code >= 0xA1 && code != 0xAD) ? (int)code : -1;
}

void alphabet_add(unsigned char byte, Text *out) {
    bool same = alphabet_byte(byte) == byte;
    uint32_t other = byte < 0x21 ? byte : byte < 0xA1 ? byte - 0x7Fu + 33 : 67;
    char c[4];
    text_addn(out, c, (size_t)utf8_encode(same ? byte : 256 + other, c));
}

bool entry_bytes(const Bpe *b, const char *name, size_t len, Text *out) {
    if (!b->byte_level) {
        text_addn(out, name, len);
        return true;
    }
    size_t start = out->len;
    for (size_t i = 0; i < len;) {
        int n = utf8_length(name + i, len - i);
        int byte = n ? alphabet_byte(utf8_decode(name + i, n)) : -1;
        if (byte < 0) { /* not of the alphabet: stands for itself, as in the original decoder */
            out->len = start;
            text_addn(out, name, len);
            return false;
        }
        char c = (char)byte;
        text_addn(out, &c, 1);
        i += (size_t)n;
    }
    return true;
}

int byte_token(const char *name) {
    if (strncmp(name, "<0x", 3) != 0 || strlen(name) != 6 || name[5] != '>') return -1;
    char *end;
    long byte = strtol(name + 3, &end, 16);
    return end == name + 5 && byte >= 0 ? (int)byte : -1;
}

static bool bad(const Tokenizer *t, Err *err, const char *what) {
    return fail(err, EXIT_IO, "%s: %s", t->path, what);
}

/* Sets entry `id`; findable when it can ever match. */
static void set_entry(Bpe *b, int32_t id, const char *name, size_t len, Text *scratch) {
    scratch->len = 0;
    bool known = entry_bytes(b, name, len, scratch);
    Entry *e = &b->entry[id];
    e->name = arena_strn(b->arena, name, len);
    e->bytes = arena_strn(b->arena, scratch->len ? scratch->data : "", scratch->len);
    e->len = (uint32_t)scratch->len;
    if (known) bpe_add_word(b, id);
}

/* The largest id of the vocabulary and the added tokens, checked. */
static bool count_ids(Tokenizer *t, const json_t *vocab, const json_t *added, Err *err) {
    json_int_t max = -1;
    const char *name;
    json_t *id;
    json_object_foreach((json_t *)vocab, name, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= MAX_ID)
            return fail(err, EXIT_IO, "%s: model.vocab: the id of \"%s\" is not a number below %d",
                        t->path, name, MAX_ID);
        if (json_integer_value(id) > max) max = json_integer_value(id);
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *v = json_object_get(json_array_get(added, i), "id");
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= MAX_ID)
            return fail(err, EXIT_IO, "%s: added_tokens[%zu]: \"id\" is not a number below %d",
                        t->path, i, MAX_ID);
        if (json_integer_value(v) > max) max = json_integer_value(v);
    }
    t->bpe->size = (int)max + 1;
    t->bpe->entry = NEW_ARRAY(t->bpe->arena, Entry, t->bpe->size);
    return true;
}

static bool parse_vocab(Tokenizer *t, const json_t *vocab, Err *err) {
    Bpe *b = t->bpe;
    Text scratch = {0};
    const char *name;
    size_t len;
    json_t *id;
    bool ok = true;
    json_object_keylen_foreach((json_t *)vocab, name, len, id) {
        int32_t i = (int32_t)json_integer_value(id);
        if (b->entry[i].name) {
            ok = fail(err, EXIT_IO, "%s: model.vocab: \"%s\" and \"%s\" have the same id %d",
                      t->path, b->entry[i].name, name, i);
            break;
        }
        set_entry(b, i, name, len, &scratch);
    }
    text_free(&scratch);
    return ok;
}

/* ---- merges ---------------------------------------------------------------------------------- */

static int32_t find_name(const Bpe *b, const char *name, size_t len, Text *scratch) {
    scratch->len = 0;
    if (!entry_bytes(b, name, len, scratch)) return -1;
    return bpe_find(b, scratch->len ? scratch->data : "", scratch->len);
}

/* The two halves of `"a b"` or `["a","b"]`. */
static bool halves(const json_t *merge, const char **a, size_t *na, const char **c, size_t *nc) {
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        const json_t *x = json_array_get(merge, 0), *y = json_array_get(merge, 1);
        *a = json_string_value(x), *na = json_string_length(x);
        *c = json_string_value(y), *nc = json_string_length(y);
        return *a && *c;
    }
    *a = json_string_value(merge);
    const char *space = *a ? strchr(*a, ' ') : NULL;
    if (!space) return false;
    *na = (size_t)(space - *a);
    *c = space + 1;
    *nc = json_string_length(merge) - *na - 1;
    return true;
}

static bool parse_merges(Tokenizer *t, const json_t *merges, Err *err) {
    Bpe *b = t->bpe;
    Text scratch = {0}, whole = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(merges); i++) {
        const char *x, *y;
        size_t nx, ny;
        ok = halves(json_array_get(merges, i), &x, &nx, &y, &ny);
        if (!ok) {
            fail(err, EXIT_IO, "%s: model.merges[%zu] is not a pair of pieces", t->path, i);
            break;
        }
        whole.len = 0;
        text_addn(&whole, x, nx);
        text_addn(&whole, y, ny);
        int32_t left = find_name(b, x, nx, &scratch), right = find_name(b, y, ny, &scratch);
        int32_t result = find_name(b, whole.data, whole.len, &scratch);
        ok = left >= 0 && right >= 0 && result >= 0;
        if (!ok)
            fail(err, EXIT_IO, "%s: model.merges[%zu]: \"%.*s\" + \"%.*s\" is not in model.vocab",
                 t->path, i, (int)nx, x, (int)ny, y);
        else
            bpe_add_merge(b, left, right, (int32_t)i, result);
    }
    text_free(&scratch);
    text_free(&whole);
    return ok;
}

static bool parse_model(Tokenizer *t, const json_t *model, Err *err) {
    Bpe *b = t->bpe;
    const json_t *vocab = json_object_get(model, "vocab"),
                 *merges = json_object_get(model, "merges");
    const char *type = string_at(model, "type");
    if (!json_is_object(model)) return bad(t, err, "\"model\" is not an object");
    if (type && strcmp(type, "BPE") != 0)
        return fail(err, EXIT_IO, "%s: model.type is \"%s\"; only BPE is understood", t->path,
                    type);
    if (!json_is_object(vocab)) return bad(t, err, "model.vocab is not an object");
    if (json_object_size(vocab) == 0) return bad(t, err, "model.vocab is empty");
    if (merges && !json_is_array(merges)) return bad(t, err, "model.merges is not a list");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < COUNT(affixes); i++) {
        const char *affix = string_at(model, affixes[i]);
        if (affix && *affix)
            return fail(err, EXIT_IO, "%s: model.%s is not understood", t->path, affixes[i]);
    }
    b->byte_fallback = flag_at(model, "byte_fallback", false);
    b->fuse_unk = flag_at(model, "fuse_unk", false);
    b->ignore_merges = flag_at(model, "ignore_merges", false);
    bpe_words(b, (int)json_object_size(vocab));
    bpe_merges(b, (int)json_array_size(merges));
    if (!parse_vocab(t, vocab, err) || !parse_merges(t, merges, err)) return false;
    const char *unk = string_at(model, "unk_token");
    Text scratch = {0};
    b->unk = unk ? find_name(b, unk, strlen(unk), &scratch) : -1;
    b->all_bytes = true;
    for (int byte = 0; byte < 256; byte++) {
        char text[8], c = (char)byte;
        snprintf(text, sizeof text, "<0x%02X>", byte);
        b->byte_id[byte] = b->byte_level ? bpe_find(b, &c, 1) : bpe_find(b, text, 6);
        b->all_bytes = b->all_bytes && b->byte_id[byte] >= 0;
    }
    text_free(&scratch);
    return true;
}

/* ---- normalizer, pre-tokenizer, decoder: lists of steps -------------------------------------- */

typedef bool Step(Tokenizer *t, const json_t *step, Err *err);

/* Calls `each` for a step, or for every step of a Sequence, whose list is called `key`. */
static bool each_step(Tokenizer *t, const json_t *step, const char *key, Step *each, Err *err) {
    if (!step || json_is_null(step)) return true;
    if (!json_is_object(step))
        return fail(err, EXIT_IO, "%s: \"%s\" is not an object", t->path, key);
    if (strcmp(type_of_step(step), "Sequence") != 0) return each(t, step, err);
    const json_t *list = json_object_get(step, key);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!each(t, json_array_get(list, i), err)) return false;
    return true;
}

static bool normal_step(Tokenizer *t, const json_t *step, Err *err) {
    Bpe *b = t->bpe;
    const char *type = type_of_step(step);
    Normal n = {NORMAL_PREPEND, NULL, NULL};
    if (strcmp(type, "Prepend") == 0) {
        n.to = string_at(step, "prepend");
    } else if (strcmp(type, "Replace") == 0) {
        n.kind = NORMAL_REPLACE;
        n.from = string_at(json_object_get(step, "pattern"), "String");
        n.to = string_at(step, "content");
        if (!n.from || !*n.from) return bad(t, err, "normalizer: Replace needs a pattern String");
    } else if (strcmp(type, "NFC") == 0) {
        n.kind = NORMAL_NFC;
    } else {
        return fail(err, EXIT_IO, "%s: normalizer \"%s\" is not understood", t->path, type);
    }
    if (!n.to && n.kind != NORMAL_NFC) return bad(t, err, "normalizer: a step has no text to put");
    n.from = n.from ? arena_str(b->arena, n.from) : NULL;
    n.to = n.to ? arena_str(b->arena, n.to) : NULL;
    PUSH(b->arena, b->normal, b->nnormal, b->capnormal, n);
    return true;
}

/* What the original's engine (Oniguruma) takes for these classes where PCRE2 differs: marks, letter
 * numbers, circled letters and some of Latin-1's numbers are of words, U+180E is no space, \h is a
 * hexadecimal digit.  Compared over all code points. */
static const char *class_of(char letter) {
    switch (letter) {
    case 'w':
        return "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"
               "\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}";
    case 's':
        return "\\x{09}-\\x{0D} \\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}"
               "\\x{202F}\\x{205F}\\x{3000}";
    case 'h':
        return "0-9A-Fa-f";
    default:
        return NULL;
    }
}

/* The pattern with those classes spelt out; negated ones only outside of brackets. */
static const char *spell_classes(Arena *arena, const char *pattern) {
    Text out = {0};
    bool in_class = false;
    for (const char *p = pattern; *p; p++) {
        const char *class = *p == '\\' ? class_of(p[1]) : NULL;
        const char *negated = *p == '\\' && p[1] >= 'A' && p[1] <= 'Z' && !in_class
                                  ? class_of((char)(p[1] | 32))
                                  : NULL;
        if (class)
            text_add(&out, in_class ? "%s" : "[%s]", class), p++;
        else if (negated)
            text_add(&out, "[^%s]", negated), p++;
        else if (*p == '\\' && p[1])
            text_addn(&out, p++, 2);
        else {
            in_class = *p == '[' || (in_class && *p != ']');
            text_addn(&out, p, 1);
        }
    }
    const char *spelt = arena_strn(arena, out.len ? out.data : "", out.len);
    text_free(&out);
    return spelt;
}

static pcre2_code *compile(const Tokenizer *t, const char *pattern, Err *err) {
    int code;
    PCRE2_SIZE at;
    pcre2_code *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                    PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (!out) {
        unsigned char message[200];
        pcre2_get_error_message(code, message, sizeof message);
        fail(err, EXIT_IO, "%s: pre_tokenizer: the pattern /%s/ does not compile: %s", t->path,
             pattern, (char *)message);
        return NULL;
    }
    pcre2_jit_compile(out, PCRE2_JIT_COMPLETE); /* without it matching is only slower */
    return out;
}

bool add_regex(Tokenizer *t, const char *pattern, SplitKind kind, bool invert, Err *err) {
    Bpe *b = t->bpe;
    Split s = {.kind = kind, .invert = invert};
    s.code = compile(t, spell_classes(b->arena, pattern), err);
    if (!s.code) return false;
    PUSH(b->arena, b->split, b->nsplit, b->capsplit, s);
    return true;
}

static bool split_pattern(Tokenizer *t, const json_t *step, Err *err) {
    const json_t *pattern = json_object_get(step, "pattern");
    const char *regex = string_at(pattern, "Regex"), *literal = string_at(pattern, "String");
    const char *behavior = string_at(step, "behavior");
    bool invert = flag_at(step, "invert", false);
    if (!regex && !literal) return bad(t, err, "pre_tokenizer: Split has no pattern");
    SplitKind kind = SPLIT_ISOLATED;
    if (behavior && strcmp(behavior, "Removed") == 0)
        kind = SPLIT_REMOVED;
    else if (!behavior || strcmp(behavior, "Isolated") != 0)
        return fail(err, EXIT_IO, "%s: pre_tokenizer: Split behavior \"%s\" is not understood",
                    t->path, behavior ? behavior : "none");
    if (literal) regex = arena_printf(t->bpe->arena, "\\Q%s\\E", literal);
    return add_regex(t, regex, kind, invert, err);
}

static bool metaspace(Tokenizer *t, const json_t *step, Err *err) {
    Bpe *b = t->bpe;
    Split s = {.kind = SPLIT_METASPACE, .prepend = PREPEND_ALWAYS};
    const char *space = string_at(step, "replacement"), *scheme = string_at(step, "prepend_scheme");
    if (!space || !*space) return bad(t, err, "pre_tokenizer: Metaspace has no replacement");
    if (scheme)
        s.prepend = strcmp(scheme, "never") == 0   ? PREPEND_NEVER
                    : strcmp(scheme, "first") == 0 ? PREPEND_FIRST
                                                   : PREPEND_ALWAYS;
    else if (!flag_at(step, "add_prefix_space", true))
        s.prepend = PREPEND_NEVER;
    s.space = arena_str(b->arena, space);
    s.cut = flag_at(step, "split", true);
    PUSH(b->arena, b->split, b->nsplit, b->capsplit, s);
    return true;
}

static bool pretokenizer_step(Tokenizer *t, const json_t *step, Err *err) {
    Bpe *b = t->bpe;
    const char *type = type_of_step(step);
    if (strcmp(type, "Split") == 0) return split_pattern(t, step, err);
    if (strcmp(type, "Metaspace") == 0) return metaspace(t, step, err);
    if (strcmp(type, "Digits") == 0)
        return add_regex(t, flag_at(step, "individual_digits", false) ? "\\p{N}" : "\\p{N}+",
                         SPLIT_ISOLATED, false, err);
    if (strcmp(type, "ByteLevel") != 0)
        return fail(err, EXIT_IO, "%s: pre_tokenizer \"%s\" is not understood", t->path, type);
    b->byte_level = true;
    if (flag_at(step, "add_prefix_space", true))
        PUSH(b->arena, b->split, b->nsplit, b->capsplit, (Split){.kind = SPLIT_PREFIX_SPACE});
    return !flag_at(step, "use_regex", true) ||
           add_regex(t, GPT2_PATTERN, SPLIT_ISOLATED, false, err);
}

static bool decoder_step(Tokenizer *t, const json_t *step, Err *err) {
    Bpe *b = t->bpe;
    const char *type = type_of_step(step);
    const char *content = string_at(step, "content");
    if (strcmp(type, "Replace") == 0) {
        const char *from = string_at(json_object_get(step, "pattern"), "String");
        if (!from || !*from || !content || strcmp(content, " ") != 0)
            return bad(t, err, "decoder: only a Replace by a space is understood");
        b->space = arena_str(b->arena, from);
    } else if (strcmp(type, "Metaspace") == 0) {
        const char *space = string_at(step, "replacement"),
                   *scheme = string_at(step, "prepend_scheme");
        if (!space || !*space) return bad(t, err, "decoder: Metaspace has no replacement");
        b->space = arena_str(b->arena, space);
        b->bare_first =
            scheme ? strcmp(scheme, "never") != 0 : flag_at(step, "add_prefix_space", true);
    } else if (strcmp(type, "Strip") == 0) {
        json_int_t start = json_integer_value(json_object_get(step, "start"));
        if (content && strcmp(content, " ") == 0)
            b->strip = start > 0 && start < 100 ? (int)start : 0;
    } else if (strcmp(type, "ByteFallback") == 0) {
        b->joins_bytes = true;
    } else if (strcmp(type, "ByteLevel") != 0 && strcmp(type, "Fuse") != 0) {
        return fail(err, EXIT_IO, "%s: decoder \"%s\" is not understood", t->path, type);
    }
    return true;
}

/* What stands before and behind the text in TemplateProcessing's "single". */
static bool post_step(Tokenizer *t, const json_t *step, Err *err) {
    const char *type = type_of_step(step);
    if (strcmp(type, "ByteLevel") == 0) return true;
    if (strcmp(type, "TemplateProcessing") != 0)
        return fail(err, EXIT_IO, "%s: post_processor \"%s\" is not understood", t->path, type);
    const json_t *single = json_object_get(step, "single");
    bool behind = false;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *part = json_array_get(single, i);
        const char *name = string_at(json_object_get(part, "SpecialToken"), "id");
        if (!name) {
            behind = true;
            continue;
        }
        int32_t id = tokenizer_id(t, name);
        if (id < 0 || (!behind && t->adds_bos) || (behind && t->adds_eos))
            return fail(err, EXIT_IO, "%s: post_processor: \"%s\" is not a token, or one too many",
                        t->path, name);
        if (behind)
            t->adds_eos = true;
        else
            t->adds_bos = true, t->bos = id;
    }
    return true;
}

/* ---- added tokens ---------------------------------------------------------------------------- */

static bool parse_added(Tokenizer *t, const json_t *added, Err *err) {
    Bpe *b = t->bpe;
    Text scratch = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < json_array_size(added); i++) {
        const json_t *entry = json_array_get(added, i);
        const char *content = string_at(entry, "content");
        size_t len = json_string_length(json_object_get(entry, "content"));
        if (!content || len == 0) {
            ok = fail(err, EXIT_IO, "%s: added_tokens[%zu] has no \"content\"", t->path, i);
            break;
        }
        Added a = {(int32_t)json_integer_value(json_object_get(entry, "id")),
                   flag_at(entry, "special", false), flag_at(entry, "lstrip", false),
                   flag_at(entry, "rstrip", false), flag_at(entry, "single_word", false)};
        Entry *e = &b->entry[a.id];
        if (!e->name || strcmp(e->name, content) != 0) {
            scratch.len = 0;
            entry_bytes(b, content, len, &scratch);
            e->name = arena_strn(b->arena, content, len);
            e->bytes = arena_strn(b->arena, scratch.data, scratch.len);
            e->len = (uint32_t)scratch.len;
        }
        e->added = true;
        e->special = a.special;
        scratch.len = 0;
        if (flag_at(entry, "normalized", !a.special)) {
            normalize(b, content, len, &scratch);
            trie_add(b->arena, &b->normalized, scratch.data, scratch.len, b->nadded);
            if (!b->byte_level && scratch.len) { /* decodes to what it was matched as */
                e->bytes = arena_strn(b->arena, scratch.data, scratch.len);
                e->len = (uint32_t)scratch.len;
            }
        } else {
            trie_add(b->arena, &b->raw, content, len, b->nadded);
        }
        PUSH(b->arena, b->added, b->nadded, b->capadded, a);
        if (a.single_word && !b->word_char)
            ok = (b->word_char = compile(t, WORD_CHARACTER, err)) != NULL;
    }
    text_free(&scratch);
    return ok;
}

bool tokenizer_parse(Tokenizer *t, const json_t *root, Err *err) {
    const json_t *model = json_object_get(root, "model");
    const json_t *added = json_object_get(root, "added_tokens");
    if (added && !json_is_array(added)) return bad(t, err, "\"added_tokens\" is not a list");
    return each_step(t, json_object_get(root, "normalizer"), "normalizers", normal_step, err) &&
           each_step(t, json_object_get(root, "pre_tokenizer"), "pretokenizers", pretokenizer_step,
                     err) &&
           each_step(t, json_object_get(root, "decoder"), "decoders", decoder_step, err) &&
           count_ids(t, json_object_get(model, "vocab"), added, err) &&
           parse_model(t, model, err) && parse_added(t, added, err) &&
           each_step(t, json_object_get(root, "post_processor"), "processors", post_step, err);
}
