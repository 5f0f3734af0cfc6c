/* pairs.c: preference data, tokenized and counted (pairs.h).
 *
 * One record at a time: JSON, dialect, tokens, truncation; the file is never whole in memory.  What
 * is left out, cut or odd is counted and the first five of each kind are told with file and line;
 * malformed records are collected, then refused together.
 */
#include "pairs.h"
#include "dialect.h"
#include "json.h"
#include "pairs_tokens.h"
#include "records.h"
#include "utf8.h"

#include <inttypes.h> /* PRId64 */
#include <stdlib.h>   /* free */
#include <string.h>   /* memcpy */

/* Of warnings; ERRORS are malformed records. */
typedef enum Kind {
    ERRORS,
    W_EMPTY,
    W_DIFFERING,
    W_TOO_LONG,
    W_TRUNCATED,
    W_IDENTICAL,
    W_REPEATED,
    W_REPAIRED,
    W_BOUNDARY,
    W_BOS,
    W_TOOLS,
    NKIND
} Kind;

static const char *const kind_names[NKIND] = {
    [W_EMPTY] = "empty",         [W_DIFFERING] = "differing", [W_TOO_LONG] = "too-long",
    [W_TRUNCATED] = "truncated", [W_IDENTICAL] = "identical", [W_REPEATED] = "repeated",
    [W_REPAIRED] = "utf8",       [W_BOUNDARY] = "boundary",   [W_BOS] = "bos",
    [W_TOOLS] = "tools"};

typedef struct Reader {
    Pairs *p;
    const PairsOptions *options;
    const Template *template;
    int file, line, cap;
    int64_t count[NKIND];
    const char *shown[NKIND][PAIRS_SHOWN];
    PairTokens tokens; /* of the record at hand */
    float *values;     /* its columns */
    float *column;
    int capcolumn, ncolumn;
    uint64_t *seen; /* hashes of the pairs kept: a table of open addresses, 0: free */
    size_t capseen;
    double said;
    Err *err;
} Reader;

static void note(Reader *r, Kind kind, const char *format, ...) PRINTF(3, 4);
static void note(Reader *r, Kind kind, const char *format, ...) {
    int64_t n = r->count[kind]++;
    if (n >= PAIRS_SHOWN) return;
    Arena *a = r->p->arena;
    va_list args;
    va_start(args, format);
    const char *text = arena_vprintf(a, format, args);
    va_end(args);
    r->shown[kind][n] = arena_printf(a, "%s:%d: %s", r->p->file[r->file].path, r->line, text);
}

static PairsCounts *counts(Reader *r) { /* of the file at hand */
    return &r->p->file[r->file].counts;
}

/* ---- pairs seen before ----------------------------------------------------------------------- */

/* Whether the hash was there; it is now.  The table is at most half full. */
static bool seen_before(Reader *r, uint64_t hash) {
    if (2 * (size_t)r->p->n >= r->capseen) {
        size_t cap = r->capseen ? 2 * r->capseen : 1024;
        uint64_t *old = r->seen, *table = calloc(cap, sizeof *table);
        if (!table) return false; /* only a warning hangs on it */
        for (size_t i = 0; i < r->capseen; i++) {
            size_t at = old[i] & (cap - 1);
            while (old[i] && table[at]) at = (at + 1) & (cap - 1);
            if (old[i]) table[at] = old[i];
        }
        free(old);
        r->seen = table;
        r->capseen = cap;
    }
    if (!hash) hash = 1;
    size_t at = hash & (r->capseen - 1);
    while (r->seen[at] && r->seen[at] != hash) at = (at + 1) & (r->capseen - 1);
    bool was = r->seen[at] != 0;
    r->seen[at] = hash;
    return was;
}

/* ---- one record ------------------------------------------------------------------------------ */

static bool read_columns(Reader *r, const json_t *record) {
    for (int i = 0; i < r->options->ncolumns; i++) {
        const char *name = r->options->columns[i];
        const json_t *v = json_object_get(record, name);
        if (!json_is_number(v) && !json_is_boolean(v)) {
            note(r, ERRORS, "\"%s\" is %s; the objective uses pair.%s", name,
                 v ? "not a number" : "missing", name);
            return false;
        }
        r->values[i] = json_is_boolean(v) ? (float)json_is_true(v) : (float)json_number_value(v);
    }
    return true;
}

