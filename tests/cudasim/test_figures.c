/* What attention becomes for CUDA: which kernel takes which head, and what the real NVRTC (no GPU
 * is needed) makes of the ones on tensor cores: no register is spilled, nothing lies in local
 * memory, two blocks fit an SM where they should, and the machine code multiplies on tensor cores,
 * loads matrices and copies asynchronously.  Skipped where NVRTC is not installed.
 */
#include "tests/plan/run.h"

#include "runtime/nvrtc.h"

#include <math.h>

typedef struct Wanted {
    int head, group;
    DType type;
    bool forward, backward; /* on tensor cores */
    int compile;            /* for so many of archs */
} Wanted;

static const Wanted wanted[] = {
    {64, 4, DT_bf16, true, true, 2},   {128, 4, DT_bf16, true, true, 4},
    {96, 1, DT_bf16, true, true, 1},   {256, 1, DT_bf16, true, false, 1},
    {80, 7, DT_bf16, true, true, 0},   {32, 1, DT_bf16, true, true, 0},
    {40, 1, DT_bf16, false, false, 0}, {272, 1, DT_bf16, false, false, 0},
    {64, 1, DT_f32, false, false, 0},
};
static const char *const archs[] = {"sm_80", "sm_90", "sm_86", "sm_120"};

static Nvrtc *nvrtc;

/* ---- plans ----------------------------------------------------------------------------------- */

static void output(Graph *g, const char *name, NodeId value) {
    const Type *type = node(g, value)->type;
    g_effect(g, OP_assign, g_state(g, name, PHASE_MICRO, ROLE_OUTPUT, type), value);
}

static NodeId heads_of(Graph *g, const char *name, const Wanted *w, int heads) {
    const Dim dim[] = {dim_extent(X_T), dim_const(heads), dim_const(w->head)};
    return g_input(g, name, PHASE_MICRO, type_of(w->type, 3, dim));
}

static Plan *plan_of(const Wanted *w, const Target *target, bool safe, Arena *arena) {
    Unit u = {.kind = UNIT_EVAL, .target = target, .arena = arena, .safe = safe};
    u.diags = diags_new(arena);
    Graph *g = u.g = graph_new(arena, u.diags);
    g->intern = true;
    for (int e = 0; e < NEXTENT; e++) u.bound[e] = 256;
    const Type *table = type_mat(DT_i32, dim_extent(X_G), dim_const(6));
    const Type *inverse = type_mat(DT_i32, dim_extent(X_K), dim_const(4));
    const NodeId segs = g_input(g, "segs", PHASE_MICRO, table);
    const NodeId ranges = g_input(g, "ranges", PHASE_MICRO, inverse);
    const NodeId q = heads_of(g, "q", w, 2 * w->group), k = heads_of(g, "k", w, 2);
    const NodeId v = heads_of(g, "v", w, 2), dout = heads_of(g, "dout", w, 2 * w->group);
    const Attr attr = {.num = 1 / sqrt(w->head)};
    const NodeId y = graph_add(g, OP_attend, (NodeId[]){q, k, v, segs}, 4, &attr, NULL, 0, NULL);
    const NodeId in[] = {q, k, v, y, g_part(g, y, 1), dout, segs, ranges};
    const NodeId back = graph_add(g, OP_attend_bwd, in, 8, &attr, NULL, 0, NULL);
    output(g, "out", y);
    output(g, "dq", back);
    output(g, "dk", g_part(g, back, 1));
    output(g, "dv", g_part(g, back, 2));
    assert_int_equal(diags_errors(u.diags), 0);
    Pass pass = {0};
    assert_true(pass_layout(&pass, &u) >= 0);
    assert_true(pass_gemm(&pass, &u) >= 0 && pass_fuse(&pass, &u) >= 0);
    Plan *plan = plan_groups(&u, false);
    bool says = false;
    for (int i = 0; i < u.nrefused; i++) says |= strstr(u.refused[i], "no tensor cores: ") != NULL;
    assert_int_equal(says, safe || !w->forward || !w->backward);
    return plan;
}

static const Kernel *kernel_of(const Plan *plan, const char *kind) {
    for (int i = 0; i < plan->nkernels; i++)
        if (!strcmp(plan->kernels[i].kind, kind)) return &plan->kernels[i];
    return NULL;
}

static void chosen(void **unused) {
    (void)unused;
    for (size_t i = 0; i < COUNT(wanted); i++)
        for (int safe = 0; safe < 2; safe++) {
            const Wanted *w = &wanted[i];
            Arena *arena = arena_new();
            Plan *plan = plan_of(w, target_by_name("sm_80"), safe, arena);
            const bool forward = w->forward && !safe, backward = w->backward && !safe;
            assert_true((kernel_of(plan, "attend_mma") != NULL) == forward);
            assert_true((kernel_of(plan, "attend") != NULL) == !forward);
            assert_true((kernel_of(plan, "attend_dq_mma") != NULL) == backward);
            assert_true((kernel_of(plan, "attend_dkv_mma") != NULL) == backward);
            assert_true((kernel_of(plan, "attend_dkv") != NULL) == !backward);
            plan_free(plan);
            arena_free(arena);
        }
}

