"""TRL's own DPOTrainer with PEFT's LoRA on the models, adapters, pairs and order of dpoc's tests: tests/num/trl/*.

    pip install -r tests/peers/trl_requirements.txt
    python tests/peers/trl_dpo.py [CASE ...]

Every case is run four times: once in float64 (the figures), and three times in float32 that differ only in the order
of their sums (SDPA; eager attention with wider padding; the pairs of a step reversed).  What those three deviate from
float64 is what float32 costs in this very run, grown over its steps: the yardstick of tests/num/test_trl.c, kept as
"deviation", the largest so far at each step.  In float64 the two places where transformers' Llama computes in float32
whatever it is given (norms, rotary angles) are replaced; nothing else of transformers, PEFT or TRL is.

CASE.json holds: "dpoc" (what to run: objective, flags), "pairs" (token ids as TRL made them: prompt, chosen,
rejected), "steps" (TRL's names), "deviation", and "undecided" (steps at which float32 may decide otherwise which
answer has the higher reward).  With several micro-batches a step, TRL logs the mean of the micro-batches' means;
dpoc's mean is over the step, however it was packed.  There "steps" has TRL's values weighted by their tokens, and
"trl" what it logged.  gqa's trained adapter is kept as TRL saved it, with TRL's evaluation of it.

Once by hand, on 48 pairs of UltraFeedback (not ours to keep) with stories260K: in 50 steps the losses of dpoc and of
TRL in float64 are at most 1.3e-5 apart, those of TRL in float32 6e-6.
"""
import argparse
import json
import os
import shutil
import tempfile

import datasets
import peft
import torch
import transformers
import trl
from torch.utils.data import SequentialSampler
from transformers.models.llama import modeling_llama

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
OUT = os.path.join(ROOT, "tests", "num", "trl")
CASES = "tests/num/cases/"
STORIES = "../shared/data/stories260k"
WEIGHTED = {"logits/chosen": "chosen", "logits/rejected": "rejected", "entropy": "both",
            "mean_token_accuracy": "chosen"}

# name: model, data, adapter, TRL's arguments, dpoc's objective and flags.  Steps are 50 unless said.
RUNS = {
    "stories260k": dict(
        model=STORIES, data="examples/demo/pairs.jsonl", limit=24, adapter="tests/num/trl/stories260k_adapter",
        trl=dict(per_device_train_batch_size=4, learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=5,
                 max_length=80),
        flags=["run.batch=4", "run.lr=1e-3", "run.schedule=cosine", "run.warmup=5", "data.max_length=80"]),
    "gqa": dict(  # weight decay; a clip that always cuts; linear
        model=CASES + "gqa", data=CASES + "gqa/pairs.jsonl", adapter=CASES + "gqa/adapter", keep=True,
        trl=dict(per_device_train_batch_size=3, learning_rate=2e-3, lr_scheduler_type="linear", weight_decay=0.1,
                 max_grad_norm=0.5),
        flags=["run.batch=3", "run.lr=2e-3", "run.schedule=linear", "run.weight_decay=0.1", "run.clip=0.5"]),
    "mha_tied": dict(  # three micro-batches a step
        model=CASES + "mha_tied", data=CASES + "mha_tied/pairs.jsonl", adapter=CASES + "mha_tied/adapter",
        trl=dict(per_device_train_batch_size=2, gradient_accumulation_steps=3, learning_rate=2e-3,
                 lr_scheduler_type="cosine", warmup_steps=10),
        flags=["run.batch=6", "run.lr=2e-3", "run.schedule=cosine", "run.warmup=10", "run.tokens=96"]),
    "at_start": dict(  # what TRL does with an adapter that it goes on training
        model=CASES + "mha_tied", data=CASES + "mha_tied/pairs.jsonl", adapter=CASES + "mha_tied/adapter", steps=10,
        reference="policy at start",
        trl=dict(per_device_train_batch_size=3, learning_rate=2e-3, lr_scheduler_type="constant"),
        flags=["run.batch=3", "run.lr=2e-3", "run.schedule=constant"]),
}
OBJECTIVES = {  # dpoc's: TRL's arguments
    "hinge": dict(loss_type="hinge"), "ipo": dict(loss_type="ipo"),
    "exo": dict(loss_type="exo_pair", label_smoothing=0.001), "nca": dict(loss_type="nca_pair"),
    "robust": dict(loss_type="robust", label_smoothing=0.1), "bco": dict(loss_type="bco_pair"),
    "sppo": dict(loss_type="sppo_hard"), "aot": dict(loss_type="aot"),
    "aot_unpaired": dict(loss_type="aot_unpaired"), "apo_zero": dict(loss_type="apo_zero"),
    "apo_down": dict(loss_type="apo_down"), "discopop": dict(loss_type="discopop", beta=0.05, discopop_tau=0.05),
    "sft": dict(loss_type="sft"), "rpo": dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0]),
    "mpo": dict(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]),
    "sigmoid_norm": dict(loss_type="sigmoid_norm"), "ld_dpo": dict(ld_alpha=0.5), "wpo": dict(use_weighting=True),
    "dpo_forward_kl": dict(f_divergence_type="forward_kl", learning_rate=1e-5),  # exp(-r): explodes at 1e-3
    "dpo_js": dict(f_divergence_type="js_divergence"),
    "dpo_alpha": dict(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.5),
}
for objective, arguments in OBJECTIVES.items():
    RUNS["objective_" + objective] = dict(
        model=CASES + "gqa", data=CASES + "gqa/pairs.jsonl", adapter=CASES + "gqa/adapter", steps=5,
        objective=objective,
        trl={**dict(per_device_train_batch_size=6, learning_rate=1e-3, lr_scheduler_type="constant"), **arguments},
        flags=["run.batch=6", f"run.lr={arguments.get('learning_rate', 1e-3)}", "run.schedule=constant"])
