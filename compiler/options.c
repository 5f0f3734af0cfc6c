/* options.c: the table of command-line flags and what reads it.
 *
 * Relies on base.h only.  Promises: an unknown verb or flag is answered with the closest one and
 * exit 2;
 * `--flag=value`, `--flag value` and `-o value` mean the same; `--` ends the flags. */
#include "options.h"

#include <math.h>   /* NAN floor */
#include <stdlib.h> /* strtod getenv */
#include <string.h> /* strcmp */
#include <unistd.h> /* isatty */

typedef enum FlagKind {
    FLAG_BOOL,
    FLAG_TEXT,
    FLAG_LIST,
    FLAG_COUNT,
    FLAG_NUMBER,
    FLAG_SHARE,
    FLAG_MAYBE
} FlagKind;

typedef struct Flag {
    const char *name;
    char letter;
    FlagKind kind;
    size_t at; /* offset in Options */
    const char *value, *verbs, *help;
} Flag;

#define AT(field) offsetof(Options, field)
#define RUNS      "check plan compile view train eval generate bench verify tokens export"
#define COMPILES  "plan compile view train eval generate bench verify export"

static const Flag flags[] = {
    {"model", 0, FLAG_TEXT, AT(model), "DIR", RUNS,
     "checkpoint directory (config.json, safetensors, tokenizer.json)"},
    {"data", 0, FLAG_LIST, AT(data), "FILE", "check train eval bench verify tokens",
     "preference pairs (.json .jsonl, each also .gz)"},
    {"eval-data", 0, FLAG_TEXT, AT(eval_data), "FILE", "train", "pairs to evaluate on"},
    {"out", 'o', FLAG_TEXT, AT(out), "PATH", "compile train export report",
     "where the result goes"},
    {"adapter", 0, FLAG_LIST, AT(adapter), "[NAME=]DIR",
     "check plan compile view train eval generate verify bench", "PEFT adapter directory"},
    {"set", 0, FLAG_LIST, AT(set), "path=value",
     "check plan compile view train eval generate bench verify tokens export",
     "overrides a setting; repeatable"},
    {"seed", 0, FLAG_TEXT, AT(seed), "N", "train eval generate bench verify",
     "random seed (same as --set run.seed=N)"},
    {"device", 0, FLAG_TEXT, AT(device), "auto|cpu|cuda[:n]",
     "train eval generate bench verify plan export",
     "where to run (default: $DPOC_DEVICE, else auto)"},
    {"safe", 0, FLAG_BOOL, AT(safe), NULL, COMPILES,
     "plain kernels only: no tensor-core instructions, no inline PTX"},
    {"debug", 0, FLAG_TEXT, AT(debug), "WORD,..", "*", "as DPOC_DEBUG; `help` lists the words"},
    {"memory", 0, FLAG_TEXT, AT(memory), "SIZE", RUNS,
     "memory budget: 40GiB, 24GiB, a100_40g, a100_80g"},
    {"variant", 0, FLAG_TEXT, AT(variant), "NAME", RUNS, "the variant of the file to use"},
    {"variants", 0, FLAG_TEXT, AT(variants), "a,b", "bench",
     "the variants to compare (default: all)"},
    {"compare", 0, FLAG_TEXT, AT(compare), "OLD.json", "bench",
     "an earlier --json: each variant's time against the one of its name"},
    {"threshold", 0, FLAG_NUMBER, AT(threshold), "PERCENT", "bench",
     "with --compare: exit 1 where a variant takes so much longer"},
    {"effects", 0, FLAG_BOOL, AT(effects), NULL, "bench",
     "passes switched off one by one instead of variants (--variants names some)"},
    {"in-turn", 0, FLAG_BOOL, AT(in_turn), NULL, "bench",
     "one variant in memory at a time, as where they do not fit together"},
    {"markdown", 0, FLAG_BOOL, AT(markdown), NULL, "bench", "the table of variants as Markdown"},
    {"runs", 0, FLAG_COUNT, AT(runs), "N", "bench",
     "timed steps of each variant (default: 10, or more in 3 seconds)"},
    {"random-weights", 0, FLAG_BOOL, AT(random_weights), NULL,
     "train eval bench verify plan compile generate", "config.json is enough: weights are random"},
    {"resume", 0, FLAG_MAYBE, AT(resume), "CKPT", "train",
     "go on from the newest (or this) checkpoint"},
    {"overwrite", 0, FLAG_BOOL, AT(overwrite), NULL, "train export",
     "replace what is in the output directory"},
    {"dry-run", 'n', FLAG_BOOL, AT(dry_run), NULL, "train", "everything but the steps"},
    {"arch", 0, FLAG_TEXT, AT(arch), "sm_80", "compile plan view",
     "emit CUDA for this architecture"},
    {"svg", 0, FLAG_TEXT, AT(svg), "FILE", "view", "memory map: x = step, y = address"},
    {"explain", 0, FLAG_TEXT, AT(explain), "%id", "view", "all that is recorded about one value"},
    {"only", 0, FLAG_TEXT, AT(only), "PASS", "view",
     "run one pass on a file.ir and print the graph"},
    {"dot", 0, FLAG_TEXT, AT(dot), "FILE", "view", "the graph for graphviz"},
    {"html", 0, FLAG_TEXT, AT(html), "FILE", "view", "a page: the source, a column per pass"},
    {"prompt", 0, FLAG_TEXT, AT(prompt), "TEXT", "generate", "text to continue (-: from stdin)"},
    {"prompts", 0, FLAG_TEXT, AT(prompts), "FILE", "generate",
     "many prompts, as training reads them: text lines, JSON Lines"},
    {"chat", 0, FLAG_TEXT, AT(chat), "FILE", "generate",
     "JSON list of messages, or a file of prompts (-: a message a line, answered)"},
    {"context", 0, FLAG_COUNT, AT(context), "N", "generate",
     "tokens a conversation (--chat -) may have (default 4096)"},
    {"spec", 0, FLAG_TEXT, AT(spec), "FILE.dpo", "generate tokens",
     "model description (default: by model_type)"},
    {"max-tokens", 0, FLAG_COUNT, AT(max_tokens), "N", "generate",
     "at most so many new tokens (default 128)"},
    {"temperature", 0, FLAG_NUMBER, AT(temperature), "X", "generate", "0 is greedy (default)"},
    {"top-p", 0, FLAG_SHARE, AT(top_p), "X", "generate", "nucleus sampling"},
    {"top-k", 0, FLAG_COUNT, AT(top_k), "N", "generate", "from the N most probable tokens"},
    {"model-sampling", 0, FLAG_BOOL, AT(model_sampling), NULL, "generate",
     "temperature, top-p, top-k as generation_config.json has them"},
    {"at-once", 0, FLAG_COUNT, AT(at_once), "N", "generate",
     "prompts answered together (default 8, on CUDA 32)"},
    {"before", 0, FLAG_BOOL, AT(before), NULL, "generate",
     "also what is answered without the adapter, side by side"},
    {"format", 0, FLAG_TEXT, AT(format), "peft|merged|gguf-lora", "export", "what is written"},
    {"dtype", 0, FLAG_TEXT, AT(dtype), "bf16|fp16|fp32", "export", "type of the numbers written"},
    {"base", 0, FLAG_TEXT, AT(base), "dequantized|original", "export",
     "what is merged into: the quantized weights that training saw (default), or the file's"},
    {"checkpoint", 0, FLAG_COUNT, AT(checkpoint), "N", "export",
     "RUN/checkpoint-N instead of the end of the run"},
    {"no-check", 0, FLAG_BOOL, AT(no_check), NULL, "export",
     "do not evaluate the merged model beside base and adapter"},
    {"text", 0, FLAG_TEXT, AT(text), "S", "tokens", "text to tokenize"},
    {"limit", 0, FLAG_COUNT, AT(limit), "N", "tokens", "show at most N pairs (default 3)"},
    {"check", 0, FLAG_BOOL, AT(check), NULL, "fmt", "exit 1 if the file is not formatted"},
    {"json", 0, FLAG_BOOL, AT(json), NULL, "check plan eval generate bench settings tokens",
     "one JSON document on stdout"},
    {"warn", 'W', FLAG_LIST, AT(warn), "no-NAME", RUNS,
     "silences the warnings that end in [-WNAME]"},
    {"quiet", 'q', FLAG_BOOL, AT(quiet), NULL, "*", "no progress"},
    {"log-every", 0, FLAG_COUNT, AT(log_every), "N", "train", "plain progress line every N steps"},
    {"color", 0, FLAG_TEXT, AT(color), "auto|always|never", "*", "colour of diagnostics"},
    {"threads", 0, FLAG_COUNT, AT(threads), "N", RUNS, "CPU threads (default: all)"},
    {"cc", 0, FLAG_TEXT, AT(cc), "COMMAND", COMPILES " doctor",
     "C compiler of the CPU's kernels (default: $DPOC_CC, else cc)"},
    {"cache-dir", 0, FLAG_TEXT, AT(cache_dir), "DIR", RUNS " cache", "kernel cache"},
    {"dump-after", 0, FLAG_TEXT, AT(dump_after), "PASS|all", COMPILES,
     "print the graph after a pass"},
    {"dump-dir", 0, FLAG_TEXT, AT(dump_dir), "DIR", COMPILES, "put dumps there"},
    {"help", 'h', FLAG_BOOL, AT(help), NULL, "*", "this text"},
    {"version", 0, FLAG_BOOL, AT(version), NULL, "*", "version"},
};

