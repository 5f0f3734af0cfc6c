/* template_open.c: the built-in templates, and which of them a checkpoint has (template.h).
 *
 * A Jinja program is not run: it is recognised by what it contains, as llama.cpp does.  What it
 * says beyond these pieces (tools, images, reasoning) is not here; data that needs it is refused.
 */
#include "template.h"
#include "json.h"

#include <stdlib.h> /* free */
#include <string.h> /* strstr */

#define LLAMA3(role, content)                                                                      \
    "{<|start_header_id|>}" role "{<|end_header_id|>}\n\n" content "{<|eot_id|>}"

static const TemplateDef builtins[] = {
    {.name = "plain",
     .begin = "{bos?}",
     .message = "{content}",
     .between = "\n",
     .end = "{eos?}",
     .generation = "\n"},
    {.name = "llama3",
     .begin = "{bos}",
     .message = LLAMA3("{role}", "{content|trim}"),
     .generation = "{<|start_header_id|>}assistant{<|end_header_id|>}\n\n"},
    {.name = "llama3.1",
     .begin = "{bos}",
     .system = LLAMA3("system", "Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"
                                "{content|trim}"),
     .message = LLAMA3("{role}", "{content|trim}"),
     .generation = "{<|start_header_id|>}assistant{<|end_header_id|>}\n\n",
     .default_system = ""},
    {.name = "chatml",
     .message = "{<|im_start|>}{role}\n{content}{<|im_end|>}\n",
     .generation = "{<|im_start|>}assistant\n"},
    {.name = "llama2",
     .system = "<<SYS>>\n{content}\n<</SYS>>\n\n",
     .user = "{bos}[INST] {content|trim} [/INST]",
     .assistant = " {content|trim} {eos}",
     .fold_system = true},
    {.name = "mistral", /* Mistral-7B-Instruct-v0.3: [INST] is a token */
     .begin = "{bos}",
     .system = "{content}\n\n",
     .user = "{[INST]} {content}{[/INST]}",
     .assistant = " {content|trim}{eos}",
     .fold_system = true},
    {.name = "mistral_v0.1", /* as published first; [INST] is text */
     .begin = "{bos}",
     .system = "{content}\n\n",
     .user = "[INST] {content} [/INST]",
     .assistant = "{content}{eos} ",
     .fold_system = true},
    {.name = "mistral_v0.2", /* as published first, and Mixtral */
     .begin = "{bos}",
     .system = "{content}\n\n",
     .user = "[INST] {content} [/INST]",
     .assistant = "{content}{eos}",
     .fold_system = true},
    {.name = "mistral_v1", /* what v0.1, v0.2 and Mixtral have since 2024 */
     .begin = "{bos}",
     .system = "{content}\n\n",
     .user = " [INST] {content} [/INST]",
     .assistant = " {content}{eos}",
     .fold_system = true},
    {.name = "zephyr", /* and TinyLlama */
     .message = "<|{role}|>\n{content}{eos}\n",
     .generation = "<|assistant|>\n"},
};
const char *const template_names[] = {
    "plain",        "llama3",       "llama3.1",   "chatml", "llama2", "mistral",
    "mistral_v0.1", "mistral_v0.2", "mistral_v1", "zephyr", NULL};
const char template_choices[] = "plain, llama3, llama3.1, chatml, llama2, mistral (also _v0.1, "
                                "_v0.2, _v1), zephyr or a `template` of your own";

const TemplateDef *template_builtin(const char *name) {
    for (size_t i = 0; i < COUNT(builtins); i++)
        if (strcmp(builtins[i].name, name) == 0) return &builtins[i];
    return NULL;
}

/* ---- which template a checkpoint has --------------------------------------------------------- */

/* The template of a list of {name, template}: the default one, else the first. */
static const json_t *of_list(const json_t *list) {
    const json_t *found = NULL;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i), *name = json_object_get(item, "name");
        bool standard = json_is_string(name) && strcmp(json_string_value(name), "default") == 0;
        if (standard || !found) found = json_object_get(item, "template");
    }
    return found;
}

