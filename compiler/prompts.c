/* prompts.c: see prompts.h.  Relies on runtime/io: records, dialects, templates. */
#include "prompts.h"

#include "../runtime/io/dialect.h"
#include "../runtime/io/json.h"
#include "../runtime/io/records.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

void prompts_free(Prompts *p) {
    for (int i = 0; i < p->n; i++) ids_free(&p->prompt[i].ids);
}

static Prompt *prompt_new(Work *w, const char *text, Prompts *out) {
    Prompt prompt = {.text = arena_str(w->arena, text)};
    PUSH(w->arena, out->prompt, out->n, out->cap, prompt);
    return &out->prompt[out->n - 1];
}

bool prompts_text(Work *w, const Template *t, const char *text, Prompts *out) {
    Prompt *p = prompt_new(w, text, out);
    return work_prompt(w, t, text, false, &p->ids);
}

typedef struct Reader { /* one file */
    Work *w;
    const Template *template;
    const char *path;
    bool chat;
    int line;
    Prompts *out;
} Reader;

static bool bad(Reader *r, const char *format, ...) PRINTF(2, 3);
static bool bad(Reader *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const char *what = arena_vprintf(r->w->arena, format, args);
    va_end(args);
    return fail(&r->w->err, EXIT_IO, "%s:%d: %s", r->path, r->line, what);
}

/* As a user's message where strings are one, else as text to continue. */
static bool add_text(Reader *r, const char *text) {
    Prompt *p = prompt_new(r->w, text, r->out);
    bool chat = r->template->named ? r->template->kind != TEMPLATE_NONE
                                   : r->chat && r->template->kind == TEMPLATE_CHAT;
    return work_prompt(r->w, r->template, text, chat, &p->ids);
}

static bool add_turns(Reader *r, const Message *m, int n) {
    while (n > 0 && !strcmp(m[n - 1].role, "assistant")) n--; /* that is to be answered anew */
    if (n < 1) return bad(r, "no message to answer");
    if (r->template->kind == TEMPLATE_NONE)
        return bad(r, "a conversation, and no chat template is known: name a data.template");
    Err why = {0};
    Prompt *p = prompt_new(r->w, arena_strn(r->w->arena, m[n - 1].content, m[n - 1].len), r->out);
    return template_encode(r->template, m, n, true, &p->ids, &why) || bad(r, "%s", why.text);
}

/* [{"role": .., "content": ..}, ..] */
static bool add_messages(Reader *r, const json_t *list) {
    int n = (int)json_array_size(list);
    Message *m = NEW_ARRAY(r->w->arena, Message, n + 1);
    for (int i = 0; i < n; i++) {
        const json_t *one = json_array_get(list, (size_t)i);
        m[i].role = json_string_value(json_object_get(one, "role"));
        m[i].content = json_string_value(json_object_get(one, "content"));
        if (!m[i].role || !m[i].content)
            return bad(r, "message %d wants \"role\" and \"content\"", i + 1);
        m[i].len = strlen(m[i].content);
    }
    return add_turns(r, m, n);
}

static bool add_ids(Reader *r, const json_t *list) {
    Prompt *p = prompt_new(r->w, "", r->out);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        const json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > INT32_MAX)
            return bad(r, "\"prompt_ids\" holds what is no token id");
        ids_push(&p->ids, (int32_t)value);
    }
    if (!r->w->tokenizer)
        return p->text = arena_printf(r->w->arena, "%s:%d", r->path, r->line), true;
    Text text = {0};
    tokenizer_decode(r->w->tokenizer, p->ids.v, p->ids.n, true, &text);
    p->text = arena_str(r->w->arena, text.data ? text.data : "");
    text_free(&text);
    return true;
}

/* A preference pair: what both answers answer. */
static bool add_pair(Reader *r, const json_t *record) {
    const Spec *s = r->w->spec;
    PairsOptions options = {
        .sft = true, /* one answer is enough */
        .prompt_key = spec_str(s, "data.columns.prompt"),
        .chosen_key = spec_str(s, "data.columns.chosen"),
        .rejected_key = spec_str(s, "data.columns.rejected"),
    };
    Example e;
    const char *why = "";
    if (dialect_read(r->w->arena, record, &options, r->template, &e, &why) == MALFORMED)
        return bad(r, "no \"prompt\" or \"messages\", and no pair: %s", why);
    if (e.kind == EXAMPLE_IDS) return add_ids(r, e.ids[PROMPT]);
    if (e.kind == EXAMPLE_CHAT) return add_turns(r, e.turns[PROMPT].m, e.turns[PROMPT].n);
    return add_text(r, arena_strn(r->w->arena, e.text[PROMPT].s, e.text[PROMPT].len));
}

