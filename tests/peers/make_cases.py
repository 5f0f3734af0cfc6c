"""Makes tests/num/cases/*: small random checkpoints, adapters, pairs and the figures of reference.py.

    python tests/peers/make_cases.py [NAME ...]

Each case is a Hugging Face directory (config.json, safetensors), an adapter in PEFT form, pairs.jsonl
with token ids, and figures.json: per-pair log-probs, 20 AdamW steps of DPO on the adapter, and where
`full` is set, the same for full fine-tuning.  Seeds are fixed; weights are sized so logits vary.
Where `quantize` is set, bitsandbytes (0.50.2 made these, on a CPU) quantizes the linear layers: its tensors are
the checkpoint, what it dequantizes them to is the model of the figures, and crc32 of that stands in
figures.json by tensor (f32, -0 as 0).
"""
import json
import math
import os
import sys
import zlib

import torch
from safetensors.torch import save_file

import reference

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "num", "cases")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]

# name: (config changes, options)
CASES = {
    "gqa": ({"num_attention_heads": 8, "num_key_value_heads": 2}, {"full": True}),
    "mha_tied": ({"tie_word_embeddings": True}, {"full": True}),
    "tied_as_head": ({"tie_word_embeddings": True, "num_key_value_heads": 1}, {"store": "lm_head.weight"}),
    "head_dim": ({"head_dim": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 40}, {}),
    "llama3_rope": ({"rope_scaling": LLAMA3, "rope_theta": 500000.0}, {}),
    "bf16_sharded": ({"num_key_value_heads": 2}, {"dtype": torch.bfloat16, "shards": 3}),
    "f16": ({"num_key_value_heads": 2, "vocab_size": 131}, {"dtype": torch.float16}),
    "biases": ({"attention_bias": True, "mlp_bias": True}, {"full": True}),
    "qwen2": ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True,
               "num_key_value_heads": 2}, {"qkv_bias": True}),
    "mistral": ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 7,
                 "num_key_value_heads": 2}, {}),
    "lengths": ({"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
                {"lengths": [(1, 1, 1), (2, 700, 3), (650, 1, 90), (1, 40, 1), (33, 64, 65)], "steps": 0}),
    "wide_vocab": ({"vocab_size": 9001, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
                    "intermediate_size": 16}, {"lengths": [(5, 9, 7), (3, 4, 12)]}),
    # 418 x 40 in blocks of 64: a part of a block, and of a second group of 256
    "bnb_nf4": ({"hidden_size": 40, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24,
                 "intermediate_size": 418, "num_hidden_layers": 1}, {"quantize": ("nf4", True)}),
    "bnb_fp4": ({"num_key_value_heads": 2}, {"quantize": ("fp4", False), "dtype": torch.bfloat16}),
    "bnb_int8": ({"num_key_value_heads": 2}, {"quantize": ("int8", False)}),
}


def make_config(change):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
              "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
              "vocab_size": 97, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "max_position_embeddings": 2048, "hidden_act": "silu", "tie_word_embeddings": False,
              "bos_token_id": 1, "eos_token_id": 2}
    config.update(change)
    return config


def make_weights(c, options, g):
    dim, ffn, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    heads = c["num_attention_heads"]
    kv = c.get("num_key_value_heads", heads)
    hd = c.get("head_dim") or dim // heads
    shapes = {"self_attn.q_proj": (heads * hd, dim), "self_attn.k_proj": (kv * hd, dim),
              "self_attn.v_proj": (kv * hd, dim), "self_attn.o_proj": (dim, heads * hd),
              "mlp.gate_proj": (ffn, dim), "mlp.up_proj": (ffn, dim), "mlp.down_proj": (dim, ffn)}
    rand = lambda *shape, s=1.0: torch.randn(*shape, generator=g) * s
    w = {"model.embed_tokens.weight": rand(vocab, dim, s=0.7), "model.norm.weight": 1 + rand(dim, s=0.1)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            w[p + name + ".weight"] = 1 + rand(dim, s=0.1)
        for name, (o, n) in shapes.items():
            w[p + name + ".weight"] = rand(o, n, s=1.3 / math.sqrt(n))
            attention = name.startswith("self_attn")
            qkv = attention and not name.endswith("o_proj")
            if (c.get("attention_bias") and attention) or (c.get("mlp_bias") and not attention) \
                    or (options.get("qkv_bias") and qkv):
                w[p + name + ".bias"] = rand(o, s=0.2)
    if not c["tie_word_embeddings"]:
        w["lm_head.weight"] = rand(vocab, dim, s=0.5)
    elif options.get("store"):
        w[options["store"]] = w.pop("model.embed_tokens.weight")
    dtype = options.get("dtype", torch.float32)
    return {k: v.to(dtype).contiguous() for k, v in w.items()}


def quantization_config(kind, double):
    """As transformers writes it."""
    return {"quant_method": "bitsandbytes", "_load_in_4bit": kind != "int8", "_load_in_8bit": kind == "int8",
            "load_in_4bit": kind != "int8", "load_in_8bit": kind == "int8", "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": None, "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False, "bnb_4bit_quant_type": kind if kind != "int8" else "fp4",
            "bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8"}


def quantize(weights, kind, double):
    """(the checkpoint's tensors, their numbers in f32, crc32 of those)"""
    import bitsandbytes.functional as bnb
    # its plain implementation: the AVX-512 one of 0.50.2 takes wrong scales for rows shorter than a block
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as dequantize
    stored, numbers, crc = {}, {}, {}
    for name, w in weights.items():
        if "_proj" not in name or name.endswith(".bias"):
            stored[name] = numbers[name] = w
            continue
        if kind == "int8":
            codes, rows, _ = bnb.int8_vectorwise_quant(w.to(torch.float16))
            stored.update({name: codes, name[:-len("weight")] + "SCB": rows,
                           name[:-len("weight")] + "weight_format": torch.zeros((), dtype=torch.uint8)})
            numbers[name] = codes.double() * rows.double()[:, None] / 127
            continue
        codes, state = bnb.quantize_4bit(w, quant_type=kind, compress_statistics=double)
        stored[name] = codes
        stored.update({f"{name}.{k}": v for k, v in state.as_dict(packed=True).items()})
        absmax = state.absmax
        if double:
            absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
        numbers[name] = dequantize(codes.reshape(-1), absmax, state.code, 64, w.shape, torch.float32) + 0.0
        crc[name] = zlib.crc32(numbers[name].contiguous().numpy().tobytes())
    return stored, numbers, crc


def save_checkpoint(path, weights, shards):
    if shards <= 1:
        save_file(weights, os.path.join(path, "model.safetensors"), {"format": "pt"})
        return
    names, where, total = sorted(weights), {}, 0
    for s in range(shards):
        part = {n: weights[n] for n in names[s::shards]}
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, os.path.join(path, file), {"format": "pt"})
        where.update({n: file for n in part})
        total += sum(t.numel() * t.element_size() for t in part.values())
    json.dump({"metadata": {"total_size": total}, "weight_map": where},
              open(os.path.join(path, "model.safetensors.index.json"), "w"), indent=1)