static bool takes(const Flag *f, const char *verb) {
    if (strcmp(f->verbs, "*") == 0) return true;
    size_t n = strlen(verb);
    for (const char *p = f->verbs; (p = strstr(p, verb)) != NULL; p += n)
        if ((p == f->verbs || p[-1] == ' ') && (p[n] == ' ' || p[n] == 0)) return true;
    return false;
}

bool options_flag(int i, FlagInfo *out) {
    if (i >= (int)COUNT(flags)) return false;
    const Flag *f = &flags[i];
    *out = (FlagInfo){f->name, f->value, f->help, f->letter, f->kind == FLAG_MAYBE};
    return true;
}

bool options_flag_of(int i, const char *verb) {
    return takes(&flags[i], verb);
}

static const Flag *flag_by_name(const char *name, size_t n) {
    for (size_t i = 0; i < COUNT(flags); i++)
        if (strlen(flags[i].name) == n && strncmp(flags[i].name, name, n) == 0) return &flags[i];
    return NULL;
}

const Verb *verb_by_name(const Verb *verbs, int nverbs, const char *name) {
    for (int i = 0; i < nverbs; i++)
        if (strcmp(verbs[i].name, name) == 0) return &verbs[i];
    return NULL;
}

static bool usage_error(const char *what, const char *name, const char *const *names, int n) {
    const char *near = closest_name(name, names, n);
    fprintf(stderr, "dpoc: %s '%s'\n", what, name);
    if (near) fprintf(stderr, "help: did you mean '%s'?\n", near);
    return false;
}

