/* report_page.c: runs as a page of charts: one self-contained HTML file, or one SVG. */
#include "report.h"
#include "../svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- which charts ---------------------------------------------------------------------------- */

typedef struct ChartOf {
    const char *title, *unit, *solid, *dashed; /* keys of curves; the eval's is eval_ + solid */
    const char *other;                         /* instead of solid where no run has that */
    const char *keys[2];  /* what solid and dashed mean, where both are there */
    double scale, lo, hi; /* unit of the axis; range, equal: from the values */
    bool from_zero, smooth, bytes;
} ChartOf;

static const ChartOf charts[] = {
    {.title = "Loss", .solid = "loss", .smooth = true},
    {.title = "Reward margin", .solid = "rewards/margins", .smooth = true},
    {.title = "Reward accuracy", .solid = "rewards/accuracies", .hi = 1, .smooth = true},
    {.title = "Rewards",
     .solid = "rewards/chosen",
     .dashed = "rewards/rejected",
     .keys = {"chosen", "rejected"},
     .smooth = true},
    {.title = "Log-probability of an answer",
     .solid = "logps/chosen",
     .dashed = "logps/rejected",
     .keys = {"chosen", "rejected"},
     .smooth = true},
    {.title = "Mean logit of an answer",
     .solid = "logits/chosen",
     .dashed = "logits/rejected",
     .keys = {"chosen", "rejected"},
     .smooth = true},
    {.title = "Gradient norm", .solid = "grad_norm", .from_zero = true, .smooth = true},
    {.title = "Learning rate", .solid = "learning_rate", .from_zero = true},
    {.title = "Tokens a second", .solid = "tokens_per_second", .from_zero = true, .smooth = true},
    {.title = "Memory in use",
     .solid = "gpu/memory_used_bytes",
     .other = "cpu/memory_used_bytes",
     .bytes = true,
     .from_zero = true},
    {.title = "Utilization",
     .unit = "%",
     .solid = "gpu/utilization",
     .other = "cpu/utilization",
     .from_zero = true,
     .smooth = true},
    {.title = "Power", .unit = "W", .solid = "gpu/power_watts", .from_zero = true},
    {.title = "Model FLOPs utilization",
     .unit = "%",
     .solid = "mfu",
     .scale = 100,
     .from_zero = true,
     .smooth = true},
    {.title = "Entropy", .unit = "nats", .solid = "entropy", .smooth = true},
    {.title = "Mean token accuracy", .solid = "mean_token_accuracy", .smooth = true},
};
/* Curves that are no chart of their own, or part of one above. */
static const char *const unshown[] = {"epoch", "num_tokens", "step_time_ms", "memory_bytes"};

static bool shown_above(const char *key) {
    for (size_t i = 0; i < COUNT(unshown); i++)
        if (strcmp(unshown[i], key) == 0) return true;
    for (size_t i = 0; i < COUNT(charts); i++) {
        const char *const keys[] = {charts[i].solid, charts[i].dashed, charts[i].other};
        for (int k = 0; k < 3; k++)
            if (keys[k] && strcmp(keys[k], key) == 0) return true;
    }
    return strncmp(key, "eval_", 5) == 0 || strncmp(key, "gpu/", 4) == 0 ||
           strncmp(key, "cpu/", 4) == 0;
}

/* ---- one chart ------------------------------------------------------------------------------- */

typedef struct Drawing { /* lines of one chart, in the order of drawing */
    Arena *arena;
    const ChartOf *of;
    double scale;
    SvgLine *line;
    int nline, cap;
} Drawing;

enum { SMOOTH_FROM = 16 }; /* values; fewer are drawn as they are */

static void add_line(Drawing *d, const Curve *c, const double *y, int colour, SvgStyle style) {
    double *scaled = NEW_ARRAY(d->arena, double, c->n);
    for (int i = 0; i < c->n; i++) scaled[i] = y[i] * d->scale;
    SvgLine line = {c->x, scaled, c->n, colour, style};
    PUSH(d->arena, d->line, d->nline, d->cap, line);
}

static bool smooths(const Drawing *d, const Curve *c) {
    return d->of->smooth && c->n >= SMOOTH_FROM;
}

static const Curve *solid_curve(const ChartOf *of, const RunLog *log) {
    const Curve *c = run_curve(log, of->solid);
    return c || !of->other ? c : run_curve(log, of->other);
}