# dpoc does not compute the rejected answers of an objective that does not ask for them
RUNS["objective_sft"]["only"] = ("loss", "grad_norm", "learning_rate", "logps/chosen", "logits/chosen",
                                 "mean_token_accuracy")
# with ld_alpha TRL logs the weighted sums as logps/*; dpoc's are always the answers' log-probabilities
RUNS["objective_ld_dpo"]["only"] = ("loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected",
                                    "rewards/margins", "rewards/accuracies", "entropy", "num_tokens")


class Norm64(torch.nn.Module):
    """LlamaRMSNorm without its cast to float32."""

    def __init__(self, old):
        super().__init__()
        self.weight, self.eps = old.weight, old.variance_epsilon

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Rotary64(torch.nn.Module):
    """LlamaRotaryEmbedding (unscaled) without its casts to float32."""

    def __init__(self, config):
        super().__init__()
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        theta = config.rope_parameters["rope_theta"]
        self.frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def forward(self, x, position_ids):
        angle = position_ids[..., None].double() * self.frequency
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()


def widen(model):
    model.double()
    for name, module in list(model.named_modules()):
        new = None
        if isinstance(module, modeling_llama.LlamaRMSNorm):
            new = Norm64(module)
        elif isinstance(module, modeling_llama.LlamaRotaryEmbedding):
            new = Rotary64(model.config)
        if new:
            model.get_submodule(name.rpartition(".")[0]).__setattr__(name.rpartition(".")[2], new)


class Trainer(trl.DPOTrainer):
    """TRL's trainer: pairs in their order, what is already token ids not tokenized; notes what a step consisted of."""

    def _prepare_dataset(self, dataset, *rest):
        return dataset if "prompt_ids" in dataset.column_names else super()._prepare_dataset(dataset, *rest)

    def _get_train_sampler(self, *rest):
        return SequentialSampler(self.train_dataset)

    def _compute_loss(self, model, inputs, return_outputs=False):
        scored = inputs["completion_mask"][:, 1:].sum(1)
        chosen, rejected = (int(x.sum()) for x in scored.chunk(2))
        loss = super()._compute_loss(model, inputs, return_outputs)
        if self.model.training:
            mine = self._metrics["train"]
            self.micro.append({"tokens": {"chosen": chosen, "rejected": rejected, "both": chosen + rejected},
                               "values": {k: mine[k][-1] for k in WEIGHTED}})
        return loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            super().log(logs, start_time)
            values = {k: v for k, v in logs.items() if k != "epoch"}
            weighted = {k: sum(m["values"][k] * m["tokens"][t] for m in self.micro) /
                        sum(m["tokens"][t] for m in self.micro) for k, t in WEIGHTED.items()}
            self.steps.append((values, weighted))
            self.micro.clear()
        else:
            super().log(logs, start_time)


def read_pairs(run, reverse):
    rows = [json.loads(line) for line in open(os.path.join(ROOT, run["data"]))][:run.get("limit")]
    n = run["trl"]["per_device_train_batch_size"]
    assert len(rows) % (n * run["trl"].get("gradient_accumulation_steps", 1)) == 0
    if reverse:  # in each micro-batch
        rows = [row for at in range(0, len(rows), n) for row in reversed(rows[at:at + n])]
    return datasets.Dataset.from_list(rows)


def tokenizer_of(model):
    if os.path.exists(os.path.join(model, "tokenizer.json")):
        return transformers.AutoTokenizer.from_pretrained(model)
    words = {f"<{i}>": i for i in range(3)}  # never used: the pairs are token ids
    from tokenizers import Tokenizer, models
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<0>")),
                                                eos_token="<2>", bos_token="<1>", unk_token="<0>")


