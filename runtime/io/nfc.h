/* nfc.h: Unicode's normalization form C, which some tokenizers ask for (Qwen). */
#ifndef DPOC_NFC_H
#define DPOC_NFC_H

#include "../base.h"

/* Appends the NFC of valid UTF-8. */
void nfc(const char *s, size_t len, Text *out);

#endif
