#!/usr/bin/env python3
"""Makes tokenizers.json: small tokenizer.json files of every kind that is understood, with the ids and
decoded texts that Hugging Face's own `tokenizers` (0.23.3) gives for nasty strings.
Needs `pip install tokenizers`; the tests need only its output.  Run in this directory."""
import json, random
from tokenizers import Tokenizer, __version__

TEXTS = ["", " ", "  ", "a", "hello world", " hello", "hello  world ", "Hello, World! it's 12345 don't I'LL",
    "tab\tnew\nline\r\n\r\n  x", "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600 e\u0301", "\u00a0nbsp\u3000wide\u2028x",
    "<s>hello</s>", " <s> hello </s> x", "a<mask>b <mask>  c", "word<w>word <w> x<w>", "<pad><pad>", "x<s", "</s",
    "\u2581hi\u2581there", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "the thethe thathe",
    "hello" * 40, "1 22 333 4444 55555", "a\u0000b", "<norm>x <norm> y", "\u017fs 's 'S", "x" * 33 + " " * 33,
    "\u2460<w>\u00bd <w>\u200d<w> \ufffd<w>\u24d0 <w>\u00b2", "a  \u180e b\n\n\u180ec \u180e", "<r>   <mask>  x<r>\n\u3000 <r><mask>",
    "Ab CD\u01c5 e\u0301F\u02b0g don'T 7\u0663\u2167\u00bd x\u00b2_y \u4e00\u3042\u30a2!!\n/", "\u2581\u2581 x"]

def byte_alphabet():
    bs = list(range(0x21, 0x7f)) + list(range(0xa1, 0xad)) + list(range(0xae, 0x100))
    cs = bs[:]
    n = 0
    for b in range(256):
        if b not in bs:
            bs.append(b); cs.append(256 + n); n += 1
    return [chr(c) for _, c in sorted(zip(bs, cs))]

def learn(symbols, corpus, n):
    """n merges, greedily by count: enough for a test vocabulary."""
    words, merges = [list(w) for w in corpus], []
    for _ in range(n):
        count = {}
        for w in words:
            for p in zip(w, w[1:]): count[p] = count.get(p, 0) + 1
        if not count: break
        best = max(sorted(count), key=lambda p: count[p])
        merges.append(list(best))
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == best: w[i:i + 2] = [w[i] + w[i + 1]]
                i += 1
    vocab = {}
    for s in symbols + [a + b for a, b in merges]:
        vocab.setdefault(s, len(vocab))
    return vocab, merges

WORDS = "hello world the that there this word it's don't 12 345 aaa aaaa naive you hi hello the the".split()
ADDED = [("<s>", {}), ("</s>", {}), ("<pad>", {}), ("<mask>", {"lstrip": True}), ("<w>", {"single_word": True}),
         ("<r>", {"rstrip": True}), ("<norm>", {"normalized": True, "special": False})]

def added(vocab):
    out = []
    for name, flags in ADDED:
        if name not in vocab: vocab[name] = len(vocab)
        entry = dict(id=vocab[name], content=name, single_word=False, lstrip=False, rstrip=False,
                     normalized=False, special=True)
        entry.update(flags)
        out.append(entry)
    return out

def byte_level(pre, ignore=False, strings=False, normalizer=None):
    a = byte_alphabet()
    enc = lambda w: "".join(a[b] for b in w.encode())
    vocab, merges = learn(a, [enc(w) for w in WORDS + [" " + w for w in WORDS] * 2 + ["\n\n", "  "]], 60)
    extra = added(vocab)
    if ignore: vocab[enc(" thathe")] = len(vocab)
    if strings: merges = [" ".join(m) for m in merges]
    return dict(version="1.0", truncation=None, padding=None, added_tokens=extra, normalizer=normalizer,
        pre_tokenizer=pre, post_processor=None,
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None,
            end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, ignore_merges=ignore, vocab=vocab, merges=merges))

