/* The packer by its meaning: from the segments alone, what each scored row sees must be its prompt
 * and the beginning of its answer, whatever the packing; and the orders of epochs. */
#include "runtime/job/epoch.h"
#include "runtime/job/pack.h"
#include "tests/io/io.h"

static uint64_t seed = 1;
static int64_t below(int64_t n) {
    return (int64_t)(mix64(seed++, 3, 5) % (uint64_t)n);
}

/* Pairs of random lengths from 1 on, some whose sides differ in the end of their prompt or in all
 * of it; token values tell nothing of their place. */
static Pairs *random_pairs(int64_t n, int max_prompt, int max_answer, bool sft) {
    Arena *a = arena_new();
    Pairs *p = NEW(a, Pairs);
    p->arena = a;
    p->n = n;
    p->pair = NEW_ARRAY(a, Pair, n);
    p->file = NEW(a, PairsFile);
    p->file->path = "random.jsonl";
    p->ncolumns = 2;
    p->columns = NEW_ARRAY(a, const char *, 2);
    p->columns[0] = "score", p->columns[1] = "margin";
    p->column = NEW_ARRAY(a, float, 2 * n);
    for (int64_t i = 0; i < n; i++) {
        int32_t len[3] = {1 + (int32_t)below(max_prompt), 1 + (int32_t)below(max_answer),
                          sft ? 0 : 1 + (int32_t)below(max_answer)};
        int32_t *ids = NEW_ARRAY(a, int32_t, len[0] + len[1] + len[2]);
        for (int k = 0; k < len[0] + len[1] + len[2]; k++) ids[k] = (int32_t)below(1000);
        Pair *x = &p->pair[i];
        *x = (Pair){ids, len[0], len[1], len[2], {0}, 0, (int32_t)i + 1};
        if (below(3) == 0)
            for (int side = 0; side < (sft ? 1 : 2); side++)
                x->context[side] = (int32_t)below(len[1 + side]);
        if (x->context[0] && (sft || x->context[1]) && below(2)) x->prompt = 0;
        p->column[2 * i] = (float)i, p->column[2 * i + 1] = (float)-i;
    }
    return p;
}

static void *input(const Micro *m, const char *name, int64_t count) {
    for (int i = 0; i < m->ninput; i++)
        if (strcmp(m->input[i].name, name) == 0) {
            assert_int_equal(m->input[i].bytes, count * 4);
            return (void *)m->input[i].data;
        }
    fail_msg("no input %s", name);
    return NULL;
}

typedef struct View { /* the arrays of a micro-batch */
    int32_t *tokens, *pos, (*segs)[6], (*ranges)[4], (*rowkey)[2];
    int32_t *row, *target, *seq, *place, *side, *len, *chosen, *rejected;
} View;

static View view(const Micro *m) {
    const int64_t *x = m->extent;
    return (View){input(m, "tokens", x[X_T]),     input(m, "pos", x[X_T]),
                  input(m, "segs", 6 * x[X_G]),   input(m, "ranges", 4 * x[X_K]),
                  input(m, "rowkey", 2 * x[X_T]), input(m, "row", x[X_R]),
                  input(m, "target", x[X_R]),     input(m, "seq", x[X_R]),
                  input(m, "place", x[X_R]),      input(m, "side", x[X_R]),
                  input(m, "len", x[X_N]),        input(m, "chosen", x[X_P]),
                  input(m, "rejected", x[X_P])};
}

/* The rows that row t sees, in order; also checks that t is in exactly one segment. */
static int visible(const View *v, const Micro *m, int64_t t, int32_t *rows) {
    int n = 0, segments = 0;
    for (int64_t g = 0; g < m->extent[X_G]; g++) {
        const int32_t *s = v->segs[g];
        if (t < s[0] || t >= s[0] + s[1]) continue;
        segments++;
        for (int32_t k = 0; k < s[3]; k++) rows[n++] = s[2] + k;
        for (int32_t k = 0; k <= t - s[0] + s[5] - s[1]; k++) rows[n++] = s[4] + k;
    }
    assert_int_equal(segments, 1);
    return n;
}

