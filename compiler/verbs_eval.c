/* verbs_eval.c: `eval`: loss, rewards and log-probabilities of pairs. */
#include "../runtime/job/job.h"
#include "work.h"

int verb_eval(const Options *o) {
    Work w;
    work_init(&w, o);
    Template template;
    Pairs *pairs = NULL;
    static const bool want[NUNIT] = {[UNIT_EVAL] = true};
    int code = work_check(&w, NULL, true);
    if (code == EXIT_OK) code = work_template(&w, &template);
    if (code == EXIT_OK) code = work_train_pairs(&w, &template, &pairs);
    if (code == EXIT_OK) code = work_device(&w, NULL);
    if (code == EXIT_OK) code = work_compile(&w, NULL, want);
    if (code == EXIT_OK) code = work_fit(&w, pairs);
    if (code == EXIT_OK) code = work_open(&w);
    if (code == EXIT_OK) code = work_reference(&w, pairs, false);
    if (code == EXIT_OK) {
        Evaluation e;
        ProgressNote note = progress_note();
        if (!evaluate(w.exec, w.plan, pairs, NULL, pairs->n, w.arena, o->quiet ? NULL : &note, &e,
                      &w.err))
            code = work_fail(&w);
        else if (o->json)
            evaluation_json(w.plan, pairs, &e, stdout);
        else
            evaluation_text(w.plan, &e, stdout);
    }
    pairs_free(pairs);
    work_close(&w);
    return code;
}