def fallback(normalizer, pre, decoder, all_bytes=True, fuse=True, unk="<unk>"):
    symbols = ["<unk>", "<s>", "</s>"] + (["<0x%02X>" % b for b in range(256)] if all_bytes else [])
    text = ["\u2581" + w for w in WORDS] * 2 + WORDS + ["\u2581the\u2581that", "\u2581\u2581"]
    chars = sorted(set("".join(text)) | set("xyHWI,!."))
    vocab, merges = learn(symbols + chars, text, 60)
    extra = added(vocab)
    return dict(version="1.0", truncation=None, padding=None, added_tokens=extra, normalizer=normalizer,
        pre_tokenizer=pre, post_processor=None, decoder=decoder,
        model=dict(type="BPE", dropout=None, unk_token=unk, continuing_subword_prefix=None,
            end_of_word_suffix=None, fuse_unk=fuse, byte_fallback=True, ignore_merges=False, vocab=vocab, merges=merges))

R3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
      r"\s*[\r\n]+|\s+(?!\S)|\s+")
split = lambda regex, behavior="Isolated", invert=False: {"type": "Split", "pattern": {"Regex": regex},
                                                          "behavior": behavior, "invert": invert}
bl = lambda prefix=False, regex=False: {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}
seq = lambda *s: {"type": "Sequence", "pretokenizers": list(s)}
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
RT = (rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|"
      r"\s*[\r\n]+|\s+(?!\S)|\s+")
RD = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
      r"\s*[\r\n]+|\s+(?!\S)|\s+")
SP = "\u2581"
LLAMA2 = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SP},
          {"type": "Replace", "pattern": {"String": " "}, "content": SP}]}
DECODE = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": SP}, "content": " "},
          {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
meta = lambda scheme, cut: {"type": "Metaspace", "replacement": SP, "prepend_scheme": scheme, "split": cut}

CASES = {
    "llama3": byte_level(seq(split(R3), bl())),
    "llama3 ignore_merges": byte_level(seq(split(R3), bl()), ignore=True, strings=True),
    "gpt2": byte_level(bl(regex=True)),
    "gpt2 prefix": byte_level(bl(prefix=True, regex=True)),
    "digits": byte_level(seq({"type": "Digits", "individual_digits": True}, bl(regex=True))),
    "digit runs": byte_level(seq({"type": "Digits", "individual_digits": False}, bl(regex=True))),
    "removed": byte_level(seq(split(r"\s+", "Removed"), bl())),
    "kept": byte_level(seq(split(r"\w+", "Removed", True), bl())),
    "literal": byte_level(seq({"type": "Split", "pattern": {"String": "l"}, "behavior": "Isolated", "invert": False}, bl())),
    "no regex": byte_level(bl()),
    "nfc": byte_level(seq(split(R3), bl()), normalizer={"type": "NFC"}),
    "tekken": byte_level(seq(split(RT), bl()), ignore=True),
    "several splits": byte_level(seq(split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), split(RD), bl())),
    "words": byte_level(seq(split(r"\w+|[^\w\s]+"), bl())),
    "llama2": fallback(LLAMA2, None, DECODE),
    "llama2 unk": fallback(LLAMA2, None, DECODE, all_bytes=False),
    "llama2 no fuse": fallback(LLAMA2, None, DECODE, all_bytes=False, fuse=False),
    "metaspace first": fallback(None, meta("first", False), DECODE),
    "metaspace always": fallback(None, meta("always", True), DECODE),
    "metaspace decoder": fallback(None, meta("first", True), meta("first", True), all_bytes=False),
    "metaspace never": fallback(None, meta("never", True), dict(meta("never", True))),
}

rng = random.Random(7)
alphabet = list("helowrdta '1<>s/\n\t") + ["\u2581", "\u4f60", "\u00e9", "\u0301", "<s>", "<mask>", "<w>", "<norm>", " ", " "]
texts = TEXTS + ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 60))) for _ in range(25)]
out = []
for name, spec in CASES.items():
    t = Tokenizer.from_str(json.dumps(spec))
    cases = []
    for text in texts:
        plain = t.encode(text, add_special_tokens=False).ids
        t.encode_special_tokens = True
        as_text = t.encode(text, add_special_tokens=False).ids
        t.encode_special_tokens = False
        cases.append({"text": text, "ids": plain, "as_text": as_text,
                      "decoded": t.decode(plain, skip_special_tokens=False) if name != "metaspace never" else None,
                      "skipped": t.decode(plain, skip_special_tokens=True) if name != "metaspace never" else None})
    out.append({"name": name, "tokenizer": spec, "cases": cases})
json.dump({"oracle": "tokenizers " + __version__, "tokenizers": out}, open("tokenizers.json", "w"),
          ensure_ascii=True, separators=(",", ":"))