/* The inverse table: for every key, the segments its range names are those that see it. */
static void check_ranges(const View *v, const Micro *m) {
    const int64_t *x = m->extent;
    for (int64_t key = 0; key < x[X_T]; key++) {
        int found = 0;
        for (int64_t k = 0; k < x[X_K]; k++) {
            const int32_t *r = v->ranges[k];
            if (key < r[0] || key >= r[0] + r[1]) continue;
            found++;
            for (int64_t g = 0; g < x[X_G]; g++) {
                const int32_t *s = v->segs[g];
                bool sees =
                    (key >= s[2] && key < s[2] + s[3]) || (key >= s[4] && key < s[4] + s[5]);
                assert_int_equal(sees, g >= r[2] && g < r[2] + r[3]);
            }
        }
        assert_int_equal(found, 1);
    }
}

static void check_scored(const View *v, const Micro *m, const Pairs *p, const PackItem *items,
                         bool sft) {
    const int64_t *x = m->extent;
    int32_t *rows = malloc(sizeof *rows * (size_t)x[X_T]);
    int64_t scored = 0;
    for (int64_t i = 0; i < x[X_P]; i++) {
        const Pair *pair = &p->pair[items[m->item[i]].pair];
        assert_int_equal(v->rejected[i] == -1, sft);
        for (int side = 0; side < (sft ? 1 : 2); side++) {
            int32_t seq = side ? v->rejected[i] : v->chosen[i], place = 0;
            const int32_t *answer = side ? pair_rejected(pair) : pair_chosen(pair);
            int32_t context = pair->context[side];
            assert_int_equal(v->len[seq], (side ? pair->rejected : pair->chosen) - context);
            for (int64_t r = 0; r < x[X_R]; r++) {
                if (v->seq[r] != seq) continue;
                assert_int_equal(v->side[r], side);
                assert_int_equal(v->place[r], place);
                assert_int_equal(v->target[r], answer[context + place]);
                int n = visible(v, m, v->row[r], rows);
                assert_int_equal(n, pair->prompt + context + place);
                for (int k = 0; k < n; k++) {
                    assert_int_equal(v->pos[rows[k]], k);
                    assert_int_equal(v->tokens[rows[k]],
                                     k < pair->prompt ? pair->ids[k] : answer[k - pair->prompt]);
                }
                place++;
            }
            assert_int_equal(place, v->len[seq]);
            scored += place;
        }
    }
    for (int64_t r = 0; r < x[X_R]; r++)
        if (v->seq[r] == -1) {
            assert_int_equal(v->target[r], -1);
            assert_int_equal(v->row[r] + v->place[r] + v->side[r], 0);
            scored++;
        }
    assert_int_equal(scored, x[X_R]);
    free(rows);
}

static void check_step(const PackOptions *o, const Pairs *p, const PackItem *items, int n) {
    Arena *arena = arena_new();
    Pack *pack = pack_step(arena, o, p, items, n);
    bool *seen = NEW_ARRAY(arena, bool, n);
    int64_t chosen = 0, rejected = 0;
    for (int k = 0; k < pack->nmicro; k++) {
        const Micro *m = &pack->micro[k];
        const int64_t *x = m->extent;
        View v = view(m);
        for (int e = 0; e < NEXTENT; e++) assert_in_range(x[e], 0, o->bound[e]);
        assert_int_equal(x[X_T] % o->bucket + x[X_R] % o->bucket, 0);
        assert_in_range(x[X_T] - m->tokens, 0, o->bucket - 1);
        check_ranges(&v, m);
        check_scored(&v, m, p, items, o->sft);
        const float *score = input(m, "pair.score", x[X_P]),
                    *margin = input(m, "pair.margin", x[X_P]);
        for (int64_t i = 0; i < x[X_P]; i++) {
            int item = m->item[i];
            assert_false(seen[item]);
            seen[item] = true;
            const Pair *pair = &p->pair[items[item].pair];
            chosen += pair->chosen - pair->context[0];
            rejected += pair->rejected - pair->context[1];
            assert_true(score[i] == (float)items[item].pair && margin[i] == -score[i]);
        }
    }
    for (int i = 0; i < n; i++) assert_true(seen[i]);
    assert_int_equal(pack->chosen_tokens, chosen);
    assert_int_equal(pack->rejected_tokens, rejected);
    for (int k = 0; k < pack->nmicro; k++) {
        const Micro *m = &pack->micro[k];
        assert_true(*(const float *)input(m, "inv_pairs", 1) == (float)(1.0 / n));
        assert_true(*(const float *)input(m, "inv_tokens", 1) ==
                    (float)(1.0 / (double)(chosen + rejected)));
        assert_true(*(const float *)input(m, "inv_tokens_chosen", 1) ==
                    (float)(1.0 / (double)chosen));
        assert_true(*(const float *)input(m, "inv_tokens_rejected", 1) ==
                    (rejected ? (float)(1.0 / (double)rejected) : 0));
    }
    arena_free(arena);
}

