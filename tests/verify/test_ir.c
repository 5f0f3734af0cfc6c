/* test_ir.c: the textual IR reads back, its errors name the line; the verifier finds what passes
 * must not do.
 */
#include "tests/random_graph.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static char *print(Arena *arena, const Graph *g) {
    Text out = {0};
    Graph bare = *g;
    bare.diags = NULL; /* places are for people and name the file that was read */
    graph_print(&bare, &out);
    char *copy = arena_str(arena, out.data ? out.data : "");
    text_free(&out);
    return copy;
}

static Graph *read_text(Arena *arena, Diags *diags, const char *text) {
    return graph_read(arena, diags, source_add(diags, "test.ir", text, strlen(text)));
}

static void round_trip(Arena *arena, Diags *diags, const Graph *g) {
    char *text = print(arena, g);
    Graph *again = read_text(arena, diags, text);
    diags_print(diags, 0, stderr, false);
    assert_non_null(again);
    assert_string_equal(print(arena, again), text);
}

static void random_graphs(void **state) {
    for (uint64_t seed = 0; seed < 100; seed++) {
        RandomGraph *r = random_graph(seed, 100);
        assert_null(graph_verify(r->g, r->arena));
        round_trip(r->arena, r->diags, r->g);
        arena_free(r->arena);
    }
}

/* One line for every kind of attribute and the awkward values. */
static void every_attribute(void **state) {
    static const char text[] =
        "%1 = const num=0.10000000000000001 : f32[] init\n"
        "%2 = const num=-0 : f32[2*T+1,3] micro\n"
        "%3 = const num=inf : f32[T] micro\n"
        "%4 = table table=[1,0.5,-3.40282347e+38] : f32[3] init \"rope\"\n"
        "%5 = weight source=\"base\" name=\"a \\\"b\\\" \\\\ \\x0a\" info=3 : bf16[8,4] init\n"
        "%6 = state name=\"params\" phase=1 role=1 : f32[64] step\n"
        "%7 = slot %6 begin=16 : f32[4,8] step\n"
        "%8 = input name=\"tokens\" phase=2 : i32[T] micro \"policy/x\" \"reference/x\"\n"
        "%9 = take %5 %8 : bf16[T,4] micro inst=7\n"
        "%10 = cast %9 : f32[T,4] micro\n"
        "%11 = rows %10 begin=2 count=T-2 : f32[T-2,4] micro\n"
        "%12 = input name=\"segs\" phase=2 : i32[G,6] micro\n"
        "%13 = reshape %9 : bf16[T,1,4] micro\n"
        "%14 = attend %13 %13 %13 %12 scale=0.5 window=4096 : bf16[T,1,4] micro\n"
        "%15 = part %14 k=1 : f32[T,1] micro\n"
        "%16 = weight source=\"base\" name=\"w#codes\" info=1 : u8[32] init\n"
        "%17 = weight source=\"base\" name=\"w#absmax\" info=1 : f32[1] init\n"
        "%18 = dequant %16 %17 format=\"nf4\" block=64 : f32[8,8] micro inst=2\n"
        "%19 = input name=\"keys\" phase=2 : i32[T,2] micro\n"
        "%20 = input name=\"seed\" phase=1 : i32[2] step\n"
        "%21 = uniform %19 %20 stream=5 cols=8 : f32[T,8] micro\n"
        "%22 = matmul %21 %18 tb=1 : f32[T,8] micro\n"
        "%23 = put %22 %8 rows=N : f32[N,8] micro\n"
        "%24 = state name=\"s\" phase=2 role=5 : f32[N,8] micro\n"
        "%25 = assign %24 %23 : f32[N,8] micro\n"
        "root %25\n";
    Arena *arena = arena_new();
    Diags *diags = diags_new(arena);
    Graph *g = read_text(arena, diags, text);
    diags_print(diags, 0, stderr, false);
    assert_non_null(g);
    assert_string_equal(print(arena, g), text);
    assert_string_equal(g->node[5].attr.name, "a \"b\" \\ \n");
    assert_int_equal(g->node[18].phase,
                     PHASE_MICRO); /* a dequantization may be later than its operands */
    NodeId *map = NEW_ARRAY(arena, NodeId, g->n);
    Graph *copy = graph_clean(arena, g, true, map);
    assert_int_equal(copy->node[map[18]].phase, PHASE_MICRO);
    assert_int_equal(copy->node[map[18]].inst, 2);
    assert_int_equal(map[15], 0);
    arena_free(arena);
}

