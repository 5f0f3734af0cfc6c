/* template.h: chat templates: a conversation as token ids.
 *
 * A template is a few pieces of text (TemplateDef), written the same way in a .dpo file's
 * `template` statement and in the table of built-in ones:
 *
 *   {content} {role}           of the message; {content|trim}: without white space around it
 *   {<|im_start|>}             that token of the tokenizer
 *   {bos} {eos}                its first and last; {bos?} {eos?}: only where it has one, and bos
 *                              only where it puts one before texts
 *   {date}                     data.date
 *   {{ }}                      a brace
 *
 * All else is text.  Control tokens are ids, contents are encoded with special tokens off: what a
 * user wrote can't end a turn.  The text between two control tokens is encoded as one piece, which
 * is what Hugging Face's template-then-tokenize does.  Relies on tokenizer.h and jansson.
 */
#ifndef DPOC_TEMPLATE_H
#define DPOC_TEMPLATE_H

#include "tokenizer.h"

typedef struct Message {
    const char *role; /* "system", "user", "assistant", "tool", ... */
    const char *content;
    size_t len;
} Message;

typedef struct TemplateDef {
    const char *name;
    const char *begin;                            /* before all messages */
    const char *system, *user, *assistant, *tool; /* messages of these roles */
    const char *message;        /* of a role without its own piece (`tool` needs one) */
    const char *between;        /* between two messages */
    const char *end;            /* behind the last message, where no answer is asked for */
    const char *generation;     /* ... and where one is: what the answer then follows */
    const char *default_system; /* stands for a missing system message; NULL: nothing does */
    /* `system` becomes the beginning of the first user's content; user and assistant take turns */
    bool fold_system;
} TemplateDef;

/* Calls `say` for everything wrong with a definition: key of the piece, bytes [at, at + len) of it,
 * what it is.  With a tokenizer also for control tokens that it lacks. */
typedef void TemplateFault(void *self, const char *key, size_t at, size_t len, const char *text);
void template_check(const TemplateDef *def, const Tokenizer *t, TemplateFault *say, void *self);

/* The built-in one of that name, or NULL; names of all of them, NULL behind the last. */
const TemplateDef *template_builtin(const char *name);
extern const char *const template_names[];
extern const char template_choices[]; /* "plain, llama3, .." for messages */

typedef enum TemplateKind {
    TEMPLATE_NONE,  /* asked for, or auto found none: strings only, conversations are an error */
    TEMPLATE_PLAIN, /* no markup: contents, one newline between them, eos at the end */
    TEMPLATE_CHAT
} TemplateKind;

typedef struct Template {
    TemplateKind kind;
    TemplateDef def;
    bool named;           /* asked for by name, not detected: then plain strings are wrapped too */
    Tokenizer *tokenizer; /* not owned */
    const char *date;     /* {date}: "26 Jul 2024" when the caller gives NULL; never the clock */
} Template;

/* `name` is "auto" (or NULL), "none" or a built-in's name; `own`: a definition to use instead, or
 * NULL.  auto looks at the checkpoint's chat template (chat_template.jinja, chat_template.json or
 * tokenizer_config.json): none gives TEMPLATE_NONE, one that is not known is an error that lists
 * the names (exit 1).  A template whose control tokens the tokenizer lacks is an error, too. */
bool template_open(Template *out, const char *name, const TemplateDef *own, const char *dir,
                   Tokenizer *tokenizer, const char *date, Err *err);
/* What a Jinja template says, recognised by what it contains: a built-in definition with its
 * default system message.  False and why, or NULL: nothing is known of it. */
bool template_recognise(const char *jinja, TemplateDef *out, const char **why);

/* Appends the ids of a conversation; with `generation` also what precedes the assistant's next
 * turn.  False and err (exit 5) for a conversation the template can't express. */
bool template_encode(const Template *t, const Message *messages, int n, bool generation, Ids *out,
                     Err *err);
/* The same as text, control tokens by name. */
bool template_text(const Template *t, const Message *messages, int n, bool generation, Text *out,
                   Err *err);
/* The token that ends an assistant's answer, or -1: no token does. */
int32_t template_stop(const Template *t);

#endif