# templates.json: conversations through Jinja templates of the published forms, and what `tokenizers` makes of the
# rendered text (which is what transformers does).  Contents hold no control tokens.
from jinja2 import Environment

TURNS = "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ 1 / 0 }}{% endif %}"
SPLIT = ("{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set rest = messages[1:] %}"
         "{% else %}{% set sys = none %}{% set rest = messages %}{% endif %}")
FIRST = "{% set head = sys + '\\n\\n' if loop.first and sys is not none else '' %}"
JINJA = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "chatml bos": "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
                  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "chatml default": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are of use.<|im_end|>\\n' }}{% endif %}"
              "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama2": SPLIT + "{% for m in rest %}" + TURNS + "{% set c = '<<SYS>>\\n' + sys + '\\n<</SYS>>\\n\\n' + m.content "
              "if loop.first and sys is not none else m.content %}{% if m.role == 'user' %}"
              "{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}{% else %}{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "mistral": SPLIT + "{{ bos_token }}{% for m in rest %}" + TURNS + FIRST + "{% if m.role == 'user' %}"
               '{{ "[INST] " + head + m.content + "[/INST]" }}{% else %}{{ " " + m.content|trim + eos_token }}{% endif %}{% endfor %}',
    "mistral_v0.1": SPLIT + "{{ bos_token }}{% for m in rest %}" + TURNS + FIRST + "{% if m.role == 'user' %}"
               "{{ '[INST] ' + head + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token + ' ' }}{% endif %}{% endfor %}",
    "mistral_v0.2": SPLIT + "{{ bos_token }}{% for m in rest %}" + TURNS + FIRST + "{% if m.role == 'user' %}"
               "{{ '[INST] ' + head + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "mistral_v1": SPLIT + "{{ bos_token }}{% for m in rest %}" + TURNS + FIRST + "{% if m.role == 'user' %}"
               "{{ ' [INST] ' + head + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "zephyr": "{% for m in messages %}\n{% if m.role == 'user' %}\n{{ '<|user|>\\n' + m.content + eos_token }}\n"
              "{% elif m.role == 'system' %}\n{{ '<|system|>\\n' + m.content + eos_token }}\n{% else %}\n"
              "{{ '<|assistant|>\\n' + m.content + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n"
              "{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "llama3": "{% for m in messages %}{% set c = '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content|trim + "
              "'<|eot_id|>' %}{% if loop.first %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
}
CONTROL = {"chatml": ["<|im_start|>", "<|im_end|>"], "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
           "mistral": ["[INST]", "[/INST]"]}
KINDS = ["llama3", "nfc", "llama2", "metaspace first", "metaspace always"]
CONTENTS = ["", "hello", " the that ", "\n\nhello world\n", "it's\u00a0the \u00e9\u3000", "12345 e\u0301 \u4f60", "  \u2581hi"]

def with_control(spec, names, strip):
    spec = json.loads(json.dumps(spec))
    for name in names:
        spec["added_tokens"].append(dict(id=max(a for a in list(spec["model"]["vocab"].values()) +
            [t["id"] for t in spec["added_tokens"]]) + 1, content=name, single_word=False, lstrip=strip and "end" in name,
            rstrip=strip, normalized=False, special=True))
    return spec

env, out = Environment(trim_blocks=True, lstrip_blocks=True), []
for kind in KINDS:
    for name, jinja in JINJA.items():
        for strip in (False, True):
            names = CONTROL.get(name.split()[0], [])
            if strip and not names: continue
            t = Tokenizer.from_str(json.dumps(with_control(CASES[kind], names, strip)))
            cases = []
            for n in range(6):
                roles = ["system"] * (n % 2) + ["user", "assistant"] * 2
                messages = [{"role": r, "content": rng.choice(CONTENTS)} for r in roles[:n % 2 + 1 + n // 2]]
                prompt = messages[-1]["role"] == "user"
                text = env.from_string(jinja).render(messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")
                cases.append({"messages": messages, "prompt": prompt, "text": text, "ids": t.encode(text, add_special_tokens=False).ids})
            out.append({"kind": kind, "control": names, "strip": strip, "name": name, "jinja": jinja, "cases": cases})
json.dump({"oracle": "jinja2, tokenizers " + __version__, "templates": out}, open("templates.json", "w"), ensure_ascii=True,
          separators=(",", ":"))
