/* test_layers.c: the layer language: a model unlike Llama against numpy's figures, rounding,
 * structure.
 *
 * tests/front/odd holds the model, its config.json and the figures (made by
 * tests/peers/make_odd.py); weights are a formula of their names.
 */
#include "case.h"

#define ODD "tests/front/odd"

static double *formula(Arena *arena, const char *name, int64_t count) {
    int seed = 0;
    for (int i = 0; name[i]; i++) seed += (i + 1) * name[i];
    double *w = NEW_ARRAY(arena, double, count);
    for (int64_t i = 0; i < count; i++)
        w[i] = 0.4 * sin(seed % 1000 + 1.7 * (double)i + 0.013 * (double)i * (double)i);
    return w;
}

static Spec *checked(Arena *arena, const char *file, const char *model, const char *const *set,
                     int nset) {
    Diags *diags = diags_new(arena);
    CheckOptions o = {.file = file,
                      .model = model,
                      .set = set,
                      .nset = nset,
                      .random_weights = true,
                      .needs_model = true};
    Spec *spec = check_file(arena, diags, &o);
    if (!spec) diags_print(diags, 0, stdout, false);
    assert_non_null(spec);
    return spec;
}

static Unit *built(Arena *arena, const Spec *spec, UnitKind kind) {
    Unit *u = unit_new(arena, spec, target_by_name("cpu"), kind);
    assert_true(unit_build(u));
    assert_null(graph_verify(u->g, arena));
    return u;
}

static void odd_model_matches_numpy(void **state) {
    (void)state;
    for (int share = 0; share < 2; share++) {
        Arena *arena = arena_new();
        Unit *u = built(arena, checked(arena, ODD "/odd.dpo", ODD, NULL, 0), UNIT_EVAL);
        json_t *figures = json_load_file(ODD "/figures.json", 0, NULL);
        Batch *b = NEW(arena, Batch);
        add_pair(b, figures, share);
        int64_t extent[NEXTENT] = {
            [X_T] = b->t, [X_R] = b->r, [X_G] = b->g, [X_K] = 1, [X_N] = b->n, [X_P] = b->p};
        Eval *e = eval_new(u->g, EVAL_DOUBLE, extent);
        for (int i = 0; i < u->nweights; i++) {
            const WeightInfo *w = &u->weights[i];
            int64_t count = w->rows * w->cols;
            eval_set(e, arena_printf(arena, "base/%s", w->tensor), formula(arena, w->tensor, count),
                     count);
        }
        set_batch(e, b);
        eval_run(e, PHASE_MICRO, false);
        int64_t n;
        for (int side = 0; side < 2; side++) {
            const char *name = side ? "logp_rejected" : "logp_chosen";
            double want = json_number_value(json_object_get(figures, name)),
                   got = eval_state(e, name, &n)[0];
            if (!(fabs(got - want) <= 1e-9 * fabs(want)))
                die("%s is %.12g, not %.12g\n", name, got, want);
        }
        json_decref(figures);
        eval_free(e);
        arena_free(arena);
    }
}

static void bf16_is_what_products_and_attention_take(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *set[] = {"graph.compute=bf16"};
    const Graph *g =
        built(arena, checked(arena, "models/dpo-lora.dpo", CASES "/gqa", set, 1), UNIT_EVAL)->g;
    int products = 0, attends = 0;
    for (NodeId id = 1; id < g->n; id++) {
        const Node *n = node(g, id);
        bool product = n->op == OP_matmul || n->op == OP_linear_logprob || n->op == OP_attend;
        if (product) assert_int_equal(node(g, n->in[0])->type->dtype, DT_bf16);
        if (product) assert_int_equal(node(g, n->in[1])->type->dtype, DT_bf16);
        products += n->op == OP_matmul;
        attends += n->op == OP_attend;
    }
    assert_int_equal(products,
                     2 * 7 * 3 + 2 * 7); /* two layers: policy with LoRA, reference without */
    assert_int_equal(attends, 4);
    arena_free(arena);
}

static int count_op(const Graph *g, Op op) {
    int n = 0;
    for (NodeId id = 1; id < g->n; id++) n += node(g, id)->op == op;
    return n;
}

static void fp32_has_no_rounding(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const Graph *g =
        built(arena, checked(arena, "models/dpo-lora.dpo", CASES "/gqa", NULL, 0), UNIT_TRAIN)->g;
    for (NodeId id = 1; id < g->n; id++) {
        if (node(g, id)->op != OP_cast) continue;
        assert_int_equal(node(g, node(g, id)->in[0])->type->dtype, DT_i32); /* positions, lengths */
    }
    arena_free(arena);
}

