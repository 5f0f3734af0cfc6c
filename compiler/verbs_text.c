/* verbs_text.c: the verbs about the program itself and about text: init, fmt, passes, ops,
 * settings,
 * doctor, cache. */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ast.h"
#include "work.h"

static const char starter[] =
    "# %s.dpo: preference training with LoRA.  Try:\n"
    "#   dpoc check %s.dpo --model DIR\n"
    "#   dpoc plan  %s.dpo --model DIR\n"
    "#   dpoc train %s.dpo --model DIR --data pairs.jsonl -o RUN\n"
    "# `dpoc settings` lists every setting; on the command line: --set run.lr=1e-5 --set "
    "pref.rank=8\n"
    "\n"
    "base = auto  # the model whose `for` is the checkpoint's model_type\n"
    "# quantize base nf4(block = 64, double = true) on \"model.layers[*].**.*_proj\"  # QLoRA\n"
    "\n"
    "adapter pref = lora(rank = 16, alpha = 32) on all_linear\n"
    "policy = base + pref\n"
    "reference = base\n"
    "train pref  # all else is frozen\n"
    "\n"
    "objective dpo(beta = 0.1) {\n"
    "    reward(side) = beta * (logp(policy, side) - logp(reference, side))\n"
    "    loss = -log_sigmoid(reward(chosen) - reward(rejected))\n"
    "}\n"
    "\n"
    "data {\n"
    "    eval = 5%%        # so much of the pairs, held out; or a file\n"
    "    template = auto  # the checkpoint's; or llama3, chatml, .., or a `template` statement's "
    "name\n"
    "    max_prompt = 512\n"
    "    max_length = 1024\n"
    "    # like = trl_1   # cut and tokenized as that trainer does: trl_1, trl_0_24, trl_0_9\n"
    "}\n"
    "run {\n"
    "    steps = 50\n"
    "    batch = 8      # pairs per optimizer step\n"
    "    tokens = 4096  # of a micro-batch: how much memory it may take, never what comes out\n"
    "    lr = 5e-5\n"
    "    schedule = cosine\n"
    "    warmup = 10\n"
    "    eval_every = 25    # the checkpoint with the best eval_loss is kept (run.best)\n"
    "    sample_every = 25  # answers to held-out prompts, to read while it trains\n"
    "    # optimizer = adamw8bit\n"
    "}\n"
    "# graph { ref = cached }  # the reference's log-probs once, in a file, instead of in each "
    "step\n";

int verb_init(const Options *o) {
    if (o->args.n != 1) return work_usage("init needs one NAME");
    const char *name = o->args.item[0];
    Err err = {0};
    Arena *arena = arena_new();
    char *path = arena_printf(arena, "%s.dpo", name);
    Text text = {0};
    text_add(&text, starter, name, name, name, name);
    bool ok = true;
    if (file_exists(path)) ok = fail(&err, EXIT_USAGE, "%s exists already", path);
    ok = ok && file_write(path, text.data, text.len, &err);
    if (ok)
        printf("%s\n", path);
    else
        fprintf(stderr, "dpoc: error: %s\n", err.text);
    text_free(&text);
    arena_free(arena);
    return ok ? EXIT_OK : err.code;
}

/* All of stdin (malloc). */
static char *read_stdin(size_t *len) {
    Text text = {0};
    char piece[1 << 16];
    size_t n;
    while ((n = fread(piece, 1, sizeof piece, stdin)) > 0) text_addn(&text, piece, n);
    *len = text.len;
    return text.data ? text.data : calloc(1, 1);
}

static int format_one(Work *w, const char *path) {
    bool screen = strcmp(path, "-") == 0;
    size_t len;
    char *read = screen ? read_stdin(&len) : file_read(path, &len, &w->err);
    if (!read) return work_fail(w);
    const char *text = arena_strn(w->arena, read, len); /* diagnostics point into it */
    free(read);
    Text out = {0};
    uint32_t file = source_add(w->diags, screen ? "<stdin>" : path, text, len);
    bool ok = fmt_text(w->arena, w->diags, file, &out);
    work_diagnostics(w);
    bool same = ok && out.len == len && memcmp(out.data, text, len) == 0;
    int code = ok ? EXIT_OK : EXIT_INPUT;
    if (ok && w->options->check) {
        if (!same) fprintf(stderr, "%s: not formatted\n", path), code = EXIT_INPUT;
    } else if (ok && screen) {
        fwrite(out.data, 1, out.len, stdout);
    } else if (ok && !same && !file_write(path, out.data, out.len, &w->err)) {
        code = work_fail(w);
    }
    text_free(&out);
    return code;
}

