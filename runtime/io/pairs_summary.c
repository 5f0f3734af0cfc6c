/* pairs_summary.c: what was read, for people and as JSON (pairs.h). */
#include "dialect.h"

#include <inttypes.h> /* PRId64 */
#include <stdlib.h>   /* qsort */

_Static_assert((int)NDIALECT <= (int)PAIRS_DIALECTS, "PairsFile.dialect holds all of them");

static int by_value(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static int64_t length_of(const Pair *p, int part) {
    return part == PROMPT ? p->prompt + p->context[0] : pair_scored(p, part - CHOSEN);
}

PairsLengths pairs_lengths(const Pairs *pairs, int file, int part) {
    PairsLengths out = {0};
    int32_t *v = malloc(sizeof *v * (size_t)(pairs->n + 1));
    int64_t n = 0;
    for (int64_t i = 0; v && i < pairs->n; i++)
        if (file < 0 || pairs->pair[i].file == file)
            v[n++] = (int32_t)length_of(&pairs->pair[i], part);
    if (n) {
        qsort(v, (size_t)n, sizeof *v, by_value); /* the smallest that p % are not above */
        out = (PairsLengths){v[(n - 1) / 2], v[(n * 95 + 99) / 100 - 1], v[n - 1]};
    }
    free(v);
    return out;
}

char *pairs_dialects(Arena *arena, const PairsFile *file) {
    int kinds = 0;
    char *text = arena_str(arena, "");
    for (int i = 0; i < NDIALECT; i++) kinds += file->dialect[i] > 0;
    for (int i = 0; i < NDIALECT; i++) {
        if (!file->dialect[i]) continue;
        text = arena_printf(arena, "%s%s", text, *text ? ", " : "");
        if (kinds > 1) text = arena_printf(arena, "%s%" PRId64 " ", text, file->dialect[i]);
        text = arena_printf(arena, "%s%s", text, dialect_names[i]);
    }
    return text;
}

/* The counts in the order they are told; zero is not worth a word. */
#define COUNTS(X)                                                                                  \
    X(empty, "left out: an answer is empty")                                                       \
    X(differing, "left out: two prompts")                                                          \
    X(too_long, "left out: no room for an answer")                                                 \
    X(cut_prompt, "with a cut prompt")                                                             \
    X(cut, "with a cut answer")                                                                    \
    X(identical, "with equal answers")                                                             \
    X(repeated, "the same as an earlier one")                                                      \
    X(boundary, "with a merge over the border")                                                    \
    X(repaired, "with invalid UTF-8")

static void lengths_text(const Pairs *p, int file, FILE *out) {
    static const char *const name[NPART] = {"prompt", "chosen", "rejected"};
    fprintf(out, "  tokens (median, 95 %%, longest):");
    for (int part = 0; part < NPART; part++) {
        PairsLengths l = pairs_lengths(p, file, part);
        if (part && l.max <= 0) continue;
        fprintf(out, "%s %s %" PRId64 " %" PRId64 " %" PRId64, part ? "," : "", name[part],
                l.median, l.p95, l.max);
    }
    fputc('\n', out);
}

void pairs_summary_text(const Pairs *p, const char *what, FILE *out) {
    Arena *arena = arena_new();
    for (int i = 0; i < p->nfiles; i++) {
        const PairsFile *f = &p->file[i];
        const PairsCounts *c = &f->counts;
        fprintf(out, "%s: %s: %s; %" PRId64 " kept of %" PRId64 " read", what, f->path,
                c->read ? pairs_dialects(arena, f) : "nothing read", c->kept, c->read);
#define SAY(field, text)                                                                           \
    if (c->field) fprintf(out, "; %" PRId64 " %s", c->field, text);
        COUNTS(SAY)
#undef SAY
        fputc('\n', out);
        if (c->kept) lengths_text(p, i, out);
        if (f->seconds > 2)
            fprintf(out, "  read in %.1f s, %.1f MB/s\n", f->seconds, f->bytes / f->seconds * 1e-6);
    }
    arena_free(arena);
}

static json_t *lengths_json(const Pairs *p, int file, int part) {
    PairsLengths l = pairs_lengths(p, file, part);
    return json_pack("{s:I, s:I, s:I}", "median", (json_int_t)l.median, "p95", (json_int_t)l.p95,
                     "max", (json_int_t)l.max);
}

static json_t *counts_json(const PairsCounts *c) {
    json_t *o = json_pack("{s:I, s:I, s:I}", "read", (json_int_t)c->read, "kept",
                          (json_int_t)c->kept, "longest_before_cutting", (json_int_t)c->longest);
#define PUT(field, text) json_object_set_new(o, #field, json_integer((json_int_t)c->field));
    COUNTS(PUT)
#undef PUT
    return o;
}

json_t *pairs_summary_json(const Pairs *p) {
    json_t *files = json_array(), *warnings = json_array();
    for (int i = 0; i < p->nfiles; i++) {
        const PairsFile *f = &p->file[i];
        json_t *dialects = json_object();
        for (int k = 0; k < NDIALECT; k++)
            if (f->dialect[k])
                json_object_set_new(dialects, dialect_names[k],
                                    json_integer((json_int_t)f->dialect[k]));
        json_array_append_new(
            files, json_pack("{s:s, s:o, s:o, s:{s:o, s:o, s:o}}", "file", f->path, "dialects",
                             dialects, "counts", counts_json(&f->counts), "tokens", "prompt",
                             lengths_json(p, i, PROMPT), "chosen", lengths_json(p, i, CHOSEN),
                             "rejected", lengths_json(p, i, REJECTED)));
    }
    for (int i = 0; i < p->nwarnings; i++) {
        const PairsWarning *w = &p->warning[i];
        json_t *first = json_array();
        for (int k = 0; k < w->nline; k++) json_array_append_new(first, json_string(w->line[k]));
        json_array_append_new(warnings, json_pack("{s:s, s:I, s:o}", "name", w->name, "count",
                                                  (json_int_t)w->count, "first", first));
    }
    return json_pack("{s:o, s:o, s:o}", "counts", counts_json(&p->counts), "files", files,
                     "warnings", warnings);
}
