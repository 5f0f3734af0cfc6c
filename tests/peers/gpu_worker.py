"""A peer of gpu_step.py: one model in one process, trained by one kit, timed step by step on command.

    python gpu_worker.py --kit=step|compiled|trl|unsloth --config config.json --pairs pairs.jsonl ...

The base has random weights, made on the device from config.json (nothing is downloaded); LoRA stands on every
projection.  Where bitsandbytes can be imported the base's projections are NF4 with double quantization, else bf16.

- step: DPO's step written out: rows of chosen and rejected padded to the longest of the micro-batch, a reference
  forward with the adapter switched off, a policy forward with full logits, log-softmax row by row, sigmoid loss,
  backward, clipping, AdamW; bf16 autocast over fp32 adapters; with and without checkpointing.
- compiled: the same with the model under torch.compile.
- trl: TRL's own DPOTrainer on the same token ids, with and without checkpointing.
- unsloth: the model read and patched by Unsloth, trained by the DPOTrainer it patches.

Kits patch what they touch, so each runs in a process of its own.  The learning rate is 0: every step does the whole
work and every loss is ln 2.  Talk, in lines on what were stdin and stdout: first {"variants", "weights"},
then for each {"variant", "steps"} a {"ms", "peak_bytes", "loss", "gradient_norm", "tokens"} or an {"error"}; end of
input ends it.
"""
import argparse
import json
import os
import sys
import tempfile
import time
import traceback

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PLAIN = {"checkpointing": True, "no checkpointing": False}


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--kit", choices=["step", "compiled", "trl", "unsloth"], required=True)
    p.add_argument("--config", required=True)
    p.add_argument("--pairs", required=True)
    p.add_argument("--micro", type=int, default=2, help="pairs of a micro-batch")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--beta", type=float, default=0.1)
    p.add_argument("--device", default="cuda")
    return p.parse_args()


def importable(name):
    try:
        __import__(name)
        return True
    except Exception:  # a broken installation is as good as none
        return False


def brief(error):
    """An error in a line; all of it goes to the log."""
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


class Device:
    """Time and memory of the device; on the CPU memory is not looked at."""

    def __init__(self, torch, name):
        self.torch, self.name, self.cuda = torch, name, name == "cuda"

    def fresh(self):
        if self.cuda:
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    def now(self):
        if self.cuda:
            self.torch.cuda.synchronize()
        return 1e3 * time.perf_counter()

    def peak(self):
        return self.torch.cuda.max_memory_reserved() if self.cuda else 0


# ---- the model ----

def random_llama(args, torch):
    from transformers import AutoModelForCausalLM, LlamaConfig
    config = json.load(open(args.config))
    config = LlamaConfig(**{k: v for k, v in config.items() if k != "architectures"})
    torch.manual_seed(0)
    with torch.device(args.device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def quantize(model, torch, device):
    """The projections in NF4 with double quantization, layer by layer; False where bitsandbytes is missing."""
    if not importable("bitsandbytes"):
        return False
    import bitsandbytes as bnb
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if not isinstance(linear, torch.nn.Linear):
                    continue
                small = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, device="meta",
                                          compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4")
                small.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4",
                                                 compress_statistics=True, blocksize=64)
                setattr(block, name, small.to(device))
    model.is_loaded_in_4bit = True  # as transformers marks one it quantized: PEFT and TRL look at it
    return True


def base_of(args, torch):
    """The base, and the name of its type."""
    base = random_llama(args, torch)
    return base, "nf4" if quantize(base, torch, args.device) else "bf16"


def lora(args):
    from peft import LoraConfig
    return LoraConfig(r=args.rank, lora_alpha=args.rank, lora_dropout=0, target_modules=TARGETS,
                      task_type="CAUSAL_LM")


def checkpoint(model, on):
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def read_pairs(path):
    return [{k: p[k] for k in ("prompt_ids", "chosen_ids", "rejected_ids")} for p in map(json.loads, open(path))]


# ---- the step written out ----

