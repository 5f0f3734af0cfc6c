#!/bin/sh
# The same bits, in bf16: two runs; recorded and replayed, without prefetching, under other orders of threads, with
# work done only when it is waited for; killed or stopped, then resumed.
. tests/cudasim/lib.sh
case=$cases/gqa
spec=$work/quantized.dpo
sed 's/^base = .*/&\nquantize base nf4(block = 64, double = true) on "model.layers[*].**.*_proj"/' models/dpo-lora.dpo > "$spec"
run() { # run OUT [flags]
    out=$1
    shift
    on_sim ${pre:-} "$dpoc" train "$spec" --device=cuda --model $case --data $case/pairs.jsonl --quiet -o "$out" \
        --set pref.rank=4 --set run.batch=3 --set run.tokens=256 --set run.lr=1e-2 --set run.steps=3 "$@"
}
same() { same_run "$work/first" "$work/$1" || die "$1: other bits"; }
run "$work/first" || die "training failed"
run "$work/again" && same again || die "a second run"
run "$work/capture" --set graph.capture=on && same capture || die "recorded"
run "$work/alone" --set graph.prefetch=off && same alone || die "without prefetching"
for order in reverse random:7; do
    CUDASIM_ORDER=$order run "$work/$order" && same $order || die "threads in order $order"
done
CUDASIM_LAZY=1 run "$work/lazy" && same lazy || die "lazy streams"

# Stopped: a checkpoint is saved and the run goes on from there.
flags="--set run.steps=8 --set run.save_every=3"
run "$work/whole" $flags || die "the unbroken run failed"
run "$work/broken" $flags &
pid=$!
tries=0
until grep -q '"step":[1-9]' "$work/broken/metrics.jsonl" 2> /dev/null || [ $tries -gt 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
program=$(ps -o pid= --ppid $pid 2> /dev/null | head -n 1)
kill -INT ${program:-$pid}
wait $pid
rc=$?
case $rc in 130 | 0) ;; *) die "exit status $rc after an interrupt" ;; esac
[ $rc = 0 ] || run "$work/broken" $flags --resume || die "the resumed run failed"
same_run "$work/whole" "$work/broken" || die "a resumed run has other bits"
