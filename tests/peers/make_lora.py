"""Makes tests/num/lora/*: adapters as PEFT writes them, and what PEFT computes with them in double.

    python tests/peers/make_lora.py [NAME ...]

Each case is PEFT (0.21 made these, with transformers 5.23) on a checkpoint of tests/num/cases: adapter/ is what
save_pretrained wrote after its tensors were given random values, figures.json holds the log-probs of every pair
with it and without, six AdamW steps of DPO from there, and the same from a fresh adapter where its start is not
random (`fresh`).  run.dpo says the same in dpoc's language.  `base`, a file, names the checkpoint.
"""
import copy
import json
import os
import shutil
import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

import make_cases
import reference

HERE = os.path.dirname(os.path.abspath(__file__))
CASES, OUT = os.path.join(HERE, "..", "num", "cases"), os.path.join(HERE, "..", "num", "lora")
STEPS = 6
RUN = """base      = auto
adapter pref = {adapter}
policy    = base + pref
reference = base
train pref
objective dpo(beta = 0.1) {{
    reward(side) = beta * (logp(policy, side) - logp(reference, side))
    loss         = -log_sigmoid(reward(chosen) - reward(rejected))
}}
run {{ batch = 4  tokens = 2048 }}
"""

# name: (checkpoint, LoraConfig, the adapter in dpoc's words)
CASES_OF = {
    "rslora": ("gqa", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
               'lora(rank = 4, alpha = 8, rslora = true) on "{q,v}_proj"'),
    "patterns": ("gqa", {"target_modules": r".*layers\.\d+\.(self_attn|mlp)\..*_proj",
                         "rank_pattern": {r"layers\.1\.mlp\..*": 2, "k_proj": 6},
                         "alpha_pattern": {r"layers\.1\.mlp\..*": 3}},
                 'lora(rank = 4, alpha = 8) on all_linear, lora(rank = 2, alpha = 3) on "layers[1].mlp.*", '
                 'lora(rank = 6, alpha = 8) on "k_proj"'),
    "layers": ("gqa", {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1],
                       "layers_pattern": "layers"},
               'lora(rank = 4, alpha = 8) on "layers[1].**.{q,down}_proj"'),
    "embeddings": ("gqa", {"target_modules": ["embed_tokens", "v_proj", "lm_head"], "lora_alpha": 6},
                   'lora(rank = 4, alpha = 6) on "model.embed_tokens", lora(rank = 4, alpha = 6) on "v_proj", '
                   'lora(rank = 4, alpha = 6) on "lm_head"'),
    "tied": ("mha_tied", {"target_modules": ["embed_tokens", "k_proj", "lm_head"]},
             'lora(rank = 4, alpha = 8) on "model.embed_tokens", lora(rank = 4, alpha = 8) on "k_proj", '
             'lora(rank = 4, alpha = 8) on "lm_head"'),
    "dora": ("gqa", {"target_modules": "all-linear", "use_dora": True},
             "lora(rank = 4, alpha = 8, dora = true) on all_linear"),
    "dora_biases": ("biases", {"target_modules": "all-linear", "use_dora": True, "rank_pattern": {"down_proj": 2}},
                    'lora(rank = 4, alpha = 8, dora = true) on all_linear, '
                    'lora(rank = 2, alpha = 8, dora = true) on "down_proj"'),
    "dora_fp4": ("bnb_fp4", {"target_modules": "all-linear", "use_dora": True},
                 "lora(rank = 4, alpha = 8, dora = true) on all_linear"),
    "dora_embeddings": ("gqa", {"target_modules": ["embed_tokens", "o_proj", "lm_head"], "use_dora": True},
                        'lora(rank = 4, alpha = 8, dora = true) on "model.embed_tokens", '
                        'lora(rank = 4, alpha = 8, dora = true) on "o_proj", '
                        'lora(rank = 4, alpha = 8, dora = true) on "lm_head"'),
    "pissa": ("gqa", {"target_modules": "all-linear", "init_lora_weights": "pissa"},
              'lora(rank = 4, alpha = 8, init = "pissa") on all_linear'),
    "pissa_rslora": ("gqa", {"target_modules": ["o_proj", "up_proj", "lm_head"], "use_rslora": True,
                             "init_lora_weights": "pissa", "rank_pattern": {"up_proj": 3}},
                     'lora(rank = 4, alpha = 8, rslora = true, init = "pissa") on "o_proj", '
                     'lora(rank = 3, alpha = 8, rslora = true, init = "pissa") on "up_proj", '
                     'lora(rank = 4, alpha = 8, rslora = true, init = "pissa") on "lm_head"'),
}


