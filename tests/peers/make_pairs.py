#!/usr/bin/env python3
"""Makes ../io/golden/trl_pairs.json: what TRL's own code makes of preference records, token by token and mask by mask.

Run it in this directory once with the Python of each version (see `run` below for what of TRL is called):
    PYTHON make_pairs.py          adds or replaces the part of the trl that PYTHON has
with trl 1.16.0 (transformers 5), 1.0.0 (transformers 5), 0.24.0 (transformers 4.57), 0.9.6 (transformers 4.44).
Tokenizers and data sets are those of ../../../shared/data.  Of our own records the ids are kept; of the data sets,
whose texts are not ours to copy, a CRC-32 of each record's ids and masks.

A side is [ids, first]: prompt and answer, and the place of the first token whose log-probability counts.  The first
token of all is predicted by nothing, so `first` is at least 1: TRL drops it when it shifts the mask."""
import gzip, json, os, shutil, struct, sys, tempfile, types, zlib
import tokenizers, transformers, trl
import datasets
datasets.disable_progress_bars()
datasets.disable_caching()
from trl import DPOTrainer

DATA = "../../../shared/data/"
OUT = "../io/golden/trl_pairs.json"
VERSION = trl.__version__
LIKE = {"1": "trl_1", "0.24": "trl_0_24", "0.9": "trl_0_9"}["1" if VERSION[0] == "1" else VERSION.rsplit(".", 1)[0]]
KEEP = 80  # records of each data set

def tokenizer_of(name):
    path = DATA + name
    if tokenizers.__version__ < "0.20":  # merges are strings there
        path = tempfile.mkdtemp()
        shutil.copytree(DATA + name, path, dirs_exist_ok=True)
        j = json.load(open(path + "/tokenizer.json"))
        j["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in j["model"]["merges"]]
        json.dump(j, open(path + "/tokenizer.json", "w"))
    t = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    if name == "llama3_tokenizer":
        t.chat_template = open(DATA + "llama3_chat_templates/Llama-3-8B-Instruct.jinja").read()
    if t.pad_token is None: t.pad_token = t.eos_token
    return t

# ---- what TRL does, by version ------------------------------------------------------------------------------------

def sides_1(tok, records, s):
    """1.x: the trainer's own preparation of a data set, then its collator."""
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    args = types.SimpleNamespace(dataset_num_proc=None, max_length=s.get("max_length"),
                                 truncation_mode=s.get("truncation", "keep_start"))
    self = types.SimpleNamespace(_tokenizer=tok, _is_vlm=False)
    if hasattr(DPOTrainer, "_tokenize"):  # 1.0
        self._tokenize = types.MethodType(DPOTrainer._tokenize, self)
    out = {}
    data = Dataset.from_list([{**record, "line": line} for line, record in records])
    collate = DataCollatorForPreference(tok.pad_token_id, max_length=args.max_length,
                                        truncation_mode=args.truncation_mode)
    for row in DPOTrainer._prepare_dataset(self, data, tok, args, "train"):
        b = collate([row])
        out[row["line"]] = [(b["input_ids"][i][b["attention_mask"][i] == 1].tolist(),
                      b["completion_mask"][i][b["attention_mask"][i] == 1].tolist()) for i in range(2)]
    return out

class Seen(Exception):
    pass

def sides_0_24(tok, records, s):
    """0.24: preparation and collator; what concatenated_forward hands to the model is read where it calls it."""
    import torch
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    args = types.SimpleNamespace(dataset_num_proc=None, tools=None, max_prompt_length=s.get("max_prompt"),
                                 max_completion_length=s.get("max_answer"))
    self = types.SimpleNamespace(is_vision_model=False, tokenize_row=DPOTrainer.tokenize_row, pad_token_id=tok.pad_token_id,
                                 concatenated_inputs=DPOTrainer.concatenated_inputs, aux_loss_enabled=False,
                                 is_encoder_decoder=False, max_length=s.get("max_length"), padding_free=False,
                                 truncation_mode=s.get("truncation", "keep_end"), use_logits_to_keep=False)
    out = {}
    data = Dataset.from_list([{**record, "line": line} for line, record in records])
    for row in DPOTrainer._prepare_dataset(self, data, tok, args, "train"):
        batch = DataCollatorForPreference(tok.pad_token_id)([row])
        def model(input_ids, **more):
            f = sys._getframe(1).f_locals
            raise Seen(input_ids, f["attention_mask"], f["loss_mask"])
        try:
            DPOTrainer.concatenated_forward(self, model, batch)
        except Seen as e:
            ids, there, mask = e.args
        out[row["line"]] = [(ids[i][there[i] == 1].tolist(), mask[i][there[i] == 1].long().tolist()) for i in range(2)]
    return out

def sides_0_9(tok, records, s):
    """0.9: tokenize_row on strings; the person applies the chat template."""
    self = types.SimpleNamespace(tokenizer=tok, is_encoder_decoder=False, is_vision_model=False, label_pad_token_id=-100,
                                 max_length=s["max_length"], max_prompt_length=s["max_prompt"],
                                 truncation_mode="keep_end")
    self.build_tokenized_answer = types.MethodType(DPOTrainer.build_tokenized_answer, self)
    out = {}
    for line, r in records:
        if not isinstance(r["prompt"], str):
            render = lambda m, g: tok.apply_chat_template(m, tokenize=False, add_generation_prompt=g)
            prompt = render(r["prompt"], True)
            r = {"prompt": prompt, **{k: render(r["prompt"] + r[k], False)[len(prompt):] for k in ("chosen", "rejected")}}
        try:
            b = DPOTrainer.tokenize_row(self, r)
        except ValueError as e:
            print(line, e)
            continue
        out[line] = [(b[k + "_input_ids"], [int(x != -100) for x in b[k + "_labels"]]) for k in ("chosen", "rejected")]
    return out

run = {"trl_1": sides_1, "trl_0_24": sides_0_24, "trl_0_9": sides_0_9}[LIKE]

def rows_of(tok, records, settings):
    rows = []
    for line, sides in run(tok, records, settings).items():
        if any(1 not in mask[1:] for _, mask in sides): continue  # it says nothing: left out here, a zero in TRL 1.0
        row = [line]
        for ids, mask in sides:
            first = mask.index(1)
            assert mask == [0] * first + [1] * (len(mask) - first)
            row += [ids, max(first, 1)]
        rows.append(row)
    return rows

def crc(row):
    packed = b""
    for ids, first in (row[1:3], row[3:5]):
        packed += struct.pack(f"<{len(ids) + 2}i", len(ids), first, *ids)
    return [row[0], zlib.crc32(packed)]

# ---- our own records ----------------------------------------------------------------------------------------------

u = lambda s: {"role": "user", "content": s}
a = lambda s: {"role": "assistant", "content": s}
s_ = lambda s: {"role": "system", "content": s}
LONG = "The quick brown fox jumps over the lazy dog, and then it rests beside the river until the evening comes. "
def strings(bos, eos):
    pairs = [("Once upon a time", " there was a cat.", " a dog barked."), ("What is two and two?", "Four.", "5"),
             ("Say hello", "hello", "Hello, world!"), ("A", "b", "c" + eos), ("end.", "Sure", " sure"),
             ("trailing space ", "x y", " x"), ("line\n", "\nmore", "less"), ("na\u00efve caf\u00e9", "\u4f60\u597d \U0001f600", "\u00e9"),
             (bos + "already begun", " yes", " no"), (LONG, LONG * 2, "short"), ("short", LONG, LONG * 3),
             (LONG * 2, "brief", "terse"), ("1", "23", "45678"), ("\"quoted", "\" done", "text\""),
             ("x", LONG + eos, "y" + eos), ("(", "a+b)", ")")]
    return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]
