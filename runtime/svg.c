/* svg.c: see svg.h. */
#include "svg.h"
#include "io/utf8.h"

#include <math.h>
#include <string.h>

enum { LEFT = 58, RIGHT = 16, TOP = 44, BOTTOM = 40 }; /* around the plot */
enum { PLOT_W = SVG_WIDTH - LEFT - RIGHT, PLOT_H = SVG_HEIGHT - TOP - BOTTOM };

/* ---- text ------------------------------------------------------------------------------------ */

void xml_escape(Text *out, const char *text) {
    Text valid = {0};
    utf8_repair(text, strlen(text), &valid);
    for (const char *s = valid.len ? valid.data : ""; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '<' || c == '>' || c == '&' || c == '"')
            text_add(out, "&#%d;", c);
        else if (c < 0x20 && c != '\n' && c != '\t')
            text_add(out, "\xef\xbf\xbd");
        else
            text_addn(out, s, 1);
    }
    text_free(&valid);
}

double svg_tick_step(double lo, double hi, int n) {
    double raw = (hi - lo) / n;
    if (!(raw > 0) || !isfinite(raw)) return 0;
    double scale = pow(10, floor(log10(raw))), f = raw / scale;
    return scale * (f <= 1.0000001 ? 1 : f <= 2.0000001 ? 2 : f <= 5.0000001 ? 5 : 10);
}

/* Digits behind the point that a multiple of `step` needs. */
static int digits_of(double step) {
    int digits = 0;
    for (; digits < 12 && fabs(step - round(step)) > 1e-6 * fabs(step); digits++) step *= 10;
    return digits;
}

void svg_tick_text(char out[32], double v, double step, double most) {
    static const struct {
        double from, scale;
        const char *suffix;
    } large[] = {{1e13, 1e12, "T"}, {1e10, 1e9, "G"}, {1e7, 1e6, "M"}, {1e4, 1e3, "k"}};
    if (fabs(v) < step * 1e-6) v = 0; /* no -0 */
    double scale = 1;
    const char *suffix = "";
    char exponent[16];
    for (size_t i = 0; i < COUNT(large) && scale == 1; i++)
        if (most >= large[i].from) scale = large[i].scale, suffix = large[i].suffix;
    if (most > 0 && most < 1e-3) {
        int e = (int)floor(log10(most));
        scale = pow(10, e);
        snprintf(exponent, sizeof exponent, "e%d", e);
        suffix = exponent;
    }
    snprintf(out, 32, "%.*f%s", digits_of(step / scale), v / scale, v == 0 ? "" : suffix);
}

/* ---- scales ---------------------------------------------------------------------------------- */

typedef struct Scale {
    double lo, hi, step;
} Scale;

static void cover(Scale *s, const double *v, const double *other, int n) {
    for (int i = 0; i < n; i++)
        if (isfinite(v[i]) && isfinite(other[i])) {
            s->lo = fmin(s->lo, v[i]);
            s->hi = fmax(s->hi, v[i]);
        }
}

/* Widens to multiples of a round step. */
static void round_out(Scale *s, int ticks) {
    if (!(s->lo <= s->hi)) *s = (Scale){0, 1, 0};
    if (s->hi - s->lo <= 1e-12 * fmax(fabs(s->lo), fabs(s->hi)) || s->hi == s->lo) {
        double room = s->lo != 0 ? fabs(s->lo) * 0.1 : 1;
        s->lo -= room;
        s->hi += room;
    }
    s->step = svg_tick_step(s->lo, s->hi, ticks);
    s->lo = floor(s->lo / s->step + 1e-9) * s->step;
    s->hi = ceil(s->hi / s->step - 1e-9) * s->step;
}

static Scale y_scale(const SvgChart *c) {
    Scale s = {c->from_zero ? 0 : INFINITY, c->from_zero ? 0 : -INFINITY, 0};
    for (int i = 0; i < c->nline; i++) cover(&s, c->line[i].y, c->line[i].x, c->line[i].n);
    if (c->hi > c->lo) s = (Scale){c->lo, c->hi, 0};
    round_out(&s, 5);
    return s;
}

static Scale x_scale(const SvgChart *c) {
    Scale s = {INFINITY, -INFINITY, 0};
    for (int i = 0; i < c->nline; i++) cover(&s, c->line[i].x, c->line[i].y, c->line[i].n);
    if (!(s.lo <= s.hi)) s.lo = 0, s.hi = 1;
    if (s.lo == s.hi) s.hi = s.lo + 1;
    s.step = fmax(1, svg_tick_step(s.lo, s.hi, 6));
    return s;
}

static double at_x(const Scale *s, double x) {
    return LEFT + (x - s->lo) / (s->hi - s->lo) * PLOT_W;
}

