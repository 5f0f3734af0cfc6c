/* dialect.c: the shapes that preference data comes in (dialect.h).
 *
 * The keys of a record tell its dialect.  Each reader fills prompt, chosen and rejected; what may
 * be missing is checked once, at the end.
 */
#include "dialect.h"
#include "utf8.h"

#include <stdlib.h> /* strtoul */
#include <string.h> /* strcmp */

const char *const dialect_names[NDIALECT] = {
    [DIALECT_IDS] = "token ids",
    [DIALECT_TRL] = "TRL strings",
    [DIALECT_TRL_IMPLICIT] = "TRL strings with the prompt in both",
    [DIALECT_TRL_CHAT] = "TRL conversations",
    [DIALECT_TRL_CHAT_IMPLICIT] = "TRL conversations with the prompt in both",
    [DIALECT_TRL_MIXED] = "string prompt with conversations",
    [DIALECT_ORCA] = "Orca",
    [DIALECT_ALPACA] = "Alpaca",
    [DIALECT_HH] = "HH transcripts",
    [DIALECT_SHAREGPT] = "ShareGPT",
    [DIALECT_V1] = "LLaMA-Factory v1",
    [DIALECT_OPENAI] = "OpenAI",
    [DIALECT_COMPLETION] = "prompt and completion",
    [DIALECT_MESSAGES] = "messages",
    [DIALECT_TEXT] = "text",
};

typedef struct Reading {
    Arena *arena;
    const json_t *record;
    const PairsOptions *options;
    const Template *template;
    Example *out;
    const char **why;
    bool named; /* options->dialect says what it is */
} Reading;

static Verdict say(const Reading *r, Verdict verdict, const char *format, ...) PRINTF(3, 4);
static Verdict say(const Reading *r, Verdict verdict, const char *format, ...) {
    va_list args;
    va_start(args, format);
    *r->why = arena_vprintf(r->arena, format, args);
    va_end(args);
    return verdict;
}

/* The value of a key, or of a path of keys and list places: `input.messages.0.content`. */
static const json_t *lookup(const json_t *record, const char *path) {
    const json_t *v = json_object_get(record, path);
    const char *dot = strchr(path, '.');
    if (v || !dot) return v;
    for (v = record; v && *path; path = *dot ? dot + 1 : dot) {
        const size_t n = strcspn(path, "."), digits = strspn(path, "0123456789");
        dot = path + n;
        if (json_is_array(v))
            v = n && digits == n ? json_array_get(v, strtoul(path, NULL, 10)) : NULL;
        else
            v = json_object_getn(v, path, n);
    }
    return v;
}

/* ---- messages -------------------------------------------------------------------------------- */

static const char *role_of(const char *name) {
    if (strcmp(name, "human") == 0) return "user";
    if (strcmp(name, "gpt") == 0 || strcmp(name, "bot") == 0) return "assistant";
    return name;
}

/* Content is a string, or a list of typed parts whose texts follow each other. */
static bool content_of(const Reading *r, const json_t *content, Message *m) {
    if (json_is_string(content)) {
        m->content = json_string_value(content);
        m->len = json_string_length(content);
        return true;
    }
    Text text = {0};
    bool ok = json_is_array(content);
    for (size_t i = 0; ok && i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        const json_t *value = json_object_get(part, "text");
        if (!value) value = json_object_get(part, "value");
        const char *type = json_string_value(json_object_get(part, "type"));
        ok = json_is_string(value) && (!type || strcmp(type, "text") == 0);
        if (ok) text_addn(&text, json_string_value(value), json_string_length(value));
    }
    if (ok) {
        m->len = text.len;
        m->content = arena_strn(r->arena, text.len ? text.data : "", text.len);
    }
    text_free(&text);
    return ok;
}

static bool message_of(const Reading *r, const json_t *entry, Message *m) {
    const json_t *role = json_object_get(entry, "role"),
                 *content = json_object_get(entry, "content");
    if (!role) role = json_object_get(entry, "from");
    if (!content) content = json_object_get(entry, "value");
    if (!json_is_string(role)) return false;
    m->role = role_of(json_string_value(role));
    return content_of(r, content, m);
}

