/* verbs_bench.c: bench: whole optimizer steps of several variants against each other, and against
 * what the machine's own matrix product and memory reach in the same run.  What there is to say of
 * each part stands in bench.h.
 *
 * --compare is read before anything is run: a long run must not end with a file that is not there.
 */
#include "bench.h"

#include <math.h>

/* What flags cannot be together; NULL: all is well. */
static const char *flags_wrong(const Options *o) {
    if (o->json && o->markdown) return "--json and --markdown exclude each other";
    if (!isnan(o->threshold) && !o->compare) return "--threshold is for --compare OLD.json";
    return NULL;
}

static int tell(Bench *b) {
    bench_compare(b);
    if (b->options->json)
        bench_json(b, stdout);
    else if (b->options->markdown)
        bench_markdown(b, stdout);
    else
        bench_table(b, stdout);
    fflush(stdout);
    if (!b->options->quiet) bench_warn(b, stderr);
    int code = bench_agree(b);
    for (int i = 0; i < b->n && code == EXIT_OK; i++) {
        const Entry *e = &b->entry[i];
        if (!e->old.regressed) continue;
        fprintf(stderr, "dpoc: error: %s takes %.3f of its earlier time, more than %g %% longer\n",
                e->name, e->time.median / e->old.median, b->options->threshold);
        code = EXIT_INPUT;
    }
    return code == EXIT_OK && b->stopped ? 128 + b->stopped : code;
}

int verb_bench(const Options *o) {
    if (flags_wrong(o)) return work_usage(flags_wrong(o));
    Work first;
    work_init(&first, o);
    Bench b = {.options = o, .arena = first.arena, .effects = o->effects};
    int code = work_check(&first, NULL, o->data.n > 0);
    if (code == EXIT_OK) code = bench_list(&b, first.spec);
    if (code == EXIT_OK) code = bench_read_old(&b);
    if (code == EXIT_OK) code = bench_prepare(&b);
    if (code == EXIT_OK) code = bench_run(&b);
    if (code == EXIT_OK) code = tell(&b);
    bench_close(&b);
    work_close(&first);
    return code;
}
