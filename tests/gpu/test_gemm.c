/* Matrix products on a GPU: test_gemm --device=cuda [--long].  Without --device on the simulated
 * device, which shows that the program works.
 *
 * Small ones exactly; those of an 8B model (--long) at sampled elements, with the same bits every
 * time and with the algorithms kept in a file.  Prints what each takes (tests/cudasim/product.h).
 */
#include "../cudasim/product.h"
#include "../cudasim/simulated.h"

#define MIB  (INT64_C(1) << 20)
#define CUT  0x1p-23 /* tensor cores cut, they do not round */
#define RUNS 5       /* timed together */

static bool large; /* the sizes of an 8B model */

typedef struct Shape {
    const char *what;
    int64_t m, n, k;
    DType a, c;
    bool ta, tb;
    float beta;
    int gap;
} Shape;

#define SHAPES 10
/* T tokens, hidden H, inner F, vocabulary V, rank R. */
static void shapes(Shape out[SHAPES]) {
    int64_t t = large ? 1024 : 64, h = large ? 4096 : 64, f = large ? 14336 : 160,
            v = large ? 128256 : 500, r = large ? 16 : 8;
    const Shape all[SHAPES] = {
        {"up", t, f, h, DT_bf16, DT_bf16, false, true, 0, 0},
        {"up, f32", t, f, h, DT_bf16, DT_f32, false, true, 0, 0},
        {"up's dX", t, h, f, DT_bf16, DT_f32, false, false, 1, 0},
        {"logits", t / 4, v, h, DT_bf16, DT_f32, false, true, 0, 0},
        {"lora A", t, r, h, DT_bf16, DT_bf16, false, true, 0, 0},
        {"lora B", t, f, r, DT_bf16, DT_f32, false, true, 1, 0},
        {"lora A's dW", r, h, t, DT_bf16, DT_f32, true, false, 1, 0},
        {"lora B's dW", f, r, t, DT_bf16, DT_f32, true, false, 1, 0},
        {"odd rows", t - 3, h + 3, h + 1, DT_bf16, DT_bf16, false, true, 0, 1},
        {"f32", t, h, h, DT_f32, DT_f32, false, true, 0, 0},
    };
    memcpy(out, all, sizeof all);
}

static Room room_of(void) {
    return large ? (Room){32 * MIB, 1536 * MIB, 4096 * MIB} : (Room){8 * MIB, 8 * MIB, 64 * MIB};
}

static Product make_shape(const Room *room, const Shape *s) {
    Gemm g = plain(s->a, s->c, s->ta, s->tb);
    g.beta = s->beta;
    return make(room, g, s->m, s->n, s->k, s->gap, 0, false);
}

static void small_ones(void **state) {
    (void)state;
    char *dir = temp_dir();
    Room room = {32 * MIB, 8 * MIB, 64 * MIB};
    Device *dev = open_in(&room, dir, NULL);
    check_grid(dev, &room, true, CUT);
    check_grid(dev, &room, false, CUT); /* fp32 by way of TF32 would fail here */
    printf("%s\n", dev->description);
    dev->ops->close(dev);
    remove_dir(dir);
}

static void print_time(Device *dev, const Shape *s, const Product *p) {
    Err err = {0};
    double seconds = 0;
    bool ok = dev->ops->stamp(dev, 0, &err);
    for (int i = 0; ok && i < RUNS; i++) ok = run(dev, p, &err);
    ok = ok && dev->ops->stamp(dev, 1, &err) && dev->ops->sync(dev, &err) &&
         dev->ops->seconds(dev, 0, 1, &seconds, &err);
    if (!ok) fail_msg("%s", err.text);
    seconds /= RUNS;
    double flops = 2.0 * (double)p->m * (double)p->n * (double)p->k;
    printf("%-12s %6lld x %6lld x %6lld %s -> %s: %8.3f ms, %7.2f TFLOP/s\n", s->what,
           (long long)p->m, (long long)p->n, (long long)p->k, dtype_name(s->a), dtype_name(s->c),
           1e3 * seconds, 1e-12 * flops / seconds);
}

/* Sampled elements, and the same bits three times; the bits' sum. */
static Hash128 measure(Device *dev, const Room *room, const Shape *s) {
    Product p = make_shape(room, s);
    char *c = compute(dev, &p);
    Hash128 bits = hash_bytes(c, (size_t)p.bytes[2], (Hash128){0, 0});
    for (int64_t i = 0; i < 300; i++)
        check_one(&p, c, i * 7919 % p.m, i * 104729 % p.n, s->a == DT_f32 ? CUT / 2 : CUT);
    for (int again = 0; again < 2; again++) {
        char *d = compute(dev, &p);
        if (memcmp(c, d, (size_t)p.bytes[2])) fail_msg("%s: other bits when run again", s->what);
        free(d);
    }
    print_time(dev, s, &p);
    free(c);
    drop(&p);
    return bits;
}

static void bits_are_kept(void **state) {
    (void)state;
    Shape shape[SHAPES];
    Hash128 bits[SHAPES];
    char *dir = temp_dir(), *other = temp_dir(), path[4200];
    Err err = {0};
    Room room = room_of();
    snprintf(path, sizeof path, "%s/choices", dir);
    shapes(shape);
    Device *dev = open_in(&room, dir, NULL);
    numbers_again();
    for (int i = 0; i < SHAPES; i++) bits[i] = measure(dev, &room, &shape[i]);
    if (!dev->ops->save_choices(dev, path, &err)) fail_msg("%s", err.text);
    dev->ops->close(dev);
    numbers_again(); /* the same operands */
    dev = open_in(&room, other, path);
    for (int i = 0; i < SHAPES; i++) {
        Product p = make_shape(&room, &shape[i]);
        char *c = compute(dev, &p);
        Hash128 now = hash_bytes(c, (size_t)p.bytes[2], (Hash128){0, 0});
        if (now.hi != bits[i].hi || now.lo != bits[i].lo)
            fail_msg("%s: other bits with the kept algorithm", shape[i].what);
        free(c);
        drop(&p);
    }
    dev->ops->close(dev);
    remove_dir(dir);
    remove_dir(other);
}

int main(int argc, char **argv) {
    bool real = false;
    for (int i = 1; i < argc; i++) {
        real |= !strcmp(argv[i], "--device=cuda");
        large |= !strcmp(argv[i], "--long");
    }
    if (!real) simulate(argv);
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(small_ones),
                                       cmocka_unit_test(bits_are_kept)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
