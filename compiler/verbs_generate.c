/* verbs_generate.c: `generate`: answers to prompts. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/job/job.h"
#include "work.h"

static void add_stop(int32_t *stop, int *n, int max, int32_t id) {
    if (id >= 0 && *n < max) stop[(*n)++] = id;
}

/* eos of the tokenizer and of generation_config.json (a number or a list). */
static int stop_tokens(const Work *w, int32_t *stop, int max) {
    int n = 0;
    add_stop(stop, &n, max, w->tokenizer->eos);
    json_t *config =
        json_load_file(path_join(w->arena, work_model_dir(w), "generation_config.json"), 0, NULL);
    json_t *eos = json_object_get(config, "eos_token_id");
    if (json_is_integer(eos)) add_stop(stop, &n, max, (int32_t)json_integer_value(eos));
    for (size_t i = 0; json_is_array(eos) && i < json_array_size(eos); i++)
        add_stop(stop, &n, max, (int32_t)json_integer_value(json_array_get(eos, i)));
    json_decref(config);
    return n;
}

/* Continues `ids`, which stand for `text`. */
static bool answer_ids(Work *w, const char *text, Ids *ids) {
    const Options *o = w->options;
    int32_t stop[64];
    int64_t prompt = ids->n;
    GenerateJob job = {.exec = w->exec,
                       .plan = w->plan,
                       .tokenizer = w->tokenizer,
                       .max_tokens = isnan(o->max_tokens) ? 128 : (int64_t)o->max_tokens,
                       .temperature = isnan(o->temperature) ? 0 : o->temperature,
                       .top_p = isnan(o->top_p) ? 1 : o->top_p,
                       .seed = work_seed(w),
                       .stop = stop,
                       .nstop = stop_tokens(w, stop, COUNT(stop)),
                       .stream = o->json ? NULL : stdout};
    bool ok = generate(&job, ids, &w->err);
    if (ok && o->json) {
        Text out = {0}, line = {0};
        tokenizer_decode(w->tokenizer, ids->v + prompt, ids->n - prompt, true, &out);
        text_add(&line, "{\"prompt\":");
        json_escape(&line, text);
        text_add(&line, ",\"answer\":");
        json_escape(&line, out.data ? out.data : "");
        text_add(&line, ",\"prompt_tokens\":%lld,\"answer_tokens\":%lld}\n", (long long)prompt,
                 (long long)(ids->n - prompt));
        fputs(line.data, stdout);
        text_free(&out);
        text_free(&line);
    } else if (ok) {
        fputc('\n', stdout);
    }
    return ok;
}

static int answer(Work *w, const Template *t, const char *text, bool chat, bool echo) {
    Ids ids = {0};
    if (echo && !w->options->json) fputs(text, stdout);
    bool ok = work_prompt(w, t, text, chat, &ids) && answer_ids(w, text, &ids);
    ids_free(&ids);
    return ok ? EXIT_OK : work_fail(w);
}

/* A conversation: [{"role": .., "content": ..}, ..]. */
static bool answer_messages(Work *w, const Template *t, const char *path, const json_t *list) {
    int n = (int)json_array_size(list);
    if (t->kind == TEMPLATE_NONE)
        return fail(&w->err, EXIT_USAGE, "%s is a conversation: name a data.template", path);
    if (n == 0) return fail(&w->err, EXIT_IO, "%s: no message", path);
    Message *m = NEW_ARRAY(w->arena, Message, n);
    for (int i = 0; i < n; i++) {
        const json_t *one = json_array_get(list, (size_t)i);
        m[i].role = json_string_value(json_object_get(one, "role"));
        m[i].content = json_string_value(json_object_get(one, "content"));
        if (!m[i].role || !m[i].content)
            return fail(&w->err, EXIT_IO, "%s: message %d wants \"role\" and \"content\"", path,
                        i + 1);
        m[i].len = strlen(m[i].content);
    }
    Ids ids = {0};
    bool ok =
        template_encode(t, m, n, true, &ids, &w->err) && answer_ids(w, m[n - 1].content, &ids);
    ids_free(&ids);
    return ok;
}

/* One line of a file of prompts: text, or {"prompt": ..}. */
static int answer_line(Work *w, const Template *t, const char *path, int number, const char *line,
                       bool chat) {
    json_error_t e;
    json_t *o = *line == '{' ? json_loads(line, 0, &e) : NULL;
    const char *prompt = *line == '{' ? json_string_value(json_object_get(o, "prompt")) : line;
    int code = EXIT_OK;
    if (prompt) {
        code = answer(w, t, prompt, chat, false);
    } else {
        fail(&w->err, EXIT_IO, "%s:%d: %s", path, number, o ? "no text \"prompt\"" : e.text);
        code = work_fail(w);
    }
    json_decref(o);
    return code;
}

/* --chat FILE: a conversation, or one prompt a line. */
static int answer_file(Work *w, const Template *t, const char *path, bool chat) {
    size_t len;
    char *text = file_read(path, &len, &w->err);
    if (!text) return work_fail(w);
    int code = EXIT_OK, number = 1;
    json_error_t e;
    json_t *list = text[strspn(text, " \t\r\n")] == '[' ? json_loads(text, 0, &e) : NULL;
    if (list) {
        if (!answer_messages(w, t, path, list)) code = work_fail(w);
    } else {
        for (char *line = text, *end; *line && code == EXIT_OK; line = end, number++) {
            end = line + strcspn(line, "\n");
            if (*end) *end++ = 0;
            if (*line) code = answer_line(w, t, path, number, line, chat);
        }
    }
    json_decref(list);
    free(text);
    return code;
}

int verb_generate(const Options *o) {
    if (!o->model && !o->spec) return work_usage("generate needs --model DIR");
    if (!o->prompt && !o->chat) return work_usage("generate needs --prompt TEXT or --chat FILE");
    Work w;
    work_init(&w, o);
    Template template;
    static const bool want[NUNIT] = {[UNIT_LOGITS] = true};
    int code = work_check(&w, work_model_spec(o), false);
    if (code == EXIT_OK) code = work_template(&w, &template);
    if (code == EXIT_OK && !w.tokenizer) code = work_usage("this checkpoint has no tokenizer");
    if (code == EXIT_OK) code = work_device(&w, NULL);
    if (code == EXIT_OK) code = work_compile(&w, NULL, want);
    if (code == EXIT_OK) code = work_open(&w);
    bool chat =
        code == EXIT_OK && template.kind != TEMPLATE_NONE && template.kind != TEMPLATE_PLAIN;
    if (code == EXIT_OK && o->prompt) code = answer(&w, &template, o->prompt, false, true);
    if (code == EXIT_OK && o->chat) code = answer_file(&w, &template, o->chat, chat);
    work_close(&w);
    return code;
}
