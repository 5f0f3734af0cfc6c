/* pairs_tokens.c: see pairs_tokens.h.
 *
 * Every version of TRL has its own rules here and none of them says so in its settings; each rule
 * is one switch of PairsOptions.  Both sides are made whole (prompt + answer, and how many of these
 * tokens are prompt), then cut; what the two have in common is found afterwards (pairs.c).
 */
#include "pairs_tokens.h"

#include <stdlib.h> /* malloc */
#include <string.h> /* memcpy */

const char *const pairs_bos_names[] = {"once", "tokenizer", "always", "none", NULL};
const char *const pairs_eos_names[] = {"strings", "missing", "always", "none", NULL};
const char *const pairs_boundary_names[] = {"common", "count", "repair", "apart", NULL};
const char *const pairs_truncate_names[] = {"keep_start", "keep_end", "keep_answers",
                                            "prompt_first", NULL};

static const PairsLike likes[] = {
    {"dpoc", BOS_ONCE, EOS_STRINGS, BOUNDARY_COMMON, TRUNCATE_KEEP_START, 0, 1024},
    {"trl_1", BOS_TOKENIZER, EOS_STRINGS, BOUNDARY_COMMON, TRUNCATE_KEEP_START, 0, 1024},
    {"trl_0_24", BOS_NONE, EOS_ALWAYS, BOUNDARY_APART, TRUNCATE_KEEP_END, 512, 1024},
    {"trl_0_9", BOS_ALWAYS, EOS_MISSING, BOUNDARY_REPAIR, TRUNCATE_PROMPT_FIRST, 128, 512},
};

const PairsLike *pairs_like(const char *name) {
    for (size_t i = 0; i < COUNT(likes); i++)
        if (strcmp(likes[i].name, name) == 0) return &likes[i];
    return NULL;
}

void tokens_free(PairTokens *t) {
    ids_free(&t->prompt);
    for (int i = 0; i < 2; i++) ids_free(&t->side[i].ids);
}

/* ---- lists of ids ---------------------------------------------------------------------------- */

static void insert_front(Ids *ids, const int32_t *v, int64_t n) {
    for (int64_t i = 0; i < n; i++) ids_push(ids, 0); /* grows */
    if (!n) return;
    memmove(ids->v + n, ids->v, sizeof *v * (size_t)(ids->n - n));
    memcpy(ids->v, v, sizeof *v * (size_t)n);
}

static void drop_front(Ids *ids, int64_t n) {
    ids->n -= n;
    if (n && ids->n) memmove(ids->v, ids->v + n, sizeof *ids->v * (size_t)ids->n);
}

static int64_t common_prefix(const Ids *a, const Ids *b) {
    int64_t n = 0, limit = a->n < b->n ? a->n : b->n;
    while (n < limit && a->v[n] == b->v[n]) n++;
    return n;
}

/* ---- strings --------------------------------------------------------------------------------- */

/* bos before the ids from `begin` on, as the options say. */
static void put_bos(PairTokens *t, Ids *out, int64_t begin) {
    int32_t bos = t->template->tokenizer->bos;
    bool adds = t->template->tokenizer->adds_bos, there = out->n > begin && out->v[begin] == bos;
    PairsBos rule = t->options->bos;
    bool put = rule == BOS_ALWAYS ? !there : rule != BOS_NONE && adds;
    if (rule == BOS_ONCE) put = put && !there;
    if (!put || bos < 0) return;
    t->second_bos = t->second_bos || there;
    insert_front(out, &bos, 1);
}

static bool span_ends(TextSpan s, const char *end) {
    size_t n = strlen(end);
    return s.len >= n && memcmp(s.s + s.len - n, end, n) == 0;
}

/* Ids of a text of two parts, the second with `end` behind it. */
static void encode_text(PairTokens *t, TextSpan a, TextSpan b, const char *end, Ids *out) {
    Text text = {0};
    text_addn(&text, a.s, a.len);
    text_addn(&text, b.s, b.len);
    if (end) text_addn(&text, end, strlen(end));
    tokenizer_encode(t->template->tokenizer, text.len ? text.data : "", text.len, true, out);
    text_free(&text);
}

