/* utf8.c: checking, decoding and repairing UTF-8 (utf8.h). */
#include "utf8.h"

/* Bytes of the sequence that a first byte announces; 0 when none begins so. */
static int announced(unsigned char first) {
    return first < 0x80   ? 1
           : first < 0xC2 ? 0
           : first < 0xE0 ? 2
           : first < 0xF0 ? 3
           : first < 0xF5 ? 4
                          : 0;
}

/* How many bytes at s belong to a valid sequence or to the beginning of one. */
static int good_bytes(const unsigned char *p, size_t len) {
    int n = announced(p[0]), i = n > 0;
    for (; i < n && (size_t)i < len; i++) {
        unsigned char lo = 0x80, hi = 0xBF; /* no overlong forms, surrogates, nor beyond U+10FFFF */
        if (i == 1 && p[0] == 0xE0) lo = 0xA0;
        if (i == 1 && p[0] == 0xED) hi = 0x9F;
        if (i == 1 && p[0] == 0xF0) lo = 0x90;
        if (i == 1 && p[0] == 0xF4) hi = 0x8F;
        if (p[i] < lo || p[i] > hi) break;
    }
    return i;
}

int utf8_length(const char *s, size_t len) {
    if (len == 0) return 0;
    int n = announced((unsigned char)s[0]);
    return n && good_bytes((const unsigned char *)s, len) == n ? n : 0;
}

uint32_t utf8_decode(const char *s, int length) {
    const unsigned char *p = (const unsigned char *)s;
    if (length == 1) return p[0];
    uint32_t code = p[0] & (0x7Fu >> length);
    for (int i = 1; i < length; i++) code = code << 6 | (p[i] & 0x3F);
    return code;
}

int utf8_encode(uint32_t code, char out[4]) {
    if (code < 0x80) return out[0] = (char)code, 1;
    int n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)((0xF00 >> n) | code);
    return n;
}

bool utf8_is_space(uint32_t c) {
    return c == ' ' || (c >= 9 && c <= 13) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

size_t utf8_valid(const char *s, size_t len) {
    size_t i = 0;
    while (i < len) {
        if ((unsigned char)s[i] < 0x80) {
            i++;
            continue;
        }
        int n = utf8_length(s + i, len - i);
        if (n == 0) break;
        i += (size_t)n;
    }
    return i;
}

int64_t utf8_repair(const char *s, size_t len, Text *out) {
    int64_t bad = 0;
    for (size_t i = 0;;) {
        size_t good = utf8_valid(s + i, len - i);
        text_addn(out, s + i, good);
        i += good;
        if (i == len) return bad;
        int n = good_bytes((const unsigned char *)s + i, len - i);
        text_addn(out, "\xEF\xBF\xBD", 3);
        bad++;
        i += n ? (size_t)n : 1;
    }
}
