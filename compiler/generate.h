/* generate.h: what the parts of `generate` share: its settings, a conversation from stdin. */
#ifndef DPOC_GENERATE_H
#define DPOC_GENERATE_H

#include "work.h"
#include "../runtime/job/job.h"

/* ---- generate.c: from flags and generation_config.json --------------------------------------- */
int64_t generate_max_tokens(const Work *w);
/* False (exit 5) where the checkpoint has a generation_config.json and what is read of it makes no
 * sense; to be asked before the others. */
bool generate_config_check(Work *w);
/* Greedy unless flags say otherwise; with --model-sampling what the checkpoint's file says, which
 * is printed. */
Sampling generate_sampling(const Work *w);
/* Ids that end an answer: eos of the tokenizer and of generation_config.json (a number or a list),
 * the template's end.  Returns how many. */
int generate_stops(const Work *w, const Template *t, int32_t *stop, int max);
/* Tokens and their rates, on stderr. */
void generate_print_stats(const Work *w, const GenerateStats *s);

/* ---- chat.c: --chat - ------------------------------------------------------------------------ */
/* A plan for one sequence of up to --context tokens (default 4096, fewer where memory is short). */
int chat_compile(Work *w);
/* A line of stdin is a user's message; its answer is printed, and both belong to what follows.
 * Ends with the input. */
int chat_run(Work *w, const Template *t);

#endif
