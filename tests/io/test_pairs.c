/* Preference data: every dialect against ids by TRL's rules (golden/make_pairs.py), real files
 * against what is known of them, truncation, compression, and what is said about records that are
 * wrong. */
#include "runtime/io/pairs.h"
#include "tests/io/io.h"
#include "tests/io/tokenizers.h"

#include <jansson.h>
#include <zlib.h>

typedef struct Fixture {
    Tokenizer *tokenizer;
    Template template;
} Fixture;

static Fixture fixture(const char *tokenizer, const char *template) {
    Fixture f = {.tokenizer = tokenizer_of(tokenizer)};
    Err err = {0};
    if (!template_open(&f.template, template, NULL, data_path(tokenizer), f.tokenizer, NULL, &err))
        fail_msg("%s", err.text);
    return f;
}

static Pairs *read_one(const char *path, const PairsOptions *options, const Fixture *f) {
    Err err = {0};
    Pairs *p = pairs_read(&path, 1, options, &f->template, &err);
    if (!p) fail_msg("%s", err.text);
    return p;
}

static void expect_part(const char *what, const int32_t *got, int n, const json_t *want) {
    bool same = (size_t)n == json_array_size(want);
    for (int i = 0; same && i < n; i++)
        same = got[i] == json_integer_value(json_array_get(want, (size_t)i));
    if (same) return;
    fprintf(stderr, "got");
    for (int i = 0; i < n; i++) fprintf(stderr, " %d", got[i]);
    fail_msg("%s: want %s", what, json_dumps(want, JSON_COMPACT));
}

static void check_group(const json_t *group, const char *path) {
    const char *name = json_string_value(json_object_get(group, "name"));
    Fixture f = fixture(json_string_value(json_object_get(group, "tokenizer")),
                        json_string_value(json_object_get(group, "template")));
    PairsOptions options = {.sft = json_is_true(json_object_get(group, "sft"))};
    Pairs *p = read_one(path, &options, &f);
    const json_t *ids = json_object_get(group, "ids");
    if (p->n != (int64_t)json_array_size(ids)) fail_msg("%s: %lld pairs", name, (long long)p->n);
    for (int64_t i = 0; i < p->n; i++) {
        const json_t *want = json_array_get(ids, (size_t)i);
        const Pair *pair = &p->pair[i];
        expect_part(name, pair->ids, pair->prompt, json_array_get(want, 0));
        expect_part(name, pair_chosen(pair), pair->chosen, json_array_get(want, 1));
        expect_part(name, pair_rejected(pair), pair->rejected, json_array_get(want, 2));
    }
    pairs_free(p);
}

/* Each group as JSON Lines, as an array, and as a compressed array. */
static void dialects(void **state) {
    json_t *root = json_load_file("tests/io/golden/pairs.json", 0, NULL), *group, *line;
    assert_non_null(root);
    size_t g, i;
    json_array_foreach(json_object_get(root, "groups"), g, group) {
        char *dir = scratch_dir();
        Text lines = {0};
        json_array_foreach(json_object_get(group, "lines"), i, line) {
            char *text = json_dumps(line, JSON_COMPACT);
            text_add(&lines, "%s\r\n\n", text);
            free(text);
        }
        check_group(group, scratch_write(dir, "a.jsonl", lines.data, lines.len));
        char *array = json_dumps(json_object_get(group, "lines"), JSON_INDENT(1));
        check_group(group, scratch_write(dir, "a.json", array, strlen(array)));
        gzFile gz = gzopen(scratch_printf("%s/a.json.gz", dir), "wb");
        assert_int_equal(gzwrite(gz, array, (unsigned)strlen(array)), strlen(array));
        assert_int_equal(gzclose(gz), Z_OK);
        check_group(group, scratch_printf("%s/a.json.gz", dir));
        free(array);
        text_free(&lines);
    }
    assert_int_equal(g, 18);
    json_decref(root);
}

