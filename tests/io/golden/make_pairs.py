#!/usr/bin/env python3
"""Makes pairs.json: records of every dialect and the token ids that TRL 1.16's rules give for them, computed
with Hugging Face's `tokenizers` and Jinja2 on the files of ../../../../shared/data.
Needs `pip install tokenizers jinja2`; the tests need only its output.  Run in this directory."""
import json, jinja2
from tokenizers import Tokenizer

DATA = "../../../../shared/data/"
env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
LLAMA3 = env.from_string(open(DATA + "llama3_chat_templates/Llama-3-8B-Instruct.jinja").read())
tok = {n: Tokenizer.from_file(DATA + n + "/tokenizer.json") for n in ("llama3_tokenizer", "stories260k")}
EOS = {"llama3_tokenizer": "<|eot_id|>", "stories260k": "</s>"}

def render(messages, generation):
    return LLAMA3.render(messages=messages, add_generation_prompt=generation, bos_token="<|begin_of_text|>")

def split(p, sides):
    """The answers begin where a side leaves the prompt's own ids."""
    n = len(p)
    for ids in sides:
        n = min(n, next((i for i in range(min(len(p), len(ids))) if p[i] != ids[i]), len(p)))
    return [p[:n]] + [ids[n:] for ids in sides] + [[]] * (2 - len(sides))

def chat(prompt, chosen, rejected):
    t = tok["llama3_tokenizer"]
    enc = lambda s: t.encode(s, add_special_tokens=False).ids
    p = enc(render(prompt, True))
    return split(p, [enc(render(prompt + answer, False)) for answer in (chosen, rejected) if answer])

def text(name, prompt, chosen, rejected):
    t, eos = tok[name], EOS[name]
    enc = lambda s: t.encode(s, add_special_tokens=True).ids
    p = enc(prompt)
    return split(p, [enc(prompt + (s if s.endswith(eos) else s + eos)) for s in (chosen, rejected) if s is not None])

u = lambda s: {"role": "user", "content": s}
a = lambda s: {"role": "assistant", "content": s}
s_ = lambda s: {"role": "system", "content": s}
gpt = lambda s: {"from": "gpt", "value": s}
human = lambda s: {"from": "human", "value": s}
parts = lambda role, s, w: {"role": role, "content": [{"type": "text", "value": s}], "loss_weight": w}
Q, C, R = "What is 2+2? \u4f60\u597d", " 4, of course.\n", "5 \U0001f600"
groups = []

def group(name, tokenizer, template, records, sft=False):
    groups.append({"name": name, "tokenizer": tokenizer, "template": template, "sft": sft,
                   "lines": [r for r, _ in records], "ids": [i for _, i in records]})

std = [("Once upon a time", " there was a cat.", " a dog barked"), ("The end", "</s>done", "x"), ("A", "b", "c</s>"), ("", "Hello", "Bye")]
for name in tok:
    group("trl strings " + name, name, "auto", [({"prompt": p, "chosen": c, "rejected": r, "other": 3}, text(name, p, c, r)) for p, c, r in std])
group("trl implicit strings", "stories260k", "auto",
      [({"chosen": "The cat sat down", "rejected": "The cat ran"}, text("stories260k", "The cat", " sat down", " ran")),
       ({"chosen": "na\u00efve", "rejected": "na\u00eave"}, text("stories260k", "na", "\u00efve", "\u00eave"))])
messages = [([u(Q)], [a(C)], [a(R)]), ([s_(" Be brief."), u(Q), a("Hm?"), u("2+2!")], [a("4")], [a("5")])]
group("trl conversations", "llama3_tokenizer", "llama3",
      [({"prompt": p, "chosen": c, "rejected": r}, chat(p, c, r)) for p, c, r in messages])
group("trl implicit conversations", "llama3_tokenizer", "llama3",
      [({"chosen": p + c, "rejected": p + r}, chat(p, c, r)) for p, c, r in messages])
group("ultrafeedback", "llama3_tokenizer", "llama3",
      [({"prompt": Q, "chosen": [u(Q), a(C)], "rejected": [u(Q), a(R)], "score_chosen": 1}, chat([u(Q)], [a(C)], [a(R)])),
       ({"prompt": Q, "chosen": [a(C)], "rejected": [a(R)]}, chat([u(Q)], [a(C)], [a(R)]))])
group("strings in a named template", "llama3_tokenizer", "llama3",
      [({"prompt": Q, "chosen": C, "rejected": R}, chat([u(Q)], [a(C)], [a(R)]))])
group("orca", "llama3_tokenizer", "llama3",
      [({"system": "S", "question": Q, "chosen": C, "rejected": R}, chat([s_("S"), u(Q)], [a(C)], [a(R)])),
       ({"system": "", "question": Q, "chosen": C, "rejected": R}, chat([u(Q)], [a(C)], [a(R)]))])
HH = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: 2+2\n\nAssistant:"
group("hh in a template", "llama3_tokenizer", "llama3",
      [({"chosen": HH + " 4", "rejected": HH + " five"}, chat([u("Hi"), a("Yes?"), u("2+2")], [a("4")], [a("five")]))])
group("hh as text", "stories260k", "auto",
      [({"chosen": HH + " 4", "rejected": HH + " five"}, text("stories260k", HH, " 4", " five"))])
group("sharegpt", "llama3_tokenizer", "llama3",
      [({"conversations": [human(Q)], "chosen": gpt(C), "rejected": gpt(R)}, chat([u(Q)], [a(C)], [a(R)])),
       ({"conversations": [{"from": "system", "value": "S"}, human("Hi"), gpt("Yes?"), human(Q)], "chosen": gpt(C), "rejected": gpt(R)},
        chat([s_("S"), u("Hi"), a("Yes?"), u(Q)], [a(C)], [a(R)])),
       ({"system": "S", "conversations": [human(Q)], "chosen": gpt(C), "rejected": gpt(R)}, chat([s_("S"), u(Q)], [a(C)], [a(R)]))])
group("v1", "llama3_tokenizer", "llama3",
      [({"chosen_messages": [parts("system", "S", 0), parts("user", Q, 0), parts("assistant", C, 1)],
         "rejected_messages": [parts("system", "S", 0), parts("user", Q, 0), parts("assistant", R, 1)]},
        chat([s_("S"), u(Q)], [a(C)], [a(R)]))])
group("openai", "llama3_tokenizer", "llama3",
      [({"input": {"messages": [s_("S"), u(Q)]}, "preferred_output": [a(C)], "non_preferred_output": [a(R)]},
        chat([s_("S"), u(Q)], [a(C)], [a(R)]))])
group("ids", "stories260k", "auto",
      [({"prompt_ids": [1, 5, 7], "chosen_ids": [9], "rejected_ids": [3, 4]}, [[1, 5, 7], [9], [3, 4]])])
group("sft completion", "stories260k", "auto",
      [({"prompt": "The", "completion": " cat"}, text("stories260k", "The", " cat", None))], True)
group("sft messages", "llama3_tokenizer", "llama3",
      [({"messages": [u("Hi"), a("Yes?"), u(Q), a(C)]}, chat([u("Hi"), a("Yes?"), u(Q)], [a(C)], None))], True)
group("sft text", "stories260k", "auto", [({"text": "The cat sat"}, text("stories260k", "", "The cat sat", None))], True)
group("sft from pairs", "stories260k", "auto",
      [({"prompt": "The", "chosen": " cat", "rejected": " dog"}, text("stories260k", "The", " cat", None))], True)
json.dump({"groups": groups}, open("pairs.json", "w"), indent=0, ensure_ascii=True)
