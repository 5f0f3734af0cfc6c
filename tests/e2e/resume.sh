#!/bin/sh
# A run killed at arbitrary moments and resumed ends as the unbroken one: adapter, moments, cursor, metrics.
. tests/e2e/lib.sh
flags="--set run.steps=200 --set run.save_every=13 --set pref.dropout=0.1 --set run.tokens=96"
train_case gqa "$work/whole" $flags || die "the unbroken run failed"
plain_metrics "$work/whole/metrics.jsonl" > "$work/want"
for signal in KILL TERM INT; do
    run=$work/broken-$signal
    pre=exec train_case gqa "$run" $flags &
    pid=$!
    tries=0
    while [ $tries -lt 9 ]; do
        tries=$((tries + 1))
        sleep 0.$((tries * 7 % 10))
        kill -$signal $pid 2>/dev/null || break
        wait $pid
        rc=$?
        case $signal:$rc in KILL:137 | TERM:143 | INT:130 | *:0) ;; *) die "exit status $rc after $signal" ;; esac
        [ $rc = 0 ] && break
        pre=exec train_case gqa "$run" --resume $flags &
        pid=$!
    done
    wait $pid
    [ -f "$run/adapter/adapter_model.safetensors" ] || train_case gqa "$run" --resume $flags || die "the last resume failed"
    plain_metrics "$run/metrics.jsonl" > "$work/got"
    cmp "$work/want" "$work/got" || die "metrics differ after $signal"
    for f in adapter/adapter_model.safetensors checkpoint-200/state.safetensors checkpoint-200/trainer_state.json; do
        cmp "$work/whole/$f" "$run/$f" || die "$f differs after $signal"
    done
done
if train_case gqa "$work/whole" $flags 2> "$work/err"; then die "a used directory was taken"; fi
grep -q -- --resume "$work/err" || die "the message does not name --resume"
train_case gqa "$work/whole" --resume=nowhere $flags 2> "$work/err" && die "a checkpoint that is not there was taken"
grep -q "nowhere: no checkpoint" "$work/err" || die "it is not said that there is none: $(cat "$work/err")"
if train_case gqa "$work/whole" --resume $flags --set run.lr=0.5 2> "$work/err"; then die "another rate was taken"; fi
grep -q run.lr "$work/err" || die "the message does not name run.lr"
sed -i 's/"cursor": *[0-9]*/"cursor":9223372036854775807/' "$work/whole/checkpoint-200/trainer_state.json"
train_case gqa "$work/whole" --resume $flags 2> "$work/err" && die "a cursor that no run has was taken"
[ $? -eq 5 ] && grep -q "trainer_state.json: 9223372036854775807 is no number" "$work/err" || die "cursor: $(cat "$work/err")"
