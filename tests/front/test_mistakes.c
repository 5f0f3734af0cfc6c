/* test_mistakes.c: every mistake a person can make in a .dpo file, and what check says about it.
 *
 * A row is a piece of a good file, what stands in its place, what the caret of the first error
 * stands under, and parts of the text.
 */
#include "check.h"

/* The parts of models/llama3.dpo that layer mistakes are made in. */
static const char layers[] =
    "config { dim = hidden_size  ffn = intermediate_size  vocab = vocab_size  depth = "
    "num_hidden_layers\n"
    "    eps = rms_norm_eps  half = dim / 2  tied = tie_word_embeddings | false  other = "
    "nothing.here | dim }\n"
    "layer mlp(x) {\n"
    "    weight gate_proj[ffn, dim], up_proj[ffn, dim], down_proj[dim, ffn]\n"
    "    return linear(silu(linear(x, gate_proj)) * linear(x, up_proj), down_proj)\n"
    "}\n"
    "layer block(x) {\n"
    "    weight post_attention_layernorm[dim]\n"
    "    return x + mlp(rmsnorm(x, post_attention_layernorm, eps)) as mlp\n"
    "}\n"
    "layer trunk(tokens) {\n"
    "    weight embed_tokens[vocab, dim]\n"
    "    x = embed(tokens, embed_tokens)\n"
    "    for i in 0..depth { x = block(x) as layers[i] }\n"
    "    return x\n"
    "}\n"
    "model own(tokens) {\n"
    "    h = trunk(tokens) as model\n"
    "    weight lm_head[vocab, dim] = model.embed_tokens when tied\n"
    "    return linear(h, lm_head)\n"
    "}\n"
    "base = own\n"
    "policy = base\n"
    "reference = none\n"
    "objective o { loss = -logp(policy, chosen) / len(chosen) }\n";

/* ---- mistakes -------------------------------------------------------------------------------- */

typedef struct Mistake {
    const char *from, *to; /* in the good text */
    const char *at;        /* what the caret of the first error stands under */
    const char *message;   /* part of its text */
    const char *more;      /* part of some later line, or NULL */
} Mistake;