static PackOptions options(int64_t tokens, int64_t bucket, bool prefix, bool sft) {
    PackOptions o = {.bucket = bucket, .prefix = prefix, .sft = sft};
    o.bound[X_T] = o.bound[X_R] = o.bound[X_G] = o.bound[X_K] = o.bound[X_N] = o.bound[X_P] =
        tokens;
    return o;
}

static void meaning(void **state) {
    for (int round = 0; round < 60; round++) {
        bool sft = round % 5 == 4, prefix = round % 2;
        Pairs *p = random_pairs(1 + below(12), round % 3 ? 20 : 1, round % 4 ? 15 : 1, sft);
        PackOptions o = options(64 + 16 * below(6), (int64_t[]){1, 4, 16}[round % 3], prefix, sft);
        PackItem items[12];
        for (int i = 0; i < p->n; i++) items[i] = (PackItem){p->n - 1 - i, i, round};
        Err err = {0};
        if (pack_check(&o, p, 1000, &err))
            check_step(&o, p, items, (int)p->n);
        else
            assert_non_null(strstr(err.text, "run.tokens"));
        pairs_free(p);
    }
}

/* Several processes: each pair is one's, counts and denominators are everybody's, and no process
 * has more rows than another by more than one pair's. */
static void shares(void **state) {
    for (int round = 0; round < 30; round++) {
        int ranks = 2 + (int)below(4), n = 1 + (int)below(12);
        Pairs *p = random_pairs(n, 20, 15, false);
        PackOptions o = options(160, 4, round % 2, false);
        PackItem items[12];
        for (int i = 0; i < n; i++) items[i] = (PackItem){i, i, 0};
        Arena *arena = arena_new();
        const Pack *all = pack_step(arena, &o, p, items, n);
        int64_t most = 0, least = INT64_MAX, largest = 0;
        int seen[12] = {0};
        for (int i = 0; i < n; i++)
            if (pack_rows(&o, &p->pair[i]) > largest) largest = pack_rows(&o, &p->pair[i]);
        o.ranks = ranks;
        for (o.rank = 0; o.rank < ranks; o.rank++) {
            const Pack *mine = pack_step(arena, &o, p, items, n);
            int64_t rows = 0;
            for (int k = 0; k < mine->nmicro; k++) {
                const Micro *m = &mine->micro[k];
                rows += m->tokens;
                for (int64_t i = 0; i < m->extent[X_P]; i++) seen[m->item[i]]++;
                assert_true(*(const float *)input(m, "inv_tokens", 1) ==
                            *(const float *)input(&all->whole, "inv_tokens", 1));
            }
            most = rows > most ? rows : most;
            least = rows < least ? rows : least;
            assert_int_equal(mine->tokens, all->tokens);
            assert_int_equal(mine->whole.extent[X_P], n);
        }
        for (int i = 0; i < n; i++) assert_int_equal(seen[i], 1);
        assert_in_range(most - least, 0, largest);
        arena_free(arena);
        pairs_free(p);
    }
}