static void add_run(Drawing *d, const RunLog *log, int colour, bool pale, bool *evals) {
    const ChartOf *of = d->of;
    const Curve *parts[] = {solid_curve(of, log), of->dashed ? run_curve(log, of->dashed) : NULL};
    for (int k = 0; k < 2; k++) {
        const Curve *c = parts[k];
        SvgStyle style = k ? SVG_DASHED : SVG_LINE;
        if (!c || (pale && !smooths(d, c))) continue;
        double *y = NEW_ARRAY(d->arena, double, c->n);
        curve_smooth(c, y);
        if (pale)
            add_line(d, c, c->y, colour, SVG_PALE);
        else
            add_line(d, c, smooths(d, c) ? y : c->y, colour, style);
    }
    const Curve *eval =
        of->dashed ? NULL : run_curve(log, arena_printf(d->arena, "eval_%s", of->solid));
    if (!pale && eval) {
        add_line(d, eval, eval->y, colour, SVG_POINTS);
        *evals = true;
    }
}

/* GiB, or MiB where there is less than one. */
static double byte_scale(const ChartOf *of, const RunLog *logs, int n, const char **unit) {
    double most = 0;
    for (int i = 0; i < n; i++) most = fmax(most, curve_best(solid_curve(of, &logs[i]), false));
    bool small = most < 1 << 30;
    *unit = small ? "MiB" : "GiB";
    return small ? 1.0 / (1 << 20) : 1.0 / (1 << 30);
}

/* False: no run has these curves. */
static bool add_chart(Text *out, Arena *arena, const ChartOf *of, const RunLog *logs, int n, int id,
                      int x, int y) {
    const char *unit = of->unit;
    Drawing d = {.arena = arena, .of = of, .scale = of->scale != 0 ? of->scale : 1};
    if (of->bytes) d.scale = byte_scale(of, logs, n, &unit);
    bool evals = false;
    for (int pale = 1; pale >= 0; pale--) /* faint ones below */
        for (int i = 0; i < n; i++) add_run(&d, &logs[i], i, pale, &evals);
    if (!d.nline) return false;
    SvgChart chart = {.title = of->title,
                      .unit = unit,
                      .xlabel = "step",
                      .lo = of->lo,
                      .hi = of->hi,
                      .from_zero = of->from_zero,
                      .line = d.line,
                      .nline = d.nline};
    if (of->dashed || evals) chart.keys[0] = of->dashed ? of->keys[0] : "training";
    if (of->dashed) chart.keys[1] = of->keys[1];
    if (evals) chart.keys[2] = "eval";
    svg_chart(out, &chart, id, x, y);
    return true;
}

/* Calls for every chart there is something for; columns 0: a page lays them out.  Their number. */
static int add_charts(Text *out, Arena *arena, const RunLog *logs, int n, int columns, int top) {
    int shown = 0;
    for (size_t i = 0; i < COUNT(charts); i++) {
        int x = columns ? shown % columns * SVG_WIDTH : 0,
            y = columns ? top + shown / columns * SVG_HEIGHT : 0;
        shown += add_chart(out, arena, &charts[i], logs, n, shown, x, y);
    }
    for (int r = 0; r < n; r++)
        for (int k = 0; k < logs[r].ncurve; k++) { /* metrics of the person's own objective */
            const char *name = logs[r].curve[k].key;
            bool seen = shown_above(name);
            for (int other = 0; other < r; other++) seen = seen || run_curve(&logs[other], name);
            if (seen) continue;
            ChartOf of = {.title = name, .solid = name, .smooth = true};
            int x = columns ? shown % columns * SVG_WIDTH : 0,
                y = columns ? top + shown / columns * SVG_HEIGHT : 0;
            shown += add_chart(out, arena, &of, logs, n, shown, x, y);
        }
    return shown;
}

/* ---- pages ----------------------------------------------------------------------------------- */

static void page_title(Text *out, const RunLog *logs, int n) {
    for (int i = 0; i < n; i++) {
        text_add(out, i ? ", " : "");
        xml_escape(out, logs[i].name);
    }
}

void report_svg(const RunLog *logs, int n, Text *out) {
    enum { COLUMNS = 2, HEAD = 44 };
    Arena *arena = arena_new();
    Text body = {0};
    int shown = add_charts(&body, arena, logs, n, COLUMNS, HEAD);
    int height = HEAD + (shown + COLUMNS - 1) / COLUMNS * SVG_HEIGHT;
    text_add(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d "
        "%d\">\n<title>",
        COLUMNS * SVG_WIDTH, height, COLUMNS * SVG_WIDTH, height);
    page_title(out, logs, n);
    text_add(out, "</title>\n<style>\n");
    svg_style(out, false);
    text_add(out, "</style>\n<rect class=\"back\" width=\"%d\" height=\"%d\"/>\n",
             COLUMNS * SVG_WIDTH, height);
    for (int i = 0, x = 16; i < n; i++) {
        text_add(
            out,
            "<g class=\"chart\"><path class=\"line c%d\" d=\"M%d 24L%d 24\"/><text class=\"head\" "
            "x=\"%d\" y=\"29\">",
            i % SVG_COLOURS, x, x + 22, x + 30);
        xml_escape(out, logs[i].name);
        text_add(out, "</text></g>\n");
        x += 60 + 9 * (int)strlen(logs[i].name);
    }
    text_addn(out, body.data ? body.data : "", body.len);
    text_add(out, "</svg>\n");
    text_free(&body);
    arena_free(arena);
}