def save_adapter(path, c, weights, g, r=4, alpha=8):
    os.makedirs(path, exist_ok=True)
    out = {}
    for i in range(c["num_hidden_layers"]):
        for name in LINEARS:
            o, n = weights[f"model.layers.{i}.{name}.weight"].shape
            key = f"base_model.model.model.layers.{i}.{name}."
            out[key + "lora_A.weight"] = torch.randn(r, n, generator=g) / math.sqrt(n)
            out[key + "lora_B.weight"] = torch.randn(o, r, generator=g) * 0.05
    save_file(out, os.path.join(path, "adapter_model.safetensors"), {"format": "pt"})
    json.dump({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": alpha, "lora_dropout": 0.0,
               "target_modules": [n.split(".")[1] for n in LINEARS], "bias": "none", "inference_mode": True,
               "base_model_name_or_path": "random"},
              open(os.path.join(path, "adapter_config.json"), "w"), indent=2, sort_keys=True)


def make_pairs(c, lengths, g):
    ids = lambda n: torch.randint(3, c["vocab_size"], (n,), generator=g).tolist()
    return [{"prompt_ids": ids(a), "chosen_ids": ids(b), "rejected_ids": ids(d)} for a, b, d in lengths]


def lr_of(step, steps=20, warmup=3, lr=1e-2):
    k = step - 1
    return lr * k / warmup if k < warmup else lr * 0.5 * (1 + math.cos(math.pi * (k - warmup) / (steps - warmup)))


def figures(path, pairs, options):
    model = reference.Model(path)
    adapter = reference.load_adapter(os.path.join(path, "adapter"))
    out = {"eval": reference.evaluate(model, pairs, adapter)}
    steps = options.get("steps", 20)
    if steps:
        model.ref = lambda p, side: model.logp(p["prompt_ids"], p[side + "_ids"])
        leaves = [t for a in adapter.values() for t in a[:2]]
        logp = lambda p, side: model.logp(p["prompt_ids"], p[side + "_ids"], adapter)
        out["train"] = reference.train(model, pairs, leaves, logp, steps, 4, lr_of)
    if options.get("full"):
        policy = reference.Model(path)
        # a tied tensor is one leaf under both names
        leaves, by_id = [], {}
        for name, t in policy.weights.items():
            if id(t) not in by_id:
                by_id[id(t)] = t.clone().requires_grad_()
                leaves.append(by_id[id(t)])
            policy.weights[name] = by_id[id(t)]
        model.ref = lambda p, side: model.logp(p["prompt_ids"], p[side + "_ids"])
        logp = lambda p, side: policy.logp(p["prompt_ids"], p[side + "_ids"])
        out["full"] = reference.train(model, pairs, leaves, logp, steps, 4, lambda s: lr_of(s, lr=1e-3))
    return out


def main():
    for number, (name, (change, options)) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        g = torch.Generator().manual_seed(1000 + number)
        path = os.path.join(OUT, name)
        os.makedirs(path, exist_ok=True)
        config = make_config(change)
        json.dump(config, open(os.path.join(path, "config.json"), "w"), indent=1)
        weights = stored = make_weights(config, options, g)
        crc = {}
        if "quantize" in options:
            config["quantization_config"] = quantization_config(*options["quantize"])
            json.dump(config, open(os.path.join(path, "config.json"), "w"), indent=1)
            stored, weights, crc = quantize(weights, *options["quantize"])
        save_checkpoint(path, weights, options.get("shards", 1))
        save_adapter(os.path.join(path, "adapter"), config, weights, g)
        lengths = options.get("lengths", [(9, 5, 8), (17, 12, 3), (4, 1, 20), (30, 2, 2), (6, 25, 11), (12, 7, 7)])
        pairs = make_pairs(config, lengths, g)
        with open(os.path.join(path, "pairs.jsonl"), "w") as f:
            f.writelines(json.dumps(p) + "\n" for p in pairs)
        out = figures(path, pairs, options)
        if crc:
            out["dequantized_crc32"] = crc
        json.dump(out, open(os.path.join(path, "figures.json"), "w"), indent=1)
        save_checkpoint(path, stored, options.get("shards", 1))
        print(name, flush=True)


if __name__ == "__main__":
    main()
