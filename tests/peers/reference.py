"""Double-precision PyTorch reference of what dpoc computes: Llama-family forward, LoRA, DPO, AdamW.

Used by make_cases.py to make the figures that the tests compare with; never needed by the tests.
Relies on torch, numpy, safetensors.  Written from the formulas in Hugging Face's modeling_llama and TRL's
DPOTrainer (sum of completion log-probs, sigmoid loss), not from dpoc.
"""
import json
import math
import os

import torch
from safetensors import safe_open

F64 = torch.float64


def load_checkpoint(directory):
    """All tensors of a checkpoint directory as float64, single file or shards."""
    index = os.path.join(directory, "model.safetensors.index.json")
    names = ["model.safetensors"]
    if os.path.exists(index):
        names = sorted(set(json.load(open(index))["weight_map"].values()))
    tensors = {}
    for name in names:
        with safe_open(os.path.join(directory, name), "pt") as f:
            for key in f.keys():
                tensors[key] = f.get_tensor(key).to(F64)
    return tensors


def inv_freq(config, head_dim):
    params = config.get("rope_parameters") or {}
    theta = config.get("rope_theta", params.get("rope_theta", 10000.0))
    scaling = config.get("rope_scaling") or (params if "rope_type" in params else None)
    freq = theta ** (-torch.arange(0, head_dim, 2, dtype=F64) / head_dim)
    if not scaling:
        return freq
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        return freq / scaling["factor"]
    if kind != "llama3":
        return freq
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    old = scaling["original_max_position_embeddings"]
    wave = 2 * math.pi / freq
    smooth = (old / wave - low) / (high - low)
    middle = freq * ((1 - smooth) / factor + smooth)
    return torch.where(wave < old / high, freq, torch.where(wave > old / low, freq / factor, middle))


