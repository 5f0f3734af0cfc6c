/* pairs.c: preference data, tokenized and counted (pairs.h).
 *
 * One record at a time: JSON, dialect, tokens, truncation.  What is left out or cut is counted and
 * the first five of each kind are told with file and line; malformed records are collected, then
 * refused together.
 */
#include "pairs.h"
#include "dialect.h"
#include "records.h"
#include "utf8.h"

#include <inttypes.h> /* PRId64 */
#include <stdlib.h>   /* free */
#include <string.h>   /* memcpy */

#define SHOWN 5

typedef enum Kind { /* of warnings; ERRORS are malformed records */
                    ERRORS,
                    W_EMPTY,
                    W_DIFFERING,
                    W_TOO_LONG,
                    W_IDENTICAL,
                    W_REPAIRED,
                    W_BOUNDARY,
                    NKIND
} Kind;

typedef struct Reader {
    Pairs *p;
    const PairsOptions *options;
    const Template *template;
    int file, line, cap;
    int64_t count[NKIND];
    const char *shown[NKIND][SHOWN];
    Ids prompt, side[2]; /* of the record at hand: chosen, rejected */
    float *values;       /* its columns */
    float *column;
    int capcolumn, ncolumn;
    Err *err;
} Reader;

static void note(Reader *r, Kind kind, const char *format, ...) PRINTF(3, 4);
static void note(Reader *r, Kind kind, const char *format, ...) {
    int64_t n = r->count[kind]++;
    if (n >= SHOWN) return;
    Arena *a = r->p->arena;
    va_list args;
    va_start(args, format);
    const char *text = arena_vprintf(a, format, args);
    va_end(args);
    r->shown[kind][n] = arena_printf(a, "%s:%d: %s", r->p->files[r->file], r->line, text);
}

/* ---- tokens of one example ------------------------------------------------------------------- */

static void take_ids(const json_t *list, Ids *out) {
    for (size_t i = 0; i < json_array_size(list); i++)
        ids_push(out, (int32_t)json_integer_value(json_array_get(list, i)));
}

/* Ids of a text with bos before it exactly once, if the tokenizer adds one. */
static void encode_text(const Reader *r, Span a, Span b, const char *end, Ids *out) {
    Tokenizer *t = r->template->tokenizer;
    Text text = {0};
    text_addn(&text, a.s, a.len);
    text_addn(&text, b.s, b.len);
    size_t n = end ? strlen(end) : 0;
    bool ended = text.len >= n && n && memcmp(text.data + text.len - n, end, n) == 0;
    if (n && !ended) text_addn(&text, end, n);
    if (t->adds_bos) ids_push(out, t->bos);
    int64_t begin = out->n;
    tokenizer_encode(t, text.len ? text.data : "", text.len, true, out);
    if (t->adds_bos && out->n > begin && out->v[begin] == t->bos) { /* it was written in the text */
        memmove(out->v + begin, out->v + begin + 1, sizeof *out->v * (size_t)(out->n - begin - 1));
        out->n--;
    }
    text_free(&text);
}

/* `all` is prompt + answer: keeps the answer, which begins where the prompt's ids end. */
static bool cut_prompt_off(Reader *r, Ids *all) {
    int64_t n = r->prompt.n;
    bool prefix = all->n >= n && memcmp(all->v, r->prompt.v, sizeof *all->v * (size_t)n) == 0;
    all->n = all->n > n ? all->n - n : 0;
    memmove(all->v, all->v + n, sizeof *all->v * (size_t)all->n);
    return prefix;
}

/* The ids of the prompt's messages and then the answer's; a conversation the template can't express
 * is a malformed record, anything else stops the reading. */
static bool encode_turns(Reader *r, const Turns *prompt, const Turns *answer, Ids *out) {
    Err err = {0};
    int n = prompt->n + (answer ? answer->n : 0);
    Message *all = malloc(sizeof *all * (size_t)(n + 1));
    if (!all) return fail(r->err, EXIT_MEMORY, "no memory for a conversation");
    memcpy(all, prompt->m, sizeof *all * (size_t)prompt->n);
    if (answer) memcpy(all + prompt->n, answer->m, sizeof *all * (size_t)answer->n);
    bool ok = template_encode(r->template, all, n, !answer, out, &err);
    free(all);
    if (err.code == EXIT_IO)
        note(r, ERRORS, "%s", err.text);
    else if (!ok)
        *r->err = err;
    return ok;
}

static bool encode_chat(Reader *r, const Example *e, bool *prefix) {
    if (!encode_turns(r, &e->turns[PROMPT], NULL, &r->prompt)) return false;
    for (int side = 0; side < 2; side++) {
        if (!e->turns[CHOSEN + side].m) continue;
        if (!encode_turns(r, &e->turns[PROMPT], &e->turns[CHOSEN + side], &r->side[side]))
            return false;
        *prefix = cut_prompt_off(r, &r->side[side]) && *prefix;
    }
    return true;
}

