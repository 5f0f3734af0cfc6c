"""The same DPO step in dpoc and in PyTorch (transformers + PEFT, as TRL runs it), interleaved on this machine.

    python tests/peers/bench.py [--build build] [--rounds 5] [--out results.json] [--quick]

Both sides get the same random Llama, LoRA on all projections, pairs and batch.  Rounds alternate: a few
steps of dpoc (its tuned and naive plans, in one `dpoc bench` process), then a few steps of PyTorch.  What
is printed is ratios with their spread.  TRL's step is written out here: chosen and rejected rows padded to
the longest of the batch, a policy and a reference forward with all logits, log-softmax, sigmoid loss,
backward, AdamW.  Without torch, transformers or peft only dpoc's variants are compared.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {  # dim, layers, heads, kv heads, ffn, vocab
    "tiny": (64, 5, 8, 4, 172, 512),
    "15M": (288, 6, 6, 6, 768, 32000),
}
SPEC = """use "llama3.dpo"
use "objectives/dpo.dpo"
base = llama from "model"
adapter pref = lora(rank = 16, alpha = 16) on all_linear
policy = base + pref
reference = base
train pref
data {{ train = "pairs.jsonl" }}
run {{ steps = 1000  batch = {batch}  tokens = {tokens}  lr = 1e-4  shuffle = off }}
variant naive {{ graph {{ prefix = off  fuse = off  slice = off  cse = off }} }}
variant no_prefix {{ graph {{ prefix = off }} }}
"""


def make_case(directory, size, batch, lengths):
    dim, layers, heads, kv, ffn, vocab = SIZES[size]
    os.makedirs(os.path.join(directory, "model"))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dim,
              "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
              "num_key_value_heads": kv, "vocab_size": vocab, "max_position_embeddings": 2048,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True}
    json.dump(config, open(os.path.join(directory, "model", "config.json"), "w"))
    rng = random.Random(5)
    ids = lambda n: [rng.randrange(3, vocab) for _ in range(n)]
    pairs = [dict(prompt_ids=ids(rng.randint(*lengths[0])), chosen_ids=ids(rng.randint(*lengths[1])),
                  rejected_ids=ids(rng.randint(*lengths[1]))) for _ in range(batch)]
    with open(os.path.join(directory, "pairs.jsonl"), "w") as f:
        f.writelines(json.dumps(p) + "\n" for p in pairs)
    with open(os.path.join(directory, "run.dpo"), "w") as f:
        f.write(SPEC.format(batch=batch, tokens=2048))
    return config, pairs


class Torch:
    """TRL's step by hand on transformers and PEFT."""

    def __init__(self, config, pairs, compiled):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM
        torch.set_num_threads(os.cpu_count())
        torch.manual_seed(0)
        self.torch = torch
        model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "architectures"}))
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        self.model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=targets))
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)
        rows = [(p["prompt_ids"], p[s]) for s in ("chosen_ids", "rejected_ids") for p in pairs]
        longest = max(len(a) + len(b) for a, b in rows)
        self.ids = torch.zeros(len(rows), longest, dtype=torch.long)
        self.mask = torch.zeros(len(rows), longest)
        self.score = torch.zeros(len(rows), longest)
        for i, (prompt, answer) in enumerate(rows):
            n = len(prompt) + len(answer)
            self.ids[i, :n] = torch.tensor(prompt + answer)
            self.mask[i, :n] = 1
            self.score[i, len(prompt):n] = 1

    def logps(self):
        logits = self.forward(input_ids=self.ids, attention_mask=self.mask.long(), use_cache=False).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(-1, self.ids[:, 1:, None]).squeeze(-1)
        return (logp * self.score[:, 1:]).sum(-1)

    def step(self):
        torch = self.torch
        with torch.no_grad(), self.model.disable_adapter():
            ref = self.logps()
        policy = self.logps()
        half = len(policy) // 2
        r = 0.1 * (policy - ref)
        loss = -torch.nn.functional.logsigmoid(r[:half] - r[half:]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def time(self, n):
        out = []
        for _ in range(n):
            start = time.perf_counter()
            self.step()
            out.append(1e3 * (time.perf_counter() - start))
        return out


def dpoc_times(build, directory, runs):
    out = subprocess.run([os.path.join(build, "dpoc"), "bench", os.path.join(directory, "run.dpo"), "--random-weights",
                          "--data", os.path.join(directory, "pairs.jsonl"), f"--runs={runs}", "--json", "--quiet"],
                         capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    report = json.loads(out.stdout)
    return {v["name"]: v for v in report["variants"]}, report


def compare(size, lengths, batch, args):
    with tempfile.TemporaryDirectory() as directory:
        config, pairs = make_case(directory, size, batch, lengths)
        peers = {}
        try:
            peers["torch eager"] = Torch(config, pairs, False)
            if not args.quick:
                peers["torch compiled"] = Torch(config, pairs, True)
        except ImportError as e:
            print(f"(no PyTorch peer: {e})")
        for peer in peers.values():
            peer.time(2)
        times, last = {}, {}
        for _ in range(args.rounds):
            variants, report = dpoc_times(args.build, directory, 3)
            for name, v in variants.items():
                times.setdefault(name, []).append(v["median_ms"])
                last[name] = v
            for name, peer in peers.items():
                times.setdefault(name, []).append(statistics.median(peer.time(3)))
        tokens = sum(2 * len(p["prompt_ids"]) + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs)
        ours = times["as written"]
        result = {"size": size, "batch": batch, "tokens": tokens, "gemm_rate": report["gemm_rate"],
                  "median_ms": {k: statistics.median(v) for k, v in times.items()}, "ratio": {}}
        print(f"\n{size}: {batch} pairs, {tokens} tokens a step; {args.rounds} interleaved rounds")
        for name, t in times.items():
            ratio = sorted(b / a for a, b in zip(ours, t))
            mid = statistics.median(ratio)
            result["ratio"][name] = {"median": mid, "min": ratio[0], "max": ratio[-1]}
            print(f"  {name:16s} {statistics.median(t):9.1f} ms   {mid:5.2f} x as written  ({ratio[0]:.2f} .. {ratio[-1]:.2f})")
        return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    results = [compare("tiny", ((20, 200), (20, 150)), 8, args), compare("15M", ((20, 200), (20, 200)), 8, args)]
    if args.out:
        json.dump(results, open(args.out, "w"), indent=1)


if __name__ == "__main__":
    main()
