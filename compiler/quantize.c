/* quantize.c: `quantize base nf4(block = 64, double = true) on ..`: which weights are kept in few
 * bits.
 *
 * The last clause that matches a weight decides.  Relies on adapter.c for arguments and selectors.
 */
#include "front.h"

#include <string.h>

static const Key format_keys[] = {{"block", V_NUM, 16, 65536, true},
                                  {"double", V_BOOL, 0, 1, false}};
static const char *const formats[] = {"nf4", "fp4", "int8", "bf16"};

static bool format_known(Spec *spec, const Ast *call) {
    for (size_t i = 0; i < COUNT(formats); i++)
        if (!strcmp(formats[i], call->text)) return true;
    diag_unknown(&spec->front, call->name_loc, "format", call->text, formats, COUNT(formats));
    return false;
}

/* NULL, or why this weight can't be quantized. */
static const char *unfit(const Base *base, const Weight *w) {
    if (base->trained) return "is trained";
    if (w->rank != 2) return "is a vector";
    if (w->embedded || w->tied) return "is looked up by embed()";
    return NULL;
}

static void quantize_clause(Spec *spec, const Ast *clause, Base *base) {
    Record args = {0};
    if (!format_known(spec, clause->a)) return;
    if (!adapter_arguments(spec, clause->a, format_keys, COUNT(format_keys), &args)) return;
    if (!selector_ok(spec, clause->b)) return;
    const Value *block = record_get(&args, "block"), *nested = record_get(&args, "double");
    if (block && (int64_t)block->num % 2) {
        diag(spec->front.diags, DIAG_ERROR, clause->a->loc,
             "block must be even: two codes share a byte");
        return;
    }
    int matched = 0;
    for (int i = 0; i < base->nweight; i++) {
        Weight *w = base->weight[i];
        if (!selects(clause->b, w)) continue;
        matched++;
        const char *why = unfit(base, w);
        if (why) {
            diag(spec->front.diags, DIAG_ERROR, clause->loc, "%s can't be quantized: it %s",
                 w->tensor, why);
            diag(spec->front.diags, DIAG_NOTE, w->loc, "declared here");
            return;
        }
        bool plain = !strcmp(clause->a->text, "bf16");
        w->format = plain ? NULL : clause->a->text;
        w->block = block ? (int64_t)block->num : 64;
        w->nested = nested && nested->num != 0;
    }
    if (!matched) nothing_matched(spec, clause->b, base, "of the model");
}

void quantize_resolve(Spec *spec) {
    for (int i = 0; i < spec->nstatement; i++) {
        const Ast *s = spec->statement[i];
        if (s->kind != A_QUANTIZE) continue;
        ModelSum sum = {0};
        if (!model_value(spec, s->text, s->name_loc, &sum)) continue;
        if (!sum.base || sum.nuse)
            diag(spec->front.diags, DIAG_ERROR, s->name_loc, "%s is no base model", s->text);
        for (const Ast *c = s->list; c && sum.base; c = c->next)
            if (c->a && c->b) quantize_clause(spec, c, sum.base);
    }
}