class Step:
    def __init__(self, args, torch):
        from peft import get_peft_model
        self.args, self.torch, self.device = args, torch, Device(torch, args.device)
        base, self.weights = base_of(args, torch)
        torch.manual_seed(0)  # as TRL before it makes its adapter
        self.model = get_peft_model(base, lora(args))
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        for p in self.trained:
            p.data = p.data.float()
        self.model.enable_input_require_grads()
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.0, weight_decay=0.0)
        pairs = read_pairs(args.pairs)
        self.pairs = len(pairs)
        self.batches = [self.collate(pairs[i:i + args.micro]) for i in range(0, len(pairs), args.micro)]
        self.variants = list(PLAIN)
        self.forward = self.model
        if args.kit == "compiled":
            torch._dynamo.config.recompile_limit = 64  # checkpointing, adapters and lengths come and go
            self.forward = torch.compile(self.model)

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
        return [t.to(self.device.name) for t in (ids, mask, score)]

    def logps(self, batch):
        torch, (ids, mask, score) = self.torch, batch
        with torch.autocast(self.device.name, dtype=torch.bfloat16):
            logits = self.forward(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        rows = []
        for row, target in zip(logits, ids[:, 1:]):  # row by row: one row's fp32 or bf16 softmax at a time
            rows.append(row.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1))
        return (torch.stack(rows) * score[:, 1:]).sum(-1)

    def step(self):
        torch, total = self.torch, 0
        for batch in self.batches:
            with torch.no_grad(), self.model.disable_adapter():
                reference = self.logps(batch)
            policy = self.logps(batch)
            half = len(policy) // 2
            reward = self.args.beta * (policy - reference)
            loss = -torch.nn.functional.logsigmoid(reward[:half] - reward[half:]).sum() / self.pairs
            loss.backward()
            total = total + loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm

    def serve(self, commands, answer):
        for command in commands:
            try:
                answer(self.time(command["variant"], command["steps"]))
            except Exception as e:  # out of memory is an answer too
                self.optimizer.zero_grad(set_to_none=True)
                answer({"error": brief(e)})

    def time(self, variant, steps):
        checkpoint(self.model, PLAIN[variant])
        self.device.fresh()
        times = []
        for _ in range(steps):
            start = self.device.now()
            loss, norm = self.step()
            times.append(self.device.now() - start)
        peak, tokens = self.device.peak(), sum(int(mask.sum()) for _, mask, _ in self.batches)
        self.device.fresh()
        return {"ms": times, "peak_bytes": peak, "loss": float(loss), "gradient_norm": float(norm), "tokens": tokens}


# ---- TRL's trainer ----

