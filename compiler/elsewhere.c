/* elsewhere.c: what other trainers (TRL, PEFT, transformers, bitsandbytes) call a setting, and what
 * it is called here.  examples/README.md is the whole table, for reading.
 *
 * Relies on diagnostics only.  Promises: says something only about names in its table.
 */
#include "front.h"

#include <string.h>

/* `here`: a path, or a key of what `there` was written in; NULL: only `note` is said. */
static const struct {
    const char *there, *here, *note;
} names[] = {
    {"learning_rate", "run.lr", NULL},
    {"lr_scheduler_type", "run.schedule", NULL},
    {"lr_scheduler", "run.schedule", NULL},
    {"warmup_steps", "run.warmup", NULL},
    {"warmup_ratio", "run.warmup", "below 1 it is a share of the steps"},
    {"max_steps", "run.steps", NULL},
    {"num_train_epochs", "run.epochs", NULL},
    {"num_epochs", "run.epochs", NULL},
    {"per_device_train_batch_size", "run.batch",
     "pairs a step, that is this times gradient_accumulation_steps"},
    {"gradient_accumulation_steps", "run.batch",
     "pairs a step, that is this times per_device_train_batch_size"},
    {"micro_batch_size", "run.tokens", "rows of a micro-batch; pairs a step are run.batch"},
    {"per_device_eval_batch_size", "run.tokens", "rows of a micro-batch"},
    {"optim", "run.optimizer", NULL},
    {"adam_beta1", "run.beta1", NULL},
    {"adam_beta2", "run.beta2", NULL},
    {"adam_epsilon", "run.eps", NULL},
    {"max_grad_norm", "run.clip", NULL},
    {"data_seed", "run.seed", NULL},
    {"logging_steps", "run.log_every", NULL},
    {"eval_steps", "run.eval_every", NULL},
    {"eval_strategy", "run.eval_every", "steps; 0: at the end only"},
    {"evaluation_strategy", "run.eval_every", "steps; 0: at the end only"},
    {"eval_on_start", "run.eval_first", NULL},
    {"save_steps", "run.save_every", NULL},
    {"save_strategy", "run.save_every", "steps; 0: at the end only"},
    {"save_total_limit", "run.keep", NULL},
    {"load_best_model_at_end", "run.load_best", NULL},
    {"metric_for_best_model", "run.best", NULL},
    {"early_stopping_patience", "run.patience", NULL},
    {"generate_during_eval", "run.sample_every", "steps"},
    {"train_dataset", "data.train", NULL},
    {"dataset_name", "data.train", "a file: nothing is downloaded"},
    {"eval_dataset", "data.eval", NULL},
    {"val_set_size", "data.eval", NULL},
    {"max_prompt_length", "data.max_prompt", NULL},
    {"max_completion_length", "data.max_answer", NULL},
    {"max_seq_length", "data.max_length", NULL},
    {"cutoff_len", "data.max_length", NULL},
    {"max_samples", "data.limit", NULL},
    {"truncation_mode", "data.truncation", NULL},
    {"chat_template", "data.template", NULL},
    {"bf16", "graph.compute", "bf16 or fp32"},
    {"fp16", "graph.compute", "bf16 or fp32; training in fp16 is not supported"},
    {"torch_dtype", "graph.compute", "bf16 or fp32"},
    {"bnb_4bit_compute_dtype", "graph.compute", "bf16 or fp32"},
    {"precompute_ref_log_probs", "graph.ref", "cached"},
    {"r", "rank", NULL},
    {"lora_r", "rank", NULL},
    {"lora_rank", "rank", NULL},
    {"lora_alpha", "alpha", NULL},
    {"lora_dropout", "dropout", NULL},
    {"use_rslora", "rslora", NULL},
    {"use_dora", "dora", NULL},
    {"init_lora_weights", "init", NULL},
    {"pref_beta", "beta", NULL},
    {"simpo_gamma", "gamma", NULL},
    {"label_smoothing", "smoothing", NULL},
    {"bnb_4bit_use_double_quant", "double", NULL},
    {"use_double_quant", "double", NULL},
    {"target_modules", NULL, "write `lora(..) on all_linear`, or `on \"{q,v}_proj\"`"},
    {"load_in_4bit", NULL, "write `quantize base nf4 on \"model.layers[*].**.*_proj\"`"},
    {"load_in_8bit", NULL, "write `quantize base int8 on \"model.layers[*].**.*_proj\"`"},
    {"bnb_4bit_quant_type", NULL, "write `quantize base nf4 on ..`, or `fp4`"},
    {"bias", NULL, "biases are not trained; leave it out"},
    {"task_type", NULL, "leave it out"},
    {"loss_type", NULL, "write `use \"objectives/NAME.dpo\"` in place of `objective`"},
    {"ref_model", NULL, "write `reference = base`, or `llama from \"DIR\"`"},
    {"gradient_checkpointing", NULL,
     "what to recompute is planned: --memory=24GiB is kept to the byte; leave it out"},
    {"output_dir", NULL, "give -o RUN"},
    {"overwrite_output_dir", NULL, "give --overwrite"},
    {"resume_from_checkpoint", NULL, "give --resume"},
    {"model_name_or_path", NULL, "give --model DIR"},
    {"report_to", NULL,
     "metrics.jsonl and TensorBoard's events are always written; examples/wandb_replay.py sends "
     "them to Weights & Biases"},
    {"run_name", NULL, "give it to examples/wandb_replay.py with --name"},
    {"padding_free", NULL, "nothing is padded; leave it out"},
    {"remove_unused_columns", NULL, "leave it out"},
};

/* The known path that `key` is, where `prefix` (with its dot) was written before it. */
static const char *path_here(Arena *arena, const char *prefix, const char *key,
                             const char *const *known, int n) {
    const char *beside = arena_printf(arena, "%s%s", prefix, key), *other = NULL;
    for (int i = 0; i < n; i++) {
        const char *dot = strrchr(known[i], '.');
        if (!strcmp(known[i], beside) || !strcmp(known[i], key)) return known[i];
        if (!other && !strcmp(dot ? dot + 1 : known[i], key)) other = known[i];
    }
    return other;
}

bool diag_elsewhere(Front *f, Loc loc, const char *name, const char *const *known, int n) {
    const char *dot = strrchr(name, '.'), *last = dot ? dot + 1 : name;
    size_t i = 0;
    while (i < COUNT(names) && strcmp(names[i].there, last) != 0) i++;
    if (i == COUNT(names)) return false;
    const char *prefix = arena_strn(f->arena, name, (size_t)(last - name));
    const char *note = names[i].note, *here = names[i].here;
    if (here) here = path_here(f->arena, prefix, here, known, n);
    if (names[i].here && !here) return false;
    if (here)
        diag(f->diags, DIAG_HELP, loc, "here it is '%s'%s%s", here, note ? ": " : "",
             note ? note : "");
    else
        diag(f->diags, DIAG_HELP, loc, "%s", note);
    return true;
}
