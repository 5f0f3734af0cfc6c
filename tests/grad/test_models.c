/* test_models.c: the gradient of whole training graphs: every objective that ships, several models,
 * LoRA with dropout, full fine-tuning of tied weights.
 *
 * A .dpo file is built, folded and differentiated; weights, trained tensors and pairs are random. 
 * The derivative along a random direction of each trained tensor is compared with differences of
 * the loss in double: D(h) = (f(h) - f(-h)) / 2h at h and h/2, extrapolated, so that the error is
 * h^4 f''''' and the rounding of f over h: below 1e-9 at h = 1e-4 for these losses.  What `stop`
 * guards is held at its value while the parameters move.
 */
#include "compiler/front.h"
#include "runtime/job/pack.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define CASES "tests/num/cases/"
enum { PAIRS = 3, IDS = 40 };
static const double step = 1e-4, tolerance = 1e-9;

typedef struct Model {
    Arena *arena;
    Spec *spec;
    Unit *u;
    Graph *forward;    /* before grad, with inputs in place of stops */
    NodeId loss, seed; /* in it */
    NodeId *stop;      /* its inputs; their operands' values come from `guarded` */
    NodeId *guarded;
    int nstop, capstop, capguarded;
    Micro *micro;
    double *params;
} Model;

static double sample(int64_t i, int64_t salt) {
    uint64_t x = (uint64_t)i * 0x9e3779b97f4a7c15u + (uint64_t)salt * 0xd1b54a32d192ed03u + 1;
    x = (x ^ x >> 31) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    return (double)(x >> 12) * 0x1p-51 - 1;
}

/* ---- from a .dpo text to a differentiated graph ---------------------------------------------- */

static Spec *check_text(Arena *arena, const char *text, const char *model) {
    char path[] = "/tmp/dpoc-test-XXXXXX.dpo";
    int fd = mkstemps(path, 4);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    Diags *diags = diags_new(arena);
    CheckOptions o = {.file = path, .model = model, .needs_model = true, .random_weights = true};
    Spec *spec = check_file(arena, diags, &o);
    unlink(path);
    if (!spec) diags_print(diags, 0, stderr, false);
    assert_non_null(spec);
    return spec;
}

/* The graph with an input of its own for every stop. */
static void without_stops(Model *m) {
    const Graph *g = m->u->g;
    m->forward = graph_new(m->arena, g->diags);
    NodeId *map = NEW_ARRAY(m->arena, NodeId, g->n);
    for (NodeId id = 1; id < g->n; id++) {
        if (g->node[id].op != OP_stop) {
            map[id] = graph_copy(m->forward, g, id, map);
            continue;
        }
        const char *name = intern_printf("stopped.%d", id);
        PUSH(m->arena, m->guarded, m->nstop, m->capguarded, map[g->node[id].in[0]]);
        m->nstop--; /* both arrays grow together */
        map[id] = g_input(m->forward, name, g->node[id].phase, g->node[id].type);
        PUSH(m->arena, m->stop, m->nstop, m->capstop, map[id]);
    }
    m->loss = map[m->u->loss];
    m->seed = map[m->u->seed];
}

/* An objective that crosses pairs stays in one piece: cut_gradients has the pieces. */
static Model *open_model(const char *text, const char *model) {
    Arena *arena = arena_new();
    Model *m = NEW(arena, Model);
    m->arena = arena;
    m->spec = check_text(arena, text, model);
    m->spec->coupled_tokens = true;
    m->u = unit_new(arena, m->spec, target_by_name("cpu"), UNIT_TRAIN);
    assert_true(unit_build(m->u));
    assert_true(pass_fold(NULL, m->u) >= 0 && pass_cse(NULL, m->u) >= 0);
    without_stops(m);
    assert_int_equal(pass_grad(NULL, m->u), m->u->ntrained);
    assert_null(graph_verify(m->u->g, arena));
    m->params = NEW_ARRAY(arena, double, m->u->nparams);
    for (int i = 0; i < m->u->ntrained; i++) {
        const Trained *t = &m->u->trained[i];
        for (int64_t j = 0; j < t->rows * t->cols; j++)
            m->params[t->offset + j] = t->rank == 1 ? 1 + 0.2 * sample(j, i) : 0.4 * sample(j, i);
    }
    return m;
}

