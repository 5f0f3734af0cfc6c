/* report: what gpu-check found, as report.json and report.md.
 *
 *     report DIR
 *
 * DIR holds, from tests/gpu/check: meta.tsv (key, value), steps.tsv (name, status, seconds, note),
 * memory.tsv (name, bytes planned, bytes of reserve, bytes seen on the card), bench-NAME.json (of
 * `dpoc bench --json`), peer.json and peer-mixed.json (of tests/peers/gpu_step.py).  Whatever is
 * missing is left out.  Nothing is computed that was not measured: shares are of the rates in the
 * same file. */
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 4096, FIELDS = 4 };

static char dir[3000];

static char *path(const char *name) {
    static char p[4000];
    snprintf(p, sizeof p, "%s/%s", dir, name);
    return p;
}

/* Rows of a table: an array of objects with these keys; numbers where a field is one. */
static json_t *read_table(const char *name, const char *const key[FIELDS], int n) {
    json_t *rows = json_array();
    FILE *f = fopen(path(name), "r");
    char line[LINE];
    while (f && fgets(line, sizeof line, f)) {
        json_t *row = json_object();
        char *at = line;
        line[strcspn(line, "\n")] = 0;
        for (int i = 0; i < n && at; i++) {
            char *field = strsep(&at, "\t"), *end;
            double x = strtod(field, &end);
            bool number = n == FIELDS && i > 0 && end > field && !*end;
            json_object_set_new(row, key[i], number ? json_real(x) : json_string(field));
        }
        json_array_append_new(rows, row);
    }
    if (f) fclose(f);
    return rows;
}