static void encode_strings(Reader *r, const Example *e, bool *prefix) {
    const Tokenizer *t = r->template->tokenizer;
    const char *eos = t->eos >= 0 ? tokenizer_piece(t, t->eos) : NULL;
    encode_text(r, e->text[PROMPT], (Span){"", 0}, NULL, &r->prompt);
    for (int side = 0; side < 2; side++) {
        if (!e->text[CHOSEN + side].s) continue;
        encode_text(r, e->text[PROMPT], e->text[CHOSEN + side], eos, &r->side[side]);
        *prefix = cut_prompt_off(r, &r->side[side]) && *prefix;
    }
}

/* Fills prompt and side; false when the record can't be used (noted) or reading must stop (err). */
static bool encode(Reader *r, const Example *e) {
    r->prompt.n = r->side[0].n = r->side[1].n = 0;
    bool prefix = true;
    if (e->kind == EXAMPLE_IDS) {
        take_ids(e->ids[PROMPT], &r->prompt);
        for (int side = 0; side < 2; side++) take_ids(e->ids[CHOSEN + side], &r->side[side]);
        return true;
    }
    if (!r->template->tokenizer)
        return fail(r->err, EXIT_IO,
                    "%s:%d: text needs a tokenizer: only token ids can be read here",
                    r->p->files[r->file], r->line);
    if (e->kind == EXAMPLE_TEXT)
        encode_strings(r, e, &prefix);
    else if (!encode_chat(r, e, &prefix))
        return false;
    if (!prefix)
        note(r, W_BOUNDARY,
             "the prompt's tokens change when the answer follows: the answer is cut at "
             "the prompt's own length, as TRL does");
    return true;
}

/* ---- truncation ------------------------------------------------------------------------------ */

static void drop_front(Ids *ids, int64_t n) {
    ids->n -= n;
    memmove(ids->v, ids->v + n, sizeof *ids->v * (size_t)ids->n);
}