/* Random pairs; prompts of 1 to 6 tokens, answers of 1 to 5. */
static void make_batch(Model *m, int vocab, bool prefix) {
    static Pair pair[PAIRS];
    static int32_t ids[PAIRS][IDS];
    bool sft = spec_one_sided(m->spec);
    for (int i = 0; i < PAIRS; i++) {
        pair[i] = (Pair){.ids = ids[i], .prompt = 1 + 5 * i / 2, .chosen = 5 - 2 * i};
        pair[i].rejected = sft ? 0 : 1 + i;
        for (int j = 0; j < IDS; j++) ids[i][j] = (int32_t)((sample(j, i + 77) + 1) / 2 * vocab);
    }
    Pairs pairs = {.pair = pair, .n = PAIRS};
    PackItem items[PAIRS] = {{0, 0, 0}, {1, 1, 0}, {2, 2, 0}};
    PackOptions options = {.bucket = 4, .prefix = prefix, .sft = sft};
    for (int x = 0; x < NEXTENT; x++) options.bound[x] = 200;
    Pack *pack = pack_step(m->arena, &options, &pairs, items, PAIRS);
    assert_int_equal(pack->nmicro, 1);
    m->micro = &pack->micro[0];
}

/* ---- evaluation ------------------------------------------------------------------------------ */

static void set_input(Model *m, Eval *e, const Node *n) {
    const char *name = n->attr.name;
    for (int i = 0; i < m->micro->ninput; i++) {
        const PackInput *in = &m->micro->input[i];
        if (strcmp(in->name, name)) continue;
        int64_t count = (int64_t)in->bytes / 4;
        double *x = NEW_ARRAY(m->arena, double, count);
        for (int64_t j = 0; j < count; j++)
            x[j] = n->type->dtype == DT_f32 ? (double)((const float *)in->data)[j]
                                            : ((const int32_t *)in->data)[j];
        eval_set(e, name, x, count);
        return;
    }
    if (!strcmp(name, "seed")) eval_set(e, name, (double[]){7, 1}, 2);
    if (!n->type->rank && strchr(name, '.')) {
        double value = spec_num(m->spec, name);
        eval_set(e, name, &value, 1);
    }
}

static void set_weight(Eval *e, const Node *n) {
    int64_t count = dim_eval(type_count(n->type), (int64_t[NEXTENT]){0});
    double *x = malloc(sizeof *x * (size_t)count);
    for (int64_t i = 0; i < count; i++)
        x[i] = n->type->rank == 1 ? 1 + 0.2 * sample(i, 3) : 0.4 * sample(i, n->attr.i0 + 9);
    eval_set(e, intern_printf("%s/%s", n->attr.name2, n->attr.name), x, count);
    free(x);
}

static Eval *start(Model *m, const Graph *g) {
    Eval *e = eval_new(g, EVAL_DOUBLE, m->micro->extent);
    for (NodeId id = 1; id < g->n; id++) {
        const Node *n = &g->node[id];
        if (n->op == OP_input) set_input(m, e, n);
        if (n->op == OP_weight) set_weight(e, n);
    }
    eval_set(e, "params", m->params, m->u->nparams);
    return e;
}

/* Fixes what stops guard at its value for the present parameters. */
static void hold_stops(Model *m, Eval *e) {
    for (int round = 0; round < m->nstop; round++) { /* one may guard another */
        eval_run(e, PHASE_STEP, false);
        eval_run(e, PHASE_MICRO, true);
        for (int i = 0; i < m->nstop; i++) {
            int64_t n;
            const double *x = eval_get(e, m->guarded[i], &n);
            eval_set(e, m->forward->node[m->stop[i]].attr.name, x, n);
        }
    }
}

static double loss_at(Model *m, Eval *e, const double *direction, double h) {
    double *p = NEW_ARRAY(m->arena, double, m->u->nparams);
    for (int64_t i = 0; i < m->u->nparams; i++) p[i] = m->params[i] + h * direction[i];
    eval_run(e, PHASE_INIT, true); /* which may give some of them their start */
    eval_set(e, "params", p, m->u->nparams);
    eval_run(e, PHASE_STEP, true);
    eval_run(e, PHASE_MICRO, true);
    return eval_get(e, m->loss, NULL)[0] * eval_get(e, m->seed, NULL)[0];
}