static const struct {
    const char *line, *message;
} mistakes[] = {
    {"%2 = foo %1 : f32[T] micro", "no op 'foo'"},
    {"%2 = exp %3 : f32[T] micro", "%3 is not defined above"},
    {"%2 = exp %1 : f32[T,] micro", "'f32[T,]' is not a type"},
    {"%2 = exp %1 : f32[T,R] micro", "is not a type"},
    {"%2 = exp %1 : f32[99999999999,99999999999] micro", "is not a type"},
    {"%2 = exp %1 : f64[T] micro", "is not a type"},
    {"%2 = exp %1 : f32[R] micro", "the type is f32[T]"},
    {"%2 = exp %1 : f32[T] later", "no phase 'later'"},
    {"%2 = exp %1 : f32[T] init", "the phase is micro or later"},
    {"%2 = exp %1 : f32[T] update", "is in phase update where micro follows"},
    {"%2 = exp %1 %1 : f32[T] micro", "has 2 operands"},
    {"%2 = exp %1 num=3 : f32[T] micro", "no attribute 'num'"},
    {"%2 = slot %1 begin=x : f32[T] micro", "'x' is not an integer"},
    {"%2 = exp %1 : f32[T] micro \"a", "expected '\"'"},
    {"%2 = exp %1 : f32[T] micro inst=-1", "inst out of range"},
    {"%2 = exp %1 : f32[T] micro more", "expected the end of the line"},
    {"%1 = exp %1 : f32[T] micro", "ids must increase"},
    {"%99999999 = exp %1 : f32[T] micro", "no such node"},
    {"%2 = table table=[1,,2] : f32[3] init", "'' is not a number"},
    {"%2 = table table=[1,2] : f32[3] init", "a table must be f32 [its size]"},
    {"%2 = cast %1 to=9 : f32[T] micro", "can't round to that type"},
    {"%2 = cols %1 begin=0 count=1 : f32[1] micro", "has no columns"},
    {"%2 = state name=\"x\" phase=2 role=5 : f32[T] micro", "are both 'x' but differ"},
    {"%2 = mul %1 %1 : f32[T] micro\n%3 = matmul %2 %2 : f32[T] micro",
     "matmul(f32[T], f32[T]): both operands must be matrices"},
    {"%2 = const : f32[3,4] init\n%3 = matmul %2 %2 : f32[3,4] init", "4 columns against 3 rows"},
    {"%2 = const : f32[5] init\n%3 = add %1 %2 : f32[T] micro", "shapes differ"},
    {"%2 = const : f32[5] init\n%3 = rotate_half %2 : f32[5] init", "must have an even size"},
    {"%2 = bcast %1 : f32[3,T] micro\n%3 = bcast %1 : f32[T,3] micro",
     "does not stretch to f32[T,3]"},
    {"%2 = reshape %1 : f32[T,2] micro", "can't become f32[T,2]"},
    {"%2 = const : f32[9] init\n%3 = slot %2 begin=6 : f32[4] init", "do not hold f32[4]"},
    {"%2 = const : f32[9] init\n%3 = rows %2 begin=6 count=4 : f32[4] init", "rows 6..10 of 9"},
    {"%2 = take %1 %1 : f32[T] micro", "operand 2 must be i32, not f32"},
    {"%2 = const : f32[2,3,4] init\n%3 = const : f32[2,2,4] init\n"
     "%4 = attend %2 %3 %3 %1 : f32[2,3,4] init",
     "3 query heads are not a multiple of 2"},
    {"%2 = part %1 k=1 : f32[T] micro", "input has no part 1"},
    {"%2 = state name=\"c\" phase=2 role=8 : f32[H] micro\n"
     "%3 = input name=\"i\" phase=2 : i32[R] micro\n"
     "%4 = append %2 %1 %3 : f32[H] micro",
     "rows as the cache has them are needed"},
    {"%2 = state name=\"c\" phase=2 role=5 : f32[H] micro\n"
     "%3 = input name=\"i\" phase=2 : i32[T] micro\n"
     "%4 = append %2 %1 %3 : f32[H] micro",
     "operand 1 is no cache"},
    {"%2 = state name=\"c\" phase=2 role=8 : f32[H] micro\n"
     "%3 = input name=\"i\" phase=2 : i32[T] micro\n"
     "%4 = append %2 %1 %3 : f32[H] micro\n%5 = exp %2 : f32[H] micro",
     "%5 reads the cache 'c' beside what appends to it"},
    {"%2 = assign %1 %1 : f32[T] micro\nroot %2", "writes something that is not a state"},
    {"%2 = bcast %1 lead=1 : f32[T,4] micro\n%3 = matmul %2 %2 tb=1 : f32[T,4] micro",
     "two axes would depend on the size of the batch"},
    {"%2 = const : f32[64] init\n%3 = dequant %2 %2 format=\"nf5\" : f32[64] init",
     "unknown format"},
    {"%2 = const : f32[64] init\n%3 = dequant %2 %2 format=\"nf4\" block=64 : f32[64] init",
     "operand 1 must be u8[32], not f32[64]"},
    {"root %1", "root %1 is not an effect"},
    {"root %7", "%7 is not defined"},
    {"leaf %1", "expected a node or 'root', not 'leaf'"},
};