/* False when the prompt leaves no room for an answer: the pair is dropped. */
static bool truncate_pair(Reader *r) {
    const PairsOptions *o = r->options;
    PairsCounts *c = &r->p->counts;
    Ids *prompt = &r->prompt, *side = r->side;
    bool cut_prompt = false;
    if (o->max_prompt && prompt->n > o->max_prompt) {
        drop_front(prompt, prompt->n - o->max_prompt);
        cut_prompt = true;
    }
    int64_t max = o->max_length, longer = side[0].n > side[1].n ? side[0].n : side[1].n;
    if (max && o->truncate == TRUNCATE_KEEP_END && prompt->n + longer > max) {
        int64_t over = prompt->n + longer - max;
        drop_front(prompt, over < prompt->n ? over : prompt->n - 1);
        cut_prompt = true;
    }
    c->cut_prompt += cut_prompt;
    if (!max || prompt->n + longer <= max) return true;
    if (prompt->n >= max) {
        note(r, W_TOO_LONG,
             "the prompt has %" PRId64 " tokens and max_length is %" PRId64 ": left out", prompt->n,
             max);
        return false;
    }
    c->cut++;
    for (int i = 0; i < 2; i++)
        if (prompt->n + side[i].n > max) side[i].n = max - prompt->n;
    return true;
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

/* Adds the encoded record to the pairs. */
static void keep(Reader *r) {
    Pairs *p = r->p;
    size_t n = (size_t)(r->prompt.n + r->side[0].n + r->side[1].n), size = sizeof(int32_t);
    int32_t *ids = arena_alloc(p->arena, n * size);
    memcpy(ids, r->prompt.v, size * (size_t)r->prompt.n);
    memcpy(ids + r->prompt.n, r->side[0].v, size * (size_t)r->side[0].n);
    if (r->side[1].n)
        memcpy(ids + r->prompt.n + r->side[0].n, r->side[1].v, size * (size_t)r->side[1].n);
    Pair pair = {
        ids, (int32_t)r->prompt.n, (int32_t)r->side[0].n, (int32_t)r->side[1].n, r->file, r->line};
    int count = (int)p->n;
    PUSH(p->arena, p->pair, count, r->cap, pair);
    p->n = count;
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
    json_t *root = json_loadb(text, len, JSON_ALLOW_NUL, &e);
    if (!root) note(r, ERRORS, "not valid JSON: %s", e.text);
    text_free(&repaired);
    return root;
}

/* Drops what SFT does not want, checks what every objective does, cuts (token ids: not), keeps. */
static void finish(Reader *r, bool as_is) {
    if (r->options->sft) r->side[1].n = 0;
    if (r->prompt.n == 0) {
        note(r, ERRORS,
             "the prompt is empty and the tokenizer adds no bos: nothing could predict the "
             "answer's first token");
        return;
    }
    if (r->side[0].n == 0 || (!r->options->sft && r->side[1].n == 0)) {
        note(r, W_EMPTY, "%s has no tokens: left out",
             r->side[0].n ? "\"rejected\"" : "\"chosen\"");
        return;
    }
    int64_t before = r->side[0].n + r->side[1].n;
    if (!as_is && !truncate_pair(r)) return;
    bool cut = r->side[0].n + r->side[1].n < before;
    if (r->side[0].n == r->side[1].n &&
        memcmp(r->side[0].v, r->side[1].v, sizeof(int32_t) * (size_t)r->side[0].n) == 0)
        note(r, W_IDENTICAL,
             "\"chosen\" and \"rejected\" are identical%s: nothing can be learnt from it",
             cut ? " once they are cut" : "");
    keep(r);
}

static void read_record(Reader *r, const Record *record) {
    r->line = record->line;
    r->p->counts.read++;
    json_t *root = parse(r, record);
    if (!root) return;
    Arena *arena = arena_new();
    Example e;
    const char *why = NULL;
    Verdict verdict = dialect_read(arena, root, r->options, r->template, &e, &why);
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

static void read_file(Reader *r, const char *path) {
    Records *records = records_open(path, r->err);
    Record record;
    while (records && !r->err->code && records_next(records, &record, r->err)) {
        read_record(r, &record);
        if (r->options->limit && r->p->n >= r->options->limit) break;
    }
    records_close(records);
}

/* The lines shown of one kind, and how many more there were. */
static void summarize(Reader *r, Kind kind, const char **lines, int *n) {
    int64_t count = r->count[kind];
    for (int i = 0; i < SHOWN && i < count; i++) lines[(*n)++] = r->shown[kind][i];
    if (count > SHOWN)
        lines[(*n)++] =
            arena_printf(r->p->arena, "... and %" PRId64 " more like the last", count - SHOWN);
}

static void conclude(Reader *r) {
    Pairs *p = r->p;
    p->counts.empty = r->count[W_EMPTY];
    p->counts.differing = r->count[W_DIFFERING];
    p->counts.too_long = r->count[W_TOO_LONG];
    p->counts.identical = r->count[W_IDENTICAL];
    p->counts.repaired = r->count[W_REPAIRED];
    p->counts.boundary = r->count[W_BOUNDARY];
    p->warnings = NEW_ARRAY(p->arena, const char *, NKIND *(SHOWN + 1));
    for (int kind = W_EMPTY; kind < NKIND; kind++)
        summarize(r, (Kind)kind, p->warnings, &p->nwarnings);
    if (r->err->code || (r->count[ERRORS] == 0 && p->n > 0)) return;
    const char *lines[NKIND * (SHOWN + 1)], *text = "";
    int n = 0;
    summarize(r, ERRORS, lines, &n);
    if (n == 0) { /* nothing malformed, nothing usable: what was left out says why */
        text = p->counts.read ? "no usable record is left" : "there are no records";
        text = arena_printf(p->arena, "%s: %s", p->files[0], text);
        for (int i = 0; i < p->nwarnings && i < 2 * SHOWN; i++) lines[n++] = p->warnings[i];
    }
    for (int i = 0; i < n; i++)
        text = arena_printf(p->arena, "%s%s%s", text, *text ? "\n" : "", lines[i]);
    fail(r->err, EXIT_IO, "%s", text);
}

Pairs *pairs_read(const char *const *paths, int npaths, const PairsOptions *options,
                  const Template *template, Err *err) {
    Arena *arena = arena_new();
    Pairs *p = NEW(arena, Pairs);
    Reader r = {.p = p, .options = options, .template = template, .err = err};
    p->arena = arena;
    p->files = NEW_ARRAY(arena, const char *, npaths + 1);
    p->columns = NEW_ARRAY(arena, const char *, options->ncolumns + 1);
    p->ncolumns = options->ncolumns;
    r.values = NEW_ARRAY(arena, float, options->ncolumns + 1);
    for (int i = 0; i < npaths; i++) p->files[p->nfiles++] = arena_str(arena, paths[i]);
    for (int i = 0; i < options->ncolumns; i++)
        p->columns[i] = arena_str(arena, options->columns[i]);
    for (; r.file < npaths && !err->code; r.file++) read_file(&r, paths[r.file]);
    r.file = 0;
    conclude(&r);
    p->column = r.column;
    ids_free(&r.prompt);
    ids_free(&r.side[0]);
    ids_free(&r.side[1]);
    if (!err->code) return p;
    pairs_free(p);
    return NULL;
}

void pairs_free(Pairs *pairs) {
    if (pairs) arena_free(pairs->arena);
}

char *pair_where(Arena *arena, const Pairs *pairs, const Pair *pair) {
    return arena_printf(arena, "%s:%d", pairs->files[pair->file], pair->line);
}