/* A list of messages, or one message by itself. */
static bool turns_of(const Reading *r, const json_t *value, Turns *turns) {
    bool one = json_is_object(value);
    size_t n = one ? 1 : json_array_size(value);
    if (!one && !json_is_array(value)) return false;
    turns->m = NEW_ARRAY(r->arena, Message, n + 1);
    for (size_t i = 0; i < n; i++)
        if (!message_of(r, one ? value : json_array_get(value, i), &turns->m[i])) return false;
    turns->n = (int)n;
    return true;
}

static TextSpan span_of(const json_t *v) {
    return (TextSpan){json_string_value(v), json_string_length(v)};
}

/* A system message of a column of its own goes before the prompt. */
static void put_system(const Reading *r, TextSpan system) {
    Turns *t = &r->out->turns[PROMPT];
    if (!system.len) return;
    Turns more = {NEW_ARRAY(r->arena, Message, t->n + 1), t->n + 1};
    more.m[0] = (Message){"system", system.s, system.len};
    memcpy(more.m + 1, t->m, sizeof *t->m * (size_t)t->n);
    *t = more;
}

static bool same_message(const Message *a, const Message *b) {
    return strcmp(a->role, b->role) == 0 && a->len == b->len &&
           memcmp(a->content, b->content, a->len) == 0;
}

static void one_turn(const Reading *r, int part, const char *role, TextSpan text) {
    Turns *t = &r->out->turns[part];
    t->m = NEW_ARRAY(r->arena, Message, 1);
    t->m[0] = (Message){role, text.s, text.len};
    t->n = 1;
}

/* `all`'s first n messages are the prompt, the others the answer of that side. */
static void cut_turns(const Reading *r, Turns all, int n, int side) {
    r->out->turns[PROMPT] = (Turns){all.m, n};
    r->out->turns[side] = (Turns){all.m + n, all.n - n};
}

/* ---- readers of single dialects -------------------------------------------------------------- */

static Verdict read_ids(const Reading *r) {
    static const char *const keys[NPART] = {"prompt_ids", "chosen_ids", "rejected_ids"};
    r->out->kind = EXAMPLE_IDS;
    for (int part = 0; part < NPART; part++) {
        const json_t *ids = json_object_get(r->record, keys[part]);
        if (!ids && part == REJECTED && r->options->sft) continue;
        if (!json_is_array(ids))
            return say(r, MALFORMED, "\"%s\" is not a list of ids", keys[part]);
        for (size_t i = 0; i < json_array_size(ids); i++) {
            const json_t *id = json_array_get(ids, i);
            if (!json_is_integer(id) || json_integer_value(id) < 0 ||
                json_integer_value(id) > INT32_MAX)
                return say(r, MALFORMED, "\"%s\"[%zu] is not a token id", keys[part], i);
        }
        if (json_array_size(ids) == 0)
            return say(r, part == PROMPT ? MALFORMED : EMPTY, "\"%s\" is empty", keys[part]);
        r->out->ids[part] = ids;
    }
    return GOOD;
}

/* Both sides are whole conversations: the prompt is what they have in common, at most all but one
 * message of the shorter. */
static Verdict implicit_chat(const Reading *r, Turns chosen, Turns rejected) {
    r->out->kind = EXAMPLE_CHAT;
    int n = 0, limit = chosen.n;
    if (rejected.m && rejected.n < limit) limit = rejected.n;
    while (n < limit - 1 && (!rejected.m || same_message(&chosen.m[n], &rejected.m[n]))) n++;
    if (n == 0)
        return say(r, DIFFERING, "\"chosen\" and \"rejected\" have no first message in common");
    if (rejected.m) cut_turns(r, rejected, n, REJECTED);
    cut_turns(r, chosen, n, CHOSEN);
    return GOOD;
}

