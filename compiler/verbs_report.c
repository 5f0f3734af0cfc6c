/* verbs_report.c: `report`: runs as text, and as one page or picture of curves. */
#include <string.h>

#include "../runtime/job/report.h"
#include "work.h"

static int write_page(const char *path, const RunLog *logs, int n, Err *err) {
    Text page = {0};
    if (ends_with(path, ".svg"))
        report_svg(logs, n, &page);
    else
        report_html(logs, n, &page);
    bool ok = file_write(path, page.data, page.len, err);
    text_free(&page);
    return ok ? EXIT_OK : err->code;
}

int verb_report(const Options *o) {
    if (o->args.n == 0) return work_usage("report needs the directory of a run, or of several");
    if (o->out && !ends_with(o->out, ".html") && !ends_with(o->out, ".svg"))
        return work_usage("report writes -o FILE.html or FILE.svg");
    Arena *arena = arena_new();
    RunLog *logs = NEW_ARRAY(arena, RunLog, o->args.n);
    Err err = {0};
    int code = EXIT_OK;
    if (!run_logs_read(arena, o->args.item, o->args.n, logs, &err))
        code = err.code;
    else
        report_text_of(logs, o->args.n, stdout);
    if (code == EXIT_OK && o->out) code = write_page(o->out, logs, o->args.n, &err);
    if (code == EXIT_OK && o->out && !o->quiet) fprintf(stderr, "written: %s\n", o->out);
    if (code != EXIT_OK) fprintf(stderr, "dpoc: error: %s\n", err.text);
    run_logs_free(logs, o->args.n);
    arena_free(arena);
    return code;
}
