/* fuzz_report.c: any bytes as a run's metrics.jsonl, run.json and samples.jsonl, zero bytes between
 * them: no crash; a run that is read can be shown in every form.  Built by clang with
 * -fsanitize=fuzzer (make fuzz). */
#include "runtime/job/report.h"
#include "tests/fuzz/bytes.h"

static void check(const RunLog *log) {
    Text text = {0};
    report_html(log, 1, &text);
    report_svg(log, 1, &text);
    if (text.len == 0) abort();
    text_free(&text);
    FILE *out = fopen("/dev/null", "w");
    report_text_of(log, 1, out);
    fclose(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"metrics.jsonl", "run.json", "samples.jsonl"};
    const char *dir = NULL;
    for (int i = 0; i < 3; i++) {
        const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
        const size_t n = zero ? (size_t)(zero - data) : size;
        dir = scratch_file(names[i], size ? data : (const uint8_t *)"", n);
        data += zero ? n + 1 : n;
        size -= zero ? n + 1 : n;
    }
    Arena *arena = arena_new();
    RunLog log;
    Err err = {0};
    const bool ok = run_logs_read(arena, &dir, 1, &log, &err);
    if (!ok != (err.code != 0)) abort();
    if (ok) {
        check(&log);
        run_logs_free(&log, 1);
    }
    arena_free(arena);
    return 0;
}