static Verdict read_v1(const Reading *r) {
    Turns chosen = {0}, rejected = {0};
    if (!turns_of(r, json_object_get(r->record, "chosen_messages"), &chosen))
        return say(r, MALFORMED, "\"chosen_messages\" is not a list of messages");
    const json_t *other = json_object_get(r->record, "rejected_messages");
    if ((other || !r->options->sft) && !turns_of(r, other, &rejected))
        return say(r, MALFORMED, "\"rejected_messages\" is not a list of messages");
    return implicit_chat(r, chosen, rejected);
}

static Verdict read_openai(const Reading *r) {
    r->out->kind = EXAMPLE_CHAT;
    const json_t *input = json_object_get(json_object_get(r->record, "input"), "messages");
    const json_t *other = json_object_get(r->record, "non_preferred_output");
    if (!turns_of(r, input, &r->out->turns[PROMPT]))
        return say(r, MALFORMED, "\"input\".\"messages\" is not a list of messages");
    if (!turns_of(r, json_object_get(r->record, "preferred_output"), &r->out->turns[CHOSEN]))
        return say(r, MALFORMED, "\"preferred_output\" is not a list of messages");
    if ((other || !r->options->sft) && !turns_of(r, other, &r->out->turns[REJECTED]))
        return say(r, MALFORMED, "\"non_preferred_output\" is not a list of messages");
    return GOOD;
}

static Verdict read_sharegpt(const Reading *r) {
    r->out->kind = EXAMPLE_CHAT;
    const json_t *chosen = json_object_get(r->record, "chosen");
    const json_t *rejected = json_object_get(r->record, "rejected");
    Turns all = {0};
    if (!turns_of(r, json_object_get(r->record, "conversations"), &all))
        return say(r, MALFORMED, "\"conversations\" is not a list of {from, value}");
    bool whole = !chosen && r->options->sft && all.n > 1; /* the answer is its last message */
    cut_turns(r, all, whole ? all.n - 1 : all.n, CHOSEN);
    put_system(r, span_of(json_object_get(r->record, "system")));
    if (whole) return GOOD;
    if (!turns_of(r, chosen, &r->out->turns[CHOSEN]))
        return say(r, MALFORMED, "\"chosen\" is not a message {from, value}");
    if ((rejected || !r->options->sft) && !turns_of(r, rejected, &r->out->turns[REJECTED]))
        return say(r, MALFORMED, "\"rejected\" is not a message {from, value}");
    return GOOD;
}

/* Turns of a system message, where there is one, and a user's. */
static void ask(const Reading *r, TextSpan system, TextSpan question) {
    Turns *prompt = &r->out->turns[PROMPT];
    prompt->m = NEW_ARRAY(r->arena, Message, 2);
    if (system.len) prompt->m[prompt->n++] = (Message){"system", system.s, system.len};
    prompt->m[prompt->n++] = (Message){"user", question.s, question.len};
}

/* Orca's {system, question, ..} and, with `instruction` for the question, Alpaca's, whose `input`
 * follows the instruction on a line of its own. */
static Verdict read_question(const Reading *r, const char *key) {
    const json_t *system = json_object_get(r->record, "system");
    const json_t *question = json_object_get(r->record, key);
    const json_t *chosen = json_object_get(r->record, "chosen");
    const json_t *rejected = json_object_get(r->record, "rejected");
    const json_t *input = json_object_get(r->record, "input");
    if (!json_is_string(question)) return say(r, MALFORMED, "\"%s\" is not a string", key);
    if (!json_is_string(chosen)) return say(r, MALFORMED, "\"chosen\" is not a string");
    if (!json_is_string(rejected) && !(r->options->sft && !rejected))
        return say(r, MALFORMED, "\"rejected\" is not a string");
    if (system && !json_is_null(system) && !json_is_string(system))
        return say(r, MALFORMED, "\"system\" is not a string");
    TextSpan asked = span_of(question);
    if (r->out->dialect == DIALECT_ALPACA && json_string_length(input)) {
        char *both = arena_printf(r->arena, "%s\n%s", asked.s, json_string_value(input));
        asked = (TextSpan){both, strlen(both)};
    }
    r->out->kind = EXAMPLE_CHAT;
    ask(r, span_of(system), asked);
    one_turn(r, CHOSEN, "assistant", span_of(chosen));
    if (rejected) one_turn(r, REJECTED, "assistant", span_of(rejected));
    return GOOD;
}

