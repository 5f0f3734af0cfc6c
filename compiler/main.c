/* main.c: the verbs, one row each; everything else is behind them. */
#include "../runtime/debug.h"
#include "../runtime/job/ranks.h"
#include "work.h"

#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const Verb verbs[] = {
    {"init", "init NAME", "write a commented starter file NAME.dpo", verb_init, 1},
    {"check", "check FILE.dpo [--model DIR] [--data PAIRS]",
     "everything that can be known before running", verb_check, 1},
    {"fmt", "fmt FILE.dpo", "canonical formatting, in place (`-` reads stdin)", verb_fmt, MAX_LIST},
    {"plan", "plan FILE.dpo --model DIR [--json]", "parameters, FLOPs, exact peak memory, kernels",
     verb_plan, 1},
    {"compile", "compile FILE.dpo --model DIR [--arch=sm_80] -o OUT",
     "write the plan and its kernels", verb_compile, 1},
    {"view", "view FILE.dpo --model DIR --html=F | --svg=F | --dot=F",
     "the graph through the passes, the memory map", verb_view, 1},
    {"train", "train FILE.dpo --model DIR --data PAIRS -o RUN", "preference training", verb_train,
     1},
    {"eval", "eval FILE.dpo --model DIR --data PAIRS [--adapter DIR] [--json]",
     "loss, rewards and log-probabilities", verb_eval, 1},
    {"generate",
     "generate --model DIR [--adapter [NAME=]DIR] --prompt TEXT | --chat FILE | --prompts FILE",
     "answers to prompts, also before and after", verb_generate, 1},
    {"export", "export RUN --format=peft|merged|gguf-lora -o OUT",
     "what was trained, for other tools", verb_export, 1},
    {"bench", "bench FILE.dpo --model DIR [--variants a,b] [--json]",
     "compare variants, interleaved", verb_bench, 1},
    {"verify", "verify FILE.dpo --model DIR [--device D]",
     "device results against the double-precision evaluator", verb_verify, 1},
    {"tokens", "tokens [FILE.dpo] --model DIR [--data PAIRS] [--text S] [--json]",
     "ids, pieces and loss mask as training sees them", verb_tokens, 1},
    {"report", "report RUN [RUN2 ..] [-o FILE.html|FILE.svg]",
     "curves and summary of runs, finished or going on", verb_report, MAX_LIST},
    {"passes", "passes", "the passes and why they stand in this order", verb_passes, 0},
    {"ops", "ops", "the op table", verb_ops, 0},
    {"settings", "settings [--json]", "all keys with types, ranges and defaults", verb_settings, 0},
    {"doctor", "doctor", "hardware and libraries found, rejected and missing", verb_doctor, 0},
    {"cache", "cache list|clear", "the kernel cache", verb_cache, 1},
    {"completion", "completion bash|zsh|fish", "what the shell completes with, for `eval`",
     verb_completion, 1},
};

/* Threads that wait spin for a moment only: on a busy machine libgomp's default (300,000 rounds)
 * made a
 * small training step take twenty times its work.  libgomp reads this before main, so once more. */
static void wait_calmly(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    execv("/proc/self/exe", argv); /* where that fails the program goes on as it is */
}

/* One of several processes that mpirun or srun started. */
static int run_together(const Verb *verb, const Options *options) {
    if (verb->run != verb_train) {
        fprintf(stderr, "dpoc: `%s` is the work of one process, of which %d were started\n",
                options->verb, ranks_started());
        return EXIT_USAGE;
    }
    Err err = {0};
    return ranks_open(&err) ? ranks_close(verb->run(options)) : err.code;
}

/* `dpoc plan .. | head`: not a failure worth a word. */
static bool reader_left(void) {
    struct pollfd out = {.fd = STDOUT_FILENO};
    return poll(&out, 1, 0) == 1 && (out.revents & POLLERR);
}

int main(int argc, char **argv) {
    wait_calmly(argv);
    setlocale(LC_CTYPE, "C.UTF-8");
    signal(SIGPIPE, SIG_IGN);
    Options options;
    if (!options_parse(argc, argv, verbs, COUNT(verbs), &options)) return EXIT_USAGE;
    if (!debug_known(stderr)) return EXIT_USAGE;
    const Verb *verb = verb_by_name(verbs, COUNT(verbs), options.verb);
    int code = EXIT_OK;
    if (options.version) {
        printf("dpoc %s\n", VERSION);
    } else if (!verb || options.help) {
        options_help(options.help ? stdout : stderr, verbs, COUNT(verbs), verb);
        code = options.help ? EXIT_OK : EXIT_USAGE;
    } else {
        code = ranks_started() > 1 ? run_together(verb, &options) : verb->run(&options);
    }
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == EXIT_OK) {
        if (!reader_left()) fprintf(stderr, "dpoc: cannot write the result\n");
        return EXIT_IO;
    }
    return code;
}