/* Keys of the random draws do not depend on packing, sharing or batch. */
static void row_keys(void **state) {
    Pairs *p = random_pairs(6, 9, 9, false);
    PackItem items[6];
    for (int i = 0; i < 6; i++) items[i] = (PackItem){i, 10 + i, 2};
    Arena *arena = arena_new();
    PackOptions on = options(512, 16, true, false), off = options(64, 4, false, false);
    Pack *a = pack_step(arena, &on, p, items, 6), *b = pack_step(arena, &off, p, items, 6);
    assert_true(a->nmicro == 1 && b->nmicro > 1);
    int32_t *rows = NEW_ARRAY(arena, int32_t, 512), *other = NEW_ARRAY(arena, int32_t, 512);
    View v = view(a->micro);
    int compared = 0;
    for (int k = 0; k < b->nmicro; k++) {
        const Micro *m = &b->micro[k];
        View w = view(m);
        for (int64_t i = 0; i < m->extent[X_P]; i++)
            for (int side = 0; side < 2; side++) {
                int32_t mine = side ? w.rejected[i] : w.chosen[i], item = m->item[i];
                int32_t theirs = side ? v.rejected[item] : v.chosen[item];
                for (int64_t r = 0; r < m->extent[X_R]; r++)
                    for (int64_t q = 0; q < a->micro->extent[X_R]; q++) {
                        if (w.seq[r] != mine || v.seq[q] != theirs || w.place[r] != v.place[q])
                            continue;
                        int n = visible(&w, m, w.row[r], rows);
                        assert_int_equal(n, visible(&v, a->micro, v.row[q], other));
                        for (int t = 0; t < n; t++, compared++)
                            assert_memory_equal(w.rowkey[rows[t]], v.rowkey[other[t]], 8);
                    }
            }
    }
    assert_true(compared > 100);
    items[0].epoch = 3; /* another epoch, other keys */
    Pack *c = pack_step(arena, &on, p, items, 6);
    assert_memory_not_equal(view(c->micro).rowkey[0], v.rowkey[0], 8);
    arena_free(arena);
    pairs_free(p);
}

/* A pair that is too long names its line and the value that would do, and that value does. */
static void too_long(void **state) {
    for (int prefix = 0; prefix < 2; prefix++) {
        Pairs *p = random_pairs(3, 4, 4, false);
        p->pair[1] = (Pair){NEW_ARRAY(p->arena, int32_t, 300), 100, 90, 110, {0}, 0, 117};
        PackOptions o = options(128, 16, prefix, false);
        Err err = {0};
        assert_false(pack_check(&o, p, 0, &err));
        assert_int_equal(err.code, EXIT_IO);
        assert_non_null(strstr(err.text, "random.jsonl:117: "));
        const char *value = strstr(err.text, "set run.tokens to ");
        assert_non_null(value);
        int64_t would_do = strtol(value + strlen("set run.tokens to "), NULL, 10);
        assert_int_equal(would_do, prefix ? 304 : 400);
        for (int64_t tokens = would_do - 16; tokens <= would_do; tokens += 16) {
            PackOptions other = options(tokens, 16, prefix, false);
            err = (Err){0};
            assert_int_equal(pack_check(&other, p, 0, &err), tokens == would_do);
        }
        err = (Err){0};
        PackOptions wide = options(1024, 16, prefix, false);
        assert_false(pack_check(&wide, p, 900, &err) && pack_check(&wide, p, 1, &err));
        assert_non_null(strstr(err.text, "vocabulary"));
        pairs_free(p);
    }
}

/* ---- orders ---------------------------------------------------------------------------------- */

