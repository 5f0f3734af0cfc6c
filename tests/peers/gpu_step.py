"""One DPO step of a Llama on a GPU, in dpoc and in what people use in PyTorch, interleaved in one run.

    python gpu_step.py --dpoc build/dpoc --spec run.dpo --config config.json --pairs pairs.jsonl --out peer.json

Peers are processes of gpu_worker.py: the step written out on transformers and PEFT (with and without checkpointing
and torch.compile), TRL's own DPOTrainer, and that with Unsloth; NF4 through bitsandbytes where that can be imported,
else bf16, which the row's name says.  Model, token ids, pairs of a step and of a micro-batch are dpoc's; weights are
random on both sides.  A kit that is missing or fails is a note, never an error.

After a warm-up step of each variant, rounds alternate between one `dpoc bench` process and a few steps of every
variant.  Reported: median, least and most, the ratio to dpoc's first variant of the same round with its spread, the
memory torch reserved, and what shows that the work is the same: the loss (ln 2 for all), tokens, the gradient's norm.
What is known is written after every answer, so that a run that is stopped loses nothing.

Written for PyTorch 2.11, transformers 5.17, PEFT 0.21 (there), and TRL 1.15.0, datasets 4.8.5, bitsandbytes 0.50.2,
unsloth 2026.10.9 (the last that fit together); versions found are in the report.
"""
import argparse
import importlib.metadata
import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time

PACKAGES = ["torch", "transformers", "peft", "trl", "bitsandbytes", "unsloth", "accelerate", "datasets"]
BASIC = ["torch", "transformers", "peft"]
NEEDS = {"step": BASIC, "trl": BASIC + ["trl"], "unsloth": BASIC + ["trl", "unsloth"], "compiled": BASIC}
NAMES = {"step": "PyTorch + PEFT", "trl": "TRL", "unsloth": "TRL + Unsloth", "compiled": "PyTorch + PEFT, compiled"}
WHAT = ("Each round is a dpoc process, then a few steps of every peer. PyTorch + PEFT: the step written out, full "
        "logits, fp32 adapters under bf16 autocast. TRL: its DPOTrainer and the precision it chooses. Min and max are "
        "of single steps; the ratio is of a round's medians. Peak: torch's reserved memory; dpoc's arena (a context "
        "comes on top of both). The gradient's norm is comparable between rows of the same weights only.")


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--dpoc", default="build/dpoc")
    p.add_argument("--spec", required=True)
    p.add_argument("--config", required=True)
    p.add_argument("--pairs", required=True)
    p.add_argument("--micro", type=int, default=2, help="pairs of a micro-batch of the peers")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--runs", type=int, default=3, help="steps a round")
    p.add_argument("--seconds", type=float, default=150, help="for everything; the last round is the one that fits")
    p.add_argument("--device", default="cuda")
    p.add_argument("--kits", default="step,trl,unsloth", help="of step, trl, unsloth, compiled")
    p.add_argument("--dpoc-flags", default="", help="further flags for dpoc bench, separated by blanks")
    p.add_argument("--out", required=True)
    return p.parse_args()


def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class Late(Exception):
    """No answer in the time there was."""


# ---- the peers ----

