/* template.c: chat templates (template.h).
 *
 * A template writes to a sink, either control tokens or text.  The sink collects the text between
 * two control tokens and encodes it as one piece, or prints everything.
 */
#include "template.h"
#include "utf8.h"

#include <jansson.h>
#include <stdlib.h> /* free */
#include <string.h> /* strcmp */

const char *const template_names[] = {"none", "plain", "llama3", "llama3.1", "chatml", "llama2"};
#define CHOICES "plain, llama3, llama3.1, chatml or llama2"

typedef struct Sink {
    const Template *t;
    Text run;  /* text since the last control token */
    Ids *ids;  /* where ids go, or NULL */
    Text *out; /* where text goes, or NULL */
} Sink;

/* ---- the sink -------------------------------------------------------------------------------- */

static void flush(Sink *s) {
    if (s->run.len && s->ids)
        tokenizer_encode(s->t->tokenizer, s->run.data, s->run.len, false, s->ids);
    if (s->run.len && s->out) text_addn(s->out, s->run.data, s->run.len);
    s->run.len = 0;
}

static void put(Sink *s, const char *text) {
    text_addn(&s->run, text, strlen(text));
}

static void token(Sink *s, int32_t id) {
    if (id < 0) return;
    flush(s);
    const char *name = tokenizer_piece(s->t->tokenizer, id);
    if (s->ids) ids_push(s->ids, id);
    if (s->out && name) text_addn(s->out, name, strlen(name));
}

static void control(Sink *s, const char *name) {
    token(s, tokenizer_id(s->t->tokenizer, name));
}