/* How many tokens both sides begin with, at most all that are not scored. */
static int64_t shared(const PairTokens *t) {
    const Side *a = &t->side[0], *b = &t->side[1];
    int64_t n = 0;
    if (t->sides == 1) return a->context;
    while (n < a->context && n < b->context && a->ids.v[n] == b->ids.v[n]) n++;
    return n;
}

uint64_t pair_key(const Pair *p) {
    int32_t shape[] = {p->prompt, p->chosen, p->context[0], p->context[1]};
    size_t n = (size_t)(p->prompt + p->chosen + p->rejected);
    return hash_bytes(p->ids, n * sizeof *p->ids, hash_bytes(shape, sizeof shape, (Hash128){0})).lo;
}

/* Adds the encoded record to the pairs. */
static void keep(Reader *r) {
    Pairs *p = r->p;
    PairTokens *t = &r->tokens;
    int64_t prompt = shared(t);
    Pair pair = {.prompt = (int32_t)prompt, .file = r->file, .line = r->line};
    int32_t *length[2] = {&pair.chosen, &pair.rejected};
    size_t n = (size_t)prompt;
    for (int i = 0; i < t->sides; i++) n += (size_t)(t->side[i].ids.n - prompt);
    int32_t *ids = arena_alloc(p->arena, n * sizeof *ids), *at = ids + prompt;
    memcpy(ids, t->side[0].ids.v, (size_t)prompt * sizeof *ids);
    for (int i = 0; i < t->sides; i++) {
        const Side *s = &t->side[i];
        *length[i] = (int32_t)(s->ids.n - prompt);
        pair.context[i] = (int32_t)(s->context - prompt);
        memcpy(at, s->ids.v + prompt, (size_t)*length[i] * sizeof *ids);
        at += *length[i];
    }
    pair.ids = ids;
    if (seen_before(r, pair_key(&pair))) note(r, W_REPEATED, "the same as an earlier pair");
    int count = (int)p->n;
    PUSH(p->arena, p->pair, count, r->cap, pair);
    p->n = count;
    counts(r)->kept++;
    for (int i = 0; i < p->ncolumns; i++)
        PUSH(p->arena, r->column, r->ncolumn, r->capcolumn, r->values[i]);
}

/* The record's json, with invalid UTF-8 repaired; NULL and a note when it is not JSON. */
static json_t *parse(Reader *r, const Record *record) {
    json_error_t e;
    Text repaired = {0};
    const char *text = record->text;
    size_t len = record->len;
    if (utf8_valid(text, len) != len) {
        utf8_repair(text, len, &repaired);
        text = repaired.data;
        len = repaired.len;
        note(r, W_REPAIRED, "invalid UTF-8, read as U+FFFD");
    }
    json_t *root = json_parse(text, len, JSON_ALLOW_NUL, &e);
    if (!root) note(r, ERRORS, "not valid JSON: %s", e.text);
    text_free(&repaired);
    return root;
}

static int64_t scored(const Side *s) {
    return s->ids.n - s->context;
}

static bool same_answers(const PairTokens *t) {
    const Side *a = &t->side[0], *b = &t->side[1];
    return t->sides == 2 && scored(a) == scored(b) &&
           memcmp(a->ids.v + a->context, b->ids.v + b->context,
                  (size_t)scored(a) * sizeof *a->ids.v) == 0;
}

/* Checks what every objective wants, cuts (token ids: not), keeps. */
static void finish(Reader *r, bool as_is) {
    static const char *const name[] = {"chosen", "rejected"};
    PairTokens *t = &r->tokens;
    PairsCounts *c = counts(r);
    int64_t max = r->options->max_length, longest = 0;
    for (int i = 0; i < t->sides; i++) {
        if (t->side[i].ids.n > longest) longest = t->side[i].ids.n;
        if (t->side[i].context == 0) {
            note(r, ERRORS,
                 "the prompt is empty and has no bos: nothing could predict the answer's first "
                 "token");
            return;
        }
        if (scored(&t->side[i]) < 1) {
            note(r, W_EMPTY, "\"%s\" has no tokens: left out", name[i]);
            return;
        }
    }
    if (longest > c->longest) c->longest = longest;
    if (!as_is && !tokens_cut(t)) {
        note(r, W_TOO_LONG,
             "the prompt has %" PRId64 " tokens and max_length is %" PRId64 ": left out",
             t->prompt.n, max);
        return;
    }
    c->cut_prompt += t->cut_prompt;
    c->cut += t->cut;
    if (t->cut)
        note(r, W_TRUNCATED, "prompt and answer have %" PRId64 " tokens: an answer is cut",
             longest);
    if (same_answers(t))
        note(r, W_IDENTICAL,
             "\"chosen\" and \"rejected\" are identical%s: nothing can be learnt from it",
             t->cut ? " once they are cut" : "");
    keep(r);
}

