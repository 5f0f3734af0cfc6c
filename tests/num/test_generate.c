/* test_generate.c: answers over the KV cache against Hugging Face's, step by step
 * (tests/num/generate.json, made by tests/peers/make_generate.py in double precision without a
 * cache), in pieces and whole, alone and together, before and after; and the sampler against its
 * definition.
 *
 * The device is DPOC_DEVICE, else the CPU: tests/cudasim/generate.sh runs this on the simulated
 * GPU. Tolerances in fp32 are the product's promise, 1e-4 max(1, |logit|); a checksum sums V logits
 * with weights of at most 1, so V times that.  In bf16 a value next to a border may round the other
 * way when sums are made in another order: a logit then moves by 2^-8 of a term, and there are as
 * many such values as terms, so sqrt(terms) 2^-8 of the largest logit. */
#include "tests/plan/run.h"

#include "compiler/spec.h"
#include "runtime/io/utf8.h"
#include "runtime/job/job.h"
#include "tests/gpu/executed.h"

#include <jansson.h>
#include <math.h>

#define CASES "tests/num/cases/"
enum { NEW = 16, LONGEST = 37, ROWS = 3, VOCAB = 97, WIDTH = 32 };

typedef struct Model { /* one case, opened */
    Arena *arena;
    Plan *plan;
    Running r;
} Model;

static const char *device(void) {
    const char *name = getenv("DPOC_DEVICE");
    return name ? name : "cpu";
}

static void check_compile(Model *m, json_t *figures, const char *compute, GenerateBounds bounds,
                          const Target *target, int64_t budget, bool trains) {
    const char *set[] = {intern_printf("graph.compute=%s", compute), "pref.rank=4", "pref.alpha=8",
                         "run.tokens=128"};
    const char *adapter[4];
    json_t *adapters = json_object_get(figures, "adapters");
    int n = (int)json_array_size(adapters);
    for (int i = 0; i < n; i++)
        adapter[i] =
            intern_printf(CASES "%s/adapter", json_string_value(json_array_get(adapters, i)));
    const char *model = json_string_value(json_object_get(figures, "model"));
    Diags *diags = diags_new(m->arena);
    CheckOptions check = {.file = trains ? "dpo-lora.dpo" : "llama3.dpo",
                          .model = n ? intern_printf(CASES "%s", model) : model,
                          .set = set,
                          .nset = trains ? 4 : 1,
                          .adapter = adapter,
                          .nadapter = n,
                          .random_weights = n == 0,
                          .needs_model = true};
    Spec *spec = check_file(m->arena, diags, &check);
    if (!spec) diags_print(diags, 0, stderr, false);
    assert_non_null(spec);
    CompileOptions options = {.target = target, .generate = bounds, .budget = budget};
    for (UnitKind kind = UNIT_PREFILL; kind < NUNIT; kind++) options.want[kind] = true;
    options.want[UNIT_TRAIN] = trains;
    m->plan = compile_spec(spec, &options);
    if (!m->plan) diags_print(diags, 0, stderr, false);
    assert_non_null(m->plan);
    int nsources;
    const Source *sources = spec_sources(spec, &nsources);
    BindSource bind[8];
    for (int i = 0; i < nsources; i++)
        bind[i] = (BindSource){sources[i].name, sources[i].dir, sources[i].adapter, n == 0};
    Err err = {0};
    m->r = run_open_on(m->plan, device());
    must(exec_bind(m->r.exec, bind, nsources, 1, NULL, &err), &err);
}

static Model open_within(json_t *figures, const char *compute, GenerateBounds bounds,
                         int64_t budget, bool trains) {
    Err err = {0};
    Model m = {.arena = arena_new()};
    Device *dev = device_open(&(DeviceOptions){.name = device(), .cache_dir = run_cache()}, &err);
    must(dev != NULL, &err);
    const Target *target = target_by_arch(dev->arch);
    dev->ops->close(dev);
    check_compile(&m, figures, compute, bounds, target, budget, trains);
    return m;
}
static Model open_model(json_t *figures, const char *compute, GenerateBounds bounds) {
    return open_within(figures, compute, bounds, 0, false);
}