static const char *text(const json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}
static double num(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

/* ---- the tables of report.md ----------------------------------------------------------------- */

static void write_steps(FILE *f, json_t *steps) {
    size_t i;
    json_t *s;
    fprintf(f, "| step | result | seconds | |\n|---|---|---|---|\n");
    json_array_foreach(steps, i, s) fprintf(f, "| %s | %s | %.0f | %s |\n", text(s, "name"),
                                            text(s, "status"), num(s, "seconds"), text(s, "note"));
}

static void write_memory(FILE *f, json_t *memory) {
    size_t i;
    json_t *m;
    if (!json_array_size(memory)) return;
    fprintf(f, "\n## Memory: the plan against the card\n\n"
               "| run | planned, MiB | reserve, MiB | seen, MiB | |\n|---|---|---|---|---|\n");
    json_array_foreach(memory, i, m) {
        double plan = num(m, "planned") / 1048576, reserve = num(m, "reserve") / 1048576;
        double seen = num(m, "seen") / 1048576;
        fprintf(f, "| %s | %.0f | %.0f | %.0f | %s |\n", text(m, "name"), plan, reserve, seen,
                seen <= plan + reserve ? "within" : "**over**");
    }
}

static void write_variants(FILE *f, json_t *bench) {
    size_t i;
    json_t *v, *all = json_object_get(bench, "variants");
    double first = num(json_array_get(all, 0), "median_ms");
    fprintf(f, "%s; product %.1f TFLOP/s, copy %.0f GB/s in this run\n\n", text(bench, "device"),
            1e-12 * num(bench, "gemm_rate"), 1e-9 * num(bench, "bandwidth"));
    fprintf(f, "| variant | median ms | min | max | of the first | tokens/s | peak, GiB | of the "
               "product's rate | loss |\n|---|---|---|---|---|---|---|---|---|\n");
    json_array_foreach(all, i, v)
        fprintf(f, "| %s | %.1f | %.1f | %.1f | %.2f | %.0f | %.2f | %.1f %% | %.6f |\n",
                text(v, "name"), num(v, "median_ms"), num(v, "min_ms"), num(v, "max_ms"),
                first > 0 ? num(v, "median_ms") / first : 0, num(v, "tokens_per_second"),
                num(v, "peak_bytes") / 1073741824, 100 * num(v, "roofline"), num(v, "loss"));
}

static void write_kernels(FILE *f, json_t *bench) {
    size_t i;
    json_t *k, *v = json_array_get(json_object_get(bench, "variants"), 0);
    double sum = 0;
    json_array_foreach(json_object_get(v, "kernels"), i, k) sum += num(k, "ms");
    fprintf(
        f,
        "\n%s, by kernel (%.1f ms in all):\n\n| kernel | calls | ms a step | TFLOP/s | GB/s | of "
        "the roofline |\n|---|---|---|---|---|---|\n",
        text(v, "name"), sum);
    json_array_foreach(json_object_get(v, "kernels"), i, k) {
        if (i >= 40) break;
        fprintf(f, "| %s | %.0f | %.3f | %.1f | %.0f | %.0f %% |\n", text(k, "label"),
                num(k, "calls"), num(k, "ms"), num(k, "tflops_per_second"), num(k, "gb_per_second"),
                100 * num(k, "roofline"));
    }
}

static void write_peer(FILE *f, const char *title, json_t *peer) {
    size_t i;
    const char *name;
    json_t *row;
    if (!peer) return;
    fprintf(f, "\n## The same step in PyTorch, interleaved: %s\n\n%s\n\n", title,
            text(peer, "what"));
    fprintf(f, "| | median ms | min | max | of dpoc (min .. max) | peak reserved, GiB | loss |\n"
               "|---|---|---|---|---|---|---|\n");
    json_object_foreach(json_object_get(peer, "rows"), name, row)
        fprintf(f, "| %s | %.1f | %.1f | %.1f | %.2f (%.2f .. %.2f) | %.2f | %.6f |\n", name,
                num(row, "median_ms"), num(row, "min_ms"), num(row, "max_ms"), num(row, "ratio"),
                num(row, "ratio_min"), num(row, "ratio_max"), num(row, "peak_bytes") / 1073741824,
                num(row, "loss"));
    fprintf(f, "\n");
    json_object_foreach(json_object_get(peer, "versions"), name, row) if (json_is_string(row))
        fprintf(f, "%s %s; ", name, json_string_value(row));
    fprintf(f, "\n");
    json_array_foreach(json_object_get(peer, "notes"), i, row)
        fprintf(f, "%s- %s\n", i ? "" : "\n", json_string_value(row));
}

static void write_markdown(FILE *f, json_t *report) {
    static const char *const keys[] = {"card", "driver", "date", "commit", "device", "mode"};
    const char *name;
    json_t *bench;
    fprintf(f, "# gpu-check\n\n");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        fprintf(f, "- %s: %s\n", keys[i], text(json_object_get(report, "meta"), keys[i]));
    fprintf(f, "\n");
    write_steps(f, json_object_get(report, "steps"));
    json_object_foreach(json_object_get(report, "bench"), name, bench) {
        fprintf(f, "\n## bench: %s\n\n", name);
        write_variants(f, bench);
        write_kernels(f, bench);
    }
    write_memory(f, json_object_get(report, "memory"));
    write_peer(f, "full lengths", json_object_get(report, "peer"));
    write_peer(f, "lengths of real pairs", json_object_get(report, "peer-mixed"));
}

/* ---- reading it all -------------------------------------------------------------------------- */

static json_t *read_meta(void) {
    json_t *meta = json_object(), *rows, *row;
    size_t i;
    rows = read_table("meta.tsv", (const char *const[FIELDS]){"key", "value"}, 2);
    json_array_foreach(rows, i, row)
        json_object_set(meta, text(row, "key"), json_object_get(row, "value"));
    json_decref(rows);
    return meta;
}

static json_t *read_bench(void) {
    static const char *const names[] = {"80GiB", "40GiB", "small"};
    json_t *all = json_object();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char file[64];
        snprintf(file, sizeof file, "bench-%s.json", names[i]);
        json_t *one = json_load_file(path(file), 0, NULL);
        if (one) json_object_set_new(all, names[i], one);
    }
    return all;
}

static void add_peer(json_t *report, const char *name) {
    char file[64];
    snprintf(file, sizeof file, "%s.json", name);
    json_t *peer = json_load_file(path(file), 0, NULL);
    if (peer) json_object_set_new(report, name, peer);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: report DIR\n"), 2;
    snprintf(dir, sizeof dir, "%s", argv[1]);
    json_t *report = json_object();
    static const char *const step[FIELDS] = {"name", "status", "seconds", "note"};
    static const char *const memory[FIELDS] = {"name", "planned", "reserve", "seen"};
    json_object_set_new(report, "meta", read_meta());
    json_object_set_new(report, "steps", read_table("steps.tsv", step, 4));
    json_object_set_new(report, "bench", read_bench());
    json_object_set_new(report, "memory", read_table("memory.tsv", memory, 4));
    add_peer(report, "peer");
    add_peer(report, "peer-mixed");
    bool ok =
        json_dump_file(report, path("report.json"), JSON_INDENT(1) | JSON_REAL_PRECISION(9)) == 0;
    FILE *f = fopen(path("report.md"), "w");
    if (f) write_markdown(f, report);
    ok = ok && f && fclose(f) == 0;
    if (!ok) fprintf(stderr, "report: cannot write to %s\n", dir);
    json_decref(report);
    return ok ? 0 : 5;
}
