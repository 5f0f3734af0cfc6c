/* safetensors and checkpoints: a file of Hugging Face's own writer is read and rewritten to the
 * same bytes; every rule of the format broken one at a time; shards, aliases, what is said about
 * directories. */
#include "runtime/io/checkpoint.h"
#include "tests/io/io.h"

#define GOLDEN "tests/io/golden/hf.safetensors"

static void read_golden(void **state) {
    Err err = {0};
    SafeFile *f = safe_open(GOLDEN, &err);
    if (!f) fail_msg("%s", err.text);
    assert_int_equal(safe_count(f), 8);
    assert_string_equal(safe_metadata(f, "format"), "pt");
    assert_null(safe_metadata(f, "other"));
    static const char *const names[] = {"b.weight", "a.weight", "c.half"};
    for (int i = 0; i < 3; i++) {
        const SafeTensor *t = safe_find(f, names[i]);
        float x[12];
        assert_true(safe_read_f32(t, 0, t->count, x, &err));
        for (int k = 0; k < t->count; k++) assert_float_equal(x[k], (float)k / 8 - 0.5f, 0);
        assert_true(safe_read_f32(t, 2, 3, x, &err));
        assert_float_equal(x[2], 0, 0);
    }
    const SafeTensor *t = safe_find(f, "a.weight");
    assert_int_equal(t->type, SAFE_BF16);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->shape[0], 4);
    assert_int_equal(safe_find(f, "scalar")->rank, 0);
    assert_int_equal(safe_find(f, "scalar")->count, 1);
    assert_int_equal(safe_find(f, "empty")->count, 0);
    assert_non_null(safe_find(f, "na\xC3\xAFve \"name\""));
    assert_null(safe_find(f, "none"));
    Arena *arena = arena_new();
    assert_string_equal(safe_describe(arena, t), "BF16 [4, 3]");
    arena_free(arena);
    float x;
    assert_false(safe_read_f32(safe_find(f, "codes"), 0, 1, &x, &err));
    assert_non_null(strstr(err.text, "\"codes\" is U8"));
    err = (Err){0};
    assert_false(safe_read(t, 20, 5, &x, &err)); /* beyond its end: our bug */
    assert_int_equal(err.code, EXIT_BUG);
    safe_close(f);
}

/* Everything read from the golden file and written again, in reverse and in pieces, is the same
 * file. */
static void rewrite_golden(void **state) {
    Err err = {0};
    SafeFile *f = safe_open(GOLDEN, &err);
    SafeTensor t[8];
    for (int i = 0; i < 8; i++) t[i] = *safe_tensor(f, (i * 3 + 1) % 8);
    const char *meta[] = {"format", "pt", NULL}, *path = scratch_printf("%s/out", scratch_dir());
    SafeWriter *w = safe_create(path, t, 8, meta, &err);
    if (!w) fail_msg("%s", err.text);
    for (int i = 7; i >= 0; i--)
        for (int64_t at = t[i].bytes; at > 0;) {
            char piece[3];
            int64_t n = at < 3 ? at : 3;
            at -= n;
            assert_true(safe_read(&t[i], at, n, piece, &err));
            assert_true(safe_put(w, i, at, piece, n, &err));
        }
    assert_false(file_exists(path)); /* not before it is complete */
    assert_true(safe_commit(w, &err));
    size_t n, m;
    char *a = file_read(GOLDEN, &n, &err), *b = file_read(path, &m, &err);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n);
    free(a);
    free(b);
    safe_close(f);
}

static void incomplete_writes(void **state) {
    Err err = {0};
    char *dir = scratch_dir();
    SafeTensor t = {.name = "x", .type = SAFE_F32, .rank = 1, .shape = {4}};
    SafeWriter *w = safe_create(scratch_printf("%s/x", dir), &t, 1, NULL, &err);
    assert_true(safe_put(w, 0, 0, "0123456", 7, &err));
    assert_false(safe_commit(w, &err));
    assert_int_equal(err.code, EXIT_BUG);
    assert_false(file_exists(scratch_printf("%s/x", dir)));
    assert_false(file_exists(scratch_printf("%s/x.tmp", dir)));
    err = (Err){0};
    assert_null(safe_create(scratch_printf("%s/none/x", dir), &t, 1, NULL, &err));
    assert_int_equal(err.code, EXIT_IO);
    if (access("/dev/full", W_OK) == 0) { /* a full disk says so */
        char *full = scratch_printf("%s/full.tmp", dir);
        assert_int_equal(symlink("/dev/full", full), 0);
        err = (Err){0};
        assert_null(safe_create(scratch_printf("%s/full", dir), &t, 1, NULL, &err));
        assert_int_equal(err.code, EXIT_IO);
        assert_non_null(strstr(err.text, "No space left"));
    }
}

