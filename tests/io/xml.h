/* xml.h: whether text is well-formed XML, as far as our pages use it: one root, tags closed in
 * order, attributes quoted and not repeated, & only in references, no control characters;
 * CDATA may hold anything.
 * Returns NULL, or what is wrong. */
#ifndef DPOC_TESTS_XML_H
#define DPOC_TESTS_XML_H

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static char xml_wrong[200];

static const char *xml_says(const char *what, const char *at) {
    snprintf(xml_wrong, sizeof xml_wrong, "%s: %.60s", what, at);
    return xml_wrong;
}

static size_t xml_name(const char *s) {
    size_t n = 0;
    while (isalnum((unsigned char)s[n]) || (s[n] && strchr("-_:.", s[n]))) n++;
    return n;
}

/* The text from s to the first of `end`, in which & begins a reference. */
static const char *xml_text(const char *s, char end, const char **wrong) {
    for (; *s && *s != end; s++) {
        if (*s == '<') *wrong = xml_says("< in text", s);
        size_t n = *s == '&' ? strcspn(s, ";< \n") : 1;
        if (*s == '&' && (n < 2 || n > 8 || s[n] != ';')) *wrong = xml_says("lone &", s);
        if ((unsigned char)*s < 0x20 && *s != '\n' && *s != '\t') *wrong = xml_says("control", s);
    }
    return s;
}

/* Attributes up to > or />. */
static const char *xml_attributes(const char *s, const char **wrong) {
    const char *seen[32];
    size_t length[32], nseen = 0;
    for (;;) {
        s += strspn(s, " \n");
        size_t n = xml_name(s);
        if (n == 0) return s;
        for (size_t i = 0; i < nseen; i++)
            if (length[i] == n && !strncmp(seen[i], s, n)) *wrong = xml_says("twice", s);
        if (nseen < 32) seen[nseen] = s, length[nseen++] = n;
        if (strncmp(s + n, "=\"", 2) != 0) {
            *wrong = xml_says("no quoted value", s);
            return s + strlen(s);
        }
        s = xml_text(s + n + 2, '"', wrong);
        s += *s == '"';
    }
}

static const char *xml_check(const char *s) {
    const char *open[64], *wrong = NULL;
    size_t length[64];
    int depth = 0, roots = 0;
    if (!strncmp(s, "<!DOCTYPE html>", 15)) s += 15;
    while (*s && !wrong) {
        if (*s != '<') {
            const char *begin = s;
            while (*s && *s != '<') s = xml_text(s, '<', &wrong);
            if (depth == 0 && strspn(begin, " \n") < (size_t)(s - begin))
                return xml_says("text outside", begin);
            continue;
        }
        if (depth && !strncmp(s, "<![CDATA[", 9)) {
            const char *end = strstr(s, "]]>");
            if (!end) return xml_says("not closed", s);
            s = end + 3;
            continue;
        }
        bool closes = s[1] == '/';
        const char *name = s + 1 + closes;
        size_t n = xml_name(name);
        if (n == 0) return xml_says("no name", s);
        if (closes) {
            if (depth == 0 || length[depth - 1] != n || strncmp(open[depth - 1], name, n) != 0)
                return xml_says("closes another", s);
            depth--;
            s = name + n;
        } else {
            s = xml_attributes(name + n, &wrong);
            roots += depth == 0;
            bool empty = *s == '/';
            if (!empty && depth < 64) open[depth] = name, length[depth++] = n;
            s += empty;
        }
        if (*s != '>') return wrong ? wrong : xml_says("no >", s);
        s++;
    }
    if (wrong) return wrong;
    return depth ? xml_says("not closed", open[depth - 1]) : roots == 1 ? NULL : "not one root";
}

/* A number in an attribute that is none: "nan", "inf". */
static const char *xml_numbers(const char *s) {
    for (const char *q = s; (q = strchr(q, '"')) && strchr(q + 1, '"');
         q = strchr(q + 1, '"') + 1) {
        size_t n = strcspn(q + 1, "\"");
        for (const char *p = q; p < q + n; p++)
            if (!strncmp(p, "nan", 3) || !strncmp(p, "inf", 3)) return xml_says("no number", q);
    }
    return NULL;
}

#endif
