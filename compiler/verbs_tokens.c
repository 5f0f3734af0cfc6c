/* verbs_tokens.c: `tokens`: ids, pieces and loss mask, as training sees them. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/io/utf8.h"
#include "work.h"

#define SHOWN 3 /* pairs, without --limit */

/* One side of a pair: what the model reads, and from where it is scored. */
typedef struct Sequence {
    const char *side;
    Ids ids;
    int64_t prompt, scored; /* ids[.. prompt) are the pair's prompt, ids[scored ..] count */
} Sequence;

static Sequence sequence(const Pair *p, int side) {
    const int32_t *answer = side ? pair_rejected(p) : pair_chosen(p);
    int32_t n = side ? p->rejected : p->chosen;
    Sequence s = {.side = side ? "rejected" : "chosen", .prompt = p->prompt};
    s.scored = s.prompt + p->context[side];
    for (int i = 0; i < p->prompt; i++) ids_push(&s.ids, p->ids[i]);
    for (int i = 0; i < n; i++) ids_push(&s.ids, answer[i]);
    return s;
}

/* ---- for people ------------------------------------------------------------------------------ */

/* What a token stands for: names of control tokens as they are, other text in quotes. */
static void print_piece(const Tokenizer *t, int32_t id) {
    static const char escaped[] = "\n\t\r\"\\";
    size_t len;
    const char *bytes = t ? tokenizer_bytes(t, id, &len) : NULL;
    if (!bytes) {
        printf("?");
    } else if (tokenizer_is_special(t, id)) {
        printf("%s", tokenizer_piece(t, id));
    } else {
        putchar('"');
        for (size_t i = 0, n; i < len; i += n) {
            n = (size_t)utf8_length(bytes + i, len - i);
            unsigned char c = (unsigned char)bytes[i];
            const char *escape = c ? strchr(escaped, c) : NULL;
            if (escape)
                printf("\\%c", "ntr\"\\"[escape - escaped]);
            else if (n == 0 || c < ' ' || c == 0x7f)
                printf("\\x%02x", c);
            else
                fwrite(bytes + i, 1, n, stdout);
            if (n == 0) n = 1;
        }
        putchar('"');
    }
}

/* A line a token: side, id, 1 where it is scored, piece; what is scored stands out. */
static void print_ids(const Work *w, const Sequence *s, int64_t from) {
    bool color = options_color(w->options, stdout);
    for (int64_t i = from; i < s->ids.n; i++) {
        const char *on = !color ? "" : i >= s->scored ? "\033[1;32m" : "\033[2m";
        printf("%s%-8s %6d  %c  ", on, i < s->prompt ? "prompt" : s->side, s->ids.v[i],
               i >= s->scored ? '1' : '0');
        print_piece(w->tokenizer, s->ids.v[i]);
        printf("%s\n", color ? "\033[0m" : "");
    }
}

static void print_pair(const Work *w, const Pairs *pairs, const Pair *p, const Sequence *chosen,
                       const Sequence *rejected) {
    printf("# %s: prompt %d, chosen %d", pair_where(w->arena, pairs, p), p->prompt,
           pair_scored(p, 0));
    if (p->rejected) printf(", rejected %d", pair_scored(p, 1));
    printf("\n");
    print_ids(w, chosen, 0);
    if (p->rejected) print_ids(w, rejected, rejected->prompt);
}

/* ---- for programs ---------------------------------------------------------------------------- */

static json_t *ids_json(const Work *w, const Ids *ids) {
    json_t *o = json_object(), *list = json_array(), *pieces = json_array();
    for (int64_t i = 0; i < ids->n; i++) {
        const char *piece = w->tokenizer ? tokenizer_piece(w->tokenizer, ids->v[i]) : NULL;
        json_array_append_new(list, json_integer(ids->v[i]));
        json_array_append_new(pieces, piece ? json_string(piece) : json_null());
    }
    json_object_set_new(o, "ids", list);
    json_object_set_new(o, "pieces", pieces);
    return o;
}

