/* cuda_fail.c: what a failure of the driver says to a person.
 *
 * A call that is refused was for the step that is being given.  A failure of work already given
 * is found at any later call: then the marks of progress say between which steps it happened.
 * Relies on cuda.h.
 */
#include "cuda.h"
#include "debug.h"

#include <string.h>

static bool hand_written(const char *kind) {
    static const char *const kinds[] = {"attend", "logprob", "dequant", "quant",
                                        "put",    "take",    "sort"};
    for (size_t i = 0; i < COUNT(kinds); i++)
        if (!strncmp(kind, kinds[i], strlen(kinds[i]))) return true;
    return false;
}

static const Kernel *kernel_of(const Cuda *c, const Step *s) {
    return s && s->kind == STEP_KERNEL && c->plan ? &c->plan->kernels[s->kernel] : NULL;
}

static void add_step(const Cuda *c, const Step *s, Text *text) {
    const Kernel *k = kernel_of(c, s);
    if (k)
        text_add(text, "\n  kernel %s (%s)", k->symbol, k->kind);
    else
        text_add(text, "\n  %s", step_kind_names[s->kind]);
    if (s->label) text_add(text, ", %.80s", s->label);
    if (s->where) text_add(text, ", %.160s", s->where);
}

/* Steps that the device may have been at: those given behind the last mark.  True if one of them
 * is a hand-written kernel. */
static bool add_suspects(const Cuda *c, Text *text) {
    enum { SHOWN = 5 };
    uint32_t last = c->given, first = last > GIVEN ? last - GIVEN : 0;
    if (c->mark && *c->mark > first) first = *c->mark;
    if (debug_level("sync") && last) first = last - 1; /* the executor waited for all before */
    const Step *shown[SHOWN];
    int n = 0, more = 0;
    bool by_hand = false;
    for (uint32_t i = first; i < last; i++) {
        const Step *s = c->step[i % GIVEN];
        if (!s) continue;
        const Kernel *k = kernel_of(c, s);
        by_hand |= k && hand_written(k->kind);
        bool known = false; /* many steps share a kernel and differ in their layer */
        for (int j = 0; j < n; j++)
            known |= kernel_of(c, shown[j]) == k && shown[j]->kind == s->kind;
        if (known || n == SHOWN)
            more++;
        else
            shown[n++] = s;
    }
    if (n) text_add(text, n + more == 1 ? "\nin this step:" : "\nin one of these steps:");
    for (int j = 0; j < n; j++) add_step(c, shown[j], text);
    if (more) text_add(text, "\n  and %d more", more);
    if (n + more > 1) text_add(text, "\nhelp: DPOC_DEBUG=sync waits after every step and names it");
    return by_hand;
}

/* Whether work that was given failed, rather than this call. */
static bool of_work(CuResult result) {
    return result == ERROR_ECC || (result >= ERROR_ILLEGAL_ADDRESS && result < ERROR_SYSTEM &&
                                   result != ERROR_LAUNCH_OUT_OF_RESOURCES);
}

static int exit_code(CuResult result) {
    if (result == ERROR_OUT_OF_MEMORY) return EXIT_MEMORY;
    if (result == ERROR_ECC || result == ERROR_LAUNCH_TIMEOUT) return EXIT_DEVICE;
    bool ours = result == ERROR_INVALID_VALUE || result == ERROR_INVALID_HANDLE ||
                of_work(result) || result == ERROR_LAUNCH_OUT_OF_RESOURCES ||
                (result >= ERROR_CAPTURE && result < ERROR_UNKNOWN);
    return ours ? EXIT_BUG : EXIT_DEVICE;
}

bool cuda_ok(Cuda *c, CuResult result, const char *function, Err *err) {
    if (!result) return true;
    Text text = {0};
    bool by_hand = false;
    text_add(&text, "%s%s: %s", exit_code(result) == EXIT_BUG ? "bug: " : "", function,
             cuda_error(&c->cu, result));
    if (of_work(result)) {
        by_hand = add_suspects(c, &text);
    } else if (c->dev.step) {
        const Kernel *k = kernel_of(c, c->dev.step);
        by_hand = k && hand_written(k->kind);
        add_step(c, c->dev.step, &text);
    }
    if (by_hand) text_add(&text, "\nhelp: --safe replaces hand-written kernels by plain ones");
    if (result == ERROR_LAUNCH_TIMEOUT)
        text_add(&text, "\nhelp: a GPU that drives a screen ends kernels after some seconds");
    fail(err, exit_code(result), "%s", text.data);
    text_free(&text);
    return false;
}