static const Mistake in_good[] = {
    /* settings */
    {"lr = 5e-6", "lrr = 5e-6", "lrr", "no setting 'run.lrr'", "did you mean 'run.lr'?"},
    {"lr = 5e-6", "lr = \"x\"", "\"x\"", "run.lr must be a number, not text", NULL},
    {"lr = 5e-6", "lr = 2000", "2000", "run.lr is 2000; it must lie between 0 and 1000", NULL},
    {"batch = 4", "batch = 0", "0", "run.batch is 0; it must lie between 1 and", NULL},
    {"batch = 4", "batch = 1.5", "1.5", "run.batch must be a whole number, not 1.5", NULL},
    {"batch = 4", "schedule = cosin", "cosin", "can't be 'cosin'", "did you mean 'cosine'?"},
    {"batch = 4", "fuse = on", "fuse", "no setting 'run.fuse'", "did you mean 'graph.fuse'?"},
    {"batch = 4", "lr = 1", "lr", "'lr' is set twice", "first here"},
    {"batch = 4", "learning_rate = 1", "learning_rate", "no setting 'run.learning_rate'",
     "here it is 'run.lr'"},
    {"batch = 4", "lora_alpha = 1", "lora_alpha", "no setting", "here it is 'pref.alpha'"},
    {"batch = 4", "report_to = wandb", "report_to", "no setting", "examples/wandb_replay.py"},
    {"batch = 4", "beta = 0.1", "beta", "no setting 'run.beta'", "did you mean 'dpo.beta'?"},
    {"batch = 4", "xyzzy = 4", "xyzzy", "no setting 'run.xyzzy'", "`dpoc settings`"},
    {"batch = 4", "batch = 4 GiB", "4 GiB", "run.batch is no size in bytes", NULL},
    {"memory = 40 GiB", "memory = a100", "a100", "can't be 'a100'", "a100_40g"},
    {"memory = 40 GiB", "fuse = 3", "3", "graph.fuse must be on or off, not a number", NULL},
    {"variant slow {", "variant slow { graph { fusee = off } ", "fusee", "no setting 'graph.fusee'",
     "graph.fuse"},
    {"from slow", "from slw", "slower", "variant 'slw' is not known", "did you mean 'slow'?"},
    /* names and parts */
    {"llama3.dpo", "lama3.dpo", "use \"lama3.dpo\"", "can't find \"lama3.dpo\"",
     "did you mean \"llama3.dpo\"?"},
    {"base = auto", "base = lama", "lama", "model or adapter 'lama' is not known",
     "did you mean 'llama'?"},
    {"base = auto", "base = mistral", "mistral", "model 'mistral' is not known here",
     "use \"mistral.dpo\""},
    {"base = auto", "base = other other = base", "base", "base is made of itself", NULL},
    {"base = auto", "base = auto base = auto", "base", "base is defined twice", "first here"},
    {"policy = base + pref\n", "", "dpo", "`policy` is missing", "policy = base + ADAPTER"},
    {"policy = base + pref", "policy = base * pref", "base * pref",
     "a model is base, base + adapter", NULL},
    {"policy = base + pref", "policy = base + perf", "perf", "model or adapter 'perf' is not known",
     "'pref'?"},
    {"policy = base + pref", "policy = base + pref + pref", "pref", "pref is added twice", NULL},
    {"policy = base + pref", "policy = base", "pref", "pref is trained, but no part of the policy",
     NULL},
    {"reference = base\n", "", "dpo", "asks for `reference`, which is missing", "reference = base"},
    {"reference = base", "reference = base + pref", "reference", "would move: pref is trained",
     "policy at start"},
    {"reference = base", "reference = none", "logp(reference, side)", "there is no reference",
     NULL},
    {"train pref", "", "pref", "neither trained nor loaded", "train pref"},
    {"train pref", "train perf", "perf", "'perf' is not known", "did you mean 'pref'?"},
    {"train pref", "train pref, base", "reference", "would move: its base is trained",
     "policy at start"},
    {"train pref", "train pref quantize base nf5 on all_linear", "nf5", "format 'nf5' is not known",
     "'nf4'?"},
    {"train pref", "train pref quantize base nf4(blok = 64) on all_linear", "blok",
     "'blok' is not known", "'block'?"},
    {"train pref", "train pref quantize base nf4 on \"embed_tokens\"", "nf4 on \"embed_tokens\"",
     "looked up by embed()", "declared here"},
    {"train pref", "train pref quantize base nf4 on \"*_prj\"", "\"*_prj\"", "matches no weight",
     NULL},
    /* adapters */
    {"rank = 4", "ranks = 4", "ranks", "'ranks' is not known", "did you mean 'rank'?"},
    {"rank = 4", "r = 4", "r", "'r' is not known", "here it is 'rank'"},
    {"rank = 4", "target_modules = all", "target_modules", "is not known", "on all_linear"},
    {"rank = 4", "rank = 0", "rank = 0", "rank is 0; it must lie between 1 and", NULL},
    {"rank = 4", "rank = 2.5", "rank = 2.5", "rank must be a whole number", NULL},
    {"rank = 4", "rank = \"x\"", "rank = \"x\"", "rank must be a number, not text", NULL},
    {"rank = 4", "dropout = 1.5", "dropout = 1.5", "dropout is 1.5", NULL},
    {"lora(", "lra(", "lra", "'lra' is not known", "did you mean 'lora'?"},
    {"on all_linear", "on all_liner", "all_liner", "'all_liner' is not known",
     "did you mean 'all_linear'?"},
    {"on all_linear", "on \"*.q_prj\"", "\"*.q_prj\"", "matches no weight",
     "did you mean \"*.q_proj\"?"},
    {"on all_linear", "on \"layers[5..9].*\"", "\"layers[5..9].*\"", "matches no weight", NULL},
    {"on all_linear", "on \"layers[9..5].*\"", "\"layers[9..5].*\"", "the range is empty", NULL},
    {"on all_linear", "on \"{q,k_proj\"", "\"{q,k_proj\"", "'}' is missing", NULL},
    {"on all_linear", "on \"norm\"", "\"norm\"", "matches no weight that linear() or embed() uses",
     "model.norm"},
    {"on all_linear", "on all_linear, load \"nowhere\"", "pref", "adapter_config.json", NULL},
    {"alpha = 8) on all_linear", "dropout = 0.1) on \"lm_head\"",
     "lora(rank = 4, dropout = 0.1) on \"lm_head\"", "dropout must be 0 on lm_head", NULL},
    {"rank = 4", "init = \"eva\"", "lora(init = \"eva\", alpha = 8)",
     "init is \"kaiming\", \"gaussian\" or \"pissa\", not \"eva\"", NULL},
    {"rank = 4", "bias = \"all\"", "lora(bias = \"all\", alpha = 8)",
     "bias = \"all\" is not built: an adapter changes matrices only", "leave `bias` out"},
    {"rank = 4, alpha = 8) on all_linear",
     "dora = true) on \"q_proj\", lora(rank = 2) on \"k_proj\"", "lora(rank = 2) on \"k_proj\"",
     "dora is the same for all clauses of an adapter", "make two adapters of them"},
    {"alpha = 8) on all_linear", "init = \"pissa\") on \"q_proj\" quantize base nf4 on \"q_proj\"",
     "lora(rank = 4, init = \"pissa\") on \"q_proj\"", "it is quantized", "leave it out there"},
    {"alpha = 8) on all_linear", "init = \"pissa\") on \"model.embed_tokens\"",
     "lora(rank = 4, init = \"pissa\") on \"model.embed_tokens\"", "its rows are looked up", NULL},
    {"alpha = 8) on all_linear", "dora = true, init = \"pissa\") on \"q_proj\"",
     "lora(rank = 4, dora = true, init = \"pissa\") on \"q_proj\"", "counts on the weight", NULL},
    {"rank = 4, alpha = 8) on all_linear", "rank = 4000, init = \"pissa\") on \"q_proj\"",
     "lora(rank = 4000, init = \"pissa\") on \"q_proj\"", "fewer rows or columns than the rank",
     NULL},
    /* objectives */
    {"logp(policy, side)", "lopg(policy, side)", "lopg", "'lopg' is not known",
     "did you mean 'logp'?"},
    {"logp(policy, side)", "logp(policy)", "logp(policy)", "logp takes 2 arguments, not 1", NULL},
    {"logp(policy, side)", "logp(side, policy)", "logp(side, policy)",
     "takes (policy or reference,", NULL},
    {"reward(chosen)", "reward(chosn)", "chosn", "'chosn' is not known", "did you mean 'chosen'?"},
    {"reward(chosen)", "reward(chosen, 1)", "reward(chosen, 1)", "reward takes 1 argument, not 2",
     "defined here"},
    {"reward(chosen) - reward(rejected)", "reward(chosen) - policy", "reward(chosen) - policy",
     "a tensor is needed here, not a model", NULL},
    {"-log_sigmoid(reward(chosen) - reward(rejected))", "beta", "loss = beta",
     "does not depend on the pairs", NULL},
    {"loss = ", "loss = token_logp(policy, chosen) - token_logp(policy, rejected) + ",
     "token_logp(policy, chosen) - token_logp(policy, rejected)", "can't meet", "sum() or mean()"},
    {"loss = ", "loss = sum(logp(policy, chosen)) + ", "sum(logp(policy, chosen))",
     "takes a value per token", NULL},
    {"loss = ", "loss = mean(token_entropy(policy, chosen)) + ",
     "loss = mean(token_entropy(policy, chosen)) + -log_sigmoid(reward(chosen) - reward(rejected))",
     "token_entropy has no gradient", NULL},
    {"-log_sigmoid(reward(chosen) - reward(rejected))", "stop(reward(chosen))",
     "loss = stop(reward(chosen))", "nothing would be trained", "outside of stop()"},
    {"-log_sigmoid(reward(chosen) - reward(rejected))", "len(chosen)", "loss = len(chosen)",
     "nothing would be trained", "token_logp(policy, ..)"},
    {"-log_sigmoid(reward(chosen) - reward(rejected))", "chosen", "loss = chosen",
     "the loss is a side, not a number", NULL},
    {"    reward", "    metric entropy = 1\n    reward", "metric entropy = 1",
     "entropy is logged already", NULL},
    {"loss = ", "lost = ", "dpo", "has no `loss = ..`", NULL},
    {"    reward", "    require beta > 1 : \"small\"\n    reward", "require beta > 1 : \"small\"",
     "small", "0.1 > 1"},
    {"reward(side) =", "reward(side) = reward(side) +", "reward(side)", "without end", NULL},
};

