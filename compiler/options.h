/* options.h: the command line as a struct.  One table in options.c holds every flag, the verbs
 * that take it and its help line; parsing, `-h` and shell completion all come from it. */
#ifndef DPOC_OPTIONS_H
#define DPOC_OPTIONS_H

#include "../runtime/base.h"

#define MAX_LIST 64
typedef struct OptionList {
    const char *item[MAX_LIST];
    int n;
} OptionList;

struct Verb;
typedef struct Options {
    const struct Verb *verbs; /* all there are */
    int nverbs;
    const char *program, *verb;
    OptionList args; /* positional */
    OptionList set, adapter, data, warn;
    const char *model, *eval_data, *out, *device, *memory, *variant, *color, *cache_dir;
    const char *explain, *only, *dump_after, *dump_dir, *arch, *svg, *dot, *html, *resume;
    const char *prompt, *prompts, *chat, *spec, *variants, *text, *seed, *debug, *compare, *cc;
    const char *format, *dtype, *base;
    double threads, threshold, log_every, max_tokens, temperature, top_p, top_k, at_once, context,
        runs, limit, checkpoint;
    bool no_check, markdown, effects, in_turn, quiet, json, resumes, overwrite, dry_run,
        random_weights, help, version, check, safe, before, model_sampling;
} Options;

typedef struct Verb {
    const char *name, *usage, *sentence;
    int (*run)(const Options *options); /* exit code */
    int args;                           /* at most so many without a flag */
} Verb;

/* Fills `out`; false after a message on stderr (exit 2). Numbers not given are NAN. */
bool options_parse(int argc, char **argv, const Verb *verbs, int nverbs, Options *out);
const Verb *verb_by_name(const Verb *verbs, int nverbs, const char *name);
/* All verbs (verb NULL), or one verb with its flags. */
void options_help(FILE *out, const Verb *verbs, int nverbs, const Verb *verb);
typedef struct FlagInfo {
    const char *name, *value, *help; /* value NULL: it takes none */
    char letter;                     /* or 0 */
    bool maybe;                      /* the value may be left out */
} FlagInfo;
bool options_flag(int i, FlagInfo *out);                  /* flag i from 0; false behind the last */
bool options_flag_of(int i, const char *verb);            /* whether the verb takes it */
bool options_color(const Options *options, FILE *stream); /* --color, NO_COLOR, TERM, tty */

#endif