static double at_y(const Scale *s, double y) {
    double t = (y - s->lo) / (s->hi - s->lo);
    return TOP + PLOT_H - fmin(1.02, fmax(-0.02, t)) * PLOT_H;
}

/* ---- drawing --------------------------------------------------------------------------------- */

static void grid(Text *out, const SvgChart *c, const Scale *sx, const Scale *sy) {
    char text[32];
    double most = fmax(fabs(sy->lo), fabs(sy->hi));
    int n = (int)lround((sy->hi - sy->lo) / sy->step);
    for (int i = 0; i <= n; i++) {
        double v = sy->lo + i * sy->step, y = at_y(sy, v);
        svg_tick_text(text, v, sy->step, most);
        text_add(out, "<line class=\"%s\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>",
                 fabs(v) < sy->step * 1e-6 ? "zero" : "grid", LEFT, y, LEFT + PLOT_W, y);
        text_add(out, "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                 LEFT - 6, y + 4, text);
    }
    most = fmax(fabs(sx->lo), fabs(sx->hi));
    double first = ceil(sx->lo / sx->step) * sx->step;
    for (int i = 0; i < 12 && first + i * sx->step <= sx->hi * (1 + 1e-9); i++) {
        double v = first + i * sx->step;
        double x = at_x(sx, v);
        svg_tick_text(text, v, sx->step, most);
        text_add(out, "<line class=\"mark\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>", x,
                 TOP + PLOT_H, x, TOP + PLOT_H + 4);
        text_add(out, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
                 x, TOP + PLOT_H + 17, text);
    }
    text_add(out, "<text class=\"tick\" x=\"%d\" y=\"%d\" text-anchor=\"end\">", LEFT + PLOT_W,
             TOP + PLOT_H + 33);
    xml_escape(out, c->xlabel);
    text_add(out, "</text>\n");
}

typedef struct Pen { /* builds the data of a <path> */
    Text *out;
    bool down;
} Pen;

static void pen_to(Pen *p, double x, double y) {
    text_add(p->out, "%s%.1f %.1f", p->down ? "L" : "M", x, y);
    p->down = true;
}

/* All points, or in each column of half a pixel the first, least, greatest and last. */
static void path(Text *out, const SvgLine *l, const Scale *sx, const Scale *sy) {
    Pen pen = {out, false};
    enum { COLUMNS = 2 * PLOT_W };
    for (int i = 0; i < l->n;) {
        if (!isfinite(l->y[i]) || !isfinite(l->x[i])) {
            pen.down = false;
            i++;
            continue;
        }
        double x = at_x(sx, l->x[i]);
        int end = i + 1, low = i, high = i;
        while (l->n > COLUMNS && end < l->n && isfinite(l->y[end]) &&
               at_x(sx, l->x[end]) < x + 0.5) {
            if (l->y[end] < l->y[low]) low = end;
            if (l->y[end] > l->y[high]) high = end;
            end++;
        }
        int some[] = {i, low < high ? low : high, low < high ? high : low, end - 1};
        for (int k = 0; k < 4; k++)
            if (k == 0 || some[k] != some[k - 1])
                pen_to(&pen, at_x(sx, l->x[some[k]]), at_y(sy, l->y[some[k]]));
        i = end;
    }
}

static void draw(Text *out, const SvgLine *l, const Scale *sx, const Scale *sy) {
    static const char *const classes[] = {"line", "pale", "line dashed", "line thin"};
    int colour = l->colour % SVG_COLOURS;
    text_add(out, "<path class=\"%s c%d\" d=\"", classes[l->style], colour);
    path(out, l, sx, sy);
    text_add(out, "\"/>\n");
    for (int i = 0, finite = 0; i < l->n; i++) {
        if (!isfinite(l->y[i]) || !isfinite(l->x[i])) continue;
        if (l->style != SVG_POINTS && (finite++ > 0 || l->n > 1)) break; /* a lone value is a dot */
        text_add(out, "<circle class=\"dot c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>\n", colour,
                 at_x(sx, l->x[i]), at_y(sy, l->y[i]));
    }
}

/* What solid, dashed and dotted mean, at the right of the title. */
static void key(Text *out, const SvgChart *c) {
    static const char *const classes[] = {"line key", "line dashed key", "line thin key"};
    int x = SVG_WIDTH - RIGHT;
    for (int k = 2; k >= 0; k--) {
        if (!c->keys[k]) continue;
        text_add(out, "<text class=\"tick\" x=\"%d\" y=\"22\" text-anchor=\"end\">", x);
        xml_escape(out, c->keys[k]);
        text_add(out, "</text>");
        x -= 7 * (int)strlen(c->keys[k]) + 4;
        text_add(out, "<path class=\"%s\" d=\"M%d 18L%d 18\"/>", classes[k], x - 20, x);
        if (k == 2)
            text_add(out, "<circle class=\"dot key\" cx=\"%d\" cy=\"18\" r=\"3\"/>", x - 10);
        text_add(out, "\n");
        x -= 32;
    }
}

/* "loss: from 0.693 at step 1 to 0.41 at step 50" of every line that is not faint. */
static void describe(Text *out, const SvgChart *c) {
    for (int i = 0; i < c->nline; i++) {
        const SvgLine *l = &c->line[i];
        int first = 0, last = l->n - 1;
        while (first < l->n && !isfinite(l->y[first])) first++;
        while (last >= 0 && !isfinite(l->y[last])) last--;
        if (l->style == SVG_PALE || first > last) continue;
        text_add(out, "From %.4g at %.6g to %.4g at %.6g. ", l->y[first], l->x[first], l->y[last],
                 l->x[last]);
    }
}

void svg_chart(Text *out, const SvgChart *c, int id, int x, int y) {
    Scale sx = x_scale(c), sy = y_scale(c);
    text_add(out,
             "<svg class=\"chart\" role=\"img\" aria-labelledby=\"t%d d%d\" x=\"%d\" y=\"%d\" "
             "width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
             "xmlns=\"http://www.w3.org/2000/svg\">\n<title id=\"t%d\">",
             id, id, x, y, SVG_WIDTH, SVG_HEIGHT, SVG_WIDTH, SVG_HEIGHT, id);
    xml_escape(out, c->title);
    text_add(out, "</title><desc id=\"d%d\">", id);
    describe(out, c);
    text_add(out, "</desc>\n<text class=\"head\" x=\"12\" y=\"23\">");
    xml_escape(out, c->title);
    if (c->unit) {
        text_add(out, " <tspan class=\"tick\">");
        xml_escape(out, c->unit);
        text_add(out, "</tspan>");
    }
    text_add(out, "</text>\n");
    key(out, c);
    grid(out, c, &sx, &sy);
    for (int i = 0; i < c->nline; i++) draw(out, &c->line[i], &sx, &sy);
    text_add(out, "</svg>\n");
}

/* ---- colours --------------------------------------------------------------------------------- */

typedef struct Theme {
    const char *ink, *soft, *grid, *zero, *back, *panel;
    const char *curve[SVG_COLOURS];
} Theme;
/* Curves: colours of Okabe and Ito, told apart by people who see few, darkened or lightened until
 * they stand out from their background. */
static const Theme light = {
    "#1c1e21",
    "#5b6068",
    "#e3e5e8",
    "#9aa0a8",
    "#ffffff",
    "#f6f7f8",
    {"#0067a5", "#c8500a", "#00845c", "#b0468a", "#a67c00", "#2f8fc4", "#6a4fb3", "#5c5c5c"}};
static const Theme dark = {
    "#e8eaed",
    "#a8adb5",
    "#33373d",
    "#70767f",
    "#16181b",
    "#1f2226",
    {"#56b4e9", "#f08a4b", "#2fc39a", "#e58ac0", "#e6c02a", "#9bd0f0", "#a995ea", "#b8b8b8"}};

/* Colours are written out: viewers that know no variables of CSS show them, too. */
static void theme(Text *out, const Theme *t, bool page) {
    if (page)
        text_add(out, ":root{--ink:%s;--soft:%s;--grid:%s;--back:%s;--panel:%s}\n", t->ink, t->soft,
                 t->grid, t->back, t->panel);
    text_add(out,
             ".back{fill:%s}.chart text{fill:%s}.chart .tick{fill:%s}.grid{stroke:%s}"
             ".zero,.mark{stroke:%s}.dot{stroke:%s}.line.key{stroke:%s}.dot.key{fill:%s}\n",
             t->back, t->ink, t->soft, t->grid, t->zero, t->back, t->soft, t->soft);
    for (int i = 0; i < SVG_COLOURS; i++)
        text_add(out, ".line.c%d,.pale.c%d{stroke:%s}.dot.c%d{fill:%s}.swatch.c%d{background:%s}\n",
                 i, i, t->curve[i], i, t->curve[i], i, t->curve[i]);
}

void svg_style(Text *out, bool page) {
    text_add(out, ".chart text{font-family:system-ui,sans-serif}.chart "
                  ".tick{font-size:12px;font-weight:400}.chart .head{font-size:15px;"
                  "font-weight:600}\n.line,.pale{fill:none;stroke-width:2;stroke-linejoin:round}"
                  ".pale{opacity:.35;stroke-width:1}.dashed{stroke-dasharray:6 "
                  "4}.thin{stroke-width:1}\n");
    theme(out, &light, page);
    text_add(out, "@media(prefers-color-scheme:dark){\n");
    theme(out, &dark, page);
    text_add(out, "}\n");
}