static void errors(void **state) {
    for (size_t i = 0; i < COUNT(mistakes); i++) {
        Arena *arena = arena_new();
        Diags *diags = diags_new(arena);
        char *text = arena_printf(arena, "%%1 = input name=\"x\" phase=2 : f32[T] micro\n%s\n",
                                  mistakes[i].line);
        assert_null(read_text(arena, diags, text));
        char *said = diags_json(diags), *want = arena_str(arena, mistakes[i].message);
        /* JSON escapes quotes */
        char *quote = strchr(want, '"');
        if (quote) *quote = 0;
        if (!strstr(said, want))
            fail_msg("%s\nsaid %s\nwant %s", mistakes[i].line, said, mistakes[i].message);
        free(said);
        arena_free(arena);
    }
}

/* Every prefix of a valid text, and the text with one byte changed, ends in a graph or a
 * diagnostic. */
static void damaged_text(void **state) {
    RandomGraph *r = random_graph(3, 25);
    char *text = print(r->arena, r->g);
    size_t len = strlen(text);
    for (size_t i = 0; i < 2 * len; i++) {
        Arena *arena = arena_new();
        Diags *diags = diags_new(arena);
        char *copy = arena_str(arena, text);
        if (i < len)
            copy[i] = 0;
        else
            copy[i - len] = "%\"[];=0-\x80"[rg_below(r, 9)];
        Graph *g = read_text(arena, diags, copy);
        assert_true(g ? graph_verify(g, arena) == NULL : diags_errors(diags) > 0);
        arena_free(arena);
    }
    arena_free(r->arena);
}

/* ---- sizes and types ------------------------------------------------------------------------- */

static void sizes(void **state) {
    static const char *const same[] = {"0", "7", "-3", "T", "2*T+1", "-T+5", "T+3*R-2"};
    Arena *arena = arena_new();
    Dim d;
    for (size_t i = 0; i < COUNT(same); i++) {
        assert_true(dim_parse(same[i], &d));
        assert_string_equal(dim_print(arena, d), same[i]);
    }
    assert_true(dim_parse("1+T+2", &d) && d.c == 3 && d.x[X_T] == 1);
    static const char *const bad[] = {"",  "T*2", "TT", "T+T", "2T",
                                      "+", "2*",  "T+", "x",   "99999999999999999999"};
    for (size_t i = 0; i < COUNT(bad); i++)
        if (dim_parse(bad[i], &d)) fail_msg("'%s' is taken for a size", bad[i]);
    int64_t extent[NEXTENT] = {[X_T] = 10, [X_R] = 4};
    assert_true(dim_parse("2*T+R-3", &d));
    assert_int_equal(dim_eval(dim_mul(d, dim_const(2)), extent), 42);
    arena_free(arena);
}