int verb_fmt(const Options *o) {
    if (o->args.n == 0) return work_usage("fmt needs at least one file");
    int code = EXIT_OK;
    for (int i = 0; i < o->args.n; i++) {
        Work w;
        work_init(&w, o);
        int one = format_one(&w, o->args.item[i]);
        if (one != EXIT_OK) code = one;
        work_close(&w);
    }
    return code;
}

int verb_passes(const Options *o) {
    (void)o;
    passes_print(stdout);
    return EXIT_OK;
}

int verb_ops(const Options *o) {
    (void)o;
    static const char *const kinds[] = {"leaf", "view",   "map",   "reduce",
                                        "gemm", "custom", "effect"};
    printf("%-22s %-7s %-8s %s\n", "op", "kind", "operands", "attributes");
    for (int i = 0; i < NOP; i++)
        printf("%-22s %-7s %d..%-5d %s\n", op_info[i].name, kinds[op_info[i].kind], op_info[i].lo,
               op_info[i].hi, op_info[i].attrs);
    return EXIT_OK;
}

int verb_settings(const Options *o) {
    settings_print(stdout, o->json);
    return EXIT_OK;
}

/* ---- doctor ---------------------------------------------------------------------------------- */

int verb_doctor(const Options *o) {
    Err err = {0};
    DeviceOptions options = {.name = "cpu", .cc = o->cc};
    Device *cpu = device_open(&options, &err);
    printf("dpoc %s\n", VERSION);
    if (cpu)
        printf("found    cpu        %s\n", cpu->description);
    else
        printf("missing  cpu        %s\n", err.text);
    if (cpu) cpu->ops->close(cpu);
    cuda_doctor(stdout);
    printf("cache    %s\n", cache_dir_default());
    static const char *const variables[] = {"DPOC_CACHE_DIR", "DPOC_DEVICE",
                                            "DPOC_CC",        "CUDA_VISIBLE_DEVICES",
                                            "NO_COLOR",       "OMP_NUM_THREADS"};
    for (size_t i = 0; i < COUNT(variables); i++)
        if (getenv(variables[i])) printf("set      %s=%s\n", variables[i], getenv(variables[i]));
    return cpu ? EXIT_OK : EXIT_DEVICE;
}

/* ---- cache ----------------------------------------------------------------------------------- */

int verb_cache(const Options *o) {
    bool clear = o->args.n == 1 && strcmp(o->args.item[0], "clear") == 0;
    bool list = o->args.n == 1 && strcmp(o->args.item[0], "list") == 0;
    if (!clear && !list) return work_usage("cache list, or cache clear");
    const char *dir = o->cache_dir ? o->cache_dir : cache_dir_default();
    DIR *d = opendir(dir);
    if (!d && errno != ENOENT) {
        fprintf(stderr, "dpoc: error: %s: %s\n", dir, strerror(errno));
        return EXIT_IO;
    }
    Arena *arena = arena_new();
    int files = 0, code = EXIT_OK;
    double bytes = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat st;
        char *path = path_join(arena, dir, e->d_name);
        if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) continue;
        files++;
        bytes += (double)st.st_size;
        if (list && !o->quiet) printf("%10lld  %s\n", (long long)st.st_size, e->d_name);
        if (clear && unlink(path) != 0) {
            fprintf(stderr, "dpoc: %s: %s\n", path, strerror(errno));
            code = EXIT_IO;
        }
    }
    if (d) closedir(d);
    char size[32];
    format_bytes(size, bytes);
    printf("%s: %d files, %s%s\n", dir, files, size, clear ? ", removed" : "");
    arena_free(arena);
    return code;
}
