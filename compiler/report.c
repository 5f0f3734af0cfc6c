/* report.c: a plan in numbers: parameters, FLOPs, the peak by role and by tensor, launches, what
 * fits.
 *
 * Everything is counted from the finished plan, so a plan read from a file reports the same.
 */
#include "report.h"
#include "dpoc.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN = 10 }; /* largest buffers named */

/* ---- the peak -------------------------------------------------------------------------------- */

static bool live_at(const Buf *b, int program, int step) {
    return b->persistent || (b->program == program && b->first <= step && step <= b->last);
}

static int64_t bytes_at(const Buf *b, int step) {
    int64_t bytes = b->bytes;
    if (b->persistent) return bytes;
    for (int i = 0; i < b->nshrink && b->shrink[i].step < step; i++) bytes = b->shrink[i].bytes;
    return bytes;
}

/* The program and step with the most live transient bytes. */
static void find_peak(const Plan *plan, int *program, int *step) {
    int64_t most = 0;
    *program = *step = -1;
    for (int p = 0; p < plan->nprograms; p++) {
        int n = plan->programs[p].nsteps;
        int64_t *change = calloc((size_t)n + 2, sizeof *change), live = 0;
        if (!change) continue;
        for (int i = 0; i < plan->nbufs; i++) {
            const Buf *b = &plan->bufs[i];
            if (b->persistent || b->program != p) continue;
            change[b->first] += b->bytes;
            int64_t left = b->bytes;
            for (int k = 0; k < b->nshrink && b->shrink[k].step < b->last; k++) {
                change[b->shrink[k].step + 1] += b->shrink[k].bytes - left;
                left = b->shrink[k].bytes;
            }
            change[b->last + 1] -= left;
        }
        for (int s = 0; s < n; s++)
            if ((live += change[s]) > most) {
                most = live;
                *program = p;
                *step = s;
            }
        free(change);
    }
}

typedef struct Sized {
    int buf;
    int64_t bytes;
} Sized;
static int by_bytes(const void *a, const void *b) {
    const Sized *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return x->buf - y->buf;
}

Peak report_peak(const Plan *plan) {
    Peak peak = {0};
    find_peak(plan, &peak.program, &peak.step);
    Sized *live = calloc((size_t)plan->nbufs + 1, sizeof *live);
    peak.buf = calloc((size_t)plan->nbufs + 1, sizeof *peak.buf);
    if (!live || !peak.buf) exit(EXIT_MEMORY);
    for (int i = 0; i < plan->nbufs; i++) {
        const Buf *b = &plan->bufs[i];
        if (!live_at(b, peak.program, peak.step)) continue;
        live[peak.nbuf++] = (Sized){i, bytes_at(b, peak.step)};
        peak.role[b->role] += bytes_at(b, peak.step);
    }
    qsort(live, (size_t)peak.nbuf, sizeof *live, by_bytes);
    for (int i = 0; i < peak.nbuf; i++) peak.buf[i] = live[i].buf;
    free(live);
    return peak;
}

/* ---- counts ---------------------------------------------------------------------------------- */

typedef struct Counts {
    int kernels, gemms;
    int64_t launches; /* of one optimizer step with one micro-batch, at the bounds */
} Counts;

static bool of_training(const Plan *plan, const char *program) {
    if (!plan_program(plan, "micro")) return strcmp(program, "init") != 0;
    return !strcmp(program, "step") || !strcmp(program, "micro") || !strcmp(program, "update");
}

static Counts count_steps(const Plan *plan) {
    Counts c = {0};
    for (int p = 0; p < plan->nprograms; p++) {
        const Program *program = &plan->programs[p];
        if (!of_training(plan, program->name)) continue;
        int loop_end = -1;
        int64_t times = 1;
        for (int k = 0; k < program->nsteps; k++) {
            const Step *s = &program->steps[k];
            if (k > loop_end) times = 1;
            if (s->kind == STEP_LOOP) {
                times = (dim_eval(s->dims[0], plan->bound) + s->chunk - 1) / s->chunk;
                loop_end = k + s->body;
                continue;
            }
            c.kernels += s->kind == STEP_KERNEL;
            c.gemms += s->kind == STEP_GEMM;
            c.launches += times;
        }
    }
    return c;
}

