/* debug.h: DPOC_DEBUG=word[:level],..: switches for whoever looks for a fault.
 *
 * debug_level says whether a word is on; `dpoc --debug=help` and DPOC_DEBUG=help list them. */
#ifndef DPOC_DEBUG_H
#define DPOC_DEBUG_H

#include "base.h"

/* 0: off; 1 or the number behind the colon: on. */
int debug_level(const char *word);
/* Whether DPOC_DEBUG names known words only; else false after a message, or after the list where
 * `help` is among them. */
bool debug_known(FILE *out);

#endif