class Model:
    """A Llama/Mistral/Qwen2 with optional LoRA; adapters = {module name: (A, B, scale)}."""

    def __init__(self, directory):
        self.config = json.load(open(os.path.join(directory, "config.json")))
        self.weights = load_checkpoint(directory)
        c = self.config
        self.dim, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.kv = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or self.dim // self.heads
        self.depth, self.eps = c["num_hidden_layers"], c.get("rms_norm_eps", 1e-6)
        self.freq = inv_freq(c, self.head_dim)
        self.window = c.get("sliding_window") if c["model_type"] == "mistral" else None
        tied = c.get("tie_word_embeddings", False)
        embed, head = "model.embed_tokens.weight", "lm_head.weight"
        if tied:
            have = self.weights.get(embed, self.weights.get(head))
            self.weights[embed] = self.weights[head] = have

    def linear(self, x, name, adapter):
        y = x @ self.weights[name + ".weight"].T
        if name + ".bias" in self.weights:
            y = y + self.weights[name + ".bias"]
        if adapter and name in adapter:
            a, b, scale = adapter[name]
            y = y + scale * ((x @ a.T) @ b.T)
        return y

    def rms(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weights[name + ".weight"]

    def rope(self, x):
        t = x.shape[0]
        angle = torch.arange(t, dtype=F64)[:, None] * self.freq[None, :]
        cos = torch.cat([angle.cos()] * 2, -1)[:, None, :]
        sin = torch.cat([angle.sin()] * 2, -1)[:, None, :]
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def attention(self, x, p, adapter):
        t = x.shape[0]
        q = self.rope(self.linear(x, p + "q_proj", adapter).view(t, self.heads, self.head_dim))
        k = self.rope(self.linear(x, p + "k_proj", adapter).view(t, self.kv, self.head_dim))
        v = self.linear(x, p + "v_proj", adapter).view(t, self.kv, self.head_dim)
        k = k.repeat_interleave(self.heads // self.kv, 1)
        v = v.repeat_interleave(self.heads // self.kv, 1)
        score = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(self.head_dim)
        i, j = torch.arange(t)[:, None], torch.arange(t)[None, :]
        mask = j > i
        if self.window:
            mask = mask | (i - j >= self.window)
        score = score.masked_fill(mask, -math.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", score, v).reshape(t, -1)
        return self.linear(out, p + "o_proj", adapter)

    def logits(self, ids, adapter=None):
        x = self.weights["model.embed_tokens.weight"][torch.tensor(ids)]
        for i in range(self.depth):
            p = f"model.layers.{i}."
            x = x + self.attention(self.rms(x, p + "input_layernorm"), p + "self_attn.", adapter)
            h = self.rms(x, p + "post_attention_layernorm")
            gate = self.linear(h, p + "mlp.gate_proj", adapter)
            up = self.linear(h, p + "mlp.up_proj", adapter)
            x = x + self.linear(torch.nn.functional.silu(gate) * up, p + "mlp.down_proj", adapter)
        return self.linear(self.rms(x, "model.norm"), "lm_head", adapter)

    def logp(self, prompt, answer, adapter=None):
        """Sum of log-probabilities of the answer's tokens after the prompt."""
        ids = prompt + answer
        rows = self.logits(ids[:-1] if len(ids) > 1 else ids, adapter)[len(prompt) - 1:]
        return rows.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].sum()


def load_adapter(directory):
    """A PEFT adapter as {module: [A, B, scale]} of float64 leaves."""
    config = json.load(open(os.path.join(directory, "adapter_config.json")))
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    out = {}
    with safe_open(os.path.join(directory, "adapter_model.safetensors"), "pt") as f:
        for key in f.keys():
            module = key.removeprefix("base_model.model.").split(".lora_")[0]
            which = 0 if ".lora_A." in key else 1
            out.setdefault(module, [None, None, scale])[which] = f.get_tensor(key).to(F64).requires_grad_()
    return out


def evaluate(model, pairs, adapter, beta=0.1):
    rows = []
    with torch.no_grad():
        for p in pairs:
            w, l = p["chosen_ids"], p["rejected_ids"]
            rows.append({
                "logp_chosen": model.logp(p["prompt_ids"], w, adapter).item(),
                "logp_rejected": model.logp(p["prompt_ids"], l, adapter).item(),
                "ref_logp_chosen": model.logp(p["prompt_ids"], w).item(),
                "ref_logp_rejected": model.logp(p["prompt_ids"], l).item(),
                "chosen_tokens": len(w), "rejected_tokens": len(l)})
    n = len(rows)
    margin = [beta * ((r["logp_chosen"] - r["ref_logp_chosen"]) - (r["logp_rejected"] - r["ref_logp_rejected"]))
              for r in rows]
    return {"pairs": n, "per_pair": rows, "loss": sum(math.log1p(math.exp(-m)) for m in margin) / n,
            "rewards/margins": sum(margin) / n}


def train(model, pairs, parameters, logp, steps, batch, lr_of, beta=0.1, clip=1.0, weight_decay=0.0):
    """AdamW on `parameters`; logp(pair, side) -> policy log-prob; reference from the frozen model copy."""
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=weight_decay)
    with torch.no_grad():
        reference = [(model.ref(p, "chosen"), model.ref(p, "rejected")) for p in pairs]
    out = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss, reward_w, reward_l = 0.0, 0.0, 0.0
        for b in range(batch):
            i = ((step - 1) * batch + b) % len(pairs)
            r_w = logp(pairs[i], "chosen") - reference[i][0]
            r_l = logp(pairs[i], "rejected") - reference[i][1]
            loss = loss - torch.nn.functional.logsigmoid(beta * (r_w - r_l)) / batch
            reward_w += beta * r_w.item() / batch
            reward_l += beta * r_l.item() / batch
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip if clip > 0 else math.inf).item()
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        optimizer.step()
        out.append({"step": step, "loss": loss.item(), "grad_norm": norm, "learning_rate": lr_of(step),
                    "rewards/chosen": reward_w, "rewards/rejected": reward_l})
    return out
