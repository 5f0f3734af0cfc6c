/* executed.h: which files of kernels/ a run has executed.
 *
 * Kernels that steps of a plan launched are looked at as text: a kernel file was executed where
 * its whole text stands in one of them; a file of the prelude, where a name it defines does.
 * Every file goes, once a process, as a line into $BUILD/tests/executed.txt, which
 * tests/gpu/executed.sh compares with the files there are.
 */
#ifndef TESTS_GPU_EXECUTED_H
#define TESTS_GPU_EXECUTED_H

#include "runtime/plan.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXECUTED_FILES = 128 };

static inline bool word_char(char c) {
    return isalnum((unsigned char)c) || c == '_';
}

/* Whether the word `name` of `len` characters stands in `text`. */
static inline bool has_word(const char *text, const char *name, size_t len) {
    for (const char *p = text; (p = memmem(p, strlen(p), name, len)); p++)
        if ((p == text || !word_char(p[-1])) && !word_char(p[len])) return true;
    return false;
}

/* The name that a line defines: of a macro, or of a function whose line begins in column 1 (the
 * word before the first parenthesis).  NULL: none. */
static inline const char *defined_name(const char *line, const char *end, size_t *len) {
    const char *name = line;
    if (end - line > 8 && !memcmp(line, "#define ", 8)) {
        name += 8;
    } else {
        const char *paren = memchr(line, '(', (size_t)(end - line));
        if (!paren || !word_char(*line)) return NULL;
        for (name = paren; name > line && word_char(name[-1]);) name--;
    }
    for (*len = 0; name + *len < end && word_char(name[*len]);) ++*len;
    return *len ? name : NULL;
}

/* Whether a kernel's text uses what a file of the prelude defines; always, if that is nothing. */
static inline bool uses_file(const char *text, const char *file, size_t bytes) {
    bool defines = false;
    for (const char *line = file, *last = file + bytes; line < last;) {
        const char *end = memchr(line, '\n', (size_t)(last - line));
        if (!end) end = last;
        size_t len;
        const char *name = defined_name(line, end, &len);
        if (name && has_word(text, name, len)) return true;
        defines |= name != NULL;
        line = end + 1;
    }
    return !defines;
}

/* Whether a kernel of this text, on this kind of device, executes an embedded file. */
static inline bool executes(const char *text, bool cuda, const char *path) {
    if (!strncmp(path, cuda ? "kernels/cpu/" : "kernels/cuda/", cuda ? 12 : 13)) return false;
    size_t len;
    const char *body = embedded(path, &len);
    bool kernel = memmem(body, len, "SYMBOL", 6) != NULL; /* else it is part of the prelude */
    return kernel ? memmem(text, strlen(text), body, len) != NULL : uses_file(text, body, len);
}

static inline void note_file(const char *path) {
    const char *build = getenv("BUILD");
    char name[600];
    snprintf(name, sizeof name, "%s/tests/executed.txt", build ? build : "build");
    FILE *f = fopen(name, "a");
    if (!f) return;
    fprintf(f, "%s\n", path);
    fclose(f);
}

/* Whether a kernel that a step names, or a bind quantizes with, executes an embedded file. */
static inline bool plan_executes(const Plan *plan, bool cuda, const char *path) {
    for (int p = 0; p < plan->nprograms; p++)
        for (int s = 0; s < plan->programs[p].nsteps; s++) {
            const Step *step = &plan->programs[p].steps[s];
            if (step->kind != STEP_KERNEL) continue;
            if (executes(plan->kernels[step->kernel].text, cuda, path)) return true;
        }
    for (int i = 0; i < plan->nbinds; i++)
        if (plan->binds[i].quantizer &&
            executes(plan->kernels[plan->binds[i].quantizer - 1].text, cuda, path))
            return true;
    return false;
}

/* Notes the files behind every kernel that ran, once weights and all programs of `plan` have. */
static inline void note_executed(const Plan *plan) {
    static bool known[2][EXECUTED_FILES];
    bool cuda = strcmp(plan->device, "cpu") != 0, *noted = known[cuda];
    for (int i = 0; i < embedded_count() && i < EXECUTED_FILES; i++) {
        const char *path = embedded_name(i);
        if (noted[i] || strncmp(path, "kernels/", 8)) continue;
        noted[i] = plan_executes(plan, cuda, path);
        if (noted[i]) note_file(path);
    }
}

#endif