static void epochs(void **state) {
    Arena *arena = arena_new();
    Epoch e, f;
    epoch_start(&e, arena, 37, 5, true);
    int32_t first[37];
    int same = 0;
    for (int epoch = 0; epoch < 3; epoch++) {
        bool seen[37] = {0};
        for (int i = 0; i < 37; i++) {
            int32_t item = epoch_item(&e, epoch * 37 + i);
            assert_in_range(item, 0, 36);
            assert_false(seen[item]);
            seen[item] = true;
            if (epoch == 0)
                first[i] = item;
            else
                same += first[i] == item;
        }
    }
    assert_true(same < 12); /* epochs differ */
    epoch_start(&f, arena, 37, 5, true);
    assert_int_equal(epoch_item(&f, 80), epoch_item(&e, 80)); /* from anywhere, as after a resume */
    assert_int_equal(epoch_item(&f, 3), first[3]);
    epoch_start(&f, arena, 37, 6, true);
    same = 0;
    for (int i = 0; i < 37; i++) same += epoch_item(&f, i) == first[i];
    assert_true(same < 10); /* another seed, another order */
    epoch_start(&f, arena, 37, 5, false);
    for (int i = 0; i < 100; i++) assert_int_equal(epoch_item(&f, i), i % 37);
    /* every place is as likely for every item: chi-square over many seeds */
    double count[5][5] = {{0}}, chi = 0;
    for (uint64_t s = 0; s < 5000; s++) {
        epoch_start(&f, arena, 5, s, true);
        for (int i = 0; i < 5; i++) count[i][epoch_item(&f, i)]++;
    }
    for (int i = 0; i < 25; i++)
        chi += (count[i / 5][i % 5] - 1000) * (count[i / 5][i % 5] - 1000) / 1000;
    assert_true(chi < 39.3); /* 16 degrees of freedom, p = 0.001 */
    arena_free(arena);
}

static void splits(void **state) {
    Arena *arena = arena_new();
    static const struct {
        int64_t n;
        double share;
        int64_t held;
    } cases[] = {{100, 0.02, 2}, {100, 0, 0},      {10, 0.001, 1},
                 {3, 0.99, 2},   {1000, 0.1, 100}, {1, 0.5, 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        int32_t *train, *eval;
        int64_t nt, ne;
        epoch_split(arena, cases[i].n, cases[i].share, 42, &train, &nt, &eval, &ne);
        assert_int_equal(ne, cases[i].held);
        assert_int_equal(nt + ne, cases[i].n);
        bool seen[1000] = {0};
        for (int64_t k = 0; k < nt; k++) seen[train[k]] = true;
        for (int64_t k = 0; k < ne; k++) {
            assert_false(seen[eval[k]]);
            seen[eval[k]] = true;
        }
        for (int64_t k = 0; k < cases[i].n; k++) assert_true(seen[k]);
    }
    arena_free(arena);
}

/* Weights 2, 0.25 and 1 on files of 400 items each. */
static void mixtures(void **state) {
    Arena *arena = arena_new();
    int32_t file[1200], *out, *again, chosen[] = {5, 405, 805};
    const double weight[] = {2, 0.25, 1};
    for (int i = 0; i < 1200; i++) file[i] = i / 400;
    int64_t n = epoch_mix(arena, NULL, 1200, file, weight, 7, &out), count[3] = {0};
    assert_int_equal(n, epoch_mix(arena, NULL, 1200, file, weight, 7, &again));
    assert_memory_equal(out, again, sizeof *out * (size_t)n);
    for (int64_t i = 0; i < n; i++) count[file[out[i]]]++;
    assert_int_equal(count[0], 800);
    assert_in_range(count[1], 74, 126); /* 100, give or take three deviations of 8.7 */
    assert_int_equal(count[2], 400);
    n = epoch_mix(arena, chosen, 3, file, (const double[]){3, 0, 1}, 7, &out);
    assert_int_equal(n, 4);
    assert_true(out[0] == 5 && out[2] == 5 && out[3] == 805);
    assert_int_equal(epoch_mix(arena, chosen, 3, file, (const double[]){0, 0, 0}, 7, &out), 1);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(meaning),  cmocka_unit_test(shares),
                                       cmocka_unit_test(row_keys), cmocka_unit_test(too_long),
                                       cmocka_unit_test(epochs),   cmocka_unit_test(splits),
                                       cmocka_unit_test(mixtures)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
