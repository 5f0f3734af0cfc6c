/* test_kernels: every kind of kernel on a device against the evaluator, at random shapes.
 *
 *     test_kernels [--device=cpu|cuda] [--seed=2] [--cases=6] [--long]
 *
 * A case is one graph with every CUSTOM op (but append: tests/num/test_generate.c), products with
 * what they take in, and casts, at random widths, run at several extents; bounds.h says how far
 * results may be off.  Generated kernels (random graphs of maps, reductions, views, effects) must
 * have the CPU's bits.  --long: every length of a list and three drawn ones a case, else one of
 * each.  Prints the seed of every case, so that one can be run again alone. */
#include "runtime/quantize.h"
#include "tests/gpu/bounds.h"
#include "tests/pass/kernel_graph.h"

static const char *device = "cpu";
static const Target *target;
static uint64_t first_seed = 2;
static int cases = 6;
static bool longer;

/* ---- the ops of a case ----------------------------------------------------------------------- */

static void add_attend(Case *c, DType t, int64_t size, int64_t group, NodeId segs, NodeId ranges,
                       int segs_leaf) {
    Graph *g = c->u.g;
    int64_t kv = group == 1 ? 2 : 1, heads = kv * group;
    Check *k = case_check(c, attend_bounds);
    k->t = t, k->size = size, k->heads = heads, k->kv = kv;
    k->window = case_below(c, 3) ? 0 : 1 + case_below(c, 90);
    k->scale = (double)(float)(1.0 / sqrt((double)size)) * (double)(1 + case_below(c, 3));
    k->leaf[AT_SEGS] = segs_leaf;
    NodeId q = case_input(c, case_heads(t, heads, size), FILL_GRID, &k->leaf[AT_Q]);
    NodeId key = case_input(c, case_heads(t, kv, size), FILL_GRID, &k->leaf[AT_K]);
    NodeId v = case_input(c, case_heads(t, kv, size), FILL_GRID, &k->leaf[AT_V]);
    NodeId dout = case_input(c, case_heads(DT_f32, heads, size), FILL_GRID, &k->leaf[AT_DOUT]);
    Attr attr = {.num = k->scale, .i0 = k->window};
    NodeId y = graph_add(g, OP_attend, (NodeId[]){q, key, v, segs}, 4, &attr, NULL, 0, NULL);
    NodeId lse = g_part(g, y, 1);
    NodeId in[] = {q, key, v, y, lse, g_cast(g, dout, t), segs, ranges};
    NodeId back = graph_add(g, OP_attend_bwd, in, 8, &attr, NULL, 0, NULL);
    k->out[AT_OUT] = case_output(c, y);
    k->out[AT_LSE] = case_output(c, lse);
    k->out[AT_DQ] = case_output(c, back);
    k->out[AT_DK] = case_output(c, g_part(g, back, 1));
    k->out[AT_DV] = case_output(c, g_part(g, back, 2));
}

enum { FORWARD_ONLY, WITH_SLOPE, BACKWARD, BACKWARD_DW };

static void add_head(Case *c, DType t, int64_t vocab, int64_t width, int kind) {
    Graph *g = c->u.g;
    Check *k = case_check(c, head_bounds);
    k->t = t, k->rows = vocab, k->cols = width, k->scale = case_below(c, 2) ? 1 : 0.5;
    NodeId h = case_input(c, case_rows(t, X_R, width), FILL_GRID, &k->leaf[HD_H]);
    NodeId w =
        case_input(c, type_mat(t, dim_const(vocab), dim_const(width)), FILL_GRID, &k->leaf[HD_W]);
    NodeId y = case_index(c, X_R, X_T, vocab, &k->leaf[HD_TARGET]);
    Attr attr = {.num = k->scale};
    NodeId logp = graph_add(g, OP_linear_logprob, (NodeId[]){h, w, y}, 3, &attr, NULL, 0, NULL);
    for (int i = 0; i < 8; i++) k->out[i] = -1;
    k->out[HD_LOGP] = case_output(c, logp);
    for (int i = HD_LSE; i <= (case_below(c, 2) ? HD_P2 : HD_LSE); i++)
        k->out[i] = case_output(c, g_part(g, logp, i));
    k->leaf[HD_C] = -1;
    if (kind == WITH_SLOPE) k->out[HD_DH] = case_output(c, g_part(g, logp, HD_SLOPE));
    if (kind < BACKWARD) return;
    NodeId coefficient = case_input(c, case_vec(DT_f32, X_R), FILL_GRID, &k->leaf[HD_C]);
    NodeId in[] = {h, w, y, g_part(g, logp, HD_LSE), coefficient};
    NodeId dh = graph_add(g, OP_linear_logprob_bwd, in, 5, &attr, NULL, 0, NULL);
    k->out[HD_DH] = case_output(c, dh);
    if (kind == BACKWARD_DW) k->out[HD_DW] = case_output(c, g_part(g, dh, 1));
}