/* Tokens of the example; false when it can't be used (noted) or reading must stop (err). */
static bool encode(Reader *r, const Example *e) {
    Err err = {0};
    if (e->kind != EXAMPLE_IDS && !r->template->tokenizer)
        return fail(r->err, EXIT_IO,
                    "%s:%d: text needs a tokenizer, the model's (--model DIR); only token ids can "
                    "be read without",
                    r->p->file[r->file].path, r->line);
    bool ok = tokens_encode(&r->tokens, e, &err);
    if (err.code == EXIT_IO) /* of this record; anything else stops the reading */
        note(r, ERRORS, "%s", err.text);
    else if (!ok)
        *r->err = err;
    if (!ok) return false;
    if (r->tokens.merged)
        note(r, W_BOUNDARY,
             "the prompt's last tokens merge with the answer's first (data.boundary says where "
             "the answer begins)");
    if (r->tokens.second_bos)
        note(r, W_BOS, "the text begins with bos and is given another (data.bos = once: not)");
    if (e->unread) note(r, W_TOOLS, "\"tools\" is not written by our chat templates: ignored");
    return true;
}

static void read_record(Reader *r, const Record *record) {
    r->line = record->line;
    counts(r)->read++;
    r->p->file[r->file].bytes += (double)record->len;
    json_t *root = parse(r, record);
    if (!root) return;
    Arena *arena = arena_new();
    Example e;
    const char *why = NULL;
    Verdict verdict = dialect_read(arena, root, r->options, r->template, &e, &why);
    r->p->file[r->file].dialect[e.dialect] += verdict != MALFORMED;
    if (verdict == MALFORMED)
        note(r, ERRORS, "%s", why);
    else if (verdict == EMPTY)
        note(r, W_EMPTY, "%s: left out", why);
    else if (verdict == DIFFERING)
        note(r, W_DIFFERING, "%s: left out", why);
    else if (read_columns(r, root) && encode(r, &e))
        finish(r, e.kind == EXAMPLE_IDS);
    arena_free(arena);
    json_decref(root);
}

/* ---- files ----------------------------------------------------------------------------------- */

/* What a file added to the counts of kinds. */
static void count_file(Reader *r, const int64_t before[NKIND]) {
    PairsCounts *c = counts(r), *all = &r->p->counts;
    c->empty = r->count[W_EMPTY] - before[W_EMPTY];
    c->differing = r->count[W_DIFFERING] - before[W_DIFFERING];
    c->too_long = r->count[W_TOO_LONG] - before[W_TOO_LONG];
    c->identical = r->count[W_IDENTICAL] - before[W_IDENTICAL];
    c->repeated = r->count[W_REPEATED] - before[W_REPEATED];
    c->repaired = r->count[W_REPAIRED] - before[W_REPAIRED];
    c->boundary = r->count[W_BOUNDARY] - before[W_BOUNDARY];
    all->read += c->read;
    all->kept += c->kept;
    all->cut_prompt += c->cut_prompt;
    all->cut += c->cut;
    all->too_long += c->too_long;
    all->empty += c->empty;
    all->differing += c->differing;
    all->identical += c->identical;
    all->repeated += c->repeated;
    all->repaired += c->repaired;
    all->boundary += c->boundary;
    if (c->longest > all->longest) all->longest = c->longest;
}

static void watch(Reader *r, const Records *records) {
    PairsWatch *w = r->options->watch;
    const PairsFile *f = &r->p->file[r->file];
    double now = now_seconds();
    if (!w || f->counts.read % 64 || now - r->said < 0.5) return;
    r->said = now;
    w->show(w, f->path, f->counts.read, f->bytes, records_share(records));
}

static void read_file(Reader *r) {
    PairsFile *f = &r->p->file[r->file];
    int64_t before[NKIND];
    memcpy(before, r->count, sizeof before);
    double start = now_seconds();
    Records *records = records_open(f->path, r->err);
    Record record;
    int64_t limit = r->options->limit;
    while (records && !(limit && r->p->n >= limit) && !r->err->code &&
           records_next(records, &record, r->err)) {
        read_record(r, &record);
        watch(r, records);
    }
    records_close(records);
    count_file(r, before);
    f->seconds = now_seconds() - start;
}