static void encode_strings(PairTokens *t, const Example *e) {
    const Tokenizer *tokenizer = t->template->tokenizer;
    const char *eos = tokenizer->eos >= 0 ? tokenizer_piece(tokenizer, tokenizer->eos) : NULL;
    if (t->options->eos != EOS_STRINGS) eos = NULL;
    TextSpan none = {"", 0};
    encode_text(t, e->text[PROMPT], none, NULL, &t->prompt);
    put_bos(t, &t->prompt, 0);
    for (int i = 0; i < t->sides; i++) {
        TextSpan answer = e->text[CHOSEN + i];
        const char *end = eos && !span_ends(answer, eos) ? eos : NULL;
        Ids *ids = &t->side[i].ids;
        if (t->options->boundary == BOUNDARY_APART) {
            encode_text(t, none, answer, end, ids);
            insert_front(ids, t->prompt.v, t->prompt.n);
        } else {
            encode_text(t, e->text[PROMPT], answer, end, ids);
            put_bos(t, ids, 0);
        }
    }
}

/* ---- conversations --------------------------------------------------------------------------- */

/* The ids of the prompt's messages and then the answer's; without an answer, of the prompt up to
 * where one would begin. */
static bool encode_turns(PairTokens *t, const Turns *prompt, const Turns *answer, Ids *out,
                         Err *err) {
    int n = prompt->n + (answer ? answer->n : 0);
    Message *all = malloc(sizeof *all * (size_t)(n + 1));
    if (!all) return fail(err, EXIT_MEMORY, "no memory for a conversation");
    memcpy(all, prompt->m, sizeof *all * (size_t)prompt->n);
    if (answer) memcpy(all + prompt->n, answer->m, sizeof *all * (size_t)answer->n);
    bool ok = template_encode(t->template, all, n, !answer, out, err);
    free(all);
    if (ok && t->options->bos == BOS_ALWAYS) put_bos(t, out, 0);
    return ok;
}

static bool encode_chat(PairTokens *t, const Example *e, Err *err) {
    if (!encode_turns(t, &e->turns[PROMPT], NULL, &t->prompt, err)) return false;
    for (int i = 0; i < t->sides; i++)
        if (!encode_turns(t, &e->turns[PROMPT], &e->turns[CHOSEN + i], &t->side[i].ids, err))
            return false;
    return true;
}

/* ---- both ------------------------------------------------------------------------------------ */

/* Where each answer begins. */
static void find_answers(PairTokens *t) {
    int64_t n = t->prompt.n, common = n;
    int64_t prefix[2] = {n, n};
    for (int i = 0; i < t->sides; i++) {
        prefix[i] = common_prefix(&t->prompt, &t->side[i].ids);
        if (prefix[i] < common) common = prefix[i];
    }
    t->merged = common < n;
    for (int i = 0; i < t->sides; i++) {
        Side *s = &t->side[i];
        PairsBoundary rule = t->options->boundary;
        s->context = common;
        if (rule == BOUNDARY_COUNT) s->context = n;
        if (rule == BOUNDARY_REPAIR) s->context = prefix[i] < n ? n - 1 : n;
        if (rule == BOUNDARY_COUNT && prefix[i] < n) { /* the prompt keeps its own tokens */
            if (s->ids.n < n) s->ids.n = 0;
            drop_front(&s->ids, s->ids.n ? n : 0);
            insert_front(&s->ids, t->prompt.v, n);
        }
        if (s->context > s->ids.n) s->context = s->ids.n;
    }
}