static void add_rows(Case *c, DType t, int64_t cols) { /* gather, scatter, sort */
    Graph *g = c->u.g;
    NodeId x = case_input(c, case_rows(t, X_T, cols), FILL_GRID, NULL);
    Check *k = case_check(c, put_bounds);
    NodeId index = case_index(c, X_R, X_T, 0, &k->leaf[1]);
    NodeId rows = g_op(g, OP_take, x, index, 0);
    case_output(c, rows);
    NodeId keys = case_input(c, case_rows(DT_i32, X_T, 2), FILL_BYTES, NULL);
    case_output(c, g_op(g, OP_take, keys, index, 0));
    NodeId wide = case_input(c, case_rows(DT_f32, X_R, cols), FILL_REAL, NULL);
    Attr back = {.dim = dim_extent(X_T)};
    k->cols = cols;
    k->out[0] =
        case_output(c, graph_add(g, OP_put, (NodeId[]){wide, index}, 2, &back, NULL, 0, NULL));
    NodeId s = g_op(g, OP_sort, case_input(c, case_vec(DT_f32, X_P), FILL_GRID, NULL), 0, 0);
    case_output(c, s);
    case_output(c, g_part(g, s, 1));
}

static void add_random(Case *c, int64_t cols) { /* dropout's numbers */
    NodeId in[] = {case_input(c, case_rows(DT_i32, X_T, 2), FILL_BYTES, NULL),
                   case_input(c, type_vec(DT_i32, dim_const(2)), FILL_BYTES, NULL)};
    Attr attr = {.i0 = case_below(c, 1000), .i1 = cols};
    case_output(c, graph_add(c->u.g, OP_uniform, in, 2, &attr, NULL, 0, NULL));
}

/* X W^T, X W and X^T Y, with what a product takes in: factor, bias, rounding, accumulation. */
static void add_products(Case *c, DType t, int64_t m, int64_t n) {
    Graph *g = c->u.g;
    NodeId x = case_input(c, case_rows(t, X_T, m), FILL_GRID, NULL);
    NodeId w = case_input(c, type_mat(t, dim_const(n), dim_const(m)), FILL_GRID, NULL);
    NodeId b = case_input(c, type_vec(DT_f32, dim_const(n)), FILL_GRID, NULL);
    NodeId y = case_input(c, case_rows(t, X_T, n), FILL_GRID, NULL);
    NodeId xw = g_matmul(g, x, w, false, true);
    const Type *type = node(g, xw)->type;
    NodeId scaled = g_op(g, OP_mul, xw, g_const(g, 0.5, type), 0);
    NodeId biased = g_op(g, OP_add, scaled, g_bcast(g, b, type, false), 0);
    case_output(c, g_cast(g, biased, t));
    NodeId yw = g_matmul(g, y, w, false, false);
    case_output(c, g_op(g, OP_add, yw, g_op(g, OP_abs, g_cast(g, x, DT_f32), 0, 0), 0));
    case_output(c, g_matmul(g, x, y, true, false));
    case_output(c, g_op(g, OP_add, g_matmul(g, x, w, false, true), g_cast(g, y, DT_f32), 0));
}