/* What is known of the real files: sizes, and the dirt in them. */
static void real_files(void **state) {
    static const struct {
        const char *file;
        int64_t read, kept, empty, differing, identical;
    } files[] = {
        {"ultrafeedback_1k/train_clean.jsonl", 1000, 998, 2, 0, 4},
        {"ultrafeedback_1k/eval_clean.jsonl", 200, 200, 0, 0, 1},
        {"hh_rlhf_harmless_test/test.jsonl.gz", 2312, 2303, 4, 5, 0},
        {"llamafactory_dpo/dpo_en_demo.json", 300, 300, 0, 0, 0},
        {"llamafactory_dpo/v1_dpo_demo.jsonl", 10, 10, 0, 0, 0},
        {"orca_dpo_openai_format/validation.jsonl", 284, 284, 0, 0, 0},
    };
    Fixture f = fixture("llama3_tokenizer", "llama3");
    for (size_t i = 0; i < COUNT(files); i++) {
        Pairs *p = read_one(data_path(files[i].file), &(PairsOptions){0}, &f);
        PairsCounts c = p->counts;
        assert_int_equal(c.read, files[i].read);
        assert_int_equal(p->n, files[i].kept);
        assert_int_equal(c.empty, files[i].empty);
        assert_int_equal(c.differing, files[i].differing);
        assert_int_equal(c.identical, files[i].identical);
        pairs_free(p);
    }
}

/* ---- one file of our own --------------------------------------------------------------------- */

static const char *file_of(const char *text) {
    return scratch_write(scratch_dir(), "d.jsonl", text, strlen(text));
}

static Fixture stories(void) {
    return fixture("stories260k", "auto");
}

#define IDS(p, c, r) "{\"prompt_ids\":" p ",\"chosen_ids\":" c ",\"rejected_ids\":" r "}\n"

/* Lengths 3, 4, 2 as text: the prompt "a b c" has these many tokens with bos; cut in every way. */
static void truncation(void **state) {
    Fixture f = stories();
    const char *path =
        file_of("{\"prompt\":\"xyzxyz\",\"chosen\":\"xyzxyzxyz\",\"rejected\":\"xy\"}\n");
    Pairs *whole = read_one(path, &(PairsOptions){0}, &f);
    const Pair *w = &whole->pair[0];
    assert_true(w->prompt > 4 && w->chosen > w->rejected + 3 && w->rejected > 1);
    for (int max = 1; max <= w->prompt + w->chosen + 1; max++)
        for (int mode = 0; mode < 2; mode++) {
            bool answers = mode == 1;
            PairsOptions o = {.max_length = max,
                              .truncate = answers ? TRUNCATE_KEEP_ANSWERS : TRUNCATE_KEEP_START};
            Err err = {0};
            Pairs *p = pairs_read(&path, 1, &o, &f.template, &err);
            int over = w->prompt + w->chosen - max, gone = 0;
            if (answers && over > 0) gone = over < w->prompt ? over : w->prompt - 1;
            int prompt = w->prompt - gone;
            if (over > 0 && prompt >= max) { /* no room for an answer */
                assert_null(p);
                assert_int_equal(err.code, EXIT_IO);
                assert_non_null(strstr(err.text, "max_length"));
                continue;
            }
            const Pair *q = &p->pair[0];
            int room = max - prompt;
            assert_int_equal(q->prompt, prompt);
            assert_int_equal(q->chosen, w->chosen < room ? w->chosen : room);
            assert_int_equal(q->rejected, w->rejected < room ? w->rejected : room);
            assert_memory_equal(q->ids, w->ids + gone, sizeof(int32_t) * (size_t)prompt);
            assert_memory_equal(pair_chosen(q), pair_chosen(w),
                                sizeof(int32_t) * (size_t)q->chosen);
            assert_memory_equal(pair_rejected(q), pair_rejected(w),
                                sizeof(int32_t) * (size_t)q->rejected);
            assert_int_equal(p->counts.cut_prompt, gone > 0);
            assert_int_equal(p->counts.cut, w->chosen > room);
            pairs_free(p);
        }
    PairsOptions o = {.max_prompt = 2};
    Pairs *p = read_one(path, &o, &f);
    assert_int_equal(p->pair[0].prompt, 2);
    assert_memory_equal(p->pair[0].ids, w->ids + w->prompt - 2, 2 * sizeof(int32_t));
    pairs_free(p);
    o = (PairsOptions){.max_prompt = 1, .max_length = 2};
    p = read_one(file_of(IDS("[1,2,3]", "[4,5,6]", "[7]")), &o, &f); /* ids are never cut */
    assert_int_equal(p->pair[0].prompt, 3);
    assert_int_equal(p->pair[0].chosen, 3);
    pairs_free(p);
    pairs_free(whole);
}

