/* gemm_choices.c: see gemm_choices.h.
 *
 *   dpoc gemm choices 1 3f0c..            (128 bits over all that follows)
 *   NVIDIA A100-SXM4-40GB, cuBLASLt 130100: 128 x .. = 1f 0 2c 0 0 0 0 0
 */
#include "gemm_choices.h"

#include <stdlib.h>
#include <string.h>

#define TITLE "dpoc gemm choices 1 "
#define SEP   " = "

static void sum_of(const char *text, size_t n, char hex[33]) {
    hash_hex(hash_bytes(text, n, (Hash128){0, 0}), hex);
}

static int index_of(const GemmChoices *choices, const char *key) {
    int i = 0;
    for (key = intern(key); i < choices->n && choices->choice[i].key != key;) i++;
    return i;
}

const GemmChoice *gemm_choices_find(const GemmChoices *choices, const char *key) {
    int i = index_of(choices, key);
    return i < choices->n ? &choices->choice[i] : NULL;
}

void gemm_choices_put(GemmChoices *choices, const char *key, const uint64_t word[CHOICE_WORDS]) {
    int i = index_of(choices, key);
    if (i == choices->cap) {
        int cap = choices->cap ? 2 * choices->cap : 64;
        GemmChoice *more = realloc(choices->choice, (size_t)cap * sizeof *more);
        if (!more) return; /* it is only not remembered */
        choices->choice = more;
        choices->cap = cap;
    }
    if (i == choices->n) choices->choice[choices->n++].key = intern(key);
    memcpy(choices->choice[i].word, word, sizeof choices->choice[i].word);
}

void gemm_choices_free(GemmChoices *choices) {
    free(choices->choice);
    *choices = (GemmChoices){0};
}

/* One line, without its end. */
static bool parse(char *line, GemmChoice *c) {
    char *at = line, *sep = NULL;
    while ((at = strstr(at, SEP))) sep = at++;
    if (!sep) return false;
    at = sep + strlen(SEP);
    for (int i = 0; i < CHOICE_WORDS; i++) {
        char *end;
        c->word[i] = strtoull(at, &end, 16);
        if (end == at || *end != (i + 1 < CHOICE_WORDS ? ' ' : 0)) return false;
        at = end + 1;
    }
    *sep = 0;
    c->key = intern(line);
    return true;
}

static bool whole(const char *text, size_t n) {
    char hex[33];
    size_t title = strlen(TITLE), head = title + 32 + 1;
    if (n < head || strncmp(text, TITLE, title) || text[head - 1] != '\n') return false;
    sum_of(text + head, n - head, hex);
    return !strncmp(text + title, hex, 32);
}

void gemm_choices_read(GemmChoices *choices, const char *path) {
    if (!file_exists(path)) return;
    Err err = {0};
    size_t n = 0;
    char *text = file_read(path, &n, &err);
    bool ok = text && whole(text, n);
    char *line = ok ? strchr(text, '\n') + 1 : NULL;
    for (char *end; ok && (end = strchr(line, '\n')); line = end + 1) {
        GemmChoice c;
        *end = 0;
        ok = parse(line, &c);
        if (ok && !gemm_choices_find(choices, c.key)) gemm_choices_put(choices, c.key, c.word);
    }
    if (!ok)
        fprintf(stderr, "dpoc: warning: %s%s; algorithms are chosen anew\n", text ? path : err.text,
                text ? ": is damaged" : "");
    free(text);
}

bool gemm_choices_write(const GemmChoices *choices, const char *path, Err *err) {
    Text lines = {0}, file = {0};
    text_add(&lines, "%s", "");
    for (int i = 0; i < choices->n; i++) {
        text_add(&lines, "%s" SEP, choices->choice[i].key);
        for (int k = 0; k < CHOICE_WORDS; k++)
            text_add(&lines, "%llx%c", (unsigned long long)choices->choice[i].word[k],
                     k + 1 < CHOICE_WORDS ? ' ' : '\n');
    }
    char hex[33];
    sum_of(lines.data, lines.len, hex);
    text_add(&file, TITLE "%s\n%s", hex, lines.data);
    bool ok = file_write(path, file.data, file.len, err);
    text_free(&lines);
    text_free(&file);
    return ok;
}