static void types(void **state) {
    static const char *const same[] = {"f32[]", "bf16[2*T,64]", "i32[G,6]", "u8[7]",
                                       "f32[1,2,3,4]"};
    Arena *arena = arena_new();
    const Type *t, *again;
    for (size_t i = 0; i < COUNT(same); i++) {
        assert_true(type_parse(same[i], &t) && type_parse(same[i], &again));
        assert_ptr_equal(t, again);
        assert_string_equal(type_print(arena, t), same[i]);
        int64_t extent[NEXTENT] = {3, 4, 5, 6, 7, 8, 9, 10};
        assert_int_equal(dim_eval(type_rows(t), extent) * type_cols(t),
                         dim_eval(type_count(t), extent));
    }
    static const char *const bad[] = {
        "", "f32", "[3]", "f32[3", "f32[3]x", "f32[-1]", "f32[1,2,3,4,5]", "f32[T,N]"};
    for (size_t i = 0; i < COUNT(bad); i++)
        if (type_parse(bad[i], &t)) fail_msg("'%s' is taken for a type", bad[i]);
    arena_free(arena);
}

/* ---- the verifier ---------------------------------------------------------------------------- */

typedef struct Broken { /* a small graph and what breaks it */
    void (*damage)(Graph *g);
    const char *message;
} Broken;

static void type_changed(Graph *g) {
    g->node[3].type = type_vec(DT_f32, dim_extent(X_R));
}

static void forward_reference(Graph *g) {
    g->node[2].in[0] = 3;
}

static void effect_used(Graph *g) {
    g->node[6].in[0] = 5;
}

static void wrong_phase(Graph *g) {
    g->node[2].phase = PHASE_STEP;
}

static void missing_operand(Graph *g) {
    g->node[3].nin = 1;
}

static void root_lost(Graph *g) {
    g->nroot = 1;
}

static void root_twice(Graph *g) {
    g->root[1] = g->root[0];
}

static void second_write(Graph *g) {
    g->node[8].in[0] = 4;
}

static const Broken breaks[] = {
    {type_changed, "%3 mul: has type f32[R] where f32[T] follows"},
    {forward_reference, "%2 exp: uses %3, which does not come before it"},
    {effect_used, "uses the effect %5"},
    {wrong_phase, "%2 exp: is in phase step where micro follows"},
    {missing_operand, "%3 mul: has 1 operands"},
    {root_lost, "the effect %8 is not a root"},
    {root_twice, "%5 is a root twice"},
    {second_write, "%5 and %8 both write 's' in phase micro"},
};

static void verifier(void **state) {
    static const char text[] = "%1 = input name=\"x\" phase=2 : f32[T] micro\n"
                               "%2 = exp %1 : f32[T] micro\n"
                               "%3 = mul %1 %2 : f32[T] micro\n"
                               "%4 = state name=\"s\" phase=2 role=5 : f32[T] micro\n"
                               "%5 = assign %4 %3 : f32[T] micro\n"
                               "%6 = neg %3 : f32[T] micro\n"
                               "%7 = state name=\"t\" phase=2 role=5 : f32[T] micro\n"
                               "%8 = assign %7 %6 : f32[T] micro\n"
                               "root %5\nroot %8\n";
    for (size_t i = 0; i < COUNT(breaks); i++) {
        Arena *arena = arena_new();
        Graph *g = read_text(arena, diags_new(arena), text);
        assert_non_null(g);
        breaks[i].damage(g);
        const char *said = graph_verify(g, arena);
        if (!said || !strstr(said, breaks[i].message))
            fail_msg("said '%s'", said ? said : "nothing");
        arena_free(arena);
    }
}

/* Slots of one state may be written side by side, not over each other; two accumulations may. */
static void slots(void **state) {
    for (int i = 0; i < 3; i++) {
        Arena *arena = arena_new();
        Graph *g = graph_new(arena, diags_new(arena));
        NodeId flat = g_state(g, "grads", PHASE_MICRO, ROLE_GRAD, type_vec(DT_f32, dim_const(64)));
        const Type *type = type_vec(DT_f32, dim_const(16));
        g_effect(g, OP_assign, g_slot(g, flat, 0, type), g_const(g, 1, type));
        g_effect(g, i == 2 ? OP_accumulate : OP_assign, g_slot(g, flat, i ? 15 : 16, type),
                 g_const(g, 2, type));
        assert_true((graph_verify(g, arena) != NULL) == (i > 0));
        arena_free(arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_graphs), cmocka_unit_test(every_attribute),
        cmocka_unit_test(errors),        cmocka_unit_test(damaged_text),
        cmocka_unit_test(verifier),      cmocka_unit_test(slots),
        cmocka_unit_test(sizes),         cmocka_unit_test(types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
