/* template.c: a conversation through the pieces of a template (template.h).
 *
 * Pieces are written to a sink, as control tokens or as text.  The sink collects the text between
 * two control tokens and encodes it as one piece, or prints everything.
 */
#include "template_piece.h"
#include "utf8.h"

#include <string.h> /* strcmp */

typedef struct Sink {
    const Template *t;
    Text run;   /* text since the last control token */
    bool begun; /* something was put out before the run */
    bool strip; /* that token takes the white space behind it */
    Ids *ids;   /* where ids go, or NULL */
    Text *out;  /* where text goes, or NULL */
} Sink;

/* ---- parts of a piece ------------------------------------------------------------------------ */

static bool is_word(const Part *part, const char *word) {
    return part->n == strlen(word) && memcmp(part->s, word, part->n) == 0;
}

Part piece_next(const char **at) {
    static const struct {
        const char *word;
        PartKind kind;
    } words[] = {{"content", PART_CONTENT}, {"content|trim", PART_TRIMMED},
                 {"role", PART_ROLE},       {"date", PART_DATE},
                 {"bos", PART_BOS},         {"eos", PART_EOS},
                 {"bos?", PART_BOS_IF},     {"eos?", PART_EOS_IF}};
    const char *s = *at;
    if (!*s) return (Part){PART_END, s, 0};
    if ((*s == '{' || *s == '}') && s[1] == *s) {
        *at = s + 2;
        return (Part){PART_TEXT, s, 1};
    }
    if (*s != '{' && *s != '}') {
        size_t n = strcspn(s, "{}");
        *at = s + n;
        return (Part){PART_TEXT, s, n};
    }
    Part part = {PART_TOKEN, s + 1, strcspn(s + 1, "{}")};
    if (*s == '}' || s[1 + part.n] != '}' || part.n == 0) {
        *at = s + 1;
        return (Part){PART_BAD, s, 1};
    }
    *at = s + part.n + 2;
    for (size_t i = 0; i < COUNT(words); i++)
        if (is_word(&part, words[i].word)) part.kind = words[i].kind;
    return part;
}

int32_t part_token(const Part *part, const Tokenizer *t) {
    char name[256];
    switch (part->kind) {
    case PART_BOS:
        return t->bos;
    case PART_EOS:
    case PART_EOS_IF:
        return t->eos;
    case PART_BOS_IF:
        return t->adds_bos ? t->bos : -1;
    case PART_TOKEN:
        if (part->n >= sizeof name) return -1;
        memcpy(name, part->s, part->n);
        name[part->n] = 0;
        return tokenizer_added(t, name);
    default:
        return -1;
    }
}

/* ---- the sink -------------------------------------------------------------------------------- */