static void columns_and_keys(void **state) {
    Fixture f = stories();
    const char *names[] = {"score", "flag"};
    PairsOptions o = {.columns = names,
                      .ncolumns = 2,
                      .limit = 2,
                      .prompt_key = "q",
                      .chosen_key = "good",
                      .rejected_key = "bad"};
    Pairs *p =
        read_one(file_of("{\"q\":\"x\",\"good\":\"y\",\"bad\":\"x\",\"score\":1.5,\"flag\":true}\n"
                         "{\"q\":\"x\",\"good\":\"y\",\"bad\":\"x\",\"score\":-2,\"flag\":0}\n"
                         "not reached\n"),
                 &o, &f);
    assert_int_equal(p->n, 2);
    float want[] = {1.5f, 1, -2, 0};
    assert_memory_equal(p->column, want, sizeof want);
    assert_string_equal(p->columns[1], "flag");
    assert_string_equal(pair_where(p->arena, p, &p->pair[1]),
                        scratch_printf("%s:2", p->file[0].path));
    pairs_free(p);
}

/* What can't be used is refused with file, line and key; nothing crashes. */
static const struct {
    const char *text, *said;
    bool sft;
} bad_records[] = {
    {"", "no records", false},
    {"\n \r\n", "no records", false},
    {"[]", "no records", false},
    {"{", "d.jsonl:1: not valid JSON", false},
    {"\n\n{\"prompt\":\"x\"}", "d.jsonl:3: expected keys", false},
    {"3", "not valid JSON", false},
    {"PAR1\x15\x04", "Parquet", false},
    {"{\"prompt\":\"x\",\"chosen\":\"y\"}", "\"rejected\" is missing", false},
    {"{\"prompt\":\"x\",\"chosen\":\"\",\"rejected\":\"y\"}", "d.jsonl:1: \"chosen\" is empty",
     false},
    {"{\"prompt\":\"x\",\"chosen\":\"y\",\"rejected\":\" \\n\"}", "\"rejected\" is empty", false},
    {"{\"prompt\":\"x\",\"chosen\":[],\"rejected\":\"y\"}", "\"chosen\" is empty", false},
    {"{\"prompt\":3,\"chosen\":\"x\",\"rejected\":\"y\"}", "\"prompt\" is neither", false},
    {"{\"prompt\":\"x\",\"chosen\":\"y\",\"rejected\":null}", "\"rejected\" is neither", false},
    {"{\"prompt\":\"x\",\"chosen\":[{\"role\":1}],\"rejected\":\"y\"}", "\"chosen\" is neither",
     false},
    {"{\"prompt\":\"x\",\"chosen\":[{\"role\":\"user\"}],\"rejected\":\"y\"}",
     "\"chosen\" is neither", false},
    {"{\"chosen\":\"x\",\"rejected\":[]}", "neither both", false},
    {"{\"chosen\":\"\\n\\nHuman: a\",\"rejected\":\"x\"}", "Assistant", false},
    {"{\"chosen\":\"\\n\\nHuman: a\\n\\nAssistant: b\",\"rejected\":\"\\n\\nHuman: "
     "c\\n\\nAssistant: d\"}",
     "different prompts", false},
    {IDS("[]", "[1]", "[2]"), "\"prompt_ids\" is empty", false},
    {IDS("[1]", "[]", "[2]"), "\"chosen_ids\" is empty", false},
    {IDS("[1]", "[2]", "[]"), "\"rejected_ids\" is empty", false},
    {IDS("[1]", "[-2]", "[2]"), "\"chosen_ids\"[0]", false},
    {IDS("[1]", "[2]", "[2, 3000000000]"), "\"rejected_ids\"[1]", false},
    {IDS("[1]", "[2]", "\"x\""), "\"rejected_ids\" is not a list", false},
    {IDS("[1]", "[1.5]", "[2]"), "\"chosen_ids\"[0]", false},
    {"{\"chosen_messages\":1}", "\"chosen_messages\"", false},
    {"{\"conversations\":[{\"from\":\"human\"}]}", "\"conversations\"", false},
    {"{\"conversations\":[{\"from\":\"human\",\"value\":\"x\"}],\"chosen\":{}}", "\"chosen\"",
     false},
    {"{\"preferred_output\":[]}", "\"input\"", false},
    {"{\"question\":1,\"chosen\":\"x\"}", "\"question\"", false},
    {"{\"messages\":[]}", "expected keys", false},
    {"{\"messages\":[]}", "\"messages\"", true},
    {"{\"text\":5}", "\"text\"", true},
    {"{\"prompt\":[{\"role\":\"user\",\"content\":\"x\"}],\"completion\":\"y\"}", "chat template",
     true},
    {"[{\"text\":\"x\"} {\"text\":\"x\"}]", "not valid JSON", true},
    {"[{\"text\":\"x\"}", "cut off", true},
    {"[{\"text\":\"x\"}] x", "behind the array", true},
    {"[,]", "not valid JSON", true},
    {"{\"text\":\"\\ud800\"}", "not valid JSON", true},
};

