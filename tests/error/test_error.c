/* test_error.c: messages about wrong files.  Each .dpo file beside this one says what it expects,
 * where:
 *
 *     x = = 3           # error: expected a value, saw `=`  # help: ...
 *     y = "open
 *     #^ error: this string has no closing quote            (about the line above)
 *
 * Files without syntax errors are checked, too, without a checkpoint.  A message must begin with
 * the expected text; every error and warning must be expected; notes and helps only where a file
 * cares.  A help stands at the line of the message it belongs to.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glob.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "compiler/spec.h"

typedef struct Wanted {
    char severity[16];
    int line;
    char text[200];
    bool found;
} Wanted;

typedef struct Case {
    const char *path;
    Wanted wanted[100];
    int n;
    Text wrong; /* what does not agree */
} Case;

static void want(Case *c, const char *comment, size_t len, int line) {
    static const char *const severities[] = {"error", "warning", "note", "help"};
    for (size_t s = 0; s < COUNT(severities); s++) {
        size_t n = strlen(severities[s]);
        if (len < n + 2 || strncmp(comment, severities[s], n) != 0 || comment[n] != ':') continue;
        assert_true(c->n < (int)COUNT(c->wanted));
        Wanted *w = &c->wanted[c->n++];
        *w = (Wanted){.line = line};
        strcpy(w->severity, severities[s]);
        while (len > n + 2 && comment[len - 1] == ' ') len--;
        snprintf(w->text, sizeof w->text, "%.*s", (int)(len - n - 2), comment + n + 2);
    }
}

/* The expectations of one line: `# severity: text` up to the next `  #`; `#^` is about the last
 * line that does not begin so. */
static void read_line(Case *c, const char *line, size_t len, int number, int *about) {
    const char *end = line + len;
    if (len && strncmp(line, "#^", 2) != 0) *about = number;
    for (const char *p = line; (p = memchr(p, '#', (size_t)(end - p)));) {
        bool above = p + 1 < end && p[1] == '^';
        const char *text = p + 1 + above;
        while (text < end && *text == ' ') text++;
        const char *stop = text;
        while (stop < end && !(stop + 2 < end && strncmp(stop, "  #", 3) == 0)) stop++;
        want(c, text, (size_t)(stop - text), above ? *about : number);
        p = stop;
    }
}

static void meet(Case *c, json_t *message, int line) {
    const char *severity = json_string_value(json_object_get(message, "severity"));
    const char *text = json_string_value(json_object_get(message, "message"));
    if (json_object_get(message, "line"))
        line = (int)json_integer_value(json_object_get(message, "line"));
    bool found = false;
    for (int i = 0; i < c->n && !found; i++) {
        Wanted *w = &c->wanted[i];
        found = !w->found && w->line == line && !strcmp(w->severity, severity) &&
                !strncmp(w->text, text, strlen(w->text));
        if (found) w->found = true;
    }
    if (!found && (!strcmp(severity, "error") || !strcmp(severity, "warning")))
        text_add(&c->wrong, "%s:%d: unexpected %s: %s\n", c->path, line, severity, text);
    size_t i;
    json_t *note;
    json_array_foreach(json_object_get(message, "notes"), i, note) {
        meet(c, note, line);
    }
}

static void check_case(Case *c) {
    Err err = {0};
    size_t len;
    char *text = file_read(c->path, &len, &err);
    assert_non_null(text);
    int number = 1, about = 0;
    for (const char *p = text, *nl; *p; p = nl + 1, number++) {
        nl = strchr(p, '\n');
        if (!nl) break;
        read_line(c, p, (size_t)(nl - p), number, &about);
    }
    if (!c->n) text_add(&c->wrong, "%s: expects nothing\n", c->path);
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    parse_text(arena, diags, source_add(diags, c->path, text, len));
    if (diags_errors(diags) == 0) {
        diags = diags_new(arena); /* check reads the file itself */
        check_file(arena, diags, &(CheckOptions){.file = c->path});
    }
    char *json = diags_json(diags);
    json_t *all = json_loads(json, 0, NULL), *message;
    size_t i;
    json_array_foreach(all, i, message) {
        meet(c, message, 0);
    }
    for (int k = 0; k < c->n; k++)
        if (!c->wanted[k].found)
            text_add(&c->wrong, "%s:%d: missing %s: %s\n", c->path, c->wanted[k].line,
                     c->wanted[k].severity, c->wanted[k].text);
    json_decref(all);
    free(json);
    free(text);
    arena_free(arena);
}

static void files_say_what_they_expect(void **state) {
    glob_t files;
    assert_int_equal(glob("tests/error/*.dpo", 0, NULL, &files), 0);
    int wrong = 0;
    for (size_t i = 0; i < files.gl_pathc; i++) {
        Case *c = calloc(1, sizeof *c);
        c->path = files.gl_pathv[i];
        check_case(c);
        wrong += c->wrong.len > 0;
        if (c->wrong.len) print_error("%s", c->wrong.data);
        text_free(&c->wrong);
        free(c);
    }
    globfree(&files);
    assert_int_equal(wrong, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(files_say_what_they_expect)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