/* ---- hh transcripts -------------------------------------------------------------------------- */

#define HUMAN     "\n\nHuman:"
#define ASSISTANT "\n\nAssistant:"

/* Where the last "\n\nAssistant:" ends, or NULL. */
static const char *last_answer(TextSpan t) {
    const char *found = NULL, *end = t.s + t.len;
    for (const char *p = t.s; (p = memmem(p, (size_t)(end - p), ASSISTANT, sizeof ASSISTANT - 1));)
        found = p += sizeof ASSISTANT - 1;
    return found;
}

/* The transcript as messages. */
static Turns transcript(const Reading *r, TextSpan t) {
    Turns turns = {0};
    int cap = 0;
    const char *end = t.s + t.len;
    for (const char *p = t.s; p < end;) {
        bool human = strncmp(p, HUMAN, sizeof HUMAN - 1) == 0;
        p += human ? sizeof HUMAN - 1 : sizeof ASSISTANT - 1;
        size_t left = (size_t)(end - p);
        const char *a = memmem(p, left, HUMAN, sizeof HUMAN - 1);
        const char *b = memmem(p, left, ASSISTANT, sizeof ASSISTANT - 1);
        const char *stop = a && (!b || a < b) ? a : b ? b : end;
        if (p < stop && *p == ' ') p++;
        Message m = {human ? "user" : "assistant", p, (size_t)(stop - p)};
        PUSH(r->arena, turns.m, turns.n, cap, m);
        p = stop;
    }
    return turns;
}

/* What follows the last "Assistant:", without the space in between. */
static TextSpan answer(const char *from, TextSpan transcript) {
    const char *end = transcript.s + transcript.len;
    if (from < end && *from == ' ') from++;
    return (TextSpan){from, (size_t)(end - from)};
}

static bool is_transcript(TextSpan t) {
    return t.len > sizeof HUMAN && strncmp(t.s, HUMAN, sizeof HUMAN - 1) == 0;
}

static Verdict read_hh(const Reading *r, TextSpan chosen, TextSpan rejected) {
    Example *e = r->out;
    e->dialect = DIALECT_HH;
    if (!chosen.s || (!rejected.s && !r->options->sft))
        return say(r, MALFORMED, "\"chosen\" and \"rejected\" are not both transcripts");
    const char *c = last_answer(chosen), *j = rejected.s ? last_answer(rejected) : NULL;
    if (!c || (rejected.s && !j))
        return say(r, MALFORMED, "a transcript has no \"\\n\\nAssistant:\"");
    size_t n = (size_t)(c - chosen.s);
    if (j && ((size_t)(j - rejected.s) != n || memcmp(chosen.s, rejected.s, n) != 0))
        return say(r, DIFFERING, "\"chosen\" and \"rejected\" have different prompts");
    e->kind = r->template->kind == TEMPLATE_NONE || r->template->kind == TEMPLATE_PLAIN
                  ? EXAMPLE_TEXT
                  : EXAMPLE_CHAT;
    if (e->kind == EXAMPLE_TEXT) {
        e->text[PROMPT] = (TextSpan){chosen.s, n};
        e->text[CHOSEN] = (TextSpan){c, chosen.len - n};
        if (j) e->text[REJECTED] = (TextSpan){j, rejected.len - n};
        return GOOD;
    }
    e->turns[PROMPT] = transcript(r, (TextSpan){chosen.s, n - (sizeof ASSISTANT - 1)});
    one_turn(r, CHOSEN, "assistant", answer(c, chosen));
    if (j) one_turn(r, REJECTED, "assistant", answer(j, rejected));
    return GOOD;
}

/* ---- TRL ------------------------------------------------------------------------------------- */

/* No prompt: it is the longest common prefix of characters, at most all but the last of the
 * shorter; a space before the first difference goes to the answers. */
