/* gemm_choices.h: which algorithm multiplies which product, kept as a file of text.
 *
 * A choice is a line: what decides it (one text) and the library's algorithm as eight numbers,
 * which are good for the same version of the library only; so the version is part of the text.  The
 * first line holds a sum of the others.  Relies on base.h.  Promises: a file that is not whole is a
 * warning and counts as empty; files are replaced as a whole. */
#ifndef DPOC_GEMM_CHOICES_H
#define DPOC_GEMM_CHOICES_H

#include "base.h"

#define CHOICE_WORDS 8

typedef struct GemmChoice {
    const char *key; /* interned; no line breaks */
    uint64_t word[CHOICE_WORDS];
} GemmChoice;

typedef struct GemmChoices {
    GemmChoice *choice;
    int n, cap;
} GemmChoices;

/* Adds a file's choices whose keys are not there yet; a file that is missing has none. */
void gemm_choices_read(GemmChoices *choices, const char *path);
const GemmChoice *gemm_choices_find(const GemmChoices *choices, const char *key); /* or NULL */
void gemm_choices_put(GemmChoices *choices, const char *key, const uint64_t word[CHOICE_WORDS]);
bool gemm_choices_write(const GemmChoices *choices, const char *path, Err *err);
void gemm_choices_free(GemmChoices *choices);

#endif
