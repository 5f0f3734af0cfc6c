/* diag.c: sources, places in them, and messages about them (dpoc.h).
 *
 * Relies on base.h and jansson (JSON form).  Promises: what is printed is valid UTF-8 without
 * control characters, whatever the source and the message hold; the same message about the same
 * place is said once, however many graphs it is found in; carets stand under what they mean by
 * display width.
 */
#include "dpoc.h"

#include <jansson.h> /* json_array */
#include <string.h>  /* memchr */

typedef struct Source {
    const char *name, *text;
    size_t len;
} Source;

typedef struct Diag {
    Severity severity;
    Loc loc;
    const char *text, *name; /* name: of a warning, or NULL */
    bool in_file;            /* an error in a file that is read */
} Diag;

struct Diags {
    Arena *arena;
    Source *source; /* number f is source[f - 1] */
    int nsource, capsource;
    Diag *diag;
    int ndiag, capdiag;
    int errors, file_errors;
    bool repeated; /* the last one was said before or is silenced: its notes are dropped too */
    const char **silent; /* names of warnings */
    int nsilent, capsilent;
};

enum { MOST_ERRORS = 20, MOST_KEPT = 500, TAB = 8, WIDEST = 160 };

/* ---- sources --------------------------------------------------------------------------------- */

Diags *diags_new(Arena *arena) {
    Diags *diags = NEW(arena, Diags);
    diags->arena = arena;
    return diags;
}

uint32_t source_add(Diags *diags, const char *name, const char *text, size_t len) {
    Source source = {arena_str(diags->arena, name), text, len};
    PUSH(diags->arena, diags->source, diags->nsource, diags->capsource, source);
    return (uint32_t)diags->nsource;
}

static const Source *source_of(const Diags *diags, uint32_t file) {
    return file >= 1 && file <= (uint32_t)diags->nsource ? &diags->source[file - 1] : NULL;
}

const char *source_name(const Diags *diags, uint32_t file) {
    const Source *source = source_of(diags, file);
    return source ? source->name : "";
}

const char *source_text(const Diags *diags, uint32_t file, size_t *len) {
    const Source *source = source_of(diags, file);
    if (len) *len = source ? source->len : 0;
    return source ? source->text : "";
}

/* ---- characters ------------------------------------------------------------------------------ */

/* The character at s: its bytes and value; an invalid or control byte is one character U+FFFD. */
static size_t decode(const char *s, size_t n, uint32_t *value) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char c = (unsigned char)s[0];
    size_t len = c < 0x80 ? 1 : c >> 5 == 6 ? 2 : c >> 4 == 14 ? 3 : c >> 3 == 30 ? 4 : 0;
    *value = 0xfffd;
    if (len == 1 && c >= 0x20 && c != 0x7f) *value = c;
    if (len < 2 || len > n) return 1;
    uint32_t v = c & (0x7fU >> len);
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 1;
        v = v << 6 | ((unsigned char)s[i] & 0x3f);
    }
    if (v < least[len] || v > 0x10ffff || (v >= 0xd800 && v < 0xe000) || v < 0xa0) return 1;
    *value = v;
    return len;
}

/* Columns a character takes on a terminal. */
static int width(uint32_t c) {
    static const uint32_t none[][2] = {
        {0x300, 0x36f}, {0x200b, 0x200f}, {0x20d0, 0x20ff}, {0xfe00, 0xfe0f}};
    static const uint32_t two[][2] = {{0x1100, 0x115f},   {0x2e80, 0xa4cf},   {0xac00, 0xd7a3},
                                      {0xf900, 0xfaff},   {0xfe30, 0xfe6f},   {0xff00, 0xff60},
                                      {0xffe0, 0xffe6},   {0x1f300, 0x1f64f}, {0x1f680, 0x1f6ff},
                                      {0x1f900, 0x1f9ff}, {0x20000, 0x3fffd}};
    for (size_t i = 0; i < COUNT(none); i++)
        if (c >= none[i][0] && c <= none[i][1]) return 0;
    for (size_t i = 0; i < COUNT(two); i++)
        if (c >= two[i][0] && c <= two[i][1]) return 2;
    return 1;
}

static void add_char(Text *out, const char *s, size_t n, uint32_t c) {
    if (c == 0xfffd)
        text_addn(out, "\xef\xbf\xbd", 3);
    else
        text_addn(out, s, n);
}

/* `text` with every byte that is not printable UTF-8 replaced; newlines stay. */
static const char *clean(Arena *arena, const char *text) {
    Text out = {0};
    uint32_t c;
    for (size_t n = strlen(text), step; n; text += step, n -= step) {
        step = decode(text, n, &c);
        if (*text == '\n' || *text == '\t')
            text_addn(&out, text, 1);
        else
            add_char(&out, text, step, c);
    }
    text_addn(&out, "", 0);
    const char *copy = arena_strn(arena, out.data, out.len);
    text_free(&out);
    return copy;
}

/* ---- places ---------------------------------------------------------------------------------- */

