/* bytes.h: what the harnesses of the readers share: a scratch directory, and a tokenizer of single
 * bytes. */
#ifndef FUZZ_BYTES_H
#define FUZZ_BYTES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base.h"

static char scratch[64];
static inline void scratch_gone(void) {
    char command[80];
    snprintf(command, sizeof command, "rm -rf %s", scratch);
    if (system(command) != 0) perror(command);
}

/* Writes DIR/name and returns DIR, which is removed at the end. */
static inline const char *scratch_file(const char *name, const void *data, size_t size) {
    char path[96];
    if (!scratch[0]) {
        strcpy(scratch, "/tmp/dpoc-fuzz-XXXXXX");
        if (!mkdtemp(scratch)) abort();
        atexit(scratch_gone);
    }
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
    return scratch;
}

/* A directory with a byte-level tokenizer: the 256 bytes, a few merges, bos and eos. */
static inline const char *bytes_tokenizer(void) {
    Text t = {0};
    text_add(
        &t,
        "{\"added_tokens\":[{\"id\":256,\"content\":\"<s>\",\"special\":true,\"normalized\":false},"
        "{\"id\":257,\"content\":\"</s>\",\"special\":true,\"normalized\":false}],"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"post_processor\":{\"type\":\"TemplateProcessing\","
        "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}]},"
        "\"model\":{\"type\":\"BPE\",\"vocab\":{\"he\":258,\"hel\":259,\"\xC4\xA0\xC4\xA0\":260");
    for (int byte = 0, other = 256; byte < 256; byte++) {
        bool shown =
            (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        text_add(&t, ",\"\\u%04x\":%d", shown ? byte : other++, byte);
    }
    text_add(&t, "},\"merges\":[\"h e\",\"he l\",\"\xC4\xA0 \xC4\xA0\"]}}");
    scratch_file("tokenizer.json", t.data, t.len);
    text_free(&t);
    const char *config = "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}";
    return scratch_file("tokenizer_config.json", config, strlen(config));
}

#endif