/* "chat_template" of a JSON file (malloc), or NULL; err for a file that can't be read. */
static char *jinja_of_json(const char *path, Err *err) {
    json_error_t e;
    size_t len;
    char *text = file_read(path, &len, err), *source = NULL;
    json_t *root = text ? json_parse(text, len, 0, &e) : NULL;
    if (text && !root) fail(err, EXIT_IO, "%s:%d: %s", path, e.line, e.text);
    const json_t *v = json_object_get(root, "chat_template");
    if (json_is_array(v)) v = of_list(v);
    if (json_is_string(v)) source = strdup(json_string_value(v));
    json_decref(root);
    free(text);
    return source;
}

/* The checkpoint's Jinja source (malloc), or NULL. */
static char *jinja_source(const char *dir, Err *err) {
    static const char *const files[] = {"chat_template.json", "tokenizer_config.json"};
    Arena *arena = arena_new();
    char *own = path_join(arena, dir, "chat_template.jinja"), *source = NULL;
    size_t len;
    if (file_exists(own)) source = file_read(own, &len, err);
    for (size_t i = 0; i < COUNT(files) && !source && !err->code; i++) {
        char *path = path_join(arena, dir, files[i]);
        if (file_exists(path)) source = jinja_of_json(path, err);
    }
    arena_free(arena);
    return source;
}

/* A default system message: what stands between the head of a system's turn and its end in one
 * literal (*out stays NULL: there is none).  False for one with escapes or expressions. */
static bool default_system(const char *jinja, const char **out) {
    const char *head = "<|im_start|>system";
    for (const char *p = jinja; (p = strstr(p, head));) {
        char quote = p > jinja && (p[-1] == '\'' || p[-1] == '"') ? p[-1] : 0;
        p += strlen(head);
        if (strncmp(p, "\\n", 2) == 0)
            p += 2;
        else if (*p == '\n')
            p++;
        else
            continue;
        const char *end = strstr(p, "<|im_end|>");
        size_t n = end ? (size_t)(end - p) : 0;
        if (n == 0 || *p == '\'' || *p == '"' || (quote && memchr(p, quote, n))) continue;
        if (memchr(p, '\\', n) || memchr(p, '{', n)) return false;
        *out = intern_n(p, n);
        return true;
    }
    return true;
}

static bool has(const char *jinja, const char *text) {
    return strstr(jinja, text) != NULL;
}

static bool trims(const char *jinja) {
    return has(jinja, "|trim") || has(jinja, "| trim") || has(jinja, "strip()");
}

/* The templates of Mistral and Llama 2 differ in spaces alone. */
static const char *recognise_inst(const char *jinja, TemplateDef *out, const char **why) {
    const char *name = NULL;
    if (has(jinja, "<<SYS>>")) {
        name = trims(jinja) ? "llama2" : NULL;
        if (!name) *why = "it is Llama 2's without trimming";
    } else if (has(jinja, "[SYSTEM_PROMPT]")) {
        *why = "it has [SYSTEM_PROMPT] turns (Mistral Small 3 and later)";
    } else if (has(jinja, "' [INST] '")) {
        name = "mistral_v1";
    } else if (has(jinja, "'[INST] '") && has(jinja, "' [/INST]'") && !has(jinja, "' ' + ")) {
        name = has(jinja, "eos_token + ' '") ? "mistral_v0.1" : "mistral_v0.2";
    } else if (has(jinja, "\"[INST] \"") && has(jinja, "\"[/INST]\"")) {
        name = "mistral";
    } else {
        *why = "its [INST] turns are not those of Llama 2 or Mistral-7B";
    }
    if (!name) return NULL;
    *out = *template_builtin(name);
    if (strcmp(name, "mistral") == 0 && !trims(jinja)) out->assistant = " {content}{eos}";
    return name;
}