static void malformed(void **state) {
    Fixture f = stories();
    for (size_t i = 0; i < COUNT(bad_records); i++) {
        Err err = {0};
        const char *path = file_of(bad_records[i].text);
        PairsOptions o = {.sft = bad_records[i].sft};
        assert_null(pairs_read(&path, 1, &o, &f.template, &err));
        if (!strstr(err.text, bad_records[i].said))
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.text, bad_records[i].said);
        if (err.code != EXIT_IO && !strstr(err.text, "chat template"))
            fail_msg("case %zu: exit %d", i, err.code);
    }
}

/* Five of a kind and a count; good records beside bad ones. */
static void many_errors(void **state) {
    Fixture f = stories();
    Text text = {0};
    for (int i = 0; i < 12; i++) text_add(&text, "{\"prompt\":\"x\"}\n");
    const char *path = file_of(text.data);
    Err err = {0};
    assert_null(pairs_read(&path, 1, &(PairsOptions){0}, &f.template, &err));
    assert_non_null(strstr(err.text, "d.jsonl:5: "));
    assert_null(strstr(err.text, "d.jsonl:6: "));
    assert_non_null(strstr(err.text, "... and 7 more"));
    text_free(&text);
    Pairs *p = read_one(file_of("{\"prompt\":\"x\",\"chosen\":\"\",\"rejected\":\"y\"}\n"
                                "{\"prompt\":\"x\",\"chosen\":\"a\xff\",\"rejected\":\"y\"}\n"
                                "{\"prompt\":\"x\",\"chosen\":\"y\",\"rejected\":\"y\"}\n"),
                        &(PairsOptions){0}, &f);
    assert_int_equal(p->n, 2);
    assert_int_equal(p->counts.empty, 1);
    assert_int_equal(p->counts.repaired, 1);
    assert_int_equal(p->counts.identical, 1);
    assert_int_equal(p->nwarnings, 3);
    assert_string_equal(p->warning[0].name, "empty");
    assert_non_null(strstr(p->warning[0].line[0], "d.jsonl:1: \"chosen\" is empty"));
    pairs_free(p);
}