def load_base(path):
    """The checkpoint as transformers' model in float32, quantized weights as the numbers they stand for."""
    config = json.load(open(os.path.join(path, "config.json")))
    if "quantization_config" not in config:
        return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    g = torch.Generator().manual_seed(1000 + list(make_cases.CASES).index(os.path.basename(path)))
    change, options = make_cases.CASES[os.path.basename(path)]
    _, numbers, _ = make_cases.quantize(make_cases.make_weights(make_cases.make_config(change), options, g),
                                        *options["quantize"])
    del config["quantization_config"]
    model = LlamaForCausalLM(LlamaForCausalLM.config_class(**config))
    model.load_state_dict({k: v.float() for k, v in numbers.items()}, strict=True)
    return model


def logp_of(model):
    def logp(pair, side):
        prompt, answer = pair["prompt_ids"], pair[side + "_ids"]
        ids = prompt + answer
        rows = model(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1:-1]
        return rows.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].sum()
    return logp


class Scored:
    """reference.evaluate's and train's view of a policy and a base."""

    def __init__(self, policy, base):
        self.policy, self.base, self.ref = logp_of(policy), logp_of(base), logp_of(base)

    def logp(self, prompt, answer, adapter=None):
        return (self.policy if adapter else self.base)({"prompt_ids": prompt, "a_ids": answer}, "a")


def random_values(model, g):
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if "magnitude" in name:
            p.data *= 1 + 0.1 * torch.randn(p.shape, generator=g)
        elif "lora_B" in name or "embedding_A" in name:
            p.data = torch.randn(p.shape, generator=g) * 0.05
        else:
            p.data = torch.randn(p.shape, generator=g) * (0.3 if "embedding_B" in name else p.shape[1] ** -0.5)


def steps_of(model, base, pairs):
    leaves = [p for p in model.parameters() if p.requires_grad]
    lr = lambda s: make_cases.lr_of(s, steps=STEPS)
    return reference.train(Scored(model, base), pairs, leaves, logp_of(model), STEPS, 4, lr)


def fresh_steps(path, config, pairs, base):
    """From PEFT's start, where B = 0 hides that A is random in the losses of the first step alone."""
    model = get_peft_model(load_base(path), config)
    start = {n.split("base_model.model.")[1].replace(".default", ""): p.detach().double().norm(dim=-1).mean().item()
             if p.ndim > 1 else p.detach().double().tolist()
             for n, p in model.named_parameters() if "magnitude" in n}
    out = {"magnitudes": start} if start else {}
    if config.init_lora_weights == "pissa":
        out["train"] = steps_of(model.double(), base, pairs)
        out["eval"] = reference.evaluate(Scored(model, base), pairs, True)
    return out


def main():
    warnings.filterwarnings("ignore")
    for number, (name, (checkpoint, fields, adapter)) in enumerate(CASES_OF.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        path, out = os.path.join(CASES, checkpoint), os.path.join(OUT, name)
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        pairs = [json.loads(line) for line in open(os.path.join(path, "pairs.jsonl"))]
        torch.manual_seed(number)
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **fields})
        base = load_base(path).double()
        figures = {"fresh": fresh_steps(path, copy.deepcopy(config), pairs, base)}
        plain = copy.deepcopy(config)
        plain.init_lora_weights = True  # the random adapter stands on the base as it is
        model = get_peft_model(load_base(path), plain)
        random_values(model, torch.Generator().manual_seed(2000 + number))
        model.peft_config["default"].base_model_name_or_path = "random"
        model.save_pretrained(os.path.join(out, "adapter"))
        os.remove(os.path.join(out, "adapter", "README.md"))
        model.double()
        figures["eval"] = reference.evaluate(Scored(model, base), pairs, True)
        figures["train"] = steps_of(model, base, pairs)
        json.dump(figures, open(os.path.join(out, "figures.json"), "w"), indent=1)
        open(os.path.join(out, "base"), "w").write(checkpoint + "\n")
        open(os.path.join(out, "run.dpo"), "w").write(RUN.format(adapter=adapter))
        print(name, flush=True)


if __name__ == "__main__":
    main()