static const char *recognise_chatml(const char *jinja, TemplateDef *out, const char **why) {
    if (has(jinja, "think>"))
        *why = "it writes <think> blocks, as Qwen3's does";
    else if (has(jinja, "<|im_sep|>"))
        *why = "it is Phi-4's";
    else if (!has(jinja, "<|im_end|>\n") && !has(jinja, "<|im_end|>\\n") &&
             !has(jinja, "<|im_end|>' + '\\n'") && !has(jinja, "<|im_end|>' + '\n'"))
        *why = "its turns do not end with <|im_end|> and a newline";
    const char *system = NULL;
    if (!*why && !default_system(jinja, &system))
        *why = "its default system message is not plain text";
    if (*why) return NULL;
    *out = *template_builtin("chatml");
    if (trims(jinja)) out->message = "{<|im_start|>}{role}\n{content|trim}{<|im_end|>}\n";
    if (has(jinja, "bos_token")) out->begin = "{bos}";
    out->default_system = system;
    return out->name;
}

/* <|user|>, a newline, the content and eos: Zephyr's; Tulu's users end with a newline. */
static bool is_zephyr(const char *jinja) {
    const char *user = strstr(jinja, "'<|user|>\n'");
    if (!user) user = strstr(jinja, "'<|user|>\\n'");
    const char *eos = user ? strstr(user, "eos_token") : NULL;
    const char *end = user ? strstr(user, "}}") : NULL;
    return eos && end && eos < end;
}

bool template_recognise(const char *jinja, TemplateDef *out, const char **why) {
    const char *name = NULL;
    *why = NULL;
    if (has(jinja, "<|start_header_id|>") && has(jinja, "<|end_header_id|>")) {
        name = has(jinja, "Cutting Knowledge Date") ? "llama3.1" : "llama3";
        *out = *template_builtin(name);
        if (!trims(jinja)) out->message = LLAMA3("{role}", "{content}");
    } else if (has(jinja, "<|im_start|>")) {
        name = recognise_chatml(jinja, out, why);
    } else if (has(jinja, "[INST]")) {
        name = recognise_inst(jinja, out, why);
    } else if (is_zephyr(jinja)) {
        name = "zephyr";
        *out = *template_builtin(name);
    } else if (has(jinja, "<start_of_turn>")) {
        *why = "it is Gemma's";
    } else if (has(jinja, "<|user|>") && has(jinja, "<|end|>")) {
        *why = "it is Phi-3's";
    }
    return name != NULL;
}

static bool detect(Template *out, const char *dir, Err *err) {
    char *source = jinja_source(dir, err);
    if (err->code) return false;
    if (!source) return true; /* TEMPLATE_NONE */
    const char *why;
    bool known = template_recognise(source, &out->def, &why);
    free(source);
    if (!known)
        return fail(err, EXIT_INPUT,
                    "%s: its chat template is not one of those known here%s%s; set data.template "
                    "to %s (grammar/README.md, \"Chat templates\")",
                    dir, why ? ": " : "", why ? why : "", template_choices);
    out->kind = TEMPLATE_CHAT;
    return true;
}

/* ---- opening --------------------------------------------------------------------------------- */

typedef struct First { /* the first fault, as an error */
    const Template *t;
    Err *err;
} First;

static void first_fault(void *self, const char *key, size_t at, size_t len, const char *text) {
    const First *first = self;
    (void)at, (void)len;
    fail(first->err, EXIT_INPUT, "template %s: %s: %s", first->t->def.name, key, text);
}

static bool fits(const Template *t, Err *err) {
    First first = {t, err};
    if (t->kind != TEMPLATE_NONE) template_check(&t->def, t->tokenizer, first_fault, &first);
    return err->code == 0;
}

bool template_open(Template *out, const char *name, const TemplateDef *own, const char *dir,
                   Tokenizer *tokenizer, const char *date, Err *err) {
    *out = (Template){.tokenizer = tokenizer, .date = date ? date : "26 Jul 2024"};
    if (!own && (!name || strcmp(name, "auto") == 0))
        return detect(out, dir, err) && fits(out, err);
    if (!own && strcmp(name, "none") == 0) return true;
    const TemplateDef *def = own ? own : template_builtin(name);
    if (!def)
        return fail(err, EXIT_INPUT, "there is no template \"%s\"; known are auto, none, %s", name,
                    template_choices);
    out->named = true;
    out->def = *def;
    out->kind = !own && strcmp(name, "plain") == 0 ? TEMPLATE_PLAIN : TEMPLATE_CHAT;
    return fits(out, err);
}