static void check_direction(Model *m, Eval *e, const double *grads, int64_t from, int64_t to,
                            const char *what) {
    double *direction = NEW_ARRAY(m->arena, double, m->u->nparams), want = 0;
    for (int64_t i = from; i < to; i++) {
        direction[i] = m->params[i] != 0 ? sample(i, 1234) : 0; /* not the padding */
        want += grads[i] * direction[i];
    }
    double d1 = (loss_at(m, e, direction, step) - loss_at(m, e, direction, -step)) / (2 * step);
    double d2 = (loss_at(m, e, direction, step / 2) - loss_at(m, e, direction, -step / 2)) / step;
    double got = (4 * d2 - d1) / 3;
    if (!(fabs(got - want) <= tolerance * (1 + fabs(got))))
        fail_msg("%s: the gradient gives %.12g, differences %.12g", what, want, got);
}

/* Every tensor by itself, or one direction over all of them. */
static void check_model(Model *m, const char *what, bool each) {
    Eval *e = start(m, m->u->g);
    eval_run(e, PHASE_INIT, true);
    eval_set(e, "params", m->params, m->u->nparams);
    eval_run(e, PHASE_MICRO, false);
    int64_t n;
    const double *grads = eval_state(e, "grads", &n);
    double norm = 0;
    for (int64_t i = 0; i < n; i++) norm += grads[i] * grads[i];
    assert_true(norm > 1e-6);
    Eval *f = start(m, m->forward);
    hold_stops(m, f);
    check_direction(m, f, grads, 0, n, what);
    for (int i = 0; each && i < m->u->ntrained; i++) {
        const Trained *t = &m->u->trained[i];
        check_direction(m, f, grads, t->offset, t->offset + t->rows * t->cols, t->tensor);
    }
    eval_free(e);
    eval_free(f);
    arena_free(m->arena);
}

/* ---- objectives that are cut off ------------------------------------------------------------- */

static Unit *piece(Model *m, UnitKind kind) {
    Unit *u = unit_new(m->arena, m->spec, target_by_name("cpu"), kind);
    assert_true(unit_build(u));
    if (kind == UNIT_TRAIN) assert_int_equal(pass_grad(NULL, u), u->ntrained);
    assert_null(graph_verify(u->g, m->arena));
    return u;
}

/* A state of one program as the input of the next. */
static void hand_over(Eval *from, Eval *to, const char *name) {
    int64_t n;
    const double *x = eval_state(from, name, &n);
    eval_set(to, name, x, n);
}

/* The gradients of score, objective and micro one after the other are those in one piece. */
static void check_cut(Model *whole, const char *text, const char *what) {
    Model m = *whole;
    m.spec = check_text(m.arena, text, CASES "gqa");
    assert_true(spec_cut(m.spec));
    Eval *score = start(&m, piece(&m, UNIT_SCORE)->g);
    Eval *objective = start(&m, piece(&m, UNIT_OBJECTIVE)->g);
    Eval *micro = start(&m, piece(&m, UNIT_TRAIN)->g);
    Eval *one = start(whole, whole->u->g);
    eval_run(score, PHASE_MICRO, false);
    hand_over(score, objective, "scores");
    eval_run(objective, PHASE_MICRO, false);
    hand_over(objective, micro, "slopes");
    eval_run(micro, PHASE_MICRO, false);
    eval_run(one, PHASE_MICRO, false);
    int64_t n, metrics;
    const double *got = eval_state(micro, "grads", &n), *want = eval_state(one, "grads", &n);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= 1e-12 * (1 + fabs(want[i]))))
            fail_msg("%s: the gradient in pieces is %.15g, not %.15g", what, got[i], want[i]);
    got = eval_state(objective, "metrics", &metrics);
    want = eval_state(one, "metrics", &metrics);
    for (int64_t i = 0; i < metrics; i++)
        if (!(fabs(got[i] - want[i]) <= 1e-12 * (1 + fabs(want[i]))))
            fail_msg("%s: %s in pieces is %.15g, not %.15g", what, whole->u->metrics[i].name,
                     got[i], want[i]);
    eval_free(score);
    eval_free(objective);
    eval_free(micro);
    eval_free(one);
}

/* ---- the tests ------------------------------------------------------------------------------- */

#define RUN                                                                                        \
    "base = auto\nadapter pref = lora(rank = 2, alpha = 4) on all_linear\n"                        \
    "policy = base + pref\nreference = base\ntrain pref\n"

static void objectives(void **state) {
    int found = 0, cut = 0;
    for (int i = 0; i < embedded_count(); i++) {
        const char *name = embedded_name(i), *prefix = "models/objectives/";
        if (strncmp(name, prefix, strlen(prefix))) continue;
        char text[600];
        snprintf(text, sizeof text, "use \"objectives/%s\"\n" RUN, name + strlen(prefix));
        Model *m = open_model(text, CASES "gqa");
        make_batch(m, 97, true);
        if (m->spec->coupled) check_cut(m, text, name);
        cut += m->spec->coupled;
        check_model(m, name, false);
        found++;
    }
    assert_true(found >= 20 && cut >= 4);
}

