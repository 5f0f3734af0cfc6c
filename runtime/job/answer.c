/* answer.c: an answer as text, while it grows.
 *
 * Decoding a few ids together gives the text of the last ones as it is behind the others (job.h);
 * the difference to the text of the others alone is new.  A text that ends in U+FFFD may be the
 * beginning of a character whose other bytes come with the next token, so it waits, but not for
 * more tokens than a character has bytes.  Relies on tokenizer.h.  Promises: the pieces together
 * are the answer's text, each valid UTF-8; time is linear in the answer. */
#include <string.h>

#include "job.h"

enum { ALONG = 4, WAIT = 4 }; /* ids before what is new; tokens a character may take */

/* The text of ids begin .. end, prompt and answer numbered as one. */
static void decode(const AnswerText *a, const Answer *x, int64_t begin, int64_t end, Text *out) {
    Ids ids = {0};
    for (int64_t i = begin; i < end; i++)
        ids_push(&ids, i < x->nprompt ? x->prompt[i] : x->ids.v[i - x->nprompt]);
    tokenizer_decode(a->tokenizer, ids.v, ids.n, true, out);
    ids_free(&ids);
}

static bool unfinished(const Text *text) {
    return text->len >= 3 && memcmp(text->data + text->len - 3, "\xef\xbf\xbd", 3) == 0;
}

size_t answer_text(AnswerText *a, const Answer *answer, bool last) {
    const size_t before = a->text.len;
    const int64_t end = answer->nprompt + answer->ids.n;
    if (a->done < answer->nprompt) a->done = answer->nprompt;
    if (a->done == end) return before;
    const int64_t begin = a->done > ALONG ? a->done - ALONG : 0;
    Text old = {0}, all = {0};
    decode(a, answer, begin, a->done, &old);
    decode(a, answer, begin, end, &all);
    const bool waits = unfinished(&all) && !last && end - a->done < WAIT;
    if (!waits) {
        size_t from = old.len; /* ids that are no text may change what stood before them */
        while (from < all.len && (all.data[from] & 0xc0) == 0x80) from++;
        if (from < all.len) text_addn(&a->text, all.data + from, all.len - from);
        a->done = end;
    }
    text_free(&old);
    text_free(&all);
    return before;
}

void answer_text_free(AnswerText *a) {
    text_free(&a->text);
}