static Verdict implicit_text(const Reading *r, TextSpan chosen, TextSpan rejected) {
    if (!r->named && is_transcript(chosen)) return read_hh(r, chosen, rejected);
    r->out->dialect = DIALECT_TRL_IMPLICIT;
    if (!rejected.s) return say(r, MALFORMED, "\"prompt\" is missing");
    size_t n = 0, limit = chosen.len < rejected.len ? chosen.len : rejected.len;
    while (n < limit && chosen.s[n] == rejected.s[n]) n++;
    bool whole = n == limit;
    if (whole && n) n--; /* one is the other's beginning: its last character is its answer */
    while (n && n < chosen.len && ((unsigned char)chosen.s[n] & 0xC0) == 0x80) n--;
    if (!whole && n && chosen.s[n - 1] == ' ') n--;
    r->out->kind = EXAMPLE_TEXT;
    r->out->text[PROMPT] = (TextSpan){chosen.s, n};
    r->out->text[CHOSEN] = (TextSpan){chosen.s + n, chosen.len - n};
    r->out->text[REJECTED] = (TextSpan){rejected.s + n, rejected.len - n};
    return GOOD;
}

static bool is_user(const Turns *t) {
    return t->n > 1 && strcmp(t->m[0].role, "assistant") != 0;
}

/* A prompt and an answer of which at least one is a list of messages. */
static Verdict explicit_chat(const Reading *r, const json_t *const value[NPART],
                             const char *const key[NPART]) {
    static const char *const role[NPART] = {"user", "assistant", "assistant"};
    r->out->kind = EXAMPLE_CHAT;
    if (r->out->dialect == DIALECT_TRL)
        r->out->dialect = json_is_string(value[PROMPT]) && !json_is_string(value[CHOSEN])
                              ? DIALECT_TRL_MIXED
                          : json_is_string(value[PROMPT]) ? DIALECT_TRL
                                                          : DIALECT_TRL_CHAT;
    for (int part = 0; part < NPART; part++) {
        if (!value[part]) continue;
        if (json_is_string(value[part]))
            one_turn(r, part, role[part], span_of(value[part]));
        else if (!turns_of(r, value[part], &r->out->turns[part]))
            return say(r, MALFORMED, "\"%s\" is neither a string nor a list of messages",
                       key[part]);
    }
    /* UltraFeedback's form: beside a prompt the sides are whole conversations */
    if (json_is_string(value[PROMPT]) && is_user(&r->out->turns[CHOSEN]))
        return implicit_chat(r, r->out->turns[CHOSEN], r->out->turns[REJECTED]);
    return GOOD;
}

/* The column that was named for it holds text, or nothing. */
static Verdict read_system(const Reading *r, const json_t *system) {
    if (system && !json_is_null(system) && !json_is_string(system))
        return say(r, MALFORMED, "\"%s\" is not a string", r->options->system_key);
    put_system(r, span_of(system));
    return GOOD;
}

/* Both sides hold the prompt, as conversations or as strings. */
static Verdict implicit(const Reading *r, const json_t *const value[NPART],
                        const char *const key[NPART]) {
    Turns chosen = {0}, rejected = {0};
    if (json_is_string(value[CHOSEN]) && (!value[REJECTED] || json_is_string(value[REJECTED])))
        return implicit_text(r, span_of(value[CHOSEN]), span_of(value[REJECTED]));
    if (!turns_of(r, value[CHOSEN], &chosen) ||
        (value[REJECTED] && !turns_of(r, value[REJECTED], &rejected)))
        return say(r, MALFORMED,
                   "\"%s\" and \"%s\" are neither both strings nor both lists of messages",
                   key[CHOSEN], key[REJECTED]);
    r->out->dialect = DIALECT_TRL_CHAT_IMPLICIT;
    return implicit_chat(r, chosen, rejected);
}