/* What is no JSON is named with the command that converts it. */
static void foreign_files(void **state) {
    static const struct {
        const char *name, *bytes;
        size_t len;
        const char *said;
    } files[] = {
        {"a.parquet", "PAR1\x15\x04", 6, "read_parquet('"},
        {"b.jsonl", "PAR1", 4, "b_converted.jsonl'"},
        {"c.arrow", "ARROW1\0\0", 8, "read_feather('"},
        {"d.arrow", "\xFF\xFF\xFF\xFF\x10\0\0\0", 8, "Dataset.from_file('"},
        {"e.csv", "prompt,chosen,rejected\nq,a,b\n", 29, "read_csv('"},
        {"f.txt", "prompt\tchosen\trejected\nq\ta\tb\n", 29, "sep='\\t'"},
        {"g.jsonl.zst", "\x28\xB5\x2F\xFD..", 6, "zstd -d '"},
        {"h.jsonl", "\xFF\xFE{\0", 4, "iconv -f UTF-16"},
    };
    Fixture f = stories();
    char *dir = scratch_dir();
    for (size_t i = 0; i < COUNT(files); i++) {
        Err err = {0};
        const char *path = scratch_write(dir, files[i].name, files[i].bytes, files[i].len);
        assert_null(pairs_read(&path, 1, &(PairsOptions){0}, &f.template, &err));
        assert_int_equal(err.code, EXIT_IO);
        if (!strstr(err.text, files[i].said)) fail_msg("%s: %s", files[i].name, err.text);
    }
    const char *text = "{\"prompt\":\"x\",\"chosen\":\"y,chosen\",\"rejected\":\"z\"}\n";
    Pairs *p = read_one(scratch_write(dir, "json.csv", text, strlen(text)), &(PairsOptions){0}, &f);
    assert_int_equal(p->n, 1); /* a name alone says nothing */
    pairs_free(p);
    const char *path = dir;
    Err err = {0};
    assert_null(pairs_read(&path, 1, &(PairsOptions){0}, &f.template, &err));
    assert_non_null(strstr(err.text, scratch_printf("%s/h.jsonl", dir))); /* one to name */
    err = (Err){0};
    path = scratch_dir();
    scratch_write(path, "x.parquet", "PAR1", 4);
    assert_null(pairs_read(&path, 1, &(PairsOptions){0}, &f.template, &err));
    assert_non_null(strstr(err.text, "load_dataset('"));
}

/* ---- what is said of a file ------------------------------------------------------------------ */

static const PairsWarning *warning(const Pairs *p, const char *name) {
    for (int i = 0; i < p->nwarnings; i++)
        if (strcmp(p->warning[i].name, name) == 0) return &p->warning[i];
    return NULL;
}

/* The dialect a record is taken for, by itself and where one is named. */
static void detection(void **state) {
    static const struct {
        const char *record, *dialect, *named, *then; /* then NULL: malformed under that name */
    } cases[] = {
        {"{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\"}", "TRL strings", "hh", NULL},
        {"{\"chosen\":\"\\n\\nHuman: q\\n\\nAssistant: a\",\"rejected\":\"\\n\\nHuman: "
         "q\\n\\nAssistant: b\"}",
         "HH transcripts", "trl", "TRL strings with the prompt in both"},
        {"{\"question\":\"q\",\"system\":\"s\",\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":"
         "\"b\"}",
         "Orca", "trl", "TRL strings"},
        {"{\"instruction\":\"q\",\"input\":\"i\",\"chosen\":\"a\",\"rejected\":\"b\"}", "Alpaca",
         "orca", NULL},
        {"{\"prompt\":\"q\",\"chosen\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":"
         "\"assistant\",\"content\":\"a\"}],\"rejected\":[{\"role\":\"user\",\"content\":\"q\"},{"
         "\"role\":\"assistant\",\"content\":\"b\"}]}",
         "string prompt with conversations", "trl", "string prompt with conversations"},
        {"{\"conversations\":[{\"from\":\"gpt\",\"value\":\"odd\"},{\"from\":\"human\",\"value\":"
         "\"q\"},"
         "{\"from\":\"gpt\",\"value\":\"odd\"}],\"chosen\":{\"from\":\"gpt\",\"value\":\"a\"},"
         "\"rejected\":{\"from\":\"gpt\",\"value\":\"b\"}}",
         "ShareGPT", "openai", NULL},
    };
    Fixture f = fixture("llama3_tokenizer", "llama3");
    for (size_t i = 0; i < COUNT(cases); i++)
        for (int named = 0; named < 2; named++) {
            Err err = {0};
            const char *path = file_of(cases[i].record);
            const char *want = named ? cases[i].then : cases[i].dialect;
            PairsOptions o = {.dialect = named ? cases[i].named : "auto"};
            Pairs *p = pairs_read(&path, 1, &o, &f.template, &err);
            if (!p != !want) fail_msg("case %zu: %s", i, err.text);
            if (p) assert_string_equal(pairs_dialects(p->arena, &p->file[0]), want);
            pairs_free(p);
        }
}

