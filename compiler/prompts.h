/* prompts.h: what `generate` is asked: prompts from the command line, a file or stdin, as ids. */
#ifndef DPOC_PROMPTS_H
#define DPOC_PROMPTS_H

#include "work.h"

typedef struct Prompt {
    const char *text; /* for people: the text, or the last message */
    Ids ids;
} Prompt;
typedef struct Prompts {
    Prompt *prompt;
    int n, cap;
} Prompts;

/* A text that is continued as it is, after bos where the tokenizer adds one. */
bool prompts_text(Work *w, const Template *t, const char *text, Prompts *out);
/* A file of text lines (*.txt, or what does not begin as JSON), of JSON (Lines) records, or of one
 * conversation.  A record is text, {"prompt": text or messages}, {"messages"}, {"prompt_ids"}, or a
 * pair of any dialect that training reads.  `chat`: texts are a user's messages, where the template
 * is a chat's; else they are what training takes them for. */
bool prompts_file(Work *w, const Template *t, const char *path, bool chat, Prompts *out);
/* Those of the pairs which[0..n) (NULL: the first n), as training sees them. */
void prompts_pairs(Work *w, const Pairs *pairs, const int32_t *which, int64_t n, Prompts *out);
void prompts_free(Prompts *p);

#endif