static json_t *sequence_json(const Work *w, const Sequence *s) {
    json_t *o = ids_json(w, &s->ids), *mask = json_array();
    for (int64_t i = 0; i < s->ids.n; i++)
        json_array_append_new(mask, json_integer(i >= s->scored));
    json_object_set_new(o, "mask", mask);
    return o;
}

static json_t *pair_json(const Work *w, const Pairs *pairs, const Pair *p, const Sequence *chosen,
                         const Sequence *rejected) {
    json_t *o = json_object();
    json_object_set_new(o, "where", json_string(pair_where(w->arena, pairs, p)));
    json_object_set_new(o, "chosen", sequence_json(w, chosen));
    if (p->rejected) json_object_set_new(o, "rejected", sequence_json(w, rejected));
    return o;
}

/* ---- what is asked for ----------------------------------------------------------------------- */

/* A text as it stands; with a template asked for by name, as a user's message. */
static int show_text(Work *w, const Template *template, json_t *out) {
    Ids ids = {0};
    bool chat = template->named && template->kind == TEMPLATE_CHAT;
    int code = EXIT_OK;
    if (!work_prompt(w, template, w->options->text, chat, &ids))
        code = work_fail(w);
    else if (out)
        json_object_set_new(out, "text", ids_json(w, &ids));
    else
        print_ids(w, &(Sequence){"text", ids, 0, ids.n}, 0);
    ids_free(&ids);
    return code;
}

static void show_pairs(const Work *w, const Pairs *pairs, json_t *out) {
    double limit = isnan(w->options->limit) ? SHOWN : w->options->limit;
    int64_t n = (double)pairs->n > limit ? (int64_t)limit : pairs->n;
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++) {
        const Pair *p = &pairs->pair[i];
        Sequence chosen = sequence(p, 0);
        Sequence rejected = sequence(p, 1);
        if (out)
            json_array_append_new(list, pair_json(w, pairs, p, &chosen, &rejected));
        else
            print_pair(w, pairs, p, &chosen, &rejected);
        ids_free(&chosen.ids);
        ids_free(&rejected.ids);
    }
    if (out) {
        json_object_set_new(out, "data", pairs_summary_json(pairs));
        json_object_set_new(out, "pairs", json_integer(pairs->n));
        json_object_set_new(out, "shown", list);
        return;
    }
    json_decref(list);
    fflush(stdout);
    if (n < pairs->n) fprintf(stderr, "%lld more: --limit=N shows N\n", (long long)(pairs->n - n));
}

/* --data, else the file's data.train. */
static int show_data(Work *w, const Template *template, json_t *out) {
    int n;
    spec_data(w->spec, &n);
    if (n == 0) return work_usage("tokens needs --text S or --data PAIRS");
    Pairs *pairs = NULL;
    int code = work_train_pairs(w, template, &pairs);
    if (code == EXIT_OK) show_pairs(w, pairs, out);
    pairs_free(pairs);
    return code;
}

int verb_tokens(const Options *o) {
    Work w;
    work_init(&w, o);
    Template template;
    int code = work_check(&w, work_model_spec(o), false);
    const char *dir = code == EXIT_OK ? work_model_dir(&w) : NULL;
    if (code == EXIT_OK && !dir) code = work_usage("tokens needs --model DIR");
    if (dir && !file_exists(dir)) {
        fail(&w.err, EXIT_IO, "there is no directory %s", dir);
        code = work_fail(&w);
    }
    if (code == EXIT_OK) code = work_template(&w, &template);
    json_t *out = o->json ? json_object() : NULL;
    if (out && code == EXIT_OK && w.tokenizer) {
        json_object_set_new(out, "tokenizer", json_string(w.tokenizer->path));
        json_object_set_new(out, "template",
                            template.def.name ? json_string(template.def.name) : json_null());
    }
    if (code == EXIT_OK && o->text) code = show_text(&w, &template, out);
    if (code == EXIT_OK && (o->data.n || !o->text)) code = show_data(&w, &template, out);
    if (code == EXIT_OK && out) {
        char *text = json_dumps(out, JSON_COMPACT);
        printf("%s\n", text);
        free(text);
    }
    json_decref(out);
    work_close(&w);
    return code;
}