static void dropout_is_in_the_policy_of_training_only(void **state) {
    (void)state;
    const char *set[] = {"pref.dropout=0.1"};
    Arena *arena = arena_new();
    Spec *spec = checked(arena, "models/dpo-lora.dpo", CASES "/gqa", set, 1);
    Unit *u = built(arena, spec, UNIT_TRAIN);
    const Graph *g = u->g;
    assert_int_equal(count_op(g, OP_uniform), 14); /* one mask per adapted weight */
    for (NodeId a = 1; a < g->n; a++)
        for (NodeId c = 1; c < a; c++)
            if (node(g, a)->op == OP_uniform && node(g, c)->op == OP_uniform)
                assert_true(node(g, a)->attr.i0 != node(g, c)->attr.i0);
    assert_int_equal(count_op(built(arena, spec, UNIT_EVAL)->g, OP_uniform), 0);
    assert_int_equal(count_op(built(arena, spec, UNIT_REF)->g, OP_uniform), 0);
    arena_free(arena);
}

/* Offsets of trained tensors: multiples of 16, no overlap, the same in every unit. */
static void parameters_lie_apart(void **state) {
    (void)state;
    Arena *arena = arena_new();
    Spec *spec = checked(arena, "models/dpo-lora.dpo", CASES "/gqa", NULL, 0);
    Unit *u = built(arena, spec, UNIT_TRAIN), *decode = built(arena, spec, UNIT_DECODE);
    int64_t end = 0;
    for (int i = 0; i < u->ntrained; i++) {
        const Trained *t = &u->trained[i];
        assert_int_equal(t->offset % 16, 0);
        assert_true(t->offset >= end && t->leaf);
        end = t->offset + t->rows * t->cols;
        assert_int_equal(t->offset, decode->trained[i].offset);
        assert_string_equal(t->start.init, i % 2 ? "zero" : "kaiming");
    }
    assert_int_equal(u->nparams % 1024, 0);
    assert_true(u->nparams >= end && u->nparams < end + 1024 + 16);
    arena_free(arena);
}

/* Inverse frequencies of Llama-3.2-1B, from Meta's code: 64 wide, factor 32. */
static void llama3_frequencies(void **state) {
    (void)state;
    Arena *arena = arena_new();
    const char *dir = intern_printf("%s/tests/rope", getenv("BUILD") ? getenv("BUILD") : "build");
    const char *config = "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": "
                         "8, \"num_hidden_layers\": 1,"
                         "\"num_attention_heads\": 1, \"vocab_size\": 11, \"rope_parameters\": "
                         "{\"rope_theta\": 500000.0,"
                         "\"rope_type\": \"llama3\", \"factor\": 32.0, \"low_freq_factor\": 1.0, "
                         "\"high_freq_factor\": 4.0,"
                         "\"original_max_position_embeddings\": 8192}}";
    Err err = {0};
    assert_true(dir_make(dir, &err));
    assert_true(file_write(intern_printf("%s/config.json", dir), config, strlen(config), &err));
    const Graph *g = built(arena, checked(arena, "models/dpo-lora.dpo", dir, NULL, 0), UNIT_REF)->g;
    const float *table = NULL;
    for (NodeId id = 1; id < g->n; id++)
        if (node(g, id)->op == OP_table) table = node(g, id)->attr.table;
    assert_non_null(table);
    assert_int_equal(table_size(table), 64);
    const struct {
        int i;
        double want;
    } known[] = {{0, 1},
                 {1, 0.663601238},
                 {14, 0.00321144599},
                 {15, 0.00129054793},
                 {17, 9.7082878e-05},
                 {18, 1.94616382e-05},
                 {31, 9.41830673e-08}};
    for (size_t i = 0; i < COUNT(known); i++) {
        assert_true(fabs(table[known[i].i] / known[i].want - 1) < 2e-7);
        assert_true(table[known[i].i] == table[known[i].i + 32]);
    }
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_model_matches_numpy),
        cmocka_unit_test(bf16_is_what_products_and_attention_take),
        cmocka_unit_test(fp32_has_no_rounding),
        cmocka_unit_test(dropout_is_in_the_policy_of_training_only),
        cmocka_unit_test(parameters_lie_apart),
        cmocka_unit_test(llama3_frequencies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