static Verdict read_trl(const Reading *r) {
    const PairsOptions *o = r->options;
    const char *key[NPART] = {o->prompt_key ? o->prompt_key : "prompt",
                              o->chosen_key ? o->chosen_key : "chosen",
                              o->rejected_key ? o->rejected_key : "rejected"};
    bool completion = !lookup(r->record, key[CHOSEN]) && json_object_get(r->record, "completion");
    if (completion) key[CHOSEN] = "completion";
    r->out->dialect = completion ? DIALECT_COMPLETION : DIALECT_TRL;
    const json_t *value[NPART], *system = o->system_key ? lookup(r->record, o->system_key) : NULL;
    bool strings = true;
    for (int part = 0; part < NPART; part++) {
        value[part] = lookup(r->record, key[part]);
        if (part == REJECTED && o->sft && json_is_null(value[part])) value[part] = NULL;
        if (value[part]) strings = strings && json_is_string(value[part]);
    }
    if (!value[CHOSEN])
        return say(r, MALFORMED,
                   "\"%s\" is missing (data.columns.chosen = \"..\" names another key)",
                   key[CHOSEN]);
    if (!value[PROMPT] && o->prompt_key)
        return say(r, MALFORMED, "\"%s\" (data.columns.prompt) is missing", o->prompt_key);
    if (!value[REJECTED] && !o->sft)
        return say(r, MALFORMED,
                   "\"%s\" is missing: without it this is data for an objective that "
                   "has no rejected side",
                   key[REJECTED]);
    if (!value[PROMPT]) return implicit(r, value, key);
    bool wrap = r->template->named && r->template->kind != TEMPLATE_PLAIN;
    if (!strings || wrap || json_string_length(system)) {
        Verdict v = explicit_chat(r, value, key);
        return v == GOOD ? read_system(r, system) : v;
    }
    r->out->kind = EXAMPLE_TEXT;
    for (int part = 0; part < NPART; part++) r->out->text[part] = span_of(value[part]);
    return GOOD;
}

static Verdict read_transcripts(const Reading *r) {
    const json_t *chosen = json_object_get(r->record, "chosen"),
                 *rejected = json_object_get(r->record, "rejected");
    return read_hh(r, span_of(chosen), span_of(rejected));
}

static Verdict read_orca(const Reading *r) {
    return read_question(r, "question");
}

static Verdict read_alpaca(const Reading *r) {
    return read_question(r, "instruction");
}

static Verdict read_messages(const Reading *r) {
    Turns all = {0};
    r->out->kind = EXAMPLE_CHAT;
    if (!turns_of(r, json_object_get(r->record, "messages"), &all) || all.n < 2)
        return say(r, MALFORMED, "\"messages\" is not a list of two messages or more");
    cut_turns(r, all, all.n - 1, CHOSEN);
    return GOOD;
}

