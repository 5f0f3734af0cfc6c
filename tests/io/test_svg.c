/* Charts: ticks at round numbers, well-formed XML whatever the values, all numbers finite, points
 * where they belong.  With arguments: checks these files, for tests/e2e/report.sh. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/svg.h"
#include "tests/io/xml.h"

static void check_steps(void **state) {
    static const struct {
        double lo, hi, want;
    } rows[] = {{0, 1, 0.2},     {0, 0.7, 0.2},   {0.69, 0.7, 0.002}, {-3, 4, 2},
                {0, 5e-5, 1e-5}, {0, 50000, 1e4}, {0, 24.5, 5},       {1e9, 1e9 + 3, 1}};
    for (size_t i = 0; i < COUNT(rows); i++)
        assert_true(fabs(svg_tick_step(rows[i].lo, rows[i].hi, 5) / rows[i].want - 1) < 1e-9);
    assert_true(svg_tick_step(1, 1, 5) == 0);
    assert_true(svg_tick_step(0, NAN, 5) == 0);
}

static void check_labels(void **state) {
    static const struct {
        double v, step, most;
        const char *want;
    } rows[] = {
        {0.25, 0.05, 1, "0.25"},        {0, 0.2, 1, "0.0"},          {-1e-17, 0.2, 1, "0.0"},
        {12000, 2000, 20000, "12k"},    {2500, 2500, 20000, "2.5k"}, {3e-5, 1e-5, 5e-5, "3e-5"},
        {2.5e-5, 5e-6, 5e-5, "2.5e-5"}, {0, 1e-5, 5e-5, "0"},        {40, 20, 120, "40"},
        {-800, 200, 1000, "-800"},      {3e12, 1e12, 2e13, "3T"}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        char got[32];
        svg_tick_text(got, rows[i].v, rows[i].step, rows[i].most);
        assert_string_equal(got, rows[i].want);
    }
}

static void draw(Text *out, const double *x, const double *y, int n, SvgStyle style) {
    SvgLine line = {x, y, n, 3, style};
    SvgChart chart = {.title = "a < b & \"c\"",
                      .unit = "GiB",
                      .xlabel = "step",
                      .keys = {"one", "two", "three"},
                      .line = &line,
                      .nline = 1};
    out->len = 0;
    svg_chart(out, &chart, 7, 0, 0);
    const char *wrong = xml_check(out->data);
    if (!wrong) wrong = xml_numbers(out->data);
    assert_string_equal(wrong ? wrong : "", "");
}

/* What a run can bring: nothing, one value, all equal, no number at all, gaps, extremes, many. */
static void check_odd(void **state) {
    enum { MANY = 100000 };
    double *x = calloc(MANY, sizeof *x), *y = calloc(MANY, sizeof *y);
    for (int i = 0; i < MANY; i++) x[i] = i, y[i] = sin(i * 0.001) + (i % 7) * 0.01;
    Text out = {0};
    static const double odd[][3] = {
        {1, 1, 1},          {NAN, NAN, NAN},     {NAN, 2, NAN},          {INFINITY, 1, 2},
        {-1e300, 0, 1e300}, {1e-300, 2e-300, 0}, {0.1, 0.1 + 1e-16, 0.1}};
    for (SvgStyle style = SVG_LINE; style <= SVG_POINTS; style++) {
        draw(&out, x, y, 0, style);
        draw(&out, x, y, 1, style);
        assert_non_null(strstr(out.data, "<circle class=\"dot c3\"")); /* a lone value is seen */
        for (size_t i = 0; i < COUNT(odd); i++) draw(&out, x, odd[i], 3, style);
    }
    static const double far[] = {1e17, 1e17 + 16, -1e300}, two[] = {1, 2, 3};
    draw(&out, far, two, 2, SVG_LINE);
    draw(&out, far, two, 3, SVG_LINE);
    draw(&out, x, y, MANY, SVG_LINE);
    assert_true(out.len < 60000); /* thinned to what the width can show */
    text_free(&out);
    free(x);
    free(y);
}

/* A line from (0, 0) to (10, 1), range 0..1: from the plot's lower left corner to its upper right;
 * a peak between two of many points is not lost. */
static void check_places(void **state) {
    const double x[] = {0, 10}, y[] = {0, 1};
    SvgLine line = {x, y, 2, 0, SVG_LINE};
    SvgChart chart = {.title = "t", .xlabel = "step", .line = &line, .nline = 1};
    Text out = {0};
    svg_chart(&out, &chart, 1, 0, 0);
    assert_non_null(strstr(out.data, "d=\"M58.0 240.0L464.0 44.0\""));
    assert_non_null(strstr(out.data, "From 0 at 0 to 1 at 10."));
    for (int v = 0; v <= 10; v += 2) { /* a tick each two steps */
        char tick[64];
        snprintf(tick, sizeof tick, "text-anchor=\"middle\">%d</text>", v);
        assert_non_null(strstr(out.data, tick));
    }
    enum { MANY = 20000 };
    double *many = calloc(MANY, sizeof *many), *at = calloc(MANY, sizeof *at);
    for (int i = 0; i < MANY; i++) at[i] = i;
    many[12345] = 1;
    line = (SvgLine){at, many, MANY, 0, SVG_LINE};
    out.len = 0;
    svg_chart(&out, &chart, 1, 0, 0);
    assert_non_null(strstr(out.data, " 44.0L"));
    free(many);
    free(at);
    text_free(&out);
}

static void check_escape(void **state) {
    Text out = {0};
    xml_escape(&out, "<a href=\"x\">&\x01\xff\n");
    assert_string_equal(out.data, "&#60;a href=&#34;x&#34;&#62;&#38;\xef\xbf\xbd\xef\xbf\xbd\n");
    text_free(&out);
}

/* The checker itself can say no. */
static void check_checker(void **state) {
    assert_null(xml_check("<a b=\"&#60;\"><c/>x</a>"));
    assert_null(xml_check("<a><![CDATA[ < && ]]></a>"));
    static const char *const bad[] = {"<a>",
                                      "<a></b>",
                                      "<a b=c/>",
                                      "<a>&</a>",
                                      "<a/><b/>",
                                      "x<a/>",
                                      "<a b=\"1\" b=\"2\"/>",
                                      "<a><b></a></b>",
                                      "<a><![CDATA[ </a>"};
    for (size_t i = 0; i < COUNT(bad); i++) assert_non_null(xml_check(bad[i]));
    assert_non_null(xml_numbers("<a x=\"nan\"/>"));
}

static int check_file(const char *path) {
    Err err = {0};
    size_t len;
    char *text = file_read(path, &len, &err);
    const char *wrong = text ? xml_check(text) : err.text;
    if (!wrong) wrong = xml_numbers(text);
    if (wrong) fprintf(stderr, "%s: %s\n", path, wrong);
    free(text);
    return wrong != NULL;
}

int main(int argc, char **argv) {
    int bad = 0;
    for (int i = 1; i < argc; i++) bad += check_file(argv[i]);
    if (argc > 1) return bad;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_steps),  cmocka_unit_test(check_labels),
        cmocka_unit_test(check_odd),    cmocka_unit_test(check_places),
        cmocka_unit_test(check_escape), cmocka_unit_test(check_checker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
