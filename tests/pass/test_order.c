/* Order: values before their readers, readers of a state before what overwrites it, peaks only
 * fall. */
#include "tests/plan/mlp.h"

#include <setjmp.h>

#include <cmocka.h>

static void order(Unit *u, bool off) {
    Pass pass = {.off = off};
    assert_true(pass_order(&pass, u) >= 0);
}

static int position(const Unit *u, NodeId stored) {
    for (int i = 0; i < u->ngroups; i++)
        for (int k = 0; k < u->groups[i].nouts; k++)
            if (u->groups[i].outs[k] == stored) return i;
    return -1;
}

/* Every group once, phases ascending, producers before readers. */
static void check_values(const Unit *u, int groups) {
    assert_int_equal(u->ngroups, groups);
    for (int i = 0; i < u->ngroups; i++) {
        const Group *group = &u->groups[i];
        assert_true(i == 0 || u->groups[i - 1].phase <= group->phase);
        for (int k = 0; k < group->nouts; k++) assert_int_equal(position(u, group->outs[k]), i);
        for (int k = 0; k < group->nins; k++) {
            NodeId base = place_of(u->g, group->ins[k]).base;
            if (op_info[node(u->g, base)->op].kind != KIND_LEAF) assert_true(position(u, base) < i);
        }
    }
}

static void training_step(void **unused) {
    Arena *arena = arena_new();
    for (int off = 0; off < 2; off++) {
        Unit *u = mlp_unit(arena, DT_f32);
        mlp_grad(u);
        mlp_groups(u);
        int groups = u->ngroups;
        order(u, off);
        check_values(u, groups);
    }
    arena_free(arena);
}

/* Live bytes of values within the micro phase, counted from the definition. */
static int64_t peak(const Unit *u) {
    int64_t most = 0;
    for (int now = 0; now < u->ngroups; now++) {
        int64_t live = 0;
        for (int i = 0; i <= now; i++)
            for (int k = 0; k < u->groups[i].nouts; k++) {
                NodeId out = u->groups[i].outs[k];
                if (op_info[node(u->g, out)->op].kind == KIND_EFFECT || u->groups[i].inplace)
                    continue;
                bool wanted = i == now;
                for (int r = now; r < u->ngroups; r++)
                    for (int m = 0; m < u->groups[r].nins; m++)
                        wanted |= place_of(u->g, u->groups[r].ins[m]).base == out;
                const Type *t = node(u->g, out)->type;
                if (wanted) live += dim_eval(type_count(t), u->bound) * dtype_bytes(t->dtype);
            }
        if (live > most) most = live;
    }
    return most;
}

/* ---- groups made by hand --------------------------------------------------------------------- */

static void group_add(Unit *u, int *cap, NodeId out, const NodeId *in, int nin) {
    Group group = {.kind = GROUP_KERN, .phase = node(u->g, out)->phase, .nnodes = 1, .nouts = 1};
    group.nodes = NEW(u->arena, NodeId);
    group.outs = NEW(u->arena, NodeId);
    group.nodes[0] = group.outs[0] = out;
    group.ins = NEW_ARRAY(u->arena, NodeId, nin + 1);
    for (int i = 0; i < nin; i++) group.ins[group.nins++] = in[i];
    PUSH(u->arena, u->groups, u->ngroups, *cap, group);
}

/* Two large values of a third, each read by a small sum; written down as value, value, sum, sum. */
static void peak_falls(void **unused) {
    Arena *arena = arena_new();
    int64_t bytes[2];
    for (int off = 0; off < 2; off++) {
        Unit u = {.target = target_by_name("cpu"), .arena = arena, .diags = diags_new(arena)};
        u.g = graph_new(arena, u.diags);
        const Type *t = type_vec(DT_f32, dim_const(1024));
        NodeId x = g_state(u.g, "x", PHASE_MICRO, ROLE_CACHE, t);
        NodeId v = g_op(u.g, OP_neg, x, 0, 0);
        NodeId a = g_op(u.g, OP_exp, v, 0, 0), b = g_op(u.g, OP_sin, v, 0, 0);
        NodeId sum_a = g_op(u.g, OP_sum_cols, a, 0, 0), sum_b = g_op(u.g, OP_sum_cols, b, 0, 0);
        NodeId both = g_op(u.g, OP_add, sum_a, sum_b, 0);
        int cap = 0;
        group_add(&u, &cap, v, &x, 1);
        group_add(&u, &cap, a, &v, 1);
        group_add(&u, &cap, b, &v, 1);
        group_add(&u, &cap, sum_a, &a, 1);
        group_add(&u, &cap, sum_b, &b, 1);
        group_add(&u, &cap, both, (NodeId[]){sum_a, sum_b}, 2);
        order(&u, off);
        check_values(&u, 6);
        bytes[off] = peak(&u);
    }
    assert_int_equal(bytes[1], 3 * 4096);
    assert_int_equal(bytes[0], 2 * 4096 + 4);
    arena_free(arena);
}