static const Mistake in_layers[] = {
    {"dim = hidden_size", "dim = hiden_size", "hiden_size", "has no 'hiden_size'",
     "did you mean 'hidden_size'?"},
    {"half = dim / 2", "half = 2 / dmi", "dmi", "'dmi' is not known", "did you mean 'dim'?"},
    {"half = dim / 2", "half = dim / 0", "dim / 0", "division by zero", NULL},
    {"half = dim / 2", "half = model_type / 2", "model_type", "'/' takes numbers, not text", NULL},
    {"half = dim / 2", "require dim > 100", "require dim > 100", "does not hold", "32 > 100"},
    {"weight gate_proj[ffn, dim]", "weight gate_proj[dim, ffn]", "linear(x, gate_proj)",
     "56 features are needed", "model.layers.0.mlp"},
    {"weight gate_proj[ffn, dim]", "weight gate_proj[ffn, dim / 3]", "dim / 3",
     "must be a whole number", NULL},
    {"weight gate_proj[ffn, dim]", "weight gate_proj[ffn, 0]", "0", "must be at least 1", NULL},
    {"weight gate_proj[ffn, dim]", "weight gate_proj[ffn, dim, 2]", "2", "one or two sizes", NULL},
    {"gate_proj[ffn, dim], up_proj", "gate_proj[ffn, dim] bias(true), up_proj", "gate_proj",
     "no tensor \"model.layers.0.mlp.gate_proj.bias\"", NULL},
    {"weight embed_tokens[vocab, dim]", "weight embed_tokens[vocab + 1, dim]", "embed_tokens",
     "is [98,32] here, but [97,32]", NULL},
    {"linear(x, up_proj)", "linear(x, up_prj)", "up_prj", "'up_prj' is not known",
     "did you mean 'up_proj'?"},
    {"linear(x, up_proj)", "linear(x)", "linear(x)", "linear takes (x w)", NULL},
    {"linear(x, up_proj)", "linear(x, x)", "linear(x, x)", "must be a weight with 2 sizes", NULL},
    {"linear(x, up_proj)", "x", "silu(linear(x, gate_proj)) * x", "shapes do not fit", NULL},
    {"silu(", "sliu(", "sliu", "'sliu' is not known", "did you mean 'silu'?"},
    {"silu(", "split(", "split(linear(x, gate_proj))", "split takes (x heads)", NULL},
    {"post_attention_layernorm, eps)", "post_attention_layernorm)",
     "rmsnorm(x, post_attention_layernorm)", "rmsnorm takes (x, w, eps), 2 arguments are given",
     "defined here"},
    {"weight post_attention_layernorm[dim]", "weight post_attention_layernorm[ffn]",
     "x * rsqrt(mean(x * x) + eps) * w", "shapes do not fit", "called here"},
    {"layer mlp(x) {", "layer mlp(x) { y = mlp(x)", "mlp(x)", "without end", NULL},
    {"0..depth", "0..depth / 3", "depth / 3", "must be a whole number", NULL},
    {"    return x\n", "", "trunk(tokens)", "trunk returns nothing", "defined here"},
    {"return linear(h, lm_head)", "return h", "h", "a model returns linear(h, W)", NULL},
    {"return linear(h, lm_head)", "y = h", "own", "model own returns nothing", NULL},
    {"model.embed_tokens when tied", "model.embed_token", "model.embed_token", "is not known",
     "'model.embed_tokens'?"},
    {"lm_head[vocab, dim] =", "lm_head[vocab + 1, dim] = model.embed_tokens weight l[1] =",
     "model.embed_tokens", "they can't be tied", NULL},
};

