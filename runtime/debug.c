/* debug.c: see debug.h. */
#include "debug.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *word, *sentence;
} words[] = {
    {"sync", "wait for the device after every step, so that the step that fails is the one named"},
    {"help", "this list"},
};

/* The next word of DPOC_DEBUG from *at on, and its level; 0 at the end. */
static size_t next_word(const char **at, const char **word, int *level) {
    *at += strspn(*at, ", ");
    size_t n = strcspn(*at, ",: ");
    *word = *at;
    *at += n;
    *level = **at == ':' ? (int)strtol(*at + 1, NULL, 10) : 1;
    *at += strcspn(*at, ", ");
    return n;
}

int debug_level(const char *word) {
    const char *at = getenv("DPOC_DEBUG"), *one;
    int level;
    for (size_t n; at && (n = next_word(&at, &one, &level));)
        if (n == strlen(word) && !strncmp(one, word, n)) return level;
    return 0;
}

bool debug_known(FILE *out) {
    const char *at = getenv("DPOC_DEBUG"), *one;
    int level;
    for (size_t n; at && (n = next_word(&at, &one, &level));) {
        bool known = false;
        for (size_t i = 0; i < COUNT(words); i++)
            known = known || (strlen(words[i].word) == n && !strncmp(one, words[i].word, n));
        if (!known) fprintf(out, "dpoc: DPOC_DEBUG knows no word '%.*s'\n", (int)n, one);
        if (known && !debug_level("help")) continue;
        for (size_t i = 0; i < COUNT(words); i++)
            fprintf(out, "  %-6s %s\n", words[i].word, words[i].sentence);
        return false;
    }
    return true;
}