static void add_dequant(Case *c, QuantFormat format, bool nested, DType t) {
    enum { BLOCK = 64 };
    int64_t rows = 3 + case_below(c, 200), cols = 2 * (5 + case_below(c, 90)), n = rows * cols;
    Check *k = case_check(c, dequant_bounds);
    NodeId in[5];
    int nin = 0;
    for (int piece = QUANT_CODES; piece <= (nested ? QUANT_MAP : QUANT_ABSMAX); piece++) {
        QuantPart part = {format, (QuantPiece)piece};
        DType dtype = quant_part_dtype(part, nested);
        const Type *type = type_vec(dtype, dim_const(quant_part_count(part, n, BLOCK, nested)));
        in[nin++] = case_input(c, type, dtype == DT_u8 ? FILL_BYTES : FILL_GRID, NULL);
    }
    Attr attr = {.name = intern(quant_format_names[format]), .i0 = BLOCK, .i1 = nested};
    const Type *type = type_mat(t, dim_const(rows), dim_const(cols));
    k->t = t;
    k->out[0] = case_output(c, graph_add(c->u.g, OP_dequant, in, nin, &attr, type, 0, NULL));
}

/* ---- one case -------------------------------------------------------------------------------- */

static const int64_t sizes[] = {64, 128, 64, 128, 40, 96}, groups[] = {1, 4, 7};
static const int64_t vocabs[] = {97, 1024, 128256, 32003};

static Case *case_of(Arena *arena, uint64_t seed) {
    Case *c = case_new(arena, target, seed);
    int i = (int)(seed % 36);
    DType t = i % 2 ? DT_bf16 : DT_f32, other = i % 2 ? DT_f32 : DT_bf16;
    c->u.bound[X_T] = 704;
    c->u.bound[X_R] = 130;
    c->u.bound[X_P] = 600;
    c->u.bound[X_G] = c->u.bound[X_K] = 12;
    int segs_leaf;
    NodeId segs = case_input(c, case_rows(DT_i32, X_G, 6), FILL_SEGS, &segs_leaf);
    NodeId ranges = case_input(c, case_rows(DT_i32, X_K, 4), FILL_RANGES, NULL);
    add_attend(c, t, sizes[i % 6], groups[i / 2 % 3], segs, ranges, segs_leaf);
    add_attend(c, other, sizes[(i + 2) % 6], groups[(i / 2 + 1) % 3], segs, ranges, segs_leaf);
    add_head(c, t, vocabs[i % 4], 8 * (1 + case_below(c, 4)), (i / 4) % 2);
    add_head(c, other, vocabs[i % 2], 8 * (1 + case_below(c, 9)), BACKWARD + i % 2);
    add_rows(c, t, 1 + case_below(c, 300));
    add_random(c, 1 + case_below(c, 300));
    add_products(c, other, 8 * (1 + case_below(c, 20)), 8 * (1 + case_below(c, 20)));
    add_products(c, t, 1 + case_below(c, 70), 1 + case_below(c, 70));
    add_dequant(c, (QuantFormat)(i % NQUANT), i / 3 % 2, t);
    add_dequant(c, (QuantFormat)((i + 1) % NQUANT), (i / 3 + 1) % 2, other);
    return c;
}

static void set_extents(Case *c, int64_t t, int64_t r, int64_t g) {
    c->extent[X_T] = t;
    c->extent[X_R] = r;
    c->extent[X_P] = 1 + case_below(c, 600);
    c->extent[X_G] = c->extent[X_K] = g < t ? g : t;
    c->extent[X_H] = c->extent[X_N] = 1;
}

static void custom_and_products(void **unused) {
    (void)unused;
    static const int64_t lengths[] = {1, 63, 64, 65, 700};
    int bad = 0;
    for (int i = 0; i < cases; i++) {
        uint64_t seed = first_seed + (uint64_t)i;
        Arena *arena = arena_new();
        Case *c = case_of(arena, seed);
        Plan *plan = case_plan(c, seed % 3 == 0);
        Running r = run_open_on(plan, device);
        int before = bad;
        for (int k = 0; k < (int)COUNT(lengths); k++) {
            if (!longer && k != (int)((seed + 3) % COUNT(lengths))) continue;
            set_extents(c, lengths[k], 1 + case_below(c, 20), 1 + case_below(c, 12));
            bad += case_run(c, &r);
        }
        for (int k = 0; k < (longer ? 3 : 1); k++) {
            int64_t most = longer ? 700 : 150;
            set_extents(c, 1 + case_below(c, most), 1 + case_below(c, 130), 1 + case_below(c, 12));
            bad += case_run(c, &r);
        }
        printf("seed %llu: %d kernels, %s\n", (unsigned long long)seed, plan->nkernels,
               bad > before ? "FAILED" : "ok");
        run_close(&r);
        plan_free(plan);
        case_free(c);
        arena_free(arena);
    }
    assert_int_equal(bad, 0);
}

