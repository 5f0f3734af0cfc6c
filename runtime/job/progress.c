/* progress.c: see progress.h.
 * Relies on base.h and LoadWatch of exec.h only; never writes to stdout unless asked to. */
#include "progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

void progress_start(Progress *p, int64_t first, int64_t total, int64_t every, bool quiet) {
    *p = (Progress){.total = total, .first = first, .every = every, .quiet = quiet};
    p->tty = isatty(STDERR_FILENO);
    if (p->every <= 0) p->every = total > 20 ? total / 20 : 1;
    p->started = now_seconds();
}

void format_count(char out[32], double n) {
    static const struct {
        double scale;
        const char *suffix;
    } units[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "k"}};
    snprintf(out, 32, n < 100 ? "%.3g" : "%.0f", n);
    for (size_t i = COUNT(units); i-- > 0;) {
        double x = n / units[i].scale;
        if (x >= 10 || (x >= 1 && i < 3))
            snprintf(out, 32, "%.*f%s", x >= 100 ? 0 : x >= 10 ? 1 : 2, x, units[i].suffix);
    }
}

void format_duration(char out[32], double seconds) {
    int64_t s = (int64_t)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, 32, "%lld:%02lld:%02lld", (long long)(s / 3600), (long long)(s / 60 % 60),
                 (long long)(s % 60));
    else
        snprintf(out, 32, "%02lld:%02lld", (long long)(s / 60), (long long)(s % 60));
}

/* Columns of the terminal; 0: stderr is none. */
static int columns_of(const Progress *p) {
    struct winsize size;
    const char *set = getenv("COLUMNS");
    if (!p->tty) return 0;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return set && atoi(set) > 0 ? atoi(set) : 80;
}

/* Parts of the line with how badly they are wanted: where a terminal is too narrow for all of them,
 * since a line that wraps cannot be redrawn, the least wanted go first. */
typedef struct Part {
    int rank;
    char text[48];
} Part;

static int line_parts(const Progress *p, const ProgressLine *line, Part part[10]) {
    int n = 0;
    char a[32];
#define ADD(r, ...) (part[n].rank = (r), snprintf(part[n++].text, sizeof part->text, __VA_ARGS__))
    int digits = snprintf(a, sizeof a, "%lld", (long long)p->total); /* lines stay aligned */
    ADD(9, "step %*lld/%s", digits, (long long)line->step, a);
    ADD(8, "loss %.4f", line->loss);
    if (line->has_rewards) ADD(7, "margin %+.3f", line->margin);
    if (line->has_rewards) ADD(6, "acc %.2f", line->accuracy);
    ADD(3, "lr %.2e", line->lr);
    ADD(2, "gnorm %-6.3g", line->grad_norm);
    format_count(a, line->tokens_per_second);
    ADD(4, "%5s tok/s", a);
    if (isfinite(line->mfu)) ADD(1, "%.0f%% MFU", 100 * line->mfu);
    format_bytes(a, line->memory);
    ADD(0, "%s", a);
    double done = (double)(line->step - p->first), spent = now_seconds() - p->started;
    format_duration(a, done > 0 ? spent / done * (double)(p->total - line->step) : 0);
    ADD(5, "ETA %s", a);
#undef ADD
    return n;
}

static void print_line(const Progress *p, const ProgressLine *line) {
    Part part[10];
    int n = line_parts(p, line, part), room = columns_of(p), width = 0, least = 0;
    for (int i = 0; i < n; i++) width += (int)strlen(part[i].text) + 2;
    for (; room && width - 2 >= room && least < 9; least++)
        for (int i = 0; i < n; i++)
            if (part[i].rank == least) width -= (int)strlen(part[i].text) + 2;
    for (int i = 0; i < n; i++)
        if (part[i].rank >= least) fprintf(stderr, "%s%s", i ? "  " : "", part[i].text);
}

void progress_step(Progress *p, const ProgressLine *line) {
    if (p->quiet) return;
    bool last = line->step == p->total, first = line->step == p->first + 1;
    double now = now_seconds();
    if (p->tty && (last || first || now - p->drawn > 0.1)) {
        p->drawn = now;
        fputs("\r\033[K", stderr);
        print_line(p, line);
        if (last) fputc('\n', stderr);
    } else if (!p->tty && (line->step % p->every == 0 || first || last)) {
        print_line(p, line);
        fputc('\n', stderr);
    }
    fflush(stderr);
}

void progress_break(const Progress *p) {
    if (!p->quiet && p->tty) fputs("\r\033[K", stderr);
}

/* ---- other long work ------------------------------------------------------------------------- */

ProgressNote progress_note(void) {
    double now = now_seconds();
    return (ProgressNote){now, now - 8, isatty(STDERR_FILENO)};
}

void progress_say(ProgressNote *note, bool last, const char *format, ...) {
    double now = now_seconds();
    bool due = now - note->said > (note->tty ? 0.5 : 10);
    if (now - note->started < 2 || !(due || (last && note->said < INFINITY))) return;
    note->said = last ? INFINITY : now;
    va_list args;
    va_start(args, format);
    if (note->tty) fputs("\r\033[K", stderr);
    vfprintf(stderr, format, args);
    if (last || !note->tty) fputc('\n', stderr);
    fflush(stderr);
    va_end(args);
}

void progress_erase(const ProgressNote *note) {
    if (note->tty && note->said > note->started && note->said < INFINITY) fputs("\r\033[K", stderr);
}

static void show_load(LoadWatch *watch, double bytes, double share) {
    LoadProgress *p = (LoadProgress *)watch;
    double rate = bytes / (now_seconds() - p->note.started);
    progress_say(&p->note, share >= 1, "%s: %.2f GB read, %.0f %%, %.2f GB/s", p->what,
                 bytes * 1e-9, share * 100, rate * 1e-9);
}

LoadProgress progress_load(void) {
    return (LoadProgress){{show_load}, "loading weights", progress_note()};
}

/* ---- curves ---------------------------------------------------------------------------------- */

enum { CURVE_WIDTH = 64 };

void progress_curve(FILE *out, const char *title, const double *y, int n, int height) {
    if (n < 3 || height < 2) return; /* no curve */
    int width = n < CURVE_WIDTH ? n : CURVE_WIDTH;
    double column[CURVE_WIDTH], lo = INFINITY, hi = -INFINITY;
    for (int c = 0; c < width; c++) {
        int begin = (int)((int64_t)n * c / width), end = (int)((int64_t)n * (c + 1) / width);
        double sum = 0;
        int known = 0;
        for (int i = begin; i < end; i++)
            if (isfinite(y[i])) sum += y[i], known++;
        column[c] = known ? sum / known : NAN;
        lo = fmin(lo, column[c]);
        hi = fmax(hi, column[c]);
    }
    if (!isfinite(lo)) return;
    if (!(hi > lo)) hi = lo + 1;
    fprintf(out, "%s\n", title);
    for (int r = height - 1; r >= 0; r--) {
        double label = lo + (hi - lo) * r / (height - 1);
        bool labelled = r == 0 || r == height - 1;
        if (labelled)
            fprintf(out, "%9.3f |", label);
        else
            fprintf(out, "%9s |", "");
        for (int c = 0; c < width; c++) {
            double at = floor((column[c] - lo) / (hi - lo) * (height - 1) + 0.5);
            fputc(at == r ? '*' : ' ', out);
        }
        fputc('\n', out);
    }
    fprintf(out, "%9s +", "");
    for (int c = 0; c < width; c++) fputc('-', out);
    fprintf(out, "\n%9s 1%*d steps\n", "", width, n);
}
