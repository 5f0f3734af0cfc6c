"""Makes the demo's data: questions about invented facts, each with a wordy and a concise answer.

    python3 examples/demo/make_data.py        writes beside itself; fixed seed, so always the same files

  tokenizer.json, config.json   a word-level byte-pair vocabulary and a small Llama's sizes
  sft.jsonl                     what the base model is taught: both styles, the wordy one more often
  pairs.jsonl                   preference pairs: concise chosen, wordy rejected
  heldout.jsonl                 pairs about facts that neither file above contains, with the required word
  prompts.jsonl                 the held-out prompts alone, for `generate --chat`
Nothing here comes from anywhere else.
"""
import json
import os
import random

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = "Anna Ben Clara David Emma Felix Grace Hugo Iris Jonas Karin Leo Mira Nils Olga Paul".split()
ITEMS = "ball book cup hat key lamp map pen shoe spoon toy watch box chair coin drum".split()
COLORS = "red blue green yellow black white brown pink gray orange purple silver".split()
PLACES = "kitchen garden attic cellar garage hallway office barn library bathroom".split()
NUMBERS = "two three four five six seven eight nine ten twelve".split()

KINDS = {
    "color": (COLORS, "{n} has a {f} {i}. What color is it?",
              ["It is {f}.", "The {i} is {f}."],
              ["Thank you for this question. Let me think about it. {n} has a {i}, and the color of the {i} is {f}. I hope that helps.",
               "That is a good question. If we look at what was said about the {i} of {n}, we can see that it is {f}. Please ask again."]),
    "place": (PLACES, "{n} put the {i} in the {f}. Where is the {i}?",
              ["In the {f}.", "It is in the {f}."],
              ["Thank you for this question. Let me think about it. The {i} was put somewhere by {n}, and that place is the {f}. I hope that helps.",
               "That is a good question. If we look at what {n} did with the {i}, we can see that it is in the {f}. Please ask again."]),
    "number": (NUMBERS, "{n} has {f} of the {i} kind. How many does {n} have?",
               ["It is {f}.", "{n} has {f}."],
               ["Thank you for this question. Let me think about it. The number of things of the {i} kind that {n} has is {f}. I hope that helps.",
                "That is a good question. If we count what {n} has of the {i} kind, we can see that it is {f}. Please ask again."]),
}


def facts(rng):
    """All (kind, name, item, fact), shuffled."""
    every = [(k, n, i, f) for k, spec in KINDS.items() for n in NAMES for i in ITEMS for f in spec[0]]
    rng.shuffle(every)
    return every


def fill(fact, rng):
    kind, n, i, f = fact
    _, question, concise, wordy = KINDS[kind]
    put = lambda s: s.format(n=n, i=i, f=f)
    return {"prompt": "Q: " + put(question) + "\nA:", "concise": " " + put(rng.choice(concise)),
            "wordy": " " + put(rng.choice(wordy)), "fact": f}


def byte_alphabet():
    keep = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    table, extra = {}, 0
    for b in range(256):
        if b in keep:
            table[b] = chr(b)
        else:
            table[b] = chr(0x100 + extra)
            extra += 1
    return table


def make_tokenizer(texts):
    """Bytes, then every word of the texts (with and without its space) as one token."""
    import re
    table = byte_alphabet()
    words = sorted({w for t in texts for w in re.findall(r" ?[A-Za-z]+", t) if len(w) > 1})
    vocab = {"<|begin|>": 0, "<|end|>": 1}
    for b in range(256):
        vocab[table[b]] = len(vocab)
    for w in words:  # ignore_merges: a word in the vocabulary needs no merges
        vocab.setdefault("".join(table[b] for b in w.encode()), len(vocab))
    special = lambda i, s: {"id": i, "content": s, "single_word": False, "lstrip": False, "rstrip": False,
                            "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [special(0, "<|begin|>"), special(1, "<|end|>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "TemplateProcessing",
                           "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                                      {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                  "vocab": vocab, "merges": []},
    }


def write(name, rows):
    with open(os.path.join(HERE, name), "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)


def main():
    rng = random.Random(7)
    every = facts(rng)
    held, sft, pairs = every[:64], every[64:4160], every[4160:4672]
    rows = [fill(x, rng) for x in sft]
    write("sft.jsonl", [{"prompt": r["prompt"], "completion": r["wordy" if rng.random() < 0.65 else "concise"]}
                        for r in rows])
    write("pairs.jsonl", [{"prompt": r["prompt"], "chosen": r["concise"], "rejected": r["wordy"]}
                          for r in (fill(x, rng) for x in pairs)])
    held_rows = [fill(x, rng) for x in held]
    write("heldout.jsonl", [{"prompt": r["prompt"], "chosen": r["concise"], "rejected": r["wordy"],
                             "fact": r["fact"]} for r in held_rows])
    write("prompts.jsonl", [{"prompt": r["prompt"], "fact": r["fact"]} for r in held_rows])
    texts = [r[k] for r in rows + held_rows for k in ("prompt", "concise", "wordy")]
    tokenizer = make_tokenizer(texts)
    size = len(tokenizer["model"]["vocab"])
    os.makedirs(os.path.join(HERE, "model"), exist_ok=True)
    json.dump(tokenizer, open(os.path.join(HERE, "model", "tokenizer.json"), "w"), ensure_ascii=False, indent=0)
    json.dump({"bos_token": "<|begin|>", "eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"},
              open(os.path.join(HERE, "model", "tokenizer_config.json"), "w"), indent=1)
    json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
               "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4,
               "num_key_value_heads": 2, "vocab_size": (size + 15) // 16 * 16, "max_position_embeddings": 256,
               "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True,
               "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32"},
              open(os.path.join(HERE, "model", "config.json"), "w"), indent=1)
    print(f"vocabulary {size}, {len(sft)} SFT examples, {len(pairs)} pairs, {len(held)} held out")


if __name__ == "__main__":
    main()
