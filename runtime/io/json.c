/* json.c: see json.h.  jansson reads all integers as reals or none, so a text with a large one is
 * read a second time, and the numbers that are integers exactly are made such again. */
#include "json.h"

#include <math.h>

#define EXACT 9007199254740992.0 /* 2^53: below it a real has every digit of an integer */

/* `v` with whole reals as integers; takes the reference. */
static json_t *whole(json_t *v) {
    const char *key;
    json_t *item;
    size_t i;
    void *next;
    double x = json_real_value(v); /* 0 for what is no real */
    if (json_is_real(v) && fabs(x) < EXACT && floor(x) == x) {
        json_decref(v);
        return json_integer((json_int_t)x);
    }
    if (json_is_object(v))
        json_object_foreach_safe(v, next, key, item)
            json_object_set_new_nocheck(v, key, whole(json_incref(item)));
    if (json_is_array(v))
        json_array_foreach(v, i, item) json_array_set_new(v, i, whole(json_incref(item)));
    return v;
}

json_t *json_parse(const char *text, size_t len, size_t flags, json_error_t *e) {
    json_t *root = json_loadb(text, len, flags, e);
    if (root || json_error_code(e) != json_error_numeric_overflow) return root;
    root = json_loadb(text, len, flags | JSON_DECODE_INT_AS_REAL, e);
    return root ? whole(root) : NULL;
}
