/* utf8.h: UTF-8, checked once at the border so that nothing behind it has to. */
#ifndef DPOC_UTF8_H
#define DPOC_UTF8_H

#include "../base.h"

/* Bytes of the valid UTF-8 sequence at s (1..4), or 0 when there is none. */
int utf8_length(const char *s, size_t len);
uint32_t utf8_decode(const char *s, int length); /* of a valid sequence of that length */
int utf8_encode(uint32_t code, char out[4]);     /* bytes written */
bool utf8_is_space(uint32_t code);               /* Unicode's White_Space */
/* Length of the longest valid prefix. */
size_t utf8_valid(const char *s, size_t len);
/* Appends s with invalid bytes replaced by U+FFFD, one for each beginning of a sequence that breaks
 * off and for each other byte (as Python and Rust do); returns how many. */
int64_t utf8_repair(const char *s, size_t len, Text *out);

#endif
