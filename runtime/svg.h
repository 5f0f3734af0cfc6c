/* svg.h: line charts as SVG text: no scripts, no fonts of its own, colours from classes.
 *
 * Axis ticks are round numbers; values that are not finite leave gaps; many points are thinned to
 * what the width can show (least and greatest of each column).  What is drawn has a title and a
 * description for those who cannot see it.  Same input, same bytes.
 */
#ifndef DPOC_SVG_H
#define DPOC_SVG_H

#include "base.h"

typedef enum SvgStyle {
    SVG_LINE, /* a curve */
    SVG_PALE, /* the same, faint: values before smoothing */
    SVG_DASHED,
    SVG_POINTS /* a line with a mark at each value */
} SvgStyle;

typedef struct SvgLine {
    const double *x, *y;
    int n;
    int colour; /* from 0, repeating after SVG_COLOURS */
    SvgStyle style;
} SvgLine;
#define SVG_COLOURS 8

typedef struct SvgChart {
    const char *title, *unit; /* unit: of y, or NULL */
    const char *xlabel;
    const char *keys[3]; /* what solid, dashed lines and points mean; NULL: not explained */
    double lo, hi;       /* range of y; equal: from the values */
    bool from_zero;      /* the range includes 0 */
    const SvgLine *line;
    int nline;
} SvgChart;

enum { SVG_WIDTH = 480, SVG_HEIGHT = 280 }; /* of one chart */

/* One <svg> element; `id` is unique in its page; x, y: its place in an outer <svg>, or 0. */
void svg_chart(Text *out, const SvgChart *chart, int id, int x, int y);
/* The style sheet that charts need, for light and for dark screens; `page`: also for a page around
 * them. */
void svg_style(Text *out, bool page);

/* Round steps for about n ticks of a range; 0 where there is none. */
double svg_tick_step(double lo, double hi, int n);
/* The text of a tick at `v` when ticks are `step` apart and none is farther from 0 than `most`:
 * "0.25", "12k", "5e-05". */
void svg_tick_text(char out[32], double v, double step, double most);
/* Text with what XML reserves escaped; bytes that are not UTF-8 and control characters become
 * U+FFFD. */
void xml_escape(Text *out, const char *text);

#endif