/* Paths of keys, a system column, columns that are numbers, columns that change the tokens. */
static void maps(void **state) {
    Fixture f = fixture("llama3_tokenizer", "llama3");
    f.template.named = false;
    PairsOptions o = {.prompt_key = "in.0.text",
                      .chosen_key = "out.good",
                      .rejected_key = "out.bad",
                      .system_key = "sys"};
    Pairs *p = read_one(file_of("{\"in\":[{\"text\":\"Q\"}],\"out\":{\"good\":\"A\",\"bad\":\"B\"},"
                                "\"sys\":\"S\"}\n"
                                "{\"in\":[{\"text\":\"Q\"}],\"out\":{\"good\":\"A\",\"bad\":\"B\"},"
                                "\"sys\":null}\n"),
                        &o, &f);
    Pairs *q = read_one(file_of("{\"system\":\"S\",\"question\":\"Q\",\"chosen\":\"A\","
                                "\"rejected\":\"B\"}"),
                        &(PairsOptions){0}, &f);
    assert_int_equal(p->n, 2); /* the second one has no system message: strings */
    const Pair *x = &p->pair[0], *y = &q->pair[0];
    assert_int_equal(x->prompt, y->prompt);
    assert_memory_equal(x->ids, y->ids, sizeof(int32_t) * (size_t)(x->prompt + x->chosen));
    assert_true(p->pair[1].prompt < x->prompt);
    pairs_free(p);
    pairs_free(q);
    /* SFT data in ShareGPT's form has its system message beside the conversation, too */
    o = (PairsOptions){.sft = true};
    p = read_one(
        file_of("{\"system\":\"S\",\"conversations\":[{\"from\":\"human\",\"value\":\"Q\"},"
                "{\"from\":\"gpt\",\"value\":\"A\"}]}"),
        &o, &f);
    q = read_one(
        file_of("{\"messages\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\","
                "\"content\":\"Q\"},{\"role\":\"assistant\",\"content\":\"A\"}]}"),
        &o, &f);
    assert_true(pair_key(&p->pair[0]) == pair_key(&q->pair[0]));
    pairs_free(p);
    pairs_free(q);
    static const char *const names[] = {"ref_chosen_logps", "ref_rejected_logps"};
    o = (PairsOptions){.columns = names, .ncolumns = 2};
    p = read_one(file_of("{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\",\"tools\":[{}],"
                         "\"ref_chosen_logps\":-1.5,\"ref_rejected_logps\":-2}"),
                 &o, &f);
    assert_true(p->column[0] == -1.5f && p->column[1] == -2);
    assert_int_equal(warning(p, "tools")->count, 1);
    pairs_free(p);
}

/* Counts, percentiles and warnings by file, and each bos policy on a text that begins with one. */
static void summaries(void **state) {
    Fixture f = stories();
    Text ids = {0};
    for (int i = 1; i <= 40; i++) { /* prompts of 1 .. 40 tokens */
        text_add(&ids, "{\"prompt_ids\":[1");
        for (int k = 1; k < i; k++) text_add(&ids, ",%d", k);
        text_add(&ids, "],\"chosen_ids\":[3],\"rejected_ids\":[4,5]}\n");
    }
    text_add(&ids, IDS("[1]", "[3]", "[4,5]")); /* the first again */
    const char *paths[] = {file_of(ids.data),
                           file_of("\xEF\xBB\xBF\n \r\n{\"prompt\":\"<s>x\",\"chosen"
                                   "\":\"y\",\"rejected\":\"y\"}\r\n\n")};
    for (int rule = BOS_ONCE; rule <= BOS_NONE; rule++) {
        Err err = {0};
        Pairs *p = pairs_read(paths, 2, &(PairsOptions){.bos = (PairsBos)rule}, &f.template, &err);
        assert_non_null(p);
        const Pair *last = &p->pair[p->n - 1];
        assert_int_equal(last->ids[0], 1);
        assert_int_equal(last->ids[1] == 1, rule == BOS_TOKENIZER);
        assert_int_equal(warning(p, "bos") != NULL, rule == BOS_TOKENIZER);
        assert_int_equal(last->line, 3);
        PairsLengths l = pairs_lengths(p, 0, 0), all = pairs_lengths(p, -1, 2);
        assert_true(l.median == 20 && l.p95 == 38 && l.max == 40 && all.median == 2);
        assert_int_equal(p->file[0].counts.repeated, 1);
        assert_int_equal(p->file[0].counts.identical, 0);
        assert_int_equal(p->file[1].counts.identical, 1);
        assert_int_equal(p->counts.kept, 42);
        pairs_free(p);
    }
    text_free(&ids);
}

