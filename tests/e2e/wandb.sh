#!/bin/sh
# examples/wandb_replay.py: what it would send, and what it does send to a wandb that only takes notes; live, with a run
# that is broken off, cut to its checkpoint and goes on; started again behind what was sent.
. tests/e2e/lib.sh
python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2> /dev/null || { echo "no python3"; exit 77; }
replay=examples/wandb_replay.py
case=$cases/gqa
"$dpoc" train models/dpo-lora.dpo --device=cpu --model $case --data $case/pairs.jsonl --eval-data $case/pairs.jsonl \
    --set pref.rank=4 --set run.batch=2 --set run.tokens=96 --set run.steps=6 --set run.eval_every=3 --quiet \
    -o "$work/run" || die "training failed"
python3 $replay "$work/run" --dry-run > "$work/dry" || die "a dry run failed"
[ "$(wc -l < "$work/dry")" = 10 ] || die "not config, 6 steps, 2 evaluations and the end: $(cat "$work/dry")"
head -n 1 "$work/dry" | grep -q '"config": {.*"run.lr": 5e-05.*"data_hash"' || die "no config: $(head -n 1 "$work/dry")"
for key in train/loss train/global_step train/rewards/margins train/epoch eval/loss eval/rewards/accuracies \
    cpu/utilization train/train_loss; do
    grep -q "\"$key\":" "$work/dry" || die "no $key in: $(cat "$work/dry")"
done

# A wandb that takes notes, as the real one refuses steps that go back.
mkdir -p "$work/python"
cat > "$work/python/wandb.py" << 'FAKE'
import json, os
class Run:
    def __init__(self, **given):
        self.step, self.file = int(os.environ.get("FAKE_STEP", "0")), open(os.environ["FAKE_LOG"], "a")
        self.note(init={k: given[k] for k in ("project", "name", "id", "resume")}, lr=given["config"].get("run.lr"))
    def note(self, **what):
        self.file.write(json.dumps(what) + "\n"); self.file.flush()
    def define_metric(self, name, step_metric): self.note(define=name)
    def log(self, values, step):
        assert step >= self.step, "a step that goes back"
        self.step = step
        self.note(step=step, loss=values.get("train/loss"), eval=values.get("eval/loss"))
    def finish(self): self.note(finish=True)
def init(**given): return Run(**given)
FAKE
export PYTHONPATH="$work/python" FAKE_LOG="$work/log"
mkdir "$work/live"
file=$work/live/metrics.jsonl
cp "$work/run/run.json" "$work/live/"
python3 $replay "$work/live" --project p --follow --interval 0.05 &
pid=$!
part() { sed -n "$1p" "$work/run/metrics.jsonl" >> "$file"; }
wait_for() { # PATTERN COUNT
    tries=0
    until [ "$(grep -c "$1" "$work/log" 2> /dev/null)" = "$2" ]; do
        tries=$((tries + 1))
        [ $tries -gt 200 ] && die "not $2 times '$1' in: $(cat "$work/log")"
        sleep 0.05
    done
}
part 1,4 # start, steps 1 to 3
printf '{"event":"eval","st' >> "$file"
wait_for '"step":' 3
sed -n 1,3p "$work/run/metrics.jsonl" > "$file" # cut to step 2 as a resumed run does
sleep 0.3
part '4,$'
wait $pid || die "the replay failed"
grep '"step":' "$work/log" | sed -E 's/.*"step": ([0-9]+), "loss": (null|[0-9]).*/\1 \2/; s/ [0-9]$/ l/' | tr '\n' ';' > "$work/got"
[ "$(cat "$work/got")" = "1 l;2 l;3 l;3 null;4 l;5 l;6 l;6 null;6 null;" ] || die "sent: $(cat "$work/got")"
grep -q '"project": "p", "name": "live", "id": "[0-9a-f]*", "resume": "allow"}, "lr": 5e-05' "$work/log" || die "no init"
grep -q '"finish": true' "$work/log" || die "not finished"

# Once more, when W&B has 4 steps: only what is behind them.
rm "$work/log"
FAKE_STEP=4 python3 $replay "$work/run" || die "the second replay failed"
[ "$(grep -c '"step":' "$work/log")" = 4 ] || die "steps 5 and 6, evaluation and end are missing in: $(cat "$work/log")"
python3 $replay "$work/none" 2> "$work/said" && die "no run at all"
grep -q "no such file" "$work/said" || die "no message"
exit 0
