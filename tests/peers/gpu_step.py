"""One DPO step of a Llama on a GPU, in dpoc and in PyTorch + PEFT, interleaved in one run.

    python gpu_step.py --dpoc build/dpoc --spec run.dpo --config config.json --pairs pairs.jsonl --out peer.json

The base has random weights, made on the device from config.json (nothing is downloaded), LoRA r = 16 stands on
every projection.  The step is TRL's, written out: rows of chosen and rejected padded to the longest of the
micro-batch, a reference forward with the adapter switched off, a policy forward with full logits, log-softmax row
by row, sigmoid loss, backward, clipping, AdamW; bf16 autocast over fp32 adapters; gradient checkpointing as its
recipes have it, and once without.  The base is NF4 through bitsandbytes where that can be imported, else bf16:
then PyTorch does not pay for dequantization and its memory is a bf16 model's, which the report says.
Rounds alternate between one `dpoc bench` process and a few steps of every peer.  What is reported is
medians, their spread, and ratios to dpoc's first variant of the same round.
"""
import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--dpoc", default="build/dpoc")
    p.add_argument("--spec", required=True)
    p.add_argument("--config", required=True)
    p.add_argument("--pairs", required=True)
    p.add_argument("--micro", type=int, default=2, help="pairs of a micro-batch in PyTorch")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--runs", type=int, default=3, help="steps a round")
    p.add_argument("--seconds", type=float, default=150, help="no round begins after this time")
    p.add_argument("--device", default="cuda")
    p.add_argument("--dpoc-flags", default="", help="further flags for dpoc bench, separated by blanks")
    p.add_argument("--compiled", action="store_true", help="torch.compile'd peers too")
    p.add_argument("--out", required=True)
    return p.parse_args()


# ---- the peer ----

def importable(name):
    try:
        __import__(name)
        return True
    except Exception:  # a broken installation is as good as none
        return False


def quantize(model, torch, notes):
    """Linear layers of the base in NF4 with double quantization; False where bitsandbytes is missing."""
    if not torch.cuda.is_available() or not importable("bitsandbytes"):
        notes.append("bitsandbytes cannot be imported: PyTorch's base is bf16, so it neither dequantizes nor saves "
                     "memory; dpoc's base is NF4")
        return False
    import bitsandbytes as bnb
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if not isinstance(linear, torch.nn.Linear):
                    continue
                small = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=linear.bias is not None,
                                          compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
                                          device="cpu")
                small.weight = bnb.nn.Params4bit(linear.weight.data.cpu(), requires_grad=False, quant_type="nf4",
                                                 compress_statistics=True)
                setattr(block, name, small.to("cuda"))
    return True


