/* tokenizers.h: the tokenizers of ../shared/data, for tests of pairs. */
#ifndef TESTS_TOKENIZERS_H
#define TESTS_TOKENIZERS_H

#include "runtime/io/tokenizer.h"
#include "tests/io/io.h"

/* "llama3_tokenizer" or "stories260k"; each is opened once. */
static inline Tokenizer *tokenizer_of(const char *name) {
    static Tokenizer *open[2];
    int which = strcmp(name, "stories260k") == 0;
    Err err = {0};
    if (!open[which]) open[which] = tokenizer_open(data_path(name), &err);
    if (!open[which]) fail_msg("%s", err.text);
    return open[which];
}

#endif