/* A file of this header and `data` zero bytes. */
static const char *file_with(const char *header, uint64_t claimed, size_t data) {
    Text text = {0};
    for (int i = 0; i < 8; i++) text_addn(&text, &(char){(char)(claimed >> (8 * i))}, 1);
    text_addn(&text, header, strlen(header));
    for (size_t i = 0; i < data; i++) text_addn(&text, "", 1);
    const char *path = scratch_write(scratch_dir(), "x.safetensors", text.data, text.len);
    text_free(&text);
    return path;
}

#define T(offsets) "{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" offsets "}}"
#define D(dtype, shape, offsets)                                                                   \
    "{\"x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define X "{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}"

static const struct {
    const char *header, *said;
    size_t data;
} bad_headers[] = {
    {"", "does not begin with {", 8},
    {" {}", "does not begin with {", 0},
    {"{", "not valid JSON", 0},
    {"{\"a\":" X ",\"a\":" X "}", "not valid JSON: duplicate object key", 4},
    {"{\"x\":3}", "\"x\" is not described", 0},
    {"{\"x\":{}}", "\"x\" has no \"dtype\"", 0},
    {D("\"F31\"", "[2]", "[0,8]"), "unknown dtype \"F31\"", 8},
    {D("4", "[2]", "[0,8]"), "has no \"dtype\"", 8},
    {D("\"F32\"", "2", "[0,8]"), "\"shape\" is not a list", 8},
    {D("\"F32\"", "[-2]", "[0,8]"), "dimension 0 is not a size", 8},
    {D("\"F32\"", "[2.0]", "[0,8]"), "dimension 0 is not a size", 8},
    {D("\"F32\"", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), "9 dimensions", 8},
    {D("\"F32\"", "[4294967296,4294967296]", "[0,0]"), "shape is too large", 0},
    {D("\"F32\"", "[2305843009213693952]", "[0,0]"), "do not take", 0},
    {D("\"F4\"", "[3]", "[0,1]"), "do not take", 1},
    {T("[0]"), "not [begin, end]", 8},
    {T("[0,8,9]"), "not [begin, end]", 8},
    {T("[8,0]"), "not [begin, end]", 8},
    {T("[-8,0]"), "not [begin, end]", 8},
    {T("{}"), "not [begin, end]", 8},
    {T("[0,\"8\"]"), "not [begin, end]", 8},
    {T("[0,7]"), "do not take the 7 bytes", 8},
    {T("[1,9]"), "begins at 1", 9},
    {T("[0,8]"), "cut off", 7},
    {T("[0,8]"), "8 bytes of data, the file has 9", 9},
    {T("[0,99999999999999999999]"), "not valid JSON", 8},
    {"{\"a\":" X ",\"b\":" X "}", "\"b\" begins at 0", 4},
    {"{\"__metadata__\":[]}", "\"__metadata__\" is not an object", 0},
    {"{\"__metadata__\":{\"a\":1}}", "metadata \"a\" is not a string", 0},
};

static void broken_rules(void **state) {
    for (size_t i = 0; i < COUNT(bad_headers); i++) {
        Err err = {0};
        const char *path =
            file_with(bad_headers[i].header, strlen(bad_headers[i].header), bad_headers[i].data);
        assert_null(safe_open(path, &err));
        assert_int_equal(err.code, EXIT_IO);
        assert_non_null(strstr(err.text, path));
        if (!strstr(err.text, bad_headers[i].said))
            fail_msg("%zu: \"%s\" lacks \"%s\"", i, err.text, bad_headers[i].said);
    }
    static const uint64_t sizes[] = {UINT64_MAX, 1u << 31, 100000001, 17, INT64_MAX};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        Err err = {0};
        assert_null(safe_open(file_with("{}", sizes[i], 5), &err));
        assert_int_equal(err.code, EXIT_IO);
    }
    const char *others[] = {scratch_dir(), "/nonexistent/x",
                            scratch_write(scratch_dir(), "s", "abc", 3)};
    for (size_t i = 0; i < COUNT(others); i++) {
        Err err = {0};
        assert_null(safe_open(others[i], &err));
        assert_int_equal(err.code, EXIT_IO);
    }
    Err err = {0};
    SafeFile *f = safe_open(file_with("{\"a\":" X "}   ", strlen("{\"a\":" X "}   "), 4), &err);
    assert_non_null(f); /* padding is fine */
    safe_close(f);
}