static bool add_record(Reader *r, const json_t *record) {
    if (json_is_string(record)) return add_text(r, json_string_value(record));
    if (json_is_array(record)) return add_messages(r, record);
    if (!json_is_object(record)) return bad(r, "neither text nor a record");
    const json_t *prompt = json_object_get(record, "prompt"),
                 *messages = json_object_get(record, "messages"),
                 *ids = json_object_get(record, "prompt_ids");
    if (json_is_string(prompt)) return add_text(r, json_string_value(prompt));
    if (json_is_array(prompt)) return add_messages(r, prompt);
    if (json_is_array(messages)) return add_messages(r, messages);
    if (json_is_array(ids)) return add_ids(r, ids);
    return add_pair(r, record);
}

/* An array of messages is one conversation, not records. */
static bool conversation(const json_t *list) {
    const json_t *first = json_array_get(list, 0);
    return json_object_get(first, "role") && json_object_get(first, "content");
}

static bool read_array(Reader *r, const char *text) {
    json_error_t e;
    json_t *list = json_loads(text, 0, &e);
    r->line = e.line;
    if (!list) return bad(r, "%s", e.text);
    bool ok = true, one = conversation(list);
    r->line = 1;
    if (one) ok = add_messages(r, list);
    for (size_t i = 0; ok && !one && i < json_array_size(list); i++)
        ok = add_record(r, json_array_get(list, i));
    json_decref(list);
    return ok;
}

static bool read_records(Reader *r) {
    Err *err = &r->w->err;
    Records *records = records_open(r->path, err);
    Record record;
    bool ok = records != NULL;
    while (ok && records_next(records, &record, err)) {
        json_error_t e;
        json_t *value = json_parse(record.text, record.len, JSON_DECODE_ANY, &e);
        r->line = record.line;
        ok = value ? add_record(r, value) : bad(r, "%s", e.text);
        json_decref(value);
    }
    records_close(records);
    return ok && !err->code;
}

static bool read_lines(Reader *r, char *text) {
    for (char *end; *text; text = end) {
        end = text + strcspn(text, "\n");
        if (*end) *end++ = 0;
        r->line++;
        size_t len = strlen(text);
        if (len && text[len - 1] == '\r') text[len - 1] = 0;
        if (*text && !add_text(r, text)) return false;
    }
    return true;
}

bool prompts_file(Work *w, const Template *t, const char *path, bool chat, Prompts *out) {
    Reader r = {.w = w, .template = t, .path = path, .chat = chat, .out = out};
    size_t len;
    char *text = file_read(path, &len, &w->err);
    if (!text) return false;
    const char *first = text + strspn(text, " \t\r\n"), *dot = strrchr(path, '.');
    const bool lines = dot && !strcmp(dot, ".txt"); /* whatever they begin with */
    bool packed = len > 1 && (unsigned char)text[0] == 0x1f && (unsigned char)text[1] == 0x8b;
    bool ok;
    if (!lines && (packed || *first == '{' || *first == '"'))
        ok = read_records(&r);
    else
        ok = !lines && *first == '[' ? read_array(&r, text) : read_lines(&r, text);
    free(text);
    if (ok && !out->n) return fail(&w->err, EXIT_IO, "%s: no prompt", path);
    return ok;
}

void prompts_pairs(Work *w, const Pairs *pairs, const int32_t *which, int64_t n, Prompts *out) {
    for (int64_t i = 0; i < n; i++) {
        const Pair *pair = &pairs->pair[which ? which[i] : i];
        if (pair->prompt < 1) continue;
        Text text = {0};
        if (w->tokenizer) tokenizer_decode(w->tokenizer, pair->ids, pair->prompt, false, &text);
        Prompt *p = prompt_new(w, text.data ? text.data : pair_where(w->arena, pairs, pair), out);
        for (int32_t k = 0; k < pair->prompt; k++) ids_push(&p->ids, pair->ids[k]);
        text_free(&text);
    }
}