IMPLICIT = [{"chosen": "The cat sat down", "rejected": "The cat ran"}, {"chosen": "na\u00efve", "rejected": "na\u00eave"},
            {"chosen": "same start only", "rejected": "same start only more"}, {"chosen": LONG + "a", "rejected": LONG + "b c"}]
CHATS = [{"prompt": [u("What is 2+2? \u4f60\u597d")], "chosen": [a(" 4, of course.\n")], "rejected": [a("5 \U0001f600")]},
         {"prompt": [s_(" Be brief."), u("Hi"), a("Yes?"), u("2+2!")], "chosen": [a("4")], "rejected": [a("five\n\nor six")]},
         {"prompt": [u(LONG)], "chosen": [a(LONG * 2)], "rejected": [a("short")]},
         {"prompt": [u("Tell me")], "chosen": [a("one"), u("and?"), a("two")], "rejected": [a("nothing")]},
         {"prompt": [s_("S"), u(LONG * 2)], "chosen": [a("brief")], "rejected": [a("terse reply")]}]

SETTINGS = {"trl_1": [{}, {"max_length": 24}, {"max_length": 24, "truncation": "keep_end"}],
            "trl_0_24": [{"max_prompt": 512, "max_length": 1024}, {"max_prompt": 10, "max_length": 24},
                         {"max_prompt": 10, "max_answer": 6, "max_length": 14, "truncation": "keep_start"}],
            "trl_0_9": [{"max_prompt": 128, "max_length": 512}, {"max_prompt": 10, "max_length": 24}]}[LIKE]
REAL = {"trl_1": [{"max_length": 1024}, {"max_length": 300, "truncation": "keep_end"}],
        "trl_0_24": [{"max_prompt": 512, "max_length": 1024}, {"max_prompt": 128, "max_length": 300}],
        "trl_0_9": [{"max_prompt": 128, "max_length": 512}]}[LIKE]