typedef struct Line {
    const char *text;
    size_t len, at; /* at: offset of the place in it */
    int number;
} Line;

static Line line_of(const Source *source, uint32_t begin) {
    size_t at = begin < source->len ? begin : source->len, start = 0;
    Line line = {.number = 1};
    for (const char *nl; (nl = memchr(source->text + start, '\n', at - start)); line.number++)
        start = (size_t)(nl - source->text) + 1;
    const char *nl = memchr(source->text + start, '\n', source->len - start);
    line.text = source->text + start;
    line.len = nl ? (size_t)(nl - line.text) : source->len - start;
    line.at = at - start;
    if (line.len && line.text[line.len - 1] == '\r') line.len--;
    if (line.at > line.len) line.at = line.len;
    return line;
}

void loc_line_col(const Diags *diags, Loc loc, int *line, int *col) {
    const Source *source = source_of(diags, loc.file);
    *line = *col = 0;
    if (!source) return;
    Line l = line_of(source, loc.begin);
    uint32_t c;
    *line = l.number;
    *col = 1;
    for (size_t i = 0; i < l.at; ++*col) i += decode(l.text + i, l.len - i, &c);
}

char *loc_print(Arena *arena, const Diags *diags, Loc loc) {
    int line, col;
    loc_line_col(diags, loc, &line, &col);
    if (!line) return arena_str(arena, "");
    return arena_printf(arena, "%s:%d:%d", source_name(diags, loc.file), line, col);
}

Loc loc_join(Loc a, Loc b) {
    if (!a.file) return b;
    if (!b.file || a.file != b.file) return a;
    if (b.begin < a.begin) a.begin = b.begin;
    if (b.end > a.end) a.end = b.end;
    return a;
}

/* ---- recording ------------------------------------------------------------------------------- */

static bool said_before(const Diags *diags, const Diag *d) {
    for (int i = 0; i < diags->ndiag; i++) {
        const Diag *e = &diags->diag[i];
        if (e->severity == d->severity && !memcmp(&e->loc, &d->loc, sizeof e->loc) &&
            !strcmp(e->text, d->text))
            return true;
    }
    return false;
}

void diags_silence(Diags *diags, const char *name) {
    PUSH(diags->arena, diags->silent, diags->nsilent, diags->capsilent, intern(name));
}

bool diags_silenced(const Diags *diags, const char *name) {
    for (int i = 0; i < diags->nsilent; i++)
        if (name && strcmp(diags->silent[i], name) == 0) return true;
    return false;
}

static void record(Diags *diags, Diag d, const char *format, va_list args) {
    bool primary = d.severity <= DIAG_WARNING;
    if (!primary && diags->repeated) return;
    d.text = clean(diags->arena, arena_vprintf(diags->arena, format, args));
    if (primary) diags->repeated = said_before(diags, &d) || diags_silenced(diags, d.name);
    if (diags->repeated) return;
    diags->errors += d.severity == DIAG_ERROR;
    diags->file_errors += d.in_file;
    if (primary)
        diags->repeated = diags->ndiag >= MOST_KEPT; /* counted, but nobody reads that far */
    if (diags->repeated) return;
    PUSH(diags->arena, diags->diag, diags->ndiag, diags->capdiag, d);
}

void diag(Diags *diags, Severity severity, Loc loc, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(diags, (Diag){.severity = severity, .loc = loc}, format, args);
    va_end(args);
}

void diag_warn(Diags *diags, const char *name, Loc loc, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(diags, (Diag){.severity = DIAG_WARNING, .loc = loc, .name = name}, format, args);
    va_end(args);
}

void diag_file(Diags *diags, Loc loc, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(diags, (Diag){.severity = DIAG_ERROR, .loc = loc, .in_file = true}, format, args);
    va_end(args);
}

int diags_errors(const Diags *diags) {
    return diags->errors;
}

void diags_blame_file(Diags *diags, int errors) {
    diags->file_errors += diags->errors - errors;
}

int diags_exit(const Diags *diags) {
    return diags->errors && diags->file_errors >= diags->errors ? EXIT_IO : EXIT_INPUT;
}

void diags_sort(Diags *diags, uint32_t file) {
    int from = diags->ndiag;
    Diag *d = diags->diag;
    for (int i = from - 1; i >= 0; i--) {
        if (d[i].severity > DIAG_WARNING) continue;
        if (d[i].loc.file != file) break;
        from = i;
    }
    /* Insertion of one diagnostic with its notes at a time: few are ever out of place. */
    for (int i = from, after; i < diags->ndiag; i = after) {
        for (after = i + 1; after < diags->ndiag && d[after].severity > DIAG_WARNING;) after++;
        int to = i;
        for (int j = i - 1; j >= from; j--) {
            if (d[j].severity > DIAG_WARNING) continue;
            if (d[j].loc.begin <= d[i].loc.begin) break;
            to = j;
        }
        for (int k = 0; to + k < i && k < after - i; k++) {
            Diag moved = d[i + k];
            memmove(&d[to + k + 1], &d[to + k], sizeof *d * (size_t)(i - to));
            d[to + k] = moved;
        }
    }
}