/* ---- generated kernels: the CPU's bits ------------------------------------------------------- */

static RandomGraph generated(uint64_t seed) {
    for (;; seed += 1000003) { /* products add in their library's order */
        RandomGraph r = rg_new(seed, 120);
        if (!rg_count(r.g, OP_matmul)) return r;
        rg_free(&r);
    }
}

static Plan *generated_plan(RandomGraph *r, const Target *on) {
    r->extent[X_T] = 333;
    r->extent[X_R] = 130;
    Unit u = rg_unit(r);
    u.target = on;
    Pass pass = {0};
    assert_true(pass_layout(&pass, &u) >= 0);
    assert_true(pass_gemm(&pass, &u) >= 0 && pass_fuse(&pass, &u) >= 0);
    return plan_groups(&u, false);
}

static double *generated_run(uint64_t seed, const char *on, const Target *its) {
    RandomGraph rg = generated(seed);
    Plan *plan = generated_plan(&rg, its);
    Running r = run_open_on(plan, on);
    for (NodeId id = 1; id < rg.g->n; id++) {
        const Node *n = node(rg.g, id);
        if (n->op != OP_input) continue;
        RandomGraph draw = {.state = 77 + id};
        Leaf l = {.name = n->attr.name, .type = n->type};
        l.count = dim_eval(type_count(n->type), rg.extent);
        l.value = malloc(sizeof(double) * (size_t)(l.count + 1));
        for (int64_t i = 0; i < l.count; i++)
            l.value[i] = n->type->dtype == DT_i32 ? rg_below(&draw, 333) : rg_real(&draw);
        case_write(&r, &l);
        free(l.value);
    }
    for (int twice = 0; twice < 2; twice++) run_program(&r, "eval", rg.extent);
    note_executed(plan);
    double *flat = case_read(&r, "flat", RG_STATE);
    run_close(&r);
    plan_free(plan);
    rg_free(&rg);
    return flat;
}

static void generated_kernels(void **unused) {
    (void)unused;
    int bad = 0;
    for (int i = 0; i < cases; i++) {
        uint64_t seed = first_seed + (uint64_t)i;
        double *want = generated_run(seed, "cpu", target_by_name("cpu"));
        double *got = generated_run(seed, device, target);
        for (int64_t k = 0; k < RG_STATE; k++) {
            if (got[k] == want[k] || (isnan(got[k]) && isnan(want[k]))) continue;
            printf("seed %llu: flat[%lld] is %.9g, on the CPU %.9g\n", (unsigned long long)seed,
                   (long long)k, got[k], want[k]);
            bad++;
            break;
        }
        free(want);
        free(got);
    }
    assert_int_equal(bad, 0);
}

/* ---- the command line ------------------------------------------------------------------------ */

static void find_target(void) {
    Err err = {0};
    Device *dev = device_open(&(DeviceOptions){.name = device, .cache_dir = run_cache()}, &err);
    must(dev != NULL, &err);
    printf("%s\n", dev->description);
    target = target_by_arch(dev->arch);
    assert_non_null(target);
    dev->ops->close(dev);
}

static int open_device(void **unused) {
    (void)unused;
    find_target();
    return 0;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (getenv("DPOC_DEVICE")) device = getenv("DPOC_DEVICE");
    for (int i = 1; i < argc; i++) {
        if (!strncmp(argv[i], "--device=", 9)) device = argv[i] + 9;
        if (!strncmp(argv[i], "--seed=", 7)) first_seed = strtoull(argv[i] + 7, NULL, 10);
        if (!strncmp(argv[i], "--cases=", 8)) cases = atoi(argv[i] + 8);
        if (!strcmp(argv[i], "--long")) longer = true;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(custom_and_products),
        cmocka_unit_test(generated_kernels),
    };
    return cmocka_run_group_tests(tests, open_device, NULL);
}