def own():
    cases = []
    for name in ("llama3_tokenizer", "stories260k"):
        tok = tokenizer_of(name)
        groups = [("strings", strings(tok.bos_token, tok.eos_token))]
        if LIKE != "trl_0_9": groups.append(("implicit", IMPLICIT))
        if name == "llama3_tokenizer": groups.append(("chats", CHATS))
        for what, records in groups:
            for s in SETTINGS:
                if VERSION.startswith("1.0.") and s.get("truncation"): continue
                rows = rows_of(tok, list(enumerate(records, 1)), s)
                cases.append({"tokenizer": name, "template": "llama3" if what == "chats" else "none", "what": what,
                              "settings": s, "records": records, "rows": rows})
    return cases

# ---- the data sets ------------------------------------------------------------------------------------------------

role = {"human": "user", "gpt": "assistant"}
def share(m): return {"role": role.get(m["from"], m["from"]), "content": m["value"]}
def typed(m): return {"role": m["role"], "content": "".join(p["value"] for p in m["content"])}
def after(transcript): return transcript.rindex("\n\nAssistant:") + len("\n\nAssistant:")

def openai(r): return {"prompt": r["input"]["messages"], "chosen": r["preferred_output"], "rejected": r["non_preferred_output"]}
def sharegpt(r): return {"prompt": [share(m) for m in r["conversations"]], "chosen": [share(r["chosen"])], "rejected": [share(r["rejected"])]}
def v1(r):
    c, j = ([typed(m) for m in r[k]] for k in ("chosen_messages", "rejected_messages"))
    return {"prompt": c[:-1], "chosen": c[-1:], "rejected": j[-1:]}
def plain(r): return {k: r[k] for k in ("prompt", "chosen", "rejected")}
def hh(r):
    n = after(r["chosen"])
    return {"prompt": r["chosen"][:n], "chosen": r["chosen"][n:], "rejected": r["rejected"][n:]}
def hh_as_it_is(r): return {k: r[k] for k in ("chosen", "rejected")}

SETS = [("orca_dpo_openai_format/validation.jsonl", "auto", "llama3", openai), ("llamafactory_dpo/dpo_en_demo.json", "auto", "llama3", sharegpt),
        ("llamafactory_dpo/v1_dpo_demo.jsonl", "auto", "llama3", v1), ("ultrafeedback_1k/train_clean.jsonl", "auto", "none", plain),
        ("hh_rlhf_harmless_test/test.jsonl.gz", "auto", "none", hh), ("hh_rlhf_harmless_test/test.jsonl.gz", "trl", "none", hh_as_it_is)]

def records_of(path):
    """With the line where each begins: of an array, the line of its brace."""
    text = (gzip.open if path.endswith(".gz") else open)(DATA + path, "rt", encoding="utf-8", newline="\n").read()
    if not text.lstrip().startswith("["):
        return [(i, json.loads(l)) for i, l in enumerate(text.split("\n"), 1) if l.strip()]
    out, at, line, decoder = [], text.index("[") + 1, 1, json.JSONDecoder()
    seen = 0
    while True:
        while text[at] in ", \n\r\t": at += 1
        if text[at] == "]": return out
        line += text.count("\n", seen, at)
        seen = at
        value, at = decoder.raw_decode(text, at)
        out.append((line, value))

def shared():
    cases = []
    for name in ("llama3_tokenizer", "stories260k"):
        tok = tokenizer_of(name)
        for path, dialect, template, convert in SETS:
            if (template != "none" and name != "llama3_tokenizer") or (LIKE == "trl_0_9" and convert is hh_as_it_is): continue
            for s in REAL:
                if VERSION.startswith("1.0.") and s.get("truncation"): continue
                records = []
                for line, r in records_of(path)[:KEEP]:
                    r = convert(r)
                    if all(x if isinstance(x, list) else x.strip() for x in (r["chosen"], r["rejected"])): records.append((line, r))
                rows = [crc(row) for row in rows_of(tok, records, s)]
                cases.append({"file": path, "dialect": dialect, "tokenizer": name, "template": template, "settings": s,
                              "limit": KEEP, "rows": rows})
    return cases

key = LIKE if VERSION[:4] != "1.0." else "trl_1_count"
root = json.load(open(OUT)) if os.path.exists(OUT) else {}
root[key] = {"trl": VERSION, "transformers": transformers.__version__, "own": own(), "shared": shared()}
text = json.dumps({k: root[k] for k in sorted(root)}, ensure_ascii=True, separators=(",", ":"))
open(OUT, "w").write(text.replace('{"tokenizer"', '\n{"tokenizer"').replace('{"file"', '\n{"file"') + "\n")
