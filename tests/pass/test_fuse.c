/* fuse: kernels compute what their nodes mean, in every grouping; and known patterns become the
 * number of kernels they should.  Random graphs are run group by group (group_run.h) and compared
 * with eval.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "group_run.h"
#include "kernel_graph.h"

static int count_kind(const Unit *u, GroupKind kind) {
    int n = 0;
    for (int i = 0; i < u->ngroups; i++) n += u->groups[i].kind == kind;
    return n;
}

/* Every node that computes is in one group, or is inlined where it is read. */
static void check_partition(const Unit *u) {
    const Graph *g = u->g;
    int *groups = calloc((size_t)g->n, sizeof *groups);
    bool *live = calloc((size_t)g->n, sizeof *live);
    graph_live(g, live);
    for (int i = 0; i < u->ngroups; i++)
        for (int k = 0; k < u->groups[i].nnodes; k++) {
            groups[u->groups[i].nodes[k]]++;
            assert_int_equal(k == 0 || u->groups[i].nodes[k - 1] < u->groups[i].nodes[k], 1);
        }
    for (NodeId id = 1; id < g->n; id++) {
        const Node *n = node(g, id);
        OpKind kind = op_info[n->op].kind;
        if (!live[id] || kind == KIND_LEAF || (kind == KIND_VIEW && n->op != OP_part)) continue;
        bool may_inline = n->op == OP_bcast || n->type->rank == 0 ||
                          (n->op == OP_cast && n->type->dtype == DT_f32);
        assert_true(groups[id] == 1 || (groups[id] == 0 && may_inline));
    }
    free(groups);
    free(live);
}

static void run_passes(Unit *u, bool gemm, bool fuse) {
    Pass l = {0}, g = {.off = !gemm}, f = {.off = !fuse};
    assert_true(pass_layout(&l, u) >= 0);
    assert_true(pass_gemm(&g, u) >= 0);
    assert_true(pass_fuse(&f, u) >= 0);
    check_partition(u);
}

static void explain(const Unit *u, NodeId id) {
    Text text = {0};
    graph_print(u->g, &text);
    unit_print_groups(u, &text);
    fprintf(stderr, "%s\n%%%d is wrong\n", text.data, id);
    text_free(&text);
    abort();
}

/* All groups one after the other, in double: the same states and stored values as eval.c. */
static void check_run(const RandomGraph *r, const Unit *u) {
    Eval *truth = eval_new(u->g, EVAL_DOUBLE, r->extent);
    rg_fill(r, truth, u->g);
    GroupRun run = gr_new(u, truth, r->extent);
    eval_run(truth, PHASE_UPDATE, false);
    gr_leaves(&run);
    gr_all(&run);
    int64_t n;
    for (NodeId id = 1; id < u->g->n; id++) {
        if (!run.value[id] || node(u->g, id)->op == OP_state) continue;
        const double *want = eval_get(truth, id, &n);
        if (gr_distance(run.value[id], want, n) > 1e-9) explain(u, id);
    }
    const double *flat = eval_state(truth, "flat", &n);
    NodeId leaf = graph_find(u->g, OP_state, "flat");
    if (gr_distance(run.value[leaf], flat, n) > 1e-9) explain(u, leaf);
    gr_free(&run);
    eval_free(truth);
}

static bool reduces(const Group *group, const Graph *g) {
    for (int i = 0; i < group->nnodes; i++)
        if (op_info[node(g, group->nodes[i])->op].kind == KIND_REDUCE) return true;
    return false;
}

/* Each kernel by itself on rounded inputs: every bit of what it stores. */
static int check_bits(const RandomGraph *r, const Unit *u) {
    Eval *truth = eval_new(u->g, EVAL_ROUNDING, r->extent);
    rg_fill(r, truth, u->g);
    GroupRun run = gr_new(u, truth, r->extent);
    eval_run(truth, PHASE_UPDATE, false);
    run.rounds = true;
    int checked = 0;
    for (int i = 0; i < u->ngroups; i++) {
        const Group *group = &u->groups[i];
        if (group->kind != GROUP_KERN || reduces(group, u->g)) continue;
        for (int k = 0; k < group->nins; k++) gr_copy(&run, group->ins[k]);
        gr_group(&run, group);
        for (int k = 0; k < group->nouts; k++) {
            int64_t n;
            NodeId id = group->outs[k];
            if (op_info[node(u->g, id)->op].kind == KIND_EFFECT) continue;
            const double *want = eval_get(truth, id, &n);
            assert_memory_equal(run.value[id], want, sizeof *want * (size_t)n);
            checked++;
        }
    }
    gr_free(&run);
    eval_free(truth);
    return checked;
}

static void random_graphs(void **state) {
    (void)state;
    int fewer = 0, checked = 0;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        RandomGraph r = rg_new(seed, 20 + (int)(seed % 60));
        int kernels[2];
        for (int on = 0; on < 2; on++) {
            Unit u = rg_unit(&r);
            run_passes(&u, seed % 2, on);
            kernels[on] = count_kind(&u, GROUP_KERN);
            check_run(&r, &u);
            checked += check_bits(&r, &u);
        }
        assert_true(kernels[1] <= kernels[0]);
        fewer += kernels[1] < kernels[0];
        rg_free(&r);
    }
    assert_true(fewer > 140);
    assert_true(checked > 1000);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_graphs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
