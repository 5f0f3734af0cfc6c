/* verbs_completion.c: `dpoc completion bash|zsh|fish`: what a shell needs to complete verbs,
 * flags and the values that are a choice.
 *
 * Relies on the tables of verbs and flags alone (options.h): a flag that is there is completed.
 */
#include "work.h"

#include <ctype.h>
#include <string.h>

/* ' inside of '..': zsh leaves the quotes for it, fish escapes it; `also` gets a backslash. */
static void put_quoted(const char *s, const char *quote, const char *also) {
    for (; *s; s++) {
        if (*s == '\'') {
            fputs(quote, stdout);
        } else {
            if (strchr(also, *s)) putchar('\\');
            putchar(*s);
        }
    }
}

/* The words of "auto|cpu|cuda[:n]", or the passes for "PASS"; whether there are any. */
static bool put_choices(const char *value, const char *before) {
    if (!value) return false;
    bool passes = strncmp(value, "PASS", 4) == 0, some = false;
    for (int i = 0; passes && pass_table[i].name; i++, some = true)
        printf("%s%s", some ? " " : before, pass_table[i].name);
    if (!strchr(value, '|')) return some;
    for (const char *at = value; at; at = strchr(at, '|')) {
        at += *at == '|';
        if (isupper((unsigned char)*at) || *at == '[') continue;
        printf("%s%.*s", some ? " " : before, (int)strcspn(at, "|["), at);
        some = true;
    }
    return some;
}

/* What may stand behind a verb instead of a file. */
static const char *words_of(const char *verb) {
    if (!strcmp(verb, "cache")) return "list clear";
    return strcmp(verb, "completion") ? NULL : "bash zsh fish";
}

static void put_verbs(const Options *o) {
    for (int i = 0; i < o->nverbs; i++) printf("%s%s", i ? " " : "", o->verbs[i].name);
}

/* ---- bash ------------------------------------------------------------------------------------ */

static void bash_verb(const char *verb) {
    FlagInfo f;
    printf("        %s) words='", verb);
    for (int i = 0; options_flag(i, &f); i++)
        if (options_flag_of(i, verb)) printf("--%s%s ", f.name, f.value && !f.maybe ? "=" : "");
    printf("' ;;\n");
}

static void bash(const Options *o) {
    FlagInfo f;
    printf("# eval \"$(dpoc completion bash)\", or as a file: "
           "~/.local/share/bash-completion/completions/dpoc\n"
           "_dpoc() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} flag= words=\n"
           "    COMPREPLY=()\n"
           "    case $prev in -*) flag=$prev ;; =) flag=${COMP_WORDS[COMP_CWORD-2]} ;; esac\n"
           "    [[ $cur == = ]] && cur=\n"
           "    case $flag in\n");
    for (int i = 0; options_flag(i, &f); i++) {
        char before[64];
        snprintf(before, sizeof before, "    --%s) words='", f.name);
        if (put_choices(f.value, before)) printf("' ;;\n");
    }
    printf("    esac\n    if [[ $COMP_CWORD == 1 ]]; then\n        words='");
    put_verbs(o);
    printf("'\n    elif [[ $cur == -* ]]; then\n        case ${COMP_WORDS[1]} in\n");
    for (int i = 0; i < o->nverbs; i++) bash_verb(o->verbs[i].name);
    printf("        esac\n    elif [[ -z $flag ]]; then\n        case ${COMP_WORDS[1]} in\n");
    for (int i = 0; i < o->nverbs; i++)
        if (words_of(o->verbs[i].name))
            printf("        %s) words='%s' ;;\n", o->verbs[i].name, words_of(o->verbs[i].name));
    printf("        esac\n    fi\n"
           "    if [[ -n $words ]]; then\n"
           "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
           "        [[ ${#COMPREPLY[@]} == 1 && $COMPREPLY == *= ]] && compopt -o nospace\n"
           "    else\n"
           "        compopt -o filenames\n"
           "        local IFS=$'\\n'\n"
           "        COMPREPLY=($(compgen -f -- \"$cur\"))\n"
           "    fi\n"
           "} 2>/dev/null\n"
           "complete -F _dpoc dpoc\n");
}

/* ---- zsh ------------------------------------------------------------------------------------- */

static void zsh_flag(const FlagInfo *f) {
    printf(" \\\n            '*--%s%s[", f->name, !f->value ? "" : f->maybe ? "=-" : "=");
    put_quoted(f->help, "'\\''", "[]\\");
    putchar(']');
    if (f->value) {
        printf(f->maybe ? "::value:" : ":value:");
        printf(put_choices(f->value, "(") ? ")" : "_files");
    }
    putchar('\'');
}

static void zsh(const Options *o) {
    FlagInfo f;
    printf(
        "#compdef dpoc\n# eval \"$(dpoc completion zsh)\", or as a file: _dpoc in a directory of "
        "$fpath\n_dpoc() {\n    if (( CURRENT == 2 )); then\n        local -a verbs=(\n");
    for (int i = 0; i < o->nverbs; i++) {
        printf("            '%s:", o->verbs[i].name);
        put_quoted(o->verbs[i].sentence, "'\\''", "");
        printf("'\n");
    }
    printf("        )\n        _describe verb verbs\n        return\n    fi\n"
           "    case $words[2] in\n");
    for (int i = 0; i < o->nverbs; i++) {
        const char *verb = o->verbs[i].name, *words = words_of(verb);
        printf("        %s) _arguments", verb);
        for (int k = 0; options_flag(k, &f); k++)
            if (options_flag_of(k, verb)) zsh_flag(&f);
        printf(words ? " \\\n            '*:word:(%s)' ;;\n"
                     : " \\\n            '*:file:_files' ;;\n",
               words);
    }
    printf("    esac\n}\n"
           "if [[ $funcstack[1] == _dpoc ]]; then _dpoc \"$@\"; else compdef _dpoc dpoc; fi\n");
}

/* ---- fish ------------------------------------------------------------------------------------ */

static void fish(const Options *o) {
    FlagInfo f;
    printf("# dpoc completion fish | source, or as a file: ~/.config/fish/completions/dpoc.fish\n");
    for (int i = 0; i < o->nverbs; i++) {
        printf("complete -c dpoc -f -n __fish_use_subcommand -a %s -d '", o->verbs[i].name);
        put_quoted(o->verbs[i].sentence, "\\'", "\\");
        printf("'\n");
        if (words_of(o->verbs[i].name))
            printf("complete -c dpoc -f -n '__fish_seen_subcommand_from %s' -a '%s'\n",
                   o->verbs[i].name, words_of(o->verbs[i].name));
    }
    for (int k = 0; options_flag(k, &f); k++) {
        printf("complete -c dpoc -n '__fish_seen_subcommand_from");
        for (int i = 0; i < o->nverbs; i++)
            if (options_flag_of(k, o->verbs[i].name)) printf(" %s", o->verbs[i].name);
        printf("' -l %s", f.name);
        if (f.letter) printf(" -s %c", f.letter);
        if (put_choices(f.value, " -x -a '"))
            printf("'");
        else if (f.value && !f.maybe)
            printf(" -r -F");
        printf(" -d '");
        put_quoted(f.help, "\\'", "\\");
        printf("'\n");
    }
}

int verb_completion(const Options *o) {
    const char *shell = o->args.n ? o->args.item[0] : "";
    if (!strcmp(shell, "bash"))
        bash(o);
    else if (!strcmp(shell, "zsh"))
        zsh(o);
    else if (!strcmp(shell, "fish"))
        fish(o);
    else
        return work_usage("completion bash, completion zsh or completion fish");
    return EXIT_OK;
}