/* What Python's strip() takes away at both ends. */
static bool strippable(const char *s, int n) {
    uint32_t c = utf8_decode(s, n);
    return utf8_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

static void trim_left(const char **text, size_t *len) {
    for (int n; *len && (n = utf8_length(*text, *len)) && strippable(*text, n);)
        *text += n, *len -= (size_t)n;
}

static void trim_right(const char *text, size_t *len) {
    while (*len) {
        size_t at = *len - 1;
        while (at && ((unsigned char)text[at] & 0xC0) == 0x80) at--;
        int n = utf8_length(text + at, *len - at);
        if (n == 0 || !strippable(text + at, n)) break;
        *len = at;
    }
}

/* Ends the run; `strip`: what follows takes the white space at its end. */
static void flush(Sink *s, bool strip) {
    const char *text = s->run.data;
    size_t len = s->run.len;
    if (len && s->out) text_addn(s->out, text, len);
    if (len && s->strip) trim_left(&text, &len);
    if (len && strip) trim_right(text, &len);
    if (len && s->ids && s->begun)
        tokenizer_encode_more(s->t->tokenizer, text, len, s->ids);
    else if (len && s->ids)
        tokenizer_encode(s->t->tokenizer, text, len, false, s->ids);
    s->begun = s->begun || len;
    s->run.len = 0;
}

static void put_token(Sink *s, int32_t id) {
    if (id < 0) return;
    bool left, right;
    tokenizer_strips(s->t->tokenizer, id, &left, &right);
    flush(s, left);
    const char *name = tokenizer_piece(s->t->tokenizer, id);
    if (s->ids) ids_push(s->ids, id);
    if (s->out && name) text_addn(s->out, name, strlen(name));
    s->strip = right;
    s->begun = true;
}

/* ---- pieces ---------------------------------------------------------------------------------- */

static bool is(const Message *m, const char *role) {
    return strcmp(m->role, role) == 0;
}

static void put_piece(Sink *s, const char *piece, const Message *m);

/* The content of a message; a folded system message is its beginning. */
static void put_content(Sink *s, const Message *m, const Message *system, bool trim) {
    Text joined = {0};
    const char *text = m->content;
    size_t len = m->len;
    if (system) {
        Sink inner = {.t = s->t, .out = &joined};
        put_piece(&inner, s->t->def.system, system);
        flush(&inner, false);
        text_free(&inner.run);
        text_addn(&joined, text, len);
        text = joined.data;
        len = joined.len;
    }
    if (trim) {
        trim_left(&text, &len);
        trim_right(text, &len);
    }
    text_addn(&s->run, text, len);
    text_free(&joined);
}

static void put_folded(Sink *s, const char *piece, const Message *m, const Message *system) {
    for (Part part; piece && (part = piece_next(&piece)).kind != PART_END;) {
        if (part.kind == PART_TEXT)
            text_addn(&s->run, part.s, part.n);
        else if (part.kind == PART_DATE)
            text_addn(&s->run, s->t->date, strlen(s->t->date));
        else if (part.kind == PART_ROLE)
            text_addn(&s->run, m->role, strlen(m->role));
        else if (part.kind == PART_CONTENT || part.kind == PART_TRIMMED)
            put_content(s, m, system, part.kind == PART_TRIMMED);
        else
            put_token(s, part_token(&part, s->t->tokenizer));
    }
}

static void put_piece(Sink *s, const char *piece, const Message *m) {
    put_folded(s, piece, m, NULL);
}

static bool put_message(Sink *s, const Message *m, const Message *system, Err *err) {
    const TemplateDef *d = &s->t->def;
    bool tool = is(m, "tool") || is(m, "ipython") || is(m, "function");
    const char *piece = tool                 ? d->tool
                        : is(m, "system")    ? d->system
                        : is(m, "user")      ? d->user
                        : is(m, "assistant") ? d->assistant
                                             : NULL;
    if (!piece && !tool) piece = d->message;
    if (!piece)
        return fail(err, EXIT_IO, "template %s: messages of role \"%s\" are not understood",
                    d->name, m->role);
    put_folded(s, piece, m, system);
    return true;
}

/* ---- conversations --------------------------------------------------------------------------- */

static bool takes_turns(const TemplateDef *d, const Message *m, int n, Err *err) {
    if (n == 0)
        return fail(err, EXIT_IO, "template %s: a conversation of a system message alone", d->name);
    for (int i = 0; i < n; i++)
        if (!is(&m[i], i % 2 ? "assistant" : "user"))
            return fail(err, EXIT_IO,
                        "%s's template wants user and assistant in turn, not \"%s\" as message %d",
                        d->name, m[i].role, i + 1);
    return true;
}

static bool put_messages(Sink *s, const Message *m, int n, bool generation, Err *err) {
    const TemplateDef *d = &s->t->def;
    size_t length = d->default_system ? strlen(d->default_system) : 0;
    Message standing = {"system", d->default_system, length};
    const Message *system = is(m, "system") ? m : d->default_system ? &standing : NULL;
    if (system == m) m++, n--;
    if (d->fold_system && !takes_turns(d, m, n, err)) return false;
    bool first = true;
    put_piece(s, d->begin, NULL);
    if (system && !d->fold_system) {
        if (!put_message(s, system, NULL, err)) return false;
        first = false;
    }
    for (int i = 0; i < n; i++) {
        if (!first) put_piece(s, d->between, NULL);
        first = false;
        if (!put_message(s, &m[i], d->fold_system && i == 0 ? system : NULL, err)) return false;
    }
    put_piece(s, generation ? d->generation : d->end, NULL);
    return true;
}

static bool render(Sink *s, const Message *m, int n, bool generation, Err *err) {
    bool ok = false;
    if (n < 1)
        fail(err, EXIT_IO, "a conversation has no messages");
    else if (s->t->kind == TEMPLATE_NONE)
        fail(err, EXIT_INPUT,
             "a conversation needs a chat template and the checkpoint has none: set data.template "
             "to %s",
             template_choices);
    else
        ok = put_messages(s, m, n, generation, err);
    flush(s, false);
    text_free(&s->run);
    return ok;
}

bool template_encode(const Template *t, const Message *m, int n, bool generation, Ids *out,
                     Err *err) {
    Sink s = {.t = t, .ids = out};
    return render(&s, m, n, generation, err);
}

bool template_text(const Template *t, const Message *m, int n, bool generation, Text *out,
                   Err *err) {
    Sink s = {.t = t, .out = out};
    return render(&s, m, n, generation, err);
}

int32_t template_stop(const Template *t) {
    const TemplateDef *d = &t->def;
    if (t->kind == TEMPLATE_NONE) return -1;
    const char *answer = d->assistant ? d->assistant : d->message, *places[] = {answer, d->end};
    bool behind = false;
    for (size_t i = 0; i < COUNT(places); i++)
        for (Part part; places[i] && (part = piece_next(&places[i])).kind != PART_END;) {
            int32_t id = part_token(&part, t->tokenizer);
            if (behind && id >= 0) return id;
            behind = behind || part.kind == PART_CONTENT || part.kind == PART_TRIMMED;
        }
    return -1;
}