static bool unknown_flag(const char *name, const char *verb) {
    const char *names[COUNT(flags)];
    int n = 0;
    for (size_t i = 0; i < COUNT(flags); i++)
        if (takes(&flags[i], verb)) names[n++] = flags[i].name;
    usage_error("unknown flag", name, names, n);
    fprintf(stderr, "help: `dpoc %s --help` lists what it takes\n", verb);
    return false;
}

static bool store_number(const Flag *f, const char *value, double *out) {
    char *end;
    bool whole = f->kind == FLAG_COUNT;
    double x = strtod(value, &end), least = whole, most = f->kind == FLAG_SHARE ? 1 : 1e9;
    if (*value && !*end && x >= least && x <= most && (!whole || x == floor(x))) {
        *out = x;
        return true;
    }
    fprintf(stderr, "dpoc: --%s wants a %snumber from %g to %g, not '%s'\n", f->name,
            whole ? "whole " : "", least, most, value);
    return false;
}

/* Stores a value; false after a message. */
static bool store(const Flag *f, const char *value, Options *out) {
    char *at = (char *)out + f->at;
    switch (f->kind) {
    case FLAG_BOOL:
        *(bool *)at = true;
        return true;
    case FLAG_MAYBE:
        out->resumes = true; /* --resume is the only one */ /* fallthrough */
    case FLAG_TEXT:
        *(const char **)at = value;
        return true;
    case FLAG_LIST: {
        OptionList *list = (OptionList *)(void *)at;
        if (list->n == MAX_LIST) {
            fprintf(stderr, "dpoc: more than %d times --%s\n", MAX_LIST, f->name);
            return false;
        }
        list->item[list->n++] = value;
        return true;
    }
    case FLAG_COUNT:
    case FLAG_NUMBER:
    case FLAG_SHARE:
        return store_number(f, value, (double *)(void *)at);
    }
    return false;
}

/* Takes argv[*i] (a flag) and perhaps the next word. */
static bool take_flag(int argc, char **argv, int *i, Options *out) {
    const char *word = argv[*i];
    const Flag *f = NULL;
    const char *value = NULL;
    if (word[1] == '-') {
        const char *eq = strchr(word, '=');
        f = flag_by_name(word + 2, eq ? (size_t)(eq - word) - 2 : strlen(word + 2));
        value = eq ? eq + 1 : NULL;
    } else {
        for (size_t k = 0; k < COUNT(flags); k++)
            if (flags[k].letter == word[1]) f = &flags[k];
        if (f && word[2]) value = word + 2;
    }
    if (!f || !takes(f, out->verb)) {
        char name[64];
        word += strspn(word, "-");
        snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
        return unknown_flag(name, out->verb);
    }
    if (f->kind == FLAG_BOOL && value) {
        fprintf(stderr, "dpoc: --%s takes no value\n", f->name);
        return false;
    }
    if (f->kind != FLAG_BOOL && f->kind != FLAG_MAYBE && !value) {
        if (*i + 1 >= argc) {
            fprintf(stderr, "dpoc: --%s wants a value (%s)\n", f->name, f->value);
            return false;
        }
        value = argv[++*i];
    }
    return store(f, value, out);
}

