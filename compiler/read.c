/* read.c: reads what graph_print writes (print.c has the format).
 *
 * For `--only=PASS file.ir` and for tests.  A line is a node, a root, empty, or a comment after
 * `;`. Relies on graph_add, so a graph that was read has passed inference; every error is a
 * diagnostic with its line.  Promises: no input crashes it; nodes get the line they were read from
 * as their place.
 */
#include "dpoc.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_NODES = 10000000 };

typedef struct Reader {
    Arena *arena;
    Diags *diags;
    Graph *g;
    uint32_t file;
    const char *text, *s, *end; /* s: what comes next; end: of the line */
    NodeId *map;                /* printed id -> node; 0: not defined */
    int nmap, capmap;
    bool failed;
} Reader;

static Loc here(const Reader *r, const char *from) {
    return (Loc){r->file, (uint32_t)(from - r->text), (uint32_t)(r->s - r->text)};
}

PRINTF(2, 3) static bool wrong(Reader *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    char *message = arena_vprintf(r->arena, format, args);
    va_end(args);
    if (!r->failed) diag(r->diags, DIAG_ERROR, here(r, r->s), "%s", message);
    r->failed = true;
    return false;
}

/* ---- words ----------------------------------------------------------------------------------- */

static void skip(Reader *r) {
    while (r->s < r->end && (*r->s == ' ' || *r->s == '\t' || *r->s == '\r')) r->s++;
    if (r->s < r->end && *r->s == ';') r->s = r->end;
}

static bool at(Reader *r, char c) {
    skip(r);
    return r->s < r->end && *r->s == c;
}

static bool accept(Reader *r, char c) {
    if (!at(r, c)) return false;
    r->s++;
    return true;
}

static bool expect(Reader *r, char c) {
    return accept(r, c) || wrong(r, "expected '%c'", c);
}

/* Everything up to white space or one of `stop`. */
static char *word(Reader *r, const char *stop) {
    skip(r);
    const char *from = r->s;
    while (r->s < r->end && !strchr(" \t\r", *r->s) && !strchr(stop, *r->s)) r->s++;
    return arena_strn(r->arena, from, (size_t)(r->s - from));
}

static int hex(char c) {
    const char *digits = "0123456789abcdef", *p = c ? strchr(digits, c) : NULL;
    return p ? (int)(p - digits) : -1;
}

/* A string in quotes, with \" \\ and \xNN. */
static const char *quoted(Reader *r) {
    if (!expect(r, '"')) return NULL;
    char *out = arena_alloc(r->arena, (size_t)(r->end - r->s) + 1);
    size_t n = 0;
    for (; r->s < r->end && *r->s != '"'; r->s++) {
        if (*r->s == '\\' && r->end - r->s >= 4 && r->s[1] == 'x' && hex(r->s[2]) >= 0 &&
            hex(r->s[3]) >= 0) {
            out[n++] = (char)(hex(r->s[2]) * 16 + hex(r->s[3]));
            r->s += 3;
            continue;
        }
        if (*r->s == '\\' && r->end - r->s >= 2) r->s++;
        out[n++] = *r->s;
    }
    return expect(r, '"') ? intern(out) : NULL;
}

static bool integer(Reader *r, const char *s, int64_t *out) {
    char *end;
    *out = strtoll(s, &end, 10);
    return (*s && !*end) || wrong(r, "'%s' is not an integer", s);
}

static bool id_ref(Reader *r, int64_t *id) {
    if (!expect(r, '%')) return false;
    if (!integer(r, word(r, "=:"), id)) return false;
    return (*id >= 1 && *id < MAX_NODES) || wrong(r, "no such node");
}

/* ---- attributes ------------------------------------------------------------------------------ */

static bool read_table(Reader *r, Attr *attr) {
    float *values = NULL;
    int n = 0, cap = 0;
    if (!expect(r, '[')) return false;
    while (!at(r, ']')) {
        char *end, *number = word(r, ",]");
        float x = strtof(number, &end);
        if (!*number || *end) return wrong(r, "'%s' is not a number", number);
        PUSH(r->arena, values, n, cap, x);
        if (!accept(r, ',') && !at(r, ']')) return wrong(r, "expected ',' or ']'");
    }
    attr->table = table_intern(values, n);
    return expect(r, ']');
}

static bool read_dim(Reader *r, Dim *out) {
    const char *text = word(r, "");
    return dim_parse(text, out) || wrong(r, "'%s' is not a size", text);
}

/* The slot that holds attribute `key` of op, or NULL. */
static const char *find_slot(Reader *r, Op op, const char *key) {
    const char *s = op_info[op].attrs;
    size_t n = strlen(key);
    while (*s) {
        size_t k = strcspn(s, ":"), v = strcspn(s + k + 1, " ");
        if (k == n && !memcmp(s, key, n)) return arena_strn(r->arena, s + k + 1, v);
        s += k + 1 + v;
        s += strspn(s, " ");
    }
    return NULL;
}