/* ---- printing -------------------------------------------------------------------------------- */

static const char *const severity_name[] = {"error", "warning", "note", "help"};
static const char *const severity_color[] = {"\33[1;31m", "\33[1;35m", "\33[1;36m", "\33[1;32m"};

/* The source line and, under it, ^~~~ from loc.begin to loc.end (or the line's end).  Of a very
 * long line the part around the caret is shown. */
static void add_snippet(const Source *source, Loc loc, Text *out, const char *on, const char *off) {
    Line line = line_of(source, loc.begin);
    size_t until = loc.end > loc.begin ? line.at + (loc.end - loc.begin) : line.at + 1;
    Text carets = {0};
    text_add(out, "%5d | ", line.number);
    text_add(&carets, "      | %s", on);
    int col = 0, caret = 0, from = 0;
    uint32_t c;
    for (size_t i = 0; i < line.at; i += decode(line.text + i, line.len - i, &c)) caret++;
    if (caret > WIDEST - 40) from = caret - 60;
    size_t i = 0;
    for (int skip = 0; skip < from; skip++) i += decode(line.text + i, line.len - i, &c);
    if (from) {
        text_add(out, "...");
        text_add(&carets, "   ");
    }
    while (i < line.len && col < WIDEST) {
        size_t step = decode(line.text + i, line.len - i, &c);
        int cells = line.text[i] == '\t' ? TAB - col % TAB : width(c);
        if (line.text[i] == '\t')
            text_add(out, "%*s", cells, "");
        else
            add_char(out, line.text + i, step, c);
        for (int k = 0; k < cells && i < until; k++)
            text_addn(&carets, i < line.at ? " " : i == line.at && k == 0 ? "^" : "~", 1);
        col += cells;
        i += step;
    }
    if (i < line.len) text_add(out, "...");
    if (line.at >= line.len) text_addn(&carets, "^", 1);
    text_add(out, "\n%s%s\n", carets.data, off);
    text_free(&carets);
}

/* `main` is the message a note or help belongs to: the same place is not shown again. */
static void add_diag(const Diags *diags, const Diag *d, const Diag *main, Text *out, bool color) {
    const char *bold = color ? "\33[1m" : "", *off = color ? "\33[0m" : "";
    const char *on = color ? severity_color[d->severity] : "";
    bool again = main && memcmp(&d->loc, &main->loc, sizeof d->loc) == 0;
    const Source *source = again ? NULL : source_of(diags, d->loc.file);
    if (source) {
        int line, col;
        loc_line_col(diags, d->loc, &line, &col);
        text_add(out, "%s%s:%d:%d:%s ", bold, source->name, line, col, off);
    }
    text_add(out, "%s%s:%s %s", on, severity_name[d->severity], off, d->text);
    if (d->name) text_add(out, " [-W%s]", d->name);
    text_add(out, "\n");
    if (source) add_snippet(source, d->loc, out, color ? "\33[1;32m" : "", off);
}

int diags_count(const Diags *diags) {
    return diags->ndiag;
}

void diags_print(const Diags *diags, int from, FILE *out, bool color) {
    Text text = {0};
    int errors = 0;
    const Diag *main = NULL;
    for (int i = 0; i < diags->ndiag; i++) {
        const Diag *d = &diags->diag[i];
        errors += d->severity == DIAG_ERROR;
        if (errors > MOST_ERRORS) break;
        bool primary = d->severity <= DIAG_WARNING;
        if (i >= from) add_diag(diags, d, primary ? NULL : main, &text, color);
        if (primary) main = d;
    }
    if (from < diags->ndiag && diags->errors > MOST_ERRORS)
        text_add(&text, "note: %d more errors are not shown\n", diags->errors - MOST_ERRORS);
    if (text.len) fwrite(text.data, 1, text.len, out);
    text_free(&text);
}

char *diags_json(const Diags *diags) {
    json_t *all = json_array(), *notes = NULL;
    for (int i = 0; i < diags->ndiag; i++) {
        const Diag *d = &diags->diag[i];
        int line, col;
        loc_line_col(diags, d->loc, &line, &col);
        json_t *one = json_object();
        json_object_set_new(one, "severity", json_string(severity_name[d->severity]));
        if (line) {
            const char *file = clean(diags->arena, source_name(diags, d->loc.file));
            json_object_set_new(one, "file", json_string(file));
            json_object_set_new(one, "line", json_integer(line));
            json_object_set_new(one, "col", json_integer(col));
        }
        json_object_set_new(one, "message", json_string(d->text));
        if (d->name) json_object_set_new(one, "name", json_string(d->name));
        if (d->severity > DIAG_WARNING && notes) {
            json_array_append_new(notes, one);
            continue;
        }
        json_object_set_new(one, "notes", notes = json_array());
        json_array_append_new(all, one);
    }
    char *text = json_dumps(all, JSON_INDENT(1));
    json_decref(all);
    return text;
}