class Base:
    """The model with its adapter, and a step of TRL's on it."""

    def __init__(self, args, notes):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM
        self.torch, self.device = torch, args.device
        torch.manual_seed(0)
        config = json.load(open(args.config))
        config = LlamaConfig(**{k: v for k, v in config.items() if k != "architectures"})
        config._attn_implementation = "sdpa"
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(args.device):
            model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        self.quantized = quantize(model, torch, notes)
        lora = LoraConfig(r=args.rank, lora_alpha=args.rank, lora_dropout=0, target_modules=TARGETS)
        self.model = get_peft_model(model, lora)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        for p in self.trained:
            p.data = p.data.float()
        self.model.enable_input_require_grads()
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.0, weight_decay=0.0)
        pairs = [json.loads(line) for line in open(args.pairs)]
        self.batches = [self.collate(pairs[i:i + args.micro]) for i in range(0, len(pairs), args.micro)]
        self.pairs = len(pairs)
        self.forward = self.model

    def collate(self, pairs):
        torch = self.torch
        rows = [(p["prompt_ids"], p[side]) for side in ("chosen_ids", "rejected_ids") for p in pairs]
        longest = max(len(a) + len(b) for a, b in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask, score = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest)
        for i, (prompt, answer) in enumerate(rows):
            n = len(prompt) + len(answer)
            ids[i, :n] = torch.tensor(prompt + answer)
            mask[i, :n] = 1
            score[i, len(prompt):n] = 1
        return [t.to(self.device) for t in (ids, mask, score)]

    def logps(self, batch):
        torch, (ids, mask, score) = self.torch, batch
        with torch.autocast(self.device, dtype=torch.bfloat16):
            logits = self.forward(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        rows = []
        for row, target in zip(logits, ids[:, 1:]):  # row by row, as TRL's selective_log_softmax in bf16
            rows.append(row.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1))
        return (torch.stack(rows) * score[:, 1:]).sum(-1)

    def step(self):
        torch = self.torch
        for batch in self.batches:
            with torch.no_grad(), self.model.disable_adapter():
                reference = self.logps(batch)
            policy = self.logps(batch)
            half = len(policy) // 2
            reward = 0.1 * (policy - reference)
            loss = -torch.nn.functional.logsigmoid(reward[:half] - reward[half:]).sum() / self.pairs
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def sync(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()


class Peer:
    """One way to run the base: checkpointing or not, compiled or not."""

    def __init__(self, base, checkpointing, compiled):
        self.base, self.checkpointing = base, checkpointing
        self.forward = base.torch.compile(base.model, dynamic=False) if compiled else base.model
        self.ms, self.peak = [], 0

    def time(self, n):
        base, torch = self.base, self.base.torch
        if self.checkpointing:
            base.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            base.model.gradient_checkpointing_disable()
        base.model.train()
        base.forward = self.forward
        if base.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(n):
            base.sync()
            start = time.perf_counter()
            base.step()
            base.sync()
            times.append(1e3 * (time.perf_counter() - start))
        if base.device == "cuda":
            self.peak = max(self.peak, torch.cuda.max_memory_reserved())
            torch.cuda.empty_cache()
        return times


def out_of_time(number, frame):
    raise TimeoutError("its first step takes too long")


def open_peers(args, notes):
    """Peers that survive a warm-up step, by name."""
    peers = {}
    try:
        base = Base(args, notes)
    except Exception as e:
        notes.append(f"no PyTorch peer: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
        return peers
    weights = "nf4" if base.quantized else "bf16"
    kinds = [("checkpointing", True, False), ("no checkpointing", False, False)]
    if args.compiled:
        kinds.append(("compiled, checkpointing", True, True))
    for name, checkpointing, compiled in kinds:
        name = f"PyTorch + PEFT, {weights} base, {name}"
        try:
            signal.alarm(max(1, int(args.seconds / 2)))  # a compiler may take longer than there is time for
            peer = Peer(base, checkpointing, compiled)
            peer.time(1)
            peers[name] = peer
        except Exception as e:  # out of memory is an answer too
            notes.append(f"{name}: {type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}")
            base.optimizer.zero_grad(set_to_none=True)
            if base.device == "cuda":
                base.torch.cuda.empty_cache()
        finally:
            signal.alarm(0)
    for name in ("trl", "unsloth"):
        state = "is present, but its own trainer is not driven here" if importable(name) else "cannot be imported"
        notes.append(f"{name} {state}")
    return peers


# ---- dpoc ----

def dpoc_round(args, notes):
    """Median of each variant, and the report; None after a note."""
    command = [args.dpoc, "bench", args.spec, "--random-weights", "--data", args.pairs, f"--runs={args.runs}",
               "--json", "--quiet"] + args.dpoc_flags.split()
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        notes.append(f"dpoc bench: exit {out.returncode}: {out.stderr.strip()[:300]}")
        return None
    return {v["name"]: v for v in json.loads(out.stdout)["variants"]}


def summary(times, ours, peak):
    ratio = sorted(b / a for a, b in zip(ours, times))
    return {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times),
            "ratio": statistics.median(ratio), "ratio_min": ratio[0], "ratio_max": ratio[-1], "peak_bytes": peak}


def write(path, times, first, peak, notes):
    rows = {name: summary(t, times[first], peak[name]) for name, t in times.items()}
    what = ("TRL's step written out in PyTorch on transformers and PEFT; each round is a dpoc process, then every "
            "peer. Peak: torch's reserved memory; dpoc's arena (the context comes on top of both).")
    with open(path, "w") as f:
        json.dump({"what": what, "rows": rows, "notes": notes}, f, indent=1)
    return rows


def main():
    args = arguments()
    notes, start = [], time.perf_counter()
    signal.signal(signal.SIGALRM, out_of_time)
    peers = open_peers(args, notes)
    times, peak, first = {}, {}, None
    for i in range(args.rounds):
        if i and time.perf_counter() - start > args.seconds:
            notes.append(f"{i} of {args.rounds} rounds: time was up")
            break
        variants = dpoc_round(args, notes)
        if variants is None:
            break
        for name, v in variants.items():
            name = f"dpoc, {name}"
            first = first or name
            times.setdefault(name, []).append(v["median_ms"])
            peak[name] = v["peak_bytes"]
        for name, peer in peers.items():
            times.setdefault(name, []).append(statistics.median(peer.time(args.runs)))
            peak[name] = peer.peak
        if args.device == "cuda" and peers:
            next(iter(peers.values())).base.torch.cuda.empty_cache()
        write(args.out, times, first, peak, notes)  # what there is, should time run out
    rows = write(args.out, times, first, peak, notes)
    for name, r in rows.items():
        print(f"{name:50s} {r['median_ms']:9.1f} ms  {r['ratio']:5.2f} of dpoc  {r['peak_bytes'] / 2**30:6.2f} GiB")
    for note in notes:
        print(f"- {note}")
    if first is None:
        return 1
    return 0 if peers else 3


if __name__ == "__main__":
    sys.exit(main())
