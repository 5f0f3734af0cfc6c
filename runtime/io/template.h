/* template.h: chat templates: a conversation as token ids.
 *
 * The built-in ones are plain, llama3, llama3.1, chatml and llama2.  Control tokens are ids,
 * contents are encoded with special tokens off: what a user wrote can't end a turn.  The text
 * between two control tokens is encoded as one piece, which is what Hugging Face's
 * template-then-tokenize does. Relies on tokenizer.h and jansson.
 */
#ifndef DPOC_TEMPLATE_H
#define DPOC_TEMPLATE_H

#include "tokenizer.h"

typedef struct Message {
    const char *role; /* "system", "user", "assistant", "tool", ... */
    const char *content;
    size_t len;
} Message;

typedef enum TemplateKind {
    TEMPLATE_NONE,  /* asked for, or auto found none: strings only, conversations are an error */
    TEMPLATE_PLAIN, /* no markup: contents, one newline between them, eos at the end */
    TEMPLATE_LLAMA3,
    TEMPLATE_LLAMA31, /* as llama3 with the system preamble and its pinned date */
    TEMPLATE_CHATML,
    TEMPLATE_LLAMA2
} TemplateKind;
extern const char *const template_names[]; /* by kind: "none", "plain", "llama3", ... */

typedef struct Template {
    TemplateKind kind;
    bool named;           /* asked for by name, not detected: then plain strings are wrapped too */
    Tokenizer *tokenizer; /* not owned */
    const char *date;     /* llama3.1: "26 Jul 2024" when the caller gives NULL; never the clock */
    const char *system;   /* chatml: what stands for a missing system message, or NULL */
} Template;

/* `name` is "auto" (or NULL), "none" or a built-in's name.  auto looks at the checkpoint's chat
 * template (chat_template.jinja or tokenizer_config.json): none gives TEMPLATE_NONE, one that is
 * not known is an error that lists the names (exit 1).  A built-in whose control tokens the
 * tokenizer lacks is an error, too. */
bool template_open(Template *out, const char *name, const char *dir, Tokenizer *tokenizer,
                   const char *date, Err *err);

/* Appends the ids of a conversation; with `generation` also what precedes the assistant's next
 * turn. Contents are trimmed where the original trims.  False and err (exit 5) for a conversation
 * the template can't express (an unknown role order in llama2). */
bool template_encode(const Template *t, const Message *messages, int n, bool generation, Ids *out,
                     Err *err);
/* The same as text, control tokens by name. */
bool template_text(const Template *t, const Message *messages, int n, bool generation, Text *out,
                   Err *err);

#endif