/* What Python's strip() takes away at both ends. */
static bool strippable(const char *s, int n) {
    uint32_t c = utf8_decode(s, n);
    return utf8_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

static void put_trimmed(Sink *s, const char *text, size_t len) {
    while (len) {
        int n = utf8_length(text, len);
        if (n == 0 || !strippable(text, n)) break;
        text += n, len -= (size_t)n;
    }
    while (len) {
        size_t at = len - 1;
        while (at && ((unsigned char)text[at] & 0xC0) == 0x80) at--;
        int n = utf8_length(text + at, len - at);
        if (n == 0 || !strippable(text + at, n)) break;
        len = at;
    }
    text_addn(&s->run, text, len);
}

static bool is(const Message *m, const char *role) {
    return strcmp(m->role, role) == 0;
}

/* ---- the built-in templates ------------------------------------------------------------------ */

static void header(Sink *s, const char *role) {
    control(s, "<|start_header_id|>");
    put(s, role);
    control(s, "<|end_header_id|>");
    put(s, "\n\n");
}

static bool llama3(Sink *s, const Message *m, int n, bool generation, Err *err) {
    token(s, s->t->tokenizer->bos);
    if (s->t->kind == TEMPLATE_LLAMA31) {
        header(s, "system");
        put(s, "Cutting Knowledge Date: December 2023\nToday Date: ");
        put(s, s->t->date);
        put(s, "\n\n");
        if (is(m, "system")) {
            put_trimmed(s, m->content, m->len);
            m++, n--;
        }
        control(s, "<|eot_id|>");
    }
    for (int i = 0; i < n; i++) {
        if (s->t->kind == TEMPLATE_LLAMA31 && (is(&m[i], "tool") || is(&m[i], "ipython")))
            return fail(err, EXIT_IO, "messages of role \"%s\" are not understood", m[i].role);
        header(s, m[i].role);
        put_trimmed(s, m[i].content, m[i].len);
        control(s, "<|eot_id|>");
    }
    if (generation) header(s, "assistant");
    return true;
}

static void chatml_turn(Sink *s, const char *role, const char *content, size_t len) {
    control(s, "<|im_start|>");
    put(s, role);
    put(s, "\n");
    text_addn(&s->run, content, len);
    control(s, "<|im_end|>");
    put(s, "\n");
}

static bool chatml(Sink *s, const Message *m, int n, bool generation, Err *err) {
    (void)err;
    const char *system = s->t->system;
    if (system && !is(m, "system")) chatml_turn(s, "system", system, strlen(system));
    for (int i = 0; i < n; i++) chatml_turn(s, m[i].role, m[i].content, m[i].len);
    if (generation) {
        control(s, "<|im_start|>");
        put(s, "assistant\n");
    }
    return true;
}

static void llama2_user(Sink *s, const Message *system, const Message *m) {
    Text content = {0};
    if (system) {
        text_add(&content, "<<SYS>>\n");
        text_addn(&content, system->content, system->len);
        text_add(&content, "\n<</SYS>>\n\n");
    }
    text_addn(&content, m->content, m->len);
    token(s, s->t->tokenizer->bos);
    put(s, "[INST] ");
    put_trimmed(s, content.data, content.len);
    put(s, " [/INST]");
    text_free(&content);
}

static bool llama2(Sink *s, const Message *m, int n, bool generation, Err *err) {
    (void)generation; /* a user's turn ends as the assistant's begins */
    const Message *system = is(m, "system") ? m : NULL;
    if (system) m++, n--;
    for (int i = 0; i < n; i++) {
        if (!is(&m[i], i % 2 ? "assistant" : "user"))
            return fail(err, EXIT_IO,
                        "llama2's template wants user and assistant in turn, not \"%s\" as "
                        "message %d",
                        m[i].role, i + 1);
        if (i % 2 == 0) {
            llama2_user(s, i == 0 ? system : NULL, &m[i]);
            continue;
        }
        put(s, " ");
        put_trimmed(s, m[i].content, m[i].len);
        put(s, " ");
        token(s, s->t->tokenizer->eos);
    }
    return true;
}

static bool plain(Sink *s, const Message *m, int n, bool generation, Err *err) {
    (void)err;
    if (s->t->tokenizer->adds_bos) token(s, s->t->tokenizer->bos);
    for (int i = 0; i < n; i++) {
        if (i) put(s, "\n");
        text_addn(&s->run, m[i].content, m[i].len);
    }
    if (generation)
        put(s, "\n");
    else
        token(s, s->t->tokenizer->eos);
    return true;
}

static bool render(Sink *s, const Message *m, int n, bool generation, Err *err) {
    bool ok = false;
    if (n < 1)
        fail(err, EXIT_IO, "a conversation has no messages");
    else if (s->t->kind == TEMPLATE_NONE)
        fail(err, EXIT_INPUT,
             "a conversation needs a chat template and the checkpoint has none: set data.template "
             "to " CHOICES);
    else if (s->t->kind == TEMPLATE_PLAIN)
        ok = plain(s, m, n, generation, err);
    else if (s->t->kind == TEMPLATE_CHATML)
        ok = chatml(s, m, n, generation, err);
    else if (s->t->kind == TEMPLATE_LLAMA2)
        ok = llama2(s, m, n, generation, err);
    else
        ok = llama3(s, m, n, generation, err);
    flush(s);
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

/* ---- which template a checkpoint has --------------------------------------------------------- */

/* The checkpoint's Jinja source (malloc), or NULL; err only for files that can't be read. */
static char *jinja_source(const char *dir, Err *err) {
    Arena *arena = arena_new();
    char *own = path_join(arena, dir, "chat_template.jinja");
    char *config = path_join(arena, dir, "tokenizer_config.json"), *source = NULL;
    size_t len;
    if (file_exists(own)) {
        source = file_read(own, &len, err);
    } else if (file_exists(config)) {
        json_error_t e;
        char *text = file_read(config, &len, err);
        json_t *root = text ? json_loadb(text, len, 0, &e) : NULL;
        if (text && !root) fail(err, EXIT_IO, "%s:%d: %s", config, e.line, e.text);
        const json_t *v = json_object_get(root, "chat_template");
        for (size_t i = 0; json_is_array(v) && i < json_array_size(v); i++) {
            const json_t *named = json_array_get(v, i);
            const char *name = json_string_value(json_object_get(named, "name"));
            if (name && strcmp(name, "default") == 0) v = json_object_get(named, "template");
        }
        if (json_is_string(v)) source = strdup(json_string_value(v));
        json_decref(root);
        free(text);
    }
    arena_free(arena);
    return source;
}

/* The text of a default system message: what stands between the turn's head and its end in one
 * literal. */
static const char *default_system(const char *source) {
    const char *head = "<|im_start|>system";
    for (const char *p = source; (p = strstr(p, head));) {
        p += strlen(head);
        if (strncmp(p, "\\n", 2) == 0)
            p += 2;
        else if (*p == '\n')
            p++;
        else
            continue;
        const char *end = strstr(p, "<|im_end|>");
        if (end && end > p && *p != '\'' && *p != '"' && *p != '{' &&
            !memchr(p, '\'', (size_t)(end - p)))
            return intern_n(p, (size_t)(end - p));
    }
    return NULL;
}

static bool detect(Template *out, const char *dir, Err *err) {
    char *source = jinja_source(dir, err);
    if (err->code) return false;
    if (!source) return true; /* TEMPLATE_NONE */
    bool headers = strstr(source, "<|start_header_id|>") && strstr(source, "<|end_header_id|>");
    if (headers && strstr(source, "Cutting Knowledge Date")) {
        out->kind = TEMPLATE_LLAMA31;
    } else if (headers) {
        out->kind = TEMPLATE_LLAMA3;
    } else if (strstr(source, "<|im_start|>") && !strstr(source, "think>")) {
        out->kind = TEMPLATE_CHATML;
        out->system = default_system(source);
    } else if (strstr(source, "[INST]") && strstr(source, "<<SYS>>")) {
        out->kind = TEMPLATE_LLAMA2;
    } else {
        fail(err, EXIT_INPUT,
             "%s: its chat template is not one of those known here; set "
             "data.template to " CHOICES,
             dir);
    }
    free(source);
    return err->code == 0;
}

/* Whether the tokenizer has the control tokens of a template. */
static bool has_tokens(const Template *t, Err *err) {
    static const char *const llama[] = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
    static const char *const im[] = {"<|im_start|>", "<|im_end|>"};
    bool headers = t->kind == TEMPLATE_LLAMA3 || t->kind == TEMPLATE_LLAMA31;
    const char *const *need = headers ? llama : im;
    int n = headers ? 3 : t->kind == TEMPLATE_CHATML ? 2 : 0;
    for (int i = 0; i < n; i++)
        if (tokenizer_id(t->tokenizer, need[i]) < 0)
            return fail(err, EXIT_INPUT, "template %s: the tokenizer %s has no token \"%s\"",
                        template_names[t->kind], t->tokenizer->path, need[i]);
    if ((headers || t->kind == TEMPLATE_LLAMA2) && t->tokenizer->bos < 0)
        return fail(err, EXIT_INPUT, "template %s: the tokenizer %s has no bos token",
                    template_names[t->kind], t->tokenizer->path);
    return true;
}

bool template_open(Template *out, const char *name, const char *dir, Tokenizer *tokenizer,
                   const char *date, Err *err) {
    *out = (Template){.tokenizer = tokenizer, .date = date ? date : "26 Jul 2024"};
    if (!name || strcmp(name, "auto") == 0)
        return detect(out, dir, err) && (out->kind == TEMPLATE_NONE || has_tokens(out, err));
    if (strcmp(name, "none") == 0) return true;
    out->named = true;
    for (size_t i = 1; i < COUNT(template_names); i++)
        if (strcmp(name, template_names[i]) == 0) out->kind = (TemplateKind)i;
    if (out->kind == TEMPLATE_NONE)
        return fail(err, EXIT_INPUT, "there is no template \"%s\"; known are auto, none, " CHOICES,
                    name);
    return has_tokens(out, err);
}