def train(run, folder, double, attention="sdpa", pad=None, reverse=False):
    path = os.path.join(ROOT, run["model"])
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32,
                                                              attn_implementation=attention)
    tokenizer = tokenizer_of(path)
    if double:
        widen(model)
    model = peft.PeftModel.from_pretrained(model, os.path.join(ROOT, run["adapter"]), is_trainable=True)
    if double:
        model.double()
    arguments = dict(output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False,
                     max_steps=run.get("steps", 50), logging_steps=1, logging_strategy="steps", save_strategy="no",
                     report_to="none", disable_tqdm=True, seed=42, optim="adamw_torch", max_length=1024,
                     pad_to_multiple_of=pad, per_device_eval_batch_size=6)
    arguments.update(run["trl"])
    data = read_pairs(run, reverse)
    trainer = Trainer(model=model, args=trl.DPOConfig(**arguments), train_dataset=data, processing_class=tokenizer)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.micro, trainer.steps = [], []
    if run.get("reference", "base") == "base":
        trainer.model.delete_adapter("ref")  # TRL's copy of the adapter; without one it switches adapters off
    trainer.train()
    return trainer


def largest_so_far(runs, truth, key):
    out, most = [], 0.0
    for k, step in enumerate(truth):
        most = max([most] + [abs(r[k][key] - step[key]) for r in runs])
        out.append(float(f"{most:.3g}"))
    return out


def ids_of(trainer):
    data, longest = trainer.train_dataset, trainer.args.max_length
    out = []
    for row in data:
        room = longest - len(row["prompt_ids"])
        out.append([row["prompt_ids"], row["chosen_ids"][:room], row["rejected_ids"][:room]])
    return out


def keep_adapter(trainer, name, figures):
    folder = os.path.join(OUT, name + "_trained")
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as whole:
        trainer.save_model(whole)
        os.makedirs(folder)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(os.path.join(whole, file), folder)
    figures["eval"] = {k[len("eval_"):]: v for k, v in trainer.evaluate(trainer.train_dataset).items()
                       if "/" in k or k in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy")}


def make(name, run):
    with tempfile.TemporaryDirectory() as folder:
        truth = train(run, folder, double="alpha_divergence" not in str(run["trl"]))  # TRL's has no row for float64
        plain = train(run, folder, False)
        runs = [plain, train(run, folder, False, attention="eager", pad=64), train(run, folder, False, reverse=True)]
        figures = {
            "versions": {"trl": trl.__version__, "peft": peft.__version__, "transformers": transformers.__version__,
                         "torch": torch.__version__.split("+")[0], "datasets": datasets.__version__},
            "dpoc": {"objective": run.get("objective", "dpo"), "reference": run.get("reference", "base"),
                     "model": run["model"], "data": run["data"], "adapter": run["adapter"],
                     "set": [f"run.steps={run.get('steps', 50)}"] + run["flags"] +
                     ([f"data.limit={run['limit']}"] if "limit" in run else [])},
            "pairs": ids_of(truth)}
        several = run["trl"].get("gradient_accumulation_steps", 1) > 1
        take = lambda r: [{k: v for k, v in {**logged, **(weighted if several else {})}.items()
                           if k in run.get("only", logged)} for logged, weighted in r.steps]
        figures["steps"] = steps = take(truth)
        if several:
            figures["trl"] = [{k: logged[k] for k in WEIGHTED} for logged, _ in truth.steps]
        others = [take(r) for r in runs]
        figures["deviation"] = {key: largest_so_far(others, steps, key) for key in steps[0]
                                if key not in ("learning_rate", "num_tokens", "rewards/accuracies",
                                               "mean_token_accuracy")}
        figures["undecided"] = [k + 1 for k, step in enumerate(steps)
                                if any(o[k].get(key) != step.get(key) for o in others
                                       for key in ("rewards/accuracies", "mean_token_accuracy"))]
        if run.get("keep"):
            keep_adapter(plain, name, figures)
    with open(os.path.join(OUT, name + ".json"), "w") as f:
        write(f, figures)
    last = {k: (round(v[-1], 9), steps[-1][k]) for k, v in figures["deviation"].items() if k in ("loss", "grad_norm")}
    print(name, len(steps), "steps; undecided", figures["undecided"], "last deviation, value:", last, flush=True)


def write(f, figures):
    """One step, one pair a line."""
    row = lambda x: json.dumps(x)
    parts = []
    for key, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            parts.append(f'"{key}": [\n' + ",\n".join(row(x) for x in value) + "]")
        elif key == "deviation":
            parts.append(f'"{key}": {{\n' + ",\n".join(f"{row(k)}: {row(v)}" for k, v in value.items()) + "}")
        else:
            parts.append(f'"{key}": {row(value)}')
    f.write("{" + ",\n".join(parts) + "}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", nargs="*", help="default: all")
    names = parser.parse_args().case or list(RUNS)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    torch.set_num_threads(2)
    for name in names:
        make(name, RUNS[name])


if __name__ == "__main__":
    main()