static void html_table(Text *out, Arena *arena, const RunLog *logs, int n) {
    int nrows;
    ReportRow *rows = report_rows(arena, logs, n, &nrows);
    text_add(out, "<table><thead><tr><th scope=\"col\">run</th>");
    for (int i = 0; i < n; i++) {
        text_add(out, "<th scope=\"col\"><span class=\"swatch c%d\"></span>", i % SVG_COLOURS);
        xml_escape(out, logs[i].name);
        text_add(out, "</th>");
    }
    text_add(out, "</tr></thead>\n<tbody>\n");
    for (int k = 0; k < nrows; k++) {
        text_add(out, "<tr><th scope=\"row\">");
        xml_escape(out, rows[k].name);
        text_add(out, "</th>");
        for (int i = 0; i < n; i++) {
            text_add(out, "<td>");
            xml_escape(out, rows[k].text[i]);
            text_add(out, "</td>");
        }
        text_add(out, "</tr>\n");
    }
    text_add(out, "</tbody></table>\n");
}

static void html_cell(Text *out, const char *text) {
    text_add(out, "<td class=\"said\">");
    xml_escape(out, text);
    text_add(out, "</td>");
}

static void html_samples(Text *out, const RunLog *logs, int n) {
    for (int i = 0; i < n; i++) {
        const RunLog *l = &logs[i];
        if (!l->nsample) continue;
        text_add(out, "<h2>Answers%s", n > 1 ? " of " : "");
        if (n > 1) xml_escape(out, l->name);
        text_add(out,
                 "</h2>\n<table><thead><tr><th scope=\"col\">prompt</th><th scope=\"col\">at step "
                 "%lld</th><th scope=\"col\">at step %lld</th></tr></thead><tbody>\n",
                 (long long)l->sample[0].first, (long long)l->sample[0].last);
        for (int k = 0; k < l->nsample; k++) {
            text_add(out, "<tr>");
            html_cell(out, l->sample[k].prompt);
            html_cell(out, l->sample[k].before);
            html_cell(out, l->sample[k].after);
            text_add(out, "</tr>\n");
        }
        text_add(out, "</tbody></table>\n");
    }
}

static void html_config(Text *out, const RunLog *logs, int n) {
    for (int i = 0; i < n; i++) {
        char *text = logs[i].config ? json_dumps(logs[i].config, JSON_INDENT(2)) : NULL;
        if (!text) continue;
        text_add(out, "<details><summary>Everything about ");
        xml_escape(out, logs[i].name);
        text_add(out, " (run.json)</summary><pre>");
        xml_escape(out, text);
        text_add(out, "</pre></details>\n");
        free(text);
    }
}

void report_html(const RunLog *logs, int n, Text *out) {
    Arena *arena = arena_new();
    text_add(out, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\n"
                  "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
                  "<meta name=\"color-scheme\" content=\"light dark\"/>\n<title>");
    page_title(out, logs, n);
    text_add(out, "</title>\n<style>\n");
    svg_style(out, true);
    text_add(out,
             "body{margin:0 auto;padding:24px;max-width:1540px;background:var(--back);"
             "color:var(--ink);font:15px/1.45 system-ui,sans-serif}h1{font-size:22px}"
             "h2{font-size:18px;margin-top:28px}\n"
             "table{border-collapse:collapse;margin:12px 0}th,td{text-align:left;padding:4px "
             "14px 4px 0;vertical-align:top;border-bottom:1px solid var(--grid)}"
             "tbody th{font-weight:400;color:var(--soft);white-space:nowrap}"
             ".swatch{display:inline-block;width:22px;height:4px;margin:0 8px 4px "
             "0;}\n"
             ".charts{display:flex;flex-wrap:wrap;gap:12px}.charts svg{background:var(--panel);"
             "border-radius:8px;max-width:100%%;height:auto}.said{white-space:pre-wrap;"
             "max-width:34em;overflow-wrap:anywhere}pre{overflow-x:auto;font-size:13px}"
             "summary{cursor:pointer;margin-top:16px}\n</style></head>\n<body>\n<h1>");
    page_title(out, logs, n);
    text_add(out, "</h1>\n");
    html_table(out, arena, logs, n);
    text_add(out, "<div class=\"charts\">\n");
    add_charts(out, arena, logs, n, 0, 0);
    text_add(out, "</div>\n");
    html_samples(out, logs, n);
    html_config(out, logs, n);
    text_add(out, "</body></html>\n");
    arena_free(arena);
}