static void expect_mistake(const char *text, const Mistake *m) {
    Arena *arena = arena_new();
    Check c = check_gqa(replaced(arena, text, m->from, m->to));
    if (c.spec) die("'%s' was accepted\n", m->to);
    char *json = diags_json(c.diags);
    json_t *list = json_loads(json, 0, NULL), *first = NULL;
    for (size_t i = 0; i < json_array_size(list) && !first; i++) {
        json_t *d = json_array_get(list, i);
        if (!strcmp(json_string_value(json_object_get(d, "severity")), "error")) first = d;
    }
    const char *message = json_string_value(json_object_get(first, "message"));
    char *printed = NULL;
    size_t len;
    FILE *f = open_memstream(&printed, &len);
    diags_print(c.diags, 0, f, false);
    fclose(f);
    if (!strstr(message, m->message)) die("'%s': no '%s' in:\n%s", m->to, m->message, printed);
    if (m->more && !strstr(printed, m->more)) die("'%s': no '%s' in:\n%s", m->to, m->more, printed);
    /* the caret's line of the first error: as many ^ and ~ as the place is long */
    const char *error = strstr(printed, "error: "), *caret = strstr(error, "\n      | ");
    size_t width = strspn(caret + 9 + strspn(caret + 9, " "), "^~");
    const char *line = strstr(error, " | "), *under = line + 3 + strspn(caret + 9, " ");
    if (width != strlen(m->at) || strncmp(under, m->at, width) != 0)
        die("'%s': the caret stands under '%.*s', not '%s':\n%s", m->to, (int)width, under, m->at,
            printed);
    free(printed);
    json_decref(list);
    free(json);
    arena_free(c.arena);
    arena_free(arena);
}

static void mistakes_of_runs(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(in_good); i++) expect_mistake(good, &in_good[i]);
}

static void mistakes_of_layers(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(in_layers); i++) expect_mistake(layers, &in_layers[i]);
}

static void objectives_are_checked_without_a_checkpoint(void **state) {
    (void)state;
    Arena *arena = arena_new();
    Check c = check(good, (CheckOptions){0});
    assert_non_null(c.spec);
    arena_free(c.arena);
    c = check(replaced(arena, good, "logp(policy", "lopg(policy"), (CheckOptions){0});
    assert_null(c.spec);
    arena_free(c.arena);
    arena_free(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mistakes_of_runs),
        cmocka_unit_test(mistakes_of_layers),
        cmocka_unit_test(objectives_are_checked_without_a_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