static Verdict read_text(const Reading *r) {
    const json_t *text = json_object_get(r->record, "text");
    if (!json_is_string(text)) return say(r, MALFORMED, "\"text\" is not a string");
    r->out->kind = EXAMPLE_TEXT;
    r->out->text[PROMPT] = (TextSpan){"", 0};
    r->out->text[CHOSEN] = span_of(text);
    return GOOD;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static bool blank(const char *s, size_t len) {
    for (size_t i = 0; i < len;) {
        int n = utf8_length(s + i, len - i);
        if (n == 0 || !utf8_is_space(utf8_decode(s + i, n))) return false;
        i += (size_t)n;
    }
    return true;
}

/* An answer nobody wrote: no text at all, or a last message without any. */
static Verdict check_empty(const Reading *r) {
    static const char *const name[NPART] = {"the prompt", "\"chosen\"", "\"rejected\""};
    const Example *e = r->out;
    for (int part = CHOSEN; part < NPART; part++) {
        const Turns *t = &e->turns[part];
        if (e->kind == EXAMPLE_TEXT && e->text[part].s && blank(e->text[part].s, e->text[part].len))
            return say(r, EMPTY, "%s is empty", name[part]);
        if (e->kind == EXAMPLE_CHAT && t->m &&
            (t->n == 0 || blank(t->m[t->n - 1].content, t->m[t->n - 1].len)))
            return say(r, EMPTY, "%s is empty", name[part]);
    }
    if (e->kind == EXAMPLE_CHAT && e->turns[PROMPT].n == 0)
        return say(r, MALFORMED, "%s has no messages", name[PROMPT]);
    return GOOD;
}

static Verdict unknown(const Reading *r) {
    const char *key, *seen = "";
    json_t *value;
    int n = 0;
    json_object_foreach((json_t *)r->record, key, value) {
        if (n++ < 8) seen = arena_printf(r->arena, "%s%s\"%s\"", seen, *seen ? ", " : "", key);
    }
    return say(r, MALFORMED,
               "expected keys like \"prompt\", \"chosen\" and \"rejected\"; found %s%s\n"
               "  others are named: --set data.columns.prompt=.. --set data.columns.chosen=.. "
               "--set data.columns.rejected=..",
               n ? seen : "none", n > 8 ? ", ..." : "");
}

/* A dialect: the word of data.dialect, and the keys that tell it: one of the first, and the second
 * where there is one. */
typedef struct Reader {
    const char *word, *key, *other;
    Dialect dialect;
    bool sft; /* only for objectives with one side */
    Verdict (*read)(const Reading *r);
} Reader;

/* In the order in which keys are looked for. */
static const Reader readers[] = {
    {"ids", "prompt_ids", NULL, DIALECT_IDS, false, read_ids},
    {"ids", "chosen_ids", NULL, DIALECT_IDS, false, read_ids},
    {"v1", "chosen_messages", NULL, DIALECT_V1, false, read_v1},
    {"sharegpt", "conversations", NULL, DIALECT_SHAREGPT, false, read_sharegpt},
    {"openai", "preferred_output", NULL, DIALECT_OPENAI, false, read_openai},
    {"orca", "question", "chosen", DIALECT_ORCA, false, read_orca},
    {"alpaca", "instruction", "chosen", DIALECT_ALPACA, false, read_alpaca},
    {"trl", "chosen", NULL, DIALECT_TRL, false, read_trl},
    {"completion", "prompt", "completion", DIALECT_COMPLETION, false, read_trl},
    {"messages", "messages", NULL, DIALECT_MESSAGES, true, read_messages},
    {"text", "text", NULL, DIALECT_TEXT, true, read_text},
    {"hh", NULL, NULL, DIALECT_HH, false, read_transcripts},
};

static const Reader *reader_of(const Reading *r) {
    const PairsOptions *o = r->options;
    bool mapped = o->prompt_key || o->chosen_key || o->rejected_key || o->system_key;
    const char *word = r->named ? o->dialect : mapped ? "trl" : NULL;
    for (size_t i = 0; i < COUNT(readers); i++) {
        const Reader *x = &readers[i];
        if (word ? strcmp(x->word, word) == 0
                 : x->key && (!x->sft || o->sft) && json_object_get(r->record, x->key) &&
                       (!x->other || json_object_get(r->record, x->other)))
            return x;
    }
    return NULL;
}

/* Columns whose meaning is not ours: pictures are refused, tools are not written. */
static Verdict check_columns(const Reading *r) {
    static const char *const pictures[] = {"image", "images"};
    static const char *const unread[] = {"tools", "chat_template_kwargs"};
    for (size_t i = 0; i < COUNT(pictures); i++) {
        const json_t *v = json_object_get(r->record, pictures[i]);
        if (v && !json_is_null(v) && !(json_is_array(v) && json_array_size(v) == 0))
            return say(r, MALFORMED, "\"%s\": pictures are not understood", pictures[i]);
    }
    for (size_t i = 0; i < COUNT(unread); i++) {
        const json_t *v = json_object_get(r->record, unread[i]);
        r->out->unread |= json_array_size(v) || json_object_size(v) || json_string_length(v);
    }
    return GOOD;
}

Verdict dialect_read(Arena *arena, const json_t *record, const PairsOptions *options,
                     const Template *template, Example *out, const char **why) {
    Reading r = {arena, record, options, template, out, why, false};
    r.named = options->dialect && strcmp(options->dialect, "auto") != 0;
    *out = (Example){0};
    if (!json_is_object(record)) return say(&r, MALFORMED, "the record is not a JSON object");
    const Reader *reader = reader_of(&r);
    if (!reader) return unknown(&r);
    out->dialect = reader->dialect;
    Verdict v = reader->read(&r);
    if (v == GOOD) v = check_columns(&r);
    return v == GOOD && out->kind != EXAMPLE_IDS ? check_empty(&r) : v;
}