/* An array of all records in one line, longer than any buffer to begin with. */
static void one_line(void **state) {
    Fixture f = stories();
    Text text = {0};
    for (int i = 0; i < 30000; i++)
        text_add(&text, "%s{\"prompt_ids\":[1,%d],\"chosen_ids\":[2],\"rejected_ids\":[3]}",
                 i ? ", " : "[", i % 500);
    text_add(&text, "]");
    Pairs *p = read_one(scratch_write(scratch_dir(), "a.json", text.data, text.len),
                        &(PairsOptions){0}, &f);
    assert_int_equal(p->n, 30000);
    assert_int_equal(p->pair[29999].ids[1], 29999 % 500);
    pairs_free(p);
    text_free(&text);
}

/* Files that are not there, are directories, are cut off. */
static void broken_files(void **state) {
    Fixture f = stories();
    char *dir = scratch_dir();
    gzFile gz = gzopen(scratch_printf("%s/x.gz", dir), "wb");
    for (int i = 0; i < 3000; i++) gzprintf(gz, IDS("[%d]", "[2,%d]", "[3]"), i, i * i % 511);
    gzclose(gz);
    size_t n;
    Err err = {0};
    char *bytes = file_read(scratch_printf("%s/x.gz", dir), &n, &err);
    const char *paths[] = {scratch_printf("%s/none.jsonl", dir), dir,
                           scratch_write(dir, "cut.gz", bytes, n / 2)};
    free(bytes);
    for (size_t i = 0; i < COUNT(paths); i++) {
        err = (Err){0};
        assert_null(pairs_read(&paths[i], 1, &(PairsOptions){0}, &f.template, &err));
        assert_int_equal(err.code, EXIT_IO);
        assert_non_null(strstr(err.text, paths[i]));
    }
    Pairs *p = read_one(scratch_printf("%s/x.gz", dir), &(PairsOptions){0}, &f);
    assert_int_equal(p->n, 3000);
    assert_int_equal(p->pair[2999].ids[0], 2999);
    pairs_free(p);
    Template none = {0}; /* ids need no tokenizer, text does */
    const char *ids = file_of(IDS("[1]", "[2]", "[3]")),
               *text = file_of("{\"prompt\":\"x\",\"chosen\":\"y\",\"rejected\":\"z\"}");
    err = (Err){0};
    p = pairs_read(&ids, 1, &(PairsOptions){0}, &none, &err);
    assert_non_null(p);
    pairs_free(p);
    assert_null(pairs_read(&text, 1, &(PairsOptions){0}, &none, &err));
    assert_non_null(strstr(err.text, "tokenizer"));
}

int main(void) {
    if (!have_data("llama3_tokenizer/tokenizer.json")) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dialects),     cmocka_unit_test(real_files),
        cmocka_unit_test(truncation),   cmocka_unit_test(columns_and_keys),
        cmocka_unit_test(malformed),    cmocka_unit_test(many_errors),
        cmocka_unit_test(broken_files), cmocka_unit_test(foreign_files),
        cmocka_unit_test(detection),    cmocka_unit_test(maps),
        cmocka_unit_test(summaries),    cmocka_unit_test(one_line)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