def tokenizer_of(args):
    """A tokenizer made on the spot: the pairs hold token ids already, only its padding is used."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "<bos>": 3}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
                                   pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", bos_token="<bos>")


class Trl:
    """DPOTrainer's own loop.  It waits for commands in its callback where a step begins, so that nothing of TRL's or
    transformers' is between on_step_begin and on_step_end but the step."""

    def __init__(self, args, torch):
        self.args, self.torch, self.device = args, torch, Device(torch, args.device)
        self.variants = list(PLAIN)
        self.tokenizer = tokenizer_of(args)
        self.base, self.weights = base_of(args, torch)
        self.lora = lora(args)

    def recover(self):
        """After a failed step: the base without what the trainer put on it."""
        self.base = self.model.unload()
        self.base.__dict__.pop("forward", None)

    def checkpoint(self, variant):
        checkpoint(self.model, PLAIN[variant])

    def config(self, DPOConfig, folder, pairs):
        longest = max(len(p["prompt_ids"]) + len(p[side]) for p in pairs for side in ("chosen_ids", "rejected_ids"))
        return DPOConfig(output_dir=folder, bf16=True, use_cpu=not self.device.cuda, learning_rate=0.0,
                         lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, beta=self.args.beta,
                         per_device_train_batch_size=self.args.micro,
                         gradient_accumulation_steps=len(pairs) // self.args.micro, max_length=longest,
                         max_steps=10000, gradient_checkpointing=True,
                         gradient_checkpointing_kwargs={"use_reentrant": False}, precompute_ref_log_probs=False,
                         optim="adamw_torch", logging_strategy="no", save_strategy="no", eval_strategy="no",
                         report_to="none", disable_tqdm=True, seed=0)

    def trainer(self, folder, callback):
        from datasets import Dataset
        from torch.utils.data import SequentialSampler
        from trl import DPOConfig, DPOTrainer

        class OfTokens(DPOTrainer):  # what is already token ids is not tokenized, and stays in its order
            def _prepare_dataset(self, dataset, *rest):
                return dataset

            def _get_train_sampler(self, *rest):
                return SequentialSampler(self.train_dataset)

        pairs = read_pairs(self.args.pairs)
        made = OfTokens(model=self.base, peft_config=self.lora, args=self.config(DPOConfig, folder, pairs),
                        callbacks=[callback], train_dataset=Dataset.from_list(pairs * 50),
                        processing_class=self.tokenizer)
        self.model = made.model
        return made

    def serve(self, commands, answer):
        from transformers import TrainerCallback
        kit, device = self, self.device

        class Clock(TrainerCallback):
            left, start, result = 0, 0, None

            def on_step_begin(self, args, state, control, **rest):
                if not self.left:
                    self.turn()
                self.start = device.now()

            def on_step_end(self, args, state, control, **rest):
                self.result["ms"].append(device.now() - self.start)
                self.left -= 1
                control.should_log = not self.left  # the loss, outside what is timed

            def on_log(self, args, state, control, logs=None, **rest):
                if "loss" in logs:
                    self.result.update(loss=logs["loss"], gradient_norm=logs.get("grad_norm"))

            def turn(self):
                """The answer to the command before, then the next one."""
                if self.result:
                    tokens = getattr(trainer, "_total_train_tokens", 0) - self.tokens
                    self.result["tokens"] = tokens // len(self.result["ms"])
                    self.result["peak_bytes"] = device.peak()
                    device.fresh()
                    answer(self.result)
                command = next(commands, None)
                if command is None:
                    os._exit(0)  # the trainer has nothing to keep
                self.left, self.result = command["steps"], {"ms": [], "loss": None}
                self.tokens = getattr(trainer, "_total_train_tokens", 0)
                kit.checkpoint(command["variant"])
                device.fresh()

        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(folder, Clock())
            answer({"variants": self.variants, "weights": self.weights})
            while True:
                try:
                    trainer.train()
                except Exception as e:  # out of memory is an answer too: a new trainer goes on with the next command
                    answer({"error": brief(e)})
                    self.recover()
                    trainer = None
                    device.fresh()
                    trainer = self.trainer(folder, Clock())


class Unsloth(Trl):
    """Unsloth reads a model from a folder: the same random weights are written into one first."""

    def __init__(self, args, torch):
        import unsloth  # first: it patches transformers, PEFT and TRL
        self.args, self.torch, self.device = args, torch, Device(torch, args.device)
        self.tokenizer = tokenizer_of(args)
        small = importable("bitsandbytes")
        self.weights = "nf4" if small else "bf16"
        longest = json.load(open(args.config)).get("max_position_embeddings", 8192)
        with tempfile.TemporaryDirectory() as folder:
            random_llama(args, torch).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            self.device.fresh()
            model, _ = unsloth.FastLanguageModel.from_pretrained(
                folder, max_seq_length=longest, dtype=torch.bfloat16, load_in_4bit=small, local_files_only=True)
        self.lora, self.base = None, unsloth.FastLanguageModel.get_peft_model(
            model, r=args.rank, lora_alpha=args.rank, lora_dropout=0, target_modules=TARGETS,
            use_gradient_checkpointing="unsloth")
        attention = self.base.get_base_model().model.layers[0].self_attn
        patched = type(attention).forward.__module__.startswith("unsloth")  # it leaves models alone on a CPU
        self.variants = ["its own checkpointing" if patched else "none of its kernels"]

    def checkpoint(self, variant):
        pass

    def recover(self):
        sys.exit(1)  # its patches do not come off


def main():
    args = arguments()
    wire = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print: that goes to the log

    def answer(what):
        wire.write(json.dumps(what) + "\n")

    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1",
                      UNSLOTH_COMPILE_LOCATION=os.path.join(tempfile.gettempdir(), "unsloth_compiled_cache"))
    try:
        if args.kit == "unsloth":
            import unsloth  # noqa: F401 (before everything it patches)
        import torch
        kit = {"step": Step, "compiled": Step, "trl": Trl, "unsloth": Unsloth}[args.kit](args, torch)
    except BaseException as e:  # a kit that cannot start is a line of the report
        answer({"error": brief(e)})
        return 1
    if isinstance(kit, Step):
        answer({"variants": kit.variants, "weights": kit.weights})
    kit.serve((json.loads(line) for line in sys.stdin), answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
