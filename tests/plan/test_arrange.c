/* Offsets of blocks: no two live blocks overlap, checked step by step; heights near the bound. */
#include "compiler/dpoc.h"

#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

static uint64_t state;
static uint64_t draw(uint64_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
}

/* Bytes a block holds in a step, from its definition. */
static int64_t held(const Block *b, int step) {
    if (step < b->first || step > b->last) return 0;
    int64_t bytes = b->bytes;
    for (int i = 0; i < b->nshrink; i++)
        if (step > b->shrink[i].step) bytes = b->shrink[i].bytes;
    return bytes;
}

/* From first principles: in every step, every pair; and the reported height covers all. */
static void check(const Block *block, int n, int steps, int64_t align, int64_t height) {
    for (int i = 0; i < n; i++) {
        assert_true(block[i].offset >= 0 && block[i].offset % align == 0);
        assert_true(block[i].offset + block[i].bytes <= height);
    }
    int64_t most = 0;
    for (int s = 0; s < steps; s++) {
        int64_t live = 0;
        for (int i = 0; i < n; i++) {
            int64_t a = held(&block[i], s);
            live += (a + align - 1) / align * align;
            for (int k = 0; a && k < i; k++) {
                int64_t b = held(&block[k], s);
                if (!b) continue;
                assert_true(block[i].offset + a <= block[k].offset ||
                            block[k].offset + b <= block[i].offset);
            }
        }
        if (live > most) most = live;
    }
    assert_int_equal(arrange_bound(block, n, align), most);
    assert_true(height >= most);
}

static void random_blocks(void **unused) {
    enum { STEPS = 60, MOST = 80 };
    double waste = 0;
    for (int round = 0; round < 300; round++) {
        Block block[MOST];
        Shrink shrink[MOST][2];
        state = (uint64_t)round + 1;
        int n = 1 + (int)draw(MOST);
        int64_t align = draw(2) ? 64 : 256;
        for (int i = 0; i < n; i++) {
            int first = (int)draw(STEPS), last = first + (int)draw((uint64_t)(STEPS - first));
            block[i] = (Block){
                .bytes = (int64_t)draw(draw(4) ? 5000 : 100000), .first = first, .last = last};
            if (draw(3) || last - first < 3) continue;
            shrink[i][0] =
                (Shrink){first + (int)draw((uint64_t)(last - first)), block[i].bytes / 2};
            shrink[i][1] = (Shrink){last, block[i].bytes / 4};
            block[i].shrink = shrink[i];
            block[i].nshrink = 2;
        }
        int64_t quick = arrange(block, n, align, INT64_MAX); /* any height is low enough */
        check(block, n, STEPS, align, quick);
        int64_t height = arrange(block, n, align, 0);
        check(block, n, STEPS, align, height);
        assert_true(height <= quick);
        int64_t bound = arrange_bound(block, n, align);
        if (bound) waste += (double)(height - bound) / (double)bound / 300;
    }
    assert_true(waste < 0.02);
}

/* A training step: values of 16 layers wait for their turn in the backward, temporaries come and
 * go. */
static void training_blocks(void **unused) {
    enum { LAYERS = 16, PER = 12, N = 2 * LAYERS * PER };
    Block block[N];
    state = 7;
    int n = 0, steps = 2 * LAYERS * PER;
    for (int l = 0; l < LAYERS; l++)
        for (int k = 0; k < PER; k++) {
            int at = l * PER + k;
            int64_t bytes = (int64_t[]){1 << 20, 4 << 20, 3 << 20, 700000}[draw(4)];
            bool kept = k % 3 == 0;
            block[n++] =
                (Block){.bytes = bytes, .first = at, .last = kept ? steps - 1 - at : at + 2};
            block[n++] = (Block){.bytes = bytes, .first = steps - 1 - at, .last = steps - 1 - at};
        }
    int64_t height = arrange(block, n, 64, 0), bound = arrange_bound(block, n, 64);
    check(block, n, steps, 64, height);
    assert_true(height <= bound + bound / 50 || height <= bound + (1 << 20));
}

static void shrinking_tail_is_reused(void **unused) {
    Shrink half = {1, 512};
    Block block[] = {{.bytes = 1024, .first = 0, .last = 3, .shrink = &half, .nshrink = 1},
                     {.bytes = 512, .first = 2, .last = 3}};
    assert_int_equal(arrange(block, 2, 64, 0), 1024);
    check(block, 2, 4, 64, 1024);
}

static void nothing(void **unused) {
    assert_int_equal(arrange(NULL, 0, 64, 0), 0);
    assert_int_equal(arrange_bound(NULL, 0, 64), 0);
    Block zero = {.bytes = 0, .first = 0, .last = 5};
    assert_int_equal(arrange(&zero, 1, 64, 0), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_blocks),
        cmocka_unit_test(training_blocks),
        cmocka_unit_test(shrinking_tail_is_reused),
        cmocka_unit_test(nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