class Worker:
    """A process with one kit's model; its variants are timed on command."""

    def __init__(self, args, kit, folder):
        self.kit, self.log = kit, f"{args.out}.{kit}.log"
        command = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpu_worker.py"),
                   f"--kit={kit}", f"--config={args.config}", f"--pairs={args.pairs}", f"--micro={args.micro}",
                   f"--rank={args.rank}", f"--device={args.device}"]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                            text=True, bufsize=1, start_new_session=True,
                                            env={**os.environ, "TMPDIR": folder})

    def answer(self, seconds):
        """The next line it says.  Raises Late; RuntimeError where it failed or ended."""
        if not select.select([self.process.stdout], [], [], max(seconds, 0))[0]:
            raise Late(f"no answer in {seconds:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            last = open(self.log, errors="replace").read().strip().splitlines()[-1:]
            raise RuntimeError(f"its process ended ({self.process.wait()}): {''.join(last)[:200]}")
        said = json.loads(line)
        if "error" in said:
            raise RuntimeError(said["error"])
        return said

    def time(self, variant, steps, seconds):
        try:
            self.process.stdin.write(json.dumps({"variant": variant, "steps": steps}) + "\n")
        except OSError as e:
            raise RuntimeError("its process has ended") from e
        return self.answer(seconds)

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # compilers it started go with it
        self.process.wait()


# ---- the table ----

class Table:
    """Rows by name, in order; the first is what ratios are of."""

    def __init__(self, path):
        self.path, self.rows, self.notes, self.versions = path, {}, [], {}

    def note(self, text):
        self.notes.append(text)
        self.write()

    def add(self, name, number, measured):
        """What one round measured: its median, least, most, peak; and what shows the work."""
        row = self.rows.setdefault(name, {"rounds": {}, "min_ms": math.inf, "max_ms": 0, "peak_bytes": 0})
        row["rounds"][number] = measured["median_ms"]
        row["min_ms"] = min(row["min_ms"], measured["min_ms"])
        row["max_ms"] = max(row["max_ms"], measured["max_ms"])
        row["peak_bytes"] = max(row["peak_bytes"], measured["peak_bytes"])
        for key in ("loss", "tokens", "gradient_norm"):
            if measured.get(key) is not None:
                row.setdefault(key, measured[key])  # the first round's
        self.write()

    def finished(self):
        """Rows as they are reported."""
        done, first = {}, next(iter(self.rows.values()), None)
        for name, row in self.rows.items():
            ratio = sorted(ms / first["rounds"][i] for i, ms in row["rounds"].items() if i in first["rounds"])
            done[name] = {**row, "rounds": list(row["rounds"].values()),
                          "median_ms": statistics.median(row["rounds"].values())}
            if ratio:
                done[name].update(ratio=statistics.median(ratio), ratio_min=ratio[0], ratio_max=ratio[-1])
        return done

    def write(self):
        with open(self.path + ".part", "w") as f:
            json.dump({"what": WHAT, "versions": self.versions, "rows": self.finished(), "notes": self.notes}, f,
                      indent=1)
        os.replace(self.path + ".part", self.path)


# ---- a run ----

class Run:
    def __init__(self, args):
        self.args, self.table, self.start = args, Table(args.out), time.monotonic()
        self.folder = tempfile.TemporaryDirectory()  # the workers' files: they are killed, it is removed
        self.workers, self.variants = [], []  # variants: (row's name, worker, variant)

    def left(self):
        return self.args.seconds - (time.monotonic() - self.start)

    def dpoc(self, number):
        """One process of `dpoc bench`; False after a note."""
        args = self.args
        command = [args.dpoc, "bench", args.spec, "--random-weights", "--data", args.pairs, f"--runs={args.runs}",
                   "--json", "--quiet"] + args.dpoc_flags.split()
        try:
            out = subprocess.run(command, capture_output=True, text=True, timeout=max(self.left(), 1))
        except subprocess.TimeoutExpired:
            self.table.note("dpoc bench: out of time")
            return False
        if out.returncode:
            self.table.note(f"dpoc bench: exit {out.returncode}: {out.stderr.strip()[:300]}")
            return False
        for v in json.loads(out.stdout)["variants"]:
            self.table.add(f"dpoc, {v['name']}", number, v)
        return True

    def open(self):
        """Starts every kit that is there, all at once; they are asked later."""
        self.table.versions = {name: version(name) for name in PACKAGES}
        for kit in self.args.kits.split(","):
            missing = [name for name in NEEDS[kit] if not version(name)]
            if missing:
                self.table.note(f"{NAMES[kit]}: {', '.join(missing)} not installed")
            else:
                self.workers.append(Worker(self.args, kit, self.folder.name))
        if not version("bitsandbytes"):
            self.table.note("bitsandbytes is not installed: the peers' base is bf16, so they neither dequantize nor "
                            "save memory; dpoc's base is as its spec says")

    def warm_up(self):
        """Asks every kit what it has and runs each variant once.  All must stand in 0.4 of the time there is."""
        for worker in self.workers:
            try:
                said = worker.answer(max(self.left() - 0.6 * self.args.seconds, 1))
            except (Late, RuntimeError) as e:
                self.table.note(f"{NAMES[worker.kit]}: {e}")
                worker.stop()
                continue
            for variant in said["variants"]:
                name = f"{NAMES[worker.kit]}, {said['weights']} base, {variant}"
                if self.ask(name, worker, variant, 1, self.left() / 3):
                    self.variants.append((name, worker, variant))

    def ask(self, name, worker, variant, steps, seconds):
        """A variant's answer; None after a note.  A kit that is late is stopped: its answers are out of step."""
        if worker.process.poll() is not None:
            return None
        try:
            return worker.time(variant, steps, seconds)
        except Late as e:
            worker.stop()
            self.table.note(f"{name}: {e}; the kit was stopped")
        except RuntimeError as e:
            self.table.note(f"{name}: {e}")
        return None

    def round(self, number):
        if not self.dpoc(number):
            return False
        for name, worker, variant in list(self.variants):
            said = self.ask(name, worker, variant, self.args.runs, self.left())
            if said is None:
                self.variants.remove((name, worker, variant))
                continue
            ms = said["ms"]
            self.table.add(name, number, {**said, "median_ms": statistics.median(ms), "min_ms": min(ms),
                                          "max_ms": max(ms)})
        return True

    def rounds(self):
        longest = 0
        for number in range(self.args.rounds):
            if number and self.left() < longest:
                self.table.note(f"{number} of {self.args.rounds} rounds: time was up")
                return
            begin = time.monotonic()
            if not self.round(number):
                return
            longest = max(longest, time.monotonic() - begin)

    def close(self):
        for worker in self.workers:
            worker.stop()
        self.folder.cleanup()


def main():
    run = Run(arguments())
    try:
        run.open()
        run.warm_up()
        run.rounds()
    finally:
        run.close()
    rows = run.table.finished()
    for name, r in rows.items():
        print(f"{name:52s} {r['median_ms']:9.1f} ms  {r.get('ratio', 0):5.2f} of dpoc  "
              f"{r['peak_bytes'] / 2**30:6.2f} GiB  loss {r.get('loss', math.nan):.6f}")
    for note in run.table.notes:
        print(f"- {note}")
    if not any(name.startswith("dpoc") for name in rows):
        return 1
    return 0 if len({name.split(",")[0] for name in rows}) > 1 else 3


if __name__ == "__main__":
    sys.exit(main())