/* The file shrinks between opening and reading. */
static void shrunk(void **state) {
    Err err = {0};
    const char *path = file_with("{\"a\":" X "}", strlen("{\"a\":" X "}"), 4);
    SafeFile *f = safe_open(path, &err);
    assert_int_equal(truncate(path, 50), 0);
    char x[4];
    assert_false(safe_read(safe_find(f, "a"), 0, 4, x, &err));
    assert_non_null(strstr(err.text, "ends within a"));
    safe_close(f);
}

/* ---- checkpoints ----------------------------------------------------------------------------- */

static void shard(const char *dir, const char *file, const char *a, const char *b) {
    Err err = {0};
    SafeTensor t[] = {{.name = a, .type = SAFE_U8, .rank = 1, .shape = {1}},
                      {.name = b, .type = SAFE_U8, .rank = 1, .shape = {1}}};
    SafeWriter *w = safe_create(scratch_printf("%s/%s", dir, file), t, b ? 2 : 1, NULL, &err);
    assert_true(safe_put(w, 0, 0, a, 1, &err));
    if (b) assert_true(safe_put(w, 1, 0, b, 1, &err));
    assert_true(safe_commit(w, &err));
}

static void shards(void **state) {
    char *dir = scratch_dir();
    shard(dir, "m-1.safetensors", "a", "b");
    shard(dir, "m-2.safetensors", "c", "extra");
    const char *index =
        "{\"metadata\":{\"total_size\":3},\"weight_map\":{\"a\":\"m-1.safetensors\","
        "\"b\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\"}}";
    scratch_write(dir, "model.safetensors.index.json", index, strlen(index));
    Err err = {0};
    Checkpoint *c = checkpoint_open(dir, "model", &err);
    if (!c) fail_msg("%s", err.text);
    assert_int_equal(checkpoint_count(c), 4);
    static const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) {
        char x;
        assert_true(safe_read(checkpoint_find(c, names[i], NULL), 0, 1, &x, &err));
        assert_int_equal(x, names[i][0]);
    }
    assert_string_equal(checkpoint_find(c, "tied", "b")->name, "b");
    assert_string_equal(checkpoint_find(c, "a", "b")->name, "a");
    assert_null(checkpoint_find(c, "tied", NULL));
    assert_non_null(strstr(checkpoint_warning(c), "1 tensors"));
    assert_false(checkpoint_missing(c, "extr", &err));
    assert_non_null(strstr(err.text, "\"extra\""));
    checkpoint_close(c);
}

static void broken_indices(void **state) {
    static const struct {
        const char *index, *said;
    } cases[] = {
        {"{", "index.json:1"},
        {"{}", "\"weight_map\" is not an object"},
        {"{\"weight_map\":{\"a\":5}}", "\"a\" is not a file name"},
        {"{\"weight_map\":{\"a\":\"../m-1.safetensors\"}}", "\"a\" is not a file name"},
        {"{\"weight_map\":{\"a\":\"m-9.safetensors\"}}", "m-9.safetensors"},
        {"{\"weight_map\":{\"z\":\"m-1.safetensors\"}}", "\"z\" is not in m-1.safetensors"},
    };
    char *dir = scratch_dir();
    shard(dir, "m-1.safetensors", "a", "b");
    for (size_t i = 0; i < COUNT(cases); i++) {
        Err err = {0};
        scratch_write(dir, "model.safetensors.index.json", cases[i].index, strlen(cases[i].index));
        assert_null(checkpoint_open(dir, "model", &err));
        assert_int_equal(err.code, EXIT_IO);
        if (!strstr(err.text, cases[i].said)) fail_msg("%zu: %s", i, err.text);
    }
}

/* A directory without safetensors: what is there, and what to do. */
static void other_directories(void **state) {
    static const struct {
        const char *file, *said;
    } cases[] = {{"pytorch_model.bin", "save_pretrained"},
                 {"consolidated.00.pth", "Meta"},
                 {"llama.gguf", "GGUF"},
                 {"config.json", "seen: config.json"}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        Err err = {0};
        char *dir = scratch_dir();
        scratch_write(dir, cases[i].file, "x", 1);
        assert_null(checkpoint_open(dir, "model", &err));
        assert_int_equal(err.code, EXIT_IO);
        assert_non_null(strstr(err.text, cases[i].file));
        assert_non_null(strstr(err.text, cases[i].said));
    }
    Err err = {0};
    assert_null(checkpoint_open("/nonexistent", "model", &err));
    assert_int_equal(err.code, EXIT_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(read_golden),
                                       cmocka_unit_test(rewrite_golden),
                                       cmocka_unit_test(incomplete_writes),
                                       cmocka_unit_test(broken_rules),
                                       cmocka_unit_test(shrunk),
                                       cmocka_unit_test(shards),
                                       cmocka_unit_test(broken_indices),
                                       cmocka_unit_test(other_directories)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
