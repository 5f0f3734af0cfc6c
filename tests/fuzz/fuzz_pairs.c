/* fuzz_pairs.c: any bytes as a data file, its first two choosing options: no crash; what is read
 * has prompts and answers within the limits, and packs.  Built by clang with -fsanitize=fuzzer
 * (make fuzz). */
#include <stdlib.h>
#include <string.h>

#include "runtime/job/pack.h"
#include "tests/fuzz/bytes.h"

static void check(const Pairs *p, bool sft) {
    for (int64_t i = 0; i < p->n; i++) {
        const Pair *x = &p->pair[i];
        if (x->prompt + x->context[0] < 1 || pair_scored(x, 0) < 1 || x->line < 1) abort();
        if (sft ? x->rejected != 0 : x->prompt + x->context[1] < 1 || pair_scored(x, 1) < 1)
            abort();
    }
    Arena *arena = arena_new();
    int n = p->n < 8 ? (int)p->n : 8;
    PackItem items[8];
    for (int i = 0; i < n; i++) items[i] = (PackItem){i, i, 0};
    for (int prefix = 0; prefix < 2; prefix++) {
        PackOptions o = {.bucket = 16, .prefix = prefix, .sft = sft};
        for (int e = 0; e < NEXTENT; e++) o.bound[e] = 256;
        Err err = {0};
        if (!pack_check(&o, p, 1000, &err)) continue;
        const Pack *pack = pack_step(arena, &o, p, items, n);
        if (pack->nmicro < 1 || pack->micro[0].extent[X_T] > 256) abort();
    }
    arena_free(arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Tokenizer *tokenizer;
    static const char *const names[] = {"auto", "plain"};
    if (size < 2) return 0;
    Err err = {0};
    if (!tokenizer) tokenizer = tokenizer_open(bytes_tokenizer(), &err);
    Template template;
    if (!tokenizer ||
        !template_open(&template, names[data[0] & 1], NULL, scratch, tokenizer, NULL, &err))
        abort();
    static const char *const column = "score";
    PairsOptions o = {.sft = data[0] & 2,
                      .max_length = data[0] & 4 ? 20 : 0,
                      .max_prompt = data[0] & 8 ? 10 : 0,
                      .truncate = (PairsTruncate)(data[1] & 3),
                      .bos = (PairsBos)(data[1] >> 2 & 3),
                      .eos = (PairsEos)(data[1] >> 4 & 3),
                      .boundary = (PairsBoundary)(data[1] >> 6 & 3),
                      .columns = &column,
                      .ncolumns = data[0] & 32 ? 1 : 0};
    char path[96];
    snprintf(path, sizeof path, "%s/data", scratch_file("data", data + 2, size - 2));
    const char *file = path;
    Pairs *p = pairs_read(&file, 1, &o, &template, &err);
    if (!p != (err.code != 0)) abort();
    if (p) check(p, o.sft);
    pairs_free(p);
    return 0;
}