static int64_t host_bytes(const Plan *plan) { /* copies of what is written and read */
    int64_t bytes = 0;
    for (int i = 0; i < plan->nbufs; i++)
        if (plan->bufs[i].role == ROLE_INPUT || plan->bufs[i].role == ROLE_OUTPUT)
            bytes += plan->bufs[i].bytes;
    return bytes;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static json_t *lines_json(const char **line, int n) {
    json_t *array = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(array, json_string(line[i]));
    return array;
}

static json_t *roles_json(const Plan *plan, const Peak *peak) {
    json_t *roles = json_object();
    int64_t sum = 0;
    for (int r = 0; r < NROLE; r++) {
        json_object_set_new(roles, role_names[r], json_integer(peak->role[r]));
        sum += peak->role[r];
    }
    json_object_set_new(roles, "padding", json_integer(plan->arena_bytes - sum));
    return roles;
}

static json_t *largest_json(const Plan *plan, const Peak *peak) {
    json_t *array = json_array();
    for (int i = 0; i < peak->nbuf && i < SHOWN; i++) {
        const Buf *b = &plan->bufs[peak->buf[i]];
        json_t *row = json_object();
        json_object_set_new(row, "name", json_string(b->name));
        json_object_set_new(row, "role", json_string(role_names[b->role]));
        json_object_set_new(row, "bytes", json_integer(bytes_at(b, peak->step)));
        json_object_set_new(row, "where", b->where ? json_string(b->where) : json_null());
        json_array_append_new(array, row);
    }
    return array;
}

char *report_json(const Plan *plan) {
    Peak peak = report_peak(plan);
    Counts counts = count_steps(plan);
    json_t *o = json_object(), *parameters = json_object();
    json_object_set_new(parameters, "total", json_integer((json_int_t)plan->parameters_total));
    json_object_set_new(parameters, "trainable",
                        json_integer((json_int_t)plan->parameters_trainable));
    json_object_set_new(o, "parameters", parameters);
    json_object_set_new(o, "flops_per_step", json_real(plan->flops_micro));
    json_object_set_new(o, "flops_again", json_real(plan->flops_again));
    json_object_set_new(o, "peak_bytes", json_integer(plan->arena_bytes));
    json_object_set_new(o, "bytes_by_role", roles_json(plan, &peak));
    json_object_set_new(o, "host_bytes", json_integer(host_bytes(plan)));
    json_object_set_new(o, "budget_bytes", json_integer(plan->budget_bytes));
    json_object_set_new(o, "fits", json_boolean(plan->fits));
    json_object_set_new(o, "kernels", json_integer(counts.kernels));
    json_object_set_new(o, "unique_kernels", json_integer(plan->nkernels));
    json_object_set_new(o, "gemms", json_integer(counts.gemms));
    json_object_set_new(o, "launches_per_step", json_integer(counts.launches));
    json_object_set_new(o, "recomputed", lines_json(plan->recomputed, plan->nrecomputed));
    json_object_set_new(o, "refused", lines_json(plan->refused, plan->nrefused));
    json_object_set_new(o, "largest", largest_json(plan, &peak));
    json_object_set_new(o, "device", json_string(plan->device));
    json_object_set_new(o, "hash", json_string(plan->hash));
    char *text = json_dumps(o, JSON_INDENT(1));
    json_decref(o);
    free(peak.buf);
    return text;
}

/* ---- text ------------------------------------------------------------------------------------ */

static const char *size(char out[32], int64_t bytes) {
    format_bytes(out, (double)bytes);
    return out;
}

static void largest_text(const Plan *plan, const Peak *peak, FILE *out) {
    char a[32];
    for (int i = 0; i < peak->nbuf && i < SHOWN; i++) {
        const Buf *b = &plan->bufs[peak->buf[i]];
        fprintf(out, "  %10s  %-10s %s%s%s%s\n", size(a, bytes_at(b, peak->step)),
                role_names[b->role], b->name, b->where ? "  (" : "", b->where ? b->where : "",
                b->where ? ")" : "");
    }
}

static void peak_text(const Plan *plan, const Peak *peak, FILE *out) {
    char a[32];
    int64_t sum = 0;
    fprintf(out, "peak %s", size(a, plan->arena_bytes));
    if (peak->program >= 0) {
        const Step *s = &plan->programs[peak->program].steps[peak->step];
        fprintf(out, ", in %s at %s%s%s", plan->programs[peak->program].name,
                s->label ? s->label : "?", s->where ? ", " : "", s->where ? s->where : "");
    }
    fprintf(out, "\n");
    for (int r = 0; r < NROLE; r++) {
        if (peak->role[r]) fprintf(out, "  %10s  %s\n", size(a, peak->role[r]), role_names[r]);
        sum += peak->role[r];
    }
    if (plan->arena_bytes > sum)
        fprintf(out, "  %10s  padding\n", size(a, plan->arena_bytes - sum));
}

void report_text(const Plan *plan, FILE *out) {
    Peak peak = report_peak(plan);
    Counts counts = count_steps(plan);
    fprintf(out, "%s, %.0f parameters, %.0f trained\n", plan->device, plan->parameters_total,
            plan->parameters_trainable);
    fprintf(out,
            "one micro-batch of %lld tokens: %.4g GFLOP, %lld launches (%d kernels, %d unique; %d "
            "gemms)\n",
            (long long)plan->bound[X_T], plan->flops_micro / 1e9, (long long)counts.launches,
            counts.kernels, plan->nkernels, counts.gemms);
    peak_text(plan, &peak, out);
    fprintf(out, "largest\n");
    largest_text(plan, &peak, out);
    if (plan->nrecomputed) fprintf(out, "recomputed\n");
    for (int i = 0; i < plan->nrecomputed; i++) fprintf(out, "  %s\n", plan->recomputed[i]);
    free(peak.buf);
}

/* ---- what would fit -------------------------------------------------------------------------- */

/* What `--memory` covers beside the arena. */
static int64_t reserve(const Plan *plan) {
    const Target *target = target_by_name(plan->device);
    if (!target || !target->cuda) return 0;
    double given = plan_num(plan, "graph.reserve");
    return given > 0 ? (int64_t)given : target->reserve;
}

void report_largest(const Plan *plan, FILE *out) {
    Peak peak = report_peak(plan);
    largest_text(plan, &peak, out);
    free(peak.buf);
    fprintf(out, "help: a smaller `--memory` or `run.tokens` needs less; `dpoc plan` says what\n");
}

void report_does_not_fit(const Plan *plan, FILE *out) {
    char a[32], b[32], c[32];
    int64_t least = plan->smallest_bytes ? plan->smallest_bytes : plan->arena_bytes;
    fprintf(out, "error: the plan needs %s, the budget is %s", size(a, least),
            size(b, plan->budget_bytes));
    if (reserve(plan)) fprintf(out, " beside graph.reserve, %s", size(c, reserve(plan)));
    fputc('\n', out);
    Peak peak = report_peak(plan);
    largest_text(plan, &peak, out);
    free(peak.buf);
    if (plan_program(plan, "decode") && !plan_program(plan, "micro"))
        fprintf(out, "help: a smaller `--max-tokens` makes the KV cache smaller (now %lld rows)\n",
                (long long)plan->bound[X_H]);
    else if (plan->fit_tokens)
        fprintf(out, "help: `--set run.tokens=%lld` fits (now %lld)\n", (long long)plan->fit_tokens,
                (long long)plan->bound[X_T]);
    else
        fprintf(out, "help: no `run.tokens` makes this fit: what stays in memory is too large\n");
    fprintf(out, "help: `--memory=%lldMiB` is enough for the file as it stands\n",
            (long long)(((least + reserve(plan)) >> 20) + 1));
}
