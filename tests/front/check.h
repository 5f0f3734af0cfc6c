/* check.h: a good .dpo file, and check_file on texts made from it, against tests/num/cases/gqa. */
#ifndef FRONT_CHECK_H
#define FRONT_CHECK_H

#include "case.h"

#include <stdlib.h>

static const char good[] =
    "use \"llama3.dpo\"\n"
    "base = auto\n"
    "adapter pref = lora(rank = 4, alpha = 8) on all_linear\n"
    "policy = base + pref\n"
    "reference = base\n"
    "train pref\n"
    "objective dpo(beta = 0.1) {\n"
    "    reward(side) = beta * (logp(policy, side) - logp(reference, side))\n"
    "    loss = -log_sigmoid(reward(chosen) - reward(rejected))\n"
    "}\n"
    "run { lr = 5e-6  batch = 4 }\n"
    "graph { memory = 40 GiB }\n"
    "variant slow { run { lr = 1e-7 }  graph { fuse = off } }\n"
    "variant slower from slow { run { batch = 2 }  graph { slice = off } }\n"
    "variant small { adapter pref = lora(rank = 2, alpha = 2) on \"q_proj\" }\n";

typedef struct Check { /* one run of check_file on a text */
    Arena *arena;
    Diags *diags;
    Spec *spec;
} Check;

static inline const char *build_dir(void) {
    const char *b = getenv("BUILD");
    return intern_printf("%s/tests/check", b ? b : "build");
}

static inline Check check(const char *text, CheckOptions o) {
    Check c = {.arena = arena_new()};
    Err err = {0};
    assert_true(dir_make(build_dir(), &err));
    o.file = intern_printf("%s/file.dpo", build_dir());
    assert_true(file_write(o.file, text, strlen(text), &err));
    c.diags = diags_new(c.arena);
    c.spec = check_file(c.arena, c.diags, &o);
    return c;
}

static inline Check check_gqa(const char *text) {
    return check(text, (CheckOptions){.model = CASES "/gqa", .needs_model = true});
}

static inline Check check_ok(const char *text, CheckOptions o) {
    Check c = check(text, o);
    if (!c.spec) diags_print(c.diags, 0, stdout, false);
    assert_non_null(c.spec);
    return c;
}

static inline char *replaced(Arena *arena, const char *text, const char *from, const char *to) {
    const char *at = strstr(text, from);
    if (!at) die("the text has no '%s'\n", from);
    return arena_printf(arena, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}

#endif
