/* verbs_tokens.c: `tokens`: ids, pieces and loss mask, as training sees them. */
#include <stdio.h>

#include "work.h"

static void print_ids(const Work *w, const char *what, const int32_t *ids, int n, bool scored) {
    for (int i = 0; i < n; i++) {
        const char *piece = w->tokenizer ? tokenizer_piece(w->tokenizer, ids[i]) : NULL;
        printf("%-8s %6d  %c  %s\n", what, ids[i], scored ? '1' : '0', piece ? piece : "");
    }
}

int verb_tokens(const Options *o) {
    if (!o->model) return work_usage("tokens needs --model DIR");
    if (!o->text && o->data.n == 0) return work_usage("tokens needs --text S or --data PAIRS");
    Work w;
    work_init(&w, o);
    Template template;
    Pairs *pairs = NULL;
    int code = work_check(&w, work_model_spec(o), false);
    if (code == EXIT_OK) code = work_template(&w, &template);
    if (code == EXIT_OK && o->text) {
        Ids ids = {0};
        if (!w.tokenizer)
            code = work_usage("this checkpoint has no tokenizer");
        else if (!work_prompt(&w, &template, o->text, false, &ids))
            code = work_fail(&w);
        print_ids(&w, "text", ids.v, (int)ids.n, false);
        ids_free(&ids);
    }
    if (code == EXIT_OK && o->data.n)
        code = work_read_pairs(&w, o->data.item, o->data.n, &template, &pairs);
    for (int64_t i = 0; pairs && i < pairs->n; i++) {
        const Pair *p = &pairs->pair[i];
        printf("# %s\n", pair_where(w.arena, pairs, p));
        print_ids(&w, "prompt", p->ids, p->prompt, false);
        print_ids(&w, "chosen", pair_chosen(p), p->chosen, true);
        print_ids(&w, "rejected", pair_rejected(p), p->rejected, true);
    }
    pairs_free(pairs);
    work_close(&w);
    return code;
}
