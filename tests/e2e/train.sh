#!/bin/sh
# Training as people expect it: the best checkpoint is kept and can be the result, runs end early, what is logged has the
# names of TRL and Hugging Face, TensorBoard's files say the same, a broken run goes on with all of it.
. tests/e2e/lib.sh
case=$cases/gqa
# a small run: go OUT [flags]
go() {
    out=$1
    shift
    ${pre:-} "$dpoc" train models/dpo-lora.dpo --device=cpu --model $case --data $case/pairs.jsonl --eval-data $case/pairs.jsonl \
        --set pref.rank=4 --set run.batch=2 --set run.tokens=96 -o "$out" "$@"
}
values() { # RUN EVENT KEY: one a line
    grep "\"event\":\"$2\"" "$1/metrics.jsonl" | sed -nE "s,.*\"$3\":([-0-9.e+]+).*,\1,p"
}

# A rate that rises forever ruins what was learnt: the best evaluation lies in the middle.
flags="--set run.lr=30 --set run.warmup=1000 --set run.schedule=constant_with_warmup --set run.steps=24 --set run.eval_every=2
    --set run.keep=1 --set run.eval_first=on"
go "$work/best" $flags 2> "$work/said" || die "training failed: $(cat "$work/said")"
values "$work/best" eval eval_loss > "$work/losses"
[ "$(wc -l < "$work/losses")" = 13 ] || die "$(wc -l < "$work/losses") evaluations, not 13"
want=$(awk 'NR > 1 && (NR == 2 || $1 < best) { best = $1; at = 2 * (NR - 1) } END { print at }' "$work/losses")
[ "$want" -gt 2 ] && [ "$want" -lt 24 ] || die "the best evaluation is that of step $want: this test needs another rate"
[ "$(readlink "$work/best/best")" = "checkpoint-$want" ] || die "best is $(readlink "$work/best/best"), not step $want's"
[ "$(readlink "$work/best/latest")" = checkpoint-24 ] || die "latest is $(readlink "$work/best/latest")"
[ -d "$work/best/checkpoint-$want" ] && [ "$(ls -d "$work"/best/checkpoint-* | wc -l)" = 2 ] || die "kept: $(ls "$work/best")"
grep -q "best  *$work/best/checkpoint-$want (eval_loss" "$work/said" || die "the best is not named: $(cat "$work/said")"
grep -q "adapter  *$work/best/adapter\$" "$work/said" || die "the adapter is not named"
cmp -s "$work/best/adapter/adapter_model.safetensors" "$work/best/checkpoint-24/adapter/adapter_model.safetensors" ||
    die "the result is not the last step's"

# load_best, and patience: three worse evaluations end the run; the same steps as before.
go "$work/early" $flags --set run.load_best=on --set run.patience=3 --quiet || die "the run that ends early failed"
[ "$(values "$work/early" end step)" = $((want + 6)) ] || die "ended at $(values "$work/early" end step), not $((want + 6))"
grep -q '"stopped":"early"' "$work/early/metrics.jsonl" || die "the end does not say that it was early"
cmp -s "$work/early/adapter/adapter_model.safetensors" "$work/best/best/adapter/adapter_model.safetensors" ||
    die "load_best: not the best checkpoint's adapter"
go "$work/early" $flags --set run.load_best=on --set run.patience=3 --quiet --resume || die "going on after the end failed"
[ "$(grep -c '"event":"end"' "$work/early/metrics.jsonl")" = 1 ] || die "two ends"
[ "$(values "$work/early" step step | wc -l)" = $((want + 6)) ] || die "a run out of patience went on"

# A higher accuracy is better, and the first of equal ones stays.
go "$work/acc" $flags --set run.best=eval_rewards/accuracies --quiet || die "run.best=eval_rewards/accuracies failed"
values "$work/acc" eval eval_rewards/accuracies > "$work/accuracies"
want=$(awk 'NR > 1 && (NR == 2 || $1 > best) { best = $1; at = 2 * (NR - 1) } END { print at }' "$work/accuracies")
[ "$(readlink "$work/acc/best")" = "checkpoint-$want" ] || die "best by accuracy: $(readlink "$work/acc/best"), not $want"
go "$work/none" --set run.steps=4 --set run.eval_every=2 --set run.best=none --quiet || die "run.best=none failed"
[ ! -e "$work/none/best" ] && [ "$(cd "$work/none" && echo checkpoint-*)" = checkpoint-4 ] || die "none: $(ls "$work/none")"
go "$work/wrong" --set run.steps=2 --set run.best=eval_los 2> "$work/said"
[ $? = 1 ] && grep -q "did you mean 'eval_loss'" "$work/said" || die "run.best=eval_los: $(cat "$work/said")"

