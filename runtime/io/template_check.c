/* template_check.c: what is wrong with the pieces of a template, alone and for a tokenizer.
 *
 * Relies on template_piece.h.  Promises: a definition without faults renders; the ids of a prompt
 * are the first ids of the prompt with its answer, so an answer is what follows them.
 */
#include "template_piece.h"

#include <string.h> /* strlen */

#define KEY(field, is_message)                                                                     \
    { #field, offsetof(TemplateDef, field), is_message }
const PieceKey piece_keys[] = {KEY(begin, false),    KEY(system, true), KEY(user, true),
                               KEY(assistant, true), KEY(tool, true),   KEY(message, true),
                               KEY(between, false),  KEY(end, false),   KEY(generation, false)};
const int piece_count = COUNT(piece_keys);

typedef struct Check {
    const TemplateDef *def;
    const Tokenizer *t;
    TemplateFault *say;
    void *self;
    const PieceKey *key;
    const char *piece;
} Check;

static void fault(const Check *c, const Part *part, const char *format, ...) PRINTF(3, 4);
static void fault(const Check *c, const Part *part, const char *format, ...) {
    Text text = {0};
    va_list args;
    va_start(args, format);
    text_vadd(&text, format, args);
    va_end(args);
    c->say(c->self, c->key->key, part ? (size_t)(part->s - c->piece) : 0,
           part ? part->n : strlen(c->piece), text.data);
    text_free(&text);
}

/* Text that Hugging Face would read as a control token. */
static void check_text(const Check *c, const Part *part) {
    for (size_t at = 0, n; c->t && at < part->n; at += n) {
        Part rest = {PART_TEXT, part->s + at, part->n - at};
        n = 1;
        int32_t id = tokenizer_special_at(c->t, rest.s, rest.n, &n);
        rest.n = n;
        if (id >= 0)
            fault(c, &rest, "`%.*s` is a control token of %s: write `{%.*s}`", (int)n, rest.s,
                  c->t->path, (int)n, rest.s);
    }
}

static void check_token(const Check *c, const Part *part) {
    int32_t id = c->t ? part_token(part, c->t) : 0;
    if (c->def->fold_system && strcmp(c->key->key, "system") == 0)
        fault(c, part, "a folded `system` is part of a user's text: it has no control tokens");
    else if (id < 0 && part->kind == PART_TOKEN)
        fault(c, part, "the tokenizer %s has no token `%.*s`", c->t->path, (int)part->n, part->s);
    else if (id < 0)
        fault(c, part, "the tokenizer %s names no %s token", c->t->path,
              part->kind == PART_BOS ? "bos" : "eos");
}

static void check_piece(const Check *c) {
    int contents = 0;
    const char *at = c->piece;
    for (Part part; (part = piece_next(&at)).kind != PART_END;) {
        bool content = part.kind == PART_CONTENT || part.kind == PART_TRIMMED;
        contents += content;
        if (part.kind == PART_BAD)
            fault(c, &part,
                  "a single brace: control tokens look like `{<|im_end|>}`, a brace that "
                  "is text is written twice");
        else if (part.kind == PART_TEXT)
            check_text(c, &part);
        else if ((content || part.kind == PART_ROLE) && !c->key->message)
            fault(c, &part, "`%s` belongs to no message: there is no {%.*s} here", c->key->key,
                  (int)part.n, part.s);
        else if (part.kind == PART_BOS || part.kind == PART_EOS || part.kind == PART_TOKEN)
            check_token(c, &part);
    }
    if (c->key->message && contents != 1)
        fault(c, NULL, "`%s` has %d times {content} or {content|trim}: once is right", c->key->key,
              contents);
}

/* A piece up to its content, as text, roles replaced. */
static void add_head(const char *piece, const char *role, Text *out) {
    for (Part part; piece && (part = piece_next(&piece)).kind != PART_END;) {
        if (part.kind == PART_CONTENT || part.kind == PART_TRIMMED) return;
        if (part.kind == PART_ROLE)
            text_add(out, "%s", role);
        else if (part.kind == PART_TEXT)
            text_addn(out, part.s, part.n);
        else
            text_add(out, "{%.*s}", (int)part.n, part.s);
    }
}

static void check_generation(Check *c, const char *answer) {
    Text head = {0}, generation = {0};
    add_head(c->def->between, "", &head);
    add_head(answer, "assistant", &head);
    add_head(c->def->generation, "", &generation);
    bool begins = generation.len <= head.len &&
                  (!generation.len || memcmp(head.data, generation.data, generation.len) == 0);
    for (int i = 0; i < piece_count; i++)
        if (strcmp(piece_keys[i].key, "generation") == 0) c->key = &piece_keys[i];
    c->piece = c->def->generation;
    if (!begins)
        fault(c, NULL,
              "`generation` is not how an assistant's message begins: the answer would not follow "
              "the prompt");
    text_free(&head);
    text_free(&generation);
}

void template_check(const TemplateDef *def, const Tokenizer *t, TemplateFault *say, void *self) {
    Check c = {def, t, say, self, NULL, NULL};
    for (int i = 0; i < piece_count; i++) {
        c.key = &piece_keys[i];
        c.piece = piece_of(def, c.key);
        if (c.piece) check_piece(&c);
    }
    const char *answer = def->assistant ? def->assistant : def->message;
    if (!answer || !(def->user || def->message))
        say(self, "message", 0, 0,
            "it does not say what messages look like: `message`, or `user` and `assistant`");
    else if (def->generation)
        check_generation(&c, answer);
    bool system = def->system || (def->message && !def->fold_system);
    if ((def->default_system || def->fold_system) && !system)
        say(self, def->fold_system ? "fold_system" : "default_system", 0, 0,
            "it does not say what a system message looks like: `system` is missing");
}
