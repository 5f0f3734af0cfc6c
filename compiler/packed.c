/* packed.c: weights that a checkpoint holds quantized already, by bitsandbytes.
 *
 * A file with weights says of each tensor what it is; config.json alone says it by the rules of its
 * writer (transformers): all linear layers but the head and those it names.  Either way the weight
 * is kept in that format, and a `quantize` line that asks for another is an error (quantize.c).
 * Relies on runtime/io/packed.h.
 */
#include "front.h"
#include "../runtime/io/packed.h"

#include <string.h>

static bool on(const Record *r, const char *key) {
    const Value *v = record_get(r, key);
    return v && v->kind == V_BOOL && v->num != 0;
}

static const Record *packed_config(const Base *base) {
    const Value *v = record_get(base->config, "quantization_config");
    return v && v->kind == V_RECORD ? v->record : NULL;
}

bool packed_known(Front *f, const char *dir, const Record *config, Loc loc) {
    const Value *v = record_get(config, "quantization_config");
    if (!v) return true;
    const Value *method = v->kind == V_RECORD ? record_get(v->record, "quant_method") : NULL;
    const char *by = method && method->kind == V_STR ? method->str : NULL;
    bool bits =
        v->kind == V_RECORD && (on(v->record, "load_in_4bit") || on(v->record, "load_in_8bit"));
    if (bits && (!by || !strcmp(by, "bitsandbytes"))) return true;
    diag_file(f->diags, loc, "the checkpoint in %s is already quantized%s%s", dir, by ? " by " : "",
              by ? by : "");
    diag(f->diags, DIAG_HELP, loc,
         "only bitsandbytes' formats can be read: take the unquantized checkpoint and write "
         "`quantize base nf4(block = 64, double = true) on ..`");
    return false;
}

static void keep_packed(Arena *arena, Weight *w, QuantFormat format, int64_t block, bool nested) {
    w->format = quant_format_names[format];
    w->block = block;
    w->nested = nested;
    Weight *held = NEW(arena, Weight);
    *held = *w;
    w->held = held;
}

/* ---- by the file ----------------------------------------------------------------------------- */

bool packed_weight(Spec *spec, const Base *base, const Checkpoint *c, const SafeTensor *t,
                   Weight *w) {
    Diags *d = spec->front.diags;
    Packed p;
    Err err = {0};
    if (!packed_read(c, t, &p, &err)) {
        diag_file(d, w->loc, "%s", err.text);
        return false;
    }
    if (p.rank != w->rank || p.shape[0] != w->shape[0] ||
        (w->rank == 2 && p.shape[1] != w->shape[1])) {
        diag_file(d, w->loc, "%s is [%lld,%lld] here, but holds codes of [%lld,%lld] in %s",
                  t->name, (long long)w->shape[0], (long long)w->shape[1], (long long)p.shape[0],
                  (long long)p.shape[1], base->dir);
        return false;
    }
    const char *why = w->embedded ? "looked up by embed()" : base->trained ? "trained" : NULL;
    if (why) {
        diag_file(d, w->loc, "%s is quantized in %s, but %s", t->name, base->dir, why);
        diag(d, DIAG_HELP, w->loc, "take the unquantized checkpoint");
        return false;
    }
    keep_packed(spec->front.arena, w, p.format, p.block, p.nested);
    return true;
}

/* ---- by config.json alone -------------------------------------------------------------------- */

/* Whether a name of llm_int8_skip_modules stands for a module. */
static bool names_module(const char *name, const char *module) {
    size_t n = strlen(name), m = strlen(module);
    if (m >= n && !strcmp(module + m - n, name) && (m == n || module[m - n - 1] == '.'))
        return true;
    const char *at = strstr(module, name);
    return at && at[n] == '.';
}

static bool skipped(const Record *config, const Weight *w) {
    const Value *skip = record_get(config, "llm_int8_skip_modules");
    if (w->rank != 2 || !w->linear || w->head || w->embedded) return true;
    for (int i = 0; skip && skip->kind == V_RECORD && i < skip->record->n; i++) {
        const Value *name = &skip->record->field[i].value;
        if (name->kind == V_STR && names_module(name->str, w->tensor)) return true;
    }
    return false;
}

void packed_by_config(Arena *arena, const Base *base) {
    const Record *config = packed_config(base);
    if (!config) return;
    const Value *type = record_get(config, "bnb_4bit_quant_type");
    QuantFormat format = QUANT_FP4; /* BitsAndBytesConfig's default */
    if (type && type->kind == V_STR) quant_format(type->str, &format);
    bool nested = on(config, "bnb_4bit_use_double_quant");
    for (int i = 0; i < base->nweight; i++) {
        Weight *w = base->weight[i];
        if (skipped(config, w)) continue;
        if (on(config, "load_in_8bit"))
            keep_packed(arena, w, QUANT_INT8, w->shape[1], false);
        else
            keep_packed(arena, w, format, 64, nested);
    }
}