# Killed in the middle, it has the same best at the end, and one file of events more.
rm -rf "$work/broken"
pre=exec go "$work/broken" $flags --set run.save_every=1 --quiet &
pid=$!
tries=0
until [ -e "$work/broken/checkpoint-9" ] || [ $tries -gt 1000 ]; do sleep 0.01; tries=$((tries + 1)); done
kill -KILL $pid 2> /dev/null
wait $pid
go "$work/broken" $flags --set run.save_every=1 --quiet --resume || die "going on failed"
plain_metrics "$work/best/metrics.jsonl" > "$work/want"
plain_metrics "$work/broken/metrics.jsonl" > "$work/got"
cmp "$work/want" "$work/got" || die "a broken run has other metrics"
[ "$(readlink "$work/broken/best")" = "$(readlink "$work/best/best")" ] || die "a broken run has another best"
cmp "$work/best/adapter/adapter_model.safetensors" "$work/broken/adapter/adapter_model.safetensors" || die "another adapter"
[ "$(ls "$work"/broken/events.out.tfevents.* | wc -l)" = 2 ] || die "the run that went on has no file of its own"

# TRL's names, and those of Hugging Face's trainer, in every kind of line; the same tags for TensorBoard.
needs() { # EVENT KEY..
    line=$(grep "\"event\":\"$1\"" "$work/best/metrics.jsonl" | tail -n 1)
    shift
    for key; do case $line in *"\"$key\":"*) ;; *) die "no $key in $line" ;; esac; done
}
trl="rewards/chosen rewards/rejected rewards/accuracies rewards/margins logps/chosen logps/rejected logits/chosen
    logits/rejected entropy mean_token_accuracy"
needs step step epoch time loss grad_norm learning_rate num_tokens tokens_per_second step_time_ms memory_bytes $trl \
    cpu/utilization cpu/memory_used_bytes
needs eval step epoch eval_loss eval_runtime eval_samples_per_second eval_rewards/accuracies_stderr \
    $(for k in $trl; do echo eval_$k; done)
needs end epoch train_runtime train_samples_per_second train_steps_per_second train_loss num_tokens best_step
for tag in train/loss train/rewards/margins train/grad_norm train/learning_rate eval/loss eval/rewards/accuracies \
    train/train_loss cpu/utilization; do
    grep -qaF "$tag" "$work"/best/events.out.tfevents.* || die "no $tag in TensorBoard's file"
done
mean=$(values "$work/best" step loss | awk '{ s += $1 } END { printf "%.6f", s / NR }')
awk -v a="$mean" -v b="$(values "$work/best" end train_loss)" 'BEGIN { d = a - b; exit !(d < 1e-5 && d > -1e-5) }' ||
    die "train_loss is not the mean of the losses, $mean"
grep -q '"best_model_checkpoint": ".*checkpoint-' "$work/best/trainer_state.json" || die "trainer_state.json has no best"
[ "$(grep -c '"eval_loss":' "$work/best/trainer_state.json")" = 13 ] || die "trainer_state.json has another history"

# What is seen: the start, a line a step, a warning where nothing moves; other people's words for AdamW.
go "$work/paged" --set run.steps=12 --set run.lr=1e-30 --set run.optimizer=paged_adamw_32bit --log-every=1 2> "$work/said" ||
    die "paged_adamw_32bit is not taken: $(cat "$work/said")"
for text in "nothing is paged" "rewards are still 0 after" "trainable" "step 12/12  loss" "ETA" "memory  *.* known before"; do
    grep -q "$text" "$work/said" || die "no '$text' in: $(cat "$work/said")"
done
grep -q "should be the same model" "$work/said" && die "a wrong warning of the first step"
exit 0
