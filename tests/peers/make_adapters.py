"""LoRA adapters as PEFT writes them, for tests/e2e/peft.sh and tests/io/test_adapter.c.

    python3 tests/peers/make_adapters.py        writes tests/io/peft/NAME/, from the repository's root

Each directory holds an adapter that PEFT saved over the model of tests/num/cases/gqa (a random Llama of our own), with
random A and B, and logp.txt: what transformers and PEFT give for the first answers of its pairs.jsonl, one line a pair,
chosen and rejected.  `ours` was written by dpoc; `ours_back` is what PEFT saves after loading it.
Made with peft 0.21.2, transformers 5.23, torch 2.15 (CPU, fp32).
"""
import json
import os
import shutil
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
CASE, OUT, PAIRS = "tests/num/cases/gqa", "tests/io/peft", 2
# what adapter_config.json had in peft 0.11
OLD_KEYS = """alpha_pattern auto_mapping base_model_name_or_path bias fan_in_fan_out inference_mode init_lora_weights
layer_replication layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout megatron_config megatron_core
modules_to_save peft_type r rank_pattern revision target_modules task_type use_dora use_rslora""".split()

CASES = {
    "list": dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "regex": dict(r=2, lora_alpha=3, target_modules=r".*layers\.1\..*\.(k|o|down)_proj", lora_dropout=0.05),
    "patterns": dict(r=2, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "k_proj", "up_proj"],
                     rank_pattern={"layers.0.self_attn.(q|k)_proj": 3, "q_proj": 1}, alpha_pattern={"up_proj": 7}),
    "all_linear": dict(r=1, lora_alpha=2, target_modules="all-linear", exclude_modules=["down_proj"]),
    "layers": dict(r=2, lora_alpha=2, target_modules=["gate_proj", "o_proj"], layers_to_transform=[1],
                   layers_pattern="layers"),
    "dora": dict(r=2, lora_alpha=4, use_dora=True, target_modules=["q_proj", "down_proj"]),
    "embeddings": dict(r=2, lora_alpha=4, target_modules=["embed_tokens", "lm_head", "v_proj"]),
    "dora_embedding": dict(r=2, lora_alpha=4, use_dora=True, target_modules=["embed_tokens"]),
    "half": dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "old": dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "named": dict(r=1, lora_alpha=4, target_modules=["v_proj"]),
}


def base():
    return AutoModelForCausalLM.from_pretrained(CASE, dtype=torch.float32).eval()


def logp(model, prompt, answer):
    ids = prompt + answer
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(rows[i - 1, ids[i]].item() for i in range(len(prompt), len(ids)))


def figures(model, path):
    with open(f"{CASE}/pairs.jsonl") as f:
        pairs = [json.loads(line) for line, _ in zip(f, range(PAIRS))]
    with open(path, "w") as f:
        for p in pairs:
            print(*(f"{logp(model, p['prompt_ids'], p[side]):.9f}" for side in ("chosen_ids", "rejected_ids")), file=f)


def fill(model, name):
    """Random A and B; magnitudes near the ones DoRA begins with."""
    torch.manual_seed(sum(map(ord, name)))
    for key, p in sorted(model.named_parameters()):
        if "lora_magnitude" in key:
            p.data *= 1 + 0.3 * torch.rand_like(p)
        elif "lora_" in key:
            p.data = 0.3 * torch.randn_like(p)


def rewrite(directory, keys=None, dtype=None):
    path = f"{directory}/adapter_config.json"
    with open(path) as f:
        config = json.load(f)
    for key in ("target_modules", "exclude_modules"):  # sets: the order would change from run to run
        if isinstance(config.get(key), list):
            config[key].sort()
    config["base_model_name_or_path"] = "gqa"
    with open(path, "w") as f:
        json.dump({k: v for k, v in config.items() if keys is None or k in keys}, f, indent=2, sort_keys=True)
    if dtype:
        weights = f"{directory}/adapter_model.safetensors"
        save_file({k: v.to(dtype) for k, v in load_file(weights).items()}, weights, {"format": "pt"})


def make(name, config):
    directory = f"{OUT}/{name}"
    shutil.rmtree(directory, ignore_errors=True)
    adapter = name if name == "named" else "default"
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **config), adapter_name=adapter)
    fill(model, name)
    model.save_pretrained(directory)
    inside = f"{directory}/{adapter}" if name == "named" else directory
    rewrite(inside, OLD_KEYS if name == "old" else None, torch.float16 if name == "half" else None)
    for d in {directory, inside}:
        if os.path.exists(f"{d}/README.md"):
            os.remove(f"{d}/README.md")
    figures(PeftModel.from_pretrained(base(), inside).eval(), f"{directory}/logp.txt")


def back():
    """What PEFT makes of an adapter of ours."""
    model = PeftModel.from_pretrained(base(), f"{OUT}/ours").eval()
    loaded = {k for k in model.state_dict() if "lora_" in k}
    assert len(loaded) == len(load_file(f"{OUT}/ours/adapter_model.safetensors")), "modules that the file has not"
    figures(model, f"{OUT}/ours/logp.txt")
    model.save_pretrained(f"{OUT}/ours_back")
    rewrite(f"{OUT}/ours_back")
    os.remove(f"{OUT}/ours_back/README.md")
    shutil.copy(f"{OUT}/ours/logp.txt", f"{OUT}/ours_back/logp.txt")


if __name__ == "__main__":
    for name, config in CASES.items():
        make(name, config)
    if os.path.exists(f"{OUT}/ours/adapter_config.json"):
        back()