static void put_eos(PairTokens *t) {
    int32_t eos = t->template->tokenizer->eos;
    PairsEos rule = t->options->eos;
    if (eos < 0 || rule == EOS_STRINGS || rule == EOS_NONE) return;
    for (int i = 0; i < t->sides; i++) {
        const Side *s = &t->side[i];
        bool there = s->ids.n > s->context && s->ids.v[s->ids.n - 1] == eos;
        if (rule == EOS_ALWAYS || !there) ids_push(&t->side[i].ids, eos);
    }
}

static void take_ids(PairTokens *t, const Example *e) {
    for (int i = 0; i < t->sides; i++) {
        Side *s = &t->side[i];
        const json_t *part[] = {e->ids[PROMPT], e->ids[CHOSEN + i]};
        for (size_t k = 0; k < COUNT(part); k++)
            for (size_t j = 0; j < json_array_size(part[k]); j++)
                ids_push(&s->ids, (int32_t)json_integer_value(json_array_get(part[k], j)));
        s->context = (int64_t)json_array_size(e->ids[PROMPT]);
    }
}

bool tokens_encode(PairTokens *t, const Example *e, Err *err) {
    t->prompt.n = t->side[0].ids.n = t->side[1].ids.n = 0;
    t->merged = t->second_bos = t->cut_prompt = t->cut = false;
    t->sides = t->options->sft ? 1 : 2;
    if (e->kind == EXAMPLE_IDS) return take_ids(t, e), true;
    if (e->kind == EXAMPLE_TEXT)
        encode_strings(t, e);
    else if (!encode_chat(t, e, err))
        return false;
    find_answers(t);
    put_eos(t);
    return true;
}

/* ---- cutting --------------------------------------------------------------------------------- */

static int64_t answer_length(const Side *s) {
    return s->ids.n - s->context;
}

static void cut_context(PairTokens *t, Side *s, int64_t n) { /* n tokens from its beginning */
    if (n <= 0) return;
    drop_front(&s->ids, n);
    s->context -= n;
    t->cut_prompt = true;
}

static void cut_answer(PairTokens *t, Side *s, int64_t to) { /* so many tokens are left */
    if (answer_length(s) <= to) return;
    s->ids.n = s->context + (to > 0 ? to : 0);
    t->cut = true;
}

/* The last `max` tokens; the first of them is predicted by nothing. */
static void keep_end(PairTokens *t, Side *s, int64_t max) {
    int64_t over = s->ids.n - max;
    if (over <= 0) return;
    t->cut_prompt = true;
    t->cut = t->cut || over >= s->context;
    drop_front(&s->ids, over);
    s->context = over < s->context ? s->context - over : 1;
}

bool tokens_cut(PairTokens *t) {
    const PairsOptions *o = t->options;
    int64_t max = o->max_length ? o->max_length : INT64_MAX, longer = 0, context = 0;
    bool prompt_first = o->truncate == TRUNCATE_PROMPT_FIRST;
    for (int i = 0; i < t->sides; i++) {
        Side *s = &t->side[i];
        if (o->max_prompt && !prompt_first) cut_context(t, s, s->context - o->max_prompt);
        if (o->max_answer) cut_answer(t, s, o->max_answer);
        if (answer_length(s) > longer) longer = answer_length(s);
        if (s->context > context) context = s->context;
    }
    int64_t over = context + longer - max;
    for (int i = 0; i < t->sides && over > 0; i++) {
        Side *s = &t->side[i];
        if (prompt_first) {
            if (s->context + longer > max) cut_context(t, s, s->context - o->max_prompt);
            if (s->context + longer > max) cut_answer(t, s, max - o->max_prompt);
        } else if (o->truncate == TRUNCATE_KEEP_END) {
            keep_end(t, s, max);
        } else {
            if (o->truncate == TRUNCATE_KEEP_ANSWERS)
                cut_context(t, s, over < s->context ? over : s->context - 1);
            cut_answer(t, s, max - s->context);
        }
    }
    for (int i = 0; i < t->sides; i++)
        if (answer_length(&t->side[i]) < 1 || t->side[i].context < 1) return false;
    return true;
}
