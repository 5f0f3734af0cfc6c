"""Makes tests/num/generate.json: greedy answers of Hugging Face's models to prompts of token ids.

    python tests/peers/make_generate.py

transformers 5.23 and PEFT 0.21 run checkpoints and adapters of tests/num/cases in double precision (norms and
rotary angles are float32 inside), without a cache, one prompt at a time.  Of every step: the id, its logit and
the checksum of all, the sum over i of logits[i] * sin(i + 1).  Prompts are random, such that the best logit
leads by 0.02 or more at every step: what rounds otherwise still says the same.
"""
import json
import os

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = os.path.join(HERE, "..", "num", "cases")
# name: (checkpoint, adapters): grouped heads; biases; a window of 7, half the prompts longer; two adapters
ANSWERS = {
    "gqa": ("gqa", ["gqa"]),
    "qwen2": ("qwen2", ["qwen2"]),
    "mistral": ("mistral", ["mistral"]),
    "biases": ("biases", ["biases"]),
    "two": ("bf16_sharded", ["bf16_sharded", "mistral"]),
}
LENGTHS, NEW = [1, 9, 37], 16


def load(case, adapters):
    where = os.path.join(CASES, case)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float64, attn_implementation="eager")
    for i, name in enumerate(adapters):
        path = os.path.join(CASES, name, "adapter")
        if i == 0:
            model = PeftModel.from_pretrained(model, path, adapter_name="a0", torch_device="cpu")
        else:
            model.load_adapter(path, adapter_name=f"a{i}", torch_device="cpu")
    if adapters:
        model.base_model.set_adapter([f"a{i}" for i in range(len(adapters))])
    return model.double().eval()


def continue_(model, prompt):
    ids, steps, lead = list(prompt), [], float("inf")
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        top = logits.topk(2)
        lead = min(lead, float(top.values[0] - top.values[1]))
        check = float((logits * torch.sin(torch.arange(1, len(logits) + 1, dtype=torch.float64))).sum())
        steps.append([int(top.indices[0]), round(float(top.values[0]), 6), round(check, 6)])
        ids.append(int(top.indices[0]))
    return steps, lead


def main():
    out = {}
    for name, (case, adapters) in ANSWERS.items():
        models = load(case, adapters), load(case, [])
        g = torch.Generator().manual_seed(len(out) + 1)
        rows = []
        for length in LENGTHS:
            for _ in range(500):
                prompt = torch.randint(0, models[0].config.vocab_size, (length,), generator=g).tolist()
                (after, lead1), (before, lead2) = (continue_(m, prompt) for m in models)
                if min(lead1, lead2) >= 0.02:
                    break
            else:
                raise SystemExit(f"{name}: no clear prompt of {length}")
            rows.append({"prompt": prompt, "answer": after, "before": before})
            print(name, length, lead1, lead2, [s[0] for s in after])
        out[name] = {"model": case, "adapters": adapters, "rows": rows}
    with open(os.path.join(HERE, "..", "num", "generate.json"), "w") as f:
        f.write(json.dumps(out, indent=1).replace(",\n     ", ", ").replace("\n     ", " ") + "\n")


if __name__ == "__main__":
    main()