/* ---- conclusion ------------------------------------------------------------------------------ */

/* What many pairs of good data have is shown once; what is wrong with single ones, five times. */
static int most_shown(Kind kind) {
    return kind == W_TRUNCATED || kind == W_BOUNDARY || kind == W_TOOLS ? 1 : PAIRS_SHOWN;
}

static void make_warnings(Reader *r) {
    Pairs *p = r->p;
    p->warning = NEW_ARRAY(p->arena, PairsWarning, NKIND);
    for (int kind = W_EMPTY; kind < NKIND; kind++) {
        int64_t n = r->count[kind];
        if (n == 0) continue;
        PairsWarning *w = &p->warning[p->nwarnings++];
        *w = (PairsWarning){.name = kind_names[kind], .count = n};
        w->nline = n < most_shown((Kind)kind) ? (int)n : most_shown((Kind)kind);
        memcpy(w->line, r->shown[kind], sizeof w->line);
    }
}

/* Adds a line for each of those shown, and how many more there were. */
static void list(Text *text, const char *const *line, int64_t count) {
    for (int i = 0; i < PAIRS_SHOWN && i < count; i++)
        text_add(text, "%s%s", text->len ? "\n" : "", line[i]);
    if (count > PAIRS_SHOWN)
        text_add(text, "\n... and %" PRId64 " more like the last", count - PAIRS_SHOWN);
}

/* Malformed records, or nothing that could be used, is an error. */
static void conclude(Reader *r) {
    Pairs *p = r->p;
    make_warnings(r);
    if (r->err->code || (r->count[ERRORS] == 0 && p->n > 0)) return;
    Text text = {0};
    list(&text, r->shown[ERRORS], r->count[ERRORS]);
    if (text.len == 0) { /* nothing malformed, nothing usable: what was left out says why */
        text_add(&text, "%s: %s", p->file[0].path,
                 p->counts.read ? "no usable record is left" : "there are no records");
        for (int i = 0; i < p->nwarnings; i++) list(&text, p->warning[i].line, p->warning[i].count);
    }
    fail(r->err, EXIT_IO, "%s", text.data);
    text_free(&text);
}

static void reader_open(Reader *r, const char *const *paths, int npaths) {
    Pairs *p = r->p;
    const PairsOptions *o = r->options;
    p->file = NEW_ARRAY(p->arena, PairsFile, npaths + 1);
    p->columns = NEW_ARRAY(p->arena, const char *, o->ncolumns + 1);
    p->ncolumns = o->ncolumns;
    r->values = NEW_ARRAY(p->arena, float, o->ncolumns + 1);
    r->tokens = (PairTokens){.options = o, .template = r->template};
    r->said = now_seconds();
    for (int i = 0; i < npaths; i++) p->file[p->nfiles++].path = arena_str(p->arena, paths[i]);
    for (int i = 0; i < o->ncolumns; i++) p->columns[i] = arena_str(p->arena, o->columns[i]);
}

Pairs *pairs_read(const char *const *paths, int npaths, const PairsOptions *options,
                  const Template *template, Err *err) {
    Arena *arena = arena_new();
    Pairs *p = NEW(arena, Pairs);
    Reader r = {.p = p, .options = options, .template = template, .err = err};
    p->arena = arena;
    if (options->truncate == TRUNCATE_PROMPT_FIRST &&
        (!options->max_prompt ||
         (options->max_length && options->max_prompt >= options->max_length)))
        fail(err, EXIT_INPUT,
             "data.truncation = prompt_first needs data.max_prompt from 1 to data.max_length - 1");
    reader_open(&r, paths, npaths);
    for (; r.file < npaths && !err->code; r.file++) read_file(&r);
    r.file = 0;
    conclude(&r);
    p->column = r.column;
    tokens_free(&r.tokens);
    free(r.seen);
    if (!err->code) return p;
    pairs_free(p);
    return NULL;
}

void pairs_free(Pairs *pairs) {
    if (pairs) arena_free(pairs->arena);
}

char *pair_where(Arena *arena, const Pairs *pairs, const Pair *pair) {
    return arena_printf(arena, "%s:%d", pairs->file[pair->file].path, pair->line);
}