static void close_model(Model *m) {
    run_close(&m->r);
    note_executed(m->plan);
    plan_free(m->plan);
    arena_free(m->arena);
}

static json_t *all_figures(void) {
    json_error_t e;
    json_t *j = json_load_file("tests/num/generate.json", 0, &e);
    if (!j) fail_msg("%s", e.text);
    return j;
}

static void prompts_of(Model *m, json_t *figures, Answer *a) {
    json_t *rows = json_object_get(figures, "rows");
    for (int i = 0; i < ROWS; i++) {
        json_t *ids = json_object_get(json_array_get(rows, (size_t)i), "prompt");
        int n = (int)json_array_size(ids);
        int32_t *prompt = NEW_ARRAY(m->arena, int32_t, n);
        for (int k = 0; k < n; k++)
            prompt[k] = (int32_t)json_integer_value(json_array_get(ids, (size_t)k));
        a[i] = (Answer){.prompt = prompt, .nprompt = n, .key = (uint64_t)i};
    }
}

static void free_answers(Answer *a) {
    for (int i = 0; i < ROWS; i++) ids_free(&a[i].ids);
}

/* Step k of a row: [id, its logit, the checksum of all]. */
static double figure(json_t *row, bool before, int64_t k, size_t which) {
    json_t *steps = json_object_get(row, before ? "before" : "answer");
    return json_number_value(json_array_get(json_array_get(steps, (size_t)k), which));
}

typedef struct Watch { /* compares the logits of the only answer that runs */
    GenerateWatch watch;
    Model *m;
    json_t *row;
    bool before;
    float *keep; /* [NEW][VOCAB], or NULL */
} Watch;

static void watch_logits(GenerateWatch *self, const Answer *a) {
    Watch *w = (Watch *)self;
    Err err = {0};
    float logits[VOCAB];
    must(exec_read(w->m->r.exec, "logits", logits, sizeof logits, &err), &err);
    const int64_t k = a->ids.n - 1;
    if (w->keep) memcpy(w->keep + k * VOCAB, logits, sizeof logits);
    if (!w->row) return;
    double sum = 0;
    for (int i = 0; i < VOCAB; i++) sum += logits[i] * sin(i + 1.0);
    assert_int_equal(a->ids.v[k], (int)figure(w->row, w->before, k, 0));
    const double best = figure(w->row, w->before, k, 1), check = figure(w->row, w->before, k, 2);
    const double tolerance = 1e-4 * fmax(1, fabs(best));
    assert_true(fabs(logits[a->ids.v[k]] - best) <= tolerance);
    assert_true(fabs(sum - check) <= VOCAB * tolerance);
}

/* Every prompt alone, every logit; pieces of 16 rows or all at once. */
static void as_hugging_face(void **unused) {
    json_t *all = all_figures(), *figures;
    const char *name;
    int64_t rows = 16;
    json_object_foreach(all, name, figures) {
        Model m = open_model(figures, "fp32", (GenerateBounds){rows, 2, 2 * (LONGEST + NEW)});
        for (int side = 0; side < 2; side++) {
            Answer a[ROWS];
            prompts_of(&m, figures, a);
            for (int i = 0; i < ROWS; i++) {
                Watch w = {.watch = {watch_logits}, .m = &m, .before = side};
                w.row = json_array_get(json_object_get(figures, "rows"), (size_t)i);
                GenerateJob job = {.exec = m.r.exec,
                                   .plan = m.plan,
                                   .before = side,
                                   .max_tokens = NEW,
                                   .watch = &w.watch};
                Err err = {0};
                must(generate(&job, &a[i], 1, NULL, &err), &err);
                assert_int_equal(a[i].ids.n, NEW);
                assert_int_equal(a[i].end, ANSWER_LENGTH);
            }
            free_answers(a);
        }
        close_model(&m);
        rows = rows == 16 ? 64 : 16;
    }
    json_decref(all);
}

/* Three unequal prompts in two places, in one run of prefill or pieces of 16: the same ids; also
 * where the adapter is what a plan trains. */