/* ---- machine code ---------------------------------------------------------------------------- */

/* Opcodes (the lowest 12 bits of an instruction of 16 bytes), sm_80 to sm_120. */
enum { HMMA = 0x23c, LDSM = 0x83b, LDGSTS = 0xfae, LDL = 0x983, STL = 0x387 };

/* Instructions of this opcode in section .text.SYMBOL of a cubin (ELF, 64 bits). */
static int count(const Cubin *cubin, const char *symbol, int opcode) {
    uint64_t table, at, size;
    uint16_t n, strings;
    int found = 0;
    memcpy(&table, cubin->data + 0x28, 8);
    memcpy(&n, cubin->data + 0x3c, 2);
    memcpy(&strings, cubin->data + 0x3e, 2);
    const char *const names = cubin->data + table + strings * 64;
    memcpy(&at, names + 0x18, 8);
    const char *const text = cubin->data + at;
    for (int i = 0; i < n; i++) {
        const char *const section = cubin->data + table + i * 64;
        uint32_t name;
        memcpy(&name, section, 4);
        if (strncmp(text + name, ".text.", 6) || strcmp(text + name + 6, symbol)) continue;
        memcpy(&at, section + 0x18, 8);
        memcpy(&size, section + 0x20, 8);
        for (uint64_t b = 0; b < size; b += 16) {
            uint16_t low;
            memcpy(&low, cubin->data + at + b, 2);
            found += (low & 0xfff) == opcode;
        }
    }
    return found;
}

/* The number that a kernel's text defines under a name. */
static int defined(const Kernel *k, const char *name) {
    char line[64];
    snprintf(line, sizeof line, "#define %s ", name);
    const char *at = strstr(k->text, line);
    return at ? atoi(at + strlen(line)) : 0;
}

/* Products of 16 x 8 x 16 that one tile takes a warp. */
static int products(const Kernel *k) {
    const int dim = defined(k, "HEAD_DIM"), each = dim / 16;
    if (!strcmp(k->kind, "attend_mma"))
        return 2 * defined(k, "TILES") * defined(k, "KEYS") / 8 * each;
    if (!strcmp(k->kind, "attend_dq_mma")) return 3 * defined(k, "KEYS") / 8 * each;
    return 4 * defined(k, "QUERIES") / 8 * each;
}

static int check_kernel(const Kernel *k, const char *prelude, const Target *target) {
    Err err = {0};
    Cubin cubin;
    KernelFigures f;
    Text text = {0};
    text_add(&text, "%s\n%s", prelude, k->text);
    must(nvrtc_compile(nvrtc, k->kind, text.data, target->name, &cubin, &err), &err);
    text_free(&text);
    assert_true(cubin_figures(&cubin, k->symbol, &f));
    const int mma = count(&cubin, k->symbol, HMMA), matrices = count(&cubin, k->symbol, LDSM),
              copies = count(&cubin, k->symbol, LDGSTS),
              local = count(&cubin, k->symbol, LDL) + count(&cubin, k->symbol, STL);
    const int head = defined(k, "HEAD_DIM");
    printf("%-14s of %3d for %-6s: %3d registers, %3d KiB, %4d HMMA %3d LDSM %2d LDGSTS\n", k->kind,
           head, target->name, f.registers, k->shared_bytes / 1024, mma, matrices, copies);
    const bool two = 2 * (k->shared_bytes + 1024) <= target->shared_max + 1024 &&
                     2 * f.registers * k->threads <= 65536;
    const bool bad = f.spill_bytes || f.stack_bytes || local || strstr(cubin.log, "warning") ||
                     mma != products(k) || matrices < mma / 8 || copies < 4 ||
                     k->shared_bytes > target->shared_max || !(two || head > 128);
    if (bad) printf("  which is wrong: %s\n", cubin.log);
    cubin_free(&cubin);
    return bad;
}

static void compiled(void **unused) {
    (void)unused;
    static const char *const kinds[] = {"attend_mma", "attend_dq_mma", "attend_dkv_mma"};
    int bad = 0;
    for (size_t i = 0; i < COUNT(wanted); i++)
        for (int a = 0; a < wanted[i].compile; a++) {
            Arena *arena = arena_new();
            const Target *target = target_by_name(archs[a]);
            Plan *plan = plan_of(&wanted[i], target, false, arena);
            for (size_t k = 0; k < COUNT(kinds); k++) {
                const Kernel *kernel = kernel_of(plan, kinds[k]);
                if (kernel) bad += check_kernel(kernel, plan->prelude, target);
            }
            plan_free(plan);
            arena_free(arena);
        }
    assert_int_equal(bad, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(chosen), cmocka_unit_test(compiled)};
    Err err = {0};
    nvrtc = nvrtc_open(&err);
    if (!nvrtc) {
        puts(err.text);
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
