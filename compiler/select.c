/* select.c: patterns over weights' names.
 *
 *   "model.layers[16..32].**.{q,k}_proj"
 * Names are cut at dots; `*` is one name or part of one, `**` any number of names, {a,b}
 * alternatives, [3], [16..32] (half open) and [*] indices.  A pattern fits if it fits a name's end,
 * so that "q_proj" is every q_proj and a pattern that begins with the root's name fits from the
 * root.
 */
#include "front.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* One name of at most n bytes against one segment of m bytes: `*` stands for any part. */
static bool glob(const char *p, size_t m, const char *s, size_t n) {
    if (!m) return n == 0;
    if (*p != '*') return n && *p == *s && glob(p + 1, m - 1, s + 1, n - 1);
    for (size_t i = 0; i <= n; i++)
        if (glob(p + 1, m - 1, s + i, n - i)) return true;
    return false;
}

/* "[16..32]" or "[3]" or "[*]" against a number. */
static bool in_range(const char *p, size_t m, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isdigit((unsigned char)s[i])) return false;
    if (!n) return false;
    if (m == 3 && p[1] == '*') return true;
    long x = strtol(s, NULL, 10);
    char *end;
    long from = strtol(p + 1, &end, 10);
    if (*end == ']') return x == from;
    long to = strtol(end + 2, NULL, 10);
    return x >= from && x < to;
}

/* Length of the first segment of a pattern: up to a dot or a bracket, or the bracket itself. */
static size_t segment(const char *p) {
    return *p == '[' ? strcspn(p, "]") + 1 : strcspn(p, ".[");
}

static const char *after(const char *p, size_t n) {
    return p[n] == '.' ? p + n + 1 : p + n;
}

static bool match_here(const char *p, const char *s) {
    if (!*p) return !*s;
    size_t m = segment(p), n = strcspn(s, ".");
    if (m == 2 && p[0] == '*' && p[1] == '*') {
        for (;; s = after(s, strcspn(s, "."))) {
            if (match_here(after(p, m), s)) return true;
            if (!*s) return false;
        }
    }
    if (!*s) return false;
    bool fits = *p == '[' ? in_range(p, m, s, n) : glob(p, m, s, n);
    return fits && match_here(after(p, m), after(s, n));
}

static bool match_end(const char *p, const char *s) {
    for (;; s = after(s, strcspn(s, "."))) {
        if (match_here(p, s)) return true;
        if (!*s) return false;
    }
}

/* The first {a,b,..} replaced by each alternative in turn. */
static bool match_braces(const char *p, const char *name, int depth) {
    const char *open = strchr(p, '{'), *close = open ? strchr(open, '}') : NULL;
    if (!close || depth > 8) return match_end(p, name);
    Arena *arena = arena_new();
    bool found = false;
    for (const char *a = open + 1; !found && a <= close; a += strcspn(a, ",}") + 1) {
        size_t n = strcspn(a, ",}");
        const char *one =
            arena_printf(arena, "%.*s%.*s%s", (int)(open - p), p, (int)n, a, close + 1);
        found = match_braces(one, name, depth + 1);
    }
    arena_free(arena);
    return found;
}

bool select_match(const char *pattern, const char *name) {
    return match_braces(pattern, name, 0);
}

static const char *range_error(const char *p) {
    const char *q = p + 1;
    if (*q == '*') return q[1] == ']' ? NULL : "'[*]' is how all indices are written";
    if (!isdigit((unsigned char)*q)) return "a number or a range is expected in [ ]";
    char *end;
    long from = strtol(q, &end, 10);
    if (*end == ']') return NULL;
    if (strncmp(end, "..", 2) != 0 || !isdigit((unsigned char)end[2]))
        return "a range is written [16..32], its end not included";
    long to = strtol(end + 2, &end, 10);
    if (*end != ']') return "']' is missing";
    return to > from ? NULL : "the range is empty: its end is not included";
}

const char *select_error(const char *pattern) {
    bool open = false;
    if (!*pattern) return "the pattern is empty";
    for (const char *p = pattern; *p; p++) {
        if (*p == '{' && open) return "braces can't be nested";
        if (*p == '}' && !open) return "'{' is missing";
        if (*p == '{') open = true;
        if (*p == '}') open = false;
        if (*p == '[') {
            const char *e = range_error(p);
            if (e) return e;
            p += strcspn(p, "]");
        } else if (*p == '.' && (p == pattern || !p[1] || p[1] == '.' || p[1] == '[')) {
            return "a name is missing beside '.'";
        } else if (!isalnum((unsigned char)*p) && !strchr("_*{},.-", *p)) {
            return "only names, '.', '*', '{a,b}' and '[a..b]' can stand in a pattern";
        }
    }
    return open ? "'}' is missing" : NULL;
}