/* What the table can't say about the values. */
static bool options_agree(const Options *o) {
    static const char *const colors[] = {"auto", "always", "never"};
    bool known = !o->color;
    for (size_t i = 0; i < COUNT(colors) && !known; i++) known = !strcmp(o->color, colors[i]);
    if (!known) fprintf(stderr, "dpoc: --color is auto, always or never, not '%s'\n", o->color);
    if (o->resumes && o->overwrite)
        fprintf(stderr, "dpoc: --resume and --overwrite exclude each other\n");
    bool silenced = true;
    for (int i = 0; i < o->warn.n; i++) {
        if (strncmp(o->warn.item[i], "no-", 3) == 0) continue;
        fprintf(stderr, "dpoc: -W%s: all warnings are on; -Wno-NAME silences those of a name\n",
                o->warn.item[i]);
        silenced = false;
    }
    bool many = o->threads > 1024;
    if (many) fprintf(stderr, "dpoc: --threads=%g: at most 1024\n", o->threads);
    bool mixed = o->json && o->dump_after && !o->dump_dir;
    if (mixed) fprintf(stderr, "dpoc: --dump-after with --json needs --dump-dir=DIR\n");
    return known && silenced && !many && !mixed && !(o->resumes && o->overwrite);
}

bool options_parse(int argc, char **argv, const Verb *verbs, int nverbs, Options *out) {
    *out = (Options){.verbs = verbs,
                     .nverbs = nverbs,
                     .program = argv[0],
                     .threads = NAN,
                     .log_every = NAN,
                     .max_tokens = NAN,
                     .temperature = NAN,
                     .top_p = NAN,
                     .top_k = NAN,
                     .at_once = NAN,
                     .context = NAN,
                     .limit = NAN,
                     .runs = NAN,
                     .threshold = NAN,
                     .checkpoint = NAN};
    int i = 1;
    if (argc > 1 && argv[1][0] != '-')
        out->verb = argv[i++];
    else
        out->verb = "";
    const Verb *verb = verb_by_name(verbs, nverbs, out->verb);
    if (*out->verb && !verb) {
        const char *names[64];
        int n = 0;
        for (; n < nverbs && n < 64; n++) names[n] = verbs[n].name;
        usage_error("unknown verb", out->verb, names, n);
        fprintf(stderr, "help: `dpoc --help` lists the verbs\n");
        return false;
    }
    bool flags_end = false;
    for (; i < argc; i++) {
        const char *word = argv[i];
        if (!flags_end && strcmp(word, "--") == 0) {
            flags_end = true;
        } else if (!flags_end && word[0] == '-' && word[1] != 0) {
            if (!take_flag(argc, argv, &i, out)) return false;
        } else if (out->args.n == MAX_LIST || (*out->verb && out->args.n == verb->args)) {
            fprintf(stderr, "dpoc: '%s' is one argument too many\n", word);
            return false;
        } else {
            out->args.item[out->args.n++] = word;
        }
    }
    if (!out->device) out->device = getenv("DPOC_DEVICE");
    if (out->debug) setenv("DPOC_DEBUG", out->debug, 1);
    return options_agree(out);
}

void options_help(FILE *out, const Verb *verbs, int nverbs, const Verb *verb) {
    if (!verb) {
        fprintf(out, "usage: dpoc VERB [FILE.dpo] [flags]        dpoc VERB -h for the flags of one "
                     "verb\n\n");
        for (int i = 0; i < nverbs; i++)
            fprintf(out, "  %-10s %s\n", verbs[i].name, verbs[i].sentence);
        return;
    }
    fprintf(out, "usage: dpoc %s\n\n%s\n\n", verb->usage, verb->sentence);
    for (size_t i = 0; i < COUNT(flags); i++) {
        const Flag *f = &flags[i];
        if (!takes(f, verb->name)) continue;
        char left[80];
        const char *open = f->kind == FLAG_MAYBE ? "[=" : f->value ? "=" : "";
        const char *shut = f->kind == FLAG_MAYBE ? "]" : "";
        char letter[8] = "";
        if (f->letter) snprintf(letter, sizeof letter, "-%c, ", f->letter);
        snprintf(left, sizeof left, "%s--%s%s%s%s", letter, f->name, open, f->value ? f->value : "",
                 shut);
        fprintf(out, "  %-34s %s\n", left, f->help);
    }
}

bool options_color(const Options *options, FILE *stream) {
    if (options->color && strcmp(options->color, "always") == 0) return true;
    if (options->color && strcmp(options->color, "never") == 0) return false;
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    if ((no && *no) || (term && strcmp(term, "dumb") == 0)) return false;
    return isatty(fileno(stream));
}
