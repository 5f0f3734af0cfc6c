/* fuzz_plan.c: any bytes as a plan: no crash; what is accepted is written and read back to the
 * same text. Built by clang with -fsanitize=fuzzer (make fuzz). */
#include <stdlib.h>
#include <string.h>

#include "runtime/plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Err err = {0};
    char *text = malloc(size + 1);
    memcpy(text, data, size);
    text[size] = 0;
    Plan *plan = plan_from_json(text, "fuzz.json", &err);
    if (plan) {
        char *once = plan_to_json(plan);
        Plan *again = plan_from_json(once, "again.json", &err);
        char *twice = again ? plan_to_json(again) : NULL;
        if (!twice || strcmp(once, twice)) {
            fprintf(stderr, "what was written does not read back: %s\n", err.text);
            abort();
        }
        free(once);
        free(twice);
        plan_free(again);
    }
    plan_free(plan);
    free(text);
    return 0;
}