static const char dpo[] = "use \"objectives/dpo.dpo\"\n" RUN;

static void models(void **state) {
    static const char *const name[] = {"gqa",      "qwen2",       "mistral",
                                       "head_dim", "llama3_rope", "biases"};
    for (size_t i = 0; i < COUNT(name); i++) {
        Model *m = open_model(dpo, intern_printf(CASES "%s", name[i]));
        make_batch(m, 97, i % 2);
        check_model(m, name[i], true);
    }
}

static void dropout(void **state) {
    Model *m = open_model("use \"objectives/dpo.dpo\"\nbase = auto\n"
                          "adapter pref = lora(rank = 2, alpha = 4, dropout = 0.4) on all_linear\n"
                          "policy = base + pref\nreference = base\ntrain pref\n",
                          CASES "gqa");
    make_batch(m, 97, true);
    check_model(m, "dropout", true);
}

/* Magnitudes on every kind of weight, their norms held; with dropout, two products with a base. */
static void dora(void **state) {
    static const char *const what[] = {
        "lora(rank = 2, alpha = 3, dora = true) on all_linear",
        "lora(rank = 2, alpha = 3, dora = true, dropout = 0.3) on all_linear",
        "lora(rank = 2, alpha = 3, dora = true) on \"model.embed_tokens\", "
        "lora(rank = 3, rslora = true, dora = true) on \"{o_proj,lm_head}\"",
        "lora(rank = 2, alpha = 3) on \"model.embed_tokens\", lora(rank = 3) on \"lm_head\"",
    };
    static const char *const name[] = {"biases", "gqa", "mha_tied", "mha_tied"};
    for (size_t i = 0; i < COUNT(what); i++) {
        char text[600];
        snprintf(text, sizeof text,
                 "use \"objectives/dpo.dpo\"\nbase = auto\nadapter pref = %s\n"
                 "policy = base + pref\nreference = base\ntrain pref\n",
                 what[i]);
        Model *m = open_model(text, intern_printf(CASES "%s", name[i]));
        make_batch(m, 97, i % 2 == 0);
        check_model(m, what[i], true);
    }
}

static void full_fine_tuning(void **state) {
    static const char text[] = "use \"objectives/dpo.dpo\"\nbase = auto\npolicy = base\n"
                               "reference = policy at start\ntrain base\n";
    static const char *const name[] = {"mha_tied", "qwen2", "gqa"};
    for (size_t i = 0; i < COUNT(name); i++) {
        Model *m = open_model(text, intern_printf(CASES "%s", name[i]));
        make_batch(m, 97, i % 2 == 0);
        check_model(m, name[i], true);
    }
}

/* LoRA from layer 1 on: layer 0 is computed once for policy and reference and has no backward. */
static void trunk(void **state) {
    Model *m =
        open_model("use \"objectives/dpo.dpo\"\nbase = auto\n"
                   "adapter pref = lora(rank = 2, alpha = 4) on \"model.layers[1].**.*_proj\"\n"
                   "policy = base + pref\nreference = base\ntrain pref\n",
                   CASES "gqa");
    const Graph *g = m->u->g;
    int matmuls = 0, attends = 0, both = 0, backward = 0;
    for (NodeId id = 1; id < g->n; id++) {
        const Node *n = &g->node[id];
        bool policy = false, reference = false;
        for (const Origin *o = n->origin; o; o = o->next) {
            policy |= o->scope && strstr(o->scope, "policy/model.layers.0");
            reference |= o->scope && strstr(o->scope, "reference/model.layers.0");
        }
        if (!policy && !reference) continue;
        matmuls += n->op == OP_matmul;
        attends += n->op == OP_attend;
        backward += n->op == OP_attend_bwd || n->op == OP_put;
        both += policy && reference && (n->op == OP_matmul || n->op == OP_attend);
    }
    assert_int_equal(matmuls, 7); /* q k v o gate up down */
    assert_int_equal(attends, 1);
    assert_int_equal(both, 8);
    assert_int_equal(backward, 0);
    make_batch(m, 97, true);
    check_model(m, "trunk", true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(objectives), cmocka_unit_test(models),           cmocka_unit_test(dropout),
        cmocka_unit_test(dora),       cmocka_unit_test(full_fine_tuning), cmocka_unit_test(trunk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