/* What reads only leaves is computed just before its first reader, as dequantized weights must
 * be. */
static void leaves_wait(void **unused) {
    Arena *arena = arena_new();
    Unit u = {.target = target_by_name("cpu"), .arena = arena, .diags = diags_new(arena)};
    u.g = graph_new(arena, u.diags);
    const Type *t = type_vec(DT_f32, dim_const(64));
    NodeId x = g_state(u.g, "x", PHASE_MICRO, ROLE_CACHE, t);
    NodeId w = g_op(u.g, OP_exp, x, 0, 0), first = g_op(u.g, OP_sin, x, 0, 0);
    NodeId second = g_op(u.g, OP_neg, first, 0, 0), sum = g_op(u.g, OP_add, second, w, 0);
    int cap = 0;
    group_add(&u, &cap, w, &x, 1);
    group_add(&u, &cap, first, &x, 1);
    group_add(&u, &cap, second, &first, 1);
    group_add(&u, &cap, sum, (NodeId[]){second, w}, 2);
    order(&u, false);
    check_values(&u, 4);
    assert_int_equal(position(&u, w), position(&u, sum) - 1);
    arena_free(arena);
}

/* x is overwritten, but y = exp(old x) is asked for afterwards. */
static void readers_come_before_effects(void **unused) {
    Arena *arena = arena_new();
    Unit u = {.target = target_by_name("cpu"), .arena = arena, .diags = diags_new(arena)};
    u.g = graph_new(arena, u.diags);
    const Type *t = type_vec(DT_f32, dim_const(8));
    NodeId x = g_state(u.g, "x", PHASE_MICRO, ROLE_CACHE, t);
    NodeId y = g_state(u.g, "y", PHASE_MICRO, ROLE_CACHE, t);
    NodeId zero = g_effect(u.g, OP_assign, x, g_const(u.g, 0, t));
    NodeId e = g_op(u.g, OP_exp, x, 0, 0);
    NodeId store = g_effect(u.g, OP_assign, y, e);
    int cap = 0;
    group_add(&u, &cap, zero, NULL, 0);
    group_add(&u, &cap, e, &x, 1);
    group_add(&u, &cap, store, &e, 1);
    order(&u, false);
    check_values(&u, 3);
    assert_true(position(&u, e) < position(&u, zero));
    arena_free(arena);
}

/* Two effects on one place keep the graph's order. */
static void effects_keep_their_order(void **unused) {
    Arena *arena = arena_new();
    Unit u = {.target = target_by_name("cpu"), .arena = arena, .diags = diags_new(arena)};
    u.g = graph_new(arena, u.diags);
    const Type *t = type_vec(DT_f32, dim_const(8));
    NodeId x = g_state(u.g, "x", PHASE_MICRO, ROLE_CACHE, t);
    NodeId a = g_effect(u.g, OP_accumulate, x, g_const(u.g, 1, t));
    NodeId b = g_effect(u.g, OP_accumulate, x, g_const(u.g, 1e9, t));
    int cap = 0;
    group_add(&u, &cap, b, NULL, 0);
    group_add(&u, &cap, a, NULL, 0);
    order(&u, false);
    assert_true(position(&u, a) < position(&u, b));
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_step),
        cmocka_unit_test(peak_falls),
        cmocka_unit_test(leaves_wait),
        cmocka_unit_test(readers_come_before_effects),
        cmocka_unit_test(effects_keep_their_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