static void together_as_alone(void **unused) {
    json_t *all = all_figures();
    static const struct {
        const char *name;
        GenerateBounds bounds;
        bool trains;
    } cases[] = {{"gqa", {16, 2, 2 * (LONGEST + NEW)}, false},
                 {"mistral", {64, 3, 3 * (LONGEST + NEW)}, false},
                 {"qwen2", {32, 2, 2 * (LONGEST + NEW)}, true}};
    for (size_t c = 0; c < COUNT(cases); c++) {
        json_t *figures = json_object_get(all, cases[c].name);
        Model m = open_within(figures, "fp32", cases[c].bounds, 0, cases[c].trains);
        Answer a[ROWS];
        prompts_of(&m, figures, a);
        GenerateJob job = {.exec = m.r.exec, .plan = m.plan, .max_tokens = NEW};
        GenerateStats stats = {0};
        Err err = {0};
        must(generate(&job, a, ROWS, &stats, &err), &err);
        for (int i = 0; i < ROWS; i++) {
            json_t *row = json_array_get(json_object_get(figures, "rows"), (size_t)i);
            assert_int_equal(a[i].ids.n, NEW);
            for (int k = 0; k < NEW; k++)
                assert_int_equal(a[i].ids.v[k], (int)figure(row, false, k, 0));
        }
        assert_int_equal(stats.prompt_tokens, 1 + 9 + LONGEST);
        assert_int_equal(stats.tokens, ROWS * NEW);
        free_answers(a);
        close_model(&m);
    }
    json_decref(all);
}

/* A random model with heads of 64, which tensor cores can do. */
static json_t *wide_model(void) {
    static const char config[] =
        "{\"model_type\": \"llama\", \"hidden_size\": 32, \"intermediate_size\": 56, "
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
        "\"head_dim\": 64, \"vocab_size\": 97, \"rms_norm_eps\": 1e-5}";
    const char *build = getenv("BUILD") ? getenv("BUILD") : "build";
    const char *dir = intern_printf("%s/tests/generate", build);
    Err err = {0};
    must(dir_make(dir, &err), &err);
    must(file_write(intern_printf("%s/config.json", dir), config, strlen(config), &err), &err);
    return json_pack("{s:s}", "model", dir);
}

/* bf16: logits over the cache, and those of the same ids all put through "prefill" again; of a
 * prompt longer than a piece. */
static void bf16_as_recomputed(void **unused) {
    json_t *figures = wide_model();
    Model m = open_model(figures, "bf16", (GenerateBounds){32, 1, LONGEST + NEW});
    Answer a = {.nprompt = LONGEST};
    int32_t ids[LONGEST + NEW];
    for (int i = 0; i < LONGEST; i++) ids[i] = 7 * i % VOCAB;
    a.prompt = ids;
    float over[NEW * VOCAB], again[VOCAB];
    Watch w = {.watch = {watch_logits}, .m = &m, .keep = over};
    GenerateJob job = {.exec = m.r.exec, .plan = m.plan, .max_tokens = NEW, .watch = &w.watch};
    Err err = {0};
    must(generate(&job, &a, 1, NULL, &err), &err);
    memcpy(ids + LONGEST, a.ids.v, sizeof *ids * NEW);
    job.max_tokens = 1;
    w.keep = again;
    for (int k = 1; k < NEW; k++) {
        Answer b = {.prompt = ids, .nprompt = LONGEST + k};
        must(generate(&job, &b, 1, NULL, &err), &err);
        float most = 0;
        for (int i = 0; i < VOCAB; i++) most = fmaxf(most, fabsf(again[i]));
        assert_true(most > 0);
        for (int i = 0; i < VOCAB; i++)
            assert_true(fabsf(over[k * VOCAB + i] - again[i]) <= sqrtf(WIDTH) / 256 * most);
        ids_free(&b.ids);
    }
    ids_free(&a.ids);
    close_model(&m);
    json_decref(figures);
}