static bool read_attr(Reader *r, Op op, Attr *attr) {
    const char *key = word(r, "="), *slot = find_slot(r, op, key);
    if (!slot) return wrong(r, "%s has no attribute '%s'", op_info[op].name, key);
    if (!expect(r, '=')) return false;
    if (!strcmp(slot, "num")) {
        char *end, *number = word(r, "");
        attr->num = strtod(number, &end);
        return (*number && !*end) || wrong(r, "'%s' is not a number", number);
    }
    if (!strcmp(slot, "dim")) return read_dim(r, &attr->dim);
    if (!strcmp(slot, "dim2")) return read_dim(r, &attr->dim2);
    if (!strcmp(slot, "table")) return read_table(r, attr);
    if (!strcmp(slot, "name")) return (attr->name = quoted(r)) != NULL;
    if (!strcmp(slot, "name2")) return (attr->name2 = quoted(r)) != NULL;
    int64_t *i = !strcmp(slot, "i0") ? &attr->i0 : !strcmp(slot, "i1") ? &attr->i1 : &attr->i2;
    return integer(r, word(r, ""), i);
}

/* ---- lines ----------------------------------------------------------------------------------- */

typedef struct Line { /* %id = op in.. attr.. : type phase inst scope.. */
    int64_t id;
    Op op;
    NodeId in[MAX_IN];
    int nin;
    Attr attr;
    const Type *type;
    Phase phase;
    int64_t inst;
    Origin *origin;
} Line;

static bool read_operands(Reader *r, Line *line) {
    while (at(r, '%')) {
        int64_t id;
        if (!id_ref(r, &id)) return false;
        if (line->nin == MAX_IN) return wrong(r, "too many operands");
        if (id >= r->nmap || !r->map[id])
            return wrong(r, "%%%lld is not defined above", (long long)id);
        line->in[line->nin++] = r->map[id];
    }
    return true;
}

static bool read_phase(Reader *r, Line *line) {
    const char *name = word(r, "");
    for (int p = 0; p < NPHASE; p++)
        if (!strcmp(name, phase_names[p])) {
            line->phase = (Phase)p;
            return true;
        }
    return wrong(r, "no phase '%s'", name);
}

static bool read_tail(Reader *r, Line *line, Loc loc) {
    const char *type = word(r, "");
    if (!type_parse(type, &line->type)) return wrong(r, "'%s' is not a type", type);
    if (!read_phase(r, line)) return false;
    skip(r);
    if (r->end - r->s > 5 && !memcmp(r->s, "inst=", 5)) {
        r->s += 5;
        if (!integer(r, word(r, ""), &line->inst)) return false;
        if (line->inst < 0 || line->inst > UINT32_MAX) return wrong(r, "inst out of range");
    }
    Origin **last = &line->origin;
    while (at(r, '"')) {
        const char *scope = quoted(r);
        if (!scope) return false;
        Origin *o = NEW(r->arena, Origin);
        *o = (Origin){.loc = loc, .scope = scope};
        *last = o;
        last = (Origin **)&o->next;
    }
    if (!line->origin) {
        line->origin = NEW(r->arena, Origin);
        line->origin->loc = loc;
    }
    skip(r);
    return r->s == r->end || wrong(r, "expected the end of the line");
}

static bool read_node(Reader *r) {
    Line line = {0};
    const char *from = r->s;
    if (!id_ref(r, &line.id) || !expect(r, '=')) return false;
    if (line.id < r->nmap) return wrong(r, "ids must increase");
    const char *name = word(r, "");
    if (!op_by_name(name, &line.op)) return wrong(r, "no op '%s'", name);
    if (!read_operands(r, &line)) return false;
    while (!at(r, ':'))
        if (r->s == r->end || !read_attr(r, line.op, &line.attr)) return wrong(r, "expected ':'");
    r->s++;
    if (!read_tail(r, &line,
                   (Loc){r->file, (uint32_t)(from - r->text), (uint32_t)(r->end - r->text)}))
        return false;
    NodeId id = graph_add(r->g, line.op, line.in, line.nin, &line.attr, line.type,
                          (uint32_t)line.inst, line.origin);
    if (!id) return false;
    Node *n = &r->g->node[id];
    if (n->type != line.type) return wrong(r, "the type is %s", type_print(r->arena, n->type));
    if (n->phase > line.phase) return wrong(r, "the phase is %s or later", phase_names[n->phase]);
    n->phase = line.phase;
    while (r->nmap < line.id) PUSH(r->arena, r->map, r->nmap, r->capmap, 0);
    PUSH(r->arena, r->map, r->nmap, r->capmap, id);
    return true;
}

static bool read_line(Reader *r) {
    skip(r);
    if (r->s == r->end) return true;
    if (*r->s == '%') return read_node(r);
    const char *keyword = word(r, "%");
    if (strcmp(keyword, "root")) return wrong(r, "expected a node or 'root', not '%s'", keyword);
    int64_t id;
    if (!id_ref(r, &id)) return false;
    if (id >= r->nmap || !r->map[id]) return wrong(r, "%%%lld is not defined", (long long)id);
    graph_root(r->g, r->map[id]);
    skip(r);
    return r->s == r->end || wrong(r, "expected the end of the line");
}

Graph *graph_read(Arena *arena, Diags *diags, uint32_t file) {
    size_t len;
    const char *text = source_text(diags, file, &len);
    Reader r = {.arena = arena, .diags = diags, .g = graph_new(arena, diags), .file = file};
    r.text = text;
    for (const char *s = text; s < text + len;) {
        const char *newline = memchr(s, '\n', (size_t)(text + len - s));
        r.s = s;
        r.end = newline ? newline : text + len;
        if (!read_line(&r)) return NULL;
        s = r.end + 1;
    }
    const char *broken = graph_verify(r.g, arena);
    if (broken) diag(diags, DIAG_ERROR, (Loc){file, 0, 0}, "%s", broken);
    return broken ? NULL : r.g;
}
