#!/usr/bin/env python3
"""Streams a run of dpoc to Weights & Biases, while it goes on or afterwards.

    pip install wandb
    python3 wandb_replay.py RUN --project my-dpo --follow

dpoc itself never touches the network: it writes RUN/metrics.jsonl and RUN/run.json, and this
script sends what they say, under the names that Hugging Face's trainer uses (train/loss,
train/rewards/margins, eval/loss, ..).  It may be started again at any time: the run at W&B goes on
behind the last step that it has.  --dry-run prints instead of sending, and needs no wandb.
"""
import argparse
import hashlib
import json
import os
import time


def read_config(run):
    """run.json as W&B's config: settings by their own names, and what the run was made of."""
    try:
        with open(os.path.join(run, "run.json"), encoding="utf-8") as f:
            whole = json.load(f)
    except FileNotFoundError:
        return {}
    config = dict(whole.pop("settings", {}))
    config.update(whole)
    return config


def lines(path, follow, interval):
    """The whole lines of metrics.jsonl as objects; a run that goes on from a checkpoint cuts the
    file, which then is read from its beginning again.  Ends with the run's end where it follows."""
    offset, rest = 0, b""
    while True:
        if os.path.exists(path):
            if os.path.getsize(path) < offset:
                offset, rest = 0, b""
            with open(path, "rb") as f:
                f.seek(offset)
                data = f.read()
            offset += len(data)
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # cut in the middle, and written over since
                yield event
                if event.get("event") == "end":
                    return
        if not follow:
            return
        time.sleep(interval)


def renamed(event):
    """Numbers of one event under the names of users' dashboards; null (not finite) is left out."""
    out = {"train/global_step": event["step"]}
    for key, value in event.items():
        if key in ("step", "time") or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if key.startswith("eval_"):
            out["eval/" + key[5:]] = value
        elif key.startswith(("gpu/", "cpu/")):
            out[key] = value
        else:
            out["train/" + key] = value
    return out


class Printer:
    """What --dry-run sends to: one JSON object a line."""

    step = 0

    def log(self, values, step):
        print(json.dumps({"step": step, "log": values}), flush=True)

    def finish(self):
        pass


def open_wandb(args, config, start):
    import wandb

    identity = args.id or hashlib.sha256(json.dumps(start, sort_keys=True).encode()).hexdigest()[:16]
    name = args.name or os.path.basename(os.path.abspath(args.run))
    run = wandb.init(project=args.project, entity=args.entity, name=name, id=identity,
                     resume="allow", config=config)
    for prefix in ("train/*", "eval/*", "gpu/*", "cpu/*"):
        run.define_metric(prefix, step_metric="train/global_step")
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="directory that `dpoc train -o` wrote")
    parser.add_argument("--project", default="dpoc")
    parser.add_argument("--entity", help="team or user at W&B")
    parser.add_argument("--name", help="of the run at W&B (default: the directory's)")
    parser.add_argument("--id", help="of the run at W&B (default: made from its first line)")
    parser.add_argument("--follow", action="store_true", help="go on until the run ends")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between looks")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent")
    args = parser.parse_args()
    path = os.path.join(args.run, "metrics.jsonl")
    if not args.follow and not os.path.exists(path):
        parser.exit(1, f"{path}: no such file\n")

    sink, begun, sent = None, 0, set()
    for event in lines(path, args.follow, args.interval):
        kind = event.get("event")
        if sink is None:
            config = read_config(args.run)
            if args.dry_run:
                sink = Printer()
                print(json.dumps({"config": config}))
            else:
                sink = open_wandb(args, config, event)
            begun = last = sink.step  # what W&B has already
        if kind not in ("step", "eval", "end"):
            continue
        step = event["step"]
        # Steps made twice (a run that was broken off) and those of an earlier replay are not sent
        # again, for W&B takes no step below its last one.
        if (kind, step) in sent or step < last or (begun and step <= begun):
            continue
        sent.add((kind, step))
        last = step
        sink.log(renamed(event), step=step)
    if sink is not None:
        sink.finish()


if __name__ == "__main__":
    main()