/* Quantized weights stay as numbers where there is room, and say the same where there is not. */
static void resident_or_not(void **unused) {
    json_t *figures = json_pack("{s:s, s:[s]}", "model", "bnb_nf4", "adapters", "bnb_nf4");
    float logits[2][NEW * VOCAB];
    int64_t budget = 0;
    for (int tight = 0; tight < 2; tight++) {
        Model m =
            open_within(figures, "fp32", (GenerateBounds){16, 1, LONGEST + NEW}, budget, false);
        assert_true(m.plan->fits);
        int dequants = 0;
        const Program *decode = plan_program(m.plan, "decode");
        for (int i = 0; i < decode->nsteps; i++)
            dequants += decode->steps[i].kind == STEP_KERNEL &&
                        !strcmp(m.plan->kernels[decode->steps[i].kernel].kind, "dequant");
        assert_int_equal(dequants, tight ? 7 : 0); /* linear layers of one block */
        budget = m.plan->arena_bytes - 1;
        int32_t ids[] = {5, 90, 17};
        Answer a = {.prompt = ids, .nprompt = COUNT(ids)};
        Watch w = {.watch = {watch_logits}, .m = &m, .keep = logits[tight]};
        GenerateJob job = {.exec = m.r.exec, .plan = m.plan, .max_tokens = NEW, .watch = &w.watch};
        Err err = {0};
        must(generate(&job, &a, 1, NULL, &err), &err);
        ids_free(&a.ids);
        close_model(&m);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
    json_decref(figures);
}

/* Stop tokens, lengths, and what cannot be answered. */
static void ends_and_errors(void **unused) {
    json_t *all = all_figures(), *figures = json_object_get(all, "gqa");
    Model m = open_model(figures, "fp32", (GenerateBounds){16, 1, LONGEST + NEW});
    Answer a[ROWS];
    prompts_of(&m, figures, a);
    json_t *row = json_array_get(json_object_get(figures, "rows"), 1);
    int32_t stop[] = {VOCAB - 1, (int32_t)figure(row, false, 4, 0)};
    int first = 0;
    while ((int)figure(row, false, first, 0) != stop[1] &&
           (int)figure(row, false, first, 0) != stop[0])
        first++;
    GenerateJob job = {
        .exec = m.r.exec, .plan = m.plan, .max_tokens = NEW, .stop = stop, .nstop = 2};
    Err err = {0};
    must(generate(&job, &a[1], 1, NULL, &err), &err);
    assert_int_equal(a[1].end, ANSWER_STOP);
    assert_int_equal(a[1].ids.n, first + 1);
    job.max_tokens = NEW + 1; /* of the longest prompt one row too many */
    assert_false(generate(&job, &a[2], 1, NULL, &err));
    assert_non_null(strstr(err.text, "needs 54 rows of the KV cache, which has 53"));
    job.max_tokens = NEW;
    err = (Err){0};
    assert_false(generate(&job, &(Answer){.nprompt = 0}, 1, NULL, &err));
    assert_non_null(strstr(err.text, "empty"));
    err = (Err){0};
    assert_false(
        generate(&job, &(Answer){.prompt = (int32_t[]){VOCAB}, .nprompt = 1}, 1, NULL, &err));
    assert_non_null(strstr(err.text, "token 97 is not one of the model's 97"));
    free_answers(a);
    close_model(&m);
    json_decref(all);
}

/* ---- the sampler ----------------------------------------------------------------------------- */

enum { TOKENS = 50, DRAWS = 20000 };

/* Hugging Face's order: temperature, top-k, top-p; the probability of each token. */
static void distribution(const Sampling *s, const float *x, double *p) {
    int order[TOKENS];
    double sum = 0;
    for (int i = 0; i < TOKENS; i++) { /* insertion sort, stable */
        int k = i;
        for (; k > 0 && x[order[k - 1]] < x[i]; k--) order[k] = order[k - 1];
        order[k] = i;
    }
    int n = s->top_k && s->top_k < TOKENS ? (int)s->top_k : TOKENS;
    for (int i = 0; i < TOKENS; i++) p[i] = 0;
    for (int i = 0; i < n; i++) sum += p[order[i]] = exp(x[order[i]] / s->temperature);
    double part = 0, kept = 0;
    for (int i = 0; i < n; i++) {
        bool in = s->top_p <= 0 || s->top_p >= 1 || part < s->top_p * sum;
        part += p[order[i]];
        if (!in) p[order[i]] = 0;
        kept += p[order[i]];
    }
    for (int i = 0; i < TOKENS; i++) p[i] /= kept;
}

static void draws_as_defined(void **unused) {
    static const Sampling cases[] = {{.temperature = 1, .seed = 1},
                                     {.temperature = 0.5, .top_k = 7, .seed = 2},
                                     {.temperature = 1.5, .top_p = 0.6, .seed = 3},
                                     {.temperature = 0.8, .top_k = 12, .top_p = 0.5, .seed = 4},
                                     {.temperature = 2, .top_k = 100, .top_p = 1e-6, .seed = 5}};
    float x[TOKENS];
    for (int i = 0; i < TOKENS; i++) x[i] = 3 * sinf((float)(7 * i + 1)) + (i % 9 == 0);
    x[20] = x[30]; /* equal ones */
    Logit work[TOKENS];
    for (size_t c = 0; c < COUNT(cases); c++) {
        double p[TOKENS];
        int count[TOKENS] = {0};
        distribution(&cases[c], x, p);
        for (int d = 0; d < DRAWS; d++)
            count[sample_token(&cases[c], x, TOKENS, (uint64_t)d / 100, (uint64_t)d % 100, work)]++;
        for (int i = 0; i < TOKENS; i++) { /* 5 standard deviations of a binomial count */
            double spread = sqrt(DRAWS * p[i] * (1 - p[i]));
            assert_true(p[i] > 0 || !count[i]);
            assert_true(fabs(count[i] - DRAWS * p[i]) <= 5 * spread + (p[i] > 0));
        }
        int once = sample_token(&cases[c], x, TOKENS, 3, 4, work);
        assert_int_equal(once, sample_token(&cases[c], x, TOKENS, 3, 4, work));
    }
}

static void greedy_takes_the_first(void **unused) {
    float x[TOKENS] = {0};
    Logit work[TOKENS];
    Sampling s = {0};
    x[7] = x[31] = 2;
    x[3] = NAN;
    assert_int_equal(sample_token(&s, x, TOKENS, 0, 0, work), 7);
    for (int i = 0; i < TOKENS; i++) x[i] = NAN;
    assert_int_equal(sample_token(&s, x, TOKENS, 0, 0, work), -1);
    s.temperature = 1;
    assert_int_equal(sample_token(&s, x, TOKENS, 0, 0, work), -1);
}

/* ---- answers as text ------------------------------------------------------------------------- */

/* The pieces of an answer that comes id by id are valid, and together its text. */
static void pieces_are_whole(void **unused) {
    static const char text[] =
        " na\u00efve caf\u00e9 \u20ac5 \U0001f600\U0001f9d1\u200d\U0001f680 \u4f60\u597d.";
    Err err = {0};
    Tokenizer *t = tokenizer_open("examples/demo/model", &err);
    must(t != NULL, &err);
    Ids prompt = {0}, all = {0};
    tokenizer_encode(t, "Q: who?\nA:", 10, false, &prompt);
    tokenizer_encode(t, text, sizeof text - 1, false, &all);
    assert_true(all.n > 20); /* a character is several tokens here */
    for (int bad = 0; bad < 2; bad++) {
        Answer a = {.prompt = prompt.v, .nprompt = prompt.n};
        AnswerText shown = {.tokenizer = t};
        for (int64_t i = 0; i < all.n; i++) {
            if (bad && i % 3 == 1) continue; /* broken characters */
            ids_push(&a.ids, all.v[i]);
            answer_text(&shown, &a, false);
            assert_int_equal(utf8_valid(shown.text.data, shown.text.len), shown.text.len);
        }
        answer_text(&shown, &a, true);
        assert_int_equal(utf8_valid(shown.text.data, shown.text.len), shown.text.len);
        if (!bad) assert_string_equal(shown.text.data, text);
        assert_int_equal(shown.done, prompt.n + a.ids.n);
        answer_text_free(&shown);
        ids_free(&a.ids);
    }
    ids_free(&prompt);
    ids_free(&all);
    tokenizer_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_hugging_face),    cmocka_unit_test(together_as_alone),
        cmocka_unit_test(bf16_as_recomputed), cmocka_unit_test(resident_or_not),
        cmocka_unit_test(ends_and_errors),    cmocka_unit_test(draws_as_defined),
        cmocka_unit_test(pieces_are_whole),   cmocka_unit_test(greedy_takes_the_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
