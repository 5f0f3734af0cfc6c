/* quantize.c: `quantize base nf4(block = 64, double = true) on ..`: which weights are kept in few
 * bits.
 *
 * The last clause that matches a weight decides; a weight that its checkpoint holds quantized stays
 * as it is, or becomes plain by `bf16`.  Relies on adapter.c for arguments and selectors.
 */
#include "front.h"
#include "../runtime/io/packed.h"

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

static char *format_text(Arena *arena, const Weight *w) {
    QuantFormat format = QUANT_NF4;
    quant_format(w->format, &format);
    return packed_describe(arena, format, w->block, w->nested);
}

/* What a checkpoint holds quantized can't be quantized otherwise. */
static bool agrees(Spec *spec, const Ast *clause, const Base *base, const Weight *held,
                   const Weight *asked) {
    if (!strcmp(held->format, asked->format) && held->block == asked->block &&
        held->nested == asked->nested)
        return true;
    Arena *arena = spec->front.arena;
    diag(spec->front.diags, DIAG_ERROR, clause->loc, "%s is quantized already, as %s, in %s",
         held->tensor, format_text(arena, held), base->dir);
    diag(spec->front.diags, DIAG_HELP, clause->loc,
         "write that, or leave the line out, or take the unquantized checkpoint for %s",
         format_text(arena, asked));
    return false;
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
        Weight asked = {.format = plain ? NULL : clause->a->text,
                        .block = block ? (int64_t)block->num : 64,
                        .nested = nested && nested->num != 0};
        if (w->held && !plain && !agrees(spec, clause, base, w->held, &asked)) return;
        w->format = asked.format;
        w->block = asked.block;
        w->nested = asked.nested;
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
